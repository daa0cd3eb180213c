"""One way to ask any model: the Generator protocol. Local weights, GGUF, vLLM and endpoints implement it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from danlu.records import Completion, Message
from danlu.think import ThinkFormat


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample: temperature 0 is greedy; `seed` and the row index fix every draw.

    Filters apply in transformers' order: repetition penalty on prompt and completion, temperature, top-k, top-p,
    min-p. The defaults leave the model's own distribution alone.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1  # completions of each prompt
    seed: int = 0
    top_k: int = 0  # keep the k likeliest tokens; 0: all
    min_p: float = 0.0  # drop tokens below this share of the likeliest one's probability
    repetition_penalty: float = 1.0  # > 1 makes tokens that were there before less likely
    stop: tuple[str, ...] = ()  # an answer also ends before any of these


@dataclass(slots=True)
class Streamed:
    """The newest streamed answer: tokens so far (its end token not counted), and whether the limit cut it."""

    tokens: int = 0
    cut: bool = False


class Generator(Protocol):
    """Something that answers chats. `generate` yields (index of the prompt, its completions) as they finish."""

    name: str
    think: ThinkFormat

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]: ...
