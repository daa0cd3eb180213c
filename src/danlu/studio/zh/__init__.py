"""Chinese texts by their English ones; a module for each page."""

from danlu.studio.zh import chat, data, export, findings, recipe, run, runs, shell, start, verdict

CHINESE: dict[str, str] = {
    **shell.TEXTS,
    **runs.TEXTS,
    **start.TEXTS,
    **recipe.TEXTS,
    **run.TEXTS,
    **chat.TEXTS,
    **data.TEXTS,
    **findings.TEXTS,
    **verdict.TEXTS,
    **export.TEXTS,
}
