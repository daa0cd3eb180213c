"""Data: what is wrong with the rows, how long they are, and what the model sees of them; before anything is trained."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from danlu.data.page import percent, standing, visible
from danlu.errors import DanluError
from danlu.studio import data_view as view
from danlu.studio import shell
from danlu.studio.ask import asked, kept
from danlu.studio.place import place
from danlu.studio.shell import element
from danlu.studio.words import t

LEVELS = {"error": "Error", "warning": "Warning", "info": "Worth knowing"}
KINDS = {"run": "run", "recipe": "recipe", "file": "file"}
MEANING = {
    "context": "read, carries no loss",
    "supervised": "learned, carries loss",
    "masked": "holds a mask instead of a term",
    "end": "end token with loss: teaches the model to stop",
}


@shell.page("/data", "Data")
def data(of: str = "", model: str = "tiny") -> None:
    shell.style("reading.css")
    shell.heading(t("Data"), t("What a recipe's rows look like to the model, before anything is trained on them."))
    known = view.subjects(place())
    keys = [subject.key for subject in known]
    chosen = of if of in keys else keys[0]
    options = {subject.key: f"{visible(subject.name)} · {t(KINDS[subject.kind])}" for subject in known}
    with element("div", "pick"):
        picked = ui.select(options, value=chosen, label=t("Rows of")).props("outlined dense")
        named = ui.input(t("Model"), value=model).props("outlined dense").style("flex-basis: 200px")
        named.bind_visibility_from(picked, "value", lambda key: str(key).startswith("file:"))
        button = ui.button(t("Check"), icon="fact_check").props("unelevated no-caps")
    below = element("div", "stack").style("gap: 20px")

    async def look() -> None:
        button.disable()
        try:
            await _look(below, str(picked.value), str(named.value or "").strip())
        finally:
            button.enable()

    button.on_click(look)
    with below:
        ready = _kept(chosen, model)
        if ready is not None:
            ui.timer(0.05, look, once=True)
        else:
            shell.empty(
                t("These rows have not been checked yet."),
                t("The check reads them as training would and counts what is wrong. It takes seconds to a minute."),
                "fact_check",
            )


def _kept(key: str, model: str) -> bool | None:
    """Whether the check of these rows is at hand; None where not."""
    subject = view.find(place(), key)
    try:
        given = view.arguments(place(), subject, model)
    except DanluError:
        return None
    return True if kept(place(), ["check", *view.stamp(subject, given)]).is_file() else None


async def _look(below: Any, key: str, model: str) -> None:
    below.clear()
    with below:
        try:
            subject = view.find(place(), key)
            given = view.arguments(place(), subject, model)
            shell.waiting(t("Reading the rows and counting …"))
            stamp = view.stamp(subject, given)
            report = await asked(place(), ["check", *stamp], "data", "check", *given)
        except DanluError as error:
            below.clear()
            with below:
                shell.problem(error)
            return
    below.clear()
    with below:
        _report(report)

        async def rows_from(first: int) -> dict[str, Any]:
            return await asked(
                place(), ["view", first, view.ROWS, *stamp],
                "data", "view", *given, "--row", str(first), "--count", str(view.ROWS),
            )  # fmt: skip

        _rows(rows_from, report["rows"]["train"])


# ---- the report


def _report(report: dict[str, Any]) -> None:
    kind = {"error": "worse", "warning": "mixed", "ok": "better"}[standing(report)]
    with element("section", f"card verdict {kind}"):
        element("p", "sentence").text(view.sentence(report, t))
        facts = [f"{t('model')} {visible(str(report['model']))}", f"{t('reasoning style')} {report['think']['style']}"]
        element("p", "quiet").text(" · ".join(facts))
    rows = report["rows"]
    with element("section", "card figures").props(f'aria-label="{t("Counts")}"'):
        for value, label in (
            (f"{rows['in']:,}", t("rows read")),
            (f"{rows['rejected']:,}", t("rejected")),
            (f"{rows['train']:,}", t("for training")),
            (f"{rows['valid']:,}", t("for validation")),
            (f"{report['tokens']:,}", t("tokens")),
            (percent(report["supervised_share"]), t("of them carry loss")),
        ):
            with element("div", "figure"):
                element("div", "value").text(value)
                element("div", "label").text(label)
    _findings(view.cards(report, t))
    _lengths(report["lengths"])
    _mix(report["mix"])


def _findings(cards: list[view.Card]) -> None:
    with element("section", "stack"):
        element("h2").text(t("Findings"))
        if not cards:
            element("p", "quiet").text(t("Nothing was found."))
        with element("div", "findings"):
            for card in cards:
                _finding(card)


def _finding(card: view.Card) -> None:
    with element("article", f"card finding {card.level}"):
        with element("div", "top-line"):
            element("span", f"level {card.level}").text(t(LEVELS[card.level]))
            element("span", "mono quiet").text(card.code)
            element("span", "count").text(f"{card.count} · {card.share}" if card.share else card.count)
        element("p").text(card.what)
        if card.do:
            element("p", "quiet").text(f"{t('What to do:')} {card.do}")
        if card.examples:
            with shell.fold(t("Examples: {count}", count=len(card.examples))):
                for example in card.examples:
                    element("div", "example text-block").text(example)


def _lengths(lengths: dict[str, Any]) -> None:
    """The histogram and a line at max_length that can be moved, with what rows would lose there."""
    cuts, bars = view.cuts(lengths), view.bars(lengths)
    if len(cuts) < 2:
        return
    with element("section", "card stack lengths"):
        with element("div", "row-line between"):
            element("h2").text(t("Length of the rows"))
            told = t("median {middle} · 99 % fit in {most} · longest {longest}")
            values = (f"{lengths[key]:,}" for key in ("p50", "keeps_99", "max"))
            element("p", "quiet small number").text(
                told.format(**dict(zip(("middle", "most", "longest"), values, strict=True)))
            )
        with element("div"):
            with element("div", "histogram").props(f'role=img aria-label="{t("Rows by their number of tokens")}"'):
                for bar in bars:
                    tip = t("{low} to {high} tokens: {count} rows", low=bar.low, high=bar.high, count=bar.count)
                    drawn = element("div", "bar").style(f"height: {bar.height:.1f}%")
                    drawn.props["title"] = tip
                beyond = element("div", "beyond")
                line = element("div", "line")
            begin = view.nearest(cuts, lengths["max_length"])
            shell.slider(
                t("max_length: move it to see what rows would lose"), len(cuts) - 1, begin, lambda at: moved(at)
            )
            with element("div", "axis"):
                for at in (0, len(bars) // 4, len(bars) // 2, 3 * len(bars) // 4):
                    element("span").text(f"{bars[at].low:,}")
                element("span").text(t("{count} tokens", count=f"{bars[-1].high:,}"))
        sentence = element("p", "told").props("aria-live=polite")

        def moved(place: int) -> None:
            cut = cuts[place]
            line.style(f"left: {cut.left:.2f}%")
            beyond.style(f"left: {cut.left:.2f}%")
            # the last place is as far as rows go; beyond it nothing changes
            at = lengths["max_length"] if place == begin and lengths["max_length"] else cut.max_length
            sentence.text(_lost(at, cut))
            sentence.classes(replace="told warn" if cut.end else "told quiet")

        moved(begin)


def _lost(max_length: int, cut: view.Cut) -> str:
    if not cut.rows:
        return t("max_length {length}: no row loses anything.", length=f"{max_length:,}")
    return t(
        "max_length {length}: {rows} of the rows are longer; cut there, {close} lose the end of their reasoning, "
        "{answer} part of the answer, {end} the end token.",
        length=f"{max_length:,}",
        rows=percent(cut.rows),
        close=percent(cut.close),
        answer=percent(cut.answer),
        end=percent(cut.end),
    )


def _mix(mix: dict[str, dict[str, int]]) -> None:
    names = {"language": "Languages", "script": "Scripts"}
    with element("section", "columns"):
        for name, counts in mix.items():
            total = sum(counts.values())
            if not total:
                continue
            with element("div", "card stack"):
                element("h2").text(t(names[name]) if name in names else visible(name))
                rows = sorted(counts.items(), key=lambda pair: -pair[1])[:8]
                cells = [[visible(key), f"{count:,}", percent(count / total)] for key, count in rows]
                shell.grid(("", t("Rows"), t("Share")), cells, frozenset({1, 2}))


# ---- rows


def _rows(rows_from: Callable[[int], Awaitable[dict[str, Any]]], count: int) -> None:
    with element("section", "card stack"):
        with element("div", "row-line between"):
            element("h2").text(t("Rows as the model sees them"))
            with element("div", "actions"):
                where = element("span", "quiet small number")
                earlier = ui.button(icon="chevron_left").props("flat dense")
                earlier.props["aria-label"] = t("Rows before these")
                later = ui.button(icon="chevron_right").props("flat dense")
                later.props["aria-label"] = t("Rows after these")
        with element("div", "legend"):
            for kind, meaning in MEANING.items():
                with element("span"):
                    element("span", f"piece sample {kind}").text(t(f"{kind}"))
                    element("span", "quiet").text(f" {t(meaning)}")
        content = element("div", "stack")
        at = {"first": 0}

        async def show(first: int) -> None:
            at["first"] = max(0, min(first, max(0, count - 1) // view.ROWS * view.ROWS))
            earlier.set_enabled(False)
            later.set_enabled(False)
            content.clear()
            with content:
                shell.waiting(t("Tokenising …"))
            try:
                answer = await rows_from(at["first"])
                content.clear()
                with content:
                    for row in view.rows(answer):
                        _row(row)
                last = at["first"] + len(answer["rows"])
                where.text(t("{first} to {last} of {all}", first=at["first"], last=last - 1, all=f"{count:,}"))
            except DanluError as error:
                content.clear()
                with content:
                    shell.problem(error)
            earlier.set_enabled(at["first"] > 0)
            later.set_enabled(at["first"] + view.ROWS < count)

        earlier.on_click(lambda: show(at["first"] - view.ROWS))
        later.on_click(lambda: show(at["first"] + view.ROWS))
        with content:
            ui.button(t("Show rows"), icon="visibility", on_click=lambda: show(0)).props("outline no-caps")
        earlier.set_enabled(False)
        later.set_enabled(False)


def _row(row: view.Shown) -> None:
    with element("article", "example"):
        told = " · ".join(f"{t(kind)} {number:,}" for kind, number in row.counts.items())
        element("p", "quiet small number").text(f"{t('row {number}', number=row.number)} · {row.id} · {told}")
        if not row.counts.get("end"):
            element("p", "warn small").text(t("No end token carries loss: this row does not teach the model to stop."))
        with element("div", "tokens"):
            for kind, piece in row.pieces:
                element("span", f"piece {kind}").text(piece)
