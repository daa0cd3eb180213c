"""The data check: what is wrong with the rows of a recipe, as numbers, before anything is trained.

`check` looks at what training would see, rendered with the model's own tokenizer, template and think-format, and at
what it would be judged by (the recipe's benchmarks). The result is plain JSON values: counts, shares, and findings of
three levels: an error makes training pointless or its evaluation untrue, a warning costs quality, info is worth
knowing. Overlong rows are counted whatever the recipe does with them.
Not covered: whether what the rows say is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from danlu import display
from danlu.data import language
from danlu.data.findings import (
    Finding,
    keeps,
    leaks_found,
    of_grpo,
    prompt_lengths,
    prompts_found,
    rejects,
    repeats_found,
    texts_found,
)
from danlu.data.pack import pack
from danlu.data.prepare import Prepared, check_decontaminate, prepare, prompts
from danlu.data.render import RenderReport, Shape
from danlu.data.store import open_store
from danlu.data.token_findings import Places, lengths_found, places, shares_lost, tokens_found
from danlu.models.tokenizer import Speech
from danlu.recipe import Recipe
from danlu.records import Sample
from danlu.think import ThinkFormat

BINS = 40
CUTS = 4
_LIMIT = 10**9  # tokens; no row is dropped while lengths are measured


def check(recipe: Recipe, speech: Speech) -> dict[str, Any]:
    """The report on the training rows (SFT, and GRPO prompts where the recipe has that stage) of a recipe.

    DanluError where a source cannot be read at all. Bad rows are counted, whatever data.on_bad_row says.
    """
    check_decontaminate(recipe)
    asked = recipe
    recipe = _with(recipe, on_bad_row="skip", decontaminate=False)
    rl = "grpo" in recipe.stages
    trains = bool(recipe.data.train) or not rl
    with display.task("check", 4 + 2 * trains + rl) as progress:
        findings: list[Finding] = []
        if trains:
            prepared = prepare(recipe)
            progress.advance(1)
            shape = Shape(_LIMIT, "drop", recipe.data.loss_on)
            store = open_store(speech.tokenizer, speech.think, prepared.train, shape)
            progress.advance(1)
            at = places(speech, store)
            findings += [*lengths_found(asked, store, at), *tokens_found(asked, speech, prepared.train, store)]
            figures = _figures(store.lengths, at, recipe.data.max_length, store.report)
            progress.advance(1)
        if rl:
            asked_for = prompts(recipe, recipe.grpo.data or recipe.data.train)
            lengths = prompt_lengths(speech, asked_for.train)
            found = [*prompts_found(asked, asked_for, lengths)]
            if trains:
                found += [*rejects(asked, asked_for), *leaks_found(asked, asked_for.unredacted)]
                findings += [of_grpo(one) for one in found if one.code != "unscorable_items"]
            else:  # the prompts are all there is to look at
                findings += found
                prepared = asked_for
                figures = _figures(lengths, Places(*[lengths] * 3), recipe.grpo.max_prompt, RenderReport())
            progress.advance(1)
        findings += [*rejects(asked, prepared), *texts_found(speech, prepared.train, asked, trained=trains)]
        progress.advance(1)
        findings += repeats_found(prepared)
        progress.advance(1)
        findings += leaks_found(asked, prepared.unredacted)
        progress.advance(1)
    order = {"error": 0, "warning": 1, "info": 2}
    findings.sort(key=lambda finding: order[finding.level])
    return {
        "recipe": asked.name,
        "model": asked.model.config or asked.model.id,
        "think": _told(speech.think),
        "ok": not any(finding.level == "error" for finding in findings),
        "rows": _rows(prepared, findings),
        "sources": prepared.sources,
        **figures,
        "mix": _mix(prepared.train),
        "findings": [finding.to_dict() for finding in findings],
    }


def _with(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)})


def _told(think: ThinkFormat) -> dict[str, Any]:
    names = ("style", "opened_by", "end_tokens", "drops_reasoning")
    return {name: value for name, value in think.to_dict().items() if name in names}


def _rows(prepared: Prepared, findings: Iterable[Finding]) -> dict[str, int]:
    counts = prepared.counts
    leaked = sum(f.count for f in findings if f.code == "leakage")
    kept = counts["train"] + counts["valid"] + counts["repeats_of_valid"]
    names = ("rejected", "train", "valid", "repeats_of_valid")
    return {"in": counts["in"], "kept": kept, **{name: counts[name] for name in names}, "leaked": leaked}


# ---- figures


def _figures(lengths: np.ndarray, at: Places, limit: int, report: RenderReport) -> dict[str, Any]:
    fitting = lengths[lengths <= limit]
    packs = pack(fitting, limit)
    shares = (50, 90, 95, 99)
    found = np.percentile(lengths, shares, method="inverted_cdf").astype(int) if len(lengths) else [0] * len(shares)
    low, high = (int(lengths.min()), int(lengths.max())) if len(lengths) else (0, 0)
    usual = min(high, max(2 * int(found[-1]), limit))  # what is far beyond goes into the last bin
    edges = np.unique([*np.linspace(0, max(usual, 1), BINS + 1).astype(int)[:-1], max(high, 1)])
    counts, _ = np.histogram(lengths, bins=edges)
    return {
        "lengths": {
            "min": low,
            **{f"p{p}": int(value) for p, value in zip(shares, found, strict=True)},
            "max": high,
            "mean": round(float(lengths.mean()), 1) if len(lengths) else 0.0,
            "max_length": limit,
            "keeps_99": keeps(lengths),
            "lost": shares_lost(at, limit),
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            "cuts": _cuts(lengths, at, edges),
        },
        "tokens": report.tokens,
        "supervised_tokens": report.supervised_tokens,
        "supervised_share": round(report.supervised_tokens / report.tokens, 4) if report.tokens else 0.0,
        "packing": {
            "packs": len(packs),
            "fill": round(float(fitting.sum()) / (len(packs) * limit), 4) if packs else 0.0,
        },
    }


def _cuts(lengths: np.ndarray, at: Places, edges: np.ndarray) -> dict[str, list[Any]]:
    """What other values of max_length would lose, CUTS of them in each bin and one at the end, as lists in step."""
    bins = len(edges) - 1
    places_ = np.arange(CUTS * bins + 1) / CUTS
    limits = np.interp(places_, np.arange(bins + 1), edges).round().astype(int).tolist()
    lost = [shares_lost(at, limit) for limit in limits]
    longer = [round(float((lengths > limit).mean()), 5) if len(lengths) else 0.0 for limit in limits]
    told = {name: [round(one[name], 5) for one in lost] for name in ("close", "answer", "end")}
    return {"max_length": limits, "rows": longer, **told}


def _mix(samples: list[Sample]) -> dict[str, dict[str, int]]:
    texts = [f"{sample.question}\n{sample.answer}" for sample in samples]
    return {
        "language": dict(Counter(language.language(text) for text in texts).most_common()),
        "script": dict(Counter(language.script(text) for text in texts).most_common()),
    }
