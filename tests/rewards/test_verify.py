"""A table of answers in Chinese and English with the verdict a careful reader would give."""

import json
import random
import time
from pathlib import Path

import pytest

from danlu.errors import DanluError
from danlu.records import Completion, Sample
from danlu.rewards.verify import extract, graded, verify
from danlu.think import ThinkFormat

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
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
    (B, "心绞痛、急性心肌梗死、主动脉夹层、肺栓塞、气胸", "none"),
    (B, "A B C D E", "none"),
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
    (EN, "The ECG is normal.\n\nB", "right"),
    (EN, "See fig.B", "none"),
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
    (STROKE, "ischemic strokes", "right"),
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
    # either Chinese script
    (LUNG, "診斷為肺結核", "wrong"),
    (open_question("支气管扩张"), "支氣管擴張", "right"),
    (open_question("支氣管擴張"), "诊断：支气管扩张。", "right"),
    (open_question("支氣管擴張"), "並非支氣管擴張", "wrong"),
    (open_question("10 mg"), "每日10mg", "right"),
    (open_question("10 mg"), "110 mg", "wrong"),
    (open_question("10 mg"), "10 ml", "wrong"),
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


LONG = [
    " ",
    "(",
    "A",
    "A ",
    "A、",
    "**A",
    "答案",
    "答案是",
    "选",
    "急性心肌梗死",
    "\\boxed{",
    "|答案 |",
    "<answer>",
    "选项2",
    "not A or ",
]
LONG += [
    "A. ",
    "因此A。",
    "- A. 心绞痛：错误\n",
    "“",
    "不是、",
    "vitamin A and ",
    "\n参考文献",
    "{",
    "answer is not ",
    "1、2、",
    "|--|\n",
]
HOSTILE += [(part * 50_000)[:50_000] for part in LONG] + ["|答案" + " |" * 25_000, "答案" + " " * 50_000]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_any_text_gets_a_verdict_quickly(text: str) -> None:
    started = time.process_time()
    for sample in (B, ACD, LUNG):
        assert verify(sample, said(text)).outcome in ("wrong", "none", "ambiguous", "right")
    assert time.process_time() - started < 5.0  # a runaway pattern takes minutes


# ---- the question's own words


ORGANS = {"A": "筋", "B": "脉", "C": "肉", "D": "皮", "E": "骨"}
RESTATED = [
    ("肝在体为（  ）。", "根据中医理论，肝在体为筋，因为肝主疏泄，筋骨得以营养。", "A"),
    ("肝在体为( )", "肝在体为皮。心在体为脉。", "D"),
    ("（  ）为奇恒之腑。", "奇恒之腑有六，其中骨为奇恒之腑。", "E"),
    ("肝在体为（  ）。", "肝主疏泄，与筋、脉、皮都有关系。", None),
    ("肝在体为（  ）。", "肝在体不为筋。", None),
    ("肝在体为何？", "肝与筋有关，也与脉有关。", None),
]


@pytest.mark.parametrize(("question", "answer", "letter"), RESTATED)
def test_an_option_in_the_words_of_the_question(question: str, answer: str, letter: str | None) -> None:
    sample = Sample("q", ({"role": "user", "content": question},), target="A", options=ORGANS)
    assert extract(sample, said(answer))[0] == letter


INLINE = "患者银白鳞屑、关节痛8天。首选治疗是：A.卡泊三醇 B.青霉素 C.美沙拉嗪 D.青蒿素"
DRUGS = {"A": "卡泊三醇", "B": "青霉素", "C": "美沙拉嗪", "D": "青蒿素"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        (INLINE, None),
        (f"题目是：{INLINE}", None),
        ("首选治疗是：A.卡泊三醇 B.青霉素 C.美沙拉嗪 D.青蒿素", None),  # not word for word, but a list
        (f"{INLINE}\n答案是A", "A"),
        ("首选治疗是：A.卡泊三醇", "A"),
        ("首选治疗是：A.卡泊三醇。B.青霉素不对。", "A"),
    ],
)
def test_a_question_that_is_repeated_claims_nothing(answer: str, letter: str | None) -> None:
    sample = Sample("q", ({"role": "user", "content": INLINE},), target="A", options=DRUGS)
    assert extract(sample, said(answer))[0] == letter


def test_a_list_of_everything_is_not_all_of_the_above() -> None:
    options = {"A": "贮存激素", "B": "没有分泌功能", "C": "由神经纤维构成", "D": "以上都正确"}
    sample = Sample("q", ({"role": "user", "content": "下列哪项正确？"},), target="D", options=options)
    for answer in ("A、B、C、D", "ABCD", "贮存激素、没有分泌功能、由神经纤维构成、以上都正确"):
        assert verify(sample, said(answer)).outcome != "right", answer
    for answer in ("D", "以上都正确", "A、B、C、D都正确", "A、B、C都正确"):
        assert verify(sample, said(answer)).outcome == "right", answer


def test_an_open_question_that_is_repeated_claims_nothing() -> None:
    asked = "患者发热咳嗽三天。最可能的诊断是肺炎还是肺结核？"
    sample = Sample("q", ({"role": "user", "content": asked},), target="肺炎")
    assert verify(sample, said(asked)).outcome != "right"
    assert verify(sample, said("最可能的诊断是肺炎还是肺结核？ 是肺炎。")).outcome == "right"


def test_grades_follow_what_is_said() -> None:
    answers = [
        "答案是B",
        "结合症状，因此是急性心肌梗死。",
        "需要进一步检查。",
        "答案是A或B",
        "所以考虑为肺栓塞。",
        "答案是C",
    ]
    grades = [graded(verify(B, said(answer))) for answer in answers]
    assert grades == [1.0, 0.9, 0.4, 0.2, 0.1, 0.0]
    assert graded(verify(LUNG, said("肺炎"))) == 1.0


@pytest.mark.skipif(not (SHARED / "verifier").exists(), reason="real data is not here")
@pytest.mark.slow
def test_labels_of_people_agree() -> None:
    from bench.verifier import PLACE, measure

    rows = [json.loads(line) for line in PLACE.read_text("utf-8").splitlines()]
    found = measure(rows, misses=False)
    assert found["ours"]["accuracy"] >= 0.95
    assert found["ours"]["auc"] >= 0.97
    assert found["without_gold"] <= 3
    assert found["theirs"]["accuracy"] < 0.7  # the labels do not come for free


# ---- cases in files, and real answers

HERE = Path(__file__).parent / "extraction"


def cases(name: str) -> list[dict]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def outcome_of(row: dict) -> dict:
    sample = Sample(
        row["id"],
        ({"role": "user", "content": row.get("question", "?")},),
        target=row["target"],
        options=row["options"],
    )
    answer = row["answer"]
    score = verify(sample, Completion(answer, "", answer, row.get("finish", "stop"), True))
    return {"outcome": score.outcome, "extracted": score.extracted}


CASES, HELD_BACK = cases("cases.jsonl"), cases("held_back.jsonl")


@pytest.mark.parametrize("row", CASES + HELD_BACK, ids=lambda row: row["id"])
def test_a_careful_reader_agrees(row: dict) -> None:
    assert outcome_of(row) == row["expected"], row["answer"]


def test_the_cases_cover_what_models_write() -> None:
    assert len(CASES) >= 360
    assert len(HELD_BACK) >= 60
    assert sum(row["hard"] for row in CASES) >= 150
    assert len({row["id"] for row in CASES + HELD_BACK}) == len(CASES) + len(HELD_BACK)
    assert len({row["kind"] for row in CASES}) >= 25
    for row in CASES:
        right = set(row["expected"]["extracted"] or "") == set(row["target"])
        assert right == (row["expected"]["outcome"] == "right"), row["id"]


def test_letter_case_of_the_options_does_not_matter() -> None:
    small = choice("b", {key.lower(): value for key, value in ENGLISH.items()})
    assert verify(small, said("The answer is (b).")).outcome == "right"
    assert verify(small, said("A patient has a fever.")).outcome == "none"


@pytest.mark.skipif(not (SHARED / "sft").exists(), reason="real data is not here")
def test_answers_that_state_no_option_get_no_letter() -> None:
    """Answers to open questions against the options of unrelated ones: at most 1 in 200 may seem to choose."""
    chinese = (SHARED / "sft/delicate_medical_r1.jsonl").open(encoding="utf-8")
    answers = [json.loads(line)["answer"] for line in chinese]
    answers += [row["Response"] for row in json.loads((SHARED / "sft/medical_o1_sft_English.json").read_text("utf-8"))]
    lines = [
        json.loads(x) for name in ("cmexam_val", "medqa_us_4opt_test") for x in (SHARED / f"bench/{name}.jsonl").open()
    ]
    asked = [(row["question"], row["options"]) for row in lines]
    for line in (SHARED / "bench/medmcqa_dev.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        asked.append((row["question"], {key: row[f"op{key.lower()}"] for key in "ABCD"}))
    pick = random.Random(7)
    chosen = total = 0
    for answer in answers:
        for question, options in pick.sample(asked, 3):
            sample = Sample("q", ({"role": "user", "content": question},), target="A", options=options)
            chosen += extract(sample, Completion(answer, "", answer, "stop", True))[0] is not None
            total += 1
    assert total >= 1000
    assert chosen / total <= 0.005


def test_a_long_answer_is_read_in_milliseconds() -> None:
    item = "**C. 主动脉夹层**：患者无撕裂样疼痛，双上肢血压对称，CT未见内膜片，可能性小，需与心绞痛相鉴别。\n\n"
    text = (item + "胸痛的评估应当结合病史、体征与心电图，并动态观察心肌损伤标志物的变化。\n" * 6) * 30 + "答案：B"
    assert len(text) > 8000
    completion = said(text[-10_000:])
    assert verify(B, completion).outcome == "right"
    best = 9.0
    for _ in range(5):
        started = time.process_time()
        verify(B, completion)
        best = min(best, time.process_time() - started)
    assert best < 0.1  # 0.015 s on an idle core
