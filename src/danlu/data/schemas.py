"""From the columns of a file to Samples: the schemas we know, found by their column names.

A schema is the columns it needs and a function of one row (readers.py). The one that fits most rows is taken (the
first in `SCHEMAS` on a tie, so the specific ones stand first), and names match in any case. `Source.columns` (our
name -> the file's column, `a.b` reaches inside) goes first: with `question` it replaces detection, otherwise it adds
to it.

A gold number counts from 0 or from 1: the whole file decides, and where it cannot, that is an error for MedMCQA's
`cop` (published both ways) and 0 elsewhere.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any

from danlu.data import readers
from danlu.data.cells import BadRow, Row, find, missing, text_of, writable
from danlu.data.choices import LETTERS, size
from danlu.data.digests import content_id
from danlu.errors import DanluError
from danlu.records import Sample

OUR_NAMES = ("question", "reasoning", "answer", "target", "options", "id", "system", "aliases", "subject")
# "": the unnamed index of a pandas CSV
_ID = ("id", "_id", "uid", "pubid", "qid", "sample_id", "question_id", "prompt_id", "")
_LISTED = 30  # columns named in an error
_FIELDS = Sample.__slots__
_values = attrgetter(*_FIELDS)
_AT_ID, _AT_META = _FIELDS.index("id"), _FIELDS.index("meta")
_META = (
    "subject",
    "subject_name",
    "topic_name",
    "question_type",
    "task",
    "language",
    "split",
    "source",
    "explanation",
    "exp",
    "metrics",
)


@dataclass(frozen=True, slots=True)
class Schema:
    """`needs`: the columns, each with its accepted names, lower case; `read(row, base)` maps a row or raises BadRow."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Row, int], Sample]

    def fits(self, columns: Iterable[str]) -> bool:
        have = set(columns)
        return all(have & set(names) for names in self.needs)


@dataclass(frozen=True, slots=True)
class Mapping:
    """What `detect` settled for one file: the schema, the user's columns, and from where gold numbers count."""

    schema: Schema
    columns: dict[str, str]
    base: int = 0

    def sample(self, row: Row) -> Sample:
        """Sample of a row, with an id that is the row's own or the hash of its content; BadRow with the reason."""
        lowered = _renamed(row, self.columns)
        sample = self.schema.read(lowered, self.base)
        ids, metas = _named(tuple(lowered))
        if "system" in lowered and sample.messages[0]["role"] != "system":
            system = text_of(lowered, ("system",), required=False)
            if system:
                sample = replace(sample, messages=({"role": "system", "content": system}, *sample.messages))
        meta = {key: _kept(lowered[key], key) for key in metas if not missing(lowered[key]) and lowered[key] != "nan"}
        if "subject_name" in meta:
            meta.setdefault("subject", meta["subject_name"])
        name = _own_id(lowered, ids)
        try:
            if name or sample.aliases or sample.distractors:
                _encode_texts(sample)
            name = name or content_id(sample)
        except UnicodeEncodeError:
            for column, value in lowered.items():
                writable(value, column)
            raise BadRow("a text holds half of a surrogate pair") from None
        values = list(_values(sample))
        values[_AT_ID], values[_AT_META] = name, {**meta, **sample.meta}
        return Sample(*values)  # dataclasses.replace takes three times as long


@lru_cache(4096)
def _named(columns: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which columns can be the id, and which are kept as meta."""
    return tuple(name for name in _ID if name in columns), tuple(name for name in _META if name in columns)


def _own_id(row: Row, names: tuple[str, ...]) -> str:
    for name in names:
        value = row[name]
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value).strip():
            writable(value, name)
            return str(value).strip()
    return ""


def _encode_texts(sample: Sample) -> None:
    """UnicodeEncodeError where a text cannot be written."""
    texts = [sample.reasoning, sample.answer, sample.target or "", *sample.aliases, *sample.distractors]
    texts += [text for option in sample.options.items() for text in option]
    texts += [str(part) for turn in sample.messages for part in turn.values()]
    for text in texts:
        text.encode()


def _kept(value: Any, name: str) -> Any:
    """A value as run files can hold it (dates and the like of Parquet become text)."""
    writable(value, name)
    return value if isinstance(value, (str, int, float, dict, list, tuple)) else str(value)


def detect(rows: list[Row], columns: dict[str, str], origin: str) -> Mapping:
    """The mapping that fits most of `rows` (at least one row).

    DanluError when none fits, naming the columns found and the schemas tried, and for a bad `columns`.
    """
    shapes = Counter(map(tuple, rows))
    present = list(dict.fromkeys(key for shape in shapes for key in shape))
    _check_columns(present, columns, origin)
    lowered = [(_renamed(dict.fromkeys(shape), columns).keys(), n) for shape, n in shapes.items()]
    known = [_PLAIN] if "question" in columns else SCHEMAS
    fitting = [(sum(n for shape, n in lowered if schema.fits(shape)), schema) for schema in known]
    count, schema = max(fitting, key=lambda pair: pair[0])
    if not count:
        names = [_shown(key) for key in [*present, "COLUMN", "COLUMN"]]
        raise DanluError(
            f"{origin}: no known schema has the columns {_listed(present)}",
            f"tried {'; '.join(schema.name for schema in SCHEMAS)}. Name yours beside the path of the file, "
            f"data.columns: {{question: {names[0]}, answer: {names[1]}}} (our names: {', '.join(OUR_NAMES)})",
        )
    return Mapping(schema, columns, _base(schema, rows, columns, origin))


def _check_columns(present: list[str], columns: dict[str, str], origin: str) -> None:
    for ours, theirs in columns.items():
        if ours not in OUR_NAMES:
            near = difflib.get_close_matches(ours, OUR_NAMES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"our names: {', '.join(OUR_NAMES)}"
            raise DanluError(f"{origin}: columns: {ours} is not one of our names", hint)
        if theirs not in present and theirs.partition(".")[0] not in present:
            near = difflib.get_close_matches(theirs, present[:1000], n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise DanluError(f"{origin} has no column {theirs!r}", f"{hint}columns there: {_listed(present)}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(_shown(name) for name in names[:_LISTED]) + more


def _shown(name: str) -> str:
    return name[:60].encode("utf-8", "replace").decode() if name.strip() else repr(name)


def _renamed(row: Row, columns: dict[str, str]) -> Row:
    """The row under lower-case names, the user's columns under ours (and alone, when they name the question)."""
    names = _lowered(tuple(row))
    lowered = {name: row[key] for name, key in names.items()} if names is not None else row
    if not columns:
        return lowered
    mapped = {ours: _reach(row, theirs) for ours, theirs in columns.items()}
    return mapped if "question" in mapped else {**lowered, **mapped}


@lru_cache(4096)
def _lowered(columns: tuple[str, ...]) -> dict[str, str] | None:
    """Lower-case name -> the file's; the first of equals. None where the names are so already."""
    names: dict[str, str] = {}
    for key in columns:
        names.setdefault(key.strip().lower(), key)
    return None if tuple(names) == columns else names


def _reach(row: Row, name: str) -> Any:
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _base(schema: Schema, rows: list[Row], columns: dict[str, str], origin: str) -> int:
    """0 or 1: where the file's gold numbers start."""
    if schema.name not in _NUMBERED:
        return 0
    gold, sizes = _NUMBERED[schema.name]
    seen: set[int] = set()
    top = False
    for row in rows:
        lowered = _renamed(row, columns)
        value = find(lowered, gold)[1]
        if isinstance(value, (str, int, float)) and re.fullmatch(r"\d{1,9}(\.0)?", str(value).strip()):
            number = int(float(value))
            seen.add(number)
            top = top or number == sizes(lowered)
    if 0 in seen or not seen:
        return 0
    if top:
        return 1
    if schema.name.startswith("opa"):
        raise DanluError(
            f"{origin}: cop is never 0 and never 4, so it is unclear whether it counts from 0 or from 1",
            "give more rows of the file, or a column with letters: columns: {target: COLUMN}",
        )
    return 0


_PLAIN = Schema("data.columns", (("question",),), readers.plain)
_OPTIONED = "question, options or choices, answer_idx, answer or label"
SCHEMAS = [
    Schema("messages, answer or target", (("messages",), ("answer", "target")), readers.ours),
    Schema("messages or conversations", (("messages", "conversations", "conversation"),), readers.chat),
    Schema(
        "Open-ended Verifiable Question, Ground-True Answer",
        ((readers.OPEN,), ("ground-true answer", "ground-truth answer", "ground truth answer")),
        readers.verifiable,
    ),
    Schema("question, context(s), final_decision", (("question",), ("final_decision",)), readers.trivalent),
    Schema("opa..opd, cop", (("question",), ("opa",), ("opb",), ("cop",)), readers.four),
    Schema(_OPTIONED, (("question",), readers.OPTIONS, readers.GOLD), readers.optioned),
    Schema("Question, A, B, C, D, Answer", (("question",), ("a",), ("b",), ("answer", "target")), readers.lettered),
    Schema("Question, Complex_CoT, Response", (("question",), ("complex_cot",), ("response",)), readers.reasoned),
    Schema("question, think, answer", (readers.PROMPT, readers.REASONING, readers.ANSWER), readers.reasoned),
    Schema("prompt, completion or response", (("prompt",), ("completion", "response")), readers.completed),
    Schema("instruction, input, output", (("instruction",), ("output",)), readers.alpaca),
    Schema(
        "question or prompt, answer or target",
        ((*readers.QUESTION, "prompt"), ("answer", "target", "response")),
        readers.gold_text,
    ),
    Schema(
        "harmful request, safe_response",
        (("harmful_medical_request", "harmful_request"), ("safe_response",)),
        readers.refusal,
    ),
    Schema("prompt, rubrics", (("prompt",), ("rubrics",)), readers.rubric),
    Schema("question, options (abstention)", (("question",), ("options",)), readers.abstention),
]
_NUMBERED: dict[str, tuple[tuple[str, ...], Callable[[Row], int]]] = {
    "opa..opd, cop": (("cop",), lambda row: sum(f"op{x}" in row for x in "abcdefgh")),
    _OPTIONED: (readers.GOLD, lambda row: size(find(row, readers.OPTIONS)[1])),
    "Question, A, B, C, D, Answer": (("target", "answer"), lambda row: sum(x.lower() in row for x in LETTERS)),
    "data.columns": (("target", "answer"), lambda row: size(row.get("options"))),
}
