"""Training runs side by side, held against scipy's own t-tests; real runs, made from curves that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as reference

from danlu import cli
from danlu.errors import DanluError
from danlu.evaluate import training
from danlu.recipe import parse
from danlu.run import Run, write_jsonl

RNG = np.random.default_rng(0)
A = {0: 2.31, 1: 2.36, 2: 2.28, 3: 2.34}
B = {0: 2.10, 1: 2.19, 2: 2.05, 3: 2.11}


@pytest.fixture(autouse=True)
def _outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run asks git about the working directory: elsewhere that takes no time."""
    monkeypatch.chdir(tmp_path)


def made(
    root: Path,
    name: str,
    seed: int,
    losses: Any,
    *,
    norms: Any = None,
    evals: dict[int, float] | None = None,
    recipe: str = "name: mine",
    stage: str = "sft",
    data_hash: str = "rows",
    done: bool = True,
) -> Run:
    """A run that logged these curves; `evals` by step."""
    config = parse(recipe, [f"seed={seed}"], origin="mine").resolved()
    run = Run.create(root / name, stage, config, seed=seed)
    if not done:
        return run
    rows: list[dict[str, Any]] = []
    for step, loss in enumerate(losses, 1):
        rows.append({"step": step, "loss": float(loss), "grad_norm": 1.0 if norms is None else float(norms[step - 1])})
        rows += [{"step": step, "eval_loss": evals[step]}] if evals and step in evals else []
    write_jsonl(run.path / "metrics.jsonl", rows)
    with run.recording():
        run.record(data_hash=data_hash)
    return run


def arm(root: Path, label: str, level: float, seeds: Any = (0, 1, 2), noise: float = 0.01, **given: Any) -> list[Run]:
    """Runs whose losses fall from 4 to `level`; what the seed does to them is the same in every arm."""
    found = []
    for seed in seeds:
        shared, own = np.random.default_rng(seed), np.random.default_rng([seed, len(label), int(1000 * level)])
        curve = level + (4 - level) * np.exp(-np.arange(40) / 6) + shared.normal(0, 0.2) + own.normal(0, noise, 40)
        evals = {40: level + shared.normal(0, 0.1) + own.normal(0, noise)}
        norms = shared.uniform(0.5, 1.5, 40) + own.normal(0, noise, 40)
        found.append(made(root, f"{label}-{seed}", seed, curve, norms=norms, evals=evals, **given))
    return found


def entry(found: dict[str, Any], name: str) -> dict[str, Any]:
    (one,) = [one for one in found["metrics"] if one["name"] == name]
    return one


# ---- tests of differences


def test_shared_seeds_are_paired():
    told = training.difference(A, dict(reversed(B.items())))
    own = reference.ttest_rel(list(B.values()), list(A.values()))
    assert told["p"] == pytest.approx(own.pvalue, rel=1e-9)
    assert told["ci"] == pytest.approx(list(own.confidence_interval(0.95)), rel=1e-9)
    assert told["difference"] == pytest.approx(np.mean(list(B.values())) - np.mean(list(A.values())))
    assert (told["test"], told["n"]) == ("paired t", 4)


def test_only_what_both_seeds_saw_is_paired():
    told = training.difference(A | {7: 9.0}, B | {8: 0.0})
    assert {key: told[key] for key in ("a", "b", "p", "n")} == {
        key: training.difference(A, B)[key] for key in ("a", "b", "p", "n")
    }


def test_other_seeds_are_tested_by_welch():
    other = {seed + 10: value for seed, value in B.items() if seed}
    told = training.difference(A, other)
    own = reference.ttest_ind(list(other.values()), list(A.values()), equal_var=False)
    assert told["p"] == pytest.approx(own.pvalue, rel=1e-9)
    assert told["ci"] == pytest.approx(list(own.confidence_interval(0.95)), rel=1e-9)
    assert (told["test"], told["n"]) == ("Welch's t", 3)


def test_what_cannot_be_tested():
    none = {"ci": None, "p": None, "test": None}
    for a, b in (({0: 1.0}, {0: 2.0}), (A, {9: 2.0}), ({0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.0})):
        told = training.difference(a, b)
        assert {key: told[key] for key in none} == none
    assert training.difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})["p"] == 1.0


def test_whole_steps_are_not_more_certain_than_their_rounding():
    """Three seeds, each five steps earlier: a spread of 0 says nothing, rounding spreads the differences by 1/6."""
    told = training.difference({0: 20.0, 1: 22.0, 2: 21.0}, {0: 15.0, 1: 17.0, 2: 16.0}, grain=1.0)
    assert told["p"] == pytest.approx(2 * reference.t.sf(5 / np.sqrt(1 / 6 / 3), 2))
    assert told["ci"][1] - told["ci"][0] == pytest.approx(2 * reference.t.ppf(0.975, 2) * np.sqrt(1 / 18))


def test_intervals_of_an_arm():
    told = training.spread(list(A.values()))
    own = reference.ttest_1samp(list(A.values()), 0).confidence_interval(0.95)
    assert told["ci"] == pytest.approx(list(own), rel=1e-9)
    assert training.spread([1.5]) == {"mean": 1.5, "sd": None, "ci": None}


def test_seeds_alone_are_hardly_ever_called_real():
    """Where only luck differs, at most one comparison of four in twenty is called real (Holm: 5 %)."""
    wrong = 0
    for _ in range(400):
        p = [training.difference(*(dict(enumerate(RNG.normal(size=3))) for _ in "ab"))["p"] for _ in range(4)]
        wrong += min(training.holm(p)) < 0.05
    assert wrong / 400 < 0.08


# ---- metrics of a run


def test_metrics_are_what_they_say(runs):
    losses = [9, 8, 7, 6, 5, 4, 3, 2, 1, 1]
    norms = [1.0, 3.0] * 5
    one = made(runs, "a", 0, losses, norms=norms, evals={5: 2.5, 10: 3.5})
    two = made(runs, "b", 0, [6] * 10, norms=norms, evals={10: 6.0})
    found = training.compare([("a", [one]), ("b", [two])])
    assert (found["window"], found["common_loss"]) == (5, 6.0)
    values = {name: told["mean"] for name, told in found["arms"][0]["metrics"].items()}
    assert values == {
        "train_loss": pytest.approx(2.2),  # (4 + 3 + 2 + 1 + 1) / 5
        "eval_loss": 2.5,  # keep_best delivers the lowest
        "steps_to_common_loss": 6.0,  # (8 + 7 + 6 + 5 + 4) / 5 = 6
        "grad_norm_variation": pytest.approx(np.std(norms, ddof=1) / 2),
    }
    assert found["arms"][1]["metrics"]["steps_to_common_loss"]["mean"] == 5.0  # no earlier mean of five
    assert [one["real"] for one in found["metrics"]] == [None] * 4
    assert found["sentence"].startswith("Cannot tell: one seed an arm")


def test_without_keep_best_the_last_evaluation_counts(runs):
    recipe = "name: mine\nsft: {keep_best: false}"
    pair = [[made(runs, name, 0, [2, 1], evals={1: 2.5, 2: 3.5}, recipe=recipe)] for name in "ab"]
    assert entry(training.compare(list(zip("ab", pair, strict=True))), "eval_loss")["a"] == 3.5


def test_what_was_not_measured_is_left_out(runs):
    pair = [[made(runs, f"{name}{s}", s, [3, 2, float(s)], norms=[0, 0, 0]) for s in (0, 1)] for name in "ab"]
    found = training.compare(list(zip("ab", pair, strict=True)))
    assert [one["name"] for one in found["metrics"]] == ["train_loss", "steps_to_common_loss"]


def test_an_overflowed_norm_is_left_out(runs):
    pair = [[made(runs, name, 0, [3, 2, 1], norms=[float("inf"), 1.0, 3.0])] for name in "ab"]
    found = entry(training.compare(list(zip("ab", pair, strict=True))), "grad_norm_variation")
    assert found["a"] == pytest.approx(np.sqrt(2) / 2)


# ---- arms


def test_pairing_finds_what_the_spread_of_seeds_would_hide(runs):
    """Seeds move the loss by 0.2, the recipe by 0.1: paired it is real, with other seeds it cannot be told."""
    before, after = arm(runs, "one", 2.0), arm(runs, "two", 1.9)
    found = training.compare([("one", before), ("two", after)])
    told = entry(found, "eval_loss")
    assert told["real"] is True
    assert told["difference"] == pytest.approx(-0.1, abs=0.03)
    assert told["ci"][0] < -0.1 < told["ci"][1]
    assert "two against one: real are" in found["sentence"]
    assert "eval loss lower by 0.1" in found["sentence"]
    unpaired = arm(runs, "other", 1.9, seeds=(3, 4, 5))
    assert entry(training.compare([("one", before), ("other", unpaired)]), "eval_loss")["real"] is False


def test_equal_arms_are_not_told_apart(runs):
    found = training.compare([(name, arm(runs, name, 2.0)) for name in ("a", "bb", "ccc")])
    assert len(found["metrics"]) == 12
    assert not any(one["real"] for one in found["metrics"])
    assert (
        found["sentence"].count("cannot tell yet: train loss, eval loss, steps to the common loss, variation of") == 3
    )
    assert all(one["p_adjusted"] >= one["p"] for one in found["metrics"])
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("sft: {lora: {dropout: 0.1}}", "differ in dropout"),
        ("data: {masking: {probability: 0.5}}", "differ in masking: their train losses are over other text"),
        ("data: {max_length: 64}", "have other rows"),
        ("model: {id: elsewhere}", "start from different models"),
        ("sft: {batch_size: 2}", "have other numbers of rows in a step"),
        ("sft: {steps: 7}", "were trained for other lengths"),
        ("model: {quantization: nf4}", None),
        ("sft: {optimizer: {lr: 1.0}}", None),
    ],
)
def test_what_is_not_measured_alike_is_said(runs, change, told):
    arms = [("a", arm(runs, "a", 2.0)), ("b", arm(runs, "b", 2.0, recipe=f"name: mine\n{change}"))]
    notes = training.compare(arms)["notes"]
    assert len(notes) == (told is not None)
    assert told is None or told in notes[0]


def test_other_rows_of_the_same_recipe_are_noticed(runs):
    arms = [("a", arm(runs, "a", 2.0)), ("b", arm(runs, "b", 2.0, data_hash="newer"))]
    assert "have other rows" in training.compare(arms)["notes"][0]


def test_an_arm_is_one_recipe_under_several_seeds(runs):
    one, two = made(runs, "one", 0, [2, 1]), made(runs, "two", 1, [2, 1], recipe="name: x\ndata: {max_length: 64}")
    other = [made(runs, "other", 0, [2, 1])]
    again = made(runs, "again", 0, [2, 1])
    rated = made(runs, "rated", 2, [2, 1], recipe="name: mine\nsft: {optimizer: {name: adamw_8bit}, keep_last: 1}")
    for runs_, what in (
        ([one, two], "differ in data.max_length"),
        ([one, again], "have the same seed"),
        ([one, rated], "differ in sft.optimizer.name"),
        ([], "has no runs"),
        ([made(runs, "grpo", 5, [1], stage="grpo")], "is not an SFT run"),
        ([made(runs, "open", 6, [1], done=False)], "not done"),
        ([made(runs, "empty", 7, [])], "logged no loss"),
    ):
        with pytest.raises(DanluError, match=what):
            training.compare([("a", runs_), ("b", other)])
    with pytest.raises(DanluError, match="one arm"):
        training.compare([("a", other)])


# ---- danlu compare


def danlu(capsys, *args: str) -> tuple[int, str, str]:
    code = cli.main(list(args))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def arms(runs):
    for name, level in (("v1", 2.0), ("v2", 1.5)):
        arm(runs, name, level, recipe=f"name: {name}")
    return runs


def test_the_table_of_recipes(capsys, arms):
    made(arms, "v1-9", 9, [1], recipe="name: v1", done=False)
    code, out, err = danlu(capsys, "compare", "v1", "v2")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("v2 against v1: real are train loss lower by 0.5")
    assert lines[1].split() == ["v1", "v2"]
    assert lines[2].split() == ["seeds", "0", "1", "2", "0", "1", "2"]
    assert "±" in lines[3]
    assert lines[7].split()[:3] == ["METRIC", "ARMS", "DIFFERENCE"]
    assert [line.startswith(label) for line, label in zip(lines[8:], training.METRICS.values(), strict=True)] == [
        True
    ] * 4
    assert lines[9].endswith(" yes")
    assert "v1-9 is died, not done: left out" in err
    assert "a lower loss is not a better answer" in err


@pytest.mark.usefixtures("arms")
def test_json_is_one_object_and_arms_can_be_listed(capsys):
    code, out, _ = danlu(capsys, "compare", "v1-0,v1-1", "v2-0,v2-1", "v2-2", "--json")
    found = json.loads(out)
    assert code == 0
    assert [one["name"] for one in found["arms"]] == ["v1", "v2-0,v2-1", "v2-2"]  # two arms of one recipe
    assert [one["n"] for one in found["metrics"]] == [2] * 4 + [1] * 8
    assert {"name", "a", "b", "difference", "ci", "p", "real"} <= found["metrics"][0].keys()
    assert isinstance(found["sentence"], str)


@pytest.mark.usefixtures("arms")
def test_single_runs_are_told_apart_from_luck(capsys):
    code, out, _ = danlu(capsys, "compare", "v1-0", "v2-0")
    assert code == 0
    assert out.splitlines()[0].startswith("Cannot tell: one seed an arm")
    assert out.splitlines()[1].split() == ["v1-0", "v2-0"]


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["v1-0", "v2-0", "nothing"], "three or more are compared by their training only"),
        (["v1-0", "v2-0", "v2-1", "--suite", "quick"], "three or more are compared by their training only"),
        (["v1-0,gone", "v2-0"], "gone is not an SFT run"),
        (["v1-0,", "v2-0"], "an empty name is not an SFT run"),
        (["v1-0", "nothing"], "nothing is neither a run nor a file"),
        (["v1-0,v1-0", "v2-0"], "have the same seed"),
    ],
)
@pytest.mark.usefixtures("arms")
def test_what_is_no_arm(capsys, args, what):
    code, out, err = danlu(capsys, "compare", *args)
    assert (code, out) == (2, "")
    assert what in err.splitlines()[0]
    assert err.splitlines()[1].startswith("hint: ")
