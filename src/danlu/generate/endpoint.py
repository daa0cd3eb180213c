"""Any OpenAI-compatible server as a Generator: `/v1/chat/completions` over HTTP.

Method: `wire.Endpoint` asks one model on one server; `EndpointGenerator` makes Completions of its replies. The key is
read from DANLU_API_KEY or OPENAI_API_KEY for each request and kept nowhere.

The server applies its own chat template to the messages: what the model really saw is known to the server alone.
Reasoning comes from the field `reasoning_content` or `reasoning`, or from `<think>` tags in the content, also where
the template had opened the block and the content holds only the closing tag. `Completion.tokens` holds UNKNOWN as many
times as the server counted tokens, because servers give counts and no ids.

Departures: where /v1/models says that vLLM, SGLang or llama.cpp answers, their own top-k, min-p and penalties are
switched off unless Sampling asks for them; other servers are told of them only then, in vLLM's words. A parameter that
a server names as unsupported (seed, temperature, top_p, top_k, min_p, repetition_penalty, max_tokens,
chat_template_kwargs) is left out or renamed, with a warning.
Not covered: defaults that other servers add by themselves, the Responses API, tools, images, log-probs, SOCKS proxies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from danlu.generate import Sampling, Streamed
from danlu.generate.gguf import completion, samplers
from danlu.generate.replies import Choice, Part, Unanswered, tagged
from danlu.generate.wire import Cancel, Endpoint, as_finished
from danlu.records import Completion, Message
from danlu.think import ThinkFormat

NEUTRAL = Sampling()  # what needs not be said
UNKNOWN = -1  # a token whose id the server does not tell

PLAIN = ThinkFormat("none")
# the reasoning is a field of its own, or the model writes both tags
THINK = ThinkFormat("think", "<think>", "</think>", "model", head="<think>\n", bridge="\n</think>\n\n")
OPENED = replace(THINK, opened_by="template", prefix="<think>\n", head="")  # the content starts inside the block


class EndpointGenerator:
    """A Generator over an Endpoint. `thinking`: switch the reasoning of a template on or off; None leaves it alone.

    `think` None: found in each reply; `think` is then PLAIN until the first reply that reasoned. The other settings
    are Endpoint's.
    """

    def __init__(
        self, target: str, *, think: ThinkFormat | None = None, thinking: bool | None = None, **settings: Any
    ) -> None:
        self.endpoint = Endpoint(target, **settings)
        self.name = f"{self.endpoint.host}/{self.endpoint.model}"
        self.think, self._given, self.thinking = think or PLAIN, think, thinking
        self._takes_n = True
        self.streamed = Streamed()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def __enter__(self) -> EndpointGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.endpoint.close()

    def usage(self) -> dict[str, float]:
        """What the endpoint counted so far (see `Endpoint.usage`)."""
        return self.endpoint.usage()

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index, completions) of each chat as it finishes.

        What fails after the retries, is refused or filtered is a completion with finish "error". DanluError when the
        endpoint is down, refuses the key or does not know the model; what was yielded before stays valid.
        """
        cancel = Cancel()
        jobs = [partial(self._answers, i, chat, sampling, cancel) for i, chat in enumerate(prompts)]
        return as_finished(jobs, self.endpoint.concurrency, cancel)

    def chat_stream(self, messages: Sequence[Message], sampling: Sampling | None = None) -> Iterator[tuple[Part, str]]:
        """Yield the pieces of one answer as they are written; leaving the loop early ends the request.

        Not known beforehand: that content starts inside a think block. The first such answer streams as "answer" up to
        its closing tag, later ones are split.
        """
        seen = ["", ""]
        self.streamed = streamed = Streamed()
        sampling = sampling or Sampling()

        def deltas() -> Iterator[tuple[str, str]]:
            for reasoning, content in self.endpoint.stream(self._body(messages, sampling, sampling.seed)):
                seen[0], seen[1] = seen[0] + reasoning, seen[1] + content
                streamed.tokens += 1  # servers send a token at a time; a limit of theirs is not told
                streamed.cut = streamed.tokens >= sampling.max_tokens
                yield reasoning, content

        tags = self.think if self.think.style != "none" else THINK
        yield from tagged(deltas(), tags.opened_by == "template", tags.open, tags.close)
        self._format(*seen)

    def _body(self, messages: Sequence[Message], sampling: Sampling, seed: int | None) -> dict[str, Any]:
        body: dict[str, Any] = {
            "messages": [{"role": turn["role"], "content": turn["content"]} for turn in messages],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if "samplers" in self.endpoint.extra:  # llama.cpp
            body |= samplers(sampling)
        else:
            own = {name: getattr(sampling, name) for name in ("top_k", "min_p", "repetition_penalty")}
            body |= {name: value for name, value in own.items() if value != getattr(NEUTRAL, name)}
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if seed is not None and sampling.temperature > 0:
            body["seed"] = seed % (2**31 - 1)
        if self.thinking is not None:
            body["chat_template_kwargs"] = {"enable_thinking": self.thinking}
        return body

    def _answers(self, index: int, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> list[Completion]:
        """All completions of one chat: in one request where the server takes `n`, else one by one."""
        wanted, seed, refused = sampling.samples, sampling.seed + index * sampling.samples, False
        found: list[Completion] = []
        if wanted > 1 and self._takes_n:
            try:
                choices = self.endpoint.chat({**self._body(messages, sampling, seed), "n": wanted}, cancel)
                found = [self._completion(one) for one in choices][:wanted]
                self._takes_n = len(found) == wanted
            except Unanswered as error:
                refused = error.kind == "refused"  # the number, or the chat itself?
                if not refused:
                    return [self._failed(error, cancel)] * wanted
        while len(found) < wanted:
            try:
                body = self._body(messages, sampling, seed + len(found))
                found.append(self._completion(self.endpoint.chat(body, cancel)[0]))
                self._takes_n = self._takes_n and not refused
            except Unanswered as error:
                every = wanted - len(found) if error.kind == "refused" else 1
                found += [self._failed(error, cancel)] * every
        return found

    def _failed(self, error: Unanswered, cancel: Cancel) -> Completion:
        if not cancel.event.is_set():
            self.endpoint.warn(error.message)
            self.endpoint.gave_up(error)
        return Completion("", "", "", "error", False)

    def _completion(self, choice: Choice) -> Completion:
        format = self._format(choice.reasoning, choice.content)
        made = completion(format, choice.reasoning, choice.content, choice.finish)
        whole = made.well_formed and choice.finish == "stop"
        return replace(made, well_formed=whole, tokens=(UNKNOWN,) * choice.tokens)

    def _format(self, reasoning: str, content: str) -> ThinkFormat:
        """The format of one reply; the first that reasons tells `think`."""
        given = self._given
        if given and given.style != "think" and not reasoning:
            return given
        if reasoning or content.lstrip().startswith(THINK.open):
            found = given if given and given.style == "think" else THINK
        elif THINK.close in content and THINK.open not in content.partition(THINK.close)[0]:
            found = given if given and given.opened_by == "template" else OPENED
        else:  # no trace of reasoning; after replies that began inside the block this one has not left it
            return given or (OPENED if self.think is OPENED else PLAIN)
        if self.think is PLAIN:
            self.think = found
        return found
