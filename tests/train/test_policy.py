"""The maths of a policy update against the papers' formulas, written out completion by completion in plain Python."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import pytest
import torch

from danlu.train.policy import (
    CLIPS,
    Objective,
    Scores,
    Step,
    advantages,
    clipped,
    corrections,
    deviations,
    flat,
    k3,
    loss_of,
    ratios,
)

KINDS = list(CLIPS)


def test_advantages_are_those_of_the_group() -> None:
    rewards = [[1.0, 0.0, 0.0, 2.0], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 1e-3]]
    for scale in (True, False):
        found = advantages(torch.tensor(rewards, dtype=torch.float64), scale)
        for row, group in zip(found.tolist(), rewards, strict=True):
            mean = sum(group) / 4
            std = math.sqrt(sum((r - mean) ** 2 for r in group) / 3)
            assert row == pytest.approx([(r - mean) / (std + 1e-4 if scale else 1) for r in group], abs=1e-12)


def test_a_masked_completion_has_no_part_in_its_group() -> None:
    none = math.nan
    rewards = torch.tensor([[1.0, none, 0.0, none], [none, none, none, none], [none, 3.0, none, none]])
    std = math.sqrt(0.5)
    wanted = [[0.5 / (std + 1e-4), 0, -0.5 / (std + 1e-4), 0], [0] * 4, [0] * 4]
    torch.testing.assert_close(advantages(rewards, True), torch.tensor(wanted))
    assert deviations(rewards)[:, 0].tolist() == pytest.approx([std, 0, 0])
    assert flat(rewards).tolist() == [False, True, True]


# ---- parts


LOGS = [-2.0, -1.0, -0.5, -3.0, -0.1, -1.5]


def test_clipping_takes_the_gradient_away_where_the_ratio_has_gone_far_enough() -> None:
    low, high = 0.2, 0.28
    new = torch.tensor(LOGS, dtype=torch.float64, requires_grad=True)
    old = new.detach() + torch.tensor([0.0, 0.5, -0.5, 0.5, -0.5, 0.1], dtype=torch.float64)
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -2.0], dtype=torch.float64)
    ratio = ratios(new, old, torch.tensor([6]), False)
    loss = clipped(ratio, advantage, low, high)
    wanted, gradient = [], []
    for n, o, a in zip(LOGS, old.tolist(), advantage.tolist(), strict=True):
        own = math.exp(n - o)
        bounded = min(max(own, 1 - low), 1 + high)
        wanted.append(-min(own * a, bounded * a))
        gradient.append(0.0 if bounded * a < own * a else -own * a)
    assert gradient.count(0.0) == 2
    assert loss.tolist() == pytest.approx(wanted, abs=1e-12)
    loss.sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx(gradient, abs=1e-12)


def test_k3_is_its_formula() -> None:
    new = torch.tensor(LOGS, dtype=torch.float64)
    ref = torch.tensor([-2.0, -0.5, -1.5, -3.0, -0.2, -1.0], dtype=torch.float64)
    pairs = zip(LOGS, ref.tolist(), strict=True)
    assert k3(new, ref).tolist() == pytest.approx([math.exp(r - n) - 1 - (r - n) for n, r in pairs], abs=1e-12)
    assert (k3(new, ref) >= 0).all()
    assert k3(new, new).tolist() == [0.0] * 6


def test_corrections_are_cut_off_and_leave_the_unknown_alone() -> None:
    old = torch.tensor([-1.0, -1.0, -1.0, -2.0])
    drawn = torch.tensor([-1.1, -2.5, math.nan, -1.0])
    sizes = torch.tensor([3, 1])
    assert corrections(old, drawn, sizes, "off", 2.0).tolist() == [1.0] * 4
    found = corrections(old, drawn, sizes, "token", 2.0)
    assert found.tolist() == pytest.approx([math.exp(0.1), 2.0, 1.0, math.exp(-1)])
    found = corrections(old, drawn, sizes, "sequence", 10.0)
    assert found.tolist() == pytest.approx([math.exp(1.6)] * 3 + [math.exp(-1)])


# ---- the loss


SIZES = [3, 1, 7, 4, 2]


def made(seed: int = 0) -> tuple[Scores, torch.Tensor]:
    """Random log-probs, new ones some way from the old, and advantages of both signs; fp64."""
    drawn = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> torch.Tensor:
        return torch.randn(sum(SIZES), generator=drawn, dtype=torch.float64) * scale

    old = -noise(1.0).abs()
    new = (old + noise(0.3)).requires_grad_()
    return Scores(new, old, old + noise(0.4), old + noise(0.5)), torch.tensor([1.0, -0.7, 0.4, -2.0, 0.0])


def written_out(objective: Objective, step: Step, scores: Scores, advantage: list[float]) -> tuple[float, dict]:
    """The loss and the clipped tokens, one token after another."""
    lists = [x.detach().tolist() for x in (scores.new, scores.old, scores.ref, scores.drawn) if x is not None]
    ends = [0, *accumulate(SIZES)]
    total, low, high = 0.0, 0, 0
    for row, a in enumerate(advantage):
        new, old, ref, drawn = (values[ends[row] : ends[row + 1]] for values in lists)
        size = len(new)
        whole_drift = math.exp(sum(o - d for o, d in zip(old, drawn, strict=True)))
        own = 0.0
        for n, o, r, d in zip(new, old, ref, drawn, strict=True):
            ratio = math.exp(n - o)
            if objective.loss == "gspo":
                ratio = math.exp(sum(x - y for x, y in zip(new, old, strict=True)) / size)
            low += ratio < 1 - objective.low and a < 0
            high += ratio > 1 + objective.high and a > 0
            bounded = min(max(ratio, 1 - objective.low), 1 + objective.high)
            weight = {"off": 1.0, "token": math.exp(o - d), "sequence": whole_drift}[objective.importance]
            loss = -min(ratio * a, bounded * a) * min(weight, objective.cap if objective.importance != "off" else 1.0)
            own += loss + objective.kl * (math.exp(r - n) - 1 - (r - n))
        if objective.loss in ("grpo", "gspo"):
            total += own / size / step.completions
        elif objective.loss == "dr_grpo":
            total += own / (step.completions * step.longest)
        else:
            total += own / step.tokens
    return total, {"clip_low": low, "clip_high": high}


OBJECTIVES = [
    *({"loss": kind} for kind in KINDS),
    *({"loss": kind, "kl": 0.3, "importance": "token", "cap": 1.3} for kind in KINDS),
    {"loss": "dapo", "importance": "sequence", "cap": 1.5},
]


@pytest.mark.parametrize("options", OBJECTIVES, ids=lambda o: " ".join(map(str, o.values())))
def test_each_loss_is_its_formula_and_its_gradient_the_numerical_one(options: dict[str, Any]) -> None:
    near = 0.02 if options["loss"] == "gspo" else 0.15  # ratios of whole completions stay closer to 1
    objective = Objective(**{"low": near, "high": near, **options})
    step = Step(tokens=40, completions=9, longest=16)  # more of the step is in other micro-batches
    scores, advantage = made()
    ref = scores.ref if objective.kl else None
    loss, sums = loss_of(
        objective, step, Scores(scores.new, scores.old, ref, scores.drawn), torch.tensor(SIZES), advantage
    )
    wanted, counts = written_out(objective, step, scores, advantage.tolist())
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-6)
    assert {name: int(sums[name]) for name in counts} == counts
    assert counts["clip_low"] > 0
    assert counts["clip_high"] > 0
    assert int(sums["tokens"]) == int(sums["known"]) == sum(SIZES)
    assert not any(value.requires_grad for value in sums.values())
    loss.backward()
    assert scores.new.grad is not None
    for place in (0, 3, 5, 12, 15):
        values = []
        for side in (1e-6, -1e-6):
            moved = scores.new.detach().clone()
            moved[place] += side
            values.append(
                written_out(objective, step, Scores(moved, scores.old, scores.ref, scores.drawn), advantage.tolist())[0]
            )
        assert float(scores.new.grad[place]) == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_step_is_cut_changes_nothing(kind: Any) -> None:
    objective = Objective(kind, kl=0.1, importance="sequence")
    step = Step(sum(SIZES), len(SIZES), 8)
    scores, advantage = made(1)
    lists = (scores.new, scores.old, scores.ref, scores.drawn)
    whole, sums = loss_of(objective, step, scores, torch.tensor(SIZES), advantage)
    ends = [0, *accumulate(SIZES)]
    parts = []
    for rows in ((0, 2), (2, 3), (3, 5)):
        tokens = slice(ends[rows[0]], ends[rows[1]])
        own = Scores(*(x[tokens] for x in lists if x is not None))
        parts.append(loss_of(objective, step, own, torch.tensor(SIZES[slice(*rows)]), advantage[slice(*rows)]))
    assert sum(float(loss.detach()) for loss, _ in parts) == pytest.approx(float(whole.detach()), rel=1e-6)
    for name in ("tokens", "clip_low", "kl", "difference"):
        assert sum(float(one[name]) for _, one in parts) == pytest.approx(float(sums[name]), rel=1e-6)
    assert max(float(one["largest"]) for _, one in parts) == float(sums["largest"])


@pytest.mark.parametrize("kind", KINDS)
def test_on_policy_only_the_gradient_counts(kind: Any) -> None:
    scores, advantage = made(2)
    new = scores.new.detach().requires_grad_()
    step = Step(sum(SIZES), len(SIZES), 8)
    loss, sums = loss_of(Objective(kind), step, Scores(new, new.detach()), torch.tensor(SIZES), advantage)
    assert int(sums["clip_low"]) == int(sums["clip_high"]) == 0
    loss.backward()
    assert new.grad is not None
    shares = step.shares(kind, torch.tensor(SIZES)).double()
    wanted = -(advantage.double() * shares).repeat_interleave(torch.tensor(SIZES))
    torch.testing.assert_close(new.grad, wanted, rtol=1e-5, atol=1e-9)


def test_a_longer_completion_weighs_as_its_loss_says() -> None:
    """Of two completions with equal advantage: by tokens in dapo and dr_grpo, the same in grpo and gspo."""
    sizes = torch.tensor([10, 30])
    step = Step(40, 2, 100)
    weight = {kind: (step.shares(kind, sizes) * sizes).tolist() for kind in KINDS}
    assert weight["dapo"] == pytest.approx([0.25, 0.75])
    assert weight["dr_grpo"] == pytest.approx([0.05, 0.15])
    assert weight["grpo"] == weight["gspo"] == pytest.approx([0.5, 0.5])
