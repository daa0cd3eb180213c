"""The elementwise functions of the fast forward and of its backward: eager, or in one pass over memory each.

"native" ones are the C of danlu/native, at once there, for fp32 and bf16 on a CPU. "compiled" ones are made by
torch.compile, once for all lengths, which takes half a minute. A compiler that is found need not work (no headers of
Python, a cache that cannot be written to): then the eager functions take over, once and for all, and a warning says so.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu import display, native
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


# ---- the same in C, one pass over memory each


def _fits(*tensors: Tensor) -> bool:
    """Whether the C takes these: on a CPU, all fp32 or all bf16, rows divisible by 16."""
    dtype = tensors[0].dtype
    if dtype not in (torch.float32, torch.bfloat16) or native.library() is None:
        return False
    return all(x.dtype == dtype and x.device.type == "cpu" and x.shape[-1] % native.MULTIPLE == 0 for x in tensors)


def _call(name: str, *given: Tensor | int | float | None) -> None:
    """A function of the library; the last two of its arguments, whether arrays are bf16 and the threads, are added."""
    kinds: dict[type, Any] = {int: ctypes.c_int64, float: ctypes.c_float, type(None): ctypes.c_void_p}
    half = any(isinstance(x, Tensor) and x.dtype == torch.bfloat16 for x in given)
    values = [ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else kinds[type(x)](x) for x in given]
    getattr(native.library(), name)(*values, ctypes.c_int64(half), ctypes.c_int64(torch.get_num_threads()))


def native_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if not _fits(x, weight) or x.shape[-1:] != weight.shape:
        return norm(x, weight, eps)
    x, weight = x.contiguous(), weight.contiguous()
    y, scale = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    _call("danlu_norm", x, weight, y, scale, scale.numel(), x.shape[-1], float(eps))
    return y, scale


def native_norm_back(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    if not _fits(grad, x, weight) or x.shape[-1:] != weight.shape:
        return norm_back(grad, x, weight, scale)
    grad, x, weight, scale = grad.contiguous(), x.contiguous(), weight.contiguous(), scale.contiguous()
    found = torch.empty_like(x)
    _call("danlu_norm_back", grad, x, weight, scale, found, scale.numel(), x.shape[-1])
    return found


def native_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    if not _fits(gate, up) or gate.shape != up.shape:
        return swiglu(gate, up)
    gate, up = gate.contiguous(), up.contiguous()
    found = torch.empty_like(gate)
    _call("danlu_swiglu", gate, up, found, gate.numel())
    return found


def native_swiglu_back(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    if not _fits(grad, gate, up):
        return swiglu_back(grad, gate, up)
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    for_gate, for_up = torch.empty_like(gate), torch.empty_like(up)
    _call("danlu_swiglu_back", grad, gate, up, for_gate, for_up, gate.numel())
    return for_gate, for_up


def native_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if not _fits(x, cos, sin) or x.shape[:1] != cos.shape[:1] or x.shape[-1] != 2 * cos.shape[-1]:
        return rotate(x, cos, sin)
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    found = torch.empty_like(x)
    _call("danlu_rotate", x, cos, sin, found, x.shape[0], x.shape[1], cos.shape[-1])
    return found


def native_scores(
    logits: Tensor, targets: Tensor, temperature: float, entropy: bool, error: bool
) -> tuple[Tensor, Tensor | None]:
    """(log-probs fp32 [n], entropies fp32 [n] if asked) of `targets` in logits [n, V] of fp32 or bf16 on a CPU.

    With `error` the logits are overwritten by onehot - p.
    """
    found = torch.empty(len(logits), dtype=torch.float32)
    entropies = torch.empty_like(found) if entropy else None
    sizes = (len(logits), logits.shape[1], int(error))
    _call("danlu_scores", logits, targets.contiguous(), 1 / temperature, found, entropies, *sizes)
    return found, entropies


@dataclass(frozen=True, slots=True)
class Kernels:
    """The elementwise functions, eager or compiled."""

    norm: Callable[..., Any] = norm
    norm_back: Callable[..., Any] = norm_back
    swiglu: Callable[..., Any] = swiglu
    swiglu_back: Callable[..., Any] = swiglu_back
    rotate: Callable[..., Any] = rotate


How = Literal["eager", "native", "compiled"]


def how(asked: bool | Literal["auto"], kind: str, hidden: int, steps: int | None, here: bool = True) -> How:
    """How the functions of a training are run, of a model of width `hidden` on a device of `kind`.

    asked: `compile` of the recipe; "auto": native on a CPU, else compiled where that pays and, if the device is `here`,
    a compiler is found.
    """
    if asked != "auto":
        return "compiled" if asked else "eager"
    if kind == "cpu" and native.library() is not None:
        return "native"
    pays = hidden >= 512 and (steps is None or steps >= 20)
    return "compiled" if pays and (not here or can_compile()) else "eager"


def kernels(way: How) -> Kernels:
    """The functions as they are, or compiled at their first call; those of one forward fall back together."""
    if way == "eager":
        return Kernels()
    if way == "native":
        return Kernels(native_norm, native_norm_back, native_swiglu, native_swiglu_back, native_rotate)
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
