"""A study's notebooks side by side, and training steps that are replayed."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, SMALL, command, small_profile

from helpers import config, files, finetune, models, replay, speeds
from helpers.config import UserError

sys.path.insert(0, str(ROOT / "scripts"))
import one_gpu

MADE = {"seeds": [0, 1], "tasks": ["cola", "rte"], "models": ["roberta", "scratch"]}


def beside(small_run, tmp_path):
    """A profile with the data, tokenizers and models of another run, and no records."""
    profile = small_profile(tmp_path / "runs", **MADE)
    for name in ("data", "tokenizer", "models"):
        profile.folder.mkdir(parents=True, exist_ok=True)
        (profile.folder / name).symlink_to(small_run.folder / name)
    return profile


def test_pretraining_comes_first_and_seeds_in_turn(small_run, tmp_path):
    profile = beside(small_run, tmp_path)
    names = [part.name for part in one_gpu.parts(profile)]
    assert names[:3] == ["01_data", "02_tokenizer-bpe", "02_tokenizer-wordpiece"]
    assert names[3:5] == ["03_pretrain-roberta", "03_pretrain-scratch"]
    assert names[5:] == [
        "04_finetune-roberta-seed-0",
        "04_finetune-scratch-seed-0",
        "04_finetune-roberta-seed-1",
        "04_finetune-scratch-seed-1",
        "04_finetune-roberta",
        "04_finetune-scratch",
    ]
    made = one_gpu.parts(profile, made=True)
    assert [part.name for part in made] == names[3:]
    for part in made:  # each need is a notebook that stands before
        assert set(part.needs) <= {other.name for other in made[: made.index(part)]}


@pytest.mark.slow
def test_side_by_side_gives_what_one_after_another_gives(small_run, tmp_path):
    profile = beside(small_run, tmp_path)
    one_gpu.share(profile)
    assert not one_gpu.run(profile, time.monotonic(), 4, made=True)  # no time at all
    assert one_gpu.run(profile, time.monotonic() + 600, 4, made=True)
    alone = small_profile(tmp_path / "alone", **MADE)
    for name in ("data", "tokenizer", "models"):
        alone.folder.mkdir(parents=True, exist_ok=True)
        (alone.folder / name).symlink_to(small_run.folder / name)
    for model in MADE["models"]:
        for record in finetune.run(config.Finetune(**alone.stage(config.Finetune, model=model))):
            place = f"records/{model}/{record['task']}/seed-{record['seed']}.json"
            other = files.read_json(profile.folder / place)
            assert other["predictions"] == record["predictions"]
            assert other["spec"] == record["spec"]
    found = one_gpu.report(profile)
    assert [row["model"] for row in found["models"]] == [
        path.parent.name
        for path in sorted(small_run.folder.glob("models/*/manifest.json"))
        if models.get(path.parent.name).objective != "none"
    ]
    assert {(cell["model"], cell["task"], cell["n"]) for cell in found["cells"]} == {
        (model, task, 2) for model in MADE["models"] for task in MADE["tasks"]
    }
    path = tmp_path / "side_by_side.json"
    files.write_json(path, found)
    assert "| roberta |" in speeds.side_by_side(speeds.load(path, speeds.SideBySide))

    records = sorted(profile.folder.glob("seeds/*/*/records/*/*/seed-*.json"))
    before = [record.stat().st_mtime_ns for record in records]
    assert one_gpu.run(profile, time.monotonic() + 600, 4, made=True)
    assert [record.stat().st_mtime_ns for record in records] == before  # nothing is trained again


@pytest.mark.slow
def test_a_notebook_that_fails_is_named_and_others_are_done(small_run, tmp_path):
    profile = beside(small_run, tmp_path).model_copy(update={"seeds": [0], "tasks": ["rte"]})
    (profile.folder / "models").unlink()
    (profile.folder / "models").mkdir()
    (profile.folder / "models" / "scratch").symlink_to(small_run.folder / "models" / "scratch")
    # The corpus of the other tokenizer is damaged, so RoBERTa cannot be pre-trained.
    (profile.folder / "tokenizer").unlink()
    (profile.folder / "tokenizer").mkdir()
    kind = small_run.folder / "tokenizer" / "wordpiece"
    (profile.folder / "tokenizer" / "wordpiece").symlink_to(kind)
    damaged = profile.folder / "tokenizer" / "bpe"
    shutil.copytree(small_run.folder / "tokenizer" / "bpe", damaged)
    (damaged / "tokens.bin").write_bytes(b"")
    one_gpu.share(profile)
    with pytest.raises(UserError, match=r"^03_pretrain-roberta: failed"):
        one_gpu.run(profile, time.monotonic() + 600, 4, made=True)
    assert (profile.folder / "records" / "scratch" / "rte" / "seed-0.json").exists()


def test_nothing_pretrained_is_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="no model is pre-trained"):
        one_gpu.report(small_profile(tmp_path))


def test_an_unknown_task_is_one_line():
    done = command("scripts/one_gpu.py", "--profile", "tiny", "--tasks", "colla", "--minutes", "0")
    assert done.returncode == 2
    assert "colla" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_published_run_reads_and_shows_every_model():
    path = ROOT / "results" / "side_by_side.json"
    text = speeds.side_by_side(speeds.load(path, speeds.SideBySide))
    for row in json.loads(path.read_text())["models"]:
        assert f"| {row['model']} | {row['tokens'] / 1e6:.1f} | {row['seconds']:.0f} |" in text


def test_steps_are_replayed_on_a_gpu_without_loss_scaling(monkeypatch):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert replay.possible(gpu, torch.bfloat16)
    assert not replay.possible(gpu, torch.float16)
    assert not replay.possible(cpu, torch.bfloat16)
    monkeypatch.setenv(replay.SWITCH, "0")
    assert not replay.possible(gpu, torch.bfloat16)


def test_without_a_gpu_a_step_is_called():
    calls = []

    def step(inputs):
        calls.append(inputs)
        return {"loss": inputs.pop("x") * 2}

    inputs = {"x": torch.ones(2)}
    for _ in range(3):
        assert replay.Replay(step, active=False)(inputs)["loss"].tolist() == [2, 2]
    assert len(calls) == 3
    assert "x" in inputs  # the caller's stay as they were


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_step_gives_the_losses_of_a_step_that_is_called():
    def losses(active):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5)).cuda()
        optimiser = torch.optim.AdamW(model.parameters(), fused=True, capturable=True)

        def step(inputs):
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = inputs["rate"]
            loss = model(inputs["x"]).square().mean()
            loss.backward()
            optimiser.step()
            return {"loss": loss.detach()}

        steps, found = replay.Replay(step, active), []
        for number in range(6):
            torch.manual_seed(number)
            inputs = {"x": torch.randn(4, 8, device="cuda"), "rate": torch.tensor(0.1).cuda()}
            found.append(steps(inputs)["loss"].item())
        assert bool(steps.recorded) == active
        return found

    assert losses(True) == pytest.approx(losses(False), rel=1e-5)


class Tokenizer:
    pad_token_id, model_input_names = 0, ("input_ids", "attention_mask")


@pytest.mark.parametrize(("longest", "length"), [(5, 16), (16, 16), (17, 32), (61, 62), (64, 64)])
def test_lengths_are_rounded_up_as_far_as_positions_reach(longest, length):
    lengths = np.array([3, longest])
    ids = np.full(lengths.sum(), 7, np.int32)
    zeros = np.zeros(2, np.int64)
    data = finetune.Encoded(ids, np.zeros(len(ids), np.uint8), lengths, zeros, zeros)
    index, cpu = np.arange(2), torch.device("cpu")
    batch = finetune.collate(data, index, Tokenizer, cpu, (16, 62))
    assert batch["input_ids"].shape == (2, length)
    assert batch["attention_mask"].sum(1).tolist() == lengths.tolist()
    assert finetune.collate(data, index, Tokenizer, cpu)["input_ids"].shape == (2, longest)


@pytest.mark.slow
def test_a_parcel_holds_all_that_another_machine_needs(tmp_path):
    values = SMALL | {"profile": "small", "runs": str(tmp_path / "runs"), "seeds": [0]}
    values |= {"models": ["roberta", "scratch"], "tasks": ["rte"]}
    path = tmp_path / "small.yaml"
    profile = yaml.safe_load((ROOT / "profiles" / "tiny.yaml").read_text())
    path.write_text(yaml.safe_dump(profile | values))
    parcel, work, out = (tmp_path / name for name in ("parcel", "work", "out"))
    done = command("scripts/offline.py", "--profile", str(path), "--to", str(parcel))
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "runs")  # the other machine has only the parcel
    start = ["bash", str(parcel / "start.sh"), str(work), str(out)]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(work / "code")}
    for minutes, status in (("0", 75), ("10", 0)):
        done = subprocess.run(
            [*start, "--minutes", minutes], capture_output=True, text=True, env=environment
        )
        assert done.returncode == status, done.stderr
    assert "01_data" not in done.stderr  # nothing is made again
    with tarfile.open(out / "records.tgz") as archive:
        names = set(archive.getnames())
    assert {f"./records/{model}/rte/seed-0.json" for model in values["models"]} <= names
    assert "./models/roberta/log.csv" in names


def test_a_python_that_is_no_version_is_refused(tmp_path):
    done = command("scripts/offline.py", "--to", str(tmp_path), "--wheels", "3.12.1; x")
    assert done.returncode == 2
    assert "--wheels 3.12.1; x: must be a version such as 3.12" in done.stderr
