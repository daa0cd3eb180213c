"""Rewards: pure functions of (sample, completion, think-format), found by name in the plain dict REWARDS.

A recipe names them (`grpo.rewards`); `total` weighs them. `answer` is what we train with: it verifies the answer part
and pays only for a well-formed completion, so that nothing cheaper than a right answer earns it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from danlu.errors import DanluError
from danlu.recipe import RewardSpec
from danlu.records import Completion, Sample
from danlu.rewards import published
from danlu.rewards.verify import verify
from danlu.think import ThinkFormat

Reward = Callable[[Sample, Completion, ThinkFormat], float]


def answer(sample: Sample, completion: Completion, _think: ThinkFormat) -> float:
    """1.0 for a right answer in a well-formed completion, else 0. DanluError without a target."""
    return float(verify(sample, completion).outcome == "right" and completion.well_formed)


def think_format(_sample: Sample, completion: Completion, _think: ThinkFormat) -> float:
    """1.0 for a well-formed completion that ended by itself, else 0."""
    return float(completion.well_formed and completion.finish == "stop")


def stop(_sample: Sample, completion: Completion, _think: ThinkFormat) -> float:
    """1.0 for a completion that ended by itself, else 0."""
    return float(completion.finish == "stop")


REWARDS: dict[str, Reward] = {
    "xmlcount": published.xmlcount,
    "soft_format": published.soft_format,
    "strict_format": published.strict_format,
    "int": published.is_int,
    "correctness": published.correctness,
    "answer": answer,
    "think_format": think_format,
    "stop": stop,
}


def total(
    sample: Sample,
    completion: Completion,
    think: ThinkFormat,
    specs: Sequence[RewardSpec],
    rewards: dict[str, Reward] = REWARDS,
) -> tuple[float, dict[str, float]]:
    """(weighted sum, each reward before its weight) of one completion.

    DanluError names the reward and the sample where a reward raises or gives no finite number.
    """
    parts: dict[str, float] = {}
    for spec in specs:
        try:
            parts[spec.name] = float(rewards[spec.name](sample, completion, think))
        except DanluError:
            raise
        except Exception as error:
            raise DanluError(
                f"reward {spec.name!r} failed on sample {sample.id}: {type(error).__name__}: {error}",
                "a reward must give a number for every text",
            ) from error
        if not math.isfinite(parts[spec.name]):
            raise DanluError(
                f"reward {spec.name!r} gave {parts[spec.name]} on sample {sample.id}",
                "a reward must give a finite number for every text",
            )
    return sum(spec.weight * parts[spec.name] for spec in specs), parts
