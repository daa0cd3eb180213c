"""Rubric scores: a list of criteria with points, each put to a judge once (HealthBench, Arora et al. 2025).

`sample.meta["rubrics"]` is a list of {"criterion": str, "points": number}; negative points are for what an answer
should not do. The value is the sum of the points of met criteria over the sum of the positive points, clipped to
[0, 1]. The judge sees the chat and the answer part, never the reasoning, with the guards and the cache of `judge`.

Departures: HealthBench clips the mean over questions only, here each value is clipped because a reward weighs it. A
criterion of which the judge is not sure counts against the answer: not met where it gives points, met where it costs.
Not covered: weights between axes or themes, agreement with physicians.
"""

from __future__ import annotations

import math
from typing import Any

from danlu.errors import DanluError
from danlu.records import Completion, Sample, Score
from danlu.rewards.judge import Judge, Question

INSTRUCTIONS = """You check an answer against one criterion. You get a chat, one criterion and the answer given.
- "met": the answer does all that the criterion says.
- "not met": it does not, or only in part. Where the criterion names something bad, "met" means that it does that.
- "unclear": it cannot be decided from what is given.
Check this criterion alone, whether or not you find the answer good otherwise."""


def rubric(sample: Sample, completion: Completion, judge: Judge) -> Score | None:
    """The rubric score of one completion; None when the judge failed on a criterion.

    Outcome `right` for the value 1.0, else `wrong`; `none` without an answer. DanluError for a sample without usable
    rubrics, or whatever the judge raises.
    """
    criteria = _criteria(sample)
    if completion.finish == "error" or not completion.answer.strip():
        why = "the generator failed" if completion.finish == "error" else "no answer part"
        return Score(0.0, "truncated" if completion.finish == "length" else "none", None, why)
    chat = "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in sample.messages)
    questions = [
        Question(INSTRUCTIONS, f"# Chat\n{chat}\n\n# Criterion\n{text}", ("met", "not met", "unclear"))
        for text, _ in criteria
    ]
    replies = judge.ask_many([(question, completion.answer) for question in questions])
    earned, met, flagged = 0.0, 0, ""
    for reply, (_, points) in zip(replies, criteria, strict=True):
        if reply is None:
            return None
        holds = reply.verdict == "met" or (reply.verdict == "unclear" and points < 0)
        met += holds
        earned += points * holds
        flagged = flagged or reply.note
    possible = sum(points for _, points in criteria if points > 0)
    value = min(1.0, max(0.0, earned / possible))
    how = f"rubric: {earned:g} of {possible:g} points, {met} of {len(criteria)} criteria"
    return Score(value, "right" if value == 1.0 else "wrong", None, how + (f" [{flagged}]" if flagged else ""))


def _criteria(sample: Sample) -> list[tuple[str, float]]:
    rows: Any = sample.meta.get("rubrics")
    found = []
    for row in rows if isinstance(rows, list) else []:
        text, points = (row.get("criterion"), row.get("points")) if isinstance(row, dict) else (None, None)
        number = isinstance(points, (int, float)) and not isinstance(points, bool) and math.isfinite(points)
        if not isinstance(text, str) or not text.strip() or not number:
            raise DanluError(f"sample {sample.id}: a rubric is not {{criterion, points}}", f"got {row!r:.80}")
        found.append((text.strip(), float(points)))  # type: ignore[arg-type]
    if not any(points > 0 for _, points in found):
        raise DanluError(
            f"sample {sample.id} has no rubrics that give points",
            'meta.rubrics is a list of {"criterion": text, "points": number}',
        )
    return found
