"""Each notebook opened alone, as Colab opens it: no clone, its own torch, no stage before."""

import filecmp
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from makers import ROOT, SMALL, command, stop_training

from helpers.base import config, files
from helpers.base.errors import Preempted, UserError
from helpers.study import cli, prepare
from helpers.train import finetune, loop, pretrain

ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
BOOK = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
THERE = ("torch", "numpy", "pandas")


def notebook(stage):
    return nbformat.read(ROOT / "notebooks" / f"{stage}.ipynb", as_version=4)


def code_cells(stage):
    return [cell for cell in notebook(stage).cells if cell.cell_type == "code"]


# --- the setup cell

SETUP = code_cells("01_data")[0].source


@pytest.mark.parametrize("stage", config.NOTEBOOKS)
def test_every_notebook_begins_with_the_same_cell_then_its_parameters(stage):
    first, second, *_ = code_cells(stage)
    assert first.source == SETUP
    assert first.metadata.tags == ["remove-cell"]  # the book's pages leave it out
    assert "parameters" in second.metadata.tags


@pytest.fixture
def installs(monkeypatch):
    """The command lines of what is started."""
    found = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: found.append(command))
    return found


def hide_helpers(monkeypatch):
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "helpers" else find_spec(name)
    )


def test_in_a_checkout_the_cell_does_nothing(installs, monkeypatch):
    names: dict = {}
    exec(SETUP, names)
    hide_helpers(monkeypatch)
    monkeypatch.chdir(ROOT / "notebooks")  # where Jupyter starts a kernel, here without our package
    exec(SETUP, {})
    assert installs == []
    # What it leaves is not taken for a parameter.
    profile = config.load_profile("tiny").stage(config.Data)
    config.read(config.Data, names | profile)


@pytest.mark.parametrize("place", [".", "notebooks", "runs/tiny/notebooks"])
def test_in_a_checkout_its_own_code_runs(tmp_path, place):
    """As after `cp -r` of another, which the environment was made for."""
    (tmp_path / "helpers" / "base").mkdir(parents=True)
    (tmp_path / "helpers" / "__init__.py").touch()
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    code = f"{SETUP}\nimport helpers\nprint(helpers.__file__)"
    paths = {"cwd": tmp_path / place, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    done = command("-c", code, **paths)
    assert done.stdout.strip() == str(tmp_path / "helpers" / "__init__.py"), done.stderr


def test_the_files_of_a_checkout_and_the_code_of_another_are_not_mixed(tmp_path, monkeypatch):
    (tmp_path / "helpers" / "base").mkdir(parents=True)
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=f"{tmp_path}: is a checkout, but the code is that of {ROOT}"
    ):
        cli.command_line(["plan"])


def test_in_an_empty_folder_it_installs_beside_the_torch_that_is_there(
    installs, monkeypatch, tmp_path
):
    hide_helpers(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SMALL_BENCH_SOURCE", raising=False)
    names: dict = {}
    exec(SETUP, names)
    monkeypatch.setenv("SMALL_BENCH_SOURCE", "elsewhere")
    exec(SETUP, {})
    kept = [f"{name}=={version(name)}" for name in THERE]
    sources = [f"git+{ADDRESS}@{BOOK['branch']}", "elsewhere"]
    for line, source in zip(installs, sources, strict=True):
        assert line[:4] == [sys.executable, "-m", "pip", "install"]
        assert line[-4:] == [*kept, source]
    config.read(config.Data, names | config.load_profile("tiny").stage(config.Data))


def test_the_repository_has_one_address():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert BOOK["url"] == citation["repository-code"] == ADDRESS
    search = ["git", "grep", "-ohE", r"[a-z]+://[^/ ]*/[^/ ]+/small-bench-nlp"]
    done = subprocess.run(search, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert {line.removeprefix("git+") for line in done.stdout.split()} == {ADDRESS}


# --- precision


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)]
)
def test_a_t4_trains_in_float16_though_torch_emulates_bfloat16(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    found, reason = loop.choose_precision("auto", torch.device("cuda"))
    assert found == dtype
    assert f"{capability[0]}.{capability[1]}" in reason


# --- the stages before


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Makes parameters of a stage in a new run of a profile that came with the package."""
    monkeypatch.setattr(files, "SHIPPED", tmp_path / "shipped")
    values = config.load_profile("tiny").model_dump(exclude={"model", "tokenizer_kind"})
    values |= SMALL | {"profile": "brief", "runs": str(tmp_path / "runs")}
    files.write_text(tmp_path / "shipped" / "profiles" / "brief.yaml", yaml.safe_dump(values))

    def stage(cls, **changes):
        return cls(**config.load_profile("brief", **changes).stage(cls, **changes))

    return stage


def test_a_stage_alone_makes_the_ones_before(small, capsys):
    alone = small(config.Finetune, model="roberta", tasks=["cola"], seeds=[0])
    prepare.prepare(alone)
    lines = capsys.readouterr().out.splitlines()
    told = [line.split(":")[0] for line in lines if "not there" in line]
    assert told == ["data/glue/cola", "models/roberta", "tokenizer/bpe", "data/corpus"]
    (record,) = finetune.run(alone)
    assert record["pretrain"]["steps"] == SMALL["pretrain_steps"]
    capsys.readouterr()
    for cls in (config.Tokenizer, config.Pretrain, config.Finetune, config.Analysis):
        job = {"model": "roberta", "tokenizer_kind": "bpe", "tasks": ["cola"]}
        prepare.prepare(small(cls).model_copy(update=job))
    assert capsys.readouterr().out == ""  # nothing is lacking any more
    prepare.prepare(alone.model_copy(update={"max_length": 16}))
    assert capsys.readouterr().out == "not the recipe of profile brief: max_length = 16, there 64\n"


def test_segments_are_packed_to_the_length_that_is_asked_for(small):
    longer = small(config.Pretrain, max_length=96)
    prepare.prepare(longer)
    assert pretrain.run(longer)["specification"]["parameters"]["max_length"] == 96


@pytest.mark.parametrize(("profile", "source"), [("paper", "hub"), ("mine", "embedded")])
def test_nothing_is_made_of_another_source_or_an_unknown_profile(tmp_path, profile, source):
    values = config.load_profile("tiny").stage(config.Pretrain)
    stage = config.Pretrain(**values | {"profile": profile, "runs": str(tmp_path)})
    prepare.prepare(stage)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"run notebooks/02_tokenizer\.ipynb first"):
        pretrain.run(stage)


def test_a_misspelt_task_is_told_before_the_pre_training(small):
    with pytest.raises(UserError, match="did you mean cola"):
        prepare.prepare(small(config.Finetune).model_copy(update={"tasks": ["colla"]}))


# --- Google Drive


@pytest.fixture
def drive(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "DRIVE", tmp_path / "MyDrive")
    prepare.DRIVE.mkdir()
    return prepare.DRIVE / "small-bench-nlp" / "brief"


def test_a_new_machine_goes_on_from_drive_and_redoes_nothing_finished(
    small, drive, tmp_path, monkeypatch, capsys
):
    runs = tmp_path / "runs"
    job = small(config.Finetune, tasks=["rte"], seeds=[0])
    uncut = stop_training(monkeypatch, at=6)
    with pytest.raises(Preempted, match="saved at step 7"):
        prepare.prepare(job)
    uncut()
    (saved,) = [p.name for p in (drive / "models" / "bert").glob("*-000000007.safetensors")]
    assert not (drive / "data").exists()

    shutil.rmtree(runs)  # the machine is gone; removing a link leaves what it points to
    capsys.readouterr()
    prepare.prepare(job)
    assert "7/12" in capsys.readouterr().out, saved
    (record,) = finetune.run(job)

    shutil.rmtree(runs)
    prepare.prepare(job)
    assert not list((drive / "models").rglob("checkpoint-*"))
    assert finetune.run(job) == [record]

    monkeypatch.setattr(prepare, "DRIVE", tmp_path / "none")
    whole = small(config.Finetune, runs=str(tmp_path / "other"), tasks=["rte"], seeds=[0])
    prepare.prepare(whole)
    encoder = Path("models", "bert", "encoder", "model.safetensors")
    assert filecmp.cmp(drive / encoder, whole.folder / encoder, shallow=False)


def test_a_longer_pre_training_under_way_is_not_thrown_away(small, drive, monkeypatch):
    longer = small(config.Pretrain, pretrain_steps=20)
    prepare.prepare(longer)
    stop_training(monkeypatch, at=5)
    with pytest.raises(Preempted):
        pretrain.run(longer)
    with pytest.raises(UserError, match="checkpoints of a pre-training with other parameters"):
        prepare.prepare(small(config.Finetune, tasks=["rte"]))
    assert list((drive / "models" / "bert").glob("checkpoint-*"))


def test_what_was_made_before_drive_was_mounted_stays(small, drive, capsys):
    stage = small(config.Pretrain)
    (stage.folder / "models" / "bert").mkdir(parents=True)
    prepare.prepare(stage)
    assert "made before Drive was mounted" in capsys.readouterr().out
    assert not (stage.folder / "models").is_symlink()
    assert (stage.folder / "records").resolve() == drive / "records"


def test_a_drive_that_cannot_be_written_is_one_line(small, drive):
    drive.parent.write_text("")
    with pytest.raises(UserError, match="MyDrive/small-bench-nlp/brief: cannot write"):
        prepare.prepare(small(config.Pretrain))


# --- acted out


class Colab:
    """A virtual environment with what Colab has, and papermill to run notebooks in it."""

    def __init__(self, folder):
        self.folder, self.python = folder, folder / "venv" / "bin" / "python"
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PYTHON", "JUPYTER", "SMALL_BENCH", "VIRTUAL_ENV", "HF_"))
        } | {"PIP_NO_COMPILE": "1", "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1"}

    def command(self, *arguments, cwd=None):
        return subprocess.run(
            [str(self.python), "-m", *map(str, arguments)],
            cwd=cwd or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )

    def torch(self):
        """Version, bytes and times of the torch that is installed."""
        (about,) = (self.folder / "venv").rglob("torch-*.dist-info")
        code = about.parent / "torch" / "__init__.py"
        return about.name, (about / "RECORD").read_bytes(), code.stat().st_mtime_ns

    def open(self, stage, place, **parameters):
        """Runs one notebook in a folder that holds no more than it and what it has made."""
        place.mkdir(exist_ok=True)
        shutil.copy(ROOT / "notebooks" / f"{stage}.ipynb", place)
        given = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
        done = self.command(
            *("papermill", "--no-progress-bar", *given, f"{stage}.ipynb", "out.ipynb"), cwd=place
        )
        found = nbformat.read(place / "out.ipynb", as_version=4)
        setup = next(cell for cell in found.cells if cell.cell_type == "code")
        assert setup.execution_count, done.stderr[-2000:]
        assert setup.outputs == []
        return done


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    made = Colab(folder)
    done = made.command(
        *("pip", "install", "-q", "-c", ROOT / "constraints.txt", *THERE, "ipykernel", "papermill")
    )
    if done.returncode:
        pytest.skip(f"packages cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    site = next((folder / "venv").rglob("site-packages"))
    (site / "google" / "colab").mkdir(parents=True)
    (site / "google" / "colab" / "__init__.py").touch()
    (site / "colab.pth").write_text("import google.colab\n")  # loaded, as in Colab's kernels

    source = folder / "source"  # the tree as it is, committed or not
    names = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(names, text=True).splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    who = ("-c", "user.name=test", "-c", "user.email=test")
    for words in (("init", "-q"), ("add", "-A"), (*who, "commit", "-qm", "copy")):
        subprocess.run(["git", "-C", source, *words], check=True)
    made.environment["SMALL_BENCH_SOURCE"] = f"git+file://{source}"
    made.commit = subprocess.check_output(
        ["git", "-C", source, "rev-parse", "HEAD"], text=True
    ).strip()
    return made


def last_line(done):
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.long
def test_each_notebook_alone_in_an_empty_folder(colab, tmp_path):
    before = colab.torch()
    for stage, parameters in (
        ("06_audit", {}),
        ("01_data", {}),
        ("02_tokenizer", {}),
        ("03_pretrain", {"pretrain_steps": 20, "pretrain_warmup": 0.1}),
        ("04_finetune", {"model": "scratch", "tasks": "cola rte", "seeds": "0"}),
    ):
        done = colab.open(stage, tmp_path / stage, **parameters)
        assert done.returncode == 0, done.stderr[-2000:]
    assert colab.torch() == before

    done = colab.open("05_analysis", tmp_path / "05_analysis")
    assert done.returncode != 0
    assert "no record; run notebooks/04_finetune.ipynb first" in last_line(done)
    done = colab.open("05_analysis", tmp_path / "04_finetune")
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "04_finetune" / "runs" / "tiny"
    assert (run / "tables" / "summary.txt").exists()
    record = files.read_json(run / "records" / "scratch" / "cola" / "seed-0.json")
    assert record["code"] == {"commit": colab.commit, "clean": True}
