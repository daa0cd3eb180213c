"""The eval stage with a scripted generator: rows, report, resume, failures."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from danlu.domains import Domain, World
from danlu.errors import DanluError
from danlu.evaluate.describe import language_match, repetition
from danlu.evaluate.evaluate import benchmarks_of, evaluate, rescore
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
        "repetition": 0.0,
        "language_match": True,
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
    assert entry["sampling"]["average"]["value"] == pytest.approx(entry["accuracy"])
    assert entry["sampling"]["pass"][3]["value"] == 1.0
    assert entry["calibration"]["n"] == 3
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
    found, rejected = benchmarks_of(Recipe.model_validate({"name": "t", "eval": {"benchmarks": value}}), domain)
    assert rejected == {"file": [], "world": []}
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
        {"id": 6, "answer": "B", "options": OPTIONS, "output": "B", "finish_reason": "stop"},
        {"id": 7, "answer": "B", "options": OPTIONS, "output": "<think>\nB", "finish_reason": "length"},
    ]
    found = score(rows)
    assert [row["outcome"] for row in found["rows"]] == [
        "right",
        "wrong",
        "right",
        "truncated",
        "wrong",
        "right",
        "truncated",
    ]
    summary = found["summary"]
    assert (summary["n"], summary["right"], summary["wrong"], summary["truncated"]) == (7, 3, 2, 2)
    assert summary["accuracy"] == pytest.approx(3 / 7)
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


# ---- modes, orders, budgets, leaks, rows without gold


@dataclass
class Knowing(Scripted):
    """A generator that can switch thinking off, cut what it wrote, and choose letters."""

    thinking: bool = True
    heard: list[tuple[bool, str]] = field(default_factory=list)

    def generate(self, prompts, sampling):  # type: ignore[no-untyped-def]
        for index, chat in enumerate(prompts):
            text = chat[-1]["content"]
            self.heard.append((self.thinking, text))
            said = next(letter for letter in "ABCD" if f"{letter}. two" in text) if "two" in text else "B"
            yield index, [self._completion(f"The answer is {said}.")] * sampling.samples

    def choose(self, prompts, letters):  # type: ignore[no-untyped-def]
        for index, (_, own) in enumerate(zip(prompts, letters, strict=True)):
            assert not self.thinking
            yield index, own[1]

    def cut(self, completion: Completion, tokens: int) -> Completion:
        text = completion.text[:tokens]
        reasoning, answer, _ = THINK.split(text)
        return Completion(text, reasoning, answer, "length", False, completion.tokens[:tokens])


def listed(name: str, target: str = "B", options: dict[str, str] = OPTIONS) -> Sample:
    text = "\n".join([name, *(f"{letter}. {option}" for letter, option in options.items())])
    return Sample(name, ({"role": "user", "content": text},), target=target, options=options)


def recipe_of(**settings: object) -> Recipe:
    return Recipe.model_validate({"name": "t", "eval": settings})


def test_every_mode_is_a_benchmark_of_its_own(tmp_path: Path) -> None:
    recipe = recipe_of(modes=["think", "no_think", "answer_only", "loglikelihood"])
    run, generator = started(tmp_path / "r", recipe), Knowing({})
    open_one = Sample("open", ({"role": "user", "content": "which?"},), target="The answer is B")
    found = evaluate(recipe, run, generator, benchmarks={"quiz": [listed("q1"), listed("q2", "C"), open_one]})
    assert [(entry["name"], entry["n"]) for entry in found["benchmarks"]] == [
        ("quiz", 3),
        ("quiz@no_think", 3),
        ("quiz@answer_only", 3),
        ("quiz@loglikelihood", 2),  # single-choice questions only
    ]
    assert [thinking for thinking, _ in generator.heard] == [True] * 3 + [False] * 6
    assert sum("letter of the option only" in text for _, text in generator.heard) == 2
    assert generator.thinking
    rows = [row for row in run.samples() if row.get("mode") == "loglikelihood"]
    assert [(row["extracted"], row["outcome"]) for row in rows] == [("B", "right"), ("B", "wrong")]
    assert all(row["prompt"].startswith(row["question"]) and "letter" in row["prompt"] for row in rows)
    assert "prompt" not in run.samples()[0]  # the question is all that was asked


def test_a_mode_that_needs_weights_says_so(tmp_path: Path) -> None:
    recipe = recipe_of(modes=["loglikelihood"])
    with pytest.raises(DanluError, match="needs local weights"):
        evaluate(recipe, started(tmp_path / "r", recipe), Scripted({}), benchmarks={"quiz": [listed("q1")]})


def test_orders_of_the_options(tmp_path: Path) -> None:
    """This model knows the text and not the letter: it is right and consistent in every order."""
    recipe = recipe_of(shuffles=3, samples=2, temperature=1.0)
    run = started(tmp_path / "r", recipe)
    apart = listed("q3", options={"A": "one", "B": "all of the above"})
    samples = [listed("q1"), listed("q2"), apart]
    entry = evaluate(recipe, run, Knowing({}), benchmarks={"quiz": samples})["benchmarks"][0]
    assert (entry["n"], entry["answers"]) == (3, 6)  # as published, orders apart
    orders = entry["shuffles"]
    assert (orders["questions"], orders["orders"], orders["accuracy"], orders["consistency"]) == (2, 4, 1.0, 1.0)
    rows = [row for row in run.samples() if row["id"] == "q1"]
    assert len({row["question"] for row in rows}) > 1
    assert {row["chosen"] for row in rows} == {"B"}
    assert all(row["options"][row["target"]] == "two" for row in rows)
    assert all(f"{letter}. {text}" in row["question"] for row in rows for letter, text in row["options"].items())
    assert sorted(row["index"] for row in rows) == list(range(8))

    class Letter(Knowing):
        def generate(self, prompts, sampling):  # type: ignore[no-untyped-def]
            for index in range(len(prompts)):
                yield index, [self._completion("B")] * sampling.samples

    biased = evaluate(recipe, started(tmp_path / "b", recipe), Letter({}), benchmarks={"quiz": samples[:2]})
    orders = biased["benchmarks"][0]["shuffles"]
    assert biased["benchmarks"][0]["accuracy"] == 1.0
    assert orders["letters"] == {"B": 1.0}
    assert orders["consistency"] == 0.0


def test_accuracy_at_token_budgets_from_one_generation(tmp_path: Path) -> None:
    recipe = recipe_of(budgets=[4, 30, 36, 99])
    found = evaluate(recipe, started(tmp_path / "r", recipe), Knowing({}), benchmarks={"quiz": [listed("q1")]})
    curve = found["benchmarks"][0]["budgets"]
    assert [(point["tokens"], point["accuracy"]) for point in curve] == [(4, 0.0), (30, 0.0), (36, 1.0), (99, 1.0)]
    assert curve[0]["truncated"] == 1.0


def test_leaked_questions_are_told_apart(tmp_path: Path) -> None:
    recipe = recipe_of()
    samples = [listed("q1"), listed("q2", "C"), listed("q3")]
    run = started(tmp_path / "r", recipe)
    entry = evaluate(recipe, run, Knowing({}), benchmarks={"quiz": samples}, leaked={("quiz", "q1")})["benchmarks"][0]
    assert (entry["n"], entry["leaked"]) == (3, 1)
    assert entry["without_leaked"]["n"] == 2
    assert entry["without_leaked"]["accuracy"] == 0.5
    assert [row["leaked"] for row in run.samples()] == [True, False, False]


def test_rows_without_gold_stay_in_the_denominator(tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    rows = [{"question": f"q{n}", "options": OPTIONS, "answer": gold} for n, gold in enumerate(["B", "nan", "B"])]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = recipe_of(benchmarks=[{"name": "quiz", "path": str(file)}], modes=["think", "no_think"])
    run = started(tmp_path / "r", recipe)
    found = evaluate(recipe, run, Knowing({}))
    for entry in found["benchmarks"]:
        assert (entry["n"], entry["right"], entry["none"]) == (3, 2, 1)
        assert entry["accuracy"] == pytest.approx(2 / 3)
        assert entry["unscorable"]["n"] == 1
        assert "nan" in next(iter(entry["unscorable"]["reasons"]))
        assert (entry["stop_rate"], entry["errors"]) == (1.0, 0)
    before = run.samples()
    assert evaluate(recipe, run, Knowing({})) == found  # nothing is asked or written twice
    assert run.samples() == before


def test_stored_answers_are_judged_again_without_asking(tmp_path: Path) -> None:
    recipe = recipe_of(modes=["think", "no_think"])
    run = started(tmp_path / "r", recipe)
    with run.recording():
        first = evaluate(recipe, run, Knowing({}), benchmarks={"quiz": [listed("q1"), listed("q2", "C")]})
    rows = run.samples()
    (run.path / "samples.jsonl").write_text(
        "".join(json.dumps({**row, "outcome": "wrong", "extracted": None}) + "\n" for row in rows), encoding="utf-8"
    )
    again = rescore(run)
    assert again["benchmarks"] == first["benchmarks"]
    assert run.samples() == rows


def test_loops_and_languages_are_measured() -> None:
    assert repetition("发热三天，咳嗽，先查血常规，再看胸片，注意休息，多喝水，按时复诊。") == 0.0
    assert repetition("我不知道。" * 60) > 0.9
    assert language_match("头痛三天怎么办？", "建议先测血压，再去门诊。") is True
    assert language_match("头痛三天怎么办？", "You should measure your blood pressure first.") is False
    assert language_match("头痛三天怎么办？", "B") is None


def test_texts_stay_on_disk(tmp_path: Path) -> None:
    """Ten times as many reasonings of 40,000 characters: what is held in memory does not grow with their texts."""
    import tracemalloc

    class Wordy(Scripted):
        def generate(self, prompts, sampling):  # type: ignore[no-untyped-def]  # noqa: ARG002
            for index in range(len(prompts)):
                thought = f"{index} " + "word " * 8000
                answer = "The answer is B."
                yield index, [Completion(f"<think>{thought}</think>{answer}", thought, answer, "stop", True, (1,))]

    recipe, peaks = recipe_of(), []
    for count in (10, 100):
        run = started(tmp_path / str(count), recipe)
        samples = [listed(f"q{n}") for n in range(count)]
        tracemalloc.start()
        evaluate(recipe, run, Wordy({}), benchmarks={"quiz": samples})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (run.path / "samples.jsonl").stat().st_size > 4_000_000
    assert peaks[1] - peaks[0] < 1_000_000
