"""Term masking: some terms of the domain's lexicon are masked in a training row, anew in every epoch.

Names are found with Aho-Corasick (Aho & Corasick 1975); of overlapping finds the leftmost, then the longest, counts.
Case is ignored, and a name that begins or ends with a Latin letter or digit must stand as a word there ("flu" is not
in "fluid"). A chosen term is masked wherever it stands in the row, under each of its names. What happens to a row
depends on (seed, epoch, row id) alone, so a resumed run masks as the uninterrupted one.
With loss "denoise" the text stays, and rendering overwrites the input tokens of the spans only.
Not covered: names of one character (they match everywhere), plurals, Traditional against Simplified spelling.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import ahocorasick

from danlu.domains import Term
from danlu.recipe import Masking
from danlu.records import Message, Sample

Field = Literal["question", "reasoning", "answer"]


@dataclass(frozen=True, slots=True)
class Span:
    """A masked term: characters [start, end) of `field` of the sample that comes with it.

    `term` is what stood there, `mask` what is put in its place.
    """

    field: Field
    start: int
    end: int
    term: str
    mask: str


@dataclass(frozen=True, slots=True)
class Matcher:
    """The lexicon, ready to search: an automaton from lower-case name to index into `terms`."""

    terms: tuple[Term, ...]
    automaton: Any


def matcher(terms: Sequence[Term]) -> Matcher:
    """Matcher over all names of `terms`; a name that two terms share belongs to the first."""
    automaton = ahocorasick.Automaton()
    for index, term in enumerate(terms):
        for name in term.names:
            key = _lower(name.strip())
            if len(key) > 1 and key not in automaton:
                automaton.add_word(key, (index, len(key)))
    automaton.make_automaton()
    return Matcher(tuple(terms), automaton)


def find(text: str, matcher: Matcher) -> list[tuple[int, int, int]]:
    """(start, end, index of the term) of the leftmost longest names in `text`, none overlapping, in order."""
    if not len(matcher.automaton):
        return []
    lowered = _lower(text)
    found = [(last - size + 1, last + 1, index) for last, (index, size) in matcher.automaton.iter(lowered)]
    found = [span for span in found if _stands_alone(lowered, span[0], span[1])]
    found.sort(key=lambda span: (span[0], -span[1]))
    chosen: list[tuple[int, int, int]] = []
    for span in found:
        if not chosen or span[0] >= chosen[-1][1]:
            chosen.append(span)
    return chosen


def mask(
    sample: Sample, masking: Masking, matcher: Matcher, *, seed: int, epoch: int
) -> tuple[Sample, tuple[Span, ...]]:
    """The sample as trained in `epoch`, and what is masked in it; the sample itself where nothing is.

    Only reasoning, answer and the last user turn may change. For training rows only: validation must stay comparable.
    """
    rng = random.Random(f"{seed} {epoch} {sample.id}")
    if rng.random() >= masking.probability:
        return sample, ()
    texts: dict[Field, str] = {"question": sample.question, "reasoning": sample.reasoning, "answer": sample.answer}
    texts = {field: text for field, text in texts.items() if field in masking.where}
    finds = {field: find(text, matcher) for field, text in texts.items()}
    present = sorted({index for spans in finds.values() for _, _, index in spans})
    wanted = min(rng.randint(*masking.terms), len(present))
    forms = {index: rng.choice(masking.forms) for index in rng.sample(present, wanted)}
    instead = {index: _form(form, matcher.terms[index]) for index, form in forms.items()}
    if masking.loss == "denoise":
        return sample, tuple(
            Span(field, start, end, texts[field][start:end], instead[index])
            for field, spans in finds.items()
            for start, end, index in spans
            if index in instead
        )
    spans: list[Span] = []
    for field, text in texts.items():
        texts[field], own = _replaced(field, text, finds[field], instead)
        spans += own
    if not spans:
        return sample, ()
    asked: Message = {**sample.messages[-1], "content": texts.get("question", sample.question)}
    return replace(
        sample,
        messages=(*sample.messages[:-1], asked),
        reasoning=texts.get("reasoning", sample.reasoning),
        answer=texts.get("answer", sample.answer),
    ), tuple(spans)


def _form(form: str, term: Term) -> str:
    return {"mask": "[MASK]", "category": f"[{term.category.upper()}]", "ellipsis": "..."}[form]


def _replaced(
    field: Field, text: str, found: list[tuple[int, int, int]], instead: dict[int, str]
) -> tuple[str, list[Span]]:
    parts: list[str] = []
    spans: list[Span] = []
    at = length = 0
    for start, end, index in found:
        if index not in instead:
            continue
        parts += [text[at:start], instead[index]]
        begin = length + start - at
        length = begin + len(instead[index])
        spans.append(Span(field, begin, length, text[start:end], instead[index]))
        at = end
    return "".join([*parts, text[at:]]), spans


def _lower(text: str) -> str:
    """Lower case of the same length, so that places in it are places in the text."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)


def _stands_alone(text: str, start: int, end: int) -> bool:
    left = start > 0 and _latin(text[start]) and _latin(text[start - 1])
    right = end < len(text) and _latin(text[end - 1]) and _latin(text[end])
    return not left and not right


def _latin(letter: str) -> bool:
    return letter.isalnum() and ord(letter) < 0x250
