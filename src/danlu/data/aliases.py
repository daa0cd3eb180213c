"""Other wordings of a gold answer, from the domain's lexicon: an open question whose gold is a known term accepts all
of that term's names, in either language.

Only a gold that is exactly a name counts (width and case aside), a name that is also a distractor of the question is
left out, and multiple-choice questions stay as they are.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace

from danlu.domains import Term
from danlu.records import Sample


def with_aliases(samples: Sequence[Sample], terms: Iterable[Term]) -> list[Sample]:
    """The samples, with the names of their gold's term among the aliases."""
    named: dict[str, Term] = {}
    for term in terms:
        for name in term.names:
            named.setdefault(_plain(name), term)
    return [_known(sample, named) for sample in samples]


def _known(sample: Sample, named: dict[str, Term]) -> Sample:
    if sample.options or not sample.target:
        return sample
    term = named.get(_plain(sample.target))
    if term is None:
        return sample
    taken = {_plain(text) for text in (sample.target, *sample.aliases, *sample.distractors)}
    more = [name for name in term.names if len(name) > 1 and _plain(name) not in taken]
    return replace(sample, aliases=(*sample.aliases, *more)) if more else sample


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()
