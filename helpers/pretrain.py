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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from helpers import (
    checkpoint,
    config,
    disentangled,
    files,
    models,
    progress,
    replay,
    seeding,
    tokenizer,
    training,
)
from helpers.config import UserError
from helpers.dropout import exchange_dropout

LOG_POINTS = 200


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs to know of a tokenizer.

    Attributes:
        mask: Id of the mask token.
        special: bool tensor [vocabulary]; True where a token is never masked.
        ordinary: int64 tensor of the ids a random replacement is drawn from.
    """

    mask: int
    special: torch.Tensor
    ordinary: torch.Tensor

    @classmethod
    def of(cls, tok: PreTrainedTokenizerBase, device: torch.device) -> "Vocabulary":
        """Reads it from a transformers tokenizer."""
        special = torch.zeros(len(tok), dtype=torch.bool)
        special[list(tok.all_special_ids)] = True
        ordinary = torch.arange(len(tok))[~special]
        return cls(tok.mask_token_id, special.to(device), ordinary.to(device))


class Masked(NamedTuple):
    """A batch with a part of its tokens hidden.

    Attributes:
        inputs: int64 [batch, length], what the model reads.
        positions: int64 [batch, K], the chosen positions; K = max(1, round(0.15 length)).
        targets: int64 [batch, K], the tokens that stood there.
        weights: float32 [batch, K], 1 for a chosen position, 0 for filler in a row with too few
            ordinary tokens.
    """

    inputs: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


def mask_tokens(
    tokens: torch.Tensor,
    vocabulary: Vocabulary,
    masking: tuple[float, float],
    generator: torch.Generator,
    fraction: float = models.MASK_FRACTION,
) -> Masked:
    """Chooses a fraction of each row's ordinary tokens and hides them (dynamic masking).

    Args:
        tokens: int64 [batch, length].
        vocabulary: Of the tokenizer; specials are never chosen.
        masking: Parts of the chosen tokens replaced by the mask and by a random token.
        generator: On the device of `tokens`.
        fraction: Part of the ordinary tokens that is chosen.
    """
    device, (batch, length) = tokens.device, tokens.shape
    chosen = max(1, round(fraction * length))
    score = torch.rand(batch, length, generator=generator, device=device)
    ordinary = ~vocabulary.special[tokens]
    positions = torch.where(ordinary, score, -1.0).topk(chosen, dim=1).indices
    wanted = (ordinary.sum(1, keepdim=True) * fraction).round().clamp(1, chosen)
    rank = torch.arange(chosen, device=device)
    weights = ((rank < wanted) & ordinary.gather(1, positions)).float()
    targets = tokens.gather(1, positions)

    draw = torch.rand(batch, chosen, generator=generator, device=device)
    index = torch.randint(
        len(vocabulary.ordinary), (batch, chosen), generator=generator, device=device
    )
    mask, random = masking
    hidden = torch.where(draw < mask, vocabulary.mask, targets)
    swapped = (draw >= mask) & (draw < mask + random)
    hidden = torch.where(swapped, vocabulary.ordinary[index], hidden)
    hidden = torch.where(weights > 0, hidden, targets)
    return Masked(tokens.scatter(1, positions, hidden), positions, targets, weights)


def corrupt(
    tokens: torch.Tensor, masked: Masked, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replaces the chosen tokens by samples of the generator's softmax.

    Draws one uniform number a token and inverts the cumulative distribution: the law of the
    released code's Gumbel maximum without its random number for every entry of the vocabulary.
    Randomness is torch's global generator.

    Args:
        tokens: int64 [batch, length], the original.
        masked: The same batch, masked.
        logits: float [batch, K, vocabulary] of the generator at the masked positions.

    Returns:
        The corrupted tokens, int64 [batch, length], and the discriminator's labels, float32
        [batch, length]: 1 where the token differs from the original. A sample that happens to be
        the original counts as original (Clark et al. 2020, section 2).
    """
    cumulative = logits.detach().softmax(-1, dtype=torch.float32).cumsum(-1)
    last = cumulative[..., -1:]
    level = torch.rand(last.shape, device=logits.device) * last
    sampled = torch.searchsorted(cumulative, level, right=True).squeeze(-1)
    sampled = sampled.clamp(max=logits.shape[-1] - 1)
    sampled = torch.where(masked.weights > 0, sampled, masked.targets)
    corrupted = tokens.scatter(1, masked.positions, sampled)
    return corrupted, (corrupted != tokens).float()


def hidden_states(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """The encoder's last hidden states of sequences without padding.

    Args:
        model: A model with a head.
        tokens: int64 [batch, length].

    Returns:
        float [batch, length, hidden].
    """
    own = models.encoder(model)
    if disentangled.is_fast(own):
        return disentangled.encode(own, tokens)
    return own(tokens).last_hidden_state


def masked_logits(model: nn.Module, inputs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Logits of a masked language model at chosen positions only.

    Args:
        model: One of transformers' ``...ForMaskedLM``.
        inputs: int64 [batch, length]; no padding.
        positions: int64 [batch, K].

    Returns:
        float [batch, K, vocabulary]; equal to the model's own dense logits at `positions`.
    """
    if hasattr(model, "generator_lm_head"):
        head = nn.Sequential(model.generator_predictions, model.generator_lm_head)
    else:
        head = getattr(model, "lm_head", None) or getattr(model, "cls", None)
    if head is None:  # an architecture that keeps its head elsewhere: all logits, then the chosen
        logits = model(inputs).logits
        return logits.gather(1, positions.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
    hidden = hidden_states(model, inputs)
    return head(hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])))


class _CrossEntropy(torch.autograd.Function):
    """Weighted cross-entropy in float32 that keeps its gradient in place of its logits.

    torch's own keeps a float32 copy of the logits and their logarithms: at 30,522 tokens that takes
    several percent of a small model's step. Losses end at 87 nats, where float32 has no smaller
    chance.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        logits: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Logits [n, vocabulary], targets and weights [n]; a float32 scalar."""
        chances = logits.softmax(-1, dtype=torch.float32)
        places = targets.unsqueeze(-1)
        right = chances.gather(-1, places)
        chances = chances.scatter_add_(-1, places, torch.full_like(right, -1.0))
        ctx.dtype = logits.dtype
        # float16 has no room for a gradient before the loss is scaled.
        kept = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        ctx.save_for_backward(chances.mul_(weights.unsqueeze(-1)).to(kept))
        tiny = torch.finfo(torch.float32).tiny
        return -(right.clamp(min=tiny).log().squeeze(-1) * weights).sum()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ANN401
        """The gradient of the logits."""
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream.to(gradient.dtype)).to(ctx.dtype), None, None


def masked_loss(logits: torch.Tensor, masked: Masked, chosen: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the chosen tokens, a scalar in nats per token.

    Args:
        logits: float [batch, K, vocabulary].
        masked: The batch.
        chosen: float32 scalar, tokens to divide by: those of the whole step.
    """
    weights = masked.weights.flatten() / chosen
    return _CrossEntropy.apply(logits.flatten(0, 1), masked.targets.flatten(), weights)


class MaskedLanguageModel(nn.Module):
    """The MLM objective over one of transformers' ``...ForMaskedLM`` classes."""

    def __init__(self, spec: models.Spec, model: nn.Module) -> None:
        super().__init__()
        self.spec, self.model = spec, model

    def forward(
        self, tokens: torch.Tensor, masked: Masked, chosen: torch.Tensor, read: int
    ) -> dict[str, torch.Tensor]:
        """Loss of one pass: scalars by name, ``loss`` is the one to minimise.

        Args:
            tokens: int64 [batch, length].
            masked: The same, masked.
            chosen: float32 scalar, masked tokens of the whole step.
            read: Tokens of the whole step.
        """
        logits = masked_logits(self.model, masked.inputs, masked.positions)
        return {"loss": masked_loss(logits, masked, chosen)}


class ReplacedTokenDetection(nn.Module):
    """Generator and discriminator with shared token embeddings (Clark et al. 2020)."""

    def __init__(self, spec: models.Spec, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.spec, self.generator, self.model = spec, generator, discriminator
        mine, its = models.encoder(discriminator), models.encoder(generator)
        if spec.architecture == "deberta":
            # Its embedding module also holds the projection to the encoder's own width.
            its.embeddings.word_embeddings = mine.embeddings.word_embeddings
        else:
            its.embeddings = mine.embeddings
        if spec.tie_softmax:
            generator.get_output_embeddings().weight = mine.embeddings.word_embeddings.weight

    def forward(
        self, tokens: torch.Tensor, masked: Masked, chosen: torch.Tensor, read: int
    ) -> dict[str, torch.Tensor]:
        """Loss of one pass: scalars by name, ``loss`` = generator + 50 x discriminator.

        Takes what :class:`MaskedLanguageModel` takes.
        """
        logits = masked_logits(self.generator, masked.inputs, masked.positions)
        generator_loss = masked_loss(logits, masked, chosen)
        corrupted, replaced = corrupt(tokens, masked, logits)
        hidden = hidden_states(self.model, corrupted)
        score = self.model.discriminator_predictions(hidden).float()
        total = functional.binary_cross_entropy_with_logits(score, replaced, reduction="sum")
        discriminator_loss = total / read
        return {
            "loss": generator_loss + models.DISCRIMINATOR_WEIGHT * discriminator_loss,
            "generator_loss": generator_loss,
            "discriminator_loss": discriminator_loss,
        }


def build(
    spec: models.Spec,
    size: models.Size,
    vocabulary: int,
    max_length: int,
    dropout: float = 0.1,
    fraction: float = 0.0,
    *,
    fast: bool = True,
) -> MaskedLanguageModel | ReplacedTokenDetection:
    """The model of a registry entry under its objective; weights from torch's global generator.

    Args:
        spec: Registry entry.
        size: Shape of the encoder.
        vocabulary: Tokens.
        max_length: Positions.
        dropout: Hidden and attention.
        fraction: Width of the generator; 0 takes the registry's own.
        fast: Exchange DeBERTa's attention and every dropout for ours; without, transformers' and
            torch's own stay.
    """
    own = models.build_config(spec, size, vocabulary, max_length, dropout)
    if spec.objective != "rtd":
        task = MaskedLanguageModel(spec, models.masked_lm(spec, own))
        return _speed_up(task) if fast else task
    width = fraction or spec.generator_fraction
    small = models.build_config(spec, size, vocabulary, max_length, dropout, width)
    small.tie_word_embeddings = spec.tie_softmax
    discriminator = models.DISCRIMINATOR[spec.architecture](own)
    generator = models.masked_lm(spec, small)
    task = ReplacedTokenDetection(spec, generator, discriminator)
    return _speed_up(task) if fast else task


def _speed_up(task: nn.Module) -> nn.Module:
    return exchange_dropout(disentangled.speed_up(task))


def flops_per_token(task: nn.Module, length: int) -> float:
    """Matrix-product FLOP per token of one training step, forward and backward.

    Encoder(s) at every token, the MLM head at 15 % of them, the discriminator's head at all.
    """
    if isinstance(task, MaskedLanguageModel):
        own = task.model.config
        return models.token_flops(own, length) + models.MASK_FRACTION * models.head_flops(own)
    small, own = task.generator.config, models.encoder(task.model).config
    head = 3.0 * 2 * own.hidden_size**2
    generator = models.token_flops(small, length)
    generator += models.MASK_FRACTION * models.head_flops(small)
    return models.token_flops(own, length) + generator + head


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
        resident, self.place = training.choose_place(packed.nbytes, device)
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
            found = self.resident[training.send(torch.from_numpy(rows), self.device)]
        else:
            found = training.send(torch.from_numpy(self.signed[rows]), self.device)
        return found.long() & self.mask


def specification(parameters: config.Pretrain, packed: dict[str, Any]) -> dict[str, Any]:
    """All that the weights follow from; its digest names the run.

    Args:
        parameters: Of the stage.
        packed: Manifest of the tokenizer stage.
    """
    spec = models.get(parameters.model)
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
        "model": models.entry(spec),
        "size": asdict(models.get_size(parameters.size)),
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
    spec = models.get(parameters.model)
    models.get_size(parameters.size)  # a wrong name is told before any work
    source = parameters.folder / "tokenizer" / spec.tokenizer
    remedy = f" with tokenizer_kind = {spec.tokenizer}"
    packed = files.need(source, "02_tokenizer", remedy)
    length = models.usable_length(spec.tokenizer, parameters.max_length)
    if packed["length"] != length:
        raise UserError(
            f"max_length = {parameters.max_length}: needs segments of {length} tokens, the corpus "
            f"was packed in segments of {packed['length']}; run notebooks/02_tokenizer.ipynb again"
        )
    wanted = specification(parameters, packed)
    name = files.digest(wanted)
    folder = parameters.folder / "models" / parameters.model
    done = files.sealed(folder, name)
    if done:
        return done

    files.need_whole(source, "02_tokenizer", remedy)
    with files.holding(folder):
        return _make(recipe(parameters, spec), spec, packed, wanted, folder)


def rate_name(parameters: config.Pretrain, spec: models.Spec) -> str:
    """Which parameter holds the peak learning rate of a model: its objective may have its own.

    In small batches the discriminator's encoder collapses at rates that masked language models
    gain from.
    """
    own = spec.objective == "rtd" and parameters.rtd_learning_rate
    return "rtd_learning_rate" if own else "pretrain_learning_rate"


def recipe(parameters: config.Pretrain, spec: models.Spec) -> config.Pretrain:
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
    spec: models.Spec,
    packed: dict[str, Any],
    wanted: dict[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Trains and writes what :func:`run` says."""
    source, length = parameters.folder / "tokenizer" / spec.tokenizer, packed["length"]
    training.begin(parameters.threads)
    device = models.device()
    dtype, reason = training.choose_precision(parameters.precision, device)
    tok = tokenizer.load(source)
    if len(tok) != packed["vocabulary"]:
        raise UserError(
            f"{source}: has {len(tok)} tokens, its manifest says {packed['vocabulary']}; delete it "
            "and run notebooks/02_tokenizer.ipynb again"
        )
    torch.manual_seed(seeding.derive_seed(parameters.pretrain_seed, "weights"))
    task = build(
        spec,
        models.get_size(parameters.size),
        packed["vocabulary"],
        parameters.max_length,
        parameters.pretrain_dropout,
        parameters.generator_fraction,
    ).to(device)
    steps = 0 if spec.objective == "none" else parameters.pretrain_steps
    files.unseal(folder)
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
            "parameters": models.count(models.encoder(task.model)),
            "generator_parameters": _generator_count(task),
        },
        "code": training.code(),
        "hardware": training.hardware(parameters.threads),
        "versions": training.versions(),
    }
    manifest = files.seal(folder, manifest, written)
    checkpoint.clear(checkpoint.place(parameters, "pretrain", parameters.model, folder))
    return manifest


def _generator_count(task: nn.Module) -> int:
    return models.count(task.generator) if isinstance(task, ReplacedTokenDetection) else 0


def _train(
    parameters: config.Pretrain,
    task: nn.Module,
    tok: PreTrainedTokenizerBase,
    rows: np.ndarray,
    folder: Path,
    state: dict[str, Any],
    dtype: torch.dtype,
) -> dict[str, Any]:
    device = models.device()
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
    meter = training.joules(device)
    task.train()
    bar = progress.bar(total, f"pre-train {parameters.model}", "steps", state["step"])
    first = state["step"] if parameters.torch_compile != "none" else None
    timer = checkpoint.Timer(parameters.checkpoint_steps, parameters.checkpoint_minutes)
    watch = training.Watch(device)

    def note(done: int) -> None:
        """Brings the state up to `done` steps."""
        state["step"], state["seconds"] = done, time.perf_counter() - began
        state["joules"] = training.spent(meter, training.joules(device), used)
        state["sums"] = {key: value.item() for key, value in sums.items()}
        state["scaler"] = step.scaler.state_dict()

    with checkpoint.preemption() as asked:
        for number in range(state["step"], total):
            tokens = segments.batch(number)
            torch.manual_seed(seeding.derive_seed(seed, "step", number))
            step.generator.manual_seed(seeding.derive_seed(seed, "mask", number))
            factor = training.schedule(number, warmup, total, task.spec.recipe.end_rate)
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
    watch: training.Watch,
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
    rate = rate_name(parameters, models.get(parameters.model))
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
        graphs = replay.possible(device, dtype) and mode != "reduce-overhead"
        self.optimiser = make_optimiser(task, task.spec.weight_decay, graphs)
        self.scaler = torch.amp.GradScaler(enabled=dtype == torch.float16)
        self.call = task if mode == "none" else torch.compile(task, mode=mode)
        self.generator = torch.Generator(device)
        self.replay = replay.Replay(self._run, graphs, [self.generator])

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
            with training.autocast(tokens.device, self.dtype):
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
        training.clip(self.task.parameters(), self.clip)
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
        {"params": [p for n, p in named if training.decays(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if not training.decays(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=0.0, betas=(0.9, 0.999), eps=1e-6, fused=True, capturable=capturable
    )


def _save(
    task: nn.Module, tok: PreTrainedTokenizerBase, folder: Path, log: list[dict]
) -> list[str]:
    own = task.model.deberta if isinstance(task.model, models.DebertaDiscriminator) else task.model
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
    spec = models.get(model)
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
