"""Rows as training sees them: put one after another, without padding, with the places that carry loss.

A row may go on where another one ends (`branched`): the prompt of several completions is then there once.
"""

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
    each one before its target. A row's first token is predicted by nothing and never a target, unless the row has a
    parent: `parents` names for each row the earlier one that it continues, or -1 (empty: all -1). A parent has none.
    """

    ids: Tensor
    lengths: tuple[int, ...]
    places: Tensor
    targets: Tensor
    parents: tuple[int, ...] = ()

    @property
    def positions(self) -> Tensor:
        """Place of every token in its own row, counted from the start of its parent, int64 [T]."""
        parents = self.parents or (-1,) * len(self.lengths)
        before = [self.lengths[parent] if parent >= 0 else 0 for parent in parents]
        found = [torch.arange(start, start + size) for start, size in zip(before, self.lengths, strict=True)]
        return torch.cat(found).to(self.ids.device)


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


def branched(groups: Sequence[tuple[Any, Sequence[Any]]], device: torch.device | str = "cpu") -> Batch:
    """The Batch of (prompt, its completions), token ids, none empty; every token of a completion is a target."""
    rows: list[Any] = []
    parents: list[int] = []
    places: list[np.ndarray] = []
    at = 0
    for prompt, completions in groups:
        last, parent = at + len(prompt) - 1, len(rows)
        at += len(prompt)
        for own in completions:
            places += [np.array([last]), np.arange(at, at + len(own) - 1)]
            at += len(own)
        rows += [prompt, *completions]
        parents += [-1] + [parent] * len(completions)
    arrays = [np.asarray(row, dtype=np.int64) for row in rows]
    targets = [row for row, parent in zip(arrays, parents, strict=True) if parent >= 0]
    whole = (np.concatenate(parts) for parts in (arrays, places, targets))
    ids, where, wanted = (torch.from_numpy(array).to(device, non_blocking=True) for array in whole)
    return Batch(ids, tuple(len(row) for row in arrays), where, wanted, tuple(parents))


def padded(batch: Batch, pad: int) -> tuple[Tensor, Tensor]:
    """(ids [rows, longest] padded right with `pad`, mask [rows, longest] of the real tokens)."""
    if batch.parents:
        raise ValueError("rows that continue others cannot be padded")
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
