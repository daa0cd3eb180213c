"""Where a recipe would run: the device, its free memory, how fast it multiplies.

A CPU is measured for a moment, in the dtype of the run; for GPUs the makers' figures of dense half-precision products
stand here, of which training reaches a part that is *assumed* (no GPU has been measured for this table).
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from danlu.errors import DanluError
from danlu.models.load import native_bf16

Kind = Literal["cuda", "cpu", "mps"]
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@dataclass(frozen=True, slots=True)
class Gpu:
    """A maker's figures: memory in bytes, dense half-precision operations and bytes of memory a second."""

    memory: int
    flops: float
    bandwidth: float
    bf16: bool = True


def _gpu(gigabytes: float, teraflops: float, bandwidth: float, bf16: bool = True) -> Gpu:
    return Gpu(int(gigabytes * 10**9), teraflops * 1e12, bandwidth * 1e9, bf16)


# fp16/bf16 on tensor cores, dense, with fp32 accumulation
GPUS = {
    "T4": _gpu(16, 65, 320, False),
    "V100": _gpu(32, 125, 900, False),
    "RTX 3060": _gpu(12, 51, 360),
    "RTX 3090": _gpu(24, 71, 936),
    "RTX 4060 Ti": _gpu(16, 44, 288),
    "RTX 4070": _gpu(12, 58, 504),
    "RTX 4080": _gpu(16, 97, 717),
    "RTX 4090": _gpu(24, 165, 1008),
    "RTX 5090": _gpu(32, 210, 1792),
    "RTX A6000": _gpu(48, 155, 768),
    "A10": _gpu(24, 125, 600),
    "L4": _gpu(24, 121, 300),
    "L40S": _gpu(48, 362, 864),
    "A100 40GB": _gpu(40, 312, 1555),
    "A100": _gpu(80, 312, 2039),
    "H100": _gpu(80, 989, 3350),
    "H200": _gpu(141, 989, 4800),
}
NEAR = 0.15  # a GPU of about the memory that was given stands for it
REACHED = {"cuda": (0.20, 0.45), "mps": (0.15, 0.40), "cpu": (0.35, 0.70)}  # share of the peak in training: assumed
UNMEASURED = (1.0, 1.0)  # a CPU's, until `clocked` has measured it
MPS_FLOPS = (5e12, 30e12)  # Apple's GPUs, from the smallest M to the largest Max


@dataclass(frozen=True, slots=True)
class Place:
    """A device. `budget`: bytes that may be taken (None: unknown). `flops`: (least, most) operations a second.

    `native`: whether bf16 is fast there. `measured`: whether flops were measured here and now (see `clocked`).
    """

    kind: Kind
    name: str
    budget: int | None
    flops: tuple[float, float]
    bandwidth: tuple[float, float]
    native: bool
    measured: bool = False


def parse_bytes(text: str) -> int:
    """ "16GB" (10^9), "16GiB" (2^30), "800MB" or plain bytes; DanluError for anything else."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?I?)B?\s*", text.upper())
    with contextlib.suppress(ValueError):
        if found and float(found[1]) > 0:
            return int(float(found[1]) * UNITS[found[2]])
    raise DanluError(f"{text!r} is not an amount of memory", "for example: --vram 16GB")


def detected() -> Kind:
    """The device that training would take here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def place(kind: Kind | None = None, budget: int | None = None, gpu: str | None = None) -> Place:
    """The Place of a device; what is not given is taken from this machine, where it has it."""
    if gpu is not None:
        name, known = find_gpu(gpu)
        return Place("cuda", name, budget or known.memory, *_ranges([known]), known.bf16)
    kind = kind or detected()
    if kind == "cpu":
        return Place("cpu", "this CPU", budget or free_memory("cpu"), UNMEASURED, (1e10, 4e10), native_bf16())
    if kind == "mps":
        return Place("mps", "Apple GPU", budget or free_memory("mps"), MPS_FLOPS, (1e11, 8e11), True)
    if budget is None and torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        alike = [own for key, own in GPUS.items() if key.lower().split()[-1] in name.lower()]
        ranges = _ranges(alike or list(GPUS.values()))
        native = torch.cuda.get_device_capability()[0] >= 8
        return Place("cuda", name, free_memory("cuda"), *ranges, native)
    near = [own for own in GPUS.values() if budget and abs(own.memory - budget) <= NEAR * budget and own.bf16]
    name = "a GPU" if budget is None else f"a GPU of {budget / 1e9:.0f} GB"
    return Place("cuda", name, budget, *_ranges(near or list(GPUS.values())), True)


def _ranges(gpus: list[Gpu]) -> tuple[tuple[float, float], tuple[float, float]]:
    flops, widths = ([getattr(own, name) for own in gpus] for name in ("flops", "bandwidth"))
    return (min(flops), max(flops)), (min(widths), max(widths))


def find_gpu(name: str) -> tuple[str, Gpu]:
    """A GPU of the table by its name, however it is written; DanluError naming the known ones."""
    plain = {re.sub(r"[^a-z0-9]", "", key.lower()): key for key in GPUS}
    wanted = re.sub(r"[^a-z0-9]|nvidia|geforce|tesla", "", name.lower())
    for key in (wanted, f"rtx{wanted}"):
        if key in plain:
            return plain[key], GPUS[plain[key]]
    raise DanluError(f"no figures for the GPU {name!r}", f"known: {', '.join(GPUS)}; or give --vram")


def free_memory(kind: str) -> int | None:
    """Bytes that this process could still take on a device of this machine; None where there is none."""
    if kind == "cuda":
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    if kind == "mps":
        return torch.mps.recommended_max_memory() if torch.backends.mps.is_available() else None
    import psutil

    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # a container may have less than the machine
        most, used = (Path(f"/sys/fs/cgroup/memory.{part}").read_text().strip() for part in ("max", "current"))
        free = min(free, int(most) - int(used))
    return free


def clocked(place: Place, dtype: torch.dtype) -> Place:
    """`place` with what this CPU reaches in matrix products of `dtype`, measured now; any other place as it is."""
    if place.kind != "cpu":
        return place
    peak = measured_flops(dtype)
    return replace(place, flops=(peak, peak), measured=True)


@lru_cache(maxsize=4)
def measured_flops(dtype: torch.dtype, seconds: float = 0.15) -> float:
    """Operations a second of the best of some products of a layer's size on this CPU."""
    a, b = torch.rand(512, 1024).to(dtype), torch.rand(1024, 1024).to(dtype)
    took: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(took) < 8:  # some, however busy the machine is
        before = time.perf_counter()
        a @ b
        took.append(time.perf_counter() - before)
    return 2.0 * a.shape[0] * b.numel() / min(took)
