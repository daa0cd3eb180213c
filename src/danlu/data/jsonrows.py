"""Rows of JSON text: one array, JSON lines, concatenated objects, or one object that wraps the rows.

JSON lines are taken line by line, so one broken line costs one row. A line may hold several objects, an object may
span several lines, and a byte order mark may stand between two of them (files put together with `cat`): whatever was
written as a row comes back as one row, read or with the reason why not. In an array and in a wrapper, where it is
unclear after a mistake where the next row starts, the mistake is an error for the file.
A key that stands twice in one object makes a bad row; JSON parsers keep the last value without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from danlu.data.raw import BOM, EXCERPT, Raw, text_of, unreadable
from danlu.errors import DanluError

Decode = Callable[[str, int], tuple[Any, int, str]]
_WRAPPERS = ("data", "rows", "examples", "items", "samples", "instances", "questions", "train", "test")
_SPACE = re.compile("[ \t\r\n\ufeff]*")
_LOOK = 100  # lines looked at to tell JSON lines with a broken first line from one broken object


def _decoder() -> Decode:
    """decode(text, at) -> (value, where it ends, "" or what is wrong with its keys).

    ValueError or RecursionError where `text` holds no whole JSON value at `at`.
    """
    twice: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) != len(found):
            names = [name for name, _ in found]
            twice.append(next(name for name in names if names.count(name) > 1))
        return made

    raw_decode = json.JSONDecoder(object_pairs_hook=pairs).raw_decode

    def decode(text: str, at: int) -> tuple[Any, int, str]:
        twice.clear()
        value, end = raw_decode(text, at)
        return value, end, f"the key {twice[0]!r} stands twice" if twice else ""

    return decode


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    return getattr(error, "msg", "a number with too many digits")


def _as_row(line: int, value: Any, wrong: str, text: str) -> Raw:
    if not isinstance(value, dict):
        kind = "null" if value is None else type(value).__name__
        return unreadable(line, f"a row is an object, not {kind}", text)
    return unreadable(line, wrong, text) if wrong else Raw(line, value)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


# ---- JSON lines and concatenated objects


def object_rows(path: Path, content: bytes) -> list[Raw]:
    """Rows of a file that opens with {; DanluError when it is one broken object."""
    decode = _decoder()
    lines = content.splitlines()  # of bytes: at \n, \r\n and \r only, not at U+2028
    first = next(index for index, line in enumerate(lines) if line.strip())
    rest = [line for line in lines[first + 1 : first + _LOOK] if line.strip()]
    if rest and _holds(lines[first], decode):
        return _checked(path, content, _by_line(lines, decode))
    by_line = not rest or 2 * sum(_holds(line, decode, whole=True) for line in rest) >= len(rest)
    try:
        text = text_of(path, content)
        value, end, wrong = decode(text, _skip(text, 0))
    except (DanluError, ValueError, RecursionError) as error:
        if by_line:
            return _checked(path, content, _by_line(lines, decode))
        if isinstance(error, DanluError):
            raise
        at = f"line {getattr(error, 'lineno', first + 1)}"
        hint = f"the object starts on line {first + 1}; is the file cut?"
        raise DanluError(f"{path} {at} is not JSON: {_why(error)}", hint) from None
    if _skip(text, end) == len(text):
        return _wrapped(path, text, value, wrong, decode)
    found, complete = _sequence(text, 1, decode)
    return found if complete else _by_line(lines, decode)


def _holds(line: bytes, decode: Decode, *, whole: bool = False) -> bool:
    """Whether the line starts with an object, and, with `whole`, is nothing else."""
    try:
        text = line.decode("utf-8-sig").strip()
        value, end, _ = decode(text, 0)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and (end == len(text) or not whole)


def _checked(path: Path, content: bytes, found: list[Raw]) -> list[Raw]:
    """The rows, unless most of them are in another encoding."""
    if 2 * sum(raw.reason == "not UTF-8" for raw in found) > len(found):
        text_of(path, content)
    return found


def _by_line(lines: list[bytes], decode: Decode) -> list[Raw]:
    found: list[Raw] = []
    index, total = 0, len(lines)
    while index < total:
        line = lines[index].strip()
        index += 1
        if not line:
            continue
        try:
            text = line.decode()
            value, end, wrong = decode(text, 0)
            simple = end == len(text) and not wrong and isinstance(value, dict)
        except (ValueError, RecursionError):
            simple = False
        if simple:
            found.append(Raw(index, value))
        else:
            mended, index = _mended(lines, index - 1, decode)
            found += mended
    return found


def _mended(lines: list[bytes], index: int, decode: Decode) -> tuple[list[Raw], int]:
    """Rows that begin on a line which is not simply one object, and the index of the line after them."""
    raws, complete = _from_bytes(lines[index], index + 1, decode)
    if complete or not raws or not lines[index].lstrip(BOM + b" \t").startswith(b"{"):
        return raws, index + 1
    stop = near = index + 1
    while stop < len(lines) and not lines[stop].lstrip(BOM).startswith(b"{"):
        stop += 1
    if stop == index + 1:
        return raws, stop
    whole, complete = _from_bytes(b"\n".join(lines[index:stop]), index + 1, decode)
    if complete:
        return whole, stop
    for end in range(index + 2, min(stop, index + _LOOK) + 1):
        if _breaks_in_strings(b"\n".join(lines[index:end])):
            return [unreadable(index + 1, "a line break inside a text (JSON writes it \\n)", lines[index])], end
    while near < stop and _continues(lines[near], decode):
        near += 1
    if near == index + 1:
        return raws, near
    broken = b"\n".join(lines[index:near])
    return [unreadable(index + 1, whole[-1].reason if whole else "not JSON", broken)], near


def _continues(line: bytes, decode: Decode) -> bool:
    """Whether the line looks like a part of an object, and not like a row of its own."""
    return not line.strip() or (line[:1] in b' \t"}]' and not _holds(line, decode, whole=True))


def _from_bytes(content: bytes, line: int, decode: Decode) -> tuple[list[Raw], bool]:
    try:
        return _sequence(content.decode("utf-8-sig"), line, decode)
    except UnicodeDecodeError:
        return [unreadable(line, "not UTF-8", content)], False


def _sequence(text: str, line: int, decode: Decode) -> tuple[list[Raw], bool]:
    """Objects that follow one another, and whether all of `text` could be read; the unread rest is the last row."""
    found: list[Raw] = []
    at, counted, before = _skip(text, 0), 0, 0
    while at < len(text):
        try:
            value, end, wrong = decode(text, at)
        except (ValueError, RecursionError) as error:
            if found and text[at] != "{":
                said = "not JSON (more text after the object)"
                return [*found[:-1], unreadable(line, said, text[before : before + EXCERPT])], False
            line += text.count("\n", counted, at)
            return [*found, unreadable(line, f"not JSON ({_why(error)})", text[at : at + EXCERPT])], False
        line, counted, before = line + text.count("\n", counted, at), at, at
        found.append(_as_row(line, value, wrong, text[at : at + EXCERPT]))
        at = _skip(text, end)
    return found, True


def _breaks_in_strings(content: bytes) -> bool:
    try:
        json.loads(content.decode("utf-8-sig"), strict=False)
    except (ValueError, RecursionError):
        return False
    return True


# ---- one value: an array or a wrapper


def array_rows(path: Path, content: bytes) -> list[Raw]:
    """The members of a file that is one array; DanluError where it is broken."""
    text = text_of(path, content)
    start = _skip(text, 0)
    found, end = _items(path, text, start, 1 + text.count("\n", 0, start), _decoder())
    if _skip(text, end) != len(text):
        raise DanluError(f"{path} goes on after its array", "keep one array in a file")
    return found


def _items(path: Path, text: str, at: int, line: int, decode: Decode) -> tuple[list[Raw], int]:
    """The members of the array at `at`, one by one, so that each has its line; and where the array ends."""
    found: list[Raw] = []
    counted = at
    at = _skip(text, at + 1)
    if text[at : at + 1] == "]":
        return found, at + 1
    while True:
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end, wrong = decode(text, at)
        except (ValueError, RecursionError) as error:
            where = getattr(error, "lineno", line)
            raise DanluError(
                f"{path} line {where} is not JSON: {_why(error)}", f"the row starts on line {line}; is the file cut?"
            ) from None
        found.append(_as_row(line, value, wrong, text[at : at + EXCERPT]))
        at = _skip(text, end)
        mark = text[at : at + 1]
        if mark == "]":
            return found, at + 1
        if mark != ",":
            line += text.count("\n", counted, at)
            raise DanluError(f"{path} line {line} is not JSON: expected , or ]", "is the file cut?")
        at = _skip(text, at + 1)


def _wrapped(path: Path, text: str, whole: Any, wrong: str, decode: Decode) -> list[Raw]:
    """Rows of one object: its only list of objects, or its values where all are objects (the key is the id)."""
    members = _members(path, text, decode)
    if members and all(isinstance(value, Raw) for _, value in members):
        return [_with_key(key, raw) for key, raw in members if isinstance(raw, Raw)]
    lists = [(key, value) for key, value in members if isinstance(value, list)]
    wrappers = [(key, value) for key, value in lists if key in _WRAPPERS or len(members) == 1]
    names = [key for key, _ in wrappers]
    if len(set(names)) < len(names):
        raise DanluError(f"{path}: {wrong}", "keep one list of rows in a file")
    if len(names) > 1:
        raise DanluError(f"{path} holds several lists: {', '.join(names)}", "keep the one with the rows")
    if not names or (len(members) == 1 and names[0] in ("messages", "conversations")):
        start = _skip(text, 0)
        return [_as_row(1 + text.count("\n", 0, start), whole, wrong, text[start : start + EXCERPT])]
    return wrappers[0][1]


def _with_key(key: str, raw: Raw) -> Raw:
    return raw if raw.row is None or "id" in raw.row else Raw(raw.line, {"id": key, **raw.row})


def _members(path: Path, text: str, decode: Decode) -> list[tuple[str, Raw | list[Raw] | None]]:
    """Keys of the one object that `text` holds (known to be JSON), in order and with repeats.

    The value is a Raw for an object, the rows for a list, and None for anything else.
    """
    found: list[tuple[str, Raw | list[Raw] | None]] = []
    at = _skip(text, 0)
    line, counted = 1, 0
    at = _skip(text, at + 1)
    while text[at] != "}":
        line, counted = line + text.count("\n", counted, at), at
        key, end, _ = decode(text, at)
        at = _skip(text, _skip(text, end) + 1)
        if text[at] == "[":
            line, counted = line + text.count("\n", counted, at), at
            rows_there, end = _items(path, text, at, line, decode)
            found.append((key, rows_there))
        else:
            value, end, wrong = decode(text, at)
            row = _as_row(line, value, wrong, text[at : at + EXCERPT]) if isinstance(value, dict) else None
            found.append((key, row))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found
