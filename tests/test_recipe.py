"""Recipes are strict: what is unknown, missing or impossible is refused with the nearest way out."""

from __future__ import annotations

import pytest
import yaml

from danlu import recipe
from danlu.errors import DanluError


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("name: x\nsftt: {}", "unknown key sftt", "did you mean sft?"),
        ("name: x\nsft: {lr: 1}", "unknown key sft.lr", "did you mean sft.optimizer.lr?"),
        ("name: x\ngrpo: {lr: 1}", "unknown key grpo.lr", "did you mean grpo.optimizer.lr?"),
        ("name: x\nsft: {lrr: 1}", "unknown key sft.lrr", "did you mean sft.optimizer.lr?"),
        ("name: x\nsft: {batchsize: 1}", "unknown key sft.batchsize", "did you mean sft.batch_size?"),
        ("name: x\nsft: {qqqq: 1}", "unknown key sft.qqqq", "valid keys there: method"),
        ("name: x\ndata: {train: {pth: f}}", "unknown key data.train.0.pth", "path"),
        ("model: {id: x}", "name is missing", "add name"),
        ("name: x\nsft: {epochs: -1}", "sft.epochs", "got -1"),
        ("name: x\nmodel: {dtype: fp8}", "model.dtype", "got 'fp8'"),
        ("name: x\nstages: [sft, sft]", "a stage may be listed once", ""),
        ("name: x\neval: {samples: 4}", "eval.samples > 1 needs eval.temperature > 0", ""),
        ("name: x\ngrpo: {rewards: [anser]}", "grpo.rewards.0.name: no reward 'anser', did you mean answer?", "judge"),
        ("name: x\ngrpo: {rewards: [{name: length, hgh: 9}]}", "unknown key grpo.rewards.0.hgh", "grpo.rewards.0.high"),
        ("name: x\ngrpo: {rewards: [{name: judge}]}", "grpo.rewards.0.endpoint is missing", "add"),
        ("name: x\ngrpo: {rewards: [{name: length, high: 5, low: 9}]}", "grpo.rewards.0: length needs low < high", ""),
        ("name: x\ngrpo: {rewards: [{python: a.py:f, stile: trl}]}", "unknown key grpo.rewards.0.stile", "style"),
        ("name: x\ngrpo: {filter: {low: 0.9, high: 0.1}}", "grpo.filter: filter needs low <= high", ""),
        ("name: [", "is not YAML", "indentation"),
        ("- 1", "not a mapping", "name"),
    ],
)
def test_refusals_name_key_and_way_out(text, what, hint):
    with pytest.raises(DanluError) as caught:
        recipe.parse(text, origin="file.yaml")
    assert what in caught.value.message
    assert caught.value.message.startswith("file.yaml")
    assert hint in caught.value.hint


def test_overrides_reach_sections_lists_and_numbers():
    got = recipe.parse(
        "name: x\neval: {benchmarks: [{name: a, path: p}]}",
        ["sft.optimizer.lr=1e-4", "eval.benchmarks.0.limit=5", "stages=[sft]", "data.train=rows.jsonl", "seed=7"],
    )
    assert got.sft.optimizer.lr == 1e-4
    assert got.eval.benchmarks[0].limit == 5
    assert got.stages == ["sft"]
    assert got.data.train[0].path == "rows.jsonl"
    assert got.seed == 7


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("seed", "not key=value"),
        ("=3", "not key=value"),
        ("name.x.y=1", "name: Input"),
        ("eval.benchmarks.3.limit=1", "no item"),
    ],
)
def test_bad_overrides_are_refused(override, what):
    text = "name: x\neval: {benchmarks: [{name: a, path: p}]}"
    with pytest.raises(DanluError, match=what):
        recipe.parse(text, [override])


def test_a_recipe_is_frozen_and_resolves_to_itself():
    first = recipe.parse("name: x\ndata: {masking: {}}")
    with pytest.raises(ValueError, match="frozen"):
        first.seed = 3
    assert recipe.parse(yaml.safe_dump(first.resolved())) == first


def test_short_forms_of_sources_and_rewards():
    got = recipe.parse("name: x\ndata: {train: [a.jsonl, {path: b, limit: 2}]}\ngrpo: {rewards: [answer, stop]}")
    assert [source.path for source in got.data.train] == ["a.jsonl", "b"]
    assert [reward.weight for reward in got.grpo.rewards] == [1.0, 1.0]


def test_finding_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("\ufeffname: mine\n", encoding="utf-8")
    assert recipe.load("mine.yaml").name == "mine"
    with pytest.raises(DanluError, match="no recipe") as caught:
        recipe.find("qwen3-1.7b-medical-qlora-v9")
    assert "qwen3-1.7b-medical-qlora-v" in caught.value.hint


def test_every_key_is_listed_once():
    keys = recipe.all_keys()
    assert len(keys) == len(set(keys))
    assert {"sft.lora.r", "grpo.rewards", "data.train", "model.id"} <= set(keys)


def test_export_types_are_one_name_or_several():
    assert recipe.parse("name: x\nexport: {quant: q4_0}").export.quant == ["q4_0"]
    assert recipe.parse("name: x", ["export.quant=q8_0, f16,q8_0"]).export.quant == ["q8_0", "f16"]
    assert recipe.parse("name: x").resolved()["export"]["quant"] == "q8_0"
    with pytest.raises(DanluError, match=r"export\.quant\.1"):
        recipe.parse("name: x\nexport: {quant: [f16, q9]}")
    with pytest.raises(DanluError, match="at least 1"):
        recipe.parse("name: x\nexport: {quant: []}")
