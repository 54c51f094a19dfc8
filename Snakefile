"""The study as a graph: one rule per stage, each job one notebook run by papermill.

`small-bench run` calls it in the run's folder: paths below are relative to runs/<profile>, and two
profiles never wait for each other's lock. Which jobs there are follows from helpers/study/jobs.py.
Outputs are the manifests that the stages write last; the executed notebook is a log, which Snakemake
keeps when a job fails.

A job runs again when a parameter of its stage, its model's entry in the registry, its notebook or
an input has changed. Edits in helpers/ do not count: `make clean PROFILE=...` begins anew.
"""

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT))

from helpers.base import config, files
from helpers.base.errors import UserError
from helpers.data import glue
from helpers.model import registry
from helpers.study import grid, jobs
from helpers.study.notebook import executed

RUN = Path()
try:
    PROFILE = grid.read_run(RUN)
    JOBS = jobs.jobs(PROFILE)
    if RUN.resolve() != PROFILE.folder.resolve():
        raise UserError(
            f"--directory must be {os.path.relpath(PROFILE.folder, ROOT)}, the run's folder"
        )
    SIZE = asdict(registry.get_size(PROFILE.size))
    ALL_TASKS = glue.available(PROFILE.source, PROFILE.data, list(glue.TASKS))
except UserError as error:
    sys.exit(f"error: {error}")

UP = os.path.relpath(ROOT)
# Every name and value in a shell command is quoted; these hold the folders of this machine.
PYTHON = shlex.quote(sys.executable)
# `exec`: the runner takes the place of the shell, which would end at SIGTERM before it has saved.
NOTEBOOK = f"exec {PYTHON} -m helpers.study.notebook {{input.notebook:q}} {{log:q}} {{params.stage:q}}"
MODELS = [job.model for job in JOBS if job.stage == "03_pretrain"]
CELLS = [(job.model, task) for job in JOBS for task in job.tasks]
TASKS = list(dict.fromkeys(task for _, task in CELLS))
PER_TASK = PROFILE.finetune_job == "task"  # else one job per model with all its tasks
DATA = ["data/corpus/manifest.json", *(f"data/glue/{task}/manifest.json" for task in ALL_TASKS)]
RECORDS = [f"records/{model}/{task}/manifest.json" for model, task in CELLS]


def tracked(*folders):
    """The files in folders of the checkout."""
    found = sorted(path for name in folders for path in (ROOT / name).rglob("*"))
    return [f"{UP}/{path.relative_to(ROOT)}" for path in found if path.is_file() and "__pycache__" not in path.parts]


def notebook(stage):
    return f"{UP}/notebooks/{stage}.ipynb"


def data_files():
    """Name, size and time of each file of the data folder: where one changes, the data is read again."""
    folder = files.resolve(PROFILE.data) if PROFILE.source == "folder" else Path("none")
    found = sorted([*folder.glob("glue/*/*.parquet"), *folder.glob("corpus/**/*.parquet"), *folder.glob("*.yaml")])
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in found if path.is_file()]


def log_of(stage, *parts):
    return str(executed(RUN, stage, *parts))


def parameters(cls, **job):
    """A stage's parameters as one JSON text: what decides whether its job runs again."""
    return json.dumps(PROFILE.stage(cls, **job), sort_keys=True)


def tasks(wildcards):
    """The tasks of one fine-tuning job."""
    return [wildcards.task] if PER_TASK else TASKS


# On a cluster these run where Snakemake does: the first needs a network, the others take seconds.
localrules: all, data, prepare_data, analyse, audit, book


# Every stage's manifest, not the book alone: Snakemake passes over a missing file in the middle
# when what follows from it is there, and after a failure would show the tables of the run before.
rule all:
    input:
        DATA,
        expand("tokenizer/{kind}/manifest.json", kind=jobs.kinds(PROFILE)),
        expand("models/{model}/manifest.json", model=MODELS),
        RECORDS,
        "book/built",


rule data:
    input:
        DATA,


rule prepare_data:
    input:
        notebook=notebook("01_data"),
    output:
        DATA,
    log:
        log_of("01_data"),
    params:
        stage=parameters(config.Data),
        tasks=json.dumps(DATA),
        files=json.dumps(data_files()),
    shell:
        NOTEBOOK


rule train_tokenizer:
    input:
        corpus="data/corpus/manifest.json",
        notebook=notebook("02_tokenizer"),
    output:
        "tokenizer/{kind}/manifest.json",
    log:
        log_of("02_tokenizer", "{kind}"),
    params:
        stage=lambda wildcards: parameters(config.Tokenizer, tokenizer_kind=wildcards.kind),
    shell:
        NOTEBOOK


rule pretrain:
    input:
        tokens=lambda wildcards: f"tokenizer/{registry.get(wildcards.model).tokenizer}/manifest.json",
        notebook=notebook("03_pretrain"),
    output:
        "models/{model}/manifest.json",
    log:
        log_of("03_pretrain", "{model}"),
    params:
        stage=lambda wildcards: parameters(config.Pretrain, model=wildcards.model),
        spec=lambda wildcards: json.dumps([asdict(registry.get(wildcards.model)), SIZE]),
    threads: PROFILE.threads
    resources:
        gpu=1,
    priority: 10
    shell:
        NOTEBOOK


rule finetune:
    input:
        model="models/{model}/manifest.json",
        tasks=lambda wildcards: [f"data/glue/{task}/manifest.json" for task in tasks(wildcards)],
        notebook=notebook("04_finetune"),
    output:
        [f"records/{{model}}/{task}/manifest.json" for task in (["{task}"] if PER_TASK else TASKS)],
    log:
        log_of("04_finetune", "{model}", *["{task}"] * PER_TASK),
    params:
        stage=lambda wildcards: parameters(
            config.Finetune, model=wildcards.model, tasks=tasks(wildcards)
        ),
    threads: PROFILE.threads
    resources:
        gpu=1,
    shell:
        NOTEBOOK


rule analyse:
    input:
        records=RECORDS,
        figures=f"{UP}/results/published.json",
        notebook=notebook("05_analysis"),
    output:
        "tables/summary.txt",
    log:
        log_of("05_analysis"),
    params:
        stage=parameters(config.Analysis),
    shell:
        NOTEBOOK


# Of the published figures alone: it needs no other job, and runs with its notebook's defaults.
rule audit:
    input:
        figures=f"{UP}/results/published.json",
        notebook=notebook("06_audit"),
    output:
        touch("book/audited"),
    log:
        log_of("06_audit"),
    params:
        stage="{}",
    shell:
        NOTEBOOK


rule book:
    input:
        "tables/summary.txt",
        "book/audited",
        f"{UP}/_config.yml",
        f"{UP}/_toc.yml",
        tracked("book", "results", "leaderboard", "helpers"),
    output:
        touch("book/built"),
    params:
        notebooks=[f"notebooks/{job.name}.ipynb" for job in jobs.shown(JOBS).values()],
    shell:
        f"{PYTHON} -m helpers.pages.build . {{params.notebooks:q}}"
