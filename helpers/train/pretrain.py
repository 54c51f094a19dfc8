"""Pre-training: masked language modelling and replaced-token detection.

One loop for both. A step is a pure function of the parameters, the step number and the state
before it: the order of segments follows from (seed, epoch), masks, samples and dropout from
(seed, step). So a run that was killed goes on from its checkpoint and ends with the same bytes.

Sources: masking and MLM, Devlin et al. 2019, section 3.1; replaced-token detection, Clark et al.
2020, section 2; sizes and rates of the study, see ``helpers.models`` and ``profiles/``.
"""

import csv
import io
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from helpers.base import config, files, progress, seeding
from helpers.base.errors import UserError
from helpers.data import tokenizer
from helpers.model import registry
from helpers.train import checkpoint, graphs, loop, provenance
from helpers.train.objectives import (
    Masked,
    ReplacedTokenDetection,
    Vocabulary,
    build,
    flops_per_token,
    mask_tokens,
)

LOG_POINTS = 200


class Segments:
    """The packed corpus as an endless row of batches: permutations of the epochs, end to end.

    Args:
        packed: uint16 or uint32 [rows, length], a memory map.
        size: Segments per batch.
        seed: Of the order; an epoch's permutation follows from it and the epoch's number.
        device: Where batches are wanted. On a GPU the corpus is copied there when it fits.

    Attributes:
        place: A sentence that says where the corpus lies and why.
    """

    def __init__(self, packed: np.ndarray, size: int, seed: int, device: torch.device) -> None:
        self.packed, self.size, self.seed, self.device = packed, size, seed, device
        self.orders: dict[int, np.ndarray] = {}
        # torch indexes signed integers everywhere; the mask takes the sign back.
        self.signed = packed.view(packed.dtype.str.replace("u", "i"))
        self.mask = 2 ** (8 * packed.dtype.itemsize) - 1
        self.resident: torch.Tensor | None = None
        resident, self.place = loop.choose_place(packed.nbytes, device)
        if resident:
            self.resident = torch.from_numpy(np.array(self.signed)).to(device)

    def order(self, epoch: int) -> np.ndarray:
        """Permutation of an epoch, int64 [rows]; the last two are kept."""
        if epoch not in self.orders:
            self.orders = {e: kept for e, kept in self.orders.items() if e == epoch - 1}
            generator = seeding.numpy_generator(self.seed, "order", epoch)
            self.orders[epoch] = generator.permutation(len(self.packed))
        return self.orders[epoch]

    def rows(self, step: int) -> np.ndarray:
        """Row numbers of the batch of a step (from 0), int64 [size]."""
        stream = np.arange(step * self.size, (step + 1) * self.size)
        epochs = stream // len(self.packed)
        return np.concatenate(
            [
                self.order(int(epoch))[stream[epochs == epoch] % len(self.packed)]
                for epoch in np.unique(epochs)
            ]
        )

    def batch(self, step: int) -> torch.Tensor:
        """The batch of a step, int64 [size, length] on the device, without waiting for it."""
        rows = self.rows(step)
        if self.resident is not None:
            found = self.resident[loop.send(torch.from_numpy(rows), self.device)]
        else:
            found = loop.send(torch.from_numpy(self.signed[rows]), self.device)
        return found.long() & self.mask


def specification(parameters: config.Pretrain, packed: dict[str, Any]) -> dict[str, Any]:
    """All that the weights follow from; its digest names the run.

    Args:
        parameters: Of the stage.
        packed: Manifest of the tokenizer stage.
    """
    spec = registry.get(parameters.model)
    values = parameters.model_dump(
        exclude={"profile", "runs", "model", "threads", *checkpoint.PARAMETERS}
    )
    values["pretrain_learning_rate"] = values[rate_name(parameters, spec)]
    del values["rtd_learning_rate"]
    if spec.objective == "none":
        values = {
            key: values[key] for key in ("size", "max_length", "pretrain_dropout", "pretrain_seed")
        }
    return {
        "stage": "pretrain",
        "parameters": values,
        "model": registry.entry(spec),
        "size": asdict(registry.get_size(parameters.size)),
        "tokens": packed["spec"],
    }


def run(parameters: config.Pretrain) -> dict[str, Any]:
    """Pre-trains one model and saves it; goes on from a checkpoint, and does nothing twice.

    Writes ``models/<model>/`` in the run's folder: ``encoder/`` (opens with AutoModel and
    AutoTokenizer), for replaced-token detection ``generator/``, ``log.csv`` and, last,
    ``manifest.json``.

    Args:
        parameters: Of the stage.

    Returns:
        The manifest.

    Raises:
        UserError: When the packed corpus is missing, damaged or does not fit, or training diverges.
    """
    spec = registry.get(parameters.model)
    registry.get_size(parameters.size)  # a wrong name is told before any work
    source = parameters.folder / "tokenizer" / spec.tokenizer
    remedy = f" with tokenizer_kind = {spec.tokenizer}"
    packed = files.require_manifest(source, "02_tokenizer", remedy)
    length = tokenizer.usable_length(spec.tokenizer, parameters.max_length)
    if packed["length"] != length:
        raise UserError(
            f"max_length = {parameters.max_length}: needs segments of {length} tokens, the corpus "
            f"was packed in segments of {packed['length']}; run notebooks/02_tokenizer.ipynb again"
        )
    wanted = specification(parameters, packed)
    name = files.digest(wanted)
    folder = parameters.folder / "models" / parameters.model
    done = files.intact_manifest(folder, name)
    if done:
        return done

    files.require_intact(source, "02_tokenizer", remedy)
    with files.lock(folder):
        return _make(recipe(parameters, spec), spec, packed, wanted, folder)


def finished(parameters: config.Pretrain) -> dict[str, Any] | None:
    """What :func:`run` gives where that is done, of the packed corpus that is there; else None."""
    kind = registry.get(parameters.model).tokenizer
    packed = files.find_manifest(parameters.folder / "tokenizer" / kind)
    if not packed:
        return None
    folder = parameters.folder / "models" / parameters.model
    return files.find_manifest(folder, files.digest(specification(parameters, packed)))


def rate_name(parameters: config.Pretrain, spec: registry.Spec) -> str:
    """Which parameter holds the peak learning rate of a model: its objective may have its own.

    In small batches the discriminator's encoder collapses at rates that masked language models
    gain from.
    """
    own = spec.objective == "rtd" and parameters.rtd_learning_rate
    return "rtd_learning_rate" if own else "pretrain_learning_rate"


def recipe(parameters: config.Pretrain, spec: registry.Spec) -> config.Pretrain:
    """The parameters of a pre-training with what the model's own recipe changes in them.

    Args:
        parameters: Of the stage.
        spec: The model's entry.

    Raises:
        UserError: For a change that leaves an impossible parameter.
    """
    own = spec.recipe
    rate = rate_name(parameters, spec)
    changes: dict[str, Any] = {
        "pretrain_batch_size": own.batch * parameters.pretrain_batch_size,
        "pretrain_steps": max(1, round(parameters.pretrain_steps / own.batch)),
        rate: own.rate * getattr(parameters, rate),
        "pretrain_seed": own.seed + parameters.pretrain_seed,
    }
    if own.dropout is not None:
        changes["pretrain_dropout"] = own.dropout
    where = f"recipe of {parameters.model}"
    return config.validate(config.Pretrain, parameters.model_dump() | changes, where)


def _make(
    parameters: config.Pretrain,
    spec: registry.Spec,
    packed: dict[str, Any],
    wanted: dict[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Trains and writes what :func:`run` says."""
    source, length = parameters.folder / "tokenizer" / spec.tokenizer, packed["length"]
    loop.begin(parameters.threads)
    device = registry.device()
    dtype, reason = loop.choose_precision(parameters.precision, device)
    tok = tokenizer.load(source)
    if len(tok) != packed["vocabulary"]:
        raise UserError(
            f"{source}: has {len(tok)} tokens, its manifest says {packed['vocabulary']}; delete it "
            "and run notebooks/02_tokenizer.ipynb again"
        )
    torch.manual_seed(seeding.derive_seed(parameters.pretrain_seed, "weights"))
    task = build(
        spec,
        registry.get_size(parameters.size),
        packed["vocabulary"],
        parameters.max_length,
        parameters.pretrain_dropout,
        parameters.generator_fraction,
    ).to(device)
    steps = 0 if spec.objective == "none" else parameters.pretrain_steps
    files.remove_manifest(folder)
    state = {"spec": files.digest(wanted), "step": 0, "log": [], "sums": {}}
    state |= {"start": None, "high": 0, "seconds": 0.0, "compile_seconds": 0.0, "joules": 0.0}
    if steps:
        state = _train(parameters, task, tok, tokenizer.rows(source), folder, state, dtype)
    written = _save(task, tok, folder, state["log"])
    tokens = steps * parameters.pretrain_batch_size * length
    manifest = {
        "spec": files.digest(wanted),
        "specification": wanted,
        "model": parameters.model,
        "size": parameters.size,
        "objective": spec.objective,
        "corpus": packed["corpus"],
        "source": packed["source"],
        "precision": reason,
        "place": state.get("place", "no training"),
        "pretrain": {
            "steps": steps,
            "tokens": tokens,
            "epochs": round(tokens / (packed["rows"] * length), 3),
            "flops": tokens * flops_per_token(task, length),
            "seconds": round(state["seconds"], 1),
            "compile_seconds": round(state["compile_seconds"], 1),
            "joules": state["joules"],
            "parameters": registry.count(registry.encoder(task.model)),
            "generator_parameters": _generator_count(task),
        },
        "code": provenance.code(),
        "hardware": provenance.hardware(parameters.threads),
        "versions": provenance.versions(),
    }
    manifest = files.write_manifest(folder, manifest, written)
    checkpoint.clear(checkpoint.place(parameters, "pretrain", parameters.model, folder))
    return manifest


def _generator_count(task: nn.Module) -> int:
    return registry.count(task.generator) if isinstance(task, ReplacedTokenDetection) else 0


def _train(
    parameters: config.Pretrain,
    task: nn.Module,
    tok: PreTrainedTokenizerBase,
    rows: np.ndarray,
    folder: Path,
    state: dict[str, Any],
    dtype: torch.dtype,
) -> dict[str, Any]:
    device = registry.device()
    seed, total, batch = (
        parameters.pretrain_seed,
        parameters.pretrain_steps,
        parameters.pretrain_batch_size,
    )
    step = Step(
        task,
        Vocabulary.of(tok, device),
        dtype,
        parameters.clip,
        parameters.pretrain_tokens_per_pass // rows.shape[1],
        parameters.torch_compile,
    )
    kept = checkpoint.place(parameters, "pretrain", parameters.model, folder)
    state = checkpoint.load(kept, state["spec"], task, step.optimiser) or state
    state = {"start": float("inf"), "high": 0} | state  # of a version that did not note them
    if state.get("scaler"):
        step.scaler.load_state_dict(state["scaler"])
    segments = Segments(rows, batch, seed, device)
    state["place"] = segments.place

    every = max(1, total // LOG_POINTS)
    warmup = round(parameters.pretrain_warmup * total)
    peak = getattr(parameters, rate_name(parameters, task.spec))
    sums = {
        key: torch.tensor(value, dtype=torch.float64, device=device)
        for key, value in state["sums"].items()
    }
    began, used = time.perf_counter() - state["seconds"], state["joules"]
    meter = provenance.joules(device)
    task.train()
    bar = progress.bar(total, f"pre-train {parameters.model}", "steps", state["step"])
    first = state["step"] if parameters.torch_compile != "none" else None
    timer = checkpoint.Timer(parameters.checkpoint_steps, parameters.checkpoint_minutes)
    watch = loop.Watch(device)

    def note(done: int) -> None:
        """Brings the state up to `done` steps."""
        state["step"], state["seconds"] = done, time.perf_counter() - began
        state["joules"] = provenance.spent(meter, provenance.joules(device), used)
        state["sums"] = {key: value.item() for key, value in sums.items()}
        state["scaler"] = step.scaler.state_dict()

    with checkpoint.preemption() as asked:
        for number in range(state["step"], total):
            tokens = segments.batch(number)
            torch.manual_seed(seeding.derive_seed(seed, "step", number))
            step.generator.manual_seed(seeding.derive_seed(seed, "mask", number))
            factor = loop.schedule(number, warmup, total, task.spec.recipe.end_rate)
            rate = peak * factor
            if number == first:
                losses, spent = _compiling(step, tokens, rate, parameters.torch_compile)
                state["compile_seconds"] += spent
                began += spent
            else:
                losses = step(tokens, rate)
            watch.see(losses["loss"], number + 1)
            if state["start"] is None:
                state["start"] = losses["loss"].item()
            for key, value in losses.items():
                sums[key] = sums.get(key, 0.0) + value.double()
            done = number + 1
            if done % every == 0 or done == total:
                means = {key: value.item() / (number % every + 1) for key, value in sums.items()}
                _check_loss(parameters, watch, state, done, kept, means["loss"])
                seen = done * batch * rows.shape[1]
                state["log"].append({"step": done, "tokens": seen, "rate": rate} | means)
                sums = {}
                bar.set_postfix_str(f"loss {means['loss']:.3f}", refresh=False)
            due = timer.due(done) and not state["high"]  # a bad state takes no good one's place
            if done < total and (due or asked.is_set()):
                note(done)
                _check_loss(parameters, watch, state, done, kept)
                checkpoint.save(kept, task, step.optimiser, state)
                if asked.is_set():
                    checkpoint.stop(f"pre-train {parameters.model}", done)
            bar.tokens += tokens.numel()
            bar.update()
    bar.close()
    note(total)
    bad = checkpoint.not_finite(dict(task.named_parameters()))
    if bad:
        _diverged(parameters, f"{bad} is not finite after step {total}", kept, state)
    return state


DIVERGED = (2.0, 3)
"""Training diverges where the mean loss is this many times that of the first step, whose weights
are random, in so many lines of the log in succession. A spike that comes down again goes on."""


def _check_loss(
    parameters: config.Pretrain,
    watch: loop.Watch,
    state: dict[str, Any],
    done: int,
    kept: Path,
    mean: float = 0.0,
) -> None:
    """Stops a run whose loss is not finite, or whose mean by the lines of the log stays high.

    With a loss scaler, steps whose gradients overflow are skipped and are no reason to stop.
    """
    if (step := watch.step()) is not None:
        _diverged(parameters, f"the loss is not finite at step {step}", kept, state)
    if not mean:
        return
    times, lines = DIVERGED
    state["high"] = state["high"] + 1 if mean > times * state["start"] else 0
    if state["high"] == lines:
        what = f"the loss is {mean:.4g} at step {done}, was {state['start']:.4g} at the first step"
        _diverged(parameters, what, kept, state)


def _diverged(parameters: config.Pretrain, what: str, kept: Path, state: dict[str, Any]) -> None:
    rate = rate_name(parameters, registry.get(parameters.model))
    raise UserError(
        f"{rate} = {getattr(parameters, rate)}: {parameters.model} "
        f"diverges, {what}; lower the rate or raise pretrain_warmup (training then begins "
        f"anew); {checkpoint.last(kept, state['spec'])}"
    )


def _compiling(
    step: "Step", tokens: torch.Tensor, rate: float, mode: str
) -> tuple[dict[str, torch.Tensor], float]:
    """The first step of a compiled run, and the seconds it took."""
    began = time.perf_counter()
    try:
        losses = step(tokens, rate)
        losses["loss"].item()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"torch_compile = {mode!r}: failed on this machine; use none ({reason})"
        ) from None
    return losses, time.perf_counter() - began


class Step:
    """Optimiser steps on a task: masks, forward and backward, clipped gradient, AdamW.

    Nothing in a step waits for the device; losses come back as tensors that live there.

    Args:
        task: A :class:`MaskedLanguageModel` or :class:`ReplacedTokenDetection` on its device.
        vocabulary: Of the tokenizer.
        dtype: Number format of the forward pass.
        clip: Largest L2 norm of the gradient.
        rows: Segments in one forward pass; larger batches are accumulated. 0: no limit.
        mode: Of torch.compile, or ``none``.

    Attributes:
        optimiser: AdamW over the parameters of `task`.
        generator: Source of masks, on the device of `task`.
        scaler: Of the loss; not enabled but for float16.
    """

    def __init__(
        self,
        task: nn.Module,
        vocabulary: Vocabulary,
        dtype: torch.dtype = torch.float32,
        clip: float = 1.0,
        rows: int = 0,
        mode: str = "none",
    ) -> None:
        self.task, self.vocabulary = task, vocabulary
        self.dtype, self.clip, self.rows = dtype, clip, rows
        device = next(task.parameters()).device
        capturable = graphs.possible(device, dtype) and mode != "reduce-overhead"
        self.optimiser = make_optimiser(task, task.spec.weight_decay, capturable)
        self.scaler = torch.amp.GradScaler(enabled=dtype == torch.float16)
        self.call = task if mode == "none" else torch.compile(task, mode=mode)
        self.generator = torch.Generator(device)
        self.replay = graphs.Replay(self._run, capturable, [self.generator])

    def __call__(self, tokens: torch.Tensor, rate: float) -> dict[str, torch.Tensor]:
        """One step.

        Masks come from `generator`, dropout and samples from torch's own; both are seeded by the
        caller.

        Args:
            tokens: int64 [batch, length].
            rate: Learning rate.

        Returns:
            Losses by name before the step, scalar tensors on the device: means over the batch,
            however many passes it took. The next call may write over them.
        """
        if not self.replay.active:
            return self._run({"tokens": tokens}, rate)
        return self.replay({"tokens": tokens, "rate": torch.full((), rate, device=tokens.device)})

    def _run(self, inputs: dict[str, torch.Tensor], rate: float = 0.0) -> dict[str, torch.Tensor]:
        """One step as it is written; `inputs` may have a ``rate``, a scalar on the device."""
        self.optimiser.zero_grad(set_to_none=True)
        tokens = inputs["tokens"]
        masked = mask_tokens(tokens, self.vocabulary, self.task.spec.masking, self.generator)
        chosen = masked.weights.sum().clamp(min=1)
        rows = self.rows or len(tokens)
        losses: dict[str, torch.Tensor] = {}
        for start in range(0, len(tokens), rows):
            part = slice(start, start + rows)
            with loop.autocast(tokens.device, self.dtype):
                found = self.call(
                    tokens[part], Masked(*(t[part] for t in masked)), chosen, tokens.numel()
                )
            self.scaler.scale(found["loss"]).backward()
            for name, value in found.items():
                # A sum, not the value: CUDA graphs write the next pass's over it.
                losses[name] = losses.get(name, 0.0) + value.detach()
        for group in self.optimiser.param_groups:
            group["lr"] = inputs.get("rate", rate)
        self.scaler.unscale_(self.optimiser)
        loop.clip(self.task.parameters(), self.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return losses


def make_optimiser(
    task: nn.Module, weight_decay: float, capturable: bool = False
) -> torch.optim.AdamW:
    """AdamW as in the released recipes: no decay on biases and norms, epsilon 1e-6; rate 0.

    Args:
        task: Its parameters are optimised.
        weight_decay: Of matrices.
        capturable: Whether its steps may become part of a CUDA graph.
    """
    named = list(task.named_parameters())
    groups = [
        {"params": [p for n, p in named if loop.decays(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if not loop.decays(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=0.0, betas=(0.9, 0.999), eps=1e-6, fused=True, capturable=capturable
    )


def _save(
    task: nn.Module, tok: PreTrainedTokenizerBase, folder: Path, log: list[dict]
) -> list[str]:
    own = (
        task.model.deberta if isinstance(task.model, registry.DebertaDiscriminator) else task.model
    )
    parts = {"encoder": own}
    if isinstance(task, ReplacedTokenDetection):
        parts["generator"] = task.generator
    for name, model in parts.items():
        with files.building(folder / name) as made, tokenizer.saving():
            model.save_pretrained(made)
            tok.save_pretrained(made)
    text = io.StringIO()
    writer = csv.DictWriter(text, log[0] if log else ["step", "tokens", "rate", "loss"])
    writer.writeheader()
    writer.writerows(log)
    files.write_text(folder / "log.csv", text.getvalue())
    return ["log.csv"] + [
        str(path.relative_to(folder))
        for name in parts
        for path in sorted((folder / name).iterdir())
    ]


@torch.inference_mode()
def fill_masks(run: Path, model: str, row: int = 0, seed: int = 0) -> pd.DataFrame:
    """What a finished masked language model, or a generator, puts in the place of the masks.

    Opens the checkpoint with transformers alone.

    Args:
        run: The run's folder.
        model: A pre-trained model of the run.
        row: Row of the packed corpus.
        seed: Of the mask.

    Returns:
        One line per masked token: the text before it, the token, the model's first choice and the
        probability it gave to the token.
    """
    spec = registry.get(model)
    source = run / "models" / model / ("generator" if spec.objective == "rtd" else "encoder")
    tok = tokenizer.load(source)
    network = AutoModelForMaskedLM.from_pretrained(
        source, local_files_only=True, use_safetensors=True, trust_remote_code=False
    ).eval()
    packed = tokenizer.rows(run / "tokenizer" / spec.tokenizer)
    tokens = torch.from_numpy(packed[row : row + 1].astype(np.int64))
    generator = torch.Generator().manual_seed(seeding.derive_seed(seed, "show"))
    vocabulary = Vocabulary.of(tok, torch.device("cpu"))
    masked = mask_tokens(tokens, vocabulary, (1.0, 0.0), generator)
    chances = network(masked.inputs).logits[0].softmax(-1)
    lines = []
    for position in sorted(masked.positions[0][masked.weights[0] > 0].tolist()):
        right = int(tokens[0, position])
        before = tok.decode(masked.inputs[0, max(1, position - 6) : position])
        lines.append(
            {
                "text before": f"… {before}",
                "token": tok.decode([right]),
                "first choice": tok.decode([int(chances[position].argmax())]),
                "probability of the token": round(float(chances[position, right]), 3),
            }
        )
    return pd.DataFrame(lines)
