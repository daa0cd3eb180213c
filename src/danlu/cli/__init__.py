"""The command line. `main` turns every ending into an exit code and at most two lines on stderr.

Exit codes: 0 done; 1 a bug, or a check that found something wrong; 2 a problem the user can act on (also wrong
usage); 130 Ctrl-C and 143 SIGTERM, after the stage saved what it could. `-v` adds the traceback.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import re
import signal
import sys
import threading
import traceback
import warnings
from types import FrameType
from typing import Any

from danlu.errors import DanluError, Stopped
from danlu.train import launcher, processes

FULL_HINT = "free some space; a stage goes on with --resume"
TRAINING = ("run", "sft", "grpo", "demo")
# glibc keeps small freed pieces in caches of their own; beside aligned tensors they leave gaps that never close, and
# training on a CPU comes to hold up to twice what it uses. Costs no time. Read by glibc when a process starts.
TUNABLES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
# A thread of OpenMP that waits sleeps after some microseconds of spinning. Without any, waking up takes longer than a
# small matrix product; with as much as is the default, small models are several times slower on a busy machine.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    args = sys.argv[1:] if argv is None else argv
    if argv is None and args[:1] and args[0] in TRAINING and "GLIBC_TUNABLES" not in os.environ:
        _start_again()
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.update(WAITING)
    verbose = "-v" in args or "--verbose" in args
    if not verbose:  # what libraries tell their developers is not for the person who runs a command
        warnings.simplefilter("ignore", FutureWarning)
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a package that nothing here uses
    if launcher.launched() and not launcher.together(args):
        if launcher.place():
            return 0
        launcher.alone()
    if launcher.place():
        launcher.hush()
    elif threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
        if launcher.launched():
            signal.signal(signal.SIGINT, _interrupted)
    from typer.main import get_command

    from danlu.cli.app import app

    try:
        code = get_command(app).main(args=list(args), prog_name="danlu", standalone_mode=False)
    except DanluError as error:
        return _fail(error.message, error.hint, error.exit_code, verbose)
    except KeyboardInterrupt:
        return _fail("interrupted", "", 130, verbose)
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong usage, found by typer (its class moved between versions)
            return _fail(*_usage(error), 2, verbose=False)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return _fail(f"cannot write {error.filename or 'a file'}: {error.strerror}", FULL_HINT, 2, verbose)
        what = f"{type(error).__name__}: {error}".rstrip(": ").replace("\n", " ")
        hint = "this is a bug, please report it" if verbose else "this is a bug, run again with -v"
        return _fail(what, hint, 1, verbose)
    if code == 130:  # typer has swallowed the KeyboardInterrupt
        return _fail("interrupted", "", 130, verbose=False)
    processes.leave(None)
    return code if isinstance(code, int) else 0


def _start_again() -> None:
    """Begin this process anew (same id) under TUNABLES, where there is glibc; before anything heavy is loaded."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM outside a stage that saves by itself: end like Ctrl-C, with its own code."""
    if launcher.launched():
        launcher.ignore_signals()  # it comes a second time, from the launcher
    raise Stopped("stopped by SIGTERM", "a stage goes on with --resume", exit_code=143)


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    """Ctrl-C in one of several processes, which the launcher hands on once more."""
    launcher.ignore_signals()
    raise KeyboardInterrupt


def _fail(what: str, hint: str, code: int, verbose: bool) -> int:
    from danlu.display import failure

    if not processes.leave(what):
        return code
    if launcher.place():
        sys.stderr, what = sys.__stderr__, f"process {launcher.place()}: {what}"
    if verbose:
        traceback.print_exc()
    failure(what, hint)
    return code


def _usage(error: Any) -> tuple[str, str]:
    """What and hint of a usage error; the suggestion that typer puts into its message becomes the hint."""
    message = " ".join(error.format_message().split())
    told = re.search(r"\s*\(?(?:Did you mean|Possible options:)\s*(.+?)[?)]*$", message)
    if told:
        near = told.group(1).replace("'", "").split(",")[0].strip()
        return _lower(message[: told.start()].rstrip(". ")), f"did you mean {near}?"
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "danlu"
    return _lower(message.rstrip(".")), f"{command} --help shows what it takes"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
