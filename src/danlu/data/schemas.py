"""From the columns of a file to Samples: the schemas we know, found by their column names.

A schema is the columns it needs and a function of one row. The one that fits most rows is taken (the first in
`SCHEMAS` on a tie, so the specific ones stand first), and names match in any case. `Source.columns` (our name -> the
file's column, `a.b` reaches inside) goes first: with `question` it replaces detection, otherwise it adds to it.

Multiple choice becomes options A, B, ... in order, a gold letter (several joined: "ACD"), and a user turn that lists
the options. A gold number counts from 0 or from 1: the whole file decides, and where it cannot, that is an error for
MedMCQA's `cop` (published both ways) and 0 elsewhere.
Past 400 lines, because reading a cell, an option list and a row belong together.
Not covered: tools, images, several golds of different kinds in one row.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from danlu.errors import DanluError
from danlu.records import Message, Sample
from danlu.run import digest

Row = dict[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OUR_NAMES = ("question", "reasoning", "answer", "target", "options", "id", "system", "aliases")
_ID = ("id", "_id", "uid", "pubid", "qid", "sample_id", "question_id", "")  # "": the unnamed index of a pandas CSV
_QUESTION = ("question", "query")
_PROMPT = (*_QUESTION, "instruction", "input", "prompt")
_REASONING = ("reasoning", "reasoning_content", "think", "thinking", "complex_cot", "cot")
_ANSWER = ("answer", "response", "content", "output")
_META = (
    "subject",
    "subject_name",
    "topic_name",
    "task",
    "language",
    "split",
    "source",
    "explanation",
    "exp",
    "metrics",
)
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_ROLES |= {"bot": "assistant", "chatgpt": "assistant", "model": "assistant"}
_THINK = re.compile(r"\s*(?:<think>)?(?P<reasoning>.*?)</think>(?P<answer>.*)", re.DOTALL)
_LABELLED = re.compile(r"^\s*([A-Z])\s*(?:[.．、:：)）]\s*|\s+)(?=\S)")
_LISTED = re.compile(r"^(?:问题[：:])?\s*(?P<question>.*?)\n\s*选项[：:]\s*\n(?P<options>.*)$", re.DOTALL)
_ABSTAIN = ("i do not know", "i don't know", "我不知道")


class BadRow(ValueError):
    """A row that does not hold what its schema promises; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Schema:
    """`needs`: the columns, each with its accepted names, lower case; `read(row, base)` maps a row or raises BadRow."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Row, int], Sample]

    def fits(self, columns: Iterable[str]) -> bool:
        have = set(columns)
        return all(have & set(names) for names in self.needs)


@dataclass(frozen=True, slots=True)
class Mapping:
    """What `detect` settled for one file: the schema, the user's columns, and from where gold numbers count."""

    schema: Schema
    columns: dict[str, str]
    base: int = 0

    def sample(self, row: Row) -> Sample:
        """Sample of a row, with an id that is the row's own or the hash of its content; BadRow with the reason."""
        lowered = _renamed(row, self.columns)
        sample = self.schema.read(lowered, self.base)
        system = _text(lowered, ("system",), required=False)
        if system and sample.messages[0]["role"] != "system":
            sample = replace(sample, messages=({"role": "system", "content": system}, *sample.messages))
        meta = {key: lowered[key] for key in _META if lowered.get(key) != "nan" and not _missing(lowered.get(key))}
        sample = replace(sample, meta={**meta, **sample.meta})
        return replace(sample, id=_own_id(lowered) or _content_id(sample))


def detect(rows: list[Row], columns: dict[str, str], origin: str) -> Mapping:
    """The mapping that fits most of `rows` (at least one row).

    DanluError when none fits, naming the columns found and the schemas tried, and for a bad `columns`.
    """
    _check_columns(rows, columns, origin)
    shapes = Counter(frozenset(_renamed(row, columns)) for row in rows)
    known = [_PLAIN] if "question" in columns else SCHEMAS
    fitting = [(sum(n for shape, n in shapes.items() if schema.fits(shape)), schema) for schema in known]
    count, schema = max(fitting, key=lambda pair: pair[0])
    if not count:
        found = ", ".join(dict.fromkeys(str(key) for row in rows for key in row))
        raise DanluError(
            f"{origin}: no known schema has the columns {found}",
            f"tried {'; '.join(schema.name for schema in SCHEMAS)}. Name them with data.columns, "
            "for example columns: {question: COLUMN, answer: COLUMN}"
            f" (our names: {', '.join(OUR_NAMES)})",
        )
    return Mapping(schema, columns, _base(schema, [_renamed(row, columns) for row in rows], origin))


def _check_columns(rows: list[Row], columns: dict[str, str], origin: str) -> None:
    present = list(dict.fromkeys(key for row in rows for key in row))
    for ours, theirs in columns.items():
        if ours not in OUR_NAMES:
            near = difflib.get_close_matches(ours, OUR_NAMES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"our names: {', '.join(OUR_NAMES)}"
            raise DanluError(f"{origin}: columns: {ours} is not one of our names", hint)
        if theirs not in present and theirs.partition(".")[0] not in present:
            near = difflib.get_close_matches(theirs, present, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise DanluError(f"{origin} has no column {theirs!r}", f"{hint}columns there: {', '.join(present)}")


def _renamed(row: Row, columns: dict[str, str]) -> Row:
    """The row under lower-case names, the user's columns under ours (and alone, when they name the question)."""
    lowered: Row = {}
    for key, value in row.items():
        lowered.setdefault(key.strip().lower(), value)
    mapped = {ours: _reach(row, theirs) for ours, theirs in columns.items()}
    return mapped if "question" in mapped else {**lowered, **mapped}


def _reach(row: Row, name: str) -> Any:
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


# ---- cells


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _find(row: Row, names: tuple[str, ...]) -> tuple[str, Any]:
    """First of `names` that holds a value; else the first that is a column at all."""
    there = [name for name in names if name in row]
    filled = [name for name in there if not _missing(row[name])]
    name = (filled or there or [names[0]])[0]
    return name, row.get(name)


def _clean(value: Any, name: str, *, required: bool = True) -> str:
    """Stripped text of a cell; BadRow when it is no text, empty though required, or cannot be written as UTF-8."""
    if _missing(value):
        value = ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadRow(f"{name} is {_kind(value)}, not text")
    value = value.strip()
    if required and not value:
        raise BadRow(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{name} holds half of a surrogate pair") from None
    return value


def _kind(value: Any) -> str:
    return {"dict": "an object", "list": "a list", "bool": "a boolean"}.get(type(value).__name__, type(value).__name__)


def _text(row: Row, names: tuple[str, ...], *, required: bool = True, numbers: bool = True) -> str:
    name, value = _find(row, names)
    if not numbers and isinstance(value, (int, float)) and not _missing(value):
        raise BadRow(f"{name} is a number, not text")
    return _clean(value, name or "text", required=required)


def _own_id(row: Row) -> str:
    for name in _ID:
        value = row.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
    return ""


def _content_id(sample: Sample) -> str:
    return digest([sample.messages, sample.reasoning, sample.answer, sample.target, sample.options])


def _ask(question: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": question},)


def _stem(row: Row) -> str:
    return _text(row, _QUESTION, numbers=False)


def _prompt(row: Row) -> tuple[Message, ...]:
    """The question; else the instruction with its input; else the prompt, which may be a list of turns."""
    name, value = _find(row, _PROMPT)
    if name in ("instruction", "input"):
        parts = [_text(row, (part,), required=part == name, numbers=False) for part in ("instruction", "input")]
        return _ask("\n\n".join(part for part in parts if part))
    if _as_list(value):
        turns = _turns(value)
        if not turns or turns[-1]["role"] != "user":
            raise BadRow(f"{name} does not end with a user turn")
        return tuple(_spoken(turn) for turn in turns)
    return _ask(_text(row, (name,), numbers=False))


def _thought(row: Row) -> str:
    name, value = _find(row, _REASONING)
    if isinstance(value, float) and math.isnan(value):
        raise BadRow(f"{name} is NaN")
    return _text(row, _REASONING, required=False, numbers=False)


def _as_list(value: Any) -> list[Any]:
    """A list cell, or the JSON text of one; [] for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = _literal(value)
    return list(value) if isinstance(value, (list, tuple)) else []


def _literal(text: str) -> Any:
    """The value that JSON or Python literal text stands for, else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


# ---- options and gold letters


def options_of(value: Any) -> tuple[dict[str, str], dict[str, str]]:
    """(letter -> text in order, the file's own key -> letter) of an options cell; BadRow when there are not two.

    Takes an object, a list of texts or of {key, text} objects, parallel {text: [...], label: [...]}, JSON or Python
    text of these, or lines "A. text".
    """
    if isinstance(value, str):
        value = _literal(value)
    if isinstance(value, str):
        value = [line for line in value.split("\n") if line.strip()]
    if isinstance(value, dict) and isinstance(value.get("text"), (list, tuple)):
        pairs = list(zip(map(str, value.get("label") or ()), value["text"], strict=False))
        pairs = pairs or [("", text) for text in value["text"]]
    elif isinstance(value, dict):
        pairs = [(str(key).strip(), text) for key, text in value.items()]
    else:
        pairs = [_pair(item) for item in _as_list(value)]
    pairs = [(key, text) for key, text in pairs if not _missing(text)]
    texts = _unlabelled([_clean(text, "an option") for _, text in pairs])
    if not 2 <= len(texts) <= len(LETTERS):
        raise BadRow(f"{len(texts)} options")
    keys = [key for key, _ in pairs]
    own = len(set(keys)) == len(keys) and all(len(key) == 1 and key in LETTERS for key in keys)
    letters = keys if own else list(LETTERS[: len(keys)])
    named = {key: letter for key, letter in zip(keys, letters, strict=True) if key}
    return dict(zip(letters, texts, strict=True)), named


def _pair(item: Any) -> tuple[str, Any]:
    if isinstance(item, dict):
        _, key = _find(item, ("key", "label", "letter", "id"))
        return "" if _missing(key) else str(key), _find(item, ("text", "value", "content"))[1]
    return "", item


def _unlabelled(texts: list[str]) -> list[str]:
    """Texts without their own "A. ", "B. ", where every one carries the letter of its place."""
    found = [_LABELLED.match(text) for text in texts]
    if all(match and match[1] == letter for match, letter in zip(found, LETTERS, strict=False)):
        return [text[match.end() :].strip() for text, match in zip(texts, found, strict=True) if match]
    return texts


def gold_letters(gold: Any, options: dict[str, str], keys: dict[str, str], base: int = 0) -> str:
    """The gold as sorted letters of `options`; BadRow when it names none of them, or could name two different ones."""
    if isinstance(gold, (list, tuple)):
        if not gold:
            raise BadRow("the gold answer is empty")
        return "".join(sorted({letter for part in gold for letter in gold_letters(part, options, keys, base)}))
    text = _clean(gold, "the gold answer")
    if text in keys:
        return keys[text]
    if re.fullmatch(r"-?\d+(\.0)?", text) and text not in options.values():
        place = int(float(text)) - base
        if not 0 <= place < len(options):
            raise BadRow(f"gold number {text} is outside {len(options)} options counted from {base}")
        return list(options)[place]
    plain = re.sub(r"[\s,，、;；/|.．()（）]+", "", unicodedata.normalize("NFKC", text)).upper()
    letters = "".join(sorted(set(plain))) if plain and set(plain) <= set(options) else ""
    same = [letter for letter, option in options.items() if option == text]
    if len(letters) == 1 or (letters and not same):
        return letters
    if len(same) == 1 and not letters:
        return same[0]
    if same:
        raise BadRow(f"gold {text!r} names more than one option")
    raise BadRow(f"gold {text[:40]!r} is none of the options {', '.join(options)}")


def with_options(question: str, options: dict[str, str]) -> str:
    """The user turn of a multiple-choice question: the stem, then one option a line."""
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in options.items())])


def _base(schema: Schema, rows: list[Row], origin: str) -> int:
    """0 or 1: where the file's gold numbers start."""
    if schema.name not in _NUMBERED:
        return 0
    gold, sizes = _NUMBERED[schema.name]
    seen: set[int] = set()
    top = False
    for row in rows:
        text = str(_find(row, gold)[1]).strip()
        if re.fullmatch(r"\d+(\.0)?", text):
            number = int(float(text))
            seen.add(number)
            top = top or number == sizes(row)
    if 0 in seen or not seen:
        return 0
    if top:
        return 1
    if schema.name.startswith("opa"):
        raise DanluError(
            f"{origin}: cop is never 0 and never 4, so it is unclear whether it counts from 0 or from 1",
            "give more rows of the file, or a column with letters: columns: {target: COLUMN}",
        )
    return 0


def _size(options: Any) -> int:
    try:
        return len(options_of(options)[0])
    except BadRow:
        return 0


# ---- the schemas


def _choice(question: str, options: Any, gold: Any, base: int, **more: Any) -> Sample:
    named, keys = options_of(options)
    target = gold_letters(gold, named, keys, base)
    return Sample("", _ask(with_options(question, named)), target=target, options=named, **more)


def _plain(row: Row, base: int) -> Sample:
    """Our own names: question, and any of reasoning, answer, target, options, aliases."""
    messages = _prompt(row)
    answer, reasoning = _text(row, _ANSWER, required=False), _thought(row)
    aliases = tuple(_clean(alias, "an alias") for alias in _aliases(row.get("aliases")))
    if not _missing(row.get("options")):
        gold = row.get("target") if not _missing(row.get("target")) else answer
        kept = answer if not _missing(row.get("target")) else ""
        question = messages[-1]["content"]
        return _choice(question, row["options"], gold, base, reasoning=reasoning, answer=kept, aliases=aliases)
    target = _text(row, ("target",), required=False) or None
    if not answer and target is None:
        raise BadRow("answer and target are empty")
    return Sample("", messages, reasoning=reasoning, answer=answer, target=target, aliases=aliases)


def _aliases(value: Any) -> list[Any]:
    if _missing(value):
        return []
    found = _as_list(value)
    return found or (
        [part for part in re.split(r"[|\n]", value) if part.strip()] if isinstance(value, str) else [value]
    )


def _gold_text(row: Row, base: int) -> Sample:
    sample = _plain({**row, "options": None}, base)
    if sample.target or _missing(row.get("answer")):  # a `response` is something to imitate, not a gold answer
        return sample
    return replace(sample, target=sample.answer)


def _reasoned(row: Row, base: int) -> Sample:
    del base
    return Sample("", _prompt(row), reasoning=_thought(row), answer=_text(row, _ANSWER))


def _ours(row: Row, base: int) -> Sample:
    """A row that Sample.to_dict wrote."""
    if (_as_list(row["messages"]) or [{}])[-1] and _turns(row["messages"])[-1]["role"] == "assistant":
        return replace(_chat(row, base), target=_text(row, ("target", "answer")))
    known = {key: row[key] for key in Sample.__slots__ if key in row and row[key] is not None}
    messages = _turns(row["messages"])
    if not messages or messages[-1]["role"] != "user":
        raise BadRow("messages do not end with a user turn")
    target = known.get("target")
    sample = Sample.from_dict(
        {
            **known,
            "id": "",
            "messages": messages,
            "reasoning": _text(row, ("reasoning",), required=False),
            "answer": _text(row, ("answer",), required=False),
            "target": None if target is None else _clean(target, "target"),
            "options": dict(known.get("options") or {}),
            "meta": dict(known.get("meta") or {}),
        }
    )
    if not sample.answer and sample.target is None:
        raise BadRow("answer and target are empty")
    return sample


def _turns(value: Any) -> tuple[Message, ...]:
    """Chat turns under our roles, from role/content or ShareGPT's from/value; BadRow names the turn."""
    turns: list[Message] = []
    for number, turn in enumerate(_as_list(value), 1):
        if not isinstance(turn, dict):
            raise BadRow(f"turn {number} is {_kind(turn)}, not an object")
        _, role = _find(turn, ("role", "from"))
        if _ROLES.get(str(role)) is None:
            raise BadRow(f"turn {number} has the role {role!r} (known: system, user, assistant, human, gpt)")
        content = _clean(_find(turn, ("content", "value"))[1], f"turn {number}", required=role not in ("system",))
        made = Message(role=_ROLES[str(role)], content=content)  # type: ignore[typeddict-item]
        thought = _clean(turn.get("reasoning_content"), f"reasoning of turn {number}", required=False)
        if thought:
            made["reasoning_content"] = thought
        if content or thought:
            turns.append(made)
    spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
    if spoken and spoken[0] != "user":
        raise BadRow("the first turn is not the user's")
    return tuple(turns)


def _chat(row: Row, base: int) -> Sample:
    del base
    name, value = _find(row, ("messages", "conversations", "conversation"))
    turns = _turns(value)
    if len(turns) < 2 or turns[-1]["role"] != "assistant" or turns[-2]["role"] != "user":
        raise BadRow(f"{name} do not end with a user turn and its answer")
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise BadRow(f"{name} have a system turn that is not the first")
    reasoning, answer = _split(turns[-1]["content"])
    given = turns[-1].get("reasoning_content") or _thought(row)
    return Sample("", tuple(_spoken(t) for t in turns[:-1]), reasoning=given or reasoning, answer=answer)


def _spoken(turn: Message) -> Message:
    """An earlier turn without its reasoning, as a chat would show it to the model."""
    if turn["role"] != "assistant":
        return turn
    return {"role": "assistant", "content": _split(turn["content"])[1]}


def _split(text: str) -> tuple[str, str]:
    """(reasoning, answer) of an assistant turn with an inline <think> block; BadRow when it is not closed."""
    found = _THINK.fullmatch(text)
    if not found:
        if "<think>" in text:
            raise BadRow("a <think> block is not closed")
        return "", text
    answer = found["answer"].strip()
    if not answer:
        raise BadRow("there is no answer after </think>")
    return found["reasoning"].strip(), answer


def _completed(row: Row, base: int) -> Sample:
    """prompt/completion, as texts or as message lists."""
    del base
    messages = _prompt({"prompt": row["prompt"]})
    name, completion = _find(row, ("completion", "response"))
    if _as_list(completion):
        said = _turns([{"role": "user", "content": "-"}, *_as_list(completion)])[1:]  # alone it would start wrong
        if len(said) != 1 or said[0]["role"] != "assistant":
            raise BadRow(f"{name} is not one assistant turn")
        reasoning, answer = _split(said[0]["content"])
        reasoning = said[0].get("reasoning_content") or reasoning
    else:
        reasoning, answer = _split(_clean(completion, name))
    return Sample("", messages, reasoning=_thought(row) or reasoning, answer=answer)


def _alpaca(row: Row, base: int) -> Sample:
    """instruction + input -> output; an input that lists options (问题：/选项：) is multiple choice."""
    instruction, output = _text(row, ("instruction",)), _text(row, ("output",))
    given = _text(row, ("input",), required=False)
    listed = _LISTED.match(given)
    if listed:
        lines = [line.strip() for line in listed["options"].split("\n") if line.strip()]
        meta = {"instruction": instruction}
        return _choice(listed["question"].strip(), lines, output, base, answer=output, meta=meta)
    reasoning, answer = _split(output)
    earlier: list[Message] = []
    for pair in _as_list(row.get("history")):
        if len(_as_list(pair)) != 2:
            raise BadRow("history is not a list of [question, answer]")
        earlier += [{"role": "user", "content": _clean(pair[0], "history")}]
        earlier += [{"role": "assistant", "content": _clean(pair[1], "history")}]
    prompt = f"{instruction}\n\n{given}" if given else instruction
    return Sample("", (*earlier, *_ask(prompt)), reasoning=reasoning, answer=answer)


def _verifiable(row: Row, base: int) -> Sample:
    """An open question made from a multiple-choice one: its wrong options are what a right answer must not claim."""
    target = _text(row, ("ground-true answer", "ground-truth answer", "ground truth answer"))
    aliases: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()
    if not _missing(row.get("options")):
        options, keys = options_of(row["options"])
        letter = gold_letters(_find(row, ("answer_idx", "answer"))[1], options, keys, base)
        gold = [options[x] for x in letter]
        aliases = tuple(text for text in gold if text.lower() != target.lower())
        distractors = tuple(text for x, text in options.items() if x not in letter)
    return Sample("", _ask(_text(row, (_OPEN,))), target=target, aliases=aliases, distractors=distractors)


def _four(row: Row, base: int) -> Sample:
    named = {x.upper(): row[f"op{x}"] for x in "abcdefgh" if f"op{x}" in row}
    return _choice(_stem(row), named, row["cop"], base)


def _lettered(row: Row, base: int) -> Sample:
    named = {x: row[x.lower()] for x in LETTERS if x.lower() in row}
    return _choice(_stem(row), named, _find(row, ("target", "answer"))[1], base)


def _optioned(row: Row, base: int) -> Sample:
    gold = _find(row, ("target", "answer_idx", "answer", "label", "answerkey"))[1]
    return _choice(_stem(row), _find(row, ("options", "choices"))[1], gold, base)


def _abstention(row: Row, base: int) -> Sample:
    """Nonsense questions without a gold column: the one option that admits ignorance is gold."""
    del base
    named, _ = options_of(row["options"])
    honest = [letter for letter, text in named.items() if text.lower().rstrip(".。") in _ABSTAIN]
    if len(honest) != 1:
        raise BadRow("there is no gold, and not one option that says 'I do not know'")
    sample = _choice(_stem(row), named, honest[0], 0)
    return replace(sample, meta={"task": "abstention"})


def _trivalent(row: Row, base: int) -> Sample:
    """A question on an abstract, decided yes, no or maybe."""
    context = row.get("contexts") if not _missing(row.get("contexts")) else row.get("context")
    passages = _as_list(context.get("contexts") if isinstance(context, dict) else context) or [context]
    text = "\n".join(_clean(passage, "context") for passage in passages)
    decided = _text(row, ("final_decision",)).lower()
    question = f"{text}\n\n{_stem(row)}"
    explanation = _text(row, ("long_answer",), required=False)
    meta = {"explanation": explanation} if explanation else {}
    return _choice(question, ["yes", "no", "maybe"], decided, base, meta=meta)


def _refusal(row: Row, base: int) -> Sample:
    """A harmful request with a safe answer to it: something to train on or to compare with, no gold."""
    del base
    request, safe = _text(row, ("harmful_medical_request", "harmful_request")), _text(row, ("safe_response",))
    return Sample("", _ask(request), answer=safe, meta={"task": "refusal"})


_OPEN = "open-ended verifiable question"
_GOLD = ("target", "answer_idx", "answer", "label", "answerkey")
_PLAIN = Schema("data.columns", (("question",),), _plain)
_OPTIONED = "question, options or choices, answer_idx or answer"
SCHEMAS = [
    Schema("messages, answer or target", (("messages",), ("answer", "target")), _ours),
    Schema("messages or conversations", (("messages", "conversations", "conversation"),), _chat),
    Schema(
        "Open-ended Verifiable Question, Ground-True Answer",
        ((_OPEN,), ("ground-true answer", "ground-truth answer", "ground truth answer")),
        _verifiable,
    ),
    Schema("question, context(s), final_decision", (("question",), ("final_decision",)), _trivalent),
    Schema("opa..opd, cop", (("question",), ("opa",), ("opb",), ("cop",)), _four),
    Schema(_OPTIONED, (("question",), ("options", "choices"), _GOLD), _optioned),
    Schema("Question, A, B, C, D, Answer", (("question",), ("a",), ("b",), ("answer", "target")), _lettered),
    Schema("Question, Complex_CoT, Response", (("question",), ("complex_cot",), ("response",)), _reasoned),
    Schema("question, think, answer", (_PROMPT, _REASONING, _ANSWER), _reasoned),
    Schema("prompt, completion or response", (("prompt",), ("completion", "response")), _completed),
    Schema("instruction, input, output", (("instruction",), ("output",)), _alpaca),
    Schema(
        "question or prompt, answer or target", ((*_QUESTION, "prompt"), ("answer", "target", "response")), _gold_text
    ),
    Schema(
        "harmful request, safe_response", (("harmful_medical_request", "harmful_request"), ("safe_response",)), _refusal
    ),
    Schema("question, options (abstention)", (("question",), ("options",)), _abstention),
]
_NUMBERED: dict[str, tuple[tuple[str, ...], Callable[[Row], int]]] = {
    "opa..opd, cop": (("cop",), lambda row: sum(f"op{x}" in row for x in "abcdefgh")),
    _OPTIONED: (_GOLD, lambda row: _size(_find(row, ("options", "choices"))[1])),
    "Question, A, B, C, D, Answer": (("target", "answer"), lambda row: sum(x.lower() in row for x in LETTERS)),
    "data.columns": (("target", "answer"), lambda row: _size(row.get("options"))),
}
