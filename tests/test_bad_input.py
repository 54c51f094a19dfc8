"""Bad input: each row one defect and the line it must give; what was finished stays as it was.

Rows that stand beside what they are about: parameters (test_config), models (test_models), splits
(test_sources), the Hub (test_hub), checkpoints and locks (test_survival), entries of the
leaderboard (test_leaderboard), records (test_tables), command lines (test_grid).
"""

import contextlib
import json
import resource
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from makers import (
    ROOT,
    command,
    data_stage,
    make_folder,
    pretraining,
    small_profile,
    trained,
)
from safetensors.torch import load_file, save_file

from helpers.base import config, files
from helpers.base.errors import Diverged, UserError
from helpers.data import corpus, glue, packing, tokenizer
from helpers.model import registry
from helpers.study import cli
from helpers.train import checkpoint, finetune, objectives, pretrain


def tree(folder):
    """Every file below a folder with its bytes; locks and bars aside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@contextlib.contextmanager
def refused(says, folder, kind=UserError):
    """Inside, one line is raised and nothing in the folder changes."""
    before = tree(folder)
    with pytest.raises(kind, match=says):
        yield
    assert tree(folder) == before


# --- parameters and files of parameters --------------------------------------------------------

TINY = (ROOT / "profiles" / "tiny.yaml").read_text()
END = len(TINY.splitlines()) + 1

PROFILES = {
    "more positions than any model has": (
        TINY.replace("max_length: 32", "max_length: 1024"),
        "max_length = 1024: .*less than or equal to 512",
    ),
    "a parameter twice": (TINY + "clip: 2.0\n", f"line {END}: field clip stands there twice"),
    "a number for a name": (TINY + "1: 2\n", f"line {END}: a field's name must be text"),
    "an object of Python's": ("a: !!python/object:os.system {}", "line 1: could not determine"),
    "a nest without an end": ("a: " + "[" * 5000, "nested too deeply"),
    "latin-1": ("profile: café".encode("latin-1"), "can't decode byte 0xe9"),
    "a NUL byte": ("profile: \0", "special characters are not allowed"),
    "a list": ("- tiny", "must map field names to values"),
    "a bracket that is open": ("a: [1", "not YAML"),
    "a megabyte": ("#" * 2**20, "size = 1048576 bytes: at most 65536"),
}


@pytest.mark.parametrize("name", PROFILES)
def test_a_bad_profile_is_one_line(tmp_path, name):
    text, says = PROFILES[name]
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with refused(rf"mine\.yaml: .*{says}", tmp_path):
        config.load_profile(str(path))


ARCHITECTURES = {
    "heads that do not divide": (
        '{"model_type": "bert", "hidden_size": 100, "num_attention_heads": 3}',
        r"model_type = 'bert': not a configuration .*\(100\) is not a multiple .*\(3\)",
    ),
    "text for a number": ('{"model_type": "bert", "num_attention_heads": "x"}', "num_attention_he"),
    "an unknown activation": ('{"model_type": "bert", "hidden_act": "nope"}', "nope"),
    "a negative size": ('{"model_type": "bert", "hidden_size": -8}', "negative dimension -8"),
    "no object": ("[]", r"config\.json: must be a JSON object"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_bad_architecture_is_one_line(tmp_path, monkeypatch, name):
    text, says = ARCHITECTURES[name]
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "config.json").write_text(text)
    monkeypatch.setattr(registry, "root", lambda: tmp_path)
    with refused(says, tmp_path):
        objectives.build(registry.get("mine"), registry.get_size("tiny"), 100, 64)


# --- data: a folder that worked, then a defect, then the same folder repaired ------------------


def not_utf8(*values):
    """A string column with bytes as they are."""
    ends = np.cumsum([0, *map(len, values)]).astype("int32")
    buffers = [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


LATIN = "café".encode("latin-1")
COLA = {"sentence": ["a", "b", "c"], "label": [0, 1, 0]}
CORPUS, TRAIN = "corpus/a.parquet", "glue/cola/train.parquet"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n".encode()

SOURCES = {
    "a corpus cut short": (CORPUS, lambda whole: whole[:-9], "a.parquet: not readable as Parquet"),
    "a corpus of bytes": (CORPUS, {"text": [b"a"]}, "a.parquet: column text is binary; it must be"),
    "latin-1 in a corpus": (
        CORPUS,
        {"text": not_utf8(b"plain", "é".encode(), LATIN)},
        r"a\.parquet: not readable as Parquet .*Invalid UTF8 sequence at string index 2",
    ),
    "a corpus of blanks": (CORPUS, {"text": ["", " "]}, "folder real/corpus has no document"),
    "a split with garbage for a page": (
        TRAIN,
        lambda whole: whole[:30] + bytes(b ^ 85 for b in whole[30:200]) + whole[200:],
        "train.parquet: not readable as Parquet",
    ),
    "latin-1 in a split": (
        TRAIN,
        COLA | {"sentence": not_utf8(b"plain", LATIN, b"c")},
        r"train\.parquet: not readable as Parquet .*Invalid UTF8 sequence at string index 1",
    ),
    "a corpus without text": (CORPUS, {"body": ["a"]}, r"has no column text \(it has body\)"),
    "a missing column": (TRAIN, {"label": [0, 1, 0]}, r"train\.parquet: has no column sentence"),
    "a missing label": (TRAIN, {"sentence": ["a", "b", "c"]}, "has no column label"),
    "a label out of range": (
        TRAIN,
        COLA | {"label": [2, 0, 1]},
        "row 0: label = 2; it must be 0 to",
    ),
    "hidden labels": (TRAIN, COLA | {"label": [-1, -1, -1]}, "hidden test labels"),
    "labels as text": (
        TRAIN,
        COLA | {"label": ["1", "0", "1"]},
        "label is .*; it must be a number",
    ),
    "labels as truth": (TRAIN, COLA | {"label": [True, False, True]}, "label is bool"),
    "a label between": (TRAIN, COLA | {"label": [0.5, 0, 1]}, "row 0: label = 0.5"),
    "a null text": (TRAIN, COLA | {"sentence": ["a", None, "c"]}, "row 1: sentence = "),
    "numbers for text": (
        TRAIN,
        COLA | {"sentence": [0, 1, 2]},
        "row 0: sentence = 0; it must be t",
    ),
    "a null label": (TRAIN, COLA | {"label": [0, None, 1]}, "row 1: label = nan; it must be 0 to"),
    "an infinite label": (TRAIN, COLA | {"label": [0.0, np.inf, 1.0]}, "row 1: label = inf"),
    "lists for labels": (TRAIN, COLA | {"label": [[0], [1], [0]]}, "label is object; it must be a"),
    "text for row numbers": (TRAIN, COLA | {"idx": ["0", "1", "x"]}, "idx is .*; it must be a"),
    "a null row number": (TRAIN, COLA | {"idx": [0, None, 2]}, "idx is .*; it must be a whole num"),
    "an empty dev split": (
        "glue/cola/validation.parquet",
        {"sentence": pa.array([], pa.string()), "label": pa.array([], pa.int64())},
        r"validation\.parquet: has no rows",
    ),
    "a Git LFS pointer for a corpus": (CORPUS, lambda _: POINTER, r"a\.parquet: is a Git LFS poi"),
    "one for a split": (TRAIN, lambda _: POINTER, r"train\.parquet: is a Git LFS pointer; `git"),
    "one for a description": ("source.yaml", lambda _: POINTER, r"source\.yaml: is a Git LFS p"),
    "a split of one label": (TRAIN, COLA | {"label": [1, 1, 1]}, "label = 1 in all of its 3 rows"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_defect_of_the_data_changes_nothing_that_was_made(tmp_path, name):
    place, change, says = SOURCES[name]
    folder = make_folder(tmp_path / "real", ["cola", "rte"])
    parameters = data_stage(tmp_path, folder)
    corpus.run(parameters)
    glue.prepare(parameters)
    path = folder / place
    whole = path.read_bytes() if path.exists() else None
    if callable(change):
        path.write_bytes(change(whole))
    else:
        pq.write_table(pa.table(change), path)
    with refused(says, parameters.folder):
        corpus.run(parameters)
        glue.run(parameters, "cola")
    path.unlink()
    if whole:
        path.write_bytes(whole)
    made = tree(parameters.folder)
    corpus.run(parameters)
    glue.prepare(parameters)
    assert tree(parameters.folder) == made


def test_more_columns_and_empty_texts_are_no_defect(tmp_path):
    folder = make_folder(tmp_path / "real", ["cola"])
    table = {"sentence": ["a", "", "b\0c"], "label": [0, 1, 0], "source": ["x"] * 3}
    pq.write_table(pa.table(table), folder / "glue" / "cola" / "train.parquet")
    parameters = data_stage(tmp_path, folder)
    glue.run(parameters, "cola")
    made = glue.load(parameters.folder, "cola", "train")
    assert list(made) == ["sentence", "label", "idx"]
    assert made["sentence"].tolist() == table["sentence"]


def test_a_folder_in_a_files_place_is_named(tmp_path):
    folder = make_folder(tmp_path / "real", ["cola"])
    (folder / "corpus" / "b.parquet").mkdir()
    with refused(r"b\.parquet: cannot read: Is a directory", tmp_path):
        corpus.run(data_stage(tmp_path, folder))


WORDS = [f"{a}{b}{c}" for a in "bdfglm" for b in "aeiou" for c in "nrst"]
UNUSUAL = {
    "NUL bytes": lambda: ["one\0two three \0"] * 500,
    "one character a million times": lambda: ["a" * 10**6, "-" * 10**6, *WORDS],
    "a document of 1 MB": lambda: [" ".join(np.random.default_rng(0).choice(WORDS, 250_000))],
    "thirty thousand documents of a word": lambda: WORDS * 250,
}


def unusual(folder, texts, kinds=("wordpiece", "bpe")):
    make_folder(folder / "real", ["cola"])
    pq.write_table(pa.table({"text": texts}), folder / "real" / "corpus" / "a.parquet")
    parameters = data_stage(folder, folder / "real")
    found = corpus.run(parameters)
    assert found["documents"] + found["held_out"]["documents"] == len(texts)
    for kind in kinds:
        made = small_profile(folder).stage(config.Tokenizer, tokenizer_kind=kind)
        assert tokenizer.run(config.Tokenizer(**made))["rows"] > 0
    return parameters.folder


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_corpus_works(tmp_path, name):
    unusual(tmp_path, UNUSUAL[name]())


@pytest.mark.slow
def test_a_document_of_4_mb_fits_in_memory(tmp_path):
    code = (
        "import resource, sys, pathlib; import numpy as np; sys.path.insert(0, 'tests')\n"
        "import test_bad_input as test\n"
        "text = ' '.join(np.random.default_rng(0).choice(test.WORDS, 1_000_000))\n"
        "test.unusual(pathlib.Path(sys.argv[1]), [text], ['bpe'])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    done = command("-c", code, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) < 2000  # MiB; importing torch takes 600, a run to 1,560


def test_a_long_document_is_encoded_in_pieces_that_change_no_token(monkeypatch):
    text = "".join(np.random.default_rng(0).choice(list("abc   \n.,'é\t"), 20_000))
    for kind in ("wordpiece", "bpe"):
        tok = tokenizer.train(kind, 400, lambda: [text])
        found = []
        for size in (10**6, 300):
            monkeypatch.setattr(packing, "PIECE", size)
            found.append(np.concatenate(list(packing.pack([text, "and more"], tok, 32))))
        assert np.array_equal(*found)


def test_a_corpus_too_small_for_a_segment_says_so(tmp_path):
    folder = make_folder(tmp_path / "real", ["cola"])
    pq.write_table(pa.table({"text": ["word"] * 3}), folder / "corpus" / "a.parquet")
    parameters = data_stage(tmp_path, folder)
    corpus.run(parameters)
    made = small_profile(tmp_path).stage(config.Tokenizer, tokenizer_kind="bpe")
    for _ in range(2):
        says = "max_length = 64: the corpus fills no row of 62 tokens"
        with pytest.raises(UserError, match=says):
            tokenizer.run(config.Tokenizer(**made))
    assert not (parameters.folder / "tokenizer" / "bpe" / "manifest.json").exists()


# --- checkpoints and tokenizers ----------------------------------------------------------------


@pytest.fixture
def run(small_run, tmp_path):
    """A copy of the small run that a test may damage."""
    made = small_profile(tmp_path)
    shutil.copytree(small_run.folder, made.folder)
    return made


def tuning(profile, **changes):
    values = profile.stage(config.Finetune, model="scratch", tasks=["cola"], seeds=[0])
    return config.Finetune(**(values | changes))


def test_a_bad_encoder_is_named_and_records_stay(run):
    folder = run.folder / "models" / "scratch"
    weights = load_file(folder / "encoder" / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, folder / "encoder" / "model.safetensors", metadata={"format": "pt"})
    with refused("encoder/model.safetensors: missing or changed since its manifest", run.folder):
        finetune.run(tuning(run))
    # Someone else's checkpoint, with a manifest that vouches for it.
    manifest = files.read_json(folder / "manifest.json")
    files.write_manifest(folder, manifest, list(manifest["files"]))
    with refused(r"encoder: .*weights hold \S+, which is not fi", run.folder):
        finetune.run(tuning(run))


def test_a_bad_tokenizer_stops_pre_training_and_the_model_stays(run):
    folder = run.folder / "tokenizer" / "wordpiece"
    (folder / "tokenizer.json").write_text("{}")
    with refused(r"wordpiece/tokenizer\w*\.json: missing or changed", run.folder):
        pretrain.run(pretraining(run, "bert", pretrain_seed=5))


def test_an_edited_manifest_is_named(run):
    folder = run.folder / "models" / "scratch"
    whole = files.read_json(folder / "manifest.json")
    without = {name: value for name, value in whole.items() if name != "specification"}
    for edited, says in (
        (None, "must be a JSON object, not NoneType"),
        (without, "has no specification: delete"),
    ):
        (folder / "manifest.json").write_text(json.dumps(edited))
        with refused(rf"manifest\.json: {says}", run.folder):
            finetune.run(tuning(run))


def test_an_impossible_precision_leaves_finished_work(run):
    for stage, parameters in ((pretrain, pretraining(run, "bert")), (finetune, tuning(run))):
        with refused("precision = 'float16': on a CPU", run.folder):
            stage.run(parameters.model_copy(update={"precision": "float16"}))


# --- training that diverges --------------------------------------------------------------------


def break_at(monkeypatch, module, name, number, change):
    """From a call on, `change` is made of what a function returns."""
    real, calls = getattr(module, name), []

    def breaks(*arguments, **options):
        calls.append(1)
        found = real(*arguments, **options)
        return change(found) if len(calls) >= number else found

    monkeypatch.setattr(module, name, breaks)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda loss: loss * float("nan"), "the loss is not finite at step 6"),
        (lambda loss: loss * 3, r"the loss is \d+.* at step 8, was \d\.\d+ at the first step"),
    ],
    ids=["nan", "three times the first"],
)
def test_a_loss_that_diverges_stops_with_the_last_good_state(run, monkeypatch, change, says):
    made = tree(run.folder)
    break_at(monkeypatch, objectives, "masked_loss", 6, change)
    monkeypatch.setattr(pretrain._Upkeep, "maybe_evaluate", lambda *_: None)
    wrong = pretraining(run, "bert", pretrain_seed=5)
    folder = run.folder / "models" / "bert"
    with pytest.raises(
        UserError,
        match=f"pretrain_learning_rate = 0.0015: bert diverges, {says}; lower the rate.*anew.*; "
        f"the checkpoint of step 4 is kept in {folder}",
    ):
        pretrain.run(wrong)
    (kept,) = folder.glob("checkpoint-*")
    monkeypatch.undo()
    # What was finished is there, and not done again when the parameters are as they were.
    pretrain.run(pretraining(run, "bert"))
    there = tree(run.folder)
    del there[str(kept.relative_to(run.folder))]
    assert there == made
    # The last good state is one to go on from.
    assert pretrain.run(wrong)["pretrain"]["steps"] == run.pretrain_steps


def test_weights_that_are_not_finite_take_no_good_checkpoints_place(tmp_path):
    checkpoint.save(tmp_path, *trained(2), {"spec": "a", "step": 2})
    model, optimiser = trained(4)
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    says = f"model.0.weight is not finite after step 4: lower.*step 2 is kept in {tmp_path}"
    with refused(says, tmp_path, Diverged):
        checkpoint.save(tmp_path, model, optimiser, {"spec": "a", "step": 4})


def test_a_spike_that_comes_down_again_goes_on(run, monkeypatch):
    real, calls = objectives.masked_loss, []

    def spike(*arguments):
        calls.append(1)
        return real(*arguments) * (3 if len(calls) in (5, 6) else 1)

    monkeypatch.setattr(objectives, "masked_loss", spike)
    assert pretrain.run(pretraining(run, "bert", pretrain_seed=5))["pretrain"]["steps"] == 12


def test_a_fine_tuning_that_diverges_names_task_seed_and_step(run, monkeypatch):
    before = tree(run.folder / "records")
    break_at(monkeypatch, finetune, "loss", 3, lambda loss: loss * float("nan"))
    says = (
        "finetune_learning_rate = 0.001: scratch on cola, seed 7 diverges, the loss is not finite "
        "at step 3; lower the rate.*; the checkpoint of step 2 is kept in"
    )
    with pytest.raises(UserError, match=says):
        finetune.run(tuning(run, seeds=[7], checkpoint_steps=2, finetune_batch_size=8))
    assert tree(run.folder / "records") == before


def test_a_task_that_fails_leaves_the_others_theirs(run, monkeypatch):
    factors = iter([float("nan")])
    break_at(monkeypatch, finetune, "loss", 1, lambda loss: loss * next(factors, 1.0))
    with pytest.raises(UserError, match="scratch on cola, seed 8 diverges"):
        finetune.run(tuning(run, tasks=["cola", "rte"], seeds=[8]))
    assert (run.folder / "records" / "scratch" / "rte" / "seed-8.json").exists()
    assert not (run.folder / "records" / "scratch" / "cola" / "seed-8.json").exists()


# --- places that cannot be written -------------------------------------------------------------


def in_the_way(path):
    shutil.rmtree(path, ignore_errors=True)
    path.write_text("a file")


STAGES = {
    "corpus": ("data", lambda run: corpus.run(config.Data(**run.stage(config.Data)))),
    "tasks": ("data", lambda run: glue.prepare(config.Data(**run.stage(config.Data)))),
    "tokenizer": (
        "tokenizer",
        lambda run: tokenizer.run(config.Tokenizer(**run.stage(config.Tokenizer))),
    ),
    "pre-training": ("models", lambda run: pretrain.run(pretraining(run, "bert"))),
    "fine-tuning": ("records", lambda run: finetune.run(tuning(run))),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_file_where_a_folder_should_be(run, name):
    folder, stage = STAGES[name]
    in_the_way(run.folder / folder)
    with refused(rf"{run.folder}/{folder}.*: cannot write: ", run.folder):
        stage(run)


@contextlib.contextmanager
def full_after(size):
    """No file may grow beyond `size` bytes, as with a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("name", "size", "folder", "says"),
    [
        ("corpus", 1000, "data/corpus", r"data/\.corpus\.partial/part-00000\.parquet"),
        ("tasks", 1000, "data/glue", r"data/glue/\.cola\.partial/train\.parquet"),
        ("tokenizer", 8000, "tokenizer/wordpiece", "tokenizer/wordpiece"),
        ("tokenizer", 30_000, "tokenizer/wordpiece", "tokenizer/wordpiece"),
        ("pre-training", 4000, "models/bert", "models/bert/checkpoint-.*"),
        ("fine-tuning", 500, "records/scratch", r"cola/seed-0\.parquet"),
    ],
)
def test_a_disk_that_fills_while_a_stage_writes(run, name, size, folder, says):
    whole = tree(run.folder / folder)
    shutil.rmtree(run.folder / folder)
    stage = STAGES[name][1]
    with full_after(size), pytest.raises(UserError, match=rf"({says}): cannot write: .*too large"):
        stage(run)
    left = {path.name for path in (run.folder / folder).rglob("*") if path.is_file()}
    assert not left & {"manifest.json", "model.safetensors"}
    assert not [name for name in left if name.startswith(".") and name != ".lock"]
    stage(run)
    if name in ("corpus", "tasks", "tokenizer"):
        assert tree(run.folder / folder) == whole


def test_a_disk_that_fills_while_a_model_is_saved_keeps_the_one_before(run):
    made = tree(run.folder)
    wrong = pretraining(run, "bert", pretrain_seed=5, checkpoint_steps=1000)
    with (
        full_after(4000),
        pytest.raises(UserError, match=r"bert/encoder: cannot write: .*too large"),
    ):
        pretrain.run(wrong)
    assert not (run.folder / "models" / "bert" / "manifest.json").exists()
    pretrain.run(pretraining(run, "bert"))  # not trained again
    assert tree(run.folder) == made


# --- the Hub -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"<html>Please log in to the network</html>",
        b"[]",
        b'{"id": "x", "sha": null}',
        b'{"id": "x", "sha": "main"}',
        b"\xff\xfe\x00",
    ],
)
def test_a_hub_that_answers_garbage(hub, tmp_path, text):
    parameters = config.Data(**small_profile(tmp_path).stage(config.Data, source="hub"))
    hub.answer = lambda _: (200, {}, text)
    with refused(r"source = 'hub': \S+ .*; or give a folder", tmp_path):
        corpus.run(parameters)


# --- through the front doors -------------------------------------------------------------------


def one_line(done, says):
    assert done.returncode not in (0, None)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("notebook", "parameters", "says"),
    [
        ("notebooks/01_data.ipynb", "{", "parameters: not JSON"),
        ("notebooks/01_data.ipynb", "[1]", "parameters = [1]: must be a JSON object"),
        ("notebooks/07_more.ipynb", "{}", "07_more.ipynb: cannot read: No such file"),
    ],
)
def test_the_runner_refuses_in_one_line(tmp_path, notebook, parameters, says):
    out = tmp_path / "out.ipynb"
    done = command("-m", "helpers.study.notebook", notebook, str(out), parameters)
    one_line(done, says)
    assert not out.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"cells": [], "nbformat": 9}'])
def test_a_damaged_notebook_is_one_line(tmp_path, text):
    path, out = tmp_path / "06_audit.ipynb", tmp_path / "out.ipynb"
    path.write_text(text)
    one_line(command("-m", "helpers.study.notebook", path, out, "{}"), f"{path}: ")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "--profile", "{bad}"], "bad.yaml: pretrain_batch_size = -1"),
        (["run", "--profile", "{heads}"], "generator_fraction = 0.05: hidden 128"),
        (["run", "--profile", "{proc}"], "/proc/runs/small: cannot write"),
        (["verify", "--profile", "{proc}"], "no record; run notebooks/04_finetune"),
        (["check", "--folder", "{bad}"], "bad.yaml: no such folder"),
        (["submit", "--run", "{bad}", "--model=x", "--out", "{out}"], "no finished records"),
    ],
)
def test_commands_refuse_in_one_line(tmp_path, arguments, says):
    values = small_profile("/proc/runs").model_dump(exclude={"model", "tokenizer_kind"})
    profiles = {
        "bad": {"pretrain_batch_size": -1},
        "heads": {"generator_fraction": 0.05, "models": ["electra"], "runs": str(tmp_path / "r")},
        "proc": {},
    }
    places = {"out": str(tmp_path / "out")}
    for name, changes in profiles.items():
        places[name] = str(tmp_path / f"{name}.yaml")
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values | changes))
    with refused(says, tmp_path):
        cli.command_line([text.format(**places) for text in arguments])
