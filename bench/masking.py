"""Does masking medical terms in training rows help? An ablation on the miniature clinic.

    python -m bench.masking --json            # three seeds, about 45 minutes on two cores
    python -m bench.masking --quick --json    # one seed, a few steps, 24 questions: the shape only

SFT as in the demo (tiny base, 128 worked traces, 300 steps), with masking off and in each of its ways; then the
held-out questions (`full`), and the same kind with one finding of the patient left out (`partial`). A case is one way
at one share of masked rows: accuracy over all seeds with Wilson intervals, and the paired difference from `off` with
the exact McNemar p, Holm-adjusted over all cases of a benchmark. `ours` is the way, `theirs` is off.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.common import arguments, machine, tell
from bench.demo import QUICK
from danlu import demo
from danlu.evaluate.stats import bonett_price, holm, mcnemar, wilson
from danlu.recipe import Recipe

WAYS: dict[str, dict[str, Any]] = {
    "published": {"loss": "published"},
    "ignore": {"loss": "ignore"},
    "denoise": {"loss": "denoise"},
    "denoise question": {"loss": "denoise", "where": ["question"]},
}
SHARES = (0.1, 0.5)
BENCHMARKS = {"full": "world:test", "partial": "world:test-partial"}
LIMIT = 300
Right = dict[str, list[bool]]  # benchmark -> per question, in order


def plan_of(seed: int, masking: dict[str, Any] | None, quick: bool) -> Recipe:
    values = demo.seeded(seed, QUICK[:1] if quick else ()).resolved()
    values["data"]["masking"] = masking
    values["eval"]["benchmarks"] = [
        {"name": name, "path": path, "limit": 24 if quick else LIMIT, "seed": seed + 4}  # the demo's own questions
        for name, path in BENCHMARKS.items()
    ]
    return Recipe.model_validate(values)


def answers(seed: int, masking: dict[str, Any] | None, quick: bool) -> Right:
    """Train one way at one seed; which questions it answers right."""
    plan = plan_of(seed, masking, quick)
    with tempfile.TemporaryDirectory() as folder:
        trained = demo.train_stage("sft", plan, Path(folder), None)
        rows = demo.evaluate_stage("sft", plan, Path(folder), str(trained.path)).samples()
    order = sorted(rows, key=lambda row: row["id"])
    return {name: [row["outcome"] == "right" for row in order if row["benchmark"] == name] for name in BENCHMARKS}


def figures(found: list[Right]) -> dict[str, Any]:
    """Accuracy over all seeds per benchmark, and per seed."""
    told = {}
    for name in BENCHMARKS:
        every = [value for run in found for value in run[name]]
        share = sum(every) / len(every)
        seeds = [round(sum(run[name]) / len(run[name]), 4) for run in found]
        low, high = wilson(sum(every), len(every))
        told[name] = {"accuracy": round(share, 4), "ci": [round(low, 4), round(high, 4)], "seeds": seeds}
    return told


def against(found: list[Right], off: list[Right], name: str) -> dict[str, Any]:
    """The paired difference from `off` over all seeds."""
    pairs = [pair for mine, base in zip(found, off, strict=True) for pair in zip(mine[name], base[name], strict=True)]
    gained = sum(mine and not base for mine, base in pairs)
    lost = sum(base and not mine for mine, base in pairs)
    low, high = bonett_price(gained, lost, len(pairs))
    difference = (gained - lost) / len(pairs)
    interval = [round(low, 4), round(high, 4)]
    return {"difference": round(difference, 4), "ci": interval, "p": mcnemar(gained, lost), "n": len(pairs)}


def measure(seeds: list[int], shares: list[float], quick: bool) -> dict[str, Any]:
    off = []
    for seed in seeds:
        off.append(answers(seed, None, quick))
        print(f"off, seed {seed}: {figures(off[-1:])}", file=sys.stderr, flush=True)
    cases = []
    for share in shares:
        for way, settings in WAYS.items():
            found = []
            for seed in seeds:
                found.append(answers(seed, {"probability": share, **settings}, quick))
                print(f"{way} {share}, seed {seed}: {figures(found[-1:])}", file=sys.stderr, flush=True)
            differences = {name: against(found, off, name) for name in BENCHMARKS}
            cases.append(
                {
                    "name": f"{way} in {share:.0%} of rows",
                    "ours": figures(found),
                    "theirs": figures(off),
                    "against_off": differences,
                }
            )
    for name in BENCHMARKS:
        for case, p in zip(cases, holm([case["against_off"][name]["p"] for case in cases]), strict=True):
            case["against_off"][name]["p_holm"] = p
    for case in cases:
        told = case["ours"]["full"]["accuracy"], case["theirs"]["full"]["accuracy"]
        case["ratio"] = round(told[0] / told[1], 3) if told[1] else None
        case["goal"] = "better than off on a benchmark (Holm-adjusted p < 0.05), worse on none"
        differences = case["against_off"].values()
        better = any(d["difference"] > 0 and d["p_holm"] < 0.05 for d in differences)
        case["ok"] = better and not any(d["difference"] < 0 and d["p_holm"] < 0.05 for d in differences)
    winners = [case for case in cases if case["ok"]]
    best = max(winners, key=lambda c: sum(d["difference"] for d in c["against_off"].values()), default=None)
    return {
        "name": "masking",
        "off": figures(off),
        "cases": cases,
        "winner": best["name"] if best else "off",
        "runs": len(seeds),
        "machine": machine(),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    options = parser.parse_args()
    seeds, shares = (options.seeds[:1], options.shares[-1:]) if options.quick else (options.seeds, options.shares)
    tell(measure(seeds, shares, options.quick), options.json)


if __name__ == "__main__":
    main()
