"""Who may ask, and which files may be read.

Files: a name must lead, after every symbolic link, to something inside a folder that the user named. Requests: on
127.0.0.1 the Host must be this machine and the Origin must be the page's own, so that neither a foreign page nor a
name that was rebound to 127.0.0.1 gets an answer; elsewhere a token is asked for, once in the address and from then on
in a cookie. Both hold for web sockets too. A content policy keeps the browser from asking anybody else for anything.

Not covered: TLS (put a proxy in front, or a tunnel), several users with rights of their own.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Awaitable, Callable, Iterable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from danlu.errors import DanluError

Scope = dict[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

LEAST_TOKEN = 12  # characters
# styles and scripts are in the page itself, and Vue compiles templates; nothing comes from anywhere else
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


# ---- files


def inside(root: Path, name: str | Path) -> Path:
    """`root`/`name` with every link followed; DanluError where that is not inside `root`.

    `name` may be absolute. The path need not exist.
    """
    try:
        base = root.resolve()
        path = (base / name).resolve()
    except (OSError, ValueError, RuntimeError):  # a null byte, a loop of links
        raise DanluError(f"{str(name)!r} is not a path") from None
    if path != base and base not in path.parents:
        raise DanluError(f"{str(name)!r} lies outside {root}", "the studio reads its runs folder and nothing else")
    return path


def run_path(root: Path, name: str) -> Path:
    """The directory of the run called `name`: directly under `root`, and no link out of it."""
    if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
        raise DanluError(f"{name!r} cannot be a run", "a run is a directory in the runs folder")
    return inside(root, name)


def readable(path: str | Path, roots: Iterable[Path]) -> bool:
    """Whether a path, links followed, is one of `roots` or inside one."""
    try:
        real = Path(path).expanduser().resolve()
        return any(real == root or root in real.parents for root in (root.resolve() for root in roots))
    except (OSError, ValueError, RuntimeError):
        return False


# ---- requests


def is_local(host: str) -> bool:
    """Whether an address to listen on, or a Host without its port, is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(host: str, token: str | None) -> None:
    """DanluError where others could reach the studio without a token, or with one that is soon guessed."""
    if token is not None and len(token) < LEAST_TOKEN:
        raise DanluError(f"the token is shorter than {LEAST_TOKEN} characters", f"for example: {fresh_token()}")
    if token is None and not is_local(host):
        raise DanluError(
            f"{host} can be reached from other machines, and whoever opens the studio can start and stop runs",
            f"give a token: --token {fresh_token()}, or DANLU_STUDIO_TOKEN; or leave out --host",
        )


def fresh_token() -> str:
    return secrets.token_urlsafe(18)


class Gate:
    """ASGI middleware in front of everything, web sockets too. `token` None: this machine alone may ask."""

    def __init__(self, app: App, token: str | None = None, port: int = 0) -> None:
        self.app, self.token = app, token
        self.cookie = f"danlu_token_{port}"  # cookies do not tell ports apart

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = foreign(headers, self.token is None)
        if refusal is None and self.token is not None and not self._known(headers):
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if scope["type"] == "http" and self._right(given):
                await self._welcome(scope, send)
                return
            refusal = "this studio asks for its token: add ?token=... to the address, as danlu studio printed it"
        if refusal:
            await _refuse(scope, receive, send, refusal)
            return
        await self.app(scope, receive, _with_headers(send))

    def _right(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "replace"), (self.token or "").encode())

    def _known(self, headers: dict[str, str]) -> bool:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return found is not None and self._right(found.value)

    async def _welcome(self, scope: Scope, send: Any) -> None:
        """The token moves from the address, which histories keep, into a cookie that no script reads."""
        query = {k: v for k, v in parse_qs(scope["query_string"].decode("latin-1")).items() if k != "token"}
        # one slash: "//host" would be another site
        target = "/" + scope["path"].lstrip("/\\") + (f"?{urlencode(query, doseq=True)}" if query else "")
        cookie = SimpleCookie({self.cookie: self.token or ""})
        for key, value in (("path", "/"), ("httponly", True), ("samesite", "Strict")):
            cookie[self.cookie][key] = value
        sent = [(b"location", target.encode("ascii", "ignore")), (b"set-cookie", cookie.output(header="").encode())]
        await send({"type": "http.response.start", "status": 303, "headers": [*sent, *HEADERS]})
        await send({"type": "http.response.body", "body": b""})


def foreign(headers: dict[str, str], local_only: bool) -> str | None:
    """Why a request comes from somewhere else (a page of another site, a name bound to this address), or None."""
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
        origin = headers.get("origin")
        same = origin is None or urlsplit(origin).netloc == host
    except ValueError:
        return "the Host or Origin of this request cannot be read"
    if local_only and not is_local(name):
        return "this studio answers to 127.0.0.1 and localhost alone; danlu studio --token allows other names"
    return None if same else "this request comes from a page of another site"


def _with_headers(send: Any) -> Any:
    async def sending(message: Scope) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await send(message)

    return sending


async def _refuse(scope: Scope, receive: Any, send: Any, reason: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": reason[:120]})
        return
    body = f"{reason}\n".encode()
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": [*head, *HEADERS]})
    await send({"type": "http.response.body", "body": body})
