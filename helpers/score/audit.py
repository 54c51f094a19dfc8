"""What the published figures say of chance; the audit's notebook does the rest.

`published` is results/published.json. Scores are metric x 100, models and tasks have the short
names of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import pandas as pd
from scipy import integrate, stats

FINE_TUNINGS = 10  # behind a best, in the published band and in the recipe of the medians
MOST_SEEDS = 20  # the most fine-tunings that a best is of
EACH, ONE, SPREAD = "each task's best", "one run's best", "spread of each task's best"

Published = Mapping[str, Any]


def scores(published: Published) -> pd.DataFrame:
    """Table 1 as numbers: a row per published model, a column per task, metric x 100."""
    entries = published["table1"]["models"]
    rows = {m: {t: f["value"] for t, f in e["scores"].items()} for m, e in entries.items()}
    return pd.DataFrame(rows).T.astype(float)


def deviations(published: Published) -> pd.Series:
    """Standard deviation over fine-tunings of one checkpoint, by task, metric x 100."""
    tasks = published["tasks"]
    return pd.Series({task: float(entry["noise_sd"]["value"]) for task, entry in tasks.items()})


def average_deviation(published: Published) -> float:
    """Standard deviation of the average of one seed, tasks independent, metric x 100."""
    found = deviations(published)
    return math.hypot(*found) / len(found)


@cache
def best_of_normal(n: int) -> tuple[float, float]:
    """Mean and standard deviation of the largest of `n` standard normals, by their density."""

    def moment(power: int) -> float:
        law = stats.norm
        density = integrate.quad(
            lambda x: x**power * n * law.pdf(x) * law.cdf(x) ** (n - 1), -10, 10
        )
        return density[0]

    return moment(1), math.sqrt(moment(2) - moment(1) ** 2)


def best_of(spread: pd.Series, most: int = MOST_SEEDS) -> pd.DataFrame:
    """What the best of n fine-tunings is worth above their median.

    `spread` holds `deviations`. Scores are taken as normal and independent between tasks, so the
    median of the law is its mean and a best is counted from there. Real scores have a longer tail
    below (runs that fail) and a hard ceiling above; both make the best worth less.

    By n from 1 to `most`: each task's expected best of n; the average's gain where each task's best
    is taken (`EACH`) and where the run with the best average is taken whole (`ONE`); the standard
    deviation of the former (`SPREAD`).
    """
    rows, one = {}, math.hypot(*spread) / len(spread)  # deviation of one run's average
    for n in range(1, most + 1):
        mean, deviation = best_of_normal(n)
        rows[n] = {**(mean * spread), EACH: mean * spread.mean(), ONE: mean * one}
        rows[n][SPREAD] = deviation * one
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("n")
