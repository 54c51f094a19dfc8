"""The eight tasks of GLUE: columns, labels, official sizes; rows from one of three sources."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from helpers.base import config, files
from helpers.base.errors import UserError, did_you_mean, one_line
from helpers.base.seeding import numpy_generator
from helpers.data import corpus, hub, synthetic

HUB_NAME = "nyu-mll/glue"


@dataclass(frozen=True)
class Task:
    """A task of GLUE."""

    name: str  # as a reader writes it
    columns: tuple[str, ...]  # of text, one or two
    labels: tuple[str, ...]  # names in label order; empty for a regression (STS-B, 0 to 5)
    metric: str  # the headline, a key of what `metrics` computes
    official_rows: dict[str, int]  # of GLUE's own splits; scores are read on the second
    small: bool = False  # fine-tuned for more epochs (ELECTRA's recipe)
    swap: bool = False  # train pairs may be doubled by swapping the sentences
    own: dict[str, list[Path]] = field(default_factory=dict)  # files by split, of one of your own

    @property
    def splits(self) -> tuple[str, ...]:
        """Split names, train first."""
        return tuple(self.official_rows)

    @property
    def validation(self) -> str:
        """The split the headline score is computed on."""
        return self.splits[1]


_PAIR, _QUESTIONS = ("sentence1", "sentence2"), ("question1", "question2")
_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = {"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832}


def _rows(train: int, validation: int) -> dict[str, int]:
    return {"train": train, "validation": validation}


# fmt: off
TASKS: dict[str, Task] = {
    "cola": Task("CoLA", ("sentence",), ("unacceptable", "acceptable"), "matthews_correlation",
                 _rows(8551, 1043)),
    "sst2": Task("SST-2", ("sentence",), ("negative", "positive"), "accuracy", _rows(67349, 872)),
    "mrpc": Task("MRPC", _PAIR, ("not_equivalent", "equivalent"), "accuracy", _rows(3668, 408),
                 swap=True),
    "stsb": Task("STS-B", _PAIR, (), "spearman", _rows(5749, 1500), small=True, swap=True),
    "qqp": Task("QQP", _QUESTIONS, ("not_duplicate", "duplicate"), "accuracy",
                _rows(363846, 40430)),
    "mnli": Task("MNLI", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"),
                 "accuracy", _MNLI),
    "qnli": Task("QNLI", ("question", "sentence"), _ENTAILMENT, "accuracy", _rows(104743, 5463)),
    "rte": Task("RTE", _PAIR, _ENTAILMENT, "accuracy", _rows(2490, 277), small=True),
}
# fmt: on


class OwnTask(config.Strict):
    """``tasks/<name>/task.yaml``: a task of your own, its files beside it."""

    title: config.Plain = Field(description="its name as a table shows it")
    columns: list[config.Plain] = Field(min_length=1, max_length=2, description="of text")
    labels: list[config.Plain] = Field(
        default=[], description="names in label order; none for a regression on 0 to 5"
    )
    metric: Literal["accuracy", "f1", "macro_f1", "matthews_correlation", "spearman", "pearson"]
    train: config.Plain = Field(description="file of the train rows, .parquet or .csv")
    validation: config.Plain = Field(description="file of the rows that are scored")
    small: bool = Field(default=False, description="takes the epochs of RTE and STS-B")

    @model_validator(mode="after")
    def _check(self) -> "OwnTask":
        needs = {"spearman": "none", "pearson": "none", "f1": "two"}.get(self.metric, "two or more")
        count = len(self.labels)
        if not {"none": count == 0, "two": count == 2, "two or more": count > 1}[needs]:
            raise ValueError(f"labels = {self.labels}: {self.metric} needs {needs}")
        for name in ("columns", "labels"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)}: each may stand there once")
        return self


def get(name: str) -> Task:
    """The task of this name, one of the eight or of a folder ``tasks/<name>/``."""
    if name in TASKS:
        return TASKS[name]
    path = files.resolve("tasks") / name / "task.yaml"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}", name) or not path.is_file():
        raise UserError(
            f"task = {name!r}: not one of GLUE's eight, and no tasks/{name}/task.yaml; "
            + did_you_mean(name, TASKS)
        )
    told = config.validate(OwnTask, config.read_yaml(path), str(path))
    places = {split: _own_files(path.parent / getattr(told, split)) for split in _rows(0, 0)}
    rows = {s: sum(_count_rows(p, p.stat().st_mtime_ns) for p in places[s]) for s in places}
    shape = (told.title, tuple(told.columns), tuple(told.labels), told.metric, rows)
    return Task(*shape, small=told.small, own=places)


def own_rules(name: str) -> dict[str, Any]:
    """What a score on a task of your own follows from beside its rows; of GLUE's eight, nothing."""
    task = get(name)
    return {"metric": task.metric, "small": task.small} if task.own else {}


def _own_files(path: Path) -> list[Path]:
    """The file that a task names, with the others where it is one of several by its name."""
    if path.suffix not in (".parquet", ".csv") or not path.is_file():
        raise UserError(f"{path}: no such file; a task's rows are a .parquet or a .csv file")
    if not (part := corpus.SHARD_NAME.fullmatch(path.name)):
        return [path]
    paths = files.visible(path.parent, f"{part[1]}-*-of-{part[3]}.parquet")
    corpus.check_names([path.name for path in paths], str(path.parent))
    return paths


@lru_cache
def _count_rows(path: Path, _: int) -> int:
    if path.suffix == ".csv":
        return len(_read_csv(path, ()))
    with corpus.reading(path):
        return pq.read_metadata(path).num_rows


def _read_csv(path: Path, texts: Iterable[str]) -> pd.DataFrame:
    with one_line(f"{path}: not readable as CSV in UTF-8"):
        files.refuse_pointer(path)
        return pd.read_csv(path, keep_default_na=False, dtype=dict.fromkeys(texts, "str"))


def _split_files(folder: Path, task: str, split: str) -> list[Path]:
    if own := get(task).own:
        return own[split]
    here = folder / "glue" / task
    whole, shards = here / f"{split}.parquet", files.visible(here, f"{split}-*.parquet")
    if whole.exists() and shards:
        raise UserError(f"{whole}: {shards[0].name} is beside it; leave the one or the others")
    corpus.check_names([path.name for path in shards], str(here))
    return [whole] if whole.exists() else shards


def available(source: str, data: str, tasks: list[str]) -> list[str]:
    """Those of `tasks` that can be learnt and scored from a source, at least one."""
    if source == "folder" and not files.resolve(data).is_dir():
        hint = "--data names one, DATA= for make; its layout is on book/run.md"
        raise UserError(f"data = {data!r}: {files.resolve(data)}: no such folder; {hint}")
    others = left_out(source, data, tasks)
    if not (there := [name for name in tasks if name not in others]):
        where = f"data: {files.resolve(data)}: " * (source == "folder")
        why = next(iter(others.values()))
        raise UserError(f"{where}no task of {', '.join(tasks)} can be scored; {why}")
    return there


def announce(source: str, data: str, tasks: list[str]) -> list[str]:
    """What `available` gives, after a printed line for each task that is `left_out`."""
    for line in left_out(source, data, tasks).values():
        print(line)
    return available(source, data, tasks)


def left_out(source: str, data: str, tasks: list[str]) -> dict[str, str]:
    """Tasks that cannot be scored, each with a line: without files, or labels that teach nothing.

    The Hub's labels are seen when its rows are read; so is a damaged file.
    """
    folder, found = files.resolve(data), {}
    for name in tasks:
        task = get(name)
        for split in task.splits[:2] if source == "folder" or task.own else ():
            paths = _split_files(folder, name, split)
            times = tuple(path.stat().st_mtime_ns for path in paths)
            why = _why_not(name, tuple(paths), times) if paths else "no such file"
            if why and name not in found:
                place = "" if paths else f"{folder}/glue/{name}/{split}.parquet: "
                found[name] = f"{name} is left out: {place}{why}"
    return found


@lru_cache
def _why_not(name: str, paths: tuple[Path, ...], _: tuple[int, ...]) -> str:
    """What is wrong with the labels of a split; empty where they can be learnt and scored."""
    try:
        tables = [read_parquet(path, ()) for path in paths]
    except UserError:
        return ""
    try:
        _check_labels(pd.concat(tables, ignore_index=True), get(name), str(paths[0]))
    except UserError as error:
        return str(error)
    return ""


def check(table: pd.DataFrame, task: Task, where: str) -> pd.DataFrame:
    """Checks one split against the schema of ``nyu-mll/glue`` and puts its columns in order.

    The texts come first, then ``label`` (int64, float64 for a regression) and ``idx`` (int64). What
    is wrong is told in a :class:`UserError` that begins with `where`.
    """
    texts = list(task.columns)
    _require(table, texts, where)
    label = _check_labels(table, task, where)
    for column in texts:
        value = _first(table[column], ~table[column].map(lambda value: isinstance(value, str)))
        if value:
            raise UserError(f"{where}: row {value[0]}: {column} = {value[1]!r}; it must be text")
    idx = table.get("idx", pd.Series(range(len(table)), table.index))
    if not pd.api.types.is_integer_dtype(idx) or idx.isna().any():
        raise UserError(f"{where}: idx is {idx.dtype}; it must be a whole number")
    return table[texts].assign(label=label, idx=idx.astype("int64")).reset_index(drop=True)


def _require(table: pd.DataFrame, columns: list[str], where: str) -> None:
    for column in columns:
        if column not in table:
            raise UserError(f"{where}: has no column {column} (it has {', '.join(table.columns)})")


def _check_labels(table: pd.DataFrame, task: Task, where: str) -> pd.Series:
    """The labels as numbers, whole ones for classes, of at least two values."""
    _require(table, ["label"], where)
    if table.empty:
        raise UserError(f"{where}: has no rows")
    label, types = table["label"], pd.api.types
    names = label.map(lambda value: isinstance(value, str)).any() or types.is_bool_dtype(label)
    if any(name.isdigit() for name in task.labels):  # names that look like numbers
        names |= [*task.labels] != [str(number) for number in range(len(task.labels))]
    if task.own and task.labels and names:
        label = label.convert_dtypes().astype(str)  # 1.0, of a column with a gap, is 1
        if value := _first(label, ~label.isin(task.labels)):
            names = ", ".join(task.labels)
            line = f"{where}: row {value[0]}: label = {value[1]!r}; it must be one of {names}"
            raise UserError(line)
        label = label.map(task.labels.index)
    if not (types.is_integer_dtype(label) or types.is_float_dtype(label)):
        raise UserError(f"{where}: label is {label.dtype}; it must be a number")
    low, high = (0, len(task.labels) - 1) if task.labels else (0, 5)
    broken = label % 1 != 0 if task.labels else False
    if value := _first(label, ~label.between(low, high) | broken):
        hint = " (-1 marks GLUE's hidden test labels)" if value[1] == -1 else ""
        raise UserError(
            f"{where}: row {value[0]}: label = {value[1]}; it must be {low} to {high}{hint}"
        )
    _check_alike(label, where)
    return label.astype("int64" if task.labels else "float64")


def _check_alike(label: pd.Series, where: str) -> None:
    if label.nunique() < 2:
        raise UserError(
            f"{where}: label = {label.iloc[0]} in all of its {len(label)} rows; to train and "
            "to score takes two values"
        )


def _first(values: pd.Series, bad: pd.Series) -> tuple[int, Any] | None:
    """The row and the value of the first that is bad."""
    rows = np.flatnonzero(bad)
    return (int(rows[0]), values.tolist()[rows[0]]) if len(rows) else None


def cap(table: pd.DataFrame, rows: int, seed: int, *name: str) -> pd.DataFrame:
    """At most `rows` rows, drawn without replacement and left in their order; 0 keeps all."""
    if not rows or rows >= len(table):
        return table
    chosen = numpy_generator("cap", seed, *name).permutation(len(table))[:rows]
    return table.iloc[np.sort(chosen)].reset_index(drop=True)


def train_rows(source: str, data: str, name: str) -> int:
    """Training rows that a source has, without reading them: the folder's, else GLUE's own.

    A damaged file, which the data stage reports, counts as none.
    """
    official = get(name).official_rows["train"]
    paths = _split_files(files.resolve(data), name, "train") if source == "folder" else []
    try:
        return sum(pq.read_metadata(path).num_rows for path in paths) or official
    except (pa.ArrowException, OSError):
        return official


def read_parquet(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """A split whose bytes were checked: its texts, ``label`` and ``idx``.

    Other columns may be of any type; they are read where one of the texts is missing.
    """
    if path.suffix == ".csv":
        return _read_csv(path, columns)
    with corpus.reading(path):
        there, wanted = pq.read_schema(path).names, [*columns, "label", "idx"]
        known = set(wanted[:-1]) <= set(there)
        table = pq.read_table(path, columns=[n for n in wanted if n in there] if known else None)
        table.validate(full=True)  # that texts are UTF-8
        for number, field_ in enumerate(table.schema):
            if pa.types.is_dictionary(field_.type):  # a pandas category
                plain = table[field_.name].cast(field_.type.value_type)
                table = table.set_column(number, field_.name, plain)
        return table.to_pandas(ignore_metadata=True)


def read_folder(folder: Path, name: str, split: str) -> pd.DataFrame | None:
    """One split of a folder, as :func:`check` gives it; None where there is no such file."""
    paths = _split_files(folder, name, split)
    return _read_files(paths, name) if paths else None


def _read_files(paths: list[Path], name: str) -> pd.DataFrame:
    where = f"{paths[0]}" + f" and {len(paths) - 1} more" * (len(paths) > 1)
    tables = [read_parquet(path, get(name).columns) for path in paths]
    for table in tables[1:]:
        if sorted(table) != sorted(tables[0]):
            raise UserError(
                f"{where}: columns {', '.join(table)} in one file, {', '.join(tables[0])} in "
                "another; they must be the same"
            )
    return check(pd.concat(tables, ignore_index=True), get(name), where)


def run(parameters: config.Data, name: str) -> dict[str, Any]:
    """Brings one task into the run's folder, ``data/glue/<task>/``; does nothing twice.

    The tasks of a run are of one commit of ``nyu-mll/glue``, for source ``hub``: today's, when the
    first is read. The manifest it returns holds rows by split, ``reduced`` (splits that have not
    GLUE's row count) and ``complete`` (the source claims to be GLUE and no split is reduced).
    """
    task = get(name)
    source = "folder" if task.own else parameters.source
    limits = _limits(parameters, task)
    wanted: dict[str, Any] = {"source": source, "task": name, "limits": limits}
    paths: dict[str, list[Path]] = {}
    if source == "embedded":
        wanted |= {"world_words": parameters.world_words, "world_seed": parameters.world_seed}
    else:
        wanted["seed"] = parameters.world_seed
    if source == "folder":
        folder = files.resolve(parameters.data)
        paths = {split: _split_files(folder, name, split) for split in limits}
        named = {f"{s}/{p.name}" if task.own else p.name: p for s in limits for p in paths[s]}
        wanted["files"] = {name: files.sha256(path) for name, path in named.items()}
    if source == "hub":
        wanted["revision"] = commit_read(parameters.folder) or hub.listing(HUB_NAME)[0]
    target = parameters.folder / "data" / "glue" / name
    if done := files.intact_manifest(target, files.digest(wanted)):
        return done
    if source == "hub":
        paths = _download(name, wanted["revision"])
    with files.building(target) as empty:
        rows = {}
        for split in task.splits:
            table = _read(parameters, name, split, source, paths.get(split, []))
            if len(table):
                rows[split] = len(table)
                with files.replacing(empty / f"{split}.parquet") as temporary:
                    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), temporary)
        reduced = [split for split in task.splits if rows.get(split) != task.official_rows[split]]
        manifest = {
            "spec": files.digest(wanted),
            "specification": wanted,
            "task": name,
            "source": source,
            "rows": rows,
            "reduced": reduced,
            # MNLI's mismatched half is reported beside the score and is no part of it.
            "complete": source != "embedded" and not set(reduced) & set(task.splits[:2]),
        }
        return files.write_manifest(empty, manifest, [f"{split}.parquet" for split in rows])


def commit_read(run: Path) -> str:
    """The commit of ``nyu-mll/glue`` that the tasks of a run are of; empty without any."""
    return hub.pinned(files.visible(run / "data" / "glue", "*"))


def _download(name: str, commit: str) -> dict[str, list[Path]]:
    """The files of a task of the Hub, by split."""
    names, found = hub.listing(HUB_NAME, commit)[1], {}
    where = f"source = 'hub': {HUB_NAME} at {commit[:7]}"
    for split in get(name).splits:
        mine = sorted(n for n in names if re.fullmatch(rf"{name}/{split}(-.*)?\.parquet", n))
        corpus.check_names(mine, where)
        if not mine:
            raise UserError(f"{where}: holds no {name}/{split}*.parquet; {hub.OTHERWISE}")
        found[split] = [hub.download(HUB_NAME, file, commit) for file in mine]
    return found


def _limits(parameters: config.Data, task: Task) -> dict[str, int]:
    train, dev = parameters.train_rows, parameters.dev_rows
    return {split: train if split == "train" else dev for split in task.splits}


def _read(
    parameters: config.Data, name: str, split: str, source: str, paths: list[Path]
) -> pd.DataFrame:
    """A checked split of the source; empty for MNLI's mismatched one where a folder lacks it."""
    task, where = get(name), f"{name}/{split}"
    limit, seed = _limits(parameters, task)[split], parameters.world_seed
    if source == "embedded":
        rows = synthetic.rows(name, split, limit, parameters.world_words, seed)
        table = check(pd.DataFrame(rows, columns=[*task.columns, "label"]), task, where)
    elif paths:
        table, where = _read_files(paths, name), str(paths[0])
    elif split in task.splits[:2]:
        folder = files.resolve(parameters.data)
        raise UserError(f"data: {folder}/glue/{where}.parquet: no such file")
    else:
        return pd.DataFrame()
    table = cap(table, limit, seed, name, split)
    _check_alike(table["label"], where)
    return table


def load(folder: Path, name: str, split: str) -> pd.DataFrame:
    """One split of a task in a run's folder, as the data stage has made it."""
    prepared = folder / "data" / "glue" / name
    files.require_manifest(prepared, "01_data")
    return read_parquet(prepared / f"{split}.parquet", get(name).columns)


def load_dev(folder: Path, name: str) -> dict[str, pd.DataFrame]:
    """The dev splits of a task in a run's folder, by name, the headline's first."""
    there = files.require_manifest(folder / "data" / "glue" / name, "01_data")["files"]
    splits = [split for split in get(name).splits[1:] if f"{split}.parquet" in there]
    return {split: load(folder, name, split) for split in splits}


def read_dev(folder: Path, name: str, rows: int, seed: int) -> dict[str, pd.DataFrame]:
    """The dev splits in a folder of one's own, `rows` of each at most, drawn as by :func:`run`."""
    tables = {split: read_folder(folder, name, split) for split in get(name).splits[1:]}
    there = {split: table for split, table in tables.items() if table is not None}
    return {split: cap(table, rows, seed, name, split) for split, table in there.items()}


def digest_dev(tables: dict[str, pd.DataFrame]) -> str:
    """Names dev splits by their numbers and labels alone, whatever wrote their files."""
    found = {
        split: [table[c].tolist() for c in ("idx", "label")] for split, table in tables.items()
    }
    return files.digest(found)


def prepare(parameters: config.Data, tasks: Iterable[str] = TASKS) -> dict[str, dict[str, Any]]:
    """Runs :func:`run` for every task that the source has; task to manifest."""
    names = available(parameters.source, parameters.data, list(tasks))
    with files.lock(parameters.folder / "data", ".glue.lock", wait=True):
        return {name: run(parameters, name) for name in names}


def finished(parameters: config.Data) -> dict[str, dict[str, Any]] | None:
    """What :func:`prepare` gives where that is done, else None; the source itself is not read."""
    manifests = {}
    for name in available(parameters.source, parameters.data, list(TASKS)):
        manifest = files.find_manifest(parameters.folder / "data" / "glue" / name)
        told = manifest["specification"] if manifest else {}
        wanted = {"seed": parameters.world_seed, "limits": _limits(parameters, get(name))}
        same = all(told.get(key, value) == value for key, value in wanted.items())
        if not (manifest and same and corpus.follows(told, parameters)):
            return None
        manifests[name] = manifest
    return manifests
