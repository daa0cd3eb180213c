"""From a recipe to runs: which stage starts from what, under which name, and what is recorded.

Stages do not know one another; here is the only place where one stage's run becomes the next one's start.
`danlu run` evaluates the base before it trains, so that a broken benchmark shows before hours are spent, and the
tuned model after; the comparison is written into the later evaluation run as compare.json.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from danlu.cli import launch
from danlu.display import say, warn
from danlu.errors import DanluError, Stopped
from danlu.models import mlx_fit
from danlu.recipe import Recipe, find, load, runs_root
from danlu.run import Run, differing_keys, write_json
from danlu.train import processes

TRAINING = ("sft", "grpo")


@dataclass(frozen=True, slots=True)
class Step:
    """One stage to run: the name of its run and what it starts from (None: the recipe's model)."""

    stage: str
    run: str
    start: str | None = None
    compare_with: str | None = None  # the evaluation run that this one is held against


# ---- planning


def plan(command: str, recipe: Recipe, start: str | None = None, name: str | None = None) -> list[Step]:
    """The steps of a stage command, or of `run`: the recipe's stages in order, each from the last trained one."""
    if command != "run":
        if name is None:
            name = f"{recipe.name}-{command}"
            if command == "eval":
                name = f"{Path(start).name}-eval" if start else f"{name}-base"
        return [Step(command, _checked_name(name), start)]
    name = _checked_name(name or recipe.name)
    first_training = next((at for at, stage in enumerate(recipe.stages) if stage in TRAINING), None)
    last_eval = max((at for at, stage in enumerate(recipe.stages) if stage == "eval"), default=None)
    before_and_after = first_training is not None and last_eval is not None and last_eval > first_training
    base_eval = f"{name}-eval-base" if before_and_after else None
    steps = [Step("eval", base_eval, start)] if base_eval else []
    for stage in recipe.stages:
        run = f"{name}-{stage}"
        steps.append(Step(stage, run, start, base_eval if stage == "eval" else None))
        if stage in TRAINING:
            start = str(runs_root() / run)
    return steps


def _checked_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise DanluError(f"{name!r} cannot name a run", f"a name is one directory under {runs_root()}, without slashes")
    return name


def find_run(name: str) -> Run | None:
    """The run with this name or directory, if there is one."""
    for path in (Path(name), runs_root() / name):
        if (path / "run.json").is_file():
            return Run(path)
    return None


def open_run(name: str) -> Run:
    """`find_run`, or a DanluError that names the runs that are there."""
    return find_run(name) or Run.open(runs_root() / name)


def lineage_name(run: Run) -> str:
    """How a run is named as a parent: bare under the runs root, else its full path."""
    return run.name if run.path.resolve().parent == runs_root().resolve() else str(run.path.resolve())


def parents_of(start: str | None) -> list[str]:
    """What a run that starts from `start` records as its parents: a run, a model, or nothing (the recipe's)."""
    run = find_run(start) if start else None
    return [lineage_name(run)] if run else [start] if start else []


# ---- one stage


def _data(recipe: Recipe, run: Run, start: str | None) -> Any:
    from danlu.data.stage import stage

    return stage(recipe, run, start)


def _sft(recipe: Recipe, run: Run, start: str | None) -> Any:
    from danlu.train.sft import sft

    return sft(recipe, run, start)


def _grpo(recipe: Recipe, run: Run, start: str | None) -> Any:
    from danlu.train.grpo import grpo

    return grpo(recipe, run, start)


def _eval(recipe: Recipe, run: Run, start: str | None) -> None:
    from danlu import domains
    from danlu.evaluate.evaluate import benchmarks_of, evaluate
    from danlu.generate.open import open_generator

    questions, rejected = benchmarks_of(recipe, domains.load(recipe.domain))
    leaked = _leaked(recipe, questions)
    with open_generator(start or recipe.model.id, recipe) as generator:
        # it records its figures itself; the whole report is in the artifact
        evaluate(recipe, run, generator, benchmarks=questions, rejected=rejected, leaked=leaked)


def _leaked(recipe: Recipe, questions: dict[str, list[Any]]) -> set[tuple[str, str]] | None:
    """(benchmark, id) of the questions that the recipe's training rows hold; None where that cannot be said.

    The questions of a miniature world are apart from its training rows by construction, and much alike.
    """
    from danlu.data.overlap import leaks
    from danlu.data.prepare import published_questions, training_rows

    outside = published_questions(recipe, questions)
    try:
        known = training_rows(recipe) if outside else []
    except DanluError as error:
        warn(f"whether questions leaked into the training rows is not known: {error.message}")
        return None
    if not known:
        return None
    say(f"looking for {sum(map(len, outside.values())):,} questions in {len(known):,} training rows")
    inside = {(leak.benchmark, leak.item) for leak in leaks(known, outside)}
    if inside:
        warn(f"{len(inside)} questions stand in training rows; the report tells the figures without them too")
    return inside


def _export(recipe: Recipe, run: Run, start: str | None) -> Any:
    from danlu.export.export import export

    return export(recipe, run, start or recipe.model.id, check=recipe.export.verify, licence=recipe.export.licence)


STAGES: dict[str, Callable[[Recipe, Run, str | None], Any]] = {
    "data": _data,
    "sft": _sft,
    "grpo": _grpo,
    "eval": _eval,
    "export": _export,
}


def run_stage(
    stage: str,
    recipe: Recipe,
    name: str,
    *,
    start: str | None = None,
    recipe_text: str = "",
    resume: bool = False,
) -> Run:
    """Run one stage in runs_root()/name and record how it ended.

    `start`: a run (name or directory), a model directory or a hub id. With `resume` the run must exist; it goes on
    only under the same recipe and start. Errors: DanluError, Stopped (interrupted; it can be resumed).
    Several processes train together; every other stage is the first one's, and the others wait.
    """
    run, origin = processes.lead(lambda: _begun(stage, recipe, name, start, recipe_text, resume))
    if stage not in TRAINING:
        processes.lead(lambda: _carry_out(stage, recipe, run, origin))
    elif processes.first():
        _carry_out(stage, recipe, run, origin)
    else:
        with tempfile.TemporaryDirectory(prefix="danlu-") as folder:  # a run like the first one's, that nobody keeps
            own = Run.create(Path(folder) / name, stage, recipe.resolved(), seed=recipe.seed)
            _carry_out(stage, recipe, own, origin)
    return run


def _begun(
    stage: str, recipe: Recipe, name: str, start: str | None, recipe_text: str, resume: bool
) -> tuple[Run, str | None]:
    """The run that `run_stage` carries out, and where its start lies."""
    parent = find_run(start) if start else None
    if parent is not None and parent.state() != "done":
        raise DanluError(f"{parent.path} is {parent.state()}, not done", "finish it first with --resume")
    parents = parents_of(start)
    path = runs_root() / name
    if resume:
        started_from = Run.open(path).info().get("parents", [])
        if started_from != parents:
            was = ", ".join(started_from) or "the recipe's model"
            raise DanluError(f"cannot resume {path}: it started from {was}", "give the same --from again")
    run = Run.create(
        path,
        stage,
        recipe.resolved(),
        recipe_text=recipe_text,
        parents=parents,
        seed=recipe.seed,
        resume=resume,
    )
    return run, str(parent.path) if parent else start


def _carry_out(stage: str, recipe: Recipe, run: Run, start: str | None) -> None:
    try:
        with run.recording():
            results = STAGES[stage](recipe, run, start)
            if isinstance(results, dict):
                run.record(**results)
    except KeyboardInterrupt:
        raise Stopped(f"{run.path} was interrupted", "continue it with --resume") from None


# ---- the commands


def command(
    name: str,
    recipe_name: str,
    *,
    overrides: list[str],
    start: str | None,
    run_name: str | None = None,
    resume: bool = False,
    dry_run: bool = False,
    as_json: bool = False,
    after: Callable[[str], dict[str, Any]] | None = None,
) -> None:
    """Body of `danlu run|sft|grpo|eval|export`: stdout gets the artifact path (or JSON) of each step.

    `after` gets the directory of the last run; what it returns joins the JSON.
    """
    processes.start()
    if dry_run:
        recipe = processes.lead(lambda: load(recipe_name, overrides))
        steps = plan(name, recipe, start, run_name)
        mlx_fit.check(recipe, [step.stage for step in steps])
        group = launch.group(recipe, [(step.stage, step.start) for step in steps])
        print(described(recipe, steps, as_json, group), flush=True)
        launch.settled(group)
        return
    recipe, steps, text = processes.lead(lambda: _planned(name, recipe_name, overrides, start, run_name, resume))
    done: list[dict[str, Any]] = []
    for step in steps:
        run = processes.lead(partial(_finished, step, recipe)) if resume else None
        if run is None:
            goes_on = resume and (runs_root() / step.run / "run.json").is_file()
            say(f"{step.stage}: {runs_root() / step.run} from {step.start or recipe.model.id}")
            run = run_stage(step.stage, recipe, step.run, start=step.start, recipe_text=text, resume=goes_on)
        outcome = processes.lead(partial(_outcome, name, step, run))
        done.append(outcome)
        if not as_json:
            print(outcome["artifact"], flush=True)
    more = after(done[-1]["run"]) if after else {}
    if as_json:
        print(json.dumps({"stages": done, **more}, ensure_ascii=False))


def _planned(
    name: str, recipe_name: str, overrides: list[str], start: str | None, run_name: str | None, resume: bool
) -> tuple[Recipe, list[Step], str]:
    """(recipe, steps, the recipe as written) of a command; DanluError where its runs cannot be made or resumed."""
    recipe = load(recipe_name, overrides)
    steps = plan(name, recipe, start, run_name)
    mlx_fit.check(recipe, [step.stage for step in steps])
    if not resume:  # a used name is found now and not after hours
        for step in steps:
            refuse_used(step)
    elif name != "run":
        Run.open(runs_root() / steps[0].run)
    return recipe, steps, as_written(recipe_name, overrides)


def _outcome(name: str, step: Step, run: Run) -> dict[str, Any]:
    """`outcome_of` with the comparison and the plots that `danlu run` makes."""
    outcome = outcome_of(step.stage, run)
    if step.compare_with:
        base = open_run(step.compare_with)
        outcome["comparison"] = _compare_evals(base, run)
        outcome["plots"] = _drawn([base, run])
    elif name == "run" and step.stage in TRAINING:
        outcome["plots"] = _drawn([run])
    return outcome


def outcome_of(stage: str, run: Run) -> dict[str, Any]:
    """A finished stage as an entry of --json."""
    results = run.info().get("results", {})
    return {"stage": stage, "run": str(run.path), "artifact": str(delivered(run)), "results": results}


def described(recipe: Recipe, steps: list[Step], as_json: bool, group: dict[str, Any] | None = None) -> str:
    """The resolved recipe (YAML that loads again), what would run, and in which processes (see launch.group)."""
    if as_json:
        found = {"recipe": recipe.resolved(), "plan": [asdict(step) for step in steps]}
        return json.dumps(found | ({"group": group} if group else {}), ensure_ascii=False)
    text = yaml.safe_dump(recipe.resolved(), allow_unicode=True, sort_keys=False, width=110)
    lines = [f"#   {step.stage}: {runs_root() / step.run} from {step.start or recipe.model.id}" for step in steps]
    return "\n".join([text + "# would run:", *lines, *([launch.told(group)] if group else [])])


def delivered(run: Run) -> Path:
    """What a stage leaves for the user: its artifact, or the run itself where it has none (evaluations)."""
    return run.artifact if run.artifact.exists() else run.path


def refuse_used(step: Step) -> None:
    """DanluError where the step's run cannot be made because something lies there."""
    path = runs_root() / step.run
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DanluError(
            f"{path} is already used", f"continue it with --resume, choose another --name, or remove {path}"
        )


def _finished(step: Step, recipe: Recipe) -> Run | None:
    """The step's run if an earlier `danlu run` has finished it under the same recipe."""
    run = Run(runs_root() / step.run)
    if not (run.path / "run.json").is_file() or run.state() != "done":
        return None
    if differing_keys(run.config(), recipe.resolved()):
        return None  # a changed recipe is refused, with its keys, by Run.create
    if run.info().get("parents", []) != parents_of(step.start):
        return None  # so is another start, by run_stage
    say(f"{step.stage}: {run.path} is already done")
    return run


def as_written(recipe_name: str, overrides: list[str]) -> str:
    """The recipe file, with the overrides as comments: recipe.yaml is for people, config.json for machines."""
    text = find(recipe_name).read_text(encoding="utf-8-sig")
    return text + "".join(f"# --set {override}\n" for override in overrides)


def _compare_evals(base: Run, tuned: Run) -> dict[str, Any]:
    from danlu.evaluate.verdict import compare

    comparison = compare(base.path, tuned.path)
    write_json(tuned.path / "compare.json", comparison)
    say(comparison["sentence"])
    return comparison


def merge_run(
    name: str, out: Path | None, *, dtype: Any = None, base: str | None = None, check: bool = True
) -> dict[str, Any]:
    """Merge the adapter of a trained run, or of a folder, into its base; see export.merged.merged_model."""
    from danlu.export.merged import merged_model
    from danlu.models.locate import refuse_mlx

    run = find_run(name)
    artifact = run.artifact if run else Path(name)
    if run is None and not (artifact / "adapter_config.json").is_file():
        run = open_run(name)
    if run and run.state() != "done":
        raise DanluError(f"{run.path} is {run.state()}, not done", "finish it first with --resume")
    refuse_mlx(artifact)
    if not (artifact / "adapter_config.json").is_file():
        raise DanluError(f"{artifact} holds no adapter", "merge takes a finished sft or grpo run with method: lora")
    return merged_model(artifact, out or artifact.parent / "merged", dtype=dtype, base=base, check=check)


def convert_adapter(name: str, out: Path, base: str | None) -> Path:
    """Write the adapter of a run or a directory as the other kind (peft, mlx-lm) into `out`."""
    from danlu.models.mlx_adapter import convert

    source = Path(name) if (Path(name) / "adapter_config.json").is_file() else open_run(name).artifact
    if not (source / "adapter_config.json").is_file():
        raise DanluError(f"{source} holds no adapter", "this takes a finished sft or grpo run with method: lora")
    kind = convert(source, out, base)
    say(f"an adapter of {'mlx-lm' if kind == 'mlx' else kind}: {out}")
    return out


def plot_runs(names: list[str]) -> list[str]:
    """Draw the curves of runs; the paths of the PNG files."""
    from danlu.evaluate.plots import plot

    return [str(path) for path in plot([open_run(name) for name in names])]


def _drawn(runs: list[Run]) -> list[str]:
    """The plots of `danlu run`; a picture that cannot be drawn must not end hours of work."""
    try:
        return plot_runs([str(run.path) for run in runs])
    except DanluError as error:
        warn(f"no plot of {runs[-1].path}: {error.message}")
        return []
