"""How `danlu data` shows what it found: a check's report, and the tokens of a row. Presentation only, to stdout.

Colours on a terminal, unless NO_COLOR is set; elsewhere plain text that says the same. Lines are broken and cut by
the columns that characters take (Chinese ones take two). What stdout cannot encode is escaped, and bars are drawn in
ASCII where stdout is not UTF-8. Characters of the data that a terminal would obey are written out.
"""

from __future__ import annotations

import codecs
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from danlu.data.page import by_level, lost_words, percent, place, standing, verdict, visible

if TYPE_CHECKING:
    from danlu.data.view import Piece

MOST_COLUMNS = 110  # longer lines of text are hard to read
BAR_ROWS = 5  # height of the histogram
_BARS = " ▁▂▃▄▅▆▇█"
_SHADES = {"error": "bold red", "warning": "yellow", "info": "cyan", "ok": "bold green"}
_KINDS = {"context": "dim", "supervised": "green", "masked": "reverse magenta", "end": "bold red"}
_MARKERS = {"context": "context", "supervised": "loss", "masked": "masked", "end": "end"}  # without colours

Line = list[tuple[str, str]]  # (text, rich style), side by side


def print_report(report: Mapping[str, Any]) -> None:
    """A check's report, the object of `danlu data check --json`."""
    width = min(shutil.get_terminal_size().columns, MOST_COLUMNS)
    state = standing(report)
    lines: list[Line] = [[(verdict(report), _SHADES[state])]]
    lines += _told(f"{report['recipe']}, {report['model']}", width, "dim")
    for part in (_rows(report, width), _lengths(report["lengths"], width), _shares(report, width)):
        lines += [[], *part]
    for finding in by_level(report["findings"]):
        lines += [[], *_finding(finding, width)]
    _print(lines)


def print_pieces(name: str, pieces: Sequence[Piece]) -> None:
    """One row's tokens by what they do; without colours every line begins with its kind, and ↵ ends a line of text."""
    from danlu.data.view import NO_END, count

    counts = count(pieces)
    lines: list[Line] = [[(visible(name), "bold"), (f"  {sum(counts.values()):,} tokens", "")]]
    legend = [(f"{_MARKERS[kind]} {number:,}", _KINDS[kind]) for kind, number in counts.items()]
    lines.append([part for entry in legend for part in (entry, ("  ", ""))][:-1])
    if not counts["end"]:
        lines.append([(NO_END, "yellow")])
    if _coloured():
        text = [(visible(piece.text).replace("\n", "↵\n"), _KINDS[piece.kind]) for piece in pieces]
        lines.append([(part, f"{style} dim" if part == "↵" else style) for own, style in text for part in _apart(own)])
    else:
        for piece in pieces:
            marker = f"{_MARKERS[piece.kind]:<8} | "
            shown = visible(piece.text).replace("\n", ("↵" if _utf8() else "\\n") + "\n")
            lines += [[(marker + line, "")] for line in shown.removesuffix("\n").split("\n")]
    _print(lines)


def _apart(text: str) -> list[str]:
    """The text with every ↵ by itself."""
    return [part for part in re.split("(↵)", text) if part]


# ---- parts of a report


def _rows(report: Mapping[str, Any], width: int) -> Iterator[Line]:
    rows = report["rows"]
    said = [f"{rows['in']:,} rows read", f"{rows['kept']:,} kept", f"{rows['rejected']:,} rejected"]
    said += [f"{rows['repeats_of_valid']:,} repeat a validation row"] if rows["repeats_of_valid"] else []
    leaked = f" ({rows['leaked']:,} of them in a benchmark)" if rows["leaked"] else ""
    yield from _told(f"{', '.join(said)}: {rows['train']:,} to train{leaked}, {rows['valid']:,} to validate", width)
    sources = report["sources"]
    if not sources:
        return
    from rich.cells import cell_len

    names = [_cut(_one_line(source["path"]), width - 32, keep="end") for source in sources]
    room = max(cell_len("SOURCE"), *map(cell_len, names))
    yield [("  SOURCE" + " " * (room - 6) + f"{'READ':>10}{'KEPT':>10}{'REJECTED':>10}", "bold")]
    for source, name in zip(sources, names, strict=True):
        numbers = f"{source['in']:>10,}{source['kept']:>10,}"
        bad = f"{source['rejected']:>10,}"
        yield [(f"  {name}{' ' * (room - cell_len(name))}{numbers}", ""), (bad, "yellow" if source["rejected"] else "")]
        reasons = sorted(source["reasons"].items(), key=lambda pair: -pair[1])
        yield from _told(", ".join(f"{reason} {count:,}" for reason, count in reasons), width, "dim", 4)


def _lengths(lengths: Mapping[str, Any], width: int) -> Iterator[Line]:
    named = [(key, lengths[key]) for key in ("min", "p50", "p90", "p95", "p99", "max", "mean")]
    yield from _told("tokens  " + "  ".join(f"{name} {value:,.0f}" for name, value in named), width)
    if any(lengths["histogram"]["counts"]):
        yield from _histogram(lengths, min(width, 80) - 2)
    lost = lost_words(lengths)
    if lost:
        yield from _told(f"{lost} max_length {lengths['keeps_99']:,} would keep 99 % whole.", width, "yellow")


def _histogram(lengths: Mapping[str, Any], width: int) -> Iterator[Line]:
    """Bars of rows by tokens, those beyond max_length in red, with marks below where it lies and where 99 % fit."""
    edges, counts = lengths["histogram"]["edges"], list(lengths["histogram"]["counts"])
    joined = -(-len(counts) // width)  # bins that share one column
    columns = [sum(counts[at : at + joined]) for at in range(0, len(counts), joined)]
    wide = max(1, min(4, width // len(columns)))
    size = wide * len(columns)
    most = max(columns)
    unit = 8 if _utf8() else 1  # steps in one cell
    heights = [max(1, round(count / most * BAR_ROWS * unit)) if count else 0 for count in columns]

    def column(value: float) -> int:
        return min(int(place(edges, value) / joined * wide), size - 1)

    limit = column(lengths["max_length"]) if lengths["max_length"] <= edges[-1] else size
    for level in range(BAR_ROWS - 1, -1, -1):
        cells = "".join(_cell(height - level * unit, unit) * wide for height in heights).rstrip()
        yield [("  " + cells[:limit], "blue"), (cells[limit:], "red")]
    first, last = f"{edges[0]:,}", f"{edges[-1]:,} tokens"
    yield [("  " + ("─" if _utf8() else "-") * size, "dim")]
    yield [(f"  {first}{last:>{max(size - len(first), len(last) + 1)}}", "dim")]
    arrow, onward = ("▲", "→") if _utf8() else ("^", "->")
    beyond = f" {onward}" if limit == size else ""
    marks = [(lengths["max_length"], f"max_length {lengths['max_length']:,}{beyond}", "red")]
    marks += [(lengths["keeps_99"], f"99 % fit in {lengths['keeps_99']:,}", "green")]
    for value, label, style in marks:
        at = column(value)
        right = at + 2 + len(label) <= width
        yield [("  " + (f"{' ' * at}{arrow} {label}" if right else f"{label} {arrow}".rjust(at + 1)), style)]


def _cell(height: int, unit: int) -> str:
    """One cell of a bar that reaches `height` steps above the cell's floor."""
    if unit == 1:
        return "#" if height > 0 else " "
    return _BARS[min(max(height, 0), 8)]


def _shares(report: Mapping[str, Any], width: int) -> Iterator[Line]:
    loss = f"{report['supervised_tokens']:,} of {report['tokens']:,} tokens carry loss"
    packs = f"{report['packing']['packs']:,} packs, {percent(report['packing']['fill'])} filled"
    yield from _told(f"{loss} ({percent(report['supervised_share'])}); {packs}", width)
    for name, counts in report["mix"].items():
        total = sum(counts.values())
        ordered = sorted(counts.items(), key=lambda pair: -pair[1])
        shares = ", ".join(f"{key} {percent(count / total)}" for key, count in ordered if count)
        yield from _told(f"{name}: {shares}" if shares else "", width)


def _finding(finding: Mapping[str, Any], width: int) -> Iterator[Line]:
    """level, code and count; below, what it means, what to do, and examples of one line each."""
    count, of = f"{finding['count']:,}", finding["of"]
    share = f" of {of:,} ({percent(finding['count'] / of)})" if of else ""
    yield [(f"{finding['level']:<8}", _SHADES[finding["level"]]), (_one_line(finding["code"]), "bold"),
           (f"  {count}", "bold"), (share, "")]  # fmt: skip
    yield from _told(finding["what"], width, "", 8)
    if finding["do"].strip():
        first, *rest = _told(f"do: {finding['do']}", width, "", 8, 12)
        yield [(first[0][0][:11], "bold"), (first[0][0][11:], "")]
        yield from rest
    for example in finding["examples"]:
        yield [(" " * 10 + _cut(_one_line(str(example)), width - 10), "dim")]


# ---- lines


def _told(text: str, width: int, style: str = "", indent: int = 0, hanging: int | None = None) -> list[Line]:
    """`text` broken into lines of at most `width` columns; no line for an empty text."""
    first, other = " " * indent, " " * (indent if hanging is None else hanging)
    broken = _wrap(_one_line(text), width - max(len(first), len(other)))
    return [[((first if at == 0 else other) + line, style)] for at, line in enumerate(broken)]


# what stays together on a line: blanks; a wide character with the marks that may not begin a line; anything else
_WIDE = "\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef"
_UNITS = re.compile(rf"\s+|[{_WIDE}][，。、；：？！）》」』”’]*|[^\s{_WIDE}]+")


def _wrap(text: str, width: int) -> list[str]:
    from rich.cells import cell_len, chop_cells

    lines, line = [], ""
    for unit in _UNITS.findall(text):
        if cell_len(line + unit.rstrip()) <= width:
            line += unit
            continue
        if line.strip():
            lines.append(line.rstrip())
        *full, line = chop_cells(unit.lstrip(), max(width, 2)) or [""]
        lines += full
    return [*lines, line.rstrip()] if line.strip() else lines


def _cut(text: str, width: int, keep: str = "start") -> str:
    """`text` in at most `width` columns, an ellipsis where some is left out."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    dots = "…" if _utf8() else "..."
    room = max(width - len(dots), 1)
    if keep == "start":
        return set_cell_size(text, room).rstrip() + dots
    while cell_len(text) > room:
        text = text[1:]
    return dots + text


def _one_line(text: str) -> str:
    """`text` as stdout can show it in one line; its width can be measured."""
    return _encodable(visible(text.strip()).replace("\t", " ").replace("\n", "↵" if _utf8() else "\\n"))


def _utf8() -> bool:
    return codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"


def _coloured() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _print(lines: Iterable[Line]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, color_system="auto" if _coloured() else None)
    for line in lines:
        parts = [(_encodable(text), style) for text, style in line]
        if _coloured():
            console.print(Text.assemble(*parts), soft_wrap=True)
        else:
            print("".join(text for text, _ in parts))


def _encodable(text: str) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
