"""A LoRA adapter as a GGUF file that llama.cpp and Ollama put on top of the base's GGUF, and its check.

llama.cpp adds alpha / rank * B @ A to a matrix. What peft scales otherwise (rsLoRA, an alpha of its own) is put into B.
Rows of B for Llama's query and key follow llama.cpp's order, as the base's do. Not covered, and refused because
llama.cpp has no such thing: DoRA, `modules_to_save`, adapted embeddings, an adapted head that is tied to them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from danlu.errors import DanluError
from danlu.export.gguf import architecture, interleave
from danlu.export.merge import HEAD, open_adapter
from danlu.models.adapter import scale_of
from danlu.run import read_json

# largest mean KL in nats of llama.cpp's base + adapter against peft's, and least share of equal first choices
LIMITS = {"f32": (1e-5, 1.0), "f16": (1e-3, 0.98), "bf16": (5e-3, 0.95)}  # quantized bases: those of the type
LOOSE = (0.1, 0.85)


def write_lora(adapter_dir: Path, base_dir: Path, out: Path, *, name: str) -> Path:
    """Write the adapter in `adapter_dir` as a GGUF adapter in f32 for the base in `base_dir`.

    DanluError for adapters that llama.cpp cannot apply and for a base they do not fit; then nothing is left behind.
    """
    config = read_json(base_dir / "config.json")
    arch = architecture(config)
    adapter = open_adapter(adapter_dir)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    hint = "export the merged model: --to gguf"
    if HEAD in adapter.low_rank and config.get("tie_word_embeddings"):
        raise DanluError("the adapter changes the head, which is tied to the embedding", hint)
    if adapter.replaced or adapter.embedding or adapter.base:
        changed = next(iter([*adapter.replaced, *adapter.embedding, *adapter.base]))
        raise DanluError(f"the adapter holds {changed} itself, which a GGUF adapter cannot", hint)
    alpha = float(adapter.config["lora_alpha"])
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for source, keys in adapter.low_rank.items():
        if "magnitude" in keys:
            raise DanluError("the adapter is a DoRA, which llama.cpp does not apply", hint)
        target = names.get_name(source, try_suffixes=(".weight",))
        if target is None or not {"A", "B"} <= keys.keys():
            raise DanluError(f"the adapter changes {source}, which the base does not have", "is this the right base?")
        a, b = adapter.read(keys["A"]).float().numpy(), adapter.read(keys["B"]).float().numpy()
        rank = a.shape[0]
        b = b * (scale_of(adapter.config, source.removesuffix(".weight"), rank) * rank / alpha)
        if arch == gguf.MODEL_ARCH.LLAMA and (part := re.search(r"self_attn\.([qk])_proj\.", source)):
            heads = config["num_attention_heads"]
            b = interleave(b, heads if part[1] == "q" else config.get("num_key_value_heads") or heads)
        tensors |= {f"{target}.lora_a": a, f"{target}.lora_b": np.ascontiguousarray(b, dtype=np.float32)}
    staged = out.with_name(f".{out.name}.partial")
    writer = gguf.GGUFWriter(str(staged), gguf.MODEL_ARCH_NAMES[arch])
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for key, value in tensors.items():
            writer.add_tensor(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(staged, out)
    finally:
        writer.close()
        staged.unlink(missing_ok=True)
    return out


def check_lora(
    base_gguf: Path, adapter_gguf: Path, base_dir: Path, adapter_dir: Path, quant: str, prompts: Sequence[list[int]]
) -> dict[str, Any]:
    """llama.cpp with base and adapter against peft: the distribution after each of `prompts` (token ids).

    Returns one check {"name": "adapter", "ok", "value" (mean KL in nats), "limit", "same_first_choice", "prompts",
    "change"}; `change` is the mean KL of the base alone, which shows that the adapter was there at all.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from danlu.generate.gguf import GgufGenerator

    logging.disable_progress_bar()
    with GgufGenerator(base_gguf, context=1024, exact=True, lora=adapter_gguf) as server:
        found = [server.complete_tokens(ids, 1, TOP).top[0] for ids in prompts]
    options: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(str(base_dir), **options), str(adapter_dir)
    ).eval()

    def last(ids: list[int]) -> Any:
        return model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)

    with torch.inference_mode():
        expected = [last(ids) for ids in prompts]
        with model.disable_adapter():
            plain = [last(ids) for ids in prompts]
    pairs = [(e, top) for e, top in zip(expected, found, strict=True) if top]
    value = sum(_kl(e, top) for e, top in pairs) / max(len(pairs), 1)
    change = sum(float((e.exp() * (e - p)).sum()) for e, p in zip(expected, plain, strict=True)) / len(expected)
    same = sum(max(top, key=lambda token: top[token]) == int(e.argmax()) for e, top in pairs) / max(len(pairs), 1)
    limit, least = LIMITS.get(quant, LOOSE)
    return {
        "name": "adapter",
        "ok": bool(pairs) and value <= limit and same >= least,
        "value": value,
        "limit": limit,
        "same_first_choice": same,
        "prompts": len(pairs),
        "change": change,
    }


TOP = 512  # tokens of a distribution that the server returns


def _kl(expected: Any, found: dict[int, float]) -> float:
    """KL(expected || found) in nats over the tokens that were returned."""
    ids = list(found)
    p = expected[ids]
    return max(float((p.exp() * (p - p.new_tensor(list(found.values())))).sum()), 0.0)
