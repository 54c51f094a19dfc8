"""The grid on Slurm: what is asked of it, and a Slurm of this machine that loses a node.

`make slurm-demo` runs a whole study through it.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import pytest
import yaml
from makers import ROOT
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

from helpers.base.errors import UserError

sys.path.insert(0, str(ROOT / "scripts"))
import slurm_demo

from helpers.study import cli

SITE = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
needs_slurm = pytest.mark.skipif(
    bool(slurm_demo.missing()), reason=f"not installed: {', '.join(slurm_demo.missing())}"
)


class Resources(dict):
    """A job's resources, as Snakemake gives them to an executor."""

    __getattr__ = dict.__getitem__


def asked(rule, **changes):
    """The options of sbatch for a job of a rule, by the profile."""
    values = SITE["default-resources"] | SITE["set-resources"].get(rule, {}) | changes
    values["slurm_extra"] = values["slurm_extra"].strip("'")
    job = argparse.Namespace(resources=Resources(values), threads=4)
    settings = argparse.Namespace(
        requeue=SITE["slurm-requeue"], no_requeue=False, qos=None, reservation=None
    )
    names = ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir")
    return get_submit_command(job, dict.fromkeys(names, "x"), settings) + set_gres_string(job)


def test_a_job_asks_for_a_gpu_and_comes_back_when_it_is_stopped():
    for rule in ("pretrain", "finetune"):
        call = asked(rule)
        assert "--gpus=1" in call
        assert "--requeue" in call
        assert "--signal=TERM@90" in call
        assert "--cpus-per-task=4" in call
    assert "--gpus" not in asked("train_tokenizer")
    # A cluster without GPUs.
    assert "--gpus" not in asked("pretrain", gpu=0)


def test_the_front_door_hands_the_profile_to_snakemake(monkeypatch):
    options = argparse.Namespace(cluster="profiles/slurm", cores=2)
    command = cli._where(options)
    assert command == ["--workflow-profile", str(ROOT / "profiles/slurm"), "--local-cores", "2"]
    assert "--cores" in cli._where(argparse.Namespace(cluster="", cores=2, gpu_jobs=1))
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "book", "CLUSTER=profiles/slurm"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert '--cluster="$CLUSTER"' in done.stdout


def test_a_folder_without_a_workflow_profile_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cluster '.*': no file config\.yaml"):
        cli._where(argparse.Namespace(cluster=str(tmp_path), cores=1))


def test_a_dry_run_groups_the_fine_tunings_of_a_model(tmp_path):
    profile = slurm_demo.profile(tmp_path, "runs")
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")),
            *("--directory", str(folder), "--workflow-profile", str(ROOT / "profiles" / "slurm")),
            *("--dry-run", "--quiet", "host", "--", "all"),
        ],
        cwd=ROOT,
        env=os.environ | {"PROFILE": str(profile), "CHANGES": json.dumps({})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    blocks = (done.stdout + done.stderr).split("Group job ")[1:]
    groups = {block.split()[0]: block.split("\nrule ")[0] for block in blocks}
    assert set(groups) == {f"finetune_{model}" for model in slurm_demo.STUDY["models"]}
    for name, block in groups.items():
        model = name.removeprefix("finetune_")
        for task in slurm_demo.STUDY["tasks"]:
            assert f"output: records/{model}/{task}/manifest.json" in block
        assert block.count("rule finetune:") == len(slurm_demo.STUDY["tasks"])


def wait(ready, seconds=90):
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.3)


@needs_slurm
@pytest.mark.long
def test_a_job_whose_node_dies_runs_again_and_nothing_is_left(tmp_path):
    log = tmp_path / "log"
    place = tmp_path / "cluster"
    place.mkdir()
    tmp_path.chmod(0o711)
    with slurm_demo.running(place) as cluster:
        cluster.ask(
            *("sbatch", "--requeue", "--gpus=1", "--comment=rule_x", "--output=/dev/null"),
            f"--wrap=echo $SLURMD_NODENAME >> {log}; srun sleep 600",
        )
        wait(lambda: log.exists() and cluster.job_of("x")[0])
        number, node = cluster.job_of("x")
        assert cluster.kill_node(node) >= 2
        wait(lambda: len(log.read_text().split()) == 2)
        first, second = log.read_text().split()
        assert (first, second) == (node, next(n for n in slurm_demo.NODES if n != node))
        assert cluster.job_of("x") == (number, second)
        assert cluster.left() > 0
    assert cluster.left() == 0
