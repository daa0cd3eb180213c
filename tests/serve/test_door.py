"""The door: one request a connection, bytes as they are, clients that leave, and an end that waits for answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from danlu.serve.door import Door, bound, one_request

Engine = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def test_the_head_asks_for_one_answer() -> None:
    head = b"POST /v1 HTTP/1.1\r\nHost: a\r\nconnection: keep-alive\r\nKeep-Alive: 5\r\nX-Connection: b\r\n\r\n"
    assert one_request(head) == b"POST /v1 HTTP/1.1\r\nHost: a\r\nX-Connection: b\r\nConnection: close\r\n\r\n"
    assert one_request(b"GET / HTTP/1.1\r\n\r\n") == b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"


def through(engine: Engine, work: Callable[[Door, int], Awaitable[Any]]) -> Any:
    """What `work(door, port)` gives with a door before `engine`."""

    async def go() -> Any:
        behind = await asyncio.start_server(engine, "127.0.0.1", 0)
        door, sock = Door(behind.sockets[0].getsockname()[1]), bound("127.0.0.1", 0)
        await door.open(sock)
        try:
            return await asyncio.wait_for(work(door, sock.getsockname()[1]), 30)
        finally:
            behind.close()

    return asyncio.run(go())


def test_every_byte_comes_through_both_ways() -> None:
    body = bytes(range(256)) * 4096  # 1 MiB, with anything that looks like a head in it

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Connection: close" in head
        writer.write(await reader.readexactly(len(body)))
        await writer.drain()
        writer.close()

    async def ask(_door: Door, port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\n\r\n" + body)
        return await reader.read()

    assert through(echo, ask) == body


def test_a_client_that_leaves_ends_the_work() -> None:
    left: list[bool] = []

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"begun")
        left.append(await reader.read() == b"")

    async def leave(door: Door, port: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.readexactly(5) == b"begun"
        assert door.answering == 1
        writer.close()
        while door.answering or not left:
            await asyncio.sleep(0.01)
        return door.answering

    assert through(endless, leave) == 0
    assert left == [True]


def test_closing_waits_for_answers_and_lets_nobody_in() -> None:
    finish = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"half ")
        await finish.wait()
        writer.write(b"whole")
        writer.close()

    async def close(door: Door, port: int) -> bytes:
        idle, _ = await asyncio.open_connection("127.0.0.1", port)  # has not asked
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.readexactly(5) == b"half "
        closing = asyncio.ensure_future(door.close())
        assert await idle.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert not closing.done()
        finish.set()
        rest = await reader.read()
        await closing
        return rest

    assert through(slow, close) == b"whole"


def test_a_head_without_an_end_and_an_engine_that_is_gone() -> None:
    async def never(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def ask(door: Door, port: int) -> list[bytes]:
        found = []
        for sent in (b"x" * 100_000, b"GET / HTTP/1.1\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            try:
                found.append(await reader.read())
            except ConnectionResetError:
                found.append(b"")
        while door.answering:
            await asyncio.sleep(0.01)
        return found

    assert through(never, ask) == [b"", b""]


def test_a_port_that_is_taken() -> None:
    with bound("127.0.0.1", 0) as sock:
        sock.listen()
        with pytest.raises(OSError, match="in use"):
            bound("127.0.0.1", sock.getsockname()[1])
