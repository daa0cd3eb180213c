"""Every test runs offline (only this machine's loopback can be reached) and in a runs directory of its own."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from danlu import display

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored, by children too


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """Refuse connections and name look-ups that would leave the machine."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def local(host: Any) -> bool:
        return host in (None, "", "localhost", "::1", b"localhost") or str(host).startswith("127.")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not local(address[0]):
            raise OSError(f"a test tried to reach {address}")
        connect(self, address)

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not local(host):
            raise OSError(f"a test tried to look up {host}")
        return look_up(host, *args, **kwargs)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket, "getaddrinfo", guarded_look_up)
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Token sets go to a folder of this test session."""
    os.environ["DANLU_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _own_display():
    """A command's --display holds for its own test only."""
    yield
    display.set_mode("auto")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs root."""
    root = tmp_path / "runs"
    monkeypatch.setenv("DANLU_RUNS", str(root))
    return root
