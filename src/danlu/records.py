"""The small frozen records that stages pass around; plain data, no behaviour beyond (de)serialisation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict

Role = Literal["system", "user", "assistant"]


class Message(TypedDict, total=False):
    """One chat turn; `reasoning_content` only on assistant turns."""

    role: Role
    content: str
    reasoning_content: str


Outcome = Literal["right", "wrong", "none", "ambiguous", "truncated"]
Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One data row: the prompt, and whatever of completion and gold answer the source knows.

    `messages` is everything before the completion (system and earlier turns included) and ends with
    a user turn. SFT needs `answer` (and usually `reasoning`); GRPO and evaluation need `target`.
    """

    id: str
    messages: tuple[Message, ...]
    reasoning: str = ""
    answer: str = ""
    target: str | None = None  # gold: an option letter ("B", "ACD") where options exist, else text
    aliases: tuple[str, ...] = ()  # other wordings of the gold that count as right
    options: dict[str, str] = field(default_factory=dict)  # letter -> text, in order
    distractors: tuple[str, ...] = ()  # texts that make an answer wrong when it claims them
    meta: dict[str, Any] = field(default_factory=dict)  # task, subject, language, split, source ...

    @property
    def question(self) -> str:
        """Text of the last user turn."""
        return self.messages[-1]["content"]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Sample:
        row = dict(row)
        for key in ("messages", "aliases", "distractors"):
            row[key] = tuple(row.get(key) or ())
        return cls(**row)


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote after a prompt.

    `text` is the decoded completion without the end token; where the template opens the think block
    the text starts inside it. `reasoning`, `answer` and `well_formed` come from `ThinkFormat.split`.
    """

    text: str
    reasoning: str
    answer: str
    finish: Finish
    well_formed: bool
    tokens: tuple[int, ...] = ()  # completion ids, end token included when finish == "stop"
    logprobs: tuple[float, ...] = ()  # natural log, one per token, at the sampling temperature


@dataclass(frozen=True, slots=True)
class Score:
    """A verifier's verdict on one completion; `value` is what a reward weighs (0..1 unless documented)."""

    value: float
    outcome: Outcome
    extracted: str | None = None
    how: str = ""
