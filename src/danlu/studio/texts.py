"""What models wrote, as pages show it: rows of samples.jsonl found by their place in the file, reasoning apart.

A file of a long run is not kept in memory: where each row begins is, and to which step it belongs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danlu.think import ThinkFormat

STEP = re.compile(rb'^\{"step": (\d+),')
OUTCOME = re.compile(rb'"outcome": "(\w+)"')
FORMATS = (
    ThinkFormat("reasoning_answer", "<reasoning>", "</reasoning>", "model"),
    ThinkFormat("think", "<think>", "</think>", "model"),
)


def split(output: str) -> tuple[str, str]:
    """(reasoning, answer) of a completion, whichever tags it uses and whoever opened the block."""
    for known in FORMATS:
        if known.close in output or known.open in output:
            text = output if output.lstrip().startswith(known.open) else known.open + output
            reasoning, answer, _ = known.split(text)
            return reasoning, answer
    return "", output.strip()


@dataclass
class Samples:
    """The rows of one samples.jsonl. `refresh` looks at what was appended since."""

    path: Path
    steps: dict[int, list[int]] = field(default_factory=dict)  # step -> where its rows begin
    outcomes: dict[str, list[int]] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    _offset: int = 0

    def refresh(self) -> bool:
        """Whether anything is new. A file that became shorter is looked at from its beginning."""
        try:
            size = self.path.stat().st_size
        except OSError:
            return False
        if size < self._offset:
            self.steps, self.outcomes, self.starts, self._offset = {}, {}, [], 0
        if size == self._offset:
            return False
        before = len(self.starts)
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):  # being written
                    break
                self._note(line)
                self._offset += len(line)
        return len(self.starts) > before

    def _note(self, line: bytes) -> None:
        if not line.strip():
            return
        self.starts.append(self._offset)
        if step := STEP.match(line):
            self.steps.setdefault(int(step.group(1)), []).append(self._offset)
        if outcome := OUTCOME.search(line):
            self.outcomes.setdefault(outcome.group(1).decode(), []).append(self._offset)

    def rows(self, starts: Iterable[int]) -> list[dict[str, Any]]:
        """The rows that begin there; what is no object of ours is left out."""
        found = []
        with self.path.open("rb") as file:
            for start in starts:
                file.seek(start)
                try:
                    row = json.loads(file.readline())
                except ValueError:
                    continue
                if isinstance(row, dict):
                    found.append(row)
        return found

    def groups(self, step: int) -> list[list[dict[str, Any]]]:
        """Rollouts of a step by their prompt, best first within a group."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows(self.steps.get(step, ())):
            found.setdefault(str(row.get("id")), []).append(row)
        return [sorted(group, key=lambda row: -_number(row.get("advantage"))) for group in found.values()]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def spread(group: list[dict[str, Any]]) -> str:
    """Whether a group teaches anything: "mixed", or all its rewards are "equal"."""
    rewards = {row.get("reward") for row in group}
    return "equal" if len(rewards) < 2 else "mixed"


def tint(advantage: Any) -> str:
    """A class for the colour of an advantage: much or little better or worse than the group, or neither."""
    value = _number(advantage)
    if abs(value) < 0.05:
        return "even"
    return ("plus" if value > 0 else "minus") + ("-much" if abs(value) >= 1 else "")
