"""Answers from local weights: through the fast decoder, and through transformers for what it does not know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PhiConfig

from danlu.errors import DanluError
from danlu.generate import Generator, Sampling
from danlu.generate.local import LocalGenerator
from danlu.models.load import load, trainable
from danlu.recipe import Lora, Model
from tiny_models import CHATS, adapter, build, tokenizer, trained

PROMPTS = [[{"role": "user", "content": question}] for question, _, _ in CHATS]


def spec(folder: Path) -> Model:
    return Model(id=str(folder), dtype="fp32")


@pytest.fixture(scope="module")
def generator() -> LocalGenerator:
    return LocalGenerator(load(spec(trained())), name="memorised")


def test_answers_reasoning_and_stops(generator: LocalGenerator) -> None:
    opened: Generator = generator
    found = dict(opened.generate(PROMPTS, Sampling(max_tokens=64)))
    assert sorted(found) == [0, 1, 2, 3]
    for index, (_, reasoning, answer) in enumerate(CHATS):
        (one,) = found[index]
        assert (one.reasoning, one.answer, one.finish, one.well_formed) == (reasoning, answer, "stop", True)
        assert one.text == generator.think.join(reasoning, answer)
        assert one.tokens[-1] == generator.loaded.end_ids[0]
        assert len(one.logprobs) == len(one.tokens)
        assert max(one.logprobs) <= 0


def test_truncation_is_length_and_has_no_answer(generator: LocalGenerator) -> None:
    ((_, (one,)),) = generator.generate(PROMPTS[1:2], Sampling(max_tokens=4))
    assert (one.finish, one.answer, one.well_formed, len(one.tokens)) == ("length", "", False, 4)


def test_thinking_off_is_what_the_template_writes(generator: LocalGenerator) -> None:
    quiet = LocalGenerator(generator.loaded, thinking=False)
    ((_, (one,)),) = quiet.generate(PROMPTS[:1], Sampling(max_tokens=40))
    ((_, (thought,)),) = generator.generate(PROMPTS[:1], Sampling(max_tokens=40))
    assert one.tokens != thought.tokens


def test_chat_stream_gives_the_parts(generator: LocalGenerator) -> None:
    _, reasoning, answer = CHATS[0]
    with generator as opened:
        pieces = list(opened.chat_stream(PROMPTS[0]))
    assert len(pieces) > 4  # as they are written
    for part, wanted in (("reasoning", reasoning), ("answer", answer)):
        assert "".join(text for kind, text in pieces if kind == part) == wanted


@pytest.mark.parametrize("batch", [1, 3, 5, 256])
def test_the_batch_does_not_change_what_is_drawn(generator: LocalGenerator, batch: int) -> None:
    sampling = Sampling(max_tokens=16, temperature=1.6, samples=3, seed=4)
    wanted = dict(generator.generate(PROMPTS, sampling))
    small = LocalGenerator(generator.loaded, batch=batch)
    found = dict(small.generate(PROMPTS, sampling))
    assert {n: [one.tokens for one in many] for n, many in found.items()} == {
        n: [one.tokens for one in many] for n, many in wanted.items()
    }
    assert len({one.tokens for one in wanted[0]}) > 1


def test_keys_and_seed_fix_the_draws(generator: LocalGenerator) -> None:
    def draw(keys: list[str] | None, seed: int = 4) -> list[tuple[int, ...]]:
        sampling = Sampling(max_tokens=16, temperature=1.6, samples=3, seed=seed)
        return [one.tokens for _, many in generator.generate(PROMPTS[:2], sampling, keys) for one in many]

    assert draw(["a", "b"]) == draw(["a", "b"]) != draw(["a", "c"])
    assert draw(None) == draw(None) != draw(None, seed=5)


def test_refresh_takes_up_what_training_changed() -> None:
    loaded = load(spec(trained()), lora=Lora(r=4), train=True)
    generator = LocalGenerator(loaded)
    sampling = Sampling(max_tokens=24)
    before = next(generator.generate(PROMPTS[:1], sampling))[1][0]
    torch.manual_seed(0)
    with torch.no_grad():
        for value in trainable(loaded.model).values():
            value.add_(torch.randn_like(value) * 0.3)
    assert next(generator.generate(PROMPTS[:1], sampling))[1][0] == before
    generator.refresh()
    assert next(generator.generate(PROMPTS[:1], sampling))[1][0].tokens != before.tokens


def test_stop_strings_end_the_answer_and_are_left_out(generator: LocalGenerator) -> None:
    _, reasoning, answer = CHATS[0]
    for stop in ("多喝", "喝水。", "要看", "</think>"):
        sampling = Sampling(max_tokens=64, stop=("never said", stop))
        ((_, (one,)),) = generator.generate(PROMPTS[:1], sampling)
        assert one.text == generator.think.join(reasoning, answer).partition(stop)[0]
        assert one.finish == "stop"
        assert stop in generator.loaded.tokenizer.decode(one.tokens)
        assert len(one.logprobs) == len(one.tokens)
        told = {"reasoning": "", "answer": ""}
        for part, text in generator.chat_stream(PROMPTS[0], sampling):
            told[part] += text
        assert told == {"reasoning": one.reasoning, "answer": one.answer}


def test_leaving_a_stream_early_ends_the_work(generator: LocalGenerator) -> None:
    stream = generator.chat_stream(PROMPTS[0], Sampling(max_tokens=2000))
    assert next(stream)[0] == "reasoning"
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


def test_memory_decides_how_many_rows(generator: LocalGenerator) -> None:
    sampling = Sampling(max_tokens=16, temperature=1.6, samples=3, seed=4)
    wanted = dict(generator.generate(PROMPTS, sampling))
    small = LocalGenerator(generator.loaded, memory=150_000)
    assert {n: [one.tokens for one in many] for n, many in small.generate(PROMPTS, sampling)} == {
        n: [one.tokens for one in many] for n, many in wanted.items()
    }
    with pytest.raises(DanluError, match="no memory"):
        list(LocalGenerator(generator.loaded, memory=10_000).generate(PROMPTS, sampling))


# ---- what the fast decoder does not know


def stored(folder: Path, config: Any) -> Path:
    torch.manual_seed(0)
    made = tokenizer("chatml")
    config.eos_token_id, config.bos_token_id = made.eos_token_id, made.eos_token_id
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


CONFIGS = {
    "gpt2": GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=640, initializer_range=0.3),
    "phi": PhiConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=640,
        initializer_range=0.3,
    ),
}


OPTIONS = {
    "greedy": {},
    "penalised": {"repetition_penalty": 1.3},
    "sampled": {"temperature": 1.0, "seed": 3},
    "filtered": {"temperature": 1.2, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.2},
    "stopped": {"temperature": 1.0, "stop": ("e", "看")},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_transformers_generate_and_our_decoder_write_the_same(generator: LocalGenerator, name: str) -> None:
    """Forward, cache and padding are transformers', everything else is ours: the same draws give the same text."""
    through = LocalGenerator(generator.loaded)
    through._fast = False
    sampling = Sampling(**{"max_tokens": 14, "samples": 2} | OPTIONS[name])
    wanted, found = (dict(one.generate(PROMPTS, sampling)) for one in (generator, through))
    for n in range(len(PROMPTS)):
        for one, other in zip(found[n], wanted[n], strict=True):
            assert (one.tokens, one.text, one.finish) == (other.tokens, other.text, other.finish)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    sampling = replace(sampling, samples=1)
    streams = [list(one.chat_stream(PROMPTS[1], sampling)) for one in (generator, through)]
    assert streams[0] == streams[1]


def alone(generator: LocalGenerator, chat: list[dict[str, str]], tokens: int) -> tuple[int, ...]:
    words, model = generator.loaded.tokenizer, generator.loaded.model
    text = words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = words(text, return_tensors="pt")["input_ids"]
    out = model.generate(
        input_ids=ids, max_new_tokens=tokens, do_sample=False, eos_token_id=list(generator.loaded.end_ids)
    )
    return tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("name", CONFIGS)
def test_other_architectures_go_through_transformers(tmp_path: Path, name: str) -> None:
    generator = LocalGenerator(load(spec(stored(tmp_path, CONFIGS[name]))))
    found = dict(generator.generate(PROMPTS, Sampling(max_tokens=10)))
    for n, chat in enumerate(PROMPTS):
        assert found[n][0].tokens == alone(generator, chat, 10)
        assert (found[n][0].finish == "stop") == (found[n][0].tokens[-1] in generator.loaded.end_ids)
    sampling = Sampling(max_tokens=10, temperature=1.0, top_p=0.9, samples=3, seed=1)
    drawn = [dict(generator.generate(PROMPTS, sampling)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert all(len(many) == 3 for many in drawn[0].values())
    assert len({one.tokens for many in drawn[0].values() for one in many}) > 4
    for chat, group in zip(PROMPTS, (drawn[0][n] for n in range(len(PROMPTS))), strict=True):
        for one in group:
            assert one.logprobs == pytest.approx(scored(generator, chat, one.tokens), abs=1e-4)
    small = LocalGenerator(generator.loaded, memory=30_000)
    assert {n: [one.tokens for one in many] for n, many in small.generate(PROMPTS, sampling)} == {
        n: [one.tokens for one in many] for n, many in drawn[0].items()
    }


def scored(generator: LocalGenerator, chat: list[dict[str, str]], tokens: tuple[int, ...]) -> list[float]:
    """Log-probs of a completion by a forward over all of it."""
    words, model = generator.loaded.tokenizer, generator.loaded.model
    text = words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = words(text)["input_ids"]
    with torch.no_grad():
        found = model(torch.tensor([[*ids, *tokens]])).logits[0].log_softmax(-1)
    return [float(found[len(ids) + n - 1, token]) for n, token in enumerate(tokens)]


def test_an_error_inside_a_stream_reaches_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = LocalGenerator(load(spec(stored(tmp_path, CONFIGS["gpt2"]))))
    pieces = list(generator.chat_stream(PROMPTS[0], Sampling(max_tokens=6)))
    assert "".join(text for _, text in pieces)
    stream = generator.chat_stream(PROMPTS[0], Sampling(max_tokens=900))
    next(stream)
    stream.close()  # the thread has ended: the model is as before
    assert generator.loaded.model.generation_config.max_new_tokens is None

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(generator.loaded.model, "forward", broken)
    with pytest.raises(RuntimeError, match="the device is lost"):
        list(generator.chat_stream(PROMPTS[0], Sampling(max_tokens=6)))


@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"target_modules": ["embed_tokens", "q_proj"]}, {"use_rslora": True, "r": 9}],
    ids=["dora", "embedding", "rslora"],
)
def test_adapters_of_every_kind_answer_as_in_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    build(tmp_path / "base", tied=False)
    folder = adapter(tmp_path / "base", tmp_path / "adapter", **settings)
    generator = LocalGenerator(load(spec(tmp_path / "base"), str(folder)))
    found = dict(generator.generate(PROMPTS[:2], Sampling(max_tokens=10)))
    for n in (0, 1):
        assert found[n][0].tokens == alone(generator, PROMPTS[n], 10)
