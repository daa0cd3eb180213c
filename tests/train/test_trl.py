"""TRL as the oracle of our losses: the same rollouts through its own scoring, advantages, loss and backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import recipe, write_questions
from stepping import Seen

from danlu.train import grpo as stage
from danlu.train.policy import CLIPS, Step
from tiny_models import trained

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
