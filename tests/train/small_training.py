"""Recipes and runs for the tests of training: a tiny random Qwen3 or the memorised one, a few rows, fp32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from danlu.recipe import Recipe
from danlu.run import Run
from danlu.train.sft import sft
from tiny_models import CHATS


def write_rows(path: Path, count: int = 12, rows: list[dict[str, Any]] | None = None) -> Path:
    """Rows with question, reasoning and answer (which is also the gold), of different lengths."""
    made = []
    for n in range(count):
        question, reasoning, answer = CHATS[n % len(CHATS)]
        made.append({"question": f"{question} ({n})", "reasoning": reasoning * (1 + n % 3), "answer": answer})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows or made), "utf-8")
    return path


def write_questions(path: Path, count: int = 8) -> Path:
    """The questions that the memorised model knows, with their gold answers."""
    rows = [{"question": CHATS[n % 4][0], "target": CHATS[n % 4][2], "id": f"q{n}"} for n in range(count)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def recipe(base: Path, rows: Path | None = None, **sections: Any) -> Recipe:
    """A small fp32 recipe; `sections` are merged into its own."""
    lora = {"r": 4, "alpha": 8}
    value: dict[str, Any] = {
        "name": "small",
        "model": {"id": str(base), "dtype": "fp32"},
        "data": {"train": str(rows) if rows else [], "max_length": 256},
        "sft": {"precision": "fp32", "lora": lora, "steps": 3, "batch_size": 4, "accumulation": 1},
        "grpo": {
            "precision": "fp32",
            "lora": lora,
            "data": str(rows) if rows else [],
            "steps": 2,
            "prompts": 2,
            "group": 4,
            "max_completion": 16,
            "rewards": ["stop", {"name": "think_format", "weight": 0.5}],
        },
    }
    value["sft"]["optimizer"] = {"lr": 1e-2}
    value["grpo"]["optimizer"] = {"lr": 1e-2}
    for name, changes in sections.items():
        value[name] = {**value.get(name, {}), **changes} if isinstance(changes, dict) else changes
    return Recipe.model_validate(value)


def new_run(path: Path, made: Recipe, stage: str = "sft", **more: Any) -> Run:
    return Run.create(path, stage, made.resolved(), seed=made.seed, **more)


def trained(made: Any, path: Path, start: str | None = None) -> tuple[Run, dict[str, torch.Tensor]]:
    """The finished run of an SFT stage, and its adapter's tensors."""
    run = new_run(path, made)
    with run.recording():
        run.record(**sft(made, run, start))
    return run, load_file(run.artifact / "adapter_model.safetensors")
