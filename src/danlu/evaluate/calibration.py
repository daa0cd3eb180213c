"""Several samples of a question: pass@k, majority, agreement; and does the model know when it is right?

The confidence in an answer is the share of samples that gave it (`vote_share`), so nothing needs token probabilities.
A measure of calibration is a function of how many questions were right and wrong at each distinct confidence; all of
them take tables of such counts, so that a bootstrap of questions is one multinomial draw and no loop.

Ties in confidence are the rule here (k samples give k + 1 values). Departures: the risk-coverage curve takes the
expected value over random orders of tied questions, and equal-mass bins share out tied questions in proportion, so no
figure depends on the order of the rows; without ties, and with bins that divide n, both are the textbook's. The ECE of
n questions is larger than the truth, and its resamples larger again. So the lower end of its interval is the reflected
percentile, and 0 where a perfectly calibrated model would show as much (consistency resampling, Broecker and Smith
2007, Weather Forecast. 22:651), and the upper end the percentile less the bias; the others' intervals are percentiles.
Not covered: recalibration, confidence from logits, and confidence that a model states in words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from danlu.errors import DanluError
from danlu.evaluate.stats import Clusters, Numbers, by_question, labels_of, share_interval
from danlu.rewards.difficulty import pass_at_k

BINS = 10
RESAMPLES = 2_000
COVERAGES = (0.5, 0.8)
Bins = Literal["width", "mass"]
Ties = Literal["first", "random"]

# ---- samples


def majority(extracted: Sequence[str | None], right: Sequence[bool], ties: Ties = "first") -> float:
    """Whether the most frequent extracted answer of one question is right (maj@k, Wang et al. 2023): 0, 1 or between.

    Case is ignored, None is no vote, no votes are 0. Equal counts: "first" takes the answer given first (the rule of
    `score.summarise`), "random" the expected value over them. The first sample with an answer says if it is right.
    """
    given = _given(extracted)
    votes = Counter(answer for answer in given if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most][: 1 if ties == "first" else None]
    return sum(bool(right[given.index(winner)]) for winner in winners) / len(winners)


def vote_share(extracted: Sequence[str | None]) -> float:
    """Confidence in the majority answer: the share of all samples of one question that gave it; 0 without samples.

    A sample without an answer counts below the line only. It is the consistency
    of self-consistency (Wang et al. 2023, arXiv:2203.11171, section 3.5).
    """
    votes = Counter(answer for answer in _given(extracted) if answer is not None)
    return max(votes.values(), default=0) / max(1, len(extracted))


def _given(extracted: Sequence[str | None]) -> list[str | None]:
    return [None if answer is None else str(answer).casefold() for answer in extracted]


def agreement(extracted: Sequence[str | None]) -> float | None:
    """Share of pairs of one question's samples with the same extracted answer, case ignored; None for one sample.

    A sample without an answer agrees with none.
    """
    given = _given(extracted)
    pairs = [a is not None and a == b for a, b in combinations(given, 2)]
    return sum(pairs) / len(pairs) if pairs else None


def sampling(
    rows: Iterable[Mapping[str, Any]], *, clusters: str | None = None, ties: Ties = "first", confidence: float = 0.95
) -> dict[str, Any]:
    """Figures of scored rows {id, outcome, extracted}, several to an id (and `benchmark`).

    {"n" questions, "samples" [fewest, most], "average": avg@k, "pass": {k: pass@k}, "majority": maj@k, "agreement"},
    each figure {"value", "ci"} as fractions with `share_interval` over questions, or over the values of the field
    `clusters` (of a question's first row). pass@k goes up to the fewest samples of any question; agreement leaves out
    questions with one sample, and is None where that leaves none. DanluError for no rows.
    """
    questions = list(by_question(rows).values())
    if not questions:
        raise DanluError("there are no scored answers", "score them first with: danlu score FILE")
    right = [[row["outcome"] == "right" for row in group] for group in questions]
    texts = [[row.get("extracted") for row in group] for group in questions]
    labels = labels_of(questions, clusters)
    counts = [(len(group), sum(group)) for group in right]
    fewest = min(n for n, _ in counts)

    def figure(values: Sequence[float | None]) -> dict[str, Any] | None:
        kept = [place for place, value in enumerate(values) if value is not None]
        known = np.array([values[place] for place in kept], dtype=float)
        own = None if labels is None else [labels[place] for place in kept]
        if not kept:
            return None
        return {"value": float(known.mean()), "ci": list(share_interval(known, own, confidence=confidence))}

    return {
        "n": len(questions),
        "samples": [fewest, max(n for n, _ in counts)],
        "average": figure([c / n for n, c in counts]),
        "pass": {k: figure([pass_at_k(n, c, k) for n, c in counts]) for k in range(1, fewest + 1)},
        "majority": figure([majority(t, r, ties) for t, r in zip(texts, right, strict=True)]),
        "agreement": figure([agreement(t) for t in texts]),
    }


# ---- calibration


def ece(confidence: Numbers, right: Numbers, *, bins: int = BINS, by: Bins = "width") -> float:
    """Expected calibration error, a fraction: sum over bins of |right - confidence| weighted by questions.

    "width": `bins` equal intervals (a, b] of 0..1, the first with its 0 (Guo et al. 2017, arXiv:1706.04599, eq. 3);
    "mass": bins of equal numbers of questions by rank of confidence (Nixon et al. 2019, arXiv:1904.01685). ValueError
    as `calibration`.
    """
    return float(_ece(*_one(confidence, right), bins, by)[0])


def brier(confidence: Numbers, right: Numbers) -> float:
    """Mean squared distance of confidence and outcome, 0..1 (Brier 1950, Mon. Weather Rev. 78:1)."""
    return float(_brier(*_one(confidence, right))[0])


def aurc(confidence: Numbers, right: Numbers) -> float:
    """Area under the risk-coverage curve: mean over coverages 1/n..1 of the share of errors among the most confident.

    Geifman and El-Yaniv 2017 (arXiv:1705.08500) for the curve, 2019 (arXiv:1805.08206) for the area; less is better.
    """
    return float(_aurc(*_one(confidence, right))[0])


def auroc(confidence: Numbers, right: Numbers) -> float | None:
    """Chance that a right answer is more confident than a wrong one, ties half; None if all or none are right."""
    value = float(_auroc(*_one(confidence, right))[0])
    return None if math.isnan(value) else value


def accuracy_at(confidence: Numbers, right: Numbers, coverage: float) -> float:
    """Expected accuracy over the ceil(coverage * n) most confident questions; ValueError unless 0 < coverage <= 1."""
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage {coverage} is not in (0, 1]")
    return float(_accuracy_at(*_one(confidence, right), coverage)[0])


def risk_coverage(confidence: Numbers, right: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """(coverage, risk), each of length n: the share of errors among the 1, 2 .. n most confident, expected in ties."""
    _, good, bad = _one(confidence, right)
    total = np.concatenate([[0.0], np.cumsum((good + bad)[0, ::-1])])
    wrong = np.concatenate([[0.0], np.cumsum(bad[0, ::-1])])
    taken = np.arange(1, int(total[-1]) + 1)
    return taken / total[-1], np.interp(taken, total, wrong) / taken


def calibration(
    confidence: Numbers,
    right: Numbers,
    clusters: Clusters | None = None,
    *,
    bins: int = BINS,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Every measure of n questions: `confidence` in 0..1 and `right` 0 or 1 (or the chance of it), one each.

    {"n", "confidence": its mean, "accuracy", "ece", "ece_mass", "brier", "aurc", "auroc", "accuracy_at_50",
    "accuracy_at_80"}, the measures as {"value", "ci"}: fractions with bootstrap intervals over questions, or over
    `clusters` (one label a question); auroc is None where all or none are right.
    ValueError for no questions, for lengths that differ and for a confidence or outcome outside 0..1.
    """
    levels, good, bad = _one(confidence, right)
    n = float((good + bad).sum())
    many = np.round(good + bad).astype(int)
    drawn = _resampled(confidence, right, clusters, resamples, seed)
    found: dict[str, Any] = {"n": round(n), "confidence": float((good + bad)[0] @ levels / n)}
    measures: dict[str, Any] = {
        "accuracy": lambda _c, r, w: r.sum(1) / (r + w).sum(1),
        "ece": lambda c, r, w: _ece(c, r, w, bins, "width"),
        "ece_mass": lambda c, r, w: _ece(c, r, w, bins, "mass"),
        "brier": _brier,
        "aurc": _aurc,
        "auroc": _auroc,
        **{f"accuracy_at_{round(100 * s)}": lambda c, r, w, s=s: _accuracy_at(c, r, w, s) for s in COVERAGES},
    }
    for name, measure in measures.items():
        value, values = float(measure(levels, good, bad)[0]), measure(levels, *drawn)
        values = values[~np.isnan(values)]
        if math.isnan(value) or not values.size:
            found[name] = None
            continue
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        if name.startswith("ece"):
            honest = np.random.default_rng(seed).binomial(many, levels, (resamples, levels.size))
            perfect = measure(levels, honest, many - honest)
            calibrated = value <= np.quantile(perfect, (1 + level) / 2)
            low, high = max(0.0, 2 * value - high), max(value, high - float(values.mean() - value))
            low = 0.0 if calibrated else low
        found[name] = {"value": value, "ci": [float(low), float(high)]}
    return found


def calibration_of(rows: Iterable[Mapping[str, Any]], *, clusters: str | None = None, **options: Any) -> dict[str, Any]:
    """`calibration` of scored rows {id, outcome, extracted}, several to an id: vote share and the majority's outcome.

    Ties between answers count by their expected value. `clusters` is a field. DanluError for no rows, and where no
    question has two samples (one sample is always sure of itself).
    """
    questions = list(by_question(rows).values())
    if all(len(group) < 2 for group in questions):
        raise DanluError("no question has several samples", "evaluate with several samples a question")
    texts = [[row.get("extracted") for row in group] for group in questions]
    right = [[row["outcome"] == "right" for row in group] for group in questions]
    outcomes = [majority(t, r, "random") for t, r in zip(texts, right, strict=True)]
    return calibration([vote_share(t) for t in texts], outcomes, labels_of(questions, clusters), **options)


# ---- tables of counts: distinct confidences (levels) rising, right and wrong of shape (tables, levels)

Table = tuple[np.ndarray, np.ndarray, np.ndarray]


def _checked(confidence: Numbers, right: Numbers) -> tuple[np.ndarray, np.ndarray]:
    sure, good = np.round(np.asarray(confidence, dtype=float), 12), np.asarray(right, dtype=float)
    if sure.size == 0 or sure.shape != good.shape:
        raise ValueError(f"{sure.size} confidences for {good.size} outcomes")
    if not (np.all((sure >= 0) & (sure <= 1)) and np.all((good >= 0) & (good <= 1))):
        raise ValueError("confidences and outcomes are fractions in 0..1")
    return sure, good


def _one(confidence: Numbers, right: Numbers) -> Table:
    sure, good = _checked(confidence, right)
    levels, place = np.unique(sure, return_inverse=True)
    correct = np.bincount(place, weights=good)
    return levels, correct[None], (np.bincount(place) - correct)[None]


def _resampled(
    confidence: Numbers, right: Numbers, clusters: Clusters | None, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    from scipy.sparse import csr_array

    sure, good = _checked(confidence, right)
    levels, place = np.unique(sure, return_inverse=True)
    if clusters is not None and len(clusters) != sure.size:
        raise ValueError(f"{len(clusters)} cluster labels for {sure.size} values")
    units: dict[Any, list[tuple[int, float]]] = {}
    labels: Iterable[Any] = range(sure.size) if clusters is None else clusters
    for label, member in zip(labels, zip(place.tolist(), good.tolist(), strict=True), strict=True):
        units.setdefault(label, []).append(member)
    kinds = Counter(tuple(sorted(members)) for members in units.values())
    cells = [(k, j, g) for k, members in enumerate(kinds) for j, g in members]
    kind, where, chance = (np.array(column) for column in zip(*cells, strict=True))
    size = (len(kinds), len(levels))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(units), np.array(list(kinds.values())) / len(units), size=resamples)
    correct = csr_array((chance, (kind, where)), shape=size)
    wrong = csr_array((1 - chance, (kind, where)), shape=size)
    return drawn @ correct, drawn @ wrong


def _ece(levels: np.ndarray, good: np.ndarray, bad: np.ndarray, bins: int, by: Bins) -> np.ndarray:
    many = good + bad
    gaps, n = good - many * levels, many.sum(1)
    if by == "width":
        place = np.clip(np.ceil(levels * bins - 1e-9).astype(int) - 1, 0, bins - 1)
        sums = gaps @ np.eye(bins)[place]
    else:
        edges = np.arange(bins + 1) / bins
        start = np.zeros((len(gaps), 1))
        mass = np.concatenate([start, np.cumsum(many, 1)], 1) / n[:, None]
        risen = np.concatenate([start, np.cumsum(gaps, 1)], 1)
        sums = np.diff([np.interp(edges, m, g) for m, g in zip(mass, risen, strict=True)], axis=1)
    return np.abs(sums).sum(1) / n


def _brier(levels: np.ndarray, good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    return (good @ (1 - levels) ** 2 + bad @ levels**2) / (good + bad).sum(1)


def _aurc(_: np.ndarray, good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    from scipy.special import digamma

    many, wrong = (good + bad)[:, ::-1], bad[:, ::-1]  # the most confident first
    after, errors = np.cumsum(many, 1), np.cumsum(wrong, 1)
    before = after - many
    rate = np.divide(wrong, many, out=np.zeros_like(wrong), where=many > 0)
    # in a block of ties the risk at i is (errors before + rate (i - before)) / i: a constant and a harmonic sum
    area = (errors - wrong - rate * before) * (digamma(after + 1) - digamma(before + 1)) + wrong
    return area.sum(1) / many.sum(1)


def _auroc(_: np.ndarray, good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    below = np.cumsum(bad, 1) - bad / 2
    pairs = good.sum(1) * bad.sum(1)
    return np.divide((good * below).sum(1), pairs, out=np.full(len(good), np.nan), where=pairs > 0)


def _accuracy_at(_: np.ndarray, good: np.ndarray, bad: np.ndarray, coverage: float) -> np.ndarray:
    many, correct = (good + bad)[:, ::-1], good[:, ::-1]
    taken = np.ceil(coverage * many.sum(1) - 1e-9)[:, None]
    before = np.cumsum(many, 1) - many
    part = np.clip(taken - before, 0, many)
    rate = np.divide(correct, many, out=np.zeros_like(correct), where=many > 0)
    return (rate * part).sum(1) / taken[:, 0]
