"""The textbook: seeded, and without a held-out vignette in any form that shows its answer."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from clinic_rows import rows

from danlu.domains.medical.clinic import textbook
from danlu.domains.medical.clinic.knowledge import LANGUAGES
from danlu.domains.medical.clinic.phrases import PHRASES
from danlu.domains.medical.clinic.vignettes import bucket

DRAWS = 4_000
COUNTED = {
    "zh": re.compile(r"(?:[A-D]\.)?([^；。：]+?)符合([^，。；]+)，共(\d+)项"),
    "en": re.compile(r"(?:[A-D]\. )?([^;:.]+?) has ([^;:.]+?), (\d+) in all"),
}


def documents(seed: int, count: int) -> list[str]:
    rng = random.Random(f"textbook {seed}")
    return [textbook.document(rng) for _ in range(count)]


def test_seeded():
    assert documents(0, 300) == documents(0, 300)
    assert documents(0, 50) != documents(1, 50)


def test_shares():
    texts = documents(2, DRAWS)
    english = sum(text.isascii() for text in texts) / len(texts)
    assert abs(english - textbook.ENGLISH) < 0.03
    assert abs(sum(textbook.PAGES.values()) - 1) < 1e-9
    assert len(set(texts)) > 0.8 * len(texts)
    assert all(text == text.strip() != "" for text in texts)


@pytest.mark.parametrize("seed", [0, 1])
def test_counting_never_uses_a_held_out_pair(kb, seed):
    """Over thousands of draws no condition at all matches 3 or more of the pool in a test or dev bucket."""
    rng = random.Random(f"pool {seed}")
    sizes: Counter[int] = Counter()
    for _ in range(DRAWS // 2):
        pool, shown = textbook.counting_pool(textbook._Page(rng, rng.choice(LANGUAGES)))
        for condition in kb.conditions:
            found = kb.matched(condition, pool)
            sizes[len(found)] += condition in shown
            assert len(found) < 3 or bucket(condition, found) not in ("test", "dev"), (condition, pool)
    assert sum(count for size, count in sizes.items() if size >= 3) > DRAWS // 20  # three and more do occur


def test_no_counting_sentence_shows_one(kb):
    """The same, read back from the text: what is printed is a true count, and no held-out pair of three or more."""
    by_name = {language: {kb.name(key, language): key for key in kb.entries} for language in LANGUAGES}
    seen = 0
    for text in documents(3, 3 * DRAWS):
        language = "en" if text.isascii() else "zh"
        words, names = PHRASES[language], by_name[language]
        for name, listed, number in COUNTED[language].findall(text):
            condition = names[name.strip()]
            found = [] if listed == words.nothing else [names[part] for part in listed.split(words.comma)]
            assert len(found) == int(number), text
            assert kb.matched(condition, found) == found, text
            assert len(found) < 3 or bucket(condition, found) not in ("test", "dev"), text
            seen += len(found) >= 3
    assert seen > 100


def test_no_document_holds_a_test_question():
    questions = [row.question for seed in range(4) for row in rows("test", seed)]
    cases = {question[: question.index("。" if "。" in question else ". ")] for question in questions}
    assert len(cases) > 0.9 * len(questions)
    text = "\n".join(documents(4, DRAWS))
    assert [case for case in cases if case in text] == []


def test_a_leak_would_be_found(kb):
    """The search above finds a planted question, and the buckets hold what they should."""
    row = rows("test")[0]
    assert bucket(row.meta["condition"], kb.matched(row.meta["condition"], row.meta["findings"])) == "test"
    assert row.question in "\n".join([*documents(4, 3), row.question])
