"""Token sets on disk: flat int32 tokens and their loss, memory-mapped, under a hash of all that decides them.

A store is a directory: tokens.bin (int32), loss.bin (one byte a token), offsets.npy (int64, row starts), rows.json
(ids, turns, the report). Its name is the hash of the rows, the chat template, the tokenizer, the think-format and the
Shape, so the same data is tokenised once, whatever stage, recipe or run asks. It is staged and renamed; a torn one is
made again. The newest KEEP stores of a cache folder are kept.
Not covered: masked rows; they are rendered when a batch is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from danlu import display
from danlu.data.render import IGNORE, Rendered, RenderReport, Shape, render
from danlu.errors import DanluError
from danlu.records import Sample
from danlu.run import write_json
from danlu.think import ThinkFormat

VERSION = 1  # counts up when the same rows would become other tokens
KEEP = 16
_CHUNK = 1024  # samples rendered at once: bounds the memory


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """A token set: a sequence of Rendered rows. `key` is the hash it was found under."""

    key: str
    path: Path
    tokens: np.ndarray  # int32 [all tokens], memory-mapped
    loss: np.ndarray  # bool [all tokens], memory-mapped
    offsets: np.ndarray  # int64 [rows + 1]
    ids: list[str]
    turns: list[int | None]
    report: RenderReport

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Rendered:
        if not 0 <= index < len(self.ids):
            raise IndexError(index)
        start, end = self.offsets[index], self.offsets[index + 1]
        tokens = np.array(self.tokens[start:end])
        labels = np.where(self.loss[start:end], tokens, np.int32(IGNORE))
        return Rendered(self.ids[index], tokens, labels, self.turns[index])

    def __iter__(self) -> Iterator[Rendered]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 [rows]."""
        return np.diff(self.offsets)


def cache_folder() -> Path:
    """Where token sets are kept: $DANLU_CACHE, or danlu in the user's cache folder."""
    given = os.environ.get("DANLU_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "danlu"


def key_of(tokenizer: Any, think: ThinkFormat, samples: Sequence[Sample], shape: Shape) -> str:
    """The hash that names the token set of `samples`."""
    found = hashlib.sha256()
    options = {"version": VERSION, "shape": asdict(shape), "think": think.to_dict()}
    found.update(json.dumps(options, sort_keys=True).encode())
    found.update((tokenizer.chat_template or "").encode())
    found.update(_words(tokenizer))
    for sample in samples:
        parts = [sample.id, sample.reasoning, sample.answer]
        for turn in sample.messages:
            parts += [turn["role"], turn["content"], turn.get("reasoning_content", "")]
        found.update(f"\x1e{len(parts)}\x1f".encode())
        found.update("\x1f".join(parts).encode("utf-8", "surrogatepass"))
    return found.hexdigest()[:32]


def _words(tokenizer: Any) -> bytes:
    """What tells one tokenizer from another: its file where it came from one (writing it out again is slow)."""
    file = Path(str(tokenizer.name_or_path)) / "tokenizer.json"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if file.is_file():
        content = file.read_bytes()
    else:
        content = (backend.to_str() if backend is not None else repr(tokenizer)).encode()
    added = json.dumps(sorted(tokenizer.get_added_vocab().items()))
    return hashlib.sha256(content).digest() + added.encode()


def open_store(
    tokenizer: Any, think: ThinkFormat, samples: Sequence[Sample], shape: Shape, folder: Path | None = None
) -> Store:
    """The token set of `samples`, made if it is not in `folder` (default: the user's cache) yet.

    DanluError for rows that cannot be rendered (see `render`) or when the disk is full; nothing half-made stays.
    """
    folder = (folder or cache_folder()) / "tokens"
    path = folder / key_of(tokenizer, think, samples, shape)
    found = read(path)
    if found is not None:
        os.utime(path)
        return found
    staged = folder / f".{path.name}.{os.getpid()}"
    try:
        staged.mkdir(parents=True, exist_ok=True)
        _build(staged, tokenizer, think, samples, shape)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(staged, path)
    except OSError as error:
        raise DanluError(
            f"cannot write the token set to {folder}: {error.strerror or error}",
            "free some space, or name another folder with DANLU_CACHE",
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    _prune(folder)
    made = read(path)
    if made is None:
        raise DanluError(f"the token set {path} cannot be read back", "check the disk, then try again")
    return made


def read(path: Path) -> Store | None:
    """The store in `path`, or None where there is none or it is torn."""
    try:
        described = json.loads((path / "rows.json").read_text(encoding="utf-8"))
        offsets = np.load(path / "offsets.npy", allow_pickle=False)
        size = int(offsets[-1])
        if (path / "tokens.bin").stat().st_size != 4 * size or (path / "loss.bin").stat().st_size != size:
            return None
        tokens = np.memmap(path / "tokens.bin", np.int32, "r") if size else np.zeros(0, np.int32)
        loss = np.memmap(path / "loss.bin", np.bool_, "r") if size else np.zeros(0, np.bool_)
        report = described["report"]
        report["dropped"] = tuple(tuple(pair) for pair in report["dropped"])
        report["truncated"] = tuple(report["truncated"])
        ids, turns = described["ids"], described["turns"]
        if not len(ids) == len(turns) == len(offsets) - 1:
            return None
        return Store(path.name, path, tokens, loss, offsets, ids, turns, RenderReport(**report))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _build(path: Path, tokenizer: Any, think: ThinkFormat, samples: Sequence[Sample], shape: Shape) -> None:
    told = RenderReport()
    ids: list[str] = []
    turns: list[int | None] = []
    lengths: list[int] = []
    with (
        (path / "tokens.bin").open("wb") as tokens,
        (path / "loss.bin").open("wb") as loss,
        display.task("tokens", len(samples)) as progress,
    ):
        for start in range(0, len(samples), _CHUNK):
            part = samples[start : start + _CHUNK]
            rows, more = render(tokenizer, think, part, shape)
            told += more
            for row in rows:
                tokens.write(row.tokens.tobytes())
                loss.write((row.labels != IGNORE).tobytes())
                ids.append(row.id)
                turns.append(row.turn)
                lengths.append(len(row.tokens))
            progress.advance(len(part))
    np.save(path / "offsets.npy", np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64))
    write_json(path / "rows.json", {"ids": ids, "turns": turns, "report": asdict(told)})


def _prune(folder: Path) -> None:
    """Keep the KEEP stores that were used last."""
    stores = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    stores.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for old in stores[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
