"""The random generators that training may draw from: Python's, numpy's, torch's and the device's, as one state.

The states are tensors and plain values, so that a checkpoint can hold them without code in it.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed(value: int) -> None:
    """Start every generator from `value` (any int)."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)  # the device's too


def state() -> dict[str, Any]:
    """Where every generator stands; some microseconds."""
    numpy: Any = np.random.get_state(legacy=False)
    inner = {**numpy["state"], "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64))}
    found: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": {**numpy, "state": inner},
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()  # of this process's device
    if torch.backends.mps.is_available():
        found["mps"] = torch.mps.get_rng_state()
    return found


def restore(found: dict[str, Any]) -> None:
    """Put every generator where `state` found it; a device's only where there is that device."""
    random.setstate(found["python"])
    inner = found["numpy"]["state"]
    np.random.set_state({**found["numpy"], "state": {**inner, "key": inner["key"].numpy().astype(np.uint32)}})
    torch.set_rng_state(found["torch"])
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"])
    if "mps" in found and torch.backends.mps.is_available():
        torch.mps.set_rng_state(found["mps"])
