"""Curves that grow, are cut, are long."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from danlu.studio.curves import Metrics, smoothed, thinned


def append(path: Path, *rows: dict[str, object]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_only_new_rows_are_read(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    assert not metrics.refresh()
    append(path, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5, "note": "x", "flag": True})
    assert metrics.refresh()
    assert metrics.curve("loss") == [(1, 2.0), (2, 1.5)]
    assert metrics.keys() == ["loss"]
    assert not metrics.refresh()
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    metrics.refresh()
    assert len(metrics) == 2
    with path.open("a") as file:
        file.write('ss": 1.0}\n')
    assert metrics.refresh()
    assert metrics.curve("loss")[-1] == (3, 1.0)


def test_repeated_steps_count_once_and_a_cut_file_is_read_again(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    append(path, *({"step": i, "loss": float(i)} for i in range(1, 6)))
    metrics = Metrics(path)
    metrics.refresh()
    append(path, {"step": 3, "loss": 30.0}, {"step": 4, "loss": 40.0})
    metrics.refresh()
    assert metrics.curve("loss") == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    version = metrics.version
    path.write_text(json.dumps({"step": 1, "loss": 9.0}) + "\n")
    assert metrics.refresh()
    assert metrics.version > version
    assert metrics.curve("loss") == [(1, 9.0)]


def test_axes(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    times = {"forward_seconds": 1.0, "backward_seconds": 0.5, "optimizer_seconds": 0.5}
    append(path, {"step": 1, "loss": 1.0, "tokens": 100, **times}, {"step": 2, "loss": 1.0, "tokens": 250, **times})
    append(path, {"step": 2, "eval_loss": 0.5})
    metrics = Metrics(path)
    metrics.refresh()
    assert metrics.curve("loss", "tokens") == [(100, 1.0), (250, 1.0)]
    assert metrics.curve("loss", "seconds") == [(2, 1.0), (4, 1.0)]
    assert metrics.curve("eval_loss", "seconds") == [(4, 0.5)]
    assert metrics.seconds_left(10) == pytest.approx(16)
    assert metrics.seconds_left(None) is None
    assert metrics.best("eval_loss", largest=False) == (2, 0.5)
    grpo = tmp_path / "grpo.jsonl"
    row = {"rollout_seconds": 2.0, "reward_seconds": 1.0, "update_seconds": 1.0, "rollout_tokens_per_second": 50.0}
    append(grpo, {"step": 1, "reward": 0.1, **row}, {"step": 2, "reward": 0.2, **row})
    metrics = Metrics(grpo)
    metrics.refresh()
    assert metrics.curve("reward", "tokens") == [(100, 0.1), (200, 0.2)]
    assert metrics.curve("reward", "seconds") == [(4, 0.1), (8, 0.2)]


def test_not_finite_values_are_left_out(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    append(path, {"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": float("inf")})
    metrics = Metrics(path)
    metrics.refresh()
    assert metrics.curve("loss") == [(2, 1.0)]
    assert metrics.best("loss", largest=True) == (2, 1.0)
    assert metrics.curve("nothing") == []


def test_a_hundred_thousand_rows_are_thinned_and_keep_their_spike(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    values = np.sin(np.arange(100_000) / 3000)
    values[54_321] = 50.0
    with path.open("w") as file:
        file.writelines(f'{{"step": {i}, "loss": {v:.6f}, "lr": 0.1}}\n' for i, v in enumerate(values))
    metrics = Metrics(path)
    metrics.refresh()
    started = time.process_time()
    points = metrics.curve("loss")
    smooth = metrics.curve("loss", smoothing=0.05)
    assert time.process_time() - started < 1
    assert len(points) <= 2000
    assert len(smooth) <= 2000
    assert (54_321, 50.0) in points
    assert points[0][0] == 0
    assert points[-1][0] == 99_999
    assert max(y for _, y in smooth) < 1.1
    append(path, {"step": 100_000, "loss": 0.5})
    started = time.process_time()
    assert metrics.refresh()
    assert time.process_time() - started < 0.1  # one row, not all of them


def test_smoothing_is_a_mean_that_does_not_lag():
    assert smoothed(np.ones(50), 0.3) == pytest.approx(np.ones(50))
    straight = np.arange(100.0)
    assert smoothed(straight, 0.5) == pytest.approx(straight)
    step = np.repeat([0.0, 1.0], 50)
    found = smoothed(step, 0.2)
    assert found[49] + found[50] == pytest.approx(1)  # as much before as after
    assert np.all(np.diff(found) >= -1e-12)
    assert smoothed(np.array([1.0]), 0.5) == pytest.approx([1.0])


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_thinning_keeps_ends_and_extremes(count: int):
    values = np.random.default_rng(0).normal(size=count)
    kept = thinned(values, 8)
    assert len(kept) <= 8
    assert list(kept) == sorted(set(kept))
    if count:
        assert {0, count - 1} <= set(kept)
        assert values[kept].max() == values.max()
        assert values[kept].min() == values.min()
