"""One answer of `danlu chat`: printed while it is written, and what it took.

The answer goes to stdout; reasoning only to a terminal, dimmed (between lines of its own under NO_COLOR). Ctrl-C ends
the answer and keeps what was written. Two answers stand side by side on a terminal, one below the other elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from danlu.generate import Sampling
from danlu.records import Message

DIM, END = "\033[2m", "\033[0m"
NARROWEST = 60  # columns of a terminal on which two answers stand side by side
Show = Callable[[str, str], None]  # takes ("reasoning" | "answer", text)
Finish = Literal["stop", "length", "stopped"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote. `first`: seconds until its first piece; `finish` "stopped": Ctrl-C ended it."""

    model: str
    reasoning: str
    text: str
    finish: Finish
    tokens: int
    seconds: float
    first: float
    memory: int  # bytes that this process holds (on CUDA: has held at most); 0 where a server answers

    @property
    def rate(self) -> float:
        """Tokens a second after the first."""
        return max(0, self.tokens - 1) / (self.seconds - self.first) if self.seconds > self.first else 0.0

    def figures(self) -> str:
        """One line: tokens, tokens a second, time to the first, memory."""
        cut = {"stop": "", "length": ", cut: --max-tokens allows more", "stopped": ", stopped"}[self.finish]
        rate = f"{self.rate:,.1f} tokens/s, first after {self.first:.2f} s"
        held = f", {self.memory / 1e6:,.0f} MB" if self.memory else ""
        return f"{self.tokens} tokens, {rate}{held}{cut}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "reasoning": self.reasoning,
            "answer": self.text,
            "finish": self.finish,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 4),
            "first_seconds": round(self.first, 4),
            "tokens_per_second": round(self.rate, 2),
            "memory_bytes": self.memory,
        }


def answer(generator: Any, messages: Sequence[Message], sampling: Sampling, show: Show) -> Answer:
    """Ask, and hand every piece to `show` as it comes."""
    start = time.monotonic()
    first, stopped, told = 0.0, False, {"reasoning": "", "answer": ""}
    try:
        with contextlib.closing(generator.chat_stream(messages, sampling)) as pieces:
            for kind, text in pieces:
                first = first or time.monotonic() - start
                told[kind] += text
                show(kind, text)
    except KeyboardInterrupt:
        stopped = True
    seconds, streamed = time.monotonic() - start, generator.streamed
    return Answer(
        generator.name,
        told["reasoning"].strip(),
        told["answer"].strip(),
        "stopped" if stopped else "length" if streamed.cut else "stop",
        streamed.tokens,
        seconds,
        first or seconds,
        0 if hasattr(generator, "endpoint") else memory(),
    )


def memory() -> int:
    """Bytes resident in this process, or CUDA's peak where it is used."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    import psutil

    return int(psutil.Process().memory_info().rss)


def coloured(stream: Any) -> bool:
    """Whether escape codes may be written there."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def printed() -> Iterator[Show]:
    """A Show that prints; at the end of the block the line is finished."""
    terminal, colour, last = sys.stdout.isatty(), coloured(sys.stdout), ""
    opening, closing = (DIM, END) if colour else ("--- reasoning\n", "\n---")

    def show(kind: str, text: str) -> None:
        nonlocal last
        if kind == "reasoning" and not terminal:
            return
        if kind != last:
            sys.stdout.write((closing + ("\n\n" if colour else "\n")) if last == "reasoning" else "")
            sys.stdout.write(opening if kind == "reasoning" else "")
        sys.stdout.write(text)
        sys.stdout.flush()
        last = kind

    try:
        yield show
    finally:
        sys.stdout.write(f"{closing}\n" if last == "reasoning" else "\n")
        sys.stdout.flush()


def note(text: str) -> None:
    """A line on stderr beside the conversation."""
    sys.stderr.write(f"{DIM}{text}{END}\n" if coloured(sys.stderr) else f"{text}\n")
    sys.stderr.flush()


# ---- two answers


def beside(generators: Sequence[Any], chats: Sequence[Sequence[Message]], sampling: Sampling) -> list[Answer]:
    """The answers of two models to their own chats: columns on a terminal, sections elsewhere."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb" or _columns() < NARROWEST:
        return list(_below(generators, chats, sampling))
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, no_color="NO_COLOR" in os.environ or None)
    told = [{"reasoning": "", "answer": ""} for _ in generators]
    names = [generator.name for generator in generators]
    found: list[Answer] = []

    def draw() -> Any:
        return _table(names, told, [one.figures() for one in found])

    with Live(get_renderable=draw, console=console, refresh_per_second=8, transient=True):
        for place, (generator, chat) in enumerate(zip(generators, chats, strict=True)):
            found.append(answer(generator, chat, sampling, partial(_add, told[place])))
            if found[-1].finish == "stopped":
                break
    console.print(draw())
    return found


def _below(generators: Sequence[Any], chats: Sequence[Sequence[Message]], sampling: Sampling) -> Iterator[Answer]:
    for generator, chat in zip(generators, chats, strict=True):
        sys.stdout.write(f"== {generator.name}\n")
        with printed() as show:
            found = answer(generator, chat, sampling, show)
        yield found
        if found.finish == "stopped":
            return


def _add(told: dict[str, str], kind: str, text: str) -> None:
    told[kind] += text


def _table(names: Sequence[str], told: Sequence[dict[str, str]], figures: Sequence[str]) -> Any:
    """The answers as columns: reasoning dimmed, then the answer, and the figures of those that are finished."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, expand=True, show_edge=False, padding=(0, 1))
    for name in names:
        table.add_column(Text(name), ratio=1, overflow="fold")
    cells = []
    for place, own in enumerate(told):
        cell = Text(own["reasoning"].strip() + "\n\n" if own["reasoning"].strip() else "", style="dim")
        cell.append(own["answer"].strip(), style="not dim")
        if place < len(figures):
            cell.append(f"\n\n{figures[place]}", style="dim")
        cells.append(cell)
    table.add_row(*cells)
    return table


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns
