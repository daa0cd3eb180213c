"""Benchmarks by name: from what a recipe says to full entries (`resolve`), and from an entry to its rows (`questions`).

A name is a benchmark of the domain or a suite of them. An entry that comes out is complete by itself and is what a run
records: `path` may hold one * in its last part (several files, each a subject), `subset` may name several with commas.
Offline, a folder with the field's own files (`local`, or $DANLU_BENCH) is looked through before any hub.

Departures: several subsets are one benchmark, whose `limit` is a seeded sample of all their usable rows. A row that
only a rule or a judge can score (`judged`: a rule, rubrics, a request to refuse) is kept here without a gold, though
anywhere else that needs a target, GRPO for one, it is a bad row: a made-up gold would be verified like a real one,
without a sound. Where the benchmark has a rule for such rows they get it, and as target "rule", as probes have.
Not covered: which of its files holds the newest version of a benchmark; the first of `files` that is there counts.
"""

from __future__ import annotations

import difflib
import os
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from danlu.data import files
from danlu.data.digests import rows_digest
from danlu.data.language import language
from danlu.data.sources import Loaded, Reject, load, unique_ids
from danlu.domains import BenchmarkSpec, Domain
from danlu.errors import DanluError
from danlu.recipe import Benchmark, Source
from danlu.records import Sample

VARIABLE = "DANLU_BENCH"


def resolve(wanted: Iterable[str | Benchmark], domain: Domain, local: Path | None = None) -> list[Benchmark]:
    """Every benchmark that `wanted` names, in order and once, with its path; an entry with a path stays as it is.

    What an entry says itself (limit, split, subset, seed ...) goes before the domain's; a number on a suite's name
    holds for each of its benchmarks. Named twice: an entry by its own name goes before one of a suite.
    DanluError for an unknown name, and for a `local` that is no folder.
    """
    folder = _folder(local)
    found: dict[str, tuple[bool, Benchmark]] = {}
    for item in wanted:
        entry = Benchmark(name=item) if isinstance(item, str) else item
        suite = domain.suites.get(entry.name) if entry.path is None else None
        for name, limit in suite or ((entry.name, None),):
            asked = entry.model_copy(update={"name": name, "limit": entry.limit or limit})
            if name not in found or (suite is None and not found[name][0]):
                found[name] = suite is None, _complete(asked, domain, folder)
            elif suite is None:
                raise DanluError(f"two benchmarks are called {name!r}", "give each entry of eval.benchmarks a name")
    return [entry for _, entry in found.values()]


def _folder(local: Path | None) -> Path | None:
    """The folder to look through, or None."""
    named = local or (Path(os.environ[VARIABLE]).expanduser() if os.environ.get(VARIABLE) else None)
    if named is not None and not named.is_dir():
        raise DanluError(f"{named} is no folder", f"name a folder with benchmark files, or unset {VARIABLE}")
    return named


def _complete(entry: Benchmark, domain: Domain, folder: Path | None) -> Benchmark:
    if entry.path is not None:
        return entry
    spec = domain.benchmarks.get(entry.name)
    if spec is None:
        raise _unknown(entry.name, domain)
    plain = Benchmark(name=entry.name)
    own = {key: value for key, value in entry if value != getattr(plain, key) and key not in ("name", "limit")}
    subsets = _listed(entry.subset) if "subset" in own else list(spec.subsets)
    parts = ", ".join(spec.part.format(subset=name) for name in subsets)
    place: dict[str, Any] = {"path": spec.path, "subset": parts or None, "revision": spec.revision}
    columns = {**spec.columns, **({"subject": spec.subject} if spec.subject else {})}
    at = _local(spec, subsets, folder) if folder else None
    if at:
        path, there = at
        place = {"path": path, "subset": ", ".join(there) or None, "revision": None}
        if spec.subject and not _has_column(path, spec.subject):
            columns.pop("subject")
        own.pop("revision", None)
    own.pop("subset", None)  # is in place already
    known = {**place, "split": spec.split, "columns": columns, "limit": entry.limit or spec.limit}
    return entry.model_copy(update={**known, **own})


def _unknown(name: str, domain: Domain) -> DanluError:
    near = difflib.get_close_matches(name, [*domain.benchmarks, *domain.suites], n=1, cutoff=0.5)
    known = f"suites: {', '.join(domain.suites) or 'none'}; benchmarks: {', '.join(domain.benchmarks) or 'none'}"
    hint = f"did you mean {near[0]}? {known}" if near else known
    return DanluError(f"no benchmark or suite {name!r} in the domain {domain.name}", f"{hint}; or give it a path")


def _local(spec: BenchmarkSpec, subsets: list[str], folder: Path) -> tuple[str, list[str]] | None:
    """(path, with * where there are several files; the subsets that are there) of the first of `files` that exists."""
    for pattern in spec.files:
        if "{subset}" in pattern:
            there = [name for name in subsets if (folder / pattern.format(subset=name)).is_file()]
            if there:
                return str(folder / pattern.format(subset="*")), there
        elif "*" in pattern:
            if _starred(folder / pattern):
                return str(folder / pattern), []
        elif (folder / pattern).is_file():
            return str(folder / pattern), []
    return None


def _has_column(path: str, column: str) -> bool:
    file = next(iter(_starred(Path(path)).values())) if "*" in path else Path(path)
    return any(column in raw.row for raw in files.read(file) if raw.row)


def _starred(path: Path) -> dict[str, Path]:
    """What the one * in the last part of `path` stands for -> file, in order."""
    before, _, after = path.name.partition("*")
    names = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    fitting = [n for n in names if n.startswith(before) and n.endswith(after) and len(n) >= len(before) + len(after)]
    return {name[len(before) : len(name) - len(after)]: path.with_name(name) for name in fitting}


def _listed(names: str | None) -> list[str]:
    return [name.strip() for name in (names or "").split(",") if name.strip()]


# ---- rows


def sources(entry: Benchmark) -> list[tuple[str, Source]]:
    """(subject, source) of every part of a benchmark; one part has the subject "". DanluError where files are missing.

    `limit` is on the source of a benchmark of one part only.
    """
    if entry.path is None:
        raise DanluError(f"benchmark {entry.name} has no path", "resolve it first, or write its path")
    said = {key: getattr(entry, key) for key in ("split", "revision", "seed", "columns")}
    names = _listed(entry.subset)
    if "*" in Path(entry.path).name:
        there = _starred(Path(entry.path).expanduser())
        missing = [name for name in names if name not in there]
        if missing or not there:
            lacking = f"{entry.path} has no file for {', '.join(missing)}" if missing else f"no file is {entry.path}"
            raise DanluError(lacking, f"there are: {', '.join(there)}" if there else "one * stands for several files")
        return [(name, Source(path=str(there[name]), **said)) for name in names or there]
    if len(names) > 1:
        return [(name.partition("/")[0], Source(path=entry.path, subset=name, **said)) for name in names]
    return [("", Source(path=entry.path, subset=entry.subset, limit=entry.limit, **said))]


def questions(entry: Benchmark, domain: Domain | None = None) -> Loaded:
    """The rows of a complete entry, each with its language, and its subject where known; rows without gold rejected.

    Rows of several parts have their subject before their id. DanluError for a source that cannot be read.
    """
    spec = domain.benchmarks.get(entry.name) if domain else None
    only = spec.only if spec else ()
    parts = sources(entry)
    whole = len(parts) == 1 and not only
    rows: list[Sample] = []
    rejected: list[Reject] = []
    for subject, source in parts:
        loaded = _scorable(source if whole else source.model_copy(update={"limit": None}), domain)
        rows += [_marked(row, subject, spec) for row in loaded.rows]
        rejected += loaded.rejected
    if any("subject" in row.meta for row in rows):
        rows = [row for row in rows if not only or row.meta.get("subject") in only]
    if not whole and entry.limit is not None and entry.limit < len(rows):
        rows = [rows[i] for i in sorted(random.Random(entry.seed).sample(range(len(rows)), entry.limit))]
    rows = unique_ids(rows)
    return Loaded(rows, rejected, rows_digest(rows), str(entry.path), len(rows) + len(rejected))


def judged(row: Sample) -> bool:
    """Whether a row has no gold and can be scored all the same: by its rule, against rubrics, or as a refusal."""
    kinds = ("rule", "rubrics")
    return not row.target and (any(row.meta.get(kind) for kind in kinds) or row.meta.get("task") == "refusal")


def _scorable(source: Source, domain: Domain | None) -> Loaded:
    loaded = load(source, domain, on_bad_row="skip")
    if all(row.target for row in loaded.rows):
        return loaded
    if not any(judged(row) for row in loaded.rows):
        return load(source, domain, on_bad_row="skip", needs="target")  # with the line of each
    bad = [row for row in loaded.rows if not row.target and not judged(row)]
    named = [Reject(source.path, 0, f"no gold target (row {row.id})", row.question[:200]) for row in bad]
    rows = [row for row in loaded.rows if row.target or judged(row)]
    return replace(loaded, rows=rows, rejected=[*loaded.rejected, *named])


def _marked(row: Sample, subject: str, spec: BenchmarkSpec | None) -> Sample:
    meta = {"subject": subject, **row.meta} if subject else dict(row.meta)
    if "language" not in meta:
        known = spec.language if spec else "both"
        meta["language"] = language(row.question) if known == "both" else known
    target = row.target
    if spec and spec.rule and judged(row):
        target, meta["rule"] = "rule", meta.get("rule", spec.rule)
    return replace(row, id=f"{subject}/{row.id}" if subject else row.id, target=target, meta=meta)
