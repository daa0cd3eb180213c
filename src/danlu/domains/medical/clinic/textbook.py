"""The textbook: what the shipped base is pretrained on. It teaches facts and skills, never a vignette's answer.

Facts: findings of conditions and back, test, treatment, department, red flag, names in both languages.
Skills: copying lists, counting matches for several conditions, taking the largest count, option letters, reading
what is asked, chat form. A base that knows only facts does not learn to compare from a few worked traces.

Leakage: a document that counts matches never shows a (condition, matched findings) pair of three or more that
belongs to a held-out or dev vignette (same hash as vignettes.bucket); reading documents use random findings.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from danlu.domains.medical.clinic.knowledge import FACTS, Knowledge, Language, knowledge
from danlu.domains.medical.clinic.phrases import PHRASES, Phrases
from danlu.domains.medical.clinic.vignettes import LETTERS, TASKS, bucket, gold, matches

ENGLISH = 0.42  # share of English documents


def _some(rng: random.Random, items: list[str] | tuple[str, ...], n: int | None = None) -> list[str]:
    return rng.sample(list(items), min(n if n is not None else len(items), len(items)))


def chat(question: str, answer: str) -> str:
    """One turn in ChatML without reasoning."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"


class _Page:
    """One document in the making: a language, its words, and a condition to write about."""

    def __init__(self, rng: random.Random, language: Language) -> None:
        self.rng, self.kb, self.language = rng, knowledge(), language
        self.words: Phrases = PHRASES[language]
        self.condition = rng.choice(_CONDITIONS(self.kb))

    def name(self, key: str) -> str:
        return self.kb.name(key, self.language)

    def names(self, keys: list[str]) -> str:
        return self.words.comma.join(self.name(key) for key in keys)

    def findings(self, n: int | None = None) -> list[str]:
        return _some(self.rng, list(self.kb.conditions[self.condition].findings), n)

    def rival(self) -> str:
        """Another condition that shares a finding, or any."""
        near = [
            c for f in self.kb.conditions[self.condition].findings for c in self.kb.having[f] if c != self.condition
        ]
        return self.rng.choice(near if near and self.rng.random() < 0.75 else _CONDITIONS(self.kb))


def _CONDITIONS(kb: Knowledge) -> list[str]:
    return list(kb.conditions)


def _full(p: _Page) -> str:
    return p.rng.choice(p.words.full).format(c=p.name(p.condition), f=p.names(p.findings()))


def _partial(p: _Page) -> str:
    return p.rng.choice(p.words.partial).format(c=p.name(p.condition), f=p.names(p.findings(p.rng.randint(1, 3))))


def _reverse(p: _Page) -> str:
    finding = p.rng.choice(list(p.kb.having)) if p.rng.random() < 0.5 else p.findings(1)[0]
    holders = _some(p.rng, p.kb.having[finding], 8)
    return p.rng.choice(p.words.reverse).format(f=p.name(finding), c=p.names(holders))


def _pair(p: _Page) -> str:
    pair = p.findings(2)
    holders = [c for c in p.kb.having[pair[0]] if pair[1] in p.kb.conditions[c].findings]
    return p.rng.choice(p.words.pair).format(f=p.names(pair), c=p.names(_some(p.rng, holders)))


def _fact(p: _Page) -> str:
    fact = p.rng.choices(FACTS, (1, 3, 3, 1))[0]
    value = p.kb.conditions[p.condition].facts[fact]
    return p.rng.choice(p.words.facts[fact]).format(c=p.name(p.condition), v=p.name(value))


def _fact_reverse(p: _Page) -> str:
    fact = p.rng.choice(FACTS)
    value = p.kb.conditions[p.condition].facts[fact]
    holders = _some(p.rng, p.kb.with_fact[fact, value], 4)
    return p.rng.choice(p.words.facts_reverse[fact]).format(v=p.name(value), c=p.names(holders))


def counting_pool(p: _Page) -> tuple[list[str], list[str]]:
    """(findings, conditions) of a counting document; never a held-out or dev vignette in disguise."""
    while True:
        rival = p.rival()
        pool = p.findings(p.rng.randint(1, 4))
        pool += _some(p.rng, list(p.kb.conditions[rival].findings), p.rng.randint(1, 2))
        pool += _some(p.rng, list(p.kb.having), p.rng.randint(0, 1))
        pool = _some(p.rng, list(dict.fromkeys(pool)))[:5]
        shown = _some(p.rng, list(dict.fromkeys([p.condition, rival, p.rival(), p.rival()])), p.rng.randint(1, 4))
        pairs = [(c, p.kb.matched(c, pool)) for c in p.kb.conditions]
        if not any(len(found) >= 3 and bucket(c, found) in ("test", "dev") for c, found in pairs):
            return pool, shown


def _count(p: _Page) -> str:
    pool, shown = counting_pool(p)
    lines = [matches(p.kb, c, pool, p.language) for c in shown]
    if len(lines) > 2 and p.rng.random() < 0.3:
        lines = [f"{x}.{p.words.gap}{line}" for x, line in zip(LETTERS, lines, strict=False)]
    counts = [len(p.kb.matched(c, pool)) for c in shown]
    concluded = len(shown) > 1 and counts.count(max(counts)) == 1 and p.rng.random() < 0.4
    start = p.rng.choice((p.words.findings, "{findings}。" if p.language == "zh" else "{findings}."))
    text = start.format(findings=p.names(pool)) + p.words.sentence_gap
    if p.rng.random() < 0.5:
        text += p.words.candidates.format(lines=p.words.semicolon.join(lines))
    else:
        text += p.words.semicolon.join(lines) + ("。" if p.language == "zh" else ".")
    if concluded:
        text += p.words.sentence_gap + p.words.best.format(condition=p.name(shown[counts.index(max(counts))]))
    return text


def _copy(p: _Page) -> str:
    shown = p.names(_some(p.rng, list(p.kb.having), p.rng.randint(2, 5)))
    end = "。" if p.language == "zh" else "."
    duration = p.rng.choice(p.words.duration).format(n=p.rng.randint(2, 9))
    return f"{p.rng.choice(p.words.copy_open)}{shown}{duration}{end}{p.rng.choice(p.words.copy_close)}{shown}{end}"


def _most(p: _Page) -> str:
    chosen = _some(p.rng, _CONDITIONS(p.kb), p.rng.randint(2, 4))
    counts = [p.rng.randint(0, 4) for _ in chosen]
    while counts.count(max(counts)) > 1:
        counts = [p.rng.randint(0, 4) for _ in chosen]
    lettered = p.rng.random() < 0.4
    shown = [
        (f"{LETTERS[i]}.{p.words.gap}" if lettered else "") + p.words.count.format(c=p.name(c), n=n)
        for i, (c, n) in enumerate(zip(chosen, counts, strict=True))
    ]
    end = "。" if p.language == "zh" else ". "
    return (
        p.words.semicolon.join(shown)
        + end
        + p.rng.choice(p.words.most).format(c=p.name(chosen[counts.index(max(counts))]))
    )


def _options(p: _Page, task: str) -> tuple[list[str], str]:
    values = list(dict.fromkeys(gold(p.kb, c, task) for c in _some(p.rng, _CONDITIONS(p.kb), 12)))[:4]
    return values, " ".join(f"{x}.{p.words.gap}{p.name(v)}" for x, v in zip(LETTERS, values, strict=False))


def _letters(p: _Page) -> str:
    values, listed = _options(p, p.rng.choice(TASKS))
    i = p.rng.randrange(len(values))
    end = "。" if p.language == "zh" else ". "
    return listed + end + p.rng.choice(p.words.letter_of).format(v=p.name(values[i]), x=LETTERS[i])


def _reading(p: _Page) -> str:
    """What is being asked of a list of random findings; nothing is diagnosed."""
    task = p.rng.choice(TASKS)
    shown = p.names(_some(p.rng, list(p.kb.having), p.rng.randint(2, 5)))
    before = p.rng.choice(p.words.patient).format(
        sex=p.rng.choice(p.words.sexes + p.words.children), age=p.rng.randint(2, 88)
    )
    after = p.rng.choice(p.words.duration).format(n=p.rng.randint(2, 9))
    question = p.words.case.format(before=before, findings=shown, after=after)
    if p.rng.random() < 0.4:
        question += p.words.ask_choice[task] + _options(p, task)[1]
    else:
        question += p.rng.choice(p.words.ask[task])
    answer = p.words.task.format(task=p.words.tasks[task])
    if p.rng.random() < 0.6:
        answer += p.words.sentence_gap + p.words.findings.format(findings=shown)
    return chat(question, answer)


def _compare(p: _Page) -> str:
    """Two full lists inside a think block: trains the tags' embeddings."""
    rival = p.rival()
    if rival == p.condition:
        return _full(p)
    both = [f for f in p.findings() if f in p.kb.conditions[rival].findings]
    colon = "：" if p.language == "zh" else ": "
    end = "。" if p.language == "zh" else ". "
    lists = "".join(
        f"{p.name(c)}{colon}{p.names(_some(p.rng, list(p.kb.conditions[c].findings)))}{end}"
        for c in (p.condition, rival)
    )
    shared = p.words.shared.format(a=p.name(p.condition), b=p.name(rival), f=p.names(both) if both else p.words.nothing)
    return f"<think>\n{lists.strip()}\n</think>\n\n{shared}"


def _question(p: _Page) -> str:
    if p.rng.random() < 0.2:
        return chat(p.words.findings_question.format(c=p.name(p.condition)), p.names(p.findings()))
    fact = p.rng.choice(FACTS)
    return chat(
        p.words.fact_question[fact].format(c=p.name(p.condition)), p.name(p.kb.conditions[p.condition].facts[fact])
    )


def _names(p: _Page) -> str:
    entry = p.kb.entries[p.rng.choice(list(p.kb.entries))]
    aliases = entry.names[p.language][1:]
    if aliases and p.rng.random() < 0.5:
        return p.words.alias.format(c=entry.name(p.language), a=p.rng.choice(aliases))
    return p.words.translation.format(c=entry.name("zh"), e=entry.name("en"))


def _general(p: _Page) -> str:
    return p.words.sentence_gap.join(_some(p.rng, p.words.general, p.rng.randint(1, 2)))


PAGES: dict[Callable[[_Page], str], float] = {
    _full: 0.09,
    _partial: 0.02,
    _reverse: 0.08,
    _pair: 0.13,
    _fact: 0.10,
    _fact_reverse: 0.02,
    _count: 0.26,
    _copy: 0.07,
    _most: 0.04,
    _letters: 0.06,
    _reading: 0.06,
    _compare: 0.02,
    _question: 0.03,
    _names: 0.01,
    _general: 0.01,
}


def document(rng: random.Random) -> str:
    """One document of the textbook."""
    language: Language = "en" if rng.random() < ENGLISH else "zh"
    write = rng.choices(list(PAGES), list(PAGES.values()))[0]
    return write(_Page(rng, language))
