"""`small-bench score`: an encoder from elsewhere, checked, fine-tuned, shown beside the others."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from helpers.base import config, files
from helpers.base.progress import duration
from helpers.base.text import quantity
from helpers.data import glue, tokenizer
from helpers.model import registry
from helpers.pages import beside
from helpers.study import notebook, prepare
from helpers.train import batches, finetune, floor, foreign, heads, loop

STEPS = 3  # of training that are timed
FORWARD = 3  # a step takes about as long as so many forward passes
STAGE = "04_finetune"
REDUCED = "† fewer or other rows than GLUE's own"


@dataclass(frozen=True)
class Plan:
    """What is left to do for one task."""

    task: str
    rows: dict[str, int]
    whole: bool  # they are GLUE's own
    seeds: list[int]
    seconds: float  # at most, by a step that was timed


def load(name: str, rows: int, **changes: object) -> config.Profile:
    """The profile of a run of encoders; one for each protocol and each number of rows."""
    profile = config.load_profile(name, **changes)
    endings = ["tuned"] * (profile.protocol == "tuned") + [str(rows)] * bool(rows)
    changed = {"profile": "-".join([profile.profile, *endings])}
    changed |= {"train_rows": rows} if rows else {}
    glue.available(profile.source, profile.data, profile.tasks)
    return profile.model_copy(update=changed)


def run(profile: config.Profile, model: str, only_check: bool = False) -> int:
    """Scores a checkpoint: brings it and the tasks into the run, says what is left, does it."""
    tasks = glue.announce(profile.source, profile.data, profile.tasks)
    loop.begin(profile.threads)
    prepare.keep_on_drive(profile)
    manifest = foreign.bring(profile.folder, model)
    glue.prepare(config.Data(**profile.stage(config.Data)), tasks)
    values = profile.stage(config.Finetune, model=manifest["model"], tasks=tasks)
    parameters = config.validate(config.Finetune, values, "score")
    _say(manifest, parameters, plan(parameters))
    if only_check:
        return 0
    out = notebook.executed(profile.folder, STAGE, manifest["model"])
    told = notebook.papermill_facts(out).get("parameters") if out.exists() else None
    if not (finetune.finished(parameters) and told == values and not notebook.failure(out)):
        source = files.find(f"notebooks/{STAGE}.ipynb")
        if status := notebook.run(source, out, values):
            return status
    floor.run(parameters, tasks)  # the notebook's may be of other data since
    for group in beside.groups(tasks):
        show(profile.folder, manifest["model"], group)
    print(f"open {os.path.relpath(out)}")
    return 0


def plan(parameters: config.Finetune) -> list[Plan]:
    """What is left, task by task, with the time that it will take."""
    found = []
    for name, (seeds, steps) in finetune.remaining(parameters).items():
        data = files.find_manifest(parameters.folder / "data" / "glue" / name)
        rows, whole = data["rows"], data["complete"] or bool(glue.get(name).own)
        others = sum(count for split, count in rows.items() if split != "train")
        passes = len(seeds) * others / parameters.finetune_batch_size / FORWARD
        seconds = (steps + passes) * time_step(parameters, name) if seeds else 0.0
        found.append(Plan(name, rows, whole, seeds, seconds))
    return found


def time_step(parameters: config.Finetune, name: str) -> float:
    """Seconds of a step of training on rows of a task; the encoder is thrown away."""
    task, device = glue.get(name), registry.device()
    folder = parameters.folder / "models" / parameters.model
    parameters = finetune.fitted(parameters, files.find_manifest(folder) or {})
    source = folder / "encoder"
    tok, size = tokenizer.load(source), parameters.finetune_batch_size
    table = glue.load(parameters.folder, name, "train").head(STEPS * size)
    data = batches.encode(table, task, tok, finetune.usable_length(parameters))
    model = heads.open_encoder(source, task, parameters.finetune_dropout).to(device).train()
    dtype, _ = loop.choose_precision(parameters.precision, device)
    step, order = finetune.Step(parameters, model, dtype), np.argsort(data.lengths)
    labels, spent = torch.tensor(data.labels, device=device), []
    parts = np.array_split(order, min(STEPS, len(order)))
    # The first is slower; on a GPU a shape's third call is the first as fast as all that follow.
    before = 2 * parts if device.type == "cuda" else [order[:size]]
    for index in [*before, *parts]:
        began = time.perf_counter()
        batch = batches.collate(data, index, tok, device, step.shapes)
        step(batch, labels[torch.as_tensor(index, device=device)], 0.0)
        loop.wait(device)
        spent.append(time.perf_counter() - began)
    return fmean(spent[-len(parts) :])


def _say(manifest: dict[str, Any], parameters: config.Finetune, plans: list[Plan]) -> None:
    """Prints what was found, what will be run, and how long that takes."""
    about, count = manifest["checkpoint"], manifest["pretrain"]["parameters"]
    which = f"commit {about['commit']}" if about["commit"] else "a folder"
    print(f"{about['source']} ({which}): {about['model_type']}, {quantity(count)} parameters")
    print(f"weights, SHA-256: {about['weights']}")
    data = files.find_manifest(parameters.folder / "data" / "glue" / parameters.tasks[0])
    where = {"hub": "GLUE from the Hub", "folder": "a folder"}
    print(f"data: {where.get(data['source'], 'the embedded world, not GLUE')}")
    chosen = "rate and epochs by trials"
    if parameters.protocol == "fixed":
        chosen = "rate {finetune_learning_rate:g}, {finetune_epochs} epochs, "
        chosen += "{finetune_epochs_small} on RTE and STS-B"
    recipe = f"{chosen}, {{finetune_batch_size}} rows a step, at most {{max_length}} tokens each"
    print(f"recipe: {recipe.format(**parameters.model_dump())}")
    if about["shared_layers"]:
        print("its layers share their weights, which have one learning rate")
    if (about["positions"] or parameters.max_length) < parameters.max_length:
        print(f"rows are cut at {about['positions']} tokens: it has no more positions")
    if not (total := sum(one.seconds for one in plans)):
        print("every fine-tuning is done")
        return
    print(f"{'task':<8}{'time':>12}{'seeds left':>12}{'train rows':>12}{'dev rows':>10}")
    for one in plans:
        train, dev = one.rows["train"], one.rows[glue.get(one.task).validation]
        took, name = duration(one.seconds), one.task + " †" * (not one.whole)
        print(f"{name:<8}{took:>12}{len(one.seeds):>12}{train:>12,}{dev:>10,}")
    if not all(one.whole for one in plans):
        print(REDUCED)
    cores = f"{parameters.threads} CPU thread{'s' * (parameters.threads > 1)}"
    most = "at most " if parameters.protocol == "tuned" else ""
    machine = "the GPU" if registry.device().type == "cuda" else cores
    print(f"in all {most}{duration(total)}, by the time of a few steps on {machine}")


def show(run: Path, model: str, tasks: list[str]) -> None:
    """Prints the encoder's row beside the kept run's models and the floor."""
    view = beside.open_run(run, tasks)
    table = beside.table(view, model)
    print(f"\n{table.rename_axis(None).to_string(float_format='%.2f', na_rep='–')}\n")
    if lead := beside.lead(view, model):
        print(lead)
    if any("†" in str(column) for column in table.columns):
        print(REDUCED)
    if changed := beside.differences(view):
        said = ", ".join(f"{name} {value}" for name, value in changed.items())
        print(f"the kept run's models were fine-tuned otherwise: {said}")
