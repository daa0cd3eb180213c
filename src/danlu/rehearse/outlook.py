"""What a tiny model cannot show of the real run, computed instead: memory and time (`danlu plan`), and the disk.

Space: checkpoints hold what is trained in fp32 and the optimizer's state, `keep_last` of them and one that is being
written; an artifact what is trained; a merge all weights in 16 bits; a GGUF file all of them as export.quant says.
Not covered: what else writes to the disk meanwhile, and caches of data sets.
"""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any

from danlu.errors import DanluError
from danlu.models.plan import plan
from danlu.recipe import Recipe, runs_root
from danlu.rehearse.book import Book, Page
from danlu.rehearse.model import START
from danlu.rehearse.rows import Rows
from danlu.train import trackers

# of a weight in a GGUF file
BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_0": 22 / 32, "q4_0": 18 / 32}
BYTES |= {"q6_k": 0.83, "q5_k_m": 0.74, "q5_k_s": 0.72, "q4_k_m": 0.64, "q4_k_s": 0.61, "q3_k_m": 0.52, "q2_k": 0.42}


def foresee(recipe: Recipe, rows: Rows, page: Page, book: Book) -> None:
    """Findings on memory, time, disk and trackers of the real run, as far as its configuration is known."""
    needs: list[tuple[str, str, float, float]] = []
    weights = 0.0
    for stage in recipe.stages:
        if stage not in ("sft", "grpo"):
            continue
        try:
            trackers.check(getattr(recipe, stage).track)
        except DanluError as error:
            page.failed(f"{START} of {stage}", error)
        try:
            found = plan(recipe, stage=stage, lengths=rows.lengths.get(stage))
        except DanluError as error:
            book.skip(f"memory, time and disk of {stage}: {error.message}")
            continue
        _tell(found, page)
        weights = found["parameters"]["total"]
        needs += _written(recipe, stage, found)
    check_download(recipe.model.id, weights, page)
    if "export" in recipe.stages and weights:
        trained_fully = any(getattr(recipe, s).method == "full" for s in recipe.stages if s in ("sft", "grpo"))
        if not trained_fully:
            needs.append(("in the export", "the merged model", weights * 2, min(weights * 2, 5e9)))
        for quant in recipe.export.quant:
            file = weights * BYTES[quant]
            needs.append(("in the export", f"the {quant} file", file, file))
    check_disk(needs, page)


def _tell(found: dict[str, Any], page: Page) -> None:
    """The plan of a stage in a line."""
    stage, total, budget = found["stage"], found["memory"]["total"], found["budget"]
    told = f"{stage} holds at most {_gb(total)}"
    told += f" of {_gb(budget)} on {found['device']['name']}" if budget else f" on {found['device']['name']}"
    if found["fits"] is False:
        how = f"cheapest change: {found['cheapest']}" if found["cheapest"] else "danlu plan --gpu NAME: elsewhere"
        page.warning(f"{stage}, step 1", f"{told}: it does not fit here", how)
        return
    if found["steps"] is not None:
        told += f"; {found['steps']:,} steps, {' to '.join(map(_time, found['seconds']))}"
    page.info("", told)


def _written(recipe: Recipe, stage: str, found: dict[str, Any]) -> list[tuple[str, str, float, float]]:
    """(when, what, bytes on the disk, bytes of its largest file) of a training stage."""
    settings = getattr(recipe, stage)
    trained, state = 4.0 * found["parameters"]["trained"], float(found["memory"]["optimizer"])
    best = trained if settings.keep_best else 0.0
    saved = trained + best + state
    every = f"step {settings.save_every}" if settings.save_every else "the last step"
    return [
        (f"{stage}, at the checkpoint of {every}", "a checkpoint", saved, max(trained, state)),
        (f"{stage}, at a later checkpoint", "the checkpoints kept", saved * settings.keep_last, max(trained, state)),
        (f"{stage}, after the last step", "the artifact", trained, min(trained, 5e9)),
    ]


def check_disk(needs: list[tuple[str, str, float, float]], page: Page) -> None:
    """An error for the first of `needs` (when, what, bytes, bytes of a file), one after the other, without room."""
    root = runs_root().absolute()
    free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free
    longest, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    taken = 0.0
    for when, what, size, file in needs:
        if longest != resource.RLIM_INFINITY and file > longest:
            told = f"disk: {what} needs a file of {_gb(file)}, and files may have {_gb(longest)} here"
            page.error(when, told, "raise the limit: ulimit -f unlimited")
            return
        taken += size
        if taken > free:
            before = f" ({_gb(taken - size)} are written before)" if taken > size else ""
            page.error(when, f"disk: {what} needs {_gb(size)}, {_gb(free)} are free{before}", "free some space")
            return
    if needs:
        page.info(START, f"disk: {_gb(taken)} in all, {_gb(free)} are free")


def check_download(name: str, weights: float, page: Page) -> None:
    """An error where the weights of a hub's model are not here and the hub's cache has no room for them."""
    from huggingface_hub import constants

    if not weights or Path(name).expanduser().exists() or ":" in name or name == "tiny":
        return
    cache = Path(constants.HF_HUB_CACHE).absolute()
    if any(cache.glob(f"models--{name.replace('/', '--')}/snapshots/*/*.safetensors")):
        return
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    if 2 * weights > free:
        page.error(START, f"disk: the weights need {_gb(2 * weights)}, {_gb(free)} are free in {cache}", "set HF_HOME")


def _time(seconds: float) -> str:
    size, unit = next((one for one in ((3600, "h"), (60, "min")) if seconds >= one[0]), (1, "s"))
    return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
