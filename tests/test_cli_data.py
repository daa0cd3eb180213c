"""What `danlu data` prints: everything said in 80 columns, in a pipe, in ASCII, and in colour."""

from __future__ import annotations

import copy
import io
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.cells import cell_len

from danlu.cli.data import print_pieces, print_report
from danlu.data.view import Piece

LONG = "患者男，58岁，反复胸痛三天，加重伴大汗两小时。" * 9
REPORT: dict[str, Any] = {
    "recipe": "pots",
    "model": "acme/clay",
    "think": {"style": "think", "opened_by": "model", "end_tokens": ["<|im_end|>"], "drops_reasoning": True},
    "ok": False,
    "rows": {"in": 19704, "kept": 18930, "rejected": 612, "train": 18430, "valid": 500}
    | {"repeats_of_valid": 41, "leaked": 121},
    "sources": [
        {"path": "hf://acme/pots-and-jars-of-the-whole-world/train-00000-of-00012.parquet", "in": 15000}
        | {"kept": 14700, "rejected": 300, "reasons": {"empty answer": 12, "duplicate": 288}},
        {"path": "data/陶器.jsonl", "in": 4704, "kept": 4392, "rejected": 312, "reasons": {"no question": 312}},
    ],
    "lengths": {"min": 41, "p50": 498, "p90": 1622, "p95": 2210, "p99": 3890, "max": 5388, "mean": 689.4}
    | {"max_length": 2048, "keeps_99": 3904, "lost": {"close": 0.0, "answer": 0.048, "end": 0.0612}}
    | {"histogram": {"edges": [0, 1024, 2048, 4096, 5632], "counts": [15000, 3000, 930, 1]}},
    "tokens": 13051422,
    "supervised_tokens": 9412777,
    "supervised_share": 0.7212,
    "packing": {"packs": 6721, "fill": 0.948},
    "mix": {"language": {"en": 30, "zh": 150}, "script": {}},
    "findings": [
        {"code": "odd", "level": "info", "count": 9, "of": 0, "what": "?", "do": "", "examples": ["a\x1b[31m\n[b]"]},
        {"code": "near", "level": "warning", "count": 77, "of": 18930, "what": "alike", "do": " ", "examples": []},
        {"code": "end-lost", "level": "error", "count": 1159, "of": 18930, "what": "Rows lose their end token. " * 6}
        | {"do": "raise data.max_length to 3904 and read what it costs; " * 2, "examples": [LONG, "short"]},
    ],
}  # fmt: skip
PIECES = [
    Piece("<|im_start|>user\n火\n\n", "context", 9),
    Piece("放 ", "supervised", 2),
    Piece("[M]\x1b[2J", "masked", 3),
    Piece("\n", "supervised", 1),
    Piece("<|im_end|>", "end", 1),
]


class Stdout(io.TextIOWrapper):
    """A standard output of any encoding, on a terminal or not."""

    def __init__(self, encoding: str, tty: bool) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="\n")
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    def text(self) -> str:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


Shown = Callable[..., str]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """shown(function, *its arguments, tty=, encoding=, columns=) -> what it wrote."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    def run(function: Callable[..., None], *given: Any, tty: bool = False, encoding: str = "utf-8", columns: int = 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        out = Stdout(encoding, tty)
        monkeypatch.setattr(sys, "stdout", out)
        function(*given)
        return out.text()

    return run


def bare(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_report_in_a_pipe(shown: Shown) -> None:
    lines = shown(print_report, REPORT).splitlines()
    assert lines[0] == "1 error, 1 warning: mend the data before you train."
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert max(map(cell_len, lines)) <= 80
    assert "tokens  min 41  p50 498  p90 1,622  p95 2,210  p99 3,890  max 5,388  mean 689" in lines
    assert "9,412,777 of 13,051,422 tokens carry loss (72.1 %); 6,721 packs, 94.8 % filled" in lines
    assert "language: zh 83.3 %, en 16.7 %" in lines
    assert [line.split()[:2] for line in lines if re.match("error|warning|info", line)] == [
        ["error", "end-lost"],
        ["warning", "near"],
        ["info", "odd"],
    ]
    assert "warning near  77 of 18,930 (0.4 %)" in lines
    assert "info    odd  9" in lines
    assert "          a<U+001B>[31m↵[b]" in lines
    example = next(line for line in lines if "患者男" in line)
    assert example.endswith("…")
    assert 78 <= cell_len(example) <= 80
    flat = " ".join(text.split())
    for said in (REPORT["findings"][2]["what"], f"do: {REPORT['findings'][2]['do']}"):
        assert said.strip() in flat  # broken into lines, nothing left out
    assert "A cut at max_length 2,048 loses the end token in 6.1 % and the answer in 4.8 % of the rows." in flat


def test_sources_stand_in_columns(shown: Shown) -> None:
    lines = shown(print_report, REPORT).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("  SOURCE"))
    head, long, why, wide, _ = lines[at : at + 5]
    assert re.fullmatch(r"  …\S+-00000-of-00012\.parquet +15,000 +14,700 +300", long)
    assert why == "    duplicate 288, empty answer 12"
    assert cell_len(head) == cell_len(long) == cell_len(wide)


def test_the_histogram(shown: Shown) -> None:
    lines = shown(print_report, REPORT).splitlines()
    at = next(n for n, line in enumerate(lines) if "▲ max_length" in line)
    assert lines[at - 7 : at + 2] == [
        "  ████",
        "  ████",
        "  ████",
        "  ████",
        "  ████████▂▂▂▂▁▁▁▁",
        "  ────────────────",
        "  0   5,632 tokens",
        "          ▲ max_length 2,048",
        "             ▲ 99 % fit in 3,904",
    ]


def test_many_bins_fit(shown: Shown) -> None:
    report = copy.deepcopy(REPORT)
    report["lengths"]["histogram"] = {"edges": list(range(0, 5140, 10)), "counts": [1] * 513}
    lines = shown(print_report, report).splitlines()
    bars = [line for line in lines if "█" in line]
    assert len(bars) == 5
    assert max(map(cell_len, lines)) <= 80
    for limit, mark in ((5130, "max_length 5,130 ▲"), (9000, "max_length 9,000 → ▲")):
        report["lengths"]["max_length"] = limit
        assert mark in shown(print_report, report)


def test_a_report_in_ascii(shown: Shown) -> None:
    text = shown(print_report, REPORT, encoding="ascii")
    lines = text.splitlines()
    assert "  ################" in lines
    assert "          ^ max_length 2,048" in lines
    assert r"  data/\u9676\u5668.jsonl" in text
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("columns", [10, 30, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_any_width(shown: Shown, columns: int, encoding: str) -> None:
    text = shown(print_report, REPORT, columns=columns, encoding=encoding)
    assert "mend the data" in text
    if columns == 200:
        assert max(map(cell_len, text.splitlines())) <= 110


def test_a_report_of_nothing(shown: Shown) -> None:
    lengths = dict.fromkeys(REPORT["lengths"], 0) | {
        "lost": {"close": 0.0, "answer": 0.0, "end": 0.0},
        "histogram": {"edges": [0], "counts": []},
    }
    empty = {"ok": True, "findings": [], "sources": [], "lengths": lengths, "mix": {"language": {}, "script": {}}}
    nothing = {"rows": dict.fromkeys(REPORT["rows"], 0), "tokens": 0, "supervised_tokens": 0, "supervised_share": 0.0}
    text = shown(print_report, REPORT | empty | nothing | {"packing": {"packs": 0, "fill": 0.0}})
    assert text.startswith("0 errors, 0 warnings: ready to train.\n")
    assert "SOURCE" not in text


def test_colours_say_the_same(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = shown(print_report, REPORT)
    coloured = shown(print_report, REPORT, tty=True)
    assert "\x1b[1;31merror   \x1b[0m" in coloured
    assert bare(coloured) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(print_report, REPORT, tty=True) == plain
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich would obey it in a pipe
    assert shown(print_report, REPORT) == plain


def test_pieces_in_a_pipe(shown: Shown) -> None:
    assert shown(print_pieces, "row-1", PIECES) == (
        "row-1  16 tokens\n"
        "context 9  loss 3  masked 3  end 1\n"
        "context  | <|im_start|>user↵\n"
        "context  | 火↵\n"
        "context  | ↵\n"
        "loss     | 放 \n"
        "masked   | [M]<U+001B>[2J\n"
        "loss     | ↵\n"
        "end      | <|im_end|>\n"
    )
    assert "context  | \\u706b\\n\n" in shown(print_pieces, "row-1", PIECES, encoding="ascii")


def test_pieces_in_colour(shown: Shown) -> None:
    text = shown(print_pieces, "row-1", PIECES, tty=True)
    head, legend, *rest = text.split("\n")
    assert bare(head) == "row-1  16 tokens"
    assert bare(legend) == "context 9  loss 3  masked 3  end 1"
    assert bare("\n".join(rest)) == "<|im_start|>user↵\n火↵\n↵\n放 [M]<U+001B>[2J↵\n<|im_end|>\n"
    assert "\x1b[32m放 \x1b[0m\x1b[7;35m[M]" in text
    assert "\x1b[1;31m<|im_end|>\x1b[0m" in text
    assert "\x1b[2J" not in text


def test_a_row_that_never_ends(shown: Shown) -> None:
    assert "this row does not teach the model to stop\n" in shown(print_pieces, "row-1", PIECES[:3])
    assert "teach" not in shown(print_pieces, "row-1", PIECES)
