"""The docs say what the code says: generated tables are fresh, both languages have the same pages, names exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from danlu import recipe
from danlu.cli import main
from danlu.cli.app import commands

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in TEXTS]


def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = generate()


def outline(text: str) -> list[int]:
    """Levels of the headings, code blocks left out."""
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [len(marks) for marks in re.findall(r"^(#+) ", plain, re.MULTILINE)]


@pytest.mark.parametrize("file", GENERATE.GENERATED)
def test_generated_parts_are_fresh(file):
    name, content = GENERATE.GENERATED[file]
    text = (DOCS / file).read_text(encoding="utf-8")
    assert GENERATE.filled(text, name, content()) == text, "run: python docs/generate.py"


def test_every_key_and_command_is_in_the_tables():
    table = GENERATE.options("en")
    keys = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    assert {key for key in recipe.all_keys() if not key.startswith("data.masking")} <= keys
    assert "data.masking.terms" in keys
    assert "{'" not in table
    assert "danlu.recipe" not in table
    page = GENERATE.pages("en")
    assert re.findall(r"^## danlu (.+)$", page, re.MULTILINE) == list(commands())
    for text, cells in ((table, 4), (page, 3)):
        for line in filter(lambda line: line.startswith("|"), text.splitlines()):
            assert len(re.split(r"(?<!\\)\|", line)) == cells + 2, line


def test_the_chinese_descriptions_are_of_today():
    """No translation of a sentence that the code no longer has."""
    english = GENERATE.options("en")
    assert [text for text in GENERATE.ZH if f"| {GENERATE.cell(text)} |" not in english] == []


def test_both_languages_have_the_same_pages():
    assert sorted(path.name for path in (DOCS / "zh").glob("*.md")) == PAGES
    pairs = [(DOCS / name, DOCS / "zh" / name) for name in PAGES] + [(ROOT / "README.md", ROOT / "README.zh-CN.md")]
    for english, chinese in pairs:
        texts = [path.read_text(encoding="utf-8") for path in (english, chinese)]
        assert outline(texts[0]) == outline(texts[1]), english.name
        assert texts[0].count("```") == texts[1].count("```"), english.name


@pytest.mark.parametrize("name", NAMES)
def test_links_and_pictures_exist(name):
    path = ROOT / name
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if not link.startswith(("http", "mailto")) and not link.endswith(".png"):  # pictures are made by the demo
            assert (path.parent / link).exists(), link


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_keys_in_the_text_exist(name):
    """Every `danlu COMMAND`, every --option beside it, every --set key, every shipped recipe that is named."""
    text = (ROOT / name).read_text(encoding="utf-8")
    known = commands()
    groups = {name.split()[0] for name in known if " " in name}
    calls = re.findall(r"(?:^|`|&& )danlu ([a-z]+)((?: [^\n`#|]*)?)", text, re.MULTILINE)
    for command, rest in calls:
        if command in groups:
            part = re.match(r" ([a-z]+)", rest)
            if part is None:  # the group alone
                continue
            command = f"{command} {part[1]}"
        assert command in known, f"danlu {command}"
        options = {option for param in known[command].params for option in param.opts}
        for option in re.findall(r"(?<!\S)(--[a-z-]+)", rest):
            assert option in options | {"--help"}, f"danlu {command} {option}"
    keys = recipe.all_keys()
    for key in re.findall(r"--set ([a-z_0-9.]+)=", text):
        assert any(re.fullmatch(rf"{re.escape(known)}(\.\d+)?(\.\w+)?", key) for known in keys), key
    for found in re.findall(r"\b(?:qwen|r1-distill)[\w.-]*-medical[\w.-]*[a-z0-9]\b", text):
        base = re.sub(r"-(?:sft|grpo|eval|eval-base|export)(?:-eval)?$", "", found)
        assert {found, base} & set(recipe.shipped()), found


@pytest.mark.parametrize("name", NAMES)
def test_stage_commands_in_the_text_work(name, tmp_path, monkeypatch, runs, capsys):
    """Each stage command of a code block, as a dry run: recipes, keys and values are what the code takes."""
    monkeypatch.chdir(tmp_path)
    assert main(["new", "clinic", "--recipe", "qwen3-1.7b-medical-qlora-v2"]) == 0
    (tmp_path / "mine.yaml").write_text((tmp_path / "clinic.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    blocks = re.findall(r"```\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["danlu"] or "[OPTIONS]" in words:
            continue
        if words[1] not in ("run", "sft", "grpo", "eval", "export") and words[1:3] != ["data", "prepare"]:
            continue
        wanted = [word for word in words[1:] if word != "--resume"]
        assert main([*wanted, "--dry-run"]) == 0, (line, capsys.readouterr().err)
    assert not runs.exists()


def test_every_recipe_is_in_the_readme():
    for readme in ("README.md", "README.zh-CN.md"):
        text = (ROOT / readme).read_text(encoding="utf-8")
        assert [name for name in recipe.shipped() if f"`{name}`" not in text] == []
        assert "DEMO-ONLY" in text
        for marker in ("<!-- demo:begin -->", "<!-- demo:end -->"):
            assert text.count(marker) == 1
