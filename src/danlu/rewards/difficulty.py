"""How hard questions are for a model, by sampling: pass@k, groups that teach nothing, prompts worth training on.

GRPO learns only from groups with both right and wrong completions. `passable` asks each prompt a few times before
training and keeps those that the model answers right sometimes (as DAPO and others filter; Yu et al. 2025). Right is
what `verify` finds right in a well-formed completion, whatever the recipe's rewards are.
Departure from dynamic sampling: filtered once, against the model that training starts from, and kept in a file, so
that a resumed run asks nothing twice. Not covered: prompts that become too easy on the way.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danlu import display
from danlu.errors import DanluError
from danlu.generate import Generator, Sampling
from danlu.recipe import Grpo
from danlu.records import Completion, Sample
from danlu.rewards.verify import VERSION, verify
from danlu.run import digest, read_jsonl, write_jsonl


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of `k` samples is right, `c` of `n` being right (Chen et al. 2021, arXiv:2107.03374).

    1 - C(n - c, k) / C(n, k). ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@{k} of {n} samples with {c} right")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def flat_chance(values: Sequence[float], group: int) -> float:
    """Chance that `group` completions of a prompt have equal rewards, of which `values` are a sample.

    Drawn without replacement where there are enough values (unbiased), else with (too high for few values).
    """
    counts = Counter(round(value, 9) for value in values).values()
    n = len(values)
    if n >= group:
        return sum(math.comb(count, group) for count in counts) / math.comb(n, group)
    return sum((count / n) ** group for count in counts)


def is_right(sample: Sample, completion: Completion) -> bool:
    """Whether a completion is well-formed and verified right."""
    return completion.well_formed and verify(sample, completion).outcome == "right"


def select(samples: Sequence[Sample], shares: dict[str, float], low: float, high: float) -> list[Sample]:
    """The samples whose share of right answers (by id) lies in [low, high], in order."""
    return [sample for sample in samples if low <= shares[sample.id] <= high]


def passable(
    generator: Generator, samples: Sequence[Sample], settings: Grpo, *, seed: int = 0, cache: Path | None = None
) -> list[Sample]:
    """The samples that the model of `generator` answers right as often as `settings.filter` asks; all without one.

    Asked with the sampling of training. `cache`: a file (of the run) where each prompt's count is written as it is
    known; what stands there is not asked again. DanluError when no prompt is left.
    """
    wanted = settings.filter
    if wanted is None:
        return list(samples)
    sampling = Sampling(settings.max_completion, settings.temperature, settings.top_p, wanted.samples, seed)
    shares = {name: right / wanted.samples for name, right in counts(generator, samples, sampling, cache).items()}
    kept = select(samples, shares, wanted.low, wanted.high)
    easy = sum(shares[sample.id] > wanted.high for sample in samples)
    told = f"{len(samples) - len(kept) - easy} are too hard and {easy} too easy for the model as it is"
    if not kept:
        raise DanluError(
            f"grpo.filter keeps none of {len(samples)} prompts: {told}",
            "widen grpo.filter.low and high, use other prompts, or start from a model that knows the form (--from)",
        )
    display.say(f"filter: {len(kept)} of {len(samples)} prompts kept; {told}")
    return kept


def counts(
    generator: Generator, samples: Sequence[Sample], sampling: Sampling, cache: Path | None = None
) -> dict[str, int]:
    """Right answers of `sampling.samples` to each sample, by id."""
    keys = {sample.id: _key(sample, sampling) for sample in samples}
    known = _known(cache, keys) if cache else {}
    todo = [sample for sample in samples if sample.id not in known]
    if not todo:
        return {sample.id: known[sample.id] for sample in samples}
    with display.task("filter", len(samples)) as progress:
        progress.advance(len(known))
        for place, found in generator.generate([sample.messages for sample in todo], sampling):
            sample = todo[place]
            known[sample.id] = sum(is_right(sample, completion) for completion in found)
            if cache:
                row = {"id": sample.id, "key": keys[sample.id], "right": known[sample.id], "samples": sampling.samples}
                with cache.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            progress.advance(1)
    return known


def _key(sample: Sample, sampling: Sampling) -> str:
    """What the count of a sample depends on besides the model."""
    asked: list[Any] = [sample.messages, sample.target, sample.aliases, sample.options, sample.distractors]
    drawn = [getattr(sampling, name) for name in sampling.__slots__]
    return digest([asked, drawn, VERSION])


def _known(cache: Path, keys: dict[str, str]) -> dict[str, int]:
    """The counts that a file holds for these keys; what else stands there is dropped, a torn last line included."""
    rows = [row for row in read_jsonl(cache) if keys.get(str(row.get("id"))) == row.get("key")]
    cache.parent.mkdir(parents=True, exist_ok=True)
    staged = cache.with_name(f".{cache.name}.new")
    write_jsonl(staged, rows)
    staged.replace(cache)
    return {str(row["id"]): int(row["right"]) for row in rows}
