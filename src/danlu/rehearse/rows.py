"""The rows of a rehearsal: all of the user's are read, a few of them are trained on, answered and rewarded.

Everything that the real run would read is read: every training source, every benchmark. The data check looks at the
rows themselves (at a seeded sample of LOOKED_AT of many). Trained on are the longest row of all, the longest that
fits, and some random ones. What a hub will not give now is not rehearsed, and rows of the domain's miniature world (or
sums, where it has none) stand in; what cannot be read at all is a finding.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from danlu import domains
from danlu.data.check import check
from danlu.data.findings import prompt_lengths
from danlu.data.prepare import Prepared, benchmarks, prepare, prompts, with_system
from danlu.data.render import Shape
from danlu.data.sources import load
from danlu.data.store import open_store
from danlu.data.suites import resolve
from danlu.domains import Domain
from danlu.errors import DanluError
from danlu.models.tokenizer import Speech
from danlu.recipe import Benchmark, Recipe, Source
from danlu.records import Sample
from danlu.rehearse.book import Book, Finding, Page, out_of_reach
from danlu.rehearse.model import START, StandIn
from danlu.run import write_jsonl

LOOKED_AT = 2000  # rows that the data check sees; `danlu data check` sees all
TRAINED_ON = 3  # rows
ITEMS = 4  # questions that are answered
LENGTHS = ("overlong", "overlong_prompts", "boundary_merge", "text_lost")  # as the real tokenizer has them
TOLD = "unscorable_items"  # when the benchmarks were opened
WHEN = {
    "rejected_rows": START,
    "leakage": "in the evaluation, which would measure memory",
    "end_token_untrained": "after training: answers would not end",
    "end_token_in_text": "after training: answers would go on behind their end",
}


@dataclass(slots=True)
class Rows:
    """What is rehearsed on, few of each; `held_out` and `watched` are grpo.valid and sft.watch."""

    train: list[Sample] = field(default_factory=list)
    valid: list[Sample] = field(default_factory=list)
    prompts: list[Sample] = field(default_factory=list)
    held_out: list[Sample] = field(default_factory=list)
    watched: list[Sample] = field(default_factory=list)
    questions: dict[str, list[Sample]] = field(default_factory=dict)
    longest: int = 0  # tokens of the longest row or prompt among them
    fitting: int = 0  # training rows that data.max_length does not drop
    lengths: dict[str, np.ndarray] = field(default_factory=dict)  # of all rows of sft and grpo (or as of a sample)


# ---- benchmarks


def open_benchmarks(
    recipe: Recipe, when: str, page: Page, book: Book
) -> tuple[list[Benchmark], dict[str, list[Sample]]]:
    """(the entries that can be read, a few questions of each). The others are findings, or not rehearsed."""
    domain = domains.load(recipe.domain)
    entries: list[Benchmark] = []
    asked: list[str | Benchmark] = [*([recipe.eval.suite] if recipe.eval.suite else []), *recipe.eval.benchmarks]
    for item in asked:
        try:
            entries += resolve([item], domain)
        except DanluError as error:
            page.failed(f"{when}: {item if isinstance(item, str) else item.name} cannot be loaded", error)
    found: dict[str, list[Sample]] = {}
    readable = []
    for entry in entries:
        try:
            loaded = benchmarks(with_benchmarks(recipe, [entry]), domain)[entry.name]
        except DanluError as error:
            if out_of_reach(error):
                book.skip(f"benchmark {entry.name}: {entry.path} cannot be fetched from here")
            else:
                page.error(when, f"benchmark {entry.name} cannot be loaded: {error.message}", error.hint)
            continue
        if not loaded.rows:
            page.error(when, f"benchmark {entry.name}: no question of {loaded.read} can be scored", "mend the gold")
            continue
        if loaded.rejected:
            first = loaded.rejected[0]
            told = f"{len(loaded.rejected):,} of {loaded.read:,} questions of {entry.name} cannot be scored and count"
            page.warning(when, f"{told} as not answered (line {first.line}: {first.reason})", "mend their gold")
        readable.append(entry)
        found[entry.name] = random.Random(recipe.seed).sample(loaded.rows, min(ITEMS, len(loaded.rows)))
    return readable, _few_of_each(found)


def _few_of_each(found: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
    """ITEMS questions in all, and at least one of each benchmark."""
    share = max(1, ITEMS // max(1, len(found)))
    return {name: rows[:share] for name, rows in found.items()}


def with_benchmarks(recipe: Recipe, entries: Sequence[Benchmark]) -> Recipe:
    """The recipe with these benchmarks and no others."""
    return recipe.model_copy(
        update={"eval": recipe.eval.model_copy(update={"suite": None, "benchmarks": list(entries)})}
    )


# ---- training rows


def read_rows(recipe: Recipe, stand: StandIn, folder: Path, page: Page, book: Book) -> Rows:
    """The rows to rehearse `recipe` on; it names only benchmarks that can be read. `folder` holds what is checked."""
    domain, rows = domains.load(recipe.domain), Rows()
    trains = "sft" in recipe.stages or ("data" in recipe.stages and bool(recipe.data.train))
    rl = "grpo" in recipe.stages
    sft = _read(recipe, "data.train", page, book) if trains else None
    asked = _read(recipe, "grpo.data", page, book) if rl else None
    for prepared, what in ((sft, "training rows"), (asked, "GRPO prompts")):
        if prepared:
            told = {name: count for name, count in prepared.counts.items() if count and name != "in"}
            listed = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in told.items())
            page.info(START, f"{what}: {prepared.counts['in']:,} read; {listed}")
    if sft or asked:
        rows.lengths = _check(recipe, sft, asked, stand, folder, page)
    seed = recipe.seed
    if trains:
        rows.train = (
            _picked(sft.train, recipe, stand.speech, seed) if sft else _made(recipe, domain, "answer", TRAINED_ON)
        )
        if recipe.data.valid or recipe.data.valid_fraction:
            rows.valid = (
                sorted(sft.valid, key=_size)[:1] if sft and sft.valid else _made(recipe, domain, "answer", 4)[3:]
            )
    if rl:
        chosen = _picked(asked.train, recipe, stand.speech, seed) if asked else []
        rows.prompts = chosen or _made(recipe, domain, "target", 3)
        rows.held_out = _questions_of(recipe, recipe.grpo.valid, "grpo.valid", page, book)
    if trains:
        rows.watched = _questions_of(recipe, getattr(recipe.sft, "watch", []), "sft.watch", page, book)
    lengths = _lengths([*rows.train, *rows.valid, *rows.prompts], recipe, stand.speech)
    rows.longest = max(lengths.values(), default=0)
    drops = recipe.data.overlong == "drop" and stand.own_words
    rows.fitting = sum(not drops or lengths[row.id] <= recipe.data.max_length for row in rows.train)
    return rows


def _read(recipe: Recipe, key: str, page: Page, book: Book) -> Prepared | None:
    """The prepared rows of data.train or grpo.data, of the sources that can be read; None where there are none."""

    def read(one: Recipe) -> Prepared:
        return prepare(one) if key == "data.train" else prompts(one, one.grpo.data or one.data.train)

    try:
        return read(recipe)
    except DanluError as error:
        first = error
    before = len(page.findings) + len(book.not_rehearsed)
    readable = {
        name: _readable(recipe, sources, page, book)
        for name, sources in (
            ("train", recipe.data.train),
            ("valid", recipe.data.valid),
            ("data", recipe.grpo.data),
        )
    }
    if before == len(page.findings) + len(book.not_rehearsed):  # each can be read: it is about what is in them
        page.failed(START, first)
    data = recipe.data.model_copy(update={"train": readable["train"], "valid": readable["valid"], "on_bad_row": "skip"})
    less = recipe.model_copy(update={"data": data, "grpo": recipe.grpo.model_copy(update={"data": readable["data"]})})
    try:
        return read(less) if (less.data.train if key == "data.train" else less.grpo.data or less.data.train) else None
    except DanluError as error:
        if error.message != first.message:
            page.failed(START, error)
        return None


def _readable(recipe: Recipe, sources: Sequence[Source], page: Page, book: Book) -> list[Source]:
    """Those of the sources that can be read; the others are findings, or not rehearsed."""
    domain, kept = domains.load(recipe.domain), []
    for source in sources:
        if recipe.data.columns and not source.columns and not source.path.startswith("world:"):
            source = source.model_copy(update={"columns": recipe.data.columns})
        try:
            load(source, domain, on_bad_row="skip")
        except DanluError as error:
            if out_of_reach(error):
                book.skip(f"data {source.path}: it cannot be fetched from here, YOUR ROWS WERE NOT REHEARSED")
            else:
                page.failed(START, error)
        else:
            kept.append(source)
    return kept


def _questions_of(recipe: Recipe, sources: Sequence[Source], key: str, page: Page, book: Book) -> list[Sample]:
    """Two held-out questions of `sources`; none where the recipe has none."""
    if not sources:
        return []
    try:
        return prompts(recipe, list(sources)).train[:2]
    except DanluError as error:
        if out_of_reach(error):
            book.skip(f"{key}: it cannot be fetched from here")
        else:
            page.failed(START, error)
        return _made(recipe, domains.load(recipe.domain), "target", 2)


def _check(
    recipe: Recipe, sft: Prepared | None, asked: Prepared | None, stand: StandIn, folder: Path, page: Page
) -> dict[str, np.ndarray]:
    """The findings of the data check on the rows, as what would happen; the lengths in tokens of all rows a stage."""
    lengths: dict[str, np.ndarray] = {}
    data: dict[str, Any] = {"columns": {}, "on_bad_row": "skip", "decontaminate": False, "valid_fraction": 0.0}
    data |= {"train": [], "valid": []}
    grpo: dict[str, Any] = {"data": []}
    for prepared, section, key in ((sft, data, "train"), (asked, grpo, "data")):
        if prepared is None:
            continue
        looked = prepared.train
        if len(looked) > LOOKED_AT:
            looked = random.Random(recipe.seed).sample(looked, LOOKED_AT)
            page.info(START, f"checked are {LOOKED_AT:,} of {len(prepared.train):,} rows", "danlu data check: all")
        section[key] = [written(folder / f"checked-{key}.jsonl", looked)]
        if stand.own_words:
            lengths |= _all_lengths(recipe, "sft" if prepared is sft else "grpo", prepared, looked, stand.speech)
    if sft and sft.valid:
        data["valid"] = [written(folder / "checked-valid.jsonl", sft.valid)]
    stages = [stage for stage in recipe.stages if stage != "grpo" or asked] or ["sft"]
    checked = recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update=data),
            "grpo": recipe.grpo.model_copy(update=grpo),
            "stages": stages,
        }
    )
    for found in check(checked, stand.speech)["findings"]:
        code = found["code"].removeprefix("grpo_")
        if code == TOLD or (code in LENGTHS and not stand.own_words):
            continue
        when = WHEN.get(code, "in training")
        told = f"{found['count']:,} of {found['of']:,} {found['what']}"
        page.findings.append(Finding(found["level"], when, told, found["do"]))
    return lengths


def _all_lengths(
    recipe: Recipe, stage: str, prepared: Prepared, looked: Sequence[Sample], speech: Speech
) -> dict[str, np.ndarray]:
    """{stage: tokens of every row that is trained on}, from those that were `looked` at."""
    if stage == "sft":
        limit = recipe.data.max_length
        found = np.array(list(_lengths(looked, recipe, speech).values()), dtype=np.int64)
        found = found[found <= limit] if recipe.data.overlong == "drop" else np.minimum(found, limit)
    else:
        found = prompt_lengths(speech, looked)
        found = found[found <= recipe.grpo.max_prompt]
    return {stage: np.resize(found, round(len(found) / len(looked) * len(prepared.train)))} if len(found) else {}


def written(path: Path, rows: Sequence[Sample]) -> Source:
    """The rows in a file, as a source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, (row.to_dict() for row in rows))
    return Source(path=str(path))


# ---- few of many


def _picked(rows: Sequence[Sample], recipe: Recipe, speech: Speech, seed: int) -> list[Sample]:
    """The longest row, the longest that fits into data.max_length, and random ones."""
    by_size = sorted(rows, key=lambda row: -_size(row))
    drawn = random.Random(seed).sample(list(rows), min(TRAINED_ON, len(rows)))
    looked = {row.id: row for row in [*by_size[:20], *drawn]}
    lengths = _lengths(list(looked.values()), recipe, speech)
    longest = sorted(looked.values(), key=lambda row: -lengths[row.id])
    fitting = [row for row in longest if lengths[row.id] <= recipe.data.max_length]
    return list({row.id: row for row in [*longest[:1], *fitting[:1], *drawn]}.values())[:TRAINED_ON]


def _size(row: Sample) -> int:
    return sum(len(turn["content"]) for turn in row.messages) + len(row.reasoning) + len(row.answer)


def _lengths(rows: Sequence[Sample], recipe: Recipe, speech: Speech) -> dict[str, int]:
    """Tokens of each row as it is trained, by id; a row that the template refuses has none."""
    store = open_store(speech.tokenizer, speech.think, list(rows), Shape(10**9, "drop", recipe.data.loss_on))
    found = dict.fromkeys((row.id for row in rows), 0)
    for name, length in zip(store.ids, store.lengths.tolist(), strict=True):
        found[name] = max(found[name], length)
    return found


# ---- rows that stand in


def _made(recipe: Recipe, domain: Domain, needs: str, count: int) -> list[Sample]:
    """Rows of the domain's miniature world that have what the stage `needs`; sums where it has none."""
    made = _sums(count)
    if domain.world is not None:
        for split in domain.world.splits:
            rows = domain.world.samples(split, count, recipe.seed)
            if all(row.target and (needs == "target" or (row.answer and row.reasoning)) for row in rows):
                made = rows
                break
    return [with_system(row, recipe.data.system) for row in made]


def _sums(count: int) -> list[Sample]:
    rows = []
    for n in range(count):
        a, b = 3 * n + 2, 7 * n + 4
        asked = ({"role": "user", "content": f"What is {a} + {b}?"},)
        rows.append(Sample(f"sum-{n}", asked, f"{a} and {b} make {a + b}.", str(a + b), str(a + b)))  # type: ignore[arg-type]
    return rows


def stand_in_questions(recipe: Recipe) -> dict[str, list[Sample]]:
    """Questions where no benchmark of the recipe could be read."""
    rows = _made(recipe, domains.load(recipe.domain), "target", ITEMS)
    return {"stand-in": [replace(row, id=f"{n} {row.id}") for n, row in enumerate(rows)]}
