"""Loading: bases, adapters and adapters on adapters; what is delivered equals what was trained; errors with hints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from danlu.errors import DanluError
from danlu.models.load import Loaded, load, reference, save_artifact, trainable, weight_dtype
from danlu.models.locate import base_dir, base_of
from danlu.models.tokenizer import end_token_ids, load_tokenizer, think_format, token_ids
from danlu.recipe import Lora, Model
from danlu.run import read_json
from tiny_models import adapter, build, describe

IDS = torch.tensor([[5, 99, 300, 7, 41, 2, 480, 77]])
PLAIN = Lora(r=4, alpha=6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build(folder, "qwen3", tied=False)
    return folder


def spec(folder: Path, **fields: Any) -> Model:
    return Model(id=str(folder), dtype="fp32", **fields)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(IDS).logits


def moved(loaded: Loaded, seed: int = 0) -> Loaded:
    """The model as after training: everything trainable is somewhere else."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in trainable(loaded.model).values():
            value.add_(torch.randn_like(value) * 0.1)
    return loaded


def delivered(loaded: Loaded, folder: Path) -> Path:
    folder.mkdir()
    save_artifact(loaded, folder, notice="demo only", parents=["earlier"])
    return folder


def by_peft(artifact: Path, base: Path) -> torch.Tensor:
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), artifact))


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# ---- what is delivered is what was trained

KINDS = {
    "lora": Lora(r=4, alpha=6),
    "rslora": Lora(r=9, alpha=6, rslora=True),
    "few targets": Lora(r=2, targets=["v_proj"]),
    "dora": Lora(r=4, alpha=6, dora=True),
    "head and embedding": Lora(r=4, modules_to_save=["embed_tokens", "lm_head"]),
    "head": Lora(r=4, modules_to_save=["lm_head"]),
    "embedding and a norm": Lora(r=4, modules_to_save=["norm", "embed_tokens"]),
}


@pytest.mark.parametrize("lora", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_delivered_adapter_is_what_was_trained(base: Path, tmp_path: Path, lora: Lora, tied: bool) -> None:
    if tied:
        base = tmp_path / "tied"
        build(base, "qwen2", tied=True)
    loaded = moved(load(spec(base), lora=lora, train=True))
    trained = logits(loaded.model)
    assert (trained - logits(load(spec(base)).model)).abs().max() > 0.05
    artifact = delivered(loaded, tmp_path / "artifact")
    close(by_peft(artifact, base), trained)
    close(logits(load(spec(base), str(artifact)).model), trained)
    told = read_json(artifact / "danlu.json")
    assert (told["kind"], told["notice"], told["parents"]) == ("adapter", "demo only", ["earlier"])
    assert told["base"]["id"] == str(base.resolve())
    assert base_of(artifact) == base


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Lora(r=4, alpha=6), Lora(r=3, alpha=8)),
        (Lora(r=4, alpha=6, targets=["q_proj", "v_proj"]), Lora(r=2, alpha=2, targets=["v_proj", "down_proj"])),
        (Lora(r=4, alpha=6, rslora=True), Lora(r=4, alpha=16, rslora=True)),
        (Lora(r=4, alpha=6), Lora(r=2, modules_to_save=["lm_head"])),
        (Lora(r=4, alpha=6), Lora(r=2, modules_to_save=["embed_tokens"])),
    ],
    ids=["lora", "other targets", "rslora", "with a trained head", "with a tied embedding"],
)
def test_training_on_an_adapter_delivers_their_sum(
    base: Path, tied: Path, tmp_path: Path, first: Lora, second: Lora
) -> None:
    base = tied if "embed_tokens" in second.modules_to_save else base
    one = delivered(moved(load(spec(base), lora=first, train=True)), tmp_path / "one")
    started = logits(load(spec(base), str(one)).model)
    loaded = load(spec(base), str(one), lora=second, train=True)
    close(logits(loaded.model), started)  # B starts at zero
    assert all(".default." in name for name in trainable(loaded.model))
    moved(loaded, seed=7)
    trained = logits(loaded.model)
    assert (trained - started).abs().max() > 0.02
    with reference(loaded.model):
        close(logits(loaded.model), started)
    close(logits(loaded.model), trained)
    assert all(".default." in name for name in trainable(loaded.model))
    two = delivered(loaded, tmp_path / "two")
    assert read_json(two / "adapter_config.json")["r"] == first.r + second.r
    close(by_peft(two, base), trained)
    close(logits(load(spec(base), str(two)).model), trained)
    if not second.modules_to_save:  # and once more on top
        three = delivered(moved(load(spec(base), str(two), lora=PLAIN, train=True), 9), tmp_path / "three")
        assert read_json(three / "adapter_config.json")["r"] == first.r + second.r + PLAIN.r
        by_peft(three, base)


# ---- modules that are trained in full


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    build(folder, "qwen2", tied=True)
    return folder


@pytest.mark.parametrize("names", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"], ["norm", "lm_head"]])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_tied_modules_are_trained_as_one_and_stay_tied(
    tied: Path, tmp_path: Path, names: list[str], dtype: str
) -> None:
    from danlu.export.merge import merge
    from danlu.export.merge_check import check_merge

    loaded = load(Model(id=str(tied), dtype=dtype), lora=Lora(r=2, modules_to_save=names), train=True)
    whole = {name: one for name, one in trainable(loaded.model).items() if "lora_" not in name}
    assert [one for one in whole if "norm" not in one] == [
        "base_model.model.model.embed_tokens.modules_to_save.default.weight"
    ]
    assert {one.dtype for one in trainable(loaded.model).values()} == {torch.float32}
    plain = loaded.model.get_base_model()
    copies = [part.modules_to_save["default"] for part in (plain.model.embed_tokens, plain.lm_head)]
    assert copies[0].weight is copies[1].weight
    assert (copies[1].in_features, copies[1].out_features) == (64, 640)
    artifact = delivered(moved(loaded), tmp_path / "artifact")
    if dtype == "fp32":
        close(by_peft(artifact, tied), logits(loaded.model))
    config = read_json(artifact / "adapter_config.json")
    assert config["ensure_weight_tying"]
    assert {"embed_tokens", "lm_head"} <= set(config["modules_to_save"])
    report = merge(tied, artifact, tmp_path / "merged")
    assert not report.untied
    assert check_merge(tied, artifact, tmp_path / "merged")["ok"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    if dtype == "fp32":
        close(logits(merged), logits(loaded.model))


def test_a_tied_adapter_loads_in_a_peft_that_knows_nothing_of_tying(tied: Path, tmp_path: Path) -> None:
    loaded = moved(load(spec(tied), lora=Lora(r=2, modules_to_save=["lm_head"]), train=True))
    artifact = delivered(loaded, tmp_path / "artifact")
    config = read_json(artifact / "adapter_config.json")
    del config["ensure_weight_tying"]
    (artifact / "adapter_config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        close(by_peft(artifact, tied), logits(loaded.model))


def test_the_gradient_of_a_tied_copy_is_that_of_the_tied_matrix(tied: Path) -> None:
    """Against transformers in fp64, through the fast forward and the head in chunks."""
    from danlu.models.batch import packed
    from danlu.models.decoder import fast_forward
    from danlu.models.head import TokenLogProbs

    model = load(spec(tied), lora=Lora(r=2, modules_to_save=["embed_tokens"]), train=True).model.train()
    row = IDS[0].tolist()
    (-TokenLogProbs(model, fast_forward(model))(packed([(row, row)]))[0].sum()).backward()
    (found,) = [one.grad for name, one in trainable(model).items() if "lora_" not in name]
    plain = AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float64)
    scores = plain(IDS).logits[:, :-1].log_softmax(-1)
    (-scores.gather(-1, IDS[:, 1:, None]).sum()).backward()
    wanted = plain.model.embed_tokens.weight.grad
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_copies_in_fp32_work_in_a_bf16_model(tied: Path, fast: bool, autocast: bool) -> None:
    from danlu.generate.weights import snapshot
    from danlu.models.batch import packed
    from danlu.models.decoder import fast_forward
    from danlu.models.head import TokenLogProbs

    def made(dtype: str, names: list[str]) -> Any:
        return load(Model(id=str(tied), dtype=dtype), lora=Lora(r=2, modules_to_save=names), train=True).model.train()

    model, wide = made("bf16", ["embed_tokens", "norm"]), made("fp32", ["embed_tokens", "norm"])
    row = IDS[0].tolist()
    found = []
    for one, cast in ((model, autocast), (wide, False)):
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            loss = -TokenLogProbs(one, fast_forward(one) if fast else None)(packed([(row, row)]))[0].mean()
        loss.backward()
        found.append((loss.item(), [p.grad for name, p in trainable(one).items() if "lora_" not in name]))
    (loss, grads), (wanted, precise) = found
    assert loss == pytest.approx(wanted, rel=2e-2)
    for a, b in zip(grads, precise, strict=True):
        assert a.dtype == torch.float32
        assert torch.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.99
    assert snapshot(model, copies=False).dtype == torch.bfloat16
    with torch.no_grad():  # transformers' own whole forward
        assert (logits(model).float() - logits(wide)).abs().max() < 0.2


def test_names_that_match_nothing_are_told(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = Lora(r=2, targets=["q_proj", "gate_projj", "proj"], modules_to_save=["lm_hed", "norm"])
    load(spec(base), lora=lora, train=True)
    told = " ".join(capsys.readouterr().err.split())
    assert "lora.targets: gate_projj matches no module and is left out; did you mean gate_proj?" in told
    assert "lora.targets: proj matches no module" in told
    assert "lora.modules_to_save: lm_hed matches no module and is left out; did you mean lm_head?" in told
    assert told.count("warning:") == 3
    load(spec(base), lora=Lora(r=2, modules_to_save=["lm_head"]), train=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": r"model\.layers\.\d+\.(self_attn|mlp)\.(q_proj|down_proj)"},
        {"rank_pattern": {"q_proj": 2, "down_proj": 7}, "alpha_pattern": {"q_proj": 5}},
        {"layers_to_transform": [1]},
    ],
    ids=lambda value: next(iter(value)),
)
def test_training_on_somebody_elses_adapter(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    foreign = adapter(base, tmp_path / "foreign", **settings)
    loaded = moved(load(spec(base), str(foreign), lora=PLAIN, train=True))
    two = delivered(loaded, tmp_path / "two")
    close(by_peft(two, base), logits(loaded.model))
    assert base_of(two) == base


def test_an_adapter_without_training_is_delivered_as_it_is(base: Path, tmp_path: Path) -> None:
    one = delivered(moved(load(spec(base), lora=PLAIN, train=True)), tmp_path / "one")
    again = delivered(load(spec(base), str(one)), tmp_path / "again")
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in one.iterdir())
    close(by_peft(again, base), by_peft(one, base))


def test_a_fully_trained_model_is_a_model_folder(base: Path, tmp_path: Path) -> None:
    loaded = moved(load(spec(base, think="reasoning_answer"), train=True))
    trained = logits(loaded.model)
    artifact = delivered(loaded, tmp_path / "artifact")
    assert read_json(artifact / "danlu.json")["kind"] == "model"
    again = load(spec(base), str(artifact))
    close(logits(again.model), trained)
    assert again.think == loaded.think  # as trained, not as the template would have it
    assert again.think.style == "reasoning_answer"
    assert again.described["base"]["id"] == str(artifact.resolve())


def test_a_random_base_travels_with_its_adapter(base: Path, tmp_path: Path) -> None:
    made = Model(id="nothing", config=str(base / "config.json"), tokenizer=str(base), dtype="fp32")
    loaded = load(made, lora=Lora(r=4, modules_to_save=["lm_head"]), train=True, seed=5)
    assert loaded.random_base
    moved(loaded)
    artifact = delivered(loaded, tmp_path / "artifact")
    assert base_of(artifact) == (artifact / "base").resolve()
    close(logits(load(made, str(artifact)).model), logits(loaded.model))
    close(by_peft(artifact, artifact / "base"), logits(loaded.model))
    untouched = logits(load(made, seed=5).model)
    close(logits(load(spec(artifact / "base")).model), untouched)
    assert (logits(load(made, seed=6).model) - untouched).abs().max() > 0.05


def test_a_random_base_stays_reachable_from_the_next_stage(base: Path, tmp_path: Path) -> None:
    build(tmp_path / "tied", "qwen2", tied=True)
    made = Model(id="nothing", config=str(tmp_path / "tied" / "config.json"), tokenizer=str(base), dtype="fp32")
    one = delivered(moved(load(made, lora=PLAIN, train=True)), tmp_path / "one")
    loaded = moved(load(made, str(one), lora=PLAIN, train=True))
    assert not loaded.random_base
    two = delivered(loaded, tmp_path / "two")
    assert base_of(two) == (one / "base").resolve()
    close(logits(load(made, str(two)).model), logits(loaded.model))


def test_a_run_is_opened_through_its_artifact(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(DanluError, match="has no artifact") as caught:
        load(spec(base), str(run))
    assert "--resume" in caught.value.hint
    loaded = moved(load(spec(base), lora=PLAIN, train=True))
    delivered(loaded, run / "artifact")
    close(logits(load(Model(id="elsewhere", dtype="fp32"), str(run)).model), logits(loaded.model))


def test_the_seed_fixes_the_new_adapter(base: Path) -> None:
    def drawn(seed: int) -> list[torch.Tensor]:
        return [p.detach() for p in trainable(load(spec(base), lora=PLAIN, train=True, seed=seed).model).values()]

    one, same, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_is_trainable(base: Path) -> None:
    assert trainable(load(spec(base)).model) == {}
    assert len(trainable(load(spec(base), train=True).model)) == len(list(load(spec(base)).model.parameters()))
    names = trainable(load(spec(base), lora=Lora(targets=["q_proj"]), train=True).model)
    assert len(names) == 2 * 2
    assert all("lora_" in name for name in names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
@pytest.mark.parametrize(("native", "wanted"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_has_no_fp16(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], native: bool, wanted: torch.dtype
) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: native, raising=False)
    assert weight_dtype("auto") == wanted
    assert capsys.readouterr().err == ""
    assert weight_dtype("fp16") == wanted
    assert "warning: fp16" in capsys.readouterr().err
    assert (weight_dtype("fp32"), weight_dtype("bf16")) == (torch.float32, torch.bfloat16)


# ---- what cannot work says so


def test_errors_say_what_and_what_to_do(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    build(other, "qwen2")
    (tmp_path / "empty").mkdir()
    small = tmp_path / "small"
    build(small, "qwen3")
    settings = json.loads((small / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(small)
    model.resize_token_embeddings(300)
    model.save_pretrained(small)
    assert settings["vocab_size"] > 300
    damaged = tmp_path / "damaged"
    build(damaged, "qwen3")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:1000])
    foreign = adapter(base, tmp_path / "foreign", modules_to_save=["lm_head"])
    describe(base)
    nameless = adapter(base, tmp_path / "nameless")
    config = json.loads((nameless / "adapter_config.json").read_text())
    (nameless / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    unfit = adapter(base, tmp_path / "unfit")
    config = json.loads((unfit / "adapter_config.json").read_text())
    (unfit / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(other)}))
    dora = adapter(base, tmp_path / "dora", use_dora=True)
    made = Model(config=str(base / "config.json"), dtype="fp32")
    cases = [
        (lambda: load(spec(tmp_path / "empty")), "no tokenizer in", "tokenizer.json"),
        (lambda: load(spec(damaged)), "cannot load the model", "safetensors"),
        (lambda: load(spec(small)), "the model only 300", "do not belong together"),
        (lambda: load(spec(base), str(nameless)), "does not name its base", "base_model_name_or_path"),
        (lambda: load(spec(base), str(unfit)), "does not fit its base", "another one"),
        (lambda: load(spec(base), str(foreign), lora=PLAIN, train=True), "modules_to_save", "merge"),
        (lambda: load(spec(base), str(dora), lora=PLAIN, train=True), "use_dora", "merge"),
        (lambda: load(spec(base), lora=Lora(targets=["nothing"]), train=True), "LoRA does not fit", "lora.targets"),
        (lambda: load(made), "needs model.tokenizer", "model.tokenizer"),
        (lambda: load(made.model_copy(update={"config": "no.json", "tokenizer": str(base)})), "no.json", "config.json"),
        (lambda: load(spec(base, quantization="nf4"), train=True), "method: full", "method: lora"),
        (lambda: base_dir({"id": "x", "config": "some.json"}), "random weights", "train it again"),
        (lambda: base_dir({"id": "no/such-model"}), "cannot get the base model no/such-model", "HF_ENDPOINT"),
        (lambda: token_ids(load_tokenizer(base), ["<think>", "<nope>"]), "'<nope>' is not a token", "tokenizer"),
    ]
    for act, what, hint in cases:
        with pytest.raises(DanluError) as caught:
            act()
        assert what in caught.value.message, caught.value.message
        assert "\n" not in caught.value.message
        assert hint in caught.value.hint, caught.value.hint


REFUSE = """
import resource, sys
from danlu.cli import main
from danlu.display import set_mode
import torch, transformers, peft, bitsandbytes
from transformers.models.qwen3 import modeling_qwen3
import torch._dynamo
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
torch.set_num_threads(1)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_memory_that_is_refused_while_loading_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    """A base of 600 MB in a process that may still take 300."""
    import subprocess
    import sys

    from transformers import Qwen3Config

    from tiny_models import tokenizer

    config = Qwen3Config(vocab_size=70000, hidden_size=2048, intermediate_size=64, num_hidden_layers=1, head_dim=32)
    config.num_attention_heads = config.num_key_value_heads = 2
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "large")
    tokenizer("chatml").save_pretrained(tmp_path / "large")
    (tmp_path / "rows.jsonl").write_text('{"question": "a?", "answer": "b"}\n' * 4)
    settings = {"id": str(tmp_path / "large"), "dtype": "fp32"}
    value = {"name": "r", "stages": ["sft"], "model": settings, "data": {"train": str(tmp_path / "rows.jsonl")}}
    (tmp_path / "r.json").write_text(json.dumps(value))
    for more, hint in ((["sft.micro_batch=1"], "nf4"), (["sft.micro_batch=1", "sft.method=full"], "method: lora")):
        sets = [part for one in [*more, "sft.gradient_checkpointing=false"] for part in ("--set", one)]
        done = subprocess.run(
            [sys.executable, "-c", REFUSE, "sft", str(tmp_path / "r.json"), *sets, "--name", hint.replace(": ", "-")],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 2, done.stderr
        told = " ".join(done.stderr.split())
        assert "was loaded (0.6 GB on disk)" in told, done.stderr
        assert "memory ran out while" in told
        assert hint in told
        assert "danlu plan" in told
        assert "Traceback" not in told


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommand"), True),
        (
            RuntimeError(
                "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size"
            ),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("size mismatch"), False),
        (OSError(2, "No such file"), False),
    ],
)
def test_refused_memory_is_told_from_other_errors(error: Exception, refused: bool) -> None:
    from danlu.models.memory import ran_out, told_if_refused

    wrapped = DanluError("cannot load the model")
    wrapped.__cause__ = error
    assert ran_out(error) is refused
    with pytest.raises(DanluError) as caught, told_if_refused(Model(id="x"), None, False):
        raise wrapped
    assert caught.value.message == ("memory ran out while x was loaded" if refused else "cannot load the model")


def test_reference_needs_an_adapter(base: Path) -> None:
    with pytest.raises(DanluError, match="needs a LoRA adapter"), reference(load(spec(base), train=True).model):
        pass


# ---- tokenizer, end tokens, think-format


def test_end_tokens_come_from_every_place_in_order(tmp_path: Path) -> None:
    build(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    names = tokenizer.convert_ids_to_tokens(end_token_ids(tmp_path, tokenizer))
    assert names == ["<|im_end|>", "<|endoftext|>"]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert end_token_ids(tmp_path, tokenizer) == [3, tokenizer.eos_token_id]
    (tmp_path / "generation_config.json").unlink()
    assert end_token_ids(tmp_path, tokenizer) == [tokenizer.eos_token_id]
    assert token_ids(tokenizer, ["<|im_end|>"]) == [tokenizer.eos_token_id]


@pytest.mark.parametrize(("kind", "style"), [("chatml", "think"), ("r1", "think"), ("llama3", "none")])
def test_a_loaded_model_knows_its_format(tmp_path: Path, kind: str, style: str) -> None:
    build(tmp_path, "llama" if kind == "llama3" else "qwen2", kind)
    loaded = load(spec(tmp_path))
    assert loaded.think == think_format(tmp_path, loaded.tokenizer)
    assert loaded.think.style == style
    assert loaded.end_ids[0] == loaded.tokenizer.eos_token_id
    assert loaded.tokenizer.pad_token_id is not None
    describe(tmp_path)
    recorded = read_json(tmp_path / "danlu.json")
    recorded["think"]["bridge"] = "\n</think>\n"
    (tmp_path / "danlu.json").write_text(json.dumps(recorded))
    assert load(spec(tmp_path)).think.bridge == "\n</think>\n"


# ---- 4 bit


def test_nf4_on_the_cpu_trains_and_its_adapter_loads(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from danlu.generate import Sampling
    from danlu.generate.decode import decode
    from danlu.generate.weights import snapshot
    from danlu.models.batch import packed
    from danlu.models.decoder import fast_forward
    from danlu.models.head import TokenLogProbs

    four = spec(base, quantization="nf4")
    loaded = load(four, lora=PLAIN, train=True, gradient_checkpointing=True)
    assert any(type(p).__name__ == "Params4bit" for p in loaded.model.parameters())
    batch = packed([(row, row) for row in IDS.tolist()])
    scorer = TokenLogProbs(loaded.model, fast_forward(loaded.model))
    optimizer = torch.optim.AdamW(trainable(loaded.model).values(), lr=1e-2)
    loaded.model.train()
    losses = []
    for _ in range(4):
        loss = -scorer(batch)[0].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    trained = logits(loaded.model)
    artifact = delivered(loaded, tmp_path / "artifact")
    close(logits(load(four, str(artifact)).model), trained, 1e-4)
    exact = logits(load(spec(base), str(artifact)).model)  # the same adapter over the unquantised base: near
    assert 0 < (exact - trained).abs().mean() < 0.5 * exact.std()
    ((_, (one,)),) = decode(snapshot(loaded.model), [IDS[0].tolist()], Sampling(5), end_ids=[])
    out = loaded.model.generate(input_ids=IDS, max_new_tokens=5, do_sample=False, eos_token_id=-1)
    assert one.tokens == out[0, IDS.shape[1] :].tolist()
