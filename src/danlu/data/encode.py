"""Texts to token ids, as the model's own tokenizer does it, in batches and on all cores.

The byte-level BPE vocabularies of Qwen, DeepSeek-R1-Distill and Llama 3 come from tiktoken or have its form: each merge
makes the token whose rank it has. Those are run by tiktoken, several times faster than tokenizers; the other ones, and
texts that are not NFC under a normalising tokenizer, go through the tokenizer itself. The vocabulary is checked before
tiktoken may have it, and a few texts of every batch are held against the tokenizer: one difference, and the whole
batch is done again by the tokenizer, with a warning.
Special tokens are the template's business: none is added, and one written in a text is one token.
"""

from __future__ import annotations

import json
import os
import unicodedata
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from danlu import display

Ids = np.ndarray  # int32 [tokens]
PROBES = 16  # texts of a batch that both tokenizers encode
SMALL = 64  # below, building the fast encoder is not worth it
_SIMPLE_SPLIT = {"behavior": "Isolated", "invert": False}


def encode(tokenizer: Any, texts: Sequence[str]) -> list[Ids]:
    """Token ids of each text, without added special tokens."""
    fast = _fast(tokenizer, build=len(texts) >= SMALL)
    if fast is None or not texts:
        return _by_tokenizer(tokenizer, texts)
    needs_nfc = _normaliser(tokenizer) == "NFC"
    odd = [i for i, text in enumerate(texts) if needs_nfc and not unicodedata.is_normalized("NFC", text)]
    probes = sorted({*range(0, len(texts), max(1, len(texts) // PROBES))} - set(odd))
    known = dict(zip([*odd, *probes], _by_tokenizer(tokenizer, [texts[i] for i in (*odd, *probes)]), strict=True))
    aside = set(odd)

    def one(i: int) -> Ids:
        return known[i] if i in aside else fast.encode_to_numpy(texts[i], allowed_special="all").astype(np.int32)

    with ThreadPoolExecutor(_cores()) as pool:
        found = list(pool.map(one, range(len(texts)), chunksize=16))
    if any(not np.array_equal(found[i], known[i]) for i in probes):
        display.warn("the fast encoder disagrees with the tokenizer; using the tokenizer")
        _FAST[tokenizer] = None
        return _by_tokenizer(tokenizer, texts)
    return found


def _by_tokenizer(tokenizer: Any, texts: Sequence[str]) -> list[Ids]:
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [np.array(ids, dtype=np.int32) for ids in found]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- may tiktoken have this vocabulary?

_FAST: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _fast(tokenizer: Any, *, build: bool) -> Any:
    """tiktoken's encoder of this tokenizer, or None; built on the first large batch."""
    if tokenizer not in _FAST and build:
        described = _described(tokenizer)
        _FAST[tokenizer] = None if described is None else tiktoken_of(described)
    return _FAST.get(tokenizer)


def _described(tokenizer: Any) -> dict[str, Any] | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return json.loads(backend.to_str()) if backend is not None else None


def _normaliser(tokenizer: Any) -> str | None:
    kind = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return type(kind).__name__ if kind is not None else None


def tiktoken_of(described: dict[str, Any]) -> Any:
    """A tiktoken Encoding equal to the tokenizer that this tokenizer.json describes, or None where it may not be.

    Equal when: plain BPE over the bytes' alphabet, one regular expression to split by, no normalisation but NFC, added
    tokens taken literally, and every merge makes a token of a higher id than the merge before (then lowest rank first
    and first merge first are the same order).
    """
    model, added = described["model"], described["added_tokens"]
    odd_model = model["type"] != "BPE" or any(
        model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    )
    pattern = _pattern(described.get("pre_tokenizer"))
    normalises = described.get("normalizer") not in (None, {"type": "NFC"})
    literal = all(not any(token[key] for key in ("single_word", "lstrip", "rstrip", "normalized")) for token in added)
    if odd_model or pattern is None or normalises or not literal:
        return None
    byte_of = _byte_alphabet()
    vocab = model["vocab"]
    ranks: dict[bytes, int] = {}
    specials = {token["content"]: token["id"] for token in added}
    for token, rank in vocab.items():
        if token in specials:
            continue
        if any(letter not in byte_of for letter in token):
            return None
        ranks[bytes(byte_of[letter] for letter in token)] = rank
    if not _in_rank_order(model["merges"], vocab, specials) or any(bytes([byte]) not in ranks for byte in range(256)):
        return None
    import tiktoken

    return tiktoken.Encoding("danlu", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)


def _pattern(pre: dict[str, Any] | None) -> str | None:
    """The regular expression of a Split followed by ByteLevel, and of nothing else."""
    steps = (pre or {}).get("pretokenizers", [])
    if len(steps) != 2 or steps[0]["type"] != "Split" or steps[1]["type"] != "ByteLevel":
        return None
    if steps[1]["add_prefix_space"] or steps[1]["use_regex"]:
        return None
    if {key: steps[0][key] for key in _SIMPLE_SPLIT} != _SIMPLE_SPLIT:
        return None
    return steps[0]["pattern"].get("Regex")


def _in_rank_order(merges: Sequence[Any], vocab: dict[str, int], specials: dict[str, int]) -> bool:
    """Whether merges make tokens of rising ids, and every token of more than one byte is made by one."""
    last, made = -1, set()
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        rank = vocab.get(left + right, -1)
        if rank <= last:
            return False
        last = rank
        made.add(left + right)
    return all(len(token) == 1 or token in made or token in specials for token in vocab)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable letter of every byte (Radford et al. 2019): itself where printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
