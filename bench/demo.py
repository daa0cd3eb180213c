"""The demo at several seeds: is SFT better than the base, and GRPO better than SFT, every time?

    python -m bench.demo --json                 # seeds 0, 1 and 2: rows, training and questions all differ
    python -m bench.demo --quick --json         # one seed, a few steps, 24 questions: the shape only

A case is a seed. `ours` is GRPO, `theirs` its SFT start, `ratio` their accuracies' ratio; the goal is p < 0.01 for both
steps, the demo in 300 s, and a peak of 3 GB.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.common import arguments, machine, tell

QUICK = ("sft.steps=4", "grpo.steps=2", "grpo.prompts=2", "eval.benchmarks.0.limit=24", "grpo.valid.0.limit=8")


def case(seed: int, quick: bool) -> dict[str, Any]:
    """One demo in a process of its own (for its peak memory)."""
    import json

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        code = (
            "import json, sys; from pathlib import Path; from danlu.demo import demo; "
            "print(json.dumps(demo(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])))"
        )
        command = [sys.executable, "-c", code, str(seed), str(out), *(QUICK if quick else ())]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        result = json.loads(done.stdout.splitlines()[-1])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    stages = {stage["name"]: stage for stage in result["stages"]}
    base, sft, grpo = (stages[name]["accuracy"] for name in ("base", "sft", "grpo"))
    ok = all(s["verdict"] == "better" and s["p"] < 0.01 for s in result["steps"])
    return {
        "name": f"seed {seed}",
        "ours": {"accuracy": grpo, "ci": stages["grpo"]["ci"], "splits": stages["grpo"]["splits"]},
        "theirs": {"accuracy": sft, "ci": stages["sft"]["ci"], "splits": stages["sft"]["splits"]},
        "base": {"accuracy": base, "ci": stages["base"]["ci"]},
        "ratio": round(grpo / sft, 3) if sft else None,
        "goal": "p < 0.01 for both steps, 300 s, 3 GB",
        "ok": ok and result["export"]["ok"] and result["seconds"] <= 300 and peak <= 3 * 10**9,
        "steps": result["steps"],
        "stages": result["stages"],
        "export": result["export"],
        "seconds": result["seconds"],
        "peak_memory_bytes": peak,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    cases = [case(seed, options.quick) for seed in (options.seeds[:1] if options.quick else options.seeds)]
    tell({"name": "demo", "cases": cases, "runs": len(cases), "machine": machine()}, options.json)


if __name__ == "__main__":
    main()
