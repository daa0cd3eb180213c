"""From chats to token ids and from token ids to Completions, for the generators that hold a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from danlu.data.encode import encode
from danlu.data.render import prompt_text
from danlu.errors import DanluError
from danlu.generate.stream import cut
from danlu.records import Completion, Message
from danlu.think import ThinkFormat


def encoded(
    tokenizer: Any, think: ThinkFormat, chats: Sequence[Sequence[Message]], thinking: bool
) -> tuple[list[str], list[list[int]]]:
    """The prompt of each chat as text and as ids."""
    found = [prompt_text(tokenizer, think, list(chat), thinking=thinking) for chat in chats]
    return found, [ids.tolist() for ids in encode(tokenizer, found)]


def completion(
    tokenizer: Any,
    think: ThinkFormat,
    end_ids: Sequence[int],
    tokens: Sequence[int],
    *,
    logprobs: Sequence[float] = (),
    stopped: bool,
    stop: Sequence[str] = (),
) -> Completion:
    """What ids say: text without the end token or stop string, split by the think-format. stopped: by itself."""
    inner = tokens[:-1] if stopped and tokens and tokens[-1] in end_ids else tokens
    text, _ = cut(tokenizer.decode(list(inner), skip_special_tokens=False), stop)
    reasoning, answer, well_formed = think.split(text)
    return Completion(
        text=text,
        reasoning=reasoning,
        answer=answer,
        finish="stop" if stopped else "length",
        well_formed=well_formed and stopped,
        tokens=tuple(tokens),
        logprobs=tuple(logprobs),
    )


def first_tokens(tokenizer: Any, letters: Sequence[Sequence[str]]) -> dict[str, int]:
    """Letter -> its first token; DanluError when two letters begin with the same."""
    first = {letter: int(encode(tokenizer, [letter])[0][0]) for own in letters for letter in own}
    if len(set(first.values())) < len(first):
        raise DanluError("this tokenizer has no token of its own for each option letter", "leave out loglikelihood")
    return first
