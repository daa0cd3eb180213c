"""Every trap that the data check names is set here once, and found; a clean set has no finding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import danlu
from danlu.data.check import check
from danlu.models.tokenizer import Speech, load_tokenizer, speech_of
from danlu.recipe import Model, Recipe
from danlu.think import ThinkFormat

TINY = Path(danlu.__file__).parent / "assets" / "tiny"
SPEECH = speech_of(Model(id="tiny"))
STEM = "关于青瓷的釉色，以下说法中正确而且完整的一项应该是哪一个呢"


def row(n: int, **changes: Any) -> dict[str, Any]:
    """A clean row; no two are near one another."""
    words = ["发热", "咳嗽", "头痛", "腹泻", "恶心", "胸闷", "乏力", "皮疹", "水肿", "心悸", "尿频", "便秘"]
    picked = [words[(n * 7 + k * (n % 5 + 1)) % len(words)] for k in range(4)]
    question = f"第{n}位病人说自己{'、'.join(picked)}，应当先做哪一项检查？编号{n * 7919}"
    return {
        "question": question,
        "think": f"先看{picked[0]}，再看{picked[-1]}，想一想。",
        "answer": "先验血。",
    } | changes


def checked(write, rows: list[dict[str, Any]], speech: Speech = SPEECH, **data: Any) -> dict[str, Any]:
    value: dict[str, Any] = {"name": "r", "domain": "pottery", "stages": ["sft"]}
    value["data"] = {"train": write("rows.jsonl", rows), "max_length": 400, **data}
    if "benchmarks" in value["data"]:
        value["eval"] = {"benchmarks": value["data"].pop("benchmarks")}
    return check(Recipe.model_validate(value), speech)


def codes(report: dict[str, Any]) -> dict[str, tuple[str, int]]:
    return {finding["code"]: (finding["level"], finding["count"]) for finding in report["findings"]}


CLEAN = [row(n) for n in range(12)]


def test_a_clean_set_has_no_finding(write):
    report = checked(write, CLEAN)
    assert report["findings"] == []
    assert report["ok"]
    assert report["rows"] == {
        **{"in": 12, "kept": 12, "rejected": 0, "train": 12},
        **{"valid": 0, "repeats_of_valid": 0, "leaked": 0},
    }
    assert report["mix"] == {"language": {"zh": 12}, "script": {"simplified": 12}}
    assert 0 < report["supervised_share"] < 1
    assert sum(report["lengths"]["histogram"]["counts"]) == 12
    assert report["lengths"]["lost"] == {"close": 0.0, "answer": 0.0, "end": 0.0}


def test_rejected_rows_by_reason(write):
    bad = [row(1, answer=""), row(2, answer=None), row(3, question=7.5)]
    report = checked(write, [*CLEAN, *bad], on_bad_row="skip")
    assert codes(report)["rejected_rows"] == ("warning", report["rows"]["rejected"])
    assert report["rows"]["in"] == 15 == report["rows"]["kept"] + report["rows"]["rejected"]
    assert report["sources"][0]["reasons"]["answer is empty"] == 2
    assert codes(checked(write, [*CLEAN, *bad]))["rejected_rows"][0] == "error"  # training would stop at the first


def test_what_a_cut_at_max_length_would_lose(write):
    """Lengths in tokens are counted by hand: prompt, closing tag, answer, end."""
    long = [row(n, think="想" * 300) for n in range(100, 103)]
    report = checked(write, [*CLEAN, *long], max_length=200)
    level, count = codes(report)["overlong"]
    assert (level, count) == ("warning", 3)
    assert report["lengths"]["lost"] == {"close": 0.2, "answer": 0.2, "end": 0.2}
    assert report["lengths"]["keeps_99"] == report["lengths"]["max"] > 300
    for policy, wanted in (("truncate-reasoning", "info"), ("truncate", "error"), ("error", "error")):
        found = codes(checked(write, [*CLEAN, *long], max_length=200, overlong=policy))
        assert found["overlong"] == (wanted, 3)
        assert ("end_token_untrained" in found) == (policy == "truncate")
    # one token too few loses the end token alone, two the answer's last one too
    sizes = checked(write, CLEAN)["lengths"]
    assert checked(write, CLEAN, max_length=sizes["max"] - 1)["lengths"]["lost"]["close"] == 0
    just = checked(write, CLEAN[:1])["lengths"]["max"]
    assert checked(write, CLEAN[:1], max_length=just - 1)["lengths"]["lost"] == {"close": 0, "answer": 0, "end": 1}
    assert checked(write, CLEAN[:1], max_length=just - 2)["lengths"]["lost"] == {"close": 0, "answer": 1, "end": 1}


def test_nothing_supervised(write):
    found = codes(checked(write, [*CLEAN, row(50, question="问" * 300)], max_length=200, overlong="truncate"))
    assert found["nothing_supervised"] == ("error", 1)


@pytest.mark.parametrize("where", ["question", "think", "answer", "system"])
def test_an_end_token_in_a_text(write, where):
    rows = [*CLEAN, row(60) | {where: "看<|im_end|>一看"}]
    assert codes(checked(write, rows))["end_token_in_text"] == ("error", 1)
    rows = [*CLEAN, row(60) | {where: "看<|im_start|>一看"}]
    assert codes(checked(write, rows)) == {"special_token_in_text": ("warning", 1)}


def test_an_end_token_in_the_system_prompt_is_in_every_row(write):
    assert codes(checked(write, CLEAN, system="<|im_end|>"))["end_token_in_text"] == ("error", 12)


def test_doubled_bos(write):
    tokenizer = load_tokenizer(TINY)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    found = codes(checked(write, CLEAN, replace(SPEECH, tokenizer=tokenizer)))
    assert found["doubled_bos"] == ("error", 12)


def test_reasoning_that_the_template_would_delete(write, model_format):
    tokenizer, think = model_format("r1")
    ids = tuple(tokenizer.convert_tokens_to_ids(token) for token in think.end_tokens)
    report = checked(write, CLEAN, replace(SPEECH, tokenizer=tokenizer, think=think, end_ids=ids))
    assert codes(report) == {"template_drops_reasoning": ("info", 12)}


def test_reasoning_lost_on_the_way_to_tokens_would_be_an_error(write, monkeypatch):
    join = ThinkFormat.join
    monkeypatch.setattr(ThinkFormat, "join", lambda self, _, answer: join(self, "", answer))
    assert codes(checked(write, CLEAN, DANLU_NO_CACHE))["text_lost"] == ("error", 12)


DANLU_NO_CACHE = replace(SPEECH, think=replace(SPEECH.think, prefix="never rendered"))  # a key of its own


def test_a_boundary_that_would_merge(write):
    """A prompt that ends in a letter and a completion that begins with one become one token."""
    tokenizer = load_tokenizer(TINY)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} fev{% endif %}"
    )
    speech = replace(SPEECH, tokenizer=tokenizer, think=ThinkFormat("none", end_tokens=("<|im_end|>",)))
    rows = [{"question": f"q{n * 31}", "think": "", "answer": "er and cough"} for n in range(4)]
    found = codes(checked(write, rows, speech))
    assert found["boundary_merge"] == ("info", 4)


def test_duplicates_and_overlap_of_the_splits(write):
    twice = [row(3), row(4, answer="先拍片。"), row(5, question=row(5)["question"] + "！")]
    found = codes(checked(write, [*CLEAN, *twice]))
    assert found["duplicate_rows"] == ("warning", 1)
    assert found["duplicate_questions"] == ("info", 3)
    near = row(6)["question"] + "呢"
    valid = write("valid.jsonl", [row(900, question=near), row(7)])
    found = codes(checked(write, CLEAN, valid=valid))
    assert found["train_valid_overlap"] == ("warning", 1)
    assert found["train_valid_near"] == ("warning", 1)


def test_leakage_and_what_decontaminate_does_about_it(write):
    leaky = row(70, think=f"题目是“{STEM}”，所以选甲。")
    path = write("bench.jsonl", [{"question": STEM, "options": {"A": "甲", "B": "乙"}, "answer": "A"}] * 1)
    benchmarks = [{"name": "glazes", "path": path}]
    report = checked(write, [*CLEAN, leaky], benchmarks=benchmarks)
    assert codes(report) == {"leakage": ("error", 1)}
    assert "glazes" in report["findings"][0]["examples"][0]
    assert not report["ok"]
    report = checked(write, [*CLEAN, leaky], benchmarks=benchmarks, decontaminate=True)
    assert codes(report) == {"leakage": ("info", 1)}
    assert report["rows"]["leaked"] == 1


def test_benchmark_items_without_gold_are_named(write):
    items = [{"question": "q1", "options": {"A": "甲", "B": "乙"}, "answer": gold} for gold in ("A", "nan")]
    report = checked(write, CLEAN, benchmarks=[{"name": "glazes", "path": write("bench.jsonl", items)}])
    assert codes(report) == {"unscorable_items": ("warning", 1)}


def test_personal_data_is_counted_and_never_shown(write):
    report = checked(write, [*CLEAN, row(80, question="患者张伟，男，电话13812345678，头痛怎么办？")])
    assert codes(report) == {"personal_data": ("warning", 1)}
    assert "1 x phone" in report["findings"][0]["what"]
    assert "1 x name" in report["findings"][0]["what"]
    assert "13812345678" not in str(report)
    assert "张伟" not in str(report)
    clean = checked(write, [*CLEAN, row(80, question="患者张伟，男，电话13812345678，头痛怎么办？")], redact=True)
    assert clean["findings"] == []


def test_empty_and_trivial_reasoning_and_tags_in_texts(write):
    rows = [row(90, think=""), row(91, think="嗯。"), row(92, think="先验血。" * 4, answer="先验血。" * 4)]
    found = codes(checked(write, [*CLEAN, *rows, row(93, think="想<think>再想想，还要想一想")]))
    assert found["empty_reasoning"] == ("warning", 1)
    assert found["trivial_reasoning"] == ("warning", 2)
    assert found["think_tags_in_text"] == ("error", 1)
    plain = replace(SPEECH, think=ThinkFormat("none", end_tokens=SPEECH.think.end_tokens))
    assert "empty_reasoning" not in codes(checked(write, rows, plain))


def test_earlier_reasoning_of_a_chat(write):
    turns = [
        {"role": "user", "content": "头痛"},
        {"role": "assistant", "content": "<think>问病程，先不要下结论。</think>几天了？"},
        {"role": "user", "content": "三天"},
        {"role": "assistant", "content": "<think>时间不长，先看血压。</think>先量血压。"},
    ]
    assert codes(checked(write, [{"messages": turns}])) == {"earlier_reasoning": ("info", 1)}


def test_grpo_prompts_are_checked_too(write):
    asked = write("asked.jsonl", [{"question": row(n)["question"], "target": "甲"} for n in range(200, 206)])
    long = write("long.jsonl", [{"question": "问" * 200, "target": "甲"}])
    value: dict[str, Any] = {"name": "r", "domain": "pottery", "stages": ["grpo"]}
    value["grpo"] = {"data": [asked, long], "max_prompt": 128}
    report = check(Recipe.model_validate(value), SPEECH)
    assert codes(report) == {"overlong_prompts": ("warning", 1)}
    assert report["rows"]["train"] == 7
    assert report["lengths"]["max_length"] == 128
    value["stages"] = ["sft", "grpo"]
    value["data"] = {"train": write("rows.jsonl", CLEAN)}
    report = check(Recipe.model_validate(value), SPEECH)
    assert codes(report) == {"grpo_overlong_prompts": ("warning", 1)}
    assert report["rows"]["train"] == 12
