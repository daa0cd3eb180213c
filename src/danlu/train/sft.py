"""The SFT stage: cross entropy on the completion's tokens (reasoning, answer, end token), LoRA or full.

The loss of a step is the sum over its supervised tokens divided by their number, over all micro-batches: batch size
and accumulation do not change it. Departure from TRL's default, which averages the means of micro-batches.
The rows of a step are packed, without padding, into forwards of at most `micro_batch` x `data.max_length` tokens; how
they are packed changes the loss by rounding only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from danlu import display
from danlu.data.prepare import prepare, shape_of, write_rejected
from danlu.data.render import IGNORE, Rendered
from danlu.data.rows import TrainingRows
from danlu.data.store import Store, open_store
from danlu.errors import DanluError
from danlu.models.batch import Batch, micro_batches, packed
from danlu.models.load import load
from danlu.recipe import Recipe
from danlu.run import Run
from danlu.train.deliver import deliver
from danlu.train.loop import Clock, Loop, peak_memory, row_order

Row = tuple[np.ndarray, np.ndarray]  # tokens and labels, int32 [length]


def sft(recipe: Recipe, run: Run, start: str | None = None) -> dict[str, Any]:
    """Fine-tune into run.artifact; what happened as a dict of results.

    DanluError for data or settings that cannot work; Stopped when interrupted (resumable).
    """
    settings = recipe.sft
    prepared = prepare(recipe)
    write_rejected(run, prepared)
    loaded = load(
        recipe.model,
        start,
        seed=recipe.seed,
        lora=settings.lora if settings.method == "lora" else None,
        train=True,
        gradient_checkpointing=settings.gradient_checkpointing is True,
    )
    rendered = open_store(loaded.tokenizer, loaded.think, prepared.train, shape_of(recipe))
    if not len(rendered):
        raise DanluError(f"no row fits into data.max_length = {recipe.data.max_length} tokens", "raise data.max_length")
    valid_store = open_store(loaded.tokenizer, loaded.think, prepared.valid, shape_of(recipe))
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
    loop = Loop(run, settings, loaded, steps, largest_is_best=False)
    loop.resume()
    rows = TrainingRows(recipe, loaded.tokenizer, loaded.think, prepared.train, rendered)
    return _train(loop, recipe, rows, valid, total_rows)


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


def _train(loop: Loop, recipe: Recipe, rows: TrainingRows, valid: list[Row], total_rows: int | None) -> dict[str, Any]:
    settings = recipe.sft
    effective = settings.batch_size * settings.accumulation
    micro = settings.micro_batch if isinstance(settings.micro_batch, int) else settings.batch_size
    capacity = micro * recipe.data.max_length
    clock = Clock()
    loss, eval_loss = loop.last("loss").get("loss"), loop.last("eval_loss").get("eval_loss")
    with loop.signals(), display.task("sft", loop.steps) as progress:
        progress.advance(loop.step)
        while loop.step < loop.steps:
            first = loop.step * effective
            last = min(first + effective, total_rows) if total_rows else first + effective
            places = row_order(rows.count, recipe.seed, first, last)
            batch = [_row(rows.rendered(epoch, index)) for epoch, index in places]
            supervised = sum(int((labels != IGNORE).sum()) for _, labels in batch)
            loss, norm = loop.update(_losses(loop, batch, capacity, supervised))
            loop.tokens += supervised
            rate = loop.optimizer.param_groups[0]["lr"]
            row = {"step": loop.step, "epoch": round(last / rows.count, 4), "loss": loss, "lr": rate, "grad_norm": norm}
            seconds = clock.lap()
            speed = sum(len(tokens) for tokens, _ in batch) / seconds
            loop.log({**row, "tokens": loop.tokens, "tokens_per_second": round(speed, 1)})
            if valid and (loop.due(settings.eval_every) or loop.step == loop.steps):
                eval_loss = _eval_loss(loop, valid, capacity)
                loop.log({"step": loop.step, "eval_loss": eval_loss})
                loop.consider(eval_loss, settings.keep_best)
                clock.lap()
            progress.advance(1, loss=loss, **({"eval": eval_loss} if eval_loss is not None else {}))
            loop.finish_step()
    if settings.keep_best:
        loop.use_best()
    deliver(loop, recipe)
    return {
        "steps": loop.step,
        "loss": loss,
        "eval_loss": eval_loss,
        "best_eval_loss": loop.best_value,
        "best_step": loop.best_step if valid else None,
        "tokens": loop.tokens,
        "peak_memory_bytes": peak_memory(),
    }


def _losses(loop: Loop, batch: list[Row], capacity: int, supervised: int) -> Iterator[Callable[[], Tensor]]:
    """Losses of the micro-batches; together they are the mean over the supervised tokens of the step."""
    for part in _parts(loop, batch, capacity):
        yield partial(_mean_loss, loop, part, supervised)


def _parts(loop: Loop, rows: list[Row], capacity: int) -> Iterator[Batch]:
    found = micro_batches([len(tokens) for tokens, _ in rows], capacity, padding=not loop.fast)
    return (packed([rows[i] for i in part], loop.accelerator.device) for part in found)


def _mean_loss(loop: Loop, batch: Batch, supervised: int) -> Tensor:
    return -loop.logprobs(batch)[0].sum() / supervised


@torch.no_grad()
def _eval_loss(loop: Loop, valid: list[Row], capacity: int) -> float:
    """Mean negative log-prob over the supervised tokens of the validation rows."""
    loop.loaded.model.eval()
    total, count = 0.0, 0
    for batch in _parts(loop, valid, capacity):
        with loop.accelerator.autocast():
            found, _ = loop.logprobs(batch)
        total, count = total - float(found.sum()), count + found.numel()
    return total / count
