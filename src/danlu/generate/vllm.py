"""A Generator over vLLM: the base of a model on a GPU with its LoRA adapter unmerged, for evaluation and chat.

Method: vLLM's own engine in this process. Prompts are rendered and tokenised here, so that a model sees the same ids
as everywhere else; all requests are given at once and yielded as they end, which is vLLM's continuous batching.
Every request has its own seed, made of ours and its prompt.
Departures: log-probs are kept only where vLLM's are those of `Sampling` (greedy, or temperature 1), because it tells
them before the temperature. Draws are vLLM's: the same seed gives other text than the local decoder.
Not covered: adapters that vLLM refuses (DoRA, biases, modules_to_save) and those with ranks of their own per module;
merge them first. Several GPUs: `tensor_parallel_size` through `options`.
Written against vLLM 0.10 and later: EngineArgs, LLMEngine.add_request/step/abort_request, SamplingParams, LoRARequest.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from danlu.errors import DanluError
from danlu.generate import Sampling, Streamed
from danlu.generate.chat import completion, encoded, first_tokens
from danlu.generate.stream import counted, parts, texts, until
from danlu.models.tokenizer import speech_of
from danlu.recipe import Model
from danlu.records import Completion, Message
from danlu.run import read_json

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM compiles kernels for
DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
UNFIT = ("modules_to_save", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern")


class VllmGenerator:
    """A Generator over a model of a recipe, or of `start` (run, adapter, model folder or hub id).

    context: tokens of prompt and completion at most (as many as the model has, if it has fewer). options: further
    EngineArgs, for example gpu_memory_utilization. DanluError when vLLM is missing or cannot load the model.
    """

    def __init__(
        self,
        spec: Model,
        start: str | None = None,
        *,
        name: str = "vllm",
        context: int | None = None,
        seed: int = 0,
        thinking: bool = True,
        **options: Any,
    ) -> None:
        vllm = _vllm()
        speech = speech_of(spec, start, weights=True)
        if speech.folder is None:
            raise DanluError("vLLM needs a stored model, and this one is made from a config", "eval.generate: local")
        self.name, self.thinking, self.streamed = name, thinking, Streamed()
        self.tokenizer, self.think, self.end_ids = speech.tokenizer, speech.think, speech.end_ids
        self._numbers = itertools.count()
        self._vllm, self._adapter = vllm, None
        settings: dict[str, Any] = {
            "model": str(speech.folder),
            "tokenizer": str(speech.tokenizer.name_or_path),  # stop strings are looked for in its text
            "dtype": DTYPES[spec.dtype],
            "seed": seed,
            "trust_remote_code": spec.trust_remote_code,
            "disable_log_stats": True,
        }
        if context is not None:
            settings["max_model_len"] = min(context, _longest(speech.folder))
        if spec.quantization == "nf4":
            settings["quantization"] = "bitsandbytes"
        if speech.adapter is not None:
            settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank_for(speech.adapter)}
            self._adapter = vllm.lora(lora_name="adapter", lora_int_id=1, lora_path=str(speech.adapter.resolve()))
        try:
            self._engine: Any = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**settings | options))
        except (ValueError, RuntimeError, OSError) as error:
            raise DanluError(
                f"vLLM cannot load {speech.folder}: {str(error).strip().splitlines()[-1]}",
                "is the GPU free and large enough? eval.generate: local needs neither",
            ) from error

    def __enter__(self) -> VllmGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine = None

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, keys: Sequence[str] | None = None
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Completions of each prompt as they end. A prompt that is too long gives completions with finish "error"."""
        chats, ids = encoded(self.tokenizer, self.think, prompts, self.thinking)
        waiting: dict[str, int] = {}
        try:
            for place, prompt in enumerate(ids):
                key = keys[place] if keys else chats[place]
                request = self._ask(prompt, **self._params(sampling, key, "FINAL_ONLY"))
                if request is None:
                    yield place, [Completion("", "", "", "error", False)] * sampling.samples
                else:
                    waiting[request] = place
            while waiting:
                for output in self._engine.step():
                    if output.finished and output.request_id in waiting:
                        yield waiting.pop(output.request_id), self._completions(output, sampling)
        finally:
            self._give_up(list(waiting))

    def chat_stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None
    ) -> Iterator[tuple[Literal["reasoning", "answer"], str]]:
        """The pieces of one answer as they are written; leaving the loop early ends the request."""
        sampling = sampling or Sampling()
        (text,), (ids,) = encoded(self.tokenizer, self.think, [messages], self.thinking)
        request = self._ask(ids, **self._params(sampling, text, "DELTA", samples=1))
        if request is None:
            raise DanluError(f"the prompt of {len(ids)} tokens is too long for the context", "shorten it")
        self.streamed = Streamed()
        tokens = counted(self._tokens(request), set(self.end_ids), self.streamed, sampling.max_tokens)
        yield from parts(until(texts(self.tokenizer, tokens), sampling.stop), self.think)

    def choose(
        self, prompts: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, str]]:
        """(index of the prompt, the one of its letters that the model finds likeliest as the next token).

        DanluError when two letters begin with the same token.
        """
        first = first_tokens(self.tokenizer, letters)
        _, ids = encoded(self.tokenizer, self.think, prompts, self.thinking)
        waiting: dict[str, int] = {}
        try:
            for place, (prompt, own) in enumerate(zip(ids, letters, strict=True)):
                request = self._ask(
                    prompt,
                    temperature=0.0,
                    max_tokens=1,
                    allowed_token_ids=[first[letter] for letter in own],
                    ignore_eos=True,
                    detokenize=False,
                    output_kind=self._vllm.RequestOutputKind.FINAL_ONLY,
                )
                if request is None:
                    raise DanluError(f"a prompt of {len(prompt)} tokens is too long for the context", "shorten it")
                waiting[request] = place
            while waiting:
                for output in self._engine.step():
                    if output.finished and output.request_id in waiting:
                        place, said = waiting.pop(output.request_id), output.outputs[0].token_ids[0]
                        yield place, next(letter for letter in letters[place] if first[letter] == said)
        finally:
            self._give_up(list(waiting))

    def cut(self, found: Completion, tokens: int) -> Completion:
        """The completion as it would be, had the limit been `tokens`."""
        return completion(self.tokenizer, self.think, self.end_ids, found.tokens[:tokens], stopped=False)

    # ---- the engine

    def _ask(self, ids: list[int], **params: Any) -> str | None:
        """The name of a new request; None when the prompt leaves no room. DanluError for what vLLM refuses."""
        if len(ids) >= self._engine.model_config.max_model_len:
            return None
        name = f"danlu-{next(self._numbers)}"
        try:
            asked = self._vllm.SamplingParams(**params)
            self._engine.add_request(name, {"prompt_token_ids": ids}, asked, lora_request=self._adapter)
        except ValueError as error:
            raise DanluError(f"vLLM refuses the request: {str(error).strip()}", "eval.generate: local") from error
        return name

    def _give_up(self, requests: list[str]) -> None:
        if requests and self._engine is not None:
            self._engine.abort_request(requests)

    def _tokens(self, request: str) -> Iterator[int]:
        over = False
        try:
            while not over:
                for output in self._engine.step():
                    if output.request_id == request:
                        over = output.finished
                        yield from output.outputs[0].token_ids
        finally:
            self._give_up([] if over else [request])

    def _params(self, sampling: Sampling, key: str, kind: str, samples: int | None = None) -> dict[str, Any]:
        """The SamplingParams of a request."""
        greedy = sampling.temperature == 0
        return dict(
            n=1 if greedy else samples or sampling.samples,  # vLLM refuses several greedy ones
            temperature=sampling.temperature,
            top_p=1.0 if greedy else sampling.top_p,
            top_k=0 if greedy else sampling.top_k,
            min_p=0.0 if greedy else sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=sampling.max_tokens,
            seed=None if greedy else _seed(sampling.seed, key),
            stop=list(sampling.stop) or None,
            stop_token_ids=list(self.end_ids),
            logprobs=0 if sampling.temperature in (0, 1) else None,
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
            output_kind=getattr(self._vllm.RequestOutputKind, kind),
        )

    def _completions(self, output: Any, sampling: Sampling) -> list[Completion]:
        found = [self._completion(one, sampling) for one in sorted(output.outputs, key=lambda one: one.index)]
        return found * sampling.samples if sampling.temperature == 0 else found

    def _completion(self, one: Any, sampling: Sampling) -> Completion:
        tokens, told = list(one.token_ids), one.logprobs or []
        return completion(
            self.tokenizer,
            self.think,
            self.end_ids,
            tokens,
            logprobs=[step[token].logprob for step, token in zip(told, tokens, strict=False)],
            stopped=one.finish_reason == "stop",
            stop=sampling.stop,
        )


class _Names:
    """The classes of vLLM that are used here."""

    def __init__(self) -> None:
        from vllm import EngineArgs, LLMEngine, SamplingParams
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import RequestOutputKind

        self.EngineArgs, self.LLMEngine, self.SamplingParams = EngineArgs, LLMEngine, SamplingParams
        self.lora, self.RequestOutputKind = LoRARequest, RequestOutputKind


def _vllm() -> _Names:
    try:
        return _Names()
    except ImportError as error:
        raise DanluError(
            f"vLLM is not installed ({error})", 'pip install "danlu[vllm]", or eval.generate: local'
        ) from None


def rank_for(adapter: Path) -> int:
    """The rank that vLLM must be ready for; DanluError for adapters that it would refuse or misread."""
    config = read_json(adapter / "adapter_config.json")
    unfit = [name for name in UNFIT if config.get(name)]
    unfit += ["bias"] if config.get("bias", "none") != "none" else []
    rank = int(config.get("r", 0))
    fitting = [one for one in RANKS if one >= rank]
    if unfit or not fitting:
        what = unfit[0] if unfit else f"rank {rank}"
        raise DanluError(
            f"vLLM does not take the adapter in {adapter}: it has {what}",
            "merge it first (danlu merge RUN), or eval.generate: local",
        )
    return fitting[0]


def _longest(folder: Path) -> int:
    """Tokens that a model was made for."""
    config = read_json(folder / "config.json")
    return int(config.get("max_position_embeddings") or config.get("n_positions") or 1 << 20)


def _seed(seed: int, key: str) -> int:
    word = hashlib.blake2b(f"{seed}|{key}".encode(), digest_size=4).digest()
    return int.from_bytes(word, "big") >> 1
