"""An export of a run whose newest gated comparison failed is refused, and --force exports it all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.cli.evaluation import check_gate
from danlu.errors import DanluError
from danlu.run import Run, write_json


def made(runs: Path, name: str, stage: str, parents: list[str] | None = None) -> Run:
    run = Run.create(runs / name, stage, {"name": name}, parents=parents)
    with run.recording():
        pass
    return run


def test_only_the_newest_gate_counts(runs: Path):
    made(runs, "tuned", "sft")
    check_gate("tuned")
    check_gate(None)
    check_gate("some/model")
    first = made(runs, "first-eval", "eval", ["tuned"])
    write_json(first.path / "compare.json", {"gate": {"ok": False, "sentence": "the stop rate fell"}})
    with pytest.raises(DanluError, match="tuned failed its gate: the stop rate fell"):
        check_gate("tuned")
    other = made(runs, "other-eval", "eval", ["another"])
    write_json(other.path / "compare.json", {"gate": {"ok": True, "sentence": ""}})
    ungated = made(runs, "ungated-eval", "eval", ["tuned"])
    write_json(ungated.path / "compare.json", {"sentence": "better"})
    with pytest.raises(DanluError, match="failed its gate"):
        check_gate(str(runs / "tuned"))
    second = made(runs, "second-eval", "eval", ["tuned"])
    write_json(second.path / "compare.json", {"gate": {"ok": True, "sentence": "nothing got worse"}})
    check_gate("tuned")
