"""A Generator over mlx-lm: a model with its adapter unmerged, on Apple silicon (or a CPU, for trying it out).

Method: mlx-lm's BatchGenerator, whose requests join and leave a running batch. Prompts are rendered and tokenised
here, so that a model sees the same ids as everywhere else; end tokens, stop strings and the think-format are ours.
Filters apply in transformers' order. Every completion has random numbers of its own, made of the seed, its prompt and
its number, so batching does not change what is drawn; the same seed gives other text than the local decoder.
Departure: log-probs are kept only where mlx-lm's are those of `Sampling` (greedy or temperature 1, no penalty).
Not covered: adapters that are not plain LoRA (merge them first), memory that runs out (a smaller eval.batch).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, Literal

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.sample_utils import make_repetition_penalty

from danlu.errors import DanluError
from danlu.generate import Sampling
from danlu.generate.chat import completion, encoded, first_tokens
from danlu.generate.stream import ends_in_stop, parts, texts, until
from danlu.models.load import Loaded
from danlu.models.mlx import add_lora, load_base
from danlu.models.mlx_adapter import read_peft
from danlu.models.tokenizer import speech_of
from danlu.recipe import Model
from danlu.records import Completion, Message

PREFILLED = 8  # prompts that are read together at most
EVERYTHING = 1 << 30  # tokens that the repetition penalty looks back


def opened(spec: Model, start: str | None = None, *, name: str = "mlx", batch: int = 32) -> MlxGenerator:
    """A generator over the model of a recipe, or of `start` (run, adapter, model folder or hub id)."""
    if spec.quantization == "nf4":
        raise DanluError("eval.generate: mlx does not take model.quantization: nf4", "--set model.quantization=none")
    speech = speech_of(spec, start, weights=True)
    if speech.folder is None:
        raise DanluError("mlx needs a stored model, and this one is made from a config", "eval.generate: local")
    model = load_base(speech.folder, spec.dtype)
    if speech.adapter is not None:
        add_lora(model, read_peft(speech.adapter), frozen=True)
    loaded = Loaded(model, speech.tokenizer, speech.think, speech.end_ids, {"base": speech.recorded})
    return MlxGenerator(model, loaded, name, batch)


class MlxGenerator:
    """A Generator over an mlx-lm `model` that speaks as `loaded` says.

    batch: completions decoded together at most. before: called before the model is used, to bring its weights up to
    date.
    """

    def __init__(
        self,
        model: Any,
        loaded: Loaded,
        name: str = "mlx",
        batch: int = 32,
        thinking: bool = True,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.model, self.loaded, self.name, self.batch, self.thinking = model, loaded, name, batch, thinking
        self.think, self._before = loaded.think, before

    def __enter__(self) -> MlxGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        mx.clear_cache()

    def refresh(self) -> None:
        """Take up what training has changed."""
        if self._before is not None:
            self._before()
        self.model.eval()

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, keys: Sequence[str] | None = None
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Completions of each prompt as they finish; `keys` fix the random numbers of each (default: its text)."""
        chats, ids = encoded(self.loaded.tokenizer, self.think, prompts, self.thinking)
        names = list(keys) if keys else chats
        times = 1 if sampling.temperature == 0 else sampling.samples  # greedy ones are all equal
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        places = [place for place in order for _ in range(times)]
        seeds = [_seed(sampling.seed, f"{names[place]}|{n}") for place in order for n in range(times)]
        ended = ends_in_stop(self.loaded.tokenizer, sampling.stop)
        found: dict[int, dict[int, Completion]] = {}
        tokens: list[list[int]] = [[] for _ in places]
        told: list[list[float]] = [[] for _ in places]
        with closing(self._steps([ids[place] for place in places], sampling, seeds)) as steps:
            for row, token, logprob, reason, drop in steps:
                tokens[row].append(token)
                told[row].append(logprob)
                stopped = reason == "stop" or (ended is not None and ended(tokens[row]))
                if stopped and reason is None:
                    drop()
                if not stopped and reason is None:
                    continue
                place = places[row]
                group = found.setdefault(place, {})
                group[row] = self._completion(tokens[row], told[row], stopped, sampling)
                if len(group) == times:
                    own = [group[row] for row in sorted(group)]
                    yield place, own * (sampling.samples // times)

    def _completion(self, tokens: list[int], told: list[float], stopped: bool, sampling: Sampling) -> Completion:
        plain = sampling.temperature in (0, 1) and sampling.repetition_penalty == 1
        own = self.loaded
        return completion(
            own.tokenizer,
            self.think,
            own.end_ids,
            tokens,
            logprobs=told if plain else (),
            stopped=stopped,
            stop=sampling.stop,
        )

    def cut(self, found: Completion, tokens: int) -> Completion:
        """The completion as it would be, had the limit been `tokens`."""
        own = self.loaded
        return completion(own.tokenizer, self.think, own.end_ids, found.tokens[:tokens], stopped=False)

    def chat_stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None
    ) -> Iterator[tuple[Literal["reasoning", "answer"], str]]:
        """The pieces of one answer as they are written; leaving the loop early ends the work."""
        sampling = sampling or Sampling()
        (text,), ids = encoded(self.loaded.tokenizer, self.think, [messages], self.thinking)
        with closing(self._steps(ids, sampling, [_seed(sampling.seed, f"{text}|0")])) as steps:
            tokens = (token for _, token, *_ in steps if token not in self.loaded.end_ids)
            yield from parts(until(texts(self.loaded.tokenizer, tokens), sampling.stop), self.think)

    def choose(
        self, prompts: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, str]]:
        """(index of the prompt, the one of its letters that the model finds likeliest as the next token).

        DanluError when two letters begin with the same token.
        """
        first = first_tokens(self.loaded.tokenizer, letters)
        _, ids = encoded(self.loaded.tokenizer, self.think, prompts, self.thinking)
        self.refresh()
        for place, prompt in enumerate(ids):
            scores = self.model(mx.array([prompt]))[0, -1]
            own = scores[mx.array([first[letter] for letter in letters[place]])]
            yield place, letters[place][int(mx.argmax(own))]

    def _steps(
        self, ids: list[list[int]], sampling: Sampling, seeds: list[int]
    ) -> Generator[tuple[int, int, float, str | None, Callable[..., None]], None, None]:
        """(row, token, its log-prob, "stop", "length" or None, what drops the row) of every token as it is written."""
        self.refresh()
        engine = BatchGenerator(
            self.model,
            stop_tokens=[[token] for token in self.loaded.end_ids],
            completion_batch_size=self.batch,
            prefill_batch_size=min(self.batch, PREFILLED),
        )
        samplers: Any = [sampler(sampling, seed) for seed in seeds]
        try:
            rows = engine.insert(
                ids,
                max_tokens=[sampling.max_tokens] * len(ids),
                samplers=samplers,
                logits_processors=[_penalties(sampling)] * len(ids),
            )
            at = {uid: row for row, uid in enumerate(rows)}
            while at:
                found = engine.next_generated()
                chances: Any = mx.stack([one.logprobs[one.token] for one in found]).astype(mx.float32).tolist()
                for one, chance in zip(found, chances, strict=True):
                    if one.uid not in at:
                        continue
                    row = at[one.uid]
                    if one.finish_reason is not None:
                        del at[one.uid]

                    def drop(uid: int = one.uid) -> None:
                        at.pop(uid, None)
                        engine.remove([uid])

                    yield row, one.token, chance, one.finish_reason, drop
        finally:
            engine.close()


def sampler(sampling: Sampling, seed: int) -> Callable[[mx.array], mx.array] | None:
    """What draws one row's tokens from log-probs [1, V]; None: the likeliest."""
    if sampling.temperature == 0:
        return None
    key = mx.random.key(seed)

    def draw(logprobs: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        return mx.random.categorical(filtered(logprobs, sampling), key=now)

    return draw


def filtered(logprobs: mx.array, sampling: Sampling) -> mx.array:
    """Scores [B, V] after temperature, top-k, top-p and min-p, as transformers applies them; -inf is never drawn."""
    scores = logprobs.astype(mx.float32) / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        least = mx.sort(scores, axis=-1)[..., -sampling.top_k, None]
        scores = mx.where(scores < least, -mx.inf, scores)
    if sampling.top_p < 1:
        order = mx.argsort(-scores, axis=-1)
        chances = mx.take_along_axis(mx.softmax(scores, axis=-1), order, axis=-1)
        above = mx.cumsum(chances, axis=-1) - chances  # what the likelier ones hold: the first one always stays
        kept = mx.put_along_axis(mx.zeros(scores.shape, mx.bool_), order, above < sampling.top_p, axis=-1)
        scores = mx.where(kept, scores, -mx.inf)
    if sampling.min_p > 0:
        chances = mx.softmax(scores, axis=-1)
        scores = mx.where(chances < sampling.min_p * chances.max(axis=-1, keepdims=True), -mx.inf, scores)
    return scores


def _penalties(sampling: Sampling) -> list[Any]:
    if sampling.repetition_penalty == 1:
        return []
    return [make_repetition_penalty(sampling.repetition_penalty, EVERYTHING)]


def _seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}|{key}".encode(), digest_size=4).digest(), "big")
