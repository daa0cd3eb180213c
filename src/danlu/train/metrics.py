"""What a step costs, in seconds and bytes, without waiting for the device more than once a step.

On CUDA a mark is an event in the stream, read after the step has synchronised anyway, so that the optimizer's time is
told one step later; elsewhere it is the host's clock (on MPS, which works behind the host's back, the parts are then
when they were asked for).
"""

from __future__ import annotations

import time
from typing import Any

import torch

from danlu.train import memory

# fields of metrics.jsonl that are measured: all others of a resumed run equal those of an uninterrupted one
MEASURED = frozenset(
    {
        *("forward_seconds", "backward_seconds", "optimizer_seconds", "rollout_seconds", "update_seconds"),
        *("reward_seconds", "rollout_tokens_per_second", "update_tokens_per_second", "tokens_per_second"),
        *("memory_bytes", "peak_memory_bytes"),
    }
)


class Parts:
    """Seconds of the parts of steps: `start` one, then name each part when it ends."""

    def __init__(self, place: torch.device) -> None:
        self._cuda = place.type == "cuda"
        self._at: Any = None
        self._open: list[tuple[str, Any, Any]] = []  # part, from, to

    def start(self) -> None:
        self._at = self._now()

    def ended(self, part: str) -> None:
        """What passed since the mark before belongs to `part`."""
        before, self._at = self._at, self._now()
        self._open.append((part, before, self._at))

    def seconds(self) -> dict[str, float]:
        """Part -> seconds since the last call; what the device has not done yet is told by the next one."""
        found: dict[str, float] = {}
        later = []
        for part, before, at in self._open:
            if self._cuda and not at.query():
                later.append((part, before, at))
                continue
            passed = before.elapsed_time(at) / 1000 if self._cuda else at - before
            found[part] = found.get(part, 0.0) + passed
        self._open = later
        return found

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Clock:
    """Seconds since the last look."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        self._at, passed = now, now - self._at
        return passed


def memory_fields() -> dict[str, int]:
    return {"memory_bytes": memory.held(), "peak_memory_bytes": memory.peak()}
