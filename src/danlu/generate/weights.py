"""The weights of a Llama, Qwen2 or Qwen3 as decoding multiplies with them, taken from a transformers or peft model.

Method: `snapshot` looks at every linear layer and chooses a layout for its matrix:
- on a CPU, where a copy fits into memory: q, k, v and gate, up joined; fp32 ones in the panels of native.py, or where
  that is not to be had packed by oneDNN where large and transposed where small, because the [out, in] order of
  checkpoints is up to twice as slow for 4 to 64 rows; bf16 ones packed where the CPU has bf16 units (up to three times
  as fast);
- elsewhere the model's own tensors, untouched: no copy, a 4-bit base multiplied by bitsandbytes.
Adapters are merged into small copied matrices, which are then fp32 whatever the model is, and kept apart as y = x W^T +
(x A^T) (s B)^T from all others: a merge writes the whole matrix at every training step, rounds in half precision, and
cannot be done in 4 bits.
A later snapshot keeps every matrix whose base and adapter did not change.
Not covered (see `plain_lora`): DoRA, adapters with biases, adapters of embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.generate import native
from danlu.generate.memory import free_bytes
from danlu.models.decoder import dense, inner, supports
from danlu.models.load import native_bf16

LARGE = 1 << 20  # numbers of a matrix from which packing, and keeping the adapter apart, pays
SHARE = 0.5  # of the free memory that copies may take

Adapters = Literal["auto", "merged", "apart"]
Layout = Literal["rows", "columns", "packed", "panels", "four_bit"]
Pair = tuple[Tensor, Tensor]  # (A [r, in], s B [out, r])


@dataclass(frozen=True, slots=True)
class Origin:
    """What a matrix was made from: to see whether it still is so."""

    sources: tuple[Any, ...]  # weights and biases
    versions: tuple[int, ...]
    pairs: tuple[Pair | None, ...]

    def same_base(self, sources: Sequence[Any]) -> bool:
        """Whether these are the tensors it was made from, neither trained nor written to since."""
        if [id(one) for one in sources] != [id(one) for one in self.sources]:
            return False
        return not any(one.requires_grad for one in sources) and _versions(sources) == self.versions

    def same_adapters(self, pairs: Sequence[Pair | None]) -> bool:
        return all(_equal(a, b) for a, b in zip(pairs, self.pairs, strict=True))


def _versions(sources: Sequence[Any]) -> tuple[int, ...]:
    return tuple(one._version for one in sources)


def _equal(a: Pair | None, b: Pair | None) -> bool:
    if a is None or b is None:
        return a is b
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


@dataclass(frozen=True, slots=True)
class Matrix:
    """One linear layer, or several that take the same input, joined. `low` [in, r], `high` [r, out]: adapters."""

    layout: Layout
    outputs: int
    parts: tuple[Any, ...]
    bias: Tensor | None
    low: Tensor | None
    high: Tensor | None
    origin: Origin

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, in] -> [N, out]"""
        if self.layout == "panels":
            return native.product(self, x)
        if self.layout == "packed":
            y = torch.ops.mkldnn._linear_pointwise(x, self.parts[0], self.bias, "none", [], "")
        elif self.layout == "columns":
            wide = x.to(self.parts[0].dtype)
            y = torch.mm(wide, self.parts[0]) if self.bias is None else torch.addmm(self.bias, wide, self.parts[0])
            y = y.to(x.dtype)
        else:
            one = _four_bit if self.layout == "four_bit" else F.linear
            found = [one(x, part) for part in self.parts]
            y = found[0] if len(found) == 1 else torch.cat(found, -1)
            if self.bias is not None:
                y += self.bias
        if self.low is not None and self.high is not None:
            y.addmm_(torch.mm(x, self.low), self.high)
        return y


def _four_bit(x: Tensor, weight: Any) -> Tensor:
    import bitsandbytes as bnb

    return bnb.matmul_4bit(x, weight.t(), quant_state=weight.quant_state)


@dataclass(frozen=True, slots=True)
class Layer:
    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    norm_in: Tensor
    norm_out: Tensor
    norm_qk: Tensor | None  # [heads + kv_heads, head_dim]


@dataclass(frozen=True, slots=True)
class Weights:
    """All that decoding needs."""

    layers: tuple[Layer, ...]
    embed: Tensor
    head: Matrix
    norm: Tensor
    inverse_frequency: Tensor
    rope_scale: float
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    copied: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.dtype

    @property
    def device(self) -> torch.device:
        return self.embed.device

    @property
    def vocabulary(self) -> int:
        return self.embed.shape[0]

    def matrices(self) -> Iterator[Matrix]:
        for layer in self.layers:
            yield from (layer.qkv, layer.out, layer.gate_up, layer.down)
        yield self.head


def plain_lora(model: Any) -> bool:
    """Whether all adapters of `model` are ones that `snapshot` knows: LoRA on linear layers without extras."""
    kinds = (getattr(config, "peft_type", "LORA") for config in getattr(model, "peft_config", {}).values())
    if any(str(getattr(kind, "value", kind)) != "LORA" for kind in kinds):
        return False
    for module in model.modules():
        if any(len(getattr(module, name, ())) for name in ("lora_embedding_A", "lora_magnitude_vector")):
            return False
        if any(b.bias is not None for b in getattr(module, "lora_B", {}).values()):
            return False
    return True


@torch.no_grad()
def snapshot(
    model: Any,
    dtype: torch.dtype | None = None,
    *,
    previous: Weights | None = None,
    adapters: Adapters = "auto",
    copies: bool | None = None,
) -> Weights:
    """Weights of a transformers (or peft) causal model as they are now.

    dtype: what decoding computes in (default: the model's, or see `_wide`). previous: an earlier snapshot of the same
    model, whose unchanged matrices are kept. adapters: "merged" needs
    copies. copies: rearrange matrices for speed; None: on a CPU, where they fit. What is not copied is the model's
    own: it changes with it. ValueError if `supports` says no.
    """
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    config = plain.config
    if not supports(config):
        raise ValueError(f"no fast decoder for {config.model_type}")
    decoder = plain.model
    embedding = inner(decoder.embed_tokens)
    own = getattr(decoder.embed_tokens, "original_module", embedding).weight.dtype  # a copy may be fp32
    wide = dtype or (previous.dtype if previous else _wide(plain, own))
    if copies is None:
        copies = previous.copied if previous else adapters == "merged" or _copies_fit(plain, wide)
    dtype = wide if copies else dtype or own
    if adapters == "merged" and not copies:
        raise ValueError("adapters are merged into copies only")
    kept = {id(m.origin.sources[0]): m for m in previous.matrices()} if previous else {}

    def matrix(*modules: Any) -> Matrix:
        modules = tuple(inner(module) for module in modules)
        bases = [base_of(module) for module in modules]
        biases = [base.bias for base in bases if base.bias is not None]
        sources, pairs = (*(base.weight for base in bases), *biases), tuple(_pair(module) for module in modules)
        old = kept.get(id(sources[0]))
        if old is not None and not old.origin.same_base(sources):
            old = None
        if old is not None and old.origin.same_adapters(pairs):
            return old
        return _made(sources, len(bases), pairs, old, dtype, copies, adapters)

    layers = []
    for layer in decoder.layers:
        qkv, out, gate_up, down = (matrix(*group) for group in _groups(layer))
        attention = layer.self_attn
        layers.append(
            Layer(
                qkv=qkv,
                out=out,
                gate_up=gate_up,
                down=down,
                norm_in=inner(layer.input_layernorm).weight.to(dtype),
                norm_out=inner(layer.post_attention_layernorm).weight.to(dtype),
                norm_qk=_norm_qk(attention, config, dtype) if hasattr(attention, "q_norm") else None,
            )
        )
    rotary = decoder.rotary_emb
    return Weights(
        layers=tuple(layers),
        embed=embedding.weight.detach().to(dtype),
        head=matrix(plain.lm_head),
        norm=inner(decoder.norm).weight.to(dtype),
        inverse_frequency=rotary.inv_freq.float(),
        rope_scale=float(getattr(rotary, "attention_scaling", 1.0)),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        eps=config.rms_norm_eps,
        copied=copies,
    )


def _groups(layer: Any) -> tuple[tuple[Any, ...], ...]:
    """The linear layers of a decoder layer; those that take the same input together."""
    a, mlp = layer.self_attn, layer.mlp
    return (a.q_proj, a.k_proj, a.v_proj), (a.o_proj,), (mlp.gate_proj, mlp.up_proj), (mlp.down_proj,)


def base_of(module: Any) -> Any:
    """The plain layer inside one that peft wrapped."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _norm_qk(attention: Any, config: Any, dtype: torch.dtype) -> Tensor:
    """The weights of q's and k's norms, a row for each head, so that both are normed at once."""
    q, k = attention.q_norm.weight.to(dtype), attention.k_norm.weight.to(dtype)
    return torch.cat([q.expand(config.num_attention_heads, -1), k.expand(config.num_key_value_heads, -1)])


def _pair(module: Any) -> Pair | None:
    """The active adapters of a linear layer as one (copies: what is trained changes in place)."""
    names = [name for name in getattr(module, "active_adapters", ()) if name in getattr(module, "lora_A", {})]
    if not names or getattr(module, "disable_adapters", False):
        return None
    low = torch.cat([module.lora_A[name].weight.detach() for name in names])
    return low, torch.cat([module.lora_B[name].weight.detach() * module.scaling[name] for name in names], 1)


def _shape(weight: Any) -> tuple[int, int]:
    """(out, in) of a matrix, also of a 4-bit one."""
    state = getattr(weight, "quant_state", None)
    return tuple(state.shape if state is not None else weight.shape)  # type: ignore[return-value]


def _wide(plain: Any, dtype: torch.dtype) -> torch.dtype:
    """What a model of `dtype` decodes in: fp32 in place of bf16 on a CPU, where native steps read bf16 weights as they
    are and the CPU has no bf16 units, or has little use for them as the matrices are small."""
    linear = [
        base_of(inner(module)).weight for layer in plain.model.layers for group in _groups(layer) for module in group
    ]
    place = inner(plain.model.embed_tokens).weight.device
    if dtype != torch.bfloat16 or not native.available(place, torch.float32):
        return dtype
    small = all(out * width < LARGE for out, width in map(_shape, linear))
    return torch.float32 if small or not native_bf16() else dtype


def _copies_fit(plain: Any, dtype: torch.dtype) -> bool:
    """Whether copies of all linear layers are of use and fit into memory."""
    linear = [module for layer in plain.model.layers for group in _groups(layer) for module in group]
    weights = [base_of(inner(module)).weight for module in (*linear, plain.lm_head)]
    four_bit = any(type(weight).__name__ == "Params4bit" for weight in weights)
    place = inner(plain.model.embed_tokens).weight.device
    fast = dtype == torch.float32 or four_bit or (dtype == torch.bfloat16 and packs_bf16())
    if place.type != "cpu" or not fast:
        return False
    needed = sum(out * width for out, width in map(_shape, weights)) * dtype.itemsize
    return needed <= SHARE * free_bytes(place)


def _made(
    sources: tuple[Any, ...],
    count: int,
    pairs: tuple[Pair | None, ...],
    old: Matrix | None,
    dtype: torch.dtype,
    copies: bool,
    adapters: Adapters,
) -> Matrix:
    """A Matrix of `count` weights and their biases; `old` has the same base and other adapters."""
    weights, biases = sources[:count], sources[count:]
    shapes = [_shape(weight) for weight in weights]
    small = sum(out for out, _ in shapes) * shapes[0][1] < LARGE
    exact = copies and small and (dtype == torch.float32 or weights[0].device.type == "cpu")
    merged = any(pairs) and (adapters == "merged" or (adapters == "auto" and exact))
    kind = torch.float32 if merged and exact else dtype
    low, high = (None, None) if merged else _joined(pairs, shapes, dtype)
    layout = old.layout if old else _layout(weights[0], kind, dtype, copies, small)
    if low is not None and high is not None and layout == "panels":
        low, high = native.padded(low, high)
    origin = Origin(sources, _versions(sources), pairs)
    if old is not None and not merged and (old.low is not None or not any(old.origin.pairs)):
        return replace(old, low=low, high=high, origin=origin)
    bias = torch.cat([one.detach().to(kind) for one in biases]) if biases else None
    if copies:
        whole = torch.cat([_merged(w, pair if merged else None, kind) for w, pair in zip(weights, pairs, strict=True)])
        parts: tuple[Any, ...] = (_laid_out(whole, layout),)
    else:
        parts = weights if layout == "four_bit" else tuple(weight.detach().to(dtype) for weight in weights)
    return Matrix(layout, sum(out for out, _ in shapes), parts, bias, low, high, origin)


def _merged(weight: Any, pair: Pair | None, dtype: torch.dtype) -> Tensor:
    """A base with its adapters added in fp32."""
    if pair is None:
        return dense(weight, dtype).detach()
    low, high = pair
    return torch.addmm(dense(weight).detach().float(), high.float(), low.float()).to(dtype)


def _joined(
    pairs: Sequence[Pair | None], shapes: Sequence[tuple[int, int]], dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Adapters of joined layers as one: A^T side by side, B^T on a diagonal of blocks."""
    present = [pair for pair in pairs if pair is not None]
    if not present:
        return None, None
    low = torch.cat([a for a, _ in present]).t().to(dtype).contiguous()
    high = low.new_zeros(low.shape[1], sum(out for out, _ in shapes))
    row = column = 0
    for pair, (out, _) in zip(pairs, shapes, strict=True):
        if pair is not None:
            rank = pair[0].shape[0]
            high[row : row + rank, column : column + out] = pair[1].t()
            row += rank
        column += out
    return low, high


def _layout(weight: Any, kind: torch.dtype, dtype: torch.dtype, copies: bool, small: bool) -> Layout:
    """How a matrix of numbers of `kind` in a model of `dtype` multiplies fastest here."""
    if not copies:
        return "four_bit" if type(weight).__name__ == "Params4bit" else "rows"
    if weight.device.type != "cpu" or kind not in (torch.float32, torch.bfloat16):
        return "rows"
    if native.available(weight.device, dtype):
        return "panels"
    if kind == torch.bfloat16:
        return "packed" if packs_bf16() else "rows"
    return "columns" if small or not _can_pack() else "packed"


def _laid_out(whole: Tensor, layout: Layout) -> Tensor:
    """A copied [out, in] matrix in its layout."""
    if layout == "panels":
        return native.panels(whole)
    if layout == "packed":
        return torch.ops.mkldnn._reorder_linear_weight(whole)
    return whole.t().contiguous() if layout == "columns" else whole


def packs_bf16() -> bool:
    """Whether this CPU multiplies packed bf16 matrices, and fast."""
    return native_bf16() and _can_pack(torch.bfloat16)


@lru_cache(maxsize=2)
def _can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """Whether oneDNN's packed product works here (its operators are private to PyTorch, so it is tried)."""
    weight, x = (torch.arange(512) % 7).view(16, 32).to(dtype), torch.ones(3, 32, dtype=dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        found = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (RuntimeError, AttributeError, TypeError):
        return False
    return torch.equal(found, x @ weight.t())
