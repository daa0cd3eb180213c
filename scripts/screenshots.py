"""Screenshots of the studio's pages, light and dark, into docs/images: `make screenshots`.

    python scripts/screenshots.py [--runs DIR] [--out DIR] [--only PAGE ...]

The demo is run first (some minutes on two cores), unless the runs folder holds it already; it stays there, so that
pictures can be taken again. The studio is driven in Debian's Chromium, as in the browser tests; pictures are reduced to
a palette, so that each stays small.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "studio"))

WIDTH, HEIGHT = 1280, 800
COLOURS = 256  # of a picture
MOST_BYTES = 150_000
THEMES = ("light", "dark")
RUNS = Path(tempfile.gettempdir()) / "clinic" / "runs"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=Path, default=RUNS, help=f"where the demo is run (default: {RUNS})")
    options.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options.add_argument("--only", nargs="*", default=list(PAGES), choices=list(PAGES), metavar="PAGE")
    asked = options.parse_args()
    runs = asked.runs.resolve()
    if not (runs / "demo-export" / "artifact").is_dir():
        command = [sys.executable, "-m", "danlu", "run", "demo", "--name", "demo"]
        subprocess.run(command, env=os.environ | {"DANLU_RUNS": str(runs)}, check=True)
    take(runs, asked.out, asked.only)


# ---- what each page is made to show


def _top(page: Any, part: str) -> None:
    """Scroll so that a part stands right beneath the head."""
    page.evaluate("part => { document.querySelector(part).scrollIntoView(); scrollBy(0, -76); }", part)


def _runs(page: Any) -> None:
    page.goto("/")
    page.get_by_role("link", name="demo-sft", exact=True).wait_for()


def _lineage(page: Any) -> None:
    page.goto("/")
    page.get_by_role("tab", name="Lineage").click()


def _curves(page: Any) -> None:
    page.goto("/run/demo-grpo")
    page.locator("canvas").first.wait_for()


def _rollouts(page: Any) -> None:
    page.goto("/run/demo-grpo")
    page.get_by_role("tab", name="Rollouts").click()
    page.get_by_text("Gold answer:").first.wait_for()
    _top(page, "details.group[open]")


def _start(page: Any) -> None:
    page.goto("/start?recipe=demo")
    page.locator(".q-spinner").first.wait_for(state="hidden", timeout=240_000)  # the plan is made


def _data(page: Any) -> None:
    page.goto("/data?of=run:demo-sft")
    told = page.get_by_text("Length of the rows")
    told.or_(page.get_by_text("These rows have not been checked yet.")).wait_for()
    if not told.is_visible():  # it is kept once it was asked
        page.get_by_role("button", name="Check").click()
    told.wait_for(timeout=240_000)
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(24):
        slider.press("ArrowLeft")
    page.get_by_text("of the rows are longer").wait_for()
    page.evaluate("document.activeElement.blur()")
    _top(page, ".verdict")


def _rows(page: Any) -> None:
    _data(page)
    page.get_by_role("button", name="Show rows").click()
    page.locator(".tokens").nth(2).wait_for(timeout=240_000)
    _top(page, ".card:has(> .legend)")


def _verdict(page: Any) -> None:
    page.goto("/verdict")
    page.get_by_text("Questions to read").wait_for()


def _questions(page: Any) -> None:
    _verdict(page)
    page.locator("details.item summary").first.click()
    _top(page, ".card:has(details.item)")


def _chat(page: Any) -> None:
    page.goto("/chat?b=demo-grpo")
    page.get_by_role("textbox", name="Question").fill("62岁女性，发热、咳嗽、胸痛5天。最可能的诊断是什么？")
    page.get_by_role("button", name="Ask both").click()
    for place in (0, 1):
        told = page.locator(".answer").nth(place).get_by_text("tokens a second")
        told.wait_for(timeout=240_000)


def _export(page: Any) -> None:
    page.goto("/export")
    page.get_by_text("checks hold").wait_for()
    page.get_by_text("No Ollama answers here").or_(page.get_by_text("answers here.")).first.wait_for()


PAGES: dict[str, Callable[[Any], None]] = {
    "runs": _runs,
    "lineage": _lineage,
    "run": _curves,
    "rollouts": _rollouts,
    "start": _start,
    "data": _data,
    "rows": _rows,
    "verdict": _verdict,
    "questions": _questions,
    "chat": _chat,
    "export": _export,
}


# ---- taking them


def take(runs: Path, out: Path, names: list[str]) -> None:
    """Write OUT/studio-PAGE-THEME.png for each page."""
    from looking import looking
    from studio_server import serving

    from conftest import CHROMIUM

    if CHROMIUM is None:
        sys.exit("no chromium is installed: apt-get install chromium fonts-noto-cjk")
    out.mkdir(parents=True, exist_ok=True)
    with serving(runs) as served:
        for theme in THEMES:
            with looking(CHROMIUM, served, theme=theme, size=(WIDTH, HEIGHT)) as page:
                for name in names:
                    PAGES[name](page)
                    page.wait_for_timeout(900)  # curves are drawn
                    page.mouse.move(2, HEIGHT - 2)
                    file = out / f"studio-{name}-{theme}.png"
                    file.write_bytes(small(page.screenshot()))
                    print(f"{file} {file.stat().st_size / 1000:.0f} kB", file=sys.stderr)


def small(png: bytes) -> bytes:
    """The same picture with a palette; fewer colours until it is small."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    colours = COLOURS
    while True:
        found = io.BytesIO()
        picture.quantize(colours, kmeans=1, dither=Image.Dither.NONE).save(found, "PNG", optimize=True)
        if found.tell() < MOST_BYTES or colours <= 16:
            return found.getvalue()
        colours //= 2


if __name__ == "__main__":
    main()
