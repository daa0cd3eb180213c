"""A browser that looks at a studio and takes note of what must not happen: errors, and requests to anywhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from studio_server import Served

WIDE, NARROW = (1280, 860), (390, 844)


@contextlib.contextmanager
def looking(
    chromium: str, served: Served, *, language: str = "en", theme: str = "light", size: tuple[int, int] = WIDE
) -> Iterator[Any]:
    """A Playwright page at the studio; at the end no script has failed and nothing was asked of another host."""
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []
    own = (served.url, served.url.replace("http", "ws", 1), "data:", "blob:")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, base_url=served.url, reduced_motion="reduce"
        )
        context.set_default_timeout(60_000)
        cookies = {"danlu_language": language, "danlu_theme": theme}
        context.add_cookies([{"name": name, "value": value, "url": served.url} for name, value in cookies.items()])

        def asked(route: Any) -> None:
            if route.request.url.startswith(own):
                route.continue_()
            else:
                wrong.append(f"asked {route.request.url}")
                route.abort()

        context.route("**/*", asked)
        page = context.new_page()
        page.on("console", lambda said: wrong.append(f"console: {said.text}") if said.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        try:
            yield page
        finally:
            browser.close()
    assert wrong == []


def widest(page: Any) -> int:
    """Pixels by which the page is wider than its window: 0 where nothing makes it scroll sideways."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def landmarks(page: Any) -> list[str]:
    """The main landmarks of a page; there is one."""
    return page.evaluate("[...document.querySelectorAll('main, [role=main]')].map(e => e.className)")


def unnamed(page: Any) -> list[str]:
    """Controls that a screen reader could not name."""
    return page.evaluate(
        """() => [...document.querySelectorAll('button, a[href], input, [role=slider], select, textarea')]
          .filter(e => e.offsetParent !== null && e.type !== 'hidden')
          .filter(e => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.title
            || e.placeholder || e.innerText?.trim() || e.labels?.length || e.closest('label')))
          .map(e => e.outerHTML.slice(0, 120))"""
    )
