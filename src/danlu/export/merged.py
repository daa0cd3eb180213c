"""`danlu merge`: a trained adapter as a model folder with its card, checked against base and adapter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from danlu import display
from danlu.errors import DanluError
from danlu.export.card import card
from danlu.export.lineage import lineage
from danlu.export.merge import merge
from danlu.export.merge_check import check_merge, told
from danlu.models.locate import base_dir, base_of
from danlu.models.tokenizer import load_tokenizer, think_format
from danlu.run import read_json


def merged_model(
    artifact: Path,
    out: Path,
    *,
    dtype: Literal["fp32", "bf16", "fp16"] | None = None,
    base: str | None = None,
    check: bool = True,
    licence: str = "",
) -> dict[str, Any]:
    """Merge the adapter in `artifact` into `out`, check it and write README.md; what `danlu merge --json` prints.

    `base`: folder or id of the weights to merge onto, when they are not the recorded ones. DanluError when they do
    not belong together, when `out` is in use, and when the check fails; then `out` is renamed to OUT-rejected.
    """
    described = read_json(artifact / "danlu.json") if (artifact / "danlu.json").is_file() else {}
    onto = base_dir({"id": base}) if base else recorded_base(artifact, described)
    report = merge(onto, artifact, out, dtype=dtype)
    display.say(f"merged {report.merged} of {report.tensors} tensors, {len(report.replaced)} replaced")
    found, lines = None, []
    if check:
        try:
            found = check_merge(onto, artifact, out)
        except DanluError as error:  # a machine that can merge it but not run it
            display.warn(f"not checked: {error.message}")
        else:
            lines = told(found)
            for line in lines:
                display.say(line)
    if found and not found["ok"]:
        rejected = out.with_name(f"{out.name}-rejected")
        os.replace(out, rejected)
        raise DanluError(
            f"the merged model does not answer like base and adapter: KL {found['value']:.2g}",
            f"it lies in {rejected}; was the adapter trained on {onto}?",
        )
    origin = described.get("base") or {"id": str(onto)}
    text = card(
        artifact.parent.name if (artifact.parent / "run.json").is_file() else out.name,
        lineage(artifact, origin),
        think_format(out, load_tokenizer(out)),
        quant=report.dtype,
        report={"checks": [found]} if found else None,
        licence=licence,
        notice=described.get("notice", ""),
        library="transformers",
        remarks=lines[1:],
    )
    (out / "README.md").write_text(text, encoding="utf-8")
    return {**report.to_dict(), "base": str(onto), "check": found}


def recorded_base(artifact: Path, described: dict[str, Any]) -> Path:
    """The local folder of the base that an adapter names; DanluError when it names none or it is out of reach."""
    if described:
        return base_of(artifact)
    used = read_json(artifact / "adapter_config.json").get("base_model_name_or_path")
    if not used:
        raise DanluError(f"{artifact} does not name its base model", "name it: --base DIR")
    return base_dir({"id": used})
