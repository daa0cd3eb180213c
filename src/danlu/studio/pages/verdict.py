"""Verdict: did it get better? The sentence on top, what it rests on, and the questions that were lost and gained."""

from __future__ import annotations

from typing import Any

from nicegui import run, ui

from danlu.data.page import visible
from danlu.errors import DanluError
from danlu.studio import shell, words
from danlu.studio import verdict_view as view
from danlu.studio.place import place
from danlu.studio.shell import element
from danlu.studio.words import t

OUTCOMES = {
    "right": "right",
    "wrong": "wrong",
    "none": "no answer found",
    "ambiguous": "more than one answer",
    "truncated": "cut before the answer",
}
VERDICTS = {"better": "better", "worse": "worse", "mixed": "mixed", "cannot tell": "cannot tell yet"}
KINDS = {"lost": "Lost", "gained": "Gained", "wrong": "Wrong both times"}
SIDES = {"base": "before", "tuned": "after"}


@shell.page("/verdict", "Verdict")
def verdict(base: str = "", tuned: str = "") -> None:
    shell.style("reading.css")
    shell.heading(
        t("Verdict"), t("The same questions before and after, and whether the difference is more than chance.")
    )
    known = view.evaluations(place().root)
    found = view.pair(known, base, tuned)
    if found is None:
        shell.empty(
            t("There are no two evaluations of the same questions yet."),
            t("danlu run RECIPE evaluates before and after training; danlu eval TARGET evaluates any model."),
            "balance",
        )
        return
    names = {one.name: visible(one.name) for one in known}
    with element("div", "pick"):
        before = ui.select(names, value=found[0], label=t("Before")).props("outlined dense")
        after = ui.select(names, value=found[1], label=t("After")).props("outlined dense")
        swap = ui.button(icon="swap_horiz").props("flat dense")
        swap.props["aria-label"] = t("Swap the two")

    def go(first: Any, second: Any) -> None:
        ui.navigate.to(shell.address("/verdict", base=str(first), tuned=str(second)))

    before.on_value_change(lambda: go(before.value, after.value))
    after.on_value_change(lambda: go(before.value, after.value))
    swap.on_click(lambda: go(after.value, before.value))
    below = element("div", "stack").style("gap: 20px")
    with below:
        shell.waiting(t("Comparing the answers …"))

    async def fill() -> None:
        try:
            told = await run.io_bound(view.compared, place().root, *found)
        except DanluError as error:
            below.clear()
            with below:
                shell.problem(error)
            return
        below.clear()
        if told is not None:  # None: the studio is ending
            with below:
                _comparison(told, found[1])

    ui.timer(0.01, fill, once=True)


def _comparison(told: view.Compared, tuned: str) -> None:
    benchmarks = told.found["benchmarks"]
    with element("section", f"card stack tight verdict {told.found['verdict'].split()[0]}"):
        element("p", "sentence").text(_sentence(told.found))
        if gate := view.stored_gate(place().root, tuned):
            element("p", "quiet").text(gate)
        for warning in view.warnings(told.found):
            element("p", "warn small").text(warning)
    _forest(benchmarks)
    _outcomes(benchmarks)
    _table(benchmarks)
    _questions(told)


def _sentence(found: dict[str, Any]) -> str:
    """The sentence in the language of the page where it is about one benchmark, else as the command says it."""
    values = view.alone(found)
    if values is None or words.language() == "en":
        return visible(found["sentence"])
    verdict_ = t(VERDICTS.get(found["verdict"], found["verdict"]))
    told = t("{verdict}: {points} points, 95 % interval {low} to {high}, {p}, n = {n}", verdict=verdict_, **values)
    return visible(told)


# ---- drawings


def _forest(benchmarks: list[dict[str, Any]]) -> None:
    lines, ticks = view.forest(benchmarks)
    with element("section", "card stack"):
        element("h2").text(t("Differences"))
        with element("div", "forest"):
            for line in lines:
                element("div", "name under" if line.under else "name").text(line.name)
                told = f"{line.value}, {line.interval}, n = {line.n:,}"
                with _strip(line, told):
                    for place_, label in ticks:
                        element("div", "tick zero" if label == "0" else "tick").style(f"left: {place_:.2f}%")
                    element("div", "ci").style(f"left: {line.left:.2f}%; width: {line.width:.2f}%")
                    element("div", "point").style(f"left: {line.point:.2f}%")
                with element("div", "value"):
                    element("b").text(line.value)
                    element("span", "quiet small").text(f"  {line.interval}")
            element("div")
            with element("div", "labels").props("aria-hidden=true"):
                for place_, label in ticks:
                    element("span").style(f"left: {place_:.2f}%").text(label)
        element("p", "quiet small").text(
            t("Percentage points, after minus before, with 95 % intervals; left of 0 is worse.")
        )


def _strip(line: view.Line, words: str) -> Any:
    strip = element("div", f"strip {line.kind}")
    strip.props["role"] = "img"
    strip.props["aria-label"] = words
    return strip


def _outcomes(benchmarks: list[dict[str, Any]]) -> None:
    known = [entry for entry in benchmarks if entry.get("outcomes")]
    if not known:
        return
    with element("section", "card stack"):
        element("h2").text(t("How the answers ended"))
        with element("div", "legend"):
            for outcome, name in OUTCOMES.items():
                with element("span"):
                    element("span", f"swatch {outcome}-share")
                    element("span", "quiet").text(t(name))
        with element("div", "outcomes"):
            for entry in known:
                if len(known) > 1:
                    element("div", "of").text(visible(str(entry["name"])))
                for which, name in SIDES.items():
                    element("span", "quiet").text(t(name))
                    _stacked(view.shares(entry, which))


def _stacked(shares: list[tuple[str, float]]) -> None:
    with element("div", "stacked") as drawn:
        drawn.props["role"] = "img"
        drawn.props["aria-label"] = ", ".join(f"{t(OUTCOMES[name])} {100 * share:.1f} %" for name, share in shares)
        for name, share in shares:
            part = element("span", f"{name}-share").style(f"width: {100 * share:.2f}%")
            part.props["title"] = f"{t(OUTCOMES[name])}: {100 * share:.1f} %"
            part.text(f"{100 * share:.0f} %" if share >= 0.07 else "")


def _table(benchmarks: list[dict[str, Any]]) -> None:
    heads = ("Benchmark", "n", "Before", "After", "Points", "p, adjusted", "Gained", "Lost", "Verdict")
    rows = [[*row[:-1], t(VERDICTS.get(row[-1], row[-1]))] for row in view.table(benchmarks)]
    with element("section", "card stack"):
        element("h2").text(t("Figures"))
        shell.grid([t(head) for head in heads], rows, frozenset(range(1, 8)))
        for entry in benchmarks:
            for field, title in (("subjects", "By subject"), ("tasks", "By task"), ("languages", "By language")):
                groups = entry.get(field) or []
                if len(groups) > 1:
                    with shell.fold(f"{visible(str(entry['name']))}: {t(title)}"):
                        own = [
                            [*row[:-1], t(VERDICTS.get(row[-1], row[-1]))]
                            for row in view.table(sorted(groups, key=lambda group: group["difference"]))
                        ]
                        shell.grid([t(head) for head in ("Group", *heads[1:])], own, frozenset(range(1, 8)))


# ---- questions to read


def _questions(told: view.Compared) -> None:
    counts = view.counts(told)
    first: view.Kind = next((kind for kind in view.KINDS if counts[kind]), "lost")
    with element("section", "card stack"):
        with element("div", "row-line between"):
            element("h2").text(t("Questions to read"))
            toggle = ui.toggle({kind: f"{t(KINDS[kind])} {counts[kind]:,}" for kind in view.KINDS}, value=first)
            toggle.props("no-caps unelevated dense toggle-color=primary padding='4px 12px'")
            toggle.props["aria-label"] = t("Which questions")
        with element("div", "pick"):
            names = [entry["name"] for entry in told.found["benchmarks"]]
            benchmark = ui.select({"": t("All benchmarks"), **{name: visible(name) for name in names}}, value="")
            benchmark.props("outlined dense").set_visibility(len(names) > 1)
            subject = ui.select({"": t("All subjects"), **{name: name for name in view.subjects(told)}}, value="")
            subject.props("outlined dense").set_visibility(bool(view.subjects(told)))
            subject.props["aria-label"] = t("Subject")
            typed = ui.input(placeholder=t("Words or an id")).props("outlined dense debounce=300 clearable")
            typed.props["aria-label"] = t("Words or an id")
            leaked = ui.checkbox(t("Only those in the training data"))
            leaked.set_visibility(view.any_leaked(told))
        listed = element("div")
        with element("div", "row-line between"):
            where = element("span", "quiet small number")
            with element("div", "actions"):
                earlier = ui.button(t("Earlier"), icon="chevron_left").props("flat dense no-caps")
                later = ui.button(t("Later"), icon="chevron_right").props("flat dense no-caps")
    at = {"first": 0}

    def show(start: int = 0) -> None:
        choice = view.Choice(toggle.value, benchmark.value, subject.value, leaked.value, typed.value or "")
        found = view.keys(told, choice)
        at["first"] = max(0, min(start, max(0, len(found) - 1) // view.PAGE * view.PAGE))
        listed.clear()
        with listed:
            for key in found[at["first"] : at["first"] + view.PAGE]:
                _item(view.item(told, key, t))
            if not found:
                element("p", "quiet").text(t("There are none."))
        last = min(at["first"] + view.PAGE, len(found))
        where.text(
            t("{first} to {last} of {all}", first=at["first"] + 1, last=last, all=f"{len(found):,}") if found else ""
        )
        earlier.set_visibility(at["first"] > 0)
        later.set_visibility(last < len(found))

    for control in (toggle, benchmark, subject, typed, leaked):
        control.on_value_change(lambda: show())
    earlier.on_click(lambda: show(at["first"] - view.PAGE))
    later.on_click(lambda: show(at["first"] + view.PAGE))
    show()


def _item(one: view.Item) -> None:
    with element("details", "item"):
        with element("summary"):
            element("span", "mono quiet").text(one.id)
            with element("span", "claim"):
                _claim(one.base)
                element("span", "quiet").text(" → ")
                _claim(one.tuned)
            element("span", "quiet").props("translate=no").text(view.excerpt(one))
        with element("div", "open"):
            told = [one.benchmark, one.subject, t("in the training data") if one.leaked else ""]
            element("p", "quiet small").text(" · ".join(part for part in told if part))
            element("p", "text-block").text(one.question or t("These rows hold no question."))
            if one.options:
                with element("ul", "options").props("translate=no"):
                    for letter, text, gold in one.options:
                        element("li", "gold" if gold else "").text(f"{letter}  {text}{'  ✓' if gold else ''}")
            if one.after:
                element("p", "text-block").text(one.after)
            with element("p"):
                element("span", "quiet").text(f"{t('Gold:')} ")
                element("b", "good").props("translate=no").text(one.target)
            with element("div", "side-by-side"):
                _answer(t("Before"), one.base)
                _answer(t("After"), one.tuned)


def _claim(answer: view.Answer) -> None:
    said = element("span", "good" if answer.outcome == "right" else "bad")
    said.text(answer.claim or t(OUTCOMES.get(answer.outcome, answer.outcome)))
    if answer.claim:
        said.props("translate=no")


def _answer(title: str, answer: view.Answer) -> None:
    with element("div", "answer stack tight"):
        with element("div", "row-line"):
            element("h3").text(title)
            right = answer.outcome == "right"
            element("span", "good" if right else "bad").text(t(OUTCOMES.get(answer.outcome, answer.outcome)))
        element("p", "quiet small").text(answer.note)
        if answer.reasoning:
            with shell.fold(t("Reasoning")):
                element("div", "fold text-block").text(answer.reasoning)
        element("p", "text-block").text(answer.answer or t("(no answer)"))
