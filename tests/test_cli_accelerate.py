"""`danlu accelerate`: the shipped configurations, as accelerate and bash read them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from danlu.cli import main

NAMES = ["ddp", "zero2", "fsdp2", "zero3", "slurm"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(["accelerate", *args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_list_names_every_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)["configurations"]] == NAMES
    code, out, _ = told(capsys)
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", *NAMES]


@pytest.mark.parametrize(
    ("name", "kind", "again"),
    [("ddp", "MULTI_GPU", None), ("zero2", "FSDP", False), ("fsdp2", "FSDP", True), ("zero3", "FSDP", True)],
)
def test_accelerate_reads_them(capsys: pytest.CaptureFixture[str], name: str, kind: str, again: bool | None) -> None:
    code, out, _ = told(capsys, name, "--processes", "8", "--out", "config.yaml")
    assert (code, out) == (0, "config.yaml\n")
    read = load_config_from_file("config.yaml")
    assert (read.num_processes, read.num_machines, read.distributed_type.value) == (8, 1, kind)
    assert (read.fsdp_config or {}).get("fsdp_reshard_after_forward") is again
    assert told(capsys, name) == (0, Path("config.yaml").read_text().replace("processes: 8", "processes: 2"), "")
    assert yaml.safe_load(Path("config.yaml").read_text())["mixed_precision"] == "no"


def test_the_slurm_job_is_sound_bash(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "slurm")
    assert code == 0
    assert subprocess.run(["bash", "-n"], input=out, text=True, check=False).returncode == 0
    lines = out.splitlines()
    last = max(at for at, line in enumerate(lines) if line.startswith("#SBATCH "))
    assert all(line.startswith("#") for line in lines[:last])  # sbatch reads none after the first command
    nothing = subprocess.run(["bash", "-c", out], env=dict(os.environ), capture_output=True, text=True, check=False)
    assert nothing.returncode != 0
    assert "a recipe: sbatch two-nodes.sbatch mine.yaml" in nothing.stderr


@pytest.mark.parametrize(
    ("args", "what", "hint"),
    [
        (["zero1"], "no configuration 'zero1'", "ddp, zero2, fsdp2"),
        (["slurm", "--processes", "16"], "a Slurm job has a process a GPU", "--ntasks-per-node"),
        (["ddp", "--out", "here.yaml"], "here.yaml exists", "another name"),
        (["ddp", "--out", "none/here.yaml"], "cannot write none/here.yaml", "a directory that exists"),
        (["ddp", "--processes", "0"], "invalid value", "--help"),
    ],
)
def test_what_is_wrong_is_told(capsys: pytest.CaptureFixture[str], args: list[str], what: str, hint: str) -> None:
    Path("here.yaml").write_text("mine\n")
    code, out, error = told(capsys, *args)
    assert (code, out) == (2, "")
    lines = error.splitlines()
    assert what in lines[0]
    assert hint in lines[1]
    assert Path("here.yaml").read_text() == "mine\n"


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_deepspeed_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, runs: Path, more: list[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert main(["sft", "demo", *more]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: DeepSpeed is not used here: FSDP2 divides the same things",
        "hint: `danlu accelerate zero2` and `danlu accelerate fsdp2` (ZeRO-3) write configurations that work",
    ]
    assert not runs.exists()
