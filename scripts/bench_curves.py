"""Equal quality: the losses of this project's steps beside transformers', same data, same seeds.

`make bench` calls it after the timings. Each model is trained a few hundred steps by our loop in
either number format and by a plain loop over stock classes, from the same weights on the same
segments in the same order (modules are exchanged after weights are drawn). Masks and dropout are
drawn by each side itself, so seeds give the noise. Curves go to runs/curves.json.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from bench_work import (
    DROPOUT,
    Corpus,
    Place,
    StockLoop,
    build,
    build_stock,
    origin,
    prepare,
)

from helpers.base import files, progress, seeding
from helpers.base.errors import run_main
from helpers.data import corpus
from helpers.train import loop, objectives, pretrain

MODELS = ("bert", "deberta", "electra", "electra-deberta")
SIDES = ("stock", "ours, float32", "ours, bfloat16")
POINT = 10  # steps averaged into one point of a curve
END = 50  # steps whose mean is the final loss


def curve(
    place: Place, data: Corpus, name: str, side: str, seed: int, steps: int, rate: float
) -> list[float]:
    """The loss of every step."""
    segments = pretrain.Segments(data.rows, place.batch, seed, place.device)
    if side == "stock":
        loop = StockLoop(place, data, build_stock(place, name, seed), "float32")
    else:
        dtype = getattr(torch, side.split(", ")[1])
        vocabulary = objectives.Vocabulary.of(data.tok, place.device)
        step = pretrain.Step(build(place, name, seed=seed), vocabulary, dtype)
    losses = []
    bar = progress.bar(steps, f"{name}, {side}, seed {seed}", "steps")
    for number in range(steps):
        torch.manual_seed(seeding.derive_seed(seed, "step", number))
        now = rate * loop.schedule(number, steps // 10, steps)
        tokens = segments.batch(number)
        if side == "stock":
            losses.append(loop(list(tokens), now))
        else:
            step.generator.manual_seed(seeding.derive_seed(seed, "mask", number))
            losses.append(step(tokens, now)["loss"].clone())
        bar.update()
    bar.close()
    return torch.stack(losses).tolist()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/curves.json"))
    parser.add_argument("--data", default="", help="folder with glue/ and corpus/; else embedded")
    parser.add_argument("--size", default="mini", help="row of models.SIZES")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4, help="segments per step")
    parser.add_argument("--vocabulary", type=int, default=4000, help="tokens, at most")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak of the learning rate")
    parser.add_argument("--seeds", type=int, default=3, help="runs of either side")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    loop.begin(options.threads)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        cpu = torch.device("cpu")
        place = Place(cpu, options.size, options.batch, 1, Path(folder), options.vocabulary)
        profile, tok = prepare(place, options.data, 8)
        texts = corpus.read(profile.folder / "data" / "corpus")
        data = Corpus(place, texts, tok)
        for name in MODELS:
            for side in SIDES:
                for seed in range(options.seeds):
                    losses = curve(*(place, data, name, side, seed), options.steps, options.rate)
                    points = np.array(losses)[: len(losses) // POINT * POINT]
                    runs.append(
                        {
                            "model": name,
                            "side": side,
                            "seed": seed,
                            "final": float(np.mean(losses[-END:])),
                            "curve": points.reshape(-1, POINT).mean(1).round(4).tolist(),
                        }
                    )
                    print(f"{name:<18}{side:<18}{seed}  {runs[-1]['final']:.4f}", flush=True)
    found = origin(place, options.threads) | {
        "vocabulary": options.vocabulary,
        "steps": options.steps,
        "rate": options.rate,
        "dropout": DROPOUT,
        "point": POINT,
        "end": END,
        "corpus": "a folder of prose" if options.data else "the embedded world",
        "runs": runs,
    }
    files.write_text(files.resolve(options.out), json.dumps(found, indent=1) + "\n")
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    run_main(main)
