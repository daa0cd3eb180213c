"""What a run directory says of itself, in the words and order of a person who looks at it; no markup here.

The number that matters of each stage, what went differently than one would wish, where the run came from, how its
recipe differs from that of the run before, and some of what the model wrote. Everything is read from run directories;
nothing is computed that a stage has not measured. Not covered: why a difference helped (danlu compare).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from danlu.errors import DanluError
from danlu.run import Run, iter_jsonl, list_runs, read_json

Row = dict[str, Any]
CLOSINGS = ("</think>", "</reasoning>")  # of reasoning, in completions
OTHER_TAGS = ("<think>", "<reasoning>", "<answer>", "</answer>")
MANY_CUT = 0.05  # share of answers at the token limit from which that is told


@dataclass(frozen=True, slots=True)
class Number:
    """The number that matters: `value` as text, what it is, and what qualifies it."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a person should know: "error", "warning" or "info"."""

    level: str
    text: str


# ---- the number


def number(run: Run) -> Number | None:
    """The number that matters of a run, from what it has measured so far; None where that is nothing yet."""
    stage, results = run.info().get("stage"), run.info().get("results", {})
    if stage in ("sft", "grpo"):
        return _of_training(run.metrics())
    if stage == "eval":
        return _of_evaluation(run)
    if stage == "export":
        return _of_export(run)
    counts = results.get("counts") or {}
    return Number(f"{counts['train']:,}", "training rows") if counts.get("train") is not None else None


def _of_training(rows: Sequence[Row]) -> Number | None:
    for key, name, best, shown in (
        ("eval_accuracy", "right on held-out questions", max, percent),
        ("eval_loss", "loss on validation rows", min, "{:.3f}".format),
    ):
        found = [row for row in rows if row.get(key) is not None]
        if found:
            last, top = found[-1], best(found, key=lambda row: row[key])
            note = f"step {last['step']:,}"
            if top[key] != last[key]:
                note += f"; best {shown(top[key])} at step {top['step']:,}"
            return Number(shown(last[key]), name, note)
    key = "reward" if any("reward" in row for row in rows) else "loss"
    found = [row for row in rows if row.get(key) is not None][-5:]
    if not found:
        return None
    mean = sum(row[key] for row in found) / len(found)
    note = f"mean of the last {len(found)} steps, to step {found[-1]['step']:,}"
    return Number(f"{mean:.3f}", "reward" if key == "reward" else "training loss", note)


def _of_evaluation(run: Run) -> Number | None:
    entries = benchmarks(run)
    total = sum(entry["n"] for entry in entries)
    if not total:
        return None
    right = sum(entry["n"] * entry["accuracy"] for entry in entries)
    note = f"{total:,} questions of {len(entries)} benchmark{'s' * (len(entries) != 1)}"
    if len(entries) == 1:
        low, high = entries[0]["ci"]
        note += f", 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    return Number(percent(right / total), "right answers", note)


def _of_export(run: Run) -> Number | None:
    found = checks(run)
    sizes = [file.stat().st_size for file in run.artifact.glob("*.gguf")]
    note = ", ".join(size(each) for each in sizes)
    if not found:
        return Number("not checked", "export", note) if sizes else None
    return Number(f"{sum(bool(check['ok']) for check in found)} of {len(found)}", "checks hold", note)


def benchmarks(run: Run) -> list[Row]:
    """The entries of an evaluation's report; none before it is done."""
    file = run.artifact / "report.json"
    return read_json(file).get("benchmarks", []) if file.is_file() else []


def checks(run: Run) -> list[Row]:
    """The checks of an export, also of one that was rejected: {"name", "ok", "value", "limit"}."""
    for folder in (run.artifact, run.path / "rejected"):
        if (folder / "verify.json").is_file():
            return read_json(folder / "verify.json").get("checks", [])
    return []


# ---- what to know


def notices(run: Run) -> list[Notice]:
    """How the run ended where it did not end well, and the signs and warnings of its stage, worst first."""
    info, state = run.info(), run.state()
    results = info.get("results", {})
    again = f"danlu {info.get('stage')} RECIPE --name {run.name} --resume"
    ends = {
        "failed": f"It failed: {info.get('error') or 'without a word'}",
        "died": f"Its process is gone without an end: killed, or the machine went down. Go on with: {again}",
        "stopped": f"It was stopped. Go on with: {again}",
    }
    found = [Notice("warning" if state == "stopped" else "error", ends[state])] if state in ends else []
    texts = results.get("sign_texts", {})
    found += [
        Notice("warning", f"From step {step:,}: {texts[code]}")
        for code, step in results.get("signs", {}).items()
        if code in texts
    ]
    found += {"eval": _of_answers, "export": _of_checks}.get(str(info.get("stage")), _of_steps)(run, results)
    if info.get("resumed"):
        found.append(Notice("info", f"It was interrupted and went on {info['resumed']} time{_s(info['resumed'])}."))
    order = ("error", "warning", "info")
    return sorted(found, key=lambda notice: order.index(notice.level))


def _of_steps(_: Run, results: Row) -> list[Notice]:
    found = []
    if results.get("not_finite"):
        found.append(Notice("error", f"The loss was not a number at step {results['not_finite']['step']:,}."))
    if results.get("truncated"):
        found.append(Notice("warning", f"{results['truncated']:,} training rows were longer than max_length: cut."))
    if results.get("dropped_overlong"):
        found.append(Notice("warning", f"{results['dropped_overlong']:,} rows were too long and left out."))
    if halvings := results.get("halvings"):
        times = f"{halvings} time{_s(halvings)}"
        found.append(Notice("info", f"Memory ran out {times}: smaller forwards were made, the loss stays the same."))
    if results.get("stopped_early"):
        found.append(Notice("info", f"It ended early at step {results.get('steps'):,}: nothing got better any more."))
    return found


def _of_answers(run: Run, _: Row) -> list[Notice]:
    found = []
    for entry in benchmarks(run):
        cut = entry.get("shares", {}).get("truncated", 0.0)
        if cut >= MANY_CUT:
            what = f"{entry['name']}: {percent(cut)} of the answers were cut at the token limit (eval.max_tokens)."
            found.append(Notice("warning", what))
        if entry.get("errors"):
            found.append(Notice("warning", f"{entry['name']}: {entry['errors']:,} answers failed to be generated."))
        if entry.get("leaked"):
            what = f"{entry['name']}: {entry['leaked']:,} questions stand in the training rows."
            found.append(Notice("warning", what))
    return found


def _of_checks(run: Run, _: Row) -> list[Notice]:
    return [Notice("error", f"The check {check['name']} failed.") for check in checks(run) if not check["ok"]]


def _s(count: int) -> str:
    return "" if count == 1 else "s"


# ---- where it came from


def parent_runs(run: Run) -> list[Run]:
    """The runs that this one started from, as far as they are still there."""
    paths = [Path(name) if Path(name).is_absolute() else run.path.parent / name for name in _parents(run)]
    return [Run(path) for path in paths if (path / "run.json").is_file()]


def _parents(run: Run) -> list[str]:
    try:
        return [str(name) for name in run.info().get("parents", [])]
    except DanluError:  # unreadable
        return []


def ancestors(run: Run) -> list[Run]:
    """The lineage, oldest first, this run last."""
    found, waiting = [run], parent_runs(run)
    while waiting:
        above = waiting.pop(0)
        if all(above.path.resolve() != known.path.resolve() for known in found):
            found.insert(0, above)
            waiting += parent_runs(above)
    return found


def children(run: Run) -> list[Run]:
    """The runs beside this one that started from it."""
    return [other for other in list_runs(run.path.parent) if run.name in _parents(other)]


def origin(run: Run) -> str:
    """The model at the root of the lineage."""
    first = ancestors(run)[0]
    named = [name for name in _parents(first) if not (run.path.parent / name).exists()]
    return named[0] if named else str(first.config().get("model", {}).get("id") or "unknown")


def changes(run: Run) -> tuple[str, list[tuple[str, Any, Any]]]:
    """(the run it is held against, (key, there, here) of every key that differs); ("", []) without a parent run."""
    above = parent_runs(run)
    if not above:
        return "", []
    found = differences({"there": above[0].config(), "here": run.config()})
    return above[0].name, [(key, values["there"], values["here"]) for key, values in found]


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; lists are values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def differences(configs: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(key, name -> value) of the keys in which resolved recipes differ, in the recipe's order."""
    flats = {name: flat(config) for name, config in configs.items()}
    keys = dict.fromkeys(key for one in flats.values() for key in one)
    found = []
    for key in keys:
        values = {name: one.get(key) for name, one in flats.items()}
        if any(value != next(iter(values.values())) for value in values.values()):
            found.append((key, values))
    return found


def overrides(run: Run) -> list[str]:
    """What --set changed of the recipe as written."""
    file = run.path / "recipe.yaml"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [line.removeprefix("# --set ") for line in lines if line.startswith("# --set ")]


# ---- what the model wrote


def parted(output: str, answer: str | None = None) -> tuple[str, str]:
    """(reasoning, answer) of a completion: at `answer` where it is known, else at the closing tag."""
    closing = next((tag for tag in CLOSINGS if tag in output), None)
    if answer is not None:
        at = output.rfind(answer) if answer else len(output)
        before, after = output[: max(at, 0)], answer
    elif closing:
        before, _, after = output.partition(closing)
    else:
        before, after = (output, "") if output.lstrip().startswith(("<think>", "<reasoning>")) else ("", output)
    for tag in (*CLOSINGS, *OTHER_TAGS):
        before, after = before.replace(tag, ""), after.replace(tag, "")
    return before.strip(), after.strip()


def groups(rows: Sequence[Row]) -> dict[int, list[list[Row]]]:
    """Rollouts by step, each step as groups of one prompt, in the order they were written."""
    found: dict[int, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(row["step"], {}).setdefault(str(row["id"]), []).append(row)
    return {step: list(own.values()) for step, own in found.items()}


def some_groups(run: Run, most: int = 4) -> list[list[Row]]:
    """Groups of rollouts from the beginning to the end of a run, one of a step."""
    by_step = groups(run.samples())
    steps = sorted(by_step)
    if len(steps) > most:
        steps = [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
    return [max(by_step[step], key=_spread) for step in steps]


def _spread(group: list[Row]) -> float:
    """How far apart the rewards are: a group without a difference shows little."""
    rewards = [row["reward"] for row in group if row["reward"] is not None]
    return max(rewards) - min(rewards) if rewards else 0.0


def some_answers(run: Run, wrong: int = 4, right: int = 2) -> list[Row]:
    """Answers of an evaluation: wrong ones first, of every kind of wrong if there are several."""
    kinds: dict[str, list[Row]] = {}
    for row in iter_jsonl(run.path / "samples.jsonl"):
        own = kinds.setdefault(str(row.get("outcome")), [])
        if len(own) < max(wrong, right):
            own.append(row)
    good = kinds.pop("right", [])[:right]
    mixed = (row for at in range(wrong) for rows in kinds.values() for row in rows[at : at + 1])
    return [*islice(mixed, wrong), *good]


# ---- words


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def size(count: float) -> str:
    """Bytes for people, in powers of 1000 as disks are sold."""
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= least:
            return f"{count / least:.3g} {unit}"
    return f"{count:.0f} bytes"
