"""What ``make bench`` measured, as the book shows it: speeds and equal losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from helpers.base import files
from helpers.base.config import validate
from helpers.base.text import NONE, escape, markdown, span

MEBI = 2**20
WARM = 5.0  # seconds of warm-up worth a line


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Timing(_Strict):
    """One row: a work of ours beside a reference, timed in turn."""

    work: str
    reference: str
    ours: float = Field(gt=0, description="median rate, units per second")
    theirs: float = Field(gt=0, description="median rate of the reference")
    ratio: float = Field(gt=0, description="median over pairs of timings")
    ratio_low: float = Field(gt=0)
    ratio_high: float = Field(gt=0)
    goal: float | None = Field(description="ratio aimed at")
    rate_goal: float | None = Field(None, description="units per second aimed at, on an H200")
    unit: str
    n: int = Field(ge=1, description="pairs of timings")
    warmup_ours: float = Field(ge=0, description="seconds before the first timing")
    warmup_theirs: float = Field(ge=0)
    memory_ours: int | None = Field(description="bytes at the peak of a step beyond the weights")
    memory_theirs: int | None
    mfu: float | None = Field(description="model FLOP utilisation, 1 = the machine's products")


class _Measured(_Strict):
    """Where a file of measurements came from, and the shapes that were timed."""

    hardware: dict[str, Any]
    versions: dict[str, str]
    size: str
    length: int
    batch: int


class Speeds(_Measured):
    """``bench.json``: every row, and the machine it came from."""

    peaks: dict[str, float] = Field(description="FLOP per second of large products, by format")
    rows: list[Timing] = Field(min_length=1)


class Run(_Strict):
    """One training run: losses of every few steps."""

    model: str
    side: str
    seed: int
    final: float
    curve: list[float]


class Curves(_Measured):
    """``curves.json``: losses of our steps and of stock classes."""

    vocabulary: int
    steps: int
    rate: float
    dropout: float
    point: int = Field(ge=1, description="steps averaged into one point of a curve")
    end: int = Field(ge=1, description="steps whose mean is the final loss")
    corpus: str
    runs: list[Run] = Field(min_length=1)


class Profile(_Measured):
    """``profile.json``: the operations that take most of a step's CPU time."""

    model: str
    precision: str
    shares: dict[str, float] = Field(min_length=1, description="of the step, by operation")


F = TypeVar("F", Speeds, Curves, Profile)


def load(path: Path, cls: type[F]) -> F:
    """Reads a file of ``make bench``.

    Args:
        path: The JSON file.
        cls: :class:`Speeds`, :class:`Curves` or :class:`Profile`.

    Raises:
        UserError: When it is missing or not JSON, or a field is missing or wrong.
    """
    return validate(cls, files.read_json(Path(path)), str(path))


def speed(bench: Speeds) -> str:
    """The speed of this code beside what it is compared with, as Markdown."""
    header = ["Work", "Compared with", "Ours", "Theirs", "Unit", "Ratio", "Range", "Goal"]
    header += ["MFU, %", "Memory, MiB"]
    lines = [
        [
            escape(row.work),
            escape(row.reference),
            f"{row.ours:,.0f}" if row.ours >= 100 else f"{row.ours:.1f}",
            f"{row.theirs:,.0f}" if row.theirs >= 100 else f"{row.theirs:.1f}",
            escape(row.unit),
            f"{row.ratio:.2f}",
            f"{row.ratio_low:.2f} to {row.ratio_high:.2f}",
            _goal(row),
            f"{100 * row.mfu:.0f}" if row.mfu else NONE,
            _pair(row.memory_ours, row.memory_theirs),
        ]
        for row in bench.rows
    ]
    peaks = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in bench.peaks.items())
    return (
        f"**{_machine(bench)} · {escape(bench.size)} size · length {bench.length} · batch "
        f"{bench.batch} · pairs of timings: {span(row.n for row in bench.rows)} · products of "
        f"large matrices: {peaks}**\n\n" + markdown(header, lines, left=2) + _warmups(bench)
    )


def _goal(row: Timing) -> str:
    if row.rate_goal:
        return f"{row.rate_goal:,.0f} {escape(row.unit)}"
    return f"{row.goal:.2f}" if row.goal else NONE


def _machine(found: _Measured) -> str:
    name, threads = escape(str(found.hardware["name"])), found.hardware["threads"]
    versions = f"torch {found.versions['torch']}, transformers {found.versions['transformers']}"
    return f"{name}, {threads} threads · {escape(versions)}"


def _pair(ours: int | None, theirs: int | None) -> str:
    if ours is None or theirs is None:
        return NONE
    return f"{ours / MEBI:,.0f} / {theirs / MEBI:,.0f}"


def _warmups(bench: Speeds) -> str:
    found = [
        f"{escape(name)}: {seconds:.0f} s"
        for row in bench.rows
        for name, seconds in (
            (f"{row.work}", row.warmup_ours),
            (f"{row.work}, {row.reference}", row.warmup_theirs),
        )
        if seconds >= WARM
    ]
    return f"\nWarm-up, not in the timings: {'; '.join(found)}.\n" if found else ""


def finals(curves: Curves) -> pd.DataFrame:
    """The last losses: a row per model and side with mean, sd (over seeds) and n."""
    table = pd.DataFrame([run.model_dump() for run in curves.runs])
    grouped = table.groupby(["model", "side"], sort=False)["final"]
    return grouped.agg(["mean", "std", "count"]).reset_index()


def equal(curves: Curves) -> str:
    """Losses of our steps beside those of stock classes, as Markdown."""
    found = finals(curves)
    sides = list(dict.fromkeys(found["side"]))
    lines = []
    for name, rows in found.groupby("model", sort=False):
        by_side = rows.set_index("side")
        lines.append(
            [
                escape(str(name)),
                *(
                    f"{by_side.loc[side, 'mean']:.3f} ± {by_side.loc[side, 'std']:.3f}"
                    for side in sides
                ),
            ]
        )
    return (
        f"**{_machine(curves)} · {escape(curves.size)} size · {curves.steps} steps of "
        f"{curves.batch} × {curves.length} tokens · vocabulary "
        f"{curves.vocabulary:,} · peak rate {curves.rate:g} · dropout "
        f"{curves.dropout:g} · {escape(curves.corpus)} · {span(found['count'])} seeds**\n\n"
        + markdown(["Model", *(escape(side) for side in sides)], lines)
        + f"\nMean loss of the last {curves.end} steps, nats, ± standard deviation over seeds.\n"
    )


def profiled(found: Profile) -> str:
    """The operations that take most of a step, as Markdown."""
    lines = [[escape(name), f"{100 * share:.0f}"] for name, share in found.shares.items()]
    return (
        f"**{escape(found.model)}, {escape(found.precision)} · {_machine(found)} · "
        f"{escape(found.size)} size · batch {found.batch} × {found.length}**\n\n"
        + markdown(["Operation", "Share of the step, %"], lines)
    )
