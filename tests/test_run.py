"""The life of a run: made once, recorded as it ends, resumed only as what it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from danlu.errors import DanluError, Stopped
from danlu.run import Run, differing_keys, digest, list_runs, read_jsonl, write_json
from killed import in_child, kill_at

CONFIG = {"name": "x", "sft": {"lr": 0.1, "steps": 3}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "first"


def create(path, config=CONFIG, **more):
    return Run.create(path, "sft", config, recipe_text="name: x\n", seed=7, **more)


def test_a_finished_run_holds_exactly_this(path):
    run = create(path, parents=["base"])
    with run.recording():
        run.log({"step": 1, "loss": 2.5})
        run.write_samples([{"text": "好"}])
        with run.delivering() as staged:
            (staged / "adapter.bin").write_bytes(b"1")
        run.record(loss=2.5)
        run.record(rows=4)
    found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert found == {
        "recipe.yaml",
        "config.json",
        "run.json",
        "metrics.jsonl",
        "samples.jsonl",
        "artifact/adapter.bin",
    }
    info = run.info()
    assert (info["status"], info["stage"], info["seed"], info["parents"]) == ("done", "sft", 7, ["base"])
    assert info["results"] == {"loss": 2.5, "rows": 4}
    assert info["error"] is None
    assert info["config_digest"] == digest(CONFIG)
    assert info["packages"]["python"]
    assert run.config() == CONFIG
    assert run.metrics() == [{"step": 1, "loss": 2.5}]
    assert run.samples() == [{"text": "好"}]


def test_a_used_directory_is_refused(path):
    create(path)
    with pytest.raises(DanluError, match="already holds a sft run") as caught:
        create(path)
    assert all(way in caught.value.hint for way in ("--resume", "--name", "remove"))


def test_a_foreign_directory_is_refused_and_left_alone(path):
    path.mkdir()
    (path / "thesis.txt").write_text("mine")
    with pytest.raises(DanluError, match="not a Danlu run"):
        create(path)
    assert [file.name for file in path.iterdir()] == ["thesis.txt"]


def test_resume_wants_the_same_recipe_and_names_the_keys(path):
    create(path)
    with pytest.raises(DanluError, match=r"changed in sft\.lr, sft\.new\n"):
        create(path, {"name": "x", "sft": {"lr": 0.2, "steps": 3, "new": 1}}, resume=True)
    assert create(path, resume=True).info()["resumed"] == 1


def test_a_done_run_is_not_resumed(path):
    with create(path).recording():
        pass
    with pytest.raises(DanluError, match="already done"):
        create(path, resume=True)


@pytest.mark.parametrize(
    ("error", "status", "recorded"),
    [
        (KeyboardInterrupt(), "stopped", None),
        (Stopped("sigterm", exit_code=143), "stopped", None),
        (ValueError("bad"), "failed", "ValueError: bad"),
        (DanluError("what", "hint"), "failed", "DanluError: what\nhint: hint"),
    ],
)
def test_how_it_ended_is_recorded_once(path, error, status, recorded):
    run = create(path)
    with pytest.raises(type(error)), run.recording():
        raise error
    assert (run.state(), run.info()["error"]) == (status, recorded)
    assert run.info()["seconds"] >= 0
    assert not (path / "lock").exists()
    with create(path, resume=True).recording():
        assert run.state() == "started"
        assert run.info()["error"] is None
    assert run.state() == "done"


def test_a_living_process_holds_the_lock(path):
    run = create(path)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (path / "lock").write_text(str(sleeper.pid))
        assert run.state() == "started"
        before = run.info()
        with pytest.raises(DanluError, match=f"in use by process {sleeper.pid}"):
            create(path, resume=True)
        with pytest.raises(DanluError, match="in use"), run.recording():
            pass
        assert run.info() == before
        assert (path / "lock").exists()
    finally:
        sleeper.kill()
        sleeper.wait()
    assert run.state() == "died"
    with create(path, resume=True).recording():
        pass
    assert run.state() == "done"


@pytest.mark.parametrize("text", ["", "0", "-1", "nonsense"])
def test_a_lock_without_a_process_is_stale(path, text):
    run = create(path)
    (path / "lock").write_text(text)
    assert run.state() == "died"
    with run.recording():
        pass
    assert run.state() == "done"


def test_json_is_replaced_whole(tmp_path):
    file = tmp_path / "run.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}


def test_a_torn_last_line_is_dropped_and_resume_goes_on_after_it(path):
    run = create(path)
    run.log({"step": 1})
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert run.metrics() == [{"step": 1}]
    create(path, resume=True).log({"step": 2})
    assert run.metrics() == [{"step": 1}, {"step": 2}]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(DanluError, match="line 2"):
        read_jsonl(file)


def test_rows_after_a_checkpoint_can_be_dropped(path):
    run = create(path)
    for step in (1, 2, 3):
        run.log({"step": step})
    run.truncate("metrics.jsonl", lambda row: row["step"] <= 2)
    assert [row["step"] for row in run.metrics()] == [1, 2]


def test_rows_are_taken_back_by_size(path):
    run = create(path)
    assert run.size("metrics.jsonl") == 0
    run.log({"step": 1})
    size = run.size("metrics.jsonl")
    run.log({"step": 2})
    run.sync(["metrics.jsonl", "samples.jsonl"])
    run.cut("metrics.jsonl", size)
    assert [row["step"] for row in run.metrics()] == [1]
    run.cut("metrics.jsonl", 10 * size)  # never longer than it is
    assert run.size("metrics.jsonl") == size


def test_a_run_killed_while_it_is_made_is_not_there(path):
    event, ended = 0, int(signal.SIGKILL)
    while ended == signal.SIGKILL:
        event += 1

        def die(event=event):
            kill_at(event, "first")
            create(path)

        ended = in_child(die)
        if ended:
            assert list_runs(path.parent) == []
    assert event > 5
    assert [run.config() for run in list_runs(path.parent)] == [CONFIG]
    assert [entry.name for entry in path.parent.iterdir()] == ["first"]


def test_a_failed_delivery_leaves_the_old_artifact(path):
    run = create(path)
    with run.delivering() as staged:
        (staged / "a").write_text("old")
    with pytest.raises(FileNotFoundError), run.delivering() as staged:
        (staged / "gone" / "a").write_text("new")
    assert (run.artifact / "a").read_text() == "old"
    assert [entry.name for entry in path.iterdir() if "staged" in entry.name] == []


def test_opening_what_is_no_run_names_the_runs_there(path):
    create(path)
    with pytest.raises(DanluError) as caught:
        Run.open(path.parent / "firts")
    assert "first" in caught.value.hint


def test_listing_survives_a_broken_run(path, tmp_path):
    create(path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    assert [run.name for run in list_runs(tmp_path)] == ["broken", "first"]
    assert list_runs(tmp_path / "nowhere") == []


def test_differing_keys_and_digest():
    assert differing_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 1}) == ["a.c", "d"]
    assert digest({"a": 1, "b": "好"}) == digest({"b": "好", "a": 1}) != digest({"a": 1})


def test_the_lock_holds_our_pid_while_recording(path):
    run = create(path)
    with run.recording():
        assert (path / "lock").read_text() == str(os.getpid())
