"""Pick the next token of every row from its logits: greedy, or one uniform number turned into a token.

Method: the inverse of the cumulative distribution at a number drawn for this row and step, so that what a row says
does not depend on the batch. Cumulating is in two levels (blocks, then inside one block), and filters work on the
likeliest candidates alone, found by way of block maxima; only a row whose nucleus does not fit there is sorted whole.

The log-prob of a token is the model's own at the temperature (at 1 when greedy): before the repetition penalty and
before filters, so that a scoring pass without them gives the same.
Departure from transformers: the repetition penalty does not see padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from danlu.generate import Sampling

BLOCK = 64  # numbers of a block
CANDIDATES = (64, 2048)  # the nucleus is looked for among so many, then among all


def pick(logits: Tensor, sampling: Sampling, draws: Tensor | None, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(ids [B], log-probs [B]) of logits [B, V], which are overwritten.

    draws: uniform numbers [B] in [0, 1), not used when greedy. seen [B, V]: tokens in prompt and completion.
    """
    logits = logits.float()
    greedy = sampling.temperature == 0 or draws is None
    if not greedy and sampling.temperature != 1:
        logits.div_(sampling.temperature)
    penalised = None
    if seen is not None and sampling.repetition_penalty != 1:
        # a positive factor commutes with the temperature
        factor = torch.where(logits > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty)
        penalised = torch.where(seen, logits * factor, logits)
    if greedy:
        return _likeliest(logits, penalised)
    assert draws is not None
    own = _weights(logits)
    total = None if penalised is None else own.sum(-1)
    weights = own if penalised is None else _weights(penalised)
    if 0 < sampling.top_k < weights.shape[-1] or sampling.top_p < 1:
        total = weights.sum(-1) if total is None else total
        chosen = _among_candidates(weights, sampling, draws)
    elif sampling.min_p > 0:
        total = weights.sum(-1) if total is None else total
        chosen, _ = _drawn(weights.masked_fill_(weights < sampling.min_p, 0.0), draws)
    else:
        chosen, whole = _drawn(weights, draws)
        total = whole if total is None else total
    return chosen, (own.gather(-1, chosen[:, None]).squeeze(-1) / total).log()


def _likeliest(logits: Tensor, penalised: Tensor | None) -> tuple[Tensor, Tensor]:
    if penalised is None:
        top, chosen = logits.max(-1)
        return chosen, -logits.sub_(top[:, None]).exp_().sum(-1).log()
    chosen = penalised.argmax(-1)
    return chosen, logits.gather(-1, chosen[:, None]).squeeze(-1) - logits.logsumexp(-1)


def _weights(logits: Tensor) -> Tensor:
    """Probabilities up to a factor: 1 for the likeliest token; in place."""
    return logits.sub_(logits.amax(-1, keepdim=True)).exp_()


def _drawn(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The token [B] at which the cumulated weights [B, V] pass each draw's share of their sum [B]; and that sum."""
    size = weights.shape[-1]
    if size <= 8 * BLOCK:
        totals = weights.cumsum(-1)
        return _passed(totals, draws * totals[:, -1]), totals[:, -1]
    whole = size // BLOCK * BLOCK
    sums = weights[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
    if whole < size:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], -1)
    before = sums.cumsum(-1)
    target = draws * before[:, -1]
    block = _passed(before, target)
    left = target - (before - sums).gather(-1, block[:, None]).squeeze(-1)
    places = block[:, None] * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(-1, places.clamp(max=size - 1)).masked_fill_(places >= size, 0.0)
    return block * BLOCK + _passed(inside.cumsum(-1), left), before[:, -1]


def _passed(totals: Tensor, target: Tensor) -> Tensor:
    """The first place [B] whose total [B, N] is above the target [B]; always one that has a weight of its own."""
    last = totals[:, -1]
    target = torch.minimum(target, torch.nextafter(last, torch.zeros_like(last))).clamp_(min=0)
    return torch.searchsorted(totals, target[:, None], right=True).squeeze(-1)


def _among_candidates(weights: Tensor, sampling: Sampling, draws: Tensor) -> Tensor:
    """The token [B] drawn from weights [B, V] after top-k, top-p and min-p."""
    size = weights.shape[-1]
    if 0 < sampling.top_k < size:
        found, ids = top(weights, sampling.top_k)
        return _filtered(found, ids, found.sum(-1), sampling, draws)
    total = weights.sum(-1)
    chosen = torch.empty_like(draws, dtype=torch.long)
    rows = torch.arange(len(weights), device=weights.device)
    for wanted in (*(n for n in CANDIDATES if 2 * n < size), size):
        own = weights if len(rows) == len(weights) else weights[rows]
        found, ids = top(own, wanted) if wanted < size else own.sort(-1, descending=True)
        chosen[rows] = _filtered(found, ids, total[rows], sampling, draws[rows])
        rows = rows[found.sum(-1) < sampling.top_p * total[rows]] if wanted < size else rows[:0]
        if not len(rows):
            break
    return chosen


def _filtered(found: Tensor, ids: Tensor, total: Tensor, sampling: Sampling, draws: Tensor) -> Tensor:
    """Draw among candidates in descending order, of a distribution that sums to `total`."""
    if sampling.top_p < 1:
        above = found.cumsum(-1) - found  # what the likelier ones hold: the first one always stays
        found = found.masked_fill(above >= sampling.top_p * total[:, None], 0.0)
    if sampling.min_p > 0:
        found = found.masked_fill(found < sampling.min_p * found[:, :1], 0.0)
    return ids.gather(-1, _drawn(found, draws)[0][:, None]).squeeze(-1)


def top(weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row [B, V], descending, and their places; a few by way of the largest of each block."""
    size = weights.shape[-1]
    whole = size // BLOCK * BLOCK
    if weights.device.type != "cpu" or k * 4 * BLOCK > size:
        return weights.topk(k, -1)
    # the k largest lie in the k blocks with the largest maxima, or behind the last whole block
    blocks = weights[:, :whole].unflatten(-1, (-1, BLOCK))
    chosen = blocks.amax(-1).topk(k, -1).indices[..., None]
    inside = blocks.gather(1, chosen.expand(-1, -1, BLOCK)).flatten(1)
    places = (chosen * BLOCK + torch.arange(BLOCK)).flatten(1)
    if whole < size:
        inside = torch.cat([inside, weights[:, whole:]], -1)
        places = torch.cat([places, torch.arange(whole, size).expand(len(weights), -1)], -1)
    found, at = inside.topk(k, -1)
    return found, places.gather(-1, at)
