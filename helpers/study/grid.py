"""Runs the jobs of a study through Snakemake, here or on a cluster, and prints its plan."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from helpers.base import config, files
from helpers.base.config import Profile
from helpers.base.errors import STOPS, Preempted, UserError
from helpers.data import glue
from helpers.model import registry

ROOT = Path(__file__).resolve().parents[2]
# A dry run, for what it says when it fails: `--quiet all` leaves out errors too.
NAMES_ERRORS = ["--dry-run", "--quiet", "host", "progress", "rules", "reason"]


def run(profile: Profile, cores: int, gpu_jobs: int, cluster: str) -> int:
    """Runs what is not finished, then prints the table and the page to open."""
    folder = profile.folder
    glue.announce(profile.source, profile.data, profile.tasks)
    where = snakemake_options(cores, gpu_jobs, cluster)
    with files.lock(folder) as lock:
        write_run(folder, profile)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]),
            # Snakemake keeps a cache in the home; a run keeps everything in its own folder.
            "XDG_CACHE_HOME": str(folder / ".cache"),
            **({} if cluster else {"RAYON_NUM_THREADS": str(cores)}),  # read by tokenizers
        }
        environment.pop("SNAKEMAKE_PROFILE", None)  # of other workflows on this machine
        command = [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")),
            *("--directory", str(folder), "--keep-going"),
            *("--rerun-incomplete", "--nolock"),  # the folder's lock is ours
            *where,
        ]
        # Data first: if it comes out the same, by checksum, what depends on it is not run again.
        for target in ("data", "all"):
            if status := _snakemake([*command, "--", target], environment, lock, bool(cluster)):
                why = _no_graph([*command, *NAMES_ERRORS, "--", target], environment)
                line = why or "the study is not finished; what failed is named above"
                print(f"error: {line}", file=sys.stderr)
                return status
    print_result(folder)
    return 0


def write_run(folder: Path, profile: Profile, **facts: object) -> None:
    """Writes ``run.json``: the parameters of a study, and what its pages are to tell of it."""
    parameters = profile.model_dump(exclude={"model", "tokenizer_kind"})
    files.write_json(folder / files.RUN, {"parameters": parameters, **facts})


def read_run(folder: Path) -> Profile:
    """The profile in a folder's ``run.json``."""
    values = files.read_json(folder / files.RUN)
    return config.validate(Profile, values["parameters"], files.RUN)


def print_result(folder: Path) -> None:
    """The table of scores, and the page to open."""
    print((folder / "tables" / "summary.txt").read_text(encoding="utf-8"))
    print(f"open {os.path.relpath(folder / 'book' / 'html' / 'index.html')}")


def snakemake_options(cores: int, gpu_jobs: int, cluster: str) -> list[str]:
    """Snakemake's options: within the cores and the GPU of this machine, or on a cluster."""
    if not cluster:
        gpu = ["--resources", f"gpu={gpu_jobs}"] if registry.device().type == "cuda" else []
        return ["--cores", str(cores), "--quiet", "all", *gpu]
    folder = files.resolve(cluster)
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"cluster {cluster!r}: no file config.yaml in this folder; profiles/slurm is one"
        )
    return ["--workflow-profile", str(folder), "--local-cores", str(cores)]


def _snakemake(command: list[str], environment: dict[str, str], lock: int, cluster: bool) -> int:
    """Runs Snakemake in a process group of its own; SIGINT and SIGTERM go to all of the group.

    Every training loop then saves what it has and ends. On a cluster SIGINT makes Snakemake cancel
    its jobs, which get SIGTERM from Slurm; at SIGTERM it would wait for them. Raises `Preempted`
    when the group has ended after either.
    """
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, pass_fds=(lock,), process_group=0
    )
    asked = []

    def forward(number: int, _: object) -> None:
        asked.append(number)
        os.killpg(process.pid, signal.SIGINT if cluster else number)

    before = {n: signal.signal(n, forward) for n in STOPS}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise Preempted("stopped; run it again to go on")
    return status


def _no_graph(command: list[str], environment: dict[str, str]) -> str:
    """Why Snakemake cannot tell which jobs there are; empty where it can: then a job has failed."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, env=environment, cwd=ROOT, **pipe)
    said = re.split(r"Building DAG of jobs\.\.\.|__main__\.py: error:", done.stdout)[-1]
    return f"Snakemake: {' '.join(said.split())}" if done.returncode else ""


def print_parameters(profile: Profile, layers: dict[str, dict[str, object]]) -> None:
    """Prints every parameter with where it stands."""
    final = profile.model_dump()
    stands = {name: where for where, values in layers.items() for name in values}
    for where, values in layers.items():
        text = ", ".join(f"{n}={final[n]!r}" for n in values if stands[n] == where)
        print(textwrap.fill(f"from {where}: {text}", 100, subsequent_indent="  "), end="\n\n")


def print_jobs(profile: Profile) -> None:
    """Prints the jobs with their tokens and FLOPs, and the hours that they take."""
    from helpers.score import costs

    tasks = glue.announce(profile.source, profile.data, profile.tasks)
    print(f"{'job':<38}{'steps':>12}{'tokens':>12}{'FLOPs':>12}{'parameters':>13}")
    total = 0.0
    for name in profile.models:
        trained = registry.get(name).objective != "none"
        steps = costs.pretraining(name, profile).pretrain_steps * trained
        tokens = costs.tokens(name, profile) * trained
        spent = tokens * costs.flops(name, profile)
        size = f"{registry.count(registry.encoder(costs.outline(name, profile).model)):>13,}"
        rows = [(f"03_pretrain {name}", steps, tokens, spent, size)]
        for task in tasks:
            job = f"04_finetune {name} {task} x {len(profile.seeds)} seeds"
            rows.append((job, *costs.finetuning(profile, name, task), ""))
        for job, steps, tokens, work, size in rows:
            print(f"{job:<38}{steps:>12,}{tokens:>12.3g}{work:>12.3g}{size}")
            total += work
    rest = "; trials not counted" if profile.protocol == "tuned" else ", an upper bound"
    print(f"\nin all {total:.3g} FLOPs; fine-tuning counted at full length{rest}")
    gpus = costs.load(files.find("results/gpus.json")).values()
    peaks = {one.name: 3600 * costs.UTILISATION * one.peak_tflops * 1e12 for one in gpus}
    hours = ", ".join(f"{name} {total / peak:.3g}" for name, peak in peaks.items())
    share = f"{100 * costs.UTILISATION:.0f} % of a GPU's peak"
    print(f"hours at {share}, within a factor of two: {hours}")
