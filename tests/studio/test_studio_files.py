"""What was uploaded: where it goes, and when it is removed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from danlu.errors import DanluError
from danlu.recipe import load
from danlu.run import Run
from danlu.studio import files
from danlu.studio.place import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "runs")


def uploaded(place: Place, name: str, days: float) -> Path:
    path = files.upload_path(place, name)
    path.write_text("{}")
    os.utime(path, (time.time() - days * 86400,) * 2)
    return path


def test_an_upload_has_a_name_of_its_own(place: Place) -> None:
    first = uploaded(place, "../../my rows.jsonl", 0)
    assert first == place.own / "uploads" / "my_rows.jsonl"
    assert uploaded(place, "C:\\my rows.jsonl", 0).name == "my_rows-2.jsonl"
    with pytest.raises(DanluError, match="is no data file"):
        files.upload_path(place, "rows.py")


def test_old_uploads_that_nothing_names_are_removed(place: Place) -> None:
    fresh, old = uploaded(place, "fresh.jsonl", 29), uploaded(place, "old.jsonl", 31)
    trained, waiting = uploaded(place, "病历.jsonl", 400), uploaded(place, "waiting.jsonl", 400)
    Run.create(place.root / "a-sft", "sft", load("demo", [f"data.train.0.path={trained}"]).resolved())
    (place.own / "jobs").mkdir()
    (place.own / "jobs" / "b.json").write_text(json.dumps({"command": ["run", f"data.train={waiting}"]}))
    (place.own / "saved").mkdir()
    kept = place.own / "saved" / "preferences.jsonl"
    kept.write_text("{}")
    os.utime(kept, (0, 0))
    assert files.tidy(place) == [old]
    assert [path.exists() for path in (fresh, old, trained, waiting, kept)] == [True, False, True, True, True]


def test_nothing_is_removed_where_a_run_cannot_be_read(place: Place) -> None:
    old = uploaded(place, "old.jsonl", 31)
    (place.root / "torn").mkdir()
    (place.root / "torn" / "config.json").write_text("{")
    assert files.tidy(place) == []
    assert old.exists()
    (place.root / "torn" / "config.json").write_text("{}")
    assert files.tidy(place) == [old]
