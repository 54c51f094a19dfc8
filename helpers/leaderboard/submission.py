"""What an entry of the leaderboard states: the fields of ``submission.yaml`` and how it is read.

The levels of evidence are not among them: they are computed, by `check`.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, create_model, model_validator

from helpers.base import files
from helpers.base.config import Name, Plain, Seed, Strict, read_yaml, validate
from helpers.base.errors import UserError
from helpers.data import glue

# Version of the benchmark's rules; raise it when a change makes earlier entries incomparable.
RULE = 1
# Of the encoder with its embeddings. The paper's class is about 15 M; its largest model, the
# RoBERTa-small it published, has 22.38 M because of its vocabulary, so the limit admits it.
PARAMETER_LIMIT = 25_000_000
MOST_TRIALS = 12  # of the protocol tuned, for each task
FILE = "submission.yaml"
ADDRESS = r"^https://[A-Za-z0-9][A-Za-z0-9.-]*(/[A-Za-z0-9._~/#?=&%+@-]*)?$"

Text = Annotated[Plain, Field(max_length=200)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Parameters(Strict):
    """Size of the model that is fine-tuned, without its task head."""

    encoder: int | None = Field(ge=0, description="parameters without the embeddings")
    embeddings: int | None = Field(ge=0, description="parameters of the embeddings")
    total: int | None = Field(default=None, ge=1, description="both, where parts are not known")

    @property
    def both(self) -> int | None:
        """Encoder and embeddings together; None where that is not known."""
        if self.encoder is None or self.embeddings is None:
            return self.total
        return self.encoder + self.embeddings


class Hardware(Strict):
    """What the model was pre-trained on."""

    device: Text = Field(description="the GPU, with its memory")
    gpus: Literal[1] = Field(description="the limit of the benchmark: one GPU")
    hours: Number | None = Field(ge=0, description="wall-clock hours of pre-training")


class Protocol(Strict):
    """How a task's score was made of several fine-tunings."""

    selection: Literal["mean", "median", "best"] = Field(description="of the seeds, task by task")
    seeds: list[Seed] | None = Field(
        min_length=1, max_length=100, description="the fine-tuning seeds, the same for all tasks"
    )
    n: int | None = Field(
        ge=1,
        description="fine-tunings behind each score; null where a copied row does not say",
    )
    trials: int = Field(
        default=0,
        ge=0,
        le=MOST_TRIALS,
        description="for each task, of learning rate and epochs on train rows; 0: not tuned",
    )
    rule: int = Field(ge=1, le=RULE, description="version of the benchmark's rules")


class Checkpoint(Strict):
    """Weights from elsewhere that `small-bench score` has fine-tuned; who made them claims how."""

    source: Text = Field(description="id on the Hugging Face Hub, or the name of a folder")
    commit: Text | None = Field(description="of the Hub; null: a folder")
    weights: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the weights")


class Published(Strict):
    """Marks a row that others published, copied as it stands in ``results/published.json``."""

    source: str = Field(description="key of sources")
    row: str = Field(description="key of table1.models")


Scores = create_model(
    "Scores",
    __doc__="The task's metric x 100, of all eight tasks; only a correlation may be negative.",
    __base__=Strict,
    **{
        name: (Number, Field(ge=0 if task.metric == "accuracy" else -100, le=100))
        for name, task in glue.TASKS.items()
    },
)


class Submission(Strict):
    """One entry; a field that is not known is null."""

    name: Name = Field(max_length=60, description="the entry's folder")
    title: Text = Field(description="name of the model as the table shows it")
    link: str = Field(
        max_length=300,
        pattern=ADDRESS,
        description="the model's or its code's https:// address, without spaces and brackets",
    )
    authors: list[Text] = Field(min_length=1, max_length=50)
    licence: Text | None = Field(description="of the weights, an SPDX name where there is one")
    corpus: Text = Field(description="the pre-training corpus, as a reader would name it")
    tokens: int | None = Field(ge=0, description="tokens seen in pre-training, repeats counted")
    parameters: Parameters = Field(description="encoder and embeddings apart")
    hardware: Hardware = Field(description="device, gpus, hours of pre-training")
    protocol: Protocol = Field(description="selection, seeds, n, rule")
    decimals: Literal[1, 2] = Field(description="decimals of the scores; the average has two")
    scores: Scores = Field(description="one per task of GLUE's eight")
    average: Number = Field(description="plain mean of the eight scores")
    published: Published | None = Field(default=None, description="for a row copied from others")
    checkpoint: Checkpoint | None = Field(default=None, description="for weights from elsewhere")

    @model_validator(mode="after")
    def _check(self) -> "Submission":
        if faults := list(_faults(self)):
            raise ValueError("; ".join(faults))
        return self


def _faults(entry: Submission) -> Iterator[str]:
    """What no single field tells; some facts only a row copied from others may leave out."""
    scores, average = dict(entry.scores), entry.average
    for task, value in scores.items():
        if round(value, entry.decimals) != value:
            yield f"scores.{task} = {value}: must have at most {entry.decimals} decimals"
    if abs(average - (mean := fmean(scores.values()))) > 0.005 + 1e-9:
        yield f"average = {average}: the plain mean of the eight scores is {mean:.2f}"
    if round(average, 2) != average:
        yield f"average = {average}: must have at most 2 decimals"
    seeds, n = entry.protocol.seeds, entry.protocol.n
    if seeds and len(set(seeds)) < len(seeds):
        yield f"protocol.seeds = {seeds}: each seed may stand there once"
    elif seeds and n != len(seeds):
        yield f"protocol.n = {n}: {len(seeds)} seeds are listed"
    sizes, both = entry.parameters, entry.parameters.both
    if both != sizes.total and sizes.total is not None:
        yield f"parameters.total = {sizes.total}: encoder and embeddings make {both}"
    if both is not None and both > PARAMETER_LIMIT:
        yield f"parameters = {both}: the class has at most {PARAMETER_LIMIT} with embeddings"
    facts = {"parameters.encoder": sizes.encoder, "parameters.embeddings": sizes.embeddings}
    if not entry.checkpoint:
        facts |= {"licence": entry.licence, "tokens": entry.tokens}
        facts |= {"hardware.hours": entry.hardware.hours}
    for name, value in facts.items():
        if value is None and not entry.published:
            yield f"{name} = null: only a published row may leave it open"


def read(folder: Path) -> Submission:
    """Reads and checks what the entry of a folder states."""
    path = folder / FILE
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: is no plain file")
    entry = validate(Submission, read_yaml(path), str(path))
    if entry.name != folder.name:
        raise UserError(f"{path}: name = {entry.name!r}: must be the folder's, {folder.name!r}")
    return entry


def write(folder: Path, values: dict[str, Any], where: str) -> None:
    """Checks and writes ``submission.yaml``, atomically; an error line begins with `where`."""
    stated = validate(Submission, values, where).model_dump(exclude_unset=True)
    text = yaml.safe_dump(stated, sort_keys=False, allow_unicode=True, width=100)
    files.write_text(folder / FILE, text)
