"""What a recipe takes, and whether it would go through: cards beside the form that starts it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nicegui import ui

from danlu.errors import DanluError
from danlu.studio import ask, shell
from danlu.studio.place import place
from danlu.studio.shell import element
from danlu.studio.words import duration, t

Arguments = Callable[[], list[str]]
PARTS = {
    "weights": "weights",
    "adapter": "adapter",
    "optimizer": "optimizer",
    "gradients": "gradients",
    "activations": "activations",
    "logits": "logits",
    "kv_cache": "KV cache",
    "snapshot": "weights copied for decoding",
    "best": "best weights so far",
    "process": "libraries",
    "overhead": "overhead",
}
LEVELS = {"error": ("error_outline", "failed"), "warning": ("warning_amber", "stopped"), "info": ("info", "")}


def plan_card(arguments: Arguments, start: Callable[[], str | None], patience: float) -> Callable[[], None]:
    """A card with the plan of a recipe; the function that asks for a fresh one, a moment after the last change."""
    with element("section", "card stack"):
        with element("div", "row-line between"):
            element("h2").text(t("What it takes"))
            busy = ui.spinner(size="18px")
        inside = element("div", "stack")
    waiting: list[asyncio.Task[None]] = []

    async def fresh(wait: float) -> None:
        await asyncio.sleep(wait)
        busy.visible = True
        try:
            begin = start()
            found = await ask.ask(place(), "plan", *arguments(), *(["--from", begin] if begin else []))
            inside.clear()
            with inside:
                for one in found.get("stages", {found["stage"]: found}).values():
                    _plan(one)
        except DanluError as error:
            inside.clear()
            with inside:
                shell.problem(error)
        finally:
            busy.visible = False

    def soon(wait: float = patience) -> None:
        while waiting:
            waiting.pop().cancel()
        waiting.append(asyncio.ensure_future(_within(inside, fresh(wait))))

    ui.timer(0.1, lambda: soon(0), once=True)
    ui.context.client.on_disconnect(lambda: [task.cancel() for task in waiting])
    return soon


async def _within(parent: Any, work: Any) -> None:
    with parent:
        await work


def _plan(one: dict[str, Any]) -> None:
    total, budget, fits = one["memory"]["total"], one["budget"], one["fits"]
    with element("div", "stack tight"):
        with element("div", "row-line between"):
            element("h3").text(one["stage"].upper())
            if fits is not None:
                state = element("span", f"tag {'done' if fits else 'failed'}")
                state.text(t("fits") if fits else t("does not fit"))
        with element("div", "figures"):
            _figure(gigabytes(total), t("of {budget} memory", budget=gigabytes(budget)) if budget else t("memory"))
            if one["seconds"]:
                low, high = map(duration, one["seconds"])
                _figure(f"{low} – {high}", t("{n} steps", n=f"{one['steps']:,}"))
        if budget:
            with element("div", "meter"):
                element("span").style(f"width:{min(100, round(100 * total / budget))}%")
        if one["cheapest"]:
            element("p", "small").text(t("Cheapest change that fits: {what}", what=one["cheapest"]))
        with element("details", "small"):
            element("summary").text(t("Where the memory goes"))
            with element("dl", "facts small"):
                for part, size in sorted(one["memory"].items(), key=lambda item: -item[1]):
                    if part in PARTS and size:
                        element("dt").text(t(PARTS[part]))
                        element("dd", "number").text(gigabytes(size))


def _figure(value: str, label: str) -> None:
    with element("div", "figure compact"):
        element("div", "value").text(value)
        element("div", "label").text(label)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size < 10**10 else f"{size / 1e9:.1f} GB"


# ---- rehearsal


def rehearsal_card(arguments: Arguments) -> None:
    """A card that rehearses a recipe: every stage in about a minute, and what would fail."""
    with element("section", "card stack"):
        element("h2").text(t("Rehearsal"))
        element("p", "quiet small").text(t("Every stage in about a minute, with a tiny model and your own rows."))
        button = ui.button(t("Rehearse"), icon="fact_check").props("outline no-caps")
        inside = element("div", "stack")

    async def rehearse() -> None:
        button.props("loading")
        inside.clear()
        try:
            found = await ask.ask(place(), "rehearse", *arguments())
            with inside:
                _rehearsed(found)
        except DanluError as error:
            with inside:
                shell.problem(error)
        finally:
            button.props(remove="loading")

    button.on_click(rehearse)


def _rehearsed(found: dict[str, Any]) -> None:
    told = t("Nothing found that would fail.") if found["ok"] else t("Something would fail.")
    with element("p", "row-line"):
        element("span", f"tag {'done' if found['ok'] else 'failed'}").text(told)
        element("span", "quiet small").text(duration(found["seconds"]))
    for stage in found["stages"]:
        with element("div", "stack tight"):
            with element("div", "row-line between"):
                element("h3").text(stage["name"])
                mark = element("span", f"tag {'done' if stage['ok'] else 'failed'}")
                mark.text(t("goes through") if stage["ok"] else t("would fail"))
            for finding in stage["findings"]:
                icon, state = LEVELS.get(finding["level"], LEVELS["info"])
                with element("div", f"told small {state}"):
                    ui.icon(icon).props("aria-hidden=true")
                    with element("div"):
                        element("p").text(finding["what"])
                        if finding["do"]:
                            element("p", "quiet").text(finding["do"])
    for what in found["not_rehearsed"]:
        element("p", "quiet small").text(t("Not rehearsed: {what}", what=what))
