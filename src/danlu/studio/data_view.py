"""What the page Data shows, without NiceGUI: what can be looked at, findings as cards, lengths with a line to move.

The check and the rows are those of `danlu data check` and `danlu data view`; nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from danlu.data.files import SUFFIXES
from danlu.data.page import ADVICE, MOST_TEXT, by_level, percent, standing, visible
from danlu.errors import DanluError
from danlu.recipe import load, shipped
from danlu.run import Run, list_runs
from danlu.studio import jobs
from danlu.studio.place import Place
from danlu.studio.safety import run_path

HAVE_DATA = ("data", "sft", "grpo")  # stages whose recipes have training rows
ROWS = 8  # on a page
OF_GRPO = "GRPO prompts: "  # what the check puts before what it says of them
COUNTS = {"error": ("{n} error", "{n} errors"), "warning": ("{n} warning", "{n} warnings")}  # one, several
Say = Callable[..., str]  # a text of the studio, and what fills its places -> in the language of the page


@dataclass(frozen=True, slots=True)
class Subject:
    """Rows that can be looked at. `kind`: run, recipe (a file named by the user, or shipped) or file (of data)."""

    key: str
    kind: str
    name: str
    path: Path | None = None

    @property
    def needs_model(self) -> bool:
        return self.kind == "file"


def subjects(place: Place) -> list[Subject]:
    """Runs with data (newest first), then what the user named, then the shipped recipes."""
    runs = [run for run in list_runs(place.root) if _stage(run) in HAVE_DATA]
    found = [Subject(f"run:{run.name}", "run", run.name, run.path) for run in reversed(runs)]
    for path in place.named:
        if path.suffix in (".yaml", ".yml"):
            found.append(Subject(f"recipe:{path}", "recipe", path.name, path))
        elif path.suffix.lower() in SUFFIXES or path.is_dir():
            found.append(Subject(f"file:{path}", "file", path.name, path))
    return found + [Subject(f"recipe:{name}", "recipe", name) for name in shipped()]


def _stage(run: Run) -> str:
    try:
        return str(run.info().get("stage"))
    except DanluError:
        return ""


def find(place: Place, key: str) -> Subject:
    """The subject with this key; DanluError for one that is not among `subjects`, whatever it names."""
    for subject in subjects(place):
        if subject.key == key:
            return subject
    raise DanluError("these rows are not here any more", "choose others")


def arguments(place: Place, subject: Subject, model: str = "") -> list[str]:
    """What `danlu data check` and `view` are told; the recipe of a run is written out, resolved, for them.

    DanluError where it names files that the studio was not told to read.
    """
    if subject.kind == "file":
        if not model or model.startswith("-"):
            raise DanluError("rows need a model: its tokenizer and template decide", "name one, for example tiny")
        jobs.refuse_unnamed(place, model)
        return ["--data", str(subject.path), "--model", model]
    if subject.kind == "recipe":
        found = str(subject.path or subject.name)
        jobs.refuse_unnamed(place, load(found).resolved())
        return [found]
    run = Run.open(run_path(place.root, subject.name))
    jobs.refuse_unnamed(place, run.config())
    file = place.own / "recipes" / f"{run.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(run.config(), allow_unicode=True, sort_keys=False), encoding="utf-8")
    return [str(file)]


def stamp(subject: Subject, arguments_: Sequence[str]) -> list[Any]:
    """What an answer about the subject depends on, as far as files tell: their times and sizes."""
    found: list[Any] = [subject.kind, subject.name, *arguments_[1:]]
    path = subject.path / "config.json" if subject.kind == "run" and subject.path else subject.path
    if path is not None and path.is_file():
        stat = path.stat()
        found += [stat.st_mtime_ns, stat.st_size]
    return found


# ---- the check


@dataclass(frozen=True, slots=True)
class Card:
    """One finding. `count` and `share` are texts ("12", "3.1 %"; "" where there is no whole)."""

    level: str
    code: str
    count: str
    share: str
    what: str
    do: str
    examples: tuple[str, ...]


def sentence(report: Mapping[str, Any], say: Say) -> str:
    """ "2 errors, 1 warning: mend the data before you train." """
    levels = [finding["level"] for finding in report["findings"]]
    counts = [say(COUNTS[name][levels.count(name) != 1], n=levels.count(name)) for name in COUNTS]
    return f"{say(', ').join(counts)}{say(': ')}{say(ADVICE[standing(report)])}"


def _said(finding: Mapping[str, Any], part: str, say: Say) -> str:
    """A text of a finding; as it is where an older check told nothing else."""
    text = finding.get("texts", {}).get(part)
    if text is None:
        return visible(finding[part])
    before, bare = (say(OF_GRPO), text.removeprefix(OF_GRPO)) if text.startswith(OF_GRPO) else ("", text)
    return before + say(bare, **{name: visible(value) for name, value in finding["values"].items()})


def cards(report: Mapping[str, Any], say: Say) -> list[Card]:
    """The findings, worst first."""
    return [
        Card(
            finding["level"],
            finding["code"],
            f"{finding['count']:,}",
            percent(finding["count"] / finding["of"]) if finding["of"] else "",
            _said(finding, "what", say),
            _said(finding, "do", say),
            tuple(visible(str(example))[:MOST_TEXT] for example in finding["examples"]),
        )
        for finding in by_level(report["findings"])
    ]


@dataclass(frozen=True, slots=True)
class Bar:
    """Rows with `low` to `high` tokens; `height` in per cent of the highest bar."""

    low: int
    high: int
    count: int
    height: float


def bars(lengths: Mapping[str, Any]) -> list[Bar]:
    """The histogram; a bin with any rows is seen."""
    edges, counts = lengths["histogram"]["edges"], lengths["histogram"]["counts"]
    most = max(counts, default=0) or 1
    return [
        Bar(low, high, count, max(1.5, 100 * count / most) if count else 0.0)
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]


@dataclass(frozen=True, slots=True)
class Cut:
    """What `max_length` would do: shares of rows that are longer, and that lose their closing tag, answer, end."""

    max_length: int
    left: float  # of the line, in per cent of the histogram's width
    rows: float
    close: float
    answer: float
    end: float


def cuts(lengths: Mapping[str, Any]) -> list[Cut]:
    """Every place where the line of max_length can be put, from left to right."""
    told = lengths["cuts"]
    last = max(len(told["max_length"]) - 1, 1)
    columns = (told[name] for name in ("max_length", "rows", "close", "answer", "end"))
    return [Cut(row[0], 100 * at / last, *row[1:]) for at, row in enumerate(zip(*columns, strict=True))]


def nearest(places: Sequence[Cut], max_length: int) -> int:
    """The place whose max_length is the closest to a given one."""
    return min(range(len(places)), key=lambda at: abs(places[at].max_length - max_length))


# ---- rows


@dataclass(frozen=True, slots=True)
class Shown:
    """A row as the model sees it: (kind, text) pieces, and tokens by kind."""

    number: int
    id: str
    tokens: int
    counts: dict[str, int]
    pieces: tuple[tuple[str, str], ...]


def rows(answer: Mapping[str, Any]) -> list[Shown]:
    """The rows of `danlu data view --json`, what acts instead of being seen written out."""
    found = []
    for row in answer["rows"]:
        counts: dict[str, int] = {}
        for piece in row["pieces"]:
            counts[piece["kind"]] = counts.get(piece["kind"], 0) + piece["tokens"]
        pieces = tuple((piece["kind"], visible(piece["text"])) for piece in row["pieces"] if piece["text"])
        found.append(Shown(row["row"], visible(str(row["id"])), row["tokens"], counts, pieces))
    return found
