"""The export stage: from a trained run to a checked artifact, and what happens when a check fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from danlu.errors import DanluError
from danlu.export import parity
from danlu.export.card import Lineage, card
from danlu.export.export import export
from danlu.export.lineage import lineage
from danlu.models.tokenizer import load_tokenizer, think_format
from danlu.recipe import Recipe
from danlu.run import Run, write_json
from danlu.think import ThinkFormat
from tiny_models import adapter, trained

NOTICE = "Demo only. Not medical advice."


def recipe(**settings) -> Recipe:
    return Recipe.model_validate({"name": "tiny-doctor", "domain": "pottery_without_world", **settings})


@pytest.fixture
def tuned(runs: Path) -> Run:
    """A finished sft run with an adapter, as training leaves it."""
    run = Run.create(runs / "tuned", "sft", {"a": 1})
    with run.recording(), run.delivering() as staged:
        adapter(trained(), staged, lora_alpha=0.5)
        format = think_format(trained(), load_tokenizer(trained())).to_dict()
        told = {"kind": "adapter", "base": {"id": "Qwen/Tiny", "revision": "abc"}, "think": format, "notice": NOTICE}
        write_json(staged / "danlu.json", {**told, "parents": [], "base_dir": str(trained())})
    run.record(data_hash="d1d1")
    return run


def test_an_adapter_becomes_a_checked_artifact(tuned: Run, runs: Path) -> None:
    evaluation = Run.create(runs / "tuned-eval", "eval", {}, parents=["tuned"])
    write_json(evaluation.path / "compare.json", {"sentence": "better: +12.0 points (p 0.001)"})
    run = Run.create(runs / "out", "export", {}, parents=["tuned"])
    with run.recording():
        result = export(recipe(export={"quant": "f16", "system": "Be brief."}), run, tuned.path)
    assert result["verified"]
    assert result["checks"][0]["name"] == "merge"
    assert sorted(path.name for path in run.artifact.iterdir()) == [
        "Modelfile",
        "README.md",
        "danlu.json",
        "model-f16.gguf",
        "verify.json",
    ]
    assert sorted(path.name for path in run.path.iterdir()) == ["artifact", "config.json", "merged", "run.json"]
    modelfile = (run.artifact / "Modelfile").read_text("utf-8")
    assert f"# {NOTICE}" in modelfile
    assert "FROM ./model-f16.gguf" in modelfile
    assert modelfile.count("PARAMETER stop") == 2
    text = (run.artifact / "README.md").read_text("utf-8")
    for piece in (
        NOTICE,
        "base_model: Qwen/Tiny",
        "`abc`",
        "better: +12.0 points",
        "`d1d1`",
        "| KL | ok |",
        "ollama create",
    ):
        assert piece in text, piece
    report = parity.verify(run.path)  # what `danlu verify` does
    assert report["ok"]
    assert parity.verify(run.artifact / "model-f16.gguf", texts=["a"])["ok"]


def test_several_types_are_several_checked_files(runs: Path) -> None:
    run = Run.create(runs / "out", "export", {})
    with run.recording():
        result = export(recipe(export={"quant": "q8_0, q4_0"}), run, str(trained()))
    assert [Path(file["gguf"]).name for file in result["files"]] == ["model-q8_0.gguf", "model-q4_0.gguf"]
    assert result["gguf"] == result["files"][0]["gguf"]
    told = json.loads((run.artifact / "danlu.json").read_text())
    assert [file["quant"] for file in told["files"]] == ["q8_0", "q4_0"]
    assert told["gguf"] == "model-q8_0.gguf"
    assert "FROM ./model-q8_0.gguf" in (run.artifact / "Modelfile").read_text("utf-8")
    assert {check["file"] for check in result["checks"]} == {"model-q8_0.gguf", "model-q4_0.gguf"}
    assert "| KL, model-q4_0.gguf | ok |" in (run.artifact / "README.md").read_text("utf-8")


def test_a_model_folder_needs_no_merge(runs: Path) -> None:
    run = Run.create(runs / "out", "export", {})
    with run.recording():
        result = export(recipe(), run, str(trained()), check=False)
    assert Path(result["gguf"]).name == "model-q8_0.gguf"
    assert not result["verified"]
    assert not (run.path / "merged").exists()
    assert not (run.artifact / "verify.json").exists()


def test_a_failed_check_delivers_nothing(tuned: Run, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parity.LIMITS, "q8_0", (1e-9, 1e-12, 1.0))  # a limit that no quantization meets
    run = Run.create(runs / "out", "export", {}, parents=["tuned"])
    with pytest.raises(DanluError, match="log-probs, KL"), run.recording():
        export(recipe(), run, tuned.path)
    assert run.info()["status"] == "failed"
    assert not run.artifact.exists()
    assert (run.path / "rejected" / "model-q8_0.gguf").is_file()
    assert not json.loads((run.path / "rejected" / "verify.json").read_text())["ok"]


def test_sources_that_cannot_be_exported(runs: Path, tmp_path: Path) -> None:
    run = Run.create(runs / "out", "export", {})
    with pytest.raises(DanluError, match="neither an adapter nor a model"):
        export(recipe(), run, tmp_path)
    with pytest.raises(DanluError, match="cannot get the base model"):
        export(recipe(), run, "nobody/nothing")


def test_an_adapter_goes_out_beside_its_base(tuned: Run, runs: Path) -> None:
    run = Run.create(runs / "out", "export", {}, parents=["tuned"])
    with run.recording():
        result = export(recipe(export={"to": "gguf-lora", "quant": "f16"}), run, tuned.path)
    (check,) = [check for check in result["checks"] if check["name"] == "adapter"]
    assert check["ok"]
    assert check["change"] > 100 * check["value"]  # it does something, and the same as in peft
    assert not (run.path / "merged").exists()
    assert "FROM ./model-f16.gguf\nADAPTER ./adapter.gguf\n" in (run.artifact / "Modelfile").read_text("utf-8")
    assert json.loads((run.artifact / "danlu.json").read_text())["adapter"] == "adapter.gguf"


def test_a_run_without_artifact_is_named(runs: Path) -> None:
    Run.create(runs / "half", "sft", {})
    run = Run.create(runs / "out", "export", {})
    with pytest.raises(DanluError, match="half has no artifact"):
        export(recipe(), run, runs / "half")


def test_lineage_follows_parents(runs: Path) -> None:
    data = {"train": [{"path": "rows.jsonl", "revision": "v2", "licence": "mit"}]}
    Run.create(runs / "a", "sft", {"x": 1, "data": data}).record(data_hash="h")
    second = Run.create(runs / "b", "grpo", {"x": 2}, parents=["a"], recipe_text="name: b\n")
    found = lineage(second.path / "artifact", {"id": "tiny"})
    assert found.licences == {"rows.jsonl at v2": "mit"}
    assert found.recipe == "name: b\n"
    assert [(stage, name) for stage, name, _ in found.runs] == [("sft", "a"), ("grpo", "b")]
    assert found.data == {"a": "h"}
    assert lineage(runs / "nothing", {"id": "tiny"}) == Lineage("tiny")


def test_a_card_says_what_is_not_known() -> None:
    text = card("m", Lineage("tiny"), ThinkFormat("none", end_tokens=("<e>",)), quant="q8_0")
    assert "license: unknown" in text
    assert "base_model" not in text
    assert "No comparison with the base" in text
    assert "training rows: unknown" in text
    assert "ask for the terms" in text
