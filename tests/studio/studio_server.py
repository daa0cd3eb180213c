"""A studio that really serves, as its command does, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from danlu.recipe import load


@dataclass(frozen=True)
class Served:
    """A running studio: `url` without a slash at its end, its runs folder and process."""

    url: str
    root: Path
    process: subprocess.Popen[str]

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """(status, body) of a request; redirects are not followed. Header names have _ for -."""
        request = urllib.request.Request(self.url + path)
        for name, value in {"Accept": "text/html", **headers}.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with _opener.open(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


_opener = urllib.request.build_opener(_Stay, urllib.request.ProxyHandler({}))


def hundreds(root: Path) -> None:
    """200 finished runs, run-000 to run-199, the last one the newest."""
    config = json.dumps(load("demo").resolved())
    for i in range(200):
        folder = root / f"run-{i:03}"
        folder.mkdir()
        info = {"name": folder.name, "stage": "sft", "status": "done", "created": float(i), "results": {"loss": 0.1}}
        (folder / "run.json").write_text(json.dumps(info))
        (folder / "config.json").write_text(config)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(root: Path, *args: str, cwd: Path | None = None, **variables: str) -> Iterator[Served]:
    """A studio over `root` until the block ends. `args`: of the command, besides the port; `variables`: its own."""
    port = free_port()
    environment = os.environ | {"DANLU_RUNS": str(root), "OMP_NUM_THREADS": "1"} | variables
    environment.pop("PYTEST_CURRENT_TEST", None)  # NiceGUI behaves otherwise under pytest
    command = [sys.executable, "-m", "danlu", "studio", "--no-open", "--port", str(port), *args]
    log = root.parent / f"studio-{port}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, cwd=cwd or root.parent, stderr=file, stdout=file, text=True
        )
    try:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        yield Served(f"http://127.0.0.1:{port}", root, process)
    finally:
        process.terminate()
        process.wait(timeout=20)
