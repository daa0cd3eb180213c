"""Merge a LoRA adapter into its base model, shard by shard, and check the result against peft.

Method: every base tensor is read, W + scale * B @ A is computed in fp32 and cast back, and the shard is written; only
one shard is in memory. scale = alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023), with peft's rank and
alpha patterns. DoRA (Liu et al. 2024) scales the rows of the sum to the learned magnitudes. `modules_to_save` tensors
replace the base's. Departure from `merge_and_unload`: no model is built, so a 7B merge fits a small machine; and tied
embeddings that the adapter changed on one side only are untied instead of being changed on both.
Not covered, and refused: trained LoRA biases, replicated layers, other peft methods, DoRA on embeddings.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from danlu.errors import DanluError
from danlu.export.gguf import weight_files
from danlu.models.tokenizer import end_token_ids, load_tokenizer, renderer, token_ids
from danlu.records import Message
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
# mean KL in nats of merged against base + adapter; the rounding of the merged weights is all that may differ
MERGE_KL = {"fp32": 1e-6, "bf16": 1e-2, "fp16": 1e-3}  # measured: 2e-9, 3e-5, 5e-7


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did: tensors written, how many took a low-rank update, which were replaced, and the tying."""

    out: str
    tensors: int
    merged: int
    replaced: tuple[str, ...]
    untied: bool
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# ---- the adapter


@dataclass(slots=True)
class _Adapter:
    """An adapter file opened lazily: parameter name in the base -> what happens to it."""

    config: dict[str, Any]
    low_rank: dict[str, dict[str, str]]  # base tensor -> {"A", "B", "magnitude"} -> key in the file
    embedding: dict[str, dict[str, str]]
    replaced: dict[str, str]
    base: dict[str, str]  # base tensors that peft stored with the adapter (embeddings under a LoRA)
    read: Callable[[str], torch.Tensor]


def _open_adapter(adapter_dir: Path) -> _Adapter:
    from safetensors import safe_open

    config = read_json(adapter_dir / "adapter_config.json")
    _refuse(config)
    file = adapter_dir / "adapter_model.safetensors"
    if not file.is_file():
        raise DanluError(f"{file} does not exist", "only safetensors adapters are read")
    adapter = _Adapter(config, {}, {}, {}, {}, lambda key: handle.get_tensor(key))
    handle = safe_open(file, "pt")
    for key in handle.keys():  # noqa: SIM118  (safe_open is not iterable)
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


def scale(config: dict[str, Any], module: str, rank: int) -> float:
    """Weight of B @ A for `module`: peft's alpha_pattern (regular expressions on the end of the name) or lora_alpha."""
    patterns = config.get("alpha_pattern") or {}
    key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
    alpha = patterns[key] if key is not None else config["lora_alpha"]
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _merged(name: str, weight: torch.Tensor, adapter: _Adapter) -> torch.Tensor | None:
    """The tensor `name` (rows, columns) with the adapter in it, in fp32; None when the adapter leaves it alone."""
    module = name.removesuffix(".weight")
    if name in adapter.replaced:
        return adapter.read(adapter.replaced[name]).float()
    if keys := adapter.embedding.get(name):
        a, b = adapter.read(keys["A"]).float(), adapter.read(keys["B"]).float()
        return weight.float() + scale(adapter.config, module, a.shape[0]) * (b @ a).T
    if keys := adapter.low_rank.get(name):
        if not {"A", "B"} <= keys.keys():
            raise DanluError(f"the adapter holds half of the update of {module}", "the file is incomplete")
        a, b = adapter.read(keys["A"]).float(), adapter.read(keys["B"]).float()
        if (b.shape[0], a.shape[1]) != tuple(weight.shape):
            raise DanluError(f"the adapter's update of {module} does not fit its base", "is this the right base?")
        merged = weight.float() + scale(adapter.config, module, a.shape[0]) * (b @ a)
        if "magnitude" in keys:
            magnitude = adapter.read(keys["magnitude"]).float().reshape(-1, 1)
            merged *= magnitude / merged.norm(dim=1, keepdim=True)
        return merged
    return None


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
    adapter = _open_adapter(adapter_dir)
    files = weight_files(base_dir)
    size = sum(file.stat().st_size for file in files) * (2 if dtype == "fp32" else 1)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    if size + (64 << 20) > (free := shutil.disk_usage(out_dir.parent).free):
        raise DanluError(f"merging needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free", "free some space")
    staged = out_dir.with_name(f".{out_dir.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        report = _write_weights(base_dir, files, adapter, staged, out_dir, DTYPES[dtype] if dtype else None)
        _write_rest(base_dir, adapter_dir, staged, report)
        if out_dir.exists():
            out_dir.rmdir()
        os.replace(staged, out_dir)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return report


def _write_weights(
    base: Path, files: list[Path], adapter: _Adapter, staged: Path, out: Path, dtype: torch.dtype | None
) -> MergeReport:
    from safetensors import safe_open
    from safetensors.torch import save_file

    tied = bool(read_json(base / "config.json").get("tie_word_embeddings"))
    untie = tied and _changes_one_side(adapter)
    waiting = {*adapter.low_rank, *adapter.embedding, *adapter.replaced}
    if tied and not untie:
        waiting.discard(HEAD)
    index: dict[str, str] = {}
    merged, total, kept = 0, 0, set()

    def finished(name: str, weight: torch.Tensor) -> torch.Tensor:
        nonlocal merged
        changed = _merged(name, weight, adapter)
        merged += changed is not None and name not in adapter.replaced
        result = (weight if changed is None else changed).to(dtype or weight.dtype)
        kept.add(str(result.dtype).removeprefix("torch."))
        return _same_shape(name, result, weight).contiguous()

    for file in files:
        shard = {}
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if tied and name == HEAD:  # rebuilt from the embedding, or dropped
                    continue
                weight = tensors.get_tensor(name)
                if name in adapter.base:
                    weight = _same_shape(name, adapter.read(adapter.base[name]).to(weight.dtype), weight)
                shard[name] = finished(name, weight)
                if untie and name == EMBEDDING:
                    shard[HEAD] = finished(HEAD, weight)
        index |= dict.fromkeys(shard, file.name)
        total += sum(value.numel() * value.element_size() for value in shard.values())
        save_file(shard, staged / file.name, metadata={"format": "pt"})
    if missing := sorted(waiting - index.keys()):
        raise DanluError(f"the adapter changes {missing[0]}, which the base does not have", "is this the right base?")
    if len(files) > 1:
        write_json(staged / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    return MergeReport(str(out), len(index), merged, tuple(sorted(adapter.replaced)), untie, "+".join(sorted(kept)))


def _same_shape(name: str, tensor: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    if tensor.shape != base.shape:
        shapes = f"{tuple(tensor.shape)} with the adapter, {tuple(base.shape)} in the base"
        raise DanluError(f"{name} is {shapes}", "is this the right base? resized vocabularies are not merged")
    return tensor


def _changes_one_side(adapter: _Adapter) -> bool:
    """Whether embedding and head differ after the merge although the base ties them."""
    touched = {*adapter.low_rank, *adapter.embedding, *adapter.replaced}
    if EMBEDDING in adapter.replaced and HEAD in adapter.replaced:
        return not torch.equal(adapter.read(adapter.replaced[EMBEDDING]), adapter.read(adapter.replaced[HEAD]))
    if adapter.config.get("ensure_weight_tying") and EMBEDDING in adapter.replaced:
        return False
    return bool({EMBEDDING, HEAD} & touched)


def _write_rest(base: Path, adapter_dir: Path, staged: Path, report: MergeReport) -> None:
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
        settings["eos_token_id"] = _end_ids(staged, base, described)
    write_json(staged / "generation_config.json", settings)
    if described:
        described.pop("base_dir", None)
        write_json(staged / "danlu.json", {**described, "kind": "model"})


def _end_ids(staged: Path, base: Path, described: dict[str, Any]) -> list[int]:
    """Ids of the end tokens that training used, then those of the base."""
    tokenizer = load_tokenizer(staged)
    trained = token_ids(tokenizer, described.get("think", {}).get("end_tokens", ()))
    return list(dict.fromkeys([*trained, *end_token_ids(base, tokenizer)]))


# ---- checking


def check_merge(
    base_dir: Path, adapter_dir: Path, merged_dir: Path, prompts: Sequence[Sequence[Message]] | None = None
) -> dict[str, Any]:
    """Compare next-token distributions of `merged_dir` with peft's base + adapter, both in fp32, on whole prompts.

    Returns one check {"name", "ok", "value", "limit", "max_logit_difference"}; value is the mean KL in nats.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    tokenizer = load_tokenizer(merged_dir)
    chats = prompts or [[{"role": "user", "content": text}] for text in ("你好，请介绍一下自己。", "What is 12 + 30?")]
    if tokenizer.chat_template:
        texts = [renderer(tokenizer)(list(chat), add_generation_prompt=True) for chat in chats]
    else:
        texts = [chat[-1]["content"] for chat in chats]
    rows = [torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]]) for text in texts]

    def logits(model: Any) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [model.eval()(row).logits[0].float() for row in rows]

    load: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
    merged = logits(AutoModelForCausalLM.from_pretrained(str(merged_dir), **load))
    base = AutoModelForCausalLM.from_pretrained(str(base_dir), **load)
    expected = logits(PeftModel.from_pretrained(base, str(adapter_dir)))
    divergence = [
        torch.nn.functional.kl_div(m.log_softmax(-1), e.log_softmax(-1), log_target=True, reduction="none").sum(-1)
        for m, e in zip(merged, expected, strict=True)
    ]
    value = float(torch.cat(divergence).mean())
    stored = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    limit = MERGE_KL[stored.get(str(read_json(merged_dir / "config.json").get("dtype")), "bf16")]
    return {
        "name": "merge",
        "ok": value <= limit,
        "value": max(value, 0.0),
        "limit": limit,
        "max_logit_difference": max(float((m - e).abs().max()) for m, e in zip(merged, expected, strict=True)),
    }
