"""What a rehearsal writes down: stages with their seconds and findings, and what could not be rehearsed.

A stage that fails ends in a finding, not in an error: the next one is tried, so that one rehearsal names all that
would have failed. Only an interruption ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from danlu import display
from danlu.errors import DanluError, Stopped

Level = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a rehearsal found; `when` is when the real run would meet it, `do` how to help it."""

    level: Level
    when: str
    what: str
    do: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    ok: bool
    seconds: float
    findings: tuple[Finding, ...]


@dataclass(slots=True)
class Page:
    """Where the stage that runs writes its findings."""

    findings: list[Finding] = field(default_factory=list)

    def error(self, when: str, what: str, do: str = "") -> None:
        self.findings.append(Finding("error", when, what, do))

    def warning(self, when: str, what: str, do: str = "") -> None:
        self.findings.append(Finding("warning", when, what, do))

    def info(self, when: str, what: str, do: str = "") -> None:
        self.findings.append(Finding("info", when, what, do))

    def failed(self, when: str, error: BaseException) -> None:
        """An exception as a finding at error level."""
        if isinstance(error, DanluError):
            self.error(when, error.message, error.hint)
        elif isinstance(error, OSError) and error.strerror:
            named = f"{error.filename}: " if error.filename else ""
            self.error(when, f"cannot write or read a file: {named}{error.strerror}", "is there space, and permission?")
        else:
            self.error(when, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "run it with -v")


class Book:
    """The stages of one rehearsal so far. `total`: how many there will be, for the progress bar."""

    def __init__(self, progress: display.Task) -> None:
        self.stages: list[Stage] = []
        self.not_rehearsed: list[str] = []
        self._progress = progress

    def stage(
        self, name: str, when: str, act: Callable[[Page], Any], hear: Callable[[str], bool] = lambda _: True
    ) -> Any:
        """What `act` returns, or None where it failed; `when` is when the real run would have.

        Warnings of the block that `hear` lets through are findings. Stopped and Ctrl-C end the rehearsal.
        """
        page, began, result = Page(), time.monotonic(), None
        try:
            with display.overheard() as warnings:
                result = act(page)
        except Stopped:
            raise
        except Exception as error:  # whatever a stage dies of is what the rehearsal is for
            page.failed(when, error)
        for text in filter(hear, dict.fromkeys(warnings)):
            page.warning(when, text)
        ok = not any(finding.level == "error" for finding in page.findings)
        self.stages.append(Stage(name, ok, round(time.monotonic() - began, 1), tuple(page.findings)))
        self._progress.advance(1, stage=name)
        return result

    def skip(self, what: str) -> None:
        """Say that something could not be rehearsed, once."""
        if what not in self.not_rehearsed:
            self.not_rehearsed.append(what)

    def to_dict(self) -> dict[str, Any]:
        """{"ok", "stages", "not_rehearsed"} of the contract."""
        return {
            "ok": all(stage.ok for stage in self.stages),
            "stages": [
                {"name": s.name, "ok": s.ok, "seconds": s.seconds, "findings": [asdict(f) for f in s.findings]}
                for s in self.stages
            ],
            "not_rehearsed": self.not_rehearsed,
        }


# ---- out of reach, or not there

_AWAY = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "IncompleteSnapshotError"}
_AWAY |= {"ConnectionError", "TransportError", "Timeout"}


def out_of_reach(error: BaseException) -> bool:
    """Whether an error means that a hub could not be asked from here: it says nothing about what was wanted.

    Told by the names of the classes behind it, because the hubs' clients share none (and may be absent).
    """
    seen: BaseException | None = error
    while seen is not None:
        if _AWAY & {kind.__name__ for kind in type(seen).__mro__}:
            return True
        seen = seen.__cause__ or seen.__context__
    return False
