"""Where the time of one pre-training step goes, by operation, as torch's profiler sees it.

`make bench` calls it. Rows go to runs/profile.json.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from bench_work import Place, build, embedded, origin, our_step

from helpers.base import files
from helpers.base.errors import run_main
from helpers.train import loop

SHOWN = 12  # operations


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/profile.json"))
    parser.add_argument("--model", default="electra-deberta", help="name in the registry")
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--size", default="paper", help="row of models.SIZES")
    parser.add_argument("--batch", type=int, default=16, help="segments per step")
    parser.add_argument("--steps", type=int, default=3, help="steps profiled, after two")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    options = parser.parse_args()
    loop.begin(options.threads)
    with tempfile.TemporaryDirectory() as name:
        cpu = torch.device("cpu")
        place = Place(cpu, options.size, options.batch, options.steps, Path(name))
        step = our_step(place, embedded(place), build(place, options.model), options.precision)
        step(2)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            step(options.steps)
    times = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    total = sum(times.values())
    most = sorted(times, key=times.get, reverse=True)[:SHOWN]
    found = origin(place, options.threads) | {
        "model": options.model,
        "precision": options.precision,
        "shares": {name: round(times[name] / total, 4) for name in most},
    }
    for name, share in found["shares"].items():
        print(f"{name:<40}{share:>7.1%}")
    files.write_text(files.resolve(options.out), json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
