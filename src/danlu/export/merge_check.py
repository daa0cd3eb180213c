"""Whether a merged model answers like base and adapter: next-token distributions on a few whole prompts.

One model is in memory at a time: in fp32 where that fits, else in the stored type, else nothing is compared and that
is said. For an adapter that was trained on an NF4 base the distance to that (what training saw) is measured too; it
is told and not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from danlu import display
from danlu.errors import DanluError
from danlu.export.gguf import weight_files
from danlu.export.merge import quantization
from danlu.models.load import in_one_layout, nf4
from danlu.models.tokenizer import load_tokenizer, renderer
from danlu.records import Message
from danlu.run import read_json

# mean KL in nats of merged against base + adapter; the rounding of the merged weights is all that may differ
MERGE_KL = {"fp32": 1e-6, "bf16": 1e-2, "fp16": 1e-3}  # measured: 2e-9, 3e-5, 5e-7


def check_merge(
    base_dir: Path, adapter_dir: Path, merged_dir: Path, prompts: Sequence[Sequence[Message]] | None = None
) -> dict[str, Any]:
    """Compare next-token distributions of `merged_dir` with peft's base + adapter on whole prompts.

    Returns one check {"name", "ok", "value", "limit", "max_logit_difference", "prompts"}; value is the mean KL in
    nats. "trained_on": {"quantization", "kl", "same_first_choice"} stands there when the adapter was trained on an
    NF4 base: the merged model against that. DanluError when no model of this size fits the memory.
    """
    rows = _prompts(merged_dir, prompts)
    dtype = _precision(merged_dir)
    merged = _logits(merged_dir, None, rows, dtype)
    expected = _logits(base_dir, adapter_dir, rows, dtype)
    value = _kl(merged, expected)
    stored = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    limit = MERGE_KL[stored.get(str(read_json(merged_dir / "config.json").get("dtype")), "bf16")]
    check = {
        "name": "merge",
        "ok": value <= limit,
        "value": value,
        "limit": limit,
        "max_logit_difference": max(float((m - e).abs().max()) for m, e in zip(merged, expected, strict=True)),
        "prompts": len(rows),
    }
    if quantization(adapter_dir) == "nf4":
        check["trained_on"] = _against_nf4(base_dir, adapter_dir, rows, merged)
    return check


def told(check: dict[str, Any]) -> list[str]:
    """What a check of a merge says, in lines for a person."""
    lines = [
        f"merged against base + adapter on {check['prompts']} prompts: mean KL {check['value']:.2g} (limit"
        f" {check['limit']:g}), largest logit difference {check['max_logit_difference']:.2g}"
    ]
    if seen := check.get("trained_on"):
        lines.append(
            "trained on a 4-bit base, merged onto the original weights: the adapter also learned to make up for the"
            " rounding, which is gone now; evaluate what was merged"
        )
        if seen["kl"] is not None:
            lines.append(
                f"against the 4-bit base + adapter: mean KL {seen['kl']:.2g}, the likeliest token is the same at"
                f" {100 * seen['same_first_choice']:.1f} % of positions"
            )
    return lines


def _prompts(folder: Path, prompts: Sequence[Sequence[Message]] | None) -> list[torch.Tensor]:
    tokenizer = load_tokenizer(folder)
    chats = prompts or [[{"role": "user", "content": text}] for text in ("你好，请介绍一下自己。", "What is 12 + 30?")]
    if tokenizer.chat_template:
        texts = [renderer(tokenizer)(list(chat), add_generation_prompt=True) for chat in chats]
    else:
        texts = [chat[-1]["content"] for chat in chats]
    return [torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]]) for text in texts]


def _precision(folder: Path) -> torch.dtype | str:
    """fp32 where a model of this size fits the free memory in it, else the stored type."""
    import psutil

    stored = sum(file.stat().st_size for file in weight_files(folder))
    half = str(read_json(folder / "config.json").get("dtype")) in ("bfloat16", "float16")
    free = psutil.virtual_memory().available
    if 1.2 * stored * (2 if half else 1) < free:
        return torch.float32
    if 1.2 * stored < free:
        display.warn("not enough memory for fp32: the merge is checked in its stored type, to which rounding adds")
        return "auto"
    raise DanluError(
        f"checking the merge needs {1.2 * stored / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
        "merge without (--no-check) and evaluate the result where it fits",
    )


def _logits(
    folder: Path, adapter: Path | None, rows: list[torch.Tensor], dtype: Any, **more: Any
) -> list[torch.Tensor]:
    """Logits (positions, vocabulary) in fp32 for each row of ids."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "use_safetensors": True, **more}
    model = in_one_layout(AutoModelForCausalLM.from_pretrained(str(folder), **options))
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.inference_mode():
        return [model.eval()(row.to(model.device)).logits[0].float().cpu() for row in rows]


def _kl(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Mean KL(expected || found) in nats over all positions."""
    parts = [
        torch.nn.functional.kl_div(f.log_softmax(-1), e.log_softmax(-1), log_target=True, reduction="none").sum(-1)
        for f, e in zip(found, expected, strict=True)
    ]
    return max(float(torch.cat(parts).mean()), 0.0)


def _against_nf4(base: Path, adapter: Path, rows: list[torch.Tensor], merged: list[torch.Tensor]) -> dict[str, Any]:
    try:
        seen = _logits(base, adapter, rows, torch.float32, quantization_config=nf4(torch.float32))
    except (DanluError, RuntimeError) as error:  # no bitsandbytes here, or shapes that it does not take on a CPU
        display.warn(f"the distance to the 4-bit base is not measured: {str(error).splitlines()[0]}")
        return {"quantization": "nf4", "kl": None, "same_first_choice": None}
    same = torch.cat([(m.argmax(-1) == s.argmax(-1)) for m, s in zip(merged, seen, strict=True)])
    return {"quantization": "nf4", "kl": _kl(merged, seen), "same_first_choice": float(same.float().mean())}
