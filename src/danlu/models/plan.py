"""What a recipe will take: memory part by part, steps, tokens, time; and the cheapest change that makes it fit.

From the config alone, without weights (`plan_model`): the bytes of every part (`plan_memory`), the device
(`plan_place`), time and several GPUs (`plan_speed`), lengths of rows where data and tokenizer are here (`plan_rows`).
`resolve` chooses for a run what its recipe leaves open: `micro_batch: auto`, `gradient_checkpointing: auto`.

Amounts are peaks: a forward of the fullest pack that the rows and the recipe allow. `python -m bench.plan` holds them
against measured peaks: within 15 % of the resident set on a CPU, within 10 % of what is allocated on a GPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from danlu import native
from danlu.errors import DanluError
from danlu.models import plan_memory, plan_speed
from danlu.models.batch import micro_batches
from danlu.models.kernels import How, how
from danlu.models.load import native_bf16
from danlu.models.plan_memory import Rollout, Work
from danlu.models.plan_model import Layout, config_from, config_of, layout
from danlu.models.plan_place import Place, clocked, detected, free_memory, place
from danlu.models.plan_rows import Rows, rows_of
from danlu.recipe import Grpo, Lora, Recipe, Sft

Stage = Literal["sft", "grpo"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ENOUGH = {"cpu": 2048, "cuda": 16384, "mps": 4096}  # tokens of a forward from which larger ones are hardly faster
DRAWN = 64  # steps that are drawn to see how full packs become
SHORTEST = 512  # data.max_length below which shorter rows are not proposed


def settings_of(recipe: Recipe, stage: Stage) -> Sft | Grpo:
    return recipe.sft if stage == "sft" else recipe.grpo


@dataclass(frozen=True, slots=True)
class Case:
    """One stage of a recipe on one device."""

    recipe: Recipe
    stage: Stage
    place: Place
    rows: Rows
    config: Any
    told: str

    @property
    def settings(self) -> Sft | Grpo:
        return settings_of(self.recipe, self.stage)

    def changed(self, **keys: Any) -> Case:
        """The case with keys of its recipe (`.` written as `__`) set to other values."""
        values = self.recipe.resolved()
        for key, value in keys.items():
            node, parts = values, key.split("__")
            for part in parts[:-1]:
                node = node[part]
            node[parts[-1]] = value
        return replace(self, recipe=Recipe.model_validate(values))


# ---- what others call


def plan(
    recipe: Recipe,
    *,
    budget: int | None = None,
    device: Literal["cuda", "cpu", "mps"] | None = None,
    lengths: np.ndarray | None = None,
    gpus: int = 1,
    nodes: int = 1,
    sharding: str | None = None,
    stage: Stage | None = None,
    gpu: str | None = None,
    rows: int | None = None,
    config: str | None = None,
    start: str | None = None,
) -> dict[str, Any]:
    """The plan of a recipe's training stage as plain values; bytes, seconds.

    `budget`: bytes of the device (default: what is free on this machine's). `lengths`: tokens of every row, else they
    are read where they are at hand. `gpus` of each of `nodes`, under `sharding` (one of plan_speed.SHARDINGS; default:
    each of them is told). `gpu`: a name in plan_place.GPUS. `rows`: how many, where the data is elsewhere. `config`: a
    config.json in the place of the model's own. Of two training stages the one that takes more is told, and both are
    in "stages". DanluError when the recipe trains nothing or its model's config is out of reach.
    """
    stages = [stage] if stage else [one for one in recipe.stages if one in ("sft", "grpo")]
    if not stages:
        raise DanluError("this recipe trains nothing", "plan a recipe with the stage sft or grpo")
    where = place(device, budget, gpu)
    found_config, told = config_of(recipe.model, start, config)
    found = {}
    for one in stages:
        known = Rows(np.asarray(lengths), len(lengths)) if lengths is not None else rows_of(recipe, one, start)
        if known.count is None and rows is not None:
            known = Rows(known.lengths, rows, known.supervised, known.told)
        found[one] = _planned(Case(recipe, one, where, known, found_config, told), gpus, nodes, sharding)
    worst = max(found.values(), key=lambda one: one["memory"]["total"])
    return worst | ({"stages": found} if len(found) > 1 else {})


def resolve(recipe: Recipe, stage: Stage, start: str | None = None) -> tuple[int, bool]:
    """(micro_batch, gradient_checkpointing) of a run, where the recipe says auto: by what is free on this device now.

    The largest micro-batch that fits without checkpointing, at most the tokens after which larger ones do not help
    (ENOUGH); with checkpointing where not even one row fits without it.
    """
    settings = settings_of(recipe, stage)
    if settings.micro_batch != "auto" and settings.gradient_checkpointing != "auto":
        return settings.micro_batch or recipe.sft.batch_size, settings.gradient_checkpointing
    kind = detected()
    where = Place(kind, "here", free_memory(kind), (0.0, 0.0), (0.0, 0.0), native=native_bf16())
    return chosen(Case(recipe, stage, where, Rows(), *config_of(recipe.model, start)))


# ---- one stage


def _planned(case: Case, gpus: int, nodes: int, sharding: str | None) -> dict[str, Any]:
    where, lay = clocked(case.place, dtypes(case)[1]), layout_of(case)
    micro, checkpointing = chosen(case)
    memory = memory_of(case, micro, checkpointing)
    fit = memory["total"] <= where.budget if where.budget is not None else None
    trained = sum(one.count for one in lay.parameters if one.trained)
    load = load_of(case, micro, checkpointing)
    found: dict[str, Any] = {
        "recipe": case.recipe.name,
        "stage": case.stage,
        "model": case.recipe.model.id,
        "config": case.told,
        "device": {"kind": where.kind, "name": where.name},
        "parameters": lay.counts | {"total": sum(lay.counts.values()), "trained": trained},
        "memory": memory,
        "budget": where.budget,
        "fits": fit,
        "micro_batch": micro,
        "gradient_checkpointing": checkpointing,
        "largest_micro_batch": largest(case, checkpointing) if where.budget is not None else None,
        **(cheapest(case) if fit is False else {"cheapest": None, "cheapest_set": []}),
        "steps": load.steps,
        "tokens": load.tokens,
        **plan_speed.speed(load, where),
        "assumed": [*([case.rows.told] if case.rows.told else []), *plan_speed.assumed(where)],
    }
    if gpus * nodes > 1:
        found["sharding"] = plan_speed.sharded(memory, load, where, gpus, nodes, sharding)
    return found


def chosen(case: Case) -> tuple[int, bool]:
    """(micro_batch, gradient_checkpointing) that a run on this device would take."""
    settings = case.settings
    micro, checkpointing = settings.micro_batch, settings.gradient_checkpointing
    sizes = _sizes(case) if micro == "auto" else [micro or case.recipe.sft.batch_size]
    tries = [False, True] if checkpointing == "auto" else [checkpointing]
    for one in tries:
        for size in sizes:
            if fits(case, size, one):
                return size, one
    return sizes[-1], tries[-1]


def _sizes(case: Case) -> list[int]:
    """Micro-batches that are worth trying for `auto`, largest first."""
    enough = ENOUGH[case.place.kind] // case.recipe.data.max_length
    return list(range(max(1, min(enough, _rows_of_step(case))), 0, -1))


def _rows_of_step(case: Case) -> int:
    if case.stage == "sft":
        return case.recipe.sft.batch_size * case.recipe.sft.accumulation
    return case.recipe.grpo.prompts * case.recipe.grpo.group


def fits(case: Case, micro: int, checkpointing: bool) -> bool:
    """Whether it fits the device; True where its memory is not known."""
    budget = case.place.budget
    return budget is None or memory_of(case, micro, checkpointing)["total"] <= budget


def largest(case: Case, checkpointing: bool) -> int | None:
    """The largest micro-batch that fits, at most the rows of a step; None where not even one row fits."""
    sizes = range(_rows_of_step(case), 0, -1)
    return next((size for size in sizes if fits(case, size, checkpointing)), None)


# ---- what a run holds


def dtypes(case: Case) -> tuple[torch.dtype, torch.dtype, bool]:
    """(dtype of the base's weights, dtype of products, whether autocast makes it so), as `load` and the loop choose."""
    settings, spec, kind, native = case.settings, case.recipe.model, case.place.kind, case.place.native
    half = "bf16" if native else "fp16" if kind == "cuda" else "fp32"
    weights = half if spec.dtype == "auto" or (spec.dtype == "fp16" and kind == "cpu") else spec.dtype
    if settings.method == "full":
        weights = "fp32"
    wanted = half if settings.precision == "auto" else settings.precision
    if wanted == "fp16" and kind != "cuda":
        wanted = "bf16" if native else "fp32"
    return DTYPES[weights], DTYPES[weights if wanted == "fp32" else wanted], wanted != "fp32"


def layout_of(case: Case) -> Layout:
    settings, four_bit = case.settings, case.recipe.model.quantization == "nf4"
    lora = settings.lora.model_dump_json() if settings.method == "lora" else None
    values = json.dumps(case.config.to_dict(), sort_keys=True, default=str)
    return _built(values, case.told, dtypes(case)[0], lora, four_bit and lora is not None)


@lru_cache(maxsize=16)  # building a model takes a second, even without its weights
def _built(values: str, told: str, dtype: torch.dtype, lora: str | None, quantized: bool) -> Layout:
    config = config_from(json.loads(values), told)
    return layout(config, told, dtype=dtype, lora=Lora.model_validate_json(lora) if lora else None, quantized=quantized)


def work_of(case: Case, micro: int, checkpointing: bool) -> Work:
    """The largest forward of a run."""
    settings, lay = case.settings, layout_of(case)
    _, compute, autocast = dtypes(case)
    tokens, rows, packs, share = _pack(case, micro, lay.fast)
    lora = settings.lora if settings.method == "lora" else None
    return Work(
        tokens=tokens,
        rows=rows,
        supervised=max(1, round(tokens * share)),
        packs=packs,
        compute=compute,
        autocast=autocast,
        device=case.place.kind,
        checkpointing=checkpointing,
        kernels=_kernels(case),
        optimizer=settings.optimizer.name,
        dropout=bool(lora and lora.dropout),
        rank=lora.r if lora else 0,
        dora=bool(lora and lora.dora),
    )


def _pack(case: Case, micro: int, packed: bool) -> tuple[int, int, int, float]:
    """(tokens, rows, forwards of a step, share with loss) of the fullest forward."""
    recipe, lengths, count = case.recipe, case.rows.lengths, _rows_of_step(case)
    if case.stage == "grpo":
        longest = int(lengths.max()) if lengths is not None and len(lengths) else recipe.grpo.max_prompt
        rows, whole = min(micro, count), longest + recipe.grpo.max_completion
        return rows * whole, rows, math.ceil(count / rows), recipe.grpo.max_completion / whole
    longest = recipe.data.max_length
    if lengths is None or not len(lengths):
        rows = min(micro, count)
        return rows * longest, rows, math.ceil(count / rows), case.rows.supervised
    draw, most, forwards = np.random.default_rng(recipe.seed), (0, 1), 1
    for _ in range(DRAWN):
        own = lengths[np.concatenate([draw.permutation(len(lengths)) for _ in range(-(-count // len(lengths)))])][
            :count
        ]
        parts = micro_batches(own.tolist(), micro * longest, padding=not packed)
        held = [(sum(own[part]) if packed else len(part) * max(own[part]), len(part)) for part in parts]
        most, forwards = max(most, *held), max(forwards, len(parts))
    return int(most[0]), most[1], forwards, case.rows.supervised


def _kernels(case: Case) -> How:
    """As the loop decides; a compiler is assumed on a GPU that is not here."""
    kind = case.place.kind
    return how(case.settings.compile, kind, case.config.hidden_size, steps_of(case), here=kind != "cuda")


def memory_of(case: Case, micro: int, checkpointing: bool) -> dict[str, int]:
    """Bytes by part and in total, see `plan_memory.memory`."""
    recipe, settings = case.recipe, case.settings
    watched = bool(recipe.sft.watch) if case.stage == "sft" else bool(recipe.grpo.valid)
    validated = case.stage == "sft" and bool(recipe.data.valid or recipe.data.valid_fraction)
    return plan_memory.memory(
        layout_of(case),
        work_of(case, micro, checkpointing),
        _rollout(case),
        best=settings.keep_best and (watched or validated),
    )


def _rollout(case: Case) -> Rollout | None:
    """Completions that are generated while training: GRPO's rollouts, answers to watched questions."""
    recipe, kind = case.recipe, case.place.kind
    if case.stage == "grpo":
        own = recipe.grpo
        rows = min(own.prompts * own.group, max(1, own.rollout_batch // own.group) * own.group)
        prompt = own.max_prompt
        if case.rows.lengths is not None and len(case.rows.lengths):
            prompt = int(case.rows.lengths.max())
        shape = (rows, prompt, own.max_completion)
        return plan_memory.rollout(layout_of(case), dtypes(case)[0], kind, *shape, case.place.native, _exact(case))
    if not recipe.sft.watch:
        return None
    prompt = min(SHORTEST, recipe.data.max_length)
    shape = (recipe.eval.batch, prompt, recipe.eval.max_tokens)
    return plan_memory.rollout(layout_of(case), dtypes(case)[0], kind, *shape, case.place.native, _exact(case))


def _exact(case: Case) -> bool:
    """Whether decoding in C finds bf16 numbers in the base's matrices: a checkpoint's, not random or unpacked ones."""
    spec, held = case.recipe.model, getattr(case.config, "dtype", None) or getattr(case.config, "torch_dtype", None)
    checkpoint = spec.config is None and spec.quantization == "none" and str(held).endswith("bfloat16")
    return checkpoint and native.library() is not None


# ---- steps, tokens, work


def steps_of(case: Case) -> int | None:
    """Optimizer steps; None where the number of rows is not known."""
    if case.stage == "grpo":
        return case.recipe.grpo.steps
    own = case.recipe.sft
    if own.steps or case.rows.count is None:
        return own.steps
    return math.ceil(max(1, round(own.epochs * case.rows.count)) / _rows_of_step(case))


def load_of(case: Case, micro: int, checkpointing: bool) -> plan_speed.Load:
    """What a run has to compute."""
    recipe, lay, rows = case.recipe, layout_of(case), _rows_of_step(case)
    most = recipe.data.max_length if case.stage == "sft" else recipe.grpo.max_prompt
    known = case.rows.lengths if case.rows.lengths is not None and len(case.rows.lengths) else [most]
    lengths = np.asarray(known, dtype=np.float64)
    share, generated = case.rows.supervised, 0
    if case.stage == "grpo":
        generated = recipe.grpo.max_completion
        lengths = lengths + generated
        share = generated / float(lengths.mean())
    return plan_speed.Load(
        layout=lay,
        steps=steps_of(case),
        rows=rows,
        length=float(lengths.mean()),
        square=float((lengths**2).mean()),
        supervised=share,
        packs=_pack(case, micro, lay.fast)[2],
        checkpointing=checkpointing,
        generated=generated,
        rollouts=math.ceil(rows / max(1, recipe.grpo.rollout_batch)) if generated else 0,
        iterations=recipe.grpo.iterations if generated else 1,
        weight_bytes=lay.held(trained=False) + lay.held(trained=True),
    )


# ---- what to change


def cheapest(case: Case) -> dict[str, Any]:
    """The first change with which it fits, from those that cost nothing to those that change what is trained.

    `cheapest`: in words; `cheapest_set`: the keys to set for it (none where nothing that is known fits).
    """
    budget = case.place.budget or 0
    least: tuple[int, str] | None = None
    for words, keys, changed, micro, checkpointing in _changes(case):
        total = memory_of(changed, micro, checkpointing)["total"]
        if total <= budget:
            return {"cheapest": f"{words}: {gigabytes(total)} of {gigabytes(budget)} GB", "cheapest_set": keys}
        if least is None or total < least[0]:
            least = (total, words)
    what = f"least is {gigabytes(least[0])} GB with {least[1]}" if least else "it cannot be made smaller"
    return {"cheapest": f"nothing that is known fits {gigabytes(budget)} GB; {what}", "cheapest_set": []}


def _changes(case: Case) -> Iterator[tuple[str, list[str], Case, int, bool]]:
    """(what changes, as --set, the changed case, micro_batch, checkpointing), cheapest first."""
    micro, checkpointing = chosen(case)
    for words, keys in _steps_down(case):
        changed = case.changed(**keys) if keys else case
        sets = [f"{key.replace('__', '.')}={'[]' if value == [] else value}" for key, value in keys.items()]
        for recompute in [True] if checkpointing else [False, True]:
            size = micro
            while size:
                parts = [(f"micro_batch {size}", f"{case.stage}.micro_batch={size}")] if size != micro else []
                if recompute and not checkpointing:
                    parts.append(("gradient_checkpointing", f"{case.stage}.gradient_checkpointing=true"))
                if parts or words:
                    told = " + ".join([*(word for word, _ in parts), *words])
                    yield told, [*(key for _, key in parts), *sets], changed, size, recompute
                size //= 2


def _steps_down(case: Case) -> list[tuple[list[str], dict[str, Any]]]:
    """(words, keys of the recipe) of ever larger changes; each holds the ones before."""
    recipe, own, stage = case.recipe, case.settings, case.stage
    single: list[tuple[str, str, Any]] = []
    if stage == "grpo" and recipe.grpo.rollout_batch > recipe.grpo.group:
        single.append((f"rollout_batch {recipe.grpo.group}", "grpo__rollout_batch", recipe.grpo.group))
    if own.optimizer.name == "adamw":
        single.append(("optimizer adamw_8bit", f"{stage}__optimizer__name", "adamw_8bit"))
    if own.method == "full":
        single.append(("method lora", f"{stage}__method", "lora"))
    elif own.lora.modules_to_save:
        single.append(("no modules_to_save", f"{stage}__lora__modules_to_save", []))
    if recipe.model.quantization == "none" and recipe.model.config is None:
        single.append(("quantization nf4", "model__quantization", "nf4"))
    length = recipe.data.max_length
    while stage == "sft" and length // 2 >= SHORTEST:
        length //= 2
        single.append((f"max_length {length}", "data__max_length", length))
    words: dict[str, str] = {}
    keys: dict[str, Any] = {}
    found: list[tuple[list[str], dict[str, Any]]] = [([], {})]
    for word, key, value in single:
        words, keys = {**words, key: word}, {**keys, key: value}
        found.append((list(words.values()), keys))
    return found


def gigabytes(count: float) -> str:
    """10^9 bytes with one decimal."""
    return f"{count / 1e9:.1f}"
