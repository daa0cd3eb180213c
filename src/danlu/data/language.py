"""Which language and which Chinese script a text is written in, by its letters alone.

Language: Han characters against Latin letters, four of which weigh as one Han character (an English word has about
five letters, its Chinese counterpart about one and a half characters). From a Han share of 0.6 on a text is "zh", up
to 0.2 it is "en", between them "mixed"; with three tenths of the weight in other scripts (kana, Hangul, Cyrillic ...)
or without any letter it is "other". So Chinese prose full of drug names and units stays "zh", and an English question
about one Chinese term stays "en".

Script: characters that only one script uses, from OpenCC's conversions of single characters. What t2s changes is
traditional, what s2t changes is simplified; neutral is what both change and what the other side's standard character
set holds too (Big5 for simplified characters such as 后 里 干, GB 2312 for traditional ones such as 乾 於). Where one
script has fewer than one in twenty of the telling characters (a name, a quotation), it does not count.
Not covered: telling apart languages in Latin letters ("en" is all of them) and Chinese from Japanese without kana.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, get_args

Language = Literal["zh", "en", "mixed", "other"]
Script = Literal["simplified", "traditional", "both", "neither"]
HAN = "々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_HAN = re.compile(f"[{HAN}]+")
_LATIN = re.compile("[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a]+")
_OTHERS = re.compile(
    "[\u0370-\u1dff\u1f00-\u1fff\u2c80-\u2dff\u3040-\u30ff\u3105-\u312f\ua000-\ud7ff\ufb1d-\ufdff\uff66-\uffdc]+"
)
_LETTER_WEIGHT = 0.25
_ZH, _EN, _FOREIGN = 0.6, 0.2, 0.3
_MINOR = 0.05


def language(text: str) -> Language:
    """Language of `text`; the thresholds stand at the head of this module."""
    han = _count(_HAN, text)
    latin = _count(_LATIN, text)
    other = _count(_OTHERS, text)
    weight = han + _LETTER_WEIGHT * latin + other
    if not weight or other / weight >= _FOREIGN:
        return "other"
    share = han / (weight - other)
    return "zh" if share >= _ZH else "en" if share <= _EN else "mixed"


def script(text: str) -> Script:
    """Chinese script of `text`; "neither" where no character tells."""
    found = set(text)
    simplified_only, traditional_only = _telling()
    simplified, traditional = found & simplified_only, found & traditional_only
    if simplified and traditional:
        counts = Counter(text)
        few, many = sum(counts[c] for c in simplified), sum(counts[c] for c in traditional)
        if _MINOR * (few + many) <= min(few, many):
            return "both"
        return "simplified" if few > many else "traditional"
    return "simplified" if simplified else "traditional" if traditional else "neither"


def mix(texts: Iterable[str]) -> dict[str, int]:
    """Texts per language and, of those in "zh" or "mixed", per script; every name is a key."""
    counts: Counter[str] = Counter()
    for text in texts:
        written = language(text)
        counts[written] += 1
        if written in ("zh", "mixed"):
            counts[script(text)] += 1
    return {name: counts[name] for name in (*get_args(Language), *get_args(Script))}


def simplified(text: str) -> str:
    """`text` in simplified characters by OpenCC t2s, which looks at phrases (乾燥 -> 干燥, 乾坤 stays)."""
    return text if text.isascii() else _converter("t2s").convert(text)


@cache
def _converter(config: str) -> Any:
    import opencc  # loads its dictionaries, so only where a text needs them

    return opencc.OpenCC(config)


@cache
def _telling() -> tuple[frozenset[str], frozenset[str]]:
    """(simplified-only, traditional-only) characters of the two main blocks."""
    every = [chr(code) for block in (range(0x3400, 0x4DC0), range(0x4E00, 0xA000)) for code in block]
    lines = "\n".join(every)  # one a line, so that no two form a phrase
    to_simplified, to_traditional = (_converter(name).convert(lines).split("\n") for name in ("t2s", "s2t"))
    traditional = {old for old, new in zip(every, to_simplified, strict=True) if old != new}
    simplified = {old for old, new in zip(every, to_traditional, strict=True) if old != new}
    return (
        frozenset(c for c in simplified - traditional if not _encodable(c, "big5")),
        frozenset(c for c in traditional - simplified if not _encodable(c, "gb2312")),
    )


def _encodable(letter: str, encoding: str) -> bool:
    try:
        letter.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _count(pattern: re.Pattern[str], text: str) -> int:
    return sum(map(len, pattern.findall(text)))
