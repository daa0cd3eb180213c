"""Picking a token: every option against transformers' logits processors, as whole distributions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from danlu.generate import Sampling
from danlu.generate.pick import BLOCK, pick, top

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 1.7},
    "top-p": {"top_p": 0.8},
    "tiny top-p": {"top_p": 1e-6},
    "wide top-p": {"top_p": 0.999, "temperature": 1.5},
    "top-k": {"top_k": 7},
    "top-k 1": {"top_k": 1},
    "top-k of everything": {"top_k": 10**6},
    "min-p": {"min_p": 0.05},
    "min-p 1": {"min_p": 1.0},
    "penalty": {"repetition_penalty": 1.4},
    "reward": {"repetition_penalty": 0.7},
    "top-k, top-p": {"top_k": 20, "top_p": 0.7, "temperature": 0.8},
    "top-p, min-p": {"top_p": 0.95, "min_p": 0.02, "temperature": 1.3},
    "all": {"temperature": 0.9, "repetition_penalty": 1.2, "top_k": 30, "top_p": 0.9, "min_p": 0.03},
}
SEEN = [3, 5, 8, 13, 21, 34]


def logits_of(size: int, spread: float) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64) * spread


def wanted(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that transformers samples from, in fp64 and in the order in which `generate` filters."""
    filters: list[Any] = []
    if sampling.repetition_penalty != 1:
        filters.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    filters.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        filters.append(TopKLogitsWarper(min(sampling.top_k, len(logits))))
    if sampling.top_p < 1:
        filters.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        filters.append(MinPLogitsWarper(sampling.min_p))
    return LogitsProcessorList(filters)(torch.tensor([SEEN]), logits[None].clone()).softmax(-1)[0]


def found(logits: Tensor, sampling: Sampling, draws: int) -> tuple[Tensor, Tensor]:
    """(share of an even grid of draws that gives each token, the log-prob told for each token)."""
    shares, told = torch.zeros(len(logits), dtype=torch.float64), torch.full((len(logits),), float("nan"))
    seen = torch.zeros(len(logits), dtype=torch.bool)
    seen[SEEN] = True
    for numbers in ((torch.arange(draws) + 0.5) / draws).split(500):
        rows = logits.float().expand(len(numbers), -1).clone()
        ids, logprobs = pick(rows, sampling, numbers, seen.expand(len(numbers), -1))
        shares += torch.bincount(ids, minlength=len(logits)) / draws
        told[ids] = logprobs
    return shares, told


@pytest.mark.parametrize(
    ("size", "spread", "draws"),
    [(40, 2.0, 4000), (BLOCK * 16 + 5, 3.0, 1000), (9001, 1.0, 300)],
    ids=["small", "in blocks", "flat"],
)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_distribution_is_that_of_transformers(name: str, size: int, spread: float, draws: int) -> None:
    sampling = Sampling(**{"temperature": 1.0} | OPTIONS[name])
    logits = logits_of(size, spread)
    exact = wanted(logits, sampling)
    shares, told = found(logits, sampling, draws)
    assert set(shares.nonzero().flatten().tolist()) <= set(exact.nonzero().flatten().tolist())
    # each token owns an interval of [0, 1): a grid counts its length to within a step, fp32 moves its ends a little
    assert float((shares - exact).abs().max()) <= 1.01 / draws + 1e-5
    seen = shares > 0
    own = (logits / sampling.temperature).log_softmax(-1)
    torch.testing.assert_close(told[seen].double(), own[seen], rtol=0, atol=1e-5)


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_takes_the_likeliest_and_tells_its_log_prob(penalty: float) -> None:
    logits = logits_of(200, 3.0)
    logits[SEEN] = torch.tensor([12.0, 11.5, 3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    logits[100] = 9.0
    seen = torch.zeros(1, 200, dtype=torch.bool)
    seen[0, SEEN] = True
    sampling = Sampling(repetition_penalty=penalty)
    ids, logprobs = pick(logits.float()[None], sampling, None, seen)
    exact = wanted(logits, replace(sampling, temperature=1.0))
    assert ids.tolist() == [int(exact.argmax())] == [SEEN[0] if penalty == 1 else 100]
    torch.testing.assert_close(logprobs.double(), logits.log_softmax(-1)[ids], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [4, BLOCK * 20 + 1])
def test_the_ends_of_the_unit_interval_stay_inside(size: int) -> None:
    logits = torch.full((3, size), -200.0)  # no weight in fp32
    logits[:, 1], logits[:, 2] = 3.0, 2.0
    draws = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert pick(logits.clone(), Sampling(temperature=1.0), draws)[0].tolist() == [1, 1, 2]
    assert pick(logits.clone(), Sampling(temperature=1.0, top_p=0.5), draws)[0].tolist() == [1, 1, 1]
    flipped = pick(logits.flip(-1).clone(), Sampling(temperature=1.0), draws)[0]
    assert flipped.tolist() == [size - 3, size - 2, size - 2]


def test_rows_have_their_own_draws_and_filters() -> None:
    logits = torch.stack([logits_of(9001, 0.1), logits_of(9001, 9.0), logits_of(9001, 3.0)]).float()
    sampling = Sampling(temperature=1.0, top_p=0.9)
    draws = torch.tensor([0.2, 0.5, 0.8])
    together = pick(logits.clone(), sampling, draws)
    for row in range(3):
        alone = pick(logits[row : row + 1].clone(), sampling, draws[row : row + 1])
        assert alone[0].tolist() == together[0][row : row + 1].tolist()
        torch.testing.assert_close(alone[1], together[1][row : row + 1])


@pytest.mark.parametrize("size", [3, 100, 5000, 20_001, 64_000])
@pytest.mark.parametrize("k", [1, 20, 64])
def test_the_largest_by_blocks(size: int, k: int) -> None:
    weights = torch.rand(4, size, generator=torch.Generator().manual_seed(0)) ** 9
    k = min(k, size)
    values, places = top(weights, k)
    assert torch.equal(values, weights.topk(k, -1).values)
    assert torch.equal(weights.gather(-1, places), values)


def test_half_precision_logits() -> None:
    logits = logits_of(500, 3.0).to(torch.bfloat16)[None]
    ids, logprobs = pick(logits.clone(), Sampling(temperature=1.0), torch.tensor([0.4]))
    assert logprobs.dtype == torch.float32
    assert float(logprobs) == pytest.approx(float(logits.double().log_softmax(-1)[0, ids]), abs=1e-5)
