"""`danlu reward test`: what it finds in rewards that are sound, blind or hackable, and in a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from danlu.cli import main
from danlu.rewards.attacks import ATTACKS, HONEST
from danlu.rewards.difficulty import flat_chance, pass_at_k
from danlu.rewards.trial import findings, verdict
from tiny_models import CHATS, trained

sys.path.insert(0, str(Path(__file__).parent))


pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: questions with a gold, one with options, and a recipe for the tiny model."""
    rows: list[dict[str, Any]] = [{"question": q, "target": a, "id": f"q{n}"} for n, (q, _, a) in enumerate(CHATS)]
    rows.append({"question": "下列哪项诊断最可能？", "options": {"A": "肺炎", "B": "胃炎"}, "target": "B", "id": "c"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    recipe = {"name": "mine", "model": {"id": str(trained()), "dtype": "fp32"}, "grpo": {"data": "rows.jsonl"}}
    recipe["grpo"] |= {"max_completion": 24, "group": 4, "temperature": 1.2}  # type: ignore[operator]
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe), "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trial(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any]]:
    code = main(["reward", "test", "mine.yaml", "--display", "none", "--json", *args])
    return code, json.loads(capsys.readouterr().out)


def test_sound_rewards(capsys: pytest.CaptureFixture[str]) -> None:
    code, report = trial(capsys, "--prompts", "0")
    assert code == 0
    assert report["ok"]
    assert report["model"] is None
    assert report["rows"] == 5
    assert report["weights"] == {"answer": 1.0, "think_format": 0.1}
    assert [row["kind"] for row in report["kinds"]] == [*HONEST, *ATTACKS]
    rows = {row["kind"]: row for row in report["kinds"]}
    assert rows["gold"]["rewards"] == {"answer": 1.0, "think_format": 1.0}
    assert rows["gold"]["total"] == rows["gold in words"]["total"] == pytest.approx(1.1)
    assert rows["wrong"]["total"] == pytest.approx(0.1)
    assert rows["empty"]["total"] == 0.0
    assert all(row["above_wrong"] == 0 and row["by"] is None for row in report["kinds"])
    assert report["findings"] == []
    assert report["verdict"].startswith("a right answer pays most, and no attack")


def test_a_hackable_reward_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "naive.py").write_text("def gold_somewhere(sample, completion): return sample.target in completion.text")
    rewards = "--set", "grpo.rewards=[answer, {python: 'naive.py:gold_somewhere'}]"
    code, report = trial(capsys, "--prompts", "0", *rewards)
    assert code == 1
    assert not report["ok"]
    assert report["verdict"].startswith("this reward pays more for ")
    assert "than for an honest wrong answer" in report["verdict"]
    assert "hackable" in report["verdict"]
    hacked = {row["kind"]: row["by"] for row in report["kinds"] if row["above_wrong"]}
    assert {"negated gold", "every option named", "gold only in the reasoning"} <= set(hacked)
    assert set(hacked.values()) == {"gold_somewhere"}
    assert main(["reward", "test", "mine.yaml", "--prompts", "0", *rewards, "--display", "none"]) == 1
    shown = capsys.readouterr().out
    assert report["verdict"] in shown
    assert "gold_somewhere pays it" in shown


def test_rewards_that_do_not_tell_right_from_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    code, report = trial(capsys, "--prompts", "0", "--set", "grpo.rewards=[think_format, stop]")
    assert code == 1
    assert report["verdict"] == "a right answer earns no more than a wrong one: there is nothing to learn"
    code, report = trial(capsys, "--prompts", "0", "--set", "grpo.rewards=[correctness]")
    assert code == 0
    assert [finding["code"] for finding in report["findings"]] == ["bare"]


def test_what_the_model_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    code, report = trial(capsys, "--prompts", "4", "--samples", "6", "--rows", "2")
    model = report["model"]
    assert code == 0
    assert report["rows"] == 2
    assert (model["prompts"], model["samples"], model["group"]) == (4, 6, 4)
    rights = [row["right"] for row in model["per_prompt"]]
    assert sum(rights) > 0
    assert model["pass"] == {
        str(k): pytest.approx(sum(pass_at_k(6, right, k) for right in rights) / 4) for k in (1, 2, 4, 6)
    }
    totals = [row["totals"] for row in model["per_prompt"]]
    assert model["zero_variance"] == pytest.approx(sum(flat_chance(own, 4) for own in totals) / 4)
    assert model["total"] == pytest.approx(sum(map(sum, totals)) / 24)
    code, again = trial(capsys, "--prompts", "4", "--samples", "6", "--rows", "2")
    assert again == report
    assert main(["reward", "test", "mine.yaml", "--prompts", "2", "--samples", "2", "--display", "none"]) == 0
    shown = capsys.readouterr().out
    assert "on 2 prompts, 2 samples each:" in shown
    assert "groups of 4 with equal rewards" in shown


def test_findings_about_a_model() -> None:
    paid = {"masked": 0.0, "rows": 1, "above_wrong": 0.0, "by": None, "rewards": {}}
    table = [{"kind": kind, "honest": True, "total": float("gold" in kind), **paid} for kind in HONEST]
    model = {"prompts": 8, "samples": 4, "group": 8, "pass": {"1": 0.0, "4": 0.0}}
    model |= {"zero_variance": 0.75, "cut": 0.5, "well_formed": 0.1}
    found = findings(table, model)
    assert [finding["code"] for finding in found] == ["never", "flat", "cut", "form"]
    assert "75% of the groups of 8 would have equal rewards" in found[1]["text"]
    assert "grpo.filter" in found[1]["do"]
    assert verdict(found).startswith("a right answer pays most")
    assert findings(table, {**model, "pass": {"4": 0.5}, "zero_variance": 0.1, "cut": 0.0, "well_formed": 1.0}) == []
    none = [{**row, "total": None, "masked": 1.0} for row in table]
    assert [finding["code"] for finding in findings(none, None)] == ["masked"]


NOBODY = "{name: judge, endpoint: 'http://127.0.0.1:9/v1'}"


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["nowhere.yaml"], "no recipe"),
        (["mine.yaml", "--set", "grpo.data=[]"], "the recipe names no prompts"),
        (["mine.yaml", "--set", "grpo.rewards=[{python: 'none.py:f'}]"], "none.py does not exist"),
        (
            ["mine.yaml", "--set", "grpo.rewards=[{name: judge, endpoint: 'http://127.0.0.1:9/v1'}]"],
            "cannot be reached",
        ),
        (["mine.yaml", "--set", "grpo.rewards=[choice]", "--prompts", "0"], "has no options"),
    ],
)
def test_what_cannot_be_tried(capsys: pytest.CaptureFixture[str], args: list[str], what: str) -> None:
    assert main(["reward", "test", *args, "--display", "none"]) == 2
    shown = capsys.readouterr().err
    assert what in shown
    assert "hint:" in shown
