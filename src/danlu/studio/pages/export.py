"""Export: the files with what they cost and keep, their checks, the Modelfile, and into Ollama."""

from __future__ import annotations

from typing import Any

from nicegui import run as background
from nicegui import ui

from danlu.data.page import visible
from danlu.errors import DanluError
from danlu.studio import export_view as view
from danlu.studio import jobs, shell
from danlu.studio.place import place
from danlu.studio.shell import address, element
from danlu.studio.words import t

EVERY = 1.0  # seconds between two looks at an export that is at work
SUITES = ("clinic", "quick")
VERDICTS = {"no difference shown": "no difference shown", "better": "better", "worse": "worse"}
STATES = {
    "done": "done",
    "started": "at work",
    "failed": "failed",
    "stopped": "stopped",
    "died": "its process is gone",
}


@shell.page("/export", "Export")
def export(run: str = "") -> None:
    shell.style("reading.css")
    known = view.exports(place().root)
    with shell.heading(t("Export"), t("A file that Ollama and llama.cpp run, checked against the model it came from.")):
        ui.button(t("Export a run"), icon="add", on_click=_dialog).props("unelevated no-caps")
    if run and run not in known and jobs.job_of(place(), run):
        known = [run, *known]  # it has been started and has no directory yet
    if not known:
        shell.empty(
            t("Nothing has been exported yet."),
            t("Choose a trained run: it is merged, written as GGUF, and checked.")
            if view.sources(place().root)
            else t("Train a run first: start one on the page Runs."),
            "ios_share",
        )
        return
    chosen = run if run in known else known[0]
    with element("div", "pick"):
        names = {name: visible(name) for name in known}
        picked = ui.select(names, value=chosen, label=t("Export")).props("outlined dense")
        picked.on_value_change(lambda: ui.navigate.to(address("/export", run=str(picked.value))))
    below = element("div", "stack").style("gap: 20px")
    seen: dict[str, Any] = {}

    def look() -> None:
        """Build the page again when the state of the export changed; while it is at work, its log."""
        try:
            found: view.Exported | None = view.exported(place().root, chosen)
        except DanluError as error:
            found = None
            if not jobs.job_of(place(), chosen):
                below.clear()
                with below:
                    shell.problem(error)
                timer.cancel()
                return
        job = jobs.job_of(place(), chosen)
        alive = bool(job and job.alive())
        state = (found.status if found else "started", alive, found.suite if found else "")
        if seen.get("state") != state:
            seen["state"] = state
            below.clear()
            with below:
                seen["log"] = _shown(found, job, alive)
        if alive and job and seen.get("log"):
            seen["log"].text(visible(jobs.log_tail(place(), job))[-4000:])
        if not alive and (found is None or found.status != "started"):
            timer.cancel()

    timer = ui.timer(EVERY, look, immediate=False)
    look()


def _shown(found: view.Exported | None, job: jobs.Job | None, alive: bool) -> Any:
    """The content of the page; the element that shows the log of what is at work, if something is."""
    log = None
    if found is None or found.status == "started" or alive:
        with element("section", "card stack"):
            shell.waiting(t("At work. The page follows; it may be closed."))
            log = element("pre", "code")
    if found is None:
        if job and not alive:
            what, hint = jobs.failure(jobs.log_tail(place(), job)) or (t("It ended without a result."), "")
            shell.problem(DanluError(what, hint))
        return log
    if found.error or found.rejected:
        shell.problem(DanluError(found.error or t("A check failed: nothing was delivered.")))
    ended = jobs.log_tail(place(), job) if job and not alive and job.command[:1] in (["verify"], ["export"]) else ""
    failure = jobs.failure(ended)
    if failure and found.status == "done":
        shell.problem(DanluError(*failure))
    _head(found)
    if found.files:
        _files(found, alive)
    with element("div", "columns"):
        if found.checks:
            _checks(found)
        if found.modelfile:
            _modelfile(found)
    if found.status == "done" and found.modelfile:
        _ollama(found, alive, view.made(ended))
    return log


def _head(found: view.Exported) -> None:
    with element("section", "card row-line between"):
        with element("div", "figures"):
            right = sum(check.ok for check in found.checks)
            count = len([file for file in found.files if file.name])
            for value, label in (
                (t("{right} of {all}", right=right, all=len(found.checks)) if found.checks else "–", t("checks hold")),
                (str(count), t("file") if count == 1 else t("files")),
                (found.source or "–", t("made from")),
            ):
                with element("div", "figure"):
                    element("div", "value").text(value)
                    element("div", "label").text(label)
        element("span", f"tag {found.status}").text(t(STATES.get(found.status, found.status)))


def _files(found: view.Exported, alive: bool) -> None:
    with element("section", "card stack"):
        with element("div", "row-line between"):
            element("h2").text(t("Files"))
            if found.status == "done" and not alive:
                with ui.button(t("Measure what they keep"), icon="speed").props("outline no-caps"), ui.menu():
                    for suite in SUITES:
                        ui.menu_item(
                            t("on the suite {name}", name=suite), lambda suite=suite: _measure(found.name, suite)
                        )
        heads = [t(head) for head in ("File", "Type", "Size")]
        cells = [[file.name or t("the model itself"), file.quant, file.size] for file in found.files]
        if found.suite:
            heads += [t(head) for head in ("Tokens a second", "Right", "95 % interval", "Against the model", "")]
            cells = [
                [
                    *row,
                    file.speed,
                    file.accuracy,
                    file.interval,
                    file.change,
                    t(VERDICTS.get(file.verdict, file.verdict)) if file.verdict else "",
                ]
                for row, file in zip(cells, found.files, strict=True)
            ]
        shell.grid(heads, cells, frozenset(range(2, 7)))
        if found.suite:
            told = t("{count} questions of {name}; paired with the model that the files were made from.")
            element("p", "quiet small").text(told.format(count=f"{found.questions:,}", name=found.suite))


def _checks(found: view.Exported) -> None:
    with element("section", "card stack tight"):
        element("h2").text(t("Checks"))
        files = list(dict.fromkeys(check.file for check in found.checks))
        for file in files:
            if file and len(files) > 1:
                element("h3", "mono").text(file)
            for check in (check for check in found.checks if check.file == file):
                with element("div", "check-line"):
                    icon = ui.icon("check_circle" if check.ok else "cancel").classes("good" if check.ok else "bad")
                    icon.props["aria-label"] = t("holds") if check.ok else t("fails")
                    element("span").text(t(check.name))
                    limit = f"  ≤ {check.limit}" if _is_number(check.value) and check.limit != "0" else ""
                    if check.name == "greedy agreement":
                        limit = limit.replace("≤", "≥")
                    element("span", "quiet number").text(f"{check.value}{limit}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _modelfile(found: view.Exported) -> None:
    with element("section", "card stack"):
        with element("div", "row-line between"):
            element("h2").text("Modelfile")
            _copy(found.modelfile, t("Copy the Modelfile"))
        element("pre", "code").props("tabindex=0").text(found.modelfile)


def _copy(text: str, label: str) -> None:
    def copied() -> None:
        ui.clipboard.write(text)
        shell.say(t("Copied."))

    ui.button(t("Copy"), icon="content_copy", on_click=copied).props("flat dense no-caps").props["aria-label"] = label


# ---- Ollama and new work


def _ollama(found: view.Exported, alive: bool, made: str) -> None:
    with element("section", "card stack"):
        element("h2").text("Ollama")
        if made:
            with element("p", "row-line").props("role=status"):
                element("span", "tag done").text(t("created"))
                element("span").text(t("{name} is in Ollama.", name=visible(made)))
        told = element("p", "quiet").text(t("Looking for an Ollama on this machine …"))
        with element("div", "row-line"):
            for line in found.commands:
                with element("div", "row-line"):
                    element("code", "mono").text(visible(line))
                    _copy(line, t("Copy this command"))
        button = ui.button(t("Create in Ollama"), icon="rocket_launch").props("unelevated no-caps")
        button.on_click(lambda: _create(found.name))
        button.set_visibility(False)

    async def look() -> None:
        version = await background.io_bound(view.ollama)
        if version:
            told.text(t("Ollama {version} answers here.", version=visible(version)))
            button.set_visibility(not alive)
        else:
            told.text(t("No Ollama answers here. Where one runs, these two commands make the model and talk to it:"))

    ui.timer(0.1, look, once=True)


def _create(name: str) -> None:
    _begin(name, view.ollama_command(place().root, name))


def _measure(name: str, suite: str) -> None:
    _begin(name, view.verify_command(place().root, name, suite))


def _begin(name: str, command: list[str]) -> None:
    try:
        jobs.start(place(), name, command, [name])
    except DanluError as error:
        shell.tell(error)
        return
    ui.navigate.to(address("/export", run=name))


def _dialog() -> None:
    found = view.sources(place().root)
    if not found:
        shell.say(t("There is no finished sft or grpo run to export."), "warning")
        return
    with ui.dialog(value=True) as dialog, element("div", "card stack dialog"):
        element("h2").text(t("Export a run"))
        source = ui.select({name: visible(name) for name in found}, value=found[0], label=t("Run"))
        source.props("outlined dense")
        types = ui.select(view.quants(), value=["q8_0"], multiple=True, label=t("Types")).props(
            "outlined dense use-chips"
        )
        name = ui.input(t("Name"), value=view.free_name(place().root, found[0])).props("outlined dense")
        source.on_value_change(lambda: name.set_value(view.free_name(place().root, str(source.value))))

        def start() -> None:
            try:
                chosen = (name.value or "").strip()
                command = view.export_command(place().root, str(source.value), list(types.value or []), chosen)
            except DanluError as error:
                shell.tell(error)
                return
            _begin(chosen, command)

        with element("div", "actions"):
            ui.button(t("Export"), on_click=start).props("unelevated no-caps")
            ui.button(t("Cancel"), on_click=dialog.close).props("flat no-caps")
