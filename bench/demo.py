"""The demo at several seeds: is SFT better than the base, and GRPO better than SFT, every time, in every task?

    python -m bench.demo --json                 # seeds 0, 1 and 2: rows, training and questions all differ
    python -m bench.demo --json --trl           # and GRPO by TRL beside ours: about twice as long
    python -m bench.demo --quick --json         # one seed, a few steps, 24 questions: the shape only

A case is a seed. `ours` is GRPO, `theirs` its SFT start, `ratio` their accuracies' ratio. The goal is p < 0.01 for both
steps, GRPO at least 8 points above SFT, no task, format or stop rate more than 2 points below SFT's, the demo in 300 s,
and a peak of 3 GB.
With `--trl` every seed has a second case: as many steps of `engine: trl` from the same SFT adapter, on the same prompts
in the same order; `theirs` is then TRL's GRPO. The goal is that the paired test shows no difference (p >= 0.05): the
engines draw other completions, so a difference holds the noise of training on top of that of the questions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.common import append, arguments, machine, tell
from danlu.cli import TUNABLES

QUICK = ("sft.steps=4", "grpo.steps=2", "grpo.prompts=2", "eval.benchmarks.0.limit=24", "grpo.valid.0.limit=8")
POINTS, LOSS = 0.08, 0.02  # what GRPO adds at least, and what a task or rate may lose


# ---- each in a process of its own (for its peak memory)


def whole(seed: int, out: Path, overrides: list[str]) -> dict[str, Any]:
    """The demo itself."""
    from danlu.demo import demo

    return demo(seed, out, overrides) | {"peak_memory_bytes": peak()}


def by_trl(seed: int, out: Path, overrides: list[str]) -> dict[str, Any]:
    """GRPO by TRL from the demo's SFT run in `out`, and how ours compares."""
    from danlu import demo
    from danlu.evaluate.verdict import compare
    from danlu.run import read_json
    from danlu.train.grpo import grpo

    plan = demo.seeded(seed, [*overrides, "grpo.engine=trl"])
    run = demo.new_run("grpo", "grpo-trl", plan, out, str(out / "sft"))
    with run.recording():
        run.record(**grpo(plan, run, str(out / "sft")))
    evaluation = demo.evaluate_stage("grpo-trl", plan, out, str(run.path))
    rewards = {name: [row["reward"] for row in own.metrics() if "reward" in row] for name, own in runs(out).items()}
    return {
        "entry": read_json(evaluation.artifact / "report.json")["benchmarks"][0],
        "compared": compare(evaluation.path, out / "eval-grpo"),
        "seconds": {name: own.info()["seconds"] for name, own in runs(out).items()},
        "rewards": rewards,
        "peak_memory_bytes": peak(),
    }


def runs(out: Path) -> dict[str, Any]:
    from danlu.run import Run

    return {"ours": Run(out / "grpo"), "theirs": Run(out / "grpo-trl")}


def peak() -> int:
    """Bytes: the largest resident set of this process."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


SIDES: dict[str, Callable[[int, Path, list[str]], dict[str, Any]]] = {"demo": whole, "trl": by_trl}


def in_a_process(side: str, seed: int, out: Path, quick: bool) -> dict[str, Any]:
    given = json.dumps({"seed": seed, "out": str(out), "overrides": list(QUICK) if quick else []})
    command = [sys.executable, "-m", "bench.demo", "--side", side, "--given", given]
    environment = {"GLIBC_TUNABLES": TUNABLES, **os.environ}  # as the command line sets it
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


# ---- together


def cases_of(seed: int, quick: bool, trl: bool) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        result = in_a_process("demo", seed, out, quick)
        found = [case(seed, result)]
        if trl:
            found.append(trl_case(seed, in_a_process("trl", seed, out, quick)))
    return found


def case(seed: int, result: dict[str, Any]) -> dict[str, Any]:
    peak_bytes = result["peak_memory_bytes"]
    stages = {stage["name"]: stage for stage in result["stages"]}
    base, sft, grpo = (stages[name]["accuracy"] for name in ("base", "sft", "grpo"))
    ok = all(step["verdict"] == "better" and step["p"] < 0.01 for step in result["steps"])
    ok = ok and grpo - sft >= POINTS and result["seconds"] <= 300 and peak_bytes <= 3 * 10**9
    changes = changed(stages["sft"], stages["grpo"])
    return {
        "name": f"seed {seed}",
        "ours": {"accuracy": grpo, "ci": stages["grpo"]["ci"], "splits": stages["grpo"]["splits"]},
        "theirs": {"accuracy": sft, "ci": stages["sft"]["ci"], "splits": stages["sft"]["splits"]},
        "base": {"accuracy": base, "ci": stages["base"]["ci"]},
        "ratio": round(grpo / sft, 3) if sft else None,
        "goal": "p < 0.01 for both steps, GRPO 8 points above SFT and nothing 2 points below it, 300 s, 3 GB",
        "ok": ok and result["export"]["ok"] and min(changes.values()) >= -LOSS,
        "steps": result["steps"],
        "changes": changes,
        "stages": result["stages"],
        "export": result["export"],
        "seconds": result["seconds"],
        "peak_memory_bytes": peak_bytes,
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """What GRPO adds to the accuracy of each task, and to the rates of form and stop."""
    pairs = {task: (value, after["tasks"][task]) for task, value in before["tasks"].items()}
    pairs |= {name: (before[name], after[name]) for name in ("format_rate", "stop_rate")}
    return {name: round(new - old, 4) for name, (old, new) in pairs.items()}


def trl_case(seed: int, found: dict[str, Any]) -> dict[str, Any]:
    compared, entry = found["compared"]["benchmarks"][0], found["entry"]
    ours, theirs = found["seconds"]["ours"], found["seconds"]["theirs"]
    return {
        "name": f"seed {seed}, GRPO by TRL",
        "ours": {"accuracy": compared["tuned"], "seconds": ours, "rewards": found["rewards"]["ours"]},
        "theirs": {
            "accuracy": compared["base"],
            "ci": entry["ci"],
            "format_rate": entry["format_rate"],
            "stop_rate": entry["stop_rate"],
            "tasks": {task["name"]: task["accuracy"] for task in entry["tasks"]},
            "seconds": theirs,
            "rewards": found["rewards"]["theirs"],
            "peak_memory_bytes": found["peak_memory_bytes"],
        },
        "ratio": round(theirs / ours, 2),  # of the seconds
        "difference": compared["difference"],
        "ci": compared["ci"],
        "p": compared["p"],
        "sentence": found["compared"]["sentence"],
        "goal": "no difference shown at equal steps: p >= 0.05",
        "ok": compared["p"] >= 0.05,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trl", action="store_true", help="GRPO by TRL's GRPOTrainer as well, from the same adapter")
    parser.add_argument("--write", action="store_true", help="append the figures to bench/results/demo.json")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--given", type=json.loads)
    options = parser.parse_args()
    if options.side:
        given = options.given
        print(json.dumps(SIDES[options.side](given["seed"], Path(given["out"]), given["overrides"])))
        return
    seeds = options.seeds[:1] if options.quick else options.seeds
    cases = [one for seed in seeds for one in cases_of(seed, options.quick, options.trl)]
    result = {"name": "demo", "cases": cases, "runs": len(seeds), "machine": machine()}
    if options.write and not options.quick:
        append(result)
    tell(result, options.json)


if __name__ == "__main__":
    main()
