"""The C of this folder: compiled once a machine, shared by decoding and training on a CPU.

The C compiler that is there makes a library of it in some seconds, kept under $DANLU_CACHE; it is called through ctypes
and shares torch's OpenMP threads. Where anything is missing (a compiler, OpenMP, room to write) or DANLU_NATIVE=0 is
set, there is none, and torch does the same up to rounding.
Not covered: Windows.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCES = ("decode.c", "elementwise.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
SECONDS = 120  # that a compiler may take
MULTIPLE = 16  # what the C wants rows of numbers to be divisible by


@lru_cache(maxsize=1)
def library() -> Any:
    """The compiled sources as a ctypes.CDLL, or None where they cannot be had."""
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    compiler = next((path for name in names if name and (path := shutil.which(name))), None)
    if os.environ.get("DANLU_NATIVE") == "0" or sys.platform == "win32" or compiler is None:
        return None
    try:
        found = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError):
        return None
    found.danlu_width.restype = found.danlu_scratch.restype = ctypes.c_int64
    return found


def _compiled(compiler: str) -> Path:
    """The library's file, made unless these sources, compiler and CPU have one; OSError or SubprocessError."""
    from danlu.data.store import cache_folder

    texts = [(HERE / name).read_text("utf-8") for name in ("vectors.h", *SOURCES)]
    known = [*texts, *FLAGS, compiler, platform.platform(), _cpu()]
    path = cache_folder() / f"native-{hashlib.sha256(chr(0).join(known).encode()).hexdigest()[:24]}.so"
    if path.is_file():
        held = path.stat()
        if held.st_uid != os.getuid() or held.st_mode & 0o022:  # $DANLU_CACHE may be shared: it could be anybody's code
            raise OSError(f"{path} could have been written by another user")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # another process may be making the same
        made = Path(folder) / path.name
        sources = [str(HERE / name) for name in SOURCES]
        command = [compiler, *FLAGS, "-o", str(made), *sources, "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
        made.chmod(0o755)
        made.replace(path)
    return path


def _cpu() -> str:
    """What -march=native depends on: a home may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
