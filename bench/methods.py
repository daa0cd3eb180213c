"""Full fine-tuning against LoRA against QLoRA on the miniature clinic: what do the adapters cost in accuracy?

    python -m bench.methods --json --write --runs DIR             # about 50 minutes on two quiet cores
    python -m bench.methods --methods lora --seeds 1 --runs DIR   # a part; what is done in DIR is not done again
    python -m bench.methods --quick --json                        # a few steps, 16 questions: the shape only

The demo's SFT (shipped tiny base) on 1,000 worked rows in place of 128, 400 steps of 4: it has reached its plateau
there (1,000 steps are no better on dev), so what is compared is methods and not stopping points. A seed has the same
rows in the same order for all methods:
  full    all weights, in fp32
  lora    r = 16 on all linear layers, over the base as it is
  qlora   the same over an NF4 base with double quantization
Weights that are not trained, and products, are bf16 where the machine is fast at it, else fp32 (`settings.dtype`).
The learning rate of each method is chosen on 400 `dev` questions at a training seed of its own, from GRID; while the
best stands at an edge the grid is extended along LADDER; a tie goes to the smaller rate. Then 300 `test` questions at
each of the other seeds: rows, training and questions all differ by seed. QLoRA is asked as it was trained, over the
NF4 base, and once more over the full-precision base, which is what `danlu merge` and `danlu export` deliver.

Accuracies are over all seeds with Wilson intervals, of all questions and of the open and the multiple-choice half;
differences from full are paired (McNemar, Tango); the share of full has Student's t over seeds. Memory and speed: each
training is a process of its own, its peak resident memory (all of Python and torch, about 0.6 GB, included) and the
median tokens a second; also at 0.11 B parameters (`sizes`, Qwen3's shape with random weights, real rows), where weights
count for something.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.common import arguments, machine, tell
from bench.published import ROOT, random_qwen3
from danlu import demo
from danlu.errors import DanluError
from danlu.evaluate.stats import mcnemar, tango, wilson
from danlu.evaluate.training import spread
from danlu.recipe import load
from danlu.run import Run, differing_keys

FILE = ROOT / "bench" / "results" / "methods.json"
METHODS: dict[str, list[str]] = {
    "full": ["sft.method=full"],
    "lora": ["sft.method=lora"],
    "qlora": ["sft.method=lora", "model.quantization=nf4"],
}
GRID = {"full": [3e-4, 1e-3, 3e-3], "lora": [1e-3, 3e-3, 1e-2], "qlora": [1e-3, 3e-3, 1e-2]}
LADDER = [3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]  # where the grid goes when its edge is the best
CHOICE_SEED = 100  # of the runs that choose the rate; none of them is asked a test question
ROWS, STEPS, BATCH = 1000, 400, 4
QUESTIONS = {"dev": 400, "test": 300}
KINDS = ("all", "open", "choice")
GOAL = 0.97
SIZE_STEPS = 4
Right = dict[str, list[bool]]  # "all", "open" and "choice" questions, each in the order of their ids


# ---- one training or evaluation, each a process of its own

ALONE = True  # a process for each, so that peaks are its own; --quick saves the imports


def made(stage: str, name: str, sets: list[str], start: str | None = None, recipe: str = "demo") -> Run:
    """The run `name` under $DANLU_RUNS: as it is if it was done under these settings, else made by `danlu STAGE`."""
    run = Run(Path(os.environ["DANLU_RUNS"]) / name)
    resume = (run.path / "run.json").is_file()
    if resume and run.state() == "done":
        differ = differing_keys(run.config(), load(recipe, sets).resolved())
        if differ:
            raise DanluError(f"{run.path} differs in {', '.join(differ)}", "remove it, or give another --runs")
        return run
    given = [word for item in sets for word in ("--set", item)] + (["--from", start] if start else [])
    given = [stage, recipe, "--name", name, *given, *(["--resume"] if resume else []), "--display", "plain"]
    if ALONE:
        code = "import sys; from danlu.cli import main; sys.exit(main())"
        command = [sys.executable, "-W", "ignore", "-c", code, *given]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        ended, told = done.returncode, done.stderr[-2000:]
    else:
        from danlu.cli import main

        with contextlib.redirect_stdout(io.StringIO()):
            ended, told = main(given), "see above"
    if ended:
        raise DanluError(f"{name}: danlu {stage} ended with {ended}", told)
    return run


def sets_of(method: str, rate: float, seed: int, quick: bool) -> list[str]:
    """The --set of a training: what differs from the demo's recipe."""
    rows, steps = (32, 3) if quick else (ROWS, STEPS)
    plan = demo.seeded(seed)
    return [
        f"seed={seed}",
        f"data.train={json.dumps([{'path': 'world:sft', 'limit': rows, 'seed': plan.data.train[0].seed}])}",
        f"sft.steps={steps}",
        f"sft.batch_size={BATCH}",
        f"sft.optimizer.lr={rate}",
        "sft.eval_every=0",
        *METHODS[method],
    ]


def asked(run: Run, sets: list[str], split: str, seed: int, quick: bool, label: str = "") -> Right:
    """Which questions of `split` the run answers right."""
    limit = 16 if quick else QUESTIONS[split]
    sets = [
        *sets,
        f"eval.benchmarks={json.dumps([{'name': split, 'path': f'world:{split}', 'limit': limit, 'seed': seed + 4}])}",
    ]
    rows = sorted(
        made("eval", f"{run.name}-{split}{label}", sets, start=str(run.path)).samples(), key=lambda row: row["id"]
    )
    return {
        kind: [row["outcome"] == "right" for row in rows if kind == "all" or row["task"].endswith(kind)]
        for kind in KINDS
    }


def trained(method: str, rate: float, seed: int, quick: bool) -> tuple[Run, list[str]]:
    sets = sets_of(method, rate, seed, quick)
    return made("sft", f"{method}-lr{rate:g}-seed{seed}", sets), sets


# ---- the rate


def chosen_rate(method: str, quick: bool) -> tuple[float, dict[str, float]]:
    """(the rate with the most right dev answers, accuracy by rate)."""
    found: dict[float, float] = {}

    def ask(rate: float) -> None:
        run, sets = trained(method, rate, CHOICE_SEED, quick)
        right = asked(run, sets, "dev", CHOICE_SEED, quick)["all"]
        found[rate] = sum(right) / len(right)
        print(f"{method} lr {rate:g}: {found[rate]:.1%} of dev", file=sys.stderr, flush=True)

    for rate in GRID[method][1:2] if quick else GRID[method]:
        ask(rate)
    while not quick:
        best = max(found, key=lambda rate: (found[rate], -rate))
        near = {LADDER[at + step] for at in [LADDER.index(best)] for step in (-1, 1) if 0 <= at + step < len(LADDER)}
        if near <= found.keys():
            break
        ask(min(near - found.keys()))
    best = max(found, key=lambda rate: (found[rate], -rate))
    return best, {f"{rate:g}": round(share, 4) for rate, share in sorted(found.items())}


# ---- the verdict


def figures(found: dict[int, Right], kind: str = "all") -> dict[str, Any]:
    every = [value for right in found.values() for value in right[kind]]
    seeds = {str(seed): round(sum(right[kind]) / len(right[kind]), 4) for seed, right in found.items()}
    ci = [round(value, 4) for value in wilson(sum(every), len(every))]
    return {"accuracy": round(sum(every) / len(every), 4), "ci": ci, "n": len(every), "seeds": seeds}


def against(found: dict[int, Right], full: dict[int, Right], kind: str = "all") -> dict[str, Any]:
    """The share of full, with Student's t over seeds, and the paired difference of answers."""
    sides = [(found[seed][kind], full[seed][kind]) for seed in sorted(found.keys() & full.keys())]
    pairs = [pair for side in sides for pair in zip(*side, strict=True)]
    gained, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    whole = sum(b for _, b in pairs)
    told: dict[str, Any] = {"difference": round((gained - lost) / len(pairs), 4), "n": len(pairs)}
    told |= {"ci": [round(value, 4) for value in tango(gained, lost, len(pairs))], "p": mcnemar(gained, lost)}
    told["share"] = round(sum(a for a, _ in pairs) / whole, 4) if whole else None
    shares = [sum(own) / sum(other) for own, other in sides if any(other)]
    interval = spread(shares)["ci"] if shares else None
    return {**told, "share_ci": [round(value, 4) for value in interval] if interval else None}


def cost(runs: list[Run]) -> dict[str, Any]:
    """Peak memory and speed of trainings; the first steps (caches, compilation) do not count for the speed."""
    speeds = []
    for run in runs:
        rows = [row["tokens_per_second"] for row in run.metrics() if "tokens_per_second" in row]
        speeds.append(statistics.median(rows[len(rows) // 10 or 1 :] or rows))
    peak = max(run.info()["results"]["peak_memory_bytes"] for run in runs)
    return {"tokens_per_second": round(statistics.median(speeds), 1), "peak_memory_bytes": peak}


def clinic(methods: list[str], seeds: list[int], quick: bool) -> list[dict[str, Any]]:
    """A case a method; `theirs` is full fine-tuning."""
    right: dict[str, dict[int, Right]] = {}
    cases = []
    for method in methods:
        rate, tried = chosen_rate(method, quick)
        runs = []
        for seed in seeds:
            run, sets = trained(method, rate, seed, quick)
            runs.append(run)
            right.setdefault(method, {})[seed] = asked(run, sets, "test", seed, quick)
            if method == "qlora":
                wide = [item for item in sets if item != "model.quantization=nf4"]
                right.setdefault("qlora merged", {})[seed] = asked(run, wide, "test", seed, quick, "-merged")
            print(f"{method} seed {seed}: {figures(right[method])}", file=sys.stderr, flush=True)
        cases.append({"name": method, "learning_rate": rate, "dev": tried, **cost(runs)})
        if method == "qlora":
            cases.append({"name": "qlora merged", "learning_rate": rate, "dev": tried, **cost(runs)})
    for one in cases:
        own, full = right[one["name"]], right.get("full")
        one["ours"] = {**figures(own), **{kind: figures(own, kind) for kind in KINDS[1:]}}
        if full:
            one["theirs"] = {**figures(full), **{kind: figures(full, kind) for kind in KINDS[1:]}}
            one["against_full"] = {kind: against(own, full, kind) for kind in KINDS}
            one["ratio"] = one["against_full"]["all"]["share"]
        one["goal"] = GOAL
        one["ok"] = one["name"] == "full" or (one.get("ratio") or 0) >= GOAL
    return cases


def sizes(methods: list[str], shared: Path, root: Path) -> list[dict[str, Any]]:
    """Memory and speed at 0.11 B parameters, on real rows of up to 512 tokens."""
    place = random_qwen3(root / "qwen3-0.1b", shared / "tokenizers" / "Qwen3-1.7B")
    columns = {"question": "question", "reasoning": "think", "answer": "answer"}
    rows = [{"path": str(shared / "data" / "sft" / "delicate_medical_r1.jsonl"), "columns": columns}]
    found = []
    for method in methods:
        sets = [f"model.id={json.dumps(str(place))}", f"data.train={json.dumps(rows)}", "data.valid=[]"]
        sets += ["data.max_length=512", "data.overlong=truncate-reasoning", f"sft.steps={SIZE_STEPS}"]
        run = made("sft", f"size-{method}", [*sets, "sft.optimizer.lr=2e-4", *METHODS[method]])
        found.append({"name": method, "parameters": "0.11 B", **cost([run])})
        print(f"{method} at 0.11 B: {found[-1]}", file=sys.stderr, flush=True)
    return found


def measure(options: Any, root: Path) -> dict[str, Any]:
    os.environ["DANLU_RUNS"] = str(root)
    global ALONE
    ALONE = not options.quick
    seeds = options.seeds[:1] if options.quick else options.seeds
    result: dict[str, Any] = {"name": "methods", "cases": clinic(options.methods, seeds, options.quick)}
    if not options.quick and (options.shared / "data").is_dir():
        result["sizes"] = sizes(options.methods, options.shared, root)
    from danlu.models.load import weight_dtype

    settings: dict[str, Any] = {"dtype": str(weight_dtype("auto")).removeprefix("torch.")}
    settings |= {"rows": ROWS, "steps": STEPS, "batch": BATCH, "questions": QUESTIONS, "grid": GRID}
    return {**result, "settings": settings, "runs": len(seeds), "machine": machine()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=Path, help="keep the runs here, and go on with what is there")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="real rows, for `sizes`")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.relative_to(ROOT)}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(options, (options.runs or Path(scratch)).resolve())
    if options.write and not options.quick:
        FILE.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    tell(result, options.json)


if __name__ == "__main__":
    main()
