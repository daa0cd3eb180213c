"""Questions of a benchmark as the JSON lines that the tasks beside this file read.

    python docs/lm-eval/export.py clinic-test cmexam medqa-zh medqa-us
    python docs/lm-eval/export.py clinic-test --model runs/my-sft --limit 100

One line a question: id, question, answer_only (the question and the wish for nothing but the letter), target, letters,
texts, language. The names are those of `danlu eval --bench`, and so are the questions, their ids and their order; files
of your own are found as there (DANLU_BENCH). With --model both texts are rendered through that model's chat
template, as Danlu asks them, and lm-eval must not apply a template again. Questions without options are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from danlu import domains
from danlu.data.language import language
from danlu.data.suites import questions, resolve
from danlu.errors import DanluError
from danlu.evaluate.items import Item, messages_of
from danlu.recipe import Benchmark, Mode, Model
from danlu.records import Message, Sample

Render = Callable[[tuple[Message, ...], bool], str]


def renderer(model: str | None) -> Render:
    """(chat, thinking) -> what the model is given: the last turn's text, or the whole prompt of `model`."""
    if model is None:
        return lambda chat, _: chat[-1]["content"]
    from danlu.data.render import prompt_text
    from danlu.models.tokenizer import speech_of

    speech = speech_of(Model(id="tiny")) if model == "tiny" else speech_of(Model(), model)
    return lambda chat, thinking: prompt_text(speech.tokenizer, speech.think, list(chat), thinking=thinking)


def row_of(sample: Sample, render: Render, system: str | None = None) -> dict[str, Any]:
    """One line of the file."""

    def asked(mode: Mode) -> str:
        return render(messages_of(Item("", mode, sample), system), mode == "think")

    return {
        "id": sample.id,
        "question": asked("think"),
        "answer_only": asked("loglikelihood"),
        "target": "".join(sorted((sample.target or "").upper())),
        "letters": list(sample.options),
        "texts": list(sample.options.values()),
        "language": sample.meta.get("language") or language(sample.question),
    }


def export(
    name: str,
    folder: Path,
    model: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    system: str | None = None,
) -> Path:
    """Write FOLDER/NAME.jsonl with the choice questions of the medical benchmark `name`."""
    domain = domains.load("medical")
    (entry,) = resolve([Benchmark(name=name, limit=limit, seed=seed)], domain)
    render = renderer(model)
    rows = [row_of(sample, render, system) for sample in questions(entry, domain).rows if sample.options]
    if not rows:
        raise DanluError(f"{name} has no choice questions", "these tasks are for choice questions")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="benchmarks, as in danlu eval --bench")
    parser.add_argument("--out", type=Path, default=Path("questions"), help="folder (default: questions)")
    parser.add_argument("--model", help="render the prompts for this model folder, run or hub id")
    parser.add_argument("--limit", type=int, help="draw so many questions, as a recipe's limit does; then open ones go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--system", help="system prompt, with --model")
    options = parser.parse_args()
    if options.system and not options.model:
        parser.error("--system needs --model; else give it to lm-eval: --system_instruction")
    for name in options.names:
        try:
            print(export(name, options.out, options.model, options.limit, options.seed, options.system))
        except DanluError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
