"""Accuracy on held-out questions while a model trains: greedy answers, right and well-formed ones count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from danlu.generate import Sampling
from danlu.generate.local import LocalGenerator
from danlu.records import Sample
from danlu.rewards.verify import verify


def accuracy(
    generator: LocalGenerator, samples: list[Sample], max_tokens: int, breathe: Callable[..., Any] | None = None
) -> float:
    """Share of `samples` answered right and well-formed; `breathe(answered="7/80")` is called after every batch."""
    generator.loaded.model.eval()
    generator.refresh()
    right = 0
    for done, (place, found) in enumerate(generator.generate([s.messages for s in samples], Sampling(max_tokens)), 1):
        right += found[0].well_formed and verify(samples[place], found[0]).outcome == "right"
        if breathe is not None:
            breathe(answered=f"{done}/{len(samples)}")
    return right / len(samples)
