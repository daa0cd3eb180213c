"""The command line as a user meets it: exit codes, two-line errors, data on stdout, nothing written by a dry run.

Most tests call `main` in this process; a few start real ones, for signals and pipes.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from danlu import cli
from danlu.cli import stages
from danlu.cli.app import commands
from danlu.cli.doctor import diagnose, native_bf16
from danlu.errors import DanluError, Stopped
from danlu.generate import Streamed
from danlu.recipe import load
from danlu.run import Run

NAMES = ["demo", "recipes", "new", "doctor", "run", "sft", "grpo", "eval", "compare", "merge", "export", "verify"]
NAMES += ["score", "chat", "serve", "ls", "show", "plot", "plan", "rehearse", "reward test", "accelerate"]
NAMES += ["convert", "data check", "data prepare", "data view", "studio"]


pytestmark = pytest.mark.usefixtures("runs")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty working directory with one recipe, and the signal handler of the test run put back."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("name: mine\nstages: [sft, grpo, eval, export]\nmodel: {id: some/model}\n")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def danlu(capsys, *args: str) -> tuple[int, str, str]:
    code = cli.main(list(args))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def made(
    runs: Path, name: str, stage: str = "sft", results: dict | None = None, parents: list[str] | None = None
) -> Run:
    run = Run.create(runs / name, stage, load("mine.yaml").resolved(), parents=parents)
    with run.recording():
        run.log({"step": 1, "loss": 1.5})
        run.record(**(results or {}))
    return run


# ---- help and usage


def test_every_command_has_help_with_an_example():
    assert sorted(commands()) == sorted(NAMES)
    for name, command in commands().items():
        assert command.help, name
        assert "danlu " in command.epilog, name
        assert command.epilog.startswith("Example: "), name
        for option in command.params:
            assert getattr(option, "help", None), f"{name} {option.name}"


@pytest.mark.parametrize(
    ("args", "what", "hint"),
    [
        (["sfy"], "no such command 'sfy'", "did you mean sft?"),
        (["sft", "demo", "--nmae", "x"], "no such option: --nmae", "did you mean --name?"),
        (["sft"], "missing argument 'RECIPE'", "danlu sft --help shows what it takes"),
        (["sft", "mine.yaml", "--display", "loud"], "invalid value for '--display'", "danlu sft --help"),
        (["sft", "mien.yaml"], "no recipe 'mien.yaml'", "danlu recipes"),
        (
            ["sft", "mine.yaml", "--set", "sft.lrr=1", "--dry-run"],
            "unknown key sft.lrr",
            "did you mean sft.optimizer.lr?",
        ),
        (["sft", "mine.yaml", "--name", "a/b", "--dry-run"], "'a/b' cannot name a run", "without slashes"),
        (["sft", "mine.yaml", "--resume"], "is not a run", "danlu ls"),
        (["show", "nothing"], "is not a run", "danlu ls"),
        (["compare", "a", "b"], "a is neither a run nor a file", "danlu ls"),
        (["new", "../x"], "'../x' is not a recipe name", "letters"),
        (["verify", "."], ". holds no export", "export run"),
        (["merge", "nothing"], "is not a run", "danlu ls"),
        (["plot", "nothing"], "is not a run", "danlu ls"),
        (["chat", "x", "--once", " "], "the question is empty", "--once"),
        (["data", "check"], "there is nothing to look at", "--model MODEL --data FILE"),
        (["data", "check", "--data", "x.jsonl"], "--data needs a model", "--model MODEL"),
        (["data", "viex"], "no such command 'viex'", "did you mean view?"),
        (
            ["data", "view", "demo", "--row", "100000", "--display", "none"],
            "there is no row 100000",
            "rows are 0 to 127",
        ),
        (
            ["data", "view", "demo", "--masked", "--display", "none"],
            "the recipe masks no terms",
            "data.masking.probability",
        ),
    ],
)
def test_what_a_user_can_put_right_is_two_lines_and_exit_2(capsys, args, what, hint):
    code, out, err = danlu(capsys, *args)
    lines = err.splitlines()
    assert (code, out, len(lines)) == (2, "", 2), err
    assert lines[0].startswith("error: ")
    assert what in lines[0]
    assert lines[1].startswith("hint: ")
    assert hint in lines[1]


def test_verbose_adds_the_traceback(capsys):
    _, _, err = danlu(capsys, "show", "nothing", "-v")
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("hint: ")


def test_a_bug_is_one_line_and_says_so(capsys, monkeypatch):
    def broken(*_args, **_more):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(stages, "load", broken)
    assert danlu(capsys, "sft", "mine.yaml") == (
        1,
        "",
        "error: ZeroDivisionError: oh\nhint: this is a bug, run again with -v\n",
    )
    assert "in broken" in danlu(capsys, "sft", "mine.yaml", "-v")[2]


# ---- recipes


def test_recipes_and_new(capsys):
    code, out, _ = danlu(capsys, "recipes", "--json")
    names = [row["name"] for row in json.loads(out)["recipes"]]
    assert (code, "qwen3-1.7b-medical-qlora-v1" in names) == (0, True)
    code, out, _ = danlu(capsys, "new", "clinic", "--recipe", "qwen3-1.7b-medical-qlora-v1")
    assert (code, out) == (0, "clinic.yaml\n")
    assert load("clinic.yaml").name == "clinic"
    assert "# " in Path("clinic.yaml").read_text()
    assert danlu(capsys, "new", "clinic", "--recipe", "qwen3-1.7b-medical-qlora-v1")[0] == 2


def test_a_dry_run_prints_recipe_and_plan_and_writes_nothing(capsys, runs):
    before = sorted(Path().rglob("*"))
    code, out, _ = danlu(capsys, "run", "mine.yaml", "--dry-run", "--name", "n", "--set", "seed=3")
    assert (code, yaml.safe_load(out)["seed"]) == (0, 3)
    assert [line.split()[1] for line in out.splitlines() if line.startswith("#   ")] == [
        "eval:",
        "sft:",
        "grpo:",
        "eval:",
        "export:",
    ]
    code, out, _ = danlu(capsys, "run", "mine.yaml", "--dry-run", "--json", "--name", "n", "--from", "m")
    steps = [(step["run"], step["start"]) for step in json.loads(out)["plan"]]
    assert steps == [
        ("n-eval-base", "m"),
        ("n-sft", "m"),
        ("n-grpo", str(runs / "n-sft")),
        ("n-eval", str(runs / "n-grpo")),
        ("n-export", str(runs / "n-grpo")),
    ]
    assert sorted(Path().rglob("*")) == before


# ---- stages


def stand_in(stage: str, calls: list):
    """A stage that leaves an artifact and says what it was given."""

    def work(recipe, run, start):
        calls.append((stage, run.name, start))
        if stage != "eval":
            with run.delivering() as staged:
                (staged / "file").write_text("x")
        return {"loss": 0.5, "seed": recipe.seed}

    return work


@pytest.fixture
def calls(monkeypatch):
    made: list = []
    monkeypatch.setattr(stages, "STAGES", {stage: stand_in(stage, made) for stage in stages.STAGES})
    monkeypatch.setattr(stages, "_compare_evals", lambda base, tuned: {"sentence": f"{base.name} {tuned.name}"})
    monkeypatch.setattr(stages, "plot_runs", lambda names: [f"{name}/loss.png" for name in names])
    return made


def test_run_chains_the_stages(capsys, runs, calls):
    code, out, _ = danlu(capsys, "run", "mine.yaml", "--name", "n", "--display", "none", "--set", "seed=5")
    assert code == 0
    assert calls == [
        ("eval", "n-eval-base", None),
        ("sft", "n-sft", None),
        ("grpo", "n-grpo", str(runs / "n-sft")),
        ("eval", "n-eval", str(runs / "n-grpo")),
        ("export", "n-export", str(runs / "n-grpo")),
    ]
    assert out.splitlines() == [
        str(runs / "n-eval-base"),
        str(runs / "n-sft" / "artifact"),
        str(runs / "n-grpo" / "artifact"),
        str(runs / "n-eval"),
        str(runs / "n-export" / "artifact"),
    ]
    assert Run.open(runs / "n-grpo").info()["parents"] == ["n-sft"]
    assert (runs / "n-sft" / "recipe.yaml").read_text() == Path("mine.yaml").read_text() + "# --set seed=5\n"
    shown = json.loads(danlu(capsys, "show", "n-export", "--json")[1])
    assert shown["lineage"] == ["n-grpo", "n-sft"]
    assert shown["results"] == {"loss": 0.5, "seed": 5}


def test_a_used_name_is_refused_before_anything_runs(capsys, runs, calls):
    made(runs, "n-grpo")
    code, _, err = danlu(capsys, "run", "mine.yaml", "--name", "n")
    assert (code, calls) == (2, [])
    assert f"error: {runs / 'n-grpo'} is already used" in err


def test_resume_skips_what_is_done_and_refuses_what_changed(capsys, calls):
    assert danlu(capsys, "run", "mine.yaml", "--name", "n", "--set", "stages=[sft]")[0] == 0
    calls.clear()
    assert danlu(capsys, "run", "mine.yaml", "--name", "n", "--set", "stages=[sft]", "--resume")[0] == 0
    assert calls == []
    code, _, err = danlu(
        capsys, "run", "mine.yaml", "--name", "n", "--set", "stages=[sft]", "--set", "seed=9", "--resume"
    )
    assert (code, calls) == (2, [])
    assert "the recipe changed in seed" in err
    code, _, err = danlu(
        capsys, "sft", "mine.yaml", "--name", "n-sft", "--set", "stages=[sft]", "--from", "m", "--resume"
    )
    assert code == 2
    assert "it started from the recipe's model" in err


def test_a_stage_starts_only_from_a_finished_run(capsys, runs, calls):
    Run.create(runs / "half", "sft", load("mine.yaml").resolved())
    code, _, err = danlu(capsys, "grpo", "mine.yaml", "--from", "half")
    assert (code, calls) == (2, [])
    assert "half is died, not done" in err


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (Stopped("stopped at step 3", "go on with --resume"), 130, "stopped"),
        (Stopped("stopped by SIGTERM", "go on with --resume", exit_code=143), 143, "stopped"),
        (DanluError("no rows", "add some"), 2, "failed"),
        (MemoryError(), 1, "failed"),
    ],
)
def test_how_a_stage_ends_is_the_exit_code(capsys, runs, monkeypatch, error, code, status):
    def work(*_args):
        raise error

    monkeypatch.setattr(stages, "STAGES", {"sft": work})
    got, out, err = danlu(capsys, "sft", "mine.yaml", "--name", "n", "--display", "none")
    assert (got, out, len(err.splitlines())) == (code, "", 2), err
    assert Run.open(runs / "n").info()["status"] == status


@pytest.mark.usefixtures("calls")
def test_json_of_a_stage_is_one_object(capsys, runs):
    _, out, _ = danlu(capsys, "sft", "mine.yaml", "--json")
    (stage,) = json.loads(out)["stages"]
    assert stage == {
        "stage": "sft",
        "run": str(runs / "mine-sft"),
        "artifact": str(runs / "mine-sft" / "artifact"),
        "results": {"loss": 0.5, "seed": 42},
    }


# ---- data

POTS = """\
name: pots
stages: [sft, eval]
model: {id: tiny}
data: {train: pots.jsonl, valid_fraction: 0.25, max_length: 96}
eval: {benchmarks: [{name: kiln, path: kiln.jsonl}]}
"""
CONTRACT = {"rows", "lengths", "supervised_share", "findings"}


@pytest.fixture
def pots() -> list[dict]:
    """A recipe with four rows of its own, and a benchmark of one question that none of them asks."""
    clays = ["kaolin", "ball clay", "fire clay", "red clay"]
    rows = [
        {"id": clay, "question": f"Which vessel does a potter throw from {clay}?", "answer": f"A jar of {clay}."}
        for clay in clays
    ]
    rows = [{**row, "think": f"Each clay has one vessel, and {row['id']} has the jar."} for row in rows]
    asked = {"id": "k1", "question": "How many degrees centigrade does a kiln for stoneware reach?", "target": "1250"}
    Path("pots.yaml").write_text(POTS, encoding="utf-8")
    write_rows("pots.jsonl", rows)
    write_rows("kiln.jsonl", [asked])
    return rows


def write_rows(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def codes(report: dict, level: str) -> list[str]:
    return [found["code"] for found in report["findings"] if found["level"] == level]


def test_data_check_of_good_rows(capsys, pots, runs):
    code, out, _ = danlu(capsys, "data", "check", "pots.yaml", "--json")
    report = json.loads(out)
    assert (code, report["ok"], codes(report, "error")) == (0, True, [])
    assert set(report) >= CONTRACT
    assert {name: report["rows"][name] for name in ("in", "kept", "rejected")} == {"in": 4, "kept": 4, "rejected": 0}
    assert 0 < report["supervised_share"] < 1
    code, out, _ = danlu(capsys, "data", "check", "pots.yaml")
    assert (code, out.splitlines()[1]) == (0, "pots, tiny")
    assert "4 rows read, 4 kept, 0 rejected: 3 to train, 1 to validate" in out
    assert len(pots) == 4
    assert not runs.exists()


def test_data_check_of_rows_that_hold_a_benchmark(capsys, pots):
    question = json.loads(Path("kiln.jsonl").read_text())["question"]
    write_rows("pots.jsonl", [{**row, "question": question} if row["id"] == "red clay" else row for row in pots])
    no_split = ["--set", "data.valid_fraction=0"]  # so that the row is a training row whatever the shuffle
    code, out, err = danlu(capsys, "data", "check", "pots.yaml", "--json", "--html", "page.html", *no_split)
    report = json.loads(out)
    assert (code, report["ok"], codes(report, "error")) == (1, False, ["leakage"])
    (leak,) = [found for found in report["findings"] if found["code"] == "leakage"]
    assert set(leak) >= {"code", "level", "count", "examples"}
    assert leak["count"] == 1
    assert "k1" in leak["examples"][0]
    assert "red clay" in leak["examples"][0]
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "leakage" in page
    assert "written: page.html" in err
    left = ["kiln.jsonl", "mine.yaml", "page.html", "pots.jsonl", "pots.yaml"]
    assert sorted(path.name for path in Path().iterdir()) == left
    dropped = ["--set", "data.decontaminate=true"]
    code, out, _ = danlu(capsys, "data", "check", "pots.yaml", "--json", *no_split, *dropped)
    assert (code, codes(json.loads(out), "info")[:1]) == (0, ["leakage"])


@pytest.mark.usefixtures("pots")
def test_data_check_without_a_recipe(capsys):
    code, out, _ = danlu(capsys, "data", "check", "--model", "tiny", "--data", "pots.jsonl", "--json")
    report = json.loads(out)
    assert (code, report["model"], report["rows"]["train"]) == (0, "tiny", 4)


@pytest.mark.usefixtures("pots")
def test_data_view_shows_what_carries_loss(capsys, runs):
    code, out, _ = danlu(capsys, "data", "view", "pots.yaml", "--row", "1", "--count", "2", "--json")
    rows = json.loads(out)["rows"]
    assert (code, [row["row"] for row in rows]) == (0, [1, 2])
    for row in rows:
        kinds = [piece["kind"] for piece in row["pieces"]]
        assert kinds == ["context", "supervised", "end"]
        assert sum(piece["tokens"] for piece in row["pieces"]) == row["tokens"]
        assert row["pieces"][1]["text"].startswith("<think>\nEach clay")
        assert row["pieces"][1]["text"].endswith(f"</think>\n\nA jar of {row['id']}.")
    code, out, _ = danlu(capsys, "data", "view", "pots.yaml", "--html", "rows.html")
    assert (code, out) == (0, "")
    assert Path("rows.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not runs.exists()


@pytest.mark.usefixtures("pots")
def test_data_prepare_leaves_exactly_these_files(capsys, runs):
    with Path("pots.jsonl").open("a") as file:
        file.write('{"question": "no answer"}\n')
    code, out, _ = danlu(capsys, "data", "prepare", "pots.yaml", "--set", "data.on_bad_row=skip", "--display", "none")
    run = runs / "pots-data"
    assert (code, out) == (0, f"{run / 'artifact'}\n")
    splits = [f"{split}.jsonl" for split in ("train", "valid")]
    wanted = ["config.json", "recipe.yaml", "rejected.jsonl", "run.json"]
    wanted += [f"artifact/{name}" for name in ("README.md", "card.json", "check.html", "check.json")]
    wanted += [f"artifact/rows/{name}" for name in splits]
    wanted += [f"artifact/export/{form}/{n}" for form in ("messages", "prompt_completion", "text") for n in splits]
    wanted += ["artifact/export/messages/dataset_info.json"]
    wanted += [
        f"artifact/tokens/{split}/{name}"
        for split in ("train", "valid")
        for name in ("loss.bin", "offsets.npy", "rows.json", "tokens.bin")
    ]
    assert sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) == sorted(wanted)
    shown = json.loads(danlu(capsys, "show", "pots-data", "--json")[1])
    assert (shown["status"], shown["results"]["counts"]["rejected"]) == ("done", 1)
    again = danlu(capsys, "data", "check", "--model", "tiny", "--data", f"{run}/artifact/rows/train.jsonl", "--json")
    assert (again[0], json.loads(again[1])["rows"]["train"]) == (0, 3)


# ---- readers


def test_ls_lists_also_what_died_or_broke(capsys, runs):
    assert danlu(capsys, "ls")[1] == f"no runs in {runs} yet\n"
    made(runs, "good", results={"accuracy": 0.75})
    Run.create(runs / "gone", "grpo", {})
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text("{")
    rows = {row["name"]: row for row in json.loads(danlu(capsys, "ls", "--json")[1])["runs"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "good": "done",
        "gone": "died",
        "broken": "unreadable",
    }
    assert (rows["good"]["key"], rows["good"]["value"]) == ("accuracy", 0.75)
    text = danlu(capsys, "ls")[1]
    assert text.splitlines()[0].split() == ["NAME", "STAGE", "STATUS", "RESULT", "STARTED", "TOOK"]
    assert "accuracy 0.75" in text


def test_an_evaluation_is_listed_with_its_accuracy_over_all_questions(capsys, runs):
    benchmarks = {"a": {"n": 3, "accuracy": 1.0}, "b": {"n": 1, "accuracy": 0.0}}
    made(runs, "eval", "eval", results={"benchmarks": benchmarks})
    (row,) = json.loads(danlu(capsys, "ls", "--json")[1])["runs"]
    assert (row["key"], row["value"]) == ("accuracy", 0.75)


@pytest.mark.parametrize("good", [True, False])
def test_verify_exits_1_when_a_check_fails(capsys, runs, monkeypatch, good):
    from danlu.export import parity

    run = made(runs, "out", "export")
    (run.path / "model").mkdir()
    (run.path / "model" / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    run.artifact.mkdir()
    described = {"kind": "gguf", "gguf": "m.gguf", "quant": "q8_0", "source": "../model"}
    (run.artifact / "danlu.json").write_text(json.dumps(described))
    asked = []

    def verify(gguf, source, *, quant):
        asked.append((gguf, source, quant))
        return {"ok": good, "checks": [{"name": "tokens", "ok": good, "value": 1, "limit": 2}]}

    monkeypatch.setattr(parity, "verify", verify)
    code, out, _ = danlu(capsys, "verify", "out", "--json")
    assert (code, json.loads(out)["ok"]) == (int(not good), good)
    assert asked == [(run.artifact / "m.gguf", (run.path / "model").resolve(), "q8_0")]
    assert ("FAILED" in danlu(capsys, "verify", "out")[1]) is not good


def test_plots_lie_in_the_run(capsys, runs):
    made(runs, "good")
    code, out, err = danlu(capsys, "plot", "good")
    assert (code, Path(out.strip()).suffix) == (0, ".png"), err
    assert Path(out.strip()).is_relative_to(runs / "good")


def test_score_and_compare_files(capsys):
    rows = [{"id": str(n), "question": f"q{n}", "target": "B", "options": {"A": "x", "B": "y"}} for n in range(12)]
    for name, letter in (("before", "A"), ("after", "B")):
        lines = [json.dumps({**row, "output": f"答案：{letter}"}, ensure_ascii=False) for row in rows]
        Path(f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    code, out, _ = danlu(capsys, "score", "after.jsonl", "--json")
    assert (code, json.loads(out)["summary"]["accuracy"]) == (0, 1.0)
    code, out, _ = danlu(capsys, "compare", "before.jsonl", "after.jsonl", "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "better")
    code, out, _ = danlu(capsys, "compare", "before.jsonl", "after.jsonl")
    assert out.splitlines()[1].split()[:4] == ["BENCHMARK", "N", "BASE", "TUNED"]
    assert danlu(capsys, "compare", "after.jsonl", "nothing.jsonl")[0] == 2
    with Path("after.jsonl").open("a") as file:
        file.write('{"id": "cu')
    assert "the last line of after.jsonl is not JSON" in danlu(capsys, "score", "after.jsonl")[2]


class Echo:
    """A generator that streams what it was asked."""

    name, streamed = "echo", Streamed()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def chat_stream(self, messages, _sampling):
        yield "reasoning", "hm"
        yield "answer", " ".join(message["content"] for message in messages)


@pytest.mark.parametrize("piped", [True, False])
def test_chat_answers_one_question_without_its_reasoning_in_a_pipe(capsys, monkeypatch, piped):
    module = type(sys)("danlu.generate.open")
    module.open_generator = lambda _target, _recipe: Echo()
    monkeypatch.setitem(sys.modules, "danlu.generate.open", module)
    monkeypatch.setattr(sys, "stdin", io.StringIO("发热？\n"))
    question = [] if piped else ["--once", "发热？"]
    assert danlu(capsys, "chat", "m", "--system", "be brief", *question) == (0, "be brief 发热？\n", "")


def test_show_takes_a_name_or_a_directory(capsys, runs):
    made(runs, "good", results={"accuracy": 0.75})
    by_name, by_path = danlu(capsys, "show", "good"), danlu(capsys, "show", str(runs / "good"))
    assert by_name == by_path
    assert "accuracy 0.75" in by_name[1]
    assert "some/model" in by_name[1]


def test_show_writes_a_page(capsys, runs):
    made(runs, "good")
    assert danlu(capsys, "show", "good", "--html", "good.html") == (0, "", "written: good.html\n")
    assert "<h1>good</h1>" in Path("good.html").read_text(encoding="utf-8")
    code, _, err = danlu(capsys, "show", "good", "--html", "nowhere/good.html")
    assert (code, "mkdir -p nowhere" in err) == (2, True)


def test_doctor_gives_a_hint_for_every_gap(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    checks = {check.name: check for check in diagnose()}
    assert checks["torch"].level == checks["python"].level == "ok"
    assert checks["hub"].level == "gap"
    assert all(check.hint for check in checks.values() if check.level != "ok")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert {check.name: check for check in diagnose()}["hub"].level == "ok"


def test_doctor_is_broken_only_by_what_the_default_path_needs(capsys, monkeypatch):
    from danlu.cli import doctor

    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "gguf" else "1")
    code, out, _ = danlu(capsys, "doctor", "--json")
    assert (code, json.loads(out)["ok"]) == (1, False)
    assert [c["name"] for c in json.loads(out)["checks"] if c["level"] == "broken"] == ["gguf"]


def test_native_bf16_is_amx_or_avx512():
    assert native_bf16({"avx512f", "avx2"}) == []
    assert native_bf16({"avx512_bf16", "amx_bf16"}) == ["amx_bf16", "avx512_bf16"]


# ---- real processes


def start(*args: str, code: str = "") -> subprocess.Popen:
    program = code or "import sys; from danlu.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", program, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )


def test_the_installed_program_fails_with_its_exit_code():
    done = subprocess.run([Path(sys.executable).with_name("danlu"), "sfy"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "error: no such command 'sfy'\nhint: did you mean sft?\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_a_stage_which_records_it(runs, number, code):
    program = (
        "import sys, time\nfrom danlu.cli import main, stages\n"
        "stages.STAGES['sft'] = lambda *_: time.sleep(60)\nsys.exit(main())"
    )
    process = start("sft", "mine.yaml", "--name", "n", code=program)
    lock = runs / "n" / "lock"
    deadline = time.monotonic() + 30
    while not lock.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, ""), err
    assert "Traceback" not in err
    assert Run.open(runs / "n").state() == "stopped"


def test_a_closed_pipe_is_no_traceback():
    process = start("recipes")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.wait(timeout=30)
    process.stderr.close()


def test_a_full_disk_is_two_lines_and_not_a_bug(monkeypatch, capsys):
    from danlu import cli
    from danlu.run import Run

    def full(*_args, **_keywords):
        raise OSError(28, "No space left on device", "runs/x/metrics.jsonl")

    monkeypatch.setattr(Run, "open", full)
    assert cli.main(["show", "x"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[0] == "error: cannot write runs/x/metrics.jsonl: No space left on device"
    assert error[1].startswith("hint: free some space")
