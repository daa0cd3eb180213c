"""An Ollama Modelfile whose Go TEMPLATE renders the prompts of the model's own Jinja template.

Method: the Jinja template is probed with strings that no template contains; the texts between them are the model's
`Layout` (what comes before and after each role). The Go template and a Python twin, `render_layout`, are both made
of the layout, and the twin is compared with the Jinja template on a set of chats before the layout is accepted. So
ChatML, R1-Distill and Llama 3 need no template of their own here, and a template that does more than a layout can
say (tools, dates that change, reasoning kept in history) is refused instead of being approximated.

Why a TEMPLATE at all: Ollama's detection finds none for Qwen3 and R1-Distill, and it learns the think tags from the
nodes around `.Thinking`. Not covered: tools; a system message that is not the first; an unfinished last assistant
turn (Ollama's prefill) beyond its plain form. Ollama drops unprintable characters of a Modelfile (U+3000) and has no
escape for triple quotes, so texts with them are refused.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from danlu.errors import DanluError
from danlu.recipe import Export
from danlu.records import Message
from danlu.think import Render, ThinkFormat

# one instruction: a comment; a word with a text in three quotes, or with the rest of its line
_LINE = re.compile(r'^(?:(#[^\n]*)|([A-Z]+) +(?:"""(.*?)"""|([^\n]*))|[^\n]*)$', re.M | re.S)
_U1, _U2, _A1, _S = "u\u2460ser", "u\u2461ser", "a\u2460nswer", "s\u2460ystem"


@dataclass(frozen=True, slots=True)
class Layout:
    """The fixed texts of a chat template. A prompt is `start`, the turns, and `generation` at the end.

    `default_system` stands in place of a missing system turn, with everything around it.
    """

    start: str
    system: tuple[str, str]  # before and after the system text
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str
    default_system: str = ""
    thinking_off: str | None = None  # appended when thinking is switched off


def find_layout(render: Render, *, bos: str = "", runtime_adds_bos: bool = False) -> Layout | None:
    """The layout of a Jinja template, or None when a layout cannot say what the template does.

    `bos` is the token a prompt may start with; where the runtime puts it there itself the layout leaves it out.
    """
    try:
        layout = _probe(render, bos)
    except ValueError:  # a probe's text is missing or changed in the rendering
        return None
    if layout is None or any(render_layout(layout, *chat) != _render(render, *chat) for chat in check_chats()):
        return None
    return replace(layout, start="") if runtime_adds_bos else layout


def _probe(render: Render, bos: str) -> Layout | None:
    user: Message = {"role": "user", "content": _U1}
    answer: Message = {"role": "assistant", "content": _A1}
    more: Message = {"role": "user", "content": _U2}
    before, after = _cut(render([user], add_generation_prompt=True), _U1)
    prompt = render([{"role": "system", "content": _S}, user], add_generation_prompt=True)
    before_system, system_to_user, _ = _cut(prompt, _S, _U1)
    _, to_assistant, to_user, _ = _cut(render([user, answer, more], add_generation_prompt=True), _U1, _A1, _U2)
    user_close = _cut(render([user], add_generation_prompt=False), _U1)[-1]
    assistant_close = _cut(render([user, answer], add_generation_prompt=False), _A1)[-1]
    user_open = to_user.removeprefix(assistant_close)
    start = bos if bos and before.startswith(bos) and before_system.startswith(bos) else ""
    if not (before.endswith(user_open) and system_to_user.endswith(user_open) and after.startswith(user_close)):
        return None
    off = render([user], add_generation_prompt=True, enable_thinking=False)
    whole = before + _U1 + after
    return Layout(
        start=start,
        system=(before_system.removeprefix(start), system_to_user.removesuffix(user_open)),
        user=(user_open, user_close),
        assistant=(to_assistant.removeprefix(user_close), assistant_close),
        generation=after.removeprefix(user_close),
        default_system=before.removesuffix(user_open).removeprefix(start),
        thinking_off=off.removeprefix(whole) if off != whole and off.startswith(whole) else None,
    )


def _cut(text: str, *marks: str) -> list[str]:
    """The pieces of `text` around each mark, in order; ValueError unless each occurs once."""
    pieces = []
    for mark in marks:
        if text.count(mark) != 1:
            raise ValueError(mark)
        piece, _, text = text.partition(mark)
        pieces.append(piece)
    return [*pieces, text]


def render_layout(layout: Layout, messages: Sequence[Message], thinking: bool | None = None) -> str:
    """The prompt for `messages` (ending with a user turn): what the Go template writes, in Python.

    `thinking` None: left alone. Ollama itself switches it on then, where it finds think tags in the template.
    """
    text = layout.start
    if messages[0]["role"] != "system":
        text += layout.default_system
    around = {"system": layout.system, "user": layout.user, "assistant": layout.assistant}
    for message in messages:
        opening, closing = around[message["role"]]
        text += opening + message["content"] + closing
    return text + layout.generation + (layout.thinking_off or "" if thinking is False else "")


def check_chats() -> list[tuple[list[Message], bool | None]]:
    """(messages, thinking) that templates are compared on: with and without system, turns, reasoning in history;
    thinking left alone, on and off."""
    one: list[Message] = [{"role": "user", "content": "What is 2+2? 二加二?"}]
    turns: list[Message] = [
        *one,
        {"role": "assistant", "content": "It is 4.", "reasoning_content": "two and two"},
        {"role": "user", "content": "And 3+3?\nPlease explain."},
    ]
    more: list[Message] = [
        *turns,
        {"role": "assistant", "content": "六。"},
        {"role": "user", "content": "谢谢 {x} <b>"},
    ]
    system: Message = {"role": "system", "content": "You are careful.\n\n请用中文回答。"}
    chats = [one, turns, more, [system, *one], [system, *turns], [system, *more]]
    return [(chat, thinking) for chat in chats for thinking in (None, True, False)]


def thinking_options(thinking: bool | None) -> dict[str, bool]:
    """What a Jinja template is told of `thinking`."""
    return {} if thinking is None else {"enable_thinking": thinking}


def _render(render: Render, messages: Sequence[Message], thinking: bool | None) -> str:
    return render(list(messages), add_generation_prompt=True, **thinking_options(thinking))


def go_template(layout: Layout, think: ThinkFormat) -> str:
    """The layout in the Go template language, on one stretch: no trim markers, so every newline is the prompt's.

    DanluError when a fixed text cannot stand in a Modelfile.
    """
    for text in (layout.start, *layout.system, *layout.user, *layout.assistant, layout.generation):
        _quotable(text, "the chat template", braces=True)
    reasoning = ""
    if think.style == "think":  # Ollama reads the tags from the text around .Thinking
        reasoning = f"{{{{ if and $last .Thinking }}}}{think.open}\n{{{{ .Thinking }}}}{think.bridge}{{{{ end }}}}"
    off = ""
    if layout.thinking_off:
        off = f"{{{{ if and $.IsThinkSet (not $.Think) }}}}{layout.thinking_off}{{{{ end }}}}"
    default = ""
    if layout.default_system:
        default = f'{{{{ if and (eq $i 0) (ne .Role "system") }}}}{layout.default_system}{{{{ end }}}}'
    return (
        f"{layout.start}{{{{ range $i, $m := .Messages }}}}{{{{ $last := eq (len (slice $.Messages $i)) 1 }}}}{default}"
        f'{{{{ if eq .Role "system" }}}}{layout.system[0]}{{{{ .Content }}}}{layout.system[1]}'
        f'{{{{ else if eq .Role "user" }}}}{layout.user[0]}{{{{ .Content }}}}{layout.user[1]}'
        f'{{{{ else if eq .Role "assistant" }}}}{layout.assistant[0]}{reasoning}{{{{ .Content }}}}'
        f"{{{{ if not $last }}}}{layout.assistant[1]}{{{{ end }}}}{{{{ end }}}}"
        f'{{{{ if and $last (ne .Role "assistant") }}}}{layout.generation}{off}{{{{ end }}}}{{{{ end }}}}'
    )


def modelfile(
    gguf_name: str, think: ThinkFormat, layout: Layout | None, settings: Export, *, notice: str = "", licence: str = ""
) -> str:
    """Text of a Modelfile beside the GGUF file `gguf_name`.

    Without a layout there is no TEMPLATE but a comment that says so; Ollama then uses the GGUF's Jinja template or
    its own guess. DanluError for texts that a Modelfile cannot hold.
    """
    lines = [f"# {line}" for line in notice.splitlines()]
    lines.append(f"FROM ./{gguf_name}")
    if layout is None:
        lines.append("# No TEMPLATE: this chat template could not be put into Ollama's language; check the prompts.")
    else:
        lines.append(f'TEMPLATE """{go_template(layout, think)}"""')
    lines += [f'PARAMETER stop "{token}"' for token in think.end_tokens]
    lines += [
        f"PARAMETER num_ctx {settings.num_ctx}",
        f"PARAMETER temperature {settings.temperature:g}",
        f"PARAMETER top_p {settings.top_p:g}",
        "PARAMETER top_k 0",  # Ollama's own defaults would filter and punish repetition beside what was evaluated
        "PARAMETER repeat_penalty 1",
    ]
    if settings.system:
        _quotable(settings.system, "export.system")
        lines.append(f'SYSTEM """{settings.system}"""')
    if licence:
        _quotable(licence, "the licence")
        lines.append(f'LICENSE """{licence}"""')
    return "\n".join(lines) + "\n"


def read_modelfile(path: Path) -> dict[str, Any]:
    """What a Modelfile of ours says: {"from", "template", "system", "license", "parameters"}, as /api/create takes it.

    DanluError for a line that `modelfile` does not write: Ollama knows more, its own command then has to read it.
    """
    found: dict[str, Any] = {"parameters": {}}
    text = path.read_text(encoding="utf-8")
    for line in _LINE.finditer(text):
        comment, word, quoted, value = line.groups()
        if comment is not None:
            continue
        value = quoted if quoted is not None else (value or "").strip()
        if word == "PARAMETER":
            name, _, setting = value.partition(" ")
            if name == "stop":
                found["parameters"].setdefault("stop", []).append(setting.strip().strip('"'))
            else:
                found["parameters"][name] = int(setting) if re.fullmatch(r"-?\d+", setting) else float(setting)
        elif word in ("FROM", "TEMPLATE", "SYSTEM", "LICENSE"):
            found[word.lower()] = value.removeprefix("./") if word == "FROM" else value
        elif line[0].strip():
            raise DanluError(f"{path}: {line[0].strip()[:60]!r} is not read here", f"ollama create NAME -f {path}")
    if "from" not in found:
        raise DanluError(f"{path} has no FROM", "export again")
    return found


def model_name(name: str) -> str:
    """`name` in what Ollama takes: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "danlu"


def commands(name: str, folder: str) -> list[str]:
    """What to type to run the model in Ollama."""
    name = model_name(name)
    return [f"ollama create {name} -f {shlex.quote(f'{folder}/Modelfile')}", f"ollama run {name}"]


def _quotable(text: str, what: str, *, braces: bool = False) -> None:
    bad = next((c for c in text if not c.isprintable() and c not in "\n\t"), None)
    if '"""' in text or text.endswith('"') or bad or (braces and "{{" in text):
        shown = f"U+{ord(bad):04X}" if bad else '"""' if '"' in text else "{{"
        raise DanluError(f"{what} holds {shown}, which a Modelfile cannot carry", "write the text without it")
