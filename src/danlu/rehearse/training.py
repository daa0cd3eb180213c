"""Training in a rehearsal: two optimizer steps on few rows, and once more with a kill in between.

The same recipe runs twice: here, undisturbed, and in a process of its own that is killed (SIGKILL) while it writes
what it logged of step 2, then resumed here from its checkpoint of step 1. Both must end with the same figures, the
same samples and, on a CPU, the same bytes.
Not covered: several processes, trackers (nothing is sent), compiled kernels, how fast and how large the real run is.
"""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from danlu.errors import DanluError, Stopped
from danlu.recipe import AnyReward, Recipe
from danlu.rehearse.book import Book, Page
from danlu.rehearse.model import START, StandIn
from danlu.rehearse.rows import Rows, written
from danlu.run import Run, file_sha256, write_json

STEPS = 2
LARGE = 32_000  # tokens of a vocabulary from which on completions are short and groups small
PATIENCE = 300  # seconds of computing for the process that is to be killed, or of doing nothing
IDLE = 1.0  # seconds that one which stands still may compute in that time
FIGURES = (  # what a resumed run must repeat; seconds and memory need not
    *("step", "epoch", "loss", "grad_norm", "lr", "tokens", "eval_loss", "eval_accuracy"),
    *("kl", "reward", "reward_std", "completion_length"),
)


# ---- the recipe, small


def small(recipe: Recipe, stand: StandIn, rows: Rows, folder: Path, rewards: list[AnyReward], book: Book) -> Recipe:
    """The recipe on the stand-in and the few rows (written to `folder`), two steps a stage, everything else kept."""
    value = recipe.resolved()

    def source(name: str) -> list[dict[str, Any]]:
        kept = getattr(rows, name)
        return [written(folder / f"{name}.jsonl", kept).model_dump(mode="json")] if kept else []

    own = stand.own_words  # else lengths in tokens are not the real ones, and nothing may be dropped for them
    value["model"] = stand.spec.model_dump(mode="json")
    value["data"] |= {"train": source("train"), "valid": source("valid"), "valid_fraction": 0, "columns": {}}
    value["data"] |= {"on_bad_row": "error", "redact": False, "decontaminate": False}
    value["data"] |= {} if own else {"max_length": max(recipe.data.max_length, rows.longest + 1)}
    of_a_step = max(1, math.ceil(rows.fitting / STEPS))
    size = min(of_a_step, recipe.sft.batch_size)
    value["sft"] |= _shared(recipe.sft, bool(rows.valid or rows.watched), "sft", book)
    value["sft"] |= {"batch_size": size, "accumulation": math.ceil(of_a_step / size)}
    value["sft"] |= {"watch": source("watched")} if recipe.sft.watch else {}
    value["grpo"] |= _shared(recipe.grpo, bool(rows.held_out), "grpo", book)
    value["grpo"] |= {"data": source("prompts"), "valid": source("held_out"), "prompts": 1}
    tokens, group = (40, 4) if len(stand.speech.tokenizer) > LARGE else (160, 8)
    value["grpo"] |= {"max_completion": min(tokens, recipe.grpo.max_completion)}
    value["grpo"] |= {} if own else {"max_prompt": max(recipe.grpo.max_prompt, rows.longest + 1)}
    for key, most in (("group", group), ("iterations", 2), ("micro_batch", 8), ("rollout_batch", 64)):
        value["grpo"][key] = min(most, value["grpo"][key])
    if recipe.grpo.filter:
        book.skip("grpo.filter: random weights answer nothing right, so no prompt would be kept")
        value["grpo"]["filter"] = None
    # random weights earn nothing: a little for being brief lets the completions of a group differ
    brief = {"name": "length", "weight": 0.01, "low": 0, "high": value["grpo"]["max_completion"] + 1}
    value["grpo"]["rewards"] = [*(spec.model_dump(mode="json") for spec in rewards), brief]
    asked: dict[str, Any] = {"suite": None, "benchmarks": [], "max_tokens": min(tokens, recipe.eval.max_tokens)}
    value["eval"] |= {**asked, "samples": min(2, recipe.eval.samples), "shuffles": min(1, recipe.eval.shuffles)}
    return Recipe.model_validate(value)


def _shared(settings: Any, evaluates: bool, name: str, book: Book) -> dict[str, Any]:
    """What both training stages do differently in a rehearsal. Compiling would take longer than all the rest."""
    if settings.compile is True:
        book.skip(f"{name}.compile: compiled kernels")
    if settings.track:
        book.skip(f"{name}.track: nothing is sent to {', '.join(settings.track)}")
    patience = 99 if settings.patience else 0
    found = {"save_every": 1, "eval_every": int(evaluates or bool(patience)), "patience": patience, "track": []}
    return {**found, "steps": STEPS, "compile": False if settings.compile is True else settings.compile}


# ---- a stage


def stage_function(stage: str) -> Callable[[Recipe, Run, str | None], dict[str, Any]]:
    from danlu.train.grpo import grpo
    from danlu.train.sft import sft

    return {"sft": sft, "grpo": grpo}[stage]


class Victim:
    """The process that will be killed. It comes up at once and waits to be told what to train."""

    def __init__(self) -> None:
        # as many threads as here: the order of sums, and with it the last bit, depends on them
        environment = os.environ | {"OMP_NUM_THREADS": str(_threads())}
        command = [sys.executable, "-m", "danlu.rehearse.killed"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, env=environment, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe, text=True
        )

    def train(self, file: Path) -> None:
        """Begin with what `file` says."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{file}\n")
        self._process.stdin.flush()

    def wait(self) -> tuple[int, str]:
        """(exit status, what it said last) of the process, once it has ended.

        TimeoutExpired when it has computed for PATIENCE, or done nothing for as long: a busy machine is no fault of it.
        """
        before = 0.0
        while True:
            try:
                _, told = self._process.communicate(timeout=PATIENCE)
                return self._process.returncode, (told.strip().splitlines() or ["nothing was said"])[-1]
            except subprocess.TimeoutExpired:
                times = psutil.Process(self._process.pid).cpu_times()
                used = times.user + times.system
                if used > PATIENCE * _threads() or used - before <= IDLE:
                    raise
                before = used

    def end(self) -> None:
        """End the process, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def _threads() -> int:
    """torch's threads, without importing it where the environment says how many."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal():
        return int(given)
    import torch

    return torch.get_num_threads()


@dataclass(frozen=True, slots=True)
class Act:
    """A training stage of a rehearsal: the undisturbed run `whole`, and the run `parts` of the victim."""

    stage: str
    recipe: Recipe
    folder: Path
    start: str | None
    victim: Victim

    @property
    def whole(self) -> Path:
        return self.folder / self.stage

    @property
    def parts(self) -> Path:
        return self.folder / f"{self.stage}-killed"


def train(act: Act, real: Recipe, page: Page) -> str | None:
    """Two steps undisturbed, and at the same time in the other process; the run, None where it failed."""
    run = Run.create(act.whole, act.stage, act.recipe.resolved(), seed=act.recipe.seed)
    told = {"recipe": act.recipe.resolved(), "stage": act.stage, "run": str(act.parts), "start": act.start}
    file = act.folder / f"{act.stage}-killed.json"
    write_json(file, told)
    act.victim.train(file)
    try:
        with run.recording():
            run.record(**stage_function(act.stage)(act.recipe, run, act.start))
    except Stopped:
        raise
    except Exception as error:
        page.failed(_when(act.stage, run, real), error)
        return None
    settings = getattr(real, act.stage)
    if settings.method == "lora" and (missing := left_out(act.whole, settings.lora.targets)):
        what = f"{act.stage}.lora.targets: the model has no {', '.join(missing)}, which is left out without a word"
        page.warning(f"{START} of {act.stage}", what, "correct the names")
    if act.stage == "grpo" and not any(row.get("grad_norm") for row in run.metrics()):
        page.info("", "all rewards of a group were equal, so no gradient was rehearsed")
    return str(act.whole)


def left_out(run: Path, targets: Sequence[str]) -> list[str]:
    """LoRA targets that match no module of the model: peft is content with one that does."""
    from safetensors import safe_open

    with safe_open(run / "artifact" / "adapter_model.safetensors", "pt") as file:
        modules = {key.partition(".lora_")[0] for key in file.keys()}  # noqa: SIM118  (it is not iterable)
    return [one for one in targets if not any(f".{name}".endswith(f".{one}") for name in modules)]


def tells_of_the_recipe(warning: str) -> bool:
    """Whether a warning is not a count of the few rows that are trained on here."""
    return re.match(r"(of )?\d+ ", warning) is None


def _when(stage: str, run: Run, real: Recipe) -> str:
    """How far the run came, as the moment in the real run."""
    rows = [row for row in run.metrics() if "loss" in row]
    every = getattr(real, stage).save_every
    if not rows:
        return f"{START} of {stage}, before its first step is done"
    if not any(run.checkpoints.glob("step_*")):
        return f"{stage}, at the first checkpoint ({f'step {every}' if every else 'the last step'})"
    return f"{stage}, after the last step" if len(rows) >= STEPS else f"{stage}, while training"


# ---- killed and resumed


def resume(act: Act, page: Page) -> None:
    """Wait for the other process to die, go on with its run here, and hold it against the undisturbed one."""
    when = f"{act.stage}, after an interruption"
    try:
        status, last = act.victim.wait()
    except subprocess.TimeoutExpired:
        page.error(when, f"a second process did not reach step {STEPS} in {PATIENCE} s of computing")
        return
    if status != -signal.SIGKILL:
        page.error(when, f"the process to be killed ended by itself ({status}): {last}")
        return
    if not any(act.parts.glob("checkpoints/step_000001/manifest.json")):
        page.error(when, "no checkpoint of step 1 was left by the killed process")
    if Run(act.parts).state() != "died":
        page.error(when, f"the killed run says that it is {Run(act.parts).state()}")
    run = Run.create(act.parts, act.stage, act.recipe.resolved(), seed=act.recipe.seed, resume=True)
    try:
        with run.recording():
            run.record(**stage_function(act.stage)(act.recipe, run, act.start))
    except DanluError as error:
        page.failed(when, error)
        return
    for different in differences(Run(act.whole), run):
        page.error(when, f"the resumed run is not the undisturbed one: {different}", "this is a bug, please report it")


def differences(whole: Run, parts: Run) -> list[str]:
    """Where a resumed run differs from an undisturbed one; exact on a CPU, within 1 % on other devices."""
    from danlu.models.load import device

    exact = device().type == "cpu"
    sides = [[{k: row[k] for k in FIGURES if k in row} for row in run.metrics()] for run in (whole, parts)]
    if len(sides[0]) != len(sides[1]):
        return [f"{len(sides[0])} rows of metrics, then {len(sides[1])}"]
    found = []
    for a, b in zip(*sides, strict=True):
        for key in dict.fromkeys([*a, *b]):
            if not _same(a.get(key), b.get(key), exact):
                found.append(f"{key} of step {a.get('step')} is {a.get(key)}, then {b.get(key)}")
    if exact and whole.samples() != parts.samples():
        found.append("samples.jsonl")
    if exact:
        names = sorted(file.name for file in whole.artifact.glob("*.safetensors"))
        found += [n for n in names if file_sha256(whole.artifact / n) != file_sha256(parts.artifact / n)]
    return found


def _same(a: Any, b: Any, exact: bool) -> bool:
    if exact or not (isinstance(a, float) and isinstance(b, float)):
        return bool(a == b)
    return abs(a - b) <= 0.01 * max(abs(a), abs(b), 1e-6)
