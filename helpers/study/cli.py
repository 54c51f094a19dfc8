"""The command line, `small-bench`: each command is its help and a call."""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from helpers.base import config, files, machine
from helpers.base.errors import UserError, run_main

app = typer.Typer(
    help="Small-Bench NLP: pre-train and score small encoders; see README.md.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _profiles() -> list[str]:
    return sorted(path.stem for path in files.find("profiles").glob("*.yaml"))


def _study(
    profile: Annotated[
        str, Option(help="Name in profiles/, or a .yaml file.", autocompletion=_profiles)
    ] = "tiny",
    data: Annotated[str, Option(help="Folder with glue/ and corpus/, as the source.")] = "",
    models: Annotated[str, Option(help='Models: "bert electra".')] = "",
    tasks: Annotated[str, Option(help='Tasks of GLUE: "cola rte".')] = "",
    seeds: Annotated[str, Option(help='Fine-tuning seeds: "0 1 2".')] = "",
    steps: Annotated[int | None, Option(help="Steps of each pre-training.")] = None,
) -> dict[str, Any]:
    """The options that name a study, as `config.layers` and `jobs.load` take them."""
    changes = {"models": models, "tasks": tasks, "seeds": seeds, "pretrain_steps": steps}
    return {"name": profile, "data": data, **changes}


def _command(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """Adds a command; a parameter `study` stands for the options of `_study`."""
    own = dict(inspect.signature(function).parameters)
    shared = inspect.signature(_study).parameters if own.pop("study", None) else {}

    def call(**given: object) -> int | None:
        if shared:
            given["study"] = _study(**{name: given.pop(name) for name in shared})
        return function(**given)

    every = [one.replace(kind=one.KEYWORD_ONLY) for one in (*shared.values(), *own.values())]
    call.__signature__ = inspect.Signature(every)
    call.__annotations__ = {one.name: one.annotation for one in every}
    app.command(function.__name__, help=function.__doc__)(call)
    return function


Study = dict[str, Any]
Cores = Annotated[
    int, Option(min=1, default_factory=machine.cores, show_default="all", help="CPU cores to use.")
]
GpuJobs = Annotated[int, Option(min=1, help="Jobs that share the GPU.")]
Cluster = Annotated[str, Option(help="Folder of a cluster's settings: profiles/slurm.")]


@_command
def run(study: Study, cores: Cores, gpu_jobs: GpuJobs = 1, cluster: Cluster = "") -> int:
    """Run a study's open jobs, build its book, print the scores."""
    from helpers.study import grid, jobs

    return grid.run(jobs.load(**study), cores, gpu_jobs, cluster)


@_command
def status(study: Study, cores: Cores, gpu_jobs: GpuJobs = 1) -> None:
    """Print what is done, running or failed, and the time left."""
    from helpers.model import registry
    from helpers.study import jobs

    profile = jobs.load(**study)
    beside = max(1, cores // profile.threads)
    if registry.device().type == "cuda":
        beside = gpu_jobs
    print(jobs.status(profile, beside))


@_command
def plan(study: Study) -> None:
    """Print parameters, jobs with tokens and FLOPs, hours by GPU."""
    from helpers.study import grid, jobs

    profile = counted = config.load_profile(**study)
    folder = files.resolve(profile.data)
    if profile.source == "folder" and not (study["data"] or folder.is_dir()):
        print(f"data: {folder}: no such folder; GLUE's own rows are counted\n")
        counted = profile.model_copy(update={"source": "hub", "data": ""})
    jobs.check(counted)
    grid.print_parameters(profile, config.layers(**study))
    grid.print_jobs(counted)


@_command
def notebook(
    study: Study,
    stage: Annotated[
        str, Argument(help="03_pretrain, for example.", autocompletion=lambda: [*config.NOTEBOOKS])
    ],
    changes: Annotated[
        list[str] | None, Argument(metavar="name=value", help="Parameters to change.")
    ] = None,
) -> int:
    """Run one notebook with the parameters of a study."""
    from helpers.study import jobs, notebook

    return notebook.run_stage(jobs.load(**study), stage, changes or [])


@_command
def report(study: Study) -> int:
    """Build the book of what is finished, marking what is missing."""
    from helpers.study import jobs, publish

    return publish.report(jobs.load(**study))


@_command
def keep(
    study: Study,
    remark: Annotated[str, Option(help="Sentences for the reader of the book.")] = "",
) -> int:
    """Copy the records and predictions of a run to results/measured."""
    from helpers.study import jobs, publish

    return publish.keep(jobs.load(**study), remark)


@_command
def site(
    run: Annotated[str, Option(help="Folder of a kept run; else that of most tokens.")] = "",
) -> int:
    """Build the published book from a run kept in results/measured."""
    from helpers.study import publish

    return publish.site(run)


@_command
def verify(
    run: Annotated[str, Option(help="Folder of a run; else every kept one.")] = "",
    profile: Annotated[str, Option(help="The run of this profile.", autocompletion=_profiles)] = "",
    data: Annotated[str, Option(help="Folder with glue/: labels for kept runs.")] = "",
) -> int:
    """Recompute the scores and tables of what is kept, or of a run."""
    from helpers.pages import verify as verifier
    from helpers.pages import view
    from helpers.train import loop

    if run and profile:
        raise UserError(f"run = {run!r}, profile = {profile!r}: give one of them")
    loop.begin(1)
    named = config.load_profile(profile).folder if profile else files.resolve(run)
    wrong = []
    every = [named]
    if not (run or profile):
        every = [*view.kept_runs(), *sorted(files.find("results/scored").glob("*"))]
    for folder in every:
        found = verifier.verify(folder, files.resolve(data) if data else None)
        wrong += found.wrong
        print(f"{os.path.relpath(folder)}: {found}")
    if wrong:
        print("\n".join([*wrong, f"error: {len(wrong)} differences"]), file=sys.stderr)
    return 1 if wrong else 0


@_command
def score(
    model: Annotated[str, Argument(help="owner/name[@revision] on the Hub, or a folder.")],
    cores: Cores,
    data: Annotated[str, Option(help="Folder with glue/; else GLUE from the Hub.")] = "",
    tasks: Annotated[str, Option(help='Tasks: "rte mrpc"; else all there are.')] = "",
    seeds: Annotated[str, Option(help='Fine-tuning seeds: "0 1 2".')] = "",
    protocol: Annotated[
        Literal["", "fixed", "tuned"],
        Option(metavar="<fixed|tuned>", help="Rate and epochs of the recipe, or chosen."),
    ] = "",
    rows: Annotated[int, Option(min=0, help="Train rows per task at most, for a look.")] = 0,
    only_check: Annotated[
        bool, Option("--check", help="Say what would be run, and for how long.")
    ] = False,
    precision: Annotated[
        Literal["", "auto", "float32", "bfloat16", "float16"],
        Option(metavar="<auto|float32|bfloat16|float16>", help="Else the profile's."),
    ] = "",
    profile: Annotated[str, Option(help="Name in profiles/, or a file: the recipe.")] = "score",
) -> int:
    """Score an encoder from elsewhere, by fine-tuning."""
    from helpers.study import score

    changes = {"data": data, "tasks": tasks, "seeds": seeds, "precision": precision}
    changes |= {"protocol": protocol, "threads": cores}
    return score.run(score.load(profile, rows, **changes), model, only_check)


@_command
def check(
    data: Annotated[str, Option(help="Folder with glue/: recompute the scores from it.")] = "",
    folder: Annotated[Path, Option(help="Folder of the entries.")] = Path("leaderboard"),
) -> int:
    """Check every entry of the leaderboard."""
    from helpers.leaderboard import check as checker
    from helpers.score import predictions

    labels = predictions.read_labels(files.resolve(data) if data else None)
    folder = files.find(folder)
    entries = checker.check(folder, files.read_json(files.find("results/published.json")), labels)
    for entry in entries:
        if entry.error:
            print(f"error: {entry.error}")
            continue
        print("; ".join([f"{entry.name}: {entry.level}", *entry.undone]))
        for remark in entry.remarks:
            print(f"  remark: {folder / entry.name}: {remark}")
    wrong = sum(bool(entry.error) for entry in entries)
    print(f"{len(entries)} entries, {wrong} refused")
    return 1 if wrong else 0


@_command
def submit(
    run: Annotated[Path, Option(help="Folder of the run: runs/paper.")],
    model: Annotated[str, Option(help="Name in the run's records.")],
    out: Annotated[Path, Option(help="Folder to write: leaderboard/my-encoder.")],
    about: Annotated[str, Option(help="YAML file with what the run cannot know.")] = "",
    title: Annotated[str, Option(help="The model's name as shown.")] = "",
    link: Annotated[str, Option(help="https:// address of the model or its code.")] = "",
    authors: Annotated[list[str] | None, Option(help="One author; may be repeated.")] = None,
    licence: Annotated[str, Option(help="Licence of the weights.")] = "",
) -> None:
    """Make an entry of the leaderboard from finished records."""
    from helpers.leaderboard import submit as submitter

    facts = {"title": title, "link": link, "authors": authors, "licence": licence}
    given = config.read_yaml(Path(about)) if about else {}
    given |= {name: value for name, value in facts.items() if value}
    figures = files.read_json(files.find("results/published.json"))
    submitter.submit(files.resolve(run), model, files.resolve(out), given, figures)
    print(f"{out}: written and checked; small-bench check --data recomputes its scores")
    print("nothing was sent; this opens the pull request:")
    steps = f"git switch -c {out.name}", f"git add {out}", f"git commit -m 'feat: {out.name}'"
    print(" && ".join([*steps, "gh pr create --fill"]))


def main() -> None:
    """Runs this process's command line; every error is one line and exit status 2."""
    run_main(command_line)


def command_line(arguments: list[str] | None = None) -> int | None:
    """Runs a command line; gives its exit status. A wrong option is a `UserError` too."""
    root, own = files.root().resolve(), Path(__file__).resolve().parents[2]
    if root != own and (root / "helpers" / "base").is_dir():  # as after `cp -r`
        raise UserError(
            f"{root}: is a checkout, but the code is that of {own}; run python -m "
            "helpers.study.cli there"
        )
    try:
        return app(arguments, prog_name="small-bench", standalone_mode=False)
    except typer.TyperException as error:
        path = getattr(getattr(error, "ctx", None), "command_path", "small-bench")
        message = error.format_message().rstrip(".")
        raise UserError(f"{message[:1].lower()}{message[1:]}; see {path} --help") from None


if __name__ == "__main__":
    main()
