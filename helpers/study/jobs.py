"""The jobs of a study and how far each has come, read from the files they write.

A job is one executed notebook. What is done the stages say themselves, what is running the locks
that running jobs hold, what failed the executed notebooks: it holds while a grid runs, after it was
killed, and for jobs run by hand. torch is loaded where that is asked: Snakemake, which starts anew
for each job of a cluster, asks only which jobs there are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from helpers.base import config, files, progress
from helpers.base.config import Profile
from helpers.base.errors import UserError
from helpers.base.progress import duration
from helpers.data import glue
from helpers.model import registry
from helpers.study import notebook
from helpers.train import records

STATES = ("done", "running", "failed", "stopped", "waiting")
TRAINED = {"03_pretrain": "pre-training", "04_finetune": "fine-tuning"}
AFTER = ("05_analysis", "06_audit")  # what follows from records and published figures alone


@dataclass(frozen=True, eq=False)
class Job:
    """One notebook with its parameters."""

    stage: str
    model: str  # or the kind of tokenizer; empty where there is neither
    tasks: tuple[str, ...]  # that it fine-tunes
    notebook: Path  # where it is kept once executed
    parameters: config.Strict

    @property
    def name(self) -> str:
        """``04_finetune-bert-cola``."""
        return self.notebook.stem


@dataclass(frozen=True)
class State:
    """How far a job has come."""

    state: str  # one of `STATES`
    detail: str = ""  # why it failed, or the progress it told last
    seconds: float | None = None  # of a finished job, without the start of runs that were cut
    share: float = 0.0  # of the work that is done
    hardware: str = ""  # of a finished training


def load(name: str, **changes: object) -> Profile:
    """A profile with changes, checked."""
    profile = config.load_profile(name, **changes)
    check(profile)
    return profile


def check(profile: Profile) -> None:
    """Checks a profile against the registry and the tasks that its source has."""
    for model in profile.models:
        spec, size = registry.get(model), registry.get_size(profile.size)
        width = profile.generator_fraction or spec.generator_fraction or 1
        registry.hidden(size, width)
        if spec.architecture == "transformers":  # whose models have checks of their own
            from helpers.score import costs

            costs.outline(model, profile)
    if own := [task for task in profile.tasks if glue.get(task).own]:
        told = "a study has GLUE's tasks alone; small-bench score takes tasks of your own"
        raise UserError(f"tasks = {', '.join(own)}: {told}")
    glue.available(profile.source, profile.data, profile.tasks)


def jobs(profile: Profile) -> list[Job]:
    """Every job of a profile, in the order of the stages."""
    tasks = glue.available(profile.source, profile.data, profile.tasks)
    groups = [(task,) for task in tasks] if profile.finetune_job == "task" else [tuple(tasks)]

    def job(stage: str, model: str = "", group: tuple[str, ...] = ()) -> Job:
        parts = [model] * bool(model) + [*group] * (profile.finetune_job == "task")
        place = notebook.executed(profile.folder, stage, *parts)
        chosen = {"tokenizer_kind" if stage == "02_tokenizer" else "model": model}
        cls = config.STAGES[stage]
        values = profile.stage(cls, **chosen, **({"tasks": list(group)} if group else {}))
        return Job(stage, model, group, place, cls(**values))

    return [
        job("01_data"),
        *(job("02_tokenizer", kind) for kind in kinds(profile)),
        *(job("03_pretrain", name) for name in profile.models),
        *(job("04_finetune", name, group) for name in profile.models for group in groups),
        job("05_analysis"),
        Job("06_audit", "", (), notebook.executed(profile.folder, "06_audit"), config.Audit()),
    ]


def kinds(profile: Profile) -> list[str]:
    """The tokenizers that the models of a profile need."""
    return sorted({registry.get(name).tokenizer for name in profile.models})


def shown(every: Iterable[Job], among: Iterable[Job] | None = None) -> dict[str, Job]:
    """The job of each stage, `among` some, that the book shows: the last plain model's."""
    models = [job.model for job in every if job.stage == "03_pretrain"]
    trained = [name for name in models if registry.get(name).objective != "none"]
    plain = [name for name in trained if "+" not in name]
    wanted = (plain or trained or models)[-1:]
    first = {*wanted, *(registry.get(name).tokenizer for name in wanted)}
    chosen: dict[str, Job] = {}
    among = every if among is None else among
    for job in sorted(among, key=lambda job: (job.stage, job.model not in first)):
        chosen.setdefault(job.stage, job)
    return chosen


def survey(profile: Profile) -> dict[Job, State]:
    """Every job of a profile with its state."""
    return {job: job_state(profile, job) for job in jobs(profile)}


def missing(found: dict[Job, State]) -> dict[str, str]:
    """Jobs that are not done, with their state; those that train nothing aside."""
    left = {job: state.state for job, state in found.items() if job.stage not in AFTER}
    return {job.name: state for job, state in left.items() if state != "done"}


def finished_cells(profile: Profile) -> list[tuple[str, str]]:
    """Model and task of every cell of the tables that has the profile's own records."""
    from helpers.train import finetune

    return [
        (job.model, task)
        for job in jobs(profile)
        for task in job.tasks
        if finetune.finished(job.parameters.model_copy(update={"tasks": [task]}))
    ]


def job_state(profile: Profile, job: Job) -> State:
    """How far a job has come."""
    place = job.notebook
    if files.lock_holder(place.parent, notebook.beside(place, "lock").name) or _held(profile, job):
        return _running(notebook.beside(place, "progress.json"))
    if done := _finished(profile, job):
        seconds, hardware = _spent(job.stage, done)
        seconds = max(seconds, notebook.papermill_facts(place).get("duration") or 0.0) or None
        return State("done", seconds=seconds, share=1.0, hardware=hardware)
    if notebook.beside(place, "ipynb").exists():
        return State("stopped", "killed; run it again to go on")
    reason = notebook.failure(place)
    if "Preempted" in reason:
        return State("stopped", reason.partition("Preempted: ")[2])
    return State("failed", reason) if reason else State("waiting")


def _running(told: Path) -> State:
    """What a running job's file of progress says; it may go as it is read."""
    try:
        age, found = time.time() - told.stat().st_mtime, files.read_json(told)
    except (OSError, ValueError):
        return State("running", "no progress told yet")
    share = found["done"] / max(1, found["total"])
    return State("running", f"{progress.line(found).strip()} ({duration(age)} ago)", share=share)


def _held(profile: Profile, job: Job) -> bool:
    """Whether a training loop holds its folder: the notebook may have been run by hand."""
    folders = [records.folder(profile.folder, job.model, task) for task in job.tasks]
    if job.stage == "03_pretrain":
        folders = [profile.folder / "models" / job.model]
    return any(map(files.lock_holder, folders))


def _finished(profile: Profile, job: Job) -> object:
    """What the stage left where all of it is there, else something false."""
    from helpers.data import corpus, tokenizer
    from helpers.train import finetune, floor, pretrain

    parameters = job.parameters
    if job.stage == "01_data":
        done = corpus.finished(parameters) and glue.finished(parameters)
        return done and floor.finished(parameters)
    if job.stage == "05_analysis":  # the tables are there and no record is newer
        tables = profile.folder / "tables" / "summary.txt"
        cells = profile.folder.glob("records/*/*/manifest.json")
        times = [path.stat().st_mtime for path in cells]
        return times and tables.exists() and max(times) <= tables.stat().st_mtime
    if job.stage == "06_audit":
        return (profile.folder / "book" / "audited").exists()
    stages = {"02_tokenizer": tokenizer, "03_pretrain": pretrain, "04_finetune": finetune}
    return stages[job.stage].finished(parameters)


def _spent(stage: str, done: object) -> tuple[float, str]:
    """Seconds of a finished training and where it took place; of the other stages nothing."""
    if stage == "03_pretrain":
        spent = done["pretrain"]
        return spent["seconds"], done["hardware"]["name"]
    if stage == "04_finetune":
        return sum(one["finetune"]["seconds"] for one in done), done[-1]["hardware"]["name"]
    return 0.0, ""


def flops(profile: Profile, job: Job) -> float:
    """Matrix products of a job's training, at full length."""
    from helpers.score import costs

    if job.stage == "03_pretrain" and registry.get(job.model).objective != "none":
        return costs.tokens(job.model, profile) * costs.flops(job.model, profile)
    return sum(costs.finetuning(profile, job.model, task).flops for task in job.tasks)


def time_left(profile: Profile, found: dict[Job, State], side_by_side: int) -> list[str]:
    """How long the training that is not finished will take, line by line, so many jobs at once.

    Time is FLOPs over the rate of the stage: the FLOPs of its finished jobs over their wall time.
    """
    lines, every, known = [], [], True
    for stage, what in TRAINED.items():
        mine = [(flops(profile, job), state) for job, state in found.items() if job.stage == stage]
        left = [work * (1 - state.share) for work, state in mine]
        finished = [(work, state) for work, state in mine if state.state == "done" and work]
        seconds = sum(state.seconds or 0.0 for _, state in finished)
        if not any(left):
            continue
        about = f"{what}: {sum(left):.3g} FLOPs left"
        if not seconds:
            known = False
            lines.append(f"{about}; their time cannot be told before one job is finished")
            continue
        rate = sum(work for work, _ in finished) / seconds
        every += [work / rate for work in left]
        machines = ", ".join(dict.fromkeys(state.hardware for _, state in finished))
        pace = f"{rate:.3g} FLOP/s of what is finished ({machines})"
        lines.append(f"{about}, {duration(sum(left) / rate)} at the {pace}")
    if every and known:
        wall = max(sum(every) / side_by_side, *every)
        lines.append(f"training left, {side_by_side} at a time: about {duration(wall)}")
    return lines


def table(found: dict[Job, State]) -> str:
    """One line per job, aligned, and a line that counts them."""
    lines = [("stage", "model", "tasks", "state", "")]
    for job, state in found.items():
        tasks = f"{len(job.tasks)} tasks" if len(job.tasks) > 1 else "".join(job.tasks)
        detail = state.detail if state.seconds is None else duration(state.seconds)
        lines.append((job.stage, job.model, tasks, state.state, detail))
    widths = [max(len(line[k]) for line in lines) for k in range(4)]
    form = "  ".join(f"{{:<{width}}}" for width in widths) + "  {}"
    text = "\n".join(form.format(*line).rstrip() for line in lines)
    counts = {name: sum(s.state == name for s in found.values()) for name in STATES}
    return f"{text}\n\n" + ", ".join(f"{n} {name}" for name, n in counts.items() if n)


def status(profile: Profile, side_by_side: int) -> str:
    """Who holds the run, its jobs, and how long the rest will take."""
    found, holder = survey(profile), files.lock_holder(profile.folder)
    about = f"held by process {holder}" if holder else "no grid is running"
    head = f"profile {profile.profile}, {os.path.relpath(profile.folder)}: {about}"
    others = glue.left_out(profile.source, profile.data, profile.tasks).values()
    parts = [head, *others, "", table(found), "", *time_left(profile, found, side_by_side)]
    return "\n".join(parts).rstrip()
