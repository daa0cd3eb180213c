"""GRPO side by side: seconds a step of ours and of TRL's GRPOTrainer with transformers' generate.

    python -m bench.grpo --json                           # models T and S: about an hour on two CPU cores
    python -m bench.grpo --json --cases "T 1x8" "S 1x8"   # some of the cases
    python -m bench.grpo --json --device cuda --write     # the same on a GPU; appended to bench/results/grpo.json
    python -m bench.grpo --quick --json                   # two cases of T, few steps

A case is a model, prompts x completions a step, and lengths: 100 tokens of prompt and 128 of completion, or ragged ones
of 24 to 128, the same on both sides, where the end is forced and forbidden by the logits. T is Qwen3's shape, 256 wide,
8 layers, 4,096 tokens; S is Qwen2.5-0.5B's. Weights are random, such as a bf16 checkpoint holds them; LoRA r=16 is on
all linear layers, sampling is at temperature 1 with no filters, the reward is a sum over ids. Each side runs in a
process of its own; a step is from the end of one to the end of the next, and the first ones do not count.

Both sides run in the same number format, the faster one of the device: bf16 weights and autocast on a GPU and on a CPU
with bf16 units, fp32 on another CPU (TRL's default, bf16 autocast, is 3 times slower there). `--dtype` sets it.
Otherwise TRL runs with its defaults. `--best` also switches its gradient checkpointing off, which is faster and takes
more memory: `best` and `ratio_to_best`.
Ours runs as a recipe of 100 steps does: on a GPU compiled where hidden states are 512 wide or more.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.common import append, arguments, device_arguments, dtype_argument, dtype_of, hide_gpus, place, tell

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
T = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 256, "intermediate_size": 768}
T |= {"num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 4096}
S = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864}
S |= {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936}
REST = {"tie_word_embeddings": True, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "eos_token_id": 2}
MODELS = {"T": T | REST, "S": S | REST}
GOALS = {"T": 3.0, "S": 3.5}
RAGGED_GOAL = 4.0
CASES = [f"{model} {size}{lengths}" for model in MODELS for size in ("1x8", "8x8") for lengths in ("", " ragged")]
QUICK = ["T 1x8", "T 1x8 ragged"]
PROMPT, LONGEST, SHORTEST, GROUP, END = 100, 128, 24, 8, 2


def lengths_of(given: dict[str, Any], step: int) -> list[int]:
    """Tokens of each completion of a step, in the order of prompts and samples; 0: the end is forbidden."""
    drawn = random.Random(f"{given['name']} {step}")
    return [drawn.randint(SHORTEST, LONGEST) if given["ragged"] else 0 for _ in range(given["prompts"] * GROUP)]


def force(logits: Any, written: list[int], lengths: list[int]) -> None:
    """Make rows that have `written` so many tokens end at their `lengths`, and not before; in place."""
    logits[:, END] = float("-inf")
    for row, (count, length) in enumerate(zip(written, lengths, strict=True)):
        if count + 1 == length:
            logits[row] = float("-inf")
            logits[row, END] = 0.0


def write_inputs(folder: Path, model: str, rows: int) -> None:
    """A config, a tokenizer of one word a token, questions of 100 words, and the reward."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    config = MODELS[model]
    words = ["<pad>", "<begin>", "<end>", *(f"w{n}" for n in range(3, config["vocab_size"]))]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<pad>", padding_side="left")
    made.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    made.save_pretrained(folder / "tokenizer")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "reward.py").write_text("def fn(sample, completion):\n    return float(sum(completion.tokens) % 7)\n")
    drawn = random.Random(0)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for n in range(rows):
            question = " ".join(drawn.choices(words[3:], k=PROMPT))
            file.write(json.dumps({"id": str(n), "question": question, "target": "x"}) + "\n")


# ---- one side, in its own process: seconds and completion tokens of each step, peak memory


def ours(given: dict[str, Any]) -> dict[str, Any]:
    """The GRPO stage itself, as `danlu grpo` runs it."""
    from danlu.generate import decode
    from danlu.recipe import Recipe
    from danlu.run import Run
    from danlu.train import grpo, rollout

    folder = Path(given["folder"])
    training = {"prompts": given["prompts"], "group": GROUP, "steps": given["steps"], "max_prompt": PROMPT}
    training |= {"max_completion": LONGEST, "mask_truncated": False, "lora": {"r": 16, "alpha": 32, "targets": ALL}}
    training |= {"rewards": [{"python": f"{folder / 'reward.py'}:fn"}], "micro_batch": 8 * given["prompts"]}
    training |= {"compile": _compile(given), "keep_best": False}
    training["precision"] = given["dtype"]
    training["data"] = str(folder / "rows.jsonl")
    model = {"id": "bench", "config": str(folder / "config.json"), "tokenizer": str(folder / "tokenizer")}
    model |= {"think": "none", "dtype": given["dtype"]}
    recipe = Recipe.model_validate({"name": "bench", "model": model, "grpo": training})
    step, take, collect = -1, decode.Batch._take, rollout.collect

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal step
        step += 1
        return collect(*args, **kwargs)

    def taken(self: Any, first: int, logits: Any) -> Any:
        new = self.rows[first:]
        lengths = lengths_of(given, step)
        force(logits, [len(row.tokens) for row in new], [lengths[row.prompt * GROUP + row.sample] for row in new])
        return take(self, first, logits)

    made = grpo.loaded_for

    def loaded_for(*args: Any) -> Any:
        loaded, plan = made(*args)
        as_a_checkpoint(loaded.model)
        return loaded, plan

    grpo.loaded_for = loaded_for  # type: ignore[assignment]
    grpo.collect, decode.Batch._take = counted, taken  # type: ignore[method-assign,assignment]
    ends: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as out:
        run = Run.create(Path(out) / "run", "grpo", recipe.resolved(), seed=recipe.seed)
        log = run.log
        run.log = lambda row: (ends.append(now()), log(row))  # type: ignore[assignment,method-assign,func-returns-value]
        with run.recording():
            grpo.grpo(recipe, run)
        rows = run.metrics()
    tokens = [round(row["completion_length"] * given["prompts"] * GROUP) for row in rows]
    parts = ("rollout_seconds", "reward_seconds", "update_seconds")
    told = {part: round(statistics.median(row[part] for row in rows[given["warm"] :]), 4) for part in parts}
    return timed(given, ends, tokens) | told


def as_a_checkpoint(model: Any) -> None:
    """Round the base's weights to what a bf16 checkpoint holds."""
    import torch

    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" not in name:
                value.copy_(value.bfloat16())


def _compile(given: dict[str, Any]) -> bool | str:
    """As a run of usual length has it: by itself on a CPU, on a GPU compiled where the model is wide."""
    return MODELS[given["model"]]["hidden_size"] >= 512 if given["device"] == "cuda" else "auto"


def trl(given: dict[str, Any]) -> dict[str, Any]:
    """TRL's GRPOTrainer on the same prompts, lengths and reward."""
    import torch
    import transformers
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    disable_progress_bars()
    transformers.logging.set_verbosity_error()
    folder, cuda, half = Path(given["folder"]), given["device"] == "cuda", given["dtype"] == "bf16"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder / "config.json"), dtype=torch.bfloat16 if half else torch.float32
    )
    as_a_checkpoint(model)
    rows = [json.loads(line)["question"] for line in (folder / "rows.jsonl").read_text("utf-8").splitlines()]
    tokens: list[int] = []
    ends: list[tuple[float, float]] = []

    class Forced(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            written = [input_ids.shape[1] - PROMPT] * len(scores)
            force(scores, written, lengths_of(given, len(tokens)))
            return scores

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        return [float(sum(ids) % 7) for ids in completion_ids]

    class Ends(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            ends.append(now())

    with tempfile.TemporaryDirectory() as out:
        count = given["prompts"] * GROUP
        trainer = GRPOTrainer(
            model,
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=out,
                per_device_train_batch_size=given["micro"],
                gradient_accumulation_steps=count // given["micro"],
                num_generations=GROUP,
                max_steps=given["steps"],
                max_completion_length=LONGEST,
                gradient_checkpointing=given["checkpointing"],
                bf16=half,
                use_cpu=not cuda,
                report_to=[],
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": rows}),
            processing_class=AutoTokenizer.from_pretrained(folder / "tokenizer"),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=ALL, task_type="CAUSAL_LM"),
            callbacks=[Ends()],
        )
        trainer.remove_callback(PrinterCallback)
        generate = trainer.model.generate
        trainer.model.generate = lambda **options: generate(**options, logits_processor=[Forced()])
        trainer.train()
    return timed(given, ends, tokens)


def now() -> tuple[float, float]:
    """Seconds of the clock, and of all threads of this process."""
    return time.perf_counter(), time.process_time()


def timed(given: dict[str, Any], ends: list[tuple[float, float]], tokens: list[int]) -> dict[str, Any]:
    """Seconds from the end of a step to the end of the next; the first `warm` steps are left out."""
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ends)][given["warm"] - 1 :]
    seconds, cpu = zip(*steps, strict=True)
    return {
        "seconds_per_step": round(statistics.median(seconds), 4),
        "steps_per_second": round(1 / statistics.median(seconds), 4),
        "spread": [round(min(seconds), 4), round(max(seconds), 4)],
        "cpu_seconds_per_step": round(statistics.median(cpu), 4),
        "tokens_per_step": tokens[given["warm"] :],
        "peak_bytes": peak(),
    }


def peak() -> int:
    """Bytes: CUDA's largest allocation, else the largest resident set of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


SIDES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"ours": ours, "trl": trl}


# ---- together


def in_a_process(side: str, given: dict[str, Any]) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [sys.executable, "-m", "bench.grpo", "--side", side, "--given", json.dumps(given)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = f"{found['seconds_per_step']:.2f} s a step, {found['cpu_seconds_per_step']:.2f} s of CPU"
    print(f"{given['name']}, {side}: {seconds}", file=sys.stderr, flush=True)
    return found


def case(name: str, steps: int, device: str, dtype: str, best: bool) -> dict[str, Any]:
    model, size, *rest = name.split()
    prompts, ragged = int(size.split("x")[0]), bool(rest)
    with tempfile.TemporaryDirectory() as folder:
        warm = 1 if model == "S" and device == "cpu" else 2
        given: dict[str, Any] = {"name": name, "model": model, "prompts": prompts, "ragged": ragged, "warm": warm}
        given |= {"device": device, "dtype": dtype, "folder": folder, "steps": steps + warm}
        write_inputs(Path(folder), model, prompts * given["steps"])
        own = in_a_process("ours", given)
        micro = prompts * GROUP if model == "T" or device == "cuda" else GROUP  # as much as fits goes fastest
        others = [
            in_a_process("trl", given | {"micro": micro, "checkpointing": on}) for on in (True, False)[: 1 + best]
        ]
    assert all(own["tokens_per_step"] == other["tokens_per_step"] for other in others)
    ratios = [round(other["seconds_per_step"] / own["seconds_per_step"], 2) for other in others]
    goal = RAGGED_GOAL if ragged else GOALS[model]
    found = {"name": name, "ours": own, "theirs": others[0], "ratio": ratios[0], "goal": goal, "ok": ratios[0] >= goal}
    return found | ({"best": others[1], "ratio_to_best": ratios[1]} if best else {})


def main() -> None:
    parser = arguments(__doc__)
    device_arguments(parser)
    dtype_argument(parser)
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="CASE", help=f"of: {', '.join(CASES)}")
    parser.add_argument("--best", action="store_true", help="TRL also without gradient checkpointing")
    parser.add_argument("--steps", type=int, help="timed steps of each side (default: 8 of T, 2 of S)")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--given", type=json.loads)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](options.given)))
        return
    hide_gpus(options.device)
    cases, dtype = [], dtype_of(options.dtype)
    for name in options.cases or (QUICK if options.quick else CASES):
        steps = options.steps or (2 if options.quick else 8 if name.startswith("T") or options.device == "cuda" else 2)
        cases.append(case(name, steps, options.device, dtype, options.best))
    settings = f"defaults, {'fp32' if dtype == 'fp32' else 'bf16 weights and autocast'}"
    result = {"name": "grpo", "device": options.device, "dtype": dtype, "their_settings": settings, "cases": cases}
    result |= {"ok": all(one["ok"] for one in cases), "runs": 1, "machine": place(options.device, "trl")}
    if options.write and not options.quick:
        append(result)
    tell(result, options.json)


if __name__ == "__main__":
    main()
