"""Start an engine, wait until it answers, open the door, and end in order.

The engine is a process of its own on a free port of 127.0.0.1 (it ends with this one; on Linux also when this one is
killed). SIGTERM or Ctrl-C closes the door: running answers finish, nobody else is let in, exit 0. A second signal ends
at once, exit 143 or 130.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from danlu.display import say, warn
from danlu.errors import DanluError
from danlu.serve.door import Door, bound
from danlu.serve.engine import Engine, given

LOOK = 0.1  # seconds between two looks at an engine that loads
PATIENCE = 10.0  # seconds that an engine has to end by itself


def open_socket(host: str, port: int) -> socket.socket:
    """The bound socket of the address; DanluError when it cannot be had."""
    try:
        return bound(host, port)
    except OSError as error:
        if isinstance(error, socket.gaierror):
            raise DanluError(
                f"{host} is not an address of this machine: {error.strerror}", "--host 127.0.0.1"
            ) from None
        raise DanluError(f"cannot serve at {host}:{port}: {error.strerror}", "--port 0 takes a free port") from None


def serve(engine: Engine, sock: socket.socket, folder: Path, *, verbose: bool, ready: Callable[[], None]) -> int:
    """Run `engine` behind the bound socket until a signal; `ready` is called when it answers. The exit code.

    DanluError when the engine ends by itself.
    """
    port = _free_port()
    with (folder / "engine.log").open("w+b") as log, _running(engine, port, None if verbose else log) as process:
        say(f"loading with {engine.kind}")
        _wait(process, engine, port, log)
        return asyncio.run(_served(process, engine, port, sock, log, ready))


@contextlib.contextmanager
def _running(engine: Engine, port: int, log: IO[bytes] | None) -> Iterator[subprocess.Popen[bytes]]:
    """The engine's process; ended with the block."""
    command, stdin = given(engine, port)
    environment = os.environ | engine.environment
    dies_with_us = None
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl  # looked up here: after the fork nothing may be loaded
        dies_with_us = partial(prctl, 1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log or sys.stderr,
            stderr=log or sys.stderr,
            env=environment,
            cwd=engine.folder,
            start_new_session=True,  # Ctrl-C in the terminal is for us alone
            preexec_fn=dies_with_us,
        )
    except OSError as error:
        raise DanluError(f"cannot start {command[0]}: {error.strerror}", "--engine names another") from None
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(stdin)
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL to it and its children where that does not do."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], engine: Engine, port: int, log: IO[bytes]) -> None:
    """Until the engine says that it is healthy; DanluError when it ends before."""
    while not _healthy(port):
        if process.poll() is not None:
            raise _ended(process, engine, log)
        time.sleep(LOOK)


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _ended(process: subprocess.Popen[bytes], engine: Engine, log: IO[bytes]) -> DanluError:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    said = f": {lines[-1][:300]}" if lines else ""
    return DanluError(f"{engine.kind} ended with exit code {process.returncode}{said}", "-v shows all that it says")


async def _served(
    process: subprocess.Popen[bytes],
    engine: Engine,
    port: int,
    sock: socket.socket,
    log: IO[bytes],
    ready: Callable[[], None],
) -> int:
    """Let clients in until a signal or the engine's end; the exit code."""
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, signals.put_nowait, int(number))
    door = Door(port)
    try:
        await door.open(sock)
        ready()
        first = asyncio.ensure_future(signals.get())
        while not first.done():
            if process.poll() is not None:
                raise _ended(process, engine, log)
            await asyncio.wait([first], timeout=0.5)
        return await _closed(door, signals, process)
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


async def _closed(door: Door, signals: asyncio.Queue[int], process: subprocess.Popen[bytes]) -> int:
    """Close the door; 0 when the running answers are given, else the code of the second signal."""
    closing = asyncio.ensure_future(door.close())
    await asyncio.sleep(0)
    if door.answering:
        say(f"finishing {door.answering} answers; once more ends at once")
    second = asyncio.ensure_future(signals.get())
    while not closing.done() and not second.done():
        if process.poll() is not None:
            warn("the server ended before its answers did")
            return 1
        await asyncio.wait([closing, second], timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
    if closing.done():
        second.cancel()
        return 0
    closing.cancel()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return 128 + second.result()


def example(url: str, model: str, key_name: str) -> str:
    """A question by curl."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "你好"}]}, ensure_ascii=False)
    key = f' -H "Authorization: Bearer ${key_name}"' if key_name else ""
    return f"curl {url}/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
