"""Small real models for tests: a BPE trained here with Qwen2's pre-tokenizer, Qwen2/Qwen3/Llama networks of a few
hundred kilobytes, and a Qwen3 that memorised a handful of chats so that it thinks, answers and stops by itself."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from danlu import think

_CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_REGEX = _CASES + r"\p{N}" + _REST
LLAMA3_REGEX = _CASES + r"\p{N}{1,3}" + _REST
VOCABULARY = 640  # rows of the embedding; the tokenizer has fewer tokens

CHATML = """{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set reasoning = message.reasoning_content if message.reasoning_content is string else '' %}
        {%- if not reasoning and '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.last and reasoning %}
            {{- '<think>\\n' + reasoning + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

LLAMA_TEMPLATE = """{{- bos_token }}{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

R1_TEMPLATE = """{%- set ns = namespace(system='') %}
{%- for m in messages %}{%- if m.role == 'system' %}{%- set ns.system = m.content %}{%- endif %}{%- endfor %}
{{- bos_token + ns.system }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{- '<｜User｜>' + m.content }}{%- endif %}
    {%- if m.role == 'assistant' %}
        {{- '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜><think>\\n' }}{%- endif %}"""

CHATS = (
    ("发热三天怎么办？", "发热要看原因。", "先休息，多喝水。"),
    ("What is 2+2?", "two and two", "It is 4."),
    ("咳嗽吃什么药？", "咳嗽分干湿。", "请看医生。"),
    ("Name a fruit.", "fruit grows", "Apple."),
)


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the special tokens and template of `kind`: chatml, r1 or llama3."""
    backend = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    backend.normalizer = None if kind == "llama3" else normalizers.NFC()
    split = pre_tokenizers.Split(Regex(LLAMA3_REGEX if kind == "llama3" else QWEN2_REGEX), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    lines = [text for chat in CHATS for text in chat] * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
    )
    specials = {
        "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "r1": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
        "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    }[kind]
    backend.add_special_tokens(specials)
    plain = {"chatml": ["<think>", "</think>"], "r1": ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"]}
    backend.add_tokens([AddedToken(text, normalized=False, special=False) for text in plain.get(kind, [])])
    if kind == "llama3":
        from tokenizers.processors import TemplateProcessing

        bos = ("<|begin_of_text|>", backend.token_to_id("<|begin_of_text|>"))
        backend.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    named = {
        "chatml": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "r1": {"bos_token": specials[0], "eos_token": specials[1], "pad_token": specials[1]},
        "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>"},
    }[kind]
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    made.chat_template = {"chatml": CHATML, "r1": R1_TEMPLATE, "llama3": LLAMA_TEMPLATE}[kind]
    return made


def build(folder: Path, architecture: str = "qwen3", kind: str = "chatml", *, tied: bool = True, shards: bool = False):
    """Save a random model of `architecture` (qwen2, qwen3, llama) and its tokenizer in `folder`."""
    torch.manual_seed(0)
    made = tokenizer(kind)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
        "initializer_range": 0.08,
        "eos_token_id": made.eos_token_id,
        "bos_token_id": made.bos_token_id,
    }
    config = {
        "qwen2": lambda: Qwen2Config(**shape),
        "qwen3": lambda: Qwen3Config(**shape, head_dim=32),
        "llama": lambda: LlamaConfig(
            **shape,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
        ),
    }[architecture]()
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # from_config leaves biases at zero, which would hide a lost bias
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_(0, 0.1)
    model.save_pretrained(folder, **({"max_shard_size": "200KB"} if shards else {}))
    made.save_pretrained(folder)
    ends = [made.eos_token_id] + ([made.pad_token_id] if made.pad_token_id != made.eos_token_id else [])
    generation = {"eos_token_id": ends, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation), "utf-8")
    return model, made


def describe(folder: Path, kind: str = "model", **fields) -> None:
    """Write danlu.json as training does."""
    from danlu.models.tokenizer import load_tokenizer, think_format

    format = think_format(folder, load_tokenizer(folder)).to_dict()
    value = {"kind": kind, "base": {"id": "tiny"}, "think": format, "notice": "demo only", "parents": [], **fields}
    (folder / "danlu.json").write_text(json.dumps(value, ensure_ascii=False), "utf-8")


def build_trained(folder: Path, steps: int = 80) -> Path:
    """A Qwen3 of `build` that memorised CHATS: it thinks, answers and ends its turn."""
    model, made = build(folder)
    format = think.detect(lambda m, **k: made.apply_chat_template(m, tokenize=False, **k), ("<|im_end|>",))
    rows = []
    for question, reasoning, answer in CHATS:
        prompt = made.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = made(prompt)["input_ids"]
        done = made(format.join(reasoning, answer) + "<|im_end|>")["input_ids"]
        rows.append((ids + done, [-100] * len(ids) + done))
    width = max(len(ids) for ids, _ in rows)
    pad = made.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for _, row in rows])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small lose to the synchronisation of threads
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=(ids != pad).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    assert loss < 0.1, loss
    model.generation_config.eos_token_id = [made.eos_token_id, made.pad_token_id]
    model.save_pretrained(folder)
    describe(folder)
    return folder


@functools.cache
def trained() -> Path:
    """The model of `build_trained`, made once for all tests; read only."""
    folder = tempfile.TemporaryDirectory(prefix="danlu-tests-")
    _kept.append(folder)
    return build_trained(Path(folder.name))


_kept: list[tempfile.TemporaryDirectory[str]] = []  # removed when the tests end


def adapter(base: Path, folder: Path, **settings) -> Path:
    """A LoRA adapter of `base` with random weights, saved by peft; `settings` go to LoraConfig."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype="float32"), LoraConfig(**defaults | settings)
    )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                value.normal_(0, 0.1)
            elif value.requires_grad:
                value.add_(0.05 * torch.randn_like(value))
    model.save_pretrained(folder)
    return folder
