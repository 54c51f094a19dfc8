"""A study on one large GPU: its notebooks side by side, for one small encoder does not fill it.

All models are pre-trained at once. Each is fine-tuned as soon as it is ready, one notebook a seed,
so that the many short steps of fine-tuning, which wait for their launch, wait at the same time.
Where NVIDIA's multi-process service (MPS) is installed, the notebooks' kernels also run at the same
time; without it they take turns.

    scripts/one_gpu.py --profile hour --data data --minutes 50

What is finished is not done again, so the same command goes on after a stop. Exit status: 0 when
the study is finished, 75 when its minutes were too few.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
import relay

from helpers import beyond, config, files, grid, models, records
from helpers.config import Profile

ROOT = relay.ROOT
SHARED = ("data", "tokenizer", "models", "encoded")  # what seeds have in common with their run
PAUSE = 0.2  # seconds between two looks at what runs
SERVICE = "nvidia-cuda-mps-control"
TRIAL = """
import ctypes
cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
assert not cuda.cuInit(0) and not cuda.cuDeviceGet(ctypes.byref(device), 0)
assert not cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
"""


@dataclass(frozen=True, eq=False)
class Part:
    """One notebook to execute.

    Attributes:
        name: Tells it from others.
        needs: Names of those that must be done before.
        notebook: Of ``notebooks/``, without its ending.
        executed: Where it is written.
        parameters: Of the stage.
    """

    name: str
    needs: tuple[str, ...]
    notebook: str
    executed: Path
    parameters: config.Strict


def parts(profile: Profile, made: bool = False) -> list[Part]:
    """The notebooks of a study in the order they are started.

    Fine-tuning is one notebook a model and seed, each in a folder of its own under ``seeds/``. The
    notebook of the model follows: it finds their records, and trains nothing.

    Args:
        profile: The study.
        made: Whether data and tokenizers are there and not looked at.
    """
    before, seeds, after = [], [], []
    for job in relay.order(profile):
        needs: tuple[str, ...] = ()
        if job.stage == "02_tokenizer":
            needs = ("01_data",)
        elif job.stage == "03_pretrain" and not made:
            needs = (f"02_tokenizer-{models.get(job.model).tokenizer}",)
        elif job.stage == "04_finetune":
            mine = [
                _of_seed(profile, job, seed, (f"03_pretrain-{job.model}",))
                for seed in profile.seeds
            ]
            needs = tuple(part.name for part in mine)
            seeds += mine
        if made and job.stage in ("01_data", "02_tokenizer"):
            continue
        executed = profile.folder / "notebooks" / f"{job.name}.ipynb"
        part = Part(job.name, needs, job.stage, executed, job.parameters)
        (after if job.stage == "04_finetune" else before).append(part)
    before.sort(key=lambda part: part.notebook)
    seeds.sort(key=lambda part: part.parameters.seeds)
    return [*before, *seeds, *after]


def _of_seed(profile: Profile, job: grid.Job, seed: int, needs: tuple[str, ...]) -> Part:
    runs = profile.folder / "seeds" / str(seed)
    executed = runs / profile.profile / "notebooks" / f"{job.name}.ipynb"
    parameters = job.parameters.model_copy(update={"runs": str(runs), "seeds": [seed]})
    return Part(f"{job.name}-seed-{seed}", needs, job.stage, executed, parameters)


def share(profile: Profile) -> None:
    """Makes the folders of the seeds, which have all but their records in common with the run."""
    for seed in profile.seeds:
        view = profile.folder / "seeds" / str(seed) / profile.profile
        view.mkdir(parents=True, exist_ok=True)
        for name in SHARED:
            (profile.folder / name).mkdir(exist_ok=True)
            if not (view / name).exists():
                (view / name).symlink_to(Path("../../..") / name)
        for record in sorted(profile.folder.glob(f"records/*/*/seed-{seed}.json")):
            if not (view / record.relative_to(profile.folder)).exists():
                _copy(record, profile.folder, view)


def gather(profile: Profile) -> None:
    """Copies finished records and predictions of the seeds to the run's own."""
    for seed in profile.seeds:
        view = profile.folder / "seeds" / str(seed) / profile.profile
        for record in sorted(view.glob(f"records/*/*/seed-{seed}.json")):
            target = profile.folder / record.relative_to(view)
            if target.exists() and target.read_bytes() == record.read_bytes():
                continue
            for name in (files.MANIFEST, files.KEPT):  # of what is replaced
                (target.parent / name).unlink(missing_ok=True)
            _copy(record, view, profile.folder)


def _copy(record: Path, source: Path, target: Path) -> None:
    """Copies predictions and, last, the record that vouches for them, from one run to another."""
    for path in (record.with_suffix(".parquet"), record):
        if path.exists():
            with files.replacing(target / path.relative_to(source)) as temporary:
                temporary.write_bytes(path.read_bytes())


def run(profile: Profile, end: float, at_once: int, made: bool = False) -> bool:
    """Executes the notebooks of a study, `at_once` of them at a time, until `end`.

    Args:
        profile: The study.
        end: When to stop, of time.monotonic.
        at_once: Notebooks that run at the same time.
        made: As for :func:`parts`.

    Returns:
        Whether the study is finished.

    Raises:
        UserError: When notebooks failed. What does not depend on them is done before.
    """
    if at_once < 1:
        raise config.UserError(f"--at-once {at_once}: must be at least 1")
    waiting, done, failed = parts(profile, made), set(), []
    running: dict[Part, subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            if time.monotonic() >= end:
                break
            ready = [part for part in waiting if done.issuperset(part.needs)]
            for part in ready[: at_once - len(running)]:
                waiting.remove(part)
                if part.notebook == "04_finetune":
                    gather(profile)
                if _finished(profile, part):
                    done.add(part.name)
                else:
                    running[part] = _start(part)
            for part, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[part]
                if process.returncode:
                    failed.append(part.name)
                else:
                    done.add(part.name)
            if not running and not any(done.issuperset(part.needs) for part in waiting):
                break  # what waits needs something that failed
            time.sleep(PAUSE)
    finally:
        relay.end_all(running.values())
        gather(profile)
    if failed:
        raise config.UserError(f"{', '.join(failed)}: failed; what they said stands above")
    return not waiting and not running


def _finished(profile: Profile, part: Part) -> bool:
    if part.notebook == "03_pretrain":
        job = next(job for job in relay.order(profile) if job.name == part.name)
        return grid.look(profile, job).state == "done"
    return False  # the others do nothing twice and see changed inputs


def _start(part: Part) -> subprocess.Popen[bytes]:
    # Of MPS: what others wait for goes first.
    later = {"CUDA_MPS_CLIENT_PRIORITY": "1"} if part.notebook == "04_finetune" else {}
    return relay.start(part.notebook, part.executed, part.parameters, later)


def pretrained(profile: Profile) -> list[dict[str, Any]]:
    """Manifests of the models that a run has pre-trained, by name."""
    found = [files.read_json(path) for path in profile.folder.glob("models/*/manifest.json")]
    found = [about for about in found if about["objective"] != "none"]
    return sorted(found, key=lambda about: about["model"])


def report(profile: Profile) -> dict[str, Any]:
    """What a run has come to, finished or not, for ``results/side_by_side.json``.

    Raises:
        UserError: When no model is pre-trained.
    """
    trained = pretrained(profile)
    if not trained:
        raise config.UserError(f"{profile.folder}: no model is pre-trained, so nothing to report")
    first = trained[0]
    return {
        **{key: first[key] for key in ("size", "corpus", "hardware", "versions")},
        "profile": profile.profile,
        "commit": first["code"]["commit"],
        "steps": first["pretrain"]["steps"],
        "batch": profile.pretrain_batch_size,
        "length": profile.max_length,
        "models": [_trained(profile.folder, about) for about in trained],
        "cells": _cells(profile.folder / "records"),
    }


def _trained(run: Path, about: dict[str, Any]) -> dict[str, Any]:
    folder = run / "models" / about["model"]
    last = pd.read_csv(folder / "log.csv").iloc[-1].to_dict()
    here = (folder / "encoder").exists()  # or it stayed on another machine
    return {
        "model": about["model"],
        **{key: about["pretrain"][key] for key in ("tokens", "epochs", "seconds")},
        "effective_rank": round(beyond.effective_rank(run, about["model"]), 1) if here else None,
        "losses": {name: value for name, value in last.items() if "loss" in name},
    }


def _cells(folder: Path) -> list[dict[str, Any]]:
    """Medians of the finished fine-tunings; cells that lack seeds are not sealed, and count."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/*/seed-*.json")):
        record = records.read(path)
        cells.setdefault((record["model"], record["task"]), []).append(record)
    return [
        {
            "model": model,
            "task": task,
            "n": len(found),
            "median": round(median(record["score"] for record in found), 2),
            "step_seconds": sum(record["finetune"]["seconds"] for record in found)
            / sum(record["finetune"]["steps"] for record in found),
        }
        for (model, task), found in cells.items()
    ]


@contextlib.contextmanager
def shared_gpu(folder: Path) -> Iterator[bool]:
    """The multi-process service while inside, with its files in `folder`; whether there is one."""
    path = shutil.which(SERVICE)
    if path is None:
        yield False
        return
    places = {"CUDA_MPS_PIPE_DIRECTORY": folder / "pipe", "CUDA_MPS_LOG_DIRECTORY": folder / "log"}
    for name, place in places.items():
        place.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(place)
    with contextlib.ExitStack() as after:
        for name in places:
            after.callback(os.environ.pop, name, None)
        started = subprocess.run([path, "-d"], check=False).returncode == 0
        if started:
            after.callback(subprocess.run, [path], input=b"quit\n", check=False)
            started = subprocess.run([sys.executable, "-c", TRIAL], check=False).returncode == 0
        if not started:
            after.close()  # notebooks take turns
        yield started


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    relay.study_options(parser)
    parser.add_argument("--minutes", type=float, default=60.0, help="until it stops")
    parser.add_argument("--at-once", type=int, default=24, help="notebooks at the same time")
    parser.add_argument("--made", action="store_true", help="data and tokenizers are there")
    parser.add_argument("--no-mps", action="store_true", help="let the notebooks take turns")
    parser.add_argument("--report", type=Path, help="JSON file for what the run has come to")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    profile = relay.chosen(options, threads=1, finetune_job="model")
    signal.signal(signal.SIGTERM, relay.stop)
    with files.holding(profile.folder):
        share(profile)
        service = contextlib.nullcontext(False)
        if not options.no_mps:
            service = shared_gpu(profile.folder / "mps")
        with service as shared:
            print(f"multi-process service: {'on' if shared else 'none'}", file=sys.stderr)
            done = run(profile, end, options.at_once, options.made)
    if options.report and (done or pretrained(profile)):
        files.write_json(options.report, report(profile))
    print("the study is finished" if done else "not finished: run it again", file=sys.stderr)
    return 0 if done else config.PREEMPTED


if __name__ == "__main__":
    config.run_main(main)
