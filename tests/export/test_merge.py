"""Merging against peft: every kind of adapter that is supported, tying, shards, refusals, and the check itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from large import MEASURE, write_adapter, write_zeros
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from danlu.errors import DanluError
from danlu.export import merge_check
from danlu.export.merge import merge
from danlu.export.merge_check import check_merge
from danlu.export.merged import merged_model
from danlu.models.locate import base_dir, base_of
from danlu.models.tokenizer import load_tokenizer
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
    with pytest.raises(DanluError, match=r"layers\.7.*does not have"):
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


def test_an_adapter_of_another_base_is_refused_and_both_are_named(base: Path, tmp_path: Path) -> None:
    build(tmp_path / "other", "qwen2", tied=False)
    zeros = {"hidden": 32, "inner": 64, "key": 16, "vocabulary": 320}
    write_zeros(tmp_path / "smaller", 2, zeros, 1)
    source = adapter(base, tmp_path / "adapter")
    with pytest.raises(
        DanluError, match=rf"is for \(64, 96\), it is \(32, 64\) in .*smaller \(the adapter was trained on {base}\)"
    ):
        merge(tmp_path / "smaller", source, tmp_path / "merged")
    write_zeros(tmp_path / "shallow", 1, {**zeros, "hidden": 64, "inner": 96, "key": 64}, 1)
    with pytest.raises(DanluError, match="is this the right base"):
        merge(tmp_path / "shallow", source, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_damaged_and_quantized_weights_are_refused(base: Path, tmp_path: Path) -> None:
    source = adapter(base, tmp_path / "adapter")
    weights = source / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DanluError, match="half-written or damaged"):
        merge(base, source, tmp_path / "merged")
    weights.write_bytes(whole)
    build(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "model.layers.0.mlp.down_proj.weight": torch.zeros(8, 1, dtype=torch.uint8)}, file)
    with pytest.raises(DanluError, match=r"stores model\.layers\.0\.mlp\.down_proj\.weight as U8"):
        merge(tmp_path / "base", source, tmp_path / "merged")
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(DanluError, match=r"model\.safetensors cannot be read"):
        merge(tmp_path / "base", source, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_tokenizer_larger_than_the_embedding_is_refused(base: Path, tmp_path: Path) -> None:
    source = adapter(base, tmp_path / "adapter")
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens([f"<new{number}>" for number in range(400)])
    tokenizer.save_pretrained(source)
    with pytest.raises(DanluError, match="the embedding has 640 rows"):
        merge(base, source, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_changes_when_training_saw_a_4_bit_base_is_measured_and_told(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = base_dir({"id": "tiny"})
    source = adapter(base, tmp_path / "adapter")
    (source / "danlu.json").write_text(json.dumps({"base": {"id": "tiny", "quantization": "nf4"}}))
    made = merged_model(source, tmp_path / "merged")
    assert made["trained_on"] == "nf4"
    assert made["check"]["ok"]
    seen = made["check"]["trained_on"]
    assert 1e-3 < seen["kl"] < 0.2  # the rounding of the base is seen
    assert made["check"]["value"] < seen["kl"] / 100
    card = (tmp_path / "merged" / "README.md").read_text("utf-8")
    assert "trained on a 4-bit base" in card
    assert "library_name: transformers" in card
    assert "| merge | ok |" in card


def test_a_merge_that_answers_otherwise_does_not_keep_its_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = adapter(base, tmp_path / "adapter")
    monkeypatch.setitem(merge_check.MERGE_KL, "fp32", -1.0)  # a limit that nothing meets
    with pytest.raises(DanluError, match="does not answer like base and adapter"):
        merged_model(source, tmp_path / "merged", base=str(base))
    assert not (tmp_path / "merged").exists()
    assert (tmp_path / "merged-rejected" / "model.safetensors").is_file()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_shards(tmp_path: Path) -> None:
    """A shard of 1.2 GB is merged with far less: peak RSS of a process of its own, above what its imports hold."""
    sizes = {"hidden": 2048, "inner": 8192, "key": 512, "vocabulary": 32000}
    total = write_zeros(tmp_path / "base", 8, sizes, 1)
    write_adapter(tmp_path / "adapter", 8, sizes)
    folders = [str(tmp_path / name) for name in ("base", "adapter", "out")]
    done = subprocess.run([sys.executable, "-c", MEASURE, *folders], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["merged"] == 56
    assert total > 1.0e9
    assert found["peak"] - found["before"] < 0.4e9, found
