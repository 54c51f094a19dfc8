"""One JSON record per finished fine-tuning: the score and all it takes to trust it."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from helpers.base import files
from helpers.base.config import Strict, validate

SCHEMA = 3
# Parameters that the protocol ``tuned`` chooses for each task.
CHOSEN = {"finetune_learning_rate", "finetune_epochs", "finetune_epochs_small"}
FLOORS = ("bag-of-words", "majority")  # rows of every table that no model is behind


class Pretraining(Strict):
    """What pre-training took; all zero for a model fine-tuned from scratch.

    Of a checkpoint from elsewhere the number of parameters is known and all else null.
    """

    steps: int | None = Field(ge=0)
    tokens: int | None = Field(ge=0)
    epochs: float | None = Field(ge=0, description="passes over the packed corpus")
    flops: float | None = Field(ge=0, description="matrix products, forward and backward")
    seconds: float | None = Field(ge=0)
    compile_seconds: float | None = Field(
        default=None, ge=0, le=0, description="0 or null, in older records"
    )
    joules: float | None = Field(default=None, ge=0, description="energy, in older records")
    bits_per_byte: float | None = Field(
        default=None, ge=0, description="held-out loss of the MLM or the generator; null: none"
    )
    parameters: int = Field(ge=0, description="of the encoder that is fine-tuned")
    generator_parameters: int | None = Field(
        ge=0, description="of the generator, embeddings included"
    )


class Finetuning(Strict):
    """What fine-tuning took."""

    steps: int = Field(ge=0)
    tokens: int = Field(ge=0, description="padding included")
    flops: float = Field(ge=0, description="matrix products, forward and backward")
    seconds: float = Field(ge=0)
    joules: float | None = Field(default=None, ge=0, description="energy, in older records")


class Code(Strict):
    """The code a stage ran from; null outside a git checkout."""

    commit: str | None = Field(pattern="^[0-9a-f]{40}$")
    clean: bool | None = Field(description="no tracked file was changed, none untracked")
    why: str = Field("", description="why there is no commit")


class Hashes(Strict):
    """SHA-256 of the files a score follows from, by name."""

    data: dict[str, str] = Field(description="the task's splits")
    encoder: dict[str, str] = Field(description="weights, configuration and tokenizer")
    corpus: str = Field(description="of the packed corpus' specification")


class Hardware(Strict):
    """Where fine-tuning took place."""

    device: Literal["cpu", "cuda"]
    name: str
    threads: int = Field(ge=1)
    repeatable: bool = Field(
        description="the same parameters give the same bytes, however often the run was "
        "interrupted; false: within the noise of kernels that add in no fixed order"
    )


class Trial(Strict):
    """One pair of values that the protocol ``tuned`` tried, scored on held-out train rows."""

    rate: float = Field(gt=0, description="finetune_learning_rate")
    epochs: int = Field(ge=1)
    train_rows: int = Field(ge=1)
    held_out_rows: int = Field(ge=1)
    score: float = Field(ge=-100, le=100, description="the task's headline metric x 100")
    note: str


class Checkpoint(Strict):
    """Where the weights of an encoder came from that was not pre-trained here."""

    source: str = Field(description="id on the Hugging Face Hub, or the name of a folder")
    commit: str | None = Field(description="of the Hub; null: a folder")
    weights: str = Field(description="SHA-256 of the file of weights, of several that of theirs")
    model_type: str = Field(description="transformers' name of the architecture")
    positions: int | None = Field(ge=1, description="tokens it reads at most; null: no limit")
    shared_layers: bool = Field(description="its layers are one, which has one learning rate")


class Record(Strict):
    """A score with its circumstances; ``score`` is the task's headline metric x 100."""

    schema_version: Literal[3] = Field(alias="schema")
    profile: str
    source: Literal["embedded", "folder", "hub"]
    corpus: str = Field(description="the pre-training corpus, as a reader would name it")
    size: str
    model: str
    task: str
    seed: int = Field(ge=0)
    score: float = Field(ge=-100, le=100, allow_inf_nan=False)
    metrics: dict[str, float] = Field(description="between -1 and 1, by name")
    note: str
    rows: dict[str, int]
    reduced: list[str] = Field(description="splits without GLUE's own row count")
    complete: bool = Field(description="the task is GLUE's own, train and validation")
    pretrain: Pretraining
    finetune: Finetuning
    pretrain_hardware: Hardware | None = Field(description="null: not known")
    hardware: Hardware
    precision: str
    code: Code = Field(description="of fine-tuning")
    pretrain_code: Code
    protocol: Literal["fixed", "tuned"] = Field(
        default="fixed", description="tuned: learning rate and epochs were chosen by the trials"
    )
    trials: list[Trial] = Field(default=[], description="of tuned, one per pair of the grid")
    checkpoint: Checkpoint | None = Field(default=None, description="null: pre-trained here")
    hashes: Hashes
    versions: dict[str, str]
    parameters: dict[str, Any]
    predictions: str = Field(description="SHA-256 of the kept predictions")
    spec: str = Field(description="SHA-256 of all the score follows from")


def required(cls: type[Strict]) -> list[str]:
    """The fields that a part of every record has."""
    return [name for name, field in cls.model_fields.items() if field.is_required()]


def folder(run: Path, model: str, task: str) -> Path:
    """Where the records of one cell of the table are kept."""
    return run / "records" / model / task


def read(path: Path) -> dict[str, Any]:
    """Reads and checks one record."""
    values = files.read_json(path)
    validate(Record, values, str(path))
    return values


def write_predictions(
    record: Path, predictions: dict[str, np.ndarray], idx: dict[str, np.ndarray]
) -> None:
    """Writes a record's predictions beside it, by split, with GLUE's numbers of the rows."""
    tables = [
        pd.DataFrame({"split": split, "idx": idx[split], "prediction": values})
        for split, values in predictions.items()
    ]
    table = pa.Table.from_pandas(pd.concat(tables), preserve_index=False)
    small = {  # a fifth of what pandas writes, which matters where a run is kept in the repository
        "compression": "zstd",
        "use_dictionary": ["split", "prediction"],
        "column_encoding": {"idx": "DELTA_BINARY_PACKED"},
        "store_schema": False,
    }
    with files.replacing(record.with_suffix(".parquet")) as temporary:
        pq.write_table(table.replace_schema_metadata(), temporary, **small)


def write(path: Path, values: dict[str, Any]) -> None:
    """Checks and writes one record, atomically."""
    validate(Record, values, str(path))
    files.write_json(path, values)


def read_all(run: Path, models: list[str], tasks: list[str]) -> list[dict[str, Any]]:
    """The records that the manifests of a run's cells vouch for; a cell without is passed over."""
    rows = []
    for cell in (folder(run, model, task) for model in models for task in tasks):
        if (cell / "manifest.json").exists():
            remedy = f" with model = {cell.parent.name}"
            names = sorted(files.require_intact(cell, "04_finetune", remedy)["files"])
            rows += [read(cell / name) for name in names if name.endswith(".json")]
    return rows
