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
from danlu import demo, recipe
from danlu.evaluate.verdict import compare
from danlu.recipe import Recipe
from danlu.run import read_json

FILE = Path(demo.__file__).parent / "assets" / "controls.json"
WAYS = {"longer SFT": "SFT on the same traces for longer", "answers": "SFT on the answers without reasoning"}


def train(plan: Recipe, out: Path, name: str, seconds: float) -> tuple[Path, float]:
    """An SFT run of at least `seconds`: its speed is measured on a short run first."""
    probe = plan.model_copy(update={"sft": plan.sft.model_copy(update={"steps": 6})})
    _timed(probe, out, f"{name}-probe")
    speed = _seconds_per_step(out / f"{name}-probe")
    steps = max(6, round(1.1 * seconds / speed))
    path, took = _timed(plan.model_copy(update={"sft": plan.sft.model_copy(update={"steps": steps})}), out, name)
    if took < seconds:  # the machine was faster this time: say so by training longer
        again = round(steps * 1.15 * seconds / took)
        longer = plan.model_copy(update={"sft": plan.sft.model_copy(update={"steps": again})})
        path, took = _timed(longer, out, f"{name}-again")
    return path, took


def _seconds_per_step(path: Path) -> float:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    speeds = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    info = read_json(path / "run.json")
    return float(info["seconds"]) / len(speeds) * 0.8


def _timed(plan: Recipe, out: Path, name: str) -> tuple[Path, float]:
    began = time.monotonic()
    run = demo._run("sft", name, plan, out, None)
    from danlu.train.sft import sft

    with run.recording():
        run.record(**sft(plan, run, None))
    return run.path, time.monotonic() - began


def measure(seed: int, quick: bool) -> list[dict[str, Any]]:
    plan = demo.seeded(seed, QUICK if quick else ())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        began = time.monotonic()
        sft_run = demo._train("sft", plan, out, None)
        grpo_run = demo._train("grpo", plan, out, str(sft_run.path))
        seconds = time.monotonic() - began
        evals = {"demo": demo._evaluate("grpo", plan, out, str(grpo_run.path)).path}
        answers = plan.data.model_copy(
            update={"train": [s.model_copy(update={"path": "world:answers"}) for s in plan.grpo.data]}
        )
        plans = {"longer SFT": plan, "answers": plan.model_copy(update={"data": answers})}
        took = {"demo": seconds}
        for name, control in plans.items():
            if not quick:
                control = recipe.Recipe.model_validate(control.model_dump())
            path, took[name] = train(control, out, name.replace(" ", "-"), seconds)
            evals[name] = demo._evaluate(name.replace(" ", "-"), plan, out, str(path)).path
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
        "expected": f"{won} (GRPO {entry['tuned']:.1%}, p = {entry['p']:.2g}, seed {seed})",
        "ok": found["verdict"] == "better",
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
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
