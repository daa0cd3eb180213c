"""The fast decoder against transformers: greedy tokens, log-probs, distribution, and what a batch may not change."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PhiConfig, Qwen2Config

from danlu.data.render import IGNORE
from danlu.generate import Sampling
from danlu.generate import decode as decoding
from danlu.generate.decode import Decoded
from danlu.generate.weights import plain_lora, snapshot
from danlu.models.decoder import supports
from danlu.models.batch import packed
from danlu.models.head import TokenLogProbs
from tiny_models import VOCABULARY, build

PROMPTS = [
    [random.Random(n).randrange(VOCABULARY) for _ in range(length)]
    for n, length in enumerate([1, 2, 3, 5, 8, 13, 21, 34, 55, 7, 7, 7, 19, 4, 40, 1, 11, 28, 17, 70, 6, 9, 3, 33])
]
ENDS = list(range(0, VOCABULARY, 24))
CASES = [
    (architecture, kind, tied, lora)
    for architecture, kind, tied in [("qwen2", "chatml", True), ("qwen3", "chatml", False), ("llama", "llama3", True)]
    for lora in (False, True)
]


SAMPLING = {"max_tokens", "temperature", "top_p", "samples", "seed"}


def decode(weights: Any, prompts: list[list[int]], **options: Any) -> list[list[Decoded]]:
    """Completions of each prompt, in the order of the prompts."""
    sampling = Sampling(**{name: value for name, value in options.items() if name in SAMPLING})
    rest = {name: value for name, value in options.items() if name not in SAMPLING}
    found = dict(decoding.decode(weights, prompts, sampling, **rest))
    return [found[i] for i in range(len(prompts))]


def with_lora(model: Any, **settings: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"]
    defaults = {"r": 4, "lora_alpha": 6, "target_modules": targets, "task_type": "CAUSAL_LM"}
    model = get_peft_model(model, LoraConfig(**defaults | settings))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.add_(torch.randn_like(value) * 0.1)
    return model.eval()


def lively(model: Any) -> Any:
    """The model with strong layers and uneven norms: a fresh one only repeats its last token, and hides a lost norm."""
    torch.manual_seed(4)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.uniform_(0.5, 1.5)
            elif value.dim() == 2 and "layers" in name:
                value.mul_(4)
    return model.eval()


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c[0]}{'' if c[2] else '-untied'}{'-lora' * c[3]}")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    architecture, kind, tied, lora = request.param
    made, _ = build(tmp_path_factory.mktemp("model"), architecture, kind, tied=tied)
    return with_lora(lively(made)) if lora else lively(made)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lively(build(tmp_path_factory.mktemp("plain"), "qwen3")[0])


def reference(model: Any, prompt: list[int], tokens: int) -> list[int]:
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=ENDS,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def test_greedy_is_transformers_generate_token_for_token(model: Any) -> None:
    wanted = [reference(model, prompt, 14) for prompt in PROMPTS]
    assert len({len(tokens) for tokens in wanted}) > 2  # some stop early, so that the batch is compacted
    weights = snapshot(model)
    for size in (1, 8, 24):
        found = []
        for at in range(0, len(PROMPTS), size):
            found += decode(weights, PROMPTS[at : at + size], max_tokens=14, end_ids=ENDS)
        assert [one.tokens for (one,) in found] == wanted, size
        assert [one.stopped for (one,) in found] == [tokens[-1] in ENDS for tokens in wanted]


def test_sampled_log_probs_are_those_of_the_scoring_pass(model: Any) -> None:
    found = decode(snapshot(model), PROMPTS, max_tokens=12, end_ids=ENDS, temperature=0.7, top_p=0.9, samples=2, seed=5)
    rows, kept = [], []
    for prompt, group in zip(PROMPTS, found, strict=True):
        for one in group:
            rows.append(([*prompt, *one.tokens], [IGNORE] * len(prompt) + [*one.tokens]))
            kept += one.logprobs
    with torch.no_grad():
        scored = TokenLogProbs(model)(packed(rows), 0.7)[0]
    torch.testing.assert_close(torch.tensor(kept), scored, rtol=0, atol=1e-4)


def test_greedy_log_probs_are_at_temperature_one(plain: Any) -> None:
    ((one,),) = decode(snapshot(plain), PROMPTS[4:5], max_tokens=6, end_ids=ENDS)
    ids = torch.tensor([[*PROMPTS[4], *one.tokens]])
    with torch.no_grad():
        exact = plain(ids).logits.log_softmax(-1)
    places = range(len(PROMPTS[4]), ids.shape[1])
    assert one.logprobs == pytest.approx([float(exact[0, i - 1, ids[0, i]]) for i in places], abs=1e-5)


def test_a_sample_does_not_depend_on_its_batch(model: Any) -> None:
    weights = snapshot(model)
    keys = [f"row {n}" for n in range(len(PROMPTS))]
    options = {"max_tokens": 12, "end_ids": ENDS, "temperature": 1.0, "samples": 3, "seed": 9}
    together = decode(weights, PROMPTS, keys=keys, **options)
    for n in (0, 8, 15, 19):
        (alone,) = decode(weights, PROMPTS[n : n + 1], keys=keys[n : n + 1], **options)
        assert [one.tokens for one in alone] == [one.tokens for one in together[n]]
    assert len({tuple(one.tokens) for one in together[8]}) == 3
    other = decode(weights, PROMPTS[8:9], keys=keys[8:9], **options | {"seed": 10})[0]
    assert [one.tokens for one in other] != [one.tokens for one in together[8]]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.8, 0.9), (1.3, 0.5), (1.0, 1e-6)])
def test_one_step_follows_the_exact_softmax(plain: Any, temperature: float, top_p: float) -> None:
    draws, prompt = 8000, PROMPTS[6]
    (found,) = decode(
        snapshot(plain),
        [prompt],
        max_tokens=1,
        end_ids=[],
        temperature=temperature,
        top_p=top_p,
        samples=draws,
        seed=2,
    )
    with torch.no_grad():
        exact = (plain(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1)
    ordered, order = exact.sort(descending=True)
    size = int((ordered.cumsum(0) < top_p).sum()) + 1 if top_p < 1 else len(ordered)
    nucleus = set(order[:size].tolist())
    seen = [one.tokens[0] for one in found]
    assert set(seen) <= nucleus
    counts = torch.bincount(torch.tensor(seen), minlength=len(exact)).double()
    expected = torch.zeros_like(exact)
    expected[order[:size]] = ordered[:size] / ordered[:size].sum() * draws
    frequent = expected >= 5
    rest = [[float(x[~frequent].sum())] if float(expected[~frequent].sum()) >= 5 else [] for x in (counts, expected)]
    observed, wanted = [*counts[frequent].tolist(), *rest[0]], [*expected[frequent].tolist(), *rest[1]]
    if len(wanted) > 1:
        scale = sum(observed) / sum(wanted)  # what is left over when the rare ones are too few to count
        assert chisquare(observed, [x * scale for x in wanted]).pvalue > 1e-3


@pytest.mark.parametrize("apart", [0, 1 << 60], ids=["prompts apart", "prompts in rows"])
def test_rows_and_their_layout_change_nothing(plain: Any, apart: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = snapshot(plain)
    options = {"max_tokens": 20, "end_ids": ENDS, "temperature": 1.0, "samples": 3, "seed": 1}
    wanted = decode(weights, PROMPTS, rows=1, **options)
    monkeypatch.setattr(decoding, "APART", apart)
    for rows in (2, 3, 7, 12, 256):  # groups cut in two, one at a time, rows left over, several, all at once
        found = decode(weights, PROMPTS, rows=rows, **options)
        assert [[one.tokens for one in group] for group in found] == [[o.tokens for o in group] for group in wanted]
        for a, b in zip(sum(found, []), sum(wanted, []), strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert {one.stopped for group in wanted for one in group} == {True, False}


def test_a_completion_ends_with_its_end_token_or_at_the_limit(plain: Any) -> None:
    for group in decode(snapshot(plain), PROMPTS, max_tokens=9, end_ids=ENDS, temperature=1.5, samples=4):
        for one in group:
            assert len(one.tokens) == len(one.logprobs)
            assert not set(one.tokens[:-1]) & set(ENDS)
            assert one.stopped == (one.tokens[-1] in ENDS)
            assert one.stopped or len(one.tokens) == 9


SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64, "intermediate_size": 32}


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (Qwen2Config(**SHAPE), True),
        (LlamaConfig(**SHAPE, attention_bias=True), True),
        (LlamaConfig(**SHAPE, mlp_bias=True), False),
        (LlamaConfig(**SHAPE, hidden_act="gelu"), False),
        (Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8), False),
        (LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), False),
        (Qwen2Config(**SHAPE, rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}), False),
        (GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64), False),
        (PhiConfig(**SHAPE), False),
    ],
    ids=lambda value: value if isinstance(value, bool) else value.model_type,
)
def test_what_it_supports(config: Any, known: bool) -> None:
    assert supports(config) is known
    if not known:
        with pytest.raises(ValueError, match=config.model_type):
            snapshot(AutoModelForCausalLM.from_config(config))


def test_llama_with_attention_biases() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, attention_bias=True, initializer_range=0.2)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_(0, 0.3)
    prompt = [1, 2, 3, 4, 5]
    ((one,),) = decode(snapshot(model), [prompt], max_tokens=10, end_ids=[])
    out = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=-1)
    assert one.tokens == out[0, 5:].tolist()


@pytest.mark.parametrize(
    ("settings", "mergeable"),
    [
        ({"use_rslora": True}, True),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}}, True),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, True),
        ({"target_modules": ["q_proj", "lm_head"]}, True),
        ({"use_dora": True}, False),
        ({"lora_bias": True}, False),
        ({"target_modules": ["q_proj", "embed_tokens"]}, False),
    ],
    ids=lambda value: "" if isinstance(value, bool) else "-".join(value),
)
def test_adapters_of_every_kind(tmp_path: Path, settings: dict[str, Any], mergeable: bool) -> None:
    model = with_lora(lively(build(tmp_path, "qwen2", tied=False)[0]), **settings)
    assert plain_lora(model) is mergeable
    if mergeable:
        ((one,),) = decode(snapshot(model), PROMPTS[6:7], max_tokens=8, end_ids=ENDS)
        assert one.tokens == reference(model, PROMPTS[6], 8)
