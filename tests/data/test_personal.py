from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.personal import Found, check_character, find, redact, redact_sample
from danlu.data.sources import load
from danlu.recipe import Source
from danlu.records import Sample

ID = "11010519491231002X"  # the example of GB 11643-1999
OLD_ID = "110105491231002"


def kinds(text: str) -> list[tuple[str, str]]:
    return [(found.kind, found.text) for found in find(text)]


# ---- ID numbers


@pytest.mark.parametrize(
    "written",
    [ID, ID.lower(), "１１０１０５１９４９１２３１００２Ｘ", "110105 19491231 002X", "110105-19491231-002x", OLD_ID],
)
def test_id_numbers_in_any_writing(written: str):
    text = f"身份证号{written}，男"
    assert find(text) == [Found("id_number", 4, 4 + len(written), written)]
    assert redact(text) == "身份证号[ID]，男"


@pytest.mark.parametrize(
    "text",
    [
        "110105194912310021",  # check digit
        "110105194902300023",  # 30 February
        "990105194912310029",  # no such province
        "11010518491231002X",  # 1849
        f"1{ID}",
        f"{ID}1",
        f"a{ID}",
        f"0.{ID}",
        "110105491331002",  # month 13
        "990105491231002",
        "123456789012345",
        "110105 19491231-002X",
        "ISBN 978-7-117-12345-6",
        "PMID: 12345678",
    ],
)
def test_numbers_that_are_none(text: str):
    assert find(text) == []


ids = st.builds(
    lambda province, place, born, order: f"{province}{place:04}{born:%Y%m%d}{order:03}",
    st.sampled_from([11, 15, 23, 37, 46, 54, 65]),
    st.integers(0, 9999),
    st.dates(date(1900, 1, 1), date(2099, 12, 31)),
    st.integers(0, 999),
)


@given(ids, st.sampled_from(["", "身份证：", "ID: "]), st.sampled_from(["", "。", "，女"]))
def test_every_valid_id_is_found_and_no_other_check_digit(digits: str, before: str, behind: str):
    right = check_character(digits)
    assert kinds(f"{before}{digits}{right}{behind}") == [("id_number", digits + right)]
    for wrong in "0123456789X":
        if wrong != right:
            assert kinds(f"{before}{digits}{wrong}{behind}") == []


@given(ids)
def test_check_character_is_congruent_to_one(digits: str):
    """The definition of MOD 11-2, apart from the way it is computed."""
    value = 0
    for digit in digits:
        value = (value + int(digit)) * 2 % 11
    assert (value + "0123456789X".index(check_character(digits))) % 11 == 1


# ---- telephone and e-mail


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("请拨13812345678。", ["13812345678"]),
        ("138-1234-5678", ["138-1234-5678"]),
        ("+86 13812345678", ["+86 13812345678"]),
        ("+8613812345678", ["+8613812345678"]),
        ("008613812345678", ["008613812345678"]),
        ("86-19912345678", ["86-19912345678"]),
        ("+86 138 1234 5678", ["+86 138 1234 5678"]),
        ("手机：138 1234 5678", ["138 1234 5678"]),
        ("电话13812345678/13912345678", ["13812345678", "13912345678"]),
        ("王芳,13812345678,女", ["13812345678"]),
        ("电话：010-62345678", ["010-62345678"]),
        ("联系方式 (0571)87654321转801", ["(0571)87654321转801"]),
        ("Tel: +86 10 62345678", ["+86 10 62345678"]),
        ("Tel: 02162345678, 021-62345679", ["02162345678", "021-62345679"]),
        ("１３８１２３４５６７８", ["１３８１２３４５６７８"]),
    ],
)
def test_telephone_numbers(text: str, wanted: list[str]):
    assert kinds(text) == [("phone", number) for number in wanted]


@pytest.mark.parametrize(
    "text",
    [
        "12812345678",  # no such prefix
        "1381234567",
        "138123456789",
        "0.13812345678",
        "13812345678.5",
        "x13812345678",
        "https://example.org/13812345678",
        "细胞13800000000个/L",
        "计数15000000000",
        "130 1400 1500",  # three values
        "138 1234 5678",  # spaced, without a label
        "010-62345678",  # land line without a label
        "血压120-80，010-62345678例",
        "电话：120",
        "拨打12320热线",
        "PaO2 13.8 1234 5678",
        "2020-1234-5678",
        "微软电话会议",
    ],
)
def test_numbers_that_nobody_answers(text: str):
    assert find(text) == []


def test_email():
    text = "邮箱abc.d-e+f@mail.qq.com联系，或 x@y.cn。"
    assert kinds(text) == [("email", "abc.d-e+f@mail.qq.com"), ("email", "x@y.cn")]
    assert kinds("13812345678@163.com") == [("email", "13812345678@163.com")]
    assert kinds("user＠qq.com") == [("email", "user＠qq.com")]
    for text in ("a@b", "@channel", "pkg@1.2.3", "5 mg @ 8:00", "a@@b.com", "@property.setter"):
        assert find(text) == [], text
    assert find("a" * 20000 + "@") == []  # and at once: a quadratic search would take minutes


# ---- names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("患者张伟，男，45岁", "张伟"),
        ("患者张伟因胸痛3小时入院", "张伟"),
        ("患者李秀英于2020年3月入院", "李秀英"),
        ("患者欧阳修文，女，30岁", "欧阳修文"),
        ("患者司马静（女，60岁）", "司马静"),
        ("病人：王建国 男 60岁", "王建国"),
        ("患儿陈子涵，3岁", "陈子涵"),
        ("患者高峰，男，50岁", "高峰"),  # 高 with sex behind it
        ("患者于洋，女，28岁", "于洋"),
        ("患者刘胜楠，性别：女", "刘胜楠"),
        ("患者叫李红，昨日起病", "李红"),
        ("患者王芳2020年行手术", "王芳"),
        ("姓名：李小红", "李小红"),
        ("姓名:高热，", "高热"),  # a form says that it is one
        ("姓名 赵四海 性别 男", "赵四海"),
        ("患者姓名：诸葛亮\n性别：男", "诸葛亮"),
        ("姓名：白雪性别：女", "白雪"),
    ],
)
def test_names(text: str, name: str):
    assert kinds(text) == [("name", name)]
    assert redact(text) == text.replace(name, "[NAME]")


NO_NAMES = """
患者丁香，过敏 患者雷诺，阳性 患者韩国，籍
患者高热 患者高热，男，45岁 患者高热3天 患者高热，咽痛 患者高热因感染 患者高烧不退 患者高龄，女，85岁
患者高危，需手术 患者高敏，过敏原阳性 患者高三，女，17岁 患者高钾，男 患者黄疸 患者黄疸，尿黄
患者黄疸，男，50岁 患者黄染，皮肤瘙痒 患者常规检查 患者常规，无异常 患者白细胞升高 患者白细胞，血小板
患者白带，增多 患者白痰，量多 患者于昨日入院 患者于2020年入院 患者于春，秋两季发作 患者方可，出院
患者方能进食 患者应用，头孢 患者应，卧床 患者曾因胸痛就诊 患者曾患，肝炎 患者曾于2019年住院
患者严重，需抢救 患者严重贫血 患者左侧，肢体无力 患者左肾，结石 患者康复，出院 患者康复后 患者焦虑，失眠
患者焦虑，女，30岁 患者安静，合作 患者安静时 患者温度，38度 患者向家属说明 患者时有，头晕 患者时常，头痛
患者和家属，沟通 患者平静，呼吸 患者平素，体健 患者单纯，肥胖 患者全身，水肿 患者成年男性，45岁
患者车祸，外伤 患者房颤，心率快 患者房颤，男，70岁 患者毛发，稀疏 患者毛囊，发炎 患者石膏，固定
患者凌晨，发作 患者阴道，出血 患者怀孕，3月 患者梅毒，男，35岁 患者霍乱，男，20岁 患者支气管，扩张
患者包皮，过长 患者宫缩，规律 患者经常，咳嗽 患者易怒，口苦 患者尚可，睡眠差 患者尚未，治疗
患者向来，体健 患者何时，可出院 患者何种，药物 患者马上，手术 患者金属，过敏 患者文盲，女，60岁
患者文静，内向 患者单身，男 患者许可，后 患者顾虑，重重 患者连续，用药 患者明显，好转 患者明确，诊断
患者强烈，要求 患者舒适，卧位 患者解释，病情 患者谈话，签字 患者全麻，下手术 患者钟爱，甜食
患者陈旧，心梗 患者陈述，病情 患者石匠，男，50岁 患者陶工，男，50岁 患者童年，体健 患者叶酸，缺乏
患者余无，异常 患者余，无特殊 患者老年，男性 患者青年女性 患者工人，男，40岁 患者男，45岁 患者女性，30岁
患者，男 患者王某某，男，45岁 患者王某，男 患者李女士，30岁 患者张先生，50岁 患者赵大爷，80岁
患者张姓，男 患者张三，男，45岁 患者李××，女 患者王XX，男 患者张*，男 姓名：王某某 姓名：张某 姓名：未知
姓名：不详 姓名：张三 姓名、性别、年龄 姓名性别年龄 姓名：_____ 姓名：[NAME] 患者[NAME]，男，45岁
糖尿病患者江河，日下 患者家属王芳 医生王芳，女，40岁 患者林黛玉式的，体型 患者唐氏，筛查 患者柯萨奇，病毒
患者雷诺现象，明显 患者牛奶，过敏 患者史，无 患者龙胆泻肝汤，加减
"""


@pytest.mark.parametrize("text", NO_NAMES.split())
def test_clinical_words_are_no_names(text: str):
    assert find(text) == []


# ---- redaction

PIECES = "患者 姓名： 张伟 ， 男 45岁 电话： 、 / - a @ . b.com 1 13812345678 010-62345678 +86 x@y.cn 因 ( 高"


def test_redact_all_kinds():
    text = f"患者张伟，男，45岁，身份证{ID}，电话：010-62345678、13812345678，邮箱a@b.com。"
    assert redact(text) == "患者[NAME]，男，45岁，身份证[ID]，电话：[PHONE]、[PHONE]，邮箱[EMAIL]。"
    clean = "患者高热3天，体温39.5℃"
    assert redact(clean) is clean


@given(
    st.lists(
        st.sampled_from([*PIECES.split(), " ", ID, OLD_ID]),
        max_size=14,
    ).map("".join)
)
def test_redact_is_idempotent_and_leaves_nothing(text: str):
    once = redact(text)
    assert redact(once) == once
    assert find(once) == []
    for found in find(text):
        assert text[found.start : found.end] == found.text


def test_redact_sample_reaches_every_turn():
    sample = Sample(
        "1",
        (
            {"role": "user", "content": "患者张伟，男"},
            {"role": "assistant", "content": "电话 13812345678", "reasoning_content": f"证件{ID}"},
            {"role": "user", "content": "继续"},
        ),
        reasoning="张伟的邮箱a@b.com",
        answer="患者张伟因胸痛入院",
        target="张伟",
    )
    redacted = redact_sample(sample)
    assert [dict(turn) for turn in redacted.messages] == [
        {"role": "user", "content": "患者[NAME]，男"},
        {"role": "assistant", "content": "电话 [PHONE]", "reasoning_content": "证件[ID]"},
        {"role": "user", "content": "继续"},
    ]
    assert (redacted.reasoning, redacted.answer) == ("张伟的邮箱[EMAIL]", "患者[NAME]因胸痛入院")
    assert replace(redacted, messages=sample.messages, reasoning=sample.reasoning, answer=sample.answer) == sample
    assert redact_sample(redacted) is redacted
    assert sample.messages[0]["content"] == "患者张伟，男"  # not changed in place


@pytest.mark.parametrize("path", ["sft/delicate_medical_r1.jsonl", "bench/cmexam_val.jsonl"])
def test_public_data_hold_no_personal_data(path: str, shared_data):
    rows = load(Source(path=str(shared_data / path)), None, on_bad_row="skip").rows
    assert len(rows) >= 200
    for row in rows:
        assert redact_sample(row) is row
        assert find(row.question + "\n患者张伟，男，45岁")[-1].text == "张伟"
