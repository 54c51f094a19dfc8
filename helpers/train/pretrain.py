"""Pre-training: masked language modelling and replaced-token detection.

One loop for both. A step is a pure function of the parameters, the step number and the state
before it: the order of rows follows from (seed, epoch), masks, samples and dropout from
(seed, step). So a run that was killed goes on from its checkpoint and ends with the same bytes.

Sources: masking and MLM, Devlin et al. 2019, section 3.1; replaced-token detection, Clark et al.
2020, section 2; sizes and rates of the study, see ``helpers.model.registry`` and ``profiles/``.
"""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from helpers.base import config, files, progress, seeding
from helpers.base.errors import UserError
from helpers.data import tokenizer
from helpers.model import disentangled, registry
from helpers.train import checkpoint, graphs, heads, loop, objectives, provenance
from helpers.train.batches import Rows
from helpers.train.held_out import HeldOut

LOG_POINTS = 200
REPLAYED = 8  # lengths of batches are multiples of it where a step is recorded
DIVERGED = (2.0, 3)
"""Training diverges where the mean loss is this many times that of the first step, whose weights
are random, in so many lines of the log in succession. A spike that comes down again goes on."""


class Step:
    """An optimiser step of pre-training, as often as it is called; nothing in it waits for the GPU.

    Masks come from `generator`, dropout and samples from torch's own; the caller seeds both. The
    forward pass computes in `dtype`; `clip` is the largest norm of the gradient.
    """

    def __init__(
        self,
        task: nn.Module,
        vocabulary: objectives.Vocabulary,
        dtype: torch.dtype = torch.float32,
        clip: float = 1.0,
    ) -> None:
        self.model, self.vocabulary = task, vocabulary
        self.dtype, self.clip = dtype, clip
        device = next(task.parameters()).device
        capturable = graphs.possible(device, dtype)
        self.optimiser = make_optimiser(task, capturable)
        self.scaler = torch.amp.GradScaler(enabled=dtype == torch.float16)
        self.generator = torch.Generator(device)
        self.replay = graphs.Replay(self._take, capturable, [self.generator])

    def __call__(self, tokens: torch.Tensor, rate: float) -> dict[str, torch.Tensor]:
        """One step over tokens, int64 [batch, length]; the losses before it by name.

        They are means over the batch, scalar tensors that the next call may write over.
        """
        return self.replay({"tokens": tokens}, rate)

    def _take(self, inputs: graphs.Tensors, rate: float | torch.Tensor) -> graphs.Tensors:
        tokens = inputs["tokens"]
        self.optimiser.zero_grad(set_to_none=True)
        # Choose 15 % of the ordinary tokens of each row and hide them.
        masking = self.model.spec.masking
        masked = objectives.mask_tokens(tokens, self.vocabulary, masking, self.generator)
        # Forward in the number format, backward.
        with loop.autocast(tokens.device, self.dtype):
            losses = self.model(tokens, masked)
        self.scaler.scale(losses["loss"]).backward()
        # Clip the gradient, then let AdamW move the weights.
        self.scaler.unscale_(self.optimiser)
        loop.clip(self.model.parameters(), self.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return {name: value.detach() for name, value in losses.items()}


def train(
    parameters: config.Pretrain,
    task: nn.Module,
    tok: Tokenizer,
    packed: np.ndarray,
    unseen: np.ndarray,
    segments: int,
    folder: Path,
    spec: str,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Trains `task` in place on packed rows; the state after the last step, the log among it.

    `unseen` are the held-out rows; a row has so many `segments`.
    """
    device, seed, total = registry.device(), parameters.pretrain_seed, parameters.pretrain_steps
    vocabulary = objectives.Vocabulary.of(tok, device, segments)
    step = Step(task, vocabulary, dtype, parameters.clip)
    multiple = REPLAYED if step.replay.active else 1
    rows = Rows(packed, tok, parameters.pretrain_batch_size, seed, device, multiple)
    checkpoints = checkpoint.folder_of(parameters, "pretrain", parameters.model, folder)
    trained = total * parameters.pretrain_batch_size
    held_out = HeldOut(unseen, tok, trained, vocabulary)
    upkeep = _Upkeep(parameters, step, spec, checkpoints)
    peak = getattr(parameters, rate_name(parameters, task.spec))
    warmup, own = round(parameters.pretrain_warmup * total), task.spec.recipe
    task.train()
    with upkeep.steps() as steps:
        for number in steps:
            tokens = rows.batch(number)
            torch.manual_seed(seeding.derive_seed(seed, "step", number))
            step.generator.manual_seed(seeding.derive_seed(seed, "mask", number))
            rate = peak * loop.schedule(number, warmup, total, own.end_rate, own.ramp_times_decay)
            losses = step(tokens, rate)
            upkeep.maybe_log(losses, rate, tokens)
            upkeep.maybe_evaluate(held_out)
            upkeep.maybe_save(tokens.numel(), hold=upkeep.state["high"] > 0)
    upkeep.bar.close()
    return upkeep.state


class _Upkeep(loop.Upkeep):
    """Upkeep with a log of mean losses; a loss that stays high stops the run."""

    def __init__(self, parameters: config.Pretrain, step: Step, spec: str, folder: Path) -> None:
        model, total = parameters.model, parameters.pretrain_steps
        fresh = {"spec": spec, "log": [], "sums": {}, "start": None, "high": 0}
        fresh |= {"tokens": 0, "flops": 0.0}
        bar = progress.bar(total, f"pre-train {model}", "steps")
        rate = rate_name(parameters, step.model.spec)
        super().__init__(parameters, step, fresh, total, folder, bar, model, rate)
        self.every, self.dtype = max(1, total // LOG_POINTS), step.dtype
        double = {"dtype": torch.float64, "device": self.device}
        self.sums = {n: torch.tensor(value, **double) for n, value in self.state["sums"].items()}

    def maybe_log(self, losses: dict[str, torch.Tensor], rate: float, tokens: torch.Tensor) -> None:
        """Adds up the losses of a step; now and then writes their means as a line of the log."""
        self.see(losses["loss"])
        state, length = self.state, tokens.shape[1]
        state["tokens"] += tokens.numel()
        state["flops"] += tokens.numel() * objectives.flops_per_token(self.model, length)
        if state["start"] is None:
            state["start"] = losses["loss"].item()
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.double()
        step = state["step"]
        if step % self.every and step < self.total:
            return
        means = {n: v.item() / ((step - 1) % self.every + 1) for n, v in self.sums.items()}
        self.check()
        times, lines = DIVERGED
        state["high"] = state["high"] + 1 if means["loss"] > times * state["start"] else 0
        if state["high"] == lines:
            now, then = means["loss"], state["start"]
            self.diverged(f"the loss is {now:.4g} at step {step}, was {then:.4g} at the first step")
        state["log"].append({"step": step, "tokens": state["tokens"], "rate": rate} | means)
        self.sums = {}
        self.bar.set_postfix_str(f"loss {means['loss']:.3f}", refresh=False)

    def maybe_evaluate(self, held_out: HeldOut) -> None:
        """At some lines of the log, and at the last, adds what held-out rows say to the line."""
        log, last = self.state["log"], self.state["step"] == self.total
        if not held_out.batches or not log or log[-1]["step"] != self.state["step"]:
            return
        if last or len(log) % max(1, self.total // self.every // held_out.points) == 0:
            log[-1] |= held_out(self.model, self.dtype, last)
            said = f"loss {log[-1]['loss']:.3f}, held-out {log[-1]['held_out_loss']:.3f}"
            self.bar.set_postfix_str(said, refresh=False)

    def note(self) -> None:
        """Brings the state up to now, with the sums for the next line of the log."""
        super().note()
        self.state["sums"] = {name: value.item() for name, value in self.sums.items()}


def make_optimiser(task: nn.Module, capturable: bool = False) -> torch.optim.AdamW:
    """The optimiser of the model's recipe, at rate 0; no decay on biases and norms."""
    decayed = {"params": [], "weight_decay": task.spec.recipe.weight_decay}
    others = {"params": [], "weight_decay": 0.0}
    for name, parameter in task.named_parameters():
        group = decayed if loop.is_decayed(name, parameter) else others
        group["params"].append(parameter)
    return loop.make_adamw([decayed, others], task.spec.recipe, capturable)


def rate_name(parameters: config.Pretrain, spec: registry.Spec) -> str:
    """Which parameter holds the peak learning rate of a model: its objective may have its own."""
    # In small batches the discriminator's encoder collapses at rates that MLM gains from.
    rtd = spec.objective == "rtd" and parameters.rtd_learning_rate
    return "rtd_learning_rate" if rtd else "pretrain_learning_rate"


def recipe(parameters: config.Pretrain, spec: registry.Spec) -> config.Pretrain:
    """The parameters with what the model's own recipe changes in them."""
    changes, rate = spec.recipe, rate_name(parameters, spec)
    changed: dict[str, Any] = {
        "pretrain_batch_size": changes.batch * parameters.pretrain_batch_size,
        "pretrain_steps": max(1, round(parameters.pretrain_steps / changes.batch)),
        rate: changes.rate * getattr(parameters, rate),
        "pretrain_seed": changes.seed + parameters.pretrain_seed,
    }
    if changes.dropout is not None:
        changed["pretrain_dropout"] = changes.dropout
    where = f"recipe of {parameters.model}"
    return config.validate(config.Pretrain, parameters.model_dump() | changed, where)


def specification(parameters: config.Pretrain, packed: dict[str, Any]) -> dict[str, Any]:
    """All that the weights follow from, the packed corpus' manifest among it; names the run."""
    spec = registry.get(parameters.model)
    others = {"profile", "runs", "model", "threads", *checkpoint.PARAMETERS}
    values = parameters.model_dump(exclude=others)
    values["pretrain_learning_rate"] = values[rate_name(parameters, spec)]
    del values["rtd_learning_rate"]
    if spec.objective == "none":
        names = ("size", "max_length", "pretrain_dropout", "pretrain_seed")
        values = {name: values[name] for name in names}
    return {
        "stage": "pretrain",
        "parameters": values,
        "model": asdict(spec),
        "size": asdict(registry.get_size(parameters.size)),
        "tokens": packed["spec"],
    }


def run(parameters: config.Pretrain) -> dict[str, Any]:
    """Pre-trains one model and saves it; goes on from a checkpoint, and does nothing twice.

    Writes ``models/<model>/`` in the run's folder: ``encoder/`` (opens with AutoModel and
    AutoTokenizer), for replaced-token detection ``generator/``, ``log.csv`` and, last,
    ``manifest.json``, which it returns.
    """
    spec = registry.get(parameters.model)
    source = parameters.folder / "tokenizer" / spec.tokenizer
    remedy = f" with tokenizer_kind = {spec.tokenizer}"
    packed = files.require_manifest(source, "02_tokenizer", remedy)
    length = tokenizer.usable_length(spec.tokenizer, parameters.max_length)
    if packed["length"] != length:
        raise UserError(
            f"max_length = {parameters.max_length}: needs rows of {length} tokens, the corpus "
            f"was packed in rows of {packed['length']}; run notebooks/02_tokenizer.ipynb again"
        )
    wanted = specification(parameters, packed)
    folder = parameters.folder / "models" / parameters.model
    if done := files.intact_manifest(folder, files.digest(wanted)):
        return done
    files.require_intact(source, "02_tokenizer", remedy)
    checkpoints = checkpoint.folder_of(parameters, "pretrain", parameters.model, folder)
    if checkpoint.holds_only_others(checkpoints, files.digest(wanted)):
        raise UserError(
            f"{checkpoints}: holds checkpoints of a pre-training with other parameters; finish it "
            "with those, give a profile of another name, or delete them"
        )
    if (folder / files.MANIFEST).exists():
        print(f"{folder}: was made with other parameters or data; it is trained anew")
    with files.lock(folder):
        return _run(recipe(parameters, spec), packed, wanted, folder)


def finished(parameters: config.Pretrain) -> dict[str, Any] | None:
    """What :func:`run` gives where that is done, of the packed corpus that is there; else None."""
    kind = registry.get(parameters.model).tokenizer
    packed = files.find_manifest(parameters.folder / "tokenizer" / kind)
    if not packed:
        return None
    folder = parameters.folder / "models" / parameters.model
    return files.find_manifest(folder, files.digest(specification(parameters, packed)))


def _run(
    parameters: config.Pretrain, packed: dict[str, Any], wanted: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Trains and writes what :func:`run` says."""
    spec = replace(registry.get(parameters.model), recipe=loop.recipe(parameters))
    size = registry.get_size(parameters.size)
    source, name = parameters.folder / "tokenizer" / packed["kind"], files.digest(wanted)
    loop.begin(parameters.threads)
    device = registry.device()
    dtype, reason = loop.choose_precision(parameters.precision, device)
    tok = tokenizer.load(source)
    torch.manual_seed(seeding.derive_seed(parameters.pretrain_seed, "weights"))
    shape = (size, len(tok), parameters.max_length, parameters.pretrain_dropout)
    task = objectives.build(spec, *shape, parameters.generator_fraction).to(device)
    files.remove_manifest(folder)
    steps = parameters.pretrain_steps if spec.objective != "none" else 0
    state: dict[str, Any] = {"log": []}
    state |= dict.fromkeys(("tokens", "flops", "seconds"), 0)
    if steps:
        rows, unseen = (tokenizer.rows(source, held_out) for held_out in (False, True))
        segments = packed["specification"]["segments"]
        state = train(parameters, task, tok, rows, unseen, segments, folder, name, dtype)
    written = _save(task, tok, folder, state["log"])
    held_out = _held_out(state["log"], packed["held_out"])
    generator = registry.count(task.generator) if spec.objective == "rtd" else 0
    manifest = {
        "spec": name,
        "specification": wanted,
        "model": parameters.model,
        "size": parameters.size,
        "objective": spec.objective,
        **{key: packed[key] for key in ("corpus", "source")},
        "precision": reason,
        "pretrain": {
            "steps": steps,
            "tokens": state["tokens"],
            "epochs": round(state["tokens"] / packed["tokens"], 3),
            "flops": state["flops"],
            "seconds": round(state["seconds"], 1),
            "bits_per_byte": held_out.get("bits_per_byte"),
            "parameters": registry.count(registry.encoder(task.model)),
            "generator_parameters": generator,
        },
        "held_out": held_out,
        "code": provenance.code(),
        "hardware": provenance.hardware(parameters.threads),
        "versions": provenance.versions(),
    }
    manifest = files.write_manifest(folder, manifest, written)
    checkpoint.clear(checkpoint.folder_of(parameters, "pretrain", parameters.model, folder))
    return manifest


def _held_out(log: list[dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """What the held-out rows say at the end, beside what a model without context comes to."""
    measures = ("loss", "shuffled", "auc", "excess")
    last = log[-1] if log else {}
    found = {name: last[f"held_out_{name}"] for name in measures if f"held_out_{name}" in last}
    if found:
        found["effective_rank"] = last["effective_rank"]
        # In nats per token, as bits per byte of the text, which tokenizers have in common.
        found["bits_per_byte"] = found["loss"] / math.log(2) * about["tokens"] / about["bytes"]
    found |= {name: about[name] for name in ("unigram", "bigram") if name in about}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _save(task: nn.Module, tok: Tokenizer, folder: Path, log: list) -> list[str]:
    """Writes encoder, generator and log; returns the names of the files."""
    is_deberta = isinstance(task.model, disentangled.Discriminator)
    models = {"encoder": task.model.deberta if is_deberta else task.model}
    if isinstance(task, objectives.ReplacedTokenDetection):
        models["generator"] = task.generator
        if is_deberta:  # transformers 5 reads the decoder's own bias, 4 the other
            head = task.generator.cls.predictions
            head.bias.data.copy_(head.decoder.bias)
    for name, model in models.items():
        with files.building(folder / name) as empty, tokenizer.saving():
            model.save_pretrained(empty)
            tokenizer.save(tok, empty, heads.positions(model))
    table = pd.DataFrame(log) if log else pd.DataFrame(columns=["step", "tokens", "rate", "loss"])
    files.write_text(folder / "log.csv", table.to_csv(index=False, lineterminator="\n"))
    paths = [path for name in models for path in sorted((folder / name).iterdir())]
    return ["log.csv", *(str(path.relative_to(folder)) for path in paths)]
