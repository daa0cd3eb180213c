from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.cells import BadRow
from danlu.data.choices import gold_letters, options_of
from danlu.data.digests import content_id, rows_digest
from danlu.data.schemas import detect
from danlu.errors import DanluError
from danlu.records import Sample
from danlu.run import digest

FOUR = {"opa": "w", "opb": "x", "opc": "y", "opd": "z"}


def one(row: dict, **columns: str) -> Sample:
    return detect([row], columns, "f").sample(row)


@pytest.mark.parametrize(
    ("row", "prompt", "reasoning", "answer"),
    [
        ({"Question": "q", "Complex_CoT": "r", "Response": "a"}, "q", "r", "a"),
        ({"instruction": "i", "question": "q", "think": "r", "answer": "a", "metrics": {}}, "q", "r", "a"),
        ({"input": "q", "reasoning_content": "r", "content": "a"}, "q", "r", "a"),
        ({"instruction": "i", "input": "n", "reasoning": "r", "output": "a"}, "i\n\nn", "r", "a"),
        ({"instruction": "i", "input": "", "output": "<think>r</think>a"}, "i", "r", "a"),
        ({"instruction": "i", "input": "n", "output": "a"}, "i\n\nn", "", "a"),
        ({"prompt": "q", "completion": "<think>\nr\n</think>\n\na"}, "q", "r", "a"),
        (
            {
                "prompt": [{"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "a", "reasoning_content": "r"}],
            },
            "q",
            "r",
            "a",
        ),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r</think>a"}]}, "q", "r", "a"),
        ({"query": "q", "response": "a"}, "q", "", "a"),
        ({"harmful_medical_request": "q", "safe_response": "a"}, "q", "", "a"),
    ],
)
def test_rows_to_imitate(row: dict, prompt: str, reasoning: str, answer: str):
    sample = one(row)
    assert (sample.question, sample.reasoning, sample.answer) == (prompt, reasoning, answer)
    assert sample.target is None


def test_chats_keep_system_and_earlier_turns_with_their_reasoning():
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "<think>old</think>a1"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "a2", "reasoning_content": "r2"},
        {"role": "user", "content": "q3"},
        {"role": "assistant", "content": "a3"},
        {"role": "user", "content": "q4"},
        {"role": "assistant", "content": "<think>r4</think>a4"},
    ]
    sample = one({"messages": turns})
    assert sample.messages[2] == {"role": "assistant", "content": "a1", "reasoning_content": "old"}
    assert sample.messages[4] == turns[4]
    assert sample.messages[6] == {"role": "assistant", "content": "a3"}
    assert [turn["content"] for turn in sample.messages] == ["s", "q1", "a1", "q2", "a2", "q3", "a3", "q4"]
    assert (sample.reasoning, sample.answer) == ("r4", "a4")
    assert one(sample.to_dict()) == sample
    prompted = one({"prompt": turns[:4], "completion": "a"})
    assert prompted.messages == sample.messages[:4]
    history = one({"instruction": "q2", "output": "a", "history": [["q1", "<think>old</think>a1"]]})
    assert history.messages[1] == sample.messages[2]
    assert one({"messages": turns, "answer": "42"}).target == "42"


def test_own_rows_come_back_as_they_were():
    ask = ({"role": "user", "content": "q"},)
    sample = Sample("x1", ask, "r", "a", "B", ("alias",), {"A": "m", "B": "n"}, ("wrong",), {"task": "t"})
    assert one(sample.to_dict()) == sample
    bare = Sample("x2", ask, target="t")
    assert one(bare.to_dict()) == one(json.loads(json.dumps(bare.to_dict()))) == bare


@pytest.mark.parametrize(
    ("row", "target", "options"),
    [
        ({"question": "q", "options": {"A": "x", "B": "y"}, "answer": "y", "answer_idx": "B"}, "B", "A x B y"),
        ({"question": "q", "options": {"A": "x", "B": "y", "C": "z"}, "answer": "CA"}, "AC", "A x B y C z"),
        ({"Question": "q", "Options": "A x\nB y", "Answer": "A，B"}, "AB", "A x B y"),
        ({"question": "q", "choices": ["x", "y"], "answer": 0}, "A", "A x B y"),
        ({"question": "q", "choices": ["A. x", "B. y"], "answer": "y"}, "B", "A x B y"),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, "B", "A x B y"),
        (
            {"question": "q", "options": [{"key": "A", "value": "x"}, {"key": "B", "value": "y"}], "answer": "B"},
            "B",
            "A x B y",
        ),
        ({"question": "q", "options": {"A": "x", "B": "y", "E": None}, "answer": "(b)"}, "B", "A x B y"),
        ({"": "3", "Question": "q", "A": "x", "B": "y", "Answer": "B"}, "B", "A x B y"),
        ({"instruction": "i", "input": "问题：q\n选项：\n\tx\n\ty", "output": "y"}, "B", "A x B y"),
        ({"question": "q", "options": "{'0': 'x', '1': 'I do not know'}", "id": "9"}, "B", "A x B I do not know"),
        ({"question": "q", "choices": ["(A) x", "(B) y"], "answer": "(B) y"}, "B", "A x B y"),
        ({"question": "q", "choices": ["(A) x", "(B) y"], "answer": "（A） x"}, "A", "A x B y"),
        ({"question": "q", "options": "x | y | z", "answer": "z"}, "C", "A x B y C z"),
        ({"question": "q", "options": list("klmnopqrst"), "answer": "J", "answer_index": 9}, "J", None),
        ({"question": "q", "options": list("klmnopqrst"), "answer_index": 9, "category": "health"}, "J", None),
        (
            {
                "exam_type": "e",
                "question": "q",
                "answer": "ABD",
                "question_type": "多项选择题",
                "option": {"A": "w", "B": "x", "C": "y", "D": "z", "E": "", "F": None},
            },
            "ABD",
            "A w B x C y D z",
        ),
        (
            {"id": "1", "question": "q\nAnswer Choices: (A) x (B) y", "options": {"A": "x", "B": "y"}, "label": "B"},
            "B",
            "A x B y",
        ),
    ],
)
def test_multiple_choice(row: dict, target: str, options: str):
    sample = one(row)
    assert sample.target == target
    if options:
        assert " ".join(f"{letter} {text}" for letter, text in sample.options.items()) == options
    assert sample.question == "\n".join(["q", *(f"{letter}. {text}" for letter, text in sample.options.items())])


def test_what_a_question_says_after_answer_choices_stays_unless_it_is_the_options():
    row = {"question": "q\nAnswer Choices: (A) x (B) other", "options": {"A": "x", "B": "y"}, "answer": "A"}
    assert one(row).question == "q\nAnswer Choices: (A) x (B) other\nA. x\nB. y"


def test_rows_without_options_among_rows_with_them():
    rows = [
        {"question": "q", "options": ["x", "y"], "answer": "x", "aliases": None},
        {"question": "q", "options": "", "answer": "Celadon glaze", "aliases": "celadon"},
        {"question": "q", "options": "", "answer": "B", "aliases": ""},
        {"question": "q", "options": "", "answer": "ABD", "aliases": ""},
    ]
    mapping = detect(rows, {}, "f")
    assert mapping.sample(rows[0]).target == "A"
    free = mapping.sample(rows[1])
    assert (free.target, free.aliases, free.options) == ("Celadon glaze", ("celadon",), {})
    for row in rows[2:]:  # a letter of options that got lost
        with pytest.raises(BadRow, match="0 options"):
            mapping.sample(row)


RUBRICS = [{"criterion": "says when to fire", "points": 5, "tags": ["axis:accuracy"]}, {"criterion": "c", "points": -3}]
TURNS = [
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "q2"},
]


def test_rubrics_instead_of_a_gold_answer():
    row = {
        "prompt": TURNS,
        "prompt_id": "p7",
        "rubrics": RUBRICS,
        "example_tags": ["theme:firing", "axis:x"],
        "ideal_completions_data": {"ideal_completion": "fire it slowly", "ideal_completions_group": "g"},
        "canary": "c",
    }
    sample = one(row)
    assert (sample.id, sample.messages, sample.target, sample.answer) == ("p7", tuple(TURNS), None, "")
    assert sample.meta == {"task": "rubric", "rubrics": RUBRICS, "subject": "firing", "reference": "fire it slowly"}
    assert one({**row, "ideal_completions_data": None}).meta.keys() == {"task", "rubrics", "subject"}
    assert one({"prompt": "q", "rubrics": json.dumps(RUBRICS[:1])}).meta == {"task": "rubric", "rubrics": RUBRICS[:1]}
    trained = one({"prompt": "q", "rubrics": RUBRICS, "response": "a"})  # rows to imitate may carry rubrics too
    assert (trained.answer, trained.meta) == ("a", {})


def test_requests_to_refuse_have_no_gold():
    sample = one({"": "0", "harmful_medical_request": "q", "safe_response": "no"})
    assert (sample.target, sample.answer, sample.meta) == (None, "no", {"task": "refusal"})


def test_subjects():
    row = {"question": "q", **FOUR, "cop": 0, "subject_name": "glaze"}
    assert one(row).meta == {"subject": "glaze", "subject_name": "glaze"}
    assert one({"question": "q", "answer": "a", "category": "kilns"}, subject="category").meta == {"subject": "kilns"}


def test_gold_numbers_count_from_where_the_file_does():
    def targets(numbers: list[int]) -> str:
        rows = [{"question": "q", **FOUR, "cop": number} for number in numbers]
        mapping = detect(rows, {}, "f")
        return "".join(mapping.sample(row).target or "" for row in rows)

    assert targets([1, 4, 2]) == "ADB"
    assert targets([0, 3, 1]) == "ADB"
    with pytest.raises(DanluError, match="counts from 0 or from 1"):
        targets([1, 2, 3])
    with pytest.raises(BadRow, match="outside 4 options"):
        targets([0, 3, 4])
    with pytest.raises(BadRow, match="outside 4 options"):  # -1: the gold is withheld
        targets([0, -1])


def test_an_open_question_keeps_the_wrong_options():
    row = {
        "Open-ended Verifiable Question": "what glaze?",
        "Ground-True Answer": "Celadon glaze",
        "question": "which of these?",
        "options": {"A": "celadon", "B": "tenmoku", "C": "shino"},
        "answer_idx": "A",
    }
    sample = one(row)
    assert (sample.question, sample.target, sample.options) == ("what glaze?", "Celadon glaze", {})
    assert (sample.aliases, sample.distractors) == (("celadon",), ("tenmoku", "shino"))
    bare = {key: row[key] for key in list(row)[:2]}
    assert one(bare).target == "Celadon glaze"


def test_yes_no_maybe_on_an_abstract():
    for context in ({"CONTEXTS": ["one", "two"]}, {"context": {"contexts": ["one", "two"]}}):
        sample = one({"question": "q?", **context, "final_decision": "Maybe", "long_answer": "because"})
        assert sample.target == "C"
        assert sample.question == "one\ntwo\n\nq?\nA. yes\nB. no\nC. maybe"


def test_gold_text():
    assert one({"question": "q", "answer": 42}).target == "42"
    sample = one({"question": "q", "target": "t", "aliases": ["u"], "system": "s"})
    assert (sample.target, sample.answer, sample.aliases, sample.messages[0]["role"]) == ("t", "", ("u",), "system")


def test_the_schema_of_most_rows_wins():
    rows = [{"question": "q", "answer": "a"}] * 3 + [{"messages": []}]
    assert detect(rows, {}, "f").schema.name == "question or prompt, answer or target"


def test_ids_are_the_rows_own_or_of_its_content():
    row = {"question": "q", "answer": "a"}
    assert one({**row, "id": 7}).id == "7"
    assert one(row).id == one(dict(reversed(row.items()))).id != one({**row, "answer": "b"}).id


def test_columns_name_what_no_schema_knows():
    row = {"frage": "q", "antwort": {"kurz": "a"}, "nr": 5, "answer": "other"}
    sample = one(row, question="frage", answer="antwort.kurz", id="nr")
    assert (sample.question, sample.answer, sample.target, sample.id) == ("q", "a", None, "5")
    assert one(row, question="frage", target="antwort.kurz").target == "a"
    assert one({"question": "q", "antwort": "a"}, answer="antwort").answer == "a"
    with pytest.raises(DanluError, match=r"no known schema has the columns frage, nr\nhint: tried .*data.columns"):
        one({"frage": "q", "nr": 1})
    with pytest.raises(DanluError, match=r"anser is not one of our names\nhint: did you mean answer"):
        one(row, anser="antwort")
    with pytest.raises(DanluError, match=r"no column 'antwrt'\nhint: did you mean antwort"):
        one(row, question="antwrt")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": " ", "answer": "a"}, "question is empty"),
        ({"question": "q", "answer": float("nan")}, "answer and target are empty"),
        ({"question": 5, "answer": "a"}, "question is a number"),
        ({"question": "q", "answer": ["a"]}, "answer is a list"),
        ({"question": "q", "answer": True}, "answer is a boolean"),
        ({"question": "q\ud800", "answer": "a"}, "half of a surrogate pair"),
        ({"Question": "q", "Complex_CoT": float("nan"), "Response": "a"}, "complex_cot is NaN"),
        ({"question": "q", "options": {"A": "x", "B": "y"}, "answer": "nan"}, "the gold answer is 'nan', a missing"),
        ({"question": "q", "options": {"A": "x", "B": "y"}, "answer": "C"}, "gold 'C' is none of the options A, B"),
        ({"question": "q", "options": {"A": "x"}, "answer": "A"}, "1 options"),
        ({"question": "q", "options": ["A", "AB", "B"], "answer": "AB"}, "names more than one option"),
        ({"messages": "hello"}, "do not end with a user turn"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "has the role 'tool'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "first turn is not the user's"),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>r"}]},
            "not closed",
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>r</think>"}]},
            "no answer after",
        ),
        ({"prompt": "q", "completion": ""}, "completion is empty"),
        ({"prompt": "q", "rubrics": []}, "no criterion that earns points"),
        ({"prompt": "q", "rubrics": [{"criterion": "c", "points": -1}]}, "no criterion that earns points"),
        ({"prompt": "q", "rubrics": [{"criterion": "c", "points": "5"}]}, "rubric 1 has no points"),
        ({"prompt": "q", "rubrics": [{"criterion": "c", "points": float("inf")}]}, "rubric 1 has no points"),
        ({"prompt": "q", "rubrics": [{"criterion": " ", "points": 1}]}, "criterion 1 is empty"),
        ({"prompt": "q", "rubrics": ["c"]}, "rubric 1 is text, not an object"),
        ({"prompt": TURNS[:2], "rubrics": RUBRICS}, "prompt does not end with a user turn"),
    ],
)
def test_bad_rows_say_why(row: dict, reason: str):
    with pytest.raises(BadRow, match=reason):
        one(row)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
SHAPES = [
    ("question", "answer"),
    ("question", "think", "answer"),
    ("messages",),
    ("messages", "target"),
    ("prompt", "completion"),
    ("instruction", "input", "output", "history"),
    ("question", "options", "answer"),
    ("question", "a", "b", "answer"),
    ("question", "contexts", "final_decision"),
    ("question", "options"),
    ("messages", "target", "options", "aliases", "distractors", "meta"),
    ("question", "options", "answer", "id", "source", "explanation", "system"),
    ("question", "opa", "opb", "cop"),
    ("open-ended verifiable question", "ground-true answer", "options", "answer_idx"),
    ("harmful_request", "safe_response"),
    ("prompt", "rubrics", "ideal_completions_data", "example_tags"),
    ("question", "option", "answer_index"),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SHAPES).flatmap(lambda names: st.fixed_dictionaries(dict.fromkeys(names, values))))
def test_any_cell_gives_a_sample_or_a_reason(row: dict):
    try:
        sample = one(row)
    except BadRow:
        return
    except DanluError as error:
        if "counts from 0 or from 1" not in error.message:
            raise
        return
    assert digest([sample.to_dict()])
    assert sample.question
    assert sample.answer or sample.target or sample.meta["rubrics"]
    assert not sample.options or set(sample.target or "") <= set(sample.options)


@given(st.lists(st.text("xyz", min_size=1), min_size=2, max_size=6, unique=True), st.data())
def test_gold_of_any_kind_finds_its_option(texts: list[str], data: st.DataObject):
    place = data.draw(st.integers(0, len(texts) - 1))
    options, keys = options_of(texts)
    letter = list(options)[place]
    for gold in (letter, letter.lower(), f"{letter}.", place, str(place), texts[place], [letter]):
        assert gold_letters(gold, options, keys) == letter
    assert gold_letters(place + 1, options, keys, base=1) == letter


turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(max_size=5)},
    optional={"reasoning_content": st.text(max_size=5)},
)
texts = st.text(max_size=5)


@given(
    st.lists(
        st.builds(
            Sample,
            id=texts,
            messages=st.lists(turns, min_size=1, max_size=3).map(tuple),
            reasoning=texts,
            answer=texts,
            target=st.none() | texts,
            aliases=st.lists(texts, max_size=2).map(tuple),
            options=st.dictionaries(texts, texts, max_size=2),
            meta=st.dictionaries(texts, values, max_size=2),
        ),
        max_size=3,
    )
)
def test_hashes_are_those_of_the_rows_as_dicts(rows: list[Sample]):
    assert rows_digest(rows) == digest([row.to_dict() for row in rows])
    for row in rows:
        said = [row.messages, row.reasoning, row.answer, row.target, row.options]
        assert content_id(row) == digest(said)
