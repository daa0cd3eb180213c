"""The gate: may this model ship? It fails where something that should have stayed got significantly worse.

Four questions are asked of a comparison, each family Holm-adjusted by itself:
  accuracy         of the guard benchmarks (general knowledge, safety): p < 0.05 and an interval below 0. Leaked
                   questions are left out, as in the verdict.
  stop rate, format rate, language match     of every benchmark, controls included: McNemar's exact test by question
                   (a sign-flip test for several answers), p < 0.05 and a fall.
What was not measured is told and does not pass silently: a guard that was not asked fails the gate, a rate that rows
do not know is listed in `unmeasured` (of controls it is not: a bare letter has neither format nor language).
Not covered: a fall too small for the questions asked. "Nothing got worse" means that none could be shown; the
comparison's `minimum_detectable` says how large it would have had to be.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from danlu.evaluate import stats
from danlu.evaluate.verdict import ALPHA, judged, p_text, points

RATES = {"stop_rate": "stop rate", "format_rate": "format rate", "language_match": "language match"}


def gate(comparison: dict[str, Any], *, guard: set[str] | None = None) -> dict[str, Any]:
    """{"ok", "failures", "unmeasured", "guarded", "sentence"} of a comparison (`verdict.compare`).

    `guard` names benchmarks, or the beginnings of their names ("safety" guards safety-zh and safety-en); a control
    (cmexam@no_think) is guarded only under its own name. None guards every benchmark on which the verdict rests, an
    empty set none. Every failure is {"benchmark", "what", "n", "base", "tuned", "difference", "ci", "p"}, `p` adjusted;
    a guard that nothing answers to is {"benchmark", "what": "not asked"}.
    """
    benchmarks = comparison["benchmarks"]
    guarded = [entry for entry in benchmarks if _is_guarded(entry, guard)]
    asked = [(entry["name"], judged(entry)) for entry in guarded]
    failures: list[dict[str, Any]] = [
        {"benchmark": name, "what": "not asked"}
        for name in sorted(guard or ())
        if not any(entry["name"].startswith(name) for entry in guarded)
    ]
    failures += _worse("accuracy", [(name, figures) for name, figures in asked if figures["n"]], interval=True)
    unmeasured = [{"benchmark": name, "what": "accuracy"} for name, figures in asked if not figures["n"]]
    for key, what in RATES.items():
        tests = [(entry["name"], (entry.get("rate_tests") or {}).get(key)) for entry in benchmarks]
        failures += _worse(what, [(name, test) for name, test in tests if test], interval=False)
        unmeasured += [
            {"benchmark": entry["name"], "what": what}
            for entry, (_, test) in zip(benchmarks, tests, strict=True)
            if not test and entry.get("decides", True)
        ]
    names = [entry["name"] for entry in guarded]
    return {
        "ok": not failures,
        "failures": failures,
        "unmeasured": unmeasured,
        "guarded": names,
        "sentence": _sentence(failures, unmeasured, names),
    }


def _is_guarded(entry: dict[str, Any], guard: set[str] | None) -> bool:
    if guard is None or not entry.get("decides", True):
        return entry.get("decides", True) if guard is None else entry["name"] in guard
    return any(entry["name"].startswith(name) for name in guard)


def _worse(what: str, tests: list[tuple[str, dict[str, Any]]], *, interval: bool) -> list[dict[str, Any]]:
    kept = ("n", "base", "tuned", "difference", "ci")
    return [
        {"benchmark": name, "what": what, **{key: test[key] for key in kept}, "p": p}
        for (name, test), p in zip(tests, stats.holm([test["p"] for _, test in tests]), strict=True)
        if p < ALPHA and test["difference"] < 0 and (not interval or test["ci"][1] < 0)
    ]


def _sentence(failures: list[dict[str, Any]], unmeasured: list[dict[str, Any]], guarded: list[str]) -> str:
    if failures:
        return f"fails: {', '.join(map(_failure, failures))}"
    missing = {test["what"] for test in unmeasured}
    held = [what for what in RATES.values() if what not in missing]
    parts = [f"accuracy on {_list(guarded)}"] if guarded and "accuracy" not in missing else []
    parts += [_list(held)] if held else []
    told = [f"{what} on {_list(t['benchmark'] for t in unmeasured if t['what'] == what)}" for what in sorted(missing)]
    rest = f"; not measured: {', '.join(told)}" if told else ""
    if not parts:
        return f"passes, but nothing was measured{rest}"
    return f"passes: no significant fall of {', nor of '.join(parts)}{rest}"


def _failure(test: dict[str, Any]) -> str:
    if "p" not in test:
        return f"guard {test['benchmark']} was not asked"
    change = f"{100 * test['base']:.1f} % -> {100 * test['tuned']:.1f} %, {points(test['difference'])} points"
    return f"{test['what']} on {test['benchmark']} fell ({change}, {p_text(test['p'])})"


def _list(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
