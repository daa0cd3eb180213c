"""Memory while training: what is held, what was held at most, and what to do when it runs out.

Not covered: a machine without a limit per process, on which the kernel ends the largest process (SIGKILL) instead of
refusing memory; a run ended that way goes on with --resume, in smaller micro-batches if the recipe says so.
"""

from __future__ import annotations

import gc
import resource
import sys

import torch

from danlu.models.memory import ran_out as ran_out

HINT = (
    "any of these needs less: gradient_checkpointing: true, a smaller data.max_length, model.quantization: nf4, "
    "optimizer.name: adamw_8bit; `danlu plan RECIPE` tells what fits"
)
_PAGE = resource.getpagesize()


def release() -> None:
    """Give back what is held for nothing, also inside the device's cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def held() -> int:
    """Bytes in tensors on CUDA, else the resident set of this process."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:  # not Linux
        import psutil

        return psutil.Process().memory_info().rss


def peak() -> int:
    """The most that `held` has been in this process, bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
