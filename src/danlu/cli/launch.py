"""Bodies of `danlu accelerate`, and of a dry run in several processes.

What is shipped is a file for accelerate launch or sbatch, written as it is but for the number of processes.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

from danlu.errors import DanluError
from danlu.recipe import Recipe
from danlu.train import processes

FILES = {
    "ddp": ("accelerate/ddp.yaml", "whole weights in every process: LoRA, QLoRA, GRPO"),
    "zero2": ("accelerate/zero2.yaml", "gradients and optimizer states divided (ZeRO-2, by FSDP2)"),
    "fsdp2": ("accelerate/fsdp2.yaml", "weights divided too: full fine-tuning of what does not fit one GPU"),
    "zero3": ("accelerate/fsdp2.yaml", "another name of fsdp2"),
    "slurm": ("slurm/two-nodes.sbatch", "two nodes of eight GPUs, for sbatch"),
}
TOLD = {
    "ddp": "each holds whole weights (ddp)",
    "zero2": "gradients and optimizer states divided (zero2)",
    "fsdp2": "weights, gradients and optimizer states divided (fsdp2)",
}

Stages = list[tuple[str, str | None]]  # with what they start from


# ---- configurations


def show_configuration(name: str | None, out: Path | None, count: int | None, as_json: bool) -> None:
    """Print or write a configuration; without a name, list them."""
    from danlu.cli.readers import print_json, table  # it imports the stages, and they this

    if name is None:
        rows = [{"name": each, "what": what} for each, (_, what) in FILES.items()]
        if as_json:
            print_json({"configurations": rows})
        else:
            table(("NAME", "WHAT"), [(row["name"], row["what"]) for row in rows])
        return
    text = configuration(name, count)
    if out is None:
        print(text, end="")
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise DanluError(f"{out} exists", "choose another name or remove it") from None
    except OSError as error:
        raise DanluError(
            f"cannot write {out}: {error.strerror}", "give --out a file in a directory that exists"
        ) from None
    print(out)


def configuration(name: str, count: int | None = None) -> str:
    """The text of a shipped configuration, for `count` processes in all."""
    if name not in FILES:
        raise DanluError(f"no configuration {name!r}", f"there are: {', '.join(FILES)}")
    text = (resources.files("danlu") / "assets" / FILES[name][0]).read_text(encoding="utf-8")
    if count is None:
        return text
    if name == "slurm":
        raise DanluError(
            "a Slurm job has a process a GPU, as its #SBATCH lines say",
            "change --nodes, --ntasks-per-node and --gpus-per-node in the file",
        )
    return re.sub(r"(?m)^num_processes: .*$", f"num_processes: {count}", text)


# ---- a dry run in several processes


def group(recipe: Recipe, stages: Stages) -> dict[str, Any] | None:
    """What the processes that have met are and would refuse of the stages; None where there is one."""
    if processes.count() == 1:
        return None
    members = processes.introduced()
    return {
        "processes": len(members),
        "nodes": sum(member["local"] == 0 for member in members),
        "sharding": processes.sharding(),
        "gradients": processes.backend(),
        "members": members,
        "refused": refused(recipe, stages, members),
    }


def refused(recipe: Recipe, stages: Stages, members: list[dict[str, Any]]) -> list[dict[str, str]]:
    """{"stage", "what", "hint"} of everything that would end a stage before it trains."""
    from danlu.train import sharding, trl

    found = []
    if any(member["versions"] != members[0]["versions"] for member in members):
        what = "the processes have different versions of packages"
        found.append({"stage": "all", "what": what, "hint": "install the same ones on all nodes"})
    for stage, start in stages:
        try:
            if stage in ("sft", "grpo"):
                sharding.check(recipe, stage)
            if stage == "sft" and recipe.sft.engine == "mlx":
                raise DanluError("sft.engine: mlx trains in one process", "sft.engine: danlu trains in several")
            if stage == "grpo" and recipe.grpo.engine == "trl":
                trl.check(recipe.grpo, start)
        except DanluError as error:
            found.append({"stage": stage, "what": error.message, "hint": error.hint})
    return found


def told(found: dict[str, Any]) -> str:
    """A `group` as comments of YAML."""
    nodes = "1 node" if found["nodes"] == 1 else f"{found['nodes']} nodes"
    how = TOLD[found["sharding"]]
    lines = [f"# {found['processes']} processes on {nodes}, {how}; gradients are summed over {found['gradients']}:"]
    for at, one in enumerate(found["members"]):
        lines.append(f"#   {at} on {one['host']}: {one['device']}, {one['free_bytes'] / 1e9:.1f} GB free")
    lines += [f"# would be refused: {one['stage']}: {one['what']}" for one in found["refused"]]
    return "\n".join(lines)


def settled(found: dict[str, Any] | None) -> None:
    """DanluError for the first thing that is refused."""
    if found and found["refused"]:
        raise DanluError(found["refused"][0]["what"], found["refused"][0]["hint"])
