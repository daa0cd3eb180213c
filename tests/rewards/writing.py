"""Completions as a model of some think-format would have written them, and samples to score them on."""

from __future__ import annotations

from typing import Any

from danlu.records import Completion, Sample
from danlu.think import ThinkFormat

TAGS = ThinkFormat(
    "reasoning_answer",
    open="<reasoning>",
    close="</reasoning>",
    opened_by="model",
    head="<reasoning>\n",
    bridge="\n</reasoning>\n<answer>\n",
    tail="\n</answer>",
)
THINK = ThinkFormat("think", "<think>", "</think>", "model", head="<think>\n", bridge="\n</think>\n\n")
OPENED = ThinkFormat("think", "<think>", "</think>", "template", prefix="<think>\n", bridge="\n</think>\n\n")
PLAIN = ThinkFormat("none")


def asked(target: str | None = "肺炎", question: str = "最可能的诊断是什么？", **fields: Any) -> Sample:
    """A question with its gold."""
    return Sample(fields.pop("id", "q1"), ({"role": "user", "content": question},), target=target, **fields)


def wrote(text: str, think: ThinkFormat = THINK, finish: str = "stop", tokens: int = 0) -> Completion:
    """A completion of that text; `tokens`: how many it has, where that matters."""
    reasoning, answer, tidy = think.split(text)
    return Completion(text, reasoning, answer, finish, tidy, tuple(range(tokens)))  # type: ignore[arg-type]


def said(answer: str, think: ThinkFormat = THINK, finish: str = "stop", reasoning: str = "想一想。") -> Completion:
    """A well-formed completion with that answer."""
    return wrote(think.join(reasoning, answer), think, finish)
