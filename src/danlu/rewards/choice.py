"""Which options an answer claims, read as a careful person reads it: by what is said, not the first capital letter.

`marks.mark` turns the answer into text with one character per mention. Every group of mentions ("A、C和D") is read
with the words before and after it, and the strongest kind of statement that occurs decides:
boxed or keyed (\\boxed{B}, {"answer": "B"}) > the whole answer > said (答案是B, the answer is B) > a line of its own >
judged option by option (A错误…B正确…; the false one where the question asks for it) > the opening ("B。因为…") > the
last conclusion (因此…) > stated as the finding (诊断为…, the most likely diagnosis is …) > the question's own words
with an option in its blank (肝在体为筋) > the only bold option > in a short answer, the only option named.
Within a kind what follows a correction replaces what came before, what is denied, asked, reported of others or
conditional does not count, and two different choices are ambiguous. An answer that claims nothing has no choice, also
where it names or lists options.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

from danlu.rewards import phrases
from danlu.rewards.marks import ALL, TOKEN, mark, plain
from danlu.rewards.mentions import BOLD
from danlu.rewards.statements import Mention, mention_in

_MOST = 300  # groups read from either end of an answer


def read(
    answer: str,
    options: dict[str, str],
    hidden: list[str],
    several: bool,
    question: str,
    cut: bool = False,
    also: dict[str, list[str]] | None = None,
) -> tuple[str | None, str]:
    """(letters claimed, how); None where nothing is claimed, and `how` starts with "ambiguous" where two things are.

    `several`: the gold answer has several letters. `question` tells whether the false option is asked for. `also`:
    wordings of the options besides their texts; with it letters stand for nothing.
    """
    tagged = re.findall(r"<answer>([\s\S]*?)(?:</answer>|\Z)", answer[:200_000])
    if tagged and tagged[-1].strip() and tagged[-1].strip() != answer.strip():
        found = read(tagged[-1].replace("<answer>", "\n"), options, hidden, several, question, cut, also)
        if found[0] or found[1].startswith("ambiguous"):
            return found
    text = mark(re.sub(r"</?answer>", "\n", answer), options, hidden, also)
    groups = list(phrases.GROUP.finditer(text))
    if len(groups) > 2 * _MOST:
        groups = groups[:_MOST] + groups[-_MOST:]
    every = frozenset(key for key, value in options.items() if ALL.match(value.strip().rstrip("。.")))
    mentions = [mention_in(text, match, "".join(options), every) for match in groups]
    cues = [cue.start() for cue in phrases.CORRECTION.finditer(text)]
    reading = _Reading(text, mentions, options, several, _asks_for_the_false(question), every, cues, _frame(question))
    doubt: tuple[str | None, str] | None = None
    for step in _STEPS:
        verdict = step(reading)
        if verdict and (verdict[0] or step not in _LOOSE):
            return verdict
        doubt = doubt or verdict
        if cut and step is _concluded:
            break  # what a cut answer would have singled out is not known
    return doubt or (None, "not found")


def _asks_for_the_false(question: str) -> bool:
    stem = phrases.OPTIONS_BEGIN.split(question, maxsplit=1)[0]
    sentences = [sentence for sentence in re.split(r"[。?？!！\n]", stem) if re.search(r"\w\W*\w\W*\w", sentence)]
    clauses = re.split("，|,(?=[^ ])", sentences[-1]) if sentences else []
    return any(
        phrases.NEGATIVE.search(c) for c in clauses[-1:] + [c for c in clauses[-2:-1] if "除" in c or "下列" in c]
    )


_BLANK = re.compile(r"[(（]\s{0,8}[)）]|_{2,}")


def _frame(question: str) -> tuple[str, str]:
    """(words before, words after) the place of the option in a question that is a statement to complete, as letters."""
    stem = phrases.OPTIONS_BEGIN.split(plain(question[:2000], citations=False), maxsplit=1)[0].strip()
    blank = _BLANK.search(stem)
    before, after = (stem[: blank.start()], stem[blank.end() :]) if blank else (stem.rstrip(":：。. "), "")
    if before.rstrip().endswith("?") or "?" in after:
        return "", ""
    clause, rest = (_letters_of(re.split("[,。;]", part)[place]) for part, place in ((before, -1), (after, 0)))
    return clause[-10:], rest[:6]


def _letters_of(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


@dataclass(frozen=True, slots=True)
class _Reading:
    text: str
    mentions: list[Mention]
    options: dict[str, str]
    several: bool
    negative: bool
    every: frozenset[str]  # options that say "all of the above"
    cues: list[int]  # where something is corrected
    frame: tuple[str, str] = ("", "")  # the question's words around the place of the option


# ---- kinds of statement, strongest first; each gives a verdict or None


def _letters(mentions: list[Mention]) -> str:
    return "".join(sorted({name for mention in mentions for name in mention.names}))


def _decide(reading: _Reading, found: list[Mention], how: str, listed: bool = False) -> tuple[str | None, str] | None:
    kept = [m for m in _corrected(reading, found) if not m.denied and not m.doubted]
    if how in ("stated", "concluded"):
        kept = [m for m in kept if m.sure]
    kept = [m for m in kept if not m.conditional] or kept
    if not kept:
        return None
    choices = sorted({_letters([m]) for m in kept})
    if listed and reading.several:
        choices = [_letters(kept)]
    if "?" in "".join(choices):
        return None, "ambiguous: a letter beside another option's text"
    if len(choices) > 1:
        union = _letters(kept)
        if kept[-1].names < kept[0].names and all(m.names in (kept[0].names, kept[-1].names) for m in kept):
            return _letters(kept[-1:]), how  # "A或E ... 所以A"
        if not (reading.several and union in choices):
            return None, f"ambiguous: {' and '.join(choices)}"
        choices = [union]
    if len(choices[0]) > 1 and (not reading.several or any(m.either for m in kept)):
        return None, f"ambiguous: {choices[0]}"
    return choices[0], how


def _corrected(reading: _Reading, found: list[Mention]) -> list[Mention]:
    """Mentions after the last correction that is followed by any; all of them if there is none."""
    last = max((m.start for m in found if not m.denied), default=-1)
    cues = [cue for cue in reading.cues if cue <= last]
    return [m for m in found if m.start >= cues[-1]] if cues else found


def _keyed(reading: _Reading) -> tuple[str | None, str] | None:
    return _decide(reading, [m for m in reading.mentions if m.how == "keyed"], "keyed")


def _alone(reading: _Reading) -> tuple[str | None, str] | None:
    if len(reading.mentions) != 1:
        return None
    mention = reading.mentions[0]
    around = reading.text[: mention.start] + reading.text[mention.end :]
    if re.fullmatch(r"[\W_]*(?:选?项)?[\W_]*", around) and not _listing(reading, mention.names):
        return _decide(reading, [mention], "alone")
    return None


def _listing(reading: _Reading, names: frozenset[str] | set[str]) -> bool:
    """Whether these are all the options of a question with one answer: a list, not a choice."""
    return len(names) == len(reading.options) > 1 and not reading.several


def _begins_list(reading: _Reading, mention: Mention) -> bool:
    """Whether all options follow in order from a mention on ("首选是：A.x B.y C.z D.w"): listed, not chosen."""
    keys = list(reading.options)
    at = reading.mentions.index(mention)
    listed = reading.mentions[at : at + len(keys)]
    if reading.several or len(keys) < 2 or [m.names for m in listed] != [{key} for key in keys]:
        return False
    gaps = (reading.text[a.end : b.start] for a, b in pairwise(listed))
    return all(re.fullmatch(rf"[\s;,{BOLD}]{{1,6}}", gap) for gap in gaps)


def _said(reading: _Reading) -> tuple[str | None, str] | None:
    found = [m for m in reading.mentions if m.how == "said" and m.right is not False]
    found = [m for m in found if not _listing(reading, m.names) and not _begins_list(reading, m)]
    if not reading.negative:  # "选A。... A是错的"
        refuted = [m for m in reading.mentions if m.right is False and len(m.names) == 1 and not m.doubted]
        standing = [m for m in found if not any(r.names == m.names and r.start > m.start for r in refuted)]
        found = standing or found
    if reading.several and (lines := _following_lines(reading, found)):
        return _decide(reading, lines, "said", listed=True)
    decided = _decide(reading, found, "said")
    if decided and decided[0] and reading.several:  # "正确的有X(B对)、Y(C对)": all that are judged right
        judged = _judged(reading)
        if judged and judged[0] and set(decided[0]) < set(judged[0]):
            return judged
    return decided


def _following_lines(reading: _Reading, found: list[Mention]) -> list[Mention]:
    """A statement over several lines or items ("答案:" and one option a line): all options of the list."""
    kept = [m for m in found if not m.denied]
    if len(kept) != 1:
        return []
    run, end = kept[:1], kept[0].end
    for mention in reading.mentions:
        if mention.start > end and re.fullmatch(rf"[\s;.。{BOLD}*•-]{{1,8}}", reading.text[end : mention.start]):
            run.append(mention)
        if mention.start >= end:
            end = mention.end if mention in run else end
    return run if len(run) > 1 else []


def _line(reading: _Reading) -> tuple[str | None, str] | None:
    """Options that are a line of their own."""
    found: list[Mention] = []
    for mention in reading.mentions:
        start = reading.text.rfind("\n", 0, mention.start) + 1
        end = reading.text.find("\n", mention.end)
        before, after = reading.text[start : mention.start], reading.text[mention.end : None if end < 0 else end]
        if not re.fullmatch(r"[\W_]{0,12}", before) or re.search(r"[✗✘❌×✖]", before + after):
            continue
        whole = re.fullmatch(r"(?:选?项)?[^\w:]{0,12}", after)
        if whole:
            found.append(mention)
    if len({m.names for m in found}) > 1 and not reading.several:
        return None
    if _listing(reading, {name for m in found for name in m.names}):
        return None
    return _decide(reading, found, "line", listed=True)


def _opening(reading: _Reading) -> tuple[str | None, str] | None:
    """The option that opens the answer as in "B。因为...", unless other options open sentences too."""
    lettered = [
        m
        for m in phrases.ITEM.finditer(reading.text)
        if re.match("[\ue000-\ue0ff\ue200-\ue2ff]", reading.text[m.end() :][:1])
    ]
    if not reading.mentions or len(lettered) > 1:
        return None
    first = reading.mentions[0]
    opens = re.fullmatch(r"[\W_]{0,8}", reading.text[: first.start])
    if (
        opens
        and re.match(r"(?:选?项)?[)\]]?(?:[.。,;]|因为|吧)", reading.text[first.end :])
        and first.right is not False
    ):
        return _decide(reading, [first], "opening")
    return None


def _verdicts(reading: _Reading) -> dict[str, set[bool]]:
    """What the answer judges of each option, by the words after it or by the verdict in its own item."""
    table: dict[str, set[bool]] = {}
    text = reading.text
    items = [match.end() for match in phrases.ITEM.finditer(text)]
    marks_first = bool(re.search(rf"^[\W_]{{0,4}}[✅✓✔√☑❌✗✘×✖][^\w\n]{{0,6}}[{TOKEN}]", text, re.M))
    for mention in reading.mentions:
        verdict = mention.right
        if mention.start in items:
            others = (m.start for m in reading.mentions if m.right is not None and m.names != mention.names)
            later = min(
                next((i for i in items if i > mention.start), len(text)),
                *(i for i in others if i > mention.start),
                len(text),
            )
            stop = text.find("\n", mention.end)
            region = text[mention.end : min(later, stop if stop >= 0 else len(text), mention.end + 300)]
            line = text[text.rfind("\n", 0, mention.start) + 1 : mention.start]
            if marks_first and (sign := re.search(r"[✅✓✔√☑❌✗✘×✖]", line)):
                verdict = sign[0] in "✅✓✔√☑"
            elif verdict is None and (found := phrases.VERDICT.search(region)):
                verdict = found["yes"] is not None
        if verdict is not None and not mention.doubted:
            bracket = re.match(r"\s?(?:对|错|√|×|正确|错误)\s?[),，,]", text[mention.end : mention.end + 8])
            for name in mention.last if bracket else mention.names:
                table.setdefault(name, set()).add(verdict and not mention.denied)
    return table


def _judged(reading: _Reading) -> tuple[str | None, str] | None:
    table = _verdicts(reading)
    table.pop("?", None)
    right = sorted(name for name, verdicts in table.items() if verdicts == {True})
    wrong = sorted(name for name, verdicts in table.items() if verdicts == {False})
    if reading.several and reading.negative and wrong:
        return "".join(wrong), "judged"
    if not reading.several and len(wrong) == 1 and _odd_one(reading, right):
        return wrong[0], "judged"
    if reading.every and set(right) == set(reading.options) - reading.every:
        return min(reading.every), "judged"
    if not right or len(right) == len(reading.options):
        return None
    if len(right) == 1 or reading.several:
        return "".join(right), "judged"
    best = {
        m.names
        for m in reading.mentions
        if len(m.names) == 1 and phrases.BEST.match(reading.text, m.end) and not m.denied
    }
    if len(best) == 1:
        return min(min(best)), "judged"
    return None, f"ambiguous: {' and '.join(right)}"


def _odd_one(reading: _Reading, right: list[str]) -> bool:
    """Whether a single option judged wrong is the answer: the false one is asked for, or all others are right."""
    return len(right) != 1 if reading.negative else 2 <= len(right) == len(reading.options) - 1


def _stated(reading: _Reading) -> tuple[str | None, str] | None:
    found = [m for m in reading.mentions if m.how == "stated" and m.right is not False]
    kept = [m for m in found if not _listing(reading, m.names) and not _begins_list(reading, m)]
    return _decide(reading, kept, "stated")


def _concluded(reading: _Reading) -> tuple[str | None, str] | None:
    """The last sentence that concludes and singles out one option."""
    choice = None
    starts = [m.start for m in reading.mentions]
    for match in re.finditer(r"[^。!?\n]+?(?:[。!?\n]|\.(?=\s)|$)", reading.text):
        cue = phrases.CONCLUDES.search(match[0])
        if not cue:
            continue
        at = match.start() + cue.end()
        whole = reading.mentions[bisect_left(starts, match.start()) : bisect_left(starts, match.end())]
        inside = [m for m in whole if m.start >= at]
        if (
            not inside
            and (reading.negative or reading.text[at : at + 1] != "不")
            and phrases.SUBJECT.match(reading.text, at)
        ):
            inside = whole  # "X有...，因此是首选"
        if reading.negative:
            inside = [replace(m, denied=m.denied_before) for m in inside]
        else:
            inside = [m for m in inside if m.right is not False]
        single = [m for m in inside if len(m.names) == 1]
        apart = re.search(r"[而但不]|\bwhereas\b|\bwhile\b|\bnot\b", match[0])
        if apart and len(single) == 1 and len(_letters(inside)) == len(reading.options) and len(inside) > 1:
            inside = single  # "A、B、C、E都属于...，而D属于..."
        decided = _decide(reading, inside, "concluded") if inside else None
        choice = decided if decided and decided[0] else choice
    return choice


def _restated(reading: _Reading) -> tuple[str | None, str] | None:
    """An option where the question has its blank, its words around it."""
    before, after = reading.frame
    if len(before) + len(after) < 2:
        return None
    found = []
    for m in reading.mentions:
        ahead = _letters_of(reading.text[max(0, m.start - 40) : m.start])
        if ahead.endswith(before) and _letters_of(reading.text[m.end : m.end + 20]).startswith(after):
            found.append(m)
    return _decide(reading, found, "restated")


def _fittest(reading: _Reading) -> tuple[str | None, str] | None:
    found = [m for m in reading.mentions if phrases.FITTEST.match(reading.text, m.end)]
    return _decide(reading, found, "stated") if not reading.negative else None


def _marked(reading: _Reading) -> tuple[str | None, str] | None:
    bold = [
        m
        for m in reading.mentions
        if m.right is not False
        and re.search(rf"{BOLD}[\W_]{{0,3}}$", reading.text[max(0, m.start - 4) : m.start])
        and re.match(rf"(?:选?项)?[.)。]{{0,2}}{BOLD}", reading.text[m.end : m.end + 6])
    ]
    return _decide(reading, bold, "marked") if len({m.names for m in bold}) == 1 else None


def _named(reading: _Reading) -> tuple[str | None, str] | None:
    """The only options that a short answer names at all."""
    worded = [m for m in reading.mentions if m.sure and re.search("[\ue100-\ue2ff]", reading.text[m.start : m.end])]
    found = [m for m in _corrected(reading, worded) if not m.denied and not m.doubted and m.right is not False]
    names = _letters(found)
    if len(reading.text) > 100 or not names or "?" in names or len(names) == len(reading.options):
        return None
    if len(names) == 1 or (reading.several and len(found) == 1):
        return names, "option text"
    around = re.sub(rf"[\W_{TOKEN}]", "", reading.text)
    if reading.several and len(around) < 8:
        return names, "option text"
    return (None, f"ambiguous: names {names}") if len(around) < 8 or any(m.either for m in found) else None


_Step = Callable[[_Reading], tuple[str | None, str] | None]
_STEPS: tuple[_Step, ...] = (
    _keyed,
    _alone,
    _said,
    _line,
    _judged,
    _opening,
    _concluded,
    _stated,
    _restated,
    _fittest,
    _marked,
    _named,
)
_LOOSE = (_stated, _restated, _concluded, _fittest, _marked)  # where two readings remain a looser kind may still decide
