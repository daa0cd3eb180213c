"""CUDA graphs of the decode step: hundreds of small kernels, which take longer to start one by one than to run.

Method: a graph belongs to a number of rows and a length, both rounded up. Rows behind the living ones are computed and
thrown away (what they write lies in free rows), places that are not written yet are masked. A shape is recorded when
it is asked for again and again; until then the step runs as it is. Graphs live as long as the cache they read, share
one pool of memory, and write their logits to one place.

The first graph of a cache is held against the plain step, which may run twice because it writes the same again. Where
recording fails, or numbers differ, it is told once and steps run as they are.
Not covered: prompts that are kept apart (a CPU's way), several devices. Without CUDA our tests replay a step without
recording it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from danlu import display
from danlu.generate.forward import Cache, step
from danlu.generate.memory import ran_out
from danlu.generate.weights import Weights

STRETCH = 128  # lengths are rounded up to a multiple of it
AGAIN = 8  # times that a shape is asked for before it is recorded: that costs several steps
APART = 0.05  # difference of logits, as a share of the largest, that other roundings do not make
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]

_told: set[str] = set()


class Graphs:
    """Graphs of the step over one cache, whose rows' newest `tokens` stand at `positions` [rows].

    record: makes a replay of some work on the device.
    """

    def __init__(self, w: Weights, cache: Cache, tokens: Tensor, positions: Tensor, record: Record) -> None:
        self._w, self._cache, self._tokens, self._positions = w, cache, tokens, positions
        self._record = record
        self._asked: Counter[tuple[int, int]] = Counter()
        self._replays: dict[tuple[int, int], Callable[[], Tensor]] = {}
        self._logits: Tensor | None = None
        self._off = False

    def logits(self, rows: int, length: int) -> Tensor | None:
        """Logits [rows, vocabulary] of the first rows, as long as the next call; None where no graph is there."""
        if self._off:
            return None
        longest = self._cache.data.shape[3]
        shape = rounded(rows, len(self._tokens)), min(longest, -(-length // STRETCH) * STRETCH)
        replay = self._replays.get(shape)
        if replay is None:
            self._asked[shape] += 1
            if self._asked[shape] < AGAIN:
                return None
            replay = self._recorded(shape, rows, length)
            if replay is None:
                return None
            self._replays[shape] = replay
        return replay()[:rows]

    def _recorded(self, shape: tuple[int, int], rows: int, length: int) -> Callable[[], Tensor] | None:
        into = self._place()[: shape[0]]
        try:
            replay = self._record(lambda: into.copy_(self._plain(*shape)))
        except RuntimeError as error:
            if ran_out(error):
                raise
            self._give_up(f"could not be recorded ({str(error).strip().splitlines()[0]:.100})")
            return None
        if not self._replays:
            found, wanted = replay()[:rows].float(), self._plain(rows, length).float()
            if not bool((found - wanted).abs().max() <= APART * wanted.abs().max()):
                self._give_up("gave other numbers")
                return None
        return replay

    def _plain(self, rows: int, length: int) -> Tensor:
        places = self._positions[:rows]
        return self._w.head(step(self._w, self._cache, self._tokens[:rows], places, places, length, masked=True))

    def _place(self) -> Tensor:
        """Where all graphs write their logits."""
        if self._logits is None:
            shape = len(self._tokens), self._w.vocabulary
            self._logits = torch.empty(shape, dtype=self._w.dtype, device=self._w.device)
        return self._logits

    def _give_up(self, why: str) -> None:
        self._off = True
        if why not in _told:
            _told.add(why)
            display.warn(f"a CUDA graph of decoding {why}: going on without")


def graphs_of(w: Weights, cache: Cache, tokens: Tensor, positions: Tensor) -> Graphs | None:
    """Graphs of the decode step where the device has them."""
    if w.device.type != "cuda" or cache.shared is not None:
        return None
    return Graphs(w, cache, tokens, positions, on_cuda())


def rounded(rows: int, most: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24 ... rows, `most` at most."""
    size = 1 << (rows - 1).bit_length()
    return min(most, size // 4 * 3 if size >= 4 and rows <= size // 4 * 3 else size)


def on_cuda() -> Record:
    """Records work as CUDA graphs that share a pool of memory."""
    pool: Any = torch.cuda.graph_pool_handle()

    def record(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        aside, current = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):  # what libraries set up at first use must not be part of a graph
            work()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            found = work()

        def replay() -> Tensor:
            graph.replay()
            return found

        return replay

    return record
