"""The demo end to end with few steps: every stage real, the contract of `danlu demo --json`, the files it leaves."""

import json
import re
from pathlib import Path

import pytest

from danlu.demo import controls, demo, free_directory, seeded, told
from danlu.errors import DanluError
from danlu.run import Run

SHORT = ("sft.steps=4", "grpo.steps=2", "grpo.prompts=2", "eval.benchmarks.0.limit=12", "grpo.valid.0.limit=4")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    return out, demo(3, out, [*SHORT, "eval.max_tokens=96", "grpo.max_completion=64"])


def test_result_keeps_the_contract(finished):
    _, result = finished
    assert {"seed", "seconds", "stages", "steps", "export", "artifacts"} <= set(result)
    assert [stage["name"] for stage in result["stages"]] == ["base", "sft", "grpo"]
    for stage in result["stages"]:
        assert {"n", "accuracy", "ci", "format_rate", "stop_rate", "seconds"} <= set(stage)
        assert stage["n"] == 12
        assert stage["ci"][0] <= stage["accuracy"] <= stage["ci"][1]
    assert [(step["from"], step["to"]) for step in result["steps"]] == [("base", "sft"), ("sft", "grpo")]
    for step in result["steps"]:
        assert {"difference", "ci", "p", "verdict", "sentence"} <= set(step)
    assert result["export"]["ok"]
    assert all({"name", "ok", "value", "limit"} <= set(check) for check in result["export"]["checks"])
    assert json.loads(json.dumps(result)) == result


def test_every_stage_is_a_finished_run_with_its_parent(finished):
    out, _ = finished
    infos = {path.name: Run.open(path).info() for path in out.iterdir() if (path / "run.json").is_file()}
    assert set(infos) == {"eval-base", "sft", "eval-sft", "grpo", "eval-grpo", "eval-grpo-sampled", "export"}
    assert {info["status"] for info in infos.values()} == {"done"}
    assert infos["grpo"]["parents"] == ["sft"]
    assert infos["export"]["parents"] == ["grpo"]


def test_files_are_what_they_claim(finished):
    out, result = finished
    artifacts = result["artifacts"]
    assert Path(artifacts["gguf"]).read_bytes()[:4] == b"GGUF"
    modelfile = Path(artifacts["modelfile"]).read_text(encoding="utf-8")
    assert "<|im_end|>" in modelfile
    assert "<|endoftext|>" in modelfile
    for name in ("loss", "rewards", "accuracy"):
        assert Path(artifacts[name]).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "DEMO-ONLY" in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # self-contained
    assert "DEMO-ONLY" in (out / "export" / "artifact" / "README.md").read_text(encoding="utf-8")


def test_terminal_text_says_what_a_person_needs(finished):
    _, result = finished
    text = told(result)
    for wanted in ("base -> SFT:", "SFT -> GRPO:", "95 % CI", "export ok", "DEMO-ONLY", "try next:", "danlu chat"):
        assert wanted in text
    assert len(result["next"]) == 3


def test_a_used_directory_is_refused_and_the_default_moves_on(finished, tmp_path):
    out, _ = finished
    with pytest.raises(DanluError, match="already used"):
        demo(0, out)
    assert free_directory(out.parent).name == "demo-2"
    assert free_directory(tmp_path).name == "demo"


def test_seeds_change_rows_and_questions():
    a, b = seeded(0), seeded(1)
    assert a.seed != b.seed
    assert a.data.train[0].seed != b.data.train[0].seed
    assert a.eval.benchmarks[0].seed != b.eval.benchmarks[0].seed
    assert len({a.data.valid[0].seed, a.grpo.valid[0].seed}) == 2  # the two dev sets differ


def test_shipped_controls_name_their_command_and_figures():
    for control in controls():
        assert 0 <= control["accuracy"] <= 1
        assert control["expected"]
