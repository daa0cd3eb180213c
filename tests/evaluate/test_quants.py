"""The cost of quantization from evaluation runs: paired figures against the source, verdicts, and the drawing."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.errors import DanluError
from danlu.evaluate import stats
from danlu.evaluate.canvas import save
from danlu.evaluate.quants import Side, quant_plot, quantizations
from danlu.run import write_jsonl

N = 200


def side(folder: Path, name: str, wrong: set[int], n: int = N, **figures: float) -> Side:
    """An evaluation of two benchmarks with the same ids, all right but `wrong` of both."""
    artifact = folder / name / "artifact"
    artifact.mkdir(parents=True)
    rows = [
        {
            "benchmark": benchmark,
            "id": f"q{i}",
            "index": 0,
            "outcome": "wrong" if i in wrong else "right",
            "finish": "stop",
            "well_formed": True,
        }
        for benchmark in ("a", "b")
        for i in range(n)
    ]
    write_jsonl(artifact / "scores.jsonl", rows)
    return Side(name, folder / name, int(figures.get("size", 1e6)), figures.get("speed"))


def test_files_are_paired_with_the_source(tmp_path: Path) -> None:
    source = side(tmp_path, "source", set(range(20)), size=8e6)
    same = side(tmp_path, "q8_0", set(range(20)), size=4e6, speed=30)
    worse = side(tmp_path, "q4_0", set(range(5, 50)), size=2e6, speed=50)
    found = quantizations(source, [same, worse])
    assert found["n"] == 2 * N
    first, second, third = found["sides"]
    assert first["accuracy"] == pytest.approx(0.9)
    assert "difference" not in first
    assert (second["difference"], second["verdict"]) == (0.0, "no difference shown")
    assert second["difference_ci"][0] < 0 < second["difference_ci"][1]
    assert third["difference"] == pytest.approx(-0.125)
    assert (third["gained"], third["lost"], third["verdict"]) == (10, 60, "worse")
    assert third["difference_ci"] == pytest.approx(list(stats.tango(10, 60, 2 * N)))
    assert third["p"] == pytest.approx(stats.mcnemar(10, 60))
    assert third["p_adjusted"] == pytest.approx(2 * stats.mcnemar(10, 60))
    assert (third["bytes"], third["tokens_per_second"]) == (2_000_000, 50)


def test_sides_that_were_asked_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DanluError, match="q8_0 was not asked the same questions as source"):
        quantizations(side(tmp_path, "source", set()), [side(tmp_path, "q8_0", set(), n=N - 1)])


def test_the_drawing(tmp_path: Path) -> None:
    source = side(tmp_path, "source", set(range(20)), size=8e9)
    files = [
        side(tmp_path, "f16", set(range(20)), size=8e9, speed=12),
        side(tmp_path, "q8_0", set(range(21)), size=4.3e9, speed=21),
        side(tmp_path, "q5_0", set(range(3, 24)), size=3.0e9, speed=27),
        side(tmp_path, "q4_0", set(range(5, 50)), size=2.4e9, speed=33),
    ]
    picture = quant_plot(quantizations(source, files), "Quantizations of mine: clinic")
    png = save(picture, tmp_path / "quants")
    assert png.read_bytes()[:4] == b"\x89PNG"
    svg = (tmp_path / "quants.svg").read_text()
    assert "<svg" in svg
