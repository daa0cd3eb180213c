"""Bodies of `danlu verify` and of `danlu export --to ollama`: an export against its source, and into Ollama.

`--suite` asks the suite's questions of the source and of each file, in evaluation runs like any other, so that they
are kept, resumed and compared; what is drawn of them lies in the export's own directory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from danlu.cli.readers import print_json, table
from danlu.cli.stages import find_run, run_stage
from danlu.display import say, warn
from danlu.errors import DanluError
from danlu.recipe import Recipe, parse, runs_root
from danlu.run import read_json, write_json


def exported(name: str) -> tuple[Path, dict[str, Any]]:
    """(artifact folder, what its danlu.json tells) of an export: its run, its folder, or a GGUF file in it."""
    run, path = find_run(name), Path(name)
    folder = run.artifact if run else path.parent if path.is_file() else path
    if not (folder / "danlu.json").is_file():
        raise DanluError(f"{name} holds no export", "give an export run, or the directory of its artifact")
    made = read_json(folder / "danlu.json")
    if made.get("kind") != "gguf":
        raise DanluError(f"{name} holds a {made.get('kind', 'model')}, not a GGUF", "export it first: danlu export")
    files = made.get("files") or [{key: made[key] for key in ("gguf", "quant")}]
    if run is None and path.suffix == ".gguf":
        files = [file for file in files if file["gguf"] == path.name]
        if not files:
            raise DanluError(f"{path.name} is not a file of this export", f"see {folder / 'danlu.json'}")
    return folder, {**made, "files": files}


def source_of(folder: Path, made: dict[str, Any]) -> Path:
    """The model that an export was made from; DanluError when it is gone."""
    source = (folder / made["source"]).resolve()
    if not source.is_dir():
        raise DanluError(f"the model that it was made from is gone: {source}", "export again from the trained run")
    return source


# ---- danlu verify


def show_verify(name: str, suite: str | None, as_json: bool) -> int:
    """Print the checks of an export, with `suite` also what its quantizations cost; 0 if all checks hold, else 1."""
    folder, made = exported(name)
    source = source_of(folder, made)
    if suite:  # questions that are not to be had are told now
        _asked(name, folder, suite)
    from danlu.export.files import known
    from danlu.export.parity import verify

    if not known(source):
        raise DanluError(
            f"{name} was written by llama.cpp's own converter", "its architecture is not one that is compared here"
        )
    checks: list[dict[str, Any]] = []
    for file in made["files"]:
        found = verify(folder / file["gguf"], source, quant=file["quant"])
        checks += ({**check, "file": file["gguf"]} for check in found["checks"])
    report: dict[str, Any] = {"ok": all(check["ok"] for check in checks), "checks": checks}
    if suite and report["ok"]:
        report["suite"] = {"name": suite, **ask_suite(name, folder, made, source, suite)}
    elif suite:
        warn("a check failed: the suite is not asked")
    if as_json:
        print_json(report)
        return 0 if report["ok"] else 1
    several = len(made["files"]) > 1
    rows = [
        (
            *([check["file"]] if several else []),
            check["name"],
            "ok" if check["ok"] else "FAILED",
            _brief(check.get("value")),
            _brief(check.get("limit")),
        )
        for check in checks
    ]
    table((*(["FILE"] if several else []), "CHECK", "", "VALUE", "LIMIT"), rows)
    if "suite" in report:
        print()
        _print_suite(report["suite"])
    return 0 if report["ok"] else 1


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else text[:197] + "..."


# ---- --suite


def ask_suite(name: str, folder: Path, made: dict[str, Any], source: Path, suite: str) -> dict[str, Any]:
    """What each file of an export answers to a suite beside its source (see evaluate/quants.py), with its plot.

    Evaluations that are there already count; those that were interrupted go on.
    """
    from danlu.evaluate.canvas import save
    from danlu.evaluate.quants import Side, quant_plot, quantizations
    from danlu.export.gguf import weight_files
    from danlu.export.speed import tokens_per_second

    run = find_run(name)
    recipe, text, label = _asked(name, folder, suite)
    sides = [Side("source", _evaluated(f"{label}-{suite}-source", source, recipe, text), _bytes(weight_files(source)))]
    for file in made["files"]:
        path = folder / file["gguf"]
        answers = _evaluated(f"{label}-{suite}-{file['quant']}", path, recipe, text)
        sides.append(Side(file["quant"], answers, _bytes([path]), tokens_per_second(path)))
    found = quantizations(sides[0], sides[1:])
    place = run.path if run else folder
    picture = save(quant_plot(found, f"Quantizations of {label}: {suite}"), place / "plots" / f"quants-{suite}")
    found["plot"] = str(picture)
    write_json(place / f"quants-{suite}.json", found)
    return found


def _bytes(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _asked(name: str, folder: Path, suite: str) -> tuple[Recipe, str, str]:
    """(recipe of an export with the suite as its questions, its text, what its evaluations are called after).

    DanluError where the questions cannot be found or read.
    """
    from danlu import domains
    from danlu.data.prepare import benchmarks

    run = find_run(name)
    label = run.name if run else (folder.parent if folder.name == "artifact" else folder).resolve().name
    changes = [f"eval.suite={json.dumps(suite)}", "eval.benchmarks=[]"]
    text = yaml.safe_dump(run.config() if run else {"name": label}, allow_unicode=True, sort_keys=False)
    recipe = parse(text, changes, origin=name)
    benchmarks(recipe, domains.load(recipe.domain))
    return recipe, text + "".join(f"# --set {change}\n" for change in changes), label


def _evaluated(run_name: str, target: Path, recipe: Recipe, text: str) -> Path:
    known = find_run(run_name)
    if known is not None and known.state() == "done":
        warn(f"{target.name} was asked before: using {known.path}")
        return known.path
    say(f"eval: {runs_root() / run_name} from {target}")
    return run_stage("eval", recipe, run_name, start=str(target), recipe_text=text, resume=known is not None).path


def _print_suite(found: dict[str, Any]) -> None:
    rows = []
    for side in found["sides"]:
        speed, change = side["tokens_per_second"], side.get("difference")
        rows.append(
            (
                side["name"],
                f"{side['bytes'] / 1e6:,.1f} MB",
                f"{speed:.1f}" if speed else "",
                f"{100 * side['accuracy']:.1f} %",
                f"{100 * change:+.1f}" if change is not None else "",
                "[{:+.1f}, {:+.1f}]".format(*(100 * end for end in side["difference_ci"]))
                if change is not None
                else "",
                f"{side['p_adjusted']:.2g}" if change is not None else "",
                side.get("verdict", ""),
            )
        )
    table(("FILE", "SIZE", "TOKENS/S", "RIGHT", "POINTS", "95 % CI", "P", f"{found['n']} QUESTIONS"), rows)
    print(found["plot"])


# ---- danlu export --to ollama


def after_export(to: str, question: str | None, as_json: bool) -> Callable[[str], dict[str, Any]] | None:
    """What follows an export (given its run): nothing, or `to_ollama`. DanluError for --run without Ollama."""
    if to != "ollama":
        if question is not None:
            raise DanluError("--run asks the model in Ollama", "add --to ollama, or ask with: danlu chat RUN")
        return None
    return partial(to_ollama, question=question, as_json=as_json)


def published(name: str, after: Callable[[str], dict[str, Any]], as_json: bool) -> bool:
    """Whether `name` is an export already; then it went to Ollama as it is."""
    run, told = find_run(name), Path(name) / "danlu.json"
    is_folder = run is None and told.is_file() and read_json(told).get("kind") == "gguf"
    if not is_folder and not (run and run.info().get("stage") == "export"):
        return False
    if run and run.state() != "done":
        raise DanluError(f"{run.path} is {run.state()}, not done", "finish it first with --resume")
    result = after(name)
    if as_json:
        print_json(result)
    return True


def to_ollama(name: str, question: str | None, as_json: bool) -> dict[str, Any]:
    """Make the model of an export in Ollama, ask it one question, and tell what happened: {"ollama": {...}}."""
    from danlu.export.publish import publish
    from danlu.think import ThinkFormat

    folder, made = exported(name)
    run = find_run(name)
    found = publish(folder, str(run.config()["name"]) if run else folder.resolve().name)
    if not found["created"]:
        if question:
            raise DanluError("there is no Ollama to ask", "get it from https://ollama.com and start it: ollama serve")
        warn("no Ollama server answers and there is no ollama command; where there is one, type:")
        if not as_json:
            print("\n".join(found["commands"]))
        return {"ollama": found}
    where = f"{found['server']} (Ollama {found['version']})" if found["server"] else "Ollama, by its command"
    prompts = found["prompts"]
    say(f"made {found['model']} in {where}" + (f"; {prompts['compared']} prompts are the model's" if prompts else ""))
    if question:
        found["answers"] = _asked_once(found["model"], question, ThinkFormat.from_dict(made["think"]), as_json)
    return {"ollama": found}


def _asked_once(model: str, question: str, think: Any, as_json: bool) -> list[dict[str, Any]]:
    """One question with and without thinking, streamed to stdout unless it is for --json."""
    from danlu.export.publish import ask

    answers = []
    for thinking, parts in ask(model, question, think):
        told: dict[str, Any] = {"think": thinking, "reasoning": "", "answer": ""}
        if not as_json:
            print({True: "# think on", False: "# think off", None: "# answer"}[thinking], flush=True)
        last = ""
        for part, piece in parts:
            told[part] += piece
            if not as_json:
                sys.stdout.write(f"\n---\n{piece}" if last == "reasoning" and part == "answer" else piece)
                sys.stdout.flush()
            last = part
        if not as_json:
            print()
        answers.append(told)
    return answers
