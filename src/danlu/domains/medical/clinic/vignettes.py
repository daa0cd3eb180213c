"""Vignettes: patients with findings, a question with one verifiable answer, and a worked reasoning.

Splits are disjoint by construction. A vignette is identified by (condition, set of its findings that the condition
has); the hash of that pair decides its bucket, and every fourth condition is held out: its vignettes are never
used for SFT, GRPO or choosing a stopping point. The textbook keeps to the same buckets (see textbook.py).

    sft          worked traces of seen conditions        grpo        answers only, seen conditions
    dev          to choose stopping points, seen         test-seen   held-out vignettes of seen conditions
    test-unseen  conditions never seen in SFT or GRPO    test        both halves, alternating
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from functools import cache

from danlu.domains.medical.clinic.knowledge import LANGUAGES, Knowledge, Language, knowledge
from danlu.domains.medical.clinic.phrases import PHRASES
from danlu.errors import DanluError
from danlu.records import Message, Sample

TASKS = ("diagnosis", "test", "treatment")
FORMS = ("open", "choice")
LETTERS = "ABCD"
DISTRACTOR = 0.4  # share of vignettes with one finding of a competing condition
SPLITS = {
    "sft": "worked traces of seen conditions",
    "grpo": "seen conditions, gold answers only",
    "answers": "the rows of grpo with their answers but without reasoning (a control)",
    "dev": "seen conditions, to choose stopping points",
    "test-seen": "held-out vignettes of seen conditions",
    "test-unseen": "conditions never seen in SFT or GRPO",
    "test": "test-seen and test-unseen, half each",
}


def bucket(condition: str, matched: Iterable[str]) -> str:
    """The split that a vignette of `condition` with these matched findings belongs to."""
    text = condition + "|" + "|".join(sorted(matched))
    slot = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10
    return ("test", "test", "test", "dev", "sft", "sft", "grpo", "grpo", "grpo", "grpo")[slot]


@cache
def held_out() -> frozenset[str]:
    """Conditions never seen in SFT or GRPO: every fourth by hash, fixed for good."""
    order = sorted(knowledge().conditions, key=lambda key: hashlib.sha256(f"held out {key}".encode()).hexdigest())
    return frozenset(order[: len(order) // 4])


def findings_of(kb: Knowledge, rng: random.Random, condition: str) -> list[str]:
    """Three or four findings by weight, sometimes one of a competitor; the condition is the strict best match.

    At most one of them belongs to this condition alone, so that candidates have to be compared.
    """
    weights = kb.conditions[condition].findings
    while True:
        pool, chosen = dict(weights), []
        for _ in range(rng.choice((3, 3, 4))):
            finding = rng.choices(list(pool), list(pool.values()))[0]
            chosen.append(finding)
            del pool[finding]
        if sum(len(kb.having[f]) == 1 for f in chosen) > 1:
            continue
        if rng.random() < DISTRACTOR:
            rivals = sorted({c for f in chosen for c in kb.having[f]} - {condition})
            if rivals:
                extra = [f for f in kb.conditions[rng.choice(rivals)].findings if f not in weights]
                if extra:
                    chosen.append(rng.choice(extra))
        if kb.best(chosen) == condition:
            rng.shuffle(chosen)
            return chosen


def gold(kb: Knowledge, condition: str, task: str) -> str:
    """Key of the right answer."""
    return condition if task == "diagnosis" else kb.conditions[condition].facts[task]


def _options(kb: Knowledge, rng: random.Random, condition: str, task: str, findings: list[str]) -> list[str]:
    """Four option keys: the right one, what the nearest competitors would give, then others of the kind."""
    right = gold(kb, condition, task)
    options = [right]
    near = [name for name, _ in kb.ranked(findings) if name != condition][:2]
    others = rng.sample(sorted(kb.conditions), 12)
    for name in [*near, *others]:
        value = gold(kb, name, task)
        if value not in options and len(options) < 4:
            options.append(value)
    rng.shuffle(options)
    return options


WOMEN = frozenset(
    [
        "绝经后",
        "停经",
        "阴道流血",
        "无痛阴道流血",
        "白带增多",
        "痛经",
        "月经过多",
        "月经稀发",
        "妊娠晚期",
        "接触性出血",
        "不孕",
        "性交痛",
    ]
)
MEN = frozenset(["青年男性", "尿线变细"])
AGES = {
    "儿童": (2, 11),
    "老年": (66, 88),
    "绝经后": (52, 80),
    "青年男性": (18, 32),
    "停经": (19, 42),
    "妊娠晚期": (20, 42),
}


def _sex_and_age(rng: random.Random, language: Language, findings: list[str]) -> tuple[str, int]:
    """A patient who can have these findings."""
    words = PHRASES[language]
    low, high = next((AGES[f] for f in findings if f in AGES), (18, 85))
    sexes = words.children if high < 12 else words.sexes
    wanted = 1 if WOMEN & set(findings) else 0 if MEN & set(findings) else rng.randrange(2)
    return sexes[wanted], rng.randint(low, high)


def vignette(rng: random.Random, condition: str, findings: list[str], language: Language, task: str, form: str) -> dict:
    """One vignette as plain values: question, gold, options and what the worked trace needs."""
    kb, words = knowledge(), PHRASES[language]
    shown = words.comma.join(kb.name(f, language) for f in findings)
    sex, age = _sex_and_age(rng, language, findings)
    before = rng.choice(words.patient).format(sex=sex, age=age)
    after = rng.choice(words.duration).format(n=rng.randint(2, 9))
    question = words.case.format(before=before, findings=shown, after=after)
    options: list[str] = []
    if form == "choice":
        options = _options(kb, rng, condition, task, findings)
        listed = " ".join(f"{x}.{words.gap}{kb.name(o, language)}" for x, o in zip(LETTERS, options, strict=False))
        question += f"{words.ask_choice[task]}{listed}"
    else:
        question += rng.choice(words.ask[task])
    return {
        "condition": condition,
        "findings": findings,
        "language": language,
        "task": task,
        "form": form,
        "question": question,
        "options": options,
    }


def matches(kb: Knowledge, condition: str, findings: list[str], language: Language) -> str:
    """'X matches a, b: 2' in the words of the language."""
    words = PHRASES[language]
    found = kb.matched(condition, findings)
    shown = words.comma.join(kb.name(f, language) for f in found) if found else words.nothing
    return words.matches.format(condition=kb.name(condition, language), findings=shown, n=len(found))


def trace(rng: random.Random, row: dict) -> tuple[str, str]:
    """(reasoning, answer) that compares candidates by matched findings and looks the fact up."""
    kb, language, task = knowledge(), row["language"], row["task"]
    words, condition, findings = PHRASES[language], row["condition"], row["findings"]
    lettered = row["form"] == "choice" and task == "diagnosis"
    if lettered:
        candidates = row["options"]
    else:
        rivals = [name for name, _ in kb.ranked(findings) if name != condition][:2]
        candidates = [condition, *rivals]
        rng.shuffle(candidates)
    lines = [matches(kb, name, findings, language) for name in candidates]
    if lettered:
        lines = [f"{x}.{words.gap}{line}" for x, line in zip(LETTERS, lines, strict=False)]
    shown = words.comma.join(kb.name(f, language) for f in findings)
    right = kb.name(gold(kb, condition, task), language)
    kind = words.tasks[task]
    parts = [
        words.task.format(task=kind),
        words.findings.format(findings=shown),
        words.candidates.format(lines=words.semicolon.join(lines)),
        words.best.format(condition=kb.name(condition, language)),
        words.task.format(task=kind),
    ]
    if task != "diagnosis":
        parts.append(words.fact[task].format(condition=kb.name(condition, language), value=right))
    if row["form"] == "choice":
        letter = LETTERS[row["options"].index(gold(kb, condition, task))]
        parts.append(words.option.format(letter=letter, value=right))
        answer = words.answer_choice.format(letter=letter)
    else:
        answer = words.answer[task].format(value=right)
    return words.sentence_gap.join(parts), answer


def to_sample(row: dict, name: str, split: str, worked: tuple[str, str] | None) -> Sample:
    """The Sample of a vignette; `worked` = (reasoning, answer) for rows that show them."""
    kb, language, task = knowledge(), row["language"], row["task"]
    entry = kb.entries[gold(kb, row["condition"], task)]
    options = {x: kb.name(o, language) for x, o in zip(LETTERS, row["options"], strict=False)}
    target = LETTERS[row["options"].index(entry.key)] if options else entry.name(language)
    rivals = {gold(kb, c, task) for c in kb.conditions} - {entry.key}
    user: Message = {"role": "user", "content": row["question"]}
    return Sample(
        id=name,
        messages=(user,),
        reasoning=worked[0] if worked else "",
        answer=worked[1] if worked else "",
        target=target,
        aliases=() if options else entry.names[language][1:],
        options=options,
        distractors=() if options else tuple(sorted(kb.name(r, language) for r in rivals)),
        meta={
            "task": f"{task}/{row['form']}",
            "language": language,
            "split": split,
            "condition": row["condition"],
            "findings": list(row["findings"]),
        },
    )


def samples(split: str, n: int, seed: int = 0) -> list[Sample]:
    """`n` vignettes of a split, kinds and languages balanced; the same arguments give the same rows.

    ValueError for an unknown split, DanluError when there are fewer than `n`. Held-out and dev vignettes never repeat
    a (condition, findings) pair.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if split == "test":
        seen, unseen = samples("test-seen", (n + 1) // 2, seed), samples("test-unseen", n // 2, seed)
        return [row for pair in zip(seen, [*unseen, None], strict=False) for row in pair if row][:n]
    kb = knowledge()
    # the control `answers` shows the very rows of `grpo`, with answers
    rng = random.Random(f"{'grpo' if split == 'answers' else split} {seed}")
    wanted = {"test-seen": "test", "test-unseen": "test", "answers": "grpo"}.get(split, split)
    pool = sorted(c for c in kb.conditions if (c in held_out()) == (split == "test-unseen"))
    kinds = [(lang, task, form) for form in FORMS for task in TASKS for lang in LANGUAGES]
    rows: list[Sample] = []
    used: set[tuple[str, frozenset[str]]] = set()
    order: list[str] = []
    misses = 0  # conditions in a row without an unused vignette
    while len(rows) < n:
        if misses > 2 * len(pool):
            raise DanluError(f"world:{split} has only about {len(rows)} different vignettes", f"ask for fewer than {n}")
        if not order:
            order = rng.sample(pool, len(pool))
        condition = order.pop()
        language, task, form = kinds[len(rows) % len(kinds)]
        findings = _unused(kb, rng, condition, wanted, used)
        misses = misses + 1 if findings is None else 0
        if findings is None:
            continue
        row = vignette(rng, condition, findings, language, task, form)
        worked = None
        if split in ("sft", "dev"):
            worked = trace(rng, row)
        elif split == "answers":
            worked = ("", trace(random.Random(0), row)[1])
        rows.append(to_sample(row, f"{split}-{seed}-{len(rows):05d}", split, worked))
    return rows


def _unused(
    kb: Knowledge, rng: random.Random, condition: str, wanted: str, used: set[tuple[str, frozenset[str]]]
) -> list[str] | None:
    """Findings of a vignette in the wanted bucket that was not used yet, or None if none is found soon."""
    for _ in range(60):
        findings = findings_of(kb, rng, condition)
        key = (condition, frozenset(kb.matched(condition, findings)))
        if bucket(*key) != wanted or key in used:
            continue
        if wanted in ("test", "dev"):
            used.add(key)
        return findings
    return None
