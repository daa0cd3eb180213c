"""Whether mlx-lm is here, and whether it can train what a recipe asks; answered before anything is loaded.

Not covered, and refused: full fine-tuning, DoRA, modules_to_save, NF4 and models that MLX itself has quantized (what
is trained on them cannot be merged into a GGUF), bases made from a config, several processes. GRPO has no such engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from danlu.errors import DanluError
from danlu.recipe import Recipe

INSTALL = 'pip install "danlu[mlx]" (Apple silicon, or Linux for trying it out)'


def check_installed(key: str) -> None:
    """DanluError where the recipe's `key` asks for mlx and mlx-lm is not installed."""
    if find_spec("mlx") is None or find_spec("mlx_lm") is None:
        raise DanluError(f"{key}: mlx needs mlx-lm", f"{INSTALL}, or --set {key}={_other(key)}")


def check_training(recipe: Recipe) -> None:
    """DanluError for what `sft.engine: mlx` cannot do, named by its key."""
    settings, lora = recipe.sft, recipe.sft.lora
    unfit = {
        "sft.method: full": settings.method == "full",
        "sft.lora.dora": lora.dora,
        "sft.lora.modules_to_save": bool(lora.modules_to_save),
        "model.quantization: nf4": recipe.model.quantization == "nf4",
        "model.config": recipe.model.config is not None,
        "sft.precision": settings.precision not in ("auto", "fp32"),
    }
    hints = {
        "sft.method: full": "sft.method: lora",
        "model.quantization: nf4": "model.quantization: none; a smaller model takes less memory",
        "model.config": "give a stored model",
        "sft.precision": "sft.precision: auto; the adapter is fp32, and the base computes in model.dtype",
    }
    for key, does_not_fit in unfit.items():
        if does_not_fit:
            other = hints.get(key, f"leave out {key}")
            raise DanluError(f"sft.engine: mlx does not take {key}", f"{other}, or sft.engine: danlu")


def check(recipe: Recipe, stages: Sequence[str]) -> None:
    """DanluError where one of `stages` asks for mlx and cannot have it."""
    if "sft" in stages and recipe.sft.engine == "mlx":
        check_installed("sft.engine")
        check_training(recipe)
    if "eval" in stages and recipe.eval.generate == "mlx":
        check_installed("eval.generate")


def _other(key: str) -> str:
    return "danlu" if key == "sft.engine" else "local"
