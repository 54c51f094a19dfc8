"""Kills training at random moments and compares what comes out with an undisturbed run.

`make chaos` calls it. Each model is pre-trained and fine-tuned twice on a small embedded world:
once in peace, once in processes that are killed (SIGKILL) again and again until one lives to the
end. Weights, loss log, predictions and scores must be the same bytes.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import config, corpus, files, finetune, glue, pretrain, records, tokenizer

WORLD = {"documents": 200, "train_rows": 48, "dev_rows": 24, "world_words": 200}
SHAPE = {"max_length": 64, "wordpiece_vocabulary": 400, "bpe_vocabulary": 400}
STEPS = {"pretrain_steps": 410, "pretrain_batch_size": 8, "pretrain_warmup_steps": 6}
KEEP = {"checkpoint_steps": 7, "finetune_epochs": 6, "finetune_epochs_small": 6, "threads": 1}
TASKS, SEEDS = ["cola"], [0]


def profile(runs: Path, name: str) -> config.Profile:
    """A study of seconds."""
    changes = WORLD | SHAPE | STEPS | KEEP | {"runs": str(runs), "profile": name, "seeds": SEEDS}
    return config.load_profile("tiny", **changes, tasks=TASKS)


def prepare(study: config.Profile) -> None:
    """Data and tokenizers."""
    data = config.Data(**study.stage(config.Data))
    corpus.run(data)
    for task in study.tasks:
        glue.run(data, task)
    for kind in ("wordpiece", "bpe"):
        tokenizer.run(config.Tokenizer(**study.stage(config.Tokenizer, tokenizer_kind=kind)))


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
            raise config.UserError("a run that was not killed failed; its error stands above")
        else:
            return done


def outcome(study: config.Profile, model: str) -> dict[str, str | float]:
    """Hashes and scores of what a run leaves."""
    folder = study.folder / "models" / model
    found: dict[str, str | float] = {
        name: files.sha256(folder / name) for name in ("encoder/model.safetensors", "log.csv")
    }
    for task in study.tasks:
        cell = records.folder(study.folder, model, task)
        for seed in study.seeds:
            record = records.read(cell / f"seed-{seed}.json")
            found[f"{task} {seed}"] = record["score"]
            found[f"{task} {seed} predictions"] = record["predictions"]
    return found


def left(study: config.Profile, model: str) -> bool:
    """Whether a finished run has left a checkpoint behind."""
    places = (study.folder / "models" / model, study.folder / "checkpoints" / model)
    return any(list(place.rglob("checkpoint-*")) for place in places)


def main() -> int:
    """Command line; 1 when a killed run ends otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["bert", "roberta", "electra-deberta"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    chance, wrong = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as name:
        whole, cut = (profile(Path(name), kind) for kind in ("whole", "cut"))
        for study in (whole, cut):
            killed(lambda study=study: prepare(study), 0, chance)
        for model in options.models:
            killed(lambda model=model: train(whole, model), 0, chance)
            kills = killed(lambda model=model: train(cut, model), options.kills, chance)
            wanted, found = outcome(whole, model), outcome(cut, model)
            differ = [key for key in wanted if wanted[key] != found[key]]
            differ += ["checkpoints left"] if left(cut, model) else []
            wrong += len(differ)
            print(
                f"{model}: {kills} kills, " + (f"differs in {differ}" if differ else "same bytes")
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    config.run_main(main)
