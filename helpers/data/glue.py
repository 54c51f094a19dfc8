"""The eight tasks of GLUE: columns, labels, official sizes; rows from one of three sources."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from helpers.base import config, files
from helpers.base.errors import UserError, did_you_mean
from helpers.base.seeding import numpy_generator
from helpers.data import corpus, synthetic

HUB_NAME = "nyu-mll/glue"


@dataclass(frozen=True)
class Task:
    """A task of GLUE.

    Attributes:
        name: As a reader writes it.
        columns: Text columns, one or two.
        labels: Names in label order; empty for a regression (STS-B, 0 to 5).
        metric: Headline metric, a key of what ``metrics`` computes.
        official_rows: Rows of GLUE's own splits; the second split is the one scores are read on.
        small: Fine-tuned for more epochs (ELECTRA's recipe).
        swap: Train pairs may be doubled by swapping the sentences.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str
    official_rows: dict[str, int]
    small: bool = False
    swap: bool = False

    @property
    def splits(self) -> tuple[str, ...]:
        """Split names, train first."""
        return tuple(self.official_rows)

    @property
    def validation(self) -> str:
        """The split the headline score is computed on."""
        return self.splits[1]


PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")

TASKS: dict[str, Task] = {
    "cola": Task(
        "CoLA",
        ("sentence",),
        ("unacceptable", "acceptable"),
        "matthews_correlation",
        {"train": 8551, "validation": 1043},
    ),
    "sst2": Task(
        "SST-2",
        ("sentence",),
        ("negative", "positive"),
        "accuracy",
        {"train": 67349, "validation": 872},
    ),
    "mrpc": Task(
        "MRPC",
        PAIR,
        ("not_equivalent", "equivalent"),
        "accuracy",
        {"train": 3668, "validation": 408},
        swap=True,
    ),
    "stsb": Task(
        "STS-B", PAIR, (), "spearman", {"train": 5749, "validation": 1500}, small=True, swap=True
    ),
    "qqp": Task(
        "QQP",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        "accuracy",
        {"train": 363846, "validation": 40430},
    ),
    "mnli": Task(
        "MNLI",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        "accuracy",
        {"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832},
    ),
    "qnli": Task(
        "QNLI",
        ("question", "sentence"),
        ENTAILMENT,
        "accuracy",
        {"train": 104743, "validation": 5463},
    ),
    "rte": Task(
        "RTE", PAIR, ENTAILMENT, "accuracy", {"train": 2490, "validation": 277}, small=True
    ),
}


def get(name: str) -> Task:
    """The task of this name.

    Raises:
        UserError: For an unknown name.
    """
    if name not in TASKS:
        raise UserError(f"task = {name!r}: not one of GLUE's eight; {did_you_mean(name, TASKS)}")
    return TASKS[name]


def _split_files(folder: Path, task: str, split: str) -> list[Path]:
    here = folder / "glue" / task
    return sorted([*here.glob(f"{split}.parquet"), *here.glob(f"{split}-*.parquet")])


def available(source: str, data: str, tasks: list[str]) -> list[str]:
    """The tasks a source has; a folder may lack some.

    Args:
        source: ``embedded``, ``folder`` or ``hub``.
        data: The folder, for source ``folder``.
        tasks: Tasks asked for.

    Returns:
        Those of `tasks` that have a train and a validation split, in the same order.

    Raises:
        UserError: For an unknown task, or when none is there.
    """
    specs = {name: get(name) for name in tasks}
    if source != "folder":
        return list(tasks)
    folder = files.resolve(data)
    found = [
        name
        for name, task in specs.items()
        if all(_split_files(folder, name, split) for split in task.splits[:2])
    ]
    if not found:
        raise UserError(
            f"data: {folder}: none of {', '.join(tasks)} there; "
            "expected glue/<task>/train.parquet and validation.parquet"
        )
    return found


def check(table: pd.DataFrame, task: Task, where: str) -> pd.DataFrame:
    """Checks one split against the schema of ``nyu-mll/glue`` and puts its columns in order.

    Args:
        table: Rows as read.
        task: The task.
        where: What an error line begins with.

    Returns:
        The text columns, ``label`` (int64, float64 for a regression) and ``idx`` (int64).

    Raises:
        UserError: For a missing column, a null, a text, label or idx of another type, a label out
            of range, or no rows.
    """
    for column in (*task.columns, "label"):
        if column not in table:
            raise UserError(f"{where}: has no column {column} (it has {', '.join(table.columns)})")
    if table.empty:
        raise UserError(f"{where}: has no rows")
    for column in task.columns:
        bad = ~table[column].map(lambda value: isinstance(value, str))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise UserError(
                f"{where}: row {row}: {column} = {table[column].tolist()[row]!r}; it must be text"
            )
    label = table["label"]
    types = pd.api.types
    if not (types.is_integer_dtype(label) or types.is_float_dtype(label)):
        raise UserError(f"{where}: label is {label.dtype}; it must be a number")
    low, high = (0, len(task.labels) - 1) if task.labels else (0, 5)
    bad = ~label.between(low, high) | (label % 1 != 0 if task.labels else False)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        hint = " (-1 marks GLUE's hidden test labels)" if label.iloc[row] == -1 else ""
        raise UserError(
            f"{where}: row {row}: label = {label.iloc[row]}; it must be {low} to {high}{hint}"
        )
    out = table.loc[:, list(task.columns)].copy()
    out["label"] = label.astype("int64" if task.labels else "float64")
    out["idx"] = np.arange(len(table), dtype="int64")
    if "idx" in table:
        if not types.is_integer_dtype(table["idx"]) or table["idx"].isna().any():
            raise UserError(f"{where}: idx is {table['idx'].dtype}; it must be a whole number")
        out["idx"] = table["idx"].to_numpy("int64")
    return out.reset_index(drop=True)


def cap(table: pd.DataFrame, rows: int, seed: int, *name: str) -> pd.DataFrame:
    """At most `rows` rows, drawn without replacement and left in their order; 0 keeps all."""
    if not rows or rows >= len(table):
        return table
    chosen = numpy_generator("cap", seed, *name).permutation(len(table))[:rows]
    return table.iloc[np.sort(chosen)].reset_index(drop=True)


def train_rows(source: str, data: str, name: str) -> int:
    """Training rows that a source has, without reading them: the folder's, else GLUE's own.

    Args:
        source: ``embedded``, ``folder`` or ``hub``.
        data: The folder, for source ``folder``. GLUE's own number stands for a task it lacks and
            for a damaged file, which the data stage reports.
        name: The task.

    Raises:
        UserError: For an unknown task.
    """
    own = get(name).official_rows["train"]
    paths = _split_files(files.resolve(data), name, "train") if source == "folder" else []
    try:
        return sum(pq.read_metadata(path).num_rows for path in paths) or own
    except (pa.ArrowException, OSError):
        return own


def _read_folder(folder: Path, name: str, split: str) -> pd.DataFrame:
    tables = [read_parquet(path, get(name).columns) for path in _split_files(folder, name, split)]
    for table in tables[1:]:
        if sorted(table) != sorted(tables[0]):
            raise UserError(
                f"{folder}/glue/{name}/{split}-*.parquet: columns {', '.join(table)} in one file, "
                f"{', '.join(tables[0])} in another; they must be the same"
            )
    return pd.concat(tables, ignore_index=True)


def read_parquet(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """A split whose bytes were checked.

    Args:
        path: The file.
        columns: Its texts. With them ``label`` and ``idx`` are read; other columns may be of any
            type. All are read where one of the texts is missing.

    Raises:
        UserError: Naming file, and row where a text is not UTF-8.
    """
    try:
        table = pq.read_table(path)
        wanted = [*columns, "label", "idx"]
        if set(wanted[:-1]) <= set(table.column_names):
            table = table.select([name for name in wanted if name in table.column_names])
        try:
            table.validate(full=True)
        except pa.ArrowInvalid:
            for column in table.column_names:
                if pa.types.is_string(table[column].type):
                    corpus.decode(table[column], path, column)
            raise
        return table.to_pandas(ignore_metadata=True)
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not readable as Parquet ({line})") from None


def read_folder(folder: Path, name: str, split: str) -> pd.DataFrame | None:
    """One split of a folder in the schema of ``nyu-mll/glue``.

    Args:
        folder: Holds ``glue/<task>/<split>.parquet``.
        name: The task.
        split: The split.

    Returns:
        Its rows as :func:`check` gives them; None where the folder has no such file.

    Raises:
        UserError: When the file is damaged or breaks the schema.
    """
    if not _split_files(folder, name, split):
        return None
    where = f"{folder}/glue/{name}/{split}.parquet"
    return check(_read_folder(folder, name, split), get(name), where)


def _read_hub(name: str, split: str, revision: str) -> pd.DataFrame:
    from datasets import load_dataset

    with corpus.reaching_hub(HUB_NAME):
        return load_dataset(HUB_NAME, name, split=split, revision=revision).to_pandas()


def run(parameters: config.Data, name: str, hub_revision: str = "") -> dict[str, Any]:
    """Brings one task into the run's folder, ``data/glue/<task>/``; does nothing twice.

    Args:
        parameters: Of the data stage.
        name: The task.
        hub_revision: Commit of ``nyu-mll/glue``, for source ``hub``.

    Returns:
        The manifest: rows by split, ``reduced`` (splits that have not GLUE's row count),
        ``complete`` (the source claims to be GLUE and no split is reduced).

    Raises:
        UserError: When a split is missing, damaged, or breaks the schema.
    """
    task, source = get(name), parameters.source
    limits = _limits(parameters, task)
    wanted: dict[str, Any] = {"source": source, "task": name, "limits": limits}
    folder = files.resolve(parameters.data)
    if source == "embedded":
        wanted |= {"world_words": parameters.world_words, "world_seed": parameters.world_seed}
    elif source == "folder":
        paths = [path for split in task.splits for path in _split_files(folder, name, split)]
        wanted |= {"files": {p.name: files.sha256(p) for p in paths}}
    else:
        wanted |= {"revision": hub_revision}
    if source != "embedded":
        wanted |= {"seed": parameters.world_seed}
    spec, target = files.digest(wanted), parameters.folder / "data" / "glue" / name
    done = files.intact_manifest(target, spec)
    if done:
        return done
    with files.building(target) as made:
        return _write(parameters, task, name, wanted, made)


def _limits(parameters: config.Data, task: Task) -> dict[str, int]:
    return {
        split: parameters.train_rows if split == "train" else parameters.dev_rows
        for split in task.splits
    }


def _write(
    parameters: config.Data, task: Task, name: str, wanted: dict[str, Any], target: Path
) -> dict[str, Any]:
    """Reads the source and writes what :func:`run` says into an empty folder."""
    source, folder = parameters.source, files.resolve(parameters.data)
    rows: dict[str, int] = {}
    for split, limit in wanted["limits"].items():
        where = f"{name}/{split}"
        if source == "embedded":
            words, seed = parameters.world_words, parameters.world_seed
            texts_and_labels = synthetic.rows(name, split, limit, words, seed)
            table = pd.DataFrame(texts_and_labels, columns=[*task.columns, "label"])
        elif source == "folder":
            if not _split_files(folder, name, split):
                if split in task.splits[:2]:
                    raise UserError(f"data: {folder}/glue/{where}.parquet: no such file")
                continue  # only MNLI's mismatched split, which stands beside the score
            table = _read_folder(folder, name, split)
            where = f"{folder}/glue/{where}.parquet"
        else:
            table = _read_hub(name, split, wanted["revision"])
        table = check(table, task, where)
        if source != "embedded":
            table = cap(table, limit, parameters.world_seed, name, split)
        rows[split] = len(table)
        with files.replacing(target / f"{split}.parquet") as temporary:
            pq.write_table(pa.Table.from_pandas(table, preserve_index=False), temporary)
    headline = task.splits[:2]
    reduced = [split for split in task.splits if rows.get(split) != task.official_rows[split]]
    manifest = {
        "spec": files.digest(wanted),
        "specification": wanted,
        "task": name,
        "source": source,
        "rows": rows,
        "reduced": reduced,
        # MNLI's mismatched half is reported beside the score and is no part of it.
        "complete": source != "embedded" and not set(reduced) & set(headline),
    }
    return files.write_manifest(target, manifest, [f"{split}.parquet" for split in rows])


def load(folder: Path, name: str, split: str) -> pd.DataFrame:
    """One split of a prepared task.

    Args:
        folder: The run's folder.
        name: The task.
        split: The split.

    Raises:
        UserError: When the data stage has not made it.
    """
    here = folder / "data" / "glue" / name
    files.require_manifest(here, "01_data")
    return read_parquet(here / f"{split}.parquet", get(name).columns)


def prepare(parameters: config.Data) -> dict[str, dict[str, Any]]:
    """Runs :func:`run` for every task the source has; task to manifest."""
    revision = corpus.hub_revision(HUB_NAME) if parameters.source == "hub" else ""
    names = available(parameters.source, parameters.data, list(TASKS))
    return {name: run(parameters, name, revision) for name in names}


def finished(parameters: config.Data) -> dict[str, dict[str, Any]] | None:
    """What :func:`prepare` gives where that is done, else None; the source itself is not read."""
    found = {}
    for name in available(parameters.source, parameters.data, list(TASKS)):
        made = files.find_manifest(parameters.folder / "data" / "glue" / name)
        if not made or not corpus.follows(made["specification"], parameters):
            return None
        stated = {"seed": parameters.world_seed, **made["specification"]}
        if stated["seed"] != parameters.world_seed:
            return None
        if stated["limits"] != _limits(parameters, get(name)):
            return None
        found[name] = made
    return found
