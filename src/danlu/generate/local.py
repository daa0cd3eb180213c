"""Answer with local weights: the fast decoder where the architecture is known, transformers' generate elsewhere.

The adapter is not merged on disk; a snapshot merges it in memory each time `refresh` is called (GRPO does so every
step). Prompts of similar length share a batch; what is too large for one batch is split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from danlu.data.encode import encode
from danlu.data.render import prompt_text
from danlu.errors import DanluError
from danlu.generate import Sampling
from danlu.generate.decode import Decoded, decode, plain_lora, snapshot, supports
from danlu.models.load import Loaded
from danlu.records import Completion, Message


class LocalGenerator:
    """A Generator over a loaded model. `batch`: completions decoded together at most."""

    def __init__(self, loaded: Loaded, name: str = "local", batch: int = 256, thinking: bool = True) -> None:
        self.loaded, self.name, self.batch, self.thinking = loaded, name, batch, thinking
        self.think = loaded.think
        plain = loaded.model.get_base_model() if hasattr(loaded.model, "peft_config") else loaded.model
        self._fast = supports(plain.config) and plain_lora(loaded.model)
        self._weights: Any = None

    def __enter__(self) -> LocalGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self._weights = None

    def refresh(self) -> None:
        """Take up what training has changed since the last call."""
        self._weights = snapshot(self.loaded.model) if self._fast else None

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        keys: Sequence[str] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Completions of each prompt, batch by batch, shortest prompts first.

        `keys` fix the random numbers of each prompt (default: its text), so that an interrupted run goes on with
        the same draws.
        """
        texts = [prompt_text(self.loaded.tokenizer, self.think, list(chat), thinking=self.thinking) for chat in prompts]
        ids = [found.tolist() for found in encode(self.loaded.tokenizer, texts)]
        keys = list(keys) if keys else texts
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        size = max(1, self.batch // sampling.samples)
        if self._fast and self._weights is None:
            self.refresh()
        for at in range(0, len(order), size):
            part = order[at : at + size]
            batch = [ids[i] for i in part]
            decoded = (self._decode if self._fast else self._generate)(batch, sampling, [keys[i] for i in part])
            for i, group in zip(part, decoded, strict=True):
                yield i, [self.completion(one) for one in group]

    def completion(self, decoded: Decoded) -> Completion:
        """The Completion of decoded ids: text without the end token, split by the think-format."""
        inner = decoded.tokens[:-1] if decoded.stopped else decoded.tokens
        text = self.loaded.tokenizer.decode(inner, skip_special_tokens=False)
        reasoning, answer, well_formed = self.think.split(text)
        return Completion(
            text=text,
            reasoning=reasoning,
            answer=answer,
            finish="stop" if decoded.stopped else "length",
            well_formed=well_formed and decoded.stopped,
            tokens=tuple(decoded.tokens),
            logprobs=tuple(decoded.logprobs),
        )

    def cut(self, completion: Completion, tokens: int) -> Completion:
        """The completion as it would be, had the limit been `tokens`."""
        return self.completion(Decoded(list(completion.tokens[:tokens]), [], False))

    @torch.no_grad()
    def choose(
        self, prompts: Sequence[Sequence[Message]], letters: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, str]]:
        """(index of the prompt, the one of its letters that the model finds likeliest as the next token).

        DanluError when two letters begin with the same token.
        """
        tokenizer, model = self.loaded.tokenizer, self.loaded.model
        plain = model.get_base_model() if hasattr(model, "peft_config") else model
        first = {letter: encode(tokenizer, [letter])[0][0] for own in letters for letter in own}
        if len(set(first.values())) < len(first):
            raise DanluError("this tokenizer has no token of its own for each option letter", "leave out loglikelihood")
        texts = [prompt_text(tokenizer, self.think, list(chat), thinking=self.thinking) for chat in prompts]
        ids = encode(tokenizer, texts)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        model.eval()
        for at in range(0, len(order), self.batch):
            part = order[at : at + self.batch]
            sizes = torch.tensor([len(ids[i]) for i in part], device=model.device)
            batch = torch.full((len(part), int(sizes.max())), tokenizer.pad_token_id, device=model.device)
            for row, i in enumerate(part):  # padded on the right: causal attention needs no mask
                batch[row, : len(ids[i])] = torch.as_tensor(ids[i], dtype=torch.long)
            hidden = plain.get_decoder()(input_ids=batch, use_cache=False).last_hidden_state
            last = hidden[torch.arange(len(part), device=model.device), sizes - 1]
            scores = plain.get_output_embeddings()(last).float().cpu()  # what heads do on top keeps their order
            for row, i in enumerate(part):
                yield i, max(letters[i], key=lambda letter: float(scores[row, int(first[letter])]))

    def chat_stream(self, messages: Sequence[Message], sampling: Sampling | None = None) -> Iterator[tuple[str, str]]:
        """("reasoning" | "answer", text) of one answer; the parts come when they are whole."""
        _, found = next(self.generate([messages], sampling or Sampling()))
        if found[0].reasoning:
            yield "reasoning", found[0].reasoning
        yield "answer", found[0].answer

    def _decode(self, batch: list[list[int]], sampling: Sampling, keys: list[str]) -> list[list[Decoded]]:
        return decode(
            self._weights,
            batch,
            max_tokens=sampling.max_tokens,
            end_ids=self.loaded.end_ids,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            samples=sampling.samples,
            seed=sampling.seed,
            keys=keys,
        )

    def _generate(self, batch: list[list[int]], sampling: Sampling, keys: list[str]) -> list[list[Decoded]]:
        """transformers' generate on a left-padded batch; seeded by batch, not by row."""
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        length = max(map(len, batch))
        pad = tokenizer.pad_token_id
        rows = [[pad] * (length - len(row)) + row for row in batch]
        marks = [[0] * (length - len(row)) + [1] * len(row) for row in batch]
        place = model.device
        torch.manual_seed(_seed(sampling.seed, keys))
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        was_training = model.training
        model.eval()
        with torch.no_grad():
            out = model.generate(
                input_ids=torch.tensor(rows, device=place),
                attention_mask=torch.tensor(marks, device=place),
                max_new_tokens=sampling.max_tokens,
                num_return_sequences=sampling.samples,
                eos_token_id=list(self.loaded.end_ids),
                pad_token_id=pad,
                **(drawn if sampling.temperature > 0 else {"do_sample": False}),
            )
        model.train(was_training)
        ends, decoded = set(self.loaded.end_ids), []
        for row in out[:, length:].tolist():
            cut = next((i + 1 for i, token in enumerate(row) if token in ends), None)
            decoded.append(Decoded(row[:cut], [], cut is not None))
        n = sampling.samples
        return [decoded[i * n : (i + 1) * n] for i in range(len(batch))]


def _seed(seed: int, keys: Sequence[str]) -> int:
    word = hashlib.blake2b("|".join([str(seed), *keys]).encode(), digest_size=4).digest()
    return int.from_bytes(word, "big") >> 1
