"""A run is stopped and goes on again by the buttons of its page."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from looking import looking
from studio_server import serving

from danlu.run import Run

RECIPE = """
name: halt
domain: medical
stages: [sft]
model: {id: tiny}
data: {train: [{path: "world:sft", limit: 24, seed: 1}], max_length: 384}
sft: {batch_size: 2, steps: 100000, save_every: 1000, lora: {r: 4, alpha: 8}, keep_best: false}
"""


def until(holds: Callable[[], Any], what: str, seconds: float = 180) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, what
        time.sleep(0.2)
    return found


def state(run: Run) -> str:
    return run.state() if (run.path / "run.json").is_file() else ""


def steps(run: Run) -> list[int]:
    return [row["step"] for row in run.metrics() if "loss" in row]


@pytest.mark.slow
def test_a_run_is_stopped_and_goes_on(tmp_path: Path, chromium: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "halt.yaml").write_text(RECIPE, encoding="utf-8")
    run = Run(tmp_path / "runs" / "halt-sft")
    with serving(tmp_path / "runs", "halt.yaml", cwd=tmp_path) as served, looking(chromium, served) as page:

        def stop() -> int:
            page.get_by_role("button", name="Stop", exact=True).click()
            dialog = page.get_by_role("dialog")
            dialog.get_by_role("heading", name="Stop halt-sft?").wait_for()
            dialog.get_by_role("button", name="Stop", exact=True).click()
            until(lambda: state(run) == "stopped", "it does not stop")
            page.get_by_role("button", name="Go on").wait_for()
            page.locator(".tag.stopped").first.wait_for()
            return steps(run)[-1]

        page.goto("/start?recipe=halt.yaml")
        page.get_by_role("button", name="Start", exact=True).click()
        page.wait_for_url("**/run/halt-sft", timeout=120_000)
        page.get_by_text("of 100,000").wait_for(timeout=180_000)
        first = stop()
        page.get_by_role("button", name="Go on").click()
        until(lambda: state(run) == "started" and steps(run)[-1] > first, "it does not go on")
        page.get_by_role("button", name="Stop", exact=True).wait_for()
        last = stop()
        assert last > first
        assert steps(run) == list(range(1, last + 1))  # none is missing, none is there twice
