"""Whatever a file holds: every row written is kept or rejected with a reason, or one DanluError says why not.

The fuzz test takes files of which it knows the number of rows (broken.py), and counts. The named tests hold the
messages of the special cases.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import signal
import socket
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken import BOM, Row, fuzzed

from danlu.data.files import read
from danlu.data.sources import Loaded, load
from danlu.errors import DanluError
from danlu.recipe import Source


def loaded_or_refused(path: Path) -> Loaded | None:
    """None for a DanluError that names the file and gives a hint; whatever else is raised fails the test."""
    try:
        return load(Source(path=str(path)), on_bad_row="skip")
    except DanluError as error:
        if str(path) not in error.message or not error.hint:
            raise
        return None


BATCH = 40


@pytest.mark.parametrize("batch", range(10))
def test_every_row_written_is_kept_or_rejected(batch: int, tmp_path: Path):
    counted = 0
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        name, content, count = fuzzed(seed)
        path = tmp_path / str(seed) / name
        path.parent.mkdir()
        path.write_bytes(content)
        loaded = loaded_or_refused(path)
        if loaded is None:
            continue
        counted += 1
        assert len(loaded.rows) + len(loaded.rejected) == loaded.read == count, f"seed {seed}"
        assert all(reject.reason and reject.line >= 1 for reject in loaded.rejected), f"seed {seed}"
        json.dumps([row.to_dict() for row in loaded.rows], ensure_ascii=False).encode()
        if loaded.rejected:
            first = loaded.rejected[0]
            with pytest.raises(DanluError) as said:
                load(Source(path=str(path)), on_bad_row="error")
            assert said.value.message.startswith(f"{path} line {first.line}: {first.reason}"), f"seed {seed}"
    assert counted > BATCH / 2  # an error for every file would keep the contract too


# ---- the special cases and what is said about them

GOOD = '{"question": "q", "answer": "a"}'


def one_reject(write: Callable[[str, object], str], name: str, content: object) -> str:
    """The reason why the one bad row of three was rejected."""
    loaded = load(Source(path=write(name, content)), on_bad_row="skip")
    assert (len(loaded.rows), len(loaded.rejected), loaded.read) == (2, 1, 3)
    return loaded.rejected[0].reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"question": "\xff", "answer": "a"}', "not UTF-8"),
        (b'{"question": "q\0", "answer": "a"}', "not JSON (Invalid control character at)"),
        (b'{"question": "q\\u0000", "answer": "a"}', "question holds a zero character"),
        (b'{"question": "q\\ud800", "answer": "a"}', "question holds half of a surrogate pair"),
        (b'{"id": "\\ud800", "question": "q", "answer": "a"}', "id holds half of a surrogate pair"),
        (b'{"question": "q", "answer": "a", "source": ["\\ud800"]}', "source holds half of a surrogate pair"),
        (b'{"question": "q", "answer": "a", "source": ' + b"[" * 90 + b"]" * 90 + b"}", "source is nested too deep"),
        (b'{"question": "q", "answer": ' + b"[" * 99999 + b"]" * 99999 + b"}", "not JSON (nested too deep)"),
        (b'{"question": "q", "answer": ' + b"9" * 9999 + b"}", "not JSON (a number with too many digits)"),
        (b'{"question": "q", "answer": NaN}', "answer and target are empty"),
        (b'{"question": "q", "answer": Infinity}', "answer is Infinity, not text"),
        (b'{"question": "q", "answer": 1e999}', "answer is Infinity, not text"),
        (b'{"question": "q", "answer": "nan"}', "answer is 'nan', a missing value written as text"),
        (b'{"question": 5, "answer": "a"}', "question is a number, not text"),
        (b'{"question": false, "answer": "a"}', "question is a boolean, not text"),
        (b'{"question": ["q"], "answer": "a"}', "turn 1 is text, not an object"),
        (b'{"question": [], "answer": "a"}', "question is a list, not text"),
        (b'{"question": {"text": null}, "answer": "a"}', "question is an object, not text"),
        (b'{"question": null, "answer": "a"}', "question is empty"),
        (b'{"answer": "a"}', "question is empty"),
        (b'{"question": "q", "question": "p", "answer": "a"}', "the key 'question' stands twice"),
        (b'{"question": "q", "answer": "a", "x": {"y": {"z": 1, "z": 2}}}', "the key 'z' stands twice"),
        (b'{"question": "q", "answer": "a"},', "not JSON (more text after the object)"),
        (b'{"question": "q", "answer": "a', "not JSON (Unterminated string starting at)"),
        (b'{"question": "two\nlines", "answer": "a"}', "a line break inside a text (JSON writes it \\n)"),
        (b"null", "a row is an object, not null"),
    ],
)
def test_one_bad_line_costs_one_row(write, line: bytes, reason: str):
    good = GOOD.encode()
    assert one_reject(write, "a.jsonl", good + b"\n" + line + b"\n" + good + b"\n") == reason
    assert one_reject(write, "b.jsonl", good + b"\n" + good + b"\n" + line) == reason
    path = write("c.jsonl", good + b"\n" + line + b"\n" + good)
    with pytest.raises(DanluError) as error:
        load(Source(path=path))
    assert error.value.message == f"{path} line 2: {reason}"


def test_a_bad_line_takes_no_good_one_with_it(write):
    for good in (f" {GOOD}", f"\t{GOOD} ", GOOD):
        for bad in ('{"question": "q', '{"question": ["q",', ' {"question":', "junk", '"', "}"):
            assert one_reject(write, "a.jsonl", f"{good}\n{bad}\n{good}\n")
            assert one_reject(write, "b.jsonl", f"{good}\r\n\r\n{good}\r\n{bad}")
    assert one_reject(write, "c.jsonl", f'{{"question": "q\n{GOOD}\n{GOOD}')


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "q", "options": ["x", "y"], "answer": None}, "the gold answer is empty"),
        ({"question": "q", "options": ["x", "y"], "answer": float("nan")}, "the gold answer is empty"),
        ({"question": "q", "options": ["x", "y"], "answer": {"A": 1}}, "the gold answer is an object, not text"),
        ({"question": "q", "options": ["x", "y"], "answer": 10**400}, "gold '1000000000"),
        ({"question": "q", "options": None, "answer": "A"}, "0 options"),
        ({"question": "q", "options": 5, "answer": "A"}, "0 options"),
        ({"question": "q", "options": "{[1]: 2}", "answer": "A"}, "1 options"),
        ({"question": "q", "options": {"A": None, "B": None}, "answer": "A"}, "0 options"),
        ({"question": "q", "options": {"text": ["x", "y"], "label": 7}, "answer": "A"}, "0 options"),
        ({"question": "q", "options": {"text": ["x", "y"], "label": ["A"]}, "answer": "A"}, "1 labels for 2 options"),
        (
            {"question": "q", "options": [{"key": "A", "text": "x"}, {"key": "A", "text": "y"}], "answer": "A"},
            "two options have the key 'A'",
        ),
        ({"messages": [None]}, "question is empty"),
    ],
)
def test_bad_choices(write, row: Row, reason: str):
    good = {"question": "q", "options": ["x", "y"], "answer": "A"}
    if "text" in str(row.get("options")) and reason == "0 options":
        loaded = load(Source(path=write("a.jsonl", [good, row])), on_bad_row="skip")
        assert len(loaded.rows) == 2  # labels that are no list are as good as none
    else:
        assert one_reject(write, "a.jsonl", [good, row, good]).startswith(reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [None], "target": "t"}, "turn 1 is null, not an object"),
        ({"messages": [{"role": {"a": 1}, "content": "x"}], "target": "t"}, "turn 1 has the role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}], "target": "t"}, "turn 1 is a list"),
        ({"messages": [{"role": "user", "content": "q"}], "target": "t", "options": ["x"]}, "options and meta are obj"),
        ({"messages": [{"role": "user", "content": "q"}], "target": "t", "meta": "x"}, "options and meta are objects"),
        ({"messages": [{"role": "user", "content": "q"}], "target": "t", "aliases": 5.5}, ""),
        (
            {"messages": [{"role": "user", "content": "q"}], "target": "t", "distractors": {"a": 1}},
            "a distractor is an",
        ),
        ({"target": "t"}, "messages do not end with a user turn"),
    ],
)
def test_bad_rows_of_our_own_kind(write, row: Row, reason: str):
    good = {"messages": [{"role": "user", "content": "q"}], "target": "t"}
    if reason:
        assert one_reject(write, "a.jsonl", [good, row, good]).startswith(reason)
    else:
        assert load(Source(path=write("a.jsonl", [good, row]))).rows[1].aliases == ("5.5",)


@pytest.mark.parametrize("schema", ["prompt", "question", "messages"])
def test_rows_of_another_schema_are_rejected_and_counted(write, schema: str):
    all_rows = {
        "prompt": {"prompt": "q", "completion": "a"},
        "question": {"question": "q", "opa": "x", "opb": "y", "cop": 0},
        "messages": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    }
    others = [row for name, row in all_rows.items() if name != schema]
    loaded = load(Source(path=write("a.jsonl", [all_rows[schema]] * 3 + others)), on_bad_row="skip")
    assert (len(loaded.rows), len(loaded.rejected), loaded.read) == (3, 2, 5)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (f"{GOOD}\r{GOOD}\r", [1, 2]),
        (f"{GOOD}\r\n\r\n{GOOD}", [1, 3]),
        (f"{BOM}{GOOD}\n{BOM}{GOOD}\n", [1, 2]),
        (f"{BOM}{GOOD}{BOM}{GOOD}\n", [1, 1]),
        (f"{GOOD}{GOOD}\n{GOOD} {GOOD}", [1, 1, 2, 2]),
        (f"{GOOD}\n" + GOOD.replace(", ", ",\n") + f"{GOOD}\n{GOOD}", [1, 2, 3, 4]),
        (GOOD.replace("{", "{\n ") + "\n" + GOOD.replace("{", "{\n "), [1, 3]),
        (GOOD.replace("{", "{\n"), [1]),
        (f'{{"a": 1, "rows": [\n{GOOD},\n{GOOD}]}}', [2, 3]),
        (f"[{BOM}\n{GOOD},\n{GOOD}\n]", [2, 3]),
        (f'{{"k1":\n{GOOD},\n"k1": {GOOD}}}', [1, 3]),  # an id that stands twice is two rows
    ],
)
def test_rows_however_they_are_put_together(write, text: str, lines: list[int]):
    path = write("a.json", text)
    assert [(raw.line, raw.row is not None) for raw in read(Path(path))] == [(line, True) for line in lines]
    assert load(Source(path=path)).read == len(lines)


def test_a_broken_row_among_rows_of_several_lines(write):
    pretty = GOOD.replace("{", "{\n ").replace(", ", ",\n ").replace("}", "\n}")
    cut = pretty[:-6]
    for text in (f"{pretty}\n{cut}\n{pretty}\n", f"{pretty}\n{pretty}\n{cut}"):
        assert one_reject(write, "a.json", text).startswith("not JSON")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("q1,a1\nq2\nq3,a3\n", "1 cells under a header of 2"),
        ("q1,a1\nq2,a2,x\nq3,a3\n", "3 cells under a header of 2"),
        ('q1,a1\n"q2,a2\nq3,a3\n', "a quote is opened and not closed (reading went on to line 4)"),
        ('"q1","a1"\n"q2,a2\n"q3","a3"\n', "a quote is opened and not closed (reading went on to line 4)"),
        ('"q1","a1"\n"q2","a2\n"q3","a3"\n', "a quote is opened and not closed (reading went on to line 4)"),
        ('"q1","a1"\n"q3","a3"\n"q2","a2', "a quote is opened and not closed"),
        ("q1,a1\n\ufeffquestion,answer\nq3,a3\n", "the header again (files put together?)"),
        ("q1,a1\nq2,nan\nq3,a3\n", "answer is 'nan', a missing value written as text"),
        ("q1,a1\nq2\0,a2\nq3,a3\n", "question holds a zero character"),
        ("q1,a1\n,\nq3,a3\n", "question is empty"),
    ],
)
def test_one_bad_line_of_a_table_costs_one_row(write, text: str, reason: str):
    for end in ("\n", "\r\n", "\r"):
        assert one_reject(write, "a.csv", f"{BOM}question,answer\n{text}".replace("\n", end)) == reason
    table = "question,answer\n" + text
    assert one_reject(write, "a.tsv", table.replace(",", "\t")).replace("\t", ",") == reason


def test_bytes_of_another_encoding_in_a_table(write):
    assert one_reject(write, "a.csv", b"question,answer\nq1,a1\nq\xff,a2\nq3,a3\n") == "not UTF-8"
    loose = load(Source(path=write("b.csv", 'question,answer\n"a" b,c\nd,"e"\n'))).rows
    assert [(row.question, row.answer) for row in loose] == [("a b", "c"), ("d", "e")]


def packed(suffix: str) -> bytes:
    out = io.BytesIO()
    if suffix == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("a.jsonl", GOOD)
    else:
        with tarfile.open(fileobj=out, mode="w") as archive:
            info = tarfile.TarInfo("a.jsonl")
            info.size = len(GOOD)
            archive.addfile(info, io.BytesIO(GOOD.encode()))
    return out.getvalue()


CHINESE = '{"question": "什么釉？", "answer": "青瓷"}\n' * 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(GOOD.encode(), mtime=0), "is gzip-compressed\nhint: unpack it first: gunzip "),
        (bz2.compress(GOOD.encode()), "is bzip2-compressed"),
        (lzma.compress(GOOD.encode()), "is xz-compressed\nhint: unpack it first: unxz "),
        (b"\x28\xb5\x2f\xfd\x04\x00", "is zstd-compressed"),
        (b"7z\xbc\xaf\x27\x1c\x00\x04", "is a 7z archive"),
        (packed("zip"), "is a zip archive or a spreadsheet\nhint: unpack it, or save the sheet as CSV"),
        (packed("tar"), "is a tar archive\nhint: unpack it first: tar xf "),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page, not data\nhint: the download failed"),
        (b"\n <HTML>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        (CHINESE.encode("utf-16"), "is not UTF-8 text\nhint: if it is UTF-16, convert it: iconv -f UTF-16"),
        (CHINESE.encode("utf-16-le"), "is not UTF-8 text\nhint: if it is UTF-16"),
        (GOOD.encode("utf-16-be"), "is not UTF-8 text\nhint: if it is UTF-16"),
        (GOOD.encode("utf-32"), "is not UTF-8 text\nhint: if it is UTF-32"),
        (CHINESE.encode("gb18030"), "line 1 is not UTF-8\nhint: if it is GB18030, convert it: iconv -f GB18030"),
        (f"[{CHINESE}]".encode("gb18030"), "line 1 is not UTF-8\nhint: if it is GB18030"),
        (f'[{{"question": "釉"}},\n"{chr(255)}"]'.encode() + b"\xff", "line 2 is not UTF-8\nhint: .*mend or leave out"),
        (b"", "has no rows"),
        (b" \n\t\n", "has no rows"),
        (BOM.encode() + b"\n", "has no rows"),
        (b"\0" * 4096, "has no rows"),
        (b'{"data": []}', "has no rows"),
        (b'{"data": [\n{"question": "q"},\n{"question": "q"', "line 3 is not JSON: .*\nhint: .*is the file cut"),
        (b'{\n "question": "q",\n "answer": "a', "line 3 is not JSON: .*\nhint: the object starts on line 1"),
        (b'[{"question": "q"},\n{"question": ' + b"9" * 5000 + b"}]", "line 2 is not JSON: a number with too many dig"),
        (b'[{"question": "q"},\n' + b"[" * 99999 + b"]", "line 2 is not JSON: nested too deep"),
        (b'{"data": [{"a": 1}], "data": [{"a": 2}]}', "the key 'data' stands twice"),
        (b"{}\n{}\n", r"line 1: empty row \(no row of the file can be read\)"),
        (b'[{"question": "q"}][{"question": "p"}]', "goes on after its array"),
    ],
)
def test_what_is_no_data_is_one_error(write, content: bytes, says: str):
    for name in ("a.jsonl", "a.json"):
        with pytest.raises(DanluError) as error:
            load(Source(path=write(name, content)), on_bad_row="skip")
        assert re.search(says, str(error.value)), str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"question,answer\r\n", "has no rows"),
        (b"  \n", "has no rows"),
        (b'"question,answer\nq,a\n', "line 1 is not CSV: a quote is opened and not closed"),
        ("问题,答案\n一,二\n".encode("gb18030"), "line 1 is not UTF-8\nhint: if it is GB18030"),
        ("question,answer\n问,答\n".encode("gb18030"), "line 2 is not UTF-8\nhint: if it is GB18030"),
        ("question,answer\nq,a\n".encode("utf-16-le"), "is not UTF-8 text\nhint: if it is UTF-16"),
        (b"<!doctype html><title>Sign in</title>", "is a web page"),
    ],
)
def test_what_is_no_table_is_one_error(write, content: bytes, says: str):
    with pytest.raises(DanluError, match=says):
        load(Source(path=write("a.csv", content)), on_bad_row="skip")


def test_unknown_columns_are_listed_with_what_to_write(write):
    with pytest.raises(DanluError) as error:
        load(Source(path=write("a.jsonl", [{"frage": "q", "antwort": "a"}])))
    assert "no known schema has the columns frage, antwort" in error.value.message
    assert error.value.hint.startswith("tried messages, answer or target; messages or conversations; ")
    assert "data.columns: {question: frage, answer: antwort}" in error.value.hint
    with pytest.raises(DanluError) as error:
        load(Source(path=write("b.jsonl", json.dumps({f"x{i}\ud800": 1 for i in range(5000)}))))
    assert "and 4970 more" in error.value.message
    str(error.value).encode()


def test_parquet_that_lies(tmp_path: Path):
    good, path = tmp_path / "a.parquet", str(tmp_path / "b.parquet")
    table = pa.table({"question": ["q", "q"], "answer": ["a", None], "source": [b"\xff", None]})
    pq.write_table(table, good)
    loaded = load(Source(path=str(good)), on_bad_row="skip")
    assert (len(loaded.rows), loaded.rejected[0].line, loaded.read) == (1, 2, 2)
    Path(path).write_bytes(good.read_bytes()[:-20])
    with pytest.raises(DanluError, match="not a readable Parquet file"):
        load(Source(path=path))
    broken_text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
    )
    pq.write_table(pa.table({"question": broken_text, "answer": ["a"]}), path)
    with pytest.raises(DanluError, match="not a readable Parquet file"):
        load(Source(path=path))


@pytest.fixture
def alarm() -> Iterator[None]:
    """Ends a test that waits for the other end of a pipe."""

    def ring(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
def test_what_is_no_file_is_refused(tmp_path: Path):
    pipe = tmp_path / "a.jsonl"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(tmp_path / "b.jsonl"))
    cases = {str(pipe): "is a pipe", str(tmp_path / "b.jsonl"): "is a socket", "/dev/zero": "is a device"}
    for path, says in cases.items():
        with pytest.raises(DanluError, match=f"{says}, and data is read from files"):
            load(Source(path=path))
    with pytest.raises(DanluError, match="is a pipe"):
        load(Source(path=str(tmp_path), subset="a.jsonl"))
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    with pytest.raises(DanluError, match="cannot be read: Too many levels of symbolic links"):
        load(Source(path=str(tmp_path / "loop.jsonl")))
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(DanluError, match="is a link to nothing"):
        load(Source(path=str(tmp_path / "gone.jsonl")))
    with pytest.raises(DanluError, match="File name too long"):
        load(Source(path=str(tmp_path / ("x" * 300 + ".jsonl"))))
    for path in ("", " ", "a\0.jsonl"):
        with pytest.raises(DanluError, match="does not exist"):
            load(Source(path=path))


def test_links_that_go_round_in_a_folder(tmp_path: Path, write):
    write("pots/train.jsonl", GOOD)
    (tmp_path / "pots" / "again").symlink_to(tmp_path / "pots")
    assert load(Source(path=str(tmp_path / "pots"))).read == 1
    (tmp_path / "pots" / "train-00000-of-00002.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(DanluError, match=r"several files|parts of"):
        load(Source(path=str(tmp_path / "pots")))


def as_nobody(does: Callable[[], object]) -> str:
    """What `does` raises in a process without the rights of root."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            does()
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def test_permission_denied(tmp_path: Path, write):
    for folder in (tmp_path, *(one for one in tmp_path.parents if one.name.startswith(("pytest-", "popen-")))):
        folder.chmod(0o755)
    path = Path(write("pots/a/train.jsonl", GOOD))
    load(Source(path=str(path)))  # everything is imported before rights are given up
    for locked, source in [
        (path, path),
        (path, tmp_path / "pots"),
        (path.parent, path),
        (path.parent, tmp_path / "pots"),
        (tmp_path / "pots", path),
    ]:
        locked.chmod(0)
        said = as_nobody(lambda source=source: load(Source(path=str(source))))
        locked.chmod(0o755)
        assert said.startswith("DanluError: "), said
        assert "cannot be read: Permission denied\nhint: " in said, said
    readme = Path(write("pots/README.md", "---\nconfigs: 5\nday: 2024-02-31\n---\n"))
    assert load(Source(path=str(tmp_path / "pots"))).read == 1
    readme.chmod(0)
    assert "README.md cannot be read: Permission denied" in as_nobody(lambda: load(Source(path=str(tmp_path / "pots"))))


@pytest.mark.parametrize("kind", ["one good line", "one broken line", "nested", "table", "blank lines", "bad lines"])
def test_large_input_takes_seconds(kind: str, write):
    big = 50_000_000
    spaced = {"instruction": "i", "input": "a" + "\n" * 300_000 + "b", "output": "o"}
    content = {
        "one good line": lambda: b'{"question": "q", "answer": "' + b"x" * big + b'"}\n' + GOOD.encode(),
        "one broken line": lambda: GOOD.encode() + b'\n{"question": "q", "answer": "' + b"x" * big + b"\n",
        "nested": lambda: GOOD.encode() + b"\n" + b'{"a":' * (big // 5) + b"\n",
        "table": lambda: b'question,answer\nq,"' + b"x\n" * (big // 20) + b'",a\n"' + b"y" * (big // 2) + b"\nq,a\n",
        "blank lines": lambda: json.dumps(spaced).encode(),
        "bad lines": lambda: GOOD.encode() + b'\n{"question": "q"\n  "x"' * 30_000 + b"\njunk" * 30_000,
    }[kind]()
    start = time.perf_counter()
    loaded = load(Source(path=write("a.csv" if kind == "table" else "a.jsonl", content)), on_bad_row="skip")
    assert time.perf_counter() - start < 10
    assert loaded.read >= 1
    assert all(len(reject.row_excerpt) <= 200 for reject in loaded.rejected)
