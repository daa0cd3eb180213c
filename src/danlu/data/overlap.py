"""What rows share: a normal form of text, duplicates among rows, and benchmark questions inside training rows.

Normal form: NFKC, simplified characters (OpenCC), lower case, no spaces and no punctuation. What changes the meaning
stays: decimal points, ranges, ratios, times and powers inside numbers (1.5, 3-5, 1:2, 10^9; tildes and dashes between
numbers are ranges), signs (HBsAg(+) and HBsAg+ are the same, HBsAg(-) is another; -5 is not 5), % < > = ± × ↑ ↓ and
the like. Two numbers never run together: between them one space stays (thousands' commas do go).

Grams are over units: one Han, kana or Hangul character, one run of other letters, one number, or one sign each. They
are held as 64-bit hashes, so "exact" below means up to a collision (expected: less than one in a billion pairs).

Duplicates: equal normal forms; and near ones, with a Jaccard index of 0.8 over 5-grams (texts whose units are mostly
Han) or 3-grams (others). MinHash with LSH (Broder 1997; datasketch) proposes, the exact index decides. Departures: a
sketch is of the 512 smallest hashes of a text only, and a text near to an earlier one is listed once, with the nearest
of those, and stands for nothing further. So k copies make k - 1 pairs and not k²/2, and the rows that remain without
the second of each pair are not near to each other.

Leakage compares the stem of a benchmark item (last user turn without its options; system prompts never count) with
each user turn, reasoning and answer of a training row, in this order of strength:
  exact   equal stems; or the stem, of 12 characters and 8 units at least, stands inside a reasoning or an answer
  ngram   80 % of the stem's different 8-grams occur in the field, or such a stem stands inside a longer question
  near    Jaccard index of 0.8 (as for duplicates) of stem and question; from an inverted index, so none is missed
Items below 12 units count only when exact, below 6 characters never. Grams in over a tenth of a benchmark's items
(50 or more) are its boilerplate, an instruction before every question for example, and count nowhere.
A generic stem ("下列说法正确的是") says nothing without its options: it is shorter than 20 units, and made of generic
words alone, or seen with two sets of options of which one shares less than half with the other. It counts only when
the options are the same too (one set holds the other), or all stand in the field where a row has no options.
Past 400 lines, because the three comparisons share normal form, units and grams.
Not covered: paraphrases and translations, leaks of options or explanations alone, text in system prompts, Roman
numerals listed side by side, scripts that write vowels as combining marks.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import ahocorasick
import numpy as np
from numpy.typing import NDArray

from danlu.data.choices import with_options
from danlu.data.language import simplified
from danlu.records import Sample

Where = Literal["question", "reasoning", "answer"]
How = Literal["exact", "ngram", "near"]
Grams = NDArray[np.uint64]  # different ones, sorted

JACCARD = 0.8
CONTAINED = 0.8
GRAM = 8  # units of a gram that is looked for in a field
SHORTEST = 6  # characters of a stem that counts at all
SHORTEST_INSIDE = (12, 8)  # characters and units of a stem that counts when it stands inside a longer text
SHORTEST_GRAMS = 5  # 8-grams, so 12 units, from which on grams are compared
GENERIC_BELOW = 20  # units
_HOW: tuple[How, ...] = ("exact", "ngram", "near")
_WHERE: tuple[Where, ...] = ("question", "reasoning", "answer")


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Indices of texts. `exact`: groups of equal ones; `near`: (earlier, later, Jaccard index), by `later`."""

    exact: list[list[int]]
    near: list[tuple[int, int, float]]


@dataclass(frozen=True, slots=True)
class Leak:
    """A benchmark item in a training row. `value`: 1.0, the share of the item's 8-grams, or the Jaccard index."""

    benchmark: str
    item: str
    row: str
    where: Where
    how: How
    value: float
    item_text: str
    row_text: str


# ---- normal form

_WIDE = dict(zip("，：；（）！？％＋－／＜＞＝～．　", ",:;()!?%+-/<>=~. ", strict=True))
_WIDE |= {"…": " ", "℃": "°c", "µ": "μ"}
_HYPHENS = dict.fromkeys("\u2010\u2011\u2012\u2013\u00ad", "-") | {"≦": "≤", "≧": "≥", "⩽": "≤", "⩾": "≥"}
_KEPT = "+%‰<>=≤≥≠≈±×√↑↓♂♀−"  # the last is U+2212, our minus sign; "-" is the range between numbers
_THOUSANDS = re.compile(r",(?<=[0-9],)(?=[0-9]{3}(?![0-9]))")
_POWERS = "⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹"
_SPECIAL = re.compile(f"[{_POWERS}¼-¾⅐-⅞①-⒛❶-❿][{_POWERS}]*")
_DARK = {chr(0x2776 + number): str(number + 1) for number in range(10)}
_SIGN = re.compile(r"\(\s*([-+±−—]{1,4})\s*\)")
_BARE_POINT = re.compile(r"\.(?<![\w.)]\.)(?=[0-9])")
_BETWEEN = re.compile(r"([0-9])([\W_]+)(?=[0-9])")
_BEFORE_NUMBER = re.compile(r"-(?<![a-z0-9)\]]-)(?<![0-9]\^-)(?=[0-9])")
_BEHIND_NAME = re.compile(r"-(?<=[a-z0-9]-)(?![\w\n-])")
_PLAIN = ",;()!?_、。“”‘’《》【】[]\"'*#\n"
_DROPPED = re.compile(  # begins with one class, which the expression engine looks for fast
    rf"[^\w {_KEPT}](?!(?<=[0-9][.:/])[0-9]|(?<=[0-9]\^)-?[0-9]|(?<=[0-9]-)[0-9]|(?<=[0-9]\^-)[0-9])"
)
_APART = re.compile(r" (?<=[0-9] )(?=−?[0-9])")
_JOINERS = {".": ".", ":": ":", "∶": ":", "/": "/", "⁄": "/", "^": "^", "^-": "^-", "^−": "^-", "*": "×", "×": "×"}
_JOINERS |= dict.fromkeys(("-", "--", "—", "——", "−", "~", "∼", "〜"), "-")


def normalise(text: str) -> str:
    """Normal form of `text` (see the module's head); the same again for a normal form."""
    return _closed(_spaced(text))


def _closed(spaced: str) -> str:
    """The text without its spaces, except those between numbers."""
    return _APART.sub("\0", spaced).replace(" ", "").replace("\0", " ")


def _spaced(text: str) -> str:
    """Normal form with a space wherever something was dropped, so that words stay apart."""
    text = _SPECIAL.sub(_special, _THOUSANDS.sub("", text))
    for wide, narrow in _WIDE.items():  # most texts are NFKC after this, which is much faster to find than to make
        text = text.replace(wide, narrow)
    text = simplified(unicodedata.normalize("NFKC", text).lower())
    for other, plain in _HYPHENS.items():
        text = text.replace(other, plain)
    text = _SIGN.sub(_sign, text)
    text = _BETWEEN.sub(_between, _BARE_POINT.sub("0.", text))
    text = _BEHIND_NAME.sub("−", _BEFORE_NUMBER.sub("−", text))
    for sign in _PLAIN:  # the frequent ones, at a tenth of the expression's time
        text = text.replace(sign, " ")
    return _DROPPED.sub(" ", text)


def _special(match: re.Match[str]) -> str:
    """Powers keep their place (10⁹ is not 109), and list numbers and fractions stay apart from what precedes."""
    run = match[0]
    if run[0] not in _POWERS:
        return f" {_DARK.get(run) or unicodedata.normalize('NFKC', run)} "
    power = run.lstrip("⁺⁻").rstrip("⁺⁻") and match.string[match.start() - 1 : match.start()].isdecimal()
    plain = unicodedata.normalize("NFKC", run).replace("−", "-")
    return f"^{plain.lstrip('+')}" if power else plain


def _sign(match: re.Match[str]) -> str:
    return re.sub("[-—]", "−", match[1])


def _between(match: re.Match[str]) -> str:
    """What stays of a run between two digits; never nothing."""
    run = match[2]
    core = "".join(run.split())
    negative = core[-1:] in ("-", "−") and run[:1].isspace() and not run[-1].isspace()  # 1 -5, as against 1 - 5
    if core in _JOINERS and (core != "." or run == ".") and not negative:
        return match[1] + _JOINERS[core]
    kept = "".join(sign for sign in core if sign in _KEPT and sign != "−")
    minus = "−" if negative or (len(core) > 1 and core[-1] in "-−—~") else ""
    return match[1] + (kept or " ") + minus


# ---- units and grams

_SINGLE = "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3105-\u312f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_SEPARATOR, _WORD, _NUMBER, _HAN, _MARK = range(5)


@cache
def _classes() -> NDArray[np.uint8]:
    """Kind of every code point of a spaced normal form."""
    table = np.full(0x110000, _WORD, np.uint8)
    table[ord(" ")] = _SEPARATOR
    for first, last in re.findall("(.)-(.)", _SINGLE):
        table[ord(first) : ord(last) + 1] = _HAN
    table[0x20000:0x32380] = _HAN
    table[[ord(sign) for sign in _KEPT]] = _MARK
    table[[ord(char) for char in "0123456789.:/^-"]] = _NUMBER
    return table


@cache
def _powers() -> NDArray[np.uint64]:
    return np.cumprod(np.full(1024, 0x9E3779B97F4A7C15, np.uint64), dtype=np.uint64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014): a bijection whose bits all depend on all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class _Units:
    """Hashes of the units of a text in order, and whether at least half of them are Han characters."""

    hashes: NDArray[np.uint64]
    han: bool


def _units(spaced: str) -> _Units:
    codes = np.frombuffer(spaced.encode("utf-32-le"), np.uint32)
    kinds = _classes()[codes]
    fresh = kinds != _SEPARATOR
    fresh[1:] &= (kinds[1:] != kinds[:-1]) | (kinds[1:] >= _HAN)
    starts = np.flatnonzero(fresh)
    if not len(starts):
        return _Units(np.empty(0, np.uint64), False)
    codes, kinds = codes[starts[0] :], kinds[starts[0] :]
    starts = starts - starts[0]
    places = np.arange(len(codes))
    places -= np.maximum.accumulate(np.where(fresh[-len(codes) :], places, 0))
    values = codes.astype(np.uint64) * _powers()[places & 1023]
    values[kinds == _SEPARATOR] = 0
    han = 2 * int((kinds == _HAN).sum()) >= len(starts)
    return _Units(_mixed(np.add.reduceat(values, starts)), han)


def _grams(units: _Units, size: int) -> Grams:
    """The different n-grams; hashes of different sizes have nothing in common."""
    count = len(units.hashes) - size + 1
    if count < 1:
        return np.empty(0, np.uint64)
    total = np.full(count, size, np.uint64)
    for place in range(size):
        total += units.hashes[place : place + count] * _powers()[place]
    return _different(_mixed(total))


def _different(values: Grams) -> Grams:
    """Sorted without repeats; np.unique takes several times as long."""
    values.sort()
    return values[np.append(True, values[1:] != values[:-1])]


def _shingles(units: _Units) -> Grams:
    return _grams(units, 5 if units.han else 3)


def _jaccard(first: Grams, second: Grams) -> float:
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


# ---- duplicates

_BANDS, _ROWS = 25, 5  # a pair at 0.8 is proposed with probability 0.9999, one at 0.3 with 0.06
_SKETCHED = 512


def duplicates(texts: Sequence[str]) -> Duplicates:
    """Groups of equal texts and pairs of near ones; texts without letters and digits are left out.

    One text of each exact group, the first, takes part in `near`.
    """
    spaced = [_spaced(text) for text in texts]
    groups: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(spaced):
        groups[_closed(text)].append(index)
    groups.pop("", None)
    exact = [group for group in groups.values() if len(group) > 1]
    return Duplicates(exact, _near(spaced, [group[0] for group in groups.values()]))


def _near(spaced: list[str], indices: list[int]) -> list[tuple[int, int, float]]:
    from datasketch import MinHash, MinHashLSH  # loads scipy, so only where duplicates are asked for

    blank = MinHash(num_perm=_BANDS * _ROWS, seed=1, hashfunc=int)
    lsh = MinHashLSH(num_perm=_BANDS * _ROWS, params=(_BANDS, _ROWS))
    pairs: list[tuple[int, int, float]] = []
    for index in indices:
        shingles = _shingles(_units(spaced[index]))
        if not len(shingles):
            continue
        sketch = blank.copy()
        sketch.update_batch((shingles[:_SKETCHED] >> np.uint64(32)).tolist())
        # the grams of earlier texts are made again, since those of all texts would not fit in memory
        proposed = [(_jaccard(_shingles(_units(spaced[other])), shingles), -other) for other in lsh.query(sketch)]
        value, other = max(proposed, default=(0.0, 0))
        if value >= JACCARD:
            pairs.append((-other, index, value))
        else:
            lsh.insert(index, sketch, check_duplication=False)
    return pairs


# ---- stems

_LISTED = re.compile(r"[\s？?。:：)）][(（]?A\s?[.．、:：)）].*?\s[(（]?B\s?[.．、:：)）]", re.DOTALL)
_GENERIC = re.compile(
    "(?:下列|以下|下面|下述|上述|有关|关于|对于|对|其|各|哪|项|个|种|一|些|者|几|中|的|是|为|有|说法|叙述|描述|表述|论述|陈述|选项|观点"
    "|内容|情况|判断|正确|错误|不|最|恰当|准确|合适|适当|符合|属于|包括|除|外|均|都|应|选|请|答案|问题|题目"
    "|which|what|of|the|following|above|statements?|options?|answers?|is|are|was|were|not|true|false|correct"
    "|incorrect|wrong|right|except|all|regarding|about|this|these|one|that|an|in|it|to|be|best|choose|select|pick|a)+"
)


def stem(sample: Sample) -> str:
    """What the last user turn asks, without the options that stand in it."""
    text = sample.question
    if sample.options:
        listed = with_options("", sample.options)
        before, found, behind = text.partition(listed)
        if found:
            return before + behind
    return _unlisted(text)


def _unlisted(text: str) -> str:
    """`text` up to options that are written in it."""
    listed = _LISTED.search(text)
    return text[: listed.start() + 1].rstrip(" \n\t:：").removesuffix("选项") if listed else text


@dataclass(frozen=True, slots=True)
class _Asked:
    """A stem as it is compared; `key` is its normal form."""

    text: str
    key: str
    spaced: str
    options: frozenset[str]

    @property
    def long(self) -> bool:
        return len(_units(self.spaced).hashes) >= GENERIC_BELOW


def _asked(sample: Sample) -> _Asked:
    text = stem(sample)
    spaced = _spaced(text)
    options = frozenset(filter(None, map(normalise, sample.options.values())))
    return _Asked(text, _closed(spaced), spaced, options)


def _generic(asked: Iterable[_Asked]) -> set[str]:
    """Keys of stems that say nothing without their options."""
    seen: dict[str, list[_Asked]] = defaultdict(list)
    for stem in asked:
        seen[stem.key].append(stem)
    return {key for key, stems in seen.items() if _is_generic(key, stems) and not stems[0].long}


def _is_generic(key: str, stems: list[_Asked]) -> bool:
    if len(key) <= 200 and _GENERIC.fullmatch(key):
        return True
    sets = [stem.options for stem in stems if stem.options]
    return any(2 * len(sets[0] & other) < min(len(sets[0]), len(other)) for other in sets[1:])


def _same_options(item: frozenset[str], row: frozenset[str], field: str) -> bool:
    """Whether a row asks with the item's options: as its own, or written in `field` (a normal form)."""
    if row:
        return bool(item) and (item <= row or row <= item)
    return bool(item) and all(option in field for option in item)


# ---- leakage


@dataclass(frozen=True, slots=True)
class _Index:
    """Which owners hold a gram: `owners[first[i]:first[i + 1]]` for `grams[i]`; `table` is a filter before it."""

    grams: Grams
    first: NDArray[np.int64]
    owners: NDArray[np.int64]
    sizes: NDArray[np.int64]
    table: NDArray[np.bool_]

    def shared(self, grams: Grams) -> NDArray[np.int64]:
        """How many of `grams` each owner holds."""
        grams = grams[self.table[grams & np.uint64(len(self.table) - 1)]]
        if not len(grams):
            return np.zeros(len(self.sizes), np.int64)
        places = np.searchsorted(self.grams, grams[_among(grams, self.grams)])
        counts = self.first[places + 1] - self.first[places]
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        found = self.owners[np.repeat(self.first[places], counts) + steps]
        return np.bincount(found, minlength=len(self.sizes))


def _index(owned: list[Grams]) -> _Index:
    every = np.concatenate([*owned, np.empty(0, np.uint64)])
    sizes = np.array([len(grams) for grams in owned], np.int64)
    order = np.argsort(every, kind="stable")
    grams, first = np.unique(every[order], return_index=True)
    table = np.zeros(1 << 24, np.bool_)
    table[grams & np.uint64(len(table) - 1)] = True
    owners = np.repeat(np.arange(len(owned)), sizes)[order]
    return _Index(grams, np.append(first, len(every)), owners, sizes, table)


def _common(owned: list[Grams]) -> Grams:
    """Grams of more than a tenth of a benchmark's items."""
    if len(owned) < 50:
        return np.empty(0, np.uint64)
    grams, counts = np.unique(np.concatenate(owned), return_counts=True)
    return grams[counts > len(owned) / 10]


def _without(grams: Grams, common: Grams) -> Grams:
    return grams[~_among(grams, common)] if len(common) else grams


def _among(grams: Grams, known: Grams) -> NDArray[np.bool_]:
    """Which of `grams` are in `known` (sorted, not empty)."""
    return known[np.minimum(np.searchsorted(known, grams), len(known) - 1)] == grams


@dataclass(frozen=True, slots=True)
class _Items:
    """All benchmark items, ready to compare."""

    benchmark: list[str]
    ids: list[str]
    asked: list[_Asked]
    equal: dict[str, list[int]]  # key -> items
    inside: Any  # automaton over the first characters of keys, to items
    eights: _Index
    shingles: dict[bool, _Index]  # mostly Han -> index
    common: Grams
    generic: set[str]


_HEAD = 24  # characters of a stem that the automaton holds; the rest is compared where they stand


def leaks(train: Sequence[Sample], benchmarks: Mapping[str, Sequence[Sample]]) -> list[Leak]:
    """The strongest trace of each benchmark item in each training row, by benchmark, item and row in their order."""
    rows = [_asked(sample) for sample in train]
    items = _items(benchmarks, rows)
    found: list[tuple[int, int, Leak]] = []
    for number, (sample, asked) in enumerate(zip(train, rows, strict=True)):
        best: dict[int, tuple[int, float, int, str]] = {}
        for where, text, own in _fields(sample, asked):
            for item, how, value in _compared(items, where, text, own):
                trace = (_HOW.index(how), -value, _WHERE.index(where), text)
                if item not in best or trace < best[item]:
                    best[item] = trace
        for item, (how_at, value, where_at, text) in best.items():
            places = items.benchmark[item], items.ids[item], sample.id, _WHERE[where_at], _HOW[how_at]
            found.append((item, number, Leak(*places, -value, items.asked[item].text, text)))
    return [leak for _, _, leak in sorted(found, key=lambda entry: entry[:2])]


def shared_items(a: Sequence[Sample], b: Sequence[Sample]) -> list[tuple[str, str]]:
    """(id in `a`, id in `b`) of items with equal stems, and of generic ones with the same options; by `a`, then `b`."""
    first, second = [_asked(sample) for sample in a], [_asked(sample) for sample in b]
    generic = _generic([*first, *second])
    by_key: dict[str, list[int]] = defaultdict(list)
    for index, other in enumerate(second):
        by_key[other.key].append(index)
    return [
        (sample.id, b[index].id)
        for sample, asked in zip(a, first, strict=True)
        if len(asked.key) >= SHORTEST
        for index in by_key.get(asked.key, ())
        if asked.key not in generic or _same_options(asked.options, second[index].options, "")
    ]


def _items(benchmarks: Mapping[str, Sequence[Sample]], rows: list[_Asked]) -> _Items:
    names: list[str] = []
    ids: list[str] = []
    asked: list[_Asked] = []
    everything = list(rows)
    eights: list[Grams] = []
    shingles: dict[bool, list[Grams]] = {True: [], False: []}
    common: list[Grams] = []
    nothing = np.empty(0, np.uint64)
    for name, samples in benchmarks.items():
        start = len(asked)
        for sample in samples:
            one = _asked(sample)
            everything.append(one)
            if len(one.key) < SHORTEST:
                continue
            units = _units(one.spaced)
            names.append(name)
            ids.append(sample.id)
            asked.append(one)
            eights.append(_grams(units, GRAM))
            for han in (True, False):
                fits = units.han == han and len(units.hashes) >= GRAM + SHORTEST_GRAMS - 1
                shingles[han].append(_shingles(units) if fits else nothing)
        common += [_common(owned[start:]) for owned in (eights, shingles[True], shingles[False])]
    every = np.unique(np.concatenate([*common, nothing]))
    eights = [grams if len(grams) >= SHORTEST_GRAMS else nothing for grams in (_without(g, every) for g in eights)]
    equal: dict[str, list[int]] = defaultdict(list)
    for index, one in enumerate(asked):
        equal[one.key].append(index)
    return _Items(
        names,
        ids,
        asked,
        equal,
        _automaton(equal, asked),
        _index(eights),
        {han: _index([_without(grams, every) for grams in owned]) for han, owned in shingles.items()},
        every,
        _generic(everything),
    )


def _automaton(equal: dict[str, list[int]], asked: list[_Asked]) -> Any:
    """Beginning of a stem -> the stems that begin so; None without stems that are long enough."""
    characters, units = SHORTEST_INSIDE
    heads: dict[str, list[str]] = defaultdict(list)
    for key, indices in equal.items():
        if len(key) >= characters and len(_units(asked[indices[0]].spaced).hashes) >= units:
            heads[key[:_HEAD]].append(key)
    if not heads:
        return None
    automaton = ahocorasick.Automaton()
    for head, keys in heads.items():
        automaton.add_word(head, (len(head), keys))
    automaton.make_automaton()
    return automaton


def _fields(sample: Sample, asked: _Asked) -> list[tuple[Where, str, _Asked]]:
    """(where, text, its stem) of what a row trains on; earlier assistant turns are answers and reasoning too."""
    fields: list[tuple[Where, str, str]] = []
    for turn in sample.messages[:-1]:
        if turn["role"] == "user":
            fields.append(("question", turn["content"], _unlisted(turn["content"])))
        elif turn["role"] == "assistant":
            fields.append(("reasoning", turn.get("reasoning_content", ""), ""))
            fields.append(("answer", turn["content"], ""))
    fields += [("reasoning", sample.reasoning, ""), ("answer", sample.answer, "")]
    others: list[tuple[Where, str, _Asked]] = []
    for where, text, question in fields:
        spaced = _spaced(question)
        others.append((where, text, _Asked(question, _closed(spaced), spaced, frozenset())))
    return [("question", sample.question, asked), *(field for field in others if field[1])]


def _compared(items: _Items, where: Where, text: str, own: _Asked) -> list[tuple[int, How, float]]:
    """(item, how, value) of the items that a field holds; several for an item where several apply."""
    spaced = own.spaced if text == own.text else _spaced(text)
    field = _closed(spaced)
    units = _units(spaced)
    found: list[tuple[int, How, float]] = []
    if where == "question":
        found += [(item, "exact", 1.0) for item in items.equal.get(own.key, ())]
    inside: How = "ngram" if where == "question" else "exact"
    found += [(item, inside, 1.0) for key in sorted(_inside(items, field)) for item in items.equal[key]]
    found += _over(CONTAINED, "ngram", items.eights, _grams(units, GRAM), items.eights.sizes)
    if where == "question":
        shorter = units if spaced is own.spaced else _units(own.spaced)
        for han, index in items.shingles.items():
            grams = _without(_grams(shorter, 5 if han else 3), items.common)
            found += _over(JACCARD, "near", index, grams, None)
    return [
        (item, how, value)
        for item, how, value in found
        if items.asked[item].key not in items.generic or _same_options(items.asked[item].options, own.options, field)
    ]


def _inside(items: _Items, field: str) -> set[str]:
    """Keys that stand in `field`."""
    if items.inside is None:
        return set()
    return {
        key for last, (size, keys) in items.inside.iter(field) for key in keys if field.startswith(key, last - size + 1)
    }


def _over(
    least: float, how: How, index: _Index, grams: Grams, sizes: NDArray[np.int64] | None
) -> list[tuple[int, How, float]]:
    """Items of which at least `least` is shared: of `sizes`, or of the union where there are none."""
    shared = index.shared(grams)
    whole = index.sizes + len(grams) - shared if sizes is None else sizes
    chosen = np.flatnonzero((shared > 0) & (shared >= least * whole))
    return [(int(item), how, float(shared[item] / whole[item])) for item in chosen]
