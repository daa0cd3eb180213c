"""Rewards put together: weights, the gate, what is masked, and one clear error for what is broken."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from danlu.errors import DanluError, Stopped
from danlu.recipe import LengthSpec, PythonSpec, RepetitionSpec, RewardSpec
from danlu.rewards import Rewards, Scored, score_all
from danlu.rewards.compose import REWARDS

sys.path.insert(0, str(Path(__file__).parent))
from writing import THINK, asked, said, wrote

ANSWER, FORM = RewardSpec(name="answer"), RewardSpec(name="think_format", weight=0.1)


def own(folder: Path, body: str, name: str = "fn", **fields: str) -> PythonSpec:
    """A reward of the user's own, in a file."""
    file = folder / "my_rewards.py"
    file.write_text(body, "utf-8")
    return PythonSpec(python=f"{file}:{name}", **fields)  # type: ignore[arg-type]


def test_total_weighs_and_keeps_the_parts() -> None:
    specs = [ANSWER, FORM, RewardSpec(name="stop", weight=2)]
    rows = [said("肺炎"), said("肺结核"), wrote("肺炎"), said("肺炎", finish="length")]
    found = score_all([asked()] * 4, rows, THINK, specs)
    assert [one.total for one in found] == pytest.approx([3.1, 2.1, 2.0, 1.0])
    assert found[0].parts == {"answer": 1.0, "think_format": 1.0, "stop": 1.0}
    assert found[2].parts == {"answer": 0.0, "think_format": 0.0, "stop": 1.0}
    assert score_all([], [], THINK, specs) == []
    with pytest.raises(ValueError, match="4 samples for 1"):
        score_all([asked()] * 4, rows[:1], THINK, specs)


def test_the_gate_keeps_penalties_and_rewards_of_form(tmp_path: Path) -> None:
    specs = [
        own(tmp_path, "def fn(sample, completion): return 1 if '肺炎' in completion.text else -1"),
        RewardSpec(name="stop", weight=0.5),
    ]
    rows = [said("肺炎"), wrote("肺炎"), wrote("胃炎")]
    free = [one.total for one in score_all([asked()] * 3, rows, THINK, specs)]
    gated = [one.total for one in score_all([asked()] * 3, rows, THINK, specs, "think_format")]
    assert free == pytest.approx([1.5, 1.5, -0.5])
    assert gated == pytest.approx([1.5, 0.5, -0.5])


def test_none_masks_a_rollout_and_is_counted(tmp_path: Path) -> None:
    spec = own(tmp_path, "def fn(sample, completion): return None if '不' in completion.answer else 1")
    with Rewards([ANSWER, spec]) as rewards:
        found = rewards.score_all([asked()] * 2, [said("肺炎"), said("不知道")], THINK)
        assert found[0].total == 2.0
        assert found[1] == Scored(None, {"answer": 0.0, "fn": None})
        rewards.score_all([asked()], [said("不知道")], THINK)
        assert rewards.counts["masked"] == 2


def test_none_of_a_trl_function_leaves_it_out_as_in_trl(tmp_path: Path) -> None:
    body = "def fn(completions, **kw): return [None if '不' in c[0]['content'] else 0.5 for c in completions]"
    rows = [said("肺炎"), said("不知道")]
    assert [one.total for one in score_all([asked()] * 2, rows, THINK, [FORM, own(tmp_path, body)])] == [0.6, 0.1]
    assert [one.total for one in score_all([asked()] * 2, rows, THINK, [own(tmp_path, body)])] == [0.5, None]


def test_two_of_a_name_are_told_apart() -> None:
    specs = [LengthSpec(name="length", high=10), LengthSpec(name="length", high=20), LengthSpec(name="length", high=40)]
    (found,) = score_all([asked()], [wrote("x", tokens=10)], THINK, specs)
    assert found.parts == {"length": -1.0, "length 2": -0.5, "length 3": -0.25}


# ---- functions of the user's own


def test_a_function_sees_sample_and_completion(tmp_path: Path) -> None:
    body = """
def fn(sample, completion):
    return len(sample.options) + (sample.target in completion.answer) / 2
"""
    (found,) = score_all([asked("A", options={"A": "x", "B": "y"})], [said("A")], THINK, [own(tmp_path, body)])
    assert found == Scored(2.5, {"fn": 2.5})


@pytest.mark.parametrize(
    ("style", "said_of"), [("trl", "completions[0][0]['content']"), ("trl-text", "completions[0]")]
)
def test_a_trl_function_gets_completions_and_columns(tmp_path: Path, style: str, said_of: str) -> None:
    body = f"""
import json
def fn(prompts, completions, answer, subject, completion_ids, **rest):
    assert isinstance({said_of}, str), completions
    assert rest["id"] == ["a", "b"] and rest["options"] == [{{}}, {{}}]
    assert len(prompts) == len(completions) == len(completion_ids) == 2
    return [float(a in json.dumps(c, ensure_ascii=False)) + (s == "x") for c, a, s in zip(completions, answer, subject)]
"""
    samples = [asked(id="a", meta={"subject": "x"}), asked("胃炎", id="b")]
    found = score_all(samples, [said("肺炎"), said("肺炎")], THINK, [own(tmp_path, body, style=style)])
    assert [one.total for one in found] == [2.0, 0.0]


def test_functions_of_the_published_kind_run_as_they_are(tmp_path: Path) -> None:
    """As demos of TRL write them: an `answer` column, chats, an unused argument, a coroutine."""
    body = """
import re
def correct(prompts, completions, answer, **kwargs) -> list[float]:
    responses = [completion[0]["content"] for completion in completions]
    extracted = [r.split("</think>")[-1].strip() for r in responses]
    return [2.0 if r == a else 0.0 for r, a in zip(extracted, answer)]

def brief(completions, solution):
    return [float(len(c[0]["content"]) < 40) for c in completions]

async def later(completions, **kwargs):
    return [1.0] * len(completions)
"""
    file = tmp_path / "demo.py"
    file.write_text(body, "utf-8")
    specs = [PythonSpec(python=f"{file}:{name}") for name in ("correct", "brief", "later")]
    found = score_all([asked()] * 2, [said("肺炎"), said("肺炎" * 30)], THINK, specs)
    assert [list(one.parts.values()) for one in found] == [[2.0, 1.0, 1.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    "value", ["np.float32(0.5)", "np.float64(0.5)", "0.5", "Fraction(1, 2)", "Score(0.5, 'wrong')"]
)
def test_numbers_of_many_kinds_are_numbers(tmp_path: Path, value: str) -> None:
    head = "import numpy as np\nfrom fractions import Fraction\nfrom danlu.records import Score\n"
    single = own(tmp_path, f"{head}def fn(sample, completion): return {value}")
    assert score_all([asked()], [said("x")], THINK, [single])[0].total == 0.5


def test_an_array_is_a_list(tmp_path: Path) -> None:
    spec = own(tmp_path, "import numpy as np\ndef fn(completions, **kw): return np.full(len(completions), 0.5)")
    assert score_all([asked()] * 3, [said("x")] * 3, THINK, [spec])[2].total == float(np.float64(0.5))


BROKEN = [
    ("def fn(s, c): return float('nan')", r"reward 'fn' gave nan on sample q1"),
    ("def fn(s, c): return float('-inf')", r"reward 'fn' gave -inf on sample q1"),
    ("def fn(s, c): return 'good'", r"reward 'fn' gave str on sample q1: 'good'"),
    ("def fn(s, c): return [1.0]", r"reward 'fn' gave list on sample q1"),
    ("def fn(s, c): return 1j", r"reward 'fn' gave complex on sample q1"),
    (
        "\ndef fn(s, c):\n    return s.meta['x']",
        r"reward 'fn' failed on sample q1: KeyError: 'x' \(my_rewards.py line 3\)",
    ),
    (
        "def fn(completions, **k): return [1.0]",
        r"reward 'fn' gave 1 values for 2 completions \(the first of sample q1\)",
    ),
    ("def fn(completions, **k): return 1.0", r"reward 'fn' gave float for 2 completions"),
    ("def fn(completions, **k): return None", r"reward 'fn' gave NoneType for 2 completions"),
    ("def fn(completions, **k): return [1.0, 'x']", r"reward 'fn' gave str on sample q2"),
    ("def fn(completions, colour): return [1.0] * 2", r"reward 'fn' wants colour, which sample q1 does not have"),
    (
        "def fn(completions, **k): return [1 / (x != 'q2') for x in k['id']]",
        r"reward 'fn' failed on sample q2: ZeroDivisionError",
    ),
]


@pytest.mark.parametrize(("body", "message"), BROKEN)
def test_a_broken_reward_names_itself_and_the_sample(tmp_path: Path, body: str, message: str) -> None:
    samples = [asked(id="q1"), asked(id="q2")]
    with pytest.raises(DanluError, match=message) as caught:
        score_all(samples, [said("x")] * 2, THINK, [FORM, own(tmp_path, body)])
    assert caught.value.hint


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere.py:fn", "nowhere.py does not exist"),
        ("my_rewards.py", "is not FILE.py:function"),
        ("my_rewards.py:other", "has no function other"),
        ("my_rewards.py:NUMBER", "has no function NUMBER"),
        ("torn.py:fn", r"cannot be imported: SyntaxError.*"),
        ("torn2.py:fn", r"cannot be imported: ZeroDivisionError: division by zero \(torn2.py line 1\)"),
        ("text.txt:fn", "text.txt is not a Python file"),
        ("my_rewards.py:one", r"takes \(sample\), not \(sample, completion\)"),
        ("my_rewards.py:three", r"takes \(a, b, c\), not \(sample, completion\)"),
    ],
)
def test_a_function_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    body = "NUMBER = 3\ndef fn(s, c): return 1.0\ndef one(sample): return 1\ndef three(a, b, c): return 1\n"
    Path("my_rewards.py").write_text(body, "utf-8")
    Path("torn.py").write_text("def fn(", "utf-8")
    Path("torn2.py").write_text("1 / 0", "utf-8")
    Path("text.txt").write_text("x", "utf-8")
    with pytest.raises(DanluError, match=message):
        Rewards([PythonSpec(python=place)])


def test_a_file_beside_the_recipe_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from danlu.recipe import load

    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.py").write_text("def fn(sample, completion): return 0.25", "utf-8")
    (tmp_path / "there" / "r.yaml").write_text("name: r\ngrpo: {rewards: [{python: mine.py:fn}]}", "utf-8")
    monkeypatch.chdir(tmp_path)
    specs = load("there/r.yaml").grpo.rewards
    assert score_all([asked()], [said("x")], THINK, specs)[0].parts == {"fn": 0.25}
    (tmp_path / "mine.py").write_text("def fn(sample, completion): return 0.75", "utf-8")
    specs = load("there/r.yaml").grpo.rewards  # the working directory goes first
    assert score_all([asked()], [said("x")], THINK, specs)[0].parts == {"fn": 0.75}


# ---- built-in rewards that fail


@pytest.mark.parametrize("bad", [lambda *_: float("nan"), lambda *_: float("inf"), lambda *_: 1 / 0, lambda *_: "x"])
def test_a_broken_built_in_names_itself_too(bad, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(REWARDS, "stop", bad)
    with pytest.raises(DanluError, match=r"reward 'stop' .*sample q1"):
        score_all([asked()], [said("x")], THINK, [RewardSpec(name="stop")])


def test_a_signal_is_no_failure_of_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> float:
        raise Stopped("stopped by SIGTERM", exit_code=143)

    monkeypatch.setitem(REWARDS, "stop", stopped)
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM$") as caught:
        score_all([asked()], [said("x")], THINK, [RewardSpec(name="stop")])
    assert caught.value.exit_code == 143


def test_rows_without_what_a_reward_needs() -> None:
    with pytest.raises(DanluError, match="reward 'answer': sample q1 has no target"):
        score_all([asked(None)], [said("x")], THINK, [ANSWER])
    with pytest.raises(DanluError, match="reward 'choice': sample q1 has no options"):
        score_all([asked()], [said("x")], THINK, [RewardSpec(name="choice")])
    with pytest.raises(DanluError, match="reward 'length': sample q1 has no target"):
        score_all([asked(None)], [said("x")], THINK, [LengthSpec(name="length", shape="cosine", high=9)])
    specs = [RepetitionSpec(name="repetition"), LengthSpec(name="length", high=100)]
    assert score_all([asked(None)], [said("x")], THINK, specs)[0].parts["repetition"] == 0.0
