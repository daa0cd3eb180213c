"""Scores of answers that exist already, and the one way every set of scores is summed up.

A row needs `id`, the gold as `target` (or `answer`) and `output` (what the model wrote); `options`, `aliases`,
`distractors` and `finish` (or `finish_reason`) are read where present, so the samples.jsonl of an evaluation can be
scored again. Every row counts in the denominator.

Departure: for several answers to a question the accuracy is avg@k with an interval over questions, since
answers to one question are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, get_args

from danlu.errors import DanluError
from danlu.evaluate.stats import share_interval, wilson
from danlu.records import Completion, Outcome, Sample, Score
from danlu.rewards import rules
from danlu.rewards.verify import verify
from danlu.think import ThinkFormat

OUTCOMES: tuple[str, ...] = get_args(Outcome)
Row = dict[str, Any]


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Counts and shares of outcomes, accuracy with its 95 % interval, and rates where the rows know them.

    `n` counts questions (distinct `id`), the outcomes count answers. Accuracy is the share of right answers with
    Wilson's interval; for several answers to a question it is avg@k with `share_interval` over questions, and
    `majority` is maj@k (the most frequent extracted answer, the first of equals) with Wilson's.
    """
    questions: dict[str, list[Row]] = {}
    for row in rows:
        questions.setdefault(str(row["id"]), []).append(row)
    counts = Counter(row["outcome"] for row in rows)
    n, answers = len(questions), len(rows)
    means = [sum(row["outcome"] == "right" for row in group) / len(group) for group in questions.values()]
    accuracy = sum(means) / n if n else 0.0
    several = answers > n
    found: dict[str, Any] = {"n": n, **{name: counts[name] for name in OUTCOMES}}
    found["shares"] = {name: counts[name] / answers if answers else 0.0 for name in OUTCOMES}
    found["accuracy"] = accuracy
    found["ci"] = list(share_interval(means))
    if several:
        majority = sum(_majority_is_right(group) for group in questions.values())
        found |= {"answers": answers, "samples": max(map(len, questions.values()))}
        found["majority"] = {"accuracy": majority / n, "ci": list(wilson(majority, n))}
    return found | _rates([row for row in rows if not row.get("unscorable")])


def _rates(rows: list[Row]) -> dict[str, Any]:
    """Means over the answers that were really asked for, of what every one of them knows."""
    found: dict[str, Any] = {}
    names = {
        "format_rate": ("well_formed", bool),
        "stop_rate": ("finish", lambda value: value == "stop"),
        "mean_tokens": ("tokens", float),
        "repetition": ("repetition", float),
    }
    for name, (field, value) in names.items():
        if rows and all(field in row for row in rows):
            found[name] = sum(value(row[field]) for row in rows) / len(rows)
    if rows and all("finish" in row for row in rows):
        found["errors"] = sum(row["finish"] == "error" for row in rows)
    spoken = [row["language_match"] for row in rows if row.get("language_match") is not None]
    if spoken:
        found["language_match"] = sum(spoken) / len(spoken)
    return found


def _majority_is_right(group: list[Row]) -> bool:
    votes = [str(row["extracted"]).casefold() for row in group if row.get("extracted") is not None]
    if not votes:
        return False
    winner = Counter(votes).most_common(1)[0][0]  # equal counts: the first that was given
    first = next(row for row in group if str(row.get("extracted")).casefold() == winner)
    return bool(first["outcome"] == "right")


def score(rows: Iterable[Row]) -> dict[str, Any]:
    """The object of `danlu score`: {"summary", "rows": [{"id", "extracted", "outcome", "how"}]}.

    DanluError naming the row that lacks `id`, `target` or `output`, or whose id occurs twice (with the same
    `benchmark` and `index`).
    """
    scored: list[Row] = []
    seen: set[tuple[Any, ...]] = set()
    for number, given in enumerate(rows, 1):
        row = _our_names(given)
        missing = [key for key in ("id", "target", "output") if row.get(key) is None]
        if missing:
            hint = "each row is {id, question, answer, output} with options, aliases, distractors and finish_reason"
            raise DanluError(f"row {number} has no {' and no '.join(missing)}", hint)
        key = (row.get("benchmark"), str(row["id"]), row.get("index", 0))
        if key in seen:
            raise DanluError(f"row {number}: id {row['id']!r} was there before", "give several answers an `index`")
        seen.add(key)
        completion = completion_of(row)
        sample = sample_of(row)
        found = scored_row(by_rule_or_gold(sample, completion), completion)
        kept = {
            name: row[name] for name in ("benchmark", "index", "shuffle", "task", "split") if row.get(name) is not None
        }
        scored.append({"id": str(row["id"]), **kept, **found})
    several = len({row.get("benchmark") for row in scored}) > 1
    unique = [{**row, "id": f"{row.get('benchmark')}/{row['id']}"} for row in scored] if several else scored
    published = [row for row in unique if not row.get("shuffle")]  # other orders of the options are not more samples
    return {"summary": summarise(published or unique), "rows": scored}


def _our_names(row: Row) -> Row:
    """The row with `target` and `finish`, where it calls them `answer` (the gold) and `finish_reason`."""
    if row.get("target") is None and row.get("answer") is not None:
        row = {**{key: value for key, value in row.items() if key != "answer"}, "target": row["answer"]}
    if "finish" not in row and row.get("finish_reason") is not None:
        row = {**row, "finish": row["finish_reason"] if row["finish_reason"] in ("stop", "length") else "error"}
    return row


def by_rule_or_gold(sample: Sample, completion: Completion) -> Score:
    """The verdict on one completion: by the question's rule of words where it has one, else against its gold."""
    return rules.judge(sample, completion) if rules.has_rule(sample) else verify(sample, completion)


def scored_row(found: Score, completion: Completion) -> Row:
    """The fields that a verdict adds to a row."""
    return {
        "extracted": found.extracted,
        "outcome": found.outcome,
        "how": found.how,
        "finish": completion.finish,
        "well_formed": completion.well_formed,
    }


def sample_of(row: Row) -> Sample:
    """The question of a row, as far as a verifier needs it."""
    options = row.get("options") or {}
    return Sample(
        str(row["id"]),
        ({"role": "user", "content": str(row.get("question", ""))},),
        target=str(row["target"]),
        aliases=tuple(row.get("aliases") or ()),
        options={str(k): str(v) for k, v in options.items()} if isinstance(options, dict) else {},
        distractors=tuple(row.get("distractors") or ()),
        meta={"rule": row["rule"]} if row.get("rule") else {},
    )


def completion_of(row: Row) -> Completion:
    """The completion of a row; the think-format is read off its tags unless the row was split when written."""
    text, finish = str(row["output"]), row.get("finish", "stop")
    if "well_formed" in row and isinstance(row.get("answer"), str):
        return Completion(text, "", row["answer"], finish, bool(row["well_formed"]))
    reasoning, answer, tidy = _format_in(text).split(text)
    return Completion(text, reasoning, answer, finish, tidy)


def _format_in(text: str) -> ThinkFormat:
    for style, name in (("think", "think"), ("reasoning_answer", "reasoning")):
        if f"<{name}>" in text or f"</{name}>" in text:
            by = "model" if text.lstrip().startswith(f"<{name}>") else "template"
            return ThinkFormat(style, f"<{name}>", f"</{name}>", by)  # type: ignore[arg-type]
    return ThinkFormat("none")
