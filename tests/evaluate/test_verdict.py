"""Comparisons of small score files with known answers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from danlu.errors import DanluError
from danlu.evaluate import stats
from danlu.evaluate.verdict import compare, decide, p_text, paired, points, split_name
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
    assert verdict(x=up, y=down)["sentence"] == (
        "mixed: better on x (+100.0 points, p < 0.001, n = 40), worse on y (-100.0 points, p < 0.001, n = 40)"
    )
    assert verdict(x=up, y=up)["verdict"] == "better"
    assert verdict(x=down, y=same)["verdict"] == "worse"
    assert verdict(x=same, y=same)["verdict"] == "cannot tell"
    open_ = r"\(\+0\.0 points, p = 1, n = 40; 40 questions show differences from [\d.]+ points on\)"
    assert re.fullmatch(f"cannot tell yet: x {open_}, y {open_}", verdict(x=same, y=same)["sentence"])
    assert re.fullmatch(f"worse: worse on x .*, cannot tell on y {open_}", verdict(x=down, y=same)["sentence"])
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
    square = 15 * 0.5**2 / 30
    assert entry["minimum_detectable"] == stats.minimum_detectable(30, square, test="sign_flip")
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


def changed(base: str, tuned: str, **extra: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of both sides from letters: r right, w wrong, n none, a ambiguous, t truncated."""
    names = {"r": "right", "w": "wrong", "n": "none", "a": "ambiguous", "t": "truncated"}
    name = extra.pop("name", "quiz")
    sides = (
        [{"benchmark": name, "id": f"q{i}", "outcome": names[o], **extra} for i, o in enumerate(side)]
        for side in (base, tuned)
    )
    return tuple(sides)  # type: ignore[return-value]


def test_outcomes_and_means(tmp_path: Path) -> None:
    base, tuned = changed("rwnat", "rrrrw")
    for side, tokens in ((base, 100), (tuned, 40)):
        for i, row in enumerate(side):
            row |= {"tokens": tokens + i, "repetition": tokens / 1000, "language_match": tokens == 40 or i > 0}
    del base[4]["language_match"]  # a bare letter has no language: the pair is left out
    entry = both(tmp_path, base, tuned)["benchmarks"][0]
    assert entry["outcomes"]["base"] == dict.fromkeys(("right", "wrong", "none", "ambiguous", "truncated"), 0.2)
    assert entry["outcomes"]["tuned"] == {"right": 0.8, "wrong": 0.2, "none": 0, "ambiguous": 0, "truncated": 0}
    assert entry["mean_tokens"] == {"base": 102.0, "tuned": 42.0}
    assert entry["repetition"] == {"base": pytest.approx(0.1), "tuned": pytest.approx(0.04)}
    assert entry["language_match"] == {"base": 0.75, "tuned": 1.0}
    assert entry["rate_tests"]["language_match"]["n"] == 4
    assert (entry["rate_tests"]["stop_rate"], entry["stop_rate"]["base"]) == (None, None)


def test_rates_are_tested_by_pair_and_without_what_no_model_wrote(tmp_path: Path) -> None:
    base, tuned = changed("r" * 12, "r" * 12, finish="stop", well_formed=True)
    for row in tuned[:9]:
        row["finish"] = "length"
    for side in (base, tuned):
        side.append({"benchmark": "quiz", "id": "no gold", "outcome": "none", "finish": "error", "unscorable": True})
    entry = both(tmp_path, base, tuned)["benchmarks"][0]
    test = entry["rate_tests"]["stop_rate"]
    assert (entry["n"], test["n"], test["gained"], test["lost"]) == (13, 12, 0, 9)
    assert test["p"] == pytest.approx(stats.mcnemar(0, 9))
    assert test["difference"] == pytest.approx(-0.75)
    assert entry["stop_rate"] == {"base": 1.0, "tuned": 0.25}
    assert entry["rate_tests"]["format_rate"]["p"] == 1.0


def test_leaked_questions_do_not_decide(tmp_path: Path) -> None:
    base, tuned = changed("w" * 40 + "rw" * 30, "r" * 40 + "rw" * 30)
    assert both(tmp_path, base, tuned)["benchmarks"][0]["leaked"] is None
    assert both(tmp_path, base, tuned)["benchmarks"][0]["without_leaked"] is None
    assert both(tmp_path, base, tuned)["verdict"] == "better"
    for i, row in enumerate(tuned[:90]):
        row["leaked"] = i < 30
    for i in range(25, 40):  # told by the other side
        base[i]["leaked"] = True
    found = both(tmp_path, base, tuned)
    entry = found["benchmarks"][0]
    assert (entry["leaked"], entry["leaked_unknown"]) == (40, 10)
    assert (entry["n"], entry["verdict"], entry["gained"]) == (100, "better", 40)
    clean = entry["without_leaked"]
    assert (clean["n"], clean["gained"], clean["difference"], clean["verdict"]) == (60, 0, 0.0, "cannot tell")
    assert {"base", "tuned", "ci", "p", "p_adjusted"} <= set(clean)
    assert found["verdict"] == "cannot tell"
    assert found["sentence"].startswith("cannot tell yet: +0.0 points")
    assert found["sentence"].endswith("Left out as leaked: 40 of 100 questions of quiz (with them +40.0)")


def test_every_question_leaked(tmp_path: Path) -> None:
    found = both(tmp_path, *changed("w" * 30, "r" * 30, leaked=True))
    assert found["verdict"] == "cannot tell"
    assert "every question is in the training data" in found["sentence"]
    assert found["benchmarks"][0]["without_leaked"]["difference"] is None
    json.dumps(found)
    more = [*changed("w" * 30, "r" * 30, leaked=True), *changed("w" * 30, "r" * 30, name="other", leaked=False)]
    several = both(tmp_path, more[0] + more[2], more[1] + more[3])
    assert several["verdict"] == "better"
    assert several["sentence"].startswith("better: better on other (+100.0 points")


def test_subjects_are_adjusted_and_small_ones_not_tested(tmp_path: Path) -> None:
    base, tuned = [], []
    for subject, before, after in (
        ("内科", "w" * 26, "r" * 6 + "w" * 20),
        ("外科", "r" * 30, "r" * 30),
        ("药理", "w" * 19, "r" + "w" * 18),
    ):
        for side, new in zip((base, tuned), changed(before, after, subject=subject), strict=True):
            side += [{**row, "id": f"{subject}{row['id']}"} for row in new]
    base[0].pop("subject")  # one side is enough
    subjects = {entry["name"]: entry for entry in both(tmp_path, base, tuned)["benchmarks"][0]["subjects"]}
    assert [(name, e["n"], e["too_small"]) for name, e in subjects.items()] == [
        ("内科", 26, False),
        ("外科", 30, False),
        ("药理", 19, True),
    ]
    assert subjects["内科"]["p"] < 0.05 < subjects["内科"]["p_adjusted"] == pytest.approx(2 * subjects["内科"]["p"])
    assert (subjects["药理"]["verdict"], subjects["药理"]["p_adjusted"]) == ("cannot tell", None)
    assert subjects["药理"]["sentence"] == "too small to tell: +5.3 points on 19 questions"


def test_controls_never_decide_beside_what_they_control(tmp_path: Path) -> None:
    plain, no_think = changed("rw" * 40, "rw" * 40), changed("w" * 80, "r" * 80, name="quiz@no_think", mode="no_think")
    found = both(tmp_path, plain[0] + no_think[0], plain[1] + no_think[1])
    assert [(entry["name"], entry["mode"], entry["decides"]) for entry in found["benchmarks"]] == [
        ("quiz", None, True),
        ("quiz@no_think", "no_think", False),
    ]
    assert found["verdict"] == "cannot tell"
    assert found["benchmarks"][1]["verdict"] == "better"
    only = changed("w" * 80, "w" * 80, name="quiz@loglikelihood")  # the mode is read off the name
    alone = both(tmp_path, only[0] + no_think[0], only[1] + no_think[1])
    assert [entry["decides"] for entry in alone["benchmarks"]] == [False, True]
    assert alone["verdict"] == "better"
    letters = changed("w" * 80, "w" * 80, name="quiz@answer_only")
    three = both(tmp_path, only[0] + letters[0] + no_think[0], only[1] + letters[1] + no_think[1])
    assert [entry["decides"] for entry in three["benchmarks"]] == [False, False, True]
    assert split_name("a@b@no_think") == ("a@b", "no_think")
    assert split_name("org/set@main") == ("org/set@main", None)


def test_controls_do_not_cost_the_verdict_its_power(tmp_path: Path) -> None:
    lucky = changed("w" * 6 + "r" * 20, "r" * 26)  # p = 0.03 alone
    modes = [changed("rw" * 13, "rw" * 13, name=f"quiz@{mode}") for mode in ("no_think", "answer_only")]
    found = both(tmp_path, lucky[0] + modes[0][0] + modes[1][0], lucky[1] + modes[0][1] + modes[1][1])
    assert found["verdict"] == "better"


def test_a_question_is_judged_as_published(tmp_path: Path) -> None:
    base, tuned = changed("w" * 30, "w" * 30)
    for order in (1, 2):
        for side, outcome in ((base, "w"), (tuned, "r")):
            side += [{**row, "index": order, "shuffle": order} for row in changed(outcome * 30, outcome * 30)[0]]
    entry = both(tmp_path, base, tuned)["benchmarks"][0]
    assert (entry["n"], entry["difference"], entry["shuffles"]["orders"]) == (30, 0.0, 3)
    assert entry["shuffles"]["difference"] == pytest.approx(2 / 3)
    assert entry["shuffles"]["consistent"] == {"base": 0.0, "tuned": 0.0}
    only = [[row for row in side if row.get("shuffle")] for side in (base, tuned)]
    shuffled = both(tmp_path, *only)["benchmarks"][0]
    assert (shuffled["n"], shuffled["difference"]) == (30, 1.0)  # by the mean of its orders
    assert shuffled["shuffles"]["consistent"] == {"base": 0.0, "tuned": 1.0}
    no_index = [[{k: v for k, v in row.items() if k != "index"} for row in side] for side in (base, tuned)]
    assert both(tmp_path, *no_index)["benchmarks"][0]["shuffles"]["orders"] == 3  # no clash of ids
    assert both(tmp_path, *changed("r", "r"))["benchmarks"][0]["shuffles"] is None


def divided(tmp_path: Path, free: tuple[str, str], only: tuple[str, str], **extra: Any) -> dict[str, Any]:
    main, control = changed(*free, **extra), changed(*only, name="quiz@answer_only", mode="answer_only")
    return both(tmp_path, main[0] + control[0], main[1] + control[1])["benchmarks"][0]["format_and_knowledge"]


def test_format_is_told_from_knowledge(tmp_path: Path) -> None:
    gain = ("w" * 60 + "r" * 40, "r" * 30 + "w" * 30 + "r" * 40)
    form = divided(tmp_path, gain, ("rw" * 50, "rw" * 50))
    assert (form["difference"], form["answer_only_difference"], form["rest"]) == pytest.approx((0.3, 0.0, 0.3))
    assert form["control"] == "quiz@answer_only"
    assert (form["share"], form["rest_ci"][0] > 0) == (0.0, True)
    assert "no gain in knowledge that it could tell; format, reasoning and stopping make up +30.0" in form["sentence"]
    known = divided(tmp_path, gain, gain)
    assert (known["share"], known["rest"]) == pytest.approx((1.0, 0.0))
    assert "shows +30.0 (95 % CI" in known["sentence"]
    assert "100 % of it: knowledge" in known["sentence"]
    assert known["sentence"].endswith("the rest could be nothing")
    half = divided(tmp_path, gain, (gain[0], "r" * 15 + "w" * 45 + "r" * 40))
    assert half["share"] == pytest.approx(0.5)
    assert half["sentence"].endswith("format, reasoning and stopping")
    flat = divided(tmp_path, ("rw" * 50, "rw" * 50), gain)
    assert flat["share"] is None
    assert flat["sentence"].startswith("quiz: no gain to divide (+0.0 points")


def test_only_shared_and_clean_questions_are_divided(tmp_path: Path) -> None:
    main, control = changed("w" * 40, "r" * 40), changed("w" * 30, "r" * 30, name="quiz@loglikelihood")
    for row in main[1][:10]:
        row["leaked"] = True
    entry = both(tmp_path, main[0] + control[0], main[1] + control[1])["benchmarks"][0]
    assert entry["format_and_knowledge"]["n"] == 20
    assert entry["format_and_knowledge"]["control"] == "quiz@loglikelihood"
    asked = changed("w" * 40, "w" * 40, name="quiz@answer_only")  # preferred to the likelihood
    three = both(tmp_path, main[0] + control[0] + asked[0], main[1] + control[1] + asked[1])["benchmarks"]
    assert three[0]["format_and_knowledge"]["control"] == "quiz@answer_only"
    assert ["format_and_knowledge" in entry for entry in three] == [True, False, False]
    assert "format_and_knowledge" not in both(tmp_path, *main)["benchmarks"][0]
    other = [{**row, "id": f"z{row['id']}"} for row in control[0]]
    assert both(tmp_path, main[0] + other, main[1] + other)["benchmarks"][0]["format_and_knowledge"] is None


def test_budgets(tmp_path: Path) -> None:
    base, tuned = changed("rr", "rr")
    base[0]["budgets"] = {"1024": "right", "64": "truncated"}
    base[1]["budgets"] = {"1024": "right", "64": "right"}
    tuned[0]["budgets"] = {"64": "right", "1024": "right", "2048": "right"}
    assert both(tmp_path, base, tuned)["benchmarks"][0]["budgets"] == [
        {"budget": 64, "base": 0.5, "tuned": 0.5},
        {"budget": 1024, "base": 1.0, "tuned": 0.5},
    ]
    assert both(tmp_path, base, changed("rr", "rr")[1])["benchmarks"][0]["budgets"] == []
