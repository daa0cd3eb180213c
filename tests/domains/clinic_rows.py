"""Rows of the clinic's splits, made once for all tests."""

from __future__ import annotations

from functools import cache

from danlu.domains.medical.clinic import vignettes
from danlu.domains.medical.clinic.knowledge import knowledge
from danlu.records import Sample

SIZES = {"sft": 240, "grpo": 360, "answers": 360, "dev": 96, "test-seen": 144, "test-unseen": 144, "test": 144}


@cache
def rows(split: str, seed: int = 0) -> tuple[Sample, ...]:
    """Rows of a split."""
    return tuple(vignettes.samples(split, SIZES[split], seed))


def pair(row: Sample) -> tuple[str, frozenset[str]]:
    """What identifies a vignette: its condition and those of its findings that the condition has."""
    condition = row.meta["condition"]
    return condition, frozenset(knowledge().matched(condition, row.meta["findings"]))
