"""What SFT and GRPO share: optimizer, schedule, one update, checkpoints, signals, the best state, metrics.

The loop runs over accelerate (device, mixed precision, trackers) and knows nothing of what is
trained: a stage gives micro-batches whose losses add up to the loss of the step. Which rows a step sees is a pure
function of (seed, step), so a resumed run sees what an uninterrupted one would have seen.

A NaN or infinite loss or gradient stops the run before the weights are touched, and the state before it is saved.
Ctrl-C and SIGTERM finish the step, save, and end with 130 or 143.
Not covered yet: several processes (refused).
"""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from danlu import display
from danlu.errors import DanluError, Stopped
from danlu.models.decoder import can_compile, fast_forward, supports
from danlu.models.head import TokenLogProbs
from danlu.models.load import Loaded, device, native_bf16, trainable
from danlu.recipe import Optimizer, Training
from danlu.run import Run
from danlu.train import checkpoint


def row_order(count: int, seed: int, first: int, last: int) -> list[tuple[int, int]]:
    """(epoch, row) at places first..last-1 of an endless stream of shuffled epochs over `count` rows."""
    found: list[tuple[int, int]] = []
    for epoch in range(first // count, (last - 1) // count + 1):
        order = list(range(count))
        random.Random(f"{seed} {epoch}").shuffle(order)
        low, high = max(first - epoch * count, 0), min(last - epoch * count, count)
        found += [(epoch, row) for row in order[low:high]]
    return found


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: linear warm-up, then constant, linear or cosine to zero."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, steps - warmup)
    factor = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}
    return settings.lr * factor[settings.schedule]


def make_optimizer(params: list[Tensor], settings: Optimizer) -> torch.optim.Optimizer:
    """The optimizer of a recipe; the 8-bit ones need bitsandbytes."""
    common: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay}
    if settings.name == "adamw":
        return torch.optim.AdamW(params, fused=params[0].device.type in ("cpu", "cuda"), **common)
    try:
        import bitsandbytes as bnb
    except ImportError:
        raise DanluError(
            f"optimizer {settings.name} needs bitsandbytes",
            'pip install "danlu[cuda]", or --set sft.optimizer.name=adamw (grpo.optimizer.name for GRPO)',
        ) from None
    if settings.name == "adamw_8bit" or params[0].device.type == "cpu":
        if settings.name != "adamw_8bit":
            display.warn("paged memory needs CUDA; using the unpaged 8-bit AdamW")
        return bnb.optim.AdamW8bit(params, **common)
    return bnb.optim.PagedAdamW8bit(params, **common)


def precision(settings: Training) -> str:
    """accelerate's mixed precision: autocast for bf16 and fp16 weights where the device is fast at it."""
    kind = device().type
    if settings.precision == "fp16" and kind != "cuda":
        display.warn(f"fp16 is not usable on {kind}; using {'bf16' if native_bf16() else 'fp32'}")
        return "bf16" if native_bf16() else "no"
    if settings.precision == "auto":
        return "bf16" if native_bf16() else "fp16" if kind == "cuda" else "no"
    return {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[settings.precision]


def _forward(model: Any, settings: Training, steps: int) -> tuple[bool, Any]:
    """(whether rows are packed, the fast forward or None): compiling takes half a minute, so it must pay."""
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    if not supports(plain.config):
        return False, None
    pays = plain.config.hidden_size >= 512 and steps >= 20
    compiled = can_compile() and pays if settings.compile == "auto" else settings.compile
    return True, fast_forward(model, compiled)


class Loop:
    """The state of a training stage: weights, optimizer, step, best state, what was asked by a signal."""

    def __init__(self, run: Run, settings: Training, loaded: Loaded, steps: int, *, largest_is_best: bool) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # a process may run several stages
        self.run, self.settings, self.loaded, self.steps = run, settings, loaded, steps
        self.accelerator = Accelerator(
            mixed_precision=precision(settings),
            cpu=device().type == "cpu",
            log_with=list(settings.track) or None,
            project_dir=str(run.path),
        )
        if self.accelerator.num_processes > 1:
            raise DanluError("training runs in one process for now", "start it without torchrun / accelerate launch")
        if settings.track:
            self.accelerator.init_trackers("danlu", init_kwargs={})
        self.params = trainable(loaded.model)
        if not self.params:
            raise DanluError("nothing to train: the model has no trainable parameters", "check lora.targets")
        optimizer = make_optimizer(list(self.params.values()), settings.optimizer)
        self.fast, forward = _forward(loaded.model, settings, steps)
        scored = TokenLogProbs(loaded.model, forward, loaded.tokenizer.pad_token_id)
        self.logprobs, self.optimizer = self.accelerator.prepare(scored, optimizer)
        self.step = 0
        self.best: dict[str, Tensor] | None = None
        self.best_value: float | None = None
        self.best_step = 0
        self._sign = 1 if largest_is_best else -1
        self._signal: int | None = None
        self.tokens = 0

    # ---- resuming

    def resume(self) -> None:
        """Go on from the newest sound checkpoint, if the run has one; rows logged after it are taken back."""
        found = checkpoint.latest(self.run.checkpoints)
        step = 0
        if found is not None:
            tensors, optimizer, state, self.best = checkpoint.load(found)
            with torch.no_grad():
                for name, param in self.params.items():
                    param.copy_(tensors[name])
            self.optimizer.load_state_dict(optimizer["optimizer"])
            if optimizer.get("scaler") and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(optimizer["scaler"])
            torch.set_rng_state(optimizer["rng"])
            if torch.cuda.is_available() and optimizer.get("cuda_rng"):
                torch.cuda.set_rng_state_all(optimizer["cuda_rng"])
            self.step = step = state["step"]
            self.best_value, self.best_step, self.tokens = state["best_value"], state["best_step"], state["tokens"]
            display.say(f"resuming {self.run.path} at step {step}")
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (self.run.path / name).exists():
                self.run.truncate(name, lambda row: row.get("step", 0) <= step)

    def save(self) -> Any:
        """Write a checkpoint of the current step. A full disk ends the run; the older checkpoint stays."""
        scaler = self.accelerator.scaler
        held = {
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        state = {"best_value": self.best_value, "best_step": self.best_step, "tokens": self.tokens}
        try:
            return checkpoint.save(
                self.run.checkpoints, self.step, self.params, held, state, self.best, self.settings.keep_last
            )
        except OSError as error:
            last = checkpoint.latest(self.run.checkpoints)
            kept = f"the last good checkpoint is {last}" if last else "none was written"
            raise DanluError(
                f"cannot write a checkpoint: {error.strerror or error}", f"free some space and --resume; {kept}"
            ) from error

    # ---- one step

    def update(self, losses: Iterable[Callable[[], Tensor]]) -> tuple[float, float]:
        """One optimizer step over losses that add up to the loss of the step; (loss, gradient norm).

        DanluError on a loss or gradient that is not finite; weights and optimizer are then as before the step.
        """
        rate = learning_rate(self.settings.optimizer, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.loaded.model.train()
        total: Tensor | float = 0.0
        for loss_of in losses:
            with self.accelerator.autocast():
                loss = loss_of()
            self.accelerator.backward(loss)
            total = total + loss.detach()
        norm = self.accelerator.clip_grad_norm_(list(self.params.values()), self.settings.optimizer.clip)
        value, norm_value = float(total), float(norm) if norm is not None else 0.0
        scaling = self.accelerator.scaler is not None  # fp16: the scaler itself skips steps with overflow
        if not math.isfinite(value) or not (math.isfinite(norm_value) or scaling):
            self.optimizer.zero_grad(set_to_none=True)
            saved = self.save() if all(torch.isfinite(p).all() for p in self.params.values()) else None
            saved = saved or checkpoint.latest(self.run.checkpoints)
            raise DanluError(
                f"step {self.step + 1}: loss {value}, gradient norm {norm_value}",
                f"lower optimizer.lr or check the data; last good checkpoint: {saved or 'none'}",
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return value, norm_value

    def consider(self, value: float, keep: bool) -> None:
        """Remember the current weights if `value` is the best so far."""
        if not math.isfinite(value):
            return
        better = self.best_value is None or self._sign * value > self._sign * self.best_value
        if better:
            self.best_value, self.best_step = value, self.step
            if keep:
                self.best = {name: param.detach().cpu().clone() for name, param in self.params.items()}

    def use_best(self) -> None:
        """Put the best weights back, if any were remembered."""
        if self.best is not None:
            with torch.no_grad():
                for name, param in self.params.items():
                    param.copy_(self.best[name])

    def last(self, key: str) -> dict[str, Any]:
        """The newest row of metrics.jsonl that has `key`, else an empty one."""
        return next((row for row in reversed(self.run.metrics()) if key in row), {})

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl (and to the trackers)."""
        self.run.log(row)
        if self.settings.track:
            self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=row.get("step"))

    # ---- the run of steps

    def due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0 and self.step < self.steps

    def finish_step(self) -> None:
        """Save when it is due, at the end, or when a signal asked to stop (then raise Stopped)."""
        if self._signal is not None:
            saved = self.save()
            code = 128 + self._signal
            raise Stopped(f"stopped at step {self.step}, saved {saved}", "continue with --resume", code)
        if self.due(self.settings.save_every) or self.step == self.steps:
            self.save()  # at the end too: what cannot be delivered is not lost

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM end the run after the current step; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def asked(number: int, _frame: object) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = number
            display.say("stopping after this step; once more to stop at once")

        before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def peak_memory() -> int:
    """Peak memory of this process in bytes: CUDA's where there is CUDA, else the resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Clock:
    """Seconds since the last look."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def lap(self) -> float:
        now = time.monotonic()
        self._at, passed = now, now - self._at
        return passed
