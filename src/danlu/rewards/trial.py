"""A recipe's rewards on trial before any training: what they pay for, and whether the model can learn from them.

`table` scores the completions of the attack suite, made from the user's own rows. An attack that earns more than the
better paid of two honest wrong answers to the same question is a way to earn without answering, and a policy finds
it. `sampled` asks the model a few of the prompts as training would: pass@k by the unbiased estimate of Chen et al.
(2021), and the share of groups in which all rewards would be equal, which teach nothing.
Not covered: hacks that the suite does not have; what a policy finds late in training.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from danlu import display
from danlu.generate import Generator, Sampling
from danlu.recipe import Grpo
from danlu.records import Sample
from danlu.rewards.attacks import ATTACKS, HONEST, completions_of
from danlu.rewards.compose import Rewards, Scored
from danlu.rewards.difficulty import flat_chance, is_right, pass_at_k
from danlu.think import ThinkFormat

FLAT, CUT, BROKEN = 0.5, 0.2, 0.5  # shares from which on a finding is made of them


def table(
    rewards: Rewards,
    samples: Sequence[Sample],
    think: ThinkFormat,
    tokens: Callable[[str], Sequence[int]] | None = None,
    others: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """A row for each kind of completion: {"kind", "honest", "total", "rewards", "masked", "rows", "above_wrong", "by"}.

    Means over the samples (`rows` of them have the kind); `above_wrong`: share of these on which it earns more than an
    honest wrong answer, `by`: the reward that pays most of the difference. `others`: golds of other open questions.
    """
    made = [completions_of(sample, think, others, tokens) for sample in samples]
    by_sample = []
    with display.task("scoring", len(samples)) as progress:
        for sample, own in zip(samples, made, strict=True):
            scored = rewards.score_all([sample] * len(own), list(own.values()), think)
            by_sample.append(dict(zip(own, scored, strict=True)))
            progress.advance(1)
    kinds = [kind for kind in (*HONEST, *ATTACKS) if any(kind in own for own in made)]
    return [_row(kind, [own for own in by_sample if kind in own], rewards) for kind in kinds]


def _row(kind: str, by_sample: list[dict[str, Scored]], rewards: Rewards) -> dict[str, Any]:
    found = [own[kind] for own in by_sample]
    above = [own for own in by_sample if kind not in HONEST and _excess(own, kind) > 1e-9]
    return {
        "kind": kind,
        "honest": kind in HONEST,
        "total": _mean([one.total for one in found]),
        "rewards": {label: _mean([one.parts[label] for one in found]) for label in rewards.labels},
        "masked": sum(one.total is None for one in found) / len(found),
        "rows": len(found),
        "above_wrong": len(above) / len(found),
        "by": _payer(above, kind, rewards) if above else None,
    }


def _wrong(own: dict[str, Scored]) -> Scored:
    """The better paid of the honest wrong answers."""
    return max((own["wrong"], own["wrong in words"]), key=lambda one: -1e9 if one.total is None else one.total)


def _excess(own: dict[str, Scored], kind: str) -> float:
    total, wrong = own[kind].total, _wrong(own).total
    return total - wrong if total is not None and wrong is not None else 0.0


def _payer(above: list[dict[str, Scored]], kind: str, rewards: Rewards) -> str:
    """The reward whose weighted mean difference to an honest wrong answer is the greatest."""

    def paid(label: str, weight: float) -> float:
        return weight * sum((own[kind].parts[label] or 0.0) - (_wrong(own).parts[label] or 0.0) for own in above)

    return max(zip(rewards.labels, rewards.specs, strict=True), key=lambda pair: paid(pair[0], pair[1].weight))[0]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


# ---- the model


def sampled(
    generator: Generator, samples: Sequence[Sample], settings: Grpo, rewards: Rewards, each: int, seed: int
) -> dict[str, Any]:
    """What the model answers to the samples, `each` times, with the sampling of training.

    {"prompts", "samples", "pass": {k: mean}, "zero_variance", "group", "total", "rewards", "well_formed", "cut",
    "tokens", "masked", "per_prompt": [{"id", "right", "totals"}]}. `zero_variance` is the expected share of groups of
    `settings.group` with equal totals.
    """
    sampling = Sampling(settings.max_completion, settings.temperature, settings.top_p, each, seed)
    groups: dict[int, list[Any]] = {}
    with display.task("asking", len(samples)) as progress:
        for place, found in generator.generate([sample.messages for sample in samples], sampling):
            groups[place] = found
            progress.advance(1)
    flat = [(samples[i], one) for i in range(len(samples)) for one in groups[i]]
    scored = rewards.score_all([sample for sample, _ in flat], [one for _, one in flat], generator.think)
    totals = [[one.total for one in scored[i * each : (i + 1) * each]] for i in range(len(samples))]
    right = [sum(is_right(samples[i], one) for one in groups[i]) for i in range(len(samples))]
    completions = [one for _, one in flat]
    known = [[value for value in own if value is not None] for own in totals]
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < each] + [each]
    return {
        "prompts": len(samples),
        "samples": each,
        "pass": {str(k): statistics.fmean(pass_at_k(each, c, k) for c in right) for k in ks},
        "group": settings.group,
        "zero_variance": statistics.fmean(flat_chance(own, settings.group) if len(own) > 1 else 1.0 for own in known),
        "total": _mean([one.total for one in scored]),
        "rewards": {label: _mean([one.parts[label] for one in scored]) for label in rewards.labels},
        "masked": sum(one.total is None for one in scored) / len(scored),
        "well_formed": statistics.fmean(one.well_formed for one in completions),
        "cut": statistics.fmean(one.finish == "length" for one in completions),
        "tokens": statistics.fmean(len(one.tokens) for one in completions),
        "per_prompt": [
            {"id": sample.id, "right": c, "totals": own} for sample, c, own in zip(samples, right, totals, strict=True)
        ],
    }


# ---- what follows


def findings(rows: Sequence[dict[str, Any]], model: dict[str, Any] | None) -> list[dict[str, str]]:
    """{"code", "level": "error" | "warning", "text", "do"} of everything that speaks against training now."""
    return [*_of_table({row["kind"]: row for row in rows}), *(_of_model(model) if model else [])]


def verdict(found: Sequence[dict[str, str]]) -> str:
    """What follows from the findings, in one sentence."""
    hacks = [finding["text"] for finding in found if finding["code"] == "hackable"]
    if hacks:
        return hacks[0] + (f" (and {len(hacks) - 1} more)" if len(hacks) > 1 else "")
    errors = [finding["text"] for finding in found if finding["level"] == "error"]
    if errors:
        return errors[0]
    return "a right answer pays most, and no attack pays more than an honest wrong answer"


def _of_table(rows: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    found = []
    paid = {kind: row["total"] for kind, row in rows.items() if row["total"] is not None}
    wrong = max((paid[kind] for kind in HONEST[2:] if kind in paid), default=None)
    if wrong is None:
        return [
            _finding("masked", "error", "every wrong answer is masked: nothing can be compared", "is the judge well?")
        ]
    golds = [paid[kind] for kind in HONEST[:2] if kind in paid]
    if not any(gold > wrong for gold in golds):
        text = "a right answer earns no more than a wrong one: there is nothing to learn"
        found.append(_finding("blind", "error", text, "add the reward answer (or judge), or look at the rows' golds"))
    elif len(golds) == 2 and golds[1] <= wrong:
        text = "a right answer in words earns no more than a wrong one: only the bare gold pays"
        found.append(_finding("bare", "warning", text, "the reward answer reads both"))
    hacks = sorted((row for row in rows.values() if row["above_wrong"]), key=lambda row: -(row["total"] or 0.0))
    for row in hacks:
        count = round(row["above_wrong"] * row["rows"])
        share = "" if count == row["rows"] else f" on {count} of {row['rows']} rows"
        text = f"this reward pays more for {_named(row['kind'])} than for an honest wrong answer{share}: hackable"
        found.append(_finding("hackable", "error", text, f"{row['by']} pays it: lower its weight, or gate it"))
    masked = [row["kind"] for row in rows.values() if row["masked"]]
    if masked:
        text = f"masked on some rows: {', '.join(masked[:4])}{' ...' if len(masked) > 4 else ''}"
        found.append(_finding("masked", "warning", text, "a reward had no opinion there, or a judge failed"))
    return found


def _of_model(model: dict[str, Any]) -> list[dict[str, str]]:
    found = []
    best = max(map(int, model["pass"]))
    if model["pass"][str(best)] == 0:
        text = f"the model is never right in {model['prompts']} x {model['samples']} samples"
        found.append(_finding("never", "warning", text, "start from an SFT run (--from), or use easier prompts"))
    if model["zero_variance"] >= FLAT:
        text = (
            f"{model['zero_variance']:.0%} of the groups of {model['group']} would have equal rewards and teach nothing"
        )
        found.append(_finding("flat", "warning", text, "filter prompts (grpo.filter), raise grpo.group, or SFT first"))
    if model["cut"] >= CUT:
        text = f"{model['cut']:.0%} of the completions are cut"
        found.append(_finding("cut", "warning", text, "raise grpo.max_completion"))
    if model["well_formed"] < BROKEN:
        text = f"only {model['well_formed']:.0%} of the completions are well-formed"
        found.append(_finding("form", "warning", text, "SFT on a few worked rows teaches the form"))
    return found


def _named(kind: str) -> str:
    return kind if kind.startswith(("a ", "every", "10,000")) else f"“{kind}”"


def _finding(code: str, level: str, text: str, do: str) -> dict[str, str]:
    return {"code": code, "level": level, "text": text, "do": do}
