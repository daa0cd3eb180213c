"""Rewards that look at how a completion is written, not at what it says: form, end, language, loops, length.

think_format, stop, language   1 or 0
repetition                     -1..0, by the share of pieces (`gram` words in a row) that occurred before
length, shape soft             -1..0, the soft overlong punishment of DAPO (Yu et al. 2025, eq. 13)
length, shape cosine           the cosine reward of Yeo et al. 2025 (Demystifying Long Chain-of-Thought, eq. 1)

Departures: repetition of open-r1 and of Yeo et al. counts every repeated n-gram of words split at spaces; ours splits
Chinese into characters and leaves a share free, because honest reasoning repeats the names of what it is about. Yeo
et al. pay a wrong answer more the longer it is; by default ours pays wrong answers nothing for length, which padding
would earn. Form is what the model's ThinkFormat says, so a template that writes `<think>` itself is no fault.
Not covered: fluency, mixed languages inside one answer, whether the reasoning is in the question's language.
"""

from __future__ import annotations

import math
import re

from danlu.data.language import HAN, language
from danlu.recipe import LengthSpec, RepetitionSpec
from danlu.records import Completion, Sample
from danlu.rewards.verify import verify
from danlu.think import ThinkFormat

_WORD = re.compile(f"[{HAN}]|[^\\W_{HAN}]+|[^\\w\\s]")
_TELLING = 8  # characters from which on an answer has a language


def in_form(completion: Completion) -> bool:
    """Whether a completion is well-formed in its model's think-format and ended by itself."""
    return completion.well_formed and completion.finish == "stop"


def think_format(_sample: Sample, completion: Completion, _think: ThinkFormat) -> float:
    """1.0 for a completion in form, else 0."""
    return float(in_form(completion))


def stop(_sample: Sample, completion: Completion, _think: ThinkFormat) -> float:
    """1.0 for a completion that ended by itself, else 0."""
    return float(completion.finish == "stop")


def in_language(sample: Sample, completion: Completion, _think: ThinkFormat) -> float:
    """1.0 for an answer in the question's language, 0.5 for one that mixes languages, 0 for another and for none.

    Where the question is neither Chinese nor English, or the answer too short to tell (a letter, a number), any
    answer is 1.0.
    """
    said = completion.answer.strip()
    if not said:
        return 0.0
    asked, told = language(sample.question), language(said)
    if len(said) < _TELLING or asked not in ("zh", "en") or not any(map(str.isalpha, said)):
        return 1.0
    return 0.5 if told == "mixed" else float(asked == told)


def words(text: str) -> list[str]:
    """Words, Chinese characters and marks of a text, in order."""
    return _WORD.findall(text)


def repetition(completion: Completion, spec: RepetitionSpec) -> float:
    """-1..0: minus the share of pieces of `gram` words that occurred before, beyond the share that is free."""
    found = words(completion.text)
    count = len(found) - spec.gram + 1
    if count <= 1:
        return 0.0
    share = 1 - len({tuple(found[i : i + spec.gram]) for i in range(count)}) / count
    return -max(0.0, (share - spec.free) / (1 - spec.free))


def size(completion: Completion) -> int:
    """Tokens of a completion; its words where nobody knows the tokens."""
    return len(completion.tokens) or len(words(completion.text))


def length(sample: Sample, completion: Completion, spec: LengthSpec) -> float:
    """The length reward of `spec`; DanluError for the shape cosine without a target."""
    place = min(1.0, max(0.0, (size(completion) - spec.low) / (spec.high - spec.low)))
    if spec.shape == "soft":
        return -place
    if completion.finish == "length":
        return spec.cut
    right = completion.well_formed and verify(sample, completion).outcome == "right"
    short, long = spec.right if right else spec.wrong
    return long + (short - long) * (1 + math.cos(math.pi * place)) / 2
