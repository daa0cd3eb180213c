"""The verdict: the same questions before and after, paired, in one plain sentence.

A side is an evaluation run, its artifact (report.json or scores.jsonl), or a score file. Rows are paired by
(benchmark, id, index). One answer a question: McNemar's exact test; several: a sign-flip test by question. The
interval of the difference is a bootstrap over questions. better / worse needs p < 0.05 and an interval without 0; with
several benchmarks p is Holm-adjusted, so that ten benchmarks do not find a winner by chance. Tasks are described, with
their own adjusted p, and never decide.
Not covered: whether the questions leaked into training, and differences between runs of training with other seeds.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from danlu.errors import DanluError
from danlu.evaluate import stats
from danlu.evaluate.score import OUTCOMES, Row, score
from danlu.run import Run, read_json, read_jsonl

ALPHA = 0.05
NAMED = 5  # ids shown in an error or listed as unpaired
Key = tuple[str, str, int]  # benchmark, id, index


def compare(a: Run | Path | str, b: Run | Path | str, *, partial: bool = False, seed: int = 0) -> dict[str, Any]:
    """`b` (tuned) against `a` (base): the object of `danlu compare`.

    {"verdict", "sentence", "benchmarks": [{"name", "n", "base", "tuned", "difference", "ci", "p", "gained", "lost",
    "minimum_detectable", "p_adjusted", "verdict", "sentence", "format_rate", "stop_rate", "gained_ids", "lost_ids",
    "tasks"}], "unpaired": {"base", "tuned", "ids"}, "settings_differ"}. Differences are fractions; base, tuned and the
    rates of both are over the paired rows.

    DanluError when a side cannot be read, when nothing is shared, when the same id asks different questions, or when a
    row stands on one side only; `partial` counts such rows as unpaired instead.
    """
    base, tuned = _keyed(a), _keyed(b)
    shared = [key for key in base if key in tuned]
    only_base, only_tuned = [key for key in base if key not in tuned], [key for key in tuned if key not in base]
    _check_pairs(a, b, shared, only_base, only_tuned, partial)
    for key in shared:
        if any(
            base[key].get(f, tuned[key].get(f)) != tuned[key].get(f, base[key].get(f)) for f in ("question", "target")
        ):
            hint = "the two sides were not asked the same; evaluate both on the same benchmarks"
            raise DanluError(f"{key[1]} of {key[0]} is another question in {_name(b)} than in {_name(a)}", hint)
    pairs = [(base[key], tuned[key]) for key in shared]
    benchmarks = _groups(pairs, "benchmark", seed)
    for entry in benchmarks:
        own = [pair for pair in pairs if pair[0]["benchmark"] == entry["name"]]
        entry["tasks"] = _groups([pair for pair in own if pair[0].get("task") is not None], "task", seed)
    verdict, sentence = _overall(benchmarks)
    ids = [f"{key[0]}/{key[1]}" for key in [*only_base, *only_tuned][:NAMED]]
    return {
        "verdict": verdict,
        "sentence": sentence,
        "benchmarks": benchmarks,
        "unpaired": {"base": len(only_base), "tuned": len(only_tuned), "ids": ids},
        "settings_differ": _settings_differ(a, b),
    }


# ---- reading a side


def _keyed(side: Run | Path | str) -> dict[Key, Row]:
    found: dict[Key, Row] = {}
    for row in _read(side):
        if row.get("outcome") not in OUTCOMES or row.get("id") is None:
            raise DanluError(f"{_name(side)} has a row without id and outcome", "score it first with: danlu score FILE")
        key = (str(row.get("benchmark") or "answers"), str(row["id"]), int(row.get("index") or 0))
        if key in found:
            raise DanluError(f"{_name(side)}: id {key[1]!r} occurs twice in {key[0]}", "make the ids unique")
        found[key] = {**row, "benchmark": key[0], "id": key[1]}
    if not found:
        raise DanluError(f"{_name(side)} holds no scored answers", "compare evaluation runs or score files")
    return found


def _read(side: Run | Path | str) -> list[Row]:
    path = _path(side)
    if path.is_dir():
        Run.open(path)  # refuses a directory that is no run
        samples = read_jsonl(path / "samples.jsonl")
        return samples or read_jsonl(path / "artifact" / "scores.jsonl")
    if not path.is_file():
        raise DanluError(f"{path} is neither a run nor a file", "list runs with: danlu ls")
    if path.suffix == ".json":
        value = read_json(path)
        if isinstance(value, dict) and isinstance(value.get("rows"), list):
            return value["rows"]
        return read_jsonl(path.with_name("scores.jsonl"))
    rows = read_jsonl(path)
    raw = rows and all("outcome" not in row and "output" in row for row in rows)
    return score(rows)["rows"] if raw else rows


def _path(side: Run | Path | str) -> Path:
    return side.path if isinstance(side, Run) else Path(side)


def _name(side: Run | Path | str) -> str:
    return str(_path(side))


def _settings(side: Run | Path | str) -> dict[str, Any]:
    path = _path(side)
    report = path / "artifact" / "report.json" if path.is_dir() else path if path.name == "report.json" else None
    return read_json(report).get("settings", {}) if report and report.is_file() else {}


def _settings_differ(a: Run | Path | str, b: Run | Path | str) -> list[str]:
    """ "key: base's -> tuned's" for each evaluation setting known on both sides and not equal."""
    base, tuned = _settings(a), _settings(b)
    return [f"{key}: {base[key]} -> {tuned[key]}" for key in base if key in tuned and base[key] != tuned[key]]


def _check_pairs(
    a: Run | Path | str,
    b: Run | Path | str,
    shared: list[Key],
    only_base: list[Key],
    only_tuned: list[Key],
    partial: bool,
) -> None:
    if not shared:
        hint = "evaluate both on the same benchmarks"
        raise DanluError(f"{_name(a)} and {_name(b)} have no question in common", hint)
    if partial or not (only_base or only_tuned):
        return
    named = ", ".join(f"{key[0]}/{key[1]}" for key in [*only_base, *only_tuned][:NAMED])
    raise DanluError(
        f"{len(only_base)} answers are only in {_name(a)} and {len(only_tuned)} only in {_name(b)}: {named}",
        "evaluate both on the same benchmarks, or compare what they share with --partial",
    )


# ---- figures


def _groups(pairs: list[tuple[Row, Row]], field: str, seed: int) -> list[dict[str, Any]]:
    """Figures of each group of pairs, in order of appearance, p adjusted for the number of groups."""
    names = list(dict.fromkeys(base[field] for base, _ in pairs))
    entries = [{"name": name, **paired([p for p in pairs if p[0][field] == name], seed=seed)} for name in names]
    for entry, p in zip(entries, stats.holm([entry["p"] for entry in entries]), strict=True):
        entry["p_adjusted"] = p
        entry["verdict"], entry["sentence"] = decide(entry)
    return entries


def paired(pairs: list[tuple[Row, Row]], *, seed: int = 0) -> dict[str, Any]:
    """Figures of paired rows (base, tuned): n questions, accuracies, difference, interval, p, gained and lost ids."""
    questions: dict[str, list[tuple[bool, bool]]] = {}
    for base, tuned in pairs:
        questions.setdefault(base["id"], []).append((base["outcome"] == "right", tuned["outcome"] == "right"))
    means = np.array([np.mean(answers, axis=0) for answers in questions.values()])
    differences = means[:, 1] - means[:, 0]
    gained = [name for name, d in zip(questions, differences, strict=True) if d > 0]
    lost = [name for name, d in zip(questions, differences, strict=True) if d < 0]
    single = len(pairs) == len(questions)
    n, square = len(questions), float(np.mean(differences**2))
    return {
        "n": n,
        "base": float(means[:, 0].mean()),
        "tuned": float(means[:, 1].mean()),
        "difference": float(differences.mean()),
        "ci": list(stats.paired_interval(means[:, 0], means[:, 1], seed=seed)),
        "p": stats.mcnemar(len(gained), len(lost)) if single else stats.sign_flip(differences, seed=seed),
        "gained": len(gained),
        "lost": len(lost),
        "minimum_detectable": stats.minimum_detectable(n, square),
        "more_questions": stats.more_questions(n, float(differences.mean()), square),
        "format_rate": _rates(pairs, lambda row: row.get("well_formed")),
        "stop_rate": _rates(pairs, lambda row: row["finish"] == "stop" if "finish" in row else None),
        "gained_ids": gained,
        "lost_ids": lost,
    }


def _rates(pairs: list[tuple[Row, Row]], value: Any) -> dict[str, float | None]:
    def rate(rows: Iterable[Row]) -> float | None:
        known = [value(row) for row in rows]
        return None if None in known else sum(map(bool, known)) / len(known)

    return {"base": rate(base for base, _ in pairs), "tuned": rate(tuned for _, tuned in pairs)}


# ---- words


def decide(entry: dict[str, Any]) -> tuple[str, str]:
    """(verdict, sentence) of one comparison with `difference`, `ci`, `p`, `n` (and `p_adjusted`, if several)."""
    p, (low, high) = entry.get("p_adjusted", entry["p"]), entry["ci"]
    figures = (
        f"{points(entry['difference'])} points, 95 % CI {points(low)}..{points(high)}, {p_text(p)}, n = {entry['n']:,}"
    )
    if p < ALPHA and (low > 0 or high < 0):
        verdict = "better" if entry["difference"] > 0 else "worse"
        return verdict, f"{verdict}: {figures}"
    more = entry["more_questions"]
    if more is not None and more <= 1_000_000:
        wish = f"about {more:,} more questions would tell"
    else:
        wish = f"{entry['n']:,} questions show differences from {100 * entry['minimum_detectable']:.1f} points on"
    return "cannot tell", f"cannot tell yet: {figures}; {wish}"


def _overall(benchmarks: list[dict[str, Any]]) -> tuple[str, str]:
    if len(benchmarks) == 1:
        return benchmarks[0]["verdict"], benchmarks[0]["sentence"]
    found = {entry["verdict"] for entry in benchmarks}
    decided = found - {"cannot tell"}
    verdict = "mixed" if len(decided) == 2 else decided.pop() if decided else "cannot tell"
    parts = []
    for word in ("better", "worse", "cannot tell"):
        own = [f"{e['name']} ({points(e['difference'])} points)" for e in benchmarks if e["verdict"] == word]
        parts += [f"{word} on {' and '.join(own)}"] if own else []
    opening = "cannot tell yet" if verdict == "cannot tell" else verdict
    return verdict, f"{opening}: {', '.join(parts)}"


def points(fraction: float) -> str:
    """A difference in percentage points with its sign; 0 has a plus."""
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"


def p_text(p: float) -> str:
    """ "p < 0.001", or p in two significant figures."""
    return "p < 0.001" if p < 0.001 else f"p = {float(f'{p:.2g}'):.10g}"
