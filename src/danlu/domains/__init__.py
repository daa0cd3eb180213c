"""A domain is data with a small face; a recipe names it and code meets it only through `Domain`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Domain:
    """Everything the rest of Danlu knows about a field of work."""

    name: str
    terms: Callable[[], list[Term]]
    world: World | None = None
    sources: dict[str, str] = field(default_factory=dict)  # short name -> hub id or path
    benchmarks: dict[str, Any] = field(default_factory=dict)
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
