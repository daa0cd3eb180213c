"""A tiny stand-in for the model of a recipe: its tokenizer, template, end tokens and architecture, and random weights.

The configuration and the tokenizer are the model's own where they can be had: locally, from the cache or from the hub
(some megabytes, never the weights). Out of reach, a relative in the hub's cache lends its tokenizer, else the shipped
base does, with a template that treats reasoning as the family's does. What stood in for what is said. A model whose
weights are small is rehearsed as it is.

Random weights write no answers, but they end their turn now and then (about one token in 50 while sampling), so that
completions of a group differ and the update of GRPO has something to work on.
Not covered: architectures that bring their own code, and what only the real weights show (loss, speed, memory).
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.errors import DanluError
from danlu.models.locate import base_dir
from danlu.models.plan_model import config_of
from danlu.models.tokenizer import Speech, load_tokenizer, speech_of
from danlu.recipe import Model, Recipe
from danlu.rehearse.book import Book, Page, out_of_reach
from danlu.run import read_json, write_json

SMALL = 32 << 20  # bytes of weights of a model that is rehearsed as it is
ENDS = 1 / 50  # probability that a random model ends its turn at a token
SPREAD = 0.25  # standard deviation of its embeddings and head
START = "at the start"

# The beginning of a name (newest families first) -> (architecture, how its template treats reasoning).
FAMILIES: tuple[tuple[str, str, str], ...] = (
    ("deepseek-r1-distill-qwen", "qwen2", "opened"),
    ("deepseek-r1-distill-llama", "llama", "opened"),
    ("qwen3", "qwen3", "own"),
    ("qwen2", "qwen2", "plain"),
    ("llama", "llama", "plain"),
    ("meta-llama", "llama", "plain"),
)
_TURNS = """{%- for message in messages -%}
{%- set content = message.content -%}
{%- if CUT and message.role == 'assistant' -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\nOPENING' -}}{%- endif -%}
"""
TEMPLATES = {  # for the tokens of the shipped base, whose own template is like Qwen3's
    "opened": _TURNS.replace("CUT", "true").replace("OPENING", "<think>\\n"),  # opens the block, deletes reasoning
    "plain": _TURNS.replace("CUT", "false").replace("OPENING", ""),  # knows no reasoning
}


@dataclass(frozen=True, slots=True)
class StandIn:
    """`spec`: the recipe's model section, pointing at the stand-in. `config`: the real model's, None where unknown.

    `own_words`: the tokenizer has the real one's vocabulary, so lengths in tokens hold.
    """

    spec: Model
    speech: Speech
    config: Any
    own_words: bool


@dataclass(frozen=True, slots=True)
class _Words:
    folder: Path
    template: str | None = None  # replaces the folder's own
    own: bool = True


def stand_in(spec: Model, folder: Path, seed: int, page: Page, book: Book) -> StandIn:
    """The stand-in of a recipe's model, written to `folder` (unless the model is small itself).

    Findings on the way go to `page` and what stands in for what to `book`. DanluError where nothing can be made.
    """
    real = None if spec.config else _real_folder(spec, page)
    config = _real_config(spec, real, page)
    words = _words(spec, real, page)
    if real is None and not spec.config:
        book.skip(_told(spec, config, words))
    if real is not None and spec.tokenizer is None and 0 < _weight_bytes(real) <= SMALL:
        found = spec.model_copy(update={"id": str(real), "revision": None})
        return StandIn(found, speech_of(found), config, True)
    if real is not None and Path(spec.id).expanduser().is_dir() and not _weight_bytes(real):
        page.error(START, f"{real} holds no weights", "it needs *.safetensors of a causal language model")
    _build(spec, config, words, real, folder, seed, book)
    found = Model(id=str(folder), **spec.model_dump(include={"dtype", "quantization", "think"}))
    return StandIn(found, speech_of(found), config, words.own)


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


# ---- what can be had


def _real_folder(spec: Model, page: Page) -> Path | None:
    """Where configuration and tokenizer of the model are, None where it is out of reach (or, a finding, not there)."""
    try:
        return base_dir(spec.model_dump(mode="json"), weights=False)
    except DanluError as error:
        if not out_of_reach(error):
            page.failed(START, error)
        return None


def _real_config(spec: Model, real: Path | None, page: Page) -> Any:
    """transformers' configuration of the real model: its own, else what is shipped of well-known ones, else None."""
    from transformers import AutoConfig

    path = Path(spec.config).expanduser() if spec.config else real
    if path is None:
        try:
            return config_of(spec)[0]
        except DanluError:  # the model is out of reach, or not there: told already
            return None
    try:
        return AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        if not spec.trust_remote_code:
            page.error(START, f"the configuration in {path} cannot be used: {first}", "give a model of transformers")
        return None


def _words(spec: Model, real: Path | None, page: Page) -> _Words:
    """The tokenizer that is used."""
    if spec.tokenizer:
        path = Path(spec.tokenizer).expanduser()
        try:
            return _Words(path if path.is_dir() else base_dir({"id": spec.tokenizer}, weights=False))
        except DanluError as error:
            if not out_of_reach(error):
                page.failed(START, error)
    elif real is not None:
        return _Words(real)
    elif spec.config:
        page.error(START, "model.config needs model.tokenizer", "--set model.tokenizer=DIRECTORY")
    name = spec.tokenizer or spec.id
    relative = _relative(name)
    if relative is not None:
        return _Words(relative)
    family = _family(name)
    return _Words(base_dir({"id": "tiny"}), TEMPLATES.get(family[2]) if family else None, own=False)


def _family(name: str) -> tuple[str, str, str] | None:
    bare = name.rpartition("/")[2].casefold()
    return next((family for family in FAMILIES if bare.startswith(family[0])), None)


def _relative(name: str) -> Path | None:
    """The tokenizer of another model of the family in the hub's cache."""
    from huggingface_hub import constants

    family = _family(name)
    for file in sorted(Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/tokenizer.json")):
        bare = file.parts[-4].rpartition("--")[2]
        if family and _family(bare) == family:
            return file.parent
    return None


def _told(spec: Model, config: Any, words: _Words) -> str:
    """What stands in for a model that cannot be fetched."""
    family = _family(spec.id)
    shape = config.model_type if config else f"{family[1]} by its name" if family else "qwen3, by guess"
    if not words.own:
        like = "with the family's way of reasoning" if family else "with its own template"
        lent = f"the tokenizer of the shipped base {like}; lengths in tokens are not the real ones"
    else:
        lent = f"the tokenizer in {words.folder}"
    return f"model {spec.id}: it cannot be fetched from here; used instead: architecture {shape}, {lent}"


# ---- the tiny model


def _build(spec: Model, config: Any, words: _Words, real: Path | None, folder: Path, seed: int, book: Book) -> None:
    folder.mkdir(parents=True)
    _copy_words(words, real, folder)
    tokenizer = load_tokenizer(folder)
    if config is None:
        family = _family(spec.id)
        config = _plain_config(family[1] if family else "qwen3")
        if real is not None:
            book.skip(f"the architecture of {spec.id}: a tiny {config.model_type} stood in")
    try:
        model = _random(config, tokenizer, words.own, seed)
    except Exception as error:  # an architecture that does not like to be small
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        book.skip(f"the architecture {config.model_type}: no tiny model of it can be made ({first}); a qwen3 stood in")
        model = _random(_plain_config("qwen3"), tokenizer, words.own, seed)
    model.save_pretrained(folder)
    source = next((d for d in (real, words.folder) if d and (d / "generation_config.json").is_file()), None)
    if source:
        shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")


def _copy_words(words: _Words, real: Path | None, folder: Path) -> None:
    """Tokenizer and template, and how an earlier training recorded to reason."""
    left = {"config.json", "generation_config.json", "danlu.json", "adapter_config.json"}
    for file in words.folder.iterdir():
        kept = file.suffix in (".json", ".jinja", ".txt", ".model") and not file.name.endswith(".index.json")
        if file.is_file() and kept and file.name not in left:
            shutil.copyfile(file, folder / file.name)
    if words.template is not None:
        (folder / "chat_template.jinja").write_text(words.template, encoding="utf-8")
    if real is not None and (real / "danlu.json").is_file():
        described = read_json(real / "danlu.json")
        write_json(folder / "danlu.json", {key: described[key] for key in ("think", "notice") if key in described})


def _plain_config(kind: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, hidden_size=1024, num_attention_heads=16, num_key_value_heads=8)


def shrunk(config: Any, vocabulary: int | None = None) -> Any:
    """The same architecture with two layers of width 64; `vocabulary` None keeps the real one."""
    real = config.to_dict()
    heads, kv_heads = real.get("num_attention_heads") or 4, real.get("num_key_value_heads")
    own_head = real.get("head_dim") not in (None, (real.get("hidden_size") or 0) // heads)
    small = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if kv_heads in (None, heads) else 2,
        "head_dim": 32 if own_head else 16,
        "max_window_layers": 2,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": (real.get("layer_types") or [])[:2],
        "vocab_size": vocabulary or real["vocab_size"],
    }
    changed = {key: value for key, value in small.items() if real.get(key) is not None}
    return type(config).from_dict({**real, **changed})


def _random(config: Any, tokenizer: Any, own_words: bool, seed: int) -> Any:
    """A model of `shrunk(config)` with random weights, in the dtype in which the real one is stored."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    small = shrunk(config, None if own_words else -(-len(tokenizer) // 64) * 64)
    if not own_words:
        small.bos_token_id, small.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        small.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    stored = getattr(config, "dtype", None)
    model = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
    with torch.no_grad():
        _liven(model, tokenizer.eos_token_id)
    return model.to(stored if isinstance(stored, torch.dtype) and stored.is_floating_point else torch.bfloat16)


def _liven(model: Any, end: int) -> None:
    """Weights that keep the size of what passes through; a constant first dimension carries P(end) = ENDS."""
    import torch

    for name, param in model.named_parameters():
        if param.dim() == 2:
            param.normal_(0, param.shape[1] ** -0.5)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                param[0] = 0  # nothing but the embedding writes to the first dimension
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for table in (embedding, head):  # one and the same where they are tied
        table.normal_(0, SPREAD)
        table[:, 0] = 1
    looked_at = torch.randint(0, head.shape[0], (4, 16))
    last = model.get_decoder()(input_ids=looked_at, use_cache=False).last_hidden_state
    wanted = (last @ head.T).logsumexp(-1).mean() + math.log(ENDS)
    head[end] = 0
    head[end, 0] = wanted / last[..., 0].mean()


# ---- what the model cannot do


def check_positions(recipe: Recipe, config: Any, page: Page) -> None:
    """Limits of the recipe beyond the positions that the model was made for."""
    known = getattr(config, "max_position_embeddings", None)
    if not known:
        return
    asked = {"eval.max_tokens": recipe.eval.max_tokens, "export.num_ctx": recipe.export.num_ctx}
    if "sft" in recipe.stages:
        asked["data.max_length"] = recipe.data.max_length
    if "grpo" in recipe.stages:
        asked["grpo.max_prompt + max_completion"] = recipe.grpo.max_prompt + recipe.grpo.max_completion
    for key, value in asked.items():
        if value > known:
            page.warning("beyond the limit", f"{key} is {value:,}, the model knows {known:,} positions", f"lower {key}")


def described(stand_in: StandIn) -> str:
    """One line on what was made of the model: architecture, reasoning format, end tokens."""
    think = stand_in.speech.think
    kind = json.loads((Path(stand_in.spec.id) / "config.json").read_text(encoding="utf-8")).get("model_type", "?")
    said = {"think": "reasons in <think>", "reasoning_answer": "reasons in <reasoning>", "none": "does not reason"}
    opened = ", opened by the template" if think.opened_by == "template" else ""
    return f"{kind}; {said[think.style]}{opened}; ends with {' or '.join(think.end_tokens)}"
