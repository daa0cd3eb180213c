"""`grpo.engine: trl`: TRL's GRPOTrainer makes the steps, everything around them stays ours.

TRL samples (transformers' generate, or vLLM with `grpo.generate: vllm`), scores, computes its loss and steps the
optimizer. Prompts, their order and ids, think-format, rewards, advantages' inputs, figures, samples, checkpoints, the
evaluation and what is delivered are those of our own engine; a resumed run goes on exactly, since every step begins
from the random state that the checkpoint holds.

Differences from our engine: a cut completion's tokens are masked in attention too; ratios correct for decoding only
with vLLM; a completion without a reward still counts in the denominator; micro-batches are completions, the largest
number up to grpo.micro_batch that divides a step. Not covered: dynamic sampling, KL on top of an earlier adapter,
several processes. vLLM needs a GPU; its options are handed on unchanged and were not tried by our tests.
"""

from __future__ import annotations

import contextlib
import difflib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

from danlu.data.render import prompt_text
from danlu.errors import DanluError
from danlu.generate.decode import Decoded
from danlu.models.load import Loaded
from danlu.recipe import Grpo
from danlu.train import processes, rng
from danlu.train.grpo import Question, Watcher, objective_of
from danlu.train.loop import Loop
from danlu.train.optimizer import precision
from danlu.train.policy import advantages
from danlu.train.rollout import Rollout, Source, described, rewards_of, scales, told
from danlu.train.schedule import learning_rate, row_order

NAMES = {  # TRL's figures under our names
    "loss": "loss",
    "grad_norm": "grad_norm",
    "kl": "kl",
    "entropy": "entropy",
    "clip_ratio/low_mean": "clip_low",
    "clip_ratio/high_mean": "clip_high",
    "sampling/sampling_logp_difference/mean": "importance_difference",
    "sampling/sampling_logp_difference/max": "importance_largest",
}


def check(settings: Grpo, start: str | None) -> None:
    """DanluError for what is not installed, or cannot be done with this engine."""
    if find_spec("trl") is None:
        raise DanluError("grpo.engine: trl needs trl", 'pip install "danlu[trl]", or grpo.engine: danlu')
    if settings.generate == "vllm" and find_spec("vllm") is None:
        raise DanluError("grpo.generate: vllm needs vllm", 'pip install "danlu[vllm]" (CUDA), or grpo.generate: local')
    if processes.count() > 1:
        raise DanluError("grpo.engine: trl runs in one process here", "grpo.engine: danlu trains in several")
    if settings.resample:
        raise DanluError("TRL has no dynamic sampling", "grpo.resample: 0, or grpo.engine: danlu")
    if settings.kl and settings.method == "full":
        raise DanluError("grpo.kl needs a LoRA adapter as what is trained", "use method: lora, or kl: 0")
    if settings.kl and start is not None:
        raise DanluError(
            "TRL measures KL to the base, not to the adapter that training starts from",
            "grpo.kl: 0, merge that run first (danlu merge RUN), or grpo.engine: danlu",
        )
    from trl import GRPOConfig

    known = [field.name.removeprefix("vllm_") for field in fields(GRPOConfig) if field.name.startswith("vllm_")]
    for name in settings.vllm:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"options of GRPOConfig: {', '.join(known)}"
            raise DanluError(f"TRL has no option vllm_{name}", hint)


def go(
    loop: Loop, source: Source, watcher: Watcher, seen: int, evaluate: Callable[[], dict[str, float]] | None
) -> None:
    """The steps that are left, by TRL, after `seen` prompts of the stream."""
    settings = source.settings
    with loop.running("grpo", "eval_accuracy"):
        loop.pause(evaluate, "eval_accuracy", settings.keep_best)
        if loop.step < loop.steps and not loop.stopped_early:
            steps = Steps(loop, source, watcher, seen, evaluate)
            with quiet():
                trainer(steps).train()


@dataclass
class Steps:
    """What TRL's hooks share: the rollouts of the step that is being made, and when its parts ended."""

    loop: Loop
    source: Source
    watcher: Watcher
    seen: int
    evaluate: Callable[[], dict[str, float]] | None
    groups: list[list[Rollout]] | None = None
    began: float = 0.0
    sampled: float = 0.0
    scored: float = 0.0

    def begin(self) -> None:
        """A step begins; generation draws from the random state of the last rest, also in a resumed run."""
        if self.groups is None:
            rng.restore(self.loop.rested_rng)
            self.began = time.perf_counter()

    def reward(self, place: list[int], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        """TRL's reward function: totals of the recipe's rewards; `place` in the questions of each completion."""
        self.sampled = time.perf_counter()
        generator, settings = self.source.generator, self.source.settings
        ends = set(generator.loaded.end_ids)
        completions = [generator.completion(Decoded(list(ids), [], ids[-1] in ends)) for ids in completion_ids]
        questions = [self.source.questions[index] for index in place]
        with self.loop.at_rest():
            scored = self.source.rewards.score_all([s for s, _ in questions], completions, generator.think)
        rollouts = [
            Rollout(*question, one, points.total, points.parts)
            for question, one, points in zip(questions, completions, scored, strict=True)
        ]
        self.groups = [rollouts[at : at + settings.group] for at in range(0, len(rollouts), settings.group)]
        self.seen += len(self.groups)
        self.scored = time.perf_counter()
        return [points.total for points in scored]

    def ended(self, logs: dict[str, float]) -> bool:
        """TRL has made an optimizer step; whether to stop. What iterations do is told at the last one of a step."""
        loop, settings, groups = self.loop, self.source.settings, self.groups
        rate = learning_rate(settings.optimizer, loop.step, loop.steps)
        loop.step += 1
        if groups is None:
            raise DanluError("TRL made a step without asking for rewards", "this TRL is not known: try trl 1.16")
        if loop.step % settings.iterations and loop.step < loop.steps:
            return False
        rewards = rewards_of(groups)
        for group, values in zip(groups, advantages(rewards, scales(settings)).tolist(), strict=True):
            for rollout, value in zip(group, values, strict=True):
                rollout.advantage = value
        row = {"step": loop.step, **described(groups, rewards), **self._figures(logs), "lr": rate}
        row |= self.source.rewards.usage()
        tokens = sum(len(rollout.completion.tokens) for group in groups for rollout in group)
        loop.tokens += tokens
        row |= {"prompts_seen": self.seen, **self._seconds(tokens), **loop.measures()}
        loop.log(row)
        loop.run.write_samples(told(loop.step, loop.steps, groups))
        self.watcher.look(row)
        self.groups = None
        loop.show(settings.iterations, reward=row["reward"], length=row["completion_length"])
        loop.pause(self.evaluate, "eval_accuracy", settings.keep_best)
        return loop.stopped_early

    def _figures(self, logs: dict[str, float]) -> dict[str, float]:
        found = {ours: float(logs[theirs]) for theirs, ours in NAMES.items() if logs.get(theirs) is not None}
        found.setdefault("kl", 0.0)
        found["clip_fraction"] = found.get("clip_low", 0.0) + found.get("clip_high", 0.0)
        return found

    def _seconds(self, tokens: int) -> dict[str, float]:
        ended = time.perf_counter()
        parts = {"rollout": (self.began, self.sampled), "reward": (self.sampled, self.scored)}
        parts["update"] = (self.scored, ended)
        found = {f"{name}_seconds": round(last - first, 3) for name, (first, last) in parts.items()}
        speed = tokens / max(self.sampled - self.began, 1e-9)
        return {**found, "rollout_tokens_per_second": round(speed, 1)}


# ---- TRL's trainer


def trainer(steps: Steps) -> Any:
    """A GRPOTrainer for the steps that are left."""
    from datasets import Dataset
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    loop, source = steps.loop, steps.source
    settings, loaded = source.settings, loop.loaded
    left = loop.steps - loop.step
    count = settings.prompts * -(-left // settings.iterations)
    order = [index for _, index in row_order(len(source.questions), source.seed, steps.seen, steps.seen + count)]
    texts = prompt_texts(loaded, source.questions)
    loaded.model.generation_config.eos_token_id = list(loaded.end_ids)

    class Hooks(TrainerCallback):  # TRL takes nothing but heirs of this class
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            steps.begin()

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> Any:  # noqa: ARG002
            if "loss" in (given.get("logs") or {}):
                control.should_training_stop = steps.ended(given["logs"]) or control.should_training_stop
            return control

    def reward(**given: Any) -> list[float | None]:
        return steps.reward(**given)

    optimizer = loop.optimizer
    for group in optimizer.param_groups:  # a checkpoint holds the rate of its step
        group["lr"] = settings.optimizer.lr
        group.pop("initial_lr", None)
    first = loop.step
    scheduler = LambdaLR(
        optimizer, lambda n: learning_rate(settings.optimizer, first + n, loop.steps) / settings.optimizer.lr
    )
    made = GRPOTrainer(
        loaded.model,
        reward_funcs=reward,
        args=GRPOConfig(**options(settings, loop, left)),
        train_dataset=Dataset.from_dict({"prompt": [texts[i] for i in order], "place": order}),
        processing_class=loaded.tokenizer,
        callbacks=[Hooks()],
        optimizers=(optimizer, scheduler),
    )
    made.remove_callback(PrinterCallback)  # it writes to stdout
    made.beta = settings.kl  # given to the config it would copy the adapter, which starts at nothing, as a reference
    return made


def options(settings: Grpo, loop: Loop, left: int) -> dict[str, Any]:
    """GRPOConfig's options for the `left` steps of a recipe."""
    objective, mixed = objective_of(settings), precision(settings)
    size = settings.prompts * settings.group
    micro = max(n for n in range(1, min(settings.micro_batch, size) + 1) if size % n == 0)
    return {
        "output_dir": str(loop.run.path / "checkpoints"),  # nothing is written there by TRL
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "max_steps": left,
        "seed": loop.run.info()["seed"] % 2**32,
        "use_cpu": loop.accelerator.device.type == "cpu",
        "bf16": mixed == "bf16",
        "fp16": mixed == "fp16",
        "gradient_checkpointing": settings.gradient_checkpointing is True,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": size // micro,
        "num_generations": settings.group,
        "num_iterations": settings.iterations,
        "max_completion_length": settings.max_completion,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_grad_norm": settings.optimizer.clip,
        "shuffle_dataset": False,  # the rows come in our order
        "loss_type": "grpo" if settings.loss == "gspo" else settings.loss,
        "importance_sampling_level": "sequence" if settings.loss == "gspo" else "token",
        "epsilon": objective.low,
        "epsilon_high": objective.high,
        "scale_rewards": "group" if scales(settings) else "none",
        "mask_truncated_completions": settings.mask_truncated,
        "use_bias_correction_kl": False,
        **(_vllm(settings) if settings.generate == "vllm" else {}),
    }


def _vllm(settings: Grpo) -> dict[str, Any]:
    """Options of vLLM: our importance correction, and the recipe's own unchanged."""
    correction = {
        "vllm_importance_sampling_correction": settings.importance != "off",
        "vllm_importance_sampling_mode": f"{'sequence' if settings.importance == 'sequence' else 'token'}_truncate",
        "vllm_importance_sampling_clip_max": settings.importance_cap,
    }
    return {"use_vllm": True, **correction, **{f"vllm_{name}": value for name, value in settings.vllm.items()}}


def prompt_texts(loaded: Loaded, questions: list[Question]) -> list[str]:
    """Texts that TRL's call of the tokenizer turns into exactly the ids of our prompts; DanluError else."""
    tokenizer = loaded.tokenizer
    texts = [prompt_text(tokenizer, loaded.think, sample.messages) for sample, _ in questions]
    if tokenizer.bos_token and tokenizer(texts[0])["input_ids"] != questions[0][1]:  # it puts a second one in front
        texts = [text.removeprefix(tokenizer.bos_token) for text in texts]
    for (sample, ids), found in zip(questions, tokenizer(texts)["input_ids"], strict=True):
        if found != ids:
            raise DanluError(f"TRL would read the prompt of {sample.id} as other tokens", "use grpo.engine: danlu")
    return texts


@contextlib.contextmanager
def quiet() -> Any:
    """TRL and transformers speak by their own channels; what matters is told by ours."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
