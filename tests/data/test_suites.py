from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from danlu import domains
from danlu.data.sources import load
from danlu.data.suites import VARIABLE, judged, questions, resolve, sources
from danlu.domains import BenchmarkSpec, Domain, World
from danlu.errors import DanluError
from danlu.recipe import Benchmark, Source
from danlu.records import Sample


def pots(split: str, n: int, seed: int = 0) -> list[Sample]:
    ask = [({"role": "user", "content": f"{split} {i + seed}: 什么釉?"},) for i in range(n)]
    return [Sample(f"{split}-{i}", turns, target="celadon") for i, turns in enumerate(ask)]  # type: ignore[arg-type]


SPECS = [
    BenchmarkSpec("glazes", "acme/glazes", "glazes", "choice", "en", "MIT", files=("glazes.json", "glazes.jsonl")),
    BenchmarkSpec(
        "clays",
        "acme/clays",
        "clays",
        "choice",
        "zh",
        "MIT",
        split="validation",
        subsets=("white", "red", "black"),
        part="{subset}/val.parquet",
        revision="v2",
        files=("clays/{subset}_val.csv",),
    ),
    BenchmarkSpec("fires", "acme/fires", "no smoke", "safety", "en", "MIT", files=("fires/test_*.csv",)),
    BenchmarkSpec(
        "kilns",
        "acme/kilns",
        "kilns",
        "choice",
        "en",
        "MIT",
        subject="category",
        only=("wood",),
        files=("kilns.jsonl",),
    ),
    BenchmarkSpec("pots", "world:test", "pots", "open", "both", "MIT", limit=5),
]
POTTERY = Domain(
    "pottery",
    terms=list,
    world=World({"test": "pots"}, pots),
    benchmarks={spec.name: spec for spec in SPECS},
    suites={"quick": (("glazes", 10), ("pots", 3)), "all": (("glazes", None), ("clays", None), ("pots", None))},
)


@pytest.fixture
def bench(tmp_path: Path, write) -> Path:
    header = "id,question,A,B,answer\n"
    write("clays/white_val.csv", header + "0,几度?,一,二,A\n1,多少?,一,二,B\n")
    write("clays/red_val.csv", header + "0,何色?,红,白,A\n1,几何?,红,白,nan\n2,谁?,红,白,B\n")
    write("clays/green_val.csv", header + "0,?,x,y,A\n")  # no subset of the benchmark
    write("fires/test_cat1.csv", ",harmful_request,safe_response\n0,burn it?,no\n")
    write("fires/test_cat2.csv", ",harmful_request,safe_response\n0,burn that?,never\n1,burn all?,never\n")
    write("fires/train_cat1.csv", ",harmful_request,safe_response\n0,burn?,no\n")
    write("glazes.jsonl", [{"question": f"q{n}", "options": ["x", "y"], "answer": "x"} for n in range(6)])
    write(
        "kilns.jsonl",
        [
            {"question": f"q{n}", "options": ["x", "y"], "answer": "y", "category": ["wood", "gas"][n % 2]}
            for n in range(8)
        ],
    )
    return tmp_path


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


# ---- names


def test_a_name_becomes_a_full_entry():
    [glazes, clays, pots] = resolve(["all"], POTTERY)
    assert glazes == Benchmark(name="glazes", path="acme/glazes")
    assert clays == Benchmark(
        name="clays",
        path="acme/clays",
        split="validation",
        subset="white/val.parquet, red/val.parquet, black/val.parquet",
        revision="v2",
    )
    assert pots == Benchmark(name="pots", path="world:test", limit=5)
    assert resolve([Benchmark(name="clays")], POTTERY) == resolve(["clays"], POTTERY) == [clays]
    assert [(entry.name, entry.limit) for entry in resolve(["quick"], POTTERY)] == [("glazes", 10), ("pots", 3)]
    assert resolve([], POTTERY) == []


def test_what_an_entry_says_goes_first():
    own = Benchmark(name="glazes", path="my.jsonl", limit=3)
    assert resolve([own], POTTERY) == [own]
    other = Benchmark(name="anything", path="my.jsonl")
    assert resolve([other], POTTERY) == [other]
    [clays] = resolve([Benchmark(name="clays", subset="red", seed=4, limit=9, split="dev")], POTTERY)
    assert clays == Benchmark(
        name="clays", path="acme/clays", subset="red/val.parquet", seed=4, limit=9, split="dev", revision="v2"
    )
    dumped = Benchmark(**Benchmark(name="clays").model_dump())  # from a resolved recipe: every field is set
    assert resolve([dumped], POTTERY) == resolve(["clays"], POTTERY)
    assert [(e.name, e.limit) for e in resolve([Benchmark(name="quick", limit=2)], POTTERY)] == [
        ("glazes", 2),
        ("pots", 2),
    ]


def test_each_benchmark_once():
    def limits(*names: str | Benchmark) -> list[tuple[str, int | None]]:
        return [(entry.name, entry.limit) for entry in resolve(names, POTTERY)]

    assert limits("quick", "all") == [("glazes", 10), ("pots", 3), ("clays", None)]
    assert limits("quick", Benchmark(name="glazes", limit=4)) == [("glazes", 4), ("pots", 3)]
    assert limits(Benchmark(name="glazes", limit=4), "quick") == [("glazes", 4), ("pots", 3)]
    with pytest.raises(DanluError, match="two benchmarks are called 'glazes'"):
        limits("glazes", Benchmark(name="glazes", path="x.jsonl"))


def test_unknown_names_get_the_nearest_and_the_list():
    with pytest.raises(
        DanluError,
        match=r"no benchmark or suite 'glaze' in the domain pottery\nhint: did you mean glazes\? "
        r"suites: quick, all; benchmarks: glazes, clays, fires, kilns, pots; or give it a path",
    ):
        resolve(["glaze"], POTTERY)
    bare = Domain("bare", terms=list)
    with pytest.raises(DanluError, match="hint: suites: none; benchmarks: none; or give it a path"):
        resolve(["xyz"], bare)
    with pytest.raises(DanluError, match="benchmark glazes has no path"):
        questions(Benchmark(name="glazes"))


# ---- a folder of the field's own files


def test_the_folder_is_looked_through_first(bench, monkeypatch):
    [glazes, clays, pots] = resolve(["all"], POTTERY, bench)
    assert glazes == Benchmark(name="glazes", path=f"{bench}/glazes.jsonl")
    assert clays == Benchmark(name="clays", path=f"{bench}/clays/*_val.csv", subset="white, red", split="validation")
    assert pots.path == "world:test"
    monkeypatch.setenv(VARIABLE, str(bench))
    assert resolve(["all"], POTTERY) == [glazes, clays, pots]
    [red] = resolve([Benchmark(name="clays", subset="red")], POTTERY)
    assert (red.path, red.subset) == (f"{bench}/clays/*_val.csv", "red")
    [black] = resolve([Benchmark(name="clays", subset="black")], POTTERY)
    assert (black.path, black.subset, black.revision) == ("acme/clays", "black/val.parquet", "v2")
    [fires] = resolve(["fires"], POTTERY)
    assert (fires.path, fires.subset) == (f"{bench}/fires/test_*.csv", None)


def test_a_subject_column_only_where_the_file_has_it(bench, write):
    assert resolve(["kilns"], POTTERY, bench)[0].columns == {"subject": "category"}
    write("kilns.jsonl", [{"question": "q", "options": ["x", "y"], "answer": "y"}])
    [kilns] = resolve(["kilns"], POTTERY, bench)
    assert kilns.columns == {}
    assert len(questions(kilns, POTTERY).rows) == 1
    assert resolve(["kilns"], POTTERY)[0].columns == {"subject": "category"}


def test_a_folder_that_is_none(tmp_path, monkeypatch):
    with pytest.raises(DanluError, match=r"nowhere is no folder\nhint: .* unset DANLU_BENCH"):
        resolve(["quick"], POTTERY, tmp_path / "nowhere")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(DanluError, match="nowhere is no folder"):
        resolve(["quick"], POTTERY)


# ---- rows


def test_several_files_are_one_benchmark(bench):
    [clays] = resolve(["clays"], POTTERY, bench)
    loaded = questions(clays, POTTERY)
    assert [(row.id, row.target) for row in loaded.rows] == [
        ("white/0", "A"),
        ("white/1", "B"),
        ("red/0", "A"),
        ("red/2", "B"),
    ]
    assert [row.meta for row in loaded.rows[1:3]] == [
        {"subject": "white", "language": "zh"},
        {"subject": "red", "language": "zh"},
    ]
    assert [(Path(bad.origin).name, bad.line) for bad in loaded.rejected] == [("red_val.csv", 3)]
    assert loaded.rejected[0].reason == "the gold answer is 'nan', a missing value written as text"
    assert (loaded.read, loaded.origin) == (5, f"{bench}/clays/*_val.csv")
    everything = questions(Benchmark(name="mine", path=f"{bench}/clays/*_val.csv"))
    assert [row.meta["subject"] for row in everything.rows] == ["green", "red", "red", "white", "white"]
    assert everything.rows[0].meta["language"] == "en"  # by its letters


def test_the_limit_is_a_seeded_sample_of_all_parts(bench):
    [clays] = resolve([Benchmark(name="clays", limit=2)], POTTERY, bench)
    ids = {tuple(row.id for row in questions(clays.model_copy(update={"seed": s}), POTTERY).rows) for s in range(8)}
    assert all(len(chosen) == 2 for chosen in ids)
    assert len(ids) > 2
    again = questions(clays, POTTERY)
    assert again == questions(clays, POTTERY)
    assert again.read == 2 + len(again.rejected)


def test_only_some_subjects(bench):
    [kilns] = resolve([Benchmark(name="kilns", limit=3)], POTTERY, bench)
    rows = questions(kilns, POTTERY).rows
    assert len(rows) == 3
    assert {row.meta["subject"] for row in rows} == {"wood"}
    assert len(questions(kilns).rows) == 3  # without the domain it is a file like any other
    assert len(questions(resolve(["kilns"], POTTERY, bench)[0], POTTERY).rows) == 4


def test_subsets_of_a_folder_or_hub(tmp_path, write):
    for name in ("a", "b"):
        row = {"question": name, "options": ["x", "y"], "answer": "x"}
        write(f"{name}/test-00000-of-00001.jsonl", [row, row])
    rows = questions(Benchmark(name="mine", path=str(tmp_path), subset="b, a")).rows
    assert [row.meta["subject"] for row in rows] == ["b", "b", "a", "a"]
    assert len({row.id for row in rows}) == 4
    [one] = sources(Benchmark(name="mine", path=str(tmp_path), subset="b", limit=1))
    assert one == ("", Source(path=str(tmp_path), subset="b", split="test", limit=1))
    parts = sources(resolve(["clays"], POTTERY)[0])
    assert [(subject, part.subset, part.revision) for subject, part in parts] == [
        (name, f"{name}/val.parquet", "v2") for name in ("white", "red", "black")
    ]


ASK = """
import json, sys
from danlu.data.suites import questions
from danlu.recipe import Benchmark
loaded = questions(Benchmark(**json.loads(sys.argv[1])))
print(json.dumps([[row.id, row.target, row.meta["subject"]] for row in loaded.rows]))
"""


def test_the_hubs_own_conversion_is_read(hub, tmp_path):
    """A branch with slashes in its name and no README, one file for each subject."""
    row = json.dumps({"Question": "q", "A": "x", "B": "y", "Answer": "B"}).encode()
    files = {f"{name}/{split}/0000.jsonl": row for name in ("red", "white") for split in ("dev", "val", "test")}
    endpoint = hub({"README.md": b"", "pots.zip": b"PK"}, **{"refs%2Fconvert%2Fparquet": files})
    entry = {
        "name": "clays",
        "path": "acme/pots",
        "subset": "red/val/0000.jsonl, white/val/0000.jsonl",
        "revision": "refs/convert/parquet",
    }
    settings = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(entry)],
        env={**os.environ, "HF_HUB_ETAG_TIMEOUT": "2", **settings},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    [red, white] = json.loads(done.stdout)
    assert (red[0].partition("/")[0], red[1], red[2]) == ("red", "B", "red")
    assert white[2] == "white"


def test_missing_files(bench):
    with pytest.raises(DanluError, match=r"has no file for blue\nhint: there are: green, red, white"):
        questions(Benchmark(name="x", path=f"{bench}/clays/*_val.csv", subset="red, blue"))
    with pytest.raises(DanluError, match=r"no file is .*/nowhere/\*.csv"):
        questions(Benchmark(name="x", path=f"{bench}/nowhere/*.csv"))


def test_rows_of_a_world():
    rows = questions(resolve(["pots"], POTTERY)[0], POTTERY).rows
    assert [row.id for row in rows] == [f"test-{n}" for n in range(5)]
    assert rows[0].meta == {"language": "zh"}


def test_rows_that_need_a_judge_are_kept_and_only_here(bench, write):
    [fires] = resolve(["fires"], POTTERY, bench)
    rows = questions(fires, POTTERY).rows
    assert [(row.id, row.target, row.answer) for row in rows] == [
        ("cat1/0", None, "no"),
        ("cat2/0", None, "never"),
        ("cat2/1", None, "never"),
    ]
    assert rows[2].meta == {"task": "refusal", "subject": "cat2", "language": "en"}
    assert all(judged(row) for row in rows)
    elsewhere = load(Source(path=f"{bench}/fires/test_cat1.csv"), on_bad_row="skip", needs="target")
    assert [bad.reason.partition(" (")[0] for bad in elsewhere.rejected] == ["no gold target"]
    strict = BenchmarkSpec("fires", "x", "no smoke", "safety", "en", "MIT", rule={"must_any": [["no"]]})
    [first, *_] = questions(fires, Domain("strict", terms=list, benchmarks={"fires": strict})).rows
    assert (first.target, first.meta["rule"], judged(first)) == ("rule", {"must_any": [["no"]]}, False)
    path = write("rubrics.jsonl", [{"prompt": "q", "rubrics": [{"criterion": "c", "points": 1}]}])
    [row] = questions(Benchmark(name="mine", path=path)).rows
    assert judged(row)
    assert not judged(Sample("x", row.messages, answer="a"))
    assert not judged(Sample("x", row.messages, target="t", meta=row.meta))


def test_rows_without_gold_are_rejected_with_their_line(write):
    path = write("a.jsonl", [{"question": "q", "response": "a"}, {"question": "q2", "target": "t"}])
    loaded = questions(Benchmark(name="mine", path=path))
    assert [row.target for row in loaded.rows] == ["t"]
    assert [(bad.line, bad.reason.partition(" (")[0]) for bad in loaded.rejected] == [(1, "no gold target")]
    ask = {"messages": [{"role": "user", "content": "q"}], "answer": "a"}
    path = write("b.jsonl", [{**ask, "id": "1", "meta": {"task": "refusal"}}, {**ask, "id": "2", "meta": {}}])
    loaded = questions(Benchmark(name="mine", path=path))
    assert [row.id for row in loaded.rows] == ["1"]
    assert [bad.reason for bad in loaded.rejected] == ["no gold target (row 2)"]
    assert loaded.read == 2


# ---- a user's own file, and the schemas of published ones


def test_a_users_own_file(write):
    rows = [
        {"question": "谁?", "options": {"A": "甲", "B": "乙"}, "answer": "B"},
        {"question": "何?", "options": ["甲", "乙"], "answer": "甲"},
        {"question": "何时?", "options": None, "answer": "清明节", "aliases": ["清明"]},
    ]
    found = questions(Benchmark(name="mine", path=write("a.jsonl", rows))).rows
    assert [(row.target, row.aliases) for row in found] == [("B", ()), ("A", ()), ("清明节", ("清明",))]
    assert {row.meta["language"] for row in found} == {"zh"}
    path = write("b.csv", "question,answer,aliases,subject\nWho?,the potter,potter|a potter,people\n")
    [row] = questions(Benchmark(name="mine", path=path)).rows
    assert (row.target, row.aliases) == ("the potter", ("potter", "a potter"))
    assert row.meta == {"subject": "people", "language": "en"}


# ---- medicine and the real files


REAL = {  # rows read, kept, with several gold letters
    "cmexam": (1360, 1359, 59),  # one of the last 60 has the gold "nan"
    "medqa-zh": (400, 400, 0),
    "cmmlu-medical": (360, 360, 0),
    "ceval-medical": (90, 90, 0),
    "medqa-us": (400, 400, 0),
    "medmcqa": (800, 800, 0),
    "pubmedqa": (200, 200, 0),
    "mmlu-medical": (240, 240, 0),
    "medhalt-fake": (150, 150, 0),
    "medsafetybench": (135, 135, 0),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(name: str, shared_data: Path):
    medicine = domains.load("medical")
    spec = medicine.benchmarks[name]
    [entry] = resolve([name], medicine, shared_data / "bench")
    assert str(entry.path).startswith(str(shared_data))
    loaded = questions(entry, medicine)
    several = [row for row in loaded.rows if row.options and len(row.target or "") > 1]
    assert (loaded.read, len(loaded.rows), len(several)) == REAL[name]
    assert {row.meta["language"] for row in loaded.rows} == {spec.language}
    assert len({row.id for row in loaded.rows}) == len(loaded.rows)
    assert json.dumps([row.to_dict() for row in loaded.rows])
    if spec.kind in ("choice", "abstention"):
        assert all(row.options and set(row.target or "-") <= set(row.options) for row in loaded.rows)
    else:
        assert all(row.target == "rule" and row.meta["rule"] and row.answer for row in loaded.rows)
    subjects = {row.meta["subject"] for row in loaded.rows if "subject" in row.meta}
    expected = {"medmcqa": 20, "medhalt-fake": 25, "medqa-us": 2, "cmmlu-medical": 3, "ceval-medical": 3}
    assert len(subjects) == {**expected, "mmlu-medical": 2, "medsafetybench": 9}.get(name, 0)


def test_other_real_files(shared_data: Path):
    for file, rows in (("bench/cmexam_test_single.json", 700), ("rl/medical_o1_verifiable_problem.json", 150)):
        loaded = questions(Benchmark(name="mine", path=str(shared_data / file)))
        assert (len(loaded.rows), loaded.rejected) == (rows, [])
        assert all(row.target for row in loaded.rows)


def test_quick_needs_no_network_but_for_the_probes(shared_data: Path):
    medicine = domains.load("medical")
    entries = [e for e in resolve(["quick"], medicine, shared_data / "bench") if e.path != "probes:safety"]
    counts = {entry.name: len(questions(entry, medicine).rows) for entry in entries}
    asked = dict(medicine.suites["quick"])
    assert counts == {name: asked[name] for name in counts}
    assert len(counts) == len(asked) - 1
