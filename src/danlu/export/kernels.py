"""llama.cpp's own quantization kernels, called in the library that xllamacpp brings.

`ggml_quantize_chunk` is what `llama-quantize` calls for each matrix; the wheel's library exports it. Rows are shared
among threads (ctypes lets go of the lock). Not covered: libraries that do not export it; `available` says so.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

_ROWS = 1 << 22  # values that one call works on, at most


@functools.cache
def _library() -> Any:
    """The library with its signatures set, or None where it cannot be had."""
    spec = importlib.util.find_spec("xllamacpp")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    files = [file for folder in folders for end in ("so", "pyd", "dylib") for file in folder.glob(f"xllamacpp*.{end}")]
    if not files:
        return None
    try:
        library = ctypes.CDLL(str(files[0]))
        quantize, row_size = library.ggml_quantize_chunk, library.ggml_row_size
    except (OSError, AttributeError):
        return None
    where, count = ctypes.c_void_p, ctypes.c_int64
    quantize.argtypes, quantize.restype = [ctypes.c_int, where, where, count, count, count, where], ctypes.c_size_t
    row_size.argtypes, row_size.restype = [ctypes.c_int, count], ctypes.c_size_t
    same = all(row_size(int(kind), size[0]) == size[1] for kind, size in GGML_QUANT_SIZES.items() if "_K" in kind.name)
    return library if same else None  # a llama.cpp whose types are others


def available() -> bool:
    """Whether K-quants can be made without llama.cpp's tools."""
    return _library() is not None


def quantize(values: np.ndarray[Any, Any], kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """fp32 `values` (rows, columns) as blocks of `kind`, uint8 (rows, bytes of a row)."""
    library = _library()
    values = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, values.shape[-1])
    rows, columns = values.shape
    block, size = GGML_QUANT_SIZES[kind]
    out = np.empty((rows, columns // block * size), dtype=np.uint8)
    step = max(1, _ROWS // columns)

    def part(start: int) -> None:
        count = min(step, rows - start)
        source, target = values[start:].ctypes.data, out[start:].ctypes.data
        library.ggml_quantize_chunk(int(kind), source, target, 0, count, columns, None)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(part, range(0, rows, step)))
    return out
