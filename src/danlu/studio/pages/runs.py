"""Runs: what is in the folder."""

from __future__ import annotations

from danlu.studio import shell
from danlu.studio.words import t


@shell.page("/", "Runs")
def runs() -> None:
    shell.heading(t("Runs"))
