"""What every benchmark shares: the machine, the arguments, one JSON object on stdout, and the figures kept of it."""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


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


def place(device: str, *others: str) -> dict[str, Any]:
    """`machine`, the name of the GPU where the benchmark ran on one, and the versions of `others` it ran beside."""
    told = machine() | {name: metadata.version(name) for name in others}
    if device == "cuda":
        import torch

        told |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return told


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="under a minute, same shape of output")
    return parser


def device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--write", action="store_true", help="append the figures to bench/results/NAME.json")


def dtype_argument(parser: argparse.ArgumentParser) -> None:
    text = "number format of both sides (default: bf16 where this device is fast at it, else fp32)"
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto", help=text)


def hide_gpus(device: str) -> None:
    """Call before torch looks for GPUs: a benchmark of the CPU does not see any."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def dtype_of(wanted: str) -> str:
    """`auto` as Danlu's own `dtype: auto` chooses on the visible device."""
    from danlu.models.load import native_bf16

    return ("bf16" if native_bf16() else "fp32") if wanted == "auto" else wanted


def append(result: dict[str, Any]) -> Path:
    """Add a result, with the hour of it, to the list in bench/results; earlier ones stay."""
    path = RESULTS / f"{result['name']}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    kept.append({"measured": datetime.now(UTC).isoformat(timespec="minutes"), **result})
    new = path.with_suffix(".new")
    new.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    new.replace(path)
    return path


def tell(result: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(result, ensure_ascii=False, indent=None if as_json else 2))
