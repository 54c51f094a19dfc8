"""Kills runs at random moments (SIGKILL) until one ends in peace.

As a program it trains one small model so, and once undisturbed: in a process of its own, because
it forks.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from makers import make_inputs

from helpers.base import config, files
from helpers.train import finetune, pretrain, records

SHAPE = {
    **{"documents": 200, "train_rows": 48, "dev_rows": 24, "world_words": 200},
    **{"max_length": 64, "wordpiece_vocabulary": 400, "bpe_vocabulary": 400},
    **{"pretrain_steps": 250, "pretrain_batch_size": 8, "pretrain_warmup": 0.015},
    **{"checkpoint_steps": 7, "finetune_epochs": 4, "finetune_epochs_small": 4, "threads": 1},
}


def profile(runs):
    """One model and one task, of seconds."""
    changes = SHAPE | {"runs": str(runs), "profile": "kills"}
    return config.load_profile("tiny", **changes, seeds=[0], tasks=["cola"], models=["bert"])


def killed(work, kills, chance):
    """Runs `work` in child processes and kills `kills` of them; the last must end well."""
    while True:
        child = os.fork()
        if child == 0:
            work()
            os._exit(0)
        if kills:
            time.sleep(chance.uniform(0.05, 1.5))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0
            return
        kills -= 1


def kill_study(command, kills, chance):
    """Runs a whole study, kills it with every process it has started, until it ends in peace.

    Each kill lets the run live a little longer than the last, so that they fall into every stage.
    """
    done = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait = chance.uniform(1, 20 + 5 * done) if done < kills else None
            assert process.wait(wait) == 0
            return done
        except subprocess.TimeoutExpired:
            kill_tree(psutil.Process(process.pid))
            process.wait()
            done += 1


def kill_tree(top):
    """SIGKILL to a process and all that it has started, each stopped first."""
    stopped = set()
    while new := {top, *top.children(recursive=True)} - stopped:
        for process in new:
            send(process, signal.SIGSTOP)
        stopped |= new
    for process in stopped:
        send(process, signal.SIGKILL)


def send(process, number):
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # it has ended by itself


def outcome(run):
    """What must be the same bytes; of a record, all but its times."""
    patterns = ("models/*/encoder/model.safetensors", "models/*/log.csv", "records/*/*/*.parquet")
    paths = [path for pattern in (*patterns, "tables/summary.txt") for path in run.glob(pattern)]
    found = {str(path.relative_to(run)): files.sha256(path) for path in paths}
    for path in run.glob("records/*/*/seed-*.json"):
        record = records.read(path)
        for part in (record["pretrain"], record["finetune"]):
            part.pop("seconds", None)  # differ from run to run
        found[str(path.relative_to(run))] = record
    assert not list(run.rglob("checkpoint-*")), "a finished run has left a checkpoint"
    return found


def main(folder, kills):
    for name, count in (("whole", 0), ("cut", kills)):
        study = profile(folder / name)

        def train(study=study):
            (model,) = study.models
            pretrain.run(config.Pretrain(**study.stage(config.Pretrain, model=model)))
            finetune.run(config.Finetune(**study.stage(config.Finetune, model=model)))

        killed(lambda study=study: make_inputs(study), 0, None)
        killed(train, count, random.Random(0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
