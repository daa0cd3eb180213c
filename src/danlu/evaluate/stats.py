"""Statistics of right and wrong answers: intervals, paired tests, and how much a test could have seen.

Every function takes plain numbers or arrays and returns plain floats. Resampling is seeded, and it draws *counts of
distinct values* from a multinomial instead of indices: the same distribution as resampling rows, but 10,000 resamples
of 10,000 questions take milliseconds and no memory.

Departures: where all paired differences are equal the bootstrap interval would have no width, so the Bonett-Price
interval is given instead; the test for several completions of a question flips signs by question, of which McNemar's
exact test is the case of one completion.
Not covered: questions that depend on one another (several about one case); they make every interval too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
Numbers = Sequence[float] | np.ndarray


def _z(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))


def wilson(right: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, as fractions (Wilson 1927, JASA 22:209); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    z2 = _z(0.5 + confidence / 2) ** 2
    share = right / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(
    values: Numbers, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`.

    One value per independent unit: for several completions of a question pass each question's mean (clustered).
    ValueError for no values.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError("no values to resample")
    distinct, counts = np.unique(array, return_counts=True)
    rng = np.random.default_rng(seed)
    at_once = max(1, 4_000_000 // len(distinct))  # rows of counts held in memory
    means = [
        rng.multinomial(array.size, counts / array.size, size=min(at_once, resamples - start)) @ distinct / array.size
        for start in range(0, resamples, at_once)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: `gained` questions wrong -> right, `lost` right -> wrong."""
    from scipy.stats import binomtest

    return 1.0 if gained + lost == 0 else float(binomtest(gained, gained + lost, 0.5).pvalue)


def sign_flip(differences: Numbers, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p of a mean difference by flipping the signs of paired differences at random (Fisher 1935).

    With differences in {-1, 0, 1} this estimates McNemar's exact p. Smallest value: 1 / (resamples + 1).
    """
    sizes, counts = np.unique(np.abs(np.asarray(differences, dtype=float)), return_counts=True)
    observed = abs(float(np.sum(differences)))
    rng = np.random.default_rng(seed)
    heads = rng.binomial(counts, 0.5, size=(resamples, len(counts)))
    sums = np.abs((2 * heads - counts) @ sizes)
    return float((np.count_nonzero(sums >= observed - 1e-9) + 1) / (resamples + 1))


def bonett_price(gained: int, lost: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Adjusted Wald interval of a paired difference (Bonett and Price 2012, J. Educ. Behav. Stat. 37:479)."""
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = _z(0.5 + confidence / 2) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def paired_interval(
    base: Numbers, tuned: Numbers, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of mean(tuned) - mean(base), resampling questions; one value per question in both."""
    differences = np.asarray(tuned, dtype=float) - np.asarray(base, dtype=float)
    if differences.size and np.all(differences == differences[0]):
        n = differences.size
        return bonett_price(int(np.sum(differences > 0)), int(np.sum(differences < 0)), n, confidence)
    return bootstrap(differences, confidence=confidence, resamples=resamples, seed=seed)


def minimum_detectable(n: int, mean_square: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true difference that a paired test of `n` questions finds with probability `power`.

    `mean_square` is the mean squared difference per question: the share of discordant pairs for one completion.
    Solves Connor's sample size formula (1987, Biometrics 43:207) for the difference; never above 1. At least one
    discordant pair is assumed, and where the answer exceeds the discordance all pairs are taken to differ one way.
    """
    if n == 0:
        return 1.0
    square = max(mean_square, 1 / n)
    a, b = _z(1 - alpha / 2), _z(power)
    root = b * math.sqrt(square * max(0.0, n + b * b - a * a))
    found = (a * math.sqrt(square * n) + root) / (n + b * b)
    if found <= square:
        return found
    low, high = 0.0, 1.0  # discordance equal to the difference: bisect sqrt(n d) = a + b sqrt(1 - d)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.sqrt(n * middle) < a + b * math.sqrt(1 - middle) else (low, middle)
    return high


def questions_needed(difference: float, mean_square: float, *, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Questions at which `difference` would be found with probability `power` (Connor 1987); None for 0."""
    if difference == 0:
        return None
    square = max(mean_square, abs(difference))
    a, b = _z(1 - alpha / 2), _z(power)
    spread = a * math.sqrt(square) + b * math.sqrt(max(0.0, square - difference * difference))
    return math.ceil((spread / difference) ** 2)


def more_questions(n: int, difference: float, mean_square: float) -> int | None:
    """How many questions beyond `n` would tell, in two significant figures; None if the difference is 0."""
    needed = questions_needed(difference, mean_square)
    if needed is None:
        return None
    more = max(1, needed - n)
    step = 10 ** max(0, len(str(more)) - 2)
    return math.ceil(more / step) * step


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979, Scand. J. Stat. 6:65), in the order given."""
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, position in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[position]))
        adjusted[position] = largest
    return adjusted
