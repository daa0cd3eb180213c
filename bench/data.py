"""Rows to tokens: our preparation beside that of TRL's SFTTrainer, on the same rows with the real Qwen3 tokenizer.

    python -m bench.data --json            # 24,772 rows, some minutes, most of them TRL's
    python -m bench.data --quick --json    # 700 rows, the shape only

The rows are the shared real ones, repeated with small edits. Each side runs in a process of its own that has read the
rows already; timed is, for TRL, `SFTTrainer._prepare_dataset` (its defaults but for a max_length that cuts nothing),
for us `open_store`, which also writes the token set to disk. Then the second start of both: ours finds its store, TRL
maps again (a data set from memory has no cache). At last tokens and labels are compared row by row.

The one difference to expect: the template ends an assistant turn with a newline behind the end token, which TRL trains
and we do not, because generation has stopped by then.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import arguments, machine, tell

SHARED = Path(__file__).resolve().parents[2] / "shared"
TOKENIZER = SHARED / "tokenizers" / "Qwen3-1.7B"
ROWS, QUICK_ROWS = 24_772, 700
MAX_LENGTH = 16_384
GOAL = 5.0


def make_rows(count: int) -> list[dict[str, str]]:
    """`count` rows: question, reasoning, answer of the shared sets, each repeat with an edit of its own."""
    chinese = [json.loads(line) for line in (SHARED / "data/sft/delicate_medical_r1.jsonl").open(encoding="utf-8")]
    english = json.loads((SHARED / "data/sft/medical_o1_sft_English.json").read_text(encoding="utf-8"))
    base = [(row["question"], row["think"], row["answer"]) for row in chinese]
    base += [(row["Question"], row["Complex_CoT"], row["Response"]) for row in english]
    rows = []
    for number in range(count):
        question, reasoning, answer = (text.strip() for text in base[number % len(base)])
        half = len(reasoning) // 2
        edited = f"{reasoning[:half]} ({number}) {reasoning[half:]}"
        rows.append({"question": f"{question} [{number}]", "reasoning": edited, "answer": f"{answer} {number}"})
    return rows


# ---- one side, in its own process


def ours(rows: list[dict[str, str]], out: Path) -> dict[str, Any]:
    from danlu.data.pack import pack
    from danlu.data.render import Shape
    from danlu.data.store import open_store
    from danlu.models.tokenizer import load_tokenizer, think_format
    from danlu.records import Sample

    tokenizer = load_tokenizer(TOKENIZER)
    think = think_format(TOKENIZER, tokenizer)
    samples = [
        Sample(str(n), ({"role": "user", "content": r["question"]},), reasoning=r["reasoning"], answer=r["answer"])
        for n, r in enumerate(rows)
    ]
    shape = Shape(MAX_LENGTH)
    began = time.monotonic()
    store = open_store(tokenizer, think, samples, shape, out)
    cold = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.monotonic()
    store = open_store(tokenizer, think, samples, shape, out)
    second = time.monotonic() - began
    began = time.monotonic()
    packs = pack(store.lengths, MAX_LENGTH)
    packing = time.monotonic() - began
    np.savez(out / "ours.npz", tokens=np.array(store.tokens), loss=np.array(store.loss), offsets=store.offsets)
    told = {"seconds": cold, "second_start_seconds": second, "peak_memory_bytes": peak}
    return {**told, "pack_seconds": packing, "packs": len(packs)}


def theirs(rows: list[dict[str, str]], out: Path) -> dict[str, Any]:
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(0)
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = AutoConfig.from_pretrained(TOKENIZER, **small, num_key_value_heads=1, head_dim=16)
    config.layer_types = ["full_attention"]
    model = AutoModelForCausalLM.from_config(config)
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": r["question"]}],
                "completion": [
                    {"role": "assistant", "content": f"<think>\n{r['reasoning']}\n</think>\n\n{r['answer']}"}
                ],
            }
            for r in rows
        ]
    )
    seconds: list[float] = []
    inner = SFTTrainer._prepare_dataset

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        try:
            return inner(self, *args, **kwargs)
        finally:
            seconds.append(time.monotonic() - began)

    SFTTrainer._prepare_dataset = timed
    settings = SFTConfig(str(out / "trl"), max_length=MAX_LENGTH, report_to=[], use_cpu=True, bf16=False)
    trainer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = trainer.train_dataset
    tokens = [np.array(row, dtype=np.int32) for row in found["input_ids"]]
    labels = [np.array(row, dtype=np.int32) for row in found["labels"]]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in tokens])])
    loss = np.concatenate(labels) != -100
    np.savez(out / "theirs.npz", tokens=np.concatenate(tokens), loss=loss, offsets=offsets)
    return {"seconds": seconds[0], "second_start_seconds": seconds[0], "peak_memory_bytes": peak}


SIDES = {"ours": ours, "theirs": theirs}


def run_side(name: str, rows: Path, out: Path) -> dict[str, Any]:
    """One side in a fresh process; its result."""
    result = out / f"{name}.json"
    command = [sys.executable, "-m", "bench.data", "--side", name, str(rows), str(out)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
    return json.loads(result.read_text())


# ---- together


def compare(out: Path) -> dict[str, Any]:
    """Rows with equal tokens and loss, and what the others differ in."""
    a, b = (dict(np.load(out / f"{name}.npz")) for name in SIDES)  # as arrays: an .npz reads one anew at each access
    newline = _newline()
    equal = only_newline = 0
    others = []
    for row in range(len(a["offsets"]) - 1):
        mine = slice(a["offsets"][row], a["offsets"][row + 1])
        its = slice(b["offsets"][row], b["offsets"][row + 1])
        tokens, loss = a["tokens"][mine], a["loss"][mine]
        other, other_loss = b["tokens"][its], b["loss"][its]
        if np.array_equal(tokens, other) and np.array_equal(loss, other_loss):
            equal += 1
        elif other[-1] == newline and np.array_equal(tokens, other[:-1]) and np.array_equal(loss, other_loss[:-1]):
            only_newline += 1
        else:
            others.append(row)
    return {"rows": len(a["offsets"]) - 1, "equal": equal, "newline_after_end": only_newline, "other": others[:5]}


def _newline() -> int:
    from danlu.models.tokenizer import load_tokenizer

    return load_tokenizer(TOKENIZER)("\n", add_special_tokens=False)["input_ids"][0]


def measure(count: int, rounds: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        rows.write_text(json.dumps(make_rows(count), ensure_ascii=False), encoding="utf-8")
        for number in range(rounds):
            for name in SIDES:
                out = Path(folder) / f"{name}-{number}"
                out.mkdir()
                runs[name].append(run_side(name, rows, out))
        for name in SIDES:
            (Path(folder) / f"{name}-0" / f"{name}.npz").rename(Path(folder) / f"{name}.npz")
        same = compare(Path(folder))
    found: dict[str, Any] = {}
    for name, own in runs.items():
        middle = sorted(own, key=lambda run: run["seconds"])[len(own) // 2]
        found[name] = {**middle, "rows_per_second": round(count / middle["seconds"], 1)}
    ratio = found["theirs"]["seconds"] / found["ours"]["seconds"]
    return {
        "name": "data",
        **found,
        "ratio": round(ratio, 2),
        "ratios": [round(b["seconds"] / a["seconds"], 2) for a, b in zip(runs["ours"], runs["theirs"], strict=True)],
        "goal": GOAL,
        "same": same,
        "ok": bool(
            ratio >= GOAL
            and found["ours"]["second_start_seconds"] < 1
            and found["ours"]["peak_memory_bytes"] <= found["theirs"]["peak_memory_bytes"]
            and not same["other"]
        ),
        "runs": rounds,
        "rows": count,
        "machine": {**machine(), "trl": metadata.version("trl")},
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--side", nargs=3, metavar=("NAME", "ROWS", "OUT"), help="one side (used by the bench itself)")
    parser.add_argument("--rounds", type=int, default=3, help="times each side runs; the median counts")
    options = parser.parse_args()
    if options.side:
        name, rows, out = options.side
        result = SIDES[name](json.loads(Path(rows).read_text(encoding="utf-8")), Path(out))
        (Path(out) / f"{name}.json").write_text(json.dumps(result))
        return
    if not TOKENIZER.is_dir():
        raise SystemExit(f"the real rows and tokenizer are not at {SHARED}")
    tell(measure(QUICK_ROWS if options.quick else ROWS, 1 if options.quick else options.rounds), options.json)


if __name__ == "__main__":
    main()
