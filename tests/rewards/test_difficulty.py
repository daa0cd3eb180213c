"""pass@k, groups of equal rewards, and the filter of prompts on a model that knows four answers."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from danlu.errors import DanluError
from danlu.generate import Sampling
from danlu.generate.local import LocalGenerator
from danlu.models.load import load
from danlu.recipe import Filter, Grpo, Model
from danlu.records import Completion, Message, Sample
from danlu.rewards.difficulty import counts, flat_chance, pass_at_k, passable, select
from tiny_models import CHATS, trained

sys.path.insert(0, str(Path(__file__).parent))
from writing import THINK, asked, said


def test_pass_at_k_and_flat_groups_are_shares_of_subsets() -> None:
    values = [1.0, 1.0, 0.1, 0.1, 0.1, 0.0]
    for k in range(1, 7):
        subsets = list(itertools.combinations(values, k))
        flat = sum(len(set(subset)) == 1 for subset in subsets) / len(subsets)
        assert flat_chance(values, k) == pytest.approx(flat, abs=1e-12)
        hits = sum(1.0 in subset for subset in subsets) / len(subsets)
        assert pass_at_k(6, 2, k) == pytest.approx(hits, abs=1e-12)
    draws = list(itertools.product([1.0, 0.0, 0.0], repeat=4))  # fewer values than a group: with replacement
    assert flat_chance([1.0, 0.0, 0.0], 4) == pytest.approx(sum(len(set(draw)) == 1 for draw in draws) / len(draws))
    with pytest.raises(ValueError, match="pass@7 of 6"):
        pass_at_k(6, 1, 7)


def test_select_keeps_the_bounds_and_the_order() -> None:
    samples = [asked(id=name) for name in "abcd"]
    shares = {"a": 0.9, "b": 0.0, "c": 0.1, "d": 1.0}
    assert [sample.id for sample in select(samples, shares, 0.1, 0.9)] == ["a", "c"]


class Scripted:
    """A Generator that answers the n-th sample right n times out of so many; it remembers what it was asked."""

    name, think = "scripted", THINK

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[str] = []
        self.stop_after = stop_after

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        for place in reversed(range(len(prompts))):  # in any order
            if self.stop_after is not None and len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            question = prompts[place][-1]["content"]
            self.asked.append(question)
            right = int(question)
            yield place, [said("肺炎" if i < right else "胃炎") for i in range(sampling.samples)]


def questions() -> list[Sample]:
    return [asked(question=str(n), id=f"q{n}") for n in range(5)]


def settings(**fields: Any) -> Grpo:
    return Grpo(filter=Filter(**{"samples": 4, "low": 0.25, "high": 0.75, **fields}))


def test_what_is_too_easy_or_too_hard_goes() -> None:
    kept = passable(Scripted(), questions(), settings())
    assert [sample.id for sample in kept] == ["q1", "q2", "q3"]
    assert passable(Scripted(), questions(), Grpo()) == questions()  # no filter, nothing asked
    with pytest.raises(DanluError, match=r"keeps none of 2 prompts: 1 are too hard and 1 too easy") as caught:
        passable(Scripted(), [questions()[0], questions()[4]], settings())
    assert "grpo.filter.low" in caught.value.hint


def test_an_interrupted_filter_asks_nothing_twice(tmp_path: Path) -> None:
    cache = tmp_path / "filter.jsonl"
    first = Scripted(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        passable(first, questions(), settings(), cache=cache)
    assert first.asked == ["4", "3"]
    with cache.open("a", encoding="utf-8") as file:
        file.write('{"id": "q2", "ke')  # killed while it wrote
    second = Scripted()
    kept = passable(second, questions(), settings(), cache=cache)
    assert second.asked == ["2", "1", "0"]
    assert [sample.id for sample in kept] == ["q1", "q2", "q3"]
    third = Scripted()
    assert passable(third, questions(), settings(), cache=cache) == kept
    assert third.asked == []
    rows = [json.loads(line) for line in cache.read_text("utf-8").splitlines()]
    assert sorted((row["id"], row["right"], row["samples"]) for row in rows) == [(f"q{n}", n, 4) for n in range(5)]


def test_another_question_or_sampling_is_asked_again(tmp_path: Path) -> None:
    cache = tmp_path / "filter.jsonl"
    passable(Scripted(), questions(), settings(), cache=cache)
    for changed, samples in ((settings(samples=8), questions()), (settings(), [asked("胃炎", "2", id="q2")])):
        again = Scripted()
        passable(again, samples, changed, cache=cache)
        assert len(again.asked) == len(samples)


def test_on_a_model_that_knows_four_answers(tmp_path: Path) -> None:
    """It thinks and answers what it memorised, at a temperature at which it is sometimes wrong."""
    generator = LocalGenerator(load(Model(id=str(trained()), dtype="fp32")))
    known = [
        Sample(f"k{n}", ({"role": "user", "content": question},), target=answer)
        for n, (question, _, answer) in enumerate(CHATS)
    ]
    other = [Sample("x", ({"role": "user", "content": CHATS[0][0]},), target="青霉素")]
    made = Grpo(max_completion=32, temperature=1.2, filter=Filter(samples=8, low=0.1, high=1.0))
    kept = passable(generator, [*known, *other], made, seed=3, cache=tmp_path / "filter.jsonl")
    assert "x" not in {sample.id for sample in kept}
    assert len(kept) >= 2
    sampling = Sampling(32, 1.2, 1.0, 8, 3)
    assert counts(generator, known, sampling) == counts(generator, known, sampling)  # draws are fixed by the seed
