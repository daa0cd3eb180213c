"""How fast a GGUF file writes here: tokens a second of one answer through llama.cpp, without loading it."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from danlu.generate.gguf import GgufGenerator

TEXT = "一二三四五六七八九十 one two three four five six"
NEVER = -1000.0  # added to the logits of end tokens


def tokens_per_second(path: Path, tokens: int = 96, repeats: int = 3) -> float:
    """Median over `repeats` greedy answers of `tokens` tokens that are kept from ending; a first one warms up."""
    with GgufGenerator(path, context=1024, parallel=1) as server:
        prompt, *ends = server.tokenize([TEXT, *server.think.end_tokens])
        bias = {end[0]: NEVER for end in ends if len(end) == 1}
        server.complete_tokens(prompt, 8, bias=bias)
        rates = []
        for _ in range(repeats):
            start = time.perf_counter()
            written = len(server.complete_tokens(prompt, tokens, bias=bias).tokens)
            rates.append(written / (time.perf_counter() - start))
    return statistics.median(rates)
