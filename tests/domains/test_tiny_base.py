"""The shipped base: what its provenance says is what lies there, and the script that made it still makes it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from danlu.domains.medical.clinic.phrases import PHRASES

ROOT = Path(__file__).parents[2]
TINY = ROOT / "src/danlu/assets/tiny"
made = pytest.mark.skipif(not (TINY / "model.safetensors").is_file(), reason="the tiny base is not made yet")

USER = {"role": "user", "content": "发热三天，咳嗽？"}
ANSWER = {"role": "assistant", "content": "肺炎。"}
THOUGHT = {"role": "assistant", "content": "肺炎。", "reasoning_content": "发热、咳嗽，共2项"}
INLINE = {"role": "assistant", "content": "<think>\n发热\n</think>\n\n肺炎。"}
EMPTY = {"role": "assistant", "content": "<think>\n\n</think>\n\n肺炎。"}
SYSTEM = {"role": "system", "content": "You are careful.\n请用中文。"}
CHATS = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "answered": [USER, ANSWER],
    "thought": [USER, THOUGHT],
    "inline": [USER, INLINE],
    "empty thought": [USER, EMPTY],
    "turns": [USER, ANSWER, USER],
    "turns with thoughts": [SYSTEM, USER, THOUGHT, USER, INLINE, USER],
    "thought at the end of turns": [USER, THOUGHT, USER, THOUGHT],
}


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_tiny", ROOT / "scripts/pretrain_tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def provenance() -> dict:
    return json.loads((TINY / "provenance.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def qwen3(tokenizers):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(tokenizers / "Qwen3-1.7B"), local_files_only=True)


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("options", [{}, {"enable_thinking": True}, {"enable_thinking": False}], ids=str)
@pytest.mark.parametrize("prompt", [True, False], ids=["prompt", "whole"])
def test_chat_template_renders_like_qwen3(qwen3, name, options, prompt):
    ours = (TINY / "chat_template.jinja").read_text(encoding="utf-8")
    common = {"tokenize": False, "add_generation_prompt": prompt, **options}
    expected = qwen3.apply_chat_template(CHATS[name], **common)
    assert qwen3.apply_chat_template(CHATS[name], chat_template=ours, **common) == expected


@made
def test_provenance_is_of_these_files():
    told = provenance()
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"} <= set(told["sha256"])
    for name, expected in told["sha256"].items():
        assert hashlib.sha256((TINY / name).read_bytes()).hexdigest() == expected, name
    assert told["textbook_sha256"] == script().source_digest()
    assert "DEMO-ONLY" in told["notice"]
    assert told["final_loss"] < told["first_losses"][0] / 3
    assert "/" not in told["command"].replace("scripts/", "").replace("assets/", "")  # no path of the machine


@made
def test_small_enough_to_ship():
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 8 * 2**20


@made
def test_tokenizer(kb):
    from danlu.models.tokenizer import end_token_ids, load_tokenizer, think_format

    tokenizer = load_tokenizer(TINY)
    for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"):
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1, token
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.convert_ids_to_tokens(end_token_ids(TINY, tokenizer))[0] == "<|im_end|>"
    think = think_format(TINY, tokenizer)
    assert (think.style, think.opened_by, think.end_tokens[0]) == ("think", "model", "<|im_end|>")
    assert think.thinking_off == "<think>\n\n</think>\n\n"
    names = [name for entry in kb.entries.values() for name in entry.names["zh"]]
    lengths = [len(ids) for ids in tokenizer(names, add_special_tokens=False)["input_ids"]]
    assert sum(length == 1 for length in lengths) > 0.95 * len(names)
    in_text = [PHRASES["zh"].comma + name + PHRASES["zh"].comma for name in names]  # also between commas
    lengths = [len(ids) for ids in tokenizer(in_text, add_special_tokens=False)["input_ids"]]
    assert sum(length == 3 for length in lengths) > 0.95 * len(names)
    for text in ("发热、咳嗽，共2项。", "A 12-year-old boy has fever, cough.", "𠮷😀 naïve\n\n x"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@made
def test_the_model_is_a_small_qwen3():
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert provenance()["parameters"] < 4_000_000


@made
def test_the_base_has_read_its_textbook(kb):
    """It knows facts (a held-out condition's first test is likelier than other tests), though no vignette."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from danlu.domains.medical.clinic.vignettes import held_out

    tokenizer = AutoTokenizer.from_pretrained(str(TINY), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(str(TINY), dtype=torch.float32).eval()
    right = 0
    conditions = sorted(held_out())
    for key in conditions:
        prompt = tokenizer(f"{kb.name(key, 'zh')}的首选检查是", add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            likely = int(model(prompt["input_ids"]).logits[0, -1].argmax())
        wanted = tokenizer(kb.name(kb.conditions[key].facts["test"], "zh"), add_special_tokens=False)["input_ids"]
        right += likely == wanted[0]
    assert right > 0.8 * len(conditions)


@pytest.fixture
def pretraining(monkeypatch) -> ModuleType:
    """The script without compilation, which takes longer than the steps that are tested."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    return script()


@pytest.fixture(scope="session")
def trained_tokenizer():
    return script().train_tokenizer(0)


@pytest.mark.slow
def test_three_steps_learn(pretraining, trained_tokenizer):
    _, losses = pretraining.pretrain(trained_tokenizer, steps=3, rows=4, length=32, lr=4e-3, seed=0)
    assert all(math.isfinite(loss) for loss in losses)
    assert abs(losses[0] - math.log(pretraining.VOCABULARY)) < 1  # nothing known yet
    _, more = pretraining.pretrain(trained_tokenizer, steps=12, rows=4, length=32, lr=4e-3, seed=0)
    assert more[:3] == pytest.approx(losses, abs=1e-4)  # the rate does not depend on the length of the run
    assert sum(more[-3:]) < sum(losses)


@pytest.mark.slow
@made
def test_the_recorded_run_begins_as_recorded(pretraining, trained_tokenizer, tmp_path):
    told = provenance()
    option = dict(re.findall(r"--(\w+)[ =](\S+)", told["command"]))
    tokenizer = trained_tokenizer if told["seed"] == 0 else pretraining.train_tokenizer(told["seed"])
    tokenizer.save_pretrained(tmp_path)
    made_again = hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    assert made_again == told["sha256"]["tokenizer.json"]
    rows, length = int(option.get("rows", 16)), int(option.get("length", 192))
    assert told["tokens"] == told["steps"] * rows * length
    rate = float(option.get("lr", 4e-3))
    short = 60 + 2  # inside the warm-up the rate does not depend on the number of steps
    assert pretraining.rate(1, short) == pretraining.rate(1, told["steps"])
    _, losses = pretraining.pretrain(tokenizer, steps=2, rows=rows, length=length, lr=rate, seed=told["seed"])
    assert losses == pytest.approx(told["first_losses"][:2], abs=1e-3)
