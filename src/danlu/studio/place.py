"""Where this studio looks: one runs folder, the files that were named when it started, and files of its own.

The studio's own files lie in `.studio` of the runs folder: its lock, the jobs that it started with their logs, and
files that were uploaded. `list_runs` does not see that folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

OWN = ".studio"


@dataclass(frozen=True, slots=True)
class Place:
    """`root`: the runs folder. `named`: files and folders that may be read besides, as named by the user."""

    root: Path
    named: tuple[Path, ...] = ()

    @property
    def own(self) -> Path:
        return self.root / OWN


_place: Place | None = None


def settle(place: Place) -> None:
    """Make it the place of this process; once, when the studio starts."""
    global _place
    _place = place


def place() -> Place:
    if _place is None:
        raise RuntimeError("the studio has not started")
    return _place
