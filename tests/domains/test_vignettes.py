"""Vignettes: reproducible, balanced, fitting, answerable; splits that share nothing; worked traces that are right."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
from clinic_rows import SIZES, pair, rows

from danlu.domains.medical.clinic import vignettes
from danlu.domains.medical.clinic.knowledge import LANGUAGES
from danlu.domains.medical.clinic.phrases import PHRASES
from danlu.records import Completion
from danlu.rewards.verify import verify

SEEDS = (0, 1, 7)
EVERY = [row for split in SIZES for seed in SEEDS for row in rows(split, seed)]


def said(answer: str) -> Completion:
    return Completion(answer, "", answer, "stop", True)


@pytest.mark.parametrize("split", SIZES)
def test_same_arguments_same_rows(split):
    again = vignettes.samples(split, 24, seed=3)
    assert vignettes.samples(split, 24, seed=3) == again
    assert vignettes.samples(split, 24, seed=4) != again
    assert len({row.id for row in rows(split)}) == len(rows(split)) == SIZES[split]
    if split != "test":  # more rows begin with the fewer
        assert vignettes.samples(split, 12, seed=3) == again[:12]


def test_unknown_splits_are_refused():
    with pytest.raises(ValueError, match="unknown split 'tset'"):
        vignettes.samples("tset", 1)


@pytest.mark.parametrize("split", SIZES)
def test_kinds_are_balanced(split):
    kinds = Counter((row.meta["language"], row.meta["task"]) for row in rows(split))
    assert len(kinds) == len(LANGUAGES) * len(vignettes.TASKS) * len(vignettes.FORMS)
    assert len(set(kinds.values())) == 1
    assert all(row.meta["split"] in (split, "test-seen", "test-unseen") for row in rows(split))


def test_the_gold_is_the_strict_best_match(kb):
    for row in EVERY:
        condition, findings = row.meta["condition"], row.meta["findings"]
        task, form = row.meta["task"].split("/")
        order = kb.ranked(findings)
        assert order[0][0] == kb.best(findings) == condition
        assert order[0][1] > order[1][1] if len(order) > 1 else True
        gold = kb.entries[vignettes.gold(kb, condition, task)].name(row.meta["language"])
        assert (row.options[row.target] if form == "choice" else row.target) == gold


def test_candidates_have_to_be_compared(kb):
    """3 or 4 findings, at most one of which the condition has alone, and at most one of another condition."""
    for row in EVERY:
        condition, findings = row.meta["condition"], row.meta["findings"]
        own = kb.matched(condition, findings)
        assert 3 <= len(own) <= 4
        assert len(findings) - len(own) <= 1
        assert len(set(findings)) == len(findings)
        assert sum(len(kb.having[finding]) == 1 for finding in own) <= 1
    mixed = sum(len(row.meta["findings"]) > len(pair(row)[1]) for row in EVERY)
    assert 0.2 < mixed / len(EVERY) < vignettes.DISTRACTOR + 0.05


def test_options_are_four_and_differ():
    for row in EVERY:
        if row.options:
            assert list(row.options) == list("ABCD")
            assert len(set(row.options.values())) == 4
            assert all(f"{letter}." in row.question and text in row.question for letter, text in row.options.items())
    letters = Counter(row.target for row in EVERY if row.options)
    assert min(letters.values()) > 0.18 * sum(letters.values())


def test_the_patient_can_have_the_findings():
    """Sex and age of the text against the findings that need one.

    A finding of a competing condition may contradict the patient ("young man" beside "after menopause"); that is
    rare, never happens among the condition's own findings, and is bounded here.
    """
    told: Counter[str] = Counter()
    for row in EVERY:
        findings, own, words = set(row.meta["findings"]), pair(row)[1], PHRASES[row.meta["language"]]
        shown = words.comma.join(_shown(row))
        patient, _, rest = row.question.partition(shown)
        assert rest, row.question
        female = bool("女" in patient or re.search(r"\b(woman|girl)\b", patient))
        told["female" if female else "male"] += 1
        told["contradiction"] += not _possible(findings)
        assert _possible(own), row.question
        if not _possible(findings):
            continue
        if findings & vignettes.WOMEN:
            assert female, row.question
        if findings & vignettes.MEN:
            assert not female, row.question
        low, high = _ages(findings)
        age = re.search(r"(\d+)(?:岁|-year-old)|aged (\d+)", patient)
        if age:
            assert low <= int(age[1] or age[2]) <= high, row.question
        if row.meta["language"] == "en":
            assert bool(re.search(r"\b(boy|girl)\b", patient)) == (high < 12), row.question
    assert min(told["female"], told["male"]) > 0.35 * len(EVERY)
    assert told["contradiction"] <= 0.01 * len(EVERY)


def _ages(findings) -> tuple[int, int]:
    bounds = [vignettes.AGES[finding] for finding in findings if finding in vignettes.AGES] or [(18, 85)]
    return max(low for low, _ in bounds), min(high for _, high in bounds)


def _possible(findings) -> bool:
    low, high = _ages(findings)
    return low <= high and not (vignettes.WOMEN & set(findings) and vignettes.MEN & set(findings))


def _shown(row) -> list[str]:
    kb = vignettes.knowledge()
    return [kb.name(finding, row.meta["language"]) for finding in row.meta["findings"]]


# ---- worked traces

LINE = {
    "zh": re.compile(r"(?:[A-D]\.)?([^；。：]+?)符合([^，]+)，共(\d+)项"),
    "en": re.compile(r"(?:[A-D]\. )?([^;:.]+?) has ([^;:.]+?), (\d+) in all"),
}


@pytest.mark.parametrize("split", ["sft", "dev"])
def test_worked_traces_are_right(kb, split):
    """What is counted is what matches, the conclusion has the largest count, and the answer says the gold."""
    for row in (row for seed in SEEDS for row in rows(split, seed)):
        language, condition = row.meta["language"], row.meta["condition"]
        words, (task, form) = PHRASES[language], row.meta["task"].split("/")
        by_name = {kb.name(key, language): key for key in kb.conditions}
        assert words.comma.join(_shown(row)) in row.reasoning
        counted = {}
        listed = row.reasoning.split(words.candidates.split("{")[0].strip())[1]
        for name, found, number in LINE[language].findall(listed):
            key = by_name[name.strip()]
            true = [kb.name(finding, language) for finding in kb.matched(key, row.meta["findings"])]
            assert (found == words.nothing and not true) or found.split(words.comma) == true, row.reasoning
            assert int(number) == len(true)
            counted[key] = int(number)
        assert condition in counted
        assert all(number < counted[condition] for key, number in counted.items() if key != condition)
        if len(kb.ranked(row.meta["findings"])) > 1:
            assert len(counted) >= 2
        assert words.best.format(condition=kb.name(condition, language)) in row.reasoning
        right = kb.name(vignettes.gold(kb, condition, task), language)
        if task != "diagnosis":
            assert words.fact[task].format(condition=kb.name(condition, language), value=right) in row.reasoning
        if form == "choice":
            assert words.option.format(letter=row.target, value=right) in row.reasoning
            assert row.answer == words.answer_choice.format(letter=row.target)
        else:
            assert row.answer == words.answer[task].format(value=right)


def test_a_trace_that_miscounts_would_be_found(kb):
    row = next(row for row in rows("sft") if row.meta["language"] == "zh" and "/open" in row.meta["task"])
    name, found, number = LINE["zh"].findall(row.reasoning.split("候选：")[1])[0]
    assert int(number) == len(found.split("、")) if found != "无" else int(number) == 0
    assert name in {kb.name(key, "zh") for key in kb.conditions}


# ---- what the verifier says


@pytest.mark.parametrize("split", SIZES)
def test_gold_answers_are_right_and_those_of_other_conditions_are_not(kb, split):
    for row in rows(split):
        language, condition = row.meta["language"], row.meta["condition"]
        words, (task, form) = PHRASES[language], row.meta["task"].split("/")
        if row.answer:
            assert verify(row, said(row.answer)).outcome == "right", row.answer
        gold = vignettes.gold(kb, condition, task)
        if form == "choice":
            for letter in row.options:
                outcome = verify(row, said(words.answer_choice.format(letter=letter))).outcome
                assert outcome == ("right" if letter == row.target else "wrong"), (row.question, letter)
            continue
        for name in kb.entries[gold].names[language]:
            assert verify(row, said(words.answer[task].format(value=name))).outcome == "right", name
        near = [key for key, _ in kb.ranked(row.meta["findings"])][:4] + list(kb.conditions)[::25]
        for other in near:
            value = vignettes.gold(kb, other, task)
            if value == gold:
                continue
            answer = words.answer[task].format(value=kb.name(value, language))
            assert verify(row, said(answer)).outcome == "wrong", (row.target, answer)


def test_every_pair_of_names_is_told_apart(kb):
    """Each open answer against each gold of its kind: right for its own, wrong for every other."""
    for language in LANGUAGES:
        words = PHRASES[language]
        for task in vignettes.TASKS:
            row = next(r for r in EVERY if r.meta["task"] == f"{task}/open" and r.meta["language"] == language)
            values = sorted({vignettes.gold(kb, condition, task) for condition in kb.conditions})
            names = {value: kb.name(value, language) for value in values}
            for value in values[::3]:
                rivals = tuple(name for key, name in names.items() if key != value)
                own = replace(row, target=names[value], aliases=kb.entries[value].names[language][1:])
                own = replace(own, distractors=rivals)
                for other in (value, *values[1::9]):
                    outcome = verify(own, said(words.answer[task].format(value=names[other]))).outcome
                    assert outcome == ("right" if other == value else "wrong"), (value, other)


# ---- splits


def test_no_pair_stands_in_two_splits():
    found = {split: {pair(row) for seed in range(6) for row in rows(split, seed)} for split in SIZES}
    parts = ("sft", "grpo", "dev", "test-seen", "test-unseen")
    for number, one in enumerate(parts):
        for other in parts[number + 1 :]:
            assert not found[one] & found[other], (one, other)
    assert not found["test"] & (found["sft"] | found["grpo"] | found["answers"] | found["dev"])


def test_held_out_conditions_are_never_trained_on(kb):
    held = vignettes.held_out()
    assert len(held) == len(kb.conditions) // 4
    for split in ("sft", "grpo", "answers", "dev", "test-seen"):
        assert not {row.meta["condition"] for seed in range(6) for row in rows(split, seed)} & held, split
    assert {row.meta["condition"] for row in rows("test-unseen")} <= held


def test_held_out_questions_are_asked_once():
    for split in ("dev", "test-seen", "test-unseen"):
        assert len({pair(row) for row in rows(split)}) == SIZES[split]


def test_a_test_is_half_seen_half_unseen():
    halves = [row.meta["split"] for row in rows("test")]
    assert Counter(halves) == {"test-seen": 72, "test-unseen": 72}
    assert [row.meta["split"] for row in vignettes.samples("test", 3)] == ["test-seen", "test-unseen", "test-seen"]


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_are_the_rows_of_grpo_with_answers(seed):
    for plain, told in zip(rows("grpo", seed), rows("answers", seed), strict=True):
        assert plain.answer == plain.reasoning == told.reasoning == ""
        assert told.answer
        assert (plain.question, plain.target, plain.options) == (told.question, told.target, told.options)
        assert (plain.aliases, plain.distractors) == (told.aliases, told.distractors)
