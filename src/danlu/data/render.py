"""From Samples to tokens: prompt through the chat template, completion through the ThinkFormat, loss on the latter.

The prompt is rendered with add_generation_prompt and tokenised alone, exactly as for generation, so training and
generation see the same prompt tokens. The completion is `think.join(reasoning, answer)` and the model's end token.
It never passes through the template, which deletes reasoning (R1-Distill) or adds an empty block (Qwen3) as it likes.

Departures from apply_chat_template(tokenize=True) on the whole chat: no newline is trained behind the end token, and
prompt and completion never merge into one token. Special tokens are the template's business: the tokenizer adds none,
so a BOS that the template writes is not doubled.
Not covered: text in a row that looks like a special token is tokenised as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from danlu.data.augment import Span
from danlu.errors import DanluError
from danlu.records import Message, Sample
from danlu.think import ThinkFormat

IGNORE = -100  # label of a token without loss
_BATCH = 512  # rows tokenised at once


@dataclass(frozen=True, slots=True)
class Rendered:
    """One row as tokens: `tokens[:prompt_length]` is the prompt, the rest is trained, the end token last.

    `masked_spans`: token ranges [start, end) inside the completion that hold a mask instead of a term.
    """

    id: str
    tokens: list[int]
    prompt_length: int
    masked_spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class RenderReport:
    """What rendering kept: rows given, rows dropped for their length, and of the rest tokens in all and with loss."""

    rows: int
    dropped_overlong: int
    supervised_tokens: int
    tokens: int


def prompt_text(tokenizer: Any, think: ThinkFormat, messages: Sequence[Message], *, thinking: bool = True) -> str:
    """The text a model continues: `messages` (ending with a user turn) through the chat template.

    `thinking=False` adds what the template has to switch thinking off, and nothing where it has no such switch.
    DanluError when the template refuses the messages.
    """
    return _prompt_texts(tokenizer, think, [messages], thinking)[0]


def prompt_ids(tokenizer: Any, think: ThinkFormat, messages: Sequence[Message], *, thinking: bool = True) -> list[int]:
    """Token ids of `prompt_text`."""
    return encode(tokenizer, [prompt_text(tokenizer, think, messages, thinking=thinking)])[0]


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without added special tokens, in one batched call."""
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def end_id(tokenizer: Any, think: ThinkFormat) -> int:
    """Id of the token that ends an answer; DanluError when the format names none, or the tokenizer lacks it."""
    if not think.end_tokens:
        raise DanluError("the model has no end token", "set eos_token in tokenizer_config.json")
    found = tokenizer.convert_tokens_to_ids(think.end_tokens[0])
    if found is None or tokenizer.convert_ids_to_tokens(found) != think.end_tokens[0]:
        raise DanluError(f"the tokenizer has no token {think.end_tokens[0]!r}", "model and tokenizer do not fit")
    return found


def render(
    tokenizer: Any,
    think: ThinkFormat,
    samples: Sequence[Sample],
    max_length: int,
    *,
    overlong: Literal["drop", "error"] = "drop",
    masked: Mapping[str, tuple[Span, ...]] | None = None,
) -> list[Rendered]:
    """Rows of at most `max_length` tokens, in order; longer ones are dropped, or a DanluError.

    `masked`: sample id -> spans that `augment.mask` replaced in it.
    """
    rows: list[Rendered] = []
    end = end_id(tokenizer, think)
    for start in range(0, len(samples), _BATCH):
        batch = samples[start : start + _BATCH]
        prompts = encode(tokenizer, _prompt_texts(tokenizer, think, [sample.messages for sample in batch], True))
        completions = encode(tokenizer, [think.join(sample.reasoning, sample.answer) for sample in batch])
        for sample, prompt, completion in zip(batch, prompts, completions, strict=True):
            spans = (masked or {}).get(sample.id, ())
            places = _token_spans(tokenizer, think, sample, spans, len(prompt)) if spans else ()
            rows.append(Rendered(sample.id, [*prompt, *completion, end], len(prompt), places))
    fitting = [row for row in rows if len(row.tokens) <= max_length]
    if overlong == "error" and len(fitting) < len(rows):
        worst = max(rows, key=lambda row: len(row.tokens))
        raise DanluError(
            f"{len(rows) - len(fitting)} of {len(rows)} rows are longer than {max_length} tokens"
            f" (the longest, {worst.id}, has {len(worst.tokens)})",
            "raise data.max_length, or leave them out with data.overlong=drop",
        )
    return fitting


def report(samples: Sequence[Sample], rendered: Sequence[Rendered]) -> RenderReport:
    """Counts of what `render` made of `samples`."""
    return RenderReport(
        rows=len(samples),
        dropped_overlong=len(samples) - len(rendered),
        supervised_tokens=sum(label != IGNORE for row in rendered for label in labels(row)),
        tokens=sum(len(row.tokens) for row in rendered),
    )


def labels(row: Rendered) -> list[int]:
    """The token ids with IGNORE in the prompt and on masks (a model must not learn to write "[MASK]")."""
    out = [IGNORE] * row.prompt_length + row.tokens[row.prompt_length :]
    for start, end in row.masked_spans:
        out[start:end] = [IGNORE] * (end - start)
    return out


def _prompt_texts(tokenizer: Any, think: ThinkFormat, chats: Sequence[Sequence[Message]], thinking: bool) -> list[str]:
    try:
        texts = tokenizer.apply_chat_template(
            [list(chat) for chat in chats], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # jinja and the template itself raise many kinds
        raise DanluError(
            f"the chat template refuses a row: {error}", "check roles and their order, or use another template"
        ) from error
    off = "" if thinking else think.thinking_off or ""
    return [text + off for text in texts]


def _token_spans(
    tokenizer: Any, think: ThinkFormat, sample: Sample, spans: tuple[Span, ...], prompt_length: int
) -> tuple[tuple[int, int], ...]:
    """Ranges of the row's tokens that touch the masked characters."""
    text = think.join(sample.reasoning, sample.answer)
    parts = {"reasoning": sample.reasoning, "answer": sample.answer}
    before_answer = len(text) - len(think.tail) - len(sample.answer.strip("\n"))
    begins = {"reasoning": len(think.head), "answer": before_answer}
    for name, part in parts.items():
        begins[name] -= len(part) - len(part.lstrip("\n"))
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    ranges = []
    for span in spans:
        start, end = begins[span.field] + span.start, begins[span.field] + span.end
        touched = [place for place, (a, b) in enumerate(offsets) if a < end and b > start]
        if touched:
            ranges.append((prompt_length + touched[0], prompt_length + touched[-1] + 1))
    return tuple(ranges)
