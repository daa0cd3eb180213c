"""The medical lexicon: terms with their names in Chinese and English, one TSV file a category.

Written by us from general medical knowledge; no list, terminology or code system was copied. A row is a concept:
`zh`, `en`, `zh_aliases`, `en_aliases` (aliases joined with ";"). Within a file a name belongs to one concept; what
files may share is listed, with reasons, in tests/domains/test_lexicon.py.
Not covered: codes (ICD, SNOMED CT, ATC), relations between terms, Traditional Chinese, plurals, and everyday words
that mean something else outside medicine ("cold", "AIDS" in small letters), which are left out on purpose.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources

from danlu.domains import Term

CATEGORIES = ("symptom", "sign", "disease", "drug", "test", "procedure", "anatomy", "department", "tcm_pattern")


def rows(category: str) -> list[dict[str, str]]:
    """The rows of a category's file by column, none where the file is not there."""
    path = resources.files(__name__) / f"{category}.tsv"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def names(row: dict[str, str]) -> tuple[str, ...]:
    """All names of a row: the Chinese ones, then the English ones, each language's preferred name first."""
    return (
        row["zh"],
        *filter(None, row["zh_aliases"].split(";")),
        row["en"],
        *filter(None, row["en_aliases"].split(";")),
    )


@cache
def lexicon() -> tuple[Term, ...]:
    """Every term, in the order of CATEGORIES."""
    return tuple(Term(names(row), category) for category in CATEGORIES for row in rows(category))
