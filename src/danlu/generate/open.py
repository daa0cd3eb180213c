"""One way to open anything that answers: a run, a model folder or hub id, a GGUF file, or a server's address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from danlu.errors import DanluError
from danlu.recipe import Recipe
from danlu.run import read_json
from danlu.think import detect


def is_address(target: str) -> bool:
    """Whether a target is a server's address."""
    return target.startswith(("http://", "https://"))


def open_generator(target: str, recipe: Recipe) -> Any:
    """A Generator (and context manager) for `target`; DanluError says what is missing.

    A training run or an adapter is used unmerged over its base, by what `eval.generate` says; an export run through its
    GGUF; "http://host:port/v1" (with "#model" where several are served) through its chat endpoint.
    """
    if is_address(target):
        return _endpoint(target, recipe)
    path = Path(target)
    if files := gguf_files(path):
        return _gguf(*files)
    start, name = None if target == recipe.model.id else target, path.name or target
    if recipe.eval.generate == "vllm":
        from danlu.generate.vllm import VllmGenerator

        context = recipe.data.max_length + recipe.eval.max_tokens
        return VllmGenerator(recipe.model, start, name=name, context=context, seed=recipe.seed)
    if recipe.eval.generate == "mlx":
        from danlu.models.mlx_fit import check_installed

        check_installed("eval.generate")
        from danlu.generate import mlx

        return mlx.opened(recipe.model, start, name=name, batch=recipe.eval.batch)
    from danlu.generate.local import LocalGenerator
    from danlu.models.load import load

    return LocalGenerator(load(recipe.model, start, seed=recipe.seed), name=name, batch=recipe.eval.batch)


def _endpoint(target: str, recipe: Recipe) -> Any:
    """The server renders the prompt, so a format that no template tells of is taken from the recipe alone."""
    from danlu.generate.endpoint import PLAIN, THINK, EndpointGenerator

    style = recipe.model.think
    think = {"think": THINK, "none": PLAIN}.get(style)
    if style == "reasoning_answer":
        think = detect(lambda messages, **_: messages[-1]["content"], (), style)
    return EndpointGenerator(target, think=think, concurrency=min(recipe.eval.batch, 32))


def gguf_files(path: Path) -> tuple[Path, Path | None] | None:
    """(file, adapter beside it or None) of a .gguf file, an export run or its artifact; None for anything else.

    Of several files the one that the Modelfile takes. DanluError for a .gguf file that is not there.
    """
    if path.suffix == ".gguf":
        if not path.is_file():
            raise DanluError(f"{path} does not exist", "make one with: danlu export RECIPE --from RUN")
        return path, None
    inside = path / "artifact" if (path / "run.json").is_file() else path
    found = sorted(inside.glob("*.gguf")) if inside.is_dir() else []
    if not found or (inside / "config.json").is_file():
        return None
    described = read_json(inside / "danlu.json") if (inside / "danlu.json").is_file() else {}
    adapter = inside / described["adapter"] if described.get("adapter") else None
    return inside / (described.get("gguf") or found[0].name), adapter


def _gguf(path: Path, lora: Path | None) -> Any:
    from danlu.generate.gguf import GgufGenerator

    return GgufGenerator(path, lora=lora)
