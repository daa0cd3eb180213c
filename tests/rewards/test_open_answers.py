"""Open answers: what makes one right, what takes it back, and quantities in one spelling."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from danlu.rewards.mentions import canonical, visible
from danlu.rewards.quantities import normal, quantities
from danlu.rewards.verify import verify

sys.path.insert(0, str(Path(__file__).parent))
from writing import asked, said

TB = {"distractors": ("肺结核",)}
PNEUMONIA = {"aliases": ("pneumonia",)}
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    # sides
    ("左侧气胸", {}, "患者为左侧气胸。", "right"),
    ("左侧气胸", {}, "右侧气胸", "wrong"),
    ("左侧气胸", {"aliases": ("气胸",)}, "气胸，位于左侧", "right"),
    ("左侧气胸", {"aliases": ("气胸",)}, "气胸，位于右侧", "wrong"),
    ("左侧气胸", {"aliases": ("气胸",)}, "右侧气胸", "wrong"),
    ("左侧气胸", {"aliases": ("气胸",)}, "左侧气胸，右肺呼吸音正常", "right"),
    ("右心衰竭", {"aliases": ("心衰",)}, "左心衰竭", "wrong"),
    ("left-sided heart failure", {"aliases": ("heart failure",)}, "right-sided heart failure", "wrong"),
    ("left-sided heart failure", {"aliases": ("heart failure",)}, "You are right, it is heart failure.", "right"),
    ("bilateral pneumonia", PNEUMONIA, "Pneumonia of the left lung", "wrong"),
    ("双侧肺炎", {"aliases": ("肺炎",)}, "右侧肺炎", "wrong"),
    ("左氧氟沙星", {}, "左氧氟沙星 500mg", "right"),  # a name, no side
    # quantities
    ("阿司匹林100mg", {"aliases": ("阿司匹林",)}, "阿司匹林300mg", "wrong"),
    ("阿司匹林100mg", {"aliases": ("阿司匹林",)}, "阿司匹林", "right"),
    ("阿司匹林100mg", {}, "阿司匹林 0.1 g", "right"),
    ("阿司匹林", {}, "阿司匹林300mg，嚼服", "right"),
    ("14天", {}, "疗程两周", "right"),
    ("two weeks", {}, "14 days", "right"),
    ("24小时", {}, "一天", "right"),
    ("1年", {}, "十二个月", "right"),
    ("5%", {}, "百分之五", "right"),
    ("500 mg", {}, "0.5 g", "right"),
    ("500 mg", {}, "0.05 g", "wrong"),
    ("1,000 ml", {}, "1 L", "right"),
    ("3天", {}, "3-5天", "wrong"),
    ("3-5天", {}, "3～5 天", "right"),
    ("3-5天", {}, "4天", "wrong"),
    ("10 mg/kg", {}, "10 mg", "wrong"),
    ("3.5", {}, "约3.5小时", "right"),
    # English in one spelling, no article
    ("anaemia", {}, "anemia", "right"),
    ("brain tumor", {}, "A brain tumour.", "right"),
    ("Crohn's disease", {}, "Crohn disease", "right"),
    ("The left atrium", {}, "left atrium", "right"),
    ("gallstone", {}, "gallstones", "right"),
    ("gallstones", {}, "gallstone", "right"),
    ("sepsis", {}, "sepsi", "wrong"),
    # alternatives
    ("肺炎", {}, "肺炎或感冒", "ambiguous"),
    ("肺炎", {}, "感冒或者肺炎", "ambiguous"),
    ("肺炎", {}, "肺炎、肺结核、肺癌、哮喘", "ambiguous"),
    ("肺炎", {}, "肺结核、肺炎、肺癌", "ambiguous"),
    ("肺炎", {}, "肺炎，体温高，需住院。", "right"),
    ("肺炎", {}, "肺炎，肺结核，肺癌，哮喘", "ambiguous"),
    ("肺炎", {}, "1. 肺炎\n2. 肺结核\n3. 肺癌\n4. 哮喘", "ambiguous"),
    ("肺炎", {}, "答案是肺炎。答案是肺结核。", "ambiguous"),
    ("肺炎", {}, "答案是肺结核。答案是肺炎。", "ambiguous"),
    ("肺炎", {}, "答案是肺结核。不对，答案是肺炎。", "right"),
    ("肺炎", {}, "肺炎。不对，是肺结核。", "ambiguous"),
    ("肺炎", {}, "肺炎。两肺呼吸音不对称。", "right"),
    ("pneumonia", {}, "It is pneumonia. No wait, it is asthma.", "ambiguous"),
    ("pneumonia", {}, "pneumonia, tuberculosis, cancer, or asthma", "ambiguous"),
    ("pneumonia", {}, "The answer is pneumonia. The answer is asthma.", "ambiguous"),
    ("pneumonia", {}, "The patient has pneumonia, which causes fever, cough, and chest pain.", "right"),
    ("肺炎", PNEUMONIA, "肺炎/pneumonia", "right"),
    ("肺炎", PNEUMONIA, "肺炎（pneumonia）", "right"),
    ("肺炎", {}, "诊断：肺炎。\n建议住院。\n抗感染。\n复查。", "right"),
    ("发热、咳嗽、头痛、乏力", {}, "发热、咳嗽、头痛、乏力", "right"),
    ("先休息，多喝水。", {}, "看医生。、先休息，多喝水。、吃药。、打针。", "ambiguous"),
    ("先休息，多喝水。", {}, "建议先休息，多喝水。", "right"),
    ("肺炎", {}, "可能是肺炎，也可能是肺结核。", "ambiguous"),
    ("肺炎", {}, "也有可能是肺炎。", "right"),
    ("pneumonia", {}, "It may be pneumonia, or it may be asthma.", "ambiguous"),
    ("pneumonia", {}, "Pneumonia; it could also be asthma.", "ambiguous"),
    ("pneumonia", {}, "Pneumonia, which may be severe.", "right"),
    # distractors that are discussed, and distractors that are claimed
    ("肺炎", TB, "最可能的诊断是肺炎。肺结核多有盗汗，与本例不符。", "right"),
    ("肺炎", TB, "答案是肺炎。肺结核起病缓慢。", "right"),
    ("肺炎", TB, "最可能的诊断是肺炎，也可能是肺结核。", "ambiguous"),
    ("肺炎", TB, "诊断为肺炎。肺结核待排。", "ambiguous"),
    ("肺炎", TB, "诊断为肺炎。也要考虑肺结核。", "ambiguous"),
    ("肺炎", TB, "答案是肺炎。答案是肺结核。", "ambiguous"),
    ("肺炎", TB, "诊断为肺结核。肺炎起病急。", "ambiguous"),
    ("aspirin and clopidogrel", {"distractors": ("aspirin", "clopidogrel")}, "aspirin and clopidogrel", "right"),
    ("aspirin and clopidogrel", {"distractors": ("aspirin", "clopidogrel")}, "aspirin", "wrong"),
    # what a reader sees
    ("肺炎", {}, "答案不\u200b是肺炎", "wrong"),
    ("肺炎", {}, "~~肺炎~~ 肺结核", "wrong"),
    ("tuberculosis", {"distractors": ("pneumonia",)}, "tuberculosis and pneum\u043enia", "ambiguous"),  # Cyrillic о
    ("肺炎", {}, "⽀原体以外的肺炎", "right"),  # a Kangxi radical is the character that it looks like
    ("支原体肺炎", {}, "⽀原体肺炎", "right"),
]


@pytest.mark.parametrize(("target", "fields", "answer", "outcome"), CASES)
def test_open_answers(target: str, fields: dict[str, Any], answer: str, outcome: str) -> None:
    score = verify(asked(target, **fields), said(answer))
    assert score.outcome == outcome, score


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.5 g", "500mg"),
        ("两周", "1209600s"),
        ("百分之十二", "12%"),
        ("二〇二五年", "24300month"),
        ("一万二千毫升", "12000ml"),
        ("半小时", "1800s"),
        ("5 to 10 days", "432000-864000s"),
        ("a two-week course", "a 1209600s course"),
        ("10,000 iu", "10000u"),
        ("7.40", "7.4"),
        ("38.50°c", "38.5°c"),
        ("100 mg/kg", "100 mg/kg"),
        ("5 g/l", "5 g/l"),
        ("b12 deficiency", "b12 deficiency"),
        ("covid-19", "covid-19"),
        ("三叉神经", "三叉神经"),
        ("1.5.2", "1.5.2"),
    ],
)
def test_quantities_have_one_spelling(text: str, shown: str) -> None:
    assert normal(canonical(text)) == shown
    assert normal(shown) == shown


def test_quantities_by_unit() -> None:
    text = normal("每次0.5g，每日3次，疗程3-5天，体温39.0°c，100 mg/kg")
    assert quantities(text) == {"mg": {"500"}, "s": {"259200-432000"}, "°c": {"39"}}


def test_what_a_reader_sees() -> None:
    assert visible("不\u200b是Ｂ，\U0001f171 А <del>x</del>y\u0336 é TNFα\U000e0041") == "不是B,B A  é TNFα"


LONG = [
    "一二三",
    "1,000",
    "1",
    "one ",
    "一",
    "1 ",
    "一-",
    "1 - ",
    "5天",
    "百分之",
    "肺炎或",
    "肺炎、",
    "肺炎，",
    "- 肺炎\n",
]
LONG += ["- 肺炎\n", "答案是", "the answer is ", "左侧肺炎", "~~a", "<s>", "肺\u0301", "\u200b", "肺结核", "肺炎 or "]


@pytest.mark.parametrize("part", LONG)
def test_hostile_texts_take_no_time(part: str) -> None:
    sample = asked("左侧肺炎100mg", aliases=("肺炎",), distractors=("肺结核",))
    started = time.process_time()
    verify(sample, said((part * 50_000)[:50_000]))
    assert time.process_time() - started < 5.0  # a runaway pattern takes minutes
