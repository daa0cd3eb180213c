"""Figures of runs: loss, rewards, accuracy; each a Picture with PNG bytes and SVG text.

Colours run from grey over light to dark blue (colour-blind safe, and in order when printed in grey), every series also
has its own marker or place, and lines are labelled where they end instead of in a legend. Labels are English; where a
title holds Chinese a font that has it is used, and without one the characters are escaped.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from danlu.errors import DanluError
from danlu.run import Run

Row = dict[str, Any]
INK, QUIET, GRID = "#222222", "#6b6b6b", "#e6e6e6"
GREY, LIGHT, DARK, WARM = "#8f8f8f", "#56a5dc", "#0b4f86", "#c4500c"
SERIES = ((GREY, "o"), (LIGHT, "s"), (DARK, "D"), (WARM, "^"), ("#7a5aa6", "v"), ("#2f7f6f", "P"))  # colour, marker
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC", "SimHei")
STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": "#b5b5b5",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "svg.hashsalt": "danlu",
    "figure.facecolor": "white",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure: PNG at 160 dots an inch, and SVG."""

    png: bytes
    svg: str


def plot(runs: Sequence[Run]) -> list[Path]:
    """Draw what each run holds into its `plots/`; the PNG files (an SVG lies beside each).

    Training runs get `loss` or `rewards`; evaluation runs together get one `accuracy`, in the last one's directory.
    DanluError if there is nothing to draw.
    """
    drawn: list[Path] = []
    reports: dict[str, Row] = {}
    last: Run | None = None
    for run in runs:
        rows = run.metrics()
        if any("reward" in row for row in rows):
            drawn.append(save(rewards(rows, f"Rewards: {run.name}"), run.path / "plots" / "rewards"))
        elif any("loss" in row for row in rows):
            drawn.append(save(loss(rows, f"Loss: {run.name}"), run.path / "plots" / "loss"))
        file = run.artifact / "report.json"
        if file.is_file():
            from danlu.run import read_json

            entries = read_json(file).get("benchmarks", [])
            reports |= {run.name: entries[0]} if entries else {}
            last = run
    if last and reports:
        drawn.append(save(accuracy(reports), last.path / "plots" / "accuracy"))
    if not drawn:
        named = ", ".join(run.name for run in runs) or "no run"
        raise DanluError(f"there is nothing to draw in {named}", "name a training or an evaluation run that has begun")
    return drawn


def save(picture: Picture, stem: Path) -> Path:
    """Write STEM.png and STEM.svg; the PNG's path."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png = stem.parent / f"{stem.name}.png"
    png.write_bytes(picture.png)
    (stem.parent / f"{stem.name}.svg").write_text(picture.svg, encoding="utf-8")
    return png


# ---- figures


def loss(rows: Sequence[Row], title: str = "Loss") -> Picture:
    """Training loss (raw and smoothed) and eval loss, the best one marked. Rows as in metrics.jsonl of an SFT run."""
    train, evals = _series(rows, "loss"), _series(rows, "eval_loss")

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.set_title(_text(title))
        ends: list[tuple[float, str, str]] = []
        ax.plot(*train, color=LIGHT, lw=0.9, alpha=0.45)
        ax.plot(train[0], smooth(train[1]), color=DARK, lw=2, marker="o" if len(train[0]) == 1 else "")
        if len(train[0]):
            ends.append((smooth(train[1])[-1], "train", DARK))
        if len(evals[0]):
            ax.plot(*evals, color=WARM, lw=1.2, marker="o", ms=5, mec="white", mew=0.8, clip_on=False, zorder=4)
            ends.append((evals[1][-1], "eval", WARM))
            best = int(np.argmin(evals[1]))
            ax.plot(evals[0][best], evals[1][best], "o", ms=11, mfc="none", mec=WARM, mew=1.4, clip_on=False)
            note = f"best {evals[1][best]:.3f} at step {evals[0][best]:,.0f}"
            end = max([evals[0][-1], *train[0][-1:]])
            side = "right" if evals[0][best] > 0.8 * end else "left" if evals[0][best] < 0.2 * end else "center"
            ax.annotate(
                note, (evals[0][best], evals[1][best]), (0, 17), textcoords="offset points", ha=side, color=WARM,
                bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1}, zorder=5,
            )  # fmt: skip
        _steps(ax, rows)
        ax.set_ylabel("loss per supervised token")
        _room(ax, np.concatenate([train[1], evals[1]]))
        _label_ends(ax, ends)

    return _picture(draw, 7.2, 3.9, title)


def rewards(rows: Sequence[Row], title: str = "Rewards") -> Picture:
    """Reward and its components over steps; beneath, completion length and truncated share. Rows of a GRPO run."""
    names = [key for key in dict.fromkeys(key for row in rows for key in row) if key.startswith("rewards/")]

    def draw(figure: Figure) -> None:
        top, length, cut = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1, 1], "hspace": 0.28})
        top.set_title(_text(title))
        ends: list[tuple[float, str, str]] = []
        steps, values = _series(rows, "reward")
        top.plot(steps, values, color=INK, lw=0.8, alpha=0.25)
        top.plot(steps, smooth(values), color=INK, lw=2.2)
        if len(steps):
            ends.append((smooth(values)[-1], "total", INK))
        for name, (color, _) in zip(names, [*SERIES[2:], *SERIES[:2]] * 3, strict=False):
            steps, values = _series(rows, name)
            top.plot(steps, smooth(values), color=color, lw=1.5)
            ends.append((smooth(values)[-1], name.removeprefix("rewards/"), color))
        steps, values = _series(rows, "eval_accuracy")
        if len(steps):
            top.plot(steps, values, "o", color=LIGHT, ms=6, mec="white", mew=0.8, clip_on=False, zorder=4)
            ends.append((values[-1], "eval accuracy", LIGHT))
        top.set_ylabel("reward")
        _room(top, np.concatenate([_series(rows, key)[1] for key in ("reward", *names, "eval_accuracy")]))
        for ax, key, label, color in (
            (length, "completion_length", "tokens", DARK),
            (cut, "truncated", "truncated", WARM),
        ):
            steps, values = _series(rows, key)
            ax.plot(steps, values, color=color, lw=0.8, alpha=0.3)
            ax.plot(steps, smooth(values), color=color, lw=1.8)
            ax.set_ylabel(label)
            ax.yaxis.set_major_locator(MaxNLocator(3))
            _room(ax, values)
        highest = max(0.1, *_series(rows, "truncated")[1], 0.0)
        cut.set_ylim(-0.04 * highest, min(1.05, 1.15 * highest))
        cut.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _steps(cut, rows)
        for ax in (top, length):
            ax.tick_params(labelbottom=False)
        figure.align_ylabels()
        _label_ends(top, ends)

    return _picture(draw, 7.2, 5.4, title)


def accuracy(stages: dict[str, Row], title: str = "Accuracy on the same questions") -> Picture:
    """Accuracy with 95 % intervals of several stages: over all, by task, and by split (seen, unseen).

    `stages`: label ("base", "SFT", "GRPO") -> one benchmark's entry of an evaluation report, i.e. {"n", "accuracy",
    "ci", "tasks": [{"name", "n", "accuracy", "ci"}], "splits": [...]}.
    """
    groups: list[tuple[str, list[Row | None]]] = [("All questions", list(stages.values()))]
    sections = [0]
    for field in ("tasks", "splits"):
        names = list(dict.fromkeys(item["name"] for entry in stages.values() for item in entry.get(field, [])))
        if len(names) < 2:
            continue
        sections.append(len(groups))
        for name in names:
            found = [next((i for i in e.get(field, []) if i["name"] == name), None) for e in stages.values()]
            groups.append((str(name).replace("_", " "), found))
    places = [i + 0.45 * (sum(i >= start for start in sections) - 1) for i in range(len(groups))]
    apart = 0.62 / max(3, len(stages))

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.set_title(_text(title), pad=30)
        for row, (_, entries) in zip(places, groups, strict=True):
            ax.axhspan(row - 0.46, row + 0.46, color="#f5f6f7", lw=0, zorder=0)
            for i, entry in enumerate(entries):
                if entry is None:
                    continue
                color, marker = SERIES[i % len(SERIES)]
                y = row + (i - (len(entries) - 1) / 2) * apart
                ax.plot(entry["ci"], [y, y], color=color, lw=2, alpha=0.65, solid_capstyle="round")
                ax.plot(
                    entry["accuracy"], y, marker, color=color, ms=6.5, mec="white", mew=0.8, clip_on=False, zorder=4
                )
        for i, label in enumerate(stages):
            color, marker = SERIES[i % len(SERIES)]
            ax.plot([], [], marker, color=color, ms=6.5, label=_text(f"{label}  {stages[label]['accuracy']:.0%}"))
        ax.legend(
            loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(stages), frameon=False, handletextpad=0.2,
            columnspacing=1.6, borderpad=0.2,
        )  # fmt: skip
        ax.set_yticks(places, [_text(name) for name, _ in groups])
        ax.tick_params(axis="y", labelcolor=INK)
        ax.get_yticklabels()[0].set_fontweight("bold")
        for row, (_, entries) in zip(places, groups, strict=True):
            n = max((entry["n"] for entry in entries if entry), default=0)
            ax.text(
                1.015, row, f"n = {n:,}", transform=ax.get_yaxis_transform(), va="center", color=QUIET, fontsize=8.5
            )
        ax.set_ylim(places[-1] + 0.6, -0.6)
        ax.set_xlim(0, 1)
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel("right answers, with 95 % interval")

    labels = " ".join([title, *stages, *(name for name, _ in groups)])
    return _picture(draw, 7.2, 1.5 + 0.42 * (places[-1] + 1), labels)


# ---- parts


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean under a bell about a tenth of the points wide; it looks both ways, so that a fall is not drawn late."""
    width = max(0.5, len(values) / 40)
    places = np.arange(len(values))
    bell = np.exp(-0.5 * (np.arange(-int(4 * width), int(4 * width) + 1) / width) ** 2)
    return np.array([_weighted(values, places - i, bell) for i in places])


def _weighted(values: np.ndarray, offsets: np.ndarray, bell: np.ndarray) -> float:
    reach = len(bell) // 2
    near = np.abs(offsets) <= reach
    return float(np.average(values[near], weights=bell[offsets[near] + reach]))


def _series(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the rows that hold a finite `key`; a step that was repeated after a resume counts once."""
    found = {row["step"]: float(row[key]) for row in rows if isinstance(row.get(key), (int, float)) and "step" in row}
    points = sorted((step, value) for step, value in found.items() if np.isfinite(value))
    return np.array([step for step, _ in points], dtype=float), np.array([value for _, value in points], dtype=float)


def _steps(ax: Axes, rows: Sequence[Row]) -> None:
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    last = max((row["step"] for row in rows if "step" in row), default=1)
    ax.set_xlim(0, max(1, last))


def _room(ax: Axes, values: np.ndarray) -> None:
    """Limits that show all but the wildest hundredth of the points, with some air."""
    if len(values):
        low, high = float(values.min()), float(np.quantile(values, 0.995))
        air = 0.1 * (high - low) or 0.1 * abs(high) or 0.1
        ax.set_ylim(0.0 if 0 <= low < 0.35 * high else low - air, high + air)


def _label_ends(ax: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right end of lines, moved apart where they would overlap."""
    low, high = ax.get_ylim()
    height = ax.get_window_extent().height / ax.figure.dpi * 72 if ax.figure else 200.0  # points
    least = 12.5 / height  # share of the axis that one line of text needs
    ends = sorted(ends)
    places = [(min(max(value, low), high) - low) / (high - low) for value, _, _ in ends]
    for _ in range(100):
        for i in range(len(places) - 1):
            short = least - (places[i + 1] - places[i])
            if short > 0:
                places[i], places[i + 1] = places[i] - short / 2, places[i + 1] + short / 2
    for place, (_, name, color) in zip(places, ends, strict=True):
        ax.text(1.018, place, _text(name), transform=ax.transAxes, va="center", color=color, fontsize=9)


def _has_cjk(text: str) -> bool:
    return any(char >= "\u2e80" for char in text)


def _cjk_font() -> str | None:
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in CJK_FONTS if name in known), None)


def _text(text: str) -> str:
    """Text that a font can show and that is never read as mathematics."""
    if _has_cjk(text) and _cjk_font() is None:
        text = "".join(f"U+{ord(char):04X} " if char >= "\u2e80" else char for char in text).strip()
    return text.replace("$", r"\$")


def _picture(draw: Callable[[Figure], None], width: float, height: float, texts: str) -> Picture:
    font = _cjk_font() if _has_cjk(texts) else None
    style: Any = {**STYLE, "font.family": [*STYLE["font.family"], *([font] if font else [])]}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=160)
        draw(figure)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", bbox_inches="tight", pad_inches=0.18)
        figure.savefig(svg, format="svg", bbox_inches="tight", pad_inches=0.18, metadata={"Date": None})
    return Picture(png.getvalue(), svg.getvalue())
