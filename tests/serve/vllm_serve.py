"""A stand-in for `vllm serve` over transformers and peft: its options, its key, its endpoints, its reasoning parsers.

vLLM itself needs a GPU. This keeps what `danlu serve` relies on as of vLLM 0.10 (entrypoints/openai): options are
parsed and unknown ones refused, VLLM_API_KEY guards /v1, base and adapter are models of their own, the end tokens come
from --generation-config, qwen3 wants both tags and deepseek_r1 only the closing one. Answers are greedy, one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_one = Lock()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    serve = parser.add_subparsers(required=True).add_parser("serve", allow_abbrev=False)
    serve.add_argument("model_tag")
    serve.add_argument("--host")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--served-model-name", nargs="+")
    serve.add_argument("--tokenizer")
    serve.add_argument("--dtype", choices=["auto", "half", "float16", "bfloat16", "float", "float32"], default="auto")
    serve.add_argument("--generation-config", default="auto")
    serve.add_argument("--quantization", choices=["bitsandbytes"])
    serve.add_argument("--enable-lora", action="store_true")
    serve.add_argument("--max-loras", type=int, default=1)
    serve.add_argument("--max-lora-rank", type=int, choices=RANKS, default=16)
    serve.add_argument("--lora-modules", nargs="+", default=[])
    serve.add_argument("--reasoning-parser", choices=["deepseek_r1", "qwen3"])
    serve.add_argument("--max-model-len", type=int)
    serve.add_argument("--max-num-seqs", type=int)
    return parser.parse_args()


def split(parser: str | None, text: str) -> tuple[str | None, str]:
    """(reasoning_content, content) as vLLM's parser makes them."""
    if parser is None or "</think>" not in text:
        return (text, "") if parser == "deepseek_r1" else (None, text)
    if parser == "qwen3" and "<think>" not in text:
        return None, text
    inner, _, rest = text.partition("</think>")
    return inner.replace("<think>", "").strip("\n"), rest


def main() -> None:
    given = arguments()
    if record := os.environ.get("VLLM_STAND_IN_RECORD"):
        Path(record).write_text(json.dumps(vars(given)), "utf-8")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(given.model_tag, dtype=torch.float32)
    made = AutoTokenizer.from_pretrained(given.tokenizer or given.model_tag)
    names = list(given.served_model_name or [given.model_tag])
    if given.enable_lora:
        from peft import PeftModel

        for module in given.lora_modules:
            name, _, path = module.partition("=")
            rank = json.loads((Path(path) / "adapter_config.json").read_text("utf-8"))["r"]
            assert rank <= given.max_lora_rank, "LoRA rank is greater than max_lora_rank"
            model = PeftModel.from_pretrained(model, path)
            names.append(name)
    config = json.loads((Path(given.generation_config) / "generation_config.json").read_text("utf-8"))

    def answer(body: dict[str, Any]) -> tuple[str | None, str]:
        kwargs = body.get("chat_template_kwargs") or {}
        prompt = made.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True, **kwargs)
        ids = made(prompt, add_special_tokens=False, return_tensors="pt")
        plain = given.enable_lora and body["model"] == given.served_model_name[0]
        with _one, torch.inference_mode():
            held = model.disable_adapter() if plain else torch.inference_mode()
            with held:
                limit = body.get("max_tokens") or 64
                out = model.generate(
                    **ids, max_new_tokens=limit, do_sample=False, eos_token_id=config["eos_token_id"], pad_token_id=0
                )
        tokens = [
            token for token in out[0, ids["input_ids"].shape[1] :].tolist() if token not in config["eos_token_id"]
        ]
        return split(given.reasoning_parser, made.decode(tokens, skip_special_tokens=False))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            if self.path == "/health":
                self._json(200, {})
            elif self._let_in():
                self._json(200, {"object": "list", "data": [_model(name) for name in names]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._let_in():
                return
            if body["model"] not in names:
                self._json(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
                return
            reasoning, content = answer(body)
            message = {"role": "assistant", "reasoning_content": reasoning, "content": content}
            base = {"id": "1", "created": int(time.time()), "model": body["model"]}
            if not body.get("stream"):
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                self._json(200, {**base, "object": "chat.completion", "choices": [choice]})
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for delta, finish in (({"reasoning_content": reasoning}, None), ({"content": content}, None), ({}, "stop")):
                choice = {"index": 0, "delta": delta, "finish_reason": finish}
                event = json.dumps({**base, "object": "chat.completion.chunk", "choices": [choice]})
                self.wfile.write(f"data: {event}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def _let_in(self) -> bool:
            key = os.environ.get("VLLM_API_KEY")
            if key and self.headers.get("Authorization") != f"Bearer {key}":
                self._json(401, {"error": "Unauthorized"})
                return False
            return True

        def _json(self, status: int, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    ThreadingHTTPServer((given.host, given.port), Handler).serve_forever()


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "vllm"}


if __name__ == "__main__":
    main()
