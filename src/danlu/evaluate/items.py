"""What is asked: each question of each benchmark, in each mode and in each order of its options.

A mode other than "think" is a benchmark of its own, NAME@MODE, so that everything that compares or sums up benchmarks
works on it: `no_think` switches thinking off, `answer_only` also asks for nothing but the answer, and `loglikelihood`
takes the likeliest letter after that same prompt without generating (single-choice questions only). The two show what
a model knows apart from how it reasons and writes.

The wordings below are frozen; PROMPTS is hashed into every report. Shuffled options: the letters keep their order, the
texts are permuted, seeded by (seed, question, number). Questions whose options speak of one another ("以上都是",
"both A and B") or do not stand letter by letter in the text keep their one order.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from danlu.data.language import language
from danlu.recipe import Eval, Mode
from danlu.records import Message, Sample

PROMPTS = {
    "answer_only": {
        ("zh", "choice"): "只回答选项字母，不要解释。",
        ("en", "choice"): "Answer with the letter of the option only, without explanation.",
        ("zh", "open"): "只回答答案本身，不要解释。",
        ("en", "open"): "Give the answer itself only, without explanation.",
    }
}
_ABOUT_OTHERS = re.compile(
    r"以上|上述|均[是不正对]|都[是不正对]|[A-H]\s*[、和与及,/]\s*[A-H]"
    r"|\b(?:all|none|both|neither|any) of\b|\b(?:both|and) [A-H]\b",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to ask. `letters`: letter as shown -> letter as published, where the options are shuffled."""

    benchmark: str
    mode: Mode
    sample: Sample
    shuffle: int = 0
    letters: dict[str, str] | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        return self.benchmark, self.sample.id, self.shuffle


def named(benchmark: str, mode: Mode) -> str:
    """Name of a benchmark in a mode."""
    return benchmark if mode == "think" else f"{benchmark}@{mode}"


def items_of(benchmark: str, samples: list[Sample], settings: Eval) -> Iterator[Item]:
    """Every item of a benchmark, mode by mode."""
    for mode in settings.modes:
        name = named(benchmark, mode)
        for sample in samples:
            if mode == "loglikelihood" and not single_choice(sample):
                continue
            yield Item(name, mode, sample)
            for number in range(1, settings.shuffles + 1):
                shuffled = _shuffled(sample, f"{settings.seed} {sample.id} {number}")
                if shuffled:
                    yield Item(name, mode, shuffled[0], number, shuffled[1])


def single_choice(sample: Sample) -> bool:
    """Whether one letter is the answer."""
    return bool(sample.options) and (sample.target or "").strip().upper() in sample.options


def messages_of(item: Item, system: str | None) -> tuple[Message, ...]:
    """The chat that the model is asked to continue."""
    messages = item.sample.messages
    if item.mode in ("answer_only", "loglikelihood"):
        tongue = "zh" if language(item.sample.question) in ("zh", "mixed") else "en"
        wish = PROMPTS["answer_only"][tongue, "choice" if item.sample.options else "open"]
        last: Message = {"role": "user", "content": f"{item.sample.question}\n\n{wish}"}
        messages = (*messages[:-1], last)
    if system and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system}, *messages)
    return messages


def _shuffled(sample: Sample, seed: str) -> tuple[Sample, dict[str, str]] | None:
    """The sample with its option texts permuted, and shown letter -> published letter; None where it cannot be."""
    options = sample.options
    if len(options) < 2 or any(_ABOUT_OTHERS.search(text) for text in options.values()):
        return None
    places = _places(sample.question, options)
    if places is None:
        return None
    letters = list(options)
    order = letters[:]
    random.Random(seed).shuffle(order)
    if order == letters:  # the published order is asked anyway
        order = [*order[1:], order[0]]
    parts, at = [], 0
    for (start, end), source in zip(places, order, strict=True):
        parts += [sample.question[at:start], options[source]]
        at = end
    question = "".join([*parts, sample.question[at:]])
    shown_as = {source: letter for letter, source in zip(letters, order, strict=True)}
    target = "".join(sorted(shown_as[letter] for letter in (sample.target or "") if letter in shown_as))
    messages: tuple[Message, ...] = (*sample.messages[:-1], {"role": "user", "content": question})
    shown = {letter: options[source] for letter, source in zip(letters, order, strict=True)}
    return replace(sample, messages=messages, options=shown, target=target), dict(zip(letters, order, strict=True))


def _places(question: str, options: dict[str, str]) -> list[tuple[int, int]] | None:
    """Where each option's text stands behind its letter, in order; None when one does not."""
    found, at = [], 0
    for letter, text in options.items():
        match = re.compile(rf"{re.escape(letter)}\s*[.．、:：)）]\s*{re.escape(text)}").search(question, at)
        if not match:
            return None
        found.append((match.end() - len(text), match.end()))
        at = match.end()
    return found
