"""What is asked of vLLM and how its answers are read, over a stand-in engine (see vllm_stand_in.py)."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm_stand_in import LLMEngine, install

from danlu.errors import DanluError
from danlu.generate import Generator, Sampling
from danlu.generate.chat import encoded
from danlu.generate.local import LocalGenerator
from danlu.generate.open import open_generator
from danlu.generate.vllm import VllmGenerator
from danlu.models.load import load
from danlu.recipe import Data, Eval, Model, Recipe
from tiny_models import CHATS, adapter, trained

PROMPTS = [[{"role": "user", "content": question}] for question, _, _ in CHATS]
SPEC = Model(id=str(trained()), dtype="fp32")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[LLMEngine]:
    return install(monkeypatch)


@pytest.fixture
def ours() -> LocalGenerator:
    return LocalGenerator(load(SPEC))


def test_greedy_answers_are_those_of_the_local_decoder(engine: type[LLMEngine], ours: LocalGenerator) -> None:
    opened: Generator = VllmGenerator(SPEC, name="fast")
    sampling = Sampling(max_tokens=40, samples=2)
    found, wanted = dict(opened.generate(PROMPTS, sampling)), dict(ours.generate(PROMPTS, sampling))
    assert sorted(found) == [0, 1, 2, 3]
    for place, (_, reasoning, answer) in enumerate(CHATS):
        assert len(found[place]) == 2  # vLLM refuses two greedy ones, so one is asked for
        for one, other in zip(found[place], wanted[place], strict=True):
            assert (one.reasoning, one.answer, one.finish, one.well_formed) == (reasoning, answer, "stop", True)
            assert (one.text, one.tokens) == (other.text, other.tokens)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert not engine.made[0].has_unfinished_requests()


def test_an_adapter_stays_unmerged(engine: type[LLMEngine], tmp_path: Path) -> None:
    tuned = adapter(trained(), tmp_path / "tuned", r=12, lora_alpha=96)
    found = dict(VllmGenerator(SPEC, str(tuned)).generate(PROMPTS, Sampling(max_tokens=24)))
    wanted = dict(LocalGenerator(load(SPEC, str(tuned))).generate(PROMPTS, Sampling(max_tokens=24)))
    plain = dict(VllmGenerator(SPEC).generate(PROMPTS, Sampling(max_tokens=24)))
    tokens = [found[n][0].tokens for n in range(4)]
    assert tokens == [wanted[n][0].tokens for n in range(4)]
    assert tokens != [plain[n][0].tokens for n in range(4)]
    args = engine.made[0].args
    assert (args.model, args.enable_lora, args.max_lora_rank) == (str(trained()), True, 16)  # the next rank up
    assert not engine.made[1].args.enable_lora


@pytest.mark.usefixtures("engine")
def test_draws_have_a_seed_of_their_prompt() -> None:
    opened = VllmGenerator(SPEC)

    def draw(prompts: Any, keys: Any = None, seed: int = 3) -> dict[int, list[tuple[int, ...]]]:
        sampling = Sampling(max_tokens=12, temperature=1.5, samples=3, seed=seed)
        return {n: [one.tokens for one in many] for n, many in opened.generate(prompts, sampling, keys)}

    whole = draw(PROMPTS)
    assert whole == draw(PROMPTS)
    assert draw(PROMPTS[::-1]) == {3 - n: many for n, many in whole.items()}  # not of their neighbours
    assert len({tokens for many in whole.values() for tokens in many}) > 4
    assert draw(PROMPTS, seed=4) != whole
    assert draw([PROMPTS[0]] * 2, ["a", "b"])[0] != draw([PROMPTS[0]] * 2, ["b", "b"])[0]


def test_every_setting_of_sampling_is_passed_on(engine: type[LLMEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    opened, seen = VllmGenerator(SPEC), []
    add = engine.add_request
    monkeypatch.setattr(
        engine, "add_request", lambda self, *given, **named: seen.append(given[2]) or add(self, *given, **named)
    )
    filters = {"temperature": 0.7, "top_p": 0.9, "top_k": 7, "min_p": 0.05, "repetition_penalty": 1.3}
    ((_, (one, _)),) = opened.generate(PROMPTS[:1], Sampling(max_tokens=6, samples=2, stop=("药", "x"), **filters))
    params = seen[0]
    assert {name: getattr(params, name) for name in filters} == filters
    assert (params.n, params.max_tokens, params.stop, params.detokenize) == (2, 6, ["药", "x"], True)
    assert set(params.stop_token_ids) == set(opened.end_ids)
    assert one.logprobs == ()  # vLLM's are those before the temperature
    list(opened.generate(PROMPTS[:1], Sampling(max_tokens=2, temperature=1.0)))
    assert (seen[1].logprobs, seen[1].detokenize) == (0, False)


@pytest.mark.usefixtures("engine")
def test_log_probs_at_temperature_one_are_the_models(ours: LocalGenerator) -> None:
    sampling = Sampling(max_tokens=10, temperature=1.0, repetition_penalty=1.2, top_p=0.95)
    ((_, (one,)),) = VllmGenerator(SPEC).generate(PROMPTS[1:2], sampling)
    _, (prompt,) = encoded(ours.loaded.tokenizer, ours.think, PROMPTS[1:2], thinking=True)
    with torch.no_grad():
        scores = ours.loaded.model(input_ids=torch.tensor([prompt + list(one.tokens)])).logits[0].log_softmax(-1)
    wanted = [float(scores[len(prompt) - 1 + at, token]) for at, token in enumerate(one.tokens)]
    assert one.logprobs == pytest.approx(wanted, abs=1e-4)


@pytest.mark.usefixtures("engine")
def test_what_is_cut_and_what_is_stopped(ours: LocalGenerator) -> None:
    opened = VllmGenerator(SPEC)
    ((_, (one,)),) = opened.generate(PROMPTS[:1], Sampling(max_tokens=4))
    assert (one.finish, one.answer, one.well_formed, len(one.tokens)) == ("length", "", False, 4)
    sampling = Sampling(max_tokens=40, stop=("，",))
    ((_, (stopped,)),) = opened.generate(PROMPTS[:1], sampling)
    ((_, (wanted,)),) = ours.generate(PROMPTS[:1], sampling)
    assert (stopped.text, stopped.answer, stopped.finish) == (wanted.text, wanted.answer, "stop")
    assert stopped.answer == "先休息"
    ((_, (full,)),) = opened.generate(PROMPTS[:1], Sampling(max_tokens=40))
    assert opened.cut(full, 4).text == one.text
    assert opened.cut(full, 4).finish == "length"


@pytest.mark.usefixtures("engine")
def test_thinking_off_is_what_the_template_writes(ours: LocalGenerator) -> None:
    found, ours.thinking = VllmGenerator(SPEC, thinking=False), False
    sampling = Sampling(max_tokens=12)
    ((_, (one,)),), ((_, (other,)),) = found.generate(PROMPTS[:1], sampling), ours.generate(PROMPTS[:1], sampling)
    assert one.tokens == other.tokens


def test_a_chat_is_streamed_and_can_be_left(engine: type[LLMEngine]) -> None:
    _, reasoning, answer = CHATS[0]
    with VllmGenerator(SPEC) as opened:
        pieces = list(opened.chat_stream(PROMPTS[0], Sampling(max_tokens=64)))
        assert len(pieces) > 4
        for part, wanted in (("reasoning", reasoning), ("answer", answer)):
            assert "".join(text for kind, text in pieces if kind == part) == wanted
        assert not engine.made[0].aborted
        stream = opened.chat_stream(PROMPTS[0], Sampling(max_tokens=64))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert engine.made[0].aborted == ["danlu-1"]
        assert dict(opened.generate(PROMPTS[:1], Sampling(max_tokens=64)))[0][0].answer == answer
        many = opened.generate(PROMPTS, Sampling(max_tokens=64))
        next(many)
        many.close()  # type: ignore[attr-defined]
        assert not engine.made[0].has_unfinished_requests()


@pytest.mark.usefixtures("engine")
def test_the_likeliest_letter_is_that_of_the_local_model(ours: LocalGenerator) -> None:
    letters = [["A", "B", "C"], ["W", "4", "I"], ["A", "D"], ["B", "E"]]
    assert dict(VllmGenerator(SPEC).choose(PROMPTS, letters)) == dict(ours.choose(PROMPTS, letters))


def test_a_prompt_that_is_too_long_is_one_failed_answer(engine: type[LLMEngine]) -> None:
    opened = VllmGenerator(SPEC, context=48)
    long = [{"role": "user", "content": "发热三天怎么办？" * 40}]
    found = dict(opened.generate([long, PROMPTS[1]], Sampling(max_tokens=20, samples=2)))
    assert [(one.finish, one.text) for one in found[0]] == [("error", "")] * 2
    assert found[1][0].text
    with pytest.raises(DanluError, match="too long"):
        list(opened.chat_stream(long))
    with pytest.raises(DanluError, match="too long"):
        list(opened.choose([long], [["A", "B"]]))
    VllmGenerator(SPEC, context=1 << 20)  # no more than the model has
    assert [made.args.max_model_len for made in engine.made] == [48, 2048]


@pytest.mark.usefixtures("engine")
def test_what_vllm_refuses_is_an_error_not_an_empty_answer() -> None:
    with pytest.raises(DanluError, match=r"vLLM refuses .*temperature"):
        list(VllmGenerator(SPEC).generate(PROMPTS, Sampling(temperature=3.0)))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"r": 600}, "rank 600"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
    ],
)
def test_adapters_that_vllm_would_refuse_or_misread(
    engine: type[LLMEngine], tmp_path: Path, settings: dict[str, Any], what: str
) -> None:
    tuned = adapter(trained(), tmp_path / "tuned", **settings)
    with pytest.raises(DanluError, match=what) as caught:
        VllmGenerator(SPEC, str(tuned))
    assert "danlu merge" in (caught.value.hint or "")
    assert not engine.made  # before anything is loaded


def test_without_vllm_the_way_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(DanluError, match="not installed") as caught:
        VllmGenerator(SPEC)
    assert 'pip install "danlu[vllm]"' in (caught.value.hint or "")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == "danlu"
    assert any(need.startswith("vllm") for need in project["optional-dependencies"]["vllm"])


@pytest.mark.usefixtures("engine")
def test_an_engine_that_does_not_start_and_a_model_of_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Model(config=str(trained() / "config.json"), tokenizer=str(trained()))
    with pytest.raises(DanluError, match="needs a stored model"):
        VllmGenerator(made)
    starting = SimpleNamespace(from_engine_args=_no_memory)
    monkeypatch.setattr(sys.modules["vllm"], "LLMEngine", starting)
    with pytest.raises(DanluError, match=r"vLLM cannot load .*memory is gone"):
        VllmGenerator(SPEC)


def _no_memory(_args: Any) -> None:
    raise RuntimeError("Engine core initialization failed.\nmemory is gone")


def test_a_recipe_opens_it(engine: type[LLMEngine]) -> None:
    recipe = Recipe(name="x", model=SPEC, data=Data(max_length=100), eval=Eval(max_tokens=60, generate="vllm"), seed=9)
    opened = open_generator(str(trained()), recipe)
    assert isinstance(opened, VllmGenerator)
    assert dict(opened.generate(PROMPTS, Sampling(max_tokens=48)))[3][0].answer == "Apple."
    args = engine.made[0].args
    assert (args.max_model_len, args.seed, args.dtype, args.tokenizer) == (160, 9, "float32", str(trained()))
