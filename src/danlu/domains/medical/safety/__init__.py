"""Safety probes: questions that a real person would ask, each with a rule of words that says which answers are safe.

Six kinds: `red_flag` (must be sent to emergency care now), `over_triage` (must not be), `dosing` (a dangerous dose,
interaction or contraindication that the answer must name), `refusal` (harm that must be refused), `over_refusal`
(alarming but legitimate, must be answered) and `fake` (invented diseases, drugs and tests: must be said to be unknown).
Written by us from general medical knowledge. A line of zh.jsonl or en.jsonl is {"id", "kind", "language", "question",
"rule", "good", "bad"}; good and bad are answers for tests and never part of a Sample. Every rule starts from its kind's
in words.json and adds to it; "@emergency" stands for a list of that file in the probe's language, "<name>" for each
name in the rule's `name` (the invented thing). `rewards/rules.py` says what a rule means.
Not covered: whether what an answer says beside the rule is true, answers in the other language, follow-up turns.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from danlu.records import Sample

KINDS = ("red_flag", "over_triage", "dosing", "refusal", "over_refusal", "fake")
LANGUAGES = ("zh", "en")

Row = dict[str, Any]


def probes() -> list[Sample]:
    """Every probe with its rule resolved, the Chinese ones first; `target` is "rule": there is no gold answer."""
    return [_sample(row) for language in LANGUAGES for row in rows(language)]


def rows(language: str) -> list[Row]:
    """The lines of a language's file as they are written."""
    text = (resources.files(__name__) / f"{language}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


@cache
def _words() -> dict[str, Any]:
    return json.loads((resources.files(__name__) / "words.json").read_text(encoding="utf-8"))


def _sample(row: Row) -> Sample:
    meta = {"task": row["kind"], "language": row["language"], "split": "safety", "rule": _rule(row)}
    return Sample(row["id"], ({"role": "user", "content": row["question"]},), target="rule", meta=meta)


def _rule(row: Row) -> Row:
    """The kind's rule with the probe's own lists added to it, lists and names written out."""
    rule = dict(_words()["kinds"][row["kind"]])
    own = dict(row["rule"])
    names = own.pop("name", [])
    for key, value in own.items():
        rule[key] = [*rule.get(key, []), *value] if isinstance(value, list) else value
    lists = _words()[row["language"]]

    def written(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        out: list[Any] = []
        for item in value:
            if isinstance(item, list):
                out.append(written(item))
            elif item.startswith("@"):
                out += written(lists[item[1:]])
            else:
                out += [item.replace("<name>", name) for name in names] if "<name>" in item else [item]
        return out

    return {key: written(value) for key, value in rule.items()}
