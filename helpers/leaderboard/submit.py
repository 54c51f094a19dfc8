"""Makes an entry of the leaderboard from the finished records of a run."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors import safe_open

from helpers.base import files
from helpers.base.errors import UserError, did_you_mean, one_line
from helpers.data import glue
from helpers.leaderboard import check, submission
from helpers.score.predictions import Labels
from helpers.train import records

# What a run does not know or may not know; the rest of an entry follows from its records.
ABOUT = ("title", "link", "authors", "licence", "hardware", "parameters")
CLAIMED = ("corpus", "tokens")  # besides, of weights from elsewhere


def submit(
    run: Path,
    model: str,
    out: Path,
    about: Mapping[str, Any],
    figures: Mapping[str, Any],
) -> check.Entry:
    """Writes the entry of a model with finished records on all eight tasks, whole or not at all.

    It is checked, without labels. `about` has fields of `ABOUT`, of weights from elsewhere those of
    `CLAIMED` too; those of ``hardware`` and ``parameters`` go over the run's own.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; delete it or give another name")
    found = _records(run, model)
    known = [*ABOUT, *(CLAIMED if found[0].get("checkpoint") else ())]
    for name in about:
        if name not in known:
            raise UserError(f"about: {name} is not one of its fields: {did_you_mean(name, known)}")
    values = _values(run, found)
    for name, value in about.items():
        both = isinstance(value, dict) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **value} if both else value
    values = {"name": out.name, "title": model, **values}
    with files.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside the entry, so that the last step is a rename.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".new-") as part:
            folder = Path(part) / out.name
            submission.write(folder, values, "about (options or --about file)")
            for record in found:  # byte for byte, because records hold hashes
                task, seed = record["task"], record["seed"]
                (folder / task).mkdir(exist_ok=True)
                for name in (f"seed-{seed}.json", f"seed-{seed}.parquet"):
                    shutil.copyfile(records.folder(run, model, task) / name, folder / task / name)
            entry = check.check_entry(folder, figures, Labels())
            if entry.error:
                raise UserError(entry.error.replace(str(folder), str(out)))
            folder.rename(out)
    return entry


def _records(run: Path, model: str) -> list[dict[str, Any]]:
    """Records of all tasks and the same seeds, on GLUE's own splits."""
    found = records.read_all(run, [model], list(glue.TASKS))
    if not found:
        raise UserError(f"{run}/records/{model}: no finished records; run notebooks/04_finetune")
    for record in found:
        cell = records.folder(run, model, record["task"])
        check.check_source(record, cell / f"seed-{record['seed']}.json")
    seeds = {task: sorted(r["seed"] for r in found if r["task"] == task) for task in glue.TASKS}
    for task, mine in seeds.items():
        if mine != seeds["cola"]:
            raise UserError(
                f"{run}/records/{model}: seeds of {task}: {mine}, of cola: {seeds['cola']}; "
                "an entry has all eight tasks at the same seeds"
            )
    return found


def _values(run: Path, found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the records say, as fields of a submission."""
    first = found[0]
    trained = first["pretrain"]
    seeds = sorted({record["seed"] for record in found})
    scores = {
        task: round(fmean(r["score"] for r in found if r["task"] == task), 2) for task in glue.TASKS
    }
    protocol = {"selection": "mean", "seeds": seeds, "n": len(seeds), "rule": submission.RULE}
    protocol |= {"trials": count} if (count := check.trials(found)) else {}
    return {
        **_origin(first),
        "parameters": _parts(run / "models" / first["model"] / "encoder", trained["parameters"]),
        "protocol": protocol,
        "decimals": 2,
        "scores": scores,
        "average": round(fmean(scores.values()), 2),
    }


def _origin(record: Mapping[str, Any]) -> dict[str, Any]:
    """Corpus, tokens and hardware of the pre-training; of weights from elsewhere, which they are.

    What these were trained on is for `ABOUT` to say.
    """
    if given := record.get("checkpoint"):
        known = {name: given[name] for name in submission.Checkpoint.model_fields}
        return {"licence": None, "tokens": None, "checkpoint": known}
    trained, machine = record["pretrain"], record["pretrain_hardware"]
    hours = trained["seconds"] / 3600
    one_gpu = {"gpus": 1} if machine["device"] == "cuda" else {}
    return {
        "corpus": record["corpus"],
        "tokens": trained["tokens"],
        "hardware": {"device": machine["name"], **one_gpu, "hours": round(hours, 3)},
    }


def _parts(checkpoint: Path, total: int) -> dict[str, int]:
    """Parameters of the embeddings, read from the checkpoint, and the rest of `total`.

    Empty where the checkpoint is not there; the parts must then be stated.
    """
    embeddings = 0
    for path in sorted(checkpoint.glob("*.safetensors")):
        with one_line(f"{path}: damaged checkpoint"), safe_open(path, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is no mapping
                if re.search(r"(^|\.)embeddings\.", name):
                    embeddings += math.prod(tensors.get_slice(name).get_shape())
    return {"encoder": total - embeddings, "embeddings": embeddings} if embeddings else {}
