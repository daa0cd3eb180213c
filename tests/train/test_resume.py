"""Exactness: a run that was interrupted and resumed ends with the metrics and the bytes of one that was not.

Real processes where a signal has to end one; the other half runs in this process.
"""

from __future__ import annotations

import contextlib
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
from warm import Warm

DANLU = [sys.executable, "-c", "import sys; from danlu.cli import main; sys.exit(main())"]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def files(tmp_path: Path, runs: Path) -> dict[str, Path]:
    """A recipe file for each stage; with dropout, masks, accumulation, validation and a best state."""
    assert runs.parent == tmp_path
    base, steps = tmp_path / "base", 40
    build(base, "qwen3")
    rows, questions = write_rows(tmp_path / "rows.jsonl"), write_questions(tmp_path / "questions.jsonl")
    shared = {"save_every": 2, "steps": steps, "lora": {"r": 4, "alpha": 8, "dropout": 0.1}}
    masking = {"probability": 0.5, "terms": [1, 2]}
    section = {"valid_fraction": 0.25, "masking": masking}
    more: dict[str, Any] = {"eval_every": 3, "batch_size": 2, "accumulation": 2, "micro_batch": 1, "patience": 30}
    sft = recipe(base, rows, domain="small_domain", data=section, sft=shared | more)
    more = {"temperature": 1.6, "valid": str(questions), "eval_every": 3, "steps": 12, "kl": 0.01}
    grpo = recipe(trained(), questions, grpo=shared | more)
    for name, made in (("sft", sft), ("grpo", grpo)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(made.resolved(), allow_unicode=True), "utf-8")
    return {name: tmp_path / f"{name}.yaml" for name in ("sft", "grpo")}


def danlu(stage: str, files: dict[str, Path], name: str, *more: str) -> int:
    return main([stage, str(files[stage]), "--name", name, "--display", "none", *more])


def started(stage: str, files: dict[str, Path], name: str, *more: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])  # for small_domain
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": paths}
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
    if steps_of(run) >= step:
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


def test_a_signal_while_rows_are_prepared(files: dict[str, Path], runs: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 2_000)
    small = ["--set", "sft.steps=2", "--set", "sft.eval_every=0", "--set", "sft.patience=0"]

    def as_soon_as_there_is_a_run() -> None:
        while not (runs / "parts" / "lock").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=as_soon_as_there_is_a_run)
    watcher.start()
    assert danlu("sft", files, "parts", *small) == 143
    watcher.join()
    assert Run.open(runs / "parts").info()["status"] == "stopped"
    assert not (runs / "parts" / "checkpoints").exists()
    assert danlu("sft", files, "parts", *small, "--resume") == 0
    assert danlu("sft", files, "whole", *small) == 0
    assert_same(runs, "whole", "parts")


def test_a_signal_does_not_wait_for_an_evaluation(files: dict[str, Path], runs: Path, tmp_path: Path) -> None:
    rows = [{"question": f"Q{n}?", "reasoning": "two and two " * 8, "answer": "It is 4."} for n in range(200)]
    held_out = write_rows(tmp_path / "held-out.jsonl", rows=rows)
    small = ["--set", f"data.valid={held_out}", "--set", "sft.steps=5", "--set", "sft.micro_batch=1"]
    watcher = threading.Thread(target=interrupt_after, args=(os.getpid(), signal.SIGTERM, runs / "parts", 3))
    watcher.start()
    assert danlu("sft", files, "parts", *small) == 143
    watcher.join()
    assert [row["step"] for row in Run.open(runs / "parts").metrics()] == [1, 2, 3]  # eval_every is 3
    assert danlu("sft", files, "parts", *small, "--resume") == 0
    assert [row["step"] for row in Run.open(runs / "parts").metrics()] == [1, 2, 3, 3, 4, 5, 5]
    assert danlu("sft", files, "whole", *small) == 0
    assert_same(runs, "whole", "parts")


@pytest.fixture
def warm(tmp_path: Path, runs: Path) -> Iterator[Warm]:
    made = Warm(tmp_path / "errors.txt", DANLU_RUNS=str(runs))
    yield made
    made.close()


EIGHT_BIT = ["--set", "sft.optimizer.name=adamw_8bit", "--set", "sft.lora.r=40"]  # large enough to be kept in 8 bits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "kills", "more"), [("sft", 20, []), ("sft", 8, EIGHT_BIT), ("grpo", 10, [])], ids=["sft", "8-bit", "grpo"]
)
def test_killed_at_random_moments(
    files: dict[str, Path], runs: Path, warm: Warm, stage: str, kills: int, more: list[str]
) -> None:
    """kill -9 while it loads, in a step, while a line is appended, in an evaluation, while a checkpoint is written."""
    rng = random.Random(7)
    command = [stage, str(files[stage]), "--display", "none", *more]
    began = time.monotonic()
    warm.start([*command, "--name", "whole"])
    assert warm.wait() == 0
    takes = time.monotonic() - began
    done, finished, reached = 0, 0, set()
    while done < kills:
        run = runs / f"parts-{finished}"
        code = 1
        while code != 0:
            resume = ["--resume"] if run.exists() else []
            pid = warm.start([*command, "--name", run.name, *resume])
            time.sleep(rng.uniform(0, takes))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            code = warm.wait()
            assert code in (0, -signal.SIGKILL), (run.parent.parent / "errors.txt").read_text()
            if code:
                done += 1
                reached.add(steps_of(run))
        finished += 1
        assert_same(runs, "whole", run.name)
    assert len(reached) > kills // 3, reached  # in many different places


@pytest.mark.slow
def test_killed_inside_the_write_of_a_checkpoint(files: dict[str, Path], runs: Path, warm: Warm) -> None:
    """At file operations of the checkpoint folder, every third one of two checkpoints, each in a process of its own."""
    command = ["sft", str(files["sft"]), "--display", "none", "--set", "sft.steps=8"]
    warm.start([*command, "--name", "whole"])
    assert warm.wait() == 0
    killed = 0
    for event in range(2, 200, 3):
        name = f"parts-{event}"
        warm.start([*command, "--name", name], event, f"{name}/checkpoints")
        code = warm.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        warm.start([*command, "--name", name, "--resume"])
        assert warm.wait() == 0, (runs.parent / "errors.txt").read_text()
        assert_same(runs, "whole", name)
    assert killed > 20


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
