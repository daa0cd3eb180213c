"""What rollouts are drawn: which questions, which completions, again after a kill; what of them is told."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_training import recipe, write_questions
from stepping import Seen, own_reward

from danlu.cli import main
from danlu.run import Run
from danlu.train import rollout as rollouts_of
from danlu.train.metrics import MEASURED
from tiny_models import trained


@pytest.fixture(scope="module")
def base() -> Path:
    return trained()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "questions.jsonl")


# ---- what is drawn


def test_groups_of_equal_rewards_give_way_to_others(base: Path, data: Path, tmp_path: Path) -> None:
    """Questions 0, 2, 4 ... pay the same for everything; the stream goes on from where the step before ended."""
    body = "return 1.0 if int(sample.id[1:]) % 2 == 0 else len(completion.text) + 0.1 * sum(completion.tokens)"
    rewards = own_reward(tmp_path, body)
    more = {"prompts": 3, "group": 4, "temperature": 1.7, "rewards": rewards, "steps": 4, "mask_truncated": False}
    drawn = {}
    for rounds in (0, 1, 9):
        seen = Seen(recipe(base, data, grpo={**more, "resample": rounds}), tmp_path / f"run{rounds}")
        drawn[rounds] = [seen.drawn()]
        row = seen.step()
        assert row["prompts_seen"] == seen.stage.seen == drawn[rounds][0].seen
        assert row["completion_length"] * (seen.stage.seen * 4) == pytest.approx(drawn[rounds][0].tokens)
        assert row.get("resampled") == (seen.stage.seen - 3 if rounds else None)
        drawn[rounds].append(seen.drawn())
    questions = [int(sample.id[1:]) for sample, _ in seen.stage.source.questions]
    order = [questions[index] for _, index in rollouts_of.row_order(8, 42, 0, 24)]
    odd = [index for index in order if index % 2]
    ids = {r: [[int(g[0].sample.id[1:]) for g in one.groups] for one in drawn[r]] for r in drawn}
    assert ids[0] == [order[:3], order[3:6]]
    assert [n for step in ids[9] for n in step] == odd[:6]
    assert drawn[9][0].flat == [False] * 3
    once = drawn[1][0]
    assert len(once.groups) == 3
    informative = [n for n, same in zip(ids[1][0], once.flat, strict=True) if not same]
    assert informative == [n for n in order[: once.seen] if n % 2]


def test_a_question_drawn_twice_in_a_step_gets_other_completions(base: Path, tmp_path: Path) -> None:
    data = write_questions(tmp_path / "one.jsonl", 1)
    seen = Seen(recipe(base, data, grpo={"prompts": 2, "temperature": 1.7}), tmp_path / "run")
    first, second = ([r.completion.text for r in group] for group in seen.drawn().groups)
    assert first != second
    assert [[r.completion.text for r in group] for group in seen.drawn().groups] == [first, second]


def test_samples_of_long_runs_stay_few_and_long_texts_are_cut(base: Path, data: Path, tmp_path: Path) -> None:
    groups = Seen(recipe(base, data, grpo={"prompts": 3}), tmp_path / "run").drawn().groups
    assert len(rollouts_of.told(1, 500, groups)) == 8  # all completions of two groups
    assert sum(bool(rollouts_of.told(step, 5000, groups)) for step in range(1, 5001)) == 500
    object.__setattr__(groups[0][0].completion, "text", "开" + "x" * 20_000 + "终")
    output = rollouts_of.told(1, 1, groups)[0]["output"]
    assert len(output) < 8100
    assert (output[0], output[-1]) == ("开", "终")
    assert "…12002 characters…" in output


# ---- again


@pytest.fixture
def file(base: Path, data: Path, tmp_path: Path, runs: Path) -> Path:
    """A recipe with all that a step may depend on: dynamic sampling, iterations, held-out questions, a best state."""
    assert runs.parent == tmp_path
    body = "return 1.0 if int(sample.id[1:]) % 2 == 0 else float(len(completion.text))"
    more = {"resample": 2, "iterations": 2, "loss": "gspo", "kl": 0.02, "temperature": 1.6, "prompts": 3, "steps": 24}
    more |= {"save_every": 4, "valid": str(data), "eval_every": 6, "rewards": own_reward(tmp_path, body)}
    made = recipe(base, data, grpo=more)
    (tmp_path / "grpo.yaml").write_text(yaml.safe_dump(made.resolved(), allow_unicode=True), "utf-8")
    return tmp_path / "grpo.yaml"


def outcome(run: Run) -> dict[str, Any]:
    rows = [{k: v for k, v in row.items() if k not in MEASURED} for row in run.metrics()]
    adapter = (run.artifact / "adapter_model.safetensors").read_bytes()
    return {"metrics": rows, "samples": run.samples(), "adapter": adapter}


def danlu(file: Path, name: str, *more: str) -> int:
    return main(["grpo", str(file), "--name", name, "--display", "none", *more])


@pytest.mark.slow
def test_after_kills_the_same_is_drawn(file: Path, runs: Path) -> None:
    """kill -9 in a first process, once in the middle of a generation and once anywhere; what is left goes on here."""
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "danlu", "grpo", str(file), "--name", "parts", "--display", "none"]
    for rows, more in ((3, []), (8, ["--resume"])):
        process = subprocess.Popen([*command, *more], env=env, stderr=subprocess.PIPE)
        end = time.monotonic() + 300
        while process.poll() is None and lines(runs / "parts" / "metrics.jsonl") < rows and time.monotonic() < end:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        told = process.communicate()[1].decode()
        assert process.returncode == -signal.SIGKILL, told
        assert Run.open(runs / "parts").state() == "died"
    assert danlu(file, "parts", "--resume") == 0
    assert danlu(file, "whole") == 0
    parts, whole = (outcome(Run.open(runs / name)) for name in ("parts", "whole"))
    assert any(row.get("resampled") for row in whole["metrics"])
    for name, value in whole.items():
        assert parts[name] == value, name


def lines(path: Path) -> int:
    return path.read_text("utf-8").count("\n") if path.exists() else 0


def test_a_full_disk_costs_nothing(file: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is full when the rollouts of a step are written down, half of a line reaches it."""
    short = ["--set", "grpo.steps=8", "--set", "grpo.valid=[]", "--set", "grpo.eval_every=0"]
    assert danlu(file, "whole", *short) == 0
    whole = outcome(Run.open(runs / "whole"))
    cut = sum(len(json.dumps(row, ensure_ascii=False).encode()) + 1 for row in whole["samples"][:18]) - 40
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    append = Run._append

    def full(self: Run, name: str, rows: list[dict[str, Any]]) -> None:
        if name == "samples.jsonl":
            resource.setrlimit(resource.RLIMIT_FSIZE, (cut, limits[1]))
        try:
            append(self, name, rows)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_append", full)
        assert danlu(file, "parts", *short) != 0
    error = capsys.readouterr().err.splitlines()[-2]
    assert error.startswith("error: ")
    assert "samples.jsonl" in error or "File too large" in error
    assert Run.open(runs / "parts").info()["status"] == "failed"
    assert danlu(file, "parts", *short, "--resume") == 0
    assert outcome(Run.open(runs / "parts")) == whole
