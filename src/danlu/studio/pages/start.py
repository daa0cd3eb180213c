"""Start a run: a recipe, what to change of it, what it takes, and a rehearsal before hours are spent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

from nicegui import events, ui

from danlu import recipe as recipes
from danlu.errors import DanluError
from danlu.studio import ask, files, form, jobs, shell
from danlu.studio.form import Field
from danlu.studio.overview import overviews
from danlu.studio.pages import outlook
from danlu.studio.place import place
from danlu.studio.shell import address, element
from danlu.studio.words import t

SIMPLE = ("model.id", "data.train", "grpo.data", "sft.steps", "sft.epochs", "grpo.steps", "stages", "description")
KEEP = "="  # of a select: leave what the recipe says
PATIENCE = 1.2  # seconds without a change before a plan is made


class Draft:
    """What was filled in so far. `resolved`: the recipe as it is; `filled`: keys that were touched."""

    def __init__(self, name: str) -> None:
        self.recipe, self.start = name, None
        self.resolved: dict[str, Any] = recipes.load(name).resolved()
        self.filled: dict[str, Any] = {}

    def value(self, key: str) -> Any:
        return self.filled.get(key, form.value_of(self.resolved, key))

    def changes(self) -> list[str]:
        found = form.overrides(self.resolved, self.filled)
        jobs.refuse_unnamed(place(), list(self.filled.values()))
        if self.start:
            jobs.refuse_unnamed(place(), self.start)
        return found

    def sets(self) -> list[str]:
        """Recipe and changes as arguments of a command."""
        return [self.recipe, *(part for change in self.changes() for part in ("--set", change))]


@shell.page("/start", "Start a run", nav="/")
def start(recipe: str = "demo") -> None:
    known = files.recipes(place())
    draft = Draft(known.get(recipe, "demo"))
    shell.heading(t("Start a run"), t("It runs by itself: the browser and the studio may be closed."))
    with element("div", "main-and-side"):
        with element("div", "stack"):
            name = _what(draft, known, recipe if recipe in known else "demo")
            changed: list[Callable[[], None]] = []

            def touch(key: str, value: Any) -> None:
                draft.filled[key] = value
                for told in changed:
                    told()

            _model(draft, touch)
            _data(draft, touch)
            _budget(draft, touch)
            _advanced(draft, touch)
        with element("aside", "stack sticky"):
            changed.append(outlook.plan_card(draft.sets, lambda: draft.start, PATIENCE))
            outlook.rehearsal_card(draft.sets)
            button = ui.button(t("Start"), icon="local_fire_department").props("unelevated no-caps size=lg")
            button.classes("full")
            button.on_click(lambda: _begin(draft, name.value or "", button))


def _card(title: str, note: str = "") -> Any:
    card = element("section", "card stack")
    with card:
        element("h2").text(title)
        if note:
            element("p", "quiet small").text(note)
    return card


def _what(draft: Draft, known: dict[str, str], chosen: str) -> ui.input:
    with _card(t("Recipe")):
        choice = ui.select(list(known), value=chosen, label=t("Recipe")).props("outlined dense options-dense")
        choice.on_value_change(lambda e: ui.navigate.to(address("/start", recipe=e.value)))
        if draft.resolved["description"]:
            element("p", "quiet small").text(t(draft.resolved["description"]))
        name = ui.input(t("Name of the run"), value=_free_name(draft.resolved["name"])).props("outlined dense")
        name.props["hint"] = t("Its stages are called NAME-sft, NAME-grpo and so on.")
        with element("div", "row-line"):
            for stage in ("data", "sft", "grpo", "eval", "export"):
                box = ui.checkbox(stage, value=stage in draft.resolved["stages"]).props("dense")
                box.on_value_change(lambda e, stage=stage: _stages(draft, stage, e.value))
    return name


def _stages(draft: Draft, stage: str, on: bool) -> None:
    now = [one for one in draft.value("stages") if one != stage] + ([stage] if on else [])
    draft.filled["stages"] = [one for one in jobs.STAGES if one in now]


def _free_name(base: str) -> str:
    taken = {one.name for one in overviews(place().root)}
    names = [base, *(f"{base}-{n}" for n in range(2, 1000))]
    return next(name for name in names if not any(one == name or one.startswith(f"{name}-") for one in taken))


def _model(draft: Draft, touch: Callable[[str, Any], None]) -> None:
    trained = [one for one in overviews(place().root) if one.stage in ("sft", "grpo") and one.status == "done"]
    with _card(t("Model")):
        field = ui.input(t("Base model"), value=draft.value("model.id")).props("outlined dense debounce=400")
        field.props["hint"] = t("A hub id, modelscope:ID, tiny, or a folder that was named when the studio started.")
        field.on_value_change(lambda e: touch("model.id", e.value or ""))
        if trained:
            options = {"": t("the base model"), **{one.name: one.name for one in trained}}
            choice = ui.select(options, value="", label=t("Start from")).props("outlined dense options-dense")

            def begin_from(e: events.ValueChangeEventArguments) -> None:
                draft.start = e.value or None
                touch("model.id", draft.value("model.id"))

            choice.on_value_change(begin_from)


def _data(draft: Draft, touch: Callable[[str, Any], None]) -> None:
    with _card(t("Data"), t("Other files: upload one, or end the studio and name them: danlu studio FILE.")):
        selects = [_source(draft, touch, "data.train", t("Training rows"))]
        if draft.value("grpo.data"):
            selects.append(_source(draft, touch, "grpo.data", t("Questions for GRPO")))

        async def keep(e: events.UploadEventArguments) -> None:
            path = files.upload_path(place(), e.file.name)
            await e.file.save(path)
            for select in selects:
                select.set_options(dict(select.options) | {str(path): path.name})
            selects[0].set_value(str(path))
            shell.say(t("{name} is uploaded.", name=path.name))

        upload = ui.upload(on_upload=keep, auto_upload=True, max_files=1, max_file_size=2 * 10**9)
        upload.classes("hidden-upload")
        upload.on("rejected", lambda: shell.say(t("This file is too large."), "negative"))
        pick = ui.button(t("Upload a file"), icon="upload_file").props("outline no-caps")
        pick.on_click(lambda: upload.run_method("pickFiles"))


def _source(draft: Draft, touch: Callable[[str, Any], None], key: str, label: str) -> ui.select:
    own = draft.value(key) or []
    told = ", ".join(str(one["path"]) for one in own) or t("nothing")
    options = {KEEP: t("as in the recipe: {what}", what=told)}
    options |= {path: path.rpartition("/")[2] for path in files.data_files(place())}
    select = ui.select(options, value=KEEP, label=label, with_input=True, new_value_mode="add-unique")
    select.props("outlined dense options-dense")
    select.props["hint"] = t("Or type a hub id, modelscope:ID or world:SPLIT.")

    def choose(e: events.ValueChangeEventArguments) -> None:
        touch(key, own if e.value in (KEEP, None, "") else [{"path": e.value}])

    select.on_value_change(choose)
    return select


def _budget(draft: Draft, touch: Callable[[str, Any], None]) -> None:
    known = {field.key: field for field in form.fields()}
    with _card(t("Budget")), element("div", "columns narrow"):
        for key, label in (
            ("sft.epochs", t("SFT: epochs")),
            ("sft.steps", t("SFT: steps instead of epochs")),
            ("grpo.steps", t("GRPO: steps")),
        ):
            if key.partition(".")[0] in draft.resolved["stages"]:
                _widget(known[key], draft, touch, label)


def _advanced(draft: Draft, touch: Callable[[str, Any], None]) -> None:
    """Every other key, a section at a time, built when it is opened."""
    every = [field for field in form.fields() if field.key not in SIMPLE]
    with element("section", "card stack tight"):
        element("h2").text(t("Advanced"))
        element("p", "quiet small").text(t("Every key of a recipe. Lists and mappings are written as YAML."))
        groups = {section: [f for f in every if f.key.startswith(f"{section}.")] for section in form.SECTIONS}
        groups = {"recipe": [f for f in every if "." not in f.key], **groups}
        for section, members in groups.items():
            with ui.expansion(section, caption=t("{n} keys", n=len(members))).props("dense") as fold:
                inside = element("div", "columns narrow")
            fold.on_value_change(
                lambda e, inside=inside, members=members: _fill(inside, members, draft, touch) if e.value else None
            )


def _fill(inside: Any, members: list[Field], draft: Draft, touch: Callable[[str, Any], None]) -> None:
    if inside.default_slot.children:
        return
    with inside:
        for field in members:
            _widget(field, draft, touch, field.key.partition(".")[2] or field.key)


def _widget(field: Field, draft: Draft, touch: Callable[[str, Any], None], label: str) -> None:
    """The control of one key; what cannot be read is told beneath it and changes nothing."""
    value = form.written(field, draft.value(field.key))
    control: Any
    if field.kind == "switch":
        control = ui.checkbox(label, value=bool(value)).props("dense")
    elif field.kind == "choice":
        options = {one: str(one).lower() if isinstance(one, bool) else str(one) for one in field.choices}
        if field.empty:
            options = {None: "–", **options}
        control = ui.select(options, value=value, label=label).props("outlined dense options-dense")
    elif field.kind in ("whole", "real"):
        control = ui.number(
            label, value=value, min=field.least, max=field.most, step=1 if field.kind == "whole" else None
        )
        control.props("outlined dense debounce=400")
    else:
        control = ui.input(label, value=value).props("outlined dense debounce=400")
    if field.description:
        control.props["hint" if field.kind != "switch" else "title"] = t(field.description)

    def changed(e: events.ValueChangeEventArguments) -> None:
        try:
            found = form.read(field, e.value)
        except (DanluError, ValueError) as error:
            control.props["error"], control.props["error-message"] = True, str(error).splitlines()[0]
            return
        control.props["error"] = False
        touch(field.key, found)

    control.on_value_change(changed)


# ---- starting


async def _begin(draft: Draft, name: str, button: ui.button) -> None:
    button.props("loading")
    try:
        if not re.fullmatch(r"[^\s/\\.][^/\\\0]{0,99}", name):
            raise DanluError(t("This name cannot be a run's."), t("A name is one directory, without slashes."))
        command = form.arguments(name, draft.recipe, draft.changes(), draft.start)
        planned = await ask.ask(place(), *command, "--dry-run")
        names = [step["run"] for step in planned["plan"]]
        used = next((one for one in names if (place().root / one).exists()), None)
        if used:
            raise DanluError(t("{name} is already used.", name=used), t("Choose another name."))
        jobs.start(place(), name, command, names)
        await asyncio.sleep(0.2)
        ui.navigate.to(address("/run", names[0]))
    except DanluError as error:
        shell.tell(error)
    finally:
        button.props(remove="loading")
