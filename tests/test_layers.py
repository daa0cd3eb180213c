"""Imports go only downwards, also the lazy ones inside functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import danlu

ROOT = Path(danlu.__file__).parent
LAYERS = [
    {"errors", "records", "think", "display", "assets"},
    {"recipe", "run"},
    {"domains"},
    {"data", "models", "native", "rewards", "generate"},
    {"train", "evaluate", "export"},
    {"serve", "studio", "demo", "rehearse", "run_facts", "run_page"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
APART = LAYERS[4]  # stages meet in a run directory, never in code


def imports(path: Path) -> set[str]:
    """First names below `danlu` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("danlu.")} - {"__version__"}


def problems(own: str, imported: set[str]) -> list[str]:
    """What is wrong with a module of package `own` importing these packages."""
    bad = [f"{name} is in no layer" for name in imported - LEVEL.keys()]
    bad += [f"{own} imports upwards: {name}" for name in imported & LEVEL.keys() if LEVEL[name] > LEVEL[own]]
    return bad + [f"{own} imports the stage {name}" for name in imported & APART if own in APART and name != own]


@pytest.mark.parametrize(
    "path", sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_go_downwards(path: Path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in LEVEL, f"{own} is in no layer: add it to LAYERS"
    assert problems(own, imports(path)) == []


def test_the_rule_can_fail():
    assert problems("data", {"train"}) == ["data imports upwards: train"]
    assert problems("train", {"evaluate"}) == ["train imports the stage evaluate"]
    assert problems("run", {"nowhere"}) == ["nowhere is in no layer"]
    assert problems("cli", {"train", "errors"}) == []


def test_only_the_domain_knows_medicine():
    """Nothing outside domains/ imports a domain by name; recipes name it."""
    for path in ROOT.rglob("*.py"):
        if "domains" not in path.relative_to(ROOT).parts and path.name != "demo.py":
            assert "danlu.domains.medical" not in path.read_text(encoding="utf-8"), path
