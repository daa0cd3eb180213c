"""Start the studio: one per runs folder, on 127.0.0.1 unless a token is given.

Everything that NiceGUI offers besides pages (sessions, user storage on disk, reloading, remote access) stays off: what
a user chose (language, appearance) is in two cookies, all else is in run directories.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from danlu.display import say
from danlu.errors import DanluError, Stopped
from danlu.studio.files import DAYS, tidy
from danlu.studio.place import Place, settle
from danlu.studio.safety import Gate, check_bind, is_local

PORT = 8600
FURTHER = 20  # ports that are tried after it


def serve(
    place: Place, *, host: str = "127.0.0.1", port: int | None = None, token: str | None = None, show: bool = False
) -> None:
    """Serve until Ctrl-C. DanluError: another studio shows this folder, the port is taken, no token for `host`."""
    check_bind(host, token)
    if port is None:
        port = next((port for port in range(PORT, PORT + FURTHER) if _free(host, port)), PORT)
    if not _free(host, port):
        raise DanluError(f"port {port} of {host} is taken", "choose another with --port")
    try:
        import nicegui  # noqa: F401
    except ModuleNotFoundError:
        raise DanluError("the studio needs NiceGUI", 'pip install "danlu[studio]"') from None
    named = f"[{host}]" if ":" in host else "127.0.0.1" if host == "localhost" else host
    address = f"http://{named}:{port}/"
    with alone(place, address):
        settle(place)
        for gone in tidy(place):
            say(f"removed {gone}: uploaded more than {DAYS} days ago, and no run names it")
        _announce(place, address, token, show, host)
        with contextlib.suppress(KeyboardInterrupt, Stopped):  # how a studio ends; its server has closed by then
            _run(host, port, token)


def _announce(place: Place, address: str, token: str | None, show: bool, host: str) -> None:
    whole = f"{address}?token={token}" if token else address
    say(f"studio of {place.root}: {address}{'?token=...' if token else ''}")
    if not is_local(host):
        say("reachable from other machines, without encryption; whoever has the token can start and stop runs")
    say("Ctrl-C ends the studio; runs go on")
    if show and (os.name == "nt" or os.uname().sysname == "Darwin" or os.environ.get("DISPLAY")):
        from threading import Timer

        Timer(1.5, webbrowser.open, [whole]).start()


def _run(host: str, port: int, token: str | None) -> None:
    from nicegui import app, ui

    from danlu.studio import pages, shell

    shell.install()
    pages.register()
    app.add_middleware(Gate, token=token, port=port)
    ui.run(
        host=host,
        port=port,
        title="Danlu",
        favicon=Path(__file__).with_name("seal.svg"),
        dark=None,
        show=False,
        reload=False,
        tailwind=False,
        show_welcome_message=False,
        gzip_middleware_factory=None if is_local(host) else _zipped,
        binding_refresh_interval=None,
        reconnect_timeout=10.0,
        endpoint_documentation="none",
        server_header=False,
        timeout_graceful_shutdown=1,
    )


def _zipped(app: Any) -> Any:
    from fastapi.middleware.gzip import GZipMiddleware

    return GZipMiddleware(app, minimum_size=1000)


def _free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno in (99, 49):  # no such address here
                raise DanluError(
                    f"this machine cannot listen on {host}: {error.strerror}", "--host 127.0.0.1"
                ) from None
            return False
    return True


@contextlib.contextmanager
def alone(place: Place, address: str) -> Iterator[None]:
    """Hold the folder's studio lock, which the system releases whatever ends this process."""
    try:
        place.own.mkdir(parents=True, exist_ok=True)
        file = (place.own / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise DanluError(f"cannot write in {place.root}: {error.strerror}", "choose another folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            with contextlib.suppress(ValueError, KeyError):
                other = json.loads(file.read())
                raise DanluError(
                    f"a studio already shows {place.root}: {other['address']}",
                    f"open it there, or end it first: kill {other['pid']}",
                ) from None
            raise DanluError(f"a studio already shows {place.root}", "end it first") from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "address": address}))
        file.flush()
        yield
