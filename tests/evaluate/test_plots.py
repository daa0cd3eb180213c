"""Figures: real images of the shape asked for, whatever rows there are."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from danlu.errors import DanluError
from danlu.evaluate import canvas, plots
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
    "course": lambda: plots.course(GRPO),
    "together": lambda: plots.together({"one": SFT, "二": SFT[:20]}, "loss"),
    "differences": lambda: plots.differences(
        [{"name": "临床", "n": 30, "difference": -0.1, "ci": [-0.2, 0.0], "verdict": "worse"}]
    ),
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
    assert canvas.smooth(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    ramp = np.arange(100.0)
    assert canvas.smooth(ramp)[20:80] == pytest.approx(ramp[20:80], abs=1e-9)  # not late
    noise = np.random.default_rng(0).normal(size=400)
    assert canvas.smooth(noise).std() < 0.4 * noise.std()
    assert len(canvas.smooth(np.array([]))) == 0


def test_a_repeated_step_counts_once() -> None:
    steps, values = canvas.series([{"step": 2, "loss": 5.0}, {"step": 1, "loss": 4}, {"step": 2, "loss": 3.0}], "loss")
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
        "sft/plots/course.png",
        "grpo/plots/rewards.png",
        "grpo/plots/course.png",
        "eval/plots/accuracy.png",
    ]
    assert all(path.is_file() and path.with_suffix(".svg").is_file() for path in drawn)
    with pytest.raises(DanluError, match="nothing to draw"):
        plots.plot([Run.create(tmp_path / "empty", "sft", {})])


def test_runs_of_a_kind_are_drawn_together(tmp_path: Path) -> None:
    runs = [Run.create(tmp_path / name, "sft", {}) for name in ("a", "b")]
    for run in runs:
        for row in SFT:
            run.log(row)
    assert tmp_path / "b" / "plots" / "losses.png" in plots.plot(runs)


def test_a_comparison_is_drawn_where_it_lies(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "eval", "eval", {})
    entry = {"name": "quiz", "n": 30, "difference": 0.1, "ci": [0.0, 0.2], "verdict": "better"}
    write_json(run.path / "compare.json", {"benchmarks": [entry]})
    assert [path.name for path in plots.plot([run])] == ["differences.png"]


def test_a_long_run_is_thinned_before_it_is_drawn() -> None:
    steps, values = np.arange(100_000.0), np.random.default_rng(0).normal(size=100_000)
    kept, points = canvas.thinned(steps, values)
    assert len(points) <= canvas.MOST_POINTS
    assert (points.min(), points.max()) == (values.min(), values.max())
    assert (np.diff(kept) > 0).all()
    places, smoothed = canvas.level(steps, values + steps)
    assert len(places) == len(smoothed) == canvas.MOST_POINTS
    assert smoothed[400:600] == pytest.approx(places[400:600], abs=1.0)


def test_chinese_without_a_font_is_spelled_out_in_the_png_and_kept_in_the_svg(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(canvas, "CJK_FONTS", ())
    canvas.cjk_font.cache_clear()
    try:
        run = Run.create(tmp_path / "诊所", "sft", {})
        for row in SFT:
            run.log(row)
        drawn = plots.figures(run)["loss"]
        assert drawn.spelled_out
        assert "诊所" in drawn.svg
        plots.plot([run])
        assert "fonts-noto-cjk" in capsys.readouterr().err
    finally:
        monkeypatch.undo()
        canvas.cjk_font.cache_clear()
    assert canvas.spelled_out("诊断 x") == "U+8BCA U+65AD x"


@pytest.mark.skipif(canvas.cjk_font() is None, reason="no font with Chinese letters is installed")
def test_chinese_is_drawn_with_a_font_that_has_it(recwarn) -> None:
    drawn = plots.loss(SFT, "诊所")
    assert not drawn.spelled_out
    assert not [str(one.message) for one in recwarn if "missing from" in str(one.message)]
