"""The elementwise functions of the fast forward and of its backward: eager, or compiled into one pass over memory.

Compiled ones are made by torch.compile, once for all lengths. A compiler that is found need not work (no headers of
Python, a cache that cannot be written to): then the eager functions take over, once and for all, and a warning says so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu import display
from danlu.models.memory import ran_out


def norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMS norm over the last dimension; (in the weight's dtype, scale fp32 [..., 1])."""
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * scale).to(weight.dtype) * weight, scale


def norm_back(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Gradient of `norm` with respect to x."""
    wide = x.float() * scale
    inner = (grad * weight).float()
    return (scale * (inner - wide * (inner * wide).mean(-1, keepdim=True))).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def swiglu_back(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `swiglu` with respect to gate and up."""
    share = torch.sigmoid(gate)
    silu = gate * share
    return grad * up * (share + silu * (1 - share)), grad * silu


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D] turned by the angles of cos, sin [T, 1, D/2]; with -sin, turned back."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The elementwise functions, eager or compiled."""

    norm: Callable[..., Any] = norm
    norm_back: Callable[..., Any] = norm_back
    swiglu: Callable[..., Any] = swiglu
    swiglu_back: Callable[..., Any] = swiglu_back
    rotate: Callable[..., Any] = rotate


def kernels(compiled: bool) -> Kernels:
    """The functions as they are, or compiled at their first call; those of one forward fall back together."""
    if not compiled:
        return Kernels()
    broken: list[str] = []

    def made(plain: Callable[..., Any]) -> Callable[..., Any]:
        fused = torch.compile(plain, dynamic=True)

        def call(*args: Any) -> Any:
            if not broken:
                try:
                    return fused(*args)
                except (RuntimeError, OSError) as error:
                    if ran_out(error):
                        raise
                    broken.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
                    display.warn(f"kernels cannot be compiled here and run uncompiled, slower: {broken[0]}")
            return plain(*args)

        return call

    return Kernels(*(made(one) for one in (norm, norm_back, swiglu, swiglu_back, rotate)))


def can_compile() -> bool:
    """Whether torch.compile should work here: on a CPU it needs a C++ compiler, on CUDA a C compiler (for Triton)."""
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return False
    cuda = torch.cuda.is_available()
    names = (os.environ.get("CC", ""), "gcc", "cc", "clang") if cuda else (os.environ.get("CXX", ""), "g++", "clang++")
    return any(shutil.which(name) for name in names if name)
