"""The verdict: the same questions before and after, paired, in one plain sentence.

A side is an evaluation run, its artifact (report.json or scores.jsonl), or a score file. Rows are paired by
(benchmark, id, index, shuffle). One answer a question: McNemar's exact test and Tango's interval; several: a sign-flip
test by question and Student's t. better / worse needs p < 0.05 and an interval without 0; with several benchmarks p is
Holm-adjusted, so that ten benchmarks do not find a winner by chance. Tasks, subjects and languages are described, with
their own adjusted p, and never decide.

What decides:
  controls   cmexam@no_think, @answer_only and @loglikelihood are controls of cmexam: they are adjusted among
             themselves and never decide beside it. Where nothing but controls of a benchmark were asked, the first of
             them in that order decides.
  shuffles   A question is judged as published (shuffle 0, or none). One that was asked only with its options in other
             orders is judged by their mean.
  leaks      Questions known to be in the training data do not decide: where there are any, the overall verdict rests
             on `without_leaked`, and the sentence says so. Each benchmark's own figures and verdict are over all.
Not covered: leaks that no row tells of, and differences between runs of training with other seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danlu.errors import DanluError
from danlu.evaluate import stats
from danlu.evaluate.score import OUTCOMES, Row, score
from danlu.run import Run, read_json, read_jsonl

ALPHA = 0.05
NAMED = 5  # ids shown in an error or listed as unpaired
SMALL = stats.SMALL  # a group with fewer questions is not tested
CONTROLS = ("no_think", "answer_only", "loglikelihood")  # in the order in which one stands in for what it controls
KNOWLEDGE = ("answer_only", "loglikelihood")  # controls that leave reasoning, format and stopping out
MODES = ("think", *CONTROLS)
Key = tuple[str, str, int, int]  # benchmark, id, index, shuffle
Pairs = list[tuple[Row, Row]]  # base, tuned


def compare(a: Run | Path | str, b: Run | Path | str, *, partial: bool = False, seed: int = 0) -> dict[str, Any]:
    """`b` (tuned) against `a` (base): the object of `danlu compare`.

    {"verdict", "sentence", "benchmarks": [...], "unpaired": {"base", "tuned", "ids"}, "settings_differ"}. Differences
    are fractions, pairs of both sides are {"base", "tuned"}, over the paired rows and None where not every row tells.
    A benchmark has

        name, mode, decides             whether the overall verdict rests on it
        n, base, tuned, difference, ci, p, p_adjusted, gained, lost, gained_ids, lost_ids, verdict, sentence
        minimum_detectable, more_questions
        outcomes                        both sides: shares of right, wrong, none, ambiguous, truncated
        format_rate, stop_rate, language_match, repetition, mean_tokens     both sides
        rate_tests                      paired figures of the first three, or None (what `gate` reads)
        leaked, leaked_unknown          questions that a training row holds (None: no row tells); that no row tells of
        without_leaked                  the figures without them, None where `leaked` is
        tasks, subjects, languages      the figures by group, worth a test from 20 questions on (else `too_small`)
        shuffles                        {"orders", figures over all orders, "consistent": right in every order} or None
        budgets                         [{"budget", "base", "tuned"}]: share right had the answers been cut there
        format_and_knowledge            only where an answer-only control was asked: see `divide`

    DanluError when a side cannot be read, when nothing is shared, when the same id asks different questions, or when a
    row stands on one side only; `partial` counts such rows as unpaired instead.
    """
    base, tuned = keyed(_read(a), _name(a)), keyed(_read(b), _name(b))
    shared = [key for key in base if key in tuned]
    only_base, only_tuned = [key for key in base if key not in tuned], [key for key in tuned if key not in base]
    _check_pairs(a, b, shared, only_base, only_tuned, partial)
    for key in shared:
        asked = [(side.get("question"), side.get("target"), side.get("options")) for side in (base[key], tuned[key])]
        if any(x is not None and y is not None and x != y for x, y in zip(*asked, strict=True)):
            hint = "the two sides were not asked the same; evaluate both on the same benchmarks"
            raise DanluError(f"{key[1]} of {key[0]} is another question in {_name(b)} than in {_name(a)}", hint)
    groups: dict[str, Pairs] = {}
    for key in shared:
        groups.setdefault(key[0], []).append((base[key], tuned[key]))
    benchmarks = [_benchmark(name, pairs, seed) for name, pairs in groups.items()]
    _settle(benchmarks)
    for entry in benchmarks:
        control = _control_of(entry, benchmarks)
        if control:
            entry["format_and_knowledge"] = divide(entry, control, groups, seed)
    verdict, sentence = _overall([entry for entry in benchmarks if entry["decides"]])
    ids = [f"{key[0]}/{key[1]}" for key in [*only_base, *only_tuned][:NAMED]]
    return {
        "verdict": verdict,
        "sentence": sentence,
        "benchmarks": benchmarks,
        "unpaired": {"base": len(only_base), "tuned": len(only_tuned), "ids": ids},
        "settings_differ": _settings_differ(a, b),
    }


# ---- reading a side


def keyed(rows: Iterable[Row], name: str) -> dict[Key, Row]:
    """Scored rows by what pairs them; DanluError, with the `name` of the side, for rows that cannot be paired."""
    found: dict[Key, Row] = {}
    for row in rows:
        if row.get("outcome") not in OUTCOMES or row.get("id") is None:
            raise DanluError(f"{name} has a row without id and outcome", "score it first with: danlu score FILE")
        benchmark, index, shuffle = str(row.get("benchmark") or "answers"), row.get("index"), row.get("shuffle")
        key = (benchmark, str(row["id"]), int(index or 0), int(shuffle or 0))
        if key in found:
            raise DanluError(f"{name}: id {key[1]!r} occurs twice in {key[0]}", "make the ids unique")
        found[key] = {**row, "benchmark": key[0], "id": key[1]}
    if not found:
        raise DanluError(f"{name} holds no scored answers", "compare evaluation runs or score files")
    return found


def _read(side: Run | Path | str) -> list[Row]:
    path = _path(side)
    if path.is_dir():
        Run.open(path)  # refuses a directory that is no run
        samples = read_jsonl(path / "samples.jsonl")
        return samples or read_jsonl(path / "artifact" / "scores.jsonl")
    if not path.is_file():
        raise DanluError(f"{path} is neither a run nor a file", "list runs with: danlu ls")
    if path.suffix == ".json":
        value = read_json(path)
        if isinstance(value, dict) and isinstance(value.get("rows"), list):
            return value["rows"]
        return read_jsonl(path.with_name("scores.jsonl"))
    rows = read_jsonl(path)
    raw = rows and all("outcome" not in row and "output" in row for row in rows)
    return score(rows)["rows"] if raw else rows


def _path(side: Run | Path | str) -> Path:
    return side.path if isinstance(side, Run) else Path(side)


def _name(side: Run | Path | str) -> str:
    return str(_path(side))


def _settings(side: Run | Path | str) -> dict[str, Any]:
    path = _path(side)
    report = path / "artifact" / "report.json" if path.is_dir() else path if path.name == "report.json" else None
    return read_json(report).get("settings", {}) if report and report.is_file() else {}


def _settings_differ(a: Run | Path | str, b: Run | Path | str) -> list[str]:
    """ "key: base's -> tuned's" for each evaluation setting known on both sides and not equal."""
    base, tuned = _settings(a), _settings(b)
    return [f"{key}: {base[key]} -> {tuned[key]}" for key in base if key in tuned and base[key] != tuned[key]]


def _check_pairs(
    a: Run | Path | str,
    b: Run | Path | str,
    shared: list[Key],
    only_base: list[Key],
    only_tuned: list[Key],
    partial: bool,
) -> None:
    if not shared:
        hint = "evaluate both on the same benchmarks"
        raise DanluError(f"{_name(a)} and {_name(b)} have no question in common", hint)
    if partial or not (only_base or only_tuned):
        return
    named = ", ".join(f"{key[0]}/{key[1]}" for key in [*only_base, *only_tuned][:NAMED])
    raise DanluError(
        f"{len(only_base)} answers are only in {_name(a)} and {len(only_tuned)} only in {_name(b)}: {named}",
        "evaluate both on the same benchmarks, or compare what they share with --partial",
    )


# ---- figures


def _benchmark(name: str, pairs: Pairs, seed: int) -> dict[str, Any]:
    """Every figure of one benchmark but those that need the others (adjusted p, verdict, `decides`)."""
    first = [row.get("mode") for row in reversed(pairs[0])]
    own = as_published(pairs)
    leaked = _leaked(own)
    told = {pair[0]["id"] for pair in own if any(row.get("leaked") is not None for row in pair)}
    entry: dict[str, Any] = {"name": name, "mode": next(filter(None, [*first, split_name(name)[1]]), None)}
    entry |= paired(own, seed=seed)
    entry["outcomes"] = {side: _outcomes(pair[i] for pair in own) for i, side in enumerate(("base", "tuned"))}
    entry["mean_tokens"] = _means(own, lambda row: row.get("tokens"))
    entry["repetition"] = _means(own, lambda row: row.get("repetition"))
    entry["language_match"] = _means(_spoken(own), RATES["language_match"])
    entry["rate_tests"] = {
        rate: _rate_test(_spoken(own) if rate == "language_match" else own, value, seed)
        for rate, value in RATES.items()
    }
    entry["leaked"] = len(leaked) if told else None
    entry["leaked_unknown"] = entry["n"] - len(told)
    clean = [pair for pair in own if pair[0]["id"] not in leaked]
    entry["without_leaked"] = _short(clean, seed) if told else None
    entry["tasks"] = _groups(own, "task", seed)
    entry["subjects"] = _groups(own, "subject", seed)
    entry["languages"] = _groups(own, "language", seed)
    entry["shuffles"] = _shuffles(pairs, seed)
    entry["budgets"] = _budgets(own)
    return entry


def as_published(pairs: Pairs) -> Pairs:
    """Of each question the pairs in the published order of options; all of them where it was never asked so."""
    known = {pair[0]["id"] for pair in pairs if not pair[0].get("shuffle")}
    return [pair for pair in pairs if not pair[0].get("shuffle") or pair[0]["id"] not in known]


def _leaked(pairs: Pairs) -> set[str]:
    return {pair[0]["id"] for pair in pairs if any(row.get("leaked") for row in pair)}


def paired(pairs: Pairs, *, seed: int = 0) -> dict[str, Any]:
    """Figures of paired rows (base, tuned): n questions, accuracies, difference, interval, p, gained and lost ids."""
    found = _accuracy(pairs, seed)
    rates = {rate: _means(pairs, RATES[rate]) for rate in ("format_rate", "stop_rate")}
    return {**found, **rates}


def _accuracy(pairs: Pairs, seed: int) -> dict[str, Any]:
    """`paired` without the rates."""
    found = _figures(pairs, _right, seed)
    n, square = found["n"], found.pop("square")
    test: stats.Test = "mcnemar" if len(pairs) == n else "sign_flip"
    found["minimum_detectable"] = stats.minimum_detectable(n, square, test=test)
    found["more_questions"] = stats.more_questions(n, found["difference"] or 0.0, square, test=test)
    return found


def _figures(pairs: Pairs, value: Callable[[Row], Any], seed: int) -> dict[str, Any]:
    """Paired figures of a share; base, tuned, difference and ci are None without any pair."""
    questions: dict[str, int] = {}  # id -> row of `sums`
    sums: list[list[float]] = []  # right before, right after, answers
    for base, tuned in pairs:
        place = questions.setdefault(base["id"], len(sums))
        if place == len(sums):
            sums.append([0.0, 0.0, 0.0])
        own = sums[place]
        own[0], own[1], own[2] = own[0] + value(base), own[1] + value(tuned), own[2] + 1
    if not questions:
        unknown = dict.fromkeys(("base", "tuned", "difference", "ci"))
        return {"n": 0, **unknown, "p": 1.0, "gained": 0, "lost": 0, "gained_ids": [], "lost_ids": [], "square": 0.0}
    totals = np.array(sums)
    means = totals[:, :2] / totals[:, 2:]
    differences = means[:, 1] - means[:, 0]
    gained = [name for name, d in zip(questions, differences, strict=True) if d > 0]
    lost = [name for name, d in zip(questions, differences, strict=True) if d < 0]
    single = len(pairs) == len(questions)
    return {
        "n": len(questions),
        "base": float(means[:, 0].mean()),
        "tuned": float(means[:, 1].mean()),
        "difference": float(differences.mean()),
        "ci": list(stats.paired_interval(means[:, 0], means[:, 1], seed=seed)),
        "p": stats.mcnemar(len(gained), len(lost)) if single else stats.sign_flip(differences, seed=seed),
        "gained": len(gained),
        "lost": len(lost),
        "gained_ids": gained,
        "lost_ids": lost,
        "square": float(np.mean(differences**2)),
    }


def _right(row: Row) -> bool:
    return bool(row["outcome"] == "right")


RATES: dict[str, Callable[[Row], bool | None]] = {
    "stop_rate": lambda row: row["finish"] == "stop" if row.get("finish") is not None else None,
    "format_rate": lambda row: row.get("well_formed"),
    "language_match": lambda row: row.get("language_match"),
}


def _spoken(pairs: Pairs) -> Pairs:
    """Pairs of answers in a language that both tell of (a number or a letter has none)."""
    return [pair for pair in pairs if all(row.get("language_match") is not None for row in pair)]


def _asked(pairs: Pairs) -> Pairs:
    """Pairs that a model answered: a row of the source without a usable gold says nothing about how it writes."""
    return [pair for pair in pairs if not any(row.get("unscorable") for row in pair)]


def _rate_test(pairs: Pairs, value: Callable[[Row], bool | None], seed: int) -> dict[str, Any] | None:
    asked = _asked(pairs)
    if not asked or any(value(row) is None for pair in asked for row in pair):
        return None
    found = _figures(asked, value, seed)
    return {key: found[key] for key in ("n", "base", "tuned", "difference", "ci", "p", "gained", "lost")}


def _means(pairs: Pairs, value: Callable[[Row], Any]) -> dict[str, float | None]:
    def mean(rows: Iterable[Row]) -> float | None:
        known = [value(row) for row in rows]
        return None if None in known or not known else sum(map(float, known)) / len(known)

    asked = _asked(pairs)
    return {"base": mean(base for base, _ in asked), "tuned": mean(tuned for _, tuned in asked)}


def _outcomes(rows: Iterable[Row]) -> dict[str, float]:
    found = [row["outcome"] for row in rows]
    return {name: found.count(name) / len(found) for name in OUTCOMES}


def _short(pairs: Pairs, seed: int) -> dict[str, Any]:
    """The figures of a part: without lists of ids."""
    found = _accuracy(pairs, seed)
    return {key: found[key] for key in found if key not in ("gained_ids", "lost_ids")}


def _groups(pairs: Pairs, field: str, seed: int) -> list[dict[str, Any]]:
    """Figures of each group of pairs, in order of appearance; p is adjusted for those large enough to be tested."""
    groups: dict[str, Pairs] = {}
    for base, tuned in pairs:
        name = base.get(field) if base.get(field) is not None else tuned.get(field)
        if name is not None:
            groups.setdefault(str(name), []).append((base, tuned))
    entries = [{"name": name, **_short(own, seed)} for name, own in groups.items()]
    for entry in entries:
        entry["too_small"] = entry["n"] < SMALL
    _adjust([entry for entry in entries if not entry["too_small"]])
    for entry in entries:
        if entry["too_small"]:
            few = f"too small to tell: {points(entry['difference'])} points on {entry['n']} questions"
            entry |= {"p_adjusted": None, "verdict": "cannot tell", "sentence": few}
    return entries


def _adjust(entries: Sequence[dict[str, Any]]) -> None:
    for entry, p in zip(entries, stats.holm([entry["p"] for entry in entries]), strict=True):
        entry["p_adjusted"] = p
        entry["verdict"], entry["sentence"] = decide(entry)


def _shuffles(pairs: Pairs, seed: int) -> dict[str, Any] | None:
    """Figures over every order of the options, and the share of questions that are right in all of them."""
    orders = {int(pair[0].get("shuffle") or 0) for pair in pairs}
    if orders == {0}:
        return None
    several: dict[str, Pairs] = {}
    for pair in pairs:
        several.setdefault(pair[0]["id"], []).append(pair)
    several = {name: own for name, own in several.items() if len({pair[0].get("shuffle") for pair in own}) > 1}
    consistent = {
        side: sum(all(_right(pair[i]) for pair in own) for own in several.values()) / len(several) if several else None
        for i, side in enumerate(("base", "tuned"))
    }
    return {"orders": len(orders), **_short(pairs, seed), "consistent": consistent}


def _budgets(pairs: Pairs) -> list[dict[str, Any]]:
    """Share of all answers that are right at each budget of tokens that both sides know, smallest first."""
    sides: list[list[Row]] = [[pair[i].get("budgets") or {} for pair in pairs] for i in (0, 1)]
    shared = set.intersection(*({budget for known in side for budget in known} for side in sides))

    def share(side: list[Row], budget: str) -> float:
        return sum(known.get(budget) == "right" for known in side) / len(pairs)

    return [
        {"budget": int(name), "base": share(sides[0], name), "tuned": share(sides[1], name)}
        for name in sorted(shared, key=int)
    ]


# ---- what decides


def split_name(name: str) -> tuple[str, str | None]:
    """ "cmexam@no_think" -> ("cmexam", "no_think"); a name that ends in no mode stays whole."""
    family, _, mode = name.rpartition("@")
    return (family, mode) if family and mode in MODES else (name, None)


def _settle(benchmarks: list[dict[str, Any]]) -> None:
    """Set `decides`, adjusted p, verdict and sentence, with and without leaked questions."""
    families: dict[str, list[dict[str, Any]]] = {}
    for entry in benchmarks:
        families.setdefault(split_name(entry["name"])[0], []).append(entry)
    for family in families.values():
        free = [entry for entry in family if entry["mode"] not in CONTROLS]
        chosen = free or [min(family, key=lambda entry: CONTROLS.index(entry["mode"]))]
        for entry in family:
            entry["decides"] = any(entry is one for one in chosen)
    for decides in (True, False):
        own = [entry for entry in benchmarks if entry["decides"] == decides]
        _adjust(own)
        clean = [dict(judged(entry)) for entry in own]
        _adjust(clean)
        for entry, figures in zip(own, clean, strict=True):
            if entry["without_leaked"] is not None:
                entry["without_leaked"] = figures


def judged(entry: dict[str, Any]) -> dict[str, Any]:
    """The figures of a benchmark on which its part of the overall verdict rests: without leaks that are known."""
    return entry.get("without_leaked") or entry


def _control_of(entry: dict[str, Any], benchmarks: list[dict[str, Any]]) -> dict[str, Any] | None:
    if entry["mode"] in CONTROLS:
        return None
    own = [e for e in benchmarks if split_name(e["name"])[0] == split_name(entry["name"])[0]]
    found = [e for mode in KNOWLEDGE for e in own if e["mode"] == mode]
    return found[0] if found else None


def divide(
    entry: dict[str, Any], control: dict[str, Any], groups: dict[str, Pairs], seed: int = 0
) -> dict[str, Any] | None:
    """How much of a benchmark's gain its answer-only control shows too, over the questions that both asked.

    Leaked questions are left out: what was learnt by heart would pass for knowledge.

    {"control", "n", "difference", "answer_only_difference", "answer_only_ci", "rest", "rest_ci", "share", "sentence"}:
    the control sees knowledge only, so `rest` (their difference, paired by question) is what
    format, reasoning and stopping gained. `share` is the control's part, None where there is no gain to divide.
    None where the two share no question.
    """
    asked = [as_published(groups[e["name"]]) for e in (entry, control)]
    leaked = _leaked([*asked[0], *asked[1]])
    free, only = map(_changes, asked)
    shared = [name for name in free if name in only and name not in leaked]
    if not shared:
        return None
    whole, part = (np.array([changes[name] for name in shared]) for changes in (free, only))
    none = np.zeros(len(shared))
    whole_ci, part_ci = (stats.paired_interval(none, values, seed=seed) for values in (whole, part))
    rest_ci = stats.paired_interval(part, whole, seed=seed)
    difference, shown = float(whole.mean()), float(part.mean())
    rest = difference - shown
    gain = whole_ci[0] > 0
    name = entry["name"]
    told = f"the answer-only control shows {points(shown)} (95 % CI {_range(part_ci)})"
    remains = f"{points(rest)} (95 % CI {_range(rest_ci)})"
    if not gain:
        sentence = f"{name}: no gain to divide ({points(difference)} points, 95 % CI {_range(whole_ci)}); {told}"
    elif part_ci[0] <= 0:
        sentence = (
            f"{name}: of {points(difference)} points {told}, no gain in knowledge that it could tell; "
            f"format, reasoning and stopping make up {remains}"
        )
    else:
        of = f", {100 * shown / difference:.0f} % of it" if shown <= difference else ", as much or more"
        more = "the rest could be nothing" if rest_ci[0] <= 0 <= rest_ci[1] else "format, reasoning and stopping"
        sentence = f"{name}: of {points(difference)} points {told}{of}: knowledge; what remains is {remains}: {more}"
    return {
        "control": control["name"],
        "n": len(shared),
        "difference": difference,
        "answer_only_difference": shown,
        "answer_only_ci": list(part_ci),
        "rest": rest,
        "rest_ci": list(rest_ci),
        "share": shown / difference if gain else None,
        "sentence": sentence,
    }


def _changes(pairs: Pairs) -> dict[str, float]:
    found: dict[str, list[int]] = {}
    for base, tuned in pairs:
        found.setdefault(base["id"], []).append(_right(tuned) - _right(base))
    return {name: sum(values) / len(values) for name, values in found.items()}


# ---- words


def decide(entry: dict[str, Any]) -> tuple[str, str]:
    """(verdict, sentence) of one comparison with `difference`, `ci`, `p`, `n` (and `p_adjusted`, if several)."""
    if not entry["n"]:
        return "cannot tell", "cannot tell yet: every question is in the training data"
    p, (low, high) = entry.get("p_adjusted", entry["p"]), entry["ci"]
    figures = f"{points(entry['difference'])} points, 95 % CI {_range(entry['ci'])}, {p_text(p)}, n = {entry['n']:,}"
    if p < ALPHA and (low > 0 or high < 0):
        verdict = "better" if entry["difference"] > 0 else "worse"
        return verdict, f"{verdict}: {figures}"
    return "cannot tell", f"cannot tell yet: {figures}; {_would_tell(entry)}"


def _would_tell(entry: dict[str, Any]) -> str:
    more = entry["more_questions"]
    if more is not None and more <= 1_000_000:
        return f"about {more:,} more questions would tell"
    return f"{entry['n']:,} questions show differences from {100 * entry['minimum_detectable']:.1f} points on"


def _overall(deciding: list[dict[str, Any]]) -> tuple[str, str]:
    if len(deciding) == 1:
        figures = judged(deciding[0])
        return figures["verdict"], f"{figures['sentence']}{_leak_note(deciding)}"
    found = {judged(entry)["verdict"] for entry in deciding}
    decided = found - {"cannot tell"}
    verdict = "mixed" if len(decided) == 2 else next(iter(decided), "cannot tell")
    opening = "cannot tell yet" if verdict == "cannot tell" else verdict
    parts = []
    for word in ("better", "worse", "cannot tell"):
        own = [_reason(entry) for entry in deciding if judged(entry)["verdict"] == word]
        parts += [f"{word} on {' and '.join(own)}" if decided else ", ".join(own)] if own else []
    return verdict, f"{opening}: {', '.join(parts)}{_leak_note(deciding)}"


def _reason(entry: dict[str, Any]) -> str:
    figures = judged(entry)
    if not figures["n"]:
        return f"{entry['name']} (every question is in the training data)"
    told = f"{points(figures['difference'])} points, {p_text(figures['p_adjusted'])}, n = {figures['n']:,}"
    more = f"; {_would_tell(figures)}" if figures["verdict"] == "cannot tell" else ""
    return f"{entry['name']} ({told}{more})"


def _leak_note(deciding: list[dict[str, Any]]) -> str:
    told = [
        f"{entry['leaked']:,} of {entry['n']:,} questions of {entry['name']} (with them {points(entry['difference'])})"
        for entry in deciding
        if entry["leaked"]
    ]
    return f". Left out as leaked: {', '.join(told)}" if told else ""


def _range(ci: Sequence[float]) -> str:
    return f"{points(ci[0])}..{points(ci[1])}"


def points(fraction: float) -> str:
    """A difference in percentage points with its sign; 0 has a plus."""
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"


def p_text(p: float) -> str:
    """ "p < 0.001", or p in two significant figures."""
    return "p < 0.001" if p < 0.001 else f"p = {float(f'{p:.2g}'):.10g}"
