"""The grid on Slurm: what is asked of it, and a study through a Slurm that loses a node."""

import argparse
import subprocess

import cluster
import kills
import pytest
import yaml
from makers import LONGER, ROOT, STUDY, dry_run, run_grid, write_study
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

from helpers.base.errors import UserError
from helpers.study import grid

SITE = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
needs_slurm = pytest.mark.skipif(
    bool(cluster.MISSING), reason=f"not installed: {', '.join(cluster.MISSING)}"
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


def test_the_front_door_hands_the_profile_to_snakemake():
    asked = grid.snakemake_options(2, 1, "profiles/slurm")
    assert asked == ["--workflow-profile", str(ROOT / "profiles/slurm"), "--local-cores", "2"]
    assert "--cores" in grid.snakemake_options(2, 1, "")
    line = ["make", "--dry-run", "--always-make", "book", "CLUSTER=profiles/slurm"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert '--cluster="$CLUSTER"' in done.stdout


def test_a_folder_without_a_workflow_profile_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cluster '.*': no file config\.yaml"):
        grid.snakemake_options(1, 1, str(tmp_path))


@pytest.mark.slow
def test_a_workflow_profile_that_snakemake_refuses_is_one_line(tmp_path):
    (tmp_path / "config.yaml").write_text("executor: nobody")
    done = run_grid(write_study(tmp_path), "--cluster", tmp_path)
    assert done.returncode != 0
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: Snakemake: argument --executor/-e: invalid choice: 'nobody'")


def test_a_dry_run_groups_the_fine_tunings_of_a_model(tmp_path):
    study = write_study(tmp_path, **LONGER)
    said = dry_run(study, "--workflow-profile", ROOT / "profiles" / "slurm")
    blocks = said.split("Group job ")[1:]
    groups = {block.split()[0]: block.split("\nrule ")[0] for block in blocks}
    assert set(groups) == {f"finetune_{model}" for model in LONGER["models"]}
    for name, block in groups.items():
        model = name.removeprefix("finetune_")
        for task in LONGER["tasks"]:
            assert f"output: records/{model}/{task}/manifest.json" in block
        assert block.count("rule finetune:") == len(LONGER["tasks"])


# What a site sets in its copy of the profile; and times that suit jobs of seconds.
HERE = {
    "latency-wait": 20,
    "slurm-status-command": "squeue",  # there is no accounting
    "slurm-init-seconds-before-status-checks": 4,
}


def in_training(slurm, run, model, study):
    """Waits until a model has saved a checkpoint in training; id and node of its job."""
    found = []

    def ready():
        assert study.poll() is None, f"{model}: the study ended before it could be disturbed"
        found[:] = slurm.job_of(f"pretrain_wildcards_{model}")
        return found[0] and any((run / "models" / model).glob("checkpoint-*.safetensors"))

    cluster.wait(ready, 600, f"a checkpoint of {model}")
    return found


@needs_slurm
@pytest.mark.long
def test_a_study_whose_node_dies_ends_with_the_same_bytes(tmp_path, whole_study):
    """One pre-training loses its node, the other is preempted; each goes on from a checkpoint."""
    tmp_path.chmod(0o711)
    (tmp_path / "workflow").mkdir()
    (tmp_path / "workflow" / "config.yaml").write_text(yaml.safe_dump(SITE | HERE))
    run, path = tmp_path / "study", write_study(tmp_path, **LONGER)
    call = [*STUDY, "run", "--profile", str(path), "--cores", "2"]
    with cluster.running(tmp_path / "cluster") as slurm:
        study = subprocess.Popen(
            [*call, "--cluster", str(tmp_path / "workflow")], env=slurm.environment
        )
        try:
            number, node = in_training(slurm, run, "bert", study)
            assert slurm.kill_node(node) >= 2
            number, _ = in_training(slurm, run, "electra", study)
            slurm.ask("scontrol", "requeue", number)
            assert study.wait(1200) == 0
        finally:
            study.terminate()  # it ends its jobs first
            study.wait(120)
    assert not slurm.processes()
    assert kills.outcome(run) == whole_study
