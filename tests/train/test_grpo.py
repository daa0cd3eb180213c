"""GRPO against formulas written out in fp64, a naive step, and TRL where it is installed; what a run records."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import new_run, recipe, write_questions
from transformers import AutoModelForCausalLM

from danlu.errors import DanluError
from danlu.generate.local import LocalGenerator
from danlu.models.load import load, reference, trainable
from danlu.recipe import Recipe
from danlu.run import Run
from danlu.train import grpo as stage
from danlu.train.grpo import Rollout, advantages, grpo, k3, policy_loss
from danlu.train.loop import Loop
from danlu.train.metrics import MEASURED
from tiny_models import CHATS, trained


@pytest.fixture(scope="module")
def base() -> Path:
    return trained()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "questions.jsonl")


def ran(made: Recipe, path: Path, start: str | None = None) -> Run:
    run = new_run(path, made, "grpo")
    with run.recording():
        run.record(**grpo(made, run, start))
    return run


# ---- the formulas


def test_advantages_are_those_of_the_group() -> None:
    rewards = [[1.0, 0.0, 0.0, 2.0], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 1e-3]]
    for scale in (True, False):
        found = advantages(torch.tensor(rewards, dtype=torch.float64), scale)
        for row, group in zip(found.tolist(), rewards, strict=True):
            mean = sum(group) / 4
            std = math.sqrt(sum((r - mean) ** 2 for r in group) / 3)
            assert row == pytest.approx([(r - mean) / (std + 1e-4 if scale else 1) for r in group], abs=1e-12)


def test_a_masked_completion_is_not_of_its_group() -> None:
    nan = math.nan
    rewards = [[1.0, 0.0, nan, 2.0], [nan, 0.5, nan, 0.5], [nan, nan, nan, 3.0], [nan] * 4]
    for scale in (True, False):
        found = advantages(torch.tensor(rewards, dtype=torch.float64), scale).tolist()
        alone = advantages(torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64), scale)[0].tolist()
        assert found[0] == pytest.approx([*alone[:2], 0.0, alone[2]], abs=1e-12)
        assert found[1:] == [[0.0] * 4] * 3


LOGS = [-2.0, -1.0, -0.5, -3.0, -0.1, -1.5]


def test_policy_loss_and_k3_are_their_formulas() -> None:
    low, high = 0.2, 0.28
    new = torch.tensor(LOGS, dtype=torch.float64, requires_grad=True)
    old = new.detach() + torch.tensor([0.0, 0.5, -0.5, 0.5, -0.5, 0.1], dtype=torch.float64)
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -2.0], dtype=torch.float64)
    loss, clipped = policy_loss(new, old, advantage, low, high)
    wanted, gradient, outside = [], [], []
    for n, o, a in zip(LOGS, old.tolist(), advantage.tolist(), strict=True):
        ratio = math.exp(n - o)
        bounded = min(max(ratio, 1 - low), 1 + high)
        wanted.append(-min(ratio * a, bounded * a))
        outside.append(bounded * a < ratio * a)
        gradient.append(0.0 if outside[-1] else -ratio * a)
    assert loss.tolist() == pytest.approx(wanted, abs=1e-12)
    assert clipped.tolist() == outside == [False, False, True, True, False, False]
    loss.sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx(gradient, abs=1e-12)
    ref = torch.tensor([-2.0, -0.5, -1.5, -3.0, -0.2, -1.0], dtype=torch.float64)
    pairs = zip(LOGS, ref.tolist(), strict=True)
    assert k3(new, ref).tolist() == pytest.approx([math.exp(r - n) - 1 - (r - n) for n, r in pairs], abs=1e-12)
    assert (k3(new, ref) >= 0).all()
    assert k3(new, new).tolist() == [0.0] * 6


def test_on_policy_only_the_gradient_counts() -> None:
    new = torch.tensor(LOGS, dtype=torch.float64, requires_grad=True)
    advantage = torch.linspace(-1, 1, 6, dtype=torch.float64)
    loss, clipped = policy_loss(new, new.detach(), advantage, 0.2, 0.2)
    assert torch.equal(loss, -advantage)
    assert not clipped.any()
    loss.sum().backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, -advantage)


# ---- a whole step against a naive one


class Seen:
    """A loop ready for one step; `gradients` before every optimizer step, `rollouts` as they were drawn."""

    def __init__(self, made: Recipe, path: Path, start: str | None = None) -> None:
        settings = made.grpo
        self.recipe, self.run = made, new_run(path, made, "grpo")
        self.loaded = load(made.model, start, seed=made.seed, lora=settings.lora, train=True)
        torch.manual_seed(8)
        with torch.no_grad():  # the adapter is somewhere already: its gradient is not that of a fresh one
            for value in trainable(self.loaded.model).values():
                value.add_(torch.randn_like(value) * 0.02)
        self.loop = Loop(self.run, settings, self.loaded, settings.steps, largest_is_best=True)
        self.generator = LocalGenerator(self.loaded, batch=settings.rollout_batch)
        self.questions, _ = stage._short_enough(self.loaded, stage.prompts(made, settings.data).train, 512)
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.loop.optimizer.optimizer.register_step_pre_hook(lambda *_: self._look())

    def _look(self) -> None:
        self.gradients.append({name: param.grad.clone() for name, param in self.loop.params.items()})

    def rollouts(self) -> list[Rollout]:
        order = stage.row_order(len(self.questions), self.recipe.seed, 0, self.recipe.grpo.prompts)
        return stage._rollouts(self.loop, self.recipe, self.generator, [self.questions[n] for _, n in order])

    def step(self) -> dict[str, Any]:
        return stage._step(self.loop, self.recipe, self.generator, self.questions)


def log_probs(model: Any, rollout: Rollout, temperature: float) -> torch.Tensor:
    ids = torch.tensor([[*rollout.prompt, *rollout.completion.tokens]])
    scores = (model(ids).logits[0] / temperature).log_softmax(-1)
    return scores[len(rollout.prompt) - 1 : -1].gather(-1, ids[0, len(rollout.prompt) :, None]).squeeze(-1)


def naive(seen: Seen) -> list[dict[str, torch.Tensor]]:
    """The gradients of each iteration: every group takes part, nothing is skipped, one forward a completion."""
    settings, model = seen.recipe.grpo, seen.loaded.model
    rollouts = seen.rollouts()
    kept = {id(r): r.completion.finish == "stop" or not settings.mask_truncated for r in rollouts}
    tokens = sum(len(r.completion.tokens) for r in rollouts if kept[id(r)])
    model.train()
    with torch.no_grad():
        old = [log_probs(model, r, settings.temperature) for r in rollouts]
        with reference(model):
            ref = [log_probs(model, r, settings.temperature) for r in rollouts]
    params = trainable(model)
    before = {name: param.detach().clone() for name, param in params.items()}
    optimizer = torch.optim.AdamW(params.values(), lr=settings.optimizer.lr, weight_decay=0.0)
    found = []
    for _ in range(settings.iterations):
        total = torch.zeros(())
        for place, rollout in enumerate(rollouts):
            group = place // settings.group * settings.group
            rewards = [r.reward for r in rollouts[group : group + settings.group]]
            mean = sum(rewards) / len(rewards)
            std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
            advantage = (rollout.reward - mean) / (std + 1e-4)
            new = log_probs(model, rollout, settings.temperature)
            ratio = torch.exp(new - old[place])
            bounded = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
            loss = -torch.minimum(ratio * advantage, bounded * advantage)
            loss = loss + settings.kl * (torch.exp(ref[place] - new) - 1 - (ref[place] - new))
            if kept[id(rollout)]:
                total = total + loss.sum() / tokens
        total.backward()
        found.append({name: param.grad.clone() for name, param in params.items()})
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for name, param in params.items():
            param.copy_(before[name])
            param.grad = None
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kl": 0.2},
        {"iterations": 3, "steps": 3},
        {"mask_truncated": False, "kl": 0.1, "iterations": 2, "clip_low": 0.01, "clip_high": 0.02},
    ],
    ids=["plain", "kl", "iterations", "all"],
)
def test_a_step_has_the_gradient_of_a_naive_one(base: Path, data: Path, tmp_path: Path, settings: dict) -> None:
    optimizer = {"lr": 2e-3, "schedule": "constant", "warmup": 0.0, "clip": 1e9}
    small = {"prompts": 8, "group": 3, "temperature": 1.45, "max_completion": 11, "micro_batch": 3, "top_p": 0.95}
    made = recipe(base, data, grpo={**small, "optimizer": optimizer, **settings})
    seen = Seen(made, tmp_path / "run")
    wanted = naive(seen)
    row = seen.step()
    assert 0 < row["zero_variance"] < 1  # some groups are skipped, some are not
    assert 0 < row["truncated"] < 1
    assert len(seen.gradients) == len(wanted) == made.grpo.iterations
    for ours, theirs in zip(seen.gradients, wanted, strict=True):
        largest = max(float(value.abs().max()) for value in theirs.values())
        assert largest > 1e-4
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4 * largest)
    norm = math.sqrt(sum(float(value.double().pow(2).sum()) for value in wanted[-1].values()))
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert (row["clip_fraction"] > 0) == (made.grpo.iterations > 1)
    assert seen.loop.step == made.grpo.iterations


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
    body = "def fn(sample, completion): return None if len(completion.tokens) % 2 else float(len(completion.text))"
    (tmp_path / "mine.py").write_text(body, "utf-8")
    rewards = [{"python": f"{tmp_path / 'mine.py'}:fn"}]
    more = {"prompts": 4, "temperature": 1.45, "max_completion": 11, "rewards": rewards, "mask_truncated": False}
    seen = Seen(recipe(base, data, grpo=more), tmp_path / "run")
    rollouts = seen.rollouts()
    masked = [r.reward is None for r in rollouts]
    assert 0 < sum(masked) < len(masked)
    row = seen.step()
    assert row["masked"] == sum(masked) / len(masked)
    known = [r.reward for r in rollouts if r.reward is not None]
    assert row["reward"] == pytest.approx(sum(known) / len(known)) == row["rewards/fn"]
    (tmp_path / "mine.py").write_text("def fn(sample, completion): return None", "utf-8")
    row = seen.step()
    assert (row["reward"], row["masked"], row["loss"], row["zero_variance"]) == (None, 1.0, 0.0, 1.0)
    assert len(seen.gradients) == 1  # nothing was learned from the second step


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


def test_trl_computes_the_same(base: Path, data: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    made = recipe(base, data, grpo={"prompts": 2, "group": 4, "temperature": 1.7, "max_completion": 14, "kl": 0.1})
    seen = Seen(made, tmp_path / "run")
    rollouts = seen.rollouts()
    options = trl.GRPOConfig(
        output_dir=str(tmp_path / "trl"),
        beta=0.1,
        temperature=1.7,
        num_generations=4,
        use_cpu=True,
        bf16=False,
        loss_type="dapo",
    )
    trainer = trl.GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(base),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=options,
        train_dataset=Dataset.from_list([{"prompt": "x"}] * 8),
        processing_class=seen.loaded.tokenizer,
    )
    rewards = torch.tensor([r.reward for r in rollouts], dtype=torch.float64).view(-1, 4)
    mean, std = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    torch.testing.assert_close(advantages(rewards, True), (rewards - mean) / (std + 1e-4))
    ids = torch.tensor([[*rollouts[0].prompt, *rollouts[0].completion.tokens]])
    length = len(rollouts[0].completion.tokens)
    found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, torch.ones_like(ids), length)[0]
    wanted = log_probs(trainer.model, rollouts[0], 1.7)
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-4)


# ---- a run


def test_the_reward_rises_on_a_simple_task(base: Path, data: Path, tmp_path: Path) -> None:
    """What this model does well is punished: there are many ways to get better."""
    optimizer = {"lr": 1e-2, "schedule": "constant", "warmup": 0.0}
    settings = {"steps": 15, "prompts": 4, "group": 8, "temperature": 1.3, "max_completion": 24}
    settings["rewards"] = [{"name": "think_format", "weight": -1.0}]
    run = ran(recipe(base, data, grpo={**settings, "optimizer": optimizer}), tmp_path / "run")
    curve = [row["reward"] for row in run.metrics()]
    assert sum(curve[-4:]) / 4 > sum(curve[:4]) / 4 + 0.15, curve


METRICS = ["reward", "reward_std", "rewards/stop", "rewards/think_format", "masked"]
METRICS += ["completion_length", "completion_length_max"]
METRICS += ["truncated", "zero_variance", "loss", "grad_norm", "kl", "clip_fraction", "lr"]
COSTS = [f"{part}_seconds" for part in ("rollout", "update", "forward", "backward", "optimizer")]
COSTS += ["memory_bytes", "peak_memory_bytes"]


def test_what_a_run_records(base: Path, tmp_path: Path) -> None:
    data = write_questions(tmp_path / "questions.jsonl", 8)
    with data.open("a", encoding="utf-8") as file:
        file.write('{"question": "' + "很长的问题" * 60 + '", "target": "A", "id": "long"}\n')
    settings = {"steps": 3, "valid": str(data), "eval_every": 2, "max_prompt": 60, "temperature": 1.7}
    made = recipe(base, data, grpo=settings)
    run = ran(made, tmp_path / "run")
    results = run.info()["results"]
    assert (results["rows"], results["dropped_overlong"], results["counts"]["in"]) == (8, 1, 9)
    assert results["best_step"] in (2, 3)
    metrics = run.metrics()
    assert [row["step"] for row in metrics] == [1, 2, 2, 3, 3]
    steps = [row for row in metrics if "reward" in row]
    assert [list(row) for row in steps] == [["step", *METRICS, *COSTS]] * 3
    held_out = [row["eval_accuracy"] for row in metrics if "eval_accuracy" in row]
    assert len(held_out) == 2
    assert results["best_eval_accuracy"] == max(held_out)
    for row in steps:
        assert row["reward"] == pytest.approx(row["rewards/stop"] + 0.5 * row["rewards/think_format"])
        assert row["truncated"] == pytest.approx(1 - row["rewards/stop"])
        assert 1 <= row["completion_length"] <= row["completion_length_max"] <= 16
        assert 0 <= row["zero_variance"] <= 1
    samples = run.samples()
    assert [row["step"] for row in samples] == [1] * 4 + [2] * 4 + [3] * 4
    known = {question: answer for question, _, answer in CHATS}
    for row in samples:
        assert sorted(row) == sorted(
            ["step", "id", "question", "target", "output", "finish", "tokens", "reward", "rewards", "advantage"]
        )
        assert row["target"] == known[row["question"]]
        assert sorted(row["rewards"]) == ["stop", "think_format"]
    for at in range(0, 12, 4):
        assert len({row["id"] for row in samples[at : at + 4]}) == 1
        assert sum(row["advantage"] for row in samples[at : at + 4]) == pytest.approx(0, abs=1e-3)
    assert sorted(path.name for path in run.path.iterdir()) == [
        *("artifact", "checkpoints", "config.json", "metrics.jsonl", "run.json", "samples.jsonl"),
    ]


def test_steps_that_iterations_do_not_divide(base: Path, data: Path, tmp_path: Path) -> None:
    made = recipe(base, data, grpo={"steps": 3, "iterations": 2, "valid": str(data), "temperature": 1.7})
    run = ran(made, tmp_path / "run")
    assert [row["step"] for row in run.metrics()] == [2, 3, 3]
    assert run.info()["results"]["best_step"] == 3


def test_prompts_that_are_all_too_long(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DanluError, match="no prompt fits"):
        ran(recipe(base, data, grpo={"max_prompt": 2}), tmp_path / "run")


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
    metrics = [
        ran(recipe(folder, data, grpo={**settings, "max_completion": 60}), tmp_path / f"run{n}").metrics()
        for n in range(2)
    ]
    same = [[{k: v for k, v in row.items() if k not in MEASURED} for row in rows] for rows in metrics]
    assert same[0] == same[1]
    assert all(1 <= row["completion_length"] <= 60 for row in same[0])
