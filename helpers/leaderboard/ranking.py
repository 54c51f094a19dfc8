"""The ranking: order, ranks with ties, and which neighbours cannot be told apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from helpers.data import glue
from helpers.leaderboard.check import LEVELS, Entry
from helpers.score import statistics
from helpers.score.predictions import Labels

RESAMPLES = 1000
KIND, NOISE, BOOTSTRAP = "best above median", "noise of a seed", "paired bootstrap"


def ranked(entries: Iterable[Entry]) -> list[Entry]:
    """Entries that hold by level of evidence, the strongest first, then by average."""
    held = [entry for entry in entries if not entry.error]
    return sorted(held, key=lambda e: (LEVELS.index(e.level), -round(e.average, 2), e.name))


def ranks(entries: Sequence[Entry]) -> list[str]:
    """The rank of each of the `ranked` entries within its level; ties share one, marked ``=``."""
    shown = []
    for entry in entries:
        own = [round(e.average, 2) for e in entries if e.level == entry.level]
        value = round(entry.average, 2)
        shown.append("=" * (own.count(value) > 1) + str(own.index(value) + 1))
    return shown


class Gap(NamedTuple):
    """How far an entry is ahead of the next, and what says that chance could have made it.

    `ground` is empty where the two can be told apart, else `KIND` (a best ahead of a median),
    `NOISE` (less than `low`, the least difference that single seeds resolve) or `BOOTSTRAP` (the
    difference lies in `low` to `high`, its 95 % interval). Differences are x 100.
    """

    difference: float
    ground: str = ""
    low: float = math.nan
    high: float = math.nan


def gap(first: Entry, second: Entry, figures: Mapping[str, Any], labels: Labels) -> Gap:
    """Compares two entries of a level.

    With predictions and labels: a paired bootstrap over dev rows and seeds. Without: the published
    deviation of one seed's average, sd; below 1.96 x sqrt(2) x sd they cannot be told apart.
    """
    difference = first.average - second.average
    if first.level != "claimed" and second.level != "claimed":
        truth = {task: dev.label for task, dev in labels.dev.items()}
        pair = {"first": first.predictions, "second": second.predictions}
        (found,) = statistics.compare(pair, truth, RESAMPLES).values()
        return Gap(difference, "" if found.resolved else BOOTSTRAP, found.low, found.high)
    chosen = [entry.stated.protocol.selection for entry in (first, second)]
    if chosen == ["best", "median"]:  # the other way round the lead is only understated
        return Gap(difference, KIND)
    least = 1.96 * math.sqrt(2) * figures["average_noise_sd"]["value"]
    return Gap(difference) if difference >= least else Gap(difference, NOISE, least)


def table(entries: Iterable[Entry], figures: Mapping[str, Any], labels: Labels) -> pd.DataFrame:
    """The ranking of entries that were checked with these `labels`.

    One row per entry that holds, as `ranked` orders them. Columns: entry (the `Entry`), rank,
    made_of (what the scores are), the fields of the `Gap` to the next entry of its level (NaN and
    an empty ground for the last), and one per task (x 100: medians where they could be recomputed,
    else as stated).
    """
    held = ranked(entries)
    rows = []
    for entry, rank, second in zip(held, ranks(held), [*held[1:], None], strict=False):
        ahead = Gap(math.nan)
        if second and second.level == entry.level:
            ahead = gap(entry, second, figures, labels)
        scores = entry.stated.scores if entry.level == "claimed" else entry.medians
        own = {"entry": entry, "rank": rank, "made_of": _made_of(entry)}
        rows.append(own | ahead._asdict() | {task: scores[task] for task in glue.TASKS})
    return pd.DataFrame(rows)


def _made_of(entry: Entry) -> str:
    protocol = entry.stated.protocol
    least = "≥ " if entry.stated.published else ""
    many = f" of {least}{protocol.n}" if protocol.n else ""
    if entry.level == "claimed":
        return protocol.selection + many
    return f"median{many}" + (" (best claimed)" if protocol.selection == "best" else "")
