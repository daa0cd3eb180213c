"""The llama.cpp generator on a model that memorised four chats: answers, reasoning, streams, raw endpoints, errors."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from danlu.errors import DanluError
from danlu.export.gguf import write_gguf
from danlu.generate import Sampling
from danlu.generate.gguf import GgufGenerator, _places, completion
from danlu.models.tokenizer import load_tokenizer
from danlu.think import ThinkFormat
from tiny_models import CHATS, trained

PROMPTS = [[{"role": "user", "content": question}] for question, _, _ in CHATS]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(trained(), tmp_path_factory.mktemp("gguf") / "tiny.gguf", "f32")


@pytest.fixture(scope="module")
def generator(path: Path):
    with GgufGenerator(path, context=512) as opened:
        yield opened


def test_answers_reasoning_and_stops(generator: GgufGenerator) -> None:
    assert generator.name == "tiny"
    found = dict(generator.generate(PROMPTS, Sampling(max_tokens=64)))
    assert sorted(found) == [0, 1, 2, 3]
    for index, (_, reasoning, answer) in enumerate(CHATS):
        (one,) = found[index]
        assert (one.reasoning, one.answer, one.finish, one.well_formed) == (reasoning, answer, "stop", True)
        assert one.text == generator.think.join(reasoning, answer)


def test_the_think_format_is_found_in_the_file(generator: GgufGenerator) -> None:
    assert generator.think.style == "think"
    assert generator.think.opened_by == "model"
    assert generator.think.end_tokens == ("<|im_end|>",)


def test_truncation_is_length_and_has_no_answer(generator: GgufGenerator) -> None:
    ((_, (one,)),) = generator.generate(PROMPTS[1:2], Sampling(max_tokens=4))
    assert (one.finish, one.answer, one.well_formed) == ("length", "", False)


def test_thinking_can_be_switched_off(generator: GgufGenerator) -> None:
    """The template closes the block itself, so nothing that the model writes is reasoning."""
    ((_, (thought,)),) = generator.generate(PROMPTS[:1], Sampling(max_tokens=64))
    generator.thinking = False
    try:
        ((_, (plain,)),) = generator.generate(PROMPTS[:1], Sampling(max_tokens=64))
    finally:
        generator.thinking = True
    assert thought.reasoning
    assert plain.reasoning == ""
    assert plain.answer


def test_filters_and_stop_strings(generator: GgufGenerator) -> None:
    def drawn(**options: object) -> list[str]:
        sampling = Sampling(max_tokens=24, samples=3, seed=5, **{"temperature": 3.0} | options)  # type: ignore[arg-type]
        ((_, many),) = generator.generate(PROMPTS[:1], sampling)
        return [one.text for one in many]

    greedy = drawn(temperature=0.0)
    assert drawn() != greedy
    for narrow in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}):
        assert drawn(**narrow) == greedy
    assert drawn(temperature=0.0, repetition_penalty=3.0) != greedy
    _, reasoning, answer = CHATS[0]
    ((_, (one,)),) = generator.generate(PROMPTS[:1], Sampling(max_tokens=64, stop=("never", answer[3:5])))
    assert (one.reasoning, one.answer, one.finish) == (reasoning, answer[:3], "stop")


def test_sampling_follows_the_seed(generator: GgufGenerator) -> None:
    def draw(seed: int) -> list[str]:
        ((_, many),) = generator.generate(PROMPTS[:1], Sampling(max_tokens=12, temperature=3.0, samples=4, seed=seed))
        return [one.text for one in many]

    first = draw(5)
    assert len(set(first)) > 1
    assert draw(5) == first
    assert draw(50) != first


def test_a_prompt_that_is_too_long_is_data(generator: GgufGenerator, capfd: pytest.CaptureFixture[str]) -> None:
    long = [{"role": "user", "content": "word " * 700}]
    found = dict(generator.generate([long, PROMPTS[3]], Sampling(max_tokens=64)))
    assert found[0][0].finish == "error"
    assert found[1][0].answer == "Apple."
    assert "exceeds the available context" in capfd.readouterr().err
    with pytest.raises(DanluError, match="context") as error:
        list(generator.chat_stream(long))
    assert "num_ctx" in error.value.hint


def test_stream(generator: GgufGenerator) -> None:
    pieces = list(generator.chat_stream(PROMPTS[0], Sampling(max_tokens=64)))
    kinds = [kind for kind, _ in pieces]
    assert kinds == sorted(kinds, reverse=True)  # reasoning first
    assert "".join(text for kind, text in pieces if kind == "reasoning").strip() == CHATS[0][1]
    assert "".join(text for kind, text in pieces if kind == "answer").strip() == CHATS[0][2]
    assert len(pieces) > 3
    next(generator.chat_stream(PROMPTS[0], Sampling(max_tokens=400)))  # left early
    assert list(generator.chat_stream(PROMPTS[0], Sampling(max_tokens=64))) == pieces


def test_raw_endpoints(generator: GgufGenerator) -> None:
    made = load_tokenizer(trained())
    prompt = made.apply_chat_template(PROMPTS[1], tokenize=False, add_generation_prompt=True)
    assert generator.render(PROMPTS[1]) == prompt
    assert generator.render(PROMPTS[1], enable_thinking=False) == prompt + "<think>\n\n</think>\n\n"
    ids = made(prompt)["input_ids"]
    assert generator.tokenize([prompt, "发热"]) == [ids, made("发热")["input_ids"]]
    trace = generator.complete_tokens(ids, 64, 5)
    assert trace.finish == "stop"
    assert made.decode(trace.tokens) == generator.think.join(*CHATS[1][1:]) + "<|im_end|>"
    assert all(
        len(top) == 5 and max(top, key=top.get) == token for top, token in zip(trace.top, trace.tokens, strict=True)
    )
    assert generator.complete_tokens(ids, 3, bias={made.eos_token_id: 1000.0}).tokens == (made.eos_token_id,)
    assert generator.complete_tokens(ids, 3).finish == "length"


def test_reported_steps_are_placed_only_where_that_is_certain() -> None:
    assert _places([1, 2, 3], [1, 2, 3]) == [0, 1, 2]
    assert _places([1, 2, 3], [1, 3]) == [0, 2]
    assert _places([1, 7, 7, 3], [1, 7, 3]) == [0, None, 3]


def test_completions_of_formats_that_the_server_does_not_know() -> None:
    think = ThinkFormat("reasoning_answer", "<reasoning>", "</reasoning>", "model", head="<reasoning>\n")
    text = "<reasoning>\na\n</reasoning>\n<answer>\nb\n</answer>"
    one = completion(think, "", text, "stop")
    assert (one.reasoning, one.answer, one.well_formed) == ("a", "b", True)


def test_only_this_process_may_ask(generator: GgufGenerator, path: Path) -> None:
    import http.client

    host = urlsplit(generator._server.listening_address).netloc
    assert host.startswith("127.0.0.1:")
    connection = http.client.HTTPConnection(host)
    connection.request("POST", "/tokenize", '{"content": "a"}', {"Content-Type": "application/json"})
    assert connection.getresponse().status == 401
    connection.close()
    other = GgufGenerator(path, context=64, parallel=1)
    address, port = urlsplit(other._server.listening_address).netloc.split(":")
    other.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((address, int(port)), timeout=5)
    with pytest.raises(DanluError, match="closed"):
        other.tokenize(["a"])


def test_files_that_cannot_be_loaded(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DanluError, match="does not exist"):
        GgufGenerator(tmp_path / "none.gguf")
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DanluError, match="cannot load"):
        GgufGenerator(tmp_path / "cut.gguf")
