"""Figures of runs: loss, rewards, the course of training, accuracy, differences; each a Picture (PNG and SVG).

Colours run from grey over light to dark blue (colour-blind safe, and in order when printed in grey), every series also
has its own marker or place, and lines are labelled where they end instead of in a legend. Labels are English; names
of runs, tasks and benchmarks may be Chinese (see canvas).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter

from danlu.display import warn
from danlu.errors import DanluError
from danlu.evaluate.canvas import (
    DARK,
    INK,
    LIGHT,
    QUIET,
    SERIES,
    WARM,
    Picture,
    Row,
    label_ends,
    level,
    line,
    picture,
    room,
    save,
    series,
    step_axis,
)
from danlu.run import Run, read_json

# what is drawn of the course of a training run: key of metrics.jsonl -> what it is called, unit of its axis
COURSE = {
    "entropy": ("entropy of the policy", ""),
    "kl": ("KL from the start", ""),
    "reward_std": ("spread of rewards in a group", ""),
    "zero_variance": ("groups that teach nothing", "%"),
    "grad_norm": ("gradient norm", ""),
    "lr": ("learning rate", ""),
    "tokens_per_second": ("tokens a second", ""),
    "rollout_tokens_per_second": ("tokens a second, sampling", ""),
    "peak_memory_bytes": ("most memory", "B"),
}
NO_FONT = (
    "no font with Chinese letters was found: the PNG shows code points, the SVG beside it the letters. "
    "Install one, e.g. Noto Sans CJK (apt install fonts-noto-cjk)"
)


def plot(runs: Sequence[Run]) -> list[Path]:
    """Draw what each run holds into its `plots/`; the PNG files (an SVG lies beside each).

    A training run gets `loss` or `rewards`, and `course`. An evaluation that was compared gets `differences`. Several
    of one kind get one figure together, in the directory of the last: `losses`, `reward`, `accuracy` (also of one).
    DanluError if there is nothing to draw.
    """
    found = [(run.path / "plots" / name, made) for run in runs for name, made in figures(run).items()]
    rows = {run: run.metrics() for run in dict.fromkeys(runs)}
    rewarded = {run: own for run, own in rows.items() if any("reward" in row for row in own)}
    # a GRPO run logs its objective under the name of the loss
    trained = {run: own for run, own in rows.items() if run not in rewarded and any("loss" in row for row in own)}
    for own, key, name in ((trained, "loss", "losses"), (rewarded, "reward", "reward")):
        if len(own) > 1:
            told = dict(zip(labels(list(own)), own.values(), strict=True))
            found.append((list(own)[-1].path / "plots" / name, together(told, key)))
    reports = {run: read_json(run.artifact / "report.json") for run in rows if (run.artifact / "report.json").is_file()}
    entries = {run: report["benchmarks"][0] for run, report in reports.items() if report.get("benchmarks")}
    if entries:
        stages = dict(zip(labels(list(entries)), entries.values(), strict=True))
        found.append((list(entries)[-1].path / "plots" / "accuracy", accuracy(stages)))
    if not found:
        named = ", ".join(run.name for run in runs) or "no run"
        raise DanluError(f"there is nothing to draw in {named}", "name a training or an evaluation run that has begun")
    if any(made.spelled_out for _, made in found):
        warn(NO_FONT)
    return [save(made, stem) for stem, made in found]


def labels(runs: Sequence[Run]) -> list[str]:
    """The names of runs, with their folder where two have the same."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.path) for name, run in zip(names, runs, strict=True)]


def figures(run: Run) -> dict[str, Picture]:
    """What can be drawn of one run by itself, by name; without the accuracy of an evaluation."""
    rows = run.metrics()
    found: dict[str, Picture] = {}
    if any("reward" in row for row in rows):
        found["rewards"] = rewards(rows, f"Rewards: {run.name}")
    elif any("loss" in row for row in rows):
        found["loss"] = loss(rows, f"Loss: {run.name}")
    if found and (drawn := course(rows, f"Course of training: {run.name}")):
        found["course"] = drawn
    compared = run.path / "compare.json"
    if compared.is_file() and (benchmarks := read_json(compared).get("benchmarks")):
        found["differences"] = differences(benchmarks, f"Differences: {run.name}")
    return found


# ---- figures


def loss(rows: Sequence[Row], title: str = "Loss") -> Picture:
    """Training loss (raw and smoothed) and eval loss, the best one marked. Rows as in metrics.jsonl of an SFT run."""
    train, evals = series(rows, "loss"), series(rows, "eval_loss")

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.set_title(title)
        ends: list[tuple[float, str, str]] = []
        smoothed = line(ax, rows, "loss", DARK, 2)
        if len(train[0]):
            ends.append((smoothed[-1], "train", DARK))
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
        step_axis(ax, rows)
        ax.set_ylabel("loss per supervised token")
        room(ax, np.concatenate([train[1], evals[1]]))
        label_ends(ax, ends)

    return picture(draw, 7.2, 3.9)


def rewards(rows: Sequence[Row], title: str = "Rewards") -> Picture:
    """Reward and its components over steps; beneath, completion length and truncated share. Rows of a GRPO run."""
    names = [key for key in dict.fromkeys(key for row in rows for key in row) if key.startswith("rewards/")]

    def draw(figure: Figure) -> None:
        top, length, cut = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1, 1], "hspace": 0.28})
        top.set_title(title)
        ends: list[tuple[float, str, str]] = []
        smoothed = line(top, rows, "reward", INK, 2.2)
        if len(smoothed):
            ends.append((smoothed[-1], "total", INK))
        for name, (color, _) in zip(names, [*SERIES[2:], *SERIES[:2]] * 3, strict=False):
            places, values = level(*series(rows, name))
            top.plot(places, values, color=color, lw=1.5)
            ends += [(values[-1], name.removeprefix("rewards/"), color)] if len(values) else []
        steps, values = series(rows, "eval_accuracy")
        if len(steps):
            top.plot(steps, values, "o", color=LIGHT, ms=6, mec="white", mew=0.8, clip_on=False, zorder=4)
            ends.append((values[-1], "eval accuracy", LIGHT))
        top.set_ylabel("reward")
        room(top, np.concatenate([series(rows, key)[1] for key in ("reward", *names, "eval_accuracy")]))
        for ax, key, label, color in (
            (length, "completion_length", "tokens", DARK),
            (cut, "truncated", "truncated", WARM),
        ):
            line(ax, rows, key, color)
            ax.set_ylabel(label)
            ax.yaxis.set_major_locator(MaxNLocator(3))
            room(ax, series(rows, key)[1])
        highest = max(0.1, *series(rows, "truncated")[1], 0.0)
        cut.set_ylim(-0.04 * highest, min(1.05, 1.15 * highest))
        cut.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        step_axis(cut, rows)
        for ax in (top, length):
            ax.tick_params(labelbottom=False)
        figure.align_ylabels()
        label_ends(top, ends)

    return picture(draw, 7.2, 5.4)


def course(rows: Sequence[Row], title: str = "Course of training") -> Picture | None:
    """What else a training run logged (COURSE), a small panel each; None where nothing of it was."""
    found = {key: series(rows, key)[1] for key in COURSE}
    known = {key: named for key, named in COURSE.items() if len(found[key]) > 1 and found[key].any()}
    if not known:
        return None
    rows_of_panels = -(-len(known) // 2)
    height = 0.9 + 1.3 * rows_of_panels

    def draw(figure: Figure) -> None:
        figure.text(0.125, 1 - 0.12 / height, title, va="top", fontweight="bold", fontsize=11.5)
        spaces = {"hspace": 0.5, "wspace": 0.26, "top": 1 - 0.65 / height, "bottom": 0.3 / height}
        panels = figure.subplots(rows_of_panels, 2, sharex=True, squeeze=False, gridspec_kw=spaces)
        flat: list[Axes] = list(panels.flat)
        for ax, (key, (name, unit)) in zip(flat, known.items(), strict=False):
            line(ax, rows, key, DARK, 1.6)
            ax.set_title(name, fontsize=9, fontweight="normal", color=QUIET, pad=5)
            room(ax, series(rows, key)[1])
            _ticks(ax, unit)
        for ax in flat[len(known) :]:
            ax.set_axis_off()
        for ax in flat[max(0, len(known) - 2) : len(known)]:
            step_axis(ax, rows)
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            ax.tick_params(labelbottom=True)

    return picture(draw, 7.2, height)


def _ticks(ax: Axes, unit: str) -> None:
    ax.yaxis.set_major_locator(MaxNLocator(4))
    if unit == "%":
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    elif unit:
        ax.yaxis.set_major_formatter(EngFormatter(unit, sep=" "))
    else:
        ax.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:.3g}")
        )


def together(runs: Mapping[str, Sequence[Row]], key: str, title: str = "") -> Picture:
    """One measure (`loss` or `reward`) of several runs, smoothed; held-out loss or accuracy as points of its colour."""
    words = {"loss": ("loss per supervised token", "eval_loss"), "reward": ("reward", "eval_accuracy")}
    label, held_out = words[key]

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.set_title(title or f"{key.capitalize()} of {len(runs)} runs")
        ends, seen = [], []
        for (name, rows), (color, marker) in zip(runs.items(), [*SERIES[2:], *SERIES[:2]] * 9, strict=False):
            places, values = level(*series(rows, key))
            ax.plot(places, values, color=color, lw=1.8)
            points = series(rows, held_out)
            ax.plot(*points, marker, color=color, ms=5, mec="white", mew=0.8, clip_on=False, zorder=4)
            ends += [(values[-1], name, color)] if len(values) else []
            seen += [values, points[1]]
        step_axis(ax, [row for rows in runs.values() for row in rows])
        ax.set_ylabel(label)
        room(ax, np.concatenate(seen))
        label_ends(ax, ends)

    return picture(draw, 7.2, 3.9)


def differences(benchmarks: Sequence[Mapping[str, Any]], title: str = "Differences") -> Picture:
    """Points gained or lost on each benchmark of a comparison (`verdict.compare`), with their 95 % intervals."""
    colors = {"better": DARK, "worse": WARM}

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.set_title(title)
        ax.axvline(0, color=QUIET, lw=1)
        for row, entry in enumerate(benchmarks):
            color = colors.get(entry["verdict"], SERIES[0][0])
            ax.plot([100 * end for end in entry["ci"]], [row, row], color=color, lw=2.4, solid_capstyle="round")
            ax.plot(100 * entry["difference"], row, "D", color=color, ms=7, mec="white", mew=0.9, zorder=4)
            ax.text(
                1.015, row, f"{100 * entry['difference']:+.1f}  {entry['verdict']}, n = {entry['n']:,}",
                transform=ax.get_yaxis_transform(), va="center", color=color if color != SERIES[0][0] else QUIET,
                fontsize=8.5,
            )  # fmt: skip
        ax.set_yticks(range(len(benchmarks)), [str(entry["name"]).replace("_", " ") for entry in benchmarks])
        ax.tick_params(axis="y", labelcolor=INK)
        ax.set_ylim(len(benchmarks) - 0.4, -0.6)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel("percentage points, tuned minus base, with 95 % interval")

    return picture(draw, 7.2, 1.2 + 0.42 * len(benchmarks))


def accuracy(stages: Mapping[str, Row], title: str = "Accuracy on the same questions") -> Picture:
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
    beside = max(1, min(len(stages), 64 // max(10 + len(label) for label in stages)))  # names in a line of the legend

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.set_title(title, pad=12 + 18 * -(-len(stages) // beside))
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
            ax.plot([], [], marker, color=color, ms=6.5, label=f"{label}  {stages[label]['accuracy']:.0%}")
        ax.legend(
            loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=beside, frameon=False, handletextpad=0.2,
            columnspacing=1.6, borderpad=0.2,
        )  # fmt: skip
        ax.set_yticks(places, [name for name, _ in groups])
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

    return picture(draw, 7.2, 1.5 + 0.42 * (places[-1] + 1))
