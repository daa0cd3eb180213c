"""Body of `danlu export`: a recipe with what it starts from, or directly a run or a model.

A run brings the recipe it was made with; a model folder or id gets the defaults.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from danlu.cli import stages
from danlu.cli.evaluation import check_gate
from danlu.cli.verify import published
from danlu.display import say
from danlu.errors import DanluError
from danlu.recipe import Recipe, parse, runs_root, shipped
from danlu.run import Run


def show_export(
    target: str,
    *,
    overrides: list[str],
    start: str | None,
    run_name: str | None,
    resume: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
    after: Callable[[str], dict[str, Any]] | None = None,
) -> None:
    """Export `target`; stdout gets the artifact's path or JSON.

    `after` gets the export's run, and is all that happens where `target` is an export already; what it returns joins
    the JSON.
    """
    if after and not dry_run and published(target, after, as_json):
        return
    run = stages.find_run(target)
    if not force:
        check_gate(start or (target if run else None))
    if run is None and not _is_model(target):
        options: dict[str, Any] = {"overrides": overrides, "start": start, "run_name": run_name, "resume": resume}
        stages.command("export", target, **options, dry_run=dry_run, as_json=as_json, after=after)
        return
    if start:
        raise DanluError(f"--from goes with a recipe; {target} is what is exported", f"danlu export {start}")
    recipe, text = _recipe(target, run, overrides)
    name = run_name or f"{run.name if run else recipe.name}-export"
    (step,) = stages.plan("export", recipe, target, name)
    if dry_run:
        print(stages.described(recipe, [step], as_json))
        return
    if not resume:
        stages.refuse_used(step)
    say(f"export: {runs_root() / step.run} from {target}")
    made = stages.run_stage("export", recipe, step.run, start=target, recipe_text=text, resume=resume)
    outcome = stages.outcome_of("export", made)
    if not as_json:
        print(outcome["artifact"], flush=True)
    more = after(str(made.path)) if after else {}
    if as_json:
        print(json.dumps({"stages": [outcome], **more}, ensure_ascii=False))


def _is_model(target: str) -> bool:
    """Whether `target` names a model (folder, hub id) and not a recipe."""
    path = Path(target)
    if target in shipped() or path.suffix in (".yaml", ".yml") or path.is_file():
        return False
    return path.is_dir() or target.count("/") == 1 or target.startswith("modelscope:") or target == "tiny"


def _recipe(target: str, run: Run | None, overrides: list[str]) -> tuple[Recipe, str]:
    """(recipe, its text) that a run brings, or the defaults for a model."""
    if run is not None and run.info().get("stage") not in stages.TRAINING:
        stage = run.info().get("stage")
        raise DanluError(f"{target} is a run of {stage}: it trained nothing to export", "give an sft or grpo run")
    name = Path(target).resolve().name if Path(target).is_dir() else target.rpartition("/")[2].rpartition(":")[2]
    base: dict[str, Any] = run.config() if run else {"name": name or "model", "model": {"id": target}}
    text = yaml.safe_dump(base, allow_unicode=True, sort_keys=False)
    return parse(text, overrides, origin=target), text + "".join(f"# --set {change}\n" for change in overrides)
