"""Chat: one question to two models, side by side, as they write."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from nicegui import events, ui

from danlu.errors import DanluError
from danlu.studio import overview, shell, talk
from danlu.studio.place import place
from danlu.studio.shell import element
from danlu.studio.talk import Answerer, Target
from danlu.studio.words import t

FLUSH = 0.12  # seconds between two looks at what was written
KINDS = {
    "base model": "base model",
    "adapter": "adapter",
    "model": "model",
    "GGUF": "GGUF",
    "merged model": "merged model",
    "endpoint": "endpoint",
}


@shell.page("/chat", "Chat")
def chat(a: str = "", b: str = "") -> None:
    shell.heading(t("Chat"), t("One question to two models, side by side."))
    known = talk.targets(place(), overview.overviews(place().root))
    Talk(known, a, b)


class Settings:
    """How answers are sampled."""

    def __init__(self, system: str) -> None:
        self.system, self.thinking = system, True
        self.temperature, self.top_p, self.max_tokens, self.seed = 0.6, 0.95, 1024, 0

    def sampling(self) -> dict[str, Any]:
        return {
            "temperature": float(self.temperature or 0),
            "top_p": float(self.top_p or 1),
            "max_tokens": max(1, int(self.max_tokens or 1)),
            "seed": int(self.seed or 0),
        }

    def messages(self, question: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system.strip()}] if self.system.strip() else []
        return [*system, {"role": "user", "content": question}]


class Side:
    """One of the two models: what was chosen, and its process."""

    def __init__(self, letter: str, known: list[Target], value: str) -> None:
        self.letter, self.known = letter, {one.label: one for one in known}
        self.answerer: Answerer | None = None
        options = {one.label: f"{one.label}  ({t(KINDS[one.kind])})" for one in known}
        if value and value not in options:
            options[value] = value
        with element("div", "stack tight"):
            self.choice = ui.select(
                options, value=value or None, label=t("Model {letter}", letter=letter), with_input=True,
                new_value_mode="add-unique",
            )  # fmt: skip
            self.choice.props("outlined dense options-dense clearable").classes("full")
            self.choice.props["hint"] = t("Or type the address of an endpoint: http://host:port/v1#model")
        self.choice.on_value_change(lambda _: self.close())

    async def ready(self) -> Answerer:
        """The process for what is chosen, loaded."""
        name = self.choice.value or ""
        target = self.known.get(name) or talk.typed(place(), name)
        if self.answerer is None or self.answerer.target != target:
            self.close()
            self.answerer = Answerer(place(), target)
        await self.answerer.start()
        return self.answerer

    def close(self) -> None:
        if self.answerer is not None:
            self.answerer.close()
            self.answerer = None


class Talk:
    """The page: two sides, the settings, and the questions asked so far, newest first."""

    def __init__(self, known: list[Target], a: str, b: str) -> None:
        bases = [one.label for one in known if one.kind == "base model"]
        tuned = [one.label for one in known if one.kind != "base model"]
        b = next((one.label for one in known if one.label == b or one.label.startswith(f"{b} ·")), b) if b else ""
        first, second = a or (bases or tuned or [""])[0], b or (tuned or bases or [""])[0]
        system = next((self._system(one) for one in known if one.label == second), "")
        self.settings = Settings(system)
        with element("section", "card stack"):
            with element("div", "side-by-side"):
                self.sides = [Side("A", known, first), Side("B", known, second)]
            self._build_settings()
            self.question = ui.textarea(placeholder=t("Ask a question …")).props(
                "outlined autogrow input-style=min-height:64px"
            )
            self.question.classes("full").props["aria-label"] = t("Question")
            self.question.on("keydown.ctrl.enter", self.ask)
            self.question.on("keydown.meta.enter", self.ask)
            with element("div", "row-line"):
                self.button = ui.button(t("Ask both"), icon="send", on_click=self.ask).props("unelevated no-caps")
                self.halt = ui.button(t("Stop"), icon="stop", on_click=self.stop).props("outline no-caps")
                self.halt.visible = False
                element("span", "quiet small").text(t("Ctrl + Enter asks"))
        self.turns = element("div", "stack")
        ui.context.client.on_delete(self.close)

    @staticmethod
    def _system(one: Target) -> str:
        from pathlib import Path

        config = overview.config_of(place().root, Path(one.config).parent.name) if one.config else {}
        return (config.get("data") or {}).get("system") or ""

    def _build_settings(self) -> None:
        own = self.settings
        with element("details", "small"):
            element("summary").text(t("Settings"))
            with element("div", "stack"):
                with element("div", "columns narrow"):
                    for name, label, least, most, step in (
                        ("temperature", t("temperature (0: greedy)"), 0, 5, 0.1),
                        ("top_p", "top-p", 0.01, 1, 0.05),
                        ("max_tokens", t("longest answer, tokens"), 1, 100000, 64),
                        ("seed", t("seed"), 0, None, 1),
                    ):
                        field = ui.number(label, value=getattr(own, name), min=least, max=most, step=step)
                        field.props("outlined dense").on_value_change(lambda e, name=name: setattr(own, name, e.value))
                switch = ui.switch(t("thinking"), value=own.thinking)
                switch.on_value_change(lambda e: setattr(own, "thinking", bool(e.value)))
                system = (
                    ui.textarea(t("system prompt"), value=own.system).props("outlined dense autogrow").classes("full")
                )
                system.on_value_change(lambda e: setattr(own, "system", e.value or ""))

    async def ask(self) -> None:
        question = (self.question.value or "").strip()
        if not question:
            raise DanluError(t("The question is empty."), t("Write one first."))
        self.button.disable()
        self.halt.visible = True
        messages = self.settings.messages(question)
        with self.turns:
            turn = element("article", "card stack")
            turn.move(target_index=0)
        with turn:
            element("h2", "text-block").text(question)
            with element("div", "side-by-side"):
                answers = [Answer(side) for side in self.sides]
            below = element("div", "row-line")
        try:
            await asyncio.gather(*(one.write(messages, self.settings) for one in answers))
        finally:
            self.button.enable()
            self.halt.visible = False
        with below:
            _keeping(question, messages, answers)

    def stop(self) -> None:
        for side in self.sides:
            if side.answerer is not None:
                side.answerer.stop()

    def close(self) -> None:
        for side in self.sides:
            side.close()


class Answer:
    """What one model writes to one question."""

    def __init__(self, side: Side) -> None:
        self.side, self.model = side, side.choice.value or ""
        self.reasoning = self.text = ""
        self.finished = False
        self.box = element("div", "stack tight answer")
        with self.box:
            with element("div", "row-line between"):
                element("h3").text(f"{side.letter} · {self.model}")
                self.state = element("span", "quiet small number").props("role=status")
            self.fold = element("details", "small").props("open")
            with self.fold:
                self.summary = element("summary")
                self.thought = element("div", "text-block fold")
            self.fold.visible = False
            self.said = element("div", "text-block").props("aria-live=polite")
            self.trouble = element("div")

    async def write(self, messages: list[dict[str, str]], settings: Settings) -> None:
        """Ask, and show what comes; what goes wrong is told in its own column."""
        with self.box:  # a task of its own does not know the page
            await self._write(messages, settings)

    async def _write(self, messages: list[dict[str, str]], settings: Settings) -> None:
        self.state.text(t("loading …"))
        flushing = asyncio.ensure_future(self._flush())
        try:
            answerer = await self.side.ready()
            self.state.text(t("writing …"))
            async for event in answerer.ask(messages, settings.sampling(), settings.thinking):
                if event.get("part") == "reasoning":
                    self.reasoning += event["text"]
                elif "part" in event:
                    self.text += event["text"]
                elif "done" in event:
                    self._done(event["done"])
        except DanluError as error:
            self.state.text("")
            with self.trouble:
                shell.problem(error)
        finally:
            flushing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await flushing
            self._show()

    async def _flush(self) -> None:
        with self.box:
            while True:
                await asyncio.sleep(FLUSH)
                self._show()

    def _show(self) -> None:
        if self.reasoning and self.thought._text != self.reasoning:
            self.fold.visible = True
            self.thought.text(self.reasoning)
            if not self.finished:
                self.summary.text(t("Reasoning, {n} characters", n=f"{len(self.reasoning):,}"))
        if self.text and not self.said._text:
            self.fold.props(remove="open")
        if self.said._text != self.text:
            self.said.text(self.text)

    def _done(self, done: dict[str, Any]) -> None:
        self.finished = True
        told = [t("{seconds} s", seconds=f"{done['seconds']:.1f}")]
        if done["tokens_per_second"]:
            told.append(t("{n} tokens a second", n=f"{done['tokens_per_second']:.0f}"))
        if done["cut"]:
            told.append(t("cut at the limit"))
        if done["stopped"]:
            told.append(t("stopped"))
        self.state.text(" · ".join(told))
        if self.reasoning:
            n = f"{done['reasoning_tokens']:,}"
            self.summary.text(t("Reasoning: {seconds} s, {n} tokens", seconds=f"{done['reasoning_seconds']:.1f}", n=n))
        if not self.text and not self.reasoning:
            self.said.text(t("(no answer)"))

    def whole(self) -> dict[str, str]:
        return {"model": self.model, "text": talk.whole(self.reasoning, self.text)}


def _keeping(question: str, messages: list[dict[str, str]], answers: list[Answer]) -> None:
    """Buttons that keep a pair as a preference, or the question as a test case."""
    a, b = answers

    def prefer(chosen: Answer, rejected: Answer) -> None:
        path = talk.keep(place(), "preferences", talk.preference(messages, chosen.whole(), rejected.whole()))
        shell.say(t("Kept in {path}", path=str(path)))

    if (a.text or a.reasoning) and (b.text or b.reasoning):
        better = ui.button(t("A is better"), icon="thumb_up", on_click=lambda: prefer(a, b))
        better.props("outline dense no-caps")
        better = ui.button(t("B is better"), icon="thumb_up", on_click=lambda: prefer(b, a))
        better.props("outline dense no-caps")
    ui.button(t("Keep as a test case"), icon="bookmark_add", on_click=lambda: _ask_target(question)).props(
        "flat dense no-caps"
    )


def _ask_target(question: str) -> None:
    with ui.dialog() as dialog, element("div", "stack dialog"):
        element("h2").text(t("Keep as a test case"))
        element("p", "quiet small").text(t("danlu eval --bench FILE asks it and compares with the right answer."))
        field = ui.input(t("Right answer")).props("outlined dense autofocus").classes("full")

        def keep(_: events.ClickEventArguments | None = None) -> None:
            path = talk.keep(place(), "tests", talk.test_case(question, field.value or ""))
            dialog.close()
            shell.say(t("Kept in {path}", path=str(path)))

        field.on("keydown.enter", lambda: keep())
        with element("div", "actions"):
            ui.button(t("Keep"), on_click=keep).props("unelevated no-caps")
            ui.button(t("Close"), on_click=dialog.close).props("flat no-caps")
    dialog.open()
