"""What is made ahead is what would have been made, in whatever order it is asked for."""

from __future__ import annotations

import threading

import pytest

from danlu.train.ahead import Ahead


def test_it_is_made_once_and_while_the_block_runs() -> None:
    made: list[tuple[int, bool]] = []

    def make(step: int) -> int:
        made.append((step, threading.current_thread() is threading.main_thread()))
        return step * 10

    ahead = Ahead(make, last=3)
    found = []
    for step in range(3):
        found.append(ahead.of(step))
        with ahead.next(step + 1):
            pass
        assert len(made) == min(step + 2, 3)  # the thread rests between blocks
    assert found == [0, 10, 20]
    assert made == [(0, True), (1, False), (2, False)]


def test_another_step_than_the_next_is_made_anew() -> None:
    ahead = Ahead(lambda step: step, last=10)
    with ahead.next(4):
        pass
    assert ahead.of(7) == 7
    assert ahead.of(4) == 4


def test_an_error_is_raised_where_the_step_is_wanted() -> None:
    ahead = Ahead(lambda step: 1 // step, last=3)
    with ahead.next(0):
        pass
    with pytest.raises(ZeroDivisionError):
        ahead.of(0)
    with pytest.raises(KeyboardInterrupt), ahead.next(1):
        raise KeyboardInterrupt
    assert ahead.of(1) == 1
