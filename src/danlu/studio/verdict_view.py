"""What the page Verdict shows, without NiceGUI: which evaluations can be compared, the forest plot, questions to read.

The verdict is that of `danlu compare`, worked out anew from the answers of both sides and kept while neither changes;
nothing is written into a run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from danlu.data.page import visible
from danlu.errors import DanluError
from danlu.evaluate.compare_page import side_note, split_options
from danlu.evaluate.report import side
from danlu.evaluate.score import OUTCOMES
from danlu.evaluate.verdict import as_published, compare, keyed, p_text, points
from danlu.run import Run, list_runs, read_json, read_jsonl
from danlu.studio.safety import run_path

Kind = Literal["lost", "gained", "wrong"]
KINDS: tuple[Kind, ...] = ("lost", "gained", "wrong")
SIDES = ("base", "tuned")
PAGE = 20  # questions at once
MOST_TEXT = 6000  # characters of an answer
MOST_CLAIM = 24  # characters of what was read out of it


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A finished evaluation that can stand on either side."""

    name: str
    created: float
    benchmarks: tuple[str, ...]
    parents: tuple[str, ...]
    compared: bool  # whether a comparison is stored with it


def evaluations(root: Path) -> list[Evaluation]:
    """The finished evaluations, newest first."""
    found = []
    for run in list_runs(root):
        try:
            info = run.info()
            if info.get("stage") != "eval" or info.get("status") != "done":
                continue
            results = info.get("results", {})
        except DanluError:
            continue
        names = tuple(results.get("benchmarks", {}))
        stored = (run.path / "compare.json").is_file()
        created, parents = float(info.get("created") or 0), tuple(map(str, info.get("parents", [])))
        found.append(Evaluation(run.name, created, names, parents, stored))
    return found[::-1]


def pair(known: Sequence[Evaluation], base: str = "", tuned: str = "") -> tuple[str, str] | None:
    """(base, tuned): as asked where they are there, else the newest comparison and what it is held against.

    None where there are no two evaluations that share a benchmark.
    """
    names = {one.name: one for one in known}
    after = names.get(tuned) or next((one for one in known if one.compared), None)
    for candidate in [after] if after else known:
        before = names.get(base) if base != candidate.name else None
        others = [one for one in known if one is not candidate and set(one.benchmarks) & set(candidate.benchmarks)]
        if before is None:
            before = max(others, key=lambda one: (_alike(one.name, candidate.name), -one.created), default=None)
        if before is not None:
            return before.name, candidate.name
    return None


def _alike(a: str, b: str) -> int:
    """Length of the common beginning: the evaluations of one `danlu run` share its name."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# ---- the comparison


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison (`verdict.compare`) and the questions that both sides answered, by (benchmark, id)."""

    found: dict[str, Any]
    pairs: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]]


def compared(root: Path, base: str, tuned: str) -> Compared:
    """Both sides against each other, over the questions they share. DanluError where that cannot be said.

    It takes a moment for many questions: not for the event loop.
    """
    paths = [Run.open(run_path(root, name)).path for name in (base, tuned)]
    return _compared(*[(str(path), _stamp(path)) for path in paths])


def _stamp(path: Path) -> tuple[int, int]:
    file = next((path / name for name in ("samples.jsonl", "artifact/scores.jsonl") if (path / name).is_file()), None)
    stat = (file or path / "run.json").stat()
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=4)
def _compared(base: tuple[str, tuple[int, int]], tuned: tuple[str, tuple[int, int]]) -> Compared:
    paths = [Path(base[0]), Path(tuned[0])]
    found = compare(paths[0], paths[1], partial=True)
    sides = [keyed(_rows(path), path.name) for path in paths]
    several: dict[tuple[str, str], list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for key, row in sides[0].items():
        if key in sides[1]:
            several.setdefault(key[:2], []).append((row, sides[1][key]))
    return Compared(
        found, {key: _telling(as_published(pairs)) for key, pairs in several.items() if as_published(pairs)}
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path / "samples.jsonl") or read_jsonl(path / "artifact" / "scores.jsonl")


def _telling(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of several answers to a question the first pair that differs."""
    return next((pair for pair in pairs if len({row["outcome"] == "right" for row in pair}) == 2), pairs[0])


def stored_gate(root: Path, tuned: str) -> str:
    """What the gate said of the tuned side, if it was ever asked."""
    file = run_path(root, tuned) / "compare.json"
    gate = read_json(file).get("gate") if file.is_file() else None
    return visible(str(gate["sentence"])) if gate else ""


def alone(found: Mapping[str, Any]) -> dict[str, str] | None:
    """What the sentence of a comparison on one benchmark says, as values; None where it rests on several, or leaks."""
    own = [entry for entry in found["benchmarks"] if entry.get("decides", True)]
    if len(own) != 1 or own[0].get("leaked") or not own[0]["n"] or own[0]["p_adjusted"] is None:
        return None
    entry = own[0]
    low, high = (points(end) for end in entry["ci"])
    told = {"points": points(entry["difference"]), "low": low, "high": high, "p": p_text(entry["p_adjusted"])}
    return {**told, "n": f"{entry['n']:,}"}


def warnings(found: Mapping[str, Any]) -> list[str]:
    """What makes the two sides other than alike."""
    told = [f"not asked alike: {difference}" for difference in found.get("settings_differ", [])]
    unpaired = found.get("unpaired") or {"base": 0, "tuned": 0}
    if unpaired["base"] or unpaired["tuned"]:
        told.append(f"left out: {unpaired['base']:,} questions only in base, {unpaired['tuned']:,} only in tuned")
    told += [
        entry["format_and_knowledge"]["sentence"] for entry in found["benchmarks"] if "format_and_knowledge" in entry
    ]
    return [visible(line) for line in told]


# ---- drawings


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the forest plot; places in per cent of its width."""

    name: str
    under: bool  # the same benchmark without leaked questions, or a control
    kind: str  # better, worse or ""
    left: float
    width: float
    point: float
    value: str
    interval: str
    n: int


def forest(benchmarks: Sequence[Mapping[str, Any]]) -> tuple[list[Line], list[tuple[float, str]]]:
    """(lines, ticks as (place, label)) of the differences with their intervals; zero is always inside."""
    rows: list[tuple[str, bool, Mapping[str, Any]]] = []
    for entry in sorted(benchmarks, key=lambda entry: not entry.get("decides", True)):
        rows.append((visible(str(entry["name"])), not entry.get("decides", True), entry))
        if entry.get("leaked") and entry["without_leaked"]["n"]:
            rows.append((f"without {entry['leaked']:,} leaked", True, entry["without_leaked"]))
    rows = [row for row in rows if row[2]["n"]]
    ends = [0.0, *(end for _, _, figures in rows for end in figures["ci"])]
    wide = max(max(ends) - min(ends), 0.02)
    step = next(step for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if wide / step <= 5)
    low, high = step * math.floor(min(ends) / step - 0.2), step * math.ceil(max(ends) / step + 0.2)

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    lines = [
        Line(
            name,
            under,
            figures["verdict"] if figures["verdict"] in ("better", "worse") else "",
            place(figures["ci"][0]),
            place(figures["ci"][1]) - place(figures["ci"][0]),
            place(figures["difference"]),
            points(figures["difference"]),
            f"{points(figures['ci'][0])} … {points(figures['ci'][1])}",
            figures["n"],
        )
        for name, under, figures in rows
    ]
    count = round((high - low) / step)
    ticks = [(place(low + i * step), _tick(low + i * step)) for i in range(count + 1)]
    return lines, ticks


def _tick(value: float) -> str:
    return "0" if abs(value) < 1e-9 else f"{100 * value:+.3g}"


def shares(entry: Mapping[str, Any], which: str) -> list[tuple[str, float]]:
    """(outcome, share) of the answers of one side, those that occur."""
    told = (entry.get("outcomes") or {}).get(which) or {}
    return [(name, told[name]) for name in OUTCOMES if told.get(name)]


def table(benchmarks: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """name, n, base, tuned, points, p, gained, lost, verdict: a row for each benchmark, as texts."""
    found = []
    for entry in benchmarks:
        if not entry["n"]:
            continue
        p = entry.get("p_adjusted")
        sides_ = [f"{100 * entry[name]:.1f} %" for name in SIDES]
        told = "not tested" if p is None else p_text(p).removeprefix("p ").removeprefix("= ")
        counts = [f"{entry[name]:,}" for name in ("gained", "lost")]
        name = visible(str(entry["name"]))
        found.append([name, f"{entry['n']:,}", *sides_, points(entry["difference"]), told, *counts, entry["verdict"]])
    return found


# ---- questions to read


@dataclass(frozen=True, slots=True)
class Answer:
    """One side's answer to a question."""

    outcome: str
    claim: str
    note: str
    reasoning: str
    answer: str


@dataclass(frozen=True, slots=True)
class Item:
    """A question that both sides answered. `options`: (letter, text, whether it is the gold one)."""

    id: str
    benchmark: str
    subject: str
    leaked: bool
    question: str
    after: str  # what follows the options in the question
    options: tuple[tuple[str, str, bool], ...]
    target: str
    base: Answer
    tuned: Answer


def kind_of(pair_: tuple[Mapping[str, Any], Mapping[str, Any]]) -> Kind | None:
    """Whether a question was lost, gained or wrong both times; None where it was right both times."""
    before, after = (row["outcome"] == "right" for row in pair_)
    return None if before and after else "lost" if before else "gained" if after else "wrong"


def subject_of(row: Mapping[str, Any]) -> str:
    return visible(str(row.get("subject") or row.get("task") or row.get("language") or ""))


@dataclass(frozen=True, slots=True)
class Choice:
    """Which questions are read."""

    kind: Kind = "lost"
    benchmark: str = ""
    subject: str = ""
    leaked: bool = False
    words: str = ""


def keys(of: Compared, choice: Choice) -> list[tuple[str, str]]:
    """The questions of a choice, in the order they were asked."""
    wanted = choice.words.casefold().strip()
    return [
        key
        for key, both in of.pairs.items()
        if kind_of(both) == choice.kind
        and choice.benchmark in ("", key[0])
        and choice.subject in ("", subject_of(_known(both)))
        and (not choice.leaked or _leaked(both))
        and (not wanted or wanted in f"{key[1]} {_known(both).get('question') or ''}".casefold())
    ]


def subjects(of: Compared, benchmark: str = "") -> list[str]:
    """Subjects (or tasks, or languages) that the questions have."""
    found = {subject_of(_known(both)) for key, both in of.pairs.items() if benchmark in ("", key[0])}
    return sorted(found - {""})


def counts(of: Compared) -> dict[Kind, int]:
    """How many questions there are of each kind."""
    found: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    for both in of.pairs.values():
        if kind := kind_of(both):
            found[kind] += 1
    return found


def any_leaked(of: Compared) -> bool:
    return any(map(_leaked, of.pairs.values()))


def item(of: Compared, key: tuple[str, str], say: Callable[..., str]) -> Item:
    """A question with both answers, as texts in which nothing acts. `say`: the language of what is said of them."""
    both = of.pairs[key]
    row = _known(both)
    told_options = row.get("options")
    options: dict[str, Any] = told_options if isinstance(told_options, dict) else {}
    question, after = split_options(str(row.get("question") or ""), options)
    gold = str(row.get("target") or "")
    letters = set(map(str, options))
    is_gold = [str(letter) in gold if set(gold) <= letters else str(letter) == gold for letter in options]
    told = tuple(
        (visible(str(letter)), visible(str(text)), right)
        for (letter, text), right in zip(options.items(), is_gold, strict=True)
    )
    return Item(
        visible(key[1]),
        visible(key[0]),
        subject_of(row),
        _leaked(both),
        visible(question),
        visible(after),
        told,
        visible(gold),
        _answer(both[0], say),
        _answer(both[1], say),
    )


def excerpt(one: Item, most: int = 90) -> str:
    text = re.sub(r"\s+", " ", one.question)
    return f"{text[:most]} …" if len(text) > most else text


def _known(both: tuple[Mapping[str, Any], Mapping[str, Any]]) -> Mapping[str, Any]:
    return {**both[0], **{key: value for key, value in both[1].items() if value is not None}}


def _leaked(both: tuple[Mapping[str, Any], Mapping[str, Any]]) -> bool:
    return any(bool(row.get("leaked")) for row in both)


def _answer(row: dict[str, Any], say: Callable[..., str]) -> Answer:
    said = row.get("extracted") if row.get("extracted") is not None else ""
    told = side("", row)
    return Answer(
        str(row["outcome"]),
        visible(f"{said}" if len(str(said)) <= MOST_CLAIM else f"{str(said)[:MOST_CLAIM]} …"),
        visible(side_note(row, say)),
        visible(str(told["reasoning"])[:MOST_TEXT]),
        visible(str(told["answer"])[:MOST_TEXT]),
    )
