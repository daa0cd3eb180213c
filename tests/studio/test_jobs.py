"""Commands that the studio starts, stops and goes on with; and the form that makes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from danlu import recipe
from danlu.errors import DanluError
from danlu.recipe import Recipe, load, parse
from danlu.run import Run
from danlu.studio import form, jobs
from danlu.studio.place import Place


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return Place(tmp_path / "runs")


def ended(job: jobs.Job) -> None:
    until = time.monotonic() + 60
    while job.alive():
        assert time.monotonic() < until
        time.sleep(0.05)


# ---- jobs


def test_a_job_leaves_its_log_and_outlives_what_started_it(here: Place):
    job = jobs.start(here, "wrong", ["sft", "nowhere"], ["wrong"])
    assert os.getsid(job.pid) == job.pid  # a session of its own: signals to the studio do not reach it
    ended(job)
    log = jobs.log_tail(here, job)
    assert log.startswith("$ danlu sft nowhere\n")
    found = jobs.failure(log)
    assert found is not None
    assert "no recipe 'nowhere'" in found[0]
    assert found[1]
    again = jobs.job_of(here, "wrong")
    assert again == job
    assert not again.alive()
    assert jobs.job_of(here, "other") is None


def test_two_jobs_of_one_name(here: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "COMMAND", [sys.executable, "-c", "import time; time.sleep(60)  # danlu"])
    job = jobs.start(here, "a", [], ["a"])
    with pytest.raises(DanluError, match="already at work"):
        jobs.start(here, "a", [], ["a"])
    jobs._children[job.pid].kill()
    ended(job)
    with pytest.raises(DanluError, match="cannot be a run"):
        jobs.start(here, "../a", [], [])


def test_what_a_log_warns_of():
    log = "$ danlu run x\nwarning: rows are cut\nsft 1/2\nwarning: rows are cut\nwarning: slow\n"
    assert jobs.warnings(log) == ["rows are cut", "slow"]
    assert jobs.failure(log) is None
    assert jobs.failure("error: a\nhint: b\n$ danlu x --resume\nfine\n") is None  # the error of the time before


def test_stop_asks_the_process_in_the_lock_and_no_other(here: Place):
    run = Run.create(here.root / "live", "sft", load("demo").resolved())
    with pytest.raises(DanluError, match="not running"):
        jobs.stop(here, "live")
    for pid in ("1", str(os.getpid()), "0", "-1"):
        (run.path / "lock").write_text(pid)
        with pytest.raises(DanluError, match="no danlu command"):
            jobs.stop(here, "live")
    stranger = subprocess.Popen(["sleep", "60"])
    (run.path / "lock").write_text(str(stranger.pid))
    with pytest.raises(DanluError, match="no danlu command"):
        jobs.stop(here, "live")
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
    own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)  # danlu"])
    (run.path / "lock").write_text(str(own.pid))
    while b"danlu" not in Path(f"/proc/{own.pid}/cmdline").read_bytes():  # before exec
        time.sleep(0.01)
    jobs.stop(here, "live")
    assert own.wait(timeout=10) == -15


def test_resume_is_the_same_command_or_the_run_alone(here: Place):
    run = Run.create(here.root / "a-grpo", "grpo", load("demo").resolved(), parents=["a-sft"])
    (run.path / "lock").write_text(str(os.getppid()))
    with pytest.raises(DanluError, match="only what was interrupted"):
        jobs.resume_command(here, "a-grpo")
    (run.path / "lock").unlink()
    name, command, runs = jobs.resume_command(here, "a-grpo")
    assert (name, runs) == ("a-grpo", ["a-grpo"])
    assert command[:2] == ["grpo", str(run.path / "config.json")]
    assert command[-1] == "--resume"
    assert command[command.index("--from") + 1] == "a-sft"
    assert recipe.load(command[1]).resolved() == run.config()  # the digest is the same: it may go on
    whole = ["run", "demo", "--name", "a", "--resume"]
    (here.own / "jobs").mkdir(parents=True)
    record = {"name": "a", "command": whole, "runs": ["a-sft", "a-grpo"], "pid": 1, "started": 1.0}
    (here.own / "jobs" / "a.json").write_text(json.dumps(record))
    assert jobs.resume_command(here, "a-grpo") == ("a", whole, ["a-sft", "a-grpo"])


# ---- what may be named


def test_paths_that_were_not_named_are_refused(tmp_path: Path, here: Place):
    for folder in ("named", "secret"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text("{}\n")
    place = Place(here.root, (tmp_path / "named",))
    fine = ["world:sft", "Qwen/Qwen3-1.7B", "tiny", str(tmp_path / "named" / "rows.jsonl"), "a sentence.", ""]
    jobs.refuse_unnamed(place, {"data": {"train": [{"path": path} for path in fine]}})
    for bad in (
        *(str(tmp_path / "secret" / "rows.jsonl"), "secret/rows.jsonl", "/etc/passwd", "/no/such/file"),
        *("named/../secret/rows.jsonl", "~/.ssh", "secret/rows.jsonl:reward"),
    ):
        with pytest.raises(DanluError, match="was not named"):
            jobs.refuse_unnamed(place, {"rewards": [{"python": bad}]})
    (tmp_path / "named" / "out").symlink_to(tmp_path / "secret")
    with pytest.raises(DanluError, match="was not named"):
        jobs.refuse_unnamed(place, str(tmp_path / "named" / "out" / "rows.jsonl"))


# ---- the form


def test_the_form_has_every_key_but_those_left_out():
    off = ("data.masking", "grpo.filter")  # sections that may be off are written as a whole
    keys = {field.key for field in form.fields()}
    assert keys == {key for key in recipe.all_keys() if not key.startswith(off)} - form.LEFT_OUT | set(off)
    assert "model.trust_remote_code" not in keys


def test_kinds_follow_the_schema():
    known = {field.key: field for field in form.fields()}
    assert known["sft.method"].choices == ("lora", "full")
    assert known["sft.batch_size"].kind == "whole"
    assert known["sft.batch_size"].least == 1
    assert known["sft.optimizer.lr"].kind == "real"
    assert known["sft.keep_best"].kind == "switch"
    assert set(known["sft.gradient_checkpointing"].choices) == {True, False, "auto"}
    assert known["data.train"].kind == "yaml"
    assert known["sft.steps"].empty


def test_filling_in_nothing_changes_nothing_and_every_change_comes_back():
    for name in recipe.shipped():
        resolved = load(name).resolved()
        own = {f.key: form.read(f, form.written(f, form.value_of(resolved, f.key))) for f in form.fields()}
        assert form.overrides(resolved, own) == [], name
    resolved = load("demo").resolved()
    changes = form.overrides(
        resolved,
        {
            **{"sft.steps": 7, "sft.optimizer.lr": 1e-5, "data.system": "a: b # c", "grpo.keep_best": False},
            **{"data.train": [{"path": "world:sft", "limit": 3}], "data.masking": {"probability": 0.5}},
        },
    )
    made = load("demo", changes)
    assert (made.sft.steps, made.sft.optimizer.lr, made.data.system) == (7, 1e-5, "a: b # c")
    assert made.grpo.keep_best is False
    assert made.data.train[0].limit == 3
    assert made.data.masking is not None
    assert len(changes) == 6


def test_reading_says_what_is_wrong():
    known = {field.key: field for field in form.fields()}
    with pytest.raises(DanluError, match=r"sft\.batch_size is a whole number"):
        form.read(known["sft.batch_size"], 1.5)
    with pytest.raises(DanluError, match=r"sft\.batch_size is empty"):
        form.read(known["sft.batch_size"], None)
    assert form.read(known["sft.steps"], "") is None


def test_the_command_is_one_that_the_command_line_takes():
    command = form.arguments("x", "demo", ["sft.steps=3"], "base-run")
    assert command == ["run", "demo", "--name", "x", "--set", "sft.steps=3", "--from", "base-run", "--display", "plain"]
    assert isinstance(parse("name: x"), Recipe)
