"""Fine-tuning: one model, one task, one seed, one record.

The recipe is ELECTRA's (Clark et al. 2020, appendix B, and its code): Adam, linear decay after a
short warm-up, a learning rate that shrinks layer by layer towards the embeddings, more epochs for
RTE and STS-B, MRPC and STS-B doubled by swapping the sentences. Batches are made by length.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase as Tokenizer

from helpers.base import config, files, progress, seeding
from helpers.base.errors import Diverged, UserError
from helpers.data import glue, tokenizer
from helpers.model import registry
from helpers.model.flops import token_flops
from helpers.train import batches, checkpoint, graphs, loop, provenance, records, tuning
from helpers.train.batches import Encoded, collate
from helpers.train.heads import layer_rates, open_encoder

EVALUATION_BATCH = 128
REPLAYED = 16  # lengths of batches are multiples of it where steps are replayed, so that few differ
LARGEST_LABEL = 5.0  # of STS-B; the regression is trained on label / 5


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits, float [batch, labels]; mean squared error for one output."""
    if logits.shape[-1] == 1:
        return functional.mse_loss(logits.float().squeeze(-1), labels.float())
    return functional.cross_entropy(logits.float(), labels)


@torch.inference_mode()
def predict(model: nn.Module, data: Encoded, tok: Tokenizer, dtype: torch.dtype) -> np.ndarray:
    """Predictions in the order of `data`: int64 classes, or float64 on STS-B's scale 0 to 5."""
    device = next(model.parameters()).device
    model.eval()
    order, regression = np.argsort(data.lengths, kind="stable"), model.config.num_labels == 1
    out = np.empty(len(order), dtype=np.float64 if regression else np.int64)
    for start in range(0, len(order), EVALUATION_BATCH):
        index = order[start : start + EVALUATION_BATCH]
        with loop.autocast(device, dtype):
            logits = model(**collate(data, index, tok, device)).logits.float()
        found = logits.squeeze(-1).double() * LARGEST_LABEL if regression else logits.argmax(-1)
        out[index] = found.cpu().numpy()
    return out


class Step:
    """An optimiser step of fine-tuning; `shapes` are those :func:`collate` is to give it."""

    def __init__(self, parameters: config.Finetune, model: nn.Module, dtype: torch.dtype) -> None:
        self.model, self.dtype, self.clip = model, dtype, parameters.clip
        self.size, self.device = parameters.finetune_batch_size, next(model.parameters()).device
        replayed = graphs.possible(self.device, dtype)
        peak, decay = parameters.finetune_learning_rate, parameters.finetune_layer_decay
        recipe = loop.recipe(parameters)
        groups = layer_rates(model, peak, decay, recipe.finetune_weight_decay)
        self.optimiser = loop.make_adamw(groups, recipe, replayed)
        self.scaler = torch.amp.GradScaler(enabled=dtype == torch.float16)
        self.replay = graphs.Replay(self._take, replayed)
        self.shapes = (REPLAYED, usable_length(parameters)) if replayed else (1, 0)

    def __call__(self, batch: graphs.Tensors, labels: torch.Tensor, factor: float) -> torch.Tensor:
        """One step with a factor on the rates; its part of the loss before it, on the device."""
        return self.replay(batch | {"right": labels}, factor)["loss"]

    def _take(self, inputs: graphs.Tensors, factor: float | torch.Tensor) -> graphs.Tensors:
        self.optimiser.zero_grad(set_to_none=True)
        labels = inputs.pop("right")
        with loop.autocast(self.device, self.dtype):
            value = loss(self.model(**inputs).logits, labels)
        # Every example weighs as much: those of a short batch no more than those of a full one.
        value = value * (len(labels) / self.size)
        self.scaler.scale(value).backward()
        self.scaler.unscale_(self.optimiser)
        loop.clip(self.model.parameters(), self.clip)
        for group in self.optimiser.param_groups:  # lower layers learn more slowly
            group["lr"] = group["base"] * factor
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return {"loss": value.detach()}


def train(
    parameters: config.Finetune,
    model: nn.Module,
    data: Encoded,
    tok: Tokenizer,
    epochs: int,
    seed: int,
    dtype: torch.dtype,
    folder: Path | None = None,
    spec: str = "",
    task: str = "",
    bar: progress.Progress | None = None,
) -> dict[str, Any]:
    """Fine-tunes `model`, which has a fresh head, in place; what it took, as `records.Finetuning`.

    A step is a function of the parameters, its number and the state before it, so a run that was
    killed goes on from a checkpoint in `folder`, if it has one written under the digest `spec`, and
    ends with the same bytes. `task` is a name for an error line.
    """
    size = parameters.finetune_batch_size
    per_epoch = -(-len(data.lengths) // size)
    total, regression = epochs * per_epoch, model.config.num_labels == 1
    product = registry.get(parameters.model).recipe.ramp_times_decay
    warmup = round(parameters.finetune_warmup * total)
    step = Step(parameters, model, dtype)
    labels = torch.tensor(data.labels / LARGEST_LABEL if regression else data.labels)
    labels = labels.to(step.device)
    run, rate = f"{parameters.model} on {task}, seed {seed}", "finetune_learning_rate"
    fresh = {"spec": spec, "tokens": 0, "flops": 0.0}
    upkeep = loop.Upkeep(parameters, step, fresh, total, folder, bar, run, rate)
    model.train()
    order, state = [], upkeep.state
    with upkeep.steps() as steps:
        for number in steps:
            epoch, place = divmod(number, per_epoch)
            if place == 0 or not order:
                rng = seeding.numpy_generator("finetune", seed, epoch)
                order = list(batches.batches(data.lengths, data.labels, size, rng))
            torch.manual_seed(seeding.derive_seed("finetune", seed, number))
            batch = collate(data, order[place], tok, step.device, step.shapes)
            right = labels[loop.send(torch.as_tensor(order[place]), step.device)]
            value = step(batch, right, loop.schedule(number, warmup, total, 0.0, product))
            upkeep.see(value)
            rows, length = batch["input_ids"].shape
            state["tokens"] += rows * length
            state["flops"] += rows * length * token_flops(model.config, length, 1 / length)
            upkeep.maybe_save(rows * length)
            if place + 1 == per_epoch:
                upkeep.check()
    spent = {name: state[name] for name in ("tokens", "flops", "seconds")}
    return spent | {"steps": total}


def usable_length(parameters: config.Finetune) -> int:
    """Tokens of an example at most, if the checkpoint has positions for them."""
    kind = registry.get(parameters.model).tokenizer
    return tokenizer.usable_length(kind, parameters.max_length)


def _epochs(parameters: config.Finetune, task: glue.Task) -> int:
    return parameters.finetune_epochs_small if task.small else parameters.finetune_epochs


def count_steps(parameters: config.Finetune, name: str, rows: int) -> int:
    """Optimiser steps of one fine-tuning on a train split of `rows`, before pairs are swapped."""
    task = glue.get(name)
    rows *= 2 if parameters.finetune_swap_pairs and task.swap else 1
    return _epochs(parameters, task) * -(-rows // parameters.finetune_batch_size)


@dataclass(frozen=True)
class _Cell:
    """A cell of the table: a model on a task, whatever the seed."""

    parameters: config.Finetune
    name: str  # of the task
    pretrained: dict[str, Any]  # manifest of the model
    data: dict[str, Any]  # manifest of the task's data
    tok: Tokenizer | None = None
    trials: tuple[dict[str, Any], ...] = ()  # of `tuning`, which the parameters are chosen by
    asked: config.Finetune | None = None  # the parameters before that

    @property
    def folder(self) -> Path:
        return records.folder(self.parameters.folder, self.parameters.model, self.name)

    def specification(self, seed: int) -> dict[str, Any]:
        """All that a score follows from; its digest names the record."""
        others = {"profile", "runs", "model", "tasks", "seeds", "threads", *checkpoint.PARAMETERS}
        tuned = tuning.specification(self.asked or self.parameters)
        others |= {"protocol", *(records.CHOSEN if tuned else ())}
        weights = self.pretrained["files"]
        return {
            "stage": "finetune",
            "schema": records.SCHEMA,
            "parameters": self.parameters.model_dump(exclude=others) | tuned,
            "recipe": asdict(registry.get(self.parameters.model).recipe),
            "task": self.name,
            **glue.own_rules(self.name),
            "seed": seed,
            "encoder": {k: v for k, v in weights.items() if k.startswith("encoder/")},
            "data": self.data["files"],
        }

    def vouched(self) -> dict[str, str]:
        """Hashes of its files, as the manifest says, or said before a job began to add to it."""
        paths = [self.folder / name for name in (files.MANIFEST, files.KEPT)]
        there = [path for path in paths if path.exists()]
        return files.read_manifest(there[0])["files"] if there else {}

    def record(self, seed: int) -> dict[str, Any] | None:
        """The record that is there and has its predictions; None for one of other parameters."""
        path = self.folder / f"seed-{seed}.json"
        predictions = path.with_suffix(".parquet")
        if not path.exists() or not predictions.exists():
            return None
        values, spec = files.read_json(path), files.digest(self.specification(seed))
        if values.get("spec") != spec:
            return None  # of other parameters, or of another version of the schema
        record = records.read(path)
        if self.vouched().get(path.name, files.sha256(path)) != files.sha256(path):
            raise UserError(
                f"{path}: changed since its manifest was written; delete it and run "
                "notebooks/04_finetune.ipynb again"
            )
        return record if record["predictions"] == files.sha256(predictions) else None

    def seeds(self) -> list[int]:
        """The seeds that have a record, those of earlier calls too."""
        names = (path.stem.removeprefix("seed-") for path in self.folder.glob("seed-*.json"))
        return sorted(seed for seed in map(int, filter(str.isdecimal, names)) if self.record(seed))

    def encode(self) -> dict[str, Encoded]:
        """The splits as token ids."""
        parameters, task, splits = self.parameters, glue.get(self.name), {}
        for split in self.data["rows"]:
            swap = parameters.finetune_swap_pairs and task.swap and split == "train"
            table = glue.load(parameters.folder, self.name, split)
            length = usable_length(parameters)
            splits[split] = batches.encode(table, task, self.tok, length, swap)
        return splits

    @property
    def grid(self) -> list[tuple[float, int]]:
        """Rate and epochs of each trial of the protocol ``tuned``."""
        epochs = _epochs(self.parameters, glue.get(self.name))
        return tuning.grid(self.data["rows"]["train"], epochs)

    @property
    def trials_file(self) -> Path:
        """Where the trials stand as each ends."""
        return self.parameters.folder / "trials" / self.parameters.model / self.name / "trials.json"

    def tried(self) -> list[dict[str, Any]]:
        """The trials that are done: those of a record, else those that stand in their own file."""
        done = (self.record(seed) for seed in self.parameters.seeds)
        known = next((record["trials"] for record in done if record), None)
        if known is None and self.trials_file.exists():
            values, spec = files.read_json(self.trials_file), self.specification(tuning.SEED)
            known = values["trials"] if values.get("spec") == files.digest(spec) else None
        return known or []

    def facts(self, seed: int) -> dict[str, Any]:
        """What of a record is known before the fine-tuning."""
        wanted, pretrained = self.specification(seed), self.pretrained
        hashes = {name: wanted[name] for name in ("data", "encoder")}
        tuned = {"protocol": "tuned", "trials": list(self.trials)} if self.trials else {}
        chosen = self.parameters.model_dump(include=records.CHOSEN if tuned else set())
        return {
            "profile": self.parameters.profile,
            "model": self.parameters.model,
            **{name: wanted[name] for name in ("schema", "task", "seed")},
            "parameters": wanted["parameters"] | chosen,
            **tuned,
            **{name: pretrained[name] for name in ("corpus", "size", "pretrain")},
            "pretrain_hardware": pretrained["hardware"],
            "pretrain_code": pretrained["code"],
            **{name: self.data[name] for name in ("source", "rows", "reduced", "complete")},
            **{name: pretrained[name] for name in ("checkpoint",) if name in pretrained},
            "hashes": hashes | {"corpus": pretrained["specification"]["tokens"]},
            "spec": files.digest(wanted),
        }


def run(parameters: config.Finetune) -> list[dict[str, Any]]:
    """Fine-tunes one model on its tasks and seeds; what is finished is not done again.

    Writes ``records/<model>/<task>/`` in the run's folder: ``seed-<n>.json`` and
    ``seed-<n>.parquet`` (predictions of the validation split) as each run ends, and, last,
    ``manifest.json``, which covers the seeds of earlier calls too. Gives the records, task by task,
    seed by seed. Where the model diverges on a task, the others are done before that is raised.
    """
    cells = _open(parameters)
    if parameters.protocol == "tuned":
        cells = [_tuned(cell) for cell in cells]
    steps = [count_steps(c.parameters, c.name, c.data["rows"]["train"]) for c in cells]
    total = sum(steps) * len(parameters.seeds)
    bar = progress.bar(total, f"fine-tune {parameters.model}", "steps")
    every, failed = [], []
    for cell, count in zip(cells, steps, strict=True):
        try:
            every += _run_cell(cell, count, bar)
        except Diverged as error:
            failed.append(error)
    bar.close()
    if failed:
        raise Diverged("; ".join(map(str, failed)))
    return every


def _run_cell(cell: _Cell, steps: int, bar: progress.Progress) -> list[dict[str, Any]]:
    """The records of a cell, seed by seed, each there or made in so many steps."""
    every = {seed: cell.record(seed) for seed in cell.parameters.seeds}
    splits = {} if all(every.values()) else cell.encode()
    for seed, record in every.items():
        bar.set_postfix_str(f"{cell.name}, seed {seed}", refresh=False)
        if record:
            bar.skip(steps)
        else:
            with files.lock(cell.folder):
                every[seed] = _finetune(cell, seed, splits, bar)
    written = [f"seed-{seed}.{ending}" for seed in cell.seeds() for ending in ("json", "parquet")]
    files.write_manifest(cell.folder, {"spec": files.digest(sorted(written))}, written)
    return list(every.values())


def _open(parameters: config.Finetune) -> list[_Cell]:
    """Checks that a model, its tokenizer and the tasks' data are there and belong together."""
    registry.get(parameters.model)
    for name in parameters.tasks:
        glue.get(name)
    source = parameters.folder / "models" / parameters.model
    pretrained = files.require_intact(source, "03_pretrain", f" with model = {parameters.model}")
    folder = parameters.folder / "data" / "glue"
    data = {name: files.require_intact(folder / name, "01_data") for name in parameters.tasks}
    loop.begin(parameters.threads)
    tok = tokenizer.load(source / "encoder")
    parameters = fitted(parameters, pretrained)
    positions = pretrained["specification"].get("parameters", {}).get("max_length", math.inf)
    if parameters.max_length > positions:
        raise UserError(
            f"max_length = {parameters.max_length}: {parameters.model} has {positions} positions"
        )
    cells = [_Cell(parameters, name, pretrained, data[name], tok) for name in parameters.tasks]
    if "checkpoint" in pretrained:  # of the study a grid says what is made anew
        for cell in cells:
            _refuse_to_replace(cell)
    return cells


def _refuse_to_replace(cell: _Cell) -> None:
    """Checks that no record is of other parameters or data: it may be hours of work."""
    for path in sorted(cell.folder.glob("seed-*.json")):
        told, wanted = files.read_json(path), cell.specification(int(path.stem[5:]))
        if told.get("spec") == files.digest(wanted):
            continue
        now, then = wanted["parameters"], told.get("parameters", {})
        differs = [
            f"{n} = {then[n]!r}, not {now[n]!r}" for n in now if then.get(n, now[n]) != now[n]
        ]
        if (protocol := told.get("protocol", "fixed")) != cell.parameters.protocol:
            differs.append(f"protocol = {protocol!r}")
        if told.get("hashes", {}).get("data") != wanted["data"]:
            differs.append("other data")
        if told.get("hashes", {}).get("encoder") != wanted["encoder"]:
            differs.append("another tokenizer or configuration of the encoder")
        other = "another task.yaml or " * bool(glue.get(cell.name).own)
        why = "; ".join(differs) or f"{other}another version of this code"
        raise UserError(
            f"{path}: was made with {why}; to keep it, give a --profile of another name; else "
            f"delete {cell.folder}"
        )


def fitted(parameters: config.Finetune, pretrained: dict[str, Any]) -> config.Finetune:
    """The parameters with the length that the checkpoint can read, if it is one from elsewhere."""
    positions = pretrained.get("checkpoint", {}).get("positions") or parameters.max_length
    length = min(parameters.max_length, positions)
    return parameters.model_copy(update={"max_length": length})


def remaining(parameters: config.Finetune) -> dict[str, tuple[list[int], int]]:
    """What is not done, by task: seeds without a record, and steps of training at most.

    All that a fine-tuning needs is there.
    """
    found = {}
    for cell in _open(parameters):
        rows = cell.data["rows"]["train"]
        seeds = [seed for seed in parameters.seeds if cell.record(seed) is None]
        steps, trials = count_steps(parameters, cell.name, rows), 0
        if parameters.protocol == "tuned" and seeds:
            per_epoch = steps / _epochs(parameters, glue.get(cell.name))
            share = min(rows - tuning.held_out(rows), tuning.MOST_ROWS) / rows
            every = [epochs for _, epochs in cell.grid]
            trials = round(per_epoch * share * sum(every[len(cell.tried()) :]))
            steps = round(per_epoch * max(every))
        found[cell.name] = seeds, trials + steps * len(seeds)
    return found


def finished(parameters: config.Finetune) -> list[dict[str, Any]] | None:
    """What :func:`run` gives where all of it is done, else None; predictions are not read."""
    pretrained = files.find_manifest(parameters.folder / "models" / parameters.model)
    if not pretrained:
        return None
    parameters, found = fitted(parameters, pretrained), []
    for name in parameters.tasks:
        data = files.find_manifest(parameters.folder / "data" / "glue" / name)
        cell = _Cell(parameters, name, pretrained, data or {})
        vouched = data and files.find_manifest(cell.folder)
        for seed in parameters.seeds:
            path = cell.folder / f"seed-{seed}.json"
            if not vouched or path.name not in vouched["files"] or not path.exists():
                return None
            record = files.read_json(path)
            if record.get("spec") != files.digest(cell.specification(seed)):
                return None
            found.append(record)
    return found


def _tuned(cell: _Cell) -> _Cell:
    """The cell with the rate and the epochs that its trials choose."""
    parameters, rows, grid = cell.parameters, cell.data["rows"]["train"], cell.grid
    trials, folder = cell.tried(), cell.trials_file.parent
    where = f"finetune/{parameters.model}/{cell.name}"
    checkpoints = checkpoint.folder_of(parameters, where, "trials", folder)
    if len(trials) < len(grid):
        spec = files.digest(cell.specification(tuning.SEED))
        data, held_out = tuning.split(cell.encode()["train"], rows)
        per_epoch = -(-len(data.lengths) // parameters.finetune_batch_size)
        total = per_epoch * sum(epochs for _, epochs in grid)
        bar = progress.bar(total, f"tune {parameters.model}", "steps")
        bar.skip(per_epoch * sum(trial["epochs"] for trial in trials))
        with files.lock(folder):
            for rate, epochs in grid[len(trials) :]:
                bar.set_postfix_str(f"{cell.name}, rate {rate:g}, {epochs} epochs", refresh=False)
                chosen = parameters.model_copy(update=tuning.chosen(rate, epochs))
                tried = replace(cell, parameters=chosen)
                own = files.digest([spec, rate, epochs])
                try:
                    model, dtype, _ = _fit(tried, tuning.SEED, data, bar, checkpoints, own)
                    found = predict(model, held_out, cell.tok, dtype)
                except Diverged as error:  # counts, as a model that says the same of every row
                    bar.write(f"{error}; the trial counts as a constant prediction")
                    found = np.zeros_like(held_out.labels)
                trials.append(tuning.trial(cell.name, rate, epochs, rows, held_out, found))
                files.write_json(cell.trials_file, {"spec": spec, "trials": trials})
                bar.skip(per_epoch * sum(trial["epochs"] for trial in trials) - bar.n)
                checkpoint.clear(checkpoints)
        bar.close()
    best = parameters.model_copy(update=tuning.best(trials))
    return replace(cell, parameters=best, trials=tuple(trials), asked=parameters)


def _fit(
    cell: _Cell, seed: int, data: Encoded, bar: progress.Progress, checkpoints: Path, spec: str
) -> tuple[nn.Module, torch.dtype, dict[str, Any]]:
    """A fresh head on the encoder, fine-tuned on `data`; the number format, and what it took."""
    parameters, task = cell.parameters, glue.get(cell.name)
    device, epochs = registry.device(), _epochs(cell.parameters, task)
    dtype, _ = loop.choose_precision(parameters.precision, device)
    torch.manual_seed(seeding.derive_seed("finetune", seed))
    source = parameters.folder / "models" / parameters.model / "encoder"
    head = registry.get(parameters.model).recipe.head
    model = open_encoder(source, task, parameters.finetune_dropout, head).to(device)
    spent = train(
        parameters, model, data, cell.tok, epochs, seed, dtype, checkpoints, spec, cell.name, bar
    )
    return model, dtype, spent


def _finetune(
    cell: _Cell, seed: int, splits: dict[str, Encoded], bar: progress.Progress
) -> dict[str, Any]:
    """Fine-tunes with one seed and writes predictions and record."""
    from helpers.data import metrics  # evaluate, which takes seconds

    parameters, name, spec = cell.parameters, cell.name, files.digest(cell.specification(seed))
    checkpoints = parameters.folder / "checkpoints" / parameters.model / name / f"seed-{seed}"
    where = f"finetune/{parameters.model}/{name}"
    checkpoints = checkpoint.folder_of(parameters, where, f"{seed}", checkpoints)
    model, dtype, spent = _fit(cell, seed, splits["train"], bar, checkpoints, spec)
    files.remove_manifest(cell.folder)  # what it vouches for stays until then
    others = [split for split in splits if split != "train"]
    predictions = {split: predict(model, splits[split], cell.tok, dtype) for split in others}
    path = cell.folder / f"seed-{seed}.json"
    labels = {split: splits[split].labels for split in predictions}
    records.write_predictions(path, predictions, {s: splits[s].idx for s in predictions})
    record = cell.facts(seed) | metrics.score_splits(name, predictions, labels)
    record |= {
        "finetune": spent | {"seconds": round(spent["seconds"], 2)},
        "hardware": provenance.hardware(parameters.threads),
        "precision": loop.choose_precision(parameters.precision, registry.device())[1],
        "code": provenance.code(),
        "versions": provenance.versions(),
        "predictions": files.sha256(path.with_suffix(".parquet")),
    }
    (cell.folder / files.KEPT).unlink(missing_ok=True)  # what it vouched for is no more as it was
    records.write(path, record)
    checkpoint.clear(checkpoints)
    return record
