"""Every pair of a run's checkpoints compared, all tasks together and again without each of them."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from helpers.base import files
from helpers.base.errors import UserError
from helpers.data import glue
from helpers.pages.view import View
from helpers.score import predictions, statistics
from helpers.score.statistics import Comparison
from helpers.train import records

FILE = "comparisons.json"
QUESTIONS = {  # pairs of models that differ in one idea of the paper, which the first has
    "detection": (("electra", "bert"), ("electra-deberta", "deberta")),
    "attention": (("deberta", "bert"), ("electra-deberta", "electra")),
}
Pairs = dict[tuple[str, str], Comparison]
Labels = dict[str, dict[str, pd.DataFrame]]  # task to dev split to rows with idx and label


class Compared(NamedTuple):
    """Every pair of checkpoints by the mean of the headline's tasks; the bag of words is one."""

    tasks: list[str]
    models: list[str]  # that have all tasks, with two seeds; then the bag of words
    pairs: Pairs
    without: dict[str, Pairs]  # the same, one task left out


def both_ways(pairs: Pairs) -> Pairs:
    """The pairs in either order."""
    return pairs | {(two, one): -pair for (one, two), pair in pairs.items()}


def compared(view: View, labels: Labels | None = None) -> Compared:
    """What `Compared` says.

    A run kept without its data has the comparisons in a file of their own, of the tasks that it
    names, which is read where no `labels` are given.
    """
    kept = view.run / FILE
    if labels is not None:
        return _compare(view, labels)
    if not kept.exists():
        return _compare_own(view)
    found = files.read_json(kept)
    if not set(found["tasks"]) <= set(view.present):
        raise UserError(f"{kept}: is of tasks {found['tasks']}, the records: {view.present}")
    without = {task: _read(rows) for task, rows in found["without"].items()}
    return Compared(found["tasks"], found["models"], _read(found["pairs"]), without)


def least(found: Compared, one: str, other: str) -> tuple[str, Comparison] | None:
    """The task whose absence brings a difference nearest to none, and what it is without; or None.

    Nearest is by the end of the interval.
    """
    full = both_ways(found.pairs).get((one, other))
    if full is None or not found.without:
        return None
    rest = {task: both_ways(pairs)[one, other] for task, pairs in found.without.items()}
    if full.difference >= 0:
        return min(rest.items(), key=lambda left: left[1].low)
    return max(rest.items(), key=lambda left: left[1].high)


def write(found: Compared, folder: Path) -> None:
    """Writes what `compared` reads; six decimals do not depend on the processor."""

    def rows(pairs: Pairs) -> list[list[Any]]:
        return [
            [*pair, *(round(n, 6) for n in asdict(one).values())] for pair, one in pairs.items()
        ]

    without = {task: rows(pairs) for task, pairs in found.without.items()}
    values = {"tasks": found.tasks, "models": found.models, "pairs": rows(found.pairs)}
    files.write_json(folder / FILE, values | {"without": without})


def _read(rows: list[list[Any]]) -> Pairs:
    return {(one, two): Comparison(*values) for one, two, *values in rows}


@lru_cache(maxsize=1)
def _compare_own(view: View) -> Compared:
    """By the labels of the run's own data, once for all tables of a page."""
    return _compare(view, {task: glue.load_dev(view.run, task) for task in view.headline})


def _compare(view: View, labels: Labels) -> Compared:
    tasks, floor = view.headline, records.FLOORS[0]
    headline = {task: labels[task][glue.get(task).validation] for task in tasks}
    everything = pd.concat([view.records, view.of(floor)])
    stacks, truth = predictions.stacked(view.run, everything, headline)
    # No seed moves the bag of words: its one run stands for two that are alike.
    again = {task: np.repeat(runs, 2, axis=0) for task, runs in stacks.pop(floor, {}).items()}
    names = [m for m in view.models if m in stacks and min(map(len, stacks[m].values())) > 1]
    models = {name: stacks[name] for name in names} | ({floor: again} if again else {})
    sampled = statistics.resample(models, truth)
    left = {task: [other for other in tasks if other != task] for task in tasks}
    without = {task: statistics.compare(sampled, rest) for task, rest in left.items() if rest}
    return Compared(tasks, list(models), statistics.compare(sampled, tasks), without)


def questions(view: View) -> pd.DataFrame:
    """The pairs of `QUESTIONS` that were compared, a row each: what, model, other, `Comparison`'s.

    A difference is the first model's; p is corrected for the number of rows.
    """
    known = both_ways(compared(view).pairs)
    asked = [(what, *pair) for what, pairs in QUESTIONS.items() for pair in pairs]
    found = statistics.corrected({row: known[row[1:]] for row in asked if row[1:] in known})
    rows = [[*row, *asdict(one).values()] for row, one in found.items()]
    fields = ["what", "model", "other", *Comparison.__dataclass_fields__]
    return pd.DataFrame(rows, columns=fields)
