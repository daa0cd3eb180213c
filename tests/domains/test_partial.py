from __future__ import annotations

import pytest

from danlu.domains.medical import DOMAIN
from danlu.domains.medical.clinic.knowledge import knowledge
from danlu.domains.medical.clinic.vignettes import held_out
from danlu.errors import DanluError


def test_one_finding_is_missing_and_the_answer_is_still_the_only_best():
    world, kb = DOMAIN.world, knowledge()
    assert world is not None
    rows = world.samples("test-partial", 120, 3)
    whole = {row.id: row for row in world.samples("test", 240, 3)}
    assert len({row.id for row in rows}) == 120
    for row in rows:
        full = whole[row.id.removeprefix("test-partial-")]
        missing = set(full.meta["findings"]) - set(row.meta["findings"])
        assert len(missing) == 1
        assert set(row.meta["findings"]) < set(full.meta["findings"])
        assert kb.best(row.meta["findings"]) == row.meta["condition"] == full.meta["condition"]
        assert kb.name(missing.pop(), row.meta["language"]) not in row.question
        assert row.meta["task"] == full.meta["task"]
        if not row.options:
            assert row.target == full.target
    assert {row.meta["condition"] in held_out() for row in rows} == {True, False}
    assert rows == world.samples("test-partial", 120, 3)


def test_other_splits_are_the_clinics_and_too_many_is_an_error():
    world = DOMAIN.world
    assert world is not None
    assert "test-partial" in world.splits
    assert len(world.samples("sft", 5, 1)) == 5
    with pytest.raises(DanluError, match="has only about"):
        world.samples("test-partial", 10**5, 0)
