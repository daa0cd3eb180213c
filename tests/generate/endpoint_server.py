"""A small OpenAI-like server on 127.0.0.1 whose replies a test scripts: failures, delays, streams, torn bodies."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends. `body`: JSON value, text or bytes; `events`: a stream; `cut`: bytes after which it hangs
    up although more was announced; `delay`: seconds before it answers."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    events: Iterable[Any] | None = None


@dataclass
class Asked:
    """One request: the path, the JSON body (None for GET) and the headers in lower case."""

    path: str
    body: Any
    headers: dict[str, str]
    at: float


def chat(content: Any = "ok", finish: Any = "stop", n: int = 1, tokens: int = 3, **message: Any) -> Reply:
    """A whole chat completion."""
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
    return Reply({"object": "chat.completion", "choices": [{"index": i, **choice} for i in range(n)], "usage": usage})


def error(status: int, message: str, **headers: str) -> Reply:
    """An error as OpenAI words it."""
    return Reply(
        {"error": {"message": message, "type": "x"}}, status, {k.replace("_", "-"): v for k, v in headers.items()}
    )


class FakeServer:
    """`answer(asked, number of the chat request) -> Reply` in a thread; `models`: ids, or a Reply for /v1/models."""

    def __init__(self, answer: Callable[[Asked, int], Reply], models: list[str] | Reply | None = None) -> None:
        self.answer, self.models = answer, ["tiny"] if models is None else models
        self.asked: list[Asked] = []
        self.most_at_once = self._now = 0
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.host = f"127.0.0.1:{self._http.server_port}"
        self.url = f"http://{self.host}/v1"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        for one in self._sockets:  # kept connections die with the server
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    @property
    def connections(self) -> int:
        return len(self._sockets)

    @property
    def bodies(self) -> list[Any]:
        return [one.body for one in self.asked if one.body is not None]

    def _reply(self, asked: Asked) -> Reply:
        with self._lock:
            number = len(self.bodies)
            self.asked.append(asked)
            self._now += asked.body is not None
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            if asked.body is None:
                listed = self.models
                reply = listed if isinstance(listed, Reply) else Reply({"data": [{"id": name} for name in listed]})
            else:
                reply = self.answer(asked, number)
            time.sleep(reply.delay)
            return reply
        finally:
            with self._lock:
                self._now -= asked.body is not None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                fake._sockets.append(self.request)
                super().setup()

            def do_GET(self) -> None:
                self._send(None)

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                with contextlib.suppress(ValueError):  # half a request: the client left
                    self._send(json.loads(data))

            def _send(self, body: Any) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                try:
                    self._write(fake._reply(Asked(self.path, body, headers, time.monotonic())))
                except OSError:  # the client left
                    self.close_connection = True

            def _write(self, reply: Reply) -> None:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.events is not None:
                    self.send_header("Content-Type", "text/event-stream")
                    self.send_header("Connection", "close")
                    self.end_headers()
                    for event in reply.events:
                        text = event if isinstance(event, str) else f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
                        self.wfile.write(text.encode())
                        self.wfile.flush()
                    self.close_connection = True
                    return
                body = reply.body
                data = body if isinstance(body, bytes) else body if isinstance(body, str) else json.dumps(body)
                data = data if isinstance(data, bytes) else data.encode()
                self.send_header("Content-Type", "text/html" if data[:1] == b"<" else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: reply.cut])
                if reply.cut is not None:
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
