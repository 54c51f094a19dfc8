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

Level = Literal["reproduced", "recomputed", "claimed"]  # the strongest first
LEVELS: tuple[Level, ...] = get_args(Level)
Files = Mapping[tuple[str, int], Path]  # by task and seed
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
    medians: dict[str, float] = field(default_factory=dict)  # by task, recomputed, metric x 100

    @property
    def average(self) -> float:
        """What the entry is ranked by: the mean of the recomputed medians, else as stated."""
        return fmean(self.medians.values()) if self.level != "claimed" else self.stated.average


def _files(folder: Path) -> Files:
    """The prediction files of an entry by task and seed; it holds nothing else but records."""
    kinds: dict[str, dict[tuple[str, int], Path]] = {"parquet": {}, "json": {}}
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
            kinds[named[2]][path.name, int(named[1])] = inner
    found, kept = kinds.values()
    for task, seed in sorted(set(kept) - set(found)):
        raise UserError(f"{folder}/{task}/seed-{seed}.json: has no predictions beside it")
    return found


def _expect(where: Path, stated: Submission, found: Iterable[tuple[str, int]]) -> None:
    """Predictions of every task and stated seed, and of no other."""
    seeds = stated.protocol.seeds
    if stated.published:
        raise UserError(f"{where}: published: a row copied from others has no predictions")
    if not seeds:
        raise UserError(f"{where}: protocol.seeds = null: name the seeds of the predictions")
    wanted = {(task, seed) for task in glue.TASKS for seed in seeds}
    for task, seed in sorted(wanted ^ set(found)):
        fault = "missing, of" if (task, seed) in wanted else f"seed {seed} is not in"
        raise UserError(f"{where.parent}/{task}/seed-{seed}.parquet: {fault} protocol.seeds")


def _read_records(found: Files, stated: Submission, where: Path) -> Records:
    """The records beside the predictions, each checked against its place and its entry."""
    kept = {}
    for (task, seed), path in sorted(found.items()):
        beside = path.with_suffix(".json")
        if not beside.exists():
            continue
        try:
            record = records.read(beside)
        except RecursionError:
            raise UserError(f"{beside}: nested too deeply") from None
        for name, value in (("task", task), ("seed", seed)):
            if record[name] != value:
                raise UserError(f"{beside}: {name} = {record[name]!r}: its place says {value!r}")
        check_source(record, beside)
        if record["predictions"] != files.sha256(path):
            raise UserError(
                f"{beside}: predictions = {record['predictions'][:12]}…: not the SHA-256 of "
                f"{path.name}"
            )
        kept[task, seed] = record
    _check_same(kept, stated, where)
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


def _check_same(kept: Records, stated: Submission, where: Path) -> None:
    """All records are of one model and pre-training, whose size and tokens are those stated."""
    names = sorted({record["model"] for record in kept.values()})
    if len(names) > 1:
        raise UserError(f"{where}: records of {names[0]!r} and {names[1]!r}: an entry is one model")
    own = stated.checkpoint.model_dump() if stated.checkpoint else None
    for record in kept.values():
        given, trained = record.get("checkpoint"), record["pretrain"]
        facts = {
            "parameters": (stated.parameters.both, trained["parameters"]),
            "protocol.trials > 0": (stated.protocol.trials > 0, trials([record]) > 0),
            "checkpoint": (own, given and {name: given[name] for name in Checkpoint.model_fields}),
        }
        if not given:  # else who made the weights claims it
            facts["tokens"] = stated.tokens, trained["tokens"]
        for name, (says, theirs) in facts.items():
            if says != theirs:
                raise UserError(f"{where}: {name} = {says}: the records say {theirs}")
    if kept and (most := trials(kept.values())) != stated.protocol.trials:
        raise UserError(
            f"{where}: protocol.trials = {stated.protocol.trials}: the records say {most}"
        )
    encoders = [record["hashes"]["encoder"] for record in kept.values()]
    commits = [record["pretrain_code"] for record in kept.values()]
    for name, found in (("hashes.encoder", encoders), ("pretrain_code", commits)):
        if any(other != found[0] for other in found):
            raise UserError(
                f"{where}: {name} differs between records: an entry is one pre-training, fine-tuned"
            )


def trials(kept: Iterable[Mapping[str, Any]]) -> int:
    """Trials of a task, at most, that chose its learning rate and epochs; 0 where none did."""
    return max(len(record.get("trials", [])) for record in kept)


def check_entry(folder: Path, figures: Mapping[str, Any], labels: Labels) -> Entry:
    """Checks one entry against the published `figures` and computes its level of evidence."""
    try:
        plain = re.fullmatch(r"[A-Za-z0-9._-]+", folder.name)
        if not plain or not stat.S_ISDIR(folder.lstat().st_mode):
            raise UserError(
                f"{folder.parent}: {folder.name!r}: an entry is a folder, no link, named with "
                "letters, digits, '.', '_' and '-'"
            )
        stated = submission.read(folder)
        where = folder / FILE
        found = _files(folder)
        if found:
            _expect(where, stated, found)
        kept = _read_records(found, stated, where)
        remarks = _check_stated(where, stated, figures)
        if not found:
            undone = ("scores not recomputed: no predictions",)
            return Entry(folder.name, "", stated, remarks=remarks, undone=undone)
        arrays = {
            key: read_predictions(path, key[0], labels.dev.get(key[0]))
            for key, path in sorted(found.items())
        }
        scores = _recompute(arrays, kept, labels, where)
        _check_scores(where, stated, scores, "predictions")
        _check_scores(where, stated, _recorded(kept, stated, scores), "records")
    except UserError as error:
        return Entry(folder.name, str(error))
    except OSError as error:
        return Entry(folder.name, str(UserError(f"{folder}: cannot read: {error}")))
    level, undone = _grade(kept, len(found), labels)
    stacked = {
        task: np.stack([arrays[task, seed] for seed in stated.protocol.seeds])
        for task in glue.TASKS
    }
    medians = {task: median(values) for task, values in scores.items()}
    return Entry(folder.name, "", stated, level, remarks, undone, stacked, medians)


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
        *((f"scores.{task}", stated.scores[task], f["value"]) for task, f in row["scores"].items()),
    ]
    for place, stands, value in facts:
        if stands != value:
            raise UserError(f"{where}: {place} = {stands!r}: results/published.json has {value!r}")
    unknown = ["parameters not known: the limit of the class could not be checked"]
    return (*odd, *(unknown if stated.parameters.both is None else []))


def _impossible(stated: Submission) -> list[str]:
    """Accuracies that no count of right answers gives."""
    n = stated.protocol.n
    known = n is not None and not stated.published  # a published row's n is a least one
    halves = stated.protocol.selection == "median" and not (known and n % 2)
    odd = []
    for name, task in glue.TASKS.items():
        value, rows = stated.scores[name], task.official_rows[task.validation]
        counted = task.metric == "accuracy"
        if counted and statistics.impossible(value, rows, stated.decimals, halves):
            odd.append(f"scores.{name} = {value}: no count of right answers out of {rows} gives it")
    return odd


def _recompute(
    arrays: Mapping[tuple[str, int], np.ndarray], kept: Records, labels: Labels, where: Path
) -> dict[str, list[float]]:
    """Scores by task, one per seed, of the tasks whose labels are at hand."""
    scores: dict[str, list[float]] = {}
    for (task, seed), values in arrays.items():
        if task not in labels.dev:
            continue
        from helpers.data import metrics  # takes seconds

        score = metrics.score(task, values, labels.dev[task].label)[0]
        record = kept.get((task, seed))
        if record and abs(record["score"] - score) > 1e-6:
            raise UserError(
                f"{where.parent}/{task}/seed-{seed}.json: score = {record['score']}: "
                f"the predictions give {score:.6f}"
            )
        scores.setdefault(task, []).append(score)
    return scores


def _recorded(kept: Records, stated: Submission, done: Iterable[str]) -> dict[str, list[float]]:
    """Scores by the records, of the tasks that have one for every seed and no labels at hand."""
    seeds = stated.protocol.seeds
    return {
        task: [kept[task, seed]["score"] for seed in seeds]
        for task in glue.TASKS
        if task not in done and all((task, seed) in kept for seed in seeds)
    }


def _check_scores(
    where: Path, stated: Submission, scores: Mapping[str, list[float]], origin: str
) -> None:
    """Each stated score follows from those of the seeds, to its last decimal."""
    choose = median if stated.protocol.selection == "median" else max
    half, wrong = 0.5 * 10**-stated.decimals + 1e-9, []
    for task, values in scores.items():
        if abs(choose(values) - stated.scores[task]) > half:
            wrong.append(
                f"scores.{task} = {stated.scores[task]}: the {origin} give "
                f"{choose(values):.4f}, {stated.protocol.selection} of {len(values)}"
            )
    if wrong:
        raise UserError(f"{where}: {'; '.join(wrong)}")


def _grade(kept: Records, found: int, labels: Labels) -> tuple[Level, tuple[str, ...]]:
    """The level of an entry whose files hold, and what was not done."""
    if not labels.dev and not labels.absent:
        return "claimed", ("scores not recomputed: no dev labels at hand (--data folder)",)
    if labels.absent:
        reasons: dict[str, list[str]] = {}
        for task, reason in labels.absent.items():
            reasons.setdefault(reason, []).append(task)
        why = "; ".join(f"{', '.join(tasks)}: {reason}" for reason, tasks in reasons.items())
        return "claimed", (f"scores not recomputed on {why}",)
    # Of weights from elsewhere, what is reproduced is the fine-tuning.
    known = [r["pretrain_code"]["commit"] or r.get("checkpoint") for r in kept.values()]
    commits = [record["code"]["commit"] for record in kept.values()]
    whole = sum(bool(one and commit) for one, commit in zip(known, commits, strict=True))
    if whole < found:
        without = f"{found - whole} of {found} records missing or without a commit"
        return "recomputed", (f"not reproduced: {without}",)
    return "reproduced", ()


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
