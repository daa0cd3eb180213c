"""Load a model for training or generation: base weights, adapters on top of it, tokenizer, think-format.

A training run that starts from another run's adapter does not merge it (a 4-bit base could not be merged): the
earlier adapter stays as a frozen one named "start", a new one named "default" is trained beside it, and what is
delivered is their exact sum as a single adapter of rank r1 + r2 over the same base (`summed_adapter`).
Not covered: starting from an adapter with `modules_to_save` (merge that run first).
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from danlu import display
from danlu.errors import DanluError
from danlu.models.adapter import activate, warn_of_unmatched, with_adapter
from danlu.models.decoder import supports
from danlu.models.locate import base_of
from danlu.models.memory import told_if_refused
from danlu.models.tokenizer import speech_of
from danlu.recipe import Lora, Model
from danlu.run import read_json, write_json
from danlu.think import ThinkFormat

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Loaded:
    """A model ready to work. `described` is what an artifact's danlu.json says about its origin."""

    model: Any
    tokenizer: Any
    think: ThinkFormat
    end_ids: tuple[int, ...]
    described: dict[str, Any] = field(default_factory=dict)
    random_base: bool = False  # the weights were made from a config and exist nowhere else


def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def native_bf16() -> bool:
    """Whether bf16 is fast here; on a CPU without AMX or AVX512-BF16 units it is three times slower than fp32."""
    kind = device().type
    if kind == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8  # Turing and older only emulate it
    if kind == "mps":
        return True
    return any(
        bool(getattr(torch.cpu, name, bool)()) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )


def weight_dtype(wanted: str) -> torch.dtype:
    """The dtype of base weights; `auto` (and fp16 on a CPU) is bf16 where it is fast, else fp16 on CUDA and fp32
    elsewhere."""
    if wanted == "fp16" and device().type == "cpu":
        wanted = "auto"
        display.warn(f"fp16 is many times slower on a CPU; using {'bf16' if native_bf16() else 'fp32'}")
    if wanted != "auto":
        return DTYPES[wanted]
    return torch.bfloat16 if native_bf16() else torch.float16 if device().type == "cuda" else torch.float32


def _weights(folder: Path | None, spec: Model, seed: int, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if folder is None:
        torch.manual_seed(seed)
        path = Path(str(spec.config))
        if not path.exists():
            raise DanluError(f"model.config: {path} does not exist", "give a config.json of a transformers model")
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": spec.trust_remote_code}
    if spec.quantization == "nf4":
        options["quantization_config"] = nf4(dtype)
    try:
        return in_one_layout(AutoModelForCausalLM.from_pretrained(str(folder), **options))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise DanluError(
            f"cannot load the model in {folder}: {str(error).strip().splitlines()[0]}",
            "it needs config.json and *.safetensors of a causal language model",
        ) from error


def in_one_layout(model: Any) -> Any:
    """The model, whose 4-bit matrices stay as they are stored: on a CPU with AVX512-BF16 bitsandbytes rearranges one at
    its first use, rounds its scales, and fails where a row is no multiple of a block."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def nf4(dtype: torch.dtype) -> Any:
    """NF4 with double quantization (QLoRA, Dettmers et al. 2023); DanluError without bitsandbytes."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise DanluError(
            "model.quantization: nf4 needs bitsandbytes", 'pip install "danlu[cuda]", or --set model.quantization=none'
        ) from None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def load(
    spec: Model,
    start: str | None = None,
    *,
    seed: int = 0,
    lora: Lora | None = None,
    train: bool = False,
    gradient_checkpointing: bool = False,
    dtype: torch.dtype | None = None,
    place: torch.device | None = None,
) -> Loaded:
    """The model of a recipe, or of `start` (run, adapter, model folder or hub id), on `place` (default: the device).

    With `lora` a new adapter named "default" is added and only it is trainable; with `train` alone all weights are.
    DanluError names what is missing or does not fit.
    """
    speech = speech_of(spec, start, weights=True)
    folder, adapter, tokenizer = speech.folder, speech.adapter, speech.tokenizer
    if spec.quantization == "nf4" and (folder is None or (train and lora is None)):
        what = "a base with random weights" if folder is None else "method: full"
        raise DanluError(f"model.quantization: nf4 does not go with {what}", "use a stored model and method: lora")
    if dtype is None:
        dtype = torch.float32 if train and lora is None else weight_dtype(spec.dtype)
    trained = adapter or folder
    described = read_json(trained / "danlu.json") if trained and (trained / "danlu.json").is_file() else {}
    if described.pop("base_dir", None) and adapter:
        described["base_dir"] = str(base_of(adapter))
    with told_if_refused(spec, folder, train and lora is None):
        model = _weights(folder, spec, seed, dtype)
        if len(tokenizer) > (known := model.get_input_embeddings().num_embeddings):
            raise DanluError(
                f"the tokenizer has {len(tokenizer)} tokens, the model only {known}",
                "model and tokenizer do not belong together",
            )
        model = _prepared(model, spec, lora, train, gradient_checkpointing)
        if adapter is not None:
            model = with_start(model, adapter, lora is not None)
        if lora is not None:
            torch.manual_seed(seed)
            model = with_adapter(model, lora)
            warn_of_unmatched(model, lora)
        if spec.quantization == "none":
            model.to(place or device())
    return Loaded(
        model, tokenizer, speech.think, speech.end_ids, {**described, "base": speech.recorded}, folder is None
    )


def _prepared(model: Any, spec: Model, lora: Lora | None, train: bool, gradient_checkpointing: bool) -> Any:
    """A base with what is trained of it, ready for adapters."""
    model.requires_grad_(train and lora is None)
    if spec.quantization == "nf4" and train and not supports(model.config):
        # transformers' own forward wants norms and embeddings in fp32; the fast one computes them so from any dtype
        from peft import prepare_model_for_kbit_training

        return prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def with_start(model: Any, adapter: Path, more: bool) -> Any:
    from peft import PeftModel

    config = read_json(adapter / "adapter_config.json")
    extras = ("modules_to_save", "use_dora", "lora_bias", "trainable_token_indices")
    unfit = [name for name in extras if config.get(name)]
    unfit += ["bias"] if config.get("bias", "none") != "none" else []
    unfit += ["peft_type"] if config.get("peft_type", "LORA") != "LORA" else []
    if more and unfit:
        raise DanluError(
            f"cannot train on top of {adapter}: it has {unfit[0]}",
            "merge that run first (danlu merge RUN), then train from the merged directory",
        )
    try:
        return PeftModel.from_pretrained(model, str(adapter), adapter_name="start", is_trainable=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DanluError(
            f"the adapter in {adapter} does not fit its base: {str(error).strip().splitlines()[0]}",
            "the base it was trained on is another one, or the files are damaged",
        ) from error


@contextmanager
def reference(model: Any):
    """The model without the adapter that is being trained (what KL is measured against)."""
    names = list(getattr(model, "peft_config", {}))
    if "start" in names:
        activate(model, ["start"])
        try:
            yield
        finally:
            activate(model, names)
    elif names:
        with model.disable_adapter():
            yield
    else:
        raise DanluError("grpo.kl needs a LoRA adapter as what is trained", "use method: lora, or kl: 0")


# ---- saving


def trainable(model: Any) -> dict[str, torch.Tensor]:
    """Name -> parameter of everything that training changes."""
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def save_artifact(loaded: Loaded, folder: Path, *, notice: str = "", parents: list[str] | None = None) -> None:
    """Write the adapter (or the model), the tokenizer and danlu.json into `folder`."""
    model, is_adapter = loaded.model, hasattr(loaded.model, "peft_config")
    if is_adapter:
        _save_adapter(model, folder)
    else:
        model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    described = {
        "kind": "adapter" if is_adapter else "model",
        "base": loaded.described["base"],
        "think": loaded.think.to_dict(),
        "notice": notice,
        "parents": parents or [],
    }
    if loaded.random_base and is_adapter:
        base = model.get_base_model() if "start" not in model.peft_config else model.base_model.model
        _save_random_base(base, loaded.tokenizer, folder / "base")
        described["base_dir"] = "base"
    elif loaded.described.get("base_dir"):
        described["base_dir"] = loaded.described["base_dir"]
    write_json(folder / "danlu.json", described)


def _save_random_base(model: Any, tokenizer: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    plain = {}
    for name, tensor in model.state_dict().items():
        if "lora_" in name or ".modules_to_save." in name:
            continue
        plain[name.replace(".base_layer", "").replace(".original_module", "")] = tensor.detach().cpu().contiguous()
    if model.config.tie_word_embeddings:
        plain.pop("lm_head.weight", None)
    save_file(plain, str(folder / "model.safetensors"), metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _save_adapter(model: Any, folder: Path) -> None:
    names = list(model.peft_config)
    if names == ["default"] or names == ["start"]:
        model.save_pretrained(str(folder), selected_adapters=names)
        if names == ["start"]:  # peft puts any other name into a folder of its own
            for file in (folder / "start").iterdir():
                file.rename(folder / file.name)
            (folder / "start").rmdir()
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
        return
    from safetensors.torch import save_file

    tensors, config = summed_adapter(model)
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, default=list) + "\n", encoding="utf-8")


def summed_adapter(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, config) of one adapter equal to "start" + "default".

    s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2] [A1; A2]; a module that only one of them has is padded with zeros, so that
    one rank fits all. alpha = r makes the scale of the sum 1.
    """
    from peft import get_peft_model_state_dict

    parts = {name: get_peft_model_state_dict(model, adapter_name=name) for name in ("start", "default")}
    scales: dict[str, dict[str, float]] = {"start": {}, "default": {}}
    for path, module in model.named_modules():
        if hasattr(module, "lora_A"):
            for name in parts:
                if name in module.scaling:
                    scales[name][path] = module.scaling[name]
    ranks = {  # the largest, where a rank_pattern gives modules their own
        name: max(value.shape[0] for key, value in part.items() if ".lora_A." in key) for name, part in parts.items()
    }
    tensors: dict[str, torch.Tensor] = {}
    modules = sorted({key.rsplit(".lora_", 1)[0] for part in parts.values() for key in part if ".lora_" in key})
    for module in modules:
        a_parts, b_parts = [], []
        shapes = [
            part[f"{module}.lora_{x}.weight"]
            for part in parts.values()
            for x in "AB"
            if f"{module}.lora_{x}.weight" in part
        ]
        width, height = shapes[0].shape[1], shapes[1].shape[0]
        for name, part in parts.items():
            a = part.get(f"{module}.lora_A.weight")
            b = part.get(f"{module}.lora_B.weight")
            a_part, b_part = torch.zeros(ranks[name], width), torch.zeros(height, ranks[name])
            if a is not None and b is not None:
                a_part[: a.shape[0]], b_part[:, : b.shape[1]] = a, b * scales[name][module]
            a_parts.append(a_part)
            b_parts.append(b_part)
        tensors[f"{module}.lora_A.weight"] = torch.cat(a_parts, 0).contiguous()
        tensors[f"{module}.lora_B.weight"] = torch.cat(b_parts, 1).contiguous()
    left = {key: value.detach() for key, value in parts["default"].items() if ".lora_" not in key}
    rest = {
        key: value.to("cpu", copy=True).contiguous() for key, value in left.items()
    }  # tied ones twice, as peft does
    config = model.peft_config["default"].to_dict()
    rank = sum(ranks.values())
    config.update(
        r=rank,
        lora_alpha=rank,
        use_rslora=False,
        rank_pattern={},
        alpha_pattern={},
        inference_mode=True,
        target_modules=sorted({module.rpartition(".")[2] for module in modules}),  # "start" may hold a regex
        layers_to_transform=None,
        layers_pattern=None,
        exclude_modules=None,
    )
    return tensors | rest, config
