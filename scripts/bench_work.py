"""What `make bench` times: our side and the other side of every comparison."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention

from helpers.base import config
from helpers.base.errors import UserError
from helpers.data import corpus, glue, synthetic, tokenizer
from helpers.model import disentangled, registry
from helpers.model.dropout import use_fast_dropout
from helpers.train import batches, finetune, loop, objectives, pretrain, provenance

PARTS = ("pretrain", "switches", "finetune", "pack")
LENGTH, VOCABULARY, DROPOUT, RATE = 128, 30_522, 0.1, 5e-4
MODES = ("none", "default", "reduce-overhead")
PRODUCTS = "its matrix products alone"
GOALS = {"electra-deberta": 3.0, "deberta": 3.0, "bert": 1.6}  # ratios to float32, on a CPU
RATES = {"electra": 1.2e6, "electra-deberta": 0.6e6, "bert": 1.5e6, "deberta": None}
"""Goals on one H200 in bfloat16, tokens per second; the order in which a GPU takes the models."""

Timed = Callable[[int], float]


@dataclass(frozen=True)
class Place:
    """Where and at what size both sides run.

    Attributes:
        device: CPU or GPU.
        size: Row of ``registry.SIZES``.
        batch: Segments per pre-training step.
        steps: Pre-training steps in one timing.
        folder: For temporary files.
        vocabulary: Rows of the models' embedding tables; tokenizers have that many at most.
        plan: ``cpu`` or ``gpu``: which comparisons of pre-training are made.
        modes: Of torch.compile, in the plan for a GPU.
    """

    device: torch.device
    size: str
    batch: int
    steps: int
    folder: Path
    vocabulary: int = VOCABULARY
    plan: str = "cpu"
    modes: tuple[str, ...] = MODES


@dataclass(frozen=True)
class Work:
    """One comparison.

    Attributes:
        name: What is done.
        reference: What it is compared with.
        unit: Of `units`.
        units: Units of work in one step.
        steps: Steps in one timing.
        ours: Steps to seconds.
        theirs: The same, for the reference.
        goal: Ratio aimed at; None where there is none.
        flops: Matrix-product FLOP of our model per unit (``objectives.flops_per_token``).
        dtype: Number format of our products.
        rate: Units per second aimed at, on the GPU that ``RATES`` names.
    """

    name: str
    reference: str
    unit: str
    units: float
    steps: int
    ours: Timed
    theirs: Timed
    goal: float | None = None
    flops: float | None = None
    dtype: str = "float32"
    rate: float | None = None


def origin(place: Place, threads: int) -> dict[str, object]:
    """What a file of measurements says of the machine and the shapes."""
    return {
        "hardware": provenance.hardware(threads),
        "versions": provenance.versions(),
        "size": place.size,
        "length": LENGTH,
        "batch": place.batch,
    }


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


# --- pre-training ------------------------------------------------------------------------------


class Corpus:
    """Segments that both sides read.

    Args:
        place: Gives the least number of segments.
        texts: Documents.
        tok: Their tokenizer. It may have fewer tokens than the models' 30,522.
    """

    def __init__(self, place: Place, texts: Iterable[str], tok: PreTrainedTokenizerBase) -> None:
        self.tok = tok
        packed = np.concatenate(list(tokenizer.pack(texts, tok, LENGTH)))
        if place.batch > len(packed):
            raise UserError(f"--batch {place.batch}: the corpus has {len(packed)} segments")
        self.rows = packed.astype(np.uint16)


def embedded(place: Place) -> Corpus:
    """A corpus of the embedded world, enough for a batch."""
    texts = list(synthetic.documents(max(400, 5 * place.batch), 400, 0))
    tok = tokenizer.train("wordpiece", VOCABULARY, lambda: iter(texts))
    return Corpus(place, texts, tok)


def build(
    place: Place,
    name: str,
    *,
    attention: bool = True,
    cheap_dropout: bool = True,
    rate: float = DROPOUT,
    seed: int = 0,
) -> nn.Module:
    """A registry entry; each of our exchanges can be left out."""
    torch.manual_seed(seed)
    shape = registry.get_size(place.size)
    task = objectives.build(registry.get(name), shape, place.vocabulary, LENGTH, rate, fast=False)
    task = disentangled.speed_up(task) if attention else task
    task = use_fast_dropout(task) if cheap_dropout else task
    return task.to(place.device).train()


def build_stock(place: Place, name: str, seed: int = 0, dtype: str = "float32") -> nn.Module:
    """The same model of transformers' own modules alone."""
    task = build(place, name, attention=False, cheap_dropout=False, seed=seed)
    return runs_in_half(task) if dtype == "bfloat16" else task


def runs_in_half(task: nn.Module) -> nn.Module:
    """Lets transformers' DeBERTa-v1 attention run under bfloat16 autocast, which it does not.

    Its float32 biases lift the queries back to float32, whose lowest number does not fit the scores
    it is then written into. With these biases in bfloat16 it does.
    """
    for module in task.modules():
        if isinstance(module, DisentangledSelfAttention):
            for bias in (module.q_bias, module.v_bias):
                bias.data = bias.data.bfloat16()
    return task


def our_step(
    place: Place, data: Corpus, task: nn.Module, dtype: str = "bfloat16", mode: str = "none"
) -> Timed:
    """Optimiser steps of ``helpers.pretrain``; like a Trainer, each timing has new moments."""
    device = place.device
    vocabulary = objectives.Vocabulary.of(data.tok, device)
    segments = pretrain.Segments(data.rows, place.batch, 0, device)
    step = pretrain.Step(task, vocabulary, getattr(torch, dtype), mode=mode)

    def seconds(steps: int) -> float:
        for moments in step.optimiser.state.values():
            for moment in moments.values():
                moment.zero_()
        return timed(lambda: step(segments.batch(0), RATE), device)(steps)

    return seconds


def stock_step(
    place: Place, data: Corpus, task: nn.Module, dtype: str = "float32", rate: float = RATE
) -> Timed:
    """A plain loop over stock classes: the collator's masks, logits at every position."""
    loop = StockLoop(place, data, task, dtype)
    tokens = list(torch.from_numpy(data.rows[: place.batch].astype(np.int64)))

    def seconds(steps: int) -> float:
        loop.optimiser.state.clear()
        return timed(lambda: loop(tokens, rate), place.device)(steps)

    return seconds


class StockLoop:
    """Steps of a masked language model or of ELECTRA as stock classes compute them."""

    def __init__(self, place: Place, data: Corpus, task: nn.Module, dtype: str) -> None:
        self.place, self.task = place, task
        self.dtype = getattr(torch, dtype)
        self.optimiser = torch.optim.AdamW(task.parameters(), eps=1e-6, weight_decay=0.01)
        mask, swap = task.spec.masking  # the model's own, so that losses compare
        self.collator = DataCollatorForLanguageModeling(
            data.tok, mask_replace_prob=mask, random_replace_prob=swap
        )

    def __call__(self, rows: list[torch.Tensor], rate: float) -> torch.Tensor:
        """One step; its loss, a scalar tensor."""
        made = self.collator([{"input_ids": row} for row in rows])
        inputs, labels = (made[k].to(self.place.device) for k in ("input_ids", "labels"))
        with loop.autocast(self.place.device, self.dtype):
            mlm = isinstance(self.task, objectives.MaskedLanguageModel)
            if mlm:
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


class _Clock(TrainerCallback):
    """Times a Trainer's steps without its set-up."""

    def on_step_begin(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == 0:
            self.began = time.perf_counter()

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        self.seconds = time.perf_counter() - self.began


def with_trainer(
    model: nn.Module, rows: list[dict], batch: int, collator: object, folder: Path, half: bool
) -> Timed:
    """Transformers' Trainer over `rows`, timed from its first step to its last."""

    def seconds(steps: int) -> float:
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=batch,
            max_steps=steps,
            learning_rate=RATE,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=half,
        )
        clock = _Clock()
        trainer = Trainer(
            model, arguments, data_collator=collator, train_dataset=rows, callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return clock.seconds

    return seconds


def pretraining(place: Place) -> Iterator[Work]:
    """Pre-training steps against transformers'.

    The plan for a CPU compares a masked language model with the Trainer, in either number format.
    The plan for a GPU compares all with a plain loop under the same autocast, ours compiled or not.
    """
    data, amount = embedded(place), place.batch * LENGTH
    examples = [{"input_ids": row.tolist()} for row in data.rows]
    gpu = place.plan == "gpu"
    names = tuple(RATES if gpu else GOALS)
    forms = [("bfloat16", "bfloat16")] if gpu else [("float32",) * 2, ("bfloat16", "float32")]
    forms += [] if gpu else [("bfloat16", "bfloat16")]
    modes = place.modes if gpu else ("none",)
    for name in names:
        plain = gpu or registry.get(name).objective == "rtd"
        for mine, other in forms:
            stock = build_stock(place, name, dtype=other)
            if plain:
                theirs, kind = stock_step(place, data, stock, other), "stock classes"
            else:
                half = other == "bfloat16"
                collator = DataCollatorForLanguageModeling(data.tok)
                theirs = with_trainer(
                    stock.model, examples, place.batch, collator, place.folder, half
                )
                kind = "Trainer"
            for mode in modes:
                task = build(place, name)
                note = f", {mode}" if mode != "none" else ""
                yield Work(
                    f"pre-train {name}, {mine}{note}",
                    f"{kind}, {other}",
                    "tokens/s",
                    amount,
                    place.steps,
                    our_step(place, data, task, mine, mode),
                    theirs,
                    GOALS[name] if not gpu and other == "float32" else None,
                    objectives.flops_per_token(task, LENGTH),
                    mine,
                    RATES[name] if gpu else None,
                )


class Dense(nn.Module):
    """Our MLM objective with the logits of every position, as stock classes compute them."""

    def __init__(self, task: objectives.MaskedLanguageModel) -> None:
        super().__init__()
        self.spec, self.model = task.spec, task.model

    def forward(
        self, tokens: torch.Tensor, masked: objectives.Masked, chosen: torch.Tensor, read: int
    ) -> dict[str, torch.Tensor]:
        """Loss of one pass."""
        labels = torch.full_like(tokens, -100).scatter(1, masked.positions, masked.targets)
        return {"loss": self.model(masked.inputs, labels=labels).loss}


def switches(place: Place) -> Iterator[Work]:
    """Our bfloat16 step against itself with one thing changed, then against its products."""
    data, amount = embedded(place), place.batch * LENGTH

    def step(task: nn.Module, dtype: str = "bfloat16", mode: str = "none") -> Timed:
        return our_step(place, data, task, dtype, mode)

    def work(name: str, change: str, theirs: Timed, dtype: str = "bfloat16", **more: float) -> Work:
        task = build(place, name)
        flops, mine = objectives.flops_per_token(task, LENGTH), step(task, dtype)
        label = f"{name}, {dtype}"
        steps = place.steps
        return Work(
            label, change, "tokens/s", amount, steps, mine, theirs, flops=flops, dtype=dtype, **more
        )

    stock_attention = runs_in_half(build(place, "deberta", attention=False))
    yield work("deberta", "with stock attention", step(stock_attention))
    yield work(
        "deberta", "with torch's dropout", step(build(place, "deberta", cheap_dropout=False))
    )
    yield work("deberta", "without dropout", step(build(place, "deberta", rate=0.0)))
    yield work("deberta", "with float32", step(build(place, "deberta"), "float32"))
    yield work("deberta", "with torch.compile", step(build(place, "deberta"), mode="default"))
    yield work("bert", "with logits everywhere", step(Dense(build(place, "bert")).train()))
    noisy = step(build(place, "electra-deberta"))

    def by_gumbel(steps: int) -> float:
        with patch.object(pretrain, "corrupt", corrupt_by_gumbel):
            return noisy(steps)

    yield work("electra-deberta", "with Gumbel sampling", by_gumbel)
    for name in ("bert", "deberta"):
        for dtype in ("float32", "bfloat16"):
            peak = products(place, data, build(place, name), dtype)
            yield work(name, PRODUCTS, peak, dtype, goal=0.65)


class _Products(TorchDispatchMode):
    """Notes the shapes of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[torch.Size, torch.Size, torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self.note(args[0].shape, args[1].shape, args[0].dtype)
        elif name in ("addmm", "baddbmm"):
            self.note(args[1].shape, args[2].shape, args[1].dtype)
        elif name.startswith("_scaled_dot_product"):
            # Scores and context forward; backward again the scores and two gradients for each.
            back = name.endswith("backward")
            first = args[1 if back else 0]
            query = first.flatten(0, 1).shape
            heads, length, width = query
            one = (query, torch.Size((heads, width, length)))
            two = (torch.Size((heads, length, length)), query)
            for pair in [one, one, two, two, two] if back else [one, two]:
                self.note(*pair, first.dtype)
        return func(*args, **(kwargs or {}))

    def note(self, one: torch.Size, two: torch.Size, dtype: torch.dtype) -> None:
        """Keeps one product."""
        self.found.append((one, two, dtype))


def products(place: Place, data: Corpus, task: nn.Module, dtype: str) -> Timed:
    """The matrix products of one training step at the same shapes, from contiguous operands.

    An estimate of what a step cannot do without: fused attention counts as the products it is.
    """
    noted = _Products()
    with noted:
        our_step(place, data, task, dtype)(1)
    operands: dict[tuple[torch.Size, torch.dtype], torch.Tensor] = {}
    for *pair, kind in noted.found:
        for shape in pair:
            if (shape, kind) not in operands:
                operands[shape, kind] = torch.randn(shape, device=place.device).to(kind)

    def step() -> None:
        for one, two, kind in noted.found:
            operands[one, kind] @ operands[two, kind]

    return lambda steps: timed(step, place.device)(steps)


# --- fine-tuning and packing -------------------------------------------------------------------


def prepare(place: Place, data: str, count: int) -> tuple[config.Profile, PreTrainedTokenizerBase]:
    """A run with a corpus and `count` train rows of each task, and a tokenizer."""
    values = {"train_rows": count, "dev_rows": 8, "documents": 2000, "data": data}
    profile = config.load_profile("tiny", runs=str(place.folder / "runs"), **values)
    corpus.run(config.Data(**profile.stage(config.Data)))
    folder = profile.folder / "data" / "corpus"
    tok = tokenizer.train("wordpiece", place.vocabulary, lambda: corpus.read(folder))
    return profile, tok


def finetuning(place: Place, data: str, count: int) -> Iterator[Work]:
    """One epoch over the first rows of three tasks, ours by length against padding to 128."""
    batch, cpu = 32, torch.device("cpu")
    profile, tok = prepare(place, data, count)
    build_stock(place, "electra").model.save_pretrained(place.folder / "encoder")
    parameters = config.Finetune(
        **profile.stage(config.Finetune)
        | {"finetune_batch_size": batch, "max_length": LENGTH, "finetune_learning_rate": 1e-4}
    )
    for name, goal in (("cola", 5.0), ("sst2", 5.0), ("rte", 1.5)):
        glue.run(config.Data(**profile.stage(config.Data)), name)
        table, task = glue.load(profile.folder, name, "train"), glue.get(name)
        encoded = batches.encode(table, task, tok, LENGTH)
        padded = tok(
            *(table[column].tolist() for column in task.columns),
            truncation="longest_first",
            max_length=LENGTH,
            padding="max_length",
        )
        tok.backend_tokenizer.no_truncation()
        tok.backend_tokenizer.no_padding()
        rows = [
            {key: padded[key][i] for key in padded} | {"label": int(label)}
            for i, label in enumerate(encoded.labels)
        ]
        stock = AutoModelForSequenceClassification.from_pretrained(
            place.folder / "encoder", use_safetensors=True
        )
        mine = finetune.open_encoder(place.folder / "encoder", task, DROPOUT)

        def epoch(mine: nn.Module = mine, encoded: batches.Encoded = encoded) -> None:
            finetune.train(parameters, mine, encoded, tok, 1, 0, torch.float32)

        trainer = with_trainer(stock, rows, batch, None, place.folder, half=False)
        steps = -(-len(rows) // batch)
        yield Work(
            f"fine-tune {task.name} ({'embedded' if not data else f'{len(rows)} rows'})",
            f"Trainer, padded to {LENGTH}",
            "examples/s",
            len(rows),
            1,
            timed(epoch, cpu),
            lambda n, t=trainer, k=steps: t(n * k),
            goal,
        )


def packing(place: Place, data: str) -> Iterator[Work]:
    """Tokenising and packing in memory against the tokenizer library's encoding alone."""
    profile, tok = prepare(place, data, 8)
    texts = list(corpus.read(profile.folder / "data" / "corpus"))
    encoder, cpu = tok.backend_tokenizer, torch.device("cpu")
    yield Work(
        "tokenise and pack, in memory",
        "encode_batch_fast alone",
        "MB/s",
        sum(len(text.encode()) for text in texts) / 1e6,
        1,
        timed(lambda: [*tokenizer.pack(texts, tok, LENGTH)], cpu),
        timed(lambda: encoder.encode_batch_fast(texts, add_special_tokens=False), cpu),
        0.85,
    )
