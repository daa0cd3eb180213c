"""`sft.engine: mlx`: mlx-lm's model and LoRA layers compute losses and gradients, everything around them stays ours.

Rows, their tokens, masks and order, learning rates, metrics, checkpoints, signals, evaluation and what is delivered are
those of our own engine, and so is AdamW: the adapter, some megabytes, is a peft model in torch whose gradients come
from MLX. Its base is a shape without memory; the weights are in MLX alone. So a run starts from the same matrices as
one of our engine and its losses are the same but for rounding, resuming is exact, and the artifact is peft's.

The head runs on the supervised places only. With `sft.compile` (auto: on a GPU) the step is compiled for each shape,
so rows are padded to multiples of 32 tokens. Dropout draws from torch's generator, which checkpoints hold.
mlx-lm's own datasets and trainer are not used: they render rows through the chat template, which for R1 deletes the
reasoning. Its report lines are kept, in the form that its users know.
Not covered: see models/mlx_fit.py. Everything here was tested with MLX on a CPU; on Apple's GPUs it was not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx.utils import tree_unflatten
from mlx_lm.tuner.trainer import grad_checkpoint
from mlx_lm.utils import maybe_set_recommended_wired_limit
from torch import Tensor

from danlu import display
from danlu.errors import DanluError
from danlu.generate.mlx import MlxGenerator
from danlu.models.adapter import scale_of, warn_of_unmatched, with_adapter
from danlu.models.batch import Batch, padded
from danlu.models.load import Loaded, with_start
from danlu.models.mlx import add_lora, flat, load_base, on_gpu, to_mlx, to_torch
from danlu.models.mlx_adapter import PREFIX, Update, read_peft
from danlu.models.tokenizer import speech_of
from danlu.recipe import Recipe
from danlu.run import read_json
from danlu.train import processes

ROUND_TOKENS, ROUND_PLACES = 32, 64  # compiled shapes: lengths and supervised places are padded to multiples
REPORT = 10  # steps between two report lines


def load(recipe: Recipe, start: str | None, recompute: bool) -> tuple[Loaded, Forward]:
    """The model of a recipe (or of `start`) in MLX, and its new adapter as what Loop trains.

    DanluError names what is missing or does not fit.
    """
    if processes.count() > 1:
        raise DanluError("sft.engine: mlx trains in one process", "sft.engine: danlu trains in several")
    lora = recipe.sft.lora
    speech = speech_of(recipe.model, start, weights=True)
    assert speech.folder is not None  # a base made from a config was refused
    maybe_set_recommended_wired_limit()  # macOS: weights stay in memory
    mx.reset_peak_memory()
    model = load_base(speech.folder, recipe.model.dtype)
    shadow = _shape_of(speech.folder)
    described: dict[str, Any] = {"base": speech.recorded}
    if speech.adapter is not None:
        add_lora(model, read_peft(speech.adapter), frozen=True)
        shadow = with_start(shadow, speech.adapter, True)
        earlier = read_json(speech.adapter / "danlu.json") if (speech.adapter / "danlu.json").is_file() else {}
        if earlier.get("base_dir"):
            described["base_dir"] = str(speech.folder.resolve())
    torch.manual_seed(recipe.seed)
    shadow = with_adapter(shadow, lora)
    warn_of_unmatched(shadow, lora)
    loaded = Loaded(shadow, speech.tokenizer, speech.think, speech.end_ids, described)
    compiled = on_gpu() if recipe.sft.compile == "auto" else recipe.sft.compile
    return loaded, Forward(model, loaded, lora.dropout, recompute, compiled)


def _shape_of(folder: Any) -> Any:
    """The transformers model of a folder with parameters that take no memory: one number, seen as a matrix."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, param in module.named_parameters(recurse=False):
            if id(param) not in made:  # tied ones stay one
                value = torch.zeros(()).expand(param.shape)
                made[id(param)] = torch.nn.Parameter(value, requires_grad=False)
            module._parameters[name] = made[id(param)]
    return model


class Forward:
    """From a Batch to the log-probs of its targets, as TokenLogProbs; the gradients go to the torch adapter."""

    def __init__(self, model: Any, loaded: Loaded, dropout: float, recompute: bool, compiled: bool) -> None:
        self.model, self.loaded = model, loaded
        self._dropout, self._recompute, self._compiled = dropout, recompute, compiled
        self._params = {_name(name): param for name, param in loaded.model.named_parameters() if param.requires_grad}
        add_lora(model, self._updates(), dropout=dropout)
        if flat(model.trainable_parameters()).keys() != self._params.keys():
            raise DanluError(
                "sft.engine: mlx trains linear layers only", "choose other lora.targets, or sft.engine: danlu"
            )
        self._graded = nn.value_and_grad(model, self._scored)
        if compiled:
            generator: Any = mx.random
            state = [model.state, generator.state]
            self._graded = mx.compile(self._graded, inputs=state, outputs=state)

    def _updates(self) -> dict[str, Update]:
        config = self.loaded.model.peft_config["default"].to_dict()
        modules = {name.removesuffix(".lora_a") for name in self._params if name.endswith(".lora_a")}
        found = {}
        for module in sorted(modules):
            a, b = self._params[f"{module}.lora_a"], self._params[f"{module}.lora_b"]
            found[module] = Update(a.detach(), b.detach(), scale_of(config, module, a.shape[0]))
        return found

    def push(self) -> None:
        """Give MLX the adapter as it is now."""
        pairs = [(name, to_mlx(param.t())) for name, param in self._params.items()]
        self.model.update(tree_unflatten(pairs))

    def generator(self, name: str, batch: int) -> MlxGenerator:
        """Answers with the adapter as it is at the time."""
        return MlxGenerator(self.model, self.loaded, name, batch, before=self.push)

    def __call__(self, batch: Batch) -> tuple[Tensor, None]:
        """(log-probs fp32 [N] of the batch's targets, None); the loss may be any multiple of their sum."""
        self.push()
        training = torch.is_grad_enabled()
        self.model.train(training)
        if not training:
            _, found = self._scored(*self._arrays(batch))
            return to_torch(found)[: len(batch.targets)], None
        params = list(self._params.values())
        return _Scored.apply(self, batch, *params), None

    def memory(self) -> dict[str, int]:
        """What MLX holds, and held at most, bytes."""
        return {"memory_bytes": int(mx.get_active_memory()), "peak_memory_bytes": int(mx.get_peak_memory())}

    def graded(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """(log-probs [N], d(their sum)/d of each trained matrix, as torch has it)."""
        if self._dropout:
            mx.random.seed(int(torch.randint(2**31, (1,))))
        with _recomputing(self.model.layers[0]) if self._recompute else _nothing():
            (_, found), tree = self._graded(*self._arrays(batch))
            grads = flat(tree)
            mx.eval(found, grads)
        mx.clear_cache()  # rows of all lengths would leave buffers of all sizes
        return to_torch(found)[: len(batch.targets)], [to_torch(grads[name].T) for name in self._params]

    def _arrays(self, batch: Batch) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """ids [rows, T], then places, targets and weights (1 or 0) [N] of what is scored."""
        ids, mask = padded(batch, self.loaded.tokenizer.pad_token_id)
        more = -ids.shape[1] % ROUND_TOKENS if self._compiled else 0
        ids = torch.nn.functional.pad(ids, (0, more), value=self.loaded.tokenizer.pad_token_id)
        mask = torch.nn.functional.pad(mask, (0, more))
        places, targets = mask.flatten().nonzero()[:, 0][batch.places].numpy(), batch.targets.numpy()
        count = len(targets) + (-len(targets) % ROUND_PLACES if self._compiled else 0)
        weights = np.zeros(count, np.float32)
        weights[: len(targets)] = 1
        wide = [np.pad(values, (0, count - len(values))).astype(np.int32) for values in (places, targets)]
        return mx.array(ids.numpy().astype(np.int32)), mx.array(wide[0]), mx.array(wide[1]), mx.array(weights)

    def _scored(self, ids: Any, places: Any, targets: Any, weights: Any) -> tuple[Any, Any]:
        """(sum, each) of the log-probs of targets."""
        hidden = self.model.model(ids)
        hidden = hidden.reshape(-1, hidden.shape[-1])[places]
        head = self.model.lm_head if "lm_head" in self.model else self.model.model.embed_tokens.as_linear
        logits = head(hidden).astype(mx.float32)
        found = -nn.losses.cross_entropy(logits, targets) * weights
        return found.sum(), found


class _Scored(torch.autograd.Function):
    """MLX has made the gradients of the sum in its forward pass; backward scales them."""

    @staticmethod
    def forward(ctx: Any, forward: Forward, batch: Batch, *_: Tensor) -> Tensor:
        found, grads = forward.graded(batch)
        ctx.save_for_backward(*grads)
        return found

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        (grad,) = given
        if not bool((grad == grad[0]).all()):
            raise ValueError("the loss is no multiple of the sum of log-probs")
        return None, None, *(own * grad[0] for own in ctx.saved_tensors)


def _name(torch_name: str) -> str:
    """The name in MLX of a matrix of peft's adapter "default"."""
    name = torch_name.removeprefix(PREFIX)
    return re.sub(r"\.lora_([AB])\.default\.weight$", lambda found: f".lora_{found[1].lower()}", name)


@contextmanager
def _recomputing(layer: Any) -> Iterator[None]:
    """In the block layers like this one keep no activations; mlx-lm changes their class, which is put back after."""
    kind = type(layer)
    plain = kind.__call__
    grad_checkpoint(layer)
    try:
        yield
    finally:
        kind.__call__ = plain


@contextmanager
def _nothing() -> Iterator[None]:
    yield


class Reports:
    """The lines that users of mlx-lm know, on stderr, every REPORT steps and at every evaluation.

    It/sec and Tokens/sec count the time of steps alone; tokens are the supervised ones. Peak mem is MLX's own, in 1e9
    bytes.
    """

    def __init__(self, steps: int) -> None:
        self._steps, self._losses = steps, list[float]()
        self._tokens, self._seconds = 0, 0.0

    def step(self, row: dict[str, Any], seconds: float) -> None:
        """Count a step by its row of metrics.jsonl; tell when it is time."""
        self._losses.append(row["loss"])
        self._tokens += row["supervised_tokens"]
        self._seconds += seconds
        if row["step"] % REPORT and row["step"] < self._steps:
            return
        display.say(
            f"Iter {row['step']}: Train loss {sum(self._losses) / len(self._losses):.3f}, "
            f"Learning Rate {row['lr']:.3e}, It/sec {len(self._losses) / self._seconds:.3f}, "
            f"Tokens/sec {self._tokens / self._seconds:.3f}, Trained Tokens {row['tokens']}, "
            f"Peak mem {mx.get_peak_memory() / 1e9:.3f} GB"
        )
        self._losses, self._tokens, self._seconds = [], 0, 0.0

    def evaluated(self, step: int, loss: float, seconds: float) -> None:
        display.say(f"Iter {step}: Val loss {loss:.3f}, Val took {seconds:.3f}s")
