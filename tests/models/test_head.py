"""The chunked head against a plain log-softmax: values, gradients, entropy, temperature, bf16 against fp64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from danlu.models import head
from danlu.models.head import token_logprobs

ROWS, WIDTH, WORDS = 600, 32, 97  # more rows than a chunk, and not a multiple of what is widened at once


def inputs(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, WIDTH, generator=made).to(dtype).requires_grad_()
    weight = (torch.randn(WORDS, WIDTH, generator=made) * 0.3).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, WORDS, (ROWS,), generator=made)


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    return torch.log_softmax(hidden @ weight.t() / temperature, -1).gather(-1, targets[:, None]).squeeze(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("trained", [True, False])
def test_values_and_gradients_equal_the_plain_ones(temperature: float, trained: bool) -> None:
    """With another gradient for every token, as a policy loss has."""
    outside = torch.randn(ROWS, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    hidden, weight, targets = inputs(torch.float64)
    plain(hidden, weight, targets, temperature).mul(outside).sum().backward()
    ours, matrix, _ = inputs()
    matrix.requires_grad_(trained)
    found, entropies = token_logprobs(ours, matrix, targets, temperature)
    assert entropies is None
    torch.testing.assert_close(found.double(), plain(hidden, weight, targets, temperature), rtol=1e-5, atol=1e-5)
    found.mul(outside.float()).sum().backward()
    torch.testing.assert_close(ours.grad.double(), hidden.grad, rtol=1e-4, atol=1e-5)
    if trained:
        torch.testing.assert_close(matrix.grad.double(), weight.grad, rtol=1e-4, atol=1e-4)
    else:
        assert matrix.grad is None


def test_entropy_is_that_of_the_distribution() -> None:
    hidden, weight, targets = inputs()
    _, found = token_logprobs(hidden, weight, targets, 0.9, entropy=True)
    wanted = torch.distributions.Categorical(logits=(hidden @ weight.t()).double() / 0.9).entropy()
    torch.testing.assert_close(found.double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    assert not found.requires_grad


def test_bf16_gradients_are_rounded_but_not_biased() -> None:
    """Against fp64 from the same bf16 numbers: the error is small and its mean is nothing beside its spread."""
    hidden, weight, targets = inputs(torch.bfloat16)
    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    (-plain(exact_hidden, exact_weight, targets, 1.0).mean()).backward()
    (-token_logprobs(hidden, weight, targets)[0].mean()).backward()
    for ours, exact in ((hidden.grad, exact_hidden.grad), (weight.grad, exact_weight.grad)):
        error = ours.double() - exact
        assert error.norm() < 0.01 * exact.norm()
        assert error.mean().abs() < 4 * error.std() / error.numel() ** 0.5
        shrunk = float((ours.double() * exact).sum() / (exact * exact).sum())
        assert shrunk == pytest.approx(1, abs=2e-3)


def test_full_logits_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, wide = set(), set()
    before = head._log_softmax

    def watched(logits: torch.Tensor, temperature: float) -> Iterator[tuple[slice, torch.Tensor]]:
        chunks.add(len(logits))
        for rows, scores in before(logits, temperature):
            wide.add(len(scores))
            yield rows, scores

    monkeypatch.setattr(head, "_log_softmax", watched)
    hidden, weight, targets = inputs()
    token_logprobs(hidden, weight, targets)[0].sum().backward()
    assert chunks == {head.CHUNK, ROWS - head.CHUNK}
    assert max(wide) == head.ROWS


def test_no_gradient_is_made_where_none_is_wanted() -> None:
    hidden, weight, targets = inputs()
    with torch.no_grad():
        found, _ = token_logprobs(hidden, weight, targets)
    assert found.grad_fn is None


def test_nothing_supervised_is_nothing() -> None:
    hidden, weight, targets = inputs()
    found, _ = token_logprobs(hidden[:0], weight, targets[:0])
    assert found.shape == (0,)
    found.sum().backward()
