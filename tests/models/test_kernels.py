"""Compiled kernels where a compiler works, the eager ones where it does not, and errors that are neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu import native
from danlu.models import kernels as module
from danlu.models.kernels import Kernels, can_compile, kernels


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    return torch.randn(7, 16, generator=made), torch.randn(16, generator=made)


@pytest.mark.skipif(not can_compile(), reason="no C++ compiler")
def test_a_compiler_that_does_not_work_is_told_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'Python.h: No such file or directory' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # nothing is there to be taken
    from torch._inductor import config

    with config.patch({"cpp.cxx": (str(broken),), "fx_graph_cache": False}):
        own = kernels("compiled")
        (x, weight), plain = inputs(), Kernels()
        for _ in range(2):
            torch.testing.assert_close(own.norm(x, weight, 1e-6), plain.norm(x, weight, 1e-6))
            torch.testing.assert_close(own.swiglu(x, x), plain.swiglu(x, x))
    assert capsys.readouterr().err.count("warning: kernels cannot be compiled here") == 1


def test_memory_that_is_refused_is_no_broken_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop halves the micro-batch then; the next forward is compiled still."""
    fails = [True]

    def compile(one: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if fails:
                torch.empty(2**60, dtype=torch.uint8)
            return one(*args) + 1  # to be told from the plain one

        return call

    monkeypatch.setattr(module.torch, "compile", compile)
    own, (x, _) = kernels("compiled"), inputs()
    with pytest.raises(RuntimeError, match="memory"):
        own.swiglu(x, x)
    fails.clear()
    assert torch.equal(own.swiglu(x, x), module.swiglu(x, x) + 1)


def test_what_is_wrong_with_the_arguments_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.torch, "compile", lambda one, **_: one)
    with pytest.raises(RuntimeError, match="size"):
        kernels("compiled").swiglu(torch.ones(3), torch.ones(4))


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX", "TORCH_COMPILE_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    assert not can_compile()
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    assert not can_compile()


# ---- the C


needs_c = pytest.mark.skipif(native.library() is None, reason="no C compiler")


def random(*shape: int, dtype: torch.dtype, seed: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    """To a few units in the last place of `dtype`, of numbers made in fp64."""
    assert found.dtype == dtype
    tolerance = 2e-6 if dtype == torch.float32 else 6e-3
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


@needs_c
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 32), (5, 96), (3, 4, 32), (2, 3, 160)], ids=str)
def test_the_c_does_what_the_eager_functions_do(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    own, plain = kernels("native"), Kernels()
    x, y, grad = (random(*shape, dtype=dtype, seed=seed, scale=3) for seed in (1, 2, 3))
    weight = random(shape[-1], dtype=dtype, seed=4)
    wide = [one.double() for one in (x, y, grad, weight)]
    found, scale = own.norm(x, weight, 1e-6)
    root = torch.rsqrt(wide[0].pow(2).mean(-1, keepdim=True) + 1e-6)
    close(found, wide[0] * root * wide[3], dtype)
    close(scale, root, torch.float32)
    source = wide[0].clone().requires_grad_()
    (source * torch.rsqrt(source.pow(2).mean(-1, keepdim=True) + 1e-6) * wide[3]).backward(wide[2])
    assert source.grad is not None
    close(own.norm_back(grad, x, weight, scale), source.grad, dtype)
    close(own.swiglu(x, y), plain.swiglu(*wide[:2]), dtype)
    for one, wanted in zip(own.swiglu_back(grad, x, y), plain.swiglu_back(wide[2], *wide[:2]), strict=True):
        close(one, wanted, dtype)
    heads = x if x.dim() == 3 else x[:, None]
    angles = [random(len(heads), 1, shape[-1] // 2, dtype=dtype, seed=seed) for seed in (5, 6)]
    turned = plain.rotate(heads.double(), *(one.double() for one in angles))
    close(own.rotate(heads.transpose(0, 1).contiguous().transpose(0, 1), *angles), turned, dtype)


@needs_c
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [7, 16, 100, 5003])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scores_in_c_are_those_of_fp64(dtype: torch.dtype, size: int, temperature: float) -> None:
    logits = random(6, size, dtype=dtype, seed=1, scale=4)
    logits[3, size // 2] = 90  # all of the weight
    targets = torch.tensor([0, size - 1, size // 2, size // 2, 0, 1])
    scores = torch.log_softmax(logits.double() / temperature, -1)
    left = logits.clone()
    found, entropies = module.native_scores(left, targets, temperature, True, False)
    assert torch.equal(left, logits)
    wanted = scores.gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=2e-6)
    assert entropies is not None
    torch.testing.assert_close(entropies.double(), -(scores.exp() * scores).sum(-1), rtol=1e-5, atol=1e-5)
    module.native_scores(left, targets, temperature, False, True)
    error = -scores.exp()
    error[torch.arange(6), targets] += 1
    close(left, error, dtype)


@needs_c
def test_nan_stays_nan_in_c() -> None:
    """A run must stop at it; and bf16 rounding must not turn it into a number."""
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = random(3, 32, dtype=dtype, seed=1), torch.ones(32, dtype=dtype)
        x[1, 5] = float("nan")
        own = kernels("native")
        bad = [own.norm(x, weight, 1e-6)[0], own.swiglu(x, x), *own.swiglu_back(x, x, x)]
        bad += [own.norm_back(x, x, weight, torch.ones(3, 1))]
        assert all(one[1].isnan().any() and one[[0, 2]].isfinite().all() for one in bad)
        found, entropies = module.native_scores(x.clone(), torch.tensor([1, 1, 1]), 1.0, True, True)
        assert entropies is not None
        assert found.isnan().tolist() == entropies.isnan().tolist() == [False, True, False]


def test_what_the_c_does_not_take_is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_call", lambda *_: pytest.fail("the C was called"))
    own, plain = kernels("native"), Kernels()
    for x, weight in ((torch.randn(3, 20), torch.ones(20)), (torch.randn(3, 16).double(), torch.ones(16).double())):
        assert torch.equal(own.norm(x, weight, 1e-6)[0], plain.norm(x, weight, 1e-6)[0])
        assert torch.equal(own.swiglu(x, x), plain.swiglu(x, x))
    with pytest.raises(RuntimeError, match="size"):
        own.swiglu(torch.ones(32), torch.ones(48))


def test_how_functions_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "can_compile", lambda: True)
    assert [module.how(asked, "cpu", 64, 3) for asked in (True, False)] == ["compiled", "eager"]
    monkeypatch.setattr(native, "library", lambda: object())
    assert module.how("auto", "cpu", 64, 3) == "native"
    assert [module.how("auto", "cuda", *case) for case in ((1024, 100), (1024, 3), (64, 100))] == [
        "compiled",
        "eager",
        "eager",
    ]
    monkeypatch.setattr(native, "library", lambda: None)
    assert module.how("auto", "cpu", 1024, None) == "compiled"
    monkeypatch.setattr(module, "can_compile", lambda: False)
    assert module.how("auto", "cpu", 1024, None) == "eager"
    assert module.how("auto", "cuda", 1024, None, here=False) == "compiled"
