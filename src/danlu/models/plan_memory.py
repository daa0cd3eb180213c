"""Bytes that training holds at its peak, part by part, from the layout of a model and the largest forward of a run.

What the fast forward keeps for its backward pass is counted exactly (tests hold the formula against what autograd
really saves, and the sum against the allocator): a layer keeps its two inputs to the norms, what goes into matrices
with an adapter, the rotated queries, keys and values with the result of attention, and both halves of SwiGLU with their
product. With checkpointing it keeps its input alone, and one layer at a time is computed again. On top comes whichever
is larger: the logits of a chunk at the end of the forward, or the temporaries of one layer in the backward.

What is estimated: transformers' own forward (other architectures, DoRA), what allocators waste, the libraries.
Not covered: what trackers, data sets kept in memory or other processes take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from danlu.models.head import CHUNK, ROWS
from danlu.models.kernels import How
from danlu.models.plan_model import Layout

QKV, GATES = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
LINEAR = (*QKV, "o_proj", *GATES, "down_proj")
MERGED = 1 << 20  # numbers of a matrix below which decoding merges adapters into it
SMALL = 4096  # elements; bitsandbytes keeps the states of smaller tensors in 32 bits
STATE_BLOCK = 256  # elements of an 8-bit state that share a scale
WIDENED = 20  # bytes a number that an 8-bit step on a CPU takes beside state, weight and gradient
CPU_PROCESS = 450 * 10**6  # Python, torch, transformers, peft, accelerate
CPU_COMPILER = 150 * 10**6  # torch.compile in the same process
TOKEN = 1200  # bytes of a tokenizer a token of its vocabulary
CUDA_CONTEXT = 600 * 10**6
WASTED = {"cpu": 0.2, "cuda": 0.06, "mps": 0.06}
OWN_FORWARD = 1.9  # what transformers' own forward keeps, as a share of ours: an estimate
OWN_DORA = 2.2  # peft's with DoRA
OWN_CAST = 1.13  # peft's over a base that autocast narrows


@dataclass(frozen=True, slots=True)
class Work:
    """The largest forward and backward of a run: `tokens` of `rows` rows, `supervised` of them carrying loss.

    `packs`: forwards of a step. `compute`: the dtype of matrix products; `autocast` where it is not the weights'.
    """

    tokens: int
    rows: int
    supervised: int
    packs: int
    compute: torch.dtype
    autocast: bool
    device: str
    checkpointing: bool
    kernels: How
    optimizer: str
    dropout: bool = False
    rank: int = 0
    dora: bool = False
    flash: bool = False


@dataclass(frozen=True, slots=True)
class Rollout:
    """Bytes of generating completions: the KV cache, what a decoding step takes beside it, weights that are copied."""

    cache: int
    decoding: int
    snapshot: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths of a decoder layer."""

    layers: int
    hidden: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    normed_queries: bool

    @property
    def head_dim(self) -> int:
        return self.queries // self.heads


def sizes(config: Any) -> Sizes:
    """The widths that a transformers config gives."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Sizes(
        config.num_hidden_layers,
        config.hidden_size,
        heads * head_dim,
        kv_heads * head_dim,
        heads,
        kv_heads,
        getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        config.vocab_size,
        config.model_type == "qwen3",
    )


# ---- all of it


def memory(layout: Layout, work: Work, rollout: Rollout | None = None, *, best: bool = False) -> dict[str, int]:
    """Bytes of every part at its largest, and `total`, the most that is held at once.

    Parts that are never there together do not add up in `total`: gradients of a step's only forward come while its
    activations go, and rollouts (`kv_cache`) are over when the update begins. `best`: a copy of what is trained is
    kept in the memory of the host.
    """
    trained, frozen = layout.held(trained=True), layout.held(trained=False)
    adapter = sum(one.bytes for one in layout.parameters if one.kind == "adapter")
    host = work.device != "cuda"
    kept, backward = activation_bytes(layout, work)
    head = head_bytes(layout, work)
    parts = {
        "weights": trained + frozen - adapter,
        "adapter": adapter,
        "optimizer": optimizer_bytes(layout, work.optimizer),
        "gradients": trained,
        "activations": kept + backward,
        "logits": head,
        "kv_cache": rollout.cache if rollout else 0,
        "snapshot": rollout.snapshot if rollout else 0,
        "best": trained if best and host else 0,
        "process": process_bytes(work, layout),
    }
    lasting = ("weights", "adapter", "optimizer", "snapshot", "best", "process")
    update = kept + max(head, backward)
    update = update + trained if work.packs > 1 else max(update, trained)
    passing = max(update, rollout.cache + rollout.decoding if rollout else 0)
    parts["overhead"] = wasted_bytes(work, passing)
    stepping = trained + stepping_bytes(layout, work)
    total = sum(parts[name] for name in lasting) + max(passing + parts["overhead"], stepping)
    loading = parts["process"] + parts["weights"] + (layout.stored if host else 0)
    return {name: int(value) for name, value in {**parts, "total": max(total, loading)}.items()}


def stepping_bytes(layout: Layout, work: Work) -> int:
    """What the optimizer's step takes for a moment: on a CPU bitsandbytes widens both moments of one tensor."""
    if work.optimizer == "adamw" or work.device == "cuda":
        return 0
    return max((WIDENED * one.count for one in layout.parameters if one.trained and one.count >= SMALL), default=0)


# ---- what lives as long as the run


def optimizer_bytes(layout: Layout, name: str) -> int:
    """Two moments of every trained weight: fp32, or one byte with an fp32 scale a block."""
    counts = [one.count for one in layout.parameters if one.trained]
    if name == "adamw":
        held = {one.name: one.bytes // max(1, one.count) for one in layout.parameters if one.trained}
        return sum(2 * one.count * held[one.name] for one in layout.parameters if one.trained)
    return sum(8 * count if count < SMALL else 2 * (count + 4 * -(-count // STATE_BLOCK)) for count in counts)


def process_bytes(work: Work, layout: Layout) -> int:
    """The interpreter with its libraries and the tokenizer on a CPU; the context and work spaces of CUDA."""
    if work.device == "cuda":
        return CUDA_CONTEXT
    if work.device == "mps":
        return 0
    return CPU_PROCESS + TOKEN * layout.config.vocab_size + (CPU_COMPILER if work.kernels == "compiled" else 0)


def wasted_bytes(work: Work, passing: float) -> int:
    """What allocators hold beyond what is asked for, of memory that comes and goes."""
    return int(WASTED[work.device] * passing)


# ---- what a forward keeps


def kept_by_layer(layout: Layout, work: Work) -> float:
    """Bytes a token that one layer keeps for its backward pass, without checkpointing."""
    own, size, full = sizes(layout.config), work.compute.itemsize, trains_base(layout)
    masks = 1 if work.device == "cuda" else size  # of dropout: a byte on CUDA, a number elsewhere
    together = work.rows > 1 and not work.flash  # rows attended one after another are put together again
    found = 2.0 * own.hidden * residual(layout, work) + 2 * 4
    widths = ((QKV, own.hidden), (("o_proj",), own.queries), (GATES, own.hidden), (("down_proj",), own.inner))
    for names, width in widths:
        targeted = sum(name in layout.targets for name in names)
        if targeted and work.dropout:
            found += targeted * width * (size + masks)
        elif (targeted or full) and (names != ("o_proj",) or together):
            found += width * size
        found += targeted * work.rank * size
    if own.normed_queries:
        found += (own.queries + own.keys) * size + 4 * (own.heads + own.kv_heads)
    found += (2 * own.queries + 2 * own.keys) * size + 4 * own.heads + 2 * own.inner * size
    if work.dora:
        return found * OWN_DORA
    if layout.targets and work.autocast and layout.base.itemsize > work.compute.itemsize:
        return found * OWN_CAST
    return found if layout.fast else found * OWN_FORWARD


def trains_base(layout: Layout) -> bool:
    """Whether the base's own matrices are trained (method: full)."""
    return any(one.trained and one.kind == "mlp" for one in layout.parameters)


def residual(layout: Layout, work: Work) -> int:
    """Bytes of a number of the residual stream: the embedding's dtype, fp32 under fp16."""
    return 4 if work.compute == torch.float16 else layout.residual.itemsize


def activation_bytes(layout: Layout, work: Work) -> tuple[float, float]:
    """(what a forward keeps, temporaries of one layer's backward) in bytes, the head's aside.

    With checkpointing the layer that is computed again counts as temporary.
    """
    own = sizes(layout.config)
    layer = kept_by_layer(layout, work) * work.tokens
    stream = own.hidden * residual(layout, work) * work.tokens
    ends = stream + own.hidden * work.compute.itemsize * work.tokens  # final norm: what goes in, what comes out
    ends += work.tokens * (own.head_dim * work.compute.itemsize + 24)  # angles, ids
    kept = own.layers * (stream if work.checkpointing else layer) + ends
    if work.autocast and layout.base.itemsize > work.compute.itemsize:  # matrices in the dtype of the products
        kept += layout.matrices * work.compute.itemsize / (own.layers if work.checkpointing else 1)
    return kept, _backward(layout, work) + (layer if work.checkpointing else 0.0)


def _backward(layout: Layout, work: Work) -> float:
    """Temporaries of one layer's backward pass: SwiGLU's, gradients of the stream, an unpacked or trained matrix."""
    own, size, full = sizes(layout.config), work.compute.itemsize, trains_base(layout)
    wide = (3 if work.kernels != "eager" else 6 if full else 4) * own.inner * size
    narrow = own.hidden * (residual(layout, work) + size)
    held = work.supervised * own.hidden * size  # of the head, until its backward is done
    matrix = layout.unpacked * size * (2 if work.device == "cpu" else 1)
    if full:  # the gradient of a matrix before it is added to what there is
        largest = max((one.count for one in layout.parameters if one.kind in ("attention", "mlp")), default=0)
        matrix += largest * (4 + (size if work.autocast else 0))
    return work.tokens * (wide + narrow) + held + matrix


def head_bytes(layout: Layout, work: Work) -> int:
    """Logits of one chunk, the log-softmax of a few of its rows, the gradient of every supervised place.

    Where the head is trained, also the fp32 gradient of its matrix, and the chunk's logits in several dtypes under
    autocast (the head then goes through its own module).
    """
    own, size = sizes(layout.config), work.compute.itemsize
    trained = any(one.trained and one.shape[0] == own.vocabulary for one in layout.parameters)
    size = max(size, layout.head.itemsize) if trained and not work.autocast else size  # a copy of it may be fp32
    chunk = min(CHUNK, work.supervised) * own.vocabulary
    matrix = own.vocabulary * own.hidden
    places = work.supervised * own.hidden * size * 2
    if trained and work.autocast:
        return int(chunk * 10 + matrix * (4 + size) + places)
    wide = min(ROWS, work.supervised) * own.vocabulary * 4 * 3  # a few rows in fp32, their log-softmax, its exponential
    cast = matrix * size if layout.head.itemsize != size else 0
    return int(chunk * size + wide + places + cast + (matrix * 4 if trained else 0))


# ---- completions that are generated


def rollout(
    layout: Layout,
    dtype: torch.dtype,
    device: str,
    rows: int,
    prompt: int,
    generated: int,
    native: bool = False,
    exact: bool = False,
) -> Rollout:
    """Bytes of decoding `rows` completions of `generated` tokens after prompts of `prompt` tokens.

    On a CPU fp32 and 4-bit matrices, and with `native` bf16 ones, are copied once in the order that multiplies fastest
    there; `exact`: fp32 matrices of a bf16 checkpoint are copied as bf16, but for small ones, into which adapters are
    merged.
    """
    own, size = sizes(layout.config), dtype.itemsize
    cache = 2 * own.layers * own.keys * rows * (prompt + generated) * size
    picking = 3 * 4 * own.vocabulary * rows  # fp32 logits, their softmax, its running sum
    packed = dtype == torch.float32 or layout.unpacked > 0 or (dtype == torch.bfloat16 and native)
    copied = device == "cpu" and layout.fast and packed
    if exact and dtype == torch.float32 and 2 * own.inner * own.hidden >= MERGED:
        size = torch.bfloat16.itemsize
    return Rollout(cache, picking, (layout.matrices + own.vocabulary * own.hidden) * size if copied else 0)
