"""Talking to models: which there are, the processes that answer, and what is kept of what they said; no NiceGUI here.

A kept pair is a row that preference trainers read (chats under `prompt`, `chosen`, `rejected`); a kept question is one
that `danlu eval --bench FILE` asks.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.errors import DanluError
from danlu.run import digest
from danlu.studio import jobs
from danlu.studio.overview import Overview, config_of
from danlu.studio.place import Place
from danlu.studio.safety import inside, run_path

LONGEST = 2**22  # bytes of one event


@dataclass(frozen=True, slots=True)
class Target:
    """Something that answers. `opens`: what open_generator takes; `config`: the resolved recipe that goes with it."""

    label: str
    opens: str
    kind: str
    config: str | None = None


def targets(place: Place, runs: list[Overview]) -> list[Target]:
    """What finished runs hold, newest first: adapters, GGUFs, merged models; then the bases that they began with."""
    found: list[Target] = []
    bases: dict[str, Target] = {}
    for one in runs:
        if one.status != "done" or one.stage not in ("sft", "grpo", "export", "eval"):
            continue
        path = run_path(place.root, one.name)
        config = str(path / "config.json")
        base = (config_of(place.root, one.name).get("model") or {}).get("id")
        if base and not base.startswith("/"):
            bases.setdefault(base, Target(base, base, "base model", config))
        if one.stage in ("sft", "grpo") and (path / "artifact").is_dir():
            kind = "adapter" if (path / "artifact" / "adapter_config.json").is_file() else "model"
            found.append(Target(one.name, str(path), kind, config))
        if one.stage == "export" and any((path / "artifact").glob("*.gguf")):
            found += [Target(f"{one.name} · {file.stem}", str(file), "GGUF", config) for file in _ggufs(path)]
        if (path / "merged" / "config.json").is_file():
            found.append(Target(f"{one.name} · merged", str(path / "merged"), "merged model", config))
    return [*found, *bases.values()]


def _ggufs(path: Path) -> list[Path]:
    return [inside(path, file) for file in sorted((path / "artifact").glob("*.gguf"))]


def typed(place: Place, text: str) -> Target:
    """A target that was typed: an endpoint, a hub id, or a path that was named when the studio started."""
    text = text.strip()
    if not text:
        raise DanluError("no model is chosen", "choose one, or type the address of an endpoint")
    if text.startswith(("http://", "https://")):
        return Target(text, text, "endpoint")
    jobs.refuse_unnamed(place, text)
    return Target(text, text, "GGUF" if text.endswith(".gguf") else "model")


class Answerer:
    """The process that answers for one target. `ask` gives its events; `close` ends it."""

    def __init__(self, place: Place, target: Target) -> None:
        self.place, self.target = place, target
        self._process: asyncio.subprocess.Process | None = None
        self.busy = False

    async def start(self) -> str:
        """Load the model, once; its name. DanluError says why it cannot be."""
        if self._process is not None and self._process.returncode is None:
            return self.target.label
        config = [self.target.config] if self.target.config else []
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "danlu.studio.answering", self.target.opens, *config),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"DANLU_RUNS": str(self.place.root)},
            limit=LONGEST,
        )
        self._said = asyncio.ensure_future(self._drain())
        event = await self._event()
        if "ready" not in event:
            raise DanluError(*event.get("error", ["the model cannot be loaded", ""]))
        return str(event["ready"])

    async def _drain(self) -> bytes:
        """What the process tells on stderr, its end kept; an unread pipe would hold it up."""
        assert self._process is not None
        assert self._process.stderr is not None
        kept = b""
        while part := await self._process.stderr.read(65536):
            kept = (kept + part)[-4000:]
        return kept

    async def _event(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if line:
            return json.loads(line)
        said = (await self._said).decode("utf-8", "replace").strip().splitlines()
        return {"error": [f"{self.target.label} ended: {said[-1] if said else 'without a word'}", "ask again"]}

    async def ask(
        self, messages: list[dict[str, str]], sampling: dict[str, Any], thinking: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """Events of one answer: pieces, then `done`; DanluError where it fails."""
        assert self._process is not None
        assert self._process.stdin is not None
        self.busy = True
        try:
            request = {"messages": messages, "sampling": sampling, "thinking": thinking}
            self._process.stdin.write((json.dumps(request) + "\n").encode())
            await self._process.stdin.drain()
            while True:
                event = await self._event()
                if "error" in event:
                    raise DanluError(*event["error"])
                yield event
                if "done" in event:
                    return
        finally:
            self.busy = False

    def stop(self) -> None:
        """End the answer that is being written."""
        if self.busy and self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(b'{"stop": true}\n')

    def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def ended(self) -> None:
        """Wait until the process is gone."""
        if self._process is not None:
            await self._process.wait()
            await self._said


# ---- what is kept


def preference(messages: list[dict[str, str]], chosen: dict[str, str], rejected: dict[str, str]) -> dict[str, Any]:
    """A pair: {"model", "text"} of the better and of the worse answer, thinking included."""

    def turn(answer: dict[str, str]) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": answer["text"]}]

    return {
        "prompt": messages,
        "chosen": turn(chosen),
        "rejected": turn(rejected),
        "chosen_model": chosen["model"],
        "rejected_model": rejected["model"],
        "time": int(time.time()),
    }


def test_case(question: str, target: str) -> dict[str, str]:
    """A question with its gold answer, as benchmarks of one's own have it."""
    if not target.strip():
        raise DanluError("a test case needs the right answer", "write what a good answer says")
    return {"id": digest(question), "question": question, "target": target.strip()}


def keep(place: Place, name: str, row: dict[str, Any]) -> Path:
    """Append a row to `.studio/saved/NAME.jsonl`; its path."""
    folder = place.own / "saved"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def whole(reasoning: str, answer: str) -> str:
    """What a model wrote, as one text."""
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{answer.strip()}" if reasoning.strip() else answer.strip()
