"""`danlu eval`, `score` and `compare` from the outside, with the shipped tiny base and a handful of questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from danlu import cli
from danlu.recipe import load
from danlu.run import Run

QUESTIONS = [
    ("c1", "阿司匹林过量，确诊首选哪项检查？", {"A": "血糖", "B": "血气分析", "C": "尿酸"}, "B"),
    ("c2", "胸痛伴大汗，首先考虑什么？", {"A": "心肌梗死", "B": "近视", "C": "龋齿"}, "A"),
    ("c3", "Which vitamin prevents scurvy?", {"A": "vitamin A", "B": "vitamin D", "C": "vitamin C"}, "C"),
    ("c4", "Normal heart rate of an adult?", {"A": "20 to 40", "B": "60 to 100", "C": "180 to 220"}, "B"),
    ("c5", "下列哪些可以引起胸痛？", {"A": "心肌梗死", "B": "肺栓塞", "C": "近视"}, "AB"),
]
SHORT = ["--set", "eval.max_tokens=8", "--display", "none"]

pytestmark = pytest.mark.usefixtures("runs")


@pytest.fixture(autouse=True)
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the questions in ward.jsonl."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DANLU_BENCH", raising=False)
    names = ("id", "question", "options", "answer")
    lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in QUESTIONS]
    Path("ward.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "ward.jsonl"


def danlu(capsys, *args: str) -> tuple[int, str, str]:
    code = cli.main(list(args))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *args: str) -> list[str]:
    """The two lines of an error that a user can put right."""
    code, out, err = danlu(capsys, *args)
    lines = [line for line in err.splitlines() if not line.startswith(("eval: ", "warning: "))]
    assert (code, out, len(lines)) == (2, "", 2), err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    return lines


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_of_ones_own_is_asked_and_reported(capsys, runs):
    code, out, err = danlu(capsys, "eval", "tiny", "--bench", "ward.jsonl", "--set", "eval.max_tokens=8")
    run = runs / "tiny-eval-ward"
    assert (code, out) == (0, f"{run / 'artifact'}\n")
    (line,) = [line for line in err.splitlines() if line.startswith("ward: ")]
    assert "% right [" in line
    assert ", n = 5" in line
    assert {path.name for path in run.iterdir()} == {
        *("recipe.yaml", "config.json", "run.json", "samples.jsonl", "artifact")
    }
    assert {row["id"] for row in rows(run / "samples.jsonl")} == {name for name, *_ in QUESTIONS}
    assert all("A. " in row["question"] for row in rows(run / "samples.jsonl"))
    report = json.loads((run / "artifact" / "report.json").read_text(encoding="utf-8"))
    assert [(entry["name"], entry["n"]) for entry in report["benchmarks"]] == [("ward", 5)]

    what, hint = refused(capsys, "eval", "tiny", "--bench", "ward.jsonl", *SHORT)
    assert f"{run} already holds" in what
    assert all(way in hint for way in ("--resume", "--name", f"remove {run}"))


def test_json_of_an_evaluation_is_one_object(capsys, runs):
    code, out, _ = danlu(capsys, "eval", "tiny", "--bench", "ward.jsonl", "--name", "one", "--json", *SHORT)
    (stage,) = json.loads(out)["stages"]
    assert (code, stage["stage"], stage["run"]) == (0, "eval", str(runs / "one"))
    assert stage["artifact"] == str(runs / "one" / "artifact")
    assert stage["results"]["benchmarks"]["ward"]["n"] == 5


def test_modes_orders_and_budgets_are_told_apart(capsys, runs):
    settings = ["eval.modes=[think,answer_only,loglikelihood]", "eval.shuffles=1", "eval.budgets=[4]"]
    sets = [word for setting in settings for word in ("--set", setting)]
    code, _, err = danlu(capsys, "eval", "tiny", "--bench", "ward.jsonl", "--name", "modes", *sets, *SHORT[:2])
    assert code == 0, err
    found = json.loads((runs / "modes" / "artifact" / "report.json").read_text(encoding="utf-8"))
    entries = {entry["name"]: entry for entry in found["benchmarks"]}
    counts = {"ward": 5, "ward@answer_only": 5, "ward@loglikelihood": 4}  # one has two right letters
    assert {name: entry["n"] for name, entry in entries.items()} == counts
    assert all(line in err for line in (f"{name}: " for name in counts))
    assert entries["ward"]["shuffles"]["orders"] == 2
    assert [point["tokens"] for point in entries["ward"]["budgets"]] == [4]


def test_rescore_judges_what_is_stored(capsys, runs):
    assert danlu(capsys, "eval", "tiny", "--bench", "ward.jsonl", "--name", "again", *SHORT)[0] == 0
    samples = runs / "again" / "samples.jsonl"
    changed = [
        row | {"output": f"答案是{row['target']}", "answer": f"答案是{row['target']}", "finish": "stop"}
        for row in rows(samples)
    ]
    samples.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in changed), encoding="utf-8")
    code, out, err = danlu(capsys, "eval", "again", "--rescore")
    assert (code, out) == (0, f"{runs / 'again' / 'artifact'}\n")
    assert "ward: 100.0 % right" in err
    assert {row["outcome"] for row in rows(samples)} == {"right"}
    assert "is not a run" in refused(capsys, "eval", "nothing", "--rescore")[0]


@pytest.mark.parametrize("format_", ["lm-eval", "evalscope"])
def test_logs_for_other_tools_lie_in_the_run(capsys, runs, format_):
    args = ("--bench", "ward.jsonl", "--name", "logged", "--format", format_)
    code, _, err = danlu(capsys, "eval", "tiny", *args, *SHORT[:2])
    folder = runs / "logged" / "logs" / format_
    assert (code, f"written: {folder}" in err) == (0, True), err
    assert any(path.is_file() for path in folder.rglob("*"))


def test_an_unknown_format_is_refused_before_anything_runs(capsys, runs):
    what, hint = refused(capsys, "eval", "tiny", "--bench", "ward.jsonl", "--format", "excel", *SHORT)
    assert "excel" in what
    assert "lm-eval, evalscope" in hint
    assert not runs.exists()


def test_an_unknown_suite_names_the_nearest(capsys):
    what, hint = refused(capsys, "eval", "tiny", "--suite", "clinik", *SHORT)
    assert "no benchmark or suite 'clinik'" in what
    assert "did you mean clinic?" in hint


def test_a_benchmark_is_found_in_a_folder_of_ones_own(capsys, runs, monkeypatch):
    folder = Path("published")
    folder.mkdir()
    row = {"Question": QUESTIONS[0][1], "Options": [{"key": k, "value": v} for k, v in QUESTIONS[0][2].items()]}
    line = json.dumps(row | {"Answer": "B"}, ensure_ascii=False)
    (folder / "cmexam_test.jsonl").write_text(line + "\n", encoding="utf-8")
    monkeypatch.setenv("DANLU_BENCH", str(folder))
    assert danlu(capsys, "eval", "tiny", "--bench", "cmexam", "--name", "local", *SHORT)[0] == 0
    assert [row["target"] for row in rows(runs / "local" / "samples.jsonl")] == ["B"]


def test_an_endpoint_where_nobody_listens(capsys, runs):
    what, hint = refused(capsys, "eval", "http://127.0.0.1:9/v1", "--bench", "ward.jsonl", *SHORT)
    assert "http://127.0.0.1:9/v1 cannot be reached" in what
    assert "is the server running?" in hint
    assert not runs.exists()  # the name is still free


def test_a_dry_run_names_the_run_and_writes_nothing(capsys, runs):
    code, out, _ = danlu(capsys, "eval", "tiny", "--suite", "clinic", "--dry-run")
    assert code == 0
    assert out.splitlines()[-1] == f"#   eval: {runs / 'tiny-eval-clinic'} from tiny"
    assert not runs.exists()


def test_two_evaluations_are_compared(capsys, runs):
    for name, seed in (("before", 0), ("after", 1)):
        sets = ["--set", "eval.max_tokens=8", "--set", f"eval.seed={seed}", "--display", "none"]
        assert danlu(capsys, "eval", "tiny", "--bench", "ward.jsonl", "--name", name, *sets)[0] == 0
    code, out, err = danlu(capsys, "compare", "before", "after", "--html", "verdict.html", "--markdown", "verdict.md")
    assert code == 0
    assert out.splitlines()[0].startswith("cannot tell yet: ")
    assert out.splitlines()[1].split()[:4] == ["BENCHMARK", "N", "BASE", "TUNED"]
    assert "not asked alike: seed: 0 -> 1" in err
    page = Path("verdict.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "before → after" in page
    assert "| ward | 5 |" in Path("verdict.md").read_text(encoding="utf-8")
    code, out, _ = danlu(capsys, "compare", "before", "after", "--json")
    comparison = json.loads(out)
    assert (code, comparison["verdict"]) == (0, "cannot tell")
    assert [entry["n"] for entry in comparison["benchmarks"]] == [5]
    assert (runs / "after" / "compare.json").is_file()

    code, out, err = danlu(capsys, "compare", "before", "after", "--gate")
    assert code == 0
    assert out.splitlines()[-1].startswith("passes: ")
    assert "compare with --suite guard" in err  # what it could not guard is said
    assert "have no question in common" in refused(capsys, "compare", "before", str(_other(capsys, runs)))[0]


def _other(capsys, runs: Path) -> Path:
    Path("others.jsonl").write_text('{"id": "o1", "question": "Which organ pumps blood?", "answer": "heart"}\n')
    assert danlu(capsys, "eval", "tiny", "--bench", "others.jsonl", "--name", "others", *SHORT)[0] == 0
    return runs / "others"


def test_a_failed_gate_is_exit_1(capsys):
    for name, finish in (("before", "stop"), ("after", "length")):
        lines = [
            json.dumps({"id": n, "options": {"A": "x", "B": "y"}, "answer": "B", "output": "答案是B", "finish": finish})
            for n in range(12)
        ]
        Path(f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    code, out, _ = danlu(capsys, "compare", "before.jsonl", "after.jsonl", "--gate")
    assert code == 1
    assert out.splitlines()[-1].startswith("fails: stop rate on answers fell (100.0 % -> 0.0 %")


def test_export_refuses_what_failed_its_gate(capsys, runs):
    Path("mine.yaml").write_text("name: mine\nmodel: {id: tiny}\n", encoding="utf-8")
    trained = Run.create(runs / "mine-sft", "sft", load("mine.yaml").resolved())
    asked = Run.create(runs / "mine-sft-eval", "eval", load("mine.yaml").resolved(), parents=["mine-sft"])
    for run in (trained, asked):
        with run.recording():
            run.log({"step": 1})
    gate = {"ok": False, "sentence": "fails: stop rate on ward fell"}
    (asked.path / "compare.json").write_text(json.dumps({"gate": gate}), encoding="utf-8")
    export = ("export", "mine.yaml", "--from", "mine-sft", "--dry-run")
    what, hint = refused(capsys, *export)
    assert what == "error: mine-sft failed its gate: fails: stop rate on ward fell"
    assert "--force" in hint
    assert danlu(capsys, *export, "--force")[0] == 0
    (asked.path / "compare.json").write_text(json.dumps({"gate": {**gate, "ok": True}}), encoding="utf-8")
    assert danlu(capsys, *export)[0] == 0
