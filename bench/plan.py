"""What the planner predicts against what training takes: the peak of a process of its own, for several configurations.

    python -m bench.plan --json                   # on a CPU: peak of the resident set, predicted within 15 %
    python -m bench.plan --json --device cuda     # on a GPU: most bytes allocated, predicted within 10 %
    python -m bench.plan --quick --json           # three small cases

Each case writes a model with random weights in bf16 and rows of drawn words, then runs the stage itself for two steps,
as `danlu sft` and `danlu grpo` do: loading, packing, both optimizer steps, checkpoint and artifact are in the peak.
`ours` is the prediction, `theirs` the measurement, `ratio` prediction over measurement. The planner sees the recipe and
its rows, never the weights. On CUDA the context is taken off the prediction: the allocator does not count it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.common import append, arguments, device_arguments, hide_gpus, place, tell
from danlu.cli import TUNABLES

SHAPES: dict[str, dict[str, Any]] = {
    "26M": {"model_type": "qwen3", "hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6},
    "60M": {"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8},
    "170M": {"model_type": "qwen3", "hidden_size": 768, "num_hidden_layers": 14, "num_attention_heads": 12},
    "0.5B": {"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14},
}
REST: dict[str, dict[str, Any]] = {
    "26M": {"num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 1152, "vocab_size": 32000},
    "60M": {"num_key_value_heads": 4, "intermediate_size": 1536, "vocab_size": 64000},
    "170M": {"num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 2304, "vocab_size": 128000},
    "0.5B": {"num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936},
}
FULL = {"method": "full"}
NO, YES = {"gradient_checkpointing": False}, {"gradient_checkpointing": True}
EIGHT = {"optimizer": {"name": "adamw_8bit"}}
DROPOUT = {"lora": {"r": 64, "dropout": 0.1}}


def case(name: str, shape: str, sft: dict[str, Any], length: int, rows: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "sft": sft, "length": length, "rows": rows, **more}


CASES = [
    case("lora", "170M", NO | {"batch_size": 4, "accumulation": 1}, 512, 4),
    case("lora, checkpointing", "170M", YES | {"batch_size": 4, "accumulation": 2}, 512, 4),
    case("lora r 64 with dropout, short rows", "60M", NO | DROPOUT | {"batch_size": 8, "accumulation": 2}, 128, 8),
    case("lora", "0.5B", NO | {"batch_size": 1, "accumulation": 2}, 1024, 1),
    case("qlora nf4", "0.5B", YES | {"batch_size": 2, "accumulation": 1}, 512, 2, quantization="nf4"),
    case("full", "60M", NO | FULL | {"batch_size": 4, "accumulation": 2}, 512, 4),
    case("full, 8-bit optimizer, checkpointing", "170M", YES | FULL | EIGHT | {"batch_size": 2}, 512, 2),
    case("full, best kept", "26M", NO | FULL | {"batch_size": 4, "accumulation": 1}, 256, 4, valid=4),
    case("grpo", "60M", NO | {"prompts": 2, "group": 8, "micro_batch": 8}, 128, 0, stage="grpo"),
]
QUICK = [
    case("lora", "26M", NO | {"batch_size": 4, "accumulation": 1}, 256, 4),
    case("qlora nf4, checkpointing", "26M", YES | {"batch_size": 4, "accumulation": 2}, 256, 4, quantization="nf4"),
    case("full", "26M", NO | FULL | {"batch_size": 2, "accumulation": 2}, 256, 2),
]
WORDS = "发热 咳嗽 头痛 皮疹 乏力 腹泻 高血压 糖尿病 肺炎 贫血 检查 用药 休息 复查 血常规 胸片"


def recipe_of(given: dict[str, Any], folder: str) -> Any:
    """The recipe of a case over the model and the rows in `folder`."""
    from danlu.recipe import Recipe

    stage = given.get("stage", "sft")
    values: dict[str, Any] = {
        "name": "plan",
        "stages": [stage],
        "model": {"id": f"{folder}/model", "quantization": given.get("quantization", "none")},
        "data": {"train": [f"{folder}/train.jsonl"], "max_length": given["length"], "overlong": "truncate"},
        stage: {"steps": 2, **given["sft"]},
    }
    if given.get("valid"):
        values["data"]["valid"] = [f"{folder}/valid.jsonl"]
    if stage == "grpo":
        values["grpo"] |= {"max_prompt": given["length"], "max_completion": given["length"], "rollout_batch": 64}
        values["grpo"] |= {"mask_truncated": False, "kl": 0.04}
    return Recipe.model_validate(values)


def make(given: dict[str, Any], folder: str) -> dict[str, Any]:
    """Write the model (bf16, random weights, the tiny base's tokenizer) and the rows; in a process of its own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from danlu.models.locate import base_dir
    from danlu.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(base_dir({"id": "tiny"}))
    shape = {**SHAPES[given["shape"]], **REST[given["shape"]], "tie_word_embeddings": True}
    shape |= {"max_position_embeddings": 4096, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=torch.bfloat16)
    model.save_pretrained(f"{folder}/model")
    tokenizer.save_pretrained(f"{folder}/model")
    draw = random.Random(0)
    for name, count in (("train", max(64, 8 * given["rows"])), ("valid", given.get("valid", 0))):
        lines = []
        for number in range(count):
            words = draw.choices(WORDS.split(), k=given["length"])  # a word is one token or two: cut at max_length
            question = f"{number} {' '.join(words[: given['length'] // 8])}？"
            lines.append(json.dumps({"question": question, "answer": "".join(words), "target": "肺炎"}))
        Path(f"{folder}/{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {}


def predict(given: dict[str, Any], folder: str) -> dict[str, Any]:
    """The plan of the case."""
    from danlu.models.plan import plan

    found = plan(recipe_of(given, folder), device=given["device"], budget=10**12)
    return {"memory": found["memory"], "micro_batch": found["micro_batch"], "assumed": found["assumed"]}


def measure(given: dict[str, Any], folder: str) -> dict[str, Any]:
    """Two steps of the stage, and the peak of this process."""
    import torch

    from danlu.run import Run
    from danlu.train.grpo import grpo
    from danlu.train.sft import sft

    recipe = recipe_of(given, folder)
    stage = given.get("stage", "sft")
    run = Run.create(Path(folder) / "run", stage, recipe.resolved(), seed=recipe.seed)
    with run.recording():
        (grpo if stage == "grpo" else sft)(recipe, run)
    if given["device"] == "cuda":
        return {"peak": torch.cuda.max_memory_allocated(), "gpu": torch.cuda.get_device_name()}
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return {"peak": int(status.split("VmHWM:")[1].split()[0]) * 1024}


SIDES = {"make": make, "predict": predict, "measure": measure}


def in_a_process(side: str, given: dict[str, Any], folder: str) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [sys.executable, "-m", "bench.plan", "--side", side, "--given", json.dumps(given), "--folder", folder]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "DANLU_CACHE": f"{folder}/cache"}
    env["GLIBC_TUNABLES"] = TUNABLES  # as the command line sets it
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def held(given: dict[str, Any]) -> dict[str, Any]:
    """Prediction and measurement of one case."""
    with tempfile.TemporaryDirectory() as folder:
        in_a_process("make", given, folder)
        told, found = in_a_process("predict", given, folder), in_a_process("measure", given, folder)
    predicted = told["memory"]["total"]
    if given["device"] == "cuda":
        predicted -= told["memory"]["process"] + told["memory"]["overhead"]
    ratio = predicted / found["peak"]
    limit = 0.10 if given["device"] == "cuda" else 0.15
    print(f"{given['shape']} {given['name']}: {predicted / 1e9:.2f} of {found['peak'] / 1e9:.2f}", file=sys.stderr)
    return {
        "name": f"{given['shape']} {given['name']}",
        "ours": {"bytes": predicted, "parts": told["memory"]},
        "theirs": {"bytes": found["peak"]},
        "ratio": round(ratio, 3),
        "goal": f"within {limit:.0%}",
        "ok": abs(ratio - 1) <= limit,
    }


def main() -> None:
    parser = arguments(__doc__)
    device_arguments(parser)
    parser.add_argument("--only", metavar="TEXT", help="cases whose name holds this")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--given", type=json.loads)
    parser.add_argument("--folder")
    own = parser.parse_args()
    if own.side:
        print(json.dumps(SIDES[own.side](own.given, own.folder)))
        return
    hide_gpus(own.device)
    chosen = [one for one in (QUICK if own.quick else CASES) if (own.only or "") in f"{one['shape']} {one['name']}"]
    cases = [held({**one, "device": own.device}) for one in chosen]
    right = sum(one["ok"] for one in cases)
    result = {"name": "plan", "device": own.device, "cases": cases, "right": right, "ok": right == len(cases)}
    result |= {"runs": 1, "machine": place(own.device, "bitsandbytes")}
    if (own.write or own.device == "cuda") and not own.quick:
        append(result)
    tell(result, own.json)


if __name__ == "__main__":
    main()
