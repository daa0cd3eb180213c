"""Architectures that our decoder does not know: transformers' generate runs the model, our `pick` chooses the tokens.

Method: a logits processor picks each row's token and leaves nothing else to choose. All options of Sampling, the
random numbers of a row and its log-probs are therefore the same as in `decode`; only the forward is transformers'.
Departures from transformers' generate: none of the model's own generation settings is used but its end tokens.
Not covered: encoder-decoder models; finished rows leaving the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from queue import Queue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor

from danlu.generate import Sampling
from danlu.generate.decode import Decoded, Ended, draws
from danlu.generate.pick import pick


class _Picker:
    """A logits processor that picks: all but the chosen token of each row become impossible."""

    def __init__(self, prompts: Sequence[Sequence[int]], sampling: Sampling, numbers: list[list[float]]) -> None:
        self.prompts, self.sampling, self.numbers = prompts, sampling, numbers
        self.logprobs: list[list[float]] = []  # by step, then by row
        self.seen: Tensor | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        done, place = len(self.logprobs), scores.device
        numbers = torch.tensor([row[done] for row in self.numbers], device=place) if self.numbers else None
        if self.sampling.repetition_penalty != 1:
            if self.seen is None:
                self.seen = torch.zeros_like(scores, dtype=torch.bool)
                for row, prompt in enumerate(self.prompts):
                    self.seen[row, torch.tensor(prompt, device=place)] = True
            if done:
                self.seen.scatter_(1, ids[:, -1:], True)
        chosen, logprobs = pick(scores.clone(), self.sampling, numbers, self.seen)
        self.logprobs.append(logprobs.tolist())
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen[:, None], 0.0)


class _Stops:
    """A stopping criterion: a row ends where `ended` says so, and all end when `left` is set."""

    def __init__(self, length: int, ended: Ended | None, left: Event | None = None) -> None:
        self.length, self.ended, self.left = length, ended, left

    def __call__(self, ids: Tensor, _: Any = None, **__: Any) -> Tensor:
        every = self.left is not None and self.left.is_set()
        rows = ids[:, self.length :].tolist()
        return torch.tensor([every or (self.ended is not None and self.ended(row)) for row in rows], device=ids.device)


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    end_ids: Sequence[int],
    pad: int,
    keys: Sequence[str],
    ended: Ended | None = None,
) -> list[list[Decoded]]:
    """`sampling.samples` completions of each prompt, all in one batch padded on the left."""
    samples = range(sampling.samples)
    rows = [list(prompt) for prompt in prompts for _ in samples]
    numbers: list[list[float]] = []
    if sampling.temperature > 0:
        numbers = [draws(sampling.seed, key, sample, sampling.max_tokens) for key in keys for sample in samples]
    picker = _Picker(rows, sampling, numbers)
    length = max(map(len, rows))
    out = _run(model, rows, sampling, end_ids, pad, picker, _Stops(length, ended))
    found, ends = [], set(end_ids)
    for place, row in enumerate(out[:, length:].tolist()):
        over = (n for n, token in enumerate(row, 1) if token in ends or (ended is not None and ended(row[:n])))
        stop = next(over, None)  # what comes behind is padding
        tokens = row[:stop]
        found.append(Decoded(tokens, [step[place] for step in picker.logprobs[: len(tokens)]], stop is not None))
    return [found[at : at + len(samples)] for at in range(0, len(found), len(samples))]


@torch.no_grad()
def _run(
    model: Any,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    end_ids: Sequence[int],
    pad: int,
    picker: _Picker,
    stops: _Stops,
    streamer: Any = None,
) -> Tensor:
    """Ids of prompts, padded on the left, and completions, padded on the right."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    length, place = max(map(len, prompts)), model.device
    was_training, own = model.training, model.generation_config
    settings = GenerationConfig(max_new_tokens=sampling.max_tokens, do_sample=False, pad_token_id=pad)
    settings.eos_token_id = list(end_ids) or None
    model.eval()
    try:
        model.generation_config = GenerationConfig()  # else its sampling settings are merged into ours
        return model.generate(
            input_ids=torch.tensor([[pad] * (length - len(row)) + row for row in prompts], device=place),
            attention_mask=torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts], device=place),
            generation_config=settings,
            logits_processor=LogitsProcessorList([picker]),
            stopping_criteria=StoppingCriteriaList([stops]),
            streamer=streamer,
        )
    finally:
        model.generation_config = own
        model.train(was_training)


class _Tokens:
    """A streamer: puts each new token into a queue, leaving out the prompt that comes first."""

    def __init__(self) -> None:
        self.queue: Queue[int | BaseException | None] = Queue()
        self.begun = False

    def put(self, value: Tensor) -> None:
        if self.begun:
            self.queue.put(int(value.flatten()[0]))
        self.begun = True

    def end(self) -> None:
        """Called where generate returns; the thread itself says that it is over."""


def one_by_one(
    model: Any,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    end_ids: Sequence[int],
    pad: int,
    key: str = "0",
    ended: Ended | None = None,
) -> Iterator[int]:
    """The tokens of the first completion of one prompt, each as soon as it is picked; its end token included.

    transformers' generate runs in a thread; it ends when the iterator is closed.
    """
    numbers = [draws(sampling.seed, key, 0, sampling.max_tokens)] if sampling.temperature > 0 else []
    tokens, left = _Tokens(), Event()

    def work() -> None:
        over: BaseException | None = None
        try:
            picker, stops = _Picker([prompt], sampling, numbers), _Stops(len(prompt), ended, left)
            _run(model, [list(prompt)], sampling, end_ids, pad, picker, stops, tokens)
        except BaseException as error:  # told to whoever reads
            over = error
        tokens.queue.put(over)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while (found := tokens.queue.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        left.set()
        thread.join()
