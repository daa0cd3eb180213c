"""The data stage: the prepared set as a Run, to look at, to keep, and for other trainers.

    artifact/rows/{train,valid,grpo}.jsonl Samples, which `data.train` of another recipe reads again
    artifact/tokens/{train,valid}/         the token sets (see data/store.py)
    artifact/export/FORMAT/{train,valid}.jsonl
    artifact/check.json, check.html        the data check
    artifact/README.md                     the data card; card.json is the same for machines

Formats: `prompt_completion` holds the rendered prompt and the completion with its end token (TRL trains exactly our
tokens from it), `text` the two as one string, `messages` chats whose last turn has the reasoning in its tags.
LLaMA-Factory finds `messages` through the dataset_info.json beside them, mlx-lm reads the directory `text`.
`messages` go through the other trainer's chat template: with R1-Distill's, which deletes reasoning, use the others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from danlu import domains
from danlu.data.check import check
from danlu.data.page import page
from danlu.data.prepare import Prepared, prepare, prompts, shape_of, write_rejected
from danlu.data.render import prompt_text
from danlu.data.store import Store, open_store
from danlu.models.tokenizer import Speech, speech_of
from danlu.recipe import Recipe, Source
from danlu.records import Sample
from danlu.run import Run, write_json, write_jsonl
from danlu.think import ThinkFormat

FORMATS = ("prompt_completion", "messages", "text")


def stage(recipe: Recipe, run: Run, start: str | None = None) -> dict[str, Any]:
    """Write the prepared set of `recipe` into run.artifact; counts and hashes as a dict of results.

    DanluError for data that cannot be read or rendered, and for a full disk.
    """
    speech = speech_of(recipe.model, start)
    rl = recipe.grpo.data or recipe.data.train if "grpo" in recipe.stages else []
    asked = prompts(recipe, rl) if rl else None
    prepared = prepare(recipe) if recipe.data.train or asked is None else asked
    write_rejected(run, prepared)
    splits = {"train": prepared.train} if prepared is not asked else {}
    splits |= {"valid": prepared.valid} if prepared.valid else {}
    stores = {name: open_store(speech.tokenizer, speech.think, rows, shape_of(recipe)) for name, rows in splits.items()}
    report = check(recipe, speech)
    described = card(recipe, prepared, stores, report)
    with run.delivering() as staged:
        for name, rows in splits.items():
            _write(staged / "rows" / f"{name}.jsonl", (row.to_dict() for row in rows))
            _linked(stores[name].path, staged / "tokens" / name)
            for format_ in FORMATS:
                _write(staged / "export" / format_ / f"{name}.jsonl", exported(speech, rows, format_))
        if asked:
            _write(staged / "rows" / "grpo.jsonl", (row.to_dict() for row in asked.train))
        if splits:
            write_json(staged / "export" / "messages" / "dataset_info.json", _llama_factory(list(splits)))
        write_json(staged / "check.json", report)
        (staged / "check.html").write_text(page(report, recipe.name), encoding="utf-8")
        write_json(staged / "card.json", described)
        (staged / "README.md").write_text(card_text(described), encoding="utf-8")
    found = {"errors": 0, "warnings": 0}
    for finding in report["findings"]:
        if f"{finding['level']}s" in found:
            found[f"{finding['level']}s"] += 1
    return {"counts": prepared.counts, "hashes": prepared.hashes, "tokens": described["tokens"], **found}


def exported(speech: Speech, rows: Sequence[Sample], format_: str) -> Iterator[dict[str, Any]]:
    """The rows in one of FORMATS."""
    think, end = speech.think, speech.think.end_tokens[0]
    for row in rows:
        completion = think.join(row.reasoning, row.answer)
        if format_ == "messages":
            yield {"messages": [*map(_with_tags(think), row.messages), _said(think, row.reasoning, row.answer)]}
            continue
        prompt = prompt_text(speech.tokenizer, think, row.messages)
        if format_ == "text":
            yield {"text": prompt + completion + end}
        else:
            yield {"prompt": prompt, "completion": completion + end}


def _with_tags(think: ThinkFormat) -> Any:
    def turn(message: Any) -> dict[str, str]:
        if message["role"] == "assistant":
            return _said(think, message.get("reasoning_content", ""), message["content"])
        return {"role": message["role"], "content": message["content"]}

    return turn


def _said(think: ThinkFormat, reasoning: str, answer: str) -> dict[str, str]:
    """An assistant turn with its reasoning in tags, also where the template opens the block itself."""
    opening = think.prefix if reasoning and think.opened_by == "template" else ""
    content = opening + think.join(reasoning, answer) if reasoning else answer
    return {"role": "assistant", "content": content}


def _llama_factory(splits: list[str]) -> dict[str, Any]:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    return {
        name: {
            "file_name": f"{name}.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {**tags, "system_tag": "system"},
        }
        for name in splits
    }


def _write(path: Path, rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, rows)


def _linked(source: Path, target: Path) -> None:
    """The files of a token set under a second name, without copying where the disk allows it."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copy2(file, target / file.name)


# ---- the data card


def card(recipe: Recipe, prepared: Prepared, stores: dict[str, Store], report: dict[str, Any]) -> dict[str, Any]:
    """What the set is made of: sources with licences, counts, hashes, seeds, how rows became tokens, what was found."""
    domain = domains.load(recipe.domain)
    sources = [*recipe.data.train, *recipe.data.valid] if stores else recipe.grpo.data or recipe.data.train
    return {
        "name": recipe.name,
        "domain": recipe.domain,
        "notice": domain.notice,
        "sources": [{**told, **_described(source)} for source, told in zip(sources, prepared.sources, strict=True)],
        "counts": prepared.counts,
        "hashes": prepared.hashes,
        "seeds": {"shuffle": recipe.data.shuffle_seed, "recipe": recipe.seed},
        "model": recipe.model.config or recipe.model.id,
        "think": report["think"],
        "shape": {name: getattr(recipe.data, name) for name in ("max_length", "overlong", "loss_on", "redact")},
        "decontaminated": recipe.data.decontaminate,
        "tokens": {
            name: {
                "key": store.key,
                "rows": len(store),
                "tokens": store.report.tokens,
                "supervised": store.report.supervised_tokens,
                "dropped": len(store.report.dropped),
                "truncated": len(store.report.truncated),
            }
            for name, store in stores.items()
        },
        "mix": report["mix"],
        "findings": [{key: f[key] for key in ("code", "level", "count", "what")} for f in report["findings"]],
    }


def _described(source: Source) -> dict[str, Any]:
    return {
        "split": source.split,
        "subset": source.subset,
        "revision": source.revision,
        "limit": source.limit,
        "seed": source.seed,
        "licence": source.licence or "not stated",
    }


def card_text(described: dict[str, Any]) -> str:
    """The data card in Markdown."""
    counts, shape = described["counts"], described["shape"]
    lines = [f"# Data of {described['name']}", ""]
    if described["notice"]:
        lines += [f"> **{described['notice']}**", ""]
    lines += ["## Sources", "", "| source | split | revision | rows in | kept | rejected | licence |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for source in described["sources"]:
        cells = [source[key] for key in ("path", "split", "revision", "in", "kept", "rejected", "licence")]
        lines.append("| " + " | ".join("-" if cell is None else str(cell).replace("|", "\\|") for cell in cells) + " |")
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    hashes = ", ".join(f"{name} `{value}`" for name, value in described["hashes"].items())
    lines += ["", "## Rows", "", f"{listed}. Hashes: {hashes}.", f"Shuffled with seed {described['seeds']['shuffle']}."]
    lines += ["", "## Tokens", "", f"Of {described['model']}; at most {shape['max_length']} a row (longer rows:"]
    lines[-1] += f" {shape['overlong']}), loss on {shape['loss_on']}."
    for name, told in described["tokens"].items():
        lines.append(
            f"- {name}: {told['rows']} rows, {told['tokens']} tokens, {told['supervised']} with loss;"
            f" {told['dropped']} dropped, {told['truncated']} cut"
        )
    lines += ["", "## Found by the data check", ""]
    lines += [f"- {f['level']} {f['code']} ({f['count']}): {f['what']}" for f in described["findings"]] or ["- nothing"]
    lines += ["", "## Formats", "", "`export/prompt_completion`: rendered prompt and completion with its end token."]
    lines += ["`export/text`: both as one string. `export/messages`: chats (with dataset_info.json)."]
    return "\n".join(lines) + "\n"
