"""Token sets on disk: the same rows as rendering gives, made once, never torn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import danlu
from danlu.data import store as module
from danlu.data.render import Shape, render
from danlu.data.store import key_of, open_store, read
from danlu.errors import DanluError
from danlu.models.tokenizer import load_tokenizer, think_format
from danlu.records import Sample

TINY = Path(danlu.__file__).parent / "assets" / "tiny"
TOKENIZER = load_tokenizer(TINY)
THINK = think_format(TINY, TOKENIZER)
ROWS = [
    Sample(f"r{n}", ({"role": "user", "content": f"发热 {n}？"},), reasoning="想。" * n, answer=f"感冒 {n}")
    for n in range(40)
]
CHAT = Sample(
    "chat",
    (
        {"role": "user", "content": "咳嗽"},
        {"role": "assistant", "content": "几天了？", "reasoning_content": "要问病程。"},
        {"role": "user", "content": "三天"},
    ),
    reasoning="不长。",
    answer="多喝水。",
)
SHAPE = Shape(64)


def test_a_store_holds_what_rendering_gives(tmp_path: Path):
    for shape in (SHAPE, Shape(64, "truncate"), Shape(64, loss_on="assistant"), Shape(64, loss_on="all")):
        rows, told = render(TOKENIZER, THINK, [*ROWS, CHAT], shape)
        made = open_store(TOKENIZER, THINK, [*ROWS, CHAT], shape, tmp_path)
        assert (made.report, len(made)) == (told, len(rows))
        assert made.lengths.tolist() == [len(row.tokens) for row in rows]
        for mine, row in zip(made, rows, strict=True):
            assert (mine.id, mine.turn) == (row.id, row.turn)
            assert np.array_equal(mine.tokens, row.tokens)
            assert np.array_equal(mine.labels, row.labels)
    with pytest.raises(IndexError):
        made[len(made)]


def test_the_second_start_renders_nothing(tmp_path: Path, monkeypatch):
    first = open_store(TOKENIZER, THINK, ROWS, SHAPE, tmp_path)
    monkeypatch.setattr(module, "render", None)
    again = open_store(TOKENIZER, THINK, ROWS, SHAPE, tmp_path)
    assert (again.key, again.ids) == (first.key, first.ids)


def test_whatever_decides_the_tokens_decides_the_key():
    plain = key_of(TOKENIZER, THINK, ROWS, SHAPE)
    other = load_tokenizer(TINY)
    other.chat_template += " "
    swapped = replace(ROWS[1], reasoning=ROWS[1].answer, answer=ROWS[1].reasoning)
    keys = [
        plain,
        key_of(TOKENIZER, THINK, ROWS[::-1], SHAPE),
        key_of(TOKENIZER, THINK, [ROWS[0], swapped, *ROWS[2:]], SHAPE),
        key_of(TOKENIZER, THINK, ROWS, Shape(65)),
        key_of(TOKENIZER, THINK, ROWS, Shape(64, "truncate")),
        key_of(TOKENIZER, THINK, ROWS, Shape(64, loss_on="all")),
        key_of(TOKENIZER, replace(THINK, bridge="\n</think>\n"), ROWS, SHAPE),
        key_of(other, THINK, ROWS, SHAPE),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(load_tokenizer(TINY), THINK, list(ROWS), SHAPE) == plain


@pytest.mark.parametrize("torn", ["tokens.bin", "loss.bin", "offsets.npy", "rows.json"])
def test_a_torn_store_is_made_again(tmp_path: Path, torn: str):
    made = open_store(TOKENIZER, THINK, ROWS, SHAPE, tmp_path)
    file = made.path / torn
    file.write_bytes(file.read_bytes()[:-5])
    assert read(made.path) is None
    again = open_store(TOKENIZER, THINK, ROWS, SHAPE, tmp_path)
    assert [row.tokens.tolist() for row in again] == [
        row.tokens.tolist() for row in render(TOKENIZER, THINK, ROWS, SHAPE)[0]
    ]


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DanluError, match="No space left on device"):
        open_store(TOKENIZER, THINK, ROWS, SHAPE, tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_old_stores_make_room(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "KEEP", 2)
    for size in (61, 62, 63):
        last = open_store(TOKENIZER, THINK, ROWS, Shape(size), tmp_path)
    kept = {path.name for path in (tmp_path / "tokens").iterdir()}
    assert len(kept) == 2
    assert last.key in kept


def test_no_rows_at_all(tmp_path: Path):
    assert len(open_store(TOKENIZER, THINK, [], SHAPE, tmp_path)) == 0
    assert len(open_store(TOKENIZER, THINK, ROWS, Shape(8), tmp_path)) == 0
