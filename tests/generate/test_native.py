"""Decoding in C against torch's: products, steps of every kind of model, and machines on which it cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import danlu.native as built
from danlu.generate import Sampling, native, weights
from danlu.generate.decode import decode
from danlu.generate.forward import cache_of, prefill, shared_of, step
from danlu.generate.weights import Matrix, Origin, snapshot
from tiny_models import VOCABULARY, build

pytestmark = pytest.mark.skipif(built.library() is None, reason="no C compiler")
WIDTH = built.library().danlu_width() if built.library() else 16


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("half", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("rank", [0, 5])
@pytest.mark.parametrize(("outputs", "inputs"), [(WIDTH, 16), (5, 48), (3 * WIDTH + 7, 32), (200, 7)])
def test_products_of_any_size(outputs: int, inputs: int, rank: int, half: bool) -> None:
    """Against fp64; all numbers of rows, which go through tiles of different heights."""
    whole, bias = random(outputs, inputs, seed=1), random(outputs, seed=2)
    whole = whole.bfloat16().float() if half else whole
    low, high = (random(inputs, rank, seed=3), random(rank, outputs, seed=4)) if rank else (None, None)
    part = native.panels(whole)
    assert part.dtype == (torch.bfloat16 if half else torch.float32)
    held = native.padded(low, high) if low is not None and high is not None else (None, None)
    matrix = Matrix("panels", outputs, (part,), bias, *held, Origin((), (), ()))
    for rows in range(1, 45):
        x = random(rows, inputs, seed=rows)
        wanted = x.double() @ whole.double().t() + bias.double()
        if low is not None and high is not None:
            wanted += x.double() @ low.double() @ high.double()
        torch.testing.assert_close(matrix(x).double(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    assert torch.equal(matrix(x.repeat(1, 2)[:, :inputs]), matrix(x))  # rows that are not dense


def weights_of(folder: Path, architecture: str, half: bool = False) -> tuple[Any, Any]:
    """Weights of a model with an adapter, (in C, by torch)."""
    from peft import LoraConfig, get_peft_model

    model, _ = build(folder, architecture, "llama3" if architecture == "llama" else "chatml")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.uniform_(0.5, 1.5) if "norm" in name else value.mul_(4)
            if half:
                value.copy_(value.bfloat16())
    model = get_peft_model(model, LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    ours = snapshot(model.eval(), adapters="apart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        theirs = snapshot(model, adapters="apart")
    assert native.serves(ours)
    assert not native.serves(theirs)
    return ours, theirs


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("half", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("apart", [True, False], ids=["prompts apart", "prompts in rows"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_steps_are_torchs(tmp_path: Path, architecture: str, apart: bool, half: bool, threads: int) -> None:
    """Prompts of different lengths, rows of different ages, groups of three."""
    ours, theirs = weights_of(tmp_path, architecture, half)
    if half:
        assert ours.layers[0].qkv.parts[0].dtype == torch.bfloat16
    prompts = [list(range(3, 3 + length)) for length in (1, 9, 20)]
    members, rows = 3, 9
    lengths = [len(prompt) for prompt in prompts]
    ends = torch.tensor(lengths).repeat_interleave(members)
    caches, before = [], torch.get_num_threads()
    for w in (ours, theirs):
        cache = cache_of(w, rows, 20, 12, 3 if apart else 0, members)
        prefill(w, cache, prompts, 0)
        caches.append(cache)
    shared = shared_of(theirs, list(range(rows)), members, lengths) if apart else None
    groups = (torch.arange(3).repeat_interleave(members), torch.tensor(lengths)) if apart else None
    made = native.Steps(ours)
    torch.set_num_threads(threads)
    try:
        for number in range(12):
            tokens = torch.tensor([(7 * row + number) % VOCABULARY for row in range(rows)])
            written = torch.full((rows,), number)
            places = written if apart else ends + number
            found = made.hidden(caches[0], tokens, ends + written, places, 32, groups)
            length, masked = int(places.max()) + 1, not apart
            wanted = step(theirs, caches[1], tokens, ends + written, places, length, masked, shared)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*(c.data for c in caches), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_what_a_row_says_does_not_depend_on_the_threads(tmp_path: Path) -> None:
    ours, _ = weights_of(tmp_path, "qwen3")
    sampling, found, before = Sampling(12, temperature=1.0, samples=3, seed=1), [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(dict(decode(ours, [[5, 6, 7], [8, 9]], sampling, end_ids=())))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_what_it_does_not_serve(tmp_path: Path) -> None:
    ours, theirs = weights_of(tmp_path, "qwen2")
    assert not native.serves(theirs)
    assert not native.serves(replace(ours, head_dim=12))
    half = build(tmp_path / "half", "qwen2")[0].bfloat16()
    assert not native.serves(snapshot(half, torch.bfloat16))
    assert not native.serves(snapshot(half, copies=False))


@pytest.mark.parametrize("large", [1, 1 << 20])
@pytest.mark.parametrize("units", [True, False])
def test_what_a_bf16_model_decodes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: bool, large: int) -> None:
    """In fp32, over the bf16 weights as they are, unless there are bf16 units and large matrices for them."""
    monkeypatch.setattr(weights, "native_bf16", lambda: units)
    monkeypatch.setattr(weights, "LARGE", large)
    model = build(tmp_path, "qwen3")[0].bfloat16().requires_grad_(False)
    taken = snapshot(model)
    wide = not units or large > 1
    assert taken.dtype == (torch.float32 if wide else torch.bfloat16)
    if wide:
        assert native.serves(taken)
        assert {matrix.parts[0].dtype for matrix in taken.matrices()} == {torch.bfloat16}
    again = snapshot(model, previous=taken)
    assert all(a is b for a, b in zip(taken.matrices(), again.matrices(), strict=True))
    monkeypatch.setattr(native, "library", lambda: None)
    assert snapshot(model).dtype == torch.bfloat16


# ---- machines without


def available(environment: dict[str, str], cache: Path) -> bool:
    code = "from danlu.native import library; print(library() is not None)"
    environment = {**os.environ, "DANLU_CACHE": str(cache), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.strip() == "True"


def test_it_is_compiled_once_and_left_out_where_it_cannot_be(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert available({}, cache)
    (made,) = cache.iterdir()
    at = made.stat().st_mtime_ns
    assert available({}, cache)
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [at]
    assert not available({"DANLU_NATIVE": "0"}, cache)
    assert not available({"PATH": str(tmp_path), "CC": ""}, tmp_path / "other")
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'no such file: omp.h' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert not available({"CC": str(broken)}, tmp_path / "other")
    (tmp_path / "file").write_text("")
    assert not available({}, tmp_path / "file")
    made.chmod(0o777)  # anybody may have written it
    assert not available({}, cache)
    made.chmod(0o755)
    assert available({}, cache)
    made.write_bytes(b"not a library")
    assert not available({}, cache)
