"""Which server is chosen, what is prepared for it, and what it is told; secrets stand on no command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from danlu.errors import DanluError
from danlu.export.gguf import write_gguf
from danlu.models.load import load, save_artifact
from danlu.recipe import Lora, Model, Recipe
from danlu.serve import engine as engines
from danlu.serve.engine import Wish, given, prepare, reasoning_parser
from danlu.serve.serve import example
from danlu.think import ThinkFormat
from tiny_models import adapter, build, trained

RECIPE = Recipe(name="x", model=Model(id=str(trained()), dtype="fp32"))


@pytest.fixture(autouse=True)
def _no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_vllm_command", lambda: None)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_vllm_command", lambda: "/bin/vllm")


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A run with an adapter."""
    folder = tmp_path / "tuned"
    (folder / "artifact").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    save_artifact(load(RECIPE.model, lora=Lora(r=2), train=True), folder / "artifact")
    return folder


def option(command: tuple[str, ...], name: str) -> str:
    return command[command.index(name) + 1]


def test_a_gguf_file_and_the_export_that_holds_it(tmp_path: Path) -> None:
    (tmp_path / "export" / "artifact").mkdir(parents=True)
    (tmp_path / "export" / "run.json").write_text("{}")
    file = write_gguf(trained(), tmp_path / "export" / "artifact" / "model.gguf", "f32")
    for target in (file, tmp_path / "export"):
        found = prepare(str(target), RECIPE, Wish("m", parallel=3, key="secret"), tmp_path)
        command, stdin = given(found, 1234)
        assert found.kind == "llama.cpp"
        assert "secret" not in " ".join(command)
        told = json.loads(stdin)
        assert told["path"] == str(file)
        assert told["lora"] is None
        assert [told[name] for name in ("name", "context", "parallel")] == ["m", 2048, 3]
        assert [told[name] for name in ("key", "port")] == ["secret", 1234]
    assert prepare(str(file), RECIPE, Wish("m", context=100), tmp_path).stdin["context"] == 100  # type: ignore[index]
    with pytest.raises(DanluError, match="does not serve GGUF"):
        prepare(str(file), RECIPE, Wish("m", "vllm"), tmp_path)
    with pytest.raises(DanluError, match="does not exist"):
        prepare("no.gguf", RECIPE, Wish("m"), tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(DanluError, match="is no GGUF file"):
        prepare(str(tmp_path / "broken.gguf"), RECIPE, Wish("m"), tmp_path)


def test_an_adapter_is_merged_and_written_where_vllm_is_not(tuned: Path, tmp_path: Path) -> None:
    found = prepare(str(tuned), RECIPE, Wish("tuned"), tmp_path)
    assert found.kind == "llama.cpp"
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "model-q8_0.gguf").is_file()
    assert found.models == ("tuned",)


def test_architectures_that_have_no_gguf_go_to_transformers(tmp_path: Path) -> None:
    model = tmp_path / "model"
    build(model)
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["GemmaForCausalLM"]}), "utf-8")
    here = tmp_path / "here"
    here.mkdir()
    found = prepare(str(model), RECIPE, Wish("m"), here)
    command, stdin = given(found, 99)
    assert (found.kind, stdin, found.folder) == ("transformers", b"", here)
    assert command[-5:] == ["m", "--host", "127.0.0.1", "--port", "99"]
    assert (here / "m" / "config.json").is_file()
    with pytest.raises(DanluError, match="knows no keys"):
        prepare(str(model), RECIPE, Wish("n", key="secret"), here)


@pytest.mark.usefixtures("vllm")
def test_vllm_gets_the_adapter_unmerged(tuned: Path, tmp_path: Path) -> None:
    found = prepare(str(tuned), RECIPE, Wish("tuned", context=500, parallel=7, key="secret"), tmp_path)
    command, stdin = given(found, 99)
    assert (found.kind, stdin) == ("vllm", b"")
    assert command[:3] == ["/bin/vllm", "serve", str(trained())]
    assert "secret" not in " ".join(command)
    assert found.environment == {"VLLM_API_KEY": "secret"}
    wanted = {
        "--host": "127.0.0.1",
        "--port": "99",
        "--served-model-name": trained().name,
        "--lora-modules": f"tuned={tuned / 'artifact'}",
        "--max-lora-rank": "8",
        "--reasoning-parser": "qwen3",
        "--dtype": "float32",
        "--tokenizer": str(tuned / "artifact"),
        "--max-model-len": "500",
        "--max-num-seqs": "7",
    }
    assert {name: option(tuple(command), name) for name in wanted} == wanted
    assert found.models == ("tuned", trained().name)
    ends = json.loads((Path(option(found.command, "--generation-config")) / "generation_config.json").read_text())
    assert ends["eos_token_id"][0] == load(RECIPE.model).tokenizer.eos_token_id


@pytest.mark.usefixtures("vllm")
def test_what_vllm_would_refuse_is_merged_first(tmp_path: Path) -> None:
    tuned = adapter(trained(), tmp_path / "tuned", modules_to_save=["lm_head"])
    describe_adapter(tuned)
    found = prepare(str(tuned), RECIPE, Wish("tuned"), tmp_path)
    assert found.command[2] == str(tmp_path / "merged")
    assert "--enable-lora" not in found.command
    assert found.models == ("tuned",)
    whole = prepare(str(trained()), RECIPE, Wish("base", "vllm"), _new(tmp_path / "other"))
    assert whole.models == ("base",)
    assert whole.environment == {}


def describe_adapter(folder: Path) -> None:
    described = json.loads((trained() / "danlu.json").read_text("utf-8"))
    base = {**RECIPE.model.model_dump(mode="json")}
    (folder / "danlu.json").write_text(json.dumps({**described, "kind": "adapter", "base": base}), "utf-8")


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DanluError, match="vLLM is not installed") as caught:
        prepare(str(trained()), RECIPE, Wish("m", "vllm"), tmp_path)
    assert "danlu[vllm]" in caught.value.hint
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(DanluError, match="needs uvicorn") as caught:
        prepare(str(trained()), RECIPE, Wish("m", "transformers"), tmp_path)
    assert "danlu[serve]" in caught.value.hint
    made = Recipe(name="x", model=Model(config=str(trained() / "config.json"), tokenizer=str(trained())))
    with pytest.raises(DanluError, match="made from a config"):
        prepare(made.model.id, made, Wish("m"), tmp_path)


def test_the_parser_is_that_of_the_format() -> None:
    def of(**fields: Any) -> str | None:
        return reasoning_parser(ThinkFormat(**fields))

    assert of(style="think", opened_by="model") == "qwen3"
    assert of(style="think", opened_by="template") == "deepseek_r1"
    assert of(style="none") is None
    assert of(style="reasoning_answer", opened_by="model") is None


def test_the_example_holds_no_key() -> None:
    assert "Authorization" not in example("http://a/v1", "m", "")
    assert '"Authorization: Bearer $MY_KEY"' in example("http://a/v1", "m", "MY_KEY")
