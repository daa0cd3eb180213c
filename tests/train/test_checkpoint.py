"""Checkpoints: whole or not there; torn ones are skipped, a full disk keeps the previous one."""

from __future__ import annotations

import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.errors import DanluError
from danlu.train import checkpoint
from killed import in_child, kill_at

OPTIMIZER = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "rng": torch.get_rng_state(), "scaler": None}


def tensors(value: float, size: int = 64) -> dict[str, torch.Tensor]:
    return {"a": torch.full((size, 4), value), "b": torch.full((3,), value).to(torch.bfloat16)}


def saved(folder: Path, step: int, keep: int = 2, **more: Any) -> Path:
    best = tensors(-step) if step % 2 else None
    return checkpoint.save(
        folder, step, tensors(step, **more), OPTIMIZER, {"best_value": 0.5, "tokens": step}, best, keep
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path, 3)
    assert names(path) == ["best.safetensors", "manifest.json", "optimizer.pt", "state.json", "trainable.safetensors"]
    found, optimizer, state, best = checkpoint.load(path)
    assert all(torch.equal(found[key], value) for key, value in tensors(3).items())
    assert best is not None
    assert torch.equal(best["a"], tensors(-3)["a"])
    assert state == {"step": 3, "best_value": 0.5, "tokens": 3}
    assert torch.equal(optimizer["rng"], OPTIMIZER["rng"])
    assert checkpoint.load(saved(tmp_path, 4))[3] is None


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        saved(tmp_path, step)
    assert names(tmp_path) == ["step_000006", "step_000008"]
    saved(tmp_path, 10, keep=1)
    assert names(tmp_path) == ["step_000010"]


def _truncate(path: Path) -> None:
    file = path / "trainable.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def _flip(path: Path) -> None:
    file = path / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


TORN = {
    "truncated": _truncate,
    "one bit": _flip,
    "missing": lambda path: (path / "state.json").unlink(),
    "broken manifest": lambda path: (path / "manifest.json").write_text('{"state.json"'),
    "manifest of another kind": lambda path: (path / "manifest.json").write_text("[]"),
}


@pytest.mark.parametrize("tear", TORN.values(), ids=TORN.keys())
@pytest.mark.parametrize("keep", [1, 2])
def test_a_torn_checkpoint_is_skipped_with_a_warning(tmp_path: Path, capsys, tear: Any, keep: int) -> None:
    good = saved(tmp_path, 2)
    torn = saved(tmp_path, 4)
    tear(torn)
    assert checkpoint.latest(tmp_path) == good
    assert f"{torn.name} is damaged and is skipped" in capsys.readouterr().err.replace("\n", "")
    next_one = saved(tmp_path, 3, keep=keep)  # the resumed run: what lies ahead of it is of no use
    assert checkpoint.latest(tmp_path) == next_one
    assert names(tmp_path) == [good.name, next_one.name][-keep:]
    assert checkpoint.load(saved(tmp_path, 4))[2]["step"] == 4


def test_without_a_manifest_it_does_not_exist(tmp_path: Path, capsys) -> None:
    assert checkpoint.latest(tmp_path / "nowhere") is None
    good, half = saved(tmp_path, 2), saved(tmp_path, 4)
    (half / "manifest.json").unlink()
    assert checkpoint.latest(tmp_path) == good
    (good / "manifest.json").unlink()
    assert checkpoint.latest(tmp_path) is None
    assert capsys.readouterr().err == ""


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".step_000001.staged").mkdir()
    (tmp_path / ".step_000001.staged" / "optimizer.pt").write_text("half")
    assert checkpoint.latest(tmp_path) is None
    saved(tmp_path, 2)
    assert names(tmp_path) == ["step_000002"]


# ---- killed while writing


def assert_sound(folder: Path, allowed: set[int]) -> None:
    """What `latest` finds is one of the allowed steps, whole; the next save leaves nothing else lying about."""
    found = checkpoint.latest(folder)
    assert found is not None
    tensors_of, _, state, best = checkpoint.load(found)
    step = state["step"]
    assert step in allowed
    assert all(torch.equal(tensors_of[key], value) for key, value in tensors(step).items())
    assert (best is not None) == bool(step % 2)
    if best is not None:
        assert torch.equal(best["a"], tensors(-step)["a"])
    saved(folder, 9, keep=1)
    assert names(folder) == ["step_000009"]


@pytest.mark.parametrize(
    ("keep", "stride"), [(1, 5), pytest.param(1, 1, marks=pytest.mark.slow), pytest.param(2, 1, marks=pytest.mark.slow)]
)
def test_killed_at_every_file_operation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: int, stride: int
) -> None:
    """With a stride, at every so many of them."""
    event, ended = 0, int(signal.SIGKILL)
    seen = set()
    for step in range(4 - keep, 4):
        saved(tmp_path / "before", step, keep)
    while ended == signal.SIGKILL:
        event += stride
        folder = tmp_path / str(event)
        shutil.copytree(tmp_path / "before", folder)

        def die(folder: Path = folder, event: int = event) -> None:
            kill_at(event)
            saved(folder, 5, keep)

        ended = in_child(die)
        found = checkpoint.latest(folder)
        assert found is not None
        seen.add(found.name)
        assert_sound(folder, {3, 5})
        shutil.rmtree(folder)
    assert ended == 0
    assert event > 20
    assert seen == {"step_000003", "step_000005"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("size", [0, 500, 1_500, 4_000, 20_000, 100_000])
def test_killed_in_the_midst_of_a_file(tmp_path: Path, size: int) -> None:
    """The kernel ends the process at the byte where the limit lies, in whichever library writes it."""
    saved(tmp_path, 3)

    def die() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        big = OPTIMIZER | {"moments": torch.zeros(50_000)}
        checkpoint.save(tmp_path, 5, tensors(5), big, {}, tensors(-5), 2)

    assert in_child(die) == signal.SIGXFSZ
    assert list(tmp_path.glob(".step_*"))
    assert_sound(tmp_path, {3})


@pytest.mark.parametrize("limit", [1_000, 200_000])
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, limit: int) -> None:
    good = saved(tmp_path, 2)
    big = {
        **OPTIMIZER,
        "moments": torch.zeros(200_000),
    }  # safetensors fail under the first limit, torch under the other
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError):  # noqa: PT011 - each library words it differently
            checkpoint.save(tmp_path, 4, tensors(4, 2_000), big, {}, None, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == [good.name]
    assert checkpoint.latest(tmp_path) == good


def test_an_optimizer_with_code_in_it_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, 2)
    torch.save({"optimizer": DanluError("x")}, path / "optimizer.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        checkpoint.load(path)
