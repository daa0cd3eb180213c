"""The GRPO stage: groups of rollouts, group-normalised advantages, a clipped update (Shao et al. 2024, DeepSeekMath).

A step: `prompts` questions, `group` completions each; rewards; advantage = (reward - mean) / (std + 1e-4) inside the
group; loss = -sum over tokens of min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) / all completion tokens of the
step (DAPO's token average, Yu et al. 2025), plus `kl` times the k3 estimate (Schulman 2020) of the KL to the model
without the adapter that is trained.

Departures: groups in which all rewards are equal have no gradient and are left out of the forward (the denominator
keeps their tokens; with KL they stay in); truncated completions carry no loss (`mask_truncated`). With one iteration
a step is on-policy: the ratio is exactly 1 and only its gradient counts.
Not covered yet: several loss types, dynamic sampling, a shared-prefix forward.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from danlu import display
from danlu.data.encode import encode
from danlu.data.prepare import prompts, write_rejected
from danlu.data.render import IGNORE, prompt_text
from danlu.errors import DanluError
from danlu.generate import Sampling
from danlu.generate.local import LocalGenerator
from danlu.models.batch import Batch, packed
from danlu.models.load import load, reference
from danlu.recipe import Grpo, Recipe
from danlu.records import Completion, Sample
from danlu.rewards import Rewards, Scored
from danlu.run import Run
from danlu.train import memory, trackers
from danlu.train.deliver import deliver
from danlu.train.loop import Loop
from danlu.train.metrics import Clock
from danlu.train.schedule import learning_rate, row_order
from danlu.train.watch import accuracy


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


def policy_loss(new: Tensor, old: Tensor, advantage: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """(loss per token, whether it was clipped) of log-probs and advantages of the same shape."""
    ratio = torch.exp(new - old)
    plain, clipped = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage
    return -torch.minimum(plain, clipped), (clipped < plain).detach()


def k3(new: Tensor, ref: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(new || ref) per token: r - 1 - log r with log r = ref - new; never negative."""
    difference = ref - new
    return torch.exp(difference) - 1 - difference


def grpo(recipe: Recipe, run: Run, start: str | None = None) -> dict[str, Any]:
    """Train on rewards into run.artifact; what happened as a dict of results.

    DanluError for data or settings that cannot work; Stopped when interrupted (resumable).
    """
    settings = recipe.grpo
    trackers.check(settings.track)
    if settings.patience and not settings.valid:
        raise DanluError("grpo.patience needs held-out questions", "give grpo.valid")
    prepared = prompts(recipe, settings.data or recipe.data.train)
    write_rejected(run, prepared)
    loaded = load(
        recipe.model,
        start,
        seed=recipe.seed,
        lora=settings.lora if settings.method == "lora" else None,
        train=True,
        gradient_checkpointing=settings.gradient_checkpointing is True,
    )
    questions, dropped = _short_enough(loaded, prepared.train, settings.max_prompt)
    if dropped:
        display.warn(
            f"{dropped} of {len(prepared.train)} prompts are longer than {settings.max_prompt} tokens: dropped"
        )
    if not questions:
        raise DanluError(f"no prompt fits into grpo.max_prompt = {settings.max_prompt} tokens", "raise it")
    held_out = prompts(recipe, settings.valid).train if settings.valid else []
    run.record(
        data_hash=prepared.hashes["train"], rows=len(questions), counts=prepared.counts, dropped_overlong=dropped
    )
    loop = Loop(run, settings, loaded, settings.steps, largest_is_best=True)
    loop.resume()
    generator = LocalGenerator(loaded, name=run.name, batch=settings.rollout_batch)
    rewards = Rewards(settings.rewards, settings.gate)

    def step() -> dict[str, Any]:
        row = _step(loop, recipe, generator, questions, rewards)
        return {"reward": row["reward"], "length": row["completion_length"]}

    def evaluate() -> dict[str, float]:
        return {"eval_accuracy": accuracy(generator, held_out, settings.max_completion, loop.breathe)}

    with rewards:
        loop.go("grpo", step, evaluate if held_out else None, "eval_accuracy", settings.keep_best)
    if settings.keep_best:
        loop.use_best()
    deliver(loop, recipe)
    return {
        "steps": loop.step,
        "reward": loop.last("reward").get("reward"),
        "best_eval_accuracy": loop.best_value,
        "best_step": loop.best_step if held_out else None,
        "stopped_early": loop.stopped_early,
        "tokens": loop.tokens,
        "halvings": loop.halvings,
        "peak_memory_bytes": memory.peak(),
    }


def _short_enough(loaded: Any, samples: list[Sample], limit: int) -> tuple[list[tuple[Sample, list[int]]], int]:
    texts = [prompt_text(loaded.tokenizer, loaded.think, sample.messages) for sample in samples]
    found = encode(loaded.tokenizer, texts)
    kept = [(s, ids.tolist()) for s, ids in zip(samples, found, strict=True) if len(ids) <= limit]
    return kept, len(samples) - len(kept)


def _step(
    loop: Loop,
    recipe: Recipe,
    generator: LocalGenerator,
    questions: list[tuple[Sample, list[int]]],
    opened: Rewards | None = None,
) -> dict:
    """Rollouts, rewards and `iterations` updates; the row that was logged."""
    settings, clock = recipe.grpo, Clock()
    first = loop.step // settings.iterations * settings.prompts
    chosen = [questions[index] for _, index in row_order(len(questions), recipe.seed, first, first + settings.prompts)]
    rollouts = _rollouts(loop, recipe, generator, chosen, opened)
    seconds = {"rollout_seconds": clock.lap()}
    numbers = [math.nan if r.reward is None else r.reward for r in rollouts]
    rewards = torch.tensor(numbers, dtype=torch.float64).view(-1, settings.group)
    scaled = advantages(rewards, settings.scale_rewards).flatten().tolist()
    for rollout, value in zip(rollouts, scaled, strict=True):
        rollout.advantage = value
    flat = deviations(rewards)[:, 0] < 1e-9
    row = _described(rollouts, rewards, flat) | (opened.usage() if opened else {})
    used = [r for i, r in enumerate(rollouts) if settings.kl > 0 or not flat[i // settings.group]]
    used = [r for r in used if _counts(r, settings)]
    tokens = sum(len(r.completion.tokens) for r in rollouts if _counts(r, settings))
    figures = _updates(loop, settings, used, tokens)
    seconds["update_seconds"] = clock.lap()
    loop.tokens += sum(len(r.completion.tokens) for r in rollouts)
    row = {"step": loop.step, **row, **figures, **{k: round(v, 3) for k, v in seconds.items()}, **loop.measures()}
    loop.log(row)
    loop.run.write_samples([_told(loop.step, r) for r in rollouts[: settings.group]])
    return row


def _counts(rollout: Rollout, settings: Grpo) -> bool:
    """Whether a rollout carries loss: it has a reward, and was not cut where that masks."""
    return rollout.reward is not None and (rollout.completion.finish == "stop" or not settings.mask_truncated)


def _rollouts(
    loop: Loop,
    recipe: Recipe,
    generator: LocalGenerator,
    chosen: list[tuple[Sample, list[int]]],
    opened: Rewards | None = None,
) -> list[Rollout]:
    """The groups of a step, in the order of their prompts; rewards that are not `opened` yet are, for this step."""
    settings = recipe.grpo
    sampling = Sampling(
        settings.max_completion,
        settings.temperature,
        settings.top_p,
        settings.group,
        recipe.seed * 1_000_003 + loop.step,
    )
    loop.loaded.model.eval()
    generator.refresh()
    keys = [f"{sample.id} {place}" for place, (sample, _) in enumerate(chosen)]
    found = {}
    for place, group in generator.generate([sample.messages for sample, _ in chosen], sampling, keys):
        found[place] = group
        loop.breathe()
    drawn = [(*chosen[place], completion) for place in range(len(chosen)) for completion in found[place]]
    samples, completions = [sample for sample, _, _ in drawn], [completion for _, _, completion in drawn]
    with contextlib.ExitStack() as stack:
        rewards = opened or stack.enter_context(Rewards(settings.rewards, settings.gate))
        scored: list[Scored] = rewards.score_all(samples, completions, loop.loaded.think)
    return [Rollout(*one, points.total, points.parts) for one, points in zip(drawn, scored, strict=True)]


def _described(rollouts: list[Rollout], rewards: Tensor, flat: Tensor) -> dict[str, Any]:
    """Figures of a step's rollouts."""
    count = len(rollouts)
    lengths = [len(r.completion.tokens) for r in rollouts]
    parts = {}
    for name in rollouts[0].parts:
        values = [value for r in rollouts if (value := r.parts[name]) is not None]
        if values:
            parts[f"rewards/{name}"] = sum(values) / len(values)
    return {
        "reward": float(rewards.nanmean()) if rewards.isfinite().any() else None,
        "reward_std": float(deviations(rewards).mean()),
        **parts,
        "masked": sum(r.reward is None for r in rollouts) / count,
        "completion_length": sum(lengths) / count,
        "completion_length_max": max(lengths),
        "truncated": sum(r.completion.finish != "stop" for r in rollouts) / count,
        "zero_variance": float(flat.double().mean()),
    }


def _updates(loop: Loop, settings: Grpo, used: list[Rollout], tokens: int) -> dict[str, float]:
    """`iterations` optimizer steps on the rollouts; the figures of the last one."""
    figures = {"loss": 0.0, "grad_norm": 0.0, "kl": 0.0, "clip_fraction": 0.0, "lr": 0.0}
    used = sorted(used, key=lambda r: len(r.prompt) + len(r.completion.tokens))
    batches = _batches(settings, used, loop.halvings)
    if settings.iterations > 1:
        _remember(loop, settings, batches, "old")
    if settings.kl > 0:
        with reference(loop.loaded.model):
            _remember(loop, settings, batches, "ref")
    for _ in range(min(settings.iterations, loop.steps - loop.step)):
        sums: dict[str, Any] = {}
        figures["lr"] = learning_rate(settings.optimizer, loop.step, loop.steps)
        if batches:
            losses = partial(_losses, loop, settings, used, tokens, sums)
            figures["loss"], figures["grad_norm"] = loop.update(losses, list(dict.fromkeys(r.sample.id for r in used)))
        else:  # nothing to learn from this step
            loop.step += 1
        if sums.get("tokens"):
            figures["kl"] = float(sums["kl"]) / sums["tokens"]
            figures["clip_fraction"] = float(sums["clipped"]) / sums["tokens"]
    return figures


def _batches(settings: Grpo, used: list[Rollout], halvings: int) -> list[list[Rollout]]:
    size = max(1, settings.micro_batch >> halvings)
    return [used[at : at + size] for at in range(0, len(used), size)]


def _losses(
    loop: Loop, settings: Grpo, used: list[Rollout], tokens: int, sums: dict[str, Any], halvings: int
) -> Iterator[Callable[[], Tensor]]:
    """Losses of the micro-batches; `sums` starts anew, also when memory ran out half-way through a step."""
    sums.update(kl=0.0, clipped=0.0, tokens=0)
    for batch in _batches(settings, used, halvings):
        yield _loss_of(loop, settings, batch, tokens, sums)


def _packed(loop: Loop, batch: list[Rollout]) -> Batch:
    rows = [([*r.prompt, *r.completion.tokens], [IGNORE] * len(r.prompt) + list(r.completion.tokens)) for r in batch]
    return packed(rows, loop.accelerator.device)


@torch.no_grad()
def _remember(loop: Loop, settings: Grpo, batches: list[list[Rollout]], name: str) -> None:
    """Store the log-probs of the model as it is now on each rollout."""
    loop.loaded.model.eval()
    for batch in batches:
        with loop.accelerator.autocast():
            found, _ = loop.logprobs(_packed(loop, batch), settings.temperature)
        sizes = [len(r.completion.tokens) for r in batch]
        for rollout, part in zip(batch, found.split(sizes), strict=True):
            setattr(rollout, name, part)


def _loss_of(
    loop: Loop, settings: Grpo, batch: list[Rollout], tokens: int, sums: dict[str, Any]
) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        new, _ = loop.logprobs(_packed(loop, batch), settings.temperature)
        place = new.device
        sizes = torch.tensor([len(r.completion.tokens) for r in batch], device=place)
        advantage = torch.tensor([r.advantage for r in batch], dtype=new.dtype, device=place).repeat_interleave(sizes)
        old = torch.cat([r.old for r in batch]) if settings.iterations > 1 else new.detach()  # type: ignore[misc]
        per_token, clipped = policy_loss(new, old, advantage, settings.clip_low, settings.clip_high)
        if settings.kl > 0:
            divergence = k3(new, torch.cat([r.ref for r in batch]))  # type: ignore[misc]
            per_token = per_token + settings.kl * divergence
            sums["kl"] = sums["kl"] + divergence.detach().sum()  # a tensor: nothing waits for the device here
        sums["clipped"] = sums["clipped"] + clipped.sum()
        sums["tokens"] += new.numel()
        return per_token.sum() / tokens

    return loss


def _told(step: int, rollout: Rollout) -> dict[str, Any]:
    """A rollout as a line of samples.jsonl."""
    return {
        "step": step,
        "id": rollout.sample.id,
        "question": rollout.sample.question,
        "target": rollout.sample.target,
        "output": rollout.completion.text,
        "finish": rollout.completion.finish,
        "tokens": len(rollout.completion.tokens),
        "reward": rollout.reward,
        "rewards": rollout.parts,
        "advantage": round(rollout.advantage, 4),
    }
