"""Trackers: TensorBoard for real, also over an interruption; what is missing or fails is told."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from small_training import new_run, recipe, write_rows

from danlu.cli import main
from danlu.errors import DanluError, Stopped
from danlu.run import Run
from danlu.train import trackers
from danlu.train.sft import sft
from tiny_models import build


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build(folder, "qwen3")
    return folder


def events(run: Run) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a run: curve -> step -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.path / "trackers" / "danlu"))
    found.Reload()
    return {name: {e.step: e.value for e in found.Scalars(name)} for name in found.Tags()["scalars"]}


def logged(run: Run, key: str) -> dict[int, Any]:
    return {row["step"]: pytest.approx(row[key], rel=1e-6) for row in run.metrics() if key in row}


def test_tensorboard_shows_what_is_in_metrics_also_after_an_interruption(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    settings = {"steps": 6, "eval_every": 2, "save_every": 2, "track": ["tensorboard"]}
    made = recipe(base, write_rows(tmp_path / "rows.jsonl"), data={"valid_fraction": 0.25}, sft=settings)

    class Interrupted(Run):
        def log(self, row: dict[str, Any]) -> None:
            super().log(row)
            if row["step"] == 5:
                signal.raise_signal(signal.SIGINT)

    new_run(tmp_path / "run", made)
    with pytest.raises(Stopped):
        sft(made, Interrupted(tmp_path / "run"))
    run = new_run(tmp_path / "run", made, resume=True)
    sft(made, run)
    seen = events(run)
    for key in ("loss", "grad_norm", "lr", "eval_loss", "supervised_tokens", "memory_bytes", "forward_seconds"):
        assert seen[key] == logged(run, key), key
    assert sorted(seen["loss"]) == [1, 2, 3, 4, 5, 6]
    assert sorted(seen["eval_loss"]) == [2, 4, 6]
    assert "step" not in seen


def test_a_tracker_that_is_not_installed_is_told_before_anything_is_loaded(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = next(name for name, found in trackers.PACKAGES.items() if not any(map(find_spec, found)))
    rows = write_rows(tmp_path / "rows.jsonl")
    for stage in ("sft", "grpo"):
        text = f"name: x\nmodel: {{id: {tmp_path}/no}}\ndata: {{train: {rows}}}\n{stage}: {{track: [{missing}]}}\n"
        (tmp_path / "x.yaml").write_text(text)
        assert main([stage, str(tmp_path / "x.yaml"), "--name", stage]) == 2
        error, hint = capsys.readouterr().err.splitlines()[-2:]
        assert error == f"error: track: {missing} cannot be used, the package is not installed"
        assert f"pip install {missing}" in hint
    assert runs.exists()


class Broken:
    """A tracker as accelerate knows it; the real services are not reached in tests."""

    name = "broken"

    def finish(self) -> None:
        raise ConnectionError("gone")


class Failing:
    """An accelerator whose trackers cannot be reached any more."""

    def __init__(self) -> None:
        self.trackers: list[Any] = [Broken()]

    def log(self, *_: Any, **__: Any) -> None:
        if self.trackers:
            raise ConnectionError("no route")

    def init_trackers(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("not logged in\n  twice")


def test_a_tracker_that_fails_does_not_end_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    failing = Failing()
    for step in (3, 4):
        trackers.log(failing, {"step": step, "loss": 1.0})
    told = capsys.readouterr().err
    assert told.count("trackers stopped at step 3: ConnectionError: no route") == 1
    assert "step 4" not in told
    failing.trackers = [Broken()]
    trackers.finish(failing)
    trackers.finish(failing)
    assert capsys.readouterr().err.count("a tracker did not end well") == 1


def test_a_tracker_that_cannot_begin_is_an_error(base: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", recipe(base))
    with pytest.raises(DanluError, match="track: ConnectionError: not logged in twice") as caught:
        trackers.start(Failing(), run, 0)
    assert "leave it out of track" in caught.value.hint
