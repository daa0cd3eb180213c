"""Write a transformers folder (Qwen2, Qwen3, Llama) as a GGUF file, one tensor in memory at a time.

Method: names and shapes are planned from the safetensors headers, the free space is checked, then header, metadata
and tensors are written to a temporary name that is renamed at the end. Tensor names come from the `gguf` package.
What the tokenizer does (BOS added or not, chat template) is asked of transformers' tokenizer itself, not of one of
its several config files. Departures from llama.cpp's own converter: the pre-tokenizer is recognised by its regular
expression and not by hashing the ids of a sample text; every end token of the model is written (eos, eot, eom).
Not covered: SentencePiece and Unigram vocabularies, mixture of experts, sliding windows, split files.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from danlu import display
from danlu.errors import DanluError
from danlu.export.mixture import Network
from danlu.export.quantize import STORAGE, encode, storage, stored_bytes
from danlu.models.tokenizer import end_token_ids, load_tokenizer, think_format, token_ids
from danlu.recipe import Quant
from danlu.run import read_json

ARCHITECTURES = {
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
}
_CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# regex of the split -> (llama.cpp's name, whether that name means "a whole word in the vocabulary is never merged")
PRE_TOKENIZERS = {
    _CASES + r"\p{N}" + _REST: ("qwen2", False),
    _CASES + r"\p{N}{1,3}" + _REST: ("llama-bpe", True),
}
_LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>")
_SPARE = 64 << 20  # bytes that must stay free on the disk


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the file: where it comes from, what it is called and how it is stored."""

    file: Path
    source: str
    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType


def write_gguf(
    model_dir: Path, out_file: Path, quant: Quant = "q8_0", *, name: str | None = None, description: str = ""
) -> Path:
    """Write the model in `model_dir` (config.json, *.safetensors, tokenizer) to `out_file`.

    DanluError for an unknown architecture, pre-tokenizer, rope scaling or tensor, for values that the type cannot
    hold, and when the disk is too small; then nothing is left behind.
    """
    config = read_json(model_dir / "config.json")
    arch = architecture(config)
    tokenizer = load_tokenizer(model_dir)
    plan = list(_plan(model_dir, config, arch, quant))
    factors = _llama3_factors(config)
    needed = sum(stored_bytes(item.shape, item.kind) for item in plan)
    free = shutil.disk_usage(out_file.parent).free
    if needed + _SPARE > free:
        raise DanluError(
            f"{out_file.name} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free in {out_file.parent}",
            "free some space, or export with --set export.quant=q8_0",
        )
    staged = out_file.with_name(f".{out_file.name}.partial")
    writer = gguf.GGUFWriter(str(staged), gguf.MODEL_ARCH_NAMES[arch])
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(name or model_dir.name)
        if description:
            writer.add_description(description)
        writer.add_file_type(STORAGE[quant][1])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, config, arch)
        rows = next(item.shape[0] for item in plan if item.name == "token_embd.weight")
        _add_tokenizer(writer, model_dir, tokenizer, rows)
        with display.task(f"{out_file.name}, MB", needed / 1e6) as progress:
            _write_tensors(writer, plan, factors, config, arch, progress.advance)
        writer.close()
        os.replace(staged, out_file)
    finally:
        writer.close()
        staged.unlink(missing_ok=True)
    return out_file


# ---- shape of the network


def architecture(config: dict[str, Any]) -> gguf.MODEL_ARCH:
    """llama.cpp's name of a network; DanluError for one that is not written here."""
    named = (config.get("architectures") or ["nothing"])[0]
    if named not in ARCHITECTURES:
        raise DanluError(
            f"cannot export {named} to GGUF",
            f"known: {', '.join(ARCHITECTURES)}; others through llama.cpp's converter: --llama-cpp DIR",
        )
    if config.get("use_sliding_window"):
        raise DanluError("the model uses sliding-window attention, which llama.cpp ignores for it", "export without")
    if config.get("hidden_act", "silu") != "silu":
        raise DanluError(f"the activation {config['hidden_act']} is not what llama.cpp computes (silu)")
    return ARCHITECTURES[named]


def _head_dim(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rope settings under transformers 5's names, whichever version wrote the config."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    return rope


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any], arch: gguf.MODEL_ARCH) -> None:
    heads = config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    if arch == gguf.MODEL_ARCH.LLAMA:
        writer.add_rope_dimension_count(_head_dim(config))
    rope = _rope(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    match rope["rope_type"]:
        case "default" | "llama3":  # llama3's factors are a tensor
            pass
        case "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(float(rope["factor"]))
            writer.add_rope_scaling_orig_ctx_len(
                rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
            )
        case "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(rope["factor"]))
        case other:
            raise DanluError(f"cannot export rope scaling {other!r}", "known: default, linear, yarn, llama3")


def _llama3_factors(config: dict[str, Any]) -> np.ndarray[Any, Any] | None:
    """Divisors of Llama 3.1's rope frequencies, fp32 (head_dim / 2,), or None for other scalings.

    As in transformers `modeling_rope_utils._compute_llama3_parameters`, which smooths between the two wavelengths.
    """
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    original, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    size = _head_dim(config)
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, size, 2, dtype=np.float64) / size)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


# ---- tensors


def planned(model_dir: Path, quant: Quant) -> list[tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]]:
    """(name, shape, type, bytes) of each tensor of a file of `quant`; DanluError for what cannot be written."""
    config = read_json(model_dir / "config.json")
    tensors = _plan(model_dir, config, architecture(config), quant)
    return [(one.name, one.shape, one.kind, stored_bytes(one.shape, one.kind)) for one in tensors]


def source_tensors(model_dir: Path, config: dict[str, Any]) -> Iterator[_Tensor]:
    """Every tensor of a model folder that a GGUF file holds, with its name there."""
    return _plan(model_dir, config, architecture(config), "f32")


def _opened(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, "np")
    except SafetensorError as error:
        raise DanluError(f"{file} cannot be read: {error}", "the file is half-written or damaged") from None


def _plan(model_dir: Path, config: dict[str, Any], arch: gguf.MODEL_ARCH, quant: Quant) -> Iterator[_Tensor]:
    files = weight_files(model_dir)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    tied = bool(config.get("tie_word_embeddings"))
    heads = config["num_attention_heads"]
    group = heads // (config.get("num_key_value_heads") or heads)
    network = Network(config["num_hidden_layers"], group, tied)
    seen: set[str] = set()
    for file in files:
        with _opened(file) as tensors:
            for source in tensors.keys():  # noqa: SIM118  (safe_open is not iterable)
                if source.endswith("rotary_emb.inv_freq") or (tied and source == "lm_head.weight"):
                    continue
                name = names.get_name(source, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise DanluError(
                        f"{file.name} holds {source}, which {gguf.MODEL_ARCH_NAMES[arch]} does not have",
                        "merge the adapter first; quantized or wrapped weights cannot be exported",
                    )
                seen.add(name)
                shape = tuple(tensors.get_slice(source).get_shape())
                yield _Tensor(file, source, name, shape, storage(name, shape, quant, network))
    for name in ("token_embd.weight", "output_norm.weight", *(() if tied else ("output.weight",))):
        if name not in seen:  # llama.cpp would quietly use the embedding as the head
            raise DanluError(f"{model_dir} has no tensor for {name}", "the folder is incomplete")


def weight_files(model_dir: Path) -> list[Path]:
    """The safetensors files of a model folder, from its index where it has one; DanluError when any is missing."""
    index = model_dir / "model.safetensors.index.json"
    if index.is_file():
        files = [model_dir / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    else:
        files = [model_dir / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise DanluError(f"{file} does not exist", "only safetensors weights are read; is the download complete?")
    return files


def _write_tensors(
    writer: gguf.GGUFWriter,
    plan: list[_Tensor],
    factors: np.ndarray[Any, Any] | None,
    config: dict[str, Any],
    arch: gguf.MODEL_ARCH,
    advance: Callable[[float], None],
) -> None:
    from safetensors import safe_open

    plain = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
    for item in plan:
        dtype = np.dtype(plain.get(item.kind, np.uint8))
        shape = item.shape if item.kind in plain else gguf.quant_shape_to_byte_shape(item.shape, item.kind)
        writer.add_tensor_info(item.name, shape, dtype, stored_bytes(item.shape, item.kind), raw_dtype=item.kind)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for item in plan:
        advance(stored_bytes(item.shape, item.kind) / 1e6)
        with safe_open(item.file, "pt") as tensors:  # numpy has no bf16
            values = tensors.get_tensor(item.source).float().numpy()
        if arch == gguf.MODEL_ARCH.LLAMA and (part := re.search(r"self_attn\.([qk])_proj\.", item.source)):
            heads = config["num_attention_heads"]
            values = interleave(values, heads if part[1] == "q" else config.get("num_key_value_heads") or heads)
        writer.write_tensor_data(encode(item.source, values, item.kind))
    if factors is not None:
        writer.write_tensor_data(factors)


def interleave(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of a rotary projection from transformers' order (two halves) to llama.cpp's `llama` order (pairs)."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, 2, half, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


# ---- tokenizer


def _add_tokenizer(writer: gguf.GGUFWriter, model_dir: Path, tokenizer: Any, rows: int) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DanluError(f"{type(tokenizer).__name__} has no tokenizer.json", "only byte-level BPE can be exported")
    spec = json.loads(backend.to_str())
    pre = pre_tokenizer(spec)
    tokens = [f"[PAD{i}]" for i in range(rows)]  # the embedding has more rows than the vocabulary has tokens
    types = [int(gguf.TokenType.UNUSED)] * rows
    added = {item["id"]: item for item in spec["added_tokens"]}
    vocabulary = spec["model"]["vocab"] | {item["content"]: index for index, item in added.items()}
    if max(vocabulary.values()) >= rows:
        raise DanluError(
            f"the tokenizer has ids up to {max(vocabulary.values())}, the embedding has {rows} rows",
            "resize the embedding, or use the model's own tokenizer",
        )
    for token, index in vocabulary.items():
        tokens[index] = token
        types[index] = int(gguf.TokenType.NORMAL)
    for index, item in added.items():
        special = item["special"] or _LOOKS_SPECIAL.fullmatch(item["content"])
        types[index] = int(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]])
    _add_special_ids(writer, model_dir, tokenizer)
    if tokenizer.chat_template:
        writer.add_chat_template(_template(tokenizer))


def _add_special_ids(writer: gguf.GGUFWriter, model_dir: Path, tokenizer: Any) -> None:
    """eos, eot and eom name every end token (llama.cpp stops at each); what the template writes comes first."""
    ids = end_token_ids(model_dir, tokenizer)
    if tokenizer.chat_template:
        first = token_ids(tokenizer, think_format(model_dir, tokenizer).end_tokens)
        ids = list(dict.fromkeys([*first, *ids]))
    for index, add in zip(
        ids, (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), strict=False
    ):
        add(index)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    starts = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and starts == [tokenizer.bos_token_id])


def _template(tokenizer: Any) -> str:
    template = tokenizer.chat_template
    return template["default"] if isinstance(template, dict) else template


def pre_tokenizer(spec: dict[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a parsed tokenizer.json; DanluError when there is none."""
    model = spec["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise DanluError(f"cannot export a {model['type']} tokenizer", "only byte-level BPE (Qwen, Llama 3) is known")
    patterns = _split_patterns(spec.get("pre_tokenizer"))
    name, whole_words = PRE_TOKENIZERS.get(patterns[0], ("", False)) if len(patterns) == 1 else ("", False)
    if not name or bool(model.get("ignore_merges")) != whole_words:
        raise DanluError(
            f"unknown pre-tokenizer {patterns!r:.200} (ignore_merges {bool(model.get('ignore_merges'))})",
            "known: those of Qwen2/Qwen3, DeepSeek-R1-Distill-Qwen and Llama 3",
        )
    if name == "qwen2" and any(item["content"] == "<｜User｜>" for item in spec["added_tokens"]):
        return "deepseek-r1-qwen"
    return name


def _split_patterns(part: dict[str, Any] | None) -> list[str]:
    """Regular expressions of a pre-tokenizer, in order; anything else than a split appears by its type."""
    if part is None:
        return []
    match part["type"]:
        case "Sequence":
            return [pattern for inner in part["pretokenizers"] for pattern in _split_patterns(inner)]
        case "Split":
            return [part["pattern"].get("Regex") or part["pattern"].get("String")]
        case "ByteLevel" if not part.get("use_regex", True) and not part.get("add_prefix_space"):
            return []
        case other:
            return [other]
