"""The GRPO stage: groups of rollouts, advantages inside the group, a clipped policy update.

A step: `prompts` questions, `group` completions each (rollout.py); rewards; advantages; `iterations` updates on the
objective of `grpo.loss` (policy.py, with the papers). Every `eval_every` steps held-out questions are answered.

How the update is computed:
- forwards hold a budget of tokens. With the fast forward the prompt of a group is computed once for all of its
  completions in a forward; gradients are those of computing it for each.
- Groups in which all rewards are equal have no gradient and are left out of the forward; where the loss is divided by
  tokens or completions, theirs still count. With KL they stay in.
- The log-probs that ratios are taken against are those of the first iteration's own forward: with one iteration the
  ratio is exactly 1 and only its gradient counts.
- There is no dropout, neither in rollouts nor in updates: a ratio between two networks that dropped different units
  says nothing about the policy.

Not covered: a separate reference model (KL is to the model without the adapter that is trained).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from danlu import display
from danlu.data.encode import encode
from danlu.data.prepare import prompts, write_rejected
from danlu.data.render import IGNORE, prompt_text
from danlu.errors import DanluError
from danlu.generate.local import LocalGenerator
from danlu.models.batch import Batch, branched, micro_batches, packed
from danlu.models.load import Loaded, reference
from danlu.recipe import Grpo, Recipe
from danlu.records import Sample
from danlu.rewards import Rewards
from danlu.rewards.difficulty import passable
from danlu.run import Run
from danlu.train import memory, processes, sharding, trackers, watch
from danlu.train.deliver import deliver
from danlu.train.loop import Loop
from danlu.train.metrics import Clock
from danlu.train.planned import loaded_for
from danlu.train.policy import CLIPS, Objective, Scores, Step, loss_of
from danlu.train.rollout import Drawn, Question, Rollout, Source, collect, told
from danlu.train.schedule import learning_rate
from danlu.train.signs import signs

SHOWN = {"reward": "reward", "completion_length": "length", "truncated": "cut", "entropy": "entropy"}


def grpo(recipe: Recipe, run: Run, start: str | None = None) -> dict[str, Any]:
    """Train on rewards into run.artifact; what happened as a dict of results.

    DanluError for data or settings that cannot work; Stopped when interrupted (resumable).
    """
    settings = recipe.grpo
    trackers.check(settings.track)
    sharding.check(recipe, "grpo")
    if settings.patience and not settings.valid:
        raise DanluError("grpo.patience needs held-out questions", "give grpo.valid")
    if settings.engine == "trl":
        from danlu.train import trl  # it imports from here

        trl.check(settings, start)
    loaded, questions, held_out = prepare(recipe, run, start)
    loop = Loop(run, settings, loaded, settings.steps, largest_is_best=True)
    generator = LocalGenerator(loaded, name=run.name, batch=settings.rollout_batch)
    questions = passable_ones(recipe, run, generator, questions)  # before the weights of a checkpoint are there
    loop.resume()

    watcher = Watcher(run, settings, held_out)

    def evaluate() -> dict[str, float]:
        found = watch.figures(generator, held_out, settings.max_completion, loop.breathe, loop.together)
        watcher.look({"step": loop.step, **found})
        return found

    with Rewards(settings.rewards, settings.gate) as rewards:
        source = Source(settings, recipe.seed, generator, questions, rewards)
        seen = loop.last("prompts_seen").get("prompts_seen", 0)
        watched = evaluate if held_out else None
        if settings.engine == "trl":
            trl.go(loop, source, watcher, seen, watched)
        else:
            stage = Stage(loop, source, watcher, seen)
            loop.go("grpo", stage.step, watched, "eval_accuracy", settings.keep_best)
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


def prepare(recipe: Recipe, run: Run, start: str | None) -> tuple[Loaded, list[Question], list[Sample]]:
    """(the model with what is trained, the questions whose prompts are short enough, held-out questions)."""
    settings = recipe.grpo
    prepared = prompts(recipe, settings.data or recipe.data.train)
    write_rejected(run, prepared)
    loaded, _ = loaded_for(recipe, run, "grpo", start)
    if without_dropout(loaded.model):
        display.warn("grpo trains without dropout: lora.dropout is for sft")
    questions = short_enough(loaded, prepared.train, settings.max_prompt)
    dropped = len(prepared.train) - len(questions)
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
    return loaded, questions, held_out


def short_enough(loaded: Loaded, samples: list[Sample], limit: int) -> list[Question]:
    """The samples whose prompts have at most `limit` tokens, with the ids."""
    texts = [prompt_text(loaded.tokenizer, loaded.think, sample.messages) for sample in samples]
    found = encode(loaded.tokenizer, texts)
    return [(sample, ids.tolist()) for sample, ids in zip(samples, found, strict=True) if len(ids) <= limit]


def passable_ones(recipe: Recipe, run: Run, generator: LocalGenerator, questions: list[Question]) -> list[Question]:
    """The questions that grpo.filter keeps, in order; the counts stay in the run, so that a resume asks nothing."""
    if recipe.grpo.filter is None:
        return questions
    generator.loaded.model.eval()
    samples = [sample for sample, _ in questions]

    def names_of_kept() -> set[str]:
        kept = passable(generator, samples, recipe.grpo, seed=recipe.seed, cache=run.path / "filter.jsonl")
        return {sample.id for sample in kept}

    names = processes.lead(names_of_kept)
    run.record(filtered={"in": len(questions), "kept": len(names)})
    return [question for question in questions if question[0].id in names]


def without_dropout(model: nn.Module) -> bool:
    """Switch all dropout of a model off; whether there was any."""
    found = False
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            found, module.p = True, 0.0
        rate = getattr(module, "attention_dropout", None)  # a plain number in many of transformers' models
        if isinstance(rate, float) and rate > 0:
            found, module.attention_dropout = True, 0.0
    return found


def objective_of(settings: Grpo) -> Objective:
    """The objective of a recipe, with the paper's clipping where it names none."""
    low, high = CLIPS[settings.loss]
    return Objective(
        settings.loss,
        low if settings.clip_low is None else settings.clip_low,
        high if settings.clip_high is None else settings.clip_high,
        settings.kl,
        settings.importance,
        settings.importance_cap,
    )


class Watcher:
    """Warns of each sign once; at what step, and in what words, is in run.json `results` (signs, sign_texts)."""

    def __init__(self, run: Run, settings: Grpo, held_out: list[Sample]) -> None:
        self._run, self._settings, self._sizes = run, settings, watch.tasks_of(held_out)
        self._rows: list[dict[str, Any]] = run.metrics()
        results = run.info()["results"]
        self._known: dict[str, int] = results.get("signs", {})
        self._texts: dict[str, str] = results.get("sign_texts", {})

    def look(self, row: dict[str, Any]) -> None:
        """Take a new row of metrics.jsonl in."""
        self._rows.append(row)
        for code, text in signs(self._rows, self._settings, self._sizes).items():
            if code not in self._known:
                self._known[code], self._texts[code] = row["step"], text
                self._run.record(signs=self._known, sign_texts=self._texts)
                display.warn(f"step {row['step']}: {text}")


@dataclass
class Stage:
    """One step after another; `seen` is where the stream of prompts stands."""

    loop: Loop
    source: Source
    watcher: Watcher
    seen: int = 0

    def step(self) -> dict[str, Any]:
        """Rollouts, rewards and `iterations` updates, logged; the figures to show."""
        loop, settings = self.loop, self.source.settings
        with loop.at_rest():
            drawn = collect(self.source, loop.step, self.seen, loop.breathe, loop.together)
        self.seen = drawn.seen
        clock = Clock()
        figures, passed = update(loop, settings, drawn)
        seconds = {**drawn.seconds, "update_seconds": clock.lap()}
        loop.tokens += drawn.tokens
        row = {
            "step": loop.step,
            **drawn.figures,
            **_usage(processes.gather(self.source.rewards.usage())),
            **figures,
            "prompts_seen": self.seen,
            **{name: round(value, 3) for name, value in seconds.items()},
            "rollout_tokens_per_second": round(drawn.tokens / max(seconds["rollout_seconds"], 1e-9), 1),
            "update_tokens_per_second": round(passed / max(seconds["update_seconds"], 1e-9), 1),
            **loop.measures(),
        }
        loop.log(row)
        loop.run.write_samples(told(loop.step, loop.steps, drawn.groups))
        self.watcher.look(row)
        return {short: row[name] for name, short in SHOWN.items() if row.get(name) is not None}


# ---- the update


def update(loop: Loop, settings: Grpo, drawn: Drawn) -> tuple[dict[str, float], int]:
    """(figures of the last of `iterations` optimizer steps, tokens that went through their forwards)."""
    carrying = [[r for r in group if r.carries_loss(settings.mask_truncated)] for group in drawn.groups]
    whole = Step(
        tokens=sum(len(r.completion.tokens) for group in carrying for r in group),
        completions=sum(r.reward is not None for group in drawn.groups for r in group),
        longest=settings.max_completion,
    )
    used = [g for g, same in zip(carrying, drawn.flat, strict=True) if g and (settings.kl > 0 or not same)]
    own = share(used)
    figures = {"loss": 0.0, "grad_norm": 0.0, "kl": 0.0, "clip_fraction": 0.0, "lr": 0.0}
    if settings.kl > 0:
        with reference(loop.loaded.model):
            _remember_reference(loop, settings, own)
    ids = [group[0].sample.id for group in used]
    passed = 0
    for iteration in range(min(settings.iterations, loop.steps - loop.step)):
        figures["lr"] = learning_rate(settings.optimizer, loop.step, loop.steps)
        if not used:  # nothing to learn from this step
            loop.step += 1
            continue
        sums: dict[str, Tensor] = {}
        losses = partial(_losses, loop, settings, whole, own, iteration == 0, sums)
        figures["loss"], figures["grad_norm"] = loop.update(losses, ids)
        figures |= _means(sums)
        passed += sum(len(r.prompt) + len(r.completion.tokens) for group in used for r in group)
    return figures, passed


def share(groups: list[list[Rollout]]) -> list[list[Rollout]]:
    """The completions that this process updates on: one stretch of them, so that few groups are divided and few
    prompts computed twice."""
    rollouts = [rollout for group in groups for rollout in group]
    mine = {id(rollouts[i]) for i in processes.stretch([len(r.prompt) + len(r.completion.tokens) for r in rollouts])}
    found = [[rollout for rollout in group if id(rollout) in mine] for group in groups]
    return [group for group in found if group]


def _added(parts: list[dict[str, float]]) -> dict[str, float]:
    """Figures of several processes as one; `largest` is no sum."""
    found: dict[str, float] = {}
    for name, value in ((name, value) for part in parts for name, value in part.items()):
        found[name] = max(found.get(name, value), value) if name == "largest" else found.get(name, 0) + value
    return found


def _usage(parts: list[dict[str, float]]) -> dict[str, float]:
    """What the judges of several processes were asked and cost; `latency` is seconds per verdict."""
    found = _added(parts)
    for name in found:
        label, _, what = name.rpartition("/")
        if what == "latency":
            found[name] = found[f"{label}/seconds"] / max(1, found[f"{label}/asked"])
    return found


def _means(sums: dict[str, Tensor]) -> dict[str, float]:
    """Figures of an update from the sums of its micro-batches (see `loss_of`) in all processes."""
    own = torch.stack([value.float() for value in sums.values()]).tolist() if sums else []
    found = _added(processes.gather(dict(zip(sums, own, strict=True))))
    tokens, known = found.pop("tokens"), found.pop("known", 0.0)
    figures: dict[str, float] = {
        name: found[name] / tokens for name in ("entropy", "kl", "clip_low", "clip_high") if name in found
    }
    figures["clip_fraction"] = figures["clip_low"] + figures["clip_high"]
    if known:
        figures["importance_difference"] = found["difference"] / known
        figures["importance_largest"] = found["largest"]
        if "capped" in found:
            figures["importance_capped"] = found["capped"] / tokens
    return figures


def forwards(settings: Grpo, groups: list[list[Rollout]], halvings: int, shared: bool) -> list[list[list[Rollout]]]:
    """The pieces of each forward: completions of one prompt, which is computed once for them if `shared`.

    A forward has at most `micro_batch` times (max_prompt + max_completion) tokens, halved so many times, or one row.
    """
    capacity = max(1, settings.micro_batch * (settings.max_prompt + settings.max_completion) >> halvings)
    pieces: list[list[Rollout]] = []
    for group in groups:
        room = 0
        for rollout in group:
            own = len(rollout.completion.tokens)
            if not shared or own > room:
                pieces.append([])
                room = capacity - len(rollout.prompt)
            pieces[-1].append(rollout)
            room -= own
    lengths = [len(piece[0].prompt) + sum(len(r.completion.tokens) for r in piece) for piece in pieces]
    return [[pieces[i] for i in part] for part in micro_batches(lengths, capacity, padding=not shared)]


def _batch(loop: Loop, pieces: list[list[Rollout]]) -> Batch:
    place = loop.accelerator.device
    if loop.fast:
        return branched([(piece[0].prompt, [r.completion.tokens for r in piece]) for piece in pieces], place)
    rows = [([*r.prompt, *r.completion.tokens], len(r.prompt)) for piece in pieces for r in piece]
    return packed([(ids, [IGNORE] * prompt + ids[prompt:]) for ids, prompt in rows], place)


@torch.no_grad()
def _remember_reference(loop: Loop, settings: Grpo, groups: list[list[Rollout]]) -> None:
    """Store the log-probs of the model as it is now on each rollout."""
    for pieces in forwards(settings, groups, loop.halvings, loop.fast):
        with loop.accelerator.autocast():
            found, _ = loop.logprobs(_batch(loop, pieces), settings.temperature)
        rollouts = [rollout for piece in pieces for rollout in piece]
        for rollout, part in zip(rollouts, found.split([len(r.completion.tokens) for r in rollouts]), strict=True):
            rollout.ref = part


def _losses(
    loop: Loop,
    settings: Grpo,
    whole: Step,
    groups: list[list[Rollout]],
    first: bool,
    sums: dict[str, Tensor],
    halvings: int,
) -> Iterator[Callable[[], Tensor]]:
    """Losses of the micro-batches; `sums` starts anew, also when memory ran out half-way through a step."""
    sums.clear()
    for pieces in forwards(settings, groups, halvings, loop.fast):
        yield partial(_loss, loop, settings, whole, pieces, first, sums)


def _loss(
    loop: Loop, settings: Grpo, whole: Step, pieces: list[list[Rollout]], first: bool, sums: dict[str, Tensor]
) -> Tensor:
    """The part of the step's loss of some completions; in the first iteration their log-probs are remembered."""
    rollouts = [rollout for piece in pieces for rollout in piece]
    new, entropies = loop.logprobs(_batch(loop, pieces), settings.temperature, True)
    lengths = [len(r.completion.tokens) for r in rollouts]
    if first:
        for rollout, part in zip(rollouts, new.detach().split(lengths), strict=True):
            rollout.old = part
    scores = Scores(
        new,
        torch.cat([r.old for r in rollouts if r.old is not None]),
        torch.cat([r.ref for r in rollouts if r.ref is not None]) if settings.kl > 0 else None,
        _drawn(rollouts, new.device),
    )
    sizes = torch.tensor(lengths, device=new.device)
    advantage = torch.tensor([r.advantage for r in rollouts], device=new.device)
    loss, found = loss_of(objective_of(settings), whole, scores, sizes, advantage)
    found["entropy"] = entropies.sum()
    for name, value in found.items():
        before = sums.get(name)
        joined = torch.maximum if name == "largest" else torch.add
        sums[name] = value if before is None else joined(before, value)
    return loss


def _drawn(rollouts: list[Rollout], place: torch.device) -> Tensor | None:
    """Log-probs from decoding, NaN where it gave none; None where it gave none at all."""
    rows = [r.completion.logprobs or [float("nan")] * len(r.completion.tokens) for r in rollouts]
    if not any(r.completion.logprobs for r in rollouts):
        return None
    return torch.tensor([value for row in rows for value in row], device=place)
