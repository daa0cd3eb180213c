"""Questions that the command line answers with --json, asked in a process of its own.

The studio's process loads no tokenizer and no model: it stays small and quick, and what a page shows is what the
command says. Answers that cost time are kept in the studio's own folder, by everything that they depend on.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danlu.errors import DanluError
from danlu.run import digest, read_json, write_json
from danlu.studio.place import Place

PATIENCE = 900.0  # seconds until a question is given up


async def ask(place: Place, *args: str) -> dict[str, Any]:
    """The object that `danlu ARGS --json` prints. DanluError: what the command says, or that it takes too long."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "danlu", *args, "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
        env={**os.environ, "DANLU_RUNS": str(place.root)},
    )
    try:
        out, said = await asyncio.wait_for(process.communicate(), PATIENCE)
    except (TimeoutError, asyncio.CancelledError) as error:
        process.kill()
        await process.wait()
        if isinstance(error, asyncio.CancelledError):
            raise
        raise DanluError(f"danlu {args[0]} gave no answer in {PATIENCE:.0f} s", "ask on the command line") from None
    try:
        return json.loads(out)
    except ValueError:
        raise told(said.decode("utf-8", "replace"), args) from None


def told(said: str, args: Sequence[str]) -> DanluError:
    """The error that a command printed: its `error:` and `hint:` lines."""
    lines = said.splitlines()
    what = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    hint = next((line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")), "")
    if what:
        return DanluError(what, hint)
    return DanluError(f"danlu {' '.join(args[:2])} ended without an answer", lines[-1] if lines else "")


def kept(place: Place, key: Any) -> Path:
    """Where the answer to a question is kept; `key`: what it depends on, as JSON-like values."""
    return place.own / "answers" / f"{digest(key)}.json"


async def asked(place: Place, key: Any, *args: str) -> dict[str, Any]:
    """`ask`, or the answer that is kept under `key`."""
    path = kept(place, key)
    if path.is_file():
        return read_json(path)
    found = await ask(place, *args)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found
