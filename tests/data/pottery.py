"""A second, tiny domain: nothing outside a domain may know which one it is."""

from __future__ import annotations

from danlu.domains import Domain, Term, World
from danlu.records import Sample

TERMS = [
    Term(("celadon", "青瓷"), "glaze"),
    Term(("kiln",), "tool"),
    Term(("kiln furniture", "窑具"), "tool"),
    Term(("窑",), "tool"),  # one character: never matched
]


def samples(split: str, n: int, seed: int = 0) -> list[Sample]:
    rows = []
    for index in range(n):
        ask = {"role": "user", "content": f"{split} pot {index + seed}?"}
        rows.append(Sample(f"{split}-{index}", (ask,), reasoning="It is celadon.", answer="celadon", target="celadon"))
    return rows


DOMAIN = Domain(
    "pottery",
    terms=lambda: TERMS,
    world=World({"train": "rows to train on", "test": "rows to test on"}, samples),
    sources={"pots": "no/such/file.jsonl"},
)
