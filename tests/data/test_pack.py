from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.pack import pack

LENGTHS = st.lists(st.integers(1, 64), max_size=80)


@given(LENGTHS)
def test_every_row_is_in_one_pack_and_no_pack_is_too_full(lengths: list[int]):
    packs = pack(lengths, 64)
    assert sorted(row for own in packs for row in own) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in own) <= 64 for own in packs)


@given(LENGTHS)
def test_it_is_best_fit_decreasing(lengths: list[int]):
    """Against the rule itself, written without any index: the fullest pack with room, the oldest of equals."""
    plain: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        free = [64 - sum(lengths[r] for r in own) for own in plain]
        fits = [(room, place) for place, room in enumerate(free) if room >= lengths[row]]
        if fits:
            plain[min(fits)[1]].append(row)
        else:
            plain.append([row])
    assert pack(lengths, 64) == plain


def test_real_lengths_fill_their_packs():
    lengths = np.clip(np.random.default_rng(0).lognormal(6.5, 0.5, 5000), 50, 2048).astype(int)
    packs = pack(lengths, 2048)
    assert lengths.sum() / (len(packs) * 2048) > 0.97


def test_a_row_that_fits_nowhere_is_an_error():
    with pytest.raises(ValueError, match="a row of 65 tokens does not fit into a pack of 64"):
        pack([3, 65], 64)
    assert pack([], 64) == []
