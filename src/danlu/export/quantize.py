"""How a weight is stored in a GGUF file: f32, f16, bf16 and the 32-blocks in numpy, K-quants by llama.cpp itself.

Matrices take the asked type; vectors and norms stay f32, as llama.cpp expects. A row whose length is not a multiple
of 32 cannot be q8_0, q5_0 or q4_0 and is stored as f16, as llama.cpp's converter does. In q5_0 and q4_0 files the
matrix that gives the logits is q8_0 (llama-quantize takes q6_k, which numpy does not have). K-quants come from
llama-quantize, llama-cpp-python, or the same kernels inside xllamacpp with the mixture of `mixture.py`.
Not covered: types per layer of the user's choosing, IQ types.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, quants

from danlu.errors import DanluError
from danlu.export import kernels
from danlu.export.mixture import K_QUANTS, Network, fitting, k_type
from danlu.recipe import Quant

STORAGE: dict[str, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q5_0": (GGMLQuantizationType.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    **K_QUANTS,
}
TOOL = "llama-quantize"


def storage(name: str, shape: tuple[int, ...], quant: Quant, network: Network) -> GGMLQuantizationType:
    """The type that GGUF tensor `name` of `shape` (rows first) is stored in."""
    if len(shape) < 2 or name.endswith("_norm.weight"):
        return GGMLQuantizationType.F32
    if quant in K_QUANTS:
        return k_type(name, shape[-1], quant, network)
    head = name == ("token_embd.weight" if network.tied else "output.weight")
    kind = STORAGE["q8_0" if head and quant in ("q5_0", "q4_0") else quant][0]
    return fitting(kind, shape[-1])


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
    values = np.ascontiguousarray(values, dtype=np.float32)
    return kernels.quantize(values, kind) if GGML_QUANT_SIZES[kind][0] == 256 else quants.quantize(values, kind)


# ---- K-quants by llama.cpp's own tools


@dataclass(frozen=True, slots=True)
class Maker:
    """Who makes K-quants: llama.cpp's tool at `path`, llama-cpp-python, or the kernels inside xllamacpp."""

    kind: Literal["tool", "python", "kernels"]
    path: str = ""


def find_tool(name: str, llama_cpp: Path | None = None) -> str | None:
    """A program of llama.cpp: built in the checkout `llama_cpp`, or on PATH."""
    folders = [llama_cpp / part for part in ("build/bin", "bin", "build", ".")] if llama_cpp else []
    found = next((path for folder in folders if (path := shutil.which(name, path=str(folder)))), None)
    return found or shutil.which(name)


def find_maker(quant: str, llama_cpp: Path | None = None, *, imatrix: bool = False) -> Maker:
    """The first that is there of llama-quantize (checkout, LLAMA_QUANTIZE, PATH), llama-cpp-python and xllamacpp's
    kernels; only the tool takes an importance matrix. DanluError naming the choices."""
    if llama_cpp is not None and not llama_cpp.is_dir():
        raise DanluError(f"{llama_cpp} is not a directory", "give a checkout of llama.cpp")
    named = os.environ.get("LLAMA_QUANTIZE")
    if tool := (shutil.which(named) if named else None) or find_tool(TOOL, llama_cpp):
        return Maker("tool", tool)
    if not imatrix:
        if importlib.util.find_spec("llama_cpp") is not None:
            return Maker("python")
        if kernels.available():
            return Maker("kernels")
    raise DanluError(
        f"{quant} needs llama.cpp's {TOOL}" + (" for an importance matrix" if imatrix else ""),
        f"put {TOOL} on PATH, name a built checkout (--llama-cpp DIR), pip install llama-cpp-python, or export f16 and"
        f" let Ollama quantize: ollama create -q {quant.upper()} NAME",
    )


def k_quantize(source: Path, out: Path, quant: str, maker: Maker, *, imatrix: Path | None = None) -> Path:
    """Quantize the f32, f16 or bf16 GGUF `source` to `out`; `out` appears only when that succeeded (DanluError)."""
    staged = out.with_name(f".{out.name}.partial")
    threads = str(os.cpu_count() or 1)
    given = ["--imatrix", str(imatrix)] if imatrix else []
    if maker.kind == "tool":
        command = [maker.path, *given, str(source), str(staged), quant.upper(), threads]
    else:  # in a process of its own: the library ends the one that it fails in
        file_type = str(int(K_QUANTS[quant][1]))
        command = [sys.executable, "-c", _THROUGH_PYTHON, str(source), str(staged), file_type, threads]
    try:
        run_tool(command)
        if not staged.is_file():
            raise DanluError(f"{command[0]} wrote nothing", f"command: {shlex.join(command)}")
        os.replace(staged, out)
    finally:
        staged.unlink(missing_ok=True)
    return out


_THROUGH_PYTHON = """
import sys, llama_cpp
source, out, kind, threads = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = int(kind), int(threads)
sys.exit(llama_cpp.llama_model_quantize(source.encode(), out.encode(), params))
"""


def run_tool(command: list[str]) -> str:
    """What a program of llama.cpp printed; DanluError with its last line when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise DanluError(f"cannot run {command[0]}: {error.strerror}", f"command: {shlex.join(command)}") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise DanluError(
            f"{Path(command[0]).name} failed ({done.returncode}): {' '.join(last)}", f"command: {shlex.join(command)}"
        )
    return done.stdout + done.stderr


def make_imatrix(source: Path, text: Path, out: Path, llama_cpp: Path | None = None) -> Path:
    """Measure an importance matrix of the GGUF `source` on `text` with llama.cpp's `llama-imatrix`."""
    tool = find_tool("llama-imatrix", llama_cpp)
    if tool is None:
        raise DanluError(
            "an importance matrix needs llama.cpp's llama-imatrix",
            "put it on PATH, or name a built checkout (--llama-cpp DIR)",
        )
    run_tool([tool, "-m", str(source), "-f", str(text), "-o", str(out), "-t", str(os.cpu_count() or 1)])
    if not out.is_file():
        raise DanluError(f"llama-imatrix wrote nothing from {text}", "it needs some thousand tokens of text")
    return out
