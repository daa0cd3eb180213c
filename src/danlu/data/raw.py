"""One row as a file has it, before any schema; and what is said about text that is not UTF-8."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.errors import DanluError

BOM = b"\xef\xbb\xbf"
EXCERPT = 1000  # characters of an unreadable row that are kept


@dataclass(frozen=True, slots=True)
class Raw:
    """One row; `row` is None, with a `reason` and the beginning of the text, where it could not be read."""

    line: int  # counted from 1, where the row starts; the row number in Parquet
    row: dict[str, Any] | None
    reason: str = ""
    text: str = ""


def unreadable(line: int, reason: str, text: str | bytes) -> Raw:
    if isinstance(text, bytes):
        text = text[: 4 * EXCERPT].decode("utf-8", "replace")
    return Raw(line, None, reason, text[:EXCERPT].strip())


def text_of(path: Path, content: bytes) -> str:
    """The file's text; DanluError that names the first line that is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, content, error.start) from None


def not_utf8(path: Path, content: bytes, at: int) -> DanluError:
    """The error for bytes that break at `at`: another encoding, or a damaged line in UTF-8 text."""
    line = content.count(b"\n", 0, at) + 1
    near = content[max(0, at - 100_000) : at + 100_000].decode("utf-8", "replace")
    bad = near.count("\ufffd")
    if bad < sum(not letter.isascii() for letter in near) - bad:
        hint = "the text around it is UTF-8: mend or leave out that line"
    else:
        hint = recode(path, "GB18030" if _decodes(content, "gb18030") else "ISO-8859-1")
    return DanluError(f"{path} line {line} is not UTF-8", hint)


def recode(path: Path, encoding: str) -> str:
    return f"if it is {encoding}, convert it: iconv -f {encoding} -t UTF-8 {path} > new{path.suffix}"


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(content[:1_000_000])
    except UnicodeDecodeError:
        return False
    return True


def wide(content: bytes) -> str:
    """UTF-16 or UTF-32 by its byte order mark or by the zero bytes beside ASCII; "" for neither."""
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    head = content[:4096]
    zeros = [head[place::2].count(0) for place in (0, 1)]
    share = max(zeros) / max(1, len(head) // 2)
    return "UTF-16" if share > 0.2 and min(zeros) < max(zeros) / 4 else ""
