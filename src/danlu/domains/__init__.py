"""A domain is data with a small face; a recipe names it and code meets it only through `Domain`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from danlu.errors import DanluError
from danlu.records import Sample


@dataclass(frozen=True, slots=True)
class Term:
    """One entry of a domain's lexicon; `names` are all spellings, the preferred one first."""

    names: tuple[str, ...]
    category: str


@dataclass(frozen=True, slots=True)
class World:
    """A miniature world with verifiable answers, for demos and tests.

    `samples(split, n, seed)` returns `n` rows of a split; `splits` names the splits with what they hold.
    """

    splits: dict[str, str]
    samples: Callable[..., list[Sample]]
    notice: str = ""  # shown wherever results of this world are shown


Kind = Literal["choice", "open", "abstention", "rubric", "safety"]


@dataclass(frozen=True, slots=True)
class BenchmarkSpec:
    """A benchmark of a field: where its questions are, and what an answer to them shows.

    `kind`: choice (gold letters) | open (gold text) | abstention (the gold option admits not to know) | rubric (points
    for criteria, by a judge) | safety (whether to refuse, warn or help). `subsets` are loaded as one benchmark, each
    row with its subset as meta subject. `files` are where the questions lie in a folder of the user's own, tried in
    order: names below it, with {subset} for a subset's name, or one * in the last part for whatever is there.
    """

    name: str
    path: str  # as in data sources: a hub id, modelscope:ID, world:SPLIT, probes:NAME, or a file
    measures: str  # one line
    kind: Kind
    language: Literal["zh", "en", "both"]
    licence: str
    split: str = "test"
    subsets: tuple[str, ...] = ()
    part: str = "{subset}"  # what a subset is called at `path`; there may be files in it: "{subset}/val/0000.parquet"
    revision: str | None = None
    columns: dict[str, str] = field(default_factory=dict)  # our name -> the file's column
    subject: str | None = None  # the column that names a row's subject, where a file has it
    only: tuple[str, ...] = ()  # the subjects that are asked; empty: all
    rule: dict[str, Any] = field(default_factory=dict)  # decides over rows without gold; see rewards/rules.py
    limit: int | None = None  # questions where the recipe names no number
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Domain:
    """Everything the rest of Danlu knows about a field of work."""

    name: str
    terms: Callable[[], list[Term]]
    world: World | None = None
    sources: dict[str, str] = field(default_factory=dict)  # short name -> hub id or path
    benchmarks: dict[str, BenchmarkSpec] = field(default_factory=dict)
    suites: dict[str, tuple[tuple[str, int | None], ...]] = field(default_factory=dict)  # benchmarks, most questions
    probes: dict[str, Callable[[], list[Sample]]] = field(default_factory=dict)  # each Sample with its rule in `meta`
    notice: str = ""


def load(name: str) -> Domain:
    """The domain `name`: a shipped one, or `package.module` with a DOMAIN of the user's own."""
    module = f"danlu.domains.{name}" if name.isidentifier() else name
    try:
        return importlib.import_module(module).DOMAIN
    except ModuleNotFoundError as error:
        if error.name and not module.startswith(error.name):
            raise
        try:
            return importlib.import_module(name).DOMAIN
        except ModuleNotFoundError:
            raise DanluError(
                f"no domain {name!r}", "shipped: medical; or name an importable module with a DOMAIN"
            ) from None
