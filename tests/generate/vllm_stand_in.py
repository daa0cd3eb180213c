"""A stand-in for the part of vLLM that danlu.generate.vllm uses, over transformers and peft in fp32.

vLLM itself needs a GPU. This engine keeps its contract as of 0.10 (arg_utils, sampling_params, v1/engine, lora): the
arguments it knows and refuses, one token of every sequence a step, `n` sequences of a request with the seeds
seed + index, raw log-probs, end tokens kept in token_ids, text without stop strings, FINAL_ONLY and DELTA outputs.
It cannot show that vLLM computes the same numbers; it shows that we ask rightly and read rightly what comes back.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Ranks = Literal[1, 8, 16, 32, 64, 128, 256, 320, 512]


@dataclass
class EngineArgs:
    model: str
    tokenizer: str | None = None
    dtype: str = "auto"
    seed: int | None = 0
    trust_remote_code: bool = False
    disable_log_stats: bool = False
    max_model_len: int | None = None
    quantization: str | None = None
    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1

    def check(self, longest: int) -> None:
        if self.dtype not in ("auto", "half", "float16", "bfloat16", "float", "float32"):
            raise ValueError(f"Unknown dtype: {self.dtype!r}")
        if self.max_model_len is not None and self.max_model_len > longest:
            raise ValueError(f"User-specified max_model_len ({self.max_model_len}) is greater than the derived one")
        if self.max_lora_rank not in get_args(Ranks):
            raise ValueError(f"max_lora_rank ({self.max_lora_rank}) must be one of {get_args(Ranks)}")


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    allowed_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        wrong = {
            "n must be at least 1": self.n < 1,
            "repetition_penalty must be greater than zero": self.repetition_penalty <= 0,
            "temperature must be in [0, 2]": not 0 <= self.temperature <= 2,
            "top_p must be in (0, 1]": not 0 < self.top_p <= 1,
            "top_k must be 0 (disable), or at least 1": self.top_k < -1,
            "min_p must be in [0, 1]": not 0 <= self.min_p <= 1,
            "max_tokens must be at least 1": self.max_tokens is not None and self.max_tokens < 1,
            "logprobs must be non-negative or -1": self.logprobs is not None and self.logprobs < -1,
            "stop cannot contain an empty string": any(not text for text in self.stop or []),
            "stop strings are only supported when detokenize is True": bool(self.stop) and not self.detokenize,
            "n must be 1 when using greedy sampling": self.temperature < 1e-5 and self.n > 1,
            "allowed_token_ids should not be empty": self.allowed_token_ids == [],
        }
        for what, is_wrong in wrong.items():
            if is_wrong:
                raise ValueError(what)
        if not isinstance(self.output_kind, RequestOutputKind):
            raise TypeError("output_kind")


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError("id must be > 0")
        if not self.lora_path:
            raise ValueError("lora_path cannot be empty")


@dataclass
class Sequence:
    index: int
    draws: torch.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Any]] = field(default_factory=list)
    told: int = 0
    finish: str | None = None


@dataclass
class Request:
    name: str
    prompt: list[int]
    params: SamplingParams
    lora: LoRARequest | None
    sequences: list[Sequence]


class LLMEngine:
    """`made`: every engine of a test, the newest last; `aborted`: names of requests that were given up."""

    made: list[LLMEngine] = []  # noqa: RUF012

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> LLMEngine:
        return cls(engine_args)

    def __init__(self, args: EngineArgs) -> None:
        if not (Path(args.model) / "config.json").is_file():
            raise OSError(f"{args.model} is not a local folder")
        config = json.loads((Path(args.model) / "config.json").read_text("utf-8"))
        args.check(config["max_position_embeddings"])
        self.args = args
        self.tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or args.model)
        self.plain = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
        length = args.max_model_len or config["max_position_embeddings"]
        self.model_config = SimpleNamespace(max_model_len=length)
        self.adapted: dict[str, Any] = {}
        self.requests: dict[str, Request] = {}
        self.aborted: list[str] = []
        self.made.append(self)

    def add_request(
        self,
        request_id: str,
        prompt: dict[str, list[int]],
        params: SamplingParams,
        arrival_time: float | None = None,  # noqa: ARG002
        lora_request: LoRARequest | None = None,
    ) -> None:
        ids = prompt["prompt_token_ids"]
        if not ids:
            raise ValueError("The decoder prompt cannot be empty")
        if not all(type(token) is int for token in ids):
            raise TypeError("prompt_token_ids")
        limit = self.model_config.max_model_len
        if len(ids) > limit:
            raise ValueError(
                f"The decoder prompt (length {len(ids)}) is longer than the maximum model length of {limit}"
            )
        if lora_request is not None and not self.args.enable_lora:
            raise ValueError("Got lora_request but LoRA is not enabled!")
        if request_id in self.requests:
            raise ValueError(f"Request id {request_id} already running")
        made = []
        for index in range(params.n):
            draws = torch.Generator().manual_seed((params.seed if params.seed is not None else 0) + index)
            made.append(Sequence(index, draws))
        self.requests[request_id] = Request(request_id, list(ids), params, lora_request, made)

    def abort_request(self, request_ids: list[str]) -> None:
        if isinstance(request_ids, str):
            raise TypeError("request_ids is a list")
        for name in request_ids:
            if self.requests.pop(name, None):
                self.aborted.append(name)

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def step(self) -> list[Any]:
        if not self.requests:
            raise RuntimeError("vLLM would wait here for ever: no request is running")
        found = []
        for request in list(self.requests.values()):
            for sequence in request.sequences:
                if sequence.finish is None:
                    self._advance(request, sequence)
            finished = all(sequence.finish for sequence in request.sequences)
            if finished:
                del self.requests[request.name]
            if request.params.output_kind is not RequestOutputKind.FINAL_ONLY or finished:
                told = [self._output(request, sequence) for sequence in request.sequences]
                found.append(SimpleNamespace(request_id=request.name, outputs=told[::-1], finished=finished))
        return found

    # ---- one token

    @torch.no_grad()
    def _advance(self, request: Request, sequence: Sequence) -> None:
        params, ids = request.params, request.prompt + sequence.tokens
        logits = self._model(request.lora)(input_ids=torch.tensor([ids])).logits[0, -1].float()
        raw = logits.log_softmax(-1)
        token = self._chosen(logits, ids, params, sequence.draws)
        sequence.tokens.append(token)
        sequence.logprobs.append({token: SimpleNamespace(logprob=float(raw[token]), rank=1, decoded_token=None)})
        ends = [*(params.stop_token_ids or []), *([] if params.ignore_eos else [self.tokenizer.eos_token_id])]
        text = self.tokenizer.decode(sequence.tokens) if params.stop else ""
        if token in ends or any(one in text for one in params.stop or []):
            sequence.finish = "stop"
        elif len(sequence.tokens) == params.max_tokens or len(ids) + 1 >= self.model_config.max_model_len:
            sequence.finish = "length"

    def _chosen(self, logits: torch.Tensor, ids: list[int], params: SamplingParams, draws: torch.Generator) -> int:
        if params.allowed_token_ids is not None:
            kept = torch.full_like(logits, -torch.inf)
            kept[params.allowed_token_ids] = logits[params.allowed_token_ids]
            logits = kept
        seen = torch.zeros_like(logits, dtype=torch.bool).index_fill_(0, torch.tensor(ids), True)
        factor = torch.where(logits > 0, 1 / params.repetition_penalty, params.repetition_penalty)
        logits = torch.where(seen, logits * factor, logits)
        if params.temperature < 1e-5:
            return int(logits.argmax())
        shares = (logits / params.temperature).softmax(-1)
        shares[shares < params.min_p * shares.max()] = 0
        if params.top_k > 0:
            shares[shares < shares.topk(params.top_k).values[-1]] = 0
        if params.top_p < 1:
            values, order = (shares / shares.sum()).sort(descending=True)
            shares[order[values.cumsum(0) - values >= params.top_p]] = 0
        return int(torch.multinomial(shares, 1, generator=draws))

    def _model(self, lora: LoRARequest | None) -> Any:
        if lora is None:
            return self.plain
        if lora.lora_path not in self.adapted:
            from peft import PeftModel

            config = json.loads((Path(lora.lora_path) / "adapter_config.json").read_text("utf-8"))
            if config["r"] > self.args.max_lora_rank or config.get("modules_to_save") or config.get("use_dora"):
                raise RuntimeError("EngineCore died")  # in vLLM the first request would take the engine with it
            fresh = AutoModelForCausalLM.from_pretrained(self.args.model, dtype=torch.float32)
            self.adapted[lora.lora_path] = PeftModel.from_pretrained(fresh, lora.lora_path).eval()
        return self.adapted[lora.lora_path]

    def _output(self, request: Request, sequence: Sequence) -> Any:
        first = sequence.told if request.params.output_kind is RequestOutputKind.DELTA else 0
        sequence.told = len(sequence.tokens)
        told = sequence.logprobs[first:] if request.params.logprobs is not None else None
        return SimpleNamespace(
            index=sequence.index,
            text="",  # never read: danlu decodes the ids itself
            token_ids=tuple(sequence.tokens[first:]),
            logprobs=told,
            finish_reason=sequence.finish,
        )


def install(patch: pytest.MonkeyPatch) -> type[LLMEngine]:
    """Make `import vllm` find this; gone when the test ends."""
    engine = type("LLMEngine", (LLMEngine,), {"made": []})
    names = {
        "vllm": {"EngineArgs": EngineArgs, "LLMEngine": engine, "SamplingParams": SamplingParams},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.sampling_params": {"RequestOutputKind": RequestOutputKind},
    }
    for name, content in names.items():
        module = ModuleType(name)
        vars(module).update(content)
        patch.setitem(sys.modules, name, module)
    return engine
