"""A model is made in Ollama through its API; what goes wrong there is told, and then the name is not touched."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
from pathlib import Path

import pytest
from ollama_server import OllamaServer

from danlu.errors import DanluError
from danlu.export.export import export
from danlu.export.ollama import read_modelfile
from danlu.export.ollama_api import Ollama, host, too_old
from danlu.export.publish import ask, publish
from danlu.models.tokenizer import load_tokenizer, renderer, think_format
from danlu.recipe import Recipe
from danlu.run import Run
from tiny_models import trained

SYSTEM = "请用中文回答。\nBe brief."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of an export of the trained model."""
    recipe = Recipe.model_validate({"name": "小 doctor", "export": {"quant": "q8_0", "system": SYSTEM}})
    run = Run.create(tmp_path_factory.mktemp("runs") / "out", "export", {})
    with run.recording():
        export(recipe, run, str(trained()), check=False, licence="MIT")
    return run.artifact


def template() -> object:
    return renderer(load_tokenizer(trained()))


def at(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.host)


def test_a_model_is_made_and_its_prompts_are_compared(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaServer(template()) as server:
        at(server, monkeypatch)
        found = publish(made, "小 doctor")
        again = publish(made, "小 doctor")
    assert found["created"]
    assert (found["model"], found["version"], found["uploaded"]) == ("doctor", "0.33.2", True)
    assert found["prompts"] == {"compared": 18, "different": 0}
    assert not again["uploaded"]  # the server had the file
    assert list(server.models) == ["doctor"]
    (digest,) = server.blobs
    assert server.blobs[digest] == (made / "model-q8_0.gguf").read_bytes()
    model = server.models["doctor"]
    assert model["files"] == {"model-q8_0.gguf": digest}
    assert (model["system"], model["license"]) == (SYSTEM, "MIT")
    assert model["template"].startswith("{{ range $i, $m := .Messages }}")
    assert model["parameters"]["stop"] == ["<|im_end|>", "<|endoftext|>"]
    assert model["parameters"]["num_ctx"] == 4096
    assert model["parameters"]["repeat_penalty"] == 1
    assert server.paths()[:4] == [
        "GET /api/version",
        "HEAD /api/blobs/sha256",
        "POST /api/blobs/sha256",
        "POST /api/create",
    ]


def test_a_file_is_sent_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, data = tmp_path / "blob", os.urandom(5 << 19)
    file.write_bytes(data)
    digest, sent = f"sha256:{hashlib.sha256(data).hexdigest()}", []
    with OllamaServer() as server:
        at(server, monkeypatch)
        assert not Ollama().has(digest)
        Ollama().upload(file, digest, sent.append)
        assert Ollama().has(digest)
    assert sent == [1 << 20, 1 << 20, 1 << 19]
    assert server.blobs == {digest: data}


def test_one_question_with_and_without_thinking(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    think = think_format(trained(), load_tokenizer(trained()))
    with OllamaServer(template()) as server:
        at(server, monkeypatch)
        publish(made, "doctor")
        answers = {thinking: list(parts) for thinking, parts in ask("doctor", "发热并且咳嗽", think)}
    assert answers[True] == [
        ("reasoning", "先看"),
        ("reasoning", "病因。"),
        ("answer", "多喝水，"),
        ("answer", "请看医生。"),
    ]
    assert answers[False] == [("answer", "多喝水，"), ("answer", "请看医生。")]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("upload", "no space left on device"),
        ("digest", "digest mismatch"),
        ("create", "template error: unexpected EOF"),
        ("torn", "broke off while it made the model"),
        ("prompt", "Ollama's prompt is not the model's"),
        ("not_ollama", "not JSON"),
    ],
)
def test_a_failure_is_told_and_leaves_no_model(
    fault: str, said: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OllamaServer(template(), fault=fault) as server:
        at(server, monkeypatch)
        with pytest.raises(DanluError, match=said):
            publish(made, "doctor")
    assert server.models == {}


def test_versions(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert too_old("0.5.13")
    assert not too_old("0.9.0")
    assert not too_old("0.33.2-rc1")
    assert not too_old("0.0.0")
    with OllamaServer(template(), version="0.6.2") as server:
        at(server, monkeypatch)
        with pytest.raises(DanluError, match=r"Ollama 0\.6\.2 .* is too old") as told:
            publish(made, "doctor")
    assert "0.9.0 or newer" in told.value.hint
    assert server.paths() == ["GET /api/version"]


def test_a_server_that_does_not_tell_its_prompts(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaServer(debug=False) as server:
        at(server, monkeypatch)
        found = publish(made, "doctor")
    assert found["created"]
    assert found["prompts"] is None


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where nothing listens, and no command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{port}")
    monkeypatch.setenv("PATH", "/nonexistent")


@pytest.mark.usefixtures("nobody")
def test_without_ollama_there_are_two_commands(made: Path) -> None:
    found = publish(made, "doctor")
    assert not found["created"]
    assert found["commands"] == [f"ollama create doctor -f {made}/Modelfile", "ollama run doctor"]
    with pytest.raises(DanluError, match="no Ollama answers at"):
        list(next(ask("doctor", "q", think_format(trained(), load_tokenizer(trained()))))[1])


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("code", [0, 1])
def test_the_command_makes_it_where_no_server_runs(
    code: int, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "ollama"
    tool.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/args\necho "Error: could not connect" >&2\nexit {code}\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    if code:
        with pytest.raises(DanluError, match="Error: could not connect"):
            publish(made, "doctor")
    else:
        assert publish(made, "doctor")["created"]
    assert (tmp_path / "args").read_text().split() == ["create", "doctor", "-f", str(made / "Modelfile")]


def test_a_damaged_file_is_not_sent(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Modelfile", "danlu.json", "model-q8_0.gguf"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    os.truncate(tmp_path / "model-q8_0.gguf", 100_000)
    with OllamaServer(template()) as server:
        at(server, monkeypatch)
        with pytest.raises(DanluError, match=r"model-q8_0\.gguf is damaged"):
            publish(tmp_path, "doctor")
    assert server.asked == []


def test_a_modelfile_is_read_as_it_was_written(made: Path, tmp_path: Path) -> None:
    told = read_modelfile(made / "Modelfile")
    text = (made / "Modelfile").read_text("utf-8")
    assert told["from"] == "model-q8_0.gguf"
    assert f'TEMPLATE """{told["template"]}"""' in text
    assert told["parameters"] == {
        "stop": ["<|im_end|>", "<|endoftext|>"],
        "num_ctx": 4096,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 0,
        "repeat_penalty": 1,
    }
    assert (told["system"], told["license"]) == (SYSTEM, "MIT")
    other = tmp_path / "Modelfile"
    other.write_text("FROM ./m.gguf\nADAPTER ./a.gguf\n")
    with pytest.raises(DanluError, match="ADAPTER"):
        read_modelfile(other)
    json.dumps(told)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        (":8080", "http://127.0.0.1:8080"),
        ("gpu-box", "http://gpu-box:11434"),
        ("gpu-box:99", "http://gpu-box:99"),
        ("http://gpu-box", "http://gpu-box:80"),
        ("https://gpu-box/ollama/", "https://gpu-box:443/ollama"),
        ("[::1]:5", "http://[::1]:5"),
        ("::", "http://[::1]:11434"),
    ],
)
def test_addresses(given: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", given)
    assert Ollama().url == url


def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "ftp://x")
    with pytest.raises(DanluError, match="is no address"):
        host()
    monkeypatch.setenv("OLLAMA_HOST", "x:many")
    with pytest.raises(DanluError, match="is no address"):
        host()
