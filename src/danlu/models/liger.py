"""Liger's Triton kernels (norms, rotation, gated activations) in transformers' own forward, on CUDA where installed.

They are for architectures that the fast forward does not know; that one has its own fused kernels. The head is left
alone: log-probs are made in chunks from hidden states, so liger's fused cross entropy has nothing to do.
Not covered: architectures that liger does not know keep their forward.
"""

from __future__ import annotations

from typing import Any

KEPT = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def apply_liger(model: Any, device: str) -> bool:
    """Put the kernels into `model` (transformers' or peft's), in place; whether that was done."""
    if device != "cuda":
        return False
    from transformers.integrations.liger import apply_liger_kernel
    from transformers.utils import is_liger_kernel_available

    if not is_liger_kernel_available():
        return False
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    if plain.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        return False
    apply_liger_kernel(plain, KEPT)
    return True
