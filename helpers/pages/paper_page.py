"""What was published: the figures with their sources, and tables and findings that need no run.

Figures come from ``results/published.json``. Every function that returns text returns Markdown that
Jupyter and MyST both read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from helpers.base.text import NONE, escape, markdown, score
from helpers.score import audit
from helpers.score.paper import mean_of, model_name, some_but_not_all, task_name


def cited(figure: dict[str, Any], published: dict[str, Any], decimals: int = 2) -> str:
    """A published figure with the mark of its status and source, as Markdown."""
    number = list(published["sources"]).index(figure["source"]) + 1
    value = figure["value"]
    if value is None:
        return "not found"
    text = value if isinstance(value, str) else score(value, decimals)
    return f"{text}\u00a0<sup>{figure['status']}{number}</sup>"


def derived(value: float) -> str:
    """A figure worked out here from published ones."""
    return f"{score(value)}\u00a0<sup>D</sup>"


def source_list(published: dict[str, Any], keys: Iterable[str] | None = None) -> str:
    """What the marks mean.

    Args:
        published: The published figures.
        keys: Keys of the sources to list; all where None.

    Returns:
        The statuses in one line and the sources, one per line, as Markdown.
    """
    known = list(published["sources"])
    chosen = known if keys is None else [key for key in known if key in set(keys)]
    statuses = ", ".join(f"**{k}** {escape(text)}" for k, text in published["statuses"].items())
    text = f"Marks: {statuses}. A number is the source; **D** alone is worked out here.\n\n"
    for key in chosen:
        entry = published["sources"][key]
        title = escape(entry["title"])
        link = f"[{title}]({entry['url']})" if entry["url"] else title
        text += f"- {known.index(key) + 1}: {link}\n"
    return text


def table1(published: dict[str, Any], complete: Sequence[str] = ()) -> str:
    """Table 1 as published, with the source of every cell.

    Args:
        published: The published figures.
        complete: Tasks whose mean is recomputed beside that of the eight (those a run has whole).

    Returns:
        Markdown.
    """
    tasks = list(published["tasks"])
    some = some_but_not_all(complete, published)
    header = ["Model", "Rank", *(task_name(published, task) for task in tasks)]
    header += ["Mean", "Mean, recomputed", *([f"Mean of {len(complete)}"] * some)]
    header += [f"Below {published['reference']['name']}"]
    scores, averages, gaps = (f(published) for f in (audit.scores, audit.averages, audit.gaps))
    rows, used = [], {published["reference"]["average"]["source"]}
    for model, entry in published["table1"]["models"].items():
        cells = [entry["scores"][task] for task in tasks] + [entry["average"]]
        used |= {figure["source"] for figure in cells}
        rank = cited(entry["rank"], published, 0)
        mean = averages.loc[model, "recomputed"]
        row = [escape(entry["name"]), rank, *(cited(figure, published) for figure in cells)]
        row += [derived(mean), *([derived(mean_of(scores.loc[model], complete))] * some)]
        rows.append([*row, derived(gaps.loc[model, "below"])])
    text = f"**{escape(published['table1']['title'])}, {escape(published['table1']['unit'])}.**\n\n"
    text += markdown(header, rows) + "\n"
    if some:
        names = ", ".join(task_name(published, task) for task in complete)
        text += f"The mean of {len(complete)} is that of the tasks this run has whole: {names}.\n\n"
    return text + source_list(published, used)


def claim(published: dict[str, Any]) -> str:
    """The paper's claim in one sentence, from its figures."""
    reference = published["reference"]
    entries = published["table1"]["models"].values()
    best = max(entries, key=lambda entry: entry["average"]["value"])
    gap = reference["average"]["value"] - best["average"]["value"]
    return (
        f"{escape(best['name'])} with {cited(best['parameters_millions'], published)} million "
        f"parameters reaches a mean of {cited(best['average'], published)} on the eight dev sets, "
        f"{derived(gap)} below {escape(reference['name'])}, "
        f"{cited(reference['parameters_millions'], published, 0)} million parameters, "
        f"{cited(reference['average'], published)}.\n"
    )


def recipes(published: dict[str, Any]) -> str:
    """The recipes as released, one line per setting."""
    lines, used = [], set()
    for entry in published["recipes"]:
        used.add(entry["source"])
        name = "all" if entry["model"] == "all" else model_name(published, entry["model"])
        setting = cited({**entry, "value": escape(entry["value"])}, published)
        lines.append([escape(name), escape(entry["setting"]), setting])
    header = ["Model", "Setting", "As released"]
    return markdown(header, lines, left=3) + "\n" + source_list(published, used)


def reference_points(published: dict[str, Any]) -> str:
    """Quality for compute: what others report, what a token costs, what paid."""
    used = set()

    def mark(entry: dict[str, Any], value: str) -> str:
        used.add(entry["source"])
        return cited({**entry, "value": escape(value)}, published)

    points = [
        [
            escape(entry["method"]),
            f"{entry['tokens_billions']:g} G" if entry["tokens_billions"] else NONE,
            escape(entry["time_hardware"]),
            mark(entry, score(entry["average"])),
        ]
        for entry in published["quality_per_compute"]
    ]
    cost = [[escape(e["method"]), mark(e, f"{e['mflop']:g}")] for e in published["flop_per_token"]]
    speed = [
        [escape(e["method"]), mark(e, " to ".join(f"{n:,}" for n in e["tokens_per_second"]))]
        for e in published["throughput"]
    ]
    paid = [[escape(e["change"]), mark(e, e["effect"])] for e in published["what_paid"]]
    header = ["Method", "Tokens", "Time, hardware", "Mean of eight"]
    text = "**Mean of eight GLUE dev scores, by budget.**\n\n" + markdown(header, points)
    text += "\n**What a token costs in pre-training, at length 128, forward and backward.**\n\n"
    text += markdown(["Model", "MFLOP per token"], cost)
    text += "\n**Speed of others' pre-training.**\n\n"
    text += markdown(["Model", "Tokens per second"], speed)
    text += "\n**What paid, in others' ablations.**\n\n" + markdown(["Change", "Effect"], paid)
    return text + "\n" + source_list(published, used)
