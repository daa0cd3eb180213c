"""Decoding side by side: tokens a second of ours and of transformers' generate, on the same prompts.

    python -m bench.generate --json                       # models T and S: a quarter of an hour on two CPU cores
    python -m bench.generate --json --cases "T 16"        # some of the cases
    python -m bench.generate --json --device cuda --write # the same on a GPU; appended to bench/results/generate.json
    python -m bench.generate --quick --json

A case is a model, a number of prompts decoded together, and x8 where each has a group of 8 completions. Prompts are of
100 random ids, completions of 128 (64 of S), greedy, without an end; both sides write ids only. T is Qwen3's shape, 256
wide, 8 layers, 4,096 tokens; S is Qwen2.5-0.5B's. Weights are random, such as a bf16 checkpoint holds them, and the
same on both sides: in bf16 on a GPU and on a CPU with bf16 units, in fp32 on another CPU, or as `--dtype` says. The
sides take turns in one process; the median of the rounds counts, after one that does not.
`same` is the share of completions that are equal token for token: random weights have near ties.
Ours rearranges its matrices for the CPU once a model; `ready_seconds` says how long that takes.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.common import append, arguments, device_arguments, dtype_argument, dtype_of, hide_gpus, place, tell
from bench.grpo import MODELS, as_a_checkpoint

PROMPT, ROUNDS = 100, 3
NEW = {"T": 128, "S": 64}
GOALS = {"1": 1.5, "16": 3.0, "64": 3.0, "8x8": 3.0}
CASES = [f"{model} {size}" for model in MODELS for size in GOALS]
QUICK = ["T 1", "T 16"]


def built(model: str, device: str, dtype: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**MODELS[model])
    weights = torch.bfloat16 if dtype == "bf16" else torch.float32
    made = AutoModelForCausalLM.from_config(config, dtype=weights)
    as_a_checkpoint(made)
    return made.to(device).eval()


def their_side(model: Any, ids: list[list[int]], samples: int, new: int) -> list[list[int]]:
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None)
    rows = torch.tensor([row for row in ids for _ in range(samples)], device=model.device)
    with torch.inference_mode():
        out = model.generate(rows, attention_mask=torch.ones_like(rows), generation_config=config)
    return out[:, PROMPT:].tolist()


def our_side(weights: Any, ids: list[list[int]], samples: int, new: int) -> list[list[int]]:
    from danlu.generate import Sampling
    from danlu.generate.decode import decode

    found = dict(decode(weights, ids, Sampling(max_tokens=new, samples=samples), end_ids=()))
    return [one.tokens for place in range(len(ids)) for one in found[place]]


def timed(work: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    import torch

    start = time.perf_counter()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def case(name: str, model: Any, weights: Any, rounds: int) -> dict[str, Any]:
    import torch

    kind, size = name.split()
    prompts, samples = (int(part) for part in (size if "x" in size else f"{size}x1").split("x"))
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, MODELS[kind]["vocab_size"], (prompts, PROMPT), generator=draw).tolist()
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds + 1):
        own, ours = timed(lambda: our_side(weights, ids, samples, NEW[kind]))
        other, theirs = timed(lambda: their_side(model, ids, samples, NEW[kind]))
        seconds["ours"].append(own)
        seconds["theirs"].append(other)
    tokens = prompts * samples * NEW[kind]
    rates = {side: [tokens / one for one in values[1:]] for side, values in seconds.items()}
    told: dict[str, Any] = {
        side: {
            "tokens_per_second": round(statistics.median(own), 1),
            "spread": [round(min(own), 1), round(max(own), 1)],
        }
        for side, own in rates.items()
    }
    ratio = round(told["ours"]["tokens_per_second"] / told["theirs"]["tokens_per_second"], 2)
    print(f"{name}: {told}, {ratio}x", file=sys.stderr, flush=True)
    same = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)
    goal = GOALS[size]
    return {"name": name, **told, "ratio": ratio, "same": round(same, 3), "goal": goal, "ok": ratio >= goal}


def main() -> None:
    parser = arguments(__doc__)
    device_arguments(parser)
    dtype_argument(parser)
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="CASE", help=f"of: {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, help=f"times each side runs (default: {ROUNDS})")
    options = parser.parse_args()
    hide_gpus(options.device)
    from danlu.generate.weights import snapshot

    chosen = options.cases or (QUICK if options.quick else CASES)
    cases: list[dict[str, Any]] = []
    ready, dtype = {}, dtype_of(options.dtype)
    for kind in MODELS:
        own = [name for name in chosen if name.startswith(kind)]
        if own:
            model = built(kind, options.device, dtype)
            start = time.perf_counter()
            weights = snapshot(model)
            ready[kind] = round(time.perf_counter() - start, 2)
            cases += [case(name, model, weights, options.rounds or (1 if options.quick else ROUNDS)) for name in own]
    result: dict[str, Any] = {"name": "generate", "device": options.device, "dtype": dtype, "ready_seconds": ready}
    result |= {"cases": cases, "ok": all(one["ok"] for one in cases), "runs": 1, "machine": place(options.device)}
    if options.write and not options.quick:
        append(result)
    tell(result, options.json)


if __name__ == "__main__":
    main()
