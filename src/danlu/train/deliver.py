"""What both training stages leave behind: the artifact."""

from __future__ import annotations

from safetensors import SafetensorError

from danlu import domains
from danlu.errors import DanluError
from danlu.models.load import save_artifact
from danlu.recipe import Recipe
from danlu.train import processes, sharding, trackers
from danlu.train.loop import Loop


def deliver(loop: Loop, recipe: Recipe) -> None:
    """Write the artifact (in the first of several processes) and close the trackers."""
    sharding.gather_model(loop.logprobs, loop.loaded)
    processes.lead(lambda: _write(loop, recipe))
    trackers.finish(loop.accelerator)


def _write(loop: Loop, recipe: Recipe) -> None:
    domain = domains.load(recipe.domain)
    uses_world = any(source.path.startswith("world:") for source in [*recipe.data.train, *recipe.grpo.data])
    notice = domain.world.notice if domain.world and uses_world else domain.notice
    try:
        with loop.run.delivering() as staged:
            save_artifact(loop.loaded, staged, notice=notice, parents=[loop.run.name])
    except (OSError, SafetensorError) as error:
        raise DanluError(
            f"cannot write the artifact: {str(error).strip().splitlines()[0]}",
            "free some space and --resume: the last step is saved",
        ) from error
