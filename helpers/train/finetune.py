"""Fine-tuning: one model, one task, one seed, one record.

The recipe is ELECTRA's (Clark et al. 2020, appendix B, and its code): Adam, linear decay after a
short warm-up, a learning rate that shrinks layer by layer towards the embeddings, more epochs for
RTE and STS-B, MRPC and STS-B doubled by swapping the sentences. Batches are made by length.
"""

import time
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from helpers.base import config, files, progress, seeding
from helpers.base.errors import UserError
from helpers.data import glue, tokenizer
from helpers.model import disentangled, registry
from helpers.model.dropout import exchange_dropout
from helpers.model.flops import token_flops
from helpers.train import checkpoint, graphs, loop, provenance, records
from helpers.train.batches import Encoded, batches, collate, encode, encode_once

EVALUATION_BATCH = 128
REPLAYED = 16  # lengths of batches are multiples of it where steps are replayed, so that few differ
LARGEST_LABEL = 5.0  # of STS-B; the regression is trained on label / 5


def layer_rates(model: nn.Module, rate: float, decay: float) -> list[dict[str, Any]]:
    """Parameter groups with ELECTRA's layer-wise learning rates.

    Depth is 0 for the embeddings, 1 to n for the layers, n + 2 for the head; the rate is
    ``rate * decay ** (n + 2 - depth)`` (google-research/electra, ``model/optimization.py``).
    """
    last = model.config.num_hidden_layers + 2
    inside = f"{model.base_model_prefix}."
    if decay < 1 and not any(".layer." in name for name, _ in model.named_parameters()):
        raise UserError(
            f"finetune_layer_decay = {decay}: the layers of a {model.config.model_type} are not "
            "numbered .layer.<n>, so rates cannot follow them; use 1.0"
        )
    groups: dict[int, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        depth = last
        if name.startswith(inside):
            _, _, tail = name.partition(".layer.")
            depth = int(tail.split(".")[0]) + 1 if tail else 0
        groups.setdefault(depth, []).append(parameter)
    return [
        {"params": group, "base": rate * decay ** (last - depth), "lr": 0.0}
        for depth, group in sorted(groups.items())
    ]


def open_encoder(folder: Path, task: glue.Task, dropout: float) -> nn.Module:
    """The encoder with a fresh classification head (transformers' own class).

    Args:
        folder: Holds config.json and model.safetensors.
        task: Gives the number of labels; a regression has one output.
        dropout: Hidden, attention and head.

    Raises:
        UserError: When the checkpoint cannot be opened, is of another architecture than its
            configuration says, or has weights that are not finite.
    """
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
    lost = [name for name in about["missing_keys"] if name.startswith(inside)]
    lost = sorted(name for name in lost if ".pooler." not in name)
    if lost:
        raise UserError(
            f"{folder}: model.safetensors has no {lost[0]} ({len(lost)} weights missing): it is "
            f"not a {model.config.model_type} as config.json says"
        )
    if bad := checkpoint.not_finite(model.state_dict()):
        raise UserError(f"{folder}: model.safetensors: {bad} is not finite; pre-train it again")
    return exchange_dropout(disentangled.speed_up(model))


def check_tokenizer(folder: Path, tok: PreTrainedTokenizerBase) -> None:
    """Checks that a checkpoint has an embedding for every token.

    Args:
        folder: Of the checkpoint, with config.json.
        tok: Its tokenizer.

    Raises:
        UserError: When it has not, or pads with another token.
    """
    about = AutoConfig.from_pretrained(folder, local_files_only=True)
    has = about.vocab_size
    if len(tok) > has:
        raise UserError(
            f"{folder}: tokenizer.json has {len(tok)} tokens, the checkpoint {has}: they do not "
            "belong together"
        )
    if tok.pad_token_id != about.pad_token_id:
        raise UserError(
            f"{folder}: tokenizer.json pads with {tok.pad_token_id}, the checkpoint with "
            f"{about.pad_token_id}: they do not belong together"
        )


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, or mean squared error for one output; a scalar.

    Args:
        logits: float [batch, labels].
        labels: int64 [batch], or float [batch] for a regression, between 0 and 1.
    """
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
    order = np.argsort(data.lengths, kind="stable")
    out = np.empty(len(order), dtype=np.float64 if model.config.num_labels == 1 else np.int64)
    for start in range(0, len(order), EVALUATION_BATCH):
        index = order[start : start + EVALUATION_BATCH]
        with loop.autocast(device, dtype):
            logits = model(**collate(data, index, tok, device)).logits.float()
        if model.config.num_labels == 1:
            out[index] = logits.squeeze(-1).double().cpu().numpy() * LARGEST_LABEL
        else:
            out[index] = logits.argmax(-1).cpu().numpy()
    return out


def train(
    parameters: config.Finetune,
    model: nn.Module,
    data: Encoded,
    tok: PreTrainedTokenizerBase,
    epochs: int,
    seed: int,
    dtype: torch.dtype,
    kept: Path | None = None,
    spec: str = "",
    task: str = "",
    bar: progress.Progress | None = None,
) -> dict[str, float]:
    """Fine-tunes `model` in place.

    A step is a function of the parameters, its number and the state before it, so a run that was
    killed goes on from a checkpoint and ends with the same bytes.

    Args:
        parameters: Of the stage.
        model: With a fresh head.
        data: The train split.
        tok: Tokenizer.
        epochs: Passes over the split.
        seed: Of order and dropout.
        dtype: Number format of the forward pass.
        kept: Folder for checkpoints; None for none.
        spec: Digest a checkpoint must have been written under.
        task: Its name, for an error line.
        bar: Is told of each step.

    Returns:
        steps, tokens (padding included), flops (forward and backward), seconds, joules (None where
        no device reports them) and the last loss.

    Raises:
        Preempted: After SIGTERM, when the state was saved.
        UserError: When a loss or, after the last step, a weight is not finite.
    """
    device, size = next(model.parameters()).device, parameters.finetune_batch_size
    per_epoch = -(-len(data.lengths) // size)
    total = epochs * per_epoch
    warmup = round(parameters.finetune_warmup * total)
    groups = layer_rates(model, parameters.finetune_learning_rate, parameters.finetune_layer_decay)
    capturable = graphs.possible(device, dtype)
    optimiser = torch.optim.AdamW(
        groups, eps=1e-6, weight_decay=0.0, fused=True, capturable=capturable
    )
    scaler = torch.amp.GradScaler(enabled=dtype == torch.float16)
    scale = LARGEST_LABEL if model.config.num_labels == 1 else 1
    labels = torch.tensor(data.labels / scale if scale > 1 else data.labels, device=device)
    state: dict[str, Any] = {"spec": spec, "step": 0, "tokens": 0, "flops": 0.0, "scaler": {}}
    state |= {"seconds": 0.0, "joules": 0.0}
    if kept is not None:
        state = checkpoint.load(kept, spec, model, optimiser) or state
    if state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    if bar is not None:
        bar.skip(state["step"])
    timer = checkpoint.Timer(parameters.checkpoint_steps, parameters.checkpoint_minutes)
    began, used = time.perf_counter() - state["seconds"], state["joules"]
    meter = provenance.joules(device)

    watch = loop.Watch(device)

    def check(done: int) -> None:
        """Stops once a loss was not finite; waits for the device."""
        what = "" if (bad := watch.step()) is None else f"the loss is not finite at step {bad}"
        if done == total and not what:
            name = checkpoint.not_finite(dict(model.named_parameters()))
            what = f"{name} is not finite after step {done}" if name else ""
        if what:
            raise UserError(
                f"finetune_learning_rate = {parameters.finetune_learning_rate}: "
                f"{parameters.model} on {task}, seed {seed}, diverges, {what}; lower the rate "
                "(fine-tuning then begins anew)"
                + (f"; {checkpoint.last(kept, spec)}" if kept is not None else "")
            )

    def note() -> None:
        """Brings what was spent up to now."""
        state["seconds"] = time.perf_counter() - began
        state["joules"] = provenance.spent(meter, provenance.joules(device), used)
        state["scaler"] = scaler.state_dict()

    def run_step(inputs: dict[str, torch.Tensor], factor: float = 0.0) -> dict[str, torch.Tensor]:
        """One step; the factor on the rates, and the labels, may be among the inputs."""
        optimiser.zero_grad(set_to_none=True)
        right, factor = inputs.pop("right"), inputs.pop("factor", factor)
        for group in optimiser.param_groups:
            group["lr"] = group["base"] * factor
        with loop.autocast(device, dtype):
            value = loss(model(**inputs).logits, right)
        scaler.scale(value).backward()
        scaler.unscale_(optimiser)
        loop.clip(model.parameters(), parameters.clip)
        scaler.step(optimiser)
        scaler.update()
        return {"loss": value.detach()}

    steps = graphs.Replay(run_step, capturable)
    usual = tokenizer.usable_length(registry.get(parameters.model).tokenizer, parameters.max_length)
    shapes = (REPLAYED, usual) if capturable else (1, 0)
    model.train()
    value, order = torch.zeros(()), []
    with checkpoint.preemption() if kept is not None else nullcontext(Event()) as asked:
        for step in range(state["step"], total):
            epoch, place = divmod(step, per_epoch)
            if place == 0 or not order:
                rng = seeding.numpy_generator("finetune", seed, epoch)
                order = list(batches(data.lengths, size, rng))
            index = order[place]
            torch.manual_seed(seeding.derive_seed("finetune", seed, step))
            factor = loop.schedule(step, warmup, total)
            batch = collate(data, index, tok, device, shapes)
            inputs = batch | {"right": labels[loop.send(torch.as_tensor(index), device)]}
            if steps.active:
                value = steps(inputs | {"factor": torch.full((), factor, device=device)})["loss"]
            else:
                value = run_step(inputs, factor)["loss"]
            watch.see(value, step + 1)
            rows, length = batch["input_ids"].shape
            state["step"], state["tokens"] = step + 1, state["tokens"] + rows * length
            state["flops"] += rows * length * token_flops(model.config, length)
            if kept is not None and step + 1 < total and (timer.due(step + 1) or asked.is_set()):
                note()
                check(step + 1)
                checkpoint.save(kept, model, optimiser, state)
                if asked.is_set():
                    checkpoint.stop(f"fine-tune, seed {seed}", step + 1)
            if place + 1 == per_epoch:
                check(step + 1)
            if bar is not None:
                bar.tokens += rows * length
                bar.update()
    last = value.item()
    note()
    spent = {name: state[name] for name in ("tokens", "flops", "seconds", "joules")}
    return {"steps": total, "loss": last} | spent


def count_steps(parameters: config.Finetune, name: str, rows: int) -> int:
    """Optimiser steps of one fine-tuning.

    Args:
        parameters: Of the stage.
        name: The task.
        rows: Of its train split, before pairs are swapped.
    """
    task = glue.get(name)
    rows *= 2 if parameters.finetune_swap_pairs and task.swap else 1
    epochs = parameters.finetune_epochs_small if task.small else parameters.finetune_epochs
    return epochs * -(-rows // parameters.finetune_batch_size)


def specification(
    parameters: config.Finetune,
    task: str,
    seed: int,
    pretrained: dict[str, Any],
    data: dict[str, Any],
) -> dict[str, Any]:
    """All that a score follows from; its digest names the record."""
    return {
        "stage": "finetune",
        "schema": records.SCHEMA,
        "parameters": parameters.model_dump(
            exclude={
                "profile",
                "runs",
                "model",
                "tasks",
                "seeds",
                "threads",
                *checkpoint.PARAMETERS,
            }
        ),
        "task": task,
        "seed": seed,
        "encoder": {k: v for k, v in pretrained["files"].items() if k.startswith("encoder/")},
        "data": data["files"],
    }


def run(parameters: config.Finetune) -> list[dict[str, Any]]:
    """Fine-tunes one model on its tasks and seeds; what is finished is not done again.

    Writes ``records/<model>/<task>/`` in the run's folder: ``seed-<n>.json`` and
    ``seed-<n>.parquet`` (predictions of the validation split) as each run ends, and, last,
    ``manifest.json``.

    Returns:
        The records, task by task, seed by seed.

    Raises:
        UserError: When an earlier stage has not run, or a loss is not finite.
    """
    registry.get(parameters.model)
    tasks = parameters.tasks
    for name in tasks:
        glue.get(name)
    source = parameters.folder / "models" / parameters.model
    pretrained = files.require_intact(source, "03_pretrain", f" with model = {parameters.model}")
    data = {
        name: files.require_intact(parameters.folder / "data" / "glue" / name, "01_data")
        for name in tasks
    }
    loop.begin(parameters.threads)
    tok = tokenizer.load(source / "encoder")
    check_tokenizer(source / "encoder", tok)
    vocabulary = pretrained["files"]["encoder/tokenizer.json"]
    positions = pretrained["specification"]["parameters"]["max_length"]
    if parameters.max_length > positions:
        raise UserError(
            f"max_length = {parameters.max_length}: {parameters.model} has {positions} positions"
        )
    steps = {name: count_steps(parameters, name, data[name]["rows"]["train"]) for name in tasks}
    total = sum(steps.values()) * len(parameters.seeds)
    bar = progress.bar(total, f"fine-tune {parameters.model}", "steps")
    found = []
    for name in tasks:
        target = records.folder(parameters.folder, parameters.model, name)
        encoded: dict[str, Encoded] = {}
        written = {}
        vouched = _vouched(target)
        for seed in parameters.seeds:
            wanted = specification(parameters, name, seed, pretrained, data[name])
            bar.set_postfix_str(f"{name}, seed {seed}", refresh=False)
            record = _finished(target, seed, files.digest(wanted), vouched)
            if record is not None:
                bar.skip(steps[name])
            else:
                encoded = encoded or _encode_splits(parameters, name, tok, vocabulary, data[name])
                with files.lock(target):
                    record = _one(
                        parameters, name, seed, wanted, pretrained, data[name], tok, encoded, bar
                    )
            written |= {f"seed-{seed}.json": seed, f"seed-{seed}.parquet": seed}
            found.append(record)
        files.write_manifest(target, {"spec": files.digest(sorted(written))}, list(written))
    bar.close()
    return found


def finished(parameters: config.Finetune) -> list[dict[str, Any]] | None:
    """What :func:`run` gives where all of it is done, else None; predictions are not read."""
    pretrained = files.find_manifest(parameters.folder / "models" / parameters.model)
    found = []
    for name in parameters.tasks:
        cell = records.folder(parameters.folder, parameters.model, name)
        data = files.find_manifest(parameters.folder / "data" / "glue" / name)
        if not (pretrained and data and files.find_manifest(cell)):
            return None
        for seed in parameters.seeds:
            path = cell / f"seed-{seed}.json"
            record = files.read_json(path) if path.exists() else {}
            wanted = specification(parameters, name, seed, pretrained, data)
            if record.get("spec") != files.digest(wanted):
                return None
            found.append(record)
    return found


def _vouched(target: Path) -> dict[str, str]:
    """Hashes of a cell's files, as the manifest says, or said before a job began to add to it."""
    there = [target / name for name in (files.MANIFEST, files.KEPT) if (target / name).exists()]
    return files.read_manifest(there[0])["files"] if there else {}


def _finished(target: Path, seed: int, spec: str, vouched: dict[str, str]) -> dict[str, Any] | None:
    path = target / f"seed-{seed}.json"
    kept = path.with_suffix(".parquet")
    if not path.exists() or not kept.exists():
        return None
    found = files.read_json(path)
    if not isinstance(found, dict) or found.get("spec") != spec:
        return None  # of other parameters, or of another version of the schema
    record = records.read(path)
    if vouched.get(path.name, files.sha256(path)) != files.sha256(path):
        raise UserError(
            f"{path}: changed since its manifest was written; delete it and run "
            "notebooks/04_finetune.ipynb again"
        )
    return record if record["predictions"] == files.sha256(kept) else None


def _encode_splits(
    parameters: config.Finetune,
    name: str,
    tok: PreTrainedTokenizerBase,
    vocabulary: str,
    manifest: dict[str, Any],
) -> dict[str, Encoded]:
    """The splits of a task, tokenised once for all models that share a tokenizer.

    Args:
        parameters: Of the stage.
        name: The task.
        tok: Tokenizer.
        vocabulary: SHA-256 of the tokenizer's file.
        manifest: Of the task's data.
    """
    task = glue.get(name)
    length = tokenizer.usable_length(
        registry.get(parameters.model).tokenizer, parameters.max_length
    )
    found = {}
    for split in manifest["rows"]:
        swap = parameters.finetune_swap_pairs and task.swap and split == "train"
        content = [vocabulary, manifest["files"][f"{split}.parquet"], task.columns, length, swap]
        path = parameters.folder / "encoded" / f"{files.digest(content)}.safetensors"

        def make(split: str = split, swap: bool = swap) -> Encoded:
            return encode(glue.load(parameters.folder, name, split), task, tok, length, swap)

        found[split] = encode_once(path, make)
    return found


def _one(
    parameters: config.Finetune,
    name: str,
    seed: int,
    wanted: dict[str, Any],
    pretrained: dict[str, Any],
    data: dict[str, Any],
    tok: PreTrainedTokenizerBase,
    encoded: dict[str, Encoded],
    bar: progress.Progress,
) -> dict[str, Any]:
    from helpers.data import metrics

    task = glue.get(name)
    device = registry.device()
    dtype, reason = loop.choose_precision(parameters.precision, device)
    torch.manual_seed(seeding.derive_seed("finetune", seed))
    source = parameters.folder / "models" / parameters.model / "encoder"
    model = open_encoder(source, task, parameters.finetune_dropout).to(device)
    epochs = parameters.finetune_epochs_small if task.small else parameters.finetune_epochs
    kept = parameters.folder / "checkpoints" / parameters.model / name / f"seed-{seed}"
    kept = checkpoint.place(parameters, f"finetune/{parameters.model}/{name}", f"{seed}", kept)
    spec = files.digest(wanted)
    files.remove_manifest(records.folder(parameters.folder, parameters.model, name))
    spent = train(
        parameters, model, encoded["train"], tok, epochs, seed, dtype, kept, spec, name, bar
    )
    del spent["loss"]
    splits = list(encoded)[1:]
    predicted = {split: predict(model, encoded[split], tok, dtype) for split in splits}
    score, found, note = metrics.score(name, predicted[splits[0]], encoded[splits[0]].labels)
    for split in splits[1:]:
        beside = metrics.score(name, predicted[split], encoded[split].labels)[1]
        found |= {f"mismatched_{key}": value for key, value in beside.items()}

    target = records.folder(parameters.folder, parameters.model, name)
    predictions = target / f"seed-{seed}.parquet"
    table = pd.concat(
        pd.DataFrame(
            {
                "split": split,
                "idx": encoded[split].idx,
                "prediction": predicted[split],
            }
        )
        for split in splits
    )
    with files.replacing(predictions) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd")
    record = {
        "schema": records.SCHEMA,
        "profile": parameters.profile,
        "source": data["source"],
        "corpus": pretrained["corpus"],
        "size": pretrained["size"],
        "model": parameters.model,
        "task": name,
        "seed": seed,
        "score": score,
        "metrics": found,
        "note": note,
        "rows": data["rows"],
        "reduced": data["reduced"],
        "complete": data["complete"],
        "pretrain": pretrained["pretrain"],
        "finetune": spent | {"seconds": round(spent["seconds"], 2)},
        "pretrain_hardware": pretrained["hardware"],
        "hardware": provenance.hardware(parameters.threads),
        "precision": reason,
        "code": provenance.code(),
        "pretrain_code": pretrained["code"],
        "hashes": {
            "data": data["files"],
            "encoder": wanted["encoder"],
            "corpus": pretrained["specification"]["tokens"],
        },
        "versions": provenance.versions(),
        "parameters": wanted["parameters"],
        "predictions": files.sha256(predictions),
        "spec": spec,
    }
    (target / files.KEPT).unlink(missing_ok=True)  # what it vouched for is no more as it was
    records.write(target / f"seed-{seed}.json", record)
    checkpoint.clear(kept)
    return record
