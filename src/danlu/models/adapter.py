"""New LoRA adapters on a model: what they are put on, what is trained in full beside them, and in which precision.

`modules_to_save` are copies that are trained in full. Departures from peft, which leaves both to its caller:
- where the model ties head and embedding, naming either trains one copy for both. peft would train two apart, and a
  merge would have to untie the model. Saved are both names and `ensure_weight_tying`, so any peft loads equal logits;
- copies of half-precision modules are fp32, as LoRA's own matrices are: bf16 holds 8 bits, and steps below 1/256 of a
  weight would be lost. Around a copy values keep the dtype of the model.
"""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from danlu import display
from danlu.errors import DanluError
from danlu.recipe import Lora

NAMED = 12  # layers that a warning lists


def with_adapter(model: Any, lora: Lora) -> Any:
    """`model` with a new, trainable adapter named "default". DanluError where it does not fit."""
    from peft import LoraConfig, PeftModel, get_peft_model

    tied = _tied(model)
    whole, shared = _whole(lora.modules_to_save, tied)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft takes floats
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        modules_to_save=whole or None,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # seen to below
            if isinstance(model, PeftModel):
                model.add_adapter("default", config)
                activate(model, ["start", "default"])
            else:
                model = get_peft_model(model, config)
    except ValueError as error:
        raise DanluError(
            f"LoRA does not fit this model: {error}", "check lora.targets and lora.modules_to_save"
        ) from error
    copies = {name: one.modules_to_save["default"] for name, one in _wrapped(model)}
    for copy in copies.values():
        _widen(copy)
    if shared:
        embedding, head = (next(copies[name] for name in copies if name.endswith(end)) for end in tied)
        head.weight = embedding.weight
        # only now: asked for it, peft makes the head a random matrix first, of gigabytes where a vocabulary is large
        model.peft_config["default"].ensure_weight_tying = True
    return model


def activate(model: Any, adapters: list[str]) -> None:
    """Make exactly these adapters take part in the forward; only "default" is trainable."""
    model.base_model.set_adapter(adapters)
    for name, param in model.named_parameters():
        if ".start." in name:
            param.requires_grad_(False)
        elif ".default." in name:
            param.requires_grad_(True)


def warn_of_unmatched(model: Any, lora: Lora) -> None:
    """Warn of names in `lora` that match nothing in the base of `model`: peft is content when one of many matches."""
    from torch import nn

    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    names = [_plain_name(name) for name, _ in plain.named_modules()]
    linear = {_plain_name(name).rpartition(".")[2] for name, one in plain.named_modules() if isinstance(one, nn.Linear)}
    known = {name.rpartition(".")[2] for name in names if name and not name[-1].isdecimal()}
    linear -= {"default", "start", "lora_A", "lora_B"}
    for key, wanted, near, whole in (
        ("targets", lora.targets, linear, True),
        ("modules_to_save", lora.modules_to_save, known, False),
    ):
        for one in wanted:
            if any(name == one or name.endswith(f".{one}" if whole else one) for name in names):
                continue
            close = difflib.get_close_matches(one, sorted(near), n=1)
            listed = ", ".join(sorted(linear)[:NAMED])
            hint = f"did you mean {close[0]}?" if close else f"linear layers of this model: {listed}"
            display.warn(f"lora.{key}: {one} matches no module and is left out; {hint}")


def _plain_name(name: str) -> str:
    for part in (".base_layer", ".original_module"):
        name = name.removesuffix(part)
    return name


def scale_of(config: dict[str, Any], module: str, rank: int) -> float:
    """Weight of B @ A for `module`: peft's alpha_pattern (regular expressions on the end of the name) or lora_alpha."""
    patterns = config.get("alpha_pattern") or {}
    key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
    alpha = patterns[key] if key is not None else config["lora_alpha"]
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


# ---- modules that are trained in full


def _tied(model: Any) -> tuple[str, ...]:
    """Names of the input embedding and of the head, where they share one matrix; else nothing."""
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    embedding, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    if getattr(head, "weight", None) is None or head.weight is not getattr(embedding, "weight", None):
        return ()
    return tuple(next(name for name, one in plain.named_modules() if one is part) for part in (embedding, head))


def _whole(wanted: Sequence[str], tied: tuple[str, ...]) -> tuple[list[str], bool]:
    """(modules to save, whether one of the `tied` is among them: then both are)."""
    if not any(name.endswith(one) for name in tied for one in wanted):
        return list(wanted), False
    more = [name.rpartition(".")[2] for name in tied if not any(name.endswith(one) for one in wanted)]
    return [*wanted, *more], True


def _wrapped(model: Any) -> list[tuple[str, Any]]:
    """(name, wrapper) of the modules of which "default" trains a copy."""
    from peft.utils import ModulesToSaveWrapper

    found = ((name, one) for name, one in model.named_modules() if isinstance(one, ModulesToSaveWrapper))
    return [(name, one) for name, one in found if "default" in one.modules_to_save]


def _widen(copy: Any) -> None:
    """Half-precision parameters become fp32; what goes in is cast to them, what comes out to the dtype before."""
    halves = [one.dtype for one in copy.parameters() if one.dtype in (torch.float16, torch.bfloat16)]
    if not halves:
        return
    outer = halves[0]
    copy.float()

    def widened(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.float() if torch.is_tensor(x) and x.dtype == outer else x for x in inputs)

    def narrowed(_: Any, __: Any, output: Any) -> Any:
        return output.to(outer) if torch.is_tensor(output) and output.is_floating_point() else output

    copy.register_forward_pre_hook(widened)
    copy.register_forward_hook(narrowed)
