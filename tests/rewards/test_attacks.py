"""The attack suite: nothing that is cheaper than an answer earns more than an honest wrong one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from danlu.recipe import Recipe, RewardSpec, load, parse, shipped
from danlu.records import Sample
from danlu.rewards import Rewards, score_all
from danlu.rewards.attacks import ATTACKS, HONEST, completions_of
from danlu.think import ThinkFormat

sys.path.insert(0, str(Path(__file__).parent))
from writing import OPENED, PLAIN, TAGS, THINK, asked

ZH = {"A": "肺结核", "B": "肺炎", "C": "肺癌", "D": "哮喘"}
EN = {"A": "Viral pneumonia", "B": "Pulmonary embolism", "C": "Asthma", "D": "Heart failure"}
ASK = "What is the most likely diagnosis in this patient with chest pain and dyspnea?"
SAMPLES = {
    "choice zh": asked("B", "下列哪项诊断最可能？", options=ZH),
    "choice en": asked("B", ASK, options=EN),
    "several zh": asked("AC", "下列哪些诊断可能？", options=ZH),
    "false one zh": asked("B", "下列哪项诊断是错误的？", options=ZH),
    "gold as text": asked("肺炎", "下列哪项诊断最可能？", options=ZH),
    "open zh": asked("肺炎", distractors=("支原体肺炎", "肺结核", "肺癌")),
    "open en": asked("pulmonary embolism", ASK, distractors=("viral pneumonia", "asthma")),
    "open zh alone": asked("肺炎", aliases=("肺部感染",)),
    "open en alone": asked("pulmonary embolism", ASK),
    "number": asked("42", "六乘以七等于多少？"),
}
OTHERS = ["急性胰腺炎", "胃溃疡", "aspirin", "脑出血", "femur"]
FORMATS = {"tags": TAGS, "think": THINK, "opened by the template": OPENED}


def totals(recipe: Recipe, sample: Sample, think: ThinkFormat) -> dict[str, float]:
    made = completions_of(sample, think, OTHERS)
    with Rewards(recipe.grpo.rewards, recipe.grpo.gate) as rewards:
        found = rewards.score_all([sample] * len(made), list(made.values()), think)
    assert all(one.total is not None for one in found)
    return {kind: one.total for kind, one in zip(made, found, strict=True)}  # type: ignore[misc]


def alone(name: str, gate: str = "none") -> Recipe:
    return parse(f"name: x\ngrpo: {{rewards: [{name}], gate: {gate}}}")


def with_grpo() -> list[str]:
    return [name for name in shipped() if "grpo" in load(name).stages]


def check(recipe: Recipe, sample: Sample, think: ThinkFormat, known: tuple[str, ...] = ()) -> None:
    paid = totals(recipe, sample, think)
    wrong = max(paid["wrong"], paid["wrong in words"])
    assert paid["gold"] > wrong
    above = {kind: paid[kind] for kind in ATTACKS if paid.get(kind, wrong) > wrong + 1e-9}
    assert set(above) == set(known), (wrong, above)


@pytest.mark.parametrize("think", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("name", ["answer", "choice"])
def test_no_attack_on_a_verified_answer_pays(name: str, sample: Sample, think: ThinkFormat) -> None:
    if name == "answer" or sample.options:
        check(alone(name), sample, think)
        paid = totals(alone(name), sample, think)
        assert paid["gold"] == paid["gold in words"] == 1.0
        assert max(paid[kind] for kind in ATTACKS) == 0.0


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("name", with_grpo())
def test_no_attack_on_a_shipped_recipe_pays(name: str, sample: Sample) -> None:
    """But one that is published so: `int` pays for any number."""
    recipe = load(name)
    formats = [TAGS] if recipe.model.think == "reasoning_answer" else [THINK, OPENED]
    for think in formats:
        rewarded = [spec.label for spec in recipe.grpo.rewards]
        hacked = ("a bare number",) if "int" in rewarded else ()
        check(recipe, sample, think, hacked)


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_a_model_without_a_think_format(sample: Sample) -> None:
    """Everything is the answer then, the reasoning too."""
    check(alone("answer"), sample, PLAIN, ())


def test_the_suite_finds_what_is_hackable() -> None:
    """Rewards as they are often written: each pays for an attack that the suite has."""
    weak = {
        "int": "a bare number",
        "soft_format": None,
        "{name: length, shape: cosine, high: 2000, wrong: [0, 1], cut: 1}": "10,000 tokens in the answer",
    }
    for name, attack in weak.items():
        recipe = parse(f"name: x\ngrpo: {{rewards: [answer, {name}]}}")
        paid = totals(recipe, SAMPLES["choice zh"], THINK)
        wrong = max(paid["wrong"], paid["wrong in words"])
        above = [kind for kind in ATTACKS if paid[kind] > wrong]
        assert (attack in above) if attack else not above, name


def test_a_naive_reward_is_caught(tmp_path: Path) -> None:
    """The gold anywhere in the text: what many recipes do."""
    (tmp_path / "naive.py").write_text("def fn(sample, completion): return sample.target in completion.text", "utf-8")
    recipe = parse(f"name: x\ngrpo: {{rewards: [{{python: {tmp_path / 'naive.py'}:fn}}]}}")
    paid = totals(recipe, SAMPLES["open zh alone"], THINK)
    above = {kind for kind in ATTACKS if paid.get(kind, 0.0) > paid["wrong"]}
    assert above >= {"negated gold", "every option named", "gold only in the reasoning", "gold, then its opposite"}
    assert above >= {"tag spam", "hedged", "negation out of sight"}


def test_the_gate_closes_what_a_naive_reward_leaves_open_in_form(tmp_path: Path) -> None:
    (tmp_path / "naive.py").write_text("def fn(sample, completion): return sample.target in completion.text", "utf-8")
    text = f"name: x\ngrpo: {{rewards: [{{python: {tmp_path / 'naive.py'}:fn}}], gate: think_format}}"
    paid = totals(parse(text), SAMPLES["open zh"], THINK)
    assert paid["tag spam"] == paid["gold in the reasoning, no answer"] == 0.0
    assert paid["negated gold"] == 1.0


def test_every_kind_is_written_in_the_language_of_the_question() -> None:
    for sample in SAMPLES.values():
        made = completions_of(sample, THINK, OTHERS, tokens=lambda text: list(range(len(text))))
        assert tuple(made) == (*HONEST, *ATTACKS)
        assert made["empty"].text == ""
        assert not made["10,000 tokens, cut"].well_formed
        assert len(made["10,000 tokens in the answer"].tokens) > 9_000
        chinese = "答案" in made["gold in words"].answer
        assert chinese == (sample.question != ASK)
        for kind in HONEST:
            assert made[kind].well_formed
            assert made[kind].finish == "stop"


def test_form_rewards_pay_no_attack_more_either() -> None:
    for name in ("think_format", "stop", "language", "repetition"):
        for sample in SAMPLES.values():
            made = completions_of(sample, THINK, OTHERS)
            specs = parse(f"name: x\ngrpo: {{rewards: [{name}]}}").grpo.rewards
            found = score_all([sample] * len(made), list(made.values()), THINK, specs)
            paid = {kind: one.total or 0.0 for kind, one in zip(made, found, strict=True)}
            assert max(paid[kind] for kind in ATTACKS) <= max(paid["wrong"], paid["wrong in words"]) + 1e-9, name
    assert RewardSpec(name="stop").label == "stop"
