"""What the page Export shows: what an export left, and commands that name only what may be named."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.errors import DanluError
from danlu.recipe import load, parse
from danlu.run import Run, write_json
from danlu.studio import export_view


@pytest.fixture
def root(tmp_path: Path) -> Path:
    resolved = load("demo").resolved()
    for name, stage in (("mine-sft", "sft"), ("mine-eval", "eval")):
        with Run.create(tmp_path / name, stage, resolved).recording():
            pass
    Run.create(tmp_path / "half-sft", "sft", resolved)
    run = Run.create(tmp_path / "mine-export", "export", resolved, parents=["mine-sft"])
    with run.recording(), run.delivering() as staged:
        (staged / "model-q8_0.gguf").write_bytes(b"x" * 2000)
        (staged / "model-q4_0.gguf").write_bytes(b"x" * 1000)
        (staged / "Modelfile").write_text("FROM ./model-q8_0.gguf\n# \u202eodd\n", encoding="utf-8")
        files = [{"gguf": f"model-{quant}.gguf", "quant": quant} for quant in ("q8_0", "q4_0")]
        write_json(
            staged / "danlu.json", {"kind": "gguf", "gguf": "model-q8_0.gguf", "files": files, "base": {"id": "tiny"}}
        )
        checks = [
            {"name": "KL", "ok": True, "value": 0.00123456, "limit": 0.01, "file": "model-q8_0.gguf"},
            {"name": "stops", "ok": False, "value": ["<b>"], "limit": []},
        ]
        write_json(staged / "verify.json", {"ok": False, "checks": checks})
    return tmp_path


def test_an_export_is_shown_as_it_is(root: Path) -> None:
    found = export_view.exported(root, "mine-export")
    assert (found.status, found.source, found.base, found.rejected) == ("done", "mine-sft", "tiny", False)
    assert [(file.name, file.quant, file.size) for file in found.files] == [
        ("model-q8_0.gguf", "q8_0", "2 kB"),
        ("model-q4_0.gguf", "q4_0", "1 kB"),
    ]
    assert [(check.name, check.file, check.ok, check.value, check.limit) for check in found.checks] == [
        ("KL", "model-q8_0.gguf", True, "0.00123", "0.01"),
        ("stops", "", False, '["<b>"]', "none"),
    ]
    assert "<U+202E>odd" in found.modelfile
    assert found.suite == ""
    assert found.commands[0].startswith("ollama create demo -f ")


def test_what_a_suite_measured_stands_beside_the_files(root: Path) -> None:
    side = {"bytes": 9e6, "tokens_per_second": None, "accuracy": 0.5, "ci": [0.4, 0.6]}
    told = {"difference": -0.02, "difference_ci": [-0.05, 0.01], "verdict": "no difference shown"}
    sides = [{"name": "source", **side}, {"name": "q8_0", **side, **told, "tokens_per_second": 31.26}]
    write_json(root / "mine-export" / "quants-clinic.json", {"n": 300, "sides": sides})
    found = export_view.exported(root, "mine-export")
    assert (found.suite, found.questions) == ("clinic", 300)
    source, first, second = found.files
    assert (source.quant, source.accuracy, source.change) == ("source", "50.0 %", "")
    assert (first.speed, first.interval, first.change) == ("31.3", "40.0 … 60.0 %", "-2.0 [-5.0, +1.0]")
    assert second.accuracy == ""


def test_an_export_that_failed_shows_what_was_rejected(root: Path) -> None:
    run = Run(root / "mine-export")
    run.artifact.rename(run.path / "rejected")
    found = export_view.exported(root, "mine-export")
    assert found.rejected
    assert len(found.checks) == 2


def test_finished_training_runs_can_be_exported_under_a_free_name(root: Path) -> None:
    assert export_view.sources(root) == ["mine-sft"]
    assert export_view.exports(root) == ["mine-export"]
    assert export_view.free_name(root, "mine-sft") == "mine-export-2"


def test_the_command_exports_under_the_recipe_of_the_run(root: Path) -> None:
    command = export_view.export_command(root, "mine-sft", ["q8_0", "f16"][:1], "new")
    assert command[0] == "export"
    changes = [command[at + 1] for at, part in enumerate(command) if part == "--set"]
    recipe = parse(Path(command[1]).read_text(), changes, origin="x")
    assert recipe.name == "demo"
    assert command[command.index("--from") + 1] == "mine-sft"


@pytest.mark.parametrize(
    ("source", "types", "name", "what"),
    [
        ("half-sft", ["q8_0"], "new", "cannot be exported"),
        ("../mine-sft", ["q8_0"], "new", "cannot be exported"),
        ("mine-sft", [], "new", "no type was chosen"),
        ("mine-sft", ["--out"], "new", "no type --out"),
        ("mine-sft", ["q8_0"], "mine-export", "already used"),
        ("mine-sft", ["q8_0"], "../new", "cannot be a run"),
        ("mine-sft", ["q8_0"], "", "cannot be a run"),
    ],
)
def test_nothing_else_is_started(root: Path, source: str, types: list[str], name: str, what: str) -> None:
    with pytest.raises(DanluError, match=what):
        export_view.export_command(root, source, types, name)


def test_a_modelfile_that_leads_out_of_the_run_is_not_read(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("secret")
    modelfile = root / "mine-export" / "artifact" / "Modelfile"
    modelfile.unlink()
    modelfile.symlink_to(secret)
    with pytest.raises(DanluError, match="outside"):
        export_view.exported(root, "mine-export")


def test_what_was_made_in_ollama_is_read_from_the_last_command() -> None:
    made = "$ danlu export x --to ollama\n  ollama: success\nmade tiny-doctor in http://127.0.0.1:1 (Ollama 0.9.0)\n"
    assert export_view.made(made) == "tiny-doctor"
    assert export_view.made(f"{made}$ danlu verify x\nok\n") == ""
    assert export_view.made("") == ""


def test_no_ollama_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1:9", "http://127.0.0.1:9", "nonsense://"):
        monkeypatch.setenv("OLLAMA_HOST", host)
        assert export_view.ollama() == ""
