"""Figures: real images of the shape asked for, whatever rows there are."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from danlu.errors import DanluError
from danlu.evaluate import plots
from danlu.run import Run, write_json

SFT = [{"step": s, "loss": 2 / s, "lr": 1e-3} for s in range(1, 41)] + [
    {"step": s, "eval_loss": 1 / s} for s in (20, 40)
]
GRPO: list[dict[str, Any]] = [
    {"step": s, "reward": s / 40, "rewards/answer": s / 50, "rewards/think_format": 0.9, "completion_length": 80.0}
    | {"truncated": 0.02, "kl": 0.01}
    for s in range(1, 31)
] + [{"step": 10, "eval_accuracy": 0.4}]
ENTRY = {
    "n": 300,
    "accuracy": 0.5,
    "ci": [0.44, 0.56],
    "tasks": [{"name": name, "n": 150, "accuracy": 0.5, "ci": [0.4, 0.6]} for name in ("diagnosis", "诊断 $x$")],
    "splits": [{"name": name, "n": 150, "accuracy": 1.0, "ci": [0.97, 1.0]} for name in ("seen", "unseen")],
}
FIGURES = {
    "loss": lambda: plots.loss(SFT),
    "loss of one step": lambda: plots.loss([{"step": 1, "loss": 2.0}]),
    "loss without eval, with a nan": lambda: plots.loss(
        [{"step": s, "loss": v} for s, v in ((1, 2.0), (2, float("nan")))]
    ),
    "only eval loss": lambda: plots.loss([{"step": 3, "eval_loss": 1.0}]),
    "nothing": lambda: plots.loss([]),
    "rewards": lambda: plots.rewards(GRPO, "运行 <a> $1"),
    "rewards of one step": lambda: plots.rewards(GRPO[:1]),
    "no rewards": lambda: plots.rewards([]),
    "accuracy": lambda: plots.accuracy({"base": ENTRY, "SFT": ENTRY, "GRPO": ENTRY}),
    "accuracy alone": lambda: plots.accuracy({"base": {"n": 1, "accuracy": 0.0, "ci": [0.0, 1.0]}}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws(name: str) -> None:
    picture = FIGURES[name]()
    assert picture.png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture.png[16:24])
    assert 900 <= width <= 1600
    assert 350 <= height <= 1100
    assert "<svg" in picture.svg


def test_figures_repeat_exactly() -> None:
    assert plots.loss(SFT) == plots.loss(SFT)


def test_smoothing_keeps_levels_and_lengths() -> None:
    assert plots.smooth(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    ramp = np.arange(100.0)
    assert plots.smooth(ramp)[20:80] == pytest.approx(ramp[20:80], abs=1e-9)  # not late
    noise = np.random.default_rng(0).normal(size=400)
    assert plots.smooth(noise).std() < 0.4 * noise.std()
    assert len(plots.smooth(np.array([]))) == 0


def test_a_repeated_step_counts_once() -> None:
    steps, values = plots._series([{"step": 2, "loss": 5.0}, {"step": 1, "loss": 4}, {"step": 2, "loss": 3.0}], "loss")
    assert steps.tolist() == [1, 2]
    assert values.tolist() == [4, 3]


def test_plot_writes_beside_the_runs(tmp_path: Path) -> None:
    sft, grpo, evaluated = (Run.create(tmp_path / name, name, {}) for name in ("sft", "grpo", "eval"))
    for row in SFT:
        sft.log(row)
    for row in GRPO:
        grpo.log(row)
    with evaluated.delivering() as staged:
        write_json(staged / "report.json", {"benchmarks": [{"name": "quiz", **ENTRY}]})
    drawn = plots.plot([sft, grpo, evaluated])
    assert [path.relative_to(tmp_path).as_posix() for path in drawn] == [
        "sft/plots/loss.png",
        "grpo/plots/rewards.png",
        "eval/plots/accuracy.png",
    ]
    assert all(path.is_file() and path.with_suffix(".svg").is_file() for path in drawn)
    with pytest.raises(DanluError, match="nothing to draw"):
        plots.plot([Run.create(tmp_path / "empty", "sft", {})])
