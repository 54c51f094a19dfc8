"""Medians, spreads, intervals and comparisons over seeds and dev examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median, stdev
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from helpers.data import glue

RESAMPLES = 9999
LEVEL = 0.95
BLOCK = 100  # resamples held in memory together


@dataclass(frozen=True)
class Summary:
    """What is said of `n` values, one per seed; NaN where there are too few."""

    n: int
    mean: float
    median: float
    sd: float  # with n - 1
    se: float  # of the mean
    best: float
    low: float  # end of the median's 95 % interval
    high: float


def summary(values: Iterable[float]) -> Summary:
    """Summarises one value per seed; a value that is not finite is a `ValueError`."""
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"scores {numbers}: must be finite numbers")
    n = len(numbers)
    if n == 0:
        return Summary(0, *[math.nan] * 7)
    sd = stdev(numbers) if n > 1 else math.nan
    ends = median_interval(numbers)
    return Summary(n, fmean(numbers), median(numbers), sd, sd / math.sqrt(n), max(numbers), *ends)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap interval of the median (Efron and Tibshirani 1993, section 13.3).

    With few seeds it is coarse and too narrow: of three values it is their range at most. NaN
    below two values; the same values give the same interval.
    """
    if len(values) < 2:
        return math.nan, math.nan
    found = stats.bootstrap(
        (sorted(values),),
        np.median,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def expected_best(values: Sequence[float], n: int) -> float:
    """Expected best of `n` runs, from at least that many.

    The mean of the largest over all subsets of `n` values, without replacement: unbiased, where
    the estimator with replacement (Dodge et al. 2019, "Show Your Work") is not.

    Source: Tang et al. 2020, "Showing Your Work Doesn't Always Work", arXiv 2004.13705.
    """
    count = len(values)
    if not 1 <= n <= count:
        raise ValueError(f"n = {n}: must be between 1 and the number of runs, {count}")
    subsets = math.comb(count, n)
    ordered = sorted(values)
    return sum(value * math.comb(place, n - 1) / subsets for place, value in enumerate(ordered))


class Reach(NamedTuple):
    """Where a printed percentage lies among those that counts can give."""

    below_percent: float  # the largest percentage of a count that is not above the printed one
    above_percent: float  # of the next count
    rounded: bool  # whether some count prints as the percentage when rounded
    cut: bool  # whether some count does when further decimals are dropped


def reach(value: float, rows: int, decimals: int = 2) -> Reach:
    """The test of reachability for a printed percentage (GRIM: Brown and Heathers 2017).

    `rows` is what is counted: of the dev set, times the runs where it may be a mean of runs.
    """
    scale = 10**decimals
    units = round(value * scale)
    below = units * rows // (100 * scale)
    near = [k for k in (below - 1, below, below + 1) if 0 <= k <= rows]
    # Half up, in whole numbers: floor(100 scale k / rows + 1/2).
    rounded = any((200 * scale * k + rows) // (2 * rows) == units for k in near)
    cut = any(100 * scale * k // rows == units for k in near)
    return Reach(100 * below / rows, 100 * (below + 1) / rows, rounded, cut)


def impossible(value: float, rows: int, decimals: int = 2, halves: bool = False) -> bool:
    """Whether no count of right answers, rounded or cut, prints as this percentage.

    With `halves` half counts are possible: the median of an even number of runs.
    """
    found = reach(value, rows * (1 + halves), decimals)
    return not (found.rounded or found.cut)


def cell(records: pd.DataFrame, model: str, task: str) -> Summary:
    """Summarises a model's scores x 100 on one task; `records` is of `view.load_records`."""
    chosen = records[(records["model"] == model) & (records["task"] == task)]
    return summary(chosen["score"])


def counted(records: pd.DataFrame, tasks: Sequence[str]) -> list[str]:
    """The tasks whose mean is a run's headline: those that are GLUE's own, whole.

    Where there is none, as on the embedded world, all that have a record.
    """
    whole = records.groupby("task")["complete"].all()
    present = [task for task in tasks if task in whole.index]
    return [task for task in present if whole[task]] or present


def seed_means(records: pd.DataFrame, model: str, tasks: Sequence[str]) -> pd.Series:
    """Plain mean of the tasks' scores x 100, by seed.

    Only seeds that have every task count: a mean over other tasks is another quantity.
    """
    chosen = records[(records["model"] == model) & (records["task"].isin(list(tasks)))]
    wide = chosen.pivot(index="seed", columns="task", values="score").reindex(columns=list(tasks))
    return wide.dropna().mean(axis=1) if tasks else pd.Series(dtype=float)


def mean_of_tasks(records: pd.DataFrame, model: str, tasks: Sequence[str]) -> Summary:
    """Summarises `seed_means`, so that the standard error is that of the average itself."""
    return summary(seed_means(records, model, tasks))


@dataclass(frozen=True)
class Comparison:
    """A difference between two models and its 95 % bootstrap interval, score x 100."""

    difference: float  # first minus second: the mean of the tasks, each a mean over seeds
    low: float
    high: float

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves zero out."""
        return not self.low <= 0 <= self.high


def compare(
    models: Mapping[str, Mapping[str, np.ndarray]],
    labels: Mapping[str, np.ndarray],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[tuple[str, str], Comparison]:
    """Compares every pair of models over fine-tuning seeds and dev examples.

    In each resample the dev examples of a task are drawn anew, the same for all models, and each
    model's seeds are drawn anew, so both sources of chance are in the interval. It is not widened
    for the number of pairs.

    `models` maps name to task to predictions, [seeds, examples]: int64 classes, float64 for STS-B.
    Seeds may differ in number; tasks and examples not (a `ValueError`). `labels` maps task to what
    is true, [examples].

    Source: Berg-Kirkpatrick et al. 2012, section 2 (paired bootstrap); Efron and Tibshirani 1993.
    """
    drawn = {
        name: _resampled(name, predictions, labels, resamples, (seed, place))
        for place, (name, predictions) in enumerate(models.items())
    }
    found = {}
    for one, two in combinations(models, 2):
        differences = drawn[one] - drawn[two]  # the first entry is the data as they are
        low, high = np.quantile(differences[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found[one, two] = Comparison(float(differences[0]), float(low), float(high))
    return found


def _resampled(
    name: str,
    predictions: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    resamples: int,
    seed: tuple[int, int],
) -> np.ndarray:
    """Mean of the tasks x 100: of the data, then of each resample, float64 [1 + resamples]."""
    if set(predictions) != set(labels) or not labels:
        raise ValueError(f"{name}: tasks {sorted(predictions)} are not {sorted(labels)}")
    total = np.zeros(1 + resamples)
    seeds = np.random.default_rng([*seed, 1])
    for place, (task, truth) in enumerate(sorted(labels.items())):
        runs = np.atleast_2d(predictions[task])
        if runs.shape[1] != len(truth):
            raise ValueError(f"{name}, {task}: {runs.shape[1]} predictions, {len(truth)} labels")
        examples = np.random.default_rng([seed[0], place])  # the same for every model
        total[0] += _weighted_scores(task, runs, truth, np.ones((1, len(truth)))).mean()
        for start in range(0, resamples, BLOCK):
            stop = min(start + BLOCK, resamples)
            counts = _example_counts(len(truth), stop - start, examples)
            scores = _weighted_scores(task, runs, truth, counts)
            picks = seeds.integers(len(runs), size=scores.shape)
            total[1 + start : 1 + stop] += np.take_along_axis(scores, picks, 1).mean(1)
    return total / len(labels)


def _example_counts(examples: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each example is drawn in each resample, float64 [resamples, examples]."""
    counts = np.empty((resamples, examples))
    for row in counts:
        row[:] = np.bincount(rng.integers(examples, size=examples), minlength=examples)
    return counts


def _weighted_scores(
    task: str, predictions: np.ndarray, truth: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Headline score x 100 of each resample and seed, float64 [resamples, seeds].

    A correlation with a constant is 0, as in ``helpers.metrics``.
    """
    metric = glue.get(task).metric
    if metric == "accuracy":
        return 100 * counts @ (predictions == truth).T / counts.sum(1, keepdims=True)
    if metric == "matthews_correlation":
        return 100 * _matthews(predictions, truth, counts)
    if metric != "spearman":
        raise ValueError(f"{task}: {metric} is not computed from weighted examples here")
    picked = [np.repeat(np.arange(len(truth)), n.astype(int)) for n in counts]
    return 100 * np.array([[_spearman(row[p], truth[p]) for row in predictions] for p in picked])


def _matthews(predictions: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Matthews correlation of two classes from the counts of the confusion matrix."""
    (tn, fn), (fp, tp) = (
        [weights @ ((predictions == p) & (truth == t)).T.astype(np.float64) for t in (0, 1)]
        for p in (0, 1)
    )
    product = tp * tn - fp * fn
    scale = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)


def _spearman(one: np.ndarray, two: np.ndarray) -> float:
    ranks = [stats.rankdata(values) for values in (one, two)]
    centred = [values - values.mean() for values in ranks]
    scale = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float(centred[0] @ centred[1]) / scale if scale else 0.0
