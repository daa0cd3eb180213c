"""The maths of a policy update: tensors in, loss and figures out.

Tokens of several completions lie one after another, [N]; `sizes` [R] says how many each of the R completions has.

    r      ratio of a token: exp(new - old); gspo: exp(mean of new - old over its completion) for all its tokens
    loss   -min(r A, clip(r, 1 - low, 1 + high) A) x w + kl (exp(ref - new) - 1 - (ref - new))

    grpo      mean over completions of the mean over their tokens (Shao et al. 2024, DeepSeekMath)
    dr_grpo   sum / (completions x longest possible), so that length is not rewarded (Liu et al. 2025, Dr. GRPO)
    dapo      sum / all tokens (Yu et al. 2025, DAPO)
    gspo      as grpo with the ratio of whole completions (Zheng et al. 2025, GSPO)

A is the advantage of the completion. w corrects for decoding with other numerics than those of training: exp(old -
drawn), cut off at a cap (truncated importance sampling, Yao et al. 2025), of each token or of the whole completion.
The KL is Schulman's k3 (2020), not weighted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossKind = Literal["grpo", "dr_grpo", "dapo", "gspo"]
CLIPS: Mapping[LossKind, tuple[float, float]] = {  # of the papers: low, high
    "grpo": (0.2, 0.2),
    "dr_grpo": (0.2, 0.2),
    "dapo": (0.2, 0.28),
    "gspo": (3e-4, 4e-4),
}


@dataclass(frozen=True, slots=True)
class Objective:
    """What an update minimises; see the head of this module."""

    loss: LossKind = "dapo"
    low: float = 0.2
    high: float = 0.28
    kl: float = 0.0
    importance: Literal["off", "token", "sequence"] = "off"
    cap: float = 2.0


# ---- advantages


def advantages(rewards: Tensor, scale: bool) -> Tensor:
    """Group-relative advantages of rewards [groups, completions]; with `scale` divided by the group's std + 1e-4.

    NaN is a masked completion: the group's mean and std are those of the others, its own advantage is 0.
    """
    centred = rewards - rewards.nanmean(1, keepdim=True)
    scaled = centred / (deviations(rewards) + 1e-4) if scale else centred
    return scaled.nan_to_num(0.0)


def deviations(rewards: Tensor) -> Tensor:
    """Standard deviation (n - 1) of each group [groups, 1] without NaN; 0 for fewer than two numbers."""
    counts = (~rewards.isnan()).sum(1, keepdim=True)
    squares = (rewards - rewards.nanmean(1, keepdim=True)).nan_to_num(0.0).pow(2).sum(1, keepdim=True)
    return (squares / (counts - 1).clamp(min=1)).sqrt()


def flat(rewards: Tensor) -> Tensor:
    """Whether all rewards of a group are equal (or masked), bool [groups]: its advantages are 0."""
    return deviations(rewards)[:, 0] < 1e-9


# ---- parts of the loss


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """-min(r A, clip(r) A), elementwise."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def k3(new: Tensor, ref: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(new || ref) per token: r - 1 - log r with log r = ref - new; never negative."""
    difference = ref - new
    return torch.exp(difference) - 1 - difference


def ratios(new: Tensor, old: Tensor, sizes: Tensor, whole: bool) -> Tensor:
    """exp(new - old) [N] of each token; with `whole` of the mean over its completion."""
    difference = new - old
    if whole:
        difference = _spread(torch.segment_reduce(difference, "mean", lengths=sizes), sizes, len(new))
    return torch.exp(difference)


def corrections(
    old: Tensor, drawn: Tensor, sizes: Tensor, level: Literal["off", "token", "sequence"], cap: float
) -> Tensor:
    """Importance weights [N] of tokens that were drawn with log-probs `drawn`, 1 where that is NaN."""
    if level == "off":
        return torch.ones_like(old)
    difference = (old - drawn).detach().nan_to_num(0.0)
    if level == "sequence":
        difference = _spread(torch.segment_reduce(difference, "sum", lengths=sizes), sizes, len(old))
    return torch.exp(difference).clamp(max=cap)


def _spread(values: Tensor, sizes: Tensor, tokens: int) -> Tensor:
    """A value for each completion [R], given to each of its tokens [N]; no device is waited for."""
    return values.repeat_interleave(sizes, output_size=tokens)


# ---- the loss


@dataclass(frozen=True, slots=True)
class Step:
    """What the loss of a whole step is divided by, whatever micro-batches it is cut into."""

    tokens: int  # of the completions that carry loss
    completions: int  # that have a reward, cut ones included
    longest: int  # tokens that a completion may have

    def shares(self, loss: LossKind, sizes: Tensor) -> Tensor:
        """What one token of each completion [R] counts for, fp32 [R]."""
        if loss in ("grpo", "gspo"):
            return 1.0 / (sizes.float() * max(1, self.completions))
        if loss == "dr_grpo":
            return torch.full(sizes.shape, 1.0 / max(1, self.completions * self.longest), device=sizes.device)
        return torch.full(sizes.shape, 1.0 / max(1, self.tokens), device=sizes.device)


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probs of the tokens of some completions, fp32 [N]: now, before the step's first update, of the reference,
    and as they were drawn."""

    new: Tensor
    old: Tensor
    ref: Tensor | None = None
    drawn: Tensor | None = None


def loss_of(
    objective: Objective, step: Step, scores: Scores, sizes: Tensor, advantage: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """(this micro-batch's part of the step's loss, sums over its tokens by name) of sizes, advantage [R].

    The sums have no gradient: `tokens`, `clip_low`, `clip_high`, `kl`, and with drawn log-probs `difference`
    (|old - drawn|), `known` (tokens that have one), `capped` (importance weights cut off) and `largest` (no sum).
    """
    count = len(scores.new)
    of_token = _spread(advantage.to(scores.new.dtype), sizes, count)
    ratio = ratios(scores.new, scores.old, sizes, objective.loss == "gspo")
    per_token = clipped(ratio, of_token, objective.low, objective.high)
    sums = {
        "tokens": torch.full((), float(count), device=ratio.device),
        "clip_low": ((ratio < 1 - objective.low) & (of_token < 0)).sum(),
        "clip_high": ((ratio > 1 + objective.high) & (of_token > 0)).sum(),
    }
    if scores.drawn is not None:
        weight = corrections(scores.old, scores.drawn, sizes, objective.importance, objective.cap)
        per_token = per_token * weight
        apart = (scores.old - scores.drawn).detach().abs()
        sums["known"] = (~apart.isnan()).sum()
        sums["difference"], sums["largest"] = apart.nansum(), apart.nan_to_num(0.0).amax()
        if objective.importance != "off":
            sums["capped"] = (weight >= objective.cap).sum()
    if scores.ref is not None:
        divergence = k3(scores.new, scores.ref)
        per_token = per_token + objective.kl * divergence
        sums["kl"] = divergence.detach().sum()
    return (per_token * _spread(step.shares(objective.loss, sizes), sizes, count)).sum(), sums
