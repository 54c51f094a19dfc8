"""What each change of the paper's recipe was worth: the recipe study of ``results/beyond.json``.

Every variant of `registry.VARIANTS` is pre-trained on as many tokens as the model it changes, and
fine-tuned in the same way. Variants that change nothing but the seed measure the noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import pandas as pd
from scipy import stats

from helpers.base import config
from helpers.base.errors import UserError

if TYPE_CHECKING:
    from helpers.model import registry

LEVEL = 0.95


def measure(
    records: pd.DataFrame, profile: config.Profile, ranks: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """What ``results/beyond.json`` holds of a finished run: its models, and what they share.

    `records` are of every model, task and seed of the profile, whose models are variants and their
    bases; `ranks` is the effective rank by model, of the held-out rows.
    """
    from helpers.model import registry

    variants = {
        name: registry.VARIANTS[name] for name in profile.models if name in registry.VARIANTS
    }
    if not variants:
        known = ", ".join(registry.VARIANTS)
        raise UserError(f"profile {profile.profile}: models has no variant of a recipe: {known}")
    names = [*dict.fromkeys(v.base for v in variants.values()), *variants]
    trained = [
        _trained(records, name, variants.get(name), profile) | {"rank": (ranks or {}).get(name)}
        for name in names
    ]
    shown = records[records["model"].isin(names)]
    rows = {task: group["rows"].iloc[0]["train"] for task, group in shown.groupby("task")}
    shared = ("pretrain_", "finetune_", "precision")
    commits = {code["commit"] for part in ("code", "pretrain_code") for code in shown[part]}
    return {
        "profile": profile.profile,
        "source": shown["source"].iloc[0],
        "corpus": shown["corpus"].iloc[0],
        "size": profile.size,
        "hidden": registry.get_size(profile.size).hidden,
        "parameters": {k: v for k, v in profile.model_dump().items() if k.startswith(shared)},
        "train_rows": {task: rows[task] for task in profile.tasks if task in rows},
        "seeds": profile.seeds,
        "hardware": sorted({one["name"] for one in shown["pretrain_hardware"]}),
        "versions": shown["versions"].iloc[0],
        "commits": sorted(commit for commit in commits if commit),
        "models": trained,
    }


def _trained(
    records: pd.DataFrame, name: str, variant: registry.Variant | None, profile: config.Profile
) -> dict[str, Any]:
    """One model of the study: what it cost, and its scores by task, one per seed."""
    mine = records[records["model"] == name]
    scores = {}
    for task in profile.tasks:
        by_seed = mine[mine["task"] == task].set_index("seed")["score"]
        lacking = [seed for seed in profile.seeds if seed not in by_seed.index]
        if lacking:
            raise UserError(
                f"profile {profile.profile}: {name} has no record of {task}, seed {lacking[0]}; "
                "finish the run first (make book)"
            )
        scores[task] = by_seed.loc[sorted(profile.seeds)].tolist()
    first = mine.iloc[0]
    return {
        "name": name,
        "base": variant.base if variant else "",
        "change": variant.change if variant else "",
        "replicate": bool(variant and variant.replicate),
        "steps": int(first["pretrain.steps"]),
        "tokens": int(first["pretrain.tokens"]),
        **{key: float(first[f"pretrain.{key}"]) for key in ("epochs", "flops", "seconds")},
        "scores": scores,
    }


def effects(study: Mapping[str, Any]) -> pd.DataFrame:
    """What each change was worth.

    A model's score is the mean of its tasks, each a mean over fine-tuning seeds. The noise is the
    deviation of that score over pre-trainings that differ by chance alone: a base and its
    replicates. A base with r of them is taken at their mean, so a difference to it has the standard
    error s sqrt(1 + 1/r), with r - 1 degrees of freedom. A base without replicates has the noise
    of the others.

    One row per model but the replicates: name, base (empty for a base), change, mean, difference,
    error, low and high (its 95 % interval by Student's t), flops (over the base's), runs
    (pre-trainings behind the mean). NaN where there is none.
    """
    models = study["models"]
    means = {one["name"]: fmean(map(fmean, one["scores"].values())) for one in models}
    bases = {one["name"]: one for one in models if not one["base"]}
    groups = {name: [means[name]] for name in bases}
    for one in models:
        if one["replicate"]:
            groups[one["base"]].append(means[one["name"]])
    repeated = [values for values in groups.values() if len(values) > 1]
    degrees = sum(len(values) - 1 for values in repeated)
    squares = sum((len(values) - 1) * stdev(values) ** 2 for values in repeated)
    noise = math.sqrt(squares / degrees) if degrees else math.nan
    rows = []
    for one in models:
        if one["replicate"]:
            continue
        row = {key: one[key] for key in ("name", "base", "change")} | {"runs": 1}
        row |= {"difference": math.nan, "error": math.nan, "low": math.nan, "high": math.nan}
        if not one["base"]:
            runs = groups[one["name"]]
            rows.append(row | {"mean": fmean(runs), "flops": 1.0, "runs": len(runs)})
            continue
        against, base = groups[one["base"]], bases[one["base"]]
        difference = means[one["name"]] - fmean(against)
        error = noise * math.sqrt(1 + 1 / len(against))
        reach = stats.t.ppf((1 + LEVEL) / 2, degrees) * error if degrees else math.nan
        row |= {"difference": difference, "error": error}
        row |= {"low": difference - reach, "high": difference + reach}
        rows.append(row | {"mean": means[one["name"]], "flops": one["flops"] / base["flops"]})
    return pd.DataFrame(rows)
