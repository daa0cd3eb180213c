"""A GRPO stage ready for one step, and the same step done naively: every completion by itself through transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from small_training import new_run

from danlu.generate.local import LocalGenerator
from danlu.models.load import load, reference, trainable
from danlu.recipe import Recipe
from danlu.rewards import Rewards
from danlu.train.grpo import Stage, Watcher, objective_of, prompts, short_enough, without_dropout
from danlu.train.loop import Loop
from danlu.train.rollout import Drawn, Rollout, Source, collect


class Seen:
    """`gradients` before every optimizer step; `drawn()` what the next step will draw."""

    def __init__(self, made: Recipe, path: Path, start: str | None = None) -> None:
        settings = made.grpo
        self.recipe, self.run = made, new_run(path, made, "grpo")
        self.loaded = load(made.model, start, seed=made.seed, lora=settings.lora, train=True)
        without_dropout(self.loaded.model)
        torch.manual_seed(8)
        with torch.no_grad():  # the adapter is somewhere already: its gradient is not that of a fresh one
            for value in trainable(self.loaded.model).values():
                value.add_(torch.randn_like(value) * 0.02)
        self.loop = Loop(self.run, settings, self.loaded, settings.steps, largest_is_best=True)
        generator = LocalGenerator(self.loaded, batch=settings.rollout_batch)
        questions = short_enough(self.loaded, prompts(made, settings.data).train, settings.max_prompt)
        rewards = Rewards(settings.rewards, settings.gate)
        source = Source(settings, made.seed, generator, questions, rewards)
        self.stage = Stage(self.loop, source, Watcher(self.run, settings, []))
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.loop.optimizer.optimizer.register_step_pre_hook(lambda *_: self._look())

    def _look(self) -> None:
        self.gradients.append({name: param.grad.clone() for name, param in self.loop.params.items()})

    def drawn(self) -> Drawn:
        return collect(self.stage.source, self.loop.step, self.stage.seen)

    def rollouts(self) -> list[Rollout]:
        return [rollout for group in self.drawn().groups for rollout in group]

    def step(self) -> dict[str, Any]:
        """The row of metrics.jsonl."""
        self.stage.step()
        return self.run.metrics()[-1]


def own_reward(folder: Path, body: str) -> list[dict[str, str]]:
    """A recipe's rewards: one function `fn(sample, completion)` with this body."""
    (folder / "mine.py").write_text(f"def fn(sample, completion):\n    {body}\n", "utf-8")
    return [{"python": f"{folder / 'mine.py'}:fn"}]


def log_probs(model: Any, rollout: Rollout, temperature: float) -> torch.Tensor:
    ids = torch.tensor([[*rollout.prompt, *rollout.completion.tokens]])
    scores = (model(ids).logits[0] / temperature).log_softmax(-1)
    return scores[len(rollout.prompt) - 1 : -1].gather(-1, ids[0, len(rollout.prompt) :, None]).squeeze(-1)


def naive(seen: Seen) -> list[dict[str, torch.Tensor]]:
    """The gradients of each iteration: every group takes part, nothing is skipped, one forward a completion."""
    settings, model = seen.recipe.grpo, seen.loaded.model
    rollouts = seen.rollouts()
    model.train()
    with torch.no_grad():
        old = [log_probs(model, r, settings.temperature) for r in rollouts]
        with reference(model):
            ref = [log_probs(model, r, settings.temperature) for r in rollouts]
    params = trainable(model)
    before = {name: param.detach().clone() for name, param in params.items()}
    optimizer = torch.optim.AdamW(params.values(), lr=settings.optimizer.lr, weight_decay=0.0)
    found = []
    for _ in range(settings.iterations):
        total = torch.zeros(())
        for place, rollout in enumerate(rollouts):
            if settings.mask_truncated and rollout.completion.finish != "stop":
                continue
            new = log_probs(model, rollout, settings.temperature)
            total = total + _loss(seen, rollouts, place, new, old[place], ref[place])
        total.backward()
        found.append({name: param.grad.clone() for name, param in params.items()})
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for name, param in params.items():
            param.copy_(before[name])
            param.grad = None
    return found


def _loss(seen: Seen, rollouts: list[Rollout], place: int, new: Any, old: Any, ref: Any) -> torch.Tensor:
    """The share of one completion in the step's loss."""
    settings, objective, rollout = seen.recipe.grpo, objective_of(seen.recipe.grpo), rollouts[place]
    group = place // settings.group * settings.group
    rewards = [r.reward for r in rollouts[group : group + settings.group]]
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    advantage = (rollout.reward - mean) / (1 if settings.loss == "dr_grpo" else std + 1e-4)
    ratio = torch.exp((new - old).mean().expand(len(new)) if settings.loss == "gspo" else new - old)
    bounded = ratio.clamp(1 - objective.low, 1 + objective.high)
    drift = old - torch.tensor(rollout.completion.logprobs)
    if settings.importance == "sequence":
        drift = drift.sum().expand(len(new))
    weight = torch.exp(drift).clamp(max=objective.cap) if settings.importance != "off" else torch.ones_like(new)
    loss = -torch.minimum(ratio * advantage, bounded * advantage) * weight
    loss = loss + settings.kl * (torch.exp(ref - new) - 1 - (ref - new))
    if settings.loss in ("grpo", "gspo"):
        return loss.mean() / len(rollouts)
    if settings.loss == "dr_grpo":
        return loss.sum() / (len(rollouts) * settings.max_completion)
    carrying = [r for r in rollouts if not settings.mask_truncated or r.completion.finish == "stop"]
    return loss.sum() / sum(len(r.completion.tokens) for r in carrying)
