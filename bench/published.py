"""The published experiment again, at rehearsal scale: qwen3-1.7b-medical-qlora-v1, v2 and v3 on real rows.

    python -m bench.published --json --write                # three seeds of three recipes on two models: hours
    python -m bench.published --models tiny --seeds 0 1     # a part; with --runs DIR it is kept, and gone on with
    python -m bench.published --quick --json                # the tiny base, two seeds, two steps: the shape only

Each recipe runs as it is shipped, but for what `changes` names: the model, the rows (200 of the data set, 90/10, their
reasoning cut after REASONING characters so that they are short), the steps, and 4 rows a step in place of 16. Two
models stand in for Qwen3-1.7B:
  tiny   the shipped base (4.7 M parameters, its own tokenizer, pretrained on a toy clinic)
  0.1B   Qwen3's architecture with random weights (0.11 B) under the real tokenizer
Departures of the machine: a CPU has neither fp16 nor paged memory. There every arm runs in bf16 where the CPU has units
for it, else in fp32 (`dtype` in the result), with the unpaged 8-bit AdamW over the nf4 base: what v1 and v2 differ in
besides is compared, their precisions are not.

A case is a model: the object of `danlu compare V1 V2 V3`. It is `ok` when every run fell below its first loss.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.common import arguments, machine, tell
from danlu.errors import DanluError
from danlu.recipe import Recipe, load
from danlu.run import Run, differing_keys

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "bench" / "results" / "published.json"
VERSIONS = ("v1", "v2", "v3")
SHAPE = {  # Qwen3 in the shape of a tenth of a billion, 78 M of it the embedding
    "vocab_size": 151_936,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
}
STEPS = {"tiny": 40, "0.1B": 24}
LENGTH = {"tiny": 1024, "0.1B": 512}  # the tiny tokenizer writes a real row in twice as many tokens
BATCH = 4  # rows of a step
REASONING = 200  # characters


# ---- runs that are kept


def kept(stage: str, recipe: Recipe, text: str, name: str, start: str | None = None) -> Run:
    """The run `name` under $DANLU_RUNS: as it stands if it is done, gone on with, or made.

    DanluError where it was made under another recipe.
    """
    from danlu.cli.stages import find_run, run_stage

    run = find_run(name)
    if run is not None and run.state() == "done":
        differ = differing_keys(run.config(), recipe.resolved())
        if differ:
            raise DanluError(f"{run.path} differs in {', '.join(differ)}", "remove it, or give another --runs")
        return run
    return run_stage(stage, recipe, name, start=start, recipe_text=text, resume=run is not None)


def random_qwen3(folder: Path, tokenizer: Path, seed: int = 0) -> Path:
    """A Qwen3 of SHAPE with random weights, and the tokenizer, in `folder`; as it stands if it is there."""
    if (folder / "model.safetensors").is_file():
        return folder
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
    model: Any = Qwen3ForCausalLM(Qwen3Config(**SHAPE))  # type: ignore[arg-type]
    model.bfloat16().save_pretrained(folder)
    return folder


# ---- the experiment


def short_rows(shared: Path, folder: Path) -> Path:
    """The real rows with the beginning of their reasoning, up to the last sentence that ends in REASONING characters.

    Cut here and not by `data.overlong`, because a masked row that is too long is trained on unmasked.
    """
    lines = (shared / "data" / "sft" / "delicate_medical_r1.jsonl").read_text(encoding="utf-8").splitlines()
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for line in lines:
        row = json.loads(line)
        begun = row["think"].strip()[:REASONING]
        whole = begun[: max(begun.rfind(mark) for mark in "。！？\n") + 1]
        rows.append({"question": row["question"], "reasoning": whole or begun, "answer": row["answer"]})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def dtype_here() -> str:
    """What all arms run in on a CPU."""
    from danlu.models.load import native_bf16

    return "bf16" if native_bf16() else "fp32"


def changes(place: str, rows: Path, seed: int, steps: int, length: int, batch: int) -> list[str]:
    """What a run departs from the shipped recipe in, as --set; `place` is the model's id."""
    from danlu.models.load import device

    on_cpu, dtype = device().type == "cpu", dtype_here()
    return [
        f"model.id={json.dumps(place)}",
        f"data.train={json.dumps([str(rows)])}",
        f"data.max_length={length}",
        f"sft.steps={steps}",
        f"sft.batch_size={batch}",
        "sft.accumulation=1",
        f"seed={seed}",
        *([f"model.dtype={dtype}", f"sft.precision={dtype}"] if on_cpu else []),
    ]


def train(place: str, rows: Path, seeds: list[int], *sizes: int) -> list[tuple[str, list[Run]]]:
    """(version, runs) of the three recipes under $DANLU_RUNS; `sizes`: steps, length and rows of a step."""
    from danlu.cli.stages import as_written

    arms: dict[str, list[Run]] = {version: [] for version in VERSIONS}
    for seed in seeds:
        for version in VERSIONS:
            name = f"qwen3-1.7b-medical-qlora-{version}"
            sets = changes(place, rows, seed, *sizes)
            began = time.monotonic()
            run = kept("sft", load(name, sets), as_written(name, sets), f"{version}-seed{seed}")
            arms[version].append(run)
            told = run.info()["results"]
            seconds = time.monotonic() - began
            line = f"{run.path}: {seconds:.0f} s, loss {told['loss']:.3f}, eval loss {told['eval_loss']:.3f}"
            print(line, file=sys.stderr, flush=True)
    return list(arms.items())


def case(model: str, arms: list[tuple[str, list[Run]]]) -> dict[str, Any]:
    from danlu.evaluate.training import compare

    found = compare(arms)
    losses = [[row["loss"] for row in run.metrics() if "loss" in row] for _, runs in arms for run in runs]
    told = arms[0][1][0].info()["results"]
    facts = {key: told.get(key) for key in ("rows", "valid_rows", "dropped_overlong", "supervised_tokens")}
    peak = {name: max(run.info()["results"]["peak_memory_bytes"] for run in runs) for name, runs in arms}
    return {"name": model, **found, **facts, "peak_memory_bytes": peak, "ok": all(own[-1] < own[0] for own in losses)}


def measure(options: Any, root: Path) -> dict[str, Any]:
    cases = []
    rows = short_rows(options.shared, root)
    for model in options.models:
        os.environ["DANLU_RUNS"] = str(root / model)
        tokenizer = options.shared / "tokenizers" / "Qwen3-1.7B"
        place = "tiny" if model == "tiny" else str(random_qwen3(root / "qwen3-0.1b", tokenizer))
        sizes = (2, 768, 2) if options.quick else (options.steps or STEPS[model], LENGTH[model], BATCH)
        cases.append(case(model, train(place, rows, options.seeds, *sizes)))
    told = {"name": "published", "cases": cases, "dtype": dtype_here()}
    return {**told, "runs": len(options.seeds), "machine": machine()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="where data and tokenizers lie")
    parser.add_argument("--runs", type=Path, help="keep the runs here, and go on with what is there")
    parser.add_argument("--models", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help=f"steps of a run; default {STEPS}")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.relative_to(ROOT)}")
    options = parser.parse_args()
    if not (options.shared / "data").is_dir():
        skipped = f"skipped: no data in {options.shared} (--shared DIR)"
        print(skipped, file=sys.stderr)
        tell({"name": "published", "cases": [], "skipped": skipped, "machine": machine()}, options.json)
        return
    if options.quick:
        options.models, options.seeds = ["tiny"], options.seeds[:2]
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(options, (options.runs or Path(scratch)).resolve())
    if options.write and not options.quick:
        FILE.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    tell(result, options.json)


if __name__ == "__main__":
    main()
