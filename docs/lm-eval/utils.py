"""Letters out of a written answer, by those forms of `danlu score` that a regular expression can tell.

Danlu need not be installed where lm-eval runs. The reasoning is cut off first: everything up to the last </think> or
</reasoning>; an opened block without an end is no answer. Then the strongest form that occurs decides: \\boxed{B},
nothing but the letter, "the answer is B" / "答案是B" / "选B", "B is correct", **B**, a line that begins with "B.",
a line with the letter alone. Two choices in one form are no answer.

What `danlu score` does beyond that, and this does not: denials ("not B", "B不对"), corrections ("wait, ..."), options
named by their text, "A or B" as ambiguous in every wording, letters that are part of a term (A型血), and answers that
were cut off.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

INVALID = "[invalid]"


def single_choice(dataset: Any) -> Any:
    """The questions with one letter as their answer."""
    return dataset.filter(lambda doc: doc["target"] in doc["letters"])


def letters(resps: Iterable[Sequence[str]], docs: Iterable[dict[str, Any]]) -> Iterator[list[str]]:
    """The letters of every response, "B" or "ACD" in order."""
    for own, doc in zip(resps, docs, strict=True):
        yield [chosen(text, doc["letters"], several=len(doc["target"]) > 1) for text in own]


def chosen(text: str, options: Sequence[str], *, several: bool = False) -> str:
    """The letters that `text` states, or INVALID; more than one only where `several` are asked for."""
    answer = answer_of(text)
    if answer is None:
        return INVALID
    answer = re.sub(r"[^\S\n]+", " ", unicodedata.normalize("NFKC", answer).strip())
    small = re.escape("".join(options).lower())
    answer = re.sub(
        rf"(\A\W*|选\W*|(?:答案|answer)\W*(?:是|为|is\b)?\W*)([{small}])(?=\W*\Z)", _raised, answer, flags=re.I
    )
    for pattern in forms("".join(options)):
        found = {"".join(sorted(set(re.findall("[A-Z]", match["g"])))) for match in pattern.finditer(answer)}
        if found:
            choice = found.pop() if len(found) == 1 else INVALID
            return choice if several or len(choice) == 1 else INVALID
    return INVALID


def _raised(match: re.Match[str]) -> str:
    return match[1] + match[2].upper()


def answer_of(text: str) -> str | None:
    """What stands behind the reasoning; None where that does not end."""
    for name in ("think", "reasoning"):
        if f"</{name}>" in text:
            text = text.rpartition(f"</{name}>")[2]
        elif f"<{name}>" in text:
            return None
    return re.sub(r"</?answer>", "", text)


@lru_cache(maxsize=64)
def forms(options: str) -> tuple[re.Pattern[str], ...]:
    """How letters are stated, strongest first."""
    one = f"[{re.escape(options)}]"
    group = rf"(?P<g>{one}(?:(?:\s*[、,/&+和与及]\s*|\s*,?\s*and\s+|\s*){one}(?![a-z])){{0,25}})"
    opening, closing = r"[\s*_#`\"'“「『【(\[{]{0,9}", r"(?:选?项)?[\s*_`\"'”」』】)\]}.。!]{0,9}"
    after = r"(?![A-Za-z0-9+-]|\s*(?:型|族|类|超|细胞|染色体|因子))"
    said = (
        r"(?:答案|選項|正确选项|正确的是|最佳选项|结论|选项)\s*(?:应该?|分别|依次)?\s*(?:是|为|選|选择?)?[\s:】\]]*"
        r"|选择?\s*|应[该当]?[是为]\s*"
        r"|(?i:\b(?:answers?|choice|option|solution)(?:\s+(?:is|are|would be|should be))?\s*[:=]?\s*"
        r"(?:option|choice)?\s*"
        r"|\b(?:choose|pick|select|go with)\s*(?:option|choice)?\s*)"
    )
    right = (
        r"[\s*)\]】]*(?:选?项)?\s*(?:(?:是|才是|为|最)?(?:正确|对的|恰当|符合)"
        r"|(?i:is|are)\s+(?:the\s+)?(?i:correct|right|best))"
    )
    return tuple(
        re.compile(pattern, re.M)
        for pattern in (
            rf"\\boxed\s*{{\s*(?:\\(?:text|mathrm|textbf)\s*{{)?\s*{group}\s*}}",
            rf"\A{opening}{group}{closing}\Z",
            rf"(?:{said}){opening}{group}{after}",
            rf"(?<![A-Za-z0-9]){opening}{group}{right}",
            rf"\*\*\s*\(?{group}[.:)]*\s*\*\*",
            rf"^{opening}{group}\s*(?:选?项)?[.:)、。,;\]]",
            rf"^{opening}{group}{closing}$",
        )
    )
