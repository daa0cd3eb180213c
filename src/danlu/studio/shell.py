"""What every page has: head, navigation, language, appearance; and the small parts that pages are put together from.

Text of models and data goes into labels alone (Vue writes them as text), never into `ui.html` or `ui.markdown`.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nicegui import app, context, ui
from nicegui.client import Client

from danlu.display import warn
from danlu.errors import DanluError
from danlu.studio import words
from danlu.studio.words import t

STYLE = Path(__file__).with_name("style.css")
NAVIGATION = (
    ("/", "Runs", "view_list"),
    ("/data", "Data", "dataset"),
    ("/verdict", "Verdict", "balance"),
    ("/chat", "Chat", "chat_bubble_outline"),
    ("/export", "Export", "ios_share"),
)
THEMES = {"auto": ("As the system", "contrast"), "light": ("Light", "light_mode"), "dark": ("Dark", "dark_mode")}
YEAR = 365 * 24 * 3600


def page(path: str, title: str, nav: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a page: `title` (English) names it in the browser, `nav` the entry of NAVIGATION it belongs to.

    The function builds the content; its parameters come from the address, as in NiceGUI. A DanluError that it raises
    is shown as what and hint.
    """

    def registered(build: Callable[..., Any]) -> Callable[..., Any]:
        import functools

        @functools.wraps(build)
        def built(*args: Any, **kwargs: Any) -> None:
            with frame(title, nav or path):
                try:
                    build(*args, **kwargs)
                except DanluError as error:
                    problem(error)

        ui.page(path)(built)
        return built

    return registered


@contextlib.contextmanager
def frame(title: str, active: str) -> Iterator[None]:
    """The page around the block, which builds its content."""
    client = context.client
    cookies = client.request.cookies
    client.storage["language"] = words.chosen(
        cookies.get("danlu_language"), client.request.headers.get("accept-language", "")
    )
    theme = cookies.get("danlu_theme", "auto")
    client.page = copy.copy(client.page)  # the route's own is shared by everybody who opens it
    client.page.language = "zh-CN" if words.language() == "zh" else "en-US"
    client.page.dark = {"light": False, "dark": True}.get(theme)
    client.title = f"{t(title)} · Danlu"
    ui.add_head_html("<style>" + STYLE.read_text(encoding="utf-8") + "</style>")
    # beside NiceGUI's own <main>, which is around all content, and before it
    with client.layout:
        link("#content", "nicegui-skip-link").text(t("Skip to content")).move(target_index=0)
        head = element("header", "top")
        head.move(target_index=1)
    with head:
        with link("/", "brand"):
            element("span", "seal").text("丹")
            element("span", "name").text("Danlu")
        with element("nav", "nav").props(f'aria-label="{t("Main pages")}"'):
            for target, name, icon in NAVIGATION:
                if target not in Client.page_routes.values():
                    continue
                with link(target, "active" if target == active else "") as entry:
                    if target == active:
                        entry.props("aria-current=page")
                    ui.icon(icon).props("aria-hidden=true")
                    element("span").text(t(name))
        with element("div", "switches"):
            _language_switch()
            _theme_switch(theme)
    with element("div", "page").props("id=content tabindex=-1"):
        yield


def _language_switch() -> None:
    own = words.language()
    other: words.Language = "en" if own == "zh" else "zh"
    button = ui.button("中文" if other == "zh" else "EN", on_click=lambda: _remember("danlu_language", other))
    button.props(f"flat dense no-caps lang={'zh-CN' if other == 'zh' else 'en'}").classes("switch")
    button.props["aria-label"] = words.LANGUAGES[other]


def _theme_switch(theme: str) -> None:
    with ui.button(icon=THEMES.get(theme, THEMES["auto"])[1]).props("flat dense").classes("switch") as button:
        button.props["aria-label"] = t("Appearance")
        with ui.menu():
            for name, (label, _) in THEMES.items():
                ui.menu_item(t(label), on_click=lambda _=None, name=name: _remember("danlu_theme", name))


def _remember(cookie: str, value: str) -> None:
    """Keep a choice in the browser and build the page again."""
    ui.run_javascript(f'document.cookie="{cookie}={value};path=/;max-age={YEAR};samesite=lax"; location.reload()')


# ---- parts


class Tag(ui.element):
    """An HTML element by name; `text` sets its text, which is never read as HTML."""

    def text(self, value: str) -> Tag:
        self._text = value
        self.update()
        return self


def element(tag: str, classes: str = "") -> Tag:
    found = Tag(tag)
    return found.classes(classes) if classes else found


def link(target: str, classes: str = "") -> Tag:
    """A link within the studio. `target` is a path made by us; names in it are quoted by `address`."""
    found = element("a", classes)
    found.props["href"] = target
    return found


def address(path: str, *names: str, **query: str) -> str:
    """ "/run", "odd name" -> "/run/odd%20name?..."."""
    from urllib.parse import quote, urlencode

    return "/".join([path.rstrip("/"), *(quote(name, safe="") for name in names)]) + (
        f"?{urlencode(query)}" if query else ""
    )


def style(name: str) -> None:
    """A style sheet of the studio besides its own, by the name of its file."""
    ui.add_head_html("<style>" + Path(__file__).with_name(name).read_text(encoding="utf-8") + "</style>")


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: frozenset[int] = frozenset()) -> None:
    """A small table of texts; columns in `numeric` stand at the right."""
    with element("div", "wide"), element("table"):
        with element("thead"), element("tr"):
            for at, head in enumerate(heads):
                element("th", "n" if at in numeric else "").text(head)
        with element("tbody"):
            for row in rows:
                with element("tr"):
                    for at, cell in enumerate(row):
                        element("td", "n" if at in numeric else "").text(cell)


def slider(label: str, most: int, value: int, moved: Callable[[int], Any], event: str = "input") -> Tag:
    """A slider over 0 … `most`: the browser's own, whose name and place screen readers tell. `moved` gets its place.

    `event`: "input" while it is moved, "change" when it is let go.
    """
    found = element("input", "slider").props(f"type=range min=0 max={most} step=1")
    found.props["^value"] = value  # where it begins; Vue would put it back there as a property
    found.props["aria-label"] = label
    script = "(event) => emit(event.target.value)"
    found.on(event, lambda e: moved(int(e.args)), js_handler=script, throttle=0.05)
    return found


def fold(summary: str, opened: bool = False) -> Tag:
    """Something folded away; its content goes into the block of what is returned."""
    found = element("details")
    if opened:
        found.props("open")
    with found:
        element("summary").text(summary)
    return found


def waiting(text: str) -> None:
    """Something is being worked out."""
    with element("div", "wait").props("role=status"):
        ui.spinner(size="22px")
        element("span").text(text)


def heading(text: str, note: str = "") -> Tag:
    """The title of a page, with a quiet line beneath; returns a row at its right for buttons."""
    with element("div", "head"):
        with element("div", "titles"):
            element("h1").text(text)
            if note:
                element("p", "quiet").text(note)
        return element("div", "actions")


def empty(what: str, do: str, icon: str = "inbox") -> Tag:
    """An empty place that says what to do; returns a row for buttons."""
    with element("section", "empty"):
        ui.icon(icon).props("aria-hidden=true")
        element("h2").text(what)
        element("p", "quiet").text(do)
        return element("div", "actions")


def problem(error: DanluError) -> None:
    """An error in the page: what, and what to do."""
    with element("section", "problem").props("role=alert"):
        ui.icon("error_outline").props("aria-hidden=true")
        with element("div"):
            element("p", "what").text(error.message)
            if error.hint:
                element("p", "quiet").text(error.hint)


def say(text: str, kind: str = "positive") -> None:
    """A short notice: positive, warning or negative."""
    ui.notify(text, type=kind, position="bottom", close_button="✕", html=False)  # type: ignore[arg-type]


def tell(error: Exception) -> None:
    """What went wrong while a page was answering: notice for its user, traceback to the terminal unless it is known."""
    if isinstance(error, DanluError):
        say(f"{error.message}. {error.hint}".rstrip(". ") + ".", "negative")
        return
    warn("".join(traceback.format_exception(error)))
    say(f"{t('Something went wrong here.')} {t('The terminal in which the studio runs tells more.')}", "negative")


def install() -> None:
    """Errors are told in the page; those of the studio's user leave no traceback in the terminal either."""
    logging.getLogger("nicegui").addFilter(lambda record: not isinstance(record.msg, DanluError))
    app.on_exception(_told_somewhere)
    app.on_page_exception(_broken_page)
    app.exception_handler(404)(_missing_page)


def _told_somewhere(error: Exception) -> None:
    try:
        tell(error)
    except RuntimeError:  # no page is there to be told
        warn("".join(traceback.format_exception(error)))


def _broken_page(error: Exception) -> None:
    warn("".join(traceback.format_exception(error)))
    with frame("Danlu", ""):
        empty(t("Something went wrong here."), t("The terminal in which the studio runs tells more."), "report")


async def _missing_page(request: Any, _: Exception) -> Any:
    from fastapi.responses import PlainTextResponse

    if "text/html" not in request.headers.get("accept", ""):
        return PlainTextResponse("not found\n", 404)
    with Client(ui.page(""), request=request) as client, frame("Danlu", ""):
        row = empty(t("This page does not exist."), request.url.path, "search_off")
        with row, link("/", "text-link") as back:
            back.text(t("Back to the runs"))
    return client.build_response(request, 404)
