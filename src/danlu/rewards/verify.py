"""Verification: an answer against its target, by rules, for rewards and evaluation alike.

Only the answer part of a completion is read, never the reasoning. A choice question needs a letter that is *claimed*
("答案是B", "应选 B", "**B**", `\\boxed{B}`, "The answer is B") or exactly the text of an option; an open question needs
the gold or an alias in the answer, and no distractor beside it. What is denied ("不选A", "not X") does not count, what
follows a correction ("不对，应为C") replaces what came before it, and the longest candidate wins where one holds
another (肺炎 inside 支原体肺炎). Whenever two readings remain the outcome is `ambiguous`: it is never a guess.

Departures from the usual "first capital letter": a letter inside a term (维生素D, A型血) or the English article "A"
is no choice; a letter whose own words name another option is ambiguous.
Not covered: paraphrases that no alias lists, Traditional against Simplified, units and numeric tolerance, hedged
diagnoses; those need aliases or a judge.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from danlu.errors import DanluError
from danlu.records import Completion, Sample, Score

VERSION = 1  # raised whenever a verdict can change; reports carry it so that only equal rules are compared

_CLAUSE = "。，；！？,;!?\n"
_CORRECTION = re.compile(
    r"不对|更正|纠正|改为|改选|重新考虑|应当?改|\bactually\b|\bcorrection\b|\bwait\b|\bsorry\b|\bon second thought\b",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Claim:
    """Something the answer says: where, which candidates, and whether it denies them."""

    start: int
    end: int
    names: frozenset[str]
    denied: bool = False


def verify(sample: Sample, completion: Completion) -> Score:
    """The verdict on one completion; value 1.0 for `right`, else 0.0.

    DanluError if the sample has no target.
    """
    if not (sample.target or "").strip():
        raise DanluError(f"sample {sample.id} has no target to verify against", "give the row a gold answer")
    text = completion.answer.strip()
    if completion.finish == "error":
        return Score(0.0, "none", None, "the generator failed")
    if completion.finish == "length" and (not text or (not completion.well_formed and text == completion.text.strip())):
        return Score(0.0, "truncated", None, "cut before the answer")
    if not text:
        return Score(0.0, "none", None, "no answer part")
    extracted, how = extract(sample, completion)
    gold = _gold_letters(sample)
    if how.startswith("ambiguous"):
        outcome = "ambiguous"
    elif gold is not None:
        outcome = "none" if extracted is None else "right" if set(extracted) == set(gold) else "wrong"
    else:
        outcome = "right" if how == "gold" else "wrong"
    if completion.finish == "length" and outcome == ("none" if gold is not None else "wrong") and how == "not found":
        return Score(0.0, "truncated", extracted, "cut inside the answer")
    return Score(float(outcome == "right"), outcome, extracted, how)  # type: ignore[arg-type]


def extract(sample: Sample, completion: Completion) -> tuple[str | None, str]:
    """(what the answer says, how it was found) from the answer part alone.

    Choice questions: letters in order ("B", "ACD"), or None. Open questions: the wording claimed, a short answer as
    it is, or None. `how` starts with "ambiguous" where two readings remain.
    """
    text = completion.answer.strip()
    if not text:
        return None, "no answer part"
    if _gold_letters(sample) is not None:
        return _choice(sample, text)
    return _open(sample, text)


# ---- candidates in a text


def _canonical(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def flatten(text: str) -> tuple[str, list[int]]:
    """(letters and digits of `text` in canonical form, their positions in it).

    Spaces and punctuation go, except one space between two Latin words, signs and points of numbers, and %.
    `text` must be canonical (NFKC, casefolded) already.
    """
    kept: list[str] = []
    places: list[int] = []
    for i, char in enumerate(text):
        before, after = text[i - 1 : i], text[i + 1 : i + 2]
        number = after.isdigit() and ((char == "." and before.isdigit()) or (char == "-" and not before.isalnum()))
        if char.isalnum() or char == "%" or number or unicodedata.category(char) == "Mn":
            gap = places and places[-1] < i - 1 and _latin(kept[-1]) and _latin(char)
            if gap and not (text[places[-1] + 1 : i] == "-" and char.isdigit() and not kept[-1].isdigit()):
                kept.append(" ")
                places.append(i - 1)
            kept.append(char)
            places.append(i)
    return "".join(kept), places


def _latin(char: str) -> bool:
    return char.isalnum() and ord(char) < 0x2E80


@lru_cache(maxsize=8192)
def _needle(wording: str) -> tuple[str, int]:
    """A candidate's wording flattened, and how many clause marks it holds itself."""
    canonical = _canonical(wording).strip()
    return flatten(canonical)[0], sum(char in _CLAUSE for char in canonical)


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
            needle, breaks = _needle(wording)
            at = flat.find(needle) if needle else -1
            while at >= 0:
                start, end = places[at], places[at + len(needle) - 1] + 1
                if _bounded(flat, at, at + len(needle)) and sum(c in _CLAUSE for c in text[start:end]) <= breaks:
                    found.append(Claim(start, end, frozenset([name]), _denied(text, start, end)))
                at = flat.find(needle, at + 1)
    kept: list[Claim] = []
    outer = (-1, -1)
    for claim in sorted(found, key=lambda claim: (claim.start, -claim.end)):
        span = (claim.start, claim.end)
        if claim.end > outer[1] or span == outer:
            kept.append(claim)
            outer = span
    return kept


_NO = (  # words that deny what follows
    r"(?:不(?:应|该|能|可|会|太|再)?(?:诊断为|考虑|支持|符合|属于|选择?|是)|并?非(?:是)?|没有|无法诊断为?|排除|否认|除外|"
    r"\bnot(?!\s+only)|\bno\b|n't|\bnever|\bneither|\bnor|\bwithout|\brather than|\binstead of|"
    r"\b(?:rule[sd]?|ruling) out|\bexclud(?:e[sd]?|ing)|\bunlikely to be)"
)
_OPENING = r"[\s*_\"'“”「『(\[:]*"
_FILLER = rf"{_OPENING}(?:(?:the|an?|be|is|have|caused by|due to|option|选项|诊断为?|是|为)\s*)?{_OPENING}"
_NO_BEFORE = re.compile(rf"(?:{_NO}{_FILLER}|[不非无没未]|non[- ]?)$", re.I)
_NO_LIST = re.compile(rf"{_NO}(?:(?!而是|\bbut\b|是)[^{_CLAUSE}])*(?:[、/或和及与]|\bor|\band|\bnor)\s*$", re.I)
_NO_AFTER = re.compile(
    r"[\s*_\"'”」』)\]]{0,3}(?:选?项)?(?:的?可能性?(?:很|较|更)?(?:小|低)|(?:是|为)?(?:不对|不正确|不成立|错误|错的|不符|不支持|不考虑)|"
    r"(?:已|可|可以|被|应)*(?:排除|除外)|不(?:选|是)|isn't|wasn't|"
    r"(?:is|was|are|can be|has been|seems?)\s*(?:not\b|wrong|incorrect|unlikely|ruled out|excluded))",
    re.I,
)


def _denied(text: str, start: int, end: int) -> bool:
    before = text[max(0, start - 60) : start]
    clause = re.split(f"[{_CLAUSE}]", before)[-1]
    return bool(_NO_BEFORE.search(clause) or _NO_LIST.search(clause) or _NO_AFTER.match(text, end))


def _after_correction(text: str, found: list[Claim]) -> list[Claim]:
    """Claims after the last correction that is followed by any; all of them if there is none."""
    last = max((claim.start for claim in found if not claim.denied), default=-1)
    cues = [cue.start() for cue in _CORRECTION.finditer(text) if cue.start() <= last]
    return [claim for claim in found if claim.start >= cues[-1]] if cues else found


# ---- open answers


def _open(sample: Sample, answer: str) -> tuple[str | None, str]:
    text = _canonical(answer)
    right = [sample.target or "", *sample.aliases]
    flat_right = {_needle(wording)[0] for wording in right}
    wrong = [d for d in sample.distractors if _needle(d)[0] not in flat_right]
    if not _needle(sample.target or "")[0]:  # a gold of punctuation alone ("+"): nothing else may stand
        same = text.strip() == _canonical(sample.target or "").strip()
        return (answer, "gold") if same else (answer[:40], "not found")
    found = claims(text, {"gold": right, **{f"distractor {i}": [d] for i, d in enumerate(wrong)}})
    kept = [claim for claim in _after_correction(text, found) if not claim.denied]
    names = {name for claim in kept for name in claim.names}
    if "gold" in names:
        if len(names) > 1:
            return None, "ambiguous: a distractor is claimed as well"
        return sample.target, "gold"
    if len(names) > 1:
        return None, "several distractors"
    if names:
        return wrong[int(names.pop().removeprefix("distractor "))], "distractor"
    if any("gold" in claim.names for claim in found):
        return None, "gold is denied"
    return (answer if len(answer) <= 40 else None), "not found"


# ---- choice questions


def _gold_letters(sample: Sample) -> str | None:
    """The target as letters of the options ("B", "ACD"), or None where the question is open."""
    if not sample.options:
        return None
    target = unicodedata.normalize("NFKC", sample.target or "").strip()
    letters = re.sub(r"[\s、,，/;；.]+", "", target).upper()
    if letters and set(letters) <= set(sample.options):
        return "".join(sorted(set(letters)))
    return next((k for k, v in sample.options.items() if _canonical(v).strip() == target.casefold()), None)


@lru_cache(maxsize=64)
def _patterns(letters: str) -> list[tuple[str, re.Pattern[str]]]:
    """Ways of claiming letters, strongest first; group `g` holds the letters, `no` and `no2` a denial inside."""
    one = f"[{re.escape(letters)}]"
    # several letters: joined by list marks or run together ("ACD"); "或" and "or" join too but never decide
    group = rf"(?P<g>{one}(?:(?:\s*[、,/&+和与及或]\s*|\s+(?:and|or)\s+|\s*){one}(?![a-z])){{0,25}})"
    # bounded, as every run here is: model outputs hold thousands of spaces and brackets
    opening, closing = r"[\s*_\"'“”「『【(\[{]{0,9}", r"(?:\s*选?项)?[\s*_\"'”」』】)\]}.。!]{0,9}"
    # a choice is followed by a space, punctuation, or words that speak about it, not by the rest of a term (A型血)
    after = (
        r"(?![A-Za-z0-9\-+]|\s*(?:型|族|类|超|细胞|染色体|因子))"
        r"(?=$|[^\w]|_|选?项|是|为|对|正确|而|因|故|所以|更|最|不|才|吧|了|或|还)"
    )
    no = r"(?P<no>(?:并?不(?:应该?|能|会|可能)?|并?非)\s*(?:是|为|选)?|(?:is|are)\s*n[o']t|not)?"
    kind = r"(?:不?(?:正确|恰当|符合|属于)|错误|最佳|最可能|首选)的?(?:一项|选项|答案|说法|描述|诊断)?"
    said_zh = (
        rf"(?:答案|{kind}|选项?|结论)\s*(?:应该?|依次|分别|就|只能|仅)?\s*{no}\s*(?:是|为|选择?|有)?[\s:]*"
        r"|选择?\s*|应[该当]?[是为]\s*|改[为成]\s*|而是\s*|更正为\s*|排除\s*"
    )
    said_en = (
        r"\b(?:answers?|choices?|options?|solution)(?:\s+(?:is|are|(?:w|sh)ould be|must be|will be))?"
        rf"\s*{no.replace('<no>', '<no2>')}\s*[:=]?\s*(?:option|choice|letter)?\s*"
        r"|\b(?:choose|pick|select|go with|chose|picked|selected|it is|it's|it must be|correction)\s*[:,]?\s*"
        r"(?:option|choice|answer)?\s*"
    )
    right = (
        r"(?:是|为|最|才|均|都)*(?:正确|对的|符合|恰当)|(?i:is|are)\s+(?:the\s+)?(?i:correct|right|best|most|answer)"
    )
    return [
        ("boxed", re.compile(rf"\\boxed\s*{{\s*(?:\\(?:text|mathrm|textbf)\s*{{)?\s*{group}\s*}}")),
        ("alone", re.compile(rf"^{opening}{group}{closing}$")),
        ("said", re.compile(rf"(?i:{said_zh}|{said_en}){opening}(?:选项\s*)?{group}{after}")),
        (
            "said",
            re.compile(rf"(?<![A-Za-z0-9])(?:(?i:option|choice)\s+)?{opening}{group}[\s*)\]]*(?:选?项)?(?:{right})"),
        ),
        ("marked", re.compile(rf"\*\*\s*\(?{group}[.:)]*\s*\*\*|(?<![\w(])\({group.replace('<g>', '<g2>')}\)")),
        ("first", re.compile(rf"^{opening}{group}\s*(?:选?项)?(?:[.:)、。,;\]]|因为)", re.M)),
        ("line", re.compile(rf"^{opening}{group}{closing}$", re.M)),
    ]


def _choice(sample: Sample, answer: str) -> tuple[str | None, str]:
    """The letters an answer claims: the strongest form that occurs decides, and it must say one thing."""
    text = re.sub(r"[^\S\n]+", " ", unicodedata.normalize("NFKC", answer).strip())
    text = re.sub(r"\s*\n\s*", "\n", text)
    options = {key: value for key, value in sample.options.items() if len(key) == 1}
    several = len(_gold_letters(sample) or "") > 1
    small = "".join(options).lower()
    cue = r"^\W*|选\W*|(?:答案|answer|option|choice)\W*(?:是|为|选|is\b)?\W*"
    text = re.sub(rf"({cue})([{re.escape(small)}])(?=\W*$)", lambda m: m[1] + m[2].upper(), text, flags=re.I)
    wordings = {"": list(sample.distractors), **{k: [v] for k, v in options.items()}}  # distractors only hide options
    texts = [claim for claim in claims(_canonical(text), wordings) if claim.names != {""}]
    for how, pattern in _patterns("".join(options)):
        read = [_read(match, text, options) for match in pattern.finditer(text)]
        found = [c for c in read if c and not any(t.start <= c.start and c.end < t.end for t in texts)]
        kept = [claim for claim in _after_correction(text, found) if not claim.denied]
        if kept:
            return _decide(text, how, kept, [claim for claim in texts if not claim.denied], several)
    named = _names([claim for claim in _after_correction(_canonical(text), texts) if not claim.denied])
    if len(named) > 1 and (not several or len(named) == len(options)):
        return None, f"ambiguous: names {named}"
    return (named, "option text") if named else (None, "not found")


def _decide(text: str, how: str, kept: list[Claim], texts: list[Claim], several: bool) -> tuple[str | None, str]:
    listed = several and how in ("first", "line")  # one chosen option a line
    choices = [_names(kept)] if listed else sorted({_names([claim]) for claim in kept})
    if len(choices) > 1:
        return None, f"ambiguous: {' and '.join(choices)}"
    choice = choices[0]
    either = any(re.search(r"或|\bor\b", text[claim.start : claim.end]) for claim in kept)
    if len(choice) > 1 and (either or not several):
        return None, f"ambiguous: {choice}"
    beside = [
        t
        for t in texts
        if any(re.fullmatch(r"[\W_]{0,4}(?<!。)", text[c.end : t.start]) for c in kept if c.end <= t.start)
    ]
    named = _names(beside or (texts if how in ("marked", "line") else []))
    if named and not set(named) & set(choice):
        return None, f"ambiguous: says {choice} but names {named}"
    return choice, how


def _names(found: list[Claim]) -> str:
    return "".join(sorted({name for claim in found for name in claim.names}))


def _read(match: re.Match[str], text: str, options: dict[str, str]) -> Claim | None:
    """The claim of a pattern match; None where the letter turns out to be the English word "A" or "I"."""
    groups = match.groupdict()
    start, end = match.span("g" if groups["g"] else "g2")
    letters = frozenset(re.sub(r"[^A-Z]", "", text[start:end]))
    rest = text[end:]
    if letters <= {"A", "I"} and re.match(r"\s+[A-Za-z]", rest):
        own = _canonical(options.get(text[start:end], "")).strip()
        about = re.match(r"\s+(?:because|since|but|not|which|is (?:the )?(?:correct|right|best|most))\b", rest)
        if not about and not (own and _canonical(rest).strip().startswith(own)):
            return None
    clause = re.split(f"[{_CLAUSE}]", text[max(0, match.start() - 20) : match.start()])[-1]
    no = r"(?:不|没|别|勿|非|无法|never|not|n't)\s*(?:应该?|能|要|可以?|would)?\s*$"
    inside = groups.get("no") or groups.get("no2") or "排除" in match.group()
    return Claim(start, end, letters, bool(inside or re.search(no, clause, re.I) or _NO_AFTER.match(text, end)))
