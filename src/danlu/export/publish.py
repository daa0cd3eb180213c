"""From an export to a model in Ollama: through its REST API where a server runs, else through its command.

The GGUF is hashed, sent if the server does not have it, and the model is made under a passing name; where the server
tells the prompts that it makes of chats, these are compared with the source's own template, on the user's machine and
whichever of the two templates it uses; only then does the model get its name. What is made is what the Modelfile says,
so an edited Modelfile counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from danlu import display
from danlu.errors import DanluError
from danlu.export import contents
from danlu.export.ollama import check_chats, commands, model_name, read_modelfile, thinking_options
from danlu.export.ollama_api import OLDEST, PIECE, Ollama, too_old
from danlu.models.tokenizer import load_tokenizer, renderer
from danlu.records import Message
from danlu.run import read_json
from danlu.think import ThinkFormat


def publish(folder: Path, name: str) -> dict[str, Any]:
    """Make the model of the artifact `folder` in Ollama under `name` (shortened to what Ollama takes).

    Returns {"created", "model", "server", "version", "uploaded", "prompts": {"compared", "different"} or None,
    "commands"}; `created` is False where there is neither a server nor the command. DanluError for a damaged file, a
    server that is too old or refuses, and prompts that are not the source's: the name is then not touched.
    """
    name, typed = model_name(name), commands(name, str(folder))
    described = read_modelfile(folder / "Modelfile")
    opened, _ = contents.opened(folder / described["from"])
    if not opened["ok"]:
        raise DanluError(f"{folder / described['from']} is damaged: {opened['value']}", "export it again")
    server = Ollama()
    version = server.version()
    found: dict[str, Any] = {"created": False, "model": name, "server": server.url, "version": version}
    found |= {"uploaded": False, "prompts": None, "commands": typed}
    if version is None:
        return {**found, "server": None, "created": _by_command(folder, name, typed)}
    if too_old(version):
        least = ".".join(map(str, OLDEST))
        raise DanluError(
            f"Ollama {version} at {server.url} is too old for thinking models", f"install {least} or newer"
        )
    file = folder / described["from"]
    digest = _digest(file)
    if not server.has(digest):
        with display.task(f"upload {file.name} (MB)", file.stat().st_size / 1e6) as progress:
            server.upload(file, digest, lambda sent: progress.advance(sent / 1e6))
        found["uploaded"] = True
    passing = f"{name}-danlu-unchecked"
    body = {key: described[key] for key in ("template", "system", "license", "parameters") if described.get(key)}
    try:
        for status in server.create({"model": passing, "files": {file.name: digest}, **body}):
            display.say(f"  ollama: {status}")
        found["prompts"] = _compare(server, passing, folder, described)
        server.copy(passing, name)
    finally:
        with contextlib.suppress(DanluError):
            server.delete(passing)
    return {**found, "created": True}


def ask(name: str, question: str, think: ThinkFormat) -> Iterator[tuple[bool | None, Iterator[tuple[str, str]]]]:
    """One question with and without thinking (once, where the model does not think): (think, pieces of the answer)."""
    server = Ollama()
    messages: list[Message] = [{"role": "user", "content": question}]
    for thinking in (True, False) if think.style == "think" else (None,):
        yield thinking, server.ask(model_name(name), messages, thinking)


def _by_command(folder: Path, name: str, typed: list[str]) -> bool:
    """Whether `ollama create` made the model; False where there is no such command."""
    tool = shutil.which("ollama")
    if tool is None:
        return False
    done = subprocess.run(
        [tool, "create", name, "-f", str(folder / "Modelfile")], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise DanluError(
            f"ollama create failed: {' '.join(last) or done.returncode}",
            f"start it with `ollama serve`, then: {typed[0]}",
        )
    return True


def _digest(file: Path) -> str:
    """The sha256 of a file, as Ollama names blobs."""
    found = hashlib.sha256()
    with display.task(f"hash {file.name} (MB)", file.stat().st_size / 1e6) as progress, file.open("rb") as source:
        while piece := source.read(PIECE):
            found.update(piece)
            progress.advance(len(piece) / 1e6)
    return f"sha256:{found.hexdigest()}"


def _compare(server: Ollama, model: str, folder: Path, described: dict[str, Any]) -> dict[str, int] | None:
    """How many prompts of the server are the source's; None where either is not to be had."""
    told = read_json(folder / "danlu.json")
    source = (folder / told["source"]).resolve()
    if not source.is_dir():
        display.warn(f"Ollama's prompts are not checked: the model it was made from is gone ({source})")
        return None
    expected = _expected(source, described.get("system", ""))
    thinks = ThinkFormat.from_dict(told["think"]).style == "think"
    asked = [(chat, thinking) for chat, thinking in check_chats() if thinks or not thinking]
    for count, (chat, thinking) in enumerate(asked):
        bos, wanted = expected(chat, thinking)
        found = server.rendered(model, chat, thinking)
        if found is None:
            display.warn("this version of Ollama does not tell its prompts: they are not checked")
            return None
        if found.removeprefix(bos) != wanted:
            raise DanluError(
                f"Ollama's prompt is not the model's (chat {count + 1}, think {thinking}): {found!r:.300}",
                f"expected {wanted!r:.300}; {described['from']} was not given its name",
            )
    return {"compared": len(asked), "different": 0}


def _expected(source: Path, system: str) -> Callable[[list[Message], bool | None], tuple[str, str]]:
    """(BOS that the runtime may add by itself, prompt without it) of a chat, under the Modelfile's system text."""
    tokenizer = load_tokenizer(source)
    render, bos = renderer(tokenizer), tokenizer.bos_token or ""
    adds_bos = bool(bos) and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    bos = bos if adds_bos else ""

    def expected(chat: list[Message], thinking: bool | None) -> tuple[str, str]:
        if system and chat[0]["role"] != "system":
            chat = [{"role": "system", "content": system}, *chat]
        text = render(chat, add_generation_prompt=True, **thinking_options(thinking))
        return bos, text.removeprefix(bos)

    return expected
