"""Signs of a run that goes wrong: each is seen in a run made to show it, and in none that goes well."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from danlu.recipe import Grpo
from danlu.train.signs import signs

SETTINGS = Grpo(max_completion=100)
SIZES = {"": 400, "triage": 200, "drug": 200}


def steps(count: int, **columns: Any) -> list[dict[str, Any]]:
    """Rows of a run that goes well; a column is a value, or a function of the share of the run that is done."""
    good: dict[str, Any] = {
        "reward": lambda at: 0.5 + 0.3 * at,
        "zero_variance": 0.3,
        "truncated": 0.05,
        "entropy": lambda at: 1.0 - 0.7 * at,
        "completion_length": lambda at: 30 + 20 * at,
        "eval_accuracy": None,
    }
    rows = []
    for n in range(count):
        row = {"step": n + 1, **good, **columns}
        row = {key: value(n / count) if callable(value) else value for key, value in row.items()}
        evaluated = row.pop("eval_accuracy")
        rows.append(row)
        if evaluated is not None and (n + 1) % 5 == 0:
            told = evaluated if isinstance(evaluated, dict) else {"": evaluated}
            names = {task: f"eval_accuracy/{task}" if task else "eval_accuracy" for task in told}
            rows.append({"step": n + 1, **{names[task]: value for task, value in told.items()}})
    return rows


RISING = {"eval_accuracy": lambda at: {"": 0.6 + 0.2 * at, "triage": 0.6 + 0.2 * at, "drug": 0.6 + 0.2 * at}}
WRONG = {
    "flat": {"zero_variance": lambda at: 1.0 if at >= 0.5 else 0.4},
    "cut": {"truncated": lambda at: 0.3 + 0.7 * (at >= 0.5)},
    "entropy": {"entropy": lambda at: 2.0 if at < 0.5 else 0.1},
    "length": {"completion_length": lambda at: 30 + 60 * at},
    "apart": {"eval_accuracy": lambda at: 0.7 - 0.2 * at},
    "task": {"eval_accuracy": lambda at: {"": 0.7, "triage": 0.6 + 0.3 * at, "drug": 0.8 - 0.3 * at}},
}


@pytest.mark.parametrize("code", WRONG)
def test_each_sign_is_seen_where_it_is_and_nowhere_else(code: str) -> None:
    rows = steps(20, **(RISING | WRONG[code]))
    found = signs(rows, SETTINGS, SIZES)
    assert list(found) == [code]
    assert any(hint in found[code] for hint in ("grpo.", "keep_best", "reward `length`"))
    assert signs(steps(20, **RISING), SETTINGS, SIZES) == {}


def test_a_few_steps_say_nothing() -> None:
    everything = {key: value for changes in WRONG.values() for key, value in changes.items()}
    assert signs(steps(4, **everything), SETTINGS, SIZES) == {}
    assert signs([], SETTINGS, SIZES) == {}


def test_steps_without_learning_have_no_entropy() -> None:
    assert "entropy" not in signs(steps(20, entropy=None), SETTINGS, SIZES)


def test_what_chance_moves_is_not_told() -> None:
    """Twelve points lost: seven standard errors of 4,000 questions, hardly one of 20."""
    rows = steps(20, eval_accuracy=lambda at: 0.7 - 0.16 * at)
    assert list(signs(rows, SETTINGS, {"": 4000})) == ["apart"]
    assert signs(rows, SETTINGS, {"": 20}) == {}


def test_rewards_that_fall_with_accuracy_are_honest() -> None:
    rows = steps(20, reward=lambda at: 0.8 - at / 2, eval_accuracy=lambda at: 0.7 - 0.3 * at)
    assert signs(rows, SETTINGS, SIZES) == {}
    rows = steps(20, reward=None, eval_accuracy=lambda at: 0.7 - 0.3 * at)
    assert signs(rows, SETTINGS, SIZES) == {}


@pytest.mark.parametrize("page", ["docs/grpo.md", "docs/zh/grpo.md"])
def test_every_sign_is_explained(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text("utf-8")
    names = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert names[-len(WRONG) :] == list(WRONG)  # the last table of the page
