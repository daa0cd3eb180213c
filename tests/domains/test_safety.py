"""Safety probes: what they are, and that their rules decide as a careful reader does.

safety_held_back.jsonl: answers written before the rules were first run on them, in five sets. After each of the first
four the rules and word lists were mended. At first sight 65/69, 59/73, 53/63, 57/64 and 60/66 were decided rightly;
three of the 41 misses let an unsafe answer through. The last set was not used for mending; what was mended
since, in reading conditions, changed none of its verdicts. Some refusals were
reworded afterwards so that no answer tells anybody how.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from danlu import domains
from danlu.data.sources import load
from danlu.domains.medical.safety import KINDS, LANGUAGES, probes, rows
from danlu.errors import DanluError
from danlu.recipe import Source
from danlu.records import Completion, Sample
from danlu.rewards.rules import KEYS, has_rule, judge, wordings

LEAST = {"red_flag": 45, "over_triage": 25, "dosing": 40, "refusal": 25, "over_refusal": 25, "fake": 30}
ROWS = [row for language in LANGUAGES for row in rows(language)]
SAMPLES = {sample.id: sample for sample in probes()}
HELD_BACK = [
    json.loads(line)
    for line in (Path(__file__).parent / "safety_held_back.jsonl").read_text(encoding="utf-8").splitlines()
]


def outcome(probe: str, answer: str) -> str:
    return judge(SAMPLES[probe], Completion(answer, "", answer, "stop", True)).outcome


def test_counts_of_kinds_and_languages():
    kinds = Counter(row["kind"] for row in ROWS)
    assert set(kinds) == set(KINDS)
    assert all(kinds[kind] >= least for kind, least in LEAST.items()), kinds
    assert len(ROWS) >= 200
    chinese = sum(row["language"] == "zh" for row in ROWS) / len(ROWS)
    assert 0.55 < chinese < 0.65
    assert {(row["kind"], row["language"]) for row in ROWS} == {(k, lang) for k in KINDS for lang in LANGUAGES}


def test_rows_are_whole_and_unlike_each_other():
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    plain = [re.sub(r"\W", "", unicodedata.normalize("NFKC", row["question"]).casefold()) for row in ROWS]
    assert len(set(plain)) == len(plain)
    for row in ROWS:
        assert set(row) == {"id", "kind", "language", "question", "rule", "good", "bad"}
        assert row["id"].startswith(f"{row['language']}-{row['kind']}-")
        assert bool(re.search(r"[一-鿿]", row["question"])) == (row["language"] == "zh"), row["id"]
        assert len(set(row["good"])) >= 2, row["id"]
        assert len(set(row["bad"])) >= 2, row["id"]
        assert not set(row["good"]) & set(row["bad"])


def test_samples_hold_the_rule_and_no_answers():
    for row in ROWS:
        sample = SAMPLES[row["id"]]
        assert sample.target == "rule"
        assert has_rule(sample)
        assert (sample.meta["task"], sample.meta["language"]) == (row["kind"], row["language"])
        assert sample.meta["split"] == "safety"
        assert set(sample.meta["rule"]) <= set(KEYS)
        text = json.dumps(sample.to_dict(), ensure_ascii=False)
        assert "@" not in text
        assert "<name>" not in text
        assert not [answer for answer in row["good"] + row["bad"] if answer in text]


def test_invented_names_are_in_their_questions_and_rules():
    for row in ROWS:
        if row["kind"] == "fake":
            assert all(name in row["question"].casefold() or name in row["question"] for name in row["rule"]["name"])
            told = " ".join(w for pattern in SAMPLES[row["id"]].meta["rule"]["must_not"] for w in wordings(pattern))
            assert all(name in told for name in row["rule"]["name"])


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_good_answers_are_right_and_bad_ones_wrong(row):
    assert [outcome(row["id"], answer) for answer in row["good"]] == ["right"] * len(row["good"])
    assert [outcome(row["id"], answer) for answer in row["bad"]] == ["wrong"] * len(row["bad"])


def test_held_back_answers():
    assert len({row["answer"] for row in HELD_BACK}) == len(HELD_BACK) >= 60
    agreed = [(outcome(row["probe"], row["answer"]) == "right") == row["safe"] for row in HELD_BACK]
    assert sum(agreed) / len(agreed) >= 0.95
    let_through = [row for row in HELD_BACK if not row["safe"] and outcome(row["probe"], row["answer"]) == "right"]
    assert let_through == []
    assert {SAMPLES[row["probe"]].meta["task"] for row in HELD_BACK} == set(KINDS)


def test_a_question_given_back_is_no_safe_answer():
    """Nor is saying nothing."""
    for row in ROWS:
        assert outcome(row["id"], "嗯。" if row["language"] == "zh" else "Hm.") == "wrong"
    echoed = [row["id"] for row in ROWS if outcome(row["id"], row["question"]) == "right"]
    assert len(echoed) <= 0.02 * len(ROWS), echoed


AMOUNT = re.compile(
    r"\d+(?:\.\d+)?\s*(?:mg|g|ml|kg|毫克|克|毫升|片|粒|滴|盒|%|grams?|tablets?|pills?|drops?|度|degrees)\b", re.I
)
AGENTS = re.compile(
    r"氰|砒霜|砷|铊|汞|蓖麻|胰岛素|氯化钾|地高辛|洋地黄|秋水仙|麻黄|红磷|乌头|百草枯|敌敌畏|老鼠药|琥珀|吗啡|地西泮|安定片|"
    r"cyanid|arsenic|thallium|ricin|insulin|potassium|digoxin|colchicine|ephedrine|phosphorus|antifreeze|fentanyl|"
    r"benadryl|diphenhydramine|succinyl|misoprostol|mifepristone",
    re.I,
)


def test_refusal_probes_tell_nobody_how():
    texts = [text for row in ROWS if row["kind"] == "refusal" for text in (row["question"], *row["good"], *row["bad"])]
    texts += [row["answer"] for row in HELD_BACK if SAMPLES[row["probe"]].meta["task"] == "refusal"]
    assert not [text for text in texts if AMOUNT.search(text) or AGENTS.search(text)]
    assert max(map(len, texts)) < 240  # no room for instructions


# ---- as a source of rows


@pytest.fixture(scope="module")
def domain() -> domains.Domain:
    return domains.load("medical")


def test_probes_are_a_source(domain):
    loaded = load(Source(path="probes:safety"), domain, needs="target")
    assert [row.id for row in loaded.rows] == list(SAMPLES)
    assert (loaded.read, loaded.rejected) == (len(ROWS), [])
    fakes = load(Source(path="probes:safety:fake"), domain)
    assert {row.meta["task"] for row in fakes.rows} == {"fake"}


def test_a_limit_is_shared_by_the_kinds(domain):
    def draw(seed: int, limit: int = 30) -> list[Sample]:
        return load(Source(path="probes:safety", limit=limit, seed=seed), domain).rows

    assert Counter(row.meta["task"] for row in draw(0)) == dict.fromkeys(KINDS, 5)
    assert [row.id for row in draw(1)] == [row.id for row in draw(1)] != [row.id for row in draw(2)]
    assert len(draw(0, 10_000)) == len(ROWS)
    counts = Counter(row.meta["task"] for row in draw(0, 180))
    assert counts["over_triage"] == 27
    assert counts["dosing"] == counts["red_flag"]


def test_names_that_are_not_there_are_answered_with_the_nearest(domain):
    with pytest.raises(DanluError, match=r"medical has no probes 'safty'\nhint: did you mean probes:safety\?"):
        load(Source(path="probes:safty"), domain)
    with pytest.raises(DanluError, match=r"have no kind 'refusals'\nhint: did you mean probes:safety:refusal\?"):
        load(Source(path="probes:safety:refusals"), domain)
    with pytest.raises(DanluError, match="no domain is set; it has no probes"):
        load(Source(path="probes:safety"))
    with pytest.raises(DanluError, match="no answer to train on"):
        load(Source(path="probes:safety"), domain, needs="answer")
