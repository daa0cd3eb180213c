"""What a GGUF file holds, read without llama.cpp: all its bytes, its metadata, and each tensor against the source.

Tensors are compared row by row: |stored - source| over |source|, with a limit for each way of storing. A row in a wrong
place is off by about 1.4, far above the rounding of any type, so a permuted, swapped or missing tensor is found by its
name whatever the quantization. Rows that are next to nothing are measured against a thousandth of the tensor's mean.
Not covered: tensors of the file that the source does not have (rope factors); what they do shows in the log-probs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from danlu.export.gguf import ARCHITECTURES, interleave, source_tensors
from danlu.models.tokenizer import end_token_ids
from danlu.run import read_json

Check = dict[str, Any]
CHUNK = 1 << 24  # values that are compared at once

# Largest error of a row for each way of storing. Measured on trained and random rows: a third to a half of it.
ROUNDING = {
    "F32": 1e-6,
    "F16": 2e-3,
    "BF16": 8e-3,
    "Q8_0": 0.03,
    "Q6_K": 0.1,
    "Q5_0": 0.25,
    "Q5_1": 0.25,
    "Q5_K": 0.25,
    "Q4_0": 0.45,
    "Q4_1": 0.45,
    "Q4_K": 0.45,
}
COARSE = 0.9  # anything coarser


def opened(path: Path) -> tuple[Check, Any]:
    """Whether the file holds all the bytes that its header promises, and its reader (a large vocabulary takes it
    seconds); None where it cannot be read."""
    reader = None
    try:
        reader = gguf.GGUFReader(path)
        end = max((t.data_offset + t.n_bytes for t in reader.tensors), default=0)
        size = path.stat().st_size
        problem = "" if 0 < end <= size else f"half-written: {size} bytes, the header promises {end}"
    except Exception as error:  # the reader meets damage with whatever numpy raises
        reader = None
        problem = f"half-written or damaged: the reader fails with {type(error).__name__} ({error})"
    return {"name": "file", "ok": not problem, "value": problem or "complete", "limit": "complete"}, reader


def metadata(reader: Any, model_dir: Path, tokenizer: Any) -> Check:
    """Keys whose values are not the source's."""

    def field(key: str) -> Any:
        found = reader.get_field(key)
        return None if found is None else found.contents()

    config = read_json(model_dir / "config.json")
    arch = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config["architectures"][0]]]
    template = tokenizer.chat_template
    ids = end_token_ids(model_dir, tokenizer)
    expected = {
        "general.architecture": arch,
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.context_length": config["max_position_embeddings"],
        "tokenizer.chat_template": template["default"] if isinstance(template, dict) else template,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
    }
    different = [key for key, value in expected.items() if field(key) != value]
    if field("tokenizer.ggml.eos_token_id") not in ids:
        different.append("tokenizer.ggml.eos_token_id")
    return {"name": "metadata", "ok": not different, "value": different, "limit": []}


def tensors(reader: Any, model_dir: Path) -> Check:
    """Names of tensors that are missing or are not the source's within the rounding of their type."""
    stored = {tensor.name: tensor for tensor in reader.tensors}
    wrong: list[str] = []
    worst: dict[str, float] = {}
    config = read_json(model_dir / "config.json")
    for source in source_tensors(model_dir, config):
        tensor = stored.get(source.name)
        if tensor is None or list(tensor.shape) != list(reversed(source.shape)):
            wrong.append(f"{source.name} is missing" if tensor is None else f"{source.name} has another shape")
            continue
        kind = tensor.tensor_type.name
        error = max(_errors(tensor, source, config), default=0.0)
        worst[kind] = max(worst.get(kind, 0.0), error)
        if not error <= ROUNDING.get(kind, COARSE):
            wrong.append(source.name)
    figures = {kind: float(f"{error:.3g}") for kind, error in worst.items()}
    return {"name": "tensors", "ok": not wrong, "value": wrong, "limit": [], "worst": figures}


def _errors(tensor: Any, source: Any, config: dict[str, Any]) -> Iterator[float]:
    """The largest relative error of a row, in each chunk of rows."""
    from safetensors import safe_open

    heads = config["num_attention_heads"]
    turned = re.search(r"self_attn\.([qk])_proj\.", source.source) if tensor_is_turned(config) else None
    rows = source.shape[0]
    step = rows if turned or len(source.shape) < 2 else max(1, CHUNK // source.shape[1])
    floor = None
    for start in range(0, rows, step):
        with safe_open(source.file, "pt") as file:  # numpy has no bf16
            values = file.get_slice(source.source)[start : start + step].float().numpy()
        if turned:
            values = interleave(values, heads if turned[1] == "q" else config.get("num_key_value_heads") or heads)
        found = gguf.quants.dequantize(tensor.data[start : start + step], tensor.tensor_type)
        values, found = (x.reshape(-1, source.shape[-1]) for x in (values, found))
        size, off = np.linalg.norm(values, axis=1), np.linalg.norm(found - values, axis=1)
        floor = 1e-3 * float(size.mean()) + 1e-20 if floor is None else floor
        yield float((off / np.maximum(size, floor)).max())


def tensor_is_turned(config: dict[str, Any]) -> bool:
    """Whether llama.cpp wants the rotary rows of this architecture in another order than transformers."""
    return ARCHITECTURES[config["architectures"][0]] == gguf.MODEL_ARCH.LLAMA
