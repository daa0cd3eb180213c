"""The table of runs and the graph of where they come from."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from studio_server import hundreds

from danlu.recipe import load
from danlu.run import Run
from danlu.run_facts import differences
from danlu.studio import overview
from danlu.studio.overview import lineage, number, overviews, told


def made(root: Path, name: str, stage: str = "sft", parents: list[str] | None = None, **results: object) -> Run:
    run = Run.create(root / name, stage, load("demo").resolved(), parents=parents, seed=1)
    with run.recording():
        run.record(**results)
    return run


def test_a_finished_run_is_a_row(tmp_path: Path):
    made(tmp_path, "a-sft", best_eval_loss=0.5, eval_loss=0.6, loss=0.1, steps=300)
    (row,) = overviews(tmp_path)
    assert (row.name, row.stage, row.status, row.recipe, row.model) == ("a-sft", "sft", "done", "demo", "tiny")
    assert (row.key, row.value, row.step, row.steps) == ("best_eval_loss", 0.5, 300, 300)
    assert row.data == "world:sft"
    assert row.seconds is not None
    assert not row.live


def test_each_stage_has_its_number():
    benchmarks = {"a": {"n": 10, "accuracy": 0.5}, "b": {"n": 30, "accuracy": 0.9}, "empty": {"n": 0}}
    assert number("eval", {"benchmarks": benchmarks}) == ("accuracy", pytest.approx(0.8))
    assert number("eval", {"benchmarks": {}}) == ("", None)
    assert number("export", {"checks": [{"ok": True}, {"ok": False}]}) == ("checks", "1/2")
    assert number("grpo", {"reward": 0.3, "best_eval_accuracy": 0.25}) == ("best_eval_accuracy", 0.25)
    assert number("sft", {"loss": None}) == ("", None)
    assert told("accuracy", 0.8) == "80.0 %"
    assert told("loss", 0.123456) == "0.1235"
    assert told("rows", 12000) == "12,000"


def test_a_running_run_tells_how_far_it_is(tmp_path: Path):
    run = Run.create(tmp_path / "live", "grpo", load("demo").resolved())
    (run.path / "lock").write_text(str(os.getpid()))
    run.log({"step": 3, "reward": 0.25})
    run.log({"step": 3, "eval_accuracy": 0.5})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')  # being written
    (row,) = overviews(tmp_path)
    assert (row.status, row.live, row.step, row.steps) == ("started", True, 3, 20)
    assert (row.key, row.value) == ("eval_accuracy", 0.5)
    (run.path / "lock").unlink()
    assert overviews(tmp_path)[0].status == "died"  # the process is gone, run.json has not changed
    info = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(info | {"status": "stopped", "seconds": 7.0}))
    (row,) = overviews(tmp_path)
    assert (row.status, row.step, row.value, row.seconds) == ("stopped", 3, 0.5, 7.0)


def test_broken_and_foreign_directories(tmp_path: Path):
    root = tmp_path / "runs"
    made(root, "good")
    (root / "broken").mkdir()
    (root / "broken" / "run.json").write_text("{")
    (root / "list").mkdir()
    (root / "list" / "run.json").write_text("[]")
    (root / "no-run").mkdir()
    (root / "file").write_text("")
    made(tmp_path / "elsewhere", "secret")
    (root / "leak").symlink_to(tmp_path / "elsewhere" / "secret")
    (root / "inner").mkdir()
    (root / "inner" / "run.json").symlink_to(tmp_path / "elsewhere" / "secret" / "run.json")
    found = {row.name: row.status for row in overviews(root)}
    assert found == {"good": "done", "broken": "unreadable", "list": "unreadable"}
    assert overviews(tmp_path / "nowhere") == []


def test_hundreds_of_runs_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hundreds(tmp_path)
    assert [row.name for row in overviews(tmp_path)[:2]] == ["run-199", "run-198"]
    monkeypatch.setattr(overview, "_read", lambda run: pytest.fail(f"{run.name} was read again"))
    started = time.process_time()
    assert len(overviews(tmp_path)) == 200
    assert time.process_time() - started < 0.2
    monkeypatch.undo()
    newest = tmp_path / "run-199" / "run.json"
    newest.write_text(json.dumps({**json.loads(newest.read_text()), "results": {"loss": 0.25}}))
    assert overviews(tmp_path)[0].value == 0.25


def test_the_graph_goes_from_the_base_to_the_export(tmp_path: Path):
    made(tmp_path, "a-sft")
    made(tmp_path, "a-grpo", "grpo", ["a-sft"])
    made(tmp_path, "a-export", "export", ["a-grpo"])
    made(tmp_path, "a-eval", "eval", ["a-grpo"])
    made(tmp_path, "b-sft")
    made(tmp_path, "orphan", "grpo", ["gone"])
    nodes, edges = lineage(overviews(tmp_path))
    columns = {node.name: node.column for node in nodes}
    assert columns == {
        **{"model:tiny": 0, "a-sft": 1, "b-sft": 1, "a-grpo": 2, "a-export": 3, "a-eval": 3},
        **{"gone": 0, "orphan": 1},
    }
    assert ("model:tiny", "a-sft") in edges
    assert ("a-grpo", "a-export") in edges
    assert len({(node.column, node.row) for node in nodes}) == len(nodes)
    own, own_edges = lineage(overviews(tmp_path), "a-export")
    assert [node.name for node in sorted(own, key=lambda n: n.column)] == ["model:tiny", "a-sft", "a-grpo", "a-export"]
    assert len(own_edges) == 3
    assert {node.name for node in lineage(overviews(tmp_path), "a-grpo")[0]} == {
        *("model:tiny", "a-sft", "a-grpo", "a-export", "a-eval")
    }


def test_a_circle_of_parents_ends(tmp_path: Path):
    made(tmp_path, "a", parents=["b"])
    made(tmp_path, "b", parents=["a"])
    nodes, edges = lineage(overviews(tmp_path), "a")
    assert {node.name for node in nodes} == {"a", "b"}
    assert len(edges) == 2


def test_differences_name_what_differs():
    a = load("demo", ["sft.steps=10"]).resolved()
    b = load("demo", ["sft.steps=20", "data.masking.probability=0.5"]).resolved()
    found = dict(differences({"a": a, "b": b}))
    assert found["sft.steps"] == {"a": 10, "b": 20}
    assert found["data.masking.probability"] == {"a": None, "b": 0.5}
    assert "model.id" not in found
    assert differences({"a": a, "b": a}) == []
