"""Chat turns under our roles, and the inline <think> block of an assistant turn.

Not covered: tool calls, images, several answers to one turn.
"""

from __future__ import annotations

import re
from typing import Any

from danlu.data.cells import BadRow, as_list, clean, find, kind
from danlu.records import Message

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_ROLES |= {"bot": "assistant", "chatgpt": "assistant", "model": "assistant"}
_THINK = re.compile(r"\s*(?:<think>)?(?P<reasoning>.*?)</think>(?P<answer>.*)", re.DOTALL)


def ask(question: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": question},)


def turns_of(value: Any) -> tuple[Message, ...]:
    """Chat turns under our roles, from role/content or ShareGPT's from/value; BadRow names the turn."""
    turns: list[Message] = []
    for number, turn in enumerate(as_list(value), 1):
        if not isinstance(turn, dict):
            raise BadRow(f"turn {number} is {kind(turn)}, not an object")
        _, role = find(turn, ("role", "from"))
        if _ROLES.get(str(role)) is None:
            raise BadRow(f"turn {number} has the role {str(role)[:40]!r} (known: system, user, assistant, human, gpt)")
        content = clean(find(turn, ("content", "value"))[1], f"turn {number}", required=role not in ("system",))
        made = Message(role=_ROLES[str(role)], content=content)  # type: ignore[typeddict-item]
        thought = clean(turn.get("reasoning_content"), f"reasoning of turn {number}", required=False)
        if thought:
            made["reasoning_content"] = thought
        if content or thought:
            turns.append(made)
    spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
    if spoken and spoken[0] != "user":
        raise BadRow("the first turn is not the user's")
    return tuple(turns)


def spoken(turn: Message) -> Message:
    """An earlier turn with its reasoning apart from its answer (whether a model sees it, its template decides)."""
    if turn["role"] != "assistant":
        return turn
    reasoning, answer = split(turn["content"])
    reasoning = turn.get("reasoning_content") or reasoning
    if not reasoning:
        return {"role": "assistant", "content": answer}
    return {"role": "assistant", "content": answer, "reasoning_content": reasoning}


def split(text: str) -> tuple[str, str]:
    """(reasoning, answer) of an assistant turn with an inline <think> block; BadRow when it is not closed."""
    found = _THINK.fullmatch(text) if "</think>" in text else None
    if not found:
        if "<think>" in text:
            raise BadRow("a <think> block is not closed")
        return "", text
    answer = found["answer"].strip()
    if not answer:
        raise BadRow("there is no answer after </think>")
    return found["reasoning"].strip(), answer
