"""What charts, texts and troubles of a run say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from danlu.studio.charts import CHARTS, COLORS, charts, options
from danlu.studio.curves import Metrics
from danlu.studio.texts import Samples, split, spread, tint
from danlu.studio.troubles import SIGNS, troubles

BAD = "<img src=x onerror=alert(1)>"


def metrics_of(path: Path, rows: list[dict[str, Any]]) -> Metrics:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = Metrics(path)
    found.refresh()
    return found


@pytest.fixture
def sft(tmp_path: Path) -> Metrics:
    rows = [{"step": i, "loss": 2 / i, "grad_norm": 0.1, "lr": 0.1, "tokens": 10 * i} for i in range(1, 21)]
    rows += [{"step": 10, "eval_loss": 0.5}, {"step": 20, "eval_loss": 0.7}]
    rows.sort(key=lambda row: row["step"])
    return metrics_of(tmp_path / "sft.jsonl", rows)


def keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for one in value.values() for key in keys(one)}
    return {key for one in value for key in keys(one)} if isinstance(value, list) else set()


def test_only_charts_with_numbers_are_drawn(sft: Metrics, tmp_path: Path):
    assert [chart.title for chart in charts("sft", sft)] == ["Loss", "Gradient norm", "Learning rate"]
    assert charts("eval", sft) == []
    rows = [{"step": 1, "reward": 0.1, "kl": 0.0, "entropy": 0.3}]
    assert [chart.title for chart in charts("grpo", metrics_of(tmp_path / "a", rows))] == ["Rewards", "Entropy"]
    rows = [{"step": 1, "reward": 0.1, "kl": 0.1}]
    assert "KL to the start" in [chart.title for chart in charts("grpo", metrics_of(tmp_path / "b", rows))]


def test_the_loss_has_a_mean_and_its_best_evaluation_marked(sft: Metrics):
    made = options(CHARTS["sft"][0], [("a", sft)], "step", 0.2, str)
    raw, mean, evals = made["series"]
    assert raw["name"] == mean["name"] == "loss"
    assert raw["lineStyle"]["opacity"] < 1
    assert len(raw["data"]) == len(mean["data"]) == 20
    assert evals["data"] == [(10.0, 0.5), (20.0, 0.7)]
    assert evals["markPoint"]["data"] == [{"coord": [10.0, 0.5]}]
    assert made["legend"]["data"] == ["loss", "eval loss"]
    by_tokens = options(CHARTS["sft"][0], [("a", sft)], "tokens", 0.0, str)["series"]
    assert len(by_tokens) == 2
    assert by_tokens[1]["markPoint"]["data"] == [{"coord": [100.0, 0.5]}]


def test_runs_over_one_another_have_colours_of_their_own(sft: Metrics):
    made = options(CHARTS["sft"][0], [("a", sft), ("b", sft)], "step", 0.0, str)
    assert [one["name"] for one in made["series"]] == ["a · loss", "a · eval loss", "b · loss", "b · eval loss"]
    assert [one["color"] for one in made["series"]] == list(COLORS[:4])


def test_each_reward_is_a_line(tmp_path: Path):
    rows = [{"step": i, "reward": 0.1, "rewards/answer": 0.2, f"rewards/{BAD}": 0.3} for i in (1, 2)]
    made = options(CHARTS["grpo"][0], [(BAD, metrics_of(tmp_path / "g", rows))], "step", 0.0, str)
    assert [one["name"] for one in made["series"]] == ["reward", "answer", BAD]


def test_no_text_of_a_run_is_a_key_or_a_script(tmp_path: Path):
    rows = [{"step": i, "reward": 0.1, "rewards/:evil": 0.2, f":{BAD}": 1.0} for i in (1, 2)]
    known = metrics_of(tmp_path / "g", rows)
    for chart in CHARTS["grpo"]:
        made = options(chart, [(":evil", known), (BAD, known)], "seconds", 0.1, str)
        assert {key for key in keys(made) if key.startswith(":")} == {":formatter"}
        assert BAD not in keys(made)
        assert made["tooltip"]["renderMode"] == "richText"  # drawn, not HTML


# ---- texts


def test_reasoning_is_told_from_the_answer_in_every_format():
    assert split("<think>\na\n</think>\n\nb") == ("a", "b")
    assert split("a\n</think>\nb") == ("a", "b")  # the template had opened it
    assert split("<think>never closed") == ("never closed", "")
    assert split("<reasoning>\na\n</reasoning>\n<answer>\nb\n</answer>") == ("a", "b")
    assert split(" plain ") == ("", "plain")
    assert split("") == ("", "")


def test_samples_are_found_by_step_and_outcome(tmp_path: Path):
    path = tmp_path / "samples.jsonl"
    samples = Samples(path)
    assert not samples.refresh()
    rows = [
        {"step": 1, "id": "a", "output": "x", "advantage": -1.0, "reward": 0.0},
        {"step": 1, "id": "b", "output": "y", "advantage": 0.0, "reward": 0.1},
        {"step": 1, "id": "a", "output": "z", "advantage": 1.0, "reward": 1.0},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 2, "id')
    assert samples.refresh()
    assert list(samples.steps) == [1]
    assert [[row["output"] for row in group] for group in samples.groups(1)] == [["z", "x"], ["y"]]
    assert samples.groups(7) == []
    with path.open("a") as file:
        file.write('": "c", "output": "w"}\n')
    assert samples.refresh()
    assert samples.groups(2)[0][0]["output"] == "w"
    assert not samples.refresh()
    path.write_text('{"id": "q", "outcome": "right"}\n')
    assert samples.refresh()
    assert samples.steps == {}
    assert len(samples.rows(samples.outcomes["right"])) == 1


def test_colours_follow_the_advantage():
    assert [tint(v) for v in (2, 0.5, 0.01, -0.5, -1, None, "x")] == [
        *("plus-much", "plus", "even", "minus", "minus-much", "even", "even")
    ]
    assert spread([{"reward": 1.0}, {"reward": 1.0}]) == "equal"
    assert spread([{"reward": 1.0}, {"reward": 0.0}]) == "mixed"


# ---- troubles


def test_troubles_are_told_in_sentences():
    assert troubles("done", {"results": {"steps": 3}}) == []
    results = {
        "signs": {"flat": 7, "unknown": 3},
        "halvings": 2,
        "truncated": 12,
        "not_finite": {"step": 4, "rows": []},
    }
    found = troubles("failed", {"error": f"ValueError: {BAD}", "results": results})
    assert [one.level for one in found[:2]] == ["error", "error"]
    assert found[0].values == {"error": f"ValueError: {BAD}"}
    assert (found[2].what, found[2].step) == (SIGNS["flat"][0], 7)
    assert {one.what.format(**one.values) for one in found} >= {
        "Memory ran out, and micro-batches were made smaller: 2 times.",
        "12 rows are longer than data.max_length and were cut.",
    }
    assert all(one.do for one in found)
    assert troubles("died", {})[0].level == "error"


def test_learning_by_heart_is_seen_in_the_eval_loss():
    assert troubles("done", {}, best=(10, 0.5), last=0.505) == []
    (found,) = troubles("done", {}, best=(1000, 0.5), last=0.6)
    assert "since step 1,000" in found.what.format(**found.values)
