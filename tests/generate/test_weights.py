"""Weights for decoding: every layout and way of holding an adapter multiplies alike, and nothing is made twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from danlu.generate import native, weights
from danlu.generate.weights import Weights, snapshot
from danlu.models.load import load
from danlu.recipe import Lora, Model
from tiny_models import build

LAYOUTS = {"copied": {"copies": True}, "its own": {"copies": False}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build(folder, "qwen2", tied=False)
    return folder


def adapted(folder: Path, quantization: str = "none", **lora: Any) -> Any:
    """A model with a LoRA that does something."""
    settings = Lora(**{"r": 4, "alpha": 8, "targets": ["q_proj", "v_proj", "up_proj", "down_proj"]} | lora)
    spec = Model(id=str(folder), dtype="fp32", quantization=quantization)
    model = load(spec, lora=settings, train=True).model
    torch.manual_seed(5)
    shift(model, 0.2)
    return model


def shift(model: Any, by: float, part: str = "lora_") -> None:
    with torch.no_grad():
        for name, value in model.named_parameters():
            if part in name:
                value.add_(torch.randn_like(value) * by)


def products(w: Weights) -> list[Tensor]:
    """What every matrix makes of a few fixed rows."""
    found = []
    for matrix in w.matrices():
        width = weights._shape(matrix.origin.sources[0])[1]
        found.append(matrix(torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(w.dtype)))
    return found


def expected(model: Any) -> list[Tensor]:
    """The same through the model's own layers."""
    plain = model.get_base_model()
    groups = []
    for layer in plain.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        groups += [[attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj]]
        groups += [[mlp.gate_proj, mlp.up_proj], [mlp.down_proj]]
    model.eval()
    with torch.no_grad():
        return [
            torch.cat([m(torch.randn(3, m.in_features, generator=torch.Generator().manual_seed(0))) for m in group], -1)
            for group in [*groups, [plain.lm_head]]
        ]


def close(found: list[Tensor], wanted: list[Tensor], tolerance: float = 2e-5) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def without_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)


@pytest.mark.parametrize("by_c", [True, False], ids=["in C", "by torch"])
@pytest.mark.parametrize("large", [1, 1 << 20], ids=["as large ones", "as small ones"])
@pytest.mark.parametrize("adapters", ["auto", "merged", "apart"])
@pytest.mark.parametrize("copies", [True, False])
def test_every_layout_multiplies_alike(
    base: Path, adapters: Any, copies: bool, large: int, by_c: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_c:
        without_c(monkeypatch)
    elif native.library() is None:
        pytest.skip("no C compiler")
    monkeypatch.setattr(weights, "LARGE", large)
    model = adapted(base)
    if adapters == "merged" and not copies:
        with pytest.raises(ValueError, match="copies"):
            snapshot(model, adapters=adapters, copies=copies)
        return
    taken = snapshot(model, adapters=adapters, copies=copies)
    close(products(taken), expected(model))
    layouts = {matrix.layout for matrix in taken.matrices()}
    by_torch = "packed" if large == 1 and weights._can_pack() else "columns"
    assert layouts == {"rows" if not copies else "panels" if by_c else by_torch}
    apart = adapters == "apart" or not copies or (adapters == "auto" and large == 1)
    assert (taken.layers[0].down.low is not None) == apart
    assert taken.layers[0].out.low is None  # it has no adapter


def test_without_copies_the_weights_are_the_models_own(base: Path) -> None:
    model = adapted(base)
    taken = snapshot(model, copies=False)
    own = model.get_base_model().model.layers[0].mlp
    assert [part.data_ptr() for part in taken.layers[0].gate_up.parts] == [
        own.gate_proj.weight.data_ptr(),
        own.up_proj.get_base_layer().weight.data_ptr(),
    ]
    assert taken.embed.data_ptr() == model.get_base_model().model.embed_tokens.weight.data_ptr()


def test_adapters_are_copied_in_every_layout(base: Path) -> None:
    for options in LAYOUTS.values():
        model = adapted(base)
        taken = snapshot(model, **options)
        before = products(taken)
        shift(model, 0.3)
        close(products(taken), before, 0.0)
        close(products(snapshot(model, previous=taken)), expected(model))


@pytest.mark.parametrize("large", [1, 1 << 20], ids=["apart", "merged"])
def test_what_did_not_change_is_kept(base: Path, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGE", large)
    model = adapted(base)
    first = snapshot(model)
    again = snapshot(model, previous=first)
    assert all(a is b for a, b in zip(first.matrices(), again.matrices(), strict=True))
    shift(model, 0.3, "layers.1.mlp.down_proj.lora_B")
    later = snapshot(model, previous=again)
    changed = [a is not b for a, b in zip(first.matrices(), later.matrices(), strict=True)]
    assert changed == [False] * 7 + [True, False]
    # an adapter that is kept apart does not touch the copy of its base
    assert (later.layers[1].down.parts is first.layers[1].down.parts) == (large == 1)
    close(products(later), expected(model))


def test_a_base_that_is_trained_is_taken_anew(base: Path) -> None:
    model = load(Model(id=str(base), dtype="fp32"), train=True).model
    first = snapshot(model, copies=True)
    shift(model, 0.1, "mlp.up_proj")
    second = snapshot(model, previous=first)
    assert float((products(second)[2] - products(first)[2]).abs().max()) > 0.01
    model.requires_grad_(False)
    third = snapshot(model, previous=second)
    with torch.no_grad():  # frozen, but written to
        model.model.layers[0].mlp.down_proj.weight.mul_(2)
    fourth = snapshot(model, previous=third)
    assert third.layers[0].out is fourth.layers[0].out
    torch.testing.assert_close(products(fourth)[3], 2 * products(third)[3])


def test_several_adapters_and_switched_off_ones(base: Path) -> None:
    from peft import LoraConfig

    model = adapted(base)
    model.add_adapter("second", LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "k_proj"]))
    shift(model, 0.2)
    model.base_model.set_adapter(["default", "second"])
    for options in ({"copies": True}, {"copies": False}, {"adapters": "apart"}):
        close(products(snapshot(model, **options)), expected(model))
    with model.disable_adapter():
        off = snapshot(model)
        close(products(off), expected(model))
    assert all(matrix.low is None for matrix in off.matrices())


@pytest.mark.parametrize("copies", [True, False, None])
def test_a_four_bit_base(base: Path, copies: bool | None) -> None:
    pytest.importorskip("bitsandbytes")
    model = adapted(base, quantization="nf4")
    taken = snapshot(model, copies=copies)
    layers = {matrix.layout for layer in taken.layers for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down)}
    assert layers == {"four_bit" if copies is False else "columns" if native.library() is None else "panels"}
    close(products(taken), expected(model), 1e-4)
    assert (taken.layers[0].down.low is None) == (copies is not False)


def test_copies_only_where_they_fit(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(base)
    assert snapshot(model).copied
    needed = 4 * sum(p.numel() for n, p in model.named_parameters() if "proj" in n and "lora" not in n and p.dim() == 2)
    needed += 4 * model.get_base_model().lm_head.weight.numel()
    for free, copied in ((2 * needed, True), (2 * needed - 2, False)):
        monkeypatch.setattr(weights, "free_bytes", lambda _, free=free: free)
        assert snapshot(model).copied == copied
    monkeypatch.undo()
    without_c(monkeypatch)
    assert snapshot(model.to(torch.bfloat16)).copied == weights.packs_bf16()


@pytest.mark.parametrize("large", [1, 1 << 20], ids=["apart", "merged"])
def test_bf16_is_packed_and_small_adapters_are_merged_in_fp32(
    base: Path, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not weights._can_pack(torch.bfloat16):
        pytest.skip("oneDNN does not multiply bf16 here")
    monkeypatch.setattr(weights, "packs_bf16", lambda: True)  # slow without bf16 units, and the same
    monkeypatch.setattr(weights, "LARGE", large)
    model = adapted(base)
    wanted = expected(model)
    taken = snapshot(model, torch.bfloat16)
    assert {matrix.layout for matrix in taken.matrices()} == ({"packed"} if large == 1 else {"packed", "columns"})
    assert (taken.layers[0].down.low is None) == (large > 1)
    assert taken.layers[0].down.parts[0].dtype == (torch.bfloat16 if large == 1 else torch.float32)
    for one, other in zip(products(taken), wanted, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, rtol=0.02, atol=0.02 * float(other.abs().max()))
    shift(model, 0.3)
    later = snapshot(model, torch.bfloat16, previous=taken)
    for one, other in zip(products(later), expected(model), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.02, atol=0.02 * float(other.abs().max()))
