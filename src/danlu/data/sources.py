"""Where rows come from: the domain's world or probes, ModelScope, a local file or folder, or a Hugging Face data set.

Remote data sets are downloaded as files and read by us (hubs.py); folders.py says which of the files.

Departure: `limit` takes a seeded random sample of the rows (in file order), not the first ones, since exam files are
sorted by subject; it is drawn before rows are checked, so rows read = kept + rejected holds always.
"""

from __future__ import annotations

import difflib
import gc
import itertools
import json
import random
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from danlu import domains, recipe
from danlu.data import files, hubs, schemas
from danlu.data.digests import rows_digest as rows_digest
from danlu.data.folders import in_folder, kind_of, near_files
from danlu.data.raw import Raw
from danlu.errors import DanluError
from danlu.records import Sample

OnBadRow = Literal["error", "skip"]
Needs = Literal["answer", "target"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EXCERPT = 200  # characters of a rejected row that are kept


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was not taken: where it stands, why, and its beginning."""

    origin: str
    line: int
    reason: str
    row_excerpt: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rows of one source; `len(rows) + len(rejected) == read` always. `digest` is of the rows kept."""

    rows: list[Sample]
    rejected: list[Reject]
    digest: str
    origin: str
    read: int


def load(
    source: recipe.Source,
    domain: domains.Domain | None = None,
    *,
    on_bad_row: OnBadRow = "error",
    needs: Needs | None = None,
) -> Loaded:
    """Rows of `source` as Samples with unique ids; a row without what the stage `needs` is a bad row.

    DanluError when the source cannot be found or read, when no schema fits, and (with `on_bad_row` "error") for the
    first bad row, naming file and line and the number of others.
    """
    path = source.path
    if domain and path in domain.sources:
        path = domain.sources[path]
    if path.startswith("world:"):
        rows, rejected, read = _world(path, source, domain, needs)
    elif path.startswith("probes:"):
        rows, rejected, read = _probes(path, source, domain, needs)
    else:
        places = _locate(path, source)
        with _no_cycles():
            found = [(origin, files.read(file)) for origin, file in places]
            rows, rejected, read = _mapped(found, source, needs)
    if rejected and on_bad_row == "error":
        first = rejected[0]
        more = f" ({len(rejected) - 1} more bad rows)" if len(rejected) > 1 else ""
        raise DanluError(
            f"{first.origin} line {first.line}: {first.reason}{more}",
            "mend the row, or leave such rows out with data.on_bad_row=skip (they are written to rejected.jsonl)",
        )
    rows = unique_ids(rows)
    return Loaded(rows, rejected, rows_digest(rows), path, read)


@contextmanager
def _no_cycles() -> Iterator[None]:
    """Python's search for reference cycles stands still: rows have none, and it would walk all of them many times."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def unique_ids(rows: list[Sample]) -> list[Sample]:
    """The rows, with "#2", "#3" ... added to ids that came before."""
    seen: set[str] = set()
    last: dict[str, int] = {}
    out = []
    for row in rows:
        name = row.id
        while name in seen:
            last[row.id] = last.get(row.id, 1) + 1
            name = f"{row.id}#{last[row.id]}"
        seen.add(name)
        out.append(row if name == row.id else replace(row, id=name))
    return out


def _mapped(
    found: list[tuple[str, list[Raw]]], source: recipe.Source, needs: Needs | None
) -> tuple[list[Sample], list[Reject], int]:
    every = [(origin, raw) for origin, raws in found for raw in raws]
    chosen = every
    if source.limit is not None and source.limit < len(every):
        picked = sorted(random.Random(source.seed).sample(range(len(every)), source.limit))
        chosen = [every[index] for index in picked]
    mappings = {}
    for origin, raws in found:
        readable = [raw.row for raw in raws if raw.row]
        if not readable:
            first = raws[0]
            raise DanluError(
                f"{origin} line {first.line}: {first.reason or 'empty row'} (no row of the file can be read)",
                "is it the right file, and whole? a row is one JSON object, or one line of a table",
            )
        mappings[origin] = schemas.detect(readable, source.columns, origin)
    rows: list[Sample] = []
    rejected: list[Reject] = []
    for origin, raw in chosen:
        try:
            if raw.row is None:
                raise schemas.BadRow(raw.reason)
            sample = mappings[origin].sample(raw.row)
            _require(sample, needs)
            rows.append(sample)
        except schemas.BadRow as bad:
            rejected.append(_reject(origin, raw.line, str(bad), raw.text or _written(raw.row)))
        except RecursionError:
            rejected.append(_reject(origin, raw.line, "nested too deep", raw.text or _written(raw.row)))
    return rows, rejected, len(chosen)


def _written(row: Any) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        return "(a row that cannot be written)"


def _require(sample: Sample, needs: Needs | None) -> None:
    if needs == "answer" and not sample.answer:
        raise schemas.BadRow("no answer to train on (the row has a gold target only)")
    if needs == "target" and not sample.target:
        raise schemas.BadRow("no gold target (name its column with columns: {target: COLUMN})")


def _reject(origin: str, line: int, reason: str, text: str) -> Reject:
    return Reject(origin, line, reason, text[:_EXCERPT].encode("utf-8", "replace").decode())


def _world(
    path: str, source: recipe.Source, domain: domains.Domain | None, needs: Needs | None
) -> tuple[list[Sample], list[Reject], int]:
    split = path.removeprefix("world:")
    if domain is None or domain.world is None:
        name = f"domain {domain.name}" if domain else "no domain is set; it"
        raise DanluError(f"{path}: {name} has no miniature world", "name a domain that has one, or name a file")
    if split not in domain.world.splits:
        near = difflib.get_close_matches(split, domain.world.splits, n=1)
        hint = f"did you mean world:{near[0]}?" if near else f"splits: {', '.join(domain.world.splits)}"
        raise DanluError(f"the world of {domain.name} has no split {split!r}", hint)
    if source.limit is None:
        raise DanluError(f"{path} needs a number of rows", f"write it as {{path: '{path}', limit: 1000}}")
    return _made(path, domain.world.samples(split, source.limit, source.seed), needs)


def _probes(
    path: str, source: recipe.Source, domain: domains.Domain | None, needs: Needs | None
) -> tuple[list[Sample], list[Reject], int]:
    """Rows of "probes:NAME" or "probes:NAME:KIND"; a limit is shared evenly by the kinds (`meta["task"]`)."""
    name, _, kind = path.removeprefix("probes:").partition(":")
    if domain is None or not domain.probes:
        whose = f"domain {domain.name}" if domain else "no domain is set; it"
        raise DanluError(f"{path}: {whose} has no probes", "name a domain that has some, or name a file")
    if name not in domain.probes:
        near = difflib.get_close_matches(name, domain.probes, n=1)
        hint = f"did you mean probes:{near[0]}?" if near else f"probes: {', '.join(domain.probes)}"
        raise DanluError(f"{domain.name} has no probes {name!r}", hint)
    samples = domain.probes[name]()
    kinds = list(dict.fromkeys(str(sample.meta.get("task")) for sample in samples))
    if kind and kind not in kinds:
        near = difflib.get_close_matches(kind, kinds, n=1)
        hint = f"did you mean probes:{name}:{near[0]}?" if near else f"kinds: {', '.join(kinds)}"
        raise DanluError(f"the probes {name} of {domain.name} have no kind {kind!r}", hint)
    if kind:
        samples = [sample for sample in samples if str(sample.meta.get("task")) == kind]
    if source.limit is not None and source.limit < len(samples):
        samples = _balanced(samples, source.limit, source.seed)
    return _made(path, samples, needs)


def _balanced(samples: list[Sample], limit: int, seed: int) -> list[Sample]:
    """A seeded sample in which every kind has as many rows as the others, or all of its own; in the rows' order."""
    kinds: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        kinds.setdefault(str(sample.meta.get("task")), []).append(index)
    rng = random.Random(seed)
    shuffled = [rng.sample(indices, len(indices)) for indices in kinds.values()]
    in_turn = [index for turn in itertools.zip_longest(*shuffled) for index in turn if index is not None]
    return [samples[index] for index in sorted(in_turn[:limit])]


def _made(path: str, samples: list[Sample], needs: Needs | None) -> tuple[list[Sample], list[Reject], int]:
    """What the domain made, as (rows, rejects, rows read)."""
    rows: list[Sample] = []
    rejected: list[Reject] = []
    for number, sample in enumerate(samples, 1):
        try:
            _require(sample, needs)
            rows.append(sample)
        except schemas.BadRow as bad:
            rejected.append(_reject(path, number, str(bad), sample.question))
    return rows, rejected, len(samples)


def _locate(path: str, source: recipe.Source) -> list[tuple[str, Path]]:
    """(name to show, file) of every file of the source."""
    if path.startswith("modelscope:"):
        return in_folder(hubs.modelscope_folder(path.removeprefix("modelscope:"), source.revision), path, source)
    local = Path(path).expanduser()
    kind = kind_of(local) if path.strip() else None
    if kind is not None and source.revision is not None:
        raise DanluError(f"{path} is local and has no revisions", "leave revision out, or name a hub's data set")
    if kind == stat.S_IFDIR:
        return in_folder(local, path, source)
    if kind is not None:
        return [(path, local)]
    if _HUB_ID.fullmatch(path) and local.suffix.lower() not in (*files.SUFFIXES, ".gz", ".zip", ".txt", ".xlsx"):
        return hubs.hub_files(path, source)
    raise DanluError(f"{path or 'the empty path'} does not exist", near_files(local))
