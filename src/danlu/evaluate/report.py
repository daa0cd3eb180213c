"""The report page: one self-contained HTML file (styles and images inside, no script, light and dark), and tables.

Whatever comes from data or from a model is escaped; figures are images, never inlined markup.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from danlu.evaluate.verdict import p_text, points

MOST_TEXT = 6000  # characters shown of one model output
_STYLE = """
:root { color-scheme: light dark; --ink:#1d2329; --quiet:#667079; --line:#e0e4e8; --paper:#fff; --card:#f6f7f9;
  --good:#0b6b3a; --bad:#b3261e; --blue:#0b4f86 }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ec; --quiet:#9aa4ad; --line:#343b42; --paper:#15191d;
  --card:#1e2429; --good:#62c78f; --bad:#f28b82; --blue:#7db8e8 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 60rem; padding: 2.2rem 1.2rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "PingFang SC", "Noto Sans CJK SC", "Microsoft YaHei",
  sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem } h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem }
.notice { color: var(--quiet); margin: 0 0 1.4rem }
.verdict { background: var(--card); border-left: 4px solid var(--quiet); padding: .7rem 1rem; margin: .5rem 0;
  border-radius: 0 6px 6px 0; font-size: 1.05rem }
.verdict.better { border-color: var(--good) } .verdict.worse { border-color: var(--bad) }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .4rem .7rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--quiet); font-weight: 600; font-size: .86rem; white-space: nowrap } td.n, th.n { text-align: right }
.ok { color: var(--good) } .no { color: var(--bad) } .quiet { color: var(--quiet) }
figure { margin: 0 0 1.4rem } figure img { width: 100%; max-width: 46rem; background: #fff; border-radius: 6px }
.example { border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; margin: 0 0 1rem }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem; margin-top: .7rem }
.side { background: var(--card); border-radius: 6px; padding: .6rem .8rem; min-width: 0 }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 }
summary { cursor: pointer; color: var(--quiet) } details .text { color: var(--quiet); font-size: .93rem }
code, pre { font: .88em/1.5 ui-monospace, Menlo, Consolas, monospace }
pre { background: var(--card); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto }
footer { margin-top: 3rem; border-top: 1px solid var(--line); font-size: .93rem }
@media print { details { display: none } .example, figure { break-inside: avoid } }
"""


def html(result: dict[str, Any]) -> str:
    """The page of a result; a section whose key is missing or empty is left out.

    Fields, those of `danlu demo --json` first (shares are fractions, ci is [low, high]):

        stages      [{"name", "n", "accuracy", "ci", "format_rate", "stop_rate", "seconds"}]
        steps       [{"from", "to", "difference", "ci", "p", "verdict"}], with "sentence" and "n" where known
        export      {"ok", "checks": [{"name", "ok", "value", "limit"}]}
        seed, seconds, artifacts {name: path}
        title, notice       heading, and the line that says what these results are (and are not)
        figures     [{"title", "svg" (text) or "png" (bytes)}]
        tasks       [{"name", "n", "accuracy": {stage: share}}]
        controls    [{"name", "accuracy", "n" and "ci" where known, "expected" (text), "ok" where it was judged}]
        examples    [{"id", "question", "target", "kind": "lost|gained|kept", "answers": [{"stage", "reasoning",
                    "answer", "outcome"}]}]; lost ones are shown first. `examples()` makes them.
        reproduce   {"versions": {name: version}, "seeds": {name: seed}, "commands": [line]}
    """
    title = str(result.get("title") or "Danlu report")
    steps = result.get("steps") or []
    body = [f"<h1>{escape(title)}</h1>"]
    if result.get("notice"):
        body.append(f'<p class="notice">{escape(str(result["notice"]))}</p>')
    body += [_verdict(step) for step in steps]
    body += [
        _section("Stages", _stages(result.get("stages") or [])),
        _section("Steps", _steps(steps)),
        _section("Figures", "".join(_figure(figure) for figure in result.get("figures") or [])),
        _section("By task", _tasks(result)),
        _section("Controls", _controls(result.get("controls") or [])),
        _section("Export", _export(result.get("export") or {})),
        _section("Examples", "".join(_example(item) for item in _lost_first(result.get("examples") or []))),
        _footer(result),
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n{chr(10).join(part for part in body if part)}\n</body>\n</html>\n"
    )


def markdown(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; columns of numbers are aligned right, pipes and line breaks in cells are escaped."""
    cells = [[str(cell).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    numeric = [bool(cells) and all(row[i][:1] in "+-0123456789" for row in cells) for i in range(len(headers))]
    lines = [list(headers), ["--:" if number else ":--" for number in numeric], *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def examples(
    base: Sequence[dict[str, Any]],
    tuned: Sequence[dict[str, Any]],
    *,
    names: tuple[str, str] = ("base", "tuned"),
    lost: int = 3,
    gained: int = 3,
) -> list[dict[str, Any]]:
    """Questions that were lost and gained, for `html`, from the samples.jsonl rows of two evaluations, in order."""
    before = {(row["benchmark"], row["id"], row["index"]): row for row in base}
    left = {"lost": lost, "gained": gained}
    found = []
    for row in tuned:
        other = before.get((row["benchmark"], row["id"], row["index"]))
        if other is None or (row["outcome"] == "right") == (other["outcome"] == "right"):
            continue
        kind = "gained" if row["outcome"] == "right" else "lost"
        if left[kind] > 0:
            left[kind] -= 1
            sides = [_side(name, side) for name, side in zip(names, (other, row), strict=True)]
            found.append({key: row[key] for key in ("id", "question", "target")} | {"kind": kind, "answers": sides})
    return _lost_first(found)


def _side(stage: str, row: dict[str, Any]) -> dict[str, Any]:
    """One answer of an example: what stands before the answer part is its reasoning."""
    before = row["output"][: row["output"].rfind(row["answer"])] if row["answer"] else row["output"]
    for tag in ("<think>", "</think>", "<reasoning>", "</reasoning>", "<answer>"):
        before = before.replace(tag, "")
    return {"stage": stage, "reasoning": before.strip(), "answer": row["answer"], "outcome": row["outcome"]}


# ---- sections


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>\n{content}</section>" if content else ""


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], numeric: frozenset[int] = frozenset()) -> str:
    """`rows` hold markup that is escaped already."""
    if not rows:
        return ""
    kinds = [' class="n"' if i in numeric else "" for i in range(len(headers))]
    head = "".join(f"<th{kind}>{header}</th>" for kind, header in zip(kinds, headers, strict=True))
    lines = ["".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _verdict(step: dict[str, Any]) -> str:
    kind = step["verdict"] if step["verdict"] in ("better", "worse") else "open"
    arrow = f"<b>{_plain(step['from'])} → {_plain(step['to'])}</b>"
    return f'<p class="verdict {kind}">{arrow} &nbsp; {escape(_sentence(step))}</p>'


def _sentence(step: dict[str, Any]) -> str:
    if step.get("sentence"):
        return str(step["sentence"])
    low, high = step["ci"]
    opening = "cannot tell yet" if step["verdict"] == "cannot tell" else step["verdict"]
    count = f", n = {step['n']:,}" if "n" in step else ""
    interval = f"95 % CI {points(low)}..{points(high)}"
    return f"{opening}: {points(step['difference'])} points, {interval}, {p_text(step['p'])}{count}"


def _stages(stages: list[dict[str, Any]]) -> str:
    rows = [
        [
            _plain(stage["name"]),
            _plain(stage["n"]),
            f"<b>{_percent(stage['accuracy'])}</b>",
            _interval(stage.get("ci")),
            _percent(stage.get("format_rate")),
            _percent(stage.get("stop_rate")),
            _seconds(stage.get("seconds")),
        ]
        for stage in stages
    ]
    headers = ("Stage", "Questions", "Accuracy", "95 % interval", "Well formed", "Stops by itself", "Time")
    return _table(headers, rows, frozenset({1, 2, 3, 4, 5, 6}))


def _steps(steps: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"{_plain(step['from'])} → {_plain(step['to'])}",
            f"<b>{points(step['difference'])}</b>",
            f"{points(step['ci'][0])} to {points(step['ci'][1])}",
            escape(p_text(step["p"]).removeprefix("p ").removeprefix("= ")),
            _plain(step["verdict"]),
        ]
        for step in steps
    ]
    return _table(("Step", "Points", "95 % interval", "p", "Verdict"), rows, frozenset({1, 2, 3}))


def _figure(figure: dict[str, Any]) -> str:
    kind = "svg+xml" if figure.get("svg") else "png"
    data = figure["svg"].encode() if figure.get("svg") else figure["png"]
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<figure><img alt="{escape(str(figure["title"]))}" src="{source}"></figure>\n'


def _tasks(result: dict[str, Any]) -> str:
    tasks = result.get("tasks") or []
    stages = list(dict.fromkeys(stage for task in tasks for stage in task["accuracy"]))
    rows = [
        [_plain(task["name"]), _plain(task["n"]), *(_percent(task["accuracy"].get(stage)) for stage in stages)]
        for task in tasks
    ]
    return _table(("Task", "Questions", *map(_plain, stages)), rows, frozenset(range(1, len(stages) + 2)))


def _controls(controls: list[dict[str, Any]]) -> str:
    rows = [
        [
            _plain(control["name"]),
            _percent(control["accuracy"]),
            _interval(control.get("ci")),
            _plain(control.get("n", "")),
            _plain(control.get("expected", "")),
            _mark(control.get("ok")),
        ]
        for control in controls
    ]
    return _table(("Control", "Accuracy", "95 % interval", "Questions", "Expected", ""), rows, frozenset({1, 2, 3}))


def _export(export: dict[str, Any]) -> str:
    rows = [
        [_plain(check["name"]), _plain(check.get("value", "")), _plain(check.get("limit", "")), _mark(check["ok"])]
        for check in export.get("checks") or []
    ]
    return _table(("Check", "Value", "Limit", ""), rows)


def _lost_first(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(items, key=lambda item: item.get("kind") != "lost")


def _example(item: dict[str, Any]) -> str:
    sides = []
    for answer in item["answers"]:
        reasoning = str(answer.get("reasoning") or "")
        folded = f"<details><summary>reasoning</summary>{_text(reasoning)}</details>" if reasoning else ""
        outcome = str(answer.get("outcome", ""))
        kind = "ok" if outcome == "right" else "no"
        sides.append(
            f'<div class="side"><b>{_plain(answer["stage"])}</b> <span class="{kind}">{escape(outcome)}</span>'
            f"{folded}{_text(str(answer.get('answer') or '(no answer)'))}</div>"
        )
    head = f'<span class="quiet">{_plain(item.get("kind", ""))} · {_plain(item["id"])}</span>'
    target = f'<div class="quiet">target: {_plain(item["target"])}</div>'
    question = _text(str(item["question"]))
    return f'<div class="example">{head}{question}{target}<div class="sides">{"".join(sides)}</div></div>\n'


def _footer(result: dict[str, Any]) -> str:
    known = result.get("reproduce") or {}
    seeds = {**({"seed": result["seed"]} if "seed" in result else {}), **(known.get("seeds") or {})}
    parts = []
    if result.get("seconds") is not None:
        parts.append(f"<p>Took {_seconds(result['seconds'])} in all.</p>")
    for title, values in (("Seeds", seeds), ("Versions", known.get("versions")), ("Files", result.get("artifacts"))):
        if values:
            listed = " · ".join(f"{_plain(name)} <code>{_plain(value)}</code>" for name, value in values.items())
            parts.append(f"<p>{title}: {listed}</p>")
    if known.get("commands"):
        parts.append(f"<pre>{escape(chr(10).join(map(str, known['commands'])))}</pre>")
    return f"<footer><h2>To reproduce</h2>\n{''.join(parts)}</footer>" if parts else ""


# ---- cells


def _plain(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _text(text: str) -> str:
    cut = f"{text[:MOST_TEXT]} … ({len(text) - MOST_TEXT:,} more characters)" if len(text) > MOST_TEXT else text
    return f'<div class="text">{escape(cut)}</div>'


def _percent(share: float | None) -> str:
    return '<span class="quiet">not measured</span>' if share is None else f"{100 * share:.1f} %"


def _interval(ci: Sequence[float] | None) -> str:
    return "" if ci is None else f"{100 * ci[0]:.1f} to {100 * ci[1]:.1f} %"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _mark(ok: bool | None) -> str:
    return "" if ok is None else '<span class="ok">✓ holds</span>' if ok else '<span class="no">✗ fails</span>'
