"""What the published figures say of chance; the audit's notebook does the rest.

`published` is results/published.json. Scores are metric x 100, models and tasks have the short
names of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from helpers.base.seeding import numpy_generator

FINE_TUNINGS = 10  # behind a best, in the published band and in the recipe of the medians
MOST_SEEDS = 20  # the longest row of the simulation
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
