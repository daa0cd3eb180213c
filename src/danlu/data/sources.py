"""Where rows come from: the domain's world, ModelScope, a local file or folder, or a Hugging Face data set.

Remote data sets are downloaded as files and read by us, so no code of a repository ever runs. Which files: the
README's `configs` (subset -> split -> files) where it has them, else the split's name in the path; where several
different files would be mixed silently, that is an error that lists them (`subset` may name one).
HF_ENDPOINT, HF_HUB_OFFLINE and MODELSCOPE_DOMAIN mean what the two clients make of them.

Departure: `limit` takes a seeded random sample of the rows (in file order), not the first ones, since exam files are
sorted by subject; it is drawn before rows are checked, so rows read = kept + rejected holds always.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
import random
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from danlu import domains, recipe
from danlu.data import files, schemas
from danlu.data.digests import rows_digest as rows_digest
from danlu.data.raw import Raw
from danlu.errors import DanluError
from danlu.records import Sample

OnBadRow = Literal["error", "skip"]
Needs = Literal["answer", "target"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?(?=\.\w+$)")
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_EXCERPT = 200  # characters of a rejected row that are kept


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was not taken: where it stands, why, and its beginning."""

    origin: str
    line: int
    reason: str
    row_excerpt: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rows of one source; `len(rows) + len(rejected)` is the number of rows read. `digest` is of the rows kept."""

    rows: list[Sample]
    rejected: list[Reject]
    digest: str
    origin: str


def load(
    source: recipe.Source,
    domain: domains.Domain | None = None,
    *,
    on_bad_row: OnBadRow = "error",
    needs: Needs | None = None,
) -> Loaded:
    """Rows of `source` as Samples with unique ids; a row without what the stage `needs` is a bad row.

    DanluError when the source cannot be found or read, when no schema fits, and (with `on_bad_row` "error") for the
    first bad row, naming file and line and the number of others.
    """
    path = source.path
    if domain and path in domain.sources:
        path = domain.sources[path]
    if path.startswith("world:"):
        rows, rejected = _world(path, source, domain, needs)
    else:
        found = [(origin, files.read(file)) for origin, file in _locate(path, source)]
        rows, rejected = _mapped(found, source, needs)
    if rejected and on_bad_row == "error":
        first = rejected[0]
        more = f" ({len(rejected) - 1} more bad rows)" if len(rejected) > 1 else ""
        raise DanluError(
            f"{first.origin} line {first.line}: {first.reason}{more}",
            "mend the row, or leave such rows out with data.on_bad_row=skip (they are written to rejected.jsonl)",
        )
    rows = unique_ids(rows)
    return Loaded(rows, rejected, rows_digest(rows), path)


def unique_ids(rows: list[Sample]) -> list[Sample]:
    """The rows, with "#2", "#3" ... added to ids that came before."""
    seen: set[str] = set()
    last: dict[str, int] = {}
    out = []
    for row in rows:
        name = row.id
        while name in seen:
            last[row.id] = last.get(row.id, 1) + 1
            name = f"{row.id}#{last[row.id]}"
        seen.add(name)
        out.append(row if name == row.id else replace(row, id=name))
    return out


def _mapped(
    found: list[tuple[str, list[Raw]]], source: recipe.Source, needs: Needs | None
) -> tuple[list[Sample], list[Reject]]:
    every = [(origin, raw) for origin, raws in found for raw in raws]
    chosen = every
    if source.limit is not None and source.limit < len(every):
        picked = sorted(random.Random(source.seed).sample(range(len(every)), source.limit))
        chosen = [every[index] for index in picked]
    mappings = {}
    for origin, raws in found:
        readable = [raw.row for raw in raws if raw.row]
        if not readable:
            first = raws[0]
            raise DanluError(
                f"{origin} line {first.line}: {first.reason or 'empty row'} (no row of the file can be read)",
                f"a data file ends in {', '.join(files.SUFFIXES)}",
            )
        mappings[origin] = schemas.detect(readable, source.columns, origin)
    rows: list[Sample] = []
    rejected: list[Reject] = []
    for origin, raw in chosen:
        try:
            if raw.row is None:
                raise schemas.BadRow(raw.reason)
            sample = mappings[origin].sample(raw.row)
            _require(sample, needs)
            rows.append(sample)
        except schemas.BadRow as bad:
            text = raw.text or json.dumps(raw.row, ensure_ascii=False, default=str)
            rejected.append(_reject(origin, raw.line, str(bad), text))
    return rows, rejected


def _require(sample: Sample, needs: Needs | None) -> None:
    if needs == "answer" and not sample.answer:
        raise schemas.BadRow("no answer to train on (the row has a gold target only)")
    if needs == "target" and not sample.target:
        raise schemas.BadRow("no gold target (name its column with columns: {target: COLUMN})")


def _reject(origin: str, line: int, reason: str, text: str) -> Reject:
    return Reject(origin, line, reason, text[:_EXCERPT].encode("utf-8", "replace").decode())


# ---- finding the files


def _world(
    path: str, source: recipe.Source, domain: domains.Domain | None, needs: Needs | None
) -> tuple[list[Sample], list[Reject]]:
    split = path.removeprefix("world:")
    if domain is None or domain.world is None:
        name = f"domain {domain.name}" if domain else "no domain is set; it"
        raise DanluError(f"{path}: {name} has no miniature world", "name a domain that has one, or name a file")
    if split not in domain.world.splits:
        near = difflib.get_close_matches(split, domain.world.splits, n=1)
        hint = f"did you mean world:{near[0]}?" if near else f"splits: {', '.join(domain.world.splits)}"
        raise DanluError(f"the world of {domain.name} has no split {split!r}", hint)
    if source.limit is None:
        raise DanluError(f"{path} needs a number of rows", f"write it as {{path: '{path}', limit: 1000}}")
    rows: list[Sample] = []
    rejected: list[Reject] = []
    for number, sample in enumerate(domain.world.samples(split, source.limit, source.seed), 1):
        try:
            _require(sample, needs)
            rows.append(sample)
        except schemas.BadRow as bad:
            rejected.append(_reject(path, number, str(bad), sample.question))
    return rows, rejected


def _locate(path: str, source: recipe.Source) -> list[tuple[str, Path]]:
    """(name to show, file) of every file of the source."""
    if path.startswith("modelscope:"):
        return _in_folder(_modelscope(path.removeprefix("modelscope:")), path, source)
    local = Path(path).expanduser()
    if local.is_file():
        return [(path, local)]
    if local.is_dir():
        return _in_folder(local, path, source)
    if _HUB_ID.fullmatch(path) and local.suffix.lower() not in (*files.SUFFIXES, ".gz", ".zip", ".txt", ".xlsx"):
        return _hub(path, source)
    raise DanluError(f"{path} does not exist", _near_files(local))


def _near_files(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    wanted = path.name if folder == path.parent else path.relative_to(folder).parts[0]
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(str(folder / name) for name in near)}?"
    data = [name for name in names if Path(name).suffix.lower() in files.SUFFIXES][:5]
    return f"data files in {folder}: {', '.join(data)}" if data else f"there is no data file in {folder}"


def _in_folder(folder: Path, shown: str, source: recipe.Source) -> list[tuple[str, Path]]:
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    return [(f"{shown}/{name}", folder / name) for name in choose(names, _readme(folder), source, shown)]


def _readme(folder: Path) -> str:
    file = folder / "README.md"
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


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
    return sorted(chosen)


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
    except yaml.YAMLError:
        return {}
    configs = card.get("configs") if isinstance(card, dict) else None
    known = [c for c in configs or [] if isinstance(c, dict) and c.get("data_files")]
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
    return chosen


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


# ---- the two hubs


def _hub(repo: str, source: recipe.Source) -> list[tuple[str, Path]]:
    """Files of a Hugging Face data set, downloaded to the client's cache at one commit."""
    import huggingface_hub as hub

    try:
        card = Path(hub.snapshot_download(repo, repo_type="dataset", allow_patterns=["README.md"]))
        if hub.constants.HF_HUB_OFFLINE:
            return _in_folder(card, repo, source)
        commit = card.name
        names = hub.HfApi().list_repo_files(repo, repo_type="dataset", revision=commit)
        chosen = choose(names, _readme(card), source, repo)
        folder = Path(hub.snapshot_download(repo, repo_type="dataset", revision=commit, allow_patterns=chosen))
    except DanluError:
        raise
    except Exception as error:  # the client's errors have no common base across its versions
        raise _hub_error(repo, error) from error
    return [(f"{repo}/{name}", folder / name) for name in chosen]


def _hub_error(repo: str, error: Exception) -> DanluError:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    near = _near_files(Path(repo))
    local = f"; as a file: {near}" if near.startswith("did") else ""
    if constants.HF_HUB_OFFLINE:
        return DanluError(
            f"{repo} is not in the local cache, and HF_HUB_OFFLINE forbids to download it",
            f"unset HF_HUB_OFFLINE once, or give the path of a file{local}",
        )
    if isinstance(error, GatedRepoError):
        return DanluError(
            f"{repo} is gated", f"accept its terms at {constants.ENDPOINT}/datasets/{repo}: hf auth login"
        )
    if isinstance(error, RepositoryNotFoundError):
        return DanluError(
            f"{repo} is neither a file here nor a data set at {constants.ENDPOINT}",
            f"check the name; a private data set needs hf auth login; ModelScope's are modelscope:{repo}{local}",
        )
    return DanluError(
        f"{repo} could not be fetched from {constants.ENDPOINT}: {_first_line(error)}",
        f"check the network, or set HF_ENDPOINT to a mirror (https://hf-mirror.com), or use modelscope:ID{local}",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or repr(error)


def _modelscope(repo: str) -> Path:
    """Folder with the data files of a ModelScope data set, from its client's cache or downloaded."""
    try:
        from modelscope.hub.snapshot_download import dataset_snapshot_download
    except ImportError:
        raise DanluError(
            f"modelscope:{repo} needs the ModelScope client", 'install it: pip install "danlu[modelscope]"'
        ) from None
    patterns = ["README.md", *(f"*{suffix}" for suffix in files.SUFFIXES)]
    try:
        return Path(dataset_snapshot_download(repo, allow_file_pattern=patterns))
    except Exception as error:  # the client raises requests', its own and plain errors
        site = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
        raise DanluError(
            f"modelscope:{repo} could not be fetched from {site}: {_first_line(error)}",
            "check the name and the network; MODELSCOPE_DOMAIN names another site",
        ) from error
