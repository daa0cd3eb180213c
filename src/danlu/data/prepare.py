"""From a recipe to the rows that are trained on: sources concatenated, system prompt added, shuffled, split.

`prepare` is for SFT, `prompts` for GRPO. Training rows that ask a validation question again, word for word, are
removed and counted. Every row read ends in exactly one place: train, valid, rejected, or that count.
Not covered: near-duplicates and leakage into benchmarks (the data check reports them).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from danlu import domains
from danlu.data.sources import Needs, Reject, load, rows_digest, unique_ids
from danlu.errors import DanluError
from danlu.recipe import Recipe, Source
from danlu.records import Sample


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows of a stage. `hashes`: split -> short hash of its rows in order.

    `counts`: in, train, valid, rejected, repeats_of_valid; `in` is the sum of the others.
    """

    train: list[Sample]
    valid: list[Sample]
    rejected: list[Reject]
    hashes: dict[str, str]
    counts: dict[str, int]


def prepare(recipe: Recipe) -> Prepared:
    """Training and validation rows of an SFT recipe, each with an answer.

    DanluError when data.train is empty, a source cannot be read, or no training row is left.
    """
    data = recipe.data
    if not data.train:
        raise DanluError("data.train names no rows", "add data: {train: FILE} to the recipe")
    train, rejected = _gather(recipe, data.train, "answer")
    read = len(train) + len(rejected)
    train = _shuffled(train, data.shuffle_seed)
    valid: list[Sample] = []
    if data.valid:
        valid, bad = _gather(recipe, data.valid, "answer")
        read += len(valid) + len(bad)
        rejected += bad
    elif data.valid_fraction and len(train) > 1:
        size = min(max(1, round(data.valid_fraction * len(train))), len(train) - 1)
        valid, train = train[:size], train[size:]
    asked = {_question_key(row) for row in valid}
    kept = [row for row in train if _question_key(row) not in asked]
    if not kept:
        raise DanluError(
            f"no training row is left of {read} read",
            "every one was rejected or asks a validation question; see on_bad_row, valid and valid_fraction",
        )
    return _prepared(kept, valid, rejected, read)


def prompts(recipe: Recipe, sources: list[Source]) -> Prepared:
    """Rows of `sources` with a gold target, in shuffled order, as `train`; `valid` is empty.

    A row without a target is a bad row: an error, or a reject with data.on_bad_row=skip.
    """
    rows, rejected = _gather(recipe, sources, "target")
    if not rows:
        raise DanluError("there are no prompts with a gold target", "give grpo.data rows with a target")
    return _prepared(_shuffled(rows, recipe.data.shuffle_seed), [], rejected, len(rows) + len(rejected))


def _gather(recipe: Recipe, sources: list[Source], needs: Needs) -> tuple[list[Sample], list[Reject]]:
    domain = domains.load(recipe.domain)
    rows: list[Sample] = []
    rejected: list[Reject] = []
    for source in sources:
        loaded = load(source, domain, on_bad_row=recipe.data.on_bad_row, needs=needs)
        rows += loaded.rows
        rejected += loaded.rejected
    return [with_system(row, recipe.data.system) for row in unique_ids(rows)], rejected


def with_system(row: Sample, system: str | None) -> Sample:
    """The row with the system prompt in front, if it has none of its own."""
    if not system or row.messages[0]["role"] == "system":
        return row
    return replace(row, messages=({"role": "system", "content": system}, *row.messages))


def _shuffled(rows: list[Sample], seed: int) -> list[Sample]:
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[index] for index in order]


def _question_key(row: Sample) -> tuple[str, ...]:
    """What is asked: the turns without the system prompt."""
    return tuple(turn["content"].strip() for turn in row.messages if turn["role"] != "system")


def _prepared(train: list[Sample], valid: list[Sample], rejected: list[Reject], read: int) -> Prepared:
    sizes = {"train": len(train), "valid": len(valid), "rejected": len(rejected)}
    counts = {"in": read, **sizes, "repeats_of_valid": read - sum(sizes.values())}
    hashes = {"train": rows_digest(train)} | ({"valid": rows_digest(valid)} if valid else {})
    return Prepared(train, valid, rejected, hashes, counts)
