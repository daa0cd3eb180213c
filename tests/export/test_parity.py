"""The parity check passes on sound exports of every architecture and names each fault that is put into one."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from danlu.errors import DanluError
from danlu.export import parity
from danlu.export.gguf import write_gguf
from danlu.export.parity import LIMITS, failed, probe_prompts, probe_texts, verify
from danlu.models.locate import base_dir
from danlu.models.tokenizer import load_tokenizer
from tiny_models import CHATS, build, trained

PROMPTS = [[{"role": "user", "content": question}] for question, _, _ in CHATS]
TEXTS = probe_texts()[:150]  # the whole list is checked once
REAL = Path(__file__).parents[2].parent / "shared" / "tokenizers"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the trained model for a test to break."""
    return Path(shutil.copytree(trained(), tmp_path / "broken"))


def check(report: dict, name: str) -> dict:
    return next(check for check in report["checks"] if check["name"] == name)


def faults(broken: Path, quant: str = "q8_0") -> tuple[list[str], dict]:
    """Failed checks of the GGUF of `broken` against the trained model."""
    path = write_gguf(broken, broken.parent / "m.gguf", quant)
    report = verify(path, trained(), quant=quant, texts=TEXTS, prompts=PROMPTS, greedy_tokens=12, answer_tokens=40)
    return failed(report), report


def test_a_sound_export_passes_every_check(tmp_path: Path) -> None:
    path = write_gguf(trained(), tmp_path / "m.gguf", "f32")
    report = verify(path, trained(), quant="f32", prompts=PROMPTS + probe_prompts())
    assert report["ok"], report
    assert [one["name"] for one in report["checks"]] == [
        "file",
        "metadata",
        "tensors",
        "end tokens",
        "token ids",
        "prompts",
        "prompt ids",
        "modelfile prompts",
        "log-probs",
        "KL",
        "greedy agreement",
        "stops",
        "reasoning",
    ]
    assert check(report, "token ids")["texts"] >= 2000
    assert check(report, "token ids")["nfd"]["different"] > 0  # llama.cpp does not normalise
    assert check(report, "end tokens")["tokens"] == ["<|im_end|>", "<|endoftext|>"]
    assert check(report, "log-probs")["value"] < 1e-4
    assert check(report, "stops")["ended"] == check(report, "stops")["source_ended"] >= 4
    assert check(report, "reasoning")["well_formed"] >= 4
    json.dumps(report)


@pytest.mark.parametrize("quant", ["f16", "bf16", "q8_0"])
def test_quantized_exports_pass_with_room(quant: str, tmp_path: Path) -> None:
    path = write_gguf(trained(), tmp_path / "m.gguf", quant)
    report = verify(path, trained(), quant=quant, texts=TEXTS, prompts=PROMPTS)
    assert report["ok"], report
    assert check(report, "KL")["value"] < LIMITS[quant][1] / 3
    assert check(report, "KL")["value"] > 1e-9  # the rounding is seen


@pytest.mark.parametrize(("architecture", "kind"), [("qwen2", "r1"), ("qwen2", "chatml"), ("llama", "llama3")])
def test_other_architectures_pass_in_f32(architecture: str, kind: str, tmp_path: Path) -> None:
    build(tmp_path / "model", architecture, kind, tied=False)
    path = write_gguf(tmp_path / "model", tmp_path / "m.gguf", "f32")
    report = verify(path, tmp_path / "model", quant="f32", texts=TEXTS)
    assert report["ok"], report


def test_the_distance_is_the_kl_without_the_normalisers_rounding() -> None:
    logits = torch.randn(900, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    p = logits.log_softmax(0)
    q = (logits + 0.05 * torch.randn(900, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).log_softmax(
        0
    )
    every = dict(enumerate(q.tolist()))
    kl = float((p.exp() * (p - q)).sum())
    assert parity._distance(p, every)[1] == pytest.approx(kl, rel=1e-9)
    top = {int(i): float(q[i]) for i in q.topk(512).indices}
    assert kl * 0.8 < parity._distance(p, top)[1] <= kl  # the rest is one event
    off = {int(i): float(p[i]) + 1e-4 for i in p.topk(512).indices}
    gap, divergence = parity._distance(p, off)
    assert (gap, divergence) == (pytest.approx(1e-4), pytest.approx(0, abs=1e-12))
    lost = {int(i): float(p[i]) - 0.01 for i in p.topk(512).indices}  # more than rounding: it went to the rest
    assert parity._distance(p, lost)[1] > 1e-5


def test_the_tiny_base_passes_in_f32(tmp_path: Path) -> None:
    path = write_gguf(base_dir({"id": "tiny"}), tmp_path / "m.gguf", "f32")
    report = verify(path, base_dir({"id": "tiny"}), quant="f32", texts=TEXTS)
    assert report["ok"], report
    assert check(report, "KL")["value"] < 1e-9


def test_a_wrong_template_is_named(copy: Path) -> None:
    template = copy / "chat_template.jinja"
    text = template.read_text("utf-8")
    assert "message.role + '\\n'" in text
    template.write_text(text.replace("message.role + '\\n'", "message.role + ' '"), "utf-8")
    names, report = faults(copy)
    assert names == ["metadata", "prompts", "prompt ids"]
    assert check(report, "metadata")["value"] == ["tokenizer.chat_template"]


def test_answers_without_their_reasoning_are_named(copy: Path) -> None:
    template = copy / "chat_template.jinja"
    text = template.read_text("utf-8")
    always_off = text.replace("enable_thinking is defined and enable_thinking is false", "true")
    assert always_off != text
    template.write_text(always_off, "utf-8")
    names, report = faults(copy)
    assert {"prompts", "reasoning"} <= set(names)
    assert check(report, "reasoning")["value"] == 4


def test_a_wrong_end_token_is_named(copy: Path) -> None:
    tokenizer = load_tokenizer(copy)
    wrong = tokenizer.convert_tokens_to_ids("<think>")
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    told = json.loads((copy / "danlu.json").read_text("utf-8"))
    told["think"]["end_tokens"] = ["<think>"]
    (copy / "danlu.json").write_text(json.dumps(told))
    names, report = faults(copy)
    assert {"metadata", "end tokens"} <= set(names)
    assert check(report, "end tokens")["value"] == ["<think> stops"]


def test_a_missing_end_token_is_named(copy: Path) -> None:
    path = write_gguf(trained(), copy.parent / "m.gguf", "q8_0")
    told = json.loads((copy / "danlu.json").read_text("utf-8"))
    told["think"]["end_tokens"].append("</think>")  # the source ends there too, the file does not know
    (copy / "danlu.json").write_text(json.dumps(told))
    report = verify(path, copy, quant="q8_0", texts=TEXTS, prompts=PROMPTS)
    assert "end tokens" in failed(report)
    assert "</think> does not stop" in check(report, "end tokens")["value"]


@pytest.mark.parametrize(
    ("tensor", "in_gguf"),
    [
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight"),
    ],
)
def test_a_permuted_tensor_is_named(tensor: str, in_gguf: str, copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    tensors[tensor] = tensors[tensor].flip(0).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    names, report = faults(copy)
    assert {"tensors", "log-probs", "KL"} <= set(names)
    assert check(report, "tensors")["value"] == [in_gguf]


def test_another_tokenizer_is_named(copy: Path) -> None:
    spec = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    spec["model"]["merges"] = spec["model"]["merges"][:-40]
    (copy / "tokenizer.json").write_text(json.dumps(spec), "utf-8")
    names, report = faults(copy)
    assert "token ids" in names
    assert check(report, "token ids")["examples"]


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = write_gguf(trained(), tmp_path / "m.gguf", "q8_0")
    whole = path.stat().st_size
    for size in (whole - 1000, whole // 2, 200):
        os.truncate(path, size)
        report = verify(path, trained(), quant="q8_0")
        assert failed(report) == ["file"]
        assert len(report["checks"]) == 1


def test_probe_texts_are_many_and_mixed() -> None:
    texts = probe_texts(["阿司匹林", "aspirin"])
    normal = {unicodedata.normalize("NFC", text) for text in texts}
    assert len(normal) >= 2000
    assert "阿司匹林" in normal
    joined = "".join(normal)
    assert all(piece in joined for piece in ("发", "the", "😀", "7", "…", "\n", "é"))
    assert probe_texts(["阿司匹林", "aspirin"]) == texts
    assert len(probe_texts([f"term{i}" for i in range(5000)])) < 3000


def test_only_exports_can_be_verified_by_name(tmp_path: Path) -> None:
    with pytest.raises(DanluError, match="is not an export"):
        verify(tmp_path)


def test_reasoning_left_in_the_content_is_named(copy: Path) -> None:
    plain = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    plain += "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    (copy / "chat_template.jinja").write_text(plain, "utf-8")  # llama.cpp cannot know that it reasons
    names, report = faults(copy)
    assert "reasoning" in names
    assert check(report, "reasoning")["leaked"] == check(report, "reasoning")["well_formed"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen2.5-Instruct", "Qwen3-1.7B", "DeepSeek-R1-Distill-Qwen"])
def test_real_tokenizers_agree(name: str, tmp_path: Path) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"no {name} tokenizer here")
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

    folder = tmp_path / "model"
    config = (Qwen3Config if name.startswith("Qwen3") else Qwen2Config)(
        vocab_size=151936,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in (REAL / name).glob("*"):
        if file.name not in ("config.json", "generation_config.json"):
            shutil.copyfile(file, folder / file.name)
    path = write_gguf(folder, tmp_path / "m.gguf", "q8_0")
    report = verify(path, folder, quant="q8_0", greedy_tokens=4, answer_tokens=4)
    for one in ("file", "metadata", "tensors", "end tokens", "token ids", "prompts", "prompt ids", "modelfile prompts"):
        assert check(report, one)["ok"], check(report, one)
    assert check(report, "token ids")["texts"] >= 2000
