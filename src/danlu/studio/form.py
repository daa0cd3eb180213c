"""A form made from the Recipe schema: what each key takes, and `--set` overrides from what was filled in.

Values that are neither numbers, switches nor one of a few words are written as YAML, as on the command line.
`trust_remote_code` is left out: whoever opens the studio must not be able to run other people's code with it.
"""

from __future__ import annotations

import json
import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from danlu.errors import DanluError
from danlu.recipe import Recipe

Kind = Literal["choice", "switch", "whole", "real", "text", "yaml"]
LEFT_OUT = frozenset({"name", "model.trust_remote_code"})
SECTIONS = ("model", "data", "sft", "grpo", "eval", "export")


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a recipe. `empty`: it may be left out (null)."""

    key: str
    kind: Kind
    choices: tuple[Any, ...] = ()
    empty: bool = False
    description: str = ""
    least: float | None = None
    most: float | None = None


def fields(section: type[BaseModel] = Recipe, prefix: str = "") -> list[Field]:
    """All keys of a section, those of its sections too, in the schema's order."""
    found: list[Field] = []
    for name, info in section.model_fields.items():
        key = prefix + name
        if key in LEFT_OUT:
            continue
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += fields(inner, f"{key}.")
        else:
            found.append(_field(key, info))
    return found


def _field(key: str, info: FieldInfo) -> Field:
    annotation: Any = info.annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    empty = type(None) in options
    options = tuple(option for option in options if option is not type(None))
    bounds = {
        name: value
        for part in info.metadata
        for name in ("ge", "gt", "le", "lt")
        if (value := getattr(part, name, None)) is not None
    }
    kind, choices = _kind(options)
    return Field(
        key,
        kind,
        choices,
        empty,
        info.description or "",
        least=bounds.get("ge", bounds.get("gt")),
        most=bounds.get("le", bounds.get("lt")),
    )


def _kind(options: tuple[Any, ...]) -> tuple[Kind, tuple[Any, ...]]:
    words: list[Any] = []
    for option in options:
        if get_origin(option) is Literal:
            words += get_args(option)
        elif option is bool:
            words += [True, False]
        elif option in (int, float, str) and len(options) == 1:
            return {int: "whole", float: "real", str: "text"}[option], ()  # type: ignore[return-value]
        else:
            return "yaml", ()
    return ("switch", ()) if set(words) == {True, False} and len(options) == 1 else ("choice", tuple(words))


def value_of(resolved: dict[str, Any], key: str) -> Any:
    """The value of a dotted key of a resolved recipe; None under a section that is off."""
    node: Any = resolved
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def written(field: Field, value: Any) -> Any:
    """A recipe's value as the form shows it."""
    if field.kind != "yaml":
        return value
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def read(field: Field, shown: Any) -> Any:
    """What was filled in, as a recipe's value; DanluError names the key of what cannot be read."""
    if shown in ("", None):
        if field.empty:
            return None
        if field.kind in ("text", "yaml"):
            return ""
        raise DanluError(f"{field.key} is empty", "it needs a value")
    if field.kind == "whole":
        if float(shown) != int(shown):
            raise DanluError(f"{field.key} is a whole number", f"got {shown}")
        return int(shown)
    if field.kind == "real":
        return float(shown)
    if field.kind == "yaml":
        try:
            return yaml.safe_load(str(shown))
        except yaml.YAMLError:
            return str(shown)
    return shown


def overrides(resolved: dict[str, Any], filled: dict[str, Any]) -> list[str]:
    """`key=value` for --set of the keys whose value differs from the recipe's; values are JSON, which is YAML."""
    return [
        f"{key}={json.dumps(value, ensure_ascii=False)}"
        for key, value in filled.items()
        if not _same(value_of(resolved, key), value)
    ]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return a == b or (a in (None, "") and b in (None, ""))


def arguments(name: str, recipe: str, changes: list[str], start: str | None) -> list[str]:
    """The command `danlu run` for what was filled in."""
    sets = [part for change in changes for part in ("--set", change)]
    return ["run", recipe, "--name", name, *sets, *(["--from", start] if start else []), "--display", "plain"]
