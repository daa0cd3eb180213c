"""Check a GGUF file against the model it was made from, through llama.cpp itself.

Method: the file is opened by the real server. Its metadata and end tokens are compared with the source's; thousands
of texts are tokenized by both; chats are rendered by transformers, by llama.cpp and by the Modelfile's layout; greedy
answers of llama.cpp are scored by transformers in fp32 on the source weights (log-probs, KL, agreement, stops); and
the server's split into reasoning and answer is compared with ours.

Choices: the source is not dequantized from the file, so the limits contain the quantization error. Stops are compared
along llama.cpp's own answer (would the source end here as well?), which stays meaningful after greedy paths part.
KL is over the `TOP` likeliest tokens and the rest as one more event. llama.cpp does no Unicode normalisation, so texts
are compared in NFC and the number that differ in NFD is information.
Not covered: contexts beyond some hundred tokens, sampling, tools, Ollama itself (its template language is tested in
`tests/export`, its binary is not).
"""

from __future__ import annotations

import math
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danlu import display
from danlu.errors import DanluError
from danlu.export.gguf import ARCHITECTURES, weight_files
from danlu.export.ollama import check_chats, find_layout, render_layout
from danlu.generate import Sampling
from danlu.generate.gguf import GgufGenerator, TokenTrace
from danlu.models.tokenizer import end_token_ids, load_tokenizer, renderer, think_format, token_ids
from danlu.records import Message
from danlu.run import read_json

# largest |log-prob difference| of tokens with p >= LIKELY, largest mean KL in nats, smallest greedy agreement.
# Measured on small trained and random models: f32 1e-5 and 1e-9, f16 0.009 and 3e-7, bf16 0.06 and 1e-5, q8_0 0.36
# and 4e-4; a wrong or missing tensor gives a KL above 0.1.
LIMITS: dict[str, tuple[float, float, float]] = {
    "f32": (1e-3, 1e-7, 1.0),
    "f16": (0.1, 1e-4, 0.98),
    "bf16": (0.5, 2e-3, 0.95),
    "q8_0": (1.0, 5e-3, 0.95),
    "k": (3.0, 0.1, 0.85),
}
TOP = 512  # tokens of a distribution that the server returns
LIKELY = 1e-3
CONTEXT = 2048

Check = dict[str, Any]


def verify(
    gguf_path: Path,
    model_dir: Path | None = None,
    *,
    quant: str | None = None,
    texts: Sequence[str] | None = None,
    prompts: Sequence[Sequence[Message]] | None = None,
    greedy_tokens: int = 32,
    answer_tokens: int = 160,
) -> dict[str, Any]:
    """Compare the GGUF file with the transformers folder it was made from.

    With `gguf_path` alone it is an export run, its artifact folder, or a GGUF file in one: danlu.json names the rest.
    `texts` default to `probe_texts()`, `prompts` to `probe_prompts()`; the latter should be what the model was
    trained to answer, then stops mean something. `greedy_tokens` are compared by log-probs, `answer_tokens` by where
    they end. Returns {"ok", "checks": [{"name", "ok", "value", "limit", ...}]}; a file that cannot be opened is one
    failed check "file" and not an error.
    """
    if model_dir is None or quant is None:
        gguf_path, model_dir, quant = _described(gguf_path)
    limits = LIMITS.get(quant, LIMITS["k"])
    tokenizer = load_tokenizer(model_dir)
    opened, reader = _file(gguf_path)
    checks = [opened]
    if opened["ok"]:
        checks.append(_metadata(reader, model_dir, tokenizer))
        try:
            server = GgufGenerator(gguf_path, think=think_format(model_dir, tokenizer), context=CONTEXT, exact=True)
        except DanluError as error:
            checks[0] |= {"ok": False, "value": error.message}
        else:
            with server, display.task("verify", 4) as progress:
                checks.append(_end_tokens(server, model_dir, tokenizer))
                checks.append(_token_ids(server, tokenizer, probe_texts() if texts is None else texts))
                progress.advance()
                checks += _prompts(server, tokenizer)
                progress.advance()
                chats = list(prompts or probe_prompts())
                ids = [tokenizer(_prompt(tokenizer, c), add_special_tokens=False)["input_ids"] for c in chats]
                traces = [server.complete_tokens(row, greedy_tokens, TOP) for row in ids]
                answers = [server.complete_tokens(row, answer_tokens) for row in ids]
                progress.advance()
                checks += _numbers(model_dir, tokenizer, ids, traces, answers, limits)
                if server.think.style == "think":  # llama.cpp knows no other tags
                    checks.append(_reasoning(server, tokenizer, chats, answers, answer_tokens))
                progress.advance()
    return {"ok": all(check["ok"] for check in checks), "checks": checks}


def _described(path: Path) -> tuple[Path, Path, str]:
    """(GGUF file, source folder, quantization) of an export by what its danlu.json says."""
    folder = path.parent if path.is_file() else path
    if (folder / "run.json").is_file():
        folder = next((folder / name for name in ("artifact", "rejected") if (folder / name).is_dir()), folder)
    if not (folder / "danlu.json").is_file() or "gguf" not in (told := read_json(folder / "danlu.json")):
        raise DanluError(f"{path} is not an export", "name an export run, or the folder with its GGUF and danlu.json")
    source = (folder / told["source"]).resolve()
    if not source.is_dir():
        raise DanluError(f"the model it was made from is gone: {source}", "export again to compare")
    return folder / told["gguf"], source, told["quant"]


def failed(report: dict[str, Any]) -> list[str]:
    """Names of the checks that failed."""
    return [check["name"] for check in report["checks"] if not check["ok"]]


# ---- what is in the file


def _file(path: Path) -> tuple[Check, Any]:
    """Whether the file holds all the bytes that its header promises, and its reader (a large vocabulary takes it
    seconds); None where it cannot be read."""
    import gguf

    reader = None
    try:
        reader = gguf.GGUFReader(path)
        end = max((t.data_offset + t.n_bytes for t in reader.tensors), default=0)
        size = path.stat().st_size
        problem = "" if 0 < end <= size else f"{size} bytes, the header promises {end}"
    except Exception as error:  # the reader meets damage with whatever numpy raises
        problem = f"unreadable: {type(error).__name__}: {error}"
    return {"name": "file", "ok": not problem, "value": problem or "complete", "limit": "complete"}, reader


def _metadata(reader: Any, model_dir: Path, tokenizer: Any) -> Check:
    import gguf

    def field(key: str) -> Any:
        found = reader.get_field(key)
        return None if found is None else found.contents()

    config = read_json(model_dir / "config.json")
    arch = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config["architectures"][0]]]
    template = tokenizer.chat_template
    ids = end_token_ids(model_dir, tokenizer)
    expected = {
        "general.architecture": arch,
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.context_length": config["max_position_embeddings"],
        "tokenizer.chat_template": template["default"] if isinstance(template, dict) else template,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
    }
    different = [key for key, value in expected.items() if field(key) != value]
    if field("tokenizer.ggml.eos_token_id") not in ids:
        different.append("tokenizer.ggml.eos_token_id")
    return {"name": "metadata", "ok": not different, "value": different, "limit": []}


def _end_tokens(server: GgufGenerator, model_dir: Path, tokenizer: Any) -> Check:
    """llama.cpp must stop at each end token of the model, and must not at its think tags or an ordinary token."""
    ends = list(dict.fromkeys([*server.think.end_tokens, *_texts(tokenizer, end_token_ids(model_dir, tokenizer))]))
    start = tokenizer("a", add_special_tokens=False)["input_ids"]

    def stops(token: int) -> bool:
        return server.complete_tokens(start, 2, bias={token: 1000.0}).finish == "stop"

    wrong = [f"{text} does not stop" for text in ends if not stops(*token_ids(tokenizer, [text]))]
    tags = [tokenizer.get_vocab().get(text) for text in (server.think.open, server.think.close)]
    for token in [*start, *(token for token in tags if token is not None)]:
        if stops(token):
            wrong.append(f"{tokenizer.convert_ids_to_tokens(token)} stops")
    return {"name": "end tokens", "ok": not wrong, "value": wrong, "limit": [], "tokens": ends}


def _texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return [text for text in tokenizer.convert_ids_to_tokens(list(ids)) if text]


# ---- tokens and prompts


def _token_ids(server: GgufGenerator, tokenizer: Any, texts: Sequence[str]) -> Check:
    texts = list(dict.fromkeys(unicodedata.normalize("NFC", text) for text in texts if text))
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"]
    found = server.tokenize(texts)
    wrong = [text for text, a, b in zip(texts, expected, found, strict=True) if list(a) != list(b)]
    decomposed = [form for text in texts if (form := unicodedata.normalize("NFD", text)) != text][:300]
    ids = tokenizer(decomposed, add_special_tokens=False)["input_ids"] if decomposed else []
    nfd = sum(list(a) != b for a, b in zip(ids, server.tokenize(decomposed), strict=True))
    return {
        "name": "token ids",
        "ok": not wrong,
        "value": len(wrong),
        "limit": 0,
        "texts": len(texts),
        "examples": wrong[:3],
        "nfd": {"texts": len(decomposed), "different": nfd},
    }


def _prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    return renderer(tokenizer)(list(messages), add_generation_prompt=True)


def _prompts(server: GgufGenerator, tokenizer: Any) -> list[Check]:
    """Prompts of llama.cpp, and of the Modelfile's layout, that differ from transformers'."""
    render, bos = renderer(tokenizer), tokenizer.bos_token or ""
    adds_bos = bool(bos) and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    layout = find_layout(render, bos=bos, runtime_adds_bos=adds_bos)
    wrong, wrong_layout = [], []
    for messages, thinking in (chats := check_chats()):
        options = {} if thinking else {"enable_thinking": False}
        expected = render(messages, add_generation_prompt=True, **options)
        expected = expected.removeprefix(bos) if adds_bos else expected
        found = server.render(messages, **options)
        if (found.removeprefix(bos) if adds_bos else found) != expected:
            wrong.append(found)
        if layout and render_layout(layout, messages, thinking) != expected:
            wrong_layout.append(render_layout(layout, messages, thinking))
    counted = {"limit": 0, "prompts": len(chats)}
    checks = [{"name": "prompts", "ok": not wrong, "value": len(wrong), **counted, "examples": wrong[:1]}]
    if layout:
        checks.append({"name": "modelfile prompts", "ok": not wrong_layout, "value": len(wrong_layout), **counted})
    return checks


# ---- numbers


def _numbers(
    model_dir: Path,
    tokenizer: Any,
    prompts: list[list[int]],
    traces: list[TokenTrace],
    answers: list[TokenTrace],
    limits: tuple[float, float, float],
) -> list[Check]:
    """Log-prob difference, KL, greedy agreement and stops against transformers on the source weights."""
    import torch

    model = _source(model_dir)
    ends = {*end_token_ids(model_dir, tokenizer)}
    ends |= {*token_ids(tokenizer, think_format(model_dir, tokenizer).end_tokens)}

    def scored(prompt: list[int], tokens: tuple[int, ...]) -> Any:
        with torch.inference_mode():
            rows = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        return rows.double().log_softmax(-1)  # (tokens, vocabulary)

    differences, divergences, agreed, total, parted = [0.0], [], 0, 0, 0
    for prompt, trace, answer in zip(prompts, traces, answers, strict=True):
        expected = scored(prompt, trace.tokens)
        for row, token, top in zip(expected, trace.tokens, trace.top, strict=True):
            agreed += float(row.max() - row[token]) <= limits[0]  # a tie within the tolerance is agreement
            total += 1
            if top:
                difference, divergence = _distance(row, top)
                differences.append(difference)
                divergences.append(divergence)
        would_end = [int(token) in ends for token in scored(prompt, answer.tokens).argmax(-1)]
        parted += would_end != [token in ends for token in answer.tokens]
    ended = sum(answer.finish == "stop" for answer in answers)
    worst, mean = max(differences), sum(divergences) / max(len(divergences), 1)
    share = agreed / max(total, 1)
    allowed = 0 if limits[2] == 1.0 else math.ceil(len(prompts) / 8)
    return [
        {"name": "log-probs", "ok": worst <= limits[0], "value": worst, "limit": limits[0], "tokens": total},
        {"name": "KL", "ok": bool(divergences) and mean <= limits[1], "value": mean, "limit": limits[1]},
        {"name": "greedy agreement", "ok": total > 0 and share >= limits[2], "value": share, "limit": limits[2]},
        {
            "name": "stops",
            "ok": parted <= allowed,
            "value": parted,
            "limit": allowed,
            "of": len(prompts),
            "ended": ended,
        },
    ]


def _source(model_dir: Path) -> Any:
    """The source model for scoring: fp32 where that fits the memory, else as stored."""
    import psutil
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    stored = sum(file.stat().st_size for file in weight_files(model_dir))
    fits = 2 * stored < 0.8 * psutil.virtual_memory().available
    if not fits:
        display.warn("not enough memory for fp32: the source is scored in its own precision")
    dtype = "float32" if fits else "auto"
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "use_safetensors": True}
    return AutoModelForCausalLM.from_pretrained(str(model_dir), **options).eval()


def _distance(expected: Any, found: dict[int, float]) -> tuple[float, float]:
    """(largest |difference| of likely tokens, KL(source || file) in nats) at one position.

    `expected`: log-probs (vocabulary,) of the source; `found`: the file's likeliest tokens. The rest is one event.
    """
    import torch

    ids = torch.tensor(list(found))
    p, q = expected[ids], torch.tensor(list(found.values()), dtype=torch.float64)
    gap = (p - q).abs()[p.exp() >= LIKELY]
    divergence = float((p.exp() * (p - q)).sum())
    rest_p, rest_q = (max(1 - float(x.exp().sum()), 0.0) for x in (p, q))
    if len(found) < len(expected) and rest_p > 1e-6 and rest_q > 1e-6:
        divergence += rest_p * math.log(rest_p / rest_q)
    return float(gap.max()) if len(gap) else 0.0, max(divergence, 0.0)


def _reasoning(
    server: GgufGenerator,
    tokenizer: Any,
    chats: list[Sequence[Message]],
    answers: list[TokenTrace],
    answer_tokens: int,
) -> Check:
    """Well-formed answers whose reasoning the server left in the answer, or split elsewhere than we do.

    An answer that the model itself wrote badly (no closing tag, a second block) says nothing about the export.
    """
    wrong, split = [], 0
    for index, (completion,) in server.generate(chats, Sampling(max_tokens=answer_tokens)):
        tokens = answers[index].tokens[: -1 if answers[index].finish == "stop" else None]
        text = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        reasoning, answer, well_formed = server.think.split(text)
        split += well_formed
        if well_formed and (completion.reasoning, completion.answer) != (reasoning, answer):
            wrong.append(completion.text)
    return {
        "name": "reasoning",
        "ok": not wrong,
        "value": len(wrong),
        "limit": 0,
        "of": len(chats),
        "well_formed": split,
        "examples": wrong[:1],
    }


# ---- probes

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
