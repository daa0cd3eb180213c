"""Checkpoints to resume from: staged, fsynced, listed in a manifest with hashes, then renamed into place.

    checkpoints/step_000100/   trainable.safetensors  best.safetensors (if any)  optimizer.pt  state.json  manifest.json

A directory without a manifest, or whose files do not match it, does not exist for `latest`. A process may be killed
between any two system calls: what is written is hidden until it is whole, what is removed is hidden first, and the
next save clears what was left.
optimizer.pt is read with weights_only=True: tensors and plain values, no code.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from danlu import display
from danlu.errors import DanluError
from danlu.run import file_sha256, read_json, write_json

Tensors = dict[str, torch.Tensor]


def save(
    folder: Path, step: int, tensors: Tensors, optimizer: Any, state: dict[str, Any], best: Tensors | None, keep: int
) -> Path:
    """Write checkpoint `step` and remove all but the `keep` newest. OSError (disk full) leaves the older ones."""
    target = folder / f"step_{step:06d}"
    if _sound(target):  # the same step of the same run: nothing new
        return target
    _sweep(folder)
    staged = folder / f".step_{step:06d}.staged"
    staged.mkdir(parents=True)
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(staged / "trainable.safetensors"))
        if best is not None:
            save_file(best, str(staged / "best.safetensors"))
        torch.save(optimizer, staged / "optimizer.pt")
        write_json(staged / "state.json", {"step": step, **state})
        for file in staged.iterdir():
            _fsync(file)
        write_json(staged / "manifest.json", {file.name: file_sha256(file) for file in sorted(staged.iterdir())})
        _fsync(staged)
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        if isinstance(error, (RuntimeError, SafetensorError)):  # how torch and safetensors report a full disk
            raise OSError(str(error).strip().splitlines()[0]) from error
        raise
    _remove(target)
    os.replace(staged, target)
    _fsync(folder)
    found = listed(folder)
    place = found.index(target) + 1
    for other in [*found[: max(0, place - keep)], *found[place:]]:  # later ones are damaged: we resumed before them
        _remove(other)
    return target


def _remove(path: Path) -> None:
    """Remove a checkpoint so that half of it is never taken for one: hide it first."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.removed")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Clear what a killed process left: half-written, half-removed, or without a manifest."""
    whole = set(listed(folder))
    for left in [*folder.glob(".step_*"), *(path for path in folder.glob("step_*") if path not in whole)]:
        shutil.rmtree(left, ignore_errors=True)


def listed(folder: Path) -> list[Path]:
    """Checkpoint directories with a manifest, oldest first."""
    return sorted(path.parent for path in folder.glob("step_*/manifest.json"))


def latest(folder: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest; torn ones are skipped with a warning."""
    for path in reversed(listed(folder)):
        if _sound(path):
            return path
        display.warn(f"{path} is damaged and is skipped")
    return None


def _sound(path: Path) -> bool:
    try:
        wanted = read_json(path / "manifest.json")
        return all(file_sha256(path / name) == value for name, value in wanted.items())
    except (OSError, DanluError, AttributeError):
        return False  # a torn checkpoint is data: the one before it is tried


def load(path: Path) -> tuple[Tensors, Any, dict[str, Any], Tensors | None]:
    """(trainable tensors, optimizer state, state, best tensors or None) of a checkpoint."""
    best = load_file(path / "best.safetensors") if (path / "best.safetensors").exists() else None
    optimizer = torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu")
    return load_file(path / "trainable.safetensors"), optimizer, read_json(path / "state.json"), best


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
