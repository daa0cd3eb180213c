"""Dashboards that follow a run, through accelerate: TensorBoard, W&B, SwanLab, Trackio, MLflow.

accelerate leaves a tracker whose package is missing out without a word; here that is an error before anything is
loaded. A resumed run goes on in the same curve where the tracker can do that. metrics.jsonl is the record: a tracker
gets the same figures and may be wrong about steps that were taken back.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any

from danlu import display
from danlu.errors import DanluError
from danlu.run import Run, digest

PROJECT = "danlu"
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "swanlab": ("swanlab",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
}


def check(names: Sequence[str]) -> None:
    """DanluError naming the trackers whose packages are not installed."""
    missing = [name for name in names if not any(find_spec(package) for package in PACKAGES[name])]
    if missing:
        listed = " ".join(PACKAGES[name][0] for name in missing)
        raise DanluError(
            f"track: {', '.join(missing)} cannot be used, the package is not installed",
            f"pip install {listed}, or leave it out of track",
        )


def start(accelerator: Any, run: Run, step: int) -> None:
    """Begin (or go on, from `step`) with the trackers that the accelerator was made for.

    DanluError in the tracker's words when one cannot begin (no account, no network, a server that is away).
    """
    name, folder = run.name, str(run.path / "trackers")
    same = digest([str(run.path.resolve()), run.info()["created"]])
    settings: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": step + 1} if step else {},
        "wandb": {"name": name, "dir": folder, "id": same, "resume": "allow"},
        "swanlab": {"experiment_name": name, "logdir": folder, "id": f"{same}00000", "resume": "allow"},
        "trackio": {"name": name, "resume": "allow"},
        "mlflow": {"run_name": name},
    }
    (run.path / "trackers").mkdir(exist_ok=True)
    try:
        with redirect_stdout(sys.stderr):  # some greet on stdout, which belongs to the stage's artifact
            accelerator.init_trackers(PROJECT, init_kwargs=settings)
            for tracker in accelerator.trackers:
                if tracker.name != "tensorboard":  # its own way of storing settings makes a run of its own out of them
                    tracker.store_init_configuration(run.config())
    except Exception as error:
        raise DanluError(
            f"track: {type(error).__name__}: {' '.join(str(error).split())}",
            "log in to it or set its offline mode, or leave it out of track",
        ) from error


def log(accelerator: Any, row: dict[str, Any]) -> None:
    """Hand a row of metrics.jsonl on. A tracker that fails is told once and left alone: training goes on."""
    try:
        accelerator.log({key: value for key, value in row.items() if key != "step"}, step=row.get("step"))
    except Exception as error:
        display.warn(f"trackers stopped at step {row.get('step')}: {type(error).__name__}: {error}")
        accelerator.trackers = []


def finish(accelerator: Any) -> None:
    """Let trackers write out what they hold, however the stage ends."""
    try:
        with redirect_stdout(sys.stderr):
            for tracker in accelerator.trackers:
                tracker.finish()
    except Exception as error:
        display.warn(f"a tracker did not end well: {type(error).__name__}: {error}")
    accelerator.trackers = []
