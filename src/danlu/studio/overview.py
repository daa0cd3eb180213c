"""What a runs folder holds, as rows of a table and as a graph; no NiceGUI here.

run.json and config.json of a run are read again only when their size or time changed, so that a folder of hundreds of
runs costs a directory listing. A run that a link leads out of the folder is left out; of one whose run.json cannot be
read there is the name.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from danlu.errors import DanluError
from danlu.run import Run, iter_jsonl, read_json
from danlu.studio.safety import inside, run_path

TAIL = 65536  # bytes of metrics.jsonl in which the newest row is looked for
LIVE = ("started",)
# the number that stands for a run of each stage: the first of these in its results, else in its newest metrics
KEYS: dict[str, tuple[str, ...]] = {
    "sft": ("best_eval_accuracy", "eval_accuracy", "best_eval_loss", "eval_loss", "loss"),
    "grpo": ("best_eval_accuracy", "eval_accuracy", "reward"),
    "eval": ("accuracy",),
    "export": ("checks",),
    "data": ("rows",),
}
LABELS = {
    "best_eval_accuracy": "held-out accuracy",
    "eval_accuracy": "held-out accuracy",
    "best_eval_loss": "eval loss",
    "eval_loss": "eval loss",
    "loss": "loss",
    "reward": "reward",
    "accuracy": "accuracy",
    "checks": "checks passed",
    "rows": "rows",
}
SHARES = frozenset({"best_eval_accuracy", "eval_accuracy", "accuracy"})


@dataclass(frozen=True, slots=True)
class Overview:
    """One run in a table. `key`, `value`: the number that matters; `value` is what `told` shows."""

    name: str
    stage: str = "?"
    status: str = "unreadable"
    recipe: str = ""
    model: str = ""
    data: str = ""
    key: str = ""
    value: float | str | None = None
    created: float | None = None
    seconds: float | None = None
    parents: tuple[str, ...] = ()
    step: int | None = None
    steps: int | None = None
    error: str | None = None

    @property
    def live(self) -> bool:
        return self.status in LIVE


_seen: dict[Path, tuple[Any, Overview]] = {}


def overviews(root: Path) -> list[Overview]:
    """All runs of a folder, newest first."""
    try:
        names = [entry.name for entry in os.scandir(root) if not entry.name.startswith(".")]
    except FileNotFoundError:
        return []
    found = [one for name in names if (one := overview(root, name)) is not None]
    return sorted(found, key=lambda one: (-(one.created or 0), one.name))


def overview(root: Path, name: str) -> Overview | None:
    """One run; None where there is none of that name."""
    try:
        path = run_path(root, name)
        stamp = tuple(_stamp(path / file) for file in ("run.json", "config.json"))
        if stamp[0] is None:
            return None
        if path not in _seen or _seen[path][0] != stamp:
            inside(path, "run.json"), inside(path, "config.json")
            _seen[path] = (stamp, _read(Run(path)))
    except DanluError:
        return None
    return _now(Run(path), replace(_seen[path][1], name=name))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _read(run: Run) -> Overview:
    """What run.json and config.json say."""
    try:
        info = run.info()
        config = run.config() if (run.path / "config.json").is_file() else {}
        stage, results = str(info.get("stage", "?")), info.get("results") or {}
        key, value = number(stage, results)
        return Overview(
            name=run.name,
            stage=stage,
            status=str(info.get("status", "?")),
            recipe=str(config.get("name", "")),
            model=short_name(str((config.get("model") or {}).get("id", ""))),
            data=data_of(stage, config),
            key=key,
            value=value,
            created=_number(info.get("created")),
            seconds=_number(info.get("seconds")),
            parents=tuple(map(str, info.get("parents") or [])),
            step=results.get("steps"),
            steps=total_steps(stage, config, results),
            error=info.get("error"),
        )
    except (DanluError, AttributeError, TypeError, ValueError):
        return Overview(run.name)


def _now(run: Run, known: Overview) -> Overview:
    """With what changes while run.json does not: whether it lives, and how far it is."""
    if known.status not in ("started", "stopped", "failed"):  # what ended otherwise has recorded its results
        return known
    status = run.state() if known.status == "started" else known.status
    last = newest(run.path / "metrics.jsonl")
    step = last.get("step") if last else None
    key, value = number(known.stage, last) if last else (known.key, known.value)
    seconds = time.time() - known.created if status == "started" and known.created else known.seconds
    return replace(known, status=status, step=step, key=key, value=value, seconds=seconds)


def newest(path: Path) -> dict[str, Any]:
    """The newest values of all keys in the last rows of a .jsonl; {} without any. Reads its end only."""
    found: dict[str, Any] = {}
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return found
    for line in lines[1:] if size > TAIL else lines:
        try:
            row = json.loads(line)
        except ValueError:  # empty, or being written
            continue
        if isinstance(row, dict):
            found |= row
    return found


def number(stage: str, results: dict[str, Any]) -> tuple[str, float | str | None]:
    """(key, value) of the number that matters for a stage."""
    if stage == "eval" and isinstance(results.get("benchmarks"), dict):
        measured = [one for one in results["benchmarks"].values() if one.get("n")]
        asked = sum(one["n"] for one in measured)
        results = {"accuracy": sum(one["n"] * one["accuracy"] for one in measured) / asked} if asked else {}
    if stage == "export" and isinstance(results.get("checks"), list):
        checks = results["checks"]
        return "checks", f"{sum(bool(check.get('ok')) for check in checks)}/{len(checks)}"
    for key in KEYS.get(stage, ()):
        if isinstance(results.get(key), int | float):
            return key, results[key]
    return "", None


def told(key: str, value: float | str | None) -> str:
    """A number as a person reads it: 0.5 -> "50.0 %" for shares, "0.2206" for losses."""
    if value is None or isinstance(value, str):
        return value or ""
    if key in SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def total_steps(stage: str, config: dict[str, Any], results: dict[str, Any]) -> int | None:
    """How many steps a training run has in all, as the stages count them; None while that is not known."""
    own = config.get(stage) or {}
    if stage == "grpo" or own.get("steps"):
        return own.get("steps")
    if stage == "sft" and results.get("rows"):
        rows = max(1, round(own.get("epochs", 1) * results["rows"]))
        return -(-rows // (own.get("batch_size", 1) * own.get("accumulation", 1)))
    return None


def data_of(stage: str, config: dict[str, Any]) -> str:
    """What a run read, in few words."""
    if stage == "export":
        return ""
    if stage == "eval":
        own = config.get("eval") or {}
        names = [str(one.get("name")) for one in own.get("benchmarks") or []] or [own.get("suite") or ""]
    else:
        sources = (config.get("grpo") or {}).get("data") if stage == "grpo" else None
        names = [str(one.get("path")) for one in sources or (config.get("data") or {}).get("train") or []]
    shown = [short_name(name) for name in names if name]
    return ", ".join(shown[:2]) + (f" +{len(shown) - 2}" if len(shown) > 2 else "")


def short_name(path: str) -> str:
    """The last part of a path or hub id."""
    return path.rstrip("/").rpartition("/")[2]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


# ---- lineage


@dataclass(frozen=True, slots=True)
class Node:
    """A run or model in a graph: `column` counts from what it descends from, `row` from the top."""

    name: str
    stage: str
    status: str
    column: int
    row: int
    note: str = ""


def lineage(runs: list[Overview], of: str | None = None) -> tuple[list[Node], list[tuple[str, str]]]:
    """(nodes, edges from parent to child) of runs; of one run: its ancestors and descendants alone.

    A model that runs start from is a node of stage "model". Parents that are gone are nodes of status "gone". A circle,
    which only edited files have, is cut where it closes.
    """
    known = {one.name: one for one in runs}
    edges = [(_parent(parent), one.name) for one in runs for parent in one.parents]
    edges += [(f"model:{one.model}", one.name) for one in runs if not one.parents and one.model]
    if of is not None:
        edges = _around(edges, of)
    names = list(dict.fromkeys([end for edge in edges for end in edge])) or ([of] if of in known else [])
    parents: dict[str, list[str]] = {}
    for parent, child in edges:
        parents.setdefault(child, []).append(parent)
    depth: dict[str, int] = {}

    def depth_of(name: str, above: tuple[str, ...] = ()) -> int:
        if name not in depth and name not in above:
            depth[name] = 1 + max((depth_of(p, (*above, name)) for p in parents.get(name, ())), default=-1)
        return depth.get(name, 0)

    rows: dict[int, int] = {}
    nodes = []
    for name in sorted(names, key=lambda name: (known[name].created or 0) if name in known else 0):
        column = depth_of(name)
        row = rows[column] = rows.get(column, -1) + 1
        one = known.get(name)
        if one:
            note = told(one.key, one.value)
            nodes.append(Node(name, one.stage, one.status, column, row, note))
        else:
            model = name.startswith("model:")
            nodes.append(Node(name, "model" if model else "?", "" if model else "gone", column, row))
    return nodes, list(dict.fromkeys(edges))


def _parent(name: str) -> str:
    """A parent as an edge names it; one that is no name of a run is a model's or a run's path elsewhere."""
    return short_name(name) if name.startswith("/") else name


def _around(edges: list[tuple[str, str]], name: str) -> list[tuple[str, str]]:
    up, down = {name}, {name}
    for _ in range(len(edges)):
        more_up = up | {parent for parent, child in edges if child in up}
        more_down = down | {child for parent, child in edges if parent in down}
        if more_up == up and more_down == down:
            break
        up, down = more_up, more_down
    return [(p, c) for p, c in edges if (p in up and c in up) or (p in down and c in down)]


# ---- recipes


def brief(value: Any) -> str:
    """A value of a recipe as a short text."""
    if value is None:
        return "–"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else text[:157] + "..."


def config_of(root: Path, name: str) -> dict[str, Any]:
    """The resolved recipe of a run; {} where it cannot be read."""
    try:
        found = read_json(inside(run_path(root, name), "config.json"))
    except DanluError:
        return {}
    return found if isinstance(found, dict) else {}


def rows_of(root: Path, name: str, file: str) -> Any:
    """Rows of a .jsonl in a run, one by one."""
    return iter_jsonl(inside(run_path(root, name), file))
