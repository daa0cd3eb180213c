"""Text while it is written: whatever the cuts, the pieces are those of the whole text."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from danlu import think
from danlu.generate.stream import cut, ends_in_stop, parts, texts, until
from danlu.think import ThinkFormat
from tiny_models import tokenizer

THINK = ThinkFormat("think", "<think>", "</think>", "model", head="<think>\n", bridge="\n</think>\n\n")
OPENED = ThinkFormat("think", "<think>", "</think>", "template", prefix="<think>\n", bridge="\n</think>\n\n")
REASONING = think.detect(lambda messages, **_: messages[-1]["content"], (), "reasoning_answer")
PLAIN = ThinkFormat("none")

WRITTEN = {
    "kept": (THINK, "<think>\nfirst a, then <b\n</think>\n\nIt is </ 4.\n"),
    "in Chinese": (THINK, "<think>\n先想一想。\n</think>\n\n多喝水，😀 休息。"),
    "space before": (THINK, "\n <think>a</think>b"),
    "never closed": (THINK, "<think>\non and on </thin"),
    "never thought": (THINK, "At once: 4 < 5.\n\nReally."),
    "empty": (THINK, ""),
    "closed twice": (THINK, "<think>a</think>b</think>c"),
    "opened twice": (THINK, "<think>a<think>b</think>c"),
    "opened by the template": (OPENED, "a, b\n</think>\n\nc"),
    "opened again": (OPENED, "<think>\na\n</think>\n\nc"),
    "template, never closed": (OPENED, "a, b"),
    "two blocks": (REASONING, REASONING.join("why\nso", "because <ans")),
    "two blocks, two answers": (REASONING, "<reasoning>a</reasoning><answer>b<answer>c</answer>d</answer>"),
    "two blocks, no answer tag": (REASONING, "<reasoning>a</reasoning>b <an c"),
    "two blocks, answer not closed": (REASONING, "<reasoning>a</reasoning>\n<answer>\nb </answ"),
    "no format": (PLAIN, "  plain <think>text</think> \n"),
}


def cuts(text: str, seed: int) -> list[str]:
    draw, pieces = random.Random(seed), []
    while text:
        size = draw.choice([1, 1, 2, 3, 5, 40])
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@pytest.mark.parametrize("name", WRITTEN)
def test_reasoning_and_answer_are_those_of_the_whole_text(name: str) -> None:
    format, text = WRITTEN[name]
    reasoning, answer, _ = format.split(text)
    for seed in range(30):
        told = {"reasoning": "", "answer": ""}
        for part, piece in parts(cuts(text, seed), format):
            assert piece
            told[part] += piece
        assert (told["reasoning"], told["answer"]) == (reasoning, answer)


def test_pieces_come_as_soon_as_they_are_certain() -> None:
    told = []

    def pieces() -> Iterator[str]:
        for piece in ("<think>", "one ", "two", "</th", "ink>", "three"):
            told.append(f"({piece})")
            yield piece

    for _, text in parts(pieces(), THINK):
        told.append(text)
    assert told == ["(<think>)", "(one )", "one", "(two)", " two", "(</th)", "(ink>)", "(three)", "three"]


@pytest.mark.parametrize("stops", [("\n\n",), ("END", "NEVER"), ("喝水", "D."), ("x",)])
def test_stop_strings_wherever_they_are_cut(stops: tuple[str, ...]) -> None:
    text = "one\ntwo EN 多喝水 END three\n\nfour D."
    for seed in range(30):
        assert "".join(until(cuts(text, seed), stops)) == cut(text, stops)[0]


def test_the_first_stop_string_counts() -> None:
    assert cut("a b c", ("c", "b")) == ("a ", True)
    assert cut("a b c", ("d",)) == ("a b c", False)
    assert list(until(["a ", "b c", "d"], ("b", "c"))) == ["a "]
    assert list(until(["a", "b"], ())) == ["a", "b"]


@pytest.mark.parametrize("kind", ["chatml", "r1", "llama3"])
def test_no_piece_ends_inside_a_character(kind: str) -> None:
    made = tokenizer(kind)
    for text in ("发热要看原因。😀 it is 👩‍⚕️ 4.", "龘靐 a\n\n  b", "plain words only", "😀"):
        ids = made(text, add_special_tokens=False)["input_ids"]
        pieces = list(texts(made, iter(ids)))
        assert "".join(pieces) == made.decode(ids)
        assert not any("\ufffd" in piece for piece in pieces)
    assert len(list(texts(made, iter(made("a b c d e f", add_special_tokens=False)["input_ids"])))) > 4


def test_a_text_that_ends_inside_a_character_is_told_as_it_is() -> None:
    made = tokenizer("chatml")
    ids = made("龘", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert "".join(texts(made, iter(ids[:-1]))) == made.decode(ids[:-1])


def test_a_stop_string_is_seen_across_tokens() -> None:
    made = tokenizer("chatml")
    assert ends_in_stop(made, ()) is None
    for stop in ("龘靐", "it is 4", "."):
        ended = ends_in_stop(made, ("never there", stop))
        assert ended is not None
        ids = made(f"before 发热 {stop} after", add_special_tokens=False)["input_ids"]
        first = next(n for n in range(1, len(ids) + 1) if ended(ids[:n]))
        assert stop in made.decode(ids[:first])
        assert stop not in made.decode(ids[: first - 1])
