"""Verification: an answer against its target, by rules, for rewards and evaluation alike.

Only the answer part of a completion is read, never the reasoning, and as a reader sees it: invisible characters,
look-alikes of Latin letters and struck-out text do not hide anything. A choice question needs an option that is
*claimed*, by letter or by text ("答案是B", "故选急性心肌梗死", `\\boxed{B}`, "The answer is B", options judged one by
one): see `choice`. An open question needs the gold or an alias claimed in the answer, nothing else beside it, and no
side or quantity that contradicts the gold's: see `open_answers`. What is denied ("不选A", "not X") does not count,
what follows a correction ("不对，应为C") replaces what came before it, and the longest candidate wins where one holds
another (肺炎 inside 支原体肺炎). Whenever two readings remain the outcome is `ambiguous`, never a guess; an answer that
only names or lists options is `none`. Simplified and Traditional are one.

Departures from the usual "first capital letter": a letter inside a term (维生素D, A型血) or the English article "A"
is no choice; a letter whose own words name another option is ambiguous; where the question asks for the false
statement, the one statement judged false is the answer.
Not covered: paraphrases that no alias lists, numeric tolerance, hedged diagnoses, other languages; those need aliases
or a judge.
"""

from __future__ import annotations

import re
import unicodedata

from danlu.errors import DanluError
from danlu.records import Completion, Sample, Score
from danlu.rewards.choice import read
from danlu.rewards.mentions import canonical, claims, flatten
from danlu.rewards.open_answers import read_open

__all__ = ["VERSION", "claims", "extract", "flatten", "graded", "unanswered", "verify"]
VERSION = 3  # raised whenever a verdict can change; reports carry it so that only equal rules are compared


def unanswered(completion: Completion) -> Score | None:
    """The score of a completion without an answer part to judge; None where there is one."""
    text = completion.answer.strip()
    if completion.finish == "error":
        return Score(0.0, "none", None, "the generator failed")
    if completion.finish == "length" and (not text or (not completion.well_formed and text == completion.text.strip())):
        return Score(0.0, "truncated", None, "cut before the answer")
    return None if text else Score(0.0, "none", None, "no answer part")


def verify(sample: Sample, completion: Completion) -> Score:
    """The verdict on one completion; value 1.0 for `right`, else 0.0.

    DanluError if the sample has no target.
    """
    if not (sample.target or "").strip():
        raise DanluError(f"sample {sample.id} has no target to verify against", "give the row a gold answer")
    if (early := unanswered(completion)) is not None:
        return early
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
    text = _unquoted(sample, completion.answer)
    if not text:
        return None, "no answer part"
    if _gold_letters(sample) is not None:
        return _choice(sample, text, completion.finish == "length")
    return read_open(sample, text, completion.finish == "length")


_EXPLICIT = ("keyed", "alone", "said", "line", "judged", "gold")  # said in so many words, see choice


def graded(score: Score) -> float:
    """0..1: how sure the verdict is that an answer is right, for rankings (AUC) and thresholds.

    1.0 and 0.0 where an answer is right or wrong by an explicit claim, 0.9 and 0.1 by a conclusion drawn from its
    words; 0.4 where it claims nothing (it may mean the right one), 0.2 where it claims several (it is not one).
    """
    explicit = score.how in _EXPLICIT
    if score.outcome == "right":
        return 1.0 if explicit else 0.9
    if score.outcome == "wrong":
        return 0.0 if explicit else 0.1
    return 0.2 if score.outcome == "ambiguous" else 0.4


_COPY = 10  # characters from which on a part of the question is no chance


def _unquoted(sample: Sample, answer: str) -> str:
    """The answer without the question, where it holds that word for word: what is asked claims nothing."""
    asked = [sample.question.strip(), *re.findall(r"[^?？。\n]+[?？]", sample.question)]
    for text in (part.strip() for part in asked):
        if len(text) >= _COPY:
            answer = answer.replace(text, "\n")
    return answer.strip()


# ---- choice questions


def _gold_letters(sample: Sample) -> str | None:
    """The target as letters of the options ("B", "ACD"), or None where the question is open."""
    if not sample.options:
        return None
    target = unicodedata.normalize("NFKC", sample.target or "").strip()
    letters = re.sub(r"[\s、,，/;；.]+", "", target).upper()
    if letters and set(letters) <= {key.upper() for key in sample.options}:
        return "".join(sorted(set(letters)))
    return next(
        (k.upper() for k, v in sample.options.items() if canonical(v).strip() == canonical(target).strip()), None
    )


def _choice(sample: Sample, answer: str, cut: bool) -> tuple[str | None, str]:
    options = {key.upper(): value for key, value in sample.options.items() if len(key) == 1}
    several = len(_gold_letters(sample) or "") > 1
    return read(answer, options, list(sample.distractors), several, sample.question, cut)
