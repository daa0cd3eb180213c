"""Signs that a GRPO run goes wrong, read off the rows of metrics.jsonl; each with what to do next.

    flat        all rewards of every group were equal over the last steps: nothing is learnt
    cut         nearly all completions reached the token limit over the last steps
    entropy     the policy hardly explores any more: a tenth of what it was in the first steps
    length      completions are twice as long as in the first steps and near the limit
    apart       rewards rise while held-out accuracy falls: the reward is gamed, or the prompts learnt by heart
    task        one task's held-out accuracy falls while the whole does not

A sign is not a verdict: the thresholds are meant to be reached by hardly any run that goes well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from danlu.recipe import Grpo

Row = Mapping[str, Any]
WINDOW = 5  # steps
LEAST = 0.05  # of accuracy that must be lost to be told


def signs(rows: Sequence[Row], settings: Grpo, sizes: Mapping[str, int]) -> dict[str, str]:
    """Code -> text of the signs in a run's rows so far (steps and evaluations, oldest first).

    `sizes`: how many held-out questions there are of each task, "" for all of them.
    """
    steps = [row for row in rows if "completion_length" in row]
    evaluations = [row for row in rows if "eval_accuracy" in row]
    found: dict[str, str] = {}
    if len(steps) >= WINDOW:
        found |= _of_steps(steps, settings)
    if len(evaluations) >= 2:
        found |= _of_evaluations(steps, evaluations, sizes)
    return found


def _of_steps(steps: Sequence[Row], settings: Grpo) -> dict[str, str]:
    first, last = steps[:WINDOW], steps[-WINDOW:]
    known = [row for row in steps if row.get("entropy") is not None]
    found = {}
    if all(row["zero_variance"] == 1 for row in last):
        found["flat"] = (
            f"all rewards of every group were equal for {WINDOW} steps: nothing is learnt. "
            "`danlu reward test RECIPE` tells why; grpo.filter leaves out prompts that are too easy or too hard, "
            "a higher temperature or a larger group make completions differ"
        )
    if all(row["truncated"] >= 0.9 for row in last):
        masked = " and carry no loss" if settings.mask_truncated else ""
        found["cut"] = (
            f"nearly all completions reach the limit of {settings.max_completion} tokens{masked}. "
            "Raise grpo.max_completion, or begin with a model that ends its answers (SFT first)"
        )
    if len(known) >= 2 * WINDOW:
        before, now = mean(known[:WINDOW], "entropy"), mean(known[-WINDOW:], "entropy")
        if now < 0.1 * before:
            found["entropy"] = (
                f"entropy fell from {before:.3g} to {now:.3g}: completions of a prompt hardly differ any more. "
                "Lower grpo.optimizer.lr, raise grpo.temperature or grpo.clip_high, or stop here"
            )
    if len(steps) >= 2 * WINDOW:
        before, now = mean(first, "completion_length"), mean(last, "completion_length")
        if now > 2 * before and now > 0.5 * settings.max_completion:
            found["length"] = (
                f"completions grew from {before:.0f} to {now:.0f} tokens. The reward `length` or `repetition` holds "
                "that down; grpo.loss: dr_grpo does not pay for length"
            )
    return found


def _of_evaluations(steps: Sequence[Row], evaluations: Sequence[Row], sizes: Mapping[str, int]) -> dict[str, str]:
    found = {}
    last = evaluations[-1]
    whole = _lost(evaluations, "eval_accuracy", sizes.get("", 0))
    if whole is not None:
        best, now = whole
        rewards = [_reward_before(steps, evaluation["step"]) for evaluation in (best, last)]
        if rewards[0] is not None and rewards[1] is not None and rewards[1] > rewards[0]:
            found["apart"] = (
                f"rewards rose from {rewards[0]:.3g} to {rewards[1]:.3g} while held-out accuracy fell from "
                f"{best['eval_accuracy']:.3g} (step {best['step']}) to {now:.3g}. Read samples.jsonl: it may be gamed "
                "(grpo.gate, another reward), or the prompts learnt by heart (more of them, grpo.kl)"
            )
        return found
    for task, count in sizes.items():
        lost = _lost(evaluations, f"eval_accuracy/{task}", count) if task else None
        if lost is not None:
            best, now = lost
            found["task"] = (
                f"held-out accuracy of {task} fell from {best[f'eval_accuracy/{task}']:.3g} (step {best['step']}) to "
                f"{now:.3g} while the whole did not. Give it more prompts, or stop at the best step (keep_best)"
            )
    return found


def _lost(evaluations: Sequence[Row], name: str, count: int) -> tuple[Row, float] | None:
    """(the best evaluation, accuracy now) where more was lost than LEAST and than chance moves so few questions."""
    known = [row for row in evaluations if row.get(name) is not None]
    if len(known) < 2 or not count:
        return None
    best = max(known, key=lambda row: row[name])
    now = float(known[-1][name])
    return (best, now) if best[name] - now > max(LEAST, 1 / math.sqrt(count)) else None


def _reward_before(steps: Sequence[Row], step: int) -> float | None:
    """Mean reward of the steps that ended at `step`."""
    rows = [row for row in steps if row["step"] <= step and row["reward"] is not None]
    return mean(rows[-WINDOW:], "reward") if rows else None


def mean(rows: Sequence[Row], name: str) -> float:
    return sum(float(row[name]) for row in rows) / len(rows)
