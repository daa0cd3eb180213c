"""The medical lexicon: clean tables, one concept a name, and every word of the clinic among the terms."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from danlu import domains
from danlu.domains.medical.lexicon import CATEGORIES, lexicon, names, rows

COLUMNS = ["zh", "en", "zh_aliases", "en_aliases"]
LEAST = {"disease": 620, "department": 50, "tcm_pattern": 180}

# Names that two categories may both have, with the reason. A preferred Chinese name never may.
SHARED: dict[str, str] = {}


def test_there_is_a_lot_of_it():
    counts = {category: len(rows(category)) for category in CATEGORIES}
    assert all(counts.values()), counts
    assert all(counts[category] >= least for category, least in LEAST.items()), counts
    assert sum(counts.values()) >= 1500
    assert len(lexicon()) == sum(counts.values())
    assert {term.category for term in lexicon()} == set(CATEGORIES)


@pytest.mark.parametrize("category", CATEGORIES)
def test_rows_are_clean(category):
    for row in rows(category):
        assert list(row) == COLUMNS, row
        assert None not in row.values(), row
        chinese = [row["zh"], *filter(None, row["zh_aliases"].split(";"))]
        for name in names(row):
            assert name == name.strip(), row
            assert len(name) >= 2, row
            assert not set(name) & set("、；;，。：:|\n\t"), row
            assert name.isprintable(), row
            if name.isascii():
                assert len(name) >= 3, row
        assert any("\u4e00" <= letter <= "\u9fff" for letter in row["zh"]), row
        english = names(row)[len(chinese) :]
        assert not any(re.search(r"[\u4e00-\u9fff]", name) for name in english), row
        for aliases in (row["zh_aliases"], row["en_aliases"]):
            assert not aliases or all(aliases.split(";")), row


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_name_is_one_concept_within_a_category(category):
    owners = defaultdict(list)
    for row in rows(category):
        for name in names(row):
            owners[name.casefold()].append(row["zh"])
    assert {name: zh for name, zh in owners.items() if len(zh) > 1} == {}


def test_categories_share_no_names_but_the_listed():
    owners = defaultdict(set)
    preferred = defaultdict(set)
    for category in CATEGORIES:
        for row in rows(category):
            preferred[row["zh"]].add(category)
            for name in names(row):
                owners[name.casefold()].add(category)
    assert {zh: found for zh, found in preferred.items() if len(found) > 1} == {}
    assert {name for name, found in owners.items() if len(found) > 1} == set(SHARED)


def test_the_domain_has_every_word_of_the_clinic_once(kb):
    terms = domains.load("medical").terms()
    assert terms[: len(lexicon())] == list(lexicon())
    known = {name.casefold() for term in terms for name in term.names}
    assert [key for key, entry in kb.entries.items() if entry.name("zh").casefold() not in known] == []
    assert {term.category for term in terms} == set(CATEGORIES)
    added = [name.casefold() for term in terms[len(lexicon()) :] for name in term.names]
    assert len(set(added)) == len(added)
    assert not set(added) & {name.casefold() for term in lexicon() for name in term.names}


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("心梗", "disease"),  # an alias
        ("heart attack", "disease"),
        ("风寒束肺", "tcm_pattern"),
        ("心内科", "department"),
        ("反复发作", "symptom"),  # a finding of the clinic alone
        ("不可逆脑损伤", "disease"),  # a flag
        ("肿瘤电切", "procedure"),  # a treatment that is done
        ("人工泪液", "drug"),  # and one that is given
    ],
)
def test_names_stand_where_one_looks(name, category):
    assert [term.category for term in domains.load("medical").terms() if name in term.names] == [category]
