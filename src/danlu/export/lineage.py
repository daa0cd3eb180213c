"""Where a model comes from, by what the runs behind it recorded: for its card.

Not covered: runs that were moved away from where their children name them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from danlu.export.card import Lineage
from danlu.run import Run, list_runs, read_json


def lineage(source: Path, base: dict[str, Any]) -> Lineage:
    """What the runs behind `source` (a run directory or its artifact) say about its origin."""
    path = source if (source / "run.json").is_file() else source.parent
    runs: list[Run] = []
    waiting = [path]
    while waiting:
        at = waiting.pop(0)
        if not (at / "run.json").is_file() or any(at.resolve() == run.path.resolve() for run in runs):
            continue
        runs.insert(0, Run(at))
        waiting += [Path(p) if Path(p).is_absolute() else at.parent / p for p in Run(at).info().get("parents", [])]
    facts = [(run, run.info()) for run in runs]
    data = {run.name: str(info["results"]["data_hash"]) for run, info in facts if info["results"].get("data_hash")}
    settings = [run.config() for run in runs if (run.path / "config.json").is_file()]
    return Lineage(
        base=str(base.get("id") or "unknown"),
        revision=base.get("revision"),
        runs=tuple((info["stage"], run.name, info["config_digest"]) for run, info in facts),
        data=data,
        verdict=_verdict(runs),
        recipe=_recipe(runs),
        licences=_licences(settings),
    )


def _verdict(runs: list[Run]) -> str:
    """The sentence of the latest comparison of a run of this lineage with its base."""
    names = {name for run in runs for name in (run.name, str(run.path.resolve()))}
    for run in reversed(list_runs(runs[-1].path.parent) if runs else []):
        compared = run.path / "compare.json"
        if compared.is_file() and names & set(run.info().get("parents", [])):
            return str(read_json(compared).get("sentence", ""))
    return ""


def _recipe(runs: list[Run]) -> str:
    """The recipe of the last training, as it was written."""
    trained = [run.path / "recipe.yaml" for run in runs if run.info()["stage"] in ("sft", "grpo")]
    return trained[-1].read_text(encoding="utf-8") if trained and trained[-1].is_file() else ""


def _licences(configs: list[dict[str, Any]]) -> dict[str, str]:
    """Training source -> licence that the recipe states."""
    found: dict[str, str] = {}
    for config in configs:
        for source in config.get("data", {}).get("train") or []:
            name = str(source.get("path")) + (f" at {source['revision']}" if source.get("revision") else "")
            found[name] = source.get("licence") or found.get(name) or "not stated"
    return found
