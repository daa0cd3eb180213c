"""Numbers with units in one spelling, so that 0.5 g is 500 mg, 两周 is 14 days and 百分之五 is 5 %.

`normal` rewrites a canonical text: numerals before a unit become digits, thousands separators and trailing zeros go,
units of one dimension become its base unit (mg, ml, mm, s, months), a range keeps both ends. `quantities` lists what a
text measures. Compound units (mg/kg, g/L) and units of substance stay as they are written.
Not covered: conversions between scales (°F, kPa, mg/dL of a substance), numerals without a unit, tolerance.
"""

from __future__ import annotations

import re

_SPELLINGS: dict[str, dict[str, float]] = {  # base unit -> spelling -> how many of the base it is
    "mg": {"kg|公斤|千克": 1e6, "g|gm|克|grams?": 1e3, "mg|毫克|milligrams?": 1, "ug|μg|mcg|微克|micrograms?": 1e-3},
    "ml": {"l|升|lit(?:er|re)s?": 1e3, "dl|分升": 100, "ml|cc|毫升|millilit(?:er|re)s?": 1},
    "mm": {"cm|厘米|公分": 10, "mm|毫米": 1, "μm|um|微米": 1e-3, "米": 1e3},
    "s": {
        **{"秒钟?|sec|seconds?": 1, "分钟|min|mins|minutes?": 60, "个?小时|h|hr|hrs|hours?": 3600},
        **{"天|日|d|days?": 86400, "个?星期|周|wk|weeks?": 604800},
    },
    "month": {"个?月|months?|mo": 1, "年|years?|yrs?": 12},
    "u": {"iu|u|国际单位|单位|units?": 1},
    "%": {"%|percent|per cent": 1},
    "°c": {"°c|摄氏度|degrees? celsius": 1},
    "mmhg": {"mmhg|毫米汞柱": 1},
    "/min": {"次/分钟?|/min|bpm|次每分钟?|beats per minute": 1},
}
_UNITS = {spelling: (base, factor) for base, names in _SPELLINGS.items() for spelling, factor in names.items()}
_ORDER = sorted(_UNITS, key=len, reverse=True)
_NUMBER = r"(?<![\d.,])(?:\d{1,3}(?:,\d{3}){1,4}|\d{1,12})(?:\.\d{1,9})?(?![\d,]\d)"
_HAN = "零〇一二两三四五六七八九十百千万半"
_SMALL = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_WORDS: dict[str, float] = {word: i for i, word in enumerate(_SMALL, 1)}
_WORDS |= {"half": 0.5, "fifteen": 15, "twenty": 20, "thirty": 30, "sixty": 60, "ninety": 90}
_HAN_NUMBER = f"(?<![{_HAN}])[{_HAN}]{{1,9}}(?![{_HAN}])"
_NUMERAL = rf"{_NUMBER}|{_HAN_NUMBER}|\b(?:{'|'.join(_WORDS)})\b"
_QUANTITY = re.compile(
    rf"(?P<first>{_NUMERAL})(?:\s{{0,3}}(?:-|~|–|—|至|到|\bto\b)\s{{0,3}}(?P<second>{_NUMERAL}))?"
    rf"[\s-]{{0,3}}(?:{'|'.join(f'(?P<u{i}>{u})' for i, u in enumerate(_ORDER))})(?![a-z/每])(?!\s{{0,3}}(?:/|per\b))"
)
_HUNDREDTHS = re.compile(rf"百分之(?P<number>{_NUMBER}|{_HAN_NUMBER})")
_SPELLED = re.compile(r"(?<![\w.,])(\d{1,3}(?:,\d{3}){1,4}|\d{1,12}\.\d{0,8}0)(?![\d,.]\d|\d)")
_BASES = "|".join(sorted(_SPELLINGS, key=len, reverse=True))
_MEASURED = re.compile(rf"({_NUMBER})(?:-({_NUMBER}))?({_BASES})(?![a-z/])")
_PLACES = {"十": 10, "百": 100, "千": 1000, "万": 10000}
_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}


def normal(text: str) -> str:
    """A canonical text with its quantities in one spelling."""
    text = _HUNDREDTHS.sub(lambda m: _shown(_value(m["number"])) + "%", text)
    text = _QUANTITY.sub(_rewritten, text)
    return _SPELLED.sub(lambda m: _shown(float(m[1].replace(",", ""))), text)


def quantities(text: str) -> dict[str, set[str]]:
    """Base unit -> numbers (and ranges) that a `normal` text measures in it."""
    found: dict[str, set[str]] = {}
    for first, second, unit in _MEASURED.findall(text):
        found.setdefault(unit, set()).add(f"{first}-{second}" if second else first)
    return found


def _rewritten(match: re.Match[str]) -> str:
    place = next(i for i in range(len(_ORDER)) if match[f"u{i}"] is not None)
    base, factor = _UNITS[_ORDER[place]]
    ends = [_value(text) for text in (match["first"], match["second"]) if text]
    return "-".join(_shown(value * factor) for value in ends) + base


def _shown(value: float) -> str:
    return f"{round(value, 9):.12g}"


def _value(text: str) -> float:
    """The number that digits, Chinese numerals or an English word mean."""
    if text in _WORDS:
        return float(_WORDS[text])
    if text[0].isascii():
        return float(text.replace(",", ""))
    if set(text) <= set(_DIGITS):
        return float("".join(str(_DIGITS[char]) for char in text))
    total, section, digit = 0.0, 0.0, 0.0
    for char in text:
        if char == "半":
            digit += 0.5
        elif char == "万":
            total, section, digit = total + (section + digit) * 10000, 0.0, 0.0
        elif char in _PLACES:
            section, digit = section + (digit or 1) * _PLACES[char], 0.0
        else:
            digit = float(_DIGITS[char])
    return total + section + digit
