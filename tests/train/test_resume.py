"""Exactness: a run that was interrupted and resumed ends with the metrics and the bytes of one that was not.

Real processes where a signal has to end one; the other half runs in this process.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_training import recipe, write_questions, write_rows

from danlu.cli import main
from danlu.run import Run
from danlu.train import sft as stage
from danlu.train.metrics import MEASURED
from tiny_models import build, trained

DANLU = [sys.executable, "-c", "import sys; from danlu.cli import main; sys.exit(main())"]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def files(tmp_path: Path, runs: Path) -> dict[str, Path]:
    """A recipe file for each stage; with dropout, validation and a best state, which a checkpoint has to hold too."""
    assert runs.parent == tmp_path
    base, steps = tmp_path / "base", 40
    build(base, "qwen3")
    rows, questions = write_rows(tmp_path / "rows.jsonl"), write_questions(tmp_path / "questions.jsonl")
    shared = {"save_every": 2, "steps": steps, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}}
    sft = recipe(base, rows, data={"valid_fraction": 0.25}, sft={**shared, "eval_every": 3, "batch_size": 2})
    more = {"temperature": 1.6, "valid": str(questions), "eval_every": 3, "steps": 12, "kl": 0.01}
    grpo = recipe(trained(), questions, grpo=shared | more)
    for name, made in (("sft", sft), ("grpo", grpo)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(made.resolved(), allow_unicode=True), "utf-8")
    return {name: tmp_path / f"{name}.yaml" for name in ("sft", "grpo")}


def danlu(stage: str, files: dict[str, Path], name: str, *more: str) -> int:
    return main([stage, str(files[stage]), "--name", name, "--display", "none", *more])


def started(stage: str, files: dict[str, Path], name: str, *more: str) -> subprocess.Popen[str]:
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    args = [*DANLU, stage, str(files[stage]), "--name", name, "--display", "none", *more]
    return subprocess.Popen(args, env=env, stderr=subprocess.PIPE, text=True)


def steps_of(run: Path) -> int:
    try:
        return max([json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()], default=0)
    except (OSError, ValueError):  # not there yet, or a line is being written
        return 0


def interrupt_after(pid: int, number: int, run: Path, step: int) -> None:
    end = time.monotonic() + 120
    while steps_of(run) < step and time.monotonic() < end:
        time.sleep(0.002)
    os.kill(pid, number)


def outcome(run: Path) -> dict[str, Any]:
    """All that must not depend on interruptions."""
    rows = [{k: v for k, v in row.items() if k not in MEASURED} for row in Run.open(run).metrics()]
    results = Run.open(run).info()["results"]
    results.pop("peak_memory_bytes")
    return {
        "metrics": rows,
        "samples": Run.open(run).samples(),
        "results": results,
        "adapter": (run / "artifact" / "adapter_model.safetensors").read_bytes(),
    }


def assert_same(runs: Path, one: str, other: str) -> None:
    a, b = outcome(runs / one), outcome(runs / other)
    for name in a:
        assert a[name] == b[name], name


@pytest.mark.parametrize(
    ("stage", "number", "code"), [("sft", signal.SIGINT, 130), ("grpo", signal.SIGTERM, 143)], ids=["sft", "grpo"]
)
def test_an_interrupted_run_goes_on_exactly(
    files: dict[str, Path], runs: Path, capsys: pytest.CaptureFixture[str], stage: str, number: int, code: int
) -> None:
    assert danlu(stage, files, "whole") == 0
    for step, more in ((3, []), (6, ["--resume"])):
        watcher = threading.Thread(target=interrupt_after, args=(os.getpid(), number, runs / "parts", step))
        watcher.start()
        assert danlu(stage, files, "parts", *more) == code
        watcher.join()
        error, hint = capsys.readouterr().err.splitlines()[-2:]
        assert "stopped at step" in error
        assert "--resume" in hint
        assert Run.open(runs / "parts").info()["status"] == "stopped"
        assert not (runs / "parts" / "artifact").exists()
    assert danlu(stage, files, "parts", "--resume") == 0
    assert Run.open(runs / "parts").info()["resumed"] == 2
    assert_same(runs, "whole", "parts")


def test_a_terminated_process_goes_on_in_another(files: dict[str, Path], runs: Path) -> None:
    process = started("sft", files, "parts")
    interrupt_after(process.pid, signal.SIGTERM, runs / "parts", 3)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 143, told
    assert "hint: continue with --resume" in told
    assert danlu("sft", files, "parts", "--resume") == 0
    assert danlu("sft", files, "whole") == 0
    assert_same(runs, "whole", "parts")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_killed_process_goes_on_in_another(files: dict[str, Path], runs: Path, stage: str) -> None:
    """kill -9 at any moment: between steps, while a row is appended, while a checkpoint is written."""
    rng = random.Random(7)
    assert danlu(stage, files, "whole") == 0
    more: list[str] = []
    for _ in range(4):
        process = started(stage, files, "parts", *more)
        at = steps_of(runs / "parts") + rng.randint(1, 3)
        while process.poll() is None and steps_of(runs / "parts") < at:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.communicate(timeout=120)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        assert Run.open(runs / "parts").state() == "died"
        more = ["--resume"]
    else:
        assert danlu(stage, files, "parts", "--resume") == 0
    assert_same(runs, "whole", "parts")


def test_a_torn_checkpoint_costs_two_steps_and_nothing_else(
    files: dict[str, Path], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert danlu("sft", files, "whole") == 0
    watcher = threading.Thread(target=interrupt_after, args=(os.getpid(), signal.SIGTERM, runs / "parts", 7))
    watcher.start()
    assert danlu("sft", files, "parts") == 143
    watcher.join()
    newest = sorted((runs / "parts" / "checkpoints").iterdir())[-1]
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:500])
    capsys.readouterr()
    assert danlu("sft", files, "parts", "--resume") == 0
    assert "is damaged and is skipped" in capsys.readouterr().err.replace("\n", " ")
    assert_same(runs, "whole", "parts")


def test_a_full_disk_is_told_and_the_run_goes_on_later(
    files: dict[str, Path], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill() -> None:
        while not (runs / "parts" / "checkpoints" / "step_000002").exists() and watcher.is_alive():
            time.sleep(0.001)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    watcher = threading.Thread(target=fill, daemon=True)
    watcher.start()
    try:
        code = danlu("sft", files, "parts")
        watcher.join()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert (code, error.startswith("error: cannot write a checkpoint")) == (2, True), error
    kept = sorted((runs / "parts" / "checkpoints").glob("step_*"))
    assert str(kept[-1]) in hint
    assert Run.open(runs / "parts").info()["status"] == "failed"
    assert not list((runs / "parts" / "checkpoints").glob(".*"))
    assert danlu("sft", files, "parts", "--resume") == 0
    assert danlu("sft", files, "whole") == 0
    assert_same(runs, "whole", "parts")


def test_what_could_not_be_delivered_is_not_lost(
    files: dict[str, Path], runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the very end: the run is trained no second time, and tells the same results."""
    assert danlu("sft", files, "whole") == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    deliver = stage.deliver

    def on_a_full_disk(*args: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        deliver(*args)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "deliver", on_a_full_disk)
        try:
            assert danlu("sft", files, "parts") == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: cannot write the artifact")
    assert "--resume" in hint
    assert not (runs / "parts" / "artifact").exists()
    before = (runs / "parts" / "metrics.jsonl").read_bytes()
    assert danlu("sft", files, "parts", "--resume") == 0
    assert (runs / "parts" / "metrics.jsonl").read_bytes() == before
    assert_same(runs, "whole", "parts")


def test_a_run_that_diverges_names_its_last_good_checkpoint(
    files: dict[str, Path], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = ["--set", "sft.optimizer.lr=1e30", "--set", "sft.optimizer.warmup=0", "--set", "sft.save_every=1"]
    assert danlu("sft", files, "wild", *wild) == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert "loss nan" in error or "gradient norm nan" in error or "inf" in error
    assert "lower optimizer.lr" in hint
    assert "last good checkpoint: " in hint
    named = Path(hint.rpartition(": ")[2])
    assert (named / "manifest.json").is_file()
    from safetensors.torch import load_file

    assert all(bool(torch.isfinite(value).all()) for value in load_file(named / "trainable.safetensors").values())
    assert not (runs / "wild" / "artifact").exists()


def test_another_recipe_cannot_resume(files: dict[str, Path], runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watcher = threading.Thread(target=interrupt_after, args=(os.getpid(), signal.SIGINT, runs / "parts", 2))
    watcher.start()
    assert danlu("sft", files, "parts") == 130
    watcher.join()
    assert danlu("sft", files, "parts", "--resume", "--set", "sft.optimizer.lr=1") == 2
    assert "sft.optimizer.lr" in capsys.readouterr().err
