"""Decoding by recorded steps. Without CUDA the recorder is the work itself: shapes, rows and masks are the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from danlu.generate import Sampling, graphs, native
from danlu.generate import decode as decoding
from danlu.generate.graphs import Graphs, on_cuda, rounded
from danlu.generate.weights import snapshot
from tiny_models import VOCABULARY, build

PROMPTS = [random.Random(n).choices(range(VOCABULARY), k=length) for n, length in enumerate([3, 30, 7, 90, 118, 125])]
ENDS = list(range(0, VOCABULARY, 24))
Work = Callable[[], Tensor]


@pytest.fixture(autouse=True, scope="module")
def by_torch() -> Iterator[None]:
    """As on CUDA."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model, _ = build(tmp_path_factory.mktemp("graphs"), "qwen3")
    torch.manual_seed(4)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 2 and "layers" in name:
                value.mul_(4)
    return snapshot(model.eval())


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(graphs.display, "warn", found.append)
    monkeypatch.setattr(graphs, "_told", set())
    return found


def written(weights: Any, sampling: Sampling, rows: int) -> list[list[list[int]]]:
    found = dict(decoding.decode(weights, PROMPTS, sampling, end_ids=ENDS, rows=rows))
    return [[one.tokens for one in found[place]] for place in range(len(PROMPTS))]


def by(record: graphs.Record) -> Any:
    return lambda w, cache, tokens, positions: Graphs(w, cache, tokens, positions, record)


@pytest.mark.parametrize("sampling", [Sampling(24), Sampling(24, temperature=1.0, samples=2, seed=3)])
def test_recorded_steps_write_the_same(
    weights: Any, sampling: Sampling, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[torch.Size] = []

    def record(work: Work) -> Work:
        shapes.append(work().shape)
        return work

    monkeypatch.setattr(decoding, "APART", 1 << 60)  # prompts in the rows, as on CUDA
    wanted = {rows: written(weights, sampling, rows) for rows in (1, 5, 12)}
    monkeypatch.setattr(decoding, "graphs_of", by(record))
    monkeypatch.setattr(graphs, "AGAIN", 2)
    for rows, texts in wanted.items():
        assert written(weights, sampling, rows) == texts
    assert not told
    assert len(set(shapes)) > 2  # rows end, fewer are computed
    assert all(shape[1] == weights.vocabulary for shape in shapes)


def test_a_shape_is_recorded_when_it_comes_again(weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = 0

    def record(work: Work) -> Work:
        def replay() -> Tensor:
            nonlocal replays
            replays += 1
            return work()

        return replay

    monkeypatch.setattr(decoding, "graphs_of", by(record))
    decode = decoding.decode(weights, [PROMPTS[0]], Sampling(20), end_ids=())
    ((_, (one,)),) = decode
    assert len(one.tokens) == 20
    assert replays == (20 - 1) - (graphs.AGAIN - 1) + 1  # every step but the first ones, and once to be checked


def test_what_cannot_be_recorded_runs_as_it_is(weights: Any, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Work) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing")

    wanted = written(weights, Sampling(24), 4)
    monkeypatch.setattr(decoding, "graphs_of", by(refuse))
    assert written(weights, Sampling(24), 4) == wanted
    assert written(weights, Sampling(24), 4) == wanted
    assert len(told) == 1
    assert "not permitted when stream is capturing" in told[0]


def test_a_graph_with_other_numbers_is_not_used(weights: Any, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = written(weights, Sampling(24), 4)
    for wrong in (lambda found: found + 1, lambda found: found * float("nan")):
        graphs._told.clear()
        monkeypatch.setattr(decoding, "graphs_of", by(lambda work, wrong=wrong: lambda: wrong(work())))
        assert written(weights, Sampling(24), 4) == wanted
        assert "gave other numbers" in told.pop()
    assert not told


def test_memory_that_runs_out_is_no_failure_of_the_graph(
    weights: Any, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(work: Work) -> Work:
        if len(work()) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work

    wanted = written(weights, Sampling(24), 4)
    monkeypatch.setattr(decoding, "graphs_of", by(record))
    monkeypatch.setattr(decoding.display, "warn", lambda _: None)
    assert written(weights, Sampling(24), 4) == wanted
    assert not told


def test_rows_are_rounded_up() -> None:
    assert [rounded(n, 40) for n in (1, 2, 3, 4, 5, 6, 7, 9, 13, 17, 25, 33)] == [
        1,
        2,
        3,
        4,
        6,
        6,
        8,
        12,
        16,
        24,
        32,
        40,
    ]
    assert all(n <= rounded(n, 512) <= max(n + 1, 3 * n // 2) for n in range(1, 512))


def test_there_are_none_without_cuda(weights: Any) -> None:
    batch = decoding.Batch(weights, (4, 8, 8), Sampling(8), ENDS)
    assert batch.graphs is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda(told: list[str], tmp_path: Any) -> None:
    model, _ = build(tmp_path, "qwen3")
    weights = snapshot(model.eval().cuda())
    with_graphs = written(weights, Sampling(24), 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "graphs_of", lambda *_: None)
        assert written(weights, Sampling(24), 4) == with_graphs
    assert not told
    assert callable(on_cuda())
