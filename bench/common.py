"""What every benchmark shares: the machine, the arguments, and one JSON object on stdout."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib import metadata
from typing import Any


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux: the platform's own words stand
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="under a minute, same shape of output")
    return parser


def tell(result: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(result, ensure_ascii=False, indent=None if as_json else 2))
