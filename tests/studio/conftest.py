"""A running studio, and the browser to look at it with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from studio_server import Served, serving

CHROMIUM = next((path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(path).is_file()), None)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A studio over an empty runs folder; what a test writes there shows up."""
    pytest.importorskip("nicegui", reason="the studio needs NiceGUI (danlu[studio])")
    root = tmp_path_factory.mktemp("studio") / "runs"
    root.mkdir()
    with serving(root) as served:
        yield served


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser; skips where none is installed."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed (apt-get install chromium fonts-noto-cjk)")
    return CHROMIUM
