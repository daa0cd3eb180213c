"""Reading one cell of a row: is it there, is it text, is it a list.

A cell that does not hold what is asked of it is a BadRow, whose text names the column.
"""

from __future__ import annotations

import ast
import json
import math
from typing import Any

Row = dict[str, Any]


class BadRow(ValueError):
    """A row that does not hold what its schema promises; the text is the reason."""


def missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def find(row: Row, names: tuple[str, ...]) -> tuple[str, Any]:
    """First of `names` that holds a value; else the first that is a column at all."""
    there = [name for name in names if name in row]
    filled = [name for name in there if not missing(row[name])]
    name = (filled or there or [names[0]])[0]
    return name, row.get(name)


def clean(value: Any, name: str, *, required: bool = True) -> str:
    """Stripped text of a cell; BadRow when it is no text, empty though required, or cannot be written as UTF-8."""
    if missing(value):
        value = ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadRow(f"{name} is {kind(value)}, not text")
    value = value.strip()
    if required and not value:
        raise BadRow(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{name} holds half of a surrogate pair") from None
    return value


def kind(value: Any) -> str:
    return {"dict": "an object", "list": "a list", "bool": "a boolean"}.get(type(value).__name__, type(value).__name__)


def text_of(row: Row, names: tuple[str, ...], *, required: bool = True, numbers: bool = True) -> str:
    name, value = find(row, names)
    if not numbers and isinstance(value, (int, float)) and not missing(value):
        raise BadRow(f"{name} is a number, not text")
    return clean(value, name or "text", required=required)


def as_list(value: Any) -> list[Any]:
    """A list cell, or the JSON text of one; [] for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = literal(value)
    return list(value) if isinstance(value, (list, tuple)) else []


def literal(text: str) -> Any:
    """The value that JSON or Python literal text stands for, else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
