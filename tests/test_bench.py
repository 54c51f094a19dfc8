"""The speed table and the losses beside it: every comparison runs and says what was measured."""

import json
import subprocess
import sys

import pytest
import torch
from makers import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import bench
import bench_curves
import bench_work


def test_a_ratio_is_the_median_of_pairs_and_the_first_pair_is_thrown_away():
    theirs, ours = iter([90.0, 4.0, 6.0, 8.0]), iter([30.0, 2.0, 2.0, 2.0])
    work = bench.Work(
        "a", "b", "tokens/s", 10.0, 3, lambda _: next(ours), lambda _: next(theirs), 2.5
    )
    row = bench.compare(work, 3)
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == (3.0, 2.0, 4.0)
    assert (row["ours"], row["theirs"]) == (15.0, 5.0)
    assert (row["warmup_ours"], row["warmup_theirs"]) == (28.0, 84.0)
    assert (row["n"], row["goal"]) == (3, 2.5)


def test_memory_is_what_a_step_holds_at_its_peak():
    size = 256 * 2**20

    def holds(count):
        def step(_):
            kept = [torch.ones(size // 4) for _ in range(count)]
            return float(len(kept))

        return step

    work = bench.Work("a", "b", "tokens/s", 1.0, 1, holds(1), holds(2))
    found = bench.memory(work, torch.device("cpu"))
    if found["memory_ours"] is None:
        pytest.skip("this system does not reset the peak of resident memory")
    assert found["memory_ours"] == pytest.approx(size, rel=0.1)
    assert found["memory_theirs"] == pytest.approx(2 * size, rel=0.1)


def script(name, *options, out):
    done = subprocess.run(
        [sys.executable, f"scripts/{name}", *options, "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_every_comparison_runs(tmp_path):
    out = tmp_path / "bench.json"
    small = ("--size", "tiny", "--pairs", "1", "--batch", "2", "--rows", "8", "--threads", "1")
    said = script("bench.py", *small, out=out)
    found = json.loads(out.read_text())
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["theirs"]) for row in found["rows"])
    assert (
        len({(row["work"], row["reference"]) for row in found["rows"]}) == len(found["rows"]) == 24
    )
    assert all(row["work"] in said for row in found["rows"])
    assert all(0 < row["mfu"] < 1 for row in found["rows"] if row["unit"] == "tokens/s")


@pytest.mark.slow
def test_a_profile_names_the_operations_of_a_step(tmp_path):
    out = tmp_path / "profile.json"
    said = script("bench_profile.py", "--size", "tiny", "--batch", "2", "--threads", "1", out=out)
    found = json.loads(out.read_text())
    assert {"aten::mm", "aten::bmm"} & set(found["shares"])
    assert 0.3 < sum(found["shares"].values()) <= 1
    assert all(name in said for name in found["shares"])


@pytest.mark.slow
def test_losses_of_both_sides_are_of_one_size(tmp_path):
    out = tmp_path / "curves.json"
    small = ("--size", "tiny", "--steps", "60", "--batch", "4", "--seeds", "1", "--threads", "1")
    script("bench_curves.py", *small, out=out)
    found = json.loads(out.read_text())
    assert len(found["runs"]) == len(bench_curves.MODELS) * len(bench_curves.SIDES)
    final = {(run["model"], run["side"]): run["final"] for run in found["runs"]}
    for name in bench_curves.MODELS:
        stock = final[name, "stock"]
        assert final[name, "ours, float32"] == pytest.approx(stock, rel=0.05)
        assert final[name, "ours, bfloat16"] == pytest.approx(stock, rel=0.05)


def test_gumbel_noise_and_the_inverted_distribution_sample_alike():
    tokens = torch.full((20_000, 1), 6)
    masked = bench_work.pretrain.Masked(
        tokens, torch.zeros_like(tokens), tokens, torch.ones(len(tokens), 1)
    )
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5]).expand(len(tokens), 1, 5)
    torch.manual_seed(0)
    shares = [
        corrupt(tokens, masked, logits)[0][:, 0].bincount(minlength=5) / len(tokens)
        for corrupt in (bench_work.corrupt_by_gumbel, bench_work.objectives.corrupt)
    ]
    torch.testing.assert_close(shares[0], shares[1], rtol=0, atol=0.02)
