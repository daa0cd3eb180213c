"""Training through mlx-lm against our own loop: the same losses, weights and files; resuming; what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_training import new_run, recipe, trained, write_questions, write_rows

from danlu.cli import main
from danlu.errors import DanluError, Stopped
from danlu.models import mlx_fit
from danlu.run import Run, read_json
from danlu.train.metrics import MEASURED
from danlu.train.sft import sft
from tiny_models import build
from tiny_models import trained as memorised

pytest.importorskip("mlx.core", exc_type=ImportError)
pytest.importorskip("mlx_lm", exc_type=ImportError)

OPTIMIZER = {"lr": 5e-3, "warmup": 0.2, "weight_decay": 0.05, "clip": 0.5, "betas": [0.9, 0.98]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build(folder, "qwen3")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")


def curve(run: Run, *keys: str) -> list[float]:
    return [row[key] for row in run.metrics() for key in keys if key in row]


def alike(base: Path, data: Path, tmp_path: Path, tolerance: float = 1e-4, **sft_keys: Any) -> None:
    """Both engines: equal metrics and weights, to rounding."""
    found = []
    for engine in ("danlu", "mlx"):
        keys = {"steps": 10, "batch_size": 2, "accumulation": 2, "micro_batch": 1, "optimizer": OPTIMIZER}
        made = recipe(base, data, data={"valid_fraction": 0.2}, sft={**keys, "engine": engine, **sft_keys})
        run, tensors = trained(made, tmp_path / engine)
        found.append((run, tensors))
    (ours, wanted), (theirs, got) = found
    assert ours.metrics()[-2].keys() == theirs.metrics()[-2].keys()
    names = ("loss", "eval_loss", "grad_norm")
    assert curve(theirs, *names) == pytest.approx(curve(ours, *names), rel=tolerance)
    assert curve(theirs, "lr", "tokens") == curve(ours, "lr", "tokens")
    if len(curve(theirs, "loss")) == 10:
        assert curve(theirs, "loss")[-1] < curve(theirs, "loss")[0] - 0.5
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-3)


def test_losses_weights_and_files_are_those_of_our_own_engine(base: Path, data: Path, tmp_path: Path) -> None:
    alike(base, data, tmp_path)
    ours, theirs = tmp_path / "danlu" / "artifact", tmp_path / "mlx" / "artifact"
    assert [file.name for file in sorted(theirs.iterdir())] == [file.name for file in sorted(ours.iterdir())]
    assert read_json(theirs / "adapter_config.json") == read_json(ours / "adapter_config.json")
    described = [read_json(folder / "danlu.json") for folder in (ours, theirs)]
    assert {**described[0], "parents": []} == {**described[1], "parents": []}


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [{"gradient_checkpointing": True}, {"lora": {"r": 4, "rslora": True}}],
    ids=["recomputing", "rslora"],
)
def test_they_are_also_when(base: Path, data: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    alike(base, data, tmp_path, **keys)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="on a CPU MLX compiles with g++")
def test_they_are_when_compiled(base: Path, data: Path, tmp_path: Path) -> None:
    """Two steps: each shape takes a while on a CPU."""
    alike(base, data, tmp_path, compile=True, micro_batch=4, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "kind"), [("qwen2", "r1"), ("llama", "llama3")])
def test_other_architectures(architecture: str, kind: str, data: Path, tmp_path: Path) -> None:
    build(tmp_path / "base", architecture, kind, tied=False)
    alike(tmp_path / "base", data, tmp_path)


@pytest.mark.slow
def test_a_second_training_goes_on_from_the_first(base: Path, data: Path, tmp_path: Path) -> None:
    first, _ = trained(recipe(base, data, sft={"engine": "danlu"}), tmp_path / "first")
    found = []
    for engine in ("danlu", "mlx"):
        made = recipe(base, data, sft={"engine": engine, "steps": 4})
        found.append(trained(made, tmp_path / f"{engine}-2", str(first.path)))
    assert curve(found[1][0], "loss") == pytest.approx(curve(found[0][0], "loss"), rel=1e-4)
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, rtol=0, atol=1e-3)


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the midst of step 4, with dropout: saved, and then the metrics and bytes of an undisturbed run."""
    import os
    import signal

    from danlu.train import mlx

    keys = {"engine": "mlx", "steps": 7, "save_every": 2, "eval_every": 3, "lora": {"r": 4, "dropout": 0.2}}
    made = recipe(base, data, data={"valid_fraction": 0.25}, sft=keys)
    whole, wanted = trained(made, tmp_path / "whole")

    calls, plain = 0, mlx.Forward.graded

    def interrupted(self: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, batch)

    run = new_run(tmp_path / "run", made)
    monkeypatch.setattr(mlx.Forward, "graded", interrupted)
    with pytest.raises(Stopped) as stopped, run.recording():
        sft(made, run, None)
    assert stopped.value.exit_code == 143
    monkeypatch.undo()
    again = new_run(tmp_path / "run", made, resume=True)
    with again.recording():
        again.record(**sft(made, again, None))
    assert load_file(again.artifact / "adapter_model.safetensors").keys() == wanted.keys()
    for name, value in load_file(again.artifact / "adapter_model.safetensors").items():
        assert torch.equal(value, wanted[name]), name

    def told(run: Run) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key not in MEASURED} for row in run.metrics()]

    assert told(again) == told(whole)


def test_watched_questions_and_the_lines_that_people_know(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = str(write_questions(tmp_path / "questions.jsonl", 4))
    keys = {"engine": "mlx", "steps": 12, "eval_every": 12, "watch": watch, "optimizer": {"lr": 1e-5}}
    made = recipe(memorised(), data, data={"valid_fraction": 0.2}, sft=keys, eval={"max_tokens": 40})
    run, _ = trained(made, tmp_path / "run")
    assert run.metrics()[-1]["eval_accuracy"] == 1.0  # the model knows these by heart
    said = capsys.readouterr().err
    line = (
        r"^Iter (\d+): Train loss [\d.]+, Learning Rate \d\.\d{3}e-\d\d, It/sec [\d.]+, Tokens/sec [\d.]+, "
        r"Trained Tokens (\d+), Peak mem [\d.]+ GB$"
    )
    told = re.findall(line, said, re.MULTILINE)
    assert [int(step) for step, _ in told] == [10, 12]
    assert int(told[-1][1]) == curve(run, "tokens")[-1]
    assert re.findall(r"^Iter (\d+): Val loss [\d.]+, Val took [\d.]+s$", said, re.MULTILINE) == ["12"]


@pytest.mark.parametrize(
    ("section", "keys", "named"),
    [
        ("sft", {"method": "full"}, "sft.method: full"),
        ("sft", {"lora": {"dora": True}}, "sft.lora.dora"),
        ("sft", {"lora": {"modules_to_save": ["lm_head"]}}, "modules_to_save"),
        ("sft", {"precision": "bf16"}, "sft.precision"),
        ("model", {"id": "tiny", "quantization": "nf4"}, "nf4"),
    ],
)
def test_what_is_not_covered_is_refused_at_once(
    section: str, keys: dict[str, Any], named: str, base: Path, data: Path
) -> None:
    made = recipe(base, data, sft={"engine": "mlx", **(keys if section == "sft" else {})})
    if section == "model":
        made = recipe(base, data, sft={"engine": "mlx"}, model=keys)
    with pytest.raises(DanluError, match=re.escape(named)):
        mlx_fit.check(made, ["sft"])
    mlx_fit.check(made, ["eval"])


def test_targets_and_bases_that_do_not_fit_are_refused(base: Path, data: Path, tmp_path: Path) -> None:
    made = recipe(base, data, sft={"engine": "mlx", "lora": {"r": 4, "targets": ["embed_tokens"]}})
    with pytest.raises(DanluError, match="linear layers only"):
        sft(made, new_run(tmp_path / "run", made), None)
    quantized = tmp_path / "quantized"
    build(quantized)
    config = read_json(quantized / "config.json") | {"quantization": {"group_size": 64, "bits": 4}}
    (quantized / "config.json").write_text(json.dumps(config), "utf-8")
    made = recipe(quantized, data, sft={"engine": "mlx"})
    with pytest.raises(DanluError, match="quantized weights"):
        sft(made, new_run(tmp_path / "run2", made), None)


def test_without_mlx_there_is_one_error_and_what_to_install(
    base: Path,
    data: Path,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mlx_fit, "find_spec", lambda _: None)  # as where it is not installed
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe(base, data, sft={"engine": "mlx"}).resolved()), "utf-8")
    for more in (["--dry-run"], []):
        assert main(["sft", str(file), *more]) == 2
        said = capsys.readouterr().err
        assert "sft.engine: mlx needs mlx-lm" in said
        assert 'pip install "danlu[mlx]"' in said
    assert main(["eval", str(file), "--set", "eval.generate=mlx", "--dry-run"]) == 2
    assert "eval.generate" in capsys.readouterr().err
    assert not runs.exists() or not list(runs.iterdir())


@pytest.mark.slow
def test_the_whole_road_on_the_tiny_base(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """sft through mlx, evaluation through mlx, merge, Q8_0 GGUF and its checks: the same road as with our engine."""
    sets = ["sft.engine=mlx", "eval.generate=mlx", "sft.steps=6", "data.train.0.limit=24", "eval.benchmarks.0.limit=6"]
    sets += ["eval.max_tokens=48", "export.quant=q8_0", "stages=[sft, eval, export]"]
    arguments = [part for one in sets for part in ("--set", one)]
    assert main(["run", "demo", *arguments, "--name", "mac", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["stage"] for stage in told] == ["eval", "sft", "eval", "export"]
    assert "comparison" in told[2]
    assert list((runs / "mac-export" / "artifact").glob("*.gguf"))
    assert main(["verify", "mac-export", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    assert main(["merge", "mac-sft", "--out", str(tmp_path / "merged")]) == 0
