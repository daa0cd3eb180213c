"""One row's tokens with what they do in training: read only, learned, masked, or the end of the answer.

Text is cut where the kind changes, by decoding the tokens up to there. A character of several tokens (Chinese or an
emoji in byte-level BPE) that is not whole there goes to the first of the two kinds, while every token is counted where
it belongs; so a piece can hold tokens and no text.
Not covered: tokenizers that decode a run of loose bytes anew when more follow (SentencePiece's byte fallback) keep the
whole text, but can move a character or two of such a run from one kind to the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any, Literal, get_args

from danlu.data.page import document, visible
from danlu.data.render import IGNORE, Rendered

Kind = Literal["context", "supervised", "masked", "end"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MEANING: dict[Kind, str] = {
    "context": "read, carries no loss",
    "supervised": "learned, carries loss",
    "masked": "holds a mask instead of a term",
    "end": "end token with loss: teaches the model to stop",
}
NO_END = "no end token carries loss: this row does not teach the model to stop"


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of consecutive tokens of one kind, and how many they are."""

    text: str
    kind: Kind
    tokens: int


def pieces(tokenizer: Any, row: Rendered, end_ids: Collection[int]) -> list[Piece]:
    """The row cut where the kind of its tokens changes; the texts joined are `tokenizer.decode(row.tokens)`."""
    tokens = [int(token) for token in row.tokens]
    masked = {place for start, end in row.masked for place in range(start, end)}

    def kind(place: int) -> Kind:
        loss = row.labels[place] != IGNORE
        if loss and tokens[place] in end_ids:
            return "end"
        return "masked" if place in masked else "supervised" if loss else "context"

    whole = tokenizer.decode(tokens)
    found: list[Piece] = []
    start = cut = 0
    for name, group in groupby(range(len(tokens)), kind):
        end = start + sum(1 for _ in group)
        stop = len(whole) if end == len(tokens) else _cut(whole, tokenizer.decode(tokens[:end]), cut)
        found.append(Piece(whole[cut:stop], name, end - start))
        start, cut = end, stop
    return found


def _cut(whole: str, part: str, known: int) -> int:
    """Characters of `whole` that the tokens decoded in `part` have begun; at least `known` of them are the same."""
    same = known
    while same < min(len(part), len(whole)) and part[same] == whole[same]:
        same += 1
    begun = same < len(whole) and part[same : same + 1] == "\ufffd"  # the rest of this character is in later tokens
    return same + begun


def count(row: Iterable[Piece]) -> dict[Kind, int]:
    """Tokens by kind, every kind named."""
    found: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    for piece in row:
        found[piece.kind] += piece.tokens
    return found


_STYLE = """
.legend { list-style: none; margin: 0 0 1.6rem; padding: 0; display: grid; gap: .45rem 1.6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)) }
.legend li { display: grid; grid-template-columns: 7rem 1fr; align-items: baseline }
.legend mark { justify-self: start } mark { color: inherit; background: none; border-radius: 3px }
.row { border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; margin: 0 0 1rem }
.row header { display: flex; flex-wrap: wrap; gap: 0 1.2rem; margin-bottom: .5rem; align-items: baseline }
.row header code { font-weight: 600 } .row header span { color: var(--quiet); font-size: .86rem;
  font-variant-numeric: tabular-nums }
.row .warn { color: var(--warn); margin: 0 0 .5rem; font-size: .93rem }
.row .text { line-height: 1.75 } .row .text mark { padding: .1em 0; box-decoration-break: clone;
  -webkit-box-decoration-break: clone } .legend mark { padding: .1em .4em }
mark.context { color: var(--quiet) } mark.supervised { background: #d9f0e2 }
mark.masked { background: #f5d5f0; border-bottom: 2px dashed #a3218e }
mark.end { background: var(--bad); color: var(--paper); font-weight: 600 }
.row .text mark.end { padding: .1em .3em }
.nl { opacity: .45; user-select: none; -webkit-user-select: none }
@media (prefers-color-scheme: dark) { mark.supervised { background: #17402b }
  mark.masked { background: #4f1f49; border-bottom-color: #e59ad9 } }
@media print { mark { print-color-adjust: exact; -webkit-print-color-adjust: exact } }
"""


def html(rows: Sequence[tuple[str, list[Piece]]], title: str) -> str:
    """A self-contained page (no script, nothing fetched) of rows, each an id and its pieces."""
    totals = count(piece for _, row in rows for piece in row)
    legend = "".join(
        f'<li><mark class="{kind}">{kind}</mark><span>{escape(MEANING[kind])}'
        f' <span class="quiet">({totals[kind]:,})</span></span></li>'
        for kind in KINDS
    )
    many = f"{len(rows):,} row{'s' * (len(rows) != 1)}, {sum(totals.values()):,} tokens"
    body = [
        f"<h1>{escape(visible(title))}</h1>",
        f'<p class="notice">{many}, as the model sees them in training</p>',
        f'<ul class="legend">{legend}</ul>',
        *(_row(name, row) for name, row in rows),
    ]
    return document(title, body, _STYLE)


def _row(name: str, row: list[Piece]) -> str:
    counts = count(row)
    told = " · ".join(f"{kind} {number:,}" for kind, number in counts.items() if number)
    warning = "" if counts["end"] else f'<p class="warn">{escape(NO_END)}</p>'
    text = "".join(f'<mark class="{piece.kind}">{_marked(piece.text)}</mark>' for piece in row if piece.text)
    head = f"<header><code>{escape(visible(name))}</code><span>{told}</span></header>"
    return f'<article class="row">{head}{warning}<div class="text">{text}</div></article>'


def _marked(text: str) -> str:
    return escape(visible(text)).replace("\n", '<span class="nl">↵</span>\n')
