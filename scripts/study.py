"""The front door of the study: runs, plans or reports the grid of a profile.

`make book` calls `study.py run`, `make plan` calls `study.py plan`. MODELS, TASKS and SEEDS narrow
or widen the profile's own lists; DATA names a folder and makes it the source.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import config, costs, files, glue, models, pretrain, schedule
from helpers.config import Profile

ROOT = Path(__file__).resolve().parent.parent


def load(options: argparse.Namespace) -> tuple[Profile, dict[str, str]]:
    """The profile with the command line's changes, checked against registry and tasks."""
    changes = {
        name: value
        for name in ("data", "models", "tasks", "seeds")
        if (value := getattr(options, name))
    }
    profile = config.load_profile(options.profile, **changes)
    models.get_size(profile.size)
    for name in profile.models:
        models.get(name)
    glue.available(profile.source, profile.data, profile.tasks)
    return profile, changes


def run(options: argparse.Namespace) -> int:
    """Runs what is not finished, then prints the table and the page to open."""
    profile, changes = load(options)
    with files.holding(profile.folder) as lock:
        return _run(options, profile, changes, lock)


def _run(options: argparse.Namespace, profile: Profile, changes: dict[str, str], lock: int) -> int:
    folder = profile.folder
    environment = os.environ | {
        "PROFILE": str(options.profile),
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
        gpu = ["--resources", "gpu=1"] if Path("/dev/nvidia0").exists() else []
        return ["--cores", str(options.cores), "--quiet", "all", *gpu]
    folder = config.resolve(options.cluster)
    if not (folder / "config.yaml").is_file():
        raise config.UserError(
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
        raise config.Preempted("stopped by SIGTERM; run it again to go on")
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
        spec = models.get(name)
        length = models.usable_length(spec.tokenizer, profile.max_length)
        task = costs.outline(name, profile)
        encoder = models.encoder(task.model)
        steps = 0 if spec.objective == "none" else profile.pretrain_steps
        tokens = steps * profile.pretrain_batch_size * length
        flops = tokens * pretrain.flops_per_token(task, length)
        _line(f"03_pretrain {name}", steps, tokens, flops, models.count(encoder))
        total += flops
        for job in tasks:
            per_token = models.token_flops(encoder.config, length)
            spent = schedule.finetuning(profile, job, length)
            flops = spent.tokens * per_token
            total += flops
            label = f"04_finetune {name} {job} x {len(profile.seeds)} seeds"
            _line(label, spent.steps, spent.tokens, flops, None)
    print(f"\nin all {total:.3g} FLOPs; fine-tuning counted at full length, an upper bound")
    missing = [name for name in profile.tasks if name not in tasks]
    print("missing from the source: " + (", ".join(missing) or "none"))
    return 0


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


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("run", "plan"))
    add_options(parser)
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="jobs side by side")
    parser.add_argument("--cluster", default="", help="folder with a Snakemake workflow profile")
    options = parser.parse_args()
    return {"run": run, "plan": plan}[options.action](options)


if __name__ == "__main__":
    config.run_main(main)
