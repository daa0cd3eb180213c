"""What the page Verdict shows: the right two sides, differences where they belong, the questions of a choice."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from danlu.errors import DanluError
from danlu.evaluate.verdict import compare
from danlu.run import Run, write_json
from danlu.studio import verdict_view
from danlu.studio.verdict_view import Choice
from danlu.studio.words import translate

EVIL = "<script>alert(1)</script>\u202e"


def evaluated(root: Path, name: str, right: set[int], n: int = 40, **changes: Any) -> Run:
    """An evaluation of `n` choice questions of two subjects, those in `right` answered right."""
    run = Run.create(root / name, "eval", {"name": "demo"}, parents=changes.pop("parents", []))
    rows = [
        {
            "benchmark": "quiz",
            "id": f"q{i}",
            "index": 0,
            "question": f"发热{i}？A. 甲 B. 乙",
            "target": "A",
            "options": {"A": "甲", "B": "乙"},
            "subject": "内科" if i % 2 else "外科",
            "output": f"<think>想{EVIL}</think>{EVIL}",
            "answer": EVIL,
            "extracted": "A" if i in right else None,
            "outcome": "right" if i in right else "none",
            "how": "option text",
            "finish": "stop",
            "tokens": 9,
            "leaked": i == 1,
            **changes,
        }
        for i in range(n)
    ]
    run.write_samples(rows)
    with run.recording():
        run.record(benchmarks={"quiz": {"n": n, "accuracy": len(right) / n, "ci": [0, 1]}})
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    evaluated(root, "one-eval-base", set(range(10)))
    after = evaluated(root, "one-eval", set(range(5, 30)), parents=["one-grpo"])
    write_json(after.path / "compare.json", compare(root / "one-eval-base", after))
    other = Run.create(root / "other-eval", "eval", {"name": "demo"})
    with other.recording():
        other.record(benchmarks={"another": {"n": 1, "accuracy": 0, "ci": [0, 1]}})
    Run.create(root / "unfinished-eval", "eval", {"name": "demo"})
    return root


def test_the_newest_comparison_is_shown_against_its_own_base(root: Path) -> None:
    known = verdict_view.evaluations(root)
    assert [one.name for one in known] == ["other-eval", "one-eval", "one-eval-base"]
    assert verdict_view.pair(known) == ("one-eval-base", "one-eval")
    assert verdict_view.pair(known, "one-eval", "one-eval-base") == ("one-eval", "one-eval-base")
    assert verdict_view.pair(known, "gone", "gone") == ("one-eval-base", "one-eval")
    assert verdict_view.pair(known[:1]) is None
    assert verdict_view.pair([]) is None


def test_the_verdict_is_that_of_the_command(root: Path) -> None:
    told = verdict_view.compared(root, "one-eval-base", "one-eval")
    found = compare(root / "one-eval-base", root / "one-eval")
    assert told.found["sentence"] == found["sentence"]
    assert verdict_view.counts(told) == {"lost": 5, "gained": 20, "wrong": 10}
    assert not verdict_view.warnings(told.found)
    entry = told.found["benchmarks"][0]
    assert verdict_view.table([entry])[0][:5] == ["quiz", "40", "25.0 %", "62.5 %", "+37.5"]


def test_differences_stand_where_their_numbers_are(root: Path) -> None:
    told = verdict_view.compared(root, "one-eval-base", "one-eval")
    lines, ticks = verdict_view.forest(told.found["benchmarks"])
    places = {label: place for place, label in ticks}
    assert [line.under for line in lines] == [False, True]  # the second without the leaked question
    first = lines[0]
    assert first.kind == "better"
    assert first.left < first.point < first.left + first.width
    assert places["0"] < first.left
    scale = (places["+20"] - places["0"]) / 20
    assert first.point == pytest.approx(places["0"] + 37.5 * scale)


def test_questions_are_chosen_by_kind_subject_leak_and_words(root: Path) -> None:
    told = verdict_view.compared(root, "one-eval-base", "one-eval")
    assert verdict_view.subjects(told) == ["内科", "外科"]

    def ids(**choice: Any) -> list[str]:
        return [key[1] for key in verdict_view.keys(told, Choice(**choice))]

    assert ids() == ["q0", "q1", "q2", "q3", "q4"]
    assert ids(subject="内科") == ["q1", "q3"]
    assert ids(leaked=True) == ["q1"]
    assert ids(words="发热4") == ["q4"]
    assert ids(kind="gained", benchmark="quiz", words="Q12") == ["q12"]
    assert ids(benchmark="nothing") == []
    assert verdict_view.any_leaked(told)


def test_a_question_shows_both_answers_and_nothing_acts(root: Path) -> None:
    told = verdict_view.compared(root, "one-eval-base", "one-eval")
    one = verdict_view.item(told, ("quiz", "q1"), partial(translate, language="zh"))
    assert one.question == "发热1？"
    assert one.options == (("A", "甲", True), ("B", "乙", False))
    assert (one.base.outcome, one.base.claim) == ("right", "A")
    assert (one.tuned.outcome, one.tuned.claim) == ("none", "")
    assert one.base.note == "读作 A · 按选项原文 · 9 个 token"
    assert one.base.reasoning == "想<script>alert(1)</script><U+202E>"
    assert one.base.answer == "<script>alert(1)</script><U+202E>"
    assert one.leaked


def test_a_changed_side_is_compared_anew(tmp_path: Path) -> None:
    evaluated(tmp_path, "a", set())
    run = evaluated(tmp_path, "b", set())
    assert verdict_view.counts(verdict_view.compared(tmp_path, "a", "b"))["wrong"] == 40
    rows = [{**row, "outcome": "right"} for row in run.samples()]
    (run.path / "samples.jsonl").unlink()
    run.write_samples(rows)
    assert verdict_view.counts(verdict_view.compared(tmp_path, "a", "b"))["gained"] == 40


@pytest.mark.parametrize("name", ["../x", "/etc", "nothing", ""])
def test_only_runs_of_the_folder_are_compared(root: Path, name: str) -> None:
    with pytest.raises(DanluError):
        verdict_view.compared(root, name, "one-eval")


def test_sides_without_a_question_in_common_are_refused(tmp_path: Path) -> None:
    evaluated(tmp_path, "a", set())
    evaluated(tmp_path, "b", set(), benchmark="elsewhere")
    with pytest.raises(DanluError):
        verdict_view.compared(tmp_path, "a", "b")


def test_the_sentence_about_one_benchmark_has_its_values(root: Path) -> None:
    told = verdict_view.compared(root, "one-eval-base", "one-eval")
    assert verdict_view.alone(told.found) is None  # it rests on the questions that did not leak
    entry = {**told.found["benchmarks"][0], "leaked": None}
    values = verdict_view.alone({"benchmarks": [entry]})
    assert values is not None
    assert (values["points"], values["n"]) == ("+37.5", "40")
    assert verdict_view.alone({"benchmarks": [entry, entry]}) is None
