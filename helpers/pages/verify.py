"""From a run's files back to its figures.

:func:`verify` trusts nothing that it can compute: tables follow from the records, scores from the
predictions and the labels, where these are at hand. What it could not compute it says as well.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from helpers.base import files
from helpers.base.errors import UserError
from helpers.data import glue
from helpers.pages import comparisons, tables, view
from helpers.score import predictions
from helpers.train import records

NO_PREDICTIONS = "their predictions are not kept"
NO_LABELS = "no labels: --data gives them"


@dataclass
class Finding:
    """What became of a run: nothing was `wrong` where that is empty."""

    wrong: list[str] = field(default_factory=list)  # a line each, of file, field and both values
    records: int = 0
    recomputed: int = 0  # scores, from predictions and labels
    skipped: Counter[str] = field(default_factory=Counter)  # scores that were not, by reason
    tables: bool = False  # whether they were computed again, and
    comparisons: bool = False  # the intervals between models
    first: dict[tuple[str, str], tuple[Path, Any]] = field(default_factory=dict)

    def same(self, path: Path, name: str, value: object, of: str) -> Iterator[str]:
        """Says where a value is not that of the first record of the same model or task."""
        first, other = self.first.setdefault((name, of), (path, value))
        if value != other:
            yield f"{path}: {name} is not that of {first}"

    def __str__(self) -> str:
        if self.wrong:
            return f"{len(self.wrong)} differences"
        done = [f"{self.records} records hold together"]
        done[0] += ", and the tables follow from them" * self.tables
        done += [f"{self.recomputed} scores recomputed from labels"] * bool(self.recomputed)
        done += [f"{comparisons.FILE} too"] * self.comparisons
        left = [f"{count} scores ({reason})" for reason, count in sorted(self.skipped.items())]
        compared = f"{comparisons.FILE} and the intervals of controls.csv"
        left += [compared] * (self.tables and not self.comparisons)
        return "; ".join(done) + ("\nnot recomputed: " + ", ".join(left)) * bool(left)


def verify(run: Path, data: Path | None = None) -> Finding:
    """Recomputes what can be of a run: of its cells, and of the tables of one with a ``run.json``.

    Labels are those of the run's own ``data``, else of the folder `data`, ``glue/<task>/``, where
    its rows are those that were scored.
    """
    cells = sorted(path.parent for path in (run / "records").glob("*/*/manifest.json"))
    if not cells:
        raise UserError(f"{run / 'records'}: no record; run notebooks/04_finetune.ipynb first")
    found = Finding()
    labels, absent = _read_labels(run, data, sorted({cell.name for cell in cells}))
    for cell in cells:
        found.wrong += _verify_cell(run, cell, labels, absent, found)
    found.tables = (run / files.RUN).exists()
    if found.tables and not found.wrong:
        shown = view.open_run(run)
        whole = set(shown.headline) <= set(labels) and not found.skipped[NO_PREDICTIONS]
        found.wrong += _verify_tables(shown, labels if whole else None)
        found.comparisons = whole
    return found


def _read_labels(
    run: Path, data: Path | None, tasks: list[str]
) -> tuple[comparisons.Labels, dict[str, str]]:
    """The labels at hand by task, and why there are none of the others."""
    if (run / "data" / "glue").is_dir():
        return {task: glue.load_dev(run, task) for task in tasks}, {}
    if data is None:
        return {}, dict.fromkeys(tasks, NO_LABELS)
    if not (data / "glue").is_dir():
        raise UserError(f"data = {data}: has no folder glue/")
    facts = files.read_json(run / files.RUN) if (run / files.RUN).exists() else {}
    labels, absent, asked = {}, {}, facts.get("parameters", {})
    digests = facts.get("labels", {})
    for task in tasks:
        there = glue.read_dev(data, task, asked.get("dev_rows", 0), asked.get("world_seed", 0))
        if not there:
            absent[task] = f"{task} is not in the data"
        elif digests and glue.digest_dev(there) != digests.get(task):
            absent[task] = f"{task} has other rows there than were scored"
        else:
            labels[task] = there
    return labels, absent


def _verify_cell(
    run: Path, cell: Path, labels: comparisons.Labels, absent: dict[str, str], found: Finding
) -> Iterator[str]:
    try:
        manifest = files.read_manifest(cell / files.MANIFEST)
    except UserError as error:
        yield str(error)
        return
    for name, value in manifest["files"].items():
        path = cell / name
        if not path.exists() or files.sha256(path) != value:
            yield f"{path}: missing or changed since its manifest was written"
        elif path.suffix == ".json":
            found.records += 1
            try:
                record = records.read(path)
                yield from _verify_record(run, path, record, found)
                yield from _verify_score(path, record, labels, absent, found)
            except UserError as error:
                yield str(error)


def _verify_record(run: Path, path: Path, record: dict[str, Any], found: Finding) -> Iterator[str]:
    """A record by itself, beside the others of its model and its task, and by the run's files."""
    model, name, rows, hashes = (record[key] for key in ("model", "task", "rows", "hashes"))
    if path.parts[-3:] != (model, name, f"seed-{record['seed']}.json"):
        yield f"{path}: is the record of {model}, {name}, {record['seed']}"
    task = glue.get(name)
    reduced = [split for split in task.splits if rows.get(split) != task.official_rows[split]]
    yield from _differences(path, record, {"reduced": reduced}, "its rows give")
    yield from found.same(path, "rows", rows, name)
    yield from found.same(path, "hashes.data", hashes["data"], name)
    yield from found.same(path, "hashes.encoder", hashes["encoder"], model)
    yield from found.same(path, "pretrain", record["pretrain"], model)
    beside = {"data": run / "data" / "glue" / name, "encoder": run / "models" / model}
    for part, folder in beside.items() if (run / "data").is_dir() else ():
        for file, value in hashes[part].items():
            if not (folder / file).is_file() or files.sha256(folder / file) != value:
                yield f"{path}: hashes.{part}: {folder / file} is missing or not the one scored"


def _verify_score(
    path: Path,
    record: dict[str, Any],
    labels: comparisons.Labels,
    absent: dict[str, str],
    found: Finding,
) -> Iterator[str]:
    """The predictions of a record by themselves, and its score by the labels or its metrics."""
    told, task = path.with_suffix(".parquet"), record["task"]
    reason = absent.get(task, "")
    if not told.exists():
        reason = NO_PREDICTIONS
    elif files.sha256(told) != record["predictions"]:
        yield f"{path}: predictions: {told.name} is not the one with this hash"
        return
    else:
        yield from _verify_rows(told, record, found)
    if reason:
        found.skipped[reason] += 1
        score = 100 * record["metrics"].get(glue.get(task).metric, math.nan)
        yield from _differences(path, record, {"score": score}, "its metrics give")
    else:
        found.recomputed += 1
        ours = predictions.recompute(told, task, labels[task])
        yield from _differences(path, record, ours, "the predictions give")


def _verify_rows(told: Path, record: dict[str, Any], found: Finding) -> Iterator[str]:
    """The rows of predictions: as many as the record says, each once, the task's in every file."""
    splits = predictions.read_splits(told, record["task"], own=True)
    numbers = {split: idx.tolist() for split, (idx, _) in splits.items() if len(idx)}
    for split, idx in numbers.items():
        wanted, once = record["rows"].get(split, 0), len(set(idx))
        if (len(idx), once) != (wanted, wanted):
            yield f"{told}: {split} has {len(idx)} rows of {once} examples, the record has {wanted}"
    yield from found.same(told, "idx", numbers, record["task"])


def _differences(
    path: Path, record: dict[str, Any], ours: dict[str, Any], source: str
) -> Iterator[str]:
    for name, value in ours.items():
        if not _close(record[name], value):
            yield f"{path}: {name} = {record[name]!r}: {source} {value!r}"


def _close(one: Any, two: Any) -> bool:  # noqa: ANN401
    """Whether values are equal, numbers but for what another processor rounds."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_close(one[key], two[key]) for key in one)
    return math.isclose(one, two, abs_tol=1e-9) if isinstance(one, float) else one == two


def _verify_tables(shown: view.View, labels: comparisons.Labels | None) -> Iterator[str]:
    """The tables of a run, which stand in a folder of their own unless it is a kept one."""
    kept = (shown.run / comparisons.FILE).exists()
    with tempfile.TemporaryDirectory() as name:
        tables.write(shown, Path(name), labels)
        for again in sorted(Path(name).iterdir()):
            there = (shown.run if kept else shown.run / "tables") / again.name
            if again.name == comparisons.FILE and labels is None:
                continue
            if not there.exists():
                yield f"{there}: missing"
            elif there.read_bytes() != again.read_bytes():
                yield f"{there}: {_first_difference(there, again)}"


def _first_difference(old: Path, new: Path) -> str:
    texts = (path.read_bytes().decode(errors="backslashreplace") for path in (old, new))
    lines = (text.splitlines(keepends=True) for text in texts)
    pairs = enumerate(zip_longest(*lines, fillvalue=""), 1)
    number, had, gives = next((n, one, two) for n, (one, two) in pairs if one != two)
    return f"line {number} has {had!r}, the records give {gives!r}"
