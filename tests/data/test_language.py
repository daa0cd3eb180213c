from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.language import language, mix, script, simplified
from danlu.data.sources import load
from danlu.recipe import Source


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("患者发热三天，伴咳嗽。", "zh"),
        ("患者HBsAg阳性，ALT 120 U/L，给予Entecavir治疗", "zh"),  # terms and units do not make it English
        ("<think>先看血常规</think>贫血", "zh"),
        ("A patient has a fever (38.5 °C) for 3 days.", "en"),
        ("What does 阴虚 mean in traditional Chinese medicine?", "en"),
        ("Der Patient hat seit Jahren Übelkeit.", "en"),  # Latin letters, whichever language
        ("The patient with 高热不退 was given 头孢曲松 today", "mixed"),
        ("高血压 hypertension, 糖尿病 diabetes mellitus", "mixed"),
        ("患者は発熱と咳嗽があります", "other"),
        ("환자는 열이 있습니다", "other"),
        ("У пациента жар", "other"),
        ("12.5 / 3 = ?", "other"),
        ("", "other"),
        ("干扰素α与TNF-β", "zh"),
    ],
)
def test_language_by_weight_of_letters(text: str, wanted: str):
    assert language(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("发热三天，诊断为肺炎", "simplified"),
        ("發熱三天，診斷為肺炎", "traditional"),
        ("发热三天，診斷为肺炎", "both"),
        ("皇后在里面", "neither"),  # 后 里 面: simplified for 後 裡 麵, and right in traditional texts
        ("干部的台子只有几分", "neither"),
        ("乾隆", "neither"),  # stays in simplified texts
        ("白血病", "neither"),
        ("fever", "neither"),
        ("", "neither"),
        ("皇后的診斷", "traditional"),  # a neutral character beside telling ones changes nothing
        ("后来的诊断", "simplified"),
    ],
)
def test_script_by_telling_characters(text: str, wanted: str):
    assert script(text) == wanted


def test_a_stray_character_does_not_make_both():
    assert script("诊断发热" * 6 + "診") == "simplified"
    assert script("診斷發熱" * 6 + "诊") == "traditional"
    assert script("诊断发热" * 2 + "診") == "both"


def test_mix_counts_every_text_once():
    counts = mix(["发热", "發熱", "fever", "12", "發热", "The patient with 高热不退 was given 头孢曲松 today", "皇后"])
    assert counts == {
        **{"zh": 4, "en": 1, "mixed": 1, "other": 1},
        **{"simplified": 2, "traditional": 1, "both": 1, "neither": 1},
    }
    assert list(mix([])) == ["zh", "en", "mixed", "other", "simplified", "traditional", "both", "neither"]


@given(st.text("诊断发热患者皮炎后里干fever ，。12", max_size=40))
def test_simplified_text_never_reads_as_traditional(text: str):
    assert script(text) in ("simplified", "neither")
    assert simplified(text) == text


def test_phrases_decide_in_conversion():
    assert simplified("皮膚乾燥，乾坤，反覆發熱") == "皮肤干燥，乾坤，反复发热"


def test_real_files_are_in_the_language_they_claim(shared_data):
    def counts(path: str) -> dict[str, int]:
        rows = load(Source(path=str(shared_data / path)), None, on_bad_row="skip").rows
        return mix(row.question + row.reasoning + row.answer for row in rows)

    chinese, english = counts("sft/delicate_medical_r1.jsonl"), counts("sft/medical_o1_sft_English.json")
    assert (chinese["zh"], chinese["simplified"]) == (200, 200)
    assert english["en"] == 150
    exam = counts("bench/cmexam_val.jsonl")
    assert exam["traditional"] == 0
    assert exam["zh"] > 1340
