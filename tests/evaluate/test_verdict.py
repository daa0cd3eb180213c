"""Comparisons of small score files with known answers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from danlu.errors import DanluError
from danlu.evaluate import stats
from danlu.evaluate.verdict import compare, decide, p_text, paired, points
from danlu.run import Run, write_json


def rows(right: list[int], name: str = "quiz", **extra: Any) -> list[dict[str, Any]]:
    return [
        {"benchmark": name, "id": f"q{i}", "index": 0, "outcome": "right" if r else "wrong", **extra}
        for i, r in enumerate(right)
    ]


def file(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
    return path


def both(tmp_path: Path, base: list[dict[str, Any]], tuned: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    return compare(file(tmp_path / "a.jsonl", base), file(tmp_path / "b.jsonl", tuned), **options)


FIGURES = r"[+-]\d+\.\d points, 95 % CI [+-]\d+\.\d\.\.[+-]\d+\.\d, p (= [\d.e-]+|< 0\.001), n = [\d,]+"


def test_better(tmp_path: Path) -> None:
    found = both(tmp_path, rows([0] * 200 + [1] * 100), rows([1] * 110 + [0] * 90 + [0] * 17 + [1] * 83))
    assert found["verdict"] == "better"
    assert re.fullmatch(f"better: {FIGURES}", found["sentence"])
    assert found["sentence"].startswith("better: +31.0 points")
    assert "p < 0.001, n = 300" in found["sentence"]
    entry = found["benchmarks"][0]
    assert (entry["name"], entry["n"], entry["gained"], entry["lost"]) == ("quiz", 300, 110, 17)
    assert entry["difference"] == pytest.approx(0.31)
    assert entry["base"] == pytest.approx(1 / 3)
    assert entry["p"] == pytest.approx(stats.mcnemar(110, 17))
    assert len(entry["gained_ids"]) == 110
    assert entry["lost_ids"][0] == "q200"
    assert 0 < entry["minimum_detectable"] < 0.31


def test_worse_is_the_mirror(tmp_path: Path) -> None:
    a, b = rows([0] * 60 + [1] * 40), rows([1] * 30 + [0] * 30 + [1] * 38 + [0] * 2)
    better, worse = both(tmp_path, a, b), both(tmp_path, b, a)
    assert (better["verdict"], worse["verdict"]) == ("better", "worse")
    assert worse["benchmarks"][0]["difference"] == pytest.approx(-better["benchmarks"][0]["difference"])
    assert worse["benchmarks"][0]["p"] == better["benchmarks"][0]["p"]
    assert worse["sentence"].startswith("worse: -28.0 points")


def test_cannot_tell_says_how_many_more(tmp_path: Path) -> None:
    found = both(tmp_path, rows([1] * 150 + [0] * 150), rows([1] * 140 + [0] * 10 + [1] * 13 + [0] * 137))
    assert found["verdict"] == "cannot tell"
    assert re.fullmatch(rf"cannot tell yet: {FIGURES}; about [\d,]+ more questions would tell", found["sentence"])


def test_no_difference_says_what_would_show(tmp_path: Path) -> None:
    found = both(tmp_path, rows([1, 0] * 50), rows([1, 0] * 50))
    assert found["verdict"] == "cannot tell"
    assert re.search(
        r"\+0\.0 points, .*p = 1, n = 100; 100 questions show differences from [\d.]+ points", found["sentence"]
    )


def test_three_questions_never_decide(tmp_path: Path) -> None:
    assert both(tmp_path, rows([0] * 3), rows([1] * 3))["verdict"] == "cannot tell"


def test_several_benchmarks(tmp_path: Path) -> None:
    up, down, same = ([0] * 40, [1] * 40), ([1] * 40, [0] * 40), ([0, 1] * 20, [0, 1] * 20)

    def verdict(**sides: tuple[list[int], list[int]]) -> dict[str, Any]:
        base = [row for name, (a, _) in sides.items() for row in rows(a, name)]
        return both(tmp_path, base, [row for name, (_, b) in sides.items() for row in rows(b, name)])

    assert verdict(x=up, y=down)["verdict"] == "mixed"
    assert verdict(x=up, y=down)["sentence"] == "mixed: better on x (+100.0 points), worse on y (-100.0 points)"
    assert verdict(x=up, y=up)["verdict"] == "better"
    assert verdict(x=down, y=same)["verdict"] == "worse"
    assert verdict(x=same, y=same)["verdict"] == "cannot tell"
    assert [entry["name"] for entry in verdict(x=up, y=down)["benchmarks"]] == ["x", "y"]


def test_ten_benchmarks_are_adjusted(tmp_path: Path) -> None:
    lucky = ([0] * 6 + [1] * 20, [1] * 6 + [1] * 20)  # p = 0.03 alone
    assert both(tmp_path, rows(lucky[0]), rows(lucky[1]))["verdict"] == "better"
    flat = [row for i in range(9) for row in rows([0, 1] * 10, f"b{i}")]
    found = both(tmp_path, rows(lucky[0]) + flat, rows(lucky[1]) + flat)
    assert found["verdict"] == "cannot tell"
    assert found["benchmarks"][0]["p"] < 0.05 < found["benchmarks"][0]["p_adjusted"]


def test_tasks_and_rates(tmp_path: Path) -> None:
    base = rows([0, 0, 1, 1], task="t1", well_formed=False, finish="length") + [
        {**row, "id": f"z{row['id']}"} for row in rows([1, 0], task="t2", well_formed=True, finish="stop")
    ]
    tuned = [{**row, "outcome": "right", "well_formed": True, "finish": "stop"} for row in base]
    entry = both(tmp_path, base, tuned)["benchmarks"][0]
    assert [(task["name"], task["n"], task["gained"]) for task in entry["tasks"]] == [("t1", 4, 2), ("t2", 2, 1)]
    assert entry["format_rate"] == {"base": pytest.approx(2 / 6), "tuned": 1.0}
    assert entry["stop_rate"] == {"base": pytest.approx(2 / 6), "tuned": 1.0}


def test_several_answers_are_clustered(tmp_path: Path) -> None:
    def side(shares: list[int]) -> list[dict[str, Any]]:
        return [
            {"benchmark": "quiz", "id": f"q{i}", "index": k, "outcome": "right" if k < share else "wrong"}
            for i, share in enumerate(shares)
            for k in range(4)
        ]

    entry = both(tmp_path, side([1] * 30), side([3] * 15 + [1] * 15))["benchmarks"][0]
    assert (entry["n"], entry["gained"], entry["lost"]) == (30, 15, 0)
    assert entry["difference"] == pytest.approx(0.25)
    assert entry["verdict"] == "better"
    assert both(tmp_path, side([0] * 3), side([4] * 3))["verdict"] == "cannot tell"  # 12 answers, but 3 questions


def test_unpaired_rows_are_refused_or_counted(tmp_path: Path) -> None:
    base, tuned = rows([0] * 10), [*rows([1] * 8), {"id": "extra", "benchmark": "quiz", "outcome": "right"}]
    with pytest.raises(DanluError, match=r"2 answers are only in .* and 1 only in .*quiz/q8") as error:
        both(tmp_path, base, tuned)
    assert "--partial" in error.value.hint
    found = both(tmp_path, base, tuned, partial=True)
    assert found["unpaired"] == {"base": 2, "tuned": 1, "ids": ["quiz/q8", "quiz/q9", "quiz/extra"]}
    assert found["benchmarks"][0]["n"] == 8


@pytest.mark.parametrize(
    ("base", "tuned", "message"),
    [
        (rows([1]), rows([1], "other"), "no question in common"),
        (rows([1]), [], "no scored answers"),
        (rows([1]) * 2, rows([1]), "occurs twice"),
        (rows([1], question="x?"), rows([1], question="y?"), "another question"),
        (rows([1], target="A"), rows([1], target="B"), "another question"),
        ([{"id": "q0"}], rows([1]), "without id and outcome"),
    ],
)
def test_refusals(tmp_path: Path, base: list[dict[str, Any]], tuned: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DanluError, match=message):
        both(tmp_path, base, tuned)


def test_every_kind_of_side(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", "eval", {"eval": 1})
    run.write_samples(rows([0, 1, 1]))
    with run.delivering() as staged:
        write_json(staged / "report.json", {"settings": {"max_tokens": 64}})
        file(staged / "scores.jsonl", rows([0, 1, 1]))
    scored = tmp_path / "score.json"
    write_json(scored, {"summary": {}, "rows": rows([0, 1, 1])})
    raw = file(
        tmp_path / "raw.jsonl",
        [{"benchmark": "quiz", "id": f"q{i}", "target": "42", "output": o} for i, o in enumerate(["41", "42", "42"])],
    )
    sides = [run, run.path, str(run.path), run.artifact / "report.json", run.artifact / "scores.jsonl", scored, raw]
    for side in sides:
        found = compare(side, sides[0])
        assert found["benchmarks"][0]["difference"] == 0.0
        assert found["benchmarks"][0]["n"] == 3
    other = Run.create(tmp_path / "s", "eval", {"eval": 2})
    other.write_samples(rows([0, 1, 1]))
    with other.delivering() as staged:
        write_json(staged / "report.json", {"settings": {"max_tokens": 128}})
    assert compare(run, other)["settings_differ"] == ["max_tokens: 64 -> 128"]
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(DanluError):
            compare(missing, run)


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0004, "p < 0.001"), (0.001, "p = 0.001"), (0.5234, "p = 0.52"), (1.0, "p = 1"), (0.0421, "p = 0.042")],
)
def test_p_text(p: float, text: str) -> None:
    assert p_text(p) == text


@pytest.mark.parametrize(("value", "text"), [(0.31, "+31.0"), (-0.0001, "+0.0"), (0.0, "+0.0"), (-0.123, "-12.3")])
def test_points(value: float, text: str) -> None:
    assert points(value) == text


def test_significant_p_with_an_interval_over_zero_is_no_verdict() -> None:
    entry = paired([({"id": "x", "outcome": "wrong"}, {"id": "x", "outcome": "right"})])
    assert decide({**entry, "p": 0.01, "ci": [-0.1, 0.5]})[0] == "cannot tell"
