"""`danlu verify` and `danlu export --to ollama` from the outside."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from danlu import cli
from danlu.cli.verify import ask_suite, exported, source_of
from danlu.errors import DanluError
from danlu.export import parity
from danlu.export.export import export
from danlu.models.tokenizer import load_tokenizer, renderer
from danlu.recipe import Recipe
from danlu.run import Run
from tiny_models import trained

sys.path.insert(0, str(Path(__file__).parent / "export"))
from ollama_server import OllamaServer


@pytest.fixture
def made(runs: Path) -> Run:
    """An export of the trained model in two types, not checked."""
    recipe = Recipe.model_validate({"name": "tiny-doctor", "export": {"quant": ["q8_0", "q4_0"]}})
    run = Run.create(runs / "mine-export", "export", recipe.resolved())
    with run.recording():
        export(recipe, run, str(trained()), check=False)
    return run


def danlu(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = cli.main(list(args))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_half_written_file_is_named(made: Run, capsys: pytest.CaptureFixture[str]) -> None:
    file = made.artifact / "model-q4_0.gguf"
    os.truncate(file, file.stat().st_size // 2)
    code, out, _ = danlu(capsys, "verify", str(file), "--json", "--display", "none")
    report = json.loads(out)
    assert (code, report["ok"]) == (1, False)
    assert [(check["name"], check["file"]) for check in report["checks"]] == [("file", "model-q4_0.gguf")]
    assert report["checks"][0]["value"].startswith("half-written")
    code, out, _ = danlu(capsys, "verify", str(file), "--display", "none")
    assert code == 1
    assert "FAILED" in out


def test_what_is_no_export_is_refused(made: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = danlu(capsys, "verify", str(tmp_path), "--display", "none")
    assert (code, out) == (2, "")
    assert "holds no export" in err
    told = json.loads((made.artifact / "danlu.json").read_text("utf-8"))
    (made.artifact / "danlu.json").write_text(json.dumps({**told, "source": "../gone"}))
    code, _, err = danlu(capsys, "verify", "mine-export", "--display", "none")
    assert code == 2
    assert "the model that it was made from is gone" in err
    (made.artifact / "other.gguf").write_bytes(b"")
    with pytest.raises(DanluError, match="not a file of this export"):
        exported(str(made.artifact / "other.gguf"))


@pytest.mark.usefixtures("made")
def test_an_architecture_that_is_not_compared_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("danlu.export.files.ARCHITECTURES", {})
    code, out, err = danlu(capsys, "verify", "mine-export", "--display", "none")
    assert (code, out) == (2, "")
    assert "was written by llama.cpp's own converter" in err


@pytest.mark.slow
@pytest.mark.usefixtures("made")
def test_every_file_is_checked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    texts = parity.probe_texts()[:20]
    monkeypatch.setattr(parity, "probe_texts", lambda: texts)  # two thousand are checked elsewhere
    code, out, _ = danlu(capsys, "verify", "mine-export", "--json", "--display", "none")
    report = json.loads(out)
    assert code == 0, report
    assert {check["file"] for check in report["checks"]} == {"model-q8_0.gguf", "model-q4_0.gguf"}


def test_a_suite_is_asked_of_every_file_and_the_source(made: Run, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe_config = made.config()
    recipe_config["eval"]["max_tokens"] = 8
    monkeypatch.setattr(Run, "config", lambda _self: recipe_config)
    monkeypatch.setitem(suites_of_medical(), "short", (("clinic-test", 6),))
    folder, told = exported("mine-export")
    found = ask_suite("mine-export", folder, told, source_of(folder, told), "short")
    assert found["n"] == 6
    assert [side["name"] for side in found["sides"]] == ["source", "q8_0", "q4_0"]
    assert all(side["tokens_per_second"] > 0 for side in found["sides"][1:])
    assert found["sides"][1]["bytes"] == (made.artifact / "model-q8_0.gguf").stat().st_size
    assert Path(found["plot"]) == made.path / "plots" / "quants-short.png"
    assert (made.path / "plots" / "quants-short.svg").is_file()
    assert json.loads((made.path / "quants-short.json").read_text())["n"] == 6
    names = {path.parent.name for path in runs.glob("*/run.json")}
    assert {"mine-export-short-source", "mine-export-short-q8_0", "mine-export-short-q4_0"} <= names


@pytest.mark.usefixtures("made")
def test_a_suite_that_is_none_is_told_first(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = danlu(capsys, "verify", "mine-export", "--suite", "clinik", "--display", "none")
    assert (code, out) == (2, "")
    assert "no benchmark or suite 'clinik'" in err


def suites_of_medical() -> dict:
    from danlu import domains

    return domains.load("medical").suites


@pytest.mark.usefixtures("made")
def test_into_ollama(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaServer(renderer(load_tokenizer(trained()))) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        code, out, err = danlu(capsys, "export", "mine-export", "--to", "ollama", "--run", "发热并且咳嗽")
        assert code == 0, err
        assert out == "# think on\n先看病因。\n---\n多喝水，请看医生。\n# think off\n多喝水，请看医生。\n"
        assert "18 prompts are the model's" in err
        code, out, _ = danlu(capsys, "export", "mine-export", "--to", "ollama", "--run", "咳嗽", "--json")
        told = json.loads(out)["ollama"]
    assert (told["created"], told["model"], told["uploaded"]) == (True, "tiny-doctor", False)
    assert [answer["reasoning"] for answer in told["answers"]] == ["先看病因。", ""]
    monkeypatch.setenv("PATH", "/nonexistent")  # the server is gone, and there is no command
    code, out, err = danlu(capsys, "export", "mine-export", "--to", "ollama")
    assert code == 0
    assert out.splitlines()[0].startswith("ollama create tiny-doctor -f")
    assert out.splitlines()[1] == "ollama run tiny-doctor"
    code, out, err = danlu(capsys, "export", "mine-export", "--run", "x")
    assert (code, out) == (2, "")
    assert "add --to ollama" in err
    code, out, err = danlu(capsys, "export", "mine-export", "--to", "ollama", "--run", "x")
    assert (code, out) == (2, "")
    assert "there is no Ollama to ask" in err
