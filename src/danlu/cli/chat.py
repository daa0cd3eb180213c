"""Talk to a run, a model, a GGUF file or a server, alone or beside another one (before and after).

Earlier turns are sent back without their reasoning, as the models' own templates do. An answer that Ctrl-C ended stays
as far as it came; one without any text takes its question with it.
Departure: what begins with a slash is a command; `//x` asks "/x".
Not covered: questions of several lines (pipe them in), images, tools.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danlu.cli.answer import Answer, answer, beside, note, printed
from danlu.cli.stages import find_run
from danlu.display import failure
from danlu.errors import DanluError
from danlu.generate import Sampling
from danlu.recipe import Recipe
from danlu.records import Message

COMMANDS = {
    "/system [TEXT]": "show or change the system prompt; /system - takes it away",
    "/think on|off": "switch the model's reasoning on or off, where its template can",
    "/reset": "forget the conversation",
    "/save [FILE]": "write the conversation as a row of training data (.jsonl)",
    "/help": "this list",
    "/quit": "end, as Ctrl-D does; Ctrl-C ends an answer",
}
NAMES = [line.split()[0] for line in COMMANDS]


class Talk:
    """The conversations with one model, or with two that are asked the same."""

    def __init__(self, generators: Sequence[Any], system: str | None, sampling: Sampling) -> None:
        self.generators, self.system, self.sampling = list(generators), system, sampling
        self.turns: list[list[Message]] = [[] for _ in generators]

    def ask(self, question: str, *, silent: bool = False) -> list[Answer]:
        """The answers, printed unless `silent`; they and the question become turns."""
        for turns in self.turns:
            turns.append({"role": "user", "content": question})
        found: list[Answer] = []
        try:
            if silent:
                pairs = zip(self.generators, self.chats(), strict=True)
                found = [answer(one, chat, self.sampling, lambda _kind, _text: None) for one, chat in pairs]
            elif len(self.generators) > 1:
                found = beside(self.generators, self.chats(), self.sampling)
            else:
                with printed() as show:
                    found = [answer(self.generators[0], self.chats()[0], self.sampling, show)]
        finally:
            self._remember(found)
        return found

    def _remember(self, found: Sequence[Answer]) -> None:
        for place, turns in enumerate(self.turns):
            if place < len(found) and found[place].text:
                turn: Message = {"role": "assistant", "content": found[place].text}
                if found[place].reasoning:
                    turn["reasoning_content"] = found[place].reasoning
                turns.append(turn)
            else:
                turns.pop()

    def chats(self) -> list[list[Message]]:
        """What each model is sent."""
        plain = [[Message(role=turn["role"], content=turn["content"]) for turn in turns] for turns in self.turns]
        return [[*self._first(), *turns] for turns in plain]

    def _first(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def save(self, path: Path) -> None:
        """One row of `messages` a model, with reasoning; DanluError for a file that is there."""
        if not any(self.turns):
            raise DanluError("there is nothing to save yet", "ask something first")
        if path.exists():
            raise DanluError(f"{path} exists", "/save ANOTHER.jsonl")
        rows = [{"model": one.name, "messages": [*self._first(), *turns]} for one, turns in self._both()]
        staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            staged.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            os.replace(staged, path)
        except OSError as error:
            raise DanluError(f"cannot write {path}: {error.strerror}", "/save ANOTHER.jsonl") from None

    def _both(self) -> list[tuple[Any, list[Message]]]:
        return list(zip(self.generators, self.turns, strict=True))

    def think(self, word: str) -> None:
        """Reasoning on or off; DanluError where no model has a switch."""
        if word not in ("on", "off"):
            raise DanluError("/think takes on or off" + (f", not {word!r}" if word else ""), "/think off")
        fixed = [one.name for one in self.generators if not switchable(one)]
        if len(fixed) == len(self.generators):
            raise DanluError(f"the chat template of {' and '.join(fixed)} has no switch for reasoning", "")
        for one in self.generators:
            one.thinking = word == "on"
        left = f"; {' and '.join(fixed)} cannot" if fixed else ""
        note(f"reasoning is {word}{left}")


def switchable(generator: Any) -> bool:
    """Whether the template can switch reasoning off; a server's is not known, so it is asked."""
    return hasattr(generator, "endpoint") or generator.think.thinking_off is not None


def chat(
    target: str,
    *,
    compare: str | None,
    system: str | None,
    once: str | None,
    think: bool,
    temperature: float,
    max_tokens: int,
    seed: int,
    as_json: bool,
) -> int:
    """Answer `once`, or the question on a piped stdin, or talk until end of input; the exit code."""
    if once is None and not sys.stdin.isatty():
        once = sys.stdin.read()
    if once is not None and not once.strip():
        raise DanluError("the question is empty", 'ask one: danlu chat TARGET --once "..."')
    if as_json and once is None:
        raise DanluError("--json is for one question", 'danlu chat TARGET --json --once "..."')
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=0.95, seed=seed)
    with contextlib.ExitStack() as opened:
        generators, own = [], None
        for name in [compare, target] if compare else [target]:  # before, then after
            generator, own = _opened(name)
            generators.append(opened.enter_context(generator))
            if len(generators) > 1 and generator.name == generators[0].name:
                generators[0].name, generator.name = str(compare), target
        talk = Talk(generators, system if system is not None else own, sampling)
        if not think:
            talk.think("off")
        if once is None:
            _converse(talk)
            return 0
        return _once(talk, once.strip(), as_json)


def _opened(target: str) -> tuple[Any, str | None]:
    """(generator, the recipe's system prompt) of a run, a model, a GGUF file or an address."""
    run = find_run(target)
    recipe = Recipe.model_validate(run.config()) if run else Recipe(name="chat")
    from danlu.generate.open import open_generator  # after the checks, because it loads torch

    return open_generator(str(run.path) if run else target, recipe), recipe.data.system


def _once(talk: Talk, question: str, as_json: bool) -> int:
    found = talk.ask(question, silent=as_json)
    if as_json:
        print(json.dumps({"question": question, "answers": [one.to_dict() for one in found]}, ensure_ascii=False))
    elif sys.stderr.isatty():
        _figures(talk, found)
    elif any(one.finish == "length" for one in found):
        note(f"(cut after {talk.sampling.max_tokens} tokens; --max-tokens allows more)")
    return 130 if any(one.finish == "stopped" for one in found) else 0


def _figures(talk: Talk, found: Sequence[Answer]) -> None:
    if len(talk.generators) == 1 or not sys.stdout.isatty():  # else they stand below their columns
        for one in found:
            note(f"{one.model}: {one.figures()}" if len(talk.generators) > 1 else one.figures())


def _converse(talk: Talk) -> None:
    note(f"{' | '.join(one.name for one in talk.generators)}: ask; /help lists commands, Ctrl-D ends")
    while True:
        try:
            line = _line()
        except EOFError:
            return
        except KeyboardInterrupt:
            note("\nCtrl-D or /quit ends")
            continue
        if line == "/quit":
            return
        try:
            if line.startswith("/") and not line.startswith("//"):
                _command(talk, line)
            elif line:
                _figures(talk, talk.ask(line.removeprefix("/") if line.startswith("//") else line))
        except DanluError as error:  # the conversation goes on
            failure(error.message, error.hint)


def _line() -> str:
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input edits lines with it)
        return input("> ").strip()
    sys.stderr.write("> ")  # stdout holds answers only
    sys.stderr.flush()
    return input().strip()


def _command(talk: Talk, line: str) -> None:
    """Carry out a line that begins with a slash; DanluError names one that there is not."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/help":
        width = max(map(len, COMMANDS))
        note("\n".join(f"{command.ljust(width)}  {what}" for command, what in COMMANDS.items()))
    elif name == "/system":
        if rest:
            talk.system = None if rest == "-" else rest
        note(f"system: {talk.system}" if talk.system else "no system prompt")
    elif name == "/think":
        talk.think(rest)
    elif name == "/reset":
        talk.turns = [[] for _ in talk.generators]
        note("the conversation is forgotten")
    elif name == "/save":
        path = Path(rest or time.strftime("chat-%Y%m%d-%H%M%S.jsonl")).expanduser()
        talk.save(path)
        note(f"saved in {path}")
    else:
        near = difflib.get_close_matches(name, NAMES, 1)
        raise DanluError(f"there is no command {name}", f"did you mean {near[0]}?" if near else "/help lists them")
