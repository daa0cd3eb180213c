"""One row's tokens by what they do: nothing lost, characters whole, every token counted where it belongs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_page import EVIL, read

import danlu
from danlu.data.render import IGNORE, Rendered, Shape, render
from danlu.data.view import Piece, count, html, pieces
from danlu.models.tokenizer import load_tokenizer
from danlu.records import Sample

TINY = load_tokenizer(Path(danlu.__file__).parent / "assets" / "tiny")
END = TINY.eos_token_id


def row(tokens: list[int], loss: list[bool], masked: tuple[tuple[int, int], ...] = ()) -> Rendered:
    ids = np.array(tokens, dtype=np.int32)
    return Rendered("r", ids, np.where(np.array(loss, dtype=bool), ids, IGNORE), masked=masked)


def ids(text: str, tokenizer: Any = TINY) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def check(
    tokenizer: Any, tokens: list[int], loss: list[bool], masked: tuple[tuple[int, int], ...], end: int
) -> list[Piece]:
    """The pieces, after what holds for every row."""
    found = pieces(tokenizer, row(tokens, loss, masked), [end])
    whole = tokenizer.decode(tokens)
    assert "".join(piece.text for piece in found) == whole
    inside = {n for a, b in masked for n in range(a, b)}
    kinds = [
        "end" if on and token == end else "masked" if n in inside else "supervised" if on else "context"
        for n, (token, on) in enumerate(zip(tokens, loss, strict=True))
    ]
    assert [piece.kind for piece in found for _ in range(piece.tokens)] == kinds
    assert all(one.kind != two.kind for one, two in pairwise(found))
    return found


def begun(tokenizer: Any, whole: str, tokens: list[int]) -> int:
    """Characters of a byte-level text whose first byte is in `tokens`, the first ones of the text."""
    known = tokenizer.get_added_vocab()
    names = tokenizer.convert_ids_to_tokens(tokens)
    size = sum(len(name.encode()) if name in known else len(name) for name in names)
    return sum(byte & 0xC0 != 0x80 for byte in whole.encode()[:size])


def check_cuts(tokenizer: Any, tokens: list[int], found: list[Piece]) -> None:
    whole = "".join(piece.text for piece in found)
    for n in range(len(found)):
        before = sum(piece.tokens for piece in found[:n])
        assert sum(len(piece.text) for piece in found[:n]) == begun(tokenizer, whole, tokens[:before])


texts = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("你好陶龘😀👩🏽é\n \u200d\ufffd")), max_size=30)


@given(st.data(), texts, texts)
@settings(deadline=None)
def test_every_row_comes_back(data: st.DataObject, one: str, two: str) -> None:
    tokens = ids(f"<|im_start|>user\n{one}<|im_end|>\n") + ids(two) + [END]
    loss = data.draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    begin = data.draw(st.integers(0, len(tokens)))
    found = check(TINY, tokens, loss, ((begin, data.draw(st.integers(begin, len(tokens)))),), END)
    check_cuts(TINY, tokens, found)


@given(st.data(), st.lists(st.integers(0, len(TINY) - 1), max_size=40))
@example(None, [])
@settings(deadline=None)
def test_any_tokens_come_back(data: st.DataObject | None, tokens: list[int]) -> None:
    """Also those whose bytes are no text."""
    loss = data.draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens))) if data else []
    check(TINY, tokens, loss, (), END)


@pytest.mark.parametrize("name", ["qwen3", "qwen2.5", "r1"])
def test_real_tokenizers(model_format: Any, name: str) -> None:
    tokenizer, think = model_format(name)
    question, answer = "龘字怎么读？😀 \ufffd Ünïcode 👨‍👩‍👧", "读作 dá 🏺。"
    sample = Sample("r", ({"role": "user", "content": question},), reasoning="龘：三个龍\n", answer=answer)
    rendered = render(tokenizer, think, [sample], Shape())[0][0]
    found = pieces(tokenizer, rendered, tokenizer.convert_tokens_to_ids(list(think.end_tokens)))
    assert [piece.kind for piece in found] == ["context", "supervised", "end"]
    assert question in found[0].text
    assert found[1].text == think.join(sample.reasoning, answer)
    assert found[2] == Piece(think.end_tokens[0], "end", 1)
    tokens = rendered.tokens.tolist()
    for odd in (0, 1):  # every token of another kind than the one before
        found = check(tokenizer, tokens, [n % 2 == odd for n in range(len(tokens))], (), tokens[-1])
        check_cuts(tokenizer, tokens, found)
    check(tokenizer, tokens[:-4], [n % 3 == 0 for n in range(len(tokens) - 4)], ((2, 9),), tokens[-1])


def test_a_character_of_two_kinds_goes_to_the_first() -> None:
    tokens = ids("😀a")
    assert len(tokens) == 5
    found = pieces(TINY, row(tokens, [False, True, True, False, True]), [END])
    assert found == [
        Piece("😀", "context", 1),
        Piece("", "supervised", 2),
        Piece("", "context", 1),
        Piece("a", "supervised", 1),
    ]


def test_a_cut_row_keeps_its_half_character() -> None:
    tokens = ids("a龘")[:-1]
    assert pieces(TINY, row(tokens, [False] + [True] * (len(tokens) - 1)), [END]) == [
        Piece("a", "context", 1),
        Piece("\ufffd", "supervised", len(tokens) - 1),
    ]


def test_an_end_token_without_loss_is_context() -> None:
    found = pieces(TINY, row([*ids("a"), END, END], [True, False, True]), [END])
    assert [(piece.text, piece.kind) for piece in found] == [
        ("a", "supervised"),
        ("<|im_end|>", "context"),
        ("<|im_end|>", "end"),
    ]


def test_masked_with_and_without_loss() -> None:
    tokens = ids("pot and jar")
    for loss in (True, False):
        found = pieces(TINY, row(tokens, [loss] * len(tokens), ((1, 2),)), [END])
        assert [piece.kind for piece in found].count("masked") == 1
        assert count(found)["masked"] == 1


ROW = [
    Piece(f"<|im_start|>{EVIL}\n", "context", 20),
    Piece("答\x1b案 ", "supervised", 3),
    Piece("[M]", "masked", 2),
    Piece("<|im_end|>", "end", 1),
]


def test_page() -> None:
    text = html([(f"id {EVIL}", ROW), ("open", ROW[:2])], f"Rows {EVIL}")
    tags = read(text)
    assert not tags.of("script")
    assert EVIL not in text
    assert tags.text.count(EVIL) == 5  # title, heading, id, and in both rows
    assert "答<U+001B>案" in tags.text
    kinds = ["context", "supervised", "masked", "end"]
    assert [own["class"] for own in tags.of("mark")] == kinds + kinds + kinds[:2]  # the legend, and two rows
    assert "2 rows, 49 tokens" in tags.text
    assert "context 20 · supervised 3 · masked 2 · end 1" in tags.text
    assert tags.text.count("does not teach the model to stop") == 1
    assert text.count('<span class="nl">↵</span>\n') == 2
    assert "prefers-color-scheme: dark" in text
    assert not any(word in text for word in ("http", "src=", "href="))
