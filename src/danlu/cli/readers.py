"""Commands that read: listings, details, verdicts. Data goes to stdout, as text for people or one JSON object."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danlu.cli.stages import delivered, find_run, open_run
from danlu.display import duration, say, warn
from danlu.errors import DanluError
from danlu.recipe import load, runs_root, shipped
from danlu.run import Run, list_runs, read_jsonl

# the number that stands for a run in `danlu ls`: the first of these in its results
KEY_NUMBERS = ("accuracy", "reward", "eval_loss", "best_eval_loss", "valid_loss", "loss", "train_loss", "ok")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: rich on a terminal, tab-aligned text elsewhere."""
    import sys

    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        drawn = Table(*head, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            drawn.add_row(*row)
        Console(markup=False).print(drawn)
        return
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, default=str))


def check_folder(html: Path | None) -> None:
    """DanluError where a page cannot be written, before the work for it is done."""
    if html and not html.absolute().parent.is_dir():
        raise DanluError(f"the folder of {html} does not exist", f"make it first: mkdir -p {html.parent}")


# ---- recipes


def show_recipes(as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    for name, path in shipped().items():
        recipe = load(str(path))
        rows.append(
            {
                "name": name,
                "model": recipe.model.id,
                "stages": list(recipe.stages),
                "description": recipe.description,
                "path": str(path),
            }
        )
    if as_json:
        print_json({"recipes": rows})
        return
    table(
        ("NAME", "MODEL", "STAGES", "WHAT"),
        [(r["name"], r["model"], " ".join(r["stages"]), r["description"]) for r in rows],
    )


def new_recipe(name: str, source: str) -> Path:
    """Copy the shipped recipe `source` to ./NAME.yaml under the new name, comments and all."""
    name = name.removesuffix(".yaml")
    if not re.fullmatch(r"[\w.-]+", name):
        raise DanluError(f"{name!r} is not a recipe name", "use letters, digits, dot, dash and underscore")
    known = shipped()
    if source not in known:
        raise DanluError(f"no shipped recipe {source!r}", f"shipped: {', '.join(known) or 'none'}")
    target = Path(f"{name}.yaml")
    text = re.sub(r"(?m)^name:.*$", lambda _: f"name: {name}", known[source].read_text(encoding="utf-8"), count=1)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise DanluError(f"{target} exists", "choose another name or remove it") from None
    return target


# ---- runs


def describe_run(run: Run) -> dict[str, Any]:
    """One line of `danlu ls`."""
    try:
        info = run.info()
        state = run.state()
    except (DanluError, KeyError):
        return {"name": run.name, "stage": "?", "status": "unreadable", "key": None, "value": None}
    results = info.get("results", {})
    measured = [entry for entry in results.get("benchmarks", {}).values() if entry.get("n")]
    if measured:  # of an evaluation: over all its questions
        right = sum(entry["n"] * entry["accuracy"] for entry in measured)
        results = {**results, "accuracy": right / sum(entry["n"] for entry in measured)}
    key = next((key for key in KEY_NUMBERS if isinstance(results.get(key), int | float)), None)
    return {
        "name": run.name,
        "stage": info.get("stage"),
        "status": state,
        "key": key,
        "value": results.get(key) if key else None,
        "created": info.get("created"),
        "seconds": info.get("seconds"),
        "parents": info.get("parents", []),
        "path": str(run.path),
    }


def show_runs(as_json: bool) -> None:
    rows = [describe_run(run) for run in list_runs(runs_root())]
    if as_json:
        print_json({"root": str(runs_root()), "runs": rows})
        return
    if not rows:
        print(f"no runs in {runs_root()} yet")
        return
    now = time.time()
    cells = []
    for row in rows:
        value = row["value"]
        number = f"{row['key']} {value:.4g}" if row["key"] else ""
        age = f"{duration(now - row['created'])} ago" if row.get("created") else ""
        cells.append((row["name"], row["stage"] or "", row["status"], number, age, duration(row.get("seconds"))))
    table(("NAME", "STAGE", "STATUS", "RESULT", "STARTED", "TOOK"), cells)


def lineage(run: Run) -> list[str]:
    """The run's ancestors, nearest first; ends at a model, or at a run that is gone."""
    found: list[str] = []
    waiting = list(run.info().get("parents", []))
    while waiting:
        parent = waiting.pop(0)
        if parent in found:
            continue
        found.append(parent)
        above = find_run(parent)
        waiting += above.info().get("parents", []) if above else []
    return found


def show_run(name: str, html: Path | None, as_json: bool) -> None:
    run = open_run(name)
    if html:
        check_folder(html)
        from danlu.run_page import page

        html.write_text(page(run), encoding="utf-8")
        say(f"written: {html}")
    info = run.info()
    metrics = run.metrics()
    facts = {
        **info,
        "status": run.state(),
        "path": str(run.path),
        "artifact": str(delivered(run)),
        "lineage": lineage(run),
        "metrics_rows": len(metrics),
        "last_metrics": metrics[-1] if metrics else None,
    }
    if as_json:
        print_json(facts)
    if as_json or html:
        return
    config = run.config()
    print(f"{run.name}  {info['stage']}  {facts['status']}  {duration(info.get('seconds'))}".rstrip())
    print(f"  recipe   {config.get('name')}  seed {info.get('seed')}  config {info.get('config_digest')}")
    print(f"  lineage  {' <- '.join([run.name, *facts['lineage']])} <- {config.get('model', {}).get('id')}")
    print(f"  artifact {facts['artifact']}")
    if info.get("error"):
        print(f"  error    {info['error']}")
    for title, values in (("results", info.get("results")), ("last metrics", facts["last_metrics"])):
        if values:
            print(f"  {title}")
            for key, value in values.items():
                print(f"    {key} {_short(value)}")
    packages = ", ".join(f"{name} {version}" for name, version in info.get("packages", {}).items())
    print(f"  versions {packages}")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else text[:197] + "..."


# ---- verdicts


def show_score(file: Path, as_json: bool) -> None:
    """Score a file of answers; every row is verified against its target."""
    from danlu.evaluate.score import score

    if not file.is_file():
        raise DanluError(f"{file} does not exist", "give a .jsonl file of questions, targets and outputs")
    rows = read_jsonl(file)
    if len(rows) < sum(bool(line.strip()) for line in file.read_bytes().split(b"\n")):
        raise DanluError(f"the last line of {file} is not JSON", "it may have been cut; mend or remove it")
    scored = score(rows)
    if as_json:
        print_json(scored)
        return
    for key, value in scored["summary"].items():
        print(f"{key} {_short(value)}")


def print_verdict(comparison: dict[str, Any]) -> None:
    """A comparison for people: the sentence, then a line a benchmark."""
    print(comparison["sentence"])
    rows = [
        (
            row["name"],
            str(row["n"]),
            _percent(row["base"]),
            _percent(row["tuned"]),
            f"{100 * row['difference']:+.1f}",
            f"[{100 * row['ci'][0]:+.1f}, {100 * row['ci'][1]:+.1f}]",
            f"{row['p']:.2g}",
            f"+{row['gained']} -{row['lost']}",
        )
        for row in comparison["benchmarks"]
    ]
    table(("BENCHMARK", "N", "BASE", "TUNED", "POINTS", "95 % CI", "P", "ANSWERS"), rows)
    if comparison.get("gate"):
        print(comparison["gate"]["sentence"])
    for difference in comparison.get("settings_differ", []):
        warn(f"not asked alike: {difference}")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def show_demo(seed: int, out: Path | None, as_json: bool) -> None:
    from danlu.demo import demo, free_directory, told

    result = demo(seed, out or free_directory(runs_root()))
    if as_json:
        print_json(result)
    else:
        print(told(result))


def show_studio(files: list[Path], host: str, port: int | None, token: str | None, show: bool) -> None:
    for file in files:
        if not file.exists():
            raise DanluError(f"{file} does not exist", "name recipes, data files, models or folders that are here")
    from danlu.studio.place import Place
    from danlu.studio.serve import serve

    place = Place(runs_root().absolute(), tuple(file.absolute() for file in files))
    serve(place, host=host, port=port, token=token, show=show)
