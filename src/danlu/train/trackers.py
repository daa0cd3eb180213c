"""Dashboards that follow a run, through accelerate: TensorBoard, W&B, SwanLab, Trackio, MLflow.

accelerate leaves a tracker whose package is missing out without a word; here that is an error before anything is
loaded. A resumed run goes on in the same curve where the tracker can do that. metrics.jsonl is the record: a tracker
gets the same figures and may be wrong about steps that were taken back.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

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
    """Begin (or go on, from `step`) with the trackers that the accelerator was made for."""
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
    accelerator.init_trackers(PROJECT, init_kwargs=settings)
    for tracker in accelerator.trackers:
        if tracker.name != "tensorboard":  # its own way of storing settings makes a run of its own out of them
            tracker.store_init_configuration(run.config())
