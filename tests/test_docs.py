"""The docs say what the code says: generated tables are fresh, both languages have the same pages, names exist."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from danlu import recipe
from danlu.cli import main
from danlu.cli.app import commands
from danlu.domains.medical.benchmarks import BENCHMARKS, SUITES
from danlu.domains.medical.lexicon import CATEGORIES
from danlu.domains.medical.lexicon import rows as lexicon_rows
from danlu.domains.medical.safety import KINDS, LANGUAGES
from danlu.domains.medical.safety import rows as probe_rows
from danlu.evaluate.items import PROMPTS
from danlu.evaluate.score import OUTCOMES
from danlu.rewards.rules import KEYS

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


def plain_blocks(name: str) -> list[str]:
    """The code blocks that name no language: commands, and what they print."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if not kind]


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
    assert set(GENERATE.ZH_BENCHMARKS) == {spec.measures for spec in BENCHMARKS.values()}
    assert set(GENERATE.KINDS) == {spec.kind for spec in BENCHMARKS.values()}


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
    (tmp_path / "my.jsonl").write_text('{"question": "q", "answer": "a"}\n', encoding="utf-8")
    for line in "\n".join(plain_blocks(name)).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["danlu"] or "[OPTIONS]" in words:
            continue
        if words[1] not in ("run", "sft", "grpo", "eval", "export") and words[1:3] != ["data", "prepare"]:
            continue
        if "--rescore" in words:  # it takes an evaluation that exists
            continue
        wanted = [word for word in words[1:] if word != "--resume"]
        if wanted[0] == "export" and re.search(r"-(sft|grpo)$", wanted[1]):  # a run that a reader has
            wanted[1] = "tiny"
        assert main([*wanted, "--dry-run"]) == 0, (line, capsys.readouterr().err)
    assert not runs.exists()


def test_every_recipe_is_in_the_readme():
    for readme in ("README.md", "README.zh-CN.md"):
        text = (ROOT / readme).read_text(encoding="utf-8")
        assert [name for name in recipe.shipped() if f"`{name}`" not in text] == []
        assert "DEMO-ONLY" in text
        for marker in ("<!-- demo:begin -->", "<!-- demo:end -->"):
            assert text.count(marker) == 1


# ---- docs/data.md


def findings_of_the_code() -> dict[str, set[str]]:
    """Code of every finding -> its levels where they stand beside it, {} where they are computed."""
    found: dict[str, set[str]] = {}
    for name in ("findings", "token_findings"):
        for node in ast.walk(ast.parse((ROOT / "src" / "danlu" / "data" / f"{name}.py").read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", "").lower() in ("finding", "near")
            parts = node.args if called else []  # type: ignore[attr-defined]
            if len(parts) > 3 and isinstance(parts[0], ast.Constant) and isinstance(parts[0].value, str):
                levels = {part.value for part in ast.walk(parts[1]) if isinstance(part, ast.Constant)}
                found[parts[0].value] = levels & {"error", "warning", "info"}
    return found


@pytest.mark.parametrize("name", ["docs/data.md", "docs/zh/data.md"])
def test_every_finding_is_explained(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|\n]+) \| [^|\n]+ \| [^|\n]+ \|$", text, re.MULTILINE))
    known = findings_of_the_code()
    assert set(told) == set(known)
    assert len(known) > 20
    for code, levels in known.items():
        assert all(level in told[code] for level in levels), code


@pytest.mark.parametrize("name", ["docs/data.md", "docs/zh/data.md"])
def test_terms_are_counted_as_they_are(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    told = {category: int(count.replace(",", "")) for category, count in re.findall(r"\| `(\w+)` \| ([\d,]+) \|", text)}
    assert told == {category: len(lexicon_rows(category)) for category in CATEGORIES}
    assert f"{sum(told.values()):,}" in text


CHAT = [
    {"role": "user", "content": "发热三天怎么办？"},
    {"role": "assistant", "reasoning_content": "先问病史。", "content": "先测体温。"},
    {"role": "user", "content": "38.5度。"},
    {"role": "assistant", "reasoning_content": "中度发热。", "content": "多饮水，必要时就诊。"},
]


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "README.zh-CN.md",
        *(f"docs/{sub}{name}.md" for sub in ("", "zh/") for name in ("data", "think-formats")),
    ],
)
def test_what_the_data_commands_print_is_real(name, tmp_path, monkeypatch, capsys):
    """A block that goes on after its one `danlu data` command shows what that prints; … stands for lines left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": CHAT}), encoding="utf-8")
    shown = 0
    for block in plain_blocks(name):
        command, *lines = block.splitlines()
        if not command.startswith("danlu data ") or not lines or any(line.startswith("danlu ") for line in lines):
            continue
        main([*shlex.split(command)[1:], "--display", "none"])
        printed = capsys.readouterr().out.splitlines()
        assert [line for line in lines if line not in ("…", *printed)] == []
        shown += 1
    assert shown == 1


# ---- docs/evaluation.md, docs/safety.md


def tables(name: str) -> list[list[list[str]]]:
    """The tables of a page, as rows of cells without their heads; backticks gone."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE):
        lines = [re.split(r" (?<!\\)\| ", line.strip("| ").replace("`", "")) for line in block.strip().splitlines()]
        found.append(lines[2:])
    return found


@pytest.mark.parametrize("name", ["docs/evaluation.md", "docs/zh/evaluation.md"])
def test_the_page_names_every_suite_benchmark_mode_and_outcome(name):
    firsts = [[row[0] for row in table] for table in tables(name)]
    assert list(SUITES) in firsts
    assert list(BENCHMARKS) in firsts
    assert list(recipe.Eval.model_fields["modes"].annotation.__args__[0].__args__) in firsts  # type: ignore[union-attr]
    assert any(sorted(first) == sorted(OUTCOMES) for first in firsts)
    text = (ROOT / name).read_text(encoding="utf-8")
    assert PROMPTS["answer_only"]["zh" if "/zh/" in name else "en", "choice"].strip("。.") in text
    assert not any("healthbench" in dict(parts) for parts in SUITES.values())  # the page says so
    assert "healthbench" in text


@pytest.mark.parametrize("name", ["docs/evaluation.md", "docs/zh/evaluation.md"])
def test_what_danlu_score_prints_is_real(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```json\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (rows,) = [block for block in blocks if '"output"' in block]
    (tmp_path / "answers.jsonl").write_text(rows, encoding="utf-8")
    (shown,) = [block for block in plain_blocks(name) if block.startswith("danlu score ")]
    command, *lines = shown.splitlines()
    assert main(shlex.split(command)[1:]) == 0
    assert [line for line in lines if line != "…"] == capsys.readouterr().out.splitlines()[: len(lines) - 1]


@pytest.mark.parametrize("name", ["docs/safety.md", "docs/zh/safety.md"])
def test_probes_are_counted_as_they_are(name):
    kinds, parts = tables(name)
    counts = [[sum(row["kind"] == kind for row in probe_rows(language)) for language in LANGUAGES] for kind in KINDS]
    assert [row[0] for row in kinds] == list(KINDS)
    assert [[int(cell) for cell in row[1:3]] for row in kinds] == counts
    assert str(sum(map(sum, counts))) in (ROOT / name).read_text(encoding="utf-8")
    assert {row[0] for row in parts} == set(KEYS) - {"given"}  # `given` explains, it does not ask for anything
