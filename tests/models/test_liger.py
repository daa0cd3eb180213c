"""Liger's kernels: nothing without CUDA; on CUDA the same hidden states and gradients as transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from danlu.models.adapter import with_adapter
from danlu.models.liger import apply_liger
from danlu.recipe import Lora

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100}


def mistral() -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mistral", **SHAPE))
    return with_adapter(model.requires_grad_(False), Lora(r=4))


def states_and_gradients(model: torch.nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    states = model.get_base_model().get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    states.square().sum().backward()
    return [states.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def test_nothing_changes_without_cuda() -> None:
    model = mistral()
    before = {name: getattr(one.forward, "__func__", None) for name, one in model.named_modules()}
    assert not apply_liger(model, "cpu")
    assert {name: getattr(one.forward, "__func__", None) for name, one in model.named_modules()} == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_kernels_compute_the_same() -> None:
    pytest.importorskip("liger_kernel")
    model = mistral().cuda()
    ids = torch.arange(32, device="cuda").view(2, 16)
    plain = states_and_gradients(model, ids)
    assert apply_liger(model, "cuda")
    torch.testing.assert_close(states_and_gradients(model, ids), plain, rtol=1e-4, atol=1e-4)
