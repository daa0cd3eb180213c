"""Questions with rubrics are judged by an endpoint, and count as not answered where there is none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from danlu.evaluate.evaluate import evaluate
from danlu.generate import Sampling
from danlu.recipe import Recipe
from danlu.records import Completion, Sample
from danlu.run import Run
from danlu.think import ThinkFormat

RUBRICS = [{"criterion": "names the emergency number", "points": 6}, {"criterion": "stays calm", "points": 4}]
SAMPLE = Sample("q", ({"role": "user", "content": "胸痛"},), meta={"task": "rubric", "rubrics": RUBRICS})


class OneAnswer:
    name = "one"
    think = ThinkFormat("none")

    def generate(self, prompts, sampling: Sampling):  # type: ignore[no-untyped-def]
        for index in range(len(prompts)):
            yield index, [Completion("拨打120。", "", "拨打120。", "stop", True, (1, 2))] * sampling.samples


@pytest.fixture
def judge() -> Iterator[str]:
    """An endpoint that finds every criterion met that speaks of a number."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({"data": [{"id": "judge"}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = "\n".join(turn["content"] for turn in asked["messages"])
            verdict = "met" if "emergency number" in text else "not met"
            reply = json.dumps({"verdict": verdict, "reason": "said"})
            self.answer({"choices": [{"message": {"content": reply}, "finish_reason": "stop"}]})

        def answer(self, value: dict) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1#judge"
    server.shutdown()
    server.server_close()


def test_points_by_a_judge(tmp_path: Path, judge: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    recipe = Recipe.model_validate({"name": "t", "eval": {"judge": judge}})
    run = Run.create(tmp_path / "r", "eval", recipe.resolved())
    entry = evaluate(recipe, run, OneAnswer(), benchmarks={"bench": [SAMPLE]})["benchmarks"][0]
    assert (entry["n"], entry["value"], entry["accuracy"]) == (1, 0.6, 0.0)
    assert run.samples()[0]["how"].startswith("rubric: 6 of 10 points")


def test_without_a_judge_it_is_not_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = Recipe.model_validate({"name": "t"})
    run = Run.create(tmp_path / "r", "eval", recipe.resolved())
    entry = evaluate(recipe, run, OneAnswer(), benchmarks={"bench": [SAMPLE]})["benchmarks"][0]
    assert (entry["n"], entry["none"]) == (1, 1)
    assert "there is no judge" in capsys.readouterr().err
