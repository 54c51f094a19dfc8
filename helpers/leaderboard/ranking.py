"""The ranking: order, ranks with ties, and which neighbours cannot be told apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from helpers.data import glue
from helpers.leaderboard.check import LEVELS, Entry
from helpers.score import audit, statistics
from helpers.score.predictions import Labels

RESAMPLES = 1000
MOST_RUNS = 100  # of a best; more are worth hardly more
KIND, NOISE = "worth of a best", "noise of a seed"
ONE_SEED, PAIRED = "one seed", "paired comparison"


def group(entry: Entry) -> tuple[int, bool]:
    """What an entry is ranked within: its level of evidence, and whether it was tuned."""
    return LEVELS.index(entry.level), entry.stated.protocol.trials > 0


def ranked(entries: Iterable[Entry]) -> list[Entry]:
    """Entries that hold by `group`, the strongest evidence first, then by average."""
    held = [entry for entry in entries if not entry.error]
    return sorted(held, key=lambda e: (group(e), -round(e.average, 2), e.name))


def ranks(entries: Sequence[Entry]) -> list[str]:
    """The rank of each of the `ranked` entries within its `group`; ties share one, marked ``=``."""
    shown = []
    for entry in entries:
        own = [round(e.average, 2) for e in entries if group(e) == group(entry)]
        value = round(entry.average, 2)
        shown.append("=" * (own.count(value) > 1) + str(own.index(value) + 1))
    return shown


class Gap(NamedTuple):
    """How far an entry is ahead of the next, and what says that chance could have made it.

    `ground` is empty where the two can be told apart, else `NOISE` or `KIND` (less than `low`, what
    single seeds differ by, or that and what a best is worth), `PAIRED` (the difference has the 95 %
    interval `low` to `high`) or `ONE_SEED` (predictions of a single seed). Differences are x 100.
    """

    difference: float
    ground: str = ""
    low: float = math.nan
    high: float = math.nan


def gap(first: Entry, second: Entry, figures: Mapping[str, Any], labels: Labels) -> Gap:
    """Compares two entries of a level.

    With predictions and labels: `statistics.compare`. Without, from the published deviations over
    seeds: below 1.96 x sqrt(2) of the average's they cannot be told apart, and where the first
    states a best, below that and what the best is worth more than the second's.
    """
    difference = first.average - second.average
    if first.level != "claimed" and second.level != "claimed":
        if any(len(runs) < 2 for one in (first, second) for runs in one.predictions.values()):
            return Gap(difference, ONE_SEED)
        truth = {task: dev["label"].to_numpy() for task, dev in labels.dev.items()}
        pair = {"first": first.predictions, "second": second.predictions}
        sampled = statistics.resample(pair, truth, RESAMPLES)
        (found,) = statistics.compare(sampled, truth).values()
        return Gap(difference, "" if found.resolved else PAIRED, found.low, found.high)
    noise = 1.96 * math.sqrt(2) * audit.average_deviation(figures)
    least = noise + _worth(first, figures) - _worth(second, figures)
    if difference >= least:
        return Gap(difference)
    return Gap(difference, KIND if difference >= noise else NOISE, least)


def _worth(entry: Entry, figures: Mapping[str, Any]) -> float:
    """What an entry's average gains where each task's best is stated; ten runs where none are."""
    protocol = entry.stated.protocol
    if protocol.selection != "best":
        return 0.0
    runs = min(protocol.n or audit.FINE_TUNINGS, MOST_RUNS)
    return audit.best_of_normal(runs)[0] * audit.deviations(figures).mean()


def table(entries: Iterable[Entry], figures: Mapping[str, Any], labels: Labels) -> pd.DataFrame:
    """The ranking of entries that were checked with these `labels`.

    One row per entry that holds, as `ranked` orders them. Columns: entry (the `Entry`), rank,
    statistic (what the scores are), the fields of the `Gap` to the next entry of its level (NaN and
    an empty ground for the last), and one per task (x 100: means over seeds where they could be
    recomputed, else as stated).
    """
    held = ranked(entries)
    rows = []
    for entry, rank, second in zip(held, ranks(held), [*held[1:], None], strict=False):
        ahead = Gap(math.nan)
        if second and group(second) == group(entry):
            ahead = gap(entry, second, figures, labels)
        scores = dict(entry.stated.scores) if entry.level == "claimed" else entry.means
        own = {"entry": entry, "rank": rank, "statistic": _statistic(entry)}
        rows.append(own | ahead._asdict() | {task: scores[task] for task in glue.TASKS})
    return pd.DataFrame(rows)


def _statistic(entry: Entry) -> str:
    protocol = entry.stated.protocol
    many = f" of {protocol.n}" if protocol.n else ""
    many += f", tuned by {protocol.trials} trials" if protocol.trials else ""
    if entry.level == "claimed":
        return protocol.selection + many
    return f"mean{many}" + f" ({protocol.selection} claimed)" * (protocol.selection != "mean")
