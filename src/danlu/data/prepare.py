"""From a recipe to the rows that are trained on: sources concatenated, redacted, system prompt added, shuffled, split.

`prepare` is for SFT, `prompts` for GRPO. Training rows that ask a validation question again, word for word, are
removed and counted, and with data.decontaminate also those that hold a benchmark's question. Every row read ends in
exactly one place: train, valid, rejected, or one of those counts.
Not covered: near-duplicates inside the training rows (the data check reports them).
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from danlu import display, domains
from danlu.data.aliases import with_aliases
from danlu.data.overlap import Leak, leaks
from danlu.data.personal import redact_sample
from danlu.data.render import Shape
from danlu.data.sources import Loaded, Needs, Reject, load, rows_digest, unique_ids
from danlu.data.suites import questions, resolve
from danlu.errors import DanluError
from danlu.recipe import Benchmark, Recipe, Source
from danlu.records import Sample
from danlu.run import Run, write_jsonl


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows of a stage. `hashes`: split -> short hash of its rows in order.

    `counts`: in, train, valid, rejected, repeats_of_valid, leaked, redacted; `in` is the sum of all but redacted.
    `leaked`: where training rows held a benchmark's question, if they were dropped for it. `sources`: per source its
    path, rows in, kept and rejected, and how often each reason occurred.
    """

    train: list[Sample]
    valid: list[Sample]
    rejected: list[Reject]
    hashes: dict[str, str]
    counts: dict[str, int]
    leaked: list[Leak] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    unredacted: list[Sample] = field(default_factory=list)  # the training rows before data.redact


def prepare(recipe: Recipe) -> Prepared:
    """Training and validation rows of an SFT recipe, each with an answer.

    DanluError when data.train is empty, a source cannot be read, or no training row is left.
    """
    data = recipe.data
    if not data.train:
        raise DanluError("data.train names no rows", "add data: {train: FILE} to the recipe")
    got = _gather(recipe, data.train, "answer")
    train = _shuffled(got.rows, data.shuffle_seed)
    valid: list[Sample] = []
    if data.valid:
        more = _gather(recipe, data.valid, "answer")
        valid, got = more.rows, got.and_(more)
    elif data.valid_fraction and len(train) > 1:
        size = min(max(1, round(data.valid_fraction * len(train))), len(train) - 1)
        valid, train = train[:size], train[size:]
    asked = {question_key(row) for row in valid}
    kept = [row for row in train if question_key(row) not in asked]
    repeats = len(train) - len(kept)
    kept, found = _decontaminated(recipe, kept)
    if not kept:
        raise DanluError(
            f"no training row is left of {got.read} read",
            "every one was rejected, asks a validation question or was decontaminated; see on_bad_row and valid",
        )
    dropped = {"repeats_of_valid": repeats, "leaked": len(train) - repeats - len(kept)}
    return _prepared(recipe, kept, valid, got, dropped, found)


def prompts(recipe: Recipe, sources: list[Source]) -> Prepared:
    """Rows of `sources` with a gold target, in shuffled order, as `train`; `valid` is empty.

    A row without a target is a bad row: an error, or a reject with data.on_bad_row=skip.
    """
    got = _gather(recipe, sources, "target")
    if not got.rows:
        raise DanluError("there are no prompts with a gold target", "give grpo.data rows with a target")
    kept, found = _decontaminated(recipe, _shuffled(got.rows, recipe.data.shuffle_seed))
    if not kept:
        raise DanluError(f"all {len(got.rows)} prompts are questions of a benchmark", "use other rows for grpo.data")
    return _prepared(recipe, kept, [], got, {"repeats_of_valid": 0, "leaked": len(got.rows) - len(kept)}, found)


def write_rejected(run: Run, prepared: Prepared) -> None:
    """rejected.jsonl: every row that was left out, with file, line and reason."""
    if not prepared.rejected:
        return
    display.warn(f"{len(prepared.rejected)} bad rows were left out; see {run.path / 'rejected.jsonl'}")
    rows = ({"origin": r.origin, "line": r.line, "reason": r.reason, "row": r.row_excerpt} for r in prepared.rejected)
    write_jsonl(run.path / "rejected.jsonl", rows)


def shape_of(recipe: Recipe) -> Shape:
    """How the recipe's rows become tokens."""
    return Shape(recipe.data.max_length, recipe.data.overlong, recipe.data.loss_on)


def benchmarks(recipe: Recipe, domain: domains.Domain | None) -> dict[str, Loaded]:
    """The questions of `eval.suite` and `eval.benchmarks` by name, with the rows that cannot be scored as rejects.

    DanluError for an unknown name, for two benchmarks of one name and for a source that cannot be read.
    """
    asked = _asked(recipe)
    known = domain or domains.Domain("none", terms=list)
    found: dict[str, Loaded] = {}
    for item in resolve(asked, known):
        if item.name in found:
            raise DanluError(f"two benchmarks are called {item.name!r}", "give each entry of eval.benchmarks a name")
        loaded = questions(item, domain)
        found[item.name] = replace(loaded, rows=_named(loaded.rows, str(item.path), domain))
    return found


def training_rows(recipe: Recipe) -> list[Sample]:
    """Every row that the recipe trains on in SFT or GRPO, but those of a miniature world; bad rows left out."""
    domain = domains.load(recipe.domain)
    sources = [source for source in [*recipe.data.train, *recipe.grpo.data] if not source.path.startswith("world:")]
    return unique_ids([row for source in sources for row in load(source, domain, on_bad_row="skip").rows])


def published_questions(recipe: Recipe, found: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
    """Those of the benchmarks `found` that do not come from the domain's own world or probes."""
    asked = _asked(recipe)
    paths = {item.name: str(item.path) for item in resolve(asked, domains.load(recipe.domain))}
    return {name: rows for name, rows in found.items() if not paths.get(name, "").startswith(("world:", "probes:"))}


def _asked(recipe: Recipe) -> list[str | Benchmark]:
    return [*([recipe.eval.suite] if recipe.eval.suite else []), *recipe.eval.benchmarks]


def has_benchmarks(recipe: Recipe) -> bool:
    return bool(recipe.eval.suite or recipe.eval.benchmarks)


def _named(rows: list[Sample], path: str, domain: domains.Domain | None) -> list[Sample]:
    """Rows with the aliases that the lexicon knows; a world names its own."""
    if domain is None or path.startswith(("world:", "probes:")):
        return rows
    return with_aliases(rows, domain.terms())


def check_decontaminate(recipe: Recipe) -> None:
    """DanluError where data.decontaminate has nothing to compare with."""
    if recipe.data.decontaminate and not has_benchmarks(recipe):
        raise DanluError("data.decontaminate needs eval.benchmarks", "name the benchmarks, or set it to false")


def _decontaminated(recipe: Recipe, rows: list[Sample]) -> tuple[list[Sample], list[Leak]]:
    """The rows without those that hold a benchmark's question, if the recipe asks for it, and what was found."""
    if not recipe.data.decontaminate:
        return rows, []
    check_decontaminate(recipe)
    found = leaks(rows, {name: loaded.rows for name, loaded in benchmarks(recipe, domains.load(recipe.domain)).items()})
    bad = {leak.row for leak in found}
    return [row for row in rows if row.id not in bad], found


@dataclass(frozen=True, slots=True)
class _Gathered:
    rows: list[Sample]
    rejected: list[Reject]
    sources: list[dict[str, Any]]

    @property
    def read(self) -> int:
        return sum(source["in"] for source in self.sources)

    def and_(self, more: _Gathered) -> _Gathered:
        return _Gathered(self.rows, self.rejected + more.rejected, self.sources + more.sources)


def _gather(recipe: Recipe, sources: list[Source], needs: Needs) -> _Gathered:
    """Rows and rejects of all sources, under the recipe's system prompt."""
    domain = domains.load(recipe.domain)
    rows: list[Sample] = []
    rejected: list[Reject] = []
    told = []
    for source in sources:
        if recipe.data.columns and not source.columns and not source.path.startswith("world:"):
            source = source.model_copy(update={"columns": recipe.data.columns})
        loaded = load(source, domain, on_bad_row=recipe.data.on_bad_row, needs=needs)
        rows += loaded.rows if needs == "answer" else _named(loaded.rows, source.path, domain)
        rejected += loaded.rejected
        counts = {"in": len(loaded.rows) + len(loaded.rejected), "kept": len(loaded.rows)}
        reasons = dict(Counter(reject.reason for reject in loaded.rejected).most_common())
        told.append({"path": source.path, **counts, "rejected": len(loaded.rejected), "reasons": reasons})
    return _Gathered([with_system(row, recipe.data.system) for row in unique_ids(rows)], rejected, told)


def with_system(row: Sample, system: str | None) -> Sample:
    """The row with the system prompt in front, if it has none of its own."""
    if not system or row.messages[0]["role"] == "system":
        return row
    return replace(row, messages=({"role": "system", "content": system}, *row.messages))


def _shuffled(rows: list[Sample], seed: int) -> list[Sample]:
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[index] for index in order]


def question_key(row: Sample) -> tuple[str, ...]:
    """What is asked: the turns without the system prompt."""
    return tuple(turn["content"].strip() for turn in row.messages if turn["role"] != "system")


def _prepared(
    recipe: Recipe,
    train: list[Sample],
    valid: list[Sample],
    got: _Gathered,
    dropped: dict[str, int],
    found: list[Leak],
) -> Prepared:
    """Redaction comes last: a leaked question is found by its own words, names and numbers included."""
    whole, redacted = train, 0
    if recipe.data.redact:
        clean = [[redact_sample(row) for row in rows] for rows in (train, valid)]
        pairs = zip([*train, *valid], [row for rows in clean for row in rows], strict=True)
        redacted = sum(before is not after for before, after in pairs)
        train, valid = clean
    sizes = {"in": got.read, "train": len(train), "valid": len(valid), "rejected": len(got.rejected)}
    hashes = {"train": rows_digest(train)} | ({"valid": rows_digest(valid)} if valid else {})
    counts = {**sizes, **dropped, "redacted": redacted}
    return Prepared(train, valid, got.rejected, hashes, counts, found, got.sources, whole)
