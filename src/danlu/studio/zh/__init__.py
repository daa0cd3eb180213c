"""Chinese texts by their English ones; a module for each page."""

from danlu.studio.zh import data, shell, verdict

CHINESE: dict[str, str] = {**shell.TEXTS, **data.TEXTS, **verdict.TEXTS}
