"""Compiled kernels where a compiler works, the eager ones where it does not, and errors that are neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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
        own = kernels(True)
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
    own, (x, _) = kernels(True), inputs()
    with pytest.raises(RuntimeError, match="memory"):
        own.swiglu(x, x)
    fails.clear()
    assert torch.equal(own.swiglu(x, x), module.swiglu(x, x) + 1)


def test_what_is_wrong_with_the_arguments_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.torch, "compile", lambda one, **_: one)
    with pytest.raises(RuntimeError, match="size"):
        kernels(True).swiglu(torch.ones(3), torch.ones(4))


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX", "TORCH_COMPILE_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    assert not can_compile()
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    assert not can_compile()
