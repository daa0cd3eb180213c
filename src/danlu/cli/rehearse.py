"""Body of `danlu rehearse`: a table of the stages, what was found and when it would have been met, and the outcome."""

from __future__ import annotations

from typing import Any

from danlu.cli.readers import print_json, table
from danlu.recipe import load

MARKS = {"error": "FAILS", "warning": "warning", "info": "note"}


def show_rehearsal(name: str, overrides: list[str], keep: bool, as_json: bool) -> int:
    """Rehearse a recipe and print what was found; 1 when something would have failed, else 0."""
    recipe = load(name, overrides)
    from danlu.rehearse.rehearse import rehearse

    result = rehearse(recipe, keep=keep)
    if as_json:
        print_json(result)
    else:
        _print(result)
    return 0 if result["ok"] else 1


def _print(result: dict[str, Any]) -> None:
    rows = []
    for stage in result["stages"]:
        told = [line for finding in stage["findings"] for line in _lines(finding)] or [""]
        rows.append((stage["name"], "ok" if stage["ok"] else "FAILED", f"{stage['seconds']:.1f}", told[0]))
        rows += [("", "", "", line) for line in told[1:]]
    table(("STAGE", "", "SECONDS", "FOUND"), rows)
    print()
    for what in result["not_rehearsed"]:
        print(f"not rehearsed: {what}")
    print(outcome(result))
    if result["kept"]:
        print(f"kept: {result['kept']}")


def _lines(finding: dict[str, str]) -> list[str]:
    """A finding as one line, and what to do as another."""
    mark = MARKS[finding["level"]]
    head = f"{mark}, {finding['when']}: " if finding["when"] else f"{mark}: "
    return [head + finding["what"], *([f"  -> {finding['do']}"] if finding["do"] else [])]


def outcome(result: dict[str, Any]) -> str:
    """The end of a rehearsal in a sentence."""
    found = [finding["level"] for stage in result["stages"] for finding in stage["findings"]]
    wrong = sum(level == "error" for level in found)
    warned = sum(level == "warning" for level in found)
    told = f"{wrong} {'thing' if wrong == 1 else 'things'} would fail" if wrong else "nothing found that would fail"
    less = f", {len(result['not_rehearsed'])} not rehearsed" if result["not_rehearsed"] else ""
    return f"{result['recipe']}: {told}; {warned} warnings{less}; {result['seconds']:.0f} s"
