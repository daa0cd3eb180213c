"""Curves of a run, drawn on while it trains, over those of other runs if wanted."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from fastapi.responses import PlainTextResponse, StreamingResponse
from nicegui import app, ui

from danlu.errors import DanluError
from danlu.studio import charts, overview, shell
from danlu.studio.charts import AXES, Chart
from danlu.studio.curves import Metrics
from danlu.studio.overview import Overview
from danlu.studio.place import place
from danlu.studio.safety import inside, run_path
from danlu.studio.shell import address, element
from danlu.studio.words import t

SMOOTHING = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)  # shares of the points
MOST = 5  # runs over one another
# a picture of what is on the screen, on the card's ground
SAVE = """() => { const chart = getElement(%d).chart, a = document.createElement("a");
  const ground = getComputedStyle(document.body).getPropertyValue("--surface").trim();
  a.href = chart.getDataURL({ pixelRatio: 2, backgroundColor: ground }); a.download = %s; a.click(); }"""


class Plots:
    """The charts of one run and their settings."""

    def __init__(self, one: Overview, metrics: Metrics, overlay: list[str]) -> None:
        self.one, self.metrics = one, metrics
        self.others: dict[str, Metrics] = {}
        self.axis: Any = "step"
        self.smoothing = 0.05
        self.drawn: list[tuple[Chart, ui.echart]] | None = None
        for name in overlay:
            self._add(name)
        with element("div", "row-line between toolbar"):
            self._controls()
        self.place = element("div", "charts")
        self.draw()

    def _controls(self) -> None:
        with element("div", "row-line"):
            axis = ui.toggle({name: t(label) for name, label in AXES.items()}, value=self.axis)
            axis.props("no-caps unelevated dense")
            axis.on_value_change(lambda e: self._set(axis=e.value))
            with element("label", "row-line small quiet"):
                element("span").text(t("Smoothing"))
                at, most = SMOOTHING.index(self.smoothing), len(SMOOTHING) - 1
                shell.slider(t("Smoothing"), most, at, lambda at: self._set(smoothing=SMOOTHING[at])).classes("short")
        with element("div", "row-line"):
            others = [one.name for one in overview.overviews(place().root) if one.stage == self.one.stage]
            others = [name for name in others if name != self.one.name]
            if others:
                choice = ui.select(others, value=list(self.others), multiple=True, label=t("Draw over it"))
                choice.props("outlined dense options-dense use-chips").classes("overlay")
                choice.on_value_change(lambda e: self._overlay(e.value))
            data = ui.button("CSV", icon="download").props("flat dense no-caps")
            data.props["aria-label"] = t("All numbers as CSV")
            data.on_click(lambda: ui.download(address("/csv", self.one.name), f"{self.one.name}.csv"))

    def _add(self, name: str) -> None:
        """Draw a run over this one, if it is of the same stage: a loss of GRPO is no loss of SFT."""
        other = overview.overview(place().root, name)
        if other is None or other.stage != self.one.stage:
            return
        try:
            metrics = Metrics(inside(run_path(place().root, name), "metrics.jsonl"))
        except DanluError:
            return
        metrics.refresh()
        if len(metrics) and len(self.others) < MOST:
            self.others[name] = metrics

    def _overlay(self, names: list[str]) -> None:
        self.others = {name: metrics for name, metrics in self.others.items() if name in names}
        for name in names:
            if name not in self.others:
                self._add(name)
        self.draw()

    def _set(self, **settings: Any) -> None:
        for name, value in settings.items():
            setattr(self, name, value)
        self.draw()

    def others_grew(self) -> bool:
        return any([metrics.refresh() for metrics in self.others.values()])

    def draw(self) -> None:
        """Draw what there is now; charts appear when their first number does."""
        wanted = charts.charts(self.one.stage, self.metrics)
        if self.drawn is None or [chart for chart, _ in self.drawn] != wanted:
            self.place.clear()
            self.drawn = []
            with self.place:
                if not wanted:
                    shell.empty(t("No numbers yet"), t("Curves appear with the first step."), "show_chart")
                for chart in wanted:
                    self.drawn.append((chart, self._card(chart)))
            return
        for chart, drawing in self.drawn:
            drawing.options.clear()
            drawing.options.update(self._options(chart))
            drawing.update()

    def _options(self, chart: Chart) -> dict[str, Any]:
        runs = [(self.one.name, self.metrics), *self.others.items()]
        return charts.options(chart, runs, self.axis, self.smoothing, t)

    def _card(self, chart: Chart) -> ui.echart:
        with element("figure", "card chart"):
            with element("figcaption", "row-line between"):
                element("h3").text(t(chart.title))
                save = ui.button(icon="photo_camera").props("flat dense size=sm")
                save.props["aria-label"] = t("Save {what} as PNG", what=t(chart.title))
            drawing = ui.echart(self._options(chart))
            drawing.props(f'role=img aria-label="{t(chart.title)}"')
            save.on("click", js_handler=SAVE % (drawing.id, json.dumps(f"{self.one.name}-{chart.lines[0].key}.png")))
        return drawing


@app.get("/csv/{name}")
def csv_of(name: str) -> Any:
    """All rows of a run's metrics.jsonl as CSV."""
    try:
        path = inside(run_path(place().root, name), "metrics.jsonl")
    except DanluError as error:
        return PlainTextResponse(f"{error}\n", 404)
    if not path.is_file():
        return PlainTextResponse("this run has no metrics\n", 404)
    return StreamingResponse(
        lines_of_csv(name), media_type="text/csv; charset=utf-8", headers={"Content-Disposition": "attachment"}
    )


def lines_of_csv(name: str) -> Iterator[str]:
    """Rows by `step`; every number that any row holds is a column."""
    keys = list(dict.fromkeys(key for row in overview.rows_of(place().root, name, "metrics.jsonl") for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, keys, extrasaction="ignore")
    writer.writeheader()
    for row in overview.rows_of(place().root, name, "metrics.jsonl"):
        writer.writerow({key: value for key, value in row.items() if isinstance(value, int | float)})
        if out.tell() > 65536:
            yield out.getvalue()
            out.seek(0)
            out.truncate()
    yield out.getvalue()
