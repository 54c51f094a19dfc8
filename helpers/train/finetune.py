"""Fine-tuning: one model, one task, one seed, one record.

The recipe is ELECTRA's (Clark et al. 2020, appendix B, and its code): Adam, linear decay after a
short warm-up, a learning rate that shrinks layer by layer towards the embeddings, more epochs for
RTE and STS-B, MRPC and STS-B doubled by swapping the sentences. Batches are made by length.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from helpers.base import config, files, progress, seeding
from helpers.base.errors import UserError
from helpers.data import glue, tokenizer
from helpers.model import disentangled, last_layer, registry
from helpers.model.dropout import use_fast_dropout
from helpers.model.flops import token_flops
from helpers.train import checkpoint, graphs, loop, provenance, records
from helpers.train.batches import Encoded, batches, collate, encode_splits

EVALUATION_BATCH = 128
REPLAYED = 16  # lengths of batches are multiples of it where steps are replayed, so that few differ
# Embeddings of an encoder; the last two are of relative positions: MPNet's, DeBERTa-v2's norm.
EMBEDDINGS = ("embed", "relative_attention_bias", "encoder.LayerNorm")
LARGEST_LABEL = 5.0  # of STS-B; the regression is trained on label / 5


def layer_rates(
    model: nn.Module, rate: float, decay: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups with ELECTRA's layer-wise learning rates; no weight decay on biases, norms.

    Depth is 0 for the embeddings (their projection and tables of relative positions among them), 1
    to n for the layers, n + 2 for the head and for what of the encoder follows the layers: a
    pooler, a last norm. The rate is ``rate * decay ** (n + 2 - depth)`` (google-research/electra,
    ``model/optimization.py``, whose encoder has neither).
    """
    last, inside = model.config.num_hidden_layers + 2, f"{model.base_model_prefix}."
    if decay < 1 and not any(".layer." in name for name, _ in model.named_parameters()):
        raise UserError(
            f"finetune_layer_decay = {decay}: the layers of a {model.config.model_type} are not "
            "numbered .layer.<n>, so rates cannot follow them; use 1.0"
        )
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        depth = last
        if name.startswith(inside):
            _, _, tail = name.partition(".layer.")
            if tail:
                depth = int(tail.split(".")[0]) + 1
            elif any(part in name for part in EMBEDDINGS):
                depth = 0
        groups.setdefault((depth, loop.is_decayed(name, parameter)), []).append(parameter)
    return [
        {
            "params": group,
            "base": rate * decay ** (last - depth),
            "lr": 0.0,
            "weight_decay": weight_decay * decayed,
        }
        for (depth, decayed), group in sorted(groups.items(), key=lambda item: item[0])
    ]


class LinearHead(nn.Module):
    """Dropout and one linear layer on the first token's last hidden state, by Xavier's rule.

    The head of google-research/electra (``finetune/classification/classification_tasks.py``).
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.output = nn.Linear(config.hidden_size, config.num_labels)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, float [batch, labels], of hidden states, float [batch, length, hidden]."""
        return self.output(self.dropout(hidden[:, 0]))


def open_encoder(
    folder: Path, task: glue.Task, dropout: float, head: str = "transformers"
) -> nn.Module:
    """The encoder of a checkpoint with a fresh classification head, as `registry.Recipe` has it."""
    try:
        model, about = AutoModelForSequenceClassification.from_pretrained(
            folder,
            output_loading_info=True,
            num_labels=max(1, len(task.labels)),
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,  # left open, transformers asks at the terminal
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: cannot be opened as an encoder ({line})") from None
    # A head is new and so may a pooler be; without a word transformers fills in any weight.
    inside = f"{model.base_model_prefix}."
    missing = sorted(name for name in about["missing_keys"] if name.startswith(inside))
    if lost := [name for name in missing if ".pooler." not in name]:
        raise UserError(
            f"{folder}: model.safetensors has no {lost[0]} ({len(lost)} weights missing): it is "
            f"not a {model.config.model_type} as config.json says"
        )
    if bad := checkpoint.not_finite(model.state_dict()):
        raise UserError(f"{folder}: model.safetensors: {bad} is not finite; pre-train it again")
    if head == "linear":
        if isinstance(model.classifier, nn.Linear):
            raise UserError(
                f"head = {head!r}: {type(model).__name__} classifies a pooled vector, not hidden "
                "states; use transformers"
            )
        model.classifier = LinearHead(model.config)
    if last_layer.applies(model.base_model):  # the heads of these types read the first token alone
        last_layer.cut(model.base_model, last_layer.first_token)
    return use_fast_dropout(disentangled.speed_up(model))


def check_tokenizer(folder: Path, tok: PreTrainedTokenizerBase) -> None:
    """Checks that a checkpoint has an embedding for every token and pads with the same one."""
    about = AutoConfig.from_pretrained(folder, local_files_only=True)
    broken = ""
    if len(tok) > about.vocab_size:
        broken = f"has {len(tok)} tokens, the checkpoint {about.vocab_size}"
    elif tok.pad_token_id != about.pad_token_id:
        broken = f"pads with {tok.pad_token_id}, the checkpoint with {about.pad_token_id}"
    if broken:
        raise UserError(f"{folder}: tokenizer.json {broken}: they do not belong together")


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits, float [batch, labels]; mean squared error for one output."""
    if logits.shape[-1] == 1:
        return functional.mse_loss(logits.float().squeeze(-1), labels.float())
    return functional.cross_entropy(logits.float(), labels)


@torch.inference_mode()
def predict(
    model: nn.Module, data: Encoded, tok: PreTrainedTokenizerBase, dtype: torch.dtype
) -> np.ndarray:
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
    tok: PreTrainedTokenizerBase,
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
                order = list(batches(data.lengths, data.labels, size, rng))
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
    spent = {name: state[name] for name in ("tokens", "flops", "seconds", "joules")}
    return spent | {"steps": total}


def usable_length(parameters: config.Finetune) -> int:
    """Tokens of an example at most."""
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

    @property
    def folder(self) -> Path:
        return records.folder(self.parameters.folder, self.parameters.model, self.name)

    def specification(self, seed: int) -> dict[str, Any]:
        """All that a score follows from; its digest names the record."""
        others = {"profile", "runs", "model", "tasks", "seeds", "threads", *checkpoint.PARAMETERS}
        weights = self.pretrained["files"]
        return {
            "stage": "finetune",
            "schema": records.SCHEMA,
            "parameters": self.parameters.model_dump(exclude=others),
            "recipe": asdict(registry.get(self.parameters.model).recipe),
            "task": self.name,
            "seed": seed,
            "encoder": {k: v for k, v in weights.items() if k.startswith("encoder/")},
            "data": self.data["files"],
        }

    def vouched(self) -> dict[str, str]:
        """Hashes of its files, as the manifest says, or said before a job began to add to it."""
        paths = [self.folder / name for name in (files.MANIFEST, files.KEPT)]
        there = [path for path in paths if path.exists()]
        return files.read_manifest(there[0])["files"] if there else {}

    def record(self, seed: int, vouched: dict[str, str]) -> dict[str, Any] | None:
        """The record that is there and has its predictions; None for one of other parameters."""
        path = self.folder / f"seed-{seed}.json"
        predictions = path.with_suffix(".parquet")
        if not path.exists() or not predictions.exists():
            return None
        values, spec = files.read_json(path), files.digest(self.specification(seed))
        if not isinstance(values, dict) or values.get("spec") != spec:
            return None  # of other parameters, or of another version of the schema
        record = records.read(path)
        if vouched.get(path.name, files.sha256(path)) != files.sha256(path):
            raise UserError(
                f"{path}: changed since its manifest was written; delete it and run "
                "notebooks/04_finetune.ipynb again"
            )
        return record if record["predictions"] == files.sha256(predictions) else None

    def facts(self, seed: int) -> dict[str, Any]:
        """What of a record is known before the fine-tuning."""
        wanted, pretrained = self.specification(seed), self.pretrained
        hashes = {name: wanted[name] for name in ("data", "encoder")}
        return {
            "profile": self.parameters.profile,
            "model": self.parameters.model,
            **{name: wanted[name] for name in ("schema", "task", "seed", "parameters")},
            **{name: pretrained[name] for name in ("corpus", "size", "pretrain")},
            "pretrain_hardware": pretrained["hardware"],
            "pretrain_code": pretrained["code"],
            **{name: self.data[name] for name in ("source", "rows", "reduced", "complete")},
            "hashes": hashes | {"corpus": pretrained["specification"]["tokens"]},
            "spec": files.digest(wanted),
        }


def run(parameters: config.Finetune) -> list[dict[str, Any]]:
    """Fine-tunes one model on its tasks and seeds; what is finished is not done again.

    Writes ``records/<model>/<task>/`` in the run's folder: ``seed-<n>.json`` and
    ``seed-<n>.parquet`` (predictions of the validation split) as each run ends, and, last,
    ``manifest.json``. Gives the records, task by task, seed by seed.
    """
    cells, tok = _open(parameters)
    steps = [count_steps(parameters, cell.name, cell.data["rows"]["train"]) for cell in cells]
    total = sum(steps) * len(parameters.seeds)
    bar = progress.bar(total, f"fine-tune {parameters.model}", "steps")
    every = []
    for cell, count in zip(cells, steps, strict=True):
        splits: dict[str, Encoded] = {}
        written, vouched = [], cell.vouched()
        for seed in parameters.seeds:
            bar.set_postfix_str(f"{cell.name}, seed {seed}", refresh=False)
            record = cell.record(seed, vouched)
            if record is not None:
                bar.skip(count)
            else:
                splits = splits or _encode(cell, tok)
                with files.lock(cell.folder):
                    record = _finetune(cell, seed, tok, splits, bar)
            written += [f"seed-{seed}.json", f"seed-{seed}.parquet"]
            every.append(record)
        files.write_manifest(cell.folder, {"spec": files.digest(sorted(written))}, written)
    bar.close()
    return every


def _open(parameters: config.Finetune) -> tuple[list[_Cell], PreTrainedTokenizerBase]:
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
    check_tokenizer(source / "encoder", tok)
    positions = pretrained["specification"]["parameters"]["max_length"]
    if parameters.max_length > positions:
        raise UserError(
            f"max_length = {parameters.max_length}: {parameters.model} has {positions} positions"
        )
    return [_Cell(parameters, name, pretrained, data[name]) for name in parameters.tasks], tok


def finished(parameters: config.Finetune) -> list[dict[str, Any]] | None:
    """What :func:`run` gives where all of it is done, else None; predictions are not read."""
    pretrained = files.find_manifest(parameters.folder / "models" / parameters.model)
    found = []
    for name in parameters.tasks:
        data = files.find_manifest(parameters.folder / "data" / "glue" / name)
        cell = _Cell(parameters, name, pretrained or {}, data or {})
        if not (pretrained and data and files.find_manifest(cell.folder)):
            return None
        for seed in parameters.seeds:
            path = cell.folder / f"seed-{seed}.json"
            record = files.read_json(path) if path.exists() else {}
            if record.get("spec") != files.digest(cell.specification(seed)):
                return None
            found.append(record)
    return found


def _encode(cell: _Cell, tok: PreTrainedTokenizerBase) -> dict[str, Encoded]:
    parameters, vocabulary = cell.parameters, cell.pretrained["files"]["encoder/tokenizer.json"]
    length, swap = usable_length(parameters), parameters.finetune_swap_pairs
    return encode_splits(parameters.folder, cell.name, tok, vocabulary, cell.data, length, swap)


def _finetune(
    cell: _Cell,
    seed: int,
    tok: PreTrainedTokenizerBase,
    splits: dict[str, Encoded],
    bar: progress.Progress,
) -> dict[str, Any]:
    """Fine-tunes with one seed and writes predictions and record."""
    from helpers.data import metrics  # evaluate, which takes seconds

    parameters, name, task = cell.parameters, cell.name, glue.get(cell.name)
    device, spec = registry.device(), files.digest(cell.specification(seed))
    dtype, reason = loop.choose_precision(parameters.precision, device)
    torch.manual_seed(seeding.derive_seed("finetune", seed))
    source = parameters.folder / "models" / parameters.model / "encoder"
    head = registry.get(parameters.model).recipe.head
    model = open_encoder(source, task, parameters.finetune_dropout, head).to(device)
    checkpoints = parameters.folder / "checkpoints" / parameters.model / name / f"seed-{seed}"
    where = f"finetune/{parameters.model}/{name}"
    checkpoints = checkpoint.place(parameters, where, f"{seed}", checkpoints)
    files.remove_manifest(cell.folder)
    data, epochs = splits["train"], _epochs(parameters, task)
    spent = train(parameters, model, data, tok, epochs, seed, dtype, checkpoints, spec, name, bar)
    others = [split for split in splits if split != "train"]
    predictions = {split: predict(model, splits[split], tok, dtype) for split in others}
    path = cell.folder / f"seed-{seed}.json"
    labels = {split: splits[split].labels for split in predictions}
    records.write_predictions(path, predictions, {s: splits[s].idx for s in predictions})
    record = cell.facts(seed) | metrics.score_splits(name, predictions, labels)
    record |= {
        "finetune": spent | {"seconds": round(spent["seconds"], 2)},
        "hardware": provenance.hardware(parameters.threads),
        "precision": reason,
        "code": provenance.code(),
        "versions": provenance.versions(),
        "predictions": files.sha256(path.with_suffix(".parquet")),
    }
    (cell.folder / files.KEPT).unlink(missing_ok=True)  # what it vouched for is no more as it was
    records.write(path, record)
    checkpoint.clear(checkpoints)
    return record
