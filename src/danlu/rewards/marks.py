"""An answer with every mention of an option as one private character, so that rules read sentences, not spellings.

`plain` takes LaTeX, emphasis, citations and lists of sources away; `letters` decides which letters are options. A
letter and the wording beside it are one mention, or a clash where they differ.
"""

from __future__ import annotations

import re
import unicodedata

from danlu.data.language import simplified
from danlu.rewards.letters import letters
from danlu.rewards.mentions import BOLD, BOX, BOX_END, INLINE, ROUND, claims, needle, visible

# One private character for a mention: a letter, a wording, both together, a wording too short to trust; then markup.
LETTER, WORDING, BOTH, WEAK = 0xE000, 0xE100, 0xE200, 0xE300
_PRIVATE = re.compile("[\ue000-\uf8ff]")
_LETTERS, _WORDINGS = "\ue000-\ue0ff", "\ue100-\ue1ff\ue300-\ue3ff"
CLASH = "\ue400"
TOKEN = f"{_LETTERS}{_WORDINGS}\ue200-\ue2ff{CLASH}"


_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|sf)?|math(?:bf|rm|it|sf)|operatorname|mbox|rm|bf)\s*\{|\\(?:left|right|quad|qquad)\b"
)
_SPACE = re.compile(r"\\[\s,;:!()\[\]]|\$|[^\S\n]+")
_SOURCES = re.compile(
    r"\n\W{0,6}(?:参考文献|参考资料|资料来源|references?|sources?|bibliography)\W{0,6}(?:\n|:)[\s\S]*", re.I
)


def plain(text: str, citations: bool = True) -> str:
    """An answer without LaTeX, emphasis, citations and list of sources; boxes and bold become private characters."""
    text = _PRIVATE.sub("", visible(text)).strip()
    text = simplified(text)
    parts, at = [], 0
    while (box := text.find("\\boxed{", at)) >= 0:
        depth, end = 1, box + 7
        while end < min(len(text), box + 400) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        parts += [text[at:box], BOX, text[box + 7 : end - (not depth)], BOX_END]
        at = end
    text = _COMMAND.sub("", "".join([*parts, text[at:]]))
    text = _SPACE.sub(" ", text)
    text = re.sub(r"\*\*|__", BOLD, re.sub(r"\*{3,}", "**", text))
    if citations:
        text = re.sub(r" ?\[\^?\d{1,3}\]", "", text)
    text += _cell(text)
    return re.sub(r" ?\n\s*", "\n", _SOURCES.sub("\n", text)).strip()


def _cell(text: str) -> str:
    """ "答案: B" for a table of one row under a heading "答案"."""
    if "|" not in text:
        return ""
    lines = [line.strip() for line in text.split("\n")]
    for i, line in enumerate(lines[1:-1], 1):
        if "-" in line and "|" in line and not line.strip("|:- ") and (i + 2 == len(lines) or "|" not in lines[i + 2]):
            names, cells = lines[i - 1].split("|"), lines[i + 1].split("|")
            for name, cell in list(zip(names, cells, strict=False))[2:]:
                if re.search("答案|answer", name[:40], re.I):
                    return f"\n答案:{cell}"
    return ""


def _lower(text: str) -> str:
    low = text.casefold()
    return low if len(low) == len(text) else "".join(c if len(c.casefold()) > 1 else c.casefold() for c in text)


ALL = re.compile(
    r"(?:以上|上述)(?:选项|各项|所有|全部|答案|说法|三项|四项)*(?:都|均|皆|全)(?:部)?(?:是|对|正确|可以?)?$|"
    r"all (?:of )?(?:the above|these)$",
    re.I,
)
NONE = re.compile(
    r"(?:以上|上述)(?:选项|各项|所有|全部|答案|说法)*(?:都|均|皆|全)(?:不(?:是|对|正确)|非|错)$|"
    r"none of (?:the above|these)$",
    re.I,
)
_ALL = [
    "以上都是",
    "以上均是",
    "以上皆是",
    "以上都对",
    "以上均正确",
    "以上都正确",
    "以上选项都正确",
    "all of the above",
    "all the above",
]
_NONE = [
    "以上都不是",
    "以上均不是",
    "以上皆非",
    "以上均非",
    "以上都不对",
    "以上选项都不对",
    "none of the above",
    "none of these",
]


def wordings(options: dict[str, str]) -> dict[str, list[str]]:
    """How a text may word each option: as it is, without brackets, a genus abbreviated, other "all of the above"."""
    found: dict[str, list[str]] = {}
    for key, value in options.items():
        value = unicodedata.normalize("NFKC", value).strip()
        found[key] = [value]
        bare = value.rstrip("。.")
        if ALL.match(bare) or NONE.match(bare):
            found[key] += _ALL if ALL.match(bare) else _NONE
        if (outside := re.sub(r"\([^()]*\)", "", value).strip()) != value and len(needle(outside)[0]) > 1:
            found[key].append(outside)
        if re.fullmatch(r"\w{3,}[证型]", value):
            found[key].append(value[:-1])
        if re.fullmatch(r"[\u4e00-\u9fff、,]+", value) and (comma := max(value.rfind("、"), value.rfind(","))) > 0:
            found[key].append(f"{value[:comma]}和{value[comma + 1 :]}")
        if species := re.fullmatch(r"([A-Z])[a-z]{2,} ([a-z]{3,})", value):
            found[key].append(f"{species[1]}. {species[2]}")
    seen: dict[str, set[str]] = {}
    for key, texts in found.items():
        for text in texts:
            seen.setdefault(needle(text)[0], set()).add(key)
    return {
        key: [texts[0], *(text for text in texts[1:] if len(seen[needle(text)[0]]) == 1)]
        for key, texts in found.items()
    }


def weak(wording: str) -> bool:
    """Whether a wording is too short or common to be trusted where no words claim it (心, 无, 10, normal)."""
    flat = needle(wording)[0]
    return len(flat) < 2 or bool(
        re.fullmatch(r"-?[\d.]+%?|[a-z]{1,4}|normal|absent|present|increased?|decreased?", flat)
    )


def mark(answer: str, options: dict[str, str], hidden: list[str], also: dict[str, list[str]] | None = None) -> str:
    """`plain(answer)` with every mention of an option as one private character; wordings in `hidden` hide options.

    `also`: wordings of the options besides their texts; with it letters stand for nothing.
    """
    keys = list(options)
    text = plain(answer, citations=not "".join(keys).isdigit())
    small = "".join(keys).lower()
    if small.isalpha() and also is None:
        cue = r"\A\W{0,12}|选\W{0,6}|(?:答案|answer|\bans|option|choice)\W{0,6}(?:是|为|选|is\b)?\W{0,6}"
        pattern = rf"({cue})([{re.escape(small)}])(?=[^\w\n]{{0,12}}$|['\")] (?!\w))"
        text = re.sub(pattern, lambda m: m[1] + m[2].upper(), text, flags=re.I | re.M)
        dotted = rf"(\bans(?:wer)?\W{{1,3}}(?:is\W{{1,3}})?)([{re.escape(small)}])(?=[.):]\s)"
        text = re.sub(dotted, lambda m: m[1] + m[2].upper(), text, flags=re.I)
    worded = {
        k: [w for w in texts if len(needle(w)[0]) > 1 or not needle(w)[0].isascii() or needle(w)[0].isdigit()]
        for k, texts in (wordings(options) if also is None else also).items()
    }
    spans = [(c.start, c.end, min(c.names)) for c in claims(_lower(text), {"": hidden, **worded})]
    taken = [(start, end) for start, end, _ in spans]
    tokens: list[tuple[int, int, str]] = []
    for start, end, name in spans:
        if name and not re.match(r"[类族样]|性(?![质别])", text[end : end + 2]):
            tokens.append((start, end, chr((WEAK if weak(text[start:end]) else WORDING) + keys.index(name))))
    for start, end, run in letters(text, options, taken) if also is None else ():
        tokens.append((start, end, "".join(chr(LETTER + keys.index(char)) for char in run)))
    parts, at = [], 0
    for start, end, token in sorted(tokens):
        if start >= at:
            parts += [text[at:start], token]
            at = end
    marked = _joined("".join([*parts, text[at:]]))
    return _RATHER.sub(r"\1", marked)


_SAME = re.compile(
    rf"([{_LETTERS}])({INLINE}{{0,4}}(?:选?项)?[ .、,。{BOLD}:)“”\"'(—-]{{0,5}}(?:的|中的|是|为|即|"
    rf",)?{INLINE}{{0,3}})([{_WORDINGS}])"
)
_RATHER = re.compile(
    rf"([{TOKEN}])\s?,?\s?(?:rather than|instead of|而不是|而非|并非)\s?(?:options? |选项)?[{TOKEN}]{{1,8}}", re.I
)
_BACK = re.compile(
    rf"([{_WORDINGS}])({INLINE}{{0,3}}[(,]{INLINE}{{0,2}}[ ]*(?:即|也就是|i\.e\.,?)?[ ]*(?:选项|option|choice|"
    rf"answer)?[ ]*)([{_LETTERS}])((?:选?项)?{INLINE}{{0,2}}[)]?)",
    re.I,
)


def _joined(marked: str) -> str:
    """A letter and the wording beside it as one mention; as a clash where they differ."""

    def join(match: re.Match[str]) -> str:
        letter, wording = sorted((match[1], match[3]))
        index = ord(wording) & 0xFF
        if ord(letter) & 0xFF == index:
            return chr(BOTH + index)
        tight = re.fullmatch(rf"{ROUND}*(?:选?项)?[\s.、:)(\"'“”{BOLD}]*", match[2])
        ends = (
            re.match(rf"{ROUND}{{0,3}}(?:$|[\n。.;,])", marked[match.end() : match.end() + 6])
            or match[2].rstrip()[-1:] == "("
        )
        return CLASH if tight and ends and "\n" not in match[2] else match[0]

    marked = _SAME.sub(join, marked)
    return _BACK.sub(join, marked)
