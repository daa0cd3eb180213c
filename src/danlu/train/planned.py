"""The model that a stage trains, and what its recipe leaves to the plan (`micro_batch: auto`, `gradient_checkpointing:
auto`), decided once for a run.

Not covered: dividing the weights (FSDP2) is not counted on; what is decided is what whole weights need.
"""

from __future__ import annotations

from danlu.errors import DanluError
from danlu.models.load import Loaded, load
from danlu.models.plan import Stage, resolve, settings_of
from danlu.recipe import Recipe
from danlu.run import Run
from danlu.train import processes, sharding


def loaded_for(recipe: Recipe, run: Run, stage: Stage, start: str | None) -> tuple[Loaded, int]:
    """(the model with what the stage trains, its micro-batch)."""
    settings = settings_of(recipe, stage)
    micro, recompute = planned(recipe, run, stage, start)
    loaded = load(
        recipe.model,
        start,
        seed=recipe.seed,
        lora=settings.lora if settings.method == "lora" else None,
        train=True,
        gradient_checkpointing=recompute,
        place=sharding.loading_place(),
    )
    return loaded, micro


def planned(recipe: Recipe, run: Run, stage: Stage, start: str | None) -> tuple[int, bool]:
    """(micro_batch, gradient_checkpointing) of a run: what it began with when it is resumed, else by free memory."""
    told = processes.lead(lambda: run.info().get("results", {}).get("planned"))
    if told is None:
        try:
            micro, recompute = resolve(recipe, stage, start)
        except DanluError:  # without a config there is no plan; loading the model tells what is wrong with it
            micro, recompute = 1, settings_of(recipe, stage).gradient_checkpointing is True
        least, any_recompute = processes.most(-micro, recompute)  # what fits the fullest machine
        told = {"micro_batch": int(-least), "gradient_checkpointing": bool(any_recompute)}
        run.record(planned=told)
    return told["micro_batch"], told["gradient_checkpointing"]
