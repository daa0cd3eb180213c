"""What a recipe's model is made of, from its config alone: every parameter as it will be held, none of them allocated.

The model is built on the meta device by the very functions that build it for training (transformers' class, the adapter
of `load`), so names, dtypes and what is trained are theirs. What is imitated is quantization, which needs the weights:
a 4-bit matrix is half a byte a weight, one byte a block of 64 for its scale, and four bytes a block of 256 scales
(double quantization; Dettmers et al. 2023).

Configs come, in this order, from the file that is asked for, `model.config`, a local folder, the hub's cache, the facts
of published models that are shipped (assets/models.json; their sizes are tested against what their makers state), the
hub. Not covered: configs that need code of their own.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from danlu.errors import DanluError
from danlu.models.adapter import with_adapter
from danlu.models.decoder import inner, supports
from danlu.models.locate import base_of
from danlu.recipe import Lora, Model
from danlu.run import read_json

KINDS = ("embedding", "attention", "mlp", "norm", "head", "adapter")
BLOCK, SCALES = 64, 256  # weights of a 4-bit scale, scales of a scale of scales
HUB_PATIENCE = 3.0  # seconds


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the model: `bytes` as it is held (4-bit matrices with their scales)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    bytes: int
    trained: bool

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """A model as training holds it. `told` says where its config came from.

    `base`: the dtype of the base's matrices as they compute. `targets`: names of linear layers with an adapter.
    `unpacked`: weights of the largest 4-bit matrix (0: none is 4-bit). `fast`: whether our own forward knows it.
    """

    told: str
    config: Any
    parameters: tuple[Parameter, ...]
    base: torch.dtype
    targets: frozenset[str]
    residual: torch.dtype  # of the embeddings, and so of the residual stream
    head: torch.dtype
    unpacked: int
    fast: bool

    @property
    def counts(self) -> dict[str, int]:
        """Parameters by kind."""
        found = Counter({kind: 0 for kind in KINDS})
        for one in self.parameters:
            found[one.kind] += one.count
        return dict(found)

    def held(self, trained: bool) -> int:
        """Bytes of the parameters that are trained, or of those that are not."""
        return sum(one.bytes for one in self.parameters if one.trained == trained)

    @property
    def stored(self) -> int:
        """Bytes of the base's files, which are mapped into memory while it is loaded."""
        dtype = getattr(self.config, "dtype", None) or torch.bfloat16
        return sum(one.count for one in self.parameters if one.kind != "adapter") * dtype.itemsize

    @property
    def matrices(self) -> int:
        """Weights of the base's matrices that every token passes through (without embedding and head)."""
        return sum(one.count for one in self.parameters if one.kind in ("attention", "mlp"))


# ---- configs


def config_of(spec: Model, start: str | None = None, given: str | None = None) -> tuple[Any, str]:
    """(transformers config, where it came from) of a recipe's model, or of `start` (run, adapter or model folder).

    `given`: a config.json to use instead. DanluError when there is none within reach.
    """
    values, told = _values(spec, start, given)
    return config_from(values, told), told


def config_from(values: dict[str, Any], told: str) -> Any:
    """transformers' config of a config.json; DanluError when it is none."""
    from transformers import AutoConfig

    kind = values.get("model_type")
    if not kind:
        raise DanluError(f"{told} names no model_type", "give the config.json of a transformers model")
    try:
        return AutoConfig.for_model(kind, **{key: value for key, value in values.items() if key != "model_type"})
    except (ValueError, KeyError, TypeError) as error:
        raise DanluError(f"{told}: {str(error).splitlines()[0]}", "transformers has to know the model_type") from None


def _values(spec: Model, start: str | None, given: str | None) -> tuple[dict[str, Any], str]:
    if given:
        return read_json(Path(given)), given
    name = spec.id
    if start:
        path = Path(start)
        path = path / "artifact" if (path / "run.json").is_file() else path
        if (path / "danlu.json").is_file() and (path / "adapter_config.json").is_file():
            stored = read_json(path / "danlu.json")
            if stored.get("base_dir"):
                return _file(base_of(path) / "config.json")
            return _values(Model(**stored["base"]), None, None)
        name = start
    elif spec.config:
        return _file(Path(spec.config))
    if name == "tiny":
        return _file(Path(str(resources.files("danlu") / "assets" / "tiny" / "config.json")))
    if Path(name).expanduser().is_dir():
        return _file(Path(name).expanduser() / "config.json")
    name = name.removeprefix("modelscope:")
    return _cached(name, spec.revision) or _shipped(name) or _from_hub(name, spec.revision)


def _file(path: Path) -> tuple[dict[str, Any], str]:
    return read_json(path), str(path)


def _cached(name: str, revision: str | None) -> tuple[dict[str, Any], str] | None:
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(ValueError):  # not a hub id
        found = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(found, str):
            return read_json(Path(found)), f"{name} (cached)"
    return None


def facts() -> dict[str, dict[str, Any]]:
    """Hub id -> the facts of its config that are shipped."""
    path = Path(str(resources.files("danlu") / "assets" / "models.json"))
    families = json.loads(path.read_text(encoding="utf-8"))["families"]
    return {name: family["config"] for family in families for name in family["ids"]}


def _shipped(name: str) -> tuple[dict[str, Any], str] | None:
    known = {key.lower(): value for key, value in facts().items()}
    found = known.get(name.lower())
    return (dict(found), f"shipped facts of {name}") if found else None


def _from_hub(name: str, revision: str | None) -> tuple[dict[str, Any], str]:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(name, "config.json", revision=revision, etag_timeout=HUB_PATIENCE)
    except Exception as error:  # the hub client raises many kinds; each means that the config is out of reach
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DanluError(
            f"cannot get the config of {name}: {reason}", "give one with --config FILE, or a local directory"
        ) from None
    return read_json(Path(path)), f"{name} (hub)"


# ---- the model without its weights


def layout(
    config: Any,
    told: str = "",
    *,
    dtype: torch.dtype,
    lora: Lora | None,
    quantized: bool = False,
) -> Layout:
    """The Layout of a model whose base weights are `dtype`; with `lora` only the adapter is trained."""
    from transformers import AutoModelForCausalLM

    if config.model_type == "qwen3_moe" or getattr(config, "num_experts", 0) or getattr(config, "num_local_experts", 0):
        raise DanluError(f"{told or 'the model'} is a mixture of experts", "only dense models are planned and trained")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)  # it notes the dtype
        except (ValueError, KeyError, RuntimeError, AttributeError) as error:
            raise DanluError(
                f"{told}: no causal language model: {str(error).splitlines()[0]}", "check the config"
            ) from None
        model.tie_weights()
        heads = (model.get_input_embeddings(), model.get_output_embeddings())
        packed = set(_packed(model, heads[1])) if quantized else set()
        if quantized and not supports(config):  # as peft prepares a 4-bit model: what stays unpacked is fp32
            for name, param in model.named_parameters():
                if name not in packed:
                    param.data = param.data.float()
        model.requires_grad_(lora is None)
        kinds = {id(param): _kind(name, param, heads) for name, param in model.named_parameters()}
        packed_ids = {id(param) for name, param in model.named_parameters() if name in packed}
        if lora is not None:
            model = with_adapter(model, lora)
    found = []
    for name, param in model.named_parameters():
        four_bit = id(param) in packed_ids
        size = packed_bytes(param.numel()) if four_bit else param.numel() * param.element_size()
        found.append(Parameter(name, kinds.get(id(param), "adapter"), tuple(param.shape), size, param.requires_grad))
    targets = frozenset(name.split(".lora_A")[0].rpartition(".")[2] for name, _ in _named(model, ".lora_A."))
    # around a copy that is trained in full values keep the base's dtype; the head multiplies in its copy's
    embedding, head = (getattr(part, "weight", None) for part in (heads[0], inner(model.get_output_embeddings())))
    return Layout(
        told,
        config,
        tuple(found),
        dtype,
        targets,
        residual=embedding.dtype if embedding is not None else dtype,
        head=head.dtype if head is not None else dtype,
        unpacked=max((p.numel() for _, p in model.named_parameters() if id(p) in packed_ids), default=0),
        fast=supports(config),
    )


def packed_bytes(count: int) -> int:
    """Bytes of `count` weights in NF4 with double quantization."""
    scales = -(-count // BLOCK)
    return -(-count // 2) + scales + 4 * -(-scales // SCALES)


def _packed(model: Any, head: Any) -> Iterator[str]:
    """Names of the matrices that bitsandbytes packs: all linear layers but the head."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield f"{name}.weight"


def _named(model: Any, part: str) -> Iterator[tuple[str, Any]]:
    return ((name, param) for name, param in model.named_parameters() if part in name)


def _kind(name: str, param: Any, heads: tuple[Any, Any]) -> str:
    if heads[0] is not None and param is getattr(heads[0], "weight", None):
        return "embedding"
    if heads[1] is not None and any(param is own for own in heads[1].parameters()):
        return "head"
    if "norm" in name.lower() or name.rpartition(".")[0].endswith(("ln_1", "ln_2", "ln_f")):
        return "norm"
    return "attention" if "attn" in name or "attention" in name else "mlp"
