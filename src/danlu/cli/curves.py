"""`danlu compare` of SFT runs: which runs make an arm, and the table of their curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danlu.cli.readers import print_json, table
from danlu.cli.stages import find_run
from danlu.display import say, warn
from danlu.errors import DanluError
from danlu.recipe import runs_root
from danlu.run import Run, list_runs


def training_arms(targets: Sequence[str], asked: Sequence[object]) -> list[tuple[str, list[Run]]] | None:
    """(name, SFT runs) of each target, or None where one of them is not SFT runs, or questions are `asked`.

    A target is a run, several as A1,A2,A3, or the name of a recipe: all its finished SFT runs. DanluError where more
    than two targets are something else, and for what is missing in a list.
    """
    found = [_runs(target) for target in targets]
    if not any(asked) and all(found):
        recipes = [runs[0].config().get("name") for runs in found]
        names = [
            runs[0].name if len(runs) == 1 else str(name) if recipes.count(name) == 1 else target
            for target, runs, name in zip(targets, found, recipes, strict=True)
        ]
        return list(zip(names, found, strict=True))
    if len(targets) > 2:
        raise DanluError("three or more are compared by their training only", "give SFT runs, and no other options")
    return None


def _runs(target: str) -> list[Run]:
    """The SFT runs that `target` names; none if it is something else."""
    run = find_run(target)
    if run is not None:
        return [run] if run.info().get("stage") == "sft" else []
    if Path(target).exists():
        return []
    if "," in target:
        parts = [(name, find_run(name)) for name in target.split(",")]
        for name, part in parts:
            if part is None or part.info().get("stage") != "sft":
                raise DanluError(f"{name or 'an empty name'} is not an SFT run", "A1,A2 are SFT runs: danlu ls")
        return [part for _, part in parts if part is not None]
    of_recipe = [one for one in list_runs(runs_root()) if _made_from(one, target)]
    unfinished = [one for one in of_recipe if one.state() != "done"]
    for one in unfinished:
        warn(f"{one.path} is {one.state()}, not done: left out")
    return [one for one in of_recipe if one not in unfinished]


def _made_from(run: Run, recipe: str) -> bool:
    try:
        return run.info().get("stage") == "sft" and run.config().get("name") == recipe
    except DanluError:  # unreadable: `danlu ls` shows it
        return False


def show_training(arms: Sequence[tuple[str, list[Run]]], as_json: bool) -> None:
    """Print the comparison: the sentence, the arms, the differences."""
    from danlu.evaluate.training import METRICS, compare, number

    found = compare(arms)
    if as_json:
        print_json(found)
        return
    print(found["sentence"])
    rows = [("seeds", *(" ".join(map(str, arm["seeds"])) for arm in found["arms"]))]
    rows += [(label, *(_mean(arm["metrics"].get(name)) for arm in found["arms"])) for name, label in METRICS.items()]
    table(("", *(arm["name"] for arm in found["arms"])), rows)
    words = {True: "yes", False: "cannot tell", None: ""}
    differences = [
        (
            one["label"],
            " -> ".join(one["arms"]),
            f"{one['difference']:+.4g}",
            f"[{one['ci'][0]:+.4g}, {one['ci'][1]:+.4g}]" if one["ci"] else "",
            "" if one["p_adjusted"] is None else f"{one['p_adjusted']:.2g}",
            words[one["real"]],
        )
        for one in found["metrics"]
    ]
    table(("METRIC", "ARMS", "DIFFERENCE", "95 % CI", "P (HOLM)", "REAL"), differences)
    say(f"train loss: mean of the last {found['window']} steps; the common loss is {number(found['common_loss'])}")
    for note in found["notes"]:
        warn(note)
    say("a lower loss is not a better answer: compare evaluations, or add --suite NAME")


def _mean(figures: dict[str, Any] | None) -> str:
    """The mean, and half the width of its interval."""
    if figures is None:
        return ""
    half = f" ± {(figures['ci'][1] - figures['ci'][0]) / 2:.2g}" if figures["ci"] else ""
    return f"{figures['mean']:.4g}{half}"
