"""GRPO against a naive step; what a run records, and what happens when something goes wrong."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import new_run, recipe, write_questions
from stepping import Seen, naive, own_reward
from transformers import AutoModelForCausalLM

from danlu.errors import DanluError, Stopped
from danlu.recipe import Recipe
from danlu.run import Run, write_json
from danlu.train import grpo as stage
from danlu.train import rollout as rollouts_of
from danlu.train.grpo import forwards, grpo, without_dropout
from danlu.train.metrics import MEASURED
from tiny_models import CHATS, trained


@pytest.fixture(scope="module")
def base() -> Path:
    return trained()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "questions.jsonl")


def ran(made: Recipe, path: Path, start: str | None = None, resume: bool = False) -> Run:
    run = new_run(path, made, "grpo", resume=resume)
    with run.recording():
        run.record(**grpo(made, run, start))
    return run


def plain(run: Run) -> list[dict[str, Any]]:
    """The metrics without what is measured."""
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in run.metrics()]


# ---- a whole step against a naive one

OPTIMIZER = {"lr": 2e-3, "schedule": "constant", "warmup": 0.0, "clip": 1e9}
SMALL = {"prompts": 8, "group": 3, "temperature": 1.45, "max_completion": 11, "micro_batch": 1, "max_prompt": 40}
SMALL |= {"optimizer": OPTIMIZER}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kl": 0.2, "top_p": 0.95},
        {"iterations": 3, "steps": 3},
        {"mask_truncated": False, "kl": 0.1, "iterations": 2, "clip_low": 0.01, "clip_high": 0.02},
        {"loss": "grpo", "importance": "sequence"},
        {"loss": "dr_grpo", "importance": "off"},
        {"loss": "gspo", "iterations": 2, "steps": 2},
    ],
    ids=lambda settings: " ".join(f"{k} {v}" for k, v in settings.items()) or "plain",
)
def test_a_step_has_the_gradient_of_a_naive_one(base: Path, data: Path, tmp_path: Path, settings: dict) -> None:
    made = recipe(base, data, grpo=SMALL | settings)
    seen = Seen(made, tmp_path / "run")
    wanted = naive(seen)
    row = seen.step()
    assert 0 < row["zero_variance"] < 1  # some groups are skipped, some are not
    assert 0 < row["truncated"] < 1
    assert len(seen.gradients) == len(wanted) == made.grpo.iterations
    for iteration, (ours, theirs) in enumerate(zip(seen.gradients, wanted, strict=True)):
        largest = max(float(value.abs().max()) for value in theirs.values())
        near = 1e-5 if iteration == 0 else 1e-3  # Adam makes of small differences of small gradients large steps
        assert largest > 1e-5
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=near * largest)
    norm = math.sqrt(sum(float(value.double().pow(2).sum()) for value in wanted[-1].values()))
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert (row["clip_fraction"] > 0) == (made.grpo.iterations > 1)
    assert row["clip_fraction"] == row["clip_low"] + row["clip_high"]
    assert row["importance_difference"] < row["importance_largest"] < 1e-4  # fp32: decoding and training agree
    assert seen.loop.step == made.grpo.iterations


def test_micro_batches_hold_their_tokens_and_share_prompts(base: Path, data: Path, tmp_path: Path) -> None:
    made = recipe(base, data, grpo=SMALL | {"group": 5})
    groups = Seen(made, tmp_path / "run").drawn().groups
    everyone = [id(rollout) for group in groups for rollout in group]
    budget = made.grpo.max_prompt + made.grpo.max_completion
    for shared in (True, False):
        before = 0
        for halvings in range(8):
            parts = forwards(made.grpo, groups, halvings, shared)
            assert sorted(id(r) for part in parts for piece in part for r in piece) == sorted(everyone)
            for part in parts:
                sizes = [len(piece[0].prompt) + sum(len(r.completion.tokens) for r in piece) for piece in part]
                tokens = sum(sizes) if shared else max(sizes) * len(sizes)
                assert tokens <= budget >> halvings or [len(piece) for piece in part] == [1]
                assert all(r.prompt == piece[0].prompt for piece in part for r in piece)
            assert len(parts) >= before
            before = len(parts)
        assert before == len(everyone)  # in the end every completion has a forward of its own
    whole = forwards(made.grpo.model_copy(update={"micro_batch": 99}), groups, 0, True)
    assert [[len(piece) for piece in part] for part in whole] == [[5] * 8]


def test_memory_that_runs_out_changes_nothing(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(base, data, grpo=SMALL | {"micro_batch": 99, "iterations": 2, "steps": 2, "kl": 0.1})
    rows = []
    for name in ("enough", "scarce"):
        seen = Seen(made, tmp_path / name)
        with monkeypatch.context() as patch:
            if name == "scarce":
                batch = stage._batch

                def large(loop: Any, pieces: Any, batch: Any = batch) -> Any:
                    found = batch(loop, pieces)
                    if torch.is_grad_enabled() and len(found.ids) > 120:
                        raise torch.OutOfMemoryError("out of memory")
                    return found

                patch.setattr(stage, "_batch", large)
            rows.append({k: v for k, v in seen.step().items() if k not in MEASURED})
        assert (seen.loop.halvings > 0) is (name == "scarce")
    assert rows[0].keys() == rows[1].keys()
    for key, value in rows[0].items():
        assert rows[1][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


def test_decoding_in_another_precision_is_told_and_corrected(base: Path, data: Path, tmp_path: Path) -> None:
    rows = {}
    for level in ("off", "token", "sequence"):
        seen = Seen(recipe(base, data, grpo=SMALL | {"importance": level, "importance_cap": 1.01}), tmp_path / level)
        collect = rollouts_of.collect
        drawn = collect(seen.stage.source, 0, 0)
        for place, one in enumerate(r for group in drawn.groups for r in group):
            noise = torch.randn(len(one.completion.tokens), generator=torch.Generator().manual_seed(place)) * 0.1
            moved = (torch.tensor(one.completion.logprobs) + noise).tolist()
            object.__setattr__(one.completion, "logprobs", tuple(moved))  # frozen
        figures, _ = stage.update(seen.loop, seen.stage.source.settings, drawn)
        rows[level] = figures
        assert 0.06 < figures["importance_difference"] < 0.1  # the mean of |0.1 N(0, 1)| is 0.08
        assert 0.15 < figures["importance_largest"] < 0.6
    assert "importance_capped" not in rows["off"]
    assert 0.3 < rows["token"]["importance_capped"] < 0.7
    assert len({round(row["grad_norm"], 6) for row in rows.values()}) == 3


def test_truncated_completions_carry_no_loss(base: Path, data: Path, tmp_path: Path) -> None:
    """All are cut: with the mask there is nothing to learn, and the weights stay."""
    short = {"max_completion": 2, "rewards": ["xmlcount"], "temperature": 1.7, "steps": 1, "prompts": 4}
    for masked in (True, False):
        made = recipe(base, data, grpo={**short, "mask_truncated": masked})
        seen = Seen(made, tmp_path / f"run{masked}")
        row = seen.step()
        assert row["truncated"] == 1.0
        assert len(seen.gradients) == (0 if masked else 1)
        assert (row["grad_norm"] == 0.0) is masked
        assert row["lr"] == made.grpo.optimizer.lr
        assert seen.loop.step == 1


def test_masked_rollouts_carry_no_loss(base: Path, data: Path, tmp_path: Path) -> None:
    body = "return None if len(completion.tokens) % 2 else float(len(completion.text))"
    more = {"prompts": 4, "temperature": 1.45, "max_completion": 11, "mask_truncated": False}
    seen = Seen(recipe(base, data, grpo={**more, "rewards": own_reward(tmp_path, body)}), tmp_path / "run")
    rollouts = seen.rollouts()
    masked = [r.reward is None for r in rollouts]
    assert 0 < sum(masked) < len(masked)
    row = seen.step()
    assert row["masked"] == sum(masked) / len(masked)
    known = [r.reward for r in rollouts if r.reward is not None]
    assert row["reward"] == pytest.approx(sum(known) / len(known)) == row["rewards/fn"]
    seen = Seen(recipe(base, data, grpo={**more, "rewards": own_reward(tmp_path, "return None")}), tmp_path / "none")
    row = seen.step()
    assert (row["reward"], row["masked"], row["loss"], row["zero_variance"]) == (None, 1.0, 0.0, 1.0)
    assert seen.gradients == []


def test_an_empty_completion_is_data(base: Path, data: Path, tmp_path: Path) -> None:
    """One that ends at once has a token to learn from; one without any has none."""
    body = "return float(len(completion.text))"
    seen = Seen(recipe(base, data, grpo=SMALL | {"rewards": own_reward(tmp_path, body)}), tmp_path / "run")
    drawn = seen.drawn()
    end = seen.loaded.end_ids[0]
    first, second = (r.completion for r in drawn.groups[0][:2])
    for name, ended, none in (
        ("tokens", (end,), ()),
        ("logprobs", (-0.5,), ()),
        ("text", "", ""),
        ("finish", *["stop"] * 2),
    ):
        object.__setattr__(first, name, ended)
        object.__setattr__(second, name, none)
    drawn.flat[:] = [False] * 8
    figures, _ = stage.update(seen.loop, seen.stage.source.settings, drawn)
    assert math.isfinite(figures["loss"])
    assert figures["grad_norm"] > 0
    assert not drawn.groups[0][1].carries_loss(False)


def test_dropout_is_off(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = {"r": 4, "alpha": 8, "dropout": 0.4}
    with_it, without = (
        ran(recipe(base, data, grpo={"lora": {**lora, "dropout": rate}, "temperature": 1.7}), tmp_path / str(rate))
        for rate in (0.4, 0.0)
    )
    assert "without dropout" in capsys.readouterr().err.replace("\n", " ")
    assert plain(with_it) == plain(without)
    model = AutoModelForCausalLM.from_pretrained(base, attention_dropout=0.3)
    assert without_dropout(model)
    assert not without_dropout(model)
    ids = torch.arange(20)[None]
    assert torch.equal(model.train()(ids).logits, model(ids).logits)


def test_the_reference_is_the_start(base: Path, data: Path, tmp_path: Path) -> None:
    made = recipe(base, data, grpo={"kl": 0.05, "steps": 3, "temperature": 1.7, "prompts": 4})
    first = ran(made, tmp_path / "first")
    assert first.metrics()[0]["kl"] == 0.0
    assert first.metrics()[-1]["kl"] > 0
    second = ran(made, tmp_path / "second", str(first.path))
    assert second.metrics()[0]["kl"] == pytest.approx(0.0, abs=1e-9)  # the base would be further away
    assert second.metrics()[-1]["kl"] > 0
    with pytest.raises(DanluError, match="LoRA"):
        ran(recipe(base, data, grpo={"kl": 0.05, "method": "full"}), tmp_path / "full")


# ---- a run


def test_the_reward_rises_on_a_simple_task(base: Path, data: Path, tmp_path: Path) -> None:
    """What this model does well is punished: there are many ways to get better."""
    optimizer = {"lr": 1e-2, "schedule": "constant", "warmup": 0.0}
    settings = {"steps": 15, "prompts": 4, "group": 8, "temperature": 1.3, "max_completion": 24}
    settings["rewards"] = [{"name": "think_format", "weight": -1.0}]
    run = ran(recipe(base, data, grpo={**settings, "optimizer": optimizer}), tmp_path / "run")
    curve = [row["reward"] for row in run.metrics()]
    assert sum(curve[-4:]) / 4 > sum(curve[:4]) / 4 + 0.15, curve


METRICS = ["reward", "reward_std", "rewards/stop", "reward_std/stop", "rewards/think_format"]
METRICS += ["reward_std/think_format", "masked", "completion_length", "completion_length_max"]
METRICS += ["truncated", "zero_variance", "loss", "grad_norm", "kl", "clip_fraction", "lr"]
METRICS += ["entropy", "clip_low", "clip_high"]
METRICS += ["importance_difference", "importance_largest", "importance_capped", "prompts_seen"]
COSTS = [f"{part}_seconds" for part in ("rollout", "reward", "update", "forward", "backward", "optimizer")]
COSTS += ["rollout_tokens_per_second", "update_tokens_per_second", "memory_bytes", "peak_memory_bytes"]


@pytest.mark.parametrize("page", ["docs/grpo.md", "docs/zh/grpo.md"])
def test_every_figure_is_explained(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text("utf-8")
    everywhere = {f"{part}_seconds" for part in ("forward", "backward", "optimizer")} | {*COSTS[-2:]}  # of SFT too
    names = {re.sub("/.*", "/NAME", name) for name in (*METRICS, *COSTS)} - everywhere
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_what_a_run_records(base: Path, tmp_path: Path) -> None:
    data = write_questions(tmp_path / "questions.jsonl", 8)
    with data.open("a", encoding="utf-8") as file:
        file.write('{"question": "' + "很长的问题" * 60 + '", "target": "A", "id": "long"}\n')
    settings = {"steps": 3, "valid": str(data), "eval_every": 2, "max_prompt": 60, "temperature": 1.7, "prompts": 3}
    made = recipe(base, data, grpo=settings)
    run = ran(made, tmp_path / "run")
    results = run.info()["results"]
    assert (results["rows"], results["dropped_overlong"], results["counts"]["in"]) == (8, 1, 9)
    assert results["best_step"] in (2, 3)
    metrics = run.metrics()
    assert [row["step"] for row in metrics] == [1, 2, 2, 3, 3]
    steps = [row for row in metrics if "reward" in row]
    assert [sorted(row) for row in steps] == [sorted(["step", *METRICS, *COSTS])] * 3
    assert set(COSTS) <= MEASURED
    held_out = [row["eval_accuracy"] for row in metrics if "eval_accuracy" in row]
    assert len(held_out) == 2
    assert results["best_eval_accuracy"] == max(held_out)
    for row in steps:
        assert row["reward"] == pytest.approx(row["rewards/stop"] + 0.5 * row["rewards/think_format"])
        assert row["truncated"] == pytest.approx(1 - row["rewards/stop"])
        assert 1 <= row["completion_length"] <= row["completion_length_max"] <= 16
        assert 0 <= row["zero_variance"] <= 1
        assert 0 < row["entropy"] < math.log(640)
    samples = run.samples()
    assert [row["step"] for row in samples] == [1] * 8 + [2] * 8 + [3] * 8  # two of the three groups
    known = {question: answer for question, _, answer in CHATS}
    for row in samples:
        assert sorted(row) == sorted(
            ["step", "id", "question", "target", "output", "finish", "tokens", "reward", "rewards", "advantage"]
        )
        assert row["target"] == known[row["question"]]
        assert sorted(row["rewards"]) == ["stop", "think_format"]
    for at in range(0, 24, 4):
        assert len({row["id"] for row in samples[at : at + 4]}) == 1
        assert sum(row["advantage"] for row in samples[at : at + 4]) == pytest.approx(0, abs=1e-3)
    assert sorted(path.name for path in run.path.iterdir()) == [
        *("artifact", "checkpoints", "config.json", "metrics.jsonl", "run.json", "samples.jsonl"),
    ]


def test_signs_are_told_once_also_when_resumed(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards = own_reward(tmp_path, "return 1.0")
    made = recipe(base, data, grpo={"steps": 9, "save_every": 7, "rewards": rewards, "prompts": 1})
    run = ran(made, tmp_path / "run")
    assert run.info()["results"]["signs"] == {"flat": 5}
    told = capsys.readouterr().err.replace("\n", " ")
    assert told.count("all rewards of every group were equal") == 1
    assert "grpo.filter" in told
    info = run.info()
    write_json(run.path / "run.json", info | {"status": "stopped"})  # as after a signal in step 8
    shutil.rmtree(run.checkpoints / "step_000009")
    assert ran(made, run.path, resume=True).info()["results"]["signs"] == {"flat": 5}
    assert "all rewards" not in capsys.readouterr().err


def test_held_out_questions_are_told_by_task(base: Path, tmp_path: Path) -> None:
    """Two of three tasks are known by heart, the gold of the third is another."""
    golds = ["先休息，多喝水。", "It is 4.", "打针。", "Apple."]
    rows = [
        {
            "question": CHATS[n % 4][0],
            "target": golds[n % 4],
            "id": f"q{n}",
            "task": ["advice", "sum", "drug", "sum"][n % 4],
        }
        for n in range(8)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    settings = {"steps": 1, "valid": str(data), "optimizer": {"lr": 1e-9}, "max_completion": 40}
    row = ran(recipe(base, data, grpo=settings), tmp_path / "run").metrics()[-1]
    shares = {"eval_accuracy": 0.75, "eval_format": 1.0, "eval_stop": 1.0}
    tasks = {"eval_accuracy/advice": 1.0, "eval_accuracy/sum": 1.0, "eval_accuracy/drug": 0.0}
    assert row == {"step": 1, **shares, **tasks}


def test_steps_that_iterations_do_not_divide(base: Path, data: Path, tmp_path: Path) -> None:
    made = recipe(base, data, grpo={"steps": 3, "iterations": 2, "valid": str(data), "temperature": 1.7})
    run = ran(made, tmp_path / "run")
    assert [row["step"] for row in run.metrics()] == [2, 3, 3]
    assert run.info()["results"]["best_step"] == 3


def test_another_architecture_goes_through_transformers(data: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config

    from tiny_models import tokenizer

    torch.manual_seed(0)
    made = tokenizer("chatml")
    ends = {"eos_token_id": made.eos_token_id, "bos_token_id": made.eos_token_id}
    folder = tmp_path / "gpt2"
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=640, initializer_range=0.5, **ends)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    made.save_pretrained(folder)
    settings = {"lora": {"r": 4, "targets": ["c_attn"]}, "rewards": ["xmlcount", "stop"], "mask_truncated": False}
    runs = [ran(recipe(folder, data, grpo={**settings, "max_completion": 60}), tmp_path / f"run{n}") for n in range(2)]
    assert plain(runs[0]) == plain(runs[1])
    assert all(1 <= row["completion_length"] <= 60 for row in plain(runs[0]))


# ---- what goes wrong


def test_prompts_that_are_all_too_long(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DanluError, match="no prompt fits"):
        ran(recipe(base, data, grpo={"max_prompt": 2}), tmp_path / "run")


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="compared with others"):
        Recipe.model_validate({"name": "x", "grpo": {"group": 1}})


@pytest.mark.parametrize(
    ("body", "told"),
    [("return 1 / (len(sample.id) - 2)", "ZeroDivisionError"), ("return float('nan')", "gave nan")],
    ids=["raises", "nan"],
)
def test_a_reward_that_breaks_costs_nothing(base: Path, data: Path, tmp_path: Path, body: str, told: str) -> None:
    """It breaks in the fourth step: the three before are saved, and go on exactly when it is mended."""
    broken = f"""import pathlib
    calls = pathlib.Path(r"{tmp_path}") / "calls"
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    if len(calls.read_text()) > 3 * 8:
        {body}
    return float(len(completion.text))"""
    made = recipe(base, data, grpo={"steps": 5, "temperature": 1.7, "rewards": own_reward(tmp_path, broken)})
    with pytest.raises(DanluError, match=f"'fn'.*sample q.*{told}|'fn' {told}.*sample q"):
        ran(made, tmp_path / "parts")
    run = Run.open(tmp_path / "parts")
    assert run.info()["status"] == "failed"
    assert [path.name for path in run.checkpoints.iterdir()] == ["step_000003"]
    own_reward(tmp_path, "return float(len(completion.text))")
    assert plain(ran(made, tmp_path / "parts", resume=True)) == plain(ran(made, tmp_path / "whole"))
    assert Run.open(tmp_path / "parts").samples() == Run.open(tmp_path / "whole").samples()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_rollouts_are_drawn_ends_at_once(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """In the middle of a generation, with dynamic sampling: nothing is lost, and the same is drawn again."""
    settings = {"steps": 4, "temperature": 1.7, "resample": 2, "prompts": 3, "valid": str(data), "eval_every": 2}
    made = recipe(base, data, grpo=settings)
    after: list[int] = []
    with monkeypatch.context() as patch:
        generate = rollouts_of.LocalGenerator.generate

        def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
            for one in generate(self, *args, **kwargs):
                if (tmp_path / "parts" / "metrics.jsonl").exists() and len(Run(tmp_path / "parts").metrics()) == 3:
                    signal.raise_signal(number)
                    after.append(1)
                yield one

        patch.setattr(rollouts_of.LocalGenerator, "generate", interrupted)
        with pytest.raises(Stopped) as stopped:
            ran(made, tmp_path / "parts")
    assert stopped.value.exit_code == 128 + number
    assert after == []
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["step_000002"]
    assert Run.open(tmp_path / "parts").info()["status"] == "stopped"
    assert plain(ran(made, tmp_path / "parts", resume=True)) == plain(ran(made, tmp_path / "whole"))


def test_prompts_are_filtered_once_by_what_the_start_can_do(base: Path, data: Path, tmp_path: Path) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write('{"question": "Name a fruit.", "target": "Stone", "id": "hard"}\n')
    wanted = {"samples": 4, "low": 0.2, "high": 1.0}
    made = recipe(base, data, grpo={"filter": wanted, "steps": 1, "temperature": 1.2, "max_completion": 32})
    run = ran(made, tmp_path / "run")
    rows = [json.loads(line) for line in (run.path / "filter.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 9
    assert next(row["right"] for row in rows if row["id"] == "hard") == 0
    kept = sum(row["right"] / 4 >= 0.2 for row in rows)
    assert run.info()["results"]["filtered"] == {"in": 9, "kept": kept}
    assert 0 < kept < 9
    none = recipe(base, data, grpo={"filter": {**wanted, "low": 0.99, "high": 0.995}, "steps": 1})
    with pytest.raises(DanluError, match="keeps none of 9 prompts"):
        ran(none, tmp_path / "none")
