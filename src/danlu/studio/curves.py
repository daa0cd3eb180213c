"""Curves of a run that may still grow: metrics.jsonl read on from where it was, thinned out for the screen.

Of a series with more points than a screen has columns, each of equally wide buckets keeps its least and its greatest
point, so that a spike of one step in 100,000 is still seen. Smoothing is a moving mean that looks both ways, twice, so
that a fall is not drawn late; it is made of all points, before thinning. A step that was repeated after a resume counts
once, the later one.
"""

from __future__ import annotations

import json
import math
from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

Axis = Literal["step", "tokens", "seconds"]
Points = list[tuple[float, float]]

LIMIT = 2000  # points of a series on the screen
# what a training step takes, as rows tell it: the sampling stages' parts, or those of one update
PARTS = (
    ("rollout_seconds", "reward_seconds", "update_seconds"),
    ("forward_seconds", "backward_seconds", "optimizer_seconds"),
)


class Metrics:
    """The numbers of one metrics.jsonl. `refresh` reads what was appended since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._clear()

    def _clear(self) -> None:
        self._offset = 0
        self._axes: dict[Axis, array[float]] = {"step": array("d"), "tokens": array("d"), "seconds": array("d")}
        self._places: dict[str, array[int]] = {}  # of a key's values among the steps
        self._values: dict[str, array[float]] = {}
        self.version = 0

    def __len__(self) -> int:
        return len(self._axes["step"])

    def refresh(self) -> bool:
        """Read on; whether anything is new. A file that became shorter is read from its beginning."""
        try:
            size = self.path.stat().st_size
        except OSError:
            return False
        if size < self._offset:
            version = self.version
            self._clear()
            self.version = version + 1
        if size == self._offset:
            return False
        with self.path.open("rb") as file:
            file.seek(self._offset)
            read = file.read(size - self._offset)
        whole = read[: read.rfind(b"\n") + 1]  # the rest is being written
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int | float):
                self._take(row)
        self.version += bool(whole)
        return bool(whole)

    def _take(self, row: dict[str, Any]) -> None:
        steps, tokens, seconds = self._axes["step"], self._axes["tokens"], self._axes["seconds"]
        step = float(row["step"])
        while steps and steps[-1] > step:
            self._drop_last()
        if not steps or steps[-1] < step:
            steps.append(step)
            tokens.append(tokens[-1] if tokens else 0.0)
            seconds.append(seconds[-1] if seconds else 0.0)
        place = len(steps) - 1
        passed = next((sum(_number(row, key) for key in parts) for parts in PARTS if parts[0] in row), 0.0)
        if passed:
            seconds[place] = (seconds[place - 1] if place else 0.0) + passed
        if "tokens" in row:
            tokens[place] = _number(row, "tokens")
        elif "rollout_seconds" in row:
            done = _number(row, "rollout_seconds") * _number(row, "rollout_tokens_per_second")
            tokens[place] = (tokens[place - 1] if place else 0.0) + done
        for key, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or key == "step":
                continue
            places = self._places.setdefault(key, array("q"))
            values = self._values.setdefault(key, array("d"))
            if places and places[-1] == place:
                values[-1] = value
            else:
                places.append(place)
                values.append(value)

    def _drop_last(self) -> None:
        for axis in self._axes.values():
            axis.pop()
        for key, places in self._places.items():
            if places and places[-1] >= len(self._axes["step"]):
                places.pop()
                self._values[key].pop()

    # ---- reading

    def keys(self) -> list[str]:
        return list(self._values)

    def last(self, key: str) -> float | None:
        found = self._values.get(key)
        return found[-1] if found else None

    def best(self, key: str, largest: bool) -> tuple[float, float] | None:
        """(step, value) of the best finite value."""
        pairs = [(v, self._axes["step"][p]) for p, v in self._pairs(key) if math.isfinite(v)]
        if not pairs:
            return None
        value, step = (max if largest else min)(pairs, key=lambda pair: pair[0])
        return step, value

    def at(self, step: float, axis: Axis) -> float:
        """Where a step that is known lies on an axis."""
        from bisect import bisect_left

        place = bisect_left(self._axes["step"], step)
        return self._axes[axis][min(place, len(self) - 1)]

    def _pairs(self, key: str) -> zip[tuple[int, float]]:
        return zip(self._places.get(key, ()), self._values.get(key, ()), strict=True)

    def curve(self, key: str, axis: Axis = "step", smoothing: float = 0.0, limit: int = LIMIT) -> Points:
        """Finite points (x, y) of a key, at most `limit`. `smoothing`: share of the points that a mean takes in."""
        import numpy as np

        values = np.array(self._values.get(key, ()), dtype=float)
        places = np.array(self._places.get(key, ()), dtype=int)
        x = np.array(self._axes[axis], dtype=float)[places] if len(places) else values
        finite = np.isfinite(values)
        x, values = x[finite], values[finite]
        if smoothing > 0:
            values = smoothed(values, smoothing)
        kept = thinned(values, limit)
        return [(round(float(a), 3), float(f"{b:.6g}")) for a, b in zip(x[kept], values[kept], strict=True)]

    def seconds_left(self, steps: int | None, window: int = 20) -> float | None:
        """Until `steps` are done, at the pace of the last ones; None while that is not known."""
        done, seconds = self._axes["step"], self._axes["seconds"]
        back = min(window, len(done) - 1)
        if not steps or back < 1 or done[-1] <= done[-1 - back]:
            return None
        pace = (seconds[-1] - seconds[-1 - back]) / (done[-1] - done[-1 - back])
        return max(0.0, steps - done[-1]) * pace if pace > 0 else None


def _number(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def smoothed(values: Any, share: float) -> Any:
    """A moving mean over about `share` of the points, applied twice; narrower at the ends."""
    import numpy as np

    half = int(len(values) * min(share, 1.0) / 4)
    for _ in range(2 if half else 0):
        total = np.concatenate([[0.0], np.cumsum(values)])
        places = np.arange(len(values))
        reach = np.minimum(half, np.minimum(places, len(values) - 1 - places))  # the same to both sides
        values = (total[places + reach + 1] - total[places - reach]) / (2 * reach + 1)
    return values


def thinned(values: Any, limit: int) -> Any:
    """Places of at most `limit` points that show what all would: ends, and least and greatest of each bucket."""
    import numpy as np

    count = len(values)
    if count <= limit:
        return np.arange(count)
    edges = np.linspace(1, count - 1, (limit - 2) // 2 + 1).astype(int)
    kept = [0, count - 1]
    for start, end in pairwise(edges):
        if end > start:
            part = values[start:end]
            kept += [start + int(part.argmin()), start + int(part.argmax())]
    return np.unique(kept)
