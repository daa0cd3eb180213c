"""The fast forward against transformers and peft: same hidden states, same gradients, whatever is packed together."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, Qwen2Config, Qwen3Config

from danlu import native
from danlu.data.render import IGNORE
from danlu.models import decoder
from danlu.models import kernels as module
from danlu.models.batch import Batch, branched, packed
from danlu.models.decoder import attend, fast_forward, supports
from danlu.models.head import TokenLogProbs
from danlu.models.kernels import How, can_compile, kernels

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 211,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
CONFIGS = {
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=24),
    "llama": LlamaConfig(**SHAPE, attention_bias=True, rope_parameters=LLAMA3),
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LENGTHS = (5, 70, 1, 23, 68, 130)


def network(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind]), dtype=dtype)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                param.add_(torch.randn_like(param) * 0.1)
    return model


def with_lora(model: Any, seed: int = 1, **more: Any) -> Any:
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM", **more}
    made = get_peft_model(model, LoraConfig(**options))
    with torch.no_grad():
        for name, param in made.named_parameters():
            if "lora_B" in name:
                param.add_(torch.randn_like(param) * 0.05)
    return made


def batch(lengths: tuple[int, ...] = LENGTHS, seed: int = 2) -> tuple[Batch, list[tuple[list[int], list[int]]]]:
    made = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        tokens = torch.randint(0, 211, (length,), generator=made).tolist()
        labels = [token if place >= length // 3 else IGNORE for place, token in enumerate(tokens)]
        rows.append((tokens, labels))
    return packed(rows), rows


def mean_loss(model: Any, given: Batch, forward: Any = None) -> torch.Tensor:
    found, _ = TokenLogProbs(model, forward)(given)
    return -found.mean()


def plain_loss(model: Any, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Rows one by one through transformers' own loss."""
    total, count = torch.zeros(()), 0
    for tokens, labels in rows:
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, :-1].float()
        wanted = torch.tensor(labels[1:], dtype=torch.long)
        total = total + torch.nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORE, reduction="sum")
        count += int((wanted != IGNORE).sum())
    return total / count


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}


def same_training(model: Any, way: How = "eager", tolerance: float = 1e-4) -> None:
    """Loss and gradients of the packed fast forward against transformers' (relative to the largest gradient)."""
    given, rows = batch()
    model.train()
    wanted = plain_loss(model, rows)
    wanted.backward()
    theirs = gradients(model)
    model.zero_grad()
    found = mean_loss(model, given, fast_forward(model, way))
    found.backward()
    ours = gradients(model)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), abs=1e-5)
    assert ours.keys() == theirs.keys()
    assert ours
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= tolerance * gradient.abs().max() + 1e-9, name


@pytest.mark.parametrize("kind", CONFIGS)
def test_hidden_states_equal_transformers(kind: str) -> None:
    model = network(kind).eval()
    given, rows = batch()
    with torch.no_grad():
        found = fast_forward(model)(given)
        wanted = torch.cat([model.model(torch.tensor([tokens])).last_hidden_state[0] for tokens, _ in rows])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_lora_gradients_equal_peft(kind: str) -> None:
    same_training(with_lora(network(kind)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_full_gradients_equal_transformers(kind: str) -> None:
    same_training(network(kind))


@pytest.mark.parametrize(
    "more",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "norm"]},
        {"target_modules": [*ALL, "lm_head"]},
        {"lora_bias": True},
        {"target_modules": ["q_proj", "v_proj"]},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 1}},
    ],
    ids=lambda more: " ".join(more),
)
def test_kinds_of_adapters_equal_peft(more: dict[str, Any]) -> None:
    same_training(with_lora(network("qwen3"), **more))


def test_an_adapter_on_top_of_a_frozen_one_equals_peft() -> None:
    model = with_lora(network("qwen2"))
    model.add_adapter("more", LoraConfig(r=3, lora_alpha=5, target_modules=ALL, task_type="CAUSAL_LM"))
    model.base_model.set_adapter(["default", "more"])
    for name, param in model.named_parameters():
        param.requires_grad_(".more." in name)
    same_training(model)


def test_switched_off_adapters_are_off() -> None:
    model = with_lora(network("qwen3")).eval()
    given, _ = batch()
    forward = fast_forward(model)
    with torch.no_grad():
        on = forward(given)
        with model.disable_adapter():
            off = forward(given)
        wanted = fast_forward(network("qwen3").eval())(given)
    torch.testing.assert_close(off, wanted)
    assert not torch.allclose(on, off)


def test_dropout_reaches_the_adapter_only_and_its_gradient_is_the_numerical_one() -> None:
    model = with_lora(network("qwen3"), lora_dropout=0.3).double().train()
    given, _ = batch((5, 9))
    forward = fast_forward(model)

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        return forward(given).pow(2).mean()

    loss().backward()
    param = model.base_model.model.model.layers[0].self_attn.v_proj.lora_A["default"].weight
    step = torch.zeros_like(param)
    step[1, 3] = 1e-3  # norms are computed in fp32
    with torch.no_grad():
        param.add_(step)
        above = loss()
        param.sub_(2 * step)
        below = loss()
    numerical = float(above - below) / 2e-3
    assert numerical != 0
    assert float(param.grad[1, 3]) == pytest.approx(numerical, rel=1e-2)


@pytest.mark.parametrize("lora", [True, False])
def test_checkpointing_changes_nothing(lora: bool) -> None:
    model = with_lora(network("qwen3"), lora_dropout=0.2) if lora else network("qwen3")
    given, _ = batch()
    model.train()
    results = []
    for on in (False, True):
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        model.zero_grad()
        mean_loss(model, given, fast_forward(model)).backward()
        results.append(gradients(model))
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient)


def test_checkpointing_saves_memory() -> None:
    model = network("qwen3").train()
    given, _ = batch()
    kept = []
    for on in (False, True):
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):  # noqa: B023
            fast_forward(model)(given)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 4


def test_a_packed_row_does_not_see_its_neighbours() -> None:
    model = network("qwen3").eval()
    given, rows = batch()
    other = [*rows]
    other[1] = ([7] * len(rows[1][0]), rows[1][1])
    with torch.no_grad():
        first, second = (fast_forward(model)(one) for one in (given, packed(other)))
    start = len(rows[0][0])
    assert torch.equal(first[:start], second[:start])
    torch.testing.assert_close(first[start + 70 :], second[start + 70 :])
    assert not torch.allclose(first[start : start + 70], second[start : start + 70])


def test_a_four_bit_base_trains_as_peft_does() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    model = network("qwen2")
    for layer in model.model.layers:
        for parent, name in [(layer.self_attn, n) for n in ALL[:4]] + [(layer.mlp, n) for n in ALL[4:]]:
            old = getattr(parent, name)
            new = bnb.nn.Linear4bit(
                old.in_features, old.out_features, old.bias is not None, torch.float32, quant_type="nf4"
            )
            new.load_state_dict(old.state_dict())
            setattr(parent, name, new.to("cpu"))
    model.requires_grad_(False)
    model = with_lora(model)
    assert type(model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight).__name__ == "Params4bit"
    same_training(model, tolerance=1e-3)


def test_bf16_stays_near_fp64() -> None:
    """The adapter's gradient in bf16 is off by rounding, not by bias: near the fp64 one, and no farther than peft's."""
    given, rows = batch()
    exact = with_lora(network("qwen2")).double()
    mean_loss(exact, given, fast_forward(exact)).backward()
    wanted = torch.cat([g.flatten() for g in gradients(exact).values()])
    errors = {}
    for name in ("ours", "theirs"):
        model = with_lora(network("qwen2"))
        for param in model.parameters():
            if not param.requires_grad:
                param.data = param.data.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            loss = mean_loss(model, given, fast_forward(model)) if name == "ours" else plain_loss(model, rows)
        loss.backward()
        found = torch.cat([g.flatten() for g in gradients(model).values()]).double()
        errors[name] = float((found - wanted).norm() / wanted.norm())
    assert errors["ours"] < 0.03
    assert errors["ours"] < 1.5 * errors["theirs"]


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="no C++ compiler")
@pytest.mark.parametrize("kind", CONFIGS)
def test_compiled_kernels_equal_transformers(kind: str) -> None:
    same_training(with_lora(network(kind)), way="compiled")


@pytest.mark.skipif(native.library() is None, reason="no C compiler")
@pytest.mark.parametrize("kind", CONFIGS)
def test_native_kernels_equal_transformers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    call = module._call
    monkeypatch.setattr(module, "_call", lambda name, *given: (called.append(name), call(name, *given)))
    same_training(with_lora(network(kind)), way="native")
    assert {"danlu_norm_back", "danlu_swiglu_back", "danlu_scores"} <= set(called)


def test_elementwise_gradients_are_the_numerical_ones() -> None:
    own = kernels("eager")
    made = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda g, u: decoder._SwiGlu.apply(g, u, own), (random(3, 5), random(3, 5)))
    angles = random(3, 1, 2).detach()
    rotated = lambda x: decoder._Rotary.apply(x, angles.cos(), angles.sin(), own)  # noqa: E731
    assert torch.autograd.gradcheck(rotated, (random(3, 2, 4),))


def test_attention_of_each_row_and_the_varlen_call() -> None:
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(LENGTHS), heads, 16, generator=made) for heads in (4, 2, 2))
    found = attend(q, k, v, LENGTHS)
    at = 0
    for length in LENGTHS:
        rows = [x[at : at + length].transpose(0, 1)[None] for x in (q, k, v)]
        rows[1:] = [x.repeat_interleave(2, 1) for x in rows[1:]]
        scores = rows[0] @ rows[1].transpose(-1, -2) / 4
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
        wanted = (scores.softmax(-1) @ rows[2])[0].transpose(0, 1)
        torch.testing.assert_close(found[at : at + length], wanted, rtol=1e-5, atol=1e-5)
        at += length
    seen: dict[str, Any] = {}

    def flash(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.update(ends=args[3].tolist(), longest=args[5], causal=kwargs["causal"])
        return args[0]

    attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), LENGTHS, flash)
    assert seen == {"ends": [0, 5, 75, 76, 99, 167, 297], "longest": 130, "causal": True}


GROUPS = ((40, (5, 70, 66, 1)), (1, (3, 90)), (7, ()), (66, (64, 65)))


def drawn(groups: Any = GROUPS, seed: int = 4) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts with their completions, of these lengths."""
    made = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, 211, (n,), generator=made).tolist() for p, own in groups for n in (p, *own)]
    rows = iter(ids)
    return [(next(rows), [next(rows) for _ in own]) for _, own in groups]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_prompt_computed_once_has_the_gradients_of_one_for_each_completion(kind: str, checkpointing: bool) -> None:
    """Within 1e-5 of the largest gradient, with another weight for every token as a policy loss has."""
    model = with_lora(network(kind)).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    groups = drawn()
    apart = packed([(p + own, [IGNORE] * len(p) + own) for p, completions in groups for own in completions])
    weights = torch.randn(len(apart.targets), generator=torch.Generator().manual_seed(6))
    scored = TokenLogProbs(model, fast_forward(model))
    results = []
    for given in (apart, branched(groups)):
        model.zero_grad()
        found, _ = scored(given)
        (found * weights).mean().backward()
        results.append((found.detach(), gradients(model)))
    (wanted, theirs), (found, ours) = results
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_a_completion_sees_its_prompt_and_not_its_neighbours() -> None:
    model = network("qwen3").eval()
    groups, forward = drawn(), fast_forward(model)
    other = drawn()
    other[0][1][1] = [7] * 70  # a sibling
    other[3][0][:] = [7] * 66  # the prompt of the last group
    with torch.no_grad():
        first, second = (forward(branched(one)) for one in (groups, other))
    torch.testing.assert_close(first[:45], second[:45])
    assert not torch.allclose(first[45:115], second[45:115])
    torch.testing.assert_close(first[115:-195], second[115:-195])
    assert not torch.isclose(first[-129:], second[-129:]).all(-1).any()  # completions of a changed prompt, every token


def test_the_varlen_call_gives_each_completion_the_keys_of_its_prompt() -> None:
    lengths, parents = (3, 2, 1, 2, 2), (-1, 0, 0, -1, 3)
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(10, heads, 8, generator=made, dtype=torch.bfloat16) for heads in (4, 2, 2))

    def flash(
        q: Any, k: Any, v: Any, ends: Any, seen: Any, longest: int, most: int, causal: bool
    ) -> torch.Tensor:  # FlashAttention's convention: the last query of a row sees all of its keys
        assert causal
        assert (longest, most) == (3, 5)
        rows = zip(ends.tolist(), ends.tolist()[1:], seen.tolist(), seen.tolist()[1:], strict=False)
        return torch.cat([one_row(q[a:b], k[c:d], v[c:d]) for a, b, c, d in rows])

    found = attend(q, k, v, lengths, flash, parents)
    wanted = attend(q, k, v, lengths, None, parents)
    torch.testing.assert_close(found.float(), wanted.float(), rtol=0, atol=0.02)


def one_row(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) / q.shape[-1] ** 0.5
    hidden = torch.ones(len(q), len(k)).triu(len(k) - len(q) + 1).bool()
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v.float()).to(q.dtype)


def test_what_is_not_known_is_said() -> None:
    other = AutoModelForCausalLM.from_config(GemmaConfig(**{**SHAPE, "head_dim": 16}))
    assert not supports(other.config)
    with pytest.raises(ValueError, match="gemma"):
        fast_forward(other)
    windowed = copy.deepcopy(CONFIGS["qwen2"])
    windowed.use_sliding_window = True
    assert not supports(windowed)


def test_other_architectures_train_through_transformers() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GemmaConfig(**{**SHAPE, "head_dim": 16})).train()
    given, rows = batch()
    wanted = plain_loss(model, rows)
    assert float(mean_loss(model, given)) == pytest.approx(float(wanted), abs=1e-5)
