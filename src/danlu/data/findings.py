"""What the data check looks for in texts, one function a subject, each giving Findings (tokens: token_findings.py).

An error makes training pointless or its evaluation untrue, a warning costs quality, info is worth knowing. Examples
name rows and show their beginning, with personal data replaced. A text is one of a fixed set with {places} for what was
counted, so that it can be told in another language.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from danlu import domains
from danlu.data import overlap, personal
from danlu.data.encode import encode
from danlu.data.prepare import Prepared, benchmarks, has_benchmarks, question_key
from danlu.data.render import prompt_text
from danlu.models.tokenizer import Speech
from danlu.recipe import Recipe
from danlu.records import Sample
from danlu.think import ThinkFormat

Level = Literal["error", "warning", "info"]
EXAMPLES = 3
TRIVIAL = 10  # characters of reasoning below which it is no reasoning
OF_GRPO = "GRPO prompts: "
ENOUGH = {  # whether nearly all rows fit -> which limit would keep them whole
    True: "over 99 % of the rows fit; {key}={limit} would keep all",
    False: "{key}={limit} keeps 99 % of the rows whole",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found `count` times among `of` rows: what it means, what to do, and up to three examples.

    `values` fill the places of `what` and `do`.
    """

    code: str
    level: Level
    count: int
    of: int
    what: str
    do: str
    examples: tuple[str, ...] = ()
    values: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As the report tells it: `what` and `do` filled in, and under `texts` as they are before that."""
        texts = {"what": self.what, "do": self.do}
        told = {name: text.format(**self.values) for name, text in texts.items()}
        return {**asdict(self), **told, "examples": list(self.examples), "texts": texts}


def cut(text: str, size: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= size else text[: size - 1] + "…"


def _named(rows: Iterable[Sample], of: str = "question") -> tuple[str, ...]:
    """The first rows as examples: id and the beginning of a field; personal data is never shown."""
    return tuple(f"{row.id}: {cut(personal.redact(getattr(row, of)))}" for row in list(rows)[:EXAMPLES])


def finding(
    code: str, level: Level, rows: Sequence[Sample], of: int, what: str, do: str, **values: str
) -> list[Finding]:
    """A Finding on these rows (each counted once), or none without any."""
    named = {row.id: row for row in rows}
    return [Finding(code, level, len(named), of, what, do, _named(named.values()), values)] if named else []


# ---- rows that were not read


def rejects(recipe: Recipe, prepared: Prepared) -> list[Finding]:
    found: list[Finding] = []
    bad = prepared.rejected
    if bad:
        stops = recipe.data.on_bad_row == "error"
        reasons = Counter(reject.reason for reject in bad).most_common()
        listed = "; ".join(f"{count} x {cut(reason, 80)}" for reason, count in reasons[:4])
        firsts = {reject.reason: reject for reject in reversed(bad)}
        found.append(
            Finding(
                "rejected_rows",
                "error" if stops else "warning",
                len(bad),
                prepared.counts["in"],
                "rows cannot be used: {reasons}; training would stop at the first"
                if stops
                else "rows cannot be used: {reasons}",
                "mend them, or map columns with data.columns, or leave them out with data.on_bad_row=skip"
                if stops
                else "mend them, or map columns with data.columns; they are left out",
                tuple(f"{firsts[why].origin} line {firsts[why].line}: {cut(why, 80)}" for why, _ in reasons[:EXAMPLES]),
                {"reasons": listed},
            )
        )
    repeats = prepared.counts["repeats_of_valid"]
    if repeats:
        found.append(
            Finding(
                "train_valid_overlap",
                "warning",
                repeats,
                prepared.counts["train"] + repeats,
                "training rows ask a validation question word for word; they are left out of training",
                "remove repeated questions from the source if you need the rows",
            )
        )
    return found


# ---- texts


def texts_found(speech: Speech, samples: list[Sample], recipe: Recipe, *, trained: bool = True) -> list[Finding]:
    """`trained`: the rows hold completions to learn, and are not prompts alone."""
    of = len(samples)
    think = speech.think
    ends = [token for token in think.end_tokens if token]
    others = [token for token in _special_tokens(speech) if token not in ends]
    with_end = [s for s in samples if any(token in text for text in _texts(s) for token in ends)]
    with_others = [s for s in samples if any(token in text for text in _texts(s) for token in others)]
    found = finding(
        "end_token_in_text",
        "error",
        with_end,
        of,
        "rows hold an end token ({tokens}) in their text: it is read as a real one,"
        " and the model learns to go on behind it",
        "remove it from data.system or from the rows",
        tokens=", ".join(ends),
    )
    found += finding(
        "special_token_in_text",
        "warning",
        with_others,
        of,
        "rows hold special tokens in their text: they are tokenised as such",
        "remove them from the rows if they are not meant",
    )
    if trained and think.style != "none":
        without = [s for s in samples if not s.reasoning.strip()]
        found += finding(
            "empty_reasoning",
            "warning",
            without,
            of,
            "rows have no reasoning: the model learns to answer at once",
            "fill it, leave such rows out, or keep them on purpose",
        )
        short = [s for s in samples if 0 < len(s.reasoning.strip()) < TRIVIAL]
        copies = [s for s in samples if s.reasoning.strip() and s.reasoning.strip() in (s.answer.strip(), s.question)]
        found += finding(
            "trivial_reasoning",
            "warning",
            [*short, *(s for s in copies if s not in short)],
            of,
            "rows have a reasoning under {least} characters, or one that only repeats the question or the answer",
            "leave such rows out",
            least=str(TRIVIAL),
        )
        broken = [s for s in samples if s.reasoning.strip() and not _splits_back(think, s)]
        found += finding(
            "think_tags_in_text",
            "error",
            broken,
            of,
            "rows hold think tags inside reasoning or answer: no completion like that can be told apart again",
            "remove the tags from the texts",
        )
    return found + _personal_found(samples, recipe)


def _texts(sample: Sample) -> list[str]:
    return [*(turn["content"] for turn in sample.messages), sample.reasoning, sample.answer]


def _special_tokens(speech: Speech) -> list[str]:
    tags = {speech.think.open, speech.think.close, "<think>", "</think>"}  # these have a finding of their own
    return [str(token) for token in speech.tokenizer.get_added_vocab() if str(token) not in tags]


def _splits_back(think: ThinkFormat, sample: Sample) -> bool:
    reasoning, answer, well_formed = think.split(think.join(sample.reasoning, sample.answer))
    return well_formed and (reasoning, answer) == (sample.reasoning.strip(), sample.answer.strip())


def _personal_found(samples: list[Sample], recipe: Recipe) -> list[Finding]:
    kinds: Counter[str] = Counter()
    rows = []
    for sample in samples:
        hits = [hit.kind for text in _texts(sample) for hit in personal.find(text)]
        kinds.update(hits)
        if hits:
            rows.append(sample)
    listed = ", ".join(f"{count} x {kind.replace('_', ' ')}" for kind, count in kinds.most_common())
    return finding(
        "personal_data",
        "warning",
        rows,
        len(samples),
        "rows hold what looks like personal data: {kinds}",
        "data.redact=true replaces it" if not recipe.data.redact else "already redacted where it was found",
        kinds=listed,
    )


# ---- the same thing twice


def repeats_found(prepared: Prepared) -> list[Finding]:
    rows = [*prepared.train, *prepared.valid]
    first_valid = len(prepared.train)
    found = overlap.duplicates(["\n".join(question_key(row)) for row in rows])
    whole = Counter((question_key(row), row.reasoning, row.answer) for row in prepared.train)
    copies = [key for key, count in whole.items() if count > 1]
    out: list[Finding] = []
    if copies:
        count = sum(whole[key] - 1 for key in copies)
        examples = tuple(f"{whole[key]} x {cut(personal.redact(key[0][-1]))}" for key in copies[:EXAMPLES])
        out.append(
            Finding(
                "duplicate_rows",
                "warning",
                count,
                len(prepared.train),
                "training rows repeat another one to the letter",
                "remove them, or keep them as extra weight on purpose",
                examples,
            )
        )
    groups = [[i for i in group if i < first_valid] for group in found.exact]
    asked = [rows[group[0]] for group in groups if len(group) > 1]
    count = sum(len(group) - 1 for group in groups if len(group) > 1)
    if asked:
        out.append(
            Finding(
                "duplicate_questions",
                "info",
                count,
                len(prepared.train),
                "training rows ask the same question as another one (width, case, script and punctuation aside)",
                "several answers to one question are fine where they agree",
                _named(asked),
            )
        )

    def near(code: str, level: Level, pairs: list[tuple[int, int, float]], what: str) -> None:
        if pairs:
            examples = tuple(
                f"{rows[a].id} ~ {rows[b].id} ({value:.2f}): {cut(personal.redact(rows[a].question), 100)}"
                for a, b, value in pairs[:EXAMPLES]
            )
            do = "remove one of each pair from its source"
            out.append(Finding(code, level, len(pairs), len(rows), what, do, examples))

    near(
        "near_duplicates",
        "info",
        [pair for pair in found.near if max(pair[:2]) < first_valid],
        "pairs of training rows ask nearly the same question (Jaccard >= 0.8)",
    )
    near(
        "train_valid_near",
        "warning",
        [pair for pair in found.near if min(pair[:2]) < first_valid <= max(pair[:2])]
        + [(group[0], group[-1], 1.0) for group in found.exact if group[0] < first_valid <= group[-1]],
        "validation rows ask nearly what a training row asks: the eval loss will look too good",
    )
    return out


def leaks_found(recipe: Recipe, samples: list[Sample]) -> list[Finding]:
    if not has_benchmarks(recipe):
        return []
    known = benchmarks(recipe, domains.load(recipe.domain))
    found: list[Finding] = []
    for name, loaded in known.items():
        if loaded.rejected:
            first = loaded.rejected[0]
            found.append(
                Finding(
                    "unscorable_items",
                    "warning",
                    len(loaded.rejected),
                    len(loaded.rows) + len(loaded.rejected),
                    "questions of benchmark {benchmark} have no usable gold answer",
                    "mend them in the source; they cannot be scored",
                    (f"{first.origin} line {first.line}: {first.reason}",),
                    {"benchmark": name},
                )
            )
    leaks = overlap.leaks(samples, {name: loaded.rows for name, loaded in known.items()})
    rows = list(dict.fromkeys(leak.row for leak in leaks))
    if rows:
        items = {(leak.benchmark, leak.item) for leak in leaks}
        per = Counter(name for name, _ in items)
        listed = ", ".join(f"{count} of {name}" for name, count in per.most_common())
        fixed = recipe.data.decontaminate
        found.append(
            Finding(
                "leakage",
                "info" if fixed else "error",
                len(rows),
                len(samples),
                "training rows hold {items} benchmark questions ({listed}); they are dropped from training"
                if fixed
                else "training rows hold {items} benchmark questions ({listed}): the evaluation would measure memory",
                "nothing: data.decontaminate drops them" if fixed else "data.decontaminate=true drops these rows",
                tuple(
                    f"{leak.benchmark} {leak.item} in the {leak.where} of {leak.row} ({leak.how}, {leak.value:.2f}): "
                    f"{cut(personal.redact(leak.item_text), 90)} | {cut(personal.redact(leak.row_text), 90)}"
                    for leak in leaks[:EXAMPLES]
                ),
                {"items": str(len(items)), "listed": listed},
            )
        )
    return found


# ---- GRPO


def keeps(lengths: np.ndarray) -> int:
    """The smallest length that keeps 99 % of the rows whole."""
    return int(np.sort(lengths)[int(np.ceil(0.99 * len(lengths))) - 1]) if len(lengths) else 0


def prompt_lengths(speech: Speech, samples: Sequence[Sample]) -> np.ndarray:
    """Tokens of each prompt, int64 [rows]."""
    texts = [prompt_text(speech.tokenizer, speech.think, sample.messages) for sample in samples]
    return np.array([len(ids) for ids in encode(speech.tokenizer, texts)], dtype=np.int64)


def prompts_found(recipe: Recipe, prepared: Prepared, lengths: np.ndarray) -> list[Finding]:
    limit = recipe.grpo.max_prompt
    long = [sample for sample, length in zip(prepared.train, lengths, strict=True) if length > limit]
    return finding(
        "overlong_prompts",
        "warning" if len(long) < len(lengths) else "error",
        long,
        len(lengths),
        "GRPO prompts are longer than grpo.max_prompt {max_prompt}: they are left out",
        ENOUGH[keeps(lengths) <= limit],
        max_prompt=str(limit),
        **enough("grpo.max_prompt", lengths, limit),
    )


def of_grpo(found: Finding) -> Finding:
    """A finding on GRPO prompts beside those on the rows of SFT."""
    return replace(found, code=f"grpo_{found.code}", what=OF_GRPO + found.what)


def enough(key: str, lengths: np.ndarray, limit: int) -> dict[str, str]:
    """What fills the places of ENOUGH: the key of a limit, and its value that would keep (nearly) all rows whole."""
    return {"key": key, "limit": str(int(lengths.max()) if keeps(lengths) <= limit else keeps(lengths))}
