"""Decoding steps of fp32 models on a CPU in C: all layers of a step in one call, for which torch needs hundreds.

Method (danlu/native/decode.c): matrices lie in panels that are multiplied with up to a dozen rows at a time, a bf16
checkpoint's in bf16; every row attends to its own keys, without masks, and to its group's prompt, kept once.
Where the library is not to be had, decoding stays with torch, which gives the same up to rounding.
Not covered: half-precision models (bf16 units are faster in torch), models that `serves` says no to.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.native import MULTIPLE, library

if TYPE_CHECKING:
    from danlu.generate.forward import Cache
    from danlu.generate.weights import Matrix, Weights


def available(place: torch.device, dtype: torch.dtype) -> bool:
    """Whether matrices of `dtype` at `place` are multiplied here."""
    return place.type == "cpu" and dtype == torch.float32 and library() is not None


# ---- matrices


class _Matrix(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias", "low", "high")] + [
        (name, ctypes.c_int64) for name in ("inputs", "outputs", "rank", "half")
    ]


def panels(whole: Tensor) -> Tensor:
    """A [out, in] matrix as [panels, in, width]: in bf16 where that holds every number exactly, else in fp32."""
    width = library().danlu_width()
    half = whole.bfloat16()
    exact = torch.equal(half.float(), whole)
    filled = F.pad(half if exact else whole, (0, 0, 0, -len(whole) % width))
    return filled.view(-1, width, whole.shape[1]).transpose(1, 2).contiguous()


def padded(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Adapters [in, r], [r, out], filled up with zeros to whole panels."""
    width = library().danlu_width()
    rank, out = -low.shape[1] % width, -high.shape[1] % width
    return F.pad(low.float(), (0, rank)).contiguous(), F.pad(high.float(), (0, out, 0, rank)).contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _struct(matrix: Matrix) -> _Matrix:
    (part,) = matrix.parts
    rank = 0 if matrix.low is None else matrix.low.shape[1]
    pointers = (_pointer(one) for one in (part, matrix.bias, matrix.low, matrix.high))
    return _Matrix(*pointers, part.shape[1], matrix.outputs, rank, part.dtype == torch.bfloat16)


def product(matrix: Matrix, x: Tensor) -> Tensor:
    """x [N, in] fp32 -> [N, out] of a matrix in `panels`."""
    x = x.contiguous()
    y, struct = x.new_empty(len(x), matrix.outputs), _struct(matrix)
    scratch = x.new_empty(len(x) * struct.rank)
    sizes = (ctypes.c_int64(n) for n in (len(x), torch.get_num_threads()))
    library().danlu_product(ctypes.byref(struct), *(ctypes.c_void_p(one.data_ptr()) for one in (x, y, scratch)), *sizes)
    return y


# ---- steps


class _Layer(ctypes.Structure):
    _fields_ = [(name, _Matrix) for name in ("qkv", "out", "gate_up", "down")] + [
        (name, ctypes.c_void_p) for name in ("norm_in", "norm_out", "norm_qk")
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(_Layer)),
        *((name, ctypes.c_int64) for name in ("count", "hidden", "inner", "heads", "kv_heads", "head_dim")),
        ("eps", ctypes.c_float),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        ("rows", ctypes.c_int64),
        ("longest", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "hidden", "positions", "places", "cos", "sin", "cache")),
        *((name, ctypes.c_int64) for name in ("cache_layer", "cache_row", "length")),
        ("shared", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("shared_layer", "shared_row", "shared_length")),
        *((name, ctypes.c_void_p) for name in ("groups", "prompts", "norm", "scratch")),
        ("threads", ctypes.c_int64),
    ]


def serves(w: Weights) -> bool:
    """Whether steps of these weights can be made here."""
    widths = (w.embed.shape[1], w.head_dim, w.layers[0].down.parts[0].shape[1])
    fits = all(width % MULTIPLE == 0 for width in widths) and w.dtype == torch.float32
    return fits and all(matrix.layout == "panels" for matrix in w.matrices())


class Steps:
    """Decoding steps of some weights, with what the calls of a batch share."""

    def __init__(self, w: Weights) -> None:
        self._w = w
        hidden, inner = w.embed.shape[1], w.layers[0].down.parts[0].shape[1]
        self._layers = (_Layer * len(w.layers))()
        self._rank = 0
        for struct, layer in zip(self._layers, w.layers, strict=True):
            for name in ("qkv", "out", "gate_up", "down"):
                setattr(struct, name, _struct(getattr(layer, name)))
                self._rank = max(self._rank, getattr(struct, name).rank)
            for name in ("norm_in", "norm_out", "norm_qk"):
                setattr(struct, name, _pointer(getattr(layer, name)))
        sizes = (len(w.layers), hidden, inner, w.heads, w.kv_heads, w.head_dim)
        self._model = _Model(self._layers, *sizes, w.eps)
        self._scratch = torch.empty(0)

    def hidden(
        self,
        cache: Cache,
        tokens: Tensor,
        positions: Tensor,
        places: Tensor,
        longest: int,
        groups: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """As `forward.step`: take a token of each of the first rows in; the hidden states [rows, hidden].

        longest: keys that a row attends to at most. groups: where prompts are kept apart, the group of each row, and
        the tokens of each group's prompt.
        """
        w, c = self._w, ctypes
        x = F.embedding(tokens, w.embed)
        found, threads = torch.empty_like(x), torch.get_num_threads()
        self._reserve(len(x), longest, threads)
        data, held = cache.data, cache.shared if groups is not None else None
        strides = (held.stride(0), held.stride(1), held.shape[3]) if held is not None else (0, 0, 0)
        call = _Step(
            len(x),
            longest,
            *map(_pointer, (x, found, positions, places, cache.cos, cache.sin, data)),
            *(data.stride(0), data.stride(1), data.shape[3]),
            _pointer(held),
            *strides,
            *map(_pointer, groups or (None, None)),
            *map(_pointer, (w.norm, self._scratch)),
            threads,
        )
        library().danlu_step(c.byref(self._model), c.byref(call))
        return found

    def _reserve(self, rows: int, longest: int, threads: int) -> None:
        sizes = (ctypes.c_int64(n) for n in (rows, longest, self._rank, threads))
        needed = library().danlu_scratch(ctypes.byref(self._model), *sizes)
        if len(self._scratch) < needed:
            self._scratch = torch.empty(needed)
