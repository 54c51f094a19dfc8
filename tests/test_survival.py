"""Kills, SIGTERM, damaged checkpoints, two runs at once: nothing is lost and nothing differs."""

import errno
import filecmp
import json
import signal
import subprocess
import sys
import time
from random import Random

import kills
import pytest
import torch
from makers import (
    LONGER,
    ROOT,
    STUDY,
    command,
    pretraining,
    stop_training,
    trained,
    write_study,
)

from helpers.base import config, files
from helpers.base.errors import PREEMPTED, Preempted, UserError
from helpers.train import checkpoint, pretrain


def kept(folder, steps=(2, 4, 6)):
    for step in steps:
        checkpoint.save(folder, *trained(step), {"spec": "a", "step": step})
    return sorted(folder.glob("checkpoint-*"))


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_last_two_are_kept_and_the_newest_is_taken(tmp_path):
    paths = kept(tmp_path)
    names = [f"checkpoint-a-00000000{n}.safetensors" for n in (4, 6)]
    assert [path.name for path in paths] == names
    model, optimiser = trained(0)
    assert checkpoint.load(tmp_path, "a", model, optimiser)["step"] == 6
    wanted, theirs = trained(6)
    assert same(model, wanted)
    for parameter, other in zip(model.parameters(), wanted.parameters(), strict=True):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimiser.state[parameter][key], theirs.state[other][key])
    assert checkpoint.load(tmp_path, "another", *trained(0)) is None
    checkpoint.clear(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["flip", "text"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    older, newest = kept(tmp_path)
    data = bytearray(newest.read_bytes())
    data[-3] ^= 1  # one bit of one weight
    newest.write_bytes(data if damage == "flip" else b"{}")
    model, optimiser = trained(0)
    with pytest.warns(UserWarning, match=r"checkpoint-a-000000006\.safetensors: damaged"):
        assert checkpoint.load(tmp_path, "a", model, optimiser)["step"] == 4
    assert same(model, trained(4)[0])
    older.write_bytes(b"")
    with (
        pytest.warns(UserWarning),
        pytest.raises(UserError, match=r"checkpoint-a-000000004\.safetensors: damaged.*delete it"),
    ):
        checkpoint.load(tmp_path, "a", *trained(0))


def test_a_checkpoint_is_due_by_steps_or_by_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    timer = checkpoint.Timer(10, 2.0)
    assert [step for step in range(1, 21) if timer.due(step)] == [10, 20]
    now[0] += 121
    assert timer.due(21)
    assert not timer.due(22)
    assert not checkpoint.Timer(10, 0.0).due(22)


@pytest.mark.parametrize("model", ["bert", "electra-deberta"])
def test_sigterm_saves_and_the_next_run_ends_with_the_same_bytes(
    small_run, own_run, tmp_path, monkeypatch, model
):
    go_on = stop_training(monkeypatch, at=6)
    drive = tmp_path / "drive"
    with pytest.raises(Preempted, match="stopped, saved at step 7; run it again"):
        pretrain.run(pretraining(own_run, model, checkpoints=str(drive), checkpoint_steps=1000))
    (found,) = drive.rglob("checkpoint-*")
    assert found.parts[-4:-1] == (own_run.profile, "pretrain", model)
    go_on()
    pretrain.run(pretraining(own_run, model, checkpoints=str(drive)))
    for name in ("encoder/model.safetensors", "log.csv"):
        whole = small_run.folder / "models" / model / name
        assert filecmp.cmp(whole, own_run.folder / "models" / model / name, shallow=False), name
    assert not list(drive.rglob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_preempted_notebook_exits_with_its_own_status(own_run, number):
    values = own_run.stage(config.Pretrain, model="bert") | {"pretrain_steps": 100_000}
    values |= {"checkpoint_steps": 100_000}
    out = own_run.folder / "notebooks" / "03_pretrain-bert.ipynb"
    call = [sys.executable, "-m", "helpers.study.notebook", "notebooks/03_pretrain.ipynb", out]
    call += [json.dumps(values)]
    process = subprocess.Popen(call, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:  # the first line of progress: training has begun
        if "pre-train bert" in line:
            break
    time.sleep(2)
    began = time.monotonic()
    process.send_signal(number)
    said = process.stderr.read()
    assert process.wait(20) == PREEMPTED
    assert time.monotonic() - began < 10
    assert "stopped, saved at step" in said
    assert len(list((own_run.folder / "models" / "bert").glob("checkpoint-*"))) == 1


@pytest.mark.slow
def test_kills_in_training_change_nothing(tmp_path):
    done = command("tests/kills.py", tmp_path, 6)
    assert done.returncode == 0, done.stderr[-2000:]
    whole, cut = (kills.outcome(kills.profile(tmp_path / n).folder) for n in ("whole", "cut"))
    assert whole == cut
    # Weights and log; predictions and record of the model and the two floors on one task.
    assert len(whole) == 8


@pytest.mark.long
def test_kills_of_the_whole_study_change_nothing(tmp_path, whole_study):
    path = write_study(tmp_path, **LONGER)
    assert kills.kill_study([*STUDY, "run", "--profile", str(path), "--cores", "2"], 3, Random(0))
    assert kills.outcome(tmp_path / "study") == whole_study


def test_a_file_system_without_locks_holds_nothing(tmp_path, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with files.lock(tmp_path), files.lock(tmp_path):
        pass


def test_a_model_that_another_process_trains_is_left_alone(own_run):
    with (
        files.lock(own_run.folder / "models" / "bert"),
        pytest.raises(UserError, match="models/bert: in use by process"),
    ):
        pretrain.run(pretraining(own_run, "bert"))


def test_checkpoints_of_other_parameters_do_not_take_the_place_of_new_ones(tmp_path):
    kept(tmp_path, steps=(800, 900))
    path = checkpoint.save(tmp_path, *trained(1), {"spec": "b", "step": 100})
    assert list(tmp_path.iterdir()) == [path]
    assert checkpoint.load(tmp_path, "b", *trained(0))["step"] == 100
