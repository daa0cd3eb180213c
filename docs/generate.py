"""Write the generated parts of the docs: options of a recipe, pages of the command line, the domain's benchmarks.

    python docs/generate.py            # rewrites what stands between the markers; tests/test_docs.py checks it

They come from the code (pydantic fields, the commands' parameters, the domain), so they cannot say what is not so.
Chinese descriptions of keys are the studio's, of benchmarks they are kept here; one that is missing stays English.
"""

from __future__ import annotations

import re
import types
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from danlu import domains, recipe
from danlu.cli.app import commands
from danlu.studio.zh.recipe import TEXTS as ZH

DOCS = Path(__file__).parent
HEADS = {
    "en": ("key", "takes", "default", "meaning"),
    "zh": ("键", "取值", "默认", "含义"),
}
CLI_HEADS = {"en": ("argument", "default", "meaning"), "zh": ("参数", "默认", "含义")}
REQUIRED = {"en": "required", "zh": "必填"}
ABSENT = {"en": "off unless given", "zh": "不写就不启用"}

BENCHMARK_HEADS = {
    "en": ("benchmark", "kind", "language", "from", "what it measures", "licence"),
    "zh": ("基准", "类别", "语言", "出处", "考什么", "许可证"),
}
SUITE_HEADS = {"en": ("suite", "asks"), "zh": ("套题", "内容")}
LANGUAGES = {
    "en": {"zh": "Chinese", "en": "English", "both": "both"},
    "zh": {"zh": "中文", "en": "英文", "both": "中英"},
}
KINDS = {"choice": "选择", "open": "开放", "abstention": "认不知", "rubric": "评分细则", "safety": "安全"}
ZH_BENCHMARKS = {
    "Chinese medical licensing exam: one or several of five options": "执业医师资格考试，五选项，单选和多选",
    "Chinese medical exams of six professions, one or several options": "六类医药职业的中文考试，单选和多选",
    "Mainland Chinese medical licensing questions, 4 options": "中国大陆执业医师考题，四选项",
    "Chinese university knowledge, medical subjects": "中文大学知识里的医学科目",
    "Chinese exam questions, medical subjects": "中文考试题里的医学科目",
    "US medical licensing vignettes, 4 options": "美国执业医师考试的病例题，四选项",
    "US medical licensing vignettes, 5 options": "美国执业医师考试的病例题，五选项",
    "Indian medical entrance exams, 21 subjects": "印度医学入学考试，21 个科目",
    "Yes, no or maybe from the abstract of a study": "读研究摘要，答 yes、no 或 maybe",
    "English university knowledge, medical subjects": "英文大学知识里的医学科目",
    "Harder knowledge with up to 10 options, health only": "更难的知识题，最多十个选项，只取 health 一科",
    "Specialist board questions, 10 options, text only": "专科医师考题，十个选项，只取纯文字题",
    "Open questions with a short gold answer, made from exam questions": "由考题改写的开放题，标准答案很短",
    "Nonsense questions: does it say that it does not know?": "胡编的问题：会不会老实说不知道",
    "Requests that break medical ethics: are they refused?": "违背医学伦理的请求：会不会拒绝",
    "Health conversations against physicians' rubrics; needs a judge": "健康对话，按医生写的评分细则打分；要有裁判模型",
    "Danlu's own probes: emergencies, harmful requests, and harmless ones that must not be refused": (
        "丹炉自带的探针：急症、有害的请求，以及不该拒绝的正当问题"
    ),
    "Cases of the miniature clinic that no training row has (demo only)": "微型诊所里训练行没有的病例（仅供演示）",
    "The same cases with one finding missing (demo only)": "同样的病例，少给一项所见（仅供演示）",
    "English knowledge outside medicine": "医学以外的英文知识",
    "Chinese knowledge outside medicine": "医学以外的中文知识",
}


# ---- recipe options


def takes(annotation: Any) -> str:
    """What a value may be, in words of YAML."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return takes(inner[0])
    if origin is Literal:
        return " \\| ".join(str(value) for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(takes(part) for part in inner if part is not type(None))
    if origin is list:
        return f"list of {takes(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(takes(part) for part in inner)}]"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.__name__
    return {"str": "text", "bool": "true \\| false", "int": "integer", "float": "number"}[annotation.__name__]


def bounds(field: FieldInfo) -> str:
    """The limits of a number, as ", > 0"."""
    signs = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
    found = [
        f"{sign} {getattr(part, name):g}" for part in field.metadata for name, sign in signs if hasattr(part, name)
    ]
    return "".join(f", {text}" for text in found)


def default(field: FieldInfo, language: str) -> str:
    if field.is_required():
        return REQUIRED[language]
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "–"
    return f"`{shown(value)}`"


def shown(value: Any) -> str:
    """A default as one would write it in YAML."""
    if isinstance(value, BaseModel):
        kept = {name: item for name, item in value.model_dump().items() if item != type(value)().model_dump().get(name)}
        return "{" + ", ".join(f"{name}: {shown(item)}" for name, item in kept.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {shown(item)}" for name, item in value.items()) + "}"
    return '""' if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section a key holds (alone or optional, not in a list), if it holds one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for part in get_args(annotation) if (found := section_in(part))), None)
    return None


def rows(section: type[BaseModel], prefix: str, language: str) -> list[tuple[str, ...]]:
    """(key, takes, default, meaning) of every key below `section`."""
    found = []
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner:
            if not field.is_required() and field.get_default() is None:
                found.append((f"`{prefix}{name}`", "mapping", "–", ABSENT[language]))
            found += rows(inner, f"{prefix}{name}.", language)
            continue
        meaning = field.description or ""
        if language == "zh":
            meaning = ZH.get(meaning, meaning)
        meaning = cell(meaning)
        default_text = shown_reward(field) if name == "rewards" else default(field, language)
        found.append((f"`{prefix}{name}`", takes(field.annotation) + bounds(field), default_text, meaning))
    return found


def shown_reward(field: FieldInfo) -> str:
    specs = field.get_default(call_default_factory=True)
    return "`[" + ", ".join(f"{{name: {spec.name}, weight: {spec.weight:g}}}" for spec in specs) + "]`"


def cell(text: str) -> str:
    """`text` inside a table, where a bare | would begin the next cell."""
    return text.replace("|", "\\|")


def listed(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    every = [head, ("---",) * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


ITEMS: dict[str, type[BaseModel]] = {
    "Source (an item of data.train, data.valid, sft.watch, grpo.data, grpo.valid)": recipe.Source,
    "RewardSpec (an item of grpo.rewards)": recipe.RewardSpec,
    "RepetitionSpec (an item of grpo.rewards)": recipe.RepetitionSpec,
    "LengthSpec (an item of grpo.rewards)": recipe.LengthSpec,
    "JudgeSpec (an item of grpo.rewards)": recipe.JudgeSpec,
    "PythonSpec (an item of grpo.rewards)": recipe.PythonSpec,
    "Benchmark (an item of eval.benchmarks)": recipe.Benchmark,
}


def options(language: str) -> str:
    """The option tables of a recipe: one for the top, one a section, one for each kind of list item."""
    parts = []
    top = [name for name, field in recipe.Recipe.model_fields.items() if section_in(field.annotation) is None]
    lines = [row for row in rows(recipe.Recipe, "", language) if row[0].strip("`") in top]
    parts.append(f"### recipe\n\n{listed(HEADS[language], lines)}")
    for name, field in recipe.Recipe.model_fields.items():
        inner = section_in(field.annotation)
        if inner:
            parts.append(f"### {name}\n\n{listed(HEADS[language], rows(inner, f'{name}.', language))}")
    for title, item in ITEMS.items():
        parts.append(f"### {title}\n\n{listed(HEADS[language], rows(item, '', language))}")
    return "\n\n".join(parts)


# ---- the command line


def pages(language: str) -> str:
    """Every command: usage, what it does, its arguments."""
    parts = []
    for name, command in commands().items():
        usage = " ".join(["danlu", name, "[OPTIONS]", *(_label(p) for p in command.params if _is_argument(p))])
        lines = [_line(p, language) for p in command.params if p.name != "help"]
        text = [f"## danlu {name}", " ".join((command.help or "").split()), f"```\n{usage}\n```"]
        text.append(listed(CLI_HEADS[language], lines))
        if command.epilog:
            text.append(f"```\n{command.epilog.removeprefix('Example: ')}\n```")
        parts.append("\n\n".join(text))
    return "\n\n".join(parts)


def _is_argument(param: Any) -> bool:
    return not param.opts[0].startswith("-")


def _label(param: Any) -> str:
    if _is_argument(param):
        return param.metavar or param.name.upper()
    value = "" if getattr(param, "is_flag", False) else f" {param.metavar or 'VALUE'}"
    return ", ".join(param.opts) + value


def _line(param: Any, language: str) -> tuple[str, str, str]:
    value, meaning = param.default, getattr(param, "help", "") or ""
    if isinstance(value, Enum):
        meaning, value = f"{meaning} ({', '.join(choice.value for choice in type(value))})", value.value
    plain = REQUIRED[language] if param.required else "–" if value is None or value is False else f"`{value}`"
    return cell(f"`{_label(param)}`"), plain, cell(meaning)


# ---- benchmarks


def benchmarks(language: str) -> str:
    """The suites of the medical domain, and its benchmarks."""
    domain = domains.load("medical")
    suites = []
    for name, parts in domain.suites.items():
        most = [(part, limit or domain.benchmarks[part].limit) for part, limit in parts]
        suites.append((f"`{name}`", ", ".join(f"{part} {limit}" if limit else part for part, limit in most)))
    lines = []
    for spec in domain.benchmarks.values():
        kind, measures = spec.kind, spec.measures
        if language == "zh":
            kind, measures = KINDS[kind], ZH_BENCHMARKS.get(measures, measures)
        origin = f"`{spec.path}`" if ":" in spec.path else f"`{spec.path}`, {spec.split}"
        lines.append((f"`{spec.name}`", kind, LANGUAGES[language][spec.language], origin, measures, spec.licence))
    return f"{listed(SUITE_HEADS[language], suites)}\n\n{listed(BENCHMARK_HEADS[language], lines)}"


# ---- writing


def filled(text: str, name: str, content: str) -> str:
    """`text` with `content` between the markers `name`:begin and `name`:end."""
    pattern = re.compile(rf"(<!-- {name}:begin -->).*?(<!-- {name}:end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no markers {name}")
    return pattern.sub(lambda match: f"{match[1]}\n\n{content}\n\n{match[2]}", text, count=1)


GENERATED = {
    "recipes.md": ("options", lambda: options("en")),
    "zh/recipes.md": ("options", lambda: options("zh")),
    "cli.md": ("cli", lambda: pages("en")),
    "zh/cli.md": ("cli", lambda: pages("zh")),
    "evaluation.md": ("benchmarks", lambda: benchmarks("en")),
    "zh/evaluation.md": ("benchmarks", lambda: benchmarks("zh")),
}


def main() -> None:
    for file, (name, content) in GENERATED.items():
        path = DOCS / file
        path.write_text(filled(path.read_text(encoding="utf-8"), name, content()), encoding="utf-8")


if __name__ == "__main__":
    main()
