"""How a model speaks: its tokenizer, its chat template as a function, its end tokens and its think-format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu import think
from danlu.errors import DanluError
from danlu.models.locate import base_dir, origin
from danlu.recipe import Model
from danlu.run import read_json


def load_tokenizer(model_dir: Path) -> Any:
    """transformers' tokenizer of a local folder; DanluError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DanluError(
            f"no tokenizer in {model_dir}: {str(error).splitlines()[0]}", "it needs tokenizer.json and its config"
        ) from None


def renderer(tokenizer: Any) -> think.Render:
    """`render(messages, add_generation_prompt=..., **template_kwargs) -> text` through the chat template."""

    def render(messages: Any, *, add_generation_prompt: bool = True, **kwargs: Any) -> str:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **kwargs,
        )

    return render


def end_token_ids(model_dir: Path, tokenizer: Any) -> list[int]:
    """Every id that ends a turn, in order: the generation config's, the config's and the tokenizer's."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = model_dir / name
        value = read_json(path).get("eos_token_id") if path.is_file() else None
        found += value if isinstance(value, list) else [] if value is None else [value]
    if tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    return list(dict.fromkeys(found))


def token_ids(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Ids of single tokens; DanluError for one that the vocabulary does not have."""
    known = tokenizer.get_vocab()
    if unknown := [token for token in tokens if token not in known]:
        raise DanluError(
            f"{unknown[0]!r} is not a token of this model", "the tokenizer is not the one it was trained with"
        )
    return [known[token] for token in tokens]


def think_format(model_dir: Path, tokenizer: Any) -> think.ThinkFormat:
    """The model's reasoning format: what training recorded in danlu.json, else what its template says."""
    recorded = read_json(model_dir / "danlu.json").get("think") if (model_dir / "danlu.json").is_file() else None
    if recorded:
        return think.ThinkFormat.from_dict(recorded)
    ends = tokenizer.convert_ids_to_tokens(end_token_ids(model_dir, tokenizer))
    return think.detect(renderer(tokenizer), tuple(ends))


@dataclass(frozen=True, slots=True)
class Speech:
    """All of a model but its weights. `recorded`: the base as an artifact names it; `folder` is None without one."""

    tokenizer: Any
    think: think.ThinkFormat
    end_ids: tuple[int, ...]
    folder: Path | None
    adapter: Path | None
    recorded: dict[str, Any]


def speech_of(spec: Model, start: str | None = None, *, weights: bool = False) -> Speech:
    """How the model of a recipe, or of `start` (run, adapter, model folder or hub id), speaks; needs no torch.

    Without `weights` a hub's weights are not downloaded. DanluError names what is missing.
    """
    folder, adapter, recorded = origin(spec, start, weights=weights)
    where = Path(spec.tokenizer) if spec.tokenizer else None
    if where is None and adapter is not None and (adapter / "tokenizer.json").is_file():
        where = adapter
    where = where or folder
    if where is None:
        raise DanluError("model.config needs model.tokenizer", "--set model.tokenizer=DIRECTORY")
    if not where.is_dir():
        where = base_dir({"id": str(where)}, weights=False)
    tokenizer = load_tokenizer(where)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    trained = adapter or folder  # what an earlier run wrote says how it was trained
    described = read_json(trained / "danlu.json") if trained and (trained / "danlu.json").is_file() else {}
    if described.get("think"):
        found = think.ThinkFormat.from_dict(described["think"])
    else:
        ends = end_token_ids(folder or where, tokenizer)
        found = think.detect(renderer(tokenizer), tuple(tokenizer.convert_ids_to_tokens(ends)), spec.think)
    ids = tuple(tokenizer.convert_tokens_to_ids(token) for token in found.end_tokens)
    return Speech(tokenizer, found, ids, folder, adapter, recorded)
