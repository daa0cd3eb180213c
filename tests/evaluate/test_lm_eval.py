"""lm-evaluation-harness, hf backend, on the same questions: the same prompts, choices, texts and accuracy as ours.

The tasks are those of docs/lm-eval, the questions the miniature clinic's, exported with the tiny base's template.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from danlu import domains
from danlu.evaluate.evaluate import evaluate
from danlu.models.load import load
from danlu.recipe import Model, Recipe
from danlu.records import Sample
from danlu.run import Run

lm_eval = pytest.importorskip("lm_eval")

FOLDER = Path(__file__).parents[2] / "docs" / "lm-eval"
TINY = Path(__file__).parents[2] / "src" / "danlu" / "assets" / "tiny"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"lm_eval_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


EXPORT, UTILS = module("export"), module("utils")


def choice_questions(count: int) -> list[Sample]:
    world = domains.load("medical").world
    assert world is not None
    return [row for row in world.samples("test", 4 * count, 1) if row.options][:count]


@pytest.fixture(scope="module")
def shaken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with noise in its weights: as shipped it takes the same letter everywhere."""
    folder = tmp_path_factory.mktemp("shaken")
    loaded = load(Model(id="tiny", dtype="fp32"))
    torch.manual_seed(1)
    with torch.no_grad():
        for value in loaded.model.parameters():
            if value.ndim > 1:
                value.add_(2 * value.std() * torch.randn_like(value))
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def theirs(model: Path, task: str, batch: int, **settings: Any) -> dict[str, Any]:
    """The results of lm-eval's hf backend on `task`."""
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        tasks=[task],
        batch_size=batch,
        device="cpu",
        task_manager=TaskManager(include_path=str(FOLDER), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        **settings,
    )


@pytest.fixture(scope="module")
def questions() -> list[Sample]:
    return choice_questions(40)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, questions: list[Sample]) -> Path:
    """A folder with questions/clinic-test.jsonl, as export.py writes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    render = EXPORT.renderer("tiny")
    lines = [json.dumps(EXPORT.row_of(sample, render), ensure_ascii=False) + "\n" for sample in questions]
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions" / "clinic-test.jsonl").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def ours(model: Path, folder: Path, samples: list[Sample], **settings: Any) -> tuple[float, dict[str, dict[str, Any]]]:
    """(our accuracy, our rows by id) on the same questions."""
    from danlu.generate.local import LocalGenerator

    recipe = Recipe.model_validate({"name": "parity", "eval": settings})
    run = Run.create(folder / "run", "eval", recipe.resolved())
    with LocalGenerator(load(Model(id=str(model), dtype="fp32"))) as generator:
        report = evaluate(recipe, run, generator, benchmarks={"clinic": samples})
    return report["benchmarks"][0]["accuracy"], {row["id"]: row for row in run.samples()}


@pytest.mark.parametrize("which", ["as shipped", "shaken"])
def test_likeliest_letters_are_the_same(which: str, here: Path, questions: list[Sample], shaken: Path) -> None:
    model = TINY if which == "as shipped" else shaken
    accuracy, rows = ours(model, here, questions, modes=["loglikelihood"])
    found = theirs(model, "danlu_clinic_letters", 8)
    samples = found["samples"]["danlu_clinic_letters"]
    assert len(samples) == len(questions)
    for sample in samples:
        scores = [float(score) for score, _ in sample["filtered_resps"]]
        chosen = sample["doc"]["letters"][scores.index(max(scores))]
        assert chosen == rows[sample["doc"]["id"]]["extracted"], sample["doc"]["id"]
        assert sample["arguments"][0][0] == sample["doc"]["answer_only"]  # our prompt, no template on top of it
    if which == "shaken":  # a model that always takes the same letter would prove little
        assert len({row["extracted"] for row in rows.values()}) > 2
    assert found["results"]["danlu_clinic_letters"]["acc,none"] == pytest.approx(accuracy)


def test_written_answers_are_the_same(here: Path, questions: list[Sample]) -> None:
    some = questions[:12]
    accuracy, rows = ours(TINY, here, some, max_tokens=96)
    found = theirs(TINY, "danlu_clinic", 4, limit=12, gen_kwargs={"max_gen_toks": 96, "do_sample": False, "until": []})
    samples = found["samples"]["danlu_clinic"]
    texts = {sample["doc"]["id"]: sample["resps"][0][0] for sample in samples}
    assert texts == {name: row["output"] for name, row in rows.items()}
    assert found["results"]["danlu_clinic"]["exact_match,letters"] == pytest.approx(accuracy)


def test_export_of_a_benchmark(tmp_path: Path) -> None:
    path = EXPORT.export("clinic-test", tmp_path / "questions", limit=40)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows
    for row in rows:
        assert row["target"] in row["letters"]
        assert len(row["letters"]) == len(row["texts"])
        assert row["answer_only"].startswith(row["question"])
        assert len(row["answer_only"]) > len(row["question"])
        assert "<|im_start|>" not in row["question"]


def test_every_task_loads() -> None:
    from lm_eval.tasks import TaskManager

    names = set(TaskManager(include_path=str(FOLDER), include_defaults=False).all_subtasks)
    stems = ("danlu_clinic", "danlu_cmexam", "danlu_medqa_zh", "danlu_medqa_us")
    assert names == {stem + kind for stem in stems for kind in ("", "_letters")}


@pytest.mark.parametrize(
    ("text", "several", "letters"),
    [
        ("B", False, "B"),
        ("<think>\nmaybe A, the answer is A\n</think>\n\n答案是 C。", False, "C"),
        ("<think>\nThe answer is A", False, UTILS.INVALID),
        ("<reasoning>A</reasoning><answer>B</answer>", False, "B"),
        (r"So \boxed{\text{D}}.", False, "D"),
        ("The correct answer is B. Two things speak for it.", False, "B"),
        ("【答案】A\n【解析】……", False, "A"),
        ("答案：ACD", True, "ACD"),
        ("选A、C。", True, "AC"),
        ("选A、C。", False, UTILS.INVALID),
        ("The answer is A. The answer is B.", False, UTILS.INVALID),
        ("答案是A型血。", False, UTILS.INVALID),
        ("I do not know.", False, UTILS.INVALID),
    ],
)
def test_letters_of_an_answer(text: str, several: bool, letters: str) -> None:
    assert UTILS.chosen(text, ["A", "B", "C", "D"], several=several) == letters
