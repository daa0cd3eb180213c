"""docs/rewards.md and its Chinese twin: names, patterns, values, functions and output are those of the code."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from danlu.cli import main
from danlu.recipe import BUILT_IN_REWARDS, load, parse, shipped
from danlu.records import Completion
from danlu.rewards import FORM, REWARDS, Rewards
from danlu.rewards.attacks import ATTACKS
from danlu.rewards.judge import Judge
from danlu.rewards.own import columns
from danlu.rewards.published import soft_pattern, strict_pattern

sys.path.insert(0, str(Path(__file__).parents[1] / "generate"))
sys.path.insert(0, str(Path(__file__).parent))
from endpoint_server import FakeServer, chat
from writing import TAGS, THINK, asked, said, wrote

DOCS = Path(__file__).parents[2] / "docs"
PUBLISHED = BUILT_IN_REWARDS[:5]
pages = pytest.mark.parametrize("page", ["rewards.md", "zh/rewards.md"])


def text_of(page: str) -> str:
    return (DOCS / page).read_text("utf-8")


def blocks(page: str, kind: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.DOTALL | re.MULTILINE)
    return [block for named, block in found if named == kind]


def rows(page: str, columns: int) -> list[list[str]]:
    """Rows of all tables that begin with a name and are so many columns wide."""
    lines = [line for line in text_of(page).splitlines() if line.startswith("| `")]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if len(row) == columns]


@pages
def test_every_reward_and_attack_is_named(page: str) -> None:
    assert sorted(row[0] for row in rows(page, 3)) == sorted([*BUILT_IN_REWARDS, "python"])
    assert [row[0] for row in rows(page, 2)] == list(ATTACKS)
    told = {row[0]: row[1] for row in rows(page, 3)}
    for name in [name for name in REWARDS if name not in ("choice", "xmlcount")]:  # no value is outside of what it says
        allowed = {float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", told[name])}
        assert {REWARDS[name](asked("42"), one, TAGS) for one in tried()} <= allowed, name
    gated = next(part for part in text_of(page).split("\n\n") if part.startswith("`gate: think_format`"))
    assert all(f"`{name}`" in gated for name in FORM)


def tried() -> list[Completion]:
    return [said("42", TAGS), said("41", TAGS), wrote("42", TAGS), wrote("", TAGS), wrote("x" * 9, TAGS, "length")]


@pages
def test_the_patterns_are_those_of_the_code(page: str) -> None:
    shown = [line.split(None, 1) for block in blocks(page, "text") for line in block.splitlines() if "_format " in line]
    assert shown == [
        ["soft_format", soft_pattern(TAGS)],
        ["strict_format", strict_pattern(TAGS)],
        ["soft_format", soft_pattern(THINK)],
        ["strict_format", strict_pattern(THINK)],
    ]
    (tags,) = (block for block in blocks(page, "text") if "_format " not in block)
    pieces = [piece.encode().decode("unicode_escape") for piece in re.findall(r'"(.*?)"', tags)]
    assert len(pieces) == 4
    for piece in pieces:  # alone in a text each brings its eighth
        assert REWARDS["xmlcount"](asked(), wrote(piece, TAGS), TAGS) == 0.125
        assert REWARDS["xmlcount"](asked(), wrote(piece + piece, TAGS), TAGS) == 0.0


@pages
def test_the_values_are_those_of_the_code(page: str) -> None:
    table = rows(page, 6)
    assert len(table) == 7
    for text, *values in table:
        completion = wrote(text.replace("\\n", "\n"), TAGS)
        got = [REWARDS[name](asked("42"), completion, TAGS) for name in PUBLISHED]
        assert got == pytest.approx([float(value) for value in values]), text


@pages
def test_recipes_and_functions_work(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(page, "python")
    Path("my_rewards.py").write_text(code, "utf-8")
    sound, judged, own = (parse(f"name: mine\n{block}").grpo for block in blocks(page, "yaml"))
    sample = asked("肺炎")
    with Rewards(sound.rewards, sound.gate) as rewards:
        good, bad = rewards.score_all([sample] * 2, [said("肺炎"), wrote("肺炎")], THINK)
    assert (good.total, bad.total) == (pytest.approx(1.2), 0.0)
    with Rewards(own.rewards, own.gate) as rewards:
        (found,) = rewards.score_all([sample], [said("Please rest: 肺炎")], THINK)
    assert found.parts == {"answer": 1.0, "brief": 1.0, "polite": 1.0}
    assert judged.rewards[0].price  # type: ignore[union-attr]
    given = columns([sample], [said("肺炎")])
    assert [name for name in given if f"`{name}`" not in text_of(page) and name != "completions"] == []


@pages
def test_figures_of_the_judge_are_its_own(page: str, tmp_path: Path) -> None:
    told = {name.partition("/")[2] for name in re.findall(r"`(judge/\w+)`", text_of(page))}
    with FakeServer(lambda *_: chat()) as server, Judge(server.url, cache=tmp_path) as judge:
        assert told == {*judge.usage(), "cost"}


@pages
def test_what_danlu_reward_test_prints_is_real(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = [block for block in blocks(page, "") if block.startswith("danlu reward test demo")]
    command, *lines = shown.splitlines()
    assert main([*shlex.split(command)[1:], "--display", "none"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line not in ("…", *printed)] == []
    assert len(lines) > 5


@pages
def test_only_int_of_the_shipped_recipes_can_be_gamed(page: str) -> None:
    """The page says so; that they withstand is tested in test_attacks."""
    paid = {name for name in shipped() for spec in load(name).grpo.rewards if spec.label == "int"}
    assert paid == {"qwen2.5-3b-medical-grpo"}
    assert "`int`" in text_of(page).rstrip().rpartition("\n\n")[2]
