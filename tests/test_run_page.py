"""The page of a run: what stands on it at every stage, and that nothing from data or a model acts in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from danlu import run_facts
from danlu.run import Run, write_json
from danlu.run_page import page

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
CONFIG = {"name": "demo", "model": {"id": "tiny"}, "sft": {"optimizer": {"lr": 0.1}, "steps": 3}}


class Tags(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def check_harmless(text: str) -> None:
    """No script, no handler, nothing that is loaded from anywhere."""
    found = Tags(text)
    assert not found.tags & {"script", "iframe", "object", "link", "base", "form"}
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    links = [value for name, value in found.attributes if name in ("src", "href", "action", "data")]
    assert all(value.startswith(("data:image/", "#")) for value in links)
    assert not re.search(r"@import|url\((?!data:)", text)


def finished(run: Run, **results: Any) -> Run:
    with run.recording():
        run.record(**results)
    return run


@pytest.fixture(scope="module")
def lineage(tmp_path_factory) -> dict[str, Run]:
    """sft -> grpo -> eval, export; with evil names, rows and texts."""
    root = tmp_path_factory.mktemp("runs")
    sft = Run.create(root / "sft", "sft", CONFIG, recipe_text="name: demo\n# --set sft.steps=3\n")
    for step in range(1, 4):
        sft.log({"step": step, "loss": 2 / step, "lr": 0.1, "grad_norm": 1.0})
    sft.log({"step": 2, "eval_loss": 0.5})
    sft.log({"step": 3, "eval_loss": 0.7})
    finished(sft, rows=12, truncated=4, halvings=1, peak_memory_bytes=2_000_000)
    changed = {**CONFIG, "name": EVIL, "sft": {"optimizer": {"lr": 0.2}, "steps": 3}}
    grpo = Run.create(root / "grpo", "grpo", changed, parents=["sft"])
    rewards = {"rewards/answer": 0.4}
    for step in (1, 2):
        grpo.log({"step": step, "reward": 0.5, "completion_length": 9.0, "truncated": 0.0, "kl": 0.0} | rewards)
        rows = [
            {"step": step, "id": f"q{step}", "question": f"发热? {EVIL}", "target": "A", "output": output}
            | {
                "finish": "stop",
                "tokens": 9,
                "reward": reward,
                "rewards": {"answer": reward},
                "advantage": reward - 0.5,
            }
            for reward, output in ((1.0, f"<think>\n想{EVIL}\n</think>\n\nA"), (0.0, f"B {EVIL}"))
        ]
        grpo.write_samples(rows)
    finished(grpo, signs={"flat": 2}, sign_texts={"flat": "all rewards were equal"})
    evaluated = Run.create(root / "eval", "eval", changed, parents=["grpo"])
    entry = {"name": EVIL, "n": 40, "accuracy": 0.5, "ci": [0.3, 0.7], "shares": {"truncated": 0.25}, "leaked": 2}
    with evaluated.delivering() as staged:
        write_json(staged / "report.json", {"benchmarks": [entry]})
    told = {"name": "quiz", "n": 40, "base": 0.4, "tuned": 0.5, "difference": 0.1, "ci": [0.0, 0.2], "p": 0.04}
    told |= {"gained": 4, "lost": 0, "verdict": "better"}
    sentence = f"better: +10 points {EVIL}"
    write_json(evaluated.path / "compare.json", {"verdict": "better", "sentence": sentence, "benchmarks": [told]})
    outcomes = ["right"] * 9 + ["none", "wrong", "truncated"]
    evaluated.write_samples(
        [
            {"benchmark": "quiz", "id": str(i), "question": EVIL, "target": "A", "output": f"<think>x</think>{EVIL}"}
            | {"answer": EVIL, "outcome": outcome, "extracted": None, "how": "not found", "tokens": 3}
            for i, outcome in enumerate(outcomes)
        ]
    )
    finished(evaluated)
    export = Run.create(root / "export", "export", changed, parents=["grpo"])
    with export.delivering() as staged:
        (staged / "model-q8_0.gguf").write_bytes(b"x" * 4000)
        (staged / "Modelfile").write_text(f"FROM model-q8_0.gguf\n# {EVIL}\n")
        checks = [{"name": "KL", "ok": True, "value": 1e-4, "limit": 0.01}]
        checks.append({"name": "stops", "ok": False, "value": [EVIL], "limit": []})
        write_json(staged / "verify.json", {"ok": False, "checks": checks})
    finished(export)
    return {run.name: run for run in (sft, grpo, evaluated, export)}


@pytest.mark.parametrize("name", ["sft", "grpo", "eval", "export"])
def test_the_page_of_every_stage_is_harmless_and_names_its_run(lineage: dict[str, Run], name: str) -> None:
    text = page(lineage[name])
    check_harmless(text)
    assert f"<h1>{name}</h1>" in text
    assert "To reproduce" in text


def test_the_check_for_harm_can_fail() -> None:
    for bad in (EVIL, '<a href="https://x">', "<p onclick=x>", "<style>@import 'x'</style>"):
        with pytest.raises(AssertionError):
            check_harmless(bad)


def test_an_sft_page_tells_loss_warnings_and_what_was_set(lineage: dict[str, Run]) -> None:
    text = page(lineage["sft"])
    assert "<b>0.700</b>" in text
    assert "best 0.500 at step 2" in text
    assert "4 training rows were longer than max_length" in text
    assert "Memory ran out 1 time:" in text
    assert "sft.steps=3" in text
    assert "After it: grpo" in text
    assert text.count("data:image/svg+xml") == 2  # loss and course
    assert "danlu sft demo --set sft.steps=3 --name sft" in text


def test_a_grpo_page_tells_signs_rollouts_and_what_changed(lineage: dict[str, Run]) -> None:
    text = page(lineage["grpo"])
    assert "From step 2: all rewards were equal" in text
    assert text.count('class="rollout up"') == 2
    assert text.count('class="rollout down"') == 2
    assert "<summary>reasoning</summary>" in text
    assert "<code>sft.optimizer.lr</code>" in text
    assert "differ from sft" in text


def test_an_evaluation_page_tells_the_verdict_and_shows_wrong_answers_of_each_kind(lineage: dict[str, Run]) -> None:
    text = page(lineage["eval"])
    assert "<b>50.0 %</b>" in text
    assert "better: +10 points" in text
    assert "25.0 % of the answers were cut" in text
    assert "2 questions stand in the training rows" in text
    shown = run_facts.some_answers(lineage["eval"])
    assert [row["outcome"] for row in shown] == ["none", "wrong", "truncated", "right", "right"]


def test_an_export_page_tells_checks_and_files(lineage: dict[str, Run]) -> None:
    text = page(lineage["export"])
    assert "<b>1 of 2</b>" in text
    assert "The check stops failed." in text
    assert "model-q8_0.gguf" in text
    assert "4 kB" in text
    assert "<summary>Modelfile</summary>" in text


def test_a_run_that_has_only_begun_or_failed_has_a_page(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "new", "sft", CONFIG)
    text = page(run)
    assert "Nothing has been measured yet" in text
    assert "Its process is gone" in text  # no lock: nobody works on it
    with pytest.raises(ValueError, match="a disk"), run.recording():
        raise ValueError("a disk")
    assert "It failed: ValueError: a disk" in page(run)


def test_lineage_goes_up_to_the_model_and_down_to_children(lineage: dict[str, Run]) -> None:
    assert [run.name for run in run_facts.ancestors(lineage["export"])] == ["sft", "grpo", "export"]
    assert run_facts.origin(lineage["export"]) == "tiny"
    assert [run.name for run in run_facts.children(lineage["grpo"])] == ["eval", "export"]


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        ("<think>\na\n</think>\n\nb", ("a", "b")),
        ("a</think>b", ("a", "b")),  # opened by the template
        ("<reasoning>a</reasoning><answer>b</answer>", ("a", "b")),
        ("<think>cut", ("cut", "")),
        ("plain", ("", "plain")),
        ("", ("", "")),
    ],
)
def test_completions_are_parted(output: str, parts: tuple[str, str]) -> None:
    assert run_facts.parted(output) == parts


def test_numbers_for_people() -> None:
    assert [run_facts.size(value) for value in (12, 4140, 4.14e6, 5e9)] == ["12 bytes", "4.14 kB", "4.14 MB", "5 GB"]
