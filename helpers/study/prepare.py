"""What a notebook opened alone needs: the stages before it, and a place that lasts.

What makes a stage is imported where one is made: torch takes seconds.
"""

from pathlib import Path
from typing import TypeVar

from helpers.base import config, files
from helpers.data import corpus, glue
from helpers.model import registry

S = TypeVar("S", bound=config.Stage)
DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts Google Drive
# Folders of a run that take long to make again.
LASTING = ("models", "records", "trials", "checkpoints")


def prepare(parameters: S) -> S:
    """Makes the stages before this one that the run lacks, each with a line that says so.

    They are made as the profile says that the run is named after, and only where its data is the
    embedded world; else the stage itself names the notebook to run first. A checkpoint from
    elsewhere is brought into the run, whose tasks may then come from the Hub too; the parameters
    are given back with the name that it has there.
    """
    keep_on_drive(parameters)
    if isinstance(parameters, config.Finetune) and not registry.knows(parameters.model):
        from helpers.train import foreign

        name = foreign.bring(parameters.folder, parameters.model)["model"]
        print(f"models/{name}: the encoder of {parameters.model}, its weights as they are")
        parameters = parameters.model_copy(update={"model": name})
    if not (study := _study(parameters)):
        return parameters
    if isinstance(parameters, config.Finetune):
        _say_recipe(parameters, study)
    with files.lock(study.folder / "data", ".making.lock", wait=True):
        return _make(study, parameters)


def _say_recipe(parameters: config.Finetune, study: config.Profile) -> None:
    """Says where a notebook opened alone does not have the recipe of the profile that it names."""
    given, named = parameters.model_dump(), study.stage(config.Finetune)
    names = [name for name in named if name.startswith("finetune_") or name == "max_length"]
    if others := [f"{n} = {given[n]}, there {named[n]}" for n in names if given[n] != named[n]]:
        print(f"not the recipe of profile {study.profile}: {'; '.join(others)}")


def _make(study: config.Profile, parameters: S) -> S:
    if isinstance(parameters, config.Tokenizer):
        _corpus(study)
    elif isinstance(parameters, config.Pretrain):
        _packed(study, registry.get(parameters.model).tokenizer)
    elif isinstance(parameters, config.Finetune):
        parameters = _tasks(study, parameters)
        if registry.get(parameters.model).objective != "given":
            _pretrained(study, parameters.model)
    elif any(parameters.folder.glob("records/*/*/seed-*.json")):  # the analysis of something
        parameters = _tasks(study, parameters)
    return parameters


def _study(parameters: config.Stage) -> config.Profile | None:
    """The profile that the run is named after, where all data is the embedded world's.

    Of a checkpoint from elsewhere it may be the Hub's too.
    """
    if not files.find(f"profiles/{parameters.profile}.yaml").is_file():
        return None
    shared = {"runs", "checkpoints"}
    if isinstance(parameters, config.Pretrain):
        shared.add("max_length")  # its rows are packed to this length
    study = config.load_profile(parameters.profile, **parameters.model_dump(include=shared))
    made = [files.find_manifest(study.folder / "data" / "corpus")]
    made += [files.read_json(path) for path in study.folder.glob("data/glue/*/manifest.json")]
    sources = {study.source, *(manifest.get("source") for manifest in made if manifest)}
    name = getattr(parameters, "model", "bert")
    allowed = {"embedded", *["hub"] * (registry.get(name).objective == "given")}
    return study if len(sources) == 1 and sources <= allowed else None


def _lacks(study: config.Profile, stage: str, place: str) -> bool:
    """Whether this folder is not there yet; then a line says that it is made."""
    if lacks := not (study.folder / place / files.MANIFEST).exists():
        how = f"made as notebooks/{stage}.ipynb does, profile {study.profile}"
        print(f"{place}: not there yet; {how}")
    return lacks


def _corpus(study: config.Profile) -> None:
    if _lacks(study, "01_data", "data/corpus"):
        corpus.run(config.Data(**study.stage(config.Data)))


def _tasks(study: config.Profile, parameters: S) -> S:
    names = glue.announce(study.source, study.data, parameters.tasks)
    for name in names:
        if _lacks(study, "01_data", f"data/glue/{name}"):
            glue.run(config.Data(**study.stage(config.Data)), name)
    return parameters.model_copy(update={"tasks": names})


def _packed(study: config.Profile, kind: str) -> None:
    if _lacks(study, "02_tokenizer", f"tokenizer/{kind}"):
        from helpers.data import tokenizer

        _corpus(study)
        tokenizer.run(config.Tokenizer(**study.stage(config.Tokenizer, tokenizer_kind=kind)))


def _pretrained(study: config.Profile, model: str) -> None:
    if not _lacks(study, "03_pretrain", f"models/{model}"):
        return
    from helpers.train import pretrain

    _packed(study, registry.get(model).tokenizer)
    pretrain.run(config.Pretrain(**study.stage(config.Pretrain, model=model)))


def keep_on_drive(parameters: config.Stage) -> None:
    """Makes the lasting folders of a run links to folders of Google Drive, where that is mounted.

    A new machine then goes on where the last one was cut off; data and tokens are read at random,
    and come back with the same bytes.
    """
    if not DRIVE.is_dir() or parameters.folder.resolve().is_relative_to(DRIVE.resolve()):
        return
    drive = DRIVE / "small-bench-nlp" / parameters.profile
    with files.writing(drive):
        for name in LASTING:
            here, there = parameters.folder / name, drive / name
            if here.exists() and not here.is_symlink():
                print(f"{here}: made before Drive was mounted; it stays on this machine")
            elif not here.is_symlink():
                there.mkdir(parents=True, exist_ok=True)
                here.parent.mkdir(parents=True, exist_ok=True)
                here.symlink_to(there)
                print(f"{name}: kept in {there}")
