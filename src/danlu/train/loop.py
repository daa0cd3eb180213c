"""What SFT and GRPO share: one update, the run of steps, checkpoints, signals, the best state, running out of memory.

The loop runs over accelerate (device, mixed precision, trackers) and knows nothing of what is trained: a stage gives a
function that makes a step's micro-batches, whose losses add up to the loss of the step. What is saved is always the
state of the last *rest*, a point between steps at which weights, counters, random generators and logs belong together;
so a run that was interrupted anywhere goes on to the metrics and the weights of one that was not.

Memory refused in a forward or backward: the step begins again with smaller micro-batches, whose loss is the same.
A NaN or infinite loss or gradient stops the run before the weights are touched, and the state before it is saved.
Ctrl-C and SIGTERM end the run before the next micro-batch or the next part of an evaluation, or while rollouts are
drawn, saved, with 130 or 143.

Several processes (see processes.py) do the same steps, each with its share of the forwards. What one of them meets,
a signal or the end of its memory, is agreed on by all before gradients are summed, so that none waits for another.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from danlu import display
from danlu.errors import DanluError, Stopped
from danlu.models.batch import Batch
from danlu.models.decoder import fast_forward, supports
from danlu.models.head import TokenLogProbs
from danlu.models.kernels import how
from danlu.models.liger import apply_liger
from danlu.models.load import Loaded, device, trainable
from danlu.recipe import Training
from danlu.run import Run, digest
from danlu.train import checkpoint, launcher, memory, processes, rng, sharding, trackers
from danlu.train.metrics import Parts, memory_fields
from danlu.train.optimizer import make_optimizer, precision
from danlu.train.schedule import learning_rate

LOGS = ("metrics.jsonl", "samples.jsonl")
STATE = ("step", "tokens", "halvings", "best_value", "best_step", "evaluated", "stale")  # what a checkpoint holds of us
MOST_HALVINGS = 24
ROWS_TOLD = 8  # ids in an error; all of them are in run.json
ROWS_SHOWN = 6  # steps in the table of a terminal
T = TypeVar("T")


class _Left(Exception):
    """A signal ended this process's part of what all do together; next they agree on what that means."""


def _forward(model: Any, settings: Training, steps: int) -> tuple[bool, Any]:
    """(whether rows are packed, the fast forward or None)."""
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    if not supports(plain.config):
        if settings.compile:
            apply_liger(plain, device().type)
        return False, None
    way = how(settings.compile, device().type, plain.config.hidden_size, steps)
    return True, fast_forward(model, way, hooked=processes.sharded())


class Forward(Protocol):
    """Log-probs of a Batch's targets by other means than torch; backward leaves gradients in torch's parameters."""

    def __call__(self, batch: Batch) -> tuple[Tensor, None]: ...
    def memory(self) -> dict[str, int]: ...
    def generator(self, name: str, batch: int) -> Any: ...


class Loop:
    """The state of a training stage: weights, optimizer, step, best state, what was asked by a signal.

    `halvings`: how often micro-batches were halved because memory ran out. `stale`: evaluations since the best one.
    `foreign`: what computes log-probs and gradients outside of torch (mlx); what is trained is then on the CPU.
    """

    def __init__(
        self,
        run: Run,
        settings: Training,
        loaded: Loaded,
        steps: int,
        *,
        largest_is_best: bool,
        foreign: Forward | None = None,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import ProjectConfiguration

        trackers.check(settings.track)
        AcceleratorState._reset_state(reset_partial_state=True)  # a process may run several stages
        self.run, self.settings, self.loaded, self.steps, self.foreign = run, settings, loaded, steps, foreign
        self.accelerator = Accelerator(
            mixed_precision=precision(settings) if foreign is None else "no",
            cpu=foreign is not None or device().type == "cpu",
            log_with=list(settings.track) or None,
            project_config=ProjectConfiguration(logging_dir=str(run.path / "trackers")),
        )
        started = trainable(loaded.model)
        if not started:
            raise DanluError("nothing to train: the model has no trainable parameters", "check lora.targets")
        processes.same("weights to start from", lambda: processes.checksum(started.values()))
        self.fast = False
        self.logprobs: Any = foreign
        if foreign is None:
            self.fast, forward = _forward(loaded.model, settings, steps)
            scored = TokenLogProbs(loaded.model, forward, loaded.tokenizer.pad_token_id)
            if processes.sharded():
                sharding.shard(scored, loaded.model)
            # "evaluation": mixed precision as ever, and no wrapper that would sum gradients a second time
            self.logprobs = self.accelerator.prepare_model(scored, evaluation_mode=True)
        self.params = trainable(loaded.model)
        optimizer = make_optimizer(list(self.params.values()), settings.optimizer)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.step = self.tokens = self.halvings = 0
        self.best: dict[str, Tensor] | None = None
        self.best_value: float | None = None
        self.best_step = self.evaluated = self.stale = 0
        self._sign = 1 if largest_is_best else -1
        self._signal: int | None = None
        self._resting = False  # inside at_rest
        self._apart = False  # in the part of this process of what all do together
        self._saved = -1  # the step of the newest checkpoint
        self._parts = Parts(self.accelerator.device)
        self._progress: display.Task | None = None
        self._evaluation: dict[str, float] = {}  # the figures of the newest one
        self._seed = run.info()["seed"]
        rng.seed(self._seed)
        self.rest()

    # ---- resuming

    def resume(self) -> None:
        """Go on from the newest sound checkpoint, if the run has one; what was logged after it is taken back."""
        found = processes.lead(self._newest, self._own_part)
        logged = dict.fromkeys(LOGS, 0)
        if found is not None:
            tensors, held, state, self.best = found
            with torch.no_grad():
                for name, param in self.params.items():
                    param.copy_(tensors[name])
            if self.best is not None:
                self.best = {name: sharding.local(value).cpu() for name, value in self.best.items()}
            self.optimizer.load_state_dict(held["optimizer"])
            if held.get("scaler") and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(held["scaler"])
            rng.restore(held["rng"])
            for name in STATE:
                setattr(self, name, state[name])
            self._saved, logged = self.step, state["logged"]
            display.say(f"resuming {self.run.path} at step {self.step}")
        for name, size in logged.items():
            self.run.cut(name, size)
        self.rest()
        if self.settings.track:
            trackers.start(self.accelerator, self.run, self.step)

    def _newest(self) -> Any:
        found = checkpoint.latest(self.run.checkpoints)
        return checkpoint.load(found) if found else None

    def _own_part(self, path: tuple[Any, ...], tensor: Tensor) -> Tensor:
        """What this process keeps of a tensor of `_newest`: weights, optimizer states and best weights."""
        match path:
            case (0 | 3, str(name)):
                return sharding.part(tensor, self.params[name])
            case (1, "optimizer", "state", int(place), _):
                return sharding.part(tensor, list(self.params.values())[place])
        return tensor

    def rest(self) -> None:
        """The state is whole here: what is saved before the next rest is the state of now."""
        self._rested = {name: getattr(self, name) for name in STATE}
        self._rested["logged"] = {name: self.run.size(name) for name in LOGS}
        self._rng, self._rested_best = rng.state(), self.best

    @property
    def rested_rng(self) -> dict[str, Any]:
        """Where the random generators stood at the last rest."""
        return self._rng

    def save(self) -> Path:
        """Write a checkpoint of the last rest. A full disk ends the run; the older checkpoint stays."""
        tensors, states, best = dict(self.params), self.optimizer.state_dict(), self._rested_best
        if processes.sharded():
            if best is not None:
                best = {name: sharding.as_whole(value, self.params[name]) for name, value in best.items()}
            tensors, states, best = sharding.collected(tensors), sharding.collected(states), sharding.collected(best)
        saved = processes.lead(lambda: self._save(tensors, states, best))
        self._saved = self.step
        return saved

    def _save(self, tensors: dict[str, Tensor], states: dict[str, Any], best: dict[str, Tensor] | None) -> Path:
        scaler = self.accelerator.scaler
        held = {
            "optimizer": states,
            "rng": self._rng,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        state = {name: value for name, value in self._rested.items() if name != "step"}
        try:
            self.run.sync(LOGS)
            return checkpoint.save(self.run.checkpoints, self.step, tensors, held, state, best, self.settings.keep_last)
        except OSError as error:
            last = checkpoint.latest(self.run.checkpoints)
            kept = f"the last good checkpoint is {last}" if last else "none was written"
            raise DanluError(
                f"cannot write a checkpoint: {error.strerror or error}", f"free some space and --resume; {kept}"
            ) from error

    # ---- one step

    def update(
        self, losses: Callable[[int], Iterable[Callable[[], Tensor]]], rows: Sequence[str] = ()
    ) -> tuple[float, float]:
        """One optimizer step; (loss, gradient norm before clipping).

        `losses` of a number of halvings gives the micro-batches of this process: functions whose results add up, over
        all processes, to the loss of the step. When memory runs out the step begins again with one halving more.
        `rows` are the ids of the step's rows.
        DanluError on a loss or gradient that is not finite, weights and optimizer are then as before the step; and
        when micro-batches cannot be halved further. Stopped when a signal asked for it.
        """
        rate = learning_rate(self.settings.optimizer, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if not self.loaded.model.training:
            self.loaded.model.train()
        if not processes.first():  # dropout: not the masks of the first process, and the same ones after a resume
            rng.seed(int(digest([self._seed, self.step, processes.rank()]), 16))
        start = rng.state()
        while True:
            found, ran_out = self._tried(losses(self.halvings))
            (out,) = self._meet(ran_out)
            if not out:
                break
            self._halve(losses, ran_out)
            rng.restore(start)
        if processes.count() > 1:
            found = [torch.stack(found).sum() if found else torch.zeros((), device=self.accelerator.device)]
            # shards of gradients were added up by the backward pass
            processes.add_up([] if processes.sharded() else list(self.params.values()), found[0])
        norm = sharding.whole(
            self.accelerator.clip_grad_norm_(list(self.params.values()), self.settings.optimizer.clip)
        )
        figures = torch.stack([*found, norm.to(found[0])]).tolist()  # the one time that the device is waited for
        value, norm_value = math.fsum(figures[:-1]), figures[-1]
        scaling = self.accelerator.scaler is not None  # fp16: the scaler itself skips steps with overflow
        if not math.isfinite(value) or not (math.isfinite(norm_value) or scaling):
            raise self._not_finite(value, norm_value, rows)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._parts.ended("optimizer_seconds")
        self.step += 1
        return value, norm_value

    def _tried(self, losses: Iterable[Callable[[], Tensor]]) -> tuple[list[Tensor], bool]:
        """(what `_gradients` gives, False), or (nothing, True) where memory ran out."""
        self._apart = True
        try:
            return self._gradients(losses), False
        except _Left:
            return [], False
        except Exception as error:
            if not memory.ran_out(error) or processes.sharded():
                raise
        finally:
            self._apart = False
        return [], True  # out here the error is gone, and with it what its frames held

    def _gradients(self, losses: Iterable[Callable[[], Tensor]]) -> list[Tensor]:
        """Backward through every loss; the losses, still on the device."""
        found = []
        for loss_of in losses:
            self.breathe()
            self._parts.start()
            with self.accelerator.autocast():
                loss = loss_of()
            self._parts.ended("forward_seconds")
            self.accelerator.backward(loss * processes.count() if processes.sharded() else loss)  # there it averages
            self._parts.ended("backward_seconds")
            found.append(loss.detach().float())
        return found

    def _halve(self, losses: Callable[[int], Iterable[Any]], ran_out: bool) -> None:
        """The next number of halvings that makes more, smaller forwards where memory `ran_out`; DanluError if there is
        none."""
        self.optimizer.zero_grad(set_to_none=True)
        memory.release()

        def forwards(halvings: int) -> int:
            return sum(1 for _ in losses(halvings))

        before, wanted = forwards(self.halvings), float(self.halvings)
        if ran_out:
            more = range(self.halvings + 1, self.halvings + 1 + MOST_HALVINGS)
            wanted = next((halvings for halvings in more if forwards(halvings) > before), math.inf)
        (wanted,) = processes.most(wanted)
        if wanted < math.inf:
            was, now = processes.total(before, forwards(int(wanted)))
            self.halvings = int(wanted)
            display.warn(
                f"step {self.step + 1}: out of memory with {was:.0f} forwards a step; going on with {now:.0f}, "
                "the batch and its loss stay the same"
            )
            return
        what = f"step {self.step + 1}: out of memory, and the micro-batches cannot be smaller (one row a forward)"
        raise DanluError(what, f"{memory.HINT}; {self._last_good()}")

    def _not_finite(self, value: float, norm: float, rows: Sequence[str]) -> DanluError:
        self.optimizer.zero_grad(set_to_none=True)
        finite = all(bool(sharding.local(param).isfinite().all()) for param in self.params.values())
        if self.step == self._rested["step"] and not processes.most(not finite)[0]:
            self.save()
        what = f"step {self.step + 1}: loss {value}, gradient norm {norm}"
        if rows:
            self.run.record(not_finite={"step": self.step + 1, "rows": list(rows)})
            more = (
                f" and {len(rows) - ROWS_TOLD} more (results.not_finite in run.json)" if len(rows) > ROWS_TOLD else ""
            )
            what += f"; its rows: {', '.join(rows[:ROWS_TOLD])}{more}"
        return DanluError(what, f"lower optimizer.lr or check those rows; {self._last_good()}")

    def _last_good(self) -> str:
        return f"last good checkpoint: {checkpoint.latest(self.run.checkpoints) or 'none'}"

    def measures(self) -> dict[str, float]:
        """What the last update took: seconds of its parts, bytes (the most of all processes); for the step's row."""
        held = self.memory()
        most = map(int, processes.most(*held.values()))
        return {name: round(value, 6) for name, value in self._parts.seconds().items()} | dict(
            zip(held, most, strict=True)
        )

    def memory(self) -> dict[str, int]:
        """Bytes held, and held at most."""
        return memory_fields() if self.foreign is None else self.foreign.memory()

    # ---- the best state

    def consider(self, value: float, keep: bool) -> None:
        """Remember the current weights if `value` is the best so far."""
        if math.isfinite(value) and (self.best_value is None or self._sign * value > self._sign * self.best_value):
            self.best_value, self.best_step, self.stale = value, self.step, 0
            if keep:
                self.best = {name: sharding.local(param).cpu().clone() for name, param in self.params.items()}
        else:
            self.stale += 1

    def use_best(self) -> None:
        """Put the best weights back, if any were remembered."""
        if self.best is not None:
            with torch.no_grad():
                for name, param in self.params.items():
                    sharding.local(param).copy_(self.best[name])

    # ---- what is written

    def last(self, key: str) -> dict[str, Any]:
        """The newest row of metrics.jsonl that has `key`, else an empty one."""
        return processes.lead(lambda: next((row for row in reversed(self.run.metrics()) if key in row), {}))

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl (and to the trackers)."""
        self.run.log(row)
        if self.settings.track:
            trackers.log(self.accelerator, row)

    # ---- the run of steps

    @property
    def stopped_early(self) -> bool:
        return bool(self.settings.patience) and self.stale >= self.settings.patience and self.step < self.steps

    def go(
        self,
        name: str,
        step: Callable[[], dict[str, Any]],
        evaluate: Callable[[], dict[str, float]] | None = None,
        best_on: str = "",
        keep: bool = False,
    ) -> None:
        """Do steps to the end: evaluate, save and stop when that is due.

        `step` updates, logs and gives the figures to show; `evaluate` gives figures to log, of which `best_on` decides
        what is best; with `keep` the best weights are remembered. It runs every `eval_every` steps and at the end.
        """
        with self.running(name, best_on):
            self.pause(evaluate, best_on, keep)
            while self.step < self.steps and not self.stopped_early:
                before = self.step
                shown = step()
                self.show(self.step - before, **shown)
                self.pause(evaluate, best_on, keep)

    @contextmanager
    def running(self, name: str, best_on: str = "") -> Iterator[None]:
        """A block in which steps are made: signals stop it, progress is shown, memory that runs out is told."""
        try:
            with self._signals(), display.task(name, self.steps, ROWS_SHOWN) as self._progress:
                self._progress.advance(self.step)
                yield
        except BaseException as error:
            trackers.finish(self.accelerator)
            if gone := processes.lost(error):
                raise gone from error
            # what an update refuses is met there; this was a generation, an evaluation, the optimizer
            if isinstance(error, DanluError) or not memory.ran_out(error):
                raise
            raise DanluError(f"out of memory after step {self.step}", f"{memory.HINT}; {self._last_good()}") from error
        if self.stopped_early:
            display.say(f"stopped at step {self.step}: {self.stale} evaluations without a better {best_on}")

    def show(self, steps: int, **figures: Any) -> None:
        """Progress by so many steps, with their figures and those of the newest evaluation."""
        told = {name: value for name, value in self._evaluation.items() if "/" not in name}
        if self._progress:
            self._progress.advance(steps, **figures, **told)

    def pause(self, evaluate: Callable[[], dict[str, float]] | None, best_on: str, keep: bool) -> None:
        """Between two steps (see `go`): evaluate, stop, save."""
        self.rest()
        at_end = self.step == self.steps
        if evaluate and self.evaluated < self.step and (at_end or self._due(self.settings.eval_every)):
            self._evaluation = evaluate()
            self.evaluated = self.step
            self.log({"step": self.step, **self._evaluation})
            self.consider(self._evaluation[best_on], keep)
            self.rest()
        self._meet()
        # at the end too: what cannot be delivered is not lost
        if self._saved != self.step and (at_end or self.stopped_early or self._due(self.settings.save_every)):
            self.save()

    def _due(self, every: int) -> bool:
        return bool(every) and self.step > 0 and self.step % every == 0

    def breathe(self, **shown: Any) -> None:
        """A place to stop at: Stopped, with a checkpoint, if a signal asked for it and the weights are those of the
        last rest. `shown` goes beside the progress bar."""
        if shown and self._progress:
            self._progress.advance(0, **shown)
        if processes.count() == 1:
            self._stop()
        elif self._apart and self._asked() and not processes.sharded():
            raise _Left

    def _asked(self) -> bool:
        return self._signal is not None and self.step == self._rested["step"]

    def _stop(self) -> None:
        if not self._asked():
            return
        assert self._signal is not None
        saved = self.save()
        raise Stopped(f"stopped at step {self.step}, saved {saved}", "continue with --resume", 128 + self._signal)

    def _meet(self, *flags: float) -> list[float]:
        """The greatest of each flag over all processes; Stopped in all of them if a signal asked one for it."""
        asked, *found = processes.most(self._signal or 0, *flags)
        if asked:  # one that came to this process since it was asked is heard at the next meeting
            self._signal = int(asked)
            self._stop()
        return found

    def together(self, part: Callable[[], T]) -> list[T]:
        """What `part` gives in each process, in all of them. A signal ends the part that it meets, then the run; so
        does a DanluError."""
        if processes.count() == 1:
            return [part()]
        done: tuple[Any, DanluError | None] = None, None
        try:
            self._apart = True
            done = part(), None
            self._apart = False
        except _Left:
            pass
        except DanluError as error:
            done = None, error
        finally:
            self._apart = False
        self._meet()
        told = processes.gather(done)
        for _, failure in told:
            if failure is not None:
                raise failure
        return [value for value, _ in told]

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """A block, maybe a long one, that changes neither weights nor logs: a signal ends it at once, and an error of
        the user's own is told after the steps before it were saved."""
        self._resting = True
        try:
            yield
        except DanluError as error:
            if not isinstance(error, Stopped) and self.step > 0 and self._saved != self.step:
                self.save()
            raise
        finally:
            self._resting = False

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM end the run at the next `breathe`; a second one ends it at once, if it is not the
        first one again from a launcher."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        heard = math.inf

        def asked(number: int, _frame: object) -> None:
            nonlocal heard
            now = time.monotonic()
            heard = min(heard, now)
            if self._signal is not None:  # maybe by another process
                if launcher.launched() and now < heard + launcher.ECHO:
                    return
                raise Stopped("stopped at once", f"continue with --resume; {self._last_good()}", 128 + number)
            self._signal = number
            display.say("saving, then stopping; once more to stop at once")
            if self._resting:
                self._resting = processes.count() > 1  # there it is a part that ends, once it is one
                self.breathe()

        before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._signal is not None and launcher.launched():
                launcher.ignore_signals()
