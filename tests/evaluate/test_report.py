"""The report page: complete, self-contained, and deaf to markup in data."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from danlu.evaluate.report import examples, html, markdown, side

EVIL = "<script>alert('x')</script> & \"q\""
STAGE = {"n": 300, "format_rate": 0.9, "stop_rate": 1.0, "seconds": 12.3}
RESULT: dict[str, Any] = {
    "title": f"Demo {EVIL}",
    "notice": f"A miniature world {EVIL}",
    "seed": 42,
    "seconds": 140.0,
    "stages": [
        {"name": f"base {EVIL}", "accuracy": 0.1, "ci": [0.07, 0.14], **STAGE},
        {"name": "sft", "accuracy": 0.55, "ci": [0.5, 0.6], **STAGE},
    ],
    "steps": [
        {"from": "base", "to": "sft", "difference": 0.45, "ci": [0.4, 0.5], "p": 1e-9, "verdict": "better", "n": 300},
        {"from": "sft", "to": "grpo", "difference": 0.0, "ci": [-0.1, 0.1], "p": 1.0, "verdict": "cannot tell"}
        | {"sentence": f"cannot tell yet {EVIL}"},
    ],
    "export": {"ok": True, "checks": [{"name": f"logits {EVIL}", "ok": True, "value": 1e-5, "limit": 1e-3}]},
    "artifacts": {"model": f"runs/x/{EVIL}"},
    "tasks": [{"name": f"task {EVIL}", "n": 100, "accuracy": {"base": 0.1, "sft": None}}],
    "controls": [{"name": f"shuffled {EVIL}", "accuracy": 0.1, "ci": [0.0, 0.2], "expected": EVIL, "ok": False}],
    "examples": [
        {"id": kind, "question": EVIL, "target": EVIL, "kind": kind, "answers": [
            {"stage": "base", "reasoning": EVIL, "answer": EVIL, "outcome": "right"},
            {"stage": "sft", "reasoning": "", "answer": "", "outcome": "truncated"},
        ]}
        for kind in ("gained", "lost")
    ],
    "figures": [{"title": EVIL, "svg": f"<svg>{EVIL}</svg>"}, {"title": "p", "png": b"\x89PNG"}],
    "reproduce": {"versions": {"danlu": EVIL}, "seeds": {"eval": 1}, "commands": [f"danlu demo {EVIL}"]},
}  # fmt: skip


class Tags(HTMLParser):
    """Collects tags and checks that they are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags


def test_a_full_page() -> None:
    page = html(RESULT)
    tags = read(page)
    assert tags.seen.count("h2") == 8
    assert tags.seen.count("details") == 2
    assert "script" not in tags.seen
    assert EVIL not in page
    assert "better: +45.0 points, 95 % CI +40.0..+50.0, p &lt; 0.001, n = 300" in page
    assert page.index('class="verdict') < page.index("<table")
    assert page.index("lost · lost") < page.index("gained · gained")
    assert "2.3 min" in page
    assert "not measured" in page


def test_nothing_is_fetched() -> None:
    attributes = read(html(RESULT)).attributes
    links = [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]
    assert len(links) == 2
    assert all(link.startswith("data:image/") for link in links)
    assert not [name for name, _ in attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://", html(RESULT))


@pytest.mark.parametrize("missing", [None, *RESULT])
def test_every_part_may_be_missing(missing: str | None) -> None:
    read(html({key: value for key, value in RESULT.items() if key != missing} if missing else {}))


def test_long_outputs_are_cut() -> None:
    item = {"id": "x", "question": "?", "target": "B", "answers": [{"stage": "base", "answer": "y" * 50_000}]}
    item["answers"][0]["answer"] += "the end"  # type: ignore[index,operator]
    page = html({"examples": [item]})
    assert len(page) < 20_000
    assert "44,007 more characters" in page
    assert "ythe end</div>" in page  # what a model wrote last is what went wrong


def test_examples_from_rows() -> None:
    def row(name: str, outcome: str, output: str, answer: str) -> dict[str, Any]:
        known = {"benchmark": "quiz", "index": 0, "question": "?", "target": "B"}
        return {"id": name, "outcome": outcome, "output": output, "answer": answer, **known}

    base = [row(f"q{i}", "right" if i < 2 else "wrong", "<think>\nB?\n</think>\n\nB", "B") for i in range(4)]
    tuned = [row(f"q{i}", "right" if i in (1, 3) else "none", "<think>\nhm", "") for i in range(4)]
    found = examples(base, list(reversed(tuned)), names=("before", "after"))
    assert [(item["id"], item["kind"]) for item in found] == [("q0", "lost"), ("q3", "gained")]
    assert found[0]["answers"] == [
        {"stage": "before", "reasoning": "B?", "answer": "B", "outcome": "right"},
        {"stage": "after", "reasoning": "hm", "answer": "", "outcome": "none"},
    ]
    assert examples(base, tuned, lost=0, gained=0) == []
    assert side("x", row("q", "none", "abc", "not in it"))["reasoning"] == ""
    assert side("x", {"outcome": "none"})["answer"] == ""


def test_cells_know_their_column_on_narrow_screens() -> None:
    attributes = read(html(RESULT)).attributes
    labels = {value for name, value in attributes if name == "data-label"}
    assert {"Accuracy", "Questions", "95 % interval", "Verdict"} <= labels


def test_characters_that_act_are_written_out() -> None:
    page = html({"notice": "a\u202eb", "examples": [{"id": "\x1b", "question": "\ud800", "target": "", "answers": []}]})
    assert "a&lt;U+202E&gt;b" in page
    assert "&lt;U+001B&gt;" in page
    page.encode()


def test_markdown() -> None:
    table = markdown(("Stage", "Accuracy"), [("a|b", "10.0 %"), ("c\nd", "+2")])
    assert table == "| Stage | Accuracy |\n| :-- | --: |\n| a\\|b | 10.0 % |\n| c d | +2 |\n"
    assert markdown(("x",), []) == "| x |\n| :-- |\n"
