"""Speed, side by side in one run: this project against transformers used the ordinary way.

`make bench` calls it. Each work is timed theirs, ours, theirs, ours...; the ratio is taken pair by
pair, because machines are noisy, and its median is what counts. Rows go to runs/bench.json, each as
it is done. What is timed stands in bench_work.py.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from bench_work import (
    MODES,
    PARTS,
    Place,
    Work,
    finetuning,
    origin,
    packing,
    pretraining,
    switches,
)

from helpers.base import files
from helpers.base.errors import UserError, run_main
from helpers.train import loop

RAM = Path("/proc/self/status")


def compare(work: Work, pairs: int) -> dict[str, object]:
    """Times one work.

    Args:
        work: What to time.
        pairs: Timings of either side, alternating, after one that is thrown away.

    Returns:
        work, reference, ours and theirs (units per second, medians), ratio (median over pairs),
        ratio_low, ratio_high, goal, rate_goal, unit, n (pairs), warmup_ours and warmup_theirs
        (seconds that the timing thrown away took beyond the median: compiling, first allocations),
        flops (of our model, per second, or None).
    """
    timings = [(work.theirs(work.steps), work.ours(work.steps)) for _ in range(pairs + 1)]
    first, found = timings[0], timings[1:]
    amount = work.units * work.steps
    ratios = [theirs / ours for theirs, ours in found]
    their_time, our_time = (median(side) for side in zip(*found, strict=True))
    return {
        "work": work.name,
        "reference": work.reference,
        "ours": amount / our_time,
        "theirs": amount / their_time,
        "ratio": median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "goal": work.goal,
        "rate_goal": work.rate,
        "unit": work.unit,
        "n": pairs,
        "warmup_ours": max(0.0, first[1] - our_time),
        "warmup_theirs": max(0.0, first[0] - their_time),
        "flops": amount / our_time * work.flops if work.flops else None,
    }


def memory(work: Work, device: torch.device) -> dict[str, int | None]:
    """Bytes that one step of either side holds at its peak beyond what lay there before it.

    Weights lay there; activations, gradients and a new optimiser's moments did not. On a GPU torch
    counts, on Linux the kernel does (resident memory); None elsewhere.
    """
    return {f"memory_{side}": _peak(getattr(work, side), device) for side in ("ours", "theirs")}


def _peak(timed: object, device: torch.device) -> int | None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        timed(1)
        # A step that was recorded as a CUDA graph holds its memory from then on: nothing to see.
        return torch.cuda.max_memory_allocated() - before or None
    try:
        _give_back_free_memory()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        return None
    before = _resident("VmRSS")
    timed(1)
    return max(0, _resident("VmHWM") - before)


def _give_back_free_memory() -> None:
    import ctypes

    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident(name: str) -> int:
    line = next(line for line in RAM.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP per second of this machine's products of square matrices, the best of ten."""
    side = 8192 if device.type == "cuda" else 2048
    one, two = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        loop.wait(device)
        began = time.perf_counter()
        one @ two
        loop.wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def show(row: dict[str, object]) -> str:
    """One row of the table, aligned."""
    goal = f"goal {row['goal']:.2f}" if row["goal"] else ""
    goal += f"goal {row['rate_goal']:,.0f}/s" if row["rate_goal"] else ""
    use = f"MFU {row['mfu']:.0%}" if row["mfu"] else ""
    sizes = [row["memory_ours"], row["memory_theirs"]]
    held = " / ".join(f"{size / 2**20:,.0f}" for size in sizes) + " MiB" if all(sizes) else ""
    return (
        f"{row['work']:<38}{row['reference']:<32}{row['ours']:>11,.1f}{row['theirs']:>11,.1f} "
        f"{row['unit']:<11}{row['ratio']:>6.2f}x ({row['ratio_low']:.2f} to "
        f"{row['ratio_high']:.2f})  {use:<8} {held:<19} {goal}"
    )


def works(options: argparse.Namespace, place: Place) -> Iterator[Work]:
    """The comparisons asked for, each made when its turn comes."""
    parts = {
        "pretrain": lambda: pretraining(place),
        "switches": lambda: switches(place),
        "finetune": lambda: finetuning(place, options.data, options.rows),
        "pack": lambda: packing(place, options.data),
    }
    return chain.from_iterable(parts[part]() for part in options.parts.split(","))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"))
    parser.add_argument("--data", default="", help="folder with glue/ and corpus/; else embedded")
    parser.add_argument("--size", default="paper", help="row of models.SIZES")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--plan", default="", choices=("", "cpu", "gpu"), help="else the device's")
    parser.add_argument("--parts", default=",".join(PARTS), help="which comparisons")
    parser.add_argument("--modes", default=",".join(MODES), help="of torch.compile, on a GPU")
    parser.add_argument("--pairs", type=int, default=5, help="timings of either side")
    parser.add_argument("--batch", type=int, default=16, help="segments per pre-training step")
    parser.add_argument("--steps", type=int, default=1, help="pre-training steps in one timing")
    parser.add_argument("--rows", type=int, default=256, help="examples of a fine-tuning epoch")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    options = parser.parse_args()
    unknown = set(options.parts.split(",")) - set(PARTS)
    if unknown:
        raise UserError(f"--parts {', '.join(unknown)}: known are {', '.join(PARTS)}")
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the Trainer would take a GPU unasked
    elif not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU")
    loop.begin(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    device = torch.device(options.device)
    peaks = {d: matmul_rate(getattr(torch, d), device) for d in ("float32", "bfloat16")}
    print(
        *(f"{name} products: {rate / 1e9:,.0f} GFLOP/s" for name, rate in peaks.items()), sep=", "
    )
    out = files.resolve(options.out)
    with tempfile.TemporaryDirectory() as name:
        plan = options.plan or ("gpu" if options.device == "cuda" else "cpu")
        place = Place(device, options.size, options.batch, options.steps, Path(name), plan=plan)
        place = replace(place, modes=tuple(options.modes.split(",")))
        found = origin(place, options.threads) | {"peaks": peaks, "rows": []}
        for work in works(options, place):
            row = compare(work, options.pairs) | memory(work, device)
            flops = row.pop("flops")
            row["mfu"] = flops / peaks[work.dtype] if flops else None
            found["rows"].append(row)
            print(show(row), flush=True)
            files.write_text(out, json.dumps(found, indent=2) + "\n")
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    run_main(main)
