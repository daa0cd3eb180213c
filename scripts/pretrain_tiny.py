"""Make the shipped tiny base: tokenizer and weights, from the clinic's textbook, on a CPU.

    python scripts/pretrain_tiny.py --out src/danlu/assets/tiny          # the shipped file, seeded
    python scripts/pretrain_tiny.py --out /tmp/tiny --steps 20           # a short look

Method: a Qwen3-shaped decoder (tied embeddings) trained from scratch in fp32 on a stream of textbook documents that
are generated as they are needed and never repeat. Hidden matrices are updated by Muon, the rest by AdamW; the rate
is constant, then falls linearly to zero. The vocabulary is byte-level BPE with Qwen2's pre-tokenizer, trained on
term-segmented text so that nearly every Chinese term is one token.

The same machine, versions and thread count reproduce the file bit for bit; elsewhere sums may round differently.
provenance.json holds seed, counts, hashes and versions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from danlu import display
from danlu.domains.medical.clinic import textbook, vignettes
from danlu.domains.medical.clinic.knowledge import LANGUAGES, knowledge
from danlu.domains.medical.clinic.phrases import PHRASES

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 5120
SOURCES = ("knowledge.py", "phrases.py", "textbook.py", "vignettes.py", "facts/terms.tsv", "facts/conditions.tsv")


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over textbook text cut at Chinese terms, plus every term many times."""
    rng = random.Random(f"tokenizer {seed}")
    kb = knowledge()
    terms = {name for entry in kb.entries.values() for language in LANGUAGES for name in entry.names[language]}
    chinese = sorted((t for t in terms if not t.isascii()), key=lambda t: (-len(t), t))
    cut = re.compile("(" + "|".join(map(re.escape, chinese)) + r"|<[^>]+>|[、；。，：\n])")
    texts = [textbook.document(rng) for _ in range(12_000)]
    for sample in vignettes.samples("sft", 1_200, seed=1):
        texts += [sample.question, sample.reasoning, sample.answer]

    def pieces():
        for text in texts:
            for piece in cut.split(text):
                if piece and piece not in terms and not piece.startswith("<"):
                    yield piece
        # Chinese terms matter more: split, they would be several bytes each, while English splits at word parts
        for term in sorted(terms):
            yield from [f" {term}" if term.isascii() else term] * (40 if term.isascii() else 400)
        for words in PHRASES.values():
            yield from (words.comma, words.semicolon) * 60

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - 2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces(), trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in ("<think>", "</think>")])
    template = Path(__file__).parents[1] / "src/danlu/assets/tiny/chat_template.jinja"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        chat_template=template.read_text(encoding="utf-8"),
    )


def shape(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    end, start = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>"))
    return Qwen3Config(
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=512,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=start,
    )


def stream(tokenizer: PreTrainedTokenizerFast, seed: int, rows: int, length: int):
    """Endless batches [rows, length + 1] of documents joined by <|endoftext|>."""
    rng = random.Random(f"textbook {seed}")
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    buffer: list[int] = []
    need = rows * (length + 1)
    while True:
        while len(buffer) < need:
            encoded = tokenizer.backend_tokenizer.encode_batch([textbook.document(rng) for _ in range(2_000)])
            for item in encoded:
                buffer += [*item.ids, end]
        yield torch.tensor(buffer[:need]).view(rows, length + 1)
        buffer = buffer[need:]


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by five Newton-Schulz steps (Jordan et al. 2024), in fp32 and batched by shape.

    torch.optim.Muon iterates in bf16, one matrix at a time: on a CPU without bf16 units that is far slower.
    """

    def __init__(
        self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.02
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
            for param in group["params"]:
                shapes.setdefault(tuple(param.shape), []).append(param)
            for params in shapes.values():
                self._update(params, group["lr"], group["momentum"], group["decay"])

    def _update(self, params: list[torch.nn.Parameter], lr: float, momentum: float, decay: float) -> None:
        moved = []
        for param in params:
            held = self.state[param].setdefault("momentum", torch.zeros_like(param))
            held.lerp_(param.grad, 1 - momentum)
            moved.append(param.grad.lerp(held, momentum))  # Nesterov
        x = torch.stack(moved)
        tall = x.shape[1] > x.shape[2]
        x = x.mT if tall else x
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for a, b, c in [(3.4445, -4.7750, 2.0315)] * 5:
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        x = x.mT if tall else x
        scale = max(1.0, x.shape[1] / x.shape[2]) ** 0.5
        for param, update in zip(params, x, strict=True):
            param.mul_(1 - lr * decay).add_(update, alpha=-lr * scale)


def optimizers(model: Qwen3ForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [Muon(hidden, lr=lr * 5), torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]


def rate(step: int, steps: int, warmup: int = 60, constant: float = 0.6) -> float:
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / max(1, steps * (1 - constant))
    return min(1.0, max(left, 0.0))


def pretrain(tokenizer, steps: int, rows: int, length: int, lr: float, seed: int, state: Path | None = None):
    """Train from scratch, or go on from `state`; returns (model, losses).

    While the rate is constant the state does not depend on `steps`: going on from a state of that phase with more
    steps gives what a longer run from scratch would have given.
    """
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(shape(tokenizer))
    opts = optimizers(model, lr)
    base = [group["lr"] for opt in opts for group in opt.param_groups]
    batches = stream(tokenizer, seed, rows, length)
    losses: list[float] = []

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    compiled = torch.compile(loss_of)
    if state and state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        for opt, value in zip(opts, saved["optimizers"], strict=True):
            opt.load_state_dict(value)
        losses = saved["losses"]
        for _ in losses:
            next(batches)
    start, done = time.monotonic(), len(losses)
    with display.task("pretraining", steps) as task:
        for step in range(done, steps):
            ids = next(batches)
            for group, value in zip((g for o in opts for g in o.param_groups), base, strict=True):
                group["lr"] = value * rate(step, steps)
            loss = compiled(ids)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in opts:
                opt.step()
                opt.zero_grad(set_to_none=True)
            losses.append(loss.item())
            task.advance(loss=sum(losses[-50:]) / len(losses[-50:]))
            if (step + 1) % 100 == 0:
                speed = (step + 1 - done) * rows * length / (time.monotonic() - start)
                print(
                    json.dumps({"step": step + 1, "loss": sum(losses[-100:]) / 100, "tokens_per_second": round(speed)}),
                    flush=True,
                )
            if state and (step + 1) % 250 == 0:
                held = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in opts], "losses": losses}
                torch.save(held, state.with_name(f"{step + 1}-{state.name}"))
    return model, losses


def source_digest() -> str:
    """Hash of everything the textbook is made of."""
    folder = Path(textbook.__file__).parent
    joined = b"".join((folder / name).read_bytes() for name in SOURCES)
    return hashlib.sha256(joined).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2_600)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="file to go on from; states are saved beside it every 250 steps")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began = time.monotonic()
    tokenizer = train_tokenizer(options.seed)
    model, losses = pretrain(
        tokenizer, options.steps, options.rows, options.length, options.lr, options.seed, options.state
    )
    options.out.mkdir(parents=True, exist_ok=True)
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (options.out / "model.safetensors").chmod(0o644)
    hashes = {
        name: hashlib.sha256((options.out / name).read_bytes()).hexdigest()
        for name in (
            "model.safetensors",
            "tokenizer.json",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
        )
    }
    provenance = {
        "command": "python scripts/pretrain_tiny.py --out OUT "
        + " ".join(
            f"--{name} {getattr(options, name)}" for name in ("steps", "rows", "length", "lr", "seed", "threads")
        ),
        "seed": options.seed,
        "steps": options.steps,
        "tokens": options.steps * options.rows * options.length,
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": round(sum(losses[-100:]) / len(losses[-100:]), 4),
        "first_losses": [round(x, 4) for x in losses[:5]],
        "minutes": round((time.monotonic() - began) / 60, 1),
        "threads": options.threads,
        "torch": torch.__version__,
        "textbook_sha256": source_digest(),
        "sha256": hashes,
        "notice": "DEMO-ONLY: trained on a generated toy textbook; not medical advice.",
    }
    (options.out / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
