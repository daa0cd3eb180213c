"""Statistics of right and wrong answers: intervals, paired tests, and how much a test could have seen.

Every function takes plain numbers or arrays and returns plain floats (only `subgroups`, at the end, reads rows). A
value belongs to a question; `clusters` names what questions depend on (a stem that repeats, a case), one label a
question, and is the unit that is resampled, flipped and counted. Resampling is seeded, and it draws *counts of distinct
values* from a multinomial instead of indices: the same distribution as resampling rows, but 10,000 resamples of 10,000
questions take milliseconds and no memory.

Which interval, by its coverage of the truth (`python -m bench.statistics`): Wilson for a share of right answers, Wilson
at the effective number of questions for means of several answers or clusters (`share_interval`); for a paired
difference Tango's score interval, or Student's t over clusters (`paired_interval`).
Departures: the percentile bootstrap stays on offer (`method="bootstrap"`) but is not what is chosen: it covers 90-93 %
below 50 clusters, and BCa covers less still; Bonett-Price is wider than Tango where few pairs differ. The test for
several completions of a question flips signs by question, of which McNemar's exact test is the case of one completion.
Not covered: dependence that no label names, it makes every interval too narrow; fewer than 20 clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from danlu.errors import DanluError

RESAMPLES = 10_000
SMALL = 20  # questions below which a subgroup says nothing
Numbers = Sequence[float] | np.ndarray
Clusters = Sequence[Hashable] | np.ndarray
Test = Literal["mcnemar", "sign_flip"]


def _z(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))


def _t(probability: float, freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def by_cluster(values: Numbers, clusters: Clusters | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(sums, sizes) of the values of each cluster, in order of appearance; each value its own cluster for None.

    ValueError when there is not one label a value.
    """
    array = np.asarray(values, dtype=float)
    if clusters is None:
        return array, np.ones(array.size)
    if len(clusters) != array.size:
        raise ValueError(f"{len(clusters)} cluster labels for {array.size} values")
    numbers: dict[Hashable, int] = {}
    place = [numbers.setdefault(label, len(numbers)) for label in clusters]
    if not place:
        return array, np.ones(0)
    return np.bincount(place, weights=array), np.bincount(place).astype(float)


def _robust_variance(sums: np.ndarray, sizes: np.ndarray) -> float:
    """Variance of sums.sum() / sizes.sum() between clusters (Cochran 1977, Sampling Techniques, 6.3)."""
    rest = sums - sums.sum() / sizes.sum() * sizes
    many = len(sums)
    return float(rest @ rest) * many / (many - 1) / float(sizes.sum()) ** 2


# ---- intervals


def wilson(right: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, as fractions (Wilson 1927, JASA 22:209); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    return _score_interval(right / n, n, _z(0.5 + confidence / 2))


def _score_interval(share: float, n: float, quantile: float) -> tuple[float, float]:
    z2 = quantile * quantile
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def share_interval(
    values: Numbers, clusters: Clusters | None = None, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean of `values` in 0..1, one a question: right or wrong, or the mean of several answers.

    Wilson's at the effective number of questions m (1 - m) / v with mean m and v its variance between clusters, and
    Student's t for z (Dean and Pagano 2015, J. Surv. Stat. Methodol. 3:484); plain Wilson for 0 and 1 without clusters;
    (0, 1) for no values. ValueError as `by_cluster`.
    """
    sums, sizes = by_cluster(values, clusters)
    total = float(sizes.sum())
    if len(sums) < 2:
        return wilson(float(sums.sum()), 1, confidence) if total == 1 else (0.0, 1.0)
    if clusters is None and np.all((sums == 0) | (sums == 1)):
        return wilson(float(sums.sum()), len(sums), confidence)
    mean = float(sums.sum()) / total
    variance = _robust_variance(sums, sizes)
    if variance < 1e-18 or not 0 < mean < 1:  # all alike: as many coins as clusters
        return wilson(mean * len(sums), len(sums), confidence)
    return _score_interval(mean, mean * (1 - mean) / variance, _t(0.5 + confidence / 2, len(sums) - 1))


def bootstrap(
    values: Numbers,
    clusters: Clusters | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (Efron and Tibshirani 1993, ch. 13), resampling clusters.

    One value per question: for several completions of a question pass its mean. ValueError for no values, and as
    `by_cluster`.
    """
    sums, sizes = by_cluster(values, clusters)
    if sums.size == 0:
        raise ValueError("no values to resample")
    distinct, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    at_once = max(1, 4_000_000 // len(distinct))  # rows of counts held in memory
    drawn = [
        rng.multinomial(len(sums), counts / len(sums), size=min(at_once, resamples - start)) @ distinct
        for start in range(0, resamples, at_once)
    ]
    totals = np.concatenate(drawn)
    tail = (1 - confidence) / 2
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [tail, 1 - tail])
    return float(low), float(high)


def bonett_price(gained: int, lost: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Adjusted Wald interval of a paired difference (Bonett and Price 2012, J. Educ. Behav. Stat. 37:479)."""
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = _z(0.5 + confidence / 2) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def tango(gained: int, lost: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a paired difference of shares (Tango 1998, Stat. Med. 17:891); (-1, 1) for n = 0.

    Holds the differences that the score test does not reject; the test of 0 is McNemar's without correction, so the
    interval leaves out 0 wherever McNemar's exact p is below 1 - confidence.
    """
    if n == 0:
        return -1.0, 1.0
    quantile = _z(0.5 + confidence / 2)
    return -_tango_upper(lost, gained, n, quantile), _tango_upper(gained, lost, n, quantile)


def _tango_upper(gained: int, lost: int, n: int, quantile: float) -> float:
    low, high = (gained - lost) / n, 1.0
    for _ in range(60):
        d = (low + high) / 2
        linear = (2 * n - gained + lost) * d - gained - lost  # the share lost under d is the root of a quadratic
        share = (math.sqrt(max(0.0, linear * linear + 8 * n * lost * d * (1 - d))) - linear) / (4 * n)
        spread = math.sqrt(max(0.0, n * (2 * share + d * (1 - d))))
        low, high = (d, high) if n * d - gained + lost <= quantile * spread else (low, d)
    return high


def paired_interval(
    base: Numbers,
    tuned: Numbers,
    clusters: Clusters | None = None,
    *,
    confidence: float = 0.95,
    method: Literal["covering", "bootstrap"] = "covering",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of mean(tuned) - mean(base); one value in 0..1 per question in both, as fractions.

    "covering": Tango's interval where every difference is -1, 0 or 1 and there are no clusters, else Student's t over
    clusters with their robust variance (Cochran 1977), or Tango's of the clusters' signs where all differences are
    equal. "bootstrap": percentiles, resampling clusters (`resamples`, `seed`). ValueError as `by_cluster`.
    """
    differences = np.asarray(tuned, dtype=float) - np.asarray(base, dtype=float)
    sums, sizes = by_cluster(differences, clusters)
    many = len(sums)
    up, down = int(np.sum(sums > 1e-12)), int(np.sum(sums < -1e-12))
    if clusters is None and method == "covering" and np.all(np.isin(differences, (-1.0, 0.0, 1.0))):
        return tango(up, down, many, confidence)
    if many < 2 or np.ptp(sums / sizes) < 1e-12:
        return tango(up, down, many, confidence)
    if method == "bootstrap":
        return bootstrap(differences, clusters, confidence=confidence, resamples=resamples, seed=seed)
    middle = float(sums.sum() / sizes.sum())
    half = _t(0.5 + confidence / 2, many - 1) * math.sqrt(_robust_variance(sums, sizes))
    return max(-1.0, middle - half), min(1.0, middle + half)


# ---- tests


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test (1947, Psychometrika 12:153): the binomial tail of the discordant pairs.

    `gained` questions went wrong -> right, `lost` right -> wrong.
    """
    from scipy.stats import binomtest

    return 1.0 if gained + lost == 0 else float(binomtest(gained, gained + lost, 0.5).pvalue)


def sign_flip(
    differences: Numbers, clusters: Clusters | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Two-sided p of a mean difference by flipping the signs of paired differences at random (Fisher 1935).

    All differences of a cluster flip together. With differences in {-1, 0, 1} and no clusters this estimates McNemar's
    exact p. Smallest value: 1 / (resamples + 1). ValueError as `by_cluster`.
    """
    sums = by_cluster(differences, clusters)[0]
    sizes, counts = np.unique(np.round(np.abs(sums), 12), return_counts=True)  # thirds come with rounding errors
    observed = abs(float(np.sum(sums)))
    rng = np.random.default_rng(seed)
    at_once = max(1, 4_000_000 // max(1, len(sizes)))
    reached = 0
    for start in range(0, resamples, at_once):
        heads = rng.binomial(counts, 0.5, size=(min(at_once, resamples - start), len(counts)))
        reached += int(np.count_nonzero(np.abs((2 * heads - counts) @ sizes) >= observed - 1e-9))
    return float((reached + 1) / (resamples + 1))


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979, Scand. J. Stat. 6:65), in the order given."""
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, position in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[position]))
        adjusted[position] = largest
    return adjusted


# ---- what a test could have seen


def design_effect(values: Numbers, clusters: Clusters | None = None) -> float:
    """How many times larger the variance of the mean is than of as many independent values (Kish 1965); 1 unclustered.

    n questions in clusters tell as much as n / design_effect independent ones. ValueError as `by_cluster`.
    """
    array = np.asarray(values, dtype=float)
    sums, sizes = by_cluster(array, clusters)
    if clusters is None or len(sums) < 2 or np.ptp(array) == 0:
        return 1.0
    return _robust_variance(sums, sizes) / (float(np.var(array, ddof=1)) / array.size)


def mcnemar_power(n: int, discordance: float, difference: float, alpha: float = 0.05) -> float:
    """Probability that McNemar's exact test of `n` pairs is significant at `alpha` (Duffy 1984, Biometrics 40:1005).

    Sums over the number of discordant pairs; `discordance` is their true share, `difference` the true difference, both
    fractions with |difference| <= discordance.
    """
    from scipy.special import bdtr, bdtrc, gammaln, xlog1py, xlogy

    middle, spread = n * discordance, 9 * math.sqrt(n * discordance * (1 - discordance)) + 9
    pairs = np.arange(max(0, math.floor(middle - spread)), min(n, math.ceil(middle + spread)) + 1)
    log = gammaln(n + 1) - gammaln(pairs + 1) - gammaln(n - pairs + 1)
    weight = np.exp(log + xlogy(pairs, discordance) + xlog1py(n - pairs, -discordance))
    # the most pairs one way that are still too few: a normal guess, and the exact tail around it
    guess = np.floor((pairs - 1 + _z(alpha / 2) * np.sqrt(pairs)) / 2)
    few = np.full(pairs.size, -1.0)
    for step in range(-3, 3):
        candidate = guess + step
        fits = (candidate >= 0) & (bdtr(np.maximum(candidate, 0), pairs, 0.5) <= alpha / 2)
        few = np.where(fits, candidate, few)
    share = min(1.0, (1 + difference / discordance) / 2) if discordance else 0.5
    never = few < 0
    few = np.maximum(few, 0)
    found = bdtr(few, pairs, share) + bdtrc(pairs - few - 1, pairs, share)
    return float(weight @ np.where(never, 0.0, found))


def minimum_detectable(
    n: int,
    mean_square: float,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    design: float = 1.0,
    test: Test = "mcnemar",
) -> float:
    """Smallest true difference that a paired test of `n` questions finds with probability `power`; at most 1.

    `mean_square` is the mean squared difference per question: the share of discordant pairs for one completion; at
    least one pair is assumed to differ, and where the answer exceeds the discordance all pairs are taken to differ one
    way. "mcnemar" solves the exact test's power; "sign_flip", and either above 2,000 discordant pairs, Connor's formula
    (1987, Biometrics 43:207), which promises McNemar's exact test up to 4 points of power too many where few differ.
    `design` is the `design_effect` of clusters.
    """
    independent = math.floor(n / design)
    if independent < 1:
        return 1.0
    square = max(mean_square, 1 / independent)
    exact = test == "mcnemar" and independent * square <= 2000

    def enough(difference: float) -> bool:
        discordance = min(1.0, max(square, difference))
        if exact:
            return mcnemar_power(independent, discordance, difference, alpha) >= power
        return _connor(difference, discordance, power, alpha) <= independent

    low, high = 0.0, 1.0
    while high - low > (1e-5 if exact else 1e-12) * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _connor(difference: float, square: float, power: float, alpha: float) -> float:
    spread = _z(1 - alpha / 2) * math.sqrt(square)
    spread += _z(power) * math.sqrt(max(0.0, square - difference * difference))
    return (spread / difference) ** 2


def questions_needed(
    difference: float,
    mean_square: float,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    design: float = 1.0,
    test: Test = "mcnemar",
) -> int | None:
    """Questions at which `difference` would be found with probability `power`; None for 0.

    Connor's formula (1987), and for McNemar's exact test 1 / difference more, about what its coarseness costs (as the
    correction of Fleiss, Levin and Paik 2003, ch. 13). `mean_square`, `design` and `test` as `minimum_detectable`.
    """
    if difference == 0:
        return None
    size = abs(difference)
    needed = _connor(size, max(mean_square, size), power, alpha) + (1 / size if test == "mcnemar" else 0)
    return math.ceil(needed * design)


def more_questions(
    n: int, difference: float, mean_square: float, *, design: float = 1.0, test: Test = "mcnemar"
) -> int | None:
    """How many questions beyond `n` would tell, in two significant figures; None if the difference is 0."""
    needed = questions_needed(difference, mean_square, design=design, test=test)
    if needed is None:
        return None
    more = max(1, needed - n)
    step = 10 ** max(0, len(str(more)) - 2)
    return math.ceil(more / step) * step


# ---- subgroups


def by_question(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Rows by (benchmark, id), in order of appearance."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((str(row.get("benchmark") or ""), str(row["id"])), []).append(row)
    return found


def labels_of(questions: Sequence[Sequence[Mapping[str, Any]]], field: str | None) -> list[Hashable] | None:
    """The cluster label of each question, from its first row; a question without the field is a cluster of its own."""
    if field is None:
        return None
    return [
        ("alone", place) if (label := rows[0].get(field)) is None else label for place, rows in enumerate(questions)
    ]


def subgroups(
    rows_base: Iterable[Mapping[str, Any]],
    rows_tuned: Iterable[Mapping[str, Any]] | None,
    key: str | Callable[[Mapping[str, Any]], Hashable],
    *,
    clusters: str | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A table by group of scored rows {id, outcome}, in order of appearance; `key` is a field or a function of a row.

    One side: {"name", "n", "accuracy", "ci", "small", "note"}. Two sides: {"name", "n", "base", "tuned", "difference",
    "ci", "p", "p_adjusted", "small", "note"}: McNemar's exact test, or a sign-flip test where questions have several
    answers or `clusters` (a field) are given; Holm over the groups of at least `SMALL` questions. Smaller ones are
    noted as too few to tell, have no `p_adjusted`, and so cost the others nothing: their size is known before their
    answers. Groups, clusters and n are of questions; a missing group is "(none)". A question's group is its first row's
    in the base. DanluError for no rows, and when a question, or one of its answers, stands on one side only.
    """
    base = by_question(rows_base)
    tuned = None if rows_tuned is None else by_question(rows_tuned)
    if not base:
        raise DanluError("there are no scored answers", "score them first with: danlu score FILE")
    if tuned is not None:
        odd = [name for name in dict.fromkeys([*base, *tuned]) if len(base.get(name, ())) != len(tuned.get(name, ()))]
        if odd:
            named = ", ".join(name[1] for name in odd[:5])
            hint = "evaluate both on the same benchmarks with the same samples"
            raise DanluError(f"{len(odd)} questions are not answered as often on both sides: {named}", hint)
    groups: dict[Hashable, list[tuple[str, str]]] = {}
    for name, answers in base.items():
        value = key(answers[0]) if callable(key) else answers[0].get(key)
        groups.setdefault("(none)" if value is None else value, []).append(name)

    table = []
    for group, members in groups.items():
        labels = labels_of([base[name] for name in members], clusters)
        before = np.array([_share_right(base[name]) for name in members])
        entry: dict[str, Any] = {"name": group, "n": len(members)}
        if tuned is None:
            entry |= {"accuracy": float(before.mean()), "ci": list(share_interval(before, labels))}
        else:
            after = np.array([_share_right(tuned[name]) for name in members])
            single = labels is None and all(len(base[name]) == 1 for name in members)
            entry |= _difference(before, after, labels, single, seed)
        small = len(members) < SMALL
        note = f"too few questions to tell (fewer than {SMALL})" if small else ""
        table.append({**entry, "small": small, "note": note})
    if tuned is not None:
        large = [entry for entry in table if not entry["small"]]
        adjusted = iter(holm([entry["p"] for entry in large]))
        for entry in table:
            entry["p_adjusted"] = None if entry["small"] else next(adjusted)
    return table


def _share_right(answers: Sequence[Mapping[str, Any]]) -> float:
    return sum(row["outcome"] == "right" for row in answers) / len(answers)


def _difference(
    before: np.ndarray, after: np.ndarray, labels: Clusters | None, single: bool, seed: int
) -> dict[str, Any]:
    gaps = after - before
    gained, lost = int(np.sum(gaps > 0)), int(np.sum(gaps < 0))
    return {
        "base": float(before.mean()),
        "tuned": float(after.mean()),
        "difference": float(gaps.mean()),
        "ci": list(paired_interval(before, after, labels)),
        "p": mcnemar(gained, lost) if single else sign_flip(gaps, labels, seed=seed),
    }
