"""The page of a comparison: what it shows, in which order, and that data never becomes markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from danlu.evaluate.compare_page import MOST_ITEMS, _quotas, markdown, page, split_options
from danlu.evaluate.verdict import compare

EVIL = "<script>alert('x')</script>\"&\u202e"
OPTIONS = {"A": "苯妥英钠", "B": "丙戊酸钠", "C": "卡马西平"}
TITLES = ("before", "after")
NAMES = {"r": "right", "w": "wrong", "n": "none", "a": "ambiguous", "t": "truncated"}
Rows = list[dict[str, Any]]


def side(outcomes: str, name: str = "cmexam", **extra: Any) -> Rows:
    listed = "".join(f"\n{letter}. {said}" for letter, said in OPTIONS.items())
    return [
        {
            "benchmark": name,
            "id": f"q{i}",
            "index": 0,
            "question": f"第{i}题：可引起牙龈增生的是{listed}",
            "options": OPTIONS,
            "target": "A",
            "output": f"<think>\nthought {i}\n</think>\n\n答案是{'A' if letter == 'r' else 'B'}",
            "answer": f"答案是{'A' if letter == 'r' else 'B'}",
            "outcome": NAMES[letter],
            "extracted": {"r": "A", "w": "B"}.get(letter),
            "how": f"how {letter}",
            "finish": "length" if letter == "t" else "stop",
            "well_formed": letter != "t",
            "tokens": 100 + i,
            "repetition": 0.0,
            **extra,
        }
        for i, letter in enumerate(outcomes)
    ]


def compared(tmp_path: Path, base: Rows, tuned: Rows) -> dict[str, Any]:
    for name, rows in (("a", base), ("b", tuned)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return compare(tmp_path / "a.jsonl", tmp_path / "b.jsonl")


def shown(tmp_path: Path, base: Rows, tuned: Rows, titles: tuple[str, str] = TITLES) -> str:
    return page(compared(tmp_path, base, tuned), base, tuned, titles)


class Tags(HTMLParser):
    """Collects tags and attributes and checks that tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    return tags


def full() -> tuple[Rows, Rows]:
    """Every section, and EVIL wherever a model or a source can write."""
    base, tuned = side("w" * 30 + "rrnat" * 4), side("r" * 30 + "wwwww" * 4)
    for i, (a, b) in enumerate(zip(base, tuned, strict=True)):
        a |= {"subject": f"{EVIL}{i % 2}", "budgets": {"64": "truncated", "512": a["outcome"]}}
        b |= {"subject": f"{EVIL}{i % 2}", "budgets": {"64": b["outcome"], "512": b["outcome"]}, "leaked": i < 5}
        for row in (a, b):
            row |= {"benchmark": f"cmexam{EVIL}", "id": f"{EVIL}{i}", "language_match": True, "task": EVIL}
            row |= {"question": f"{EVIL}{row['question']}", "how": EVIL, "options": {**OPTIONS, EVIL: EVIL}}
            row |= {"output": f"{EVIL}{row['output']}{EVIL}", "answer": f"{row['answer']}{EVIL}"}
    base[30]["extracted"] = tuned[30]["extracted"] = EVIL
    base[30] |= {"options": None, "target": EVIL, "aliases": [EVIL]}
    tuned[30] |= {"options": None, "target": EVIL, "aliases": [EVIL]}
    for order in (1, 2):
        base += [{**row, "index": order, "shuffle": order} for row in base[:10]]
        tuned += [{**row, "index": order, "shuffle": order} for row in tuned[:10]]
    control = {"name": f"cmexam{EVIL}@answer_only", "mode": "answer_only"}
    asked = [{**row, "id": f"{EVIL}{i}"} for i, row in enumerate(side("rw" * 25, **control))]
    return base + asked, tuned + asked


def test_a_full_page(tmp_path: Path) -> None:
    text = shown(tmp_path, *full(), titles=(f"base {EVIL}", f"tuned {EVIL}"))
    tags = read(text)
    assert "script" not in tags.seen
    assert EVIL not in text
    assert "alert('x')" not in text
    assert "\u202e" not in text
    heads = re.findall(r"<h2[^>]*>([^<]*)", text)
    assert heads == [
        "Differences",
        "Benchmarks",
        "How the answers ended",
        "How the model writes",
        "Questions in the training data",
        "Option order",
        "Shorter answers",
        "By group",
        "Answers to read",
        "Lost: 8",
        "Gained: 30",
    ]
    assert text.index('class="verdict ') < text.index("<svg") < text.index("<table")
    assert text.index('id="lost-0"') < text.index('id="gained-0"')
    assert "the answer-only control shows +0.0" in text
    assert "of 3 after" not in text  # answers under shuffled options are not read


def test_nothing_is_fetched_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    text = shown(tmp_path, *full())
    attributes = read(text).attributes
    links = [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]
    names = {value for name, value in attributes if name == "id"}
    assert len(links) >= 6
    assert all(link.startswith("#") and link[1:] in names for link in links)
    assert len(names) == len([value for name, value in attributes if name == "id"])
    assert not [name for name, _ in attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://", text)


def test_both_schemes_and_narrow_screens_are_styled(tmp_path: Path) -> None:
    text = shown(tmp_path, side("rw"), side("rr"))
    assert "prefers-color-scheme: dark" in text
    assert "max-width: 40rem" in text
    style = text[text.index("<style>") : text.index("</style>")]
    used = set(re.findall(r"var\((--[a-z]+)\)", text))
    assert used <= set(re.findall(r"(--[a-z]+):", style))


def test_the_forest_is_to_scale(tmp_path: Path) -> None:
    base = side("w" * 40, "up") + side("r" * 30 + "w" * 10, "down")
    tuned = side("r" * 20 + "w" * 20, "up") + side("r" * 10 + "w" * 30, "down")
    found = compared(tmp_path, base, tuned)
    text = page(found, base, tuned, TITLES)
    forest = text[text.index('class="forest"') : text.index("Percentage points")]
    zero = float(re.findall(r'class="zero" x1="([\d.]+)%"', forest)[0])
    marks = re.findall(r'<g class="(\w+)">.*?x1="([\d.]+)%" x2="([\d.]+)%".*?cx="([\d.]+)%"', forest)
    assert [kind for kind, *_ in marks] == ["better", "worse"]
    (low, high, up), (_, _, down) = ([float(value) for value in mark[1:]] for mark in marks)
    assert up - zero == pytest.approx(zero - down, abs=0.02)  # +50 and -50 points
    assert low < up < high
    ci = found["benchmarks"][0]["ci"]
    assert (low - zero) / (up - zero) == pytest.approx(ci[0] / 0.5, abs=0.01)
    ticks = {label: float(x) for x, label in re.findall(r'<text x="([\d.]+)%"[^>]*>([^<]+)<', forest)}
    assert ticks["0"] == pytest.approx(zero)
    assert len(ticks) >= 4
    assert (min(ticks.values()), max(ticks.values())) == (0, 100)
    for label, x in ticks.items():
        assert x - zero == pytest.approx(float(label) / 50 * (up - zero), abs=0.05)
    assert all(0 <= x <= 100 for x in [*ticks.values(), low, high])


def test_bars_hold_every_share(tmp_path: Path) -> None:
    text = shown(tmp_path, side("rrrrwwwnat"), side("r" * 10))
    bars = re.findall(r'<svg height="23".*?</svg>', text)
    widths = [[float(width) for width in re.findall(r'width="([\d.]+)%"', bar)] for bar in bars]
    assert widths == [[40.0, 30.0, 10.0, 10.0, 10.0], [100.0]]
    starts = [float(x) for x in re.findall(r'<rect x="([\d.]+)%"', bars[0])]
    assert starts == pytest.approx([0, 40, 70, 80, 90])
    assert "right 40.0 %, wrong 30.0 %, none 10.0 %" in bars[0]


def test_how_the_model_writes_is_marked_where_it_changed(tmp_path: Path) -> None:
    text = shown(tmp_path, side("r" * 20), side("r" * 10 + "t" * 10))
    assert '<span class="no">▼ 100.0 % → 50.0 %</span>' in text
    assert '<span class="ok">▲ 50.0 % → 100.0 %</span>' in shown(tmp_path, side("r" * 10 + "t" * 10), side("r" * 20))
    assert "▼ 100.0 % →" not in shown(tmp_path, side("r" * 20), side("r" * 19 + "t"))
    assert ">110 → 110<" in text


def test_leaks_are_shown_with_and_without(tmp_path: Path) -> None:
    base, tuned = side("w" * 40 + "rw" * 20), side("r" * 40 + "rw" * 20)
    assert "Questions in the training data" not in shown(tmp_path, base, tuned)
    for i, row in enumerate(tuned):
        row["leaked"] = i < 40
    text = shown(tmp_path, base, tuned)
    leaks = text[text.index("Questions in the training data") :]
    rows = re.findall(r"<tr>.*?</tr>", leaks)[1:3]
    assert "40 of 80" in rows[0]
    assert "+50.0" in rows[0]
    assert "+0.0" in rows[1]
    assert 'class="verdict open"' in text
    assert "without 40 leaked" in text
    assert "in the training data</div>" in text  # beside the question


def test_a_question_and_both_answers(tmp_path: Path) -> None:
    text = shown(tmp_path, side("r"), side("w", subject="药理学"))
    item = text[text.index('<details class="item"') :]
    assert '<code>q0</code> gold <b>A</b> · <b class="ok">A</b> → <b class="no">B</b>' in item
    assert item.count("苯妥英钠") == 1  # options stand once, marked
    assert '<li class="gold"><b>A</b> 苯妥英钠<small class="ok">gold · base</small></li>' in item
    assert '<li class=""><b>B</b> 丙戊酸钠<small class="no">tuned</small></li>' in item
    assert "<summary>reasoning</summary>" in item
    assert item.index("答案是A") < item.index("答案是B")
    assert "read as B · how w · 100 tokens" in item
    assert "药理学" in item


def test_several_letters(tmp_path: Path) -> None:
    text = shown(tmp_path, side("r", target="AC", extracted="AC"), side("w", target="AC", extracted="BC"))
    marks = re.findall(r'<li class="(\w*)"><b>(\w)</b> [^<]*<small class="(\w+)">([^<]*)<', text)
    assert marks == [
        ("gold", "A", "ok", "gold · base"),
        ("", "B", "no", "tuned"),
        ("gold", "C", "ok", "gold · base · tuned"),
    ]


def test_what_is_wrong_with_an_answer_is_told(tmp_path: Path) -> None:
    tuned = side("t", repetition=0.62, language_match=False)
    tuned[0] |= {"answer": "", "output": "<think>\nround and round"}
    text = shown(tmp_path, side("r"), tuned)
    assert "how t · cut at the limit · 100 tokens · repeats itself, 62 % · not in the question&#x27;s language" in text
    assert "(no answer)" in text
    assert "round and round" in text


def test_several_answers_show_one_that_changed(tmp_path: Path) -> None:
    base = [*side("r"), *({**row, "index": 1} for row in side("r"))]
    tuned = [*side("r"), *({**row, "index": 1, "answer": "the second"} for row in side("w"))]
    text = shown(tmp_path, base, tuned)
    assert "right in 2 of 2 answers before, in 1 of 2 after" in text
    assert "the second" in text
    back = shown(tmp_path, tuned, base)  # gained
    assert "right in 1 of 2 answers before, in 2 of 2 after" in back
    assert "the second" in back


def test_lost_and_gained_are_limited_and_fairly(tmp_path: Path) -> None:
    base = side("r" * 300, "large") + side("r" * 7, "small") + side("w" * 5, "up")
    tuned = side("w" * 300, "large") + side("w" * 7, "small") + side("r" * 5, "up")
    text = shown(tmp_path, base, tuned)
    assert text.count('<details class="item"') == MOST_ITEMS + 5
    assert '<h2 id="lost">Lost: 307 <span class="quiet">(107 left out)</span></h2>' in text
    assert '<h2 id="gained">Gained: 5</h2>' in text
    assert "Lost on small: 7</span>" in text
    assert "Lost on large: 300 <span" in text
    assert text.count('<details class="item" open>') == 9
    assert _quotas([300, 0, 7, 150], 200) == [96, 0, 7, 97]
    assert _quotas([3, 2], 200) == [3, 2]
    assert sum(_quotas([1] * 300, 200)) == 200


def test_controls_are_shown_but_not_read(tmp_path: Path) -> None:
    control = {"name": "cmexam@no_think", "mode": "no_think"}
    text = shown(tmp_path, side("rw") + side("rr", **control), side("wr") + side("ww", **control))
    assert "cmexam<wbr>@no_<wbr>think" in text
    assert "control</span>" in text
    assert text.count('<details class="item"') == 2
    assert "1 control beside" in text


def test_rows_without_texts_and_no_rows(tmp_path: Path) -> None:
    def bare(rows: Rows) -> Rows:
        kept = ("benchmark", "id", "index", "outcome", "extracted", "how")
        return [{key: row[key] for key in kept} for row in rows]

    base, tuned = bare(side("rw")), bare(side("wr"))
    text = shown(tmp_path, base, tuned)
    read(text)
    assert "These rows hold no question" in text
    found = compared(tmp_path, base, tuned)
    assert "Answers to read" not in page(found, [], [], TITLES)
    assert "these rows do not hold it" in page(found, base[:1], tuned[:1], TITLES)


def test_nothing_lost(tmp_path: Path) -> None:
    assert "No question was lost." in shown(tmp_path, side("w" * 30), side("r" * 30))


def test_a_comparison_made_before_these_fields(tmp_path: Path) -> None:
    base, tuned = side("rw" * 10, task="x"), side("rr" * 10, task="x")
    tuned[0]["task"] = base[0]["task"] = "y"
    found = compared(tmp_path, base, tuned)
    old = ("name", "n", "base", "tuned", "difference", "ci", "p", "gained", "lost", "minimum_detectable")
    old += ("p_adjusted", "verdict", "sentence", "format_rate", "stop_rate", "gained_ids", "lost_ids")
    task = [{key: value for key, value in entry.items() if key in old} for entry in found["benchmarks"][0]["tasks"]]
    found["benchmarks"] = [{**{key: found["benchmarks"][0][key] for key in old}, "tasks": task}]
    read(page(found, base, tuned, TITLES))
    assert markdown(found).startswith("**better: +50.0 points")


def test_every_question_leaked_is_drawn(tmp_path: Path) -> None:
    read(shown(tmp_path, side("r" * 4, leaked=True), side("w" * 4, leaked=True)))


def test_warnings_stand_on_top(tmp_path: Path) -> None:
    base, tuned = side("rw"), side("rr")
    found = compared(tmp_path, base, tuned)
    found["settings_differ"] = ["max_tokens: 64 -> 128"]
    found["unpaired"] = {"base": 2, "tuned": 0, "ids": ["cmexam/q9"]}
    text = page(found, base, tuned, TITLES)
    assert text.index("not asked alike: max_tokens: 64 -&gt; 128") < text.index("<svg")
    assert "2 only in base, 0 only in tuned (cmexam/q9 …)" in text
    assert "- not asked alike: max_tokens: 64 -> 128\n" in markdown(found)


@pytest.mark.parametrize(
    ("question", "parts"),
    [
        ("首选是：\nA. 苯妥英钠\nB. 丙戊酸钠\nC. 卡马西平\n请作答", ("首选是：", "请作答")),
        ("首选是：A.苯妥英钠 B.丙戊酸钠 C.卡马西平", ("首选是：", "")),
        ("no options here", ("no options here", "")),
        ("A. 苯妥英钠 only one", ("A. 苯妥英钠 only one", "")),
    ],
)
def test_options_are_cut_out_of_the_question(question: str, parts: tuple[str, str]) -> None:
    assert split_options(question, OPTIONS) == parts


def test_markdown(tmp_path: Path) -> None:
    base, tuned = side("w" * 60, "a|b<i>"), side("r" * 30 + "t" * 30, "a|b<i>")
    for i, row in enumerate(tuned):
        row["leaked"] = i < 5
    text = markdown(compared(tmp_path, base, tuned))
    lines = text.splitlines()
    assert lines[0].startswith("**better: +45.5 points")
    assert lines[2] == "| Benchmark | n | Base | Tuned | Points | 95 % CI | p | Gained | Lost | Verdict |"
    assert lines[4].startswith("| a&#124;b&#60;i> | 60 | 0.0 % | 50.0 % | +50.0 | ")
    assert lines[4].endswith(" | < 0.001 | 30 | 0 | better |")
    assert "<i>" not in text
    assert "without 5 leaked questions: better: +45.5 points" in text
    assert "(stops by itself: 100.0 % → 50.0 %)" in text
    assert "\\" not in text
    rise = markdown(compared(tmp_path, side("w" * 30 + "t" * 30), side("r" * 60)))
    assert "stops by itself" not in rise  # only what fell qualifies the verdict
