"""What a recipe leaves to the plan (`micro_batch: auto`, `gradient_checkpointing: auto`), decided once for a run."""

from __future__ import annotations

from danlu.errors import DanluError
from danlu.models.plan import Stage, resolve
from danlu.recipe import Recipe
from danlu.run import Run
from danlu.train import processes


def planned(recipe: Recipe, run: Run, stage: Stage, start: str | None) -> tuple[int, bool]:
    """(micro_batch, gradient_checkpointing) of a run: what it began with when it is resumed, else by free memory."""
    told = processes.lead(lambda: run.info().get("results", {}).get("planned"))
    if told is None:
        try:
            micro, recompute = resolve(recipe, stage, start)
        except DanluError:  # without a config there is no plan; loading the model tells what is wrong with it
            micro, recompute = 1, recipe.sft.gradient_checkpointing is True
        least, any_recompute = processes.most(-micro, recompute)  # what fits the fullest machine
        told = {"micro_batch": int(-least), "gradient_checkpointing": bool(any_recompute)}
        run.record(planned=told)
    return told["micro_batch"], told["gradient_checkpointing"]
