"""The page of one run: one self-contained HTML file to mail to a colleague.

On top the number that matters and what to know; then curves (the figures of `danlu plot`), what the model wrote, where
the run came from, and its recipe with what differs from the run before. Styles and figures lie inside, there is no
script, nothing is loaded; whatever comes from data or from a model is escaped. Not shown: every rollout (samples.jsonl
has them), both sides of a comparison (danlu compare --html has them).
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from typing import Any

import yaml

from danlu import run_facts
from danlu.data.page import document, figures
from danlu.display import duration
from danlu.evaluate import plots, report
from danlu.evaluate.report import answer_box, figure, interval, percent, plain, section, side, table, text
from danlu.evaluate.verdict import p_text, points
from danlu.run import Run, read_json
from danlu.run_facts import Notice, Number

ARROW = '<li aria-hidden="true">→</li>'
MOST_COMPLETIONS = 8  # of a group
FIGURES = {"loss": "Loss", "rewards": "Rewards", "course": "Course of training", "differences": "Differences"}
STATES = {"done": "ok", "failed": "no", "died": "no"}
BESIDE = frozenset({"benchmarks", "counts", "signs", "sign_texts", "checks", "commands", "planned", "not_finite"})

_STYLE = (
    report.STYLE
    + """
.run { display: flex; flex-wrap: wrap; gap: .2rem .9rem; align-items: baseline; margin: 0 0 1.2rem;
  color: var(--quiet) } .run b { color: var(--ink) } .run b.ok { color: var(--good) } .run b.no { color: var(--bad) }
.number { display: flex; flex-wrap: wrap; gap: 0 .8rem; align-items: baseline; margin: 0 0 1.2rem }
.number b { font-size: 2.6rem; line-height: 1.15; font-variant-numeric: tabular-nums }
.verdict { margin: .5rem 0 } .verdict.info { border-color: var(--blue) }
.line { display: flex; flex-wrap: wrap; gap: .3rem .6rem; align-items: center; margin: 0 0 1rem; padding: 0;
  list-style: none } .line li { background: var(--card); border-radius: 6px; padding: .3rem .7rem; min-width: 0;
  overflow-wrap: anywhere } .line li[aria-hidden] { background: none; padding: 0; color: var(--quiet) }
.line li.here { outline: 2px solid var(--blue) } .line small { color: var(--quiet) }
.group { border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; margin: 0 0 1rem }
.rollout { border-left: 4px solid var(--line); padding: 0 0 0 .8rem; margin: .5rem 0 }
.rollout.up { border-color: var(--good) } .rollout.down { border-color: var(--bad) }
.rollout > summary { color: var(--ink); font-variant-numeric: tabular-nums } .rollout .side { margin: .4rem 0 }
pre { white-space: pre-wrap; overflow-wrap: anywhere }
"""
)


def page(run: Run) -> str:
    """The page of a run of any stage, also of one that is still at work or failed."""
    info = run.info()
    body = [
        f"<h1>{plain(run.name)}</h1>",
        _head(run, info),
        _number(run_facts.number(run)),
        *map(_notice, run_facts.notices(run)),
        section("Benchmarks", _benchmarks(run_facts.benchmarks(run))),
        section("Against the run before", _comparison(run)),
        section("Figures", _figures(run)),
        section("Checks", _checks(run)),
        section("What was measured", _results(info.get("results", {}))),
        section("What the model wrote", _written(run, str(info.get("stage")))),
        section("Where it comes from", _lineage(run)),
        section("Files", _files(run) if info.get("stage") != "eval" else ""),
        section("Recipe", _recipe(run)),
        _footer(run, info),
    ]
    return document(run.name, body, _STYLE)


# ---- the top


def _head(run: Run, info: Mapping[str, Any]) -> str:
    state = run.state()
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(info["created"])) if info.get("created") else ""
    config = run.config()
    parts = [
        f'<b class="{STATES.get(state, "")}">{plain({"started": "at work"}.get(state, state))}</b>',
        f"{plain(info.get('stage', '?'))} run",
        plain(duration(info.get("seconds"))),
        f"begun {plain(began)}" if began else "",
        f"recipe {plain(config.get('name', '?'))}",
        f"model {plain(run_facts.origin(run))}",
    ]
    return f'<div class="run">{"".join(f"<span>{part}</span>" for part in parts if part)}</div>'


def _number(found: Number | None) -> str:
    if found is None:
        return '<p class="quiet">Nothing has been measured yet.</p>'
    told = f'{plain(found.name)}<br><span class="quiet">{plain(found.note)}</span>'
    return f'<div class="number"><b>{plain(found.value)}</b><span>{told}</span></div>'


def _notice(notice: Notice) -> str:
    return f'<p class="verdict {notice.level}">{plain(notice.text)}</p>'


# ---- what was measured


def _benchmarks(entries: list[dict[str, Any]]) -> str:
    rows = [
        [
            plain(entry["name"]),
            plain(entry["n"]),
            f"<b>{percent(entry['accuracy'])}</b>",
            interval(entry["ci"]),
            *(percent(entry.get(key)) for key in ("format_rate", "stop_rate")),
            percent(entry.get("shares", {}).get("truncated")),
            plain(round(entry["mean_tokens"])) if entry.get("mean_tokens") is not None else "",
        ]
        for entry in entries
    ]
    headers = ("Benchmark", "Questions", "Right", "95 % interval", "Well formed", "Stops by itself", "Cut", "Tokens")
    parts = [table(headers, rows, frozenset(range(1, 8)))]
    for entry in entries:
        for field in ("tasks", "splits", "subjects"):
            own = entry.get(field) or []
            if len(own) > 1:
                cells = [
                    [plain(one["name"]), plain(one["n"]), percent(one["accuracy"]), interval(one["ci"])] for one in own
                ]
                drawn = table(
                    (field[:-1].capitalize(), "Questions", "Right", "95 % interval"), cells, frozenset({1, 2, 3})
                )
                title = f"{plain(entry['name'])}: {len(own)} {field}"
                parts.append(f"<details><summary>{title}</summary>{drawn}</details>")
    return "".join(parts)


def _comparison(run: Run) -> str:
    file = run.path / "compare.json"
    if not file.is_file():
        return ""
    found = read_json(file)
    kind = found["verdict"] if found["verdict"] in ("better", "worse", "mixed") else "open"
    rows = [
        [
            plain(entry["name"]),
            plain(entry["n"]),
            percent(entry["base"]),
            percent(entry["tuned"]),
            f"<b>{points(entry['difference'])}</b>",
            f"{points(entry['ci'][0])} to {points(entry['ci'][1])}",
            plain(p_text(entry["p"]).removeprefix("p ").removeprefix("= ")),
            f"+{entry['gained']:,} −{entry['lost']:,}",
            plain(entry["verdict"]),
        ]
        for entry in found["benchmarks"]
    ]
    headers = ("Benchmark", "n", "Before", "After", "Points", "95 % interval", "p", "Answers", "Verdict")
    told = f'<p class="verdict {kind}">{plain(found["sentence"])}</p>'
    return told + table(headers, rows, frozenset(range(1, 8)))


def _figures(run: Run) -> str:
    drawn = plots.figures(run)
    entries = run_facts.benchmarks(run)
    if entries:
        drawn["accuracy"] = plots.accuracy({run.name: entries[0]}, f"Right answers: {entries[0]['name']}")
    titles = {**FIGURES, "accuracy": "Right answers"}
    return "".join(figure({"title": titles[name], "svg": made.svg}) for name, made in drawn.items())


def _checks(run: Run) -> str:
    rows = [
        [
            plain(check["name"]),
            plain(_short(check.get("value"))),
            plain(_short(check.get("limit"))),
            report.mark(check["ok"]),
        ]
        for check in run_facts.checks(run)
    ]
    return table(("Check", "Value", "Limit", ""), rows)


def _files(run: Run) -> str:
    """What an export or a training run delivered."""
    if not run.artifact.is_dir():
        return ""
    found = sorted(path for path in run.artifact.iterdir() if path.is_file())
    rows = [[plain(path.name), plain(run_facts.size(path.stat().st_size))] for path in found]
    modelfile = run.artifact / "Modelfile"
    shown = f"<details><summary>Modelfile</summary>{_block(modelfile)}</details>" if modelfile.is_file() else ""
    return table(("File", "Size"), rows, frozenset({1})) + shown


def _block(path: Any) -> str:
    return f"<pre>{plain(path.read_text(encoding='utf-8', errors='replace'))}</pre>"


def _results(results: Mapping[str, Any]) -> str:
    told = [
        (key.removesuffix("_bytes").replace("_", " "), run_facts.size(value) if key.endswith("bytes") else plain(value))
        for key, value in results.items()
        if key not in BESIDE and isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return figures(told, "figures large") if told else ""


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if value == []:
        return "none"
    shown = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 200 else f"{shown[:200]} …"


# ---- what the model wrote


def _written(run: Run, stage: str) -> str:
    if stage == "grpo":
        return "".join(map(_group, run_facts.some_groups(run)))
    if stage != "eval":
        return ""
    return "".join(map(_example, run_facts.some_answers(run)))


def _group(rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    ordered = sorted(rows, key=lambda row: -(row["advantage"] or 0.0))
    shown = ordered if len(ordered) <= MOST_COMPLETIONS else [*ordered[:4], *ordered[-4:]]
    left = f'<p class="quiet">{len(rows) - len(shown)} in between are left out.</p>' if len(shown) < len(rows) else ""
    head = f"step {first['step']:,} · {plain(first['id'])} · {len(rows)} completions, the best paid first"
    target = f'<div class="quiet">target: {plain(first.get("target") or "unknown")}</div>'
    return (
        f'<div class="group"><span class="quiet">{head}</span>{text(str(first.get("question") or ""))}{target}'
        f"{''.join(map(_rollout, shown))}{left}</div>\n"
    )


def _rollout(row: Mapping[str, Any]) -> str:
    advantage = row["advantage"] or 0.0
    kind = "up" if advantage > 0 else "down" if advantage < 0 else ""
    reward = "no reward" if row["reward"] is None else f"reward {row['reward']:.3g}"
    parts = [f"{name} {value:.3g}" for name, value in (row.get("rewards") or {}).items() if value is not None]
    cut = ["cut at the limit"] if row.get("finish") != "stop" else []
    facts = " · ".join([f"<b>{plain(reward)}</b>", f"advantage {advantage:+.2f}"])
    more = " · ".join([*parts, f"{row['tokens']:,} tokens", *cut])
    facts += f' <span class="quiet">{plain(more)}</span>'
    reasoning, answer = run_facts.parted(str(row.get("output") or ""))
    folded = f"<details><summary>reasoning</summary>{text(reasoning, 'text folded')}</details>" if reasoning else ""
    return (
        f'<details class="rollout {kind}"><summary>{facts}</summary><div class="side">{folded}'
        f"{text(answer or '(no answer)')}</div></details>"
    )


def _example(row: Mapping[str, Any]) -> str:
    told = [str(row[key]) for key in ("benchmark", "id", "task") if row.get(key)]
    if row.get("question") is None:  # scores only
        return f'<p class="quiet">{plain(" · ".join(told))}: {plain(row.get("outcome"))}</p>'
    read = f"read as {row['extracted']}" if row.get("extracted") is not None else str(row.get("how") or "")
    box = answer_box({**side("", dict(row)), "note": " · ".join([read, f"{row.get('tokens') or 0:,} tokens"])})
    target = f'<div class="quiet">target: {plain(row.get("target") or "unknown")}</div>'
    return (
        f'<div class="example"><span class="quiet">{plain(" · ".join(told))}</span>{text(str(row["question"]))}'
        f'{target}<div class="sides">{box}</div></div>\n'
    )


# ---- lineage and recipe


def _lineage(run: Run) -> str:
    items = [f"<li>{plain(run_facts.origin(run))} <small>model</small></li>"]
    line, below = run_facts.ancestors(run), run_facts.children(run)
    for one in line:
        here = ' class="here"' if one is line[-1] else ""
        items.append(f"<li{here}>{plain(one.name)} <small>{plain(one.info().get('stage', '?'))}</small></li>")
    rows = []
    for one in [*line, *below]:
        found = run_facts.number(one)
        told = [f"<b>{plain(found.value)}</b> {plain(found.name)}"] if found else [""]
        rows.append([plain(one.name), plain(one.info().get("stage", "?")), plain(one.state()), *told])
    after = f'<p class="quiet">After it: {plain(", ".join(one.name for one in below))}.</p>' if below else ""
    drawn = table(("Run", "Stage", "Status", "Result"), rows) if len(rows) > 1 else ""
    return f'<ul class="line">{ARROW.join(items)}</ul>{after}{drawn}'


def _recipe(run: Run) -> str:
    above, found = run_facts.changes(run)
    rows = [[f"<code>{plain(key)}</code>", _cell(there), _cell(here)] for key, there, here in found]
    told = ""
    if above and not found:
        told = f"<p>The recipe is that of {plain(above)}, key by key.</p>"
    elif above:
        told = f"<p>{len(found)} key{'s' * (len(found) != 1)} differ from {plain(above)}:</p>"
        told += table(("Key", above, run.name), rows)
    if sets := run_facts.overrides(run):
        told += f"<p>Changed by --set: {', '.join(f'<code>{plain(line)}</code>' for line in sets)}</p>"
    whole = yaml.safe_dump(run.config(), allow_unicode=True, sort_keys=False, width=100)
    return f"{told}<details><summary>The whole recipe, resolved</summary><pre>{plain(whole)}</pre></details>"


def _cell(value: Any) -> str:
    return '<span class="quiet">not set</span>' if value is None else f"<code>{plain(_short(value))}</code>"


def _footer(run: Run, info: Mapping[str, Any]) -> str:
    git, hardware = info.get("git") or {}, info.get("hardware") or {}
    facts = {
        "seed": info.get("seed"),
        "config": info.get("config_digest"),
        "data": info.get("results", {}).get("data_hash"),
        "commit": f"{git['commit'][:12]}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else None,
        "machine": hardware.get("cuda") or hardware.get("machine"),
        **info.get("packages", {}),
    }
    listed = " · ".join(
        f"{plain(name)} <code>{plain(value)}</code>" for name, value in facts.items() if value is not None
    )
    return f"<footer><h2>To reproduce</h2><p>{listed}</p><pre>{plain(_command(run, info))}</pre></footer>"


def _command(run: Run, info: Mapping[str, Any]) -> str:
    """The command that makes such a run; a recipe of one's own is named as a file."""
    start = "".join(f" --from {shlex.quote(str(name))}" for name in info.get("parents", [])[:1])
    sets = "".join(f" --set {shlex.quote(line)}" for line in run_facts.overrides(run))
    stage = "data prepare" if info.get("stage") == "data" else info.get("stage")
    return f"danlu {stage} {shlex.quote(str(run.config().get('name')))}{start}{sets} --name {shlex.quote(run.name)}"
