"""`danlu serve` as processes: OpenAI's client, keys, ports, load, signals, engines that end; with each engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from danlu.cli import main
from danlu.export.gguf import write_gguf
from danlu.models.load import load, save_artifact
from danlu.recipe import Lora, Model, Recipe
from tiny_models import CHATS, adapter, build, trained

ROOT = Path(__file__).parents[2]
openai: Any = pytest.importorskip("openai")


class Served:
    """A `danlu serve` process; `url` once it answers."""

    def __init__(self, *args: str, path: str = "", **environment: str) -> None:
        given = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}"} | environment
        given["PATH"] = f"{path}:{given['PATH']}" if path else given["PATH"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "danlu", "serve", *args, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=given,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """(exit code, stderr) after a signal."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors

    def engine(self) -> psutil.Process:
        return psutil.Process(self.process.pid).children()[0]

    def memory(self) -> int:
        """Bytes of both processes."""
        return sum(one.memory_info().rss for one in (psutil.Process(self.process.pid), self.engine()))


@contextlib.contextmanager
def serving(*args: str, **named: str) -> Iterator[Served]:
    served = Served(*args, **named)
    try:
        assert served.url, served.ended()[1]
        yield served
    except BaseException:  # what it said belongs to the failure
        if served.process.poll() is None:
            served.process.terminate()
        with contextlib.suppress(ValueError, subprocess.TimeoutExpired):
            print("exit code and stderr:", served.ended())
        raise
    finally:
        if served.process.poll() is None:
            served.process.terminate()  # it removes its temporary folder
        with contextlib.suppress(subprocess.TimeoutExpired):
            served.process.wait(30)
        served.process.kill()
        served.process.wait()
        for pipe in (served.process.stdout, served.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(str(trained()), "--engine", "llama.cpp", "--name", "small") as found:
        yield found


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a file: it is served within a second."""
    return write_gguf(trained(), tmp_path_factory.mktemp("gguf") / "small.gguf", "f32")


def client(url: str, key: str = "none") -> Any:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120)


def asked(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_openais_client_is_answered(served: Served) -> None:
    assert served.url.startswith("http://127.0.0.1:")
    here = client(served.url)
    assert [one.id for one in here.models.list()] == ["small"]
    for question, reasoning, reply in CHATS:
        told = here.chat.completions.create(model="small", messages=asked(question), temperature=0, max_tokens=64)
        message = told.choices[0].message
        assert (message.reasoning_content.strip(), message.content.strip()) == (reasoning, reply)
        assert told.choices[0].finish_reason == "stop"


def test_an_answer_is_streamed_with_its_reasoning_apart(served: Served) -> None:
    question, reasoning, reply = CHATS[0]
    stream = client(served.url).chat.completions.create(
        model="small", messages=asked(question), temperature=0, max_tokens=64, stream=True
    )
    pieces = [one.choices[0].delta for one in stream if one.choices]
    assert "".join(getattr(one, "reasoning_content", None) or "" for one in pieces).strip() == reasoning
    assert "".join(one.content or "" for one in pieces).strip() == reply
    assert len(pieces) > 5


def test_danlu_talks_to_it(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    question, reasoning, reply = CHATS[1]
    assert main(["chat", served.url, "--once", question, "--json", "--temperature", "0"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["answers"]
    assert (told["reasoning"].strip(), told["answer"]) == (reasoning, reply)


def test_other_web_pages_may_not_read_it(served: Served) -> None:
    request = urllib.request.Request(f"{served.url}/models", headers={"Origin": "http://elsewhere"})
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.headers.get("Access-Control-Allow-Origin", "") not in ("*", "http://elsewhere")


def load_of(served: Served, clients: int, seconds: float) -> tuple[int, list[str], list[int]]:
    """(answers, failures, bytes held twice a second) while so many clients ask one question after the other."""
    held: list[int] = []

    async def go() -> tuple[int, list[str]]:
        here = openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=120)
        end, answers = time.monotonic() + seconds, 0
        failures: list[str] = []

        async def ask(number: int) -> None:
            nonlocal answers
            while time.monotonic() < end:
                question, _, reply = CHATS[number % len(CHATS)]
                try:
                    told = await here.chat.completions.create(
                        model="small", messages=asked(question), temperature=0, max_tokens=64
                    )
                except openai.OpenAIError as error:
                    failures.append(f"{type(error).__name__}: {error}")
                    continue
                said = told.choices[0].message.content.strip()
                answers += said == reply
                failures.extend([] if said == reply else [said])

        async def watch() -> None:
            while time.monotonic() < end:
                held.append(served.memory())
                await asyncio.sleep(0.5)

        await asyncio.gather(watch(), *(ask(number) for number in range(clients)))
        await here.close()
        return answers, failures

    answers, failures = asyncio.run(go())
    return answers, failures, held


def test_eight_clients_at_once_lose_nothing(served: Served) -> None:
    answers, failures, _ = load_of(served, 8, 2.0)
    assert failures == []
    assert answers >= 16


@pytest.mark.slow
def test_sixty_four_clients_for_a_minute_lose_nothing_and_memory_is_flat(served: Served) -> None:
    answers, failures, held = load_of(served, 64, 60.0)
    third = len(held) // 3
    print(f"{answers} answers, {len(failures)} lost, {held[third] / 1e6:.0f} -> {held[-1] / 1e6:.0f} MB")
    assert failures == []
    assert answers > 500
    assert max(held[-third:]) < max(held[:third]) + 20e6


def test_a_key_comes_from_the_environment_and_stands_in_no_command(gguf: Path) -> None:
    with serving(str(gguf), "--api-key", DANLU_API_KEY="open-sesame-42") as served:
        for wrong in ("none", "open-sesame-4"):
            with pytest.raises(openai.AuthenticationError):
                client(served.url, wrong).chat.completions.create(model="m", messages=asked("a"), max_tokens=4)
        told = client(served.url, "open-sesame-42").chat.completions.create(
            model="m", messages=asked(CHATS[3][0]), temperature=0, max_tokens=64
        )
        assert told.choices[0].message.content == CHATS[3][2]
        commands = [psutil.Process(served.process.pid).cmdline(), served.engine().cmdline()]
        assert not any("sesame" in part for command in commands for part in command)
        code, errors = served.end()
        assert code == 0
        assert "sesame" not in errors
        assert "$DANLU_API_KEY" in errors  # the example names the variable


def long_answer(url: str, begun: threading.Semaphore, found: list[str]) -> None:
    """Ask for more than a second of writing; what came is appended to `found`."""
    body = {"messages": asked("go on"), "max_tokens": 1500, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    said = ""
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            for line in response:
                said += line.decode()
                if line.startswith(b"data: ") and len(said) < 2000:
                    begun.release()
    except OSError as error:
        said += f"lost: {error}"
    found.append(said)


def asking(url: str, count: int) -> tuple[list[threading.Thread], list[str]]:
    """Long answers that are being written; returned once the first one has begun and all were asked."""
    begun, found = threading.Semaphore(0), []
    threads = [threading.Thread(target=long_answer, args=(url, begun, found)) for _ in range(count)]
    for thread in threads:
        thread.start()
    assert begun.acquire(timeout=60)
    time.sleep(0.3)
    return threads, found


def test_sigterm_lets_running_answers_finish_and_nobody_in(gguf: Path) -> None:
    with serving(str(gguf), "--parallel", "2") as served:
        kept = client(served.url)  # with a connection of before
        kept.models.list()
        threads, found = asking(served.url, 6)  # two are written, four wait: all were let in
        served.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        refused = False
        while not refused and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1].split("/")[0])), 5).close()
                time.sleep(0.02)  # without a rest this would use up what the server may open
                continue
            refused = True
        assert refused
        assert served.process.poll() is None  # it still writes
        with pytest.raises(openai.APIConnectionError):
            kept.chat.completions.create(model="m", messages=asked("a"), max_tokens=4)
        for thread in threads:
            thread.join(120)
        code, errors = served.ended()
        assert code == 0
        assert "finishing 6 answers" in errors
        assert [one.rstrip().endswith("data: [DONE]") for one in found] == [True] * 6


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_second_signal_ends_at_once(gguf: Path, number: int, code: int) -> None:
    with serving(str(gguf), "--parallel", "1") as served:
        engine = served.engine()
        threads, found = asking(served.url, 8)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert served.end(number)[0] == code
        for thread in threads:
            thread.join(60)
        assert not all("[DONE]" in one for one in found)
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


def test_ctrl_c_while_nobody_asks_ends_cleanly(gguf: Path) -> None:
    with serving(str(gguf)) as served:
        code, errors = served.end(signal.SIGINT)
    assert code == 0
    assert "error" not in errors


def test_an_engine_that_dies_is_told(gguf: Path) -> None:
    with serving(str(gguf)) as served:
        served.engine().kill()
        code, errors = served.ended()
    assert code == 2
    assert "llama.cpp ended with exit code -9" in errors


def test_nothing_is_left_when_the_process_is_killed(gguf: Path, tmp_path: Path) -> None:
    with serving(str(gguf), TMPDIR=str(tmp_path)) as served:
        engine = served.engine()
        served.process.kill()
        psutil.wait_procs([engine], timeout=30)
        assert not engine.is_running()
        served.process.wait()
    (left,) = tmp_path.glob("danlu-serve-*")
    with serving(str(gguf), TMPDIR=str(tmp_path)) as served:
        assert not left.exists()  # the next one cleans up, but not after one that is at work
        with serving(str(gguf), TMPDIR=str(tmp_path)):
            assert len(list(tmp_path.glob("danlu-serve-*"))) == 2
        assert served.end()[0] == 0
    assert list(tmp_path.glob("danlu-serve-*")) == []


def test_a_port_that_is_taken_and_other_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = [
            ([str(trained()), "--port", str(port)], f"cannot serve at 127.0.0.1:{port}", "--port 0"),
            ([str(trained()), "--api-key-env", "NOT_SET"], "needs the key in NOT_SET", "export NOT_SET="),
            (["http://127.0.0.1:1/v1"], "is served already", "danlu chat"),
            ([str(tmp_path / "no.gguf"), "--port", "0"], "does not exist", "danlu export"),
        ]
        for args, what, hint in cases:
            assert main(["serve", *args]) == 2
            error = capsys.readouterr().err.splitlines()
            assert what in error[-2]
            assert hint in error[-1]


def test_an_open_door_without_a_key_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path / "no.gguf"), "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "warning: anyone who reaches 0.0.0.0 may ask" in capsys.readouterr().err


@pytest.fixture(scope="module")
def with_vllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH with an executable `vllm`."""
    folder = tmp_path_factory.mktemp("bin")
    script = Path(__file__).with_name("vllm_serve.py")
    (folder / "vllm").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    (folder / "vllm").chmod(0o755)
    return folder


@pytest.mark.slow
def test_vllm_serves_the_adapter_beside_its_base(with_vllm: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    (tuned / "artifact").mkdir(parents=True)
    recipe = Recipe(name="x", model=Model(id=str(trained()), dtype="fp32"))
    save_artifact(load(recipe.model, lora=Lora(r=4), train=True), tuned / "artifact")
    adapter(trained(), tmp_path / "peft", r=4, lora_alpha=64)
    for name in ("adapter_config.json", "adapter_model.safetensors"):  # weights that change what it says
        shutil.copy(tmp_path / "peft" / name, tuned / "artifact" / name)
    record = str(tmp_path / "asked.json")
    named = {"path": str(with_vllm), "DANLU_API_KEY": "open-sesame-42", "VLLM_STAND_IN_RECORD": record}
    with serving(str(tuned / "artifact"), "--name", "tuned", "--api-key", **named) as served:
        here = client(served.url, "open-sesame-42")
        assert [one.id for one in here.models.list()] == [trained().name, "tuned"]

        def say(model: str) -> tuple[str | None, str]:
            told = here.chat.completions.create(model=model, messages=asked(CHATS[0][0]), max_tokens=48)
            return told.choices[0].message.reasoning_content, told.choices[0].message.content.strip()

        assert say(trained().name) == CHATS[0][1:]
        assert say("tuned") != CHATS[0][1:]
        with pytest.raises(openai.AuthenticationError):
            client(served.url).models.list()
        stream = here.chat.completions.create(
            model=trained().name, messages=asked(CHATS[0][0]), max_tokens=48, stream=True
        )
        assert "".join(one.choices[0].delta.content or "" for one in stream).strip() == CHATS[0][2]
        code, errors = served.end()
    assert code == 0
    assert "with vllm" in errors
    given = json.loads(Path(record).read_text("utf-8"))
    assert given["enable_lora"]
    assert given["reasoning_parser"] == "qwen3"


def test_a_vllm_that_does_not_start_is_told(tmp_path: Path) -> None:
    (tmp_path / "vllm").write_text("#!/bin/sh\necho 'no CUDA device is free' >&2\nexit 3\n")
    (tmp_path / "vllm").chmod(0o755)
    served = Served(str(trained()), path=str(tmp_path))
    assert served.url == ""
    code, errors = served.ended()
    assert code == 2
    assert "vllm ended with exit code 3: no CUDA device is free" in errors


@pytest.mark.slow
def test_transformers_serves_what_has_no_gguf() -> None:
    pytest.importorskip("fastapi")
    question, reasoning, reply = CHATS[0]
    with serving(str(trained()), "--engine", "transformers", "--name", "small") as served:
        here = client(served.url)
        assert [one.id for one in here.models.list()] == ["small"]
        told = here.chat.completions.create(model="small", messages=asked(question), temperature=0, max_tokens=64)
        said = told.choices[0].message.content
        assert reply in said
        assert reasoning in said or reasoning in (told.choices[0].message.reasoning_content or "")
        stream = here.chat.completions.create(model="small", messages=asked(question), max_tokens=64, stream=True)
        assert reply in "".join(one.choices[0].delta.content or "" for one in stream if one.choices)
        assert served.end()[0] == 0


@pytest.mark.slow
def test_the_tuned_run_of_another_architecture_is_merged_for_transformers(tmp_path: Path) -> None:
    build(tmp_path / "base")
    adapter(tmp_path / "base", tmp_path / "tuned")
    with serving(str(tmp_path / "tuned"), "--engine", "transformers") as served:
        assert [one.id for one in client(served.url).models.list()] == ["tuned"]
        told = client(served.url).chat.completions.create(model="tuned", messages=asked("a"), max_tokens=4)
        assert told.choices[0].message.content is not None


def test_a_wrong_path_is_answered_by_the_engine(served: Served) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{served.url}/nothing", timeout=60)
    assert caught.value.code == 404
