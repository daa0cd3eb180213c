"""What quantization costs: the answers of each file of an export beside those of the model that it was made from.

Every side was evaluated on the same questions, and files are paired with the source question by question, over all
benchmarks of the suite together (McNemar's exact test and Tango's interval; several answers: sign flips and t),
p Holm-adjusted over the files. Not covered: how a file answers with other sampling, contexts or hardware than here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from danlu.errors import DanluError
from danlu.evaluate import stats
from danlu.evaluate.canvas import DARK, GREY, QUIET, WARM, Picture, picture
from danlu.evaluate.verdict import ALPHA, Pairs, as_published, keyed, paired
from danlu.run import read_jsonl


@dataclass(frozen=True, slots=True)
class Side:
    """One file, or the source: its name, its evaluation run, its bytes and tokens a second (None: not measured)."""

    name: str
    run: Path
    size: int
    speed: float | None = None


def quantizations(source: Side, files: Sequence[Side]) -> dict[str, Any]:
    """{"n", "sides": [{"name", "bytes", "tokens_per_second", "accuracy", "ci", "difference", "difference_ci", "p",
    "p_adjusted", "gained", "lost", "stop_rate", "format_rate", "verdict"}]}, the source first and without the paired
    figures. Fractions. DanluError when two sides were not asked the same questions.
    """
    base = _rows(source)
    found = [paired(_pairs(source, base, side)) for side in files]
    adjusted = stats.holm([figures["p"] for figures in found])
    own = paired([(row, row) for row in base.values()])
    rows = [_side(source, own)]
    for side, figures, p in zip(files, found, adjusted, strict=True):
        told = p < ALPHA and not figures["ci"][0] <= 0 <= figures["ci"][1]
        verdict = ("better" if figures["difference"] > 0 else "worse") if told else "no difference shown"
        rows.append(
            _side(side, figures)
            | {"difference": figures["difference"], "difference_ci": figures["ci"], "p": figures["p"], "p_adjusted": p}
            | {"gained": figures["gained"], "lost": figures["lost"], "verdict": verdict}
        )
    return {"n": own["n"], "sides": rows}


def _rows(side: Side) -> dict[Any, Any]:
    """Rows by what pairs them; ids carry their benchmark, so that all benchmarks are one."""
    rows = keyed(read_jsonl(side.run / "artifact" / "scores.jsonl"), side.name)
    return {key: {**row, "id": f"{key[0]}/{key[1]}"} for key, row in rows.items()}


def _pairs(source: Side, base: dict[Any, Any], side: Side) -> Pairs:
    rows = _rows(side)
    if rows.keys() != base.keys():
        raise DanluError(
            f"{side.name} was not asked the same questions as {source.name}", f"remove {side.run} and verify again"
        )
    return as_published([(base[key], rows[key]) for key in base])


def _side(side: Side, figures: dict[str, Any]) -> dict[str, Any]:
    n, accuracy = figures["n"], figures["tuned"]
    return {
        "name": side.name,
        "bytes": side.size,
        "tokens_per_second": side.speed,
        "accuracy": accuracy,
        "ci": list(stats.wilson(accuracy * n, n)),
        "stop_rate": figures["stop_rate"]["tuned"],
        "format_rate": figures["format_rate"]["tuned"],
    }


def quant_plot(found: dict[str, Any], title: str) -> Picture:
    """Accuracy against size and against speed; bars are the paired 95 % intervals around the source's accuracy."""
    source, *files = found["sides"]
    timed = [side for side in files if side["tokens_per_second"]]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
        unit, divisor = ("GB", 1e9) if max(side["bytes"] for side in files) >= 1e9 else ("MB", 1e6)
        _points(left, source, [(side["bytes"] / divisor, side) for side in files])
        left.set_xlabel(f"size of the file, {unit}")
        _points(right, source, [(side["tokens_per_second"], side) for side in timed])
        right.set_xlabel("speed, tokens a second")
        left.set_title(title)
        left.set_ylabel("right answers")
        left.yaxis.set_major_formatter(PercentFormatter(1))
        note = f"line: the source, {source['accuracy']:.1%} of {found['n']:,}; bars: paired 95 % intervals against it"
        figure.text(0.125, -0.06, note, color=QUIET, fontsize=8.5)

    return picture(draw, 7.2, 3.4)


def _points(ax: Axes, source: dict[str, Any], points: Sequence[tuple[float, dict[str, Any]]]) -> None:
    ax.axhline(source["accuracy"], color=GREY, lw=1.2, ls=(0, (4, 3)))
    end = max((x for x, _ in points), default=1.0)
    for x, side in points:
        color = WARM if side["verdict"] == "worse" else DARK
        low, high = (min(1.0, max(0.0, source["accuracy"] + gap)) for gap in side["difference_ci"])
        ax.plot([x, x], [low, high], color=color, lw=2, alpha=0.55, solid_capstyle="round")
        ax.plot(x, side["accuracy"], "o", color=color, ms=7, mec="white", mew=0.8, zorder=4)
        ax.annotate(
            side["name"], (x, side["accuracy"]), (7, 0), textcoords="offset points", va="center", fontsize=9,
            bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.6},
            zorder=5,
        )  # fmt: skip
    ax.margins(y=0.22)
    ax.set_xlim(0, 1.25 * end)  # room for the last name
    ax.xaxis.set_major_locator(MaxNLocator(6))
