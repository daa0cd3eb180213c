"""Packing: rows of different lengths put together into packs of at most `capacity` tokens, by best fit decreasing.

Longest row first, each into the fullest pack that still has room (Johnson 1974: at most 11/9 of the optimal number of
packs). Deterministic: of equal lengths the earlier row comes first, of equal packs the older one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Indices of the rows of each pack. ValueError for a row longer than `capacity`."""
    sizes = np.asarray(lengths, dtype=np.int64)
    if len(sizes) and sizes.max() > capacity:
        raise ValueError(f"a row of {sizes.max()} tokens does not fit into a pack of {capacity}")
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, pack), sorted
    for row in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[row])
        at = bisect_left(room, (size, -1))
        if at == len(room):
            packs.append([row])
            free, place = capacity - size, len(packs) - 1
        else:
            free, place = room.pop(at)
            packs[place].append(row)
            free -= size
        if free:
            insort(room, (free, place))
    return packs
