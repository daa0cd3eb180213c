"""K-quants: the mixture, the kernels, who is asked to make them, and other architectures' converter."""

from __future__ import annotations

import os
import sys
from collections import Counter, namedtuple
from pathlib import Path

import gguf
import numpy as np
import pytest

from danlu import display
from danlu.errors import DanluError
from danlu.export import files, kernels
from danlu.export.files import write_files
from danlu.export.gguf import write_gguf
from danlu.export.mixture import K_QUANTS, Network, k_type
from danlu.export.quantize import Maker, find_maker, k_quantize
from danlu.generate.gguf import GgufGenerator
from danlu.models.locate import base_dir
from tiny_models import build

LLAMA_CPP = os.environ.get("LLAMA_CPP", "")  # a built checkout; without it its tools are not run
needs_llama_cpp = pytest.mark.skipif(not LLAMA_CPP, reason="LLAMA_CPP names no checkout of llama.cpp")
needs_kernels = pytest.mark.skipif(not kernels.available(), reason="xllamacpp exports no kernels here")


def kinds(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH of its own, empty; tests put stand-ins there."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("LLAMA_QUANTIZE", raising=False)
    return tmp_path / "bin"


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\nimport sys, shutil\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_mixture_keeps_more_bits_where_they_matter() -> None:
    network = Network(layers=16, group=4, tied=False)
    found = [k_type(f"blk.{layer}.ffn_down.weight", 512, "q4_k_m", network).name for layer in range(16)]
    assert [layer for layer, kind in enumerate(found) if kind == "Q6_K"] == [0, 1, 4, 7, 10, 13, 14, 15]
    assert k_type("output.weight", 512, "q2_k", network).name == "Q6_K"
    assert k_type("token_embd.weight", 512, "q2_k", network).name == "Q2_K"
    assert k_type("blk.9.attn_v.weight", 512, "q2_k", network).name == "Q4_K"
    fallback = {quant: k_type("blk.9.attn_q.weight", 96, quant, network).name for quant in K_QUANTS}
    assert fallback["q4_k_m"] == "Q5_0"
    assert fallback["q6_k"] == k_type("output.weight", 96, "q4_k_m", network).name == "Q8_0"
    assert k_type("blk.9.attn_q.weight", 80, "q4_k_m", network).name == "F16"


@needs_kernels
def test_kernels_are_near_and_rows_do_not_depend_on_their_neighbours() -> None:
    values = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)
    for quant, limit in (("Q6_K", 0.03), ("Q5_K", 0.06), ("Q4_K", 0.12), ("Q3_K", 0.25), ("Q2_K", 0.5)):
        kind = gguf.GGMLQuantizationType[quant]
        stored = kernels.quantize(values, kind)
        back = gguf.quants.dequantize(stored, kind)
        assert 0 < np.sqrt(((back - values) ** 2).mean()) < limit, quant
        assert np.array_equal(stored[1:2], kernels.quantize(values[1:2], kind))


@needs_kernels
@pytest.mark.usefixtures("no_tools")
def test_k_quants_need_no_tool_and_llama_cpp_reads_them(tmp_path: Path) -> None:
    base = base_dir({"id": "tiny"})
    (tmp_path / "out").mkdir()
    made = write_files(base, tmp_path / "out", ["q4_k_m", "q2_k"], name="x")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model-q2_k.gguf", "model-q4_k_m.gguf"]
    assert Counter(kinds(tmp_path / "out" / made[0]["gguf"]).values()) == {"Q4_K": 24, "F32": 17, "Q6_K": 5}
    with GgufGenerator(tmp_path / "out" / made[0]["gguf"], context=256) as server:
        assert len(server.complete_tokens([5, 6, 7], 4).tokens) > 0


@needs_kernels
@pytest.mark.usefixtures("no_tools")
def test_rows_that_do_not_divide_are_told(tmp_path: Path) -> None:
    build(tmp_path / "model")  # rows of 64, 96 and 128
    (tmp_path / "out").mkdir()
    with display.overheard() as told:
        write_files(tmp_path / "model", tmp_path / "out", ["q4_k_m"], name="x")
    assert told == ["q4_k_m: 15 matrices have rows that do not divide by 256; stored as q8_0 (3), q5_0 (12)"]
    assert Counter(kinds(tmp_path / "out" / "model-q4_k_m.gguf").values())["Q5_0"] == 12


def test_the_first_maker_that_is_there_is_taken(
    no_tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "available", lambda: False)
    with pytest.raises(DanluError, match="llama-quantize") as caught:
        find_maker("q4_k_m")
    assert all(word in caught.value.hint for word in ("--llama-cpp", "llama-cpp-python", "ollama create -q Q4_K_M"))
    monkeypatch.setattr(kernels, "available", lambda: True)
    assert find_maker("q4_k_m") == Maker("kernels")
    with pytest.raises(DanluError, match="for an importance matrix"):
        find_maker("q4_k_m", imatrix=True)
    on_path = program(no_tools / "llama-quantize", "sys.exit(0)")
    assert find_maker("q4_k_m") == Maker("tool", str(on_path))
    built = program(tmp_path / "llama.cpp" / "build" / "bin" / "llama-quantize", "sys.exit(0)")
    assert find_maker("q4_k_m", tmp_path / "llama.cpp") == Maker("tool", str(built))
    with pytest.raises(DanluError, match="is not a directory"):
        find_maker("q4_k_m", tmp_path / "nothing")


def test_a_tool_gets_the_stored_type_and_the_matrix(no_tools: Path, tmp_path: Path) -> None:
    note = tmp_path / "asked"
    body = f"open({str(note)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\nshutil.copy(*sys.argv[-4:-2])"
    program(no_tools / "llama-quantize", body)
    measured = "a = sys.argv; open(a[a.index('-o') + 1], 'w').write(open(a[a.index('-f') + 1]).read())"
    program(no_tools / "llama-imatrix", measured)
    (tmp_path / "rows.txt").write_text("some text")
    (tmp_path / "out").mkdir()
    build(tmp_path / "model")
    write_files(tmp_path / "model", tmp_path / "out", ["q8_0", "q4_k_m"], name="x", imatrix=tmp_path / "rows.txt")
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["imatrix.gguf", "model-q4_k_m.gguf", "model-q8_0.gguf"]  # the f32 file between them is gone
    (asked,) = note.read_text().splitlines()
    assert "--imatrix" in asked
    assert "model-f32.gguf" in asked
    assert asked.split()[-2] == "Q4_K_M"
    with pytest.raises(DanluError, match="does not exist"):
        write_files(tmp_path / "model", tmp_path / "out", ["q4_k_m"], name="x", imatrix=tmp_path / "none")


def test_a_tool_that_fails_leaves_nothing(tmp_path: Path) -> None:
    tool = program(
        tmp_path / "tool", "open(sys.argv[2], 'w').write('half'); print('no memory', file=sys.stderr)\nsys.exit(3)"
    )
    (tmp_path / "a.gguf").write_text("weights")
    with pytest.raises(DanluError, match=r"tool failed \(3\): no memory"):
        k_quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "q6_k", Maker("tool", str(tool)))
    assert not list(tmp_path.glob("*b.gguf*"))


def test_room_for_all_files_is_asked_before_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "model")
    (tmp_path / "out").mkdir()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage(10, 9, (64 << 20) + 500_000))
    with pytest.raises(DanluError, match="f32, f16 need"):  # each alone would fit
        write_files(tmp_path / "model", tmp_path / "out", ["f32", "f16"], name="x")
    assert not list((tmp_path / "out").iterdir())


def test_other_architectures_go_through_the_users_converter(tmp_path: Path) -> None:
    build(tmp_path / "model")
    config = (tmp_path / "model" / "config.json").read_text().replace("Qwen3ForCausalLM", "GemmaForCausalLM")
    (tmp_path / "model" / "config.json").write_text(config)
    (tmp_path / "out").mkdir()
    with pytest.raises(DanluError, match="cannot export GemmaForCausalLM") as caught:
        write_files(tmp_path / "model", tmp_path / "out", ["f16"], name="x")
    assert "--llama-cpp DIR" in caught.value.hint
    with pytest.raises(DanluError, match=r"holds no convert_hf_to_gguf\.py"):
        write_files(tmp_path / "model", tmp_path / "out", ["f16"], name="x", llama_cpp=tmp_path)
    script = tmp_path / "checkout" / "convert_hf_to_gguf.py"
    program(script, "open(sys.argv[sys.argv.index('--outfile') + 1], 'w').write(sys.argv[-1])")
    with pytest.raises(DanluError, match="does not write q4_0"):
        write_files(tmp_path / "model", tmp_path / "out", ["q4_0"], name="x", llama_cpp=script.parent)
    write_files(tmp_path / "model", tmp_path / "out", ["f16"], name="x", llama_cpp=script.parent)
    assert (tmp_path / "out" / "model-f16.gguf").read_text() == "f16"


@pytest.mark.slow
@needs_llama_cpp
@pytest.mark.parametrize("quant", K_QUANTS)
def test_k_quants_are_llama_quantize_s_byte_for_byte(quant: str, tmp_path: Path) -> None:
    base = base_dir({"id": "tiny"})
    source = write_gguf(base, tmp_path / "source.gguf", "bf16")
    ours = write_gguf(base, tmp_path / "ours.gguf", quant)
    theirs = k_quantize(source, tmp_path / "theirs.gguf", quant, find_maker(quant, Path(LLAMA_CPP)))
    a, b = (
        {t.name: (t.tensor_type, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors} for path in (ours, theirs)
    )
    assert a == b
