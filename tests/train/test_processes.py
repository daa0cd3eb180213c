"""Several processes train what one does: the same losses and weights, one writer, one end.

The processes are forked from warm ones (see warm.py) with a launcher's environment; the launchers themselves start the
shipped configurations. Everything runs on the CPU over gloo, one thread a process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
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
from safetensors.torch import load_file
from small_training import recipe, write_questions, write_rows

from danlu.cli import main
from danlu.run import Run
from danlu.train import checkpoint, processes
from tiny_models import build, trained
from warm import Warm

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class Pair:
    """Two processes that meet on a port of their own for every command, or one."""

    def __init__(self, folder: Path) -> None:
        self._errors = folder / "errors"
        self._warm = Warm(self._errors)
        self._read = 0
        self._pids: list[int] = []

    def start(self, *args: str, **environment: str) -> list[int]:
        """The pids of a command's processes."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return self._start(args, [group | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")], environment)

    def start_one(self, *args: str) -> list[int]:
        """The pid of a command in a process of its own, without a launcher."""
        return self._start(args, [{}], {})

    def _start(self, args: tuple[str, ...], each: list[dict[str, str]], more: dict[str, str]) -> list[int]:
        self._read = self._errors.stat().st_size
        shared = {"DANLU_RUNS": os.environ["DANLU_RUNS"]} | more
        quiet = [] if "--display" in args else ["--display", "none"]
        self._pids = [self._warm.start([*args, *quiet], **shared, **one) for one in each]
        return self._pids

    def wait(self) -> list[int]:
        """Their exit codes; those that do not end within two minutes are killed."""
        late = threading.Timer(120, lambda pids: [os.kill(pid, signal.SIGKILL) for pid in pids], [self._pids])
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


@pytest.fixture
def grpo(tmp_path: Path, runs: Path) -> str:
    """A recipe with more prompts than two processes share evenly, two updates on each draw, KL, held-out questions."""
    assert runs.parent == tmp_path
    questions = write_questions(tmp_path / "questions.jsonl")
    settings = {"steps": 6, "prompts": 5, "iterations": 2, "temperature": 1.6, "kl": 0.05, "micro_batch": 1}
    settings |= {"valid": str(questions), "eval_every": 3, "optimizer": {"lr": 1e-3}}
    return written(tmp_path / "grpo.yaml", base=trained(), rows=questions, grpo=settings)


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


def saved(run: Path) -> int:
    """The step of the newest checkpoint."""
    found = checkpoint.latest(run / "checkpoints")
    assert found is not None
    return int(found.name.removeprefix("step_"))


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
@pytest.mark.parametrize("again", ["true", "false"], ids=["fsdp2", "zero2"])
@pytest.mark.parametrize("change", ["sft.method=full", "sft.method=lora"])
def test_sharded_weights_train_like_whole_ones(pair: Pair, sft: str, runs: Path, change: str, again: str) -> None:
    sharded = FSDP | {"FSDP_RESHARD_AFTER_FORWARD": again}
    assert pair.run("sft", sft, "--set", change, "--name", "two", **sharded) == [0, 0], pair.told()
    alone("sft", sft, "--set", change, "--name", "one")
    assert_same(runs / "one", runs / "two")


def test_grpo_in_two_processes_is_grpo_in_one(pair: Pair, grpo: str, runs: Path) -> None:
    """The same completions, with the same rewards; the rest to rounding. Three of ten groups are left over."""
    assert pair.run("grpo", grpo, "--name", "two") == [0, 0], pair.told()
    alone("grpo", grpo, "--name", "one")
    one, two = Run.open(runs / "one"), Run.open(runs / "two")
    assert [row["output"] for row in two.samples()] == [row["output"] for row in one.samples()]
    told = ("reward", "completion_length", "zero_variance", "eval_accuracy", "prompts_seen", "tokens")
    for name in told:
        assert torch.equal(figures(runs / "two", "step", name), figures(runs / "one", "step", name)), name
    assert figures(runs / "one", "grad_norm").min() > 0.01
    for names in (("step", "loss"), ("step", "grad_norm"), ("step", "kl"), ("step", "entropy")):
        torch.testing.assert_close(figures(runs / "two", *names), figures(runs / "one", *names), **CLOSE)
    torch.testing.assert_close(weights(runs / "two"), weights(runs / "one"), **CLOSE)


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes(pair: Pair, sft: str, runs: Path) -> None:
    """SIGTERM in two processes, then in one, then two to the end: as one process that was not interrupted."""
    longer = (sft, "--set", "sft.steps=30", "--name")
    pids = pair.start("sft", *longer, "parts")
    after(runs / "parts", 4)
    os.kill(pids[0], signal.SIGTERM)
    assert pair.wait() == [143, 143], pair.told()
    assert pair.told().count("hint: continue with --resume") == 1
    before = saved(runs / "parts")
    (pid,) = pair.start_one("sft", *longer, "parts", "--resume")
    after(runs / "parts", before + 3)
    os.kill(pid, signal.SIGTERM)
    assert pair.wait() == [143], pair.told()
    assert saved(runs / "parts") > before
    assert pair.run("sft", *longer, "parts", "--resume") == [0, 0], pair.told()
    assert Run.open(runs / "parts").info()["resumed"] == 2
    alone("sft", *longer, "whole")
    assert_same(runs / "whole", runs / "parts")


@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_process_that_dies_ends_the_others(pair: Pair, sft: str, runs: Path, killed: int) -> None:
    longer = (sft, "--set", "sft.steps=30", "--name")
    pids = pair.start("sft", *longer, "parts")
    after(runs / "parts", 4)
    os.kill(pids[killed], signal.SIGKILL)
    died = time.monotonic()
    codes = pair.wait()
    assert time.monotonic() - died < 10
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 2
    speaker = "process 1: " if killed == 0 else ""
    assert pair.told().splitlines()[-2:] == [
        f"error: {speaker}{processes.GONE}",
        "hint: its own error is told above or by the launcher; go on with --resume",
    ]
    assert pair.run("sft", *longer, "parts", "--resume") == [0, 0], pair.told()
    alone("sft", *longer, "whole")
    assert_same(runs / "whole", runs / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("again", ["true", "false"], ids=["fsdp2", "zero2"])
def test_a_sharded_run_goes_on_in_one_process_and_back(pair: Pair, sft: str, runs: Path, again: str) -> None:
    sharded = FSDP | {"FSDP_RESHARD_AFTER_FORWARD": again}
    longer = (sft, "--set", "sft.steps=30", "--set", "sft.method=full", "--name")
    pids = pair.start("sft", *longer, "parts", **sharded)
    after(runs / "parts", 4)
    os.kill(pids[0], signal.SIGTERM)
    assert pair.wait() == [143, 143], pair.told()
    before = saved(runs / "parts")
    (pid,) = pair.start_one("sft", *longer, "parts", "--resume")
    after(runs / "parts", before + 3)
    os.kill(pid, signal.SIGTERM)
    assert pair.wait() == [143], pair.told()
    assert pair.run("sft", *longer, "parts", "--resume", **sharded) == [0, 0], pair.told()
    alone("sft", *longer, "whole")
    assert_same(runs / "whole", runs / "parts")


def test_a_signal_that_a_launcher_hands_on_is_one_signal(pair: Pair, sft: str, runs: Path) -> None:
    """Ctrl-C comes to all processes, and once more from their launcher."""
    pids = pair.start("sft", sft, "--set", "sft.steps=2000", "--name", "parts", "--display", "plain")
    after(runs / "parts", 3)
    for _ in range(3):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        time.sleep(0.01)
    assert pair.wait() == [130, 130], pair.told()
    assert pair.told().count("saving, then stopping") == 1
    assert "stopped at once" not in pair.told()
    assert "Traceback" not in pair.told()
    assert saved(runs / "parts") >= 3


# ---- a dry run


def dry(pair: Pair, tmp_path: Path, *args: str, **environment: str) -> tuple[list[int], str]:
    """Exit codes of a dry run in two processes, and what the first one printed."""
    out = tmp_path / "out"
    out.unlink(missing_ok=True)
    codes = pair.run(*args, "--dry-run", **environment, DANLU_TEST_STDOUT=str(out))
    return codes, out.read_text("utf-8")


def test_a_dry_run_tells_of_the_processes(pair: Pair, sft: str, runs: Path, tmp_path: Path) -> None:
    codes, told = dry(pair, tmp_path, "sft", sft)
    assert codes == [0, 0], pair.told()
    assert yaml.safe_load(told)["sft"]["steps"] == 6
    host = socket.gethostname()
    assert "# 2 processes on 1 node, each holds whole weights (ddp); gradients are summed over gloo:" in told
    assert [line.split(":")[0] for line in told.splitlines()[-2:]] == [f"#   {at} on {host}" for at in (0, 1)]
    codes, told = dry(pair, tmp_path, "sft", sft, "--json", **FSDP)
    assert codes == [0, 0], pair.told()
    group = json.loads(told)["group"]
    assert (group["processes"], group["nodes"], group["sharding"]) == (2, 1, "fsdp2")
    assert [member["versions"]["torch"] for member in group["members"]] == [torch.__version__] * 2
    assert group["refused"] == []
    assert not runs.exists()


def test_a_dry_run_tells_what_would_be_refused(pair: Pair, sft: str, runs: Path, tmp_path: Path) -> None:
    changes = ("--set", "model.quantization=nf4", "--set", "sft.optimizer.name=adamw_8bit")
    what = "sharded weights (FSDP2) do not go with model.quantization: nf4, sft.optimizer.name: adamw_8bit"
    codes, told = dry(pair, tmp_path, "sft", sft, *changes, **FSDP)
    assert codes == [2, 2]
    assert told.splitlines()[-1] == f"# would be refused: sft: {what}"
    assert pair.told().splitlines()[-2:] == [
        f"error: {what}",
        "hint: train with `danlu accelerate ddp`, or change that",
    ]
    assert pair.run("sft", sft, *changes, **FSDP) == [2, 2]
    assert what in pair.told()
    codes, told = dry(pair, tmp_path, "grpo", sft, "--json", **FSDP)
    assert codes == [2, 2]
    assert "whole weights" in json.loads(told)["group"]["refused"][0]["what"]
    assert not (runs / "small-grpo").exists()


# ---- the launchers themselves


ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}


def launched(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    bin_first = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    env |= ENVIRONMENT | {"PATH": bin_first} | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "zero2", "fsdp2"])
def test_accelerate_launch_with_a_shipped_configuration(sft: str, runs: Path, tmp_path: Path, name: str) -> None:
    file = str(tmp_path / "config.yaml")
    assert main(["accelerate", name, "--processes", "2", "--out", file]) == 0
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file, "--main_process_port", "0"]
    command = [*start, "-m", "danlu", "sft", sft, "--set", "sft.method=full"]
    plan = launched(*command, "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert "# 2 processes on 1 node, " in plan.stdout
    assert f"({name})" in plan.stdout
    done = launched(*command, "--name", "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(runs / "two" / "artifact")
    alone("sft", sft, "--set", "sft.method=full", "--name", "one")
    assert_same(runs / "one", runs / "two")


@pytest.mark.slow
def test_torchrun(sft: str, runs: Path) -> None:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = launched(*start, "-m", "danlu", "sft", sft, "--name", "two")
    assert done.returncode == 0, done.stderr
    alone("sft", sft, "--name", "one")
    assert_same(runs / "one", runs / "two")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_on_a_launcher_saves_and_the_run_goes_on(sft: str, runs: Path, number: int) -> None:
    """As a terminal does it: the launcher and all of its processes get the signal."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*start, "-m", "danlu", "sft", sft, "--set", "sft.steps=60", "--name", "parts"]
    env = os.environ | ENVIRONMENT
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    after(runs / "parts", 3)
    os.killpg(process.pid, number)
    told = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert "error: stopped at step" in told
    assert "stopped at once" not in told
    assert Run.open(runs / "parts").info()["status"] == "stopped"
    assert saved(runs / "parts") >= 3
    alone("sft", sft, "--set", "sft.steps=60", "--name", "parts", "--resume")
    alone("sft", sft, "--set", "sft.steps=60", "--name", "whole")
    assert_same(runs / "whole", runs / "parts")


@pytest.mark.slow
def test_the_slurm_job_trains_on_two_nodes(sft: str, runs: Path, tmp_path: Path) -> None:
    """The job as it is shipped, under stand-ins for Slurm's commands that start one process on each of two "nodes"."""
    (tmp_path / "bin").mkdir()
    scontrol = "echo 127.0.0.1; echo 127.0.0.2"
    srun = """
while [[ $1 == --* ]]; do shift; done
export SLURM_NTASKS=2 SLURM_LOCALID=0
SLURM_PROCID=1 "$@" & SLURM_PROCID=0 "$@" && wait $!"""
    for name, body in (("scontrol", scontrol), ("srun", srun)):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    job = str(tmp_path / "two-nodes.sbatch")
    assert main(["accelerate", "slurm", "--out", job]) == 0
    path = os.pathsep.join(map(str, [tmp_path / "bin", Path(sys.executable).parent, os.environ["PATH"]]))
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": str(os.getpid()), "SLURM_NNODES": "2"}
    changes = ("--set", "stages=[sft]", "--set", "sft.method=full")
    done = launched("bash", job, sft, *changes, "--name", "two", **slurm, PATH=path)
    assert done.returncode == 0, done.stderr
    alone("run", sft, *changes, "--name", "one")
    assert_same(runs / "one-sft", runs / "two-sft")
