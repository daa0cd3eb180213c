"""`danlu export` of a recipe, a run and a model, and `danlu merge`: what they are given and what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from danlu import cli
from danlu.models.locate import base_dir
from danlu.recipe import load
from danlu.run import Run, write_json
from tiny_models import adapter


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Path):
    monkeypatch.chdir(tmp_path)
    runs.mkdir()


def danlu(capsys, *args: str) -> tuple[int, str, str]:
    code = cli.main(list(args))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def tuned(runs: Path) -> Run:
    """A finished sft run on the tiny base."""
    run = Run.create(runs / "tuned", "sft", load("demo").resolved(), recipe_text="name: demo\n")
    with run.recording(), run.delivering() as staged:
        base = base_dir({"id": "tiny"})
        adapter(base, staged)
        told = {"kind": "adapter", "base": {"id": "tiny"}, "notice": "demo", "parents": []}
        write_json(staged / "danlu.json", told)
    return run


@pytest.mark.usefixtures("tuned")
def test_a_run_brings_its_recipe(capsys, runs):
    args = ["export", "tuned", "--quant", "q4_k_m,f16", "--to", "gguf-lora", "--dry-run", "--json"]
    code, out, err = danlu(capsys, *args)
    assert code == 0, err
    found = json.loads(out)
    assert found["plan"] == [{"stage": "export", "run": "tuned-export", "start": "tuned", "compare_with": None}]
    assert found["recipe"]["name"] == "demo"
    assert found["recipe"]["export"]["quant"] == ["q4_k_m", "f16"]
    assert found["recipe"]["export"]["to"] == "gguf-lora"
    assert [path.name for path in runs.iterdir()] == ["tuned"]


@pytest.mark.parametrize(
    ("target", "name"), [("tiny", "tiny-export"), ("some/model", "model-export"), (".", "here-export")]
)
def test_a_model_gets_the_defaults(capsys, tmp_path, monkeypatch, target, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, out, err = danlu(capsys, "export", target, "--dry-run", "--json")
    assert code == 0, err
    assert [(step["run"], step["start"]) for step in json.loads(out)["plan"]] == [(name, target)]


def test_a_model_is_exported(capsys, runs):
    args = ["export", "tiny", "--quant", "q4_0", "--set", "domain=none", "--display", "none"]
    code, out, err = danlu(capsys, *args)
    assert code == 0, err
    assert out == f"{runs / 'tiny-export' / 'artifact'}\n"
    assert (runs / "tiny-export" / "artifact" / "model-q4_0.gguf").is_file()
    code, _, err = danlu(capsys, *args)
    assert code == 2
    assert "is already used" in err


@pytest.mark.parametrize(
    ("args", "what", "hint"),
    [
        (["export", "tuend"], "no recipe 'tuend'", "danlu recipes"),
        (["export", "tuned", "--from", "x"], "--from goes with a recipe", "danlu export x"),
        (["export", "tuned", "--quant", "q4_k"], "export.quant.0", "got 'q4_k'"),
        (["export", "looked"], "looked is a run of eval", "sft or grpo"),
        (["merge", "looked"], "holds no adapter", "method: lora"),
        (["merge", "half"], "half is died, not done", "--resume"),
    ],
)
@pytest.mark.usefixtures("tuned")
def test_what_cannot_be_exported_is_two_lines(capsys, runs, args, what, hint):
    with Run.create(runs / "looked", "eval", {}).recording():
        pass
    Run.create(runs / "half", "sft", {})
    code, out, err = danlu(capsys, *args)
    lines = err.splitlines()
    assert (code, out, len(lines)) == (2, "", 2), err
    assert what in lines[0]
    assert hint in lines[1]


@pytest.mark.usefixtures("tuned")
def test_a_run_is_merged_checked_and_described(capsys, runs):
    code, out, err = danlu(capsys, "merge", "tuned", "--json", "--display", "plain")
    assert code == 0, err
    found = json.loads(out)
    assert (found["out"], found["check"]["ok"]) == (str(runs / "tuned" / "merged"), True)
    assert "merged against base + adapter on 2 prompts: mean KL" in err
    card = (runs / "tuned" / "merged" / "README.md").read_text("utf-8")
    assert "## Recipe\n\n```yaml\nname: demo\n```" in card
    code, out, _ = danlu(capsys, "merge", str(runs / "tuned" / "artifact"), "--out", "again", "--no-check")
    assert (code, out) == (0, "again\n")
