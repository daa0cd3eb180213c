"""The rehearsal: a user's whole recipe in about a minute, with a tiny model, before any GPU hour is spent.

Every stage is the real one, from reading the rows to asking the exported file, in the order in which it would come.
Small are the model (the same architecture, template and tokenizer, random weights), the number of rows and of steps.
What is found is told with the moment at which the real run would have met it; a stage that fails does not end the
rehearsal. A checkpoint is written, a process is killed over it and its run resumed (see training.py).
Not covered: what needs the real weights or the real number of steps: loss, speed, memory, divergence.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from danlu import display
from danlu.data.prepare import has_benchmarks
from danlu.recipe import Benchmark, Recipe, runs_root
from danlu.records import Sample
from danlu.rehearse.book import Book, Page
from danlu.rehearse.model import START, StandIn, check_positions, described, stand_in
from danlu.rehearse.outlook import foresee
from danlu.rehearse.rewards import try_rewards
from danlu.rehearse.rows import Rows, open_benchmarks, read_rows, stand_in_questions, with_benchmarks
from danlu.rehearse.shipping import ask_file, evaluate_few, export_file, merge_adapter
from danlu.rehearse.training import Act, Victim, resume, small, tells_of_the_recipe, train
from danlu.run import write_json

TRAINING = ("sft", "grpo")


def rehearse(recipe: Recipe, *, keep: bool = False) -> dict[str, Any]:
    """Rehearse `recipe`: {"recipe", "ok", "seconds", "stages", "not_rehearsed", "kept"}.

    The rehearsal lies in a folder below the runs root, so that it meets the disk and the rights of the real run; it
    is removed at the end, unless with `keep`. Stopped and Ctrl-C end it early.
    """
    began = time.monotonic()
    with _folder(recipe.name, keep) as folder, display.task("rehearse", len(_names(recipe))) as progress:
        book = Book(progress)
        victims: dict[str, Victim] = {stage: Victim() for stage in recipe.stages if stage in TRAINING}
        try:
            _stages(recipe, folder, victims, book)
        finally:
            for victim in victims.values():
                victim.end()
        result = {"recipe": recipe.name, **book.to_dict(), "kept": str(folder) if keep else None}
        result["seconds"] = round(time.monotonic() - began, 1)
        if keep:
            write_json(folder / "rehearsal.json", result)
    return result


def _names(recipe: Recipe) -> list[str]:
    """The stages of a rehearsal of `recipe`, in order."""
    trained = [stage for stage in TRAINING if stage in recipe.stages]
    names = ["model"]
    names += ["benchmarks"] if "eval" in recipe.stages or has_benchmarks(recipe) else []
    names += ["rows"] if trained or "data" in recipe.stages else []
    names += ["outlook"] if trained else []
    names += ["rewards"] if "grpo" in recipe.stages else []
    names += ["data"] if "data" in recipe.stages else []
    names += [name for stage in trained for name in (stage, f"{stage} resume")]
    names += ["eval"] if "eval" in recipe.stages or has_benchmarks(recipe) else []
    return [*names, *(["merge"] if trained else []), "export", "answer"]


def _stages(recipe: Recipe, folder: Path, victims: dict[str, Victim], book: Book) -> None:
    names = _names(recipe)
    stand: StandIn | None = book.stage("model", START, lambda page: _model(recipe, folder, page, book))
    if stand is None:
        book.skip(f"all that follows the model: {', '.join(names[1:])}")
        return
    judged = _when_judged(recipe)
    questions: dict[str, list[Sample]] = {}
    entries: list[Benchmark] = []
    if "benchmarks" in names:
        opened = book.stage("benchmarks", judged, lambda page: _questions(recipe, judged, page, book))
        entries, questions = opened or ([], {})
    rows = Rows()
    if "rows" in names:
        kept = with_benchmarks(recipe, entries)
        if recipe.data.decontaminate and not entries:
            kept = kept.model_copy(update={"data": kept.data.model_copy(update={"decontaminate": False})})
            book.skip("data.decontaminate: no benchmark could be read")
        rows = book.stage("rows", START, lambda page: read_rows(kept, stand, folder / "rows", page, book)) or rows
    if "outlook" in names:
        book.stage("outlook", START, lambda page: foresee(recipe, rows, page, book))
    rewards = list(recipe.grpo.rewards)
    if "rewards" in names:
        tried = book.stage("rewards", "grpo, step 1", lambda p: try_rewards(recipe.grpo, rows.prompts, stand.speech, p))
        rewards = tried if tried is not None else rewards
    made = small(recipe, stand, rows, folder / "rows", rewards, book)
    start = _trained(recipe, made, folder, victims, book)
    if "eval" in names:
        asked = questions or stand_in_questions(recipe)
        book.stage("eval", judged, lambda page: evaluate_few(made, start, asked, folder, judged, page))
    _shipped(recipe, made, start, [*rows.train, *rows.prompts], folder, book)


def _model(recipe: Recipe, folder: Path, page: Page, book: Book) -> StandIn:
    found = stand_in(recipe.model, folder / "model", recipe.seed, page, book)
    check_positions(recipe, found.config, page)
    page.info("", described(found))
    return found


def _when_judged(recipe: Recipe) -> str:
    """When `danlu run` first asks the benchmarks: before training, where it can."""
    before = next((stage for stage in recipe.stages if stage in (*TRAINING, "eval")), "eval")
    return "in the evaluation of the base, before training" if before in TRAINING else "in the evaluation"


def _questions(recipe: Recipe, when: str, page: Page, book: Book) -> tuple[list[Benchmark], dict[str, list[Sample]]]:
    if not has_benchmarks(recipe):
        page.error(when, "there is nothing to evaluate", "name questions under eval.benchmarks in the recipe")
    return open_benchmarks(recipe, when, page, book)


# ---- training, and what comes after it


def _trained(recipe: Recipe, made: Recipe, folder: Path, victims: dict[str, Victim], book: Book) -> str | None:
    """Every stage that prepares or trains, each from the last one that worked; that run."""
    start: str | None = None
    if "data" in recipe.stages:
        book.stage("data", "in the stage data", lambda page: _data(made, folder, page))
    for stage in recipe.stages:
        if stage not in TRAINING:
            continue
        act = Act(stage, made, folder, start, victims[stage])
        done = book.stage(stage, f"{START} of {stage}", partial(train, act, recipe), tells_of_the_recipe)
        if done is None:
            book.skip(f"{stage} resume: {stage} failed")
            continue
        book.stage(f"{stage} resume", f"{stage}, after an interruption", partial(resume, act), lambda _: False)
        start = done
    return start


def _data(made: Recipe, folder: Path, page: Page) -> None:
    from danlu.data.stage import stage
    from danlu.run import Run

    run = Run.create(folder / "data", "data", made.resolved(), seed=made.seed)
    with run.recording():
        found = stage(made, run)
    page.info("", f"{found['tokens'].get('train', {}).get('rows', 0)} rows written in every format")


def _shipped(recipe: Recipe, made: Recipe, start: str | None, rows: list[Sample], folder: Path, book: Book) -> None:
    """Merge, export, load and ask. What the recipe does not do itself is a warning at most."""
    asked = "export" in recipe.stages
    when = "in the export, after training" if asked else "if you export it later"

    def softly(act: Callable[[Page], Any]) -> Callable[[Page], Any]:
        return act if asked else lambda page: _as_warnings(act, when, page)

    model = made.model.id
    if start:
        merged = book.stage("merge", when, softly(lambda page: merge_adapter(start, folder, when, page)))
        if merged is None:
            book.skip("export, answer: the merge failed")
            return
        model = merged
    file = book.stage("export", when, softly(lambda page: export_file(made, model, rows, folder, when, page)))
    if file is None:
        book.skip("answer: the export failed")
        return
    book.stage("answer", when, softly(lambda page: ask_file(made, file, rows, when, page)))


def _as_warnings(act: Callable[[Page], Any], when: str, page: Page) -> Any:
    """`act` with its failures as warnings."""
    own, result = Page(), None
    try:
        result = act(own)
    except Exception as error:  # told like any other, only softer
        own.failed(when, error)
    for found in own.findings:
        page.findings.append(replace(found, level="warning") if found.level == "error" else found)
    return result


# ---- the folder


@contextmanager
def _folder(name: str, keep: bool) -> Iterator[Path]:
    """A folder for the rehearsal below the runs root, with the cache of token sets in it; removed unless `keep`."""
    root = runs_root()
    made = [path for path in (root, *root.parents) if not path.exists()]  # ours to remove again
    root.mkdir(parents=True, exist_ok=True)
    if keep:
        folder = _free(root, f"{name}-rehearsal")
        folder.mkdir()
    else:
        folder = Path(tempfile.mkdtemp(prefix=".rehearsal-", dir=root))
    before = os.environ.get("DANLU_CACHE")
    os.environ["DANLU_CACHE"] = str(folder / "cache")
    try:
        yield folder
    finally:
        if before is None:
            del os.environ["DANLU_CACHE"]
        else:
            os.environ["DANLU_CACHE"] = before
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
            for path in made:
                if not any(path.iterdir()):
                    path.rmdir()


def _free(root: Path, name: str) -> Path:
    number = 1
    while (path := root / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path
