"""SFT against a plain loop over transformers and peft, its splits, masking, and what a run directory holds."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_training import new_run, recipe, trained, write_questions, write_rows

from danlu.cli import main
from danlu.data.prepare import prepare, prompts, shape_of
from danlu.data.render import IGNORE
from danlu.data.rows import TrainingRows
from danlu.data.store import open_store
from danlu.errors import DanluError
from danlu.generate.local import LocalGenerator
from danlu.models.load import load
from danlu.run import Run, read_json
from danlu.train import checkpoint
from danlu.train.schedule import learning_rate, row_order
from danlu.train.sft import _row, sft
from danlu.train.watch import figures
from killed import in_child
from tiny_models import build, tokenizer
from tiny_models import trained as memorised


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build(folder, "qwen3")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")


def losses(run: Run, key: str = "loss") -> list[float]:
    return [row[key] for row in run.metrics() if key in row]


def test_the_loss_curve_is_that_of_a_plain_loop(base: Path, data: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    optimizer = {"lr": 5e-3, "warmup": 0.2, "weight_decay": 0.05, "clip": 0.5, "betas": [0.9, 0.98]}
    made = recipe(base, data, sft={"steps": 10, "optimizer": optimizer, "batch_size": 2, "accumulation": 2})
    ours = losses(trained(made, tmp_path / "run")[0])

    plain, words = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    torch.manual_seed(made.seed)
    lora = made.sft.lora
    model = get_peft_model(
        plain, LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.targets, task_type="CAUSAL_LM")
    )
    params = [p for p in model.parameters() if p.requires_grad]
    settings = made.sft.optimizer
    adam = torch.optim.AdamW(params, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
    rows = prepare(made).train
    theirs = []
    for step in range(10):
        total, count = torch.zeros(()), 0
        for _, n in row_order(len(rows), made.seed, step * 4, step * 4 + 4):
            prompt = words.apply_chat_template(list(rows[n].messages), tokenize=False, add_generation_prompt=True)
            ids = words(prompt, add_special_tokens=False)["input_ids"]
            text = f"<think>\n{rows[n].reasoning}\n</think>\n\n{rows[n].answer}<|im_end|>"
            done = words(text, add_special_tokens=False)["input_ids"]
            logits = model(torch.tensor([ids + done])).logits[0, len(ids) - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(done), reduction="sum")
            count += len(done)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(params, settings.clip)
        for group in adam.param_groups:
            group["lr"] = learning_rate(settings, step, 10)
        adam.step()
        adam.zero_grad()
        theirs.append(float(total.detach() / count))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < ours[0] - 0.5


def test_batch_size_and_accumulation_change_nothing(base: Path, data: Path, tmp_path: Path) -> None:
    found = []
    for size, times in ((8, 1), (4, 2), (1, 8), (3, 1)):
        sizes = {"batch_size": size, "accumulation": times, "optimizer": {"lr": 1e-3}}
        run, tensors = trained(recipe(base, data, sft=sizes), tmp_path / f"run{size}")
        found.append((losses(run), losses(run, "grad_norm"), tensors))
    for curve, norms, tensors in found[1:3]:
        assert curve == pytest.approx(found[0][0], abs=1e-5)
        assert norms == pytest.approx(found[0][1], abs=1e-5)
        for name, value in tensors.items():
            torch.testing.assert_close(value, found[0][2][name], rtol=0, atol=1e-5)
    assert found[3][0] != pytest.approx(found[0][0], abs=1e-3)  # three rows a step are another training


@pytest.mark.slow
def test_memory_that_is_refused_halves_the_micro_batch(base: Path, tmp_path: Path) -> None:
    """In a process of its own with a real limit; the losses are those of small micro-batches from the start."""
    long = " ".join(str(7919 * n % 10_007) for n in range(360))  # a token for every digit
    rows = [{"question": f"q{n}", "reasoning": long, "answer": "a"} for n in range(8)]
    data = write_rows(tmp_path / "rows.jsonl", rows=rows)
    settings = {"batch_size": 8, "steps": 2}
    made = recipe(base, data, data={"max_length": 2048}, sft=settings)
    small = recipe(base, data, data={"max_length": 2048}, sft=settings | {"micro_batch": 1})

    def limited() -> None:
        trained(small, tmp_path / "first")  # everything is imported and has its threads
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 60 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        trained(made, tmp_path / "limited")

    assert in_child(limited) == 0
    run, tensors = trained(small, tmp_path / "small")
    halved = Run.open(tmp_path / "limited")
    assert halved.info()["status"] == "done"
    assert halved.info()["results"]["halvings"] in (1, 2, 3)
    assert losses(halved) == pytest.approx(losses(run), abs=1e-5)
    state = read_json(checkpoint.listed(halved.checkpoints)[-1] / "state.json")
    assert state["halvings"] == halved.info()["results"]["halvings"]
    for name, value in load_file(halved.artifact / "adapter_model.safetensors").items():
        torch.testing.assert_close(value, tensors[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("epochs", "rows_seen"), [(1, 12), (2, 24), (0.5, 6), (1.02, 12), (0.01, 1), (2.1, 25)], ids=str
)
def test_epochs_are_rows_seen(base: Path, data: Path, tmp_path: Path, epochs: float, rows_seen: int) -> None:
    made = recipe(base, data, sft={"steps": None, "epochs": epochs})
    run, _ = trained(made, tmp_path / "run")
    rows = [row for row in run.metrics() if "loss" in row]
    assert len(rows) == -(-rows_seen // 4)
    assert rows[-1]["epoch"] == pytest.approx(rows_seen / 12, abs=1e-4)
    assert all(row["loss"] > 0 for row in rows)


def test_the_best_is_delivered(data: Path, tmp_path: Path) -> None:
    """A model that knows its rows already, and a rate that ruins it: the first weights are the best."""
    settings = {"steps": 6, "eval_every": 1, "optimizer": {"lr": 0.3, "schedule": "constant", "warmup": 0.0}}
    found = {}
    for keep in (True, False):
        made = recipe(memorised(), data, data={"valid_fraction": 0.25}, sft=settings | {"keep_best": keep})
        run, found[keep] = trained(made, tmp_path / f"run{keep}")
        results = run.info()["results"]
        curve = losses(run, "eval_loss")
        assert len(curve) == 6
        assert results["best_eval_loss"] == min(curve)
        assert results["best_step"] == curve.index(min(curve)) + 1 < 6
        assert results["eval_loss"] == curve[-1]
    assert any(not torch.equal(found[True][name], found[False][name]) for name in found[True])


def test_questions_are_watched_and_decide_what_is_best(data: Path, tmp_path: Path, capsys: Any) -> None:
    """A model that knows the answers, and a rate that ruins it: accuracy falls, the first weights are delivered."""
    watch = write_questions(tmp_path / "watch.jsonl", 4)
    settings = {"steps": 12, "eval_every": 1, "watch": str(watch), "best_on": "accuracy", "patience": 3}
    settings |= {"optimizer": {"lr": 0.5, "warmup": 1.0}}  # it rises step by step
    made = recipe(memorised(), data, data={"valid_fraction": 0.25}, sft=settings, eval={"max_tokens": 24})
    run, _ = trained(made, tmp_path / "run")
    curve, results = losses(run, "eval_accuracy"), run.info()["results"]
    assert curve[0] > curve[-1] == 0.0
    assert len(losses(run, "eval_loss")) == len(curve) == 4
    assert results["best_eval_accuracy"] == curve[0]
    assert (results["best_step"], results["steps"], results["stopped_early"]) == (1, 4, True), curve
    assert results["eval_accuracy"] == curve[-1]
    assert "questions in sft.watch" not in capsys.readouterr().err
    loaded = load(made.model, str(run.path))  # what is delivered answers as it did then
    samples = prompts(made, made.sft.watch).train
    assert figures(LocalGenerator(loaded), samples, 24)["eval_accuracy"] == curve[0]
    seen = [{"question": row.question, "reasoning": "r", "answer": "a"} for row in samples]
    known = write_rows(tmp_path / "known.jsonl", rows=seen)
    trained(recipe(memorised(), known, sft=settings | {"steps": 1}, eval={"max_tokens": 4}), tmp_path / "known")
    assert "4 of the 4 questions in sft.watch stand in the training rows" in capsys.readouterr().err


def test_what_best_and_patience_need(base: Path, data: Path, tmp_path: Path) -> None:
    watch = str(write_questions(tmp_path / "watch.jsonl", 4))
    for wrong, told in (
        ({"patience": 2, "eval_every": 1}, "sft.patience needs validation rows"),
        ({"watch": watch, "eval_every": 1}, "sft.best_on: eval_loss needs validation rows"),
    ):
        made = recipe(base, data, sft=wrong)
        with pytest.raises(DanluError, match=told):
            sft(made, new_run(tmp_path / told.split()[0], made))
    for wrong, told in (({"patience": 2}, "needs eval_every"), ({"best_on": "accuracy"}, "needs questions")):
        with pytest.raises(ValueError, match=told):
            recipe(base, data, sft=wrong)


def test_full_training_and_other_architectures(data: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    folder = tmp_path / "gpt2"
    torch.manual_seed(0)
    made = tokenizer("chatml")
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 640, "eos_token_id": made.eos_token_id}
    shape |= {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    AutoModelForCausalLM.from_config(GPT2Config(**shape)).save_pretrained(folder)
    made.save_pretrained(folder)
    cases = {"lora": {"lora": {"r": 4, "targets": ["c_attn"]}}, "full": {"method": "full"}}
    for name, settings in cases.items():
        for checkpointing in (False, True):
            used = recipe(folder, data, sft={**settings, "steps": 5, "gradient_checkpointing": checkpointing})
            run = new_run(tmp_path / f"{name}{checkpointing}", used)
            sft(used, run)
            curve = losses(run)
            assert curve[-1] < curve[0]
            assert load(used.model, str(run.artifact)).described["base"]["id"]
        both = [losses(Run.open(tmp_path / f"{name}{value}")) for value in (False, True)]
        assert both[0] == pytest.approx(both[1], abs=1e-5)


def test_an_adapter_is_trained_further(base: Path, data: Path, tmp_path: Path) -> None:
    made = recipe(base, data, sft={"steps": 8})
    first, _ = trained(made, tmp_path / "first")
    second, tensors = trained(made, tmp_path / "second", str(first.path))
    assert losses(second)[0] < losses(first)[-1] + 0.3 < losses(first)[0]
    assert {value.shape[0] for name, value in tensors.items() if "lora_A" in name} == {8}
    assert read_json(second.artifact / "danlu.json")["base"]["id"] == str(base)


# ---- data


def test_rows_that_do_not_fit_are_counted(base: Path, tmp_path: Path) -> None:
    rows = [{"question": "q", "reasoning": "r", "answer": "a" * size} for size in (1, 2, 900, 3)]
    data = write_rows(tmp_path / "rows.jsonl", rows=rows)
    run, _ = trained(recipe(base, data, data={"max_length": 60}), tmp_path / "run")
    results = run.info()["results"]
    assert (results["rows"], results["dropped_overlong"], results["counts"]["in"]) == (3, 1, 4)
    with pytest.raises(DanluError, match="no row fits"):
        sft(recipe(base, data, data={"max_length": 8}), new_run(tmp_path / "none", recipe(base)))


def test_bad_rows_are_written_down(base: Path, tmp_path: Path) -> None:
    rows = [{"question": "q", "reasoning": "r", "answer": "a"}, {"question": "", "reasoning": "r", "answer": "a"}]
    data = write_rows(tmp_path / "rows.jsonl", rows=rows)
    run, _ = trained(recipe(base, data, data={"on_bad_row": "skip"}), tmp_path / "run")
    (row,) = [json.loads(line) for line in (run.path / "rejected.jsonl").read_text().splitlines()]
    assert (row["line"], row["origin"]) == (2, str(data))
    assert row["reason"]


MASKED = {"probability": 1.0, "terms": [1, 2], "forms": ["mask", "category"]}


def test_training_rows_are_masked_anew_in_every_epoch(base: Path, data: Path) -> None:
    made = recipe(base, data, domain="small_domain", data={"masking": MASKED})
    loaded = load(made.model)
    prepared = prepare(made)
    rendered = open_store(loaded.tokenizer, loaded.think, prepared.train, shape_of(made))
    rows = TrainingRows(made, loaded.tokenizer, loaded.think, prepared.train, rendered)
    again = TrainingRows(made, loaded.tokenizer, loaded.think, prepared.train, rendered)
    changed = set()
    for index in range(len(rendered)):
        texts = set()
        plain = rendered[index]
        length = int((plain.labels != IGNORE).argmax())
        for epoch in range(8):
            tokens, labels = _row(rows.rendered(epoch, index))
            assert [part.tolist() for part in _row(again.rendered(epoch, index))] == [tokens.tolist(), labels.tolist()]
            assert len(tokens) == len(labels)
            assert labels[-1] == tokens[-1]
            assert tokens[:length].tolist() == plain.tokens[:length].tolist()
            assert (labels[:length] == IGNORE).all()
            learned = labels[length:] != IGNORE
            assert (labels[length:][learned] == tokens[length:][learned]).all()
            texts.add(loaded.tokenizer.decode(tokens))
            masks = loaded.tokenizer.decode(tokens[length:])
            assert (not learned.all()) == any(form in masks for form in ("[MASK]", "[SYMPTOM]", "[FOOD]"))
            assert "MASK]" not in loaded.tokenizer.decode(tokens[length:][learned])
        if len(texts) > 1:
            changed.add(index)
    with_terms = {
        n for n, row in enumerate(prepared.train) if any(t in row.reasoning for t in ("发热", "咳嗽", "fruit"))
    }
    assert changed == with_terms
    assert 0 < len(with_terms) < len(rendered)


def test_denoising_keeps_lengths_and_learns_the_terms(base: Path, data: Path) -> None:
    made = recipe(base, data, domain="small_domain", data={"masking": {**MASKED, "loss": "denoise"}})
    loaded = load(made.model)
    prepared = prepare(made)
    rendered = open_store(loaded.tokenizer, loaded.think, prepared.train, shape_of(made))
    rows = TrainingRows(made, loaded.tokenizer, loaded.think, prepared.train, rendered)
    hidden = 0
    for index in range(len(rendered)):
        tokens, labels = _row(rows.rendered(0, index))
        plain = rendered[index]
        assert labels.tolist() == plain.labels.tolist()
        assert len(tokens) == len(plain.tokens)
        hidden += int((tokens != plain.tokens).sum())
    assert hidden


@pytest.mark.parametrize("split", ["valid", "valid_fraction"])
def test_validation_rows_are_never_masked(base: Path, data: Path, tmp_path: Path, split: str) -> None:
    found = {}
    held_out = 0.5 if split == "valid_fraction" else str(write_rows(tmp_path / "held-out.jsonl", 5))
    for name, masking in (("plain", None), ("masked", MASKED)):
        section = {split: held_out, "masking": masking}
        still = {"steps": 2, "eval_every": 1, "optimizer": {"lr": 1e-12}}
        made = recipe(base, data, domain="small_domain", data=section, sft=still)
        found[name], _ = trained(made, tmp_path / name)
    assert losses(found["plain"], "eval_loss") == losses(found["masked"], "eval_loss")
    assert losses(found["plain"]) != pytest.approx(losses(found["masked"]), abs=1e-3)


# ---- the run directory


def test_the_contents_of_a_run(base: Path, data: Path, runs: Path, tmp_path: Path, capsys) -> None:
    section = {"valid_fraction": 0.25}
    made = recipe(base, data, domain="small_domain", data=section, sft={"steps": 4, "eval_every": 2, "save_every": 1})
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(made.resolved(), allow_unicode=True), "utf-8")
    assert main(["sft", str(tmp_path / "small.yaml"), "--name", "one"]) == 0
    run = Run.open(runs / "one")
    assert capsys.readouterr().out == f"{run.artifact}\n"
    files = sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file())
    held = ["best.safetensors", "manifest.json", "optimizer.pt", "state.json", "trainable.safetensors"]
    artifact = ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "danlu.json"]
    artifact += ["tokenizer.json", "tokenizer_config.json"]
    assert files == [
        *(f"artifact/{name}" for name in artifact),
        *(f"checkpoints/step_00000{step}/{name}" for step in (3, 4) for name in held),
        "config.json",
        "metrics.jsonl",
        "recipe.yaml",
        "run.json",
    ]
    info = run.info()
    keys = ["config_digest", "created", "ended", "error", "git", "hardware", "name", "packages", "parents", "results"]
    assert sorted(info) == [*keys, "schema_version", "seconds", "seed", "stage", "status"]
    assert (info["stage"], info["status"], info["error"], info["parents"]) == ("sft", "done", None, [])
    assert sorted(info["results"]) == [
        *("best_eval_loss", "best_step", "counts", "data_hash", "dropped_overlong", "eval_loss"),
        *(
            "halvings",
            "loss",
            "peak_memory_bytes",
            "planned",
            "rows",
            "steps",
            "stopped_early",
            "supervised_tokens",
            "tokens",
        ),
        *("truncated", "valid_rows"),
    ]
    metrics = run.metrics()
    assert [row["step"] for row in metrics] == [1, 2, 2, 3, 4, 4]
    training = ["step", "epoch", "loss", "lr", "grad_norm", "tokens", "supervised_tokens", "tokens_per_second"]
    training += ["forward_seconds", "backward_seconds", "optimizer_seconds", "memory_bytes", "peak_memory_bytes"]
    assert [list(row) for row in metrics] == [
        training if n not in (2, 5) else ["step", "eval_loss"] for n in range(len(metrics))
    ]
    assert read_json(run.path / "config.json") == made.resolved()
    told = read_json(run.artifact / "danlu.json")
    assert sorted(told) == ["base", "kind", "notice", "parents", "think"]
    assert (told["notice"], told["parents"]) == ("shown with everything", ["one"])


def test_four_bits_train_on_a_cpu(base: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    eight = {"lr": 1e-2, "name": "adamw_8bit"}
    four = {"id": str(base), "dtype": "fp32", "quantization": "nf4"}
    made = recipe(base, data, model=four, sft={"steps": 5, "gradient_checkpointing": True, "optimizer": eight})
    run, tensors = trained(made, tmp_path / "run")
    assert losses(run)[-1] < losses(run)[0] - 0.1
    assert all(torch.isfinite(value).all() for value in tensors.values())
    assert read_json(run.artifact / "danlu.json")["base"]["quantization"] == "nf4"
    further, _ = trained(made, tmp_path / "further", str(run.path))  # an adapter on top: a 4-bit base cannot be merged
    assert losses(further)[0] < losses(run)[0] - 0.1
