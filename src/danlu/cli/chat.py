"""Talk to a run, a model or a GGUF file. Answers go to stdout; prompts and notices to stderr.

Reasoning is dimmed on a terminal and left out of a pipe, so that `danlu chat X --once Q > file` holds the answer.
Earlier turns are sent back without their reasoning, as the models' own templates do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from danlu.cli.stages import find_run
from danlu.errors import DanluError
from danlu.generate import Generator, Sampling
from danlu.recipe import Recipe
from danlu.records import Message

DIM, END = "\033[2m", "\033[0m"


def chat(target: str, *, system: str | None, once: str | None, temperature: float, max_tokens: int, seed: int) -> None:
    """Answer `once`, or the question on a piped stdin, or talk until end of input."""
    if once is None and not sys.stdin.isatty():
        once = sys.stdin.read()
    if once is not None and not once.strip():
        raise DanluError("the question is empty", 'ask one: danlu chat TARGET --once "..."')
    run = find_run(target)
    recipe = Recipe.model_validate(run.config()) if run else Recipe(name="chat")
    system = system if system is not None else recipe.data.system
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=0.95, seed=seed)
    from danlu.generate.open import open_generator  # after the checks, because it loads torch

    with open_generator(str(run.path) if run else target, recipe) as generator:
        if once is not None:
            _answer(generator, [*messages, {"role": "user", "content": once.strip()}], sampling)
            return
        sys.stderr.write("ask; an empty line or Ctrl-D ends\n")
        while question := _ask():
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": _answer(generator, messages, sampling)})


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _answer(generator: Generator, messages: list[Message], sampling: Sampling) -> str:
    """Print one answer, piece by piece where the generator can, and return it; a notice says when it was cut."""
    stream = getattr(generator, "chat_stream", None)
    if stream is not None:
        return _streamed(stream(messages, sampling))
    _, completions = next(iter(generator.generate([messages], sampling)))
    completion = completions[0]
    if completion.reasoning and sys.stdout.isatty():
        print(f"{DIM}{completion.reasoning}{END}\n")
    print(completion.answer, flush=True)
    if completion.finish == "length":
        sys.stderr.write(f"(cut after {sampling.max_tokens} tokens; --max-tokens allows more)\n")
    return completion.answer


def _streamed(pieces: Iterable[tuple[str, str]]) -> str:
    """Print (kind, text) pieces as they come; the answer's text."""
    answer, dimmed, terminal = "", False, sys.stdout.isatty()
    try:
        for kind, text in pieces:
            if kind == "answer":
                sys.stdout.write(f"{END}\n\n{text}" if dimmed else text)
                answer, dimmed = answer + text, False
            elif terminal:
                sys.stdout.write(text if dimmed else DIM + text)
                dimmed = True
            sys.stdout.flush()
    finally:
        sys.stdout.write(f"{END}\n" if dimmed else "\n")
    return answer.strip()
