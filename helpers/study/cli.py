"""The front door of the study: runs, plans or reports the grid of a profile.

`make book` calls `study.py run`; `make plan` and `make status` call the actions of their names,
`make run` calls `study.py notebook`. MODELS, TASKS and SEEDS narrow or widen the profile's own
lists; DATA names a folder and makes it the source.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from helpers.base import config, files
from helpers.base.config import Profile
from helpers.base.errors import Preempted, UserError, did_you_mean, run_main
from helpers.data import glue
from helpers.model import registry
from helpers.score import costs
from helpers.study import executed, jobs
from helpers.study import notebook as run_notebook

ROOT = Path(__file__).resolve().parents[2]
GPU = Path("/dev/nvidia0")


def load(options: argparse.Namespace) -> tuple[Profile, dict[str, str | int]]:
    """The profile with the command line's changes, checked against registry and tasks."""
    changes = {
        name: value
        for name in ("data", "models", "tasks", "seeds")
        if (value := getattr(options, name))
    }
    if options.steps:
        changes["pretrain_steps"] = _whole(options.steps)
    profile = config.load_profile(options.profile, **changes)
    registry.get_size(profile.size)
    for name in profile.models:
        costs.outline(name, profile)  # tells what makes no model before anything runs
    glue.available(profile.source, profile.data, profile.tasks)
    return profile, changes


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"STEPS = {text!r}: must be a whole number") from None


def run(options: argparse.Namespace) -> int:
    """Runs what is not finished, then prints the table and the page to open."""
    profile, changes = load(options)
    with files.lock(profile.folder) as lock:
        return _run(options, profile, changes, lock)


def _run(
    options: argparse.Namespace, profile: Profile, changes: dict[str, str | int], lock: int
) -> int:
    folder = profile.folder
    environment = os.environ | {
        "PROFILE": str(options.profile),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "CHANGES": json.dumps(changes),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # Snakemake keeps a cache in the home; a run keeps everything in its own folder.
        "XDG_CACHE_HOME": str(folder / ".cache"),
    }
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")),
        *("--directory", str(folder), "--keep-going"),
        *("--rerun-incomplete", "--nolock"),  # the folder's lock is ours
        *_where(options),
    ]
    # Data first: if it comes out the same, by checksum, what depends on it is not run again.
    for target in ("data", "all"):
        status = _forwarding([*command, "--", target], environment, lock, bool(options.cluster))
        if status:
            print("error: the study is not finished; what failed is named above", file=sys.stderr)
            return status
    print((folder / "tables" / "summary.txt").read_text(encoding="utf-8"))
    page = folder / "book" / "html" / "index.html"
    print(f"open {os.path.relpath(page)}")
    return 0


def _where(options: argparse.Namespace) -> list[str]:
    """Where jobs run: within the cores and the GPU of this machine, or on a cluster."""
    if not options.cluster:
        gpu = ["--resources", f"gpu={options.gpu_jobs}"] if GPU.exists() else []
        return ["--cores", str(options.cores), "--quiet", "all", *gpu]
    folder = files.resolve(options.cluster)
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"cluster {options.cluster!r}: no file config.yaml in this folder; "
            "profiles/slurm is one"
        )
    return ["--workflow-profile", str(folder), "--local-cores", str(options.cores)]


def _forwarding(command: list[str], environment: dict[str, str], lock: int, cluster: bool) -> int:
    """Runs Snakemake in a process group of its own; SIGINT and SIGTERM go to all of the group.

    Every training loop then saves what it has and ends. On a cluster SIGINT makes Snakemake cancel
    its jobs, which get SIGTERM from Slurm; at SIGTERM it would wait for them.

    Raises:
        Preempted: After SIGTERM, when the group has ended.
    """
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, pass_fds=(lock,), process_group=0
    )
    asked = []

    def forward(number: int, _: object) -> None:
        asked.append(number)
        os.killpg(process.pid, signal.SIGINT if cluster else number)

    before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGTERM in asked:
        raise Preempted("stopped by SIGTERM; run it again to go on")
    return status


def plan(options: argparse.Namespace) -> int:
    """Prints the jobs of a profile with tokens and FLOPs, without running anything."""
    profile, _ = load(options)
    tasks = glue.available(profile.source, profile.data, profile.tasks)
    print(f"profile {profile.profile}: source {profile.source}, size {profile.size}\n")
    head = ("job", "steps", "tokens", "FLOPs", "parameters")
    print(f"{head[0]:<38}{head[1]:>12}{head[2]:>12}{head[3]:>12}{head[4]:>13}")
    total = 0.0
    for name in profile.models:
        trained = registry.get(name).objective != "none"
        steps = costs.pretraining(name, profile).pretrain_steps * trained
        tokens = costs.tokens(name, profile) * trained
        flops = tokens * costs.flops(name, profile)
        encoder = registry.encoder(costs.outline(name, profile).model)
        _line(f"03_pretrain {name}", steps, tokens, flops, registry.count(encoder))
        total += flops
        for job in tasks:
            spent = costs.finetuning(profile, name, job)
            total += spent.flops
            _line(f"04_finetune {name} {job} x {len(profile.seeds)} seeds", *spent, None)
    print(f"\nin all {total:.3g} FLOPs; fine-tuning counted at full length, an upper bound")
    missing = [name for name in profile.tasks if name not in tasks]
    print("missing from the source: " + (", ".join(missing) or "none"))
    return 0


def status(options: argparse.Namespace) -> int:
    """Prints how far every job has come and how long the rest will take."""
    profile, _ = load(options)
    found = jobs.survey(profile)
    holder = files.lock_holder(profile.folder)
    about = f"held by process {holder}" if holder else "no grid is running"
    print(f"profile {profile.profile}, {os.path.relpath(profile.folder)}: {about}\n")
    print(jobs.table(found))
    beside = options.gpu_jobs if GPU.exists() else max(1, options.cores // profile.threads)
    print("\n".join(["", *jobs.rest(found, beside)]).rstrip())
    return 0


def notebook(options: argparse.Namespace) -> int:
    """Runs one notebook with a profile's parameters and changes of them, as papermill would."""
    profile, _ = load(options)
    stage = options.notebook.removesuffix(".ipynb").removeprefix("notebooks/")
    cls = config.NOTEBOOKS.get(stage)
    if cls is None:
        hint = did_you_mean(stage, config.NOTEBOOKS)
        raise UserError(f"NOTEBOOK = {options.notebook!r}: no such notebook; {hint}")
    values = profile.stage(cls) if issubclass(cls, config.Stage) else {}
    values |= dict(_change(text) for text in _words(options.parameters))
    parameters = config.validate(cls, values, f"{stage}.ipynb")
    folder = parameters.folder if isinstance(parameters, config.Stage) else profile.folder
    place = folder / "notebooks" / f"{executed.name(stage, *_job(parameters))}.ipynb"
    status = run_notebook.run(ROOT / "notebooks" / f"{stage}.ipynb", place, values)
    if status == 0:
        print(f"open {os.path.relpath(place)}")
    return status


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"PARAMETERS = {text!r}: {error}") from None


def _change(text: str) -> tuple[str, object]:
    """``name=value``; numbers and truth values are read as papermill's -p reads them."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UserError(f"PARAMETERS: {text!r} is not name=value")
    if value in ("True", "False"):
        return name, value == "True"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def _job(parameters: config.Strict) -> list[str]:
    """What tells this job from others of its stage: a tokenizer, a model, a single task."""
    if isinstance(parameters, config.Tokenizer):
        return [parameters.tokenizer_kind]
    if isinstance(parameters, config.Finetune):
        tasks = parameters.tasks
        return [parameters.model, *(tasks if len(tasks) == 1 else [])]
    return [parameters.model] if isinstance(parameters, config.Pretrain) else []


def _line(job: str, steps: int, tokens: int, flops: float, parameters: int | None) -> None:
    last = f"{parameters:>13,}" if parameters else ""
    print(f"{job:<38}{steps:>12,}{tokens:>12.3g}{flops:>12.3g}{last}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that name a profile and narrow or widen it."""
    parser.add_argument("--profile", default="tiny", help="name in profiles/, or a .yaml file")
    parser.add_argument("--data", default="", help="folder with glue/ and corpus/")
    parser.add_argument("--models", default="", help="registry names")
    parser.add_argument("--tasks", default="", help="GLUE tasks")
    parser.add_argument("--seeds", default="", help="fine-tuning seeds")
    parser.add_argument("--steps", default="", help="of pre-training: the budget of each model")


ACTIONS = {"run": run, "plan": plan, "status": status, "notebook": notebook}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=ACTIONS)
    add_options(parser)
    parser.add_argument("--notebook", default="", help="03_pretrain, for example")
    parser.add_argument("--parameters", default="", help="changes of it: name=value ...")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="jobs side by side")
    parser.add_argument("--gpu-jobs", type=int, default=1, help="jobs that share a GPU")
    parser.add_argument("--cluster", default="", help="folder with a Snakemake workflow profile")
    options = parser.parse_args()
    return ACTIONS[options.action](options)


if __name__ == "__main__":
    run_main(main)
