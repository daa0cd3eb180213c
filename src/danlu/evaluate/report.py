"""The report page: one self-contained HTML file (styles and images inside, no script, light and dark), and tables.

Whatever comes from data or from a model is escaped; figures are images, never inlined markup. On narrow screens every
row of a table becomes a small card. The page of a comparison (compare_page) is made of the same pieces.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from danlu.data.page import document, visible
from danlu.evaluate.verdict import p_text, points

MOST_TEXT = 6000  # characters shown of one model output: its beginning and its end
STYLE = """
h2 { scroll-margin-top: 1rem }
.verdict { border-color: var(--quiet); margin: .5rem 0; overflow-wrap: anywhere }
.verdict.better { border-color: var(--good) } .verdict.worse { border-color: var(--bad) }
.verdict.mixed { border-color: var(--warn) }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .4rem .7rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--quiet); font-weight: 600; font-size: .86rem; white-space: nowrap }
td.n, th.n { text-align: right; white-space: nowrap; padding: .4rem 0 .4rem .8rem }
td.n + td:not(.n), th.n + th:not(.n) { padding-left: 1.4rem }
td:first-child { overflow-wrap: anywhere; min-width: 8rem }
.ok { color: var(--good) } .no { color: var(--bad) }
figure { margin: 0 0 1.4rem } figure img { width: 100%; max-width: 46rem; background: #fff; border-radius: 6px }
.example { border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; margin: 0 0 1rem }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem; margin-top: .7rem }
.side { background: var(--card); border-radius: 6px; padding: .6rem .8rem; min-width: 0 }
.text { margin: .3rem 0 } details .text.folded { color: var(--quiet); font-size: .93rem }
pre { font: .88em/1.5 ui-monospace, Menlo, Consolas, monospace; background: var(--card); padding: .8rem 1rem;
  border-radius: 6px; overflow-x: auto }
footer { margin-top: 3rem; border-top: 1px solid var(--line); font-size: .93rem }
@media (max-width: 40rem) {
  thead { display: none } table, tbody { display: block }
  tr { display: flex; flex-wrap: wrap; align-items: end; gap: .35rem 1rem; border-bottom: 1px solid var(--line);
    padding: .6rem 0 }
  td, td.n, td.n + td:not(.n) { border: 0; padding: 0; text-align: left; min-width: 3.6rem }
  td:first-child { flex: 1 0 100%; font-weight: 600 } td:empty { display: none }
  td[data-label]:not(:first-child)::before { content: attr(data-label); display: block; color: var(--quiet);
    font-size: .8rem; line-height: 1.3 } }
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
    body = [f"<h1>{plain(title)}</h1>"]
    if result.get("notice"):
        body.append(f'<p class="notice">{plain(str(result["notice"]))}</p>')
    body += [_verdict(step) for step in steps]
    body += [
        section("Stages", _stages(result.get("stages") or [])),
        section("Steps", _steps(steps)),
        section("Figures", "".join(figure(one) for one in result.get("figures") or [])),
        section("By task", _tasks(result)),
        section("Controls", _controls(result.get("controls") or [])),
        section("Export", _export(result.get("export") or {})),
        section("Examples", "".join(_example(item) for item in _lost_first(result.get("examples") or []))),
        _footer(result),
    ]
    return document(title, body, STYLE)


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
            sides = [side(name, own) for name, own in zip(names, (other, row), strict=True)]
            found.append({key: row[key] for key in ("id", "question", "target")} | {"kind": kind, "answers": sides})
    return _lost_first(found)


def side(stage: str, row: dict[str, Any]) -> dict[str, Any]:
    """One answer of an example, from its row; what stands before the answer part is its reasoning."""
    output, answer = str(row.get("output") or ""), str(row.get("answer") or "")
    at = output.rfind(answer) if answer else len(output)
    before = output[:at] if at >= 0 else ""
    for tag in ("<think>", "</think>", "<reasoning>", "</reasoning>", "<answer>"):
        before = before.replace(tag, "")
    return {"stage": stage, "reasoning": before.strip(), "answer": answer, "outcome": row["outcome"]}


# ---- sections


def section(title: str, content: str, name: str = "") -> str:
    """A headed part of a page, with an anchor where it has a `name`; nothing where there is no content."""
    anchor = f' id="{name}"' if name else ""
    return f"<section{anchor}><h2>{title}</h2>\n{content}</section>" if content else ""


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], numeric: frozenset[int] = frozenset()) -> str:
    """`headers` are texts, `rows` hold markup that is escaped already."""
    if not rows:
        return ""
    kinds = [' class="n"' if i in numeric else "" for i in range(len(headers))]
    names = [plain(header) for header in headers]
    labels = [f' data-label="{name}"' if name else "" for name in names]
    head = "".join(f"<th{kind}>{name}</th>" for kind, name in zip(kinds, names, strict=True))
    cells = [zip(kinds, labels, row, strict=True) for row in rows]
    body = "\n".join(f"<tr>{''.join(f'<td{k}{label}>{cell}</td>' for k, label, cell in row)}</tr>" for row in cells)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _verdict(step: dict[str, Any]) -> str:
    kind = step["verdict"] if step["verdict"] in ("better", "worse", "mixed") else "open"
    arrow = f"<b>{plain(step['from'])} → {plain(step['to'])}</b>"
    return f'<p class="verdict {kind}">{arrow} &nbsp; {plain(_sentence(step))}</p>'


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
            plain(stage["name"]),
            plain(stage["n"]),
            f"<b>{percent(stage['accuracy'])}</b>",
            interval(stage.get("ci")),
            percent(stage.get("format_rate")),
            percent(stage.get("stop_rate")),
            _seconds(stage.get("seconds")),
        ]
        for stage in stages
    ]
    headers = ("Stage", "Questions", "Accuracy", "95 % interval", "Well formed", "Stops by itself", "Time")
    return table(headers, rows, frozenset({1, 2, 3, 4, 5, 6}))


def _steps(steps: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"{plain(step['from'])} → {plain(step['to'])}",
            f"<b>{points(step['difference'])}</b>",
            f"{points(step['ci'][0])} to {points(step['ci'][1])}",
            escape(p_text(step["p"]).removeprefix("p ").removeprefix("= ")),
            plain(step["verdict"]),
        ]
        for step in steps
    ]
    return table(("Step", "Points", "95 % interval", "p", "Verdict"), rows, frozenset({1, 2, 3}))


def figure(picture: dict[str, Any]) -> str:
    """A figure as an image inside the page: {"title", "svg" (text) or "png" (bytes)}."""
    kind = "svg+xml" if picture.get("svg") else "png"
    data = picture["svg"].encode() if picture.get("svg") else picture["png"]
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<figure><img alt="{plain(str(picture["title"]))}" src="{source}"></figure>\n'


def _tasks(result: dict[str, Any]) -> str:
    tasks = result.get("tasks") or []
    stages = list(dict.fromkeys(stage for task in tasks for stage in task["accuracy"]))
    rows = [
        [plain(task["name"]), plain(task["n"]), *(percent(task["accuracy"].get(stage)) for stage in stages)]
        for task in tasks
    ]
    return table(("Task", "Questions", *stages), rows, frozenset(range(1, len(stages) + 2)))


def _controls(controls: list[dict[str, Any]]) -> str:
    rows = [
        [
            plain(control["name"]),
            percent(control["accuracy"]),
            interval(control.get("ci")),
            plain(control.get("n", "")),
            plain(control.get("expected", "")),
            mark(control.get("ok")),
        ]
        for control in controls
    ]
    return table(("Control", "Accuracy", "95 % interval", "Questions", "Expected", ""), rows, frozenset({1, 2, 3}))


def _export(export: dict[str, Any]) -> str:
    rows = [
        [plain(check["name"]), plain(check.get("value", "")), plain(check.get("limit", "")), mark(check["ok"])]
        for check in export.get("checks") or []
    ]
    return table(("Check", "Value", "Limit", ""), rows)


def _lost_first(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(items, key=lambda item: item.get("kind") != "lost")


def _example(item: dict[str, Any]) -> str:
    head = f'<span class="quiet">{plain(item.get("kind", ""))} · {plain(item["id"])}</span>'
    target = f'<div class="quiet">target: {plain(item["target"])}</div>'
    both = "".join(answer_box(answer) for answer in item["answers"])
    question = text(str(item["question"]))
    return f'<div class="example">{head}{question}{target}<div class="sides">{both}</div></div>\n'


def answer_box(answer: dict[str, Any]) -> str:
    """One side of an example: {"stage", "reasoning", "answer", "outcome"}, and "note" (text) where there is one."""
    reasoning, outcome = str(answer.get("reasoning") or ""), str(answer.get("outcome", ""))
    folded = f"<details><summary>reasoning</summary>{text(reasoning, 'text folded')}</details>" if reasoning else ""
    note = f'<div class="quiet">{plain(answer["note"])}</div>' if answer.get("note") else ""
    return (
        f'<div class="side"><b>{plain(answer["stage"])}</b> <span class="{"ok" if outcome == "right" else "no"}">'
        f"{plain(outcome)}</span>{note}{folded}{text(str(answer.get('answer') or '(no answer)'))}</div>"
    )


def _footer(result: dict[str, Any]) -> str:
    known = result.get("reproduce") or {}
    seeds = {**({"seed": result["seed"]} if "seed" in result else {}), **(known.get("seeds") or {})}
    parts = []
    if result.get("seconds") is not None:
        parts.append(f"<p>Took {_seconds(result['seconds'])} in all.</p>")
    for title, values in (("Seeds", seeds), ("Versions", known.get("versions")), ("Files", result.get("artifacts"))):
        if values:
            listed = " · ".join(f"{plain(name)} <code>{plain(value)}</code>" for name, value in values.items())
            parts.append(f"<p>{title}: {listed}</p>")
    if known.get("commands"):
        parts.append(f"<pre>{escape(visible(chr(10).join(map(str, known['commands']))))}</pre>")
    return f"<footer><h2>To reproduce</h2>\n{''.join(parts)}</footer>" if parts else ""


# ---- cells


def plain(value: object) -> str:
    """Any value as escaped text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return escape(visible(f"{value:.4g}" if isinstance(value, float) else str(value)))


def text(value: str, kind: str = "text") -> str:
    """A block of text as a model or a source wrote it; the middle of one that is too long is left out."""
    left_out = len(value) - MOST_TEXT
    if left_out > 0:
        head, tail = value[: 2 * MOST_TEXT // 3], value[-(MOST_TEXT // 3) :]
        value = f"{head} … ({left_out:,} more characters) … {tail}"
    return f'<div class="{kind}">{escape(visible(value))}</div>'


def percent(share: float | None) -> str:
    """A share as markup."""
    return '<span class="quiet">not measured</span>' if share is None else f"{100 * share:.1f} %"


def interval(ci: Sequence[float] | None) -> str:
    """The interval of a share."""
    return "" if ci is None else f"{100 * ci[0]:.1f} to {100 * ci[1]:.1f} %"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def mark(ok: bool | None) -> str:
    """Whether a check holds, as markup."""
    if ok is None:
        return ""
    return '<span class="ok">✓&nbsp;holds</span>' if ok else '<span class="no">✗&nbsp;fails</span>'
