"""Rows of tables: CSV and TSV with a header line (MMLU's without one), and Parquet.

CSV is read strictly, because a quote that is opened and not closed would otherwise swallow the rows after it without
a word. Where strict reading fails, the line is read alone and loosely (`"a" b,c`); a line that is not a row even then
is a bad row, and reading goes on with the line after it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from danlu.data.raw import Raw, not_utf8, unreadable
from danlu.errors import DanluError

_ESCAPED = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of bytes that are not UTF-8


def csv_rows(path: Path, content: bytes) -> list[Raw]:
    """Rows of a CSV or TSV file; DanluError when the header cannot be read or most rows are not UTF-8."""
    csv.field_size_limit(2**31 - 1)  # Python's 128 KiB refuses long reasoning
    comma = "\t" if path.suffix.lower() == ".tsv" else ","
    text = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    lines = list(io.StringIO(text, newline=""))
    header: list[str] = []
    found: list[Raw] = []
    for start, stop, cells, wrong in _cells(lines, comma):
        if not header:
            if wrong:
                raise DanluError(f"{path} line {start + 1} is not CSV: {wrong}", "check the quotes around that row")
            if not any(cells):
                continue
            if _ESCAPED.search("".join(cells)):
                raise _not_utf8(path, content)
            header = _headerless(cells)
            if not header:
                header = _names(path, cells)
                continue
        if cells or wrong:
            found.append(_row(start + 1, header, cells, wrong, "".join(lines[start:stop])))
    if 2 * sum(raw.reason == "not UTF-8" for raw in found) > len(found):
        raise _not_utf8(path, content)
    return found


def _cells(lines: list[str], comma: str) -> Iterator[tuple[int, int, list[str], str]]:
    """(first line, line after the last, cells, "" or what is wrong) of every row; lines count from 0."""
    at = 0

    def feed() -> Iterator[str]:
        nonlocal at
        while at < len(lines):
            at += 1
            yield lines[at - 1].removeprefix("\ufeff")

    while at < len(lines):
        start = at
        try:
            for cells in csv.reader(feed(), delimiter=comma, strict=True):
                yield start, at, cells, ""
                start = at
        except csv.Error:
            open_to, at = at, start + 1
            loose, closed = _alone(lines[start], comma)
            if closed:
                yield start, at, loose, ""
            else:
                more = f" (reading went on to line {open_to})" if open_to > at else ""
                yield start, at, [], f"a quote is opened and not closed{more}"


def _alone(line: str, comma: str) -> tuple[list[str], bool]:
    """Cells of one line read loosely, and whether its quotes are closed."""
    mark = ["", "end"]
    try:
        rows = list(csv.reader([line.rstrip("\r\n") + "\n", comma.join(mark)], delimiter=comma))
    except csv.Error:
        return [], False
    return rows[0], rows[-1] == mark and len(rows) == 2


def _row(line: int, header: list[str], cells: list[str], wrong: str, text: str) -> Raw:
    if _ESCAPED.search(text):
        return unreadable(line, "not UTF-8", text.encode("utf-8", "surrogateescape"))
    if wrong:
        return unreadable(line, wrong, text)
    if len(cells) != len(header):
        return unreadable(line, f"{len(cells)} cells under a header of {len(header)}", text)
    if [cell.strip() for cell in cells] == header:
        return unreadable(line, "the header again (files put together?)", text)
    return Raw(line, dict(zip(header, cells, strict=True)))


def _not_utf8(path: Path, content: bytes) -> DanluError:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return not_utf8(path, content, error.start)
    raise AssertionError("only called for text that is not UTF-8")


def _headerless(cells: list[str]) -> list[str]:
    """MMLU's tables have no header: question, the options, and the gold letter last."""
    letters = "ABCDEFGH"[: max(0, len(cells) - 2)]
    if len(cells) >= 4 and len(cells[-1]) == 1 and cells[-1] in letters and "A" not in cells[:-1]:
        return ["question", *letters, "answer"]
    return []


def _names(path: Path, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DanluError(f"{path} has the column {twice[0]!r} twice", "rename one of them in the first line")
    return header


def parquet_rows(path: Path) -> list[Raw]:
    """Rows of a Parquet file; DanluError when it is cut, damaged, or has a column twice."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _names(path, file.schema_arrow.names)
            rows = [row for batch in file.iter_batches() for row in batch.to_pylist()]
    except (pa.ArrowException, OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise DanluError(f"{path} is not a readable Parquet file: {said}", "download it again") from None
    return [Raw(number, row) for number, row in enumerate(rows, 1)]
