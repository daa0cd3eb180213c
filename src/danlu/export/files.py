"""The GGUF files of an export: one of each asked type, in the order asked.

Nothing is written before the disk was found to have room for all of them. Qwen2, Qwen3 and Llama are written by
`gguf.py`; other architectures by the converter of the user's llama.cpp checkout. K-quants that a tool makes are made
from a file in the type that the weights are stored in, so that nothing is rounded twice.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from danlu import display
from danlu.errors import DanluError
from danlu.export.gguf import ARCHITECTURES, planned, weight_files, write_gguf
from danlu.export.mixture import K_QUANTS
from danlu.export.quantize import find_maker, k_quantize, make_imatrix, run_tool
from danlu.recipe import Quant
from danlu.run import read_json

CONVERTER = "convert_hf_to_gguf.py"
CONVERTED = ("f32", "f16", "bf16", "q8_0")  # types that the converter writes
_SPARE = 64 << 20  # bytes that must stay free on the disk


def write_files(
    model_dir: Path,
    folder: Path,
    quants: Sequence[Quant],
    *,
    name: str,
    description: str = "",
    llama_cpp: Path | None = None,
    imatrix: Path | None = None,
) -> list[dict[str, Any]]:
    """Write model-QUANT.gguf into `folder` for each of `quants`; [{"gguf": file name, "quant", "bytes"}] in order.

    `imatrix`: an importance matrix for the K-quants, or a text (.txt) to measure one on. DanluError before anything
    is written for what is not known, not there or does not fit the disk.
    """
    if imatrix is not None and not imatrix.is_file():
        raise DanluError(f"{imatrix} does not exist", "give a file of llama-imatrix, or a .txt to make one from")
    asked = [quant for quant in quants if quant in K_QUANTS]
    maker = find_maker(asked[0], llama_cpp, imatrix=imatrix is not None) if asked else None
    ours = known(model_dir)
    direct = [quant for quant in quants if quant not in asked or (maker and maker.kind == "kernels" and ours)]
    source = stored_type(model_dir) if len(direct) < len(quants) else None
    steps = [*direct, *([source] if source and source not in direct else [])]
    converter = None if ours else _converter(model_dir, steps, llama_cpp)
    _check_space(model_dir, folder, [*dict.fromkeys([*steps, *quants])], ours)
    paths = {quant: folder / f"model-{quant}.gguf" for quant in (*steps, *quants)}
    for quant in steps:
        if converter:
            _convert(converter, model_dir, paths[quant], quant)
        else:
            write_gguf(model_dir, paths[quant], cast(Quant, quant), name=name, description=description)
        if ours:
            tell_fallbacks(model_dir, cast(Quant, quant))
    if source and maker:
        matrix = imatrix
        if imatrix is not None and imatrix.suffix == ".txt":
            display.say(f"measuring an importance matrix on {imatrix}")
            matrix = make_imatrix(paths[source], imatrix, folder / "imatrix.gguf", llama_cpp)
        for quant in quants:
            if quant not in direct:
                display.say(f"{paths[quant].name}: by {maker.path or 'llama-cpp-python'}")
                k_quantize(paths[source], paths[quant], quant, maker, imatrix=matrix)
                if ours:
                    tell_fallbacks(model_dir, quant)
        if source not in quants:
            paths[source].unlink()
    return [{"gguf": paths[q].name, "quant": q, "bytes": paths[q].stat().st_size} for q in quants]


def known(model_dir: Path) -> bool:
    """Whether the architecture is one that is written here."""
    return (read_json(model_dir / "config.json").get("architectures") or [""])[0] in ARCHITECTURES


def stored_type(model_dir: Path) -> Quant:
    """The GGUF type of the weights as they are stored: nothing is lost in it."""
    from safetensors import safe_open

    with safe_open(weight_files(model_dir)[0], "pt") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return "bf16" if kinds == {"BF16"} else "f16" if kinds == {"F16"} else "f32"


def tell_fallbacks(model_dir: Path, quant: Quant) -> None:
    """Say which types stand in for the asked one, where rows do not divide into its blocks."""
    wide = 256 if quant in K_QUANTS else 32
    if quant in ("f32", "f16", "bf16"):
        return
    odd = Counter(
        kind.name.lower() for _, shape, kind, _ in planned(model_dir, quant) if len(shape) > 1 and shape[-1] % wide
    )
    if odd:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in odd.items())
        display.warn(f"{quant}: {sum(odd.values())} matrices have rows that do not divide by {wide}; stored as {kinds}")


def _check_space(model_dir: Path, folder: Path, quants: Sequence[str], ours: bool) -> None:
    stored = sum(file.stat().st_size for file in weight_files(model_dir))
    sizes = [
        sum(part[-1] for part in planned(model_dir, cast(Quant, quant)))
        if ours
        else stored * (2 if quant == "f32" else 1)
        for quant in quants
    ]
    needed, free = sum(sizes), shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise DanluError(
            f"{', '.join(quants)} need {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free in {folder.parent}",
            "free some space, or export fewer or smaller types",
        )


# ---- architectures that are not written here


def _converter(model_dir: Path, quants: Sequence[str], llama_cpp: Path | None) -> Path:
    named = (read_json(model_dir / "config.json").get("architectures") or ["nothing"])[0]
    if llama_cpp is None:
        raise DanluError(
            f"cannot export {named} to GGUF",
            f"known: {', '.join(ARCHITECTURES)}; others through llama.cpp's converter: --llama-cpp DIR",
        )
    script = llama_cpp / CONVERTER
    if not script.is_file():
        raise DanluError(f"{llama_cpp} holds no {CONVERTER}", "give a checkout of llama.cpp")
    if unknown := [quant for quant in quants if quant not in CONVERTED]:
        raise DanluError(
            f"llama.cpp's converter does not write {unknown[0]}", f"it writes {', '.join(CONVERTED)}; K-quants follow"
        )
    return script


def _convert(script: Path, model_dir: Path, out: Path, quant: str) -> None:
    """Run llama.cpp's converter, with its own `gguf` package where the checkout has one."""
    staged = out.with_name(f".{out.name}.partial")
    display.say(f"{out.name}: by {script}")
    try:
        run_tool([sys.executable, str(script), str(model_dir), "--outfile", str(staged), "--outtype", quant])
        if not staged.is_file():
            raise DanluError(f"{script} wrote nothing", f"is {model_dir} a model that it knows?")
        staged.replace(out)
    finally:
        staged.unlink(missing_ok=True)
