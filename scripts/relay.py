"""Runs a study in short turns, each on a machine that may be new: unpack, go on, stop, pack.

One turn: what the last turn packed is unpacked; notebooks run one after another, model by model,
until all is done or the time is up; then training saves itself, and what the next turn needs is
packed into pieces of a few megabytes. Data and tokenizers are made again where they are missing.
Exit status: 0 when the study is finished, 75 when another turn is needed.

    scripts/relay.py --profile hour --data data --state state --out state --minutes 9

It needs papermill and ipykernel beside the core; Snakemake and the book's tools it does not.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import carry, config, files, glue, grid
from helpers.config import Profile

ROOT = Path(__file__).resolve().parent.parent
GRACE = 60  # seconds that a notebook has to save its state
MIB = 2**20
RECORDS = 8 * MIB  # of the pieces, for what is not an encoder


def order(profile: Profile) -> list[grid.Job]:
    """The notebooks of a study, data first, then model by model; no analysis and no book."""
    place = {name: number for number, name in enumerate(profile.models)}
    found = [job for job in grid.jobs(profile) if job.stage <= "04_finetune"]
    return sorted(found, key=lambda job: (job.stage > "02_tokenizer", place.get(job.model, -1)))


def finished(profile: Profile) -> set[str]:
    """Models whose fine-tunings are all done."""
    tunings = [job for job in order(profile) if job.stage == "04_finetune"]
    left = {job.model for job in tunings if grid.look(profile, job).state != "done"}
    return {job.model for job in tunings} - left


class Turn(NamedTuple):
    """What a turn came to: whether the study is finished, and whether it trained anything."""

    finished: bool
    trained: bool


def turn(profile: Profile, end: float, room: int = 2**62, trained: bool = False) -> Turn:
    """Runs jobs until `end`.

    Args:
        profile: The study.
        end: When to stop, of time.monotonic.
        room: Bytes that an encoder may have on its way to the next machine.
        trained: Whether this call has trained another study before.

    Raises:
        UserError: When a job fails; its own line stands above. Or when nothing was trained because
            data and tokenizers took all the time.
    """
    for job in order(profile):
        # Data and tokenizers are looked at each time: they do nothing twice, and see other data.
        if job.stage in grid.TRAINED and grid.look(profile, job).state == "done":
            continue
        if time.monotonic() >= end:
            return Turn(False, trained)
        trained = trained or job.stage in grid.TRAINED
        status = execute(job, profile.folder / "notebooks" / f"{job.name}.ipynb", end)
        if status == config.PREEMPTED and not trained:
            raise config.UserError(
                "minutes: data and tokenizers alone take longer, and a new machine makes them "
                "again; give a turn more"
            )
        if status == config.PREEMPTED:
            return Turn(False, trained)
        if status:
            raise config.UserError(f"{job.name}: failed; what it said stands above")
        if job.stage == "03_pretrain":
            line = carry.settle(profile.folder / "models" / job.model, room)
            if line:
                print(line, file=sys.stderr)
    return Turn(True, trained)


def go(
    profile: Profile,
    end: float,
    state: Path | None,
    out: Path,
    limit: int,
    piece: int,
    trained: bool = False,
) -> Turn:
    """One turn: unpacks `state`, runs jobs until `end`, packs into `out`.

    Args:
        profile: The study.
        end: When to stop, of time.monotonic.
        state: Pieces of the last turn; none, or an empty folder, at the first.
        out: Folder for the pieces.
        limit: Bytes of all pieces.
        piece: Bytes of one.
        trained: As for :func:`turn`.

    Raises:
        UserError: When a job fails or the pieces cannot be read or written.
        Preempted: After SIGTERM; what there is has been packed.
    """
    with files.holding(profile.folder):
        if state and (state / "carry.json").exists():
            for line in carry.unpack(state, profile.folder):
                print(f"carried: {line}", file=sys.stderr)
        signal.signal(signal.SIGTERM, stop)
        try:
            return turn(profile, end, limit - RECORDS, trained)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing comes between
            for line in carry.pack(profile.folder, out, limit, piece, finished(profile)):
                print(f"packed: {line}", file=sys.stderr)


def small_first(profile: Profile) -> Profile:
    """The profile with the tasks that its data has, those with few rows first."""
    tasks = glue.available(profile.source, profile.data, profile.tasks)
    tasks.sort(key=lambda name: glue.train_rows(profile.source, profile.data, name))
    return profile.model_copy(update={"tasks": tasks})


def start(
    stage: str, executed: Path, parameters: config.Strict, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts one notebook, in a process group of its own."""
    command = [
        *(sys.executable, str(ROOT / "scripts" / "run_notebook.py")),
        *(str(ROOT / "notebooks" / f"{stage}.ipynb"), str(executed)),
        *("--parameters", parameters.model_dump_json()),
    ]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | (environment or {}), start_new_session=True
    )


def execute(job: grid.Job, executed: Path, end: float = math.inf) -> int:
    """Runs one notebook; SIGTERM at `end`. Its status, PREEMPTED if it had to be killed."""
    process = start(job.stage, executed, job.parameters)
    try:
        return process.wait(None if end == math.inf else max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return config.PREEMPTED
    finally:
        end_all([process])


def end_all(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Lets notebooks that still run save their state, and kills those that take too long."""
    left = [process for process in processes if process.poll() is None]
    for process in left:
        process.send_signal(signal.SIGTERM)
    end = time.monotonic() + GRACE
    for process in left:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def stop(*_: object) -> None:
    """Of SIGTERM.

    Raises:
        Preempted: Always.
    """
    raise config.Preempted("stopped by SIGTERM; run another turn to go on")


def study_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which study to run."""
    parser.add_argument("--profile", default="hour", help="name in profiles/, or a .yaml file")
    parser.add_argument("--data", default="", help="folder with glue/ and corpus/")
    parser.add_argument("--models", default="", help="registry names, in the order to run them")
    parser.add_argument("--tasks", default="", help="GLUE tasks")
    parser.add_argument("--seeds", default="", help="fine-tuning seeds")
    parser.add_argument("--steps", type=int, help="of pre-training: the budget of each model")


def chosen(options: argparse.Namespace, **changes: object) -> Profile:
    """The study that :func:`study_options` were given for, small tasks first."""
    changes |= {name: getattr(options, name) for name in ("data", "models", "tasks", "seeds")}
    return small_first(
        config.load_profile(options.profile, pretrain_steps=options.steps, **changes)
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    study_options(parser)
    parser.add_argument("--minutes", type=float, default=9.0, help="of training in this turn")
    parser.add_argument("--state", type=Path, help="folder with the pieces of the last turn")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pieces")
    parser.add_argument("--limit-mib", type=float, default=57.0, help="of all pieces")
    parser.add_argument("--piece-mib", type=float, default=15.0, help="of one piece")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    profile = chosen(options)
    limit, piece = int(options.limit_mib * MIB), int(options.piece_mib * MIB)
    done = go(profile, end, options.state, options.out, limit, piece).finished
    print("the study is finished" if done else "not finished: run another turn", file=sys.stderr)
    return 0 if done else config.PREEMPTED


if __name__ == "__main__":
    config.run_main(main)
