"""Body of `danlu plan`: one table of where the memory goes, and what follows from it in a sentence."""

from __future__ import annotations

from typing import Any

from danlu.cli.readers import print_json, table
from danlu.cli.stages import find_run
from danlu.errors import DanluError
from danlu.recipe import load

PARTS = {
    "weights": "the base model",
    "adapter": "what is trained beside it",
    "optimizer": "two moments of every trained weight",
    "gradients": "of every trained weight",
    "activations": "kept for the backward pass, and one layer's temporaries",
    "logits": "of one chunk of tokens, while the loss is computed",
    "kv_cache": "of the completions that are decoded together",
    "snapshot": "weights copied for decoding",
    "best": "the best weights so far",
    "process": "libraries, or the context of the GPU",
    "overhead": "what allocators waste",
}


def show_plan(
    name: str,
    overrides: list[str],
    *,
    vram: str | None,
    device: str,
    gpu: str | None,
    gpus: int,
    nodes: int,
    sharding: str | None,
    rows: int | None,
    config: str | None,
    start: str | None,
    as_json: bool,
) -> int:
    """Print the plan; 1 when it does not fit, else 0."""
    recipe = load(name, overrides)
    if device == "detect" and (gpus * nodes > 1 or vram or gpu):
        device = "cuda"
    if gpu and device != "cuda":
        raise DanluError(f"--gpu does not go with --device {device}", "leave one of them out")
    from danlu.models.plan import plan
    from danlu.models.plan_place import parse_bytes

    begun = find_run(start) if start else None
    found = plan(
        recipe,
        budget=parse_bytes(vram) if vram else None,
        device=None if device == "detect" else device,  # type: ignore[arg-type]
        gpus=gpus,
        nodes=nodes,
        sharding=sharding,
        gpu=gpu,
        rows=rows,
        config=config,
        start=str(begun.path) if begun else start,
    )
    if as_json:
        print_json(found)
    else:
        _print(found)
    whole = [found, *found.get("stages", {}).values()]
    alone = all(one["fits"] is not False for one in whole)
    divided = [one["fits"] for one in found.get("sharding", {}).values()]
    return 0 if (any(fit is not False for fit in divided) if divided else alone) else 1


def _print(found: dict[str, Any]) -> None:
    plans = list(found.get("stages", {found["stage"]: found}).values())
    print(
        f"{found['recipe']}: {found['model']}, {_counted(found['parameters']['total'])} parameters ({found['config']})"
    )
    print(f"on {found['device']['name']}, in GB of 10^9 bytes\n")
    names = [part for part in PARTS if any(one["memory"][part] for one in plans)]
    lines = [[part, *(_gb(one["memory"][part]) for one in plans), PARTS[part]] for part in names]
    lines.append(["at most", *(_gb(one["memory"]["total"]) for one in plans), "not all of it is there at once"])
    table(("", *(one["stage"].upper() for one in plans), ""), lines)
    for one in plans:
        print()
        for line in _told(one, len(plans) > 1):
            print(line)
    if "sharding" in found:
        print()
        _print_sharding(found)
    notes = list(dict.fromkeys(note for one in plans for note in one["assumed"]))
    print()
    for note in notes:
        print(f"note: {note}")


def verdict(found: dict[str, Any]) -> str:
    """What follows, in a sentence."""
    total, budget = _gb(found["memory"]["total"]), found["budget"]
    how = f"micro_batch {found['micro_batch']}, gradient_checkpointing {str(found['gradient_checkpointing']).lower()}"
    if budget is None:
        return f"takes {total} GB ({how})"
    if found["fits"]:
        return f"fits: {total} of {_gb(budget)} GB ({how}); the largest micro_batch is {found['largest_micro_batch']}"
    return f"does not fit: {total} of {_gb(budget)} GB ({how}); cheapest change: {found['cheapest']}"


def _told(found: dict[str, Any], several: bool) -> list[str]:
    lines = [f"{found['stage']} {verdict(found)}" if several else verdict(found)]
    if found["cheapest_set"]:
        lines.append(f"  {' '.join(f'--set {key}' for key in found['cheapest_set'])}")
    slow, fast = found["tokens_per_second"]
    rate = f"{slow:,.0f} to {fast:,.0f} tokens a second"
    if found["steps"] is None:
        lines.append(f"{rate}; steps are not known without the rows: --rows N")
        return lines
    low, high = found["seconds"]
    lines.append(f"{found['steps']:,} steps, {found['tokens']:,} tokens, {_time(low)} to {_time(high)} ({rate})")
    return lines


def _print_sharding(found: dict[str, Any]) -> None:
    lines = []
    for name, one in found["sharding"].items():
        fits = {True: "fits", False: "does not fit", None: ""}[one["fits"]]
        slow, fast = one["tokens_per_second"]
        low, high = one["efficiency"]
        took = f"{_time(one['seconds'][0])} to {_time(one['seconds'][1])}" if one["seconds"] else "unknown"
        cells = (
            name,
            _gb(one["memory"]["total"]),
            fits,
            f"{slow:,.0f} to {fast:,.0f}",
            took,
            f"{low:.0%} to {high:.0%}",
        )
        lines.append(cells)
    first = next(iter(found["sharding"].values()))
    head = ("SHARDING", "GB A GPU", "", "TOKENS/S", "TIME", "EFFICIENCY (ASSUMED)")
    table(head, lines)
    if first["busy"] < first["gpus"]:
        print(
            f"\na step has {first['busy']} forwards for {first['gpus']} GPUs: the others wait; "
            "more accumulation or a smaller micro_batch gives them work"
        )


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f}" if count < 10**10 else f"{count / 1e9:.1f}"


def _counted(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 10**9 else f"{count / 1e6:.1f} M"


def _time(seconds: float) -> str:
    for size, word in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {word}"
    return f"{seconds:.0f} s"
