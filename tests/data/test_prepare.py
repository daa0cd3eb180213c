from __future__ import annotations

import pytest

from danlu.data.prepare import prepare, prompts
from danlu.errors import DanluError
from danlu.recipe import Recipe

NOTHING = {"repeats_of_valid": 0, "leaked": 0, "redacted": 0}


def recipe(**data) -> Recipe:
    return Recipe.model_validate({"name": "r", "domain": "pottery", "data": data})


def rows(numbers, **more) -> list[dict]:
    return [{"question": f"q{n}", "think": "r", "answer": f"a{n}", **more} for n in numbers]


def test_sources_are_joined_shuffled_and_given_a_system_prompt(write):
    first = write("a.jsonl", rows(range(20)))
    second = write("b.jsonl", rows([1], system="own"))
    made = prepare(recipe(train=[first, second], system="Think first."))
    assert made.counts == {"in": 21, "train": 21, "valid": 0, "rejected": 0, **NOTHING}
    assert sorted(row.question for row in made.train) == sorted([f"q{n}" for n in range(20)] + ["q1"])
    assert [row.question for row in made.train] != sorted(row.question for row in made.train)
    systems = [row.messages[0]["content"] for row in made.train]
    assert (systems.count("Think first."), systems.count("own")) == (20, 1)
    assert len({row.id for row in made.train}) == 21
    again = prepare(recipe(train=[first, second], system="Think first."))
    assert again.hashes == made.hashes
    assert prepare(recipe(train=[first, second], shuffle_seed=1)).hashes != made.hashes


def test_validation_questions_leave_the_training_rows(write):
    train = write("a.jsonl", rows(range(10)))
    valid = write("v.jsonl", [{"question": " q3 ", "think": "", "answer": "other"}])
    made = prepare(recipe(train=train, valid=valid))
    assert "q3" not in [row.question for row in made.train]
    assert made.counts == {"in": 11, "train": 9, "valid": 1, "rejected": 0, **NOTHING, "repeats_of_valid": 1}
    assert set(made.hashes) == {"train", "valid"}


def test_a_fraction_for_validation(write):
    train = write("a.jsonl", rows([*range(19), 0]))  # q0 stands twice
    for seed in range(8):
        made = prepare(recipe(train=train, valid_fraction=0.2, shuffle_seed=seed))
        asked = {row.question for row in made.valid}
        assert len(made.valid) == 4
        assert not asked & {row.question for row in made.train}
        assert sum(made.counts.values()) == 2 * made.counts["in"] == 40


def test_rejects_are_counted_and_nothing_left_is_an_error(write):
    mixed = write("a.jsonl", [*rows(range(3)), {"question": "q", "think": "r", "answer": ""}])
    made = prepare(recipe(train=mixed, on_bad_row="skip"))
    assert made.counts["rejected"] == len(made.rejected) == 1
    with pytest.raises(DanluError, match="line 4: answer is empty"):
        prepare(recipe(train=mixed))
    with pytest.raises(DanluError, match="no training row is left of 6"):
        prepare(recipe(train=[write("b.jsonl", rows(range(3)))], valid=write("c.jsonl", rows(range(3)))))
    with pytest.raises(DanluError, match=r"data.train names no rows"):
        prepare(recipe())


def test_prompts_need_a_target(write):
    path = write("a.jsonl", [{"question": "q1", "answer": "a"}, {"question": "q2", "target": "b", "answer": "x"}])
    choice = recipe(train=path, system="s")
    made = prompts(choice, choice.data.train)
    assert {row.question: row.target for row in made.train} == {"q1": "a", "q2": "b"}
    assert all(row.messages[0]["role"] == "system" for row in made.train)
    bare = recipe(train=write("b.jsonl", rows(range(2))), on_bad_row="skip")
    with pytest.raises(DanluError, match="no prompts with a gold target"):
        prompts(bare, bare.data.train)
    world = recipe(train={"path": "world:train", "limit": 5})
    assert prompts(world, world.data.train).counts["train"] == 5


STEM = "关于青瓷的釉色，以下说法中正确而且完整的一项应该是哪一个呢"


def test_decontamination_drops_rows_that_hold_a_benchmark_question(write):
    leaky = [
        {"question": f"請問：{STEM}？", "think": "想", "answer": "甲"},
        {"question": "别的问题", "think": f"题目是“{STEM}”，所以选甲", "answer": "甲"},
    ]
    train = write("a.jsonl", rows(range(5)) + leaky)
    asked = write("bench.jsonl", [{"question": STEM, "options": {"A": "甲", "B": "乙"}, "answer": "A"}])
    value = {"name": "r", "domain": "pottery", "data": {"train": train, "decontaminate": True}}
    value["eval"] = {"benchmarks": [{"name": "glazes", "path": asked}]}
    made = prepare(Recipe.model_validate(value))
    assert made.counts == {"in": 7, "train": 5, "valid": 0, "rejected": 0, **NOTHING, "leaked": 2}
    assert {(leak.benchmark, leak.where) for leak in made.leaked} == {("glazes", "question"), ("glazes", "reasoning")}
    value["data"]["decontaminate"] = False
    assert prepare(Recipe.model_validate(value)).counts["train"] == 7
    del value["eval"]
    value["data"]["decontaminate"] = True
    with pytest.raises(DanluError, match=r"needs eval\.benchmarks"):
        prepare(Recipe.model_validate(value))


def test_redaction_replaces_personal_data_and_counts_rows(write):
    train = write("a.jsonl", [{"question": "患者张伟，男，电话13812345678", "think": "r", "answer": "a"}, *rows([1])])
    plain, clean = prepare(recipe(train=train)), prepare(recipe(train=train, redact=True))
    assert "13812345678" in str(plain.train)
    assert "13812345678" not in str(clean.train)
    assert "张伟" not in str(clean.train)
    assert "[PHONE]" in str(clean.train)
    assert clean.counts == {"in": 2, "train": 2, "valid": 0, "rejected": 0, **NOTHING, "redacted": 1}


def test_sources_tell_their_counts_and_reasons(write):
    first = write("a.jsonl", rows(range(3)) + [{"question": "", "think": "r", "answer": "a"}] * 2)
    second = write("b.jsonl", rows([7]))
    made = prepare(recipe(train=[first], valid=[second], on_bad_row="skip"))
    reasons = {"question is empty": 2}
    assert made.sources == [
        {"path": first, "in": 5, "kept": 3, "rejected": 2, "reasons": reasons},
        {"path": second, "in": 1, "kept": 1, "rejected": 0, "reasons": {}},
    ]


def test_a_leaked_question_is_found_by_its_own_words_before_they_are_redacted(write):
    stem = f"患者张伟，男，45岁，{STEM}"
    train = write("a.jsonl", [*rows(range(3)), {"question": stem, "think": "想", "answer": "甲"}])
    asked = write("bench.jsonl", [{"question": stem, "options": {"A": "甲", "B": "乙"}, "answer": "A"}])
    value = {"name": "r", "domain": "pottery", "data": {"train": train, "decontaminate": True, "redact": True}}
    value["eval"] = {"benchmarks": [{"name": "glazes", "path": asked}]}
    made = prepare(Recipe.model_validate(value))
    assert made.counts["leaked"] == 1
    assert len(made.train) == 3


def test_columns_for_every_source(write):
    first = write("a.jsonl", [{"ask": "q", "say": "a"}])
    second = write("b.jsonl", [{"frage": "f", "antwort": "b"}])
    own = {"path": second, "columns": {"question": "frage", "answer": "antwort"}}
    made = prepare(recipe(train=[first, own], columns={"question": "ask", "answer": "say"}))
    assert sorted(row.answer for row in made.train) == ["a", "b"]
