"""Adapters of peft and mlx-lm: the same logits either way, by peft and mlx-lm themselves; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from danlu.cli import main
from danlu.errors import DanluError
from danlu.models.locate import base_dir
from danlu.models.mlx_adapter import convert, read_peft
from danlu.run import read_json
from tiny_models import adapter, build

mx = pytest.importorskip("mlx.core", exc_type=ImportError)
pytest.importorskip("mlx_lm", exc_type=ImportError)

IDS = [[5, 99, 300, 7, 12, 411, 38, 250, 3, 77]]
TINY = base_dir({"id": "tiny"})


def torch_logits(base: Path, folder: Path, ids: list[int] = IDS[0]) -> np.ndarray:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), str(folder))
    with torch.no_grad():
        return model(torch.tensor([ids])).logits.numpy()


def mlx_model(base: Path, folder: Path | None) -> Any:
    """Loaded by mlx-lm alone, adapter and all."""
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    model, _ = load_model(base)
    model.set_dtype(mx.float32)
    return load_adapters(model, str(folder)) if folder else model


def mlx_logits(base: Path, folder: Path) -> np.ndarray:
    model = mlx_model(base, folder)
    model.eval()
    return np.array(model(mx.array(IDS)))


def as_on_the_hub(folder: Path) -> None:
    """Rotary embedding where transformers 4 wrote it: mlx-lm alone does not find it elsewhere."""
    config = read_json(folder / "config.json")
    told = config.pop("rope_parameters")
    config |= {"rope_theta": told["rope_theta"], "rope_scaling": told if told["rope_type"] != "default" else None}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


@pytest.mark.parametrize(("architecture", "kind"), [("qwen2", "r1"), ("llama", "llama3"), ("qwen3", "chatml")])
def test_a_base_is_read_as_transformers_reads_it(architecture: str, kind: str, tmp_path: Path) -> None:
    """With the rotary embedding where transformers 5 writes it (for this Llama with scaling), and an adapter."""
    from danlu.models.mlx import add_lora, load_base

    build(tmp_path / "base", architecture, kind)
    source = adapter(tmp_path / "base", tmp_path / "peft")
    assert "rope_theta" not in read_json(tmp_path / "base" / "config.json")
    model = load_base(tmp_path / "base", "fp32")
    add_lora(model, read_peft(source), frozen=True)
    ids = IDS[0] * 30
    found = np.array(model(mx.array([ids])))
    assert np.abs(torch_logits(tmp_path / "base", source, ids) - found).max() < 1e-3


def mlx_adapter(base: Path, folder: Path, layers: int = -1, keys: tuple[str, ...] = ("self_attn.q_proj",)) -> Path:
    """Written by mlx-lm's own functions, with random weights."""
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model, shape = mlx_model(base, None), {"rank": 4, "scale": 3.0, "dropout": 0.0, "keys": list(keys)}
    model.freeze()
    mx.random.seed(3)
    linear_to_lora_layers(model, layers, shape)
    weights = tree_map(lambda x: 0.2 * mx.random.normal(x.shape), model.trainable_parameters())
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(weights)))
    told = {"model": str(base), "fine_tune_type": "lora", "num_layers": layers, "lora_parameters": shape}
    (folder / "adapter_config.json").write_text(json.dumps(told), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        ("tiny", {}),
        ("tiny", {"use_rslora": True, "r": 8}),
        ("tiny", {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"layers.1.self_attn.v_proj": 20}}),
        ("tiny", {"layers_to_transform": [1, 3]}),
        ("qwen2", {}),
        ("llama", {}),
    ],
    ids=["plain", "rslora", "patterns", "some-layers", "qwen2", "llama"],
)
def test_from_peft_the_logits_are_the_same(base: str, settings: dict[str, Any], tmp_path: Path) -> None:
    folder = TINY
    if base != "tiny":
        folder = tmp_path / "base"
        build(folder, base, "llama3" if base == "llama" else "chatml", tied=False)
        as_on_the_hub(folder)
    source = adapter(folder, tmp_path / "peft", **settings)
    assert convert(source, tmp_path / "mlx", str(folder)) == "mlx"
    wanted, found = torch_logits(folder, source), mlx_logits(folder, tmp_path / "mlx")
    assert np.abs(wanted - found).max() < 1e-3
    without = np.array(mlx_model(folder, None)(mx.array(IDS)))
    assert np.abs(without - found).max() > 0.1  # an adapter that did nothing would pass else


@pytest.mark.parametrize(("layers", "keys"), [(-1, ("self_attn.q_proj", "mlp.down_proj")), (2, ("self_attn.v_proj",))])
def test_from_mlx_the_logits_are_the_same(layers: int, keys: tuple[str, ...], tmp_path: Path) -> None:
    source = mlx_adapter(TINY, tmp_path / "mlx", layers, keys)
    assert convert(source, tmp_path / "peft") == "peft"
    assert np.abs(mlx_logits(TINY, source) - torch_logits(TINY, tmp_path / "peft")).max() < 1e-3
    assert len(read_peft(tmp_path / "peft")) == (4 if layers < 0 else layers) * len(keys)


def test_there_and_back_is_the_same_adapter(tmp_path: Path) -> None:
    source = adapter(TINY, tmp_path / "peft")
    convert(source, tmp_path / "mlx")
    convert(tmp_path / "mlx", tmp_path / "back")
    before, after = read_peft(source), read_peft(tmp_path / "back")
    assert before.keys() == after.keys()
    for module, update in before.items():
        assert torch.equal(update.a, after[module].a)
        assert torch.equal(update.b, after[module].b)
        assert update.scale == after[module].scale


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"use_dora": True}, "use_dora"), ({"bias": "lora_only"}, "bias"), ({"modules_to_save": ["norm"]}, "modules_to")],
)
def test_what_mlx_lm_has_no_place_for_is_refused(settings: dict[str, Any], named: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    build(base)
    source = adapter(base, tmp_path / "peft", **settings)
    with pytest.raises(DanluError, match=named):
        convert(source, tmp_path / "mlx")
    assert not (tmp_path / "mlx").exists()


def test_what_peft_has_no_place_for_is_refused(tmp_path: Path) -> None:
    source = mlx_adapter(TINY, tmp_path / "mlx")
    config = read_json(source / "adapter_config.json")
    (source / "adapter_config.json").write_text(json.dumps({**config, "fine_tune_type": "dora"}), "utf-8")
    with pytest.raises(DanluError, match="dora"):
        convert(source, tmp_path / "peft")
    (source / "adapters.safetensors").write_bytes(b"not safetensors")
    (source / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(DanluError, match="cannot read"):
        convert(source, tmp_path / "peft")


def test_an_adapter_of_mlx_lm_goes_the_same_road(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """danlu convert, then danlu merge of what it wrote: the merged model has the logits of mlx-lm with its adapter."""
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    source = mlx_adapter(TINY, tmp_path / "mlx", keys=("self_attn.q_proj", "mlp.up_proj"))
    assert main(["merge", "mlx", "--out", "merged"]) == 2  # named, with the way out
    assert "danlu convert" in capsys.readouterr().err
    assert main(["convert", "mlx", "--out", "peft"]) == 0
    assert capsys.readouterr().out.strip() == "peft"
    assert main(["convert", "mlx", "--out", "peft"]) == 2
    assert "already used" in capsys.readouterr().err
    assert main(["merge", "peft", "--out", "merged", "--no-check"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="float32")
    with torch.no_grad():
        found = merged(torch.tensor(IDS)).logits.numpy()
    assert np.abs(mlx_logits(TINY, source) - found).max() < 0.1  # merged weights are bf16, as the base's are
