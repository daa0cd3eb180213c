"""The five rewards of the well-known GRPO demo for `<reasoning>` / `<answer>`, told the model's think-format.

    xmlcount        0.125 for each tag placed once with its newlines (0.5 for all four), less 0.001 for each character
                    behind the closing answer tag, charged for both answer tags as in the demo (0.002 a character)
    soft_format     0.5 if the text starts with the blocks in order, whatever lies between them
    strict_format   0.5 if the text is the blocks, each tag once on its own line, and nothing else
    int             0.5 if the answer is digits only
    correctness     2.0 if the answer equals the target

Departures: the demo's patterns match within one line only, so that reasoning of two lines never earned the format
rewards; ours match across lines. The demo's strict pattern wants a newline behind the last tag; ours allows it. Without
that newline the demo charges the whole text as trailing; ours charges what trails. In another think-format its own
tags count, 0.5 in all; what the template has written already is taken as given; without tags all three are 0.
"""

from __future__ import annotations

import re

from danlu.records import Completion, Sample
from danlu.think import ThinkFormat


def _whole(completion: Completion, think: ThinkFormat) -> str:
    """The completion with the opening tag, where the template wrote it."""
    return f"{think.open}\n{completion.text.lstrip()}" if think.opened_by == "template" else completion.text


def xmlcount(_sample: Sample, completion: Completion, think: ThinkFormat) -> float:
    """-inf..0.5: how many tags are in place, less what trails behind the last one."""
    if think.style == "none":
        return 0.0
    text = _whole(completion, think)
    tags = [f"{think.open}\n", f"\n{think.close}\n"]
    if think.style == "think":
        return 0.25 * sum(text.count(tag) == 1 for tag in tags)
    count = 0.125 * sum(text.count(tag) == 1 for tag in tags)
    trailing = text.rpartition("\n</answer>")[2].removeprefix("\n")
    for tag in ("\n<answer>\n", "\n</answer>"):
        if text.count(tag) == 1:
            count += 0.125 - 0.001 * (len(trailing) if "\n</answer>" in text else 0)
    return count


def soft_pattern(think: ThinkFormat) -> str:
    """What `soft_format` matches at the start of a text, re.DOTALL; in <reasoning> the demo's pattern itself."""
    answer = r"<answer>.*?</answer>" if think.style == "reasoning_answer" else r"\S"
    return rf"{re.escape(think.open)}.*?{re.escape(think.close)}\s*{answer}"


def strict_pattern(think: ThinkFormat) -> str:
    """What `strict_format` matches with a whole text, re.DOTALL."""
    answer = r"<answer>\n.+?\n</answer>" if think.style == "reasoning_answer" else r"\n.+?"
    return rf"{re.escape(think.open)}\n.+?\n{re.escape(think.close)}\n{answer}\n?"


def soft_format(_sample: Sample, completion: Completion, think: ThinkFormat) -> float:
    """0.5 for the blocks in order at the start of the text, else 0."""
    if think.style == "none":
        return 0.0
    return 0.5 * bool(re.match(soft_pattern(think), _whole(completion, think), re.DOTALL))


def strict_format(_sample: Sample, completion: Completion, think: ThinkFormat) -> float:
    """0.5 for exactly the blocks, one line break where each belongs, else 0."""
    if think.style == "none":
        return 0.0
    text = _whole(completion, think)
    tags = [think.open, think.close, *(("<answer>", "</answer>") if think.style == "reasoning_answer" else ())]
    once = all(text.count(tag) == 1 for tag in tags)
    return 0.5 * (once and bool(re.fullmatch(strict_pattern(think), text, re.DOTALL)))


def is_int(_sample: Sample, completion: Completion, _think: ThinkFormat) -> float:
    """0.5 if the answer part is digits only, else 0."""
    return 0.5 * completion.answer.strip().isdigit()


def correctness(sample: Sample, completion: Completion, _think: ThinkFormat) -> float:
    """2.0 if the answer part equals the target character by character, else 0."""
    return 2.0 * (sample.target is not None and completion.answer.strip() == sample.target.strip())
