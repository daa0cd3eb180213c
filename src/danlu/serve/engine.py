"""Which server runs what: a command, its environment, and where it can be asked.

    vllm           an executable `vllm` on PATH or beside this Python; the adapter of a run stays unmerged (LoRA)
    llama.cpp      a .gguf file or an export run; anything else that Danlu can write as GGUF is merged and written first
    transformers   `transformers serve` for the architectures that are left; it takes no key and reasons in one text

`prepare` writes what an engine needs into a folder that is removed at the end. Secrets go through the environment or
stdin, never onto a command line, which every user of the machine can read.
Written against vLLM 0.10 and later (serve --enable-lora, --lora-modules NAME=PATH, --reasoning-parser, VLLM_API_KEY)
and transformers 5 (serve MODEL). Not covered: several GPUs (`vllm serve` itself takes more options), quantized bases of
adapters (bitsandbytes) outside vLLM: they are merged in their stored precision.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from danlu.display import say
from danlu.errors import DanluError
from danlu.generate.open import gguf_files
from danlu.generate.vllm import DTYPES, rank_for
from danlu.models.tokenizer import Speech, speech_of
from danlu.recipe import Recipe
from danlu.run import read_json, write_json
from danlu.think import ThinkFormat

Kind = Literal["auto", "vllm", "llama.cpp", "transformers"]
PORT = "{port}"  # stands in a command until the port is known


@dataclass(frozen=True, slots=True)
class Engine:
    """A server to start. `stdin`: JSON that it is given (with its port); `models`: names that it answers to."""

    kind: str
    command: tuple[str, ...]
    models: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    stdin: dict[str, object] | None = None
    folder: Path | None = None  # where it runs


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for: `context` tokens a request, `parallel` requests at once, the key that clients must know."""

    name: str
    kind: Kind = "auto"
    context: int | None = None
    parallel: int | None = None
    key: str = ""


def prepare(target: str, recipe: Recipe, wish: Wish, folder: Path) -> Engine:
    """The engine for `target`: a run's directory, a model folder or hub id, or a .gguf file.

    DanluError says what is missing or cannot be served so.
    """
    if files := gguf_files(Path(target)):
        if wish.kind not in ("auto", "llama.cpp"):
            raise DanluError(f"{wish.kind} does not serve GGUF files", "--engine llama.cpp, or give the run or model")
        return _llama(*files, wish)
    start = None if target == recipe.model.id else target
    kind = _chosen(wish.kind)
    speech = speech_of(recipe.model, start, weights=True)
    if speech.folder is None:
        raise DanluError("a model that is made from a config is not stored", "train it, then serve the run")
    if kind == "vllm":
        return _vllm(speech, recipe, wish, folder)
    from danlu.export.files import known

    model = _merged(speech, folder)
    if kind is None and wish.kind == "auto":
        kind = "llama.cpp" if known(model) or recipe.export.llama_cpp else "transformers"
    if kind == "transformers":
        return _transformers(model, wish, folder)
    return _llama(_written(model, recipe, wish, folder), None, wish)


def _chosen(kind: Kind) -> Kind | None:
    """The engine as far as it can be told before the model is known."""
    if kind == "vllm" or (kind == "auto" and _vllm_command()):
        return "vllm"
    return None if kind == "auto" else kind


# ---- what llama.cpp and transformers need


def _merged(speech: Speech, folder: Path) -> Path:
    """A folder with whole weights: the model's own, or base and adapter merged."""
    assert speech.folder is not None
    if speech.adapter is None:
        return speech.folder
    from danlu.export.merge import merge

    say(f"merging the adapter in {speech.adapter}")
    merge(speech.folder, speech.adapter, folder / "merged")
    return folder / "merged"


def _written(model: Path, recipe: Recipe, wish: Wish, folder: Path) -> Path:
    """The model as the first of the types that its recipe exports."""
    from danlu.export.files import write_files

    quant, checkout = recipe.export.quant[0], recipe.export.llama_cpp
    say(f"writing {wish.name} as GGUF ({quant})")
    llama_cpp = Path(checkout).expanduser() if checkout else None
    (found,) = write_files(model, folder, [quant], name=wish.name, llama_cpp=llama_cpp)
    return folder / found["gguf"]


def _llama(file: Path, lora: Path | None, wish: Wish) -> Engine:
    settings: dict[str, object] = {
        "path": str(file.resolve()),
        "lora": str(lora.resolve()) if lora else None,
        "name": wish.name,
        "context": _context(file, wish.context),
        "parallel": wish.parallel or 4,
        "key": wish.key,
    }
    return Engine("llama.cpp", (sys.executable, "-m", "danlu.serve.llama"), (wish.name,), stdin=settings)


def _context(file: Path, wanted: int | None) -> int:
    """Tokens of a slot: as wished or 4,096, and no more than the model was made for."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(file).fields
        trained = fields[f"{fields['general.architecture'].contents()}.context_length"].contents()
    except (KeyError, ValueError, OSError, IndexError):
        raise DanluError(f"{file} is no GGUF file of a language model", "the file may be cut; copy it again") from None
    return min(wanted or 4096, int(trained))


def _transformers(model: Path, wish: Wish, folder: Path) -> Engine:
    missing = [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]
    if missing:
        raise DanluError(f"transformers' server needs {', '.join(missing)}", 'pip install "danlu[serve]"')
    if wish.key:
        raise DanluError(
            "transformers' server knows no keys", "leave --api-key out (127.0.0.1 only), or serve with vLLM or a GGUF"
        )
    (folder / wish.name).symlink_to(model.resolve(), target_is_directory=True)  # clients say this name
    command = ("-m", "transformers.cli.transformers", "serve", wish.name, "--host", "127.0.0.1", "--port", PORT)
    offline = {"HF_HUB_OFFLINE": "1"}  # the model is here
    return Engine("transformers", (sys.executable, *command), (wish.name,), offline, folder=folder)


# ---- vLLM


def _vllm_command() -> str | None:
    beside = Path(sys.executable).with_name("vllm")
    return shutil.which("vllm") or (str(beside) if os.access(beside, os.X_OK) else None)


def _vllm(speech: Speech, recipe: Recipe, wish: Wish, folder: Path) -> Engine:
    """`vllm serve` with the adapter unmerged, or merged where vLLM would refuse it."""
    program = _vllm_command()
    if program is None:
        raise DanluError("vLLM is not installed", 'pip install "danlu[vllm]" (a GPU), or --engine llama.cpp')
    assert speech.folder is not None
    adapter, model = speech.adapter, speech.folder
    rank = 0
    if adapter is not None:
        try:
            rank = rank_for(adapter)
        except DanluError as error:
            say(f"{error.message}: it is merged first")
            adapter, model = None, _merged(speech, folder)
    base = Path(str(speech.recorded.get("id") or model.name)).name if adapter else wish.name
    base = f"{base}-base" if adapter and base == wish.name else base
    command = [program, "serve", str(model), "--host", "127.0.0.1", "--port", PORT, "--served-model-name", base]
    command += ["--tokenizer", str(speech.tokenizer.name_or_path), "--dtype", DTYPES[recipe.model.dtype]]
    command += ["--generation-config", str(_ends(speech, model, folder))]
    if recipe.model.quantization == "nf4":
        command += ["--quantization", "bitsandbytes"]
    if adapter is not None:
        command += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(rank)]
        command += ["--lora-modules", f"{wish.name}={adapter.resolve()}"]
    if parser := reasoning_parser(speech.think):
        command += ["--reasoning-parser", parser]
    if wish.context:
        command += ["--max-model-len", str(wish.context)]
    if wish.parallel:
        command += ["--max-num-seqs", str(wish.parallel)]
    models = (wish.name, base) if adapter else (base,)
    return Engine("vllm", tuple(command), models, {"VLLM_API_KEY": wish.key} if wish.key else {})


def reasoning_parser(think: ThinkFormat) -> str | None:
    """vLLM's parser for a format.

    deepseek_r1 takes text before </think> as reasoning also without the opening tag, which a template has written;
    qwen3 asks for both tags, so that an answer without reasoning stays an answer.
    """
    if think.style != "think":
        return None
    return "deepseek_r1" if think.opened_by == "template" else "qwen3"


def _ends(speech: Speech, model: Path, folder: Path) -> Path:
    """A folder whose generation config has the end tokens that training used; an adapter's are not its base's."""
    found = model / "generation_config.json"
    settings = read_json(found) if found.is_file() else {}
    target = folder / "generation"
    target.mkdir()
    write_json(target / "generation_config.json", {**settings, "eos_token_id": list(speech.end_ids)})
    return target


def given(engine: Engine, port: int) -> tuple[list[str], bytes]:
    """(command, stdin) of an engine on a port."""
    command = [str(port) if part == PORT else part for part in engine.command]
    return command, b"" if engine.stdin is None else json.dumps({**engine.stdin, "port": port}).encode()
