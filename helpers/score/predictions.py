"""Dev labels and dev predictions: files of other people, read only as far as their sizes allow."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from helpers.base import files
from helpers.base.errors import UserError
from helpers.data import corpus, glue
from helpers.train import records

# Bytes of one file's columns before compression; QQP's rows take about 0.4 MiB.
UNPACKED_LIMIT = 16 * 2**20
COLUMNS = ("split", "idx", "prediction")
# What an entry's regression on 0 to 5 may return: a width of the scale beyond it on both sides.
STSB_RANGE = (-5.0, 10.0)


@dataclass(frozen=True)
class Labels:
    """Dev labels at hand, by task: tables with idx, GLUE's row numbers, ascending, and label."""

    dev: dict[str, pd.DataFrame] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # why there are none, of a given folder


def read_labels(folder: Path | None) -> Labels:
    """The dev labels of a folder in the schema of ``nyu-mll/glue``.

    It holds ``glue/<task>/<split>.parquet``, as a run's ``data`` does. A split that is not GLUE's
    own by its row count, or is of the embedded world, is not used.
    """
    if folder is None:
        return Labels()
    if not (folder / "glue").is_dir():
        raise UserError(f"data = {folder}: has no folder glue/")
    found = Labels()
    for name, task in glue.TASKS.items():
        manifest = folder / "glue" / name / "manifest.json"
        if manifest.exists() and files.read_json(manifest).get("source") == "embedded":
            found.absent[name] = "embedded world"
            continue
        table = glue.read_folder(folder, name, task.validation)
        official = task.official_rows[task.validation]
        if table is None:
            found.absent[name] = "no labels"
        elif len(table) != official or table["idx"].nunique() != official:
            found.absent[name] = f"{table['idx'].nunique():,} rows, GLUE's dev set has {official:,}"
        else:
            found.dev[name] = table.sort_values("idx", ignore_index=True)[["idx", "label"]]
    return found


def read_predictions(path: Path, name: str, dev: pd.DataFrame | None = None) -> np.ndarray:
    """The predictions of one run of the task `name` on the split its score is computed on: [n].

    The file, ``seed-<n>.parquet``, has columns split (text), idx (int64) and prediction (int64,
    float64 for STS-B), one row per dev row in the order of idx; MNLI's mismatched rows may follow.
    Without `dev`, of `Labels`, row numbers are checked as far as they are known.
    """
    task = glue.get(name)
    found = read_splits(path, name)
    for split, (idx, _) in found.items():
        rows, official = len(idx), task.official_rows[split]
        if rows != official and (rows or split == task.validation):
            raise UserError(f"{path}: {split} has {rows} rows: GLUE's has {official}")
        # GLUE numbers dev rows from 0 without gaps, save MRPC's, which keep older numbers.
        good = np.diff(idx, prepend=-1) > 0 if name == "mrpc" else idx == np.arange(rows)
        if not good.all():
            row = int(np.argmin(good))
            raise UserError(
                f"{path}: {split}, row {row}: idx = {idx[row]}: row numbers are GLUE's, each once, "
                "in ascending order"
            )
    if dev is None:
        return found[task.validation][1]
    return aligned(found[task.validation], dev, f"{path}, {task.validation}")


def read_splits(
    path: Path, name: str, own: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split to idx and prediction, [n] each, checked as far as they can be without a dev set.

    With `own` the file is of a run at hand: an entry's limits need not hold. A split without rows
    has empty arrays.
    """
    task = glue.get(name)
    table = _open(path, task, own)
    splits = task.splits[1:]
    other = sorted(set(table["split"].unique().to_pylist()) - set(splits))
    if other:
        raise UserError(f"{path}: split = {other[0][:40]!r}: must be {' or '.join(splits)}")
    idx, values = (table[column].to_numpy() for column in ("idx", "prediction"))
    low, high = (0, len(task.labels) - 1) if task.labels else STSB_RANGE
    if own and not task.labels:
        low, high = np.finfo(np.float64).min, np.finfo(np.float64).max
    good = (values >= low) & (values <= high)  # false of NaN
    if not good.all():
        row = int(np.argmin(good))
        raise UserError(
            f"{path}: row {row}: prediction = {values[row]}: must be {low:g} to {high:g}"
        )
    places = {split: pc.equal(table["split"], split).to_numpy() for split in splits}
    return {split: (idx[place], values[place]) for split, place in places.items()}


def _open(path: Path, task: glue.Task, own: bool) -> pa.Table:
    """A file's table, read only when its schema and sizes are those of predictions."""
    # As a dictionary, a long text that is repeated in every row takes its memory once.
    with corpus.reading(path), pq.ParquetFile(path, read_dictionary=["split"]) as file:
        _check_schema(path, file.schema_arrow, task)
        if not own:
            _check_sizes(path, file.metadata, task)
        table = file.read()
        table.validate(full=True)
    for column in COLUMNS:
        if table[column].null_count:
            raise UserError(f"{path}: {column} = null: every row needs a value")
    return table


def _check_schema(path: Path, schema: pa.Schema, task: glue.Task) -> None:
    if sorted(schema.names) != sorted(COLUMNS):
        names = ", ".join(schema.names)[:200]
        raise UserError(f"{path}: columns = {names!r}: must be {', '.join(COLUMNS)}")
    number = pa.int64() if task.labels else pa.float64()
    kinds = (pa.dictionary(pa.int32(), pa.string()), pa.int64(), number)
    for column, kind, name in zip(COLUMNS, kinds, ("string", "int64", str(number)), strict=True):
        if (given := schema.field(column).type) != kind:
            raise UserError(f"{path}: {column} is {str(given)[:80]}: must be {name}")


def _check_sizes(path: Path, about: pq.FileMetaData, task: glue.Task) -> None:
    most = sum(task.official_rows[split] for split in task.splits[1:])
    if about.num_rows > most:
        raise UserError(f"{path}: {about.num_rows} rows: GLUE's dev set has {most}")
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    if (size := sum(group.total_byte_size for group in groups)) > UNPACKED_LIMIT:
        raise UserError(f"{path}: unpacked size = {size} bytes: at most {UNPACKED_LIMIT}")
    for group in groups:
        for number in range(group.num_columns):
            if "DELTA_BYTE_ARRAY" in group.column(number).encodings:
                raise UserError(f"{path}: encoding = DELTA_BYTE_ARRAY: is not read; use plain")


def aligned(found: tuple[np.ndarray, np.ndarray], labels: pd.DataFrame, where: str) -> np.ndarray:
    """Predictions of one split (of `read_splits`), which must be those of its labels, in order."""
    (have, values), want = found, labels["idx"].to_numpy()
    if len(have) != len(want):
        raise UserError(f"{where}: {len(have)} predictions for {len(want)} examples")
    if not np.array_equal(have, want):
        place = int(np.flatnonzero(have != want)[0])
        raise UserError(
            f"{where}: row {place} is example {have[place]}, it must be {want[place]}: "
            "examples are missing, doubled or shuffled"
        )
    return values


def recompute(path: Path, task: str, labels: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Score, metrics and note that follow from kept predictions, as a record has them.

    `labels` are by split, the headline's first: tables with idx and label.
    """
    from helpers.data import metrics

    found = read_splits(path, task, own=True)
    values = {s: aligned(found[s], table, f"{path}, {s}") for s, table in labels.items()}
    truth = {split: table["label"].to_numpy() for split, table in labels.items()}
    return metrics.score_splits(task, values, truth)


def stacked(
    run: Path, found: pd.DataFrame, truth: dict[str, pd.DataFrame]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """What ``statistics.resample`` takes, of every model that has all tasks.

    `found` is of `view.load_records`, `truth` has idx and label of each task's headline split.
    Model to task to [seeds, examples], and task to labels [examples].
    """
    models: dict[str, dict[str, np.ndarray]] = {}
    for model, mine in found.groupby("model", sort=False):
        if not set(truth) <= set(mine["task"]):
            continue
        models[str(model)] = {}
        for task, labels in truth.items():
            runs, split = [], glue.get(task).validation
            for seed in mine.loc[mine["task"] == task, "seed"]:
                path = records.folder(run, str(model), task) / f"seed-{seed}.parquet"
                part = read_splits(path, task, own=True)[split]
                runs.append(aligned(part, labels, f"{path}, {split}"))
            models[str(model)][task] = np.stack(runs)
    return models, {task: labels["label"].to_numpy() for task, labels in truth.items()}
