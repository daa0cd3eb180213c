"""A LoRA adapter as a GGUF file: llama.cpp with it against peft, and what it cannot carry."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from danlu.errors import DanluError
from danlu.export.gguf import write_gguf
from danlu.export.lora import check_lora, write_lora
from tiny_models import adapter, build

KINDS = {
    "qwen3": ("chatml", {"target_modules": "all-linear", "use_rslora": True}),
    "llama": (
        "llama3",
        {"target_modules": "all-linear", "alpha_pattern": {"v_proj": 3}, "rank_pattern": {"k_proj": 2}},
    ),
}
PROMPTS = [[5, 9, 17, 23], [101, 7, 44], [3, 250, 12, 12, 90, 41]]


@pytest.mark.parametrize("architecture", KINDS)
def test_llama_cpp_answers_as_peft_does(architecture: str, tmp_path: Path) -> None:
    kind, settings = KINDS[architecture]
    build(tmp_path / "base", architecture, kind)
    source = adapter(tmp_path / "base", tmp_path / "adapter", **settings)
    base = write_gguf(tmp_path / "base", tmp_path / "base.gguf", "f32")
    made = write_lora(source, tmp_path / "base", tmp_path / "adapter.gguf", name="mine")
    check = check_lora(base, made, tmp_path / "base", source, "f32", PROMPTS)
    assert check["ok"], check
    assert check["change"] > 0.01
    fields = {name: field.contents() for name, field in gguf.GGUFReader(made).fields.items()}
    assert (fields["general.type"], fields["adapter.type"], fields["adapter.lora.alpha"]) == ("adapter", "lora", 8.0)
    config = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 24, "alpha_pattern": {}}))
    assert not check_lora(base, made, tmp_path / "base", source, "f32", PROMPTS)["ok"]  # another scale is seen
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, r"lm_head\.weight itself"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens"),
        ({"target_modules": ["lm_head", "q_proj"]}, "tied"),
    ],
)
def test_what_llama_cpp_cannot_apply_is_refused(settings: dict, word: str, tmp_path: Path) -> None:
    build(tmp_path / "base")
    source = adapter(tmp_path / "base", tmp_path / "adapter", **settings)
    with pytest.raises(DanluError, match=word):
        write_lora(source, tmp_path / "base", tmp_path / "adapter.gguf", name="mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
