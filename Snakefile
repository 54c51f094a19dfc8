"""The study as a graph: one rule per stage, each job one notebook run by papermill.

`make book` calls it, through helpers/study/cli.py, in the run's folder: paths below are relative to
runs/<profile>, and two profiles never wait for each other's lock. Outputs are the manifests that
the stages write last; the executed notebook is a log, which Snakemake keeps when a job fails.

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

from helpers.base import config
from helpers.base.errors import UserError
from helpers.data import glue
from helpers.model import registry
from helpers.study import executed

try:
    PROFILE = config.load_profile(
        os.environ.get("PROFILE", "tiny"), **json.loads(os.environ.get("CHANGES", "{}"))
    )
    MODELS = {name: registry.get(name) for name in PROFILE.models}
    SIZE = registry.get_size(PROFILE.size)
    TASKS = glue.available(PROFILE.source, PROFILE.data, PROFILE.tasks)
    if Path.cwd().resolve() != PROFILE.folder.resolve():
        raise UserError(
            f"--directory must be {os.path.relpath(PROFILE.folder, ROOT)}, the run's folder"
        )
except UserError as error:
    sys.exit(f"error: {error}")

UP = os.path.relpath(ROOT)
# Every name and value in a shell command is quoted; these hold the folders of this machine.
PYTHON = shlex.quote(sys.executable)
# `exec`: the runner takes the place of the shell, which would end at SIGTERM before it has saved.
RUN = f"exec {PYTHON} -m helpers.study.notebook {{input.notebook:q}} {{log:q}} --parameters {{params.stage:q}}"
KINDS = sorted({spec.tokenizer for spec in MODELS.values()})
PER_TASK = PROFILE.finetune_job == "task"  # else one job per model with all its tasks
DATA = ["data/corpus/manifest.json"] + [f"data/glue/{task}/manifest.json" for task in glue.available(PROFILE.source, PROFILE.data, list(glue.TASKS))]
SHOWN = executed.shown(list(MODELS))
RECORDS = expand("records/{model}/{task}/manifest.json", model=MODELS, task=TASKS)
THREADS = PROFILE.threads


def notebook(stage):
    return f"{UP}/notebooks/{stage}.ipynb"


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
        expand("tokenizer/{kind}/manifest.json", kind=KINDS),
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
        "notebooks/01_data.ipynb",
    params:
        stage=parameters(config.Data),
        tasks=json.dumps(DATA),
    shell:
        RUN


rule train_tokenizer:
    input:
        corpus="data/corpus/manifest.json",
        notebook=notebook("02_tokenizer"),
    output:
        "tokenizer/{kind}/manifest.json",
    log:
        "notebooks/02_tokenizer-{kind}.ipynb",
    params:
        stage=lambda wildcards: parameters(config.Tokenizer, tokenizer_kind=wildcards.kind),
    shell:
        RUN


rule pretrain:
    input:
        tokens=lambda wildcards: f"tokenizer/{MODELS[wildcards.model].tokenizer}/manifest.json",
        notebook=notebook("03_pretrain"),
    output:
        "models/{model}/manifest.json",
    log:
        "notebooks/03_pretrain-{model}.ipynb",
    params:
        stage=lambda wildcards: parameters(config.Pretrain, model=wildcards.model),
        spec=lambda wildcards: json.dumps([registry.entry(MODELS[wildcards.model]), asdict(SIZE)]),
    threads: THREADS
    resources:
        gpu=1,
    priority: 10
    shell:
        RUN


rule finetune:
    input:
        model="models/{model}/manifest.json",
        tasks=lambda wildcards: [f"data/glue/{task}/manifest.json" for task in tasks(wildcards)],
        notebook=notebook("04_finetune"),
    output:
        "records/{model}/{task}/manifest.json"
        if PER_TASK
        else [f"records/{{model}}/{task}/manifest.json" for task in TASKS],
    log:
        f"notebooks/04_finetune-{{model}}{'-{task}' if PER_TASK else ''}.ipynb",
    params:
        stage=lambda wildcards: parameters(
            config.Finetune, model=wildcards.model, tasks=tasks(wildcards)
        ),
    threads: THREADS
    resources:
        gpu=1,
    shell:
        RUN


rule analyse:
    input:
        records=RECORDS,
        figures=[
            f"{UP}/results/{name}.json"
            for name in ("published", "bench", "curves", "profile", "gpus", "beyond")
        ],
        leaderboard=[
            f"{UP}/{p.relative_to(ROOT)}"
            for p in sorted((ROOT / "leaderboard").rglob("*"))
            if p.is_file()
        ],
        notebook=notebook("05_analysis"),
    output:
        "tables/summary.txt",
    log:
        "notebooks/05_analysis.ipynb",
    params:
        stage=parameters(config.Analysis),
    shell:
        RUN


# Of the published figures alone: it needs no other job, and runs with its notebook's defaults.
rule audit:
    input:
        figures=f"{UP}/results/published.json",
        notebook=notebook("06_audit"),
    output:
        touch("book/audited"),
    log:
        "notebooks/06_audit.ipynb",
    params:
        stage="{}",
    shell:
        RUN


rule book:
    input:
        "tables/summary.txt",
        "book/audited",
        f"{UP}/_config.yml",
        f"{UP}/_toc.yml",
        [f"{UP}/{p.relative_to(ROOT)}" for p in sorted((ROOT / "book").rglob("*")) if p.is_file() and "__pycache__" not in p.parts],
        f"{UP}/helpers/pages/build.py",
    output:
        touch("book/built"),
    params:
        notebooks=[
            "notebooks/01_data.ipynb",
            f"notebooks/02_tokenizer-{MODELS[SHOWN].tokenizer}.ipynb",
            f"notebooks/03_pretrain-{SHOWN}.ipynb",
            f"notebooks/04_finetune-{SHOWN}" + (f"-{TASKS[0]}" if PER_TASK else "") + ".ipynb",
            "notebooks/05_analysis.ipynb",
            "notebooks/06_audit.ipynb",
        ],
    shell:
        f"{PYTHON} -m helpers.pages.build --run . {{params.notebooks:q}}"
