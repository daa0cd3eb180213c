"""The page of a comparison: the verdict, what it rests on, and the answers to read; one self-contained HTML file.

Lost questions stand before gained ones: who ships a model wants to read what it forgot first. Drawings are inline SVG
in per cent of the width, so that one drawing serves every screen and text keeps its size; names are HTML, so that
Chinese needs no font of ours. Folding is <details>, choosing a benchmark is a link: no script.
Whatever comes from data or from a model is escaped, and what acts instead of being seen is written out.
Not shown: answers to control benchmarks (their figures are), and answers under shuffled options.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from danlu.data.page import document, visible
from danlu.evaluate import report
from danlu.evaluate.report import answer_box, plain, section, side, table, text
from danlu.evaluate.score import OUTCOMES, Row
from danlu.evaluate.verdict import ALPHA, RATES, as_published, keyed, p_text, points

MOST_ITEMS = 200  # lost ones shown, and gained ones
OPEN = 3  # of each list, unfolded
EXCERPT = 90  # characters of a question in its summary line
REPEATS = 0.3  # share from which an answer is said to repeat itself
RATE_NAMES = {"stop_rate": "Stops by itself", "format_rate": "Well formed", "language_match": "Question's language"}
SIDES = ("base", "tuned")

_STYLE = (
    report.STYLE
    + """
:root { --right:#1f6fb2; --wrong:#c4500c; --none:#6b747d; --ambiguous:#8a6a00; --truncated:#7a4fa3 }
.remark { margin: .4rem 0; padding-left: 1.2rem; overflow-wrap: anywhere }
.remark.warning { color: var(--warn) }
svg { display: block; width: 100%; overflow: visible; font: 12px system-ui, sans-serif }
.forest { display: grid; grid-template-columns: minmax(6rem, 14rem) minmax(8rem, 1fr) max-content; gap: 0 1.2rem;
  grid-auto-flow: dense; align-items: center; font-variant-numeric: tabular-nums }
.forest .name { grid-column: 1; overflow-wrap: anywhere; line-height: 1.3; padding: .3rem 0 }
.forest .strip { grid-column: 2 } .forest .value { grid-column: 3; text-align: right; white-space: nowrap }
.forest .under { font-size: .9rem; color: var(--quiet) }
.forest .name.under { padding-left: .9rem }
svg .grid { stroke: var(--line) } svg .zero { stroke: var(--quiet) } svg text { fill: var(--quiet) }
svg .ci { stroke: var(--quiet); stroke-width: 3; stroke-linecap: round } svg .point { fill: var(--quiet) }
svg .better .ci { stroke: var(--good) } svg .better .point { fill: var(--good) }
svg .worse .ci { stroke: var(--bad) } svg .worse .point { fill: var(--bad) }
svg .hollow .point { fill: var(--paper); stroke-width: 2; stroke: var(--quiet) }
svg .hollow .ci { stroke-width: 2 }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: .25rem .8rem; align-items: center;
  margin-bottom: 1rem; font-size: .93rem }
.bars h3 { grid-column: 1 / -1; margin-top: .5rem; overflow-wrap: anywhere }
.bars span { color: var(--quiet) } .bars svg { border-radius: 4px; overflow: hidden }
.bars rect { stroke: var(--paper) } .bars svg text { fill: #fff }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .9rem; margin-bottom: .4rem }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .35rem;
  vertical-align: -.05rem }
section > details { margin: .7rem 0 } section > details > summary { color: var(--ink) }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: 0 0 1rem; overflow-wrap: anywhere }
a { color: var(--blue); text-decoration-thickness: 1px; text-underline-offset: 3px }
h3.group { display: flex; flex-wrap: wrap; gap: .2rem 1rem; justify-content: space-between; align-items: baseline;
  margin: 1.6rem 0 .6rem; scroll-margin-top: 1rem; overflow-wrap: anywhere } h3.group a { font-weight: 400;
  font-size: .9rem }
.item { border: 1px solid var(--line); border-radius: 8px; margin: 0 0 .6rem; padding: 0 1rem }
.item > summary { color: var(--ink); padding: .55rem 0; overflow-wrap: anywhere }
.item[open] { padding-bottom: .9rem } .item[open] > summary { color: var(--quiet) }
.item[open] > summary .excerpt { display: none }
.item .facts { font-size: .9rem; margin-right: .5rem } .item .excerpt { color: var(--quiet); font-size: .93rem }
.options { list-style: none; margin: .5rem 0; padding: 0 } .options li { padding: .1rem 0 .1rem .7rem;
  border-left: 3px solid transparent; overflow-wrap: anywhere }
.options li.gold { border-color: var(--good) } .options small { margin-left: .5rem; white-space: nowrap }
.gold-line { margin: .4rem 0; overflow-wrap: anywhere }
@media (max-width: 40rem) { .forest { grid-template-columns: 1fr max-content; gap: 0 .8rem }
  .forest .value { grid-column: 2 } .forest .strip { grid-column: 1 / -1 } .item { padding: 0 .8rem } }
@media print { .item { break-inside: avoid; display: block } }
"""
)


def page(
    comparison: Mapping[str, Any], base_rows: Iterable[Row], tuned_rows: Iterable[Row], titles: tuple[str, str]
) -> str:
    """The page of a comparison (`verdict.compare`), whose sides are called `titles` (base, tuned).

    The rows are those of samples.jsonl; rows without texts (scores.jsonl) show ids and outcomes only, and without rows
    the reading list is left out. DanluError for rows that were never scored.
    """
    benchmarks = comparison["benchmarks"]
    body = [
        f"<h1>{plain(titles[0])} → {plain(titles[1])}</h1>",
        f'<p class="notice">{_asked(benchmarks)}</p>',
        f'<p class="verdict {_kind(comparison["verdict"])}">{plain(comparison["sentence"])}</p>',
        *(f'<p class="remark quiet">{plain(told)}</p>' for told in _remarks(benchmarks)),
        *(f'<p class="remark warning">{plain(warning)}</p>' for warning in _warnings(comparison)),
        section("Differences", _forest(benchmarks)),
        section("Benchmarks", _benchmarks(benchmarks)),
        section("How the answers ended", _outcomes(benchmarks)),
        section("How the model writes", _behaviour(benchmarks)),
        section("Questions in the training data", _leaks(benchmarks)),
        section("Option order", _shuffles(benchmarks)),
        section("Shorter answers", _budgets(benchmarks)),
        section("By group", _groups(benchmarks)),
        _reading(benchmarks, list(base_rows), list(tuned_rows)),
    ]
    return document(f"{titles[0]} → {titles[1]}", body, _STYLE)


def markdown(comparison: Mapping[str, Any]) -> str:
    """The verdict, one table, and what qualifies it, for a model card or a pull request."""
    benchmarks = comparison["benchmarks"]
    headers = ("Benchmark", "n", "Base", "Tuned", "Points", "95 % CI", "p", "Gained", "Lost", "Verdict")
    rows = [
        [
            _inert(_named(entry)),
            f"{entry['n']:,}",
            f"{100 * entry['base']:.1f} %",
            f"{100 * entry['tuned']:.1f} %",
            points(entry["difference"]),
            _range(entry["ci"]),
            _p(entry),
            str(entry["gained"]),
            str(entry["lost"]),
            entry["verdict"],
        ]
        for entry in benchmarks
    ]
    leaks = [
        f"{entry['name']} without {entry['leaked']:,} leaked questions: {entry['without_leaked']['sentence']}"
        for entry in benchmarks
        if entry.get("leaked")
    ]
    falls = [
        f"{entry['name']}: fewer answers are as they should be ({RATE_NAMES[rate].lower()}: {_change(test, _share)})"
        for entry in benchmarks
        for rate, test in (entry.get("rate_tests") or {}).items()
        if test and test["p"] < ALPHA and test["difference"] < 0
    ]
    told = [*leaks, *_remarks(benchmarks), *falls, *_warnings(comparison)]
    notes = "".join(f"- {_inert(line)}\n" for line in told)
    return f"**{_inert(comparison['sentence'])}**\n\n{report.markdown(headers, rows)}" + (f"\n{notes}" if notes else "")


def _inert(value: str) -> str:
    """Text that Markdown shows as it is, on one line, also inside a table."""
    return re.sub(r"[&<\\`*\[\]|]", lambda found: f"&#{ord(found.group())};", " ".join(visible(value).split()))


# ---- words


def _kind(verdict: str) -> str:
    return verdict if verdict in ("better", "worse", "mixed") else "open"


def _named(entry: Mapping[str, Any]) -> str:
    return f"{entry['name']} (control)" if not entry.get("decides", True) else str(entry["name"])


def _name(entry: Mapping[str, Any]) -> str:
    """The name as markup that may break before the mode, and after a slash or an underscore."""
    control = "" if entry.get("decides", True) else ' <span class="quiet">control</span>'
    return re.sub(r"(?=@)|(?<=[/_])", "<wbr>", plain(entry["name"])) + control


def _asked(benchmarks: Sequence[Mapping[str, Any]]) -> str:
    own = [entry for entry in benchmarks if entry.get("decides", True)]
    what = f"{sum(entry['n'] for entry in own):,} questions of {len(own)} benchmark{'s' * (len(own) != 1)}"
    controls = len(benchmarks) - len(own)
    more = f"; {controls} control{'s' * (controls != 1)} beside, without a say in the verdict" if controls else ""
    return f"base → tuned: {what}, the same for both{more}."


def _remarks(benchmarks: Sequence[Mapping[str, Any]]) -> list[str]:
    return [entry["format_and_knowledge"]["sentence"] for entry in benchmarks if entry.get("format_and_knowledge")]


def _warnings(comparison: Mapping[str, Any]) -> list[str]:
    found = [f"not asked alike: {difference}" for difference in comparison.get("settings_differ", [])]
    unpaired = comparison.get("unpaired") or {"base": 0, "tuned": 0}
    if unpaired["base"] or unpaired["tuned"]:
        only = f"{unpaired['base']:,} only in base, {unpaired['tuned']:,} only in tuned"
        found.append(f"left out, because one side lacks them: {only} ({', '.join(map(str, unpaired['ids']))} …)")
    return found


def _range(ci: Sequence[float]) -> str:
    return f"{points(ci[0])} to {points(ci[1])}"


def _p(entry: Mapping[str, Any]) -> str:
    p = entry.get("p_adjusted")
    return "not tested" if p is None else p_text(p).removeprefix("p ").removeprefix("= ")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _word(verdict: str) -> str:
    kind = {"better": "ok", "worse": "no"}.get(verdict, "quiet")
    return f'<span class="{kind}">{plain(verdict).replace(" ", "&nbsp;")}</span>'


# ---- drawings


def _forest(benchmarks: Sequence[Mapping[str, Any]]) -> str:
    """A line for each benchmark: the difference and its 95 % interval; hollow, the same without leaked questions."""
    lines: list[tuple[str, str, Mapping[str, Any]]] = []
    for entry in sorted(benchmarks, key=lambda entry: not entry.get("decides", True)):
        lines.append((_name(entry), "", entry))
        if entry.get("leaked") and entry["without_leaked"]["n"]:
            lines.append((f"without {entry['leaked']:,} leaked", "under", entry["without_leaked"]))
    ends = [0.0, *(end for _, _, figures in lines for end in figures["ci"])]
    step = _step(max(max(ends) - min(ends), 0.02))
    low, high = step * math.floor(min(ends) / step - 0.2), step * math.ceil(max(ends) / step + 0.2)
    ticks = [low + i * step for i in range(round((high - low) / step) + 1)]

    def x(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    grid = "".join(
        f'<line class="{"zero" if abs(tick) < 1e-9 else "grid"}" x1="{x(tick)}" x2="{x(tick)}" y1="0" y2="100%"/>'
        for tick in ticks
    )
    rows = []
    for name, kind, figures in lines:
        words = f"{points(figures['difference'])} points, 95 % interval {_range(figures['ci'])}"
        mark = "hollow" if kind else _kind(figures["verdict"])
        a, b = (x(end) for end in figures["ci"])
        rows.append(
            f'<div class="name {kind}">{name}</div><div class="value {kind}"><b>{points(figures["difference"])}</b>'
            f' <span class="quiet">{_range(figures["ci"])}</span></div><svg class="strip" height="{24 if kind else 34}"'
            f' role="img" aria-label="{words}">{grid}<g class="{mark}"><title>{words}</title><line class="ci" x1="{a}"'
            f' x2="{b}" y1="50%" y2="50%"/><circle class="point" cx="{x(figures["difference"])}" cy="50%" r="5"/></g>'
            "</svg>"
        )
    labels = "".join(
        f'<text x="{x(tick)}" y="15" text-anchor="{_anchor(i, len(ticks))}">{_tick(tick)}</text>'
        for i, tick in enumerate(ticks)
    )
    axis = f'<svg class="strip" height="20" aria-hidden="true">{labels}</svg>'
    note = '<p class="quiet">Percentage points, tuned minus base, with 95 % intervals; left of 0 is worse.</p>'
    return f'<div class="forest">{"".join(rows)}{axis}</div>{note}'


def _step(width: float) -> float:
    return next(step for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if width / step <= 5)


def _anchor(i: int, n: int) -> str:
    return "start" if i == 0 else "end" if i == n - 1 else "middle"


def _tick(value: float) -> str:
    return "0" if abs(value) < 1e-9 else f"{100 * value:+.3g}"


def _outcomes(benchmarks: Sequence[Mapping[str, Any]]) -> str:
    """Shares of outcomes as stacked bars, base above tuned."""
    known = [entry for entry in benchmarks if entry.get("outcomes")]
    if not known:
        return ""
    legend = "".join(f'<span><i style="background:var(--{name})"></i>{name}</span>' for name in OUTCOMES)
    parts = []
    for entry in known:
        parts.append(f"<h3>{_name(entry)}</h3>")
        parts += [f"<span>{which}</span>{_bar(entry['outcomes'][which])}" for which in SIDES]
    figures = [
        [plain(entry["name"]), which, *(_share(entry["outcomes"][which][name]) for name in OUTCOMES)]
        for entry in known
        for which in SIDES
    ]
    numbers = table(("Benchmark", "Side", *map(str.capitalize, OUTCOMES)), figures, frozenset(range(2, 7)))
    words = (
        "none: no answer could be found; ambiguous: more than one; truncated: cut at the limit before the answer. "
        "None of them counts as right."
    )
    return (
        f'<div class="legend">{legend}</div><div class="bars">{"".join(parts)}</div><p class="quiet">{words}</p>'
        f"<details><summary>The figures</summary>{numbers}</details>"
    )


def _bar(shares: Mapping[str, float]) -> str:
    parts, at = [], 0.0
    for name in OUTCOMES:
        share = shares[name]
        if share:
            label = f'<text x="{100 * (at + share / 2):.2f}%" y="16" text-anchor="middle">{100 * share:.0f} %</text>'
            parts.append(
                f'<g><title>{name} {_share(share)}</title><rect x="{100 * at:.2f}%" width="{100 * share:.2f}%"'
                f' height="23" fill="var(--{name})"/>{label if share >= 0.14 else ""}</g>'
            )
        at += share
    words = ", ".join(f"{name} {_share(shares[name])}" for name in OUTCOMES if shares[name])
    return f'<svg height="23" role="img" aria-label="{words}">{"".join(parts)}</svg>'


# ---- tables


def _benchmarks(benchmarks: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for i, entry in enumerate(benchmarks):
        count = [_linked(entry, kind, i) for kind in ("gained", "lost")]
        rows.append([_name(entry), f"{entry['n']:,}", *_figures(entry), *count])
        rows[-1].append(_word(entry["verdict"]))
    headers = ("Benchmark", "n", "Base", "Tuned", "Points", "95 % interval", "p, adjusted", "Gained", "Lost", "Verdict")
    note = "gained: wrong before and right now; lost: the other way round. p is Holm-adjusted for the benchmarks."
    return f'{table(headers, rows, frozenset(range(1, 9)))}<p class="quiet">{note}</p>'


def _figures(entry: Mapping[str, Any]) -> list[str]:
    if not entry["n"]:
        return ["–"] * 5
    shown = (_share(entry["base"]), _share(entry["tuned"]), f"<b>{points(entry['difference'])}</b>")
    return [*shown, _range(entry["ci"]), plain(_p(entry))]


def _linked(entry: Mapping[str, Any], kind: str, number: int) -> str:
    count = entry[kind]
    return f'<a href="#{kind}-{number}">{count:,}</a>' if count and entry.get("decides", True) else f"{count:,}"


def _behaviour(benchmarks: Sequence[Mapping[str, Any]]) -> str:
    """Rates and lengths of both sides; a change that McNemar's test finds is coloured."""
    rows = []
    for entry in benchmarks:
        found = [_name(entry)]
        for rate in RATES:
            test = (entry.get("rate_tests") or {}).get(rate)
            kind, sign = "", ""
            if test and test["p"] < ALPHA:
                kind, sign = ("ok", "▲") if test["difference"] > 0 else ("no", "▼")
            found.append(f'<span class="{kind}">{sign} {_change(entry.get(rate), _share)}</span>')
        found.append(_change(entry.get("mean_tokens"), lambda value: "–" if value is None else f"{value:,.0f}"))
        found.append(_change(entry.get("repetition"), _share))
        rows.append(found)
    headers = ("Benchmark", *(RATE_NAMES[rate] for rate in RATES), "Tokens", "Repeats itself")
    note = "Base → tuned. ▲ and ▼: a paired test finds the change (p &lt; 0.05, each by itself)."
    return f'{table(headers, rows, frozenset(range(1, 6)))}<p class="quiet">{note}</p>'


def _change(pair: Mapping[str, float | None] | None, shown: Any) -> str:
    if not pair or (pair["base"] is None and pair["tuned"] is None):
        return '<span class="quiet">not measured</span>'
    return f"{shown(pair['base'])} → {shown(pair['tuned'])}"


def _leaks(benchmarks: Sequence[Mapping[str, Any]]) -> str:
    known = [entry for entry in benchmarks if entry.get("leaked") is not None]
    rows = []
    for entry in known:
        clean = entry["without_leaked"]
        leaked = f"{entry['leaked']:,} of {entry['n']:,}"
        rows.append([_name(entry), leaked, "all", *_figures(entry), _word(entry["verdict"])])
        if entry["leaked"]:
            name = f'<span class="quiet">{_name(entry)}</span>'
            rows.append([name, "", "without them", *_figures(clean), _word(clean["verdict"])])
    headers = ("Benchmark", "Leaked", "Counted", "Base", "Tuned", "Points", "95 % interval", "p, adjusted", "Verdict")
    unknown = sum(entry["leaked_unknown"] for entry in known)
    note = "Leaked: a training row holds the question. The overall verdict leaves these out."
    note += f" {unknown:,} questions were not looked up." if unknown else ""
    return f'{table(headers, rows, frozenset({1, 3, 4, 5, 6, 7}))}<p class="quiet">{note}</p>' if rows else ""


def _shuffles(benchmarks: Sequence[Mapping[str, Any]]) -> str:
    known = [entry for entry in benchmarks if entry.get("shuffles")]
    rows = [
        [
            _name(entry),
            str(entry["shuffles"]["orders"]),
            _change(entry["shuffles"], _share),
            f"<b>{points(entry['shuffles']['difference'])}</b>",
            _range(entry["shuffles"]["ci"]),
            _change(entry["shuffles"]["consistent"], _share),
        ]
        for entry in known
    ]
    headers = ("Benchmark", "Orders", "Right, all orders", "Points", "95 % interval", "Right in every order")
    return table(headers, rows, frozenset(range(1, 6)))


def _budgets(benchmarks: Sequence[Mapping[str, Any]]) -> str:
    known = {_name(entry): {at["budget"]: at for at in entry.get("budgets") or []} for entry in benchmarks}
    budgets = sorted({budget for own in known.values() for budget in own})
    rows = [[name, *(_change(own.get(budget), _share) for budget in budgets)] for name, own in known.items() if own]
    headers = ("Benchmark", *(f"{budget:,} tokens" for budget in budgets))
    note = '<p class="quiet">Right answers if every answer had been cut there, base → tuned.</p>'
    return f"{table(headers, rows, frozenset(range(1, len(headers))))}{note}" if rows else ""


def _groups(benchmarks: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for entry in benchmarks:
        for field in ("subjects", "tasks", "languages"):
            found = entry.get(field) or []
            if len(found) < 2:
                continue
            order = sorted(found, key=lambda group: (bool(group.get("too_small")), group["difference"]))
            rows = [
                [
                    plain(group["name"]),
                    f"{group['n']:,}",
                    *_figures(group),
                    '<span class="quiet">too small</span>' if group.get("too_small") else _word(group["verdict"]),
                ]
                for group in order
            ]
            headers = (
                field[:-1].capitalize(),
                "n",
                "Base",
                "Tuned",
                "Points",
                "95 % interval",
                "p, adjusted",
                "Verdict",
            )
            summary = f"{_name(entry)}: {len(found)} {field}"
            parts.append(
                f"<details><summary>{summary}</summary>{table(headers, rows, frozenset(range(1, 7)))}</details>"
            )
    note = (
        '<p class="quiet">Worst first. Groups describe and never decide; those under 20 questions are not tested.</p>'
    )
    return f"{note}{''.join(parts)}" if parts else ""


# ---- answers to read


def _reading(benchmarks: Sequence[Mapping[str, Any]], base_rows: list[Row], tuned_rows: list[Row]) -> str:
    if not base_rows or not tuned_rows:
        return ""
    base, tuned = keyed(base_rows, "base"), keyed(tuned_rows, "tuned")
    pairs: dict[tuple[str, str], list[tuple[Row, Row]]] = {}
    for key, row in base.items():
        if key in tuned:
            pairs.setdefault(key[:2], []).append((row, tuned[key]))
    parts, links = [], []
    for kind in ("lost", "gained"):
        ids = [entry[f"{kind}_ids"] if entry.get("decides", True) else [] for entry in benchmarks]
        quotas = _quotas([len(own) for own in ids], MOST_ITEMS)
        total, shown = sum(map(len, ids)), sum(quotas)
        parts.append(f'<h2 id="{kind}">{kind.capitalize()}: {total:,}{_left_out(total - shown)}</h2>')
        parts += [] if total else [f'<p class="quiet">No question was {kind}.</p>']
        for i, (entry, own, quota) in enumerate(zip(benchmarks, ids, quotas, strict=True)):
            if not own:
                continue
            links.append(f'<a href="#{kind}-{i}">{kind} on {plain(entry["name"])}: {len(own):,}</a>')
            items = [
                _item(kind, name, pairs.get((str(entry["name"]), name), []), n < OPEN)
                for n, name in enumerate(own[:quota])
            ]
            head = f"{kind.capitalize()} on {plain(entry['name'])}: {len(own):,}{_left_out(len(own) - quota)}"
            parts.append(f'<h3 class="group" id="{kind}-{i}"><span>{head}</span><a href="#read">↑ all lists</a></h3>')
            parts += items
    return f'<section id="read"><h2>Answers to read</h2><nav>{"".join(links)}</nav>{"".join(parts)}</section>'


def _left_out(count: int) -> str:
    return f' <span class="quiet">({count:,} left out)</span>' if count else ""


def _quotas(counts: Sequence[int], most: int) -> list[int]:
    """How many of each list are shown, so that none is crowded out by a longer one; at most `most` in all."""
    quotas = [0] * len(counts)
    left = most
    for place in sorted(range(len(counts)), key=counts.__getitem__):
        waiting = sum(1 for i in range(len(counts)) if counts[i] and not quotas[i])
        quotas[place] = min(counts[place], -(-left // waiting)) if waiting and counts[place] else 0
        left -= quotas[place]
    return quotas


def _item(kind: str, name: str, pairs: list[tuple[Row, Row]], unfolded: bool) -> str:
    """One question with both answers; of several answers the first pair that shows what was lost or gained."""
    own = as_published(pairs)
    if not own:
        return f'<p class="quiet">{plain(name)}: these rows do not hold it</p>'
    which = 0 if kind == "lost" else 1
    base, tuned = next(
        (pair for pair in own if pair[which]["outcome"] == "right" != pair[1 - which]["outcome"]), own[0]
    )
    row = {**base, **{key: value for key, value in tuned.items() if value is not None}}
    stem, rest = split_options(str(row.get("question") or ""), row.get("options") or {})
    gold = str(row.get("target") or "unknown")
    facts = f"<code>{plain(name)}</code> gold <b>{plain(gold)}</b> · {_claim(base)} → {_claim(tuned)}"
    excerpt = " ".join(stem.split())
    cut = f"{excerpt[:EXCERPT]} …" if len(excerpt) > EXCERPT else excerpt
    several = [f"{sum(pair[i]['outcome'] == 'right' for pair in own)} of {len(own)}" for i in (0, 1)]
    told = [f"right in {several[0]} answers before, in {several[1]} after"] if len(own) > 1 else []
    told += ["in the training data"] if any(pair[i].get("leaked") for pair in own for i in (0, 1)) else []
    told += [str(row[field]) for field in ("subject", "task") if row.get(field)]
    others = ", ".join(map(str, row.get("aliases") or []))
    both = answer_box(_answer("base", base)) + answer_box(_answer("tuned", tuned))
    aliases = f' <span class="quiet">also: {plain(others)}</span>' if others else ""
    return (
        f'<details class="item"{" open" if unfolded else ""}><summary><span class="facts">{facts}</span>'
        f' <span class="excerpt">{plain(cut)}</span></summary>\n'
        + (f'<div class="quiet">{plain(" · ".join(told))}</div>' if told else "")
        + (text(stem) if stem else '<p class="quiet">These rows hold no question.</p>')
        + _options(row.get("options") or {}, gold, base, tuned)
        + (text(rest) if rest else "")
        + ("" if row.get("options") else f'<p class="gold-line">Gold: <b class="ok">{plain(gold)}</b>{aliases}</p>')
        + f'<div class="sides">{both}</div></details>\n'
    )


def _claim(row: Row) -> str:
    said = row.get("extracted") if row.get("extracted") is not None else row["outcome"]
    shown = f"{str(said)[:40]} …" if len(str(said)) > 40 else str(said)
    return f'<b class="{"ok" if row["outcome"] == "right" else "no"}">{plain(shown)}</b>'


def _answer(which: str, row: Row) -> dict[str, Any]:
    return {**side(which, row), "note": side_note(row)}


def _in_english(text: str, **values: Any) -> str:
    return text.format(**values) if values else text


def side_note(row: Row, say: Callable[..., str] = _in_english) -> str:
    """How an answer was read, how long it is, and what is odd about it. `say`: another language (text, its values)."""
    told = [say("read as {answer}", answer=row["extracted"])] if row.get("extracted") is not None else []
    told += [say(str(row["how"]))] if row.get("how") and row["how"] != "gold" else []
    if row.get("finish") in ("length", "error"):
        told.append(say("cut at the limit" if row["finish"] == "length" else "the generator failed"))
    told += [say("{n} tokens", n=f"{row['tokens']:,}")] if row.get("tokens") else []
    if (row.get("repetition") or 0) >= REPEATS:
        told.append(say("repeats itself, {share} %", share=f"{100 * row['repetition']:.0f}"))
    told += [say("not in the question's language")] if row.get("language_match") is False else []
    return " · ".join(told)


def _options(options: Any, gold: str, base: Row, tuned: Row) -> str:
    if not isinstance(options, dict) or not options:
        return ""
    lines = []
    for letter, said in options.items():
        chose = [name for name, row in zip(SIDES, (base, tuned), strict=True) if _chose(row, str(letter), options)]
        is_gold = str(letter) in gold if set(gold) <= set(map(str, options)) else str(letter) == gold
        marks = [*(["gold"] if is_gold else []), *chose]
        small = f'<small class="{"ok" if is_gold else "no"}">{" · ".join(marks)}</small>' if marks else ""
        lines.append(f'<li class="{"gold" if is_gold else ""}"><b>{plain(letter)}</b> {plain(said)}{small}</li>')
    return f'<ul class="options">{"".join(lines)}</ul>'


def _chose(row: Row, letter: str, options: Mapping[str, Any]) -> bool:
    said = str(row.get("extracted") or "")
    return letter in said if said and set(said) <= set(map(str, options)) else said == letter


def split_options(question: str, options: Any) -> tuple[str, str]:
    """(what stands before the options, what follows them) where the question lists them; else (question, "")."""
    start, at = None, 0
    for letter, said in options.items() if isinstance(options, dict) else ():
        found = re.compile(
            rf"(?<![A-Za-z0-9]){re.escape(str(letter))}\s*[.．、:：)）]\s*{re.escape(str(said))}"
        ).search(question, at)
        if not found:
            return question, ""
        start, at = found.start() if start is None else start, found.end()
    return (question, "") if start is None else (question[:start].rstrip(), question[at:].strip())
