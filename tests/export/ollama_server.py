"""A server on 127.0.0.1 with the part of Ollama's API that makes and asks models.

It keeps blobs under the digest that it computes itself, makes models only of blobs that it holds, puts the model's
system text before chats without one, renders with `render` (a template that a test gives it) and answers from `answer`.
`faults` breaks one thing: upload, digest, create, torn, prompt, old, not_ollama.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class OllamaServer:
    def __init__(
        self,
        render: Callable[..., str] | None = None,
        *,
        version: str = "0.33.2",
        fault: str = "",
        debug: bool = True,
        thinks: bool = True,
    ) -> None:
        self.render, self.version, self.fault, self.debug, self.thinks = render, version, fault, debug, thinks
        self.blobs: dict[str, bytes] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, str, Any]] = []

    def __enter__(self) -> OllamaServer:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.host = f"127.0.0.1:{self._http.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def paths(self) -> list[str]:
        return [f"{method} {path.partition(':')[0]}" for method, path, _ in self.asked]


def _handler(server: OllamaServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            server.asked.append(("HEAD", self.path, None))
            self._reply(200 if self.path.rpartition("/")[2] in server.blobs else 404, b"")

        def do_GET(self) -> None:
            server.asked.append(("GET", self.path, None))
            if server.fault == "not_ollama":
                self._reply(200, b"<html>hello</html>")
            elif self.path == "/api/version":
                self._json({"version": server.version})
            else:
                self._json({"error": "no such page"}, 404)

        def do_DELETE(self) -> None:
            body = self._body()
            server.asked.append(("DELETE", self.path, body))
            if server.models.pop(body["model"], None) is None:
                self._json({"error": f"model {body['model']!r} not found"}, 404)
            else:
                self._reply(200, b"")

        def do_POST(self) -> None:
            if self.path.startswith("/api/blobs/"):
                server.asked.append(("POST", self.path, None))
                self._blob(self.path.rpartition("/")[2])
                return
            body = self._body()
            server.asked.append(("POST", self.path, body))
            {"/api/create": self._create, "/api/copy": self._copy, "/api/chat": self._chat}[self.path](body)

        # ---- what is asked

        def _blob(self, digest: str) -> None:
            if server.fault == "upload":  # refused before all of it is read, as on a full disk
                self.rfile.read(1000)
                self.close_connection = True
                self._json({"error": "no space left on device"}, 500)
                return
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if server.fault == "digest":
                data = data[:-1]
            if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
                self._json({"error": f'digest mismatch, expected "{digest}"'}, 400)
                return
            server.blobs[digest] = data
            self._reply(201, b"")

        def _create(self, body: dict[str, Any]) -> None:
            missing = [digest for digest in body["files"].values() if digest not in server.blobs]
            if missing or server.fault == "create":
                error = f"blob {missing[0]} not found" if missing else "template error: unexpected EOF"
                self._lines([{"status": "parsing GGUF"}, {"error": error}])
                return
            if server.fault == "torn":
                self._lines([{"status": "parsing GGUF"}])
                return
            server.models[body["model"]] = {key: value for key, value in body.items() if key not in ("model", "stream")}
            self._lines([{"status": status} for status in ("parsing GGUF", "writing manifest", "success")])

        def _copy(self, body: dict[str, Any]) -> None:
            server.models[body["destination"]] = server.models[body["source"]]
            self._reply(200, b"")

        def _chat(self, body: dict[str, Any]) -> None:
            model = server.models.get(body["model"])
            if model is None:
                self._json({"error": f"model '{body['model']}' not found"}, 404)
                return
            think = body.get("think")
            if think and not server.thinks:
                self._json({"error": f'"{body["model"]}" does not support thinking'}, 400)
                return
            think = True if think is None and server.thinks else think
            messages = body["messages"]
            if messages[0]["role"] != "system" and model.get("system"):
                messages = [{"role": "system", "content": model["system"]}, *messages]
            if body.get("_debug_render_only") and server.debug:
                options = {} if think is None else {"enable_thinking": think}
                text = server.render(messages, add_generation_prompt=True, **options)
                text += " " if server.fault == "prompt" else ""
                self._json({"model": body["model"], "message": {}, "_debug_info": {"rendered_template": text}})
                return
            parts = [{"thinking": "先看"}, {"thinking": "病因。"}] if think else []
            parts += [{"content": "多喝水，"}, {"content": "请看医生。"}]
            lines = [{"message": {"role": "assistant", "content": "", **part}, "done": False} for part in parts]
            if server.fault != "torn":
                lines.append({"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"})
            if body.get("stream") is False:
                self._json({"message": {"role": "assistant", "content": "多"}, "done": True})
            else:
                self._lines(lines)

        # ---- transport

        def _body(self) -> Any:
            return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

        def _json(self, value: Any, status: int = 200) -> None:
            self._reply(status, json.dumps(value).encode())

        def _reply(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _lines(self, values: list[dict[str, Any]]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.send_header("Connection", "close")
            self.end_headers()
            for value in values:
                self.wfile.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
                self.wfile.flush()
            self.close_connection = True

    return Handler
