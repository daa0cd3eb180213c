"""Held-out questions while a model trains: greedy answers; right and well-formed ones count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from danlu.generate import Sampling
from danlu.generate.local import LocalGenerator
from danlu.records import Completion, Sample
from danlu.rewards.verify import verify
from danlu.train import processes

if TYPE_CHECKING:
    from danlu.generate.mlx import MlxGenerator

MOST_TASKS = 12  # with more of them, tasks are not told apart

Breathe = Callable[..., Any]
Answers = dict[int, Completion]  # by the place of the question
Together = Callable[[Callable[[], Answers]], list[Answers]]


def answers(
    generator: LocalGenerator | MlxGenerator,
    samples: Sequence[Sample],
    max_tokens: int,
    breathe: Breathe | None = None,
    together: Together = lambda part: [part()],
) -> list[Completion]:
    """An answer to each of `samples`; `breathe(answered="7/80")` is called after every one that comes.

    Several processes share the questions; `together` gives what each of them answered.
    """
    generator.loaded.model.eval()
    generator.refresh()
    mine = processes.own([1.0] * len(samples))

    def share() -> Answers:
        found: Answers = {}
        for place, group in generator.generate([samples[i].messages for i in mine], Sampling(max_tokens)):
            found[mine[place]] = group[0]
            if breathe is not None:
                breathe(answered=f"{len(found)}/{len(mine)}")
        return found

    found = {place: one for part in together(share) for place, one in part.items()}
    return [found[place] for place in range(len(samples))]


def tasks_of(samples: Sequence[Sample]) -> Counter[str]:
    """How many samples there are of each task, and under "" of all; without tasks or with many, "" alone."""
    counts = Counter(str(sample.meta["task"]) for sample in samples if sample.meta.get("task"))
    told = counts if 1 < len(counts) <= MOST_TASKS else Counter()
    return Counter({"": len(samples), **told})


def figures(
    generator: LocalGenerator | MlxGenerator,
    samples: list[Sample],
    max_tokens: int,
    breathe: Breathe | None = None,
    together: Together = lambda part: [part()],
) -> dict[str, float]:
    """Shares of `samples`: answered right, also of each task; well-formed; ended by themselves."""
    found = answers(generator, samples, max_tokens, breathe, together)
    right = [_right(*one) for one in zip(samples, found, strict=True)]
    told = {
        "eval_accuracy": sum(right) / len(samples),
        "eval_format": sum(one.well_formed for one in found) / len(samples),
        "eval_stop": sum(one.finish == "stop" for one in found) / len(samples),
    }
    for task, count in tasks_of(samples).items():
        if task:
            own = sum(ok for ok, sample in zip(right, samples, strict=True) if str(sample.meta.get("task")) == task)
            told[f"eval_accuracy/{task}"] = own / count
    return told


def _right(sample: Sample, completion: Completion) -> bool:
    return completion.well_formed and verify(sample, completion).outcome == "right"
