"""English and 简体中文: the English text is the key, `zh/` holds the Chinese ones, page by page.

`t` speaks the language of the browser that a page is built for; `translate` is the same for a language given. A text
without a translation stays English; a test finds those.
"""

from __future__ import annotations

from typing import Any, Literal

from danlu import display
from danlu.studio.zh import CHINESE

Language = Literal["en", "zh"]
LANGUAGES: dict[Language, str] = {"en": "English", "zh": "简体中文"}
UNITS = {"s": "{n} s", "min": "{n} min", "h": "{n} h", "d": "{n} d"}  # of durations


def translate(text: str, /, language: str, **values: Any) -> str:
    """`text` in a language, its {places} filled with `values`, which are never read as a pattern."""
    told = CHINESE.get(text, text) if language == "zh" else text
    return told.format(**values) if values else told


def t(text: str, /, **values: Any) -> str:
    """`translate` in the language of the page that is being built or answered."""
    return translate(text, language(), **values)


def duration(seconds: float | None) -> str:
    """7.2 -> "7 s", 4000 -> "1.1 h", in the language of the page; "" for None."""
    number, _, unit = display.duration(seconds).partition(" ")
    return t(UNITS[unit], n=number) if unit else ""


def language() -> Language:
    """Of the page that is being built or answered."""
    from nicegui import context

    return context.client.storage.get("language", "en")


def chosen(cookie: str | None, accepted: str) -> Language:
    """What to speak: as chosen before, else the first of the browser's languages that is spoken here."""
    if cookie in LANGUAGES:
        return cookie  # type: ignore[return-value]
    for part in accepted.split(","):
        code = part.split(";")[0].strip().lower()
        if code.startswith("zh"):
            return "zh"
        if code.startswith("en"):
            return "en"
    return "en"
