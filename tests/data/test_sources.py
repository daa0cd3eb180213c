from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from danlu import domains
from danlu.data.folders import choose
from danlu.data.sources import load, unique_ids
from danlu.errors import DanluError
from danlu.recipe import Source
from danlu.records import Sample

POTS = str(Path(__file__).parent / "fixtures" / "pots.jsonl")


def test_bad_rows_are_an_error_or_counted():
    with pytest.raises(DanluError, match=r"pots.jsonl line 3: question is empty \(1 more bad rows\)"):
        load(Source(path=POTS))
    loaded = load(Source(path=POTS), on_bad_row="skip")
    assert len(loaded.rows) == 4
    assert [(reject.line, reject.reason) for reject in loaded.rejected] == [
        (3, "question is empty"),
        (5, "not JSON (Expecting value)"),
    ]
    assert loaded.rejected[1].row_excerpt.startswith('{"question": "What is slip?"')
    assert loaded.digest == load(Source(path=POTS), on_bad_row="skip").digest


def test_limit_is_a_seeded_sample_in_file_order(write):
    path = write("a.jsonl", [{"id": n, "question": f"q{n}", "answer": "a"} for n in range(50)])

    def ids(**source: int) -> list[int]:
        return [int(row.id) for row in load(Source(path=path, **source)).rows]

    assert len(ids()) == len(ids(limit=99)) == 50
    assert ids(limit=5, seed=1) == sorted(ids(limit=5, seed=1)) != ids(limit=5, seed=2)
    assert len(ids(limit=5)) == 5
    bad = write("b.jsonl", '{"question": "q", "answer": "a"}\n' + '{"question": "q"}\n' * 9)
    loaded = load(Source(path=bad, limit=4), on_bad_row="skip")
    assert len(loaded.rows) + len(loaded.rejected) == 4


def test_what_a_stage_needs_is_asked_of_every_row(write):
    path = write("a.jsonl", [{"question": "q", "think": "r", "answer": "a"}])
    with pytest.raises(DanluError, match="line 1: no gold target"):
        load(Source(path=path), needs="target")
    choice = write("b.jsonl", [{"question": "q", "options": ["x", "y"], "answer": "A"}])
    with pytest.raises(DanluError, match="line 1: no answer to train on"):
        load(Source(path=choice), needs="answer")


def test_ids_are_unique():
    ask = ({"role": "user", "content": "q"},)
    rows = [Sample(name, ask) for name in ("a", "a", "a#2", "b", "a")]
    assert [row.id for row in unique_ids(rows)] == ["a", "a#2", "a#2#2", "b", "a#3"]


def test_world_and_short_names_of_a_domain(domain, monkeypatch, tmp_path):
    loaded = load(Source(path="world:train", limit=3, seed=5), domain)
    assert [row.question for row in loaded.rows] == ["train pot 5?", "train pot 6?", "train pot 7?"]
    with pytest.raises(DanluError, match="did you mean world:test"):
        load(Source(path="world:tset", limit=3), domain)
    with pytest.raises(DanluError, match="needs a number of rows"):
        load(Source(path="world:test"), domain)
    with pytest.raises(DanluError, match="has no miniature world"):
        load(Source(path="world:test", limit=3))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DanluError, match=r"no/such/file.jsonl does not exist"):
        load(Source(path="pots"), domain)
    assert domains.load("pottery") is domain


def test_a_missing_file_names_its_neighbours(write, monkeypatch):
    path = Path(write("data/train_zh.jsonl", [{"question": "q", "answer": "a"}]))
    monkeypatch.chdir(path.parent.parent)
    with pytest.raises(DanluError, match=r"data/train_zn.jsonl does not exist\nhint: did you mean data/train_zh.jsonl"):
        load(Source(path="data/train_zn.jsonl"))
    with pytest.raises(DanluError, match="did you mean data"):
        load(Source(path="dta/train_zh.jsonl"))
    with pytest.raises(DanluError, match="data files in data: train_zh"):
        load(Source(path="data/x.csv"))
    with pytest.raises(
        DanluError, match=r"HF_HUB_OFFLINE forbids.*\nhint: .*as a file: did you mean data/train_zh.jsonl"
    ):
        load(Source(path="data/train_zh"))


def test_a_folder_is_read_like_a_repository(write, tmp_path):
    write("pots/train-00000-of-00002.jsonl", [{"question": "q0", "answer": "a"}])
    write("pots/train-00001-of-00002.jsonl", [{"question": "q1", "answer": "a"}])
    write("pots/test.csv", "question,answer\nq2,a\n")
    loaded = load(Source(path=str(tmp_path / "pots")))
    assert [row.question for row in loaded.rows] == ["q0", "q1"]
    assert [row.question for row in load(Source(path=str(tmp_path / "pots"), split="test")).rows] == ["q2"]


CARD = """---
configs:
- config_name: en
  data_files: pots_en.json
- config_name: zh
  default: true
  data_files:
  - split: train
    path: zh/train-*.parquet
  - split: validation
    path: [zh/dev.jsonl]
---
# Pots
"""


@pytest.mark.parametrize(
    ("names", "card", "source", "chosen"),
    [
        (["pots.json", "README.md", ".gitattributes", "dataset_infos.json"], "", {}, ["pots.json"]),
        (["a/train.parquet", "a/test.parquet", "b/train.parquet"], "", {"subset": "a"}, ["a/train.parquet"]),
        (["train.json", "dev.json"], "", {"split": "validation"}, ["dev.json"]),
        (["train.json", "train.parquet"], "", {}, ["train.parquet"]),
        (["en.json", "zh.json"], "", {"subset": "zh"}, ["zh.json"]),
        (["pots-en.json", "pots-zh.json"], "", {"subset": "pots-zh.json"}, ["pots-zh.json"]),
        (["pots_en.json", "zh/dev.jsonl"], CARD, {"subset": "en"}, ["pots_en.json"]),
        (
            ["zh/train-1.parquet", "zh/train-0.parquet"],
            CARD,
            {"subset": "zh"},
            ["zh/train-0.parquet", "zh/train-1.parquet"],
        ),
        (["pots_en.json", "zh/dev.jsonl"], CARD, {"subset": "zh", "split": "dev"}, ["zh/dev.jsonl"]),
    ],
)
def test_choosing_files(names, card, source, chosen):
    assert choose(names, card, Source(path="acme/pots", **source), "acme/pots") == chosen


@pytest.mark.parametrize(
    ("names", "card", "source", "says"),
    [
        (["README.md", "pots.py"], "", {}, "no data files"),
        (["en.json", "zh.json"], "", {}, r"several files for train: en.json, zh.json\nhint: name one as subset"),
        (["train.json"], "", {"split": "test"}, r"no split 'test'\nhint: splits there: train"),
        (["en.json"], "", {"subset": "fr"}, "no subset 'fr'"),
        (["train-00001-of-00003.json"], "", {}, "has 1 of the 3 parts of train.json"),
        (["en.json"], CARD, {}, r"several subsets\nhint: name one as subset: zh, en"),
        (["en.json"], CARD, {"subset": "fr"}, "no subset 'fr'"),
        (["en.json"], CARD, {"subset": "en", "split": "test"}, r"no split 'test'\nhint: splits there: train"),
        (["en.json"], CARD, {"subset": "en"}, "names pots_en.json, which is not there"),
    ],
)
def test_no_choice_is_an_error_that_lists_what_there_is(names, card, source, says):
    with pytest.raises(DanluError, match=says):
        choose(names, card, Source(path="acme/pots", **source), "acme/pots")


PROGRAM = """
import json, sys
from danlu.data.sources import load
from danlu.errors import DanluError
from danlu.recipe import Source
try:
    loaded = load(Source(**json.loads(sys.argv[1])), on_bad_row="skip")
    print(json.dumps([[row.question for row in loaded.rows], [reject.origin for reject in loaded.rejected]]))
except DanluError as error:
    print(json.dumps(str(error)))
"""


def fetch(source: dict, cache: Path, endpoint: str = "", **environment: str):
    """Load in a process of its own, because the client reads HF_ENDPOINT when it is imported."""
    settings = {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(source)],
        env={**os.environ, "HF_HUB_ETAG_TIMEOUT": "2", **settings, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_hub_data_through_an_endpoint_then_offline(hub, tmp_path):
    code = b"raise SystemExit('a repository ran its code')"
    english = Path(POTS).read_bytes()
    endpoint = hub({"README.md": CARD.encode(), "pots_en.json": english, "pots.py": code, "zh/dev.jsonl": b"{}"})
    source = {"path": "acme/pots", "subset": "en"}
    rows, rejected = fetch(source, tmp_path, endpoint)
    assert rows[0] == "Which glaze is jade green?"
    assert (len(rows), rejected) == (4, ["acme/pots/pots_en.json"] * 2)
    assert not list(tmp_path.rglob("pots.py"))
    assert fetch(source, tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1") == [rows, rejected]
    answer = fetch({"path": "acme/pans"}, tmp_path, endpoint)
    assert answer.startswith(f"acme/pans is neither a file here nor a data set at {endpoint}")
    answer = fetch({"path": "acme/pans"}, tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert answer.startswith("acme/pans is not in the local cache, and HF_HUB_OFFLINE forbids")


def test_a_revision_of_hub_data(hub, tmp_path):
    old = b'{"question": "old?", "answer": "a"}\n'
    endpoint = hub({"pots.jsonl": Path(POTS).read_bytes()}, v1={"pots.jsonl": old})
    source = {"path": "acme/pots", "revision": "v1"}
    assert fetch(source, tmp_path, endpoint) == [["old?"], []]
    assert fetch({**source, "revision": "b" * 40}, tmp_path, endpoint) == [["old?"], []]
    assert len(fetch({"path": "acme/pots"}, tmp_path, endpoint)[0]) == 4
    assert fetch(source, tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1") == [["old?"], []]
    answer = fetch({**source, "revision": "v9"}, tmp_path, endpoint)
    assert answer.startswith(f"acme/pots has no revision 'v9' at {endpoint}\nhint: name a commit, a branch or a tag")
    answer = fetch({**source, "revision": "v9"}, tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert answer.startswith("acme/pots at revision v9 is not in the local cache")
    with pytest.raises(DanluError, match="is local and has no revisions"):
        load(Source(path=POTS, revision="v1"))


def test_the_revision_reaches_the_modelscope_client(monkeypatch, tmp_path):
    asked = []

    def download(repo: str, **more: object) -> str:
        asked.append((repo, more.get("revision")))
        (tmp_path / "pots.jsonl").write_bytes(Path(POTS).read_bytes())
        return str(tmp_path)

    client = types.ModuleType("modelscope.hub.snapshot_download")
    client.dataset_snapshot_download = download
    for name in ("modelscope", "modelscope.hub"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, client.__name__, client)
    load(Source(path="modelscope:acme/pots", revision="v1"), on_bad_row="skip")
    load(Source(path="modelscope:acme/pots"), on_bad_row="skip")
    assert asked == [("acme/pots", "v1"), ("acme/pots", None)]


def test_hub_that_cannot_be_reached(tmp_path):
    answer = fetch({"path": "acme/pots"}, tmp_path, "http://127.0.0.1:9")
    assert answer.startswith("acme/pots could not be fetched from http://127.0.0.1:9")
    assert "HF_ENDPOINT" in answer


def test_modelscope_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(
        DanluError, match=r'needs the ModelScope client\nhint: install it: pip install "danlu\[modelscope\]"'
    ):
        load(Source(path="modelscope:acme/pots"))


def test_modelscope_through_an_endpoint(hub, tmp_path):
    if importlib.util.find_spec("modelscope") is None:
        pytest.skip("the modelscope extra is not installed")
    endpoint = hub({"pots.jsonl": Path(POTS).read_bytes(), "pots.py": b"raise SystemExit"})
    cache = {"MODELSCOPE_CACHE": str(tmp_path), "MODELSCOPE_DOMAIN": endpoint}
    rows, rejected = fetch({"path": "modelscope:acme/pots"}, tmp_path, **cache)
    assert (len(rows), rejected) == (4, ["modelscope:acme/pots/pots.jsonl"] * 2)
    assert not list(tmp_path.rglob("pots.py"))
    answer = fetch({"path": "modelscope:acme/pans"}, tmp_path, **cache)
    assert answer.startswith(f"modelscope:acme/pans could not be fetched from {endpoint}")


COUNTS = {
    "sft/delicate_medical_r1.jsonl": (200, 0),
    "sft/medical_o1_sft_English.json": (150, 0),
    "rl/medical_o1_verifiable_problem.json": (150, 0),
    "bench/cmexam_val.jsonl": (1359, 1),  # line 1337 has the answer "nan"
    "bench/cmexam_test_single.json": (700, 0),
    "bench/medqa_mainland_test.json": (400, 0),
    "bench/medqa_us_4opt_test.jsonl": (400, 0),
    "bench/medmcqa_dev.jsonl": (800, 0),
    "bench/pubmedqa_pqal.json": (200, 0),
    "bench/cmmlu/*.csv": (360, 0),
    "bench/ceval/*.csv": (90, 0),
    "bench/mmlu/*.csv": (240, 0),
    "bench/medhalt_reasoning_fake.csv": (150, 0),
    "bench/medsafetybench/*.csv": (135, 0),
}


@pytest.mark.parametrize("pattern", COUNTS)
def test_published_files(shared_data, pattern):
    files = sorted(shared_data.glob(pattern))
    loaded = [load(Source(path=str(file)), on_bad_row="skip") for file in files]
    rows = [row for part in loaded for row in part.rows]
    assert (len(rows), sum(len(part.rejected) for part in loaded)) == COUNTS[pattern]
    if pattern.startswith("sft"):
        assert all(row.reasoning and row.answer for row in rows)
    elif "medsafety" not in pattern:
        assert all(row.target for row in rows)
        assert all(set(row.target) <= set(row.options) for row in rows if row.options)
