from __future__ import annotations

from danlu.data.aliases import with_aliases
from danlu.data.prepare import benchmarks
from danlu.domains import Term, load
from danlu.recipe import Recipe
from danlu.records import Completion, Sample
from danlu.rewards.verify import verify

TERMS = [Term(("心肌梗死", "心梗", "myocardial infarction", "heart attack"), "disease"), Term(("肺炎",), "disease")]
ASK = ({"role": "user", "content": "诊断？"},)


def test_a_gold_that_is_a_term_accepts_its_other_names():
    (known,) = with_aliases([Sample("1", ASK, target="Ｍyocardial Infarction", distractors=("心梗",))], TERMS)
    assert known.aliases == ("心肌梗死", "heart attack")  # not what this question calls wrong
    said = Completion("是心肌梗死。", "", "是心肌梗死。", "stop", True)
    assert verify(Sample("1", ASK, target="myocardial infarction"), said).outcome == "wrong"
    assert verify(known, said).outcome == "right"


def test_everything_else_stays():
    same = [
        Sample("1", ASK, target="急性心肌梗死"),
        Sample("2", ASK, target="A", options={"A": "心梗", "B": "肺炎"}),
        Sample("3", ASK, answer="心梗"),
        Sample("4", ASK, target="肺炎"),
    ]
    assert with_aliases(same, TERMS) == same


def test_benchmarks_of_the_medical_domain_know_the_lexicon(write):
    path = write("open.jsonl", [{"question": "胸痛伴大汗，诊断？", "answer": "heart attack"}])
    recipe = Recipe.model_validate({"name": "r", "eval": {"benchmarks": [{"name": "open", "path": path}]}})
    (row,) = benchmarks(recipe, load("medical"))["open"].rows
    assert "心肌梗死" in row.aliases
