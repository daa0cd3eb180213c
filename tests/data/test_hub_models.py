"""Base models by hub id: downloaded once from an endpoint, found again offline, nothing but weights and configs."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, json
from danlu.errors import DanluError
from danlu.models.locate import base_dir
try:
    folder = base_dir({"id": sys.argv[1]})
    print(json.dumps(sorted(path.name for path in folder.iterdir())))
except DanluError as error:
    print(json.dumps(str(error)))
"""


def fetch(name: str, cache: Path, endpoint: str, offline: str = "0"):
    """In a process of its own, because the client reads HF_ENDPOINT when it is imported."""
    settings = {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": offline}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name],
        env={**os.environ, "HF_HUB_ETAG_TIMEOUT": "2", **settings},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_model_from_an_endpoint_then_offline(hub, tmp_path):
    files = {"config.json": b"{}", "model.safetensors": b"0", "tokenizer.json": b"{}", "chat_template.jinja": b""}
    endpoint = hub({**files, "modeling_pots.py": b"raise SystemExit", "pytorch_model.bin": b"pickle"})
    assert fetch("acme/pots", tmp_path, endpoint) == sorted(files)
    assert fetch("acme/pots", tmp_path, "http://127.0.0.1:9", offline="1") == sorted(files)


def test_model_that_is_not_there_names_the_ways_out(hub, tmp_path):
    answer = fetch("acme/pans", tmp_path, hub({}))
    assert answer.startswith("cannot get the base model acme/pans")
    assert "HF_ENDPOINT" in answer
    assert "modelscope:" in answer
