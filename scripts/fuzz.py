"""Feeds damaged files to every reader: each works, or says in one line what is wrong.

`make fuzz` calls it. Files of a small embedded study, and entries of the leaderboard, are damaged
in their bytes, their fields, their columns, types and values, by a seeded generator. A reader that
raises anything but a UserError of one line, hangs, dies, leaves half a file behind or takes a
damaged checkpoint for whole is a finding: it is printed with the command that repeats it.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from tqdm import tqdm

from helpers import (
    checkpoint,
    config,
    corpus,
    files,
    finetune,
    glue,
    leaderboard,
    models,
    paper,
    predictions,
    pretrain,
    records,
    stages,
    submission,
    tokenizer,
)
from helpers.config import UserError

ROOT = Path(__file__).resolve().parent.parent
STUDY = {"documents": 60, "train_rows": 16, "dev_rows": 8, "world_words": 200, "threads": 1}
STUDY |= {"max_length": 32, "wordpiece_vocabulary": 300, "bpe_vocabulary": 320}
STUDY |= {"pretrain_steps": 3, "pretrain_batch_size": 4, "pretrain_warmup": 0.34}
STUDY |= {"finetune_epochs": 1, "models": ["bert"], "tasks": ["cola", "stsb", "mnli"]}
HANGS = 60.0  # seconds for one input
NUMBERS = [0, -1, 1, 3, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf]
TEXTS = [
    "",
    " ",
    "\0",
    "a\nb",
    "\ud800",
    "\x1b[2J",
    "<b>",
    "../..",
    "1e-4",
    "²",
    "--3",
    "é" * 70000,
]
VALUES: list[Any] = [None, True, *NUMBERS, *TEXTS, [], {}, [None], {"": None}, [["a"]], {1: 2}]


# --- damage --------------------------------------------------------------------------------------


def damaged_bytes(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, cut, doubled, or put in."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        start = chance.randrange(len(found) + 1)
        stop = min(len(found), start + chance.choice((1, 1, 4, 64, 4096)))
        kind = chance.randrange(6)
        if kind == 0 and start < len(found):
            found[start] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del found[start:]
        elif kind == 2:
            del found[start:stop]
        elif kind == 3:
            found[start:start] = found[start:stop]
        elif kind == 4:
            found[start:stop] = chance.randbytes(stop - start)
        else:
            found[start:start] = chance.choice((b"\0", b"\xff", b"\n", b"\r\n", b"{", b'"', b"- "))
    return bytes(found)


def damaged_value(value: Any, chance: random.Random) -> Any:  # noqa: ANN401
    """A tree of JSON or YAML with one place changed, left out, or added to."""
    if isinstance(value, dict | list) and value and chance.random() < 0.85:
        found = value.copy()
        key = (
            chance.choice(list(found)) if isinstance(found, dict) else chance.randrange(len(found))
        )
        kind = chance.randrange(8)
        if kind == 0:
            del found[key]
        elif kind == 1 and isinstance(found, dict):
            found[chance.choice((*TEXTS, 1, None))] = chance.choice(VALUES)
        else:
            found[key] = damaged_value(found[key], chance)
        return found
    return chance.choice(VALUES)


def damaged_text(text: str, chance: random.Random, dump: Callable, load: Callable) -> bytes:
    """A text file with damage to its bytes, its lines, or the values it holds."""
    kind = chance.randrange(4)
    if kind == 0:
        return damaged_bytes(text.encode(), chance)
    if kind == 1:
        lines = text.splitlines(keepends=True)
        place, other = chance.randrange(len(lines)), chance.randrange(len(lines))
        lines[place : place + chance.randrange(2)] = [lines[other]]
        return "".join(lines).encode()
    return dump(damaged_value(load(text), chance)).encode("utf-8", "surrogatepass")


damaged_json = partial(damaged_text, dump=json.dumps, load=json.loads)
damaged_yaml = partial(
    damaged_text, dump=partial(yaml.safe_dump, allow_unicode=True), load=yaml.safe_load
)


def damaged_column(rows: int, chance: random.Random) -> pa.Array:
    """A column of an odd type, or of odd values."""
    plain = [chance.choice((0, 1, 2, -1, 5, 2**40)) for _ in range(rows)]
    words = [chance.choice(TEXTS).encode("utf-8", "replace").decode() for _ in range(rows)]
    kinds = [
        lambda: pa.array(plain),
        lambda: pa.array([chance.choice((0.5, 1.0, math.nan, math.inf, -1.0)) for _ in plain]),
        lambda: pa.array(words),
        lambda: pa.array(words, pa.large_string()),
        lambda: pa.array(words).dictionary_encode(),
        lambda: pa.array([word.encode() + b"\xff" for word in words], pa.binary()),
        lambda: pa.array([chance.choice((None, word)) for word in words]),
        lambda: pa.array([chance.choice((None, 1)) for _ in plain], pa.int64()),
        lambda: pa.nulls(rows),
        lambda: pa.array([n % 2 == 0 for n in plain]),
        lambda: pa.array([[n] for n in plain]),
        lambda: pa.array([{"a": n} for n in plain]),
        lambda: pa.array(plain, pa.timestamp("s")),
        lambda: pa.array([chance.choice((0, 1, 2)) for _ in plain], pa.uint8()),
        lambda: pa.array([n % 3 for n in plain], pa.int32()).dictionary_encode(),
        lambda: pa.array([chance.choice((None, 0.0, 1.0)) for _ in plain], pa.float32()),
        lambda: pa.array([0.5] * rows, pa.float16()),
        lambda: pa.array([None if n < 0 else n for n in plain]).cast(pa.decimal128(38, 2)),
    ]
    return chance.choice(kinds)()


def damaged_table(table: pa.Table, chance: random.Random) -> pa.Table:
    """A table with a column lost, renamed, doubled or of another type, or with other rows."""
    place = chance.randrange(table.num_columns)
    name, kind = table.column_names[place], chance.randrange(8)
    if kind == 0:
        return table.drop_columns([name])
    if kind == 1:
        return table.rename_columns(
            [chance.choice((*TEXTS[5:10], "label")) if n == name else n for n in table.column_names]
        )
    if kind == 2:
        return table.append_column(chance.choice((name, "more")), table.column(place))
    if kind == 3:
        start = chance.randrange(len(table) + 1)
        return table.slice(start, chance.randrange(len(table) + 1))
    if kind == 4:
        return pa.concat_tables([table] * chance.randrange(2, 4))
    return table.set_column(place, name, damaged_column(len(table), chance))


def damage_parquet(path: Path, chance: random.Random) -> None:
    """Damages a file's bytes or the table in it."""
    if chance.random() < 0.4:
        path.write_bytes(damaged_bytes(path.read_bytes(), chance))
        return
    table = damaged_table(pq.read_table(path), chance)
    pq.write_table(table, path, compression=chance.choice(("none", "snappy", "zstd")))


# --- the whole files -----------------------------------------------------------------------------


def prepare(folder: Path) -> config.Profile:
    """A small study with everything that is read: data, tokenizers, checkpoints, records."""
    study = config.load_profile("tiny", **STUDY, runs=str(folder), profile="whole", seeds=[0])
    stages.make_inputs(study)
    pretrain.run(config.Pretrain(**study.stage(config.Pretrain)))
    finetune.run(config.Finetune(**study.stage(config.Finetune)))
    source = folder / "source"
    shutil.copytree(study.folder / "data", source)
    for path in source.rglob("manifest.json"):
        path.unlink()
    model, optimiser, _ = trained(0)
    checkpoint.save(folder / "kept", model, optimiser, {"spec": "a" * 64, "step": 1})
    checkpoint.save(folder / "kept", *trained(2)[:2], {"spec": "a" * 64, "step": 2})
    task = glue.get("cola")
    rows = task.official_rows[task.validation]
    values = {"split": task.validation, "idx": np.arange(rows), "prediction": np.arange(rows) % 2}
    pd.DataFrame(values).to_parquet(folder / "predictions.parquet", index=False)
    return study


def trained(step: int) -> tuple[torch.nn.Module, torch.optim.Optimizer, list[torch.Tensor]]:
    """A small model with its optimiser after some steps, and its weights."""
    torch.manual_seed(step)
    model = torch.nn.Linear(8, 8)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(1, 8)).sum().backward()
    optimiser.step()
    return model, optimiser, [p.detach().clone() for p in model.parameters()]


# --- targets: each makes one damaged input in a folder and reads it ------------------------------


def read_profile(whole: Path, folder: Path, chance: random.Random) -> None:
    """A profile's file."""
    text = (ROOT / "profiles" / chance.choice(("tiny.yaml", "paper.yaml"))).read_text("utf-8")
    path = folder / "own.yaml"
    path.write_bytes(damaged_yaml(text, chance))
    _use(config.load_profile(str(path)))


def _use(study: config.Profile) -> None:
    models.get_size(study.size)
    for name in study.models:
        models.get(name)
    glue.available(study.source, study.data, study.tasks)
    for cls in config.STAGES.values():
        config.validate(cls, study.stage(cls), "stage")


def read_arguments(whole: Path, folder: Path, chance: random.Random) -> None:
    """A command line."""
    words = ["bert", "electra", "cola", "rte", "0", "7", ",", "tiny", "~", "/", *TEXTS]
    names = ("models", "tasks", "seeds", "data")
    changes = {n: " ".join(chance.choices(words, k=2)) for n in names if chance.random() < 0.4}
    name = chance.choice(("tiny", "mini", *TEXTS, "~nobody/x.yaml", "x\0.yaml", "a/b", "ü" * 300))
    _use(config.load_profile(name if chance.random() < 0.3 else "tiny", **changes))


def read_parameters(whole: Path, folder: Path, chance: random.Random) -> None:
    """A notebook's parameters."""
    cls = chance.choice(list(config.NOTEBOOKS.values()))
    values = config.load_profile("tiny").model_dump() if cls is not config.Audit else {}
    found = damaged_value(values, chance)
    named = found if isinstance(found, dict) else {"resamples": found}
    config.read(cls, {str(name): value for name, value in named.items()})


def read_source(whole: Path, folder: Path, chance: random.Random) -> None:
    """A task of a folder source, then what the data notebook shows of it."""
    task = chance.choice(("cola", "stsb", "mnli"))
    shutil.copytree(whole / "source" / "glue" / task, folder / "in" / "glue" / task)
    damage_parquet(chance.choice(sorted((folder / "in").rglob("*.parquet"))), chance)
    data = _data(folder)
    with _sealed(data.folder / "data" / "glue" / task):
        glue.run(data, task)
    for show in (glue.report, glue.label_counts, glue.lengths):
        show(data.folder, [task])
    glue.examples(data.folder, task)


def read_corpus(whole: Path, folder: Path, chance: random.Random) -> None:
    """A corpus of a folder source, then a tokenizer of it."""
    shutil.copytree(whole / "source" / "corpus", folder / "in" / "corpus")
    (path,) = (folder / "in" / "corpus").glob("*.parquet")
    damage_parquet(path, chance)
    data = _data(folder)
    with _sealed(data.folder / "data" / "corpus"):
        corpus.run(data)
    kind = chance.choice(("wordpiece", "bpe"))
    study = config.load_profile("tiny", **STUDY, runs=str(folder), profile="out")
    with _sealed(data.folder / "tokenizer" / kind):
        tokenizer.run(config.Tokenizer(**study.stage(config.Tokenizer, tokenizer_kind=kind)))


def _data(folder: Path) -> config.Data:
    study = config.load_profile(
        "tiny", **STUDY, runs=str(folder), profile="out", data=str(folder / "in")
    )
    return config.Data(**study.stage(config.Data))


@contextmanager
def _sealed(folder: Path) -> Iterator[None]:
    """Of a stage: one that fails leaves no manifest, one that ends leaves a whole one."""
    path = folder / "manifest.json"
    try:
        yield
    except UserError:
        assert not path.exists(), "a stage that failed left a manifest"
        raise
    assert files.sealed(folder, files.read_json(path)["spec"]), "not whole"


def _copy_cell(whole: Path, folder: Path) -> Path:
    return shutil.copytree(whole / "whole" / "records", folder / "records") / "bert" / "cola"


def read_record(whole: Path, folder: Path, chance: random.Random) -> None:
    """A record edited by hand."""
    path = _copy_cell(whole, folder) / "seed-0.json"
    path.write_bytes(damaged_json(path.read_text("utf-8"), chance))
    records.read(path)
    assert json.loads(path.read_text("utf-8")), "an empty record was taken"


def read_manifest(whole: Path, folder: Path, chance: random.Random) -> None:
    """A manifest edited by hand."""
    own = chance.choice(("data/corpus", "tokenizer/bpe", "records/bert/cola", "models/bert"))
    shutil.copytree(whole / "whole" / own, folder / own)
    path = folder / own / "manifest.json"
    path.write_bytes(damaged_json(path.read_text("utf-8"), chance))
    files.sealed(folder / own, "0" * 64)
    files.need(folder / own, "stage")
    if own.startswith("tokenizer"):
        tokenizer.rows(folder / own)
    if own.startswith("records"):
        records.vouched(folder)
        records.read_all(folder, ["bert"], ["cola"])


def read_predictions(whole: Path, folder: Path, chance: random.Random) -> None:
    """Predictions of a stranger."""
    path = folder / "seed-0.parquet"
    shutil.copyfile(whole / "predictions.parquet", path)
    damage_parquet(path, chance)
    predictions.read_splits(path, "cola", own=True)
    predictions.read_predictions(path, "cola")


def read_entry(whole: Path, folder: Path, chance: random.Random) -> None:
    """An entry of the leaderboard: its statement, and files that do not belong there."""
    name = chance.choice(sorted(path.name for path in (ROOT / "leaderboard").iterdir()))
    entry = shutil.copytree(ROOT / "leaderboard" / name, folder / name)
    path = entry / submission.FILE
    path.write_bytes(damaged_yaml(path.read_text("utf-8"), chance))
    if chance.random() < 0.3:
        (entry / chance.choice(("cola", "more", "a\nb"))).mkdir()
    figures = paper.load(ROOT / "results" / "published.json")
    found = leaderboard.check_entry(entry, figures, predictions.Labels())
    if found.error:
        raise UserError(found.error)


def read_published(whole: Path, folder: Path, chance: random.Random) -> None:
    """The published figures, edited by hand."""
    path = folder / "published.json"
    text = (ROOT / "results" / "published.json").read_text("utf-8")
    path.write_bytes(damaged_json(text, chance))
    paper.load(path)


def read_checkpoint(whole: Path, folder: Path, chance: random.Random) -> None:
    """The newest of two checkpoints, or both; what is taken must be what was saved."""
    kept = shutil.copytree(whole / "kept", folder / "kept")
    for path in sorted(kept.iterdir())[chance.randrange(2) :]:
        path.write_bytes(damaged_bytes(path.read_bytes(), chance))
    model, optimiser, _ = trained(5)
    state = checkpoint.load(kept, "a" * 64, model, optimiser)
    if state:
        saved = trained({1: 0, 2: 2}[state["step"]])[2]
        now = list(model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(now, saved, strict=True)), "wrong weights"


def read_encoder(whole: Path, folder: Path, chance: random.Random) -> None:
    """The weights that fine-tuning opens."""
    own = shutil.copytree(whole / "whole" / "models" / "bert" / "encoder", folder / "encoder")
    path = own / "model.safetensors"
    path.write_bytes(damaged_bytes(path.read_bytes(), chance))
    finetune.open_encoder(own, glue.get("cola"), 0.0)


def read_tokenizer(whole: Path, folder: Path, chance: random.Random) -> None:
    """A tokenizer's files, then a sentence."""
    kind = chance.choice(("wordpiece", "bpe"))
    own = shutil.copytree(whole / "whole" / "tokenizer" / kind, folder / kind)
    path = own / chance.choice(("tokenizer.json", "tokenizer_config.json"))
    path.write_bytes(damaged_json(path.read_text("utf-8"), chance))
    tokenizer.load(own)


TARGETS: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "profile": read_profile,
    "arguments": read_arguments,
    "parameters": read_parameters,
    "source": read_source,
    "corpus": read_corpus,
    "record": read_record,
    "manifest": read_manifest,
    "predictions": read_predictions,
    "entry": read_entry,
    "published": read_published,
    "checkpoint": read_checkpoint,
    "encoder": read_encoder,
    "tokenizer": read_tokenizer,
}


# --- running -------------------------------------------------------------------------------------


def attempt(target: str, seed: int, whole: Path) -> tuple[str, str]:
    """One damaged input: accepted, refused with its line, or finding with the reason."""
    chance = random.Random(f"{target} {seed}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            TARGETS[target](whole, folder, chance)
            verdict = ("accepted", "")
        except UserError as error:
            line = str(error)
            good = line.isprintable() and 0 < len(line) < 2 * config.LINE_LIMIT
            verdict = ("refused", line) if good else ("finding", f"no plain line: {line!r}")
        except BaseException as error:  # a panic of a Rust library is not an Exception
            place = traceback.extract_tb(error.__traceback__)
            own = [f for f in place if str(ROOT) in f.filename and ".venv" not in f.filename][-1]
            where = f"{Path(own.filename).name}:{own.lineno}"
            verdict = ("finding", f"{type(error).__name__} at {where}: {str(error)[:200]!r}")
        left = [p for p in folder.rglob(".*") if p.name not in (".lock", files.KEPT)]
        if left and verdict[0] != "finding":
            verdict = ("finding", f"left behind: {left[0].name}")
    return verdict


def work(whole: Path, connection: Connection) -> None:
    """Answers inputs until the other end closes; runs in a process that may hang or die."""
    warnings.simplefilter("ignore")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    torch.set_num_threads(1)
    while (case := connection.recv()) is not None:
        connection.send(attempt(*case, whole))


class Worker:
    """A process that reads damaged inputs; started anew when one kills it."""

    def __init__(self, whole: Path) -> None:
        self.whole = whole
        self.start()

    def start(self) -> None:
        """Starts the process."""
        context = multiprocessing.get_context("spawn")  # threads of libraries outlive no fork
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(self.whole, other), daemon=True)
        self.process.start()
        other.close()

    def ask(self, target: str, seed: int) -> tuple[str, str]:
        """One input's verdict; a hang or a death is a finding."""
        self.connection.send((target, seed))
        try:
            if self.connection.poll(HANGS):
                return self.connection.recv()
            reason = f"hangs: more than {HANGS:g} s"
        except EOFError:
            self.process.join()
            reason = f"the process died: exit code {self.process.exitcode}"
        self.stop()
        self.start()
        return "finding", reason

    def stop(self) -> None:
        """Ends the process; one that does not answer is killed."""
        with suppress(OSError):
            self.connection.send(None)
        self.process.join(1)
        self.process.kill()
        self.process.join()


def main() -> int:
    """Command line; 1 when there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="time for inputs")
    parser.add_argument("--inputs", type=int, default=0, help="inputs at most; 0: no limit")
    parser.add_argument("--seed", type=int, default=0, help="of the first input; the next is + 1")
    parser.add_argument("--target", choices=TARGETS, help="one reader; else all in turn")
    options = parser.parse_args()
    names = [options.target] if options.target else list(TARGETS)
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    findings: dict[str, str] = {}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name)
        prepare(whole)
        worker = Worker(whole)
        bar = tqdm(total=options.inputs or None, desc="fuzz", unit=" inputs", ncols=96)
        ends, number = time.monotonic() + options.seconds, 0
        while time.monotonic() < ends and number != (options.inputs or -1):
            target, seed = names[number % len(names)], options.seed + number
            verdict, line = worker.ask(target, seed)
            counts[target][verdict] += 1
            if verdict == "finding":
                again = f"scripts/fuzz.py --target {target} --seed {seed} --inputs 1"
                findings.setdefault(f"{target}: {line}", again)
            number += 1
            bar.update()
        bar.close()
        worker.stop()
    print(f"{'target':<14}{'inputs':>8}{'accepted':>10}{'refused':>9}{'findings':>10}")
    for name, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        shown = (found.total(), found["accepted"], found["refused"], found["finding"])
        print(f"{name:<14}{shown[0]:>8,}{shown[1]:>10,}{shown[2]:>9,}{shown[3]:>10,}")
    for line, again in findings.items():
        print(f"finding: {line}\n  again: {again}", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    config.run_main(main)
