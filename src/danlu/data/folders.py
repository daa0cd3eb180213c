"""Which files of a folder or a repository hold the rows: of a subset, of a split, all their parts.

The README's `configs` (subset -> split -> files) decide where it has them, else the words in the paths; where several
different files would be mixed silently, or a part "of 4" is not there, that is an error that lists them.
Not covered: links to folders inside the folder, which are not followed.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from danlu import recipe
from danlu.data import files
from danlu.errors import DanluError

_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?(?=\.\w+$)")
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def kind_of(path: Path) -> int | None:
    """What stands at the path, as a stat.S_IF..., None for nothing; DanluError when that cannot be found out."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the path
        if path.is_symlink():
            raise DanluError(f"{path} is a link to nothing", "make the link again, or name the file itself") from None
        return None
    except OSError as error:
        raise DanluError(f"{path} cannot be read: {error.strerror}", "check the path and its permissions") from None


def near_files(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except (OSError, ValueError):
        names = []
    wanted = path.name if folder == path.parent else path.relative_to(folder).parts[0]
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(str(folder / name) for name in near)}?"
    data = [name for name in names if Path(name).suffix.lower() in files.SUFFIXES][:5]
    return f"data files in {folder}: {', '.join(data)}" if data else f"there is no data file in {folder}"


def in_folder(folder: Path, shown: str, source: recipe.Source) -> list[tuple[str, Path]]:
    chosen = choose(_names_in(folder), readme_of(folder), source, shown)
    return [(f"{shown}/{name}", folder / name) for name in chosen]


def _names_in(folder: Path) -> list[str]:
    """Everything below the folder that is no folder; DanluError for a folder inside that may not be read."""

    def refuse(error: OSError) -> None:
        raise DanluError(f"{error.filename} cannot be read: {error.strerror}", "check its permissions") from None

    found = [
        Path(here, name).relative_to(folder).as_posix()
        for here, folders, names in os.walk(folder, onerror=refuse)
        for name in [*names, *(link for link in folders if Path(here, link).is_symlink())]
    ]
    return sorted(found)


def readme_of(folder: Path) -> str:
    file = folder / "README.md"
    try:
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    except OSError as error:
        raise DanluError(f"{file} cannot be read: {error.strerror}", "check its permissions") from None


def choose(names: list[str], readme: str, source: recipe.Source, shown: str) -> list[str]:
    """The files among `names` (paths in a repository) that hold the subset and split of `source`, in order.

    DanluError, listing what there is, when nothing fits or different files would be mixed.
    """
    data = [n for n in names if Path(n).suffix.lower() in files.SUFFIXES and not _is_metadata(n)]
    if not data:
        raise DanluError(f"{shown} has no data files", f"read are {', '.join(files.SUFFIXES)}")
    if source.subset and source.subset in data:
        return [source.subset]
    configs = _configs(readme)
    if configs:
        return _by_config(configs, data, source, shown)
    if source.subset:
        parts = {name: {*Path(name).parts[:-1], *re.split(r"[-_.]", Path(name).stem), Path(name).stem} for name in data}
        inside = [name for name in data if source.subset in parts[name]]
        if not inside:
            raise DanluError(f"{shown} has no subset {source.subset!r}", f"files there: {_some(data)}")
        data = inside
    chosen = _by_split(data, source.split, shown)
    kinds = {Path(name).suffix.lower() for name in chosen}
    if len(kinds) > 1:  # the same rows, published in several formats
        best = next(suffix for suffix in files.SUFFIXES if suffix in kinds)
        chosen = [name for name in chosen if name.lower().endswith(best)]
    groups = {_SHARD.sub("", name) for name in chosen}
    if len(groups) > 1:
        raise DanluError(f"{shown} has several files for {source.split}: {_some(sorted(chosen))}", "name one as subset")
    return _all_shards(sorted(chosen), shown)


def _all_shards(names: list[str], shown: str) -> list[str]:
    """The names; DanluError where one says "of 4" and there are not four of them."""
    there: dict[tuple[str, int], set[int]] = {}
    for name in names:
        found = _SHARD.search(name)
        if found:
            number, of = found[0][1:].split("-of-")
            there.setdefault((_SHARD.sub("", name), int(of[:5])), set()).add(int(number))
    for (shared, total), numbers in there.items():
        if len(numbers) != total:
            raise DanluError(
                f"{shown} has {len(numbers)} of the {total} parts of {shared}",
                "fetch the others, or name one part as subset",
            )
    return names


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _is_metadata(name: str) -> bool:
    last = Path(name).name
    return last.startswith(".") or last in ("dataset_infos.json", "dataset_info.json", "state.json", "config.json")


def _configs(readme: str) -> dict[str, Any]:
    """Subset -> data_files of a data card's YAML head; {} without one."""
    head = re.match(r"---\r?\n(.*?)\r?\n---", readme, re.DOTALL)
    if not head:
        return {}
    try:
        card = yaml.safe_load(head[1])
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: the 31st of April
        return {}
    configs = card.get("configs") if isinstance(card, dict) else None
    known = [c for c in (configs if isinstance(configs, list) else []) if isinstance(c, dict) and c.get("data_files")]
    known.sort(key=lambda config: not config.get("default"))
    return {str(config.get("config_name", "default")): config["data_files"] for config in known}


def _by_config(configs: dict[str, Any], data: list[str], source: recipe.Source, shown: str) -> list[str]:
    subset = source.subset
    if subset is None:
        subset = next(iter(configs)) if len(configs) == 1 else "default"
    if subset not in configs:
        hint = f"name one as subset: {', '.join(configs)}"
        what = f"no subset {source.subset!r}" if source.subset else "several subsets"
        raise DanluError(f"{shown} has {what}", hint)
    declared = configs[subset]
    if isinstance(declared, dict):
        declared = [{"split": split, "path": path} for split, path in declared.items()]
    if not isinstance(declared, list) or not all(isinstance(entry, dict) for entry in declared):
        declared = [{"split": "train", "path": declared}]
    splits = {str(entry.get("split", "train")): entry.get("path") for entry in declared}
    wanted = _same_split(source.split, list(splits))
    if wanted is None:
        raise DanluError(f"{shown} ({subset}) has no split {source.split!r}", f"splits there: {', '.join(splits)}")
    paths = splits[wanted]
    patterns = [str(path) for path in (paths if isinstance(paths, list) else [paths])]
    chosen = [n for n in sorted(data) if any(fnmatch.fnmatchcase(n, p.replace("**/", "*")) for p in patterns)]
    if not chosen:
        raise DanluError(
            f"{shown}: the README names {', '.join(patterns)}, which is not there", f"files: {_some(data)}"
        )
    return _all_shards(chosen, shown)


def _same_split(split: str, known: list[str]) -> str | None:
    if split in known:
        return split
    words = next((words for words in _SPLIT_WORDS.values() if split in words), ())
    return next((name for name in known if name in words), None)


def _by_split(names: list[str], split: str, shown: str) -> list[str]:
    """Files of a split by the words in their paths; without any such word all are training files."""
    tokens = {name: set(re.split(r"[-_./ ]", name.lower())) for name in names}
    words = {split.lower(), *next((words for words in _SPLIT_WORDS.values() if split.lower() in words), ())}
    chosen = [name for name in names if tokens[name] & words]
    others = {key for key, known in _SPLIT_WORDS.items() if any(tokens[name] & set(known) for name in names)}
    if not chosen and not others and split == "train":
        return names
    if not chosen:
        there = ", ".join(sorted(others)) or f"none; files: {_some(names)}"
        raise DanluError(f"{shown} has no split {split!r}", f"splits there: {there}")
    return chosen
