"""What a person sees while a stage works: progress with ETA and log lines, all on stderr.

One process shows one display; the CLI picks its mode. `rich` draws bars, `plain` prints a line every few seconds
(for logs and pipes), `none` is silent but for warnings.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

Mode = Literal["auto", "rich", "plain", "none"]
PLAIN_EVERY = 5.0  # seconds between two lines of a plain progress report

_mode: Mode = "auto"


def set_mode(mode: Mode) -> None:
    global _mode
    _mode = mode


def mode() -> Mode:
    if _mode != "auto":
        return _mode
    return "rich" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else "plain"


def say(text: str) -> None:
    """An information line."""
    if mode() != "none":
        _console().print(text, highlight=False, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Something that went differently than asked; shown in every mode."""
    if _overheard is not None:
        _overheard.append(text)
        return
    _console().print(f"warning: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)


_overheard: list[str] | None = None


@contextlib.contextmanager
def overheard() -> Iterator[list[str]]:
    """Nothing of the block is shown; its warnings are in the list that this gives."""
    global _mode, _overheard
    before = _mode, _overheard
    _mode, _overheard = "none", []
    try:
        yield _overheard
    finally:
        _mode, _overheard = before


_shared: Any = None


def _console() -> Any:
    global _shared
    if _shared is None or _shared.file is not sys.stderr:
        from rich.console import Console

        _shared = Console(stderr=True)
    return _shared


class Task:
    """Progress of one thing; `advance` is cheap enough for every step. `rows`: figures of the newest ones, by place."""

    def __init__(self, name: str, total: float, bar: Any = None, rows: int = 0) -> None:
        self.name, self.total, self.done = name, total, 0.0
        self.rows: deque[tuple[float, dict[str, Any]]] = deque(maxlen=rows)
        self._bar, self._start = bar, time.monotonic()
        self._said = self._start
        self._id = bar.add_task(name, total=total, note="") if bar else None

    def advance(self, step: float = 1, **figures: Any) -> None:
        """Move on by `step`; `figures` (loss=..., accuracy=...) are shown beside the bar, or as a row of its table."""
        self.done += step
        as_row = bool(step and figures and self.rows.maxlen)
        if as_row:
            self.rows.append((self.done, figures))
        note = "  ".join(f"{k} {_short(v)}" for k, v in figures.items())
        if self._bar:
            beside = {"note": "" if as_row else note} if note else {}
            self._bar.update(self._id, completed=self.done, **beside)
        elif mode() == "plain":
            now = time.monotonic()
            if now - self._said >= PLAIN_EVERY:
                self._said = now
                left = f"{(now - self._start) / self.done * (self.total - self.done):.0f} s" if self.done else "?"
                say(f"{self.name} {self.done:.0f}/{self.total:.0f}  eta {left}  {note}".rstrip())

    def table(self) -> Any:
        """The rows as rich draws them."""
        from rich import box
        from rich.table import Table

        names = list(dict.fromkeys(name for _, figures in self.rows for name in figures))
        found = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for name in ("step", *names) if names else ():
            found.add_column(name, justify="right")
        for place, figures in self.rows:
            found.add_row(f"{place:.0f}", *(_short(figures[name]) if name in figures else "" for name in names))
        return found


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def task(name: str, total: float, rows: int = 0) -> Iterator[Task]:
    """Show progress of `total` units under `name` while the block runs, on a terminal over a table of the figures of
    the newest `rows` steps."""
    if mode() != "rich":
        item = Task(name, total, rows=rows)
        yield item
        if mode() == "plain":
            say(f"{name} {item.done:.0f}/{total:.0f}  done in {time.monotonic() - item._start:.1f} s")
        return
    from rich.console import Group
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bar = Progress(*columns, console=_console())
    item = Task(name, total, bar, rows)
    drawn = (lambda: Group(item.table(), bar)) if rows else (lambda: Group(bar))
    with Live(console=_console(), get_renderable=drawn, refresh_per_second=8):
        yield item


def failure(what: str, hint: str = "") -> None:
    """The two lines that a user sees of an error; shown in every mode, rich not needed."""
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    error, tip, end = ("\033[1;31m", "\033[1;36m", "\033[0m") if colour else ("", "", "")
    what, hint = (" ".join(text.splitlines()) for text in (what, hint))
    sys.stderr.write(f"{error}error:{end} {what}\n" + (f"{tip}hint:{end} {hint}\n" if hint else ""))
    sys.stderr.flush()


def duration(seconds: float | None) -> str:
    """7.2 -> "7 s", 4000 -> "1.1 h"; "" for None."""
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
