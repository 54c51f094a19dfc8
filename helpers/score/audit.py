"""The published figures recomputed: what follows from them, what is second-hand, what stays open.

Every function takes the mapping of `paper.load` and none needs a run. Scores are
metric x 100; a table indexed by model or task uses the short names of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from helpers.base.seeding import numpy_generator
from helpers.data import glue

FINE_TUNINGS = 10  # behind a best, in the published band and in the recipe of the medians
MOST_SEEDS = 20  # the longest row of the simulation
EACH, ONE, SPREAD = "each task's best", "one run's best", "spread of each task's best"

Published = Mapping[str, Any]


# --- averages, ranks, gaps ---------------------------------------------------------------------


def scores(published: Published) -> pd.DataFrame:
    """Table 1 as numbers: a row per published model, a column per task, metric x 100."""
    entries = published["table1"]["models"]
    rows = {m: {t: f["value"] for t, f in e["scores"].items()} for m, e in entries.items()}
    return pd.DataFrame(rows).T.astype(float)


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
    found = pd.DataFrame({"average": average, "printed": printed, "recomputed": rank})
    return found.assign(agrees=rank == printed)


def gaps(published: Published) -> pd.DataFrame:
    """By model: average, points below the reference, and whether the announced range covers them.

    The range is compared with the gap to one decimal, as it was announced.
    """
    average = _figures(published, "average")
    low, high = (published["announcement"][key]["value"] for key in ("gap_smallest", "gap_largest"))
    below = (published["reference"]["average"]["value"] - average).round(2)
    inside = below.map(lambda gap: low <= round(gap, 1) <= high)
    return pd.DataFrame({"average": average, "below": below, "announced": inside})


# --- best of n against the median --------------------------------------------------------------


def deviations(published: Published) -> pd.Series:
    """Standard deviation over fine-tunings of one checkpoint, by task, metric x 100."""
    tasks = published["tasks"]
    return pd.Series({task: float(entry["noise_sd"]["value"]) for task, entry in tasks.items()})


def average_deviation(published: Published) -> float:
    """Standard deviation of the average of one seed, tasks independent, metric x 100."""
    found = deviations(published)
    return math.hypot(*found) / len(found)


def best_of(spread: pd.Series, resamples: int, seed: int, most: int = MOST_SEEDS) -> pd.DataFrame:
    """What the best of n fine-tunings is worth above their median, by simulation.

    `spread` holds `deviations`. Scores are drawn as normal and independent between tasks, so the
    median of the law is its mean and a best is counted from there. Real scores have a longer tail
    below (runs that fail) and a hard ceiling above; both make the best worth less.

    By n from 1 to `most`: each task's expected best of n; the average's gain where each task's best
    is taken (`EACH`) and where the run with the best average is taken whole (`ONE`); the standard
    deviation of the former (`SPREAD`).
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


def pretraining_deviation(published: Published, gains: pd.DataFrame) -> float:
    """The part of the band's deviation that fine-tuning noise does not account for, points.

    The square root of the band's variance less that of the average of each task's best
    (`best_of`); NaN where the latter is the larger.
    """
    left = published["best_of_ten"]["sd"]["value"] ** 2 - gains.loc[FINE_TUNINGS, SPREAD] ** 2
    return math.sqrt(left) if left >= 0 else math.nan


def dev_errors(published: Published) -> pd.DataFrame:
    """How finely a dev set can measure, at the scores of Table 1's first row, by task.

    Columns: rows, step (one row, points), dev (standard error of an accuracy over that many rows,
    points), seed (published deviation over seeds, points); step and dev are NaN for a correlation.
    """
    right = scores(published).loc[_figures(published, "rank").idxmin()] / 100
    tasks = pd.Series(glue.TASKS)
    rows = tasks.map(lambda task: float(task.official_rows[task.validation]))
    found = pd.DataFrame({"rows": rows, "step": 100 / rows})
    found["dev"] = 100 * (right * (1 - right) / rows) ** 0.5
    found.loc[tasks.map(lambda task: task.metric != "accuracy"), ["step", "dev"]] = math.nan
    return found.assign(seed=deviations(published))
