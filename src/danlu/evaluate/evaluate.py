"""The eval stage: ask every benchmark question, verify each answer, write rows as they come and one report.

Every question counts in every denominator: a completion that the generator failed to give is a row with finish
"error". A generator that raises ends the run; what it gave before is kept, and a resumed run asks only what is
missing (rows that ended in an error are asked again).
Not covered: with a temperature a resumed run need not draw what an uninterrupted one would have drawn, because the
draws depend on the row's place in the list that is generated.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from danlu import display
from danlu.data.prepare import benchmarks as load_benchmarks
from danlu.domains import Domain
from danlu.errors import DanluError
from danlu.evaluate.score import Row, scored_row, summarise
from danlu.generate import Generator, Sampling
from danlu.recipe import Recipe
from danlu.records import Completion, Message, Sample
from danlu.rewards.verify import VERSION, verify
from danlu.run import Run, write_json

Benchmarks = dict[str, list[Sample]]
REPORT_VERSION = 1


def benchmarks_of(recipe: Recipe, domain: Domain | None) -> Benchmarks:
    """The rows of `recipe.eval.benchmarks` by name; rows without a usable question and gold are named in a warning."""
    found: Benchmarks = {}
    for name, loaded in load_benchmarks(recipe, domain).items():
        if loaded.rejected:
            first = loaded.rejected[0]
            display.warn(
                f"benchmark {name}: {len(loaded.rejected)} rows cannot be scored and are left out"
                f" (the first: {first.origin} line {first.line}: {first.reason})"
            )
        found[name] = loaded.rows
    return found


def evaluate(recipe: Recipe, run: Run, generator: Generator, *, benchmarks: Benchmarks | None = None) -> dict[str, Any]:
    """Evaluate `generator` on the benchmarks (default: the recipe's) inside `run`; the report.

    Writes samples.jsonl, artifact/report.json and artifact/scores.jsonl. DanluError for no questions, a question
    without a target, or an id that occurs twice in a benchmark.
    """
    if benchmarks is None:
        from danlu.domains import load

        benchmarks = benchmarks_of(recipe, load(recipe.domain))
    _check(benchmarks)
    settings = recipe.eval
    items = [(name, sample) for name, samples in benchmarks.items() for sample in samples]
    done = _resumed(run, settings.samples)
    todo = [(name, sample) for name, sample in items if (name, sample.id) not in done]
    sampling = Sampling(settings.max_tokens, settings.temperature, settings.top_p, settings.samples, settings.seed)
    kept = run.samples()
    right, answers = sum(row["outcome"] == "right" for row in kept), len(kept)
    with display.task(f"eval {generator.name}", len(items)) as progress:
        progress.advance(len(items) - len(todo))
        answered: set[int] = set()
        for index, completions in generator.generate([_prompt(s, settings.system) for _, s in todo], sampling):
            rows = _rows(*todo[index], completions, settings.samples)
            run.write_samples(rows)
            answered.add(index)
            right, answers = right + sum(row["outcome"] == "right" for row in rows), answers + len(rows)
            progress.advance(1, accuracy=right / answers)
        for index in sorted(set(range(len(todo))) - answered):
            run.write_samples(_rows(*todo[index], [], settings.samples))
    found = report(run.samples(), benchmarks, seed=settings.seed)
    found["generator"] = generator.name
    found["settings"] = {
        **settings.model_dump(mode="json", exclude={"benchmarks", "batch"}),
        "think": generator.think.style,
        "verifier": VERSION,
    }
    errors = sum(row["finish"] == "error" for row in run.samples())
    if errors:
        display.warn(f"{errors} answers failed to generate; they count as not answered")
    with run.delivering() as staged:
        write_json(staged / "report.json", found)
        lines = [json.dumps(_brief(row), ensure_ascii=False) for row in run.samples()]
        (staged / "scores.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    figures = ("n", "accuracy", "ci")
    run.record(benchmarks={entry["name"]: {key: entry[key] for key in figures} for entry in found["benchmarks"]})
    return found


def report(rows: list[Row], benchmarks: Benchmarks, seed: int = 0) -> dict[str, Any]:
    """The figures of an evaluation: for every benchmark, and inside it for every task and every split."""
    entries = []
    for name, samples in benchmarks.items():
        place = {sample.id: i for i, sample in enumerate(samples)}
        own = sorted(
            (row for row in rows if row["benchmark"] == name), key=lambda row: (place[row["id"]], row["index"])
        )
        entry = {"name": name, **summarise(own, seed)}
        for plural, field in (("tasks", "task"), ("splits", "split")):
            groups = list(dict.fromkeys(row[field] for row in own if row.get(field) is not None))
            entry[plural] = [
                {"name": group, **summarise([row for row in own if row.get(field) == group], seed)} for group in groups
            ]
        entries.append(entry)
    return {"schema_version": REPORT_VERSION, "benchmarks": entries}


def _check(benchmarks: Benchmarks) -> None:
    if not any(benchmarks.values()):
        raise DanluError("there is nothing to evaluate", "name questions under eval.benchmarks in the recipe")
    for name, samples in benchmarks.items():
        for sample_id, count in Counter(sample.id for sample in samples).items():
            if count > 1:
                raise DanluError(f"benchmark {name}: id {sample_id!r} occurs {count} times", "make the ids unique")
        for sample in samples:
            if not (sample.target or "").strip():
                raise DanluError(f"benchmark {name}: {sample.id} has no target", "give every question a gold answer")


def _prompt(sample: Sample, system: str | None) -> tuple[Message, ...]:
    if not system or sample.messages[0]["role"] == "system":
        return sample.messages
    return ({"role": "system", "content": system}, *sample.messages)


def _resumed(run: Run, samples: int) -> set[tuple[str, str]]:
    """Questions that are fully answered already; rows of others are taken out of samples.jsonl."""
    rows = run.samples()
    if not rows:
        return set()
    good = Counter((row["benchmark"], row["id"]) for row in rows if row["finish"] != "error")
    done = {key for key, count in good.items() if count == samples}
    run.truncate("samples.jsonl", lambda row: (row["benchmark"], row["id"]) in done)
    return done


def _rows(benchmark: str, sample: Sample, completions: list[Completion], samples: int) -> list[Row]:
    failed = Completion("", "", "", "error", False)
    padded = [*completions[:samples], *[failed] * (samples - len(completions))]
    known = {"options": sample.options, "aliases": list(sample.aliases), "distractors": list(sample.distractors)}
    return [
        {
            "benchmark": benchmark,
            "id": sample.id,
            "index": index,
            "question": sample.question,
            "target": sample.target,
            **{key: value for key, value in known.items() if value},
            "task": sample.meta.get("task"),
            "split": sample.meta.get("split"),
            "output": completion.text,
            "answer": completion.answer,
            "reasoning_length": len(completion.reasoning),
            "answer_length": len(completion.answer),
            **scored_row(verify(sample, completion), completion),
            "tokens": len(completion.tokens),
        }
        for index, completion in enumerate(padded)
    ]


def _brief(row: Row) -> Row:
    """What a comparison needs of a row, without the texts."""
    names = ("benchmark", "id", "index", "task", "split", "extracted", "outcome", "how", "finish", "well_formed")
    return {name: row[name] for name in names if row.get(name) is not None}
