"""The SFT stage: cross entropy on the completion's tokens (reasoning, answer, end token), LoRA or full.

The loss of a step is the sum over its supervised tokens divided by their number, over all micro-batches: batch size
and accumulation do not change it. Departure from TRL's default, which averages the means of micro-batches.
The rows of a step are packed, without padding, into forwards of at most `micro_batch` x `data.max_length` tokens; how
they are packed changes the loss by rounding only. Several processes share the rows of a step. Rows are functions of
(seed, epoch, row), made in the process that trains, masked ones by a thread while the step before computes: there are
no data workers whose number could change a result.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from danlu import display
from danlu.data.prepare import prepare, prompts, question_key, shape_of, write_rejected
from danlu.data.render import IGNORE, Rendered
from danlu.data.rows import TrainingRows
from danlu.data.store import Store, open_store
from danlu.errors import DanluError
from danlu.generate.local import LocalGenerator
from danlu.models import mlx_fit
from danlu.models.batch import Batch, micro_batches, packed
from danlu.models.load import Loaded
from danlu.recipe import Recipe
from danlu.records import Sample
from danlu.run import Run
from danlu.train import processes, sharding, trackers
from danlu.train.ahead import Ahead
from danlu.train.deliver import deliver
from danlu.train.loop import Forward, Loop
from danlu.train.metrics import Clock
from danlu.train.planned import loaded_for, planned
from danlu.train.schedule import row_order
from danlu.train.watch import figures

if TYPE_CHECKING:
    from danlu.train.mlx import Reports

Row = tuple[np.ndarray, np.ndarray]  # tokens and labels, int32 [length]


def sft(recipe: Recipe, run: Run, start: str | None = None) -> dict[str, Any]:
    """Fine-tune into run.artifact; what happened as a dict of results.

    DanluError for data or settings that cannot work; Stopped when interrupted (resumable).
    """
    settings = recipe.sft
    trackers.check(settings.track)
    sharding.check(recipe, "sft")
    mlx_fit.check(recipe, ["sft"])
    prepared = prepare(recipe)
    write_rejected(run, prepared)
    watched = _watched(recipe, prepared.train)
    _check_what_is_measured(recipe, bool(prepared.valid))
    loaded, foreign, micro = _loaded(recipe, run, start)
    settled = recipe.model_copy(update={"sft": settings.model_copy(update={"micro_batch": micro})})
    stored = partial(open_store, loaded.tokenizer, loaded.think, shape=shape_of(recipe))
    rendered = processes.in_turn(lambda: stored(prepared.train))
    processes.same("training rows", lambda: rendered.key)
    if not len(rendered):
        raise DanluError(f"no row fits into data.max_length = {recipe.data.max_length} tokens", "raise data.max_length")
    valid_store = processes.in_turn(lambda: stored(prepared.valid))
    valid = [_row(row) for row in valid_store]
    told = rendered.report
    for what, store in (("", rendered), ("validation ", valid_store)):
        _tell(what, store, recipe)
    run.record(
        data_hash=prepared.hashes["train"],
        rows=len(rendered),
        valid_rows=len(valid),
        counts=prepared.counts,
        dropped_overlong=sum(why == "overlong" for _, why in told.dropped),
        truncated=len(told.truncated),
        supervised_tokens=told.supervised_tokens,
    )
    effective = settings.batch_size * settings.accumulation
    total_rows = None if settings.steps else max(1, round(settings.epochs * len(rendered)))
    steps = settings.steps or math.ceil((total_rows or 1) / effective)
    loop = Loop(run, settings, loaded, steps, largest_is_best=settings.best_on == "accuracy", foreign=foreign)
    loop.resume()
    rows = TrainingRows(recipe, loaded.tokenizer, loaded.think, prepared.train, rendered)
    return _train(loop, settled, rows, valid, watched, total_rows)


def _loaded(recipe: Recipe, run: Run, start: str | None) -> tuple[Loaded, Forward | None, int]:
    """(the model with what is trained of it, what computes in torch's place where that is not torch, micro-batch)."""
    if recipe.sft.engine == "danlu":
        loaded, micro = loaded_for(recipe, run, "sft", start)
        return loaded, None, micro
    from danlu.train import mlx

    micro, recompute = planned(recipe, run, "sft", start)
    return *mlx.load(recipe, start, recompute), micro


def _watched(recipe: Recipe, train: list[Sample]) -> list[Sample]:
    """The questions of sft.watch; those that are trained on are told, their accuracy says little."""
    found = prompts(recipe, recipe.sft.watch).train if recipe.sft.watch else []
    asked = {question_key(sample) for sample in train}
    known = sum(question_key(sample) in asked for sample in found)
    if known:
        display.warn(f"{known} of the {len(found)} questions in sft.watch stand in the training rows")
    return found


def _check_what_is_measured(recipe: Recipe, validated: bool) -> None:
    settings = recipe.sft
    hint = "give data.valid or data.valid_fraction, or questions in sft.watch and sft.best_on: accuracy"
    if settings.best_on == "eval_loss" and not validated and (settings.watch or settings.patience):
        what = "sft.patience" if settings.patience else "sft.best_on: eval_loss"
        raise DanluError(f"{what} needs validation rows", hint)


def _tell(what: str, store: Store, recipe: Recipe) -> None:
    """Warn of the rows that are not trained on as they are."""
    told, limit = store.report, recipe.data.max_length
    if told.dropped:
        shares = Counter(why for _, why in told.dropped)
        reasons = {"overlong": f"longer than {limit} tokens", "nothing supervised": "without a token to learn from"}
        listed = " and ".join(f"{count} are {reasons[why]}" for why, count in shares.items())
        display.warn(f"of {told.rows} {what}rows, {listed}: dropped")
    if told.truncated:
        display.warn(f"{len(told.truncated)} of {told.rows} {what}rows are longer than {limit} tokens: cut")


def _row(rendered: Rendered) -> Row:
    return rendered.tokens, rendered.labels


def _train(
    loop: Loop,
    recipe: Recipe,
    rows: TrainingRows,
    valid: list[Row],
    watched: list[Sample],
    total_rows: int | None,
) -> dict[str, Any]:
    settings = recipe.sft
    best_on = {"eval_loss": "eval_loss", "accuracy": "eval_accuracy"}[settings.best_on]
    reports = _reports(loop)
    evaluate = partial(_evaluate, loop, recipe, valid, watched, reports) if valid or watched else None
    # rows of the token set are at hand; masked ones are tokenised, which takes some milliseconds each
    drawn = Ahead(partial(_drawn, recipe, rows, total_rows), loop.steps if recipe.data.masking else 0)
    loop.go("sft", partial(_step, loop, recipe, drawn, reports), evaluate, best_on, settings.keep_best)
    if settings.keep_best:
        loop.use_best()
    deliver(loop, recipe)
    evaluated = {key: loop.last(key).get(key) for key in ("eval_loss", *(["eval_accuracy"] if watched else []))}
    return {
        "steps": loop.step,
        "loss": loop.last("loss").get("loss"),
        **evaluated,
        f"best_{best_on}": loop.best_value,
        "best_step": loop.best_step if evaluate else None,
        "stopped_early": loop.stopped_early,
        "tokens": loop.tokens,
        "halvings": loop.halvings,
        "peak_memory_bytes": loop.memory()["peak_memory_bytes"],
    }


def _capacity(recipe: Recipe, halvings: int) -> int:
    """Tokens that a forward may hold; less by half for every time that memory ran out."""
    assert isinstance(recipe.sft.micro_batch, int)  # settled when the run began
    return recipe.sft.micro_batch * recipe.data.max_length >> halvings


def _drawn(recipe: Recipe, rows: TrainingRows, total_rows: int | None, step: int) -> tuple[list[Rendered], float]:
    """(the rows of a step, how many epochs are done after it)."""
    effective = recipe.sft.batch_size * recipe.sft.accumulation
    first = step * effective
    last = min(first + effective, total_rows) if total_rows else first + effective
    found = [rows.rendered(epoch, index) for epoch, index in row_order(rows.count, recipe.seed, first, last)]
    return found, last / rows.count


def _reports(loop: Loop) -> Reports | None:
    """What tells of steps in another engine's manner, for its users."""
    if loop.foreign is None:
        return None
    from danlu.train.mlx import Reports

    return Reports(loop.steps)


def _step(
    loop: Loop, recipe: Recipe, drawn: Ahead[tuple[list[Rendered], float]], reports: Reports | None
) -> dict[str, Any]:
    """One update on the rows of this step, logged; what is shown of it."""
    clock = Clock()
    rows, epochs = drawn.of(loop.step)
    batch = [_row(row) for row in rows]
    supervised = sum(int((labels != IGNORE).sum()) for _, labels in batch)
    with drawn.next(loop.step + 1):
        loss, norm = loop.update(partial(_losses, loop, recipe, batch, supervised), [row.id for row in rows])
    loop.tokens += supervised
    rate = loop.optimizer.param_groups[0]["lr"]
    row = {"step": loop.step, "epoch": round(epochs, 4), "loss": loss, "lr": rate, "grad_norm": norm}
    row |= {"tokens": loop.tokens, "supervised_tokens": supervised}
    seconds = clock.lap()
    speed = sum(len(tokens) for tokens, _ in batch) / seconds
    loop.log({**row, "tokens_per_second": round(speed, 1), **loop.measures()})
    if reports is not None:
        reports.step(row, seconds)
    return {"loss": loss}


def _losses(
    loop: Loop, recipe: Recipe, batch: list[Row], supervised: int, halvings: int
) -> Iterator[Callable[[], Tensor]]:
    """Losses of this process's micro-batches; those of all are the mean over the supervised tokens of the step."""
    for part, counts in _parts(loop, batch, _capacity(recipe, halvings)):
        yield partial(_mean_loss, loop, part, supervised if counts else math.inf)


def _parts(loop: Loop, rows: list[Row], capacity: int) -> Iterator[tuple[Batch, bool]]:
    """The forwards of this process's share of `rows`, and whether they count; see sharding.py for those that do not."""
    mine = processes.own([len(tokens) for tokens, _ in rows])
    found = micro_batches([len(rows[i][0]) for i in mine], capacity, padding=not loop.fast)
    parts = [[rows[mine[i]] for i in part] for part in found]
    more = [parts[-1] if parts else rows[:1]] * (processes.even(len(parts)) - len(parts))
    for at, part in enumerate([*parts, *more]):
        yield packed(part, loop.accelerator.device), at < len(parts)


def _mean_loss(loop: Loop, batch: Batch, supervised: float) -> Tensor:
    return -loop.logprobs(batch)[0].sum() / supervised


def _evaluate(
    loop: Loop, recipe: Recipe, valid: list[Row], watched: list[Sample], reports: Reports | None
) -> dict[str, float]:
    found: dict[str, float] = {}
    clock = Clock()
    if valid:
        found["eval_loss"] = _eval_loss(loop, valid, _capacity(recipe, loop.halvings))
    if valid and reports is not None:
        reports.evaluated(loop.step, found["eval_loss"], clock.lap())
    if watched:
        with _answering(loop, recipe) as generator:
            found |= figures(generator, watched, recipe.eval.max_tokens, loop.breathe, loop.together)
    return found


def _answering(loop: Loop, recipe: Recipe) -> Any:
    if loop.foreign is not None:
        return loop.foreign.generator(loop.run.name, recipe.eval.batch)
    return LocalGenerator(loop.loaded, name=loop.run.name, batch=recipe.eval.batch)


@torch.no_grad()
def _eval_loss(loop: Loop, valid: list[Row], capacity: int) -> float:
    """Mean negative log-prob over the supervised tokens of the validation rows, which the processes share."""
    loop.loaded.model.eval()

    def share() -> tuple[float, int]:
        total, count, done = 0.0, 0, 0
        for batch, counts in _parts(loop, valid, capacity):
            with loop.accelerator.autocast():
                found, _ = loop.logprobs(batch)
            if not counts:
                continue
            total, count, done = total - float(found.sum()), count + found.numel(), done + len(batch.lengths)
            loop.breathe(evaluated=f"{done}/{len(valid)}")
        return total, count

    totals, counts = zip(*loop.together(share), strict=True)
    return sum(totals) / sum(counts)
