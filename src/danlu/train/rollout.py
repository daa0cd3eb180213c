"""Rollouts: groups of completions of one prompt, sampled from the policy, with their rewards and advantages.

A step asks the next prompts of an endless shuffled stream. With `resample` (dynamic sampling, Yu et al. 2025, DAPO)
groups whose rewards are all equal, which teach nothing, give way to groups of further prompts, for so many rounds at
most; figures are over all groups that were drawn, so that they say how the policy does and not what was picked.
Departure from DAPO: a round asks as many prompts as groups are missing, so nothing that was drawn is thrown away.

What is drawn depends on the seed, the number of the step and where the stream stands, which metrics.jsonl records.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from danlu.generate import Sampling
from danlu.generate.local import LocalGenerator
from danlu.recipe import Grpo
from danlu.records import Completion, Sample
from danlu.rewards import Rewards
from danlu.train import processes
from danlu.train.metrics import Clock
from danlu.train.policy import advantages, deviations, flat
from danlu.train.schedule import row_order

TOLD_GROUPS = 2  # groups of a step in samples.jsonl
TOLD_STEPS = 500  # steps that are told; of a longer run every so many-th
TOLD_TEXT = 8000  # characters of an output; of a longer one the beginning and the end


@dataclass
class Rollout:
    """One completion with its rewards; `old` and `ref` are per-token log-probs of earlier passes.

    A reward of None masks it: it has no advantage and carries no loss.
    """

    sample: Sample
    prompt: list[int]
    completion: Completion
    reward: float | None
    parts: dict[str, float | None]
    advantage: float = 0.0
    old: Tensor | None = None
    ref: Tensor | None = None

    def carries_loss(self, mask_truncated: bool) -> bool:
        """Whether it has a reward, has a token, and was not cut where that masks."""
        cut = self.completion.finish != "stop"
        return self.reward is not None and len(self.completion.tokens) > 0 and not (cut and mask_truncated)


Question = tuple[Sample, list[int]]  # with the ids of its prompt
Groups = dict[int, list[Rollout]]  # by the place of their prompt in the step


@dataclass(frozen=True, slots=True)
class Source:
    """What rollouts are drawn from: the policy, questions with their prompts' ids, opened rewards."""

    settings: Grpo
    seed: int
    generator: LocalGenerator
    questions: list[Question]
    rewards: Rewards


@dataclass(frozen=True, slots=True)
class Drawn:
    """The groups of a step; `flat` where all rewards of one are equal. `tokens`: all that were sampled, also in groups
    that gave way. `seen`: prompts taken from the stream so far."""

    groups: list[list[Rollout]]
    flat: list[bool]
    tokens: int
    seen: int
    figures: dict[str, Any]
    seconds: dict[str, float]  # "rollout_seconds", "reward_seconds"


def collect(
    source: Source,
    step: int,
    seen: int,
    breathe: Callable[..., Any] = lambda **_: None,
    together: Callable[[Callable[[], Groups]], list[Groups]] = lambda part: [part()],
) -> Drawn:
    """The groups of step `step`, with advantages, after `seen` prompts of the stream.

    `breathe` is called between parts of the work. Several processes share the prompts; `together` gives what each of
    them made. DanluError of a reward names it and the sample.
    """
    settings = source.settings
    clock = Clock()
    source.generator.loaded.model.eval()
    source.generator.refresh()
    groups: list[list[Rollout]] = []
    seconds = {"rollout_seconds": clock.lap(), "reward_seconds": 0.0}
    rounds, missing = 0, settings.prompts
    while True:
        order = row_order(len(source.questions), source.seed, seen, seen + missing)
        chosen = [source.questions[index] for _, index in order]
        mine = {len(groups) + i: chosen[i] for i in processes.own([1.0] * len(chosen))}
        made: Groups = {}
        for part in together(partial(_scored, source, mine, step, breathe, seconds)):
            made |= part
        groups += [made[place] for place in sorted(made)]
        seen += missing
        rewards = rewards_of(groups)
        equal = flat(rewards).tolist()
        missing = settings.prompts - equal.count(False)
        if missing <= 0 or rounds == settings.resample:
            break
        rounds += 1
        breathe(resampling=f"{missing} of {settings.prompts}")
    figures = described(groups, rewards)
    if settings.resample:
        figures["resampled"] = len(groups) - settings.prompts
    for group, row in zip(groups, advantages(rewards, scales(settings)).tolist(), strict=True):
        for rollout, value in zip(group, row, strict=True):
            rollout.advantage = value
    spare = max(0, missing)  # groups without variance that stay for want of others
    kept = [i for i, same in enumerate(equal) if not same or sum(equal[: i + 1]) <= spare]
    tokens = sum(len(rollout.completion.tokens) for group in groups for rollout in group)
    return Drawn([groups[i] for i in kept], [equal[i] for i in kept], tokens, seen, figures, seconds)


def scales(settings: Grpo) -> bool:
    """Whether advantages are divided by the group's standard deviation."""
    return settings.loss != "dr_grpo" if settings.scale_rewards == "auto" else settings.scale_rewards


def rewards_of(groups: list[list[Rollout]]) -> Tensor:
    """fp64 [groups, completions], NaN where a rollout is masked."""
    rows = [[math.nan if r.reward is None else r.reward for r in group] for group in groups]
    return torch.tensor(rows, dtype=torch.float64)


def _completions(
    source: Source,
    chosen: dict[int, Question],
    step: int,
    breathe: Callable[..., Any],
    seconds: dict[str, float],
) -> list[list[Completion]]:
    """A group for each chosen question, in their order, by its place in the step, which fixes its draws."""
    settings, clock = source.settings, Clock()
    sampling = Sampling(
        max_tokens=settings.max_completion,
        temperature=settings.temperature,
        top_p=settings.top_p,
        samples=settings.group,
        seed=source.seed * 1_000_003 + step,
    )
    keys = [f"{sample.id} {place}" for place, (sample, _) in chosen.items()]
    found: dict[int, list[Completion]] = {}
    for i, group in source.generator.generate([sample.messages for sample, _ in chosen.values()], sampling, keys):
        found[i] = group
        breathe(sampled=f"{len(found)}/{len(chosen)}")
    seconds["rollout_seconds"] += clock.lap()
    return [found[i] for i in range(len(chosen))]


def _scored(
    source: Source, chosen: dict[int, Question], step: int, breathe: Callable[..., Any], seconds: dict[str, float]
) -> Groups:
    """The rollouts of each chosen question, by its place in the step."""
    if not chosen:  # fewer prompts than processes
        return {}
    drawn = _completions(source, chosen, step, breathe, seconds)
    clock = Clock()
    samples = [sample for (sample, _), group in zip(chosen.values(), drawn, strict=True) for _ in group]
    completions = [one for group in drawn for one in group]
    scored = iter(source.rewards.score_all(samples, completions, source.generator.think))
    groups: Groups = {}
    for (place, (sample, prompt)), group in zip(chosen.items(), drawn, strict=True):
        points = [next(scored) for _ in group]
        groups[place] = [Rollout(sample, prompt, one, p.total, p.parts) for one, p in zip(group, points, strict=True)]
    seconds["reward_seconds"] += clock.lap()
    return groups


# ---- what is told of them


def described(groups: list[list[Rollout]], rewards: Tensor) -> dict[str, Any]:
    """Figures of some groups and their `rewards_of`, for metrics.jsonl."""
    rollouts = [rollout for group in groups for rollout in group]
    count = len(rollouts)
    lengths = [len(r.completion.tokens) for r in rollouts]
    parts = {}
    for name in rollouts[0].parts:
        values = torch.tensor([v for r in rollouts if (v := r.parts[name]) is not None], dtype=torch.float64)
        if len(values):
            parts[f"rewards/{name}"] = float(values.mean())
            parts[f"reward_std/{name}"] = float(values.std(correction=0))
    return {
        "reward": float(rewards.nanmean()) if rewards.isfinite().any() else None,
        "reward_std": float(deviations(rewards).mean()),
        **parts,
        "masked": sum(r.reward is None for r in rollouts) / count,
        "completion_length": sum(lengths) / count,
        "completion_length_max": max(lengths),
        "truncated": sum(r.completion.finish != "stop" for r in rollouts) / count,
        "zero_variance": float(flat(rewards).double().mean()),
    }


def told(step: int, steps: int, groups: list[list[Rollout]]) -> list[dict[str, Any]]:
    """Lines of samples.jsonl: all completions of a few groups, in a long run only of some steps."""
    if step % -(-steps // TOLD_STEPS):
        return []
    return [_line(step, rollout) for group in groups[:TOLD_GROUPS] for rollout in group]


def _line(step: int, rollout: Rollout) -> dict[str, Any]:
    text = rollout.completion.text
    if len(text) > TOLD_TEXT:
        text = f"{text[: TOLD_TEXT // 2]} […{len(text) - TOLD_TEXT} characters…] {text[-TOLD_TEXT // 2 :]}"
    return {
        "step": step,
        "id": rollout.sample.id,
        "question": rollout.sample.question,
        "target": rollout.sample.target,
        "output": text,
        "finish": rollout.completion.finish,
        "tokens": len(rollout.completion.tokens),
        "reward": rollout.reward,
        "rewards": rollout.parts,
        "advantage": round(rollout.advantage, 4),
    }
