"""A person's way through the studio, in a real browser, on a real run: start, watch, read, weigh, export."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from looking import looking
from studio_server import Served, serving

from danlu.run import Run, read_json

RECIPE = """
name: walk
description: A short walk through the miniature clinic
domain: medical
stages: [sft, grpo, eval, export]
model: {id: tiny}
data:
  train: [{path: "world:sft", limit: 48, seed: 1}]
  valid: [{path: "world:dev", limit: 8, seed: 1}]
  max_length: 384
sft: {batch_size: 4, steps: 24, lora: {r: 16, alpha: 32}, optimizer: {lr: 3.0e-3}, eval_every: 12, keep_best: false}
grpo:
  data: [{path: "world:grpo", limit: 40, seed: 1}]
  prompts: 1
  group: 4
  steps: 2
  max_prompt: 128
  max_completion: 64
  lora: {r: 16, alpha: 32}
  optimizer: {lr: 1.0e-3}
  rewards: [{name: answer, weight: 0.9}, {name: think_format, weight: 0.1}]
eval:
  benchmarks: [{name: clinic, path: "world:test", limit: 16, seed: 1}]
  max_tokens: 64
export: {quant: q8_0, num_ctx: 512, temperature: 0.0}
"""
STAGES = ("eval-base", "sft", "grpo", "eval", "export")
PATIENCE = 900  # seconds for all stages on a machine that does other things too


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[tuple[Served, list[int]]]:
    """A studio in which the recipe was started from the form and ran to its end; heights of its curve meanwhile."""
    folder: Path = tmp_path_factory.mktemp("walk")
    (folder / "runs").mkdir()
    (folder / "walk.yaml").write_text(RECIPE, encoding="utf-8")
    with serving(folder / "runs", "walk.yaml", cwd=folder) as served:
        with looking(chromium, served) as page:
            page.goto("/")
            page.get_by_role("button", name="Start a run").first.click()
            page.wait_for_url("**/start*")
            page.goto("/start?recipe=walk.yaml")
            page.get_by_label("Name of the run").fill("walk")
            page.get_by_role("button", name="Start", exact=True).click()
            page.wait_for_url("**/run/walk-eval-base", timeout=120_000)
            points = _watch(page, served)
        _wait(served, "walk-export")
        yield served, points


def _watch(page: Any, served: Served) -> list[int]:
    """How many steps the drawn loss had, each time that there were more, until the stage is done."""
    until = time.monotonic() + PATIENCE
    while not (served.root / "walk-sft" / "metrics.jsonl").is_file():
        assert time.monotonic() < until, _log(served)
        time.sleep(0.5)
    page.goto("/run/walk-sft")
    page.locator("canvas, svg").first.wait_for()
    seen: list[int] = []
    while True:
        steps = page.evaluate(
            """() => Math.max(0, ...[...document.querySelectorAll('.nicegui-echart')].flatMap(found =>
              (getElement(Number(found.id.slice(1)))?.chart?.getOption().series ?? []).map(one => one.data.length)))"""
        )
        if steps > (seen[-1] if seen else 0):
            seen.append(steps)
        if _state(served, "walk-sft") == "done":
            return seen
        assert time.monotonic() < until, _log(served)
        time.sleep(0.3)


def _wait(served: Served, name: str) -> None:
    until = time.monotonic() + PATIENCE
    while (state := _state(served, name)) != "done":
        assert state in ("started", "", "died"), _log(served)
        assert time.monotonic() < until, _log(served)
        time.sleep(0.5)


def _state(served: Served, name: str) -> str:
    run = Run(served.root / name)
    return run.state() if (run.path / "run.json").is_file() else ""


def _log(served: Served) -> str:
    return "\n".join(path.read_text()[-3000:] for path in (served.root / ".studio" / "jobs").glob("*.log"))


@pytest.mark.slow
def test_a_curve_grows_while_it_trains(walked: tuple[Served, list[int]]) -> None:
    _, points = walked
    assert len(points) > 1  # it was longer at a later look
    assert points == sorted(points)
    assert points[-1] <= 24


@pytest.mark.slow
def test_every_run_is_listed_with_what_came_of_it(walked: tuple[Served, list[int]], chromium: str) -> None:
    served, _ = walked
    with looking(chromium, served) as page:
        page.goto("/")
        for stage in STAGES:
            page.get_by_role("link", name=f"walk-{stage}", exact=True).wait_for()
        page.get_by_role("tab", name="Lineage").click()
        page.get_by_role("tabpanel").get_by_text("walk-grpo").first.wait_for()


@pytest.mark.slow
def test_rollouts_are_opened(walked: tuple[Served, list[int]], chromium: str) -> None:
    served, _ = walked
    rollout = Run(served.root / "walk-grpo").samples()[-1]
    with looking(chromium, served) as page:
        page.goto("/run/walk-grpo")
        page.get_by_role("tab", name="Rollouts").click()
        page.get_by_text("step 2 of 2").wait_for()
        page.get_by_text(rollout["question"]).first.wait_for()
        assert page.get_by_text("Gold answer:").first.is_visible()


@pytest.mark.slow
def test_the_verdict_is_that_of_the_comparison(walked: tuple[Served, list[int]], chromium: str) -> None:
    served, _ = walked
    sentence = read_json(served.root / "walk-eval" / "compare.json")["sentence"]
    with looking(chromium, served) as page:
        page.goto("/verdict")
        page.get_by_text(sentence).wait_for()
        page.get_by_role("button", name=re.compile("Wrong both times")).click()
        item = page.locator("details.item").first
        item.locator("summary").first.click()
        item.get_by_text("Before", exact=True).wait_for()


@pytest.mark.slow
def test_the_data_is_checked_and_its_line_is_moved(walked: tuple[Served, list[int]], chromium: str) -> None:
    served, _ = walked
    with looking(chromium, served) as page:
        page.goto("/data?of=run:walk-sft")
        page.get_by_role("button", name="Check").click()
        page.get_by_text("Length of the rows").wait_for(timeout=240_000)
        page.get_by_text("no row loses anything").wait_for()
        slider = page.locator(".q-slider [tabindex]").first
        slider.focus()
        for _ in range(60):
            slider.press("ArrowLeft")
        page.get_by_text("of the rows are longer").wait_for()
        page.get_by_role("button", name="Show rows").click()
        page.locator(".piece.supervised").nth(1).wait_for(timeout=240_000)
        assert "<|im_end|>" in page.locator(".tokens .piece.end").first.inner_text()


@pytest.mark.slow
def test_two_models_answer_one_question(walked: tuple[Served, list[int]], chromium: str) -> None:
    served, _ = walked
    with looking(chromium, served) as page:
        page.goto("/chat?b=walk-grpo")
        page.get_by_role("textbox", name="Question").fill("发热三天，咳嗽，该做什么检查？")
        page.get_by_role("button", name="Ask both").click()
        answers = page.locator(".answer")
        for place in (0, 1):
            answers.nth(place).get_by_text(re.compile(r"\d tokens a second|\d s")).first.wait_for(timeout=240_000)
        assert answers.count() == 2
        texts = [answers.nth(place).locator(".text-block").all_inner_texts() for place in (0, 1)]
        assert all(any(text.strip() for text in own) for own in texts)
        assert texts[0] != texts[1]


@pytest.mark.slow
def test_a_run_is_exported_from_the_page(walked: tuple[Served, list[int]], chromium: str) -> None:
    served, _ = walked
    with looking(chromium, served) as page:
        page.goto("/export")
        page.get_by_text("12 of 12").wait_for()
        page.get_by_role("button", name="Export a run").click()
        page.get_by_label("Name", exact=True).fill("walk-again")
        page.get_by_role("button", name="Export", exact=True).click()
        page.wait_for_url("**/export?run=walk-again")
        _wait(served, "walk-again")
        page.get_by_text("model-q8_0.gguf").first.wait_for()
        page.get_by_text("checks hold").wait_for()
    assert (served.root / "walk-again" / "artifact" / "model-q8_0.gguf").is_file()
