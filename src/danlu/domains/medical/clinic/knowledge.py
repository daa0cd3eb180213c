"""The clinic's knowledge: conditions, findings and facts in two languages, read from two TSV files.

Written from general medical knowledge for a toy world with a closed vocabulary. DEMO-ONLY, not medical advice:
facts are shortened to one test, one treatment and one red flag a condition.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")
FACTS = ("department", "test", "treatment", "flag")


@dataclass(frozen=True, slots=True)
class Entry:
    """A term: its category and names per language, the preferred one first."""

    key: str
    category: str
    names: dict[str, tuple[str, ...]]

    def name(self, language: Language) -> str:
        return self.names[language][0]


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition; findings and facts are keys of entries, weights 1 (occasional) to 3 (very typical)."""

    key: str
    findings: dict[str, int]
    facts: dict[str, str]


@dataclass(frozen=True)
class Knowledge:
    """Everything the clinic knows, with the inverse tables that generation needs."""

    entries: dict[str, Entry]
    conditions: dict[str, Condition]
    having: dict[str, tuple[str, ...]]  # finding -> conditions that have it
    with_fact: dict[tuple[str, str], tuple[str, ...]]  # (fact, value) -> conditions

    def name(self, key: str, language: Language) -> str:
        return self.entries[key].name(language)

    def matched(self, condition: str, findings: list[str] | tuple[str, ...]) -> list[str]:
        """Those of `findings` that the condition has, in their order."""
        has = self.conditions[condition].findings
        return [finding for finding in findings if finding in has]

    def ranked(self, findings: list[str] | tuple[str, ...]) -> list[tuple[str, int]]:
        """Conditions by number of matched findings, largest first."""
        return Counter(c for finding in findings for c in self.having.get(finding, ())).most_common()

    def best(self, findings: list[str] | tuple[str, ...]) -> str | None:
        """The condition that matches strictly more findings than any other."""
        order = self.ranked(findings)
        if order and (len(order) == 1 or order[1][1] < order[0][1]):
            return order[0][0]
        return None


def _rows(name: str) -> list[dict[str, str]]:
    path = resources.files("danlu.domains.medical.clinic") / "facts" / name
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def _names(row: dict[str, str], language: str) -> tuple[str, ...]:
    aliases = [alias.strip() for alias in (row[f"{language}_aliases"] or "").split(";")]
    return (row[language], *(alias for alias in aliases if alias))


@cache
def knowledge() -> Knowledge:
    """The clinic's knowledge, read once."""
    entries: dict[str, Entry] = {}
    conditions: dict[str, Condition] = {}
    having: dict[str, list[str]] = {}
    with_fact: dict[tuple[str, str], list[str]] = {}
    for row in _rows("terms.tsv"):
        entries[row["zh"]] = Entry(row["zh"], row["category"], {lang: _names(row, lang) for lang in LANGUAGES})
    for row in _rows("conditions.tsv"):
        key = row["zh"]
        entries[key] = Entry(key, "condition", {lang: _names(row, lang) for lang in LANGUAGES})
        findings = {name: int(weight) for name, _, weight in (f.partition(":") for f in row["findings"].split())}
        facts = {fact: row[fact] for fact in FACTS}
        conditions[key] = Condition(key, findings, facts)
        for finding in findings:
            having.setdefault(finding, []).append(key)
        for fact, value in facts.items():
            with_fact.setdefault((fact, value), []).append(key)
    return Knowledge(
        entries,
        conditions,
        {key: tuple(value) for key, value in having.items()},
        {key: tuple(value) for key, value in with_fact.items()},
    )
