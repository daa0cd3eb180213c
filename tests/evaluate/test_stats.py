"""Statistics against scipy, statsmodels, closed forms and enumeration."""

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from danlu.errors import DanluError
from danlu.evaluate import stats

PREDICTIONS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "verifier" / "predictions_medqa.jsonl"


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
def test_minimum_detectable_inverts_connors_sample_size(n: int, discordant: float) -> None:
    found = stats.minimum_detectable(n, discordant, test="sign_flip")
    a, b = scipy.stats.norm.ppf(0.975), scipy.stats.norm.ppf(0.8)
    needed = (a * math.sqrt(discordant) + b * math.sqrt(discordant - found**2)) ** 2 / found**2
    assert needed == pytest.approx(n, rel=1e-9)
    assert stats.questions_needed(found, discordant, test="sign_flip") in (n, n + 1)
    assert stats.minimum_detectable(2 * n, discordant, test="sign_flip", design=2.0) == pytest.approx(found, rel=1e-9)


def exact_power(n: int, discordant: float, difference: float) -> float:
    """Every table of a small paired comparison, by its probability."""
    up, down = (discordant + difference) / 2, (discordant - difference) / 2
    tables = [(g, lost) for g in range(n + 1) for lost in range(n - g + 1)]
    chances = scipy.stats.multinomial.pmf([(g, b, n - g - b) for g, b in tables], n, [up, down, 1 - up - down])
    return float(sum(chance for (g, b), chance in zip(tables, chances, strict=True) if stats.mcnemar(g, b) < 0.05))


@pytest.mark.parametrize(("n", "discordant"), [(4, 0.5), (12, 0.6), (30, 0.3), (40, 0.15)])
@pytest.mark.parametrize("one_way", [0.0, 0.5, 1.0])
def test_power_sums_over_every_table(n: int, discordant: float, one_way: float) -> None:
    difference = discordant * one_way
    assert stats.mcnemar_power(n, discordant, difference) == pytest.approx(
        exact_power(n, discordant, difference), abs=1e-9
    )


@pytest.mark.parametrize("n", [6, 20, 50, 300, 1000, 5000])
@pytest.mark.parametrize("discordant", [0.0, 0.05, 0.1, 0.4])
def test_minimum_detectable_has_the_promised_power(n: int, discordant: float) -> None:
    effect = stats.minimum_detectable(n, discordant)
    assert stats.mcnemar_power(n, max(discordant, 1 / n, effect), effect) == pytest.approx(0.8, abs=0.002)
    needed = stats.questions_needed(effect, max(discordant, effect))
    assert needed == pytest.approx(n, rel=0.13, abs=1)


def test_minimum_detectable_has_its_power_on_drawn_tables() -> None:
    n, discordant = 300, 0.25
    effect = stats.minimum_detectable(n, discordant)
    rng = np.random.default_rng(1)
    up = (discordant + effect) / 2
    draws = rng.multinomial(n, [up, discordant - up, 1 - discordant], size=1500)
    assert np.mean([stats.mcnemar(int(g), int(lost)) < 0.05 for g, lost, _ in draws]) == pytest.approx(0.8, abs=0.03)


def test_minimum_detectable_of_too_few() -> None:
    assert stats.minimum_detectable(0, 0.5) == 1.0
    assert stats.minimum_detectable(5, 0.5) == 1.0  # five gained of five: p = 0.06
    assert stats.minimum_detectable(30, 0.5, design=31.0) == 1.0


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


# ---- clusters


def test_clusters_of_one_change_nothing() -> None:
    rng = np.random.default_rng(5)
    values, labels = rng.binomial(4, 0.6, 80) / 4, list(range(80))
    assert stats.bootstrap(values, labels) == stats.bootstrap(values)
    assert stats.sign_flip(values - 0.5, labels) == stats.sign_flip(values - 0.5)
    assert stats.share_interval(values, labels) == pytest.approx(stats.share_interval(values), abs=1e-12)
    assert stats.design_effect(values, labels) == pytest.approx(1.0)


def test_repeated_questions_tell_no_more_than_one() -> None:
    rng = np.random.default_rng(6)
    base, tuned = rng.binomial(1, 0.5, 60), rng.binomial(1, 0.7, 60)
    labels = np.repeat(np.arange(60), 3)
    thrice = np.repeat(base, 3), np.repeat(tuned, 3)
    robust = stats.paired_interval(base / 1.0, tuned / 1.0, list(range(60)))
    assert stats.paired_interval(*thrice, labels) == pytest.approx(robust, abs=1e-12)
    low, high = stats.paired_interval(*thrice)
    assert high - low < 0.65 * (robust[1] - robust[0])
    assert stats.design_effect(thrice[1] - thrice[0], labels) == pytest.approx(3.0, rel=0.02)
    assert stats.sign_flip(thrice[1] - thrice[0], labels) == stats.sign_flip(tuned - base)


def test_cluster_bootstrap_resamples_clusters() -> None:
    rng = np.random.default_rng(7)
    labels = np.repeat(np.arange(120), rng.integers(1, 5, 120))
    values = rng.normal(size=labels.size) + rng.normal(size=120)[labels]
    groups = [values[labels == label] for label in range(120)]
    sums, sizes = np.array([g.sum() for g in groups]), np.array([g.size for g in groups])
    theirs = scipy.stats.bootstrap(
        (sums, sizes),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    ours = stats.bootstrap(values, [f"case {label}" for label in labels])
    assert ours == pytest.approx(tuple(theirs), abs=0.1 * (ours[1] - ours[0]) / 4)  # two times 10,000 resamples
    middle = values.mean()
    assert ours[0] < middle < ours[1]


def test_robust_interval_is_statsmodels_cluster_covariance() -> None:
    linear = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(8)
    labels = np.repeat(np.arange(40), rng.integers(1, 5, 40))
    base, tuned = rng.binomial(1, 0.5, labels.size), rng.binomial(1, 0.6, labels.size)
    n, fit = labels.size, linear.OLS((tuned - base).astype(float), np.ones(labels.size))
    # their correction is G / (G - 1) (n - 1) / (n - k), with k = 1 ours
    theirs = fit.fit(cov_type="cluster", cov_kwds={"groups": labels}, use_t=True).conf_int()[0]
    assert n > 40
    assert stats.paired_interval(base, tuned, labels) == pytest.approx(tuple(theirs), abs=1e-9)


def test_labels_must_match() -> None:
    with pytest.raises(ValueError, match="2 cluster labels for 3 values"):
        stats.bootstrap([1, 0, 1], [1, 2])


def test_few_or_equal_clusters() -> None:
    assert stats.share_interval([], None) == (0.0, 1.0)
    assert stats.share_interval([0.5, 1.0], ["a", "a"]) == (0.0, 1.0)
    assert stats.share_interval([0.5] * 30) == pytest.approx(stats.wilson(15, 30))
    assert stats.share_interval([1, 0, 1]) == stats.wilson(2, 3)
    low, high = stats.paired_interval([0, 0], [1, 1], ["a", "a"])
    assert low < 0 < high  # one cluster is one question
    assert stats.paired_interval([], []) == (-1.0, 1.0)


@pytest.mark.parametrize(("gained", "lost", "n"), [(9, 2, 50), (0, 0, 30), (5, 0, 40), (3, 3, 10), (30, 12, 300)])
def test_tango_holds_what_the_score_test_keeps(gained: int, lost: int, n: int) -> None:
    def statistic(d: float) -> float:
        def loss(down: float) -> float:  # the share lost, at a difference of d
            with np.errstate(divide="ignore", invalid="ignore"):
                counts, shares = (
                    np.array([gained, lost, n - gained - lost]),
                    np.array([down + d, down, 1 - d - 2 * down]),
                )
                return -float(np.sum(scipy.special.xlogy(counts, np.clip(shares, 0, 1))))

        bounds = max(0.0, -d), (1 - d) / 2
        down = scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        return (gained - lost - n * d) / math.sqrt(n * (2 * down + d - d * d))

    low, high = stats.tango(gained, lost, n)
    assert statistic(low) == pytest.approx(1.959964, abs=2e-3)
    assert statistic(high) == pytest.approx(-1.959964, abs=2e-3)
    assert stats.tango(lost, gained, n) == pytest.approx((-high, -low), abs=1e-12)


def test_tango_leaves_out_0_where_mcnemar_is_significant() -> None:
    for gained in range(24):
        for lost in range(24):
            low, high = stats.tango(gained, lost, 100)
            assert stats.mcnemar(gained, lost) >= 0.05 or low > 0 or high < 0


# ---- real predictions of five models


@pytest.fixture(scope="module")
def right() -> dict[str, np.ndarray]:
    if not PREDICTIONS.is_file():
        pytest.skip("no shared data")
    rows = [json.loads(line) for line in PREDICTIONS.read_text(encoding="utf-8").splitlines()]
    found: dict[str, dict[str, bool]] = {}
    for row in rows:
        found.setdefault(row["model"], {})[row["id"]] = row["pred"] == row["gold"]
    ids = sorted(next(iter(found.values())))
    return {model: np.array([answers[i] for i in ids], dtype=float) for model, answers in found.items()}


def test_statsmodels_agrees_on_real_predictions(right: dict[str, np.ndarray]) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    assert len(right) == 5
    for values in right.values():
        theirs = proportion.proportion_confint(values.sum(), values.size, method="wilson")
        assert stats.wilson(float(values.sum()), values.size) == pytest.approx(theirs, abs=1e-9)
    ps = []
    for first, second in combinations(right, 2):
        for part in (slice(None), slice(0, 60)):
            base, tuned = right[first][part], right[second][part]
            gained, lost = int(np.sum(tuned > base)), int(np.sum(tuned < base))
            both, neither = int(np.sum(tuned * base)), int(np.sum((1 - tuned) * (1 - base)))
            theirs = tables.mcnemar([[both, lost], [gained, neither]], exact=True).pvalue
            ps.append(stats.mcnemar(gained, lost))
            assert ps[-1] == pytest.approx(theirs, abs=1e-9)
    assert stats.holm(ps) == pytest.approx(list(multitest.multipletests(ps, method="holm")[1]), abs=1e-9)


def test_paired_bootstrap_is_scipys_on_real_predictions(right: dict[str, np.ndarray]) -> None:
    """Of the same seed: scipy draws indices, so its resamples differ; both ends lie on a grid of 1 / n."""
    base, tuned = right["gpt-4o-mini"], right["DeepSeek-R1"]
    theirs = scipy.stats.bootstrap(
        (base, tuned),
        lambda x, y, axis: (y - x).mean(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    ours = stats.paired_interval(base, tuned, method="bootstrap")
    assert ours == pytest.approx(tuple(theirs), abs=2 / base.size)
    assert stats.paired_interval(base, tuned) == pytest.approx(ours, abs=0.002)


def test_bootstrap_is_the_quantile_of_its_own_resamples() -> None:
    """The same counts, summed as rows repeated and averaged one resample at a time."""
    values = np.array([0.0, 0.25, 0.25, 1.0, 0.75, 0.5, 1.0])
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(4).multinomial(7, counts / 7, size=500)
    means = [float(np.mean(np.repeat(distinct, row))) for row in drawn]
    assert stats.bootstrap(values, resamples=500, seed=4) == pytest.approx(
        tuple(np.quantile(means, [0.025, 0.975])), abs=1e-9
    )


# ---- subgroups


def scored(outcomes: dict[str, str]) -> list[dict[str, Any]]:
    names = {"1": "right", "0": "wrong"}
    return [
        {"id": f"{group}{i}", "group": group, "outcome": names[mark]}
        for group, marks in outcomes.items()
        for i, mark in enumerate(marks)
    ]


def test_subgroups_of_two_sides() -> None:
    base = scored({"heart": "0" * 30 + "1" * 10, "lung": "10" * 20, "skin": "0" * 10})
    tuned = scored({"heart": "1" * 30 + "1" * 10, "lung": "01" * 20, "skin": "1" * 10})
    table = {entry["name"]: entry for entry in stats.subgroups(base, tuned, "group")}
    assert list(table) == ["heart", "lung", "skin"]
    heart, lung, skin = table.values()
    assert (heart["n"], heart["base"], heart["tuned"], heart["difference"]) == (40, 0.25, 1.0, 0.75)
    assert heart["ci"] == list(stats.tango(30, 0, 40))
    assert heart["p"] == stats.mcnemar(30, 0)
    assert (heart["p_adjusted"], lung["p_adjusted"]) == (2 * heart["p"], 1.0)  # two groups: skin is not in the family
    assert skin["small"]
    assert skin["note"] == "too few questions to tell (fewer than 20)"
    assert skin["p_adjusted"] is None
    assert not heart["small"]


def test_subgroups_of_one_side_and_by_function() -> None:
    rows = scored({"a": "1101" * 6, "b": "10"})
    table = stats.subgroups(rows, None, lambda row: row["group"].upper())
    assert [entry["name"] for entry in table] == ["A", "B"]
    assert table[0]["ci"] == list(stats.wilson(18, 24))
    assert "p" not in table[0]
    assert stats.subgroups([{"id": 1, "outcome": "right"}], None, "subject")[0]["name"] == "(none)"


def test_subgroups_with_several_answers_and_clusters() -> None:
    base = [{"id": i, "stem": i // 2, "index": k, "outcome": "wrong"} for i in range(40) for k in range(3)]
    tuned = [{**row, "outcome": "right" if (row["id"] + row["index"]) % 3 else "wrong"} for row in base]
    (plain,) = stats.subgroups(base, tuned, "subject")
    (stems,) = stats.subgroups(base, tuned, "subject", clusters="stem")
    assert plain["n"] == stems["n"] == 40
    assert plain["difference"] == pytest.approx(2 / 3)
    assert plain["p"] < 0.001
    assert stems["p"] > plain["p"] or stems["p"] == pytest.approx(1 / 10_001)


def test_subgroups_refuse_what_is_not_paired() -> None:
    rows = scored({"a": "1100"})
    with pytest.raises(DanluError, match="1 questions are not answered as often on both sides: a3"):
        stats.subgroups(rows, rows[:-1], "group")
    with pytest.raises(DanluError, match="no scored answers"):
        stats.subgroups([], [], "group")


def test_subgroups_hold_their_error_rate() -> None:
    """Three groups without a difference: one is called significant in at most 5 % of draws."""
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(300):
        base, tuned = rng.binomial(1, 0.6, 120), rng.binomial(1, 0.6, 120)
        sides = [
            [{"id": i, "g": i % 3, "outcome": "right" if r else "wrong"} for i, r in enumerate(s)]
            for s in (base, tuned)
        ]
        found += any(entry["p_adjusted"] < 0.05 for entry in stats.subgroups(*sides, "g"))
    assert found / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


# ---- promises by simulation; the full sizes are in bench/statistics.py


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [30, 100])
@pytest.mark.parametrize("difference", [0.0, 0.06])
def test_clustered_intervals_cover_and_clusters_ignored_do_not(clusters: int, difference: float) -> None:
    rng = np.random.default_rng(clusters)
    kept = np.zeros(2)
    for _ in range(1500):
        labels = np.repeat(np.arange(clusters), rng.choice([1, 2, 3, 4], clusters))
        drawn = rng.random(clusters)[labels]  # a cluster's questions are all alike
        values = np.where(drawn < 0.1 + difference / 2, 1.0, np.where(drawn < 0.2, -1.0, 0.0))
        for place, own in enumerate((labels, None)):
            low, high = stats.paired_interval(0 * values, values, own)
            kept[place] += low <= difference <= high
    assert kept[0] / 1500 == pytest.approx(0.95, abs=0.025)
    assert kept[1] / 1500 < 0.85


@pytest.mark.slow
@pytest.mark.parametrize(("n", "discordance"), [(50, 0.1), (100, 0.2), (300, 0.15)])
def test_tango_covers_and_the_verdict_keeps_its_error_rate(n: int, discordance: float) -> None:
    """Exact: every table by its probability."""
    for difference in (0.0, 0.5 * discordance):
        up, down = (discordance + difference) / 2, (discordance - difference) / 2
        tables = [(g, b) for g in range(n // 2) for b in range(n // 2) if g + b <= min(n, 4 * n * discordance)]
        chances = scipy.stats.multinomial.pmf([(g, b, n - g - b) for g, b in tables], n, [up, down, 1 - up - down])
        kept = told = 0.0
        for (g, b), chance in zip(tables, chances, strict=True):
            if chance > 1e-9:
                low, high = stats.tango(g, b, n)
                kept += chance * (low <= difference <= high)
                told += chance * (stats.mcnemar(g, b) < 0.05 and (low > 0 or high < 0))
        assert 0.94 <= kept <= 0.965
        assert difference > 0 or told <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("questions", [30, 150])
def test_means_of_several_answers_are_covered(questions: int) -> None:
    rng = np.random.default_rng(questions)
    kept = 0
    for _ in range(2000):
        low, high = stats.share_interval(rng.binomial(4, rng.beta(2, 0.5, questions)) / 4)
        kept += low <= 0.8 <= high
    assert kept / 2000 == pytest.approx(0.95, abs=0.02)
