"""What SFT and GRPO share: log-probs against transformers, one update, signals, memory that runs out, going on."""

from __future__ import annotations

import contextlib
import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import new_run, recipe, write_rows

from danlu import display
from danlu.data.render import IGNORE
from danlu.errors import DanluError, Stopped
from danlu.models import head
from danlu.models.batch import packed
from danlu.models.decoder import fast_forward
from danlu.models.head import TokenLogProbs
from danlu.models.load import Loaded, load
from danlu.recipe import Lora, Optimizer
from danlu.train import checkpoint, rng
from danlu.train.loop import Loop
from danlu.train.optimizer import make_optimizer
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
    return Loop(run, made.sft, fresh(base, made.sft.lora), steps, largest_is_best=False)


def loss_of(of: Loop, scale: float = 1.0) -> Any:
    batch = packed(ROWS)
    return lambda: -of.logprobs(batch)[0].mean() * scale


def values(of: Loop) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in of.params.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def one(loss: Any) -> Any:
    """What `update` wants, of micro-batches that are never halved."""
    return lambda _halvings: [loss]


def step_of(of: Loop, scale: float = 1.0) -> Any:
    """A step as `go` wants it."""

    def step() -> dict[str, float]:
        loss, norm = of.update(one(loss_of(of, scale)))
        of.tokens += 10
        of.log({"step": of.step, "loss": loss, "grad_norm": norm, "draw": random.random() + float(torch.rand(()))})
        return {"loss": loss}

    return step


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_a_resumed_loop_goes_on_exactly(base: Path, tmp_path: Path, optimizer: str) -> None:
    """r = 40: matrices of 4096 numbers and more, whose moments bitsandbytes keeps in 8 bits, and smaller ones in 32."""
    if optimizer != "adamw":
        pytest.importorskip("bitsandbytes")
    settings: dict[str, Any] = {"save_every": 3, "eval_every": 2, "optimizer": {"name": optimizer, "lr": 1e-2}}
    settings["lora"] = {"r": 40, "alpha": 40, "dropout": 0.2}
    numbers = [5.0, 2.0, 9.0, 3.0, 4.0]

    def run_of(name: str, steps: int, first: int = 0) -> Loop:
        made = small_loop(base, tmp_path / name, 10, **settings)
        made.resume()
        assert made.step == first
        left = steps - first

        def step() -> dict[str, float]:
            nonlocal left
            if left == 0:  # what a killed process would have logged, and never saved
                made.log({"step": made.step + 1, "loss": 1.0})
                raise KeyboardInterrupt
            left -= 1
            return step_of(made)()

        with contextlib.suppress(KeyboardInterrupt):
            made.go("x", step, lambda: {"value": numbers[made.step // 2 - 1]}, "value", keep=True)
        return made

    whole = run_of("whole", 10)
    run_of("run", 5)
    last = run_of("run", 10, first=3)
    kinds = {value.dtype for state in last.optimizer.state.values() for value in state.values() if _is_moment(value)}
    assert kinds == ({torch.float32} if optimizer == "adamw" else {torch.float32, torch.uint8})
    assert whole.run.metrics() == last.run.metrics()
    assert [row["step"] for row in last.run.metrics()] == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 10, 10]
    assert (last.best_value, last.best_step, last.stale, last.tokens) == (2.0, 4, 3, 100)
    assert same(values(last), values(whole))
    for made in (last, whole):
        made.use_best()
    assert same(values(last), values(whole))


def _is_moment(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 2


def test_a_loss_that_is_not_finite_touches_nothing(base: Path, tmp_path: Path) -> None:
    for number, bad in enumerate((float("nan"), float("inf"))):
        trained = small_loop(base, tmp_path / f"run{number}", save_every=1)
        trained.update(one(loss_of(trained)))
        trained.rest()
        before = values(trained)
        ids = [f"row-{n}" for n in range(11)]
        with pytest.raises(DanluError, match=r"step 2: loss (nan|inf)") as caught:
            trained.update(lambda _, of=trained, bad=bad: [loss_of(of), loss_of(of, bad)], ids)
        assert "its rows: row-0, row-1, row-2, row-3, row-4, row-5, row-6, row-7 and 3 more" in caught.value.message
        assert str(trained.run.checkpoints / "step_000001") in caught.value.hint
        assert trained.run.info()["results"]["not_finite"] == {"step": 2, "rows": ids}
        assert same(values(trained), before)
        assert all(param.grad is None for param in trained.params.values())
        found = checkpoint.latest(trained.run.checkpoints)
        assert found is not None
        assert same(checkpoint.load(found)[0], before)


def test_the_norm_is_told_before_clipping(base: Path, tmp_path: Path) -> None:
    trained = small_loop(base, tmp_path / "run", optimizer={"lr": 1e-2, "clip": 1e-3})
    _, norm = trained.update(one(loss_of(trained)))
    assert norm > 1e-2


def test_the_best_is_the_lowest_or_the_highest(base: Path, tmp_path: Path) -> None:
    made = recipe(base, write_rows(tmp_path / "rows.jsonl"))
    for largest, seen, best in ((False, [3.0, 2.0, float("nan"), 2.5], 2.0), (True, [0.1, 0.4, 0.4, 0.2], 0.4)):
        run = new_run(tmp_path / f"run{largest}", made)
        kept = Loop(run, made.sft, fresh(base), 10, largest_is_best=largest)
        for value in seen:
            kept.step += 1
            kept.consider(value, keep=False)
        assert (kept.best_value, kept.best_step, kept.best, kept.stale) == (best, 2, None, 2)


def test_patience_ends_the_run_and_survives_an_interruption(
    base: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "_mode", "plain")  # whatever a command before has set
    numbers = [3.0, 2.0, 2.0, 4.0, 2.5, 1.0]
    settings = {"eval_every": 2, "patience": 3, "save_every": 5}

    def run_of(name: str, evaluations: int) -> Loop:
        made = small_loop(base, tmp_path / name, 20, **settings)
        made.resume()

        def evaluate() -> dict[str, float]:
            if made.step == 2 * evaluations:
                raise KeyboardInterrupt
            return {"value": numbers[made.step // 2 - 1]}

        with contextlib.suppress(KeyboardInterrupt):
            made.go("x", step_of(made), evaluate, "value", keep=True)
        return made

    whole = run_of("whole", 99)
    assert (whole.step, whole.best_step, whole.stale, whole.stopped_early) == (10, 4, 3, True)
    assert "3 evaluations without a better value" in capsys.readouterr().err
    assert checkpoint.latest(whole.run.checkpoints) == whole.run.checkpoints / "step_000010"
    again = small_loop(base, tmp_path / "whole", 20, **settings)  # what could not be delivered is not trained again
    again.resume()
    again.go("x", lambda: pytest.fail("a step"), lambda: pytest.fail("an evaluation"), "value")
    run_of("parts", 4)
    parts = run_of("parts", 99)
    assert (parts.step, parts.best_step, parts.stale) == (10, 4, 3)
    assert parts.run.metrics() == whole.run.metrics()


# ---- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "int"])
def test_a_signal_ends_the_run_before_the_next_micro_batch(
    base: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    trained = small_loop(base, tmp_path / "run", lora={"r": 4, "alpha": 8, "dropout": 0.2})
    forwards = 0

    def losses(_: int) -> Any:
        nonlocal forwards
        for _ in range(3):
            forwards += 1
            if forwards == 5:  # the second of the second step
                signal.raise_signal(number)
            yield loss_of(trained)

    def step() -> dict[str, float]:
        loss, _ = trained.update(losses)
        trained.log({"step": trained.step, "loss": loss})
        return {}

    with pytest.raises(Stopped) as caught:
        trained.go("x", step)
    assert (caught.value.exit_code, caught.value.hint) == (code, "continue with --resume")
    assert forwards == 5
    assert [path.name for path in checkpoint.listed(trained.run.checkpoints)] == ["step_000001"]
    assert signal.getsignal(signal.SIGTERM) is before
    whole = small_loop(base, tmp_path / "whole", lora={"r": 4, "alpha": 8, "dropout": 0.2})
    wanted = [whole.update(lambda _: [loss_of(whole)] * 3) for _ in range(2)]
    again = small_loop(base, tmp_path / "run", lora={"r": 4, "alpha": 8, "dropout": 0.2})
    again.resume()
    assert again.update(lambda _: [loss_of(again)] * 3) == wanted[1]


def test_a_signal_ends_an_evaluation_which_is_done_when_resumed(base: Path, tmp_path: Path) -> None:
    asked = [0, 0]  # parts of evaluations begun, ended

    def run_of(stop_at: int) -> Loop:
        made = small_loop(base, tmp_path / "run", 4, eval_every=2, save_every=1)
        made.resume()

        def evaluate() -> dict[str, float]:
            for _ in range(10):
                asked[0] += 1
                if asked[0] == stop_at:
                    signal.raise_signal(signal.SIGTERM)
                made.breathe(evaluated="1/10")
            asked[1] += 1
            return {"value": float(made.step)}

        made.go("x", step_of(made), evaluate, "value")
        return made

    with pytest.raises(Stopped, match="stopped at step 2"):
        run_of(3)
    assert asked == [3, 0]
    with pytest.raises(Stopped, match="stopped at step 2"):
        run_of(8)
    done = run_of(0)
    assert asked == [28, 2]
    assert [(row["step"], "value" in row) for row in done.run.metrics()] == [
        *((1, False), (2, False), (2, True), (3, False), (4, False), (4, True))
    ]


def test_a_second_signal_ends_at_once(base: Path, tmp_path: Path) -> None:
    trained = small_loop(base, tmp_path / "run")

    def step() -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")

    with pytest.raises(Stopped, match="at once") as caught:
        trained.go("x", step)
    assert caught.value.exit_code == 143


def test_what_changed_since_the_rest_is_never_saved(base: Path, tmp_path: Path) -> None:
    """Two updates in a step (GRPO's iterations): a signal between them waits for the end of the step."""
    trained = small_loop(base, tmp_path / "run")

    def step() -> dict[str, float]:
        trained.update(one(loss_of(trained)))
        signal.raise_signal(signal.SIGTERM)
        trained.update(one(loss_of(trained)))
        return {}

    with pytest.raises(Stopped, match="stopped at step 2"):
        trained.go("x", step)
    assert [path.name for path in checkpoint.listed(trained.run.checkpoints)] == ["step_000002"]


# ---- memory


def rows_losses(of: Loop, limit: int, seen: list[int], fail: Any) -> Any:
    """Micro-batches of four rows, halved as asked; `fail` runs where one has more than `limit` rows."""

    def losses(halvings: int) -> Any:
        size = max(1, 4 >> halvings)
        rows = [*ROWS, ROWS[0]]
        count = sum(label != IGNORE for _, labels in rows for label in labels)

        def loss(part: list[Any]) -> torch.Tensor:
            seen.append(len(part))
            found = -of.logprobs(packed(part))[0].sum() / count
            if len(part) > limit:
                found.backward()  # gradients that must not stay
                fail()
            return found

        return [partial(loss, rows[at : at + size]) for at in range(0, len(rows), size)]

    return losses


def refused() -> None:
    torch.empty(2**60, dtype=torch.uint8)  # the allocator's own words


def python_refused() -> None:
    bytearray(2**60)


@pytest.mark.parametrize("fail", [refused, python_refused])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_loss(
    base: Path, tmp_path: Path, capsys: Any, fail: Any
) -> None:
    whole = small_loop(base, tmp_path / "whole", save_every=2)
    short = small_loop(base, tmp_path / "short", save_every=2)
    sizes: list[int] = []
    whole.halvings = 2  # one row a forward from the start
    wanted = [whole.update(rows_losses(whole, 1, [], fail)) for _ in range(4)]
    found = [short.update(rows_losses(short, 1, sizes, fail)) for _ in range(2)]
    assert sizes == [4, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert short.halvings == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "out of memory with 1 forwards a step; going on with 2" in told
    assert "out of memory with 2 forwards a step; going on with 4" in told
    short.rest()
    short.save()
    again = small_loop(base, tmp_path / "short", save_every=2)
    again.resume()
    sizes.clear()
    found += [again.update(rows_losses(again, 1, sizes, fail)) for _ in range(2)]
    assert sizes == [1] * 8
    assert found == wanted  # not only within rounding: it is the same computation
    assert same(values(again), values(whole))


def test_dropout_is_drawn_again_when_a_step_begins_again(base: Path, tmp_path: Path) -> None:
    settings = {"lora": {"r": 4, "alpha": 8, "dropout": 0.5}}
    whole, short = (small_loop(base, tmp_path / name, **settings) for name in ("whole", "short"))
    whole.halvings = 1
    for _ in range(3):
        rng.seed(5)
        wanted = whole.update(rows_losses(whole, 2, [], refused))
        rng.seed(5)
        assert short.update(rows_losses(short, 2, [], refused)) == wanted


def test_one_row_that_does_not_fit_is_told(base: Path, tmp_path: Path) -> None:
    trained = small_loop(base, tmp_path / "run")
    before = values(trained)
    with pytest.raises(DanluError, match="one row a forward") as caught:
        trained.update(rows_losses(trained, 0, [], refused))
    for word in ("gradient_checkpointing", "max_length", "nf4", "danlu plan"):
        assert word in caught.value.hint
    assert same(values(trained), before)
    assert all(param.grad is None for param in trained.params.values())


def test_memory_refused_outside_of_an_update_is_told(base: Path, tmp_path: Path) -> None:
    trained = small_loop(base, tmp_path / "run", 2)
    with pytest.raises(DanluError, match="out of memory after step 0") as caught:
        trained.go("x", refused)  # type: ignore[arg-type]
    assert "danlu plan" in caught.value.hint


def test_other_errors_of_a_forward_are_not_taken_for_it(base: Path, tmp_path: Path) -> None:
    trained = small_loop(base, tmp_path / "run", 2)
    with pytest.raises(RuntimeError, match="shape"):
        trained.update(lambda _: [lambda: torch.zeros(2, 3) @ torch.zeros(2, 3)])


def test_nothing_to_train_is_an_error(base: Path, tmp_path: Path) -> None:
    made = recipe(base, write_rows(tmp_path / "rows.jsonl"))
    with pytest.raises(DanluError, match="nothing to train"):
        Loop(new_run(tmp_path / "run", made), made.sft, load(made.model), 1, largest_is_best=False)
