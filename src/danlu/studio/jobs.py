"""Commands that the studio starts, as processes of their own that outlive it.

A job is a file in `.studio/jobs` of the runs folder: what was started, with which process, and which runs it makes; its
output is in a log beside it. Nothing else is kept: what became of a run is in its own directory. A run is stopped by
SIGTERM to the process that holds its lock, as `kill` does, and goes on by the same command with --resume.

Not covered: runs of other machines that share the folder (their locks name processes of their own).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.errors import DanluError
from danlu.run import Run, read_json, write_json
from danlu.studio.place import Place
from danlu.studio.safety import inside, readable, run_path

COMMAND = [sys.executable, "-m", "danlu"]
STAGES = ("data", "sft", "grpo", "eval", "export")
TAIL = 20000  # bytes of a log that are shown

_children: dict[int, subprocess.Popen[bytes]] = {}  # of this process, to be waited for


@dataclass(frozen=True, slots=True)
class Job:
    """A command that was started here. `runs`: names of the runs that it makes, in order."""

    name: str
    command: list[str]
    runs: list[str]
    pid: int
    started: float

    def alive(self) -> bool:
        child = _children.get(self.pid)
        if child is not None:
            return child.poll() is None
        return _is_ours(self.pid, self.started)


def start(place: Place, name: str, command: list[str], runs: list[str]) -> Job:
    """Begin `danlu COMMAND...`; DanluError when a job of that name is at work."""
    run_path(place.root, name)
    known = job_named(place, name)
    if known and known.alive():
        raise DanluError(f"{name} is already at work (process {known.pid})", "wait for it to end, or stop it")
    folder = place.own / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"DANLU_RUNS": str(place.root), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    environment.pop("DANLU_STUDIO_TOKEN", None)  # none of their business
    with (folder / f"{name}.log").open("ab") as log:
        log.write(f"$ danlu {' '.join(command)}\n".encode())
        log.flush()
        child = subprocess.Popen(
            [*COMMAND, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    _children[child.pid] = child
    job = Job(name, command, runs, child.pid, time.time())
    write_json(folder / f"{name}.json", {key: getattr(job, key) for key in Job.__slots__})
    return job


def job_named(place: Place, name: str) -> Job | None:
    try:
        found = read_json(inside(place.own / "jobs", f"{name}.json"))
        return Job(**{key: found[key] for key in Job.__slots__})
    except (DanluError, KeyError, TypeError):
        return None


def jobs(place: Place) -> list[Job]:
    """All that were started here, newest first."""
    found = [job_named(place, path.stem) for path in (place.own / "jobs").glob("*.json")]
    return sorted((job for job in found if job), key=lambda job: -job.started)


def job_of(place: Place, run: str) -> Job | None:
    """The newest job that makes the run of this name."""
    return next((job for job in jobs(place) if run in job.runs), None)


def log_tail(place: Place, job: Job) -> str:
    """The end of what a job told."""
    try:
        with inside(place.own / "jobs", f"{job.name}.log").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            text = file.read().decode("utf-8", "replace")
    except (OSError, DanluError):
        return ""
    return text.partition("\n")[2] if size > TAIL else text


def failure(log: str) -> tuple[str, str] | None:
    """(what, hint) of the error at the end of a log, as the command line prints it."""
    what = hint = ""
    for line in log.splitlines():
        if line.startswith("$ danlu"):
            what = hint = ""
        elif line.startswith("error: "):
            what, hint = line.removeprefix("error: "), ""
        elif line.startswith("hint: "):
            hint = line.removeprefix("hint: ")
    return (what, hint) if what else None


def warnings(log: str) -> list[str]:
    """What a command warned of, each once, without the progress between."""
    found = [line.removeprefix("warning: ") for line in log.splitlines() if line.startswith("warning: ")]
    return list(dict.fromkeys(found))


# ---- stop and resume


def stop(place: Place, name: str) -> None:
    """Ask the process of a run to save and end; DanluError where there is none."""
    path = run_path(place.root, name)
    try:
        pid = int(inside(path, "lock").read_text())
    except (OSError, ValueError):
        raise DanluError(f"{name} is not running", "it has ended by itself") from None
    if pid <= 1 or pid == os.getpid() or not _is_ours(pid, None):
        raise DanluError(f"process {pid}, which {name} names, is no danlu command", "remove the run's file lock")
    os.kill(pid, signal.SIGTERM)


def resume_command(place: Place, name: str) -> tuple[str, list[str], list[str]]:
    """(name of the job, command, runs) that goes on with a run; the whole `danlu run` where one was started here."""
    run = Run(run_path(place.root, name))
    info = run.info()
    if run.state() not in ("stopped", "failed", "died"):
        raise DanluError(f"{name} is {run.state()}", "only what was interrupted can go on")
    if info.get("stage") not in STAGES:
        raise DanluError(f"{name} is no stage that can go on", "start a new run")
    job = job_of(place, name)
    if job and job.command[:1] == ["run"]:
        return job.name, [*(arg for arg in job.command if arg != "--resume"), "--resume"], job.runs
    parents = info.get("parents") or []
    start_from = ["--from", str(parents[0])] if parents else []
    recipe = inside(run.path, "config.json")  # JSON is YAML: the recipe as it was resolved
    command = [info["stage"], str(recipe), "--name", name, *start_from, "--display", "plain", "--resume"]
    return name, command, [name]


def _is_ours(pid: int, started: float | None) -> bool:
    """Whether a process runs danlu (and began no later than a job did): a number may be another's by now."""
    import psutil

    try:
        process = psutil.Process(pid)
        words = process.cmdline()
        if process.status() == psutil.STATUS_ZOMBIE or (started and process.create_time() > started + 5):
            return False
    except psutil.Error:
        return False
    return any("danlu" in word for word in words)


# ---- what may be named


def refuse_unnamed(place: Place, values: Any) -> None:
    """DanluError for a path of this machine, anywhere in a recipe, that was not named when the studio started.

    What is no path here (a hub id, `world:sft`, a sentence) passes.
    """
    roots = [place.root, *place.named]
    for text in _texts(values):
        for part in (text, text.rpartition(":")[0]):  # "FILE.py:function" names a file too
            path = Path(part).expanduser() if part and len(part) < 4096 and "\0" not in part else None
            looks = part.startswith(("/", "~", "./", "../")) or ".." in Path(part).parts if path else False
            if path and (looks or _exists(path)) and not readable(path, roots):
                raise DanluError(
                    f"{part} was not named when the studio started",
                    f"end the studio and start it with: danlu studio {part}",
                )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _texts(values: Any) -> list[str]:
    if isinstance(values, str):
        return [values]
    if isinstance(values, dict):
        return [text for value in values.values() for text in _texts(value)]
    if isinstance(values, list | tuple):
        return [text for value in values for text in _texts(value)]
    return []
