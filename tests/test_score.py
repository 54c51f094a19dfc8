"""An encoder from elsewhere: found, refused in one line, brought into a run, scored."""

import json
import re
import shutil

import every_type
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
import yaml
from makers import ROOT, SMALL, make_folder, write_study
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, f1_score

from helpers.base import config, files, machine
from helpers.base.errors import UserError
from helpers.data import glue, metrics, tokenizer
from helpers.leaderboard import submission
from helpers.model import registry
from helpers.pages import beside
from helpers.study import cli, jobs, prepare, score
from helpers.train import batches, finetune, floor, foreign, records, tuning

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(small_run, tmp_path):
    """A checkpoint of another's: BERT's architecture, with a head for three classes."""
    source = small_run.folder / "models" / "bert" / "encoder"
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tok, shape = tokenizer.load(source), shape | {"intermediate_size": 64, "num_labels": 3}
    torch.manual_seed(0)
    place = tmp_path / "encoders" / "mine"
    about = transformers.BertConfig(vocab_size=len(tok), **shape)
    transformers.BertForSequenceClassification(about).save_pretrained(place)
    tok.model_max_length = 512  # as its own would say
    tok.save_pretrained(place)
    return place


@pytest.fixture
def fine_tuning(folder, own_run):
    """Makes parameters of a fine-tuning of that checkpoint."""
    name = foreign.bring(own_run.folder, str(folder))["model"]
    values = own_run.stage(config.Finetune, model=name)
    return lambda **changes: config.Finetune(**values | changes)


def weights(folder):
    return load_file(folder / "model.safetensors")


def change(folder, name="config.json", **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- found


def test_what_a_run_gets_is_the_encoder_and_not_its_head(folder, tmp_path):
    found = foreign.bring(tmp_path, str(folder))
    name, about = found["model"], found["checkpoint"]
    digest = files.sha256(folder / "model.safetensors")
    assert name == f"mine@{digest[:8]}"
    assert (about["weights"], about["commit"], about["positions"]) == (digest, None, 512)
    mine, theirs = weights(tmp_path / "models" / name / "encoder"), weights(folder)
    assert set(mine) == {n.removeprefix("bert.") for n in theirs if n.startswith("bert.")}
    assert all(torch.equal(mine[n], theirs[f"bert.{n}"]) for n in mine)
    assert found["pretrain"]["parameters"] == sum(t.numel() for t in mine.values())
    before = (tmp_path / "models" / name / "manifest.json").stat().st_mtime_ns
    assert foreign.bring(tmp_path, str(folder)) == found
    assert (tmp_path / "models" / name / "manifest.json").stat().st_mtime_ns == before


def test_pickled_weights_in_half_precision_come_to_the_same(folder, tmp_path):
    whole = weights(folder)
    (folder / "model.safetensors").unlink()
    torch.save({n: t.half() for n, t in whole.items()}, folder / "pytorch_model.bin")
    change(folder, dtype="float16")
    found = foreign.bring(tmp_path, str(folder))
    mine = weights(tmp_path / "models" / found["model"] / "encoder")
    assert all(torch.equal(t, whole[f"bert.{n}"].half().float()) for n, t in mine.items())


def test_the_hubs_cache_is_read_without_a_network(folder, hub, monkeypatch):
    """The real client, offline: what a download has left is found by its commit."""
    hub.add_folder("some/encoder", COMMIT, folder)
    foreign.resolve("some/encoder@main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("some/encoder", "some/encoder@main", f"some/encoder@{COMMIT}"):
        found = foreign.resolve(name)
        assert (found.title, found.commit) == ("some/encoder", COMMIT)
        assert found.name == "some--encoder@01234567"
    with pytest.raises(
        UserError, match="'some/other': is not all in the Hub's cache here, and HF_"
    ):
        foreign.resolve("some/other")


def test_an_encoder_stays_at_the_commit_that_the_run_has(folder, hub, tmp_path):
    hub.add_folder("some/encoder", COMMIT, folder)
    made = foreign.bring(tmp_path, "some/encoder")
    assert made["checkpoint"]["commit"] == COMMIT
    change(folder, hidden_dropout_prob=0.2)
    hub.add_folder("some/encoder", "b" * 40, folder)
    assert foreign.bring(tmp_path, "some/encoder") == made
    shutil.rmtree(tmp_path / "hub-cache")
    hub.answer = lambda path: (503, {})
    assert foreign.bring(tmp_path, "some/encoder") == made
    hub.answer = lambda path: None
    assert foreign.bring(tmp_path, "some/encoder@main")["checkpoint"]["commit"] == "b" * 40


# --- refused


def without_embedding(folder):
    found = weights(folder)
    found["bert.embeddings.word_embeddings.weight"][3, 0] = float("nan")
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


def other_weights(folder):
    found = {n.replace("bert.", "other."): t for n, t in weights(folder).items()}
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


def causal(folder):
    about = transformers.GPT2Config(vocab_size=1200, n_embd=32, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(about).save_pretrained(folder)


def code(folder):
    change(folder, model_type="own", auto_map={"AutoModel": "own.Own"})


def pickled(folder):
    (folder / "model.safetensors").unlink()

    class Own:
        def __reduce__(self):
            return open, (str(folder / "mark"), "w")

    torch.save({"bert.embeddings.word_embeddings.weight": Own()}, folder / "pytorch_model.bin")


def tables_of_200(folder):
    found = weights(folder)
    name = "bert.embeddings.word_embeddings.weight"
    found[name] = found[name][:200].clone()
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder, vocab_size=200)


BAD = {
    "no configuration": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "not a number": (without_embedding, r"word_embeddings\.weight, which is not finite"),
    "of another": (other_weights, r"weights lack .* others: they are not those of a bert"),
    "large tokenizer": (tables_of_200, r"tokenizer has \d+ tokens, its embedding 200 rows"),
    "a layer too few": (
        lambda f: change(f, num_hidden_layers=1),
        r"its weights hold bert\.encoder\.layer\.1\.\S+, of a layer that config.json leaves out",
    ),
    "causal": (causal, "reads from the left to the right only"),
    "decoder": (lambda f: change(f, is_decoder=True), "a bert has a decoder"),
    "quantised": (
        lambda f: change(f, quantization_config={"load_in_8bit": True}),
        "its weights are quantised",
    ),
    "own code": (code, "no such type; it asks for code of its own .* not run"),
    "pickled code": (pickled, "its weights cannot be read"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tok*")], "has no tokenizer"),
    "damaged": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "weights cannot be"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_in_one_line(folder, tmp_path, name):
    spoil, says = BAD[name]
    spoil(folder)
    with pytest.raises(UserError, match=f"^model = 'mine': .*{says}"):
        foreign.bring(tmp_path / "run", str(folder))
    assert not (folder / "mark").exists()
    assert not (tmp_path / "run" / "models").exists() or name == "damaged"


def test_files_that_are_not_what_they_stand_for(folder, tmp_path):
    """A clone without Git LFS, a copy from a Mac, a download that lacks a part of the weights."""
    for name in ("._config.json", ".DS_Store", "._vocab.txt", "._model.safetensors"):
        (folder / name).write_bytes(b"\0\5\x16\7Mac OS X")
    foreign.bring(tmp_path / "run", str(folder))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safe"}}))
    with pytest.raises(
        UserError, match=r"'mine': lacks model-2.safe, which model.*index.json names"
    ):
        foreign.resolve(str(folder))
    index.unlink()
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x")
    with pytest.raises(UserError, match=r"model.safetensors: is a Git LFS pointer; `git lfs pull`"):
        foreign.resolve(str(folder))


def test_more_than_the_memory_of_this_machine_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    with pytest.raises(UserError, match=r"needs 0\.\d GB for weights, gradients and Adam's"):
        foreign.bring(tmp_path, str(folder))


def test_weights_that_are_there_twice_count_once_for_memory(folder, tmp_path, monkeypatch):
    weights = (folder / "model.safetensors").stat().st_size
    (folder / "pytorch_model.bin").write_bytes(bytes(weights))
    monkeypatch.setattr(machine, "memory", lambda: 5 * weights)
    assert foreign.bring(tmp_path, str(folder))["pretrain"]["parameters"] > 0


def test_a_recipe_may_say_its_protocol(folder, tmp_path, monkeypatch):
    recipe, seen = tmp_path / "mine.yaml", []
    recipe.write_text("profile: mine\nbase: score\nprotocol: tuned\n")
    monkeypatch.setattr(score, "run", lambda profile, *_: seen.append(profile.protocol))
    for more in ((), ("--protocol", "fixed")):
        cli.command_line(["score", str(folder), "--profile", str(recipe), *more])
    assert seen == ["tuned", "fixed"]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("", "give an id of the Hub"),
        ("electrra", "neither a folder that is there nor an id .*; an id has an owner"),
        ("bert", "a run pre-trains it: give runs/<profile>/models/bert/encoder"),
        ("no/such@v1", "is not all in the Hub's cache here"),
        ("../none/such/folder", "neither a folder that is there nor an id"),
    ],
)
def test_names_of_nothing(model, says):
    with pytest.raises(UserError, match=says):
        foreign.resolve(model)


def test_a_folder_with_weights_is_never_pre_trained(folder, monkeypatch, tmp_path):
    folder.parent.rename(tmp_path / "models")
    monkeypatch.setattr(registry, "root", lambda: tmp_path)
    with pytest.raises(UserError, match=r"models/mine holds weights, model\.safetensors: it is"):
        registry.get("mine")
    parameters = config.Pretrain(**config.load_profile("tiny").stage(config.Pretrain, model="mine"))
    with pytest.raises(
        UserError, match="is scored, small-bench score models/mine, not pre-trained"
    ):
        prepare.prepare(parameters)
    (tmp_path / "models" / "mine" / "model.safetensors").unlink()
    prepare.prepare(parameters.model_copy(update={"profile": "none"}))


# --- scored


def test_an_encoder_with_few_positions_is_timed_on_rows_that_it_reads(folder, own_run):
    about = transformers.AutoConfig.from_pretrained(folder, max_position_embeddings=12)
    transformers.BertModel(about).save_pretrained(folder)
    name = foreign.bring(own_run.folder, str(folder))["model"]
    values = own_run.stage(config.Finetune, model=name, tasks=["rte"])
    (plan,) = score.plan(config.Finetune(**values))
    assert plan.seconds > 0


def test_a_seed_that_is_added_leaves_the_others_in_the_row(fine_tuning):
    for seeds in ([0], [2], [0]):
        asked = fine_tuning(tasks=["rte"], seeds=seeds)
        finetune.run(asked)
    both = records.read_all(asked.folder, [asked.model], ["rte"])
    assert [record["seed"] for record in both] == [0, 2]
    assert finetune.finished(fine_tuning(tasks=["rte"], seeds=[0, 2])) == both
    assert finetune.finished(fine_tuning(tasks=["rte"], seeds=[1])) is None
    other = fine_tuning(tasks=["rte"], seeds=[1], clip=0.5)
    with pytest.raises(
        UserError, match=r"rte/seed-0.json: was made with clip = 1.0, not 0.5; to k"
    ):
        finetune.run(other)
    assert records.read_all(asked.folder, [asked.model], ["rte"]) == both


@pytest.mark.slow
def test_one_command_scores_an_encoder_and_does_nothing_twice(folder, tmp_path, capsys):
    command = ["score", str(folder), "--tasks", "rte mrpc", "--cores", "1", "--rows", "40"]
    command += [
        "--seeds",
        "0 1",
        "--profile",
        str(write_study(tmp_path, "few", runs=str(tmp_path / "runs"))),
    ]
    assert cli.command_line([*command, "--check"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"mine \(a folder\): bert, [\d.]+ k parameters", said)
    assert re.search(r"rte † +\d+ s +2 +40 +32\n", said)
    assert cli.command_line(command) == 0
    run = tmp_path / "runs" / "few-40"
    (cell,) = run.glob("records/mine@*/rte")
    scores = [json.loads(p.read_text())["score"] for p in run.glob("records/mine@*/*/seed-?.json")]
    floors = [json.loads(p.read_text())["score"] for p in run.glob("records/bag*/*/seed-0.json")]
    record = records.read(cell / "seed-0.json")
    assert record["checkpoint"]["weights"] == files.sha256(folder / "model.safetensors")
    assert record["pretrain"]["tokens"] is None
    assert record["rows"]["train"] == 40
    labels = glue.load(run, "rte", "validation")["label"]
    answers = pd.read_parquet(cell / "seed-0.parquet")["prediction"]
    assert record["score"] == pytest.approx(100 * accuracy_score(labels, answers))
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("mine@"))
    assert f"{np.mean(scores):.2f}" in row
    assert len(scores) == 4 and len(floors) == 2
    lead = f"{np.mean(scores) - np.mean(floors):+.2f}"
    assert re.search(rf"^Mean of 2, minus the bag of words, 95 %: {re.escape(lead)} \(", said, re.M)
    assert "recipe of few-40" in row
    assert any(line.startswith("bag-of-words") for line in said.splitlines())
    times = {path: path.stat().st_mtime_ns for path in run.glob("records/*/*/*")}
    assert cli.command_line(command) == 0
    assert "every fine-tuning is done" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in run.glob("records/*/*/*")}


@pytest.mark.slow
def test_tasks_that_cannot_be_scored_are_left_out_before_any_work(folder, tmp_path, capsys):
    """Labels of one value, hidden or missing ones, no rows: the others are scored all the same."""
    data = make_folder(tmp_path / "data", ["cola", "sst2", "mrpc", "stsb", "qnli", "rte"], 40)
    changes = {
        ("cola", "validation"): ([1] * 40, "label = 1 in all of its 40 rows; to train and"),
        ("sst2", "train"): ([0] * 40, "label = 0 in all of its 40 rows"),
        ("mrpc", "validation"): ([-1] * 40, r"row 0: label = -1; .* hidden test labels"),
        ("stsb", "validation"): ([1.0, None] * 20, "row 1: label = nan; it must be 0 to 5"),
        ("qnli", "train"): ([], "has no rows"),
    }
    for (task, split), (labels, _) in changes.items():
        path = data / "glue" / task / f"{split}.parquet"
        pd.read_parquet(path).head(len(labels)).assign(label=labels).to_parquet(path)
    tasks = [*(task for task, _ in changes), "qqp", "rte"]
    command = ["score", str(folder), "--data", str(data), "--tasks", " ".join(tasks)]
    command += ["--profile", str(write_study(tmp_path, "few", runs=str(tmp_path / "runs")))]
    assert cli.command_line(command) == 0
    said = capsys.readouterr().out
    for (task, split), (_, why) in changes.items():
        path = rf"glue/{task}/{split}\.parquet"
        assert re.search(rf"^{task} is left out: .*{path}: .*{why}", said, re.M)
    assert re.search(r"^qqp is left out: .*qqp/train\.parquet: no such file$", said, re.M)
    (record,) = (tmp_path / "runs").rglob("mine@*/*/seed-0.json")
    assert record.parent.name == "rte"
    # The notebook alone takes the same folder.
    made = tmp_path / "runs" / "few" / "data"
    shutil.rmtree(made)
    asked = ["notebook", "04_finetune", *command[2:5], "rte", *command[6:], f"model={folder}"]
    assert cli.command_line(asked) == 0
    assert files.find_manifest(made / "glue" / "rte")["source"] == "folder"
    command[5] = "cola qqp"
    with pytest.raises(UserError, match=r"^data: .*: no task of cola, qqp .*; cola is left out: "):
        cli.command_line(command)


def test_tuning_holds_out_train_rows_and_both_orders_of_a_pair():
    rng, rows = np.random.default_rng(0), 500
    lengths = np.tile(rng.integers(3, 9, rows), 2)
    ids = np.repeat(np.tile(np.arange(rows), 2), lengths).astype(np.int32)
    labels, idx = np.tile(rng.integers(0, 2, rows), 2), np.tile(np.arange(rows), 2)
    data = batches.Encoded(ids, np.zeros(len(ids), np.uint8), lengths, labels, idx)
    tried, held_out = tuning.split(data, rows)
    assert len(held_out.idx) == tuning.held_out(rows) == 100
    assert sorted(tried.idx) == sorted(np.repeat(np.setdiff1d(np.arange(rows), held_out.idx), 2))
    for part in (tried, held_out):  # each example kept its own tokens
        assert np.array_equal(part.ids, np.repeat(part.idx, part.lengths))
    assert len(tuning.grid(rows, 3)) == 8
    assert {epochs for _, epochs in tuning.grid(10**5, 3)} == {3}


def test_the_tuned_protocol_chooses_by_trials_that_every_record_holds(fine_tuning, monkeypatch):
    fixed = fine_tuning(tasks=["rte"], seeds=[0, 1], checkpoint_steps=1, finetune_epochs=2)
    tuned = fixed.model_copy(update={"protocol": "tuned"})
    monkeypatch.setattr(tuning, "RATES", (1e-4, 1e-2))
    monkeypatch.setattr(tuning, "EPOCHS", (1, 2))
    # Cut in the middle of the third trial, it goes on there.
    real, calls = finetune._fit, []

    def cut(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "_fit", cut)
        finetune.run(tuned)
    seen = finetune.run(tuned)
    monkeypatch.setattr(finetune, "_fit", None)  # nothing is done twice
    assert finetune.run(tuned) == seen == finetune.finished(tuned)
    assert finetune.remaining(tuned) == {"rte": ([], 0)}
    for record in seen:
        assert record["protocol"] == "tuned"
        pairs = [(trial["rate"], trial["epochs"]) for trial in record["trials"]]
        assert pairs == [(1e-4, 1), (1e-4, 2), (1e-2, 1), (1e-2, 2)]
        best = max(record["trials"], key=lambda trial: trial["score"])
        assert record["parameters"]["finetune_learning_rate"] == best["rate"]
        assert record["parameters"]["finetune_epochs_small"] == best["epochs"]
        trained = best["train_rows"] + best["held_out_rows"]
        assert trained == record["rows"]["train"]
    monkeypatch.undo()
    assert finetune.finished(fixed) is None  # another protocol is another score


def test_a_trial_that_diverges_counts_and_is_not_chosen(fine_tuning, monkeypatch):
    monkeypatch.setattr(tuning, "RATES", (1e-3, 1e30))
    monkeypatch.setattr(tuning, "EPOCHS", (3,))
    found = finetune.run(fine_tuning(tasks=["cola"], seeds=[0], protocol="tuned"))
    assert [trial["note"] for trial in found[0]["trials"]][1] == metrics.CONSTANT
    assert found[0]["trials"][1]["score"] == 0
    assert found[0]["parameters"]["finetune_learning_rate"] == 1e-3


def test_the_table_names_protocol_class_and_collapse(small_run, tmp_path, monkeypatch):
    found = records.read_all(small_run.folder, ["roberta"], ["cola"])[0]
    (tmp_path / "few" / "data").mkdir(parents=True)
    given = {"source": "some/encoder", "commit": COMMIT, "weights": "0" * 64, "positions": 128}
    given |= {"model_type": "roberta", "shared_layers": False}
    name = "some--encoder@01234567"
    cell = records.folder(tmp_path / "few", name, "cola")
    cell.mkdir(parents=True)
    record = found | {"model": name, "checkpoint": given, "note": "constant prediction"}
    trial = {"rate": 1e-4, "epochs": 3, "train_rows": 9, "held_out_rows": 3, "score": 1.0}
    record |= {"protocol": "tuned", "trials": [trial | {"note": ""}] * 8}
    recipe = config.load_profile("score").model_dump()
    record["parameters"] = {n: recipe.get(n, v) for n, v in record["parameters"].items()}
    record |= {"source": "folder", "complete": True, "reduced": []}
    nothing = dict.fromkeys(records.Pretraining.model_fields)
    record["pretrain"] = nothing | {"parameters": submission.PARAMETER_LIMIT + 1}
    records.write(cell / "seed-0.json", record)
    files.write_manifest(cell, {"spec": ""}, ["seed-0.json"])
    frame = beside.table(beside.open_run(tmp_path / "few", ["cola"]), name)
    row = frame.iloc[0]
    assert frame.index[0] == "some/encoder@01234567"
    with pytest.raises(UserError, match="no encoder has been scored there"):
        beside.open_run(tmp_path / "few", ["rte"])
    assert (row["Protocol"], row["Collapsed"]) == ("tuned, 8 trials", 1)
    assert row["Parameters"] == "25 M (outside the class)"
    assert frame["Protocol"].iloc[-1] == "profile small-30m"
    record["parameters"]["finetune_warmup"] = 0.5
    records.write(cell / "seed-0.json", record)
    files.write_manifest(cell, {"spec": ""}, ["seed-0.json"])
    frame = beside.table(beside.open_run(tmp_path / "few", ["cola"]), name)
    assert frame["Protocol"].iloc[0] == "recipe of small"
    # The run was given other rows of the task since.
    (tmp_path / "few" / "data" / "glue" / "cola").mkdir(parents=True)
    files.write_manifest(tmp_path / "few" / "data" / "glue" / "cola", {"spec": ""}, [])
    with pytest.raises(UserError, match="no encoder has been scored there"):
        beside.open_run(tmp_path / "few", ["cola"])


@pytest.mark.long
def test_every_type_of_masked_language_model_is_scored_or_refused_in_one_line(tmp_path):
    """What the book's page shows is what comes out today."""
    found = every_type.outcomes(tmp_path)
    kept = json.loads(every_type.RESULTS.read_text(encoding="utf-8"))["types"]
    assert len(found) == len(kept) >= 51
    for kind, one in found.items():
        assert one["made"], (kind, one)
        assert not one["line"].startswith("crash"), (kind, one)
        assert "\n" not in one["line"]
        assert bool(one["line"]) == bool(kept[kind]["line"]), (kind, one)


# --- a task of your own


@pytest.fixture
def own_task(tmp_path, monkeypatch):
    """A folder of SuperGLUE's CB's form: two texts, three labels by name, CSV files."""
    place = tmp_path / "checkout" / "tasks" / "three"
    place.mkdir(parents=True)
    for name in ("profiles", "results"):
        (tmp_path / "checkout" / name).symlink_to(ROOT / name)
    monkeypatch.setattr(files, "root", lambda: tmp_path / "checkout")
    rng, labels = np.random.default_rng(0), ["entailment", "contradiction", "neutral"]
    for split, rows in (("train", 40), ("dev", 12)):
        texts = [f"the {label} of row {row}" for row, label in enumerate(rng.choice(labels, rows))]
        table = pd.DataFrame({"premise": texts, "hypothesis": "so it is"})
        table["label"] = [text.split()[1] for text in texts]
        table.to_csv(place / f"{split}.csv", index=False)
    about = {"title": "Three", "columns": ["premise", "hypothesis"], "labels": labels}
    about |= {"metric": "macro_f1", "train": "train.csv", "validation": "dev.csv"}
    (place / "task.yaml").write_text(yaml.safe_dump(about))
    return place


def test_a_task_of_your_own_is_scored_like_glues(own_task, folder, tmp_path):
    both = ["rte", "three"]
    values = SMALL | {"runs": str(tmp_path / "runs"), "profile": "few", "tasks": both}
    profile = config.load_profile("tiny", **values, seeds=[0, 1])
    data = config.Data(**profile.stage(config.Data))
    assert glue.available("embedded", "", ["rte", "three"]) == ["rte", "three"]
    assert glue.run(data, "rte")["rows"]["train"] == SMALL["train_rows"]
    assert glue.run(data, "three")["rows"] == {"train": 40, "validation": 12}
    name = foreign.bring(profile.folder, str(folder))["model"]
    _, _, record, again = finetune.run(
        config.Finetune(**profile.stage(config.Finetune, model=name))
    )
    _, (bag, _) = floor.run(data, ["rte"]), floor.run(data, ["three"])
    answers = pd.read_parquet(records.folder(profile.folder, name, "three") / "seed-0.parquet")
    names = pd.read_csv(own_task / "dev.csv")["label"].map(list(glue.get("three").labels).index)
    wanted = f1_score(names, answers["prediction"], average="macro", zero_division=0)
    assert record["score"] == pytest.approx(100 * wanted)
    assert beside.groups(["rte", "three"]) == [["rte"], ["three"]]
    assert len(beside.open_run(profile.folder, both).records) == 4  # whatever their sources
    run = beside.open_run(profile.folder, ["three"])
    frame = beside.table(run, name)
    mean = (record["score"] + again["score"]) / 2
    assert frame["Three"].iloc[0] == pytest.approx(mean)
    assert "Mean of 1" not in frame
    assert f"{mean - bag['score']:+.2f} (" in beside.lead(run, name)
    assert len(frame) == 3  # with the floors; nothing of the kept run
    # A score by another metric is another score.
    done = config.Finetune(**profile.stage(config.Finetune, model=name, tasks=["three"]))
    assert finetune.finished(done)
    path = own_task / "task.yaml"
    path.write_text(path.read_text().replace("macro_f1", "accuracy"))
    assert finetune.finished(done) is None
    with pytest.raises(UserError, match="three: a study has GLUE's tasks alone; small-bench score"):
        jobs.load("tiny", tasks=both)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"metric": "accuraccy"}, "metric = 'accuraccy'"),
        ({"metric": "spearman"}, r"spearman needs none"),
        (
            {"columns": ["premise", "premise"]},
            r"columns = \['premise', 'premise'\]: each may stand",
        ),
        ({"metric": "f1"}, r"f1 needs two"),
        ({"train": "none.csv"}, r"none\.csv: no such file"),
        ({"train": "../../x.txt"}, r"x\.txt: no such file; .* a \.parquet or a \.csv file"),
        ({"colums": ["a"]}, "colums is not a parameter: did you mean columns"),
        ({"columns": ["text"]}, r"train\.csv: has no column text \(it has premise"),
        (
            {"labels": ["a", "b"], "metric": "accuracy"},
            "row 0: label = 'neutral'; it must be one of a, b",
        ),
    ],
)
def test_a_task_file_that_is_wrong_is_one_line(own_task, tmp_path, change, says):
    path = own_task / "task.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    profile = config.load_profile("tiny", runs=str(tmp_path / "runs"))
    with pytest.raises(UserError, match=says):
        glue.run(config.Data(**profile.stage(config.Data)), "three")
