"""Rehearsals end to end: every shipped recipe, and faults that were planted, each found and named before any training.

Offline. Real tokenizers and real rows are used where ../shared is there; without it the shipped base's tokenizer and
the miniature world stand in, which is a case of its own.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from danlu.cli import main
from danlu.display import Task
from danlu.errors import DanluError
from danlu.models.tokenizer import speech_of
from danlu.recipe import Recipe, load, parse, shipped
from danlu.records import Sample
from danlu.rehearse import outlook, training
from danlu.rehearse.book import Book, Finding, Page, out_of_reach
from danlu.rehearse.model import TEMPLATES, StandIn, described, shrunk, stand_in
from danlu.rehearse.rehearse import rehearse
from danlu.rehearse.rewards import try_rewards
from danlu.rehearse.rows import open_benchmarks, read_rows, with_benchmarks
from danlu.rehearse.shipping import evaluate_few
from danlu.run import Run
from tiny_models import CHATS, adapter, build, trained

SHARED = Path(__file__).parents[2] / "shared"
ROWS = {
    "modelscope:krisfu/delicate_medical_r1_data": "sft/delicate_medical_r1.jsonl",
    "FreedomIntelligence/medical-o1-reasoning-SFT": "sft/medical_o1_sft_English.json",
    "FreedomIntelligence/medical-o1-verifiable-problem": "rl/medical_o1_verifiable_problem.json",
    "fzkuji/CMExam": "bench/medqa_mainland_test.json",
}
EXAMS = {"cmexam": "bench/cmexam_val.jsonl", "medqa-us": "bench/medqa_us_4opt_test.jsonl"}
WORDS = {
    "qwen3": "Qwen3-1.7B",
    "qwen2.5": "Qwen2.5-Instruct",
    "r1-distill": "DeepSeek-R1-Distill-Qwen",
}


# ---- small recipes of our own


def write_rows(path: Path, count: int = 8, **changes: Any) -> Path:
    rows = []
    for n in range(count):
        question, reasoning, answer = CHATS[n % len(CHATS)]
        rows.append({"question": f"{question} ({n})", "reasoning": reasoning, "answer": answer, **changes})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def write_questions(path: Path, first: int, count: int = 8) -> Path:
    rows = [{"question": f"Add {n} to {3 * n}.", "target": str(4 * n)} for n in range(first, first + count)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    build(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def small(tmp_path: Path, base: Path, runs: Path) -> Callable[..., Recipe]:
    """A recipe on a tiny model and eight rows; keyword arguments are its sections."""

    def make(**sections: Any) -> Recipe:
        value: dict[str, Any] = {
            "name": "mine",
            "stages": ["sft", "eval"],
            "model": {"id": str(base), "dtype": "fp32"},
            "data": {"train": str(write_rows(tmp_path / "rows.jsonl")), "max_length": 256, "valid_fraction": 0.25},
            "sft": {"precision": "fp32", "lora": {"r": 4, "alpha": 8}, "save_every": 100},
            "grpo": {"data": str(write_questions(tmp_path / "prompts.jsonl", 20)), "max_completion": 24},
            "eval": {"benchmarks": [{"name": "own", "path": str(write_questions(tmp_path / "questions.jsonl", 0))}]},
        }
        for name, changes in sections.items():
            value[name] = {**value.get(name, {}), **changes} if isinstance(changes, dict) else changes
        return Recipe.model_validate(value)

    assert runs.parent == tmp_path
    return make


def findings(result: dict[str, Any], level: str = "error") -> list[dict[str, str]]:
    return [f for stage in result["stages"] for f in stage["findings"] if f["level"] == level]


def stage_of(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(stage for stage in result["stages"] if stage["name"] == name)


def looked(recipe: Recipe, folder: Path) -> tuple[list[Finding], list[str], StandIn]:
    """What a rehearsal finds before it trains: (findings, what is not rehearsed, the stand-in of the model)."""
    page, book = Page(), Book(Task("rehearse", 1))
    stand = stand_in(recipe.model, folder / "model", 0, page, book)
    entries, _ = open_benchmarks(recipe, "in the evaluation", page, book)
    read_rows(with_benchmarks(recipe, entries), stand, folder / "rows", page, book)
    return page.findings, book.not_rehearsed, stand


def errors(found: list[Finding]) -> list[Finding]:
    return [one for one in found if one.level == "error"]


# ---- the whole of it


def test_a_recipe_of_ones_own_rehearses_whole_and_leaves_nothing(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DANLU_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    rows = write_rows(tmp_path / "rows.jsonl", 5)
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"question": "long?", "reasoning": "word " * 900, "answer": "yes"}) + "\n")
    recipe = {
        "name": "mine",
        "stages": ["sft", "eval", "export"],
        "data": {"train": str(rows), "max_length": 200, "valid_fraction": 0.2},
        "sft": {"optimizer": {"name": "paged_adamw_8bit"}, "lora": {"r": 4, "dropout": 0.1}},
        "eval": {"benchmarks": [{"name": "clinic", "path": "world:test", "limit": 20}]},
        "export": {"num_ctx": 1024},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    assert main(["rehearse", str(tmp_path / "mine.yaml"), "--json", "--display", "none"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ok"]
    assert result["not_rehearsed"] == []
    names = ["model", "benchmarks", "rows", "outlook", "sft", "sft resume", "eval", "merge", "export", "answer"]
    assert [stage["name"] for stage in result["stages"]] == names
    assert all({"name", "ok", "seconds", "findings"} == set(stage) for stage in result["stages"])
    told = [f["what"] for f in findings(result, "warning")]
    assert any(text.startswith("1 of 5 rows are longer than max_length 200") for text in told)
    assert any("unpaged" in text for text in told)
    assert any("checks of the file through llama.cpp" in f["what"] for f in findings(result, "info"))
    assert not runs.exists()
    assert not (tmp_path / "xdg").exists()
    assert "DANLU_CACHE" not in os.environ


@pytest.mark.slow
def test_grpo_rehearses_with_a_gradient_and_keeps_what_is_asked_for(small: Callable[..., Recipe], runs: Path) -> None:
    rewards = ["answer", {"name": "think_format", "weight": 0.1}]
    questions = small().eval.benchmarks[0].path
    made = small(
        stages=["data", "grpo", "eval"],
        model={"id": str(trained())},
        grpo={"rewards": rewards, "temperature": 1.5, "patience": 2, "eval_every": 5, "valid": questions},
    )
    result = rehearse(made, keep=True)
    assert result["ok"], findings(result)
    kept = Path(result["kept"])
    assert kept == runs / "mine-rehearsal"
    assert json.loads((kept / "rehearsal.json").read_text("utf-8"))["ok"]
    whole, parts = Run.open(kept / "grpo"), Run.open(kept / "grpo-killed")
    assert [row["step"] for row in whole.metrics() if "reward" in row] == [1, 2]
    assert any(row.get("grad_norm") for row in whole.metrics())
    assert parts.info()["resumed"] == 1
    assert training.differences(whole, parts) == []
    assert (kept / "data" / "artifact" / "README.md").is_file()
    assert not list(runs.glob(".rehearsal-*"))
    assert "a right answer earns 1.1" in str(findings(result, "info"))


def real(name: str) -> list[str]:
    """--set of a shipped recipe that brings a tokenizer and rows from ../shared; skips without them."""
    words = next((folder for start, folder in WORDS.items() if name.startswith(start)), None)
    if not (SHARED / "data").is_dir() or not (SHARED / "tokenizers").is_dir():
        pytest.skip("needs ../shared")
    recipe, changes = load(name), [f"model.tokenizer={SHARED / 'tokenizers' / words}"] if words else []
    changes += ["data.decontaminate=true"] if words else []  # Chinese exams share questions
    for key in ("data.train", "grpo.data", "grpo.valid", "eval.benchmarks"):
        section, _, last = key.partition(".")
        entries = getattr(getattr(recipe, section), last)
        for at, entry in enumerate(entries):
            path = EXAMS.get(entry.name) if section == "eval" else ROWS.get(entry.path)
            if path:
                changes += [f"{key}.{at}.path={SHARED / 'data' / path}", f"{key}.{at}.subset=null"]
    return changes


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_rehearses_on_real_rows(name: str, runs: Path) -> None:
    result = rehearse(load(name, real(name)))
    assert result["ok"], findings(result)
    left_out = [what for what in result["not_rehearsed"] if not what.startswith(("model ", "grpo.filter: random"))]
    assert not left_out
    trained = [stage for stage in load(name).stages if stage in ("sft", "grpo")]
    done = {stage["name"] for stage in result["stages"]}
    assert {"merge", "export", "answer", *(f"{stage} resume" for stage in trained)} <= done
    assert not runs.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped())
@pytest.mark.usefixtures("runs")
def test_a_shipped_recipe_rehearses_with_nothing_at_hand(name: str) -> None:
    """No hub, no ../shared, no ModelScope client: what stands in is said, and nothing else fails."""
    result = rehearse(load(name))
    wrong = [f["what"] for f in findings(result)]
    assert all("ModelScope client" in what for what in wrong), wrong
    away = load(name).model.id
    if away != "tiny":
        assert any(what.startswith(f"model {away}: it cannot be fetched") for what in result["not_rehearsed"])
        assert wrong or any("YOUR ROWS WERE NOT REHEARSED" in what for what in result["not_rehearsed"])
    assert stage_of(result, "answer")["ok"]


# ---- planted faults


def test_a_benchmark_that_does_not_exist_is_named(small: Callable[..., Recipe], tmp_path: Path) -> None:
    gone = [{"name": "cmexm"}, {"name": "gone", "path": "gone.jsonl"}, {"name": "far", "path": "nobody/nothing"}]
    found, away, _ = looked(small(eval={"benchmarks": gone}), tmp_path)
    unknown, missing = errors(found)
    assert "no benchmark or suite 'cmexm'" in unknown.what
    assert "cmexam" in unknown.do
    assert missing.what.startswith("benchmark gone cannot be loaded: gone.jsonl does not exist")
    assert missing.when == "in the evaluation"
    assert away == ["benchmark far: nobody/nothing cannot be fetched from here"]  # which is no failure


@pytest.mark.slow
def test_faults_do_not_hide_one_another(small: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]) -> None:
    """A benchmark, the LoRA targets, the export: each found in one rehearsal, with the moment of the real run."""
    lora = {"targets": ["c_attn"]}
    made = small(stages=["sft", "eval", "export"], sft={"lora": lora}, eval={"benchmarks": ["no-such-one"]})
    Path("broken.yaml").write_text(yaml.safe_dump(made.resolved(), allow_unicode=True), "utf-8")
    try:
        assert main(["rehearse", "broken.yaml", "--display", "none"]) == 1
    finally:
        Path("broken.yaml").unlink()
    told = capsys.readouterr().out
    assert "FAILS, in the evaluation of the base, before training: no-such-one cannot be loaded" in told
    assert "FAILS, at the start of sft, before its first step is done: LoRA does not fit this model" in told
    assert "not rehearsed: sft resume: sft failed" in told
    assert "mine: 2 things would fail" in told
    assert "answer      ok" in told  # the untrained stand-in was exported and asked


def test_without_questions_the_evaluation_has_nothing_to_do(small: Callable[..., Recipe]) -> None:
    from danlu.rehearse.rehearse import _questions

    page = Page()
    assert _questions(small(eval={"benchmarks": []}), "then", page, Book(Task("rehearse", 1))) == ([], {})
    assert [one.what for one in page.findings] == ["there is nothing to evaluate"]


def test_rows_beyond_max_length_are_counted(small: Callable[..., Recipe], tmp_path: Path) -> None:
    long = write_rows(tmp_path / "long.jsonl", 20, reasoning="长" * 300)
    made = small(data={"train": [str(tmp_path / "rows.jsonl"), str(long)], "valid_fraction": 0})
    found, _, _ = looked(made, tmp_path)
    (told,) = [one for one in found if "longer than max_length" in one.what]
    assert told.what.startswith("20 of 28 rows are longer than max_length 256")
    assert "they are dropped" in told.what
    assert told.level == "warning"


@pytest.mark.slow
def test_a_data_set_in_which_no_row_fits_fails(small: Callable[..., Recipe], tmp_path: Path) -> None:
    long = write_rows(tmp_path / "long.jsonl", 6, reasoning="长" * 300)
    result = rehearse(small(stages=["sft"], data={"train": str(long), "valid_fraction": 0}))
    first, second = findings(result)
    assert first["what"].startswith("6 of 6 rows are longer than max_length 256")
    assert "no row fits into data.max_length = 256 tokens" in second["what"]
    assert second["when"] == "at the start of sft, before its first step is done"


def test_a_bad_row_that_would_stop_training_is_named(small: Callable[..., Recipe], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(write_rows(tmp_path / "good.jsonl").read_text("utf-8") + '{"question": "no answer"}\n', "utf-8")
    found, _, _ = looked(small(data={"train": str(bad)}), tmp_path)
    (wrong,) = errors(found)
    assert wrong.when == "at the start"
    assert "bad.jsonl line 9: answer is empty" in wrong.what
    assert any("training rows: 9 read; 6 train, 2 valid, 1 rejected" in one.what for one in found)  # the rest goes on


def test_data_that_is_not_there_is_a_failure_but_data_out_of_reach_is_not(
    small: Callable[..., Recipe], tmp_path: Path
) -> None:
    found, away, _ = looked(
        small(data={"train": ["gone.jsonl", "nobody/nothing", str(tmp_path / "rows.jsonl")]}), tmp_path
    )
    (wrong,) = errors(found)
    assert "gone.jsonl does not exist" in wrong.what
    assert away == ["data nobody/nothing: it cannot be fetched from here, YOUR ROWS WERE NOT REHEARSED"]
    assert any("training rows: 8 read" in one.what for one in found)  # those that can be read are


def test_a_template_that_deletes_reasoning_is_told(small: Callable[..., Recipe], tmp_path: Path) -> None:
    build(tmp_path / "r1", "qwen2", "r1")
    found, _, stand = looked(small(model={"id": str(tmp_path / "r1")}), tmp_path)
    assert any("the chat template deletes the reasoning of assistant turns" in one.what for one in found)
    assert "opened by the template" in described(stand)


def test_an_end_token_that_is_never_trained_is_a_failure(small: Callable[..., Recipe], tmp_path: Path) -> None:
    long = write_rows(tmp_path / "long.jsonl", 6, reasoning="长" * 300)
    found, _, _ = looked(small(data={"train": str(long), "overlong": "truncate", "valid_fraction": 0}), tmp_path)
    told = {one.when: one.what for one in errors(found)}
    assert "6 of 6 rows never train the end token <|im_end|>" in told["after training: answers would not end"]


def test_a_reward_that_raises_is_named_with_file_and_line(small: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def brief(sample, completion):\n    return 1 / len(completion.answer)\n", "utf-8"
    )
    nobody = {"name": "judge", "endpoint": "http://127.0.0.1:9/v1#judge"}
    made = small(grpo={"rewards": ["answer", {"python": f"{tmp_path / 'mine.py'}:brief"}, nobody]})
    page = Page()
    working = try_rewards(made.grpo, [SUM], speech_of(made.model), page)
    assert [spec.label for spec in working] == ["answer"]
    raising, judge = errors(page.findings)
    assert raising.when == "grpo, step 1"
    assert "reward 'brief' failed on sample a: ZeroDivisionError" in raising.what
    assert "mine.py line 2" in raising.what
    assert "127.0.0.1:9" in judge.what
    assert any(one.what == "a right answer earns 1, a wrong one 0 (1 prompts)" for one in page.findings)


SUM = Sample("a", ({"role": "user", "content": "2+2?"},), target="4", distractors=("5",))


def test_rewards_that_pay_nothing_for_a_right_answer_are_told(small: Callable[..., Recipe]) -> None:
    made, page = small(grpo={"rewards": ["think_format", "stop"]}), Page()
    assert len(try_rewards(made.grpo, [SUM], speech_of(made.model), page)) == 2
    (found,) = page.findings
    assert found.level == "error"
    assert found.what == "nothing can be learnt: a right answer earns 2, a wrong one 2 (1 prompts)"


def test_a_judge_that_does_not_answer_is_named_and_the_rest_is_judged(
    small: Callable[..., Recipe], tmp_path: Path
) -> None:
    made = small(eval={"judge": "http://127.0.0.1:9/v1#judge", "max_tokens": 4})
    page = Page()
    evaluate_few(made, None, {"own": [SUM]}, tmp_path, "in the evaluation", page)
    (wrong,) = errors(page.findings)
    assert wrong.what.startswith("the judge does not answer: ")
    assert any("1 answers of own were given and judged" in one.what for one in page.findings)


@pytest.mark.slow
def test_files_that_may_not_grow_are_met_where_the_real_run_would_meet_them(small: Callable[..., Recipe]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        result = rehearse(small(stages=["sft"]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told = [f for f in findings(result) if "cannot write a checkpoint" in f["what"]]
    assert [f["when"] for f in told] == ["sft, at the first checkpoint (step 100)"]
    assert any("and files may have 0 MB here" in f["what"] for f in findings(result))


def test_a_disk_that_is_too_small_is_told_with_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10**12, 10**12 - 10**9, 10**9)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    page = Page()
    needs = [("sft, later", "a checkpoint", 6e8, 3e8), ("in the export", "the q8_0 file", 3.4e9, 3.4e9)]
    outlook.check_disk(needs, page)
    (found,) = page.findings
    assert (found.level, found.when) == ("error", "in the export")
    assert found.what == "disk: the q8_0 file needs 3.4 GB, 1.0 GB are free (600 MB are written before)"


def test_a_tracker_that_is_not_installed_is_told(small: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    from danlu.rehearse.rows import Rows
    from danlu.train import trackers

    monkeypatch.setattr(trackers, "PACKAGES", {**trackers.PACKAGES, "wandb": ("no_such_package",)})
    page = Page()
    outlook.foresee(small(sft={"track": ["wandb"]}), Rows(), page, Book(Task("rehearse", 1)))
    (wrong,) = errors(page.findings)
    assert wrong.what == "track: wandb cannot be used, the package is not installed"


@pytest.mark.parametrize(("targets", "wrong"), [(["q_proj", "w_proj"], ["w_proj"]), (["q_proj", "v_proj"], [])])
def test_lora_targets_that_are_silently_left_out_are_told(
    targets: list[str], wrong: list[str], base: Path, tmp_path: Path
) -> None:
    adapter(base, tmp_path / "artifact", target_modules=targets)
    assert training.left_out(tmp_path, targets) == wrong


# ---- resuming


def test_a_slow_process_is_waited_for_and_one_that_stands_still_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coming up takes longer than the patience here; it ends by itself, as there is nothing to train."""
    monkeypatch.setattr(training, "PATIENCE", 1)
    monkeypatch.setattr(training, "_threads", lambda: 100)
    still = training.Victim()
    os.kill(still._process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            still.wait()
    finally:
        still.end()
    monkeypatch.setattr(training, "IDLE", -1.0)  # even a machine that halts is waited for
    assert training.Victim().wait() == (0, "nothing was said")


def test_a_resumed_run_that_differs_is_found(tmp_path: Path) -> None:
    a, b = (Run.create(tmp_path / name, "sft", {}) for name in "ab")
    for run, loss in ((a, 2.5), (b, 2.25)):
        run.log({"step": 1, "loss": 3.0, "tokens_per_second": loss})
        run.log({"step": 2, "loss": loss})
        (run.path / "artifact").mkdir()
        (run.artifact / "adapter_model.safetensors").write_bytes(str(loss).encode())
    assert training.differences(a, a) == []
    assert training.differences(a, b) == ["loss of step 2 is 2.5, then 2.25", "adapter_model.safetensors"]
    b.log({"step": 2, "eval_loss": 1.0})
    assert training.differences(a, b) == ["2 rows of metrics, then 3"]


# ---- stand-ins


@pytest.mark.parametrize(
    ("name", "kind", "style", "opened", "drops"),
    [
        ("Qwen/Qwen3-1.7B", "qwen3", "think", "model", False),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "qwen2", "think", "template", True),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama", "think", "template", True),
        ("Qwen/Qwen2.5-3B-Instruct", "qwen2", "none", "nobody", False),
        ("somebody/unheard-of", "qwen3", "think", "model", False),
    ],
)
def test_a_model_out_of_reach_is_replaced_by_one_that_reasons_alike(
    name: str, kind: str, style: str, opened: str, drops: bool, tmp_path: Path
) -> None:
    page, book = Page(), Book(Task("rehearse", 1))
    found = stand_in(parse(f"name: a\nmodel: {{id: {name}}}").model, tmp_path / "model", 0, page, book)
    config = json.loads((tmp_path / "model" / "config.json").read_text("utf-8"))
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == (kind, 2, 64)
    think = found.speech.think
    assert (think.style, think.opened_by, think.drops_reasoning) == (style, opened, drops)
    assert (page.findings, found.own_words) == ([], False)
    (told,) = book.not_rehearsed
    assert told.startswith(f"model {name}: it cannot be fetched from here")
    assert "lengths in tokens are not the real ones" in told


def test_a_random_model_ends_its_turn_now_and_then(tmp_path: Path) -> None:
    from danlu.generate import Sampling
    from danlu.generate.local import LocalGenerator
    from danlu.models.load import load as load_model

    book = Book(Task("rehearse", 1))
    found = stand_in(parse("name: a\nmodel: {id: Qwen/Qwen3-0.6B}").model, tmp_path / "model", 0, Page(), book)
    generator = LocalGenerator(load_model(found.spec.model_copy(update={"dtype": "fp32"})))
    chats = [[{"role": "user", "content": text}] for text in ("a", "b", "c", "d")]
    drawn = [one for _, group in generator.generate(chats, Sampling(60, 1.0, 1.0, 8)) for one in group]
    ended = sum(one.finish == "stop" for one in drawn)
    assert 4 <= ended < 32
    assert len({len(one.tokens) for one in drawn}) > 4


def test_the_stand_in_keeps_what_an_architecture_is_made_of() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=1000,
        hidden_size=1024,
        head_dim=128,
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=True,
    )
    small = shrunk(config)
    assert (small.vocab_size, small.tie_word_embeddings, small.head_dim) == (1000, True, 32)  # heads of their own width
    assert (small.num_attention_heads, small.num_key_value_heads) == (4, 4)
    llama = AutoConfig.for_model("llama", hidden_size=4096, num_attention_heads=32, num_key_value_heads=8)
    assert (shrunk(llama).head_dim, shrunk(llama).num_key_value_heads) == (16, 2)


def test_templates_of_stand_ins_are_what_they_are_called() -> None:
    assert "<think>" in TEMPLATES["opened"]
    assert "<think>" not in TEMPLATES["plain"]
    assert "CUT" not in TEMPLATES["opened"] + TEMPLATES["plain"]


def test_what_is_out_of_reach_is_told_from_what_is_not_there() -> None:
    class TransportError(Exception):
        """As the hub's client has one."""

    def fetch() -> None:
        try:
            raise TransportError("no route")
        except TransportError:
            raise DanluError("cannot get it") from None

    with pytest.raises(DanluError) as raised:
        fetch()
    assert out_of_reach(raised.value)
    assert not out_of_reach(DanluError("no such repository"))


def test_an_interruption_ends_a_rehearsal_and_cleans_up(
    small: Callable[..., Recipe], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import danlu.rehearse.rehearse as module

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "open_benchmarks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rehearse(small())
    assert not runs.exists()
