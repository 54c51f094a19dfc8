"""The other side of `bench.py`: transformers used the ordinary way; and what both sides share."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention

from helpers.base import config
from helpers.base.errors import UserError
from helpers.data import corpus, tokenizer
from helpers.model import disentangled, registry
from helpers.model.dropout import use_fast_dropout
from helpers.train import loop, objectives

LENGTH, DROPOUT, RATE = 128, 0.1, 5e-4
STOCK = {"attention": False, "cheap_dropout": False}  # transformers' own modules alone

Timed = Callable[[int], float]  # steps to seconds


@dataclass(frozen=True)
class Place:
    """Where and at what size both sides run."""

    device: torch.device
    size: str  # row of registry.SIZES
    batch: int  # segments per pre-training step
    steps: int  # pre-training steps in one timing
    folder: Path  # for temporary files
    vocabulary: int = 30_522  # rows of the embedding tables; the tokenizer has so many at most
    gpu: bool = False  # which comparisons of pre-training are made


@dataclass(frozen=True)
class Inputs:
    """What both sides read: a run with a corpus and rows of tasks, its tokenizer, its segments."""

    profile: config.Profile
    tok: transformers.PreTrainedTokenizerBase
    texts: list[str]
    rows: np.ndarray  # uint16 [segments, LENGTH]


def timed(step: Callable[[], object], device: torch.device) -> Timed:
    """A timing of `step` repeated; it ends when the device has done it."""

    def seconds(steps: int) -> float:
        loop.wait(device)
        began = time.perf_counter()
        for _ in range(steps):
            step()
        loop.wait(device)
        return time.perf_counter() - began

    return seconds


def prepare(place: Place, data: str = "", count: int = 8) -> Inputs:
    """Inputs of a folder, or of the embedded world; `count` train rows of each task."""
    values = {"train_rows": count, "dev_rows": 8, "documents": 2000, "data": data}
    profile = config.load_profile("tiny", runs=str(place.folder / "runs"), **values)
    corpus.run(config.Data(**profile.stage(config.Data)))
    texts = list(corpus.read(profile.folder / "data" / "corpus"))
    tok = tokenizer.train("wordpiece", place.vocabulary, lambda: iter(texts))
    rows = np.concatenate(list(tokenizer.pack(texts, tok, LENGTH))).astype(np.uint16)
    if place.batch > len(rows):
        raise UserError(f"--batch {place.batch}: the corpus has {len(rows)} segments")
    return Inputs(profile, tok, texts, rows)


def build(
    place: Place,
    name: str,
    attention: bool = True,
    cheap_dropout: bool = True,
    rate: float = DROPOUT,
    seed: int = 0,
    half: bool = False,
) -> nn.Module:
    """A registry entry; each of our exchanges can be left out.

    With `half` transformers' DeBERTa-v1 attention runs under bfloat16 autocast, which it does not
    of itself: its float32 biases lift the queries back to float32, whose lowest number does not fit
    the scores it is then written into. With these biases in bfloat16 it does.
    """
    torch.manual_seed(seed)
    shape = registry.get_size(place.size)
    task = objectives.build(registry.get(name), shape, place.vocabulary, LENGTH, rate, fast=False)
    task = disentangled.speed_up(task) if attention else task
    task = use_fast_dropout(task) if cheap_dropout else task
    for module in task.modules():
        if half and isinstance(module, DisentangledSelfAttention):
            for bias in (module.q_bias, module.v_bias):
                bias.data = bias.data.bfloat16()
    return task.to(place.device).train()


def stock_step(place: Place, data: Inputs, task: nn.Module, dtype: str) -> Timed:
    """A plain loop over stock classes: the collator's masks, logits at every position."""
    step = StockStep(place, data, task, dtype)
    tokens = list(torch.from_numpy(data.rows[: place.batch].astype(np.int64)))

    def seconds(steps: int) -> float:
        step.optimiser.state.clear()
        return timed(lambda: step(tokens, RATE), place.device)(steps)

    return seconds


class StockStep:
    """A step of a masked language model or of ELECTRA as stock classes compute it; its loss."""

    def __init__(self, place: Place, data: Inputs, task: nn.Module, dtype: str) -> None:
        self.place, self.task, self.dtype = place, task, getattr(torch, dtype)
        self.optimiser = torch.optim.AdamW(task.parameters(), eps=1e-6, weight_decay=0.01)
        mask, swap = task.spec.masking  # the model's own, so that losses compare
        self.collator = transformers.DataCollatorForLanguageModeling(
            data.tok, mask_replace_prob=mask, random_replace_prob=swap
        )

    def __call__(self, rows: list[torch.Tensor], rate: float) -> torch.Tensor:
        """Takes the step on int64 [length] rows."""
        made = self.collator([{"input_ids": row} for row in rows])
        inputs, labels = (made[k].to(self.place.device) for k in ("input_ids", "labels"))
        with loop.autocast(self.place.device, self.dtype):
            if isinstance(self.task, objectives.MaskedLanguageModel):
                loss = self.task.model(inputs, labels=labels).loss
            else:
                loss = self.replaced(inputs, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.task.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.detach()

    def replaced(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of replaced-token detection; int64 [batch, length] both, -100 where not masked."""
        chosen = labels != -100
        logits = self.task.generator(inputs).logits
        loss = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        corrupted, picked = inputs.clone(), logits[chosen].detach().float()
        corrupted[chosen] = (picked + gumbel(picked)).argmax(-1)
        original = torch.where(chosen, labels, inputs)
        hidden = registry.encoder(self.task.model)(corrupted).last_hidden_state
        score = self.task.model.discriminator_predictions(hidden).float()
        different = (corrupted != original).float()
        found = functional.binary_cross_entropy_with_logits(score, different)
        return loss + registry.DISCRIMINATOR_WEIGHT * found


def gumbel(like: torch.Tensor) -> torch.Tensor:
    """Gumbel noise, as the released ELECTRA-DeBERTa code samples with."""
    return -torch.log(-torch.log(torch.rand_like(like).clamp(1e-9, 1 - 1e-7)))


def corrupt_by_gumbel(
    tokens: torch.Tensor, masked: objectives.Masked, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``objectives.corrupt`` with a random number for every entry of the vocabulary."""
    logits = logits.detach().float()
    sampled = (logits + gumbel(logits)).argmax(-1)
    sampled = torch.where(masked.weights > 0, sampled, masked.targets)
    corrupted = tokens.scatter(1, masked.positions, sampled)
    return corrupted, (corrupted != tokens).float()


def with_trainer(
    place: Place,
    model: nn.Module,
    rows: list[dict],
    batch: int,
    collator: object,
    half: bool,
    times: int = 1,
) -> Timed:
    """Transformers' Trainer over `rows`, timed by its own clock, which leaves its set-up out.

    A step of the timing is `times` of its own.
    """

    def seconds(steps: int) -> float:
        arguments = transformers.TrainingArguments(
            output_dir=str(place.folder),
            per_device_train_batch_size=batch,
            max_steps=steps * times,
            learning_rate=RATE,
            **{"save_strategy": "no", "logging_strategy": "no", "report_to": []},
            **{"disable_tqdm": True, "use_cpu": True, "bf16": half},
        )
        trainer = transformers.Trainer(model, arguments, collator, rows)
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer.train().metrics["train_runtime"]

    return seconds


class Dense(nn.Module):
    """Our MLM objective with the logits of every position, as stock classes compute them."""

    def __init__(self, task: objectives.MaskedLanguageModel) -> None:
        super().__init__()
        self.spec, self.model = task.spec, task.model

    def forward(self, tokens: torch.Tensor, masked: objectives.Masked, *_: object) -> dict:
        """Loss of one pass."""
        labels = torch.full_like(tokens, -100).scatter(1, masked.positions, masked.targets)
        return {"loss": self.model(masked.inputs, labels=labels).loss}
