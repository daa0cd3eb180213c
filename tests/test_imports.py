"""What starting up costs: no torch for the recipe or the help, no network for anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import danlu

HEAVY = ("torch", "transformers", "numpy", "datasets", "peft", "matplotlib")
NO_NETWORK = """
import socket
def refuse(*args, **kwargs): raise OSError("network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


def python(code: str) -> str:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recipes_load_without_torch_and_without_network():
    out = python(
        NO_NETWORK
        + "import sys, danlu.recipe, danlu.run\n"
        + "for path in danlu.recipe.shipped().values(): danlu.recipe.load(str(path))\n"
        + f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert out.strip() == "[]"


def test_help_loads_neither_torch_nor_pydantic_models():
    out = python(
        "import sys\nfrom danlu.cli import main\n"
        "assert main(['--help']) == 0\n"
        f"print([name for name in {(*HEAVY, 'danlu.recipe', 'rich')} if name in sys.modules], file=sys.stderr)\n"
        f"assert not [name for name in {(*HEAVY, 'danlu.recipe', 'rich')} if name in sys.modules]"
    )
    assert "Usage: danlu" in out


def test_every_light_module_imports_offline():
    """Each module of the package imports with the network refused; one process, because torch is slow to load."""
    root = Path(danlu.__file__).parent
    names = sorted(
        ".".join(("danlu", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        for path in root.rglob("*.py")
    )
    optional = ("vllm", "openai", "nicegui", "trl", "modelscope", "mlx", "mlx_lm")
    python(
        NO_NETWORK + "import importlib\n"
        f"for name in {names}:\n"
        "    try: importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error:\n"
        f"        if (error.name or '').split('.')[0] not in {optional}: raise\n"
    )
