"""danlu plan from the outside: the object on stdout, the table, exit codes, errors with a way out."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from danlu.cli import TUNABLES, main

PARTS = {"weights", "adapter", "optimizer", "gradients", "activations", "logits", "kv_cache", "total"}
SMALL = ["--set", "model.id=Qwen/Qwen3-0.6B"]


def test_json_is_the_contract(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "qwen3-1.7b-medical-qlora-v4", *SMALL, "--vram", "16GB", "--rows", "160", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"memory", "budget", "fits", "micro_batch", "steps", "tokens", "parameters", "cheapest"} <= set(found)
    assert set(found["memory"]) >= PARTS
    assert all(isinstance(value, int) and value >= 0 for value in found["memory"].values())
    assert found["memory"]["total"] >= max(found["memory"][part] for part in PARTS - {"total"})
    assert (found["budget"], found["fits"], found["steps"]) == (16 * 10**9, True, 30)
    assert found["seconds"][0] < found["seconds"][1]
    assert "not here" in found["assumed"][0]
    assert not list(tmp_path.iterdir())


def test_the_table_says_what_to_change(capsys):
    assert main(["plan", "qwen3-1.7b-medical-qlora-v4", *SMALL, "--vram", "2.5GB"]) == 1
    text = capsys.readouterr().out
    for word in ("weights", "activations", "at most", "does not fit", "cheapest change", "--set sft.micro_batch="):
        assert word in text
    assert "steps are not known without the rows: --rows N" in text


def test_both_stages_of_the_demo_and_this_machine(capsys):
    assert main(["plan", "demo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["stages"]) == {"sft", "grpo"}
    assert found["stages"]["sft"]["steps"] == 300
    assert found["stages"]["grpo"]["memory"]["kv_cache"] > 0
    assert found["memory"]["total"] == max(one["memory"]["total"] for one in found["stages"].values())


def test_several_gpus(capsys):
    wanted = ["plan", "qwen3-1.7b-medical-qlora-v4", *SMALL, "--gpu", "H100", "--gpus", "8", "--nodes", "2"]
    assert main(wanted) == 0
    text = capsys.readouterr().out
    for word in ("ddp", "zero2", "fsdp2", "zero3", "hsdp", "ASSUMED", "the others wait"):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["plan", "demo", "--vram", "lots"], "not an amount of memory"),
        (["plan", "demo", "--gpu", "abacus"], "no figures for the GPU"),
        (["plan", "demo", "--gpu", "T4", "--device", "cpu"], "does not go with"),
        (["plan", "demo", "--set", "model.id=nobody/nothing"], "cannot get the config"),
        (["plan", "demo", "--set", "stages=[eval]"], "trains nothing"),
    ],
)
def test_errors_are_two_lines(arguments, what, capsys):
    assert main(arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert what in told[0]
    assert told[1].startswith("hint: ")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc reads the tunables")
def test_training_starts_again_under_the_allocator_it_wants(tmp_path):
    """The process is the same one, and what it says of a wrong recipe too."""
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    seen = tmp_path / "seen"
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        f"with open({str(seen)!r}, 'a') as file: print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), file=file)\n"
    )
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "danlu", "sft", "no-such-recipe"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no recipe" in done.stderr
    first, second = (line.split() for line in seen.read_text().splitlines())
    assert first == [second[0], "None"]
    assert second[1] == TUNABLES
