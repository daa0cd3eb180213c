"""The closed-set verifier against human labels: is an answer that a model wrote right?

    python -m bench.verifier --json     # ../shared/data/verifier/tcmbench_answers.jsonl, or $DANLU_VERIFIER
    python -m bench.verifier --data answers.jsonl --misses

Data: TCMBench's rows, {query, answer_list, QWA, response, label}: a question with options, its gold as a sentence, what
a model answered, and whether people found that wrong (1) or right (0). The gold letter is found from QWA (see `gold`);
rows without options or without a clear gold count as errors of ours unless people found them wrong.

`accuracy`: the outcome `right` against label 0, for every row. `auc`: the chance that a right answer is graded above a
wrong one (`verify.graded`; ties count half). `theirs` is the usual extraction: the last capital letter that stands
alone. Goals: AUC 0.93, accuracy 0.92. `misses` lists the disagreements by kind; labels are people's, some of them err.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import time
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

from bench.common import arguments, machine, tell
from danlu.data.cells import BadRow
from danlu.data.choices import options_of
from danlu.records import Completion, Sample, Score
from danlu.rewards.verify import graded, verify

PLACE = Path(__file__).resolve().parents[2] / "shared" / "data" / "verifier" / "tcmbench_answers.jsonl"
GOALS = {"auc": 0.93, "accuracy": 0.92}
BLANK = re.compile(r"[（(]\s*[）)]")
Row = dict[str, Any]


def options(row: Row) -> dict[str, str]:
    """Letter -> text; empty where the row has no options."""
    try:
        return options_of(row["answer_list"].replace("．", ". "))[0]
    except BadRow:
        return {}


def gold(row: Row, found: dict[str, str]) -> str | None:
    """The letter of the option that QWA names as the gold; None where it names none or several.

    The option that fills the question's blank exactly; the one that QWA holds and the question does not (the longest,
    where one holds another; "除X外", "X是错误的" where it holds several); the one that fills the blank most alike.
    """
    told, asked = letters(row["QWA"]), letters(row["query"])
    parts = [*BLANK.split(row["query"], maxsplit=1), ""][:2]
    filled = {letter: letters(parts[0] + text + parts[1]) for letter, text in found.items()}
    exact = [letter for letter in found if filled[letter] == told]
    if len(exact) == 1:
        return exact[0]
    flat = {letter: letters(text) for letter, text in found.items()}
    held = [letter for letter in found if flat[letter] and told.count(flat[letter]) > asked.count(flat[letter])]
    held = [x for x in held if not any(flat[x] in flat[y] and flat[x] != flat[y] for y in held)]
    named = [x for x in held if f"除{flat[x]}外" in told or f"{flat[x]}是错误" in told] if len(held) > 1 else held
    if len(named) == 1:
        return named[0]
    alike = {x: difflib.SequenceMatcher(None, filled[x], told, autojunk=False).ratio() for x in found}
    best = max(alike, key=lambda x: alike[x], default=None)
    return best if best and not held and alike[best] > 0.8 else None


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text)))


def auc(grades: list[float], right: list[bool]) -> float:
    """The chance that a right one is graded above a wrong one, ties counting half (Mann-Whitney U / (n m))."""
    below: Counter[float] = Counter(g for g, r in zip(grades, right, strict=True) if not r)
    won = sum(
        sum(n for other, n in below.items() if other < g) + below[g] / 2
        for g, r in zip(grades, right, strict=True)
        if r
    )
    return won / (sum(right) * (len(right) - sum(right)))


def last_letter(answer: str, target: str) -> float:
    """1.0 where the last capital letter that stands alone is the gold's."""
    letters = re.findall(r"(?<![A-Za-z])[A-E](?![A-Za-z])", answer)
    return float(bool(letters) and letters[-1] == target)


def verdicts(rows: list[Row]) -> list[tuple[Sample | None, Score]]:
    """The sample that each row makes (None where it has no gold), and the verdict on its answer."""
    found: list[tuple[Sample | None, Score]] = []
    for number, row in enumerate(rows):
        named = options(row)
        letter = gold(row, named)
        if letter is None:
            found.append((None, Score(0.0, "none", None, "the row has no gold")))
            continue
        turn = {"role": "user", "content": row["query"]}
        sample = Sample(str(row.get("index", number)), (turn,), target=letter, options=named)  # type: ignore[arg-type]
        answer = row["response"].strip()
        found.append((sample, verify(sample, Completion(answer, "", answer, "stop", True))))
    return found


def measure(rows: list[Row], misses: bool) -> dict[str, Any]:
    started = time.perf_counter()
    found = verdicts(rows)
    seconds = time.perf_counter() - started
    right = [row["label"] == 0 for row in rows]
    ours = [(score.outcome == "right") == r for (_, score), r in zip(found, right, strict=True)]
    naive = [
        last_letter(row["response"], s.target or "") if s else 0.0 for row, (s, _) in zip(rows, found, strict=True)
    ]
    kinds = Counter(
        f"{score.outcome} ({score.how.split(':')[0]}), label {'right' if r else 'wrong'}"
        for (_, score), r, same in zip(found, right, ours, strict=True)
        if not same
    )
    figures = {
        "accuracy": round(sum(ours) / len(rows), 4),
        "auc": round(auc([graded(score) for _, score in found], right), 4),
        "rows_per_second": round(len(rows) / seconds),
    }
    theirs = {
        "accuracy": round(sum((value == 1.0) == r for value, r in zip(naive, right, strict=True)) / len(rows), 4),
        "auc": round(auc(naive, right), 4),
    }
    result: dict[str, Any] = {
        "name": "verifier",
        "ours": figures,
        "theirs": theirs,
        "ratio": round((1 - theirs["accuracy"]) / max(1 - figures["accuracy"], 1e-9), 2),  # of the errors
        "goal": GOALS,
        "ok": all(figures[name] >= goal for name, goal in GOALS.items()),
        "runs": 1,
        "rows": len(rows),
        "without_gold": sum(sample is None for sample, _ in found),
        "outcomes": dict(Counter(score.outcome for _, score in found)),
        "misses": dict(kinds.most_common()),
        "machine": machine(),
    }
    if misses:
        result["rows_missed"] = [
            {"index": row.get("index"), "gold": s.target if s else None, "extracted": score.extracted, "how": score.how}
            | {"outcome": score.outcome, "label": row["label"], "query": row["query"], "response": row["response"]}
            for row, (s, score), same in zip(rows, found, ours, strict=True)
            if not same
        ]
    return result


def main() -> None:
    parser = arguments(__doc__)
    place = Path(os.environ.get("DANLU_VERIFIER", PLACE))
    parser.add_argument("--data", type=Path, default=place, help="a .jsonl file of labelled answers")
    parser.add_argument("--misses", action="store_true", help="list the rows on which the label disagrees")
    options = parser.parse_args()
    if not options.data.is_file():
        raise SystemExit(f"skipped: no labelled answers at {options.data}; give --data FILE or set DANLU_VERIFIER")
    rows = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines() if line.strip()]
    tell(measure(rows[: 100 if options.quick else None], options.misses), options.json)


if __name__ == "__main__":
    main()
