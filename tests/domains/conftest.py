"""Shared by the tests of domains: the clinic's knowledge, and real tokenizers where the checkout has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.domains.medical.clinic.knowledge import Knowledge, knowledge


@pytest.fixture(scope="session")
def kb() -> Knowledge:
    return knowledge()


@pytest.fixture(scope="session")
def tokenizers() -> Path:
    """Tokenizers of the models we speak of."""
    folder = Path(__file__).parents[3] / "shared" / "tokenizers"
    if not folder.is_dir():
        pytest.skip("no tokenizers beside the checkout")
    return folder
