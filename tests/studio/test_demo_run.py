"""A person's way through the studio, in a real browser, on a real run: start, watch, read, weigh, talk, export.

Servers that are somewhere else in life (Ollama, an endpoint) are those of the tests of export and generation.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from looking import looking
from studio_server import Served, serving

from danlu.models.tokenizer import load_tokenizer, renderer
from danlu.run import Run, iter_jsonl, read_json, read_jsonl, write_json

sys.path.insert(0, str(Path(__file__).parent.parent / "export"))
sys.path.insert(0, str(Path(__file__).parent.parent / "generate"))
from endpoint_server import FakeServer, Reply
from ollama_server import OllamaServer

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


@dataclass(frozen=True)
class Walk:
    """A studio in which the recipe was started from the form and ran to its end.

    `points`: lengths of the drawn loss meanwhile; `ollama`: what answers at its $OLLAMA_HOST.
    """

    served: Served
    points: list[int]
    ollama: OllamaServer


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[Walk]:
    folder: Path = tmp_path_factory.mktemp("walk")
    (folder / "runs").mkdir()
    (folder / "walk.yaml").write_text(RECIPE, encoding="utf-8")
    with (
        OllamaServer() as ollama,
        serving(folder / "runs", "walk.yaml", cwd=folder, OLLAMA_HOST=ollama.host) as served,
    ):
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
        yield Walk(served, points, ollama)


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
def test_a_curve_grows_while_it_trains(walked: Walk) -> None:
    points = walked.points
    assert len(points) > 1  # it was longer at a later look
    assert points == sorted(points)
    assert points[-1] <= 24


@pytest.mark.slow
def test_every_run_is_listed_with_what_came_of_it(walked: Walk, chromium: str) -> None:
    served = walked.served
    with looking(chromium, served) as page:
        page.goto("/")
        for stage in STAGES:
            page.get_by_role("link", name=f"walk-{stage}", exact=True).wait_for()
        page.get_by_role("tab", name="Lineage").click()
        page.get_by_role("tabpanel").get_by_text("walk-grpo").first.wait_for()


@pytest.mark.slow
def test_rollouts_are_opened(walked: Walk, chromium: str) -> None:
    served = walked.served
    rollout = Run(served.root / "walk-grpo").samples()[-1]
    with looking(chromium, served) as page:
        page.goto("/run/walk-grpo")
        page.get_by_role("tab", name="Rollouts").click()
        page.get_by_text("step 2 of 2").wait_for()
        page.get_by_text(rollout["question"]).first.wait_for()
        assert page.get_by_text("Gold answer:").first.is_visible()


@pytest.mark.slow
def test_the_verdict_is_that_of_the_comparison(walked: Walk, chromium: str) -> None:
    served = walked.served
    sentence = read_json(served.root / "walk-eval" / "compare.json")["sentence"]
    with looking(chromium, served) as page:
        page.goto("/verdict")
        page.get_by_text(sentence).wait_for()
        page.get_by_role("button", name=re.compile("Wrong both times")).click()
        item = page.locator("details.item").first
        item.locator("summary").first.click()
        item.get_by_text("Before", exact=True).wait_for()


@pytest.mark.slow
def test_the_data_is_checked_and_its_line_is_moved(walked: Walk, chromium: str) -> None:
    served = walked.served
    with looking(chromium, served) as page:
        page.goto("/data?of=run:walk-sft")
        page.get_by_role("button", name="Check").click()
        page.get_by_text("Length of the rows").wait_for(timeout=240_000)
        page.get_by_text("no row loses anything").wait_for()
        slider = page.get_by_role("slider", name="max_length: move it to see what rows would lose")
        slider.focus()
        for _ in range(60):
            slider.press("ArrowLeft")
        page.get_by_text("of the rows are longer").wait_for()
        page.get_by_role("button", name="Show rows").click()
        page.locator(".piece.supervised").nth(1).wait_for(timeout=240_000)
        assert "<|im_end|>" in page.locator(".tokens .piece.end").first.inner_text()


@pytest.mark.slow
def test_two_models_answer_one_question(walked: Walk, chromium: str) -> None:
    served = walked.served
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


# ---- the other language

# besides what users and models wrote, code, names, and the codes of how an answer was read
ENGLISH = """() => {
  const left = "pre, code, .mono, .text-block, .tokens, .question, [translate=no], table, svg, .node, .check-line, h1";
  const told = [...document.querySelectorAll("#content *, .q-dialog *")].filter(e => !e.closest(left))
    .map(e => [...e.childNodes].filter(one => one.nodeType == 3).map(one => one.data).join(" "));
  return [...new Set(told.filter(text => /[A-Za-z]{2,}( [A-Za-z]{2,}){3}/.test(text)))]; }"""


@pytest.mark.slow
def test_chinese_pages_hold_no_english_sentence(walked: Walk, chromium: str) -> None:
    served, description = walked.served, "A short walk through the miniature clinic"
    found = {}
    with looking(chromium, served, language="zh") as page:
        for path, part in (
            ("/", ".runs-table a"),
            ("/run/walk-sft", "canvas"),
            ("/run/walk-eval", ".card"),
            ("/verdict", "details.item"),
            ("/chat", ".side-by-side"),
            ("/export?run=walk-export", ".check-line"),
        ):
            page.goto(path)
            page.locator(part).first.wait_for()
            found[path] = page.evaluate(ENGLISH)
            if path == "/":
                assert re.search(r"\d (秒|分钟|小时)前", page.locator(".runs-table").inner_text())
        page.goto("/data?of=run:walk-sft")
        page.get_by_role("button", name="检查").click()
        page.get_by_text("长度分布").wait_for(timeout=240_000)
        assert page.get_by_text(re.compile(r"\d 个错误，\d 个警告：")).is_visible()
        found["/data"] = page.evaluate(ENGLISH)
        page.goto("/start?recipe=walk.yaml")
        for section in page.locator(".q-expansion-item").all():
            section.locator(".q-item").first.click()
        page.get_by_text("一次前向最多容纳这么多倍的 data.max_length 个 token").wait_for()
        page.get_by_text("0 为贪心").first.wait_for()
        found["/start"] = [text for text in page.evaluate(ENGLISH) if text != description]
    assert {path: texts for path, texts in found.items() if texts} == {}


# ---- a run's curves


def _drawn(page: Any, of: str = "Loss") -> dict[str, Any]:
    """Names, points and axis of a chart, as the browser has drawn them."""
    return page.evaluate(
        """of => { const found = document.querySelector(`.nicegui-echart[aria-label="${of}"]`);
          const chart = found && getElement(Number(found.id.slice(1)))?.chart; if (!chart) return {names: []};
          const told = chart.getOption();
          return {names: [...new Set(told.series.map(one => one.name))], lines: told.series.length,
            axis: told.xAxis[0].name, last: told.series[0].data.at(-1)[0], first: told.series[0].data[0]}; }""",
        of,
    )


def _until(page: Any, holds: Any, seconds: float = 20) -> dict[str, Any]:
    """What `_drawn` gives once `holds` of it."""
    until = time.monotonic() + seconds
    while not holds(found := _drawn(page)):
        assert time.monotonic() < until, found
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_curves_are_smoothed_put_on_other_axes_and_over_one_another(walked: Walk, chromium: str) -> None:
    served = walked.served
    other = served.root / "other-sft"
    if not other.exists():
        shutil.copytree(served.root / "walk-sft", other)
        write_json(other / "run.json", {**read_json(other / "run.json"), "name": "other-sft"})
    rows = read_jsonl(other / "metrics.jsonl")
    tokens = max(row["tokens"] for row in rows if "tokens" in row)
    with looking(chromium, served) as page:
        page.goto("/run/walk-sft?with=other-sft,walk-grpo,nowhere")
        both = _until(page, lambda found: len(found["names"]) > 1)
        assert both["names"] == ["walk-sft · loss", "walk-sft · eval loss", "other-sft · loss", "other-sft · eval loss"]
        page.goto("/run/walk-sft")
        alone = _until(page, lambda found: found["names"])
        assert (alone["names"], alone["lines"], alone["axis"]) == (["loss", "eval loss"], 3, "steps")
        assert alone["last"] == 24
        slider = page.get_by_role("slider", name="Smoothing")
        slider.focus()
        slider.press("Home")
        assert _until(page, lambda found: found["lines"] == 2)["first"] == alone["first"]  # the mean is gone
        page.get_by_role("button", name="tokens", exact=True).click()
        assert _until(page, lambda found: found["axis"] == "tokens")["last"] == tokens
        page.get_by_role("button", name="time", exact=True).click()
        seconds = _until(page, lambda found: found["axis"] == "time")["last"]
        assert 0 < seconds < Run(served.root / "walk-sft").info()["seconds"]
        page.get_by_label("Draw over it").click()
        page.get_by_role("option", name="other-sft").click()
        page.keyboard.press("Escape")
        _until(page, lambda found: set(found["names"]) == set(both["names"]))
        page.locator(".overlay .q-chip__icon--remove").click()
        _until(page, lambda found: found["names"] == alone["names"])


@pytest.mark.slow
def test_curves_are_saved_as_a_picture_and_as_numbers(walked: Walk, chromium: str) -> None:
    served = walked.served
    rows = list(iter_jsonl(served.root / "walk-sft" / "metrics.jsonl"))
    with looking(chromium, served) as page:
        page.goto("/run/walk-sft")
        _until(page, lambda found: found["names"])
        shown = page.locator('.nicegui-echart[aria-label="Loss"]').bounding_box()
        with page.expect_download() as download:
            page.get_by_role("button", name="Save Loss as PNG").click()
        assert download.value.suggested_filename == "walk-sft-loss.png"
        png = Path(download.value.path()).read_bytes()
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", png[16:24]) == (2 * round(shown["width"]), 2 * round(shown["height"]))
        with page.expect_download() as download:
            page.get_by_role("button", name="All numbers as CSV").click()
        assert download.value.suggested_filename == "walk-sft.csv"
        told = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    assert list(told[0]) == list(dict.fromkeys(key for row in rows for key in row))
    assert len(told) == len(rows)
    assert [float(row["loss"]) for row in told if row["loss"]] == [row["loss"] for row in rows if "loss" in row]


# ---- the form


@pytest.mark.slow
def test_a_recipe_is_rehearsed_beside_the_form(walked: Walk, chromium: str) -> None:
    with looking(chromium, walked.served) as page:
        page.goto("/start?recipe=walk.yaml")
        page.get_by_role("button", name="Rehearse", exact=True).click()
        page.get_by_text("Nothing found that would fail.").wait_for(timeout=400_000)
        card = page.locator("section.card", has=page.get_by_role("heading", name="Rehearsal"))
        told = card.locator("h3").all_inner_texts()
        for stage in (
            "model",
            "rows",
            "rewards",
            "sft",
            "sft resume",
            "grpo",
            "grpo resume",
            "eval",
            "export",
            "answer",
        ):
            assert stage in told
        assert card.get_by_text("goes through", exact=True).count() == len(told)


@pytest.mark.slow
def test_a_file_of_rows_is_uploaded_and_used(walked: Walk, chromium: str, tmp_path: Path) -> None:
    served = walked.served
    file = tmp_path / "my rows.jsonl"
    row = {"question": "发热三天，咳嗽，首选检查是什么？", "reasoning": "发热咳嗽提示肺炎。", "answer": "胸片"}
    file.write_text("".join(json.dumps({**row, "question": f"{n}. {row['question']}"}) + "\n" for n in range(9)))
    with looking(chromium, served) as page:
        page.goto("/start?recipe=walk.yaml")
        rows = page.get_by_label("Training rows")
        with page.expect_file_chooser() as chosen:
            page.get_by_role("button", name="Upload a file").click()
        chosen.value.set_files(file)
        page.get_by_text("my_rows.jsonl is uploaded.").wait_for()
        page.wait_for_function("e => e.value === 'my_rows.jsonl'", arg=rows.element_handle())
        for stage in ("sft", "grpo", "eval", "export"):
            page.get_by_role("checkbox", name=stage, exact=True).click()
        page.get_by_role("checkbox", name="data", exact=True).click()
        page.get_by_label("Name of the run").fill("mine")
        page.get_by_role("button", name="Start", exact=True).click()
        page.wait_for_url("**/run/mine-data", timeout=120_000)
    _wait(served, "mine-data")
    run = Run(served.root / "mine-data")
    stored = Path(run.config()["data"]["train"][0]["path"])
    assert stored == served.root.resolve() / ".studio" / "uploads" / "my_rows.jsonl"
    assert stored.read_bytes() == file.read_bytes()
    assert run.info()["results"]["counts"]["train"] == 9


# ---- talking


def _streaming(_: Any, __: int) -> Reply:
    pieces = [{"reasoning_content": "咳嗽三天。"}, {"content": "先拍"}, {"content": "胸片。"}]
    events: list[Any] = [{"choices": [{"index": 0, "delta": piece, "finish_reason": None}]} for piece in pieces]
    return Reply(
        events=[*events, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, "data: [DONE]\n\n"]
    )


@pytest.mark.slow
def test_a_file_is_asked_beside_an_endpoint_and_what_was_said_is_kept(walked: Walk, chromium: str) -> None:
    served, question = walked.served, "发热三天，咳嗽，首选检查是什么？"
    saved = served.root / ".studio" / "saved"
    with FakeServer(_streaming) as server, looking(chromium, served) as page:
        page.goto("/chat?a=walk-export%20·%20model-q8_0")
        page.get_by_label("Model B").fill(f"{server.url}#tiny")
        page.keyboard.press("Enter")
        page.get_by_text("Settings", exact=True).click()
        page.get_by_label("longest answer, tokens").fill("48")
        page.get_by_role("textbox", name="Question").fill(question)
        page.get_by_role("button", name="Ask both").click()
        answers = page.locator(".answer")
        answers.nth(1).get_by_text("先拍胸片。").wait_for(timeout=120_000)
        answers.nth(1).get_by_text("Reasoning:").wait_for()
        answers.nth(0).get_by_text("tokens a second").wait_for(timeout=240_000)
        (asked,) = server.bodies
        assert asked["messages"][-1] == {"role": "user", "content": question}
        assert (asked["model"], asked["max_tokens"]) == ("tiny", 48)
        page.get_by_role("button", name="B is better").click()
        page.get_by_text(f"Kept in {saved / 'preferences.jsonl'}").wait_for()
        page.get_by_role("button", name="Keep as a test case").click()
        page.get_by_role("button", name="Keep", exact=True).click()
        page.get_by_text("a test case needs the right answer").wait_for()
        page.get_by_label("Right answer").fill("胸片")
        page.get_by_role("button", name="Keep", exact=True).click()
        page.get_by_text(f"Kept in {saved / 'tests.jsonl'}").wait_for()
    (log,) = served.root.parent.glob("studio-*.log")
    assert "Traceback" not in log.read_text()
    (pair,) = read_jsonl(saved / "preferences.jsonl")
    assert pair["prompt"][-1]["content"] == question
    assert pair["chosen"] == [{"role": "assistant", "content": "<think>\n咳嗽三天。\n</think>\n\n先拍胸片。"}]
    assert pair["rejected"][0]["content"].strip()
    assert (pair["chosen_model"], pair["rejected_model"]) == (f"{server.url}#tiny", "walk-export · model-q8_0")
    (case,) = read_jsonl(saved / "tests.jsonl")
    assert (case["question"], case["target"]) == (question, "胸片")


# ---- what an export keeps, and where it goes


@pytest.mark.slow
def test_what_the_files_keep_is_measured(walked: Walk, chromium: str) -> None:
    served = walked.served
    with looking(chromium, served) as page:
        page.goto("/export?run=walk-export")
        page.get_by_role("button", name="Measure what they keep").click()
        page.get_by_text("on the suite clinic").click()
        page.get_by_text("questions of clinic; paired with the model").wait_for(timeout=400_000)
        table = page.locator("section.card", has=page.get_by_role("heading", name="Files")).locator("table")
        heads, *lines = [
            [cell.strip() for cell in row.locator("th, td").all_inner_texts()] for row in table.locator("tr").all()
        ]
    told = read_json(served.root / "walk-export" / "quants-clinic.json")
    at = {
        name: heads.index(name) for name in ("File", "Tokens a second", "Right", "95 % interval", "Against the model")
    }
    assert [line[at["File"]] for line in lines] == ["the model itself", "model-q8_0.gguf"]
    for line, side in zip(lines, told["sides"], strict=True):
        low, high = side["ci"]
        assert line[at["Right"]] == f"{100 * side['accuracy']:.1f} %"
        assert line[at["95 % interval"]] == f"{100 * low:.1f} … {100 * high:.1f} %"
    assert float(lines[1][at["Tokens a second"]].replace(",", "")) > 0
    assert re.fullmatch(r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]", lines[1][at["Against the model"]])
    assert told["n"] == 400


@pytest.mark.slow
def test_the_model_is_made_in_ollama(walked: Walk, chromium: str) -> None:
    served, ollama = walked.served, walked.ollama
    made = served.root / "walk-export" / "artifact"
    source = (made / read_json(made / "danlu.json")["source"]).resolve()
    ollama.render = renderer(load_tokenizer(source))
    with looking(chromium, served) as page:
        page.goto("/export?run=walk-export")
        page.get_by_text("Ollama 0.33.2 answers here.").wait_for()
        page.get_by_role("button", name="Create in Ollama").click()
        page.get_by_text("walk is in Ollama.").wait_for(timeout=120_000)
        assert list(ollama.models) == ["walk"]
        (digest,) = ollama.blobs
        assert ollama.blobs[digest] == (made / "model-q8_0.gguf").read_bytes()
        ollama.fault = "prompt"
        page.get_by_role("button", name="Create in Ollama").click()
        page.get_by_text("Ollama's prompt is not the model's").wait_for(timeout=120_000)
        assert not page.get_by_text("walk is in Ollama.").is_visible()


@pytest.mark.slow
def test_a_run_is_exported_from_the_page(walked: Walk, chromium: str) -> None:
    served = walked.served
    with looking(chromium, served) as page:
        page.goto("/export?run=walk-export")
        checks = read_json(served.root / "walk-export" / "artifact" / "verify.json")["checks"]
        page.get_by_text(f"{len(checks)} of {len(checks)}", exact=True).wait_for()
        page.get_by_role("button", name="Export a run").click()
        page.get_by_label("Name", exact=True).fill("walk-again")
        page.get_by_role("button", name="Export", exact=True).click()
        page.wait_for_url("**/export?run=walk-again")
        _wait(served, "walk-again")
        page.get_by_text("model-q8_0.gguf").first.wait_for()
        page.get_by_text("checks hold").wait_for()
    assert (served.root / "walk-again" / "artifact" / "model-q8_0.gguf").is_file()
