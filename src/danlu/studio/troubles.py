"""What went otherwise than hoped in a run, in plain words: codes of the trainer as sentences, with what to do.

A sentence's English text is the key of its translation; `values` fill its places.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SIGNS = {
    "flat": (
        "All rewards of every group were equal for several steps: nothing is learnt.",
        "Look at the rollouts. Leave out prompts that are too easy or too hard (grpo.filter), or raise temperature.",
    ),
    "cut": (
        "Nearly all completions reach the token limit.",
        "Raise grpo.max_completion, or begin with a model that ends its answers (SFT first).",
    ),
    "entropy": (
        "The completions of a prompt hardly differ any more.",
        "Lower the learning rate, raise grpo.temperature or grpo.clip_high, or stop here.",
    ),
    "length": (
        "Completions have become twice as long.",
        "The reward length or repetition holds that down; the loss dr_grpo does not pay for length.",
    ),
    "apart": (
        "Rewards rise while held-out accuracy falls.",
        "Read the rollouts: the reward may be gamed, or the prompts learnt by heart.",
    ),
    "task": (
        "The accuracy of one task falls while the whole does not.",
        "Give that task more prompts, or use the best step instead of the last.",
    ),
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """A sentence and what to do; `step`: since when."""

    what: str
    do: str = ""
    level: Literal["warning", "error"] = "warning"
    step: int | None = None
    values: dict[str, Any] = field(default_factory=dict)


def troubles(
    status: str, info: dict[str, Any], best: tuple[float, float] | None = None, last: float | None = None
) -> list[Trouble]:
    """Of run.json; `best` and `last`: (step, value) of the least eval loss, and the newest one."""
    results = info.get("results") or {}
    found = []
    if status == "failed":
        found.append(
            Trouble(
                "It failed: {error}",
                "The log tells more. It can go on from its last checkpoint.",
                "error",
                values={"error": str(info.get("error") or "?")},
            )
        )
    if status == "died":
        found.append(
            Trouble(
                "Its process is gone without a word.",
                "It may have run out of memory. It can go on from its last checkpoint.",
                "error",
            )
        )
    if isinstance(results.get("not_finite"), dict):
        at = results["not_finite"]
        found.append(
            Trouble(
                "A loss was not a number.",
                "Look at the rows that are named in run.json; lower the learning rate.",
                "error",
                at.get("step"),
            )
        )
    for code, step in (results.get("signs") or {}).items():
        if code in SIGNS:
            found.append(Trouble(*SIGNS[code], step=step))
    if best and last is not None and last > 1.02 * best[1]:
        found.append(
            Trouble(
                "The eval loss has risen since step {step}: the rows are being learnt by heart.",
                "Fewer epochs, more rows, or keep_best.",
                values={"step": f"{best[0]:,.0f}"},
            )
        )
    if results.get("halvings"):
        found.append(
            Trouble(
                "Memory ran out, and micro-batches were made smaller: {n} times.",
                "The result is the same, only slower.",
                values={"n": results["halvings"]},
            )
        )
    for key, what in (
        ("dropped_overlong", "{n} rows are longer than data.max_length and were left out."),
        ("truncated", "{n} rows are longer than data.max_length and were cut."),
    ):
        if results.get(key):
            found.append(
                Trouble(what, "Raise data.max_length if the memory allows.", values={"n": f"{results[key]:,}"})
            )
    if (results.get("counts") or {}).get("rejected"):
        found.append(
            Trouble(
                "{n} rows could not be read.",
                "The Data page tells which, and why.",
                values={"n": f"{results['counts']['rejected']:,}"},
            )
        )
    return found
