"""The page of a data check: one self-contained HTML file (styles and drawing inside, no script, light and dark).

Whatever comes from data is escaped, and characters that act instead of being seen (controls, those that turn the
reading direction) are written out. The histogram is drawn twice, for wide and for narrow screens, because text in a
scaled SVG cannot be read on a phone; its bars have one width each whatever their edges, so any binning can be shown.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

LEVELS = ("error", "warning", "info")  # of findings, worst first
ADVICE = {
    "error": "mend the data before you train.",
    "warning": "ready to train; read the warnings first.",
    "ok": "ready to train.",
}
MOST_TEXT = 2000  # characters shown of one example
MOST_SHARES = 8  # languages or scripts listed by name

_STYLE = """
:root { color-scheme: light dark; --ink:#1d2329; --quiet:#667079; --line:#e0e4e8; --paper:#fff; --card:#f6f7f9;
  --good:#0b6b3a; --bad:#b3261e; --warn:#8a5a00; --blue:#0b4f86; --bar:#5b8fbd }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ec; --quiet:#9aa4ad; --line:#343b42; --paper:#15191d;
  --card:#1e2429; --good:#62c78f; --bad:#f28b82; --warn:#e3b35f; --blue:#7db8e8; --bar:#4f83b0 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 60rem; padding: 2.2rem 1.2rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "PingFang SC", "Noto Sans CJK SC", "Microsoft YaHei",
  sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem } h3 { font-size: 1rem; margin: 0 }
.notice { color: var(--quiet); margin: 0 0 1.4rem; overflow-wrap: anywhere }
.verdict { background: var(--card); border-left: 4px solid var(--good); padding: .7rem 1rem; margin: .5rem 0 1.4rem;
  border-radius: 0 6px 6px 0; font-size: 1.05rem }
.verdict.error { border-color: var(--bad) } .verdict.warning { border-color: var(--warn) }
.quiet { color: var(--quiet) } b.error { color: var(--bad) } b.warning { color: var(--warn) }
.text { white-space: pre-wrap; overflow-wrap: anywhere }
summary { cursor: pointer; color: var(--quiet) }
code { font: .88em/1.5 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.2rem, 1fr)); gap: .9rem .8rem;
  margin: 0 0 1.2rem; font-variant-numeric: tabular-nums }
.figures b { display: block; font-size: 1.2rem; line-height: 1.3 }
.figures.large { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)) }
.figures span { color: var(--quiet); font-size: .86rem; line-height: 1.3; display: block }
"""
_REPORT_STYLE = """
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .4rem .7rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--quiet); font-weight: 600; font-size: .86rem; white-space: nowrap }
td.n, th.n { text-align: right; white-space: nowrap; padding: .4rem 0 .4rem .8rem } td { overflow-wrap: anywhere }
td div { font-size: .93rem }
.finding { border: 1px solid var(--line); border-left: 4px solid var(--quiet); border-radius: 0 8px 8px 0;
  padding: .8rem 1rem; margin: 0 0 .9rem }
.finding.error { border-left-color: var(--bad) } .finding.warning { border-left-color: var(--warn) }
.finding header { display: flex; flex-wrap: wrap; gap: .1rem .8rem; align-items: baseline; margin-bottom: .25rem }
.finding header .n { margin-left: auto; font-variant-numeric: tabular-nums } .finding p { margin: .15rem 0 }
.finding .level { text-transform: uppercase; font-size: .75rem; letter-spacing: .05em }
.finding details { margin-top: .4rem } .finding .text { background: var(--card); border-radius: 6px;
  padding: .5rem .8rem; margin: .4rem 0 0; font-size: .93rem }
svg { display: block; max-width: 100%; font: 12px system-ui, sans-serif } svg.small { display: none }
svg text { fill: var(--quiet); paint-order: stroke; stroke: var(--paper); stroke-width: 4px }
svg .axis { stroke: var(--line) } svg .bar { fill: var(--bar) }
svg .lost { fill: var(--bad); fill-opacity: .75 } svg line.max { stroke: var(--bad) }
svg text.max { fill: var(--bad) }
svg line.most { stroke: var(--good); stroke-dasharray: 5 3 } svg text.most { fill: var(--good) }
.track { background: var(--line); border-radius: 4px; height: .7rem; overflow: hidden }
.track div { background: var(--bar); height: 100% }
.track.tall { height: 1.1rem } .track.tall div { background: var(--good) }
.shares { display: grid; grid-template-columns: minmax(5rem, max-content) minmax(3rem, 1fr) max-content;
  gap: .35rem .9rem; align-items: center; font-variant-numeric: tabular-nums; margin-bottom: 1.3rem }
.shares h3 { grid-column: 1 / -1 }
.shares .n { text-align: right }
@media (max-width: 40rem) { svg.large { display: none } svg.small { display: block }
  tr { display: grid; grid-template-columns: repeat(3, 1fr); border-bottom: 1px solid var(--line) }
  tr > * { border: 0; padding: .2rem 0 } tr > :first-child { grid-column: 1 / -1 }
  td.n, th.n { text-align: left; padding: .2rem 0 } }
@media print { details { display: none } .finding, svg { break-inside: avoid } }
"""


def page(report: Mapping[str, Any], title: str) -> str:
    """The page of a data check's report, the object of `danlu data check --json`; every key must be there."""
    think = report["think"]
    facts = [f"model {_plain(report['model'])}", f"reasoning style {_plain(think['style'])}"]
    facts += [f"opened by the {_plain(think['opened_by'])}"] if think["opened_by"] != "nobody" else []
    facts += [f"ends with {' '.join(f'<code>{_plain(token)}</code>' for token in think['end_tokens']) or 'nothing'}"]
    facts += ["the template drops reasoning"] if think["drops_reasoning"] else []
    found = by_level(report["findings"])
    sections = [
        ("Findings", "".join(map(_finding, found)) or '<p class="quiet">Nothing was found.</p>'),
        ("Rows", _rows(report)),
        ("Length of the rows", _lengths(report["lengths"])),
        ("Tokens that carry loss", _supervised(report)),
        ("Languages and scripts", "".join(_shares(name, part) for name, part in report["mix"].items())),
    ]
    body = [
        f"<h1>{_plain(title)}</h1>",
        f'<p class="notice">Recipe {_plain(report["recipe"])} · {" · ".join(facts)}</p>',
        f'<p class="verdict {standing(report)}">{_plain(verdict(report))}</p>',
        *(f"<section><h2>{name}</h2>\n{content}</section>" for name, content in sections if content),
    ]
    return document(title, body, _REPORT_STYLE)


def document(title: str, body: Iterable[str], style: str = "") -> str:
    """A whole HTML page of `body` (markup, escaped already) in the look that all pages share."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_plain(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}{style}</style>\n'
        f"</head>\n<body>\n{chr(10).join(part for part in body if part)}\n</body>\n</html>\n"
    )


# ---- what every presentation of a report needs


def visible(text: str) -> str:
    """`text` with characters that act instead of being seen written out; tabs and line feeds stay.

    These are controls (ESC becomes <U+001B>), marks that turn the reading direction, separators of lines and
    paragraphs, and halves of surrogate pairs, which no file can hold.
    """
    return _UNSEEN.sub(lambda found: f"<U+{ord(found.group()):04X}>", text)


_UNSEEN = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def by_level(findings: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Errors, then warnings, then the rest; the most frequent first."""
    return sorted(findings, key=lambda finding: (LEVELS.index(finding["level"]), -finding["count"]))


def standing(report: Mapping[str, Any]) -> str:
    """ "error", "warning" or "ok": the worst that stands in the way of training."""
    levels = {finding["level"] for finding in report["findings"]}
    return "error" if "error" in levels or not report["ok"] else "warning" if "warning" in levels else "ok"


def verdict(report: Mapping[str, Any]) -> str:
    """ "2 errors, 1 warning: mend them before you train." """
    levels = [finding["level"] for finding in report["findings"]]
    counts = ", ".join(f"{levels.count(level)} {level}{'s' * (levels.count(level) != 1)}" for level in LEVELS[:2])
    return f"{counts}: {ADVICE[standing(report)]}"


def place(edges: Sequence[float], value: float) -> float:
    """Where `value` lies among the bins, in bins from the left: 0 at edges[0], n at edges[n], clamped to that."""
    if value <= edges[0]:
        return 0.0
    if value >= edges[-1]:
        return float(len(edges) - 1)
    at = bisect_right(edges, value) - 1
    return at + (value - edges[at]) / (edges[at + 1] - edges[at])


def lost_words(lengths: Mapping[str, Any]) -> str:
    """What rows lose at max_length, as a sentence; empty where nothing is lost."""
    names = (("end", "end token"), ("answer", "answer"), ("close", "end of the reasoning"))
    told = [f"the {name} in {percent(lengths['lost'][key])}" for key, name in names if lengths["lost"][key]]
    listed = " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
    return f"A cut at max_length {lengths['max_length']:,} loses {listed} of the rows." if told else ""


def percent(share: float) -> str:
    """0.123 -> "12.3 %"; a share that is not 0 never reads as 0, one that is not 1 never as 100 %."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"


# ---- sections


def _finding(finding: Mapping[str, Any]) -> str:
    level, count, of = finding["level"], finding["count"], finding["of"]
    share = f' <span class="quiet">of {of:,} ({escape(percent(count / of))})</span>' if of else ""
    examples = [visible(str(example)) for example in finding["examples"]]
    cut = [f"{text[:MOST_TEXT]} …" if len(text) > MOST_TEXT else text for text in examples]
    shown = "".join(f'<div class="text">{escape(text)}</div>' for text in cut)
    summary = "1 example" if len(cut) == 1 else f"{len(cut)} examples"
    return (
        f'<article class="finding {level}"><header><b class="level {level}">{level}</b>'
        f"<code>{_plain(finding['code'])}</code>"
        f'<span class="n"><b class="{level}">{count:,}</b>{share}</span></header>\n'
        f"<p>{_plain(finding['what'])}</p>\n"
        + (f"<p><b>What to do:</b> {_plain(finding['do'])}</p>" if finding["do"] else "")
        + (f"<details><summary>{summary}</summary>{shown}</details>" if shown else "")
        + "</article>\n"
    )


def _rows(report: Mapping[str, Any]) -> str:
    rows = report["rows"]
    named = {"in": "read", "repeats_of_valid": "repeat validation", "valid": "validation"}
    named["leaked"] = "of them in a benchmark"
    order = ("in", "kept", "rejected", "repeats_of_valid", "train", "leaked", "valid")
    tiles = figures((named.get(key, key), f"{rows[key]:,}") for key in order)
    lines = []
    for source in report["sources"]:
        reasons = sorted(source["reasons"].items(), key=lambda pair: -pair[1])
        why = "".join(f'<div class="quiet">{_plain(reason)}: {count:,}</div>' for reason, count in reasons)
        numbers = "".join(f'<td class="n">{source[key]:,}</td>' for key in ("in", "kept", "rejected"))
        lines.append(f"<tr><td><code>{_plain(source['path'])}</code>{why}</td>{numbers}</tr>")
    head = '<th>Source</th><th class="n">Read</th><th class="n">Kept</th><th class="n">Rejected</th>'
    body = "\n".join(lines)
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    return tiles + (table if lines else "")


def _lengths(lengths: Mapping[str, Any]) -> str:
    names = {"min": "shortest", "p50": "median", "p90": "90 %", "p95": "95 %", "p99": "99 %", "max": "longest"}
    told = [(name, f"{lengths[key]:,.0f}") for key, name in names.items()]
    told += [("mean", f"{lengths['mean']:,.0f}"), ("max_length", f"{lengths['max_length']:,}")]
    lost = escape(lost_words(lengths)).replace(" %", "&nbsp;%")
    sentence = f'<b class="warning">{lost}</b>' if lost else "No row loses anything at max_length."
    keeps = f'<p class="quiet">max_length {lengths["keeps_99"]:,} would keep 99 % of the rows whole.</p>'
    drawn = [_histogram(lengths, *size) for size in ((920, "large"), (350, "small")) if lengths["histogram"]["counts"]]
    return f"{figures(told)}{''.join(drawn)}<p>{sentence}</p>{keeps}"


def _histogram(lengths: Mapping[str, Any], width: int, kind: str) -> str:
    """Bars of rows by tokens, those beyond max_length in red, with lines at max_length and where 99 % fit."""
    edges, counts = lengths["histogram"]["edges"], lengths["histogram"]["counts"]
    left, right, top, height = 44, 14, 40, 250
    floor, wide = height - 42, width - left - right
    most = _round_up(max(counts))
    step = wide / len(counts)
    limit, fits = place(edges, lengths["max_length"]), place(edges, lengths["keeps_99"])

    def y(count: float) -> float:
        return floor - (floor - top) * count / most

    parts = []
    for share in (0, 0.5, 1):
        at = y(most * share)
        parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{_short(most * share)}</text>')
    for n, count in enumerate(counts):
        if count:  # a bar that max_length divides has both colours
            high = min(y(count), floor - 1.5)
            cut = min(max(limit, n), n + 1)
            for begin, end, name in ((n, cut, "bar"), (cut, n + 1, "lost")):
                if end > begin:
                    x, w = left + begin * step, (end - begin) * step - (1 if end == n + 1 else 0)
                    bar = f'x="{x:.1f}" y="{high:.1f}" width="{max(w, 0.5):.1f}" height="{floor - high:.1f}"'
                    parts.append(
                        f'<rect class="{name}" {bar}><title>{edges[n]:,} to {edges[n + 1]:,} tokens:'
                        f" {count:,} rows</title></rect>"
                    )
    every = -(-len(counts) * 75 // wide)  # bins from label to label
    for at in range(0, len(counts) + 1, int(every)):
        anchor = "end" if at == len(counts) else "middle"
        parts.append(f'<text x="{left + at * step:.1f}" y="{floor + 17}" text-anchor="{anchor}">{edges[at]:,}</text>')
    parts.append(f'<text x="{left + wide / 2:.1f}" y="{height - 6}" text-anchor="middle">tokens in a row</text>')
    parts.append(f'<text x="{left - 6}" y="12" text-anchor="end">rows</text>')
    beyond = " →" if lengths["max_length"] > edges[-1] else ""
    marks = (
        ("max", limit, f"max_length {lengths['max_length']:,}{beyond}", 14),
        ("most", fits, f"99 % fit in {lengths['keeps_99']:,}", 30),
    )
    lines, labels = [], []
    for name, position, label, at in marks:
        x = left + position * step
        side, dx = ("end", -5) if x + 7 * len(label) > width else ("start", 5)
        lines.append(f'<line class="{name}" x1="{x:.1f}" x2="{x:.1f}" y1="{at - 10}" y2="{floor}"/>')
        labels.append(f'<text class="{name}" x="{x + dx:.1f}" y="{at}" text-anchor="{side}">{label}</text>')
    parts += lines + labels  # labels keep free of both lines
    return (
        f'<svg class="{kind}" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="Rows by their number of tokens">{"".join(parts)}</svg>\n'
    )


def _round_up(count: int) -> int:
    """A round even number of at least `count`, and at least 2."""
    size = 10 ** (len(str(count)) - 1)
    rounds = (n * size // 10 for n in (10, 12, 16, 20, 30, 40, 50, 60, 80, 100))
    return next(n for n in rounds if n >= max(count, 2) and n % 2 == 0)


def _short(value: float) -> str:
    """25,000 -> "25k"."""
    for size, unit in ((1_000_000, "M"), (10_000, "k")):
        if value >= size:
            return f"{value / (1_000 if unit == 'k' else size):.3g}{unit}"
    return f"{value:,.0f}"


def _supervised(report: Mapping[str, Any]) -> str:
    share, packing = report["supervised_share"], report["packing"]
    tiles = [
        ("tokens", f"{report['tokens']:,}"),
        ("carry loss", f"{report['supervised_tokens']:,}"),
        ("packs", f"{packing['packs']:,}"),
        ("of a pack filled", percent(packing["fill"])),
    ]
    width = f"{100 * min(max(share, 0), 1):.2f}%"
    return (
        f'{figures(tiles, "figures large")}<div class="track tall" aria-hidden="true">'
        f'<div style="width:{width}"></div></div>\n'
        f"<p>{escape(percent(share))} of the tokens carry loss; the rest is read only.</p>"
    )


def _shares(name: str, counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    total = sum(counts.values())
    if not total:
        return ""
    if len(ordered) > MOST_SHARES:
        few = ordered[: MOST_SHARES - 1]
        ordered = [*few, (f"{len(ordered) - len(few)} others", total - sum(count for _, count in few))]
    lines = [
        f'<span>{_plain(key)}</span><div class="track"><div style="width:{100 * count / total:.2f}%"></div></div>'
        f'<span class="n">{count:,} <span class="quiet">{escape(percent(count / total))}</span></span>'
        for key, count in ordered
    ]
    return f'<div class="shares"><h3>{_plain(name.capitalize())}</h3>{"".join(lines)}</div>\n'


def figures(pairs: Iterable[tuple[str, str]], kind: str = "figures") -> str:
    """(name, value) pairs as tiles, the value large."""
    tiles = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in pairs)
    return f'<div class="{kind}">{tiles}</div>\n'


def _plain(value: object) -> str:
    return escape(visible(str(value)))
