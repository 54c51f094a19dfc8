"""What the data notebook shows of the tasks: rows, balance, lengths, examples."""

from pathlib import Path

import numpy as np
import pandas as pd

from helpers.base import files
from helpers.data import glue


def report(folder: Path, names: list[str]) -> pd.DataFrame:
    """One row per task and split of a run.

    Rows, GLUE's rows, words per example, share of each label, rows repeated inside the split, rows
    that stand in train as well.
    """
    lines = []
    for name in names:
        task = glue.get(name)
        manifest = files.require_manifest(folder / "data" / "glue" / name, "01_data")
        train: set[tuple[str, ...]] = set()
        for split in manifest["rows"]:
            table = glue.load(folder, name, split)
            texts = list(table.loc[:, list(task.columns)].itertuples(index=False, name=None))
            words = np.array([sum(len(text.split()) for text in row) for row in texts])
            if split == "train":
                train = set(texts)
            lines.append(
                {
                    "task": task.name,
                    "split": split,
                    "rows": len(table),
                    "GLUE's rows": task.official_rows[split],
                    "words, median": int(np.median(words)),
                    "words, largest": int(words.max()),
                    "labels": _balance(task, table["label"]),
                    "repeated": len(texts) - len(set(texts)),
                    "also in train": 0 if split == "train" else sum(t in train for t in texts),
                }
            )
    return pd.DataFrame(lines)


def _balance(task: glue.Task, labels: pd.Series) -> str:
    if not task.labels:
        return f"mean {labels.mean():.2f}, sd {labels.std():.2f}"
    shares = labels.value_counts(normalize=True)
    return ", ".join(f"{n} {100 * shares.get(i, 0):.0f} %" for i, n in enumerate(task.labels))


def label_counts(folder: Path, names: list[str]) -> pd.DataFrame:
    """Rows by task, split and label, for :func:`helpers.plots.labels`; a regression is rounded."""
    lines = []
    for name in names:
        task = glue.get(name)
        for split in files.require_manifest(folder / "data" / "glue" / name, "01_data")["rows"]:
            counts = glue.load(folder, name, split)["label"].round().astype(int).value_counts()
            lines += [
                {
                    "task": task.name,
                    "split": "train" if split == "train" else split.replace("_", ", "),
                    "label": task.labels[label] if task.labels else str(label),
                    "rows": int(rows),
                }
                for label, rows in sorted(counts.items())
            ]
    return pd.DataFrame(lines)


def lengths(folder: Path, names: list[str]) -> pd.DataFrame:
    """Words per train example, for :func:`helpers.plots.lengths`: columns name and length."""
    tables = []
    for name in names:
        task, table = glue.get(name), glue.load(folder, name, "train")
        words = sum(table[column].str.split().str.len() for column in task.columns)
        tables.append(pd.DataFrame({"name": task.name, "length": words}))
    return pd.concat(tables, ignore_index=True)


def examples(folder: Path, name: str, count: int = 2) -> pd.DataFrame:
    """The first train examples of each label, with the label's name."""
    task, table = glue.get(name), glue.load(folder, name, "train")
    if not task.labels:
        return table.head(2 * count).drop(columns="idx")
    first = table.groupby("label").head(count).sort_values("label", kind="stable")
    named = first.assign(label=[task.labels[label] for label in first["label"]])
    return named.drop(columns="idx")
