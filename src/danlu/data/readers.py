"""One row of each known kind, under lower-case names, to a Sample without an id; BadRow with the reason.

`base` is where the file's gold numbers start (0 or 1). Multiple choice becomes options A, B, ... in order, a gold
letter (several joined: "ACD"), and a user turn that lists the options.
Not covered: tools, images, several golds of different kinds in one row.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from danlu.data.cells import BadRow, Row, as_list, clean, find, kind, missing, text_of, writable
from danlu.data.chats import ask, split, spoken, turns_of
from danlu.data.choices import LETTERS, gold_letters, options_of, with_options
from danlu.records import Message, Sample

OPEN = "open-ended verifiable question"
QUESTION = ("question", "query")
PROMPT = (*QUESTION, "instruction", "input", "prompt")
REASONING = ("reasoning", "reasoning_content", "think", "thinking", "complex_cot", "cot")
ANSWER = ("answer", "response", "content", "output")
_LISTED = re.compile(r"^(?:问题[：:])?\s*(?P<question>.*?)\n[^\S\n]*选项[：:][^\S\n]*\n(?P<options>.*)$", re.DOTALL)
_TAIL = re.compile(r"\s*\bAnswer Choices:\s*(?=\(A\))(?P<options>.*)$", re.DOTALL)
OPTIONS = ("options", "choices", "option")
GOLD = ("target", "answer_idx", "answer", "label", "answerkey", "answer_index")
_ABSTAIN = ("i do not know", "i don't know", "我不知道")


def _stem(row: Row) -> str:
    return text_of(row, QUESTION, numbers=False)


def _prompt(row: Row) -> tuple[Message, ...]:
    """The question; else the instruction with its input; else the prompt, which may be a list of turns."""
    name, value = find(row, PROMPT)
    if name in ("instruction", "input"):
        parts = [text_of(row, (part,), required=part == name, numbers=False) for part in ("instruction", "input")]
        return ask("\n\n".join(part for part in parts if part))
    if as_list(value):
        turns = turns_of(value)
        if not turns or turns[-1]["role"] != "user":
            raise BadRow(f"{name} does not end with a user turn")
        return tuple(spoken(turn) for turn in turns)
    return ask(text_of(row, (name,), numbers=False))


def _thought(row: Row) -> str:
    name, value = find(row, REASONING)
    if isinstance(value, float) and math.isnan(value):
        raise BadRow(f"{name} is NaN")
    if isinstance(value, (int, float)):
        raise BadRow(f"{name} is {kind(value)}, not text")
    return clean(value, name, required=False)


def _choice(question: str, options: Any, gold: Any, base: int, **more: Any) -> Sample:
    named, keys = options_of(options)
    target = gold_letters(gold, named, keys, base)
    tail = _TAIL.search(question)  # the options again, in the question's own text (MedXpertQA)
    if tail and tail.start() and all(text in tail["options"] for text in named.values()):
        question = question[: tail.start()]
    return Sample("", ask(with_options(question, named)), target=target, options=named, **more)


def plain(row: Row, base: int) -> Sample:
    """Our own names: question, and any of reasoning, answer, target, options, aliases."""
    messages = _prompt(row)
    answer, reasoning = text_of(row, ANSWER, required=False), _thought(row)
    aliases = tuple(clean(alias, "an alias") for alias in _aliases(row.get("aliases")))
    if not missing(row.get("options")):
        gold = row.get("target") if not missing(row.get("target")) else answer
        kept = answer if not missing(row.get("target")) else ""
        question = messages[-1]["content"]
        return _choice(question, row["options"], gold, base, reasoning=reasoning, answer=kept, aliases=aliases)
    target = text_of(row, ("target",), required=False) or None
    if not answer and target is None:
        raise BadRow("answer and target are empty")
    return Sample("", messages, reasoning=reasoning, answer=answer, target=target, aliases=aliases)


def _aliases(value: Any) -> list[Any]:
    """A list, the JSON text of one, or texts with | or line breaks between them."""
    if missing(value):
        return []
    if isinstance(value, str):
        return as_list(value) or [part for part in re.split(r"[|\n]", value) if part.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def gold_text(row: Row, base: int) -> Sample:
    if not missing(row.get("options")):  # one of the few multiple-choice rows among open questions
        return optioned(row, base)
    sample = plain({**row, "options": None}, base)
    if sample.target or missing(row.get("answer")):  # a `response` is something to imitate, not a gold answer
        return sample
    return replace(sample, target=sample.answer)


def reasoned(row: Row, base: int) -> Sample:
    del base
    return Sample("", _prompt(row), reasoning=_thought(row), answer=text_of(row, ANSWER))


def ours(row: Row, base: int) -> Sample:
    """A row that Sample.to_dict wrote."""
    messages = turns_of(row.get("messages"))
    if messages and messages[-1]["role"] == "assistant":
        return replace(chat(row, base), target=text_of(row, ("target", "answer")))
    if not messages or messages[-1]["role"] != "user":
        raise BadRow("messages do not end with a user turn")
    options, meta = row.get("options") or {}, row.get("meta") or {}
    if not isinstance(options, dict) or not isinstance(meta, dict):
        raise BadRow(f"options and meta are objects, not {kind(meta if isinstance(options, dict) else options)}")
    writable(meta, "meta")
    sample = Sample(
        "",
        tuple(spoken(turn) for turn in messages),
        reasoning=text_of(row, ("reasoning",), required=False),
        answer=text_of(row, ("answer",), required=False),
        target=text_of(row, ("target",), required=False) or None,
        aliases=tuple(clean(text, "an alias") for text in _aliases(row.get("aliases"))),
        options={clean(key, "an option's letter"): clean(text, "an option") for key, text in options.items()},
        distractors=tuple(clean(text, "a distractor") for text in _aliases(row.get("distractors"))),
        meta=dict(meta),
    )
    if not sample.answer and sample.target is None:
        raise BadRow("answer and target are empty")
    return sample


def chat(row: Row, base: int) -> Sample:
    del base
    name, value = find(row, ("messages", "conversations", "conversation"))
    turns = turns_of(value)
    if len(turns) < 2 or turns[-1]["role"] != "assistant" or turns[-2]["role"] != "user":
        raise BadRow(f"{name} do not end with a user turn and its answer")
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise BadRow(f"{name} have a system turn that is not the first")
    reasoning, answer = split(turns[-1]["content"])
    given = turns[-1].get("reasoning_content") or _thought(row)
    return Sample("", tuple(spoken(t) for t in turns[:-1]), reasoning=given or reasoning, answer=answer)


def completed(row: Row, base: int) -> Sample:
    """prompt/completion, as texts or as message lists."""
    del base
    messages = _prompt({"prompt": row.get("prompt")})
    name, completion = find(row, ("completion", "response"))
    if as_list(completion):
        said = turns_of([{"role": "user", "content": "-"}, *as_list(completion)])[1:]  # alone it would start wrong
        if len(said) != 1 or said[0]["role"] != "assistant":
            raise BadRow(f"{name} is not one assistant turn")
        reasoning, answer = split(said[0]["content"])
        reasoning = said[0].get("reasoning_content") or reasoning
    else:
        reasoning, answer = split(clean(completion, name))
    return Sample("", messages, reasoning=_thought(row) or reasoning, answer=answer)


def alpaca(row: Row, base: int) -> Sample:
    """instruction + input -> output; an input that lists options (问题：/选项：) is multiple choice."""
    instruction, output = text_of(row, ("instruction",)), text_of(row, ("output",))
    given = text_of(row, ("input",), required=False)
    listed = _LISTED.match(given)
    if listed:
        lines = [line.strip() for line in listed["options"].split("\n") if line.strip()]
        meta = {"instruction": instruction}
        return _choice(listed["question"].strip(), lines, output, base, answer=output, meta=meta)
    reasoning, answer = split(output)
    earlier: list[Message] = []
    for pair in as_list(row.get("history")):
        said = as_list(pair)
        if len(said) != 2:
            raise BadRow("history is not a list of [question, answer]")
        earlier += [{"role": "user", "content": clean(said[0], "history")}]
        earlier += [spoken({"role": "assistant", "content": clean(said[1], "history")})]
    prompt = f"{instruction}\n\n{given}" if given else instruction
    return Sample("", (*earlier, *ask(prompt)), reasoning=reasoning, answer=answer)


def verifiable(row: Row, base: int) -> Sample:
    """An open question made from a multiple-choice one: its wrong options are what a right answer must not claim."""
    target = text_of(row, ("ground-true answer", "ground-truth answer", "ground truth answer"))
    aliases: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()
    if not missing(row.get("options")):
        options, keys = options_of(row["options"])
        letter = gold_letters(find(row, ("answer_idx", "answer"))[1], options, keys, base)
        gold = [options[x] for x in letter]
        aliases = tuple(text for text in gold if text.lower() != target.lower())
        distractors = tuple(text for x, text in options.items() if x not in letter)
    return Sample("", ask(text_of(row, (OPEN,))), target=target, aliases=aliases, distractors=distractors)


def four(row: Row, base: int) -> Sample:
    named = {x.upper(): row[f"op{x}"] for x in "abcdefgh" if f"op{x}" in row}
    return _choice(_stem(row), named, row.get("cop"), base)


def lettered(row: Row, base: int) -> Sample:
    named = {x: row[x.lower()] for x in LETTERS if x.lower() in row}
    return _choice(_stem(row), named, find(row, ("target", "answer"))[1], base)


def optioned(row: Row, base: int) -> Sample:
    """Multiple choice; a row with no options among rows that have them is an open question, if its gold is a text."""
    options, gold = find(row, OPTIONS)[1], find(row, GOLD)[1]
    if missing(options) and isinstance(gold, str) and not re.fullmatch(r"[\s\d]*|[\sA-Z,，、;；/()（）.]+", gold):
        return gold_text({**row, "target": gold}, base)
    return _choice(_stem(row), options, gold, base)


def abstention(row: Row, base: int) -> Sample:
    """Nonsense questions without a gold column: the one option that admits ignorance is gold."""
    del base
    named, _ = options_of(row.get("options"))
    honest = [letter for letter, text in named.items() if text.lower().rstrip(".。") in _ABSTAIN]
    if len(honest) != 1:
        raise BadRow("there is no gold, and not one option that says 'I do not know'")
    sample = _choice(_stem(row), named, honest[0], 0)
    return replace(sample, meta={"task": "abstention"})


def trivalent(row: Row, base: int) -> Sample:
    """A question on an abstract, decided yes, no or maybe."""
    context = row.get("contexts") if not missing(row.get("contexts")) else row.get("context")
    passages = as_list(context.get("contexts") if isinstance(context, dict) else context) or [context]
    text = "\n".join(clean(passage, "context") for passage in passages)
    decided = text_of(row, ("final_decision",)).lower()
    question = f"{text}\n\n{_stem(row)}"
    explanation = text_of(row, ("long_answer",), required=False)
    meta = {"explanation": explanation} if explanation else {}
    return _choice(question, ["yes", "no", "maybe"], decided, base, meta=meta)


def refusal(row: Row, base: int) -> Sample:
    """A harmful request with a safe answer to it: something to train on or to compare with, no gold."""
    del base
    request, safe = text_of(row, ("harmful_medical_request", "harmful_request")), text_of(row, ("safe_response",))
    return Sample("", ask(request), answer=safe, meta={"task": "refusal"})


def rubric(row: Row, base: int) -> Sample:
    """A conversation whose answer is held against rubrics, [{criterion, points}]; points below 0 count against it.

    An ideal answer, where the row has one, is a reference for the judge and nothing to train on.
    """
    del base
    rubrics = [_criterion(item, number) for number, item in enumerate(as_list(row.get("rubrics")), 1)]
    if not any(item["points"] > 0 for item in rubrics):
        raise BadRow("rubrics hold no criterion that earns points")
    meta: dict[str, Any] = {"task": "rubric", "rubrics": rubrics}
    themes = [tag for tag in as_list(row.get("example_tags")) if isinstance(tag, str) and tag.startswith("theme:")]
    if themes:
        meta["subject"] = themes[0].removeprefix("theme:")
    ideal = row.get("ideal_completions_data")
    ideal = ideal.get("ideal_completion") if isinstance(ideal, dict) else None
    if reference := clean(ideal, "ideal_completion", required=False):
        meta["reference"] = reference
    writable(meta, "rubrics")
    return Sample("", _prompt({"prompt": row.get("prompt")}), meta=meta)


def _criterion(item: Any, number: int) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BadRow(f"rubric {number} is {kind(item)}, not an object")
    points = item.get("points")
    if isinstance(points, bool) or not isinstance(points, (int, float)) or not math.isfinite(points):
        raise BadRow(f"rubric {number} has no points")
    tags = [tag for tag in as_list(item.get("tags")) if isinstance(tag, str)]
    found = {"criterion": clean(item.get("criterion"), f"criterion {number}"), "points": points}
    return {**found, "tags": tags} if tags else found
