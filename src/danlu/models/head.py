"""Log-probs of the supervised tokens: the head runs on their places only, in chunks, so full logits never exist.

d(log p_t)/dh = (onehot_t - p) W does not depend on the loss behind it, so it is made in the forward pass, while the
logits of a chunk are at hand, and the backward pass only scales its rows: no second product with the vocabulary.
Where the head's matrix is trained too, its gradient needs the loss and the chunk's logits are made again.
A chunk is as long as the products need to be fast; its softmax is taken of a few rows at a time, in fp32, and written
over their logits, so that nothing wider than the logits has the chunk's size.

Probabilities are fp32 whatever the weights are; products with the matrix run in the weights' dtype, and the gradient
of the matrix is added up over the chunks in fp32.
Departure from transformers: `final_logit_softcapping` and its like go through the model's own logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from danlu import native
from danlu.models.batch import Batch, padded
from danlu.models.decoder import inner
from danlu.models.kernels import native_scores

CHUNK = 512  # positions whose logits exist at the same time, in the weights' dtype
ROWS = 32  # positions whose logits exist in fp32
NATIVE = (torch.float32, torch.bfloat16)  # what the C of danlu/native reads, in one call a chunk


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """(log-probs fp32 [N], entropies fp32 [N] in nats without gradient, if asked) of `targets` int64 [N].

    hidden [N, H] (after the final norm), weight [V, H]; logits are divided by `temperature`.
    """
    found, entropies = _TokenLogProbs.apply(hidden, weight, targets, temperature, entropy)
    return found, entropies if entropy else None


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        hidden = hidden.to(weight.dtype)
        unit = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # d logprob / d hidden
        found = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        entropies = torch.empty_like(found) if entropy else found.new_empty(0)
        for at in range(0, hidden.shape[0], CHUNK):
            part, logits = slice(at, at + CHUNK), None  # else the last chunk's would be there beside these
            logits = hidden[part] @ weight.t()
            if logits.device.type == "cpu" and logits.dtype in NATIVE and native.library() is not None:
                scored = native_scores(logits, targets[part], temperature, entropy, unit is not None)
                found[part] = scored[0]
                if scored[1] is not None:
                    entropies[part] = scored[1]
            else:
                _by_rows(logits, targets[part], temperature, found[part], entropies[part], unit is not None)
            if unit is not None:
                torch.mm(logits, weight, out=unit[part])
        if unit is not None and temperature != 1.0:
            unit.div_(temperature)
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(unit, hidden, weight, targets)
        else:
            ctx.save_for_backward(unit)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropies)
        return found, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        unit, *held = ctx.saved_tensors
        grad: Tensor = grads[0]
        for_hidden = unit * grad[:, None].to(unit.dtype) if unit is not None else None
        if not held:
            return for_hidden, None, None, None, None
        hidden, weight, targets = held
        for_weight = torch.zeros_like(weight, dtype=torch.float32)
        for at in range(0, hidden.shape[0], CHUNK):
            part, logits = slice(at, at + CHUNK), None  # else the last chunk's would be there beside these
            logits = hidden[part] @ weight.t()
            scales = grad[part] / ctx.temperature
            for rows, scores in _log_softmax(logits, ctx.temperature):
                logits[rows] = _error(scores.exp_(), targets[part][rows]).mul_(scales[rows, None])
            if weight.dtype == torch.float32:
                for_weight.addmm_(logits.t(), hidden[part])
            else:
                for_weight += logits.t() @ hidden[part]
        return for_hidden, for_weight.to(weight.dtype), None, None, None


def _by_rows(
    logits: Tensor, targets: Tensor, temperature: float, found: Tensor, entropies: Tensor, error: bool
) -> None:
    """Write the log-probs of `targets` [n], and entropies where there is room for them; with `error` logits [n, V]
    become onehot - p."""
    for rows, scores in _log_softmax(logits, temperature):
        found[rows] = scores.gather(-1, targets[rows, None]).squeeze(-1)
        if error or len(entropies):
            chances = scores.exp()
            if len(entropies):
                entropies[rows] = -torch.linalg.vecdot(chances, scores)
            if error:
                logits[rows] = _error(chances, targets[rows])


def _log_softmax(logits: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """(rows, their log-softmax in fp32) of [n, V], a few at a time."""
    for at in range(0, len(logits), ROWS):
        rows = slice(at, min(at + ROWS, len(logits)))
        wide = logits[rows].float()
        yield rows, torch.log_softmax(wide if temperature == 1.0 else wide / temperature, -1)


def _error(chances: Tensor, targets: Tensor) -> Tensor:
    """onehot - p of probabilities [n, V], in their memory."""
    error = chances.neg_()
    error[torch.arange(len(targets), device=targets.device), targets] += 1.0
    return error


class TokenLogProbs(nn.Module):
    """A causal model as a function from a Batch to the log-probs of its targets.

    `forward_of`: hidden states after the final norm, [T, H], of a Batch (the fast forward); None: transformers' own
    forward on rows padded to the longest (with causal attention padding on the right needs no mask).
    """

    def __init__(self, model: Any, forward_of: Any = None, pad: int = 0) -> None:
        super().__init__()
        self.model, self._forward, self._pad = model, forward_of, pad
        plain = model.get_base_model() if hasattr(model, "peft_config") else model
        extras = ("final_logit_softcapping", "logit_scale", "logits_scaling")
        self._split = not any(getattr(plain.config, name, None) for name in extras)

    def forward(self, batch: Batch, temperature: float = 1.0, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """(log-probs fp32 [N], entropies [N] if asked) of the batch's targets."""
        plain = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        if not self._split:  # the head does more than a product: take the model's own logits
            ids, mask = padded(batch, self._pad)
            logits = self.model(input_ids=ids, use_cache=False).logits[mask][batch.places]
            return _scored(logits, batch.targets, temperature, entropy)
        if self._forward is not None:
            hidden = self._forward(batch)
        else:
            ids, mask = padded(batch, self._pad)
            hidden = plain.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[mask]
        hidden = hidden[batch.places]
        head = inner(plain.get_output_embeddings())
        if type(head) is nn.Linear and head.bias is None and not torch.is_autocast_enabled(hidden.device.type):
            return token_logprobs(hidden, head.weight, batch.targets, temperature, entropy)
        if type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad:
            weight = head.weight.to(torch.get_autocast_dtype(hidden.device.type))
            return token_logprobs(hidden, weight, batch.targets, temperature, entropy)
        return _through(head, hidden, batch.targets, temperature, entropy)


def _through(
    head: Any, hidden: Tensor, targets: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """As `token_logprobs` for a head that is more than a frozen or trained matrix (LoRA on it, a bias, autocast)."""

    def scored(part: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
        return _scored(head(part), wanted, temperature, entropy)

    if hidden.shape[0] <= CHUNK:
        return scored(hidden, targets)
    parts = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    found = [checkpoint(scored, *part, use_reentrant=False) for part in parts]
    return torch.cat([own for own, _ in found]), torch.cat([own for _, own in found]) if entropy else None


def _scored(logits: Tensor, targets: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor | None]:
    scores = torch.log_softmax(logits.float() / temperature, -1)
    found = scores.gather(-1, targets[:, None]).squeeze(-1)
    with torch.no_grad():
        return found, -(scores.exp() * scores).sum(-1) if entropy else None
