"""What SFT alone reaches with the demo's data: is GRPO worth its seconds?

    python -m bench.controls --json --write     # the shipped figures (src/danlu/assets/controls.json)
    python -m bench.controls --quick --json     # the shape only

Three ways from the same base, asked the same held-out questions as the demo at the same seed:
  demo         SFT on the worked traces, then GRPO on answer-only vignettes
  longer SFT   SFT on the same traces for at least the seconds of SFT + GRPO
  answers      SFT on the answer-only vignettes (no reasoning in the target) for at least those seconds
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.common import arguments, machine, tell
from bench.demo import QUICK
from danlu import demo
from danlu.evaluate.verdict import compare
from danlu.recipe import Recipe
from danlu.run import read_json

FILE = Path(demo.__file__).parent / "assets" / "controls.json"
TRIES = 4  # another program that ends meanwhile makes the same steps take less
WAYS = {"longer SFT": "SFT on the same traces for longer", "answers": "SFT on the answers without reasoning"}


def train(plan: Recipe, out: Path, name: str, seconds: float, steps: int) -> tuple[Path, float]:
    """An SFT run of at least `seconds`; trained anew with more steps when `steps` took less."""
    for again in range(TRIES):
        path, took = _timed(_with_steps(plan, steps), out, f"{name}-{again}")
        if took >= seconds:
            return path, took
        steps = round(1.2 * steps * seconds / took)
    raise SystemExit(f"error: {name} never took {seconds:.0f} s\nhint: run this on a quiet machine")


def _with_steps(plan: Recipe, steps: int) -> Recipe:
    return plan.model_copy(update={"sft": plan.sft.model_copy(update={"steps": steps})})


def _timed(plan: Recipe, out: Path, name: str) -> tuple[Path, float]:
    began = time.monotonic()
    run = demo.new_run("sft", name, plan, out, None)
    from danlu.train.sft import sft

    with run.recording():
        run.record(**sft(plan, run, None))
    return run.path, time.monotonic() - began


def measure(seed: int, quick: bool) -> list[dict[str, Any]]:
    plan = demo.seeded(seed, QUICK if quick else ())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        began = time.monotonic()
        sft_run = demo.train_stage("sft", plan, out, None)
        sft_seconds = time.monotonic() - began
        grpo_run = demo.train_stage("grpo", plan, out, str(sft_run.path))
        took = {"demo": time.monotonic() - began}
        evals = {"demo": demo.evaluate_stage("grpo", plan, out, str(grpo_run.path)).path}
        answers = [source.model_copy(update={"path": "world:answers"}) for source in plan.grpo.data]
        plans = {
            "longer SFT": plan,
            "answers": plan.model_copy(update={"data": plan.data.model_copy(update={"train": answers})}),
        }
        enough = round(1.1 * (plan.sft.steps or 1) * took["demo"] / sft_seconds)
        for name, control in plans.items():
            steps = enough if name == "longer SFT" else 2 * enough  # rows without reasoning are shorter
            path, took[name] = train(control, out, name.replace(" ", "-"), took["demo"], steps)
            evals[name] = demo.evaluate_stage(name.replace(" ", "-"), plan, out, str(path)).path
        return [_compared(name, seed, evals, took) for name in WAYS]


def _compared(name: str, seed: int, evals: dict[str, Path], took: dict[str, float]) -> dict[str, Any]:
    found = compare(evals[name], evals["demo"])
    entry = found["benchmarks"][0]
    won = {"better": "GRPO is better", "worse": "this control is better than GRPO"}.get(
        found["verdict"], "no difference shown"
    )
    report = read_json(evals[name] / "artifact" / "report.json")["benchmarks"][0]
    return {
        "name": WAYS[name],
        "seed": seed,
        "n": entry["n"],
        "accuracy": entry["base"],
        "ci": report["ci"],
        "splits": {split["name"]: split["accuracy"] for split in report["splits"]},
        "seconds": round(took[name], 1),
        "grpo": {"accuracy": entry["tuned"], "seconds": round(took["demo"], 1)},
        "difference": entry["difference"],
        "p": entry["p"],
        "verdict": found["verdict"],
        "expected": f"{won} (GRPO {entry['tuned']:.1%} in {took['demo']:.0f} s, this in {took[name]:.0f} s, "
        f"p = {entry['p']:.2g}, seed {seed})",
        "ok": found["verdict"] == "better",
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", action="store_true", help="write the figures that the demo's report shows")
    options = parser.parse_args()
    found = [
        row for seed in (options.seeds[:1] if options.quick else options.seeds) for row in measure(seed, options.quick)
    ]
    result = {"command": "python -m bench.controls --json --write", "machine": machine(), "controls": found}
    if options.write and not options.quick:
        FILE.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    cases = [
        {
            "name": f"{row['name']}, seed {row['seed']}",
            "ours": row["grpo"],
            "theirs": {"accuracy": row["accuracy"]},
            "ratio": round(row["grpo"]["accuracy"] / row["accuracy"], 3) if row["accuracy"] else None,
            "goal": "GRPO better, p < 0.05",
            "ok": row["ok"] and row["p"] < 0.05,
            **row,
        }
        for row in found
    ]
    tell({"name": "controls", "cases": cases, "runs": len(options.seeds), "machine": machine()}, options.json)


if __name__ == "__main__":
    main()
