"""The speed table: every comparison runs, and its rows say what was measured."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import bench


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
    keys = {"work", "reference", "ours", "theirs", "ratio", "goal", "unit", "n"}
    assert all(keys <= set(row) and row["ratio"] > 0 and row["ours"] > 0 for row in rows)
    assert len({(row["work"], row["reference"]) for row in rows}) == len(rows) == 14
    assert all(row["work"] in done.stdout for row in rows)
