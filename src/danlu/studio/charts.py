"""Which curves a stage has, and ECharts options for them; no NiceGUI here.

Colours are of middle lightness, so that they hold on light and dark ground alike. Names of runs are drawn as text on
the canvas (tooltips too), never as HTML, and stand in values only: NiceGUI runs what stands under a key that begins
with a colon.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from danlu.studio.curves import Axis, Metrics
from danlu.studio.words import UNITS

COLORS = ("#2f86c9", "#d9722e", "#3a9d86", "#9270c4", "#c9534a", "#8a857c", "#b0912f", "#4f6fd0")
QUIET, RULE = "#8a857c", "rgba(128,124,116,0.22)"
LIMIT = 1000  # points of a line; four lines then stay smooth
Unit = Literal["", "share", "bytes"]
Say = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Line:
    """One metric in a chart. `dots`: seldom measured. `best`: which value is marked as the best one."""

    key: str
    name: str
    dots: bool = False
    best: Literal["", "least", "most"] = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over one axis. `parts`: every metric with this beginning is a line too."""

    title: str
    lines: tuple[Line, ...]
    unit: Unit = ""
    parts: str = ""
    zero: bool = True


COST = (
    Chart("Gradient norm", (Line("grad_norm", "gradient norm"),)),
    Chart("Learning rate", (Line("lr", "learning rate"),)),
)
ACCURACY = Chart(
    "Held-out accuracy", (Line("eval_accuracy", "accuracy", True, "most"),), "share", parts="eval_accuracy/"
)
MEMORY = Chart("Memory", (Line("memory_bytes", "memory"), Line("peak_memory_bytes", "most so far")), "bytes")
CHARTS: dict[str, tuple[Chart, ...]] = {
    "sft": (
        Chart("Loss", (Line("loss", "loss"), Line("eval_loss", "eval loss", True, "least")), zero=False),
        ACCURACY,
        *COST,
        Chart("Tokens a second", (Line("tokens_per_second", "tokens a second"),)),
        MEMORY,
    ),
    "grpo": (
        Chart("Rewards", (Line("reward", "reward"),), parts="rewards/", zero=False),
        ACCURACY,
        Chart("Completion length", (Line("completion_length", "mean"), Line("completion_length_max", "longest"))),
        Chart(
            "Cut, and groups without a difference",
            (Line("truncated", "cut"), Line("zero_variance", "all equal")),
            "share",
        ),
        Chart("Entropy", (Line("entropy", "entropy"),)),
        Chart("KL to the start", (Line("kl", "KL"),)),
        *COST,
        Chart(
            "Tokens a second",
            (Line("rollout_tokens_per_second", "rollouts"), Line("update_tokens_per_second", "updates")),
        ),
        MEMORY,
    ),
}
AXES: dict[Axis, str] = {"step": "steps", "tokens": "tokens", "seconds": "time"}


def charts(stage: str, metrics: Metrics) -> list[Chart]:
    """The charts of a stage for which there is anything to draw."""
    known = set(metrics.keys())
    found = []
    for chart in CHARTS.get(stage, ()):
        drawn = any(line.key in known for line in chart.lines)
        flat = chart.title == "KL to the start" and not any(y for _, y in metrics.curve("kl", limit=50))
        if drawn and not flat:
            found.append(chart)
    return found


def options(
    chart: Chart, runs: Sequence[tuple[str, Metrics]], axis: Axis, smoothing: float, say: Say
) -> dict[str, Any]:
    """ECharts options of a chart of one or more runs (name, metrics). Several runs show the chart's own lines alone."""
    drawn = series(chart, runs, axis, smoothing, say)
    names, unit = list(dict.fromkeys(one["name"] for one in drawn)), chart.unit
    return {
        "animation": False,
        "color": list(COLORS),
        "textStyle": {"fontFamily": "inherit"},
        "grid": {"left": 8, "right": 16, "top": 34 if len(names) > 1 else 14, "bottom": 26, "containLabel": True},
        "legend": {
            "show": len(names) > 1,
            "type": "scroll",
            "top": 0,
            "left": 0,
            "icon": "roundRect",
            "itemWidth": 12,
            "itemHeight": 4,
            "textStyle": {"color": QUIET, "fontSize": 12},
            "pageTextStyle": {"color": QUIET},
            "data": names,
        },
        "tooltip": {"trigger": "axis", "renderMode": "richText", "confine": True, "order": "valueDesc"},
        "xAxis": {
            "type": "value",
            "min": "dataMin",
            "max": "dataMax",
            "name": say(AXES[axis]),
            "nameLocation": "middle",
            "nameGap": 24,
            "nameTextStyle": {"color": QUIET, "fontSize": 11},
            "splitNumber": 5,
            "minInterval": 0 if axis == "seconds" else 1,
            "axisLabel": {"color": QUIET, "fontSize": 11, "hideOverlap": True, **_time_label(axis, say)},
            "axisLine": {"lineStyle": {"color": RULE}},
            "axisTick": {"show": False},
            "splitLine": {"show": False},
        },
        "yAxis": {
            "type": "value",
            "scale": not chart.zero,
            "splitNumber": 4,
            "axisLabel": {"color": QUIET, "fontSize": 11, **_label(unit)},
            "axisLine": {"show": False},
            "axisTick": {"show": False},
            "splitLine": {"lineStyle": {"color": RULE}},
        },
        "series": drawn,
    }


def _label(unit: Unit) -> dict[str, Any]:
    """How numbers of a unit are written; the scripts are ours, and no text of a run is in them."""
    if unit == "share":
        return {":formatter": "v => Math.round(v * 1000) / 10 + ' %'"}
    if unit == "bytes":
        return {":formatter": "v => (v / 1e9).toFixed(1) + ' GB'"}
    plain = "v.toLocaleString('en', { maximumSignificantDigits: 4 })"
    return {":formatter": f"v => v && Math.abs(v) < 0.001 ? v.toExponential(0) : {plain}"}


def _time_label(axis: Axis, say: Say) -> dict[str, Any]:
    if axis != "seconds":
        return {}
    s, minutes, hours = (json.dumps(say(UNITS[unit]).replace("{n}", "")) for unit in ("s", "min", "h"))
    return {
        ":formatter": f"v => v < 120 ? v + {s} : v < 7200 ? (v / 60).toFixed(0) + {minutes}"
        f" : (v / 3600).toFixed(1) + {hours}"
    }


def series(
    chart: Chart, runs: Sequence[tuple[str, Metrics]], axis: Axis, smoothing: float, say: Say
) -> list[dict[str, Any]]:
    """The lines of a chart: raw ones faint behind their means, seldom measured ones with dots and the best marked."""
    found: list[dict[str, Any]] = []
    several = len(runs) > 1
    color = 0
    for name, metrics in runs:
        lines, known = list(chart.lines), metrics.keys()
        if chart.parts and not several:
            lines += [Line(k, k.removeprefix(chart.parts), lines[0].dots) for k in known if k.startswith(chart.parts)]
        if several:
            lines = lines[:2] if lines[0].key == "loss" else lines[:1]
        for line in lines:
            points = metrics.curve(line.key, axis, 0, LIMIT)
            if not points:
                continue
            label = f"{name} · {say(line.name)}" if several else say(line.name)
            found += _line(line, label, points, metrics, axis, smoothing, COLORS[color % len(COLORS)], say)
            color += 1
    return found


def _line(
    line: Line, label: str, points: Any, metrics: Metrics, axis: Axis, smoothing: float, color: str, say: Say
) -> list[dict[str, Any]]:
    base = {"type": "line", "name": label, "color": color}
    if line.dots:
        own = {**base, "data": points, "symbol": "circle", "symbolSize": 6, "showSymbol": len(points) < 200, "z": 4}
        own["lineStyle"] = {"width": 1.5}
        best = metrics.best(line.key, line.best == "most") if line.best else None
        if best and len(points) > 1:
            at = metrics.at(best[0], axis)
            own["markPoint"] = {
                "symbol": "circle",
                "symbolSize": 15,
                "silent": True,
                "itemStyle": {"color": "transparent", "borderColor": color, "borderWidth": 2},
                "label": {"show": True, "position": "top", "color": color, "fontSize": 11, "formatter": say("best")},
                "data": [{"coord": [at, best[1]]}],
            }
        return [own]
    smooth = smoothing > 0 and len(points) > 8
    raw = {**base, "data": points, "showSymbol": len(points) == 1, "lineStyle": {"width": 1 if smooth else 1.8}}
    if not smooth:
        return [raw]
    raw |= {"lineStyle": {"width": 1, "opacity": 0.28}, "tooltip": {"show": False}, "silent": True}
    mean = metrics.curve(line.key, axis, smoothing, LIMIT // 2)
    return [raw, {**base, "data": mean, "showSymbol": False, "lineStyle": {"width": 2.2}, "z": 3}]
