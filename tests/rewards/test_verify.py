"""A table of answers in Chinese and English with the verdict a careful reader would give."""

import time

import pytest

from danlu.errors import DanluError
from danlu.records import Completion, Sample
from danlu.rewards.verify import extract, verify
from danlu.think import ThinkFormat

THINK = ThinkFormat("think", open="<think>", close="</think>", opened_by="model")
OPTIONS = {"A": "心绞痛", "B": "急性心肌梗死", "C": "主动脉夹层", "D": "肺栓塞", "E": "气胸"}
VITAMINS = {"A": "维生素C", "B": "维生素D", "C": "维生素E", "D": "维生素K"}
BLOOD = {"A": "O型血", "B": "A型血", "C": "B型血", "D": "AB型血"}
ENGLISH = {"A": "Viral pneumonia", "B": "Pulmonary embolism", "C": "Asthma", "D": "Heart failure"}


def choice(target: str, options: dict[str, str] = OPTIONS) -> Sample:
    return Sample("q", ({"role": "user", "content": "?"},), target=target, options=options)


def open_question(target: str, *distractors: str, aliases: tuple[str, ...] = ()) -> Sample:
    return Sample(
        "q", ({"role": "user", "content": "?"},), target=target, aliases=aliases, distractors=tuple(distractors)
    )


def said(answer: str, finish: str = "stop") -> Completion:
    text = f"<think>\n想一想 B 肺炎\n</think>\n\n{answer}"
    return Completion(text, *THINK.split(text)[:2], finish, THINK.split(text)[2])  # type: ignore[arg-type]


B, ACD, V, BT, EN = choice("B"), choice("ACD"), choice("B", VITAMINS), choice("B", BLOOD), choice("B", ENGLISH)

CHOICES = [
    # forms of saying B
    (B, "答案是B", "right"),
    (B, "答案：B", "right"),
    (B, "答案为 B。", "right"),
    (B, "选B", "right"),
    (B, "应选 B", "right"),
    (B, "故选B。", "right"),
    (B, "因此选择B选项。", "right"),
    (B, "正确答案是(B)", "right"),
    (B, "正确答案是【B】。", "right"),
    (B, "(B)", "right"),
    (B, "（Ｂ）", "right"),
    (B, "Ｂ", "right"),
    (B, "B", "right"),
    (B, "b", "right"),
    (B, "B.", "right"),
    (B, "**B**", "right"),
    (B, "**B. 急性心肌梗死**", "right"),
    (B, "B. 急性心肌梗死", "right"),
    (B, "B、急性心肌梗死", "right"),
    (B, r"\boxed{B}", "right"),
    (B, r"所以 $\boxed{\text{B}}$。", "right"),
    (B, "Answer: B", "right"),
    (B, "answer: b", "right"),
    (B, "The answer is B.", "right"),
    (B, "The correct answer is **B**.", "right"),
    (B, "The best choice would be B", "right"),
    (B, "I would choose B because of the ECG.", "right"),
    (B, "Option B is correct.", "right"),
    (B, "B选项正确", "right"),
    (B, "只有B是正确的。", "right"),
    (B, "最可能的诊断是B。", "right"),
    (B, "急性心肌梗死", "right"),
    (B, "患者最可能是急性心肌梗死。", "right"),
    (B, "心电图提示抬高。\n\nB", "right"),
    (B, "胸痛两小时，心电图抬高。\n答案：B 急性心肌梗死", "right"),
    (B, "B。理由：心绞痛持续时间短。", "right"),
    (B, "B 项", "right"),
    (B, "B is the answer.", "right"),
    (B, "A错误。B正确。C错误。", "right"),
    (B, "本题答案为：B。A错误，C错误，D错误。", "right"),
    (B, "答案是 A", "wrong"),
    (B, "选C。", "wrong"),
    (B, "肺栓塞", "wrong"),
    # several letters
    (ACD, "ACD", "right"),
    (ACD, "A、C、D", "right"),
    (ACD, "答案是A、C、D", "right"),
    (ACD, "正确的选项有A,C和D。", "right"),
    (ACD, "应选 A C D", "right"),
    (ACD, "The answers are A, C and D.", "right"),
    (ACD, "心绞痛、主动脉夹层、肺栓塞", "right"),
    (ACD, "A. 心绞痛\nC. 主动脉夹层\nD. 肺栓塞", "right"),
    (ACD, "ACD均正确", "right"),
    (ACD, "答案是AC", "wrong"),
    (ACD, "答案是ABCDE", "wrong"),
    (B, "答案是AB", "ambiguous"),
    (B, "A或B", "ambiguous"),
    (B, "选A或者选B", "ambiguous"),
    (B, "The answer is A or B.", "ambiguous"),
    # denial and correction
    (B, "不选B", "none"),
    (B, "不应选B。", "none"),
    (B, "答案不是B", "none"),
    (B, "不选A，选B。", "right"),
    (B, "答案是B，不是A", "right"),
    (B, "答案是B而不是A。", "right"),
    (B, "排除A，选B", "right"),
    (B, "A不正确，答案是B", "right"),
    (B, "选A……不对，应为B", "right"),
    (B, "答案是B。不对，应为C", "wrong"),
    (B, "The answer is A. Wait, actually the answer is B.", "right"),
    (B, "The answer is not A. The answer is B.", "right"),
    (B, "The answer is not B", "none"),
    (B, "不是心绞痛，而是急性心肌梗死。", "right"),
    (B, "不正确的是B", "right"),
    (B, "错误的一项是 B。", "right"),
    # never a guess
    (B, "答案是A。答案是B。", "ambiguous"),
    (B, "A. 心绞痛\nB. 急性心肌梗死\nC. 主动脉夹层\nD. 肺栓塞", "ambiguous"),
    (B, "心绞痛、急性心肌梗死、主动脉夹层、肺栓塞、气胸", "ambiguous"),
    (B, "A B C D E", "ambiguous"),
    (B, r"\boxed{A} \boxed{B}", "ambiguous"),
    (B, "答案是B. 心绞痛", "ambiguous"),
    (B, "可能是心绞痛或急性心肌梗死", "ambiguous"),
    (B, "需要进一步检查。", "none"),
    (B, "Both are possible.", "none"),
    (B, "", "none"),
    (V, "维生素D", "right"),
    (V, "应补充维生素D。", "right"),
    (V, "答案：维生素D", "right"),
    (V, "选维生素K", "wrong"),
    (V, "选择D", "wrong"),
    (V, "与维生素 A 无关", "none"),
    (BT, "A型血", "right"),
    (BT, "答案是A型血", "right"),
    (BT, "患者为B型血", "wrong"),
    (BT, "AB型血", "wrong"),
    (choice("A"), "答案是A型血", "none"),
    (choice("C"), "C反应蛋白升高", "none"),
    (choice("A", ENGLISH), "A patient with fever needs rest.", "none"),
    (choice("A", ENGLISH), "The answer is A common one.", "none"),
    (choice("A", ENGLISH), "The answer is A Viral pneumonia", "right"),
    (choice("A", ENGLISH), "The answer is A because of the fever.", "right"),
    (EN, "The answer is a pulmonary embolism.", "right"),
    (EN, "(B) Pulmonary embolism", "right"),
    (EN, "It's not asthma, it is B.", "right"),
    (EN, "I think it is heart failure", "wrong"),
    (EN, "Answer: B Pulmonary embolism", "right"),
]

LUNG = open_question("肺炎", "支原体肺炎", "肺结核", aliases=("肺部感染", "pneumonia"))
STROKE = open_question("ischemic stroke", "hemorrhagic stroke", "TIA", aliases=("cerebral infarction",))
CELLS = open_question("小细胞肺癌", "肺腺癌")
OPEN = [
    (LUNG, "肺炎", "right"),
    (LUNG, "诊断为肺炎。", "right"),
    (LUNG, "考虑 肺 炎", "right"),
    (LUNG, "肺部感染", "right"),
    (LUNG, "Ｐｎｅｕｍｏｎｉａ", "right"),
    (LUNG, "The diagnosis is Pneumonia.", "right"),
    (LUNG, "支原体肺炎", "wrong"),
    (LUNG, "肺炎，也可能是支原体肺炎", "ambiguous"),
    (LUNG, "肺炎或肺结核", "ambiguous"),
    (LUNG, "肺结核", "wrong"),
    (LUNG, "不是肺炎", "wrong"),
    (LUNG, "并非肺炎，是肺结核", "wrong"),
    (LUNG, "排除肺结核、肺炎", "wrong"),
    (LUNG, "不是肺结核，而是肺炎", "right"),
    (LUNG, "肺炎，排除肺结核", "right"),
    (LUNG, "可排除支原体肺炎，诊断肺炎", "right"),
    (LUNG, "肺结核可能性小，考虑肺炎", "right"),
    (LUNG, "肺结核。不对，应为肺炎", "right"),
    (LUNG, "肺炎。不对，应为肺结核", "wrong"),
    (LUNG, "感染部位是肺，炎症明显", "wrong"),
    (LUNG, "上呼吸道感染", "wrong"),
    (LUNG, "", "none"),
    (LUNG, "not pneumonia", "wrong"),
    (LUNG, "pneumonia was ruled out", "wrong"),
    (LUNG, "bronchopneumonia", "wrong"),
    (STROKE, "Ischemic  Stroke", "right"),
    (STROKE, "ischemic-stroke", "right"),
    (STROKE, "an acute cerebral infarction", "right"),
    (STROKE, "ischemic stroke, not hemorrhagic stroke", "right"),
    (STROKE, "This is not an ischemic stroke", "wrong"),
    (STROKE, "not only ischemic stroke", "right"),
    (STROKE, "neither TIA nor ischemic stroke", "wrong"),
    (STROKE, "hemorrhagic stroke or ischemic stroke", "ambiguous"),
    (STROKE, "ischemic strokes", "wrong"),
    (STROKE, "stroke", "wrong"),
    (CELLS, "小细胞肺癌", "right"),
    (CELLS, "非小细胞肺癌", "wrong"),
    (open_question("5"), "5", "right"),
    (open_question("5"), "答案：5。", "right"),
    (open_question("5"), "15", "wrong"),
    (open_question("5"), "5.5", "wrong"),
    (open_question("5"), "-5", "wrong"),
    (open_question("5"), "5%", "wrong"),
    (open_question("3.5"), "约3.5小时", "right"),
    (open_question("COVID-19"), "covid19", "right"),
    (open_question("1,25-二羟维生素D3"), "1,25-二羟维生素D3", "right"),
    (open_question("+"), "+", "right"),
    (open_question("+"), "-", "wrong"),
]


@pytest.mark.parametrize(("sample", "answer", "outcome"), CHOICES)
def test_choices(sample: Sample, answer: str, outcome: str) -> None:
    score = verify(sample, said(answer))
    assert score.outcome == outcome, score
    assert score.value == float(outcome == "right")


@pytest.mark.parametrize(("sample", "answer", "outcome"), OPEN)
def test_open_answers(sample: Sample, answer: str, outcome: str) -> None:
    score = verify(sample, said(answer))
    assert score.outcome == outcome, score


def test_the_table_is_long_enough() -> None:
    assert len(CHOICES) + len(OPEN) >= 80


@pytest.mark.parametrize("sample", [B, LUNG])
def test_reasoning_is_never_read(sample: Sample) -> None:
    text = "<think>\n答案是B，肺炎，急性心肌梗死"
    reasoning, answer, tidy = THINK.split(text)
    assert verify(sample, Completion(text, reasoning, answer, "stop", tidy)).outcome == "none"
    assert verify(sample, Completion(text, reasoning, answer, "length", tidy)).outcome == "truncated"


def test_truncation() -> None:
    assert verify(B, said("", "length")).outcome == "truncated"
    assert verify(B, said("答案是B，因为心电图", "length")).outcome == "right"  # the block was closed
    assert verify(B, said("患者的心电图", "length")).outcome == "truncated"
    assert verify(LUNG, said("患者的", "length")).outcome == "truncated"
    unopened = "患者可能是 B"  # thinks that it may still be thinking: nothing was closed
    assert verify(B, Completion(unopened, "", unopened, "length", False)).outcome == "truncated"
    assert verify(B, Completion("", "", "", "error", False)).outcome == "none"


def test_extracted_text() -> None:
    assert extract(ACD, said("答案是D、A、C")) == ("ACD", "said")
    assert extract(LUNG, said("pneumonia")) == ("肺炎", "gold")
    assert extract(LUNG, said("肺结核")) == ("肺结核", "distractor")
    assert extract(LUNG, said("感冒"))[0] == "感冒"
    assert extract(LUNG, said("长" * 200))[0] is None


def test_target_forms() -> None:
    assert verify(choice("A、C、D"), said("ACD")).outcome == "right"
    assert verify(choice("急性心肌梗死"), said("选B")).outcome == "right"
    with pytest.raises(DanluError, match="no target"):
        verify(Sample("q", ({"role": "user", "content": "?"},)), said("B"))


HOSTILE = ["", "\x00", "((((", "A" * 9000, "不" * 9000, "\\boxed{" * 2000, "（" * 9000 + "B", "𠮷" * 50, "A " * 5000]
HOSTILE += [
    "答案" + " " * 9000,
    "答案" * 5000,
    "选" * 9000,
    "(A\n" * 3000,
    "A or " * 3000,
    "肺炎" * 5000,
    "不对" * 3000 + "肺炎",
]
HOSTILE += [
    "肺炎" * 3000 + "不对" * 3000,
    "不是" + "、肺结核" * 3000,
    "**" * 5000,
    "answer is not " * 1000,
    "急性心肌梗死" * 2000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_any_text_gets_a_verdict_quickly(text: str) -> None:
    started = time.perf_counter()
    for sample in (B, ACD, LUNG):
        assert verify(sample, said(text)).outcome in ("wrong", "none", "ambiguous", "right")
    assert time.perf_counter() - started < 10.0  # a runaway pattern takes minutes
