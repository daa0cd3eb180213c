"""A model that answers in a process of its own: `python -m danlu.studio.answering TARGET [CONFIG]`.

The studio's process loads no model. This one reads requests from stdin and writes events to stdout, a JSON object a
line; what libraries print goes to stderr. It ends when its stdin does, so it cannot outlive the studio.

    request   {"messages", "sampling": {...Sampling}, "thinking": bool}, or {"stop": true}
    events    {"ready": name}, {"part": "reasoning"|"answer", "text"}, {"done": {...}}, {"error": [what, hint]}
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from danlu.errors import DanluError
from danlu.generate import Sampling
from danlu.recipe import Recipe
from danlu.run import read_json

Lines = queue.Queue[dict[str, Any] | None]


def main(args: list[str]) -> int:
    """Open `args[0]` by the recipe in the file `args[1]`, and answer until stdin ends."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines: Lines = queue.Queue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(sys.stdin, lines, stop), daemon=True).start()
    try:
        recipe = Recipe.model_validate(read_json(Path(args[1]))) if len(args) > 1 else Recipe(name="chat")
        from danlu.generate.open import open_generator

        with open_generator(args[0], recipe) as generator:
            _tell(told, ready=generator.name)
            usual = generator.thinking  # a server may be asked nothing at all
            while (request := lines.get()) is not None:
                stop.clear()
                generator.thinking = usual if request["thinking"] else False
                answer(generator, request, told, stop)
    except DanluError as error:
        _tell(told, error=[error.message, error.hint])
        return error.exit_code
    return 0


def _listen(file: TextIO, lines: Lines, stop: threading.Event) -> None:
    for line in file:
        request = json.loads(line)
        if request.get("stop"):
            stop.set()
        else:
            lines.put(request)
    stop.set()
    lines.put(None)


def _tell(file: TextIO, **event: Any) -> None:
    file.write(json.dumps(event, ensure_ascii=False) + "\n")
    file.flush()


def answer(generator: Any, request: dict[str, Any], told: TextIO, stop: threading.Event) -> None:
    """One answer, piece by piece, and what it took."""
    sampling = Sampling(**request["sampling"])
    started = time.perf_counter()
    texts = {"reasoning": "", "answer": ""}
    pieces = {"reasoning": 0, "answer": 0}
    first = thought = 0.0
    try:
        for part, text in generator.chat_stream(request["messages"], sampling):
            now = time.perf_counter() - started
            first = first or now
            thought = now if part == "reasoning" else thought
            texts[part] += text
            pieces[part] += 1
            _tell(told, part=part, text=text)
            if stop.is_set():
                break
    except DanluError as error:
        _tell(told, error=[error.message, error.hint])
        return
    seconds = time.perf_counter() - started
    known = {part: count_tokens(generator, text) for part, text in texts.items()}
    counts = {part: pieces[part] if count is None else count for part, count in known.items()}  # servers: one a piece
    tokens = sum(counts.values())
    _tell(
        told,
        done={
            "seconds": round(seconds, 3),
            "first_seconds": round(first, 3),
            "reasoning_seconds": round(thought, 3),
            "reasoning_tokens": counts["reasoning"],
            "tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 1) if seconds and tokens else None,
            "stopped": stop.is_set(),
            "cut": bool(tokens >= sampling.max_tokens - 2),  # tags are not counted
        },
    )


def count_tokens(generator: Any, text: str) -> int | None:
    """Tokens of a text; None where the tokenizer is elsewhere."""
    tokenizer = getattr(getattr(generator, "loaded", None), "tokenizer", getattr(generator, "tokenizer", None))
    return None if tokenizer is None else len(tokenizer.encode(text, add_special_tokens=False)) if text else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
