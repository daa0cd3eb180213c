"""The process of a rehearsal that is killed: `python -m danlu.rehearse.killed`, told on stdin which FILE.json to train.

It comes up (imports take longer than two steps of a tiny model) while the rehearsal still reads rows, and ends when
stdin does. It trains until the second step is to be logged, writes half of that row, and kills itself with SIGKILL:
no handler runs, nothing is flushed or removed, exactly as with `kill -9` or the kernel's out-of-memory killer.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from danlu import display
from danlu.recipe import Recipe
from danlu.run import Run, read_json

LAST = 2  # the step that is never logged


class Doomed(Run):
    """A run whose process does not survive its second step."""

    def log(self, row: dict[str, Any]) -> None:
        if row.get("step", 0) >= LAST:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write('{"step": ')
            os.kill(os.getpid(), signal.SIGKILL)
        super().log(row)


def main(lines: TextIO) -> None:
    """Train what the file in the first line says (recipe, stage, run, start) until the end comes."""
    from danlu.rehearse.training import stage_function

    display.set_mode("none")
    functions = {stage: stage_function(stage) for stage in ("sft", "grpo")}  # what takes long to import
    line = lines.readline().strip()
    if not line:  # there is nothing to train after all
        return
    told = read_json(Path(line))
    recipe = Recipe.model_validate(told["recipe"])
    run = Doomed.create(Path(told["run"]), told["stage"], recipe.resolved(), seed=recipe.seed)
    with run.recording():
        functions[told["stage"]](recipe, run, told["start"])


if __name__ == "__main__":
    main(sys.stdin)
