"""What a model wrote in a run: rollouts of GRPO by step and group, answers of an evaluation by outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nicegui import run as background
from nicegui import ui

from danlu.studio import shell
from danlu.studio.shell import element
from danlu.studio.texts import Samples, split, spread, tint
from danlu.studio.words import t

PAGE = 20  # answers at once
OUTCOMES = {
    "right": "right",
    "wrong": "wrong",
    "none": "no answer found",
    "ambiguous": "ambiguous",
    "truncated": "cut",
}


class Texts:
    """The texts of one run; `look` shows what was written since."""

    def __init__(self, stage: str, path: Path) -> None:
        self.stage, self.samples = stage, Samples(path)
        self.samples.refresh()
        self.step: int | None = None
        self.newest = True  # follow the newest step until another is chosen
        self.outcome, self.first = "", 0
        self.bar = element("div", "row-line toolbar")
        self.inside = element("div", "stack")
        self._show()

    async def look(self) -> None:
        if await background.io_bound(self.samples.refresh):
            if self.stage == "grpo" and not self.newest:
                self._bar_of_steps()
            else:
                self._show()

    def _show(self) -> None:
        if not self.samples.starts:
            self.inside.clear()
            with self.inside:
                shell.empty(t("Nothing is written yet"), t("It appears with the first step."), "notes")
        elif self.samples.steps:
            self._rollouts()
        else:
            self._answers()

    # ---- rollouts

    def _bar_of_steps(self) -> None:
        steps = sorted(self.samples.steps)
        self.bar.clear()
        with self.bar:
            place = steps.index(self.step) if self.step in steps else len(steps) - 1
            back = ui.button(icon="chevron_left", on_click=lambda: self._go(steps[place - 1])).props("flat dense")
            back.props["aria-label"] = t("Step before")
            back.set_enabled(place > 0)
            element("span", "number strong").text(t("step {step} of {steps}", step=self.step, steps=steps[-1]))
            ahead = ui.button(icon="chevron_right", on_click=lambda: self._go(steps[place + 1])).props("flat dense")
            ahead.props["aria-label"] = t("Step after")
            ahead.set_enabled(place < len(steps) - 1)
            if len(steps) > 2:
                slider = shell.slider(t("Step"), len(steps) - 1, place, lambda at: self._go(steps[at]), "change")
                slider.classes("wide-slider")

    def _go(self, step: int) -> None:
        self.step, self.newest = step, step == max(self.samples.steps)
        self._show()

    def _rollouts(self) -> None:
        if self.newest or self.step is None:
            self.step = max(self.samples.steps)
        self._bar_of_steps()
        groups = self.samples.groups(self.step)
        telling = next((number for number, group in enumerate(groups) if spread(group) != "equal"), 0)
        self.inside.clear()
        with self.inside:
            for number, group in enumerate(groups):
                self._group(group, opened=number == telling)

    def _group(self, group: list[dict[str, Any]], opened: bool) -> None:
        first = group[0]
        rewards = [row["reward"] for row in group if isinstance(row.get("reward"), int | float)]
        with element("details", "card group") as fold:
            if opened:
                fold.props("open")
            with element("summary"):
                element("span", "question").text(str(first.get("question", "")))
                with element("span", "row-line small"):
                    if rewards:
                        mean = sum(rewards) / len(rewards)
                        words = t("mean reward {mean}, {n} completions", mean=f"{mean:.3g}", n=len(group))
                        element("span", "quiet number").text(words)
                    if spread(group) == "equal":
                        element("span", "tag plain").text(t("all equal: teaches nothing"))
            inside = element("div", "stack")
        if opened:
            self._completions(inside, group)
        else:
            fold.on("toggle", lambda: self._completions(inside, group))

    def _completions(self, inside: Any, group: list[dict[str, Any]]) -> None:
        if inside.default_slot.children:
            return
        with inside:
            if group[0].get("target") is not None:
                with element("p", "small"):
                    element("span", "quiet").text(t("Gold answer: "))
                    element("span").props("translate=no").text(str(group[0]["target"]))
            for row in group:
                _rollout(row)

    # ---- answers

    def _answers(self) -> None:
        self.bar.clear()
        counts = {name: len(starts) for name, starts in self.samples.outcomes.items()}
        with self.bar:
            options = {"": t("all {n}", n=len(self.samples.starts))}
            options |= {name: f"{t(OUTCOMES[name])} {counts[name]}" for name in OUTCOMES if counts.get(name)}
            choice = ui.toggle(options, value=self.outcome).props("no-caps unelevated dense")
            choice.on_value_change(lambda e: self._turn(e.value, 0))
        starts = self.samples.outcomes.get(self.outcome, []) if self.outcome else self.samples.starts
        self.inside.clear()
        with self.inside:
            for row in self.samples.rows(starts[self.first : self.first + PAGE]):
                answer(row)
            if len(starts) > PAGE:
                self._turning(len(starts))

    def _turning(self, count: int) -> None:
        with element("div", "row-line"):
            back = ui.button(icon="chevron_left", on_click=lambda: self._turn(self.outcome, self.first - PAGE))
            back.props("flat dense").set_enabled(self.first > 0)
            back.props["aria-label"] = t("Page before")
            last = min(count, self.first + PAGE)
            element("span", "quiet number small").text(t("{a} to {b} of {n}", a=self.first + 1, b=last, n=count))
            ahead = ui.button(icon="chevron_right", on_click=lambda: self._turn(self.outcome, self.first + PAGE))
            ahead.props("flat dense").set_enabled(last < count)
            ahead.props["aria-label"] = t("Page after")

    def _turn(self, outcome: str, first: int) -> None:
        self.outcome, self.first = outcome, max(0, first)
        self._answers()


def _rollout(row: dict[str, Any]) -> None:
    """One completion with its rewards; the colour at its side is its advantage."""
    with element("article", f"rollout {tint(row.get('advantage'))}"):
        with element("div", "row-line between"):
            with element("div", "row-line small"):
                element("span", "number strong").text(t("reward {value}", value=_figure(row.get("reward"))))
                for name, value in (row.get("rewards") or {}).items():
                    element("span", "tag plain number").text(f"{name} {_figure(value)}")
            with element("div", "row-line small quiet"):
                element("span", "number").text(t("advantage {value}", value=_figure(row.get("advantage"), sign=True)))
                element("span", "number").text(t("{n} tokens", n=row.get("tokens", "?")))
                if row.get("finish") == "length":
                    element("span", "tag stopped").text(t("cut"))
        completion(str(row.get("output", "")))


def answer(row: dict[str, Any]) -> None:
    """One answered question of an evaluation."""
    outcome = str(row.get("outcome", ""))
    with element("article", "card stack tight"):
        with element("div", "row-line between"):
            state = {"right": "done", "wrong": "failed", "truncated": "stopped"}.get(outcome, "")
            element("span", f"tag {state}").text(t(OUTCOMES[outcome]) if outcome in OUTCOMES else outcome)
            about = [row.get("benchmark"), row.get("subject") or row.get("task"), row.get("id")]
            element("span", "quiet small").text(" · ".join(str(one) for one in about if one))
        element("p", "text-block").text(str(row.get("question", "")))
        with element("p", "small"):
            element("span", "quiet").text(t("Gold answer: "))
            element("span").props("translate=no").text(str(row.get("target", "")))
            element("span", "quiet").text(f"  {t('Taken as answer: ')}")
            element("span").props("translate=no").text(str(row.get("extracted") or "–"))
        completion(str(row.get("output", "")))


def completion(text: str) -> None:
    """A completion: its reasoning folded, its answer in full."""
    reasoning, told = split(text)
    if reasoning:
        with element("details", "small"):
            element("summary").text(t("Reasoning, {n} characters", n=f"{len(reasoning):,}"))
            element("div", "text-block fold").text(reasoning)
    element("div", "text-block").text(told or t("(no answer)"))


def _figure(value: Any, sign: bool = False) -> str:
    if not isinstance(value, int | float):
        return "–"
    return f"{value:+.2f}" if sign else f"{value:.3g}"
