"""A model in MLX through mlx-lm, from the same folder and under the same adapters as in torch.

Linear layers with an update become mlx-lm's LoRALinear, whose matrices stay fp32 whatever the base is; an earlier
adapter and the one that is trained lie one around the other. `auto` is the dtype of the files on a GPU, fp32 on a CPU.
Not covered: models that MLX has quantized itself, and architectures whose layers mlx-lm names otherwise than
transformers does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.utils import load_model

from danlu.errors import DanluError
from danlu.models.mlx_adapter import Update
from danlu.run import read_json

DTYPES = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}


def on_gpu() -> bool:
    return mx.default_device().type == mx.gpu


def load_base(folder: Path, dtype: str = "auto") -> Any:
    """The mlx-lm model in `folder` (config.json, model*.safetensors), frozen. DanluError for what cannot be loaded."""
    config = read_json(folder / "config.json")
    if "quantization" in config or "quantization_config" in config:
        raise DanluError(
            f"{folder} holds quantized weights, which cannot be merged or exported later",
            "name the model it was made from",
        )
    try:
        model, _ = load_model(folder, lazy=True, model_config=rope_of(config))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DanluError(
            f"mlx-lm cannot load the model in {folder}: {str(error).strip().splitlines()[0]}",
            "it needs model*.safetensors of an architecture that mlx-lm has; else sft.engine: danlu",
        ) from error
    if dtype != "auto" or not on_gpu():
        model.set_dtype(DTYPES["fp32" if dtype == "auto" else dtype])
    model.freeze()
    mx.eval(model.parameters())
    model.eval()
    return model


def rope_of(config: dict[str, Any]) -> dict[str, Any]:
    """Where mlx-lm looks for the rotary embedding, of a config.json that has it where transformers 5 writes it.

    mlx-lm's Llama and Qwen2 know only the older place, and would take a base frequency of their own without a word.
    """
    told = config.get("rope_parameters")
    if not isinstance(told, dict) or "rope_theta" not in told:
        return {}
    found = {"rope_theta": told["rope_theta"]}
    if told.get("rope_type", "default") != "default":
        found["rope_scaling"] = told
    return {key: value for key, value in found.items() if config.get(key) is None}


def add_lora(model: Any, updates: dict[str, Update], *, dropout: float = 0.0, frozen: bool = False) -> None:
    """Put an adapter on `model`, around what is there. DanluError for modules that the model does not have."""
    known = dict(model.named_modules())
    layers = []
    for module, update in updates.items():
        inner = known.get(module)
        if not isinstance(inner, (nn.Linear, LoRALinear)):
            what = "no such layer" if inner is None else f"a {type(inner).__name__} there"
            raise DanluError(f"mlx-lm's model has {what}: {module}", "choose other lora.targets, or sft.engine: danlu")
        (rank, width), height = update.a.shape, update.b.shape[0]
        outer: Any = LoRALinear(width, height, rank, dropout, update.scale)
        outer.linear, outer.lora_a, outer.lora_b = inner, to_mlx(update.a.t()), to_mlx(update.b.t())
        if frozen:
            outer.freeze()
        layers.append((module, outer))
    model.update_modules(tree_unflatten(layers))


def flat(tree: Any) -> dict[str, mx.array]:
    """Dotted name -> array of a tree of parameters or gradients."""
    found: Any = tree_flatten(tree)
    return dict(found)


def to_mlx(tensor: torch.Tensor) -> mx.array:
    """A copy, fp32."""
    return mx.array(tensor.detach().float().numpy())


def to_torch(array: mx.array) -> torch.Tensor:
    """A copy, fp32."""
    return torch.from_numpy(np.array(array.astype(mx.float32)))
