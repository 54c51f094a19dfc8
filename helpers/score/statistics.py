"""Means, spreads, intervals and comparisons over seeds and dev examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, stdev
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
from scipy import stats

from helpers.data import glue

LEVEL = 0.95
BLOCK = 100  # resamples held in memory together
K = TypeVar("K")


@dataclass(frozen=True)
class Summary:
    """What is said of `n` values, one per seed; NaN where there are too few."""

    n: int
    mean: float
    sd: float  # with n - 1
    se: float  # of the mean
    low: float  # the lowest and the highest
    high: float


def summary(values: Iterable[float]) -> Summary:
    """Summarises one value per seed; a value that is not finite is a `ValueError`."""
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"scores {numbers}: must be finite numbers")
    n = len(numbers)
    if n == 0:
        return Summary(0, *[math.nan] * 5)
    sd = stdev(numbers) if n > 1 else math.nan
    return Summary(n, fmean(numbers), sd, sd / math.sqrt(n), min(numbers), max(numbers))


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


def impossible(value: float, rows: int, decimals: int = 2) -> bool:
    """Whether no count of right answers out of `rows`, rounded or cut, prints as this percentage.

    `rows` are those of all runs that a mean is over; twice the dev set's where half counts are
    possible, in the median of an even number of runs.
    """
    found = reach(value, rows, decimals)
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


@dataclass(frozen=True)
class Comparison:
    """A difference between two checkpoints, its 95 % interval and the test of none, score x 100."""

    difference: float  # first minus second: the mean of the tasks, each a mean over seeds
    low: float  # of this pair alone, by Student's t
    high: float
    p: float  # two-sided, of this pair alone until `corrected`

    @property
    def resolved(self) -> bool:
        """Whether the checkpoints differ, at 5 %."""
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


@dataclass(frozen=True)
class Resampled:
    """A checkpoint's scores x 100 by task, means over seeds, and what seeds add to their error."""

    scores: dict[str, np.ndarray]  # [1 + resamples]: of the examples as they are, then as drawn
    variances: dict[str, float]  # s^2 / n over the seeds
    degrees: dict[str, int]  # of freedom of that


def resample(
    models: Mapping[str, Mapping[str, np.ndarray]],
    labels: Mapping[str, np.ndarray],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Resampled]:
    """Draws the examples of each task anew, with replacement, the same for all models.

    `models` maps name to task to predictions, [seeds, examples]: int64 classes, float64 for STS-B.
    Seeds may differ in number, and are two at least; tasks and examples must not (a `ValueError`).
    `labels` maps task to what is true, [examples].
    """
    return {name: _resampled(name, models[name], labels, resamples, seed) for name in models}


def compare(
    sampled: Mapping[str, Resampled], tasks: Iterable[str]
) -> dict[tuple[str, str], Comparison]:
    """Compares every pair of models, one checkpoint each, by the mean of some tasks.

    The variance of a difference has two parts. That of the dev examples is of a paired bootstrap,
    `resample`. That of the seeds is s^2 / n of each task and model, added up: a bootstrap of so few
    takes a half of it at two seeds and nothing at one. Degrees of freedom are Satterthwaite's, the
    test is Student's.

    Source: Berg-Kirkpatrick et al. 2012, section 2 (paired bootstrap); Satterthwaite 1946.
    """
    chosen = list(tasks)
    totals, variances, degrees = {}, {}, {}
    for name, one in sampled.items():
        totals[name] = np.mean([one.scores[task] for task in chosen], axis=0)
        variances[name] = np.array([one.variances[task] for task in chosen]) / len(chosen) ** 2
        degrees[name] = np.array([one.degrees[task] for task in chosen])
    found = {}
    for one, two in combinations(sampled, 2):
        drawn = totals[one] - totals[two]  # the first entry is of the data as they are
        total = drawn[1:].var(ddof=1) + variances[one].sum() + variances[two].sum()
        uncertain = sum((variances[m] ** 2 / degrees[m]).sum() for m in (one, two))
        law = stats.t(total**2 / uncertain if uncertain else math.inf)
        difference, half = float(drawn[0]), float(law.ppf((1 + LEVEL) / 2) * math.sqrt(total))
        away = abs(difference)
        p = float(2 * law.sf(away / math.sqrt(total))) if total else float(not away)
        found[one, two] = Comparison(difference, difference - half, difference + half, p)
    return found


def corrected(pairs: Mapping[K, Comparison]) -> dict[K, Comparison]:
    """The pairs with p corrected for their number by `holm`; intervals stay those of one pair."""
    p_values = holm([one.p for one in pairs.values()])
    return {pair: replace(one, p=p) for (pair, one), p in zip(pairs.items(), p_values, strict=True)}


def _resampled(
    name: str,
    predictions: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    resamples: int,
    seed: int,
) -> Resampled:
    if set(predictions) != set(labels) or not labels:
        raise ValueError(f"{name}: tasks {sorted(predictions)} are not {sorted(labels)}")
    found = Resampled({}, {}, {})
    for place, (task, truth) in enumerate(sorted(labels.items())):
        runs = np.atleast_2d(predictions[task])
        if len(runs) < 2 or runs.shape[1] != len(truth):
            raise ValueError(
                f"{name}, {task}: predictions of shape {runs.shape}: must be two seeds or more, "
                f"each of {len(truth)} examples"
            )
        examples = np.random.default_rng([seed, place])  # the same for every model
        (own,) = _weighted_scores(task, runs, truth, np.ones((1, len(truth))))
        means = [own.mean(keepdims=True)]
        for start in range(0, resamples, BLOCK):
            counts = _example_counts(len(truth), min(BLOCK, resamples - start), examples)
            means.append(_weighted_scores(task, runs, truth, counts).mean(1))
        found.scores[task] = np.concatenate(means)
        found.variances[task] = own.var(ddof=1) / len(runs)
        found.degrees[task] = len(runs) - 1
    return found


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
    if metric == "matthews_correlation" and len(glue.get(task).labels) == 2:
        return 100 * _matthews(predictions, truth, counts)
    score = _spearman
    if metric != "spearman":  # of a task of your own
        from helpers.data.metrics import METRICS  # evaluate, which takes seconds

        score = METRICS[metric]
    picked = [np.repeat(np.arange(len(truth)), n.astype(int)) for n in counts]
    return 100 * np.nan_to_num([[score(truth[p], row[p]) for row in predictions] for p in picked])


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
