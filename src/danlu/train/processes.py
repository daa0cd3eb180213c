"""The processes of one training: who is who, what they tell one another, and what they do together.

accelerate launch or torchrun starts the same command several times. All processes do the same with the same rows, but
for their share of a step's forwards; the first one alone writes the run, shows progress and speaks.

Method: nothing is wrapped around the model (no DDP). Each process adds up the gradients of its share, then all are
summed once a step, in fp32. So shares may be of different numbers of forwards, or empty; the loss can be divided by
the supervised tokens of the whole step, exactly; forwards may read parameters where they like; and a step that ran out
of memory in one process begins again in all. Given up for that: summing while the backward pass still runs, which
pays where all weights are trained; those are sharded (see sharding.py).

All but gradients (flags, figures, texts, checkpoints) goes through a group of its own on the CPU: no device is waited
for, and a process that ends closes its connections, which ends the others with an error.
torch is imported when a process meets others, not before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from danlu.errors import DanluError
from danlu.train import launcher

T = TypeVar("T")

BUCKET = 1 << 26  # numbers of a gradient that are summed at once: 256 MB
PATIENCE = timedelta(days=7)  # how long the others wait while the first one evaluates or exports
GREETING = timedelta(minutes=10)  # how long a process waits for the others to come up
FAREWELL = 60  # seconds that the others wait for the first to end, when all have come to an end
DISPUTE = 10  # seconds that one with an error waits for the first to tell the same
HEARD = 2  # seconds that the first waits for them to hear it; the store ends with it
GONE = "another process of this training has ended, or does not answer"
LOST = ("connection closed by peer", "connection reset", "broken pipe", "nccl", "gloo", "socket timeout")


@dataclass(frozen=True, slots=True)
class _Members:
    rank: int
    count: int
    local: int  # place among the processes of this node
    sharding: launcher.Sharding
    talk: Any  # the group for all but gradients
    store: Any


_members: _Members | None = None


class Lost(DanluError):
    """Another process ended or does not answer."""


# ---- who is who


def count() -> int:
    """How many processes have met; 1 before `start`."""
    return _members.count if _members else 1


def rank() -> int:
    return _members.rank if _members else 0


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def sharded() -> bool:
    """Whether the processes divide the weights among them (see sharding.py)."""
    return sharding() != "ddp"


def sharding() -> launcher.Sharding:
    return _members.sharding if _members else "ddp"


# ---- meeting and parting


def start() -> None:
    """Meet the other processes, if a launcher started some.

    DanluError if they do not come, outnumber the GPUs, or were asked for what is not done here.
    """
    global _members
    if _members is not None:
        return
    launcher.check()
    shards = launcher.take()
    if not launcher.launched():
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    local = int(os.environ.get("LOCAL_RANK", "0"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    if cuda and here > torch.cuda.device_count():
        raise DanluError(
            f"{here} processes for {torch.cuda.device_count()} GPUs on this node", "start one process a GPU"
        )
    if cuda:
        torch.cuda.set_device(local)
    else:
        torch.set_num_threads(threads(here))
    try:
        store, own, size = next(rendezvous("env://", timeout=GREETING))
        backend = "cuda:nccl,cpu:gloo" if cuda else "gloo"
        dist.init_process_group(backend, store=dist.PrefixStore("danlu", store), rank=own, world_size=size)
        talk = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise DanluError(
            f"the {os.environ['WORLD_SIZE']} processes of this training did not meet: {str(error).splitlines()[0]}",
            "check that all nodes were started with the same command, and that they reach the main one's port",
        ) from error
    _members = _Members(own, size, local, shards, talk, dist.PrefixStore("farewell", store))


def threads(processes: int) -> int:
    """CPU threads of each of `processes` on this machine: what OMP_NUM_THREADS says if that is more than one (the
    launchers set it to one for everybody), else a share of the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "1")
    if asked.isdigit() and int(asked) > 1:
        return int(asked)
    import psutil

    return max(1, (psutil.cpu_count(logical=False) or 1) // processes)


def leave(message: str | None) -> bool:
    """The last thing a process does; `message` of the error that it ends with. Whether that has to be told here.

    The others end after the first one, and tell only what it does not tell itself.
    """
    global _members
    if _members is None:
        return launcher.place() == 0
    told, speaks, own, others = _members.store, first(), _members.rank, _members.count
    _members = None
    if message is None:
        import torch.distributed as dist

        dist.destroy_process_group()
    if speaks:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher sends it when the others have ended before
        with contextlib.suppress(RuntimeError):
            told.set("ended", message or "")
            told.wait([f"heard {other}" for other in range(1, others)], timedelta(seconds=HEARD))
        return True
    patience = FAREWELL if message is None else HEARD if message == GONE else DISPUTE
    try:
        told.wait(["ended"], timedelta(seconds=patience))
        said = told.get("ended").decode()
        told.set(f"heard {own}", "")
        return said != (message or "")
    except RuntimeError:  # it ended without a word, or goes on
        return True


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise lost(error) or error from error


def lost(error: BaseException) -> Lost | None:
    """The error to tell if `error` says that another process is gone."""
    if not isinstance(error, RuntimeError) or count() == 1:
        return None
    if not any(word in str(error).lower() for word in LOST):
        return None
    return Lost(GONE, "its own error is told above or by the launcher; go on with --resume")


# ---- what they tell one another


def most(*values: float) -> list[float]:
    """The greatest of each value over all processes."""
    return _reduced(values, "MAX")


def total(*values: float) -> list[float]:
    """The sum of each value over all processes, in fp64."""
    return _reduced(values, "SUM")


def _reduced(values: Sequence[float], how: str) -> list[float]:
    if _members is None:
        return list(values)
    import torch
    import torch.distributed as dist

    found = torch.tensor(values, dtype=torch.float64)
    with _talking():
        dist.all_reduce(found, getattr(dist.ReduceOp, how), group=_members.talk)
    return found.tolist()


def gather(value: T) -> list[T]:
    """`value` of every process, in their order."""
    if _members is None:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * _members.count
    with _talking():
        dist.all_gather_object(found, value, group=_members.talk)
    return found


@dataclass(frozen=True, slots=True)
class _Hole:
    """Where a tensor goes that is sent by itself."""

    shape: tuple[int, ...]
    dtype: Any


Take = Callable[[tuple[Any, ...], Any], Any]


def share(value: T, take: Take | None = None) -> T:
    """What the first process gave, in all of them: plain values, tensors (on the CPU), dicts, lists and tuples.

    Tensors come one by one; `take(path, tensor)` gives what is kept of each, by its keys and places from the outside
    in, so that no process has to hold all of a large one.
    """
    if _members is None:
        return value
    import torch
    import torch.distributed as dist

    group = _members.talk
    tensors: list[Any] = []

    def dug(_path: tuple[Any, ...], node: Any) -> Any:
        if isinstance(node, torch.Tensor):
            tensors.append(node)
            return _Hole(tuple(node.shape), node.dtype)
        return _mapped(dug, node, ())

    def filled(path: tuple[Any, ...], node: Any) -> Any:
        if not isinstance(node, _Hole):
            return _mapped(filled, node, path)
        found = next(given).detach().cpu().contiguous() if first() else torch.empty(node.shape, dtype=node.dtype)
        if found.numel():
            dist.broadcast(found.reshape(-1).view(torch.uint8), 0, group=group)
        return found if take is None else take(path, found)

    with _talking():
        plan = [dug((), value) if first() else None]
        given = iter(tensors)
        dist.broadcast_object_list(plan, 0, group=group)
        return filled((), plan[0])


def _mapped(change: Take, node: Any, path: tuple[Any, ...]) -> Any:
    if isinstance(node, dict):
        return {key: change((*path, key), value) for key, value in node.items()}
    if type(node) in (list, tuple):
        return type(node)(change((*path, place), value) for place, value in enumerate(node))
    return node


def same(what: str, value: Callable[[], Any]) -> None:
    """DanluError unless `value` gives the same in all processes."""
    if _members is None:
        return
    found = gather(value())
    if any(one != found[0] for one in found):
        raise DanluError(
            f"the processes have different {what}", "all nodes need the same files, and the same versions of packages"
        )


def backend() -> str:
    """What gradients are summed over: "nccl" or "gloo"."""
    import torch

    return "nccl" if torch.cuda.is_available() else "gloo"


def introduced() -> list[dict[str, Any]]:
    """What each process is and runs on, in their order, after a sum over the devices that shows their way is open."""
    import psutil
    import torch

    from danlu.run import versions

    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    free = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available
    summed = torch.ones(1, device="cuda" if cuda else "cpu")
    add_up([], summed)
    if int(summed) != count():
        raise DanluError(f"a sum over {count()} processes came to {int(summed)}", "check the network between the GPUs")
    own = {"host": socket.gethostname(), "local": _members.local if _members else 0, "device": device}
    return gather({**own, "free_bytes": free, "versions": versions()})


def checksum(tensors: Iterable[Any]) -> list[int]:
    """A number for the bytes of each tensor, the same on every machine."""
    import torch

    flat = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors)
    return [int(one.sum(dtype=torch.int64)) for one in flat]


# ---- what they do together


def lead(action: Callable[[], T], take: Take | None = None) -> T:
    """Do `action` in the first process only; what it gives (`take` as in `share`), or its DanluError, comes to all."""
    if _members is None:
        return action()
    value: Any = None
    if first():
        try:
            value = action()
        except DanluError as error:
            share(error)
            raise
    told: Any = share(None)
    if told is not None:
        raise told
    return share(value, take)


def in_turn(action: Callable[[], T]) -> T:
    """Do `action` in the first process, then in one of every node, then in the others.

    What it puts into a cache is made once, also where nodes do not share their disks.
    """
    if _members is None:
        return action()
    found: list[T] = []
    lead(lambda: found.append(action()))
    if not first() and _members.local == 0:
        found.append(action())
    most(0)
    return found[0] if found else action()


def own(weights: Sequence[float]) -> list[int]:
    """Indices of the things that are this process's to do, in order, so that all have about the same weight.

    The heaviest goes to whoever has least so far; the same in every process.
    """
    loads = [0.0] * count()
    mine = []
    for index in sorted(range(len(weights)), key=lambda i: -weights[i]):
        least = loads.index(min(loads))
        loads[least] += weights[index]
        if least == rank():
            mine.append(index)
    return sorted(mine)


def even(forwards: int) -> int:
    """How many forwards this process has to do so that all do as many, where sharded weights need that."""
    return int(most(forwards)[0]) if sharded() else forwards


def stretch(weights: Sequence[float]) -> list[int]:
    """As `own`, but one stretch of neighbours: where those have something in common."""
    whole, at, mine = sum(weights), 0.0, []
    for index, weight in enumerate(weights):
        if min(int((at + weight / 2) * count() / whole), count() - 1) == rank():
            mine.append(index)
        at += weight
    return mine


def add_up(params: Sequence[Any], figures: Any) -> None:
    """Sum the gradients of `params`, and the tensor `figures`, over all processes, in place.

    A parameter without a gradient in any process keeps none: an optimizer passes over it, as in one process.
    """
    if _members is None:
        return
    import torch
    import torch.distributed as dist

    held = most(*(param.grad is not None for param in params)) if params else []
    bucket: list[Any] = []
    size = 0
    with _talking():
        dist.all_reduce(figures)
        for param in [param for param, known in zip(params, held, strict=True) if known]:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
            bucket.append(param.grad)
            size += param.numel()
            if size >= BUCKET:
                _sum(bucket)
                bucket, size = [], 0
        _sum(bucket)


def _sum(grads: list[Any]) -> None:
    import torch
    import torch.distributed as dist

    if not grads:
        return
    flat = torch.cat([grad.reshape(-1).float() for grad in grads])
    dist.all_reduce(flat)
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))
