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
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path
from statistics import fmean, median
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import transformers
from stock import (
    DROPOUT,
    LENGTH,
    RATE,
    STOCK,
    Dense,
    Inputs,
    Place,
    StockStep,
    Timed,
    build,
    corrupt_by_gumbel,
    prepare,
    stock_step,
    timed,
    with_trainer,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from helpers.base import config, files, progress, seeding
from helpers.base.errors import UserError, run_main
from helpers.data import glue, tokenizer
from helpers.model import registry
from helpers.train import batches, finetune, loop, objectives, pretrain, provenance

SPEEDS = ("pretrain", "switches", "finetune", "pack")  # of bench.json
PARTS = (*SPEEDS, "profile", "curves")
SHAPE = ("size", "batch", "steps", "threads")
MODES = ("none", "default", "reduce-overhead")  # of torch.compile, on a GPU
GOALS = {"electra-deberta": 3.0, "deberta": 3.0, "bert": 1.6}  # ratios to float32, on a CPU
# Goals on one H200 in bfloat16, tokens per second; the order in which a GPU takes the models.
RATES = {"electra": 1.2e6, "electra-deberta": 0.6e6, "bert": 1.5e6, "deberta": None}
OPERATIONS = 12  # of a profile
MODELS = ("bert", "deberta", "electra", "electra-deberta")  # of the curves
SIDES = ("stock", "ours, float32", "ours, bfloat16")
POINT, END = 10, 50  # steps averaged into one point of a curve, and into the final loss
PEAK_RATE = 2e-3  # of the curves
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Work:
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
    before = _resident("VmRSS")
    step(1)
    return max(0, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP per second of this machine's products of square matrices, the best of ten."""
    side = 8192 if device.type == "cuda" else 2048
    one, two = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = timed(lambda: one @ two, device)
    return 2 * side**3 / min(seconds(1) for _ in range(10))


def our_step(
    place: Place, data: Inputs, task: nn.Module, dtype: str = "bfloat16", mode: str = "none"
) -> Timed:
    """Optimiser steps of ``pretrain``; like a Trainer, each timing has new moments."""
    vocabulary = objectives.Vocabulary.of(data.tok, place.device)
    segments = batches.Segments(data.rows, place.batch, 0, place.device)
    step = pretrain.Step(task, vocabulary, getattr(torch, dtype), mode=mode)

    def seconds(steps: int) -> float:
        for moments in step.optimiser.state.values():
            for moment in moments.values():
                moment.zero_()
        return timed(lambda: step(segments.batch(0), RATE), place.device)(steps)

    return seconds


def pretraining(place: Place) -> Iterator[Work]:
    """Pre-training steps against transformers'.

    On a CPU a masked language model is compared with the Trainer, in either number format. On a
    GPU all are compared with a plain loop under the same autocast, ours compiled or not.
    """
    data, half = prepare(place), ("bfloat16", "bfloat16")
    collator = transformers.DataCollatorForLanguageModeling(data.tok)
    examples = [{"input_ids": row.tolist()} for row in data.rows]
    forms = [half] if place.gpu else [("float32", "float32"), ("bfloat16", "float32"), half]
    for name, (mine, other) in product(RATES if place.gpu else GOALS, forms):
        halved = other == "bfloat16"
        stock = build(place, name, **STOCK, half=halved)
        if place.gpu or registry.get(name).objective == "rtd":
            theirs, kind = stock_step(place, data, stock, other), "stock classes"
        else:
            theirs = with_trainer(place, stock.model, examples, place.batch, collator, halved)
            kind = "Trainer"
        for mode in MODES if place.gpu else ("none",):
            task = build(place, name)
            label = f"pre-train {name}, {mine}" + (f", {mode}" if mode != "none" else "")
            about = (label, f"{kind}, {other}", "tokens/s", place.batch * LENGTH, place.steps)
            goal = GOALS[name] if not place.gpu and other == "float32" else None
            flops = objectives.flops_per_token(task, LENGTH)
            ours, rate = our_step(place, data, task, mine, mode), RATES[name] if place.gpu else None
            yield Work(*about, ours, theirs, goal, flops, mine, rate)


def switches(place: Place) -> Iterator[Work]:
    """Our bfloat16 step against itself with one thing changed, then against its products."""
    data, amount = prepare(place), place.batch * LENGTH

    def step(name: str, dtype: str = "bfloat16", mode: str = "none", **changes: object) -> Timed:
        return our_step(place, data, build(place, name, **changes), dtype, mode)

    def work(name: str, change: str, theirs: Timed, dtype: str = "bfloat16", **more: float) -> Work:
        task = build(place, name)
        more |= {"flops": objectives.flops_per_token(task, LENGTH), "dtype": dtype}
        about = (f"{name}, {dtype}", change, "tokens/s", amount, place.steps)
        return Work(*about, our_step(place, data, task, dtype), theirs, **more)

    stock_attention = step("deberta", attention=False, half=True)
    yield work("deberta", "with stock attention", stock_attention)
    yield work("deberta", "with torch's dropout", step("deberta", cheap_dropout=False))
    yield work("deberta", "without dropout", step("deberta", rate=0.0))
    yield work("deberta", "with float32", step("deberta", "float32"))
    yield work("deberta", "with torch.compile", step("deberta", mode="default"))
    dense = Dense(build(place, "bert")).train()
    yield work("bert", "with logits everywhere", our_step(place, data, dense))
    noisy = step("electra-deberta")

    def by_gumbel(steps: int) -> float:
        with patch.object(objectives, "corrupt", corrupt_by_gumbel):
            return noisy(steps)

    yield work("electra-deberta", "with Gumbel sampling", by_gumbel)
    for name, dtype in product(("bert", "deberta"), ("float32", "bfloat16")):
        peak = products(place, step(name, dtype), getattr(torch, dtype))
        yield work(name, "its matrix products alone", peak, dtype, goal=0.65)


def products(place: Place, step: Timed, dtype: torch.dtype) -> Timed:
    """The matrix products of one training step at the same shapes, from contiguous operands.

    An estimate of what a step cannot do without; attention counts as the products it is.
    """
    first = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
    with sdpa_kernel(SDPBackend.MATH), profiler(record_shapes=True) as seen:
        step(1)
    pairs = []
    for event in seen.events():
        if (place_of := first.get(event.name.removeprefix("aten::"))) is not None:
            pairs.append([tuple(s) for s in event.input_shapes[place_of : place_of + 2]])
    shapes = {shape for pair in pairs for shape in pair}
    operands = {s: torch.randn(s, device=place.device).to(dtype) for s in shapes}
    return timed(lambda: [operands[one] @ operands[two] for one, two in pairs], place.device)


def finetuning(place: Place, data: str, count: int) -> Iterator[Work]:
    """One epoch over the first rows of three tasks, ours by length against padding to 128."""
    inputs, batch, encoder = prepare(place, data, count), 32, place.folder / "encoder"
    profile, tok = inputs.profile, inputs.tok
    build(place, "electra", **STOCK).model.save_pretrained(encoder)
    changes = {"finetune_batch_size": batch, "max_length": LENGTH, "finetune_learning_rate": 1e-4}
    parameters = config.Finetune(**profile.stage(config.Finetune) | changes)
    for name, goal in (("cola", 5.0), ("sst2", 5.0), ("rte", 1.5)):
        glue.run(config.Data(**profile.stage(config.Data)), name)
        table, task = glue.load(profile.folder, name, "train"), glue.get(name)
        encoded = batches.encode(table, task, tok, LENGTH)
        texts = [table[column].tolist() for column in task.columns]
        padded = tok(*texts, truncation="longest_first", max_length=LENGTH, padding="max_length")
        tok.backend_tokenizer.no_truncation()
        tok.backend_tokenizer.no_padding()
        rows = [
            {key: padded[key][i] for key in padded} | {"label": int(label)}
            for i, label in enumerate(encoded.labels)
        ]
        classifier = transformers.AutoModelForSequenceClassification
        stock = classifier.from_pretrained(encoder, use_safetensors=True)
        mine = finetune.open_encoder(encoder, task, DROPOUT)

        def epoch(mine: nn.Module = mine, encoded: batches.Encoded = encoded) -> None:
            finetune.train(parameters, mine, encoded, tok, 1, 0, torch.float32)

        theirs = with_trainer(place, stock, rows, batch, None, False, -(-len(rows) // batch))
        label = f"fine-tune {task.name} ({f'{len(rows)} rows' if data else 'embedded'})"
        about = (label, f"Trainer, padded to {LENGTH}", "examples/s", len(rows), 1)
        yield Work(*about, timed(epoch, CPU), theirs, goal)


def packing(place: Place, data: str) -> Iterator[Work]:
    """Tokenising and packing in memory against the tokenizer library's encoding alone."""
    inputs = prepare(place, data)
    texts, encoder = inputs.texts, inputs.tok.backend_tokenizer
    ours = timed(lambda: [*tokenizer.pack(texts, inputs.tok, LENGTH)], CPU)
    theirs = timed(lambda: encoder.encode_batch_fast(texts, add_special_tokens=False), CPU)
    size = sum(len(text.encode()) for text in texts) / 1e6
    about = ("tokenise and pack, in memory", "encode_batch_fast alone", "MB/s", size, 1)
    yield Work(*about, ours, theirs, 0.85)


def speeds(place: Place, options: argparse.Namespace) -> Iterator[dict]:
    """bench.json, after every row."""
    peaks = {d: matmul_rate(getattr(torch, d), place.device) for d in ("float32", "bfloat16")}
    parts = {
        "pretrain": lambda: pretraining(place),
        "switches": lambda: switches(place),
        "finetune": lambda: finetuning(place, options.data, options.rows),
        "pack": lambda: packing(place, options.data),
    }
    rows = []
    for work in chain.from_iterable(parts[name]() for name in SPEEDS if name in options.parts):
        row = compare(work, options.pairs, peaks)
        for side in ("ours", "theirs"):
            row[f"memory_{side}"] = peak_memory(getattr(work, side), place.device)
        rows.append(row)
        print(
            f"{row['work']:<38}{row['reference']:<32}{row['ours']:>11,.1f}{row['theirs']:>11,.1f} "
            f"{row['unit']:<11}{row['ratio']:>6.2f}x ({row['ratio_low']:.2f} to "
            f"{row['ratio_high']:.2f})",
            flush=True,
        )
        yield {"peaks": peaks, "rows": rows}


def profile(place: Place, model: str = "electra-deberta", dtype: str = "bfloat16") -> dict:
    """profile.json: the shares of a step's CPU time, by operation, as torch's profiler sees it."""
    step = our_step(place, prepare(place), build(place, model), dtype)
    step(2)
    with profiler(activities=[ProfilerActivity.CPU]) as seen:
        step(place.steps)
    times = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    most = sorted(times, key=times.get, reverse=True)[:OPERATIONS]
    shares = {name: round(times[name] / sum(times.values()), 4) for name in most}
    for name, share in shares.items():
        print(f"{name:<40}{share:>7.1%}")
    return {"model": model, "precision": dtype, "shares": shares}


def losses(place: Place, data: Inputs, name: str, side: str, seed: int) -> list[float]:
    """The loss of every step of one side."""
    segments = batches.Segments(data.rows, place.batch, seed, place.device)
    if side == "stock":
        step = StockStep(place, data, build(place, name, seed=seed, **STOCK), "float32")
    else:
        vocabulary = objectives.Vocabulary.of(data.tok, place.device)
        dtype = getattr(torch, side.split(", ")[1])
        step = pretrain.Step(build(place, name, seed=seed), vocabulary, dtype)
    found = []
    bar = progress.bar(place.steps, f"{name}, {side}, seed {seed}", "steps")
    for number in range(place.steps):
        torch.manual_seed(seeding.derive_seed(seed, "step", number))
        rate = PEAK_RATE * loop.schedule(number, place.steps // 10, place.steps)
        tokens = segments.batch(number)
        if side == "stock":
            found.append(step(list(tokens), rate))
        else:
            step.generator.manual_seed(seeding.derive_seed(seed, "mask", number))
            found.append(step(tokens, rate)["loss"].clone())
        bar.update()
    bar.close()
    return torch.stack(found).tolist()


def curves(place: Place, data: str, seeds: int) -> dict:
    """curves.json: equal quality, the losses of this project's steps beside transformers'."""
    inputs, runs = prepare(place, data), []
    for name, side, seed in product(MODELS, SIDES, range(seeds)):
        found = losses(place, inputs, name, side, seed)
        points = np.array(found)[: len(found) // POINT * POINT].reshape(-1, POINT).mean(1)
        run = {"model": name, "side": side, "seed": seed, "final": fmean(found[-END:])}
        runs.append(run | {"curve": points.round(4).tolist()})
        print(f"{name:<18}{side:<18}{seed}  {run['final']:.4f}", flush=True)
    about = {"vocabulary": place.vocabulary, "steps": place.steps, "rate": PEAK_RATE}
    about |= {"dropout": DROPOUT, "point": POINT, "end": END, "runs": runs}
    return about | {"corpus": "a folder of prose" if data else "the embedded world"}


def measure(options: argparse.Namespace, name: str, make: Callable, **shape: object) -> None:
    """Writes one file of results: where they come from, and what `make` finds at that shape.

    An option that was given goes over the part's own size, batch, steps and threads.
    """
    given = {key: value for key in SHAPE if (value := getattr(options, key))}
    shape |= given
    threads = shape.pop("threads")
    loop.begin(threads)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(folder=Path(folder), **shape)
        about = {"hardware": provenance.hardware(threads), "versions": provenance.versions()}
        about |= {"size": place.size, "length": LENGTH, "batch": place.batch}
        for found in make(place):
            files.write_json(files.resolve(options.out) / name, about | found)
    print(f"written to {options.out / name}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the three files")
    parser.add_argument("--data", default="", help="folder with glue/ and corpus/; else embedded")
    parser.add_argument("--parts", default=",".join(PARTS), help="which of them")
    parser.add_argument("--size", help="row of registry.SIZES; else paper, and mini for curves")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--plan", choices=("cpu", "gpu"), help="of pretrain; else the device's")
    parser.add_argument("--pairs", type=int, default=5, help="timings of either side")
    parser.add_argument("--batch", type=int, help="segments per step; else 16, and 4 for curves")
    parser.add_argument("--steps", type=int, help="in one timing, profile or curve; else 1, 3, 300")
    parser.add_argument("--rows", type=int, default=256, help="examples of a fine-tuning epoch")
    parser.add_argument("--seeds", type=int, default=3, help="curves of either side")
    parser.add_argument("--threads", type=int, help="of the CPU; else all, and one for curves")
    options = parser.parse_args()
    if unknown := set(options.parts.split(",")) - set(PARTS):
        raise UserError(f"--parts {', '.join(unknown)}: known are {', '.join(PARTS)}")
    options.parts = options.parts.split(",")
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the Trainer would take a GPU unasked
    elif not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    large = {"size": "paper", "batch": 16, "threads": os.cpu_count()}
    small = {"size": "mini", "batch": 4, "threads": 1, "vocabulary": 4000}
    if set(options.parts) & set(SPEEDS):
        device, gpu = torch.device(options.device), (options.plan or options.device) != "cpu"
        make = partial(speeds, options=options)
        measure(options, "bench.json", make, device=device, gpu=gpu, steps=1, **large)
    if "profile" in options.parts:
        measure(options, "profile.json", lambda p: [profile(p)], device=CPU, steps=3, **large)
    if "curves" in options.parts:
        make = lambda place: [curves(place, options.data, options.seeds)]  # noqa: E731
        measure(options, "curves.json", make, device=CPU, steps=300, **small)


if __name__ == "__main__":
    run_main(main)
