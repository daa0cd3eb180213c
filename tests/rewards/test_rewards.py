"""Exact values of every reward, and attacks that must not pay."""

import pytest

from danlu.recipe import BUILT_IN_REWARDS, PLAIN_REWARDS, REWARD_SPECS
from danlu.records import Completion, Sample
from danlu.rewards import REWARDS
from danlu.think import ThinkFormat

TAGS = ThinkFormat(
    "reasoning_answer",
    open="<reasoning>",
    close="</reasoning>",
    opened_by="model",
    head="<reasoning>\n",
    bridge="\n</reasoning>\n<answer>\n",
    tail="\n</answer>",
)
THINK = ThinkFormat("think", "<think>", "</think>", "model", head="<think>\n", bridge="\n</think>\n\n")
OPENED = ThinkFormat("think", "<think>", "</think>", "template", prefix="<think>\n", bridge="\n</think>\n\n")
PLAIN = ThinkFormat("none")
NUMBER = Sample("n1", ({"role": "user", "content": "2 * 21?"},), target="42")
CHOICE = Sample(
    "c1",
    ({"role": "user", "content": "?"},),
    target="B",
    options={"A": "肺结核", "B": "肺炎", "C": "肺癌", "D": "哮喘"},
    distractors=("支原体肺炎",),
)
OPEN = Sample("o1", ({"role": "user", "content": "?"},), target="肺炎", distractors=("支原体肺炎", "肺结核", "肺癌"))


def wrote(text: str, think: ThinkFormat, finish: str = "stop") -> Completion:
    reasoning, answer, tidy = think.split(text)
    return Completion(text, reasoning, answer, finish, tidy)  # type: ignore[arg-type]


GOOD = "<reasoning>\nsix times seven\nis 42\n</reasoning>\n<answer>\n42\n</answer>"
VALUES = [
    # text, xmlcount, soft, strict, int, correctness
    (TAGS, GOOD, 0.5, 0.5, 0.5, 0.5, 2.0),
    (TAGS, GOOD + "\n", 0.5, 0.5, 0.5, 0.5, 2.0),
    (TAGS, GOOD + "\n0123456789", 0.48, 0.5, 0.0, 0.5, 2.0),
    (TAGS, GOOD.replace("42\n</answer>", "41\n</answer>"), 0.5, 0.5, 0.5, 0.5, 0.0),
    (TAGS, GOOD.replace("42\n</answer>", "it is 42\n</answer>"), 0.5, 0.5, 0.5, 0.0, 0.0),
    (TAGS, "<reasoning>x</reasoning><answer>42</answer>", 0.0, 0.5, 0.0, 0.5, 2.0),
    (TAGS, "<reasoning>\nx\n</reasoning>\n", 0.25, 0.0, 0.0, 0.0, 0.0),
    (TAGS, "42", 0.0, 0.0, 0.0, 0.5, 2.0),
    (TAGS, "", 0.0, 0.0, 0.0, 0.0, 0.0),
    (TAGS, GOOD + "\n" + GOOD, 0.0, 0.5, 0.0, 0.5, 2.0),
    (THINK, "<think>\nsix\nseven\n</think>\n\n42", 0.5, 0.5, 0.5, 0.5, 2.0),
    (THINK, "<think>six</think>42", 0.0, 0.5, 0.0, 0.5, 2.0),
    (THINK, "<think>\nsix\n</think>\n\n", 0.5, 0.0, 0.0, 0.0, 0.0),
    (OPENED, "six\nseven\n</think>\n\n42", 0.5, 0.5, 0.5, 0.5, 2.0),
    (OPENED, "six\nseven", 0.25, 0.0, 0.0, 0.0, 0.0),
    (PLAIN, "42", 0.0, 0.0, 0.0, 0.5, 2.0),
]


@pytest.mark.parametrize(("think", "text", "xml", "soft", "strict", "integer", "correct"), VALUES)
def test_published(
    think: ThinkFormat, text: str, xml: float, soft: float, strict: float, integer: float, correct: float
) -> None:
    got = {name: REWARDS[name](NUMBER, wrote(text, think), think) for name in BUILT_IN_REWARDS[:5]}
    want = dict(zip(BUILT_IN_REWARDS[:5], (xml, soft, strict, integer, correct), strict=True))
    assert got == pytest.approx(want)


def test_every_named_reward_exists() -> None:
    assert tuple(sorted(REWARDS)) == tuple(sorted(PLAIN_REWARDS))
    assert set(BUILT_IN_REWARDS) - set(PLAIN_REWARDS) == set(REWARD_SPECS) - {"plain", "python"}


def test_joined_rows_earn_everything() -> None:
    for think in (TAGS, THINK, OPENED):
        completion = wrote(think.join("first\nsecond", "42"), think)
        values = {name: reward(NUMBER, completion, think) for name, reward in REWARDS.items() if name != "choice"}
        assert values == pytest.approx(
            {"xmlcount": 0.5, "soft_format": 0.5, "strict_format": 0.5, "int": 0.5, "correctness": 2.0}
            | {"answer": 1.0, "think_format": 1.0, "stop": 1.0, "language": 1.0}
        )


ATTACKS = {
    "empty": "",
    "gibberish": "的的的的 asdf 的的的 \ufffd\ufffd",
    "only a tag": "<think>\n",
    "every letter": "<think>\nx\n</think>\n\nA B C D",
    "every letter claimed": "<think>\nx\n</think>\n\n答案是A。答案是B。答案是C。答案是D。",
    "every option": "<think>\nx\n</think>\n\n肺结核、肺炎、肺癌、哮喘",
    "gold and distractor": "<think>\nx\n</think>\n\n肺炎或者肺结核，不排除支原体肺炎",
    "longer distractor": "<think>\nx\n</think>\n\n支原体肺炎",
    "only in the reasoning": "<think>\n答案是B 肺炎\n</think>\n\n",
    "reasoning never closed": "<think>\n答案是B 肺炎",
    "denied": "<think>\nx\n</think>\n\n不是肺炎，不选B",
    "no thinking": "答案是B 肺炎",
    "tag spam": "<think></think>" * 30 + "答案是B 肺炎",
    "reopened": "<think>\nx\n</think>\n\n<think>\nB 肺炎\n</think>\n\n答案是B 肺炎",
    "empty thinking": "<think>\n\n</think>\n\n答案是B 肺炎",
    "question repeated": "<think>\nx\n</think>\n\n下列哪项正确？A. 肺结核 B. 肺炎 C. 肺癌 D. 哮喘",
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("sample", [CHOICE, OPEN], ids=["choice", "open"])
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_attacks_never_beat_an_honest_wrong_answer(name: str, sample: Sample, finish: str) -> None:
    honest = wrote("<think>\n咳嗽两月\n</think>\n\n答案是A 肺结核", THINK)
    attack = wrote(ATTACKS[name], THINK, finish)
    assert REWARDS["answer"](sample, attack, THINK) <= REWARDS["answer"](sample, honest, THINK) == 0.0


def test_the_honest_right_answer_pays() -> None:
    text = "<think>\n发热三天\n</think>\n\n"
    assert REWARDS["answer"](CHOICE, wrote(text + "答案是B", THINK), THINK) == 1.0
    assert REWARDS["answer"](OPEN, wrote(text + "肺炎", THINK), THINK) == 1.0
