"""Weights in shards (FSDP2, torch's fully_shard): every process holds an equal part of each matrix, its gradient and
its optimizer state, and has a layer whole only while it computes with it. For full fine-tuning of models that do not
fit one GPU otherwise; an adapter can be trained on a sharded base too.

It is asked for by accelerate's configuration (`fsdp_version: 2`) and done here: accelerate's own preparation knows a
model's forward, not a function from packed rows to log-probs. The unit is the decoder layer; embeddings, last norm and
head are gathered for the whole forward.

Departures from training without shards: the reduction averages, so losses are multiplied by the number of processes;
gathering takes all processes, so each does the same number of forwards (what one has too few is done again and counts
nothing), a signal waits for the end of a step, and memory that runs out ends the run.
What is saved is whole, on the CPU of the first process: a checkpoint can be resumed with or without shards.
Not covered: 4-bit bases, 8-bit optimizers, fp16, offloading to the CPU, generating while training (GRPO, sft.watch).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from danlu.errors import DanluError
from danlu.models.load import Loaded, device
from danlu.recipe import Recipe
from danlu.train import processes

INSTEAD = "train with `danlu accelerate ddp`, or change that"


def check(recipe: Recipe, stage: str) -> None:
    """DanluError for what a stage cannot train with sharded weights; nothing where they are not."""
    if not processes.sharded():
        return
    if stage == "grpo":
        raise DanluError("GRPO samples from whole weights and cannot train sharded ones", "use `danlu accelerate ddp`")
    settings, refused = recipe.sft, []
    if recipe.model.quantization != "none":
        refused.append(f"model.quantization: {recipe.model.quantization}")
    if settings.optimizer.name != "adamw":
        refused.append(f"sft.optimizer.name: {settings.optimizer.name}")
    if settings.precision == "fp16":
        refused.append("sft.precision: fp16")
    if settings.watch:
        refused.append("sft.watch")
    if refused:
        raise DanluError(f"sharded weights (FSDP2) do not go with {', '.join(refused)}", INSTEAD)


def loading_place() -> torch.device:
    """Where weights are loaded to: shards go to the device one layer at a time."""
    return torch.device("cpu") if processes.sharded() else device()


def shard(scored: nn.Module, model: Any) -> None:
    """Divide the weights of `scored` (log-probs of `model`) over the processes, in place."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise DanluError(f"FSDP2 needs torch 2.6 or later, this is {torch.__version__}", INSTEAD) from None
    again = processes.sharding() == "fsdp2"  # else layers stay whole from the forward to the backward pass (zero2)
    for layer in layers(model):
        fully_shard(layer, reshard_after_forward=again)
    fully_shard(scored)


def layers(model: Any) -> Iterable[nn.Module]:
    """The decoder layers of a transformers (or peft) model: the longest list of modules of one kind in it."""
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len({type(m) for m in one}) == 1]
    return max(lists, key=len, default=[])


# ---- whole tensors and parts of them


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, from the parts in all processes; of any other tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def collected(node: Any) -> Any:
    """`node` (dicts, lists, tensors) with whole tensors, on the CPU; only the first process keeps them."""
    if isinstance(node, Tensor):
        found = whole(node.detach())
        return found.cpu() if processes.first() else None
    if isinstance(node, dict):
        return {key: collected(value) for key, value in node.items()}
    return [collected(value) for value in node] if isinstance(node, list) else node


def part(full: Tensor, like: Any) -> Tensor:
    """This process's part of a whole tensor, as `like` is divided; of any other `like` the tensor itself."""
    if not hasattr(like, "full_tensor") or full.shape != like.shape:
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """The numbers that this process holds of a tensor; a change in them is one in the tensor."""
    found = tensor.detach()
    return found.to_local() if hasattr(found, "to_local") else found


def as_whole(numbers: Tensor, like: Any) -> Tensor:
    """A tensor of which each process gives its `local` numbers, divided as `like` is."""
    if not hasattr(like, "full_tensor"):
        return numbers
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(
        numbers.to(like.device), mesh, placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def gather_model(scored: nn.Module, loaded: Loaded) -> None:
    """Put whole weights in place of the shards, in the first process, for saving; nothing can be trained after."""
    if not processes.sharded():
        return
    everything = loaded.random_base or not hasattr(loaded.model, "peft_config")
    for module in scored.modules():
        if hasattr(module, "reshard"):  # an evaluation leaves some whole, and saving would take that back
            module.reshard()  # type: ignore[operator]
    held = [
        (module, name, param)
        for module in loaded.model.modules()
        for name, param in module.named_parameters(recurse=False)
        if everything or param.requires_grad
    ]
    known: dict[int, nn.Parameter] = {}  # tied weights stay one
    for module, name, param in held:
        if id(param) not in known:
            found = whole(param.detach())
            kept = found.cpu() if processes.first() else found.new_empty(0, device="cpu")
            known[id(param)] = nn.Parameter(kept, requires_grad=param.requires_grad)
        if processes.first():
            setattr(module, name, known[id(param)])
