"""Bodies of `danlu eval` and `danlu compare`: what is evaluated under which questions, and the verdict on two of them.

`danlu eval` takes a recipe (its questions, its model) or anything that answers: a run, a model, a GGUF, an endpoint.
A run brings the recipe it was made with; `--suite` and `--bench` say what is asked instead.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from danlu.cli.readers import print_json, print_verdict
from danlu.cli.stages import TRAINING, Step, as_written, described, find_run, open_run, outcome_of, run_stage
from danlu.data.files import SUFFIXES
from danlu.display import say, warn
from danlu.errors import DanluError
from danlu.generate.open import is_address, open_generator
from danlu.models import mlx_fit
from danlu.recipe import Recipe, load, parse, runs_root, shipped
from danlu.run import Run, list_runs, read_json, read_jsonl, write_json

DEFAULT_SUITE = "quick"
FORMATS = ("lm-eval", "evalscope")


def evaluation(
    target: str,
    overrides: list[str],
    suite: str | None,
    bench: list[str],
    start: str | None,
    run_name: str | None,
) -> tuple[Recipe, Step, str]:
    """(recipe, step, recipe text) of an evaluation of `target`, a recipe or anything that answers."""
    changes = [f"eval.suite={json.dumps(suite)}"] if suite else []
    if suite or bench:
        changes.append(f"eval.benchmarks={json.dumps([_bench(item) for item in bench])}")
    changes += overrides  # what is said last counts: --bench FILE --set eval.benchmarks.0.limit=50
    label = "".join(f"-{_slug(Path(item).stem)}" for item in [*([suite] if suite else []), *bench])[:60]
    run = find_run(target)
    if run is None and _is_recipe(target):
        recipe = load(target, changes)
        name = run_name or (f"{Path(start).name}-eval{label}" if start else f"{recipe.name}-eval-base{label}")
        return recipe, Step("eval", name, start), as_written(target, changes)
    if start:
        raise DanluError(f"--from goes with a recipe; {target} is what is evaluated", f"danlu eval {start}")
    base: dict[str, Any] = run.config() if run is not None else {"name": _slug(target), "model": _model(target)}
    text = yaml.safe_dump(base, allow_unicode=True, sort_keys=False)
    recipe = parse(text, changes, origin=target)
    if not (recipe.eval.suite or recipe.eval.benchmarks):
        changes.append(f"eval.suite={DEFAULT_SUITE}")
        recipe = parse(text, changes, origin=target)
    name = run_name or f"{_slug(run.name if run else target)}-eval{label}"
    return recipe, Step("eval", name, target), text + "".join(f"# --set {change}\n" for change in changes)


def _is_recipe(name: str) -> bool:
    path = Path(name)
    return name in shipped() or path.suffix in (".yaml", ".yml")


def _bench(item: str) -> Any:
    """A benchmark of the domain by name, or a file of the user's own."""
    if Path(item).suffix.lower() in SUFFIXES and not Path(item).exists():
        raise DanluError(f"{item} does not exist", "give a file of questions, or a benchmark by name")
    return {"name": Path(item).stem, "path": item} if Path(item).exists() else {"name": item}


def _model(target: str) -> dict[str, str]:
    return {} if is_address(target) or target.endswith(".gguf") else {"id": target}


def _slug(target: str) -> str:
    bare = re.sub(r"^\w+://", "", target).rstrip("/").removesuffix(".gguf")
    last = bare if "://" in target else bare.rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "-", last).strip("-.") or "model"


# ---- danlu eval


def show_eval(
    target: str,
    overrides: list[str],
    suite: str | None,
    bench: list[str],
    start: str | None,
    run_name: str | None,
    *,
    resume: bool,
    rescore: bool,
    format_: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Body of `danlu eval`."""
    if format_ is not None and format_ not in FORMATS:
        raise DanluError(f"no format {format_!r}", f"formats: {', '.join(FORMATS)}")
    if rescore:
        from danlu.evaluate.evaluate import rescore as judge_again

        run = open_run(target)
        judge_again(run)
        _finish(run, format_, as_json)
        return
    recipe, step, text = evaluation(target, overrides, suite, bench, start, run_name)
    if dry_run:
        if not (is_address(target) or target.endswith(".gguf")):
            mlx_fit.check(recipe, ["eval"])
        print(described(recipe, [step], as_json))
        return
    _check_questions(recipe)
    if is_address(target):
        with open_generator(target, recipe):  # nobody there: said before a run is made
            pass
    say(f"eval: {runs_root() / step.run} from {step.start or recipe.model.id}")
    run = run_stage("eval", recipe, step.run, start=step.start, recipe_text=text, resume=resume)
    _finish(run, format_, as_json)


def _check_questions(recipe: Recipe) -> None:
    """DanluError for questions that cannot be found or read, before a run is made for them."""
    from danlu import domains
    from danlu.data.prepare import benchmarks

    benchmarks(recipe, domains.load(recipe.domain))


def _finish(run: Run, format_: str | None, as_json: bool) -> None:
    if format_:
        from danlu.evaluate.interop import write_logs

        say(f"written: {write_logs(run, format_)}")
    if as_json:
        print_json({"stages": [outcome_of("eval", run)]})
        return
    say(summary(run))
    print(run.artifact)


def summary(run: Run) -> str:
    """One line a benchmark: accuracy with its interval, and what went wrong with the rest."""
    report = read_json(run.artifact / "report.json")
    lines = []
    for entry in report["benchmarks"]:
        low, high = (100 * value for value in entry["ci"])
        shares = {name: entry["shares"][name] for name in ("wrong", "none", "ambiguous", "truncated")}
        rest = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items() if share)
        lines.append(
            f"{entry['name']}: {100 * entry['accuracy']:.1f} % right [{low:.1f}, {high:.1f}], n = {entry['n']:,}"
            + (f"; {rest}" if rest else "")
            + (f"; {entry['leaked']} leaked" if entry.get("leaked") else "")
        )
    return "\n".join(lines)


# ---- danlu compare


def show_compare(
    base: str,
    tuned: str,
    suite: str | None,
    partial: bool,
    gated: bool,
    html: Path | None,
    markdown: Path | None,
    as_json: bool,
) -> int:
    """Body of `danlu compare`; 1 when `--gate` finds that something that should have stayed got worse."""
    from danlu.evaluate.compare_page import markdown as as_markdown
    from danlu.evaluate.compare_page import page
    from danlu.evaluate.gate import gate
    from danlu.evaluate.verdict import compare

    for name in (base, tuned):
        _check_side(name, suite)  # both before the first is evaluated
    sides = [_evaluated(name, suite) for name in (base, tuned)]
    comparison = compare(sides[0], sides[1], partial=partial)
    code = 0
    run = find_run(str(sides[1]))
    if gated:
        wanted, asked = _guard(run), {entry["name"] for entry in comparison["benchmarks"]}
        if wanted - asked:
            warn(f"the gate was not asked about {', '.join(sorted(wanted - asked))}: compare with --suite guard")
        comparison["gate"] = gate(comparison, guard=wanted & asked)
        code = 0 if comparison["gate"]["ok"] else 1
    if run is not None:
        stored = run.path / "compare.json"
        earlier = read_json(stored).get("gate") if stored.is_file() else None
        kept = {"gate": earlier} if earlier and not gated else {}  # a gate is only replaced by a later one
        write_json(stored, {**comparison, **kept})
    if html:
        html.write_text(page(comparison, _rows(sides[0]), _rows(sides[1]), (base, tuned)), encoding="utf-8")
        say(f"written: {html}")
    if markdown:
        markdown.write_text(as_markdown(comparison), encoding="utf-8")
        say(f"written: {markdown}")
    if as_json:
        print_json(comparison)
        return code
    print_verdict(comparison)
    return code


def _rows(side: Path) -> list[dict[str, Any]]:
    path = side / "samples.jsonl" if side.is_dir() else side
    return read_jsonl(path) if path.suffix == ".jsonl" and path.is_file() else []


def _check_side(name: str, suite: str | None) -> None:
    run, path = find_run(name), Path(name)
    if run is None and not suite and not path.exists() and not is_address(name):
        raise DanluError(f"{name} is neither a run nor a file", "list runs with: danlu ls; a model needs --suite")
    if run is not None and run.info().get("stage") not in (*TRAINING, "eval", "export"):
        raise DanluError(f"{name} is a {run.info().get('stage')} run: it answers nothing", "compare evaluations")
    if run is not None and run.state() != "done":
        raise DanluError(f"{run.path} is {run.state()}, not done", "finish it first with --resume")


def _evaluated(name: str, suite: str | None) -> Path:
    """The evaluation or score file `name`; anything that answers is evaluated first (once, under a name of its own)."""
    run = find_run(name)
    if run is not None and run.info().get("stage") == "eval":
        return run.path
    path = Path(name)
    if run is None and path.is_file() and path.suffix in (".jsonl", ".json"):
        return path
    recipe, step, text = evaluation(name, [], suite, [], None, None)
    known = find_run(step.run)
    if known is not None and known.state() == "done":
        warn(f"{name} was evaluated before: using {known.path}")
        return known.path
    say(f"eval: {runs_root() / step.run} from {step.start or recipe.model.id}")
    resume = known is not None
    return run_stage("eval", recipe, step.run, start=step.start, recipe_text=text, resume=resume).path


def _guard(run: Run | None) -> set[str]:
    """Names of what should stay as it was: the guard suite of the domain of an evaluation."""
    from danlu import domains

    domain = run.config().get("domain", Recipe.model_fields["domain"].default) if run else None
    return {name for name, _ in domains.load(domain).suites.get("guard", ())} if domain else set()


def check_gate(start: str | None) -> None:
    """DanluError where the newest gated comparison of the run `start` found that something got worse."""
    run = find_run(start) if start else None
    if run is None or run.info().get("stage") not in TRAINING:
        return
    newest: dict[str, Any] | None = None
    for other in list_runs(runs_root()):
        path = other.path / "compare.json"
        if path.is_file() and other.info().get("stage") == "eval" and run.name in other.info().get("parents", []):
            newest = read_json(path).get("gate") or newest
    if newest and not newest["ok"]:
        raise DanluError(
            f"{run.name} failed its gate: {newest['sentence']}", "look at it with danlu compare, or --force"
        )
