"""The export stage: merge if needed, write the GGUF, the Modelfile and the card, and check them before delivering.

    artifact/model-QUANT.gguf ...   Modelfile   README.md   verify.json   danlu.json (what it was made from)

Each type of `export.quant` is a file and is checked; the Modelfile points at the first. Nothing is delivered when a
check failed: the files then lie in `rejected/` and the run fails, naming the checks.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from danlu import display, domains
from danlu.errors import DanluError
from danlu.export.card import card
from danlu.export.files import known, write_files
from danlu.export.lineage import lineage
from danlu.export.lora import check_lora, write_lora
from danlu.export.merge import merge
from danlu.export.merge_check import check_merge, told
from danlu.export.merged import recorded_base
from danlu.export.ollama import commands, find_layout, modelfile
from danlu.export.parity import probe_prompts, probe_texts, verify
from danlu.models.locate import base_dir
from danlu.models.tokenizer import load_tokenizer, renderer, think_format
from danlu.recipe import Recipe
from danlu.records import Message
from danlu.run import Run, read_json, write_json

PROMPTS = 8  # questions of the domain's world that greedy answers are compared on


def export(recipe: Recipe, run: Run, source: Path | str, *, check: bool = True, licence: str = "") -> dict[str, Any]:
    """Export `source` into `run`: a run directory, an artifact (adapter or model), a model folder or a hub id.

    Returns {"gguf", "quant", "bytes", "files", "verified", "checks", "commands"}; the first three are of the first
    file, `files` has them of each. With `check` False nothing is compared. DanluError when the source cannot be
    exported or a check fails.
    """
    origin = _artifact(source)
    described = read_json(origin / "danlu.json") if (origin / "danlu.json").is_file() else {}
    adapter = origin if recipe.export.to == "gguf-lora" else None
    if adapter and not (adapter / "adapter_config.json").is_file():
        raise DanluError(f"{origin} holds no adapter", "export.to: gguf-lora takes a run with method: lora")
    model_dir, checks = (_bare_base(origin, described), []) if adapter else _model(origin, run, check)
    if check and not known(model_dir):
        display.warn("llama.cpp's own converter writes this architecture: the files are not compared with their source")
        check = False
    notice = described.get("notice", "")
    with run.delivering("exported") as staged:
        settings = recipe.export
        files = write_files(
            model_dir,
            staged,
            settings.quant,
            name=recipe.name,
            description=notice,
            llama_cpp=Path(settings.llama_cpp).expanduser() if settings.llama_cpp else None,
            imatrix=Path(settings.imatrix).expanduser() if settings.imatrix else None,
        )
        lora = write_lora(adapter, model_dir, staged / "adapter.gguf", name=recipe.name) if adapter else None
        _write_modelfile(recipe, model_dir, staged, files[0]["gguf"], notice, licence)
        write_json(
            staged / "danlu.json",
            {
                "kind": "gguf",
                **{key: files[0][key] for key in ("gguf", "quant")},
                "files": files,
                **({"adapter": lora.name} if lora else {}),
                "source": os.path.relpath(model_dir.resolve(), (run.artifact).resolve()),
                "base": described.get("base") or {"id": str(source)},
                "think": think_format(model_dir, load_tokenizer(model_dir)).to_dict(),
                "notice": notice,
                "parents": described.get("parents", []),
            },
        )
        report = _checked(recipe, model_dir, staged, files, checks, adapter) if check else None
        _write_card(recipe, model_dir, staged, source, described, report, licence)
    _deliver(run, report)
    for line in (typed := commands(recipe.name, str(run.artifact))):
        display.say(f"  {line}")
    return {
        **files[0],
        "gguf": str(run.artifact / files[0]["gguf"]),
        "files": [{**file, "gguf": str(run.artifact / file["gguf"])} for file in files],
        "verified": bool(report and report["ok"]),
        "checks": report["checks"] if report else [],
        "commands": typed,
    }


def _checked(
    recipe: Recipe,
    model_dir: Path,
    staged: Path,
    files: list[dict[str, Any]],
    checks: list[dict[str, Any]],
    adapter: Path | None,
) -> dict[str, Any]:
    """The report of `verify` over all files, also written to verify.json; a check of a file names it in `file`."""
    texts, prompts = _probes(recipe)
    for file in files:
        found = verify(staged / file["gguf"], model_dir, quant=file["quant"], texts=texts, prompts=prompts)
        checks = [*checks, *({**one, "file": file["gguf"]} for one in found["checks"])]
        if adapter:
            tokenizer = load_tokenizer(model_dir)
            rendered = [renderer(tokenizer)(list(chat), add_generation_prompt=True) for chat in prompts]
            ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered]
            path = staged / file["gguf"]
            one = check_lora(path, staged / "adapter.gguf", model_dir, adapter, file["quant"], ids)
            checks.append({**one, "file": file["gguf"]})
    report = {"ok": all(one["ok"] for one in checks), "checks": checks}
    write_json(staged / "verify.json", report)
    return report


def _artifact(source: Path | str) -> Path:
    """The folder to export: a run's artifact, the folder itself, or the local copy of a model id."""
    path = Path(source)
    if (path / "run.json").is_file():
        path = path / "artifact"
        if not path.is_dir():
            raise DanluError(f"{source} has no artifact", "finish that run first (--resume)")
    if path.is_dir():
        if not any((path / name).is_file() for name in ("adapter_config.json", "config.json")):
            raise DanluError(f"{path} holds neither an adapter nor a model", "export a finished sft or grpo run")
        return path
    return base_dir({"id": str(source)})


def _model(origin: Path, run: Run, check: bool) -> tuple[Path, list[dict[str, Any]]]:
    """(transformers folder, checks of the merge) of an adapter or a model."""
    if not (origin / "adapter_config.json").is_file():
        return origin, []
    described = read_json(origin / "danlu.json") if (origin / "danlu.json").is_file() else {}
    base, merged = recorded_base(origin, described), run.path / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    report = merge(base, origin, merged)
    display.say(f"merged {report.merged} of {report.tensors} tensors into {merged}")
    if not check:
        return merged, []
    found = check_merge(base, origin, merged)
    for line in told(found):
        display.say(line)
    return merged, [found]


def _bare_base(adapter: Path, described: dict[str, Any]) -> Path:
    """The base of an adapter that goes out beside it; DanluError where prompts would not be those of training."""
    base = recorded_base(adapter, described)
    trained = load_tokenizer(adapter) if (adapter / "tokenizer.json").is_file() else None
    if trained and trained.chat_template != load_tokenizer(base).chat_template:
        raise DanluError(
            "the adapter was trained with another chat template than its base's", "export the merged model: --to gguf"
        )
    return base


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
    if recipe.export.to == "gguf-lora":
        text = text.replace(f"FROM ./{gguf}\n", f"FROM ./{gguf}\nADAPTER ./adapter.gguf\n", 1)
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
        quant="`, `".join(recipe.export.quant),
        report=report,
        licence=licence,
        notice=described.get("notice", ""),
        commands=commands(recipe.name, "."),
    )
    (staged / "README.md").write_text(text, encoding="utf-8")


def _deliver(run: Run, report: dict[str, Any] | None) -> None:
    """Rename the finished files to `artifact`, or to `rejected` when a check failed."""
    several = len({one.get("file") for one in report["checks"]} - {None}) > 1 if report else False
    bad = [one for one in report["checks"] if not one["ok"]] if report else []
    wrong = [f"{one['name']} of {one['file']}" if several and "file" in one else one["name"] for one in bad]
    target = run.path / "rejected" if wrong else run.artifact
    shutil.rmtree(target, ignore_errors=True)
    os.replace(run.path / "exported", target)
    if wrong:
        raise DanluError(
            f"the export differs from its source in: {', '.join(wrong)}",
            f"see {target / 'verify.json'}; nothing was delivered",
        )
