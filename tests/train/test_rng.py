"""Every generator goes on where it stood, also from a file without code in it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from danlu.train import rng


def drawn() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]


def test_a_state_is_restored_from_a_file(tmp_path: Path) -> None:
    rng.seed(2**33 + 5)
    random.gauss(0, 1), np.random.randn()  # each keeps a second normal number for the next time
    torch.save(rng.state(), tmp_path / "rng.pt")
    wanted = [drawn(), drawn()]
    rng.seed(0)
    rng.restore(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert [drawn(), drawn()] == wanted


def test_a_seed_fixes_every_generator() -> None:
    found = []
    for value in (3, 3, 4):
        rng.seed(value)
        found.append(drawn())
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[1], found[2], strict=True))
