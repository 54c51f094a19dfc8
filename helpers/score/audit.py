"""The published figures recomputed: what follows from them, what is second-hand, what stays open.

Every function takes the mapping of `paper.load` and none needs a run. Scores are
metric x 100; a table indexed by model or task uses the short names of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from helpers.base.seeding import numpy_generator
from helpers.data import glue
from helpers.score.statistics import impossible, reach

EQUAL_MODELS = 5
ONE_SEED, MEDIAN, BEST = "one seed each", "median of 5 each", "best of 10 against median of 10"
GAPS = np.linspace(0, 1.5, 31)  # points of the average
FINE_TUNINGS = 10  # behind a best, in the published band and in the recipe of the medians
MOST_SEEDS = 20  # the longest row of the simulation
MOST_RUNS = 10  # tried as an explanation of an accuracy no single run can have
EACH, ONE, SPREAD = "each task's best", "one run's best", "spread of each task's best"

Published = Mapping[str, Any]


# --- averages, ranks, gaps ---------------------------------------------------------------------


def scores(published: Published) -> pd.DataFrame:
    """Table 1 as numbers: a row per published model, a column per task, metric x 100."""
    entries = published["table1"]["models"]
    return pd.DataFrame(
        {
            model: {task: figure["value"] for task, figure in entry["scores"].items()}
            for model, entry in entries.items()
        }
    ).T.astype(float)


def _figures(published: Published, field: str) -> pd.Series:
    """One figure of every model of Table 1."""
    entries = published["table1"]["models"]
    return pd.Series({model: entry[field]["value"] for model, entry in entries.items()})


def averages(published: Published) -> pd.DataFrame:
    """By model: the average as printed, the mean of the eight (recomputed), and agrees."""
    printed, mean = _figures(published, "average"), scores(published).mean(axis=1)
    agrees = (printed - mean).abs() <= 0.005 + 1e-9
    return pd.DataFrame({"printed": printed, "recomputed": mean, "agrees": agrees})


def ranks(published: Published) -> pd.DataFrame:
    """By model: average, rank as printed and recomputed (ties share the better), and agrees."""
    average, printed = _figures(published, "average"), _figures(published, "rank")
    rank = average.rank(ascending=False, method="min").astype(int)
    columns = {"average": average, "printed": printed, "recomputed": rank}
    return pd.DataFrame({**columns, "agrees": rank == printed})


def gaps(published: Published) -> pd.DataFrame:
    """By model: average, points below the reference, and whether the announced range covers them.

    The range is compared with the gap to one decimal, as it was announced.
    """
    average = _figures(published, "average")
    low, high = (published["announcement"][key]["value"] for key in ("gap_smallest", "gap_largest"))
    below = (published["reference"]["average"]["value"] - average).round(2)
    inside = below.map(lambda gap: low <= round(gap, 1) <= high)
    return pd.DataFrame({"average": average, "below": below, "announced": inside})


# --- the row of another project ----------------------------------------------------------------


def identity(published: Published) -> pd.DataFrame:
    """Which cells of Table 1 equal the row that ELECTRA's repository prints, bool."""
    other = {task: f["value"] for task, f in published["electra_small_owt"]["scores"].items()}
    return scores(published).eq(pd.Series(other), axis="columns")


# --- accuracies as counts ----------------------------------------------------------------------


def fewest_runs(value: float, rows: int, most: int = MOST_RUNS) -> int:
    """The fewest runs over `rows` rows whose mean accuracy prints as this percentage; 0: none."""
    fits = (runs for runs in range(1, most + 1) if not impossible(value, rows * runs))
    return next(fits, 0)


def reachability(published: Published) -> pd.DataFrame:
    """The test of every accuracy of Table 1 whose row is printed to two decimals.

    Rows of the dev sets are GLUE's own (`glue.TASKS`). Where `step` is below 0.01 every value can
    be reached and the test says nothing.

    Returns:
        One row per model and accuracy task: model, task, value, rows, step (percent between
        neighbouring counts), below, above (the nearest reachable percentages), rounded, cut
        (bool), possible (either), runs (`fewest_runs`).
    """
    lines = []
    for model, entry in published["table1"]["models"].items():
        if model in published["rounding_exempt"]:
            continue
        for task, figure in entry["scores"].items():
            if glue.TASKS[task].metric != "accuracy":
                continue
            rows = glue.TASKS[task].official_rows[glue.TASKS[task].validation]
            found = reach(figure["value"], rows)
            lines.append(
                {
                    "model": model,
                    "task": task,
                    "value": figure["value"],
                    "rows": rows,
                    "step": 100 / rows,
                    "below": found.below_percent,
                    "above": found.above_percent,
                    "rounded": found.rounded,
                    "cut": found.cut,
                    "possible": found.rounded or found.cut,
                    "runs": fewest_runs(figure["value"], rows),
                }
            )
    return pd.DataFrame(lines)


# --- best of n against the median --------------------------------------------------------------


def deviations(published: Published) -> pd.Series:
    """Standard deviation over fine-tuning seeds, by task, metric x 100."""
    tasks = published["tasks"]
    return pd.Series({task: float(entry["noise_sd"]["value"]) for task, entry in tasks.items()})


def average_deviation(published: Published) -> float:
    """Standard deviation of the average of one seed, tasks independent, metric x 100."""
    found = deviations(published)
    return math.hypot(*found) / len(found)


def best_of(spread: pd.Series, resamples: int, seed: int, most: int = MOST_SEEDS) -> pd.DataFrame:
    """What the best of n fine-tunings is worth above their median, by simulation.

    Scores of a task over seeds are drawn as normal and independent between tasks, so the median of
    the law is its mean and a best is counted from there. Real scores have a longer tail below (runs
    that fail) and a hard ceiling above; both make the best worth less.

    Args:
        spread: Standard deviation by task (`deviations`).
        resamples: Simulated sets of fine-tunings.
        seed: Of the simulation.
        most: The largest n.

    Returns:
        Indexed by n from 1 to `most`: one column per task, the expected best of n; then
        the average's gain where each task's best is taken (`EACH`) and where the run with the best
        average is taken whole (`ONE`), and the standard deviation of the former (`SPREAD`).
    """
    generator = numpy_generator(seed, "best of n")
    runs, bests = np.zeros((resamples, most)), np.zeros((resamples, most))
    columns = {}
    for task, deviation in spread.items():
        drawn = generator.normal(0.0, deviation, (resamples, most))
        runs += drawn / len(spread)
        best = np.maximum.accumulate(drawn, axis=1)
        bests += best / len(spread)
        columns[task] = best.mean(axis=0)
    columns[EACH] = bests.mean(axis=0)
    columns[ONE] = np.maximum.accumulate(runs, axis=1).mean(axis=0)
    columns[SPREAD] = bests.std(axis=0)
    return pd.DataFrame(columns, index=pd.RangeIndex(1, most + 1, name="n"))


def published_gain(published: Published) -> float:
    """Best of ten minus mean of ten, as another project reports them, points."""
    ten = published["best_of_ten"]
    return ten["best_of_10"]["value"] - ten["mean_of_10"]["value"]


# --- the first row in the band -----------------------------------------------------------------


@dataclass(frozen=True)
class Band:
    """Where the best published average lies among other pre-trainings' best of ten.

    `above` is the share of normal pre-trainings above `value`, mean and deviation taken as exact;
    `above_estimated` has both estimated from `pretrainings` of them (Student's t).
    """

    value: float  # the average, metric x 100
    mean: float
    sd: float  # over pre-trainings
    pretrainings: int
    z: float  # deviations above the mean
    above: float
    above_estimated: float


def band(published: Published) -> Band:
    """The highest average of Table 1 against the best-of-ten band of plain ELECTRA-Small-OWT.

    Pre-trainings are taken as independent and their best-of-ten averages as normal. Estimated: the
    next draw of n others has (value - mean) / (sd sqrt(1 + 1/n)) ~ t with n - 1 degrees of freedom.
    """
    ten = {key: figure["value"] for key, figure in published["best_of_ten"].items()}
    mean, sd, count = ten["best_of_10"], ten["sd"], int(ten["pretrainings"])
    value = float(_figures(published, "average").max())
    z = (value - mean) / sd
    student = stats.t.sf(z / math.sqrt(1 + 1 / count), count - 1)
    return Band(value, mean, sd, count, z, float(stats.norm.sf(z)), float(student))


def pretraining_deviation(published: Published, gains: pd.DataFrame) -> float:
    """The part of the band's deviation that fine-tuning noise does not account for, points.

    The square root of the band's variance less that of the average of each task's best
    (`best_of`); NaN where the latter is the larger.
    """
    left = band(published).sd ** 2 - gains.loc[FINE_TUNINGS, SPREAD] ** 2
    return math.sqrt(left) if left >= 0 else math.nan


# --- neighbours --------------------------------------------------------------------------------


def neighbours(published: Published, gains: pd.DataFrame) -> pd.DataFrame:
    """Each pair of neighbours of Table 1 by average, and what the kind of figure may explain.

    `gains` is `best_of` of the published deviations.

    Returns:
        One row per pair, best first: upper, lower (models), gap (points), upper_best, lower_best
        (bool: the row is said to be a best score), explained_each, explained_one (the part of the
        gap, at most 1, that a best of ten against a median gives under either way of taking the
        best), as_medians (points: the gap with the first way's gain taken off each row that is a
        best), deviations (the gap over the deviation of a difference of two single seeds).
    """
    ten, entries = gains.loc[FINE_TUNINGS], published["table1"]["models"]
    order = _figures(published, "average").sort_values(ascending=False)
    noise = math.sqrt(2) * average_deviation(published)
    best = {model: "best" in entry["statistic"]["value"] for model, entry in entries.items()}
    lines = []
    for upper, lower in zip(order.index[:-1], order.index[1:], strict=True):
        gap = order[upper] - order[lower]
        lines.append(
            {
                "upper": upper,
                "lower": lower,
                "gap": gap,
                "upper_best": best[upper],
                "lower_best": best[lower],
                "explained_each": min(1.0, ten[EACH] / gap) if gap else 1.0,
                "explained_one": min(1.0, ten[ONE] / gap) if gap else 1.0,
                "as_medians": gap - ten[EACH] * (best[upper] - best[lower]),
                "deviations": gap / noise,
            }
        )
    return pd.DataFrame(lines)


def dev_errors(published: Published) -> pd.DataFrame:
    """How finely a dev set can measure, at the scores of Table 1's first row.

    Returns:
        Indexed by task: rows, step (one row, points; NaN for a correlation), dev (standard error
        of an accuracy over that many rows, points), seed (published deviation over seeds, points).
    """
    first = min(published["table1"]["models"].values(), key=lambda entry: entry["rank"]["value"])
    spread, lines = deviations(published), {}
    for name, task in glue.TASKS.items():
        rows = task.official_rows[task.validation]
        right = first["scores"][name]["value"] / 100
        counted = task.metric == "accuracy"
        error = 100 * math.sqrt(right * (1 - right) / rows)
        lines[name] = {
            "rows": rows,
            "step": 100 / rows if counted else math.nan,
            "dev": error if counted else math.nan,
            "seed": spread[name],
        }
    return pd.DataFrame(lines).T


def rank_shares(published: Published, resamples: int = 20000, seed: int = 0) -> pd.DataFrame:
    """How often each row of Table 1 would take each rank, were every row one fine-tuning seed.

    Averages are drawn as normal around the printed ones with the deviation of one seed's average.

    Returns:
        Models by their printed average, best first; columns are ranks from 1, values shares 0 to 1.
    """
    average = averages(published)["printed"].sort_values(ascending=False)
    noise = numpy_generator(seed, "ranks").normal(
        0.0, average_deviation(published), (resamples, len(average))
    )
    order = np.argsort(-(average.to_numpy() + noise), axis=1)
    place = np.argsort(order, axis=1)
    ranks = range(1, len(average) + 1)
    return pd.DataFrame({r: (place == r - 1).mean(0) for r in ranks}, index=average.index)


def _simulated(spread: pd.Series, way: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Averages of a model whose true scores are 0, float64 `shape`."""
    runs = {ONE_SEED: 1, MEDIAN: 5, BEST: 10}[way]
    drawn = numpy_generator(seed, way).normal(
        0.0, spread.to_numpy()[:, None], (*shape, len(spread), runs)
    )
    return np.median(drawn, axis=-1).mean(-1)


def equal_models(published: Published, boards: int = 20000, seed: int = 0) -> np.ndarray:
    """Equally good models on simulated leaderboards of one seed each.

    float64 [boards, `EQUAL_MODELS`], points from the true average.
    """
    return _simulated(deviations(published), ONE_SEED, (boards, EQUAL_MODELS), seed)


def flips(published: Published, resamples: int = 10000, seed: int = 0) -> pd.DataFrame:
    """How often the worse of two models is ranked above the better one.

    Scores of a task over seeds are normal with the published deviations and independent between
    tasks, as in `best_of`.

    Returns:
        Indexed by the true difference of the averages (`GAPS`, points); columns `ONE_SEED`,
        `MEDIAN` (both entries the median of five seeds) and `BEST` (the worse enters each task's
        best of ten, the better the median of ten); values are shares, 0 to 1.
    """
    spread, found = deviations(published), {}
    for way in (ONE_SEED, MEDIAN):
        pair = _simulated(spread, way, (resamples, 2), seed)
        found[way] = pair[:, 0] - pair[:, 1]
    best = numpy_generator(seed, "worse, best").normal(
        0.0, spread.to_numpy()[:, None], (resamples, len(spread), 10)
    )
    found[BEST] = best.max(-1).mean(-1) - _simulated(spread, BEST, (resamples,), seed)
    columns = {way: [(ahead > gap).mean() for gap in GAPS] for way, ahead in found.items()}
    return pd.DataFrame(columns, index=pd.Index(GAPS, name="difference"))
