"""Every text of the studio is there in Chinese, and every Chinese one is used."""

from __future__ import annotations

import ast
import importlib
import string
from pathlib import Path

import danlu.studio
from danlu.studio.words import chosen, translate
from danlu.studio.zh import CHINESE

ROOT = Path(danlu.studio.__file__).parent


SAYING = {"t": (0,), "page": (1,), "Trouble": (0, 1), "Chart": (0,), "Line": (1,)}  # function -> places of texts
TABLES = ("STATUS", "LABELS", "SIGNS", "OUTCOMES", "PARTS", "AXES", "KINDS", "THEMES", "NAVIGATION")


def spoken() -> set[str]:
    """Texts that are given to `t`: at once, or by way of the functions and tables above."""
    found: set[str] = set()
    for path in ROOT.rglob("*.py"):
        if path.parent.name == "zh":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                found |= {text for i in SAYING.get(name, ()) for text in texts(node.args[i : i + 1])}
    for module in (
        "overview",
        "troubles",
        "charts",
        "shell",
        "pages.runs",
        "pages.written",
        "pages.outlook",
        "pages.chat",
    ):
        tables = vars(importlib.import_module(f"danlu.studio.{module}"))
        for name in TABLES:
            table = tables.get(name, {})
            rows = table.values() if isinstance(table, dict) else [row[1] for row in table]
            found |= {text for row in rows for text in (row if isinstance(row, tuple) else (row,)) if text}
    return found - {icon for icon in found if icon in ("contrast", "light_mode", "dark_mode")}


def texts(nodes: list[ast.expr]) -> set[str]:
    """The constant strings among expressions; both sides of a choice."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.IfExp):
            found |= texts([node.body, node.orelse])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def written() -> set[str]:
    return {
        node.value
        for path in ROOT.rglob("*.py")
        if path.parent.name != "zh"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_every_text_is_translated():
    assert spoken() - CHINESE.keys() == set()


def test_every_translation_is_used():
    assert CHINESE.keys() - written() == set()


def test_translations_keep_their_places():
    assert {english for english, chinese in CHINESE.items() if places(english) != places(chinese)} == set()


def test_catalogues_do_not_contradict_one_another():
    seen: dict[str, str] = {}
    for path in sorted((ROOT / "zh").glob("[a-z]*.py")):
        for english, chinese in importlib.import_module(f"danlu.studio.zh.{path.stem}").TEXTS.items():
            assert seen.setdefault(english, chinese) == chinese, (path.name, english)


def test_values_are_not_patterns():
    assert translate("a {name} b", "en", name="{x}") == "a {x} b"
    assert translate("{not} a pattern", "en") == "{not} a pattern"


def test_the_language_is_the_browsers_until_one_is_chosen():
    assert chosen(None, "de, zh-TW;q=0.8, en;q=0.5") == "zh"
    assert chosen(None, "en-GB,zh;q=0.5") == "en"
    assert chosen("en", "zh-CN") == "en"
    assert chosen("x", "") == "en"
