"""Runs: what is in the folder, what came of what, and what differs between runs."""

from __future__ import annotations

import time
from typing import Any

from nicegui import ui

from danlu import run_facts
from danlu.studio import overview, shell
from danlu.studio.overview import Overview, overviews, told
from danlu.studio.place import place
from danlu.studio.shell import address, element, link
from danlu.studio.words import duration, t

EVERY = 2.0  # seconds between two looks at the folder
STAGES = ("sft", "grpo", "eval", "export", "data")
STATUS = {
    "started": "running",
    "done": "done",
    "failed": "failed",
    "stopped": "stopped",
    "died": "died",
    "unreadable": "unreadable",
    "gone": "gone",
}
NODE = (190, 58, 56, 18)  # width, height, and the gaps beside and beneath a node of the graph

# What Vue puts between {{ }} is text, never HTML.
CELLS = {
    "name": """<q-td :props="props"><a class="run-name" :href="props.row.href">{{ props.row.name }}</a>
      <div class="quiet small" v-if="props.row.note">{{ props.row.note }}</div></q-td>""",
    "status": """<q-td :props="props"><span class="tag" :class="props.row.state">{{ props.row.status }}</span>
      <div class="meter" v-if="props.row.share !== null" :aria-label="props.row.progress" role="img">
      <span :style="{ width: props.row.share + '%' }"></span></div></q-td>""",
    "value": """<q-td :props="props"><span class="number strong">{{ props.row.number }}</span>
      <span class="quiet small"> {{ props.row.label }}</span></q-td>""",
}


@shell.page("/", "Runs")
def runs() -> None:
    found = overviews(place().root)
    with shell.heading(t("Runs"), str(place().root)):
        ui.button(t("Start a run"), icon="add", on_click=lambda: ui.navigate.to("/start")).props("unelevated no-caps")
    if not found:
        hint = t("Start one here, or in a terminal with danlu demo; it shows up at once.")
        row = shell.empty(t("No runs yet"), hint, "local_fire_department")
        with row:
            ui.button(t("Start a run"), on_click=lambda: ui.navigate.to("/start")).props("outline no-caps")
        ui.timer(EVERY, _reload_when_there_is_one)
        return
    with ui.tabs().props("dense no-caps align=left inline-label") as tabs:
        listing = ui.tab("list", t("List"), "view_list")
        ui.tab("graph", t("Lineage"), "account_tree")
    with ui.tab_panels(tabs, value=listing).props("keep-alive").classes("panels"):
        with ui.tab_panel("list"):
            _listing(found)
        with ui.tab_panel("graph"):
            graph(found)


def _reload_when_there_is_one() -> None:
    if overviews(place().root):
        ui.navigate.reload()


def _listing(found: list[Overview]) -> None:
    with element("div", "row-line toolbar"):
        search = ui.input(placeholder=t("Filter by name, model, data …")).props("outlined dense clearable debounce=200")
        search.props["aria-label"] = t("Filter")
        stage = ui.toggle(["", *STAGES], value="").props("no-caps unelevated dense")
        stage.set_options({"": t("all"), **{name: name for name in STAGES if any(r.stage == name for r in found)}})
        compare = ui.button(t("Compare"), icon="compare_arrows").props("outline no-caps")
        compare.disable()
    table = ui.table(
        rows=shown(found, "", ""), columns=_columns(), row_key="name", selection="multiple", pagination=50
    ).classes("runs-table card-table")
    table.props["no-data-label"] = t("No run matches the filter.")
    table.props["hide-bottom"] = len(found) <= 50
    for name, cell in CELLS.items():
        table.add_slot(f"body-cell-{name}", cell)

    def refresh() -> None:
        rows = shown(overviews(place().root), search.value or "", stage.value or "")
        if rows != table.rows:
            table.rows = rows
            table.selected = [row for row in rows if row["name"] in {one["name"] for one in table.selected}]
        compare.set_enabled(len(table.selected) > 1)

    search.on_value_change(refresh)
    stage.on_value_change(refresh)
    table.on_select(lambda _: compare.set_enabled(len(table.selected) > 1))
    compare.on_click(lambda: _compare([row["name"] for row in table.selected]))
    ui.timer(EVERY, refresh)


def _columns() -> list[dict[str, Any]]:
    heads = {
        "name": t("Run"),
        "status": t("Status"),
        "stage": t("Stage"),
        "value": t("Result"),
        "model": t("Model"),
        "data": t("Data"),
        "age": t("Started"),
        "took": t("Took"),
    }
    order = {"age": "created", "took": "seconds", "value": "value"}
    return [
        {"name": key, "label": label, "field": order.get(key, key), "sortable": True, "align": "left"}
        | ({":format": f"(value, row) => row.{key}"} if key in ("age", "took") else {})
        for key, label in heads.items()
    ]


def shown(found: list[Overview], wanted: str, stage: str) -> list[dict[str, Any]]:
    """Rows of the table: runs of a stage ("" for all) that hold every wanted word."""
    words = wanted.lower().split()
    rows = []
    for one in found:
        text = f"{one.name} {one.model} {one.data} {one.recipe} {one.status}".lower()
        if (not stage or one.stage == stage) and all(word in text for word in words):
            rows.append(_row(one))
    return rows


def _row(one: Overview) -> dict[str, Any]:
    share = round(100 * one.step / one.steps) if one.live and one.step and one.steps else None
    return {
        "name": one.name,
        "href": address("/run", one.name),
        "note": (one.error or "")[:120] if one.status == "failed" else "",
        "state": one.status,
        "status": t(STATUS.get(one.status, one.status)) + (f" · {share} %" if share is not None else ""),
        "share": share,
        "progress": f"{one.step}/{one.steps}",
        "stage": one.stage,
        "number": told(one.key, one.value),
        "label": t(overview.LABELS[one.key]) if one.key else "",
        "value": one.value,
        "model": one.model,
        "data": one.data,
        "age": t("{time} ago", time=duration(time.time() - one.created)) if one.created else "",
        "created": one.created,
        "took": duration(one.seconds),
        "seconds": one.seconds,
    }


# ---- comparing


def _compare(names: list[str]) -> None:
    known = {one.name: one for one in overviews(place().root)}
    chosen = [known[name] for name in names if name in known][:6]
    with ui.dialog() as dialog, element("div", "stack dialog-wide"):
        with element("div", "row-line between"):
            element("h2").text(t("Compare"))
            ui.button(icon="close", on_click=dialog.close).props("flat dense").props["aria-label"] = t("Close")
        with element("div", "scroll-x"), element("table", "plain-table"):
            _compared(chosen)
        with element("div", "actions"):
            for stage in ("sft", "grpo"):
                trained = [one.name for one in chosen if one.stage == stage]
                if len(trained) > 1:
                    target = address("/run", trained[0], **{"with": ",".join(trained[1:])})
                    ui.button(t("Curves in one picture"), on_click=lambda target=target: ui.navigate.to(target)).props(
                        "outline no-caps"
                    )
                    break
            asked = sorted((one for one in chosen if one.stage == "eval"), key=lambda one: one.created or 0)
            if len(asked) == 2:
                verdict = address("/verdict", base=asked[0].name, tuned=asked[1].name)
                ui.button(t("Verdict"), on_click=lambda: ui.navigate.to(verdict)).props("outline no-caps")
    dialog.open()


def _compared(chosen: list[Overview]) -> None:
    """The body of a table: what came out, then the keys of the recipes that differ."""
    with element("thead"), element("tr"):
        element("th")
        for one in chosen:
            with element("th"), link(address("/run", one.name), "text-link") as name:
                name.text(one.name)
    facts = [
        (t("Status"), [t(STATUS.get(one.status, one.status)) for one in chosen]),
        (
            t("Result"),
            [f"{told(one.key, one.value)} {t(overview.LABELS[one.key]) if one.key else ''}" for one in chosen],
        ),
        (t("Took"), [duration(one.seconds) for one in chosen]),
    ]
    differ = run_facts.differences({one.name: overview.config_of(place().root, one.name) for one in chosen})
    facts += [(key, [overview.brief(values[one.name]) for one in chosen]) for key, values in differ]
    with element("tbody"):
        for head, cells in facts:
            with element("tr"):
                element("th").text(head)
                for cell in cells:
                    element("td", "number").text(cell)
        if not differ:
            with element("tr"):
                element("td", "quiet").props(f"colspan={len(chosen) + 1}").text(t("Their recipes are the same."))


# ---- lineage


def graph(found: list[Overview], of: str | None = None) -> None:
    """Runs by what they came from: links that the keyboard reaches, joined by lines."""
    nodes, edges = overview.lineage(found, of)
    if not nodes:
        return
    width, height, beside, beneath = NODE
    at = {node.name: (node.column * (width + beside), node.row * (height + beneath)) for node in nodes}
    size = (max(x for x, _ in at.values()) + width, max(y for _, y in at.values()) + height)
    with element("div", "scroll-x card"), element("div", "graph") as canvas:
        canvas.style(f"width:{size[0]}px;height:{size[1]}px")
        with element("svg").props(f'width={size[0]} height={size[1]} aria-hidden="true"'):
            for parent, child in edges:
                (x1, y1), (x2, y2) = at[parent], at[child]
                x1, y1, y2 = x1 + width, y1 + height // 2, y2 + height // 2
                middle = (x1 + x2) // 2
                element("path").props(f'd="M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}"')
        for node in nodes:
            x, y = at[node.name]
            known = node.stage not in ("model", "?")
            card = link(address("/run", node.name)) if known else element("div")
            card.classes(f"node {node.status} {'own' if node.name == of else ''} {'' if known else 'plain'}")
            card.style(f"left:{x}px;top:{y}px;width:{width}px;height:{height}px")
            with card:
                element("span", "node-name").text(node.name.removeprefix("model:"))
                kind = t("base model") if node.stage == "model" else node.stage
                tail = node.note or (t(STATUS[node.status]) if node.status in STATUS else "")
                element("span", "quiet small").text(" · ".join(part for part in (kind, tail) if part))
