"""How a weight is stored in a GGUF file: f32, f16, bf16 and q8_0 in numpy, K-quants through llama.cpp's own tool.

Matrices take the asked type; vectors and norms stay f32, as llama.cpp expects. A row whose length is not a multiple
of 32 cannot be q8_0 and is stored as f16, as llama.cpp's converter does.
Not covered: importance matrices, mixed types per layer.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, quants

from danlu.errors import DanluError

Quant = Literal["f32", "f16", "bf16", "q8_0"]
KQuant = Literal["q4_k_m", "q5_k_m", "q6_k"]

STORAGE: dict[str, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
TOOL = "llama-quantize"


def storage(name: str, shape: tuple[int, ...], quant: Quant) -> GGMLQuantizationType:
    """The type that GGUF tensor `name` of `shape` (rows first) is stored in."""
    if len(shape) < 2 or name.endswith("_norm.weight"):
        return GGMLQuantizationType.F32
    kind = STORAGE[quant][0]
    return GGMLQuantizationType.F16 if shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def stored_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Size in the file of a tensor of `shape` stored as `kind`."""
    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size


def encode(name: str, values: np.ndarray[Any, Any], kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """fp32 `values` as stored; DanluError when f16 cannot hold them or they are not finite."""
    if not np.isfinite(values).all():
        raise DanluError(
            f"{name} holds values that are not finite", "the training diverged; export an earlier checkpoint"
        )
    if kind == GGMLQuantizationType.F32:
        return np.ascontiguousarray(values, dtype=np.float32)
    if kind == GGMLQuantizationType.F16:
        if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise DanluError(f"{name} has values beyond the range of f16", "export with --set export.quant=bf16")
        return np.ascontiguousarray(values, dtype=np.float16)
    return quants.quantize(np.ascontiguousarray(values), kind)


def k_quantize(source: Path, out: Path, quant: KQuant, *, tool: str | None = None, threads: int | None = None) -> Path:
    """Quantize the f32/f16/bf16 GGUF `source` to `out` with llama.cpp's `llama-quantize` (on PATH, or `tool`).

    DanluError when the tool is absent or fails; `out` appears only when it succeeded.
    """
    found = shutil.which(tool or os.environ.get("LLAMA_QUANTIZE") or TOOL)
    if not found:
        raise DanluError(
            f"{quant} needs llama.cpp's {TOOL}, which is not on PATH",
            f"install llama.cpp and set LLAMA_QUANTIZE=/path/to/{TOOL}, or use export.quant=q8_0",
        )
    staged = out.with_name(f".{out.name}.partial")
    command = [found, str(source), str(staged), quant.upper(), str(threads or os.cpu_count() or 1)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not staged.is_file():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise DanluError(f"{TOOL} failed: {' '.join(last) or done.returncode}", f"command: {' '.join(command)}")
        os.replace(staged, out)
    finally:
        staged.unlink(missing_ok=True)
    return out
