"""The speed table and the losses beside it: every comparison runs and says what was measured."""

import re
import sys

import pytest
from makers import ROOT, command

sys.path.insert(0, str(ROOT / "scripts"))
import bench

from helpers.base import files


def test_a_ratio_is_the_median_of_pairs_and_the_first_pair_is_thrown_away():
    theirs, ours = iter([90.0, 4.0, 6.0, 8.0]), iter([30.0, 2.0, 2.0, 2.0])
    work = bench.Work("a", "b", "tokens/s", 10.0, 3, None, None)
    row = bench.compare(work, lambda _: next(ours), lambda _: next(theirs), 3)
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == (3.0, 2.0, 4.0)
    assert (row["ours"], row["theirs"]) == (15.0, 5.0)
    assert row["n"] == 3


# Both objectives and both kinds of attention.
MODELS = ("bert", "electra-deberta")
CODE = (
    f"import sys; sys.path[:0] = ['scripts']; import bench; bench.MODELS = {MODELS}; bench.main()"
)
SMALL = ("--size", "tiny", "--pairs", "1", "--batch", "2", "--rows", "8", "--threads", "1")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What one run of the script prints, and the two files it writes, at the smallest size."""
    out = tmp_path_factory.mktemp("bench")
    curves = ("--parts", "curves", "--size", "tiny", "--steps", "24", "--seeds", "1")
    said = ""
    for more in ((*SMALL, "--parts", "pretrain,finetune,pack"), curves):
        done = command("-c", CODE, *more, "--out", out)
        assert done.returncode == 0, done.stderr[-2000:]
        said += done.stdout
    return said, {n: files.read_json(out / f"{n}.json") for n in ("bench", "curves")}


@pytest.mark.slow
def test_every_file_has_the_fields_of_the_kept_one(measured):
    for name, found in measured[1].items():
        kept = files.read_json(ROOT / "results" / f"{name}.json")
        assert found.keys() == kept.keys()
        for rows in ("rows", "runs"):
            if rows in kept:
                assert all(row.keys() <= kept[rows][0].keys() for row in found[rows])


@pytest.mark.slow
def test_every_comparison_is_made(measured):
    said, rows = measured[0], measured[1]["bench"]["rows"]
    names = [re.sub(r" \(.*\)", "", row["work"]) for row in rows]
    wanted = []
    for model in MODELS:
        steps = [f"pre-train {model}, tiny, {dtype}" for dtype in ("float32", "bfloat16")]
        wanted += [*steps, f"{model}, tiny, bfloat16"]
    wanted += ["fine-tune CoLA", "fine-tune SST-2", "fine-tune RTE", "tokenise and pack, in memory"]
    assert names == wanted
    for row in rows:
        assert row["ratio"] == pytest.approx(row["ours"] / row["theirs"])
        assert row["work"] in said


@pytest.mark.slow
def test_losses_of_both_sides_are_of_one_size(measured):
    found = {(run["model"], run["side"]): run["final"] for run in measured[1]["curves"]["runs"]}
    assert len(found) == len(MODELS) * len(bench.SIDES)
    for (name, _), final in found.items():
        assert final == pytest.approx(found[name, "stock"], rel=0.05)
