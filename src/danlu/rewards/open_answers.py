"""An open answer against its gold: which wording it claims, and whether anything takes that back.

The gold or an alias must be named and not denied; what follows a correction replaces what came before it; the longest
wording wins where one holds another (肺炎 inside 支原体肺炎). Compared are letters and digits in either Chinese script,
quantities in one spelling (0.5 g is 500 mg, see quantities), and English without articles, plural s, 's and the
British ae, oe, our.
An answer that names the gold is wrong where its sentence contradicts a side (left, right, both) or a quantity that the
gold has. It is ambiguous where a distractor is claimed as well, another answer is called the answer, the gold is taken
back ("不对，…"), or it is one of several alternatives ("X或Y", a list of three and more).
A distractor that is only discussed ("肺结核多有盗汗") does no harm where the gold is singled out in one of the ways in
which an option is: the gold and its distractors are then read as the options of a question (see choice).
Not covered: paraphrases that no alias lists, hedges without a word for them, and, where a question has no
distractors, another answer beside the gold in a sentence of its own.
"""

from __future__ import annotations

import re

from danlu.records import Sample
from danlu.rewards.choice import read
from danlu.rewards.mentions import ROUND, Claim, canonical, claims, needle
from danlu.rewards.phrases import CORRECTION
from danlu.rewards.quantities import normal, quantities

_STRONG = ("keyed", "said", "judged", "stated", "concluded", "line", "marked")  # ways of singling out, see choice
_KEYS = [chr(code) for code in range(0x2F00, 0x2FD6)]  # names of the wordings; radicals that no canonical text holds
_MOST = 50  # claims of a kind that are read from either end of an answer
_LIST = 3  # items of a list from which on the gold in it is one of many
_CLAUSES = 4  # the same where commas join them, which also join clauses


def read_open(sample: Sample, answer: str, cut: bool = False) -> tuple[str | None, str]:
    """(what the answer says, how); `how` is "gold" for a right answer and starts with "ambiguous" where two stand.

    What it says is the gold, a distractor, the answer itself where that is short, or None.
    """
    target = sample.target or ""
    if not needle(target)[0]:  # a gold of punctuation alone ("+"): nothing else may stand
        same = canonical(answer).strip() == canonical(target).strip()
        return (answer, "gold") if same else (answer[:40], "not found")
    right = [variant for wording in (target, *sample.aliases) for variant in _variants(wording)]
    known = {needle(wording)[0] for wording in right}
    wrong = [text for text in sample.distractors if needle(_plain(text))[0] not in ("", *known)][: len(_KEYS) - 1]
    wordings = {_KEYS[0]: right} | {key: _variants(d) for key, d in zip(_KEYS[1:], wrong, strict=False)}
    text = spelled(canonical(answer))
    found = claims(text, wordings)
    if not found:  # a gold without its unit ("3.5")
        text = canonical(answer)
        found = claims(text, wordings)
    since = _corrected(text, found)
    kept = [claim for claim in found if claim.start >= since and not claim.denied]
    names = {name for claim in kept for name in claim.names}
    if _KEYS[0] in names:
        return _named(sample, text, kept, wordings, since, cut)
    if names:
        return (None, "several distractors") if len(names) > 1 else (wrong[_KEYS.index(min(names)) - 1], "distractor")
    if any(_KEYS[0] in claim.names for claim in found):
        return None, "gold is denied"
    return (answer if len(answer) <= 40 else None), "not found"


def _named(
    sample: Sample, text: str, kept: list[Claim], wordings: dict[str, list[str]], since: int, cut: bool
) -> tuple[str | None, str]:
    """The verdict on an answer that names the gold."""
    gold = _ends([claim for claim in kept if _KEYS[0] in claim.names])
    others = _ends([claim for claim in kept if _KEYS[0] not in claim.names])
    if others:
        options = {key: texts[0] for key, texts in wordings.items()}
        letter, how = read(text, options, [], False, sample.question, cut, also=wordings)
        if letter != _KEYS[0] or how not in _STRONG or any(_offered(text, claim) for claim in others):
            return None, "ambiguous: a distractor is claimed as well"
    if _TAKEN_BACK.search(text, gold[-1].end):
        return None, "ambiguous: taken back"
    if all(_one_of_several(text, claim, gold) for claim in gold):
        return None, "ambiguous: one of several"
    if _said_otherwise(text, gold, since):
        return None, "ambiguous: another answer is stated"
    wanted = _plain(sample.target or "")
    for claim in gold:
        sentence = _sentence(text, claim)
        if (own := sides(wanted)) and (told := sides(sentence)) and not own & told:
            return None, "another side than the gold's"
        measured = quantities(sentence)
        for unit, numbers in quantities(wanted).items():
            if measured.get(unit) and not numbers & measured[unit]:
                return None, "another quantity than the gold's"
    return sample.target, "gold"


def _ends(found: list[Claim]) -> list[Claim]:
    """The first and the last claims of very many."""
    return found if len(found) <= 2 * _MOST else found[:_MOST] + found[-_MOST:]


# ---- wordings


def spelled(text: str) -> str:
    """A canonical text with quantities and English in one spelling."""
    text = re.sub(r"[。.](?=[、,])", "", normal(text))  # a list of sentences
    text = re.sub(r"(?<=[a-z])['’]s\b", "", text)
    return re.sub(r"(?<=[a-z]{2})our\b", "or", re.sub("ae|oe", "e", text))


def _plain(wording: str) -> str:
    """A wording as it is compared: spelled, without an article before and a full stop behind it."""
    text = re.sub(r"^(?:the|an?)\s+", "", spelled(canonical(wording)).strip())
    return text.rstrip(" .。;；,，")


def _variants(wording: str) -> list[str]:
    """A wording in the singular and the plural, where it ends in an English word."""
    text = _plain(wording)
    if not re.search(r"[a-z]{4}$", text):
        return [text]
    if text.endswith("s"):
        return [text] if text.endswith(("ss", "us", "is")) else [text, text[:-1]]
    return [text, f"{text}s"]


# ---- sides

_DRUG = "氧|旋|炔|卡|西孟|乙|甲|归|金|美"  # 左氧氟沙星, 右旋糖酐
_NOT_A_SIDE = (
    r"(?:answer|choice|option|diagnosis|one|away|now|after|before|to|here|that|and|or|as|in|on|of|is|with|over|alone|"
    r"the|an?|untreated|because|since)\b"
)
_SIDES = {
    "left": re.compile(rf"左(?!右|{_DRUG})|\bleft(?:-|\s+(?!{_NOT_A_SIDE})[a-z]{{3}})|\b(?:on|to) the left\b"),
    "right": re.compile(
        rf"(?<!左)右(?!{_DRUG})|\bright(?:-|\s+(?!{_NOT_A_SIDE})[a-z]{{3}})|\b(?:on|to) the right(?! of\b)\b"
    ),
    "both": re.compile(
        r"[双两](?:侧|肺|肾|眼|耳|手|足|上肢|下肢)|\bbilateral|\bboth\s+(?:sides|lungs|kidneys|eyes|ears)\b"
    ),
}


def sides(text: str) -> set[str]:
    """Which sides of the body a canonical text names: "left", "right", "both"."""
    return {name for name, pattern in _SIDES.items() if pattern.search(text)}


# ---- the words around a claim

_SENTENCE = re.compile(r"[。!?;；！？\n]|\.(?=\s|$)")
_OFFERED = re.compile(  # a distractor after one of these is offered as well
    r"可能|不(?:能)?排除|考虑|待排|[或和与及、/]\W*$|以及|还是|还有|同时|合并|伴|\b(?:or|and|versus|vs|could|may|might|possibly|"
    r"probably|consider|also|plus|with)\b",
    re.I,
)
_OFFERED_AFTER = re.compile(rf"{ROUND}{{0,4}}(?:也|亦|仍|尚)?(?:待排|不(?:能)?(?:除外|排除)|(?:有)?可能(?!性))")
_OR = r"(?:或者?|还是|/|\bor\b|\bversus\b|\bvs\b\.?)"
_BEFORE, _AFTER = re.compile(rf"{_OR}(?:是|为|\s*an?\s)?{ROUND}{{0,4}}$"), re.compile(rf"{ROUND}{{0,4}},?\s?{_OR}")
_ITEMS = re.compile("[、/]"), re.compile(r"[、,/]|\s(?:and|or)\s|[和或]")
_EXPLAINS = re.compile(
    r"(?:which|that|who|with|because|due|since|as|is|are|was|were|in|on|of|for|by|from|to|caused?|causing|given|"
    r"secondary|not|but|so)\b|因|是|为|可|表现"
)
_BULLET = re.compile(r"^\W{0,4}(?:\d{1,2}\W{1,3})?")


def _offered(text: str, claim: Claim) -> bool:
    """Whether the words around the claim of a distractor offer it as an answer too."""
    before = re.split("[,，。;；!?！？\n]", text[max(0, claim.start - 40) : claim.start])[-1]
    return bool(_OFFERED.search(before) or _OFFERED_AFTER.match(text, claim.end))


def _bounds(text: str, claim: Claim) -> tuple[int, int]:
    """Start and end of the sentence that holds a claim, looking 300 characters far."""
    start = max((m.end() for m in _SENTENCE.finditer(text, max(0, claim.start - 300), claim.start)), default=0)
    end = _SENTENCE.search(text, claim.end, claim.end + 300)
    return max(start, claim.start - 300), end.start() if end else min(len(text), claim.end + 300)


def _sentence(text: str, claim: Claim) -> str:
    start, end = _bounds(text, claim)
    return text[start:end]


def _one_of_several(text: str, claim: Claim, gold: list[Claim]) -> bool:
    """Whether a claim of the gold is one of alternatives, or an item of a long list."""
    if (joiner := _AFTER.match(text, claim.end)) and not any(c.start - joiner.end() in range(4) for c in gold):
        return True
    before = text[max(0, claim.start - 12) : claim.start]
    if (joiner := _BEFORE.search(before)) and not any(
        claim.start - len(before) + joiner.start() - c.end in range(4) for c in gold
    ):
        return True
    start, end = _bounds(text, claim)
    parts = text[start : claim.start], text[claim.end : end]
    runs = [_run(*parts, items) for items in _ITEMS]
    return runs[0] >= _LIST or runs[1] >= _CLAUSES or _bulleted(text, claim)


def _run(before: str, after: str, items: re.Pattern[str]) -> int:
    """How many short items of a list stand side by side, with the one between `before` and `after`."""
    left, right = items.split(before), items.split(after)
    if len(left[-1].strip()) > 6 or len(right[0].strip()) > 6:
        return 1
    beside = [item for item in left[:-1][::-1] if item.strip()], [item for item in right[1:] if item.strip()]
    short = [[_short(item) for item in side] for side in beside]
    return 1 + sum(part.index(False) if False in part else len(part) for part in short)


def _short(item: str) -> bool:
    item = item.strip()
    limit = 40 if item.isascii() else 8
    return 0 < len(item) <= limit and len(item.split()) <= 4 and not _EXPLAINS.match(item)


def _bulleted(text: str, claim: Claim) -> bool:
    """Whether a claim is a line of its own among `_CLAUSES` and more short lines with bullets or numbers."""
    start, end = text.rfind("\n", 0, claim.start) + 1, text.find("\n", claim.end)
    line = text[start : end if end >= 0 else len(text)]
    if len(line) > 200 or not _is_item(line) or len(_BULLET.sub("", line).strip()) > claim.end - claim.start + 2:
        return False
    return sum(map(_is_item, text.split("\n")[:200])) >= _CLAUSES


def _is_item(line: str) -> bool:
    bare = _BULLET.sub("", line)
    return bool(line[: len(line) - len(bare)].strip()) and _short(bare)


_TAKEN_BACK = re.compile(
    r"(?:^|(?<=[。,;!?…\n ]))(?:不对(?![称劲等])|不是,|不,|更正|我错了|重新考虑)|"
    r"\b(?:no,? wait|correction:|on second thought|i was wrong|scratch that)"
)
_ALSO = re.compile(  # another answer is held possible as well
    r"(?:[也亦]有?可能|或许|也许)(?:是|为)\s*(?P<zh>[^,。;!?\n]{0,20})|"
    r"(?:(?:,|\bor\b|\band\b)\s*(?:it\s|this\s)?\s*(?:may|might|could)|\b(?:may|might|could) also)(?:\s+also)?\s+be\s"
    r"(?P<en>[^,.;!?\n]{0,40})"
)
_STATES = re.compile(
    r"答案(?:应该?)?(?:是|为|:)\W{0,4}(?P<zh>[^。;!?\n]{2,60})|"
    r"\banswer(?:\s+(?:is|would be|should be)|:)\W{0,4}(?P<en>[^.;!?\n]{2,80})"
)
_EMPTY = re.compile(r"(?:肯定|否定|明确|显而易见|如下|yes\b|no\b|not\b|clear|simple|as follows|不)")


def _said_otherwise(text: str, gold: list[Claim], since: int) -> bool:
    """Whether something else than the gold is called the answer, or held possible as well."""
    for pattern in (_STATES, _ALSO):
        for match in pattern.finditer(text, since):
            start, end = match.span(match.lastgroup or 0)
            if not _EMPTY.match(text, start) and not any(start - 1 <= claim.start <= end for claim in gold):
                return True
    return False


def _corrected(text: str, found: list[Claim]) -> int:
    """Where the last correction stands that a claim follows; 0 without one."""
    last = max((claim.start for claim in found if not claim.denied), default=-1)
    return max((cue.start() for cue in CORRECTION.finditer(text) if cue.start() <= last), default=0)
