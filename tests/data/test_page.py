"""The page of a data check: everything in it, deaf to markup in data, nothing fetched."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.page import by_level, lost_words, page, percent, place, verdict, visible

EVIL = "<script>alert('x')</script> & \"q\""
REPORT: dict[str, Any] = {
    "recipe": f"pots {EVIL}",
    "model": "acme/clay",
    "think": {"style": "think", "opened_by": "model", "end_tokens": ["<|im_end|>"], "drops_reasoning": True},
    "ok": False,
    "rows": {"in": 19704, "kept": 18930, "rejected": 612, "train": 18430, "valid": 500}
    | {"repeats_of_valid": 41, "leaked": 121},
    "sources": [
        {"path": f"陶/{EVIL}.jsonl", "in": 19704, "kept": 19092, "rejected": 612, "reasons": {"empty": 12, EVIL: 600}},
        {"path": "none.csv", "in": 0, "kept": 0, "rejected": 0, "reasons": {}},
    ],
    "lengths": {"min": 41, "p50": 498, "p90": 1622, "p95": 2210, "p99": 3890, "max": 5388, "mean": 689.4}
    | {"max_length": 2048, "keeps_99": 3904, "lost": {"close": 0.0, "answer": 0.048, "end": 0.0612}}
    | {"histogram": {"edges": [0, 1024, 2560, 4096, 5632], "counts": [15000, 3000, 930, 0]}},
    "tokens": 13051422,
    "supervised_tokens": 9412777,
    "supervised_share": 0.7212,
    "packing": {"packs": 6721, "fill": 0.948},
    "mix": {"language": {"en": 30, "zh": 150, EVIL: 1}, "script": {}},
    "findings": [
        {"code": "odd", "level": "info", "count": 9, "of": 0, "what": EVIL, "do": "", "examples": []},
        {"code": "near", "level": "warning", "count": 77, "of": 18930, "what": "alike", "do": EVIL, "examples": [EVIL]},
        {"code": "few", "level": "error", "count": 3, "of": 18930, "what": "x", "do": "look", "examples": ["a\ud83d"]},
        {"code": "lost", "level": "error", "count": 1159, "of": 18930, "what": "y", "do": "", "examples": ["y" * 9999]},
    ],
}  # fmt: skip
EMPTY = REPORT | {
    "ok": True,
    "rows": dict.fromkeys(REPORT["rows"], 0),
    "sources": [],
    "lengths": dict.fromkeys(REPORT["lengths"], 0)
    | {"lost": dict.fromkeys(("close", "answer", "end"), 0.0), "histogram": {"edges": [0], "counts": []}},
    "tokens": 0,
    "supervised_tokens": 0,
    "supervised_share": 0.0,
    "packing": {"packs": 0, "fill": 0.0},
    "mix": {"language": {}, "script": {}},
    "findings": [],
}


class Tags(HTMLParser):
    """Collects tags and text, and checks that tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [own for name, own in self.seen if name == tag and attributes.items() <= own.items()]


def read(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    return tags


def test_a_full_page() -> None:
    text = page(REPORT, f"Check {EVIL}")
    text.encode()  # can be written
    tags = read(text)
    assert "2 errors, 1 warning: mend the data before you train." in tags.text
    assert text.index('class="verdict error"') < text.index("<article")
    levels = [(own["class"] or "").removeprefix("finding ") for own in tags.of("article")]
    assert levels == ["error", "error", "warning", "info"]
    assert tags.text.index("1,159 of 18,930 (6.1 %)") < tags.text.index("3 of 18,930 (< 0.1 %)")
    assert len(tags.of("details")) == 3  # a finding without examples has none
    assert f"What to do: {EVIL}" in tags.text
    assert f"陶/{EVIL}.jsonl" in tags.text
    assert f"{EVIL}: 600empty: 12" in tags.text  # reasons, the commonest first
    assert tags.text.index("zh150 82.9 %") < tags.text.index("en30")
    assert "Script" not in tags.text
    assert "72.1 % of the tokens carry loss" in tags.text
    assert "y" * 2000 + " …" in tags.text
    assert "y" * 2001 not in tags.text


def test_nothing_runs_and_nothing_is_fetched() -> None:
    text = page(REPORT, EVIL)
    tags = read(text)
    assert not tags.of("script")
    assert EVIL not in text
    assert not [name for _, own in tags.seen for name in own if name in ("src", "href") or name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://", text)
    assert "prefers-color-scheme: dark" in text


def test_the_histogram_parts_a_bar_at_max_length() -> None:
    tags = read(page(REPORT, "t"))
    kept, lost = tags.of("rect", **{"class": "bar"}), tags.of("rect", **{"class": "lost"})
    assert (len(kept), len(lost)) == (4, 4)  # in each of two drawings, the bin of 1024..2560 has both colours
    step = (920 - 44 - 14) / 4
    assert float(lost[0]["x"] or 0) == pytest.approx(44 + (1 + 2 / 3) * step, abs=0.1)
    assert tags.of("line", **{"class": "max"})[0]["x1"] == lost[0]["x"]
    assert float(tags.of("line", **{"class": "most"})[0]["x1"] or 0) == pytest.approx(44 + 2.875 * step, abs=0.1)
    heights = [float(own["height"] or 0) for own in kept[:1] + lost[:2]]
    assert heights == pytest.approx([208 - 40 - 168 / 16, 168 * 3 / 16, 168 * 0.93 / 16], abs=0.1)
    assert "max_length 2,048" in tags.text
    assert "99 % fit in 3,904" in tags.text


def test_a_limit_beyond_the_longest_row() -> None:
    report = copy.deepcopy(REPORT)
    report["lengths"] |= {"max_length": 8192, "lost": {"close": 0.0, "answer": 0.0, "end": 0.0}}
    tags = read(page(report, "t"))
    assert not tags.of("rect", **{"class": "lost"})
    assert "max_length 8,192 →" in tags.text
    assert "No row loses anything" in tags.text


def test_no_rows_at_all() -> None:
    tags = read(page(EMPTY, "t"))
    assert "0 errors, 0 warnings: ready to train." in tags.text
    assert "Nothing was found." in tags.text
    assert not tags.of("svg")


def test_one_bin_and_one_row() -> None:
    one = copy.deepcopy(REPORT)
    one["lengths"]["histogram"] = {"edges": [7, 8], "counts": [1]}
    read(page(one, "t"))
    one["lengths"]["histogram"] = {"edges": [7, 8], "counts": [0]}
    read(page(one, "t"))


def test_many_languages_are_folded() -> None:
    report = REPORT | {"mix": {"language": {f"l{n}": 100 - n for n in range(12)}, "script": {}}}
    text = read(page(report, "t")).text
    assert "5 others" in text
    assert "l6" in text
    assert "l7" not in text


@pytest.mark.parametrize(
    ("levels", "ok", "sentence"),
    [
        (["error"], False, "1 error, 0 warnings: mend the data before you train."),
        (["warning", "info"], True, "0 errors, 1 warning: ready to train; read the warnings first."),
        (["warning"], False, "0 errors, 1 warning: mend the data before you train."),
        (["info"], True, "0 errors, 0 warnings: ready to train."),
    ],
)
def test_verdict(levels: list[str], ok: bool, sentence: str) -> None:
    assert verdict({"ok": ok, "findings": [{"level": level} for level in levels]}) == sentence


def test_findings_are_ordered() -> None:
    assert [finding["code"] for finding in by_level(REPORT["findings"])] == ["lost", "few", "near", "odd"]


def test_what_a_cut_loses() -> None:
    assert lost_words(REPORT["lengths"]) == (
        "A cut at max_length 2,048 loses the end token in 6.1 % and the answer in 4.8 % of the rows."
    )


@given(st.sets(st.integers(0, 9999), min_size=2, max_size=20), st.integers(-10, 10100))
def test_a_place_is_inside_its_bin(some: set[int], value: int) -> None:
    edges = sorted(some)
    at = place(edges, value)
    assert 0 <= at <= len(edges) - 1
    if edges[0] <= value < edges[-1]:
        assert edges[int(at)] <= value < edges[int(at) + 1]
    assert place(edges, value + 1) >= at


def test_shares_never_read_as_nothing_or_all() -> None:
    assert [percent(x) for x in (0, 0.0004, 0.123, 0.9996, 1)] == ["0.0 %", "< 0.1 %", "12.3 %", "> 99.9 %", "100.0 %"]


def test_visible() -> None:
    assert visible("a\tb\nc\x1b[0m\r\u202e\ud83d\x85") == "a\tb\nc<U+001B>[0m<U+000D><U+202E><U+D83D><U+0085>"
    family = "👨\u200d👩\u200d👧 ❤️ 陶 é"
    assert visible(family) == family
