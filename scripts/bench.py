"""Speed and losses, side by side: this project against transformers used the ordinary way.

`make bench` calls it. It writes to the folder --out: bench.json, each work timed theirs, ours,
theirs, ours..., each side in a process of its own, with the median of the ratios pair by pair;
curves.json, losses of both sides from the same weights on the same segments, each with its own
masks, so that seeds give the noise.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import torch
import transformers
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention

from helpers.base import config, files, machine, seeding
from helpers.base.errors import UserError, run_main
from helpers.data import corpus, glue, packing, tokenizer
from helpers.model import disentangled, registry
from helpers.model.dropout import use_fast_dropout
from helpers.train import batches, finetune, heads, loop, objectives, pretrain, provenance

LENGTH, RATE = 128, 5e-4
# Shapes that are timed: the paper's, and one that two CPU cores can train (profiles/small.yaml).
SHAPES = {
    "paper": {"batch": 16, "vocabulary": 30_522, "dropout": 0.1},
    "small": {"batch": 32, "vocabulary": 8000, "dropout": 0.0},
}
MODELS = ("bert", "electra", "deberta", "electra-deberta")
SIDES = ("stock", "ours, float32", "ours, bfloat16")
POINT, END = 10, 50  # steps averaged into one point of a curve, and into the final loss
PEAK_RATE = 2e-3  # of the curves
CPU = torch.device("cpu")
CONTEXT = multiprocessing.get_context("forkserver")  # each side begins from the same small process
CONTEXT.set_forkserver_preload(["torch", "transformers", "pandas", "sklearn.metrics"])

Timed = Callable[[int], float]  # steps to seconds


class Place(NamedTuple):
    """Where and at what size both sides run, and what both read."""

    folder: Path  # for temporary files
    device: torch.device
    threads: int
    size: str  # row of registry.SIZES
    batch: int  # segments per pre-training step
    steps: int  # pre-training steps in one timing
    vocabulary: int  # rows of the embedding tables; the tokenizer has so many at most
    dropout: float
    profile: config.Profile  # of a run with a corpus and rows of tasks
    tok: transformers.PreTrainedTokenizerBase
    texts: list[str]
    rows: np.ndarray  # uint16 [segments, LENGTH]
    seed: int = 0  # of the weights


class Work(NamedTuple):
    """One comparison of our side with a reference; a process of its own makes either side."""

    name: str
    reference: str
    unit: str
    units: float  # in one step
    steps: int  # in one timing
    ours: Callable[[], Timed]
    theirs: Callable[[], Timed]


@contextmanager
def side(make: Callable[[], Timed]) -> Iterator[Timed]:
    """One side of a comparison in a process of its own: the other's memory is not its own."""
    with ProcessPoolExecutor(1, CONTEXT, _begin, (make,)) as process:
        yield lambda steps: process.submit(_seconds, steps).result()


def _begin(make: Callable[[], Timed]) -> None:
    _seconds.timed = make()


def _seconds(steps: int) -> float:
    return _seconds.timed(steps)


def prepare(options: argparse.Namespace, folder: Path, size: str, **shape: object) -> Place:
    """A place with the data of a folder, or of the embedded world."""
    values = {"train_rows": options.rows, "dev_rows": 8, "documents": 2000, "data": options.data}
    profile = config.load_profile("tiny", runs=str(folder / "runs"), **values)
    corpus.run(config.Data(**profile.stage(config.Data)))
    texts = list(corpus.read(profile.folder / "data" / "corpus"))
    tok = tokenizer.train("wordpiece", shape["vocabulary"], lambda: iter(texts))
    rows = np.concatenate(list(packing.pack(texts, tok, LENGTH))).astype(np.uint16)
    if shape["batch"] > len(rows):
        raise UserError(f"--batch {shape['batch']}: the corpus has {len(rows)} segments")
    shape |= {"profile": profile, "tok": tok, "texts": texts, "rows": rows}
    return Place(folder, torch.device(options.device), size=size, **shape)


def build(place: Place, name: str, stock: bool = False, half: bool = False) -> nn.Module:
    """A registry entry, `stock` without our exchanges.

    With `half` transformers' DeBERTa-v1 attention runs under bfloat16 autocast: its float32 biases
    lift the queries to float32, whose lowest number does not fit the scores it is written into.
    """
    torch.manual_seed(place.seed)
    shape = registry.get_size(place.size)
    spec = replace(registry.get(name), recipe=registry.Recipe())  # both sides' optimiser
    task = objectives.build(spec, shape, place.vocabulary, LENGTH, place.dropout, fast=False)
    task = task if stock else use_fast_dropout(disentangled.speed_up(task))
    for module in task.modules():
        if half and isinstance(module, DisentangledSelfAttention):
            for bias in (module.q_bias, module.v_bias):
                bias.data = bias.data.bfloat16()
    return task.to(place.device).train()


def timed(step: Callable[[], object], device: torch.device = CPU) -> Timed:
    """A timing of `step` repeated; it ends when the device has done it."""

    def seconds(steps: int) -> float:
        loop.wait(device)
        began = time.perf_counter()
        for _ in range(steps):
            step()
        loop.wait(device)
        return time.perf_counter() - began

    return seconds


def our_step(place: Place, name: str, dtype: str = "bfloat16") -> Timed:
    """Optimiser steps of ``pretrain``."""
    loop.begin(place.threads)
    vocabulary = objectives.Vocabulary.of(place.tok, place.device, segments=1)
    rows = batches.Rows(place.rows, place.tok, place.batch, 0, place.device)
    step = pretrain.Step(build(place, name), vocabulary, getattr(torch, dtype))
    return timed(lambda: step(rows.batch(0), RATE), place.device)


def plain_step(place: Place, name: str, dtype: str = "bfloat16") -> Timed:
    """Steps of a plain loop over stock classes."""
    torch.set_num_threads(place.threads)
    step = stock_loop(place, build(place, name, stock=True, half=dtype == "bfloat16"), dtype)
    tokens = torch.from_numpy(place.rows[: place.batch].astype(np.int64))
    return timed(lambda: step(tokens, RATE), place.device)


def stock_loop(place: Place, task: nn.Module, dtype: str) -> Callable:
    """A step of a plain loop: stock classes, the collator's masks, logits at every position."""
    optimiser = torch.optim.AdamW(task.parameters(), eps=1e-6, weight_decay=0.01)
    mask, swap = task.spec.masking  # the model's own, so that losses compare
    masks = {"mask_replace_prob": mask, "random_replace_prob": swap}
    collator = transformers.DataCollatorForLanguageModeling(place.tok, **masks)

    def step(tokens: torch.Tensor, rate: float) -> dict[str, torch.Tensor]:
        made = collator([{"input_ids": row} for row in tokens.cpu()])
        with loop.autocast(place.device, getattr(torch, dtype)):
            loss = stock_loss(task, *(made[k].to(place.device) for k in ("input_ids", "labels")))
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        optimiser.zero_grad()
        return {"loss": loss.detach()}

    return step


def stock_loss(task: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits at every position; int64 [batch, length] both, labels -100 where not masked."""
    if isinstance(task, objectives.MaskedLanguageModel):
        return task.model(inputs, labels=labels).loss
    chosen, corrupted = labels != -100, inputs.clone()
    logits = task.generator(inputs).logits
    loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
    corrupted[chosen] = sample(logits[chosen])
    replaced = (corrupted != torch.where(chosen, labels, inputs)).float()
    hidden = registry.encoder(task.model)(corrupted).last_hidden_state
    scores = task.model.discriminator_predictions(hidden).float()
    found = nn.functional.binary_cross_entropy_with_logits(scores, replaced)
    return loss + registry.DISCRIMINATOR_WEIGHT * found


def sample(logits: torch.Tensor) -> torch.Tensor:
    """A draw of each row of logits by Gumbel noise, as the released ELECTRA-DeBERTa code does."""
    logits = logits.detach().float()
    noise = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-9, 1 - 1e-7)))
    return (logits + noise).argmax(-1)


def products(place: Place, name: str) -> Timed:
    """The matrix products of our bfloat16 step at the same shapes, from contiguous operands.

    An estimate of what a step cannot do without; attention counts as the products it is.
    """
    step, first = our_step(place, name), {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
    with sdpa_kernel(SDPBackend.MATH), profile(record_shapes=True) as seen:
        step(1)
    pairs = []
    for event in seen.events():
        if (place_of := first.get(event.name.removeprefix("aten::"))) is not None:
            pairs.append([tuple(s) for s in event.input_shapes[place_of : place_of + 2]])
    shapes = {shape: torch.randn(shape, device=place.device).bfloat16() for shape in chain(*pairs)}
    return timed(lambda: [shapes[one] @ shapes[two] for one, two in pairs], place.device)


def pretraining(place: Place) -> Iterator[Work]:
    """Pre-training steps against a plain loop in the same format, and against their products."""
    gpu = place.device.type == "cuda"
    forms = ("bfloat16",) if gpu or place.size == "small" else ("float32", "bfloat16")
    about = ("tokens/s", place.batch * LENGTH, place.steps)
    for name in MODELS:
        for dtype in forms:
            ours, theirs = (partial(one, place, name, dtype) for one in (our_step, plain_step))
            label = f"pre-train {name}, {place.size}, {dtype}"
            yield Work(label, "plain loop", *about, ours, theirs)
        if not gpu:
            sides = partial(our_step, place, name), partial(products, place, name)
            label = f"{name}, {place.size}, bfloat16"
            yield Work(label, "its matrix products alone", *about, *sides)


def our_epoch(place: Place, parameters: config.Finetune, name: str, encoder: Path) -> Timed:
    """An epoch of ``finetune``, batches by length."""
    loop.begin(place.threads)
    task = glue.get(name)
    table = glue.load(place.profile.folder, name, "train")
    encoded = batches.encode(table, task, place.tok, LENGTH)
    mine = heads.open_encoder(encoder, task, place.dropout)
    return timed(partial(finetune.train, parameters, mine, encoded, place.tok, 1, 0, torch.float32))


def trainer_epoch(place: Place, parameters: config.Finetune, name: str, encoder: Path) -> Timed:
    """An epoch of transformers' Trainer, padded; timed by its own clock, without its set-up."""
    torch.set_num_threads(place.threads)
    task, tok = glue.get(name), place.tok
    table = glue.load(place.profile.folder, name, "train")
    texts = [table[column].tolist() for column in task.columns]
    padded = tok(*texts, truncation="longest_first", max_length=LENGTH, padding="max_length")
    rows = pd.DataFrame({**padded, "label": table["label"]}).to_dict("records")
    classifier = transformers.AutoModelForSequenceClassification
    stock = classifier.from_pretrained(encoder, use_safetensors=True)
    settings = {"per_device_train_batch_size": parameters.finetune_batch_size, "use_cpu": True}
    settings |= {"save_strategy": "no", "logging_strategy": "no", "report_to": []}
    settings |= {"learning_rate": RATE, "disable_tqdm": True, "num_train_epochs": 1}

    def seconds(steps: int) -> float:
        arguments = transformers.TrainingArguments(str(place.folder / "trainer"), **settings)
        trainer = transformers.Trainer(stock, arguments, train_dataset=rows)
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer.train().metrics["train_runtime"]

    return seconds


def finetuning(place: Place, options: argparse.Namespace) -> Iterator[Work]:
    """One epoch over the first rows of three tasks, ours by length against padding to 128."""
    profile, encoder = place.profile, place.folder / "encoder"
    build(place, "electra", stock=True).model.save_pretrained(encoder)
    changes = {"finetune_batch_size": 32, "max_length": LENGTH, "finetune_learning_rate": 1e-4}
    parameters = config.Finetune(**profile.stage(config.Finetune) | changes)
    for name in ("cola", "sst2", "rte"):
        glue.run(config.Data(**profile.stage(config.Data)), name)
        count = len(glue.load(profile.folder, name, "train"))
        label = (
            f"fine-tune {glue.get(name).name} ({f'{count} rows' if options.data else 'embedded'})"
        )
        about = (label, f"Trainer, padded to {LENGTH}", "examples/s", count, 1)
        sides = (
            partial(one, place, parameters, name, encoder) for one in (our_epoch, trainer_epoch)
        )
        yield Work(*about, *sides)


def our_packing(place: Place) -> Timed:
    """Tokenising and packing in memory."""
    return timed(lambda: [*packing.pack(place.texts, place.tok, LENGTH, segments=2)])


def encoding(place: Place) -> Timed:
    """The tokenizer library's encoding alone."""
    encode = place.tok.backend_tokenizer.encode_batch_fast
    return timed(lambda: encode(place.texts, add_special_tokens=False))


def tokenising(place: Place) -> Iterator[Work]:
    """From texts to rows against the tokenizer library's encoding alone."""
    size = sum(len(text.encode()) for text in place.texts) / 1e6
    about = ("tokenise and pack, in memory", "encode_batch_fast alone", "MB/s", size, 1)
    yield Work(*about, partial(our_packing, place), partial(encoding, place))


PARTS = ("pretrain", "finetune", "pack", "curves")


def compare(work: Work, ours: Timed, theirs: Timed, pairs: int) -> dict[str, object]:
    """A row of bench.json: medians of `pairs` alternating timings, after a pair thrown away."""
    timings = [(theirs(work.steps), ours(work.steps)) for _ in range(pairs + 1)]
    found = timings[1:]  # the first is slower
    ratios = [other / mine for other, mine in found]
    other, mine = (median(side) for side in zip(*found, strict=True))
    return {
        **{"work": work.name, "reference": work.reference, "unit": work.unit, "n": pairs},
        "ours": work.units * work.steps / mine,
        "theirs": work.units * work.steps / other,
        **{"ratio": median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)},
    }


def works(place: Place, options: argparse.Namespace) -> Iterator[Work]:
    """What is compared at a shape; fine-tuning and packing at the first of them."""
    if "pretrain" in options.parts:
        yield from pretraining(place)
    if "finetune" in options.parts and place.size != "small":
        yield from finetuning(place, options)
    if "pack" in options.parts and place.size != "small":
        yield from tokenising(place)


def speeds(places: list[Place], options: argparse.Namespace) -> Iterator[dict]:
    """bench.json, after every row."""
    rows = []
    for work in chain.from_iterable(works(place, options) for place in places):
        try:
            with side(work.ours) as ours, side(work.theirs) as theirs:
                row = compare(work, ours, theirs, options.pairs)
        except BrokenProcessPool:
            raise UserError(f"bench: {work.name}: one side has ended; its error is above") from None
        except RuntimeError as error:  # out of memory, among others
            raise UserError(f"bench: {work.name}: {error}") from None
        rows.append(row)
        form = "{work:<42}{reference:<28}{ours:>11,.1f}{theirs:>11,.1f} {unit:<11}{ratio:>6.2f}x"
        print((form + " ({ratio_low:.2f} to {ratio_high:.2f})").format(**row), flush=True)
        yield {"rows": rows}


def curves(places: list[Place], options: argparse.Namespace) -> Iterator[dict]:
    """curves.json: equal quality, the losses of this project's steps beside transformers'."""
    (place,) = places
    vocabulary, runs = objectives.Vocabulary.of(place.tok, place.device, segments=1), []
    for name, side, seed in product(MODELS, SIDES, range(options.seeds)):
        rows = batches.Rows(place.rows, place.tok, place.batch, seed, place.device)
        seeded, found = place._replace(seed=seed), []
        task = build(seeded, name, stock=side == "stock")
        if side == "stock":
            step = stock_loop(place, task, "float32")
        else:
            step = pretrain.Step(task, vocabulary, getattr(torch, side.split(", ")[1]))
        for number in range(place.steps):
            torch.manual_seed(seeding.derive_seed(seed, "step", number))
            if side != "stock":
                step.generator.manual_seed(seeding.derive_seed(seed, "mask", number))
            rate = PEAK_RATE * loop.schedule(number, place.steps // 10, place.steps)
            found.append(float(step(rows.batch(number), rate)["loss"]))
        points = np.array(found)[: len(found) // POINT * POINT].reshape(-1, POINT).mean(1)
        run = {"model": name, "side": side, "seed": seed, "final": fmean(found[-END:])}
        runs.append(run | {"curve": points.round(4).tolist()})
        print(f"{name:<18}{side:<18}{seed}  {run['final']:.4f}", flush=True)
    about = {"vocabulary": place.vocabulary, "steps": place.steps, "rate": PEAK_RATE}
    about |= {"dropout": place.dropout, "point": POINT, "end": END, "runs": runs}
    yield about | {"corpus": "a folder of prose" if options.data else "the embedded world"}


def measure(options: argparse.Namespace, make: Callable, name: str, *shapes: dict) -> None:
    """Writes one file of results: where they come from, and what `make` finds at those shapes.

    An option that was given goes over a shape's own batch, steps and threads.
    """
    keys = ("size", "batch", "steps", "threads")
    shapes = [one | {key: getattr(options, key) or one[key] for key in keys} for one in shapes]
    threads, first = shapes[0]["threads"], shapes[0]
    about = {"hardware": provenance.hardware(threads), "versions": provenance.versions()}
    about |= {"size": first["size"], "length": LENGTH, "batch": first["batch"]}
    with tempfile.TemporaryDirectory() as folder:
        places = [prepare(options, Path(folder) / one["size"], **one) for one in shapes]
        for found in make(places, options):
            files.write_json(files.resolve(options.out) / name, about | found)
    print(f"written to {options.out / name}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs"), help="folder of the two files")
    add("--data", default="", help="folder with glue/ and corpus/; else embedded")
    add("--parts", default=",".join(PARTS), help="which of them")
    add("--size", help="row of registry.SIZES; else paper and small, and mini for curves")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--pairs", type=int, default=5, help="timings of either side")
    add("--batch", type=int, help="segments per step; else 16, 32, and 4 for curves")
    add("--steps", type=int, help="in one timing or curve; else 1, 300")
    add("--rows", type=int, default=256, help="examples of a fine-tuning epoch")
    add("--seeds", type=int, default=3, help="curves of either side")
    add("--threads", type=int, help="of the CPU; else all, and one for curves")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        raise UserError(f"--parts {', '.join(unknown)}: known are {', '.join(PARTS)}")
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a look at the GPU, without using it
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the Trainer would take a GPU unasked
    elif not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    each = {"steps": 1, "threads": machine.cores()}
    shapes = [{"size": size} | each | shape for size, shape in SHAPES.items()]
    if {"pretrain", "finetune", "pack"} & set(options.parts):
        measure(options, speeds, "bench.json", *(shapes[:1] if options.size else shapes))
    options.device = "cpu"
    if "curves" in options.parts:
        small = {"size": "mini", "batch": 4, "threads": 1, "vocabulary": 4000, "dropout": 0.1}
        measure(options, curves, "curves.json", small | {"steps": 300})


if __name__ == "__main__":
    run_main(main)
