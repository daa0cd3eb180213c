"""An evaluation that is killed goes on where it was: no question twice, none missing, the same report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from danlu.run import read_json, read_jsonl


def command(name: str, bench: Path, *more: str) -> list[str]:
    settings = ["--set", "eval.max_tokens=48", "--set", "eval.batch=2", "--display", "none"]
    danlu = str(Path(sys.executable).with_name("danlu"))
    return [danlu, "eval", "tiny", "--bench", str(bench), "--name", name, *settings, *more]


@pytest.mark.slow
def test_kill_9_and_resume(runs: Path, tmp_path: Path):
    bench = tmp_path / "quiz.jsonl"
    rows = [
        {
            "id": f"q{n}",
            "question": f"{n} 天发热，咳嗽，是什么病？",
            "options": {"A": "肺炎", "B": "感冒"},
            "answer": "A",
        }
        for n in range(60)
    ]
    bench.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    environment = {**os.environ, "DANLU_RUNS": str(runs), "OMP_WAIT_POLICY": "PASSIVE"}
    samples = runs / "killed" / "samples.jsonl"
    started = subprocess.Popen(command("killed", bench), env=environment)
    until = time.monotonic() + 120
    while (not samples.exists() or samples.read_bytes().count(b"\n") < 6) and time.monotonic() < until:
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    before = read_jsonl(samples)
    assert 0 < len(before) < 60
    subprocess.run(command("killed", bench, "--resume"), env=environment, check=True, capture_output=True)
    after = read_jsonl(samples)
    assert after[: len(before)] == before
    assert sorted(row["id"] for row in after) == sorted(row["id"] for row in rows)
    subprocess.run(command("whole", bench), env=environment, check=True, capture_output=True)
    reports = [read_json(runs / name / "artifact" / "report.json") for name in ("killed", "whole")]
    assert reports[0] == reports[1]
