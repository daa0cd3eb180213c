"""The training rows of a recipe as they are drawn: from the token set, with terms masked anew in every epoch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from danlu import domains
from danlu.data.augment import mask, matcher
from danlu.data.prepare import Prepared, prepare, shape_of
from danlu.data.render import Rendered, render_masked, turn_of
from danlu.data.store import Store, open_store
from danlu.models.tokenizer import Speech
from danlu.recipe import Recipe
from danlu.records import Sample
from danlu.think import ThinkFormat


def opened(recipe: Recipe, speech: Speech) -> tuple[Prepared, Store]:
    """The prepared rows of a recipe and the token set of its training rows."""
    prepared = prepare(recipe)
    return prepared, open_store(speech.tokenizer, speech.think, prepared.train, shape_of(recipe))


class TrainingRows:
    """Training rows by (epoch, row): masked anew in each epoch where the recipe asks for it."""

    def __init__(self, recipe: Recipe, tokenizer: Any, think: ThinkFormat, samples: list[Sample], store: Store) -> None:
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
