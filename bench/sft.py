"""SFT side by side: tokens a second, peak memory and losses of ours, TRL's SFTTrainer, and plain transformers + peft.

    python -m bench.sft --json                       # Qwen2.5-0.5B's shape, real rows up to 1,024 tokens: 30-60 minutes
    python -m bench.sft --json --device cuda         # the same on a GPU, with liger kernels on TRL's side; its figures
                                                     # are always appended to bench/results/sft.json
    python -m bench.sft --quick --json               # a small shape, short rows

Every side runs in a process of its own, and they take turns (the speed of a shared machine drifts; medians over the
rounds count), on the same rows in the same order: LoRA r=16 on all linear layers, four rows a step, no accumulation.
Tokens are those of the rows, without padding; the first steps (compilation) do not count.
TRL runs as it comes (autocast to bf16, gradient checkpointing, padding), as its best stock setting elsewhere (bf16
weights and autocast, packing, no checkpointing), and as its best on a CPU without bf16 units (fp32, packing, no
checkpointing); `best` is the fastest of them. The share of the peak is counted in floating point operations that LoRA
needs (2 forward and 2 backward a frozen weight and token) against the fastest of this machine's measured matrix
products (`matmul_median` is the usual one). Ours runs in the dtype that `auto` takes (bf16 where the CPU has units for
it, else fp32; see `dtype`).
On a GPU both sides have bf16 weights, no checkpointing and four rows a forward, and TRL its liger kernels.
The losses of 30 steps at a small shape, in fp32 on both sides, are held against transformers' and peft's own forward,
row by row.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.common import append, arguments, device_arguments, hide_gpus, place, tell
from danlu.cli import TUNABLES

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
S = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
S |= {"intermediate_size": 4864, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
T = {**S, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 768}
REST = {"tie_word_embeddings": True, "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-6}
THEIRS = {
    "trl default": {},
    "trl bf16 weights, packing": {"weights": "bf16", "packing": True, "checkpointing": False},
    "trl fp32, packing": {"autocast": False, "packing": True, "checkpointing": False},
}
THEIRS_CUDA = {
    "trl default": {},
    "trl liger": {"weights": "bf16", "checkpointing": False, "liger": True},
    "trl liger, packing": {"weights": "bf16", "packing": True, "checkpointing": False, "liger": True},
}

GOALS = {
    "cpu": "4.0x TRL's default, 2.5x its best, 0.6 of its default's memory, 55 % of the bf16 matmul peak",
    "cuda": "1.15x TRL with liger at equal settings, at most its memory",
}
AGAINST = {"cpu": "trl default", "cuda": "trl liger"}  # whose speed and memory ours are held against


def recipe_of(given: dict[str, Any], steps: int, **sft: Any) -> Any:
    """The recipe both sides take their model, rows and rates from."""
    import torch

    from danlu.recipe import Recipe

    data = {"path": f"{given['shared']}/data/sft/delicate_medical_r1.jsonl"}
    data["columns"] = {"question": "question", "reasoning": "think", "answer": "answer"}
    training = {"batch_size": 4, "accumulation": 1, "micro_batch": 1, "steps": steps, "optimizer": {"lr": 2e-4}}
    training |= {"lora": {"r": 16, "alpha": 32}, "gradient_checkpointing": False, "keep_best": False}
    training["compile"] = torch.cuda.is_available() or "auto"  # on a GPU compiled, as in a run of usual length
    return Recipe.model_validate(
        {
            "name": "bench",
            "model": {
                "id": "bench",
                "config": given["config"],
                "tokenizer": f"{given['shared']}/tokenizers/Qwen3-1.7B",
                **given.get("model", {}),
            },
            "data": {"train": [data], "max_length": given["length"], "overlong": "truncate"},
            "sft": training | sft,
        }
    )


def rows_of(recipe: Any, count: int) -> tuple[Any, list[tuple[list[int], list[int]]]]:
    """(tokenizer, the first `count` rows that training would see as (tokens, labels), in its order)."""
    from danlu.data.rows import opened
    from danlu.models.tokenizer import speech_of
    from danlu.train.schedule import row_order

    speech = speech_of(recipe.model)
    _, rows = opened(recipe, speech)
    places = [index for _, index in row_order(len(rows), recipe.seed, 0, count)]
    return speech.tokenizer, [(rows[i].tokens.tolist(), rows[i].labels.tolist()) for i in places]


def timed(seconds: list[float], tokens: list[int], warm: int) -> dict[str, Any]:
    """Tokens a second of the steps after the warm ones: over all, and the spread of single steps."""
    rates = [count / second for count, second in zip(tokens[warm:], seconds[warm:], strict=True)]
    whole = sum(tokens[warm:]) / sum(seconds[warm:])
    return {"tokens_per_second": round(whole, 1), "spread": [round(min(rates), 1), round(max(rates), 1)]}


def peak() -> int:
    """Bytes: CUDA's largest allocation, else the largest resident set of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def ours(given: dict[str, Any]) -> dict[str, Any]:
    """The SFT stage itself, as `danlu sft` runs it."""
    from danlu.models.load import weight_dtype
    from danlu.run import Run
    from danlu.train.sft import sft

    steps, warm = given["steps"] + given["warm"], given["warm"]
    recipe = recipe_of(given, steps, **given.get("sft", {}))
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", "sft", recipe.resolved(), seed=recipe.seed)
        with run.recording():
            sft(recipe, run)
        metrics = [row for row in run.metrics() if "loss" in row]
    _, rows = rows_of(recipe, steps * 4)
    tokens = [sum(len(own) for own, _ in rows[at : at + 4]) for at in range(0, len(rows), 4)]
    seconds = [count / row["tokens_per_second"] for count, row in zip(tokens, metrics, strict=True)]
    told = timed(seconds, tokens, warm) | {"peak_bytes": peak(), "losses": [round(row["loss"], 4) for row in metrics]}
    supervised = sum(label != -100 for _, labels in rows[warm * 4 :] for label in labels[1:])
    flops = needed(given, [len(own) for own, _ in rows[warm * 4 :]], supervised)
    dtype = str(weight_dtype(recipe.model.dtype)).removeprefix("torch.")
    return told | {"flops_per_second": flops / sum(seconds[warm:]), "dtype": dtype}


def needed(given: dict[str, Any], lengths: list[int], supervised: int) -> float:
    """Floating point operations of LoRA training: frozen weights forward and input gradient, adapters also their own
    gradient, causal attention at half of the square (forward once, backward 2.5 times), the head where it has loss."""
    config = json.loads(Path(given["config"]).read_text(encoding="utf-8"))
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    matrices = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner)
    adapters = 16 * layers * (2 * 2 * hidden + 2 * (hidden + kv) + 3 * (hidden + inner))
    attention = sum(2 * length * length * hidden for length in lengths) * layers * 3.5
    return sum(lengths) * (4 * matrices + 6 * adapters) + attention + 4 * supervised * hidden * config["vocab_size"]


def trl(given: dict[str, Any]) -> dict[str, Any]:
    """TRL's SFTTrainer on the same rows."""
    import torch
    import transformers
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    transformers.logging.set_verbosity_error()
    how, steps, warm = given["how"], given["steps"] + given["warm"], given["warm"]
    recipe = recipe_of(given, steps)
    packing = how.get("packing", False)
    tokenizer, rows = rows_of(recipe, steps * 4 * (2 if packing else 1))
    torch.manual_seed(recipe.seed)
    dtype = torch.bfloat16 if how.get("weights") == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(given["config"]), dtype=dtype)
    data = [{"input_ids": ids, "completion_mask": [int(label != -100) for label in labels]} for ids, labels in rows]
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"max_length": given["length"], "packing": packing, "max_steps": steps}
        options |= {"per_device_train_batch_size": 4, "learning_rate": 2e-4, "report_to": [], "save_strategy": "no"}
        options |= {"use_cpu": not cuda, "disable_tqdm": True, "logging_steps": 1, "completion_only_loss": True}
        options |= {"use_liger_kernel": how.get("liger", False), "output_dir": folder}
        if "autocast" in how:
            options["bf16"] = how["autocast"]
        if "checkpointing" in how:
            options["gradient_checkpointing"] = how["checkpointing"]
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=ALL, task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**options),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
            peft_config=lora,
        )
        seconds, tokens, step = [], [], trainer.training_step

        def counted(own: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
            mask = inputs.get("attention_mask")
            tokens.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
            return step(own, inputs, *more, **named)

        class Watch(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.start = time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                if cuda:
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - self.start)

        trainer.training_step = counted
        trainer.add_callback(Watch())
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return timed(seconds, tokens, warm) | {"peak_bytes": peak(), "losses": losses}


def plain(given: dict[str, Any]) -> dict[str, Any]:
    """The same steps through transformers' and peft's own forward, one row at a time; losses only."""
    import torch

    from danlu.models.load import device, load
    from danlu.train.schedule import learning_rate

    here, recipe = device(), recipe_of(given, given["steps"])
    loaded = load(recipe.model, seed=recipe.seed, lora=recipe.sft.lora, train=True)
    _, rows = rows_of(recipe, given["steps"] * 4)
    params = [p for p in loaded.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=2e-4, weight_decay=0.0)
    loaded.model.train()
    losses = []
    for at in range(given["steps"]):
        part = rows[at * 4 : at * 4 + 4]
        count = sum(label != -100 for _, labels in part for label in labels[1:])
        total = 0.0
        for ids, labels in part:
            logits = loaded.model(input_ids=torch.tensor([ids], device=here), use_cache=False).logits[0, :-1]
            wanted = torch.tensor(labels[1:], device=here)
            loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.sft.optimizer, at, given["steps"])
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(total, 4))
    return {"losses": losses}


def matmul(given: dict[str, Any]) -> dict[str, Any]:
    """Products of a layer's size: floating point operations a second, fastest first, by dtype."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = json.loads(Path(given["config"]).read_text(encoding="utf-8"))
    hidden, inner, length = config["hidden_size"], config["intermediate_size"], given["length"]
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(n, hidden, device=device).to(dtype) for n in (length, inner))
        seconds = []
        for _ in range(9):
            start = time.perf_counter()
            for _ in range(10):
                a @ b.t()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - start) / 10)
        found[name] = [2.0 * length * hidden * inner / one for one in sorted(seconds)]
    return found


SIDES = {"ours": ours, "trl": trl, "plain": plain, "matmul": matmul}


def in_a_process(side: str, given: dict[str, Any]) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [sys.executable, "-m", "bench.sft", "--side", side, "--given", json.dumps(given)]
    environment = os.environ | ({"GLIBC_TUNABLES": TUNABLES} if side == "ours" else {})  # as the command line sets it
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    print(f"{side} {given.get('how', '')}: {done.stdout.decode().splitlines()[-1][:200]}", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One side over its rounds: medians, the spread of all steps, the largest peak."""
    spreads = [rate for one in rounds for rate in one["spread"]]
    rates = [one["tokens_per_second"] for one in rounds]
    told = rounds[-1] | {"tokens_per_second": round(statistics.median(rates), 1), "rounds": rates}
    if "flops_per_second" in told:
        told["flops_per_second"] = statistics.median(one["flops_per_second"] for one in rounds)
    return told | {"spread": [min(spreads), max(spreads)], "peak_bytes": max(one["peak_bytes"] for one in rounds)}


def case(given: dict[str, Any], theirs: dict[str, Any], device: str, rounds: int) -> dict[str, Any]:
    """Speed and memory of one shape on all sides, which take turns."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("matmul", "ours", *theirs)}
    for _ in range(rounds):
        found["matmul"].append(in_a_process("matmul", given))
        found["ours"].append(in_a_process("ours", given))
        for name, how in theirs.items():
            found[name].append(in_a_process("trl", given | {"how": how}))
    products = {name: [rate for one in found["matmul"] for rate in one[name]] for name in ("fp32", "bf16")}
    top = {name: max(rates) for name, rates in products.items()}
    own, others = middle(found["ours"]), {name: middle(found[name]) for name in theirs}
    best = max(others, key=lambda name: others[name]["tokens_per_second"])
    against = AGAINST[device] if AGAINST[device] in others else best
    other = others[against]
    ratio, to_best = (own["tokens_per_second"] / one["tokens_per_second"] for one in (other, others[best]))
    memory = own["peak_bytes"] / other["peak_bytes"]
    shares = {name: round(own["flops_per_second"] / value, 3) for name, value in top.items()}
    if device == "cuda":
        ok = ratio >= 1.15 and memory <= 1
    else:
        ok = ratio >= 4 and to_best >= 2.5 and memory <= 0.6 and shares["bf16"] >= 0.55
    return {
        "name": "speed and memory",
        "ours": own,
        "theirs": others,
        "against": against,
        "ratio": round(ratio, 2),
        "memory_ratio": round(memory, 3),
        "best": best,
        "ratio_to_best": round(to_best, 2),
        "matmul_peak": top,
        "matmul_median": {name: statistics.median(rates) for name, rates in products.items()},
        "share_of_peak": shares,
        "goal": GOALS[device],
        "ok": ok,
    }


def curves(given: dict[str, Any]) -> dict[str, Any]:
    """Losses of the same steps as transformers and peft compute them."""
    own, other = in_a_process("ours", given | {"warm": 0}), in_a_process("plain", given)
    gaps = [abs(a - b) for a, b in zip(own["losses"], other["losses"], strict=True)]
    return {
        "name": "loss curve",
        "ours": own["losses"],
        "theirs": other["losses"],
        "ratio": round(own["losses"][-1] / other["losses"][-1], 6),
        "largest_difference": round(max(gaps), 5),
        "median_difference": round(statistics.median(gaps), 6),
        "goal": "no step differs by more than 0.002",
        "ok": max(gaps) <= 2e-3,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shared", default=os.environ.get("DANLU_SHARED", "../shared"), help="data and tokenizers")
    device_arguments(parser)
    parser.add_argument("--only", choices=["speed", "curves"])
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--given", type=json.loads)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each side in a round")
    parser.add_argument("--rounds", type=int, default=2, help="how often the sides take turns")
    parser.add_argument("--theirs", nargs="+", choices=[*THEIRS, *THEIRS_CUDA], help="sides of TRL (default: all)")
    own = parser.parse_args()
    if own.side:
        print(json.dumps(SIDES[own.side](own.given)))
        return
    hide_gpus(own.device)
    shared = Path(own.shared).resolve()
    if not (shared / "data/sft/delicate_medical_r1.jsonl").is_file():
        sys.exit(f"error: no rows in {shared}\nhint: --shared DIRECTORY with data/sft and tokenizers/Qwen3-1.7B")
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "t.json", Path(folder) / "s.json"
        for path, shape in ((small, T), (large, S)):
            path.write_text(json.dumps({**shape, **REST, "vocab_size": 151936, "eos_token_id": 151645}))
        given: dict[str, Any] = {"shared": str(shared), "config": str(large), "length": 1024, "warm": 2}
        given |= {"steps": 2 if own.quick else own.steps}
        from danlu.models.load import native_bf16

        theirs = dict(THEIRS_CUDA if own.device == "cuda" else THEIRS)
        if own.device == "cpu" and native_bf16():
            theirs.pop("trl fp32, packing")  # several times slower there
        if own.device == "cuda":
            given |= {"model": {"dtype": "bf16"}, "warm": 5, "sft": {"micro_batch": 4}}
            given["steps"] = 3 if own.quick else max(20, own.steps)
        tiny = {**given, "config": str(small), "length": 256 if own.quick else 512}
        cases: list[dict[str, Any]] = []
        exact = {"precision": "fp32"}
        if own.only != "curves":
            rounds = 1 if own.quick else own.rounds
            chosen = {name: how for name, how in theirs.items() if name == AGAINST[own.device] or not own.quick}
            chosen = {name: how for name, how in chosen.items() if own.theirs is None or name in own.theirs}
            cases.append(case({**tiny, "length": 128, "warm": 1} if own.quick else given, chosen, own.device, rounds))
        if own.only != "speed":
            cases.append(curves({**tiny, "steps": 3 if own.quick else 30, "model": {"dtype": "fp32"}, "sft": exact}))
    result = {"name": "sft", "device": own.device, "cases": cases, "ok": all(one["ok"] for one in cases)}
    others = ("trl", "liger-kernel") if own.device == "cuda" else ("trl",)
    result |= {"runs": 1, "machine": place(own.device, *others)}
    if (own.write or own.device == "cuda") and not own.quick:
        append(result)
    tell(result, own.json)


if __name__ == "__main__":
    main()
