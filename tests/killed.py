"""Processes that are killed: at a file operation, as kill -9 does it, in a forked child."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch


def in_child(work: Callable[[], Any]) -> int:
    """Run `work` in a forked process; the signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)  # the threads of OpenMP are not there after a fork, and would be waited for
            work()
        finally:  # nothing of pytest runs twice
            os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def kill_at(event: int, path: str = "") -> None:
    """End this process at the n-th file operation from now, counting those whose arguments hold `path`."""
    seen = 0

    def hook(name: str, args: Any) -> None:
        nonlocal seen
        if (name in ("open", "shutil.rmtree") or name.startswith("os.")) and path in str(args):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
