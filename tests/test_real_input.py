"""Real rows and a real architecture: published data through the tiny base, and Qwen3-0.6B's shape end to end.

Slow, and skipped where the data folder beside the checkout is absent.
"""

import json
from pathlib import Path

import pytest

from danlu import recipe
from danlu.run import Run

SHARED = Path(__file__).parents[2] / "shared"
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the checkout")]


def start(root: Path, name: str, stage: str, *overrides: str) -> tuple[recipe.Recipe, Run]:
    plan = recipe.parse("name: real", list(overrides))
    return plan, Run.create(root / name, stage, plan.resolved(), seed=plan.seed)


@pytest.mark.parametrize(("file", "rows"), [("delicate_medical_r1.jsonl", 200), ("medical_o1_sft_English.json", 150)])
def test_sft_reads_every_row(tmp_path, file, rows):
    from danlu.train.sft import sft

    plan, run = start(
        tmp_path, "sft", "sft", f"data.train={SHARED / 'data/sft' / file}", "data.max_length=16384",
        "sft.batch_size=2", "sft.accumulation=4", "sft.epochs=1", "sft.optimizer.lr=2e-3",
    )  # fmt: skip
    with run.recording():
        results = sft(plan, run)
    info = run.info()["results"]
    assert info["rows"] == rows
    assert info["dropped_overlong"] == 0
    losses = [row["loss"] for row in run.metrics() if "loss" in row]
    assert len(losses) == results["steps"] == -(-rows // 8)
    assert sum(losses[-4:]) < sum(losses[:4])
    assert (run.artifact / "adapter_model.safetensors").is_file()


def test_grpo_reads_every_prompt(tmp_path):
    from danlu.train.grpo import grpo

    plan, run = start(
        tmp_path, "grpo", "grpo", f"grpo.data={SHARED / 'data/rl/medical_o1_verifiable_problem.json'}",
        "grpo.prompts=8", "grpo.group=2", "grpo.steps=3", "grpo.max_prompt=4096", "grpo.max_completion=24",
        "grpo.mask_truncated=false",
    )  # fmt: skip
    with run.recording():
        results = grpo(plan, run)
    assert run.info()["results"]["rows"] == 150
    assert results["steps"] == 3
    assert {"reward", "rewards/answer", "kl", "completion_length"} <= set(run.metrics()[0])


def test_qwen3_06b_shape_to_gguf(tmp_path, capsys):
    """SFT from random weights with the real tokenizer, --from it again, merge, GGUF, llama.cpp."""
    from danlu.export.gguf import write_gguf
    from danlu.export.merge import merge
    from danlu.generate import Sampling
    from danlu.generate.gguf import GgufGenerator
    from danlu.models.locate import base_of
    from danlu.train.sft import sft

    config = tmp_path / "config.json"
    config.write_text(json.dumps(QWEN3_06B))
    rows = (SHARED / "data/sft/delicate_medical_r1.jsonl").read_text(encoding="utf-8").splitlines()
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join(sorted(rows, key=len)[:2]), encoding="utf-8")
    shape = (
        f"model.config={config}", f"model.tokenizer={SHARED / 'tokenizers/Qwen3-1.7B'}", "model.dtype=fp32",
        f"data.train={short}", "sft.batch_size=1", "sft.accumulation=2", "sft.steps=3", "sft.optimizer.lr=1e-3",
        "sft.optimizer.schedule=constant",
    )  # fmt: skip
    plan, run = start(tmp_path, "first", "sft", *shape)
    with run.recording():
        first = sft(plan, run)
    losses = [row["loss"] for row in run.metrics()]
    assert losses[-1] < losses[0]
    again_plan, again = start(tmp_path, "again", "sft", *shape, "sft.steps=1")
    with again.recording():
        sft(again_plan, again, str(run.path))
    followed = again.metrics()[0]["loss"]
    assert abs(followed - losses[-1]) < abs(losses[0] - losses[-1])  # it goes on from where the first ended
    merged = tmp_path / "merged"
    merge(base_of(again.artifact), again.artifact, merged, dtype="bf16")
    file = write_gguf(merged, tmp_path / "model-q8_0.gguf", "q8_0")
    with GgufGenerator(file, context=256) as generator:
        prompts = [[{"role": "user", "content": "发热三天，应做什么检查？"}]]
        _, answers = next(iter(generator.generate(prompts, Sampling(8))))
    assert answers[0].finish in ("stop", "length")
    with capsys.disabled():
        print(f"\nlosses {losses}, then {followed}; {first}; gguf {file.stat().st_size:,} bytes")
