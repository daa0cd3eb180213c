"""The eval stage: ask every question in every mode, judge each answer, write rows as they come and one report.

Every question counts in every denominator: a completion that the generator failed to give is a row with finish
"error", and a row of the source without a usable gold answer is a row with the outcome "none" that names the reason.
A generator that raises ends the run; what it gave before is kept, and a resumed run asks only what is missing (rows
that ended in an error are asked again). Rows are streamed: texts live in samples.jsonl, not in memory.
Not covered: with a temperature a resumed run need not draw what an uninterrupted one would have drawn, because the
draws depend on the row's place in the list that is generated.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from danlu import display
from danlu.data.prepare import benchmarks as load_benchmarks
from danlu.data.sources import Reject
from danlu.data.suites import judged
from danlu.domains import Domain
from danlu.errors import DanluError
from danlu.evaluate.calibration import calibration_of, sampling
from danlu.evaluate.describe import language_match, repetition
from danlu.evaluate.items import PROMPTS, Item, items_of, messages_of, named
from danlu.evaluate.score import Row, by_rule_or_gold, sample_of, scored_row, summarise
from danlu.generate import Generator, Sampling
from danlu.recipe import Eval, Recipe
from danlu.records import Completion, Sample, Score
from danlu.rewards import rules
from danlu.rewards.judge import Judge
from danlu.rewards.rubric import rubric
from danlu.rewards.verify import VERSION
from danlu.run import Run, iter_jsonl, read_json, write_json, write_jsonl

Benchmarks = dict[str, list[Sample]]
Rejected = dict[str, list[Reject]]
Key = tuple[str, str, int]  # benchmark, id, shuffle
REPORT_VERSION = 2
JUDGE_FAILED = "the judge failed"
TEXTS = ("question", "prompt", "output", "answer", "options", "aliases", "distractors", "target")  # not kept in memory


def benchmarks_of(recipe: Recipe, domain: Domain | None) -> tuple[Benchmarks, Rejected]:
    """The questions of the recipe by benchmark, and the source's rows that have no usable question or gold."""
    found = load_benchmarks(recipe, domain)
    for name, loaded in found.items():
        if loaded.rejected:
            first = loaded.rejected[0]
            display.warn(
                f"benchmark {name}: {len(loaded.rejected)} rows cannot be scored and count as not answered"
                f" (the first: {first.origin} line {first.line}: {first.reason})"
            )
    return {name: loaded.rows for name, loaded in found.items()}, {name: own.rejected for name, own in found.items()}


def evaluate(
    recipe: Recipe,
    run: Run,
    generator: Generator,
    *,
    benchmarks: Benchmarks | None = None,
    rejected: Rejected | None = None,
    leaked: Collection[tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Evaluate `generator` on the benchmarks (default: the recipe's) inside `run`; the report.

    `leaked`: (benchmark, id) of questions that training rows hold, where that is known; rows then say so.
    Writes samples.jsonl, artifact/report.json and artifact/scores.jsonl. DanluError for no questions, a question
    without a target, or an id that occurs twice in a benchmark.
    """
    if benchmarks is None:
        from danlu.domains import load

        benchmarks, rejected = benchmarks_of(recipe, load(recipe.domain))
    _check(benchmarks)
    settings = recipe.eval
    items = [item for name, samples in benchmarks.items() for item in items_of(name, samples, settings)]
    done = _resumed(run, settings.samples)
    _write_unscorable(run, rejected or {}, settings, done)
    todo = [item for item in items if item.key not in done]
    tally = Counter(row["outcome"] == "right" for row in _stored(run))
    with _judge(settings, todo) as judge, display.task(f"eval {generator.name}", len(items)) as progress:
        progress.advance(len(items) - len(todo))
        for item, completions in _answers(generator, todo, settings):
            rows = _rows(item, completions, settings, generator, leaked, judge)
            run.write_samples(rows)
            tally.update(row["outcome"] == "right" for row in rows)
            progress.advance(1, accuracy=tally[True] / tally.total())
    briefs = list(_stored(run))
    found = report(briefs, benchmarks, settings)
    found["generator"] = generator.name
    found["settings"] = {
        **settings.model_dump(mode="json", exclude={"benchmarks", "batch"}),
        "think": generator.think.style,
        "verifier": VERSION,
        "rules": rules.VERSION,
        "prompts": _prompt_hash(items, settings.system),
    }
    errors = sum(row["finish"] == "error" for row in briefs if not row.get("unscorable"))
    if errors:
        display.warn(f"{errors} answers failed to generate; they count as not answered")
    unjudged = sum(row["how"] == JUDGE_FAILED for row in briefs)
    if unjudged:
        display.warn(f"the judge failed on {unjudged} answers; they count as not answered")
    _deliver(run, found, briefs)
    return found


def rescore(run: Run) -> dict[str, Any]:
    """Judge the stored answers of an evaluation again, with today's rules, and write its report anew."""
    path = run.path / "samples.jsonl"
    if not path.is_file():
        raise DanluError(f"{run.path} holds no answers", "only an evaluation can be scored again")
    staged = path.with_suffix(".tmp")
    write_jsonl(staged, (_judged_again(row) for row in iter_jsonl(path)))
    os.replace(staged, path)
    recipe = Recipe.model_validate(run.config())
    briefs = list(_stored(run))
    names = list(dict.fromkeys(row["benchmark"].partition("@")[0] for row in briefs))
    found = report(briefs, {name: [] for name in names}, recipe.eval)
    stored = read_json(run.artifact / "report.json")
    found["generator"] = stored.get("generator")
    found["settings"] = {**stored.get("settings", {}), "verifier": VERSION, "rules": rules.VERSION}
    _deliver(run, found, briefs)
    return found


def _judged_again(row: Row) -> Row:
    """A stored row under today's rules; what a judge said, and what cannot be scored, stands."""
    if row.get("unscorable") or "value" in row:
        return row
    completion = Completion(row["output"], "", row["answer"], row["finish"], row["well_formed"])
    row = row | scored_row(verdict_of(sample_of(row), completion), completion)
    if "chosen" in row:
        row["chosen"] = _published(row["extracted"], row.get("letters"))
    row.pop("budgets", None)  # shorter versions of the answers are not stored
    return row


# ---- asking


def _answers(generator: Any, todo: list[Item], settings: Eval) -> Iterator[tuple[Item, list[Completion]]]:
    """Every item with its completions (fewer than asked for where the generator failed), mode by mode."""
    draw = Sampling(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        samples=settings.samples,
        seed=settings.seed,
        top_k=settings.top_k,
        min_p=settings.min_p,
        repetition_penalty=settings.repetition_penalty,
        stop=tuple(settings.stop),
    )
    before = getattr(generator, "thinking", None)
    for mode in settings.modes:
        own = [item for item in todo if item.mode == mode]
        if not own:
            continue
        if hasattr(generator, "thinking"):
            generator.thinking = before if mode == "think" else False
        prompts = [messages_of(item, settings.system) for item in own]
        if mode == "loglikelihood":
            choose = getattr(generator, "choose", None)
            if choose is None:
                raise DanluError(
                    f"mode loglikelihood needs local weights; {generator.name} only writes",
                    "leave it out of eval.modes",
                )
            letters = [list(item.sample.options) for item in own]
            for index, letter in choose(prompts, letters):
                yield own[index], [Completion(letter, "", letter, "stop", True)]
            continue
        answered: set[int] = set()
        for index, completions in generator.generate(prompts, draw):
            answered.add(index)
            yield own[index], completions
        for index in sorted(set(range(len(own))) - answered):
            yield own[index], []
    if hasattr(generator, "thinking"):
        generator.thinking = before


def verdict_of(sample: Sample, completion: Completion, judge: Judge | None = None) -> Score:
    """The verdict on one completion: by the question's rule of words or its rubrics, else against the gold answer."""
    if sample.meta.get("rubrics"):
        if judge is None:
            return Score(0.0, "none", None, "rubrics need a judge: set eval.judge")
        return rubric(sample, completion, judge) or Score(0.0, "none", None, JUDGE_FAILED)
    return by_rule_or_gold(sample, completion)


@contextmanager
def _judge(settings: Eval, items: list[Item]) -> Iterator[Judge | None]:
    """The judge of the recipe, where a question needs one."""
    needed = any(item.sample.meta.get("rubrics") for item in items)
    if needed and settings.judge is None:
        display.warn("questions with rubrics count as not answered: there is no judge (eval.judge)")
    if not needed or settings.judge is None:
        yield None
        return
    with Judge(settings.judge) as judge:
        yield judge
        display.say(f"judge {judge.name}: {json.dumps(judge.usage())}")


def _rows(
    item: Item,
    completions: list[Completion],
    settings: Eval,
    generator: Any,
    leaked: Collection[tuple[str, str]] | None,
    judge: Judge | None,
) -> list[Row]:
    failed = Completion("", "", "", "error", False)
    padded = [*completions[: settings.samples], *[failed] * (settings.samples - len(completions))]
    if item.mode == "loglikelihood":
        padded = padded[:1]
    return [_row(item, i, completion, settings, generator, leaked, judge) for i, completion in enumerate(padded)]


def _row(
    item: Item,
    index: int,
    completion: Completion,
    settings: Eval,
    generator: Any,
    leaked: Collection[tuple[str, str]] | None,
    judge: Judge | None,
) -> Row:
    sample = item.sample
    score = verdict_of(sample, completion, judge)
    known = {"options": sample.options, "aliases": list(sample.aliases), "distractors": list(sample.distractors)}
    subject = sample.meta.get("subject") or sample.meta.get("subject_name")
    row: Row = {
        "benchmark": item.benchmark,
        "id": sample.id,
        "index": item.shuffle * settings.samples + index,
        "question": sample.question,
        "target": sample.target,
        **{key: value for key, value in known.items() if value},
        "task": sample.meta.get("task"),
        "split": sample.meta.get("split"),
        "output": completion.text,
        "answer": completion.answer,
        "reasoning_length": len(completion.reasoning),
        "answer_length": len(completion.answer),
        **scored_row(score, completion),
        "tokens": len(completion.tokens),
        "repetition": repetition(completion.text),
    }
    asked = messages_of(item, None)[-1]["content"]
    more: Row = {
        "prompt": asked if asked != sample.question else None,
        "mode": item.mode if item.mode != "think" else None,
        "shuffle": item.shuffle or None,
        "letters": item.letters,
        "chosen": _published(row["extracted"], item.letters) if item.shuffle or settings.shuffles else None,
        "subject": str(subject) if subject else None,
        "language": sample.meta.get("language"),
        "language_match": language_match(sample.question, completion.answer) if item.mode == "think" else None,
        "leaked": (item.benchmark.partition("@")[0], sample.id) in leaked if leaked is not None else None,
        "budgets": _budgets(sample, completion, settings, generator),
        "rule": sample.meta.get("rule"),
        "value": score.value if sample.meta.get("rubrics") else None,
    }
    if item.mode != "think":  # nothing is to be opened or closed: an answer is all the format there is
        row["well_formed"] = completion.finish == "stop" and bool(completion.answer.strip())
    return row | {key: value for key, value in more.items() if value is not None}


def _published(extracted: str | None, letters: dict[str, str] | None) -> str | None:
    """The chosen letters as the source has them."""
    if extracted is None or letters is None:
        return extracted
    return "".join(sorted(letters.get(letter, letter) for letter in extracted))


def _budgets(sample: Sample, completion: Completion, settings: Eval, generator: Any) -> dict[str, str] | None:
    """Outcome if the completion had been cut at each budget; None where the generator cannot cut."""
    cut = getattr(generator, "cut", None)
    if not settings.budgets or cut is None or not completion.tokens:
        return None
    found: dict[str, str] = {}
    for budget in settings.budgets:
        shorter = completion if len(completion.tokens) <= budget else cut(completion, budget)
        found[str(budget)] = verdict_of(sample, shorter).outcome
    return found


def _write_unscorable(run: Run, rejected: Rejected, settings: Eval, done: set[Key]) -> None:
    """Rows of the source without a usable gold: counted as not answered, in every mode."""
    for name, rejects in rejected.items():
        for mode in settings.modes:
            rows = [
                {
                    "benchmark": named(name, mode),
                    "id": f"{reject.origin} line {reject.line}",
                    "index": 0,
                    "question": reject.row_excerpt,
                    "target": None,
                    "output": "",
                    "answer": "",
                    "outcome": "none",
                    "extracted": None,
                    "how": f"cannot be scored: {reject.reason}",
                    "finish": "error",
                    "well_formed": False,
                    "tokens": 0,
                    "unscorable": True,
                }
                for reject in rejects
            ]
            run.write_samples([row for row in rows if (row["benchmark"], row["id"], 0) not in done])


# ---- rows on disk


def _stored(run: Run) -> Iterator[Row]:
    """The rows of samples.jsonl without their texts."""
    for row in iter_jsonl(run.path / "samples.jsonl"):
        yield {key: value for key, value in row.items() if key not in TEXTS}


def _resumed(run: Run, samples: int) -> set[Key]:
    """Items that are fully answered already; rows of others are taken out of samples.jsonl."""
    good: Counter[Key] = Counter()
    wanted: dict[Key, int] = {}
    for row in _stored(run):
        key = (row["benchmark"], row["id"], row.get("shuffle", 0))
        wanted[key] = 1 if row.get("unscorable") or row.get("mode") == "loglikelihood" else samples
        good[key] += row["finish"] != "error" or bool(row.get("unscorable"))
    done = {key for key, count in good.items() if count == wanted[key]}
    if wanted:
        run.truncate("samples.jsonl", lambda row: (row["benchmark"], row["id"], row.get("shuffle", 0)) in done)
    return done


def _check(benchmarks: Benchmarks) -> None:
    if not any(benchmarks.values()):
        raise DanluError("there is nothing to evaluate", "name questions under eval.benchmarks in the recipe")
    for name, samples in benchmarks.items():
        for sample_id, count in Counter(sample.id for sample in samples).items():
            if count > 1:
                raise DanluError(f"benchmark {name}: id {sample_id!r} occurs {count} times", "make the ids unique")
        for sample in samples:
            if not (sample.target or "").strip() and not judged(sample):
                raise DanluError(f"benchmark {name}: {sample.id} has no target", "give every question a gold answer")


def _prompt_hash(items: list[Item], system: str | None) -> str:
    """Hash of every chat that was asked, and of the frozen wordings."""
    found = hashlib.sha256(repr(PROMPTS).encode())
    for item in items:
        asked = json.dumps(messages_of(item, system), ensure_ascii=False)
        found.update(f"{item.benchmark}\x1f{item.sample.id}\x1f{asked}\x1e".encode("utf-8", "surrogatepass"))
    return found.hexdigest()[:16]


def _deliver(run: Run, found: dict[str, Any], briefs: list[Row]) -> None:
    with run.delivering() as staged:
        write_json(staged / "report.json", found)
        write_jsonl(staged / "scores.jsonl", map(_brief, briefs))
    figures = ("n", "accuracy", "ci")
    run.record(benchmarks={entry["name"]: {key: entry[key] for key in figures} for entry in found["benchmarks"]})


def _brief(row: Row) -> Row:
    """What a comparison needs of a row, without the texts and what only this run's report uses."""
    dropped = ("reasoning_length", "answer_length", "rule", "chosen", "letters")
    return {key: value for key, value in row.items() if key not in dropped and value is not None}


# ---- the report


def report(rows: list[Row], benchmarks: Benchmarks, settings: Eval) -> dict[str, Any]:
    """The figures of an evaluation: for every benchmark and mode, and inside it for every task, split and subject."""
    place = {sample.id: i for samples in benchmarks.values() for i, sample in enumerate(samples)}
    entries = []
    for name in benchmarks:
        for mode in settings.modes:
            every = [row for row in rows if row["benchmark"] == named(name, mode)]
            if all(row.get("unscorable") for row in every):  # also none: nothing could be asked in this mode
                continue
            every.sort(key=lambda row: (place.get(row["id"], len(place)), row["id"], row["index"]))
            own = [row for row in every if not row.get("shuffle")]
            entry = {"name": named(name, mode), **summarise(own)}
            for plural, field in (("tasks", "task"), ("splits", "split"), ("subjects", "subject")):
                groups = list(dict.fromkeys(row[field] for row in own if row.get(field) is not None))
                entry[plural] = [
                    {"name": group, **summarise([row for row in own if row.get(field) == group])} for group in groups
                ]
            unscorable = Counter(row["how"] for row in own if row.get("unscorable"))
            if unscorable:
                entry["unscorable"] = {"n": unscorable.total(), "reasons": dict(unscorable.most_common(5))}
            if any("leaked" in row for row in own):
                clean = [row for row in own if not row.get("leaked")]
                entry["leaked"] = len({row["id"] for row in own if row.get("leaked")})
                entry["without_leaked"] = summarise(clean)
            values = [row["value"] for row in own if "value" in row]
            if values:  # rubrics: the mean share of points; `accuracy` is the share with all of them
                entry["value"] = sum(values) / len(own)
            if entry.get("samples", 1) > 1:
                entry["sampling"] = sampling(own)
                entry["calibration"] = calibration_of(own)
            entry |= {"budgets": _curve(own)} if any("budgets" in row for row in own) else {}
            entry |= {"shuffles": _orders(every)} if any(row.get("shuffle") for row in every) else {}
            entries.append(entry)
    return {"schema_version": REPORT_VERSION, "benchmarks": entries}


def _curve(rows: list[Row]) -> list[dict[str, Any]]:
    """Accuracy at each token budget, from the same answers."""
    known = [row for row in rows if "budgets" in row]
    budgets = sorted({int(budget) for row in known for budget in row["budgets"]})
    return [
        {
            "tokens": budget,
            "accuracy": sum(row["budgets"][str(budget)] == "right" for row in known) / len(rows),
            "truncated": sum(row["budgets"][str(budget)] == "truncated" for row in known) / len(rows),
        }
        for budget in budgets
    ]


def _orders(rows: list[Row]) -> dict[str, Any]:
    """What the order of the options changes: accuracy over all orders, consistency, and bias towards a letter.

    `consistency`: share of shuffled questions whose chosen option is the same in every order (a question without an
    answer in one of them is not). `letters`: how often each letter was chosen, over questions that state one letter.
    """
    shuffled = {row["id"] for row in rows if row.get("shuffle")}
    asked: dict[str, list[Row]] = {}
    for row in rows:
        if row["id"] in shuffled:
            asked.setdefault(row["id"], []).append(row)
    letters = Counter(row["extracted"] for own in asked.values() for row in own if len(row["extracted"] or "") == 1)
    answers = [row for own in asked.values() for row in own]
    return {
        "questions": len(asked),
        "orders": 1 + max(row.get("shuffle", 0) for row in rows),
        "accuracy": sum(row["outcome"] == "right" for row in answers) / len(answers),
        "consistency": sum(_consistent(own) for own in asked.values()) / len(asked),
        "letters": {letter: round(count / letters.total(), 4) for letter, count in sorted(letters.items())},
    }


def _consistent(rows: list[Row]) -> bool:
    chosen = {row.get("chosen") for row in rows}
    return len(chosen) == 1 and None not in chosen
