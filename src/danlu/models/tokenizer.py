"""A model's tokenizer, its chat template as a function, its end tokens and its think-format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danlu import think
from danlu.errors import DanluError
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
