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
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from danlu import display
from danlu.errors import DanluError
from danlu.export import contents
from danlu.export.contents import Check
from danlu.export.gguf import weight_files
from danlu.export.ollama import check_chats, find_layout, render_layout, thinking_options
from danlu.export.probes import probe_prompts, probe_texts
from danlu.generate import Sampling
from danlu.generate.gguf import GgufGenerator, TokenTrace
from danlu.models.tokenizer import end_token_ids, load_tokenizer, renderer, think_format, token_ids
from danlu.records import Message
from danlu.run import read_json

# largest |log-prob difference| of tokens with p >= LIKELY, largest mean KL in nats, smallest greedy agreement; about
# three to ten times what small trained and random models measure (docs/export.md), more in 4 and 5 bits, where larger
# models measure more. A tensor in a wrong place is found by its rows, whatever these say.
LIMITS: dict[str, tuple[float, float, float]] = {
    "f32": (1e-3, 1e-8, 1.0),
    "f16": (0.1, 1e-4, 0.98),
    "bf16": (0.5, 2e-3, 0.95),
    "q8_0": (1.0, 5e-3, 0.95),
    "q6_k": (2.0, 2e-2, 0.93),
    "q5_k_m": (3.0, 5e-2, 0.9),
    "q5_k_s": (3.0, 5e-2, 0.9),
    "q5_0": (3.0, 5e-2, 0.9),
    "q4_k_m": (4.0, 0.15, 0.85),
    "q4_k_s": (4.0, 0.15, 0.85),
    "q4_0": (5.0, 0.25, 0.8),
}
COARSE = (8.0, 1.0, 0.5)  # three bits and less
TOP = 512  # tokens of a distribution that the server returns
LIKELY = 1e-3
SHIFT = 2e-4  # nats by which llama.cpp's log-probs, normalised in fp32, may be off together
CONTEXT = 2048


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

    With `gguf_path` alone it is an export run or its artifact folder (the first file then), or a GGUF file in one:
    danlu.json names the rest.
    `texts` default to `probe_texts()`, `prompts` to `probe_prompts()`; the latter should be what the model was
    trained to answer, then stops mean something. `greedy_tokens` are compared by log-probs, `answer_tokens` by where
    they end. Returns {"ok", "checks": [{"name", "ok", "value", "limit", ...}]}; a file that cannot be opened is one
    failed check "file" and not an error.
    """
    if model_dir is None or quant is None:
        gguf_path, model_dir, quant = _described(gguf_path)
    limits = LIMITS.get(quant, COARSE)
    tokenizer = load_tokenizer(model_dir)
    opened, reader = contents.opened(gguf_path)
    checks = [opened]
    if opened["ok"]:
        checks += [contents.metadata(reader, model_dir, tokenizer), contents.tensors(reader, model_dir)]
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
    files = told.get("files", [told])
    file = next((file for file in files if path.is_file() and file["gguf"] == path.name), files[0])
    return folder / file["gguf"], source, file["quant"]


def failed(report: dict[str, Any]) -> list[str]:
    """Names of the checks that failed."""
    return [check["name"] for check in report["checks"] if not check["ok"]]


# ---- tokens and prompts


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
    """Prompts of llama.cpp, and of the Modelfile's layout, that differ from transformers'; the former also as ids.

    Without and with a system turn, several turns, thinking left alone, on and off.
    """
    render, bos = renderer(tokenizer), tokenizer.bos_token or ""
    adds_bos = bool(bos) and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    layout = find_layout(render, bos=bos, runtime_adds_bos=adds_bos)
    wrong, wrong_ids, wrong_layout = [], [], []
    for messages, thinking in (chats := check_chats()):
        options = thinking_options(thinking)
        whole = render(messages, add_generation_prompt=True, **options)
        expected = whole.removeprefix(bos) if adds_bos else whole
        found = server.render(messages, **options)
        found = found.removeprefix(bos) if adds_bos else found
        if found != expected:
            wrong.append(found)
        (ids,) = server.tokenize([found], add_special=adds_bos)
        if ids != tokenizer(whole, add_special_tokens=False)["input_ids"]:
            wrong_ids.append(found)
        if layout and render_layout(layout, messages, thinking) != expected:
            wrong_layout.append(render_layout(layout, messages, thinking))
    counted = {"limit": 0, "prompts": len(chats)}
    kinds = [("prompts", wrong), ("prompt ids", wrong_ids), *([("modelfile prompts", wrong_layout)] if layout else [])]
    return [{"name": name, "ok": not bad, "value": len(bad), **counted, "examples": bad[:1]} for name, bad in kinds]


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

    differences, divergences, agreed, total, parted, source_ended = [0.0], [], 0, 0, 0, 0
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
        source_ended += any(would_end)
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
            "source_ended": source_ended,
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
    Where all listed tokens are off together by no more than `SHIFT`, that is the normaliser's rounding (measured: up
    to 1.3e-4 where the logits agree within 4e-6); it is taken out of the KL, not of the difference.
    """
    import torch

    ids = torch.tensor(list(found))
    p, q = expected[ids], torch.tensor(list(found.values()), dtype=torch.float64)
    gap = (p - q).abs()[p.exp() >= LIKELY]
    shift = float(p.logsumexp(0) - q.logsumexp(0))
    within = abs(shift) <= SHIFT
    divergence = float((p.exp() * (p - q - (shift if within else 0.0))).sum())
    rest_p, rest_q = (1 - float(x.exp().sum()) for x in (p, q))
    if not within and len(found) < len(expected) and min(rest_p, rest_q) > 0:
        divergence += rest_p * math.log(rest_p / rest_q)
    return float(gap.max()) if len(gap) else 0.0, max(divergence, 0.0)


def _squeezed(text: str) -> str:
    """A text without its white space, which the server trims."""
    return "".join(text.split())


def _reasoning(
    server: GgufGenerator,
    tokenizer: Any,
    chats: list[Sequence[Message]],
    answers: list[TokenTrace],
    answer_tokens: int,
) -> Check:
    """Well-formed answers whose reasoning is not where the server should put it, `reasoning_content`, or that it splits
    elsewhere than we do; and content with a think tag.

    An answer that the model itself wrote badly (no closing tag, a second block) says nothing about the export. The
    server answers several chats at once, and greedy paths may part then: such an answer is only asked for reasoning.
    """
    wrong, split, leaked = [], 0, 0
    with ThreadPoolExecutor(server.parallel) as pool:
        replies = list(pool.map(partial(server.reply, sampling=Sampling(max_tokens=answer_tokens)), chats))
    for trace, (reasoning, content, _) in zip(answers, replies, strict=True):
        tokens = trace.tokens[: -1 if trace.finish == "stop" else None]
        text = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        ours, answer, well_formed = server.think.split(text)
        same = _squeezed(reasoning + content) == _squeezed(ours + answer)
        tagged = server.think.open in content or server.think.close in content
        leaks = well_formed and tagged and (same or not reasoning)
        split, leaked = split + well_formed, leaked + leaks
        elsewhere = same and (reasoning.strip(), content.strip()) != (ours, answer)
        if leaks or (well_formed and (elsewhere or not reasoning.strip())):
            wrong.append(content)
    return {
        "name": "reasoning",
        "ok": not wrong,
        "value": len(wrong),
        "limit": 0,
        "of": len(chats),
        "well_formed": split,
        "leaked": leaked,
        "examples": wrong[:1],
    }
