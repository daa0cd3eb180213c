"""Bodies of `danlu data check` and `danlu data view`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from random import Random

from danlu.cli.data import print_pieces, print_report
from danlu.cli.readers import check_folder, print_json
from danlu.cli.stages import find_run
from danlu.data.files import SUFFIXES
from danlu.display import say
from danlu.errors import DanluError
from danlu.recipe import Recipe, load, parse


def data_recipe(
    name: str | None, overrides: list[str], model: str | None, data: str | None, start: str | None = None
) -> Recipe:
    """The recipe of RECIPE and --set; or one of its own for --data and --model, which may also replace a recipe's."""
    if name is None and data is None:
        raise DanluError("there is nothing to look at", "name a recipe, or give --model MODEL --data FILE")
    if name is not None and Path(name).suffix.lower() in SUFFIXES:
        raise DanluError(f"{name} is a data file, not a recipe", f"danlu data check --model MODEL --data {name}")
    if name is None and model is None and start is None:
        raise DanluError("--data needs a model: its tokenizer and template decide", "add --model MODEL, or --from RUN")
    changes = [f"data.train={json.dumps([{'path': data}])}"] if data else []
    changes += [f"model.id={json.dumps(model)}"] if model else []
    if name is None:
        return parse("name: data\nstages: [sft]\n", [*changes, *overrides], origin="--set")
    return load(name, [*changes, *overrides])


def show_check(
    name: str | None,
    overrides: list[str],
    model: str | None,
    data: str | None,
    start: str | None,
    html: Path | None,
    as_json: bool,
) -> int:
    """Body of `danlu data check`; 1 when something was found at error level."""
    recipe = data_recipe(name, overrides, model, data, start)
    check_folder(html)
    from danlu.data.check import check
    from danlu.data.page import page
    from danlu.models.tokenizer import speech_of

    report = check(recipe, speech_of(recipe.model, _started(start)))
    if html:
        html.write_text(page(report, recipe.name), encoding="utf-8")
        say(f"written: {html}")
    if as_json:
        print_json(report)
    else:
        print_report(report)
    return 0 if report["ok"] else 1


def show_rows(
    name: str | None,
    overrides: list[str],
    model: str | None,
    data: str | None,
    start: str | None,
    html: Path | None,
    as_json: bool,
    *,
    row: int | None,
    random: bool,
    count: int,
    epoch: int,
    masked: bool,
    seed: int,
) -> None:
    """Body of `danlu data view`."""
    recipe = data_recipe(name, overrides, model, data, start)
    check_folder(html)
    from danlu.data.rows import TrainingRows, opened
    from danlu.data.view import html as page
    from danlu.data.view import pieces
    from danlu.models.tokenizer import speech_of

    speech = speech_of(recipe.model, _started(start))
    prepared, store = opened(recipe, speech)
    if not len(store):
        raise DanluError("no row is left to look at", "danlu data check says why")
    if row is not None and row >= len(store):
        raise DanluError(f"there is no row {row}", f"rows are 0 to {len(store) - 1}")
    if random and row is not None:
        raise DanluError(
            "--row and --random name different rows", "give one of them; --seed changes what --random draws"
        )
    if masked and (recipe.data.masking is None or not recipe.data.train):
        raise DanluError("the recipe masks no terms", "for example: --set data.masking.probability=0.5")
    rows = TrainingRows(recipe, speech.tokenizer, speech.think, prepared.train, store)
    order = list(range(len(store)))
    if random:
        Random(seed).shuffle(order)
    order = order[row or 0 :]
    found = []
    for index in order:
        rendered = rows.rendered(epoch, index)
        if rendered.masked or not masked:
            found.append((index, rendered))
        if len(found) == count:
            break
    if not found:
        raise DanluError(f"no row is masked in epoch {epoch}", "try another --epoch, or a higher masking.probability")
    shown = [(f"row {i}: {r.id}", pieces(speech.tokenizer, r, speech.end_ids)) for i, r in found]
    if html:
        html.write_text(page(shown, recipe.name), encoding="utf-8")
        say(f"written: {html}")
    if as_json:
        told = zip(found, shown, strict=True)
        print_json(
            {
                "rows": [
                    {"row": i, "id": r.id, "tokens": len(r.tokens), "pieces": [asdict(piece) for piece in own]}
                    for (i, r), (_, own) in told
                ]
            }
        )
        return
    if not html:
        for title, own in shown:
            print_pieces(title, own)


def _started(start: str | None) -> str | None:
    """What --from names, for its tokenizer and template."""
    run = find_run(start) if start else None
    if run and run.info().get("stage") not in ("sft", "grpo"):
        raise DanluError(f"{start} is a {run.info().get('stage')} run: it holds no model", "give --model MODEL instead")
    return str(run.path) if run else start
