"""Run: the directory that is the only interface between stages.

    runs/NAME/
      recipe.yaml    as written                 metrics.jsonl   appended, one object a line
      config.json    fully resolved             samples.jsonl   what the model wrote
      run.json       status, lineage, versions  checkpoints/    to resume
      artifact/      what the stage delivers

run.json is replaced atomically; a run, a checkpoint or an artifact counts only once its staged directory was
renamed into place. Not covered: two processes writing one run (the second is refused by the lock file).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from danlu.errors import DanluError, Stopped

SCHEMA_VERSION = 1
PACKAGES = (
    *("danlu", "torch", "transformers", "peft", "accelerate", "tokenizers", "tiktoken", "xllamacpp", "gguf"),
    *("mlx", "mlx-lm"),
)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with staged.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)


def read_json(path: Path) -> Any:
    """Read JSON; DanluError names the file when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DanluError(f"{path} does not exist") from None
    except (ValueError, OSError) as error:
        raise DanluError(f"{path} cannot be read as JSON: {error}", "the file may be half-written") from None


def iter_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file we wrote, one by one; a torn last line (killed while appending) is dropped."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError:
                if not line.endswith(b"\n"):  # the write was cut
                    return
                raise DanluError(
                    f"{path} line {number} is not JSON", "the file was edited or the disk is damaged"
                ) from None


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines, one by one; an existing file is replaced."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All rows of `iter_jsonl`."""
    return list(iter_jsonl(path))


def digest(value: Any) -> str:
    """Short stable hash of a JSON-like value."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing_keys(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Dotted keys under which two resolved configs differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(set(a) | set(b))
        return [k for key in keys for k in differing_keys(a.get(key), b.get(key), f"{prefix}{key}.")]
    return [] if a == b else [prefix.rstrip(".")]


def _git_state() -> dict[str, Any]:
    """Commit of the user's working directory, if it is a git checkout."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _hardware() -> dict[str, Any]:
    info: dict[str, Any] = {"machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count()}
    with contextlib.suppress(ValueError, OSError, AttributeError):
        info["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    torch = sys.modules.get("torch")  # never imported for this alone
    if torch is not None and torch.cuda.is_available():
        info["cuda"] = torch.cuda.get_device_name(0)
    return info


class Run:
    """A run directory. Make one with `create`, find one with `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # ---- making and finding

    @classmethod
    def create(
        cls,
        path: Path,
        stage: str,
        config: dict[str, Any],
        *,
        recipe_text: str = "",
        parents: list[str] | None = None,
        seed: int = 0,
        resume: bool = False,
    ) -> Run:
        """Start (or, with `resume`, continue) the run at `path`.

        Raises DanluError for a used directory without `resume`, or when the config to resume differs.
        """
        run = cls(path)
        if run._file.exists():
            if not resume:
                raise DanluError(
                    f"{path} already holds a {run.info().get('stage', '?')} run",
                    f"continue it with --resume, choose another --name, or remove {path}",
                )
            differ = differing_keys(run.config(), config)
            if differ:
                raise DanluError(
                    f"cannot resume {path}: the recipe changed in {', '.join(differ[:5])}",
                    "undo the change, or start a new run with another --name",
                )
            if run.info()["status"] == "done":
                raise DanluError(f"{path} is already done", "nothing to resume; start a new run with another --name")
            run._refuse_if_in_use()
            for name in ("metrics.jsonl", "samples.jsonl"):
                _drop_torn_tail(path / name)
            run._update(status="started", error=None, resumed=run.info().get("resumed", 0) + 1)
            return run
        if path.exists() and any(path.iterdir()):
            raise DanluError(f"{path} exists and is not a Danlu run", "choose another --name or an empty directory")
        for left in path.parent.glob(f".{path.name}.*.making"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        staged = cls(path.with_name(f".{path.name}.{os.getpid()}.making"))
        staged.path.mkdir(parents=True)
        if recipe_text:
            (staged.path / "recipe.yaml").write_text(recipe_text, encoding="utf-8")
        write_json(staged.path / "config.json", config)
        write_json(
            staged._file,
            {
                "schema_version": SCHEMA_VERSION,
                "name": path.name,
                "stage": stage,
                "status": "started",
                "created": time.time(),
                "parents": parents or [],
                "seed": seed,
                "config_digest": digest(config),
                "packages": versions(),
                "git": _git_state(),
                "hardware": _hardware(),
                "error": None,
                "results": {},
            },
        )
        if path.exists():
            path.rmdir()  # empty, see above
        os.replace(staged.path, path)
        return run

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """An existing run; DanluError (with the runs that are there) if `path` is none."""
        path = Path(path)
        if not (path / "run.json").is_file():
            found = [run.path.name for run in list_runs(path.parent)][:5] if path.parent.is_dir() else []
            near = f"runs there: {', '.join(found)}" if found else "list runs with: danlu ls"
            raise DanluError(f"{path} is not a run", near)
        return cls(path)

    # ---- state

    @property
    def _file(self) -> Path:
        return self.path / "run.json"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def artifact(self) -> Path:
        return self.path / "artifact"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def info(self) -> dict[str, Any]:
        return read_json(self._file)

    def config(self) -> dict[str, Any]:
        return read_json(self.path / "config.json")

    def state(self) -> str:
        """The status, or "died" where it says started but the process is gone."""
        status = self.info()["status"]
        return "died" if status == "started" and not _alive(self.path / "lock", also_self=True) else status

    def _refuse_if_in_use(self) -> None:
        if _alive(self.path / "lock"):
            pid = (self.path / "lock").read_text()
            raise DanluError(f"{self.path} is in use by process {pid}", "wait for it to end, or stop it")

    def _update(self, **fields: Any) -> None:
        write_json(self._file, {**self.info(), **fields})

    def record(self, **results: Any) -> None:
        """Add facts about what happened (data hash, final loss, accuracy) to run.json `results`."""
        self._update(results={**self.info().get("results", {}), **results})

    def log(self, row: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl."""
        self._append("metrics.jsonl", [row])

    def write_samples(self, rows: list[dict[str, Any]]) -> None:
        """Append what the model wrote to samples.jsonl."""
        self._append("samples.jsonl", rows)

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def metrics(self) -> list[dict[str, Any]]:
        return read_jsonl(self.path / "metrics.jsonl")

    def samples(self) -> list[dict[str, Any]]:
        return read_jsonl(self.path / "samples.jsonl")

    def truncate(self, name: str, keep: Any) -> None:
        """Rewrite a .jsonl with only the rows for which `keep(row)` holds (used when resuming)."""
        path = self.path / name
        staged = path.with_suffix(".tmp")
        write_jsonl(staged, filter(keep, iter_jsonl(path)))
        os.replace(staged, path)

    def size(self, name: str) -> int:
        """Bytes of a .jsonl, 0 where it is not there yet."""
        try:
            return (self.path / name).stat().st_size
        except FileNotFoundError:
            return 0

    def cut(self, name: str, size: int) -> None:
        """Take back what was appended to a .jsonl since it had `size` bytes."""
        if self.size(name) > size:
            os.truncate(self.path / name, size)

    def sync(self, names: Iterable[str]) -> None:
        """Bring files to the disk, so that a checkpoint is never ahead of what was logged before it."""
        for name in names:
            with contextlib.suppress(FileNotFoundError), (self.path / name).open("rb") as file:
                os.fsync(file.fileno())

    # ---- life

    @contextlib.contextmanager
    def recording(self) -> Iterator[Run]:
        """Record how the block ended: done, stopped (resumable) or failed with its error."""
        started = time.time()
        lock = self.path / "lock"
        try:
            with lock.open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            self._refuse_if_in_use()
            lock.write_text(str(os.getpid()))
        try:
            yield self
        except (KeyboardInterrupt, Stopped):
            self._ended("stopped", started, None)
            raise
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk must not hide the first error
                self._ended("failed", started, f"{type(error).__name__}: {error}")
            raise
        else:
            self._ended("done", started, None)
        finally:
            lock.unlink(missing_ok=True)

    def _ended(self, status: str, started: float, error: str | None) -> None:
        seconds = self.info().get("seconds", 0.0) + time.time() - started
        self._update(status=status, error=error, seconds=round(seconds, 3), ended=time.time())

    @contextlib.contextmanager
    def delivering(self, name: str = "artifact") -> Iterator[Path]:
        """Stage a directory and rename it to `name` only when the block succeeded."""
        staged = self.path / f".{name}.staged"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        try:
            yield staged
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        target = self.path / name
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staged, target)


def _alive(lock: Path, also_self: bool = False) -> bool:
    """Whether the process that wrote the lock still runs; our own counts only if asked for."""
    try:
        pid = int(lock.read_text())
        if pid <= 0:  # kill(0) would ask about our own group
            return False
        os.kill(pid, 0)
    except PermissionError:  # it runs, as another user
        return True
    except (ValueError, OSError):
        return False
    return also_self or pid != os.getpid()


def _drop_torn_tail(path: Path) -> None:
    """Cut a half-written last line off, so that the next append starts on a line of its own."""
    if path.exists():
        rows = path.read_bytes()
        if rows and not rows.endswith(b"\n"):
            os.truncate(path, rows.rfind(b"\n") + 1)


def list_runs(root: Path) -> list[Run]:
    """Runs directly under `root`, oldest first; one with an unreadable run.json is still listed."""

    def created(run: Run) -> float:
        try:
            return float(run.info()["created"])
        except (DanluError, KeyError, TypeError, ValueError):
            return 0.0

    found = (Run(path.parent) for path in root.glob("*/run.json") if not path.parent.name.startswith("."))
    return sorted(found, key=lambda run: (created(run), run.name))
