"""What each change of a recipe is worth: the study of ``results/beyond.json``.

Models with changes (`registry.CHANGES`) are pre-trained on as many tokens as those without. Two
pre-trainings of one seed share weights, order and masks as far as the change leaves them, and are
measured on the same held-out rows: a difference is taken pair by pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from helpers.base import config
from helpers.base.errors import UserError
from helpers.score.statistics import holm
from helpers.train.records import FLOORS

LEVEL = 0.95
SEEN = {"auc": "auc", "rank": "effective_rank"}  # beside bits per byte, as they are shown


def measure(
    records: pd.DataFrame, profile: config.Profile, held_out: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """What ``results/beyond.json`` holds of a finished run: its models, and what they share.

    `records` are of every model, task and seed of the profile, and of its floors; `held_out` is
    what the manifest of a model says of held-out rows, by model.
    """
    from helpers.model import registry

    split = {name: registry.parts(name) for name in profile.models}
    for name, (base, changes, seed) in split.items():
        against = base + (f"+seed-{seed}" if seed else "")
        if changes and against not in split:
            raise UserError(
                f"profile {profile.profile}: models has {name}, but not {against}, which it is "
                "compared with"
            )
    if not any(changes for _, changes, _ in split.values()):
        known = ", ".join(registry.CHANGES)
        raise UserError(f"profile {profile.profile}: models has none with a change: {known}")
    shown = records[records["model"].isin(profile.models)]
    rows = {task: group["rows"].iloc[0]["train"] for task, group in shown.groupby("task")}
    shared = ("pretrain_", "rtd_", "finetune_", "precision", "segments", "bias_correction")
    floors = {name: records[records["model"] == name].set_index("task")["score"] for name in FLOORS}
    commits = {code["commit"] for part in ("code", "pretrain_code") for code in shown[part]}
    trained = [
        {"name": name, "base": base, "changes": list(changes), "seed": seed}
        | _trained(shown[shown["model"] == name], profile)
        | {key: held_out[name].get(key) for key in ("bits_per_byte", *SEEN.values())}
        for name, (base, changes, seed) in split.items()
    ]
    return {
        "profile": profile.profile,
        "source": shown["source"].iloc[0],
        "corpus": shown["corpus"].iloc[0],
        "size": profile.size,
        "hidden": registry.get_size(profile.size).hidden,
        "parameters": {k: v for k, v in profile.model_dump().items() if k.startswith(shared)},
        "train_rows": {task: rows[task] for task in profile.tasks if task in rows},
        "complete": [t for t in rows if shown[shown["task"] == t]["complete"].all()],
        "seeds": profile.seeds,
        "hardware": sorted({one["name"] for one in shown["pretrain_hardware"]}),
        "versions": shown["versions"].iloc[0],
        "commits": sorted(commit for commit in commits if commit),
        "floors": {name: {task: scores[task] for task in rows} for name, scores in floors.items()},
        "models": trained,
    }


def _trained(mine: pd.DataFrame, profile: config.Profile) -> dict[str, Any]:
    """What one pre-training cost, and its scores by task, one per fine-tuning seed."""
    by_seed = mine.set_index(["task", "seed"])["score"]
    seeds, first = sorted(profile.seeds), mine.iloc[0]
    return {
        "steps": int(first["pretrain.steps"]),
        "tokens": int(first["pretrain.tokens"]),
        **{key: float(first[f"pretrain.{key}"]) for key in ("epochs", "flops", "seconds")},
        "scores": {task: by_seed.loc[task].loc[seeds].tolist() for task in profile.tasks},
    }


def effects(study: Mapping[str, Any]) -> pd.DataFrame:
    """What each change was worth, against the same model and pre-training seed without it.

    One row per base and change: base, changes (empty for a base), pairs (pre-training seeds), bits
    (held-out bits per byte, a mean over them), auc and rank (of the discriminator and of the last
    hidden states, likewise), score (mean over tasks and seeds), flops (over the base's); gain, the
    per cent of the base's bits per byte that the change saves, a mean over pairs, with low and
    high, its 95 % interval by Student's t from two pairs on; p, of no gain, adjusted for the number
    of changes by Holm; points, the difference of the scores. NaN where there is none.
    """
    groups: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for one in study["models"]:
        groups.setdefault((one["base"], "+".join(one["changes"])), {})[one["seed"]] = one
    rows = []
    for (base, changes), runs in groups.items():
        row = {"base": base, "changes": changes, "pairs": len(runs), "bits": _mean(runs, _bits)}
        row |= {key: _mean(runs, _held_out(name)) for key, name in SEEN.items()}
        row |= {"score": _mean(runs, _score), "flops": 1.0}
        if changes:
            pairs = [(one, groups[base, ""][seed]) for seed, one in runs.items()]
            row |= _paired([100 * (1 - _bits(one) / _bits(other)) for one, other in pairs])
            row["points"] = fmean(_score(one) - _score(other) for one, other in pairs)
            row["flops"] = fmean(one["flops"] / other["flops"] for one, other in pairs)
        rows.append(row)
    found = pd.DataFrame(rows)
    tested = found["p"].notna()
    found.loc[tested, "p"] = holm(found.loc[tested, "p"].tolist())
    return found


def _held_out(name: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda one: math.nan if one[name] is None else one[name]


_bits = _held_out("bits_per_byte")


def _score(one: Mapping[str, Any]) -> float:
    return fmean(map(fmean, one["scores"].values()))


def _mean(runs: Mapping[int, Mapping[str, Any]], what: Any) -> float:  # noqa: ANN401
    return fmean(map(what, runs.values()))


def _paired(gains: Sequence[float]) -> dict[str, float]:
    """Mean, interval and p-value of paired differences; one alone has neither of the last two."""
    row = {"gain": fmean(gains), "low": math.nan, "high": math.nan, "p": math.nan}
    if len(gains) > 1 and np.ptp(gains) > 0:
        test = stats.ttest_1samp(gains, 0.0)
        low, high = test.confidence_interval(LEVEL)
        row |= {"low": float(low), "high": float(high), "p": float(test.pvalue)}
    return row
