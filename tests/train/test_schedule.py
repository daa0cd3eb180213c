"""The order of rows and the learning rate are functions of seed and step."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from danlu.recipe import Optimizer
from danlu.train.schedule import learning_rate, row_order


@pytest.mark.parametrize("count", [1, 5, 7])
def test_every_epoch_is_a_permutation_and_the_order_is_resumable(count: int) -> None:
    whole = row_order(count, 42, 0, 6 * count)
    for epoch in range(6):
        part = whole[epoch * count : (epoch + 1) * count]
        assert {e for e, _ in part} == {epoch}
        assert sorted(row for _, row in part) == list(range(count))
    for size in (1, 2, 3, 4):
        parts = [row_order(count, 42, at, min(at + size, 6 * count)) for at in range(0, 6 * count, size)]
        assert [place for part in parts for place in part] == whole
    if count > 3:
        assert len({tuple(row for e, row in whole if e == epoch) for epoch in range(6)}) > 1
        assert row_order(count, 43, 0, 6 * count) != whole


def test_a_step_of_many_rows_costs_no_shuffle_of_all() -> None:
    count = 200_000
    row_order(count, 1, 0, 4)
    began = time.perf_counter()
    for step in range(1, 101):
        row_order(count, 1, 4 * step, 4 * step + 4)
    assert time.perf_counter() - began < 0.1  # one shuffle alone takes longer


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * n / 8)) for n in range(8))]),
    ],
)
def test_the_schedule(schedule: Any, wanted: list[float]) -> None:
    settings = Optimizer(lr=2e-3, schedule=schedule, warmup=0.2)
    assert [learning_rate(settings, n, 10) for n in range(10)] == pytest.approx([2e-3 * share for share in wanted])


def test_a_schedule_of_one_step_and_of_warmup_alone() -> None:
    assert learning_rate(Optimizer(lr=1.0), 0, 1) == 1.0
    assert [learning_rate(Optimizer(lr=1.0, warmup=1.0), n, 3) for n in range(3)] == [0.25, 0.5, 0.75]
