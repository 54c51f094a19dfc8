"""The speed table: every comparison runs, and its rows say what was measured."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import bench

from helpers import tables
from helpers.config import UserError


def test_a_ratio_is_the_median_of_pairs_and_the_first_pair_is_thrown_away():
    theirs, ours = iter([90.0, 4.0, 6.0, 8.0]), iter([1.0, 2.0, 2.0, 2.0])
    work = bench.Work(
        "a", "b", "tokens/s", 10.0, 3, lambda _: next(ours), lambda _: next(theirs), 2.5
    )
    row = bench.compare(work, 3)
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == (3.0, 2.0, 4.0)
    assert (row["ours"], row["theirs"]) == (15.0, 5.0)
    assert (row["n"], row["goal"]) == (3, 2.5)


@pytest.mark.slow
def test_every_comparison_runs(tmp_path):
    out = tmp_path / "bench.json"
    small = ("--size", "tiny", "--pairs", "1", "--steps", "1", "--batch", "2", "--rows", "8")
    done = subprocess.run(
        [sys.executable, "scripts/bench.py", *small, "--threads", "1", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())["rows"]
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["theirs"]) for row in rows)
    assert tables.speed(tables.load_speed(out)).count("\n| ") == len(rows) + 2  # header and rule
    assert len({(row["work"], row["reference"]) for row in rows}) == len(rows) == 15
    assert all(row["work"] in done.stdout for row in rows)


@pytest.mark.parametrize(
    ("place", "key"),
    [((), "rows"), (("hardware",), "threads"), (("versions",), "torch"), (("rows", 0), "gflops")],
)
def test_a_missing_field_is_named(tmp_path, place, key):
    found = json.loads((ROOT / "results" / "bench.json").read_text())
    inner = found
    for step in place:
        inner = inner[step]
    del inner[key]
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=f"field {key} is missing"):
        tables.load_speed(path)
