"""The study on a GPU that is lent for minutes at a time: the same command, until it ends with 0.

Each call goes on where the last one stopped, on a machine that may be new:

1. the speed of each model's pre-training beside stock transformers, once, within its minutes;
2. the study, model by model: ELECTRA and ELECTRA-DeBERTa first, then the others, all on as many
   tokens, each fine-tuned with every seed before the next one, small tasks first;
3. the best of them again on more tokens, with what time is left.

    scripts/gpu_plan.py --data data --state state --out state --minutes 9

`state` holds what the next call needs, as scripts/relay.py packs it, a folder for each of the two
studies, and ``speed.json``. Exit status: 0 when all is done, 75 when another call is needed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import relay
import torch

from helpers import config, files, statistics, tables
from helpers.config import Profile

ROOT = Path(__file__).resolve().parent.parent
FIRST = ("electra", "electra-deberta")
SPEED = "speed.json"
SHARED = ("data", "tokenizer")  # folders of a run that the longer one has in common with it


def plan(options: argparse.Namespace) -> bool:
    """One call; whether all is done."""
    end = time.monotonic() + 60 * options.minutes
    profile = relay.small_first(_profile(options))
    options.out.mkdir(parents=True, exist_ok=True)
    _speed(options, end)
    limit = int(options.limit_mib * relay.MIB)
    done = _go(profile, options, end, limit)
    if not (done.finished and options.longer):
        return done.finished
    best = best_of(profile)
    print(f"best so far: {best}; again on {options.longer} times the tokens", file=sys.stderr)
    packed = (options.out / profile.profile).iterdir()
    left = limit - sum(path.stat().st_size for path in packed)
    return _go(longer(profile, best, options.longer), options, end, left, done.trained).finished


def _profile(options: argparse.Namespace) -> Profile:
    changes = {"data": options.data, "pretrain_steps": options.steps}
    profile = config.load_profile(options.profile, **changes)
    first = [name for name in FIRST if name in profile.models]
    rest = [name for name in profile.models if name not in first]
    return profile.model_copy(update={"models": first + rest})


def _go(
    profile: Profile, options: argparse.Namespace, end: float, limit: int, trained: bool = False
) -> relay.Turn:
    state = options.state / profile.profile if options.state else None
    piece = int(options.piece_mib * relay.MIB)
    return relay.go(profile, end, state, options.out / profile.profile, limit, piece, trained)


def _speed(options: argparse.Namespace, end: float) -> None:
    """Times pre-training once; the rows that its minutes allow are kept."""
    if options.state and (options.state / SPEED).exists():
        if options.state.resolve() != options.out.resolve():
            shutil.copyfile(options.state / SPEED, options.out / SPEED)
        return
    files.write_json(options.out / SPEED, {"rows": []})  # whatever comes of it: never twice
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), "--plan=gpu", "--parts=pretrain"]
    command += [f"--out={(options.out / SPEED).resolve()}", f"--pairs={options.pairs}"]
    command += [f"--device={'cuda' if torch.cuda.is_available() else 'cpu'}"]
    profile = config.load_profile(options.profile)
    command += [f"--size={profile.size}", f"--batch={profile.pretrain_batch_size}", "--steps=10"]
    command += ["--modes=none"]  # compiling took one to two minutes a model on an H100
    seconds = min(60 * options.speed_minutes, end - time.monotonic())
    try:
        subprocess.run(command, cwd=ROOT, timeout=seconds, check=True)
    except subprocess.TimeoutExpired:
        print(f"speed: stopped after {seconds:.0f} s; what was timed is kept", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        raise config.UserError(
            f"bench.py: ended with {error.returncode}; what it said stands above"
        ) from None


def best_of(profile: Profile) -> str:
    """The pre-trained model with the highest mean of the tasks that count (median over seeds)."""
    records = tables.load_records(profile.folder / "records")
    records = records[records["pretrain.steps"] > 0]
    tasks = statistics.counted(records, profile.tasks)
    names = [name for name in profile.models if name in set(records["model"])]
    return max(names, key=lambda name: statistics.mean_of_tasks(records, name, tasks).median)


def longer(profile: Profile, model: str, factor: int) -> Profile:
    """One model on `factor` times the tokens, in a run beside the first that shares its data."""
    name = f"{profile.profile}-longer"
    changes = {"profile": name, "models": [model]}
    changes["pretrain_steps"] = factor * profile.pretrain_steps
    made = profile.model_copy(update=changes)
    made.folder.mkdir(parents=True, exist_ok=True)
    for part in SHARED:
        link = made.folder / part
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(profile.folder / part, made.folder))
    return made


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="hour", help="name in profiles/, or a .yaml file")
    parser.add_argument("--data", default="", help="folder with glue/ and corpus/")
    parser.add_argument("--steps", type=int, help="of pre-training: the budget of each model")
    parser.add_argument("--longer", type=int, default=5, help="times the budget, at last; 0: never")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call")
    parser.add_argument("--speed-minutes", type=float, default=3.0, help="of the first step")
    parser.add_argument("--pairs", type=int, default=1, help="timings of either side")
    parser.add_argument("--state", type=Path, help="folder that the last call left")
    parser.add_argument("--out", type=Path, required=True, help="folder for the next call")
    parser.add_argument("--limit-mib", type=float, default=57.0, help="of all pieces")
    parser.add_argument("--piece-mib", type=float, default=15.0, help="of one piece")
    options = parser.parse_args()
    done = plan(options)
    print("the plan is done" if done else "not finished: call again", file=sys.stderr)
    return 0 if done else config.PREEMPTED


if __name__ == "__main__":
    config.run_main(main)
