"""The export stage: merge if needed, write the GGUF, the Modelfile and the card, and check them before delivering.

    artifact/model-QUANT.gguf   Modelfile   README.md   verify.json   danlu.json (what it was made from)

Nothing is delivered that failed its checks: the files then lie in `rejected/` and the run fails, naming the checks.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from danlu import display, domains
from danlu.errors import DanluError
from danlu.export.card import Lineage, card
from danlu.export.gguf import write_gguf
from danlu.export.merge import check_merge, merge
from danlu.export.ollama import commands, find_layout, modelfile
from danlu.export.parity import failed, probe_prompts, probe_texts, verify
from danlu.models.locate import base_dir, base_of
from danlu.models.tokenizer import load_tokenizer, renderer, think_format
from danlu.recipe import Recipe
from danlu.records import Message
from danlu.run import Run, list_runs, read_json, write_json

PROMPTS = 8  # questions of the domain's world that greedy answers are compared on


def export(recipe: Recipe, run: Run, source: Path | str, *, check: bool = True, licence: str = "") -> dict[str, Any]:
    """Export `source` into `run`: a run directory, an artifact (adapter or model), a model folder or a hub id.

    Returns {"gguf", "quant", "bytes", "verified", "checks", "commands"}. With `check` False nothing is compared.
    DanluError when the source cannot be exported or a check fails.
    """
    origin = _artifact(source)
    described = read_json(origin / "danlu.json") if (origin / "danlu.json").is_file() else {}
    with display.task("export", 4) as progress:
        model_dir, checks = _model(origin, run, check)
        progress.advance()
        notice = described.get("notice", "")
        with run.delivering("exported") as staged:
            gguf = write_gguf(
                model_dir,
                staged / f"model-{recipe.export.quant}.gguf",
                recipe.export.quant,
                name=recipe.name,
                description=notice,
            )
            progress.advance()
            _write_modelfile(recipe, model_dir, staged, gguf.name, notice, licence)
            write_json(
                staged / "danlu.json",
                {
                    "kind": "gguf",
                    "gguf": gguf.name,
                    "quant": recipe.export.quant,
                    "source": os.path.relpath(model_dir.resolve(), (run.artifact).resolve()),
                    "base": described.get("base") or {"id": str(source)},
                    "think": think_format(model_dir, load_tokenizer(model_dir)).to_dict(),
                    "notice": notice,
                    "parents": described.get("parents", []),
                },
            )
            report = None
            if check:
                texts, prompts = _probes(recipe)
                report = verify(gguf, model_dir, quant=recipe.export.quant, texts=texts, prompts=prompts)
                report = {"ok": report["ok"] and all(c["ok"] for c in checks), "checks": [*checks, *report["checks"]]}
                write_json(staged / "verify.json", report)
            progress.advance()
            _write_card(recipe, model_dir, staged, source, described, report, licence)
        _deliver(run, report)
        progress.advance()
    file = run.artifact / gguf.name
    for line in (typed := commands(recipe.name, str(run.artifact))):
        display.say(f"  {line}")
    return {
        "gguf": str(file),
        "quant": recipe.export.quant,
        "bytes": file.stat().st_size,
        "verified": bool(report and report["ok"]),
        "checks": report["checks"] if report else [],
        "commands": typed,
    }


def _artifact(source: Path | str) -> Path:
    """The folder to export: a run's artifact, the folder itself, or the local copy of a model id."""
    path = Path(source)
    if (path / "run.json").is_file():
        path = path / "artifact"
    if path.is_dir():
        if not any((path / name).is_file() for name in ("adapter_config.json", "config.json")):
            raise DanluError(f"{path} holds neither an adapter nor a model", "export a finished sft or grpo run")
        return path
    return base_dir({"id": str(source)})


def _model(origin: Path, run: Run, check: bool) -> tuple[Path, list[dict[str, Any]]]:
    """(transformers folder, checks of the merge) of an adapter or a model."""
    if not (origin / "adapter_config.json").is_file():
        return origin, []
    base, merged = base_of(origin), run.path / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    report = merge(base, origin, merged)
    display.say(f"merged {report.merged} of {report.tensors} tensors into {merged}")
    return merged, [check_merge(base, origin, merged)] if check else []


def _probes(recipe: Recipe) -> tuple[list[str], list[list[Message]]]:
    """Texts with the domain's terms, and questions of its world where it has one."""
    try:
        domain = domains.load(recipe.domain)
    except DanluError as error:
        display.warn(f"{error.message}: checked on general texts only")
        return probe_texts(), probe_prompts()
    texts = probe_texts([name for term in domain.terms() for name in term.names])
    if domain.world is None:
        return texts, probe_prompts()
    system: list[Message] = [{"role": "system", "content": recipe.data.system}] if recipe.data.system else []
    samples = domain.world.samples(next(iter(domain.world.splits)), PROMPTS, recipe.seed)
    chats = [list(sample.messages) for sample in samples]
    return texts, [chat if chat[0]["role"] == "system" else [*system, *chat] for chat in chats] + probe_prompts()


def _write_modelfile(recipe: Recipe, model_dir: Path, staged: Path, gguf: str, notice: str, licence: str) -> None:
    tokenizer = load_tokenizer(model_dir)
    bos = tokenizer.bos_token or ""
    adds_bos = bool(bos) and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    layout = find_layout(renderer(tokenizer), bos=bos, runtime_adds_bos=adds_bos)
    if layout is None:
        display.warn("the chat template could not be put into Ollama's language: the Modelfile has no TEMPLATE")
    settings = recipe.export
    if settings.system is None and recipe.data.system:  # the model was trained with it
        settings = settings.model_copy(update={"system": recipe.data.system})
    text = modelfile(gguf, think_format(model_dir, tokenizer), layout, settings, notice=notice, licence=licence)
    (staged / "Modelfile").write_text(text, encoding="utf-8")


def _write_card(
    recipe: Recipe,
    model_dir: Path,
    staged: Path,
    source: Path | str,
    described: dict[str, Any],
    report: dict[str, Any] | None,
    licence: str,
) -> None:
    base = described.get("base") or {"id": str(source)}
    text = card(
        recipe.name,
        lineage(Path(source), base),
        think_format(model_dir, load_tokenizer(model_dir)),
        quant=recipe.export.quant,
        report=report,
        licence=licence,
        notice=described.get("notice", ""),
        commands=commands(recipe.name, "."),
    )
    (staged / "README.md").write_text(text, encoding="utf-8")


def lineage(source: Path, base: dict[str, Any]) -> Lineage:
    """What the runs behind `source` (a run directory or its artifact) say about its origin."""
    path = source if (source / "run.json").is_file() else source.parent
    runs: list[Run] = []
    waiting = [path]
    while waiting:
        at = waiting.pop(0)
        if not (at / "run.json").is_file() or any(at.resolve() == run.path.resolve() for run in runs):
            continue
        runs.insert(0, Run(at))
        waiting += [Path(p) if Path(p).is_absolute() else at.parent / p for p in Run(at).info().get("parents", [])]
    facts = [(run, run.info()) for run in runs]
    data = {run.name: str(info["results"]["data_hash"]) for run, info in facts if info["results"].get("data_hash")}
    return Lineage(
        base=str(base.get("id") or "unknown"),
        revision=base.get("revision"),
        runs=tuple((info["stage"], run.name, info["config_digest"]) for run, info in facts),
        data=data,
        verdict=_verdict(runs),
    )


def _verdict(runs: list[Run]) -> str:
    """The sentence of the latest comparison of a run of this lineage with its base."""
    names = {name for run in runs for name in (run.name, str(run.path.resolve()))}
    for run in reversed(list_runs(runs[-1].path.parent) if runs else []):
        compared = run.path / "compare.json"
        if compared.is_file() and names & set(run.info().get("parents", [])):
            return str(read_json(compared).get("sentence", ""))
    return ""


def _deliver(run: Run, report: dict[str, Any] | None) -> None:
    """Rename the finished files to `artifact`, or to `rejected` when a check failed."""
    wrong = failed(report) if report else []
    target = run.path / "rejected" if wrong else run.artifact
    shutil.rmtree(target, ignore_errors=True)
    os.replace(run.path / "exported", target)
    if wrong:
        raise DanluError(
            f"the export differs from its source in: {', '.join(wrong)}",
            f"see {target / 'verify.json'}; nothing was delivered",
        )
