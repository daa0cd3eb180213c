"""The fast forward for training Llama, Qwen2 and Qwen3: packed rows through the weights of a transformers model.

`fast_forward(model)` walks the modules of a transformers (or peft) model and computes the same hidden states from the
same parameters, so that saving, adapters and optimizers stay theirs. What is different:
- rows lie one after another without padding; attention runs inside each row (varlen FlashAttention on CUDA where it
  is installed, else scaled_dot_product_attention over rows of similar length);
- LoRA is computed inside the product with the frozen matrix: no gradient of that matrix, nothing saved that the
  backward pass does not need, a 4-bit matrix is unpacked again instead of kept;
- norm, rotation and SwiGLU are functions with their own short backward, compiled where a compiler works (kernels.py).
Linear layers that are more than that (DoRA, adapter biases, full fine-tuning) go through their own modules.

Held to transformers' hidden states and gradients in fp32 by tests. Not covered (see `supports`): sliding windows,
attention dropout, other activations; such models are trained through transformers' own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from danlu.models.batch import Batch
from danlu.models.kernels import How, Kernels, kernels

ARCHITECTURES = ("llama", "qwen2", "qwen3")
BUCKET = 64  # rows whose lengths agree when rounded up to this share an attention call


def supports(config: Any) -> bool:
    """Whether the fast forward and the fast decoder know this model."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}  # 5.x, 4.x
    kind = rope.get("rope_type") or rope.get("type") or "default"
    return (
        getattr(config, "model_type", "") in ARCHITECTURES
        and kind in ("default", "llama3")
        and rope.get("partial_rotary_factor", 1) == 1
        and getattr(config, "hidden_act", "silu") in ("silu", "swish")
        and not getattr(config, "use_sliding_window", False)
        and not getattr(config, "mlp_bias", False)
        and not getattr(config, "attention_dropout", 0.0)
    )


# ---- elementwise functions, each with its own backward


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, own: Kernels) -> Tensor:
        y, scale = own.norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        ctx.own = own
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        (grad,) = grads
        for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = (grad.float() * x.float() * scale).flatten(0, -2).sum(0).to(weight.dtype)
        return ctx.own.norm_back(grad, x, weight, scale), for_weight, None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, own: Kernels) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.own = own
        return own.swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        return *ctx.own.swiglu_back(grads[0], *ctx.saved_tensors), None


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, own: Kernels) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.own = own
        return own.rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return ctx.own.rotate(grads[0], cos, -sin), None, None, None


# ---- linear layers


def dense(weight: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The matrix of a linear layer, [out, in]; a 4-bit one is unpacked."""
    if type(weight).__name__ == "Params4bit":
        import bitsandbytes as bnb

        weight = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight if dtype is None else weight.to(dtype)


class _Lora(torch.autograd.Function):
    """y = x W^T + bias + residual + scale (d A^T) B^T for a frozen W; d is x, or x after dropout."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, weight: Any, bias: Any, a: Any, b: Any, scale: float, residual: Any
    ) -> Tensor:
        matrix = dense(weight, x.dtype)
        start = bias if residual is None else residual
        y = x @ matrix.t() if start is None else torch.addmm(start, x, matrix.t())
        if bias is not None and residual is not None:
            y += bias
        ctx.weight, ctx.scale, ctx.kept = weight, scale, residual is not None
        ctx.own = dropped is not None
        if a is None:
            return y
        source, low, high = x if dropped is None else dropped, a.to(x.dtype), b.to(x.dtype)
        inner = source @ low.t()
        y.addmm_(inner, high.t(), alpha=scale)
        ctx.save_for_backward(source, a, b, inner)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        (grad,) = grads
        for_x = grad @ dense(ctx.weight, grad.dtype) if ctx.needs_input_grad[0] else None
        for_dropped = for_a = for_b = None
        saved = ctx.saved_tensors  # once: with checkpointing each look computes it
        if saved:
            source, a, b, inner = saved
            through = (grad @ b.to(grad.dtype)).mul_(ctx.scale)
            for_a, for_b = through.t() @ source, (grad.t() @ inner).mul_(ctx.scale)
            for_a, for_b = for_a.to(a.dtype), for_b.to(b.dtype)
            if ctx.own:
                for_dropped = through @ a.to(grad.dtype)
            elif for_x is not None:
                for_x.addmm_(through, a.to(grad.dtype))
        return for_x, for_dropped, None, None, for_a, for_b, None, grad if ctx.kept else None


def _base(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def inner(module: Any) -> Any:
    """The module that computes, where peft wrapped one in modules_to_save."""
    if hasattr(module, "modules_to_save"):
        saved = [module.modules_to_save[name] for name in module.active_adapters if name in module.modules_to_save]
        return saved[-1] if saved and not module.disable_adapters else module.original_module
    return module


def _fusable(base: Any, x: Tensor) -> bool:
    if not isinstance(base, nn.Linear) or base.weight.requires_grad:
        return False
    four_bit = type(base.weight).__name__ == "Params4bit"
    return (four_bit or base.weight.dtype == x.dtype) and (base.bias is None or base.bias.dtype == x.dtype)


def linear(module: Any, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """`module(x) + residual` for a linear layer with or without LoRA; x [T, in]."""
    base = _base(module)
    adapters: list[str] = []
    plain = _fusable(base, x)
    if base is not module:
        active = () if module.disable_adapters or module.merged else module.active_adapters
        adapters = [name for name in active if name in module.lora_A]
        special = any(name in module.lora_variant or module.lora_B[name].bias is not None for name in adapters)
        plain = plain and not module.merged and not special
    if not plain:
        y = module(x).to(x.dtype)
        return y if residual is None else y + residual
    if residual is not None and residual.dtype != x.dtype:  # under autocast the residual stream keeps its precision
        return linear(module, x) + residual
    if not adapters:
        return _Lora.apply(x, None, base.weight, base.bias, None, None, 1.0, residual)
    rates = {getattr(module.lora_dropout[name], "p", 0.0) if module.training else 0.0 for name in adapters}
    dropped = None
    if len(adapters) > 1 and rates != {0.0}:  # each adapter has its own dropout
        return _apart(module, base, adapters, x, residual)
    if rates != {0.0}:
        dropped = module.lora_dropout[adapters[0]](x)
    if len(adapters) == 1:
        a, b = module.lora_A[adapters[0]].weight, module.lora_B[adapters[0]].weight
        return _Lora.apply(x, dropped, base.weight, base.bias, a, b, module.scaling[adapters[0]], residual)
    a = torch.cat([module.lora_A[name].weight for name in adapters])
    b = torch.cat([module.lora_B[name].weight * module.scaling[name] for name in adapters], 1)
    return _Lora.apply(x, None, base.weight, base.bias, a, b, 1.0, residual)


def _apart(module: Any, base: Any, adapters: list[str], x: Tensor, residual: Tensor | None) -> Tensor:
    y = _Lora.apply(x, None, base.weight, base.bias, None, None, 1.0, residual)
    for name in adapters:
        source = module.lora_dropout[name](x)
        low, high = module.lora_A[name].weight.to(x.dtype), module.lora_B[name].weight.to(x.dtype)
        y = y + (source @ low.t()) @ high.t() * module.scaling[name]
    return y


# ---- attention


def _varlen() -> Any:
    """FlashAttention's function for rows of different lengths, where it is installed."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func


def attend(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], flash: Any = None, parents: tuple[int, ...] = ()
) -> Tensor:
    """Causal attention inside each row, and to the whole of its parent (see Batch).

    q [T, H, D], k and v [T, K, D] with K dividing H -> [T, H, D]. `flash`: flash_attn_varlen_func or None.
    """
    if flash is not None and q.dtype in (torch.float16, torch.bfloat16):
        ends, seen, longest, most = _ends(lengths, parents, q.device)
        if parents:
            k, v = (x[_seen(lengths, parents, q.device)] for x in (k, v))
        return flash(q, k, v, ends, seen, longest, most, causal=True)
    if len(lengths) == 1:
        return _sdpa(q[None], k[None], v[None])[0]
    buckets: dict[tuple[int, int], list[int]] = {}
    for row, length in enumerate(lengths):
        buckets.setdefault((-(-length // BUCKET), parents[row] if parents else -1), []).append(row)
    cut = [x.split(lengths) for x in (q, k, v)]  # not slices, each of which has a whole gradient filled with zeros
    parts: list[Tensor | None] = [None] * len(lengths)
    for (_, parent), rows in buckets.items():
        # padded on the right: with causal attention nobody looks there
        wide = [_padded([pieces[row] for row in rows]) for pieces in cut]
        before = [pieces[parent] for pieces in cut[1:]] if parent >= 0 else []
        for row, found in zip(rows, _sdpa(*wide, *before).unbind(), strict=True):
            parts[row] = found if len(found) == lengths[row] else found[: lengths[row]]
    return torch.cat([part for part in parts if part is not None])


def _padded(rows: list[Tensor]) -> Tensor:
    longest = max(map(len, rows))
    return torch.stack([x if len(x) == longest else F.pad(x, (0, 0, 0, 0, 0, longest - len(x))) for x in rows])


def _sdpa(q: Tensor, k: Tensor, v: Tensor, k_before: Tensor | None = None, v_before: Tensor | None = None) -> Tensor:
    """[B, T, H, D] each (k and v with fewer heads) -> [B, T, H, D]; all rows also see k_before, v_before [P, K, D]."""
    mask = None
    if k_before is not None and v_before is not None:
        rows, length, prefix = q.shape[0], q.shape[1], len(k_before)
        k, v = (torch.cat([b.expand(rows, *b.shape), x], 1) for b, x in ((k_before, k), (v_before, v)))
        mask = torch.ones(length, prefix + length, dtype=torch.bool, device=q.device).tril(prefix)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
    return found.transpose(1, 2)


@lru_cache(maxsize=4)  # the layers of a forward ask for the same
def _ends(lengths: tuple[int, ...], parents: tuple[int, ...], place: torch.device) -> tuple[Tensor, Tensor, int, int]:
    """(ends of the rows, ends of what they see, the longest row, the most that a row sees), int32 [rows + 1]."""
    seen = [size + (lengths[parents[row]] if parents and parents[row] >= 0 else 0) for row, size in enumerate(lengths)]
    made = (torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=place) for sizes in (lengths, seen))
    ends, ends_seen = made
    return ends, ends_seen, max(lengths), max(seen)


@lru_cache(maxsize=4)
def _seen(lengths: tuple[int, ...], parents: tuple[int, ...], place: torch.device) -> Tensor:
    """Places of the keys that each row sees, one row after another: its parent's, then its own; int64."""
    starts = [0, *accumulate(lengths)]
    spans = [one for row, parent in enumerate(parents) for one in ([parent, row] if parent >= 0 else [row])]
    return torch.cat([torch.arange(starts[row], starts[row + 1]) for row in spans]).to(place)


# ---- the forward


def checkpointing(plain: Any) -> bool:
    """Whether gradient checkpointing is switched on in a transformers model."""
    return any(getattr(one, "gradient_checkpointing", False) for one in (plain.model, plain.model.layers[0]))


def fast_forward(model: Any, way: How = "eager", hooked: bool = False) -> Callable[[Batch], Tensor]:
    """Hidden states after the final norm, [T, hidden], of a Batch. ValueError if `supports` says no.

    way: how the elementwise functions are run, see `kernels`. With `hooked` it becomes the forward of the model's
    decoder layers, and is called through them: hooks of modules run (those that gather sharded weights), and the model
    has no other forward any more.
    Gradient checkpointing follows the model's own switch. Under autocast it computes in autocast's dtype and keeps the
    residual stream in the embedding's.
    """
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    config = plain.config
    if not supports(config):
        raise ValueError(f"no fast forward for {config.model_type}")
    decoder, own, eps = plain.model, kernels(way), config.rms_norm_eps
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    flash = _varlen() if next(plain.parameters()).device.type == "cuda" else None

    def norm(module: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return _Norm.apply(x, inner(module).weight.to(dtype), eps, own)

    def layer_of(layer: Any, x: Tensor, cos: Tensor, sin: Tensor, lengths: Any, parents: Any) -> Tensor:
        attention, mlp, count, dtype = layer.self_attn, layer.mlp, x.shape[0], cos.dtype
        hidden = norm(layer.input_layernorm, x, dtype)
        parts = [linear(p, hidden) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        q, k, v = (part.view(count, -1, head_dim) for part in parts)
        if hasattr(attention, "q_norm"):
            q, k = norm(attention.q_norm, q, dtype), norm(attention.k_norm, k, dtype)
        q, k = _Rotary.apply(q, cos, sin, own), _Rotary.apply(k, cos, sin, own)
        attended = attend(q, k, v, lengths, flash, parents).reshape(count, -1)
        x = linear(attention.o_proj, attended, x)
        hidden = norm(layer.post_attention_layernorm, x, dtype)
        acted = _SwiGlu.apply(linear(mlp.gate_proj, hidden), linear(mlp.up_proj, hidden), own)
        return linear(mlp.down_proj, acted, x)

    if hooked:
        for layer in decoder.layers:
            layer.forward = partial(layer_of, layer)

    def forward(batch: Batch) -> Tensor:
        kind = batch.ids.device.type
        x = decoder.embed_tokens(batch.ids)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        if dtype == torch.float16:
            x = x.float()  # Qwen2.5's residual stream grows past what fp16 holds
        angles = decoder.rotary_emb(x[None], batch.positions[None])  # both halves alike: one is enough
        cos, sin = (part[0, :, None, : head_dim // 2].to(dtype) for part in angles)
        recompute = checkpointing(plain) and model.training and torch.is_grad_enabled()
        for layer in decoder.layers:
            if hooked:  # recomputes by itself
                x = layer(x, cos, sin, batch.lengths, batch.parents)
            elif recompute:
                x = checkpoint(layer_of, layer, x, cos, sin, batch.lengths, batch.parents, use_reentrant=False)
            else:
                x = layer_of(layer, x, cos, sin, batch.lengths, batch.parents)
        return norm(decoder.norm, x, dtype)

    return forward
