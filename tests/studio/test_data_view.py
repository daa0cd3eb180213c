"""What the page Data shows: only rows that may be read, findings as found, a line that tells what it loses."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest
import yaml

from danlu.data.findings import OF_GRPO, Finding, of_grpo
from danlu.errors import DanluError
from danlu.recipe import load
from danlu.run import Run
from danlu.studio import ask, data_view
from danlu.studio.place import Place
from danlu.studio.words import translate

LENGTHS = {
    "max_length": 60,
    "histogram": {"edges": [0, 50, 100], "counts": [4, 1]},
    "cuts": {
        "max_length": [0, 25, 50, 75, 100],
        "rows": [1.0, 0.6, 0.2, 0.2, 0.0],
        "close": [1.0, 0.4, 0.2, 0.0, 0.0],
        "answer": [1.0, 0.6, 0.2, 0.2, 0.0],
        "end": [1.0, 0.6, 0.2, 0.2, 0.0],
    },
}


say = partial(translate, language="en")
in_chinese = partial(translate, language="zh")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A runs folder with an SFT run and an evaluation, and two named files."""
    root = tmp_path / "runs"
    resolved = load("demo").resolved()
    Run.create(root / "mine-sft", "sft", resolved, recipe_text="name: demo\n")
    Run.create(root / "mine-eval", "eval", resolved)
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    (tmp_path / "secret.jsonl").write_text("{}")
    return Place(root, (tmp_path / "rows.jsonl",))


def test_subjects_are_runs_with_data_what_was_named_and_shipped_recipes(place: Place) -> None:
    keys = [subject.key for subject in data_view.subjects(place)]
    assert keys[:2] == ["run:mine-sft", f"file:{place.named[0]}"]
    assert "recipe:demo" in keys
    assert "run:mine-eval" not in keys


@pytest.mark.parametrize("key", ["file:/etc/passwd", "run:../mine-sft", "recipe:/etc/hosts", "", "run:mine-eval"])
def test_nothing_else_can_be_asked_for(place: Place, key: str) -> None:
    with pytest.raises(DanluError, match="not here any more"):
        data_view.find(place, key)


def test_a_run_is_checked_under_the_recipe_it_ran_with(place: Place) -> None:
    subject = data_view.find(place, "run:mine-sft")
    (file,) = data_view.arguments(place, subject)
    assert yaml.safe_load(Path(file).read_text()) == load("demo").resolved()
    assert Path(file).is_relative_to(place.own)
    assert load(file).name == "demo"


def test_a_file_needs_a_model_and_an_option_is_none(place: Place) -> None:
    subject = data_view.find(place, f"file:{place.named[0]}")
    assert data_view.arguments(place, subject, "tiny") == ["--data", str(place.named[0]), "--model", "tiny"]
    for model in ("", "--html=x"):
        with pytest.raises(DanluError, match="need a model"):
            data_view.arguments(place, subject, model)


def test_an_answer_depends_on_the_file_it_is_about(place: Place) -> None:
    subject = data_view.find(place, f"file:{place.named[0]}")
    given = data_view.arguments(place, subject, "tiny")
    before = data_view.stamp(subject, given)
    assert before == data_view.stamp(subject, given)
    place.named[0].write_text('{"question": "another", "answer": "a"}\n')
    assert before != data_view.stamp(subject, given)
    assert before != data_view.stamp(subject, data_view.arguments(place, subject, "other"))


def test_findings_become_cards_worst_first_with_nothing_that_acts() -> None:
    found = {"code": "x", "of": 10, "what": "w", "do": "d", "examples": ["a\u202eb", "y" * 9000]}
    report = {"findings": [{**found, "level": "info", "count": 9}, {**found, "level": "error", "count": 1, "of": 0}]}
    first, second = data_view.cards(report, say)
    assert (first.level, first.count, first.share) == ("error", "1", "")
    assert (second.level, second.share) == ("info", "90.0 %")
    assert second.examples[0] == "a<U+202E>b"
    assert len(second.examples[1]) == 2000


def test_findings_are_told_in_the_language_of_the_page() -> None:
    what, do = "rows hold an end token ({tokens}) in their text: it is read as a real one,", "leave such rows out"
    what += " and the model learns to go on behind it"
    one = Finding("end_token_in_text", "error", 1, 4, what, do, values={"tokens": "<{x}>"})
    report = {"ok": False, "findings": [one.to_dict(), of_grpo(one).to_dict()]}
    assert report["findings"][0]["what"] == what.replace("{tokens}", "<{x}>")
    assert OF_GRPO == data_view.OF_GRPO
    plain, of_prompts = data_view.cards(report, say)
    assert (plain.what, of_prompts.what) == tuple(finding["what"] for finding in report["findings"])
    plain, of_prompts = data_view.cards(report, in_chinese)
    assert plain.what == "正文里写着结束符（<{x}>）：会被当真，模型会学着在它后面接着写"
    assert of_prompts.what == f"GRPO 的题目：{plain.what}"
    assert plain.do == "去掉这些行"
    assert data_view.sentence(report, say) == "2 errors, 0 warnings: mend the data before you train."
    assert data_view.sentence(report, in_chinese) == "2 个错误，0 个警告：先改好数据再训练。"


def test_every_place_of_the_line_tells_what_it_loses() -> None:
    cuts = data_view.cuts(LENGTHS)
    assert [cut.left for cut in cuts] == [0, 25, 50, 75, 100]
    assert (cuts[1].max_length, cuts[1].rows, cuts[1].close) == (25, 0.6, 0.4)
    assert data_view.nearest(cuts, 60) == 2
    assert data_view.nearest(cuts, 10_000) == 4
    assert [bar.height for bar in data_view.bars(LENGTHS)] == [100.0, 25.0]


def test_rows_keep_their_pieces_and_counts() -> None:
    piece = {"kind": "supervised", "tokens": 2}
    row = {"row": 3, "id": "a", "tokens": 5, "pieces": [{**piece, "text": "x\x1b"}, {**piece, "text": ""}]}
    (shown,) = data_view.rows({"rows": [row]})
    assert shown.counts == {"supervised": 4}
    assert shown.pieces == (("supervised", "x<U+001B>"),)


def test_files_that_were_not_named_are_not_read(place: Place, tmp_path: Path) -> None:
    recipe = load("demo", [f"data.train.0.path={tmp_path / 'secret.jsonl'}"]).resolved()
    Run.create(place.root / "odd-sft", "sft", recipe)
    with pytest.raises(DanluError, match="was not named when the studio started"):
        data_view.arguments(place, data_view.find(place, "run:odd-sft"))
    with pytest.raises(DanluError, match="was not named"):
        data_view.arguments(place, data_view.find(place, f"file:{place.named[0]}"), str(tmp_path))


def test_what_the_command_refuses_is_its_what_and_hint(place: Place) -> None:
    with pytest.raises(DanluError) as caught:
        asyncio.run(ask.asked(place, ["x"], "show", "nothing"))
    assert "is not a run" in caught.value.message
    assert caught.value.hint == "runs there: mine-sft, mine-eval"
    assert not ask.kept(place, ["x"]).exists()


def test_an_answer_is_kept_and_asked_once(place: Place) -> None:
    key = ["check", 1]
    first = asyncio.run(ask.asked(place, key, "ls"))
    assert {run["name"] for run in first["runs"]} == {"mine-sft", "mine-eval"}
    file = ask.kept(place, key)
    file.write_text(json.dumps({"runs": []}))
    assert asyncio.run(ask.asked(place, key, "ls")) == {"runs": []}
