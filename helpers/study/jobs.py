"""The jobs of a study and how far each has come, read from the files they write.

A job is one executed notebook. `Snakefile` runs them; here nothing runs: what is done follows from
manifests and records, what is running from the locks that running jobs hold, what failed from the
executed notebooks, so it holds while a grid runs, after it was killed, and for jobs run by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from helpers.base import config, files
from helpers.base.config import Profile
from helpers.base.progress import duration
from helpers.data import corpus, glue, tokenizer
from helpers.model import registry
from helpers.score import costs
from helpers.study import executed
from helpers.train import finetune, pretrain, records

STATES = ("done", "running", "failed", "stopped", "waiting")
TRAINED = {"03_pretrain": "pre-training", "04_finetune": "fine-tuning"}


@dataclass(frozen=True, eq=False)
class Job:
    """One notebook with its parameters.

    Attributes:
        stage: The notebook.
        model: Of the registry, or the kind of tokenizer; empty where there is neither.
        tasks: Tasks it fine-tunes.
        name: Of the executed notebook, without its ending.
        parameters: Of the stage.
        flops: Matrix products of its training, at full length.
    """

    stage: str
    model: str
    tasks: tuple[str, ...]
    name: str
    parameters: config.Strict
    flops: float = 0.0


@dataclass(frozen=True)
class State:
    """How far a job has come.

    Attributes:
        state: One of `STATES`.
        detail: Why it failed, or its last line of progress.
        seconds: Wall time of a finished job, without what earlier, cut runs spent on starting.
        share: Part of the work that is done, 0 to 1.
        hardware: Where a finished training took place.
    """

    state: str
    detail: str = ""
    seconds: float | None = None
    share: float = 0.0
    hardware: str = ""


def jobs(profile: Profile) -> list[Job]:
    """Every job of a profile, in the order of the stages.

    Raises:
        UserError: For an unknown model, size or task.
    """
    specs = {name: registry.get(name) for name in profile.models}
    tasks = glue.available(profile.source, profile.data, profile.tasks)
    groups = [(task,) for task in tasks] if profile.finetune_job == "task" else [tuple(tasks)]

    def job(stage: str, model: str = "", tasks: tuple[str, ...] = ()) -> Job:
        cls, flops = config.STAGES[stage], 0.0
        set_by_job = {"tokenizer_kind" if stage == "02_tokenizer" else "model": model}
        if tasks:
            set_by_job["tasks"] = list(tasks)
        if stage == "03_pretrain" and specs[model].objective != "none":
            flops = costs.tokens(model, profile) * costs.flops(model, profile)
        for task in tasks:
            flops += costs.finetuning(profile, model, task).flops
        parts = [model] * bool(model) + [*tasks] * (profile.finetune_job == "task")
        parameters = cls(**profile.stage(cls, **set_by_job))
        return Job(stage, model, tasks, executed.name(stage, *parts), parameters, flops)

    found = [job("01_data")]
    found += [job("02_tokenizer", kind) for kind in sorted({s.tokenizer for s in specs.values()})]
    found += [job("03_pretrain", name) for name in specs]
    found += [job("04_finetune", name, group) for name in specs for group in groups]
    audit = Job("06_audit", "", (), "06_audit", config.Audit())
    return [*found, job("05_analysis"), audit]


def job_state(profile: Profile, job: Job) -> State:
    """How far a job has come."""
    place = profile.folder / "notebooks" / f"{job.name}.ipynb"
    if files.lock_holder(place.parent, executed.lock(place).name) or _held(profile, job):
        line, share = executed.last_line(executed.part(place))
        return State("running", line or "no progress told yet", share=share)
    done = _done(profile, job)
    if done is not None:
        training, hardware = done
        seconds = max(training, executed.seconds(place)) or None
        return State("done", seconds=seconds, share=1.0, hardware=hardware)
    if executed.part(place).exists():
        return State("stopped", "killed; run it again to go on")
    reason = executed.failure(place) if place.exists() else ""
    if "Preempted" in reason:
        return State("stopped", reason.partition("Preempted: ")[2])
    return State("failed", reason) if reason else State("waiting")


def _held(profile: Profile, job: Job) -> bool:
    """Whether a training loop holds its folder: the notebook may have been run by hand."""
    if job.stage == "03_pretrain":
        return bool(files.lock_holder(profile.folder / "models" / job.model))
    folders = [records.folder(profile.folder, job.model, task) for task in job.tasks]
    return any(files.lock_holder(folder) for folder in folders)


def _done(profile: Profile, job: Job) -> tuple[float, str] | None:
    """Seconds of training and the hardware of a finished job, else None."""
    if job.stage == "03_pretrain":
        made = pretrain.finished(job.parameters)
        if not made:
            return None
        spent = made["pretrain"]
        return spent["seconds"] + spent["compile_seconds"], made["hardware"]["name"]
    if job.stage == "04_finetune":
        found = finetune.finished(job.parameters)
        if not found:
            return None
        return sum(r["finetune"]["seconds"] for r in found), found[-1]["hardware"]["name"]
    if job.stage == "01_data":
        done = corpus.finished(job.parameters) and glue.finished(job.parameters)
    elif job.stage == "02_tokenizer":
        done = tokenizer.finished(job.parameters)
    elif job.stage == "05_analysis":
        done = _analysed(profile.folder)
    else:
        done = (profile.folder / "book" / "audited").exists()
    return (0.0, "") if done else None


def finished_cells(profile: Profile) -> list[tuple[str, str]]:
    """Model and task of every cell of the tables that has the profile's own records."""
    return [
        (job.model, task)
        for job in jobs(profile)
        for task in job.tasks
        if finetune.finished(job.parameters.model_copy(update={"tasks": [task]}))
    ]


def _analysed(folder: Path) -> bool:
    """Whether the tables are there and no record is newer."""
    tables = folder / "tables" / "summary.txt"
    cells = list((folder / "records").glob("*/*/manifest.json"))
    if not tables.exists() or not cells:
        return False
    return all(cell.stat().st_mtime <= tables.stat().st_mtime for cell in cells)


def rest(found: dict[Job, State], side_by_side: int) -> list[str]:
    """How long the training that is not finished will take, line by line.

    The rate of a stage is the FLOPs of its finished jobs over their wall time; the FLOPs of the
    others, over it, give their time.

    Args:
        found: Every job's state.
        side_by_side: Jobs that run at once.
    """
    lines, every, known = [], [], True
    for stage, what in TRAINED.items():
        mine = {job: state for job, state in found.items() if job.stage == stage}
        left = [job.flops * (1 - state.share) for job, state in mine.items()]
        finished = [(j.flops, s) for j, s in mine.items() if s.state == "done" and j.flops]
        seconds = sum(state.seconds or 0.0 for _, state in finished)
        if not any(left):
            continue
        if not seconds:
            known = False
            lines.append(
                f"{what}: {sum(left):.3g} FLOPs left; their time cannot be told before one job is "
                "finished"
            )
            continue
        rate = sum(flops for flops, _ in finished) / seconds
        every += [flops / rate for flops in left]
        machines = ", ".join(dict.fromkeys(state.hardware for _, state in finished))
        lines.append(
            f"{what}: {sum(left):.3g} FLOPs left, {duration(sum(left) / rate)} at the "
            f"{rate:.3g} FLOP/s of what is finished ({machines})"
        )
    if every and known:
        wall = max(sum(every) / side_by_side, *every)
        lines.append(f"training left, {side_by_side} at a time: about {duration(wall)}")
    return lines


def table(found: dict[Job, State]) -> str:
    """One line per job, aligned, and a line that counts them."""
    lines = [("stage", "model", "tasks", "state", "")]
    for job, state in found.items():
        tasks = job.tasks[0] if len(job.tasks) == 1 else f"{len(job.tasks)} tasks"
        detail = state.detail
        if state.seconds is not None:
            detail = duration(state.seconds)
        lines.append((job.stage, job.model, tasks if job.tasks else "", state.state, detail))
    widths = [max(len(line[k]) for line in lines) for k in range(4)]
    text = "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )
    counts = {name: sum(s.state == name for s in found.values()) for name in STATES}
    return f"{text}\n\n" + ", ".join(f"{n} {name}" for name, n in counts.items() if n)


def survey(profile: Profile) -> dict[Job, State]:
    """Every job of a profile with its state.

    Raises:
        UserError: For a profile that does not fit the registry.
    """
    return {job: job_state(profile, job) for job in jobs(profile)}
