"""Run: one run while it happens and after: its number, what went wrong, and everything beneath in folds."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from nicegui import ui

from danlu import run_facts
from danlu.errors import DanluError
from danlu.run import Run
from danlu.studio import jobs, overview, shell, troubles
from danlu.studio.curves import Metrics
from danlu.studio.overview import Overview, told
from danlu.studio.pages import plots, written
from danlu.studio.pages.runs import STATUS, graph
from danlu.studio.place import place
from danlu.studio.safety import inside, run_path
from danlu.studio.shell import address, element, link
from danlu.studio.words import duration, t

EVERY = 1.0  # seconds between two looks while it runs
AT_REST = 5.0
ENDING = 15.0  # seconds that the process of a stopped run may take to end


@shell.page("/run/{name}", "Run", nav="/")
def run(name: str) -> None:
    one = overview.overview(place().root, name)
    if one is None:
        _not_yet(name)
        return
    View(one, [other for other in ui.context.client.request.query_params.get("with", "").split(",") if other])


def _not_yet(name: str) -> None:
    """A run that a job is about to make, or none at all."""
    run_path(place().root, name)
    job = jobs.job_of(place(), name)
    if job is None:
        row = shell.empty(t("There is no run of this name."), name, "search_off")
        with row, link("/", "text-link") as back:
            back.text(t("Back to the runs"))
        return
    shell.heading(name, t("is about to begin"))
    _strip(job, name)
    alive = job.alive()
    log = jobs.log_tail(place(), job)
    if not alive:
        what, hint = jobs.failure(log) or (t("The command has ended before this stage."), "")
        shell.problem(DanluError(what, hint))
    output = element("pre", "code").text(log)

    def look() -> None:
        if overview.overview(place().root, name) is not None or (alive and not job.alive()):
            ui.navigate.reload()
        output.text(jobs.log_tail(place(), job))

    if alive:
        ui.timer(EVERY, look)


def _strip(job: jobs.Job, own: str) -> None:
    """The stages that one command makes, in order, and how far each is."""
    if len(job.runs) < 2:
        return
    with element("ol", "strip").props(f'aria-label="{t("Stages of this command")}"'):
        for name in job.runs:
            one = overview.overview(place().root, name)
            state = one.status if one else "waiting"
            item = element("li", f"{state} {'own' if name == own else ''}")
            with item, link(address("/run", name)) as entry:
                if name == own:
                    entry.props("aria-current=step")
                element("span", "dot")
                element("span").text(one.stage if one else name.removeprefix(f"{job.name}-"))
                words = t(STATUS.get(state, state)) if one else t("waiting")
                element("span", "quiet small").text(told(one.key, one.value) if one and one.key else words)


class View:
    """The page of one run; `look` brings it up to date. `overlay`: names of runs that are drawn with it."""

    def __init__(self, one: Overview, overlay: list[str]) -> None:
        self.one, self.run = one, Run(run_path(place().root, one.name))
        self.metrics = Metrics(inside(self.run.path, "metrics.jsonl"))
        self.metrics.refresh()
        self.info = self._info()
        self.head = element("div", "stack")
        self.body = element("div", "stack")
        self._build_head()
        self.plots: plots.Plots | None = None
        self.texts: written.Texts | None = None
        with self.body:
            self._build_tabs(overlay)
        self._at_rest = 0.0
        ui.timer(EVERY, self.look)

    def _info(self) -> dict[str, Any]:
        try:
            inside(self.run.path, "run.json")
            found = self.run.info()
        except DanluError:
            return {}
        return found if isinstance(found, dict) else {}

    # ---- head

    def _build_head(self) -> None:
        self.head.clear()
        with self.head:
            self._build_title()
            job = jobs.job_of(place(), self.one.name)
            if job:
                _strip(job, self.one.name)
            self._build_progress()
            self._build_figures()
            self._build_troubles()

    def _build_title(self) -> None:
        one = self.one
        with element("div", "head"):
            with element("div", "titles"):
                with element("div", "row-line"):
                    element("h1").text(one.name)
                    element("span", f"tag {one.status}").text(t(STATUS.get(one.status, one.status)))
                age = t("{time} ago", time=duration(time.time() - one.created)) if one.created else ""
                facts = [one.stage, one.model, one.data, age, duration(one.seconds)]
                element("p", "quiet").text(" · ".join(fact for fact in facts if fact))
            with element("div", "actions"):
                if one.live:
                    ui.button(t("Stop"), icon="stop", on_click=self._ask_stop).props("outline no-caps")
                if one.status in ("stopped", "failed", "died"):
                    ui.button(t("Go on"), icon="play_arrow", on_click=self._resume).props("unelevated no-caps")
                if one.stage == "eval":
                    _leads(t("Verdict"), "balance", address("/verdict", tuned=one.name))
                if one.stage == "export":
                    _leads(t("Export"), "ios_share", address("/export", run=one.name))
                if one.status == "done" and one.stage in ("sft", "grpo", "export"):
                    _leads(t("Chat"), "chat_bubble_outline", address("/chat", b=one.name))

    def _build_progress(self) -> None:
        one = self.one
        if not one.live:
            return
        if not one.step or not one.steps:
            element("p", "quiet").text(t("It is getting ready: reading rows, loading the model."))
            return
        left = self.metrics.seconds_left(one.steps)
        share = min(100, round(100 * one.step / one.steps))
        words = t("step {step} of {steps}", step=f"{one.step:,}", steps=f"{one.steps:,}")
        with element("div", "stack tight").props("role=status"):
            with element("div", "meter"):
                element("span").style(f"width:{share}%")
            with element("div", "row-line between small"):
                element("span", "number").text(words)
                if left is not None:
                    element("span", "quiet number").text(t("about {time} left", time=duration(left)))

    def _build_figures(self) -> None:
        one = self.one
        figures = []
        if one.key:
            figures.append((told(one.key, one.value), t(overview.LABELS[one.key])))
        results = self.info.get("results") or {}
        if one.stage == "eval":
            for name, found in list((results.get("benchmarks") or {}).items())[:4]:
                if found.get("ci"):
                    low, high = (told("accuracy", value) for value in found["ci"])
                    figures.append((f"{low} – {high}", t("95 % interval, {name}, n = {n}", name=name, n=found["n"])))
        for key, label in (("reward", "reward"), ("eval_loss", "eval loss"), ("loss", "loss")):
            newest = self.metrics.last(key)
            wanted = one.stage == "sft" or (one.stage == "grpo" and key == "reward")  # a loss of GRPO says nothing
            if newest is not None and overview.LABELS.get(one.key) != label and wanted:
                figures.append((told(key, newest), t(label)))
        if results.get("best_step"):
            figures.append((f"{results['best_step']:,}", t("best step")))
        if self.metrics.last("truncated") is not None:
            figures.append((told("accuracy", self.metrics.last("truncated")), t("cut by the token limit")))
        if figures:
            with element("section", "card"), element("div", "figures"):
                for value, label in figures:
                    with element("div", "figure"):
                        element("div", "value").text(value)
                        element("div", "label").text(label)

    def _build_troubles(self) -> None:
        best = self.metrics.best("eval_loss", largest=False)
        for one in troubles.troubles(self.one.status, self.info, best, self.metrics.last("eval_loss")):
            box = "problem" if one.level == "error" else "notice"
            with element("section", box).props("role=alert" if one.level == "error" else "role=note"):
                ui.icon("error_outline" if one.level == "error" else "warning_amber").props("aria-hidden=true")
                with element("div"):
                    since = f" {t('Since step {step}.', step=one.step)}" if one.step else ""
                    element("p", "what").text(t(one.what, **one.values) + since)
                    if one.do:
                        element("p", "quiet").text(t(one.do))

    # ---- body

    def _build_tabs(self, overlay: list[str]) -> None:
        one = self.one
        trains = one.stage in ("sft", "grpo")
        samples = one.stage in ("grpo", "eval")
        tabs = [("curves", t("Curves"), "show_chart")] if trains else []
        tabs += [("texts", t("Rollouts") if one.stage == "grpo" else t("Answers"), "notes")] if samples else []
        tabs += [("checks", t("Checks"), "fact_check")] if one.stage == "export" else []
        tabs += [
            ("recipe", t("Recipe"), "tune"),
            ("log", t("Log"), "terminal"),
            ("lineage", t("Lineage"), "account_tree"),
        ]
        with ui.tabs().props("dense no-caps align=left inline-label outside-arrows mobile-arrows") as bar:
            for name, label, icon in tabs:
                ui.tab(name, label, icon)
        with ui.tab_panels(bar, value=tabs[0][0]).props("keep-alive").classes("panels"):
            for name, _, _ in tabs:
                with ui.tab_panel(name):
                    self._build_tab(name, overlay)

    def _build_tab(self, name: str, overlay: list[str]) -> None:
        if name == "curves":
            self.plots = plots.Plots(self.one, self.metrics, overlay)
        elif name == "texts":
            self.texts = written.Texts(self.one.stage, inside(self.run.path, "samples.jsonl"))
        elif name == "checks":
            checks((self.info.get("results") or {}).get("checks") or [])
        elif name == "recipe":
            self._build_recipe()
        elif name == "log":
            self._build_log()
        else:
            graph(overview.overviews(place().root), self.one.name)

    def _build_recipe(self) -> None:
        own = overview.config_of(place().root, self.one.name)
        with element("div", "stack"):
            for parent in self.one.parents[:1]:
                other = overview.config_of(place().root, parent) if "/" not in parent else {}
                if other:
                    self._build_differences(parent, other, own)
            with element("section", "card stack"):
                element("h2").text(t("Resolved recipe"))
                facts = {
                    t("Seed"): self.info.get("seed"),
                    t("Data hash"): (self.info.get("results") or {}).get("data_hash"),
                }
                facts |= {name: version for name, version in (self.info.get("packages") or {}).items()}
                with element("details", "small"):
                    element("summary").text(t("Seed, versions, machine"))
                    with element("dl", "facts"):
                        for key, value in (facts | (self.info.get("hardware") or {})).items():
                            if value is not None:
                                element("dt").text(str(key))
                                element("dd").text(str(value))
                element("pre", "code").text(_yaml(own))

    def _build_differences(self, parent: str, other: dict[str, Any], own: dict[str, Any]) -> None:
        found = run_facts.differences({parent: other, self.one.name: own})
        with element("section", "card stack"):
            with element("h2").text(t("Against its parent")), link(address("/run", parent), "text-link") as name:
                name.text(f" {parent}")
            if not found:
                element("p", "quiet").text(t("The same recipe."))
                return
            with element("div", "scroll-x"), element("table", "plain-table"):
                with element("thead"), element("tr"):
                    for head in ("", parent, self.one.name):
                        element("th").text(head)
                with element("tbody"):
                    for key, values in found:
                        with element("tr"):
                            element("th", "mono").text(key)
                            for value in values.values():
                                element("td").text(overview.brief(value))

    def _build_log(self) -> None:
        job = jobs.job_of(place(), self.one.name)
        if job is None:
            shell.empty(t("No log here"), t("It was started in a terminal, which has its output."), "terminal")
            return
        with element("div", "stack"):
            self.warned = element("div", "stack tight")
            element("p", "quiet mono small").text("danlu " + " ".join(job.command))
            self.log = element("pre", "code tall").props(f'tabindex=0 aria-label="{t("Log")}"')
        self.job: jobs.Job | None = job
        self._refresh_log()

    def _refresh_log(self) -> None:
        job = getattr(self, "job", None)
        if job is None:
            return
        text = jobs.log_tail(place(), job)
        self.log.text(text)
        found = jobs.warnings(text)
        if len(found) != len(self.warned.default_slot.children):
            self.warned.clear()
            with self.warned:
                for one in found:
                    with element("div", "told small stopped"):
                        ui.icon("warning_amber").props("aria-hidden=true")
                        element("p").text(one)

    # ---- keeping up

    async def look(self) -> None:
        """Bring what changed up to date; a run at rest is looked at less often."""
        if not self.one.live and time.monotonic() - self._at_rest < AT_REST:
            return
        self._at_rest = time.monotonic()
        now = overview.overview(place().root, self.one.name)
        if now is None:
            return
        from nicegui import run as background

        grown = await background.io_bound(self.metrics.refresh)
        if self.head.is_deleted:  # the page was left meanwhile
            return
        if now.live or now.status != self.one.status or grown:
            self.one, self.info = now, self._info()
            self._build_head()
        if self.plots and (grown or self.plots.others_grew()):
            self.plots.draw()
        if self.texts:
            await self.texts.look()
        self._refresh_log()

    # ---- steering

    def _ask_stop(self) -> None:
        with ui.dialog() as dialog, element("div", "stack dialog"):
            element("h2").text(t("Stop {name}?", name=self.one.name))
            element("p", "quiet").text(
                t("It saves a checkpoint and ends; it can go on later. Stages after it do not begin.")
            )
            with element("div", "actions"):
                ui.button(t("Stop"), on_click=lambda: self._stop(dialog)).props("unelevated no-caps")
                ui.button(t("Let it run"), on_click=dialog.close).props("flat no-caps")
        dialog.open()

    def _stop(self, dialog: ui.dialog) -> None:
        dialog.close()
        jobs.stop(place(), self.one.name)
        shell.say(t("Asked to stop; it saves first."))

    async def _resume(self) -> None:
        name, command, runs = jobs.resume_command(place(), self.one.name)
        job = jobs.job_named(place(), name)
        until = time.monotonic() + ENDING
        while job and job.alive() and time.monotonic() < until:  # the run has ended, its process is about to
            await asyncio.sleep(0.1)
        jobs.start(place(), name, command, runs)
        shell.say(t("It goes on from its last checkpoint."))


def _leads(label: str, icon: str, target: str) -> None:
    """A button that leads to another page, where that page is."""
    from nicegui.client import Client

    if target.partition("?")[0] in Client.page_routes.values():
        ui.button(label, icon=icon, on_click=lambda: ui.navigate.to(target)).props("outline no-caps")


def checks(found: list[dict[str, Any]]) -> None:
    """The checks of an export: name, whether it holds, value and limit."""
    if not found:
        shell.empty(t("No checks yet"), t("They are made when the GGUF is written."), "fact_check")
        return
    with element("div", "card scroll-x"), element("table", "plain-table"):
        with element("thead"), element("tr"):
            for head in (t("Check"), "", t("Value"), t("Limit")):
                element("th").text(head)
        with element("tbody"):
            for one in found:
                with element("tr"):
                    element("td").text(t(str(one.get("name"))))
                    with element("td"):
                        mark = element("span", f"tag {'done' if one.get('ok') else 'failed'}")
                        mark.text(t("holds") if one.get("ok") else t("failed"))
                    element("td", "number").text(_short(one.get("value")))
                    element("td", "number quiet").text(_short(one.get("limit")))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else overview.brief(value)


def _yaml(config: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(config, allow_unicode=True, sort_keys=False, width=100)
