"""Where a model lives: the local folder of the shipped base, a directory, a hub id or `modelscope:ID`.

Only safetensors, JSON and template files are ever downloaded; nothing in a repository is executed.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from danlu.errors import DanluError
from danlu.recipe import Model
from danlu.run import read_json

_WORDS = ["*.json", "merges.txt", "*.jinja", "LICENSE*"]
_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]


def origin(spec: Model, start: str | None, *, weights: bool = True) -> tuple[Path | None, Path | None, dict[str, Any]]:
    """(model folder or None for a config-only model, adapter folder or None, base as recorded).

    Without `weights` only tokenizer and configuration are downloaded where the model is a hub's.
    """
    if start is None:
        if spec.config:
            return None, None, spec.model_dump(mode="json")
        folder = base_dir(spec.model_dump(mode="json"), weights=weights)
        recorded = spec.model_dump(mode="json")
        if Path(spec.id).expanduser().is_dir():
            recorded["id"] = str(folder.resolve())
        return folder, None, recorded
    path = Path(start)
    if (path / "run.json").is_file():
        path = path / "artifact"
        if not path.is_dir():
            raise DanluError(f"{start} has no artifact", "finish that run first (--resume)")
    if (path / "adapter_config.json").is_file():
        refuse_mlx(path)
        if not (path / "danlu.json").is_file():
            used = read_json(path / "adapter_config.json").get("base_model_name_or_path")
            if not used:
                raise DanluError(f"{path} does not name its base model", "give base_model_name_or_path in its config")
            recorded = {**Model(id=used).model_dump(mode="json")}
            return base_dir(recorded, weights=weights), path, recorded
        return base_of(path, weights=weights), path, read_json(path / "danlu.json")["base"]
    recorded = {**spec.model_dump(mode="json"), "id": str(path.resolve()) if path.is_dir() else start}
    recorded |= {"config": None, "revision": None}
    return base_dir(recorded, weights=weights), None, recorded


def refuse_mlx(folder: Path) -> None:
    """DanluError where an adapter is one of mlx-lm, which is converted first."""
    if (folder / "adapters.safetensors").is_file() and not (folder / "adapter_model.safetensors").is_file():
        raise DanluError(f"{folder} holds an adapter of mlx-lm", f"danlu convert {folder} --out DIR, then use DIR")


def base_of(artifact: Path, *, weights: bool = True) -> Path:
    """The local folder with the base weights of an adapter artifact (downloads from a hub when needed)."""
    described = read_json(artifact / "danlu.json")
    stored = described.get("base_dir")
    return (artifact / stored).resolve() if stored else base_dir(described["base"], weights=weights)


def base_dir(model: dict[str, Any], *, weights: bool = True) -> Path:
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
    patterns = [*_WORDS, *_WEIGHTS] if weights else _WORDS
    if name.startswith("modelscope:"):
        return _from_modelscope(name.removeprefix("modelscope:"), revision, patterns)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; each means that the base is out of reach
        raise DanluError(
            f"cannot get the base model {name}: {type(error).__name__}: {str(error).splitlines()[0]}",
            "give a local directory, set HF_ENDPOINT to a mirror, or use modelscope:ID",
        ) from None


def _from_modelscope(name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise DanluError("modelscope is not installed", "pip install 'danlu[modelscope]'") from None
    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
