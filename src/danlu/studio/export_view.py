"""What the page Export shows, without NiceGUI: files with size, speed and accuracy, checks, Modelfile, what to type.

All of it is what the export left in its run directory: danlu.json, verify.json, and the quants-SUITE.json of
`danlu verify --suite`. What an older export lacks is left empty.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from danlu.data.page import visible
from danlu.errors import DanluError
from danlu.export.ollama import commands
from danlu.export.ollama_api import Ollama
from danlu.recipe import Export
from danlu.run import Run, list_runs, read_json
from danlu.run_facts import size
from danlu.studio.safety import inside, run_path

MOST_TEXT = 60_000  # characters of a Modelfile
WAIT = 0.6  # seconds for an answer of Ollama


@dataclass(frozen=True, slots=True)
class File:
    """A GGUF of an export; texts, empty where it was not measured."""

    name: str
    quant: str
    size: str
    speed: str = ""
    accuracy: str = ""
    interval: str = ""
    change: str = ""
    verdict: str = ""


# what `danlu verify` and `danlu merge` look at, by the names in their reports
CHECKS: tuple[str, ...] = (
    *("merge", "adapter", "file", "metadata", "end tokens", "tensors", "token ids", "prompts", "prompt ids"),
    *("modelfile prompts", "log-probs", "KL", "greedy agreement", "stops", "reasoning"),
)


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    file: str
    ok: bool
    value: str
    limit: str


@dataclass(frozen=True, slots=True)
class Exported:
    """An export run. `suite`: what was asked of the files, "" where nothing was; `modelfile` "" where there is none."""

    name: str
    status: str
    source: str
    base: str
    error: str
    files: tuple[File, ...]
    suite: str
    questions: int
    checks: tuple[Check, ...]
    modelfile: str
    commands: tuple[str, ...]
    rejected: bool


def exports(root: Path) -> list[str]:
    """Names of the export runs, newest first."""
    return [run.name for run in reversed(list_runs(root)) if _stage(run) == "export"]


def sources(root: Path) -> list[str]:
    """Names of the runs that can be exported, newest first."""
    found = []
    for run in reversed(list_runs(root)):
        with contextlib.suppress(DanluError):
            info = run.info()
            if info.get("stage") in ("sft", "grpo") and info.get("status") == "done":
                found.append(run.name)
    return found


def _stage(run: Run) -> str:
    try:
        return str(run.info().get("stage"))
    except DanluError:
        return ""


def quants() -> list[str]:
    """The types that a recipe can ask for."""
    found: list[str] = []
    for argument in [Export.model_fields["quant"].annotation]:
        inner = get_args(argument)
        found += [str(name) for one in inner for name in (get_args(one) or [one])]
    return found


def exported(root: Path, name: str) -> Exported:
    """What an export left; DanluError for a name that is no run of this folder."""
    run = Run.open(run_path(root, name))
    info = run.info()
    rejected = not run.artifact.is_dir() and (run.path / "rejected").is_dir()
    folder = run.path / "rejected" if rejected else run.artifact
    made = _object(folder / "danlu.json")
    suite, measured = _measured(run.path)
    base = made.get("base") if isinstance(made.get("base"), Mapping) else {}
    model = str(run.config().get("name") or run.name)
    return Exported(
        name,
        run.state(),
        visible(", ".join(map(str, info.get("parents", []))) or str(run.config().get("model", {}).get("id", ""))),
        visible(str(base.get("id", ""))),  # type: ignore[union-attr]
        visible(str(info.get("error") or "")),
        tuple(_files(folder, made, measured)),
        suite,
        int(measured.get("n", 0)),
        tuple(map(_check, _object(folder / "verify.json").get("checks", []))),
        _modelfile(run.path, folder),
        tuple(commands(model, str(folder))) if made else (),
        rejected,
    )


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def _modelfile(root: Path, folder: Path) -> str:
    path = folder / "Modelfile"
    if not path.is_file():
        return ""
    return visible(inside(root, path).read_text(encoding="utf-8", errors="replace")[:MOST_TEXT])


def _measured(path: Path) -> tuple[str, dict[str, Any]]:
    """(name, object) of the newest quants-SUITE.json."""
    found = sorted(path.glob("quants-*.json"), key=lambda file: file.stat().st_mtime)
    return (found[-1].stem.removeprefix("quants-"), _object(found[-1])) if found else ("", {})


def _files(folder: Path, made: Mapping[str, Any], measured: Mapping[str, Any]) -> list[File]:
    listed = made.get("files") or ([{"gguf": made["gguf"], "quant": made.get("quant")}] if made.get("gguf") else [])
    sides = {str(side.get("name")): side for side in measured.get("sides", [])}
    found = []
    source = sides.get("source")
    if source:
        found.append(File("", "source", size(source["bytes"]), *_accuracy(source)))
    for one in listed:
        path = folder / Path(str(one["gguf"])).name
        bytes_ = path.stat().st_size if path.is_file() else one.get("bytes", 0)
        quant = str(one.get("quant") or "")
        found.append(File(visible(path.name), quant, size(bytes_), *_accuracy(sides.get(quant) or {})))
    adapter = folder / Path(str(made.get("adapter") or "")).name
    if made.get("adapter") and adapter.is_file():
        found.append(File(visible(adapter.name), "adapter", size(adapter.stat().st_size)))
    return found


def _accuracy(side: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """speed, accuracy, its interval, change against the source with its interval, verdict."""
    if not side:
        return "", "", "", "", ""
    speed = f"{side['tokens_per_second']:,.1f}" if side.get("tokens_per_second") else ""
    low, high = side.get("ci") or (None, None)
    interval = f"{100 * low:.1f} … {100 * high:.1f} %" if low is not None and high is not None else ""
    change = ""
    if side.get("difference") is not None:
        a, b = side["difference_ci"]
        change = f"{100 * side['difference']:+.1f} [{100 * a:+.1f}, {100 * b:+.1f}]"
    return speed, f"{100 * side['accuracy']:.1f} %", interval, change, str(side.get("verdict", ""))


def _check(check: Mapping[str, Any]) -> Check:
    return Check(
        visible(str(check.get("name"))),
        visible(str(check.get("file") or "")),
        bool(check.get("ok")),
        visible(_short(check.get("value"))),
        visible(_short(check.get("limit"))),
    )


def _short(value: Any) -> str:
    if value in ([], None):
        return "" if value is None else "none"
    if isinstance(value, float):
        return f"{value:.3g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:160]} …"


# ---- starting


def export_command(root: Path, source: str, types: list[str], name: str) -> list[str]:
    """`danlu export` of a run, in these types, as the run called `name`; the recipe is that of the run."""
    if source not in sources(root):
        raise DanluError(f"{source} cannot be exported", "choose a finished sft or grpo run")
    unknown = [one for one in types if one not in quants()]
    if unknown or not types:
        raise DanluError(
            "no type was chosen" if not types else f"no type {unknown[0]}", f"types: {', '.join(quants())}"
        )
    path = run_path(root, name)
    if path.exists():
        raise DanluError(f"{name} is already used", "choose another name")
    recipe = inside(root, Path(source) / "config.json")  # JSON is YAML: the recipe as it was resolved
    wanted = json.dumps(types if len(types) > 1 else types[0])
    start = ["--from", source, "--name", name, "--set", f"export.quant={wanted}"]
    return ["export", str(recipe), *start, "--display", "plain"]


def verify_command(root: Path, name: str, suite: str) -> list[str]:
    """`danlu verify` with a suite: what each file answers, its size and speed."""
    Run.open(run_path(root, name))
    return ["verify", str(run_path(root, name)), "--suite", suite, "--display", "plain"]


def ollama_command(root: Path, name: str) -> list[str]:
    """`danlu export --to ollama` of an export that is there."""
    Run.open(run_path(root, name))
    return ["export", str(run_path(root, name)), "--to", "ollama", "--display", "plain"]


def free_name(root: Path, source: str) -> str:
    """SOURCE-export, or the next that is free."""
    bare = source.removesuffix("-grpo").removesuffix("-sft")
    names = (f"{bare}-export{'' if n == 1 else f'-{n}'}" for n in range(1, 1000))
    return next(name for name in names if not (root / name).exists())


# ---- Ollama


def made(log: str) -> str:
    """The model that the last command of a log made in Ollama, "" where it made none."""
    found = re.search(r"^made (\S+) in ", log.rpartition("$ danlu")[2], re.MULTILINE)
    return found[1] if found else ""


def ollama() -> str:
    """Version of the Ollama that answers here, "" where none does. It may take WAIT seconds."""
    try:
        return Ollama().version(WAIT) or ""
    except DanluError:
        return ""
