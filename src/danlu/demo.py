"""The demo: the shipped recipe on the shipped base, every stage, a verdict after each, a checked GGUF, one report.

Everything is real: the runs below OUT are ordinary runs, and the same commands work on them. The controls in the
report (what SFT alone reaches) take longer than the demo; they were computed once by `python -m bench.controls` and
ship as figures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from danlu import display, domains, recipe
from danlu.errors import DanluError
from danlu.recipe import Recipe
from danlu.run import Run, read_json, write_json

NAMES = {"base": "base", "sft": "SFT", "grpo": "GRPO"}
SAMPLED = {"temperature": 0.7, "samples": 4, "questions": 40}


def demo(seed: int, out: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run the demo into `out` (refused if it is used); the result of DESIGN's `danlu demo` contract.

    Writes OUT/{eval-base,sft,eval-sft,grpo,eval-grpo,export}, OUT/report.html, OUT/demo.json and OUT/plots/*.png.
    """
    if out.exists() and any(out.iterdir()):
        raise DanluError(f"{out} is already used", f"choose another directory (--out), or remove {out}")
    began = time.monotonic()
    plan = seeded(seed, overrides)
    domain = domains.load(plan.domain)
    notice = domain.world.notice if domain.world else domain.notice
    display.say(notice)
    stages: list[dict[str, Any]] = []
    start: str | None = None
    for name in NAMES:
        stage_began = time.monotonic()
        if name != "base":
            start = str(train_stage(name, plan, out, start).path)
        trained = time.monotonic() - stage_began
        evaluation = evaluate_stage(name, plan, out, start)
        stages.append(_stage(name, evaluation, trained))
    steps = [_step(out, before, after) for before, after in (("base", "sft"), ("sft", "grpo"))]
    export, export_seconds = _export(plan, out, str(start))
    pictures = _pictures(out)
    result: dict[str, Any] = {
        "seed": seed,
        "seconds": 0.0,  # set below, when all of it is done
        "stages": stages,
        "steps": steps,
        "export": {"ok": export["verified"], "checks": export["checks"], "seconds": export_seconds},
        "answer": export["answer"],
        "sampled": _sampled(plan, out, start),
        "controls": controls(),
        "artifacts": {
            "report": str(out / "report.html"),
            "gguf": export["gguf"],
            "modelfile": str(Path(export["gguf"]).parent / "Modelfile"),
            **{name: str(path) for name, path in pictures.items()},
        },
        "notice": notice,
        "next": _next(out, export["gguf"]),
    }
    result["seconds"] = round(time.monotonic() - began, 1)
    _report(result, out)
    write_json(out / "demo.json", result)
    return result


def seeded(seed: int, overrides: Sequence[str] = ()) -> Recipe:
    """The demo's recipe with every seed (training, rows, questions) made from `seed`."""
    keys = ("data.train.0", "data.valid.0", "grpo.data.0", "grpo.valid.0", "eval.benchmarks.0")
    places = [f"{key}.seed={seed + offset}" for offset, key in enumerate(keys)]
    return recipe.load("demo", [f"seed={seed}", *places, *overrides])


def new_run(stage: str, name: str, plan: Recipe, out: Path, start: str | None) -> Run:
    text = recipe.find("demo").read_text(encoding="utf-8")
    parents = [Path(start).name] if start else []
    return Run.create(out / name, stage, plan.resolved(), recipe_text=text, parents=parents, seed=plan.seed)


def train_stage(name: str, plan: Recipe, out: Path, start: str | None) -> Run:
    from danlu.train.grpo import grpo
    from danlu.train.sft import sft

    run = new_run(name, name, plan, out, start)
    with run.recording():
        run.record(**(sft if name == "sft" else grpo)(plan, run, start))
    return run


def evaluate_stage(name: str, plan: Recipe, out: Path, start: str | None) -> Run:
    from danlu.evaluate.evaluate import evaluate
    from danlu.generate.open import open_generator

    run = new_run("eval", f"eval-{name}", plan, out, start)
    with run.recording(), open_generator(start or plan.model.id, plan) as generator:
        evaluate(plan, run, generator)
    return run


def _stage(name: str, evaluation: Run, trained: float) -> dict[str, Any]:
    entry = read_json(evaluation.artifact / "report.json")["benchmarks"][0]
    kept = ("n", "accuracy", "ci", "format_rate", "stop_rate")
    return {
        "name": name,
        **{key: entry[key] for key in kept},
        "seconds": round(trained, 1),
        "eval_seconds": evaluation.info()["seconds"],
        "tasks": {task["name"]: task["accuracy"] for task in entry["tasks"]},
        "splits": {split["name"]: split["accuracy"] for split in entry["splits"]},
    }


def _step(out: Path, before: str, after: str) -> dict[str, Any]:
    from danlu.evaluate.verdict import compare

    found = compare(out / f"eval-{before}", out / f"eval-{after}")
    write_json(out / f"eval-{after}" / "compare.json", found)
    entry = found["benchmarks"][0]
    kept = ("difference", "ci", "p", "n", "gained", "lost")
    verdict = {"from": before, "to": after, "verdict": found["verdict"], "sentence": found["sentence"]}
    return {**verdict, **{key: entry[key] for key in kept}}


def _sampled(plan: Recipe, out: Path, start: str | None) -> dict[str, Any]:
    """avg@k and maj@k of the last stage on the first questions, at a temperature: greedy is not the whole story."""
    bench = plan.eval.benchmarks[0].model_copy(update={"limit": SAMPLED["questions"]})
    settings = {"benchmarks": [bench], "temperature": SAMPLED["temperature"], "samples": SAMPLED["samples"]}
    sampled = plan.model_copy(update={"eval": plan.eval.model_copy(update=settings)})
    run = evaluate_stage("grpo-sampled", sampled, out, start)
    entry = read_json(run.artifact / "report.json")["benchmarks"][0]
    kept = ("n", "accuracy", "ci", "majority", "format_rate", "stop_rate")
    return {**{key: entry[key] for key in kept if key in entry}, **SAMPLED}


def _export(plan: Recipe, out: Path, start: str) -> tuple[dict[str, Any], float]:
    """Export the last stage and ask the GGUF one held-out question through llama.cpp."""
    from danlu.evaluate.evaluate import benchmarks_of
    from danlu.export.export import export
    from danlu.generate import Sampling
    from danlu.generate.gguf import GgufGenerator

    began = time.monotonic()
    run = new_run("export", "export", plan, out, start)
    with run.recording():
        found = export(plan, run, start)
        run.record(gguf=found["gguf"], quant=found["quant"], bytes=found["bytes"], ok=found["verified"])
        sample = next(iter(benchmarks_of(plan, domains.load(plan.domain))[0].values()))[0]
        with GgufGenerator(Path(found["gguf"]), context=plan.export.num_ctx) as generator:
            _, answers = next(iter(generator.generate([sample.messages], Sampling(plan.eval.max_tokens))))
    found["answer"] = {
        "question": sample.question,
        "target": sample.target,
        "reasoning": answers[0].reasoning,
        "answer": answers[0].answer,
    }
    return found, round(time.monotonic() - began, 1)


def _pictures(out: Path) -> dict[str, Path]:
    from danlu.evaluate import plots

    entries = {
        label: read_json(out / f"eval-{name}" / "artifact" / "report.json")["benchmarks"][0]
        for name, label in NAMES.items()
    }
    made = {
        "loss": plots.loss(Run(out / "sft").metrics(), "SFT loss"),
        "rewards": plots.rewards(Run(out / "grpo").metrics(), "GRPO rewards"),
        "accuracy": plots.accuracy(entries, "Held-out questions of the miniature clinic"),
    }
    return {name: plots.save(picture, out / "plots" / name) for name, picture in made.items()}


def controls() -> list[dict[str, Any]]:
    """The shipped figures of the controls; empty when there are none."""
    path = Path(str(resources.files("danlu") / "assets" / "controls.json"))
    return read_json(path)["controls"] if path.is_file() else []


def _next(out: Path, gguf: str) -> list[str]:
    here = os.path.relpath
    return [
        f"danlu chat {here(gguf)}",
        f"danlu compare {here(out / 'eval-sft')} {here(out / 'eval-grpo')}",
        "danlu new mine --recipe qwen3-1.7b-medical-qlora-v2",
    ]


def _report(result: dict[str, Any], out: Path) -> None:
    from danlu.evaluate import report

    rows = {name: Run(out / f"eval-{name}").samples() for name in NAMES}
    tasks = list(result["stages"][0]["tasks"])
    figures = {"accuracy": "Accuracy", "loss": "SFT: loss and eval loss", "rewards": "GRPO: rewards and length"}
    info = Run(out / "grpo").info()
    drawn = result["sampled"]
    sampled = {**drawn, "name": f"GRPO, {drawn['samples']} answers at T = {drawn['temperature']}", "seconds": None}
    page = {
        **result,
        "stages": [*result["stages"], sampled],
        "title": "Danlu demo: base, SFT, GRPO",
        "figures": [
            {"title": title, "png": Path(result["artifacts"][name]).read_bytes()} for name, title in figures.items()
        ],
        "tasks": [
            {
                "name": task,
                "n": sum(row["task"] == task for row in rows["base"]),
                "accuracy": {NAMES[stage["name"]]: stage["tasks"][task] for stage in result["stages"]},
            }
            for task in tasks
        ],
        "examples": report.examples(rows["sft"], rows["grpo"], names=("SFT", "GRPO")),
        "reproduce": {
            "versions": info["packages"],
            "seeds": {"seed": result["seed"]},
            "commands": [f"danlu demo --seed {result['seed']}", "python -m bench.controls --json"],
        },
    }
    (out / "report.html").write_text(report.html(page), encoding="utf-8")


def free_directory(root: Path) -> Path:
    """ROOT/demo, or the first ROOT/demo-N that is free: trying the demo twice must not fail."""
    used = {path.name for path in root.glob("demo*") if path.is_dir() and any(path.iterdir())}
    number = 1
    while (name := "demo" if number == 1 else f"demo-{number}") in used:
        number += 1
    return root / name


def told(result: dict[str, Any]) -> str:
    """The end of the demo for a terminal: table, sentences, controls, export, files, what to try next."""
    columns = ("accuracy", "95 % CI", "format", "stop", "seen", "unseen", "seconds")
    lines = ["", " " * 6 + "".join(f"{name:>{15 if '%' in name else 9}}" for name in columns)]
    for stage in result["stages"]:
        low, high = stage["ci"]
        shares = [stage["format_rate"], stage["stop_rate"]]
        shares += [stage["splits"].get(name, float("nan")) for name in ("test-seen", "test-unseen")]
        line = f"{NAMES[stage['name']]:6}{stage['accuracy']:>9.1%}{f'{low:.1%}..{high:.1%}':>15}"
        lines.append(line + "".join(f"{share:>9.1%}" for share in shares) + f"{stage['seconds']:>9.0f}")
    lines += ["", *(f"{NAMES[s['from']]} -> {NAMES[s['to']]}: {s['sentence']}" for s in result["steps"])]
    drawn = result["sampled"]
    lines.append(
        f"GRPO sampled at temperature {drawn['temperature']}: {drawn['accuracy']:.1%} on average of {drawn['samples']} "
        f"answers, {drawn['majority']['accuracy']:.1%} by majority, n = {drawn['questions']}"
    )
    if result["controls"]:
        lines += ["", "controls (computed once, see the report):"]
        lines += [f"  {c['name']}: {c['accuracy']:.1%}; {c['expected']}" for c in result["controls"]]
    export, answer = result["export"], result["answer"]
    passed = sum(check["ok"] for check in export["checks"])
    lines += [
        "",
        f"export {'ok' if export['ok'] else 'FAILED'}: {passed} of {len(export['checks'])} checks passed",
        "  (differences from the source model, or the measured value)",
        *(_check_line(check) for check in export["checks"]),
        "",
        "asked the GGUF through llama.cpp:",
        f"  {answer['question']}",
        f"  {answer['answer']}   (gold: {answer['target']})",
        "",
        *(f"{name}: {path}" for name, path in result["artifacts"].items()),
        "",
        f"{result['seconds']:.0f} s. {result['notice']}",
        "",
        "try next:",
        *(f"  {line}" for line in result["next"]),
    ]
    return "\n".join(lines)


def _check_line(check: dict[str, Any]) -> str:
    def short(value: Any) -> str:
        return "none" if value == [] else f"{value:.2g}" if isinstance(value, float) else str(value)

    limit = check.get("limit")
    allowed = f" (limit {short(limit)})" if isinstance(limit, (int, float)) else ""
    return f"  {'ok' if check['ok'] else 'FAILED':7}{check['name']}: {short(check['value'])}{allowed}"[:150]
