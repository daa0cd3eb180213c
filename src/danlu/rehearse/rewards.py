"""The rewards of a GRPO recipe on its own prompts, with completions whose worth is known.

Each prompt is answered five ways in the model's own format: right, wrong, not at all, without the tags, and cut off.
A reward must give a number for each, and all of them together must pay more for the right answer than for the wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

from danlu.data.encode import encode
from danlu.errors import DanluError
from danlu.models.tokenizer import Speech
from danlu.recipe import AnyReward, Grpo, JudgeSpec
from danlu.records import Completion, Finish, Sample
from danlu.rehearse.book import Page
from danlu.rewards import score_all
from danlu.rewards.verify import verify

WHEN = "grpo, step 1"
ASKED = 2  # prompts that a judge is asked about
NOT_KNOWN = "I do not know."


def try_rewards(settings: Grpo, samples: Sequence[Sample], speech: Speech, page: Page) -> list[AnyReward]:
    """The rewards that work; findings for those that do not, and where right answers earn no more than wrong ones."""
    working = []
    for spec in settings.rewards:
        if isinstance(spec, JudgeSpec):
            spec = spec.model_copy(update={"retries": 0, "timeout": min(30.0, spec.timeout)})
        asked = list(samples[:ASKED]) if isinstance(spec, JudgeSpec) else list(samples)
        cases = [(sample, one) for sample in asked for one in _cases(sample, speech, isinstance(spec, JudgeSpec))]
        try:
            score_all([s for s, _ in cases], [one for _, one in cases], speech.think, [spec])
        except DanluError as error:
            page.failed(WHEN, error)
        else:
            working.append(spec)
    if working:
        _compare(settings, working, samples, speech, page)
    return working


def _compare(settings: Grpo, specs: Sequence[AnyReward], samples: Sequence[Sample], speech: Speech, page: Page) -> None:
    """What right and wrong answers earn in all."""
    judged = any(isinstance(spec, JudgeSpec) for spec in specs)
    looked = [sample for sample in samples[: ASKED if judged else None] if sample.target]
    answers = [(sample, one) for sample in looked for one in _cases(sample, speech, short=True)]
    scored = score_all([s for s, _ in answers], [one for _, one in answers], speech.think, specs, settings.gate)
    pairs = [(a.total, b.total) for a, b in zip(scored[::2], scored[1::2], strict=True)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not known:
        page.warning(WHEN, "no reward has an opinion on any of the answers that were tried")
        return
    flat = [pair for pair in known if pair[0] <= pair[1]]
    right, wrong = ([pair[side] for pair in known] for side in (0, 1))
    told = f"a right answer earns {_range(right)}, a wrong one {_range(wrong)} ({len(known)} prompts)"
    if len(flat) == len(known):
        page.error(WHEN, f"nothing can be learnt: {told}", "add a reward that verifies the answer, such as `answer`")
    elif flat:
        page.warning(WHEN, f"in {len(flat)} of {len(known)} prompts a right answer earns no more than a wrong one")
    else:
        page.info(WHEN, told)


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _cases(sample: Sample, speech: Speech, short: bool = False) -> list[Completion]:
    """Right and wrong; and unless `short` nothing, an answer without tags, one that was cut off."""
    think, reasoning = speech.think, sample.reasoning or "..."
    gold = sample.target or sample.answer or NOT_KNOWN
    right = _said(speech, think.join(reasoning, gold))
    if sample.answer and sample.target:
        own = _said(speech, think.join(reasoning, sample.answer))
        right = own if verify(sample, own).outcome == "right" else right
    others = [letter for letter in sample.options if letter not in gold]
    wrong = _said(speech, think.join(reasoning, (others or [*sample.distractors, NOT_KNOWN])[0]))
    if short:
        return [right, wrong]
    return [
        right,
        wrong,
        _said(speech, ""),
        _said(speech, gold),
        _said(speech, right.text[: len(right.text) // 2], "length"),
    ]


def _said(speech: Speech, text: str, finish: Finish = "stop") -> Completion:
    reasoning, answer, well_formed = speech.think.split(text)
    tokens = tuple(encode(speech.tokenizer, [text])[0].tolist())
    return Completion(text, reasoning, answer, finish, well_formed and finish == "stop", tokens, (0.0,) * len(tokens))
