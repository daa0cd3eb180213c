"""The fast encoder is the tokenizer, or it is not used."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import danlu
from danlu.data import encode as module
from danlu.data.encode import _by_tokenizer, _described, encode, tiktoken_of
from danlu.models.tokenizer import load_tokenizer

TINY = load_tokenizer(Path(danlu.__file__).parent / "assets" / "tiny")
ODD = [
    "",
    " ",
    "\n\n",
    "e\u0301te\u0301",
    "naïve 1234 don'T 'ſ",
    "<|im_end|>\u0338",
    "发热<|im_start|>咳嗽",
    "\u3000中",
    "👩‍⚕️",
]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=40), min_size=64, max_size=70))
def test_equal_on_any_text(texts: list[str]):
    found, wanted = encode(TINY, texts), _by_tokenizer(TINY, texts)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", ["qwen3", "qwen2.5", "r1"])
def test_equal_on_real_tokenizers_and_rows(model_format, shared_data, name):
    tokenizer, _ = model_format(name)
    rows = [json.loads(line) for line in (shared_data / "sft/delicate_medical_r1.jsonl").open(encoding="utf-8")]
    texts = [*ODD, *(row["think"] + "<|im_end|>\n" + row["answer"] for row in rows)]
    found = encode(tokenizer, texts)
    assert module._FAST[tokenizer] is not None  # these are the ones it is made for
    assert all(np.array_equal(a, b) for a, b in zip(found, _by_tokenizer(tokenizer, texts), strict=True))


@pytest.mark.slow
def test_equal_on_every_character(model_format):
    tokenizer, _ = model_format("qwen3")
    letters = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    for at in range(0, len(letters), 100_000):
        texts = [f"a{c}b 1{c}2 {c}{c}\n{c}'{c} '{c}e x{c}'s" for c in letters[at : at + 100_000]]
        wanted = _by_tokenizer(tokenizer, texts)
        assert all(np.array_equal(a, b) for a, b in zip(encode(tokenizer, texts), wanted, strict=True))


def test_a_vocabulary_that_is_not_in_rank_order_is_left_to_the_tokenizer():
    described = _described(TINY)
    assert tiktoken_of(described) is not None

    def changed(**changes) -> dict:
        return {**copy.deepcopy(described), **changes}

    model = described["model"]
    swapped = [*model["merges"][1:2], *model["merges"][:1], *model["merges"][2:]]
    assert tiktoken_of(changed(model={**model, "merges": swapped})) is None
    assert tiktoken_of(changed(model={**model, "merges": model["merges"][:-1]})) is None  # a token no merge makes
    assert tiktoken_of(changed(model={**model, "type": "Unigram"})) is None
    assert tiktoken_of(changed(normalizer={"type": "Lowercase"})) is None
    assert tiktoken_of(changed(pre_tokenizer={"type": "Whitespace"})) is None
    stripping = [{**described["added_tokens"][0], "lstrip": True}]
    assert tiktoken_of(changed(added_tokens=stripping)) is None


def test_one_difference_and_the_tokenizer_does_it_all(capsys):
    class Wrong:
        def encode_to_numpy(self, *_args: str, **_options: str) -> np.ndarray:
            return np.array([1, 2, 3])

    texts = [f"发热 {n}" for n in range(100)]
    tokenizer = copy.deepcopy(TINY)
    module._FAST[tokenizer] = Wrong()
    found = encode(tokenizer, texts)
    assert all(np.array_equal(a, b) for a, b in zip(found, _by_tokenizer(TINY, texts), strict=True))
    assert module._FAST[tokenizer] is None
    assert "disagrees with the tokenizer" in capsys.readouterr().err
    assert encode(tokenizer, []) == []
