"""Every text of the studio is there in Chinese, and every Chinese one is used.

Texts of the recipe's schema and of the data check, which are made elsewhere and shown here, count among them.
"""

from __future__ import annotations

import ast
import importlib
import string
from pathlib import Path

import danlu.data
import danlu.evaluate
import danlu.export
import danlu.rewards
import danlu.studio
from danlu import recipe
from danlu.studio import export_view, form
from danlu.studio.words import chosen, translate
from danlu.studio.zh import CHINESE

ROOT = Path(danlu.studio.__file__).parent
CHECK = [Path(danlu.data.__file__).parent / name for name in ("findings.py", "token_findings.py", "page.py")]
PAGE = Path(danlu.evaluate.__file__).parent / "compare_page.py"
READING = [Path(danlu.rewards.__file__).parent / f"{name}.py" for name in ("verify", "choice", "open_answers")]

SAYING = {"t": (0,), "page": (1,), "Trouble": (0, 1), "Chart": (0,), "Line": (1,)}  # function -> places of texts
FOUND = {"finding": (4, 5), "Finding": (4, 5), "near": (3,)}  # the same for the data check
TABLES = ("STATUS", "LABELS", "SIGNS", "OUTCOMES", "PARTS", "AXES", "KINDS", "THEMES", "NAVIGATION", "UNITS", "COUNTS")
TABLES += ("LEVELS", "MEANING", "VERDICTS", "STATES")
ICONS = {"contrast", "light_mode", "dark_mode", "error_outline", "warning_amber", "info"}  # in those tables
TABLES_OF_CHECK = {"findings": ("ENOUGH",), "token_findings": ("OVERLONG", "ENOUGH_OR_CUT"), "page": ("ADVICE",)}


def spoken() -> set[str]:
    """Texts that are given to `t`: at once, or by way of the functions and tables above."""
    found = {field.description for field in form.fields() if field.description}
    found |= {recipe.load(name).description for name in recipe.shipped()}
    found |= {text for path in sources() for node in given(path, SAYING) for text in texts(node)}
    found |= {text for path in CHECK for node in given(path, FOUND) for text in texts(node)}
    found |= {text for node in given(PAGE, {"say": (0,)}) for text in texts(node)}
    found |= set(export_view.CHECKS)
    for module, names in TABLES_OF_CHECK.items():
        tables = vars(importlib.import_module(f"danlu.data.{module}"))
        found |= {text for name in names for text in tables[name].values()}
    for module in (
        "words",
        "data_view",
        "overview",
        "troubles",
        "charts",
        "shell",
        "pages.runs",
        "pages.written",
        "pages.outlook",
        "pages.chat",
        "pages.data",
        "pages.verdict",
        "pages.export",
    ):
        tables = vars(importlib.import_module(f"danlu.studio.{module}"))
        for name in TABLES:
            table = tables.get(name, {})
            rows = table.values() if isinstance(table, dict) else [row[1] for row in table]
            found |= {text for row in rows for text in (row if isinstance(row, tuple) else (row,)) if text}
    return found - ICONS


def sources() -> list[Path]:
    return [path for path in ROOT.rglob("*.py") if path.parent.name != "zh"]


def given(path: Path, places: dict[str, tuple[int, ...]]) -> list[ast.expr]:
    """What the calls in a file are given at these places."""
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            found += [argument for i in places.get(name, ()) for argument in node.args[i : i + 1]]
    return found


def texts(node: ast.expr) -> set[str]:
    """The constant strings that an expression may be: both sides of a choice."""
    if isinstance(node, ast.IfExp):
        return texts(node.body) | texts(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def written() -> set[str]:
    constants = {
        node.value
        for path in [*sources(), *CHECK, PAGE, *READING]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    sections = [one for one in vars(recipe).values() if isinstance(one, type) and issubclass(one, recipe.Section)]
    described = {field.description for one in sections for field in one.model_fields.values() if field.description}
    return constants | described | spoken()


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_every_text_is_translated():
    assert spoken() - CHINESE.keys() == set()


def test_every_translation_is_used():
    assert CHINESE.keys() - written() == set()


def test_no_text_of_a_finding_is_put_together():
    """A whole text is translated; what was counted stands in its places."""
    odd = [ast.unparse(node) for path in CHECK for node in given(path, FOUND) if not texts(node)]
    tables = ["ENOUGH[keeps(lengths) <= limit]", "ENOUGH_OR_CUT[keeps(lengths) <= limit]", "OVERLONG[policy]"]
    assert sorted(odd) == [*tables, "do", "do", "what", "what"]  # the latter in the functions that make findings


def test_every_check_of_an_export_is_known():
    """The dictionaries with "name" and "ok" that the export package writes."""
    found = set()
    for path in Path(danlu.export.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                one = {key.value: value for key, value in zip(node.keys, node.values, strict=True) if is_text(key)}
                if "ok" in one and is_text(one.get("name")):
                    found.add(one["name"].value)
    assert found >= {"file", "tensors", "KL", "stops"}
    assert found <= set(export_view.CHECKS)


def is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


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
