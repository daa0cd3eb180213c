"""Where a text names candidates by their wording, and whether the words around deny it.

A wording is found in letters and digits alone, in either Chinese script, so spaces, markup and punctuation never hide
it; the longest wording wins where one holds another (肺炎 inside 支原体肺炎).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from danlu.data.language import simplified

CLAUSE = "。，；！？,;!?\n"
BOLD, BOX, BOX_END = "\ue401", "\ue402", "\ue403"  # private characters: marks of bold type, \\boxed{ and its }
ROUND = f"[\\s\"'“”‘’「」『』【】\\[\\](){{}}<>|_=~`:*#{BOLD}{BOX_END}-]"  # what may stand around a mention
INLINE = ROUND.replace("\\s", " ")  # the same within a line
_RUN = re.compile(r"[^\W_]+|[%.-]|[^\w\s\x00-\x7f]")
_UNIT = re.compile(
    r"(?:[mkμµun]?g|[mdμµu]?l|[mcμµn]?m|i?u|k?cal|k?pa|m?mol|mmhg|min|ms|mv|ma|hz|kj|gy|[hsdw])(?![a-z])"
)


@dataclass(frozen=True, slots=True)
class Claim:
    """Something the answer says: where, which candidates, and whether it denies them."""

    start: int
    end: int
    names: frozenset[str]
    denied: bool = False


_UNSEEN = re.compile(
    "[\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\U000e0000-\U000e0fff]"
)
_COMBINING = re.compile("[\u0300-\u036f]")
_ON_HAN = re.compile("(?<=[\u3400-\u9fff])[\u0300-\u036f]+")
_STRUCK = re.compile("~~[^~\n]{1,200}~~|<(del|s|strike)>[^<\n]{1,200}</\\1>")
_OVERLAID = re.compile(".[\u0335-\u0338]")
_ALIKE = str.maketrans(
    "АВЕКМНОРСТХУІЅЈԌԚԜаеорсухіѕјһԁԛԝӏΑΒΕΖΗΙΚΜΝΟΡΤΥΧοᴀʙᴄᴅᴇꜰɢʜɪᎪᏴᏟᎠᎬꓮꓐꓚꓓꓰ",
    "ABEKMHOPCTXYISJGQWaeopcyxisjhdqwlABEZHIKMNOPTYXoABCDEFGHIABCDEABCDE",
)
_ALIKE |= {first + i: 65 + i for first in (0x1F150, 0x1F170, 0x1F1E6) for i in range(26)}
_ALIKE_ANY = re.compile(f"[{''.join(map(chr, _ALIKE))}]")


def unseen_gone(text: str) -> str:
    """The text without characters that nobody sees."""
    return text if text.isascii() else _UNSEEN.sub("", text)


def visible(text: str) -> str:
    """The text as a reader sees it: NFKC, without invisible characters, look-alikes of Latin letters as these.

    What is struck out is gone. An answer that is trained on could hide a "not" or a second claim in such characters.
    """
    text = unseen_gone(unicodedata.normalize("NFKC", text))
    if _ALIKE_ANY.search(text):
        text = text.translate(_ALIKE)
    if _COMBINING.search(text):
        text = _ON_HAN.sub("", _OVERLAID.sub("", text))
    return _STRUCK.sub("", text)


def canonical(text: str) -> str:
    """`visible`, simplified Chinese, without case."""
    return simplified(visible(text)).casefold()


def flatten(text: str) -> tuple[str, list[int]]:
    """(letters and digits of `text` in canonical form, their positions in it).

    Spaces and punctuation go, except one space between two Latin words, signs and points of numbers, and %.
    `text` must be canonical (NFKC, casefolded) already.
    """
    kept: list[str] = []
    places: list[int] = []
    last = ""
    for match in _RUN.finditer(text):
        run, (i, end) = match[0], match.span()
        char = run[0]
        if char in ".-":
            before = text[i - 1 : i]
            if not text[end : end + 1].isdigit() or not (before.isdigit() if char == "." else not before.isalnum()):
                continue
        elif not (char.isalnum() or char == "%" or unicodedata.category(char) == "Mn"):
            continue
        if places and places[-1] < i - 1 and _latin(last) and _latin(char):
            between = text[places[-1] + 1 : i]
            joined = between.isspace() and _UNIT.match(text, i) if last.isdigit() else between == "-" and char.isdigit()
            if not joined:  # "10 mg" is 10mg and covid-19 is covid19, other Latin words stay apart
                kept.append(" ")
                places.append(i - 1)
        kept.append(run)
        places.extend(range(i, end))
        last = run[-1]
    return "".join(kept), places


def _latin(char: str) -> bool:
    return char.isalnum() and ord(char) < 0x2E80


@lru_cache(maxsize=8192)
def needle(wording: str) -> tuple[str, int]:
    """A candidate's wording flattened, and how many clause marks it holds itself."""
    text = canonical(wording).strip()
    return flatten(text)[0], sum(char in CLAUSE for char in text)


def _bounded(flat: str, start: int, end: int) -> bool:
    """Whether flat[start:end] stands alone where it begins or ends in Latin letters or digits."""
    left, right = flat[start - 1 : start], flat[end : end + 1]
    if left and _latin(left) and _latin(flat[start]):
        return False
    if flat[start].isdigit() and left in ("-", "."):
        return False
    return not (right and ((_latin(right) and _latin(flat[end - 1])) or (flat[end - 1].isdigit() and right in ".%")))


def claims(text: str, candidates: dict[str, list[str]]) -> list[Claim]:
    """Where a canonical `text` names candidates (name -> wordings); a wording inside a longer one does not count."""
    flat, places = flatten(text)
    found: list[Claim] = []
    for name, wordings in candidates.items():
        for wording in wordings:
            sought, breaks = needle(wording)
            at = flat.find(sought) if sought else -1
            while at >= 0:
                start, end = places[at], places[at + len(sought) - 1] + 1
                if _bounded(flat, at, at + len(sought)) and sum(c in CLAUSE for c in text[start:end]) <= breaks:
                    found.append(Claim(start, end, frozenset([name])))
                at = flat.find(sought, at + 1)
    kept: list[Claim] = []
    outer = (-1, -1)
    for claim in sorted(found, key=lambda claim: (claim.start, -claim.end)):
        span = (claim.start, claim.end)
        if claim.end > outer[1] or span == outer:
            kept.append(Claim(*span, claim.names, denied(text, *span)))
            outer = span
    return kept


_NO = (  # words that deny what follows
    r"(?:不(?:应该?|该|能|可|会|太|再|宜|像)?(?:当)?(?:诊断为|考虑|支持|符合|属于|选(?:择|用)?|使用|是|像)|"
    r"并?非(?:是)?|没有|"
    r"无法诊断为?|[别勿莫]再?选?|排除了?|否认|除外|除了?|误选|错选|"
    r"\bnot(?!\s+only)|\bno\b|n't|\bcannot\b|\bnever|\bneither|\bnor|\bwithout|\brather than|\binstead of|"
    r"\b(?:rule[sd]?|ruling) out|\bexclud(?:e[sd]?|ing)|\bunlikely to be)"
)
_OPENING = rf"[\s*_\"'“”「『(\[:{BOLD}]{{0,9}}"
_FILLER = (
    rf"{_OPENING}(?:(?:the|an?|be|is|have|evidence (?:of|for)|caused by|due to|correct|answer|option|需要|"
    r"有?证据支持|choose|pick|select|go with|"
    rf"选项|诊断为?|是|为)\s*){{0,3}}{_OPENING}"
)
_NO_BEFORE = re.compile(rf"(?:{_NO}{_FILLER}|[不非无没未]|non[- ]?)$", re.I)
_NO_LIST = re.compile(rf"{_NO}(?:(?!而是|\bbut\b|是|:)[^{CLAUSE}])*(?:[、/或和及与]|\bor|\band|\bnor)\s*$", re.I)
_NO_AFTER = re.compile(
    rf"[\s*_\"'”」』)\]{BOLD}]{{0,3}}(?:选?项)?(?:的?可能性?(?:很|较|更)?(?:小|低)|"
    r"(?:也|均|都|皆|显然|完全)*(?:是|为|并)?(?:不对|不正确|不成立|错误|错的|不符|不支持|不考虑|不恰当|不合适|有误)|"
    r"(?:已|可|可以|被|应|均|都|也)*(?:排除|除外)|(?:并|都|也|均)?不(?:选|是)|(?:之外|以外)|(?:isn't|aren't|"
    r"wasn't)|should(?:n't| not)|"
    r"(?:is|was|are|were|can be|has been|have been|seems?)\s*(?:all\s*|also\s*|both\s*)?"
    r"(?:not\b|wrong|incorrect|unlikely|less likely|ruled out|excluded))",
    re.I,
)


def denied(text: str, start: int, end: int) -> bool:
    """Whether the words around text[start:end] deny it."""
    clause = re.split(f"[{CLAUSE}]", text[max(0, start - 60) : start])[-1]
    return bool(_NO_BEFORE.search(clause) or _NO_LIST.search(clause) or _NO_AFTER.match(text, end))
