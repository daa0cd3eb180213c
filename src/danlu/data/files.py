"""Rows of one data file, each with the line it starts on: JSON, JSON lines, CSV/TSV and Parquet.

The format is taken from the content, because `.json` files with JSON lines in them (and the reverse) are common:
a file that opens with `[` is one array, one that opens with `{` is JSON lines, concatenated objects, or one object
that wraps the rows (`{"data": [...]}`, or `{id: row, ...}`). A row that cannot be read is handed on with its reason;
a file that cannot be read is a DanluError.
Not covered: compressed files, spreadsheets, encodings other than UTF-8 (each is named in the error).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.errors import DanluError

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_NOT_DATA = {
    b"\x1f\x8b": ("gzip-compressed", "unpack it first: gunzip FILE"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "unpack it, or save the sheet as CSV (UTF-8)"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", "unpack it first: unzstd FILE"),
    b"BZh": ("bzip2-compressed", "unpack it first: bunzip2 FILE"),
    b"version https://git-lfs": ("a git-lfs pointer, not the data", "fetch the data with: git lfs pull"),
    b"ARROW1": ("an Arrow file", "save it as Parquet: dataset.to_parquet(...)"),
}
_WRAPPERS = ("data", "rows", "examples", "items", "samples", "instances", "questions", "train", "test")
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Raw:
    """One row as the file has it; `row` is None, with a `reason` and the text, where it could not be read."""

    line: int  # counted from 1, where the row starts; the row number in Parquet
    row: dict[str, Any] | None
    reason: str = ""
    text: str = ""


def read(path: Path) -> list[Raw]:
    """All rows of `path`. DanluError when the file is empty, broken as a whole, or no format we read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DanluError(f"{path} cannot be read: {error.strerror}", "check the path and its permissions") from None
    for magic, (kind, hint) in _NOT_DATA.items():
        if content.startswith(magic):
            raise DanluError(f"{path} is {kind}", hint.replace("FILE", str(path)))
    if content.startswith(b"PAR1"):
        rows = list(_parquet(path))
    elif path.suffix.lower() in (".csv", ".tsv"):
        rows = list(_csv(path, _text(path, content)))
    else:
        rows = list(_json(path, content.removeprefix(b"\xef\xbb\xbf")))
    if not rows:
        raise DanluError(f"{path} has no rows", "the file is empty, or holds a header only")
    return rows


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DanluError(f"{path} line {line} is not UTF-8", _recode(path, content)) from None


def _recode(path: Path, content: bytes) -> str:
    encoding = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "GB18030"
    return f"if it is {encoding}, convert it: iconv -f {encoding} -t UTF-8 {path} > new{path.suffix}"


# ---- JSON


def _json(path: Path, content: bytes) -> Iterator[Raw]:
    start = content.lstrip()[:1]
    if not start:
        return iter(())
    if start == b"[":
        return _array(path, _text(path, content))
    if start != b"{":
        if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4096]:
            raise DanluError(f"{path} is not UTF-8 text", _recode(path, content))
        raise DanluError(f"{path} starts with neither {{ nor [", f"a data file ends in {', '.join(SUFFIXES)}")
    first = content.lstrip().partition(b"\n")[0]
    if _complete(first) and b"\n" in content.strip():
        return _lines(content)
    try:
        text = content.decode("utf-8")
        whole, end = _DECODER.raw_decode(text, _skip(text, 0))
    except (ValueError, RecursionError):
        return _lines(content)
    if _skip(text, end) == len(text):
        return _wrapped(path, text, whole)
    return _concatenated(path, text)


def _complete(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(content: bytes) -> Iterator[Raw]:
    for number, line in enumerate(content.split(b"\n"), 1):  # splitlines() would also cut at U+2028
        if not line.strip():
            continue
        try:
            yield _as_row(number, json.loads(line.decode("utf-8")))
        except UnicodeDecodeError:
            yield Raw(number, None, "not UTF-8", line.decode("utf-8", "replace").strip())
        except (ValueError, RecursionError) as error:
            yield Raw(number, None, f"not JSON ({getattr(error, 'msg', 'nested too deep')})", line.decode().strip())


def _as_row(line: int, value: Any) -> Raw:
    if isinstance(value, dict):
        return Raw(line, value)
    return Raw(line, None, f"a row is an object, not {type(value).__name__}", json.dumps(value, ensure_ascii=False))


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _decode(path: Path, text: str, at: int, line: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise DanluError(
            f"{path} line {error.lineno} is not JSON: {error.msg}", f"the row starts on line {line}; is the file cut?"
        ) from None
    except RecursionError:
        raise DanluError(
            f"{path} line {line} is nested too deep", "a row holds text, lists and small objects"
        ) from None


def _array(path: Path, text: str) -> Iterator[Raw]:
    """The members of a top-level array, one by one, so that each has its line."""
    at, line, counted = _skip(text, 0) + 1, 1, 0
    at = _skip(text, at)
    if text[at : at + 1] == "]":
        return
    while True:
        line, counted = line + text.count("\n", counted, at), at
        value, at = _decode(path, text, at, line)
        yield _as_row(line, value)
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            if _skip(text, at + 1) != len(text):
                raise DanluError(f"{path} goes on after its array", "keep one array in a file")
            return
        if text[at : at + 1] != ",":
            line += text.count("\n", counted, at)
            raise DanluError(f"{path} line {line} is not JSON: expected , or ]", "is the file cut?")
        at = _skip(text, at + 1)


def _concatenated(path: Path, text: str) -> Iterator[Raw]:
    at, line, counted = _skip(text, 0), 1, 0
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        value, at = _decode(path, text, at, line)
        yield _as_row(line, value)
        at = _skip(text, at)


def _wrapped(path: Path, text: str, whole: dict[str, Any]) -> Iterator[Raw]:
    """Rows of one object: its only list of objects, or its values where all are objects (the key is the id)."""
    if whole and all(isinstance(value, dict) for value in whole.values()):
        at = 0
        line = 1
        for key, row in whole.items():
            found = text.find(json.dumps(key, ensure_ascii=False), at)  # -1 where the key is written with escapes
            if found >= 0:
                line, at = line + text.count("\n", at, found), found
            yield Raw(line, row if "id" in row else {"id": key, **row})
        return
    wrappers = [key for key in whole if isinstance(whole[key], list) and (key in _WRAPPERS or len(whole) == 1)]
    if len(wrappers) > 1:
        raise DanluError(f"{path} holds several lists: {', '.join(wrappers)}", "keep the one with the rows")
    if not wrappers or (len(whole) == 1 and wrappers[0] in ("messages", "conversations")):
        yield Raw(1, whole)
        return
    for number, row in enumerate(whole[wrappers[0]], 1):
        yield _as_row(number, row)


# ---- tables


def _csv(path: Path, text: str) -> Iterator[Raw]:
    csv.field_size_limit(2**31 - 1)  # Python's 128 KiB refuses long reasoning
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    header: list[str] | None = None
    line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DanluError(f"{path} line {line} is not CSV: {error}", "check the quotes around that row") from None
        if header is None:
            guessed = _headerless(cells)
            if not guessed:
                header = [cell.strip() for cell in cells] if any(cells) else None
                _unique(path, header or [])
                line = reader.line_num + 1
                continue
            header = guessed
        if cells:
            if len(cells) == len(header):
                yield Raw(line, dict(zip(header, cells, strict=True)))
            else:
                yield Raw(line, None, f"{len(cells)} cells under a header of {len(header)}", ",".join(cells))
        line = reader.line_num + 1


def _headerless(cells: list[str]) -> list[str] | None:
    """MMLU's tables have no header: question, the options, and the gold letter last."""
    letters = "ABCDEFGH"[: len(cells) - 2]
    if len(cells) >= 4 and len(cells[-1]) == 1 and cells[-1] in letters and "A" not in cells[:-1]:
        return ["question", *letters, "answer"]
    return None


def _unique(path: Path, header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DanluError(f"{path} has the column {twice[0]!r} twice", "rename one of them in the first line")


def _parquet(path: Path) -> Iterator[Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield Raw(number, row)
    except (pa.ArrowException, OSError) as error:
        raise DanluError(f"{path} is not a readable Parquet file: {error}", "download it again") from None
