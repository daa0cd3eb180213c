"""What a launcher of several processes (accelerate launch, torchrun, Slurm) told this one, by its environment.

Read from accelerate: how many processes, and whether they divide the weights (`distributed_type: FSDP`). Everything
else is the recipe's to say; what accelerate would do by itself and our loop does not is refused, not ignored.
DeepSpeed is not used: its ZeRO-2 and ZeRO-3 divide the same tensors as FSDP2 with and without keeping layers whole
between forward and backward, and that one way is tested in processes on a CPU.
No torch here: the command line asks before it loads anything.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Literal

from danlu.errors import DanluError

TRAINING = ("run", "sft", "grpo")  # the commands that several processes carry out together
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# what accelerate's Accelerator would take from here behind the recipe's back
THEIRS = ("ACCELERATE_USE_FSDP", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_DYNAMO_BACKEND")
ECHO = 5.0  # seconds in which a launcher hands on a signal that its processes got already, as with Ctrl-C

Sharding = Literal["ddp", "zero2", "fsdp2"]


def launched() -> bool:
    """Whether a launcher started this process as one of several; says nothing of whether they have met."""
    return all(name in os.environ for name in ("RANK", "MASTER_ADDR")) and int(os.environ.get("WORLD_SIZE", "1")) > 1


def place() -> int:
    """The place that the launcher gave this process, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def together(args: Sequence[str]) -> bool:
    """Whether the processes carry out this command together; any other one is for the first alone."""
    return bool(args) and args[0] in TRAINING and not {"--help", "-h"} & set(args)


def alone() -> None:
    """Go on as if this process had been started by hand."""
    for name in OURS:
        os.environ.pop(name, None)


def hush() -> None:
    """Only the first process speaks; signals are for those that save, so the others wait for what it decides."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    ignore_signals()


def ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def sharding() -> Sharding:
    """How weights are divided: not at all, gradients and optimizer states only (layers stay whole from the forward
    to the backward pass), or weights too."""
    if not _on("ACCELERATE_USE_FSDP"):
        return "ddp"
    return "fsdp2" if os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true" else "zero2"


def check() -> None:
    """DanluError for what the launcher was asked for and this loop does not do."""
    if _on("ACCELERATE_USE_DEEPSPEED"):
        raise DanluError(
            "DeepSpeed is not used here: FSDP2 divides the same things",
            "`danlu accelerate zero2` and `danlu accelerate fsdp2` (ZeRO-3) write configurations that work",
        )
    if _on("ACCELERATE_USE_MEGATRON_LM"):
        raise DanluError("Megatron-LM is not used here", "`danlu accelerate fsdp2` divides the weights")
    if _on("ACCELERATE_USE_PARALLELISM_CONFIG"):
        raise DanluError("parallelism_config is not used here", "`danlu accelerate fsdp2` divides the weights")
    if _on("ACCELERATE_USE_FSDP"):
        _check_fsdp()
    if "MASTER_ADDR" in os.environ and not launched() and _on("ACCELERATE_USE_CPU"):
        raise DanluError(
            "accelerate launch --cpu starts one process, whatever the configuration says",
            "leave --cpu (use_cpu: true) out: without a GPU the processes are on the CPU",
        )


def _check_fsdp() -> None:
    refused = []
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        refused.append(f"fsdp_version: {version}")
    if (again := os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()) not in ("true", "false"):
        refused.append(f"fsdp_reshard_after_forward: {again}")
    if _on("FSDP_OFFLOAD_PARAMS"):
        refused.append("fsdp_offload_params: true")
    if refused:
        raise DanluError(f"not covered: {', '.join(refused)}", "take the configuration of `danlu accelerate fsdp2`")


def take() -> Sharding:
    """`sharding`, and out of the environment what accelerate would act on by itself."""
    found = sharding()
    for name in THEIRS:
        os.environ.pop(name, None)
    return found


def _on(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")
