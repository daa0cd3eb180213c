"""The wire to one model on one chat endpoint: connections, retries, time-outs, what the server takes and does not take.

Requests are limited in number, tried again with exponential backoff and jitter, and wait as Retry-After says. It speaks
through the standard library's http.client: neither `openai` nor `httpx` is a dependency of ours (huggingface_hub has
changed its client twice), the protocol is one POST and one GET, and so there is one place that decides what is tried
again and where a key may go. Past 400 lines, because what is tried again, left out and given up is one decision.
Not covered: SOCKS proxies.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

from danlu import display
from danlu.errors import DanluError
from danlu.generate.replies import (
    KEYS,
    Choice,
    Unanswered,
    address,
    choices_of,
    events,
    headers,
    parsed,
    retry_after,
    said_in,
    scrubbed,
    words,
)

CONNECT = 10.0  # seconds to connect, and for the first look at the server
PATIENCE = 300.0  # the longest Retry-After that is waited for, in seconds
LONGEST = 30.0  # the longest backoff without Retry-After, in seconds
LARGEST = 64 << 20  # bytes of a reply
IN_A_ROW = 20  # requests that fail one after the other before an endpoint counts as down

_DROPPABLE = ("chat_template_kwargs", "seed", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_OWN_SAMPLING: dict[str, dict[str, Any]] = {
    "vllm": _NEUTRAL,
    "sglang": _NEUTRAL,
    "llamacpp": {"samplers": ["temperature", "top_p"]},
}
_NO_MODEL = re.compile(r"model[^.]{0,80}(not exist|not found|does ?n.t exist|unknown)|no such model|模型不存在", re.I)
T = TypeVar("T")


class Cancel:
    """Ends the requests that carry it: their sockets are shut, their waits are over."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def over(self, sock: socket.socket) -> Iterator[None]:
        """The socket is shut if `now` is called inside the block; after `now` it is not entered."""
        with self._lock:
            if self.event.is_set():
                raise ConnectionAbortedError("cancelled")
            self._sockets.add(sock)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(sock)

    def now(self) -> None:
        with self._lock:
            self.event.set()
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)  # SSLSocket's own is not safe across threads


class Endpoint:
    """One model of one server. `target`: "http://host:port/v1", with "#model" where it serves several.

    `concurrency`: requests at once, over all threads. `timeout`: seconds one request may take. `retries`: further
    attempts after the first; `backoff`: seconds before the first of them, doubled each time.
    DanluError when the address is wrong, nobody listens, the key is refused or the model cannot be told.
    """

    def __init__(
        self, target: str, *, concurrency: int = 8, timeout: float = 600.0, retries: int = 5, backoff: float = 0.5
    ) -> None:
        self._scheme, self.host, self._port, self._path, model = address(target)
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff
        self._places = threading.BoundedSemaphore(concurrency)
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._answered, self._failed_in_a_row, self._warnings = False, 0, 0
        self._left_out: set[str] = set()
        self._usage: dict[str, float] = dict.fromkeys(
            ("requests", "retries", "failed", "prompt_tokens", "completion_tokens", "seconds"), 0
        )
        self.model, self.extra = self._look(model)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, model={self.model!r})"

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self.host}{self._path}"

    def close(self) -> None:
        """Close the kept connections; the object stays usable."""
        while self._idle:
            self._idle.pop().close()

    def usage(self) -> dict[str, float]:
        """Requests, retries, failed requests, tokens as the server counts them, and seconds summed over requests."""
        with self._lock:
            return dict(self._usage)

    # ---- asking

    def chat(self, body: Mapping[str, Any], cancel: Cancel | None = None) -> list[Choice]:
        """The choices of one chat completion; `model` is added to `body`. Unanswered after the retries."""

        def once() -> list[Choice]:
            start = time.monotonic()
            sent = self._body(body)
            with self._exchange("POST", "/chat/completions", sent, self.timeout, cancel) as (response, read):
                data = read()
            self._check(response.status, response.headers, data, sent)
            choices, prompt, written = choices_of(parsed(data), int(body.get("max_tokens") or 0))
            with self._lock:
                self._answered, self._failed_in_a_row = True, 0
            self._count(prompt_tokens=prompt, completion_tokens=written, seconds=time.monotonic() - start)
            return choices

        return self._persist(once, cancel)

    def stream(self, body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """(reasoning, content) deltas of one chat as they are written; leaving the loop early ends the request.

        Tried again only before the first piece. DanluError when the stream breaks off or the request is refused.
        """
        with contextlib.ExitStack() as stack:

            def start() -> http.client.HTTPResponse:
                sent = {**self._body(body), "stream": True}
                with contextlib.ExitStack() as opened:
                    exchange = self._exchange("POST", "/chat/completions", sent, self.timeout, None)
                    response, read = opened.enter_context(exchange)
                    if response.status != 200:
                        self._check(response.status, response.headers, read(), sent)
                    stack.push(opened.pop_all())
                return response

            try:
                response = self._persist(start, None)
                if "json" in (response.headers.get("Content-Type") or ""):  # a server that does not stream
                    for one in choices_of(parsed(scrubbed(response.read())), 0)[0]:
                        yield one.reasoning, one.content
                else:
                    yield from events(response)
            except Unanswered as error:
                raise DanluError(f"{self.host}: {error.message}", "is the server well? its log knows more") from None
            except (http.client.HTTPException, OSError, ValueError) as error:
                raise DanluError(f"{self.host}: the stream broke off ({words(error)})", "ask again") from None

    def models(self) -> list[str]:
        """Ids that /v1/models lists. Unanswered when it lists none."""
        return [model for model, _ in self._models()]

    def gave_up(self, error: Unanswered) -> None:
        """Count an item that failed for good. DanluError when nothing was ever reachable, or IN_A_ROW fail in a row.

        A refused request says nothing about a server that has answered others: it is not counted then.
        """
        with self._lock:
            self._usage["failed"] += 1
            if error.kind == "refused" and self._answered:
                return
            self._failed_in_a_row += 1
            down = error.kind == "unreachable" and not self._answered
            row = self._failed_in_a_row
        if down or row >= IN_A_ROW:
            what = "cannot be reached" if down else f"failed {row} times in a row"
            raise DanluError(
                f"{self.host} {what}: {error.message}",
                "what was answered before is kept; look at the server, then go on with --resume",
            )

    def warn(self, text: str) -> None:
        """A warning on stderr; after five the rest is only counted."""
        with self._lock:
            self._warnings += 1
            said = self._warnings
        if said <= 5:
            display.warn(f"{self.host}: {text}" + ("; further failures are only counted" if said == 5 else ""))

    def _body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        full = {"model": self.model, **self.extra, **body}
        if "max_tokens" in self._left_out and "max_tokens" in full:
            full["max_completion_tokens"] = full["max_tokens"]
        return {name: value for name, value in full.items() if name not in self._left_out}

    def _count(self, **figures: float) -> None:
        with self._lock:
            for name, value in figures.items():
                self._usage[name] += value

    def _persist(self, once: Callable[[], T], cancel: Cancel | None, *, look: bool = False) -> T:
        """`once`, tried again unless it was refused; it holds a place only while it asks.

        A `look` at the server takes no place (a request that failed may want one) and only waits for a busy server.
        """
        ended = cancel.event if cancel else threading.Event()
        attempt = 0
        while True:
            ended.wait(max(0.0, self._not_before - time.monotonic()))
            with contextlib.nullcontext() if look else self._places:
                if ended.is_set():
                    raise Unanswered("busy", "cancelled")
                self._count(requests=1)
                try:
                    return once()
                except Unanswered as found:
                    error = found
            if error.kind == "changed":  # at once, and no attempt is used up
                continue
            final = error.kind == "refused" or (look and error.kind != "busy")
            if final or ended.is_set() or attempt >= self.retries or error.wait > PATIENCE:
                raise error
            if error.wait:
                self._not_before = max(self._not_before, time.monotonic() + error.wait)  # the server means everybody
            self._count(retries=1)
            ended.wait(max(error.wait, min(LONGEST, self.backoff * 2**attempt) * random.uniform(0.5, 1.0)))
            attempt += 1

    def _check(self, status: int, headers: Any, data: bytes, sent: Mapping[str, Any]) -> None:
        """Unanswered or DanluError for everything but 200."""
        if status == 200:
            return
        message, code = said_in(data)
        said = f"HTTP {status}" + (f": {message}" if message else "")
        if status in (401, 403):
            given = next((name for name in KEYS if os.environ.get(name)), None)
            raise DanluError(
                f"{self.host} refuses the key ({said})",
                f"the key in {given} is not accepted" if given else f"export a key as {KEYS[0]} (or {KEYS[1]})",
            )
        if status in (400, 422):
            if _NO_MODEL.search(message) or code == "model_not_found":
                raise self._no_model(said)
            if self._leave_out(message, sent):
                raise Unanswered("changed", said)
        if status in (400, 413, 422):
            raise Unanswered("refused", said)
        if status == 404:
            raise self._no_model(said)
        if code == "insufficient_quota" or status == 402:
            raise DanluError(f"{self.host}: {said}", "the account behind the key has nothing left")
        if status in (408, 409, 425, 429) or status >= 500:
            raise Unanswered("busy", said, retry_after(headers))
        where = headers.get("Location")
        raise DanluError(
            f"{self.host} answers with {said}",
            f"it points to {where}; give that address" if where else "is this the address of a chat endpoint (…/v1)?",
        )

    def _leave_out(self, message: str, sent: Mapping[str, Any]) -> bool:
        """Whether the server named a parameter that it does not take and that it can be asked without."""
        named = "max_tokens" if "max_completion_tokens" in message else ""
        named = named or next((n for n in _DROPPABLE if re.search(rf"\b{n}\b", message)), "")
        if named not in sent:
            return False
        with self._lock:
            new = named not in self._left_out
            self._left_out.add(named)
        if new and named != "max_tokens":
            display.warn(f"{self.host} does not take {named} and is asked without it ({message[:120]})")
        return True

    def _no_model(self, said: str) -> DanluError:
        try:
            served = self.models()
        except (Unanswered, DanluError):
            served = []
        if served and self.model not in served:
            return DanluError(f"{self.host} has no model {self.model!r}", f"it serves: {', '.join(served[:20])}")
        return DanluError(
            f"{self.url} has no chat endpoint for {self.model!r} ({said})", "is the address right (…/v1)?"
        )

    # ---- the first look

    def _look(self, wanted: str) -> tuple[str, dict[str, Any]]:
        """(model, extra fields of its server's sampling); DanluError when the server is down from the start."""
        self.model = wanted
        try:
            served = self._models()
        except Unanswered as error:
            if error.kind == "unreachable":
                raise DanluError(f"{self.url} cannot be reached: {error.message}", "is the server running?") from None
            if not wanted:
                raise DanluError(
                    f"{self.url} does not list its models: {error.message}",
                    f"is the address right (…/v1)? or name the model: {self.url}#MODEL",
                ) from None
            return wanted, {}
        names = [name for name, _ in served]
        if not wanted and len(names) > 1:
            raise DanluError(
                f"{self.host} serves {len(names)} models: {', '.join(names[:20])}", f"name one: {self.url}#{names[0]}"
            )
        model = wanted or names[0]
        owner = next((owner for name, owner in served if name == model), "")
        return model, _OWN_SAMPLING.get(owner, {})

    def _models(self) -> list[tuple[str, str]]:
        """(id, owner) of each model; waits for a server that still loads its model (503)."""

        def once() -> list[tuple[str, str]]:
            with self._exchange("GET", "/models", None, min(self.timeout, CONNECT), None) as (response, read):
                data = read()
            if response.status in (400, 404, 405, 422, 501) or (response.status == 403 and self.model):
                raise Unanswered("refused", f"{self._path}/models gives HTTP {response.status}")
            self._check(response.status, response.headers, data, {})
            value = parsed(data)
            entries = value.get("data") if isinstance(value, dict) else value
            if not isinstance(entries, list) or not entries:
                raise Unanswered("broken", "no list of models")
            if not all(isinstance(entry, dict) and isinstance(entry.get("id"), str) for entry in entries):
                raise Unanswered("broken", "a list of models without ids")
            return [(entry["id"], str(entry.get("owned_by") or "")) for entry in entries]

        return self._persist(once, None, look=True)

    # ---- transport

    @contextlib.contextmanager
    def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float, cancel: Cancel | None
    ) -> Iterator[tuple[http.client.HTTPResponse, Callable[[], bytes]]]:
        """One request: its response, and a function that reads the body inside `timeout` seconds.

        The connection is kept when the body was read to its end, and closed otherwise.
        """
        deadline = time.monotonic() + timeout
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        connection, sock = None, None
        try:
            connection, sock, response = self._request(method, path, data, deadline, cancel)

            def read() -> bytes:
                parts, size, whole = [], 0, response.length  # None: chunked, or until the server closes
                with (cancel or Cancel()).over(sock):
                    while size != whole and (part := response.read1(1 << 16)):
                        parts.append(part)
                        size += len(part)
                        left = deadline - time.monotonic()
                        if size > LARGEST:
                            raise Unanswered("broken", "an endless reply")
                        if left <= 0:
                            raise TimeoutError
                        sock.settimeout(left)
                if size == whole:
                    response.close()
                return scrubbed(b"".join(parts))

            yield response, read
            if response.isclosed() and not response.will_close:
                self._idle.append(connection)
                connection = None
        except TimeoutError:
            raise Unanswered("busy", f"no answer within {timeout:g} s") from None
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise Unanswered("busy", f"the connection broke ({words(error)})") from None
        finally:
            if connection is not None:
                connection.close()

    def _request(
        self, method: str, path: str, data: bytes | None, deadline: float, cancel: Cancel | None
    ) -> tuple[http.client.HTTPConnection, socket.socket, http.client.HTTPResponse]:
        """A response's head, over a kept connection where there is one that the server did not drop meanwhile."""
        while True:
            kept = True
            try:
                connection = self._idle.pop()
            except IndexError:
                connection, kept = self._connect(), False
            sock = connection.sock
            try:
                sock.settimeout(max(0.01, deadline - time.monotonic()))
                with (cancel or Cancel()).over(sock):
                    connection.request(method, self._place(path), data, headers())
                    return connection, sock, connection.getresponse()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                connection.close()
                if not kept or (cancel and cancel.event.is_set()):
                    raise
            except BaseException:
                connection.close()
                raise

    def _place(self, path: str) -> str:
        plain = self._path + path
        return f"http://{self.host}{plain}" if self._scheme == "http" and self._proxy() else plain

    def _proxy(self) -> str:
        name = self._name()
        if name == "localhost" or name.startswith("127.") or name == "::1" or urllib.request.proxy_bypass(name):
            return ""
        return urllib.request.getproxies().get(self._scheme, "")

    def _name(self) -> str:
        return urlsplit(f"//{self.host}").hostname or ""

    def _connect(self) -> http.client.HTTPConnection:
        """A new connection, through the proxy of the environment where there is one."""
        name, port, proxy = self._name(), self._port, self._proxy()
        through = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else None
        if through and through.scheme != "http":
            raise DanluError(f"a {through.scheme} proxy is not supported", f"use an HTTP proxy, or NO_PROXY={name}")
        if through:
            name, port = through.hostname or "", through.port or 80
        secure = self._scheme == "https"
        connection: http.client.HTTPConnection
        if secure:
            connection = http.client.HTTPSConnection(name, port, timeout=CONNECT, context=ssl.create_default_context())
        else:
            connection = http.client.HTTPConnection(name, port, timeout=CONNECT)
        if through and secure:
            connection.set_tunnel(self._name(), self._port)
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            raise DanluError(
                f"the certificate of {self.host} is not trusted ({error.verify_message})",
                "SSL_CERT_FILE names a file with the authority that signed it",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unanswered("unreachable", words(error)) from None
        return connection


def as_finished(jobs: Iterable[Callable[[], T]], workers: int, cancel: Cancel) -> Iterator[tuple[int, T]]:
    """Yield (index, result) of each job as it finishes, `workers` at once.

    The first exception of a job is raised after the results that are there; leaving early cancels what runs.
    """
    todo = enumerate(jobs)
    with ThreadPoolExecutor(workers) as pool:
        try:
            waiting: dict[Future[T], int] = {}
            while True:
                for index, job in islice(todo, 2 * workers - len(waiting)):
                    waiting[pool.submit(job)] = index
                if not waiting:
                    return
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                errors = [error for future in done if (error := future.exception())]
                for future in done:
                    index = waiting.pop(future)
                    if not future.exception():
                        yield index, future.result()
                if errors:
                    raise errors[0]
        finally:
            cancel.now()
            pool.shutdown(wait=True, cancel_futures=True)
