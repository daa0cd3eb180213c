"""What all figures share: style, fonts, smoothing, labels at the ends of lines; a drawing as PNG and SVG.

Text is never read as mathematics. Where it holds Chinese, Japanese or Korean, a font of the system that has it is
used (also one that was installed after matplotlib listed the fonts). Without one the PNG shows code points (U+8BCA),
and the SVG, whose letters are then drawn by whatever shows it, shows the characters themselves.
A long series is thinned before it is drawn: buckets keep their lowest and highest point, smoothing works on means.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

Row = Mapping[str, Any]
INK, QUIET, GRID = "#222222", "#6b6b6b", "#e6e6e6"
GREY, LIGHT, DARK, WARM = "#8f8f8f", "#56a5dc", "#0b4f86", "#c4500c"
SERIES = ((GREY, "o"), (LIGHT, "s"), (DARK, "D"), (WARM, "^"), ("#7a5aa6", "v"), ("#2f7f6f", "P"))  # colour, marker
MOST_POINTS = 1000  # of a line
CJK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK TC", "Noto Sans SC", "Source Han Sans SC"),
    *("PingFang SC", "Hiragino Sans GB", "Heiti SC", "Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Noto Serif CJK SC", "Noto Serif CJK JP", "Droid Sans Fallback", "SimSun"),
)
CJK_FILES = ("notosanscjk-", "notosanssc-", "sourcehansans", "wqy-microhei", "wqy-zenhei", "pingfang", "msyh", "simhei")
STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
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
    """One figure: PNG at 160 dots an inch, and SVG. `spelled_out`: the PNG shows code points for want of a font."""

    png: bytes
    svg: str
    spelled_out: bool = False


def save(picture: Picture, stem: Path) -> Path:
    """Write STEM.png and STEM.svg; the PNG's path."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png = stem.parent / f"{stem.name}.png"
    png.write_bytes(picture.png)
    (stem.parent / f"{stem.name}.svg").write_text(picture.svg, encoding="utf-8")
    return png


def picture(draw: Callable[[Figure], None], width: float, height: float) -> Picture:
    """What `draw` puts on a figure of so many inches."""
    font = cjk_font()
    style: Any = {**STYLE, "font.family": [*STYLE["font.family"], *([font] if font else [])]}
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # a family without its bold is no news
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), dpi=160)
        draw(figure)
        png, svg = io.BytesIO(), io.StringIO()
        count = max((_wide(artist.get_text()) for artist in _texts(figure)), default=0)
        replaced = bool(count) and font is None
        # an unknown letter is measured too narrow by some two fifths
        room = 0.18 + (0.4 * count * STYLE["font.size"] / 72 if replaced else 0)
        with matplotlib.rc_context({"svg.fonttype": "none" if replaced else "path"}):
            figure.savefig(svg, format="svg", bbox_inches="tight", pad_inches=room, metadata={"Date": None})
        if replaced:
            _spell_out(figure)
        figure.savefig(png, format="png", bbox_inches="tight", pad_inches=0.18)
    return Picture(png.getvalue(), svg.getvalue(), replaced)


# ---- letters


@cache
def cjk_font() -> str | None:
    """A family that has Chinese letters, or None."""
    found = _known()
    if found is None:
        for file in font_manager.findSystemFonts():  # perhaps installed since matplotlib wrote its list
            if Path(file).stem.lower().startswith(CJK_FILES):
                font_manager.fontManager.addfont(file)
        found = _known()
    return found


def _known() -> str | None:
    known = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in CJK_FONTS if name in known), None)


def spelled_out(text: str) -> str:
    """诊断 -> "U+8BCA U+65AD"."""
    return "".join(f" U+{ord(char):04X} " if char >= "\u2e80" else char for char in text).replace("  ", " ").strip()


def _wide(text: str) -> int:
    return sum(char >= "\u2e80" for char in text)


def _texts(figure: Figure) -> list[Text]:
    figure.draw_without_rendering()  # labels of ticks exist from here on
    return [artist for artist in figure.findobj(Text) if isinstance(artist, Text)]


def _spell_out(figure: Figure) -> None:
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            names = [label.get_text() for label in axis.get_ticklabels()]
            if any(map(_wide, names)):
                axis.set_ticks(axis.get_ticklocs(), [spelled_out(name) for name in names])
    for artist in _texts(figure):
        if _wide(artist.get_text()):
            artist.set_text(spelled_out(artist.get_text()))


# ---- lines


def series(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the rows that hold a finite `key`; a step that was repeated after a resume counts once."""
    found = {row["step"]: float(row[key]) for row in rows if isinstance(row.get(key), (int, float)) and "step" in row}
    points = sorted((step, value) for step, value in found.items() if np.isfinite(value))
    return np.array([step for step, _ in points], dtype=float), np.array([value for _, value in points], dtype=float)


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean under a bell about a tenth of the points wide; it looks both ways, so that a fall is not drawn late."""
    if not len(values):
        return values
    width = max(0.5, len(values) / 40)
    reach = int(4 * width)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    inside = slice(reach, reach + len(values))
    return np.convolve(values, bell)[inside] / np.convolve(np.ones_like(values), bell)[inside]


def thinned(steps: np.ndarray, values: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` of the points: of each bucket the lowest and the highest, in their order."""
    if len(values) <= most:
        return steps, values
    kept: list[int] = []
    for part in np.array_split(np.arange(len(values)), most // 2):
        kept += sorted({int(part[values[part].argmin()]), int(part[values[part].argmax()])})
    return steps[kept], values[kept]


def level(steps: np.ndarray, values: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """The smoothed line, from means of buckets where there are more than `most` points."""
    if len(values) > most:
        parts = np.array_split(np.arange(len(values)), most)
        steps, values = (np.array([of[part].mean() for part in parts]) for of in (steps, values))
    return steps, smooth(values)


def line(ax: Axes, rows: Sequence[Row], key: str, color: str, width: float = 1.8) -> np.ndarray:
    """Draw a series, faint as it is and strong as smoothed; the smoothed values."""
    steps, values = series(rows, key)
    ax.plot(*thinned(steps, values), color=color, lw=0.8, alpha=0.3)
    places, smoothed = level(steps, values)
    ax.plot(places, smoothed, color=color, lw=width, marker="o" if len(values) == 1 else "")
    return smoothed


def step_axis(ax: Axes, rows: Sequence[Row]) -> None:
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    last = max((row["step"] for row in rows if "step" in row), default=1)
    ax.set_xlim(0, max(1, last))


def room(ax: Axes, values: np.ndarray) -> None:
    """Limits that show all but the wildest hundredth of the points, with some air."""
    if len(values):
        low, high = float(values.min()), float(np.quantile(values, 0.995))
        air = 0.1 * (high - low) or 0.1 * abs(high) or 0.1
        ax.set_ylim(0.0 if 0 <= low < 0.35 * high else low - air, high + air)


def label_ends(ax: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names (value, name, colour) at the right end of lines, moved apart where they would overlap."""
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
        ax.text(1.018, place, name, transform=ax.transAxes, va="center", color=color, fontsize=9)
