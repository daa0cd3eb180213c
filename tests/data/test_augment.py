from __future__ import annotations

import re
from dataclasses import replace

import pottery
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.augment import find, mask, matcher
from danlu.recipe import Masking
from danlu.records import Sample

LEXICON = matcher(pottery.TERMS)
ASK = ({"role": "user", "content": "celadon?"},)
SAMPLE = Sample(
    "s", ASK, reasoning="Celadon needs a kiln, kiln furniture and 青瓷釉.", answer="celadon, 窑具", target="t"
)


def words(text: str) -> list[str]:
    return [text[start:end] for start, end, _ in find(text, LEXICON)]


def test_leftmost_longest_whole_words():
    assert words(SAMPLE.reasoning) == ["Celadon", "kiln", "kiln furniture", "青瓷"]
    assert words("kilns, akiln, kiln-dried, KILN2, 窑, 用窑具") == ["kiln", "窑具"]
    assert words("İİ celadon") == ["celadon"]  # lower case of İ is two characters
    assert find("anything", matcher([])) == []


def test_only_the_target_of_training_changes():
    masked, spans = mask(SAMPLE, Masking(probability=1, terms=(9, 9), forms=["mask"]), LEXICON, seed=0, epoch=0)
    assert masked.reasoning == "[MASK] needs a [MASK], [MASK] and [MASK]釉."
    assert masked.answer == "[MASK], [MASK]"
    assert replace(masked, reasoning=SAMPLE.reasoning, answer=SAMPLE.answer) == SAMPLE
    texts = {"reasoning": masked.reasoning, "answer": masked.answer}
    assert {texts[span.field][span.start : span.end] for span in spans} == {"[MASK]"}
    assert [span.term for span in spans] == ["Celadon", "kiln", "kiln furniture", "青瓷", "celadon", "窑具"]


def test_a_term_is_masked_under_all_its_names():
    masked, _ = mask(
        SAMPLE, Masking(probability=1, terms=(1, 1), forms=["category"]), matcher(pottery.TERMS[:1]), seed=0, epoch=0
    )
    assert (masked.reasoning, masked.answer) == ("[GLAZE] needs a kiln, kiln furniture and [GLAZE]釉.", "[GLAZE], 窑具")


def test_the_draw_depends_on_seed_epoch_and_row_alone():
    def draws(probability: float, **changes) -> list[str]:
        rows = [replace(SAMPLE, id=f"s{n}") for n in range(200)]
        setting = Masking(probability=probability)
        keys = {"seed": 1, "epoch": 0, **changes}
        return [str(mask(row, setting, LEXICON, **keys)) for row in rows]

    assert draws(0.5) == draws(0.5)
    assert draws(0.5) != draws(0.5, epoch=1)
    assert draws(0.5) != draws(0.5, seed=2)
    untouched = sum(text.endswith(", ())") for text in draws(0.1))
    assert 160 < untouched < 195
    assert all(text.endswith(", ())") for text in draws(0.0))
    text = "".join(draws(1.0))
    assert all(form in text for form in ("[MASK]", "[GLAZE]", "[TOOL]", "..."))


def test_a_row_without_terms_stays():
    plain = replace(SAMPLE, reasoning="clay", answer="mud")
    assert mask(plain, Masking(probability=1), LEXICON, seed=0, epoch=0) == (plain, ())


PIECES = st.lists(st.sampled_from(["celadon", "kiln", "kiln furniture", "青瓷", "窑具", " ", "x", "。", "\n", "İ"]))


@given(PIECES, st.integers(0, 99), st.sampled_from(["mask", "category", "ellipsis"]))
def test_spans_put_back_give_the_text(pieces: list[str], seed: int, form: str):
    sample = replace(SAMPLE, reasoning="".join(pieces), answer="kiln")
    masked, spans = mask(sample, Masking(probability=1, terms=(1, 3), forms=[form]), LEXICON, seed=seed, epoch=0)
    for field in ("reasoning", "answer"):
        text = getattr(masked, field)
        for span in reversed([span for span in spans if span.field == field]):
            assert re.fullmatch(r"\[[A-Z]+\]|\.\.\.", text[span.start : span.end])
            text = text[: span.start] + span.term + text[span.end :]
        assert text == getattr(sample, field)
