"""The leaderboard as the book shows it: ranks, levels of evidence, and who cannot be told apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from helpers.base.text import NONE, escape, markdown, score
from helpers.data import glue
from helpers.leaderboard.check import LEVELS, Entry
from helpers.leaderboard.submission import PARAMETER_LIMIT, RULE
from helpers.score import statistics
from helpers.score.predictions import Labels

RESAMPLES = 1000


def page(entries: Sequence[Entry], figures: Mapping[str, Any], labels: Labels) -> str:
    """The page's tables and what belongs to them.

    Args:
        entries: As :func:`helpers.leaderboard.check` gives them.
        figures: Of ``results/published.json``.
        labels: Dev labels the entries were checked with.

    Returns:
        Markdown. Text that comes from entries is inert.
    """
    held = ranked(entry for entry in entries if not entry.error)
    refused = [entry for entry in entries if entry.error]
    close = {
        first.name: gap(first, second, figures, labels)
        for first, second in pairwise(held)
        if first.level == second.level
    }
    parts = [
        _levels(held, labels),
        _sortable(_scores(held, figures, close)),
        _notes("Neighbours that cannot be told apart", _apart(held, close)),
        _sortable(_facts(held)),
        f"The class has at most {PARAMETER_LIMIT / 1e6:g} million parameters, embeddings included; "
        f"pre-training takes one GPU. The rules are at version {RULE}.\n",
        _notes("Remarks", _remarks(held)),
        _notes("Left out, because the check refuses them", [escape(e.name) for e in refused]),
    ]
    return "\n".join(part for part in parts if part)


def ranked(entries: Iterable[Entry]) -> list[Entry]:
    """Entries by level of evidence, the strongest first, then by average."""
    order = list(LEVELS)
    return sorted(entries, key=lambda e: (order.index(e.level), -round(e.average, 2), e.name))


def ranks(entries: Sequence[Entry]) -> list[str]:
    """The rank of each entry within its level; equal averages share one, marked ``=``.

    Args:
        entries: As :func:`ranked` orders them.
    """
    shown = []
    for entry in entries:
        own = [round(e.average, 2) for e in entries if e.level == entry.level]
        value = round(entry.average, 2)
        shown.append("=" * (own.count(value) > 1) + str(own.index(value) + 1))
    return shown


@dataclass(frozen=True)
class Gap:
    """How far an entry is ahead of the next.

    Attributes:
        difference: Of the averages, x 100.
        why: Empty where the two can be told apart, else the ground in one sentence.
    """

    difference: float
    why: str


def gap(first: Entry, second: Entry, figures: Mapping[str, Any], labels: Labels) -> Gap:
    """Compares two entries.

    With predictions and labels: a paired bootstrap over dev rows and seeds. Without: the published
    deviation of one seed's average, sd; below 1.96 x sqrt(2) x sd they cannot be told apart.

    Args:
        first: The entry ahead.
        second: The next.
        figures: Of ``results/published.json``.
        labels: Dev labels at hand.
    """
    difference = first.average - second.average
    if first.level != "claimed" and second.level != "claimed":
        return _resampled(first, second, labels)
    chosen = [entry.stated.protocol.selection for entry in (first, second)]
    if chosen == ["best", "median"]:  # the other way round the lead is only understated
        ten = figures["best_of_ten"]
        worth = ten["best_of_10"]["value"] - ten["mean_of_10"]["value"]
        return Gap(
            difference,
            "a best ahead of a median is not the same measure "
            f"(elsewhere the best of ten lay {worth:.2f} above the mean of ten)",
        )
    sd = figures["average_noise_sd"]["value"]
    least = 1.96 * math.sqrt(2) * sd
    if difference >= least:
        return Gap(difference, "")
    why = f"less than {least:.2f} = 1.96 × √2 × {sd:g}, from the noise of one seed's average"
    return Gap(difference, why)


def _resampled(first: Entry, second: Entry, labels: Labels) -> Gap:
    truth = {task: dev.label for task, dev in labels.dev.items()}
    found = statistics.paired_bootstrap(
        first.predictions, second.predictions, truth, resamples=RESAMPLES, seed=0
    )
    difference = first.average - second.average
    if found.low > 0 or found.high < 0:
        return Gap(difference, "")
    why = (
        f"a paired bootstrap of {RESAMPLES:,} resamples gives {found.difference:+.2f}, 95 % "
        f"interval {found.low:+.2f} to {found.high:+.2f}"
    )
    return Gap(difference, why)


def _apart(entries: Sequence[Entry], close: Mapping[str, Gap]) -> list[str]:
    lines = []
    for first, second in pairwise(entries):
        found = close.get(first.name)
        if found and found.why:
            names = f"{escape(first.stated.title)} and {escape(second.stated.title)}"
            lines.append(f"{names}, {found.difference:.2f} apart: {found.why}.")
    return lines


def _remarks(entries: Sequence[Entry]) -> list[str]:
    return [f"{escape(e.stated.title)}: {escape(line)}." for e in entries for line in e.remarks]


def _notes(title: str, lines: Sequence[str]) -> str:
    return f"**{title}**\n\n" + "".join(f"- {line}\n" for line in lines) if lines else ""


def _sortable(table: str) -> str:
    """A table that ``book/_static/tables.js`` makes searchable and sortable."""
    return f'<div class="sortable">\n\n{table}\n</div>\n'


def badge(level: str) -> str:
    """A level of evidence as HTML; its text says it, the style only underlines it."""
    return f'<span class="level level-{level}">{level}</span>'


def _levels(entries: Sequence[Entry], labels: Labels) -> str:
    lines = [f"{badge(level)} {what}" for level, what in LEVELS.items()]
    text = _notes("Evidence, as this build could verify it", lines)
    if any(entry.predictions for entry in entries) and len(labels.dev) < len(glue.TASKS):
        text += (
            "\nThis build had no dev labels of all eight tasks, so it recomputed nothing: entries "
            "with predictions stand as claimed.\n"
        )
    return text


def _scores(entries: Sequence[Entry], figures: Mapping[str, Any], close: Mapping[str, Gap]) -> str:
    names = {task: figures["tasks"][task]["name"] for task in glue.TASKS}
    header = ["Rank", "Model", "Evidence", "Average", "Ahead of the next", *names.values()]
    rows = []
    for entry, rank in zip(entries, ranks(entries), strict=True):
        stated, ahead = entry.stated, close.get(entry.name)
        cells = [rank, f"[{escape(stated.title)}]({stated.link})", badge(entry.level)]
        cells += [score(entry.average), _ahead(ahead)]
        rows.append([*cells, *(score(_shown(entry, task)) for task in names), _made(entry)])
    return markdown([*header, "Made of"], rows, left=3)


def _shown(entry: Entry, task: str) -> float:
    return entry.medians[task] if entry.level != "claimed" else entry.stated.scores[task]


def _ahead(found: Gap | None) -> str:
    if found is None:
        return NONE
    return f"{found.difference:.2f}" + (", <br>not told apart" if found.why else "")


def _made(entry: Entry) -> str:
    """What the figures shown are: medians wherever they could be recomputed."""
    protocol = entry.stated.protocol
    least = "≥ " if entry.stated.published else ""
    many = f" of {least}{protocol.n}" if protocol.n else ""
    if entry.level == "claimed":
        return protocol.selection + many
    return f"median{many}" + (" (best claimed)" if protocol.selection == "best" else "")


def _facts(entries: Sequence[Entry]) -> str:
    header = ["Model", "Entry", "Authors", "Corpus", "Hardware", "Licence", "Seeds"]
    header += ["Encoder, M", "Embeddings, M", "Both, M", "Tokens, G", "Hours", "Rule"]
    rows = []
    for entry in entries:
        stated, sizes = entry.stated, entry.stated.parameters
        seeds = stated.protocol.seeds
        rows.append(
            [
                escape(stated.title),
                escape(stated.name),
                escape(", ".join(stated.authors)),
                escape(stated.corpus),
                f"{stated.hardware.gpus} × {escape(stated.hardware.device)}",
                NONE if stated.licence is None else escape(stated.licence),
                NONE if seeds is None else " ".join(map(str, seeds)),
                *(_scaled(size, 1e6) for size in (sizes.encoder, sizes.embeddings, sizes.both)),
                _scaled(stated.tokens, 1e9),
                _scaled(stated.hardware.hours, 1),
                str(stated.protocol.rule),
            ]
        )
    return markdown(header, rows, left=7)


def _scaled(value: float | None, unit: float) -> str:
    return NONE if value is None else f"{round(value / unit, 2):.7g}"
