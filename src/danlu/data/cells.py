"""Reading one cell of a row: is it there, is it text, is it a list.

A cell that does not hold what is asked of it is a BadRow, whose text names the column.
"""

from __future__ import annotations

import ast
import json
import math
import warnings
from typing import Any

Row = dict[str, Any]
_KINDS = {"dict": "an object", "list": "a list", "bool": "a boolean", "NoneType": "null", "float": "a number"}
_KINDS |= {"int": "a number", "str": "text", "bytes": "binary"}
_DEEPEST = 20  # of lists and objects in a cell
_LITERAL = 1_000_000  # characters; Python's parser needs a hundred times their memory


class BadRow(ValueError):
    """A row that does not hold what its schema promises; the text is the reason."""


def missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def find(row: Row, names: tuple[str, ...]) -> tuple[str, Any]:
    """First of `names` that holds a value; else the first that is a column at all."""
    there = ""
    for name in names:
        if name in row:
            value = row[name]
            if not missing(value):
                return name, value
            there = there or name
    name = there or names[0]
    return name, row.get(name)


def clean(value: Any, name: str, *, required: bool = True) -> str:
    """Stripped text of a cell; BadRow when it is no text, empty though required, or holds a zero character.

    Whether it can be written as UTF-8 is not asked here: hashing the row finds that out at no cost.
    """
    value = (value if type(value) is str else _as_text(value, name)).strip()
    if not value:
        if required:
            raise BadRow(f"{name} is empty")
        return ""
    if len(value) == 3 and value.lower() == "nan":
        raise BadRow(f"{name} is {value!r}, a missing value written as text")
    if "\0" in value:
        raise BadRow(f"{name} holds a zero character")
    return value


def _as_text(value: Any, name: str) -> str:
    if missing(value):
        return ""
    if isinstance(value, float) and math.isinf(value):
        raise BadRow(f"{name} is Infinity, not text")
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return str(value)
    raise BadRow(f"{name} is {kind(value)}, not text")


def writable(value: Any, name: str, depth: int = 0) -> None:
    """BadRow when `value` cannot be written as UTF-8 JSON: lone surrogates, or lists in lists past all use."""
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise BadRow(f"{name} holds half of a surrogate pair") from None
    elif isinstance(value, (dict, list, tuple)):
        if depth > _DEEPEST:
            raise BadRow(f"{name} is nested too deep")
        for part in value:
            writable(part, name, depth + 1)
            if isinstance(value, dict):
                writable(value[part], name, depth + 1)


def kind(value: Any) -> str:
    return _KINDS.get(type(value).__name__, type(value).__name__)


def text_of(row: Row, names: tuple[str, ...], *, required: bool = True, numbers: bool = True) -> str:
    name, value = find(row, names)
    if not numbers and isinstance(value, (int, float)) and not missing(value):
        raise BadRow(f"{name} is {'a boolean' if isinstance(value, bool) else 'a number'}, not text")
    return clean(value, name or "text", required=required)


def as_list(value: Any) -> list[Any]:
    """A list cell, or the JSON text of one; [] for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = literal(value)
    return list(value) if isinstance(value, (list, tuple)) else []


def literal(text: str) -> Any:
    """The value that JSON or Python literal text stands for, else the text."""
    if not text.lstrip().startswith(("[", "{", "(", '"', "'")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > _LITERAL:
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on "\\d" in a text
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
