"""A run's state packed for another machine, and what is lost on the way."""

import hashlib
import json
import shutil
import sys
import time
import zipfile

import pytest
import torch
import yaml
from conftest import ROOT, command, small_profile
from safetensors.torch import load_file
from test_survival import trained

from helpers import carry, checkpoint, config, files
from helpers.config import UserError

sys.path.insert(0, str(ROOT / "scripts"))
import gpu_plan
import relay

DONE = {"roberta", "scratch"}
ROOM, PIECE = 30_000_000, 200_000


@pytest.fixture
def run(small_run, tmp_path):
    """Two models that are fine-tuned, one that is not, one under way."""
    folder = tmp_path / "run"
    for name in ("records", "models/roberta", "models/scratch", "models/bert"):
        shutil.copytree(small_run.folder / name, folder / name)
    return folder


def test_what_is_cheap_to_make_again_stays_behind(run, tmp_path):
    assert carry.pack(run, tmp_path / "out", ROOM, PIECE, DONE) == []
    pieces = sorted((tmp_path / "out").glob("carry-*"))
    assert len(pieces) > 1
    assert all(path.stat().st_size <= PIECE for path in pieces)
    there = tmp_path / "there"
    assert carry.unpack(tmp_path / "out", there) == []
    for path in run.rglob("seed-0.*"):
        assert (there / path.relative_to(run)).read_bytes() == path.read_bytes()
    assert not (there / "models" / "roberta" / "encoder").exists()
    spec = files.read_json(run / "models" / "bert" / "manifest.json")["spec"]
    assert files.sealed(there / "models" / "bert", spec)


def test_an_encoder_that_does_not_fit_is_rounded_and_still_vouched_for(run, tmp_path):
    model = run / "models" / "bert"
    encoder = model / carry.WEIGHTS
    size, whole = encoder.stat().st_size, load_file(encoder)
    assert carry.settle(model, size) == ""
    assert encoder.stat().st_size == size
    assert carry.settle(model, 2 * size // 3) == "bert: encoder rounded to bfloat16"
    assert carry.settle(model, 2 * size // 3) == ""  # it fits now
    room = 2**16 + 2 * size // 3 + 200_000
    assert carry.pack(run, tmp_path / "out", room, PIECE, DONE) == []
    there = tmp_path / "there"
    carry.unpack(tmp_path / "out", there)
    spec = files.read_json(model / "manifest.json")["spec"]
    assert files.sealed(model, spec)
    assert files.sealed(there / "models" / "bert", spec)
    mine = load_file(there / "models" / "bert" / carry.WEIGHTS)
    for name, tensor in whole.items():
        assert mine[name].dtype == tensor.dtype
        assert torch.equal(mine[name], tensor.bfloat16().float()), name
    lines = carry.pack(run, tmp_path / "out", 2**16 + 200_000, PIECE, DONE)
    assert lines == ["bert: encoder left behind, it will be pre-trained again"]
    with pytest.raises(UserError, match="limit = 70000 bytes: the records need"):
        carry.pack(run, tmp_path / "out", 70_000, PIECE, DONE)


def test_a_checkpoint_travels_light(run, tmp_path):
    state = {"spec": "a", "step": 200}
    path = checkpoint.save(run / "models" / "electra", *trained(200), state)
    (line,) = carry.pack(run, tmp_path / "out", ROOM, PIECE, DONE)
    assert line.startswith("models/electra: checkpoint with weights rounded to bfloat16")
    carry.unpack(tmp_path / "out", tmp_path / "there")
    place = tmp_path / "there" / "models" / "electra"
    assert checkpoint.load(place, "a", *trained(0))["step"] == 200
    whole = path.read_bytes()
    carry.unpack(tmp_path / "out", run)  # one that is there is better than a rounded one
    assert path.read_bytes() == whole


def test_damaged_or_foreign_pieces_are_refused(run, tmp_path):
    out, there = tmp_path / "out", tmp_path / "there"
    carry.pack(run, out, ROOM, PIECE, DONE)
    first = min(out.glob("carry-*"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match="its pieces are damaged; copy them again"):
        carry.unpack(out, there)
    first.unlink()
    with pytest.raises(UserError, match="-00: cannot be read: No such file"):
        carry.unpack(out, there)
    with zipfile.ZipFile(first, "w") as archive:
        archive.writestr("models/../../escaped", "x")
    about = {"pieces": [first.name], "lost": []}
    about["sha256"] = hashlib.sha256(first.read_bytes()).hexdigest()
    (out / "carry.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="escaped', which belongs in no run"):
        carry.unpack(out, there)
    assert not there.exists()


def relayed(monkeypatch, statuses):
    """Names of the jobs that a turn starts, with the status that each is to end with."""
    started = []

    def execute(job, executed, end):
        assert executed.name == f"{job.name}.ipynb"
        started.append(job.name)
        return statuses[len(started) - 1] if len(started) <= len(statuses) else 0

    monkeypatch.setattr(relay, "execute", execute)
    monkeypatch.setattr(carry, "settle", lambda *_: "")  # no model was made
    return started


def test_a_turn_goes_model_by_model_and_ends_in_time(tmp_path, monkeypatch):
    profile = small_profile(tmp_path, models=["electra", "roberta"], tasks=["rte"])
    started = relayed(monkeypatch, [])
    assert relay.turn(profile, time.monotonic() + 60).finished
    assert started == [
        "01_data",
        "02_tokenizer-bpe",
        "02_tokenizer-wordpiece",
        "03_pretrain-electra",
        "04_finetune-electra",
        "03_pretrain-roberta",
        "04_finetune-roberta",
    ]
    started = relayed(monkeypatch, [0, 0, 0, config.PREEMPTED])
    assert relay.turn(profile, time.monotonic() + 60) == (False, True)
    assert len(started) == 4
    assert relay.turn(profile, time.monotonic() - 1) == (False, False)
    relayed(monkeypatch, [0, config.PREEMPTED])
    with pytest.raises(UserError, match="minutes: data and tokenizers alone take longer"):
        relay.turn(profile, time.monotonic() + 60)
    relayed(monkeypatch, [0, config.PREEMPTED])
    assert not relay.turn(profile, time.monotonic() + 60, trained=True).finished
    relayed(monkeypatch, [0, 0, 0, 1])
    with pytest.raises(UserError, match="03_pretrain-electra: failed"):
        relay.turn(profile, time.monotonic() + 60)


def test_a_turn_passes_over_what_is_finished(small_run, tmp_path, monkeypatch):
    profile = small_profile(
        small_run.folder.parent, models=["roberta", "bert"], tasks=["cola", "mnli"], seeds=[0]
    )
    started = relayed(monkeypatch, [])
    assert relay.turn(profile, time.monotonic() + 60).finished
    assert [name for name in started if name >= "03"] == ["04_finetune-bert"]
    assert relay.finished(profile) == {"roberta"}


@pytest.mark.long
def test_the_gpu_plan_goes_on_from_call_to_call_on_new_machines(tmp_path):
    profile = small_profile(
        tmp_path / "runs", models=["scratch", "electra"], tasks=["rte"], seeds=[0]
    )
    path, state = tmp_path / "small.yaml", tmp_path / "state"
    path.write_text(yaml.safe_dump(profile.model_dump(exclude={"model", "tokenizer_kind"})))
    said = []
    for _ in range(12):
        done = command(
            *("scripts/gpu_plan.py", "--profile", str(path), "--state", str(state)),
            *("--out", str(state), "--minutes", "1.2", "--speed-minutes", "0.1", "--longer", "3"),
        )
        said.append(done.stderr)
        assert done.returncode in (0, config.PREEMPTED), done.stderr
        if done.returncode == 0:
            break
        shutil.rmtree(profile.folder.parent)  # the next machine is bare
    assert done.returncode == 0
    assert len(said) > 1
    assert "speed: stopped after" in said[0]
    assert not any("speed:" in text for text in said[1:])
    assert "best so far: electra; again on 3 times the tokens" in said[-1]
    steps = []
    for name in ("small", "small-longer"):
        run = profile.folder.parent / name
        steps += [
            files.read_json(run / "models" / "electra" / "manifest.json")["pretrain"]["steps"]
        ]
        assert (run / "records" / "electra" / "rte" / "seed-0.json").exists()
    assert steps == [12, 36]
    assert {path.name for path in state.iterdir()} == {"small", "small-longer", gpu_plan.SPEED}
