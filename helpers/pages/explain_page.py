"""Tables and sentences of the background pages, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.base import config
from helpers.base.errors import UserError
from helpers.base.text import NONE, escape, markdown, quantity, score
from helpers.data import glue
from helpers.model import registry
from helpers.pages import explain
from helpers.pages.paper_page import cited, derived, source_list
from helpers.pages.tables import SOURCES, is_embedded
from helpers.score import audit, costs
from helpers.score.paper import model_name, task_name

ASKS = {
    "cola": "is it a sentence of English?",
    "sst2": "is the review's phrase positive?",
    "mrpc": "do two sentences say the same?",
    "stsb": "how alike are two sentences, 0 to 5?",
    "qqp": "do two questions ask the same?",
    "mnli": "does a premise entail, contradict, or neither?",
    "qnli": "does a sentence answer a question?",
    "rte": "does a text entail a hypothesis?",
}

Published = Mapping[str, Any]


# --- objectives ----------------------------------------------------------------------------------


def example(found: explain.Corruption) -> str:
    """One segment under both objectives, then what the whole corpus gives."""
    row = _telling(found)
    chosen = set(found.masked.positions[row][found.masked.weights[row] > 0].tolist())
    changed = set(found.labels[row].nonzero().flatten().tolist())

    def line(ids: Sequence[int], marked: set[int]) -> str:
        words = [escape(found.words[i]) for i in ids]
        return " ".join(f"**{w}**" if k in marked else w for k, w in enumerate(words))

    labels = " ".join("1" if k in changed else "0" for k in range(found.tokens.shape[1]))
    lines = [
        ["original", line(found.tokens[row].tolist(), chosen)],
        ["masked: what the generator reads", line(found.masked.inputs[row].tolist(), chosen)],
        ["corrupted: what the discriminator reads", line(found.corrupted[row].tolist(), changed)],
        ["its labels", labels],
    ]
    restored = 1 - found.replaced / found.chosen
    return markdown(["", "Segment"], lines, left=2) + (
        f"\nOver all {len(found.tokens):,} segments of {found.tokens.shape[1]} words, "
        f"{100 * found.chosen:.1f} % of the words are hidden. The counts restore "
        f"{100 * restored:.0f} % of them, so the label 1 stands at {100 * found.replaced:.1f} % of "
        f"the words. The masked loss is {found.loss:.2f} nats a word; a blind guess among "
        f"{len(found.words) - 1} words would have {math.log(len(found.words) - 1):.2f}.\n"
    )


def _telling(found: explain.Corruption) -> int:
    """The first segment in which one sample is right and another is not."""
    wrong = found.labels.sum(1)
    tells = (wrong > 0) & (wrong < found.masked.weights.sum(1))
    return int(tells.nonzero()[0])


def signal(published: Published, profile: str = "paper") -> str:
    """Where each objective's signal comes from, at a profile's length and vocabulary.

    `generators`, on the same page, lists the source.
    """
    study = config.load_profile(profile)
    length, words = study.max_length, study.wordpiece_vocabulary
    masked = max(1, round(registry.MASK_FRACTION * length))
    flops = [costs.flops(name, study) / 1e6 for name in ("bert", "electra")]
    lines = [
        ["positions with a loss, of a segment", str(masked), f"{masked} + {length}"],
        ["classes there", f"{words:,}", f"{words:,}; 2"],
        ["loss of a blind guess, nats", f"{math.log(words):.2f}", _blind(words)],
        ["MFLOP per token", *(f"{n:.0f}" for n in flops)],
    ]
    header = ["", "Masked language model", "Generator; discriminator"]
    least, most = explain.entropy(registry.MASK_FRACTION), math.log(words)
    paid = next(e for e in published["what_paid"] if "detection" in e["change"])
    effect = cited({**paid, "value": escape(paid["effect"])}, published)
    return markdown(header, lines) + (
        f"\nA discriminator that knows nothing but the share of replaced tokens pays at most "
        f"{least:.2f} nats a token, the generator {most:.2f} before it has learnt anything, "
        f"{most / least:.0f} times as much. The weight {registry.DISCRIMINATOR_WEIGHT:.0f} turns "
        f"{least:.2f} into {registry.DISCRIMINATOR_WEIGHT * least:.1f}: the discriminator, which "
        f"is what is kept, then leads the sum.\n\nReported effect: {escape(paid['change'])}, "
        f"{effect}.\n"
    )


def _blind(words: int) -> str:
    return f"{math.log(words):.2f}; up to {explain.entropy(registry.MASK_FRACTION):.2f}"


def generators(published: Published) -> str:
    """What a wider generator costs, for both models that have one."""
    names = ("electra", "electra-deberta")
    found = {name: explain.generator_sizes(name) for name in names}
    lines = []
    for fraction in explain.FRACTIONS:
        cells = [found[name].loc[fraction] for name in names]
        row = [f"{c['mflop']:.0f} ({c['ratio']:.2f} ×)" for c in cells]
        lines.append([f"{fraction:.2f}", *row])
    header = ["Generator's width", *(f"{model_name(published, n)}, MFLOP" for n in names)]
    paid = next(e for e in published["what_paid"] if "generator" in e["change"])
    effect = cited({**paid, "value": escape(paid["effect"])}, published)
    return markdown(header, lines) + (
        f"\nReported: {escape(paid['change'])}, {effect}.\n\n"
        + source_list(published, [paid["source"]])
    )


# --- small models --------------------------------------------------------------------------------


def small(published: Published, gpus: Mapping[str, costs.Gpu]) -> str:
    """The paper's small encoder beside BERT-Base's shape."""
    gpu = gpus["v100"]
    found = explain.shapes(costs.UTILISATION, gpu.peak_tflops)
    labels = {"small": "the small models'", "base": f"{published['reference']['name']}'s"}
    lines = [
        [
            labels[name],
            f"{row['parameters'] / 1e6:.1f}",
            f"{row['embeddings'] / 1e6:.1f}",
            f"{row['mflop']:.0f}",
            f"{row['days']:.1f}",
        ]
        for name, row in found.iterrows()
    ]
    count = quantity(costs.tokens("bert", config.load_profile("paper")))
    days = f"Days on one {escape(gpu.name)}"
    header = ["Shape", "Parameters, M", "of them token embeddings", "MFLOP per token", days]
    ratio = found.loc["base"] / found.loc["small"]
    return markdown(header, lines) + (
        f"\nDays are for {count} tokens at {100 * costs.UTILISATION:.0f} % of the peak rate for "
        f"both, which is assumed; large products use a GPU better, so the true factor is smaller. "
        f"The larger shape has {ratio['parameters']:.1f} times the parameters and takes "
        f"{ratio['mflop']:.1f} times the FLOP of a token.\n"
    )


def gpu_day(published: Published, gpus: Mapping[str, costs.Gpu]) -> str:
    """Tokens and reported quality of one day on each GPU."""
    found = explain.gpu_day(gpus, published)
    method, lines, used = "ELECTRA-Small, ", [], set()
    for key, gpu in gpus.items():
        rows = found[found["gpu"] == key]
        ends = rows.loc[~rows["measured"]].sort_values("day")
        lines.append(_day(escape(gpu.name), "assumed", ends.iloc[[0, -1]], published, method))
        measured = rows[rows["measured"]].sort_values("day")
        if len(measured):
            first = measured.iloc[0]
            used.add(first["source"])
            basis = cited({**first, "value": "measured by others"}, published)
            ends = measured.iloc[[0, -1]]
            lines.append(_day(escape(gpu.name), basis, ends, published, method))
    points = [p for p in published["quality_per_compute"] if p["method"].startswith(method)]
    used |= {point["source"] for point in points}
    last = max(points, key=lambda point: point["tokens_billions"])
    shares = found.loc[~found["measured"], "utilisation"]
    figure = cited({**last, "value": last["average"]}, published, 1)
    count = quantity(found["tokens"].iloc[0])
    header = ["GPU", "Rate", "Tokens in a day, G", f"Part of {count}, %", "Mean of eight there"]
    return markdown(header, lines, left=2) + (
        f"\nAssumed: {100 * shares.min():.1f} to {100 * shares.max():.1f} % of the peak, the "
        f"lowest and the highest that the measured rates come to. The last column is read off the "
        f"points that ELECTRA's paper reports for shorter trainings, on a straight line in the "
        f"logarithm of tokens; they end at {figure}, and *beyond* says that a day holds more "
        f"tokens than the last of them.\n\n" + source_list(published, used)
    )


def _day(name: str, basis: str, ends: pd.DataFrame, published: Published, method: str) -> list[str]:
    reached = [explain.reported_score(published, day, method) for day in ends["day"]]
    quality = ["beyond" if math.isnan(value) else f"{value:.1f}" for value in reached]
    cells = [
        [f"{day / 1e9:.1f}" for day in ends["day"]],
        [f"{100 * share:.0f}" for share in ends["share"]],
        quality,
    ]
    return [name, basis, *(" to ".join(dict.fromkeys(cell)) for cell in cells)]


# --- how scores come about -----------------------------------------------------------------------


def tasks(published: Published) -> str:
    """The eight tasks: what is asked, sizes, metric, what one row is worth."""
    lines, used = [], {"glue"}
    errors = audit.dev_errors(published)
    for name, task in glue.TASKS.items():
        metric = published["tasks"][name]["metric"]
        used.add(metric["source"])
        rows = [task.official_rows[split] for split in task.splits[:2]]
        worth = errors.loc[name, "step"]
        lines.append(
            [
                escape(task.name),
                escape(ASKS[name]),
                cited(metric, published),
                *(f"{count:,}" for count in rows),
                NONE if math.isnan(worth) else f"{worth:.3f}",
            ]
        )
    header = ["Task", "Question", "Metric", "Train rows", "Dev rows", "One dev row, points"]
    return markdown(header, lines, left=3) + "\n" + source_list(published, used)


def majority(run: Path, records: pd.DataFrame, published: Published, names: Sequence[str]) -> str:
    """What one answer for every row scores on this run's dev rows."""
    found, data = explain.majority(run, names), SOURCES[records["source"].iloc[0]]
    if found.empty:
        return f"This run has no dev labels (data: {data}).\n"
    lines = [
        [task_name(published, task), f"{row['rows']:,.0f}", score(row["score"]), score(row["f1"])]
        for task, row in found.iterrows()
    ]
    header = ["Task", "Dev rows", "Score × 100", "F1 × 100"]
    return (
        f"Data of this run: {escape(data)}.\n\n"
        + markdown(header, lines)
        + (
            f"\nThe mean of these {len(found)} scores is {found['score'].mean():.2f}: where the "
            "scale begins for a model that has learnt nothing.\n"
        )
    )


def choices(records: pd.DataFrame, published: Published, names: Sequence[str]) -> str:
    """How the choice of metrics moves this run's averages."""
    found = explain.choices(records, names)
    if found.empty:
        return "No model of this run has a record of every task.\n"
    ranks = found.rank(ascending=False, method="min").astype(int)
    lines = [
        [
            escape(model_name(published, name)),
            *(f"{row[key]:.2f} ({ranks.loc[name, key]})" for key in ("table1", "glue")),
        ]
        for name, row in found.iterrows()
    ]
    kind = " on the embedded world, not GLUE scores" if is_embedded(records) else ""
    header = ["Model", "As Table 1 counts (rank)", "As GLUE counts (rank)"]
    return f"Means of this run's tasks{kind}.\n\n" + markdown(header, lines)


# --- noise ---------------------------------------------------------------------------------------


def sources_of_noise(published: Published) -> str:
    """Three sources of chance in one score, and in the average."""
    found, used = audit.dev_errors(published), set()
    first = min(published["table1"]["models"].values(), key=lambda entry: entry["rank"]["value"])
    lines = []
    for task, row in found.iterrows():
        noise = published["tasks"][task]["noise_sd"]
        used |= {noise["source"], first["scores"][task]["source"]}
        dev = NONE if math.isnan(row["dev"]) else derived(row["dev"])
        lines.append(
            [task_name(published, task), f"{row['rows']:,.0f}", cited(noise, published), dev]
        )
    gains = audit.best_of(audit.deviations(published), 20000, 0, audit.FINE_TUNINGS)
    again = audit.pretraining_deviation(published, gains)
    used |= {published["best_of_ten"]["sd"]["source"]}
    header = ["Task", "Dev rows", "Fine-tuning seed", "Choice of dev rows"]
    return markdown(header, lines) + (
        "\nStandard deviations in points. Choice of dev rows: "
        rf"$100 \sqrt{{p (1 - p) / n}}$ at the accuracies of {escape(first['name'])}. "
        f"Over seeds, the average of eight has {derived(audit.average_deviation(published))}. A "
        "new pre-training of the same model adds about "
        f"{derived(again)}, worked out from another project's band "
        "([audit](../notebooks/06_audit.ipynb)).\n\n" + source_list(published, used)
    )


def rank_shares(published: Published) -> str:
    """How often each row of Table 1 would take each rank.

    `sources_of_noise`, on the same page, lists the source.
    """
    found = audit.rank_shares(published)
    entries = published["table1"]["models"]
    lines = [
        [
            escape(entries[model]["name"]),
            cited(entries[model]["average"], published),
            *(f"{100 * share:.0f}" for share in row),
        ]
        for model, row in found.iterrows()
    ]
    header = ["Row", "Mean, printed", *(f"Rank {rank}, %" for rank in found.columns)]
    return markdown(header, lines)


def equal_models(published: Published) -> str:
    """What a leaderboard of equal models looks like, in one sentence."""
    drawn = audit.equal_models(published)
    spread = (drawn.max(1) - drawn.min(1)).mean()
    flips = audit.flips(published)
    half, one = (flips.loc[gap] for gap in (0.5, 1.0))
    best = flips[audit.BEST]
    even = best.index[best >= 0.5].max()
    return (
        f"Five equally good models, one seed each: the first stands {spread:.2f} points above the "
        f"last on average, and one of them is called the best. A model that is half a point better "
        f"is ranked below the other in {100 * half[audit.ONE_SEED]:.0f} % of leaderboards of one "
        f"seed, and in {100 * half[audit.MEDIAN]:.0f} % where both are the median of five seeds. "
        f"Where the worse one enters its best of ten and the better one its median, it is "
        f"{100 * half[audit.BEST]:.0f} %, and still {100 * one[audit.BEST]:.0f} % at one point "
        f"of difference: such a choice is worth about {even:.1f} points.\n"
    )


# --- what was stated -----------------------------------------------------------------------------


def stated(published: Published, profile: str = "paper") -> str:
    """What the paper and its releases state, and what is done here where they do not.

    Raises:
        UserError: An entry names a parameter that a profile has not.
    """
    study = config.load_profile(profile)
    values = study.model_dump() | {"seed_count": len(study.seeds)}
    lines, used = [], set()
    for entry in published["stated"]:
        used.add(entry["source"])
        try:
            here = entry["here"].format(**values)
        except KeyError as error:
            raise UserError(
                f"published.json: stated: {entry['question']}: {error.args[0]} is no parameter "
                "of a profile"
            ) from None
        known = entry["value"]
        shown = None if known is None else escape(known)
        lines.append(
            [
                escape(entry["question"]),
                cited({**entry, "value": shown}, published),
                escape(here),
                f"[]({entry['page']}.md)",
            ]
        )
    header = ["Question", "Found", "Here", "Page"]
    return markdown(header, lines, left=4) + "\n" + source_list(published, used)
