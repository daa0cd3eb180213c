"""Fast decoding for Llama, Qwen2 and Qwen3: a snapshot of the weights, and a batched loop over a static KV cache.

Method: `snapshot` merges whatever adapters are active into the matrices (in fp32, then cast) and joins q, k and v as
well as gate and up. `decode` runs every prompt once, copies its keys and values to the completions of its group,
samples one token a step for all rows, keeps the log-prob of each, and drops finished rows from the batch.

Every completion has its own random numbers, drawn from (seed, key, number of the completion): what it says does not
depend on what it shares a batch with, except through the rounding of matrix products.
Departures from transformers' generate: no logits processors but temperature and top-p; prompts are padded on the left
and padding is masked with an additive bias.
Not covered: sliding windows, rope scaling other than llama3's (those models go through transformers' generate).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ARCHITECTURES = ("llama", "qwen2", "qwen3")
COMPACT = 0.8  # the batch shrinks when fewer than this share of its rows is alive


@dataclass(frozen=True, slots=True)
class Layer:
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    gate_up: Tensor
    down: Tensor
    norm_in: Tensor
    norm_out: Tensor
    norm_q: Tensor | None
    norm_k: Tensor | None


@dataclass(frozen=True, slots=True)
class Weights:
    """All that decoding needs; matrices are [out, in]."""

    layers: tuple[Layer, ...]
    embed: Tensor
    head: Tensor
    norm: Tensor
    inverse_frequency: Tensor
    rope_scale: float
    heads: int
    kv_heads: int
    head_dim: int
    eps: float


@dataclass(frozen=True, slots=True)
class Decoded:
    """One completion: ids (end token included when `stopped`) and the log-prob of each at the sampling temperature."""

    tokens: list[int]
    logprobs: list[float]
    stopped: bool


def supports(config: Any) -> bool:
    """Whether `snapshot` knows this architecture."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}  # 5.x, 4.x
    kind = rope.get("rope_type") or rope.get("type") or "default"
    plain = kind in ("default", "llama3") and rope.get("partial_rotary_factor", 1) == 1
    windowed = getattr(config, "use_sliding_window", False)
    return (
        getattr(config, "model_type", "") in ARCHITECTURES
        and plain
        and getattr(config, "hidden_act", "silu") in ("silu", "swish")
        and not windowed
        and not getattr(config, "mlp_bias", False)
    )


def plain_lora(model: Any) -> bool:
    """Whether all adapters of `model` are ones that `snapshot` can merge: LoRA on linear layers without extras."""
    kinds = (getattr(config, "peft_type", "LORA") for config in getattr(model, "peft_config", {}).values())
    if any(str(getattr(kind, "value", kind)) != "LORA" for kind in kinds):
        return False
    for module in model.modules():
        if any(len(getattr(module, name, ())) for name in ("lora_embedding_A", "lora_magnitude_vector")):
            return False
        if any(b.bias is not None for b in getattr(module, "lora_B", {}).values()):
            return False
    return True


def _matrix(module: Any, dtype: torch.dtype) -> Tensor:
    """The effective weight of a linear layer: base plus every active LoRA (4-bit bases are dequantised)."""
    base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    weight = base.weight
    if type(weight).__name__ == "Params4bit":
        import bitsandbytes as bnb

        weight = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    adapters = [name for name in getattr(module, "active_adapters", ()) if name in getattr(module, "lora_A", {})]
    if not adapters or getattr(module, "disable_adapters", False):
        return weight.detach().to(dtype)
    total = weight.detach().float()
    for name in adapters:
        a, b = module.lora_A[name].weight.detach().float(), module.lora_B[name].weight.detach().float()
        total = torch.addmm(total, b, a, alpha=module.scaling[name])
    return total.to(dtype)


def _inner(module: Any) -> Any:
    """The module that computes, where peft wrapped one in modules_to_save."""
    if hasattr(module, "modules_to_save"):
        saved = [module.modules_to_save[name] for name in module.active_adapters if name in module.modules_to_save]
        return saved[-1] if saved else module.original_module
    return module


@torch.no_grad()
def snapshot(model: Any, dtype: torch.dtype | None = None) -> Weights:
    """Weights of a transformers (or peft) causal model as they are now. ValueError if `supports` says no."""
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    config = plain.config
    if not supports(config):
        raise ValueError(f"no fast decoder for {config.model_type}")
    decoder = plain.model
    embedding = _inner(decoder.embed_tokens)
    dtype = dtype or embedding.weight.dtype
    layers = []
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        biases = [getattr(p.get_base_layer() if hasattr(p, "get_base_layer") else p, "bias", None) for p in projections]
        out_base = (
            attention.o_proj.get_base_layer() if hasattr(attention.o_proj, "get_base_layer") else attention.o_proj
        )
        layers.append(
            Layer(
                qkv=torch.cat([_matrix(p, dtype) for p in projections]),
                qkv_bias=torch.cat([b.to(dtype) for b in biases if b is not None]) if biases[0] is not None else None,
                out=_matrix(attention.o_proj, dtype),
                out_bias=out_base.bias.to(dtype) if out_base.bias is not None else None,
                gate_up=torch.cat([_matrix(mlp.gate_proj, dtype), _matrix(mlp.up_proj, dtype)]),
                down=_matrix(mlp.down_proj, dtype),
                norm_in=layer.input_layernorm.weight.to(dtype),
                norm_out=layer.post_attention_layernorm.weight.to(dtype),
                norm_q=attention.q_norm.weight.to(dtype) if hasattr(attention, "q_norm") else None,
                norm_k=attention.k_norm.weight.to(dtype) if hasattr(attention, "k_norm") else None,
            )
        )
    head = _inner(plain.lm_head)
    rotary = decoder.rotary_emb
    return Weights(
        layers=tuple(layers),
        embed=embedding.weight.detach().to(dtype),
        head=_matrix(head, dtype),
        norm=decoder.norm.weight.to(dtype),
        inverse_frequency=rotary.inv_freq.float(),
        rope_scale=float(getattr(rotary, "attention_scaling", 1.0)),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        eps=config.rms_norm_eps,
    )


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _angles(w: Weights, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angles = positions[..., None].float() * w.inverse_frequency
    return (angles.cos() * w.rope_scale).to(dtype), (angles.sin() * w.rope_scale).to(dtype)


def _attention_inputs(w: Weights, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated q [B, H, T, D], rotated k and v [B, K, T, D] of x [B, T, hidden]; cos, sin [B, T, D/2]."""
    rows, length, _ = x.shape
    hidden = _norm(x, layer.norm_in, w.eps)
    sizes = [w.heads * w.head_dim, w.kv_heads * w.head_dim, w.kv_heads * w.head_dim]
    parts = F.linear(hidden, layer.qkv, layer.qkv_bias).split(sizes, -1)
    q, k, v = (part.view(rows, length, -1, w.head_dim).transpose(1, 2) for part in parts)
    if layer.norm_q is not None and layer.norm_k is not None:
        q, k = _norm(q, layer.norm_q, w.eps), _norm(k, layer.norm_k, w.eps)
    cos, sin = cos[:, None], sin[:, None]
    return _rotate(q, cos, sin), _rotate(k, cos, sin), v


def _rest(w: Weights, layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
    """Output projection and MLP; attended [B, T, H * D]."""
    x = x + F.linear(attended, layer.out, layer.out_bias)
    gate, up = F.linear(_norm(x, layer.norm_out, w.eps), layer.gate_up).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, layer.down)


def _prefill(w: Weights, ids: Tensor, starts: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """(last hidden state [P, hidden], per layer (k, v) [P, K, T, D]) of left-padded prompts ids [P, T]."""
    count, length = ids.shape
    places = torch.arange(length, device=ids.device)
    cos, sin = _angles(w, (places[None] - starts[:, None]).clamp(min=0), w.embed.dtype)
    allowed = (places[None, :] <= places[:, None])[None] & (places[None, None, :] >= starts[:, None, None])
    allowed = (allowed | torch.eye(length, dtype=torch.bool, device=ids.device))[:, None]  # padding sees itself: no NaN
    group = w.heads // w.kv_heads
    x = F.embedding(ids, w.embed)
    cache = []
    for layer in w.layers:
        q, k, v = _attention_inputs(w, layer, x, cos, sin)
        cache.append((k, v))
        wide_k, wide_v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        attended = F.scaled_dot_product_attention(q, wide_k, wide_v, attn_mask=allowed)
        x = _rest(w, layer, x, attended.transpose(1, 2).reshape(count, length, -1))
    return _norm(x[:, -1], w.norm, w.eps), cache


def _draws(seed: int, keys: Sequence[str], samples: int, steps: int) -> Tensor:
    """Uniform numbers [len(keys) * samples, steps]; row i * samples + j belongs to sample j of key i."""
    rows = []
    for key in keys:
        for sample in range(samples):
            word = hashlib.blake2b(f"{seed}|{key}|{sample}".encode(), digest_size=16).digest()
            rows.append(
                np.random.Generator(np.random.Philox(int.from_bytes(word, "big"))).random(steps, dtype=np.float32)
            )
    return torch.from_numpy(np.stack(rows))


def _pick(logits: Tensor, temperature: float, top_p: float, draw: Tensor | None) -> tuple[Tensor, Tensor]:
    """(ids [B], log-probs [B] at the temperature, before top-p) of logits [B, V]."""
    logits = logits.float()
    if temperature == 0 or draw is None:
        chosen = logits.argmax(-1)
    else:
        logits = logits / temperature
        weights = torch.softmax(logits, -1)
        if top_p < 1:
            ordered, order = weights.sort(-1, descending=True)
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
            weights = torch.zeros_like(weights).scatter_(-1, order, ordered)
        totals = weights.cumsum(-1)
        # inverse of the cumulative distribution at a uniform number: one draw a token, whatever the batch
        last = totals[:, -1:]
        target = torch.minimum(draw[:, None] * last, torch.nextafter(last, torch.zeros_like(last)))
        chosen = torch.searchsorted(totals, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
    logprob = logits.gather(-1, chosen[:, None]).squeeze(-1) - logits.logsumexp(-1)
    return chosen, logprob


@torch.no_grad()
def decode(
    w: Weights,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    end_ids: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    keys: Sequence[str] | None = None,
) -> list[list[Decoded]]:
    """`samples` completions of every prompt, all in one batch.

    prompts: token ids, none empty. keys: one string a prompt that, with `seed`, fixes its random numbers (default:
    its place in the list). Returns one list of completions a prompt.
    """
    place, dtype = w.embed.device, w.embed.dtype
    keys = keys or [str(i) for i in range(len(prompts))]
    length = max(map(len, prompts))
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
    starts = torch.tensor([length - len(prompt) for prompt in prompts], device=place)
    hidden, prefix = _prefill(w, ids.to(place), starts)
    rows = len(prompts) * samples
    total = length + max_tokens
    caches = []
    for k, v in prefix:
        held = [torch.empty(rows, w.kv_heads, total, w.head_dim, dtype=dtype, device=place) for _ in range(2)]
        held[0][:, :, :length], held[1][:, :, :length] = (
            k.repeat_interleave(samples, 0),
            v.repeat_interleave(samples, 0),
        )
        caches.append(held)
    del prefix
    hidden, starts = hidden.repeat_interleave(samples, 0), starts.repeat_interleave(samples, 0)
    hidden_from = torch.arange(total, device=place)
    bias = torch.where(hidden_from[None] >= starts[:, None], 0.0, float("-inf")).to(dtype)
    draws = _draws(seed, keys, samples, max_tokens).to(place) if temperature > 0 else None
    ends = torch.tensor(list(end_ids), dtype=torch.long, device=place)
    tokens = torch.full((rows, max_tokens), -1, device=place)
    logprobs = torch.zeros(rows, max_tokens, device=place)
    alive = torch.arange(rows, device=place)  # row of the output that each row of the batch belongs to
    open_rows = torch.ones(rows, dtype=torch.bool, device=place)  # by row of the batch
    group = w.heads // w.kv_heads
    for step in range(max_tokens):
        draw = draws[alive, step] if draws is not None else None
        chosen, logprob = _pick(F.linear(hidden, w.head), temperature, top_p, draw)
        tokens[alive[open_rows], step] = chosen[open_rows]
        logprobs[alive[open_rows], step] = logprob[open_rows]
        open_rows = open_rows & ~torch.isin(chosen, ends)
        left = int(open_rows.sum())
        if left == 0 or step == max_tokens - 1:
            break
        if left < COMPACT * len(alive):
            alive, chosen, starts, bias = alive[open_rows], chosen[open_rows], starts[open_rows], bias[open_rows]
            used = length + step
            for held in caches:
                for i in range(2):
                    smaller = torch.empty(left, w.kv_heads, total, w.head_dim, dtype=dtype, device=place)
                    smaller[:, :, :used] = held[i][open_rows, :, :used]
                    held[i] = smaller
            open_rows = torch.ones(left, dtype=torch.bool, device=place)
        at, count = length + step, len(alive)
        cos, sin = _angles(w, (at - starts)[:, None], dtype)
        mask = bias[:, None, None, : at + 1].expand(count, w.kv_heads, group, at + 1)
        x = F.embedding(chosen[:, None], w.embed)
        for layer, (keys_held, values_held) in zip(w.layers, caches, strict=True):
            q, k, v = _attention_inputs(w, layer, x, cos, sin)
            keys_held[:, :, at], values_held[:, :, at] = k[:, :, 0], v[:, :, 0]
            grouped = q.view(count, w.kv_heads, group, w.head_dim)
            attended = F.scaled_dot_product_attention(
                grouped, keys_held[:, :, : at + 1], values_held[:, :, : at + 1], attn_mask=mask
            )
            x = _rest(w, layer, x, attended.reshape(count, 1, -1))
        hidden = _norm(x[:, 0], w.norm, w.eps)
    return _collected(tokens.tolist(), logprobs.tolist(), set(end_ids), len(prompts), samples)


def _collected(
    tokens: list[list[int]], logprobs: list[list[float]], ends: set[int], prompts: int, samples: int
) -> list[list[Decoded]]:
    out = []
    for row, scores in zip(tokens, logprobs, strict=True):
        kept = [token for token in row if token >= 0]
        out.append(Decoded(kept, scores[: len(kept)], bool(kept) and kept[-1] in ends))
    return [out[i * samples : (i + 1) * samples] for i in range(prompts)]
