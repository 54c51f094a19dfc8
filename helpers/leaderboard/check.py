"""The leaderboard's entries: read, checked, and graded by what could be verified.

An entry is a folder ``leaderboard/<name>`` with ``submission.yaml`` (see `submission`) and, per
task and seed, ``<task>/seed-<n>.parquet`` (dev predictions) and ``.json`` (its record). Labels
never come from an entry: they are read from a folder of one's own.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, get_args

import numpy as np

from helpers.base import files
from helpers.base.errors import UserError, did_you_mean
from helpers.data import glue
from helpers.leaderboard import submission
from helpers.leaderboard.submission import FILE, Checkpoint, Submission
from helpers.score import statistics
from helpers.score.predictions import Labels, read_predictions
from helpers.train import records

Level = Literal["recorded", "recomputed", "claimed"]  # the strongest first
LEVELS: tuple[Level, ...] = get_args(Level)
Keys = set[tuple[str, int]]  # task and seed
Records = Mapping[tuple[str, int], dict[str, Any]]

# Bytes of one file. The largest real one, QQP's 40,430 rows, takes about a quarter of a MiB.
FILE_LIMIT = 4 * 2**20


@dataclass(frozen=True)
class Entry:
    """What the check found of one entry, by the name of its folder."""

    name: str
    error: str = ""  # one line naming file, field, value and rule; empty where the entry holds
    stated: Submission | None = None  # None where it cannot be read
    level: Level = "claimed"  # evidence that was verified here
    remarks: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()  # steps that could not be done here
    # Task to [seeds, n] in the order of GLUE's row numbers: int64 classes, or float64 for STS-B.
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)  # by task, of its seeds, metric x 100

    @property
    def average(self) -> float:
        """What the entry is ranked by: the mean of the recomputed scores, else as stated."""
        return fmean(self.means.values()) if self.level != "claimed" else self.stated.average


def check_entry(folder: Path, figures: Mapping[str, Any], labels: Labels) -> Entry:
    """Checks one entry against the published `figures` and computes its level of evidence."""
    try:
        plain = re.fullmatch(r"[A-Za-z0-9._-]+", folder.name)
        if not plain or not stat.S_ISDIR(folder.lstat().st_mode):
            raise UserError(
                f"{folder.parent}: {folder.name!r}: an entry is a folder, no link, named with "
                "letters, digits, '.', '_' and '-'"
            )
        stated, where = submission.read(folder), folder / FILE
        remarks = _check_stated(where, stated, figures)
        found = _find(folder)
        if not found:
            undone = ("scores not recomputed: no predictions",)
            return Entry(folder.name, "", stated, remarks=remarks, undone=undone)
        _expect(where, stated, found)
        kept = _read_records(where, stated, found)
        predictions = {}
        for task in glue.TASKS:
            paths = [folder / task / f"seed-{seed}.parquet" for seed in stated.protocol.seeds]
            runs = [read_predictions(path, task, labels.dev.get(task)) for path in paths]
            predictions[task] = np.stack(runs)
        scores = _scores(where, stated, predictions, kept, labels)
        _check_scores(where, stated, scores)
    except UserError as error:
        return Entry(folder.name, str(error))
    except OSError as error:
        return Entry(folder.name, str(UserError(f"{folder}: cannot read: {error}")))
    level, undone = _grade(kept, len(found), labels)
    means = {task: fmean(values) for task, values in scores.items()}
    return Entry(folder.name, "", stated, level, remarks, undone, predictions, means)


def _check_stated(where: Path, stated: Submission, figures: Mapping[str, Any]) -> tuple[str, ...]:
    """What can be checked of the figures alone; remarks on a published row's."""
    odd = _impossible(stated)
    if not stated.published:
        if odd:
            raise UserError(f"{where}: {'; '.join(odd)}")
        return ()
    rows = figures["table1"]["models"]
    name = stated.published.row
    if name not in rows:
        raise UserError(f"{where}: published.row = {name!r}: {did_you_mean(name, rows)}")
    row = rows[name]
    millions = row["parameters_millions"]["value"]
    facts = [
        ("title", stated.title, row["name"]),
        ("published.source", stated.published.source, row["average"]["source"]),
        ("parameters.total", stated.parameters.total, millions and round(millions * 1e6)),
        ("protocol.selection", stated.protocol.selection, row["statistic"]["value"].split()[0]),
        ("average", stated.average, row["average"]["value"]),
        *((f"scores.{t}", value, row["scores"][t]["value"]) for t, value in stated.scores),
    ]
    for place, stands, value in facts:
        if stands != value:
            raise UserError(f"{where}: {place} = {stands!r}: results/published.json has {value!r}")
    unknown = ["parameters not known: the limit of the class could not be checked"]
    return (*odd, *(unknown if stated.parameters.both is None else []))


def _impossible(stated: Submission) -> list[str]:
    """Accuracies that no count of right answers gives."""
    n, selection = stated.protocol.n, stated.protocol.selection
    # Right answers are counted over all runs of a mean, in halves in the median of an even number.
    runs = {"best": 1, "median": 2 if n is None or n % 2 == 0 else 1, "mean": n}[selection]
    odd = []
    for name, value in stated.scores:
        task = glue.TASKS[name]
        rows = task.official_rows[task.validation]
        counted = task.metric == "accuracy" and runs
        # A copied row may leave out a last 0, or have rounded to one decimal.
        decimals = 1 if stated.published and round(value, 1) == value else stated.decimals
        if counted and statistics.impossible(value, rows * runs, decimals):
            exact = f"to {decimals} decimal{'s' * (decimals > 1)}"
            counts = f"{runs} x {rows}" if runs > 1 else rows
            line = f"no count of right answers out of {counts} gives it {exact}"
            odd.append(f"scores.{name} = {value}: {line}")
    return odd


def _find(folder: Path) -> Keys:
    """Task and seed of each file of predictions; an entry holds nothing else but their records."""
    kinds: dict[str, Keys] = {"parquet": set(), "json": set()}
    for path in sorted(folder.iterdir()):
        if path.name == FILE:
            continue
        if path.name not in glue.TASKS or not stat.S_ISDIR(path.lstat().st_mode):
            raise UserError(
                f"{folder}: {path.name!r}: not part of an entry: it holds {FILE} and, by task, "
                f"folders without links; {did_you_mean(path.name, glue.TASKS)}"
            )
        for inner in sorted(path.iterdir()):
            named = re.fullmatch(r"seed-(0|[1-9][0-9]{0,9})\.(parquet|json)", inner.name)
            if not named or not stat.S_ISREG((about := inner.lstat()).st_mode):
                raise UserError(
                    f"{path}: {inner.name!r}: not part of an entry: a task's folder holds "
                    "seed-<n>.parquet and seed-<n>.json, no links"
                )
            if about.st_size > FILE_LIMIT:
                raise UserError(f"{inner}: size = {about.st_size} bytes: at most {FILE_LIMIT}")
            kinds[named[2]].add((path.name, int(named[1])))
    for task, seed in sorted(kinds["json"] - kinds["parquet"]):
        raise UserError(f"{folder}/{task}/seed-{seed}.json: has no predictions beside it")
    return kinds["parquet"]


def _expect(where: Path, stated: Submission, found: Keys) -> None:
    """Predictions of every task and stated seed, and of no other."""
    seeds = stated.protocol.seeds
    if stated.published:
        raise UserError(f"{where}: published: a row copied from others has no predictions")
    if not seeds:
        raise UserError(f"{where}: protocol.seeds = null: name the seeds of the predictions")
    wanted = {(task, seed) for task in glue.TASKS for seed in seeds}
    for task, seed in sorted(wanted ^ found):
        fault = "missing, of" if (task, seed) in wanted else f"seed {seed} is not in"
        raise UserError(f"{where.parent}/{task}/seed-{seed}.parquet: {fault} protocol.seeds")


def _read_records(where: Path, stated: Submission, found: Keys) -> Records:
    """The records beside the predictions, each checked against its place, all against the entry."""
    kept: dict[tuple[str, int], dict[str, Any]] = {}
    shared: dict[str, Any] = {}
    for task, seed in sorted(found):
        path = where.parent / task / f"seed-{seed}.json"
        if not path.exists():
            continue
        kept[task, seed] = record = records.read(path)
        digest = files.sha256(path.with_suffix(".parquet"))
        for name, value in (("task", task), ("seed", seed), ("predictions", digest)):
            if record[name] != value:
                raise UserError(
                    f"{path}: {name} = {record[name]!r}: its place and predictions say {value!r}"
                )
        check_source(record, path)
        for name, value in _origin(record).items():
            if (first := shared.setdefault(name, value)) != value:
                raise UserError(
                    f"{path}: {name} = {value!r}: other records have {first!r}; an entry is one "
                    "pre-training of one model, fine-tuned in one way"
                )
    if kept:
        _check_records(where, stated, kept)
    return kept


def check_source(record: Mapping[str, Any], where: Path) -> None:
    """A score counts on GLUE's own splits only: not the embedded world, not a reduced task."""
    if record["source"] == "embedded":
        raise UserError(f"{where}: source = 'embedded': the embedded world is not GLUE")
    if not record["complete"]:
        raise UserError(
            f"{where}: complete = false: {', '.join(record['reduced']) or 'a split'} reduced; "
            "the leaderboard takes scores on GLUE's own splits, whole"
        )
    task = glue.get(record["task"])
    for split in task.splits[:2]:
        rows, official = record["rows"].get(split), task.official_rows[split]
        if rows != official:
            raise UserError(f"{where}: rows.{split} = {rows}: GLUE's has {official}")


def _origin(record: Mapping[str, Any]) -> dict[str, Any]:
    """What all records of an entry have in common."""
    tuned = records.CHOSEN if trials([record]) else set()
    return {
        "model": record["model"],
        "hashes.encoder": record["hashes"]["encoder"],
        "pretrain_code": record["pretrain_code"],
        "pretrain.parameters": record["pretrain"]["parameters"],
        "pretrain.tokens": record["pretrain"]["tokens"],
        "checkpoint": record.get("checkpoint"),
        "trials > 0": trials([record]) > 0,
        **{f"parameters.{k}": v for k, v in record["parameters"].items() if k not in tuned},
    }


def _check_records(where: Path, stated: Submission, kept: Records) -> None:
    """Size, tokens, trials and checkpoint are those of the records, which are of one model."""
    record = next(iter(kept.values()))
    own, given = stated.checkpoint, record.get("checkpoint")
    facts = {
        "parameters": (stated.parameters.both, record["pretrain"]["parameters"]),
        "protocol.trials": (stated.protocol.trials, trials(kept.values())),
        "checkpoint": (
            own and own.model_dump(),
            given and {name: given[name] for name in Checkpoint.model_fields},
        ),
    }
    if not given:  # else who made the weights claims it
        facts["tokens"] = stated.tokens, record["pretrain"]["tokens"]
    for name, (says, theirs) in facts.items():
        if says != theirs:
            raise UserError(f"{where}: {name} = {says}: the records say {theirs}")


def trials(kept: Iterable[Mapping[str, Any]]) -> int:
    """Trials of a task, at most, that chose its learning rate and epochs; 0 where none did."""
    return max(len(record.get("trials", [])) for record in kept)


def _scores(
    where: Path,
    stated: Submission,
    predictions: Mapping[str, np.ndarray],
    kept: Records,
    labels: Labels,
) -> dict[str, list[float]]:
    """Scores by task, one per seed: by the labels where they are at hand, else by the records."""
    seeds, scores = stated.protocol.seeds, {}
    for task, runs in predictions.items():
        told = {seed: kept[task, seed]["score"] for seed in seeds if (task, seed) in kept}
        if task not in labels.dev:
            if len(told) == len(seeds):
                scores[task] = list(told.values())
            continue
        from helpers.data import metrics  # takes seconds

        truth = labels.dev[task]["label"].to_numpy()
        scores[task] = [metrics.score(task, values, truth)[0] for values in runs]
        for seed, score in zip(seeds, scores[task], strict=True):
            if seed in told and abs(told[seed] - score) > 1e-6:
                raise UserError(
                    f"{where.parent}/{task}/seed-{seed}.json: score = {told[seed]}: "
                    f"the predictions give {score:.6f}"
                )
    return scores


def _check_scores(where: Path, stated: Submission, scores: Mapping[str, list[float]]) -> None:
    """Each stated score follows from those of the seeds, to its last decimal."""
    choose = {"mean": fmean, "median": median, "best": max}[stated.protocol.selection]
    half = 0.5 * 10**-stated.decimals + 1e-9
    for task, values in scores.items():
        value = getattr(stated.scores, task)
        if abs(choose(values) - value) > half:
            raise UserError(
                f"{where}: scores.{task} = {value}: its fine-tunings give {choose(values):.4f}, "
                f"{stated.protocol.selection} of {len(values)}"
            )


def _grade(kept: Records, found: int, labels: Labels) -> tuple[Level, tuple[str, ...]]:
    """The level of an entry whose files hold, and what was not done."""
    if not labels.dev and not labels.absent:
        return "claimed", ("scores not recomputed: no dev labels at hand (--data folder)",)
    if labels.absent:
        why = "; ".join(f"{task}: {reason}" for task, reason in labels.absent.items())
        return "claimed", (f"scores not recomputed on {why}",)
    # Of weights from elsewhere, what is recorded is the fine-tuning.
    whole = sum(
        bool(r["code"]["commit"] and (r["pretrain_code"]["commit"] or r.get("checkpoint")))
        for r in kept.values()
    )
    if whole < found:
        without = f"{found - whole} of {found} records missing or without a commit"
        return "recomputed", (f"not recorded: {without}",)
    return "recorded", ()


def check(folder: Path, figures: Mapping[str, Any], labels: Labels) -> list[Entry]:
    """Checks every entry of ``leaderboard``, by name; a second one of the same title is refused."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found: list[Entry] = []
    first: dict[tuple[str, str], str] = {}
    for path in files.visible(folder, "*"):
        entry = check_entry(path, figures, labels)
        for name in ("name", "title") if entry.stated else ():
            value = getattr(entry.stated, name)
            other = first.setdefault((name, " ".join(value.casefold().split())), entry.name)
            if other != entry.name:
                line = f"{path / FILE}: {name} = {value!r}: is {other}'s; each entry has its own"
                entry = replace(entry, error=line)
        found.append(entry)
    return found
