"""Models that answer in processes of their own, and what is kept of them."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from danlu.data import sources
from danlu.errors import DanluError
from danlu.recipe import Source, load
from danlu.run import Run, read_jsonl
from danlu.studio import answering, talk
from danlu.studio.overview import overviews
from danlu.studio.place import Place

ASK = [{"role": "user", "content": "发热三天，咳嗽。首选检查是什么？"}]
BRIEF = {"max_tokens": 12, "temperature": 0.0}


@pytest.fixture
def here(tmp_path: Path) -> Place:
    (tmp_path / "runs").mkdir()
    return Place(tmp_path / "runs")


def made(place: Place, name: str, stage: str, *files: str) -> Run:
    run = Run.create(place.root / name, stage, load("demo").resolved())
    with run.recording():
        for file in files:
            (run.path / file).parent.mkdir(parents=True, exist_ok=True)
            (run.path / file).write_text("")
    return run


def test_targets_are_what_finished_runs_hold(here: Place):
    made(here, "a-sft", "sft", "artifact/adapter_config.json")
    made(here, "full", "sft", "artifact/config.json")
    made(here, "a-export", "export", "artifact/model-q8_0.gguf", "artifact/model-q4_k_m.gguf", "merged/config.json")
    Run.create(here.root / "running", "sft", load("demo").resolved())
    found = {one.label: one.kind for one in talk.targets(here, overviews(here.root))}
    assert found == {
        **{"a-sft": "adapter", "full": "model", "a-export · model-q4_k_m": "GGUF", "a-export · model-q8_0": "GGUF"},
        **{"a-export · merged": "merged model", "tiny": "base model"},
    }
    assert talk.targets(here, []) == []


def test_typed_targets(here: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert talk.typed(here, " http://127.0.0.1:1/v1#m ").kind == "endpoint"
    assert talk.typed(here, "Qwen/Qwen3-0.6B").kind == "model"
    with pytest.raises(DanluError, match="no model is chosen"):
        talk.typed(here, " ")
    (tmp_path / "secret.gguf").write_text("")
    with pytest.raises(DanluError, match="was not named"):
        talk.typed(here, "secret.gguf")
    assert talk.typed(Place(here.root, (tmp_path,)), "secret.gguf").kind == "GGUF"


def test_an_answer_is_told_piece_by_piece():
    from danlu.generate.open import open_generator

    told = io.StringIO()
    with open_generator("tiny", load("demo")) as generator:
        request: dict[str, Any] = {"messages": ASK, "sampling": BRIEF, "thinking": True}
        answering.answer(generator, request, told, threading.Event())
        events = [json.loads(line) for line in told.getvalue().splitlines()]
        assert {key for event in events[:-1] for key in event} == {"part", "text"}
        done = events[-1]["done"]
        assert 0 < done["tokens"] <= 12
        assert done["cut"]
        assert not done["stopped"]
        assert done["seconds"] >= done["first_seconds"] > 0
        stopped = threading.Event()
        stopped.set()
        told = io.StringIO()
        answering.answer(generator, request, told, stopped)
        events = [json.loads(line) for line in told.getvalue().splitlines()]
        assert len(events) == 2  # one piece, then it was told to stop
        assert events[-1]["done"]["stopped"]


@pytest.mark.slow
def test_two_processes_answer_side_by_side(here: Place):
    async def both() -> list[list[dict[str, Any]]]:
        sides = [talk.Answerer(here, talk.Target("tiny", "tiny", "base model")) for _ in range(2)]

        async def one(side: talk.Answerer) -> list[dict[str, Any]]:
            await side.start()
            return [event async for event in side.ask(ASK, BRIEF, True)]

        try:
            return list(await asyncio.gather(*map(one, sides)))
        finally:
            for side in sides:
                side.close()
                await side.ended()

    first, second = asyncio.run(both())
    assert [event for event in first if "part" in event] == [event for event in second if "part" in event]
    assert "done" in first[-1]


@pytest.mark.slow
def test_a_model_that_is_not_there_says_so(here: Place):
    async def start() -> None:
        side = talk.Answerer(here, talk.Target("x", str(here.root / "none.gguf"), "GGUF"))
        try:
            await side.start()
        finally:
            await side.ended()

    with pytest.raises(DanluError, match="does not exist"):
        asyncio.run(start())


def test_what_is_kept_is_what_trainers_and_evaluations_read(here: Place):
    row = talk.preference(
        ASK, {"model": "b", "text": talk.whole("because", "X-ray")}, {"model": "a", "text": talk.whole("", "tea")}
    )
    path = talk.keep(here, "preferences", row)
    talk.keep(here, "preferences", row)
    first, second = read_jsonl(path)
    assert first == second == row
    assert first["chosen"] == [{"role": "assistant", "content": "<think>\nbecause\n</think>\n\nX-ray"}]
    assert first["rejected"] == [{"role": "assistant", "content": "tea"}]
    with pytest.raises(DanluError, match="right answer"):
        talk.test_case("q", " ")
    file = talk.keep(here, "tests", talk.test_case("首选检查是什么？", "胸片"))
    (sample,) = sources.load(Source(path=str(file))).rows
    assert (sample.question, sample.target) == ("首选检查是什么？", "胸片")
