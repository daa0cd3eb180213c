"""Who may ask the studio, and which files it may read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from danlu.errors import DanluError
from danlu.studio.safety import Gate, check_bind, foreign, inside, is_local, readable, run_path

TOKEN = "a-long-enough-token"


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "..", "a/../..", "link", "link/inner", "deep/link"]
)
def test_no_path_outside_the_folder(tmp_path: Path, name: str):
    root = tmp_path / "runs"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "deep" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(DanluError, match="lies outside"):
        inside(root, name)


def test_paths_inside_are_given_resolved(tmp_path: Path):
    root = tmp_path / "real"
    (root / "sft" / "artifact").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(root)  # the folder itself may be a link
    (root / "latest").symlink_to(root / "sft")
    assert inside(tmp_path / "runs", "sft/artifact") == root / "sft" / "artifact"
    assert inside(tmp_path / "runs", "latest") == root / "sft"
    assert inside(root, "sft/../sft") == root / "sft"
    assert inside(root, ".") == root


@pytest.mark.parametrize("name", ["", ".", "..", ".studio", "a/b", "..\\x", "a\0b", "/etc"])
def test_odd_names_are_no_runs(tmp_path: Path, name: str):
    with pytest.raises(DanluError, match="cannot be a run"):
        run_path(tmp_path, name)


@pytest.mark.parametrize(
    "name", ["demo-sft", "<script>alert(1)</script>".replace("/", ""), "中文 名", "%2e%2e", "a b#?"]
)
def test_odd_names_of_runs_are_names(tmp_path: Path, name: str):
    assert run_path(tmp_path, name) == tmp_path.resolve() / name


def test_a_loop_of_links_is_refused(tmp_path: Path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DanluError):
        inside(tmp_path, "a/x")


def test_readable_is_what_was_named(tmp_path: Path):
    (tmp_path / "named").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "named" / "out").symlink_to(tmp_path / "other")
    assert readable(tmp_path / "named" / "rows.jsonl", [tmp_path / "named"])
    assert not readable(tmp_path / "named" / ".." / "other", [tmp_path / "named"])
    assert not readable(tmp_path / "named" / "out" / "rows.jsonl", [tmp_path / "named"])
    assert not readable("a\0b", [tmp_path])
    assert not readable(tmp_path, [])


def test_other_machines_need_a_token():
    check_bind("127.0.0.1", None)
    check_bind("::1", None)
    check_bind("0.0.0.0", TOKEN)
    for host in ("0.0.0.0", "192.168.1.5", "::", "studio.example"):
        with pytest.raises(DanluError, match="other machines") as told:
            check_bind(host, None)
        assert "--token" in told.value.hint
    with pytest.raises(DanluError, match="shorter than"):
        check_bind("0.0.0.0", "short")


def test_local_names():
    assert all(map(is_local, ("localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]")))
    assert not any(map(is_local, ("0.0.0.0", "", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1")))


def test_pages_of_other_sites_and_rebound_names_are_foreign():
    assert foreign({"host": "127.0.0.1:8600"}, True) is None
    assert foreign({"host": "localhost:9"}, True) is None
    assert foreign({"host": "[::1]:8600", "origin": "http://[::1]:8600"}, True) is None
    assert foreign({"host": "evil.example:8600"}, True)
    assert foreign({"host": "evil.example:8600"}, False) is None
    assert foreign({}, True)
    for origin in ("http://evil.example", "null", "http://127.0.0.1:3000", "http://localhost:8600", "http://[", ""):
        assert foreign({"host": "127.0.0.1:8600", "origin": origin}, True), origin
        assert foreign({"host": "127.0.0.1:8600", "origin": origin}, False), origin


# ---- the gate, asked as a server asks it


def ask(gate: Gate, kind: str = "http", query: str = "", path: str = "/", **headers: str) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    names = {"host": "127.0.0.1:8600", **headers}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in names.items()]
    scope = {"type": kind, "path": path, "query_string": query.encode(), "headers": raw}
    asyncio.run(gate(scope, receive, send))
    return sent


async def inner(scope: dict[str, Any], _receive: Any, send: Any) -> None:
    start = "http.response.start" if scope["type"] == "http" else "websocket.accept"
    await send({"type": start, "status": 200, "headers": []})


def passed(sent: list[dict[str, Any]]) -> bool:
    return sent[0]["type"] == "websocket.accept" or sent[0].get("status") == 200


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_the_gate_on_this_machine(kind: str):
    gate = Gate(inner)
    assert passed(ask(gate, kind))
    assert not passed(ask(gate, kind, host="evil.example"))
    assert not passed(ask(gate, kind, origin="http://evil.example"))


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_the_gate_asks_for_its_token(kind: str):
    gate = Gate(inner, TOKEN, 8600)
    assert passed(ask(gate, kind, cookie=f"danlu_token_8600={TOKEN}"))
    assert passed(ask(gate, kind, host="box.example", cookie=f"a=b; danlu_token_8600={TOKEN}"))
    for cookie in (
        "",
        "danlu_token_8600=",
        "danlu_token_8600=wrong",
        f"danlu_token_1={TOKEN}",
        "danlu_token_8600=\xff",
    ):
        assert not passed(ask(gate, kind, cookie=cookie)), cookie
    assert not passed(ask(gate, kind))
    assert not passed(ask(gate, kind, "token=wrong"))
    assert not passed(ask(gate, kind, cookie=f"danlu_token_8600={TOKEN}", origin="http://evil.example"))


def test_the_token_moves_into_a_cookie():
    gate = Gate(inner, TOKEN, 8600)
    assert not passed(ask(gate, "websocket", f"token={TOKEN}"))  # pages alone are opened by address
    start = ask(gate, "http", f"token={TOKEN}&base=a+b", "//evil.example/x")[0]
    headers = dict(start["headers"])
    assert start["status"] == 303
    assert headers[b"location"] == b"/evil.example/x?base=a+b"
    assert b"HttpOnly" in headers[b"set-cookie"]
    assert b"SameSite=Strict" in headers[b"set-cookie"]
    assert TOKEN.encode() in headers[b"set-cookie"]


def test_browsers_are_told_to_ask_nobody_else():
    headers = dict(ask(Gate(inner))[0]["headers"])
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert b"frame-ancestors 'none'" in headers[b"content-security-policy"]
    assert b"http" not in headers[b"content-security-policy"]
