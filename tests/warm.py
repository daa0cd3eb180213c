"""A process that has imported what training needs and forks a child for every command: many runs, one start.

warm = Warm(); pid = warm.start(["sft", "x.yaml"]); os.kill(pid, 9); warm.wait()
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


class Warm:
    """`errors`: the file that the children's stderr is appended to."""

    def __init__(self, errors: Path, **environment: str) -> None:
        one = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # threads would not survive the fork
        paths = os.pathsep.join([str(TESTS), str(TESTS / "train"), os.environ.get("PYTHONPATH", "")])
        with errors.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=os.environ | one | {"PYTHONPATH": paths} | environment,
            )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", errors.read_text()

    def start(self, args: list[str], event: int = 0, path: str = "", **environment: str) -> int:
        """Begin a danlu command; its pid. With `event` it is killed at that file operation (see killed.kill_at)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([args, event, path, environment]) + "\n")
        self._process.stdin.flush()
        self._newest = int(self._process.stdout.readline())
        return self._newest

    def wait(self, pid: int = 0) -> int:
        """Exit code of a command (default: the newest), or the negative number of the signal that ended it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(pid or self._newest) + "\n")
        self._process.stdin.flush()
        return os.waitstatus_to_exitcode(int(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def serve() -> None:
    import bitsandbytes  # noqa: F401
    import peft.tuners.lora  # noqa: F401
    from transformers.models.qwen3 import modeling_qwen3  # noqa: F401

    import danlu.train.grpo
    import danlu.train.sft  # noqa: F401
    from danlu.cli import main
    from killed import kill_at

    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, int):
            print(os.waitpid(asked, 0)[1], flush=True)
            continue
        args, event, path, environment = asked
        pid = os.fork()
        if pid == 0:
            os.environ.update(environment)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            told = environment.get("DANLU_TEST_STDOUT")  # else nobody wants the artifact's path
            os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if told else null, 1)
            code = 99
            try:
                if event:
                    kill_at(event, path)
                code = main(args)
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)


if __name__ == "__main__":
    serve()
