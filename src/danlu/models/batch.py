"""Rows as training sees them: put one after another, without padding, with the places that carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from danlu.data.pack import pack
from danlu.data.render import IGNORE


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows: ids int64 [T]; `lengths` of the rows add up to T.

    `targets` int64 [N] are the supervised tokens in order; `places` int64 [N] are the positions that predict them,
    each one before its target. A row's first token is predicted by nothing and never a target.
    """

    ids: Tensor
    lengths: tuple[int, ...]
    places: Tensor
    targets: Tensor

    @property
    def positions(self) -> Tensor:
        """Place of every token in its own row, int64 [T]."""
        return torch.cat([torch.arange(length) for length in self.lengths]).to(self.ids.device)


def packed(rows: Sequence[tuple[Any, Any]], device: torch.device | str = "cpu") -> Batch:
    """The Batch of (tokens, labels), lists or integer arrays of equal length; labels are IGNORE where no loss is."""
    tokens = np.concatenate([np.asarray(own, dtype=np.int64) for own, _ in rows])
    labels = np.concatenate([np.asarray(own, dtype=np.int64) for _, own in rows])
    lengths = tuple(len(own) for own, _ in rows)
    if labels.shape != tokens.shape:
        raise ValueError(f"{len(tokens)} tokens and {len(labels)} labels")
    supervised = labels != IGNORE
    supervised[np.cumsum([0, *lengths[:-1]])] = False
    (at,) = supervised.nonzero()
    made = (torch.from_numpy(array).to(device, non_blocking=True) for array in (tokens, at - 1, labels[at]))
    ids, places, targets = made
    return Batch(ids, lengths, places, targets)


def padded(batch: Batch, pad: int) -> tuple[Tensor, Tensor]:
    """(ids [rows, longest] padded right with `pad`, mask [rows, longest] of the real tokens)."""
    sizes = torch.tensor(batch.lengths, device=batch.ids.device)
    mask = torch.arange(max(batch.lengths), device=batch.ids.device)[None] < sizes[:, None]
    ids = torch.full(mask.shape, pad, dtype=batch.ids.dtype, device=batch.ids.device)
    ids[mask] = batch.ids
    return ids, mask


def micro_batches(lengths: Sequence[int], capacity: int, *, padding: bool) -> list[list[int]]:
    """Indices of the rows of each forward: at most `capacity` tokens, or one row that is longer.

    Without padding rows are packed by best fit; with it, rows of similar length share a forward and every row counts
    as much as the longest.
    """
    if not lengths:
        return []
    if not padding:
        return pack(lengths, max(capacity, *lengths))
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    found: list[list[int]] = [[]]
    for row in order:
        if found[-1] and (len(found[-1]) + 1) * lengths[row] > capacity:
            found.append([])
        found[-1].append(row)
    return found
