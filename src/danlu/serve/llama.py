"""llama.cpp's server (xllamacpp) as a process of its own: `python -m danlu.serve.llama`, settings as JSON on stdin.

Settings: path, lora (a GGUF adapter or null), name, port, context, parallel, and key (a secret, therefore not an
argument). It serves on 127.0.0.1 until it is ended. Departures from llama.cpp's defaults: no web interface; no cache of
old prompts in memory (it grows to 8 GB); other web pages may not ask without a key (CORS).
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

WAITING = 128  # requests that may wait for a slot, each in a thread of the server


def main() -> None:
    from danlu.generate.gguf import parameters

    given = json.load(sys.stdin)
    import xllamacpp

    lora = Path(given["lora"]) if given["lora"] else None
    params = parameters(Path(given["path"]), context=given["context"], parallel=given["parallel"], lora=lora)
    params.port = given["port"]
    params.model_alias = {given["name"]}
    params.api_keys = [given["key"]] if given["key"] else []
    params.n_threads_http = given["parallel"] + WAITING
    params.cache_ram_mib = 0
    params.cors_origins = "*" if given["key"] else ""
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.exit(f"llama.cpp cannot load {given['path']}: {error}")
    print(server.listening_address, flush=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
