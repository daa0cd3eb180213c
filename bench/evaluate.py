"""An evaluation that writes: questions a second, ours beside lm-eval's hf backend and transformers' generate in a loop.

    python -m bench.evaluate --json            # 128 questions of the clinic, 96 new tokens, greedy, the tiny base
    python -m bench.evaluate --quick --json    # 16 questions, without lm-eval at 8

Each side runs in a process of its own, which has loaded the model and the questions and has gone all the way with two
of them before the clock starts: start-up (seconds for any of them) does not count. Timed is, for us, `evaluate` with a
LocalGenerator at the recipe's batch size: prompts rendered, answers written, judged and stored. For lm-eval,
`lm_eval.evaluate` on the task danlu_clinic of docs/lm-eval: its requests, answers, filter and metric; at its default
batch size of 1, at 8 and at 16. For the loop, tokenising, `generate` and decoding, a prompt at a time.
All are given the same rendered prompts and stop at the same end tokens; `same_text` counts equal greedy answers.

The first case is against the fastest of lm-eval's batch sizes, which `theirs` names; its default is a case of its own.
Not covered: batch_size="auto", which tries sizes out on sequences of full length first; on a CPU that took minutes.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.common import arguments, machine, tell

ROOT = Path(__file__).resolve().parents[1]
TASKS = ROOT / "docs" / "lm-eval"
QUESTIONS, QUICK_QUESTIONS = 128, 16
MAX_TOKENS = 96
GOAL = 3.0
BATCHES = (1, 8, 16)
WARM = 2  # questions asked before the clock starts

Texts = dict[str, str]  # question id -> what was written


def samples_of(path: Path) -> list[Any]:
    from danlu.records import Sample

    with path.open(encoding="utf-8") as file:
        return [Sample.from_dict(json.loads(line)) for line in file]


def rendered(folder: Path) -> list[dict[str, Any]]:
    with (folder / "questions" / "clinic-test.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def prepare(folder: Path, count: int) -> None:
    """Write the questions as Samples, and with rendered prompts as the lm-eval task reads them."""
    from danlu.data.render import prompt_text
    from danlu.domains import load
    from danlu.models.tokenizer import speech_of
    from danlu.recipe import Model

    world = load("medical").world
    assert world is not None
    rows = [row for row in world.samples("test", 3 * count, 0) if row.options][:count]
    assert len(rows) == count, "too few choice questions"
    speech = speech_of(Model(id="tiny"))
    (folder / "questions").mkdir()
    with (
        (folder / "samples.jsonl").open("w", encoding="utf-8") as ours,
        (folder / "questions" / "clinic-test.jsonl").open("w", encoding="utf-8") as theirs,
    ):
        for row in rows:
            prompt = prompt_text(speech.tokenizer, speech.think, list(row.messages))
            line = {"id": row.id, "question": prompt, "answer_only": prompt, "target": row.target}
            line |= {"letters": list(row.options), "texts": list(row.options.values())}
            ours.write(json.dumps(row.to_dict(), ensure_ascii=False) + "\n")
            theirs.write(json.dumps(line, ensure_ascii=False) + "\n")


# ---- one side, in its own process: (seconds, texts)


def ours(folder: Path) -> tuple[float, Texts]:
    from danlu.evaluate.evaluate import evaluate
    from danlu.generate.local import LocalGenerator
    from danlu.models.load import load
    from danlu.recipe import Model, Recipe
    from danlu.run import Run

    samples = samples_of(folder / "samples.jsonl")
    recipe = Recipe.model_validate({"name": "bench", "eval": {"max_tokens": MAX_TOKENS}})
    warm, run = (Run.create(folder / name, "eval", recipe.resolved()) for name in ("warm", "run"))
    with LocalGenerator(load(Model(id="tiny", dtype="fp32")), batch=recipe.eval.batch) as generator:
        evaluate(recipe, warm, generator, benchmarks={"clinic": samples[:WARM]})
        began = time.monotonic()
        evaluate(recipe, run, generator, benchmarks={"clinic": samples})
        seconds = time.monotonic() - began
    return seconds, {row["id"]: row["output"] for row in run.samples()}


def lm_eval(folder: Path, batch: int) -> tuple[float, Texts]:
    os.chdir(folder)  # the task reads questions/ there
    import lm_eval as harness
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager, get_task_dict

    model = HFLM(pretrained=str(tiny()), dtype="float32", device="cpu", batch_size=batch)
    tasks = get_task_dict(["danlu_clinic"], TaskManager(include_path=str(TASKS), include_defaults=False))
    task = tasks["danlu_clinic"]
    task.set_config("generation_kwargs", {"max_gen_toks": MAX_TOKENS, "do_sample": False, "until": []})
    harness.evaluate(lm=model, task_dict=tasks, limit=WARM, bootstrap_iters=0)
    began = time.monotonic()
    found = harness.evaluate(lm=model, task_dict=tasks, bootstrap_iters=0, log_samples=True)
    seconds = time.monotonic() - began
    return seconds, {row["doc"]["id"]: row["resps"][0][0] for row in found["samples"]["danlu_clinic"]}


def transformers(folder: Path) -> tuple[float, Texts]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny())
    model = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32).eval()
    rows = rendered(folder)
    for row in rows[:WARM]:
        written(model, tokenizer, row["question"])
    texts: Texts = {}
    began = time.monotonic()
    for row in rows:
        texts[row["id"]] = written(model, tokenizer, row["question"])
    return time.monotonic() - began, texts


def written(model: Any, tokenizer: Any, prompt: str) -> str:
    """The greedy answer of transformers' generate, without its end token."""
    import torch

    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
    return str(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def tiny() -> Path:
    from importlib import resources

    return Path(str(resources.files("danlu") / "assets" / "tiny"))


SIDES: dict[str, Callable[[Path], tuple[float, Texts]]] = {
    "ours": ours,
    **{f"lm-eval batch {size}": (lambda folder, size=size: lm_eval(folder, size)) for size in BATCHES},
    "transformers loop": transformers,
}


def run_side(name: str, folder: Path, number: int) -> dict[str, Any]:
    """One side in a fresh process: {seconds, texts, peak_memory_bytes}."""
    out = folder / f"{name.replace(' ', '-')}-{number}"
    out.mkdir()
    for part in ("samples.jsonl", "questions"):
        (out / part).symlink_to(folder / part)
    command = [sys.executable, "-m", "bench.evaluate", "--side", name, str(out)]
    cache = {"HF_DATASETS_CACHE": str(out / "cache"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    path = {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **cache, **path}, stdout=sys.stderr)
    return json.loads((out / "side.json").read_text(encoding="utf-8"))


# ---- together


def measure(count: int, rounds: int, left_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every side `rounds` times, taking turns; the medians beside each other."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES if name not in left_out}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, count)
        for number in range(rounds):
            for side, own in runs.items():
                own.append(run_side(side, folder, number))
    reference = runs["ours"][0]["texts"]
    sides = {side: told(side, own, reference, count) for side, own in runs.items()}
    sizes = {side: found for side, found in sides.items() if side.startswith("lm-eval")}
    best = max(sizes, key=lambda side: sizes[side]["items_per_second"])
    against = {
        "lm-eval, best batch size": best,
        "lm-eval, default batch size": "lm-eval batch 1",
        "transformers' generate, a prompt at a time": "transformers loop",
    }
    cases = [case(title, sides["ours"], sides[side], rounds) for title, side in against.items()]
    return {
        "name": "evaluate",
        "cases": cases,
        "ok": all(one["ok"] for one in cases),
        "sides": sides,
        "questions": count,
        "max_tokens": MAX_TOKENS,
        "runs": rounds,
        "machine": {**machine(), "lm_eval": metadata.version("lm_eval"), "threads": os.environ.get("OMP_NUM_THREADS")},
    }


def told(side: str, own: list[dict[str, Any]], reference: Texts, count: int) -> dict[str, Any]:
    """The figures of a side: its median, every run, and how many texts are those of our first run."""
    seconds = statistics.median(run["seconds"] for run in own)
    same = min(sum(run["texts"].get(name) == text for name, text in reference.items()) for run in own)
    return {
        "side": side,
        "seconds": round(seconds, 3),
        "items_per_second": round(count / seconds, 2),
        "all_seconds": [round(run["seconds"], 3) for run in own],
        "same_text": same,
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in own),
    }


def case(title: str, mine: dict[str, Any], its: dict[str, Any], rounds: int) -> dict[str, Any]:
    ratio = its["seconds"] / mine["seconds"]
    return {
        "name": title,
        "ours": mine,
        "theirs": its,
        "ratio": round(ratio, 2),
        "goal": GOAL,
        "ok": ratio >= GOAL,
        "runs": rounds,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--side", nargs=2, metavar=("NAME", "FOLDER"), help="one side (used by the bench itself)")
    parser.add_argument("--rounds", type=int, default=3, help="times each side runs; the median counts")
    options = parser.parse_args()
    if options.side:
        name, folder = options.side[0], Path(options.side[1])
        seconds, texts = SIDES[name](folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        found = {"seconds": seconds, "texts": texts, "peak_memory_bytes": peak}
        (folder / "side.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
        return
    if options.quick:
        result = measure(QUICK_QUESTIONS, 1, left_out=("lm-eval batch 8",))
    else:
        result = measure(QUESTIONS, options.rounds)
    tell(result, options.json)


if __name__ == "__main__":
    main()
