"""Packed rows: which places carry loss, what padding gives back, which rows share a forward."""

from __future__ import annotations

import random

import pytest
import torch

from danlu.data.render import IGNORE
from danlu.models.batch import branched, micro_batches, packed, padded

N = IGNORE


def test_places_come_before_their_targets() -> None:
    batch = packed([([1, 2, 3], [N, 2, 3]), ([4], [N]), ([5, 6], [N, 6])])
    assert batch.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.lengths == (3, 1, 2)
    assert batch.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.places.tolist() == [0, 1, 4]
    assert batch.targets.tolist() == [2, 3, 6]


def test_a_first_token_is_never_a_target() -> None:
    """Else a row would be predicted from the end of the one before it."""
    batch = packed([([1, 2], [1, 2]), ([3, 4], [3, 4])])
    assert batch.places.tolist() == [0, 2]
    assert batch.targets.tolist() == [2, 4]


def test_padded() -> None:
    ids, mask = padded(packed([([1, 2, 3], [N, 2, 3]), ([4], [N])]), 9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[True] * 3, [True, False, False]]
    assert torch.equal(ids[mask], torch.tensor([1, 2, 3, 4]))


def test_branched_rows_go_on_where_their_prompt_ends() -> None:
    batch = branched([([1, 2, 3], [[4, 5], [6]]), ([7], [[8, 9, 10]])])
    assert batch.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert batch.lengths == (3, 2, 1, 1, 3)
    assert batch.parents == (-1, 0, 0, -1, 3)
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2, 3]
    assert batch.targets.tolist() == [4, 5, 6, 8, 9, 10]
    assert batch.places.tolist() == [2, 3, 2, 6, 7, 8]
    with pytest.raises(ValueError, match="cannot be padded"):
        padded(batch, 0)


def test_labels_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="3 tokens and 2 labels"):
        packed([([1, 2, 3], [N, 2])])


@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_micro_batches_hold_every_row_once_and_keep_to_the_capacity(padding: bool, seed: int) -> None:
    drawn = random.Random(seed)
    lengths = [drawn.randint(1, 60) for _ in range(40)] + [150]
    found = micro_batches(lengths, 100, padding=padding)
    assert sorted(row for part in found for row in part) == list(range(41))
    for part in found:
        own = [lengths[row] for row in part]
        size = max(own) * len(own) if padding else sum(own)
        assert size <= (100 if padding else 150) or len(part) == 1
    assert micro_batches([], 100, padding=padding) == []
