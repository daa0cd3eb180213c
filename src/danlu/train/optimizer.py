"""What changes the weights: the optimizer, and the precision that losses and gradients are computed in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from danlu import display
from danlu.errors import DanluError
from danlu.models.load import device, native_bf16
from danlu.recipe import Optimizer, Training


def make_optimizer(params: list[Tensor], settings: Optimizer) -> torch.optim.Optimizer:
    """The optimizer of a recipe; the 8-bit ones need bitsandbytes."""
    common: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay}
    if settings.name == "adamw":
        return torch.optim.AdamW(params, fused=params[0].device.type in ("cpu", "cuda"), **common)
    try:
        import bitsandbytes as bnb
    except ImportError:
        raise DanluError(
            f"optimizer {settings.name} needs bitsandbytes",
            'pip install "danlu[cuda]", or --set sft.optimizer.name=adamw (grpo.optimizer.name for GRPO)',
        ) from None
    if settings.name == "adamw_8bit" or params[0].device.type == "cpu":
        if settings.name != "adamw_8bit":
            display.warn("paged memory needs CUDA; using the unpaged 8-bit AdamW")
        return bnb.optim.AdamW8bit(params, **common)
    return bnb.optim.PagedAdamW8bit(params, **common)


def precision(settings: Training) -> str:
    """accelerate's mixed precision: autocast for bf16 and fp16 weights where the device is fast at it."""
    kind = device().type
    if settings.precision == "fp16" and kind != "cuda":
        display.warn(f"fp16 is not usable on {kind}; using {'bf16' if native_bf16() else 'fp32'}")
        return "bf16" if native_bf16() else "no"
    if settings.precision == "auto":
        return "bf16" if native_bf16() else "fp16" if kind == "cuda" else "no"
    return {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[settings.precision]
