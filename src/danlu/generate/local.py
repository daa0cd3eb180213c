"""Answer with local weights: our own decoder where the architecture is known, transformers' generate elsewhere.

The adapter is not merged on disk; `refresh` takes up what training has changed (GRPO does so every step), and what
did not change is kept. Prompts go shortest first; how many completions are decoded together is decided by memory,
with `batch` as the upper bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

from danlu import display
from danlu.generate import Sampling, Streamed, other
from danlu.generate.chat import completion, encoded, first_tokens
from danlu.generate.decode import Decoded, decode, one_by_one
from danlu.generate.memory import cache_budget, ran_out, row_bytes
from danlu.generate.stream import counted, ends_in_stop, parts, texts, until
from danlu.generate.weights import Weights, plain_lora, snapshot
from danlu.models.decoder import supports
from danlu.models.load import Loaded
from danlu.records import Completion, Message


class LocalGenerator:
    """A Generator over a loaded model. `batch`: completions decoded together at most; `memory`: bytes for the cache
    (default: a share of what is free when a batch begins)."""

    def __init__(
        self,
        loaded: Loaded,
        name: str = "local",
        batch: int = 256,
        thinking: bool = True,
        memory: int | None = None,
    ) -> None:
        self.loaded, self.name, self.batch, self.thinking, self.memory = loaded, name, batch, thinking, memory
        self.think = loaded.think
        self._fast = supports(self._plain.config) and plain_lora(loaded.model)
        self._weights: Weights | None = None
        self.streamed = Streamed()

    def __enter__(self) -> LocalGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self._weights = None

    @property
    def _plain(self) -> Any:
        model = self.loaded.model
        return model.get_base_model() if hasattr(model, "peft_config") else model

    def refresh(self) -> None:
        """Take up what training has changed since the last call."""
        self._weights = snapshot(self.loaded.model, previous=self._weights) if self._fast else None

    def _own_weights(self) -> Weights:
        if self._weights is None:
            self.refresh()
        assert self._weights is not None
        return self._weights

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        keys: Sequence[str] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Completions of each prompt as they finish.

        `keys` fix the random numbers of each prompt (default: its text), so that an interrupted run goes on with
        the same draws.
        """
        chats, ids = self._encoded(prompts)
        for i, group in self._decoded(ids, sampling, list(keys) if keys else chats):
            yield i, [self.completion(one, sampling.stop) for one in group]

    def completion(self, decoded: Decoded, stop: Sequence[str] = ()) -> Completion:
        """The Completion of decoded ids: text without the end token or stop string, split by the think-format."""
        return completion(
            self.loaded.tokenizer,
            self.think,
            self.loaded.end_ids,
            decoded.tokens,
            logprobs=decoded.logprobs,
            stopped=decoded.stopped,
            stop=stop,
        )

    def cut(self, completion: Completion, tokens: int) -> Completion:
        """The completion as it would be, had the limit been `tokens`."""
        return self.completion(Decoded(list(completion.tokens[:tokens]), [], False))

    def chat_stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None
    ) -> Iterator[tuple[Literal["reasoning", "answer"], str]]:
        """The pieces of one answer as they are written; leaving the loop early ends the work."""
        sampling = sampling or Sampling()
        (text,), (ids,) = self._encoded([messages])
        ends, stop = set(self.loaded.end_ids), sampling.stop
        ended = ends_in_stop(self.loaded.tokenizer, stop)
        if self._fast:
            own = self._own_weights()
            tokens = one_by_one(own, ids, sampling, end_ids=self.loaded.end_ids, key=text, ended=ended)
        else:
            tokens = other.one_by_one(
                self.loaded.model,
                ids,
                sampling,
                end_ids=self.loaded.end_ids,
                pad=self.loaded.tokenizer.pad_token_id,
                key=text,
                ended=ended,
            )
        self.streamed = Streamed()
        written = counted(tokens, ends, self.streamed, sampling.max_tokens)
        yield from parts(until(texts(self.loaded.tokenizer, written), stop), self.think)

    @torch.no_grad()
    def choose(
        self, prompts: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, str]]:
        """(index of the prompt, the one of its letters that the model finds likeliest as the next token).

        DanluError when two letters begin with the same token.
        """
        tokenizer, model = self.loaded.tokenizer, self.loaded.model
        first = first_tokens(tokenizer, letters)
        _, ids = self._encoded(prompts)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        model.eval()
        for at in range(0, len(order), self.batch):
            part = order[at : at + self.batch]
            sizes = torch.tensor([len(ids[i]) for i in part], device=model.device)
            batch = torch.full((len(part), int(sizes.max())), tokenizer.pad_token_id, device=model.device)
            for row, i in enumerate(part):  # padded on the right: causal attention needs no mask
                batch[row, : len(ids[i])] = torch.tensor(ids[i])
            hidden = self._plain.get_decoder()(input_ids=batch, use_cache=False).last_hidden_state
            last = hidden[torch.arange(len(part), device=model.device), sizes - 1]
            scores = self._plain.get_output_embeddings()(last).float().cpu()  # what heads do on top keeps their order
            for row, i in enumerate(part):
                yield i, max(letters[i], key=lambda letter: float(scores[row, first[letter]]))

    def _encoded(self, prompts: Sequence[Sequence[Message]]) -> tuple[list[str], list[list[int]]]:
        """Prompts as text and as ids."""
        return encoded(self.loaded.tokenizer, self.think, prompts, self.thinking)

    def _decoded(
        self, ids: list[list[int]], sampling: Sampling, keys: list[str]
    ) -> Iterator[tuple[int, list[Decoded]]]:
        if not self._fast:
            yield from self._through_transformers(ids, sampling, keys)
            return
        yield from decode(
            self._own_weights(),
            ids,
            sampling,
            end_ids=self.loaded.end_ids,
            keys=keys,
            rows=self.batch,
            memory=self.memory,
            ended=ends_in_stop(self.loaded.tokenizer, sampling.stop),
        )

    def _through_transformers(
        self, ids: list[list[int]], sampling: Sampling, keys: list[str]
    ) -> Iterator[tuple[int, list[Decoded]]]:
        """Batches of similar length, made smaller when memory runs out."""
        tokenizer, batch = self.loaded.tokenizer, self.batch
        ended = ends_in_stop(tokenizer, sampling.stop)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        while order:
            size = max(1, min(batch, self._fitting(len(ids[order[0]]) + sampling.max_tokens)) // sampling.samples)
            part = order[:size]
            try:
                found = other.generate(
                    self.loaded.model,
                    [ids[i] for i in part],
                    sampling,
                    end_ids=self.loaded.end_ids,
                    pad=tokenizer.pad_token_id,
                    keys=[keys[i] for i in part],
                    ended=ended,
                )
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error) or size == 1:
                    raise
                batch = max(1, size * sampling.samples // 2)
                display.warn(f"memory ran out while decoding: going on with {batch} completions together")
                continue
            yield from zip(part, found, strict=True)
            order = order[size:]

    def _fitting(self, length: int) -> int:
        """How many rows of so many tokens fit, as far as the config tells."""
        config = self._plain.config.get_text_config()
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        allowed = cache_budget(self.loaded.model.device) if self.memory is None else self.memory
        width = self.loaded.model.dtype.itemsize
        return max(1, allowed // row_bytes(layers, kv_heads, size, length, config.vocab_size, width))
