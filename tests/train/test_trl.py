"""TRL as the oracle of our losses (the same rollouts through its own scoring, advantages, loss and backward pass), and
as the engine of a stage."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_training import new_run, recipe, write_questions
from stepping import Seen

from danlu.errors import DanluError, Stopped
from danlu.generate import Sampling
from danlu.generate.local import LocalGenerator
from danlu.models.load import load
from danlu.recipe import Recipe
from danlu.run import Run
from danlu.train import grpo as stage
from danlu.train import trl as engine
from danlu.train.metrics import MEASURED
from danlu.train.policy import CLIPS, Step
from danlu.train.rollout import collect
from tiny_models import tokenizer, trained

trl = pytest.importorskip("trl")


@pytest.fixture(scope="module")
def base() -> Path:
    return trained()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "questions.jsonl")


def oracle(seen: Seen, groups: list[Any], folder: Path) -> Any:
    """A GRPOTrainer of the same model, which takes our rollouts for its own and thinks that vLLM drew them."""
    from datasets import Dataset

    settings, objective = seen.recipe.grpo, stage.objective_of(seen.recipe.grpo)
    rollouts = [rollout for group in groups for rollout in group]
    drawn = {
        "prompt_ids": [r.prompt for r in rollouts],
        "completion_ids": [list(r.completion.tokens) for r in rollouts],
        "logprobs": [list(r.completion.logprobs) for r in rollouts],
    }
    args = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(rollouts),
        num_generations=settings.group,
        max_completion_length=settings.max_completion,
        temperature=settings.temperature,
        loss_type={"gspo": "grpo"}.get(settings.loss, settings.loss),
        importance_sampling_level="sequence" if settings.loss == "gspo" else "token",
        epsilon=objective.low,
        epsilon_high=objective.high,
        scale_rewards="none" if settings.loss == "dr_grpo" else "group",
        mask_truncated_completions=settings.mask_truncated,
        vllm_importance_sampling_mode=f"{'sequence' if settings.importance == 'sequence' else 'token'}_truncate",
        vllm_importance_sampling_correction=settings.importance != "off",
        vllm_importance_sampling_clip_max=objective.cap,
        use_bias_correction_kl=False,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    trainer = trl.GRPOTrainer(
        seen.loaded.model,
        reward_funcs=lambda **_: [r.reward for r in rollouts],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "x"}] * len(rollouts)),
        processing_class=seen.loaded.tokenizer,
        rollout_func=lambda _prompts, _trainer: drawn,
    )
    trainer.use_vllm, trainer._last_loaded_step = settings.importance != "off", 0
    trainer.beta, trainer.current_gradient_accumulation_steps = (
        settings.kl,
        1,
    )  # a beta from the start copies the adapter
    return trainer


def scored(trainer: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """TRL's log-probs of the completions as the model is now."""
    ids, mask = (torch.cat([inputs[f"prompt_{x}"], inputs[f"completion_{x}"]], 1) for x in ("ids", "mask"))
    with torch.no_grad():
        return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, inputs["completion_ids"].shape[1])[
            0
        ]


@pytest.mark.parametrize("more", [{}, {"kl": 0.1, "importance": "token"}, {"importance": "sequence"}], ids=str)
@pytest.mark.parametrize("loss", list(CLIPS))
def test_loss_and_gradient_are_trls(base: Path, data: Path, tmp_path: Path, loss: str, more: dict[str, Any]) -> None:
    """Some groups are flat, some completions are cut, old and decoded log-probs are some way from the new ones."""
    small: dict[str, Any] = {
        "prompts": 6,
        "group": 4,
        "temperature": 1.45,
        "max_completion": 11,
        "max_prompt": 40,
        "micro_batch": 2,
    }
    (tmp_path / "mine.py").write_text("def fn(sample, completion): return sum(completion.tokens) % 5 // 2", "utf-8")
    small["rewards"] = [{"python": f"{tmp_path / 'mine.py'}:fn"}]
    made = recipe(base, data, grpo={**small, "loss": loss, "importance": "off", "importance_cap": 1.1, **more})
    seen = Seen(made, tmp_path / "run")
    settings, model = made.grpo, seen.loaded.model
    groups = seen.drawn().groups
    rollouts = [rollout for group in groups for rollout in group]
    apart = torch.Generator().manual_seed(3)
    for rollout in rollouts:
        noise = torch.randn(len(rollout.completion.tokens), generator=apart) * 0.1
        moved = (torch.tensor(rollout.completion.logprobs) + noise).tolist()
        object.__setattr__(rollout.completion, "logprobs", tuple(moved))
    carrying = [[r for r in group if r.carries_loss(settings.mask_truncated)] for group in groups]
    whole = Step(sum(len(r.completion.tokens) for g in carrying for r in g), len(rollouts), settings.max_completion)
    assert 0 < sum(map(len, carrying)) < len(rollouts)

    def losses(first: bool, sums: dict[str, torch.Tensor]) -> Any:
        return stage._losses(seen.loop, settings, whole, [g for g in carrying if g], first, sums, 0)

    trainer = oracle(seen, groups, tmp_path / "trl")
    model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": "x"}] * len(rollouts))
    if "old_per_token_logps" not in inputs:
        inputs["old_per_token_logps"] = scored(trainer, inputs)
    with torch.no_grad():
        if settings.kl:
            with stage.reference(model):
                stage._remember_reference(seen.loop, settings, carrying)
        for loss_of in losses(True, {}):
            loss_of()
        for param in seen.loop.params.values():  # an optimizer step
            param.add_(torch.randn(param.shape, generator=apart) * (1e-3 if loss == "gspo" else 0.03))
    theirs = trainer._compute_loss(trainer.model, inputs)
    theirs.backward()
    gradients = {name: param.grad.clone() for name, param in seen.loop.params.items()}
    model.zero_grad()

    sums: dict[str, torch.Tensor] = {}
    total = 0.0
    for loss_of in losses(False, sums):
        part = loss_of()
        part.backward()
        total += float(part.detach())
    for rollout, advantage in zip(rollouts, inputs["advantages"].tolist(), strict=True):
        assert rollout.advantage == pytest.approx(advantage, abs=1e-5)
    assert total == pytest.approx(float(theirs.detach()), abs=1e-5)
    largest = max(float(value.abs().max()) for value in gradients.values())
    assert largest > 1e-4
    for name, wanted in gradients.items():
        torch.testing.assert_close(seen.loop.params[name].grad, wanted, rtol=0, atol=1e-5 * largest)
    figures = stage._means(sums)
    metrics = trainer._metrics["train"]
    if loss != "gspo":  # there TRL counts completions, not tokens
        for name, ours in (("low", "clip_low"), ("high", "clip_high")):
            assert figures[ours] == pytest.approx(metrics[f"clip_ratio/{name}_mean"][-1], abs=1e-6)
        assert figures["clip_low"] > 0
        assert figures["clip_high"] > 0
    assert figures["entropy"] == pytest.approx(metrics["entropy"][-1], rel=1e-4)
    if settings.kl:
        assert figures["kl"] == pytest.approx(metrics["kl"][-1], rel=1e-3)


# ---- as the engine


def ran(made: Recipe, path: Path, resume: bool = False, start: str | None = None) -> Run:
    run = new_run(path, made, "grpo", resume=resume)
    with run.recording():
        run.record(**stage.grpo(made, run, start))
    return run


def plain(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in run.metrics()]


def by_trl(base: Path, data: Path, **more: Any) -> Recipe:
    settings = {
        "engine": "trl",
        "steps": 4,
        "prompts": 3,
        "temperature": 1.7,
        "micro_batch": 6,
        "mask_truncated": False,
    }
    return recipe(base, data, grpo=settings | more)


@pytest.mark.slow
def test_a_run_by_trl_is_a_run_like_ours(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"valid": str(data), "eval_every": 2, "iterations": 2, "kl": 0.05}
    made = by_trl(base, data, **more)
    run = ran(made, tmp_path / "trl")
    assert capsys.readouterr().out == ""
    ours = ran(made.model_copy(update={"grpo": made.grpo.model_copy(update={"engine": "danlu"})}), tmp_path / "danlu")
    assert [row["step"] for row in run.metrics()] == [row["step"] for row in ours.metrics()] == [2, 2, 4, 4]
    without = {"importance_difference", "importance_largest", "importance_capped", "update_tokens_per_second"}
    without |= {"forward_seconds", "backward_seconds", "optimizer_seconds"}
    for theirs, own in zip(run.metrics(), ours.metrics(), strict=True):
        assert set(theirs) == set(own) - without
        if "reward" in theirs:
            assert theirs["reward"] == pytest.approx(theirs["rewards/stop"] + 0.5 * theirs["rewards/think_format"])
            assert theirs["lr"] == own["lr"]
            assert theirs["grad_norm"] > 0
            assert 0 < theirs["entropy"] < 7
            assert theirs["prompts_seen"] == own["prompts_seen"]
    assert run.metrics()[0]["kl"] > 0  # after the first of two iterations
    assert [row["id"] for row in run.samples()] == [row["id"] for row in ours.samples()]
    assert {frozenset(row) for row in run.samples()} == {frozenset(row) for row in ours.samples()}
    assert set(run.info()["results"]) == set(ours.info()["results"])
    assert sorted(path.name for path in run.path.rglob("*")) == sorted(path.name for path in ours.path.rglob("*"))
    answered = LocalGenerator(load(made.model, str(run.path))).generate(
        [[{"role": "user", "content": "x"}]], Sampling(4)
    )
    assert len(list(answered)) == 1


@pytest.mark.parametrize("more", [{}, {"clip_low": 0.02, "clip_high": 0.02, "iterations": 2}], ids=["", "clipped"])
def test_the_same_rollouts_give_the_same_adapter(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """Advantages, masking, accumulation, clipping, schedule and optimizer of both engines, over several steps."""
    settings = {"prompts": 4, "group": 6, "steps": 6, "temperature": 1.5, "micro_batch": 8, "max_completion": 20}
    settings |= {"optimizer": {"lr": 3e-3, "schedule": "linear", "warmup": 0.4, "clip": 0.05}, "mask_truncated": True}
    made = by_trl(base, data, **settings, **more)
    drawn: list[list[list[int]]] = []

    def kept(*args: Any) -> Any:
        found = collect(*args)
        drawn.append([list(r.completion.tokens) for group in found.groups for r in group])
        return found

    monkeypatch.setattr(stage, "collect", kept)
    ours = ran(made.model_copy(update={"grpo": made.grpo.model_copy(update={"engine": "danlu"})}), tmp_path / "danlu")
    given = iter(drawn)
    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", lambda *_, **__: (next(given), None))
    theirs = ran(made, tmp_path / "trl")
    assert next(given, None) is None
    for own, other in zip(ours.metrics(), theirs.metrics(), strict=True):
        for name in ("reward", "truncated", "lr"):
            assert own[name] == pytest.approx(other[name], abs=1e-6), name
        assert own["entropy"] == pytest.approx(other["entropy"], rel=0.03)  # of micro-batches, there
        assert own["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    assert 0 < ours.metrics()[0]["truncated"] < 1
    start, *ends = (
        load_file(run.path / "artifact" / "adapter_model.safetensors") for run in (first(made, tmp_path), ours, theirs)
    )
    moved = torch.cat([(ends[0][name] - start[name]).flatten() for name in start])
    apart = torch.cat([(ends[0][name] - ends[1][name]).flatten() for name in start])
    assert apart.norm() < 1e-3 * moved.norm()


def first(made: Recipe, tmp_path: Path) -> Run:
    """The run of no step: the adapter that training starts from."""
    return ran(made.model_copy(update={"grpo": made.grpo.model_copy(update={"steps": 0})}), tmp_path / "start")


@pytest.mark.slow
def test_the_reward_rises_with_trl_too(base: Path, data: Path, tmp_path: Path) -> None:
    rewards = [{"name": "think_format", "weight": -1.0}]
    optimizer = {"lr": 1e-2, "schedule": "constant", "warmup": 0.0}
    settings = {"steps": 15, "prompts": 4, "group": 8, "temperature": 1.3, "max_completion": 24, "micro_batch": 32}
    run = ran(by_trl(base, data, **settings, rewards=rewards, optimizer=optimizer), tmp_path / "run")
    curve = [row["reward"] for row in run.metrics()]
    assert sum(curve[-4:]) / 4 > sum(curve[:4]) / 4 + 0.15, curve


@pytest.mark.slow
@pytest.mark.parametrize("iterations", [1, 2])
def test_an_interrupted_run_by_trl_goes_on_exactly(base: Path, data: Path, tmp_path: Path, iterations: int) -> None:
    """By a signal in a reward, by a reward that breaks, and by the end of the process."""
    steps = {"steps": 6 * iterations, "save_every": 2, "eval_every": 4 * iterations}
    made = by_trl(base, data, iterations=iterations, **steps, valid=str(data))
    whole = ran(made, tmp_path / "whole")
    parts = tmp_path / "parts"
    for failure in ("signal", "error", "end"):
        with pytest.MonkeyPatch.context() as patch:
            score, calls = stage.Rewards.score_all, []

            def broken(self: Any, *args: Any, score: Any = score, calls: Any = calls, failure: Any = failure) -> Any:
                calls.append(1)
                if len(calls) == 2:
                    if failure == "signal":
                        signal.raise_signal(signal.SIGTERM)
                    raise DanluError("broken") if failure == "error" else SystemExit(9)
                return score(self, *args)

            patch.setattr(stage.Rewards, "score_all", broken)
            with pytest.raises({"signal": Stopped, "error": DanluError, "end": SystemExit}[failure]):
                ran(made, parts, resume=parts.exists())
    assert plain(ran(made, parts, resume=True)) == plain(whole)
    assert Run.open(parts).samples() == whole.samples()
    adapters = [(path / "artifact" / "adapter_model.safetensors").read_bytes() for path in (parts, whole.path)]
    assert adapters[0] == adapters[1]


def test_prompts_are_read_with_our_ids(base: Path, data: Path) -> None:
    """Also by a tokenizer that puts its first token in front of every text, as Llama's do."""
    for kind in ("chatml", "llama3"):
        loaded = load(recipe(base, data).model)
        loaded.tokenizer = tokenizer(kind)
        samples = stage.prompts(recipe(base, data), recipe(base, data).grpo.data).train
        questions = stage.short_enough(loaded, samples, 500)
        texts = engine.prompt_texts(loaded, questions)
        assert loaded.tokenizer(texts)["input_ids"] == [ids for _, ids in questions]
        assert texts[0].startswith("<|begin_of_text|>") is False
        with pytest.raises(DanluError, match=f"prompt of {questions[1][0].id}"):
            engine.prompt_texts(loaded, [questions[0], (questions[1][0], [1, 2])])


@pytest.mark.parametrize(
    ("more", "missing", "told"),
    [
        ({}, "trl", r"grpo.engine: trl needs trl.*\n.*pip install"),
        ({"generate": "vllm"}, "vllm", r"grpo.generate: vllm needs vllm"),
        ({"resample": 2}, "", "no dynamic sampling"),
        ({"kl": 0.1}, "", "KL to the base"),
        ({"kl": 0.1, "method": "full"}, "", "LoRA"),
        ({"vllm": {"gpu_memory_utilisation": 0.3}, "generate": "vllm"}, "", "did you mean gpu_memory_utilization"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_this_engine_cannot_do_is_told_before_anything_is_loaded(
    base: Path, data: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], missing: str, told: str
) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: None if name == missing else find_spec("trl"))
    with pytest.raises(DanluError, match=told):
        engine.check(by_trl(base, data, **more).grpo, start="runs/sft")


def test_vllm_is_for_trl() -> None:
    with pytest.raises(ValueError, match="engine: trl only"):
        Recipe.model_validate({"name": "x", "grpo": {"generate": "vllm"}})


def test_options_of_vllm_are_handed_on(base: Path, data: Path, tmp_path: Path) -> None:
    vllm = {"mode": "colocate", "gpu_memory_utilization": 0.3, "importance_sampling_clip_max": 3.0}
    made = by_trl(base, data, generate="vllm", vllm=vllm, loss="gspo", importance="sequence", micro_batch=5)
    found = engine.options(made.grpo, Seen(made, tmp_path / "run").loop, 7)
    config = trl.GRPOConfig(**found)
    assert (config.use_vllm, config.vllm_mode, config.vllm_gpu_memory_utilization) == (True, "colocate", 0.3)
    assert config.vllm_importance_sampling_mode == "sequence_truncate"
    assert config.vllm_importance_sampling_clip_max == 3.0
    assert (config.loss_type, config.importance_sampling_level, config.epsilon) == ("grpo", "sequence", 3e-4)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (4, 3)
    assert config.max_steps == 7
