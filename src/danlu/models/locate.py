"""Where a model lives: the local folder of the shipped base, a directory, a hub id or `modelscope:ID`.

Only safetensors, JSON and template files are ever downloaded; nothing in a repository is executed.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from danlu.errors import DanluError
from danlu.run import read_json

_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "merges.txt", "*.jinja", "LICENSE*"]


def base_of(artifact: Path) -> Path:
    """The local folder with the base weights of an adapter artifact (downloads from a hub when needed)."""
    described = read_json(artifact / "danlu.json")
    stored = described.get("base_dir")
    return (artifact / stored).resolve() if stored else base_dir(described["base"])


def base_dir(model: dict[str, Any]) -> Path:
    """The local folder of a recipe's model section: `tiny`, a directory, `modelscope:ID` or a hub id.

    Only safetensors, JSON and template files are downloaded. DanluError when there is no such model.
    """
    name, revision = str(model["id"]), model.get("revision")
    if model.get("config"):
        raise DanluError(
            "the base was built with random weights and is not stored with the adapter",
            "train it again: the artifact then holds `base_dir`",
        )
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if name == "tiny":
        folder = Path(str(resources.files("danlu") / "assets" / "tiny"))
        if not folder.is_dir():
            raise DanluError("the shipped tiny base is not installed", "install danlu again")
        return folder
    if name.startswith("modelscope:"):
        return _from_modelscope(name.removeprefix("modelscope:"), revision)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client raises many kinds; each means that the base is out of reach
        raise DanluError(
            f"cannot get the base model {name}: {type(error).__name__}: {str(error).splitlines()[0]}",
            "give a local directory, set HF_ENDPOINT to a mirror, or use modelscope:ID",
        ) from None


def _from_modelscope(name: str, revision: str | None) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise DanluError("modelscope is not installed", "pip install 'danlu[modelscope]'") from None
    return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
