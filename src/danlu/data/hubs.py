"""Data sets of the two hubs, downloaded as files by their own clients; no code of a repository ever runs.

HF_ENDPOINT, HF_HUB_OFFLINE and MODELSCOPE_DOMAIN mean what the two clients make of them.
"""

from __future__ import annotations

import os
from pathlib import Path

from danlu import recipe
from danlu.data import files
from danlu.data.folders import choose, in_folder, near_files, readme_of
from danlu.errors import DanluError


def hub_files(repo: str, source: recipe.Source) -> list[tuple[str, Path]]:
    """Files of a Hugging Face data set, downloaded to the client's cache at one commit."""
    import huggingface_hub as hub

    try:
        card = Path(
            hub.snapshot_download(repo, repo_type="dataset", revision=source.revision, allow_patterns=["README.md"])
        )
        if hub.constants.HF_HUB_OFFLINE:
            return in_folder(card, repo, source)
        commit = card.name
        names = hub.HfApi().list_repo_files(repo, repo_type="dataset", revision=commit)
        chosen = choose(names, readme_of(card), source, repo)
        folder = Path(hub.snapshot_download(repo, repo_type="dataset", revision=commit, allow_patterns=chosen))
    except DanluError:
        raise
    except Exception as error:  # the client's errors have no common base across its versions
        raise _hub_error(repo, source.revision, error) from error
    return [(f"{repo}/{name}", folder / name) for name in chosen]


def _hub_error(repo: str, revision: str | None, error: Exception) -> DanluError:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    near = near_files(Path(repo))
    local = f"; as a file: {near}" if near.startswith("did") else ""
    if constants.HF_HUB_OFFLINE:
        at = f" at revision {revision}" if revision else ""
        return DanluError(
            f"{repo}{at} is not in the local cache, and HF_HUB_OFFLINE forbids to download it",
            f"unset HF_HUB_OFFLINE once, or give the path of a file{local}",
        )
    if isinstance(error, GatedRepoError):
        return DanluError(
            f"{repo} is gated", f"accept its terms at {constants.ENDPOINT}/datasets/{repo}: hf auth login"
        )
    if isinstance(error, RevisionNotFoundError):
        return DanluError(
            f"{repo} has no revision {revision!r} at {constants.ENDPOINT}", "name a commit, a branch or a tag of it"
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


def modelscope_folder(repo: str, revision: str | None) -> Path:
    """Folder with the data files of a ModelScope data set, from its client's cache or downloaded."""
    try:
        from modelscope.hub.snapshot_download import dataset_snapshot_download
    except ImportError:
        raise DanluError(
            f"modelscope:{repo} needs the ModelScope client", 'install it: pip install "danlu[modelscope]"'
        ) from None
    patterns = ["README.md", *(f"*{suffix}" for suffix in files.SUFFIXES)]
    at = {"revision": revision} if revision else {}
    try:
        return Path(dataset_snapshot_download(repo, allow_file_pattern=patterns, **at))
    except Exception as error:  # the client raises requests', its own and plain errors
        site = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
        raise DanluError(
            f"modelscope:{repo} could not be fetched from {site}: {_first_line(error)}",
            "check the name and the network; MODELSCOPE_DOMAIN names another site",
        ) from error
