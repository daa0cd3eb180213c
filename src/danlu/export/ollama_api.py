"""Ollama's REST API, as far as a model is made and asked through it: version, blobs, create, copy, delete, chat.

The address is OLLAMA_HOST as Ollama reads it (host, host:port, [v6]:port, http(s)://...; default 127.0.0.1:11434), and
0.0.0.0, which only a server can mean, is this machine. Files are streamed, never read whole. http.client as everywhere
here; a file is sent once and nothing is tried again, because the server that fails is the user's own.
Not covered: proxies, ollama.com, signing in, pulling and pushing.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from danlu.errors import DanluError
from danlu.generate.replies import Part, words
from danlu.records import Message

PORT = 11434
OLDEST = (0, 9, 0)  # the first with thinking in chats and templates
CONNECT = 5.0  # seconds for the first look
WAIT = 1800.0  # seconds that loading or hashing a large model may take between two signs of life
PIECE = 1 << 20  # bytes


def host() -> tuple[str, str, int, str]:
    """(scheme, host, port, path) of OLLAMA_HOST; DanluError when it is no address."""
    given = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'")
    scheme, found, rest = given.partition("://")
    if not found:
        scheme, rest = "http", given
    default = {"http": 80 if found else PORT, "https": 443}.get(scheme)
    place, _, path = rest.partition("/")
    try:
        parts = urlsplit(f"//{place}" if place.count(":") < 2 or "[" in place else f"//[{place}]")
        name, port = parts.hostname or "127.0.0.1", parts.port or default
    except ValueError:
        default = None
    if default is None:
        raise DanluError(f"OLLAMA_HOST={given} is no address", "for example: OLLAMA_HOST=127.0.0.1:11434")
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, name)
    return scheme, name, int(port or default), f"/{path}".rstrip("/")


class Absent(DanluError):
    """Nobody listens at the address."""


class Ollama:
    """One server. Every method raises DanluError with what the server said."""

    def __init__(self) -> None:
        self._scheme, self._name, self._port, self._path = host()
        shown = f"[{self._name}]" if ":" in self._name else self._name
        self.url = f"{self._scheme}://{shown}:{self._port}{self._path}"

    # ---- what is there

    def version(self, timeout: float = CONNECT) -> str | None:
        """The server's version; None where nobody listens."""
        try:
            value = self._json("GET", "/api/version", timeout=timeout)
        except Absent:
            return None
        if not isinstance(value, dict) or not isinstance(value.get("version"), str):
            raise DanluError(f"{self.url} is not an Ollama server", "OLLAMA_HOST names another one")
        return value["version"]

    def has(self, digest: str) -> bool:
        """Whether the server holds the blob "sha256:..."."""
        with self._exchange("HEAD", f"/api/blobs/{digest}") as response:
            if response.status not in (200, 404):
                raise self._refused(response)
            return response.status == 200

    # ---- making a model

    def upload(self, file: Path, digest: str, advance: Callable[[int], None]) -> None:
        """Send a file; the server checks its digest. `advance` is told the bytes of each piece sent."""
        size = file.stat().st_size

        def pieces() -> Iterator[bytes]:
            with file.open("rb") as source:
                while piece := source.read(PIECE):
                    yield piece
                    advance(len(piece))

        sent = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        with self._exchange("POST", f"/api/blobs/{digest}", pieces(), sent) as response:
            if response.status not in (200, 201):
                raise self._refused(response)
            response.read()

    def create(self, body: Mapping[str, Any]) -> Iterator[str]:
        """Make the model that `body` describes; yields what the server reports."""
        last = ""
        for event in self._events("/api/create", body):
            last = str(event.get("status", ""))
            yield last
        if last != "success":
            raise DanluError(f"{self.url} broke off while it made the model (after {last!r})", "look at its log")

    def copy(self, source: str, destination: str) -> None:
        self._json("POST", "/api/copy", {"source": source, "destination": destination})

    def delete(self, name: str) -> None:
        self._json("DELETE", "/api/delete", {"model": name})

    # ---- asking

    def rendered(self, model: str, messages: Sequence[Message], think: bool | None) -> str | None:
        """The prompt that the server makes of a chat; None where it does not tell (older versions)."""
        asked = _chat(model, messages, think) | {
            "stream": False,
            "truncate": False,
            "options": {"num_predict": 1},
            "_debug_render_only": True,
        }
        value = self._json("POST", "/api/chat", asked)
        told = value.get("_debug_info") if isinstance(value, dict) else None
        return told.get("rendered_template") if isinstance(told, dict) else None

    def ask(self, model: str, messages: Sequence[Message], think: bool | None) -> Iterator[tuple[Part, str]]:
        """The pieces of one answer as they come."""
        done = False
        for event in self._events("/api/chat", _chat(model, messages, think)):
            message = event.get("message") or {}
            if message.get("thinking"):
                yield "reasoning", message["thinking"]
            if message.get("content"):
                yield "answer", message["content"]
            done = bool(event.get("done"))
        if not done:
            raise DanluError(f"{self.url} broke off in the middle of an answer", "look at its log")

    # ---- transport

    def _events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The lines of a streamed reply; DanluError for one that tells an error."""
        with self._exchange("POST", path, {**body, "stream": True}) as response:
            if response.status != 200:
                raise self._refused(response)
            for line in response:
                if line.strip():
                    event = _parsed(line)
                    if "error" in event:
                        raise DanluError(f"Ollama at {self.url}: {event['error']}")
                    yield event

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: float = WAIT) -> Any:
        with self._exchange(method, path, body, timeout=timeout) as response:
            if response.status != 200:
                raise self._refused(response)
            data = response.read()
        return _parsed(data) if data.strip() else {}

    @contextlib.contextmanager
    def _exchange(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = WAIT,
    ) -> Iterator[http.client.HTTPResponse]:
        """One request on a connection of its own. Absent where nobody listens."""
        connection = self._connect()
        try:
            connection.timeout = CONNECT
            connection.connect()
            connection.sock.settimeout(timeout)
            sent: Any = json.dumps(body, ensure_ascii=False).encode() if isinstance(body, Mapping) else body
            try:
                kind = {"Content-Type": "application/json"} if isinstance(body, Mapping) else {}
                connection.request(method, self._path + path, sent, {**kind, **(headers or {})})
            except (BrokenPipeError, ConnectionResetError):  # refused in the middle: the reply may say why
                pass
            yield connection.getresponse()
        except ConnectionRefusedError:
            raise Absent(f"no Ollama answers at {self.url}", "start it (ollama serve), or set OLLAMA_HOST") from None
        except (OSError, http.client.HTTPException) as error:
            raise DanluError(
                f"no answer from Ollama at {self.url}: {words(error)}", "is the server well? look at its log"
            ) from None
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._scheme == "https":
            return http.client.HTTPSConnection(self._name, self._port, context=ssl.create_default_context())
        return http.client.HTTPConnection(self._name, self._port)

    def _refused(self, response: http.client.HTTPResponse) -> DanluError:
        data = response.read()
        told = ""
        with contextlib.suppress(ValueError, AttributeError):
            told = str(json.loads(data).get("error", ""))
        return DanluError(
            f"Ollama at {self.url} refuses (HTTP {response.status}): {told or data.decode(errors='replace')[:200]}"
        )


def _chat(model: str, messages: Sequence[Message], think: bool | None) -> dict[str, Any]:
    spoken = []
    for message in messages:
        turn = {"role": message["role"], "content": message["content"]}
        if message.get("reasoning_content"):
            turn["thinking"] = message["reasoning_content"]
        spoken.append(turn)
    return {"model": model, "messages": spoken, **({} if think is None else {"think": think})}


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise DanluError("Ollama sent something that is not JSON", "is OLLAMA_HOST an Ollama server?") from None


def too_old(version: str) -> bool:
    """Whether a server cannot take our templates. Builds of one's own call themselves 0.0.0 and are trusted."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    return numbers != (0, 0, 0) and numbers < OLDEST
