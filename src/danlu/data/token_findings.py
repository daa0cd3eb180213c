"""What the data check finds in the tokens that training would see: lengths, ends, lost texts, boundaries."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np

from danlu.data.encode import encode
from danlu.data.findings import ENOUGH, EXAMPLES, Finding, Level, enough, finding, keeps
from danlu.data.render import IGNORE, prompt_text
from danlu.data.store import Store
from danlu.models.tokenizer import Speech
from danlu.recipe import Recipe
from danlu.records import Sample

LOOKED_AT = 1000  # rows that are decoded, or tokenised once more in one piece
_OVER = (
    "rows are longer than max_length {max_length}; cut there, {close} of all rows would lose the closing tag,"
    " {answer} part of the answer, {end} the end token; "
)
OVERLONG = {  # data.overlong -> what it means for longer rows
    "drop": f"{_OVER}they are dropped",
    "truncate-reasoning": f"{_OVER}their reasoning is cut, answer and end token stay",
    "truncate": f"{_OVER}cutting them loses the end: a model trained on such rows does not stop",
    "error": f"{_OVER}training would stop",
}
ENOUGH_OR_CUT = {fits: f"{text}; or data.overlong=truncate-reasoning" for fits, text in ENOUGH.items()}


@dataclass(frozen=True, slots=True)
class Places:
    """Per row the number of tokens up to which something is whole: the closing tag, the answer, the end token."""

    close: np.ndarray
    answer: np.ndarray
    end: np.ndarray


def places(speech: Speech, store: Store) -> Places:
    lengths = store.lengths
    tail = 1 + (len(encode(speech.tokenizer, [speech.think.tail])[0]) if speech.think.tail else 0)
    close = np.zeros(len(store), dtype=np.int64)
    if speech.think.style != "none":
        marks = encode(speech.tokenizer, [speech.think.close, "\n" + speech.think.close])
        for at in range(len(store)):
            row = store.tokens[store.offsets[at] : store.offsets[at + 1]]
            close[at] = max(_after(row, mark) for mark in marks)
    return Places(close, lengths - tail, lengths)


def _after(tokens: np.ndarray, mark: np.ndarray) -> int:
    """Tokens up to and with the first `mark` counted from the end (a question may hold one too); 0 without any."""
    starts = np.flatnonzero(tokens[: len(tokens) - len(mark) + 1] == mark[0])[::-1]
    for start in starts.tolist():
        if np.array_equal(tokens[start : start + len(mark)], mark):
            return start + len(mark)
    return 0


def lengths_found(recipe: Recipe, store: Store, places: Places) -> list[Finding]:
    limit, policy = recipe.data.max_length, recipe.data.overlong
    lengths = store.lengths
    over = np.flatnonzero(lengths > limit)
    if not len(over):
        return []
    level: Level = {"drop": "warning", "truncate-reasoning": "info", "truncate": "error", "error": "error"}[policy]  # type: ignore[assignment]
    if policy == "drop" and len(over) == len(lengths):
        level = "error"
    lost = shares_lost(places, limit)
    return [
        Finding(
            "overlong",
            level,
            len(over),
            len(lengths),
            OVERLONG[policy],
            ENOUGH_OR_CUT[keeps(lengths) <= limit],
            tuple(f"{store.ids[i]}: {lengths[i]} tokens" for i in over[:EXAMPLES]),
            {
                "max_length": str(limit),
                **{name: f"{share:.1%}" for name, share in lost.items()},
                **enough("data.max_length", lengths, limit),
            },
        )
    ]


def shares_lost(places: Places, limit: int) -> dict[str, float]:
    names = ("close", "answer", "end")
    return {name: float((getattr(places, name) > limit).mean()) if len(places.end) else 0.0 for name in names}


def tokens_found(recipe: Recipe, speech: Speech, samples: list[Sample], store: Store) -> list[Finding]:
    """What training would see, token by token."""
    by_id = {sample.id: sample for sample in samples}
    ends = np.array(speech.end_ids[:1], dtype=np.int64)
    bos = speech.tokenizer.bos_token_id
    without_end: list[Sample] = []
    doubled: list[Sample] = []
    limit = recipe.data.max_length if recipe.data.overlong == "truncate" else None
    empty = [by_id[name] for name, why in store.report.dropped if why == "nothing supervised"]
    for row in store:
        labels = row.labels[:limit]
        if not (labels != IGNORE).any():
            empty.append(by_id[row.id])
        elif not np.isin(labels, ends).any():
            without_end.append(by_id[row.id])
        if bos is not None and len(row.tokens) > 1 and row.tokens[0] == row.tokens[1] == bos:
            doubled.append(by_id[row.id])
    of = len(samples)
    found = finding(
        "nothing_supervised", "error", empty, of, "rows have no token to learn from", "look at them: danlu data view"
    )
    found += finding(
        "end_token_untrained",
        "error",
        without_end,
        of,
        "rows never train the end token {token}: the model would not learn to stop",
        "use data.overlong=drop or truncate-reasoning",
        token=speech.think.end_tokens[0],
    )
    found += finding(
        "doubled_bos", "error", doubled, of, "rows begin with two BOS tokens", "take the BOS out of the chat template"
    )
    return found + _lost_texts(speech, samples, store) + _boundaries(speech, samples)


def _lost_texts(speech: Speech, samples: list[Sample], store: Store) -> list[Finding]:
    """Reasoning that the template would have deleted, and (which must not be) rows that really lack it."""
    by_id = {sample.id: sample for sample in samples}
    lacking = []
    for index in range(0, len(store), max(1, len(store) // LOOKED_AT)):
        row = store[index]
        sample = by_id[row.id]
        text = speech.tokenizer.decode(row.tokens[row.labels != IGNORE])
        parts = [part.strip() for part in (sample.reasoning, sample.answer)] if row.turn is None else []
        if not all(_same(part) in _same(text) for part in parts):
            lacking.append(sample)
    found = finding(
        "text_lost",
        "error",
        lacking,
        len(samples),
        "rows lose part of their reasoning or answer on the way to tokens",
        "look at them: danlu data view; the tokenizer may not know the characters",
    )
    thinking = [sample for sample in samples if sample.reasoning]
    if speech.think.drops_reasoning and thinking:
        found += finding(
            "template_drops_reasoning",
            "info",
            thinking,
            len(samples),
            "the chat template deletes the reasoning of assistant turns; training on apply_chat_template would lose it",
            "nothing: completions are joined by the think-format, not by the template",
        )
    earlier = [s for s in samples if any(turn.get("reasoning_content") for turn in s.messages)]
    return found + finding(
        "earlier_reasoning",
        "info",
        earlier,
        len(samples),
        "chats have reasoning in earlier turns; as context the model's template decides about it",
        "data.loss_on=assistant trains each turn with its own reasoning",
    )


def _same(text: str) -> str:
    """What survives decoding: normalised by the tokenizer (NFC), white space aside."""
    return "".join(unicodedata.normalize("NFC", text).split())


def _boundaries(speech: Speech, samples: list[Sample]) -> list[Finding]:
    """Rows whose prompt and completion would merge into one token if tokenised in one piece."""
    looked = samples[:: max(1, -(-len(samples) // LOOKED_AT))]
    prompts_ = [prompt_text(speech.tokenizer, speech.think, sample.messages) for sample in looked]
    completions = [speech.think.join(sample.reasoning, sample.answer) for sample in looked]
    whole = encode(speech.tokenizer, [a + b for a, b in zip(prompts_, completions, strict=True)])
    apart = zip(encode(speech.tokenizer, prompts_), encode(speech.tokenizer, completions), strict=True)
    merged = [s for s, one, (a, b) in zip(looked, whole, apart, strict=True) if len(one) != len(a) + len(b)]
    return finding(
        "boundary_merge",
        "info",
        merged,
        len(looked),
        "rows would merge the last token of the prompt with the first of the completion if tokenised in one piece",
        "nothing: prompt and completion are tokenised apart, as in generation",
    )
