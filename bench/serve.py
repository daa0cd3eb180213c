"""Chat side by side on a CPU: tokens a second of ours from a Q8_0 GGUF and of transformers' generate in bf16.

    python -m bench.serve --json               # Qwen2.5-0.5B's shape: about three minutes on two CPU cores
    python -m bench.serve --quick --json       # a small shape

Random weights in bf16, the same on both sides: ours are written as Q8_0 by `danlu export`'s code and answer through
what `danlu chat` uses (`chat_stream` of the GGUF's generator, tokens counted by llama.cpp); theirs are loaded by
transformers and generate greedily from the same rendered prompt. The sides take turns in one process, on all cores; the
median of the rounds counts, after one that does not. A rate is tokens over the whole time of the answer, prompt
included. `first_seconds` is the time to the first piece (ours) or token (theirs).
`llama.cpp` says which instructions xllamacpp's build uses, `cpu_flags` which of those that matter the CPU has.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.common import append, arguments, machine, tell
from bench.sft import REST, S, T

GOAL = 3.0
ROUNDS = 5
CASES = {"T": (T, 32), "S": (S, 64)}  # shape, new tokens
QUESTION = "{}岁，发热三天，咳嗽，有黄痰，胸痛，该做什么检查？"  # another one each round: no prompt is remembered
TOKENIZER = Path(__file__).parents[2] / "shared" / "tokenizers" / "Qwen2.5-Instruct"
FLAGS = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}


def build(shape: dict[str, Any], folder: Path) -> None:
    """A model of the shape with random weights in bf16, and Qwen2.5's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**shape, **REST, "vocab_size": 151936})
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder / file.name)


class Theirs:
    """transformers' generate in bf16."""

    def __init__(self, folder: Path, new: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.config = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)

    def __call__(self, question: str) -> tuple[int, float, float]:
        """(tokens, seconds, seconds to the first)."""
        import torch

        first: list[float] = []

        class Clock:
            def put(self, _value: Any) -> None:
                first.append(time.perf_counter())

            def end(self) -> None:
                """Over."""

        start = time.perf_counter()
        chat = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            out = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=self.config, streamer=Clock()
            )
        seconds = time.perf_counter() - start
        return out.shape[1] - ids.shape[1], seconds, first[1] - start  # the prompt is put first


class Ours:
    """The generator of `danlu chat FILE.gguf`."""

    def __init__(self, file: Path, new: int) -> None:
        from danlu.generate import Sampling
        from danlu.generate.gguf import GgufGenerator

        self.generator = GgufGenerator(file, context=1024, parallel=1)
        self.sampling = Sampling(max_tokens=new)

    def __call__(self, question: str) -> tuple[int, float, float]:
        start, first = time.perf_counter(), 0.0
        for _ in self.generator.chat_stream([{"role": "user", "content": question}], self.sampling):
            first = first or time.perf_counter() - start
        return self.generator.streamed.tokens, time.perf_counter() - start, first


def told(rounds: list[tuple[int, float, float]]) -> dict[str, Any]:
    rates = [tokens / seconds for tokens, seconds, _ in rounds]
    return {
        "tokens_per_second": round(statistics.median(rates), 2),
        "spread": [round(min(rates), 2), round(max(rates), 2)],
        "first_seconds": round(statistics.median(first for _, _, first in rounds), 3),
        "tokens": rounds[-1][0],
    }


def case(name: str, rounds: int) -> dict[str, Any]:
    from danlu.export.gguf import write_gguf

    shape, new = CASES[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(shape, folder / "model")
        file = write_gguf(folder / "model", folder / "model.gguf", "q8_0")
        sides = {"ours": Ours(file, new), "theirs": Theirs(folder / "model", new)}
        found: dict[str, list[tuple[int, float, float]]] = {side: [] for side in sides}
        for number in range(rounds + 1):
            for side, ask in sides.items():
                found[side].append(ask(QUESTION.format(20 + number)))
        sides["ours"].generator.close()  # type: ignore[union-attr]
        size = file.stat().st_size
    result: dict[str, Any] = {side: told(own[1:]) for side, own in found.items()}
    ratio = round(result["ours"]["tokens_per_second"] / result["theirs"]["tokens_per_second"], 2)
    print(f"{name}: {result}, {ratio}x", file=sys.stderr, flush=True)
    return {"name": name, **result, "gguf_bytes": size, "ratio": ratio, "goal": GOAL, "ok": ratio >= GOAL}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="default: S; --quick: T")
    parser.add_argument("--write", action="store_true", help="append the figures to bench/results/serve.json")
    options = parser.parse_args()
    import torch
    import xllamacpp

    from danlu.cli.doctor import cpu_flags

    names = options.cases or (["T"] if options.quick else ["S"])
    cases = [case(name, 2 if options.quick else ROUNDS) for name in names]
    built = xllamacpp.get_system_info().strip(" |")
    here = machine() | {
        "xllamacpp": xllamacpp.__version__,
        "llama.cpp": built.decode() if isinstance(built, bytes) else built,
        "cpu_flags": sorted(cpu_flags() & FLAGS),
        "threads": torch.get_num_threads(),
    }
    ok = all(one["ok"] for one in cases)
    result = {"name": "serve", "cases": cases, "ok": ok, "runs": 1, "machine": here}
    if options.write and not options.quick:
        append(result)
    tell(result, options.json)


if __name__ == "__main__":
    main()
