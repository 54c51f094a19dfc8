"""The protocol ``tuned``: learning rate and epochs of a task, chosen on held-out train rows.

The grid is the same for every encoder. Each pair of values is tried once, on the train rows without
those that are held out; the dev set is read for none of them. More rows than a trial reads would
make it long: then the first of a shuffle are tried, at the fixed number of epochs, because passes
over a part say little of passes over the whole.
"""

from itertools import product
from typing import Any

import numpy as np

from helpers.base import config, seeding
from helpers.train.batches import Encoded, take

RATES = (3e-5, 1e-4, 3e-4, 1e-3)
EPOCHS = (3, 10)
ASIDE, MOST_ASIDE = 0.2, 1000  # part of the train rows that is held out, and rows at most
MOST_ROWS = 8000  # that a trial is trained on
SEED = 2**30  # of every trial: none that a score has


def specification(parameters: config.Finetune) -> dict[str, Any]:
    """What stands for the chosen parameters in all that a score follows from; empty for fixed."""
    if parameters.protocol == "fixed":
        return {}
    fixed = {"epochs": parameters.finetune_epochs, "epochs_small": parameters.finetune_epochs_small}
    grid = {"rates": list(RATES), "grid": list(EPOCHS), "seed": SEED, "most_rows": MOST_ROWS}
    return {"tuning": fixed | grid | {"aside": [ASIDE, MOST_ASIDE]}}


def grid(rows: int, epochs: int) -> list[tuple[float, int]]:
    """Rate and epochs of every trial of a task with so many train rows.

    `epochs` is the fixed number of passes.
    """
    aside = held_out(rows)
    return list(product(RATES, EPOCHS if rows - aside <= MOST_ROWS else (epochs,)))


def held_out(rows: int) -> int:
    """How many of a task's train rows are held out."""
    return min(MOST_ASIDE, max(1, round(ASIDE * rows)))


def split(data: Encoded, rows: int) -> tuple[Encoded, Encoded]:
    """A train split as what trials are trained on and what they are scored on.

    It has `rows` examples, and may hold each pair a second time with its sentences swapped: both
    are then on the same side, and nothing is scored twice.
    """
    order = seeding.numpy_generator("tuning", rows).permutation(rows)
    aside = held_out(rows)
    chosen = np.sort(order[aside : aside + MOST_ROWS])
    tried = np.concatenate([chosen + first for first in range(0, len(data.lengths), rows)])
    return take(data, tried), take(data, np.sort(order[:aside]))


def trial(
    task: str, rate: float, epochs: int, rows: int, held_out: Encoded, found: np.ndarray
) -> dict[str, Any]:
    """What a trial came to, from its predictions of those of `rows` that are held out."""
    from helpers.data import metrics  # evaluate, which takes seconds

    score, _, note = metrics.score(task, found, held_out.labels)
    aside = len(held_out.lengths)
    counts = {"train_rows": min(rows - aside, MOST_ROWS), "held_out_rows": aside}
    return {"rate": rate, "epochs": epochs, **counts, "score": score, "note": note}


def chosen(rate: float, epochs: int) -> dict[str, Any]:
    """The parameters that a trial sets."""
    both = dict.fromkeys(("finetune_epochs", "finetune_epochs_small"), epochs)
    return {"finetune_learning_rate": rate, **both}


def best(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The parameters of the trial with the highest score, of equals the one with the least rate."""
    found = max(trials, key=lambda trial: (trial["score"], -trial["rate"], -trial["epochs"]))
    return chosen(found["rate"], found["epochs"])
