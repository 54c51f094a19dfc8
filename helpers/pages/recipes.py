"""What each change of the paper's recipe was worth: the recipe study of ``results/beyond.json``.

Every variant of `registry.VARIANTS` is pre-trained on as many tokens as the model it changes, and
fine-tuned in the same way. Variants that change nothing but the seed measure the noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from scipy import stats
from transformers import AutoModel

from helpers.base import config, files
from helpers.base.config import Strict
from helpers.base.errors import UserError
from helpers.base.text import NONE, escape, markdown, quantity, score, signed, span
from helpers.data import glue, tokenizer
from helpers.model import registry

LEVEL = 0.95


class Trained(Strict):
    """One model of the study: what it cost and what it scored."""

    name: str
    base: str = Field(description="the model it changes; empty: it is one itself")
    change: str
    replicate: bool = Field(description="differs by chance alone")
    steps: int = Field(ge=1, description="of pre-training")
    tokens: int = Field(ge=1, description="read in pre-training")
    epochs: float = Field(gt=0, description="passes over the corpus")
    flops: float = Field(gt=0, description="matrix products of pre-training")
    seconds: float = Field(ge=0, description="wall time of pre-training")
    rank: float | None = Field(description="effective rank of the encoder's last hidden states")
    scores: dict[str, list[float]] = Field(
        min_length=1, description="metric x 100 by task, one per fine-tuning seed"
    )


class Study(Strict):
    """``beyond.json``: the models, and what they have in common."""

    profile: str
    source: str
    corpus: str
    size: str
    hidden: int = Field(ge=1, description="width of the encoder, the largest rank")
    parameters: dict[str, int | float | str | bool] = Field(description="of training, as given")
    train_rows: dict[str, int]
    seeds: list[int]
    hardware: list[str]
    versions: dict[str, str]
    commits: list[str]
    models: list[Trained] = Field(min_length=2)


def load(path: Path) -> Study:
    """Reads ``beyond.json``.

    Raises:
        UserError: When it is missing or not JSON, or a field is missing or wrong.
    """
    return config.validate(Study, files.read_json(Path(path)), str(path))


@torch.inference_mode()
def effective_rank(run: Path, model: str, segments: int = 16) -> float:
    """How many directions the last hidden states of a pre-trained encoder spread over.

    The exponential of the entropy of their covariance's eigenvalues, each over the sum (Roy and
    Vetterli 2007): 1 where all lie on a line, the width where they spread alike. An encoder that
    has collapsed tells its inputs apart no more, and fine-tuning finds nothing in it.

    Args:
        run: The run's folder.
        model: A model of it.
        segments: Segments of the packed corpus, the first ones.
    """
    source = run / "models" / model / "encoder"
    network = AutoModel.from_pretrained(
        source, local_files_only=True, use_safetensors=True, trust_remote_code=False
    ).eval()
    packed = tokenizer.rows(run / "tokenizer" / registry.get(model).tokenizer)
    tokens = torch.from_numpy(packed[:segments].astype(np.int64))
    states = network(tokens).last_hidden_state.flatten(0, 1)
    shares = torch.linalg.svdvals(states - states.mean(0)).double().square()
    shares = shares[shares > 0] / shares.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def measure(
    records: pd.DataFrame, profile: config.Profile, ranks: Mapping[str, float] | None = None
) -> Study:
    """The study from the records of a finished run.

    Args:
        records: `tables.load_records`; every model, task and seed of the profile.
        profile: Its models are variants and their bases.
        ranks: `effective_rank` by model; a model that is not there has none.

    Raises:
        UserError: No model is a variant, a base has no record, or a fine-tuning is missing.
    """
    variants = {
        name: registry.VARIANTS[name] for name in profile.models if name in registry.VARIANTS
    }
    if not variants:
        known = ", ".join(registry.VARIANTS)
        raise UserError(f"profile {profile.profile}: models has no variant of a recipe: {known}")
    names = [*dict.fromkeys(v.base for v in variants.values()), *variants]
    known = ranks or {}
    trained = [_trained(records, name, profile) | {"rank": known.get(name)} for name in names]
    shown = records[records["model"].isin(names)]
    rows = {task: group["rows"].iloc[0]["train"] for task, group in shown.groupby("task")}
    kept = ("pretrain_", "finetune_", "precision")
    values = {k: v for k, v in profile.model_dump().items() if k.startswith(kept)}
    commits = {code["commit"] for part in ("code", "pretrain_code") for code in shown[part]}
    found = {
        "profile": profile.profile,
        "source": shown["source"].iloc[0],
        "corpus": shown["corpus"].iloc[0],
        "size": profile.size,
        "hidden": registry.get_size(profile.size).hidden,
        "parameters": values,
        "train_rows": {task: rows[task] for task in profile.tasks if task in rows},
        "seeds": profile.seeds,
        "hardware": sorted({one["name"] for one in shown["pretrain_hardware"]}),
        "versions": shown["versions"].iloc[0],
        "commits": sorted(commit for commit in commits if commit),
        "models": trained,
    }
    return config.validate(Study, found, "beyond.json")


def _trained(records: pd.DataFrame, name: str, profile: config.Profile) -> dict[str, object]:
    mine = records[records["model"] == name]
    by_task = {task: group.sort_values("seed") for task, group in mine.groupby("task")}
    for task in profile.tasks:
        there = list(by_task[task]["seed"]) if task in by_task else []
        lacking = [seed for seed in profile.seeds if seed not in there]
        if lacking:
            raise UserError(
                f"profile {profile.profile}: {name} has no record of {task}, seed {lacking[0]}; "
                "finish the run first (make book)"
            )
    variant = registry.VARIANTS.get(name)
    first = mine.iloc[0]
    return {
        "name": name,
        "base": variant.base if variant else "",
        "change": variant.change if variant else "",
        "replicate": bool(variant and variant.replicate),
        "steps": int(first["pretrain.steps"]),
        "tokens": int(first["pretrain.tokens"]),
        "epochs": float(first["pretrain.epochs"]),
        "flops": float(first["pretrain.flops"]),
        "seconds": float(first["pretrain.seconds"]),
        "scores": {
            task: [
                float(value)
                for value, seed in zip(by_task[task]["score"], by_task[task]["seed"], strict=True)
                if seed in profile.seeds
            ]
            for task in profile.tasks
        },
    }


def effects(study: Study) -> pd.DataFrame:
    """What each change was worth.

    A model's score is the mean of its tasks, each a mean over fine-tuning seeds. The noise is the
    deviation of that score over pre-trainings that differ by chance alone: a base and its
    replicates. A base with r of them is taken at their mean, so a difference to it has the standard
    error s sqrt(1 + 1/r), with r - 1 degrees of freedom. A base without replicates has the noise
    of the others.

    Returns:
        One row per model but the replicates: name, base (empty for a base), change, mean,
        difference, error, low and high (its 95 % interval by Student's t), flops (over the base's),
        runs (pre-trainings behind the mean). NaN where there is none.
    """
    means = {one.name: fmean(map(fmean, one.scores.values())) for one in study.models}
    bases = {one.name: one for one in study.models if not one.base}
    groups = {name: [means[name]] for name in bases}
    for one in study.models:
        if one.replicate:
            groups[one.base].append(means[one.name])
    repeated = [values for values in groups.values() if len(values) > 1]
    degrees = sum(len(values) - 1 for values in repeated)
    squares = sum((len(values) - 1) * stdev(values) ** 2 for values in repeated)
    noise = math.sqrt(squares / degrees) if degrees else math.nan
    rows = []
    for one in study.models:
        if one.replicate:
            continue
        row = {"name": one.name, "base": one.base, "change": one.change, "runs": 1}
        row |= {"difference": math.nan, "error": math.nan, "low": math.nan, "high": math.nan}
        if not one.base:
            mean = fmean(groups[one.name])
            rows.append(row | {"mean": mean, "flops": 1.0, "runs": len(groups[one.name])})
            continue
        against = groups[one.base]
        difference = means[one.name] - fmean(against)
        error = noise * math.sqrt(1 + 1 / len(against))
        reach = stats.t.ppf((1 + LEVEL) / 2, degrees) * error if degrees else math.nan
        row |= {"difference": difference, "error": error}
        row |= {"low": difference - reach, "high": difference + reach}
        rows.append(row | {"mean": means[one.name], "flops": one.flops / bases[one.base].flops})
    return pd.DataFrame(rows)


def table(study: Study) -> str:
    """The study as Markdown: what was held fixed, then a line per change."""
    rows = []
    found = effects(study)
    for row in found.to_dict("records"):
        base = not row["base"]
        change = f"**{escape(row['name'])}**, as released" if base else escape(row["change"])
        gap = signed(row["difference"], row["error"])
        interval = NONE if math.isnan(row["low"]) else f"{row['low']:+.2f} to {row['high']:+.2f}"
        cells = [f"{row['flops']:.2f}", score(row["mean"]), gap, interval]
        rows.append([change, NONE if base else escape(row["base"]), *cells])
    header = ["Change", "Of", "FLOPs", "Mean", "Difference", "95 % interval"]
    return f"{_about(study)}\n\n{markdown(header, rows, left=2)}\n{_noise(study, found)}\n"


def by_task(study: Study) -> str:
    """Scores by task, means over fine-tuning seeds, as Markdown."""
    tasks = [task for task in glue.TASKS if task in study.train_rows]
    rows = [
        [
            escape(one.name),
            *(score(fmean(one.scores[task])) for task in tasks),
            score(fmean(map(fmean, one.scores.values()))),
            score(one.rank, 1),
            quantity(one.flops),
            f"{one.seconds:,.0f}",
        ]
        for one in study.models
    ]
    head = ["Model", *(glue.TASKS[task].name for task in tasks), f"Mean of {len(tasks)}"]
    head += [f"Rank, of {study.hidden}", "FLOPs", "Seconds"]
    return markdown(head, rows)


def _about(study: Study) -> str:
    tokens = span(one.tokens for one in study.models)
    passes = span(one.epochs for one in study.models)
    values = study.parameters
    own = values.get("rtd_learning_rate")
    rtd = f" ({own:g} for replaced-token detection)" if own else ""
    counts, seeds = sorted(set(study.train_rows.values())), len(study.seeds)
    most = f"at most {counts[-1]:,}" if len(counts) > 1 else f"{counts[0]:,}"
    world = " (**not GLUE**: a generated language)" if study.source == "embedded" else ""
    return (
        f"**Profile {escape(study.profile)} · {escape(study.size)} size · {tokens} tokens, "
        f"{passes} passes over {escape(study.corpus)}{world} · batch "
        f"{values['pretrain_batch_size']}, peak rate {values['pretrain_learning_rate']:g}{rtd}, "
        f"dropout {values['pretrain_dropout']:g} · fine-tuning on {most} rows a task, "
        f"{seeds} seed{'s' * (seeds != 1)} · {escape(', '.join(study.hardware))}**"
    )


def _noise(study: Study, found: pd.DataFrame) -> str:
    runs = [row for row in found.to_dict("records") if row["runs"] > 1]
    if not runs:
        return "Nothing was repeated, so the noise is not known.\n"
    names = " and ".join(f"{escape(row['name'])} ({row['runs']})" for row in runs)
    gaps = found[found["base"] != ""]
    clear = gaps[(gaps["low"] > 0) | (gaps["high"] < 0)]
    return (
        f"Means over tasks of means over seeds, × 100. Pre-trained several times: {names}; their "
        f"spread gives every difference its error and, by Student's t, its interval, which is not "
        f"widened for the number of changes. Intervals that leave zero out: {len(clear)} of "
        f"{len(gaps)}. Commit {escape(', '.join(c[:12] for c in study.commits)) or NONE}.\n"
    )
