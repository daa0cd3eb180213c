"""What a step gets, as pure functions of the seed and the step: its rows and its learning rate.

So a resumed run sees what an uninterrupted one would have seen, and so does one with other micro-batches. Rows are made
in this process, when their step comes: there are no data workers whose number or speed could change an order.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

from danlu.recipe import Optimizer


@lru_cache(maxsize=2)  # a step may lie in two epochs; shuffling many rows anew at every step would cost more than it
def _shuffled(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return order


def row_order(count: int, seed: int, first: int, last: int) -> list[tuple[int, int]]:
    """(epoch, row) at places first..last-1 of an endless stream of shuffled epochs over `count` rows."""
    found: list[tuple[int, int]] = []
    for epoch in range(first // count, (last - 1) // count + 1):
        low, high = max(first - epoch * count, 0), min(last - epoch * count, count)
        found += [(epoch, row) for row in _shuffled(count, seed, epoch)[low:high]]
    return found


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: linear warm-up, then constant, linear or cosine to zero."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, steps - warmup)
    factor = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}
    return settings.lr * factor[settings.schedule]
