"""The endpoint generator against a scripted server (every kind of failure) and against llama.cpp's own server."""

from __future__ import annotations

import email.utils
import itertools
import logging
import socket
import threading
import time
from typing import Any

import pytest
from endpoint_server import Asked, FakeServer, Reply, chat, error

from danlu.errors import DanluError
from danlu.export.gguf import write_gguf
from danlu.generate import Generator, Sampling
from danlu.generate import wire as module
from danlu.generate.endpoint import OPENED, PLAIN, THINK, UNKNOWN, EndpointGenerator
from danlu.generate.gguf import GgufGenerator
from danlu.generate.replies import Unanswered, address, retry_after, tagged
from danlu.generate.wire import Endpoint
from danlu.records import Completion
from tiny_models import CHATS, trained

KEY = "sk-0123456789-very-secret"
ONE = [[{"role": "user", "content": "q"}]]
QUICK: dict[str, Any] = {"backoff": 0.001, "timeout": 5.0}


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in module.KEYS:
        monkeypatch.delenv(name, raising=False)


def many(n: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"q{i}"}] for i in range(n)]


def ask(server: FakeServer, sampling: Sampling | None = None, **settings: Any) -> list[Completion]:
    """Completions of one question."""
    with EndpointGenerator(server.url, **QUICK | settings) as generator:
        ((index, found),) = generator.generate(ONE, sampling or Sampling())
    assert index == 0
    return found


def script(*replies: Reply) -> Any:
    """The replies in turn, the last one for ever."""
    return lambda _asked, number: replies[min(number, len(replies) - 1)]


# ---- what is asked


def test_the_request_and_the_completion() -> None:
    with FakeServer(script(chat("B", tokens=7))) as server:
        generator: Generator = EndpointGenerator(server.url, **QUICK)
        chatting = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}]
        ((_, (one,)),) = generator.generate([[*chatting, *ONE[0]]], Sampling(max_tokens=9, temperature=0.5, top_p=0.9))
    assert generator.name == f"{server.host}/tiny"
    assert server.asked[0].path == "/v1/models"
    assert server.asked[1].path == "/v1/chat/completions"
    assert server.bodies == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, *ONE[0]],
            "max_tokens": 9,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 0,
        }
    ]
    assert (one.text, one.answer, one.reasoning, one.finish, one.well_formed) == ("B", "B", "", "stop", True)
    assert one.tokens == (UNKNOWN,) * 7
    assert "authorization" not in server.asked[1].headers


def test_greedy_sends_no_seed_and_thinking_only_when_asked() -> None:
    with FakeServer(script(chat())) as server:
        ask(server)
        ask(server, thinking=False)
        ask(server, thinking=True)
    assert "seed" not in server.bodies[0]
    found = [body.get("chat_template_kwargs") for body in server.bodies]
    assert found == [None, {"enable_thinking": False}, {"enable_thinking": True}]


def test_known_servers_are_told_to_sample_as_we_do() -> None:
    listed = Reply({"data": [{"id": "m", "owned_by": "vllm"}]})
    with FakeServer(script(chat()), models=listed) as server:
        ask(server)
    assert {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}.items() <= server.bodies[0].items()


FILTERED = Sampling(temperature=0.8, top_k=20, min_p=0.05, repetition_penalty=1.1, stop=("\n\n", "END"))


def test_filters_are_passed_on_in_the_words_of_the_server() -> None:
    own = {"top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1, "stop": ["\n\n", "END"]}
    for owner in ("vllm", "someone"):
        with FakeServer(script(chat()), models=Reply({"data": [{"id": "m", "owned_by": owner}]})) as server:
            ask(server, FILTERED)
        assert own.items() <= server.bodies[0].items()
        assert "samplers" not in server.bodies[0]
    with FakeServer(script(chat()), models=Reply({"data": [{"id": "m", "owned_by": "llamacpp"}]})) as server:
        ask(server, FILTERED)
    (body,) = server.bodies
    assert body["samplers"] == ["penalties", "temperature", "top_k", "top_p", "min_p"]
    wanted = {"top_k": 20, "min_p": 0.05, "repeat_penalty": 1.1, "repeat_last_n": -1, "stop": ["\n\n", "END"]}
    assert wanted.items() <= body.items()
    assert "repetition_penalty" not in body


def test_a_filter_that_a_server_does_not_take_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(asked: Asked, _: int) -> Reply:
        for name in ("top_k", "min_p", "repetition_penalty"):
            if name in asked.body:
                return error(400, f"Unrecognized request argument supplied: {name}")
        return chat("x")

    with FakeServer(answer) as server:
        assert ask(server, FILTERED, retries=0)[0].text == "x"
    assert server.bodies[-1]["stop"] == ["\n\n", "END"]
    said = capsys.readouterr().err
    assert all(f"does not take {name}" in said for name in ("top_k", "min_p", "repetition_penalty"))


def test_several_samples_in_one_request_where_the_server_takes_n() -> None:
    with FakeServer(lambda asked, _: chat("x", n=asked.body.get("n", 1), tokens=7)) as server:
        found = ask(server, Sampling(samples=3, temperature=1.0))
    assert [len(one.tokens) for one in found] == [3, 2, 2]
    assert len(server.bodies) == 1


@pytest.mark.parametrize("refuses", [False, True])
def test_several_samples_one_by_one_where_it_does_not(refuses: bool) -> None:
    def answer(asked: Asked, _: int) -> Reply:
        if refuses and "n" in asked.body:
            return error(400, "n must be 1")
        return chat(f"seed {asked.body['seed']}")

    with FakeServer(answer) as server:
        generator = EndpointGenerator(server.url, concurrency=1, **QUICK)
        found = dict(generator.generate(many(2), Sampling(samples=3, temperature=1.0, seed=10)))
    assert [[one.answer for one in found[i]] for i in (0, 1)] == [
        ["seed 10", "seed 11", "seed 12"],
        ["seed 13", "seed 14", "seed 15"],
    ]
    assert sum("n" in body for body in server.bodies) == 1  # asked once, then remembered


def test_parameters_that_a_server_does_not_take(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(asked: Asked, _: int) -> Reply:
        if "max_tokens" in asked.body:
            return error(400, "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.")
        if "temperature" in asked.body:
            return error(400, "Unsupported value: 'temperature' does not support 0.5 with this model.")
        if "seed" in asked.body:
            return error(422, "body -> seed: Extra inputs are not permitted")
        if "chat_template_kwargs" in asked.body:
            return error(400, "Unrecognized request argument supplied: chat_template_kwargs")
        return chat("fine")

    with FakeServer(answer) as server:
        (one,) = ask(server, Sampling(max_tokens=9, temperature=0.5), retries=0, thinking=True)
    assert one.answer == "fine"
    assert server.bodies[-1]["max_completion_tokens"] == 9
    said = capsys.readouterr().err
    assert "does not take temperature" in said
    assert "does not take seed" in said


# ---- reasoning


@pytest.mark.parametrize(
    ("reply", "reasoning", "answer", "well_formed", "text"),
    [
        (chat("B", reasoning_content="why"), "why", "B", True, "<think>\nwhy\n</think>\n\nB"),
        (chat("\n\nB", reasoning="why\n"), "why", "B", True, None),
        (chat("<think>\nwhy\n</think>\n\nB"), "why", "B", True, "<think>\nwhy\n</think>\n\nB"),
        (chat("why\n</think>\n\nB"), "why", "B", True, "why\n</think>\n\nB"),
        (chat("B"), "", "B", True, "B"),
        (chat(None, "length", reasoning_content="why"), "why", "", False, None),
        (chat("<think>why", "length"), "why", "", False, None),
        (chat("half an ans", "length"), "", "half an ans", False, None),
        (chat("<think>\n\n</think>\n\nB"), "", "B", False, None),
        (
            chat([{"type": "thinking", "thinking": [{"text": "why"}]}, {"type": "text", "text": "B"}]),
            "why",
            "B",
            True,
            None,
        ),
        (chat(""), "", "", False, ""),
    ],
)
def test_reasoning_wherever_the_server_puts_it(
    reply: Reply, reasoning: str, answer: str, well_formed: bool, text: str | None
) -> None:
    with FakeServer(script(reply)) as server:
        (one,) = ask(server)
    assert (one.reasoning, one.answer, one.well_formed) == (reasoning, answer, well_formed)
    assert one.text == (one.text if text is None else text)


def test_the_think_format_is_learned_or_given() -> None:
    replies = script(chat("B"), chat("why\n</think>\n\nB"), chat("never clo", "length"))
    with FakeServer(replies) as server:
        generator = EndpointGenerator(server.url, concurrency=1, **QUICK)
        formats, found = [generator.think], []
        for _ in range(3):
            ((_, (one,)),) = generator.generate(ONE, Sampling())
            formats.append(generator.think)
            found.append((one.reasoning, one.answer))
    assert formats == [PLAIN, PLAIN, OPENED, OPENED]
    assert found == [("", "B"), ("why", "B"), ("never clo", "")]
    with FakeServer(script(chat("B"), chat("<think>a</think>B"))) as server:
        assert ask(server, think=THINK)[0].well_formed is False  # it should have thought
    with FakeServer(script(chat("<think>a</think>B"))) as server:
        assert ask(server, think=PLAIN)[0].answer == "<think>a</think>B"


# ---- how an answer ends


@pytest.mark.parametrize(
    ("reason", "tokens", "finish"),
    [
        ("stop", 3, "stop"),
        ("length", 3, "length"),
        ("content_filter", 3, "error"),
        ("tool_calls", 3, "error"),
        (None, 8, "length"),
        (None, 3, "stop"),
        (None, 0, "error"),
    ],
)
def test_finish(reason: str | None, tokens: int, finish: str) -> None:
    with FakeServer(script(chat("B", reason, tokens=tokens))) as server:
        (one,) = ask(server, Sampling(max_tokens=8))
    assert (one.finish, one.answer, one.well_formed) == (finish, "B", finish == "stop")


# ---- failures


BROKEN = {
    "half a JSON": Reply('{"choices": [{"message": {"content": "B'),
    "a connection that breaks": Reply({"choices": [1] * 100}, cut=20),
    "no choices": Reply({"choices": []}),
    "null choices": Reply({"choices": None}),
    "a web page": Reply("<!DOCTYPE html><title>nginx</title>"),
    "a list": Reply([1, 2]),
    "a string": Reply('"hello"'),
    "nothing": Reply(b""),
    "not text": Reply(b"\xff\xfe\x00"),
    "a choice of another type": Reply({"choices": ["B"]}),
    "a message of another type": Reply({"choices": [{"message": "B"}]}),
    "a content of another type": chat(17),
    "parts of another type": chat(["B"]),
    "want of resources": chat("B", "insufficient_system_resource"),
    "429": error(429, "slow down"),
    "500": error(500, "oops"),
    "502 page": Reply("<html>Bad Gateway</html>", 502),
    "an error inside 200": Reply({"error": {"message": "overloaded"}}),
    "no answer in time": Reply(delay=0.3),
}


@pytest.mark.parametrize("name", BROKEN)
def test_failures_are_tried_again(name: str) -> None:
    with FakeServer(script(BROKEN[name], BROKEN[name], chat("B"))) as server:
        (one,) = ask(server, retries=2, timeout=0.15 if name == "no answer in time" else 5.0)
    assert one.answer == "B"
    assert len(server.bodies) == 3


@pytest.mark.parametrize("name", BROKEN)
def test_failures_for_good_are_data(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(script(BROKEN[name], BROKEN[name], chat("B"))) as server:
        (one,) = ask(server, retries=1, timeout=0.15 if name == "no answer in time" else 5.0)
    assert (one.finish, one.text, one.answer, one.well_formed) == ("error", "", "", False)
    assert len(server.bodies) == 2
    assert f"warning: {server.host}: " in capsys.readouterr().err


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_question_is_data_and_not_tried_again(status: int) -> None:
    def answer(asked: Asked, _: int) -> Reply:
        long = asked.body["messages"][0]["content"] == "q0"
        return error(status, "maximum context length is 5 tokens") if long else chat("B")

    with FakeServer(answer) as server:
        generator = EndpointGenerator(server.url, concurrency=1, **QUICK)
        found = dict(generator.generate(many(2), Sampling(samples=1)))
    assert (found[0][0].finish, found[1][0].finish) == ("error", "stop")
    assert len(server.bodies) == 2


def test_waits_as_long_as_the_server_asks() -> None:
    with FakeServer(script(error(429, "slow down", Retry_After="0.2"), chat("B"))) as server:
        ask(server)
    first, second = (one.at for one in server.asked[1:])
    assert second - first >= 0.19
    with FakeServer(script(error(429, "come back tomorrow", Retry_After="86400"))) as server:
        (one,) = ask(server)  # not waited for
    assert one.finish == "error"
    assert len(server.bodies) == 1


def test_retry_after_as_a_date() -> None:
    later = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 55 < retry_after({"Retry-After": later}) <= 61
    assert [retry_after({"Retry-After": text}) for text in ("3", "-1", "soon", "")] == [3.0, 0.0, 0.0, 0.0]


def test_backoff_grows_and_varies(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer(script(*[error(503, "busy")] * 4, chat("B"))) as server:
        monkeypatch.setattr(module.random, "uniform", lambda _low, high: high)
        ask(server, backoff=0.03)
    at = [one.at for one in server.asked[1:]]
    gaps = [b - a for a, b in itertools.pairwise(at)]
    assert all(gap >= least for gap, least in zip(gaps, (0.03, 0.06, 0.12, 0.24), strict=True))


def test_a_dead_server_is_an_error_at_once() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
    with pytest.raises(DanluError, match="cannot be reached") as caught:
        EndpointGenerator(url)
    assert "is the server running?" in caught.value.hint


def test_a_server_that_dies_before_its_first_answer() -> None:
    with FakeServer(script(chat())) as server:
        generator = EndpointGenerator(server.url, retries=1, **QUICK)
    with pytest.raises(DanluError, match="cannot be reached") as caught:
        list(generator.generate(many(3), Sampling()))
    assert "--resume" in caught.value.hint


def test_twenty_failures_in_a_row_end_it_and_keep_what_was_there() -> None:
    with FakeServer(lambda _asked, number: chat("B") if number < 5 else error(500, "oops")) as server:
        generator = EndpointGenerator(server.url, concurrency=1, retries=0, **QUICK)
        found: list[str] = []
        with pytest.raises(DanluError, match="failed 20 times in a row: HTTP 500: oops") as caught:
            found.extend(one.finish for _, (one,) in generator.generate(many(100), Sampling()))
    assert "is kept" in caught.value.hint
    assert found == ["stop"] * 5 + ["error"] * 19
    assert 25 <= len(server.bodies) <= 27  # what was under way already


def test_a_success_ends_the_row_and_refusals_are_not_counted_after_one() -> None:
    with FakeServer(lambda _asked, number: error(500, "x") if number % 20 else chat("B")) as server:
        generator = EndpointGenerator(server.url, concurrency=1, retries=0, **QUICK)
        assert len(list(generator.generate(many(60), Sampling()))) == 60
    with FakeServer(lambda _asked, number: error(400, "too long") if number else chat("B")) as server:
        generator = EndpointGenerator(server.url, concurrency=1, retries=0, **QUICK)
        assert len(list(generator.generate(many(60), Sampling()))) == 60
    with FakeServer(script(error(400, "top_p is bad here"))) as server:  # nothing was ever answered
        generator = EndpointGenerator(server.url, concurrency=1, retries=0, **QUICK)
        with pytest.raises(DanluError, match="20 times in a row"):
            list(generator.generate(many(60), Sampling()))


@pytest.mark.parametrize(
    ("reply", "message", "hint"),
    [
        (error(401, "bad key"), r"refuses the key \(HTTP 401: bad key\)", "export a key as DANLU_API_KEY"),
        (error(403, "forbidden"), "refuses the key", "DANLU_API_KEY"),
        (error(404, "The model `tiny` does not exist"), "has no chat endpoint for 'tiny'", "/v1"),
        (error(402, "Insufficient Balance"), "Insufficient Balance", "nothing left"),
        (Reply({"error": {"message": "quota", "code": "insufficient_quota"}}, 429), "quota", "nothing left"),
        (Reply("", 307, {"Location": "https://elsewhere/v1"}), "HTTP 307", "https://elsewhere/v1"),
        (Reply("<h1>no</h1>", 405), "HTTP 405: a web page", "address"),
    ],
)
def test_what_no_retry_can_mend(reply: Reply, message: str, hint: str) -> None:
    with FakeServer(script(reply)) as server:
        generator = EndpointGenerator(server.url, concurrency=1, **QUICK)
        with pytest.raises(DanluError, match=message) as caught:
            list(generator.generate(many(5), Sampling()))
    assert hint in caught.value.hint
    assert len(server.bodies) <= 2  # what was under way already


def test_an_unknown_model_is_named_with_the_known_ones() -> None:
    for reply in (error(404, "no"), error(400, "Model Not Exist")):
        with FakeServer(script(reply), models=["qwen3:8b", "llama"]) as server:
            generator = EndpointGenerator(f"{server.url}#qwen9", **QUICK)
            with pytest.raises(DanluError, match="has no model 'qwen9'") as caught:
                list(generator.generate(ONE, Sampling()))
        assert caught.value.hint == "it serves: qwen3:8b, llama"


# ---- the first look


def test_the_model_of_a_server_that_has_one_or_many() -> None:
    with FakeServer(script(chat()), models=["Qwen/Qwen3-8B"]) as server:
        assert EndpointGenerator(f"http://{server.host}").endpoint.model == "Qwen/Qwen3-8B"
        assert EndpointGenerator(f"{server.url}/chat/completions").endpoint.model == "Qwen/Qwen3-8B"
    with FakeServer(script(chat()), models=["a", "b"]) as server:
        with pytest.raises(DanluError, match="serves 2 models: a, b") as caught:
            EndpointGenerator(server.url)
        assert caught.value.hint == f"name one: {server.url}#a"
        assert EndpointGenerator(f"{server.url}#b").name == f"{server.host}/b"


@pytest.mark.parametrize("listed", [Reply(status=404), Reply("<html>", 200), Reply({"data": []}), Reply({"data": [1]})])
def test_a_server_that_lists_nothing_needs_a_name(listed: Reply) -> None:
    with FakeServer(script(chat("B")), models=listed) as server:
        with pytest.raises(DanluError, match="does not list its models") as caught:
            EndpointGenerator(server.url)
        assert f"{server.url}#MODEL" in caught.value.hint
        ((_, (one,)),) = EndpointGenerator(f"{server.url}#m", **QUICK).generate(ONE, Sampling())
    assert one.answer == "B"


def test_a_server_that_still_loads_is_waited_for() -> None:
    class Loading(FakeServer):
        looks = 0

        def _reply(self, asked: Asked) -> Reply:
            if asked.body is None:
                self.looks += 1
                if self.looks < 3:
                    return error(503, "Loading model")
            return super()._reply(asked)

    with Loading(script(chat())) as server:
        assert EndpointGenerator(server.url, **QUICK).endpoint.model == "tiny"
    with FakeServer(script(chat()), models=error(401, "who are you")) as server, pytest.raises(DanluError, match="key"):
        EndpointGenerator(f"{server.url}#m", **QUICK)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("http://h:1/v1", ("http", "h:1", 1, "/v1", "")),
        ("http://h:1", ("http", "h:1", 1, "/v1", "")),
        ("https://h/", ("https", "h", None, "/v1", "")),
        ("https://h/api/paas/v4#glm-4.6", ("https", "h", None, "/api/paas/v4", "glm-4.6")),
        ("http://[::1]:8/v1#a/b", ("http", "[::1]:8", 8, "/v1", "a/b")),
        ("http://h/v1/chat/completions", ("http", "h", None, "/v1", "")),
    ],
)
def test_addresses(target: str, found: tuple[Any, ...]) -> None:
    assert address(target) == found


@pytest.mark.parametrize("target", ["http://me:pa55word@h/v1", "http://h/v1?key=pa55word", "http://h:x/v1", "ftp://h"])
def test_addresses_that_are_none(target: str) -> None:
    with pytest.raises(DanluError) as caught:
        address(target)
    assert "pa55word" not in str(caught.value)


# ---- at once


def test_no_more_at_once_than_allowed_and_results_as_they_finish() -> None:
    def answer(asked: Asked, _: int) -> Reply:
        slow = asked.body["messages"][0]["content"] == "q0"
        reply = chat(asked.body["messages"][0]["content"])
        reply.delay = 0.3 if slow else 0.01
        return reply

    with FakeServer(answer) as server:
        generator = EndpointGenerator(server.url, concurrency=3, **QUICK)
        found = [(index, one.answer) for index, (one,) in generator.generate(many(12), Sampling())]
    assert sorted(found) == sorted((i, f"q{i}") for i in range(12))
    assert found[-1][0] == 0
    assert server.most_at_once == 3
    assert server.connections <= 5  # kept, not opened anew for each request


def test_leaving_early_does_not_wait_for_what_runs() -> None:
    def answer(asked: Asked, _: int) -> Reply:
        reply = chat("B")
        reply.delay = 0.0 if asked.body["messages"][0]["content"] == "q0" else 3.0
        return reply

    with FakeServer(answer) as server:
        generator = EndpointGenerator(server.url, concurrency=4, **QUICK)
        running = generator.generate(many(8), Sampling())
        assert next(running)[0] == 0
        start = time.monotonic()
        running.close()  # type: ignore[attr-defined]
        assert time.monotonic() - start < 1.5
        ((_, (one,)),) = generator.generate(many(1), Sampling())  # still usable
    assert one.answer == "B"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_a_trickling_answer_ends_at_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            for _ in range(2):
                client, _ = listening.accept()
                client.recv(65536)
                try:
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                    for _ in range(100):
                        client.sendall(b" ")
                        time.sleep(0.02)
                except OSError:
                    client.close()

        threading.Thread(target=trickle, daemon=True).start()
        host = f"http://127.0.0.1:{listening.getsockname()[1]}/v1#m"
        start = time.monotonic()
        endpoint = Endpoint(host, timeout=0.2, retries=0)  # the first look runs into the same
        with pytest.raises(Unanswered, match=r"no answer within 0.2 s"):
            endpoint.chat({"messages": []})
        assert time.monotonic() - start < 1.5


def test_a_kept_connection_that_the_server_dropped_is_opened_again() -> None:
    with FakeServer(script(chat("B"))) as server:
        generator = EndpointGenerator(server.url, retries=0, **QUICK)
        list(generator.generate(ONE, Sampling()))
        for connection in generator.endpoint._idle:
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)
        ((_, (one,)),) = generator.generate(ONE, Sampling())
    assert one.answer == "B"


def test_usage() -> None:
    with FakeServer(script(error(500, "x"), chat("B", tokens=4), chat("C", tokens=6))) as server:
        generator = EndpointGenerator(server.url, concurrency=1, **QUICK)
        list(generator.generate(many(2), Sampling()))
    used = generator.usage()
    assert {name: used[name] for name in used if name != "seconds"} == {
        "requests": 4,  # with the look at /v1/models
        "retries": 1,
        "failed": 0,
        "prompt_tokens": 10,
        "completion_tokens": 10,
    }
    assert used["seconds"] > 0


# ---- streams


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def streamed(events: list[Any], **settings: Any) -> list[tuple[str, str]]:
    with FakeServer(script(Reply(events=events))) as server:
        generator = EndpointGenerator(server.url, **QUICK | settings)
        found = list(generator.chat_stream(ONE[0], Sampling(max_tokens=5)))
        assert server.bodies[0]["stream"] is True
    return found


def test_stream_of_fields() -> None:
    events = [
        ": keep-alive\n\n",
        delta(role="assistant", content=None),
        delta(reasoning_content="w"),
        delta(reasoning="hy"),
        {"choices": [], "usage": {}},
        delta(content="答"),
        delta(content="B"),
        delta("stop"),
        "data:[DONE]\n\n",
        "data: never read\n\n",
    ]
    assert streamed(events) == [("reasoning", "w"), ("reasoning", "hy"), ("answer", "答"), ("answer", "B")]


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "inside", "reasoning", "answer"),
    [
        ("<think>\na<b</think>\n\nB </thi", False, "\na<b", "B </thi"),
        ("\n<think>a", False, "a", ""),
        ("a</think>B", True, "a", "B"),
        ("plain <think>text", False, "", "plain <think>text"),
        ("<thin ice", False, "", "<thin ice"),
        ("<think>a</thin", False, "a</thin", ""),
    ],
)
def test_stream_of_tags(cut: int, text: str, inside: bool, reasoning: str, answer: str) -> None:
    deltas = [("", text[i : i + cut]) for i in range(0, len(text), cut)]
    pieces = list(tagged(deltas, inside, "<think>", "</think>"))
    assert "".join(piece for kind, piece in pieces if kind == "reasoning") == reasoning
    assert "".join(piece for kind, piece in pieces if kind == "answer") == answer


def test_stream_learns_that_the_template_opens_the_block() -> None:
    events = [delta(content="why</think>"), delta("stop", content="B"), "data: [DONE]\n\n"]
    with FakeServer(script(Reply(events=events))) as server:
        generator = EndpointGenerator(server.url, **QUICK)
        list(generator.chat_stream(ONE[0]))
        assert generator.think is OPENED
        assert list(generator.chat_stream(ONE[0])) == [("reasoning", "why"), ("answer", "B")]


def test_stream_of_a_server_that_does_not_stream() -> None:
    with FakeServer(script(chat("B", reasoning_content="why"))) as server:
        generator = EndpointGenerator(server.url, **QUICK)
        assert list(generator.chat_stream(ONE[0])) == [("reasoning", "why"), ("answer", "B")]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([delta(content="B")], "the stream ended before the answer did"),
        ([delta(content="B"), "data: {half\n\n"], "not JSON"),
        ([delta(content="B"), {"error": {"message": "out of memory"}}], "out of memory"),
    ],
)
def test_streams_that_break_off(events: list[Any], message: str) -> None:
    with pytest.raises(DanluError, match=message):
        streamed(events)


def test_a_stream_is_tried_again_before_it_starts_and_ends_when_left() -> None:
    endless = (delta(content=f"{i} ") for i in range(10**9))
    with FakeServer(script(error(503, "busy"), Reply(events=endless))) as server:
        generator = EndpointGenerator(server.url, **QUICK)
        pieces = generator.chat_stream(ONE[0])
        assert [next(pieces) for _ in range(2)] == [("answer", "0 "), ("answer", "1 ")]
        pieces.close()  # type: ignore[attr-defined]
    with FakeServer(script(error(400, "too long"))) as server, pytest.raises(DanluError, match="too long"):
        list(EndpointGenerator(server.url, **QUICK).chat_stream(ONE[0]))


# ---- the key


def test_the_key_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer(script(chat())) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "other-key-1234")
        ask(server)
        monkeypatch.setenv("DANLU_API_KEY", f"{KEY}\n")
        ask(server)
        monkeypatch.setenv("DANLU_API_KEY", "")
        ask(server)
    sent = [one.headers.get("authorization") for one in server.asked if one.body]
    assert sent == ["Bearer other-key-1234", f"Bearer {KEY}", None]


def told(generator: EndpointGenerator) -> str:
    """Everything that a caller sees of one question."""
    try:
        return repr(list(generator.generate(ONE, Sampling())))
    except DanluError as error:
        return f"{error} {error!r} {error.__cause__!r} {error.__context__!r}"


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_the_key_is_nowhere_even_if_the_server_echoes_it(
    status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DANLU_API_KEY", KEY)
    with caplog.at_level(logging.DEBUG), FakeServer(script(error(status, f"Incorrect API key: {KEY}"))) as server:
        generator = EndpointGenerator(server.url, retries=0, **QUICK)
        seen = told(generator)
    assert server.asked[1].headers["authorization"] == f"Bearer {KEY}"
    kept = f"{vars(generator)} {vars(generator.endpoint)} {generator!r} {generator.endpoint!r}"
    written = capsys.readouterr()
    assert KEY not in seen + kept + written.out + written.err + caplog.text
    assert "***" in seen + written.err


def test_the_key_is_not_in_what_a_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_API_KEY", KEY)
    events = [delta("stop", content=f"it is {KEY}")]
    with FakeServer(script(chat(f"it is {KEY}"), Reply(events=events))) as server:
        generator = EndpointGenerator(server.url, **QUICK)
        ((_, (one,)),) = generator.generate(ONE, Sampling())
        assert one.text == "it is ***"
        assert list(generator.chat_stream(ONE[0])) == [("answer", "it is ***")]


def test_a_key_that_is_no_header_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_API_KEY", "sk-secret\r\nX-Evil: 1")
    with FakeServer(script(chat())) as server, pytest.raises(DanluError, match="DANLU_API_KEY holds") as caught:
        EndpointGenerator(server.url, **QUICK)
    assert "sk-secret" not in str(caught.value)


# ---- a proxy


def test_a_proxy_of_the_environment_is_used_but_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeServer(script(chat("B"))) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with FakeServer(script(chat("direct"))) as server:
            assert ask(server)[0].answer == "direct"
        ((_, (one,)),) = EndpointGenerator("http://models.example/v1", **QUICK).generate(ONE, Sampling())
        assert one.answer == "B"
        assert proxy.asked[-1].path == "http://models.example/v1/chat/completions"
        assert proxy.asked[-1].headers["host"] == "models.example"
        monkeypatch.setenv("http_proxy", f"socks5://{proxy.host}")
        with pytest.raises(DanluError, match="socks5 proxy is not supported"):
            EndpointGenerator("http://models.example/v1", **QUICK)


# ---- a real server


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = write_gguf(trained(), tmp_path_factory.mktemp("served") / "tiny.gguf", "f32")
    with GgufGenerator(path, context=256) as served:
        yield served


def test_llama_cpp_answers_as_in_process(llama: GgufGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_API_KEY", llama._key)
    prompts = [[{"role": "user", "content": question}] for question, _, _ in CHATS]
    sampling = Sampling(max_tokens=64)
    with EndpointGenerator(f"http://{llama._address}") as generator:
        assert generator.endpoint.model == "tiny"
        assert generator.endpoint.extra == {"samplers": ["temperature", "top_p"]}
        found = dict(generator.generate(prompts, sampling))
        for index, (_, reasoning, answer) in enumerate(CHATS):
            (one,) = found[index]
            assert (one.reasoning, one.answer, one.finish, one.well_formed) == (reasoning, answer, "stop", True)
            assert one.text == llama.think.join(reasoning, answer)
            assert len(one.tokens) > 3
        assert generator.think is THINK
        ((_, (cut,)),) = generator.generate(prompts[1:2], Sampling(max_tokens=4))
        assert (cut.finish, cut.answer, cut.well_formed, len(cut.tokens)) == ("length", "", False, 4)
        assert list(generator.chat_stream(prompts[0], sampling)) == list(llama.chat_stream(prompts[0], sampling))
        ((_, (long,)),) = generator.generate([[{"role": "user", "content": "word " * 700}]], sampling)
        assert long.finish == "error"
        drawn = Sampling(max_tokens=12, temperature=3.0, samples=4, seed=5)
        first, second = ([one.text for one in next(generator.generate(prompts[:1], drawn))[1]] for _ in range(2))
        assert first == second
        assert len(set(first)) > 1
        only = Sampling(max_tokens=64, temperature=3.0, top_k=1)
        assert next(generator.generate(prompts[:1], only))[1][0].text == found[0][0].text


def test_llama_cpp_refuses_a_stranger(llama: GgufGenerator) -> None:
    with pytest.raises(DanluError, match=r"refuses the key \(HTTP 401") as caught:
        EndpointGenerator(f"http://{llama._address}", **QUICK)
    assert "export a key as DANLU_API_KEY" in caught.value.hint
