"""The gate: it fails for what fell, passes for what held, and says what nobody measured."""

import json
from pathlib import Path
from typing import Any

import pytest

from danlu.evaluate.gate import gate
from danlu.evaluate.verdict import compare

GOOD = {"finish": "stop", "well_formed": True, "language_match": True}


def side(right: str, name: str, **extra: Any) -> list[dict[str, Any]]:
    """One row a letter: r right, w wrong."""
    return [
        {"benchmark": name, "id": f"q{i}", "outcome": "right" if letter == "r" else "wrong", **GOOD, **extra}
        for i, letter in enumerate(right)
    ]


def compared(tmp_path: Path, base: list[dict[str, Any]], tuned: list[dict[str, Any]]) -> dict[str, Any]:
    for name, rows in (("a", base), ("b", tuned)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return compare(tmp_path / "a.jsonl", tmp_path / "b.jsonl")


def test_passes_where_all_holds(tmp_path: Path) -> None:
    up = compared(
        tmp_path, side("w" * 40, "cmexam") + side("rw" * 20, "mmlu"), side("r" * 40, "cmexam") + side("rw" * 20, "mmlu")
    )
    assert gate(up, guard={"mmlu"}) == {
        "ok": True,
        "failures": [],
        "unmeasured": [],
        "guarded": ["mmlu"],
        "sentence": "passes: no significant fall of accuracy on mmlu, nor of stop rate, format rate and language match",
    }


def test_fails_where_a_guard_fell_and_only_there(tmp_path: Path) -> None:
    base = side("w" * 40, "cmexam") + side("r" * 40, "mmlu-zh") + side("r" * 40, "safety")
    tuned = side("r" * 40, "cmexam") + side("r" * 25 + "w" * 15, "mmlu-zh") + side("r" * 40, "safety")
    found = compared(tmp_path, base, tuned)
    result = gate(found, guard={"mmlu", "safety"})
    assert not result["ok"]
    assert [(test["benchmark"], test["what"]) for test in result["failures"]] == [("mmlu-zh", "accuracy")]
    assert result["failures"][0]["difference"] == pytest.approx(-0.375)
    assert result["failures"][0]["p"] == pytest.approx(2 * found["benchmarks"][1]["p"])  # of two guards
    assert result["sentence"] == "fails: accuracy on mmlu-zh fell (100.0 % -> 62.5 %, -37.5 points, p < 0.001)"
    assert gate(found, guard={"safety"})["ok"]
    assert gate(found, guard=set())["ok"]
    assert not gate(found)["ok"]  # by default nothing may fall
    assert gate(found)["guarded"] == ["cmexam", "mmlu-zh", "safety"]


def test_a_small_fall_is_not_significant(tmp_path: Path) -> None:
    assert gate(compared(tmp_path, side("r" * 40, "mmlu"), side("r" * 36 + "w" * 4, "mmlu")))["ok"]
    fell = compared(tmp_path, side("r" * 40, "mmlu"), side("r" * 34 + "w" * 6, "mmlu"))
    assert not gate(fell)["ok"]  # p = 0.03
    flat = [row for i in range(3) for row in side("rw" * 20, f"mmlu{i}")]
    many = compared(tmp_path, side("r" * 40, "mmlu") + flat, side("r" * 34 + "w" * 6, "mmlu") + flat)
    assert gate(many, guard={"mmlu"})["ok"]  # four guards, adjusted
    assert not gate(many, guard={"mmlu", "nothing"})["ok"]


@pytest.mark.parametrize(
    ("field", "bad", "what"),
    [
        ("finish", "length", "stop rate"),
        ("well_formed", False, "format rate"),
        ("language_match", False, "language match"),
    ],
)
def test_rates_of_every_benchmark_are_held(tmp_path: Path, field: str, bad: Any, what: str) -> None:
    base, tuned = side("r" * 30, "cmexam") + side("r" * 30, "b"), side("r" * 30, "cmexam") + side("r" * 30, "b")
    for row in tuned[30:40]:
        row[field] = bad
    found = compared(tmp_path, base, tuned)
    result = gate(found, guard=set())
    assert [(test["benchmark"], test["what"], test["n"]) for test in result["failures"]] == [("b", what, 30)]
    assert result["failures"][0]["p"] == pytest.approx(2 * 2 / 2**10)
    assert f"{what} on b fell (100.0 % -> 66.7 %, -33.3 points, p = 0.0039)" in result["sentence"]
    assert gate(compared(tmp_path, tuned, base), guard=set())["ok"]  # a rise is no failure


def test_leaked_questions_do_not_hide_a_fall(tmp_path: Path) -> None:
    base = side("r" * 20, "mmlu") + [{**row, "id": f"z{row['id']}", "leaked": True} for row in side("w" * 20, "mmlu")]
    tuned = side("w" * 20, "mmlu") + [{**row, "id": f"z{row['id']}", "leaked": True} for row in side("r" * 20, "mmlu")]
    found = compared(tmp_path, base, tuned)
    assert found["benchmarks"][0]["difference"] == 0
    assert not gate(found, guard={"mmlu"})["ok"]


def test_what_nobody_measured_is_told(tmp_path: Path) -> None:
    rows = [{"benchmark": "quiz", "id": f"q{i}", "outcome": "right"} for i in range(30)]
    result = gate(compared(tmp_path, rows, rows), guard=set())
    assert result["ok"]
    assert result["sentence"].startswith("passes, but nothing was measured; not measured: format rate on quiz")
    assert {test["what"] for test in result["unmeasured"]} == {"stop rate", "format rate", "language match"}
    missing = gate(compared(tmp_path, rows, rows), guard={"mmlu"})
    assert not missing["ok"]
    assert missing["failures"] == [{"benchmark": "mmlu", "what": "not asked"}]
    assert missing["sentence"] == "fails: guard mmlu was not asked"
    leaked = [{**row, "leaked": True} for row in rows]
    assert {"benchmark": "quiz", "what": "accuracy"} in gate(compared(tmp_path, leaked, leaked))["unmeasured"]


def test_controls_are_guarded_under_their_own_name_only(tmp_path: Path) -> None:
    base = side("r" * 40, "mmlu") + side("r" * 40, "mmlu@answer_only", language_match=None)
    tuned = side("r" * 40, "mmlu") + side("w" * 40, "mmlu@answer_only", language_match=None)
    found = compared(tmp_path, base, tuned)
    assert gate(found)["ok"]
    assert gate(found)["unmeasured"] == []
    assert gate(found, guard={"mmlu"})["ok"]
    assert not gate(found, guard={"mmlu@answer_only"})["ok"]


def test_an_interval_that_holds_0_is_no_failure(tmp_path: Path) -> None:
    found = compared(tmp_path, side("r" * 40, "mmlu"), side("r" * 20 + "w" * 20, "mmlu"))
    assert not gate(found)["ok"]
    found["benchmarks"][0]["ci"][1] = 0.01
    assert gate(found)["ok"]


def test_a_guard_without_clean_questions_costs_the_others_no_power(tmp_path: Path) -> None:
    base = side("r" * 40, "mmlu") + side("r" * 20, "safety", leaked=True)
    tuned = side("r" * 34 + "w" * 6, "mmlu") + side("r" * 20, "safety", leaked=True)
    result = gate(compared(tmp_path, base, tuned))
    assert [test["benchmark"] for test in result["failures"]] == ["mmlu"]
    assert result["failures"][0]["p"] == pytest.approx(2 / 2**6)
