"""Body of `danlu reward test`: what the rewards of a recipe pay for, and what the model would learn from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from danlu.cli.look import _started
from danlu.cli.readers import print_json, table
from danlu.errors import DanluError
from danlu.recipe import JudgeSpec, Recipe, load
from danlu.records import Sample
from danlu.rewards.compose import Rewards
from danlu.rewards.trial import findings, sampled, verdict
from danlu.rewards.trial import table as trial

ROWS, ROWS_JUDGED = 20, 4  # questions that the attacks are made from
OTHERS = 200  # questions whose golds are wrong answers to others


def show_reward_test(
    name: str,
    overrides: list[str],
    start: str | None,
    *,
    rows: int | None,
    prompts: int,
    samples: int,
    as_json: bool,
) -> int:
    """Print the trial; 1 when the rewards can be hacked or do not tell right from wrong, else 0."""
    recipe = load(name, overrides)
    started = _started(start)
    with Rewards(recipe.grpo.rewards, recipe.grpo.gate) as rewards:
        questions = _questions(recipe)
        judged = any(isinstance(spec, JudgeSpec) for spec in recipe.grpo.rewards)
        tried = questions[: rows or (ROWS_JUDGED if judged else ROWS)]
        golds = [question.target or "" for question in questions[:OTHERS] if not question.options]
        if prompts:
            from danlu.generate.open import open_generator

            with open_generator(started or recipe.model.id, recipe) as generator:
                found = trial(rewards, tried, generator.think, _tokens(generator, recipe, started), golds)
                model = sampled(generator, questions[:prompts], recipe.grpo, rewards, samples, recipe.seed)
        else:
            from danlu.models.tokenizer import speech_of

            speech = speech_of(recipe.model, started)
            found, model = trial(rewards, tried, speech.think, _encoder(speech.tokenizer), golds), None
        usage = rewards.usage()
    told = findings(found, model)
    ok = not any(finding["level"] == "error" for finding in told)
    report = {
        "recipe": recipe.name,
        "ok": ok,
        "verdict": verdict(told),
        "weights": dict(zip(rewards.labels, (spec.weight for spec in rewards.specs), strict=True)),
        "gate": recipe.grpo.gate,
        "rows": len(tried),
        "kinds": found,
        "model": {"name": start or recipe.model.id, **model} if model else None,
        "findings": told,
        **({"usage": usage} if usage else {}),
    }
    if as_json:
        print_json(report)
    else:
        _print(report)
    return 0 if ok else 1


def _questions(recipe: Recipe) -> list[Sample]:
    from danlu.data.prepare import prompts

    sources = recipe.grpo.data or recipe.data.train
    if not sources:
        raise DanluError("the recipe names no prompts", "give grpo.data rows with a gold answer")
    return prompts(recipe, sources).train


def _tokens(generator: Any, recipe: Recipe, start: str | None) -> Callable[[str], Sequence[int]]:
    """The tokenizer of the model, from the generator where it has one."""
    loaded = getattr(generator, "loaded", None)
    if loaded is not None:
        return _encoder(loaded.tokenizer)
    from danlu.models.tokenizer import speech_of

    return _encoder(speech_of(recipe.model, start).tokenizer)


def _encoder(tokenizer: Any) -> Callable[[str], Sequence[int]]:
    from danlu.data.encode import encode

    return lambda text: encode(tokenizer, [text])[0].tolist()


# ---- what is shown


def _print(report: dict[str, Any]) -> None:
    weights = ", ".join(f"{label} x {weight:g}" for label, weight in report["weights"].items())
    gate = "" if report["gate"] == "none" else f"; gate {report['gate']}"
    print(f"{report['recipe']}: {weights}{gate}; {report['rows']} rows of its own prompts\n")
    head = ("", *(label.upper() for label in report["weights"]), "TOTAL", "ABOVE WRONG")
    table(head, [_line(row) for row in report["kinds"]])
    print(f"\n{report['verdict']}")
    if report["model"]:
        print()
        for line in _of_model(report["model"]):
            print(line)
    for finding in report["findings"]:
        if finding["code"] == "hackable" and finding["text"] == report["verdict"]:
            print(f"  do: {finding['do']}")
            continue
        print(f"{finding['level']}: {finding['text']}\n  do: {finding['do']}")


def _line(row: dict[str, Any]) -> list[str]:
    above = f"{round(row['above_wrong'] * row['rows'])} of {row['rows']}" if row["above_wrong"] else ""
    return [row["kind"], *map(_number, row["rewards"].values()), _number(row["total"]), above]


def _number(value: float | None) -> str:
    return "masked" if value is None else f"{value:.2f}".replace("-0.00", "0.00")


def _of_model(model: dict[str, Any]) -> list[str]:
    formed, cut = 100 * model["well_formed"], 100 * model["cut"]
    passed = ", ".join(f"pass@{k} {100 * value:.0f} %" for k, value in model["pass"].items())
    parts = ", ".join(f"{label} {_number(value)}" for label, value in model["rewards"].items())
    return [
        f"{model['name']} on {model['prompts']} prompts, {model['samples']} samples each:",
        f"  right: {passed}",
        f"  reward: {_number(model['total'])} ({parts})",
        f"  well-formed {formed:.0f} %, cut {cut:.0f} %, {model['tokens']:.0f} tokens",
        f"  groups of {model['group']} with equal rewards: {100 * model['zero_variance']:.0f} %, these teach nothing",
    ]
