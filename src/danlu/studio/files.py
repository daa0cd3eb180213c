"""Files that a page may offer: recipes and data that were named when the studio started, and what was uploaded.

What was uploaded goes when it is old and no run or job of the folder names it (`tidy`); what was kept from chats stays.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from danlu.errors import DanluError
from danlu.recipe import shipped
from danlu.studio.place import Place
from danlu.studio.safety import readable

DATA = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".xlsx")
MOST = 500  # files of a named folder that are offered
DAYS = 30  # after which an upload that nothing names is removed


def recipes(place: Place) -> dict[str, str]:
    """What a recipe is called -> how the command line finds it; shipped ones last."""
    found = {path.name: str(path) for path in _named(place, (".yaml", ".yml"))}
    return found | {name: name for name in shipped() if name not in found}


def data_files(place: Place) -> list[str]:
    """Paths of data files that may be read; first what was uploaded, and kept from chats."""
    own = [path for folder in ("uploads", "saved") for path in sorted((place.own / folder).glob("*"))]
    return [str(path) for path in [*(path for path in own if path.suffix.lower() in DATA), *_named(place, DATA)]]


def upload_path(place: Place, name: str) -> Path:
    """Where an uploaded file goes: a new name among the uploads, without anything that a path could mean."""
    plain = re.sub(r"[^\w.\-]+", "_", Path(name.replace("\\", "/")).name).lstrip(".")[-120:]
    if Path(plain).suffix.lower() not in DATA:
        raise DanluError(f"{name} is no data file that Danlu reads", f"upload one of: {', '.join(DATA)}")
    folder = place.own / "uploads"
    folder.mkdir(parents=True, exist_ok=True)
    path, number = folder / plain, 2
    while path.exists():
        path = folder / f"{Path(plain).stem}-{number}{Path(plain).suffix}"
        number += 1
    return path


def tidy(place: Place) -> list[Path]:
    """Remove uploads that are older than DAYS and that nothing names; those that are gone.

    A file is named where its name stands in the config.json or recipe.yaml of a run, or in a job, however it was
    reached. Where one of these cannot be read, nothing is removed.
    """
    old = [path for path in (place.own / "uploads").glob("*") if time.time() - path.stat().st_mtime > DAYS * 86400]
    if not old:
        return []
    told = ""
    for pattern in ("*/config.json", "*/recipe.yaml", f"{place.own.name}/jobs/*.json"):
        for file in place.root.glob(pattern):
            try:
                text = file.read_text(encoding="utf-8")
                told += json.dumps(json.loads(text), ensure_ascii=False) if file.suffix == ".json" else text
            except (OSError, ValueError):
                return []
    gone = [path for path in old if path.name not in told]
    for path in gone:
        path.unlink(missing_ok=True)
    return gone


def _named(place: Place, suffixes: tuple[str, ...]) -> list[Path]:
    found: list[Path] = []
    for path in place.named:
        inner = sorted(path.glob("*")) if path.is_dir() else [path]
        found += [one for one in inner if one.suffix.lower() in suffixes and readable(one, place.named)]
    return found[:MOST]
