"""What an export is checked on: short texts of many scripts, and neutral chats for greedy answers."""

from __future__ import annotations

import random
from collections.abc import Sequence

from danlu.records import Message

_WORDS = (  # noqa: SIM905  (a list of quoted words would be longer and harder to read)
    "the patient I'm don't we'll They've HELLO World foo_bar x=1; return None # naïve café résumé Ångström "
    "http://a.b/c?d=e&f=g user@example.com C++ 3.14159 1,234,567 2024-02-29 12:30 50% $9.99 №7 ½ ² ≥ → α-β 10⁻³ "
    "今天天气很好 请问 怎么办？ 「引号」 《书名》 ，。！？；： 第3章 １２３ ＡＢＣ ①② 的 了 是 一 𠮷 龘 "
    "繁體中文 検査 です カタカナ 한국어 안녕 русский Привет العربية ไทย हिन्दी Ελληνικά עברית "
    "😀 👩\u200d⚕️ 🇨🇳 👍🏽 ❤️ 🧪 ☃ ♥ <b> </b> {{x}} [a](b) `code` --- ... … —— ~~ @@ \\n \\t"
).split()
_SPACES = (" ", "  ", "\n", "\n\n", "\t", " \n ", "", "", "\u3000", "\u00a0", "\r\n", "   \n")


def probe_texts(terms: Sequence[str] = (), count: int = 2000, seed: int = 0) -> list[str]:
    """At least `count` different short texts: scripts, emoji, digits, punctuation, white space, and `terms`."""
    draw = random.Random(seed)
    terms = terms if len(terms) <= count // 4 else draw.sample(list(terms), count // 4)
    pieces = [*_WORDS, *terms]
    texts = dict.fromkeys([*pieces, "<think>\na\n</think>\n\nb", " ", "\n", "a" * 300])
    ideographs = [chr(code) for code in range(0x4E00, 0x9FA6)]
    while len(texts) < count + 100:  # some fall together in NFC
        kind, size = draw.random(), draw.randint(1, 9)
        if kind < 0.55:
            text = "".join(draw.choice(pieces) + draw.choice(_SPACES) for _ in range(size))
        elif kind < 0.8:
            text = "".join(draw.choices(ideographs, k=3 * size))
        elif kind < 0.9:
            text = f"{draw.randint(0, 10**size)}{draw.choice(('', '.', 'mg', '℃', '%', ' 岁'))}{draw.random():.3f}"
        else:
            text = draw.choice(_SPACES) + " ".join(draw.choices(pieces, k=size)) + draw.choice(_SPACES)
        texts[text] = None
    return list(texts)


def probe_prompts() -> list[list[Message]]:
    """Neutral chats for greedy answers: two languages, a system turn, several turns, a long question."""
    return [
        [{"role": "user", "content": "你好，请用一句话介绍你自己。"}],
        [{"role": "user", "content": "What is 17 + 25? Think step by step."}],
        [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "Name three rivers."}],
        [
            {"role": "user", "content": "一年有几个季节？"},
            {"role": "assistant", "content": "四个。"},
            {"role": "user", "content": "第二个叫什么？"},
        ],
        [{"role": "user", "content": "数一数：" + "，".join(str(n) for n in range(1, 90)) + "。下一个数是什么？"}],
    ]
