"""What comes after training in a rehearsal: four answers judged, the adapter merged, exported, loaded and asked.

All of it through the functions of the real stages, on the tiny model. Of the checks of an export the sizes alone are
smaller: fewer texts (the user's own among them), fewer and shorter answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danlu.errors import DanluError
from danlu.recipe import Recipe
from danlu.records import Message, Sample
from danlu.rehearse.book import Page
from danlu.run import Run

TEXTS = 200  # generated ones, beside the user's own
CONTEXT = 2048
ANSWER = 16  # tokens of an answer of the exported file


def evaluate_few(
    recipe: Recipe, start: str | None, questions: dict[str, list[Sample]], folder: Path, when: str, page: Page
) -> None:
    """Answer and judge the questions, by what was trained or the stand-in itself."""
    from danlu.evaluate.evaluate import evaluate
    from danlu.generate.open import open_generator

    if recipe.eval.judge and not _judge_answers(recipe.eval.judge, when, page):
        recipe = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"judge": None})})
    run = Run.create(folder / "eval", "eval", recipe.resolved(), seed=recipe.seed)
    with run.recording(), open_generator(start or recipe.model.id, recipe) as generator:
        report = evaluate(recipe, run, generator, benchmarks=questions, rejected={})
    asked = sum(entry["n"] for entry in report["benchmarks"])
    page.info(when, f"{asked} answers of {', '.join(questions)} were given and judged")


def _judge_answers(target: str, when: str, page: Page) -> bool:
    from danlu.generate.wire import Endpoint

    try:
        Endpoint(target, retries=0, timeout=10.0).close()
    except DanluError as error:
        page.error(when, f"the judge does not answer: {error.message}", error.hint)
        return False
    return True


def merge_adapter(trained: str, folder: Path, when: str, page: Page) -> str:
    """The trained run as a model folder: merged, and held against base + adapter; a full model is one already."""
    from danlu.export.merge import merge
    from danlu.export.merge_check import check_merge
    from danlu.models.locate import base_of

    artifact = Path(trained) / "artifact"
    if not (artifact / "adapter_config.json").is_file():
        return str(artifact)
    merged = folder / "merged"
    merge(base_of(artifact), artifact, merged)
    check = check_merge(base_of(artifact), artifact, merged)
    if not check["ok"]:
        page.error(when, f"the merged model differs from base and adapter: KL {check['value']:.2g}", _limit(check))
    return str(merged)


def export_file(recipe: Recipe, model: str, rows: Sequence[Sample], folder: Path, when: str, page: Page) -> Path:
    """The model as a GGUF file, checked against its source through llama.cpp."""
    from danlu.export.export import export
    from danlu.export.parity import failed, probe_texts, verify

    run = Run.create(folder / "export", "export", recipe.resolved(), seed=recipe.seed)
    with run.recording():
        found = export(recipe, run, model, check=False)
    file = Path(found["gguf"])
    own = [text for row in rows for text in (row.question, row.reasoning, row.answer) if text]
    report = verify(
        file,
        Path(model),
        quant=found["quant"],
        texts=[*own, *probe_texts(count=TEXTS)],
        prompts=[_chat(row) for row in sorted(rows, key=lambda row: len(row.question))[:2]] or None,
        greedy_tokens=8,
        answer_tokens=ANSWER,
    )
    if wrong := failed(report):
        checks = {check["name"]: check for check in report["checks"]}
        told = ", ".join(f"{name} ({checks[name]['value']!r:.80})" for name in wrong)
        page.error(when, f"the export would differ from its source in: {told}", "nothing is delivered then")
    page.info(
        when, f"{len(report['checks'])} checks of the file through llama.cpp, {len(own)} of your texts among them"
    )
    return file


def ask_file(recipe: Recipe, file: Path, rows: Sequence[Sample], when: str, page: Page) -> None:
    """Load the exported file as `danlu chat` does and answer one question."""
    from danlu.generate import Sampling
    from danlu.generate.gguf import GgufGenerator

    question: list[Message] = _chat(rows[-1]) if rows else [{"role": "user", "content": "12 + 30?"}]
    with GgufGenerator(file, context=max(CONTEXT, recipe.export.num_ctx)) as generator:
        _, answers = next(iter(generator.generate([question], Sampling(ANSWER))))
    if answers[0].finish == "error":
        page.error(when, "the exported file answers with an error", "its context is export.num_ctx")


def _chat(row: Sample) -> list[Message]:
    return list(row.messages)


def _limit(check: dict[str, Any]) -> str:
    return f"the limit is {check['limit']:.2g}; this is a bug, please report it"
