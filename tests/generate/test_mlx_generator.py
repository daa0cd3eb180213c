"""The generator over mlx-lm against our own decoder: the same tokens, log-probs and ends; filters as transformers'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from danlu.errors import DanluError
from danlu.generate import Sampling
from danlu.generate.local import LocalGenerator
from danlu.generate.open import open_generator
from danlu.models.load import load
from danlu.recipe import Model, Recipe
from tiny_models import CHATS, adapter, trained

mx = pytest.importorskip("mlx.core", exc_type=ImportError)
pytest.importorskip("mlx_lm", exc_type=ImportError)
from danlu.generate import mlx  # noqa: E402

ASKED = [[{"role": "user", "content": question + more}] for question, _, _ in CHATS for more in ("", " Tell me more.")]


@pytest.fixture(scope="module")
def spec() -> Model:
    return Model(id=str(trained()), dtype="fp32")


@pytest.fixture(scope="module")
def ours(spec: Model) -> LocalGenerator:
    return LocalGenerator(load(spec))


@pytest.fixture(scope="module")
def theirs(spec: Model) -> mlx.MlxGenerator:
    return mlx.opened(spec, batch=3)  # fewer than prompts: rows join and leave


@pytest.mark.parametrize(
    "sampling",
    [Sampling(40), Sampling(12), Sampling(40, repetition_penalty=1.3), Sampling(40, stop=("多喝", "two"))],
    ids=["greedy", "cut", "penalty", "stop"],
)
def test_greedy_answers_are_our_own_decoders(
    ours: LocalGenerator, theirs: mlx.MlxGenerator, sampling: Sampling
) -> None:
    wanted, found = dict(ours.generate(ASKED, sampling)), dict(theirs.generate(ASKED, sampling))
    assert wanted.keys() == found.keys()
    for place, (one,) in wanted.items():
        (other,) = found[place]
        assert (one.tokens, one.text, one.finish) == (other.tokens, other.text, other.finish)
        assert (one.reasoning, one.answer, one.well_formed) == (other.reasoning, other.answer, other.well_formed)
        if sampling.repetition_penalty == 1:
            assert other.logprobs == pytest.approx(one.logprobs, abs=1e-3)
    assert {one.finish for (one,) in wanted.values()} >= ({"length"} if sampling.max_tokens == 12 else {"stop"})


def test_an_adapter_is_used_unmerged(spec: Model, tmp_path: Path) -> None:
    folder = adapter(trained(), tmp_path / "adapter", use_rslora=True)
    recipe = Recipe.model_validate({"name": "r", "model": spec.model_dump(), "eval": {"generate": "mlx"}})
    with open_generator(str(folder), recipe) as generator:
        assert isinstance(generator, mlx.MlxGenerator)
        found = dict(generator.generate(ASKED[:3], Sampling(16)))
    wanted = dict(LocalGenerator(load(spec, str(folder))).generate(ASKED[:3], Sampling(16)))
    assert [one.tokens for (one,) in found.values()] == [wanted[place][0].tokens for place in found]
    with pytest.raises(DanluError, match="use_dora"):
        mlx.opened(spec, str(adapter(trained(), tmp_path / "dora", use_dora=True)))


def test_draws_do_not_depend_on_the_batch(theirs: mlx.MlxGenerator) -> None:
    sampling = Sampling(20, temperature=1.5, samples=2, seed=5)
    first = dict(theirs.generate(ASKED[:4], sampling))
    alone = {n: next(iter(theirs.generate([ASKED[n]], sampling)))[1] for n in range(4)}
    assert {n: [one.tokens for one in group] for n, group in first.items()} == {
        n: [one.tokens for one in group] for n, group in alone.items()
    }
    assert len({one.tokens for group in first.values() for one in group}) > 4


def test_a_stream_says_what_generate_says(theirs: mlx.MlxGenerator) -> None:
    _, (whole,) = next(iter(theirs.generate(ASKED[:1], Sampling(40))))
    said = {"reasoning": "", "answer": ""}
    for kind, text in theirs.chat_stream(ASKED[0], Sampling(40)):
        said[kind] += text
    assert said == {"reasoning": whole.reasoning, "answer": whole.answer}


def test_the_likeliest_letter_is_our_own(ours: LocalGenerator, theirs: mlx.MlxGenerator) -> None:
    letters = [["A", "B", "C"]] * len(ASKED)
    assert dict(theirs.choose(ASKED, letters)) == dict(ours.choose(ASKED, letters))


def test_filters_are_those_of_transformers() -> None:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.randn(6, 200, generator=torch.Generator().manual_seed(1)) * 3
    logprobs = torch.log_softmax(scores, -1)
    for top_k, top_p, min_p in ((0, 0.8, 0.0), (7, 1.0, 0.0), (0, 1.0, 0.05), (20, 0.9, 0.02)):
        wanted = TemperatureLogitsWarper(0.7)(None, logprobs)
        wanted = TopKLogitsWarper(top_k)(None, wanted) if top_k else wanted
        wanted = TopPLogitsWarper(top_p)(None, wanted) if top_p < 1 else wanted
        wanted = MinPLogitsWarper(min_p)(None, wanted) if min_p else wanted
        sampling = Sampling(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p)
        found = np.array(mx.softmax(mlx.filtered(mx.array(logprobs.numpy()), sampling), axis=-1))
        np.testing.assert_allclose(found, torch.softmax(wanted, -1).numpy(), atol=1e-5)


def test_draws_follow_the_distribution() -> None:
    """4,000 draws of one sampler: shares within 4 standard errors of the filtered probabilities."""
    logprobs = mx.log(mx.array([[0.5, 0.25, 0.15, 0.1]]))
    sampling = Sampling(temperature=1.0, top_k=3)
    draw = mlx.sampler(sampling, 1)
    assert draw is not None
    drawn = np.bincount([int(x) for x in mx.concatenate([draw(logprobs) for _ in range(4000)])], minlength=4) / 4000
    wanted = np.array([0.5, 0.25, 0.15, 0.0]) / 0.9
    assert (np.abs(drawn - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / 4000)).all()
