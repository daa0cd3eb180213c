"""`danlu chat`: a conversation through a real terminal, commands, Ctrl-C, two models side by side, pipes, servers."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from danlu.cli import main
from danlu.cli.answer import Answer, answer, coloured
from danlu.cli.chat import COMMANDS, Talk, _command
from danlu.errors import DanluError
from danlu.export.gguf import write_gguf
from danlu.generate import Sampling, Streamed
from danlu.generate.gguf import GgufGenerator
from danlu.think import ThinkFormat
from tiny_models import CHATS, trained

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A danlu command on a pseudo-terminal of 100 columns; `until` reads until a text has come."""

    def __init__(self, *args: str, **environment: str) -> None:
        self.screen, self.seen = "", 0
        inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        given = {"TERM": "xterm", "COLUMNS": "100", "LINES": "40", "OMP_NUM_THREADS": "1", **environment}
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:  # the child
            os.execvpe(sys.executable, [sys.executable, "-m", "danlu", *args], inherited | given)

    def until(self, text: str, seconds: float = 60) -> str:
        """What came since the last call, up to and with `text`."""
        end = time.monotonic() + seconds
        while (at := self.screen.find(text, self.seen)) < 0:
            left = end - time.monotonic()
            assert left > 0, f"no {text!r} in {self.screen[self.seen :]!r}"
            if select.select([self.terminal], [], [], left)[0]:
                self.screen += os.read(self.terminal, 65536).decode("utf-8", "replace")
        begun, self.seen = self.seen, at + len(text)
        return self.screen[begun : self.seen]

    def type(self, line: str) -> None:
        os.write(self.terminal, f"{line}\n".encode())

    def end(self) -> int:
        self.until("> ")  # Ctrl-D is nothing to a command that does not read yet
        os.write(self.terminal, b"\x04")
        return self.left()

    def left(self, seconds: float = 60) -> int:
        """The exit code of a command that ends by itself; what it still prints is read, or it would wait for that."""
        end = time.monotonic() + seconds
        while not (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            assert time.monotonic() < end, f"it does not end after {self.screen[-500:]!r}"
            with contextlib.suppress(OSError):  # a terminal without a child any more
                if select.select([self.terminal], [], [], 0.1)[0]:
                    self.screen += os.read(self.terminal, 65536).decode("utf-8", "replace")
        return os.waitstatus_to_exitcode(ended[1])


def test_a_conversation_in_a_terminal(tmp_path: Path) -> None:
    question, reasoning, reply = CHATS[0]
    here = Terminal("chat", str(trained()), "--temperature", "0", "--seed", "1")
    here.until("/help lists commands")
    here.until("> ")
    here.type(question)
    told = here.until("tokens/s")
    assert f"\x1b[2m{reasoning}\x1b[0m\r\n\r\n{reply}\r\n" in told  # dimmed, then the answer
    assert re.search(r"\d+ tokens, [\d,.]+ tokens/s", told)
    assert re.search(r", first after \d+\.\d\d s, \d+ MB", here.until("> "))
    here.type("/thing")
    assert "there is no command /thing" in here.until("hint:")
    assert "did you mean /think?" in here.until("> ")
    here.type(f"/save {tmp_path / 'talk.jsonl'}")
    here.until("saved in")
    row = json.loads((tmp_path / "talk.jsonl").read_text("utf-8"))
    assert row["messages"] == [
        {"role": "user", "content": question},
        {"role": "assistant", "content": reply, "reasoning_content": reasoning},
    ]
    here.type(f"/save {tmp_path / 'talk.jsonl'}")
    here.until("talk.jsonl exists")
    here.type("/system Be brief.")
    here.until("system: Be brief.")
    here.type("/think off")
    here.until("reasoning is off")
    here.type("/reset")
    here.until("forgotten")
    here.type(CHATS[1][0])
    assert "\x1b[2mtwo" not in here.until("tokens/s")  # whatever it writes now is an answer
    here.until("> ")
    here.type("/help")
    assert all(command in here.until(command) for command in COMMANDS)
    assert here.end() == 0


@pytest.fixture
def slow() -> Iterator[tuple[str, list[dict[str, Any]], Event]]:
    """(address, requests, set when a client left) of a server that streams a word every 20 ms, without an end."""
    asked: list[dict[str, Any]] = []
    left = Event()

    class Slow(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            self._say(b'{"object": "list", "data": [{"id": "slow"}]}', "application/json")

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            try:
                self._say(_event("reasoning_content", "hm"), "text/event-stream")
                while True:
                    self.wfile.write(_event("content", "word "))
                    time.sleep(0.02)
            except OSError:
                left.set()

        def _say(self, data: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            if kind == "application/json":
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", asked, left
        server.shutdown()


def _event(field: str, text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {field: text}}]}).encode() + b"\n\n"


def test_ctrl_c_ends_the_answer_and_not_the_chat_with_a_server(slow: Any) -> None:
    address, asked, left = slow
    here = Terminal("chat", address, NO_COLOR="1")
    here.until("> ")
    time.sleep(0.3)  # a signal between the prompt and Python's wait for a key waits for that key
    os.write(here.terminal, b"\x03")  # at the prompt
    here.until("Ctrl-D or /quit ends")
    here.until("> ")
    here.type("go")
    assert "--- reasoning\r\nhm\r\n---\r\n" in here.until("word word word")
    assert not left.is_set()
    os.write(here.terminal, b"\x03")
    figures = here.until("> ")
    assert ", stopped" in figures
    assert " MB" not in figures  # the server's memory is not known here
    assert left.wait(20)  # it was told
    here.type("/think off")
    here.until("reasoning is off")
    here.type("again")
    here.until("word word")
    os.write(here.terminal, b"\x03")
    here.until("> ")
    here.type("/quit")
    assert here.left() == 0
    assert [turn["content"][:9] for turn in asked[1]["messages"]] == ["go", "word word", "again"]
    assert "chat_template_kwargs" not in asked[0]
    assert asked[1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert "\x1b[2m" not in here.screen


def test_before_and_after_stand_side_by_side() -> None:
    """The base on the left, the tuned one on the right, on a terminal."""
    here = Terminal("chat", str(trained()), "--compare", "tiny", "--temperature", "0", "--max-tokens", "12")
    here.until("> ")
    here.type("Name a fruit.")
    screen = CODES.sub("", here.until("MB") + here.until("MB"))
    head = next(line for line in screen.splitlines()[::-1] if trained().name in line)
    assert head.index("tiny") < head.index(trained().name)
    assert any("Apple." in line[len(line) // 2 :] or line.strip().endswith("Apple.") for line in screen.splitlines())
    assert here.end() == 0


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(trained(), tmp_path_factory.mktemp("gguf") / "small.gguf", "f32")


def test_one_question_as_json_of_two_models(gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question, reasoning, reply = CHATS[2]
    args = ["chat", str(gguf), "--compare", str(trained()), "--json", "--once", question, "--temperature", "0"]
    assert main(args) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["question"] == question
    for one in told["answers"]:
        assert (one["reasoning"], one["answer"], one["finish"]) == (reasoning, reply, "stop")
        assert one["tokens_per_second"] > 0
        assert one["memory_bytes"] > 50e6
    before, after = told["answers"]
    assert (before["model"], after["model"]) == (trained().name, "small")
    assert before["tokens"] == after["tokens"] > 8  # both count without the end token
    assert main([*args, "--max-tokens", "4"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["finish"], one["tokens"]) for one in told["answers"]] == [("length", 4)] * 2
    assert main([*args[:4], "--once", question, "--temperature", "0", "--no-think"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"== {trained().name}\n")
    assert "\n== small\n" in out
    assert reasoning not in out


@pytest.mark.parametrize(
    ("args", "what", "hint"),
    [
        (["--json"], "--json is for one question", "--once"),
        (["--once", " "], "the question is empty", "--once"),
        (["--once", "a", "--compare", "no.gguf"], "no.gguf does not exist", "danlu export"),
    ],
)
def test_what_it_refuses(
    args: list[str], what: str, hint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert main(["chat", "tiny", *args]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert hint in error.splitlines()[1]


class Written:
    """A generator that writes given pieces; an exception among them is raised there."""

    def __init__(self, *pieces: Any, think: ThinkFormat | None = None) -> None:
        self.name, self.pieces, self.streamed = "written", pieces, Streamed(3)
        self.think, self.thinking, self.chats = think or ThinkFormat("none"), True, []

    def chat_stream(self, messages: Any, _sampling: Any) -> Iterator[Any]:
        self.chats.append(messages)
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece


def test_what_becomes_a_turn() -> None:
    whole = Written(("reasoning", "r"), ("answer", "a"))
    talk = Talk([whole], "sys", Sampling())
    talk.ask("q", silent=True)
    talk.ask("p", silent=True)
    assert [dict(turn) for turn in whole.chats[1]] == [  # without its reasoning
        {"role": "system", "content": "sys"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "p"},
    ]
    for pieces, kept in (
        ([("answer", "half"), KeyboardInterrupt()], 2),  # as far as it came
        ([("reasoning", "r"), KeyboardInterrupt()], 0),  # the question goes too
    ):
        talk = Talk([Written(*pieces)], None, Sampling())
        assert talk.ask("q", silent=True)[0].finish == "stopped"
        assert len(talk.turns[0]) == kept
    talk = Talk([Written(DanluError("no"))], None, Sampling())
    with pytest.raises(DanluError, match="no"):
        talk.ask("q")
    assert talk.turns == [[]]


def test_commands_that_cannot_be_carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    talk = Talk([Written()], "old", Sampling())
    for line, what in (
        ("/think", "takes on or off"),
        ("/think loud", "not 'loud'"),
        ("/think off", "has no switch"),
        ("/save", "nothing to save"),
        ("/nothing", "no command /nothing"),
    ):
        with pytest.raises(DanluError, match=what):
            _command(talk, line)
    _command(talk, "/system -")
    assert talk.system is None
    talk.ask("q", silent=True)
    talk.turns[0] += [{"role": "user", "content": "q"}]
    with pytest.raises(DanluError, match="cannot write"):
        _command(talk, "/save nowhere/x.jsonl")
    _command(talk, "/save")
    assert len(list(tmp_path.glob("chat-*.jsonl"))) == 1
    assert list(tmp_path.iterdir()) == list(tmp_path.glob("chat-*.jsonl"))


def test_figures_say_what_they_are() -> None:
    one = Answer("m", "", "a", "length", 11, 3.0, 1.0, 5_000_000)
    assert one.rate == pytest.approx(5.0)
    assert one.figures() == "11 tokens, 5.0 tokens/s, first after 1.00 s, 5 MB, cut: --max-tokens allows more"
    assert Answer("m", "", "", "stop", 0, 1.0, 1.0, 0).figures() == "0 tokens, 0.0 tokens/s, first after 1.00 s"


def test_a_gguf_whose_answer_was_left_answers_again(gguf: Path) -> None:
    """Ctrl-C in the middle: the next answer is whole, and the end of the chat does not wait."""

    def leave(_kind: str, _text: str) -> None:
        raise KeyboardInterrupt

    with GgufGenerator(gguf, context=512) as opened:
        chat = [{"role": "user", "content": CHATS[0][0]}]
        assert answer(opened, chat, Sampling(max_tokens=400), leave).finish == "stopped"
        assert answer(opened, chat, Sampling(max_tokens=64), lambda *_: None).text == CHATS[0][2]


def test_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert coloured(Screen())
    monkeypatch.setenv("TERM", "dumb")
    assert not coloured(Screen())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured(Screen())
