"""The eval stage with a scripted generator: rows, report, resume, failures."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from danlu.domains import Domain, World
from danlu.errors import DanluError
from danlu.evaluate.evaluate import benchmarks_of, evaluate
from danlu.evaluate.score import score, summarise
from danlu.generate import Sampling
from danlu.recipe import Recipe
from danlu.records import Completion, Message, Sample
from danlu.run import Run, read_json, read_jsonl
from danlu.think import ThinkFormat

THINK = ThinkFormat("think", open="<think>", close="</think>", opened_by="model")
OPTIONS = {"A": "one", "B": "two", "C": "three", "D": "four"}


@dataclass
class Scripted:
    """Answers each question with its script; "!" fails, "..." runs into the limit, "#" ends the process."""

    script: dict[str, list[str]]
    name: str = "scripted"
    think: ThinkFormat = THINK
    asked: list[str] = field(default_factory=list)
    systems: list[str] = field(default_factory=list)

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        for index in reversed(range(len(prompts))):  # generators answer in the order that suits them
            question = prompts[index][-1]["content"]
            self.systems += [turn["content"] for turn in prompts[index] if turn["role"] == "system"]
            if self.script[question] == ["#"]:
                raise KeyboardInterrupt
            self.asked.append(question)
            texts = [text for text in self.script[question] if text != "!"][: sampling.samples]
            if texts:
                yield index, [self._completion(text) for text in texts]

    def _completion(self, answer: str) -> Completion:
        text = "<think>\nstill thinking" if answer == "..." else f"<think>\nhm\n</think>\n\n{answer}"
        finish = "length" if answer == "..." else "stop"
        reasoning, part, tidy = THINK.split(text)
        return Completion(text, reasoning, part, finish, tidy, tokens=tuple(range(len(text))))


def question(name: str, target: str = "B", **meta: str) -> Sample:
    return Sample(name, ({"role": "user", "content": name},), target=target, options=OPTIONS, meta=dict(meta))


def started(path: Path, recipe: Recipe) -> Run:
    return Run.create(path, "eval", recipe.resolved())


SCRIPT = {
    "q1": ["The answer is B."],
    "q2": ["The answer is C."],
    "q3": ["..."],
    "q4": ["!"],
    "q5": ["no idea"],
    "q6": ["A or B"],
}
QUESTIONS = [
    question(f"q{i}", task="easy" if i < 3 else "hard", split="seen" if i % 2 else "unseen") for i in range(1, 7)
]


def test_rows_and_report(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "t", "eval": {"system": "Be brief."}})
    run, generator = started(tmp_path / "r", recipe), Scripted(SCRIPT)
    found = evaluate(recipe, run, generator, benchmarks={"quiz": QUESTIONS})
    assert generator.systems == ["Be brief."] * 6
    rows = {row["id"]: row for row in run.samples()}
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "q1": "right",
        "q2": "wrong",
        "q3": "truncated",
        "q4": "none",
        "q5": "none",
        "q6": "ambiguous",
    }
    assert rows["q4"]["finish"] == "error"
    assert rows["q1"] == {
        "benchmark": "quiz",
        "id": "q1",
        "index": 0,
        "question": "q1",
        "target": "B",
        "options": OPTIONS,
        "task": "easy",
        "split": "seen",
        "output": "<think>\nhm\n</think>\n\nThe answer is B.",
        "answer": "The answer is B.",
        "reasoning_length": 2,
        "answer_length": 16,
        "extracted": "B",
        "outcome": "right",
        "how": "said",
        "finish": "stop",
        "well_formed": True,
        "tokens": 37,
    }
    entry = found["benchmarks"][0]
    assert entry["name"] == "quiz"
    assert entry["n"] == 6
    assert sum(entry["shares"].values()) == pytest.approx(1)
    assert entry["accuracy"] == pytest.approx(1 / 6)
    assert entry["format_rate"] == pytest.approx(4 / 6)
    assert entry["stop_rate"] == pytest.approx(4 / 6)
    assert entry["errors"] == 1
    assert [(task["name"], task["n"], task["accuracy"]) for task in entry["tasks"]] == [
        ("easy", 2, 0.5),
        ("hard", 4, 0),
    ]
    assert [split["name"] for split in entry["splits"]] == ["seen", "unseen"]
    assert found["settings"]["max_tokens"] == 1024
    assert read_json(run.artifact / "report.json") == found
    assert len(read_jsonl(run.artifact / "scores.jsonl")) == 6
    assert run.info()["results"]["benchmarks"]["quiz"]["n"] == 6


def test_resume_asks_only_what_is_missing(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "t"})
    run = started(tmp_path / "r", recipe)
    with pytest.raises(KeyboardInterrupt):
        evaluate(recipe, run, Scripted(SCRIPT | {"q2": ["#"]}), benchmarks={"quiz": QUESTIONS})
    before = run.samples()
    assert {row["id"] for row in before} == {"q3", "q5", "q6"}
    with (run.path / "samples.jsonl").open("a") as file:
        file.write('{"id": "torn')
    generator = Scripted(SCRIPT | {"q4": ["B"]})
    found = evaluate(recipe, run, generator, benchmarks={"quiz": QUESTIONS})
    assert sorted(generator.asked) == ["q1", "q2", "q4"]
    assert run.samples()[:3] == before
    whole = evaluate(
        recipe, started(tmp_path / "w", recipe), Scripted(SCRIPT | {"q4": ["B"]}), benchmarks={"quiz": QUESTIONS}
    )
    assert found == whole


def test_failed_answers_are_asked_again(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "t"})
    run = started(tmp_path / "r", recipe)
    evaluate(recipe, run, Scripted(SCRIPT), benchmarks={"quiz": QUESTIONS})
    generator = Scripted(SCRIPT | {"q4": ["B"]})
    found = evaluate(recipe, run, generator, benchmarks={"quiz": QUESTIONS})
    assert generator.asked == ["q4"]
    assert found["benchmarks"][0]["right"] == 2


def test_several_answers(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "t", "eval": {"samples": 3, "temperature": 0.7}})
    script = {"q1": ["B", "B", "A"], "q2": ["A", "A", "B"], "q3": ["B", "!", "!"]}
    found = evaluate(recipe, started(tmp_path / "r", recipe), Scripted(script), benchmarks={"quiz": QUESTIONS[:3]})
    entry = found["benchmarks"][0]
    assert (entry["n"], entry["answers"], entry["samples"]) == (3, 9, 3)
    assert entry["accuracy"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)
    assert entry["majority"]["accuracy"] == pytest.approx(2 / 3)
    assert entry["errors"] == 2
    assert entry["ci"][0] <= entry["accuracy"] <= entry["ci"][1]


@pytest.mark.parametrize(
    ("benchmarks", "message"),
    [
        ({}, "nothing to evaluate"),
        ({"a": []}, "nothing to evaluate"),
        ({"a": [question("x"), question("x")]}, "occurs 2 times"),
        ({"a": [question("x", target="")]}, "no target"),
    ],
)
def test_refused_benchmarks(tmp_path: Path, benchmarks: dict[str, list[Sample]], message: str) -> None:
    recipe = Recipe.model_validate({"name": "t"})
    with pytest.raises(DanluError, match=message):
        evaluate(recipe, started(tmp_path / "r", recipe), Scripted(SCRIPT), benchmarks=benchmarks)


def test_the_recipes_benchmarks(tmp_path: Path) -> None:
    world = World({"test": "questions"}, lambda split, n, seed: QUESTIONS[: n or 3])  # noqa: ARG005
    domain = Domain("quiz", terms=list, world=world)
    file = tmp_path / "quiz.jsonl"
    file.write_text("".join(json.dumps(q.to_dict()) + "\n" for q in QUESTIONS[:2]), encoding="utf-8")
    value = [{"name": "file", "path": str(file)}, {"name": "world", "path": "world:test", "limit": 3}]
    found = benchmarks_of(Recipe.model_validate({"name": "t", "eval": {"benchmarks": value}}), domain)
    assert {name: len(rows) for name, rows in found.items()} == {"file": 2, "world": 3}
    assert found["file"][0].target == "B"
    with pytest.raises(DanluError, match="two benchmarks"):
        benchmarks_of(Recipe.model_validate({"name": "t", "eval": {"benchmarks": [value[0], value[0]]}}), domain)


def test_score_file_rows() -> None:
    rows = [
        {"id": 1, "target": "B", "options": OPTIONS, "output": "<think>\nA\n</think>\n\nB"},
        {"id": 2, "target": "B", "options": OPTIONS, "output": "thought\n</think>\n\nC"},
        {"id": 3, "target": "two", "output": "It is two.", "distractors": ["three"]},
        {"id": 4, "target": "two", "output": "<think>\ntwo", "finish": "length"},
        {"id": 5, "target": "42", "output": "<reasoning>\n42\n</reasoning>\n<answer>\n41\n</answer>"},
    ]
    found = score(rows)
    assert [row["outcome"] for row in found["rows"]] == ["right", "wrong", "right", "truncated", "wrong"]
    summary = found["summary"]
    assert (summary["n"], summary["right"], summary["wrong"], summary["truncated"]) == (5, 2, 2, 1)
    assert summary["accuracy"] == 0.4
    assert set(found["rows"][0]) >= {"id", "extracted", "outcome", "how"}


def test_an_evaluations_own_rows_score_the_same(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "t"})
    run = started(tmp_path / "r", recipe)
    evaluate(recipe, run, Scripted(SCRIPT), benchmarks={"quiz": QUESTIONS})
    again = score(run.samples())
    assert [row["outcome"] for row in again["rows"]] == [row["outcome"] for row in run.samples()]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 1, "output": "x"}], "row 1 has no target"),
        ([{"target": "x", "output": "x"}], "row 1 has no id"),
        ([{"id": 1, "target": "x"}], "row 1 has no output"),
        ([{"id": 1, "target": "x", "output": ""}, {"id": 1, "target": "x", "output": ""}], "row 2: id 1 was there"),
    ],
)
def test_refused_score_rows(rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(DanluError, match=message):
        score(rows)


def test_summary_of_nothing() -> None:
    assert summarise([])["accuracy"] == 0.0
    assert summarise([])["ci"] == [0.0, 1.0]
