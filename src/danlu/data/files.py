"""Rows of one data file, each with the line it starts on: JSON, JSON lines, CSV/TSV and Parquet.

The format is taken from the content, because `.json` files with JSON lines in them (and the reverse) are common:
a file that opens with `[` is one array, one that opens with `{` is JSON lines, concatenated objects, or one object
that wraps the rows (`{"data": [...]}`, or `{id: row, ...}`). Every row of a file comes back, read or as a `Raw` with
the reason why it could not be; a file of which that cannot be said is a DanluError.
Not covered: compressed files, spreadsheets, pipes, encodings other than UTF-8 (each is named in the error).
"""

from __future__ import annotations

import stat
from pathlib import Path

from danlu.data import jsonrows, tables
from danlu.data.raw import BOM, Raw, recode, wide
from danlu.errors import DanluError

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_NOT_DATA = {
    b"\x1f\x8b": ("gzip-compressed", "unpack it first: gunzip FILE"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "unpack it, or save the sheet as CSV (UTF-8)"),
    b"PK\x05\x06": ("an empty zip archive", "download it again"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", "unpack it first: unzstd FILE"),
    b"BZh": ("bzip2-compressed", "unpack it first: bunzip2 FILE"),
    b"\xfd7zXZ\x00": ("xz-compressed", "unpack it first: unxz FILE"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it first: 7z x FILE"),
    b"Rar!\x1a\x07": ("a rar archive", "unpack it first: unrar x FILE"),
    b"\xd0\xcf\x11\xe0": ("an old Office file", "save the sheet as CSV (UTF-8)"),
    b"%PDF-": ("a PDF", "a data file holds rows, as JSON, CSV or Parquet"),
    b"SQLite format 3\x00": ("an SQLite data base", "write the table as CSV first"),
    b"version https://git-lfs": ("a git-lfs pointer, not the data", "fetch the data with: git lfs pull"),
    b"ARROW1": ("an Arrow file", "save it as Parquet: dataset.to_parquet(...)"),
}
_BLANK = BOM + b"\0 \t\r\n"
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def read(path: Path) -> list[Raw]:
    """All rows of `path`. DanluError when the file is empty, broken as a whole, or no format we read."""
    content = _content(path)
    _refuse(path, content)
    begin = (content[:4096].lstrip(_BLANK) or content.lstrip(_BLANK))[:1]
    if content.startswith(b"PAR1"):
        rows = tables.parquet_rows(path)
    elif not begin:
        rows = []
    elif path.suffix.lower() in (".csv", ".tsv"):
        rows = tables.csv_rows(path, content)
    elif begin == b"[":
        rows = jsonrows.array_rows(path, content)
    elif begin == b"{":
        rows = jsonrows.object_rows(path, content)
    else:
        raise DanluError(f"{path} starts with neither {{ nor [", f"a data file ends in {', '.join(SUFFIXES)}")
    if not rows:
        raise DanluError(f"{path} has no rows", "the file is empty, or holds a header only")
    return rows


def _content(path: Path) -> bytes:
    try:
        kind = stat.S_IFMT(path.stat().st_mode)  # before opening: a pipe would wait for its other end
        if kind != stat.S_IFREG:
            raise DanluError(
                f"{path} is {_KINDS.get(kind, 'not a file')}, and data is read from files",
                "write the rows to a file first and name that",
            )
        return path.read_bytes()
    except OSError as error:
        raise DanluError(f"{path} cannot be read: {error.strerror}", "check the path and its permissions") from None


def _refuse(path: Path, content: bytes) -> None:
    """DanluError for what is no text of rows, whatever its name says."""
    for magic, (kind, hint) in _NOT_DATA.items():
        if content.startswith(magic):
            raise DanluError(f"{path} is {kind}", hint.replace("FILE", str(path)))
    if content[257:262] == b"ustar":
        raise DanluError(f"{path} is a tar archive", f"unpack it first: tar xf {path}")
    head = content[:1024].lstrip(_BLANK).lower()
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise DanluError(
            f"{path} is a web page, not data", "the download failed or asked for a login: fetch the file again"
        )
    encoding = wide(content)
    if encoding and not content.startswith(b"PAR1"):
        raise DanluError(f"{path} is not UTF-8 text", recode(path, encoding))
