"""The clinic's two tables: complete, without doubles, and such that conditions have to be compared."""

from __future__ import annotations

from collections import Counter

import pytest

from danlu import domains
from danlu.domains.medical.clinic import vignettes
from danlu.domains.medical.clinic.knowledge import FACTS, LANGUAGES


def test_size_and_shape(kb):
    assert len(kb.conditions) >= 120
    for condition in kb.conditions.values():
        assert 5 <= len(condition.findings) <= 8, condition.key
        assert set(condition.findings.values()) <= {1, 2, 3}, condition.key
        assert set(condition.facts) == set(FACTS), condition.key


def test_every_key_used_exists_in_its_category(kb):
    for condition in kb.conditions.values():
        for finding in condition.findings:
            assert kb.entries[finding].category == "finding", (condition.key, finding)
        for fact, value in condition.facts.items():
            assert kb.entries[value].category == fact, (condition.key, value)
    used = {f for c in kb.conditions.values() for f in (*c.findings, *c.facts.values())} | set(kb.conditions)
    assert set(kb.entries) == used  # and nothing is there for nothing
    lists = (vignettes.WOMEN, vignettes.MEN, vignettes.AGES)
    assert {name for names in lists for name in names} <= set(kb.having)


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_are_unique_and_clean(kb, language):
    """A name stands for one thing, or a verifier could not tell the right answer from another."""
    counted = Counter((e.category, name.casefold()) for e in kb.entries.values() for name in e.names[language])
    assert [name for name, count in counted.items() if count > 1] == []
    for entry in kb.entries.values():
        for name in entry.names[language]:
            assert name == name.strip() != "", entry.key
            assert not set(name) & set("、；;，,。：:|\n\t"), name
            assert name.isascii() == (language == "en"), name


def test_findings_are_shared(kb):
    """At least 80 % of (condition, finding) pairs use a finding of two or more conditions."""
    owners = [len(kb.having[finding]) for condition in kb.conditions.values() for finding in condition.findings]
    assert sum(count > 1 for count in owners) >= 0.8 * len(owners)


def test_ranking(kb):
    condition = next(iter(kb.conditions.values()))
    every = list(condition.findings)
    assert kb.best(every) == condition.key
    assert kb.ranked(every)[0] == (condition.key, len(every))
    assert kb.best([]) is None
    shared = next(finding for finding, owners in kb.having.items() if len(owners) > 1)
    assert kb.best([shared]) is None  # a tie is no best match
    assert kb.matched(condition.key, ["no such finding", every[0]]) == [every[0]]


def test_the_domain_shows_it_through_its_face(kb):
    domain = domains.load("medical")
    known = {name for term in domain.terms() for name in term.names}
    assert set(kb.entries) <= known
    assert domain.world is not None
    assert "DEMO-ONLY" in domain.world.notice
    assert set(domain.world.splits) == {*vignettes.SPLITS, "test-partial"}
    assert domain.notice
