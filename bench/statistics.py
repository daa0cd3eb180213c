"""Do the statistics keep their promises? Coverage of intervals, false alarms of the verdict, power.

    python -m bench.statistics --json --write   # the full sizes; writes bench/results/statistics.json
    python -m bench.statistics --quick --json   # fewer draws, same shape

A case is a promise at one size. `ours` is what the chosen method does, `theirs` a usual alternative on the same data,
`ratio` ours / theirs. How each is found:
  exact      summed over every outcome by its probability (Wilson, McNemar, Tango): no error of simulation
  simulated  `draws` data sets; `ok` allows for two standard errors of so many draws
The alternative to Tango's interval is the percentile bootstrap over `draws` outcomes. `goal` states the limit. Coverage
of a discrete statistic jumps with p and n; a case that misses its goal stays in the list, and is named in `missed`.
Not covered: difference between training seeds, dependence that no cluster label names.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import gammaln, xlogy
from scipy.stats import binom

from bench.common import arguments, machine, tell
from danlu.evaluate import calibration, stats
from danlu.evaluate.verdict import decide, paired

FILE = Path(__file__).parent / "results" / "statistics.json"
LOW, HIGH = 0.94, 0.96
Interval = tuple[float, float]
tango = lru_cache(maxsize=None)(stats.tango)
mcnemar = lru_cache(maxsize=None)(stats.mcnemar)


def holds(interval: Interval, truth: float) -> bool:
    return interval[0] - 1e-12 <= truth <= interval[1] + 1e-12


def case(name: str, ours: float, theirs: float | None, goal: str, ok: bool, **more: Any) -> dict[str, Any]:
    value = {"value": round(ours, 4), "method": more.pop("method")}
    other = None if theirs is None else {"value": round(theirs, 4), "method": more.pop("against")}
    ratio = round(ours / theirs, 3) if theirs else None
    return {"name": name, "ours": value, "theirs": other, "ratio": ratio, "goal": goal, "ok": bool(ok), **more}


def covers(
    name: str, ours: float, theirs: float | None, draws: int | None, *, few: bool = False, **more: Any
) -> dict[str, Any]:
    """`few`: a handful of events decide, so that no interval can keep from covering more than 96 %."""
    slack = 0.0 if draws is None else 2 * math.sqrt(0.05 * 0.95 / draws)
    found = {"draws": draws, "how": "exact" if draws is None else "simulated", **more}
    goal = "at least 94 % of truths are inside (few events)" if few else "94-96 % of truths are inside"
    ok = LOW - slack <= ours <= (1.0 if few else HIGH + slack)
    return case(f"coverage: {name}", ours, theirs, goal, ok, **found)


# ---- one side


def wilson(n: int, p: float) -> dict[str, Any]:
    """Exact, mean over p - 0.01 .. p + 0.01 since coverage jumps with p; also at p itself, and the least."""
    intervals = [stats.wilson(right, n) for right in range(n + 1)]
    shares = np.arange(n + 1) / n
    half = 1.96 * np.sqrt(shares * (1 - shares) / n)
    wald = list(zip(shares - half, shares + half, strict=True))
    steps = np.linspace(-0.0099, 0.0099, 41)
    near, other = (np.array([exact_share(each, n, p + step) for step in steps]) for each in (intervals, wald))
    more = {"method": "Wilson", "against": "Wald", "at_p": round(near[20], 4), "least_around": round(near.min(), 4)}
    few = n * (1 - p) < 10
    return covers(f"share, n = {n}, p = {p}", float(near.mean()), float(other.mean()), None, few=few, **more)


def exact_share(intervals: list[Interval], n: int, p: float) -> float:
    inside = [holds(interval, p) for interval in intervals]
    return float(binom.pmf(np.arange(n + 1), n, p) @ inside)


def clustered_shares(clusters: int, several: bool, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    kept = np.zeros(2)
    for trial in range(draws):
        if several:  # four answers to a question, easy and hard ones
            values, labels, truth = rng.binomial(4, rng.beta(2, 0.5, clusters)) / 4, None, 0.8
        else:
            labels, values = dependent(clusters, rng, [0.8])
            values, truth = (values == 0).astype(float), 0.8
        kept += [
            holds(stats.share_interval(values, labels), truth),
            holds(stats.bootstrap(values, labels, resamples=1000, seed=trial), truth),
        ]
    name = f"avg@4, {clusters} questions" if several else f"share, {clusters} clusters of 1-4"
    methods = {"method": "Wilson at the effective n, with t", "against": "percentile bootstrap"}
    return covers(name, kept[0] / draws, kept[1] / draws, draws, **methods)


def dependent(clusters: int, rng: np.random.Generator, cuts: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """(labels, kinds): clusters of 1-4 questions, half of them alike within; kind i below cuts[i], the last above."""
    sizes = rng.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1], size=clusters)
    labels = np.repeat(np.arange(clusters), sizes)
    alike, common = rng.random(clusters) < 0.5, rng.random(clusters)
    drawn = np.where(alike[labels], common[labels], rng.random(labels.size))
    return labels, np.searchsorted(cuts, drawn)


def calibrated(n: int, draws: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Eight samples a question and a model that is too sure of itself; the truth from four million questions."""

    def draw(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        sure = np.maximum(rng.binomial(8, rng.beta(2, 0.7, size)), 1) / 8
        return sure, (rng.random(size) < 0.9 * sure**1.3 + 0.03).astype(float)

    many = draw(4_000_000, np.random.default_rng(9))
    truth = {
        "ece": calibration.ece(*many),
        "ece_mass": calibration.ece(*many, by="mass"),
        "brier": calibration.brier(*many),
        "aurc": calibration.aurc(*many),
        "accuracy_at_50": calibration.accuracy_at(*many, 0.5),
        "accuracy_at_80": calibration.accuracy_at(*many, 0.8),
    }
    kept = dict.fromkeys(truth, 0)
    for trial in range(draws):
        found = calibration.calibration(*draw(n, rng), resamples=800, seed=trial)
        for name, value in truth.items():
            kept[name] += holds(tuple(found[name]["ci"]), value)
    return [
        covers(f"{name}, n = {n}", kept[name] / draws, None, draws, method="bootstrap of questions") for name in truth
    ]


# ---- two sides


def tables(n: int, discordance: float, difference: float) -> tuple[np.ndarray, np.ndarray]:
    """(gained, lost) of every likely outcome, shape (tables, 2), and its probability."""
    shares = [(discordance + difference) / 2, (discordance - difference) / 2]
    ranges = [
        np.arange(max(0, math.floor(c - w)), min(n, math.ceil(c + w)) + 1)
        for c, w in map(lambda s: (n * s, 5.5 * math.sqrt(n * s) + 6), shares)
    ]
    gained, lost = (grid.ravel() for grid in np.meshgrid(*ranges, indexing="ij"))
    gained, lost = gained[gained + lost <= n], lost[gained + lost <= n]
    rest = n - gained - lost
    log = gammaln(n + 1) - gammaln(gained + 1) - gammaln(lost + 1) - gammaln(rest + 1)
    log += xlogy(gained, shares[0]) + xlogy(lost, shares[1]) + xlogy(rest, 1 - discordance)
    chance = np.exp(log)
    likely = chance > 1e-8
    return np.stack([gained, lost], axis=1)[likely], chance[likely]


def paired_single(
    n: int, discordance: float, difference: float, draws: int, rng: np.random.Generator
) -> dict[str, Any]:
    outcomes, chance = tables(n, discordance, difference)
    inside = [holds(tango(int(g), int(b), n), difference) for g, b in outcomes]
    bonett = [holds(stats.bonett_price(int(g), int(b), n), difference) for g, b in outcomes]
    total = chance.sum()
    picked, counts = np.unique(rng.choice(len(outcomes), draws, p=chance / total), return_counts=True)
    kept = 0
    for place, count in zip(picked, counts, strict=True):
        gained, lost = map(int, outcomes[place])
        values = np.repeat([1.0, -1.0, 0.0], [gained, lost, n - gained - lost])
        interval = stats.paired_interval(0 * values, values, method="bootstrap", resamples=1000, seed=int(place))
        kept += int(count) * holds(interval, difference)
    name = f"difference, n = {n}, {discordance:.0%} differ, truth {100 * difference:+.1f} points"
    other = {"bonett_price": round(float(chance @ bonett / total), 4), "bootstrap_draws": draws}
    ours = float(chance @ inside / total)
    few = n * discordance < 10
    return covers(name, ours, kept / draws, None, few=few, method="Tango", against="percentile bootstrap", **other)


def paired_clustered(clusters: int, difference: float, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    kept, discordance = np.zeros(3), 0.2
    for trial in range(draws):
        labels, kinds = dependent(clusters, rng, [(discordance + difference) / 2, discordance])
        values = np.array([1.0, -1.0, 0.0])[kinds]
        none = np.zeros(values.size)
        kept += [
            holds(stats.paired_interval(none, values, labels), difference),
            holds(
                stats.paired_interval(none, values, labels, method="bootstrap", resamples=1000, seed=trial), difference
            ),
            holds(stats.paired_interval(none, values), difference),
        ]
    name = f"difference, {clusters} clusters of 1-4, truth {100 * difference:+.1f} points"
    methods = {"method": "t over clusters", "against": "percentile bootstrap of clusters"}
    return covers(name, kept[0] / draws, kept[1] / draws, draws, ignoring_clusters=kept[2] / draws, **methods)


def paired_several(n: int, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    kept, truth = np.zeros(2), 0.125 * (1 - 0.8 / 1.3)
    for trial in range(draws):
        easy = rng.beta(0.8, 0.5, n)
        better = np.where(rng.random(n) < 0.25, (1 + easy) / 2, easy)
        base, tuned = rng.binomial(4, easy) / 4, rng.binomial(4, better) / 4
        kept += [
            holds(stats.paired_interval(base, tuned), truth),
            holds(stats.paired_interval(base, tuned, method="bootstrap", resamples=1000, seed=trial), truth),
        ]
    methods = {"method": "t over questions", "against": "percentile bootstrap"}
    return covers(f"difference of avg@4, n = {n}", kept[0] / draws, kept[1] / draws, draws, **methods)


# ---- the verdict


def entry(gained: int, lost: int, n: int) -> dict[str, Any]:
    """What `verdict.paired` gives, of a table: as far as `decide` reads it."""
    figures = {"difference": (gained - lost) / n, "ci": tango(gained, lost, n), "p": mcnemar(gained, lost), "n": n}
    return {**figures, "more_questions": None, "minimum_detectable": 0.0}


def false_alarms(n: int, discordance: float) -> dict[str, Any]:
    outcomes, chance = tables(n, discordance, 0.0)
    told = [decide(entry(int(g), int(b), n))[0] != "cannot tell" for g, b in outcomes]
    wald = [abs(g - b) > 1.959964 * math.sqrt(g + b) for g, b in outcomes]
    name = f"false verdicts: one benchmark, n = {n}, {discordance:.0%} differ"
    more = {"method": "exact McNemar and Tango", "against": "McNemar's chi-square", "how": "exact"}
    ours = float(chance @ told)
    return case(name, ours, float(chance @ wald), "at most 5 %", ours <= 0.05, **more)


def false_alarms_of_many(sizes: list[tuple[int, float]], draws: int, rng: np.random.Generator) -> dict[str, Any]:
    drawn = [rng.multinomial(n, [d / 2, d / 2, 1 - d], size=draws) for n, d in sizes]
    told = np.zeros(2)
    for trial in range(draws):
        entries = [entry(int(o[trial, 0]), int(o[trial, 1]), n) for o, (n, _) in zip(drawn, sizes, strict=True)]
        told[1] += any(decide(e)[0] != "cannot tell" for e in entries)
        for e, p in zip(entries, stats.holm([e["p"] for e in entries]), strict=True):
            e["p_adjusted"] = p
        told[0] += any(decide(e)[0] != "cannot tell" for e in entries)
    ours, theirs = told / draws
    name = f"false verdicts: any of {len(sizes)} benchmarks"
    more = {"method": "the rule with Holm", "against": "the rule without Holm", "how": "simulated", "draws": draws}
    return case(name, ours, theirs, "at most 5 %", ours <= 0.05 + 2 * math.sqrt(0.0475 / draws), **more)


def false_alarms_of_rows(n: int, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """The verdict's own way from rows: four answers a question, sign-flip test by question."""
    told = 0
    names = ["wrong", "right"]
    for trial in range(draws):
        easy = rng.beta(0.8, 0.5, n)
        base, tuned = (rng.random((n, 4)) < easy[:, None] for _ in range(2))
        pairs = [
            ({"id": i, "outcome": names[int(base[i, k])]}, {"id": i, "outcome": names[int(tuned[i, k])]})
            for i in range(n)
            for k in range(4)
        ]
        told += decide(paired(pairs, seed=trial))[0] != "cannot tell"
    more = {"method": "sign-flip test and t", "how": "simulated", "draws": draws}
    name, ours = f"false verdicts: rows of 4 answers, n = {n}", told / draws
    return case(name, ours, None, "at most 5 %", ours <= 0.05 + 2 * math.sqrt(0.0475 / draws), **more)


def false_alarms_of_clusters(clusters: int, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    told = np.zeros(2)
    for trial in range(draws):
        labels, kinds = dependent(clusters, rng, [0.1, 0.2])
        values = np.array([1.0, -1.0, 0.0])[kinds]
        none = np.zeros(values.size)
        found = stats.paired_interval(none, values, labels)
        told[0] += stats.sign_flip(values, labels, resamples=2000, seed=trial) < 0.05 and not holds(found, 0.0)
        told[1] += mcnemar(int(np.sum(values > 0)), int(np.sum(values < 0))) < 0.05
    ours, theirs = told / draws
    more = {"method": "sign-flip of clusters and t", "against": "McNemar, clusters ignored", "how": "simulated"}
    ok = ours <= 0.05 + 2 * math.sqrt(0.0475 / draws)
    name = f"false verdicts: {clusters} clusters of 1-4"
    return case(name, ours, theirs, "at most 5 %", ok, draws=draws, **more)


def power(n: int, discordance: float) -> dict[str, Any]:
    """Of the whole rule at the minimum detectable effect, exact."""

    def found(effect: float) -> float:
        outcomes, chance = tables(n, max(discordance, effect), effect)
        return float(chance @ [decide(entry(int(g), int(b), n))[0] == "better" for g, b in outcomes])

    effect = stats.minimum_detectable(n, discordance)
    ours, theirs = found(effect), found(stats.minimum_detectable(n, discordance, test="sign_flip"))
    name = f"power: n = {n}, {discordance:.0%} differ, effect {100 * effect:.1f} points"
    more = {"method": "effect by exact power", "against": "effect by Connor's formula", "how": "exact"}
    return case(name, ours, theirs, "77-83 % found", 0.77 <= ours <= 0.83, **more)


def power_of_several(n: int, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """Four answers a question: the effect for the sign-flip test, its mean square from a large draw."""

    def draw(size: int, gain: float, rng: np.random.Generator) -> np.ndarray:
        easy = rng.beta(1.5, 1.0, size) * 0.8  # room to gain everywhere
        return (rng.binomial(4, easy + gain) - rng.binomial(4, easy)) / 4

    square = float(np.mean(draw(1_000_000, 0.0, np.random.default_rng(5)) ** 2))
    effect = stats.minimum_detectable(n, square, test="sign_flip")
    square = float(np.mean(draw(1_000_000, effect, np.random.default_rng(5)) ** 2))
    effects = [stats.minimum_detectable(n, square, test=test) for test in ("sign_flip", "mcnemar")]
    shares = []
    for gain in effects:
        told = 0
        for trial in range(draws):
            values = draw(n, gain, rng)
            low, _ = stats.paired_interval(0 * values, values)
            told += low > 0 and stats.sign_flip(values, resamples=1000, seed=trial) < 0.05
        shares.append(told / draws)
    name = f"power: avg@4, n = {n}, effect {100 * effects[0]:.1f} points"
    more = {"method": "effect of the sign-flip test", "against": "effect of McNemar's test", "how": "simulated"}
    ok = 0.77 <= shares[0] <= 0.83
    return case(name, shares[0], shares[1], "77-83 % found", ok, draws=draws, **more)


def cases(quick: bool) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    share = 40 if quick else 1
    sizes = (30, 100) if quick else (30, 100, 300, 1000)
    many: list[tuple[int, float]] = [(100, 0.2), (300, 0.15), (300, 0.3), (1000, 0.1), (1000, 0.2)]
    plan: list[Callable[[], Any]] = []
    plan += [lambda n=n, p=p: wilson(n, p) for n in sizes[1:] for p in (0.5, 0.7, 0.9, 0.98)]
    plan += [
        lambda n=n, d=d, t=t: paired_single(n, d, t, 1000 // share, rng)
        for n in sizes
        for d, t in ((0.05, 0.03), (0.1, 0.0), (0.1, 0.04), (0.2, 0.0), (0.2, 0.08))
    ]
    for c in (20, 50, 100, 300):
        plan += [lambda c=c, t=t: paired_clustered(c, t, 2000 // share, rng) for t in (0.0, 0.06)]
        plan += [lambda c=c: paired_several(c, 2000 // share, rng)]
        plan += [lambda c=c, s=s: clustered_shares(c, s, 2000 // share, rng) for s in (True, False)]
    plan += [lambda n=n: calibrated(n, 400 // share, rng) for n in (100, 300, 1000)[: len(sizes) - 1]]
    plan += [lambda n=n, d=d: false_alarms(n, d) for n in sizes for d in (0.05, 0.1, 0.2)]
    plan += [lambda: false_alarms_of_many(many, 20_000 // share, rng)]
    plan += [lambda n=n: false_alarms_of_rows(n, 600 // share, rng) for n in (50, 200)]
    plan += [lambda: false_alarms_of_clusters(100, 2000 // share, rng)]
    plan += [lambda n=n, d=d: power(n, d) for n in (50, *sizes[1:]) for d in (0.1, 0.2, 0.4)]
    plan += [lambda: power_of_several(200, 2000 // share, rng)]
    found: list[dict[str, Any]] = []
    for step in plan:
        result = step()
        found += result if isinstance(result, list) else [result]
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name} of bench/results")
    options = parser.parse_args()
    began = time.monotonic()
    found = cases(options.quick)
    missed = [one["name"] for one in found if not one["ok"]]
    result = {"name": "statistics", "cases": found, "runs": 1, "missed": missed}
    result |= {"seconds": round(time.monotonic() - began, 1), "machine": machine()}
    if options.write and not options.quick:
        FILE.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    tell(result, options.json)


if __name__ == "__main__":
    main()
