"""Multiple choice: the options of a cell as A, B, ... in order, and the gold as sorted letters of them ("ACD").

A gold is a letter or several, the file's own key, an option's text (labelled or not), or a number that counts from
`base`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from danlu.data.cells import BadRow, as_list, clean, find, literal, missing

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABELLED = re.compile(r"^\s*(?:[(（]([A-Z])[)）]|([A-Z])(?:\s*[.．、:：)）]|(?=\s)))\s*(?=\S)")


def options_of(value: Any) -> tuple[dict[str, str], dict[str, str]]:
    """(letter -> text in order, the file's own key -> letter) of an options cell; BadRow when there are not two.

    Takes an object, a list of texts or of {key, text} objects, parallel {text: [...], label: [...]}, JSON or Python
    text of these, lines "A. text", or texts with | between them.
    """
    if isinstance(value, str):
        value = literal(value)
    if isinstance(value, str):
        value = [text for text in value.split("\n" if "\n" in value.strip() else "|") if text.strip()]
    if isinstance(value, dict) and isinstance(value.get("text"), (list, tuple)):
        labels = as_list(value.get("label")) or [""] * len(value["text"])
        if len(labels) != len(value["text"]):
            raise BadRow(f"{len(labels)} labels for {len(value['text'])} options")
        pairs = list(zip(map(str, labels), value["text"], strict=True))
    elif isinstance(value, dict):
        pairs = [(str(key).strip(), text) for key, text in value.items()]
    else:
        pairs = [_pair(item) for item in as_list(value)]
    pairs = [(key, text) for key, text in pairs if not missing(text)]
    texts = _unlabelled([clean(text, "an option") for _, text in pairs])
    if not 2 <= len(texts) <= len(LETTERS):
        raise BadRow(f"{len(texts)} options")
    keys = [key for key, _ in pairs]
    twice = [key for key in keys if key and keys.count(key) > 1]
    if twice:
        raise BadRow(f"two options have the key {twice[0][:40]!r}")
    own = all(len(key) == 1 and key in LETTERS for key in keys)
    letters = keys if own else list(LETTERS[: len(keys)])
    named = {key: letter for key, letter in zip(keys, letters, strict=True) if key}
    return dict(zip(letters, texts, strict=True)), named


def _pair(item: Any) -> tuple[str, Any]:
    if isinstance(item, dict):
        _, key = find(item, ("key", "label", "letter", "id"))
        return "" if missing(key) else str(key), find(item, ("text", "value", "content"))[1]
    return "", item


def _unlabelled(texts: list[str]) -> list[str]:
    """Texts without their own "A. ", "B. ", where every one carries the letter of its place."""
    found = [_LABELLED.match(text) for text in texts]
    if all(match and (match[1] or match[2]) == letter for match, letter in zip(found, LETTERS, strict=False)):
        return [text[match.end() :].strip() for text, match in zip(texts, found, strict=True) if match]
    return texts


def gold_letters(gold: Any, options: dict[str, str], keys: dict[str, str], base: int = 0) -> str:
    """The gold as sorted letters of `options`; BadRow when it names none of them, or could name two different ones."""
    if isinstance(gold, (list, tuple)):
        if not gold:
            raise BadRow("the gold answer is empty")
        return "".join(sorted({letter for part in gold for letter in gold_letters(part, options, keys, base)}))
    text = clean(gold, "the gold answer")
    if text in keys:
        return keys[text]
    if re.fullmatch(r"-?\d{1,9}(\.0)?", text) and text not in options.values():
        place = int(float(text)) - base
        if not 0 <= place < len(options):
            raise BadRow(f"gold number {text} is outside {len(options)} options counted from {base}")
        return list(options)[place]
    plain = re.sub(r"[\s,，、;；/|.．()（）]+", "", unicodedata.normalize("NFKC", text)).upper()
    letters = "".join(sorted(set(plain))) if plain and set(plain) <= set(options) else ""
    same = [letter for letter, option in options.items() if option == text] or _as_labelled(text, options)
    if len(letters) == 1 or (letters and not same):
        return letters
    if len(same) == 1 and not letters:
        return same[0]
    if same:
        raise BadRow(f"gold {text[:40]!r} names more than one option")
    raise BadRow(f"gold {text[:40]!r} is none of the options {', '.join(options)}")


def _as_labelled(gold: str, options: dict[str, str]) -> list[str]:
    """The letter of a gold that is written as a labelled option, "(B) text"; [] for any other."""
    match = _LABELLED.match(gold)
    letter = (match[1] or match[2]) if match else ""
    return [letter] if match and options.get(letter) == gold[match.end() :].strip() else []


def with_options(question: str, options: dict[str, str]) -> str:
    """The user turn of a multiple-choice question: the stem, then one option a line."""
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in options.items())])


def size(options: Any) -> int:
    try:
        return len(options_of(options)[0])
    except BadRow:
        return 0
