"""Means, spreads and differences over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

import pandas as pd


@dataclass(frozen=True)
class Summary:
    """What is said of one set of values, one value per seed.

    Attributes:
        n: Number of values.
        mean: Arithmetic mean; NaN without values.
        median: Median; NaN without values.
        sd: Sample standard deviation (n - 1); NaN below two values.
        se: Standard error of the mean, sd / sqrt(n); NaN below two values.
    """

    n: int
    mean: float
    median: float
    sd: float
    se: float


def summary(values: Iterable[float]) -> Summary:
    """Summarise one value per seed.

    Args:
        values: Scores x 100, one per seed.

    Returns:
        Their summary, in the unit of the values.

    Raises:
        ValueError: A value is not a finite number.
    """
    numbers = [float(value) for value in values]
    for number in numbers:
        if not math.isfinite(number):
            raise ValueError(f"score {number}: must be a finite number")
    if not numbers:
        return Summary(0, math.nan, math.nan, math.nan, math.nan)
    sd = stdev(numbers) if len(numbers) > 1 else math.nan
    return Summary(len(numbers), fmean(numbers), median(numbers), sd, sd / math.sqrt(len(numbers)))


def impossible(value: float, rows: int, decimals: int = 2, halves: bool = False) -> bool:
    """Whether no count of right answers prints as this percentage.

    The idea is the GRIM test of Brown and Heathers (2017), applied to accuracies.

    Args:
        value: A percentage with `decimals` decimals.
        rows: Rows of the dev set.
        decimals: Decimals it was printed with.
        halves: Whether half counts are possible: the median of an even number of runs.

    Returns:
        True where neither rounding nor cutting k / rows x 100 to that many decimals gives `value`.
    """
    scale, parts = 10**decimals, rows * (1 + halves)
    units, near = round(value * scale), round(value * parts / 100)
    for right in range(max(near - 1, 0), min(near + 1, parts) + 1):
        exact = right * 100 * scale / parts
        if units in (math.floor(exact), math.floor(exact + 0.5)):
            return False
    return True


def cell(records: pd.DataFrame, model: str, task: str) -> Summary:
    """Summarise one model on one task over its seeds.

    Args:
        records: Rows with columns model, task, seed, score (`tables.load_records`).
        model: Name of the model.
        task: Name of the task.

    Returns:
        The summary of its scores x 100; n is 0 where there is no record.
    """
    chosen = records[(records["model"] == model) & (records["task"] == task)]
    return summary(chosen["score"])


def seed_means(records: pd.DataFrame, model: str, tasks: Sequence[str]) -> pd.Series:
    """Mean of the tasks, seed by seed.

    Only seeds that have every task count: a mean over other tasks is another quantity.

    Args:
        records: Rows with columns model, task, seed, score.
        model: Name of the model.
        tasks: The tasks to average with equal weight.

    Returns:
        The plain mean of the tasks' scores x 100, indexed by seed; empty where no seed has
        them all, or where no task is asked for.
    """
    chosen = records[(records["model"] == model) & (records["task"].isin(list(tasks)))]
    wide = chosen.pivot(index="seed", columns="task", values="score").reindex(columns=list(tasks))
    return wide.dropna().mean(axis=1) if tasks else pd.Series(dtype=float)


def mean_of_tasks(records: pd.DataFrame, model: str, tasks: Sequence[str]) -> Summary:
    """Summarise over seeds the plain mean of the tasks.

    The mean of the tasks is taken for each seed first, then over the seeds that have every
    task, so that the standard error is that of the average itself.

    Args:
        records: Rows with columns model, task, seed, score.
        model: Name of the model.
        tasks: The tasks to average with equal weight.

    Returns:
        The summary; n is the number of seeds with every task.
    """
    return summary(seed_means(records, model, tasks))


def difference(first: Summary, second: Summary) -> tuple[float, float]:
    """Difference of two means and its standard error.

    The two sets of seeds are taken as independent; where they share seeds this is the wider
    of the two usual errors unless the runs are anticorrelated.

    Args:
        first: The summary subtracted from.
        second: The summary subtracted.

    Returns:
        The difference of the means and the root of the summed squares of the standard errors;
        NaN where either has none.
    """
    return first.mean - second.mean, math.hypot(first.se, second.se)
