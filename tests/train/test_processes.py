"""Several processes train what one does: the same losses and weights, one writer, one end.

The processes are forked from warm ones (see warm.py) with a launcher's environment; the launchers themselves start the
shipped configurations. Everything runs on the CPU over gloo, one thread a process.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_training import recipe, write_rows

from danlu.cli import main
from danlu.run import Run
from tiny_models import build
from warm import Warm

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class Pair:
    """Two processes that meet on a port of their own for every command."""

    def __init__(self, folder: Path) -> None:
        self._errors = folder / "errors"
        self._warm = Warm(self._errors)
        self._read, self._pids = 0, [0, 0]

    def start(self, *args: str, **environment: str) -> list[int]:
        """The pids of a command's processes."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        group = {"DANLU_RUNS": os.environ["DANLU_RUNS"], "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self._read = self._errors.stat().st_size
        self._pids = [
            self._warm.start([*args, "--display", "none"], RANK=rank, LOCAL_RANK=rank, **group, **environment)
            for rank in ("0", "1")
        ]
        return self._pids

    def wait(self) -> list[int]:
        """Their exit codes; those that do not end within two minutes are killed."""
        late = threading.Timer(120, lambda: [os.kill(pid, signal.SIGKILL) for pid in self._pids])
        late.start()
        try:
            return [self._warm.wait(pid) for pid in self._pids]
        finally:
            late.cancel()

    def run(self, *args: str, **environment: str) -> list[int]:
        self.start(*args, **environment)
        return self.wait()

    def told(self) -> str:
        """What the newest command wrote to stderr."""
        return self._errors.read_bytes()[self._read :].decode()

    def close(self) -> None:
        self._warm.close()


@pytest.fixture(scope="module")
def warm_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("pair"))
    yield made
    made.close()


@pytest.fixture
def pair(warm_pair: Pair, runs: Path) -> Pair:
    assert os.environ["DANLU_RUNS"] == str(runs)
    return warm_pair


def written(path: Path, **sections: Any) -> str:
    path.write_text(yaml.safe_dump(recipe(**sections).resolved(), allow_unicode=True), "utf-8")
    return str(path)


@pytest.fixture
def sft(tmp_path: Path, runs: Path) -> str:
    """A recipe with several forwards a step, of different lengths, validation and a best state."""
    assert runs.parent == tmp_path
    build(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl")
    settings = {"steps": 6, "accumulation": 2, "micro_batch": 1, "eval_every": 2, "save_every": 2}
    settings["optimizer"] = {"lr": 1e-3}  # a rate at which rounding is not blown up
    data = {"valid_fraction": 0.25, "max_length": 96}
    return written(tmp_path / "sft.yaml", base=tmp_path / "base", rows=rows, sft=settings, data=data)


def alone(stage: str, *args: str) -> None:
    assert main([stage, *args, "--display", "none"]) == 0


def figures(run: Path, *names: str) -> torch.Tensor:
    """The named figures of every row of metrics.jsonl that has them."""
    rows = [[row[name] for name in names] for row in Run.open(run).metrics() if names[-1] in row]
    return torch.tensor(rows, dtype=torch.float64)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(next((run / "artifact").glob("*model.safetensors")))


def assert_same(one: Path, other: Path) -> None:
    """Losses, gradient norms, validation losses and weights."""
    for names in (("step", "tokens", "loss"), ("step", "grad_norm"), ("step", "eval_loss")):
        torch.testing.assert_close(figures(other, *names), figures(one, *names), **CLOSE)
    torch.testing.assert_close(weights(other), weights(one), **CLOSE)


def after(run: Path, step: int) -> None:
    """Wait until a run has logged a step."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if (run / "metrics.jsonl").exists() and any(row["step"] >= step for row in Run.open(run).metrics()):
            return
        time.sleep(0.002)
    raise AssertionError(f"{run} has not come to step {step}")


def test_two_processes_train_like_one(pair: Pair, sft: str, runs: Path) -> None:
    assert pair.run("sft", sft, "--name", "two") == [0, 0], pair.told()
    alone("sft", sft, "--name", "one")
    assert_same(runs / "one", runs / "two")
    assert [row["step"] for row in Run.open(runs / "two").metrics() if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in runs.iterdir()) == ["one", "two"]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["sft.method=full", "sft.method=lora"])
def test_sharded_weights_train_like_whole_ones(pair: Pair, sft: str, runs: Path, change: str) -> None:
    assert pair.run("sft", sft, "--set", change, "--name", "two", **FSDP) == [0, 0], pair.told()
    alone("sft", sft, "--set", change, "--name", "one")
    assert_same(runs / "one", runs / "two")
