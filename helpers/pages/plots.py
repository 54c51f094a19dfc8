"""Figures of a run; the look of all: seaborn's, colour-blind safe, with units.

A figure that one page draws stands there: ``with style(): figure, axes = canvas(width, height)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

from helpers.base import config, files
from helpers.pages.view import View
from helpers.score import paper, statistics
from helpers.train.records import FLOORS

MARKERS = "osD^vPX*<>hp"
PALETTE = "colorblind"  # seaborn's, after Okabe and Ito's
COLOUR = sns.color_palette(PALETTE)[0]
WIDTH = 7.2  # inches: the book's column of text, so that letters keep their size
TOKENS = "tokens seen in pre-training"


@contextmanager
def style() -> Iterator[None]:
    """Seaborn's paper look, for the figures made inside."""
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook", font_scale=0.85):
        yield


def canvas(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure that is not registered with pyplot, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def palette(names: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """A colour for each name."""
    colours = sns.color_palette(PALETTE, max(len(names), 1))
    return dict(zip(names, colours, strict=False))


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as SVG, atomically: the same figure gives the same bytes."""
    with (
        mpl.rc_context({"svg.hashsalt": "small-bench-nlp", "svg.fonttype": "path"}),
        files.replacing(Path(path)) as temporary,
    ):
        figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})


@style()
def loss(log: pd.DataFrame, title: str = "", levels: Mapping[str, float] | None = None) -> Figure:
    """Pre-training loss against tokens seen.

    `log` has columns tokens (count) and loss (nats); generator_loss, discriminator_loss and those
    on held-out rows are drawn too where they are present. `levels` are horizontal lines by name.
    """
    names = {
        "loss": "loss",
        "generator_loss": "generator (masked tokens)",
        "discriminator_loss": "discriminator (replaced or not)",
        "held_out_loss": "held-out (every chosen token masked)",
        "held_out_shuffled": "held-out, visible words shuffled",
    }
    present = [column for column in names if column in log and log[column].notna().any()]
    figure, axes = canvas(7, 3.6, columns=1 + ("discriminator_loss" in present))
    colours = palette(present)
    for column in present:
        axis = axes[0, -1 if column == "discriminator_loss" else 0]
        line = log[["tokens", column]].dropna()
        axis.plot(line["tokens"] / 1e6, line[column], color=colours[column], label=names[column])
    for style, (name, value) in zip(("--", ":"), (levels or {}).items(), strict=False):
        axes[0, 0].axhline(value, color="0.4", linestyle=style, linewidth=1, label=name)
    for axis in axes.flat:
        axis.set(xlabel="tokens seen, millions", ylabel="loss, nats")
        if len(present) > 1:
            axis.legend(frameon=False)
    figure.suptitle(title)
    return figure


def _label(view: View) -> str:
    """Profile and data source, for a panel's title."""
    data = f"data: {view.records['source'].iloc[0]}"
    reduced = sorted(set(view.present) - set(view.whole))
    if view.embedded:
        data = "embedded world, not GLUE"
    elif reduced:
        data += f"; reduced: {', '.join(reduced)}"
    return f"Measured: profile {view.records['profile'].iloc[0]}, {data}"


@style()
def budgets(runs: Sequence[View]) -> Figure:
    """Scores against the FLOPs of pre-training, of runs that differ in their budget.

    The first run is the one that is shown. Filled: means over seeds with their range, a line by
    model; controls are a band, the bag of words a line. Open: what others report, where measured
    scores are on GLUE.
    """
    shown = runs[0]
    figure, axes = canvas(5.2, 4.2)
    axis, colours = axes[0, 0], palette(shown.models)
    looks = {
        model: {"color": colours[model], "marker": MARKERS[place % len(MARKERS)], "markersize": 5}
        for place, model in enumerate(shown.models)
    }
    if not shown.embedded:
        _published(axis, shown, looks)
    for model, look in looks.items():
        points = []
        for run in runs:
            seeds = statistics.seed_means(run.records, model, shown.headline)
            if len(seeds) and (spent := run.of(model)["pretrain.flops"].max()):
                points.append((spent, seeds.mean(), seeds.min(), seeds.max()))
        if points:
            spent, middle, low, high = np.array(sorted(points)).T
            name = paper.model_name(shown.published, model)
            reach = (middle - low, high - middle)
            axis.errorbar(spent, middle, reach, **look, linewidth=1, elinewidth=1, label=name)
    _references(axis, shown)
    _log(axis, "FLOPs of pre-training")
    tasks = f"mean of {len(shown.headline)} tasks{shown.mark(shown.headline)} × 100"
    axis.set(ylabel=tasks, title=_label(shown))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _published(axis: Axes, shown: View, looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Others' points, open: the study's models on the run's tasks, and a training of ELECTRA's."""
    from helpers.score import costs  # torch

    study, open_ = config.load_profile("paper"), {"fillstyle": "none", "linestyle": "none"}

    def spent(model: str) -> float:
        return costs.tokens(model, study) * costs.flops(model, study)

    for model, look in looks.items():
        entry = shown.published["table1"]["models"].get(model)
        if entry and set(shown.headline) <= set(entry["scores"]):
            scores = [entry["scores"][task]["value"] for task in shown.headline]
            axis.plot(spent(model), np.mean(scores), **dict(look) | open_)
    along = [p for p in shown.published["quality_per_compute"] if " of the steps" in p["method"]]
    x = [spent("electra") * p["tokens_billions"] / along[0]["tokens_billions"] for p in along]
    look = {"color": "0.4", "marker": "o", "fillstyle": "none", "linewidth": 1, "markersize": 5}
    axis.plot(x, [p["average"] for p in along], **look, label="ELECTRA-Small, published, mean of 8")


def _references(axis: Axes, shown: View) -> None:
    """The controls without pre-training as a band, and the bag of words as a line."""
    untrained = [model for model in shown.models if shown.of(model)["pretrain.tokens"].max() == 0]
    means = [shown.over_seeds(model, shown.headline).mean for model in untrained]
    if means := [value for value in means if np.isfinite(value)]:
        axis.axhspan(min(means) - 0.15, max(means) + 0.15, color="0.8", label="no pre-training")
    floor = shown.over_seeds(FLOORS[0], shown.headline)
    if floor.n:
        axis.axhline(floor.mean, color="0.1", linestyle="--", linewidth=1.2, label="bag of words")


@style()
def held_out(shown: View, levels: Mapping[str, float]) -> Figure:
    """Loss on held-out documents, bits per byte, along each pre-training of a run.

    `levels` are lines across by name, what counting comes to.
    """
    figure, axes = canvas(5.2, 4.0)
    axis, colours = axes[0, 0], palette(shown.models)
    for place, model in enumerate(shown.models):
        log, found = shown.logs.get(model), shown.held_out.get(model, {})
        if log is None or "bits_per_byte" not in found:
            continue
        line = log[["tokens", "held_out_loss"]].dropna()
        bits = line["held_out_loss"] * found["bits_per_byte"] / found["loss"]
        look = {"color": colours[model], "marker": MARKERS[place % len(MARKERS)]}
        look |= {"markersize": 5, "linewidth": 1, "markevery": [-1]}
        axis.plot(line["tokens"], bits, label=paper.model_name(shown.published, model), **look)
    for name, level in levels.items():
        axis.axhline(level, color="0.4", linestyle="--", linewidth=1)
        axis.annotate(name, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axis.set(ylabel="held-out bits per byte", title=_label(shown))
    _log(axis, TOKENS)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _log(axis: Axes, below: str) -> None:
    """A logarithmic axis of a decade and a half or more, labelled at 1 and, if short, at 3."""
    axis.set(xscale="log", xlabel=below)
    low, high = np.log10(axis.get_xlim())
    spare = max(0.0, 1.5 - (high - low)) / 2
    axis.set_xlim(10 ** (low - spare), 10 ** (high + spare))
    axis.xaxis.set_minor_formatter(NullFormatter())
    if high - low < 2:
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        everywhere = (np.inf, np.inf)
        axis.xaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=everywhere))
