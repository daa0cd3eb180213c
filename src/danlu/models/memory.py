"""Whether an error says that memory was refused, and what to say when it was while a model is loaded.

Not covered: a machine without a limit per process, on which the kernel ends the largest process instead.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from danlu.errors import DanluError
from danlu.recipe import Model

WORDS = (
    *("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "bad_alloc"),
    *("insufficient memory", "unable to allocate", "maximum allowed buffer size"),  # MLX on Metal
)
MAPPED = "cannot allocate memory"  # a file's, of the system


def ran_out(error: BaseException) -> bool:
    """Whether `error` says that memory was refused, in the words of CUDA, MPS, MLX, the C++ or Python allocator."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    told = str(error).lower()
    return MAPPED in told or (isinstance(error, RuntimeError) and any(word in told for word in WORDS))


@contextmanager
def told_if_refused(spec: Model, folder: Path | None, full: bool) -> Iterator[None]:
    """Memory that is refused in the block, which loads `spec` from `folder`, as a DanluError with what takes less.

    `full`: all weights are trained. Errors that came of it count too.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not ran_out(cause):
            cause = cause.__cause__
        if cause is None:
            raise
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder else 0
        stored = f" ({size / 1e9:.1f} GB on disk)" if size else ""
        raise DanluError(
            f"memory ran out while {spec.id} was loaded{stored}",
            f"{_less(spec, folder, full)}; `danlu plan RECIPE` tells what fits",
        ) from error


def _less(spec: Model, folder: Path | None, full: bool) -> str:
    """The cheapest change that takes less memory."""
    if full:
        return "method: lora (full training holds every weight in fp32, with two moments)"
    if spec.quantization == "none" and folder is not None:
        return "model.quantization: nf4 (about a quarter of bf16), or a smaller model"
    return "a smaller model"
