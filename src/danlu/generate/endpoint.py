"""Any OpenAI-compatible server as a Generator: `/v1/chat/completions` over HTTP.

Method: `Endpoint` is the wire to one model on one server, with a limit on requests at once, retries with exponential
backoff and jitter, Retry-After, and kept connections; `EndpointGenerator` makes Completions of its replies, and a judge
uses the same wire. It speaks through the standard library's http.client: neither `openai` nor `httpx` is a dependency
of ours (huggingface_hub has changed its client twice), the protocol is one POST and one GET, and so there is one place
that decides what is tried again and where a key may go. The key is read from DANLU_API_KEY or OPENAI_API_KEY for each
request and kept nowhere; should a server echo it, it is taken out of what the server said.

The server applies its own chat template to the messages: what the model really saw is known to the server alone.
Reasoning comes from the field `reasoning_content` or `reasoning`, or from `<think>` tags in the content, also where
the template had opened the block and the content holds only the closing tag. `Completion.tokens` holds UNKNOWN as many
times as the server counted tokens, because servers give counts and no ids.

Departures: where /v1/models says that vLLM, SGLang or llama.cpp answers, their own top-k, min-p and penalties are
switched off so that temperature and top-p alone sample, as everywhere here. A parameter that a server names as
unsupported (seed, temperature, top_p, max_tokens, chat_template_kwargs) is left out or renamed, with a warning.
Not covered: defaults that other servers add by themselves, the Responses API, tools, images, log-probs, SOCKS proxies.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from danlu import __version__, display
from danlu.errors import DanluError
from danlu.generate import Sampling
from danlu.generate.gguf import completion
from danlu.records import Completion, Finish, Message
from danlu.think import ThinkFormat

KEYS = ("DANLU_API_KEY", "OPENAI_API_KEY")  # the first that is set; set to nothing it means: send none
CONNECT = 10.0  # seconds to connect, and for the first look at the server
PATIENCE = 300.0  # the longest Retry-After that is waited for, in seconds
LONGEST = 30.0  # the longest backoff without Retry-After, in seconds
LARGEST = 64 << 20  # bytes of a reply
IN_A_ROW = 20  # requests that fail one after the other before an endpoint counts as down
UNKNOWN = -1  # a token whose id the server does not tell

PLAIN = ThinkFormat("none")
# the reasoning is a field of its own, or the model writes both tags
THINK = ThinkFormat("think", "<think>", "</think>", "model", head="<think>\n", bridge="\n</think>\n\n")
OPENED = replace(THINK, opened_by="template", prefix="<think>\n", head="")  # the content starts inside the block

_DROPPABLE = ("chat_template_kwargs", "seed", "temperature", "top_p")
_FINISH: dict[str, Finish] = {"stop": "stop", "eos": "stop", "length": "length", "content_filter": "error"}
_NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_OWN_SAMPLING: dict[str, dict[str, Any]] = {
    "vllm": _NEUTRAL,
    "sglang": _NEUTRAL,
    "llamacpp": {"samplers": ["temperature", "top_p"]},
}
_NO_MODEL = re.compile(r"model[^.]{0,80}(not exist|not found|does ?n.t exist|unknown)|no such model|模型不存在", re.I)
Kind = Literal["unreachable", "busy", "broken", "refused", "changed"]
Part = Literal["reasoning", "answer"]
T = TypeVar("T")


class Unanswered(Exception):
    """A request without a usable reply. `kind`: unreachable, busy (429, 5xx, time-outs, broken connections), broken
    (a reply that is not what it should be), refused (4xx that blame this request; never tried again) or changed (the
    server named a parameter that it does not take; `chat` and `stream` ask again without it)."""

    def __init__(self, kind: Kind, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.kind, self.message, self.wait = kind, message, wait


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer of a reply, as the server split it. `tokens`: its share of the tokens the server counted."""

    reasoning: str
    content: str
    finish: Finish
    tokens: int = 0


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
        self._scheme, self.host, self._port, self._path, model = _address(target)
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
            choices, prompt, written = _choices(_parsed(data), int(body.get("max_tokens") or 0))
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
                    for one in _choices(_parsed(_scrub(response.read())), 0)[0]:
                        yield one.reasoning, one.content
                else:
                    yield from _events(response)
            except Unanswered as error:
                raise DanluError(f"{self.host}: {error.message}", "is the server well? its log knows more") from None
            except (http.client.HTTPException, OSError, ValueError) as error:
                raise DanluError(f"{self.host}: the stream broke off ({_words(error)})", "ask again") from None

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
        message, code = _said(data)
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
            raise Unanswered("busy", said, _retry_after(headers))
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
            value = _parsed(data)
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
                return _scrub(b"".join(parts))

            yield response, read
            if response.isclosed() and not response.will_close:
                self._idle.append(connection)
                connection = None
        except TimeoutError:
            raise Unanswered("busy", f"no answer within {timeout:g} s") from None
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise Unanswered("busy", f"the connection broke ({_words(error)})") from None
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
                    connection.request(method, self._place(path), data, _headers())
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
            raise Unanswered("unreachable", _words(error)) from None
        return connection


class EndpointGenerator:
    """A Generator over an Endpoint. `thinking`: switch the reasoning of a template on or off; None leaves it alone.

    `think` None: found in each reply; `think` is then PLAIN until the first reply that reasoned. The other settings
    are Endpoint's.
    """

    def __init__(
        self, target: str, *, think: ThinkFormat | None = None, thinking: bool | None = None, **settings: Any
    ) -> None:
        self.endpoint = Endpoint(target, **settings)
        self.name = f"{self.endpoint.host}/{self.endpoint.model}"
        self.think, self._given, self.thinking = think or PLAIN, think, thinking
        self._takes_n = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def __enter__(self) -> EndpointGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.endpoint.close()

    def usage(self) -> dict[str, float]:
        """What the endpoint counted so far (see `Endpoint.usage`)."""
        return self.endpoint.usage()

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index, completions) of each chat as it finishes.

        What fails after the retries, is refused or filtered is a completion with finish "error". DanluError when the
        endpoint is down, refuses the key or does not know the model; what was yielded before stays valid.
        """
        cancel = Cancel()
        jobs = [functools.partial(self._answers, i, chat, sampling, cancel) for i, chat in enumerate(prompts)]
        return as_finished(jobs, self.endpoint.concurrency, cancel)

    def chat_stream(self, messages: Sequence[Message], sampling: Sampling | None = None) -> Iterator[tuple[Part, str]]:
        """Yield the pieces of one answer as they are written; leaving the loop early ends the request.

        Not known beforehand: that content starts inside a think block. The first such answer streams as "answer" up to
        its closing tag, later ones are split.
        """
        seen = ["", ""]

        def deltas() -> Iterator[tuple[str, str]]:
            for reasoning, content in self.endpoint.stream(self._body(messages, sampling or Sampling(), None)):
                seen[0], seen[1] = seen[0] + reasoning, seen[1] + content
                yield reasoning, content

        tags = self.think if self.think.style != "none" else THINK
        yield from _tagged(deltas(), tags.opened_by == "template", tags.open, tags.close)
        self._format(*seen)

    def _body(self, messages: Sequence[Message], sampling: Sampling, seed: int | None) -> dict[str, Any]:
        body: dict[str, Any] = {
            "messages": [{"role": turn["role"], "content": turn["content"]} for turn in messages],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if seed is not None and sampling.temperature > 0:
            body["seed"] = seed % (2**31 - 1)
        if self.thinking is not None:
            body["chat_template_kwargs"] = {"enable_thinking": self.thinking}
        return body

    def _answers(self, index: int, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> list[Completion]:
        """All completions of one chat: in one request where the server takes `n`, else one by one."""
        wanted, seed, refused = sampling.samples, sampling.seed + index * sampling.samples, False
        found: list[Completion] = []
        if wanted > 1 and self._takes_n:
            try:
                choices = self.endpoint.chat({**self._body(messages, sampling, seed), "n": wanted}, cancel)
                found = [self._completion(one) for one in choices][:wanted]
                self._takes_n = len(found) == wanted
            except Unanswered as error:
                refused = error.kind == "refused"  # the number, or the chat itself?
                if not refused:
                    return [self._failed(error, cancel)] * wanted
        while len(found) < wanted:
            try:
                body = self._body(messages, sampling, seed + len(found))
                found.append(self._completion(self.endpoint.chat(body, cancel)[0]))
                self._takes_n = self._takes_n and not refused
            except Unanswered as error:
                every = wanted - len(found) if error.kind == "refused" else 1
                found += [self._failed(error, cancel)] * every
        return found

    def _failed(self, error: Unanswered, cancel: Cancel) -> Completion:
        if not cancel.event.is_set():
            self.endpoint.warn(error.message)
            self.endpoint.gave_up(error)
        return Completion("", "", "", "error", False)

    def _completion(self, choice: Choice) -> Completion:
        format = self._format(choice.reasoning, choice.content)
        made = completion(format, choice.reasoning, choice.content, choice.finish)
        whole = made.well_formed and choice.finish == "stop"
        return replace(made, well_formed=whole, tokens=(UNKNOWN,) * choice.tokens)

    def _format(self, reasoning: str, content: str) -> ThinkFormat:
        """The format of one reply; the first that reasons tells `think`."""
        given = self._given
        if given and given.style != "think" and not reasoning:
            return given
        if reasoning or content.lstrip().startswith(THINK.open):
            found = given if given and given.style == "think" else THINK
        elif THINK.close in content and THINK.open not in content.partition(THINK.close)[0]:
            found = given if given and given.opened_by == "template" else OPENED
        else:  # no trace of reasoning; after replies that began inside the block this one has not left it
            return given or (OPENED if self.think is OPENED else PLAIN)
        if self.think is PLAIN:
            self.think = found
        return found


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


# ---- reading replies


def _choices(value: Any, max_tokens: int) -> tuple[list[Choice], int, int]:
    """(choices, prompt tokens, completion tokens) of a reply; Unanswered when it is not a chat completion."""
    entries = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(entries, list) or not entries:
        raise Unanswered("broken", f"a reply without choices{_error_in(value)}")
    usage = value.get("usage") if isinstance(value.get("usage"), dict) else {}
    prompt, written = (_whole(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    found = []
    for place, entry in enumerate(entries):
        message = entry.get("message") if isinstance(entry, dict) else None
        if not isinstance(message, dict):
            raise Unanswered("broken", "a choice without a message")
        inner, content = _text(message.get("content"))
        reasoning = inner or _text(message.get("reasoning_content") or message.get("reasoning"))[1]
        reason = entry.get("finish_reason")
        if reason == "insufficient_system_resource":
            raise Unanswered("busy", "the server broke the answer off for want of resources")
        if reason is None and written:  # some servers say nothing; the count tells
            reason = "length" if max_tokens and written >= max_tokens * len(entries) else "stop"
        share = written // len(entries) + (place < written % len(entries))
        found.append(Choice(reasoning, content, _FINISH.get(str(reason), "error"), share))
    return found, prompt, written


def _text(value: Any) -> tuple[str, str]:
    """(reasoning, text) of a content: a string, nothing, or a list of parts."""
    if value is None or isinstance(value, str):
        return "", value or ""
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise Unanswered("broken", f"a content of type {type(value).__name__}")
    thought = "".join(_text(part["thinking"])[1] for part in value if "thinking" in part)
    return thought, "".join(_text(part.get("text"))[1] for part in value if "thinking" not in part)


def _events(response: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """(reasoning, content) deltas of a server-sent event stream; Unanswered when it ends before the answer does."""
    ended = False
    for line in response:
        field, _, data = _scrub(line).decode("utf-8", "replace").partition(":")
        if field != "data":
            continue
        if data.strip() == "[DONE]":
            return
        event = _parsed(data.encode())
        if isinstance(event, dict) and event.get("error"):
            raise Unanswered("broken", _error_in(event).lstrip(": "))
        entries = event.get("choices") if isinstance(event, dict) else None
        entry = entries[0] if isinstance(entries, list) and entries else {}
        delta = entry.get("delta") if isinstance(entry, dict) else None
        if isinstance(delta, dict):
            inner, content = _text(delta.get("content"))
            reasoning = inner or _text(delta.get("reasoning_content") or delta.get("reasoning"))[1]
            if reasoning or content:
                yield reasoning, content
        ended = ended or bool(isinstance(entry, dict) and entry.get("finish_reason"))
    if not ended:
        raise Unanswered("broken", "the stream ended before the answer did")


def _tagged(deltas: Iterable[tuple[str, str]], inside: bool, opening: str, closing: str) -> Iterator[tuple[Part, str]]:
    """Split deltas whose content may hold think tags, cut anywhere, into pieces without the tags."""
    held, state = "", "reasoning" if inside else "start"
    for reasoning, content in deltas:
        if reasoning:
            yield "reasoning", reasoning
        held += content
        if state == "start":  # nothing but the beginning can open the block
            held = held.lstrip()
            if held.startswith(opening):
                held, state = held[len(opening) :], "reasoning"
            elif opening.startswith(held):
                continue
            else:
                state = "answer"
        if state == "reasoning":
            inner, closed, rest = held.partition(closing)
            keep = 0 if closed else max(n for n in range(len(closing)) if inner.endswith(closing[:n]))
            held, state = (rest, "after") if closed else (inner[len(inner) - keep :], state)
            if piece := inner[: len(inner) - keep]:
                yield "reasoning", piece
        if state == "after":
            held = held.lstrip()
            state = "answer" if held else state
        if state == "answer" and held:
            yield "answer", held
            held = ""
    if held:
        yield ("reasoning" if state == "reasoning" else "answer"), held


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        page = data.lstrip()[:1] == b"<"
        raise Unanswered("broken", "a web page instead of JSON" if page else "a reply that is not JSON") from None


def _said(data: bytes) -> tuple[str, str]:
    """(message, code) of an error reply in any of the usual shapes."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return ("a web page" if data.lstrip()[:1] == b"<" else data.decode("utf-8", "replace").strip()[:200]), ""
    inner = value.get("error", value) if isinstance(value, dict) else value
    if not isinstance(inner, dict):
        return str(inner)[:300], ""
    message = inner.get("message") or inner.get("detail") or ""
    return (message if isinstance(message, str) else json.dumps(message))[:300], str(inner.get("code") or "")


def _error_in(value: Any) -> str:
    found = _said(json.dumps(value).encode())[0] if isinstance(value, dict) and value.get("error") else ""
    return f": {found}" if found else ""


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0


def _retry_after(headers: Any) -> float:
    """Seconds that a server asks to wait; 0 where it does not."""
    value = (headers.get("Retry-After") or "").strip()
    try:
        return max(0.0, min(float(value), 1e9))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


# ---- addresses and keys


def _address(target: str) -> tuple[str, str, int | None, str, str]:
    """(scheme, host:port, port, path, model or "") of a target; DanluError when it is no usable address."""
    hint = "example: http://127.0.0.1:8000/v1 or http://127.0.0.1:8000/v1#model"
    try:
        parts = urlsplit(target.strip())
        name, port = parts.hostname, parts.port
    except ValueError:
        raise DanluError("the address of the endpoint cannot be read", hint) from None
    if parts.username is not None or parts.password is not None or parts.query:
        raise DanluError("an endpoint's address takes no user, password or query", f"export the key as {KEYS[0]}")
    if parts.scheme not in ("http", "https") or not name:
        raise DanluError(f"{target} is not the address of an endpoint", hint)
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    host = f"[{name}]" if ":" in name else name
    return parts.scheme, host if port is None else f"{host}:{port}", port, path, unquote(parts.fragment)


def _key() -> str:
    """The key of the environment, or nothing."""
    name = next((name for name in KEYS if name in os.environ), None)
    key = os.environ[name].strip() if name else ""
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise DanluError(
            f"{name} holds characters that no key has", "copy the key again, without spaces or line breaks"
        )
    return key


def _headers() -> dict[str, str]:
    key = _key()
    given = {"Authorization": f"Bearer {key}"} if key else {}
    return {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "User-Agent": f"danlu/{__version__}",
        **given,
    }


def _scrub(data: bytes) -> bytes:
    """What a server said without the key, should it echo it (keys of fewer than 8 characters are no secrets)."""
    key = _key().encode()
    return data.replace(key, b"***") if len(key) >= 8 else data


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
