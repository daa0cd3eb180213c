"""Rewards of the user's own: a function in a file, in our style or in that of TRL.

    danlu      fn(sample, completion) -> number | Score | None          asked for each completion; None masks it
    trl        fn(completions, **columns) -> list of number | None      asked for a batch; None: not counted, as in TRL
    trl-text   the same, with completions as texts instead of chats

`columns` are lists as long as the completions: prompts (chats), completion_ids, id, question, target, answer and
solution (all three the gold), aliases, options, distractors, reasoning, and what the row's `meta` holds. A function
without **kwargs gets the ones it names. The style is found by the names of the parameters: `completions` means TRL.
Departures from TRL: no trainer_state, log_extra or log_metric; a coroutine function is awaited by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, cast

from danlu.errors import DanluError
from danlu.recipe import PythonSpec
from danlu.records import Completion, Sample

Batch = Callable[[Sequence[Sample], Sequence[Completion]], list[Any]]
_NAMED = ("prompts", "completion_ids", "id", "question", "target", "answer", "solution")
_NAMED_TOO = ("aliases", "options", "distractors", "reasoning")


def load(spec: PythonSpec) -> tuple[Batch, bool]:
    """(function of a batch, whether None only leaves the reward out, as in TRL).

    DanluError when the file or function is not there, cannot be imported, or takes something else.
    """
    function = _function(spec.python)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise DanluError(f"reward {spec.label!r} has no signature: {error}", "give a plain function") from None
    style = spec.style
    if style == "auto":
        style = "trl" if "completions" in parameters else "danlu"
    if style == "danlu":
        _check_two(spec, parameters)
        return lambda samples, completions: _one_by_one(function, samples, completions), False
    return lambda samples, completions: _as_trl(spec, style, function, parameters, samples, completions), True


def where(error: BaseException) -> str:
    """ " (file.py line 3)" of the innermost line of an exception that is not ours."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(str(Path(__file__).parent))]
    return f" ({Path(own[-1].filename).name} line {own[-1].lineno})" if own else ""


def _function(place: str) -> Callable[..., Any]:
    file, _, name = place.rpartition(":")
    path = Path(file).expanduser()
    if not file or not name:
        raise DanluError(f"reward {place!r} is not FILE.py:function", "example: python: my_rewards.py:brief")
    if not path.is_file():
        raise DanluError(f"reward {place!r}: {file} does not exist", f"looked in {Path.cwd()} and beside the recipe")
    module_name = f"danlu_reward_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    found = importlib.util.spec_from_file_location(module_name, path)
    if found is None or found.loader is None:
        raise DanluError(f"reward {place!r}: {file} is not a Python file", "its name ends in .py")
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        found.loader.exec_module(module)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise DanluError(
            f"reward {place!r} cannot be imported: {what}{where(error)}", f"python {file} says more"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise DanluError(f"reward {place!r}: {file} has no function {name}", f"it has: {', '.join(known) or 'none'}")
    return cast("Callable[..., Any]", function)


def _check_two(spec: PythonSpec, parameters: Any) -> None:
    """DanluError unless a function of these parameters can be called with a sample and a completion."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    places = [p for p in parameters.values() if p.kind in kinds]
    needed = [
        p for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    if (len(places) < 2 and not several) or len(needed) > 2 or any(p.kind is p.KEYWORD_ONLY for p in needed):
        raise DanluError(
            f"reward {spec.label!r} takes ({', '.join(parameters)}), not (sample, completion)",
            "or give it TRL's signature: (completions, **columns)",
        )


def _one_by_one(
    function: Callable[..., Any], samples: Sequence[Sample], completions: Sequence[Completion]
) -> list[Any]:
    return [_awaited(function(sample, one)) for sample, one in zip(samples, completions, strict=True)]


def _awaited(value: Any) -> Any:
    return asyncio.run(cast("Coroutine[Any, Any, Any]", value)) if inspect.iscoroutine(value) else value


def _as_trl(
    spec: PythonSpec,
    style: str,
    function: Callable[..., Any],
    parameters: Any,
    samples: Sequence[Sample],
    completions: Sequence[Completion],
) -> list[Any]:
    """What a TRL-style function says of a batch; DanluError for something that is no list of that length."""
    given = columns(samples, completions)
    if style == "trl-text":
        given["completions"] = [completion.text for completion in completions]
        given["prompts"] = [sample.question for sample in samples]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        needed = [n for n, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
        missing = [name for name in needed if name not in given]
        if missing:
            raise DanluError(
                f"reward {spec.label!r} wants {', '.join(missing)}, which sample {samples[0].id} does not have",
                f"columns: {', '.join(given)}",
            )
        given = {name: value for name, value in given.items() if name in parameters}
    values = _awaited(function(**given))
    if not isinstance(values, (list, tuple)) and hasattr(values, "tolist"):  # an array or a tensor
        values = values.tolist()
    if not isinstance(values, (list, tuple)) or len(values) != len(samples):
        what = f"{len(values)} values" if isinstance(values, (list, tuple)) else type(values).__name__
        raise DanluError(
            f"reward {spec.label!r} gave {what} for {len(samples)} completions (the first of sample {samples[0].id})",
            "a TRL-style reward gives a list with one number for each completion",
        )
    return list(values)


def columns(samples: Sequence[Sample], completions: Sequence[Completion]) -> dict[str, list[Any]]:
    """What a TRL-style function may ask for, each a list as long as `completions`."""
    names = dict.fromkeys(name for sample in samples for name in sample.meta)
    given: dict[str, list[Any]] = {name: [sample.meta.get(name) for sample in samples] for name in names}
    given |= {
        "prompts": [[dict(turn) for turn in sample.messages] for sample in samples],
        "completions": [[{"role": "assistant", "content": completion.text}] for completion in completions],
        "completion_ids": [list(completion.tokens) for completion in completions],
    }
    given |= {name: [sample.target for sample in samples] for name in ("target", "answer", "solution")}
    given |= {name: [getattr(sample, name) for sample in samples] for name in ("id", "question", *_NAMED_TOO)}
    return given
