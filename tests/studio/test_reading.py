"""Data, Verdict and Export in a real browser: they show what is there, and nothing of it acts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import evil
import pytest
from looking import NARROW, landmarks, looking, unnamed, widest
from studio_server import Served, serving


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[Served]:  # noqa: ARG001
    """A studio over runs that would like to be markup."""
    folder: Path = tmp_path_factory.mktemp("evil")
    (folder / "runs").mkdir()
    evil.fill(folder / "runs")
    with serving(folder / "runs") as served:
        yield served


def test_nothing_that_runs_say_acts(studio: Served, chromium: str) -> None:
    with looking(chromium, studio) as page:
        page.goto("/verdict")
        page.get_by_text("Questions to read").wait_for()
        item = page.locator("details.item").first
        item.locator("summary").first.click()
        item.get_by_text("Reasoning").first.click()
        assert "window.hacked=3" in item.inner_text()
        page.goto("/data")
        page.get_by_text("These rows have not been checked yet.").wait_for()
        page.goto(f"/export?run={quote(evil.EXPORT)}")
        page.get_by_text("1 of 1").wait_for()
        assert evil.MARKUP in page.locator("#content").inner_text()
        page.goto("/")
        page.get_by_role("link", name=evil.EXPORT).wait_for()
        for name in (evil.SFT, evil.GRPO, evil.EVAL):
            page.goto(f"/run/{quote(name)}")
            page.locator("h1", has_text=name).wait_for()
        assert page.evaluate("window.hacked") is None
        assert page.locator("img[src=x]").count() == 0


def test_a_keyboard_skips_to_the_one_main_part(studio: Served, chromium: str) -> None:
    with looking(chromium, studio) as page:
        for path in ("/", "/start", "/data", "/verdict", "/chat", "/export", f"/run/{quote(evil.SFT)}"):
            page.goto(path)
            page.locator("#content h1, #content h2").first.wait_for()
            assert len(landmarks(page)) == 1, path
            assert page.locator("main #content").count() == 1
            assert page.locator("main header.top").count() == 0
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.innerText") == "Skip to content"
        page.keyboard.press("Enter")
        page.wait_for_function("document.activeElement.id == 'content'")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('#content') !== null")


@pytest.mark.slow
def test_pages_fit_a_phone_and_name_their_controls(studio: Served, chromium: str) -> None:
    with looking(chromium, studio, language="zh", theme="dark", size=NARROW) as page:
        for path, part in (("/data", ".empty"), ("/verdict", ".item"), ("/export", ".check-line")):
            page.goto(path)
            page.locator(f"#content {part}").first.wait_for()
            assert widest(page) == 0, path
            assert unnamed(page) == [], path
            assert page.locator("body.body--dark").count() == 1
