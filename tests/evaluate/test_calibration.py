"""Samples and calibration against enumeration, scipy and naive loops over sorted questions."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import scipy.stats

from danlu.errors import DanluError
from danlu.evaluate import calibration as cal
from danlu.evaluate import stats
from danlu.evaluate.score import summarise

# ---- samples


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert cal.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_pass_at_k_is_unbiased(p: float) -> None:
    for k in (1, 3, 8):
        expected = sum(scipy.stats.binom.pmf(c, 8, p) * cal.pass_at_k(8, c, k) for c in range(9))
        assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-9)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 0), (4, 2, 5), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        cal.pass_at_k(n, c, k)


def test_majority() -> None:
    assert cal.majority(["a", "B", "b"], [False, True, True]) == 1.0
    assert cal.majority(["A", "B"], [False, True]) == 0.0
    assert cal.majority(["B", "A"], [True, False]) == 1.0
    assert cal.majority(["A", "B", "C", "C", "B"], [False, True, False, False, True], "random") == 0.5
    assert cal.majority([None, None, "A"], [False, False, True]) == 1.0
    assert cal.majority([None, None], [False, False]) == 0.0


def test_agreement_and_vote_share() -> None:
    assert cal.agreement(["A", "a", "B"]) == pytest.approx(1 / 3)
    assert cal.agreement([None, None]) == 0.0
    assert cal.agreement(["A"]) is None
    assert cal.vote_share(["A", "a", "B", None]) == 0.5
    assert cal.vote_share([None]) == 0.0
    assert cal.vote_share([]) == 0.0


def drawn(questions: int, samples: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for i, p in enumerate(rng.beta(1.2, 0.6, questions)):
        for index in range(samples):
            letter = "A" if rng.random() < p else str(rng.choice([*"BCD", ""]))
            outcome = "right" if letter == "A" else "wrong" if letter else "none"
            rows.append({"id": i, "stem": i // 2, "index": index, "outcome": outcome, "extracted": letter or None})
    return rows


def test_sampling_agrees_with_the_summary() -> None:
    rows = drawn(90, 6)
    found, summary = cal.sampling(rows), summarise(rows)
    assert (found["n"], found["samples"]) == (90, [6, 6])
    assert found["average"]["value"] == pytest.approx(summary["accuracy"], abs=1e-12)
    assert found["pass"][1]["value"] == pytest.approx(summary["accuracy"], abs=1e-12)
    assert found["majority"]["value"] == pytest.approx(summary["majority"]["accuracy"], abs=1e-12)
    assert found["majority"]["ci"] == pytest.approx(summary["majority"]["ci"])
    values = [found["pass"][k]["value"] for k in range(1, 7)]
    assert values == sorted(values)
    for figure in [found["average"], found["agreement"], *found["pass"].values()]:
        assert 0 <= figure["ci"][0] < figure["value"] < figure["ci"][1] <= 1


def test_sampling_by_cluster_is_wider_where_stems_repeat() -> None:
    rows = drawn(60, 4)
    copies = [{**row, "id": f"{row['id']}-{copy}", "stem": row["id"]} for row in rows for copy in range(3)]
    plain, stems = cal.sampling(copies), cal.sampling(copies, clusters="stem")
    assert stems["average"]["value"] == pytest.approx(plain["average"]["value"])
    widths = [np.ptp(found["average"]["ci"]) for found in (plain, stems, cal.sampling(rows))]
    assert widths[0] < 0.65 * widths[1]
    assert widths[1] == pytest.approx(widths[2], rel=1e-9)
    alone = cal.sampling(copies, clusters="no such field")["average"]  # every question its own cluster
    assert alone["ci"] == pytest.approx(plain["average"]["ci"], abs=1e-12)


def test_sampling_of_uneven_or_single_samples() -> None:
    rows = [*drawn(20, 3), {"id": 99, "outcome": "right", "extracted": "A"}]
    found = cal.sampling(rows)
    assert found["samples"] == [1, 3]
    assert list(found["pass"]) == [1]
    assert cal.sampling(drawn(5, 1))["agreement"] is None
    with pytest.raises(DanluError, match="no scored answers"):
        cal.sampling([])


# ---- calibration


def naive(sure: list[float], right: list[int], bins: int) -> dict[str, float]:
    """Loops over questions, without ties in mind."""
    n = len(sure)
    ranked = sorted(range(n), key=lambda i: -sure[i])
    risks = [sum(1 - right[j] for j in ranked[: i + 1]) / (i + 1) for i in range(n)]
    ece = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        own = [i for i in range(n) if low < sure[i] <= high or (b == 0 and sure[i] == 0)]
        ece += abs(sum(right[i] for i in own) - sum(sure[i] for i in own)) / n
    mass = 0.0
    for own in np.array_split(np.array(ranked[::-1]), bins):
        mass += abs(sum(right[i] for i in own) - sum(sure[i] for i in own)) / n
    return {
        "ece": ece,
        "mass": mass,
        "brier": sum((sure[i] - right[i]) ** 2 for i in range(n)) / n,
        "aurc": sum(risks) / n,
        "half": 1 - risks[math.ceil(n / 2) - 1],
    }


@pytest.mark.parametrize("seed", range(4))
def test_measures_are_the_naive_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sure = rng.random(120)
    right = (rng.random(120) < sure**2).astype(int)
    for bins in (4, 10, 15):
        theirs = naive(sure.tolist(), right.tolist(), bins)
        assert cal.ece(sure, right, bins=bins) == pytest.approx(theirs["ece"], abs=1e-9)
        assert cal.ece(sure, right, bins=bins, by="mass") == pytest.approx(theirs["mass"], abs=1e-9)
    assert cal.brier(sure, right) == pytest.approx(theirs["brier"], abs=1e-9)
    assert cal.aurc(sure, right) == pytest.approx(theirs["aurc"], abs=1e-9)
    assert cal.accuracy_at(sure, right, 0.5) == pytest.approx(theirs["half"], abs=1e-9)
    u = scipy.stats.mannwhitneyu(sure[right == 1], sure[right == 0]).statistic
    assert cal.auroc(sure, right) == pytest.approx(u / (right.sum() * (1 - right).sum()), abs=1e-9)


def test_ties_are_the_mean_over_orders() -> None:
    sure, right = [0.5, 1.0, 0.5, 0.5, 1.0], [1, 0, 0, 1, 1]
    orders = []
    for order in itertools.permutations(range(5)):
        figures = naive([sure[i] for i in order], [right[i] for i in order], 5)
        orders.append((figures["aurc"], figures["half"]))
    area, half = np.mean(orders, axis=0)
    assert cal.aurc(sure, right) == pytest.approx(area, abs=1e-12)
    assert cal.accuracy_at(sure, right, 0.5) == pytest.approx(half, abs=1e-12)
    coverage, risk = cal.risk_coverage(sure, right)
    assert coverage == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert risk.mean() == pytest.approx(area, abs=1e-12)
    assert risk[-1] == pytest.approx(0.4)


def test_edges_belong_to_the_bin_below() -> None:
    assert cal.ece([0.3, 0.3, 0.25], [1, 0, 0], bins=10) == pytest.approx(abs(1 - 0.85) / 3)
    assert cal.ece([0.0, 1.0], [0, 1]) == 0.0
    assert cal.ece([0.0, 1.0], [1, 0]) == 1.0


def test_perfect_and_useless_confidence() -> None:
    assert cal.auroc([0.9, 0.9, 0.1], [1, 1, 0]) == 1.0
    assert cal.auroc([0.5, 0.5], [1, 0]) == 0.5
    assert cal.auroc([0.5, 0.7], [1, 1]) is None
    found = cal.calibration([0.5, 0.7], [1, 1], resamples=50)
    assert found["auroc"] is None
    assert found["accuracy"]["value"] == 1.0


@pytest.mark.parametrize(("sure", "right"), [([], []), ([0.5], [1, 0]), ([1.2], [1]), ([0.5], [2]), ([math.nan], [1])])
def test_calibration_refuses(sure: list[float], right: list[float]) -> None:
    with pytest.raises(ValueError, match="confidences"):
        cal.calibration(sure, right)


def test_calibration_resamples_clusters() -> None:
    rng = np.random.default_rng(1)
    sure = rng.integers(1, 9, 100) / 8
    right = (rng.random(100) < sure).astype(int)
    labels = np.repeat(np.arange(100), 3)
    one = cal.calibration(sure, right, seed=2)
    same = cal.calibration(sure, right, [f"q{i}" for i in range(100)], seed=2)
    thrice = cal.calibration(np.repeat(sure, 3), np.repeat(right, 3), labels, seed=2)
    assert same == one
    assert thrice["brier"]["value"] == pytest.approx(one["brier"]["value"])
    assert thrice["brier"]["ci"] == pytest.approx(one["brier"]["ci"])
    with pytest.raises(ValueError, match="3 cluster labels"):
        cal.calibration(sure, right, [1, 2, 3])


def test_bootstrap_intervals_are_those_of_resampled_questions() -> None:
    rng = np.random.default_rng(3)
    sure = rng.integers(1, 6, 150) / 5
    right = (rng.random(150) < sure**1.5).astype(int)
    found = cal.calibration(sure, right, seed=1)
    draws = [rng.integers(0, 150, 150) for _ in range(1500)]
    for name, measure in (("brier", cal.brier), ("aurc", cal.aurc), ("auroc", cal.auroc)):
        theirs = np.quantile([measure(sure[i], right[i]) for i in draws], [0.025, 0.975])
        width = theirs[1] - theirs[0]
        assert found[name]["ci"] == pytest.approx(list(theirs), abs=0.08 * width)  # two bootstraps of 1,500 and 2,000


def test_calibration_of_rows() -> None:
    rows = drawn(80, 5)
    found = cal.calibration_of(rows)
    groups = [[row for row in rows if row["id"] == i] for i in range(80)]
    shares = [max(Counter(r["extracted"] for r in g if r["extracted"]).values(), default=0) / 5 for g in groups]
    assert found["n"] == 80
    assert found["confidence"] == pytest.approx(np.mean(shares))
    assert found["accuracy"]["value"] == pytest.approx(cal.sampling(rows, ties="random")["majority"]["value"])
    assert found["accuracy_at_50"]["value"] >= found["accuracy"]["value"] - 0.1
    assert cal.calibration_of(rows, clusters="stem")["brier"]["value"] == pytest.approx(found["brier"]["value"])
    with pytest.raises(DanluError, match="several samples"):
        cal.calibration_of(drawn(10, 1))


def test_calibrated_confidence_keeps_0_in_its_interval() -> None:
    rng = np.random.default_rng(4)
    kept = 0
    for trial in range(100):
        sure = rng.integers(1, 9, 200) / 8
        right = (rng.random(200) < sure).astype(float)
        kept += cal.calibration(sure, right, resamples=300, seed=trial)["ece"]["ci"][0] == 0.0
    assert kept >= 92


def test_share_interval_is_inside_0_and_1() -> None:
    low, high = stats.share_interval([1.0] * 40 + [0.75])
    assert 0.8 < low < high <= 1.0
