"""A GGUF file as a Generator: llama.cpp's own server inside this process, asked over 127.0.0.1.

Method: xllamacpp starts the server on a free port with a random key; prompts go to its chat endpoint, which renders
the GGUF's Jinja template and splits reasoning from answer. Rows are asked at once from several threads and share the
server's slots. Departure from llama.cpp's defaults: only what Sampling asks for filters, in transformers' order:
repetition penalty (over the whole context), temperature, top-k, top-p, min-p.
Not covered: GPU layers beyond llama.cpp's choice, log-probs of sampled completions (`Completion.tokens` is empty).
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from danlu import display
from danlu import think as think_formats
from danlu.errors import DanluError
from danlu.generate import Sampling, Streamed
from danlu.records import Completion, Finish, Message
from danlu.think import ThinkFormat

SMALL = 64 << 20  # bytes of a file that one thread runs best
TIMEOUT = 3600.0  # seconds one request may take; a long answer on a CPU is slow, not broken


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """What llama.cpp wrote after token ids, with the distribution before each token.

    `top[i]` maps token id -> natural log-prob for the `n_probs` likeliest tokens at step i; empty where the server
    withheld it (a token that ends inside a UTF-8 character) and where it is therefore not certain which step is meant.
    """

    tokens: tuple[int, ...]
    top: tuple[dict[int, float], ...]
    finish: Literal["stop", "length"]


class GgufGenerator:
    """Answers chats from a GGUF file; also the raw endpoints that the parity check needs.

    `context` is the length of one slot in tokens. `exact` keeps the KV cache in fp32 without flash attention, for
    comparisons. `lora`: a GGUF adapter on top of it. `think` None: found by rendering probes through the GGUF's
    template.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        think: ThinkFormat | None = None,
        context: int = 4096,
        parallel: int = 4,
        threads: int | None = None,
        gpu_layers: int | None = None,
        exact: bool = False,
        lora: Path | None = None,
    ) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        self.parallel = parallel
        self.thinking = True  # False asks the template to switch thinking off, where it can
        self.streamed = Streamed()
        self._key = secrets.token_urlsafe(24)
        self._local = threading.local()
        self._server: Any = _start(self.path, self._key, context, parallel, threads, gpu_layers, exact, lora)
        self._address = urlsplit(self._server.listening_address).netloc
        try:
            self.properties: dict[str, Any] = self._get("/props")
            self.think = think or self._detect()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> GgufGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server; the object cannot be used afterwards."""
        self._server = None

    # ---- asking

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index, completions) of each chat as it finishes. A chat that the server refuses (too long for the
        context) gives completions with finish "error"."""
        found: dict[int, list[Completion | None]] = {i: [None] * sampling.samples for i in range(len(prompts))}
        with ThreadPoolExecutor(self.parallel) as pool:
            waiting: dict[Future[Completion], tuple[int, int]] = {}
            for index, messages in enumerate(prompts):
                for sample in range(sampling.samples):
                    seed = sampling.seed + index * sampling.samples + sample
                    waiting[pool.submit(self._answer, messages, sampling, seed)] = (index, sample)
            try:
                while waiting:
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        index, sample = waiting.pop(future)
                        found[index][sample] = future.result()
                        if all(found[index]):
                            yield index, [one for one in found.pop(index) if one]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, messages: Sequence[Message], sampling: Sampling, seed: int) -> Completion:
        try:
            return completion(self.think, *self.reply(messages, sampling, seed))
        except DanluError as error:
            display.warn(error.message)
            return Completion("", "", "", "error", False)

    def reply(
        self, messages: Sequence[Message], sampling: Sampling, seed: int | None = None
    ) -> tuple[str, str, Finish]:
        """(reasoning, content, finish) of one answer, as the server gives them."""
        choice = self._post("/v1/chat/completions", _chat_body(messages, sampling, seed, self.thinking))["choices"][0]
        message = choice["message"]
        finish: Finish = "stop" if choice["finish_reason"] == "stop" else "length"
        return message.get("reasoning_content") or "", message.get("content") or "", finish

    def chat_stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None
    ) -> Iterator[tuple[Literal["reasoning", "answer"], str]]:
        """Yield the pieces of one answer as they are written; leaving the loop early stops the server's work."""
        self.streamed = streamed = Streamed()
        sampling = sampling or Sampling()
        body = {**_chat_body(messages, sampling, sampling.seed, self.thinking), "stream": True}
        connection = self._connect()
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), self._headers())
            response = connection.getresponse()
            if response.status != 200:
                raise _refused(response.status, response.read())
            for line in response:
                data = line.decode().strip().removeprefix("data: ")
                if not line.startswith(b"data: ") or data == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise DanluError(f"llama.cpp: {event['error'].get('message', event['error'])}")
                choice = event["choices"][0] if event.get("choices") else {}
                delta = choice.get("delta") or {}
                streamed.tokens += bool(delta.get("reasoning_content") or delta.get("content"))
                if finish := choice.get("finish_reason"):  # the last event counts all tokens, the end token too
                    counted = (event.get("timings") or {}).get("predicted_n", streamed.tokens)
                    streamed.tokens = counted - (finish == "stop" and not sampling.stop)
                    streamed.cut = finish == "length"
                if delta.get("reasoning_content"):
                    yield "reasoning", delta["reasoning_content"]
                if delta.get("content"):
                    yield "answer", delta["content"]
        finally:
            connection.close()

    # ---- raw endpoints

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **template_kwargs: Any) -> str:
        """The prompt text that llama.cpp makes of `messages` with the GGUF's template (a `think.Render`)."""
        body: dict[str, Any] = {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        if template_kwargs:
            body["chat_template_kwargs"] = template_kwargs
        return self._post("/apply-template", body)["prompt"]

    def tokenize(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        """Token ids of each text; special tokens in the text are recognised."""
        body = {"parse_special": True, "add_special": add_special}
        return [self._post("/tokenize", {"content": text, **body})["tokens"] for text in texts]

    def complete_tokens(
        self, ids: Sequence[int], n: int, n_probs: int = 0, *, bias: dict[int, float] | None = None
    ) -> TokenTrace:
        """Greedy continuation of token ids by up to `n` tokens, the end token included where it stopped.

        `bias` is added to the logits of the given ids when choosing; the reported log-probs are before it.
        """
        body: dict[str, Any] = {
            "prompt": list(ids),
            "n_predict": n,
            "temperature": 0,
            "samplers": ["temperature"],
            "n_probs": n_probs,
            "cache_prompt": False,
            "return_tokens": True,
        }
        if bias:
            body["logit_bias"] = [[token, value] for token, value in bias.items()]
        reply = self._post("/completion", body)
        tokens, steps = reply["tokens"], reply.get("completion_probabilities", [])
        top: list[dict[int, float]] = [{} for _ in tokens]
        for place, step in zip(_places(tokens, [step["id"] for step in steps]), steps, strict=True):
            if place is not None:
                top[place] = {entry["id"]: entry["logprob"] for entry in step["top_logprobs"]}
        return TokenTrace(tuple(tokens), tuple(top), "stop" if reply["stop_type"] == "eos" else "length")

    # ---- transport

    def _detect(self) -> ThinkFormat:
        if not self.properties.get("chat_template"):
            raise DanluError(f"{self.path.name} has no chat template", "export it again with a tokenizer that has one")
        return think_formats.detect(_jinja(self.properties), (self.properties.get("eos_token") or "",))

    def _connect(self) -> http.client.HTTPConnection:
        if self._server is None:
            raise DanluError(f"{self.name} is closed")
        return http.client.HTTPConnection(self._address, timeout=TIMEOUT)

    def _headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}

    def _get(self, url: str) -> Any:
        return self._request("GET", url, None)

    def _post(self, url: str, body: dict[str, Any]) -> Any:
        return self._request("POST", url, json.dumps(body))

    def _request(self, method: str, url: str, body: str | None) -> Any:
        """One request over this thread's kept connection, which is opened again once if the server dropped it."""
        for attempt in (0, 1):
            connection = getattr(self._local, "connection", None)
            if connection is None or self._server is None:
                connection = self._local.connection = self._connect()
            try:
                connection.request(method, url, body, self._headers())
                response = connection.getresponse()
                data = response.read()
                break
            except (http.client.HTTPException, OSError) as error:
                connection.close()
                self._local.connection = None
                if attempt or isinstance(error, TimeoutError):
                    raise DanluError(
                        f"the llama.cpp server does not answer: {error}", "is there enough memory?"
                    ) from None
        if response.status != 200:
            raise _refused(response.status, data)
        return json.loads(data)


def _jinja(properties: dict[str, Any]) -> think_formats.Render:
    """The GGUF's template through jinja2: llama.cpp itself renders a last assistant turn as an unfinished one."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    template = environment.from_string(properties["chat_template"])
    special = {name: properties.get(name) or "" for name in ("bos_token", "eos_token")}

    def render(messages: Sequence[Message], **kwargs: Any) -> str:
        return template.render(messages=list(messages), **special, **kwargs)

    return render


def completion(think: ThinkFormat, reasoning: str, content: str, finish: Finish) -> Completion:
    """Completion from what the server split; formats that llama.cpp does not know are split here."""
    if not reasoning:
        inner, answer, well_formed = think.split(content)
        return Completion(content, inner, answer, finish, well_formed)
    reasoning = reasoning.strip("\n")  # llama.cpp leaves the newline before the closing tag
    text = f"{think.head}{reasoning}"
    if content:
        text = f"{text}{think.bridge}{content}{think.tail}"
    _, _, well_formed = think.split(text)
    return Completion(text, reasoning.strip(), content.strip(), finish, well_formed)


def _places(tokens: list[int], reported: list[int]) -> list[int | None]:
    """Where each of the `reported` ids, a subsequence of `tokens`, stands; None where more than one place is possible.

    A place is certain when fitting as early as possible and as late as possible agree on it.
    """
    early, late, at = [], [], 0
    for token in reported:
        at = tokens.index(token, at) + 1
        early.append(at - 1)
    at = len(tokens)
    for token in reversed(reported):
        at = max(i for i in range(at) if tokens[i] == token)
        late.append(at)
    return [a if a == b else None for a, b in zip(early, reversed(late), strict=True)]


def _chat_body(messages: Sequence[Message], sampling: Sampling, seed: int | None, thinking: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": list(messages),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        **samplers(sampling),
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if not thinking:
        body["chat_template_kwargs"] = {"enable_thinking": False}
    return body if seed is None else {**body, "seed": seed % (2**32 - 1)}


def samplers(sampling: Sampling) -> dict[str, Any]:
    """llama.cpp's own fields for a Sampling, and the order of its filters; what is not in the order is off."""
    fields: dict[str, Any] = {}
    order = ["temperature"]
    if sampling.repetition_penalty != 1:
        order.insert(0, "penalties")
        fields |= {"repeat_penalty": sampling.repetition_penalty, "repeat_last_n": -1}
    if sampling.top_k:
        order.append("top_k")
        fields["top_k"] = sampling.top_k
    order.append("top_p")
    if sampling.min_p:
        order.append("min_p")
        fields["min_p"] = sampling.min_p
    return {"samplers": order, **fields}


def _refused(status: int, data: bytes) -> DanluError:
    try:
        message = json.loads(data)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = data.decode(errors="replace")[:200]
    long = "exceeds the available context size" in message
    return DanluError(f"llama.cpp refused ({status}): {message}", "raise the context length (num_ctx)" if long else "")


def parameters(path: Path, *, context: int, parallel: int, threads: int | None = None, lora: Path | None = None) -> Any:
    """xllamacpp's CommonParams of a server on 127.0.0.1: `parallel` slots of `context` tokens each."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {path.stem}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.ui = False
    params.use_jinja = True
    params.warmup = False
    params.verbosity = -1
    params.n_parallel = parallel
    params.n_ctx = context * parallel
    # llama.cpp's threads wait for each other by spinning: with a tiny model on a busy machine that is all they do
    threads = threads or (1 if path.stat().st_size < SMALL else os.cpu_count() or 1)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if lora is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
    return params


def _start(
    path: Path,
    key: str,
    context: int,
    parallel: int,
    threads: int | None,
    gpu_layers: int | None,
    exact: bool,
    lora: Path | None = None,
) -> Any:
    """A listening llama.cpp server; DanluError when the file is missing or cannot be loaded."""
    import xllamacpp

    if not path.is_file():
        raise DanluError(f"{path} does not exist", "export a model first: danlu export")
    params = parameters(path, context=context, parallel=parallel, threads=threads, lora=lora)
    params.api_keys = [key]
    if gpu_layers is not None:
        params.n_gpu_layers = gpu_layers
    if exact:
        params.n_gpu_layers = 0
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise DanluError(
            f"llama.cpp cannot load {path}: {error}", "the file is damaged, or its architecture is newer than xllamacpp"
        ) from None
