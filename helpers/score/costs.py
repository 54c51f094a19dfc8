"""What a pre-training costs: a model's FLOP, a GPU's peak rate and a utilisation give the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from pydantic import Field

from helpers.base import config, files
from helpers.base.config import Strict, validate
from helpers.base.errors import UserError
from helpers.data import glue, tokenizer
from helpers.model import registry
from helpers.model.flops import token_flops
from helpers.train import finetune, objectives, pretrain

# The geometric mean of the lowest and highest utilisation that peers' measured rates come to.
UTILISATION = 0.05


class Gpu(Strict):
    """One GPU as its vendor states it."""

    name: str
    peak_tflops: float = Field(gt=0, description="dense half-precision tensor products, TFLOP/s")
    watts: float = Field(gt=0, description="board power")
    memory_gb: float = Field(gt=0, description="memory, GB")
    source: str = Field(min_length=1, description="the document that states it")


class Gpus(Strict):
    """``gpus.json``: the GPUs by a short name."""

    about: str
    gpus: dict[str, Gpu] = Field(min_length=1)


def load(path: Path) -> dict[str, Gpu]:
    """The GPUs of ``results/gpus.json`` by their short names, in the file's order."""
    return validate(Gpus, files.read_json(Path(path)), str(path)).gpus


def outline(
    name: str, profile: config.Profile
) -> objectives.MaskedLanguageModel | objectives.ReplacedTokenDetection:
    """A model under its objective as a profile would pre-train it, on torch's ``meta`` device.

    An unknown model or size is a `UserError`, here and in what follows.
    """
    spec = registry.get(name)
    vocabulary = getattr(profile, f"{spec.tokenizer}_vocabulary")
    fraction = profile.generator_fraction if spec.objective == "rtd" else 0.0
    size = registry.get_size(profile.size)
    with torch.device("meta"):
        return objectives.build(spec, size, vocabulary, profile.max_length, fraction=fraction)


def flops(name: str, profile: config.Profile) -> float:
    """Matrix-product FLOP per token of pre-training, forward and backward."""
    return objectives.flops_per_token(outline(name, profile), _length(name, profile))


def _length(name: str, profile: config.Profile) -> int:
    """Tokens of a row that the model reads: RoBERTa's positions begin at 2."""
    return tokenizer.usable_length(registry.get(name).tokenizer, profile.max_length)


def table(
    gpus: Mapping[str, Gpu],
    published: Mapping[str, Any],
    *,
    names: Sequence[str] | None = None,
    profile: str = "paper",
    utilisation: float = UTILISATION,
) -> pd.DataFrame:
    """Rates, hours and energy of each model's pre-training on each GPU.

    `published` (results/published.json) has the rates that peers measured; `names` are registry
    entries, every one that is pre-trained where None. What is unknown or out
    of range is a `UserError`.

    One row per model and GPU, followed by the rates others measured on the pair. Columns: model,
    gpu (short names), tokens (read in all), measured (bool), source and status (keys of the
    published figures; empty for an estimate), utilisation (0 to 1), tokens_per_second, hours, kwh
    (board power x hours).
    """
    if not 0 < utilisation <= 1:
        raise UserError(f"costs: utilisation = {utilisation!r}: must be above 0 and at most 1")
    study = config.load_profile(profile)
    if names is None:
        names = [name for name, spec in registry.REGISTRY.items() if spec.objective != "none"]
        names.append("electra-deberta+quarter-generator")  # as ELECTRA's own is
    rows = []
    for name in names:
        per_token, count = flops(name, study), tokens(name, study)
        for key, gpu in gpus.items():
            pair = {"model": name, "gpu": key, "tokens": count, "flop": per_token}
            rate = utilisation * gpu.peak_tflops * 1e12 / per_token
            rows.append(pair | {"rate": rate, "measured": False, "source": "", "status": ""})
            for entry in published["throughput"]:
                if (entry["model"], entry["gpu"]) == (name, key):
                    about = {"source": entry["source"], "status": entry["status"]}
                    rates = map(float, entry["tokens_per_second"])
                    rows += [pair | {"rate": rate, "measured": True, **about} for rate in rates]
    found = pd.DataFrame(rows)
    rate, per_token, own = found.pop("rate"), found.pop("flop"), found["gpu"].map(gpus)
    found["utilisation"] = rate * per_token / own.map(lambda gpu: gpu.peak_tflops * 1e12)
    found["tokens_per_second"] = rate
    found["hours"] = found["tokens"] / rate / 3600
    found["kwh"] = found["hours"] * own.map(lambda gpu: gpu.watts) / 1000
    return found


def tokens(name: str, profile: config.Profile) -> int:
    """Tokens of one pre-training at most: steps x rows x the length that the model reads."""
    own = pretraining(name, profile)
    return own.pretrain_steps * own.pretrain_batch_size * _length(name, profile)


def pretraining(name: str, profile: config.Profile) -> config.Pretrain:
    """Parameters of a model's pre-training, with what its own recipe changes."""
    given = config.Pretrain(**profile.stage(config.Pretrain, model=name))
    return pretrain.recipe(given, registry.get(name))


class Finetuning(NamedTuple):
    """What the fine-tunings of one model on one task take, all seeds together."""

    steps: int
    tokens: int
    flops: float


def finetuning(profile: config.Profile, name: str, task: str) -> Finetuning:
    """Work of one model on one task at full length, an upper bound: batches are padded to less."""
    kind, length = glue.get(task), _length(name, profile)
    rows = glue.train_rows(profile.source, profile.data, task)
    rows = min(rows, profile.train_rows or rows)
    steps = finetune.count_steps(profile, task, rows) * len(profile.seeds)
    if profile.finetune_swap_pairs and kind.swap:
        rows *= 2
    epochs = profile.finetune_epochs_small if kind.small else profile.finetune_epochs
    count = epochs * rows * length * len(profile.seeds)
    spec, size = registry.get(name), registry.get_size(profile.size)
    own = registry.build_config(spec, size, 9, profile.max_length)
    return Finetuning(steps, count, count * token_flops(own, length, 1 / length))
