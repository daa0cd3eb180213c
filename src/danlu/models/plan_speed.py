"""How long a recipe takes, and what it takes on several GPUs.

Time is arithmetic over an assumed share of the peak: 2 operations a weight and token forward, 2 for the gradient of
the input, 2 more for that of a trained weight, 2 again where layers are computed twice; causal attention at half of
the square. Decoding reads all weights once a token and step, whatever the number of rows. The shares are in
`plan_place` and are assumptions until a run has been measured; so is the efficiency of several GPUs here.

Memory of a GPU under a sharding: DDP holds everything and a second copy of the gradients in its buckets; ZeRO-2 divides
gradients and optimizer states; FSDP2 and ZeRO-3 divide the weights too and hold two layers (and the larger of embedding
and head) whole while they compute; HSDP does so inside a node and repeats it on every node (Rajbhandari et al. 2020,
Zhao et al. 2023). 4-bit weights are not divided. Not covered: tensor, pipeline and sequence parallelism, offloading.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from danlu.errors import DanluError
from danlu.models import plan_memory
from danlu.models.plan_model import Layout
from danlu.models.plan_place import REACHED, Place

SHARDINGS = ("ddp", "zero2", "fsdp2", "zero3", "hsdp")
DIVIDED = {  # parts that each sharding divides among GPUs
    "ddp": (),
    "zero2": ("optimizer", "gradients"),
    "fsdp2": ("weights", "adapter", "optimizer", "gradients"),
    "zero3": ("weights", "adapter", "optimizer", "gradients"),
    "hsdp": ("weights", "adapter", "optimizer", "gradients"),
}
# (least, most) share of N times one GPU that is kept: inside a node, over several nodes; assumed
EFFICIENCY = {
    "ddp": ((0.90, 0.98), (0.80, 0.95)),
    "zero2": ((0.85, 0.96), (0.70, 0.92)),
    "fsdp2": ((0.80, 0.95), (0.55, 0.88)),
    "zero3": ((0.75, 0.93), (0.50, 0.85)),
    "hsdp": ((0.80, 0.95), (0.70, 0.90)),
}
UNPACKING = 0.8  # of the speed is left where 4-bit matrices are unpacked at every product: assumed
LAUNCHES = {"cuda": 2.5e-4, "mps": 4e-4, "cpu": 1e-4}  # seconds a layer and decoded token for starting its kernels
START_UP = (20.0, 90.0)  # seconds: loading weights, compiling, writing the artifact


@dataclass(frozen=True, slots=True)
class Load:
    """What a run computes: `steps` of `rows` rows of `length` tokens (their mean square is `square`).

    `supervised`: the share of tokens with loss. `generated`: tokens of a completion that is sampled before (GRPO), in
    `rollouts` batches. `packs`: forwards of a step.
    """

    layout: Layout
    steps: int | None
    rows: int
    length: float
    square: float
    supervised: float
    packs: int
    checkpointing: bool
    generated: int
    rollouts: int
    iterations: int
    weight_bytes: int

    @property
    def tokens(self) -> int | None:
        """Tokens that are trained on; None where steps are not known."""
        return None if self.steps is None else round(self.steps * self.rows * self.length)


def operations(load: Load) -> float:
    """Floating point operations of the forwards and backwards of one step."""
    layout, own = load.layout, plan_memory.sizes(load.layout.config)
    full = plan_memory.trains_base(layout)
    tokens = load.rows * load.length
    adapters = sum(one.count for one in layout.parameters if one.kind == "adapter" and ".lora_" in one.name)
    matrices = layout.matrices * (6 if full else 4) + adapters * 6
    attention = own.layers * 2 * own.queries * load.square * load.rows
    head = load.supervised * tokens * own.hidden * own.vocabulary * (6 if full else 4)
    again = (2 * (layout.matrices + adapters) * tokens + attention) if load.checkpointing else 0.0
    return tokens * matrices + attention * 3.5 + head + again


def speed(load: Load, place: Place) -> dict[str, Any]:
    """`tokens_per_second` and `seconds`, each (least, most), as lists; seconds None where steps are not known."""
    slow, fast = seconds_of_step(load, place)
    tokens = load.rows * load.length
    whole = None
    if load.steps is not None:
        whole = [round(load.steps * fast + START_UP[0], 1), round(load.steps * slow + START_UP[1], 1)]
    return {"tokens_per_second": [round(tokens / slow, 1), round(tokens / fast, 1)], "seconds": whole}


def seconds_of_step(load: Load, place: Place) -> tuple[float, float]:
    """(most, least) seconds of one step, rollouts included."""
    work, (low, high) = operations(load), REACHED[place.kind]
    kept = UNPACKING if load.layout.unpacked else 1.0
    found = []
    for share, flops, width in zip((low, high), place.flops, place.bandwidth, strict=True):
        found.append(work / (flops * share * kept) + _decoding(load, flops * share, width, place) / load.iterations)
    return found[0], found[1]


def _decoding(load: Load, flops: float, bandwidth: float, place: Place) -> float:
    """Seconds of generating a step's completions: every token reads the weights and multiplies with all rows."""
    if not load.generated:
        return 0.0
    own = plan_memory.sizes(load.layout.config)
    weights = load.layout.matrices + own.hidden * own.vocabulary
    rows = load.rows / max(1, load.rollouts)
    one = max(load.weight_bytes / bandwidth, 2 * weights * rows / flops) + LAUNCHES[place.kind] * own.layers
    return load.rollouts * load.generated * one


def assumed(place: Place) -> list[str]:
    """What the time rests on, in words."""
    low, high = REACHED[place.kind]
    measured = "measured here just now" if place.measured else "the maker's figures"
    return [f"time: {low:.0%} to {high:.0%} of the peak in matrix products ({measured}) is an assumption"]


# ---- several GPUs


def sharded(
    memory: dict[str, int], load: Load, place: Place, gpus: int, nodes: int, only: str | None = None
) -> dict[str, Any]:
    """Per sharding: bytes of one GPU, whether they fit, GPUs that have work, tokens a second, seconds."""
    if only is not None and only not in SHARDINGS:
        raise DanluError(f"no sharding {only!r}", f"known: {', '.join(SHARDINGS)}")
    if place.kind != "cuda":
        raise DanluError("several GPUs are planned for CUDA", "add --device cuda --vram 80GB, or --gpu H100")
    names = [only] if only else [name for name in SHARDINGS if name != "hsdp" or nodes > 1]
    busy = min(gpus * nodes, load.packs)
    found = {}
    for name in names:
        parts = of_one_gpu(memory, load.layout, name, gpus, nodes)
        kept = EFFICIENCY[name][1 if nodes > 1 else 0]
        slow, fast = seconds_of_step(load, place)
        # a step ends when the GPU with the most forwards does
        share = math.ceil(load.packs / (gpus * nodes)) / load.packs
        slow, fast = slow * share / kept[0], fast * share / kept[1]
        tokens = load.rows * load.length
        seconds = None
        if load.steps is not None:
            seconds = [round(load.steps * fast + START_UP[0], 1), round(load.steps * slow + START_UP[1], 1)]
        found[name] = {
            "memory": parts,
            "fits": parts["total"] <= place.budget if place.budget is not None else None,
            "gpus": gpus * nodes,
            "busy": busy,
            "efficiency": list(kept),
            "tokens_per_second": [round(tokens / slow, 1), round(tokens / fast, 1)],
            "seconds": seconds,
        }
    return found


def of_one_gpu(memory: dict[str, int], layout: Layout, sharding: str, gpus: int, nodes: int) -> dict[str, int]:
    """Bytes of the parts on each GPU; what one GPU holds alone is `memory`."""
    group = gpus if sharding == "hsdp" else gpus * nodes
    parts = dict(memory)
    four_bit = layout.unpacked > 0
    for name in DIVIDED[sharding]:
        if name == "weights" and four_bit:
            continue
        parts[name] = math.ceil(parts[name] / group)
    parts["gathered"] = 0
    if sharding == "ddp":
        parts["gathered"] = memory["gradients"]  # the buckets that are sent
    elif "weights" in DIVIDED[sharding] and not four_bit:
        own = plan_memory.sizes(layout.config)
        ends = max((one.bytes for one in layout.parameters if one.kind in ("embedding", "head")), default=0)
        between = sum(one.bytes for one in layout.parameters if one.kind not in ("embedding", "head"))
        parts["gathered"] = 2 * between // own.layers + ends
    freed = sum(memory[name] - parts[name] for name in DIVIDED[sharding])
    parts["total"] = memory["total"] - freed + parts["gathered"]
    return parts
