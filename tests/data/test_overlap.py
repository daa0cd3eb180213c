from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.choices import with_options
from danlu.data.overlap import duplicates, leaks, normalise, shared_items, stem
from danlu.data.sources import load
from danlu.recipe import Source
from danlu.records import Sample

FOUR = {"A": "青霉素", "B": "红霉素", "C": "四环素", "D": "氯霉素"}
OTHER = {"A": "心脏", "B": "肝脏", "C": "脾脏", "D": "肺脏"}
LONG = "患者男，45岁，突发胸骨后压榨性疼痛3小时，伴大汗，心电图V1-V5导联ST段抬高，最可能的诊断是"
ENGLISH = (
    "A 45-year-old man comes to the emergency department because of crushing chest pain for three hours and an "
    "electrocardiogram shows ST elevation in leads V1 to V5"
)


def ask(name: str, question: str, options: dict[str, str] | None = None, **more: str) -> Sample:
    options = options or {}
    text = with_options(question, options) if options else question
    return Sample(name, ({"role": "user", "content": text},), options=options, **more)


def traces(train: list[Sample], items: list[Sample]) -> list[tuple[str, str, str, str, float]]:
    return [(k.item, k.row, k.where, k.how, round(k.value, 2)) for k in leaks(train, {"exam": items})]


# ---- normal form


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("患者發熱，體溫38.5℃。", "患者发热 体温３８．５°C"),
        ("HBsAg(+)", "hbsag＋"),
        ("HBsAg（－）", "HBsAg-"),
        ("抗体（—）弱", "抗体(-)弱"),
        ("3～5天", "3-5天"),
        ("3——5 天", "3 – 5天"),
        ("10⁹/L", "10^9/L"),
        ("10⁻³", "10^-3"),
        ("p<.05", "P < 0.05"),
        ("1,000,000元", "1000000元"),
        ("COVID-19", "covid 19"),
        ("X-线", "X线"),
        ("γ－干扰素", "γ干扰素"),
        ("B₁₂", "B12"),
        ("1：2", "1∶2"),
        ("Ⅲ型", "III型"),
        ("“下列”____（　　）是", "下列是"),
        ("①和②", "1和2"),
        ("≧5", "≥5"),
        ("10*8", "10×8"),
        ("皮膚乾燥", "皮肤干燥"),
    ],
)
def test_same_text_in_other_writing(one: str, other: str):
    assert normalise(one) == normalise(other) != ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.5 mg", "15 mg"),
        ("1、5天", "15天"),
        ("1 5", "15"),
        ("①②", "12"),
        ("100、200", "100200"),
        ("3-5天", "35天"),
        ("-5℃", "5℃"),
        ("1, -5", "1-5"),
        ("HBsAg(+)", "HBsAg(-)"),
        ("HBsAg(+)", "HBsAg"),
        ("HBsAg-，", "HBsAg，"),
        ("(±)", "(+)"),
        ("10⁹/L", "109/L"),
        ("2½", "21/2"),
        ("1:2", "12"),
        ("1/2", "12"),
        ("<5", ">5"),
        ("≥5", "5"),
        ("5%", "5"),
        ("血钾↑", "血钾↓"),
        ("(√)", "(×)"),
        ("10×8", "108"),
        ("_1_2_", "12"),
    ],
)
def test_what_changes_the_meaning_stays(one: str, other: str):
    assert normalise(one) != normalise(other)


pieces = st.sampled_from([*"ab 1205.,:/^-−~—+%<>()_，。（）①½⁹⁻×#℃患者 \n", "10⁹", "1.5"])


@given(st.lists(pieces, max_size=12).map("".join))
def test_normal_form_of_a_normal_form_is_itself(text: str):
    once = normalise(text)
    assert normalise(once) == once
    digits = re.findall("[0-9]+", re.sub(r",(?=[0-9]{3}(?![0-9]))", "", text))
    if not set(text) & set("①½⁹⁻."):  # which write digits themselves
        assert re.findall("[0-9]+", once) == digits  # numbers neither vanish nor run together


# ---- duplicates


def naive_units(text: str) -> list[str]:
    return re.findall("[一-鿿]|[a-z]+|[0-9]+", text)


def naive_grams(units: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(units[i : i + size]) for i in range(len(units) - size + 1)}


def naive_shingles(text: str, like: str | None = None) -> set[tuple[str, ...]]:
    """5-grams or 3-grams, as `like` (or the text itself) is mostly Han or not."""
    kind = naive_units(text if like is None else like)
    return naive_grams(naive_units(text), 5 if 2 * sum(unit >= "一" for unit in kind) >= len(kind) else 3)


def jaccard(one: set, other: set) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0


def varied(rng: random.Random, number: int) -> list[str]:
    """Texts of which many are edits of others, in both scripts, at all distances."""
    han = "心肝脾肺肾血压热痛咳喘汗寒虚实"
    words = ["heart", "liver", "lung", "pain", "fever", "blood", "test", "cough", "dose", "urine"]
    texts: list[str] = []
    while len(texts) < number:
        size = rng.randint(3, 60)
        kind = rng.random()
        if texts and kind < 0.1:
            texts.append(rng.choice(texts))
            continue
        if texts and kind < 0.6:
            parts = re.findall("[一-鿿]|[a-z0-9]+", rng.choice(texts))
            for _ in range(rng.choice((0, 1, 1, 2, 5))):
                parts[rng.randrange(len(parts))] = rng.choice((*han, *words))
            parts = parts[rng.randint(0, 2) :] + rng.choices(han, k=rng.randint(0, 2))
        elif kind < 0.8:
            parts = rng.choices(han, k=size)
        else:
            parts = rng.choices(words, k=size)
        texts.append(" ".join(parts))
    return texts


@pytest.mark.parametrize("seed", range(3))
def test_duplicates_as_a_naive_search_finds_them(seed: int):
    texts = varied(random.Random(seed), 120)
    found = duplicates(texts)
    groups: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        groups.setdefault(text.replace(" ", ""), []).append(index)
    assert found.exact == [group for group in groups.values() if len(group) > 1]
    kept: list[int] = []
    wanted = []
    for index in (group[0] for group in groups.values()):
        values = [(jaccard(naive_shingles(texts[other]), naive_shingles(texts[index])), -other) for other in kept]
        value, other = max(values, default=(0.0, 0))
        if value >= 0.8:
            wanted.append((-other, index, pytest.approx(value)))
        else:
            kept.append(index)
    assert len(wanted) > 10
    assert found.near == wanted
    assert duplicates(texts) == found  # the same again


def test_copies_of_one_text_make_one_group_and_a_pair_each():
    base = "".join(random.Random(0).choices("心肝脾肺肾血压热痛咳喘汗寒虚实", k=200))
    texts = [
        base,
        base + "，",
        "无关的文字在此",
        *(base[:i] + "药" + base[i:] for i in (20, 90, 150)),
        "？？",
        "!!",
        base,
    ]
    found = duplicates(texts)
    assert found.exact == [[0, 1, 8]]  # "？？" and "!!" say nothing, so they are not equal
    assert [pair[:2] for pair in found.near] == [(0, 3), (0, 4), (0, 5)]
    assert all(0.9 < value < 1 for _, _, value in found.near)


def test_sketches_of_long_texts_miss_no_close_pair():
    """Texts far beyond the 512 sketched grams, of unequal length, just above the threshold."""
    rng = random.Random(1)
    letters = [chr(code) for code in range(0x4E00, 0x5E00)]
    texts = []
    for _ in range(40):
        text = "".join(rng.choices(letters, k=3000))
        texts += [text, text[: int(3000 * 0.82)]]
    simplified_pairs = [(2 * k, 2 * k + 1) for k in range(40)]
    assert [pair[:2] for pair in duplicates(texts).near] == simplified_pairs


def test_opposite_and_other_numbers_are_no_exact_duplicates():
    assert duplicates(["HBsAg(+)患者", "HBsAg(-)患者", "1.5克", "15克"]).exact == []
    assert duplicates([]).exact == []


# ---- stems


@pytest.mark.parametrize(
    ("sample", "wanted"),
    [
        (ask("1", "首选药物是", FOUR), "首选药物是"),
        (ask("1", "问：\nA. 不是选项", FOUR), "问：\nA. 不是选项"),
        (Sample("1", ({"role": "user", "content": "首选药物是（ ）\nA、青霉素\nB、红霉素"},)), "首选药物是（ ）"),
        (Sample("1", ({"role": "user", "content": "首选药物是？ A.青霉素 B.红霉素 C.四环素"},)), "首选药物是？"),
        (Sample("1", ({"role": "user", "content": "首选药物是\n选项：\n(A) 青霉素\n(B) 红霉素"},)), "首选药物是"),
        (Sample("1", ({"role": "user", "content": "维生素A. 缺乏时怎样？"},)), "维生素A. 缺乏时怎样？"),
        (Sample("1", ({"role": "user", "content": "Is vitamin A. safe?"},)), "Is vitamin A. safe?"),
    ],
)
def test_stem_leaves_the_options_out(sample: Sample, wanted: str):
    assert normalise(stem(sample)) == normalise(wanted)


def test_long_runs_take_no_time():
    for piece in ("\n", " ", "(", "(-", "1 ", " A.", "-", "_", "1.", "⁹"):
        sample = ask("1", piece * 5000 + "x")
        assert stem(sample) == sample.question
        normalise(sample.question)


# ---- leakage


def test_exact_in_question_reasoning_and_answer():
    item = ask("i", LONG, FOUR)
    rows = [
        ask("q", LONG.replace("，", ", ") + "？", OTHER),  # other options do not hide a long stem
        ask("t", LONG.replace("发", "發").replace("断", "斷")),
        ask("r", "讲一个病例", reasoning="题目：" + LONG + "心肌梗死"),
        ask("a", "讲一个病例", answer=LONG + "：心肌梗死"),
        ask("n", "胸痛的常见原因有哪些？", reasoning="胸痛可见于心肌梗死"),
    ]
    assert traces(rows, [item]) == [
        ("i", "q", "question", "exact", 1.0),
        ("i", "t", "question", "exact", 1.0),
        ("i", "r", "reasoning", "exact", 1.0),
        ("i", "a", "answer", "exact", 1.0),
    ]


def test_only_the_strongest_trace_is_reported_with_its_texts():
    row = ask("r", "请回答：" + LONG, reasoning="先读题：" + LONG, answer=LONG)
    (leak,) = leaks([row], {"exam": [ask("i", LONG, FOUR)]})
    assert (leak.benchmark, leak.item, leak.row, leak.where, leak.how) == ("exam", "i", "r", "reasoning", "exact")
    assert (leak.item_text, leak.row_text) == (LONG, "先读题：" + LONG)
    assert traces([ask("r", LONG, reasoning=LONG)], [ask("i", LONG)]) == [("i", "r", "question", "exact", 1.0)]


def test_ngrams_find_embedded_and_edited_stems():
    rows = [
        ask("embedded", "请仔细阅读下面的病例并回答问题。" + LONG + "什么？请说明理由。"),
        ask(
            "edited", "老师说：" + LONG.replace("诊断是", "诊断为") + "何，请分析并给出下一步的处理意见和完整的护理计划"
        ),
        ask("english", f"Case report for students. {ENGLISH}. Please explain in detail the mechanism of each finding."),
        ask("words", " ".join(reversed(ENGLISH.split()))),  # the same words in another order
        ask("half", LONG[: len(LONG) // 2]),
    ]
    found = traces(rows, [ask("zh", LONG, FOUR), ask("en", ENGLISH)])
    assert [trace[:4] for trace in found] == [
        ("zh", "embedded", "question", "ngram"),
        ("zh", "edited", "question", "ngram"),
        ("en", "english", "question", "ngram"),
    ]
    assert found[0][4] == found[2][4] == 1.0
    assert 0.8 <= found[1][4] < 1


def test_near_finds_edits_spread_over_the_stem():
    words = [chr(97 + k // 26) + chr(97 + k % 26) + "x" for k in range(60)]
    edited = ["changed" if k in (20, 40) else word for k, word in enumerate(words)]
    (trace,) = traces([ask("r", " ".join(edited))], [ask("i", " ".join(words))])
    assert trace == ("i", "r", "question", "near", round((58 - 6) / (58 + 6), 2))  # of 8-grams 37 of 53 are left
    assert traces([ask("r", "?", reasoning=" ".join(edited))], [ask("i", " ".join(words))]) == []  # questions only


def test_short_stems():
    assert traces([ask("r", "何为休克")], [ask("i", "何为休克")]) == []  # 4 characters
    assert traces([ask("r", "休克的治疗？")], [ask("i", "休克的治疗")]) == []  # 5
    assert traces([ask("r", "休克的治疗法？")], [ask("i", "休克的治疗法")]) == [("i", "r", "question", "exact", 1.0)]
    # too short to count inside a reasoning: 11 characters, or few words however long
    inside = ask("r", "其他问题", reasoning="那么高血压患者首选的药物是什么呢")
    assert traces([inside], [ask("i", "高血压患者首选的药物是")]) == []
    assert traces([inside], [ask("i", "高血压患者首选的药物是什么")]) == [("i", "r", "reasoning", "exact", 1.0)]
    latin = ask("r", "Other question", reasoning="so the treatment of choice was given")
    assert traces([latin], [ask("i", "Treatment of choice")]) == []
    assert traces([ask("r", "Treatment of choice?")], [ask("i", "Treatment of choice")]) != []


def test_short_latin_stem_inside_a_question_with_inline_options():
    row = ask("r", "Answer this: drug of choice for acute attack of gout is? A. colchicine B. aspirin C. gold")
    item = ask("i", "Drug of choice for acute attack of gout is", {"A": "colchicine", "B": "aspirin"})
    assert traces([row], [item]) == [("i", "r", "question", "ngram", 1.0)]


def test_numbers_and_signs_tell_questions_apart():
    item = ask("i", "某药每日剂量为1.5克时血药浓度")
    assert traces([ask("r", "某药每日剂量为15克时血药浓度")], [item]) == []
    positive, negative = "HBsAg(+)的孕妇分娩", "HBsAg(-)的孕妇分娩"
    assert traces([ask("r", positive)], [ask("i", negative)]) == []


@pytest.mark.parametrize(
    "text", ["下列说法正确的是", "以下哪项叙述是错误的？", "Which of the following statements is true?"]
)
def test_generic_stems_count_only_with_their_options(text: str):
    item = ask("i", text, FOUR)
    shuffled = dict(zip("ABCD", ["氯霉素", "青霉素。", "四环素", "红霉素"], strict=True))
    five = FOUR | {"E": "链霉素"}
    exact = ("question", "exact", 1.0)
    assert traces([ask("r", text, OTHER)], [item]) == []
    assert traces([ask("r", text)], [item]) == []
    assert traces([ask("r", text, reasoning=text)], [item]) == []
    assert traces([ask("r", text, FOUR)], [item]) == [("i", "r", *exact)]
    assert traces([ask("r", text, shuffled)], [item]) == [("i", "r", *exact)]
    assert traces([ask("r", text, five)], [item]) == [("i", "r", *exact)]
    inline = with_options(text, FOUR)  # options in the text alone
    assert traces([ask("r", inline)], [item]) == [("i", "r", *exact)]
    assert traces([ask("r", inline)], [ask("i", text)]) == []  # an item without options says nothing


def test_stems_that_a_benchmark_asks_twice_are_generic():
    text = "该病人首选的治疗药物"
    items = [ask("1", text, FOUR), ask("2", text, OTHER)]
    assert traces([ask("r", text, OTHER)], items) == [("2", "r", "question", "exact", 1.0)]
    assert traces([ask("r", text)], items) == []
    assert traces([ask("r", text)], items[:1]) == [("1", "r", "question", "exact", 1.0)]
    # four options of five are the same question, not a second one
    five = FOUR | {"E": "链霉素"}
    assert len(traces([ask("r", text)], [items[0], ask("5", text, five)])) == 2
    # a long stem says enough
    assert len(traces([ask("r", LONG)], [ask("1", LONG, FOUR), ask("2", LONG, OTHER)])) == 2


def test_system_prompts_do_not_count_and_earlier_turns_do():
    system = {"role": "system", "content": LONG}
    row = Sample("r", (system, {"role": "user", "content": "你好，请问怎样预防感冒"}))
    item = Sample("i", (system, {"role": "user", "content": "你好，请问怎样治疗骨折"}))
    assert traces([row], [item, ask("j", LONG)]) == []
    turns = (
        {"role": "user", "content": LONG},
        {"role": "assistant", "content": "心肌梗死", "reasoning_content": "读题：" + ENGLISH},
        {"role": "user", "content": "怎样治疗？"},
    )
    assert traces([Sample("r", turns)], [ask("zh", LONG), ask("en", ENGLISH)]) == [
        ("zh", "r", "question", "exact", 1.0),
        ("en", "r", "reasoning", "exact", 1.0),
    ]


def test_an_instruction_before_every_item_is_no_leak():
    """Sixty items and the rows share a long instruction; only what follows it counts."""
    rng = random.Random(5)
    han = [chr(code) for code in range(0x4E00, 0x5200)]
    questions = ["".join(rng.choices(han, k=60)) for _ in range(61)]
    instruction = (
        "假设您是一名经验丰富的临床医生，请根据您的专业知识仔细分析并回答下面的问题，只给出最终的答案，不要解释。" * 2
    )
    items = [ask(f"i{k}", instruction + question) for k, question in enumerate(questions[:60])]
    assert traces([ask("r", instruction + questions[60])], items) == []
    bare = traces([ask("r", "问题：" + questions[7] + "。谢谢")], items)  # without the instruction
    assert bare == [("i7", "r", "question", "ngram", round(53 / 60, 2))]  # 7 grams stand half in the instruction


def test_order_is_that_of_benchmarks_items_and_rows():
    rows = [ask("r2", LONG), ask("r1", LONG)]
    found = leaks(rows, {"z": [ask("b", LONG), ask("a", LONG)], "a": [ask("c", LONG)]})
    keys = [(leak.benchmark, leak.item, leak.row) for leak in found]
    assert keys == [
        ("z", "b", "r2"),
        ("z", "b", "r1"),
        ("z", "a", "r2"),
        ("z", "a", "r1"),
        ("a", "c", "r2"),
        ("a", "c", "r1"),
    ]
    assert leaks([], {"a": [ask("c", LONG)]}) == leaks(rows, {}) == leaks(rows, {"empty": []}) == []


@pytest.mark.parametrize("seed", range(4))
def test_leaks_as_a_naive_search_finds_them(seed: int):
    texts = varied(random.Random(100 + seed), 140)
    items = [ask(f"i{k}", text) for k, text in enumerate(texts[:45])]
    rows = [
        ask(f"r{k}", question, reasoning=reasoning, answer=answer)
        for k, (question, reasoning, answer) in enumerate(zip(texts[45:75], texts[75:105], texts[105:135], strict=True))
    ]
    wanted = []
    for item in items:
        for row in rows:
            found = naive_trace(
                item.question, {"question": row.question, "reasoning": row.reasoning, "answer": row.answer}
            )
            if found:
                wanted.append((item.id, row.id, *found))
    found = [
        (leak.item, leak.row, leak.where, leak.how, pytest.approx(leak.value)) for leak in leaks(rows, {"e": items})
    ]
    assert {trace[3] for trace in wanted} >= {"exact", "ngram"}
    assert found == wanted


def naive_trace(item: str, fields: dict[str, str]) -> tuple[str, str, float] | None:
    key, units = item.replace(" ", ""), naive_units(item)
    grams = naive_grams(units, 8)
    traces = []
    if len(key) < 6:
        return None
    for place, (where, text) in enumerate(fields.items()):
        field = text.replace(" ", "")
        if where == "question" and key == field:
            traces.append((0, -1.0, place, where))
        if len(key) >= 12 and len(units) >= 8 and key in field:
            traces.append((1 if where == "question" else 0, -1.0, place, where))
        if len(grams) >= 5 and len(grams & naive_grams(naive_units(text), 8)) / len(grams) >= 0.8:
            traces.append((1, -len(grams & naive_grams(naive_units(text), 8)) / len(grams), place, where))
        if where == "question" and len(units) >= 12:
            value = jaccard(naive_shingles(item), naive_shingles(text, like=item))
            if value >= 0.8:
                traces.append((2, -value, place, where))
    if not traces:
        return None
    how, value, _, where = min(traces)
    return where, ("exact", "ngram", "near")[how], -value


# ---- real files


def rows_of(path: Path) -> list[Sample]:
    return load(Source(path=str(path)), None, on_bad_row="skip", needs="target").rows


def test_real_benchmarks_share_items(shared_data: Path):
    bench = shared_data / "bench"
    validation = rows_of(bench / "cmexam_val.jsonl")
    for other, least in (("medqa_mainland_test.json", 5), ("cmexam_test_single.json", 1)):
        rows = rows_of(bench / other)
        pairs = shared_items(validation, rows)
        stems = [{row.id: normalise(stem(row)) for row in some} for some in (validation, rows)]
        assert len(pairs) >= least
        assert all(stems[0][first] == stems[1][second] for first, second in pairs)
        # and leaks, which compares the other way round, finds them all
        found = {(leak.row, leak.item) for leak in leaks(validation, {"b": rows}) if leak.how == "exact"}
        assert set(pairs) <= found


def test_real_training_rows_hold_no_benchmark_item_until_one_is_put_in(shared_data: Path):
    train = rows_of(shared_data / "rl/medical_o1_verifiable_problem.json")
    exam = rows_of(shared_data / "bench/medqa_us_4opt_test.jsonl")
    before = leaks(train, {"medqa": exam})
    hidden = exam[17]
    planted = ask("planted", "Some question on another matter", reasoning="I recall: " + stem(hidden))
    after = leaks([*train, planted], {"medqa": exam})
    assert [leak for leak in after if leak.row != "planted"] == before
    assert [(leak.item, leak.where, leak.how) for leak in after if leak.row == "planted"] == [
        (hidden.id, "reasoning", "exact")
    ]
