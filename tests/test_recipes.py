"""Every shipped recipe loads, plans and keeps its published numbers."""

from __future__ import annotations

import json

import pytest
import yaml

from danlu.cli.stages import described, plan
from danlu.recipe import ALL_LINEAR, load, parse, shipped

PUBLISHED = {
    "qwen3-1.7b-medical-qlora-v1",
    "qwen3-1.7b-medical-qlora-v2",
    "qwen3-1.7b-medical-qlora-v3",
    "r1-distill-qwen-7b-medical-lora",
    "r1-distill-qwen-1.5b-medical-ollama",
    "qwen2.5-3b-medical-grpo",
}


def test_all_published_systems_are_shipped():
    assert set(shipped()) >= PUBLISHED


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_loads_and_plans(name):
    recipe = load(name)
    assert recipe.name == name
    assert recipe.description
    steps = plan("run", recipe)
    assert len({step.run for step in steps}) == len(steps)
    assert parse(described(recipe, steps, as_json=False)) == recipe  # a dry run prints a recipe that loads again
    assert json.loads(described(recipe, steps, as_json=True))["recipe"] == recipe.resolved()


def test_the_successor_of_v3_follows_the_ablation():
    v4 = load("qwen3-1.7b-medical-qlora-v4")
    assert v4.data.masking is None
    assert (v4.data.overlong, v4.data.redact, v4.data.decontaminate) == ("truncate-reasoning", True, True)
    assert (v4.model, v4.sft.optimizer) == (load("qwen3-1.7b-medical-qlora-v3").model, v4.sft.optimizer)


def test_qwen3_versions_differ_only_as_published():
    v1, v2, v3 = (load(f"qwen3-1.7b-medical-qlora-v{n}") for n in (1, 2, 3))
    assert (v1.model.id, v1.model.quantization) == ("Qwen/Qwen3-1.7B", "nf4")
    assert v1.data.system == v1.eval.system == "你是一个医学专家，你需要根据用户的问题，给出带有思考的回答。"
    assert (v1.data.shuffle_seed, v1.data.valid_fraction, v1.data.max_length) == (42, 0.1, 2048)
    lora, optimizer = v1.sft.lora, v1.sft.optimizer
    assert (lora.r, lora.alpha, lora.dropout, tuple(lora.targets)) == (64, 16, 0.05, ALL_LINEAR)
    assert (optimizer.name, optimizer.lr, optimizer.schedule, optimizer.clip) == (
        "paged_adamw_8bit",
        2e-4,
        "linear",
        0.3,
    )
    assert (v1.sft.batch_size, v1.sft.accumulation, v1.sft.epochs, v1.sft.precision) == (4, 4, 3, "fp16")
    assert (v1.sft.eval_every, v1.sft.save_every, v1.sft.gradient_checkpointing) == (100, 400, True)
    changed = differences(v1, v2)
    assert changed == {
        "model.dtype": "bf16",
        "sft.precision": "bf16",
        "sft.optimizer.schedule": "cosine",
        "sft.optimizer.warmup": 0.1,
        "sft.lora.dropout": 0.1,
        "sft.lora.modules_to_save": ["embed_tokens", "lm_head"],
    }
    masking = {"probability": 0.1, "terms": [1, 2], "forms": ["mask", "category", "ellipsis"]}
    masking |= {"where": ["reasoning", "answer"], "loss": "published"}
    assert differences(v2, v3) == {"data.masking": masking}


def differences(a, b):
    flat_a, flat_b = flatten(a.resolved()), flatten(b.resolved())
    return {key: value for key, value in flat_b.items() if flat_a[key] != value and key not in ("name", "description")}


def flatten(value, prefix=""):
    flat = {}
    for key, inner in value.items():
        deep = isinstance(inner, dict) and key != "masking"
        flat |= flatten(inner, f"{prefix}{key}.") if deep else {prefix + key: inner}
    return flat


def test_the_grpo_recipe_keeps_its_numbers():
    recipe = load("qwen2.5-3b-medical-grpo")
    grpo, optimizer = recipe.grpo, recipe.grpo.optimizer
    assert (recipe.model.id, recipe.model.quantization, recipe.seed) == ("Qwen/Qwen2.5-3B-Instruct", "nf4", 3407)
    assert (grpo.lora.r, grpo.lora.alpha, tuple(grpo.lora.targets)) == (64, 64, ALL_LINEAR)
    assert (optimizer.name, optimizer.lr, optimizer.betas) == ("adamw_8bit", 5e-6, (0.9, 0.99))
    assert (optimizer.weight_decay, optimizer.warmup, optimizer.schedule, optimizer.clip) == (0.1, 0.1, "cosine", 0.1)
    assert (grpo.group, grpo.max_prompt, grpo.max_completion, grpo.steps) == (8, 256, 200, 250)
    published = ["xmlcount", "soft_format", "strict_format", "int", "correctness"]
    assert [reward.name for reward in grpo.rewards if reward.weight == 1.0] == published
    assert "answer" in [reward.name for reward in grpo.rewards]  # equality is not the only signal of being right
    assert (recipe.eval.temperature, recipe.eval.top_p, recipe.eval.max_tokens) == (0.8, 0.95, 1024)
    assert "<reasoning>" in (recipe.data.system or "")


def test_the_successor_of_the_grpo_recipe_pays_for_being_right():
    before, recipe = load("qwen2.5-3b-medical-grpo"), load("qwen2.5-3b-medical-grpo-verified")
    grpo = recipe.grpo
    assert (recipe.model, recipe.data.system, grpo.lora) == (before.model, before.data.system, before.grpo.lora)
    assert {reward.name: reward.weight for reward in grpo.rewards} == {"answer": 1.0, "think_format": 0.2, "stop": 0.1}
    assert (grpo.max_completion, grpo.loss, grpo.kl, grpo.group) == (1024, "dapo", 0.0, 8)
    assert grpo.filter is not None
    # more than the one of five that is right by luck, and never all of them
    assert (grpo.filter.samples, grpo.filter.low > 0.2, grpo.filter.high < 1) == (8, True, True)
    assert grpo.prompts * grpo.steps <= sum(source.limit or 0 for source in grpo.data)  # one pass at most, unfiltered
    held_out = {(source.path, source.split) for source in grpo.valid}
    assert held_out
    assert not held_out & {(source.path, source.split) for source in grpo.data}
    assert grpo.steps % grpo.eval_every == 0
    assert recipe.data.decontaminate
    assert {benchmark.name for benchmark in recipe.eval.benchmarks} == {"cmexam", "medqa-us"}


def test_the_ollama_recipe_trains_evaluates_and_exports():
    recipe = load("r1-distill-qwen-1.5b-medical-ollama")
    assert recipe.stages == ["sft", "eval", "export"]
    assert (recipe.data.valid_fraction, recipe.sft.optimizer.lr, recipe.sft.batch_size) == (0.01, 1e-4, 1)
    assert [step.run.removeprefix(f"{recipe.name}-") for step in plan("run", recipe)] == [
        "eval-base",
        "sft",
        "eval",
        "export",
    ]


def test_no_recipe_writes_end_tokens_or_think_tags_into_prompts():
    for path in shipped().values():
        recipe = load(str(path))
        for system in (recipe.data.system, recipe.eval.system, recipe.export.system):
            assert not any(mark in (system or "") for mark in ("<|", "<think>", "<｜", "</s>")), path


def test_recipes_say_what_they_are_in_plain_yaml():
    for path in shipped().values():
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["name"] == path.stem
