"""How long the grid takes on a number of GPUs: its jobs as FLOP and hours, and a list schedule."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from helpers.base import config
from helpers.base.errors import UserError
from helpers.base.text import escape, markdown
from helpers.model import registry
from helpers.score import costs
from helpers.study import jobs as grid

GPU = "v100"  # the paper's, a row of results/gpus.json
COUNTS = (1, 2, 3, 4, 5, 8, 16, 40)


@dataclass(frozen=True)
class Job:
    """One job of one GPU, and the job that must have ended before it begins."""

    name: str
    hours: float
    after: str = ""


def jobs(
    profile: config.Profile,
    gpu: costs.Gpu,
    *,
    grouped: bool,
    utilisation: float = costs.UTILISATION,
) -> list[Job]:
    """The grid's jobs on a GPU: a pre-training of each model, then its fine-tunings.

    Args:
        profile: Models that are pre-trained, tasks, seeds, size and length; others have no job.
        gpu: The GPU that every job runs on.
        grouped: The fine-tunings of a model as one job, as profiles/slurm groups them; else one
            job per model and task, all seeds together.
        utilisation: The model's own FLOP over the GPU's peak, 0 to 1.

    Raises:
        UserError: For an unknown model, size or task.
    """
    rate = utilisation * gpu.peak_tflops * 1e12 * 3600  # FLOP an hour
    trained = [name for name in profile.models if registry.get(name).objective != "none"]
    changes = {"models": trained, "finetune_job": "model" if grouped else "task"}
    found = []
    study = profile.model_copy(update=changes)
    for job in grid.jobs(study):
        first = f"pretrain {job.model}"
        if job.stage == "03_pretrain":
            found.append(Job(first, grid.flops(study, job) / rate))
        elif job.stage == "04_finetune":
            part = "all" if grouped else job.tasks[0]
            hours = grid.flops(study, job) / rate
            found.append(Job(f"finetune {job.model} {part}", hours, first))
    return found


def _tails(work: Sequence[Job]) -> dict[str, float]:
    """Hours of the longest chain that begins with each job, by its name."""
    following: dict[str, list[Job]] = {job.name: [] for job in work}
    if len(following) < len(work):
        raise UserError("schedule: two jobs have the same name")
    for job in work:
        if job.after and job.after not in following:
            raise UserError(f"schedule: {job.name} comes after {job.after}, which is no job")
        if job.after:
            following[job.after].append(job)
    found: dict[str, float] = {}

    def tail(job: Job) -> float:
        if job.name not in found:
            found[job.name] = job.hours + max(map(tail, following[job.name]), default=0.0)
        return found[job.name]

    for job in work:
        tail(job)
    return found


def floor(work: Sequence[Job], gpus: int) -> float:
    """Hours that no schedule can beat: all the work on every GPU, or the longest chain of jobs."""
    return max(sum(job.hours for job in work) / gpus, max(_tails(work).values(), default=0.0))


def makespan(work: Sequence[Job], gpus: int) -> float:
    """Hours until the last job ends, by list scheduling.

    Whenever a GPU is free it takes, of the jobs that can begin, the one with the longest chain of
    work behind it (Graham 1969: at most twice the best schedule).

    Args:
        work: The jobs; names are unique, and `Job.after` names one of them.
        gpus: How many there are; each runs one job at a time.

    Raises:
        UserError: When there is no GPU, a name stands twice, or `Job.after` is no job.
    """
    if gpus < 1:
        raise UserError(f"schedule: gpus = {gpus}: must be 1 or more")
    tails = _tails(work)
    ready = [(-tails[job.name], job.name) for job in work if not job.after]
    heapq.heapify(ready)
    by_name = {job.name: job for job in work}
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < gpus:
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + by_name[name].hours, name))
        now, ended = heapq.heappop(running)
        for job in work:
            if job.after == ended:
                heapq.heappush(ready, (-tails[job.name], job.name))
    return now


def table(
    profile: config.Profile,
    gpu: costs.Gpu,
    counts: Sequence[int] = COUNTS,
    utilisation: float = costs.UTILISATION,
) -> pd.DataFrame:
    """Hours of the grid by the number of GPUs.

    Returns:
        A row for each count. Columns: gpus, grouped and single (hours with fine-tunings grouped by
        model, and with a job per task), floor (hours that no schedule of the single jobs can beat).
    """
    grouped = jobs(profile, gpu, grouped=True, utilisation=utilisation)
    single = jobs(profile, gpu, grouped=False, utilisation=utilisation)
    return pd.DataFrame(
        {
            "gpus": n,
            "grouped": makespan(grouped, n),
            "single": makespan(single, n),
            "floor": floor(single, n),
        }
        for n in counts
    )


def cluster(gpus: Mapping[str, costs.Gpu], profile: str = "paper", gpu: str = GPU) -> str:
    """The page's table: how the time of a profile's grid falls with the number of GPUs.

    Args:
        gpus: `costs.load`.
        profile: The profile whose grid is counted.
        gpu: Short name of the GPU.

    Returns:
        Markdown: what is counted, the table, and the jobs it is made of.
    """
    study, card = config.load_profile(profile), gpus[gpu]
    single = jobs(study, card, grouped=False)
    found = table(study, card)
    alone = found["grouped"].iloc[0]
    rows = [
        [
            f"{row['gpus']}",
            *(f"{row[key]:,.0f}" for key in ("grouped", "single", "floor")),
            *(f"{alone / row[key]:.1f}" for key in ("grouped", "single")),
        ]
        for row in found.to_dict("records")
    ]
    trained = [job for job in single if not job.after]
    longest = max(trained, key=lambda job: job.hours)
    lines = []
    for job in trained:
        hours = [other.hours for other in single if other.after == job.name]
        lines.append([_model(job), *(f"{h:,.1f}" for h in (job.hours, sum(hours), max(hours)))])
    return (
        f"Profile `{study.profile}`: {len(trained)} models pre-trained, {len(study.tasks)} tasks, "
        f"{len(study.seeds)} seeds; {escape(card.name)} at {100 * costs.UTILISATION:g} % of its "
        f"peak; {sum(job.hours for job in single):,.0f} GPU hours in all.\n\n"
        + markdown(
            [
                *("GPUs", "Hours, grouped by model", "Hours, a job per task", "Lower bound"),
                *("Times as fast, grouped", "Times as fast, a job per task"),
            ],
            rows,
            left=0,
        )
        + f"\nThe longest job is the pre-training of {_model(longest)}, "
        f"{longest.hours:,.0f} hours: no number of GPUs goes below it and what follows it.\n\n"
        "**The jobs, in hours.**\n\n"
        + markdown(
            ["Model", "Pre-training", "Its fine-tunings together", "The longest task's"], lines
        )
    )


def _model(job: Job) -> str:
    return escape(job.name.removeprefix("pretrain "))
