"""Training runs side by side: which differences between recipes are more than differences between seeds?

An arm is one recipe trained under several seeds, a run each. A run gives one number a metric, all from metrics.jsonl:
  train_loss            mean loss of the last steps: a tenth of the shortest run's, five at least
  eval_loss             loss on the validation rows, of what the run delivers: the lowest with keep_best, else the last
  steps_to_common_loss  first step at which the train loss, as a mean over that many steps, is at or below the highest
                        train_loss of all runs, a loss that every one of them reaches (a share of a run's own final
                        loss would make the run that learns least converge first)
  grad_norm_variation   standard deviation of the gradient norm, before clipping, over its mean
Differences are tested over runs, not over steps, which depend on one another: Student's paired t where two arms share
at least two seeds (the same seed is the same order of the same rows), else Welch's (1947, Biometrika 34:28) where both
have two runs. Steps are whole numbers: their variance is taken to be at least that of rounding, 1/12. p is
Holm-adjusted over all pairs and metrics; a difference is real at p < 0.05, and else "cannot tell", not equal.
Not covered: what a lower loss means for answers; only an evaluation tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from danlu.errors import DanluError
from danlu.evaluate.stats import holm
from danlu.evaluate.verdict import ALPHA, p_text
from danlu.run import Run, differing_keys

METRICS = {
    "train_loss": "train loss",
    "eval_loss": "eval loss",
    "steps_to_common_loss": "steps to the common loss",
    "grad_norm_variation": "variation of the gradient norm",
}
GRAIN = {"steps_to_common_loss": 1.0}  # what the metric is rounded to
WINDOW = 5
# what may differ inside an arm, and what training does not depend on
SEEDS = ("seed", "shuffle_seed")
ASIDE = ("name", "description", "stages", "eval", "grpo", "export")
ASIDE_SFT = ("track", "save_every", "keep_last", "compile")
Arm = tuple[str, Sequence[Run]]
Values = dict[int, float]  # seed -> a metric of its run


def compare(arms: Sequence[Arm]) -> dict[str, Any]:
    """Arms (name, finished SFT runs of one recipe) against each other, each against all before it.

    {"arms", "metrics", "sentence", "common_loss", "window", "notes"}. An arm has name, runs, seeds, steps and
    metrics: {metric: {"values" by run, "mean", "sd", "ci"}}. An entry of `metrics` is a comparison: name, label, arms
    (two names), a, b (means over the `n` seeds compared), difference (b - a), ci (95 %), p, p_adjusted, test ("paired
    t" | "Welch's t" | None) and real (None where nothing can be tested). What a run did not measure is left out.

    DanluError for fewer than two arms, for what is no finished SFT run, for an arm whose runs differ in more than
    seeds, and for a seed twice in an arm.
    """
    if len(arms) < 2:
        raise DanluError("there is one arm", "give two or more: danlu compare A1,A2 B1,B2")
    curves = [_curves(name, runs) for name, runs in arms]
    shortest = min(own.losses.size for arm in curves for own in arm)
    window = min(shortest, max(WINDOW, shortest // 10))
    common = max(float(smooth(own.losses, window)[-1]) for arm in curves for own in arm)
    found = [{own.seed: measured(own, common, window) for own in arm} for arm in curves]
    metrics = []
    for a, b in combinations(range(len(arms)), 2):
        for name, label in METRICS.items():
            one, two = ({seed: values[name] for seed, values in found[arm].items() if name in values} for arm in (a, b))
            if one and two:
                told = difference(one, two, GRAIN.get(name, 0.0))
                metrics.append({"name": name, "label": label, "arms": [arms[a][0], arms[b][0]], **told})
    tested = [entry for entry in metrics if entry["p"] is not None]
    for entry, p in zip(tested, holm([entry["p"] for entry in tested]), strict=True):
        entry.update(p_adjusted=p, real=p < ALPHA)
    names = [name for name, _ in arms]
    return {
        "arms": [_arm(name, arm, own) for name, arm, own in zip(names, curves, found, strict=True)],
        "metrics": metrics,
        "common_loss": common,
        "window": window,
        "notes": [note for a, b in combinations(zip(names, curves, strict=True), 2) for note in _notes(a, b)],
        "sentence": _sentence(metrics),
    }


# ---- one run


@dataclass(frozen=True, slots=True)
class Curves:
    """What a run logged: losses and gradient norms by step, losses on the validation rows."""

    run: Run
    config: dict[str, Any]
    seed: int
    losses: np.ndarray
    norms: np.ndarray
    evals: np.ndarray


def _curves(name: str, runs: Sequence[Run]) -> list[Curves]:
    """The curves of an arm, after a look at whether it is one."""
    if not runs:
        raise DanluError(f"{name} has no runs", "list runs with: danlu ls")
    found: list[Curves] = []
    for run in runs:
        info = run.info()
        if info.get("stage") != "sft":
            raise DanluError(f"{run.path} is not an SFT run", "compare SFT runs with SFT runs")
        if run.state() != "done":
            raise DanluError(f"{run.path} is {run.state()}, not done", "finish it first with --resume")
        rows = run.metrics()
        losses, norms, evals = (_series(rows, key) for key in ("loss", "grad_norm", "eval_loss"))
        own = Curves(run, run.config(), info["seed"], losses, norms, evals)
        if not own.losses.size:
            raise DanluError(f"{run.path} has logged no loss", "its metrics.jsonl is empty or was removed")
        found.append(own)
    seen: dict[int, Curves] = {}
    for own in found:
        if own.seed in seen:
            hint = "a seed counts once; train under another with --set seed=N --name NAME"
            raise DanluError(f"{seen[own.seed].run.path} and {own.run.path} have the same seed", hint)
        seen[own.seed] = own
        differ = differing_keys(_settled(found[0].config), _settled(own.config))
        if differ:
            hint = "an arm is one recipe under several seeds; give other recipes as arms of their own"
            raise DanluError(f"{found[0].run.path} and {own.run.path} differ in {', '.join(differ[:5])}", hint)
    return found


def _series(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """The finite values of `key` (a gradient norm that overflowed under fp16 is not one)."""
    values = np.array([row[key] for row in rows if row.get(key) is not None], dtype=float)
    return values[np.isfinite(values)]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Means over the last `window` values; the first belongs to step `window`."""
    return np.lib.stride_tricks.sliding_window_view(values, window).mean(-1)


def measured(own: Curves, common: float, window: int) -> dict[str, float]:
    """The metrics of one run."""
    smoothed = smooth(own.losses, window)
    found = {"train_loss": float(smoothed[-1])}
    if own.evals.size:
        found["eval_loss"] = float(own.evals.min() if own.config["sft"]["keep_best"] else own.evals[-1])
    found["steps_to_common_loss"] = float(window + int(np.argmax(smoothed <= common)))
    if own.norms.size > 1 and own.norms.mean() > 0:
        found["grad_norm_variation"] = float(own.norms.std(ddof=1) / own.norms.mean())
    return found


def _arm(name: str, curves: Sequence[Curves], found: dict[int, dict[str, float]]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for metric in METRICS:
        values = [own[metric] for own in found.values() if metric in own]
        if values:
            told[metric] = {"values": values, **spread(values, GRAIN.get(metric, 0.0))}
    steps = sorted({own.losses.size for own in curves})
    return {
        "name": name,
        "runs": [str(own.run.path) for own in curves],
        "seeds": list(found),
        "steps": steps[0] if len(steps) == 1 else steps,
        "metrics": told,
    }


# ---- statistics


def spread(values: Sequence[float], grain: float = 0.0) -> dict[str, Any]:
    """{"mean", "sd", "ci"}: Student's 95 % interval of the mean; no sd and ci (None) of one value."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if array.size < 2:
        return {"mean": mean, "sd": None, "ci": None}
    half = _t_quantile(array.size - 1) * math.sqrt(_variance(array, grain) / array.size)
    return {"mean": mean, "sd": float(array.std(ddof=1)), "ci": [mean - half, mean + half]}


def difference(a: Values, b: Values, grain: float = 0.0) -> dict[str, Any]:
    """b against a, by seed: {"a", "b", "difference", "n", "ci", "p", "test", "p_adjusted", "real"}; see the module.

    `grain` is what the values are rounded to. Without two runs on both sides, and where the runs of an arm agree to the
    last digit though their seeds differ, there is nothing to test with: ci, p and test are None. p_adjusted and real
    are None until all comparisons are known.
    """
    shared = sorted(a.keys() & b.keys())
    if len(shared) >= 2:
        before, after = (np.array([side[seed] for seed in shared]) for side in (a, b))
        test, n, freedom = "paired t", len(shared), len(shared) - 1.0
        error = _variance(after - before, grain * math.sqrt(2)) / n
    else:
        before, after = (np.array(list(side.values())) for side in (a, b))
        test, n, freedom, error = "Welch's t", min(len(a), len(b)), 0.0, 0.0
        parts = [(_variance(side, grain) / len(side), len(side)) for side in (before, after)] if n >= 2 else []
        error = sum(part for part, _ in parts)
        if error:
            freedom = error**2 / sum(part**2 / (size - 1) for part, size in parts)
    gap = float(after.mean() - before.mean())
    told: dict[str, Any] = {"a": float(before.mean()), "b": float(after.mean()), "difference": gap, "n": n}
    told |= {"ci": None, "p": None, "test": None, "p_adjusted": None, "real": None}
    if n < 2 or (error == 0 and gap != 0):
        return told
    if error == 0:
        return {**told, "ci": [0.0, 0.0], "p": 1.0, "test": test}
    half = _t_quantile(freedom) * math.sqrt(error)
    return {**told, "ci": [gap - half, gap + half], "p": _t_tail(gap / math.sqrt(error), freedom), "test": test}


def _variance(values: np.ndarray, grain: float) -> float:
    return max(float(values.var(ddof=1)), grain * grain / 12)


def _t_quantile(freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def _t_tail(t: float, freedom: float) -> float:
    """Two-sided p of a t."""
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(t)))


# ---- what can be compared


def _settled(config: dict[str, Any]) -> Any:
    """A config without seeds and without what training does not depend on."""
    kept = {key: value for key, value in config.items() if key not in ASIDE}
    kept["sft"] = {key: value for key, value in config["sft"].items() if key not in ASIDE_SFT}
    return _seedless(kept)


def _seedless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _seedless(own) for key, own in value.items() if key not in SEEDS}
    return [_seedless(own) for own in value] if isinstance(value, list) else value


def _notes(a: tuple[str, list[Curves]], b: tuple[str, list[Curves]]) -> list[str]:
    """What makes the figures of two arms other than the same measurement."""
    both, curves = f"{a[0]} and {b[0]}", (a[1], b[1])
    differ = differing_keys(*(_settled(arm[0].config) for arm in curves))
    hashes = [{own.seed: own.run.info()["results"].get("data_hash") for own in arm} for arm in curves]
    models = {key for key in differ if key.startswith("model.")} - {"model.dtype", "model.quantization"}
    masking = {key for key in differ if key.startswith("data.masking")}
    rows = {key for key in differ if key.startswith("data.")} - masking
    told = []
    if models:
        told.append(f"{both} start from different models: their losses may be over other tokens")
    if rows or any(hashes[0][seed] != hashes[1][seed] for seed in hashes[0].keys() & hashes[1].keys()):
        told.append(f"{both} have other rows: their losses are over other text")
    if masking:
        told.append(f"{both} differ in masking: their train losses are over other text, their eval losses are not")
    if "sft.lora.dropout" in differ:
        told.append(f"{both} differ in dropout, which raises train losses and no eval loss")
    if {"sft.batch_size", "sft.accumulation"} & set(differ):
        told.append(f"{both} have other numbers of rows in a step")
    if {"sft.steps", "sft.epochs"} & set(differ):
        told.append(f"{both} were trained for other lengths")
    return told


# ---- words


def _sentence(metrics: list[dict[str, Any]]) -> str:
    """Which differences are real, pair by pair."""
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in metrics:
        pairs.setdefault((one["arms"][0], one["arms"][1]), []).append(one)
    if not any(one["test"] for one in metrics):
        return "Cannot tell: one seed an arm says nothing about luck; train each under two more (--set seed=1, seed=2)"
    return ". ".join(f"{b} against {a}: {_told(own)}" for (a, b), own in pairs.items())


def _told(metrics: list[dict[str, Any]]) -> str:
    real = [
        f"{one['label']} {'higher' if one['difference'] > 0 else 'lower'} by {number(abs(one['difference']))}"
        f" ({p_text(one['p_adjusted'])})"
        for one in metrics
        if one["real"]
    ]
    unclear = [one["label"] for one in metrics if one["real"] is False]
    untested = [one["label"] for one in metrics if one["real"] is None]
    parts = [f"real are {', '.join(real)}" if real else ""]
    parts += [f"cannot tell yet: {', '.join(unclear)}" if unclear else ""]
    parts += [f"not testable: {', '.join(untested)}" if untested else ""]
    return "; ".join(part for part in parts if part)


def number(value: float) -> str:
    """Four significant figures at most."""
    return f"{value:.4g}"
