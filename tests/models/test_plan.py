"""The planner against what is really held: tensors of loaded models, saved tensors of autograd, the allocator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny_models
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from danlu.errors import DanluError
from danlu.models import plan as planned
from danlu.models import plan_memory, plan_place, plan_speed
from danlu.models.adapter import with_adapter
from danlu.models.batch import packed
from danlu.models.decoder import fast_forward
from danlu.models.head import TokenLogProbs
from danlu.models.load import load as load_model
from danlu.models.load import trainable
from danlu.models.plan import Case, chosen, dtypes, largest, layout_of, memory_of, plan, resolve, work_of
from danlu.models.plan_memory import Work
from danlu.models.plan_model import config_of, facts, layout, packed_bytes
from danlu.models.plan_place import Place, find_gpu, parse_bytes, place
from danlu.models.plan_rows import Rows, rows_of
from danlu.recipe import Lora, Model, Recipe, load

GB = 10**9
PUBLISHED = {  # parameters as the makers' files have them, tied heads counted once
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("model")
    tiny_models.build(folder, "qwen3")
    return folder


def recipe(**values) -> Recipe:
    base = {"name": "r", "stages": ["sft"], "model": {"id": "Qwen/Qwen3-0.6B"}, "data": {"train": ["nowhere/rows"]}}
    return Recipe.model_validate(base | values)


def here(kind: str, budget: int | None, native: bool = True) -> Place:
    return Place(kind, "test", budget, (1e12, 1e12), (1e11, 1e11), native)  # type: ignore[arg-type]


def case(made: Recipe, kind: str = "cuda", budget: int | None = None, lengths=None) -> Case:
    rows = Rows() if lengths is None else Rows(np.asarray(lengths), len(lengths))
    return Case(made, "sft", here(kind, budget), rows, *config_of(made.model))


# ---- parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_facts_give_the_published_sizes(name):
    config, told = config_of(Model(id=name))
    found = layout(config, dtype=torch.bfloat16, lora=None)
    assert sum(found.counts.values()) == PUBLISHED[name]
    assert name in told
    assert found.fast


def test_every_shipped_recipe_has_a_config_offline():
    assert {name for name, _ in facts().items()} >= set(PUBLISHED)
    for name in ("qwen3-1.7b-medical-qlora-v1", "r1-distill-qwen-7b-medical-lora", "qwen2.5-3b-medical-grpo", "demo"):
        assert config_of(load(name).model)[0].hidden_size > 0


@pytest.mark.parametrize(
    ("lora", "dtype"),
    [
        (Lora(r=4), "fp32"),
        (Lora(r=4, dropout=0.1, targets=["q_proj", "down_proj"]), "bf16"),
        (Lora(r=4, dora=True), "fp32"),
        (Lora(r=4, modules_to_save=["lm_head"]), "bf16"),
        (Lora(r=4, modules_to_save=["embed_tokens", "lm_head", "norm"]), "fp32"),
        (None, "fp32"),
    ],
)
def test_the_layout_is_the_loaded_model(stored, lora, dtype):
    loaded = load_model(Model(id=str(stored), dtype=dtype), lora=lora, train=True)
    config, _ = config_of(Model(id=str(stored)))
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}["fp32" if lora is None else dtype]
    found = layout(config, dtype=wanted, lora=lora)
    real = {name: (tuple(p.shape), p.numel() * p.element_size(), p.requires_grad) for name, p in _named(loaded.model)}
    assert {one.name: (one.shape, one.bytes, one.trained) for one in found.parameters} == real


def test_the_layout_of_a_four_bit_model(stored):
    pytest.importorskip("bitsandbytes")
    lora = Lora(r=4)
    loaded = load_model(Model(id=str(stored), dtype="bf16", quantization="nf4"), lora=lora, train=True)
    found = layout(config_of(Model(id=str(stored)))[0], dtype=torch.bfloat16, lora=lora, quantized=True)
    planned = {one.name: one for one in found.parameters}
    four_bit = 0
    for name, param in _named(loaded.model):
        if type(param).__name__ == "Params4bit":
            state, nested = param.quant_state, param.quant_state.state2
            held = param.numel() + state.absmax.numel() + nested.absmax.numel() * 4
            assert planned[name].bytes == held, name
            four_bit += 1
        else:
            assert planned[name].bytes == param.numel() * param.element_size(), name
    assert four_bit == 14
    assert packed_bytes(2**20) == 2**19 + 2**14 + 4 * 2**6


def _named(model):
    return model.named_parameters()


# ---- activations


SHAPE = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE |= {"intermediate_size": 512, "vocab_size": 4000, "tie_word_embeddings": True}


def built(kind: str, lora: Lora | None, dtype=torch.float32, checkpointing=False):
    more = {"head_dim": 64} if kind == "qwen3" else {}
    config = AutoConfig.for_model(kind, **SHAPE, **more)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.requires_grad_(lora is None)
    if lora is not None:
        model = with_adapter(model, lora)
    plain = model.get_base_model() if lora else model
    plain.model.layers[0].gradient_checkpointing = checkpointing
    return model.train(), config


def batch(rows: int, length: int):
    ids = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (rows, length))
    return packed([(row, row) for row in ids])


def work(lora: Lora | None, rows: int, length: int, dtype=torch.float32, **more) -> Work:
    given = {"packs": 1, "compute": dtype, "autocast": False, "device": "cpu", "checkpointing": False}
    given |= {"kernels": "eager", "optimizer": "adamw", "tokens": rows * length, "rows": rows}
    given |= {"supervised": rows * (length - 1), "dropout": bool(lora and lora.dropout), "rank": lora.r if lora else 0}
    return Work(**{**given, "dora": bool(lora and lora.dora), **more})


@pytest.mark.parametrize(
    ("kind", "lora", "rows", "dtype"),
    [
        ("qwen2", Lora(r=8), 1, torch.float32),
        ("qwen3", Lora(r=8, dropout=0.1), 4, torch.bfloat16),
        ("llama", Lora(r=8, targets=["q_proj", "v_proj"]), 2, torch.float32),
        ("llama", None, 2, torch.float32),
    ],
)
def test_what_autograd_saves_is_what_is_planned(kind, lora, rows, dtype):
    model, config = built(kind, lora, dtype)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}
    alive = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        alive.append(tensor)  # so that no address is used twice
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        TokenLogProbs(model, fast_forward(model))(batch(rows, 256))
    found = layout(config, dtype=dtype, lora=lora)
    own = work(lora, rows, 256, dtype)
    kept = plan_memory.kept_by_layer(found, own) * own.tokens * SHAPE["num_hidden_layers"]
    rest = own.supervised * SHAPE["hidden_size"] * dtype.itemsize * (2 if lora is None else 1)
    if lora is None:  # what goes into the first layer has a gradient too
        rest += own.tokens * SHAPE["hidden_size"] * dtype.itemsize
    # the first layer's input has no gradient, so what dropout would need of it is not kept
    slack = 0.08 if lora and lora.dropout else 0.02
    assert kept + rest == pytest.approx(sum(saved.values()), rel=slack)


@pytest.mark.parametrize(
    ("lora", "more"),
    [
        (Lora(r=8), {}),
        (Lora(r=8), {"checkpointing": True}),
        (Lora(r=8, dora=True), {}),
        (None, {"packs": 2}),
        (None, {"packs": 2, "checkpointing": True}),
    ],
)
def test_the_allocator_peaks_where_it_is_planned(lora, more):
    model, config = built("qwen2", lora, checkpointing=more.get("checkpointing", False))
    scored, own = TokenLogProbs(model, fast_forward(model)), work(lora, 4, 128, **more)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        for _ in range(own.packs):
            (-scored(batch(4, 128))[0].mean()).backward()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    planned = plan_memory.memory(layout(config, dtype=torch.float32, lora=lora), own)
    lasting = ("weights", "adapter", "optimizer", "process", "overhead")
    assert planned["total"] - sum(planned[part] for part in lasting) == pytest.approx(most, rel=0.10)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_optimizer_states(name):
    from danlu.recipe import Optimizer
    from danlu.train.optimizer import make_optimizer

    if name != "adamw":
        pytest.importorskip("bitsandbytes")
    model, config = built("qwen2", Lora(r=8))
    params = list(trainable(model).values())
    optimizer = make_optimizer(params, Optimizer(name=name))
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    shared: dict[int, int] = {}  # the table of 8-bit values is there once for all
    for state in optimizer.state.values():
        for key, value in state.items():
            if torch.is_tensor(value) and value.numel() > 1 and not key.startswith("qmap"):
                shared[value.data_ptr()] = value.numel() * value.element_size()
    found = plan_memory.optimizer_bytes(layout(config, dtype=torch.float32, lora=Lora(r=8)), name)
    assert found == pytest.approx(sum(shared.values()), rel=0.01)


# ---- what fits


def test_the_1_7b_qlora_fits_16_gb_and_the_7b_wants_four_bits():
    small = plan(load("qwen3-1.7b-medical-qlora-v1"), device="cuda", budget=16 * GB)
    assert small["fits"]
    assert 4 * GB < small["memory"]["total"] < 10 * GB
    assert small["cheapest"] is None
    large = plan(load("r1-distill-qwen-7b-medical-lora"), device="cuda", budget=16 * GB)
    assert not large["fits"]
    assert large["memory"]["weights"] == 2 * PUBLISHED["deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"]
    assert "nf4" in large["cheapest"]
    assert large["cheapest"].endswith("of 16.0 GB")
    changed = load("r1-distill-qwen-7b-medical-lora", large["cheapest_set"])
    assert plan(changed, device="cuda", budget=16 * GB)["fits"]
    assert plan(load("r1-distill-qwen-7b-medical-lora"), device="cuda", budget=24 * GB)["fits"]


def test_the_cheapest_change_is_the_one_that_costs_least():
    made = recipe(sft={"batch_size": 16, "gradient_checkpointing": False}, data={"train": ["x/y"], "max_length": 2048})
    whole = memory_of(case(made), 16, False)["total"]
    half = memory_of(case(made), 8, False)["total"]
    found = plan(made, device="cuda", budget=(whole + half) // 2)
    assert found["cheapest_set"] == ["sft.micro_batch=8"]
    one = memory_of(case(made), 1, False)["total"]
    found = plan(made, device="cuda", budget=one - 10**8)
    assert "sft.gradient_checkpointing=true" in found["cheapest_set"]
    none = plan(made, device="cuda", budget=10**8)
    assert none["cheapest"].startswith("nothing")
    assert none["cheapest_set"] == []


def test_more_tokens_take_more_and_checkpointing_less():
    made = case(recipe(sft={"batch_size": 8}))
    totals = [memory_of(made, size, False)["total"] for size in (1, 2, 4, 8)]
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]
    assert memory_of(made, 8, True)["total"] < totals[-1]
    roomy = case(recipe(sft={"batch_size": 8}), budget=totals[2])
    assert largest(roomy, False) == 4


def test_auto_takes_the_largest_micro_batch_then_checkpointing():
    made = recipe(sft={"batch_size": 8, "micro_batch": "auto"})
    free = [memory_of(case(made), size, False)["total"] for size in range(1, 9)]
    assert chosen(case(made, budget=free[7])) == (8, False)
    assert chosen(case(made, budget=free[2])) == (3, False)
    micro, recompute = chosen(case(made, budget=free[0] - 1))
    assert recompute
    assert micro > 1
    on_cpu = recipe(sft={"batch_size": 8, "micro_batch": "auto"}, data={"train": ["x/y"], "max_length": 1024})
    assert chosen(case(on_cpu, "cpu", 10**12)) == (2, False)  # 2,048 tokens are enough there


def test_resolve_leaves_what_is_set_and_fits_the_tiny_base():
    fixed = recipe(sft={"batch_size": 6, "gradient_checkpointing": True})
    assert resolve(fixed, "sft") == (6, True)
    assert resolve(load("demo"), "sft") == (4, False)
    assert resolve(load("demo"), "grpo") == (32, False)


def test_lengths_decide_how_full_a_forward_is():
    made = recipe(sft={"batch_size": 4, "accumulation": 2}, data={"train": ["x/y"], "max_length": 2048})
    full, short = work_of(case(made), 4, False), work_of(case(made, lengths=[100] * 50), 4, False)
    assert (full.tokens, full.rows, full.packs) == (8192, 4, 2)
    assert (short.tokens, short.rows, short.packs) == (800, 8, 1)


def test_rows_are_read_where_they_are():
    found = rows_of(load("demo"), "sft")
    assert found.count == 128
    assert found.lengths is not None
    assert len(found.lengths) == 128
    assert 0.3 < found.supervised < 1
    far = rows_of(load("qwen3-1.7b-medical-qlora-v1"), "sft")
    assert far.count is None
    assert "not here" in far.told
    assert plan(load("qwen3-1.7b-medical-qlora-v1"), device="cuda", budget=16 * GB, rows=1600)["steps"] == 300


# ---- places, several GPUs


def test_amounts_and_names():
    assert [parse_bytes(text) for text in ("16GB", "16 gib", "800MB", "123")] == [16 * GB, 2**34, 800 * 10**6, 123]
    for text in ("much", "0GB", "-1GB", "16XB"):
        with pytest.raises(DanluError):
            parse_bytes(text)
    assert find_gpu("NVIDIA GeForce RTX 4090")[0] == find_gpu("4090")[0] == "RTX 4090"
    with pytest.raises(DanluError, match="RTX 4090"):
        find_gpu("9999")
    assert not place(gpu="T4").native


def test_shardings_divide_what_they_say():
    made = load("r1-distill-qwen-7b-medical-lora", ["sft.method=full", "model.quantization=none"])
    one = plan(made, gpu="H100", rows=1000)
    many = plan(made, gpu="H100", gpus=8, nodes=2, rows=1000)
    states = {name: one["memory"][name] for name in ("weights", "optimizer", "gradients")}
    shards = many["sharding"]
    assert list(shards) == list(plan_speed.SHARDINGS)
    assert shards["ddp"]["memory"]["total"] == one["memory"]["total"] + states["gradients"]
    assert shards["zero2"]["memory"]["optimizer"] * 16 == pytest.approx(states["optimizer"], rel=1e-6)
    assert shards["zero2"]["memory"]["weights"] == states["weights"]
    assert shards["fsdp2"]["memory"]["weights"] * 16 == pytest.approx(states["weights"], rel=1e-6)
    assert shards["hsdp"]["memory"]["weights"] * 8 == pytest.approx(states["weights"], rel=1e-6)
    assert shards["fsdp2"]["memory"]["gathered"] > 0
    assert not shards["ddp"]["fits"]
    assert shards["fsdp2"]["fits"]
    assert shards["ddp"]["busy"] == 4  # a step of 8 rows has 4 forwards of 2
    assert "hsdp" not in plan(made, gpu="H100", gpus=8, rows=1000)["sharding"]
    with pytest.raises(DanluError, match="fsdp2"):
        plan(made, gpu="H100", gpus=2, sharding="none")


@pytest.mark.parametrize("compiler", [True, False])
def test_decoding_copies_a_bf16_checkpoint_as_it_is_where_it_is_c(compiler, monkeypatch, tmp_path):
    monkeypatch.setattr(planned.native, "library", lambda: object() if compiler else None)

    def copied(kept: str, **more) -> float:
        """Bytes a parameter."""
        values = dict(facts().items())["Qwen/Qwen3-0.6B"]
        (tmp_path / "config.json").write_text(json.dumps({**values, "dtype": kept}))
        given = {"id": str(tmp_path), "dtype": "fp32", **more}
        made = Case(recipe(model=given), "grpo", here("cpu", None, False), Rows(), *config_of(Model(**given)))
        return memory_of(made, 1, False)["snapshot"] / PUBLISHED["Qwen/Qwen3-0.6B"]

    assert copied("bfloat16") == pytest.approx(2 if compiler else 4, rel=0.01)
    assert copied("float32") == pytest.approx(4, rel=0.01)
    assert copied("bfloat16", quantization="nf4") == pytest.approx(4, rel=0.01)


def test_a_cpu_is_measured_in_the_dtype_of_the_run(monkeypatch):
    measured = []
    monkeypatch.setattr(plan_place, "measured_flops", lambda dtype: measured.append(dtype) or 1e12)
    for wanted, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        made = recipe(model={"id": "Qwen/Qwen3-0.6B", "dtype": wanted}, sft={"precision": wanted, "steps": 1})
        found = plan(made, device="cpu", budget=16 * GB)
        assert measured.pop() == dtype
        assert "measured here just now" in found["assumed"][-1]
    monkeypatch.undo()
    assert plan_place.measured_flops(torch.float32, 0.01) > 1e8


def test_the_plan_knows_no_fp16_on_a_cpu():
    made = recipe(model={"id": "Qwen/Qwen3-0.6B", "dtype": "fp16"}, sft={"precision": "fp16"})
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        given = Case(made, "sft", here("cpu", None, native), Rows(), *config_of(made.model))
        assert dtypes(given) == (dtype, dtype, native)


@pytest.mark.parametrize("folder", ["docs", "docs/zh"])
def test_the_pages_tell_what_is_planned_today(folder):
    root = Path(__file__).parents[2] / folder
    page = (root / "plan.md").read_text("utf-8")
    for name, size in (("qwen3-1.7b-medical-qlora-v1", 16), ("qwen3-1.7b-medical-qlora-v2", 16)):
        found = plan(load(name), device="cuda", budget=size * GB)
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        assert row.split("|")[2:4] == [f" {size} GB ", f" {found['memory']['total'] / GB:.1f} GB "]
    page = (root / "scale.md").read_text("utf-8")
    made = load("r1-distill-qwen-7b-medical-lora", ["sft.method=full", "sft.accumulation=16"])
    for nodes in (1, 2):
        for name, found in plan(made, gpu="H100", gpus=8, nodes=nodes)["sharding"].items():
            assert f"| {name} | {found['memory']['total'] / GB:.1f} |" in page


def test_operations_are_counted_as_textbooks_do():
    lay = layout_of(case(recipe(sft={"method": "full"})))
    load_ = plan_speed.Load(lay, 1, 1, 1000.0, 0.0, 0.0, 1, False, 0, 0, 1, 0)
    assert plan_speed.operations(load_) == 6 * lay.matrices * 1000


def test_what_cannot_be_planned_says_so(tmp_path):
    with pytest.raises(DanluError, match="trains nothing"):
        plan(recipe(stages=["eval"]), device="cuda", budget=GB)
    with pytest.raises(DanluError, match="config"):
        config_of(Model(id="nobody/nothing"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DanluError, match="model_type"):
        config_of(Model(), given=str(tmp_path / "config.json"))
