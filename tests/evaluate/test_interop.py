"""Logs for other tools: every answer once, their fields, our figures; and what is refused."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from danlu.errors import DanluError
from danlu.evaluate.evaluate import evaluate
from danlu.evaluate.interop import INVALID, write_logs
from danlu.generate import Sampling
from danlu.recipe import Recipe
from danlu.records import Completion, Message, Sample
from danlu.run import Run, read_json, read_jsonl
from danlu.think import ThinkFormat

OPTIONS = {"A": "one", "B": "two", "C": "three"}
SAID = {"q10": ["The answer is B.", "The answer is C."], "q2": ["B", "B"], "q9": ["no idea", "no idea"]}


@dataclass
class Scripted:
    """Answers by SAID, last question first; q7 fails."""

    name: str = "folder/some model"
    think: ThinkFormat = ThinkFormat("none")  # noqa: RUF009

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        for index in reversed(range(len(prompts))):
            said = SAID.get(prompts[index][-1]["content"].split("\n")[0], [])[: sampling.samples]
            yield index, [Completion(text, "", text, "stop", True, tokens=(1, 2)) for text in said]

    def choose(
        self, prompts: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, str]]:
        for index in range(len(prompts)):
            yield index, letters[index][1]


def sample(name: str, target: str = "B", **meta: str) -> Sample:
    text = "\n".join([name, *(f"{letter}. {option}" for letter, option in OPTIONS.items())])
    return Sample(name, ({"role": "user", "content": text},), target=target, options=OPTIONS, meta=dict(meta))


QUIZ = [sample("q10", subject="heart"), sample("q2", subject="lung"), sample("q9", subject="lung"), sample("q7")]


def finished(path: Path, **settings: Any) -> tuple[Run, dict[str, Any]]:
    recipe = Recipe.model_validate({"name": "t", "eval": {"system": "Be brief.", **settings}})
    run = Run.create(path, "eval", recipe.resolved())
    with run.recording():
        report = evaluate(recipe, run, Scripted(), benchmarks={"quiz": QUIZ})
    return run, report


def test_lm_eval_logs(tmp_path: Path) -> None:
    run, report = finished(tmp_path / "r", modes=["think", "loglikelihood"], samples=2, temperature=0.5)
    folder = write_logs(run, "lm-eval")
    assert folder == run.path / "logs" / "lm-eval"
    (results_file,) = folder.glob("folder__some__model/results_*.json")
    results = read_json(results_file)
    stamp = results_file.stem.removeprefix("results_")
    rows = read_jsonl(results_file.parent / f"samples_quiz_{stamp}.jsonl")
    assert {row["doc"]["id"]: row["doc_id"] for row in rows} == {"q10": 0, "q2": 1, "q7": 2, "q9": 3}
    first = next(row for row in rows if row["doc"]["id"] == "q10")
    assert set(first) == {
        *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
        *("doc_hash", "prompt_hash", "target_hash", "exact_match"),
    }
    assert (first["target"], first["metrics"], first["exact_match"]) == ("B", ["exact_match"], 0.5)
    assert (first["resps"], first["filtered_resps"]) == ([SAID["q10"]], [["B", "C"]])
    asked = json.loads(first["arguments"]["gen_args_0"]["arg_0"])
    assert [turn["role"] for turn in asked] == ["system", "user"]
    assert asked[1]["content"] == QUIZ[0].question
    assert first["arguments"]["gen_args_0"]["arg_1"]["temperature"] == 0.5
    failed = next(row for row in rows if row["doc"]["id"] == "q7")
    assert (failed["filtered_resps"], failed["exact_match"]) == ([[INVALID, INVALID]], 0.0)
    think, chosen = report["benchmarks"]
    assert results["results"]["quiz"]["exact_match,danlu"] == think["accuracy"] == pytest.approx(1.5 / 4)
    assert results["results"]["quiz"]["exact_match_stderr,danlu"] == pytest.approx(0.2394, abs=1e-4)  # sd / sqrt(n)
    assert results["results"]["quiz@loglikelihood"]["acc,danlu"] == chosen["accuracy"] == 1.0
    assert results["n-samples"]["quiz"] == {"original": 4, "effective": 4}
    letters = read_jsonl(results_file.parent / f"samples_quiz@loglikelihood_{stamp}.jsonl")
    assert [row["filtered_resps"] for row in letters] == [["B"]] * 4
    assert "Answer with the letter" in letters[0]["arguments"]["gen_args_0"]["arg_0"]


def test_lm_eval_can_read_the_names(tmp_path: Path) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    run, _ = finished(tmp_path / "r", shuffles=1)
    folder = write_logs(run, "lm-eval")
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    results, samples = utils.get_results_filenames(names), utils.get_sample_results_filenames(names)
    assert len(results) == 1
    assert {utils.get_file_task_name(Path(name).name) for name in samples} == {"quiz", "quiz+order1"}
    assert len({utils.get_file_datetime(name).removesuffix(".json") for name in names}) == 1


def test_evalscope_logs(tmp_path: Path) -> None:
    run, report = finished(tmp_path / "r", samples=2, temperature=0.5)
    folder = write_logs(run, "evalscope")
    found = read_json(folder / "reports" / "folder__some__model" / "quiz.json")
    entry = report["benchmarks"][0]
    assert (found["schema_version"], found["num"], found["model_name"]) == (2, 4, "folder__some__model")
    (metric,) = found["metrics"]
    assert metric["identity"] == found["primary_metric_identity"]
    assert metric["score"] == round(entry["accuracy"], 4)
    (category,) = metric["categories"]
    parts = {part["name"]: (part["num"], part["score"]) for part in category["subsets"]}
    assert parts == {"heart": (1, 0.5), "lung": (2, 0.5), "default": (1, 0.0)}
    weighed = sum(num * score for num, score in parts.values()) / sum(num for num, _ in parts.values())
    assert weighed == pytest.approx(metric["score"])  # EvalScope computes it again when it reads a report
    assert found["execution_summary"]["subsets"]["default"] == {"requested": 1, "succeeded": 0, "errored": 1}
    assert (found["execution_summary"]["succeeded"], found["execution_summary"]["errored"]) == (3, 1)
    reviews = {name: read_jsonl(folder / "reviews" / "folder__some__model" / f"quiz_{name}.jsonl") for name in parts}
    assert [row["index"] for row in reviews["lung"]] == [0, 1, 2, 3]
    assert len({row["sample_score"]["group_id"] for row in reviews["lung"]}) == 2
    said = reviews["heart"][0]
    assert [turn["role"] for turn in said["messages"]] == ["system", "user", "assistant"]
    assert said["messages"][-1]["content"] == "The answer is B."
    score = said["sample_score"]["score"]
    assert (score["value"], score["extracted_prediction"], said["target"]) == ({"accuracy": 1.0}, "B", "B")
    answers = [row["sample_score"]["score"]["value"]["accuracy"] for own in reviews.values() for row in own]
    assert sum(answers) / len(answers) == pytest.approx(entry["accuracy"])


@pytest.mark.parametrize("format_", ["lm-eval", "evalscope"])
def test_questions_without_gold_stay_in(tmp_path: Path, format_: str) -> None:
    file = tmp_path / "quiz.jsonl"
    rows = [{"question": name, "options": OPTIONS, "answer": gold} for name, gold in (("q2", "B"), ("q9", "nan"))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"benchmarks": [{"name": "quiz", "path": str(file)}]}
    recipe = Recipe.model_validate({"name": "t", "eval": settings})
    run = Run.create(tmp_path / "r", "eval", recipe.resolved())
    evaluate(recipe, run, Scripted())
    folder = write_logs(run, format_)
    logs = [path for path in folder.rglob("*.jsonl")]
    rows = [row for path in logs for row in read_jsonl(path)]
    assert sorted(row["target"] for row in rows) == ["", "B"]


def test_writing_again_replaces_and_a_failure_leaves_the_old(tmp_path: Path) -> None:
    run, _ = finished(tmp_path / "r")
    folder = write_logs(run, "lm-eval")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path: path.read_bytes() for path in write_logs(run, "lm-eval").rglob("*") if path.is_file()} == before
    rows = run.samples()
    next(row for row in rows if row["outcome"] == "right")["outcome"] = "wrong"
    (run.path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DanluError, match="do not fit the report"):
        write_logs(run, "lm-eval")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in (run.path / "logs").iterdir()] == ["lm-eval"]


def test_refused(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "t"})
    with pytest.raises(DanluError, match="no evaluation"):
        write_logs(Run.create(tmp_path / "sft", "sft", recipe.resolved()), "lm-eval")
    unfinished = Run.create(tmp_path / "eval", "eval", recipe.resolved())
    unfinished.write_samples([])
    with pytest.raises(DanluError, match=r"no artifact/report\.json"):
        write_logs(unfinished, "evalscope")
    with pytest.raises(DanluError, match="no format"):
        write_logs(unfinished, "csv")
