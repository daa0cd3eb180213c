"""The fast decoder against transformers: greedy tokens, log-probs, distribution, and what a batch may not change."""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PhiConfig, Qwen2Config

from danlu.data.render import IGNORE
from danlu.errors import DanluError
from danlu.generate import Sampling
from danlu.generate import decode as decoding
from danlu.generate.decode import Decoded, one_by_one
from danlu.generate.forward import cache_of
from danlu.generate.memory import cache_bytes, row_bytes
from danlu.generate.weights import plain_lora, snapshot
from danlu.models.batch import packed
from danlu.models.decoder import supports
from danlu.models.head import TokenLogProbs
from tiny_models import VOCABULARY, build

PROMPTS = [
    random.Random(n).choices(range(VOCABULARY), k=length)
    for n, length in enumerate([1, 2, 3, 5, 8, 13, 21, 34, 7, 7, 7, 40])
]
MANY = [random.Random(1000 + n).choices(range(VOCABULARY), k=1 + n * 37 % 71) for n in range(64)]
ENDS = list(range(0, VOCABULARY, 24))
CASES = [
    (architecture, kind, tied, lora)
    for architecture, kind, tied in [("qwen2", "chatml", True), ("qwen3", "chatml", False), ("llama", "llama3", True)]
    for lora in (False, True)
]


SAMPLING = {field.name for field in fields(Sampling)}


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


def references(model: Any, prompts: list[list[int]], tokens: int, **options: Any) -> list[list[int]]:
    """What transformers' generate writes greedily, in one batch padded on the left."""
    length = max(map(len, prompts))
    out = model.generate(
        input_ids=torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts]),
        attention_mask=torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=ENDS,
        pad_token_id=0,
        **options,
    )
    rows = out[:, length:].tolist()
    return [row[: next((n for n, token in enumerate(row, 1) if token in ENDS), tokens)] for row in rows]


def test_greedy_is_transformers_generate_token_for_token(model: Any) -> None:
    wanted = references(model, PROMPTS, 14)
    assert len({len(tokens) for tokens in wanted}) > 1  # some stop early: others take their places
    weights = snapshot(model)
    for rows in (1, 5, 12):
        found = decode(weights, PROMPTS, rows=rows, max_tokens=14, end_ids=ENDS)
        assert [one.tokens for (one,) in found] == wanted, rows
        assert [one.stopped for (one,) in found] == [tokens[-1] in ENDS for tokens in wanted]


@pytest.mark.slow
@pytest.mark.parametrize("copies", [True, False])
def test_greedy_is_transformers_generate_on_64_prompts(model: Any, copies: bool) -> None:
    wanted = [tokens for prompt in MANY for tokens in references(model, [prompt], 40)]
    assert len({len(tokens) for tokens in wanted}) > 4
    weights = snapshot(model, copies=copies)
    for size in (1, 8, 64):
        found = decode(weights, MANY, rows=size, max_tokens=40, end_ids=ENDS)
        assert [one.tokens for (one,) in found] == wanted, size


def test_greedy_with_a_repetition_penalty(model: Any) -> None:
    prompts = [prompt for prompt in PROMPTS if len(prompt) == 7]  # transformers counts padding as seen
    assert len(prompts) > 1
    wanted = references(model, prompts, 14, repetition_penalty=1.3)
    assert wanted != references(model, prompts, 14)
    weights = snapshot(model)
    options = {"max_tokens": 14, "end_ids": ENDS, "repetition_penalty": 1.3}
    for rows, samples in ((1, 1), (4, 2), (12, 2)):
        found = decode(weights, prompts, rows=rows, samples=samples, **options)
        assert [[one.tokens for one in group] for group in found] == [[tokens] * samples for tokens in wanted]


def test_sampled_log_probs_are_those_of_the_scoring_pass(model: Any) -> None:
    filters = {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "repetition_penalty": 1.1}
    found = decode(snapshot(model), PROMPTS, max_tokens=12, end_ids=ENDS, samples=2, seed=5, **filters)
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
    for n in (0, 8, 11):
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
    options = {"max_tokens": 12, "end_ids": ENDS, "temperature": 1.0, "samples": 3, "seed": 1}
    wanted = decode(weights, PROMPTS[3:8], rows=256, **options)
    monkeypatch.setattr(decoding, "APART", apart)
    for rows in (2, 3, 10, 256):  # groups cut in two, one at a time, rows left over, all at once
        found = decode(weights, PROMPTS[3:8], rows=rows, **options)
        assert [[one.tokens for one in group] for group in found] == [[o.tokens for o in group] for group in wanted]
        for group, own in zip(found, wanted, strict=True):
            for a, b in zip(group, own, strict=True):
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert {one.stopped for group in wanted for one in group} == {True, False}


def test_prompts_kept_apart_in_bf16(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, options = snapshot(plain, torch.bfloat16), {"max_tokens": 2, "end_ids": (), "samples": 3}
    found = {}
    for apart in (0, 1 << 60):
        monkeypatch.setattr(decoding, "APART", apart)
        found[apart] = decode(weights, PROMPTS[3:8], **options)
    for group, own in zip(*found.values(), strict=True):
        for one, other in zip(group, own, strict=True):
            assert one.tokens[0] == other.tokens[0]
            assert one.logprobs == pytest.approx(other.logprobs, abs=0.1)


def test_a_free_row_is_taken_at_once(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps as the rows need when none of them waits, not the sum of the longest of each batch."""
    steps, hidden = [], decoding.Batch._hidden

    def counted(batch: Any) -> Any:
        steps.append(len(batch.rows))
        return hidden(batch)

    monkeypatch.setattr(decoding.Batch, "_hidden", counted)
    found = decode(snapshot(plain), PROMPTS * 3, rows=4, max_tokens=30, end_ids=ENDS, temperature=1.0, seed=1)
    lengths = [len(one.tokens) for (one,) in found]
    assert sum(steps) == sum(lengths) - len(lengths)  # the first token comes from the prompt; no row is computed idly
    in_batches = sum(max(lengths[at : at + 4]) - 1 for at in range(0, len(lengths), 4))
    assert sum(lengths) / 4 <= len(steps) + len(lengths) / 4 + 30 < 0.9 * in_batches


def test_memory_splits_a_batch(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, held = snapshot(plain), []

    def made(*args: Any) -> Any:
        held.append(cache_of(*args))
        return held[-1]

    monkeypatch.setattr(decoding, "cache_of", made)
    options = {"max_tokens": 10, "end_ids": ENDS, "temperature": 1.0, "seed": 1}
    prompts = [PROMPTS[6]] * 5 + PROMPTS[:2]
    wanted = decode(weights, prompts, **options)
    layers, size = len(weights.layers), weights.dtype.itemsize
    each = row_bytes(layers, weights.kv_heads, weights.head_dim, 31, VOCABULARY, size)
    for rows in (1, 3):
        held.clear()
        found = decode(weights, prompts, memory=rows * each + each // 2, **options)
        assert [one.tokens for (one,) in found] == [one.tokens for (one,) in wanted]
        longest = held[-1].data
        assert longest.shape[1] == rows
        assert longest.nbytes == cache_bytes(layers, weights.kv_heads, weights.head_dim, rows, 31, size)
        assert len(held) == 2  # the short prompts have a cache of their own
    with pytest.raises(DanluError, match="no memory to decode 31 tokens"):
        decode(weights, prompts, memory=each - 1, **options)


class Refusing(TorchFunctionMode):
    """Memory that refuses tensors of more than so many numbers."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.refused = limit, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.zeros and isinstance(args[0], tuple) and torch.Size(args[0]).numel() > self.limit:
            self.refused += 1
            raise torch.OutOfMemoryError("out of memory")
        return function(*args, **(kwargs or {}))


def test_memory_that_runs_out_halves_the_rows(plain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    weights = snapshot(plain)
    options = {"max_tokens": 10, "end_ids": ENDS, "temperature": 1.0, "samples": 2, "seed": 1}
    wanted = decode(weights, PROMPTS[:6], **options)
    one = cache_of(weights, 1, 13, 10).data.numel()
    with Refusing(4 * one) as memory:
        found = decode(weights, PROMPTS[:6], **options)
    assert [[o.tokens for o in group] for group in found] == [[o.tokens for o in group] for group in wanted]
    assert memory.refused > 0
    assert "going on with" in capsys.readouterr().err
    with Refusing(one // 4), pytest.raises(DanluError, match="no memory to decode"):
        decode(weights, PROMPTS[5:6], **options)


def test_what_was_finished_before_memory_ran_out_is_not_done_again(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = snapshot(plain)
    options = {"max_tokens": 20, "end_ids": ENDS, "temperature": 1.0, "samples": 3, "seed": 1}
    wanted = decode(weights, PROMPTS, **options)
    rows, hidden = [], decoding.Batch._hidden

    def failing(batch: Any) -> Any:
        rows.append(len(batch.rows))
        if len(rows) == 9:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"
            )
        return hidden(batch)

    monkeypatch.setattr(decoding.Batch, "_hidden", failing)
    found = decode(weights, PROMPTS, **options)
    assert [[o.tokens for o in group] for group in found] == [[o.tokens for o in group] for group in wanted]
    assert max(rows[9:]) <= rows[0] // 2 + 1
    broken = lambda _: (_ for _ in ()).throw(RuntimeError("something else"))  # noqa: E731
    monkeypatch.setattr(decoding.Batch, "_hidden", broken)
    with pytest.raises(RuntimeError, match="something else"):
        decode(weights, PROMPTS, **options)


def test_stop_strings_end_a_row(plain: Any) -> None:
    weights = snapshot(plain)
    options = {"max_tokens": 20, "end_ids": ENDS, "temperature": 1.0, "samples": 2, "seed": 3}
    wanted = decode(weights, PROMPTS, **options)
    found = decode(weights, PROMPTS, ended=lambda tokens: tokens[-1] % 5 == 0, **options)
    cut = 0
    for group, own in zip(found, wanted, strict=True):
        for one, whole in zip(group, own, strict=True):
            assert one.tokens == whole.tokens[: len(one.tokens)]
            assert one.stopped == (one.tokens[-1] % 5 == 0 or one.tokens[-1] in ENDS)
            assert not any(token % 5 == 0 for token in one.tokens[:-1])
            cut += len(one.tokens) < len(whole.tokens)
    assert cut > 5


def test_one_by_one_gives_the_same_tokens(plain: Any) -> None:
    weights, sampling = snapshot(plain), Sampling(20, temperature=1.0, seed=5)
    for prompt in PROMPTS[:5]:
        (group,) = decode(weights, [prompt], max_tokens=20, temperature=1.0, seed=5, end_ids=ENDS, keys=["k"])
        assert list(one_by_one(weights, prompt, sampling, end_ids=ENDS, key="k")) == group[0].tokens


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
        assert one.tokens == references(model, PROMPTS[6:7], 8)[0]
