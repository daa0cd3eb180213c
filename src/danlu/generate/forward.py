"""Prefill and decode steps of a Llama, Qwen2 or Qwen3 over a static KV cache.

Every row of the cache is one sequence with its first token at place 0 and its own length, so rows of any age and
length lie side by side; attention is over the longest row that is alive, and what a shorter row has not written yet
is masked. Prompts are padded on the right, where causal attention needs no mask. q heads that share a k head are the
queries of one attention: nothing is repeated.

Where completions share their prompt (on a CPU), it is kept once: attention over the prompt takes the queries of the
whole group together, attention over the completion is each row's own, and the two are joined by their log-sum-exps
(as in "Cascade inference", Ye et al. 2024): far less memory is read, which is what decoding many short rows waits for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.generate.weights import Layer, Weights


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys before values: `data` [layers, rows, 2 * kv_heads, length, head_dim].

    shared: prompts apart from completions, [layers, groups, 2 * kv_heads, prompt length, head_dim], or None.
    members: rows of a group at most. cos, sin: [tokens, 1, head_dim], the first half of sin negated.
    """

    data: Tensor
    shared: Tensor | None
    members: int
    cos: Tensor
    sin: Tensor


def cache_of(w: Weights, rows: int, prompt: int, completion: int, groups: int = 0, members: int = 1) -> Cache:
    """An empty cache for prompts and completions of so many tokens; with `groups`, prompts are kept apart.

    It is zeroed because masked places must be finite; on a CPU untouched pages cost nothing.
    """

    def empty(count: int, length: int) -> Tensor:
        shape = (len(w.layers), count, 2 * w.kv_heads, length, w.head_dim)
        return torch.zeros(shape, dtype=w.dtype, device=w.device)

    angles = torch.arange(prompt + completion, device=w.device)[:, None].float() * w.inverse_frequency
    cos, sin = ((part * w.rope_scale).to(w.dtype) for part in (angles.cos(), angles.sin()))
    own = empty(rows, completion if groups else prompt + completion)
    shared = empty(groups, prompt) if groups else None
    return Cache(own, shared, members, torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None])


@dataclass(frozen=True, slots=True)
class Shared:
    """Which prompt the rows of a step share, as indices.

    gather: (row, head) of each query of a group, [groups, 1, members] and [1, K, 1]; any row for a member that ended.
    spread [rows * K]: where each row's head lies among [groups, K, members]. slots [rows]: group * members + member.
    length: of the longest prompt. mask: hides what is behind a shorter one.
    """

    gather: tuple[Tensor, Tensor]
    spread: Tensor
    slots: Tensor
    length: int
    mask: Tensor | None


def shared_of(w: Weights, slots: list[int], members: int, lengths: list[int]) -> Shared:
    """slots: group * members + member of each row. lengths: tokens of each group's prompt."""
    grid = [0] * (len(lengths) * members)
    for row, slot in enumerate(slots):
        grid[slot] = row
    heads, own = torch.arange(w.kv_heads, device=w.device), torch.tensor(slots, device=w.device)
    spread = (own[:, None] // members * w.kv_heads + heads) * members + own[:, None] % members
    rows = torch.tensor(grid, device=w.device).view(len(lengths), 1, members)
    longest, mask = max(lengths), None
    if min(lengths) < longest:
        mask = _mask(w, torch.tensor(lengths, device=w.device), longest)
    return Shared((rows, heads[None, :, None]), spread.flatten(), own, longest, mask)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, in fp32 (Zhang & Sennrich 2019)."""
    wide = x.float()
    scale = torch.linalg.vecdot(wide, wide).mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale[..., None]).to(x.dtype).mul_(weight)


def _inputs(w: Weights, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotated q and k, and v: [N, heads + 2 * kv_heads, head_dim] of x [N, hidden]; cos, sin [N, 1, head_dim]."""
    qkv = layer.qkv(norm(x, layer.norm_in, w.eps)).view(len(x), -1, w.head_dim)
    qk = qkv[:, : w.heads + w.kv_heads]
    if layer.norm_qk is not None:
        qk.copy_(norm(qk, layer.norm_qk, w.eps))
    turned = qk.roll(w.head_dim // 2, -1)
    qk.mul_(cos).addcmul_(turned, sin)
    return qkv


def _rest(w: Weights, layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
    """Output projection and MLP; x [N, hidden] is overwritten; attended [N, heads * head_dim]."""
    x += layer.out(attended)
    gate, up = layer.gate_up(norm(x, layer.norm_out, w.eps)).chunk(2, -1)
    x += layer.down(F.silu(gate).mul_(up))
    return x


def prefill(w: Weights, cache: Cache, prompts: list[list[int]], first: int) -> Tensor:
    """Write the keys and values of prompts into the cache; the last hidden states [prompts, hidden].

    first: where they go, a group each of `cache.shared`, or else `cache.members` rows each of `cache.data`.
    """
    count, length = len(prompts), max(map(len, prompts))
    ids = torch.zeros(count, length, dtype=torch.long)
    for place, prompt in enumerate(prompts):
        ids[place, : len(prompt)] = torch.tensor(prompt)
    x = F.embedding(ids.to(w.device), w.embed).flatten(0, 1)
    cos, sin = (part[:length].expand(count, -1, -1, -1).flatten(0, 1) for part in (cache.cos, cache.sin))
    each = 1 if cache.shared is not None else cache.members
    held = cache.data if cache.shared is None else cache.shared
    held = held[:, first : first + count * each].unflatten(1, (count, each))[:, :, :, :, :length]
    sizes = torch.tensor([len(prompt) for prompt in prompts], device=w.device)
    every = torch.arange(count, device=w.device)
    for into, layer in zip(held, w.layers, strict=True):
        qkv = _inputs(w, layer, x, cos, sin).view(count, length, -1, w.head_dim).transpose(1, 2)
        q, k, v = qkv.split([w.heads, w.kv_heads, w.kv_heads], 1)
        into.copy_(qkv[:, None, w.heads :])
        if layer is w.layers[-1]:  # only the last token is asked for any more
            last = q[every, :, sizes - 1].unflatten(1, (w.kv_heads, -1))
            mask = _mask(w, sizes, length) if count > 1 else None
            found = F.scaled_dot_product_attention(last, k, v, attn_mask=mask).reshape(count, -1)
            x = _rest(w, layer, x.view(count, length, -1)[every, sizes - 1], found)
        else:
            found = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=w.heads != w.kv_heads)
            x = _rest(w, layer, x, found.transpose(1, 2).reshape(count * length, -1))
    return norm(x, w.norm, w.eps)


def _mask(w: Weights, sizes: Tensor, length: int) -> Tensor:
    """0 at the first `sizes` [rows] places of `length`, -inf behind: [rows, 1, 1, length]."""
    behind = torch.arange(length, device=w.device) >= sizes[:, None]
    mask = torch.zeros(behind.shape, dtype=w.dtype, device=w.device).masked_fill_(behind, float("-inf"))
    return mask[:, None, None]


def step(
    w: Weights,
    cache: Cache,
    tokens: Tensor,
    positions: Tensor,
    places: Tensor,
    length: int,
    masked: bool,
    shared: Shared | None = None,
) -> Tensor:
    """Take one token of each of the first rows in; the hidden states [rows, hidden].

    tokens, positions in the text, places in the row of the cache: [rows]. length: largest place + 1, or more where
    `masked`. masked: places differ. shared: where prompts are kept apart.
    """
    count, own = len(tokens), 2 * w.kv_heads
    x = F.embedding(tokens, w.embed)
    cos, sin = cache.cos[positions], cache.sin[positions]
    mask = _mask(w, places + 1, length) if masked else None
    flat = torch.arange(count * own, device=w.device).view(count, own) * cache.data.shape[3] + places[:, None]
    flat = flat.flatten()
    for number, layer in enumerate(w.layers):
        held = cache.data[number]
        qkv = _inputs(w, layer, x, cos, sin)
        held.view(-1, w.head_dim).index_copy_(0, flat, qkv[:, w.heads :].reshape(-1, w.head_dim))
        keys, values = held[:count, : w.kv_heads, :length], held[:count, w.kv_heads :, :length]
        q = qkv[:, : w.heads].unflatten(1, (w.kv_heads, -1))
        if shared is None or cache.shared is None:
            attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        else:
            attended = _with_prompt(q, keys, values, mask, cache.shared[number], shared)
        x = _rest(w, layer, x, attended.reshape(count, -1))
    return norm(x, w.norm, w.eps)


def _with_prompt(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, held: Tensor, shared: Shared) -> Tensor:
    """Attention of q [rows, K, G, D] to its row's keys and values and to its group's prompt in `held`."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    found, sums = attend(q, keys, values, attn_mask=mask)
    wide = q[shared.gather].flatten(2, 3)  # [groups, K, members * G, D]
    prompt_keys, prompt_values = held[: len(wide), :, : shared.length].chunk(2, 1)
    other, other_sums = attend(wide, prompt_keys, prompt_values, attn_mask=shared.mask)
    other = other.reshape(-1, *q.shape[2:]).index_select(0, shared.spread).view(q.shape)
    # log-sum-exps lie as [.., G, K] in memory
    other_sums = other_sums.transpose(1, 2).reshape(-1, q.shape[2], q.shape[1]).index_select(0, shared.slots)
    share = (other_sums - sums.transpose(1, 2)).sigmoid_().transpose(1, 2)[..., None]
    if found.dtype == share.dtype:
        return found.lerp_(other, share)
    return found.float().lerp_(other.float(), share).to(found.dtype)  # the sums are fp32, whatever the rest is
