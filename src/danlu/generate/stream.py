"""From tokens to text while a model writes: whole characters, stop strings across tokens, reasoning apart from answer.

Every function is a generator over pieces. Text that may still change its meaning (half a character, the beginning of
a stop string or tag, white space that could be the end) is held back until the next piece decides.
Departure from `ThinkFormat.split`, which knows the whole text: an answer that was begun without an opening tag has
been told as answer when a closing tag comes later.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

from danlu.generate import Streamed
from danlu.generate.replies import Part
from danlu.think import ThinkFormat

UNFINISHED = "\ufffd"  # what a decoder writes for half a character
LONGEST = 4  # tokens that one character can take at most, one byte each


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop strings, and whether there was one."""
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


def ends_in_stop(tokenizer: Any, stops: Sequence[str]) -> Callable[[list[int]], bool] | None:
    """Whether the last token of ids completes a stop string; None without any.

    A token holds at least one byte, so as many tokens as the longest stop has bytes are looked at, and a few more for
    a character that is cut in two.
    """
    if not stops:
        return None
    reach = max(len(stop.encode()) for stop in stops) + LONGEST

    def ended(ids: list[int]) -> bool:
        text = tokenizer.decode(ids[-reach:], skip_special_tokens=False)
        return any(stop in text for stop in stops)

    return ended


def counted(tokens: Iterable[int], ends: Container[int], streamed: Streamed, limit: int) -> Iterator[int]:
    """The tokens without end tokens, counted in `streamed`; at `limit` of them without an end the answer was cut."""
    for token in tokens:
        if token not in ends:
            streamed.tokens += 1
            streamed.cut = streamed.tokens >= limit
            yield token


def texts(tokenizer: Any, tokens: Iterable[int]) -> Iterator[str]:
    """Pieces of text that together are what the tokenizer makes of all tokens; no piece ends inside a character.

    Only the tokens since the last whole piece are decoded again, with what came before them for the tokenizers that
    write a word differently at the beginning.
    """
    ids: list[int] = []
    start = told = 0
    for token in tokens:
        ids.append(token)
        known = tokenizer.decode(ids[start:told], skip_special_tokens=False)
        text = tokenizer.decode(ids[start:], skip_special_tokens=False)
        if len(text) > len(known) and not text.endswith(UNFINISHED):
            yield text[len(known) :]
            start, told = told, len(ids)
    rest = tokenizer.decode(ids[start:], skip_special_tokens=False)
    rest = rest[len(tokenizer.decode(ids[start:told], skip_special_tokens=False)) :]
    if rest:
        yield rest


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The pieces before the first of the stop strings, wherever they are cut."""
    held = ""
    for piece in pieces:
        held, stopped = cut(held + piece, stops)
        keep = 0 if stopped else _begun(held, stops)
        if len(held) > keep:
            yield held[: len(held) - keep]
        held = held[len(held) - keep :]
        if stopped:
            return
    if held:
        yield held


def _begun(text: str, marks: Iterable[str]) -> int:
    """How many characters at the end of a text could be the beginning of one of the marks."""
    return max(
        (n for mark in marks for n in range(1, min(len(mark), len(text) + 1)) if text.endswith(mark[:n])), default=0
    )


def parts(pieces: Iterable[str], think: ThinkFormat) -> Iterator[tuple[Part, str]]:
    """("reasoning" | "answer", text) of one completion, each side without white space around it."""
    yield from _trimmed(_tagged(pieces, think))


def _tagged(pieces: Iterable[str], think: ThinkFormat) -> Iterator[tuple[Part, str]]:
    """The two sides without the tags."""
    if think.style == "none":
        yield from (("answer", piece) for piece in pieces)
        return
    inner = ("<answer>", "</answer>") if think.style == "reasoning_answer" else ()
    held, state = "", "reasoning" if think.opened_by == "template" else "start"
    fresh = True  # a second opening tag at the very beginning is no text either
    for piece in pieces:
        held += piece
        if fresh:
            held = held.lstrip()
            if think.open.startswith(held) and len(held) < len(think.open):
                continue
            if held.startswith(think.open):
                held, state = held[len(think.open) :], "reasoning"
            elif state == "start":
                state = "answer"
            fresh = False
        if state == "reasoning":
            text, closed, rest = held.partition(think.close)
            keep = 0 if closed else _begun(text, (think.open, think.close))
            yield "reasoning", text[: len(text) - keep].replace(think.open, "")
            held, state = (rest, "answer") if closed else (text[len(text) - keep :], state)
        if state == "answer" and inner:  # white space, where the format was kept, and the tag
            before, tag, rest = held.partition(inner[0])
            keep = 0 if tag else _begun(before, inner[:1])
            if not tag:
                yield "answer", before[: len(before) - keep]
            held, state = (rest, "inside") if tag else (before[len(before) - keep :], state)
        elif state == "answer":
            yield "answer", held
            held = ""
        if state == "inside":
            held, over = cut(held, inner[1:])
            keep = 0 if over else _begun(held, inner[1:])
            yield "answer", held[: len(held) - keep]
            if over:
                return
            held = held[len(held) - keep :]
    yield ("reasoning" if state == "reasoning" else "answer"), held


def _trimmed(pairs: Iterable[tuple[Part, str]]) -> Iterator[tuple[Part, str]]:
    """Without white space at the beginning and the end of either side."""
    space = {"reasoning": "", "answer": ""}
    begun = {"reasoning": False, "answer": False}
    for part, text in pairs:
        text = text if begun[part] else text.lstrip()
        if not text:
            continue
        begun[part] = True
        solid = text.rstrip()
        if solid:
            yield part, space[part] + solid
            space[part] = text[len(solid) :]
        else:
            space[part] += text
