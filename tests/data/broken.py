"""Files of which the number of rows is known, some of the rows broken in known ways; for the fuzz test."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable

Row = dict[str, object]
BOM = "\ufeff"


def rows_of(kind: str, dice: random.Random, n: int) -> list[Row]:
    """Good rows of one schema, each with its own question."""
    word = dice.choice(["glaze", "釉色", "émail", "🏺", "clay \"A\", 'B'", "a\u2028b", "tab\tand\nline"])
    made: dict[str, Callable[[int], Row]] = {
        "reasoned": lambda i: {"question": f"{word} {i}?", "think": f"because {i}\nso", "answer": f"{word}!"},
        "chat": lambda i: {
            "messages": [{"role": "user", "content": f"{word} {i}?"}, {"role": "assistant", "content": f"a {i}"}],
            "n": i,
        },
        "choice": lambda i: {
            "question": f"{word} {i}?",
            "options": {"A": "x", "B": "y", "C": word},
            "answer": "ABC"[i % 3],
        },
        "alpaca": lambda i: {"instruction": f"{word} {i}", "input": word, "output": f"<think>r</think>{word}"},
        "gold": lambda i: {"question": f"{word} {i}?", "answer": i},
    }
    return [made[kind](i) for i in range(n)]


def spoilt(row: Row, how: str) -> Row:
    """A row that is readable and holds what no row may hold."""
    key = next(key for key in ("answer", "output", "messages") if key in row)
    values: dict[str, object] = {
        "null": None,
        "nan": float("nan"),
        "nan text": "nan",
        "list": [{"deep": [None]}],
        "object": {"a": None},
        "boolean": True,
        "infinity": float("-inf"),
        "surrogate": "\ud800",
        "zero": "a\0b",
        "missing": None,
    }
    return {k: v for k, v in row.items() if k != key} if how == "missing" else {**row, key: values[how]}


SPOILS = ["null", "nan", "nan text", "list", "object", "boolean", "infinity", "surrogate", "zero", "missing"]
BREAKS = ["cut", "bytes", "twice", "deep", "digits", "zero byte", "garbage", "line break", "no object", "empty object"]


def broken(line: bytes, how: str) -> bytes:
    """One line of JSON made unreadable: still one row."""
    if how == "cut":
        return line[: len(line) // 2]
    if how == "bytes":
        return line.replace(b'": "', b'": "\xff\xfe', 1) if b'": "' in line else b'{"\xff": 1}'
    if how == "twice":
        return line[:-1] + b', "answer": "x", "answer": "y"}'
    if how == "deep":
        return line[:-1] + b', "x": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    if how == "digits":
        return line[:-1] + b', "x": ' + b"9" * 5000 + b"}"
    if how == "zero byte":
        return line.replace(b'": ', b'": \0', 1)
    if how == "garbage":
        return line + b" and more"
    if how == "line break":
        return line[:-1] + b', "x": "two\nlines"}'
    return {"no object": b"[1, 2]", "empty object": b"{}"}[how]


def as_lines(parts: list[bytes], dice: random.Random, *, whole: bool) -> bytes:
    """JSON lines in one of the ways they are found; `whole`: no part is broken, so that lines may be joined."""
    end = dice.choice([b"\n", b"\r\n", b"\n\n", b"\r"])
    if whole:
        end = dice.choice([end, b"", b" ", BOM.encode(), BOM.encode() + b"\n", b"\n" + BOM.encode()])
    text = end.join(parts) + dice.choice([b"", b"\n", b"\n \n"])
    return dice.choice([b"", BOM.encode()]) + text


def as_json(rows: list[Row], dice: random.Random) -> bytes:
    """One of the shapes in which rows stand in JSON."""
    indent, ascii_only = dice.choice([None, None, 0, 1, "\t"]), dice.random() < 0.5

    def dump(value: object) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only)

    shapes = {
        "array": lambda: dump(rows),
        "wrapper": lambda: dump({dice.choice(["data", "rows", "train"]): rows}),
        "with version": lambda: dump({"version": [1], "data": rows, "n": {"x": 1}}),
        "keys": lambda: dump({f"k{i}": row for i, row in enumerate(rows)}),
        "one after another": lambda: dice.choice(["\n", "", " ", BOM, "\r\n"]).join(dump(row) for row in rows),
    }
    text = shapes[dice.choice(list(shapes))]()
    text = text.replace("\n", dice.choice(["\n", "\r\n", "\r"]))
    return (dice.choice(["", BOM, "\n ", BOM + "\n"]) + text + dice.choice(["", "\n", " \n"])).encode(
        "utf-8", "replace"
    )


CELL_BREAKS = ["short", "long", "open quote", "loose quote", "bytes", "header", "blank", "zero"]


def as_csv(rows: list[Row], dice: random.Random, comma: str) -> tuple[bytes, int]:
    """A table with broken lines, and how many rows it has."""
    out = io.StringIO()
    quoting = dice.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(out, delimiter=comma, quoting=quoting, lineterminator=dice.choice(["\n", "\r\n", "\r"]))
    writer.writerow(rows[0])
    count = 0
    for row in rows:
        how = dice.choice(
            ["", "", "", "short", "long", "open quote", "loose quote", "bytes", "header", "blank", "zero"]
        )
        cells = [str(value).replace("\n", " ").replace('"', "") for value in row.values()]
        if how == "short":
            cells.pop()
        if how == "long":
            cells.append("one more")
        if how == "bytes":
            cells[0] += "BYTES"
        if how == "zero":
            cells[0] += "\0"
        if how == "header":
            cells = list(row)
        if how == "open quote":
            out.write(f'"open{comma}'.join(["", *cells[:1]]) + "\n")
        elif how == "loose quote":
            out.write(f'"a" b{comma}' + comma.join(cells[1:]) + "\n")
        else:
            writer.writerow(cells)
        count += 1
        if how == "blank":
            out.write("\n")
    text = dice.choice(["", BOM]) + out.getvalue()
    return text.encode().replace(b"BYTES", b"\xff\xfe"), count


def fuzzed(seed: int) -> tuple[str, bytes, int]:
    """(file name, content, rows in it)."""
    dice = random.Random(seed)
    kind = dice.choice(["reasoned", "chat", "choice", "alpaca", "gold"])
    rows = rows_of(kind, dice, dice.randint(1, 12))
    if dice.random() < 0.3:  # two schemas in one file
        rows += rows_of(dice.choice(["reasoned", "chat", "alpaca"]), dice, dice.randint(1, 5))
    way = dice.choice(["lines", "lines", "json", "csv", "tsv"])
    if way in ("csv", "tsv"):
        flat = rows_of("reasoned", dice, len(rows))
        return f"a.{way}", *as_csv(flat, dice, "," if way == "csv" else "\t")
    rows = [spoilt(row, dice.choice(SPOILS)) if dice.random() < 0.3 else row for row in rows]
    if way == "json":
        return dice.choice(["a.json", "a.jsonl"]), as_json(rows, dice), len(rows)
    share = dice.choice([0.0, 0.3])
    parts = [json.dumps(row, ensure_ascii=dice.random() < 0.5).encode("utf-8", "replace") for row in rows]
    breaks = [dice.choice(BREAKS) if dice.random() < share else "" for _ in parts]
    lines = [broken(part, how) if how else part for part, how in zip(parts, breaks, strict=True)]
    return dice.choice(["a.jsonl", "a.json"]), as_lines(lines, dice, whole=not any(breaks)), len(rows)
