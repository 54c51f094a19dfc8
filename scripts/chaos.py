"""Kills runs at random moments and compares what comes out with an undisturbed run.

`make chaos` calls it. Training: each model is pre-trained and fine-tuned twice on a small embedded
world, once in peace, once in processes that are killed (SIGKILL) again and again until one lives to
the end. The grid: the same with the whole of `make book`, with every process it has started.
Weights, loss log, predictions, tables and all of each record but its times must be the same bytes.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
import yaml

from helpers.base import config, files
from helpers.base.errors import UserError, run_main
from helpers.study import prepare
from helpers.train import finetune, pretrain, records

ROOT = Path(__file__).resolve().parent.parent
WORLD = {"documents": 200, "train_rows": 48, "dev_rows": 24, "world_words": 200}
SHAPE = {"max_length": 64, "wordpiece_vocabulary": 400, "bpe_vocabulary": 400}
STEPS = {"pretrain_steps": 410, "pretrain_batch_size": 8, "pretrain_warmup": 0.015}
KEEP = {"checkpoint_steps": 7, "finetune_epochs": 6, "finetune_epochs_small": 6, "threads": 1}
TASKS, SEEDS = ["cola"], [0]
TABLES = ("summary.txt", "table1_measured.md", "comparisons.md", "scratch.md")


def profile(runs: Path, models: list[str]) -> config.Profile:
    """A study of seconds."""
    changes = WORLD | SHAPE | STEPS | KEEP | {"runs": str(runs), "profile": "chaos"}
    return config.load_profile("tiny", **changes, seeds=SEEDS, tasks=TASKS, models=models)


def train(study: config.Profile, model: str) -> None:
    """Both stages that train."""
    pretrain.run(config.Pretrain(**study.stage(config.Pretrain, model=model)))
    finetune.run(config.Finetune(**study.stage(config.Finetune, model=model)))


def killed(work: Callable[[], None], kills: int, chance: random.Random) -> int:
    """Runs `work` in child processes, which are killed at random moments, until one ends in peace.

    Returns:
        How many were killed: `kills`, or fewer where one ended before its moment came.
    """
    done = 0
    while True:
        child = os.fork()
        if child == 0:
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (ends with the process)
            work()
            os._exit(0)
        if done < kills:
            time.sleep(chance.uniform(0.05, 1.5))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            done += 1
        elif os.waitstatus_to_exitcode(status):
            raise UserError("a run that was not killed failed; its error stands above")
        else:
            return done


def grid(study: config.Profile, kills: int, chance: random.Random) -> int:
    """Runs the front door of the study, killed with all its processes, until it ends in peace.

    The first kill comes within a third of a minute; each later one lets the run live a little
    longer than the last, so that kills fall into every stage and not into the first alone.

    Returns:
        How many times it was killed.
    """
    path = study.folder.parent / "chaos.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(json.loads(study.model_dump_json())), encoding="utf-8")
    command = [sys.executable, "-m", "helpers.study.cli", "run", "--profile", str(path)]
    for done in range(kills + 1):
        process = subprocess.Popen([*command, "--cores", "2"], cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            wait = chance.uniform(1, 20 + 5 * done) if done < kills else None
            if process.wait(wait):
                raise UserError("a study that was not killed failed; why stands above")
            return done
        except subprocess.TimeoutExpired:
            _kill(psutil.Process(process.pid))
            process.wait()
    raise AssertionError("the last run is waited for")


def _kill(top: psutil.Process) -> None:
    """SIGKILL to a process and all that it has started, each stopped first."""
    stopped: set[psutil.Process] = set()
    while new := {top, *top.children(recursive=True)} - stopped:
        for process in new:
            _signal(process, signal.SIGSTOP)
        stopped |= new
    for process in stopped:
        _signal(process, signal.SIGKILL)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # it has ended by itself


def outcome(study: config.Profile, model: str) -> dict[str, object]:
    """What a run leaves of one model: hashes, and the records without their times."""
    folder = study.folder / "models" / model
    found: dict[str, object] = {
        name: files.sha256(folder / name) for name in ("encoder/model.safetensors", "log.csv")
    }
    for task in study.tasks:
        cell = records.folder(study.folder, model, task)
        for seed in study.seeds:
            record = records.repeatable(records.read(cell / f"seed-{seed}.json"))
            found |= {f"{task} {seed} {name}": value for name, value in record.items()}
    return found


def tables(study: config.Profile) -> dict[str, object]:
    """Hashes of the tables that hold scores and no times."""
    folder = study.folder / "tables"
    return {f"tables/{name}": files.sha256(folder / name) for name in TABLES}


def left(study: config.Profile, model: str) -> bool:
    """Whether a finished run has left a checkpoint behind."""
    places = (study.folder / "models" / model, study.folder / "checkpoints" / model)
    return any(list(place.rglob("checkpoint-*")) for place in places)


def report(name: str, kills: int, wanted: dict[str, object], found: dict[str, object]) -> bool:
    """Prints one line of the comparison; True when both are the same."""
    differ = [key for key in wanted if wanted[key] != found.get(key)]
    print(f"{name}: {kills} kills, " + (f"differs in {differ}" if differ else "same bytes"))
    return not differ


def trained(folder: Path, model: str, kills: int, chance: random.Random) -> bool:
    """Trains one model in peace and under kills; whether both ended the same."""
    whole, cut = (profile(folder / kind, [model]) for kind in ("whole", "cut"))
    for study in (whole, cut):
        killed(lambda study=study: prepare.make_inputs(study), 0, chance)
    killed(lambda: train(whole, model), 0, chance)
    kills = killed(lambda: train(cut, model), kills, chance)
    wanted, found = (
        outcome(study, model) | {"checkpoints left": left(study, model)} for study in (whole, cut)
    )
    return report(model, kills, wanted | {"checkpoints left": False}, found)


def studied(folder: Path, kills: int, chance: random.Random) -> bool:
    """Runs the whole study in peace and under kills; whether both ended the same."""
    whole, cut = (profile(folder / kind, ["electra", "scratch"]) for kind in ("whole", "cut"))
    grid(whole, 0, chance)
    kills = grid(cut, kills, chance)
    wanted, found = (outcome(study, "electra") | tables(study) for study in (whole, cut))
    return report("grid", kills, wanted, found)


def main() -> int:
    """Command line; 1 when a killed run ends otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["bert", "roberta", "electra-deberta"])
    parser.add_argument("--kills", type=int, default=20, help="of each model's training")
    parser.add_argument("--grid", type=int, default=0, help="kills of the whole study")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    chance, same = random.Random(options.seed), True
    for model in options.models:
        with tempfile.TemporaryDirectory() as name:
            same &= trained(Path(name), model, options.kills, chance)
    if options.grid:
        with tempfile.TemporaryDirectory() as name:
            same &= studied(Path(name), options.grid, chance)
    return 0 if same else 1


if __name__ == "__main__":
    run_main(main)
