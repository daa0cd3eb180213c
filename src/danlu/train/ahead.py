"""What the next step needs, made while this one computes: by one thread, and only between two calls.

Whatever is made must be a pure function of the step. Then a thread, or none, changes when it is made and never what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """`make(step)` by step; the step after is begun by `begin` and waited for by `settle`."""

    def __init__(self, make: Callable[[int], T], last: int) -> None:
        self._make, self._last = make, last
        self._pool = ThreadPoolExecutor(1, "ahead")
        self._next: tuple[int, Future[T]] | None = None

    def of(self, step: int) -> T:
        """What `step` needs; an error of making it is raised here."""
        ready, self._next = self._next, None
        return ready[1].result() if ready is not None and ready[0] == step else self._make(step)

    @contextmanager
    def next(self, step: int) -> Iterator[None]:
        """Make what `step` needs while the block runs; outside of it the thread is idle."""
        if step < self._last:
            self._next = (step, self._pool.submit(self._make, step))
        try:
            yield
        finally:
            if self._next is not None:
                self._next[1].exception()  # waits; it is raised by `of`, or never if the run ends here
