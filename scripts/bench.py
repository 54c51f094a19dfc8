"""Speed and losses, side by side: this project against transformers used the ordinary way.

`make bench` calls it. It writes to the folder --out:
bench.json    each work timed theirs, ours, theirs, ours...; machines are noisy, so the ratio is
              taken pair by pair, and its median is what counts
profile.json  where the time of one pre-training step goes, by operation
curves.json   losses of both sides from the same weights on the same segments in the same order;
              each draws its own masks and dropout, so seeds give the noise
"""

import argparse
import ctypes
import gc
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, product
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import torch
import transformers
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from transformers.models.deberta.modeling_deberta import DisentangledSelfAttention

from helpers.base import config, files, seeding
from helpers.base.errors import UserError, run_main
from helpers.data import corpus, glue, packing, tokenizer
from helpers.model import disentangled, registry
from helpers.model.dropout import use_fast_dropout
from helpers.train import batches, finetune, loop, objectives, pretrain, provenance

LENGTH, DROPOUT, RATE = 128, 0.1, 5e-4
GOALS = {"electra-deberta": 3.0, "deberta": 3.0, "bert": 1.6}  # ratios to float32, on a CPU
# Goals on one H200 in bfloat16, tokens per second; the order in which a GPU takes the models.
RATES = {"electra": 1.2e6, "electra-deberta": 0.6e6, "bert": 1.5e6, "deberta": None}
MODELS = ("bert", "deberta", "electra", "electra-deberta")  # of the curves
SIDES = ("stock", "ours, float32", "ours, bfloat16")
POINT, END = 10, 50  # steps averaged into one point of a curve, and into the final loss
PEAK_RATE = 2e-3  # of the curves
CPU = torch.device("cpu")
STOCK = "attention, dropout"  # without our exchanges: transformers' own modules alone

Timed = Callable[[int], float]  # steps to seconds


class Place(NamedTuple):
    """Where and at what size both sides run, and what both read."""

    folder: Path  # for temporary files
    device: torch.device
    size: str  # row of registry.SIZES
    batch: int  # segments per pre-training step
    steps: int  # pre-training steps in one timing
    vocabulary: int  # rows of the embedding tables; the tokenizer has so many at most
    profile: config.Profile  # of a run with a corpus and rows of tasks
    tok: transformers.PreTrainedTokenizerBase
    texts: list[str]
    rows: np.ndarray  # uint16 [segments, LENGTH]
    seed: int = 0  # of the weights


class Work(NamedTuple):
    """One comparison of our side with a reference."""

    name: str
    reference: str
    unit: str
    units: float  # in one step
    steps: int  # in one timing
    ours: Timed
    theirs: Timed
    goal: float | None = None  # ratio aimed at
    flops: float | None = None  # matrix-product FLOP of our model per unit
    dtype: str = "float32"  # of our products
    rate: float | None = None  # units per second aimed at, on the GPU that RATES names


def prepare(
    options: argparse.Namespace, folder: Path, size: str, batch: int, steps: int, vocabulary: int
) -> Place:
    """A place with the data of a folder, or of the embedded world."""
    values = {"train_rows": options.rows, "dev_rows": 8, "documents": 2000, "data": options.data}
    profile = config.load_profile("tiny", runs=str(folder / "runs"), **values)
    corpus.run(config.Data(**profile.stage(config.Data)))
    texts = list(corpus.read(profile.folder / "data" / "corpus"))
    tok = tokenizer.train("wordpiece", vocabulary, lambda: iter(texts))
    rows = np.concatenate(list(packing.pack(texts, tok, LENGTH))).astype(np.uint16)
    if batch > len(rows):
        raise UserError(f"--batch {batch}: the corpus has {len(rows)} segments")
    device = torch.device(options.device)
    return Place(folder, device, size, batch, steps, vocabulary, profile, tok, texts, rows)


def build(
    place: Place, name: str, without: str = "", half: bool = False, rate: float = DROPOUT
) -> nn.Module:
    """A registry entry; each of our exchanges can be left out.

    With `half` transformers' DeBERTa-v1 attention runs under bfloat16 autocast: its float32 biases
    lift the queries to float32, whose lowest number does not fit the scores it is written into.
    """
    torch.manual_seed(place.seed)
    shape = registry.get_size(place.size)
    spec = replace(registry.get(name), recipe=registry.Recipe())  # both sides' optimiser
    task = objectives.build(spec, shape, place.vocabulary, LENGTH, rate, fast=False)
    task = task if "attention" in without else disentangled.speed_up(task)
    task = task if "dropout" in without else use_fast_dropout(task)
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


def our_step(place: Place, task: nn.Module, dtype: str = "bfloat16", mode: str = "none") -> Timed:
    """Optimiser steps of ``pretrain``; like a Trainer, each timing has new moments."""
    vocabulary = objectives.Vocabulary.of(place.tok, place.device, segments=1)
    rows = batches.Rows(place.rows, place.tok, place.batch, 0, place.device)
    step = pretrain.Step(task, vocabulary, getattr(torch, dtype), mode=mode)

    def seconds(steps: int) -> float:
        for moment in chain.from_iterable(m.values() for m in step.optimiser.state.values()):
            moment.zero_()
        return timed(lambda: step(rows.batch(0), RATE), place.device)(steps)

    return seconds


def stock_step(place: Place, task: nn.Module, dtype: str) -> tuple[Callable, Timed]:
    """A plain loop's step over stock classes, the collator's masks, and its timing."""
    tokens = torch.from_numpy(place.rows[: place.batch].astype(np.int64))
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

    def seconds(steps: int) -> float:
        optimiser.state.clear()  # like a Trainer
        return timed(lambda: step(tokens, RATE), place.device)(steps)

    return step, seconds


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


def with_trainer(
    place: Place, model: nn.Module, rows: list[dict], collator: object = None, **more: object
) -> Timed:
    """Transformers' Trainer over `rows`, timed by its own clock, which leaves its set-up out."""
    more |= {"save_strategy": "no", "logging_strategy": "no", "report_to": []}
    more |= {"learning_rate": RATE, "disable_tqdm": True, "use_cpu": True}

    def seconds(steps: int) -> float:
        arguments = transformers.TrainingArguments(str(place.folder), **{"max_steps": steps} | more)
        trainer = transformers.Trainer(model, arguments, collator, rows)
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer.train().metrics["train_runtime"]

    return seconds


def sample(logits: torch.Tensor) -> torch.Tensor:
    """A draw of each row of logits by Gumbel noise, as the released ELECTRA-DeBERTa code does."""
    logits = logits.detach().float()
    noise = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-9, 1 - 1e-7)))
    return (logits + noise).argmax(-1)


def corrupt_by_gumbel(
    tokens: torch.Tensor, masked: objectives.Masked, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``objectives.corrupt`` with a random number for every entry of the vocabulary."""
    sampled = torch.where(masked.weights > 0, sample(logits), masked.targets)
    corrupted = tokens.scatter(1, masked.positions, sampled)
    return corrupted, (corrupted != tokens).float()


def dense(self: nn.Module, tokens: torch.Tensor, masked: objectives.Masked, *_: object) -> dict:
    """``MaskedLanguageModel.forward`` with the logits of every position, as in stock classes."""
    labels = torch.full_like(tokens, -100).scatter(1, masked.positions, masked.targets)
    return {"loss": self.model(masked.inputs, labels=labels).loss}


def products(place: Place, step: Timed, dtype: torch.dtype) -> Timed:
    """The matrix products of one training step at the same shapes, from contiguous operands.

    An estimate of what a step cannot do without; attention counts as the products it is.
    """
    first = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
    with sdpa_kernel(SDPBackend.MATH), profile(record_shapes=True) as seen:
        step(1)
    pairs = []
    for event in seen.events():
        if (place_of := first.get(event.name.removeprefix("aten::"))) is not None:
            pairs.append([tuple(s) for s in event.input_shapes[place_of : place_of + 2]])
    operands = {s: torch.randn(s, device=place.device).to(dtype) for s in chain(*pairs)}
    return timed(lambda: [operands[one] @ operands[two] for one, two in pairs], place.device)


def pretraining(place: Place, _: argparse.Namespace) -> Iterator[Work]:
    """Pre-training steps against transformers' Trainer, in either number format.

    On a GPU, and for ELECTRA, the other side is a plain loop under the same autocast.
    """
    gpu, half = place.device.type == "cuda", ("bfloat16", "bfloat16")
    collator = transformers.DataCollatorForLanguageModeling(place.tok)
    examples = [{"input_ids": row.tolist()} for row in place.rows]
    forms = [half] if gpu else [("float32", "float32"), ("bfloat16", "float32"), half]
    for name, (mine, other) in product(RATES if gpu else GOALS, forms):
        halved = other == "bfloat16"
        stock = build(place, name, STOCK, halved)
        if gpu or registry.get(name).objective == "rtd":
            theirs, kind = stock_step(place, stock, other)[1], "stock classes"
        else:
            more = {"per_device_train_batch_size": place.batch, "bf16": halved}
            theirs, kind = with_trainer(place, stock.model, examples, collator, **more), "Trainer"
        for mode in ("none", "default", "reduce-overhead") if gpu else ("none",):
            task = build(place, name)
            label = f"pre-train {name}, {mine}" + (f", {mode}" if mode != "none" else "")
            about = (label, f"{kind}, {other}", "tokens/s", place.batch * LENGTH, place.steps)
            goal = GOALS[name] if not gpu and other == "float32" else None
            flops = objectives.flops_per_token(task, LENGTH)
            ours, rate = our_step(place, task, mine, mode), RATES[name] if gpu else None
            yield Work(*about, ours, theirs, goal, flops, mine, rate)


def switches(place: Place, _: argparse.Namespace) -> Iterator[Work]:
    """Our bfloat16 step against itself with one thing changed, then against its products."""

    def step(name: str, dtype: str = "bfloat16", mode: str = "none", **changes: object) -> Timed:
        return our_step(place, build(place, name, **changes), dtype, mode)

    def work(name: str, change: str, theirs: Timed, dtype: str = "bfloat16", **more: float) -> Work:
        more |= {"flops": objectives.flops_per_token(build(place, name), LENGTH), "dtype": dtype}
        about = (f"{name}, {dtype}", change, "tokens/s", place.batch * LENGTH, place.steps)
        return Work(*about, step(name, dtype), theirs, **more)

    yield work("deberta", "with stock attention", step("deberta", without="attention", half=True))
    yield work("deberta", "with torch's dropout", step("deberta", without="dropout"))
    yield work("deberta", "without dropout", step("deberta", rate=0.0))
    yield work("deberta", "with float32", step("deberta", "float32"))
    yield work("deberta", "with torch.compile", step("deberta", mode="default"))
    everywhere = patch.object(objectives.MaskedLanguageModel, "forward", dense)(step("bert"))
    yield work("bert", "with logits everywhere", everywhere)
    noisy = patch.object(objectives, "corrupt", corrupt_by_gumbel)(step("electra-deberta"))
    yield work("electra-deberta", "with Gumbel sampling", noisy)
    for name, dtype in product(("bert", "deberta"), ("float32", "bfloat16")):
        peak = products(place, step(name, dtype), getattr(torch, dtype))
        yield work(name, "its matrix products alone", peak, dtype, goal=0.65)


def finetuning(place: Place, options: argparse.Namespace) -> Iterator[Work]:
    """One epoch over the first rows of three tasks, ours by length against padding to 128."""
    profile, tok, batch, encoder = place.profile, place.tok, 32, place.folder / "encoder"
    build(place, "electra", STOCK).model.save_pretrained(encoder)
    changes = {"finetune_batch_size": batch, "max_length": LENGTH, "finetune_learning_rate": 1e-4}
    parameters = config.Finetune(**profile.stage(config.Finetune) | changes)
    epochs = {"per_device_train_batch_size": batch, "num_train_epochs": 1, "max_steps": -1}
    for name, goal in (("cola", 5.0), ("sst2", 5.0), ("rte", 1.5)):
        glue.run(config.Data(**profile.stage(config.Data)), name)
        table, task = glue.load(profile.folder, name, "train"), glue.get(name)
        encoded = batches.encode(table, task, tok, LENGTH)
        texts = [table[column].tolist() for column in task.columns]
        padded = tok(*texts, truncation="longest_first", max_length=LENGTH, padding="max_length")
        tok.backend_tokenizer.no_truncation()
        tok.backend_tokenizer.no_padding()
        rows = pd.DataFrame({**padded, "label": encoded.labels}).to_dict("records")
        classifier = transformers.AutoModelForSequenceClassification
        stock = classifier.from_pretrained(encoder, use_safetensors=True)
        theirs = with_trainer(place, stock, rows, **epochs)
        mine = finetune.open_encoder(encoder, task, DROPOUT)
        epoch = partial(finetune.train, parameters, mine, encoded, tok, 1, 0, torch.float32)
        label = f"fine-tune {task.name} ({f'{len(rows)} rows' if options.data else 'embedded'})"
        about = (label, f"Trainer, padded to {LENGTH}", "examples/s", len(rows), 1)
        yield Work(*about, timed(epoch), theirs, goal)


def encoding(place: Place, _: argparse.Namespace) -> Iterator[Work]:
    """Tokenising and packing in memory against the tokenizer library's encoding alone."""
    texts, encode = place.texts, place.tok.backend_tokenizer.encode_batch_fast
    ours = timed(lambda: [*packing.pack(texts, place.tok, LENGTH, segments=2)])
    theirs = timed(lambda: encode(texts, add_special_tokens=False))
    size = sum(len(text.encode()) for text in texts) / 1e6
    about = ("tokenise and pack, in memory", "encode_batch_fast alone", "MB/s", size, 1)
    yield Work(*about, ours, theirs, 0.85)


SPEEDS = {"pretrain": pretraining, "switches": switches, "finetune": finetuning, "pack": encoding}
PARTS = (*SPEEDS, "profile", "curves")


def compare(work: Work, pairs: int, peaks: dict[str, float]) -> dict[str, object]:
    """A row of bench.json: medians of `pairs` alternating timings, after a pair thrown away.

    The warm-up is what that pair took beyond the median: compiling, first allocations.
    """
    timings = [(work.theirs(work.steps), work.ours(work.steps)) for _ in range(pairs + 1)]
    first, found = timings[0], timings[1:]
    ratios = [theirs / ours for theirs, ours in found]
    theirs, ours = (median(side) for side in zip(*found, strict=True))
    rate = work.units * work.steps / ours
    return {
        **{"work": work.name, "reference": work.reference, "unit": work.unit, "n": pairs},
        **{"ours": rate, "theirs": work.units * work.steps / theirs},
        **{"ratio": median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)},
        **{"goal": work.goal, "rate_goal": work.rate},
        **{"warmup_ours": max(0.0, first[1] - ours), "warmup_theirs": max(0.0, first[0] - theirs)},
        "mfu": rate * work.flops / peaks[work.dtype] if work.flops else None,
    }


def peak_memory(step: Timed, device: torch.device) -> int | None:
    """Bytes that one step holds at its peak beyond what lay there before it.

    Weights lay there; activations, gradients and a new optimiser's moments did not. On a GPU torch
    counts, on Linux the kernel does (resident memory); None elsewhere.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(1)
        # A step that was recorded as a CUDA graph holds its memory from then on: nothing to see.
        return torch.cuda.max_memory_allocated() - before or None
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        return None
    status = Path("/proc/self/status")
    before = re.search(r"VmRSS:\s+(\d+)", status.read_text())
    step(1)
    peak = re.search(r"VmHWM:\s+(\d+)", status.read_text())
    return max(0, int(peak[1]) - int(before[1])) * 1024


def speeds(place: Place, options: argparse.Namespace) -> Iterator[dict]:
    """bench.json, after every row."""
    side, peaks = 8192 if place.device.type == "cuda" else 2048, {}
    for dtype in ("float32", "bfloat16"):  # the best of ten products of square matrices, FLOP/s
        square = torch.randn(side, side, device=place.device).to(getattr(torch, dtype))
        seconds = timed(partial(torch.matmul, square, square), place.device)
        peaks[dtype] = 2 * side**3 / min(seconds(1) for _ in range(10))
    works, rows = (SPEEDS[name](place, options) for name in SPEEDS if name in options.parts), []
    for work in chain.from_iterable(works):
        row = compare(work, options.pairs, peaks)
        for side in ("ours", "theirs"):
            row[f"memory_{side}"] = peak_memory(getattr(work, side), place.device)
        rows.append(row)
        form = "{work:<38}{reference:<32}{ours:>11,.1f}{theirs:>11,.1f} {unit:<11}{ratio:>6.2f}x"
        print((form + " ({ratio_low:.2f} to {ratio_high:.2f})").format(**row), flush=True)
        yield {"peaks": peaks, "rows": rows}


def operations(place: Place, _: argparse.Namespace) -> Iterator[dict]:
    """profile.json: the shares of a step's CPU time, by operation, as torch's profiler sees it."""
    model, dtype = "electra-deberta", "bfloat16"
    step = our_step(place, build(place, model), dtype)
    step(2)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step(place.steps)
    times = pd.Series({event.key: event.self_cpu_time_total for event in seen.key_averages()})
    shares = (times / times.sum()).nlargest(12).round(4)
    print(shares.to_string())
    yield {"model": model, "precision": dtype, "shares": shares.to_dict()}


def curves(place: Place, options: argparse.Namespace) -> Iterator[dict]:
    """curves.json: equal quality, the losses of this project's steps beside transformers'."""
    vocabulary, runs = objectives.Vocabulary.of(place.tok, place.device, segments=1), []
    for name, side, seed in product(MODELS, SIDES, range(options.seeds)):
        rows = batches.Rows(place.rows, place.tok, place.batch, seed, place.device)
        seeded, found = place._replace(seed=seed), []
        task = build(seeded, name, STOCK if side == "stock" else "")
        if side == "stock":
            step, _ = stock_step(place, task, "float32")
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
    about |= {"dropout": DROPOUT, "point": POINT, "end": END, "runs": runs}
    yield about | {"corpus": "a folder of prose" if options.data else "the embedded world"}


def measure(options: argparse.Namespace, make: Callable, name: str, **shape: object) -> None:
    """Writes one file of results: where they come from, and what `make` finds at that shape.

    An option that was given goes over the part's own size, batch, steps and threads.
    """
    keys = ("size", "batch", "steps", "threads")
    shape |= {key: value for key in keys if (value := getattr(options, key))}
    threads = shape.pop("threads")
    loop.begin(threads)
    about = {"hardware": provenance.hardware(threads), "versions": provenance.versions()}
    about |= {"size": shape["size"], "length": LENGTH, "batch": shape["batch"]}
    with tempfile.TemporaryDirectory() as folder:
        for found in make(prepare(options, Path(folder), **shape), options):
            files.write_json(files.resolve(options.out) / name, about | found)
    print(f"written to {options.out / name}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs"), help="folder of the three files")
    add("--data", default="", help="folder with glue/ and corpus/; else embedded")
    add("--parts", default=",".join(PARTS), help="which of them")
    add("--size", help="row of registry.SIZES; else paper, and mini for curves")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--pairs", type=int, default=5, help="timings of either side")
    add("--batch", type=int, help="segments per step; else 16, and 4 for curves")
    add("--steps", type=int, help="in one timing, profile or curve; else 1, 3, 300")
    add("--rows", type=int, default=256, help="examples of a fine-tuning epoch")
    add("--seeds", type=int, default=3, help="curves of either side")
    add("--threads", type=int, help="of the CPU; else all, and one for curves")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        raise UserError(f"--parts {', '.join(unknown)}: known are {', '.join(PARTS)}")
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the Trainer would take a GPU unasked
    elif not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    large = {"size": "paper", "batch": 16, "threads": os.cpu_count(), "vocabulary": 30_522}
    if set(options.parts) & set(SPEEDS):
        measure(options, speeds, "bench.json", steps=1, **large)
    options.device = "cpu"
    if "profile" in options.parts:
        measure(options, operations, "profile.json", steps=3, **large)
    if "curves" in options.parts:
        small = {"size": "mini", "batch": 4, "threads": 1, "vocabulary": 4000}
        measure(options, curves, "curves.json", steps=300, **small)


if __name__ == "__main__":
    run_main(main)
