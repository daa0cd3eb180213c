"""What the words around a group of mentions say of it: claimed, judged, denied, asked, reported or conditional."""

from __future__ import annotations

import re
from dataclasses import dataclass

from danlu.rewards import phrases
from danlu.rewards.marks import CLASH, LETTER, TOKEN, WEAK
from danlu.rewards.mentions import CLAUSE, ROUND, denied


@dataclass(frozen=True, slots=True)
class Mention:
    """A group of options named together, and what its surroundings say of it."""

    start: int
    end: int
    last: frozenset[str]  # the last of them
    names: frozenset[str]  # "?" for a letter beside the wording of another option
    how: str  # keyed, said, judged, stated or ""
    right: bool | None  # judged right or wrong
    denied: bool
    denied_before: bool  # by the words before it alone: "不是X", not "X不是"
    doubted: bool  # asked, or reported of others
    conditional: bool
    either: bool
    sure: bool  # no wording too short to trust


def mention_in(text: str, match: re.Match[str], keys: str, every: frozenset[str]) -> Mention:
    """A match of `phrases.GROUP` with what its surroundings say; `keys` are the letters of the options in order."""
    start, end = match.span()
    tokens = [char for char in match[0] if re.match(f"[{TOKEN}]", char)]
    names = frozenset("?" if char == CLASH else keys[ord(char) & 0xFF] for char in tokens)
    letter = any(ord(char) < LETTER + 0x100 for char in tokens)
    worded = all(0xE100 <= ord(char) < 0xE200 or ord(char) >= WEAK for char in tokens)
    before, after = text[max(0, start - 80) : start], text[end : end + 60]
    sentence = re.split(r"[。!?\n;]|\.(?=\s)", before)[-1]
    clause = re.split(f"[{CLAUSE}]", before)[-1]
    how, right = "", None
    said = phrases.SAID.search(before)
    if phrases.KEYED.search(before):
        how = "keyed"
    elif phrases.LABEL_WRONG.search(before):
        right = False
    elif said or (not worded and phrases.SAID_LETTER.search(before) and _ends(after)):
        how = "said"
    elif phrases.AS_ANSWER.match(after):
        how, right = "said", True
    elif phrases.STATED.search(before):
        how = "stated"
    if right:
        pass
    elif (
        letter
        and re.search(r"(?:\bonly|只有|仅有?)\s*(?:选项|option\s)?$", before, re.I)
        and re.match(phrases.FITS, after, re.I)
    ):
        right = True
    elif right is None and how != "keyed":
        if phrases.JUDGED_WRONG.match(after):
            right = False
        elif phrases.JUDGED_RIGHT.match(after):
            right = True
    bare = len(names) == len(keys) and not re.search(r"\w", text[:start] + text[end:])
    if len(names) > 1 and names & every and not bare:  # a list of everything and no word beside it claims nothing
        names &= every
    no_before = denied(before + text[start:end], len(before), len(before) + end - start)
    no = not phrases.AS_ANSWER.match(after) and (
        denied(text, start, end)
        or bool(said and re.search(r"(?:[不非]|\bnot|n't|never)\W*(?:是|为|选)?\W*$", said[0], re.I))
    )
    conditional = bool(phrases.CONDITION.search(sentence)) and not phrases.NO_CONDITION.search(sentence)
    doubted = bool(phrases.REPORTED.search(clause) or phrases.ASKED.match(after))
    sure = letter or not any(ord(char) >= WEAK and char != CLASH for char in tokens)
    sure = sure or bool((how or phrases.SAID_LETTER.search(before)) and _ends(after))
    last = frozenset(keys[ord(char) & 0xFF] for char in tokens[-1:] if char != CLASH)
    return Mention(
        start,
        end,
        last,
        names,
        how,
        right,
        no,
        no_before,
        doubted,
        conditional,
        bool(phrases.EITHER.search(match[0])),
        sure,
    )


def _ends(after: str) -> bool:
    return bool(re.match(rf"{ROUND}*(?:选?项)?{ROUND}*(?:$|[\W_]|because|since|而|因|才|故|所以)", after))
