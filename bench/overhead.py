"""How much of a step is spent outside of forward, backward and optimizer, with a model so small that it shows.

    python -m bench.overhead --json            # 20,000 rows, 300 steps a case
    python -m bench.overhead --quick --json    # 2,000 rows, 30 steps

SFT of a model of two layers, 64 wide, with the shipped tokenizer; a real one takes a hundred times as long for a step,
and no longer around it. Cases: rows from the token set; rows whose terms are masked anew in every epoch; four
micro-batches a step; a tracker. Everything between two steps counts: choosing and packing rows, the norm and the finite
check, logging, progress, the state that a signal would save. Checkpoints do not: they are written when the recipe says
so. `ours` is the share outside, and its milliseconds a step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.common import arguments, machine, tell

GOAL = 0.10
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked": {"data": {"masking": {"probability": 0.5}}},
    "accumulated": {"sft": {"accumulation": 4, "micro_batch": 1}},
    "tracked": {"sft": {"track": ["tensorboard"]}},
}


def write_rows(path: Path, count: int) -> None:
    """Worked vignettes of the clinic, each with a number of its own."""
    from danlu import domains

    world = domains.load("medical").world
    assert world is not None
    samples = world.samples("sft", min(count, 2_000), 1)
    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            own = samples[n % len(samples)]
            row = {"question": f"{own.question} ({n})", "reasoning": own.reasoning, "answer": own.answer}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_model(path: Path) -> None:
    """The configuration of a Qwen3 too small for anything but this."""
    from transformers import AutoTokenizer, Qwen3Config

    from danlu.models.locate import base_dir

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    vocabulary = len(AutoTokenizer.from_pretrained(str(base_dir({"id": "tiny"}))))
    Qwen3Config(**shape, **heads, vocab_size=vocabulary, architectures=["Qwen3ForCausalLM"]).to_json_file(path)


def case(name: str, folder: Path, rows: Path, steps: int) -> dict[str, Any]:
    """One training run in this process; the share of its steps outside of what trains."""
    from danlu import display
    from danlu.recipe import Recipe
    from danlu.run import Run
    from danlu.train.loop import Loop
    from danlu.train.sft import sft

    display.set_mode("plain")
    changes = CASES[name]
    made = Recipe.model_validate(
        {
            "name": name,
            "model": {"config": str(folder / "config.json"), "tokenizer": "tiny"},
            "data": {"train": str(rows), "max_length": 512, **changes.get("data", {})},
            "sft": {"batch_size": 4, "accumulation": 1, "steps": steps, **changes.get("sft", {})},
        }
    )
    spent = {"go": 0.0, "save": 0.0}

    def timed(part: str) -> None:
        inner = getattr(Loop, part)

        def outer(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - began

        setattr(Loop, part, outer)

    for part in spent:
        timed(part)
    run = Run.create(folder / name, "sft", made.resolved(), seed=made.seed)
    sft(made, run)
    metrics = run.metrics()
    parts = ("forward_seconds", "backward_seconds", "optimizer_seconds")
    inside = {part: sum(row[part] for row in metrics) for part in parts}
    whole = spent["go"] - spent["save"]
    share = 1 - sum(inside.values()) / whole
    return {
        "name": name,
        "ours": {
            "share": round(share, 4),
            "step_ms": round(1000 * whole / steps, 3),
            "outside_ms": round(1000 * share * whole / steps, 3),
            **{part.replace("seconds", "ms"): round(1000 * value / steps, 3) for part, value in inside.items()},
        },
        "theirs": None,
        "ratio": None,
        "goal": GOAL,
        "ok": share < GOAL,
        "steps": steps,
    }


def run_case(name: str, folder: Path, rows: Path, steps: int) -> dict[str, Any]:
    """One case in a fresh process."""
    command = [sys.executable, "-m", "bench.overhead", "--case", name, str(folder), str(rows), str(steps)]
    environment = os.environ | {"DANLU_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--case", nargs=4, metavar=("NAME", "FOLDER", "ROWS", "STEPS"), help="one case, in this process"
    )
    options = parser.parse_args()
    if options.case:
        name, folder, rows, steps = options.case
        print(json.dumps(case(name, Path(folder), Path(rows), int(steps))))
        return
    count, steps = (2_000, 30) if options.quick else (20_000, 300)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_rows(folder / "rows.jsonl", count)
        write_model(folder / "config.json")
        cases = [run_case(name, folder, folder / "rows.jsonl", steps) for name in CASES]
    tell({"name": "overhead", "cases": cases, "runs": 1, "machine": machine()}, options.json)


if __name__ == "__main__":
    main()
