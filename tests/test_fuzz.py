"""A short run of the fuzzing of scripts/fuzz.py, and what it takes for a finding."""

import subprocess
import sys

import pytest
from conftest import ROOT

from helpers.config import UserError

sys.path.insert(0, str(ROOT / "scripts"))
import fuzz


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    fuzz.prepare(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # of damaged checkpoints
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_damaged_files_are_read_or_refused_in_one_line(whole, target):
    found = [fuzz.attempt(target, seed, whole) for seed in range(12)]
    assert [line for verdict, line in found if verdict == "finding"] == []
    assert {verdict for verdict, _ in found} >= {"refused"}
    assert found[3][0] == fuzz.attempt(target, 3, whole)[0]  # a seed repeats its input


def raises(error):
    def read(whole, folder, chance):
        raise error

    return read


def leaves(whole, folder, chance):
    (folder / ".half.json").write_text("{")


def takes_wrong_weights(whole, folder, chance):
    raise AssertionError("wrong weights")


@pytest.mark.parametrize(
    ("reader", "says"),
    [
        (raises(KeyError("x")), "KeyError at "),
        (raises(UserError("")), "no plain line"),
        (takes_wrong_weights, "AssertionError at "),
        (leaves, "left behind: .half.json"),
    ],
)
def test_what_is_a_finding(monkeypatch, tmp_path, reader, says):
    monkeypatch.setitem(fuzz.TARGETS, "profile", reader)
    verdict, line = fuzz.attempt("profile", 0, tmp_path)
    assert verdict == "finding"
    assert line.startswith(says)


@pytest.mark.slow
def test_the_command_prints_what_it_tried():
    line = [sys.executable, "scripts/fuzz.py", "--target", "record", "--inputs", "5"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split()[:2] == ["all", "5"]
