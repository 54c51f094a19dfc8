"""From a run's files back to its figures.

:func:`verify` trusts nothing that it can compute: scores follow from the kept predictions and the
labels, tables from the records.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.base import config, files
from helpers.base.errors import UserError
from helpers.data import glue
from helpers.pages import tables, view
from helpers.score.predictions import recompute
from helpers.train import records


def verify(run: Path, published: Path, models: list[str], tasks: list[str]) -> list[str]:
    """Recomputes every score and table of a run.

    What is wrong, one line each that names file, field or cell, and both values; empty when
    everything holds.
    """
    cells = sorted(path.parent for path in (run / "records").glob("*/*/manifest.json"))
    if not cells:
        raise UserError(f"{run / 'records'}: no record; run notebooks/04_finetune.ipynb first")
    wrong = [line for cell in cells for line in _verify_cell(run, cell)]
    return wrong or list(_verify_tables(run, published, models, tasks))


def _verify_cell(run: Path, cell: Path) -> Iterator[str]:
    try:
        manifest = files.read_manifest(cell / "manifest.json")
    except UserError as error:
        yield str(error)
        return
    for name, value in manifest["files"].items():
        path = cell / name
        if not path.exists() or files.sha256(path) != value:
            yield f"{path}: missing or changed since its manifest was written"
        elif path.suffix == ".json":
            try:
                yield from _verify_record(run, path, records.read(path))
            except UserError as error:
                yield str(error)


def _verify_record(run: Path, path: Path, record: dict[str, Any]) -> Iterator[str]:
    where = (path.parent.parent.name, path.parent.name, path.stem)
    if where != (record["model"], record["task"], f"seed-{record['seed']}"):
        yield f"{path}: is the record of {record['model']}, {record['task']}, {record['seed']}"
    kept = path.with_suffix(".parquet")
    if not kept.exists() or files.sha256(kept) != record["predictions"]:
        yield f"{path}: predictions: {kept.name} is missing or not the one with this hash"
        return
    task = record["task"]
    beside = {"data": run / "data" / "glue" / task, "encoder": run / "models" / record["model"]}
    for part, folder in beside.items():
        for name, value in record["hashes"][part].items():
            if not (folder / name).is_file() or files.sha256(folder / name) != value:
                yield f"{path}: hashes.{part}: {folder / name} is missing or not the one scored"
    labels = {split: glue.load(run, task, split) for split in glue.get(task).splits[1:]}
    score, metrics, note = recompute(kept, task, labels)
    for name, ours in (("score", score), ("metrics", metrics), ("note", note)):
        if record[name] != ours:
            yield f"{path}: {name} = {record[name]!r}: the predictions give {ours!r}"


def _verify_tables(
    run: Path, published: Path, models: list[str], tasks: list[str]
) -> Iterator[str]:
    shown = view.open_run(run, models, tasks, str(published))
    with tempfile.TemporaryDirectory() as name:
        tables.write(shown, Path(name))
        for again in sorted(Path(name).iterdir()):
            there = run / "tables" / again.name
            if not there.exists():
                yield f"{there}: missing"
            elif there.read_bytes() != again.read_bytes():
                yield f"{there}: {_first_difference(there, again)}"


def _first_difference(old: Path, new: Path) -> str:
    """The first line that differs."""
    lines = [path.read_text(encoding="utf-8").splitlines() for path in (old, new)]
    for number, (one, two) in enumerate(zip(*lines, strict=False), 1):
        if one != two:
            return f"line {number} has {one.strip()[:80]!r}, the records give {two.strip()[:80]!r}"
    return f"{len(lines[0])} lines, the records give {len(lines[1])}"


def verify_profile(profile: config.Profile) -> list[str]:
    """:func:`verify` for the run of a profile, with the tasks its source has."""
    tasks = glue.available(profile.source, profile.data, profile.tasks)
    published = files.find("results/published.json")
    return verify(profile.folder, published, profile.models, tasks)
