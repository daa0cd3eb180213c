"""The training rows of a recipe as they are drawn: from the token set, with terms masked anew in every epoch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from danlu import domains
from danlu.data.augment import mask, matcher
from danlu.data.encode import encode
from danlu.data.prepare import Prepared, prepare, prompts, shape_of
from danlu.data.render import IGNORE, Rendered, prompt_text, render_masked, turn_of
from danlu.data.store import open_store
from danlu.models.tokenizer import Speech
from danlu.recipe import Recipe
from danlu.records import Sample
from danlu.think import ThinkFormat


class Rows(Protocol):
    """A token set, or a list of its rows."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Rendered: ...


def opened(recipe: Recipe, speech: Speech) -> tuple[Prepared, Rows]:
    """The prepared rows of a recipe, and as tokens those it trains on; the prompts where it has only GRPO's."""
    if recipe.data.train or "grpo" not in recipe.stages:
        prepared = prepare(recipe)
        return prepared, open_store(speech.tokenizer, speech.think, prepared.train, shape_of(recipe))
    prepared = prompts(recipe, recipe.grpo.data)
    texts = [prompt_text(speech.tokenizer, speech.think, sample.messages) for sample in prepared.train]
    ids = encode(speech.tokenizer, texts)
    named = zip(prepared.train, ids, strict=True)
    return prepared, [Rendered(sample.id, own, np.full_like(own, IGNORE)) for sample, own in named]


class TrainingRows:
    """Training rows by (epoch, row): masked anew in each epoch where the recipe asks for it."""

    def __init__(self, recipe: Recipe, tokenizer: Any, think: ThinkFormat, samples: list[Sample], store: Rows) -> None:
        self.count = len(store)
        self._store, self._recipe, self._tokenizer, self._think = store, recipe, tokenizer, think
        self._samples = {sample.id: sample for sample in samples}
        self._matcher = matcher(domains.load(recipe.domain).terms()) if recipe.data.masking else None

    def rendered(self, epoch: int, index: int) -> Rendered:
        """Row `index` of the token set as it is trained in `epoch`; a masked row that became too long stays plain."""
        plain, masking = self._store[index], self._recipe.data.masking
        if self._matcher is None or masking is None:
            return plain
        own = self._samples[plain.id]
        shape = shape_of(self._recipe)
        if plain.turn is not None:
            own, shape = turn_of(own, plain.turn), replace(shape, loss_on="completion")
        sample, spans = mask(own, masking, self._matcher, seed=self._recipe.seed, epoch=epoch)
        if not spans:
            return plain
        changed = render_masked(self._tokenizer, self._think, sample, spans, shape, masking.loss)
        return changed or plain
