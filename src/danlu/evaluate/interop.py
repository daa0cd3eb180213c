"""The answers of a finished evaluation as the logs of another tool, for viewers and tables that read those.

    RUN/logs/lm-eval/MODEL/results_TIME.json, samples_TASK_TIME.jsonl    lm-evaluation-harness 0.4.9 and later
    RUN/logs/evalscope/{reports,reviews}/MODEL/...                       EvalScope 1.11 (report schema 2)

Formats: the sample and result schemas of lm_eval 0.4.13 (lm_eval/result_schema.py, loggers/evaluation_tracker.py);
EvalScope's api/evaluator/cache.py, api/metric/scorer.py and report/report.py, and a report written by EvalScope 1.11.1.
A log folder is staged and renamed; rows are streamed, in the order in which they were answered.

Departures. A document's number is its place among the sorted ids, since a run does not keep the order of its source.
The verdict is ours (the extracted letters or wording as the filtered response), not that of the other tool's task.
A question that the source has no gold for stays in, with an empty target, and so does an answer that failed: both count
as wrong here, where EvalScope would leave them out. Other orders of the options are tasks of their own, NAME+orderN.
Not covered: the prompt as the chat template rendered it (the chat is logged instead), earlier turns of a question,
the log-likelihood of each option (mode loglikelihood is logged as the letter it chose), EvalScope's predictions/ and
configs/, and reading the logs of others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from danlu.errors import DanluError
from danlu.evaluate.items import Item, messages_of
from danlu.evaluate.score import Row, sample_of
from danlu.records import Message
from danlu.run import Run, iter_jsonl, read_json, write_json

INVALID = "[invalid]"  # what lm-eval's extracting filters say where they found nothing
FILTER = "danlu"


@dataclass(frozen=True, slots=True)
class _About:
    """What every log says of the run it came from."""

    info: dict[str, Any]
    report: dict[str, Any]
    settings: dict[str, Any]  # the recipe's section eval
    model: str

    @property
    def folder(self) -> str:
        """The model's name as part of a path."""
        return re.sub(r"[\"<>:/|\\?*\[\]\s]+", "__", self.model).strip(".") or "model"


@dataclass(frozen=True, slots=True)
class _Question:
    """One question in one mode and one order of its options, with its answers."""

    task: str
    number: int  # place among the sorted ids of the task
    rows: list[Row]

    @property
    def right(self) -> float:
        return sum(row["outcome"] == "right" for row in self.rows) / len(self.rows)


def write_logs(run: Run, format_: str) -> Path:
    """Write the logs of the finished evaluation `run` as `format_` does; their folder, RUN/logs/FORMAT.

    DanluError for an unknown format, a run that is no finished evaluation, and answers that do not fit the report.
    """
    writers = {"lm-eval": _lm_eval, "evalscope": _evalscope}
    if format_ not in writers:
        raise DanluError(f"no format {format_!r}", f"formats: {', '.join(writers)}")
    about = _about(run)
    with Run(run.path / "logs").delivering(format_) as staged:
        writers[format_](run, about, staged)
    return run.path / "logs" / format_


def _about(run: Run) -> _About:
    info = run.info()
    if info.get("stage") != "eval":
        raise DanluError(f"{run.path} is no evaluation", f"evaluate it: danlu eval {run.path}")
    missing = [name for name in ("samples.jsonl", "artifact/report.json") if not (run.path / name).is_file()]
    if missing:
        raise DanluError(f"the evaluation {run.path} has no {missing[0]}", "finish it first: danlu eval ... --resume")
    config, report = run.config(), read_json(run.artifact / "report.json")
    model = report.get("generator") or (config.get("model") or {}).get("id") or run.name
    return _About(info, report, config.get("eval") or {}, str(model))


# ---- the answers


def _questions(run: Run) -> Iterator[_Question]:
    """Every question as answered; the rows of one stand together in samples.jsonl."""
    path = run.path / "samples.jsonl"
    ids: dict[str, set[str]] = {}
    for row in iter_jsonl(path):
        ids.setdefault(_task(row), set()).add(row["id"])
    numbers = {task: {name: i for i, name in enumerate(sorted(own))} for task, own in ids.items()}
    for (task, name), rows in groupby(iter_jsonl(path), lambda row: (_task(row), row["id"])):
        yield _Question(task, numbers[task][name], list(rows))


def _task(row: Row) -> str:
    return f"{row['benchmark']}+order{row['shuffle']}" if row.get("shuffle") else str(row["benchmark"])


def _file(name: str) -> str:
    """A task's or subset's name as part of a file name."""
    return re.sub(r"[^\w.@+-]+", "_", name)


def _chat(row: Row, about: _About) -> tuple[Message, ...]:
    """The chat that was asked, without turns before the question."""
    if row.get("unscorable"):
        return ({"role": "user", "content": str(row["question"])},)
    item = Item(row["benchmark"], row.get("mode", "think"), sample_of(row))
    return messages_of(item, about.settings.get("system"))


def _document(row: Row) -> Row:
    names = ("id", "question", "target", "options", "aliases", "distractors", "task", "split", "subject", "language")
    return {name: row[name] for name in names if row.get(name) is not None}


def _check(about: _About, found: dict[str, float]) -> None:
    """DanluError where the answers do not add up to the accuracies of the report."""
    for entry in about.report["benchmarks"]:
        if not math.isclose(found.get(entry["name"], -1.0), entry["accuracy"], abs_tol=1e-9):
            raise DanluError(
                f"the answers to {entry['name']} do not fit the report of the run", "score them again: --rescore"
            )


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class _Files:
    """Files of a folder by name, opened when first written to."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack, self._open = stack, dict[Path, TextIO]()

    def add(self, path: Path, row: Row) -> None:
        if path not in self._open:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w", encoding="utf-8", errors="surrogatepass")
            self._open[path] = self._stack.enter_context(file)
        self._open[path].write(_dumped(row) + "\n")


# ---- lm-evaluation-harness


@dataclass(slots=True)
class _Tally:
    """What a results file says of a task, added up question by question."""

    metric: str
    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    hashes: Any = field(default_factory=hashlib.sha256)

    def add(self, right: float, sample: Row) -> None:
        self.n, self.total, self.squares = self.n + 1, self.total + right, self.squares + right * right
        self.hashes.update((sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"]).encode())

    @property
    def mean(self) -> float:
        return self.total / self.n

    @property
    def error(self) -> float | str:
        """Standard error of the mean, with n - 1 as there."""
        if self.n < 2:
            return "N/A"
        return math.sqrt(max(0.0, (self.squares - self.n * self.mean**2) / (self.n - 1)) / self.n)


def _lm_eval(run: Run, about: _About, staged: Path) -> None:
    stamp = datetime.fromtimestamp(about.info["created"]).isoformat().replace(":", "-")
    folder = staged / about.folder
    folder.mkdir()
    tallies: dict[str, _Tally] = {}
    with contextlib.ExitStack() as stack:
        files = _Files(stack)
        for question in _questions(run):
            sample = _lm_eval_sample(question, about)
            files.add(folder / f"samples_{_file(question.task)}_{stamp}.jsonl", sample)
            tallies.setdefault(question.task, _Tally(sample["metrics"][0])).add(question.right, sample)
    _check(about, {task: tally.mean for task, tally in tallies.items()})
    write_json(folder / f"results_{stamp}.json", _lm_eval_results(about, tallies))


def _lm_eval_sample(question: _Question, about: _About) -> Row:
    first = question.rows[0]
    chosen = first["benchmark"].endswith("@loglikelihood")
    metric = "acc" if chosen else "exact_match"
    document, target = _document(first), str(first["target"] or "")
    prompt = _dumped(_chat(first, about))
    extracted = [row["extracted"] or INVALID for row in question.rows]
    return {
        "doc_id": question.number,
        "doc": document,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": _gen_kwargs(about, 1 if chosen else None)}},
        "resps": [[row["output"] for row in question.rows]],
        "filtered_resps": [extracted if len(extracted) > 1 else extracted[0]],
        "filter": FILTER,
        "metrics": [metric],
        "doc_hash": _sha(json.dumps(document, indent=2, ensure_ascii=False)),
        "prompt_hash": _sha(prompt),
        "target_hash": _sha(target),
        metric: question.right,
    }


def _gen_kwargs(about: _About, tokens: int | None = None) -> dict[str, Any]:
    settings = about.settings
    temperature = settings.get("temperature", 0.0)
    return {
        "until": [],
        "max_gen_toks": tokens or settings.get("max_tokens"),
        "do_sample": temperature > 0,
        "temperature": temperature,
        "top_p": settings.get("top_p", 1.0),
    }


def _lm_eval_results(about: _About, tallies: dict[str, _Tally]) -> dict[str, Any]:
    info, system = about.info, about.settings.get("system")
    seed = about.settings.get("seed", 0)
    return {
        "results": {
            name: {
                "name": name,
                "alias": name,
                "sample_len": tally.n,
                f"{tally.metric},{FILTER}": tally.mean,
                f"{tally.metric}_stderr,{FILTER}": tally.error,
            }
            for name, tally in tallies.items()
        },
        "group_subtasks": {name: [] for name in tallies},
        "configs": {
            name: {
                "task": name,
                "output_type": "generate_until",
                "num_fewshot": 0,
                "metric_list": [{"metric": tally.metric, "aggregation": "mean", "higher_is_better": True}],
                "repeats": about.settings.get("samples", 1),
                "metadata": {"verifier": about.report.get("settings", {}).get("verifier")},
            }
            for name, tally in tallies.items()
        },
        "versions": {name: about.report.get("settings", {}).get("verifier") for name in tallies},
        "n-shot": {name: 0 for name in tallies},
        "higher_is_better": {name: {tally.metric: True} for name, tally in tallies.items()},
        "n-samples": {name: {"original": tally.n, "effective": tally.n} for name, tally in tallies.items()},
        "config": {
            "model": "danlu",
            "model_args": {"pretrained": about.model},
            "batch_size": str(about.settings.get("batch", "")),
            "device": info.get("hardware", {}).get("cuda", "cpu"),
            "gen_kwargs": _gen_kwargs(about),
            **{f"{name}_seed": seed for name in ("random", "numpy", "torch", "fewshot")},
        },
        "git_hash": (info.get("git") or {}).get("commit"),
        "date": info["created"],
        "transformers_version": info.get("packages", {}).get("transformers"),
        "danlu_version": info.get("packages", {}).get("danlu"),
        "task_hashes": {name: tally.hashes.hexdigest() for name, tally in tallies.items()},
        "model_source": "danlu",
        "model_name": about.model,
        "model_name_sanitized": about.folder,
        "system_instruction": system,
        "system_instruction_sha": _sha(system) if system else None,
        "fewshot_as_multiturn": False,
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": str(info.get("seconds", "")),
    }


# ---- EvalScope


@dataclass(slots=True)
class _Subset:
    n: int = 0
    answers: int = 0
    right: float = 0.0
    errored: int = 0


def _evalscope(run: Run, about: _About, staged: Path) -> None:
    subsets: dict[str, dict[str, _Subset]] = {}
    with contextlib.ExitStack() as stack:
        files = _Files(stack)
        for question in _questions(run):
            first = question.rows[0]
            name = _file(str(first.get("subject") or first.get("task") or "default"))
            subset = subsets.setdefault(question.task, {}).setdefault(name, _Subset())
            path = staged / "reviews" / about.folder / f"{_file(question.task)}_{name}.jsonl"
            for row in question.rows:
                files.add(path, _review(question, row, subset.answers, about))
                subset.answers += 1
            subset.n += 1
            subset.right += question.right
            subset.errored += any(row["finish"] == "error" for row in question.rows)
    _check(about, {task: _mean(own.values()) for task, own in subsets.items()})
    folder = staged / "reports" / about.folder
    folder.mkdir(parents=True)
    for task, own in subsets.items():
        write_json(folder / f"{_file(task)}.json", _evalscope_report(about, _file(task), own))


def _mean(subsets: Iterable[_Subset]) -> float:
    own = list(subsets)
    return sum(subset.right for subset in own) / sum(subset.n for subset in own)


def _review(question: _Question, row: Row, index: int, about: _About) -> Row:
    def turn(number: int, role: str, content: str, source: str | None, **more: Any) -> Row:
        name = _sha(f"{question.task} {row['id']} {row['index']} {number}")[:8]
        empty = {"metadata": None, "internal": None, "perf_metrics": None}
        return {"id": name, "content": content, "source": source, **empty, "role": role, **more}

    chat = _chat(row, about)
    asked = [
        turn(i, one["role"], one["content"], None, **({"tool_call_id": None} if one["role"] == "user" else {}))
        for i, one in enumerate(chat)
    ]
    wrote = turn(len(chat), "assistant", row["output"], "generate", tool_calls=None, model=about.model)
    document = _document(row)
    return {
        "index": index,
        "target": str(row["target"] or ""),
        "messages": [*asked, wrote],
        "trajectory": [],
        "sample_score": {
            "score": {
                "value": {"accuracy": float(row["outcome"] == "right")},
                "extracted_prediction": row["extracted"] or "",
                "prediction": row["output"],
                "explanation": row["how"],
                "metadata": {"outcome": row["outcome"], "finish": row["finish"]},
                "main_score_name": "accuracy",
            },
            "sample_id": index,
            "group_id": question.number,
            "sample_metadata": {name: value for name, value in document.items() if name not in ("question", "target")},
        },
    }


def _evalscope_report(about: _About, task: str, subsets: dict[str, _Subset]) -> dict[str, Any]:
    n, errored = sum(one.n for one in subsets.values()), sum(one.errored for one in subsets.values())
    identity: dict[str, Any] = {"name": "accuracy", "aggregation": "mean", "dimensions": {}}
    scores = {
        "num": n,
        "score": round(_mean(subsets.values()), 4),
        "macro_score": round(sum(_mean([one]) for one in subsets.values()) / len(subsets), 4),
    }
    parts = [
        {"name": name, "score": round(_mean([one]), 4), "num": one.n, "is_aggregate": False}
        for name, one in subsets.items()
    ]
    counts = {
        name: {"requested": one.n, "succeeded": one.n - one.errored, "errored": one.errored}
        for name, one in subsets.items()
    }
    return {
        "schema_version": 2,
        "name": f"{about.folder}@{task}",
        "dataset_name": task,
        "dataset_pretty_name": task,
        "dataset_description": "",
        "model_name": about.folder,
        "metrics": [
            {
                "identity": identity,
                "legacy_name": None,
                **scores,
                "categories": [{"name": ["default"], **scores, "subsets": parts}],
                "semantics": {
                    "semantic_id": "quality.accuracy.ratio",
                    "metric_name": "Accuracy",
                    "display_name": None,
                    "kind": "quality",
                    "direction": "higher_is_better",
                    "raw_unit": None,
                    "value_range": {"min": 0.0, "max": 1.0},
                    "display_kind": "percent",
                    "display_multiplier": 100.0,
                    "display_unit": "%",
                    "display_precision": 1,
                },
            }
        ],
        "analysis": "N/A",
        "perf_metrics": None,
        "primary_metric_identity": identity,
        "primary_metric_unavailable_reason": None,
        "judge_summary": None,
        "execution_summary": {
            "requested": n,
            "succeeded": n - errored,
            "errored": errored,
            "incomplete": False,
            "subsets": counts,
        },
        "num": n,
    }
