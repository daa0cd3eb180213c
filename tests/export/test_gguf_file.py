"""The GGUF writer: tensors, tokenizer metadata, and everything it must refuse."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from danlu.errors import DanluError
from danlu.export import gguf as writer
from danlu.export.gguf import pre_tokenizer, weight_files, write_gguf
from danlu.export.quantize import encode
from danlu.models.tokenizer import load_tokenizer
from tiny_models import VOCABULARY, build, tokenizer, trained

CASES = {"qwen2": ("chatml", "qwen2"), "qwen3": ("r1", "deepseek-r1-qwen"), "llama": ("llama3", "llama-bpe")}
ERROR = {"f32": 0, "f16": 2e-4, "bf16": 2e-3, "q8_0": 2e-3, "q5_0": 0.02, "q4_0": 0.04}  # largest, of weights near 0.3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build(tmp_path / "model")
    return tmp_path / "model"


def fields(path: Path) -> dict:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("architecture", CASES)
def test_metadata_and_tensors(architecture: str, tmp_path: Path) -> None:
    kind, pre = CASES[architecture]
    build(tmp_path / "model", architecture, kind, tied=architecture == "qwen3", shards=True)
    path = write_gguf(tmp_path / "model", tmp_path / "m.gguf", "f32", name="my model", description="demo only")
    found = fields(path)
    made = tokenizer(kind)
    assert found["general.architecture"] == architecture
    assert (found["general.name"], found["general.description"]) == ("my model", "demo only")
    assert found["tokenizer.ggml.pre"] == pre
    assert found["tokenizer.chat_template"] == made.chat_template
    assert found["tokenizer.ggml.eos_token_id"] == made.eos_token_id
    assert found["tokenizer.ggml.add_bos_token"] is (kind == "llama3")
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == VOCABULARY
    assert tokens[-1] == f"[PAD{VOCABULARY - 1}]"
    assert types[-1] == gguf.TokenType.UNUSED
    assert types[made.eos_token_id] == gguf.TokenType.CONTROL
    if kind != "llama3":
        assert types[made.convert_tokens_to_ids("<think>")] == gguf.TokenType.USER_DEFINED
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    assert ("output.weight" in tensors) == (architecture != "qwen3")
    assert ("rope_freqs.weight" in tensors) == (architecture == "llama")
    source = {k: v for file in weight_files(tmp_path / "model") for k, v in load_file(file).items()}
    assert np.array_equal(tensors["blk.1.ffn_up.weight"], source["model.layers.1.mlp.up_proj.weight"].numpy())
    q = source["model.layers.0.self_attn.q_proj.weight"].numpy()
    assert np.array_equal(tensors["blk.0.attn_q.weight"], q) == (architecture != "llama")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "model"]


def test_both_end_tokens_are_written() -> None:
    made = load_tokenizer(trained())
    path = write_gguf(trained(), trained() / "ends.gguf", "f16")
    found = fields(path)
    path.unlink()
    ids = [found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.eot_token_id"]]
    assert made.convert_ids_to_tokens(ids) == ["<|im_end|>", "<|endoftext|>"]


def test_quantization_keeps_vectors_and_odd_rows(folder: Path, tmp_path: Path) -> None:
    kinds = {}
    for quant in ("f32", "f16", "bf16", "q8_0", "q5_0", "q4_0"):
        reader = gguf.GGUFReader(write_gguf(folder, tmp_path / f"{quant}.gguf", quant))
        kinds[quant] = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        assert kinds[quant]["blk.0.attn_norm.weight"] == kinds[quant]["blk.0.attn_q_norm.weight"] == "F32"
        assert kinds[quant]["token_embd.weight"] == (quant.upper() if quant not in ("q5_0", "q4_0") else "Q8_0")
        assert kinds[quant]["blk.0.attn_q.weight"] == quant.upper()
        values = {t.name: t for t in reader.tensors}["blk.0.ffn_down.weight"]
        stored = gguf.quants.dequantize(values.data, values.tensor_type)
        source = load_file(folder / "model.safetensors")["model.layers.0.mlp.down_proj.weight"].numpy()
        assert np.abs(stored - source).max() <= ERROR[quant]
    with pytest.raises(DanluError, match="beyond the range of f16"):
        encode("x", np.full((2, 2), 7e4, np.float32), gguf.GGMLQuantizationType.F16)
    with pytest.raises(DanluError, match="not finite"):
        encode("x", np.full((2, 2), np.nan, np.float32), gguf.GGMLQuantizationType.F32)


def configure(folder: Path, **change) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "cannot export MambaForCausalLM"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"tie_word_embeddings": False}, r"no tensor for output\.weight"),
    ],
)
def test_unknown_networks_are_refused(folder: Path, tmp_path: Path, change: dict, word: str) -> None:
    configure(folder, **change)
    with pytest.raises(DanluError, match=word):
        write_gguf(folder, tmp_path / "m.gguf", "f32")
    assert not list(tmp_path.glob("*.gguf*"))


def test_unknown_tensors_and_missing_shards_are_refused(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "model.layers.0.mlp.gate.lora_A": torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(DanluError, match="lora_A"):
        write_gguf(folder, tmp_path / "m.gguf")
    file.unlink()
    with pytest.raises(DanluError, match=r"model\.safetensors does not exist"):
        write_gguf(folder, tmp_path / "m.gguf")


def test_unknown_pre_tokenizers_are_refused() -> None:
    spec = json.loads(tokenizer("chatml").backend_tokenizer.to_str())
    assert pre_tokenizer(spec) == "qwen2"
    with pytest.raises(DanluError, match="unknown pre-tokenizer"):
        pre_tokenizer({**spec, "pre_tokenizer": {"type": "Whitespace"}})
    with pytest.raises(DanluError, match="ignore_merges True"):
        pre_tokenizer({**spec, "model": {**spec["model"], "ignore_merges": True}})
    with pytest.raises(DanluError, match="Unigram"):
        pre_tokenizer({**spec, "model": {"type": "Unigram"}})


def test_ids_beyond_the_embedding_are_refused(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:300].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(DanluError, match="300 rows"):
        write_gguf(folder, tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_an_end_token_that_the_vocabulary_lacks_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "danlu.json").write_text(json.dumps({"think": {"style": "none", "end_tokens": ["<|no|>"]}}))
    with pytest.raises(DanluError, match=r"<\|no\|>"):
        write_gguf(folder, tmp_path / "m.gguf")


def test_a_full_disk_is_seen_before_writing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(DanluError, match="are free"):
        write_gguf(folder, tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_an_old_file_survives_a_failed_write(folder: Path, tmp_path: Path) -> None:
    path = write_gguf(folder, tmp_path / "m.gguf", "f16")
    before = path.read_bytes()
    shutil.copy(folder / "model.safetensors", tmp_path / "kept")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DanluError, match="not finite"):
        write_gguf(folder, path, "f16")
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))
