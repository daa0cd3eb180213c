"""The address that clients know: it hands bytes to the engine behind it, and closes so that running answers finish.

Why: none of the engines drains in the same way, and llama.cpp's server in a process not at all. The door knows no HTTP
beyond the head of a request, in which it asks the engine to close the connection after the answer (RFC 9112, 9.6): each
connection carries one request, so what is open is what is running. Queues, batches, keys and errors are the engine's.
A client that leaves closes the engine's side too, which ends the work for it.
Departures: clients that only half-close their side count as gone. Not covered: TLS, WebSockets, HTTP/2.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket

HEAD = 64 << 10  # bytes of a request's head at most
ASK = 60.0  # seconds that a client may take to send it
PIECE = 64 << 10
_CONNECTION = re.compile(rb"\r\n(?:connection|keep-alive)[ \t]*:[^\r]*", re.I)


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not yet listening; OSError when it is taken or not of this machine."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    return found


def one_request(head: bytes) -> bytes:
    """A request's head (with its empty line) that asks for the connection to be closed after the answer."""
    plain = _CONNECTION.sub(b"", head)
    return plain[: -len(b"\r\n")] + b"Connection: close\r\n\r\n"


class Door:
    """Between clients and the engine at 127.0.0.1:`port`. `answering`: requests that are being answered."""

    def __init__(self, port: int) -> None:
        self.port, self.answering = port, 0
        self._waiting: set[asyncio.StreamWriter] = set()  # connections that have not asked yet
        self._over = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._open = False

    async def open(self, sock: socket.socket) -> None:
        """Let clients in through a bound socket."""
        self._open = True
        self._server = await asyncio.start_server(self._client, sock=sock, limit=HEAD, backlog=1024)

    async def close(self) -> None:
        """Let nobody in any more; returns when the last running answer has been given."""
        self._open = False
        if self._server is not None:
            self._server.close()
        for writer in self._waiting:
            writer.close()
        while self.answering:
            self._over.clear()
            await self._over.wait()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self._waiting.add(writer)
            async with asyncio.timeout(ASK):
                head = await reader.readuntil(b"\r\n\r\n")
            self._waiting.discard(writer)
            if not self._open:
                return
            self.answering += 1
            try:
                await self._answer(head, reader, writer)
            finally:
                self.answering -= 1
                self._over.set()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client left, or is none: its connection ends, nobody else's
        finally:
            self._waiting.discard(writer)
            writer.close()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand one request on; over when the engine has closed its side or the client has left."""
        from_engine, to_engine = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            to_engine.write(one_request(head))
            ways = [asyncio.ensure_future(_pass(from_engine, writer)), asyncio.ensure_future(_pass(reader, to_engine))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()  # the last bytes are with the client
        finally:
            to_engine.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes from one side to the other until it has no more."""
    with contextlib.suppress(OSError):
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()
