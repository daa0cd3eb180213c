"""What both training stages leave behind: the artifact, and the rows they did not take."""

from __future__ import annotations

import json

from safetensors import SafetensorError

from danlu import display, domains
from danlu.data.prepare import Prepared
from danlu.errors import DanluError
from danlu.models.load import save_artifact
from danlu.recipe import Recipe
from danlu.run import Run
from danlu.train.loop import Loop


def deliver(loop: Loop, recipe: Recipe) -> None:
    """Write the artifact and close the trackers."""
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
    if loop.settings.track:
        loop.accelerator.end_training()


def write_rejected(run: Run, prepared: Prepared) -> None:
    """rejected.jsonl: every row that was left out, with file, line and reason."""
    if not prepared.rejected:
        return
    display.warn(f"{len(prepared.rejected)} bad rows were left out; see {run.path / 'rejected.jsonl'}")
    lines = [
        json.dumps({"origin": r.origin, "line": r.line, "reason": r.reason, "row": r.row_excerpt}, ensure_ascii=False)
        for r in prepared.rejected
    ]
    (run.path / "rejected.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
