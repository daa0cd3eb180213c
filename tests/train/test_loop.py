"""What SFT and GRPO share: log-probs against transformers, the schedule, the order of rows, one update."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import new_run, recipe, write_rows

from danlu.data.render import IGNORE
from danlu.errors import DanluError, Stopped
from danlu.models import head
from danlu.models.batch import packed
from danlu.models.decoder import fast_forward
from danlu.models.head import TokenLogProbs
from danlu.models.load import Loaded, load
from danlu.recipe import Lora, Optimizer
from danlu.train import checkpoint
from danlu.train.loop import Loop, learning_rate, make_optimizer, row_order
from tiny_models import build

N = IGNORE
ROWS = [([3, 50, 7, 9, 200, 31], [N, N, 7, 9, 200, 31]), ([8, 1, 400], [N, N, 400])]
ROWS += [([5, 6, 7, 8, 9, 10, 11, 12, 13], [N, 6, N, 80, N, 10, N, 12, N])]  # a label need not be the token


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build(folder, "qwen3")
    return folder


def fresh(base: Path, lora: Lora | None = None) -> Loaded:
    return load(recipe(base).model, lora=lora or Lora(r=4, alpha=8), train=True)


def exact(model: Any, temperature: float) -> torch.Tensor:
    found = []
    for tokens, labels in ROWS:
        scores = (model(torch.tensor([tokens])).logits[0].double() / temperature).log_softmax(-1)
        found += [scores[i - 1, labels[i]] for i in range(1, len(tokens)) if labels[i] != IGNORE]
    return torch.stack(found)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [1024, 3])
@pytest.mark.parametrize("fast", [True, False])
def test_log_probs_and_gradient_are_transformers(
    base: Path, monkeypatch: pytest.MonkeyPatch, temperature: float, chunk: int, fast: bool
) -> None:
    monkeypatch.setattr(head, "CHUNK", chunk)
    loaded = fresh(base, Lora(r=4, modules_to_save=["lm_head"]))
    with torch.no_grad():
        for name, value in loaded.model.named_parameters():
            if "lora_" in name:
                value.normal_(0, 0.1)
    params = [p for p in loaded.model.parameters() if p.requires_grad]
    weights = torch.linspace(-1, 1, sum(label != IGNORE for _, labels in ROWS for label in labels))
    wanted = exact(loaded.model, temperature)
    gradient = torch.autograd.grad((wanted * weights).sum(), params)
    scorer = TokenLogProbs(loaded.model, fast_forward(loaded.model) if fast else None)
    found, entropies = scorer(packed(ROWS), temperature, entropy=True)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    assert entropies.shape == found.shape
    for ours, theirs in zip(torch.autograd.grad((found * weights).sum(), params), gradient, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_head_that_does_more_than_a_product() -> None:
    from transformers import AutoModelForCausalLM, CohereConfig

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 512}
    model = AutoModelForCausalLM.from_config(CohereConfig(**shape, intermediate_size=32, logit_scale=0.3))
    found, _ = TokenLogProbs(model)(packed(ROWS))
    torch.testing.assert_close(found.double(), exact(model, 1.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fast", [True, False])
def test_what_rows_share_a_forward_changes_nothing(base: Path, fast: bool) -> None:
    model = fresh(base).model
    forward = fast_forward(model) if fast else None
    together, _ = TokenLogProbs(model, forward, 0)(packed(ROWS))
    other_pad, _ = TokenLogProbs(model, forward, 77)(packed(ROWS))
    alone = torch.cat([TokenLogProbs(model, forward)(packed([row]))[0] for row in ROWS])
    assert torch.equal(together, other_pad)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 5, 7])
def test_every_epoch_is_a_permutation_and_the_order_is_resumable(count: int) -> None:
    whole = row_order(count, 42, 0, 6 * count)
    for epoch in range(6):
        part = whole[epoch * count : (epoch + 1) * count]
        assert {e for e, _ in part} == {epoch}
        assert sorted(row for _, row in part) == list(range(count))
    for size in (1, 2, 3, 4):
        parts = [row_order(count, 42, at, min(at + size, 6 * count)) for at in range(0, 6 * count, size)]
        assert [place for part in parts for place in part] == whole
    if count > 3:
        assert len({tuple(row for e, row in whole if e == epoch) for epoch in range(6)}) > 1
        assert row_order(count, 43, 0, 6 * count) != whole


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * n / 8)) for n in range(8))]),
    ],
)
def test_the_schedule(schedule: Any, wanted: list[float]) -> None:
    settings = Optimizer(lr=2e-3, schedule=schedule, warmup=0.2)
    assert [learning_rate(settings, n, 10) for n in range(10)] == pytest.approx([2e-3 * share for share in wanted])


def test_a_schedule_of_one_step_and_of_warmup_alone() -> None:
    assert learning_rate(Optimizer(lr=1.0), 0, 1) == 1.0
    assert [learning_rate(Optimizer(lr=1.0, warmup=1.0), n, 3) for n in range(3)] == [0.25, 0.5, 0.75]


def test_optimizers() -> None:
    params = [torch.zeros(4096, requires_grad=True)]
    group = make_optimizer(params, Optimizer(betas=(0.9, 0.99), weight_decay=0.1, lr=3e-4)).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.9, 0.99), 0.1)
    pytest.importorskip("bitsandbytes")
    for name in ("adamw_8bit", "paged_adamw_8bit"):
        optimizer = make_optimizer(params, Optimizer(name=name, lr=1e-2))
        assert type(optimizer).__name__ == "AdamW8bit"
        params[0].grad = torch.ones(4096)
        optimizer.step()
        assert (params[0] < 0).all()


# ---- the loop itself


def small_loop(base: Path, path: Path, steps: int = 10, **settings: Any) -> Loop:
    made = recipe(base, write_rows(path.parent / "rows.jsonl"), sft=settings)
    run = new_run(path, made, resume=path.exists())
    return Loop(run, made.sft, fresh(base), steps, largest_is_best=False)


def loss_of(of: Loop, scale: float = 1.0) -> Any:
    batch = packed(ROWS)
    return lambda: -of.logprobs(batch)[0].mean() * scale


def values(of: Loop) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in of.params.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_resumed_loop_goes_on_exactly(base: Path, tmp_path: Path) -> None:
    whole = small_loop(base, tmp_path / "whole")
    losses = [whole.update([loss_of(whole)]) for _ in range(5)]
    first = small_loop(base, tmp_path / "run")
    assert [first.update([loss_of(first)]) for _ in range(3)] == losses[:3]
    first.log({"step": 3, "loss": 1.0})
    first.tokens = 77
    first.consider(2.0, keep=True)
    best = values(first)
    first.save()
    first.log({"step": 4, "loss": 1.0})
    second = small_loop(base, tmp_path / "run")
    second.resume()
    assert (second.step, second.tokens, second.best_value, second.best_step) == (3, 77, 2.0, 3)
    assert [row["step"] for row in second.run.metrics()] == [3]
    assert [second.update([loss_of(second)]) for _ in range(2)] == losses[3:]
    assert same(values(second), values(whole))
    second.consider(2.5, keep=True)
    second.use_best()
    assert same(values(second), best)


def test_a_loss_that_is_not_finite_touches_nothing(base: Path, tmp_path: Path) -> None:
    for number, bad in enumerate((float("nan"), float("inf"))):
        trained = small_loop(base, tmp_path / f"run{number}", save_every=1)
        trained.update([loss_of(trained)])
        trained.finish_step()
        before = values(trained)
        with pytest.raises(DanluError, match=r"step 2: loss (nan|inf)") as caught:
            trained.update([loss_of(trained), loss_of(trained, bad)])
        assert str(trained.run.checkpoints / "step_000001") in caught.value.hint
        assert same(values(trained), before)
        assert all(param.grad is None for param in trained.params.values())
        found = checkpoint.latest(trained.run.checkpoints)
        assert found is not None
        assert same(checkpoint.load(found)[0], before)


def test_the_norm_is_told_before_clipping(base: Path, tmp_path: Path) -> None:
    trained = small_loop(base, tmp_path / "run", optimizer={"lr": 1e-2, "clip": 1e-3})
    _, norm = trained.update([loss_of(trained)])
    assert norm > 1e-2


def test_the_best_is_the_lowest_or_the_highest(base: Path, tmp_path: Path) -> None:
    made = recipe(base, write_rows(tmp_path / "rows.jsonl"))
    for largest, seen, best in ((False, [3.0, 2.0, float("nan"), 2.5], 2.0), (True, [0.1, 0.4, 0.4, 0.2], 0.4)):
        run = new_run(tmp_path / f"run{largest}", made)
        kept = Loop(run, made.sft, fresh(base), 10, largest_is_best=largest)
        for value in seen:
            kept.step += 1
            kept.consider(value, keep=False)
        assert (kept.best_value, kept.best_step, kept.best) == (best, 2, None)


def test_a_signal_ends_the_run_after_the_step_and_a_second_one_at_once(base: Path, tmp_path: Path) -> None:
    def interrupted(trained: Loop, signals: list[int]) -> None:
        with trained.signals():
            for number in signals:
                signal.raise_signal(number)
            trained.update([loss_of(trained)])
            trained.finish_step()

    before = signal.getsignal(signal.SIGTERM)
    for name, number, code in (("terminated", signal.SIGTERM, 143), ("interrupted", signal.SIGINT, 130)):
        trained = small_loop(base, tmp_path / name)
        with pytest.raises(Stopped) as caught:
            interrupted(trained, [number])
        assert (caught.value.exit_code, caught.value.hint) == (code, "continue with --resume")
        assert [path.name for path in checkpoint.listed(trained.run.checkpoints)] == ["step_000001"]
        assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(KeyboardInterrupt):
        interrupted(small_loop(base, tmp_path / "twice"), [signal.SIGINT, signal.SIGINT])


def test_nothing_to_train_is_an_error(base: Path, tmp_path: Path) -> None:
    made = recipe(base, write_rows(tmp_path / "rows.jsonl"))
    with pytest.raises(DanluError, match="nothing to train"):
        Loop(new_run(tmp_path / "run", made), made.sft, load(made.model), 1, largest_is_best=False)
