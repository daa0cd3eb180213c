"""`danlu serve`: what is served at which address, and with which key. The key comes from the environment alone."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

from danlu.cli.stages import find_run
from danlu.display import say, warn
from danlu.errors import DanluError, Stopped
from danlu.recipe import Recipe
from danlu.serve.engine import Kind, Wish, prepare
from danlu.serve.serve import example, open_socket, serve


def show_serve(
    target: str,
    *,
    host: str,
    port: int,
    name: str | None,
    kind: Kind,
    context: int | None,
    parallel: int | None,
    key_name: str,
    verbose: bool,
) -> int:
    """Serve until a signal; the URL on stdout, once it answers. The exit code."""
    if target.startswith(("http://", "https://")):
        raise DanluError(f"{target} is served already", f"talk to it with: danlu chat {target}")
    key = _key(key_name) if key_name else ""
    if not key and not _local(host):
        warn(f"anyone who reaches {host} may ask: --api-key lets in only those who know $DANLU_API_KEY")
    sock = open_socket(host, port)
    with sock, _folder() as temporary:
        run = find_run(target)
        if run is not None and run.state() != "done":
            raise DanluError(f"{run.path} is {run.state()}, not done", "finish it first with --resume")
        recipe = Recipe.model_validate(run.config()) if run else Recipe(name="serve")
        wish = Wish(name or _name(run.name if run else target), kind, context, parallel, key)
        engine = prepare(str(run.path) if run else target, recipe, wish, Path(temporary))
        url = _url(host, sock)

        def ready() -> None:
            print(url, flush=True)
            say(f"serving {' and '.join(engine.models)} with {engine.kind}; Ctrl-C ends")
            say(example(url, engine.models[0], key_name))

        try:
            return serve(engine, sock, Path(temporary), verbose=verbose, ready=ready)
        except Stopped as error:  # it had not answered yet
            raise Stopped("stopped while the model was loading", "", error.exit_code) from None


def _folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for what this process writes; those that killed ones have left are removed first."""
    import psutil

    for left in Path(tempfile.gettempdir()).glob("danlu-serve-*-*"):
        pid = left.name.split("-")[2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"danlu-serve-{os.getpid()}-")


def _key(name: str) -> str:
    """The value of the environment's variable; DanluError when it is no key."""
    key = os.environ.get(name, "")
    if not key:
        raise DanluError(f"--api-key needs the key in {name}", f"export {name}=$(openssl rand -hex 24)")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise DanluError(f"{name} holds characters that no key has", "letters, digits and signs, without spaces")
    return key


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name(target: str) -> str:
    """What clients call it: the run's or the file's name, without what names cannot have."""
    last = Path(target.rstrip("/")).name.removesuffix(".gguf")
    return re.sub(r"[^\w.-]+", "-", last).strip("-.") or "model"


def _url(host: str, sock: socket.socket) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{shown}]" if ":" in shown else shown
    return f"http://{shown}:{sock.getsockname()[1]}/v1"
