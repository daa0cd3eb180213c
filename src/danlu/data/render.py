"""From Samples to tokens: prompt through the chat template, completion through the ThinkFormat, loss on the latter.

The prompt is rendered with add_generation_prompt and tokenised alone, exactly as for generation, so training and
generation see the same prompt tokens. The completion is `think.join(reasoning, answer)` and the model's end token.
It never passes through the template, which deletes reasoning (R1-Distill) or adds an empty block (Qwen3) as it likes.

Loss on every assistant turn of a chat: one row where the template renders earlier turns exactly as the model would
have written them, else one row a turn, each with its own reasoning, because a template that drops the reasoning of
earlier turns would teach the model to answer without any.

Departures from apply_chat_template(tokenize=True) on the whole chat: no newline is trained behind the end token, and
prompt and completion never merge into one token. Pieces of a row are tokenised apart instead of finding the loss by
character offsets in one text: it is what generation sees, and needs no offsets.
Not covered: text in a row that looks like a special token is tokenised as one (`danlu data check` counts such rows).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from danlu.data.augment import Span
from danlu.data.encode import Ids, encode
from danlu.errors import DanluError
from danlu.records import Message, Sample
from danlu.think import ThinkFormat

IGNORE = -100  # label of a token without loss
LossOn = Literal["completion", "assistant", "all"]
Overlong = Literal["drop", "truncate-reasoning", "truncate", "error"]
_BATCH = 1024  # rows tokenised at once
_SENTENCE_ENDS = "。！？.!?\n"


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the tokens of a row besides its text: the token limit, what happens beyond, where loss lies."""

    max_length: int = 2048
    overlong: Overlong = "drop"
    loss_on: LossOn = "completion"


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """One row as tokens, and per token its label: the token itself, or IGNORE where it carries no loss.

    `turn`: the assistant turn (from 0) that a row of a chat trains, where a chat became several rows.
    `masked`: token ranges [start, end) that hold a mask instead of a term.
    """

    id: str
    tokens: Ids
    labels: Ids
    turn: int | None = None
    masked: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class RenderReport:
    """What rendering made of `rows` samples: `kept` of them as `rendered` rows of `tokens` tokens.

    `dropped`: (id, reason) of every sample that was left out; `truncated`: ids of those that were cut.
    """

    rows: int = 0
    rendered: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    dropped: tuple[tuple[str, str], ...] = ()
    truncated: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        return self.rows - len(self.dropped)

    def __add__(self, other: RenderReport) -> RenderReport:
        names = ("rows", "rendered", "tokens", "supervised_tokens", "dropped", "truncated")
        return RenderReport(**{name: getattr(self, name) + getattr(other, name) for name in names})


# ---- prompts


def prompt_text(tokenizer: Any, think: ThinkFormat, messages: Sequence[Message], *, thinking: bool = True) -> str:
    """The text a model continues: `messages` (ending with a user turn) through the chat template.

    `thinking=False` adds what the template has to switch thinking off, and nothing where it has no such switch.
    DanluError when the template refuses the messages.
    """
    return _prompt_texts(tokenizer, think, [messages], thinking)[0]


def prompt_ids(tokenizer: Any, think: ThinkFormat, messages: Sequence[Message], *, thinking: bool = True) -> list[int]:
    """Token ids of `prompt_text`."""
    return encode(tokenizer, [prompt_text(tokenizer, think, messages, thinking=thinking)])[0].tolist()


def _prompt_texts(
    tokenizer: Any, think: ThinkFormat, chats: Sequence[Sequence[Message]], thinking: bool = True
) -> list[str]:
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


def end_id(tokenizer: Any, think: ThinkFormat) -> int:
    """Id of the token that ends an answer; DanluError when the format names none, or the tokenizer lacks it."""
    if not think.end_tokens:
        raise DanluError("the model has no end token", "set eos_token in tokenizer_config.json")
    found = tokenizer.convert_tokens_to_ids(think.end_tokens[0])
    if found is None or tokenizer.convert_ids_to_tokens(found) != think.end_tokens[0]:
        raise DanluError(f"the tokenizer has no token {think.end_tokens[0]!r}", "model and tokenizer do not fit")
    return found


# ---- rows


@dataclass(slots=True)
class _Draft:
    """A row before tokenisation: pieces of text, and which of them carry loss; the end token comes last."""

    sample: Sample
    turn: int | None
    pieces: list[tuple[str, bool]]
    ids: list[Ids] = field(default_factory=list)


def render(
    tokenizer: Any, think: ThinkFormat, samples: Sequence[Sample], shape: Shape
) -> tuple[list[Rendered], RenderReport]:
    """Rows of at most `shape.max_length` tokens, in order, and what was dropped or cut.

    DanluError for a row that is too long under overlong="error", or messages that the template refuses.
    """
    rows: list[Rendered] = []
    told = RenderReport()
    for start in range(0, len(samples), _BATCH):
        found, more = _render(tokenizer, think, samples[start : start + _BATCH], shape)
        rows += found
        told += more
    return rows, told


def _render(
    tokenizer: Any, think: ThinkFormat, samples: Sequence[Sample], shape: Shape
) -> tuple[list[Rendered], RenderReport]:
    end = end_id(tokenizer, think)
    every = _rows(tokenizer, think, samples, shape.loss_on, end)
    long = [(sample, rows) for sample, rows in every if any(len(row.tokens) > shape.max_length for row in rows)]
    if long and shape.overlong == "error":
        worst, size = max(((s.id, len(row.tokens)) for s, rows in long for row in rows), key=lambda pair: pair[1])
        raise DanluError(
            f"{len(long)} of {len(samples)} rows are longer than {shape.max_length} tokens"
            f" (the longest, {worst}, has {size})",
            "raise data.max_length, or choose another data.overlong",
        )
    kept: list[Rendered] = []
    dropped: list[tuple[str, str]] = []
    truncated: list[str] = []
    for sample, rows in every:
        fitting = rows
        if any(len(row.tokens) > shape.max_length for row in rows):
            fitting = _fitted(tokenizer, think, sample, rows, shape, end)
            truncated += [sample.id] if fitting and shape.overlong != "drop" else []
        usable = [row for row in fitting if (row.labels != IGNORE).any()]
        if not usable:
            dropped.append((sample.id, "nothing supervised" if fitting else "overlong"))
        kept += usable
    counted = sum(len(row.tokens) for row in kept), sum(int((row.labels != IGNORE).sum()) for row in kept)
    return kept, RenderReport(len(samples), len(kept), *counted, tuple(dropped), tuple(truncated))


def _fitted(
    tokenizer: Any, think: ThinkFormat, sample: Sample, rows: list[Rendered], shape: Shape, end: int
) -> list[Rendered]:
    """The rows of an overlong sample that the policy keeps."""
    limit = shape.max_length
    if shape.overlong == "truncate":
        return [replace(row, tokens=row.tokens[:limit], labels=row.labels[:limit]) for row in rows]
    kept: list[Rendered] = []
    for row in rows:
        if len(row.tokens) <= limit:
            kept.append(row)
        elif shape.overlong == "truncate-reasoning":
            part = sample if row.turn is None else turn_of(sample, row.turn)
            loss_on = shape.loss_on if row.turn is None else "completion"
            shorter = _shorter(tokenizer, think, part, len(row.tokens), replace(shape, loss_on=loss_on), end)
            kept += [replace(shorter, id=row.id, turn=row.turn)] if shorter else []
    return kept


def _shorter(
    tokenizer: Any, think: ThinkFormat, sample: Sample, length: int, shape: Shape, end: int
) -> Rendered | None:
    """The row with the end of its reasoning left out, at a sentence's end where one is near; None: it cannot fit."""
    ids = encode(tokenizer, [sample.reasoning])[0]
    size = len(ids)
    for _ in range(4):  # tokens at the cut may merge anew, so one pass can be a little too long
        size -= length - shape.max_length
        if size <= 0:
            return None
        text = tokenizer.decode(ids[:size]).rstrip("\ufffd")
        stop = max(text.rfind(mark) for mark in _SENTENCE_ENDS)
        text = text[: stop + 1] if stop + 1 >= len(text) / 2 else text
        rows = _rows(tokenizer, think, [replace(sample, reasoning=text)], shape.loss_on, end)[0][1]
        length = max(len(row.tokens) for row in rows)
        if len(rows) == 1 and length <= shape.max_length:
            return rows[0]
    return None


def _rows(
    tokenizer: Any, think: ThinkFormat, samples: Sequence[Sample], loss_on: LossOn, end: int
) -> list[tuple[Sample, list[Rendered]]]:
    """Every sample with its rows, whatever their length."""
    drafts = [_drafts(tokenizer, think, sample) for sample in samples] if loss_on == "assistant" else None
    if drafts is None:
        prompts = _prompt_texts(tokenizer, think, [sample.messages for sample in samples])
        on = loss_on == "all"
        drafts = [
            [_Draft(sample, None, [(prompt, on), (think.join(sample.reasoning, sample.answer), True)])]
            for sample, prompt in zip(samples, prompts, strict=True)
        ]
    pieces = [piece for own in drafts for draft in own for piece, _ in draft.pieces]
    ids = iter(encode(tokenizer, pieces))
    tail = np.array([end], dtype=np.int32)
    found = []
    for sample, own in zip(samples, drafts, strict=True):
        rows = []
        for draft in own:
            parts = [(next(ids), loss) for _, loss in draft.pieces] + [(tail, True)]
            tokens = np.concatenate([part for part, _ in parts])
            labels = np.concatenate([part if loss else np.full_like(part, IGNORE) for part, loss in parts])
            labels[0] = IGNORE  # nothing stands before it
            rows.append(Rendered(sample.id, tokens, labels, draft.turn))
        found.append((sample, rows))
    return found


def _drafts(tokenizer: Any, think: ThinkFormat, sample: Sample) -> list[_Draft]:
    """Loss on every assistant turn: one draft, or one a turn where the template rewrites earlier turns."""
    turns = [turn_of(sample, n) for n in range(_turns(sample))]
    prompts = _prompt_texts(tokenizer, think, [turn.messages for turn in turns])
    answers = [think.join(turn.reasoning, turn.answer) for turn in turns]
    stop = think.end_tokens[0]
    pieces: list[tuple[str, bool]] = []
    done = ""
    for prompt, answer in zip(prompts, answers, strict=True):
        if not prompt.startswith(done):
            break
        pieces += [(prompt[len(done) :], False), (answer, True), (stop, True)]
        done = prompt + answer + stop
    else:
        apart = encode(tokenizer, [text for text, _ in pieces[:-2]])
        if len(turns) == 1 or np.array_equal(np.concatenate(apart), encode(tokenizer, [prompts[-1]])[0]):
            return [_Draft(sample, None, pieces[:-1])]
    return [
        _Draft(sample, n, [(prompt, False), (answer, True)])
        for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]


def _turns(sample: Sample) -> int:
    return 1 + sum(turn["role"] == "assistant" for turn in sample.messages)


def turn_of(sample: Sample, number: int) -> Sample:
    """The sample whose completion is the assistant turn `number` (from 0) of a chat; the last one is the sample."""
    places = [place for place, turn in enumerate(sample.messages) if turn["role"] == "assistant"]
    if number == len(places):
        return sample
    turn = sample.messages[places[number]]
    return replace(
        sample,
        messages=sample.messages[: places[number]],
        reasoning=turn.get("reasoning_content", ""),
        answer=turn["content"],
    )


# ---- masked terms


def render_masked(
    tokenizer: Any,
    think: ThinkFormat,
    sample: Sample,
    spans: Iterable[Span],
    shape: Shape,
    loss: Literal["published", "ignore", "denoise"],
) -> Rendered | None:
    """The row of one sample whose terms `augment.mask` masked; None when it has become too long.

    "published" and "ignore": the sample holds the masks' text, with and without loss on it. "denoise": the sample is
    the original and only the input tokens of a term are overwritten, with the tokens of its mask over and over.
    """
    rows, _ = render(tokenizer, think, [sample], replace(shape, overlong="drop"))
    if len(rows) != 1:
        return None
    row = rows[0]
    tokens, labels = row.tokens.copy(), row.labels.copy()
    places = _token_spans(tokenizer, think, sample, list(spans), len(tokens))
    for (start, end), mask in places:
        if loss == "denoise":
            ids = encode(tokenizer, [mask])[0]
            tokens[start:end] = np.resize(ids, end - start)
        elif loss == "ignore":
            labels[start:end] = IGNORE
    return replace(row, tokens=tokens, labels=labels, masked=tuple(place for place, _ in places))


def _token_spans(
    tokenizer: Any, think: ThinkFormat, sample: Sample, spans: list[Span], length: int
) -> list[tuple[tuple[int, int], str]]:
    """Ranges of the row's tokens that touch the masked characters, each with its mask's text.

    The completion and its end token are the last tokens of a row of `length`, the last question is in the prompt.
    """
    completion = think.join(sample.reasoning, sample.answer)
    prompt = prompt_text(tokenizer, think, sample.messages)
    head = 0 if think.style == "none" else len(think.head)
    begins = {
        "question": prompt.rfind(sample.question),
        "reasoning": head - _leading(sample.reasoning),
        "answer": len(completion) - len(think.tail) - len(sample.answer.strip("\n")) - _leading(sample.answer),
    }
    found = []
    for text, fields in ((prompt, ("question",)), (completion, ("reasoning", "answer"))):
        own = [span for span in spans if span.field in fields]
        if not own or (text is prompt and begins["question"] < 0):  # a template that rewrites the question
            continue
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        places = offsets["offset_mapping"]
        first = 0 if text is prompt else length - 1 - len(places)
        for span in own:
            start, end = begins[span.field] + span.start, begins[span.field] + span.end
            touched = [place for place, (a, b) in enumerate(places) if a < end and b > start]
            if touched:
                found.append(((first + touched[0], first + touched[-1] + 1), span.mask))
    return found


def _leading(text: str) -> int:
    return len(text) - len(text.lstrip("\n"))
