"""What launchers say in the environment, and what is refused of it."""

from __future__ import annotations

import re

import pytest

from danlu.errors import DanluError
from danlu.train import launcher

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launcher.OURS, *launcher.THEIRS, "FSDP_VERSION", "FSDP_RESHARD_AFTER_FORWARD", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


def given(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_one_process_is_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launcher.launched()
    group = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    given(monkeypatch, group)
    assert not launcher.launched()
    given(monkeypatch, {"RANK": "3", "WORLD_SIZE": "4"})
    assert launcher.launched()
    assert launcher.place() == 3
    launcher.alone()
    assert not launcher.launched()
    assert launcher.place() == 0


def test_training_is_done_together() -> None:
    assert launcher.together(["sft", "demo"])
    assert launcher.together(["grpo", "demo", "--dry-run"])
    assert not launcher.together(["sft", "--help"])
    assert not launcher.together(["eval", "demo"])
    assert not launcher.together([])


@pytest.mark.parametrize(
    ("environment", "sharding"),
    [
        ({}, "ddp"),
        (FSDP, "fsdp2"),
        (FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "True"}, "fsdp2"),
        (FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}, "zero2"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "false"}, "ddp"),
    ],
)
def test_how_weights_are_divided(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], sharding: str) -> None:
    given(monkeypatch, environment)
    launcher.check()
    assert launcher.take() == sharding
    assert launcher.sharding() == "ddp"  # accelerate would divide them once more


@pytest.mark.parametrize(
    ("environment", "what", "hint"),
    [
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            "DeepSpeed is not used",
            "accelerate zero2.*accelerate fsdp2",
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not used", "danlu accelerate fsdp2"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism_config", "danlu accelerate fsdp2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version: 1", "danlu accelerate fsdp2"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params: true", "danlu accelerate fsdp2"),
        (FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "HYBRID_SHARD"}, "fsdp_reshard_after_forward", "danlu accelerate fsdp2"),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, "starts one process", "leave --cpu"),
    ],
)
def test_what_is_not_done_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], what: str, hint: str
) -> None:
    given(monkeypatch, environment)
    with pytest.raises(DanluError, match=what) as told:
        launcher.check()
    assert re.search(hint, told.value.hint)
