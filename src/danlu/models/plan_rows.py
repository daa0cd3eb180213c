"""What is known of a recipe's rows before training: how many, how long, how much of them carries loss.

Rows are read only where that needs no download: data in local files or a miniature world, a tokenizer in a local folder
or the hub's cache. The token sets that are made are those that training will use (`danlu.data.store`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from danlu.data.encode import encode
from danlu.data.prepare import prepare, prompts, shape_of
from danlu.data.render import prompt_text
from danlu.data.store import open_store
from danlu.errors import DanluError
from danlu.models.tokenizer import speech_of
from danlu.recipe import Model, Recipe, Source


@dataclass(frozen=True, slots=True)
class Rows:
    """`lengths` int64 [rows] in tokens (None: unknown), `supervised` the share of tokens with loss (1: unknown).

    `told` says what is assumed, or "" where nothing is.
    """

    lengths: np.ndarray | None = None
    count: int | None = None
    supervised: float = 1.0
    told: str = ""


def rows_of(recipe: Recipe, stage: str, start: str | None = None) -> Rows:
    """The rows of a stage as far as they can be known here; never a download, never an error of the data."""
    sources = recipe.grpo.data or recipe.data.train if stage == "grpo" else recipe.data.train
    far = next((source.path for source in sources if not _local(source)), None)
    if far is not None or not sources:
        limits = [source.limit for source in sources]
        count = sum(limit for limit in limits if limit) if all(limits) and sources else None
        return Rows(count=count, told=f"the rows of {far} are not here" if far else "the recipe names no rows")
    local = recipe.data.model_copy(update={"decontaminate": False})  # benchmarks may have to be downloaded
    recipe = recipe.model_copy(update={"data": local})
    try:
        found = prompts(recipe, sources) if stage == "grpo" else prepare(recipe)
    except DanluError as error:
        return Rows(told=f"the rows cannot be read ({error.message})")
    if not has_tokenizer(recipe.model, start):
        return Rows(count=len(found.train), told="the tokenizer is not here, so lengths are not known")
    try:
        speech = speech_of(recipe.model, start)
        if stage == "grpo":
            texts = [prompt_text(speech.tokenizer, speech.think, row.messages) for row in found.train]
            lengths = np.array([len(ids) for ids in encode(speech.tokenizer, texts)], dtype=np.int64)
            return Rows(lengths[lengths <= recipe.grpo.max_prompt], len(lengths))
        store = open_store(speech.tokenizer, speech.think, found.train, shape_of(recipe))
    except DanluError as error:
        return Rows(count=len(found.train), told=f"the rows cannot be rendered ({error.message})")
    if not len(store):
        return Rows(count=0, told=f"no row fits into data.max_length = {recipe.data.max_length}")
    share = store.report.supervised_tokens / max(1, store.report.tokens)
    return Rows(store.lengths, len(store), share)


def _local(source: Source) -> bool:
    return source.path.startswith("world:") or Path(source.path).expanduser().exists()


def has_tokenizer(spec: Model, start: str | None = None) -> bool:
    """Whether the model's tokenizer can be had without a download."""
    if start is not None and (Path(start) / "run.json").is_file():
        return True
    name = start or spec.tokenizer or ("" if spec.config else spec.id)
    if name == "tiny" or (name and Path(name).expanduser().is_dir()):
        return True
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "tokenizer.json", revision=spec.revision if name == spec.id else None)
    except ValueError:  # not a hub id
        return False
    return isinstance(found, str)
