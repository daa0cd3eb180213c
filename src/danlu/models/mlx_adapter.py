"""Adapters of mlx-lm and of peft: the same low-rank updates under other names; either way the sums are equal.

    peft    base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight [r, in], lora_B.weight [out, r], alpha
    mlx-lm                   model.layers.3.self_attn.q_proj.lora_a [in, r],        lora_b [r, out],        scale

y = W x + scale * B A x with scale = alpha / r, or alpha / sqrt(r) for rsLoRA. mlx-lm knows one rank and one scale for
all modules: peft's rank and alpha patterns are padded with zeros and put into B. Its `num_layers` counts from the last
layer; -1 is all of them, and a layer without tensors keeps B = 0, so that it changes nothing.
Only safetensors and JSON are read and written; mlx need not be installed.
Not covered, and refused: DoRA, biases, whole modules, LoRA on embeddings and on experts, full fine-tuning.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from danlu.errors import DanluError
from danlu.models.adapter import scale_of
from danlu.models.locate import base_of
from danlu.recipe import Model
from danlu.run import read_json, write_json

PEFT, MLX = "adapter_model.safetensors", "adapters.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Update:
    """What an adapter adds to one linear layer: scale * b @ a, with a [r, in] and b [out, r]."""

    a: Tensor
    b: Tensor
    scale: float


def is_mlx(folder: Path) -> bool:
    """Whether a folder holds an adapter as mlx-lm writes it."""
    return (folder / MLX).is_file() and (folder / "adapter_config.json").is_file()


# ---- reading


def read_peft(folder: Path) -> dict[str, Update]:
    """Module name in the base -> its update, of a peft adapter. DanluError for what is not plain LoRA."""
    config, tensors = read_json(folder / "adapter_config.json"), _tensors(folder / PEFT)
    unfit = [name for name in ("use_dora", "modules_to_save", "lora_bias", "fan_in_fan_out") if config.get(name)]
    unfit += ["bias"] if config.get("bias", "none") != "none" else []
    unfit += ["layer_replication"] if config.get("layer_replication") else []
    unfit += [str(config.get("peft_type"))] if config.get("peft_type", "LORA") != "LORA" else []
    unfit += [key for key in tensors if not re.search(r"\.lora_[AB]\.weight$", key)]
    if unfit:
        raise DanluError(f"mlx-lm does not take the adapter in {folder}: it has {unfit[0]}", "merge it: danlu merge")
    return {
        module: Update(a, b, scale_of(config, module, a.shape[0]))
        for module, (a, b) in _pairs(tensors, (".lora_A.weight", ".lora_B.weight"), folder).items()
    }


def read_mlx(folder: Path) -> dict[str, Update]:
    """Module name in the base -> its update, of an adapter of mlx-lm. DanluError for what is not plain LoRA."""
    config, tensors = read_json(folder / "adapter_config.json"), _tensors(folder / MLX)
    kind, shape = config.get("fine_tune_type", "lora"), config.get("lora_parameters") or {}
    if kind != "lora" or "scale" not in shape:
        what = f"fine_tune_type {kind}" if kind != "lora" else "no lora_parameters.scale"
        raise DanluError(f"the mlx-lm adapter in {folder} has {what}", "only LoRA is converted (--fine-tune-type lora)")
    found = {}
    for module, (a, b) in _pairs(tensors, (".lora_a", ".lora_b"), folder).items():
        if a.dim() != 2 or module.endswith("embed_tokens"):
            what = f"{'an embedding' if a.dim() == 2 else 'experts'}: {module}"
            raise DanluError(f"the mlx-lm adapter in {folder} is on {what}", "only linear layers are converted")
        found[module] = Update(a.t().contiguous(), b.t().contiguous(), float(shape["scale"]))
    return found


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise DanluError(f"cannot read {file}: {error}", "only safetensors adapters are read") from None


def _pairs(tensors: dict[str, Tensor], ends: tuple[str, str], folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    modules = [key.removesuffix(ends[0]) for key in tensors if key.endswith(ends[0])]
    if not modules or {module + end for module in modules for end in ends} != tensors.keys():
        raise DanluError(f"the adapter in {folder} is not whole", "each module needs both of its matrices, and no more")
    return {module.removeprefix(PREFIX): (tensors[module + ends[0]], tensors[module + ends[1]]) for module in modules}


# ---- writing


def to_mlx(updates: dict[str, Update], base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, adapter_config.json) as mlx-lm has them; `base` is the model's directory or id."""
    rank = max(update.a.shape[0] for update in updates.values())
    scale = next(iter(updates.values())).scale
    tensors = {}
    for module, update in updates.items():
        more = rank - update.a.shape[0]
        b = update.b if update.scale == scale else (update.b.float() * (update.scale / scale)).to(update.b.dtype)
        tensors[f"{module}.lora_a"] = torch.nn.functional.pad(update.a, (0, 0, 0, more)).t().contiguous()
        tensors[f"{module}.lora_b"] = torch.nn.functional.pad(b, (0, more)).t().contiguous()
    keys = sorted({re.sub(r"^.*?\blayers\.\d+\.", "", module) for module in updates})
    shape = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys}
    return tensors, {"model": base, "fine_tune_type": "lora", "num_layers": -1, "lora_parameters": shape}


def to_peft(updates: dict[str, Update], base: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, adapter_config.json) as peft has them; the updates have one rank and one scale."""
    from peft import LoraConfig

    first = next(iter(updates.values()))
    rank = first.a.shape[0]
    tensors = {}
    for module, update in updates.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = update.a
        tensors[f"{PREFIX}{module}.lora_B.weight"] = update.b
    config = LoraConfig(
        r=rank,
        lora_alpha=first.scale * rank,  # type: ignore[arg-type]  # peft takes floats
        target_modules=sorted(updates),  # whole names: mlx-lm may have trained some layers only
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).to_dict()
    return tensors, json.loads(json.dumps(config, default=sorted))


def convert(source: Path, out: Path, base: str | None = None) -> str:
    """Write the adapter in `source` as the other kind into the new directory `out`; what was written, "mlx" or "peft".

    `base`: the model that it belongs to; by default what the adapter itself names. DanluError for what does not fit.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DanluError(f"{out} is already used", "choose another --out, or remove it")
    config = read_json(source / "adapter_config.json")
    if is_mlx(source):
        base = base or config.get("model")
        if not base:
            raise DanluError(f"{source} does not name its base model", "give --base, a directory or hub id")
        base = str(Path(base).resolve()) if Path(base).is_dir() else base
        tensors, written = to_peft(read_mlx(source), base)
        file, kind = PEFT, "peft"
    elif (source / PEFT).is_file():
        base = base or _base_of_peft(source, config)
        tensors, written = to_mlx(read_peft(source), base)
        file, kind = MLX, "mlx"
    else:
        raise DanluError(f"{source} holds no adapter", f"it needs adapter_config.json and {PEFT} or {MLX}")
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(out / file), metadata={"format": "pt" if kind == "peft" else "mlx"})
    write_json(out / "adapter_config.json", written)
    if kind == "peft":
        spec = Model(id=base).model_dump(mode="json")
        write_json(out / "danlu.json", {"kind": "adapter", "base": spec, "notice": "", "parents": [str(source)]})
    return kind


def _base_of_peft(source: Path, config: dict[str, Any]) -> str:
    """The base as a directory where it is one, else as a hub's id."""
    if not (source / "danlu.json").is_file():
        return str(config.get("base_model_name_or_path") or "")
    described = read_json(source / "danlu.json")
    name = str(described["base"]["id"])
    local = described.get("base_dir") or name == "tiny" or name.startswith("modelscope:") or Path(name).is_dir()
    return str(base_of(source).resolve()) if local else name
