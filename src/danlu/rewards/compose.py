"""The rewards of a recipe as one number for each completion: weights, a format gate, and what is missing.

total = sum of weight x value. Where `gate` is think_format and a completion is out of format, of every reward that
looks at what is said only what it takes away stays: nothing is earned by a right answer in broken form, and no
penalty is escaped by breaking it. Rewards of form itself (FORM) are not gated.

A reward that says None for a completion has no opinion. Ours (the judge when it failed) and functions in our style
mask the rollout: its total is None, it carries no loss and is counted. In TRL-style functions None means "not for this
sample", so the others decide alone, as in TRL; a rollout on which nothing has an opinion is masked.

Judges are asked in the background while the other rewards are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from typing import Any

from danlu.errors import DanluError, Stopped
from danlu.generate.wire import Cancel
from danlu.recipe import AnyReward, JudgeSpec, LengthSpec, PythonSpec, RepetitionSpec, RewardSpec
from danlu.records import Completion, Sample, Score
from danlu.rewards import form, own, published
from danlu.rewards.judge import Judge
from danlu.rewards.verify import verify
from danlu.think import ThinkFormat

Reward = Callable[[Sample, Completion, ThinkFormat], "float | Score | None"]
FORM = ("xmlcount", "soft_format", "strict_format", "think_format", "stop")  # looks at tags and ends alone


@dataclass(frozen=True, slots=True)
class Scored:
    """The weighted total of a completion, None where it is masked, and each reward before its weight."""

    total: float | None
    parts: dict[str, float | None]


def answer(sample: Sample, completion: Completion, _think: ThinkFormat) -> float:
    """1.0 for a right answer in a well-formed completion, else 0. DanluError without a target."""
    return float(verify(sample, completion).outcome == "right" and completion.well_formed)


def choice(sample: Sample, completion: Completion, think: ThinkFormat) -> float:
    """`answer` for questions with options; DanluError for others."""
    if not sample.options:
        raise DanluError(f"sample {sample.id} has no options to choose from", "the reward `answer` takes both kinds")
    return answer(sample, completion, think)


REWARDS: dict[str, Reward] = {
    "xmlcount": published.xmlcount,
    "soft_format": published.soft_format,
    "strict_format": published.strict_format,
    "int": published.is_int,
    "correctness": published.correctness,
    "answer": answer,
    "choice": choice,
    "think_format": form.think_format,
    "stop": form.stop,
    "language": form.in_language,
}


class Rewards:
    """The opened rewards of a recipe: functions of the user are imported, judges are connected to.

    `gate`: see the head of this module. Use it as a context manager, or `close` it.
    DanluError when a function cannot be loaded or a judge cannot be reached.
    """

    def __init__(self, specs: Sequence[AnyReward], gate: str = "none") -> None:
        self.specs, self.gate = list(specs), gate
        self.labels = _labels(self.specs)
        self._judges: dict[str, Judge] = {}
        self._own: dict[str, tuple[own.Batch, bool]] = {}
        self.counts = {"masked": 0}
        try:
            for label, spec in zip(self.labels, self.specs, strict=True):
                if isinstance(spec, JudgeSpec):
                    self._judges[label] = _judge(spec)
                elif isinstance(spec, PythonSpec):
                    self._own[label] = own.load(spec)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for judge in self._judges.values():
            judge.close()

    def usage(self) -> dict[str, float]:
        """What the judges were asked and cost so far, as "judge/asked", "judge/failed", "judge/latency" ..."""
        found: dict[str, float] = {}
        for label, spec in zip(self.labels, self.specs, strict=True):
            if isinstance(spec, JudgeSpec):
                used = self._judges[label].usage()
                found |= {f"{label}/{name}": value for name, value in used.items()}
                if spec.price:
                    tokens = (used["prompt_tokens"], used["completion_tokens"])
                    found[f"{label}/cost"] = sum(n * p for n, p in zip(tokens, spec.price, strict=True)) / 1e6
        return found

    def score_all(
        self, samples: Sequence[Sample], completions: Sequence[Completion], think: ThinkFormat
    ) -> list[Scored]:
        """The total and the parts of each completion, which answers the sample at its place.

        DanluError names the reward and the sample where a reward raises, or gives anything but a finite number.
        """
        if len(samples) != len(completions):
            raise ValueError(f"{len(samples)} samples for {len(completions)} completions")
        if not samples:
            return []
        table = self._table(samples, completions, think)
        rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
        found = [self._scored(row, one) for row, one in zip(rows, completions, strict=True)]
        self.counts["masked"] += sum(one.total is None for one in found)
        return found

    def _table(
        self, samples: Sequence[Sample], completions: Sequence[Completion], think: ThinkFormat
    ) -> dict[str, list[float | None]]:
        """Label -> values; judges work while the rest is computed, and stop where that fails."""
        cancels = {label: Cancel() for label in self._judges}
        with ThreadPoolExecutor(max(1, len(self._judges))) as pool:
            try:
                asked = {
                    label: pool.submit(_judged, label, judge, samples, completions, cancels[label])
                    for label, judge in self._judges.items()
                }
                done = {
                    label: self._batch(label, spec, samples, completions, think)
                    for label, spec in zip(self.labels, self.specs, strict=True)
                    if label not in asked
                }
                done |= {label: future.result() for label, future in asked.items()}
            finally:
                for cancel in cancels.values():
                    cancel.now()
        return {label: done[label] for label in self.labels}

    def _batch(
        self,
        label: str,
        spec: AnyReward,
        samples: Sequence[Sample],
        completions: Sequence[Completion],
        think: ThinkFormat,
    ) -> list[float | None]:
        if label in self._own:
            return _of_own(label, self._own[label][0], samples, completions)
        reward = _reward(spec)
        return [_of_ours(label, reward, sample, one, think) for sample, one in zip(samples, completions, strict=True)]

    def _scored(self, parts: dict[str, float | None], completion: Completion) -> Scored:
        open_gate = self.gate == "none" or form.in_form(completion)
        total, opinions = 0.0, 0
        for label, spec in zip(self.labels, self.specs, strict=True):
            value = parts[label]
            if value is None:
                if label in self._own and self._own[label][1]:
                    continue
                return Scored(None, parts)
            opinions += 1
            points = spec.weight * value
            of_form = isinstance(spec, RewardSpec) and spec.name in FORM
            total += points if open_gate or of_form else min(0.0, points)
        return Scored(total if opinions else None, parts)


def score_all(
    samples: Sequence[Sample],
    completions: Sequence[Completion],
    think: ThinkFormat,
    specs: Sequence[AnyReward],
    gate: str = "none",
) -> list[Scored]:
    """`Rewards.score_all` of rewards that are opened for this one call."""
    with Rewards(specs, gate) as rewards:
        return rewards.score_all(samples, completions, think)


def _labels(specs: Sequence[AnyReward]) -> list[str]:
    """A name for each reward; the second of a name is "name 2"."""
    found: list[str] = []
    for spec in specs:
        count = sum(label.partition(" ")[0] == spec.label for label in found)
        found.append(f"{spec.label} {count + 1}" if count else spec.label)
    return found


def _judge(spec: JudgeSpec) -> Judge:
    names = ("concurrency", "timeout", "retries", "backoff", "max_tokens", "thinking")
    return Judge(spec.endpoint, **{name: getattr(spec, name) for name in names})


def _reward(spec: AnyReward) -> Reward:
    """The function of a built-in reward."""
    if isinstance(spec, LengthSpec):
        return lambda sample, completion, _think: form.length(sample, completion, spec)
    if isinstance(spec, RepetitionSpec):
        return lambda _sample, completion, _think: form.repetition(completion, spec)
    assert isinstance(spec, RewardSpec)
    return REWARDS[str(spec.name)]


def _judged(
    label: str, judge: Judge, samples: Sequence[Sample], completions: Sequence[Completion], cancel: Cancel
) -> list[float | None]:
    """1.0 for what the judge finds right, 0 else, None where it failed; as with `answer` 0 for a broken form."""
    asked = [i for i, completion in enumerate(completions) if completion.well_formed]
    for i in asked:
        if not (samples[i].target or "").strip():
            raise DanluError(f"reward {label!r}: sample {samples[i].id} has no target", "give the row a gold answer")
    scores = judge.score_many([(samples[i], completions[i]) for i in asked], cancel)
    values: list[float | None] = [0.0] * len(samples)
    for i, score in zip(asked, scores, strict=True):
        values[i] = score.value if score else None
    return values


# ---- one value, or one clear error


def _of_ours(label: str, reward: Reward, sample: Sample, completion: Completion, think: ThinkFormat) -> float | None:
    try:
        value = reward(sample, completion, think)
    except Stopped:  # a signal, not the reward
        raise
    except DanluError as error:
        raise DanluError(f"reward {label!r}: {error.message}", error.hint) from error
    except Exception as error:
        raise _failed(label, sample, error) from error
    return _number(label, sample, value)


def _of_own(
    label: str, function: own.Batch, samples: Sequence[Sample], completions: Sequence[Completion]
) -> list[float | None]:
    """The values of a user's function; where it raises, the sample is found by asking for one at a time."""
    try:
        values = function(samples, completions)
    except DanluError:
        raise
    except Exception as error:
        for sample, completion in zip(samples, completions, strict=True):
            try:
                function([sample], [completion])
            except Exception as again:
                raise _failed(label, sample, again) from again
        raise _failed(label, samples[0], error, f" or another of {len(samples)} completions") from error
    return [_number(label, sample, value) for sample, value in zip(samples, values, strict=True)]


def _failed(label: str, sample: Sample, error: Exception, more: str = "") -> DanluError:
    if isinstance(error, DanluError):
        return error
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    return DanluError(
        f"reward {label!r} failed on sample {sample.id}{more}: {what}{own.where(error)}",
        "a reward must give a number (or None) for every text",
    )


def _number(label: str, sample: Sample, value: Any) -> float | None:
    if isinstance(value, Score):
        value = value.value
    if value is None:
        return None
    if not isinstance(value, Real):
        raise DanluError(
            f"reward {label!r} gave {type(value).__name__} on sample {sample.id}: {value!r:.60}",
            "a reward gives a number, or None for no opinion",
        )
    number = float(value)
    if not math.isfinite(number):
        raise DanluError(
            f"reward {label!r} gave {number} on sample {sample.id}", "a reward must give a finite number for every text"
        )
    return number
