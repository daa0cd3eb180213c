"""Memory of decoding: what the KV cache takes, what is free, and whether an error says that there was too little.

Not covered: fragmentation; a machine that kills the process instead of refusing memory.
"""

from __future__ import annotations

from typing import Any

SHARE = {"cuda": 0.85, "mps": 0.7, "cpu": 0.5}  # of what is free, that a cache may take
WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "bad_alloc")
LOGITS = 3  # copies of a row's fp32 logits that picking a token holds at once


def cache_bytes(layers: int, kv_heads: int, head_dim: int, rows: int, length: int, width: int = 2) -> int:
    """Bytes of the keys and values of `rows` sequences of `length` tokens; `width`: bytes of a number."""
    return 2 * layers * kv_heads * head_dim * rows * length * width


def row_bytes(layers: int, kv_heads: int, head_dim: int, length: int, vocabulary: int, width: int = 2) -> int:
    """Bytes that decoding holds for one sequence: its cache, and its logits while a token is picked."""
    return cache_bytes(layers, kv_heads, head_dim, 1, length, width) + 4 * LOGITS * vocabulary


def free_bytes(device: Any) -> int:
    """Bytes that this process could still take on a torch device."""
    import torch

    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # cached, ours again at once
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    import psutil

    return int(psutil.virtual_memory().available)


def cache_budget(device: Any) -> int:
    """Bytes that a cache may take on a torch device as things are now."""
    return int(free_bytes(device) * SHARE.get(device.type, 0.5))


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory was refused, in the words of CUDA, MPS, the C++ or the Python allocator."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in WORDS)
