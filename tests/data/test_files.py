from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from danlu.data.files import read
from danlu.errors import DanluError

ROWS = [{"question": "釉色?", "answer": "青\u2028瓷"}, {"question": "kiln?", "answer": "hot"}]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.jsonl", "\n".join(LINES), [1, 2]),
        ("a.jsonl", "\ufeff" + "\r\n\r\n".join(LINES) + "\r\n", [1, 3]),
        ("a.json", "\n".join(LINES), [1, 2]),
        ("a.json", json.dumps(ROWS, indent=1), [2, 6]),
        ("a.jsonl", json.dumps(ROWS), [1, 1]),
        ("a.json", "\n".join(json.dumps(row, indent=1) for row in ROWS), [1, 5]),
        ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=1), [4, 8]),
    ],
)
def test_json_in_every_shape(write, name: str, text: str, lines: list[int]):
    raws = read(Path(write(name, text)))
    assert [raw.row for raw in raws] == ROWS
    assert [raw.line for raw in raws] == lines


def test_object_of_rows_gives_its_keys_as_ids(write):
    text = json.dumps({"a7": ROWS[0], "b8": {**ROWS[1], "id": "own"}}, indent=1)
    raws = read(Path(write("a.json", text)))
    assert [raw.row["id"] for raw in raws] == ["a7", "own"]
    assert [raw.line for raw in raws] == [2, 6]


def test_one_row_is_a_row_and_not_a_wrapper(write):
    for row in ({"question": "q", "options": [{"key": "A", "text": "x"}]}, {"messages": [{"role": "user"}]}):
        assert read(Path(write("a.jsonl", json.dumps(row))))[0].row == row


def test_bad_lines_are_handed_on(write):
    raws = read(Path(write("a.jsonl", LINES[0].encode() + b'\n{"question": \n[1]\n\xff\n' + LINES[1].encode())))
    assert [(raw.line, raw.row is None) for raw in raws] == [(1, False), (2, True), (3, True), (4, True), (5, False)]
    assert [raw.reason.split(" (")[0] for raw in raws[1:4]] == [
        "not JSON",
        "a row is an object, not list",
        "not UTF-8",
    ]


def test_csv_keeps_quotes_newlines_and_counts_lines(write):
    text = '\ufeffquestion,answer\r\n"a ""b"",\nc",d\r\n\r\ne,f,g\r\nh,i\r\n'
    raws = read(Path(write("a.csv", text)))
    assert [raw.line for raw in raws] == [2, 5, 6]
    assert raws[0].row == {"question": 'a "b",\nc', "answer": "d"}
    assert raws[1].reason == "3 cells under a header of 2"
    long = "x" * 200_000
    assert read(Path(write("b.tsv", f"question\tanswer\n{long}\ty\n")))[0].row == {"question": long, "answer": "y"}


def test_csv_without_header_is_recognised_by_its_gold_letter(write):
    raws = read(Path(write("a.csv", "Which glaze?,blue,green,B\nWhich clay?,red,white,A\n")))
    assert [raw.row["answer"] for raw in raws] == ["B", "A"]
    assert raws[0].row == {"question": "Which glaze?", "A": "blue", "B": "green", "answer": "B"}
    header = read(Path(write("b.csv", "id,question,A,B,C,D\n0,q,w,x,y,z\n")))
    assert header[0].row["question"] == "q"


def test_parquet(tmp_path: Path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert [(raw.line, raw.row) for raw in read(tmp_path / "a.parquet")] == [(1, ROWS[0]), (2, ROWS[1])]
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(DanluError, match="not a readable Parquet"):
        read(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", gzip.compress(LINES[0].encode(), mtime=0), "gzip-compressed"),
        ("a.csv", b"PK\x03\x04....", "zip archive"),
        ("a.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-lfs pointer"),
        ("a.json", b"", "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.csv", b"question,answer\n", "has no rows"),
        ("a.csv", "问题,答案\n一,二\n".encode("gb18030"), "line 1 is not UTF-8\nhint: .*GB18030"),
        ("a.json", "[{}]".encode("utf-16"), "not UTF-8 text\nhint: .*UTF-16"),
        ("a.json", b'[{"a": 1},\n{"a": 2}', "line 2 is not JSON: expected"),
        ("a.json", b'[{"a": 1},\n{"a": }]', "line 2 is not JSON"),
        ("a.json", b"[{}] []", "goes on after its array"),
        ("a.txt", b"just words", "starts with neither"),
        ("a.csv", b"a,a\n1,2\n", "column 'a' twice"),
        ("a.json", b'{"train": [{}], "test": [{}]}', "several lists: train, test"),
    ],
)
def test_what_cannot_be_read_says_so(write, name: str, content: bytes, says: str):
    with pytest.raises(DanluError) as error:
        read(Path(write(name, content)))
    assert __import__("re").search(says, str(error.value)), str(error.value)
