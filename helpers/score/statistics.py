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

LEVEL = 0.95
FEWEST = 5  # seeds from which an interval is given; below them, the range
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
    low: float  # ends of `median_interval`
    high: float
    coverage: float  # how often such an interval holds the median of the law, 0 to 1


def summary(values: Iterable[float]) -> Summary:
    """Summarises one value per seed; a value that is not finite is a `ValueError`."""
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"scores {numbers}: must be finite numbers")
    n = len(numbers)
    if n == 0:
        return Summary(0, *[math.nan] * 8)
    sd = stdev(numbers) if n > 1 else math.nan
    ends = median_interval(numbers)
    return Summary(n, fmean(numbers), median(numbers), sd, sd / math.sqrt(n), max(numbers), *ends)


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Two of the values that have the median of their law between them, and how often they do.

    The k-th smallest and the k-th largest cover it with probability 1 - 2 P(X < k), X binomial of
    n and 1/2, whatever the law, if it is continuous (David and Nagaraja 2003, section 7.1). Taken
    is the largest k that covers 95 %; below six values none does, and the ends are the range: 50 %
    of two values, 75 % of three, 94 % of five. NaN below two values.
    """
    n, ordered = len(values), sorted(values)
    if n < 2:
        return math.nan, math.nan, math.nan
    covered = 1 - 2 * stats.binom.cdf(np.arange(n // 2), n, 0.5)  # by k - 1, falling
    k = max(1, int((covered >= LEVEL).sum()))
    return float(ordered[k - 1]), float(ordered[-k]), float(covered[k - 1])


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


def seed_means(records: pd.DataFrame, model: str, tasks: Sequence[str]) -> pd.Series:
    """Plain mean of the tasks' scores x 100, by seed; `records` is of `view.load_records`.

    Only seeds that have every task count: a mean over other tasks is another quantity.
    """
    chosen = records[(records["model"] == model) & (records["task"].isin(list(tasks)))]
    wide = chosen.pivot(index="seed", columns="task", values="score").reindex(columns=list(tasks))
    return wide.dropna().mean(axis=1) if tasks else pd.Series(dtype=float)


def mean_of_tasks(records: pd.DataFrame, model: str, tasks: Sequence[str]) -> Summary:
    """Summarises `seed_means`, so that the standard error is that of the average itself."""
    return summary(seed_means(records, model, tasks))


def difference(first: Summary, second: Summary) -> tuple[float, float, float]:
    """First mean minus second, its standard error, and the half width of its 95 % interval.

    By Student's t with pooled variance and n1 + n2 - 2 degrees of freedom: 4.30 standard errors at
    two seeds each, not 2. The last two are NaN where either has fewer than two.
    """
    degrees = first.n + second.n - 2
    squares = sum((one.n - 1) * one.sd**2 for one in (first, second))  # NaN of one value
    error = math.nan
    if min(first.n, second.n) > 1:
        error = math.sqrt(squares / degrees * (1 / first.n + 1 / second.n))
    half = float(stats.t.ppf((1 + LEVEL) / 2, max(degrees, 1))) * error
    return first.mean - second.mean, error, half


@dataclass(frozen=True)
class Comparison:
    """A difference between two checkpoints, its 95 % interval and the test of none, score x 100."""

    difference: float  # first minus second: the mean of the tasks, each a mean over seeds
    low: float  # of this pair alone, by Student's t
    high: float
    p: float  # two-sided, by Holm's correction for all pairs compared together

    @property
    def resolved(self) -> bool:
        """Whether the checkpoints differ, at 5 % for all pairs compared together."""
        return self.p <= 1 - LEVEL

    def __neg__(self) -> Comparison:
        """Second minus first."""
        return Comparison(-self.difference, -self.high, -self.low, self.p)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: at 5 %, 5 % of families have a false positive.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for place, k in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[k]))
        corrected[k] = largest
    return corrected


def compare(
    models: Mapping[str, Mapping[str, np.ndarray]],
    labels: Mapping[str, np.ndarray],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[tuple[str, str], Comparison]:
    """Compares every pair of models, one checkpoint each, over fine-tuning seeds and dev examples.

    The variance of a difference has two parts. That of the dev examples is of a paired bootstrap:
    in each resample the examples of a task are drawn anew, the same for all models. That of the
    seeds is s^2 / n of each task and model, added up: a bootstrap of so few takes a half of it at
    two seeds and nothing at one. Degrees of freedom are Satterthwaite's, the test is Student's.

    `models` maps name to task to predictions, [seeds, examples]: int64 classes, float64 for STS-B.
    Seeds may differ in number, and are two at least; tasks and examples must not (a `ValueError`).
    `labels` maps task to what is true, [examples].

    Source: Berg-Kirkpatrick et al. 2012, section 2 (paired bootstrap); Satterthwaite 1946.
    """
    sampled = {
        name: _resampled(name, predictions, labels, resamples, seed)
        for name, predictions in models.items()
    }
    differences, halves, p_values = {}, [], []
    for one, two in combinations(models, 2):
        (first, *seeds), (second, *others) = sampled[one], sampled[two]
        drawn = first - second  # the first entry is of the data as they are
        variances, degrees = map(np.concatenate, zip(seeds, others, strict=True))
        total = drawn[1:].var(ddof=1) + variances.sum()
        uncertain = (variances**2 / degrees).sum()
        law = stats.t(total**2 / uncertain if uncertain else math.inf)
        differences[one, two] = difference = float(drawn[0])
        halves.append(float(law.ppf((1 + LEVEL) / 2) * math.sqrt(total)))
        away = abs(difference)
        p_values.append(float(2 * law.sf(away / math.sqrt(total))) if total else float(not away))
    return {
        pair: Comparison(difference, difference - half, difference + half, p)
        for (pair, difference), half, p in zip(
            differences.items(), halves, holm(p_values), strict=True
        )
    }


def _resampled(
    name: str,
    predictions: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    resamples: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of tasks and seeds x 100, of the data and then of each resample, [1 + resamples].

    And by task, [tasks]: what seeds add to its variance, and the degrees of freedom of that.
    """
    if set(predictions) != set(labels) or not labels:
        raise ValueError(f"{name}: tasks {sorted(predictions)} are not {sorted(labels)}")
    total = np.zeros(1 + resamples)
    variances, degrees = [], []
    for place, (task, truth) in enumerate(sorted(labels.items())):
        runs = np.atleast_2d(predictions[task])
        if len(runs) < 2 or runs.shape[1] != len(truth):
            raise ValueError(
                f"{name}, {task}: predictions of shape {runs.shape}: must be two seeds or more, "
                f"each of {len(truth)} examples"
            )
        examples = np.random.default_rng([seed, place])  # the same for every model
        (own,) = _weighted_scores(task, runs, truth, np.ones((1, len(truth))))
        total[0] += own.mean()
        variances.append(own.var(ddof=1) / len(runs) / len(labels) ** 2)
        degrees.append(len(runs) - 1)
        for start in range(0, resamples, BLOCK):
            stop = min(start + BLOCK, resamples)
            counts = _example_counts(len(truth), stop - start, examples)
            scores = _weighted_scores(task, runs, truth, counts)
            total[1 + start : 1 + stop] += scores.mean(1)
    return total / len(labels), np.array(variances), np.array(degrees)


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
