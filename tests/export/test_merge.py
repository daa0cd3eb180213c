"""Merging against peft: every kind of adapter that is supported, tying, shards, refusals, and the check itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from danlu.errors import DanluError
from danlu.export.merge import check_merge, merge
from danlu.models.locate import base_dir, base_of
from tiny_models import adapter, build

KINDS = {
    "plain": {},
    "all linear": {"target_modules": "all-linear"},
    "rslora": {"use_rslora": True, "r": 9},
    "patterns": {
        "rank_pattern": {"layers.0.self_attn.q_proj": 2},
        "alpha_pattern": {"v_proj": 3, "layers.1.*q_proj": 1},
    },
    "dora": {"use_dora": True},
    "head": {"modules_to_save": ["lm_head"]},
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tied on purpose": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "embedding lora": {"target_modules": ["embed_tokens", "q_proj"]},
    "head lora": {"target_modules": ["lm_head", "q_proj"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build(folder)
    return folder


def changed(base: Path, merged: Path) -> float:
    """Largest change of a logit by the merge."""
    rows = torch.arange(12)[None]
    with torch.inference_mode():
        a, b = (AutoModelForCausalLM.from_pretrained(f, dtype="float32")(rows).logits for f in (base, merged))
    return float((a - b).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_peft(kind: str, base: Path, tmp_path: Path) -> None:
    source = adapter(base, tmp_path / "adapter", **KINDS[kind])
    report = merge(base, source, tmp_path / "merged")
    check = check_merge(base, source, tmp_path / "merged")
    assert check["ok"], check
    assert check["max_logit_difference"] < 1e-3
    assert changed(base, tmp_path / "merged") > 0.05  # the adapter does something
    assert report.untied == (kind in ("head", "embedding", "both", "embedding lora", "head lora"))
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] != report.untied


def test_untied_base(tmp_path: Path) -> None:
    build(tmp_path / "base", "qwen2", tied=False)
    source = adapter(tmp_path / "base", tmp_path / "adapter", modules_to_save=["lm_head"])
    report = merge(tmp_path / "base", source, tmp_path / "merged")
    assert not report.untied
    assert report.replaced == ("lm_head.weight",)
    assert check_merge(tmp_path / "base", source, tmp_path / "merged")["ok"]


def test_shards_dtype_and_the_files_beside_the_weights(tmp_path: Path) -> None:
    build(tmp_path / "base", shards=True)
    source = adapter(tmp_path / "base", tmp_path / "adapter")
    told = {"kind": "adapter", "base": {"id": "x"}, "think": {"style": "none", "end_tokens": ["<|im_end|>"]}}
    (source / "danlu.json").write_text(json.dumps({**told, "base_dir": "../base"}))
    assert base_of(source) == tmp_path / "base"
    report = merge(base_of(source), source, tmp_path / "merged", dtype="bf16")
    merged = tmp_path / "merged"
    assert len(list(merged.glob("model-*.safetensors"))) > 1
    assert report.dtype == json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((merged / "danlu.json").read_text()) == {**told, "kind": "model"}
    assert len(json.loads((merged / "generation_config.json").read_text())["eos_token_id"]) == 2
    assert (merged / "chat_template.jinja").read_text() == (tmp_path / "base" / "chat_template.jinja").read_text()
    check = check_merge(tmp_path / "base", source, merged)
    assert check["ok"], check
    assert check["value"] > 1e-7  # bf16 rounding is there and is seen


def test_the_check_fails_on_a_wrong_merge(base: Path, tmp_path: Path) -> None:
    source = adapter(base, tmp_path / "adapter")
    merge(base, source, tmp_path / "merged")
    file = tmp_path / "merged" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"] = load_file(base / file.name)["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert not check_merge(base, source, tmp_path / "merged")["ok"]


def test_refusals_leave_nothing(base: Path, tmp_path: Path) -> None:
    source = adapter(base, tmp_path / "adapter")
    config = json.loads((source / "adapter_config.json").read_text())
    for change, word in (
        ({"bias": "all"}, "biases"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"layer_replication": [[0, 1]]}, "layers"),
    ):
        (source / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(DanluError, match=word):
            merge(base, source, tmp_path / "merged")
    (source / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(source / "adapter_model.safetensors")
    other = {key.replace("layers.1", "layers.7"): value for key, value in tensors.items()}
    save_file(other, source / "adapter_model.safetensors")
    with pytest.raises(DanluError, match=r"layers\.7.*which the base does not have"):
        merge(base, source, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(DanluError, match="not empty"):
        merge(base, source, tmp_path / "used")


def test_base_dir(tmp_path: Path) -> None:
    assert base_dir({"id": str(tmp_path)}) == tmp_path
    with pytest.raises(DanluError, match="random weights"):
        base_dir({"id": "x", "config": "config.json"})
    with pytest.raises(DanluError, match="cannot get the base model"):
        base_dir({"id": "nobody/nothing"})
