"""Merge a LoRA adapter into its base model, some rows of one tensor in memory at a time.

Method: the shards are planned from the headers of the base's; then rows of a tensor are read, W + scale * B @ A is
computed for them in fp32, cast back and written. scale = alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski
2023), with peft's rank and alpha patterns. DoRA (Liu et al. 2024) scales the rows of the sum to the learned
magnitudes. `modules_to_save` tensors replace the base's. Departures from `merge_and_unload`: no model is built, so
the memory needed does not grow with the model or its shards; tied embeddings that the adapter changed on one side
only are untied instead of being changed on both.
An adapter that was trained on a 4-bit base is merged onto the weights which that was made of: what it learned to make
up for the rounding stays in it although the rounding is gone (`merge_check` measures how much that changes).
Not covered, and refused: trained LoRA biases, replicated layers, other peft methods, DoRA on embeddings, a base that
is stored in 4 or 8 bits.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from safetensors import SafetensorError

from danlu import display
from danlu.errors import DanluError
from danlu.export.gguf import weight_files
from danlu.models.adapter import scale_of
from danlu.models.tokenizer import end_token_ids, load_tokenizer, token_ids
from danlu.run import read_json, write_json

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# types of safetensors that hold weights; a quantized base has others
STORED = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
STORED_AS = {dtype: name for name, dtype in STORED.items()}
SIZES = {name: dtype.itemsize for name, dtype in STORED.items()}
BLOCK = 1 << 23  # weights that are merged at a time: 32 MB in fp32


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did: tensors written, how many took a low-rank update, which were replaced, and the tying."""

    out: str
    tensors: int
    merged: int
    replaced: tuple[str, ...]
    untied: bool
    dtype: str
    trained_on: str = "none"  # how the base was quantized while the adapter was trained

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# ---- the adapter


@dataclass(slots=True)
class Adapter:
    """An adapter file opened lazily: parameter name in the base -> what happens to it."""

    config: dict[str, Any]
    low_rank: dict[str, dict[str, str]]  # base tensor -> {"A", "B", "magnitude"} -> key in the file
    embedding: dict[str, dict[str, str]]
    replaced: dict[str, str]
    base: dict[str, str]  # base tensors that peft stored with the adapter (embeddings under a LoRA)
    file: Path

    def read(self, key: str, rows: slice = slice(None)) -> torch.Tensor:
        """Rows of a tensor; the file is opened for it alone, or what was read once would stay mapped."""
        from safetensors import safe_open

        with safe_open(self.file, "pt") as handle:
            return handle.get_slice(key)[rows]

    def shape(self, key: str) -> tuple[int, ...]:
        from safetensors import safe_open

        with safe_open(self.file, "pt") as handle:
            return tuple(handle.get_slice(key).get_shape())


def open_adapter(adapter_dir: Path) -> Adapter:
    """What an adapter does to which tensor of its base; DanluError for what cannot be merged or read."""
    from safetensors import safe_open

    config = read_json(adapter_dir / "adapter_config.json")
    _refuse(config)
    file = adapter_dir / "adapter_model.safetensors"
    if not file.is_file():
        raise DanluError(f"{file} does not exist", "only safetensors adapters are read")
    adapter = Adapter(config, {}, {}, {}, {}, file)
    try:
        with safe_open(file, "pt") as handle:
            keys = list(handle.keys())
    except SafetensorError as error:
        raise DanluError(f"{file} cannot be read: {error}", "the file is half-written or damaged") from None
    for key in keys:
        name = key.removeprefix("base_model.model.")
        part = re.fullmatch(r"(.+)\.lora_(A|B|magnitude_vector)(?:\.weight)?", name)
        row = re.fullmatch(r"(.+)\.lora_embedding_(A|B)", name)
        if part:
            kind = "magnitude" if part[2] == "magnitude_vector" else part[2]
            adapter.low_rank.setdefault(f"{part[1]}.weight", {})[kind] = key
        elif row:
            adapter.embedding.setdefault(f"{row[1]}.weight", {})[row[2]] = key
        elif "lora_" in name:
            raise DanluError(f"the adapter holds {key}, which cannot be merged", "merge it with peft")
        elif ".base_layer." in name:
            adapter.base[name.replace(".base_layer.", ".")] = key
        else:
            adapter.replaced[name] = key
    return adapter


def _refuse(config: dict[str, Any]) -> None:
    hint = "merge it with peft, then export the merged folder"
    if config.get("peft_type") != "LORA":
        raise DanluError(f"cannot merge a {config.get('peft_type')} adapter", hint)
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise DanluError("the adapter trained biases, which are not merged", hint)
    if config.get("layer_replication"):
        raise DanluError("the adapter replicates layers, which is not merged", hint)
    if config.get("fan_in_fan_out"):
        raise DanluError("the adapter is for transposed weights (GPT-2), which are not merged", hint)


def _check_fit(name: str, shape: tuple[int, ...], adapter: Adapter, base: Path) -> None:
    """DanluError when what the adapter holds for the base's tensor `name` cannot be put into it."""
    for held in (adapter.replaced, adapter.base):
        if name in held and (found := adapter.shape(held[name])) != shape:
            raise DanluError(
                f"{name} is {found} with the adapter, {shape} in {_named(adapter, base)}",
                "is this the right base? resized vocabularies are not merged",
            )
    for table in (adapter.low_rank, adapter.embedding):
        if not (keys := table.get(name)):
            continue
        if not {"A", "B"} <= keys.keys():
            raise DanluError(f"the adapter holds half of the update of {name}", "the file is incomplete")
        a, b = adapter.shape(keys["A"]), adapter.shape(keys["B"])
        found = (b[0], a[1]) if table is adapter.low_rank else (a[1], b[0])
        if found != shape:
            raise DanluError(
                f"the adapter's update of {name} is for {found}, it is {shape} in {_named(adapter, base)}",
                "is this the right base?",
            )


def _named(adapter: Adapter, base: Path) -> str:
    """The base that was found, and the one the adapter says it was trained on where that is another."""
    trained_on = adapter.config.get("base_model_name_or_path") or ""
    return f"{base} (the adapter was trained on {trained_on})" if trained_on not in ("", str(base)) else str(base)


def _change(name: str, adapter: Adapter) -> Callable[[torch.Tensor, slice], torch.Tensor] | None:
    """What makes of rows of the base's `name` those of the merged one, in fp32; None where the adapter has nothing."""
    module = name.removesuffix(".weight")
    if name in adapter.replaced:
        return lambda _, rows: adapter.read(adapter.replaced[name], rows).float()
    if keys := adapter.embedding.get(name):
        a, b = adapter.read(keys["A"]).float(), adapter.read(keys["B"]).float()
        left, right, magnitude = a.T, b.T, None
    elif keys := adapter.low_rank.get(name):
        right, left = adapter.read(keys["A"]).float(), adapter.read(keys["B"]).float()
        magnitude = adapter.read(keys["magnitude"]).float().reshape(-1, 1) if "magnitude" in keys else None
    else:
        return None
    weight = scale_of(adapter.config, module, right.shape[0])

    def changed(base: torch.Tensor, rows: slice) -> torch.Tensor:
        merged = base.float() + weight * (left[rows] @ right)
        if magnitude is not None:
            merged *= magnitude[rows] / merged.norm(dim=1, keepdim=True)
        return merged

    return changed


# ---- merging


def merge(
    base_dir: Path, adapter_dir: Path, out_dir: Path, *, dtype: Literal["fp32", "bf16", "fp16"] | None = None
) -> MergeReport:
    """Write base + adapter to `out_dir` as a transformers folder (weights, config, tokenizer, danlu.json).

    `dtype` None keeps each tensor's own. DanluError for adapters that do not fit the base or cannot be merged, for an
    `out_dir` in use, and when the disk is too small; `out_dir` appears only when everything was written.
    """
    if out_dir.exists() and any(out_dir.iterdir()):
        raise DanluError(f"{out_dir} is not empty", "choose another directory")
    adapter = open_adapter(adapter_dir)
    plan, untied = _plan(base_dir, weight_files(base_dir), adapter, DTYPES[dtype] if dtype else None)
    items = [item for shard in plan.values() for item in shard]
    size = sum(item.size for item in items)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    if size + (64 << 20) > (free := shutil.disk_usage(out_dir.parent).free):
        raise DanluError(f"merging needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free", "free some space")
    staged = out_dir.with_name(f".{out_dir.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        report = MergeReport(
            str(out_dir),
            len(items),
            _write_weights(plan, adapter, staged),
            tuple(sorted(adapter.replaced)),
            untied,
            "+".join(sorted({str(STORED[item.dtype]).removeprefix("torch.") for item in items})),
            quantization(adapter_dir),
        )
        if len(plan) > 1:
            index = {item.name: file.name for file, shard in plan.items() for item in shard}
            write_json(staged / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": index})
        rows = next((item.shape[0] for item in items if item.name == EMBEDDING), None)
        _write_rest(base_dir, adapter_dir, staged, report, rows)
        if out_dir.exists():
            out_dir.rmdir()
        os.replace(staged, out_dir)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return report


@dataclass(frozen=True, slots=True)
class _Planned:
    """One tensor of a merged shard: its name, the base's tensor it is made of, its shape and type as stored."""

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it

    @property
    def size(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]


def _plan(
    base: Path, files: list[Path], adapter: Adapter, dtype: torch.dtype | None
) -> tuple[dict[Path, list[_Planned]], bool]:
    """(tensors of each shard, whether tied embeddings part); DanluError for what does not fit."""
    from safetensors import safe_open

    tied = bool(read_json(base / "config.json").get("tie_word_embeddings"))
    untie = tied and _changes_one_side(adapter)
    waiting = {*adapter.low_rank, *adapter.embedding, *adapter.replaced}
    if tied and not untie:
        waiting.discard(HEAD)
    plan: dict[Path, list[_Planned]] = {}
    for file in files:
        plan[file] = []
        try:
            with safe_open(file, "pt") as tensors:
                found = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
                heads = {name: (part.get_shape(), part.get_dtype()) for name, part in found.items()}
        except SafetensorError as error:
            hint = "the download is incomplete, or the file damaged"
            raise DanluError(f"{file} cannot be read: {error}", hint) from None
        for source, (shape, kind) in heads.items():
            if tied and source == HEAD:  # rebuilt from the embedding, or dropped
                continue
            if kind not in STORED:
                hint = "merge onto the weights it was quantized from: danlu merge RUN --base DIR"
                raise DanluError(f"{file.name} stores {source} as {kind}: the base is quantized", hint)
            for name in (source, *([HEAD] if untie and source == EMBEDDING else [])):
                _check_fit(name, tuple(shape), adapter, base)
                plan[file].append(_Planned(name, source, tuple(shape), STORED_AS[dtype] if dtype else kind))
    known = {item.name for items in plan.values() for item in items}
    if missing := sorted(waiting - known):
        raise DanluError(
            f"the adapter changes {missing[0]}, which the base {_named(adapter, base)} does not have",
            "is this the right base?",
        )
    return plan, untie


def _write_weights(plan: dict[Path, list[_Planned]], adapter: Adapter, staged: Path) -> int:
    """Write every shard; the number of tensors that took a low-rank update."""
    merged = 0
    with display.task("merge, MB", sum(item.size for items in plan.values() for item in items) / 1e6) as progress:
        for file, items in plan.items():
            with (staged / file.name).open("wb") as out:
                _write_header(out, items)
                for item in items:
                    merged += item.name in adapter.low_rank or item.name in adapter.embedding
                    for rows in _rows_of(file, item, adapter):
                        values = rows.to(STORED[item.dtype]).contiguous()
                        out.write(values.flatten().view(torch.uint8).numpy().data)
                        progress.advance(values.numel() * values.element_size() / 1e6)
                out.flush()
                os.fsync(out.fileno())
    return merged


def _rows_of(file: Path, item: _Planned, adapter: Adapter) -> Iterator[torch.Tensor]:
    """The merged tensor, some rows at a time."""
    from safetensors import safe_open

    change, base = _change(item.name, adapter), adapter.base.get(item.source)
    step = max(1, BLOCK // max(1, math.prod(item.shape[1:])))
    with safe_open(file, "pt") as tensors:
        source = tensors.get_slice(item.source)
        kind = STORED[source.get_dtype()]
        for start in range(0, item.shape[0], step):
            rows = slice(start, min(start + step, item.shape[0]))
            weight = source[rows] if base is None else adapter.read(base, rows).to(kind)
            yield weight if change is None else change(weight, rows)


def _write_header(out: BinaryIO, items: list[_Planned]) -> None:
    """The head of a safetensors file: its length, then names, types, shapes and places as JSON, in steps of 8 bytes."""
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for item in items:
        head[item.name] = {"dtype": item.dtype, "shape": item.shape, "data_offsets": [at, at + item.size]}
        at += item.size
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)


def _changes_one_side(adapter: Adapter) -> bool:
    """Whether embedding and head differ after the merge although the base ties them."""
    touched = {*adapter.low_rank, *adapter.embedding, *adapter.replaced}
    if EMBEDDING in adapter.replaced and HEAD in adapter.replaced:
        return not torch.equal(adapter.read(adapter.replaced[EMBEDDING]), adapter.read(adapter.replaced[HEAD]))
    if adapter.config.get("ensure_weight_tying") and EMBEDDING in adapter.replaced:
        return False
    return bool({EMBEDDING, HEAD} & touched)


def _write_rest(base: Path, adapter_dir: Path, staged: Path, report: MergeReport, rows: int | None) -> None:
    """Config, generation config, tokenizer and danlu.json; the adapter's own copies win over the base's."""
    config = read_json(base / "config.json")
    if report.untied:
        config["tie_word_embeddings"] = False
    if "+" not in report.dtype:
        config["dtype"] = report.dtype
        config.pop("torch_dtype", None)
    write_json(staged / "config.json", config)
    tokenizer_from = adapter_dir if (adapter_dir / "tokenizer.json").is_file() else base
    for source, names in ((tokenizer_from, TOKENIZER_FILES), (base, ("LICENSE", "LICENSE.txt"))):
        for name in names:
            if (source / name).is_file():
                shutil.copyfile(source / name, staged / name)
    generation = next(
        (d / "generation_config.json" for d in (adapter_dir, base) if (d / "generation_config.json").is_file()), None
    )
    settings = read_json(generation) if generation else {}
    described = read_json(adapter_dir / "danlu.json") if (adapter_dir / "danlu.json").is_file() else {}
    if (staged / "tokenizer.json").is_file():
        _check_vocabulary(staged, rows)
        settings["eos_token_id"] = _end_ids(staged, base, described)
    write_json(staged / "generation_config.json", settings)
    if described:
        described.pop("base_dir", None)
        write_json(staged / "danlu.json", {**described, "kind": "model"})


def _check_vocabulary(folder: Path, rows: int | None) -> None:
    """DanluError when the tokenizer has ids that the embedding of `rows` rows does not."""
    largest = max(load_tokenizer(folder).get_vocab().values(), default=0)
    if rows is not None and largest >= rows:
        raise DanluError(
            f"the tokenizer has ids up to {largest}, the embedding has {rows} rows",
            "tokenizer and base do not belong together: was the vocabulary resized in training?",
        )


def quantization(adapter_dir: Path) -> str:
    """How the base was quantized in training, by what the artifact says of it."""
    told = read_json(adapter_dir / "danlu.json") if (adapter_dir / "danlu.json").is_file() else {}
    return str(told.get("base", {}).get("quantization") or "none")


def _end_ids(staged: Path, base: Path, described: dict[str, Any]) -> list[int]:
    """Ids of the end tokens that training used, then those of the base."""
    tokenizer = load_tokenizer(staged)
    trained = token_ids(tokenizer, described.get("think", {}).get("end_tokens", ()))
    return list(dict.fromkeys([*trained, *end_token_ids(base, tokenizer)]))
