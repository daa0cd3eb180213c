"""Every text of the studio is there in Chinese, and every Chinese one is used."""

from __future__ import annotations

import ast
import string
from pathlib import Path

import danlu.studio
from danlu.studio.words import chosen, translate
from danlu.studio.zh import CHINESE

ROOT = Path(danlu.studio.__file__).parent


def spoken() -> set[str]:
    """Texts given to `t`, and texts in tables that `t` is given later: strings that a catalogue knows."""
    found = set()
    for path in ROOT.rglob("*.py"):
        if path.parent.name == "zh":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("t", "page"):
                found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
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
    import importlib

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
