"""What this machine can do: one row a fact, a hint for each gap.

Levels: ok; gap (an option that is missing or slow here; nothing to do unless you want it); broken (the default path
`danlu demo` and `danlu run` needs it). Not covered: whether a certain model fits into memory, see the recipe's
sizes and the free memory that is printed here.
"""

from __future__ import annotations

import http.client
import importlib
import os
import platform
import shutil
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

GIB = 2**30
NEEDED = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "scipy", "gguf")
LOW_DISK, LOW_MEMORY = 5 * GIB, 3 * GIB
HUB_TIMEOUT = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the report."""

    name: str
    level: Literal["ok", "gap", "broken"]
    value: str
    hint: str = ""


def diagnose() -> list[Check]:
    """Every check, in the order they are printed; a check that itself fails is reported as broken."""
    checks: list[Check] = []
    here = (_python, _packages, _device, _memory, _disk, _precision, _kernels)
    for probe in (*here, _quantization, _vllm, _mlx, _llama_cpp, _hub):
        try:
            found = probe()
        except Exception as error:  # a half-installed package may raise anything at import
            found = [
                Check(probe.__name__.strip("_"), "broken", f"{type(error).__name__}: {error}", "reinstall: make test")
            ]
        checks += found
    return checks


def show_doctor(as_json: bool) -> int:
    """Print the report; 1 if something is broken, else 0."""
    from danlu.cli.readers import print_json, table

    checks = diagnose()
    broken = any(check.level == "broken" for check in checks)
    if as_json:
        print_json({"ok": not broken, "checks": [asdict(check) for check in checks]})
        return int(broken)
    marks = {"ok": "ok", "gap": "-", "broken": "BROKEN"}
    table(("", "WHAT", "HERE"), [(marks[c.level], c.name, c.value) for c in checks])
    for check in checks:
        if check.hint:
            print(f"{check.name}: {check.hint}")
    return int(broken)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _python() -> list[Check]:
    fine = sys.version_info >= (3, 11)
    hint = "" if fine else "install Python 3.11 or newer"
    return [Check("python", "ok" if fine else "broken", platform.python_version(), hint)]


def _packages() -> list[Check]:
    checks = []
    for name in NEEDED:
        version = _version(name)
        if version is None:
            checks.append(Check(name, "broken", "missing", "install the project again: pip install -e ."))
            continue
        try:
            if name == "torch":  # the one whose binary often does not load
                importlib.import_module(name)
            checks.append(Check(name, "ok", version))
        except Exception as error:
            checks.append(Check(name, "broken", f"{version} does not import: {error}", f"pip install --force {name}"))
    return checks


def _device() -> list[Check]:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = f"{torch.cuda.get_device_name(0)}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
        return [Check("device", "ok", f"{torch.cuda.device_count()} x cuda: {name}")]
    if torch.backends.mps.is_available():
        return [Check("device", "ok", "mps (Apple GPU)")]
    hint = ""
    if shutil.which("nvidia-smi"):
        hint = "there is an NVIDIA driver but this torch has no CUDA: install torch from the CUDA index"
    return [Check("device", "gap" if hint else "ok", f"cpu, {torch.get_num_threads()} threads", hint)]


def _memory() -> list[Check]:
    import psutil

    memory = psutil.virtual_memory()
    low = memory.available < LOW_MEMORY
    hint = "the demo wants about 3 GiB; close other programs" if low else ""
    value = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    return [Check("memory", "gap" if low else "ok", value, hint)]


def _disk() -> list[Check]:
    free = shutil.disk_usage(Path.cwd()).free
    low = free < LOW_DISK
    hint = (
        "a 7B model takes about 15 GiB, its GGUF 8 more; free some space or set DANLU_RUNS and HF_HOME" if low else ""
    )
    return [Check("disk", "gap" if low else "ok", f"{free / GIB:.0f} GiB free here", hint)]


def _kernels() -> list[Check]:
    import torch

    from danlu.native import library

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return []
    if library() is not None:
        return [Check("kernels", "ok", "C, compiled for this CPU")]
    hint = "decoding in fp32 is about twice as fast with a C compiler: apt install gcc"
    return [Check("kernels", "gap", "torch", "" if os.environ.get("DANLU_NATIVE") == "0" else hint)]


def _precision() -> list[Check]:
    import torch

    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return [Check("precision", "ok", "bf16 and fp16")]
        return [Check("precision", "ok", "fp16; bf16 only emulated", "recipes with bf16: --set sft.precision=fp16")]
    if torch.backends.mps.is_available():
        return [Check("precision", "ok", "fp16 and bf16 (mps)")]
    native = native_bf16(cpu_flags())
    value = f"native bf16 ({', '.join(native)})" if native else "no native bf16 on this CPU: fp32 is faster here"
    return [Check("precision", "ok", value)]


def cpu_flags() -> set[str]:
    """Feature flags of the CPU (Linux; empty elsewhere)."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    line = next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())


def native_bf16(flags: set[str]) -> list[str]:
    """Which of the flags let a CPU multiply bf16 itself."""
    return sorted(flags & {"amx_bf16", "avx512_bf16", "bf16"})


def _quantization() -> list[Check]:
    version = _version("bitsandbytes")
    if version is None:
        return [Check("bitsandbytes", "gap", "missing", "for NF4 and 8-bit AdamW: pip install bitsandbytes")]
    try:
        importlib.import_module("bitsandbytes")
    except Exception as error:  # its binaries fail in many ways; the default path does not need it
        return [Check("bitsandbytes", "gap", f"{version} does not import: {error}", "pip install --force bitsandbytes")]
    return [Check("bitsandbytes", "ok", version)]


def _vllm() -> list[Check]:
    version = _version("vllm")
    hint = "" if version else "for fast rollouts and serving on CUDA: pip install vllm"
    return [Check("vllm", "ok" if version else "gap", version or "missing", hint)]


def _mlx() -> list[Check]:
    version = _version("mlx-lm")
    if version is None or _version("mlx") is None:
        return [Check("mlx", "gap", "missing", 'for training on Apple silicon: pip install "danlu[mlx]"')]
    try:
        core = importlib.import_module("mlx.core")
    except Exception as error:  # its binary may want another macOS; the default path does not need it
        return [Check("mlx", "gap", f"mlx-lm {version} does not import: {error}", "pip install --force mlx mlx-lm")]
    return [Check("mlx", "ok", f"mlx-lm {version} on the {'GPU' if core.metal.is_available() else 'CPU'}")]


def _llama_cpp() -> list[Check]:
    version = _version("xllamacpp")
    if version is None:
        checks = [Check("llama.cpp", "broken", "xllamacpp missing", "install it: pip install xllamacpp")]
    else:
        importlib.import_module("xllamacpp")
        checks = [Check("llama.cpp", "ok", f"xllamacpp {version}")]
    programs = (
        ("llama-quantize", "for K-quants (Q4_K_M): put llama.cpp's llama-quantize on PATH"),
        ("ollama", "to run exports: https://ollama.com/download"),
    )
    for program, why in programs:
        path = shutil.which(program)
        checks.append(Check(program, "ok" if path else "gap", path or "not on PATH", "" if path else why))
    return checks


def _hub() -> list[Check]:
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return [Check("hub", "ok", "offline (HF_HUB_OFFLINE); only local models and data")]
    problem = unreachable(endpoint)
    if problem:
        hint = "set HF_ENDPOINT to a mirror (https://hf-mirror.com), use modelscope:ID, or local directories"
        return [Check("hub", "gap", f"{endpoint} cannot be reached: {problem}", hint)]
    return [Check("hub", "ok", endpoint)]


def unreachable(url: str, timeout: float = HUB_TIMEOUT) -> str | None:
    """Why `url` does not answer within `timeout` seconds (proxies respected), or None if it does."""
    answer: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout).close()
            answer.append(None)
        except urllib.error.HTTPError:  # it answered
            answer.append(None)
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer.append(str(getattr(error, "reason", error)))

    # in a thread, because no timeout covers the name lookup
    worker = threading.Thread(target=ask, daemon=True)
    worker.start()
    worker.join(timeout)
    return answer[0] if answer else f"no answer in {timeout:g} s"
