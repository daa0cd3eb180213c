"""Vignettes with one finding left out: does a model still find the answer when a patient forgets to mention something?

They are the questions of the split "test" without one finding, where the right condition is still the only best
match. Kept apart from vignettes.py, whose text the shipped base was trained on.
"""

from __future__ import annotations

import random

from danlu.domains.medical.clinic import vignettes
from danlu.domains.medical.clinic.knowledge import knowledge
from danlu.errors import DanluError
from danlu.records import Sample

SPLIT = "test-partial"
SPLITS = {**vignettes.SPLITS, SPLIT: "vignettes of test with one finding missing, still with one best answer"}


def samples(split: str, n: int, seed: int = 0) -> list[Sample]:
    """`n` vignettes of any split of the clinic; see `vignettes.samples`."""
    if split != SPLIT:
        return vignettes.samples(split, n, seed)
    kb = knowledge()
    found: list[Sample] = []
    for size in (2 * n, 3 * n):  # most vignettes can spare a finding
        found = []
        for row in vignettes.samples("test", size, seed):
            rng = random.Random(f"{SPLIT} {seed} {row.id}")
            condition, findings = row.meta["condition"], row.meta["findings"]
            fewer = [[f for f in findings if f != left_out] for left_out in findings]
            enough = [rest for rest in fewer if kb.best(rest) == condition]
            if not enough:
                continue
            task, form = row.meta["task"].split("/")
            shorter = vignettes.vignette(rng, condition, rng.choice(enough), row.meta["language"], task, form)
            found.append(vignettes.to_sample(shorter, f"{SPLIT}-{row.id}", row.meta["split"], None))
            if len(found) == n:
                return found
    raise DanluError(f"world:{SPLIT} has only about {len(found)} different vignettes", f"ask for fewer than {n}")
