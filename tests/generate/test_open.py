"""One way to open anything that answers: model folders, runs, adapters, GGUF files, exports and servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from endpoint_server import FakeServer, chat

from danlu.errors import DanluError
from danlu.export.gguf import write_gguf
from danlu.generate import Sampling
from danlu.generate.endpoint import EndpointGenerator
from danlu.generate.gguf import GgufGenerator
from danlu.generate.local import LocalGenerator
from danlu.generate.open import gguf_files, open_generator
from danlu.models.load import load, save_artifact
from danlu.recipe import Eval, Lora, Model, Recipe
from tiny_models import CHATS, trained

PROMPTS = [[{"role": "user", "content": question}] for question, _, _ in CHATS]


def recipe(base: Path) -> Recipe:
    return Recipe(name="x", model=Model(id=str(base), dtype="fp32"))


def right(opened: object) -> bool:
    with opened as generator:  # type: ignore[attr-defined]
        found = dict(generator.generate(PROMPTS, Sampling(max_tokens=48)))
    return all(found[n][0].answer == answer for n, (_, _, answer) in enumerate(CHATS))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose adapter changes nothing (its B is zero)."""
    folder = tmp_path / "tuned"
    (folder / "artifact").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    save_artifact(load(recipe(trained()).model, lora=Lora(r=2), train=True), folder / "artifact")
    return folder


def test_the_recipes_own_model() -> None:
    opened = open_generator(str(trained()), recipe(trained()))
    assert isinstance(opened, LocalGenerator)
    assert opened.name == trained().name
    assert opened.batch == 64
    assert right(opened)


def test_a_run_brings_its_own_base(run: Path) -> None:
    for target in (run, run / "artifact"):
        opened = open_generator(str(target), Recipe(name="x", model=Model(id="elsewhere", dtype="fp32")))
        assert opened.name == target.name
        assert right(opened)


def test_a_gguf_file_and_the_export_that_holds_it(tmp_path: Path) -> None:
    (tmp_path / "export" / "artifact").mkdir(parents=True)
    (tmp_path / "export" / "run.json").write_text("{}")
    file = write_gguf(trained(), tmp_path / "export" / "artifact" / "model.gguf", "f32")
    for target in (file, tmp_path / "export"):
        opened = open_generator(str(target), recipe(trained()))
        assert isinstance(opened, GgufGenerator)
        assert right(opened)


def test_an_export_says_which_of_its_files_is_the_model(tmp_path: Path) -> None:
    for name in ("adapter.gguf", "model-q4_k_m.gguf", "model-q8_0.gguf"):
        (tmp_path / name).touch()
    assert gguf_files(tmp_path) == (tmp_path / "adapter.gguf", None)  # nothing tells
    (tmp_path / "danlu.json").write_text('{"gguf": "model-q8_0.gguf"}')
    assert gguf_files(tmp_path) == (tmp_path / "model-q8_0.gguf", None)  # the first asked for, not the first by name
    (tmp_path / "danlu.json").write_text('{"gguf": "model-q8_0.gguf", "adapter": "adapter.gguf"}')
    assert gguf_files(tmp_path) == (tmp_path / "model-q8_0.gguf", tmp_path / "adapter.gguf")
    (tmp_path / "config.json").write_text("{}")
    assert gguf_files(tmp_path) is None  # weights for transformers


def test_the_address_of_a_server() -> None:
    with FakeServer(lambda _asked, _number: chat("<think>a</think>B")) as server:
        opened = open_generator(f"{server.url}#m", Recipe(name="x"))
        assert isinstance(opened, EndpointGenerator)
        assert (opened.name, opened.endpoint.concurrency) == (f"{server.host}/m", 32)
        found = []
        for style in ("auto", "think", "none", "reasoning_answer"):
            chosen = Recipe(name="x", model=Model(think=style), eval=Eval(batch=2))
            with open_generator(server.url, chosen) as generator:
                assert generator.endpoint.concurrency == 2
                ((_, (one,)),) = generator.generate(PROMPTS[:1], Sampling())
                found.append((generator.think.style, one.answer))
    assert found == [
        ("think", "B"),
        ("think", "B"),
        ("none", "<think>a</think>B"),
        ("reasoning_answer", "<think>a</think>B"),
    ]
    with pytest.raises(DanluError, match="cannot be reached"):
        open_generator(server.url, Recipe(name="x"))


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "run.json").write_text("{}")
    cases = [
        (str(tmp_path / "no.gguf"), "no.gguf does not exist", "danlu export"),
        (str(tmp_path / "unfinished"), "has no artifact", "--resume"),
        ("no/such-model", "cannot get the base model no/such-model", "local directory"),
    ]
    for target, what, hint in cases:
        with pytest.raises(DanluError) as caught:
            open_generator(target, recipe(trained()))
        assert what in caught.value.message
        assert hint in caught.value.hint
