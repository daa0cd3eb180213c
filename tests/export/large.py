"""A model folder of any size that takes no disk: weights of zeros in sparse files, and an adapter that fits it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LINEAR = {
    "self_attn.q_proj": ("hidden", "hidden"),
    "self_attn.k_proj": ("key", "hidden"),
    "self_attn.v_proj": ("key", "hidden"),
    "self_attn.o_proj": ("hidden", "hidden"),
    "mlp.gate_proj": ("inner", "hidden"),
    "mlp.up_proj": ("inner", "hidden"),
    "mlp.down_proj": ("hidden", "inner"),
}


def shapes(layers: int, sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Tensors of a Qwen2 with `sizes` {"hidden", "inner", "key", "vocabulary"}, untied and without biases."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (sizes["vocabulary"], sizes["hidden"])}
    for layer in range(layers):
        for name, (rows, columns) in LINEAR.items():
            found[f"model.layers.{layer}.{name}.weight"] = (sizes[rows], sizes[columns])
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{name}.weight"] = (sizes["hidden"],)
    return found | {"model.norm.weight": (sizes["hidden"],), "lm_head.weight": (sizes["vocabulary"], sizes["hidden"])}


def write_zeros(folder: Path, layers: int, sizes: dict[str, int], shards: int) -> int:
    """Write config.json and `shards` sparse bf16 shards into `folder`; the bytes that they stand for."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False, "dtype": "bfloat16"})
    )
    tensors = list(shapes(layers, sizes).items())
    share = -(-len(tensors) // shards)
    index, total = {}, 0
    for shard in range(shards):
        name, head, at = f"model-{shard + 1:05}-of-{shards:05}.safetensors", {}, 0
        for tensor, shape in tensors[shard * share : (shard + 1) * share]:
            size = 2 * torch.Size(shape).numel()
            head[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            at, index[tensor] = at + size, name
        text = json.dumps(head).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
        total += at
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return total


def write_adapter(folder: Path, layers: int, sizes: dict[str, int], rank: int = 16) -> None:
    """A random LoRA on every linear of `write_zeros`."""
    folder.mkdir()
    tensors = {}
    for layer in range(layers):
        for name, (rows, columns) in LINEAR.items():
            key = f"base_model.model.model.layers.{layer}.{name}.lora_"
            tensors[f"{key}A.weight"] = torch.randn(rank, sizes[columns])
            tensors[f"{key}B.weight"] = torch.randn(sizes[rows], rank)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}))


MEASURE = """
import json, resource, sys, time
from pathlib import Path
from danlu.export.merge import merge
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.monotonic()
base, adapter, out = map(Path, sys.argv[1:])
merged = merge(base, adapter, out).merged
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"merged": merged, "before": before * 1024, "peak": peak * 1024, "seconds": time.monotonic() - began}))
"""
