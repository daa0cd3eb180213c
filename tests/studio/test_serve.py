"""The studio as a server: pages, language, refusals, one a folder, nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from studio_server import Served


def test_pages_come_in_two_languages(studio: Served):
    status, english = studio.get("/", Accept_Language="en")
    assert status == 200
    assert '<html lang="en-US">' in english
    assert ">Runs · Danlu</title>" in english
    chinese = studio.get("/", Accept_Language="zh-CN")[1]
    assert '<html lang="zh-CN">' in chinese
    assert "运行" in chinese
    assert '<html lang="en-US">' in studio.get("/", Accept_Language="zh-CN", Cookie="danlu_language=en")[1]


def test_a_page_names_no_other_host(studio: Served):
    body = studio.get("/")[1]
    assert set(re.findall(r'(?:src|href)="(?:https?:)?//[^"]*"', body)) == set()
    assert set(re.findall(r"url\(.?(?:https?:)?//", body)) == set()


def test_a_missing_page_says_so(studio: Served):
    status, body = studio.get("/nowhere")
    assert status == 404
    assert "This page does not exist." in body
    assert studio.get("/nowhere", Accept="*/*") == (404, "not found\n")


def test_a_rebound_name_is_refused(studio: Served):
    assert studio.get("/", Host="evil.example")[0] == 403
    assert studio.get("/", Origin="http://evil.example")[0] == 403
    socket = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    assert studio.get(socket, Origin="http://evil.example")[0] == 403


def test_one_studio_a_folder(studio: Served):
    again = subprocess.run(
        [sys.executable, "-m", "danlu", "studio", "--no-open"],
        env=os.environ | {"DANLU_RUNS": str(studio.root)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert again.returncode == 2
    assert f"already shows {studio.root}: {studio.url}" in again.stderr
    assert f"kill {studio.process.pid}" in again.stderr


def test_other_machines_are_not_served_without_a_token(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "danlu", "studio", "--host", "0.0.0.0"],
        env=os.environ | {"DANLU_RUNS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "--token" in done.stderr
    assert "other machines" in done.stderr


def test_the_studio_starts_without_torch(tmp_path: Path):
    pytest.importorskip("nicegui")
    code = (
        "import sys\nfrom danlu.studio import pages, place\nfrom pathlib import Path\n"
        f"place.settle(place.Place(Path({str(tmp_path)!r})))\npages.register()\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []  # NiceGUI keeps no storage of its own
