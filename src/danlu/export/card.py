"""README.md beside an exported model: where it comes from, what was measured, what it must not be used for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from danlu.think import ThinkFormat

_FORMATS = {
    "think": "The model writes its reasoning between `<think>` and `</think>`, then the answer.",
    "reasoning_answer": "The model writes `<reasoning>...</reasoning>` and then `<answer>...</answer>`.",
    "none": "The model writes the answer only.",
}


@dataclass(frozen=True, slots=True)
class Lineage:
    """What is known about how a model came to be; empty fields are said to be unknown."""

    base: str
    revision: str | None = None
    runs: tuple[tuple[str, str, str], ...] = ()  # (stage, name, recipe digest), oldest first
    data: dict[str, str] = field(default_factory=dict)  # run -> hash of its training rows
    verdict: str = ""  # the sentence of the comparison with the base
    recipe: str = ""  # of the last training, as written
    licences: dict[str, str] = field(default_factory=dict)  # training source -> licence


def card(
    name: str,
    lineage: Lineage,
    think: ThinkFormat,
    *,
    quant: str,
    report: dict[str, Any] | None = None,
    licence: str = "",
    language: Sequence[str] = ("zh", "en"),
    notice: str = "",
    commands: Sequence[str] = (),
    library: str = "gguf",
    remarks: Sequence[str] = (),
) -> str:
    """The model card in Markdown with the YAML header that model hubs read. `report` is the result of `verify`."""
    head = ["---", "language:", *(f"- {one}" for one in language), f"license: {licence or 'unknown'}"]
    if not lineage.base.startswith(("/", ".", "tiny")):
        head.append(f"base_model: {lineage.base.removeprefix('modelscope:')}")
    parts = ["\n".join([*head, f"library_name: {library}", "---"]), f"# {name}"]
    if notice:
        parts.append(f"> **{notice}**")
    parts.append(f"## Origin\n\n{_origin(lineage, quant)}")
    parts.append(
        f"## What was measured\n\n{lineage.verdict or 'No comparison with the base was made in this lineage.'}"
    )
    parts += remarks
    if report:
        parts.append(_report(report, library))
    parts.append(f"## Format\n\n{_FORMATS[think.style]} It ends its turn with {_listed(think.end_tokens)}.")
    if commands:
        parts.append("## Use\n\n```sh\n" + "\n".join(commands) + "\n```")
    parts.append(
        "## Intended use and limits\n\n"
        "For research on reasoning models and for trying out training recipes. The figures above hold for the questions"
        " they were measured on and for nothing else. The model can be wrong while it sounds sure, its reasoning need"
        " not be the cause of its answer, and what it does outside its training data was not tested."
        + (" It must not be used to decide about anybody's health, law or money." if notice else "")
    )
    known = f"{licence}." if licence else "Not given: ask for the terms of the base model and of the training data."
    data = [f"- training data `{source}`: {terms}" for source, terms in lineage.licences.items()]
    parts.append("\n".join([f"## Licence\n\n{known}", *(["", *data] if data else [])]))
    if lineage.recipe:
        parts.append(f"## Recipe\n\n```yaml\n{lineage.recipe.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _origin(lineage: Lineage, quant: str) -> str:
    lines = [f"- base: `{lineage.base}`" + (f" at `{lineage.revision}`" if lineage.revision else "")]
    lines += [f"- {stage}: run `{run}`, recipe digest `{digest}`" for stage, run, digest in lineage.runs]
    lines += [f"- training rows of `{run}`: `{value}`" for run, value in lineage.data.items()]
    if not lineage.data:
        lines.append("- training rows: unknown")
    return "\n".join([*lines, f"- weights stored as `{quant}`"])


def _report(report: dict[str, Any], library: str) -> str:
    several = len({check.get("file") for check in report["checks"]} - {None}) > 1
    names = [f"{c['name']}, {c['file']}" if several and "file" in c else c["name"] for c in report["checks"]]
    rows = [
        f"| {name} | {'ok' if c['ok'] else 'FAILED'} | {_short(c)} |"
        for name, c in zip(names, report["checks"], strict=True)
    ]
    title = "The file against the model it was made from, through llama.cpp:"
    if library != "gguf":
        title = "The merged model against base and adapter:"
    return "\n".join([title, "", "| check | | value (limit) |", "|---|---|---|", *rows])


def _short(check: dict[str, Any]) -> str:
    value, limit = check["value"], check["limit"]
    if isinstance(value, float):
        return f"{value:.2g} ({limit:g})"
    if isinstance(value, list):
        return ", ".join(value) or "none wrong"
    return f"{value} ({limit})" if isinstance(value, int) else str(value)


def _listed(tokens: Sequence[str]) -> str:
    return " or ".join(f"`{token}`" for token in tokens) or "an unknown token"
