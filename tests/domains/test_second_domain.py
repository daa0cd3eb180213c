"""Another industry: a Domain of the user's own, with a world of its own, needs no change anywhere else."""

from __future__ import annotations

import ast
import sys
import types
from pathlib import Path

import pytest

import danlu
from danlu import domains, recipe
from danlu.data.prepare import prepare
from danlu.data.sources import load
from danlu.domains import Domain, Term, World
from danlu.errors import DanluError
from danlu.evaluate.evaluate import benchmarks_of
from danlu.recipe import Source
from danlu.records import Completion, Sample
from danlu.rewards.verify import verify

BREADS = {"baguette": "wheat", "pumpernickel": "rye", "tortilla": "maize", "injera": "teff"}
SPLITS = {"train": "breads to learn", "test": "breads to be asked about"}


def breads(split: str, n: int, seed: int = 0) -> list[Sample]:
    names = list(BREADS)[: 2 if split == "train" else 4]
    rows = []
    for index in range(n):
        bread = names[(index + seed) % len(names)]
        ask = {"role": "user", "content": f"{split} {index}: which grain is in {bread}?"}
        rivals = tuple(grain for grain in BREADS.values() if grain != BREADS[bread])
        grain = BREADS[bread]
        rows.append(
            Sample(f"{split}-{index}", (ask,), f"{bread} is {grain} bread.", f"It is {grain}.", grain, (), {}, rivals)
        )
    return rows


BAKERY = Domain(
    "bakery",
    terms=lambda: [Term((name,), "bread") for name in BREADS],
    world=World(SPLITS, breads, notice="flour only"),
    notice="nothing to eat",
)
RECIPE = """
name: bread
domain: bakery_of_the_test
data: {train: {path: "world:train", limit: 8}, masking: {probability: 1.0}}
eval: {benchmarks: [{name: grains, path: "world:test", limit: 6}]}
"""


@pytest.fixture
def bakery(monkeypatch) -> Domain:
    module = types.ModuleType("bakery_of_the_test")
    module.DOMAIN = BAKERY  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bakery_of_the_test", module)
    return domains.load("bakery_of_the_test")


def test_its_world_is_a_source(bakery):
    loaded = load(Source(path="world:test", limit=6, seed=1), bakery, needs="target")
    assert [row.target for row in loaded.rows] == ["rye", "maize", "teff", "wheat", "rye", "maize"]
    assert loaded.rejected == []
    with pytest.raises(DanluError, match="world of bakery has no split 'tests'\nhint: did you mean world:test"):
        load(Source(path="world:tests", limit=6), bakery)


def test_a_recipe_names_it(bakery):
    wanted = recipe.parse(RECIPE)
    assert bakery is domains.load(wanted.domain)
    rows = prepare(wanted).train
    assert {row.answer for row in rows} == {"It is wheat.", "It is rye."}
    found, _ = benchmarks_of(wanted, bakery)
    assert [row.target for row in found["grains"]] == ["wheat", "rye", "maize", "teff", "wheat", "rye"]
    row = found["grains"][0]
    assert verify(row, Completion("x", "", "It is wheat.", "stop", True)).outcome == "right"
    assert verify(row, Completion("x", "", "It is rye.", "stop", True)).outcome == "wrong"


def test_unknown_domains_name_what_there_is():
    with pytest.raises(DanluError, match="no domain 'bakeries'\nhint: shipped: medical"):
        domains.load("bakeries")


def test_nothing_outside_medicine_imports_medicine():
    """The package's code, imports inside functions too; recipes name a domain, code does not."""
    root = Path(danlu.__file__).parent
    for path in root.rglob("*.py"):
        inside = path.relative_to(root).parts[:2] == ("domains", "medical")
        if inside:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert not [name for name in names if name.startswith("danlu.domains.medical")], path
