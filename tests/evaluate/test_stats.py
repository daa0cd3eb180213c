"""Statistics against scipy and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats

from danlu.evaluate import stats


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (150, 300), (299, 300)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_scipys(right: int, n: int, confidence: float) -> None:
    theirs = scipy.stats.binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert stats.wilson(right, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_wilson_of_nothing_is_everything() -> None:
    assert stats.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 0), (3, 9), (40, 12), (100, 100)])
def test_mcnemar_is_the_binomial_tail(gained: int, lost: int) -> None:
    n, k = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert stats.mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail), abs=1e-9)
    assert stats.mcnemar(gained, lost) == pytest.approx(stats.mcnemar(lost, gained), abs=1e-12)


@pytest.mark.parametrize("kind", ["binary", "thirds", "continuous"])
def test_bootstrap_agrees_with_scipy(kind: str) -> None:
    rng = np.random.default_rng(3)
    values = {
        "binary": rng.binomial(1, 0.3, 200),
        "thirds": rng.binomial(3, 0.6, 150) / 3,
        "continuous": rng.normal(size=180),
    }[kind].astype(float)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=1)
    ours = stats.bootstrap(values, seed=1)
    spread = values.std() / math.sqrt(len(values))
    assert ours == pytest.approx(
        tuple(theirs.confidence_interval), abs=0.1 * spread + 1.5 / len(values)
    )  # binary means lie on a grid of 1/n
    assert ours == stats.bootstrap(values, seed=1)
    assert kind != "continuous" or ours != stats.bootstrap(values, seed=2)


def test_bootstrap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        stats.bootstrap([])


@pytest.mark.parametrize(("gained", "lost"), [(4, 1), (9, 3), (20, 18), (30, 12)])
def test_sign_flip_estimates_mcnemar(gained: int, lost: int) -> None:
    differences = [1.0] * gained + [-1.0] * lost + [0.0] * 50
    p = stats.mcnemar(gained, lost)
    assert stats.sign_flip(differences) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 10_000) + 1e-3)


def test_sign_flip_is_exact_enough_on_uneven_differences() -> None:
    differences = [1.0, 0.5, 0.25, -0.25, 0.75]
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1)
    exact = np.mean(np.abs(np.array(differences) @ signs) >= sum(differences) - 1e-9)
    assert stats.sign_flip(differences) == pytest.approx(exact, abs=0.015)


def test_few_questions_never_convince() -> None:
    assert stats.sign_flip([0.5, 0.5, 0.25]) > 0.2
    low, high = stats.paired_interval([0, 0, 0], [1, 1, 1])
    assert low < 0.9
    assert high == 1.0


def test_equal_answers_have_an_interval_with_width() -> None:
    low, high = stats.paired_interval([1, 0] * 50, [1, 0] * 50)
    assert low == pytest.approx(-high, abs=1e-12)
    assert 0 < high < 0.05


def test_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        base = rng.binomial(1, 0.5, 120)
        tuned = np.where(rng.random(120) < 0.3, rng.binomial(1, 0.8, 120), base)  # true difference: 0.3 * 0.3
        low, high = stats.paired_interval(base, tuned, resamples=1000, seed=trial)
        covered += low <= 0.09 <= high
    assert covered / 300 == pytest.approx(0.95, abs=0.035)


@pytest.mark.parametrize(("n", "discordant"), [(50, 0.4), (300, 0.2), (1000, 0.05), (5000, 0.3)])
def test_minimum_detectable_inverts_the_sample_size(n: int, discordant: float) -> None:
    found = stats.minimum_detectable(n, discordant)
    a, b = scipy.stats.norm.ppf(0.975), scipy.stats.norm.ppf(0.8)
    if found < discordant:
        needed = (a * math.sqrt(discordant) + b * math.sqrt(discordant - found**2)) ** 2 / found**2
        assert needed == pytest.approx(n, rel=1e-9)
        assert stats.questions_needed(found, discordant) in (n, n + 1)


def test_minimum_detectable_has_the_promised_power() -> None:
    n, discordant = 300, 0.25
    effect = stats.minimum_detectable(n, discordant)
    rng = np.random.default_rng(1)
    up = (discordant + effect) / 2
    draws = rng.multinomial(n, [up, discordant - up, 1 - discordant], size=600)
    power = np.mean([stats.mcnemar(int(g), int(lost)) < 0.05 for g, lost, _ in draws])
    assert 0.72 <= power <= 0.85  # the exact test is a little conservative


@pytest.mark.parametrize("n", [1, 5, 20, 100])
def test_minimum_detectable_without_discordance(n: int) -> None:
    found = stats.minimum_detectable(n, 0.0)
    a, b = scipy.stats.norm.ppf(0.975), scipy.stats.norm.ppf(0.8)
    assert found == 1.0 or math.sqrt(n * found) == pytest.approx(a + b * math.sqrt(1 - found), abs=1e-9)
    assert stats.minimum_detectable(0, 0.5) == 1.0


def test_more_questions() -> None:
    assert stats.more_questions(300, 0.0, 0.1) is None
    more = stats.more_questions(300, 0.01, 0.07)
    assert more is not None
    assert len(str(more).rstrip("0")) <= 2
    assert more >= stats.questions_needed(0.01, 0.07) - 300  # type: ignore[operator]
    assert stats.more_questions(10_000, 0.5, 0.6) == 1


@pytest.mark.parametrize(
    ("values", "adjusted"),
    [([0.01], [0.01]), ([0.04, 0.01, 0.03], [0.06, 0.03, 0.06]), ([0.5, 0.9], [1.0, 1.0]), ([], [])],
)
def test_holm(values: list[float], adjusted: list[float]) -> None:
    assert stats.holm(values) == pytest.approx(adjusted)
