"""Shared real data and tokenizers (skipped where absent), a second domain, and a small stand-in for the hub."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pottery
import pytest

from danlu.think import ThinkFormat, detect

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
TOKENIZERS = {
    "qwen3": ("Qwen3-1.7B", ("<|im_end|>", "<|endoftext|>")),
    "qwen2.5": ("Qwen2.5-Instruct", ("<|endoftext|>", "<|im_end|>")),  # as generation configs list them
    "r1": ("DeepSeek-R1-Distill-Qwen", ("<｜end▁of▁sentence｜>",)),
}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not (SHARED / "data").is_dir():
        pytest.skip("no shared data")
    return SHARED / "data"


@pytest.fixture(scope="session")
def model_format() -> Callable[[str], tuple[Any, ThinkFormat]]:
    """name -> (tokenizer, its ThinkFormat); skips where the real tokenizers are absent."""
    loaded: dict[str, tuple[Any, ThinkFormat]] = {}

    def get(name: str) -> tuple[Any, ThinkFormat]:
        folder, ends = TOKENIZERS[name]
        if not (SHARED / "tokenizers" / folder).is_dir():
            pytest.skip("no shared tokenizers")
        if name not in loaded:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(SHARED / "tokenizers" / folder)

            def render(messages: Any, **options: Any) -> str:
                return tokenizer.apply_chat_template(messages, tokenize=False, **options)

            loaded[name] = tokenizer, detect(render, ends)
        return loaded[name]

    return get


@pytest.fixture
def domain():
    return pottery.DOMAIN


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], str]:
    """write(name, rows or text or bytes) -> path; rows become JSON lines, or one array for .json."""

    def make(name: str, content: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            dump = [json.dumps(row, ensure_ascii=False) for row in content]
            content = f"[{','.join(dump)}]" if name.endswith(".json") else "\n".join(dump) + "\n"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return make


@pytest.fixture
def hub() -> Iterator[Callable[..., str]]:
    """hub({path: content}, v2={...}) serves the data set (or model) acme/pots as both hubs do; returns its endpoint.

    The first is what stands at main; others are further revisions by their names.
    """
    servers = []

    def serve(repository: dict[str, bytes], **others: dict[str, bytes]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler({"main": repository, **others}))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def _handler(revisions: dict[str, dict[str, bytes]]) -> type[BaseHTTPRequestHandler]:
    commits = {name: "abcdef"[place] * 40 for place, name in enumerate(revisions)}
    contents = {commit: revisions[name] for name, commit in commits.items()}

    class Hub(BaseHTTPRequestHandler):
        commit = commits["main"]

        def do_GET(self) -> None:
            path, _, asked = self.path.partition("?")
            path = path.replace("/api/models/", "/api/datasets/")  # a model repository of the same name
            query = {key: values[0] for key, values in parse_qs(asked).items()}
            place, _, rest = path.removeprefix("/datasets").removeprefix("/acme/pots/resolve/").partition("/")
            api = "/api/datasets/acme/pots/"
            if path.startswith(f"{api}revision/"):
                wanted = path.removeprefix(f"{api}revision/")
                self.commit = commits.get(wanted, wanted)
                if self.commit not in contents:
                    self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
                    return
                siblings = [{"rfilename": key} for key in contents[self.commit]]
                self.answer(json.dumps({"id": "acme/pots", "sha": self.commit, "siblings": siblings}).encode())
            elif path.startswith(f"{api}tree/"):
                self.commit = path.removeprefix(f"{api}tree/")
                entries = [
                    {"type": "file", "path": key, "size": len(value), "oid": hashlib.sha1(value).hexdigest()}
                    for key, value in contents[self.commit].items()
                ]
                self.answer(json.dumps(entries).encode())
            elif path == "/api/v1/datasets/acme/pots/repo/tree":  # ModelScope's way
                self.commit = commits[{"master": "main"}.get(query["Revision"], query["Revision"])]
                found = [
                    {"Path": key, "Name": key, "Type": "blob", "Size": len(value), "Revision": self.commit}
                    | {"Sha256": hashlib.sha256(value).hexdigest()}
                    for key, value in contents[self.commit].items()
                ]
                data = {"Files": found, "TotalCount": len(found)}
                self.answer(json.dumps({"Code": 200, "Success": True, "Data": data}).encode())
            elif path == "/api/v1/datasets/acme/pots/repo":
                revision = query.get("Revision", "main")
                self.commit = commits.get({"master": "main"}.get(revision, revision), revision)
                self.answer(contents[self.commit][query["FilePath"]])
            elif rest in contents.get(place, {}):
                self.commit = place
                self.answer(contents[place][rest])
            else:
                self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def answer(self, body: bytes, status: int = 200, extra: dict[str, str] | None = None) -> None:
            self.send_response(status)
            headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": self.commit, **(extra or {})}
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Hub
