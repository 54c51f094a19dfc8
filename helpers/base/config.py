"""Parameters of the study: one class per stage, every field typed, bounded and with its unit.

A profile (``profiles/*.yaml``) is a flat mapping of fields. ``tiny.yaml`` holds every one, so it is
a papermill parameter file too (``papermill -f``); the others say what differs from their base. A
notebook reads the fields of its own stage with :func:`read`; the audit belongs to no profile.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from helpers.base.errors import UserError, did_you_mean
from helpers.base.files import find, refuse_pointer, resolve, root

BASE = "profiles/tiny.yaml"
YAML_LIMIT = 64 * 1024  # bytes; a profile takes 3,000, a submission with 100 seeds about 2,000
# What PyYAML raises, and its constructors for a value that its tag does not fit.
YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError)


def _words(value: object) -> object:
    """A list as written on a command line: ``"bert, deberta"`` or ``"0 1"`` or ``3``."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _numbers(value: object) -> object:
    parts = _words(value)
    if parts is value:
        return value
    return [int(part) if part.lstrip("-").isdigit() else part for part in parts]


def _plain(text: str) -> str:
    if not text.isprintable() or set("<>") & set(text) or text != text.strip():
        raise ValueError("must be plain text on one line, without < and >")
    return text


Plain = Annotated[str, Field(min_length=1), AfterValidator(_plain)]  # what someone else has written
Names = Annotated[list[str], BeforeValidator(_words), Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Seeds = Annotated[list[Seed], BeforeValidator(_numbers), Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
ZeroOrRate = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Model = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]

Kind = Literal["wordpiece", "bpe"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Strict(BaseModel):
    """Values as they are typed: nothing is converted, nothing unknown is passed over."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Stage(Strict):
    """What every stage knows: which run it belongs to and where runs are kept."""

    profile: Name = Field(description="name of the run: the folder under runs/")
    runs: str = Field(min_length=1, description="folder that holds all runs")

    @property
    def folder(self) -> Path:
        """The folder of this run, ``<runs>/<profile>``."""
        return resolve(self.runs) / self.profile

    @model_validator(mode="after")
    def _check_lists(self) -> "Stage":
        for name in ("models", "tasks", "seeds"):
            values = getattr(self, name, [])
            if len(set(values)) < len(values):
                raise ValueError(f"{name} = {values}: each may stand there once")
        return self


class Training(Stage):
    """What both training stages have."""

    model: Model = Field(description="name in the registry")
    max_length: int = Field(ge=16, le=512, description="tokens per row, specials included")
    clip: float = Field(gt=0, description="largest gradient norm")
    bias_correction: Literal["source", "always"] = Field(
        description="Adam's: source (the model's) or always"
    )
    checkpoint_steps: Count = Field(description="steps between checkpoints")
    checkpoint_minutes: float = Field(ge=0, description="minutes between them; 0: steps alone")
    checkpoints: str = Field(description="folder for them; empty: beside the model")
    precision: Precision = Field(description="auto: by the device")
    threads: Count = Field(description="CPU threads of this job")


class Data(Stage):
    """Parameters of ``01_data``: where the corpus and the tasks come from, and how much of them."""

    source: Literal["embedded", "folder", "hub"] = Field(description="source of the data")
    data: str = Field(description="folder with glue/ and corpus/ (source folder), else empty")
    documents: int = Field(ge=0, description="documents of the corpus; 0: all there are")
    train_rows: int = Field(ge=0, description="train rows per task, at most; 0: all")
    dev_rows: int = Field(ge=0, description="validation rows per task, at most; 0: all")
    world_seed: Seed = Field(description="seed of the embedded world and of row samples")
    world_words: Count = Field(description="open-class words of the embedded world")

    @model_validator(mode="after")
    def _check_source(self) -> "Data":
        if self.source == "folder" and not self.data:
            raise ValueError("data = '': source folder needs a folder with glue/ and corpus/")
        if self.source != "folder" and self.data:
            raise ValueError(f"data = {self.data!r}: only source folder reads one; leave it empty")
        for name in ("documents", "train_rows", "dev_rows"):
            if self.source == "embedded" and getattr(self, name) == 0:
                raise ValueError(f"{name} = 0: the embedded world has no end; give a number")
        return self


class Tokenizer(Stage):
    """Parameters of ``02_tokenizer``: one tokenizer and the corpus packed with it."""

    tokenizer_kind: Kind = Field(description="kind of tokenizer")
    wordpiece_vocabulary: int = Field(ge=64, le=2**20, description="tokens, uncased WordPiece")
    bpe_vocabulary: int = Field(ge=300, le=2**20, description="tokens, cased byte-level BPE")
    max_length: int = Field(ge=16, le=512, description="tokens per row, specials included")
    segments: int = Field(ge=1, le=2, description="segments of a WordPiece row; BPE has one")

    @property
    def vocabulary(self) -> int:
        """The vocabulary asked for from this kind of tokenizer, in tokens."""
        return getattr(self, f"{self.tokenizer_kind}_vocabulary")


class Pretrain(Training):
    """Parameters of ``03_pretrain``: one model, pre-trained on the packed corpus."""

    size: Name = Field(description="row of registry.SIZES")
    generator_fraction: Fraction = Field(description="generator's width; 0: the registry's own")
    pretrain_steps: Count = Field(description="optimiser steps")
    pretrain_batch_size: Count = Field(description="rows per step")
    pretrain_learning_rate: Rate = Field(description="peak of the schedule")
    rtd_learning_rate: ZeroOrRate = Field(description="peak for replaced tokens; 0: the same")
    pretrain_warmup: Fraction = Field(description="part of the steps that is warm-up")
    pretrain_dropout: Fraction = Field(description="dropout, hidden and attention")
    pretrain_seed: Seed = Field(description="seed of weights, order and masks")


class Finetune(Training):
    """Parameters of ``04_finetune``: one model, some tasks, some seeds."""

    model: Plain = Field(
        description="name in the registry; or a checkpoint, owner/name[@revision] or a folder"
    )
    tasks: Names = Field(description="tasks of GLUE")
    seeds: Seeds = Field(description="one fine-tuning per task and seed")
    finetune_learning_rate: Rate = Field(description="peak of the schedule")
    finetune_batch_size: Count = Field(description="examples per step")
    finetune_epochs: Count = Field(description="passes over the train split")
    finetune_epochs_small: Count = Field(description="the same, for RTE and STS-B")
    finetune_warmup: Fraction = Field(description="part of the steps that is warm-up")
    finetune_layer_decay: float = Field(gt=0, le=1, description="learning rate factor per layer")
    finetune_dropout: Fraction = Field(description="dropout, hidden, attention and head")
    finetune_swap_pairs: bool = Field(description="double MRPC and STS-B by swapped pairs")
    protocol: Literal["fixed", "tuned"] = Field(
        description="tuned: rate and epochs chosen on train rows"
    )


class Analysis(Stage):
    """Parameters of ``05_analysis``: which cells the tables should have."""

    models: Names = Field(description="models, the rows of the tables")
    tasks: Names = Field(description="tasks, their columns")


class Audit(Strict):
    """Parameters of ``06_audit``: the published figures, and the seed of what is simulated."""

    published: str = Field(
        default="results/published.json", min_length=1, description="file of the published figures"
    )
    seed: Seed = Field(default=0, description="seed of the simulation")


class Profile(Data, Tokenizer, Pretrain, Finetune, Analysis):
    """A whole study: the fields of every stage, and the grain of a fine-tuning job."""

    model: Model = Field(default="bert", description="set per job by the grid")
    tokenizer_kind: Kind = Field(default="wordpiece", description="set per job by the grid")
    finetune_job: Literal["task", "model"] = Field(
        description="one job per model and task, or one per model with all its tasks"
    )

    def stage(self, cls: type["Stage"], **job: object) -> dict[str, Any]:
        """The parameters of one stage, with the fields a job sets (``model``, ``tasks``...)."""
        return {name: job.get(name, getattr(self, name)) for name in cls.model_fields}


STAGES: dict[str, type[Stage]] = {
    "01_data": Data,
    "02_tokenizer": Tokenizer,
    "03_pretrain": Pretrain,
    "04_finetune": Finetune,
    "05_analysis": Analysis,
}
NOTEBOOKS: dict[str, type[Strict]] = {**STAGES, "06_audit": Audit}

S = TypeVar("S", bound=BaseModel)


def validate(cls: type[S], values: Mapping[str, object], where: str) -> S:
    """A strict pydantic model, else one line: `where`, the field, its value and the remedy."""
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(cls, fault) for fault in error.errors()]
        raise UserError(f"{where}: " + "; ".join(lines)) from None


def _explain(cls: type[BaseModel], fault: Mapping[str, Any]) -> str:
    place, value, message = fault["loc"], fault["input"], fault["msg"].removeprefix("Value error, ")
    if not place:
        return message
    name, fields = ".".join(map(str, place)), _owner(cls, place).model_fields
    about = fields[place[-1]].description if place[-1] in fields else ""
    if fault["type"] == "missing":
        return f"{name} is missing" + (f" ({about})" if about else "")
    if fault["type"] == "extra_forbidden":
        return f"{name} is not a parameter: {did_you_mean(str(place[-1]), fields)}"
    hint = ""
    if isinstance(value, str) and fault["type"] in ("float_type", "int_type"):
        hint = " (this is text; YAML reads 1e-4 as text, write 1.0e-4)"
    line = f"{name} = {value!r}: {message[0].lower()}{message[1:]}{hint}"
    return f"{line}: {about}" if about else line


def _owner(cls: type[BaseModel], place: tuple[str | int, ...]) -> type[BaseModel]:
    """The model, perhaps inside `cls`, that the last part of a place belongs to."""
    for part in place[:-1]:
        field = cls.model_fields.get(str(part))
        inner = (field.annotation, *get_args(field.annotation)) if field else ()
        models = (kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel))
        cls = next(models, cls)
    return cls


def read(cls: type[S], namespace: dict[str, object]) -> S:
    """Reads a notebook's parameters from its globals; call it after the cell that declares them.

    Parameters of other stages are passed over, so one profile serves every notebook; a name no
    stage knows is an error, because papermill injects misspelt parameters with a mere warning. The
    second call in a kernel does not look for such names: there are those of later cells.
    """
    data = (str, int, float, bool, list, tuple, type(None))
    ours = {
        name: value
        for name, value in namespace.items()
        if isinstance(value, data) and name[0] != "_" and name not in ("In", "Out", "papermill")
    }
    first = "_parameters_were_read" not in namespace
    namespace["_parameters_were_read"] = True
    for name, value in ours.items() if first else ():
        if name not in Profile.model_fields and name not in cls.model_fields:
            hint = did_you_mean(name, cls.model_fields)
            if name == "base":  # of a profile: papermill -f reads that file alone
                hint = "small-bench notebook --profile reads a profile with its base"
            raise UserError(
                f"parameter {name} = {value!r}: no stage has a parameter of this name; {hint}"
            )
    return validate(cls, {k: v for k, v in ours.items() if k in cls.model_fields}, "parameter")


class _YamlLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses aliases, keys that are not text, and a key twice."""

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "aliases are not read", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            why = ""
            if key.tag != "tag:yaml.org,2002:str":
                why = "a field's name must be text"
            elif key.value in seen:
                why = f"field {key.value[:40]} stands there twice"
            if why:
                raise yaml.constructor.ConstructorError(None, None, why, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a small YAML mapping (`YAML_LIMIT`), a profile or what someone else has written."""
    try:
        if (size := path.stat().st_size) > YAML_LIMIT:
            raise UserError(f"{path}: size = {size} bytes: at most {YAML_LIMIT} are read")
        refuse_pointer(path)
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_YamlLoader)  # noqa: S506
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except RecursionError:
        raise UserError(f"{path}: not YAML as read here: nested too deeply") from None
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: {error.problem}" if mark else " ".join(str(error).split())
        raise UserError(f"{path}: not YAML as read here: {line[:200]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must map field names to values, one a line")
    return values


def layers(name: str, **changes: object) -> dict[str, dict[str, object]]:
    """Where the values of a profile stand, by the name of the place; a later one goes over.

    ``profiles/tiny.yaml`` says everything; another file, in ``profiles/`` or not, says its own name
    and what differs from its ``base``, which is tiny where it names none. `name` is a profile's or
    a file ending in .yaml. `changes` come from a command line and count where they are not empty;
    ``data`` also sets ``source`` to ``folder``.
    """
    found: dict[str, dict[str, object]] = {}
    read: set[Path] = set()
    where, last = f"profile {name!r}", Path(BASE).stem
    while name:
        path = find(f"profiles/{name}.yaml")
        if name.endswith((".yaml", ".yml")):  # where one calls from, else of the checkout
            path = Path(name) if Path(name).is_file() else resolve(name)
        if not path.is_file():
            known = sorted(p.stem for p in find("profiles").glob("*.yaml"))
            raise UserError(f"{where}: no file {path.name}; {did_you_mean(name, known)}")
        if path.resolve() in read:
            raise UserError(f"{where}: goes round in a circle; it must end at {last}")
        read.add(path.resolve())
        values = read_yaml(path)
        if found:
            values.pop("profile", None)  # each run has a folder of its own
        base = "" if path.samefile(find(BASE)) else str(values.pop("base", last))
        shown = str(path) if path.name in found else path.name  # your mini.yaml on mini
        found, where, name = {shown: values} | found, f"{path}: base = {base!r}", base
    changes = {key: value for key, value in changes.items() if value not in (None, "")}
    if "data" in changes:
        changes.setdefault("source", "folder")
        here = Path.cwd() / Path(str(changes["data"])).expanduser()
        if here.is_dir() and not here.is_relative_to(root()):  # the caller's, not the checkout's
            changes["data"] = str(here)
    return {**found, "the command line": changes} if changes else found


def load_profile(name: str, **changes: object) -> Profile:
    """The profile that :func:`layers` make."""
    places = layers(name, **changes)
    values = {key: value for values in places.values() for key, value in values.items()}
    where = [*places][-2:] if "the command line" in places else [*places][-1:]
    return validate(Profile, values, " and ".join(where))
