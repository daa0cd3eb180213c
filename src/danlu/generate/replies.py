"""What a chat endpoint says, and where it is: replies, streams, errors, addresses and keys, without any connection.

The key is read from the environment for each request and kept nowhere; should a server echo it, it is taken out.
"""

from __future__ import annotations

import email.utils
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from danlu import __version__
from danlu.errors import DanluError
from danlu.records import Finish

KEYS = ("DANLU_API_KEY", "OPENAI_API_KEY")  # the first that is set; set to nothing it means: send none
_FINISH: dict[str, Finish] = {"stop": "stop", "eos": "stop", "length": "length", "content_filter": "error"}
Kind = Literal["unreachable", "busy", "broken", "refused", "changed"]
Part = Literal["reasoning", "answer"]


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


def choices_of(value: Any, max_tokens: int) -> tuple[list[Choice], int, int]:
    """(choices, prompt tokens, completion tokens) of a reply; Unanswered when it is not a chat completion."""
    entries = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(entries, list) or not entries:
        raise Unanswered("broken", f"a reply without choices{error_in(value)}")
    usage = value.get("usage") if isinstance(value.get("usage"), dict) else {}
    prompt, written = (_whole(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    found = []
    for place, entry in enumerate(entries):
        message = entry.get("message") if isinstance(entry, dict) else None
        if not isinstance(message, dict):
            raise Unanswered("broken", "a choice without a message")
        inner, content = text_of(message.get("content"))
        reasoning = inner or text_of(message.get("reasoning_content") or message.get("reasoning"))[1]
        reason = entry.get("finish_reason")
        if reason == "insufficient_system_resource":
            raise Unanswered("busy", "the server broke the answer off for want of resources")
        if reason is None and written:  # some servers say nothing; the count tells
            reason = "length" if max_tokens and written >= max_tokens * len(entries) else "stop"
        share = written // len(entries) + (place < written % len(entries))
        found.append(Choice(reasoning, content, _FINISH.get(str(reason), "error"), share))
    return found, prompt, written


def text_of(value: Any) -> tuple[str, str]:
    """(reasoning, text) of a content: a string, nothing, or a list of parts."""
    if value is None or isinstance(value, str):
        return "", value or ""
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise Unanswered("broken", f"a content of type {type(value).__name__}")
    thought = "".join(text_of(part["thinking"])[1] for part in value if "thinking" in part)
    return thought, "".join(text_of(part.get("text"))[1] for part in value if "thinking" not in part)


def events(response: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """(reasoning, content) deltas of a server-sent event stream; Unanswered when it ends before the answer does."""
    ended = False
    for line in response:
        field, _, data = scrubbed(line).decode("utf-8", "replace").partition(":")
        if field != "data":
            continue
        if data.strip() == "[DONE]":
            return
        event = parsed(data.encode())
        if isinstance(event, dict) and event.get("error"):
            raise Unanswered("broken", error_in(event).lstrip(": "))
        entries = event.get("choices") if isinstance(event, dict) else None
        entry = entries[0] if isinstance(entries, list) and entries else {}
        delta = entry.get("delta") if isinstance(entry, dict) else None
        if isinstance(delta, dict):
            inner, content = text_of(delta.get("content"))
            reasoning = inner or text_of(delta.get("reasoning_content") or delta.get("reasoning"))[1]
            if reasoning or content:
                yield reasoning, content
        ended = ended or bool(isinstance(entry, dict) and entry.get("finish_reason"))
    if not ended:
        raise Unanswered("broken", "the stream ended before the answer did")


def tagged(deltas: Iterable[tuple[str, str]], inside: bool, opening: str, closing: str) -> Iterator[tuple[Part, str]]:
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


def parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        page = data.lstrip()[:1] == b"<"
        raise Unanswered("broken", "a web page instead of JSON" if page else "a reply that is not JSON") from None


def said_in(data: bytes) -> tuple[str, str]:
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


def error_in(value: Any) -> str:
    found = said_in(json.dumps(value).encode())[0] if isinstance(value, dict) and value.get("error") else ""
    return f": {found}" if found else ""


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0


def retry_after(headers: Any) -> float:
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


def address(target: str) -> tuple[str, str, int | None, str, str]:
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


def key_of() -> str:
    """The key of the environment, or nothing."""
    name = next((name for name in KEYS if name in os.environ), None)
    key = os.environ[name].strip() if name else ""
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise DanluError(
            f"{name} holds characters that no key has", "copy the key again, without spaces or line breaks"
        )
    return key


def headers() -> dict[str, str]:
    key = key_of()
    given = {"Authorization": f"Bearer {key}"} if key else {}
    return {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "User-Agent": f"danlu/{__version__}",
        **given,
    }


def scrubbed(data: bytes) -> bytes:
    """What a server said without the key, should it echo it (keys of fewer than 8 characters are no secrets)."""
    key = key_of().encode()
    return data.replace(key, b"***") if len(key) >= 8 else data


def words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
